//! The whole voter over real node services in memory: kill, wipe, roll back, corrupt, hang, and see
//! that what was acknowledged is read back, that nothing deleted returns, and that the banks end up
//! equal. The oracle is a map kept outside.

mod reading;
mod world;

use bytes::Bytes;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use storenode::wire::{BankId, Envelope, Fault, Key, Request, StoreId, WIRE_FORMAT};
use voter::bank::faulty::Faults;
use voter::bank::memory::MemoryBank;
use voter::volume::{Change, Op, Volume, VolumeError};
use voter::{Limits, Observer, OpenError, Replicated};
use world::*;

#[test]
fn what_is_synced_is_read_back_by_the_next_mount() {
    runtime_test(async {
        let world = World::made().await;
        let mut c = filled(&world).await;
        c.delete(7);
        c.put(8, "second");
        c.v.close().await.expect("close");
        c.v = world.try_open(false).await.expect("a clean goodbye needs no takeover");
        c.check().await;
        world.await_equal().await;
    });
}

#[test]
fn a_bank_that_was_away_catches_up_and_nothing_deleted_returns() {
    for bank in BankId::ALL {
        runtime_test(async move {
            let world = World::made().await;
            let mut c = filled(&world).await;
            await_redundancy(&c.v, 3).await;
            world.kill(bank);
            (0..100).for_each(|n| c.delete(n));
            (100..200).for_each(|n| c.put(n, "second"));
            c.sync().await;
            c.check().await;
            world.start(bank);
            await_redundancy(&c.v, 3).await;
            world.await_equal().await;
            // The one that was away answers together with either of the others.
            for other in BankId::ALL.into_iter().filter(|b| *b != bank) {
                world.kill(other);
                c.check().await;
                world.start(other);
                await_redundancy(&c.v, 3).await;
            }
        });
    }
}

/// Found by the simulation (seed 516680): of two voters one is far behind and the other has lost a record
/// without a word (a lost write). The third is only slow, and is waited for: nothing is copied from one
/// source that two have.
#[test]
fn an_opener_waits_a_little_for_the_third_voter_before_it_copies_from_one() {
    runtime_test(async {
        let mut world = World::made().await;
        world.limits.replay_bytes = 1 << 10;
        let mut c = filled(&world).await;
        await_redundancy(&c.v, 3).await;
        world.kill(BankId::B);
        (300..600).for_each(|n| c.put(n, "new"));
        c.sync().await;
        c.v.close().await.expect("close");
        world.start(BankId::B);
        let lost = key(307);
        world.inject(BankId::C, &lost, Fault::Drop { key: lost.clone() });
        world.wires[BankId::A].iter().for_each(|w| w.hang(true));
        let wires = world.wires[BankId::A].clone();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(1_800)).await;
            wires.iter().for_each(|w| w.hang(false));
        });
        c.v = world.open().await;
        await_redundancy(&c.v, 3).await;
        c.check().await;
        c.v.refresh(|_, _| {}).await;
        world.await_equal().await;
        c.check().await;
    });
}

/// Limits by which a bank is soon struck out.
fn forgetful() -> Limits {
    Limits { tombstones_max: 30, strike_after_ms: 100, replay_bytes: 1 << 10, ..limits() }
}

/// Waits until two banks have dropped all tombstones. The floor rides in the parts of each shard.
async fn forgotten(world: &World, c: &mut Checked, banks: [BankId; 2]) {
    until("tombstones are dropped", async || {
        (300..304).for_each(|n| c.put(n, "again"));
        c.sync().await;
        let all = banks.iter().flat_map(|b| &world.nodes[*b]).filter_map(|n| n.status());
        all.into_iter().all(|s| s.space.tombstones == 0)
    })
    .await;
}

/// Two stores of a shard have to be filled anew: one that was struck out, and one that was emptied
/// before it came back. The one that still keeps a configuration must not be emptied before the other is admitted.
#[test]
fn of_two_stores_that_must_be_filled_anew_one_waits_for_the_other() {
    for struck_first in [false, true] {
        runtime_test(two_to_be_filled(struck_first));
    }
}

