//! The same engine over a directory of the machine: locks, threads, speed.
#![cfg(feature = "server")]
#![allow(clippy::unwrap_used)]

#[allow(unreachable_pub)]
mod support;

use bytes::Bytes;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use storenode::disk::{Disk, RealDisk};
use storenode::offline::Offline;
use storenode::service::{OpenError, Service};
use storenode::wire::*;
use support::{VOLUME, config, part, put, v};

fn open(path: &std::path::Path, segment_bytes: u64) -> Service {
    Service::open(Arc::new(RealDisk::open(path, true).unwrap()), config(segment_bytes)).unwrap()
}

fn envelope(s: &Service, epoch: u64) -> Envelope {
    Envelope { format: WIRE_FORMAT, volume: VOLUME, store: s.status().store, epoch, nonce: 1 }
}

fn take(s: &Service, epoch: u64) {
    let call = |r| s.handle(envelope(s, epoch), r, Bytes::new()).unwrap();
    if s.status().role == Role::Blank {
        let configuration = Configuration::default();
        let (volume, bank, role) = (VOLUME, BankId::A, Role::Voter);
        let (shard, shards, wipe) = (0, 1, false);
        call(Request::Assign { volume, bank, shard, shards, role, configuration, wipe });
    }
    call(Request::Fence { epoch, nonce: 1, holder: "test".into() });
    call(Request::Attach { chain: Vec::new(), cut: Version::ZERO });
}

fn append(s: &Service, parts: &[Bytes], watermark: Version) -> Result<Reply, NodeError> {
    let lens = parts.iter().map(|p| p.len() as u32).collect();
    let bulk = Bytes::from(parts.concat());
    s.handle(envelope(s, 1), Request::Append { lens, watermark }, bulk).map(|r| r.0)
}

#[test]
fn one_process_per_directory_and_a_start_finds_all() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("new").join("node");
    let s = open(&path, 1 << 20);
    take(&s, 1);
    append(&s, &[part(v(1, 1), Version::ZERO, &vec![put(b"k", b"value")])], Version::ZERO).unwrap();
    append(&s, &[], v(1, 1)).unwrap();
    let second = RealDisk::open(&path, false).unwrap();
    assert!(matches!(Service::open(Arc::new(second), config(1 << 20)), Err(OpenError::Locked)));
    let second = RealDisk::open(&path, false).unwrap();
    assert!(matches!(Offline::open(Arc::new(second)), Err(OpenError::Locked)));
    let space = s.status().space;
    assert!(space.capacity_bytes > space.free_bytes && space.free_bytes > 0);
    s.close();
    drop(s);
    let off = Offline::open(Arc::new(RealDisk::open(&path, false).unwrap())).unwrap();
    assert_eq!(off.get(b"k").unwrap().1, Ok(Some("value".into())));
    drop(off);
    let s = open(&path, 1 << 20);
    assert_eq!(s.status().position.position, v(1, 1));
    let names = RealDisk::open(&path, false).unwrap().list().unwrap();
    assert!(!names.iter().any(|n| n.ends_with(".tmp")));
}

/// Long writes go past the page cache, through a buffer or from where they lie, short ones through it, at any
/// offset and in any pieces: a reader sees the same bytes either way.
#[test]
fn long_and_short_writes_see_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let disk = RealDisk::open(dir.path(), true).unwrap();
    let file = disk.create("f").unwrap();
    const LEN: usize = 8 << 20;
    file.allocate(LEN as u64).unwrap();
    let mut expected = vec![0; LEN];
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 20) as usize % below
    };
    for n in 0..200u8 {
        let len = if n % 3 == 0 { 1 + random(9_000) } else { 200_000 + random(3 << 20) };
        let at = random(LEN - len);
        // Of the long ones half lie in memory as they will in the file.
        let mut memory = vec![0; len + 4096];
        let start = match n % 3 {
            2 => random(4096),
            _ => (at + 4096 - memory.as_ptr().addr() % 4096) % 4096,
        };
        let bytes = &mut memory[start..start + len];
        bytes.iter_mut().enumerate().for_each(|(i, b)| *b = (i as u8).wrapping_mul(31) ^ n);
        let bytes = &*bytes;
        let mut pieces = Vec::new();
        let mut rest = bytes;
        while !rest.is_empty() {
            let (piece, behind) = rest.split_at((1 + random(900_000)).min(rest.len()));
            pieces.push(piece);
            rest = behind;
        }
        file.write_at(&pieces, at as u64).unwrap();
        expected[at..at + len].copy_from_slice(bytes);
        let (from, n) = (random(LEN / 2), 1 + random(LEN / 2));
        let mut got = vec![0; n];
        assert_eq!(file.read_at(&mut got, from as u64).unwrap(), n);
        assert!(got == expected[from..from + n], "bytes {from}..{}", from + n);
    }
    file.sync_data().unwrap();
    drop(file);
    assert!(std::fs::read(dir.path().join("f")).unwrap() == expected);
}

