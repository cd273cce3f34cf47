//! The whole voter over real nodes: banks that die, hang, lose messages, lose power, come back empty
//! or old. What is acknowledged stays; what is read is right; what comes back becomes equal.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod atlas;
mod cluster;

use bytes::Bytes;
use cluster::{Cluster, Content, dump};
use std::time::{Duration, Instant};
use storenode::wire::{BankId, Fault, Version};
use voter::bank::faulty::Faults;
use voter::volume::{Change, Op, Volume as _, VolumeError};

fn put(shard: u16, key: &str, value: impl Into<String>) -> Op {
    Op { shard, key: key.into(), change: Change::Put(Bytes::from(value.into())) }
}
fn delete(shard: u16, key: &str) -> Op {
    Op { shard, key: key.into(), change: Change::Delete }
}
fn content(items: &[(u16, &str, &str)]) -> Content {
    items.iter().map(|(s, k, v)| ((*s, (*k).into()), v.as_bytes().to_vec())).collect()
}

type Runtime = tokio::runtime::Runtime;
fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

#[test]
fn what_was_written_is_read_before_and_after_a_remount() {
    runtime().block_on(async {
        let cluster = Cluster::new(2, 1).init().await;
        let volume = cluster.open().await;
        volume.submit(vec![put(0, "a", "1"), put(1, "b", "1")]).unwrap();
        volume.submit(vec![put(0, "a", "2"), delete(1, "b"), put(1, "c", "2")]).unwrap();
        let want = content(&[(0, "a", "2"), (1, "c", "2")]);
        assert_eq!(dump(&volume).await, want, "at once");
        volume.sync().await.unwrap();
        assert_eq!(dump(&volume).await, want, "from the banks");
        volume.close().await.unwrap();
        let volume = cluster.open().await;
        assert_eq!(dump(&volume).await, want, "by another mount");
        cluster.await_equal("after a remount").await;
    });
}

/// Any one bank may be away: syncs go on, reads are right, and it becomes equal by itself.
#[test]
fn a_bank_dies_and_comes_back() {
    for bank in BankId::ALL {
        runtime().block_on(async {
            let cluster = Cluster::new(2, 2).init().await;
            let volume = cluster.open().await;
            for i in 0..10 {
                volume.submit(vec![put(i % 2, &format!("k{i}"), "old")]).unwrap();
            }
            volume.sync().await.unwrap();
            cluster.kill(bank);
            let began = Instant::now();
            for i in 0..10 {
                volume
                    .submit(vec![put(i % 2, &format!("k{i}"), "new"), delete(i % 2, "k1")])
                    .unwrap();
                volume.sync().await.unwrap();
            }
            assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
            let seen = dump(&volume).await;
            assert!(seen.values().all(|v| v == b"new"), "{seen:?}");
            cluster.start(bank);
            cluster.await_equal("a bank came back").await;
            // And now it is as good as the others: each of them may go.
            cluster.kill(BankId::ALL[(bank.index() + 1) % 3]);
            assert_eq!(dump(&volume).await, seen);
        });
    }
}

#[test]
fn a_hung_bank_stalls_nobody_for_long() {
    runtime().block_on(async {
        let cluster = Cluster::new(1, 3).init().await;
        let volume = cluster.open().await;
        volume.submit(vec![put(0, "a", "1")]).unwrap();
        volume.sync().await.unwrap();
        cluster.hang(BankId::A, true);
        let mut longest = Duration::ZERO;
        for i in 0..20 {
            let began = Instant::now();
            volume.submit(vec![put(0, "a", format!("{i}"))]).unwrap();
            volume.sync().await.unwrap();
            let got = volume.get(vec![(0, b"a".to_vec())]).await.unwrap();
            assert_eq!(got[0].as_ref().unwrap().value, format!("{i}"));
            longest = longest.max(began.elapsed());
        }
        assert!(longest < Duration::from_secs(1), "{longest:?}");
        cluster.hang(BankId::A, false);
        cluster.await_equal("a hung bank goes on").await;
    });
}

#[test]
fn two_banks_gone_is_an_error_and_work_resumes() {
    runtime().block_on(async {
        let cluster = Cluster::new(1, 4).init().await;
        let volume = cluster.open().await;
        volume.submit(vec![put(0, "a", "1")]).unwrap();
        volume.sync().await.unwrap();
        cluster.kill(BankId::B);
        cluster.kill(BankId::C);
        volume.submit(vec![put(0, "a", "2")]).unwrap();
        assert!(matches!(volume.sync().await, Err(VolumeError::Unavailable(_))));
        let absent = volume.get(vec![(0, b"never".to_vec())]).await;
        assert!(matches!(absent, Err(VolumeError::Unavailable(_))), "{absent:?}");
        cluster.start(BankId::C);
        volume.sync().await.unwrap();
        assert_eq!(dump(&volume).await, content(&[(0, "a", "2")]));
        cluster.start(BankId::B);
        cluster.await_equal("both came back").await;
    });
}

/// An empty directory in the place of a bank: refilled under a new id, and then trusted.
#[test]
fn an_empty_bank_is_refilled() {
    runtime().block_on(async {
        let cluster = Cluster::new(2, 5).init().await;
        let volume = cluster.open().await;
        for i in 0..200 {
            volume.submit(vec![put(i % 2, &format!("k{i}"), format!("v{i}"))]).unwrap();
        }
        volume.submit(vec![delete(0, "k0")]).unwrap();
        volume.sync().await.unwrap();
        cluster.each(BankId::B, |n| n.wipe());
        cluster.start(BankId::B);
        let want = dump(&volume).await;
        cluster.await_equal("refilled").await;
        cluster.kill(BankId::A);
        assert_eq!(dump(&volume).await, want);
        volume.submit(vec![put(0, "more", "1")]).unwrap();
        volume.sync().await.unwrap();
        volume.close().await.unwrap();
        let volume = cluster.open().await;
        assert_eq!(dump(&volume).await.len(), want.len() + 1, "by the refilled and one other");
    });
}

