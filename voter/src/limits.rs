//! Every number that bounds or paces the voter, each with its unit, once.

use serde::{Deserialize, Serialize};
use std::time::Duration;

/// A lease lasts at least so many beats.
pub const LEASE_BEATS_MIN: u64 = 3;

/// Limits and paces. All can be set in the config file under `[limits]` by these names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// A sync that is not durable on two banks after this long returns EIO, milliseconds.
    pub sync_deadline_ms: u64,
    /// A read that got no verdict after this long returns EIO, milliseconds.
    pub read_deadline_ms: u64,
    /// A writer that finds no room for dirty data after this long gets EIO, milliseconds.
    pub room_deadline_ms: u64,
    /// One request to one node, milliseconds.
    pub call_deadline_ms: u64,
    /// Ask another bank when one has not answered a read after this long, milliseconds.
    pub hedge_ms: u64,
    /// An open group is sent after this long at the latest, milliseconds: what a crash of the mount
    /// can cost an application that never syncs.
    pub group_timer_ms: u64,
    /// An open group is sent when it holds so many bytes of values.
    pub stream_bytes: usize,
    /// Sent and not yet committed, bytes: bounds what a sync waits for.
    pub in_flight_bytes: usize,
    /// Submitted and not yet committed, bytes: beyond it writers wait.
    pub dirty_bytes: usize,
    /// Committed parts kept per shard for a replica that lacks them, bytes; beyond it the replica catches
    /// up from its peers instead. At half of it, writers of much wait a little, and for one that is not
    /// down `dirty_bytes` more are kept (docs/adr/0023).
    pub replay_bytes: usize,
    /// Requests under way to one node for appends.
    pub append_window: usize,
    /// Between beats to each node, milliseconds.
    pub beat_ms: u64,
    /// Without answers of two banks for this long, syncs are refused, milliseconds. At least three times
    /// `beat_ms`: a mount that rests hears of the banks by its beats, and one that is late is no loss.
    pub lease_ms: u64,
    /// How long an opener watches the holder's beat before it takes over, milliseconds.
    pub holder_watch_ms: u64,
    /// Between probes of a node that is down: first and longest, milliseconds.
    pub probe_first_ms: u64,
    /// Longest pause between probes, milliseconds.
    pub probe_longest_ms: u64,
    /// Tombstones kept in a shard for a replica that is away; beyond it the replica is struck out, and
    /// filled anew when it returns. One takes about 100 bytes in the log and 150 in a node's memory.
    pub tombstones_max: u64,
    /// A replica that is away for less is not struck out, milliseconds.
    pub strike_after_ms: u64,
    /// Between refreshes of all shards, seconds.
    pub refresh_interval_s: u64,
    /// Values re-read from disk per bank within each refresh, bytes at most.
    pub scrub_bytes_per_refresh: u64,
    /// Pace of all catch-up and refill together, bytes per second, when nobody else works.
    pub refill_bytes_per_s: u64,
    /// The same while people work (from 100 requests a second on), if it is less.
    pub refill_busy_bytes_per_s: u64,
    /// Bytes of values that are copied at a time; less while people work.
    pub copy_page_bytes: u32,
    /// What was read from two banks is re-read from all three behind the reader's back, at most so
    /// many bytes per second; more is left to the scrub.
    pub check_behind_bytes_per_s: u64,
    /// Repairs waiting, at most; more are found again by the next refresh.
    pub repair_queue: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            sync_deadline_ms: 10_000,
            read_deadline_ms: 5_000,
            room_deadline_ms: 10_000,
            call_deadline_ms: 2_000,
            hedge_ms: 100,
            group_timer_ms: 200,
            stream_bytes: 2 << 20,
            in_flight_bytes: 32 << 20,
            dirty_bytes: 96 << 20,
            replay_bytes: 64 << 20,
            append_window: 3,
            beat_ms: 1_000,
            lease_ms: 3_000,
            holder_watch_ms: 5_000,
            probe_first_ms: 50,
            probe_longest_ms: 1_000,
            tombstones_max: 10_000_000,
            strike_after_ms: 600_000,
            refresh_interval_s: 60,
            scrub_bytes_per_refresh: 256 << 20,
            refill_bytes_per_s: 400 << 20,
            refill_busy_bytes_per_s: 32 << 20,
            copy_page_bytes: 4 << 20,
            check_behind_bytes_per_s: 16 << 20,
            repair_queue: 4_096,
        }
    }
}

impl Limits {
    /// Relations between limits without which a mount could not work.
    ///
    /// # Errors
    /// Which keys do not go together, and why.
    pub fn check(&self) -> Result<(), String> {
        let (lease, beat) = (self.lease_ms, self.beat_ms);
        if lease < beat.saturating_mul(LEASE_BEATS_MIN) {
            return Err(format!(
                "limits.lease_ms = {lease} is less than {LEASE_BEATS_MIN} times limits.beat_ms = {beat}: \
                 between two beats a mount at rest would take the banks for gone and refuse syncs"
            ));
        }
        Ok(())
    }

    /// [`Limits::sync_deadline_ms`].
    #[must_use]
    pub fn sync_deadline(&self) -> Duration {
        Duration::from_millis(self.sync_deadline_ms)
    }
    /// [`Limits::read_deadline_ms`].
    #[must_use]
    pub fn read_deadline(&self) -> Duration {
        Duration::from_millis(self.read_deadline_ms)
    }
    /// [`Limits::room_deadline_ms`].
    #[must_use]
    pub fn room_deadline(&self) -> Duration {
        Duration::from_millis(self.room_deadline_ms)
    }
    /// [`Limits::strike_after_ms`].
    #[must_use]
    pub fn strike_after(&self) -> Duration {
        Duration::from_millis(self.strike_after_ms)
    }
    /// [`Limits::lease_ms`].
    #[must_use]
    pub fn lease(&self) -> Duration {
        Duration::from_millis(self.lease_ms)
    }
    /// [`Limits::call_deadline_ms`].
    #[must_use]
    pub fn call_deadline(&self) -> Duration {
        Duration::from_millis(self.call_deadline_ms)
    }
    /// Deadline for a message that makes a node work through bulk (delta, install, verify, join).
    #[must_use]
    pub fn bulk_deadline(&self) -> Duration {
        self.call_deadline() * 10
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_outlasts_its_beats() {
        let limits = |beat_ms, lease_ms| Limits { beat_ms, lease_ms, ..Limits::default() };
        assert_eq!(Limits::default().check(), Ok(()));
        assert_eq!(limits(100, 300).check(), Ok(()));
        for (beat, lease) in [(1_000, 1), (100_000, 3_000), (100, 299), (u64::MAX, 3_000)] {
            let why = limits(beat, lease).check().unwrap_err();
            assert!(why.contains("limits.lease_ms") && why.contains("limits.beat_ms"), "{why}");
        }
    }
}
