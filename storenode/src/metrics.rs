//! Everything a node counts about its HTTP side, with unit and meaning, in one place; shown at
//! `GET /metrics` in the Prometheus text format, followed by what the store itself counts.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Names of the messages, as in their paths `/v1/<name>`.
pub const MESSAGES: [&str; 23] = [
    "status",
    "assign",
    "fence",
    "attach",
    "append",
    "read",
    "digests",
    "scan",
    "hashes",
    "bucket",
    "tail",
    "delta",
    "install",
    "remove",
    "join",
    "cursor",
    "configure",
    "admit",
    "beat",
    "verify",
    "verify_files",
    "missed",
    "inject",
];

/// Upper bounds of the latency histogram, microseconds; one more bucket takes the rest.
const LATENCY_BOUNDS_US: [u64; 10] =
    [100, 250, 500, 1_000, 2_500, 5_000, 10_000, 50_000, 250_000, 1_000_000];

#[derive(Default)]
struct PerMessage {
    ok: AtomicU64,
    refused: AtomicU64,
    micros: AtomicU64,
    buckets: [AtomicU64; LATENCY_BOUNDS_US.len() + 1],
}

/// Counters of one server. All are monotonic but the two gauges.
#[derive(Default)]
pub struct HttpMetrics {
    messages: [PerMessage; MESSAGES.len()],
    /// Requests without the token.
    pub unauthorized: AtomicU64,
    /// Bodies that were no frame, of no known length, too large, late or cut short.
    pub malformed: AtomicU64,
    /// Requests that found no free place in time.
    pub overloaded: AtomicU64,
    /// Requests whose handling panicked: a bug, and the node lived on.
    pub panics: AtomicU64,
    /// Bytes of request bodies received.
    pub received_bytes: AtomicU64,
    /// Bytes of reply bodies handed to the network.
    pub sent_bytes: AtomicU64,
    /// Connections accepted.
    pub accepted: AtomicU64,
    /// Gauge: open connections.
    pub connections: AtomicU64,
    /// Gauge: requests being handled.
    pub in_flight: AtomicU64,
}

impl HttpMetrics {
    /// Records one answered message; `None` for a name that is no message.
    pub fn answered(&self, message: Option<usize>, ok: bool, took: Duration) {
        let Some(m) = message.and_then(|i| self.messages.get(i)) else { return };
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = LATENCY_BOUNDS_US.partition_point(|bound| *bound < micros);
        (if ok { &m.ok } else { &m.refused }).fetch_add(1, Relaxed);
        m.micros.fetch_add(micros, Relaxed);
        m.buckets[bucket].fetch_add(1, Relaxed);
    }

    /// The Prometheus text.
    #[must_use]
    pub fn render(&self) -> String {
        let mut out = String::with_capacity(8 << 10);
        // Writing to a String cannot fail.
        let _ = self.write(&mut out);
        out
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        let simple = [
            ("unauthorized_total", "counter", "Requests without the token", &self.unauthorized),
            ("malformed_total", "counter", "Bodies that were no whole frame", &self.malformed),
            ("overloaded_total", "counter", "Requests that found no place", &self.overloaded),
            ("panics_total", "counter", "Requests whose handling panicked", &self.panics),
            ("received_bytes_total", "counter", "Bytes of request bodies", &self.received_bytes),
            ("sent_bytes_total", "counter", "Bytes of reply bodies", &self.sent_bytes),
            ("accepted_total", "counter", "Connections accepted", &self.accepted),
            ("connections", "gauge", "Open connections", &self.connections),
            ("in_flight", "gauge", "Requests being handled", &self.in_flight),
        ];
        for (name, kind, help, value) in simple {
            writeln!(out, "# HELP storenode_http_{name} {help}.")?;
            writeln!(out, "# TYPE storenode_http_{name} {kind}")?;
            writeln!(out, "storenode_http_{name} {}", value.load(Relaxed))?;
        }
        writeln!(out, "# HELP storenode_messages_total Messages answered, by name and outcome.")?;
        writeln!(out, "# TYPE storenode_messages_total counter")?;
        for (name, m) in self.seen() {
            for (outcome, n) in [("ok", &m.ok), ("refused", &m.refused)] {
                writeln!(
                    out,
                    "storenode_messages_total{{message=\"{name}\",outcome=\"{outcome}\"}} {}",
                    n.load(Relaxed)
                )?;
            }
        }
        let histogram = "storenode_message_seconds";
        writeln!(out, "# HELP {histogram} From the whole request to the reply, seconds.")?;
        writeln!(out, "# TYPE {histogram} histogram")?;
        for (name, m) in self.seen() {
            let mut total = 0;
            for (i, bucket) in m.buckets.iter().enumerate() {
                total += bucket.load(Relaxed);
                let bound = match LATENCY_BOUNDS_US.get(i) {
                    Some(us) => format!("{}", *us as f64 / 1e6),
                    None => "+Inf".into(),
                };
                writeln!(out, "{histogram}_bucket{{message=\"{name}\",le=\"{bound}\"}} {total}")?;
            }
            let seconds = m.micros.load(Relaxed) as f64 / 1e6;
            writeln!(out, "{histogram}_sum{{message=\"{name}\"}} {seconds}")?;
            writeln!(out, "{histogram}_count{{message=\"{name}\"}} {total}")?;
        }
        Ok(())
    }

