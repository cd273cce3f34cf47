//! The edge between the filesystem and replication: an ordered set of keys, written in atomic
//! operations, read as if it were local. [`crate::Replicated`] is the real one,
//! [`crate::memory::MemoryVolume`] the executable specification.

use bytes::Bytes;
use futures_util::future::BoxFuture;
use std::time::Duration;
pub use storenode::wire::{Key, Version, VolumeId};

/// One put or delete.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Op {
    /// Shard of the key; always the same for one key.
    pub shard: u16,
    /// The key.
    pub key: Key,
    /// What happens to it.
    pub change: Change,
}

/// What an [`Op`] does.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// The new value.
    Put(Bytes),
    /// Like `Put`, and the caller knows that the key never existed before (on any bank): a later
    /// `Delete` in the same group then leaves nothing to write.
    PutNew(Bytes),
    /// Remove the key; removing what is not there is fine.
    Delete,
    /// Take a put of this key that stands in the *same, still open* group out of it, if there is
    /// one; no effect otherwise (rule 13: blocks under a trim mark of the same group).
    Retract,
}

/// What went wrong, by what the caller can do.
#[derive(Clone, Debug, thiserror::Error)]
pub enum VolumeError {
    /// Not enough banks answered in time; may work later.
    #[error("not enough banks: {0}")]
    Unavailable(String),
    /// Nothing whole is left of a record, or absence could not be shown; repair may bring it back.
    #[error("damaged beyond what is left: {0}")]
    Damaged(String),
    /// Another mount took the volume over: for good.
    #[error("this mount was fenced: {0}")]
    Fenced(String),
    /// The banks are full.
    #[error("no space left on the banks")]
    NoSpace,
    /// This mount only reads; another one writes.
    #[error("this mount reads beside the one that writes: it changes nothing")]
    ReadOnly,
    /// The operation does not fit one group.
    #[error("operation too large for one group")]
    TooLarge,
}

/// Result of this edge.
pub type Result<T> = std::result::Result<T, VolumeError>;

/// A value and the version it was written with: the group it joined (rule 13 compares the version of
/// a block with that of a trim mark). Operations of one group have equal versions.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stored {
    /// Position of its group.
    pub version: Version,
    /// The bytes.
    pub value: Bytes,
}

/// A page of a scan, ascending by key.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// Keys and values.
    pub records: Vec<(Key, Stored)>,
    /// Go on with this as `start`; `None` = that was all.
    pub next: Option<Key>,
}

/// Sizes for `statfs`; see [`Volume::space`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct VolumeSpace {
    /// Total.
    pub capacity_bytes: u64,
    /// Free for new data.
    pub free_bytes: u64,
    /// Live records.
    pub records: u64,
}

/// Proof that everything submitted before the sync began is durable on two banks.
#[derive(Debug)]
pub struct SyncReceipt(pub(crate) ());

/// A replicated, ordered key-value space with one writer.
///
/// Reads see all submitted operations at once (they are answered from memory until committed).
/// Operations become durable in the order of [`Volume::submit`]: after a crash the content equals
/// some prefix of them, not older than the last [`Volume::sync`].
pub trait Volume: Send + Sync + 'static {
    /// Identity of the volume.
    fn id(&self) -> VolumeId;
    /// Number of shards, at least 1; fixed for the life of the volume.
    fn shards(&self) -> u16;
    /// Epoch of this mount: larger than that of any earlier mount.
    fn epoch(&self) -> u64;

    /// `None`: all changes come from this mount. Else others write, and the number grows whenever something
    /// of theirs can be seen that could not be before.
    fn news(&self) -> Option<u64> {
        None
    }

    /// A request has come, whether or not it needs the volume: copies go slower for a while.
    fn somebody_asks(&self) {}

    /// Joins one atomic operation to the open group. Waits for nothing; callers that hold no lock
    /// call [`Volume::room`] before, so that memory stays bounded. All or none of `ops` is kept.
    ///
    /// # Errors
    /// `Fenced`, or `TooLarge` (over 16 MiB or 16,384 records).
    /// Returns the version that all of them get.
    fn submit(&self, ops: Vec<Op>) -> Result<Version>;

    /// What this mount has submitted and not yet settled under a key: `Some(None)` = deleted. Never
    /// waits.
    fn pending(&self, key: &[u8]) -> Option<Option<Stored>>;

    /// Waits until there is room for `bytes` more of dirty data (bounded by the write deadline).
    fn room(&self, bytes: usize) -> BoxFuture<'_, Result<()>>;

    /// Fast test for [`Volume::room`]: true = no need to wait.
    fn has_room(&self, bytes: usize) -> bool;

    /// Values of keys of any shards, in order; `None` = not there.
    fn get(&self, keys: Vec<(u16, Key)>) -> BoxFuture<'_, Result<Vec<Option<Stored>>>>;

    /// Live records of one shard with `start <= key < end` (`end` empty = no end), ascending: a page
    /// of at most `limit` settled ones and about 4 MiB, with what this mount has submitted since laid
    /// over it. So a page may be longer, and one that is empty need not be the last: `next` tells.
    fn scan(&self, shard: u16, start: Key, end: Key, limit: usize) -> BoxFuture<'_, Result<Page>>;

    /// Closes the open group and waits until all submitted before the call is durable on two banks.
    ///
    /// # Errors
    /// `Unavailable` after the sync deadline: *not known to be durable*; it may still commit.
    fn sync(&self) -> BoxFuture<'_, Result<SyncReceipt>>;

    /// Capacity and free space: in each shard of the node with the second most free space (two must
    /// hold everything), of these the least, times the number of shards.
    fn space(&self) -> BoxFuture<'_, Result<VolumeSpace>>;

    /// Still the holder? `Err(Fenced)` for good when not.
    fn alive(&self) -> Result<()>;

    /// Longest time a call may take, for handlers that need a bound.
    fn deadline(&self) -> Duration;
}
