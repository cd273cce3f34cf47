//! The rules of the protocol that a node must keep, one test each.
#![cfg(feature = "server")]
#![allow(clippy::unwrap_used)]

#[allow(unreachable_pub)]
mod support;

use bytes::Bytes;
use std::sync::Arc;
use storenode::disk::{Disk as _, MemoryDisk};
use storenode::offline::Offline;
use storenode::service::{NodeConfig, OpenError, Service};
use storenode::wire::*;
use support::wrapped::{Watcher, Wrapped};
use support::*;

fn value(found: Result<(Found, Option<Bytes>), NodeError>) -> Option<Bytes> {
    match found.unwrap() {
        (Found::Absent, None) => None,
        (Found::Record { len: None, .. }, None) => None,
        (Found::Record { len: Some(n), .. }, Some(b)) if n as usize == b.len() => Some(b),
        other => panic!("{other:?}"),
    }
}

#[test]
fn written_committed_read_and_there_after_a_power_cut() {
    let n = Node::new(1 << 20);
    let p = n.write(1, &vec![put(b"a", b"one"), put(b"b", b"two")]).unwrap();
    assert_eq!((p.position, p.applied), (v(1, 1), Version::ZERO));
    assert_eq!(value(n.read(b"a", Version::ZERO)), None, "not committed, so not visible");
    n.write(2, &vec![put(b"a", b"three"), del(b"b")]).unwrap();
    assert_eq!(value(n.read(b"a", v(1, 1))), Some("one".into()));
    assert_eq!(value(n.read(b"b", v(1, 2))), None);
    assert_eq!(value(n.read(b"a", v(1, 2))), Some("three".into()));
    n.tick();
    assert_eq!(n.position().applied, v(1, 2), "a mark makes the watermark durable");
    let hashes = n.hashes();
    let n = n.crash();
    assert_eq!(n.position().position, v(1, 2));
    assert_eq!(n.position().applied, v(1, 2));
    assert_eq!(n.hashes(), hashes);
    assert!(matches!(n.read(b"a", v(1, 3)), Err(NodeError::NotAttached { attached: 0 })));
    assert_eq!(value(n.read(b"a", v(1, 2))), Some("three".into()));
    assert_eq!(n.write(3, &vec![]), Err(NodeError::NotAttached { attached: 0 }));
    n.attach(vec![]).unwrap();
    assert_eq!(n.write(3, &vec![put(b"b", b"x")]).unwrap().position, v(1, 3));
    assert!(matches!(n.read(b"a", v(1, 4)), Err(NodeError::NotThere { .. })));
}

#[test]
fn a_part_behind_a_gap_is_stored_and_not_acked() {
    let n = Node::new(1 << 20);
    n.write(1, &vec![put(b"a", b"1")]).unwrap();
    let p3 = part(v(1, 3), v(1, 2), &vec![put(b"a", b"3")]);
    let p = n.append(std::slice::from_ref(&p3), v(1, 3)).unwrap();
    assert_eq!((p.position, p.detached), (v(1, 1), Some((v(1, 3), v(1, 3)))));
    assert_eq!(value(n.read(b"a", v(1, 1))), Some("1".into()), "never visible behind a gap");
    let n = n.crash();
    assert_eq!(n.position().detached, Some((v(1, 3), v(1, 3))));
    n.attach(vec![]).unwrap();
    let p2 = part(v(1, 2), v(1, 1), &vec![put(b"a", b"2")]);
    let p = n.append(&[p2.clone(), p2, p3], v(1, 3)).unwrap();
    assert_eq!((p.position, p.detached), (v(1, 3), None));
    assert_eq!(value(n.read(b"a", v(1, 3))), Some("3".into()));
    assert_eq!(n.service.metrics().parts, 1, "duplicates are not stored again");
}

#[test]
fn fences_and_names_are_checked() {
    let mut n = Node::new(1 << 20);
    n.write(1, &vec![put(b"a", b"1")]).unwrap();
    n.take(5);
    assert_eq!(n.position().position, v(1, 1));
    n.epoch = 4;
    let refused = n.append(&[], Version::ZERO);
    assert!(matches!(&refused, Err(NodeError::Fenced { promise }) if promise.epoch == 5));
    assert!(matches!(n.fence(4), Err(NodeError::Fenced { .. })));
    n.epoch = 5;
    let mut e = n.envelope();
    e.nonce += 1;
    let again = Request::Fence { epoch: 5, nonce: 3, holder: String::new() };
    assert!(matches!(n.service.handle(e, again, Bytes::new()), Err(NodeError::Fenced { .. })));
    let mut e = n.envelope();
    e.store = StoreId([1; 16]);
    let tail = || Request::Tail { from: Version::ZERO };
    assert!(matches!(n.service.handle(e, tail(), Bytes::new()), Err(NodeError::WrongStore { .. })));
    let mut e = n.envelope();
    e.volume = VolumeId([1; 16]);
    assert!(matches!(
        n.service.handle(e, tail(), Bytes::new()),
        Err(NodeError::WrongVolume { have: VOLUME })
    ));
    let mut e = n.envelope();
    e.format = 99;
    assert!(matches!(
        n.service.handle(e, Request::Status, Bytes::new()),
        Err(NodeError::UnknownFormat { format: 99 })
    ));
    // The promise survives; the attachment does not.
    let n = n.crash();
    assert_eq!(n.service.status().promise.epoch, 5);
    assert_eq!(n.service.status().attached, 0);
}