async fn two_to_be_filled(struck_first: bool) {
    let mut world = World::made().await;
    world.limits = forgetful();
    let mut c = filled(&world).await;
    await_redundancy(&c.v, 3).await;
    world.kill(BankId::C);
    (0..100).for_each(|n| c.delete(n));
    c.sync().await;
    until("struck out", async || {
        let rows = c.v.status().await.replicas;
        rows.iter().filter(|r| r.struck_out).count() == 2
    })
    .await;
    forgotten(&world, &mut c, [BankId::A, BankId::B]).await;
    let waits = async |what: &str| {
        let rows = c.v.status().await.replicas;
        rows.iter().filter(|r| r.why.as_deref().is_some_and(|why| why.contains(what))).count() == 2
    };
    world.each(BankId::B, MemoryBank::wipe);
    world.kill(BankId::B);
    if struck_first {
        world.start(BankId::C);
        until("bank C waits for bank B", async || waits("until bank B is a voter").await).await;
        world.start(BankId::B);
    } else {
        world.start(BankId::B);
        until("bank B waits for bank C", async || waits("bank C must answer").await).await;
        world.start(BankId::C);
    }
    await_redundancy(&c.v, 3).await;
    c.put(1, "after");
    c.sync().await;
    c.check().await;
    world.await_equal().await;
}

/// Rule 8, striking out (docs/adr/0019): the others forget what was deleted while it was away too long,
/// in this mount and in the next; so it is filled anew, and is not one of two before.
#[test]
fn a_bank_that_is_away_too_long_is_struck_out_and_filled_anew() {
    for bank in BankId::ALL {
        runtime_test(async move {
            let mut world = World::made().await;
            world.limits = forgetful();
            let [x, y] = [1, 2].map(|n| BankId::ALL[(bank.index() + n) % 3]);
            let mut c = filled(&world).await;
            await_redundancy(&c.v, 3).await;
            let old: Vec<StoreId> =
                world.nodes[bank].iter().map(|n| n.status().expect("runs").store).collect();
            world.kill(bank);
            (0..100).for_each(|n| c.delete(n));
            c.sync().await;
            let struck = |s: &voter::ClusterStatus| {
                s.replicas.iter().filter(|r| r.struck_out && r.bank == bank).count() == 2
            };
            until("struck out", async || struck(&c.v.status().await)).await;
            forgotten(&world, &mut c, [x, y]).await;
            c.v.close().await.expect("close");

            // Back, with one of the others: what it lacks cannot be known.
            world.kill(y);
            world.start(bank);
            let refused = world.try_open(true).await.err().expect("must not open").to_string();
            assert!(refused.contains("struck out"), "{refused}");
            world.start(y);
            c.v = world.open().await;
            await_redundancy(&c.v, 3).await;
            world.await_equal().await;
            for (n, old) in world.nodes[bank].iter().zip(old) {
                assert_ne!(n.status().expect("runs").store, old);
            }
            for other in [x, y] {
                world.kill(other);
                c.check().await;
                world.start(other);
                await_redundancy(&c.v, 3).await;
            }
        });
    }
}

#[test]
fn an_emptied_bank_is_refilled_under_a_new_store_id() {
    for bank in BankId::ALL {
        runtime_test(async move {
            let world = World::made().await;
            let mut c = filled(&world).await;
            let old: Vec<StoreId> =
                world.nodes[bank].iter().map(|n| n.status().expect("runs").store).collect();
            world.each(bank, MemoryBank::wipe);
            c.put(1, "while it is empty");
            c.sync().await;
            world.start(bank);
            (300..400).for_each(|n| c.put(n, "while it is filled"));
            await_redundancy(&c.v, 3).await;
            c.sync().await;
            c.check().await;
            world.await_equal().await;
            for (n, old) in world.nodes[bank].iter().zip(old) {
                assert_ne!(n.status().expect("runs").store, old);
            }
            // It is a full member: either of the others may go now, and a new mount agrees.
            world.kill(BankId::ALL[(bank.index() + 1) % 3]);
            c.check().await;
            c.put(2, "after");
            c.sync().await;
            c.v.close().await.expect("close");
            c.v = world.open().await;
            c.check().await;
        });
    }
}

/// One replica has lost a record without a word (a lost write) while another is brought up: the record
/// must not end up missing on two of three, where the third would lose the vote.
#[test]
fn what_the_source_of_a_catch_up_has_lost_comes_from_the_other_voter() {
    for bank in BankId::ALL {
        for (loser, wiped) in BankId::ALL.into_iter().flat_map(|b| [(b, true), (b, false)]) {
            if loser == bank {
                continue;
            }
            runtime_test(async move {
                let world = World::made().await;
                let mut c = filled(&world).await;
                await_redundancy(&c.v, 3).await;
                world.kill(bank);
                if wiped {
                    world.each(bank, MemoryBank::wipe);
                }
                (0..20).for_each(|n| c.put(n, "second"));
                c.sync().await;
                // The next mount has no parts to send again: it copies.
                c.v.close().await.expect("close");
                c.v = world.open().await;
                let lost = [key(5), key(6)];
                for k in &lost {
                    world.inject(loser, k, Fault::Drop { key: k.clone() });
                }
                world.start(bank);
                await_redundancy(&c.v, 3).await;
                for k in &lost {
                    assert!(world.content(bank, shard_of(k)).contains_key(k), "{k:?} is gone");
                }
                c.v.refresh(|_, _| {}).await;
                world.await_equal().await;
                c.check().await;
            });
        }
    }
}

