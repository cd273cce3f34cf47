//! Disks that fail and bytes that rot: what was acknowledged stays, what is damaged is seen.
#![cfg(feature = "server")]
#![allow(clippy::unwrap_used)]

#[allow(unreachable_pub)]
mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use storenode::disk::{Disk, MemoryDisk};
use storenode::offline::Offline;
use storenode::service::Service;
use storenode::wire::*;
use support::*;

const SEGMENT: u64 = 4096;

/// What group `seq` writes.
fn records_of(seq: u64) -> Records {
    let key = |n: u64| format!("key {}", n % 31).into_bytes();
    let mut r = vec![put(&key(seq), &vec![seq as u8; (seq * 97 % 900) as usize])];
    r.push(if seq.is_multiple_of(3) {
        del(&key(seq + 3))
    } else {
        put(&key(seq + 3), &[seq as u8])
    });
    r
}

fn part_of(seq: u64) -> bytes::Bytes {
    let predecessor = if seq == 1 { Version::ZERO } else { v(1, seq - 1) };
    part(v(1, seq), predecessor, &records_of(seq))
}

/// Live records after group `seq`.
fn table_at(seq: u64) -> BTreeMap<Key, (Version, bytes::Bytes)> {
    let mut t = BTreeMap::new();
    for s in 1..=seq {
        for (k, value) in records_of(s) {
            match value {
                Some(b) => t.insert(k, (v(1, s), b)),
                None => t.remove(&k),
            };
        }
    }
    t
}

fn check_equals(n: &Node, seq: u64, what: &str) {
    let want: Vec<_> = table_at(seq).into_iter().map(|(k, (v, b))| (k, v, b)).collect();
    assert_eq!(n.scan(), want, "{what}");
}

/// A voter of a new volume, attached to epoch 1; every step of that may fail.
fn begun(disk: &MemoryDisk, segment_bytes: u64) -> Option<Node> {
    let service = Service::open(Arc::new(disk.clone()), config(segment_bytes)).ok()?;
    let mut n = Node { disk: disk.clone(), service, epoch: 0, segment_bytes };
    n.call(Request::Assign {
        volume: VOLUME,
        bank: BankId::A,
        shard: 0,
        shards: 1,
        role: Role::Voter,
        configuration: Configuration::default(),
        wipe: false,
    })
    .ok()?;
    n.fence(1).ok()?;
    n.attach(vec![]).ok()?;
    Some(n)
}

/// A short life; every step may fail. Answers the last group that was acknowledged.
fn life(disk: &MemoryDisk) -> u64 {
    let mut acked = 0;
    let Some(n) = begun(disk, SEGMENT) else { return 0 };
    for seq in 1..=24 {
        let committed = v(1, seq - 1);
        match n.append(&[part_of(seq)], if seq % 4 == 0 { committed } else { Version::ZERO }) {
            Ok(p) => {
                assert_eq!(p.position, v(1, seq));
                acked = seq;
            }
            Err(_) => break,
        }
        if seq % 8 == 0 {
            n.tick();
            for _ in 0..20 {
                n.service.maintain();
            }
        }
    }
    n.service.close();
    acked
}

#[test]
fn whatever_disk_operation_fails_what_was_acknowledged_stays() {
    let disk = MemoryDisk::new();
    assert_eq!(life(&disk), 24);
    let operations = disk.operations();
    assert!(operations > 100, "{operations}");
    for nth in 1..=operations {
        for power_cut in [false, true] {
            let disk = MemoryDisk::new();
            disk.fail_nth(nth);
            let acked = life(&disk);
            if power_cut {
                disk.crash();
            } else {
                disk.kill();
            }
            let what = format!("operation {nth}, power cut {power_cut}");
            let n = Node::blank(disk, SEGMENT);
            let s = n.service.status();
            assert_eq!(s.failed, None, "{what}");
            if acked == 0 {
                continue;
            }
            let at = s.position.position;
            assert!(at >= v(1, acked), "{what}: stands at {at}, acked {acked}");
            assert_eq!(s.damaged_through, None, "{what}");
            let mut n = n;
            n.take(2);
            n.commit(at);
            check_equals(&n, at.seq, &what);
            let after = part(v(2, at.seq + 1), at, &vec![put(b"later", b"x")]);
            assert_eq!(n.append(&[after], at).unwrap().position, v(2, at.seq + 1), "{what}");
        }
    }
}