#[test]
fn a_void_part_never_comes_back() {
    let mut n = Node::new(4096);
    n.write(1, &vec![put(b"a", b"1")]).unwrap();
    n.write(2, &vec![put(b"a", b"void")]).unwrap();
    n.fence(2).unwrap();
    n.attach(vec![]).unwrap();
    assert_eq!(n.position().position, v(1, 1));
    assert_eq!(n.position().high, v(1, 2), "what was acked is not forgotten");
    let opening = storenode::part::PartHead {
        version: v(2, 1),
        predecessor: v(1, 1),
        shards: vec![0],
        cut: Some(v(1, 1)),
        ..Default::default()
    };
    n.append(&[storenode::part::encode(&opening, &[])], Version::ZERO).unwrap();
    n.commit(v(2, 1));
    // Across segments, sidecars and starts.
    for seq in 2..40 {
        n.write(seq, &vec![put(format!("k{seq}").as_bytes(), &[7; 300])]).unwrap();
    }
    n.commit(v(2, 39));
    n.tick();
    n.maintain();
    for round in 0..3 {
        assert_eq!(n.service.status().openings, [OpeningMark { epoch: 2, cut: v(1, 1) }]);
        assert_eq!(value(n.read(b"a", v(2, 39))), Some("1".into()));
        assert_eq!(n.position().position, v(2, 39));
        assert_eq!(n.position().high, v(2, 39));
        n = if round == 0 { n.crash() } else { n.start() };
        n.maintain();
    }
}

#[test]
fn parts_pending_over_a_segment_boundary_keep_the_chain_together() {
    let mut n = Node::new(4096);
    let mut last = Version::ZERO;
    let mut parts = Vec::new();
    for seq in 1..=30 {
        parts.push(part(v(1, seq), last, &vec![put(&[b'k', seq as u8], &[seq as u8; 500])]));
        last = v(1, seq);
    }
    for p in &parts {
        n.append(std::slice::from_ref(p), Version::ZERO).unwrap();
    }
    n.maintain();
    assert!(!n.log_files().iter().any(|f| f.ends_with("idx")), "pending parts: no sidecar");
    n.commit(v(1, 17));
    n.tick();
    n.maintain();
    assert!(n.log_files().iter().any(|f| f.ends_with("idx")));
    let hashes = n.hashes();
    for round in 0..3 {
        n = if round == 1 { n.crash() } else { n.start() };
        assert_eq!(n.position().position, v(1, 30), "round {round}");
        assert_eq!(n.position().applied, v(1, 17));
        assert_eq!(n.hashes(), hashes);
        assert_eq!(n.tail().len(), 13);
    }
    n.attach(parts_after(17, 30)).unwrap();
    n.commit(v(1, 30));
    assert_eq!(n.scan().len(), 30);
}

fn parts_after(from: u64, to: u64) -> Vec<Version> {
    (from + 1..=to).map(|s| v(1, s)).collect()
}

#[test]
fn tombstones_go_by_the_floor_and_what_they_hid_stays_hidden() {
    let mut n = Node::new(4096);
    let mut seq = 0;
    let mut write = |n: &Node, records: Records, floor: Version| {
        let at = n.position().position;
        seq += 1;
        let head = storenode::part::PartHead {
            version: v(1, seq),
            predecessor: at,
            floor,
            shards: vec![0],
            ..Default::default()
        };
        n.append(&[storenode::part::encode(&head, &records)], at).unwrap();
        v(1, seq)
    };
    for i in 0..40u8 {
        write(&n, vec![put(&[b'k', i], &[i; 300])], Version::ZERO);
    }
    let mut last = Version::ZERO;
    for i in 0..40u8 {
        last = write(&n, vec![del(&[b'k', i])], Version::ZERO);
    }
    n.commit(last);
    n.tick();
    n.maintain();
    assert_eq!(n.service.status().space.tombstones, 40);
    let top = write(&n, vec![put(b"x", &[1; 3000])], last);
    n.commit(top);
    n.tick();
    n.maintain();
    assert_eq!(n.service.status().space.tombstones, 0);
    for round in 0..4 {
        n = if round % 2 == 0 { n.crash() } else { n.start() };
        assert_eq!(n.scan().len(), 1, "round {round}: what was deleted stays deleted");
        n.maintain();
        assert_eq!(n.service.status().space.tombstones, 0);
    }
    let log = n.service.status().space.log_bytes;
    assert!(log < 20_000, "{log} bytes of log for one record");
    let as_of = v(1, 2);
    n.attach(vec![]).unwrap();
    let late = [(b"k\x01".to_vec(), v(1, 2), Some(Bytes::from_static(b"late")))];
    let r = n.install(&late, as_of, InstallKind::Repair);
    assert!(matches!(r, Err(NodeError::BelowFloor { .. })), "trap 23");
}

