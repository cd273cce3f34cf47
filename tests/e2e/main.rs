//! End-to-end tests: real `storenode` processes, a real mount, faults by signal, and oracles outside
//! the mount (hashes, lists of acknowledged syncs, the banks compared with each other).
//!
//! Run with `scripts/test e2e [FILTER]`, as root, one at a time.

use std::time::Duration;

mod damage;
mod durability;
mod everyday;
mod failover;
mod limits;
mod matrix;
mod names;
mod observer;
mod posix;
mod rebuild;
mod refusals;
mod root;
mod same;
mod scripts;
mod space;
mod suites;
mod tools;

/// The promise is that no operation waits for 1 s because of one bank. On a shared two-core machine,
/// with all nine processes on one disk, this much slack keeps a busy neighbour from failing the test;
/// what was measured is printed.
const STALL_MAX: Duration = Duration::from_secs(3);

/// How long repair of a small volume may take once nothing is in its way.
const REPAIR_MAX: Duration = Duration::from_secs(60);

/// Sizes of ordinary runs, times this with `scripts/test --full`.
fn scale() -> u64 {
    if std::env::var("TERCET_TEST_SIZE").is_ok_and(|s| s == "full") { 10 } else { 1 }
}
