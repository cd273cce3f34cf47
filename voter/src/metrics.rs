//! What is counted, each with its unit.

use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// Counters since the mount began.
        #[derive(Debug, Default)]
        pub(crate) struct Metrics { $($(#[$doc])* pub(crate) $name: AtomicU64,)* }
        /// A reading of the counters.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
        pub struct Counts { $($(#[$doc])* pub $name: u64,)* }
        impl Metrics {
            pub(crate) fn read(&self) -> Counts {
                Counts { $($name: self.$name.load(Ordering::Relaxed),)* }
            }
        }
    };
}
counters! {
    /// Groups sealed.
    groups,
    /// Bytes of parts encoded (once; each is sent three times).
    part_bytes,
    /// Syncs answered with success.
    syncs,
    /// Syncs refused at their deadline.
    syncs_failed,
    /// Keys read from the banks.
    reads,
    /// Keys whose first two ballots did not agree.
    disputes,
    /// Reads that asked a further bank because one was late.
    hedges,
    /// Reads without a verdict.
    reads_failed,
    /// Records installed by repair on access, refresh or scrub.
    repaired,
    /// Foreign records removed.
    removed,
    /// Records moved by catch-up.
    caught_up,
    /// Records moved into new stores.
    refilled,
    /// Stores replaced.
    replaced,
    /// Replicas struck out: away while too many deletions had to be remembered for them.
    struck,
    /// Refreshes completed.
    refreshes,
    /// Buckets that differed in a refresh.
    buckets_differing,
    /// Records re-read and verified by scrub.
    scrubbed,
    /// Damaged records found by scrub.
    scrub_damaged,
}

/// Adds to a counter.
pub(crate) fn add(c: &AtomicU64, n: usize) {
    c.fetch_add(n as u64, Ordering::Relaxed);
}