#[test]
fn neighbours_are_read_in_one_piece_and_a_failure_is_its_own() {
    let n = Node::new(1 << 20);
    let names: Vec<Vec<u8>> = (0..9u8).map(|i| vec![b'k', i]).collect();
    let records: Vec<_> = names.iter().map(|k| put(k, &[k[1]; 700])).collect();
    n.write(1, &records).unwrap();
    n.commit(v(1, 1));
    let read = || {
        let (reply, values) =
            n.observe(Request::Read { keys: names.clone().into(), through: v(1, 1) }).unwrap();
        let Reply::Found { items, .. } = reply else { panic!() };
        (items.iter().filter(|f| matches!(f, Found::Record { .. })).count(), values)
    };
    let operations = |what: &dyn Fn()| {
        let before = n.disk.operations();
        what();
        n.disk.operations() - before
    };
    // Asking costs some by itself: the harness looks at the status first.
    let digests = || Request::Digests { keys: names.clone().into(), through: v(1, 1) };
    let asking = operations(&|| drop(n.observe(digests()).unwrap()));
    let check = || {
        let (found, values) = read();
        assert_eq!((found, values.len()), (9, 9));
        assert!(values.iter().zip(&names).all(|(value, k)| value[..] == [k[1]; 700]));
    };
    assert_eq!(operations(&check), asking + 1, "nine values that adjoin, one read");
    // The one large read fails: each value is read by itself.
    n.disk.fail_nth(asking + 1);
    assert_eq!(operations(&check), asking + 10);
}

#[test]
fn repairs_take_what_is_newer_or_heals() {
    let n = Node::new(1 << 20);
    n.write(1, &vec![put(b"a", b"one"), put(b"b", b"bee")]).unwrap();
    n.commit(v(1, 1));
    let a = |seq, value: &'static str| [(b"a".to_vec(), v(1, seq), Some(Bytes::from(value)))];
    assert_eq!(n.install(&a(1, "one"), v(1, 1), InstallKind::Repair), Ok(0));
    n.service.inject(Fault::Corrupt { key: b"a".to_vec() }).unwrap();
    assert!(matches!(n.read(b"a", v(1, 1)).unwrap().0, Found::Damaged { .. }));
    // A read leaves the check to the reader; the node's own look counts it.
    let verify = Request::Verify { after: vec![], budget_bytes: 1 << 20 };
    let Ok((Reply::Verified { bad, .. }, _)) = n.call(verify) else { panic!() };
    assert_eq!(bad.len(), 1);
    assert_eq!(n.service.status().damaged_records, 1);
    assert_eq!(n.install(&a(1, "one"), v(1, 1), InstallKind::Repair), Ok(1));
    assert_eq!(n.service.status().damaged_records, 0, "it was replaced");
    assert_eq!(value(n.read(b"a", v(1, 1))), Some("one".into()));
    // A record from above what is applied (foreign) is replaced by the true, lower one.
    let foreign = Fault::Drop { key: b"a".to_vec() };
    n.service.inject(foreign).unwrap();
    let put = Fault::Put { key: b"a".to_vec(), value: b"evil".to_vec(), version: Some(v(1, 999)) };
    n.service.inject(put).unwrap();
    assert_eq!(n.install(&a(1, "one"), v(1, 1), InstallKind::Repair), Ok(1));
    assert_eq!(value(n.read(b"a", v(1, 1))), Some("one".into()));
    let hashes = n.hashes();
    let n = n.crash();
    assert_eq!(value(n.read(b"a", v(1, 1))), Some("one".into()));
    let sums = |h: &[BucketHash]| h.iter().map(|b| (b.sum, b.count)).collect::<Vec<_>>();
    assert_eq!(sums(&n.hashes()), sums(&hashes));
    // A foreign key goes without a trace, but only if it is still the one that was seen.
    n.attach(vec![]).unwrap();
    let put = Fault::Put { key: b"zz".to_vec(), value: b"evil".to_vec(), version: None };
    n.service.inject(put).unwrap();
    let remove = |seen| Request::Remove { key: b"zz".to_vec(), seen, as_of: v(1, 1) };
    assert_eq!(n.call(remove(v(1, 7))).unwrap().0, Reply::Installed { taken: 0 });
    assert_eq!(n.call(remove(v(1, 1))).unwrap().0, Reply::Installed { taken: 1 });
    let n = n.crash();
    assert_eq!(n.read(b"zz", v(1, 1)).unwrap().0, Found::Absent);
    let bad = [RecordHead {
        key: b"q".to_vec(),
        version: v(1, 1),
        digest: Digest([1; 16]),
        len: Some(0),
    }];
    n.attach(vec![]).unwrap();
    let r = Request::Install { records: bad.to_vec(), as_of: v(1, 1), kind: InstallKind::Repair };
    assert!(matches!(n.call(r), Err(NodeError::Bad { .. })));
}