    /// Messages that were answered at least once; the others would only be noise.
    fn seen(&self) -> impl Iterator<Item = (&'static str, &PerMessage)> {
        MESSAGES
            .into_iter()
            .zip(&self.messages)
            .filter(|(_, m)| m.ok.load(Relaxed) + m.refused.load(Relaxed) > 0)
    }
}

/// What the store counts and where it stands, in the same format.
#[must_use]
pub fn store_metrics(m: &crate::service::Metrics, s: &crate::wire::Status) -> String {
    let counters = [
        ("parts_total", "Parts stored", m.parts),
        ("log_bytes_total", "Bytes written for parts, marks and installs", m.log_bytes_written),
        ("compaction_bytes_total", "Bytes written by compaction", m.compaction_bytes_written),
        ("segments_compacted_total", "Segments compacted away", m.segments_compacted),
        ("syncs_total", "Calls of fdatasync", m.syncs),
        ("sync_microseconds_total", "Time in fdatasync", m.sync_micros),
        ("records_read_total", "Records read", m.records_read),
        ("value_bytes_read_total", "Bytes of values read", m.bytes_read),
        ("damaged_records_total", "Records found damaged", m.damaged_records),
    ];
    let gauges = [
        ("position_epoch", "Epoch of the contiguous durable position", s.position.position.epoch),
        ("position_seq", "Number of that group", s.position.position.seq),
        ("applied_epoch", "Epoch of the durable watermark", s.position.applied.epoch),
        ("applied_seq", "Number of that group", s.position.applied.seq),
        ("voter", "1 when the store is a voter", u64::from(s.role == crate::wire::Role::Voter)),
        ("failed", "1 when the node does not vote", u64::from(s.failed.is_some())),
        ("capacity_bytes", "Size of the disk", s.space.capacity_bytes),
        ("free_bytes", "Free for new data", s.space.free_bytes),
        ("live_bytes", "Keys and values of live records", s.space.live_bytes),
        ("log_bytes", "Size of the log", s.space.log_bytes),
        ("records", "Live records", s.space.records),
        ("tombstones", "Tombstones kept", s.space.tombstones),
        ("uptime_seconds", "Since the start", s.uptime_s),
    ];
    let mut out = String::with_capacity(4 << 10);
    for (kind, rows) in [("counter", &counters[..]), ("gauge", &gauges[..])] {
        for (name, help, value) in rows {
            let name = format!("storenode_{name}");
            let _ = write!(out, "# HELP {name} {help}.\n# TYPE {name} {kind}\n{name} {value}\n");
        }
    }
    out
}

/// Place of a path in [`MESSAGES`].
#[must_use]
pub fn message_index(path: &str) -> Option<usize> {
    let name = path.strip_prefix("/v1/")?;
    MESSAGES.iter().position(|m| *m == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Request, Version, path_of};

    #[test]
    fn paths_are_known_and_counts_add_up() {
        let beat = Request::Beat { watermark: Version::ZERO, release: false };
        assert!(message_index(path_of(&beat)).is_some());
        assert!(message_index(path_of(&Request::Status)).is_some());
        assert_eq!(message_index("/v1/nothing"), None);

        let m = HttpMetrics::default();
        m.answered(message_index("/v1/beat"), true, Duration::from_micros(100));
        m.answered(message_index("/v1/beat"), false, Duration::from_secs(9));
        m.answered(None, true, Duration::ZERO);
        let text = m.render();
        for line in [
            "storenode_messages_total{message=\"beat\",outcome=\"ok\"} 1",
            "storenode_message_seconds_bucket{message=\"beat\",le=\"0.0001\"} 1",
            "storenode_message_seconds_bucket{message=\"beat\",le=\"1\"} 1",
            "storenode_message_seconds_bucket{message=\"beat\",le=\"+Inf\"} 2",
            "storenode_message_seconds_count{message=\"beat\"} 2",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
        }
        assert!(!text.contains("\"status\""));
    }
}
