//! One operation's view of the state: reads through its own changes and the caches, collects
//! changes, and either commits them all as one atomic group or leaves no trace.

use crate::dead::DeadSet;
use crate::errno::FsError;
use crate::filesystem::{Attr, Ino, Kind, Timespec};
use crate::key::{ino_of, slot_of};
use crate::record::{Dirent, Inode};
use crate::state::{Geometry, Refs, State, XattrMap};
use bytes::Bytes;
use std::sync::Arc;

mod commit;
mod file;

pub(crate) use file::{FileEdit, Held};

/// What an operation needs and the caches do not have.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Miss {
    Inodes(Vec<Ino>),
    /// An inode that a lookup in `dir` needs, and others that may be looked up next.
    Lookup {
        dir: Ino,
        ino: Ino,
        beside: Vec<Ino>,
    },
    Dirent {
        dir: Ino,
        entries: u64,
        hash: u64,
        name: Vec<u8>,
    },
    /// Names of a directory from a hash on.
    DirPage {
        dir: Ino,
        from: u64,
    },
    Blocks {
        ino: Ino,
        blocks: Vec<u64>,
    },
    Xattrs(Ino),
    /// Too many dead ranges: reclaim some first.
    Reclaim(Ino),
}

/// Why an operation did not complete. It has changed nothing.
#[derive(Debug)]
pub(crate) enum Stop {
    Miss(Miss),
    Fail(FsError),
}

impl From<FsError> for Stop {
    fn from(e: FsError) -> Self {
        Stop::Fail(e)
    }
}

impl From<Miss> for Stop {
    fn from(m: Miss) -> Self {
        Stop::Miss(m)
    }
}

/// Result of an operation.
pub(crate) type Done<T> = Result<T, Stop>;

/// Ends an operation with an errno.
pub(crate) fn fail<T>(errno: i32) -> Done<T> {
    Err(Stop::Fail(FsError::new(errno)))
}

/// Directory, hash, name, and where it leads from now on.
type NameChange = (Ino, u64, Box<[u8]>, Option<Dirent>);

struct BlockChange {
    ino: Ino,
    block: u64,
    value: Bytes,
    /// Never had a record before.
    fresh: bool,
    /// Not worth a place in the cache.
    forget: bool,
}

struct XattrChange {
    ino: Ino,
    name: Vec<u8>,
    value: Option<Bytes>,
}

/// See the module.
pub(crate) struct Txn<'a> {
    pub(crate) st: &'a mut State,
    pub(crate) geo: &'a Geometry,
    /// The present, the same for all of the operation.
    pub(crate) now: Timespec,
    /// The last change of an inode is the one; `bool` = made here.
    inodes: Vec<(Ino, Option<Inode>, bool)>,
    dirents: Vec<NameChange>,
    blocks: Vec<BlockChange>,
    /// `blocks` is sorted.
    ascending: bool,
    xattrs: Vec<XattrChange>,
    xattr_maps: Vec<(Ino, Arc<XattrMap>)>,
    /// `bool` = a range was added.
    deads: Vec<(Ino, DeadSet, bool)>,
    /// `true` = becomes an orphan, `false` = is one no more.
    orphans: Vec<(Ino, bool)>,
    next_ino: u64,
    lookups: Vec<Ino>,
    open: Option<(Ino, u64)>,
}

impl<'a> Txn<'a> {
    pub(crate) fn new(st: &'a mut State, geo: &'a Geometry, now: Timespec) -> Self {
        let next_ino = st.next_ino;
        Self {
            st,
            geo,
            now,
            inodes: Vec::new(),
            dirents: Vec::new(),
            blocks: Vec::new(),
            ascending: true,
            xattrs: Vec::new(),
            xattr_maps: Vec::new(),
            deads: Vec::new(),
            orphans: Vec::new(),
            next_ino,
            lookups: Vec::new(),
            open: None,
        }
    }

    // ---- inodes