/// Long parts that a disk wants in phase with memory, each with a mark before it: a life of them, every step of which
/// may fail. Answers the last group that was acknowledged.
fn long_life(disk: &MemoryDisk) -> u64 {
    disk.set_phase(4096);
    let Some(n) = begun(disk, LONG_SEGMENT) else { return 0 };
    let mut acked = 0;
    for seq in 1..=LONG_TOP {
        // Of two, the second lies wherever the first one ends.
        let parts: Vec<_> = [2 * seq - 1, 2 * seq].map(long_part).into();
        let lens = parts.iter().map(|p| p.len() as u32).collect();
        let mut memory = vec![0; seq as usize * 8 * 37];
        parts.iter().for_each(|p| memory.extend_from_slice(p));
        let bulk = bytes::Bytes::from(memory).slice(seq as usize * 8 * 37..);
        let place = bulk.as_ptr().addr() % 4096;
        let append = Request::Append { lens, watermark: v(1, 2 * seq - 2) };
        if n.service.handle(n.envelope(), append, bulk).is_err() {
            break;
        }
        acked = 2 * seq;
        assert_eq!(place % 8, 0, "an allocator gives multiples of 8");
        assert!(
            places_of_parts(disk).contains(&place),
            "the part stands where it may be written in place"
        );
    }
    n.service.close();
    acked
}

const LONG_SEGMENT: u64 = 2 << 20;
const LONG_TOP: u64 = 3;

fn long_part(seq: u64) -> bytes::Bytes {
    let predecessor = if seq == 1 { Version::ZERO } else { v(1, seq - 1) };
    let value = vec![seq as u8; (256 << 10) + seq as usize * 1_003];
    part(v(1, seq), predecessor, &vec![put(&[seq as u8], &value)])
}

/// Where parts begin in the log, modulo a page.
fn places_of_parts(disk: &MemoryDisk) -> Vec<usize> {
    let disk = &disk.copy();
    let names = disk.list().unwrap().into_iter().filter(|n| n.ends_with("seg"));
    let all = names.map(|n| storenode::disk::read_file(disk, &n, 1 << 30).unwrap());
    all.flat_map(|b| {
        let begins = |(i, w): (usize, &[u8])| (w == b"TPRT").then_some(i % 4096);
        b.windows(4).enumerate().filter_map(begins).collect::<Vec<_>>()
    })
    .collect()
}