/// A repair that was decided before a record was written knows nothing of it: it neither removes it
/// nor replaces it by something older, even when the newer one is damaged.
#[test]
fn a_late_repair_leaves_alone_what_was_written_since() {
    let n = Node::new(1 << 20);
    n.write(1, &vec![put(b"a", b"one")]).unwrap();
    n.write(2, &vec![put(b"a", b"two")]).unwrap();
    n.commit(v(1, 2));
    let remove = |as_of| Request::Remove { key: b"a".to_vec(), seen: v(1, 2), as_of };
    assert_eq!(n.call(remove(v(1, 1))).unwrap().0, Reply::Installed { taken: 0 });
    assert_eq!(value(n.read(b"a", v(1, 2))), Some("two".into()));
    n.service.inject(Fault::Corrupt { key: b"a".to_vec() }).unwrap();
    let one = [(b"a".to_vec(), v(1, 1), Some(Bytes::from("one")))];
    assert_eq!(n.install(&one, v(1, 1), InstallKind::Repair), Ok(0));
    assert!(matches!(n.read(b"a", v(1, 2)).unwrap().0, Found::Damaged { .. }));
    assert_eq!(n.call(remove(v(1, 2))).unwrap().0, Reply::Installed { taken: 1 });
}

#[test]
fn a_store_that_was_away_catches_up_by_delta_and_tail() {
    let (src, dst) = (Node::new(8192), Node::new(8192));
    let mut last = Version::ZERO;
    for seq in 1..=60u64 {
        let records = vec![
            put(&[b'k', (seq % 20) as u8], &[seq as u8; 200]),
            if seq % 3 == 0 { del(b"gone") } else { put(b"gone", &[seq as u8]) },
        ];
        let p = part(v(1, seq), last, &records);
        src.append(std::slice::from_ref(&p), last).unwrap();
        if seq <= 5 || seq > 50 {
            dst.append(&[p], last).unwrap();
        }
        last = v(1, seq);
    }
    src.commit(v(1, 59));
    assert_eq!(dst.position().position, v(1, 5));
    assert_eq!(dst.position().detached, Some((v(1, 51), v(1, 60))));
    let mut after = Vec::new();
    loop {
        let r = Request::Delta {
            since: v(1, 5),
            after: after.clone(),
            limit_bytes: 500,
            values: true,
            through: v(1, 59),
        };
        let (Reply::Records { records, damaged, next, applied }, values) = src.call(r).unwrap()
        else {
            panic!()
        };
        assert_eq!((applied, damaged.len()), (v(1, 59), 0));
        let mut values = values.into_iter();
        let records: Vec<_> = records
            .into_iter()
            .map(|r| (r.key, r.version, r.len.map(|_| values.next().unwrap())))
            .collect();
        dst.install(&records, v(1, 59), InstallKind::CatchUp).unwrap();
        match next {
            Some(n) => {
                after = n;
                let (since, good) = (v(1, 5), v(1, 50));
                dst.call(Request::Cursor(Cursor { since, good, after: after.clone() })).unwrap();
            }
            None => break,
        }
    }
    let cursor = Cursor { since: v(1, 5), good: v(1, 50), after };
    assert_eq!(dst.service.status().cursor, Some(cursor.clone()));
    assert_eq!(dst.position().position, v(1, 5), "until it has joined");
    let dst = dst.crash();
    assert!(dst.service.status().cursor.is_some(), "the cursor survives");
    dst.attach(vec![]).unwrap();
    let bad = dst.call(Request::Join { at: v(1, 59), reach: v(1, 61) });
    assert!(matches!(bad, Err(NodeError::NotThere { .. })));
    let p = position(dst.call(Request::Join { at: v(1, 59), reach: v(1, 59) })).unwrap();
    assert_eq!((p.position, p.applied, p.detached), (v(1, 60), v(1, 59), None));
    assert_eq!(dst.service.status().cursor, None);
    dst.call(Request::Cursor(cursor)).unwrap();
    assert_eq!(dst.service.status().cursor, None, "a late copy of the message is ignored");
    let dst = dst.crash();
    assert_eq!(dst.position().position, v(1, 60));
    let sums = |n: &Node| n.hashes().iter().map(|b| (b.sum, b.count)).collect::<Vec<_>>();
    assert_eq!(sums(&src), sums(&dst));
}