/// A name may stand for another file a moment later: a wiped store begins its log anew, in the same process.
#[test]
fn long_writes_go_to_the_file_they_are_for_whatever_its_name_is_now() {
    let dir = tempfile::tempdir().unwrap();
    let disk = RealDisk::open(dir.path(), true).unwrap();
    let bytes = |n| vec![n; 1 << 20];
    let whole = |file: &dyn storenode::disk::DiskFile, n: u8| {
        let mut got = vec![0; 1 << 20];
        file.read_at(&mut got, 0).unwrap() == got.len() && got == bytes(n)
    };
    let old = disk.create("f").unwrap();
    old.write_at(&[&bytes(1)], 0).unwrap();
    disk.remove("f").unwrap();
    old.write_at(&[&bytes(2)], 0).unwrap();
    let new = disk.create("f").unwrap();
    new.write_at(&[&bytes(3)], 0).unwrap();
    new.sync_data().unwrap();
    old.write_at(&[&bytes(4)], 0).unwrap();
    assert!(whole(&*new, 3) && whole(&*old, 4));
    assert_eq!(std::fs::read(dir.path().join("f")).unwrap(), bytes(3));
}

#[test]
fn a_store_that_was_wiped_keeps_long_records_and_parts() {
    let dir = tempfile::tempdir().unwrap();
    let s = open(dir.path(), 64 << 20);
    take(&s, 1);
    let long = |seq, before| part(v(1, seq), before, &vec![put(&[seq as u8], &vec![5; 600_000])]);
    append(&s, &[long(1, Version::ZERO)], Version::ZERO).unwrap();
    let call = |s: &Service, r, bulk| s.handle(envelope(s, 1), r, bulk).unwrap().0;
    let (volume, bank, role) = (VOLUME, BankId::A, Role::Filling);
    let (shard, shards, wipe, configuration) = (0, 1, true, Configuration::default());
    let assign = Request::Assign { volume, bank, shard, shards, role, configuration, wipe };
    call(&s, assign, Bytes::new());
    call(&s, Request::Fence { epoch: 1, nonce: 1, holder: "test".into() }, Bytes::new());
    call(&s, Request::Attach { chain: vec![v(1, 1)], cut: Version::ZERO }, Bytes::new());
    let value = Bytes::from(vec![9; 600_000]);
    let digest = digest(b"copied", v(1, 1), Some(&value));
    let record = RecordHead { key: b"copied".into(), version: v(1, 1), digest, len: Some(600_000) };
    let (as_of, kind) = (v(1, 1), InstallKind::CatchUp);
    call(&s, Request::Install { records: vec![record], as_of, kind }, value.clone());
    append(&s, &[long(2, v(1, 1))], Version::ZERO).unwrap();
    s.close();
    drop(s);
    let s = open(dir.path(), 64 << 20);
    let Reply::Verified { bad, bytes, .. } =
        call(&s, Request::Verify { after: vec![], budget_bytes: 64 << 20 }, Bytes::new())
    else {
        panic!()
    };
    assert_eq!((bad, bytes >= 600_000), (vec![], true));
    let status = s.status();
    assert_eq!((status.failed, status.damaged_through), (None, None));
    assert_eq!(status.position.detached.map(|d| d.1), Some(v(1, 2)), "{:?}", status.position);
}

