//! Looking into the directory of a node that is not running. Changes nothing.

use crate::disk::Disk;
use crate::engine::{Engine, Settings, survivor};
use crate::service::{
    OpenError, SEGMENT_BYTES, lock_and_load, owner_of, status_of, survivor_state,
};
use crate::state::{Loaded, State};
use crate::wire::{BankId, Key, RecordHead, Status};
use bytes::Bytes;
use std::sync::Arc;

/// An opened directory, read-only. Takes the lock, so that a running node refuses it.
pub struct Offline {
    state: State,
    engine: Engine,
    damage: Vec<String>,
}

impl Offline {
    /// Reads state and log as a starting node would, but writes nothing.
    ///
    /// # Errors
    /// [`OpenError::Locked`] when the node runs, [`OpenError::NoNode`] when there is none, and
    /// whatever the disk answers. Damage is reported by [`Offline::damage`].
    pub fn open(disk: Arc<dyn Disk>) -> Result<Self, OpenError> {
        let io = |error| OpenError::Io { what: "listing the directory".into(), error };
        if disk.list().map_err(io)?.is_empty() {
            return Err(OpenError::NoNode);
        }
        let mut damage = Vec::new();
        let state = match lock_and_load(&*disk)? {
            Loaded::UnknownFormat(file, format) => {
                return Err(OpenError::UnknownFormat { file: file.to_owned(), format });
            }
            Loaded::Good(state, wrong) => {
                damage.extend(wrong);
                *state
            }
            lost => {
                damage.push(match lost {
                    Loaded::Damaged(what) => what,
                    _ => "the state files are missing".into(),
                });
                match survivor(&*disk).map_err(io)? {
                    Some(owner) => survivor_state(owner, BankId::A, 0),
                    None if damage[0].ends_with("missing") => return Err(OpenError::NoNode),
                    None => survivor_state(None, BankId::A, 0),
                }
            }
        };
        let settings = Settings { segment_bytes: SEGMENT_BYTES, capacity_bytes: None };
        let engine = Engine::open(disk, owner_of(&state), settings, true)?;
        damage.extend(engine.damage_notes.iter().cloned());
        Ok(Self { state, engine, damage })
    }

    /// What the node would say of itself (bank and shard as its files say).
    #[must_use]
    pub fn status(&self) -> Status {
        status_of(&self.state, &self.engine)
    }

    /// What is wrong with the files, for people; empty = nothing found so far. Values are only
    /// looked at by [`Offline::verify`].
    #[must_use]
    pub fn damage(&self) -> Vec<String> {
        self.damage.clone()
    }

    /// Heads of applied records with key >= `start`, ascending, at most `limit`; tombstones too.
    #[must_use]
    pub fn keys(&self, start: &[u8], limit: usize) -> Vec<RecordHead> {
        self.engine.heads(start, limit)
    }

    /// One record: `None` = nothing; the second is its value (`None` = tombstone), or what is wrong
    /// with it.
    #[must_use]
    pub fn get(&self, key: &[u8]) -> Option<(RecordHead, Result<Option<Bytes>, String>)> {
        self.engine.get(key)
    }

    /// Re-reads records with key > `after`, about `budget_bytes`: those that do not verify and why,
    /// records and bytes read, and where to go on (`None` = through).
    #[must_use]
    pub fn verify(
        &self,
        after: &[u8],
        budget_bytes: u64,
    ) -> (Vec<(Key, String)>, u64, u64, Option<Key>) {
        self.engine.verify(after, usize::try_from(budget_bytes).unwrap_or(usize::MAX))
    }
}