#[test]
fn long_parts_and_the_marks_before_them_survive_what_short_ones_do() {
    let check = |disk: MemoryDisk, acked: u64, what: &str| {
        let mut n = Node::blank(disk, LONG_SEGMENT);
        let s = n.service.status();
        assert_eq!((s.failed, s.damaged_through), (None, None), "{what}");
        if acked == 0 {
            return;
        }
        let at = s.position.position;
        assert!(at >= v(1, acked), "{what}: stands at {at}, acked {acked}");
        n.take(2);
        n.commit(at);
        let want = |seq| (vec![seq as u8], v(1, seq), (256 << 10) + seq as usize * 1_003);
        let got: Vec<_> = n.scan().into_iter().map(|(k, v, b)| (k, v, b.len())).collect();
        assert_eq!(got, (1..=at.seq).map(want).collect::<Vec<_>>(), "{what}");
        let verify = Request::Verify { after: vec![], budget_bytes: 64 << 20 };
        let Ok((Reply::Verified { bad, .. }, _)) = n.observe(verify) else { panic!("{what}") };
        assert_eq!(bad, [], "{what}");
    };
    let disk = MemoryDisk::new();
    assert_eq!(long_life(&disk), 2 * LONG_TOP);
    let (before, operations) = (disk.copy(), disk.operations());
    check(disk, 2 * LONG_TOP, "a start");
    for nth in 1..=operations {
        for power_cut in [false, true] {
            let disk = MemoryDisk::new();
            disk.fail_nth(nth);
            let acked = long_life(&disk);
            if power_cut {
                disk.crash();
            } else {
                disk.kill();
            }
            check(disk, acked, &format!("operation {nth}, power cut {power_cut}"));
        }
    }
    // The power fails in the next append, which came so far.
    let mut whole = 0;
    for nth in 1..=14 {
        for kept in [0, 1, 63, 64, 65, 1_000, 4_096, 4_160, 5_000, 100_000, 300_000, usize::MAX] {
            let disk = before.copy();
            let mut n = Node::blank(disk.clone(), LONG_SEGMENT);
            disk.set_phase(4096);
            n.take(2);
            disk.fail_nth(nth);
            let next = part(v(2, 7), v(1, 6), &vec![put(b"n", &vec![9; 300_000])]);
            let acked = n.append(&[next], v(1, 6)).is_ok();
            disk.crash_keeping(|_, _| kept);
            let s = Node::blank(disk, LONG_SEGMENT).service.status();
            let what = format!("operation {nth}, {kept} bytes kept");
            assert_eq!((s.failed, s.damaged_through), (None, None), "{what}");
            let arrived = s.position.position == v(2, 7);
            assert!(arrived || s.position.position == v(1, 6), "{what}");
            assert!(arrived || !acked, "{what}");
            assert!(acked || !arrived || kept == usize::MAX, "{what}");
            whole += u32::from(arrived && !acked);
        }
    }
    assert!(whole > 0, "no case in which all came and nothing was said");
}

/// An I/O error while a segment is compacted costs no value: what the disk does not give now stays where it
/// is until it does.
#[test]
fn an_error_while_compacting_damages_nothing() {
    const TOP: u64 = 90;
    let begun = || {
        let n = Node::new(SEGMENT);
        for seq in 1..=TOP {
            let mut records = records_of(seq);
            // Some are never written again, so that a segment that is mostly dead has to move them.
            records.push(put(format!("stay {seq}").as_bytes(), &[seq as u8; 40]));
            n.write(seq, &records).unwrap();
        }
        n.commit(v(1, TOP));
        n.tick();
        n
    };
    // The node's own thread calls again and again, whatever became of the last call.
    let settle = |n: &Node| {
        for _ in 0..1_000 {
            n.service.maintain();
        }
    };
    let whole = |n: &Node, what: &str| {
        let mut want = table_at(TOP);
        want.extend((1..=TOP).map(|seq| {
            (format!("stay {seq}").into_bytes(), (v(1, seq), vec![seq as u8; 40].into()))
        }));
        let want: Vec<_> = want.into_iter().map(|(k, (v, b))| (k, v, b)).collect();
        assert_eq!(n.scan(), want, "{what}");
    };
    let n = begun();
    let before = n.disk.operations();
    settle(&n);
    let operations = n.disk.operations() - before;
    assert!(n.service.metrics().segments_compacted > 3, "{:?}", n.service.metrics());
    assert!(n.service.metrics().compaction_bytes_written > 1_000, "nothing was moved");
    whole(&n, "no error");
    for nth in 1..=operations {
        let n = begun();
        n.disk.fail_nth(nth);
        settle(&n);
        let n = n.start();
        whole(&n, &format!("operation {nth} of {operations}"));
        let verify = Request::Verify { after: vec![], budget_bytes: 16 << 20 };
        let Ok((Reply::Verified { bad, .. }, _)) = n.observe(verify) else { panic!() };
        assert_eq!(bad, [], "operation {nth} of {operations}");
    }
}