#[test]
fn threads_share_syncs_and_readers_see_whole_groups() {
    let dir = tempfile::tempdir().unwrap();
    let s = open(dir.path(), 256 << 10);
    take(&s, 1);
    let (next, stop) = (AtomicU64::new(1), AtomicU64::new(0));
    let top = 400;
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                loop {
                    let seq = next.fetch_add(1, Ordering::Relaxed);
                    if seq > top {
                        return;
                    }
                    let before = if seq == 1 { Version::ZERO } else { v(1, seq - 1) };
                    // Both keys change together in each group.
                    let value = seq.to_le_bytes();
                    let big = vec![seq as u8; 3000];
                    let key = format!("k{}", seq % 50);
                    let records =
                        vec![put(b"a", &value), put(b"b", &value), put(key.as_bytes(), &big)];
                    let at = s.status().position.position;
                    append(&s, &[part(v(1, seq), before, &records)], at).unwrap();
                }
            });
        }
        scope.spawn(|| {
            let mut rounds = 0;
            while stop.load(Ordering::Relaxed) == 0 {
                s.tick(Duration::from_millis(rounds));
                s.maintain();
                rounds += 1;
            }
        });
        scope.spawn(|| {
            let mut last = 0;
            let began = Instant::now();
            while last < top {
                assert!(began.elapsed() < Duration::from_secs(120), "stuck at {last}");
                let keys = vec![b"a".to_vec(), b"b".to_vec()];
                let r = Request::Read { keys: keys.into(), through: Version::ZERO };
                let (_, values) = s.handle(envelope(&s, 0), r, Bytes::new()).unwrap();
                let values = values.concat();
                if !values.is_empty() {
                    let (a, b) = values.split_at(8);
                    assert_eq!(a, b);
                    let now = u64::from_le_bytes(a.try_into().unwrap());
                    assert!(now >= last);
                    last = now;
                }
                let w = s.status().position.position;
                append(&s, &[], w).unwrap();
            }
            stop.store(1, Ordering::Relaxed);
        });
    });
    let m = s.metrics();
    eprintln!("{m:?}");
    assert_eq!(s.status().position.position, v(1, top));
    // Who wrote last may have known an old watermark, and a restart knows what entries say: as the mark does that
    // an idle log gets, at the second tick that finds nothing new.
    append(&s, &[], v(1, top)).unwrap();
    s.tick(Duration::from_secs(1000));
    s.tick(Duration::from_secs(1001));
    drop(s);
    let s = open(dir.path(), 256 << 10);
    assert_eq!(s.status().position.position, v(1, top));
    let r = Request::Verify { after: Vec::new(), budget_bytes: 16 << 20 };
    let (Reply::Verified { bad, records, .. }, _) =
        s.handle(envelope(&s, 0), r, Bytes::new()).unwrap()
    else {
        panic!()
    };
    assert_eq!((bad.len(), records), (0, 52));
}

/// `cargo test --release -p tercet-storenode --test real_disk -- --ignored --nocapture`; the directory is `$NODE_BENCH_DIR`.
#[test]
#[ignore = "a measurement"]
fn speed() {
    let base = std::env::var("NODE_BENCH_DIR").unwrap_or_else(|_| "/tmp".into());
    let dir = tempfile::tempdir_in(base).unwrap();
    let s = open(dir.path(), 64 << 20);
    take(&s, 1);
    let (mut seq, mut last) = (0, Version::ZERO);
    let mut write = |records: &support::Records| {
        seq += 1;
        let p = part(v(1, seq), last, records);
        let start = Instant::now();
        append(&s, &[p], last).unwrap();
        last = v(1, seq);
        start.elapsed()
    };
    let mut times: Vec<_> =
        (0..500u32).map(|i| write(&vec![put(&i.to_be_bytes(), &[1; 4096])])).collect();
    times.sort();
    let m = s.metrics();
    let sync = m.sync_micros / m.syncs.max(1);
    println!(
        "append 4 KiB: median {:?}, p99 {:?}; mean fdatasync {sync} us",
        times[250], times[495]
    );
    let before = s.metrics().log_bytes_written;
    let block = vec![7; 1 << 20];
    let start = Instant::now();
    for i in 0..32u32 {
        let records = (0..16u32).map(|j| put(&[i.to_be_bytes(), j.to_be_bytes()].concat(), &block));
        write(&records.collect());
    }
    let (t, n) = (start.elapsed().as_secs_f64(), 512.0);
    let wrote = (s.metrics().log_bytes_written - before) as f64 / (1 << 20) as f64;
    println!("append 16 MiB: {:.0} MiB/s with encoding, {:.4} bytes per byte", n / t, wrote / n);
    for i in 0..62u32 {
        let records =
            (0..16_384u32).map(|j| put(&[i.to_be_bytes(), j.to_be_bytes(), [9; 4]].concat(), b"x"));
        write(&records.collect());
    }
    append(&s, &[], last).unwrap();
    println!("{} records", s.status().space.records);
    for _ in 0..30 {
        s.tick(Duration::ZERO);
        s.maintain();
    }
    s.close();
    drop(s);
    let start = Instant::now();
    let s = open(dir.path(), 64 << 20);
    println!("start with {} records: {:?}", s.status().space.records, start.elapsed());
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    println!("{}", status.lines().find(|l| l.starts_with("VmRSS")).unwrap());
}