/// Whoever works in the background holds the index for shorter; what is seen is the same.
#[test]
fn what_is_copied_and_checked_in_the_background_is_the_same() {
    let n = Node::new(1 << 20);
    let key = |i: u64| format!("{i:05}").into_bytes();
    for seq in 1..=9 {
        let records: Records = (0..1000)
            .map(|i| put(&key(i * 9 + seq), &vec![seq as u8; (i % 40) as usize]))
            .collect();
        n.write(seq, &records).unwrap();
    }
    let late =
        |i: u64| if i.is_multiple_of(4) { del(&key(i * 700)) } else { put(&key(i * 700), b"late") };
    n.write(10, &(1..13).map(late).collect()).unwrap();
    n.commit(v(1, 10));
    n.service.inject(Fault::Corrupt { key: key(4000) }).unwrap();
    let page = |since, after: Vec<u8>, limit_bytes, values| {
        let through = v(1, 10);
        let r = Request::Delta { since, after, limit_bytes, values, through };
        match n.call(r).unwrap() {
            (Reply::Records { records, damaged, next, applied }, values) => {
                assert_eq!(applied, through);
                (records, damaged, next, values.concat())
            }
            other => panic!("{other:?}"),
        }
    };
    let all = |since, limit_bytes, values| {
        let (mut records, mut damaged, mut bulk, mut after) = (vec![], vec![], vec![], vec![]);
        loop {
            let (r, d, next, b) = page(since, after, limit_bytes, values);
            records.extend(r);
            damaged.extend(d);
            bulk.extend(b);
            match next {
                Some(n) => after = n,
                None => return (records, damaged, bulk),
            }
        }
    };
    let look = || {
        let copies =
            [(Version::ZERO, 8192, true), (v(1, 9), 1 << 20, true), (v(1, 9), 8192, false)]
                .map(|(since, limit, values)| all(since, limit, values));
        let missed = |since| n.call(Request::Missed { since, after: vec![], through: v(1, 10) });
        let bucket = |b| {
            let r = Request::Bucket { bucket: b, after: vec![], limit: 9000, through: v(1, 10) };
            n.call(r).unwrap().0
        };
        (copies, [missed(Version::ZERO), missed(v(1, 9))], [1, 2, 3].map(bucket))
    };
    let there = std::thread::scope(|s| {
        let there = s.spawn(|| {
            storenode::background::enter();
            look()
        });
        there.join().unwrap()
    });
    let here = look();
    assert!(here == there);
    let [whole, late, _] = here.0;
    assert_eq!((whole.0.len(), whole.1.as_slice()), (9000, &[key(4000)][..]));
    assert_eq!((late.0.len(), late.1.len(), late.2.len()), (12, 0, 4 * 9));
}

#[test]
fn a_filling_store_begins_anew_under_a_new_id() {
    let mut n = Node::new(8192);
    n.write(1, &vec![put(b"a", b"one")]).unwrap();
    let old = n.service.status().store;
    n.wipe(|| ()).unwrap();
    let s = n.service.status();
    assert!(s.store != old && s.role == Role::Filling && s.position.position == Version::ZERO);
    assert_eq!(s.promise.epoch, 1);
    n.take(1);
    n.append(&[part(v(1, 3), v(1, 2), &vec![del(b"a"), put(b"b", b"3")])], v(1, 3)).unwrap();
    assert_eq!(n.position().position, Version::ZERO);
    let records = [(b"a".to_vec(), v(1, 2), Some(Bytes::from_static(b"two")))];
    assert_eq!(n.install(&records, v(1, 2), InstallKind::CatchUp), Ok(1));
    let s = n.service.status();
    let configuration = Configuration { number: 2, stores: PerBank([Some(s.store), None, None]) };
    let admit = Request::Admit { configuration };
    assert!(matches!(n.call(admit.clone()), Err(NodeError::NotThere { .. })));
    n.call(Request::Join { at: v(1, 2), reach: v(1, 3) }).unwrap();
    n.call(admit).unwrap();
    let n = n.crash();
    let s = n.service.status();
    assert_eq!((s.role, s.configuration.number, s.position.position), (Role::Voter, 2, v(1, 3)));
    assert_eq!(value(n.read(b"a", v(1, 3))), None);
    assert_eq!(value(n.read(b"b", v(1, 3))), Some("3".into()));
    let mut e = n.envelope();
    e.store = old;
    let r = n.service.handle(e, Request::Tail { from: Version::ZERO }, Bytes::new());
    assert!(matches!(r, Err(NodeError::WrongStore { .. })), "nothing for the old self lands here");
}

#[test]
fn a_failed_fsync_ends_voting_and_loses_nothing_that_was_acked() {
    let n = Node::new(1 << 20);
    n.write(1, &vec![put(b"a", b"one")]).unwrap();
    n.disk.fail_syncs(true);
    assert!(matches!(n.write(2, &vec![put(b"a", b"two")]), Err(NodeError::Failed { .. })));
    n.disk.fail_syncs(false);
    assert!(matches!(n.write(3, &vec![]), Err(NodeError::Failed { .. })), "no retry");
    assert!(matches!(n.read(b"a", v(1, 1)), Err(NodeError::Failed { .. })));
    assert!(n.service.status().failed.is_some());
    // The process ends; the kernel still shows the bytes that never reached the disk.
    let n = n.start();
    assert_eq!(n.position().position, v(1, 2));
    let n = n.crash();
    assert_eq!(n.position().position, v(1, 2), "written again before it was reported");
}

#[test]
fn a_full_disk_refuses_and_loses_nothing() {
    full_and_emptied(Node::new(16 << 10));
}

