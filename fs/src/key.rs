//! The one table of keys. Order-preserving, exact: what decodes encodes back to the same bytes.
//!
//! ```text
//!   kind  key                                             shard by
//!   0x01  superblock                                      0
//!   0x02  counter of inode numbers                        0
//!   0x10  inode        ino u64be                          slot of ino
//!   0x20  dirent       dir u64be, hash u64be, name        slot of dir
//!   0x30  xattr        ino u64be, name                    slot of ino
//!   0x40  block        ino u64be, block u64be             slot of (ino, block / 64)
//!   0x50  orphan       ino u64be                          slot of ino
//!   0x51  dead ranges  ino u64be                          slot of ino
//! ```
//! The slot of an inode is its lowest byte, chosen when it is made: files take their parent's (one
//! shard per create), directories spread. The first run of blocks lies with the inode, so that a
//! small file touches one shard; later runs spread.

use crate::filesystem::Ino;
use crate::limits::RUN_BLOCKS;
use voter::volume::Key;

const SUPERBLOCK: u8 = 0x01;
const COUNTER: u8 = 0x02;
const INODE: u8 = 0x10;
const DIRENT: u8 = 0x20;
const XATTR: u8 = 0x30;
pub(crate) const BLOCK: u8 = 0x40;
const ORPHAN: u8 = 0x50;
const DEAD: u8 = 0x51;

/// The root directory: number 0, slot 1.
pub const ROOT: Ino = 1;

/// A key and the shard that holds it.
pub type Place = (u16, Key);

/// A decoded key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Parsed {
    /// The superblock.
    Superblock,
    /// The counter of inode numbers.
    Counter,
    /// An inode.
    Inode(Ino),
    /// A name in a directory.
    Dirent {
        /// The directory.
        dir: Ino,
        /// [`crate::name::NameHasher`] of the name.
        hash: u64,
        /// The name.
        name: Vec<u8>,
    },
    /// An extended attribute.
    Xattr {
        /// Its inode.
        ino: Ino,
        /// Its name.
        name: Vec<u8>,
    },
    /// File data.
    Block {
        /// Its inode.
        ino: Ino,
        /// Number of the block.
        block: u64,
    },
    /// An unlinked inode that is to be reclaimed.
    Orphan(Ino),
    /// Ranges of blocks that do not count.
    Dead(Ino),
}

fn key1(kind: u8, ino: Ino, more: usize) -> Key {
    let mut k = Vec::with_capacity(9 + more);
    k.push(kind);
    k.extend_from_slice(&ino.to_be_bytes());
    k
}

/// Where keys lie in a volume of so many shards.
#[derive(Clone, Copy, Debug)]
pub struct KeySpace {
    shards: u16,
}

impl KeySpace {
    /// For a volume of `shards` (at least 1) shards.
    #[must_use]
    pub fn new(shards: u16) -> Self {
        Self { shards: shards.max(1) }
    }

    /// Number of shards.
    #[must_use]
    pub fn shards(self) -> u16 {
        self.shards
    }

    fn shard_of_slot(self, slot: u8) -> u16 {
        u16::from(slot) % self.shards
    }

    /// Shard of an inode, its names (as directory), attributes and marks.
    #[must_use]
    pub fn shard_of_ino(self, ino: Ino) -> u16 {
        self.shard_of_slot(slot_of(ino))
    }

    /// Shard of a block.
    #[must_use]
    pub fn shard_of_block(self, ino: Ino, block: u64) -> u16 {
        let run = block / RUN_BLOCKS;
        let spread = if run == 0 { 0 } else { (mix(ino ^ mix(run)) >> 56) as u8 };
        self.shard_of_slot(slot_of(ino).wrapping_add(spread))
    }

    /// The superblock.
    #[must_use]
    pub fn superblock(self) -> Place {
        (0, vec![SUPERBLOCK])
    }