    /// `Ok(None)` = does not exist.
    pub(crate) fn inode_if_any(&mut self, ino: Ino) -> Done<Option<Inode>> {
        if let Some((_, inode, _)) = self.inodes.iter().rev().find(|(i, ..)| *i == ino) {
            return Ok(inode.clone());
        }
        match self.st.inodes.get(&ino) {
            Some(found) => Ok(found.clone()),
            None => Err(Miss::Inodes(vec![ino]).into()),
        }
    }

    /// An inode, or `ESTALE`: the kernel then looks its name up again.
    pub(crate) fn inode(&mut self, ino: Ino) -> Done<Inode> {
        match self.inode_if_any(ino)? {
            Some(inode) => Ok(inode),
            None => fail(libc::ESTALE),
        }
    }

    /// The inode that a name leads to.
    pub(crate) fn inode_of(&mut self, dirent: Dirent) -> Done<Inode> {
        match self.inode_if_any(dirent.ino)? {
            Some(inode) => Ok(inode),
            None => {
                Err(FsError::corrupt(format!("a name without its inode {}", dirent.ino)).into())
            }
        }
    }

    pub(crate) fn directory(&mut self, ino: Ino) -> Done<Inode> {
        let inode = self.inode(ino)?;
        if inode.kind == Kind::Directory { Ok(inode) } else { fail(libc::ENOTDIR) }
    }

    pub(crate) fn put_inode(&mut self, ino: Ino, inode: Inode) {
        match self.inodes.iter_mut().find(|(i, ..)| *i == ino) {
            Some((_, slot, _)) => *slot = Some(inode),
            None => self.inodes.push((ino, Some(inode), false)),
        }
    }

    /// A new inode in a slot; not put yet.
    pub(crate) fn new_ino(&mut self, slot: Option<u8>) -> Ino {
        let counter = self.next_ino;
        self.next_ino += 1;
        // Directories spread: consecutive numbers give well mixed slots.
        ino_of(counter, slot.unwrap_or_else(|| (crate::key::mix(counter) >> 32) as u8))
    }

    pub(crate) fn make_inode(&mut self, ino: Ino, inode: Inode) {
        self.inodes.push((ino, Some(inode), true));
    }

    pub(crate) fn slot(dir: Ino) -> u8 {
        slot_of(dir)
    }

    pub(crate) fn attr(&self, ino: Ino, inode: &Inode) -> Attr {
        inode.attr(ino, self.geo.block_size)
    }

    pub(crate) fn refs(&self, ino: Ino) -> Refs {
        self.st.refs.get(&ino).copied().unwrap_or_default()
    }

    /// The kernel will hold one reference more.
    pub(crate) fn count_lookup(&mut self, ino: Ino) {
        self.lookups.push(ino);
    }

    /// Opens a handle at commit; its number.
    pub(crate) fn open_handle(&mut self, ino: Ino) -> u64 {
        let handle = self.st.next_handle;
        self.open = Some((ino, handle));
        handle
    }

    /// Deletes an inode's record now, for good; its last attributes stay for the kernel as long as
    /// it refers to it.
    pub(crate) fn delete_inode(&mut self, ino: Ino) {
        match self.inodes.iter_mut().find(|(i, ..)| *i == ino) {
            Some((_, slot, _)) => *slot = None,
            None => self.inodes.push((ino, None, false)),
        }
    }

    pub(crate) fn set_orphan(&mut self, ino: Ino, orphan: bool) {
        self.orphans.push((ino, orphan));
    }

    // ---- names

    /// What a name leads to; `dir` must be a directory whose inode is cached.
    pub(crate) fn dirent(&mut self, dir: Ino, name: &[u8]) -> Done<Option<Dirent>> {
        let own = self.dirents.iter().rev().find(|(d, _, n, _)| *d == dir && **n == *name);
        if let Some((.., dirent)) = own {
            return Ok(*dirent);
        }
        let Some(Some(Inode { size: entries, .. })) = self.st.inodes.peek(&dir) else {
            // Made in this very operation: it has no other names than those above.
            return if self.inodes.iter().any(|(i, _, made)| *i == dir && *made) {
                Ok(None)
            } else {
                Err(Miss::Inodes(vec![dir]).into())
            };
        };
        let entries = *entries;
        let hash = self.geo.names.hash(name);
        match self.st.dirs.get(dir) {
            Some(cache) => {
                if let Some(known) = cache.find(hash, name) {
                    return Ok(known);
                }
                if cache.known_to(hash, entries).is_some() {
                    return Ok(None);
                }
            }
            None if entries == 0 => return Ok(None),
            None => {}
        }
        Err(Miss::Dirent { dir, entries, hash, name: name.to_vec() }.into())
    }