/// A quota is not a broken disk: nothing ends the node's vote.
#[test]
fn a_spent_quota_refuses_and_loses_nothing() {
    struct Quota;
    impl Watcher for Quota {
        fn error(&self, e: std::io::Error) -> std::io::Error {
            const EDQUOT: i32 = 122;
            if e.kind() != std::io::ErrorKind::StorageFull {
                return e;
            }
            std::io::Error::from_raw_os_error(EDQUOT)
        }
    }
    let disk = storenode::disk::MemoryDisk::new();
    let on = std::sync::Arc::new(Wrapped(disk.clone(), std::sync::Arc::new(Quota)));
    let service = storenode::service::Service::open(on, config(16 << 10)).unwrap();
    let mut n = Node { disk, service, epoch: 0, segment_bytes: 16 << 10 };
    n.assign(Role::Voter);
    n.take(1);
    full_and_emptied(n);
}

fn full_and_emptied(n: Node) {
    n.disk.set_capacity(Some(300_000));
    let mut seq = 0;
    let full = loop {
        seq += 1;
        let key = seq.to_string();
        match n.write(seq, &vec![put(key.as_bytes(), &[3; 5000])]) {
            Ok(p) => assert_eq!(p.position, v(1, seq)),
            Err(e) => break e,
        }
        assert!(seq < 1000);
    };
    assert!(matches!(full, NodeError::Full { .. }));
    assert_eq!(n.service.status().failed, None);
    // Deletes have a reserve, and compaction gets the space back.
    let gone: Records = (1..seq).map(|i| del(i.to_string().as_bytes())).collect();
    let p = n.write(seq, &gone).unwrap();
    assert_eq!(p.position, v(1, seq));
    n.commit(v(1, seq));
    n.tick();
    n.maintain();
    let n = n.start();
    n.attach(vec![]).unwrap();
    assert_eq!(n.position().position, v(1, seq));
    for s in 1..20 {
        n.write(seq + s, &vec![put(b"again", &[4; 5000])]).unwrap();
    }
}

/// A state that cannot be written (the disk is full) silences the node, and only for as long.
#[test]
fn a_node_that_could_not_write_its_state_votes_again_once_it_can() {
    let mut n = Node::new(1 << 20);
    n.write(1, &vec![put(b"a", b"one")]).unwrap();
    let used = n.disk.space().unwrap();
    n.disk.set_capacity(Some(used.total_bytes - used.free_bytes));
    assert!(matches!(n.fence(2), Err(NodeError::Failed { .. })));
    assert!(n.service.status().failed.is_some(), "it is not known what the next start finds");
    n.maintain();
    assert!(n.service.status().failed.is_some(), "still full");
    n.disk.set_capacity(None);
    n.maintain();
    assert_eq!(n.service.status().failed, None);
    assert_eq!(n.service.status().promise.epoch, 1, "the promise that was refused was not made");
    n.fence(2).unwrap();
    let n = n.crash();
    assert_eq!((n.service.status().promise.epoch, n.position().position), (2, v(1, 1)));
}

/// What damage took stays known until the node holds it again: an attach that names it, and then a
/// crash, do not make it absent (trap 5).
#[test]
fn what_is_lost_is_told_until_it_is_there_again() {
    let n = Node::new(1 << 20);
    let parts: Vec<Bytes> = (1..=3u64)
        .map(|s| {
            part(
                v(1, s),
                if s == 1 { Version::ZERO } else { v(1, s - 1) },
                &vec![put(b"a", b"one")],
            )
        })
        .collect();
    n.append(&parts, Version::ZERO).unwrap();
    n.tick();
    // The second part rots; a mark covers it, so it is damaged and not torn.
    let (name, all) = (n.log_files().remove(0), 2);
    let log = n.disk.content(&name).unwrap();
    let starts: Vec<usize> = (0..log.len() - 4).filter(|i| &log[*i..*i + 4] == b"TPRT").collect();
    assert!(n.disk.flip(&name, starts[all - 1] as u64 + 30, 1));
    let mut n = n.start();
    let lost = |n: &Node| n.service.status().damaged_through;
    assert_eq!((n.position().position, lost(&n)), (v(1, 1), Some(v(1, 3))));
    n.fence(2).unwrap();
    // The opener keeps the first two: the third is void, the second is what is lost.
    n.call(Request::Attach { chain: vec![v(1, 1), v(1, 2)], cut: v(1, 2) }).unwrap();
    assert_eq!(lost(&n), Some(v(1, 2)));
    let mut n = n.crash();
    assert_eq!((n.position().position, lost(&n)), (v(1, 1), Some(v(1, 2))), "not absent");
    n.fence(3).unwrap();
    n.call(Request::Attach { chain: vec![v(1, 1), v(1, 2)], cut: v(1, 2) }).unwrap();
    n.append(&parts[1..2], Version::ZERO).unwrap();
    assert_eq!((n.position().position, lost(&n)), (v(1, 2), None));
    let n = n.crash();
    assert_eq!((n.position().position, lost(&n)), (v(1, 2), None));
}

