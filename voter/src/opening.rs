//! Opening a volume: rule 5 of the protocol, as pure functions. The driver asks and tells the
//! nodes; everything that is decided is decided here.
//!
//! ```text
//!   status of all --> choose (a, b): voters per shard, next epoch, what must be refilled
//!   fence ----------> owned  (c):    does the epoch belong to us?
//!   tails ----------> decide (d, e): chain of each shard, the cut, or a refusal
//!                        |     (f):  per voter what to attach, append, catch up
//!   settled in all shards -> opening entries (g)
//!   a voter that turns up later -> late (h)
//! ```
//! The rule behind all of it: what two voters of every touched shard may hold, may have been
//! acknowledged, and is never dropped; what fewer can hold was not, and may be.

mod choose;
mod decide;

pub use choose::{Choice, Replace, ShardChoice, choose, owned};
pub use decide::{ChainView, Plan, ShardPlan, Step, decide};

use storenode::part::PartHead;
use storenode::wire::{BankId, OpeningMark, PerBank, Status, StoreId, Version, VolumeId};

/// What one fenced voter told: its status after the fence, and the heads of its tail.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fenced {
    /// Its store.
    pub store: StoreId,
    /// Contiguous and durable through here: the version of the last part of this shard that it
    /// holds without a gap.
    pub position: Version,
    /// Watermark durable in its own log.
    pub applied: Version,
    /// Highest position it ever acked.
    pub high: Version,
    /// Watermark it knows, in memory.
    pub watermark: Version,
    /// Tombstone floor.
    pub floor: Version,
    /// Marks it knows.
    pub marks: PerBank<Version>,
    /// Opening entries it knows of, settled ones included.
    pub openings: Vec<OpeningMark>,
    /// See [`Status::damaged_through`].
    pub damaged_through: Option<Version>,
    /// Heads of its pending parts, ascending; parts beyond a gap may be among them and are not
    /// counted.
    pub tail: Vec<PartHead>,
}

impl Fenced {
    /// From the status that a node gave *after* it was fenced, and its whole tail (asked for from
    /// [`Version::ZERO`], until there is no more).
    #[must_use]
    pub fn new(status: &Status, tail: Vec<PartHead>, damaged_through: Option<Version>) -> Self {
        Self {
            store: status.store,
            position: status.position.position,
            applied: status.position.applied,
            high: status.position.high,
            watermark: status.watermark,
            floor: status.floor,
            marks: status.marks,
            openings: status.openings.clone(),
            damaged_through: status.damaged_through.max(damaged_through),
            tail,
        }
    }
}

/// One shard as the opener sees it after fencing.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ShardTails {
    /// Banks whose store is a voter of this shard (struck ones are not).
    pub named: PerBank<bool>,
    /// Those of them that were fenced and whose tail was read whole.
    pub fenced: PerBank<Option<Fenced>>,
}

/// Why a volume cannot be opened. Nothing was changed except promises.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    /// No store that answered belongs to a volume.
    #[error("no volume here: {}", no_volume(*silent, *of))]
    NoVolume {
        /// Nodes that did not answer.
        silent: usize,
        /// Nodes that were asked.
        of: usize,
    },
    /// Nobody answered.
    #[error("no storage node answered: are they running?")]
    NoAnswer,
    /// Stores of several volumes, none with a majority.
    #[error("the stores belong to different volumes ({0} and {1}): check the addresses")]
    MixedVolumes(VolumeId, VolumeId),
    /// The configuration file and the volume disagree.
    #[error("the configuration names {configured} shards, the volume has {actual}")]
    WrongShape {
        /// In the file.
        configured: usize,
        /// As the store says.
        actual: u16,
    },
    /// Bank or shard differ from what the configuration says.
    #[error("the node configured as bank {bank} shard {shard} is bank {is_bank} shard {is_shard}")]
    WrongPlace {
        /// Configured.
        bank: BankId,
        /// Configured.
        shard: u16,
        /// Actual.
        is_bank: BankId,
        /// Actual.
        is_shard: u16,
    },
    /// Two addresses lead to one store: its two acks would be one copy.
    #[error("two addresses lead to the same store {store} ({first} and {second})")]
    SameStore {
        /// The store.
        store: StoreId,
        /// Bank and shard.
        first: String,
        /// Bank and shard.
        second: String,
    },
    /// Fewer than two voters of a shard can be used.
    #[error("shard {shard} needs two of its three voters, and these are missing: {missing}")]
    NotEnough {
        /// The shard.
        shard: u16,
        /// Bank and reason, for people.
        missing: String,
    },
    /// A part that may have been acknowledged is damaged, and the bank that may hold it is away.
    #[error(
        "shard {shard}: what {damaged} holds behind {behind} is damaged and may have been \
         acknowledged; {needed} must answer before the volume can be opened"
    )]
    Damaged {
        /// The shard.
        shard: u16,
        /// The last whole part.
        behind: Version,
        /// Banks with damage.
        damaged: String,
        /// Banks that are needed.
        needed: String,
    },
    /// A part that was settled is found nowhere: more than one fault.
    #[error("shard {shard}: {version} was committed and no voter that answered has it; {hint}")]
    Missing {
        /// The shard.
        shard: u16,
        /// The group, or the last one before the gap.
        version: Version,
        /// Who should be asked.
        hint: String,
    },
    /// One of the two voters that answered was struck out, and the third is away.
    #[error(
        "shard {shard}: bank {bank} was struck out: it was away too long (it stands at {applied}, deletions \
         through {floor} are forgotten); {needed} must answer before the volume can be opened"
    )]
    StruckOut {
        /// The shard.
        shard: u16,
        /// Who was struck out.
        bank: BankId,
        /// Where it stands.
        applied: Version,
        /// What it would need.
        floor: Version,
        /// Who must answer.
        needed: String,
    },
    /// What the voters say cannot be.
    #[error("the voters contradict each other: {0}")]
    Inconsistent(String),
}

fn no_volume(silent: usize, of: usize) -> String {
    if silent == 0 {
        return format!("all {of} stores are blank; run `tercet init` first");
    }
    format!(
        "the stores that answered are blank, and {silent} of {of} nodes did not answer: start those, or, for a \
         new volume, all of them, and run `tercet init`"
    )
}

fn names(banks: impl Iterator<Item = BankId>) -> String {
    let names: Vec<String> = banks.map(|b| format!("bank {b}")).collect();
    if names.is_empty() { "no bank".into() } else { names.join(" and ") }
}