    /// The inode of a name that was looked up. One that has to be loaded brings others of its
    /// directory along.
    pub(crate) fn looked_up(&mut self, dir: Ino, name: &[u8], dirent: Dirent) -> Done<Inode> {
        let hash = self.geo.names.hash(name);
        let State { dirs, inodes, .. } = &mut *self.st;
        // Of one shard only: another may not answer.
        let keys = self.geo.keys;
        let shard = keys.shard_of_ino(dirent.ino);
        let missing = |ino| keys.shard_of_ino(ino) == shard && inodes.peek(&ino).is_none();
        let beside = dirs.looked(dir, hash, missing, dirent.ino);
        match beside.is_empty() {
            true => self.inode_of(dirent),
            false => Err(Miss::Lookup { dir, ino: dirent.ino, beside }.into()),
        }
    }

    /// A name that must be there.
    pub(crate) fn existing(&mut self, dir: Ino, name: &[u8]) -> Done<Dirent> {
        match self.dirent(dir, name)? {
            Some(dirent) => Ok(dirent),
            None => fail(libc::ENOENT),
        }
    }

    /// Sets what a name leads to and keeps its directory true: number of entries, of
    /// subdirectories, times. `old` is what [`Txn::dirent`] said.
    pub(crate) fn set_dirent(
        &mut self,
        dir: Ino,
        name: &[u8],
        old: Option<Dirent>,
        new: Option<Dirent>,
    ) -> Done<()> {
        let is_dir = |d: Option<Dirent>| u32::from(d.is_some_and(|d| d.kind == Kind::Directory));
        let mut inode = self.directory(dir)?;
        inode.size = inode.size + u64::from(new.is_some()) - u64::from(old.is_some());
        inode.nlink = inode.nlink + is_dir(new) - is_dir(old);
        inode.mtime = self.now;
        inode.ctime = self.now;
        self.put_inode(dir, inode);
        let hash = self.geo.names.hash(name);
        self.dirents.push((dir, hash, name.into(), new));
        Ok(())
    }

    // ---- extended attributes

    /// All of an inode's.
    pub(crate) fn xattrs(&mut self, ino: Ino, inode: &Inode) -> Done<Arc<XattrMap>> {
        if let Some((_, map)) = self.xattr_maps.iter().rev().find(|(i, _)| *i == ino) {
            return Ok(map.clone());
        }
        if inode.xattrs == 0 {
            return Ok(Arc::default());
        }
        match self.st.xattrs.get(&ino) {
            Some(map) => Ok(map.clone()),
            None => Err(Miss::Xattrs(ino).into()),
        }
    }

    /// Sets or removes one (and the inode's flag for it); the caller has loaded [`Txn::xattrs`] and puts the inode.
    pub(crate) fn set_xattr(
        &mut self,
        ino: Ino,
        inode: &mut Inode,
        name: &[u8],
        value: Option<Bytes>,
    ) -> Done<()> {
        let mut map = self.xattrs(ino, inode)?;
        let edit = Arc::make_mut(&mut map);
        let flag = crate::record::inode_flags::of_xattr(name);
        match &value {
            Some(v) => {
                inode.flags |= flag;
                edit.insert(name.to_vec(), v.clone())
            }
            None => {
                inode.flags &= !flag;
                edit.remove(name)
            }
        };
        inode.xattrs = edit.len() as u32;
        self.xattr_maps.push((ino, map));
        self.xattrs.push(XattrChange { ino, name: name.to_vec(), value });
        Ok(())
    }
}