    /// The counter of inode numbers.
    #[must_use]
    pub fn counter(self) -> Place {
        (0, vec![COUNTER])
    }

    /// An inode.
    #[must_use]
    pub fn inode(self, ino: Ino) -> Place {
        (self.shard_of_ino(ino), key1(INODE, ino, 0))
    }

    /// A name in a directory.
    #[must_use]
    pub fn dirent(self, dir: Ino, hash: u64, name: &[u8]) -> Place {
        let mut k = key1(DIRENT, dir, 8 + name.len());
        k.extend_from_slice(&hash.to_be_bytes());
        k.extend_from_slice(name);
        (self.shard_of_ino(dir), k)
    }

    /// An extended attribute.
    #[must_use]
    pub fn xattr(self, ino: Ino, name: &[u8]) -> Place {
        let mut k = key1(XATTR, ino, name.len());
        k.extend_from_slice(name);
        (self.shard_of_ino(ino), k)
    }

    /// A block of a file.
    #[must_use]
    pub fn block(self, ino: Ino, block: u64) -> Place {
        let mut k = key1(BLOCK, ino, 8);
        k.extend_from_slice(&block.to_be_bytes());
        (self.shard_of_block(ino, block), k)
    }

    /// An orphan.
    #[must_use]
    pub fn orphan(self, ino: Ino) -> Place {
        (self.shard_of_ino(ino), key1(ORPHAN, ino, 0))
    }

    /// The dead ranges of an inode.
    #[must_use]
    pub fn dead(self, ino: Ino) -> Place {
        (self.shard_of_ino(ino), key1(DEAD, ino, 0))
    }

    /// `(start, end)` of the names of a directory with a hash of at least `hash`.
    #[must_use]
    pub fn dirents(self, dir: Ino, hash: u64) -> (u16, Key, Key) {
        let mut start = key1(DIRENT, dir, 8);
        start.extend_from_slice(&hash.to_be_bytes());
        (self.shard_of_ino(dir), start, after(DIRENT, dir))
    }

    /// `(start, end)` of the names of the directories behind `dir` in the order of inode numbers, on its
    /// shard, up to directory `until`.
    #[must_use]
    pub fn dirents_behind(self, dir: Ino, until: Ino) -> (u16, Key, Key) {
        (self.shard_of_ino(dir), after(DIRENT, dir), key1(DIRENT, until, 0))
    }

    /// `(start, end)` of the attributes of an inode.
    #[must_use]
    pub fn xattrs(self, ino: Ino) -> (u16, Key, Key) {
        (self.shard_of_ino(ino), key1(XATTR, ino, 0), after(XATTR, ino))
    }

    /// `(start, end)` of blocks `from..to` of a file; they lie on every shard.
    #[must_use]
    pub fn blocks(self, ino: Ino, from: u64, to: u64) -> (Key, Key) {
        let at = |b: u64| {
            let mut k = key1(BLOCK, ino, 8);
            k.extend_from_slice(&b.to_be_bytes());
            k
        };
        (at(from), at(to))
    }

    /// `(start, end)` of all orphans and dead ranges of a shard.
    #[must_use]
    pub fn marks(self) -> (Key, Key) {
        (vec![ORPHAN], vec![DEAD + 1])
    }
}

fn after(kind: u8, ino: Ino) -> Key {
    match ino.checked_add(1) {
        Some(next) => key1(kind, next, 0),
        None => vec![kind + 1],
    }
}

/// The slot in an inode number.
#[must_use]
pub fn slot_of(ino: Ino) -> u8 {
    (ino & 0xff) as u8
}

/// An inode number from its counter and slot.
#[must_use]
pub fn ino_of(counter: u64, slot: u8) -> Ino {
    (counter << 8) | u64::from(slot)
}