/// An opener was killed; its fence reaches a node late, when the next mount has chosen the same epoch and
/// owns it. That node cannot be used, the mount goes on, and the next one has all three.
#[test]
fn a_late_fence_of_the_same_epoch_takes_nothing_over() {
    runtime_test(async {
        let world = World::made().await;
        let mut c = filled(&world).await;
        await_redundancy(&c.v, 3).await;
        c.v.close().await.expect("close");
        world.kill(BankId::C);
        c.v = world.open().await;
        world.wires[BankId::C].iter().for_each(|w| w.cut(true));
        world.start(BankId::C);
        for node in &world.nodes[BankId::C] {
            let service = node.service().expect("runs");
            let status = service.status();
            let envelope = Envelope {
                format: WIRE_FORMAT,
                volume: status.volume.expect("of a volume"),
                store: status.store,
                epoch: c.v.epoch(),
                nonce: 12_345,
            };
            let (epoch, holder) = (c.v.epoch(), "killed while opening".into());
            let fence = Request::Fence { epoch, nonce: 12_345, holder };
            service.handle(envelope, fence, Bytes::new()).expect("a promise");
        }
        world.wires[BankId::C].iter().for_each(|w| w.cut(false));
        for n in 0..20 {
            c.put(n, "after the late fence");
            c.sync().await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        c.check().await;
        c.v.close().await.expect("close");
        c.v = world.open().await;
        await_redundancy(&c.v, 3).await;
        world.await_equal().await;
        c.check().await;
    });
}

/// Each mount reads one record and leaves before anything is looked at behind it: whichever copy is
/// damaged, one of them takes it, sees that, and mends it. Found by an end-to-end test
/// (`TERCET_SEED=1863616695`) while every mount began with the same bank.
#[test]
fn mounts_that_read_the_same_and_leave_at_once_do_not_all_look_at_the_same_copies() {
    runtime_test(async {
        let world = World::made().await;
        let c = filled(&world).await;
        await_redundancy(&c.v, 3).await;
        world.await_equal().await;
        let (k, model) = (key(3), c.model.clone());
        let shard = shard_of(&k);
        c.v.close().await.expect("close");
        for bank in BankId::ALL {
            let fault = Fault::Put { key: k.clone(), value: b"CORRUPTED".to_vec(), version: None };
            world.inject(bank, &k, fault);
            let healed = || Some(&world.sent(bank, &k)[..]) == model.get(&k).map(|v| &v[..]);
            assert!(!healed(), "the oracle sees the damage");
            let mut mounts = 0;
            while !healed() {
                mounts += 1;
                assert!(mounts <= 60, "nobody took the copy of bank {bank}");
                let v = world.open().await;
                let got = v.get(vec![(shard, k.clone())]).await.expect("get");
                assert_eq!(got[0].as_ref().map(|s| &s.value), model.get(&k), "never the damage");
                // Less than a look behind waits, enough for a repair in memory.
                tokio::time::sleep(Duration::from_millis(5)).await;
                v.close().await.expect("close");
            }
            println!("bank {bank}: healed by mount {mounts}");
        }
    });
}

/// Rule 12: what another mount commits is seen, whoever of the banks is away, and nobody is fenced.
#[test]
fn an_observer_sees_what_is_committed_and_disturbs_nobody() {
    runtime_test(async {
        let world = World::made().await;
        let mut c = filled(&world).await;
        await_redundancy(&c.v, 3).await;
        let seen = Observer::open_with(world.as_nodes(), limits(), |_| ()).await.expect("observe");
        let epoch = c.v.epoch();
        for bank in BankId::ALL {
            for n in 0..20 {
                c.put(n, &format!("beside {bank}"));
            }
            c.delete(20 + bank.index());
            c.sync().await;
            sees(&seen, &c).await;
            world.kill(bank);
            c.put(30, &format!("without {bank}"));
            c.sync().await;
            sees(&seen, &c).await;
            world.start(bank);
            await_redundancy(&c.v, 3).await;
        }
        let refused = seen.submit(vec![]).expect_err("an observer writes nothing");
        assert!(matches!(refused, VolumeError::ReadOnly), "{refused}");
        assert!(matches!(seen.room(1).await, Err(VolumeError::ReadOnly)));
        // The writer dies, another comes, and the observer stays.
        c.v.abandon();
        sees(&seen, &c).await;
        c.v = world.open().await;
        assert_eq!(c.v.epoch(), epoch + 1, "somebody else fenced the nodes");
        c.put(31, "by the next mount");
        c.sync().await;
        sees(&seen, &c).await;
        // Two banks gone: no guess, and it ends by itself.
        world.kill(BankId::A);
        world.kill(BankId::B);
        let gone = async {
            while seen.get(vec![(shard_of(&key(1)), key(1))]).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), gone).await.expect("read without two banks");
        world.start(BankId::A);
        world.start(BankId::B);
        sees(&seen, &c).await;
        seen.close().await;
    });
}