/// A store with all kinds of files: sidecars, sealed segments without one (pending parts), a
/// segment that is written to.
fn store() -> (MemoryDisk, u64, u64) {
    let n = Node::new(SEGMENT);
    let (applied, top) = (26, 34);
    for seq in 1..=top {
        n.append(&[part_of(seq)], v(1, (seq - 1).min(applied))).unwrap();
        if seq % 9 == 0 {
            n.tick();
            n.maintain();
        }
    }
    n.tick();
    n.maintain();
    n.tick();
    assert_eq!((n.position().position, n.position().applied), (v(1, top), v(1, applied)));
    let names = n.log_files();
    assert!(names.iter().filter(|f| f.ends_with("idx")).count() >= 1, "{names:?}");
    assert!(names.iter().filter(|f| f.ends_with("seg")).count() >= 3, "{names:?}");
    (n.disk.copy(), applied, top)
}

#[test]
fn every_flipped_byte_is_seen_and_never_gives_wrong_data() {
    let (disk, applied, top) = store();
    let want = table_at(applied);
    let keys: Vec<Key> = (0..31).map(|n| format!("key {n}").into_bytes()).collect();
    // Each kind of file: state, a sidecar, the segment of it, the two last segments.
    let mut names: Vec<String> = disk.list().unwrap();
    let segments: Vec<String> = names.iter().filter(|n| n.ends_with("seg")).cloned().collect();
    let sidecar = names.iter().find(|n| n.ends_with("idx")).cloned().unwrap();
    let of_it = sidecar.replace("idx", "seg");
    names.retain(|n| {
        n.starts_with("state")
            || *n == sidecar
            || *n == of_it
            || segments[segments.len() - 2..].contains(n)
    });
    let (mut flips, mut lowered, mut damaged) = (0, 0, 0);
    for name in &names {
        let len = disk.content(name).unwrap().len() as u64;
        for offset in 0..len {
            let copy = disk.copy();
            assert!(copy.flip(name, offset, 1 << (offset % 8)));
            let what = format!("{name} byte {offset}");
            flips += 1;
            let service = match Service::open(Arc::new(copy.clone()), config(SEGMENT)) {
                Ok(s) => s,
                Err(e) => panic!("{what}: {e}"),
            };
            let n = Node { disk: copy, service, epoch: 1, segment_bytes: SEGMENT };
            let s = n.service.status();
            if s.failed.is_some() {
                damaged += 1;
                continue;
            }
            assert!(s.position.position <= v(1, top), "{what}");
            if s.position.position < v(1, top) {
                lowered += 1;
                assert!(
                    s.damaged_through.is_some_and(|d| d > s.position.position),
                    "{what}: parts are missing and nothing says so: {s:?}"
                );
            }
            let r = Request::Read { keys: keys.clone().into(), through: Version::ZERO };
            let (Reply::Found { applied: got, items }, values) = n.observe(r).unwrap() else {
                panic!()
            };
            let mut values = values.into_iter();
            for (key, item) in keys.iter().zip(items) {
                match item {
                    Found::Damaged { .. } => damaged += 1,
                    Found::Record { version, len: Some(_), .. } => {
                        let value = values.next().unwrap();
                        let written = records_of(version.seq)
                            .into_iter()
                            .any(|(k, b)| k == *key && b.as_ref() == Some(&value));
                        assert!(written, "{what}: wrong data");
                        if got >= v(1, applied) {
                            assert_eq!(want.get(key), Some(&(version, value)), "{what}: stale");
                        }
                    }
                    Found::Record { len: None, .. } | Found::Absent => {
                        if got >= v(1, applied) {
                            assert!(!want.contains_key(key), "{what}: lost {key:?}");
                        }
                    }
                }
            }
            // Looking at it offline does not panic either.
            if offset % 16 == 0 {
                let off = Offline::open(Arc::new(n.disk.copy())).unwrap();
                let _ = off.verify(b"", 1 << 20);
            }
        }
    }
    eprintln!("{flips} flips: {lowered} positions lowered, {damaged} damaged records or states");
    assert!(lowered > 0 && damaged > 0);
}

