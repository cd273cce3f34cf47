//! Looking into the directory of a node that is not running. Changes nothing.

use crate::disk::Disk;
use crate::service::OpenError;
use crate::wire::{Key, RecordHead, Status};
use bytes::Bytes;
use std::sync::Arc;

/// An opened directory, read-only. Takes the lock, so that a running node refuses it.
pub struct Offline {}

impl Offline {
    /// Reads state and log as a starting node would, but writes nothing.
    ///
    /// # Errors
    /// [`OpenError::Locked`] when the node runs, [`OpenError::NoNode`] when there is none, and
    /// whatever the disk answers. Damage is reported by [`Offline::damage`].
    pub fn open(_disk: Arc<dyn Disk>) -> Result<Self, OpenError> {
        Err(OpenError::NoNode)
    }

    /// What the node would say of itself (bank and shard as its files say).
    #[must_use]
    pub fn status(&self) -> Status {
        unimplemented!()
    }

    /// What is wrong with the files, for people; empty = nothing found so far. Values are only
    /// looked at by [`Offline::verify`].
    #[must_use]
    pub fn damage(&self) -> Vec<String> {
        Vec::new()
    }

    /// Heads of applied records with key >= `start`, ascending, at most `limit`; tombstones too.
    #[must_use]
    pub fn keys(&self, _start: &[u8], _limit: usize) -> Vec<RecordHead> {
        Vec::new()
    }

    /// One record: `None` = nothing; the second is its value (`None` = tombstone), or what is wrong
    /// with it.
    #[must_use]
    pub fn get(&self, _key: &[u8]) -> Option<(RecordHead, Result<Option<Bytes>, String>)> {
        None
    }

    /// Re-reads records with key > `after`, about `budget_bytes`: those that do not verify and why,
    /// records and bytes read, and where to go on (`None` = through).
    #[must_use]
    pub fn verify(
        &self,
        _after: &[u8],
        _budget_bytes: u64,
    ) -> (Vec<(Key, String)>, u64, u64, Option<Key>) {
        (Vec::new(), 0, 0, None)
    }
}
