//! Scrub finds every flipped bit in any file of a running node, and what it finds is repaired: by the
//! node itself, or, a record, from the other banks. Then nothing is left for a restart to stumble on.
#![cfg(feature = "server")]
#![allow(clippy::unwrap_used)]

#[allow(unreachable_pub)]
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use storenode::disk::{Disk, MemoryDisk};
use storenode::offline::Offline;
use storenode::wire::*;
use support::*;

const SEGMENT: u64 = 4096;
const APPLIED: u64 = 26;
const TOP: u64 = 34;

type Settled = Vec<(Key, Version, Option<bytes::Bytes>)>;

/// What group `seq` writes.
fn records_of(seq: u64) -> Records {
    let key = |n: u64| format!("key {}", n % 31).into_bytes();
    let large = put(&key(seq), &vec![seq as u8; (seq * 97 % 900) as usize]);
    let small = match seq % 3 {
        0 => del(&key(seq + 3)),
        _ => put(&key(seq + 3), &[seq as u8]),
    };
    vec![large, small]
}

/// Newest record of each key after the last group.
fn settled() -> Settled {
    let mut t = BTreeMap::new();
    for s in 1..=TOP {
        t.extend(records_of(s).into_iter().map(|(k, value)| (k, (v(1, s), value))));
    }
    t.into_iter().map(|(k, (v, b))| (k, v, b)).collect()
}

/// All kinds of files: sidecars, sealed segments with and without one.
fn lived() -> MemoryDisk {
    let n = Node::new(SEGMENT);
    for seq in 1..=TOP {
        let predecessor = if seq == 1 { Version::ZERO } else { v(1, seq - 1) };
        let part = part(v(1, seq), predecessor, &records_of(seq));
        n.append(&[part], v(1, (seq - 1).min(APPLIED))).unwrap();
        if seq % 9 == 0 {
            n.tick();
            n.maintain();
        }
    }
    n.tick();
    n.maintain();
    n.disk.copy()
}

/// A running node on a copy of it, held by a mount; parts of it are not settled yet.
fn running(disk: &MemoryDisk) -> Node {
    let mut n = Node::blank(disk.copy(), SEGMENT);
    n.fence(2).unwrap();
    n.attach((APPLIED + 1..=TOP).map(|s| v(1, s)).collect()).unwrap();
    n
}

/// One scrub: damaged records, and damage elsewhere.
fn scrub(n: &Node) -> (BTreeSet<Key>, Vec<String>) {
    let (mut records, mut files) = (BTreeSet::new(), Vec::new());
    let mut after = Key::new();
    loop {
        match n.call(Request::Verify { after, budget_bytes: 1 << 20 }).unwrap().0 {
            Reply::Verified { bad, next, .. } => {
                records.extend(bad.into_iter().map(|(k, _)| k));
                let Some(next) = next else { break };
                after = next;
            }
            other => panic!("{other:?}"),
        }
    }
    let mut from = 0;
    loop {
        match n.call(Request::VerifyFiles { from }).unwrap().0 {
            Reply::FilesVerified { bad, next, .. } => {
                files.extend(bad);
                let Some(next) = next else { return (records, files) };
                from = next;
            }
            other => panic!("{other:?}"),
        }
    }
}

/// What the mount does: everything is settled, damaged records are installed again.
fn mend(n: &Node, records: &BTreeSet<Key>) {
    n.commit(v(1, TOP));
    let of: Settled = settled().into_iter().filter(|r| records.contains(&r.0)).collect();
    n.install(&of, v(1, TOP), InstallKind::Repair).unwrap();
    n.tick();
    n.maintain();
}

#[test]
fn a_whole_node_has_nothing_to_find() {
    let n = running(&lived());
    let nothing = (BTreeSet::new(), Vec::new());
    assert_eq!(scrub(&n), nothing);
    mend(&n, &BTreeSet::new());
    assert_eq!(scrub(&n), nothing);
}

#[test]
fn every_flipped_bit_in_any_file_is_found_and_repaired() {
    let disk = lived();
    let n = running(&disk);
    let want: Vec<_> = settled().into_iter().filter_map(|(k, v, b)| b.map(|b| (k, v, b))).collect();
    let names: Vec<String> = n.disk.list().unwrap();
    let of_kind = |end: &str| names.iter().filter(|f| f.ends_with(end)).count();
    assert!(of_kind(".idx") >= 1 && of_kind(".seg") >= 3, "{names:?}");
    let (mut in_records, mut in_files) = (0, 0);
    for name in names.iter().filter(|f| f.starts_with("state") || f.starts_with("log-")) {
        let content = n.disk.content(name).unwrap();
        // What was reserved and never written is damage to nothing.
        let used = content.iter().rposition(|b| *b != 0).map_or(0, |p| p + 1);
        for offset in (0..used as u64).step_by(5) {
            let n = running(&disk);
            let what = format!("{name} byte {offset}");
            assert!(n.disk.flip(name, offset, 1 << (offset % 8)));
            let mut found = scrub(&n);
            assert!(!found.0.is_empty() || !found.1.is_empty(), "{what}: not found");
            in_records += usize::from(!found.0.is_empty());
            in_files += usize::from(!found.1.is_empty());
            // A value of a part that was not settled is a record only afterwards.
            for _ in 0..3 {
                mend(&n, &found.0);
                found = scrub(&n);
            }
            assert_eq!(found, (BTreeSet::new(), Vec::new()), "{what}: not repaired");
            let stopped = Offline::open(Arc::new(n.disk.copy())).unwrap();
            assert!(stopped.damage().is_empty(), "{what}: {:?}", stopped.damage());
            let n = n.start();
            let s = n.service.status();
            assert_eq!((s.failed, s.damaged_through), (None, None), "{what}");
            assert_eq!(s.position.position, v(1, TOP), "{what}");
            assert_eq!(n.scan(), want, "{what}");
        }
    }
    eprintln!("{in_records} found in records, {in_files} in files");
    assert!(in_records > 100 && in_files > 100);
}
