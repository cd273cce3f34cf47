//! Sidecars: what the index needs of a sealed segment, so that a start does not read the segment.
//! They are the checkpoint. One that is missing or damaged is rebuilt from its segment.

use super::chain::Place;
use super::container::{ContainerError, seal, unseal};
use super::entry::Snapshot;
use super::segment::sidecar_name;
use crate::disk::{Disk, read_file};
use crate::wire::{Digest, Key, StoreId, Version};
use bincode::{Decode, Encode};
use std::io;

pub(crate) const MAGIC: [u8; 4] = *b"TSX1";
const FILE_MAX: u64 = 1 << 30;

/// One record that was current when the sidecar was made, or a tombstone.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub(crate) struct SideRow {
    pub(crate) key: Key,
    pub(crate) version: Version,
    pub(crate) digest: Digest,
    /// Offset of the value in the segment.
    pub(crate) offset: u32,
    /// `None` = tombstone.
    pub(crate) len: Option<u32>,
}

/// A part that was pending at the end of its segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
pub(crate) struct SidePart {
    pub(crate) version: Version,
    pub(crate) predecessor: Version,
    pub(crate) place: Place,
    pub(crate) len: u32,
    pub(crate) floor: Version,
}

/// All of a sidecar. Made only when all parts of its segment, and of all segments before it, are
/// applied or void.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub(crate) struct Sidecar {
    pub(crate) store: StoreId,
    pub(crate) segment: u32,
    /// Length of the segment, bytes.
    pub(crate) segment_len: u64,
    /// State at the end of the segment, when no later segment says it (after a clean shutdown).
    pub(crate) end: Option<Snapshot>,
    /// Parts that were pending at the end of the segment: the position goes on over them.
    pub(crate) parts: Vec<SidePart>,
    /// Highest ordinal in the segment.
    pub(crate) ordinal: u64,
    pub(crate) rows: Vec<SideRow>,
}

impl Sidecar {
    /// Bytes of tombstones: they stay as long as there are older segments.
    pub(crate) fn held(&self) -> u64 {
        self.rows.iter().filter(|r| r.len.is_none()).map(|r| 40 + r.key.len() as u64).sum()
    }

    pub(crate) fn save(&self, disk: &dyn Disk) -> io::Result<()> {
        disk.replace(&sidecar_name(self.segment), &seal(MAGIC, self))
    }

    /// `Ok(None)` = there is none. `Err` = it cannot be used, and why.
    pub(crate) fn load(
        disk: &dyn Disk,
        store: StoreId,
        segment: u32,
    ) -> Result<Option<Self>, String> {
        let bytes = match read_file(disk, &sidecar_name(segment), FILE_MAX) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e.to_string()),
        };
        let sidecar: Self = unseal(MAGIC, &bytes).map_err(|e| match e {
            ContainerError::Damaged(what) => format!("damaged ({what})"),
            ContainerError::UnknownFormat(n) => format!("format {n} is unknown"),
        })?;
        if sidecar.store != store || sidecar.segment != segment {
            return Err("of another store or segment".into());
        }
        Ok(Some(sidecar))
    }
}
