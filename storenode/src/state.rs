//! The small state of a node that outlives everything: who it is and whom it obeys.
//!
//! Kept twice (`state.a`, `state.b`), both replaced durably before anything is answered. So one
//! damaged copy loses nothing that was promised, and two damaged copies are not a blank node: it
//! starts, says so, and does not vote.

use crate::disk::{Disk, read_file};
use crate::engine::container::{ContainerError, seal, unseal};
use crate::wire::{BankId, Configuration, Promise, Role, StoreId, VolumeId};
use bincode::{Decode, Encode};
use std::io;

pub(crate) const MAGIC: [u8; 4] = *b"TST1";
const NAMES: [&str; 2] = ["state.a", "state.b"];
const FILE_MAX: u64 = 1 << 20;

/// What is kept.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub(crate) struct State {
    /// Grows with each save.
    pub(crate) sequence: u64,
    pub(crate) volume: Option<VolumeId>,
    pub(crate) bank: BankId,
    pub(crate) shard: u16,
    pub(crate) shards: u16,
    pub(crate) store: StoreId,
    pub(crate) role: Role,
    pub(crate) configuration: Configuration,
    pub(crate) promise: Promise,
    /// The log of an earlier store id is being removed: go on with that at the next start.
    pub(crate) wiping: bool,
}

/// What was found.
pub(crate) enum Loaded {
    Missing,
    /// The second says what was wrong with one copy.
    Good(Box<State>, Option<String>),
    Damaged(String),
    UnknownFormat(&'static str, u16),
}

impl State {
    /// Writes both copies.
    ///
    /// # Errors
    /// Whatever the disk answers. Then it is not known which state the next start finds.
    pub(crate) fn save(&mut self, disk: &dyn Disk) -> io::Result<()> {
        self.sequence += 1;
        let bytes = seal(MAGIC, self);
        NAMES.iter().try_for_each(|name| disk.replace(name, &bytes))
    }

    /// Reads both copies.
    ///
    /// # Errors
    /// Whatever the disk answers.
    pub(crate) fn load(disk: &dyn Disk) -> io::Result<Loaded> {
        let mut best: Option<Self> = None;
        let (mut missing, mut wrong) = (0, Vec::new());
        for name in NAMES {
            let bytes = match read_file(disk, name, FILE_MAX) {
                Ok(bytes) => bytes,
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    missing += 1;
                    wrong.push(format!("{name}: missing"));
                    continue;
                }
                Err(e) => return Err(e),
            };
            match unseal::<Self>(MAGIC, &bytes) {
                Ok(s) if best.as_ref().is_none_or(|b| b.sequence < s.sequence) => best = Some(s),
                Ok(_) => {}
                Err(ContainerError::UnknownFormat(n)) => return Ok(Loaded::UnknownFormat(name, n)),
                Err(ContainerError::Damaged(what)) => {
                    wrong.push(format!("{name}: damaged ({what})"));
                }
            }
        }
        Ok(match best {
            Some(s) => Loaded::Good(Box::new(s), (!wrong.is_empty()).then(|| wrong.join(", "))),
            None if missing == NAMES.len() => Loaded::Missing,
            None => Loaded::Damaged(wrong.join(", ")),
        })
    }
}
