//! Settings, errors of a start, counters.

use crate::engine::Settings;
use crate::wire::{BankId, StoreId};

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

    pub(super) fn settings(&self) -> Settings {
        Settings { segment_bytes: self.segment_bytes, capacity_bytes: self.capacity_bytes }
    }

    pub(super) fn new_store(&self, old: StoreId, sequence: u64) -> StoreId {
        let Some(seed) = self.seed else { return StoreId(rand::random()) };
        let mut h = blake3::Hasher::new();
        h.update(&seed.to_le_bytes()).update(&old.0).update(&sequence.to_le_bytes());
        h.update(&[self.bank.index() as u8]).update(&self.shard.to_le_bytes());
        let mut id = StoreId::ZERO;
        id.0.copy_from_slice(&h.finalize().as_bytes()[..16]);
        id
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
    /// Bytes written to the log, compaction included.
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
