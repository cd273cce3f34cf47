//! The records under the keys, and the one codec: a version byte, then bincode (standard
//! configuration: variable-length integers, little endian). Strict: an unknown version, a short
//! record or trailing bytes are an error that names the record. Blocks and extended attributes are
//! bare bytes.

use crate::dead::DeadSet;
use crate::filesystem::{Attr, Ino, Kind, Timespec};
use bincode::{Decode, Encode};
use bytes::Bytes;

/// A record that is not what this version of the program writes.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RecordError {
    /// Written by another version.
    #[error("{what} record has version {found}, this program knows {known}")]
    Version {
        /// Which record.
        what: &'static str,
        /// Version byte found.
        found: u8,
        /// Version byte known.
        known: u8,
    },
    /// Too short, too long or nonsense.
    #[error("{what} record of {len} bytes does not decode: {why}")]
    Malformed {
        /// Which record.
        what: &'static str,
        /// Its length, bytes.
        len: usize,
        /// What the decoder says.
        why: String,
    },
}

/// A record with a version.
pub trait Record: Encode + Decode<()> {
    /// For messages.
    const NAME: &'static str;
    /// Version byte.
    const VERSION: u8 = 1;

    /// Encodes.
    fn to_bytes(&self) -> Bytes {
        let mut out = Vec::with_capacity(96);
        out.push(Self::VERSION);
        // Encoding to memory fails only if a type's own Encode does; none of ours can.
        bincode::encode_into_std_write(self, &mut out, bincode::config::standard())
            .expect("records encode to memory");
        out.into()
    }

    /// Decodes, exactly.
    ///
    /// # Errors
    /// [`RecordError`].
    fn from_bytes(bytes: &[u8]) -> Result<Self, RecordError> {
        let malformed =
            |why: String| RecordError::Malformed { what: Self::NAME, len: bytes.len(), why };
        let (&version, body) = bytes.split_first().ok_or_else(|| malformed("empty".into()))?;
        if version != Self::VERSION {
            return Err(RecordError::Version {
                what: Self::NAME,
                found: version,
                known: Self::VERSION,
            });
        }
        // No honest record is longer; a damaged length must not allocate.
        let config = bincode::config::standard().with_limit::<{ 1 << 20 }>();
        let (record, used) =
            bincode::decode_from_slice(body, config).map_err(|e| malformed(e.to_string()))?;
        if used != body.len() {
            return Err(malformed(format!("{} bytes left over", body.len() - used)));
        }
        Ok(record)
    }
}

/// Bits of [`Inode::flags`].
pub mod inode_flags {
    /// Has `security.capability`, which writes must remove.
    pub const CAPABILITY: u8 = 1;
    /// Blocks were removed once, so that a block beyond the end may have existed before.
    pub const SHRUNK: u8 = 2;
    /// Has an access list (`acl.rs`), which chmod must change.
    pub const ACL: u8 = 4;
    /// A directory with a default list, which what is made in it inherits.
    pub const DEFAULT_ACL: u8 = 8;

    /// The flag that says that an attribute is there; 0 for those without.
    #[must_use]
    pub fn of_xattr(name: &[u8]) -> u8 {
        match name {
            b"security.capability" => CAPABILITY,
            crate::acl::ACCESS => ACL,
            crate::acl::DEFAULT => DEFAULT_ACL,
            _ => 0,
        }
    }

    /// Flags that belong to attributes.
    pub const XATTRS: u8 = CAPABILITY | ACL | DEFAULT_ACL;
}

/// An inode.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Inode {
    /// Type.
    pub kind: Kind,
    /// `0o7777`.
    pub perm: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Links; 0 = orphan. Directories: 2 and one per subdirectory.
    pub nlink: u32,
    /// Device number of char and block nodes.
    pub rdev: u32,
    /// Bytes; of a directory the number of its entries (so emptiness and completeness of a cache
    /// are known without looking).
    pub size: u64,
    /// Block records that count (see [`crate::dead`]).
    pub blocks: u64,
    /// Last access.
    pub atime: Timespec,
    /// Last change of content.
    pub mtime: Timespec,
    /// Last change of the inode.
    pub ctime: Timespec,
    /// Creation.
    pub btime: Timespec,
    /// Epoch of the mount that made it.
    pub generation: u64,
    /// Directories: the directory it lies in; 0 for others (they may have several).
    pub parent: Ino,
    /// Number of extended attributes.
    pub xattrs: u32,
    /// See [`inode_flags`].
    pub flags: u8,
    /// Target of a symbolic link.
    pub target: Box<[u8]>,
}

