//! A node without its network: refusals, roles and the protocol's messages over one engine.

use crate::disk::Disk;
use crate::wire::{BankId, Envelope, Fault, NodeError, Reply, Request, Status, StoreId, VolumeId};
use bytes::Bytes;
use std::sync::Arc;
use std::time::Duration;

/// Size of a log segment unless the configuration says otherwise, bytes.
pub const SEGMENT_BYTES: u64 = 64 << 20;

/// How a node is started.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// Bank it serves.
    pub bank: BankId,
    /// Shard it serves.
    pub shard: u16,
    /// Use at most so many bytes of the disk; `None` = all of it.
    pub capacity_bytes: Option<u64>,
    /// Obey `inject`.
    pub allow_faults: bool,
    /// Size of a log segment, bytes.
    pub segment_bytes: u64,
    /// Simulations: store ids are drawn from this seed instead of the system's randomness.
    pub seed: Option<u64>,
}

impl NodeConfig {
    /// The usual settings.
    #[must_use]
    pub fn new(bank: BankId, shard: u16) -> Self {
        Self {
            bank,
            shard,
            capacity_bytes: None,
            allow_faults: false,
            segment_bytes: SEGMENT_BYTES,
            seed: None,
        }
    }
}

/// Why a node cannot start. Damage inside the directory is not among these: such a node starts,
/// says so in its status, and does not vote.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process serves this directory.
    #[error("another process is using this directory")]
    Locked,
    /// The directory belongs to another bank or shard.
    #[error("this directory belongs to bank {bank} shard {shard}: check --bank, --shard and --dir")]
    WrongPlace {
        /// Its bank.
        bank: BankId,
        /// Its shard.
        shard: u16,
    },
    /// Written by a newer program.
    #[error("{file} has format {format}, which this program does not know: update it")]
    UnknownFormat {
        /// Which file.
        file: String,
        /// Its format.
        format: u16,
    },
    /// The disk answered an error.
    #[error("{what}: {error}")]
    Io {
        /// What was tried.
        what: String,
        /// The error.
        error: std::io::Error,
    },
    /// The directory holds no node.
    #[error("no storage node lives in this directory")]
    NoNode,
}

/// Counters since the start, for `/metrics`; all only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Metrics {
    /// Requests answered, refusals included.
    pub requests: u64,
    /// Requests refused.
    pub refused: u64,
    /// Parts stored.
    pub parts: u64,
    /// Bytes written to the log for parts, marks and installs.
    pub log_bytes_written: u64,
    /// Bytes written to the log by compaction.
    pub compaction_bytes_written: u64,
    /// Segments compacted away.
    pub segments_compacted: u64,
    /// `fdatasync` calls.
    pub syncs: u64,
    /// Time in them, microseconds.
    pub sync_micros: u64,
    /// Records read.
    pub records_read: u64,
    /// Bytes of values read.
    pub bytes_read: u64,
    /// Records found damaged.
    pub damaged_records: u64,
}

/// A node. Thread-safe; every call blocks (call it from a blocking thread).
pub struct Service {}

impl Service {
    /// Opens the node in `disk`'s directory; makes one when the directory is empty.
    ///
    /// # Errors
    /// [`OpenError`]. Damage is not an error here: see [`Status::failed`].
    pub fn open(_disk: Arc<dyn Disk>, _config: NodeConfig) -> Result<Self, OpenError> {
        Err(OpenError::NoNode)
    }

    /// Answers one message; `bulk` is its bulk, the second of the reply is the reply's bulk, piece
    /// by piece. What the reply says is durable when it returns. The token is the server's matter.
    ///
    /// # Errors
    /// [`NodeError`]: each refusal says what the caller can do.
    pub fn handle(
        &self,
        _envelope: Envelope,
        _request: Request,
        _bulk: Bytes,
    ) -> Result<(Reply, Vec<Bytes>), NodeError> {
        Err(NodeError::Bad { what: "not yet".into() })
    }

    /// What an injected [`Fault::Delay`] asks to wait before each reply (the server does it).
    #[must_use]
    pub fn reply_delay(&self) -> Duration {
        Duration::ZERO
    }

    /// Breaks something on purpose, without an envelope: for the offline command line.
    ///
    /// # Errors
    /// [`NodeError::Fault`] when faults are not allowed.
    pub fn inject(&self, _fault: Fault) -> Result<(), NodeError> {
        Err(NodeError::Bad { what: "not yet".into() })
    }

    /// As the message `status`, without an envelope.
    #[must_use]
    pub fn status(&self) -> Status {
        unimplemented!()
    }

    /// The owner calls this every 50 ms with the time since the start: writes the synced-mark of an
    /// idle log. Never does long work.
    pub fn tick(&self, _now: Duration) {}

    /// The owner calls this about once a second from a thread of its own, again at once while it
    /// answers true: sidecars, compaction. Each call is bounded to about one segment.
    pub fn maintain(&self) -> bool {
        false
    }

    /// Clean shutdown: everything durable, sidecars written. Later calls are refused.
    pub fn close(&self) {}

    /// Counters since the start.
    #[must_use]
    pub fn metrics(&self) -> Metrics {
        Metrics::default()
    }
}

/// Who lives in a directory, as its files say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// `None` while blank.
    pub volume: Option<VolumeId>,
    /// Its bank.
    pub bank: BankId,
    /// Its shard.
    pub shard: u16,
    /// Its id.
    pub store: StoreId,
}