/// Spreads neighbours (the finalizer of splitmix64).
#[must_use]
pub fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Decodes a key; `None` = not a key of this table.
#[must_use]
pub fn parse(key: &[u8]) -> Option<Parsed> {
    let (&kind, rest) = key.split_first()?;
    match (kind, rest.len()) {
        (SUPERBLOCK, 0) => return Some(Parsed::Superblock),
        (COUNTER, 0) => return Some(Parsed::Counter),
        _ => {}
    }
    let (ino, rest) = rest.split_first_chunk::<8>()?;
    let ino = u64::from_be_bytes(*ino);
    Some(match kind {
        INODE if rest.is_empty() => Parsed::Inode(ino),
        ORPHAN if rest.is_empty() => Parsed::Orphan(ino),
        DEAD if rest.is_empty() => Parsed::Dead(ino),
        XATTR if !rest.is_empty() => Parsed::Xattr { ino, name: rest.to_vec() },
        DIRENT | BLOCK => {
            let (number, rest) = rest.split_first_chunk::<8>()?;
            let number = u64::from_be_bytes(*number);
            match (kind, rest.is_empty()) {
                (BLOCK, true) => Parsed::Block { ino, block: number },
                (DIRENT, false) => Parsed::Dirent { dir: ino, hash: number, name: rest.to_vec() },
                _ => return None,
            }
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn encode(k: KeySpace, p: &Parsed) -> Key {
        match p {
            Parsed::Superblock => k.superblock(),
            Parsed::Counter => k.counter(),
            Parsed::Inode(i) => k.inode(*i),
            Parsed::Dirent { dir, hash, name } => k.dirent(*dir, *hash, name),
            Parsed::Xattr { ino, name } => k.xattr(*ino, name),
            Parsed::Block { ino, block } => k.block(*ino, *block),
            Parsed::Orphan(i) => k.orphan(*i),
            Parsed::Dead(i) => k.dead(*i),
        }
        .1
    }

    fn any_key() -> impl Strategy<Value = Parsed> {
        let name = proptest::collection::vec(any::<u8>(), 1..20);
        prop_oneof![
            Just(Parsed::Superblock),
            Just(Parsed::Counter),
            any::<u64>().prop_map(Parsed::Inode),
            any::<u64>().prop_map(Parsed::Orphan),
            any::<u64>().prop_map(Parsed::Dead),
            (any::<u64>(), any::<u64>()).prop_map(|(ino, block)| Parsed::Block { ino, block }),
            (any::<u64>(), name.clone()).prop_map(|(ino, name)| Parsed::Xattr { ino, name }),
            (any::<u64>(), any::<u64>(), name).prop_map(|(dir, hash, name)| Parsed::Dirent {
                dir,
                hash,
                name
            }),
        ]
    }

    proptest! {
        #[test]
        fn what_encodes_decodes(p in any_key()) {
            let k = KeySpace::new(3);
            prop_assert_eq!(parse(&encode(k, &p)), Some(p));
        }

        #[test]
        fn what_decodes_encodes(bytes in proptest::collection::vec(any::<u8>(), 0..30)) {
            if let Some(p) = parse(&bytes) {
                prop_assert_eq!(encode(KeySpace::new(3), &p), bytes);
            }
        }

        #[test]
        fn blocks_are_in_order_and_in_their_range(ino: u64, a: u64, b: u64) {
            let k = KeySpace::new(5);
            let (ka, kb) = (k.block(ino, a).1, k.block(ino, b).1);
            prop_assert_eq!(ka.cmp(&kb), a.cmp(&b));
            let (start, end) = k.blocks(ino, a, b);
            prop_assert_eq!(ka >= start && ka < end, a < b);
        }

        #[test]
        fn names_lie_in_the_range_of_their_directory(dir: u64, hash: u64, name in "[a-z]{1,9}") {
            let k = KeySpace::new(4);
            let (shard, key) = k.dirent(dir, hash, name.as_bytes());
            let (scanned, start, end) = k.dirents(dir, hash);
            prop_assert!(shard == scanned && key >= start && key < end);
        }
    }
}
