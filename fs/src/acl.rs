//! POSIX access control lists, as the kernel hands them over in extended attributes. Pure.
//!
//! The kernel enforces them (`FUSE_POSIX_ACL`); what is ours is to keep them and the permission bits
//! in step: setting a list sets the bits, chmod changes the list, and what is made in a directory
//! with a default list inherits it (then the umask does not count). A list that says no more than
//! the bits do is not stored.
//!
//! ```text
//!   version 2 u32le, then entries in order: tag u16le, permissions u16le, id u32le
//! ```

use bytes::{BufMut, Bytes, BytesMut};

/// Attribute that holds the list of an inode.
pub const ACCESS: &[u8] = b"system.posix_acl_access";
/// Attribute that holds what new nodes in a directory inherit.
pub const DEFAULT: &[u8] = b"system.posix_acl_default";

const VERSION: u32 = 2;
const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Entry {
    tag: u16,
    perm: u16,
    id: u32,
}

/// A valid list.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Acl {
    entries: Vec<Entry>,
}

impl Acl {
    /// Decodes a list; `Some(None)` = empty, which means to remove it; `None` = not valid.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Option<Self>> {
        let (version, rest) = bytes.split_first_chunk::<4>()?;
        if u32::from_le_bytes(*version) != VERSION || rest.len() % 8 != 0 {
            return None;
        }
        let entries: Vec<Entry> = rest
            .chunks_exact(8)
            .map(|e| Entry {
                tag: u16::from_le_bytes([e[0], e[1]]),
                perm: u16::from_le_bytes([e[2], e[3]]),
                id: u32::from_le_bytes([e[4], e[5], e[6], e[7]]),
            })
            .collect();
        if entries.is_empty() {
            return Some(None);
        }
        let acl = Self { entries };
        acl.is_valid().then_some(Some(acl))
    }

    fn count(&self, tag: u16) -> usize {
        self.entries.iter().filter(|e| e.tag == tag).count()
    }

    fn is_valid(&self) -> bool {
        let known = [USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER];
        let named = self.count(USER) + self.count(GROUP) > 0;
        self.entries.iter().all(|e| known.contains(&e.tag) && e.perm <= 7)
            && self.entries.is_sorted_by_key(|e| e.tag)
            && [USER_OBJ, GROUP_OBJ, OTHER].iter().all(|&tag| self.count(tag) == 1)
            && self.count(MASK) <= 1
            && (!named || self.count(MASK) == 1)
    }

    /// Encodes.
    #[must_use]
    pub fn to_bytes(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(4 + 8 * self.entries.len());
        out.put_u32_le(VERSION);
        for e in &self.entries {
            out.put_u16_le(e.tag);
            out.put_u16_le(e.perm);
            out.put_u32_le(e.id);
        }
        out.freeze()
    }

    /// It says more than permission bits can.
    #[must_use]
    pub fn is_extended(&self) -> bool {
        self.entries.iter().any(|e| matches!(e.tag, USER | GROUP | MASK))
    }

    /// The tag whose permissions are the group bits of the mode.
    fn group_tag(&self) -> u16 {
        if self.count(MASK) == 1 { MASK } else { GROUP_OBJ }
    }

    fn perm_mut(&mut self, tag: u16) -> Option<&mut u16> {
        self.entries.iter_mut().find(|e| e.tag == tag).map(|e| &mut e.perm)
    }

    /// Permission bits (`0o777`) that go with it.
    #[must_use]
    pub fn mode(&self) -> u16 {
        let perm = |tag| self.entries.iter().find(|e| e.tag == tag).map_or(0, |e| e.perm);
        perm(USER_OBJ) << 6 | perm(self.group_tag()) << 3 | perm(OTHER)
    }

    /// chmod: the list follows the bits.
    pub fn chmod(&mut self, perm: u16) {
        for (tag, bits) in [(USER_OBJ, perm >> 6), (self.group_tag(), perm >> 3), (OTHER, perm)] {
            if let Some(p) = self.perm_mut(tag) {
                *p = bits & 7;
            }
        }
    }

    /// As default list of a directory: the list of what is made there with `perm`; its
    /// [`Acl::mode`] are the bits.
    #[must_use]
    pub fn inherited(&self, perm: u16) -> Self {
        let mut acl = self.clone();
        for (tag, bits) in [(USER_OBJ, perm >> 6), (acl.group_tag(), perm >> 3), (OTHER, perm)] {
            if let Some(p) = acl.perm_mut(tag) {
                *p &= bits & 7;
            }
        }
        acl
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let mut out = VERSION.to_le_bytes().to_vec();
        for &(tag, perm, id) in entries {
            out.extend_from_slice(&tag.to_le_bytes());
            out.extend_from_slice(&perm.to_le_bytes());
            out.extend_from_slice(&id.to_le_bytes());
        }
        out
    }

    const NOBODY: u32 = u32::MAX;

    #[test]
    fn bits_and_list_follow_each_other() {
        let bytes = acl(&[
            (USER_OBJ, 7, NOBODY),
            (USER, 6, 1000),
            (GROUP_OBJ, 5, NOBODY),
            (MASK, 4, NOBODY),
            (OTHER, 1, NOBODY),
        ]);
        let mut list = Acl::parse(&bytes).unwrap().unwrap();
        assert!(list.is_extended());
        assert_eq!(list.to_bytes(), bytes);
        assert_eq!(list.mode(), 0o741);
        list.chmod(0o620);
        assert_eq!(list.mode(), 0o620);
        assert_eq!(list.entries[2].perm, 5, "the owning group keeps its own, under the mask");
        assert_eq!(list.inherited(0o464).mode(), 0o420);
    }

    #[test]
    fn a_minimal_list_is_the_bits() {
        let bytes = acl(&[(USER_OBJ, 6, NOBODY), (GROUP_OBJ, 4, NOBODY), (OTHER, 0, NOBODY)]);
        let list = Acl::parse(&bytes).unwrap().unwrap();
        assert!(!list.is_extended());
        assert_eq!(list.mode(), 0o640);
    }

    #[test]
    fn nonsense_is_refused() {
        assert_eq!(Acl::parse(&acl(&[])), Some(None));
        for bad in [
            &b"\x02\0\0"[..],
            &[1, 0, 0, 0],
            &acl(&[(USER_OBJ, 7, 0)]),
            &acl(&[(USER_OBJ, 8, 0), (GROUP_OBJ, 4, 0), (OTHER, 0, 0)]),
            &acl(&[(GROUP_OBJ, 4, 0), (USER_OBJ, 7, 0), (OTHER, 0, 0)]),
            &acl(&[(USER_OBJ, 7, 0), (USER, 7, 5), (GROUP_OBJ, 4, 0), (OTHER, 0, 0)]),
        ] {
            assert_eq!(Acl::parse(bad), None, "{bad:?}");
        }
    }
}
