//! A real store behind the real server, over loopback.

#![allow(clippy::unwrap_used, reason = "tests")]

mod writer;

use bytes::Bytes;
use std::path::Path;
use std::sync::Arc;
use storenode::client::{ClientError, ClientLimits, NodeClient};
use storenode::disk::RealDisk;
use storenode::server::{RunningServer, ServerLimits, bind, start};
use storenode::service::{NodeConfig, Service};
use storenode::token::Token;
use storenode::wire::{
    Envelope, Found, NodeError, Reply, Request, Role, StoreId, Version, VolumeId,
};
use writer::{BANK, DEADLINE, Writer, observer, status};

struct World {
    service: Arc<Service>,
    server: RunningServer,
    client: NodeClient,
}

async fn world(dir: &Path) -> World {
    let disk = Arc::new(RealDisk::open(dir, true).unwrap());
    let service = Arc::new(Service::open(disk, NodeConfig::new(BANK, 0)).unwrap());
    let token = Token::random().unwrap();
    let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let server =
        start(listener, Arc::clone(&service), token.clone(), ServerLimits::default()).unwrap();
    let url = format!("http://{}", server.addr());
    let client = NodeClient::new(&url, &token, ClientLimits::default()).unwrap();
    World { service, server, client }
}

impl World {
    async fn stop(self) {
        self.server.stop().await;
        let service = self.service;
        tokio::task::spawn_blocking(move || service.close()).await.unwrap();
    }
}

fn key(i: u32) -> Vec<u8> {
    format!("key-{i:06}").into_bytes()
}

fn value(i: u32, len: usize) -> Bytes {
    Bytes::from(vec![i as u8; len])
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_written_is_read_and_survives_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let w = world(dir.path()).await;
    let blank = status(&w.client).await;
    assert_eq!((blank.role, blank.bank, blank.volume), (Role::Blank, BANK, None));

    let mut writer = Writer::open(w.client.clone()).await;
    for i in 0..20 {
        let records: Vec<_> =
            (0..50).map(|j| (key(i * 50 + j), Some(value(j, 1000 + j as usize)))).collect();
        writer.put(&records).await;
    }
    writer.put(&[(key(3), None)]).await;
    let (reply, bulk) = writer.get(&key(7)).await.unwrap();
    let Reply::Found { items, .. } = reply else { panic!() };
    assert!(matches!(items[0], Found::Record { len: Some(1007), .. }));
    assert_eq!(bulk, value(7, 1007));
    writer.beat(true).await;
    let before = status(&w.client).await;
    assert_eq!((before.space.records, before.space.tombstones), (999, 1));
    w.stop().await;

    let w = world(dir.path()).await;
    let after = status(&w.client).await;
    assert_eq!(after.position.position, before.position.position);
    assert_eq!((after.store, after.space.records), (before.store, 999));
    let writer = Writer::open(w.client.clone()).await;
    assert_eq!(writer.get(&key(999)).await.unwrap().1, value(49, 1049));
    let (reply, _) = writer.get(&key(3)).await.unwrap();
    let Reply::Found { items, .. } = reply else { panic!() };
    assert!(matches!(items[0], Found::Record { len: None, .. }));
    w.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_refusal_says_what_is_wrong_and_the_node_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let w = world(dir.path()).await;
    let mut writer = Writer::open(w.client.clone()).await;
    writer.put(&[(key(1), Some(value(1, 10)))]).await;
    let good = writer.envelope;
    let read = Request::Read { keys: [key(1)].into(), through: writer.last };
    let ask = |envelope: Envelope| w.client.call(envelope, &read, vec![], DEADLINE);
    let refused = |e: ClientError| match e {
        ClientError::Refused(why) => why,
        other => panic!("{other:?}"),
    };

    let wrong = Envelope { volume: VolumeId([9; 16]), ..good };
    let why = refused(ask(wrong).await.unwrap_err());
    assert_eq!(why, NodeError::WrongVolume { have: writer::VOLUME });
    let wrong = Envelope { store: StoreId([9; 16]), ..good };
    let why = refused(ask(wrong).await.unwrap_err());
    assert_eq!(why, NodeError::WrongStore { have: good.store });
    let why = refused(ask(Envelope { format: 7, ..good }).await.unwrap_err());
    assert_eq!(why, NodeError::UnknownFormat { format: 7 });

    // Parts that are short, damaged, or not as long as announced.
    let part = writer.next(&[(key(2), Some(value(2, 100)))]);
    let mut flipped = part.to_vec();
    flipped[160] ^= 1;
    let lens = |n: usize| Request::Append { lens: vec![n as u32], watermark: Version::ZERO };
    for (request, bulk) in [
        (lens(part.len()), part.slice(..part.len() - 1)),
        (lens(part.len() - 1), part.slice(..part.len() - 1)),
        (lens(part.len()), Bytes::from(flipped)),
        (lens(part.len()), Bytes::new()),
    ] {
        let e = w.client.call(good, &request, vec![bulk], DEADLINE).await.unwrap_err();
        assert!(matches!(refused(e), NodeError::Bad { .. }));
    }
    // The good one is taken, twice.
    for _ in 0..2 {
        let p = writer.append(vec![part.clone()], Version::ZERO).await.unwrap();
        assert_eq!(p.position, writer.last);
    }
    // Another opener fences this one out.
    let newer = Writer::open(w.client.clone()).await;
    let e = writer.append(vec![part], Version::ZERO).await.unwrap_err();
    let NodeError::Fenced { promise } = refused(e) else { panic!() };
    assert_eq!(promise.epoch, newer.envelope.epoch);
    assert_eq!(status(&w.client).await.attached, newer.envelope.epoch);
    w.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let w = world(dir.path()).await;
    let mut writer = Writer::open(w.client.clone()).await;
    writer.put(&[(key(0), Some(value(0, 5000)))]).await;
    let parts: Vec<_> = (1..200).map(|i| writer.next(&[(key(i), Some(value(i, 3000)))])).collect();
    let writer = Arc::new(writer);
    // In whatever order they arrive: positions grow, and in the end all of it stands.
    let appends: Vec<_> = parts
        .into_iter()
        .map(|part| {
            let w = Arc::clone(&writer);
            tokio::spawn(async move { w.append(vec![part], Version::ZERO).await.unwrap() })
        })
        .collect();
    let settled = Version::new(writer.last.epoch, writer.last.seq - 199);
    let read = Request::Read { keys: [key(0)].into(), through: settled };
    for _ in 0..50 {
        let (_, bulk) = w.client.call(writer.envelope, &read, vec![], DEADLINE).await.unwrap();
        assert_eq!(bulk.len(), 5000);
    }
    let mut best = Version::ZERO;
    for a in appends {
        best = best.max(a.await.unwrap().position);
    }
    assert_eq!(best, writer.last);
    assert_eq!(writer.beat(false).await.position, writer.last);
    for i in 0..200 {
        let len = if i == 0 { 5000 } else { 3000 };
        assert_eq!(writer.get(&key(i)).await.unwrap().1, value(i, len));
    }
    // An observer sees what is applied.
    let s = status(&w.client).await;
    let watcher = Envelope { volume: writer::VOLUME, store: s.store, ..observer() };
    let scan = Request::Scan {
        start: vec![],
        end: vec![],
        limit: 1000,
        values: true,
        through: Version::ZERO,
    };
    let (reply, bulk) = w.client.call(watcher, &scan, vec![], DEADLINE).await.unwrap();
    let Reply::Records { records, .. } = &reply else { panic!() };
    assert_eq!((records.len(), bulk.len()), (200, 5000 + 199 * 3000));
    w.stop().await;
}
