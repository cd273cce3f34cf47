//! The fault matrix: every fault crossed with every load, with real processes and a real mount.
//!
//! [`Fault`] and [`Work`] are two lists; a cell is one of each. A row (one fault, all loads) runs on one
//! volume of its own. In a cell the load begins, the fault strikes and ends, the load goes on until every
//! replica is up to date, and stops. Then the three banks are equal, every value verifies, `tercet check`
//! is clean, and the journal that was kept outside the mount ([`crate::journal`]) says that what is there
//! is what was written. At the end of a row the volume is mounted once more with another bank dead, and all
//! of the row's journals are compared again.

mod cell;
mod fault;
mod table;
mod watch;

pub use cell::{Row, Times, await_clean};
pub use fault::Fault;
pub use table::{Cell, csv_read, csv_text, markdown};
pub use watch::Watch;

/// What goes on while a fault strikes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Work {
    /// Nothing.
    Idle,
    /// 64 KiB at a time to the end of a file, synced every MiB.
    SequentialWrite,
    /// New files of up to 9,000 bytes, every 8th synced.
    SmallFiles,
    /// Pages of a file in place, each synced.
    SyncedOverwrites,
    /// Random reads past the kernel's cache.
    Reads,
    /// Renames over each other in two directories, every 16th synced.
    RenameStorm,
    /// The bank that is struck was dead and one of its nodes returned empty: it is catching up and being
    /// refilled, while files are written.
    Repair,
    /// The mount was killed under load and is opening the volume.
    Opening,
}

impl Work {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Idle,
        Self::SequentialWrite,
        Self::SmallFiles,
        Self::SyncedOverwrites,
        Self::Reads,
        Self::RenameStorm,
        Self::Repair,
        Self::Opening,
    ];

    /// For people.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::SequentialWrite => "sequential write",
            Self::SmallFiles => "small files",
            Self::SyncedOverwrites => "synced overwrites",
            Self::Reads => "reads",
            Self::RenameStorm => "rename storm",
            Self::Repair => "repair",
            Self::Opening => "opening",
        }
    }
}