impl Record for Inode {
    const NAME: &'static str = "inode";
}

impl Inode {
    /// Number of blocks up to the end of the file.
    #[must_use]
    pub fn span(&self, block_size: u32) -> u64 {
        self.size.div_ceil(u64::from(block_size))
    }

    /// As callers see it.
    #[must_use]
    pub fn attr(&self, ino: Ino, block_size: u32) -> Attr {
        let bs = u64::from(block_size);
        // Blocks are stored without their trailing zeros, so the last one is not counted whole.
        let held = (self.blocks.saturating_mul(bs))
            .min(self.size.checked_next_multiple_of(4096).unwrap_or(u64::MAX));
        Attr {
            ino,
            generation: self.generation,
            kind: self.kind,
            perm: self.perm,
            nlink: self.nlink,
            uid: self.uid,
            gid: self.gid,
            rdev: self.rdev,
            size: if self.kind == Kind::Symlink { self.target.len() as u64 } else { self.size },
            blocks: if self.kind == Kind::File { held / 512 } else { 0 },
            blksize: block_size,
            atime: self.atime,
            mtime: self.mtime,
            ctime: self.ctime,
        }
    }
}

/// A directory entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Dirent {
    /// Inode.
    pub ino: Ino,
    /// Its type.
    pub kind: Kind,
}

impl Record for Dirent {
    const NAME: &'static str = "dirent";
}

/// An unlinked inode that is still held, or waits for reclaim.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Orphan {
    /// When its last name went.
    pub since: Timespec,
}

impl Record for Orphan {
    const NAME: &'static str = "orphan";
}

/// Inode numbers (without slot) below this may be in use.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Counter {
    /// First number that was never reserved.
    pub next: u64,
}

impl Record for Counter {
    const NAME: &'static str = "counter";
}

impl Record for DeadSet {
    const NAME: &'static str = "dead ranges";
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inode() -> Inode {
        Inode {
            kind: Kind::File,
            perm: 0o4755,
            uid: 1000,
            gid: 100_000,
            nlink: 3,
            rdev: 0,
            size: 1 << 40,
            blocks: 77,
            atime: Timespec { sec: -5, nsec: 999_999_999 },
            mtime: Timespec { sec: 1 << 33, nsec: 1 },
            ctime: Timespec::default(),
            btime: Timespec::default(),
            generation: 9,
            parent: 0,
            xattrs: 1,
            flags: 3,
            target: Box::default(),
        }
    }

    #[test]
    fn inodes_round_trip_and_are_small() {
        let bytes = inode().to_bytes();
        assert!(bytes.len() < 80, "{}", bytes.len());
        assert_eq!(Inode::from_bytes(&bytes).unwrap(), inode());
    }

    #[test]
    fn a_damaged_size_is_shown_as_it_is() {
        let attr = Inode { size: u64::MAX, blocks: u64::MAX, ..inode() }.attr(7, 65536);
        assert_eq!((attr.size, attr.blocks), (u64::MAX, u64::MAX / 512));
    }

    #[test]
    fn decoding_is_strict() {
        let good = inode().to_bytes().to_vec();
        let mut long = good.clone();
        long.push(0);
        assert!(matches!(Inode::from_bytes(&long), Err(RecordError::Malformed { .. })));
        for cut in 0..good.len() {
            assert!(Inode::from_bytes(&good[..cut]).is_err(), "cut at {cut}");
        }
        let mut other = good;
        other[0] = 2;
        let error = Inode::from_bytes(&other).unwrap_err().to_string();
        assert_eq!(error, "inode record has version 2, this program knows 1");
    }

    #[test]
    fn a_damaged_length_does_not_allocate() {
        // version, then a DeadSet that claims 2^60 ranges.
        let mut bytes = vec![1u8, 253];
        bytes.extend_from_slice(&(1u64 << 60).to_le_bytes());
        assert!(DeadSet::from_bytes(&bytes).is_err());
    }
}
