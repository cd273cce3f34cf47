//! The superblock: what a volume is, decided once by `format`.

use crate::filesystem::Timespec;
use crate::limits::{BLOCK_SIZE_MAX, BLOCK_SIZE_MIN};
use crate::record::{Record, RecordError};
use bincode::{Decode, Encode};
use voter::volume::VolumeId;

const MAGIC: [u8; 8] = *b"tercetfs";

/// What a volume is.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Superblock {
    magic: [u8; 8],
    /// Block size, bytes.
    pub block_size: u32,
    /// The volume it was made for: a superblock that strayed is refused.
    pub volume: [u8; 16],
    /// Key of the hash of names ([`crate::name::NameHasher`]).
    pub name_key: [u8; 16],
    /// When it was made.
    pub created: Timespec,
}

impl Record for Superblock {
    const NAME: &'static str = "superblock";
}

/// Whether a volume can have blocks of so many bytes.
#[must_use]
pub fn block_size_is_good(bytes: u32) -> bool {
    bytes.is_power_of_two() && (BLOCK_SIZE_MIN..=BLOCK_SIZE_MAX).contains(&bytes)
}

impl Superblock {
    /// A new one.
    #[must_use]
    pub fn new(block_size: u32, volume: VolumeId, name_key: [u8; 16], created: Timespec) -> Self {
        Self { magic: MAGIC, block_size, volume: volume.0, name_key, created }
    }

    /// Decodes and checks that it belongs to `volume`.
    ///
    /// # Errors
    /// In words, for the person who mounts.
    pub fn read(bytes: &[u8], volume: VolumeId) -> Result<Self, String> {
        let sb = Self::from_bytes(bytes).map_err(|e: RecordError| e.to_string())?;
        if sb.magic != MAGIC {
            return Err("the superblock is not of a tercet filesystem".into());
        }
        if sb.volume != volume.0 {
            let other = VolumeId(sb.volume);
            return Err(format!("the superblock belongs to volume {other}, this is {volume}"));
        }
        if !block_size_is_good(sb.block_size) {
            return Err(format!("the superblock names a block size of {} bytes", sb.block_size));
        }
        Ok(sb)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_own_superblock_is_taken() {
        let id = VolumeId([7; 16]);
        let sb = Superblock::new(16384, id, [1; 16], Timespec::default());
        assert_eq!(Superblock::read(&sb.to_bytes(), id).unwrap(), sb);
        let error = Superblock::read(&sb.to_bytes(), VolumeId([8; 16])).unwrap_err();
        assert!(error.contains("belongs to volume 0707"), "{error}");
        let mut odd = sb.clone();
        odd.block_size = 5000;
        assert!(Superblock::read(&odd.to_bytes(), id).is_err());
        assert!(!block_size_is_good(2048) && !block_size_is_good(0) && block_size_is_good(4096));
    }
}
