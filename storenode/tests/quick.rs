//! What is there for speed only changes nothing that is said or kept: answers without a wait.
#![cfg(feature = "server")]
#![allow(clippy::unwrap_used)]

#[allow(unreachable_pub)]
mod support;

use bytes::Bytes;
use std::sync::Arc;
use storenode::disk::{MemoryDisk, RealDisk};
use storenode::service::Service;
use storenode::wire::*;
use support::{Node, config, part, put, v};

#[test]
fn what_is_answered_at_once_is_what_would_be_answered_and_never_a_refusal() {
    let dir = tempfile::tempdir().unwrap();
    let open = Service::open(Arc::new(RealDisk::open(dir.path(), true).unwrap()), config(1 << 20));
    let mut n =
        Node { disk: MemoryDisk::new(), service: open.unwrap(), epoch: 0, segment_bytes: 0 };
    n.assign(Role::Voter);
    n.take(1);
    let value = |i: u8| vec![i; 100_000];
    let two = vec![put(b"a", &value(1)), put(b"b", &value(2))];
    n.append(&[part(v(1, 1), Version::ZERO, &two)], Version::ZERO).unwrap();
    n.append(&[part(v(1, 2), v(1, 1), &vec![put(b"c", &value(3))])], v(1, 1)).unwrap();
    let keys = |names: &[&[u8]]| names.iter().map(|k| k.to_vec()).collect::<Vec<_>>();
    let same = |e: Envelope, r: &Request| {
        let at_once = n.service.handle_at_once(&e, r)?;
        let (reply, bulk) = at_once.unwrap();
        let (want, want_bulk) = n.service.handle(e, r.clone(), Bytes::new()).unwrap();
        assert_eq!((reply, bulk.concat()), (want, want_bulk.concat()));
        Some(())
    };
    let (e, through) = (n.envelope(), v(1, 1));
    let all = keys(&[b"b", b"nothing", b"a"]);
    // The log was just written: it is in the page cache.
    assert!(same(e, &Request::Read { keys: all.clone(), through }).is_some());
    assert!(same(e, &Request::Digests { keys: all.clone(), through }).is_some());
    // What needs work or is refused is not answered here.
    let at_once = |e: Envelope, r: &Request| n.service.handle_at_once(&e, r).is_some();
    let read = Request::Read { keys: all, through };
    assert!(!at_once(e, &Request::Read { keys: keys(&[b"c"]), through: v(1, 2) }));
    assert!(!at_once(e, &Request::Status));
    assert!(!at_once(Envelope { nonce: 3, ..e }, &read));
    assert!(!at_once(Envelope { epoch: 2, ..e }, &read));
    assert!(!at_once(Envelope { store: StoreId::ZERO, ..e }, &read));
    assert!(!at_once(Envelope { format: 9, ..e }, &read));
    n.service.inject(Fault::Refuse { on: true }).unwrap();
    assert!(!at_once(e, &read));
}