/// Waits until an observer reads what the model holds, singly and by scan.
async fn sees(seen: &Observer, c: &Checked) {
    let limit = Instant::now() + Duration::from_secs(20);
    loop {
        let mut scanned = BTreeMap::new();
        let mut whole = true;
        for shard in 0..SHARDS {
            match seen.scan(shard, vec![], vec![], 10_000).await {
                Ok(page) => scanned.extend(page.records.into_iter().map(|(k, s)| (k, s.value))),
                Err(_) => whole = false,
            }
        }
        let keys: Vec<Key> = (0..40).map(key).collect();
        let asked = keys.iter().map(|k| (shard_of(k), k.clone())).collect();
        let got = seen.get(asked).await.map(|got| {
            keys.iter().zip(got).all(|(k, g)| g.map(|s| s.value).as_ref() == c.model.get(k))
        });
        if whole && scanned == c.model && got.is_ok_and(|alike| alike) {
            return;
        }
        assert!(Instant::now() < limit, "the observer does not see what was committed");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[test]
fn an_old_copy_put_back_is_refilled_and_never_believed() {
    runtime_test(async {
        let world = World::made().await;
        let mut c = filled(&world).await;
        await_redundancy(&c.v, 3).await;
        world.kill(BankId::B);
        let old: Vec<_> = world.nodes[BankId::B].iter().map(|n| n.disk().copy()).collect();
        world.start(BankId::B);
        (0..50).for_each(|n| c.delete(n));
        (50..300).for_each(|n| c.put(n, "second"));
        c.sync().await;
        await_redundancy(&c.v, 3).await;
        world.await_equal().await;
        world.kill(BankId::B);
        for (n, disk) in world.nodes[BankId::B].iter().zip(old) {
            n.replace_disk(disk);
        }
        world.start(BankId::B);
        c.check().await;
        c.put(1, "third");
        c.sync().await;
        await_redundancy(&c.v, 3).await;
        world.await_equal().await;
        c.check().await;
    });
}

/// At the pace that is for people at work it would take for ever.
#[test]
fn a_copy_makes_way_to_people_unless_it_is_what_they_wait_for() {
    runtime_test(async {
        let mut world = World::made().await;
        (world.limits.refill_busy_bytes_per_s, world.limits.copy_page_bytes) = (1, 1024);
        for lost in [None, Some(BankId::C)] {
            let mut c = filled(&world).await;
            await_redundancy(&c.v, 3).await;
            world.kill(BankId::B);
            (0..300).for_each(|n| c.put(n, &"second".repeat(20)));
            c.sync().await;
            // Anew, so that nothing is kept to be sent again.
            c.v.close().await.expect("close");
            world.start(BankId::B);
            c.v = world.open().await;
            let v = c.v.clone();
            let people = tokio::spawn(async move {
                loop {
                    (0..20).for_each(|_| v.somebody_asks());
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            });
            tokio::time::sleep(Duration::from_millis(1500)).await;
            assert_eq!(c.v.status().await.redundancy, 2, "the copy made way");
            if let Some(bank) = lost {
                world.kill(bank);
                until("read again", async || c.v.get(vec![(0, key(0))]).await.is_ok()).await;
                c.check().await;
                world.start(bank);
            }
            people.abort();
            await_redundancy(&c.v, 3).await;
            c.check().await;
            c.v.close().await.expect("close");
            world.await_equal().await;
        }
    });
}

#[test]
fn every_acknowledged_sync_survives_a_power_cut_of_everything() {
    for round in 0..10u64 {
        runtime_test(async move {
            let world = World::made().await;
            let mut c = filled(&world).await;
            let rounds = 1 + (round as usize % 4);
            for i in 0..rounds {
                (0..40).for_each(|n| c.put(n * 3, &format!("r{i}")));
                (0..10).for_each(|n| c.delete(200 + n + i * 10));
                c.sync().await;
            }
            // The mount dies without a word, the power fails everywhere, half-written tails stay.
            c.v.abandon();
            world.all(|b| {
                world.each(b, |n| {
                    let mut flip = round;
                    n.crash(move |_, len| {
                        flip = flip.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                        (flip >> 33) as usize % (len + 1)
                    });
                });
            });
            world.all(|b| world.start(b));
            c.v = world.open().await;
            c.check().await;
            await_redundancy(&c.v, 3).await;
            world.await_equal().await;
        });
    }
}

#[test]
fn a_second_mount_is_refused_and_takeover_fences_the_first() {
    runtime_test(async {
        let world = World::made().await;
        let mut first = filled(&world).await;
        await_redundancy(&first.v, 3).await;
        match world.try_open(false).await {
            Err(OpenError::Held(holder)) => assert_eq!(holder, "test"),
            other => panic!("{:?}", other.err()),
        }
        let second = world.open().await;
        let op = |text: &'static str| {
            vec![Op { shard: 0, key: key(0), change: Change::Put(Bytes::from(text)) }]
        };
        // The first one cannot make anything durable any more, and says so for good.
        let _ = first.v.submit(op("late"));
        assert!(first.v.sync().await.is_err());
        let limit = Instant::now() + Duration::from_secs(5);
        while first.v.alive().is_ok() {
            assert!(Instant::now() < limit, "the first mount never learns that it was fenced");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        second.submit(op("second")).expect("submit");
        second.sync().await.expect("sync");
        first.model.insert(key(0), Bytes::from("second"));
        let check = Checked { v: second, model: first.model };
        check.check().await;
    });
}

/// Whoever streams to three banks waits a little for the slowest, so that redundancy does not end with
/// every large file.
#[test]
fn a_stream_leaves_no_bank_behind_that_is_only_a_little_slower() {
    runtime_test(async {
        let mut world = World::made().await;
        // A quarter of the real ones, and groups that are small beside them.
        let l = &mut world.limits;
        (l.replay_bytes, l.in_flight_bytes, l.dirty_bytes) = (16 << 20, 8 << 20, 10 << 20);
        let c = filled(&world).await;
        await_redundancy(&c.v, 3).await;
        // Three requests of 2 MiB to each of two shards under way, each for 100 ms: 120 MiB/s. The
        // others take more.
        let slow = Faults { delay_max: Duration::from_millis(100), ..Faults::default() };
        world.wires[BankId::C].iter().for_each(|w| w.set(slow));
        let value = Bytes::from(vec![7; 256 << 10]);
        for n in 1_000..1_512 {
            c.v.room(value.len()).await.expect("room");
            let change = Change::Put(value.clone());
            c.v.submit(vec![Op { shard: shard_of(&key(n)), key: key(n), change }]).expect("submit");
        }
        c.v.sync().await.expect("sync");
        let status = c.v.status().await;
        assert_eq!(status.redundancy, 3, "{status:#?}");
        assert_eq!(status.counts.expect("of this mount").caught_up, 0);
    });
}

#[test]
fn a_volume_opens_with_one_bank_dead_and_not_with_two() {
    runtime_test(async {
        let world = World::made().await;
        let mut c = filled(&world).await;
        c.v.close().await.expect("close");
        world.kill(BankId::A);
        c.v = world.open().await;
        c.put(1, "without A");
        c.sync().await;
        c.check().await;
        c.v.close().await.expect("close");
        world.kill(BankId::B);
        match world.try_open(true).await {
            Err(OpenError::Unavailable(why)) => assert!(why.contains("bank A"), "{why}"),
            other => panic!("{:?}", other.err()),
        }
        world.start(BankId::A);
        c.v = world.open().await;
        c.check().await;
    });
}

#[test]
fn making_a_volume_twice_is_refused_and_needs_all_three_banks() {
    runtime_test(async {
        let world = World::new();
        world.kill(BankId::C);
        let e = Replicated::init_with(&world.as_nodes(), &limits()).await.unwrap_err();
        assert!(e.to_string().contains("bank C"), "{e}");
        world.start(BankId::C);
        Replicated::init_with(&world.as_nodes(), &limits()).await.expect("init");
        let v = world.open().await;
        v.close().await.expect("close");
        let e = Replicated::init_with(&world.as_nodes(), &limits()).await.unwrap_err();
        assert!(e.to_string().contains("already belongs"), "{e}");
    });
}
