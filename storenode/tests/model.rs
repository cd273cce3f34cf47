//! Random histories against a table in memory, and the same with each disk operation failing. A
//! failure prints its seed; `NODE_SEED=n` runs that one alone, and `NODE_RUNS=n` that many.
#![cfg(feature = "server")]
#![allow(clippy::unwrap_used)]

#[allow(unreachable_pub)]
mod history;
#[allow(unreachable_pub)]
mod support;

use history::{Draw, History, Rng};
use storenode::disk::MemoryDisk;
use support::{Node, SEGMENTS};

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|s| s.parse::<u64>().ok())
}

/// Runs with `NODE_SEED`, or with each of so many seeds.
fn for_seeds(usual: u64, run: impl Fn(u64) + std::panic::RefUnwindSafe) {
    if let Some(seed) = number("NODE_SEED") {
        return run(seed);
    }
    for seed in 0..number("NODE_RUNS").unwrap_or(usual) {
        if let Err(e) = std::panic::catch_unwind(|| run(seed)) {
            eprintln!("NODE_SEED={seed}");
            std::panic::resume_unwind(e);
        }
    }
}

#[test]
fn random_histories_match_a_table() {
    for_seeds(60, |seed| History::new(Rng(seed)).run(200).unwrap());
}

/// How the process ends after a disk operation failed.
const ENDINGS: [&str; 3] = ["a kill", "a power cut", "a power cut that keeps pieces"];

/// One life on a disk whose `nth` operation fails, and all behind it if `for_good`; then a start.
/// Answers false when the life ended before that operation.
fn life(seed: u64, nth: u64, for_good: bool, ending: usize) -> bool {
    let disk = MemoryDisk::new();
    let mut n = Node::blank(disk.clone(), SEGMENTS[seed as usize % 2]);
    n.assign(storenode::wire::Role::Voter);
    n.take(1);
    let mut h = History::on(n, Rng(seed));
    h.may_fail();
    let began = disk.operations();
    if for_good {
        disk.fail_from(nth);
    } else {
        disk.fail_nth(nth);
    }
    let _ = h.run(30);
    let reached = disk.operations() - began >= nth;
    let mut pieces = Rng(seed ^ nth);
    match ending {
        0 => disk.kill(),
        1 => disk.crash(),
        _ => disk.crash_keeping(|_, len| pieces.below(len as u64 + 1) as usize),
    }
    h.check_survived(&format!("operation {nth}, for good {for_good}, {}", ENDINGS[ending]));
    reached
}

#[test]
fn whichever_disk_operation_of_a_history_fails_nothing_acknowledged_is_lost() {
    for_seeds(3, |seed| {
        let mut failed = 0;
        'operations: for nth in 1.. {
            for (for_good, ending) in [(false, 0), (false, 1), (false, 2), (true, 0), (true, 2)] {
                if !life(seed, nth, for_good, ending) {
                    break 'operations;
                }
                failed += 1;
            }
        }
        assert!(failed > 100, "{failed}");
    });
}