#[test]
fn every_cut_of_the_last_segment_leaves_a_prefix() {
    let (disk, ..) = store();
    let mut names: Vec<String> = disk.list().unwrap();
    names.retain(|n| n.ends_with("seg"));
    let last = names.last().unwrap().clone();
    let content = disk.content(&last).unwrap();
    for cut in (0..content.len()).step_by(13) {
        let copy = disk.copy();
        copy.open(&last).unwrap().truncate(cut as u64).unwrap();
        let n = Node::blank(copy.copy(), SEGMENT);
        let s = n.service.status();
        assert!(s.position.position <= v(1, 34), "cut at {cut}");
        assert_eq!(s.failed, None);
    }
}

/// Newest record of each key after group `seq`, tombstones included.
fn settled_at(seq: u64) -> Vec<(Key, Version, Option<bytes::Bytes>)> {
    let mut t = BTreeMap::new();
    for s in 1..=seq {
        for (k, value) in records_of(s) {
            t.insert(k, (v(1, s), value));
        }
    }
    t.into_iter().map(|(k, (v, b))| (k, v, b)).collect()
}

#[test]
fn what_was_damaged_is_healed_for_good() {
    let (disk, applied, top) = store();
    let names: Vec<String> = disk.list().unwrap();
    let mut healed = 0;
    for name in names.iter().filter(|n| n.ends_with("seg")) {
        let len = disk.content(name).unwrap().len() as u64;
        for offset in (0..len).step_by(23) {
            let copy = disk.copy();
            assert!(copy.flip(name, offset, 0x40));
            let what = format!("{name} byte {offset}");
            let mut n = Node::blank(copy, SEGMENT);
            let p = n.position().position;
            let chain: Vec<Version> = (applied + 1..=top).map(|s| v(1, s)).collect();
            n.fence(2).unwrap();
            n.attach(chain).unwrap();
            if p < v(1, applied) {
                let r = settled_at(applied);
                n.install(&r, v(1, applied), InstallKind::CatchUp).unwrap();
                let join = Request::Join { at: v(1, applied), reach: v(1, applied) };
                n.call(join).unwrap();
            }
            // The mount sends again what is in flight.
            let parts: Vec<_> = (applied + 1..=top).map(part_of).collect();
            let got = n.append(&parts, v(1, applied)).unwrap();
            assert_eq!((got.position, got.detached), (v(1, top), None), "{what}");
            if p < v(1, top) {
                healed += 1;
            }
            for round in 0..3 {
                n = if round == 1 { n.crash() } else { n.start() };
                let s = n.service.status();
                assert_eq!(s.position.position, v(1, top), "{what}, start {round}");
                assert_eq!(s.damaged_through, None, "{what}, start {round}");
                n.attach((applied + 1..=top).map(|s| v(1, s)).collect()).unwrap();
                if round == 1 {
                    n.commit(v(1, top));
                    n.tick();
                    n.maintain();
                }
            }
            // Single values may still be damaged: that is for repairs, not for positions.
            let r = settled_at(top);
            n.install(&r, v(1, top), InstallKind::Repair).unwrap();
            check_equals(&n, top, &what);
        }
    }
    assert!(healed > 10, "{healed}");
}

