//! What is there for speed only changes nothing that is said or kept: clearing ahead of small syncs.
#![cfg(feature = "server")]
#![allow(clippy::unwrap_used)]

#[allow(unreachable_pub)]
mod support;

use storenode::wire::*;
use support::{Node, put, v};

const SMALL: usize = 4096;

/// Appends that are synced one by one.
fn small_syncs(n: &Node, seqs: std::ops::Range<u64>) {
    for seq in seqs {
        n.write(seq, &vec![put(&seq.to_be_bytes(), &[seq as u8; SMALL])]).unwrap();
    }
}

fn assert_all_there(n: &Node, through: u64) {
    for seq in 1..=through {
        let (found, value) = n.read(&seq.to_be_bytes(), Version::ZERO).unwrap();
        assert!(matches!(found, Found::Record { .. }), "{seq}: {found:?}");
        assert!(value.unwrap().iter().all(|b| *b == seq as u8), "{seq}");
    }
}

/// What one tick writes.
fn written_by_tick(n: &Node) -> u64 {
    let before = n.disk.bytes_written();
    n.service.tick(std::time::Duration::ZERO);
    n.disk.bytes_written() - before
}

#[test]
fn a_log_of_small_syncs_is_cleared_ahead_and_loses_nothing() {
    let n = Node::new(4 << 20);
    n.tick();
    // Into what was cleared while it rested, over its end, over the end of the segment, and cleared again.
    small_syncs(&n, 1..150);
    assert!(written_by_tick(&n) >= 512 << 10, "zeros ahead");
    small_syncs(&n, 150..300);
    assert!(written_by_tick(&n) >= 512 << 10, "zeros ahead");
    small_syncs(&n, 300..310);
    n.write(310, &vec![put(b"large", &[9; 3 << 20])]).unwrap();
    n.tick();
    small_syncs(&n, 311..321);
    n.tick();
    n.commit(v(1, 320));
    let check = |n: &Node| {
        assert_eq!(n.position().position, v(1, 320));
        for seq in (1..321).filter(|s| *s != 310) {
            let (_, value) = n.read(&u64::to_be_bytes(seq), v(1, 320)).unwrap();
            assert_eq!(value.unwrap(), vec![seq as u8; SMALL], "{seq}");
        }
        assert_eq!(n.read(b"large", v(1, 320)).unwrap().1.unwrap().len(), 3 << 20);
    };
    check(&n);
    let mut n = n.crash();
    for _ in 0..2 {
        n.fence(n.epoch + 1).unwrap();
        n.attach((1..321).map(|s| v(1, s)).collect()).unwrap();
        check(&n);
        n = n.start();
    }
}

/// So that the first syncs after a rest are as fast as the others; for each byte written then, one is cleared.
#[test]
fn a_log_that_rests_is_cleared_ahead_and_not_again() {
    let n = Node::new(64 << 20);
    let before = n.disk.bytes_written();
    n.tick();
    let first = n.disk.bytes_written() - before + (0..4).map(|_| written_by_tick(&n)).sum::<u64>();
    assert!((3 << 19..5 << 19).contains(&first), "{first} bytes of zeros");
    assert_eq!((0..20).map(|_| written_by_tick(&n)).sum::<u64>(), 0);
    small_syncs(&n, 1..41);
    assert_eq!(written_by_tick(&n), 0, "there is enough");
    let more: u64 = (0..4).map(|_| written_by_tick(&n)).sum();
    assert!((1..512 << 10).contains(&more), "{more} bytes of zeros");
    n.commit(v(1, 40));
    assert_all_there(&n, 40);
    let n = n.crash();
    assert_eq!(n.position().position, v(1, 40));
}

#[test]
fn a_log_of_large_or_few_syncs_is_not_written_twice() {
    let n = Node::new(64 << 20);
    n.tick();
    for seq in 1..6 {
        n.write(seq, &vec![put(b"large", &[9; 3 << 20])]).unwrap();
    }
    assert!(written_by_tick(&n) < 4096);
    n.tick();
    small_syncs(&n, 6..8);
    assert!(written_by_tick(&n) < 4096);
}

/// A sync of zeros that fails has taken others' bytes along: the node must not vote.
#[test]
fn when_the_sync_of_what_was_cleared_fails_the_node_does_not_vote() {
    let mut n = Node::new(4 << 20);
    n.tick();
    small_syncs(&n, 1..300);
    n.disk.fail_syncs(true);
    n.service.tick(std::time::Duration::ZERO);
    n.disk.fail_syncs(false);
    assert!(n.service.status().failed.is_some());
    assert!(n.write(300, &vec![put(b"k", b"v")]).is_err());
    n = n.crash();
    n.fence(2).unwrap();
    n.attach((1..300).map(|s| v(1, s)).collect()).unwrap();
    n.commit(v(1, 299));
    assert_eq!(n.position().position, v(1, 299));
    assert_all_there(&n, 299);
}