/// What no mark covers is written again at a start. Without room for that it stays where it is, and
/// must not be cut off by the segment that comes next.
#[test]
fn a_start_on_a_full_disk_keeps_what_was_not_marked() {
    let n = Node::new(1 << 20);
    for seq in 1..=3 {
        n.write(seq, &vec![put(b"a", &[seq as u8; 2000])]).unwrap();
    }
    let mut n = n.crash();
    n.take(2);
    n.append(&[part(v(2, 4), v(1, 3), &vec![put(b"a", b"four")])], v(1, 3)).unwrap();
    let space = n.disk.space().unwrap();
    n.disk.set_capacity(Some(space.total_bytes - space.free_bytes));
    let mut n = n.crash();
    assert_eq!(n.position().position, v(2, 4));
    n.disk.set_capacity(None);
    n.take(3);
    n.append(&[part(v(3, 5), v(2, 4), &vec![put(b"a", b"five")])], v(2, 4)).unwrap();
    let n = n.crash();
    assert_eq!((n.position().position, n.service.status().damaged_through), (v(3, 5), None));
}

#[test]
fn a_damaged_state_is_not_a_blank_node() {
    let n = Node::new(1 << 20);
    n.write(1, &vec![put(b"a", b"one")]).unwrap();
    let store = n.service.status().store;
    n.disk.flip("state.a", 40, 1);
    let n = n.start();
    assert_eq!(n.service.status().failed, None, "one copy is enough, and is made whole again");
    let n = n.start();
    n.disk.flip("state.a", 40, 1);
    n.disk.flip("state.b", 40, 1);
    let n = n.start();
    let s = n.service.status();
    assert!(s.failed.is_some_and(|f| f.contains("damaged")));
    assert_eq!((s.store, s.role), (store, Role::Filling), "the log knows whose it is");
    assert!(matches!(n.write(2, &vec![]), Err(NodeError::Failed { .. })));
    assert!(!Offline::open(Arc::new(n.disk.copy())).unwrap().damage().is_empty());
    // The owner of the volume may refill it.
    let r = Request::Assign {
        volume: VOLUME,
        bank: BankId::A,
        shard: 0,
        shards: 1,
        role: Role::Filling,
        configuration: Configuration::default(),
        wipe: true,
    };
    n.call(r).unwrap();
    let s = n.service.status();
    assert!(s.failed.is_none() && s.store != store);
}

#[test]
fn the_wrong_directory_is_refused() {
    let n = Node::new(1 << 20);
    let other = NodeConfig::new(BankId::B, 0);
    let r = Service::open(Arc::new(n.disk.clone()), other);
    assert!(matches!(r, Err(OpenError::WrongPlace { bank: BankId::A, shard: 0 })));
    assert!(matches!(Offline::open(Arc::new(MemoryDisk::new())), Err(OpenError::NoNode)));
}

#[test]
fn offline_sees_what_was_committed_and_changes_nothing() {
    let n = Node::new(4096);
    for seq in 1..30 {
        n.write(seq, &vec![put(&[b'k', seq as u8], &[seq as u8; 400])]).unwrap();
    }
    n.commit(v(1, 29));
    n.tick();
    let before: Vec<_> = n.log_files().iter().map(|f| n.disk.content(f)).collect();
    let off = Offline::open(Arc::new(n.disk.clone())).unwrap();
    assert_eq!(off.damage(), [""; 0]);
    assert_eq!(off.keys(b"", 100).len(), 29);
    let (head, value) = off.get(b"k\x05").unwrap();
    assert_eq!((head.version, value), (v(1, 5), Ok(Some(Bytes::from(vec![5; 400])))));
    let (bad, records, bytes, next) = off.verify(b"", 1 << 20);
    assert_eq!((bad.len(), records, bytes, next), (0, 29, 29 * 400, None));
    let after: Vec<_> = n.log_files().iter().map(|f| n.disk.content(f)).collect();
    assert_eq!(before, after);
}

#[test]
fn a_clean_end_leaves_a_sidecar_and_gives_the_reservation_back() {
    let n = Node::new(1 << 20);
    for seq in 1..30 {
        n.write(seq, &vec![put(&[b'k', seq as u8], &[seq as u8; 400])]).unwrap();
    }
    n.commit(v(1, 29));
    n.service.close();
    assert!(matches!(n.write(30, &vec![]), Err(NodeError::Failed { .. })));
    let n = n.start();
    assert!(n.log_files().iter().any(|f| f.ends_with("idx")));
    assert_eq!(n.position().position, v(1, 29));
    assert_eq!(n.position().applied, v(1, 29));
    assert_eq!(n.scan().len(), 29);
    n.attach(vec![]).unwrap();
    n.write(30, &vec![put(b"x", b"y")]).unwrap();
    let n = n.crash();
    assert_eq!(n.position().position, v(1, 30));
}

