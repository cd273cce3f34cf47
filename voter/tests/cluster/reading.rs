//! Reading: votes, repair on access and by refresh, banks that hang or are gone, many readers at once.

use crate::world::*;
use bytes::Bytes;
use std::sync::Arc;
use std::time::{Duration, Instant};
use storenode::wire::{BankId, Fault, Key, Version};
use voter::bank::faulty::Faults;
use voter::volume::{Volume, VolumeError};

#[test]
fn damage_on_one_bank_is_healed_by_access_even_with_another_bank_dead() {
    runtime_test(async {
        let world = World::made().await;
        let c = filled(&world).await;
        await_redundancy(&c.v, 3).await;
        for n in [3usize, 4, 5] {
            let k = key(n);
            let fault = Fault::Put { key: k.clone(), value: b"CORRUPTED".to_vec(), version: None };
            world.inject(BankId::A, &k, fault);
        }
        world.kill(BankId::C);
        c.check().await;
        world.start(BankId::C);
        await_redundancy(&c.v, 3).await;
        // One reading of each heals, whichever two banks it asks: what was read is checked behind.
        let repaired = async || c.v.status().await.counts.expect("counted").repaired;
        let limit = Instant::now() + Duration::from_secs(5);
        while repaired().await < 3 {
            assert!(Instant::now() < limit, "not healed by access");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let report = c.v.scrub(|_, _| {}).await;
        assert_eq!(report.damaged, 0, "{report:?}");
    });
}

#[test]
fn refresh_alone_finds_lost_foreign_and_corrupt_records() {
    runtime_test(async {
        let world = World::made().await;
        let mut c = filled(&world).await;
        // A mount that has read nothing looks at nothing behind its readers.
        c.v.close().await.expect("close");
        c.v = world.open().await;
        await_redundancy(&c.v, 3).await;
        let foreign = Fault::Put { key: key(555), value: b"FOREIGN".to_vec(), version: None };
        world.inject(BankId::C, &key(10), Fault::Drop { key: key(10) });
        world.inject(BankId::C, &key(11), Fault::Corrupt { key: key(11) });
        world.inject(BankId::C, &key(555), foreign);
        let report = c.v.refresh(|_, _| {}).await;
        assert!(report.mended >= 3 && report.damaged == 1, "{report:?}");
        world.await_equal().await;
        c.check().await;
        let report = c.v.scrub(|_, _| {}).await;
        assert_eq!(report.damaged, 0, "{report:?}");
    });
}

/// Intact and signed, but of a version that nothing committed has, or that its epoch never reached.
#[test]
fn a_record_of_an_impossible_version_is_outvoted_and_removed() {
    runtime_test(async {
        let world = World::made().await;
        let c = filled(&world).await;
        await_redundancy(&c.v, 3).await;
        for (n, version) in [(700, Version::new(1, 9_999)), (701, Version::new(7, 1))] {
            let shard = shard_of(&key(n));
            let value = b"forged".to_vec();
            let fault = Fault::Put { key: key(n), value, version: Some(version) };
            world.inject(BankId::A, &key(n), fault);
            assert_eq!(c.v.get(vec![(shard, key(n))]).await.expect("two banks"), [None]);
        }
        c.check().await;
        c.v.refresh(|_, _| {}).await;
        world.await_equal().await;
        c.check().await;
    });
}

#[test]
fn two_banks_gone_is_refused_and_ends_by_itself() {
    runtime_test(async {
        let world = World::made().await;
        let mut c = filled(&world).await;
        world.kill(BankId::A);
        world.kill(BankId::B);
        c.put(1, "second");
        let began = Instant::now();
        assert!(matches!(c.v.sync().await, Err(VolumeError::Unavailable(_))));
        let one = c.v.get(vec![(shard_of(&key(2)), key(2))]).await;
        assert!(matches!(one, Err(VolumeError::Unavailable(_))), "{one:?}");
        assert!(began.elapsed() < Duration::from_secs(8));
        world.start(BankId::B);
        c.sync().await;
        c.check().await;
        world.start(BankId::A);
        await_redundancy(&c.v, 3).await;
        world.await_equal().await;
    });
}

#[test]
fn a_hung_bank_stalls_nobody() {
    for bank in BankId::ALL {
        runtime_test(async move {
            let world = World::made().await;
            let mut c = filled(&world).await;
            await_redundancy(&c.v, 3).await;
            world.wires[bank].iter().for_each(|w| w.hang(true));
            for n in 0..50 {
                c.put(n, "hung");
                c.sync().await;
                let got = c.v.get(vec![(shard_of(&key(n + 60)), key(n + 60))]).await.expect("get");
                assert_eq!(
                    got[0].as_ref().map(|s| s.value.clone()),
                    c.model.get(&key(n + 60)).cloned()
                );
            }
            world.wires[bank].iter().for_each(|w| w.hang(false));
            await_redundancy(&c.v, 3).await;
            world.await_equal().await;
        });
    }
}

/// Damages a record on all banks, on each in another way.
fn lose(world: &World, k: &Key) {
    for b in BankId::ALL {
        let value = format!("damaged on {b}").into_bytes();
        world.inject(b, k, Fault::Put { key: k.clone(), value, version: None });
    }
}

async fn get(c: &Checked, k: &Key) -> Result<Option<Bytes>, VolumeError> {
    let got = c.v.get(vec![(shard_of(k), k.clone())]).await?;
    Ok(got[0].clone().map(|s| s.value))
}

#[test]
fn small_reads_of_many_go_together_and_each_gets_its_own() {
    runtime_test(async {
        let world = World::made().await;
        let c = Arc::new(filled(&world).await);
        await_redundancy(&c.v, 3).await;
        // Answers take a little, so that others come meanwhile.
        let slow = Faults { delay_max: Duration::from_millis(2), ..Faults::default() };
        world.wires.0.iter().flatten().for_each(|w| w.set(slow));
        let calls = || world.wires.0.iter().flatten().map(|w| w.calls()).sum::<u64>();
        let before = calls();
        let reader = |r: usize, c: Arc<Checked>| async move {
            for n in 0..40 {
                // Some do not exist, some are asked for by two at once.
                let k = key((r / 2 * 37 + n * 11) % 400);
                assert_eq!(get(&c, &k).await.expect("get"), c.model.get(&k).cloned());
            }
        };
        let readers: Vec<_> = (0..64).map(|r| tokio::spawn(reader(r, c.clone()))).collect();
        for r in readers {
            r.await.expect("reader");
        }
        let asked = calls() - before;
        assert!(asked < 64 * 40, "{asked} calls for {} reads, which alone are two each", 64 * 40);
    });
}

#[test]
fn a_key_that_nobody_can_decide_holds_up_nobody_else() {
    runtime_test(async {
        let world = World::made().await;
        let c = Arc::new(filled(&world).await);
        await_redundancy(&c.v, 3).await;
        lose(&world, &key(10));
        let reader = |r: usize, c: Arc<Checked>| async move {
            for n in 0..30 {
                if r == 0 {
                    let got = get(&c, &key(10)).await;
                    assert!(matches!(got, Err(VolumeError::Damaged(_))), "{got:?}");
                    continue;
                }
                let (began, k) = (Instant::now(), key(20 + (r * 7 + n * 2) % 250));
                assert_eq!(get(&c, &k).await.expect("get"), c.model.get(&k).cloned());
                assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
            }
        };
        let readers: Vec<_> = (0..32).map(|r| tokio::spawn(reader(r, c.clone()))).collect();
        for r in readers {
            r.await.expect("reader");
        }
    });
}

#[test]
fn many_readers_go_on_when_a_bank_hangs_and_when_readers_are_given_up() {
    runtime_test(async {
        let world = World::made().await;
        let c = Arc::new(filled(&world).await);
        await_redundancy(&c.v, 3).await;
        world.wires[BankId::B].iter().for_each(|w| w.hang(true));
        for round in 0..5 {
            let reader = |r: usize, c: Arc<Checked>| async move {
                for n in 0..10 {
                    let k = key((r * 7 + n * 2 + round) % 290);
                    assert_eq!(get(&c, &k).await.expect("get"), c.model.get(&k).cloned());
                }
            };
            let readers: Vec<_> = (0..32).map(|r| tokio::spawn(reader(r, c.clone()))).collect();
            // Every other one is given up in the middle of it.
            readers.iter().step_by(2).for_each(|r| r.abort());
            for r in readers.into_iter().skip(1).step_by(2) {
                r.await.expect("reader");
            }
        }
        world.wires[BankId::B].iter().for_each(|w| w.hang(false));
        await_redundancy(&c.v, 3).await;
        c.check().await;
    });
}

/// However a read is asked, alone, in a message with others or waiting for its turn: all of it has one deadline.
#[test]
fn readers_of_two_hung_banks_all_get_an_error_by_the_deadline() {
    runtime_test(async {
        let mut world = World::made().await;
        world.limits.call_deadline_ms = 1_500;
        let c = Arc::new(filled(&world).await);
        await_redundancy(&c.v, 3).await;
        for bank in [BankId::A, BankId::B] {
            world.wires[bank].iter().for_each(|w| w.hang(true));
        }
        let deadline = Duration::from_millis(world.limits.read_deadline_ms);
        let reader = |r: usize, c: Arc<Checked>| async move {
            let began = Instant::now();
            let got = get(&c, &key(2 * r)).await;
            assert!(matches!(got, Err(VolumeError::Unavailable(_))), "{got:?}");
            // One call more than the deadline, as it was when each attempt began a new one, is too much.
            let took = began.elapsed();
            assert!(took < deadline + Duration::from_millis(1_200), "{took:?}");
        };
        let readers: Vec<_> = (0..12).map(|r| tokio::spawn(reader(r, c.clone()))).collect();
        for r in readers {
            r.await.expect("reader");
        }
        for bank in [BankId::A, BankId::B] {
            world.wires[bank].iter().for_each(|w| w.hang(false));
        }
        await_redundancy(&c.v, 3).await;
        c.check().await;
    });
}