/// An old copy of a bank's directories is put back: what it forgot is not believed.
#[test]
fn a_rolled_back_bank_resurrects_nothing() {
    runtime().block_on(async {
        let cluster = Cluster::new(1, 6).init().await;
        let volume = cluster.open().await;
        volume.submit(vec![put(0, "a", "old"), put(0, "b", "old")]).unwrap();
        volume.sync().await.unwrap();
        cluster.await_equal("before").await;
        let copy = cluster.nodes[BankId::C][0].disk().copy();
        volume.submit(vec![put(0, "a", "new"), delete(0, "b")]).unwrap();
        volume.sync().await.unwrap();
        cluster.await_equal("after").await;
        cluster.nodes[BankId::C][0].replace_disk(copy);
        cluster.start(BankId::C);
        cluster.await_equal("rolled back").await;
        cluster.kill(BankId::A);
        assert_eq!(dump(&volume).await, content(&[(0, "a", "new")]));
    });
}

/// One copy rots and another bank is dead: the third copy is enough. Afterwards it is repaired.
#[test]
fn one_damaged_copy_and_one_dead_bank() {
    runtime().block_on(async {
        let cluster = Cluster::new(1, 7).init().await;
        let volume = cluster.open().await;
        volume.submit(vec![put(0, "a", "right"), put(0, "b", "right")]).unwrap();
        volume.sync().await.unwrap();
        cluster.await_equal("before").await;
        let want = content(&[(0, "a", "right"), (0, "b", "right")]);
        for dead in [BankId::B, BankId::C] {
            let service = cluster.nodes[BankId::A][0].service().unwrap();
            service.inject(Fault::Corrupt { key: b"a".to_vec() }).unwrap();
            service.inject(Fault::Drop { key: b"b".to_vec() }).unwrap();
            cluster.kill(dead);
            assert_eq!(dump(&volume).await, want, "without {dead}");
            for key in ["a", "b"] {
                let got = volume.get(vec![(0, key.into())]).await.unwrap();
                assert_eq!(got[0].as_ref().unwrap().value, "right", "without {dead}");
            }
            cluster.start(dead);
            // What a read did not mend, or mended for nothing while a bank was away, this does.
            volume.refresh(|_, _| {}).await;
            volume.scrub(|_, _| {}).await;
            cluster.await_equal("a dead bank came back").await;
        }
        // Whole again: now A and any other are enough.
        cluster.kill(BankId::C);
        assert_eq!(dump(&volume).await, want);
        cluster.start(BankId::C);
        cluster.await_equal("healed").await;
        cluster.kill(BankId::B);
        cluster.hang(BankId::C, true);
        assert!(volume.get(vec![(0, b"never".to_vec())]).await.is_err(), "never a guess");
    });
}

/// A foreign record, intact and signed, of a version that fits: two others outvote it, refresh
/// removes it.
#[test]
fn a_forged_record_is_outvoted() {
    runtime().block_on(async {
        let cluster = Cluster::new(1, 8).init().await;
        let volume = cluster.open().await;
        volume.submit(vec![put(0, "a", "right")]).unwrap();
        volume.sync().await.unwrap();
        cluster.await_equal("before").await;
        let service = cluster.nodes[BankId::A][0].service().unwrap();
        let forged =
            |key: &str, version| Fault::Put { key: key.into(), value: b"forged".to_vec(), version };
        service.inject(forged("new", Some(Version::new(1, 9999)))).unwrap();
        service.inject(forged("also", Some(Version::new(1, 1)))).unwrap();
        let keys = ["a", "new", "also"].map(|k| (0, k.into())).to_vec();
        let got = volume.get(keys).await.unwrap();
        assert_eq!(got[0].as_ref().unwrap().value, "right");
        assert_eq!((&got[1], &got[2]), (&None, &None));
        assert_eq!(dump(&volume).await, content(&[(0, "a", "right")]));
        volume.refresh(|_, _| {}).await;
        cluster.await_equal("foreign records are removed").await;
    });
}

#[test]
fn lost_late_and_repeated_messages_change_nothing() {
    runtime().block_on(async {
        let cluster = Cluster::new(2, 9).init().await;
        let volume = cluster.open().await;
        let faults = Faults {
            lose_request: 0.02,
            lose_reply: 0.02,
            duplicate: 0.1,
            refuse: 0.02,
            arrive_late: 0.02,
            delay_max: Duration::from_millis(3),
        };
        BankId::ALL.into_iter().for_each(|b| cluster.faults(b, faults));
        let mut want = Content::new();
        for i in 0..150u16 {
            let (shard, key) = (i % 2, format!("k{}", i % 14));
            volume.submit(vec![put(shard, &key, format!("{i}"))]).unwrap();
            want.insert((shard, key.into()), format!("{i}").into_bytes());
            if i % 10 == 0 {
                volume.sync().await.unwrap();
            }
        }
        volume.sync().await.unwrap();
        assert_eq!(dump(&volume).await, want);
        BankId::ALL.into_iter().for_each(|b| cluster.faults(b, Faults::default()));
        cluster.await_equal("the network is well again").await;
        assert_eq!(dump(&volume).await, want);
    });
}