#[test]
fn a_bad_last_entry_is_torn_until_the_mark_and_damaged_after_it() {
    for idle in [false, true] {
        let n = Node::new(1 << 20);
        n.write(1, &vec![put(b"a", b"one")]).unwrap();
        n.tick();
        let name = n.log_files().into_iter().find(|f| f.ends_with("seg")).unwrap();
        let before = n.disk.content(&name).unwrap();
        n.write(2, &vec![put(b"a", b"two")]).unwrap();
        let after = n.disk.content(&name).unwrap();
        let at = before.iter().zip(&after).position(|(a, b)| a != b).unwrap();
        if idle {
            n.tick();
        }
        n.disk.flip(&name, at as u64 + 100, 1);
        let n = n.start();
        let s = n.service.status();
        assert_eq!(s.position.position, v(1, 1));
        assert_eq!(s.damaged_through.is_some(), idle, "trap 5");
    }
}

/// Whoever waits for the disk meets a step of a compaction, not all of it; writes, deletes and power cuts
/// between two steps change nothing of what is there.
#[test]
fn compaction_moves_a_little_at_a_time_whatever_happens_in_between() {
    const VALUE: usize = 64 << 10;
    const STEP_MAX: u64 = (512 << 10) + VALUE as u64 + 4096;
    let moved = |n: &Node| n.service.metrics().compaction_bytes_written;
    let gone = |n: &Node| n.service.metrics().segments_compacted;
    let mut steps_seen = 0;
    for cut_after in 0..8 {
        let mut n = Node::new(8 << 20);
        let mut expected = std::collections::BTreeMap::new();
        let mut seq = 0;
        let mut write = |n: &Node, key: u64, value: Option<u8>| {
            seq += 1;
            let key = format!("k{key}").into_bytes();
            let value = value.map(|b| bytes::Bytes::from(vec![b; VALUE]));
            n.write(seq, &vec![(key.clone(), value.clone())]).unwrap();
            n.commit(v(1, seq));
            match value {
                Some(value) => expected.insert(key, (v(1, seq), value)),
                None => expected.remove(&key),
            };
        };
        // A third of the first segment stays current; two more begin behind it.
        for key in 0..120 {
            write(&n, key, Some(key as u8));
        }
        for key in (0..80).chain(0..80).chain(0..80) {
            write(&n, key, Some(100));
        }
        n.tick();
        // The first call that moves something and leaves more to be moved.
        let mut calls = 0;
        loop {
            let before = (moved(&n), gone(&n));
            n.service.maintain();
            assert!(moved(&n) - before.0 <= STEP_MAX, "{} bytes in one step", moved(&n) - before.0);
            if moved(&n) > before.0 && gone(&n) == before.1 {
                break;
            }
            calls += 1;
            assert!(calls < 100, "never interrupted");
        }
        // One that is moved, one that is not yet.
        write(&n, 81, Some(200));
        write(&n, 119, None);
        write(&n, 118, Some(201));
        for _ in 0..cut_after {
            let before = (moved(&n), gone(&n));
            n.service.maintain();
            assert!(moved(&n) - before.0 <= STEP_MAX, "{} bytes in one step", moved(&n) - before.0);
            steps_seen += u32::from(moved(&n) > before.0 && gone(&n) == before.1);
        }
        n = n.crash();
        n.take(2);
        n.commit(v(1, seq));
        n.maintain();
        let found = n.scan().into_iter().map(|(key, version, value)| (key, (version, value)));
        assert!(found.eq(expected), "cut after {cut_after} more steps");
    }
    assert!(steps_seen > 3, "it was interrupted between steps");
}

/// Whatever fails while a store is made a new one, its next start, or the same order again, ends it: what
/// is left of the old log is never the new one's.
#[test]
fn a_wipe_that_fails_anywhere_is_ended_by_the_next_start_and_by_the_next_wipe() {
    let (mut failed, mut done) = (0, false);
    for nth in 1.. {
        for restart in [true, false] {
            let mut n = Node::new(4096);
            for seq in 1..60 {
                n.write(seq, &vec![put(&[b'k', seq as u8 % 5], &[seq as u8; 300])]).unwrap();
            }
            n.commit(v(1, 59));
            let old = n.envelope();
            let wiped = n.wipe(|| n.disk.fail_nth(nth));
            n.disk.fail_nth(u64::MAX >> 1);
            done = wiped.is_ok();
            failed += u32::from(!done);
            // Work that the old log had waiting.
            for _ in 0..30 {
                n.service.maintain();
                n.tick();
            }
            if restart {
                n.restart();
            }
            assert_eq!(n.service.status().failed, None, "operation {nth}, restart {restart}");
            if !done {
                n.wipe(|| ()).unwrap_or_else(|e| panic!("operation {nth}, restart {restart}: {e}"));
            }
            n.restart();
            let status = n.service.status();
            assert_eq!((status.failed, status.role), (None, Role::Filling), "operation {nth}");
            assert_ne!(status.store, old.store);
            assert_eq!(status.position.position, Version::ZERO, "operation {nth}");
        }
        if done {
            break;
        }
    }
    assert!(failed > 10, "{failed} operations failed");
}