/// Found by the simulation: compaction wrote records again, power failed before that was durable, of a
/// copy only a part had reached the disk, and the original was still there: the torn copy counted.
#[test]
fn a_torn_copy_does_not_hide_what_it_was_made_of() {
    let value = |seq: u64| vec![b's' ^ (seq as u8).reverse_bits(); 200];
    let n = Node::new(SEGMENT);
    for seq in 1..=60 {
        // Most of each segment is soon dead, and some of it never.
        let mut records = vec![put(&[b'k', (seq % 4) as u8], &[0; 700])];
        if seq % 4 == 0 {
            records.push(put(&[b's', seq as u8], &value(seq)));
        }
        let at = n.position().position;
        n.append(&[part(v(1, seq), at, &records)], at).unwrap();
    }
    n.commit(v(1, 60));
    n.tick();
    let lived = n.disk.copy();
    // The process ends inside compaction, before it removes what it moved.
    let interrupted = |nth| {
        let n = Node::blank(lived.copy(), SEGMENT);
        if nth > 0 {
            n.disk.fail_nth(nth);
        }
        let before = n.disk.operations();
        let operations = || n.disk.operations() - before;
        for _ in 0..100 {
            n.service.maintain();
            if nth > 0 && operations() >= nth {
                break;
            }
        }
        let operations = operations();
        // Something whole behind the copies: what stands before it does not count as a torn end.
        n.tick();
        (n.disk.copy(), operations)
    };
    // Where the value of group `seq` stands: segment and offset, ascending.
    let places = |disk: &MemoryDisk, seq| {
        let mut names: Vec<String> = disk.list().unwrap();
        names.retain(|n| n.ends_with("seg"));
        names.sort();
        let mut found = Vec::new();
        for name in names {
            let content = disk.content(&name).unwrap();
            let at = content.windows(200).position(|w| w == value(seq));
            found.extend(at.map(|at| (name, at as u64)));
        }
        found
    };
    let mut torn = 0;
    for nth in 1..=interrupted(0).1 {
        let (disk, _) = interrupted(nth);
        for seq in (4..=60).step_by(4) {
            let [_, .., (copy, at)] = &places(&disk, seq)[..] else { continue };
            let disk = disk.copy();
            assert!(disk.flip(copy, at + 100, 0xff));
            let n = Node::blank(disk, SEGMENT);
            assert!(n.scan_damaged().is_empty(), "operation {nth}: group {seq} in {copy}");
            torn += 1;
        }
    }
    assert!(torn > 20, "{torn}");
}

/// Small syncs of few blocks leave segments that are mostly dead at once. Compacting the one sealed last
/// needs a new head, that is, it would seal the next one early, which is mostly dead too: seen as a burst
/// of slow syncs every second.
#[test]
fn compaction_does_not_cut_segments_short() {
    let n = Node::new(SEGMENT);
    let mut written = 0;
    for seq in 1..=600 {
        // One in some stays, so that there is something to move.
        let mut records = vec![put(&[b'k', (seq % 4) as u8], &[seq as u8; 100])];
        if seq % 40 == 0 {
            records.push(put(format!("stay {seq}").as_bytes(), &[1; 100]));
        }
        n.write(seq, &records).unwrap();
        n.commit(v(1, seq));
        if seq % 5 == 0 {
            n.tick();
            while n.service.maintain() {}
        }
        written = n.service.metrics().log_bytes_written;
    }
    let compacted = n.service.metrics().segments_compacted;
    let last = n.log_files().into_iter().rfind(|f| f.ends_with("seg")).unwrap();
    let number = last.trim_start_matches("log-").trim_end_matches(".seg");
    let begun = u64::from_str_radix(number, 16).unwrap();
    assert!(compacted > 10, "{compacted}");
    assert!(begun <= written / SEGMENT * 5 / 4 + 2, "{begun} segments for {written} bytes");
    // Idle: what waited goes, and nothing that is current with it.
    n.maintain();
    assert!(n.service.metrics().segments_compacted > compacted, "{compacted}");
    assert_eq!(n.scan().len(), 4 + 600 / 40);
}

/// A thin pool below the filesystem is exhausted: the count of free space says nothing of it, so the
/// refusal must.
#[test]
fn a_disk_that_takes_no_more_although_it_counts_free_space_is_told_from_a_full_one() {
    let said = |free_bytes| NodeError::Full { free_bytes }.to_string();
    assert_eq!(said(4_096), "disk full: 4096 bytes free");
    let thin = said(361_036_152);
    assert!(thin.contains("361036152 bytes free") && thin.contains("thin pool"), "{thin}");
}
