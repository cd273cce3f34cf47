//! One operation's view of the state: reads through its own changes and the caches, collects
//! changes, and either commits them all as one atomic group or leaves no trace.

use crate::dead::{DeadSet, Under};
use crate::errno::FsError;
use crate::filesystem::{Attr, Ino, Kind, Timespec};
use crate::key::{KeySpace, ino_of, slot_of};
use crate::limits::{DEAD_RANGES_MAX, INO_CHUNK};
use crate::record::{Counter, Dirent, Inode, Orphan, Record};
use crate::state::{Changed, Geometry, Handle, Refs, State, XattrMap};
use bytes::Bytes;
use std::sync::Arc;
use voter::volume::{Change, Op, Volume};

/// What an operation needs and the caches do not have.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Miss {
    Inodes(Vec<Ino>),
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

/// What is known of a block.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Held {
    /// It counts; without trailing zeros; empty = a hole.
    Known(Bytes),
    /// Not in the caches.
    Unknown,
}

/// A regular file in the middle of a change: how it was, and how it will be.
pub(crate) struct FileEdit {
    pub(crate) ino: Ino,
    /// As it was when the operation began.
    pub(crate) base: Inode,
    /// As it will be; [`Txn::put_inode`] it at the end.
    pub(crate) inode: Inode,
    /// Number of blocks up to the end, as it was.
    span: u64,
    /// Every block up to the end has a record that counts.
    dense: bool,
    has_dead: bool,
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

    // ---- file data

    /// Begins to change (or read) a regular file.
    pub(crate) fn file(&mut self, ino: Ino) -> Done<FileEdit> {
        let inode = self.inode(ino)?;
        match inode.kind {
            Kind::File => Ok(self.edit(ino, inode)),
            Kind::Directory => fail(libc::EISDIR),
            _ => fail(libc::EINVAL),
        }
    }

    pub(crate) fn edit(&mut self, ino: Ino, inode: Inode) -> FileEdit {
        let span = inode.span(self.geo.block_size);
        let dead = self.dead(ino);
        let dense = inode.blocks == span && !dead.is_some_and(DeadSet::has_counted);
        let has_dead = dead.is_some();
        FileEdit { ino, base: inode.clone(), inode, span, dense, has_dead }
    }

    pub(crate) fn dead(&self, ino: Ino) -> Option<&DeadSet> {
        match self.deads.iter().rev().find(|(i, ..)| *i == ino) {
            Some((_, set, _)) => Some(set),
            None => self.st.trims.get(&ino).map(|t| &t.set),
        }
    }

    fn dead_mut(&mut self, ino: Ino, adding: bool) -> &mut DeadSet {
        let at = match self.deads.iter().position(|(i, ..)| *i == ino) {
            Some(at) => at,
            None => {
                let set = self.st.trims.get(&ino).map(|t| t.set.clone()).unwrap_or_default();
                self.deads.push((ino, set, false));
                self.deads.len() - 1
            }
        };
        self.deads[at].2 |= adding;
        &mut self.deads[at].1
    }

    fn under(&self, f: &FileEdit, block: u64) -> Option<Under> {
        if f.has_dead { self.dead(f.ino)?.get(block) } else { None }
    }

    fn own_block(&self, ino: Ino, block: u64) -> Option<&Bytes> {
        // Operations go upwards, so this is nearly always decided by the last one.
        let last = self.blocks.last()?;
        if self.ascending && (last.ino, last.block) < (ino, block) {
            return None;
        }
        let found = self.blocks.iter().rev().find(|c| c.ino == ino && c.block == block);
        found.map(|c| &c.value)
    }

    /// Content of a block as it counts.
    pub(crate) fn block(&mut self, f: &FileEdit, block: u64) -> Held {
        if let Some(own) = self.own_block(f.ino, block) {
            return Held::Known(own.clone());
        }
        if block >= f.span || f.base.blocks == 0 || self.under(f, block).is_some() {
            return Held::Known(Bytes::new());
        }
        match self.st.blocks.get(&(f.ino, block)) {
            Some(value) => Held::Known(value.clone()),
            None => Held::Unknown,
        }
    }

    /// Whether a block has a record that is in the inode's count; `None` = not in the caches.
    pub(crate) fn counted(&mut self, f: &FileEdit, block: u64) -> Option<bool> {
        if let Some(own) = self.own_block(f.ino, block) {
            return Some(!own.is_empty());
        }
        match self.under(f, block) {
            Some(Under::Dense | Under::Sparse) => return Some(false),
            Some(Under::Counted) if f.base.blocks == 0 => return Some(false),
            Some(Under::Counted) => {}
            None if block >= f.span || f.base.blocks == 0 => return Some(false),
            None if f.dense => return Some(true),
            None => {}
        }
        self.st.blocks.get(&(f.ino, block)).map(|value| !value.is_empty())
    }

    /// Every block up to the end has a record.
    pub(crate) fn is_dense(f: &FileEdit) -> bool {
        f.dense
    }

    /// Number of blocks up to the end, as it was.
    pub(crate) fn span(f: &FileEdit) -> u64 {
        f.span
    }

    /// Replaces a block (trimmed; empty = hole). `counted` is what [`Txn::counted`] said.
    pub(crate) fn set_block(&mut self, f: &mut FileEdit, block: u64, value: Bytes, counted: bool) {
        use crate::record::inode_flags::SHRUNK;
        let under = self.under(f, block);
        let fresh = !counted
            && under.is_none()
            && block >= f.span
            && f.base.flags & SHRUNK == 0
            && self.own_block(f.ino, block).is_none();
        match (under, value.is_empty()) {
            (None, true) => {
                if !counted {
                    return;
                }
                f.inode.blocks -= 1;
                f.inode.flags |= SHRUNK;
            }
            // A dead block is a hole already.
            (Some(_), true) => return,
            (under, false) => {
                f.inode.blocks += u64::from(!counted);
                if under.is_some() {
                    self.dead_mut(f.ino, false).remove(block, block + 1);
                }
            }
        }
        self.push_block(BlockChange { ino: f.ino, block, value, fresh, forget: false });
    }

    /// Marks blocks dead; `under` as in [`DeadSet::add`].
    pub(crate) fn add_dead(&mut self, f: &mut FileEdit, start: u64, end: u64, under: Under) {
        f.inode.flags |= crate::record::inode_flags::SHRUNK;
        self.dead_mut(f.ino, true).add(start, end, under);
        f.has_dead = true;
    }

    /// Nothing of the file counts any more: neither live blocks (the caller sees to them) nor what
    /// was dead and counted.
    pub(crate) fn uncount(&mut self, f: &mut FileEdit) {
        if f.has_dead && self.dead(f.ino).is_some_and(DeadSet::has_counted) {
            self.dead_mut(f.ino, true).uncount();
        }
        f.inode.blocks = 0;
    }

    /// Takes reclaimed blocks out of the marks, deleting records of `blocks` without regard to
    /// counts.
    pub(crate) fn reclaimed(&mut self, ino: Ino, ranges: &[(u64, u64)], blocks: &[u64]) {
        let set = self.dead_mut(ino, false);
        for &(start, end) in ranges {
            set.remove(start, end);
        }
        self.delete_blocks(ino, blocks.iter().copied());
    }

    /// Deletes block records without regard to counts and marks.
    pub(crate) fn delete_blocks(&mut self, ino: Ino, blocks: impl Iterator<Item = u64>) {
        for block in blocks {
            let value = Bytes::new();
            self.push_block(BlockChange { ino, block, value, fresh: false, forget: true });
        }
    }

    fn push_block(&mut self, change: BlockChange) {
        if let Some(last) = self.blocks.last() {
            self.ascending &= (last.ino, last.block) < (change.ino, change.block);
        }
        self.blocks.push(change);
    }

    // ---- the end

    /// Whether anything is to be written.
    fn is_read_only(&self) -> bool {
        self.inodes.is_empty()
            && self.dirents.is_empty()
            && self.blocks.is_empty()
            && self.xattrs.is_empty()
            && self.deads.is_empty()
            && self.orphans.is_empty()
    }

    /// Submits all changes as one atomic group and applies them to the caches; nothing happens if
    /// the volume refuses. The caller holds the lock: order of operations = order of groups.
    pub(crate) fn commit(mut self, volume: &dyn Volume) -> Done<()> {
        if !self.is_read_only() {
            // A mark that grew without bound would make every write carry it.
            for (ino, set, _) in &self.deads {
                let before = self.st.trims.get(ino).map_or(0, |t| t.set.ranges().len());
                if set.ranges().len() > DEAD_RANGES_MAX.max(before) {
                    return Err(Miss::Reclaim(*ino).into());
                }
            }
            let limit = match self.next_ino > self.st.ino_limit {
                true => self.next_ino + INO_CHUNK,
                false => self.st.ino_limit,
            };
            let ops = self.ops(limit);
            volume.submit(ops).map_err(FsError::from)?;
            self.st.ino_limit = limit;
            self.apply();
        }
        for ino in self.lookups {
            self.st.refs.entry(ino).or_default().lookups += 1;
        }
        if let Some((ino, handle)) = self.open {
            self.st.next_handle = handle + 1;
            self.st.refs.entry(ino).or_default().opens += 1;
            let fresh = Handle { ino, next: 0, window: 0, ahead: 0 };
            self.st.handles.insert(handle, fresh);
        }
        Ok(())
    }

    fn ops(&self, ino_limit: u64) -> Vec<Op> {
        fn op((shard, key): (u16, Vec<u8>), change: Change) -> Op {
            Op { shard, key, change }
        }
        fn put_or_delete(value: Option<Bytes>) -> Change {
            value.map_or(Change::Delete, Change::Put)
        }
        let keys: KeySpace = self.geo.keys;
        let mut ops = Vec::with_capacity(
            self.inodes.len()
                + self.dirents.len()
                + self.blocks.len()
                + self.xattrs.len()
                + self.deads.len()
                + self.orphans.len()
                + 1,
        );
        if ino_limit > self.st.ino_limit {
            // Reserved by the operation that uses the first of them.
            ops.push(op(keys.counter(), Change::Put(Counter { next: ino_limit }.to_bytes())));
        }
        for (ino, inode, made) in &self.inodes {
            let change = match (inode, made) {
                (Some(inode), true) => Change::PutNew(inode.to_bytes()),
                (Some(inode), false) => Change::Put(inode.to_bytes()),
                (None, _) => Change::Delete,
            };
            ops.push(op(keys.inode(*ino), change));
        }
        for (dir, hash, name, dirent) in &self.dirents {
            let value = dirent.map(|d| d.to_bytes());
            ops.push(op(keys.dirent(*dir, *hash, name), put_or_delete(value)));
        }
        for c in &self.blocks {
            let change = match (c.value.is_empty(), c.fresh) {
                (true, _) => Change::Delete,
                (false, true) => Change::PutNew(c.value.clone()),
                (false, false) => Change::Put(c.value.clone()),
            };
            ops.push(op(keys.block(c.ino, c.block), change));
        }
        for c in &self.xattrs {
            ops.push(op(keys.xattr(c.ino, &c.name), put_or_delete(c.value.clone())));
        }
        for (ino, set, _) in &self.deads {
            let value = (!set.is_empty()).then(|| set.to_bytes());
            ops.push(op(keys.dead(*ino), put_or_delete(value)));
        }
        for (ino, orphan) in &self.orphans {
            let value = orphan.then(|| Orphan { since: self.now }.to_bytes());
            ops.push(op(keys.orphan(*ino), put_or_delete(value)));
        }
        ops
    }

    fn apply(&mut self) {
        let st = &mut *self.st;
        st.next_ino = self.next_ino;
        for (ino, inode, _) in self.inodes.drain(..) {
            st.log.note(Changed::Inode(ino));
            if inode.is_none() {
                let last = st.inodes.peek(&ino).cloned().flatten();
                if let Some(last) = last.filter(|_| st.refs.contains_key(&ino)) {
                    st.ghosts.insert(ino, Inode { nlink: 0, ctime: self.now, ..last });
                }
                st.dirs.remove(ino);
                st.xattrs.remove(&ino);
            }
            st.inodes.insert(ino, inode, 1);
        }
        for (dir, hash, name, dirent) in self.dirents.drain(..) {
            st.log.note(Changed::Dirent(dir, hash));
            st.dirs.set(dir, hash, &name, dirent);
        }
        for c in self.blocks.drain(..) {
            st.log.note(Changed::Block(c.ino, c.block));
            if c.forget {
                st.blocks.remove(&(c.ino, c.block));
            } else {
                st.put_block(c.ino, c.block, c.value);
            }
        }
        for (ino, map) in self.xattr_maps.drain(..) {
            st.log.note(Changed::Xattrs(ino));
            st.put_xattrs(ino, map);
        }
        for (ino, set, added) in self.deads.drain(..) {
            if set.is_empty() {
                st.trims.remove(&ino);
                continue;
            }
            let trim = st.trims.entry(ino).or_default();
            trim.set = set;
            if added {
                // Never the same twice, though a mark goes and comes again.
                trim.stamp = st.next_stamp;
                st.next_stamp += 1;
                st.queue_reclaim(ino);
            }
        }
        for (ino, orphan) in self.orphans.drain(..) {
            if orphan {
                st.orphans.insert(ino);
                if !st.refs.contains_key(&ino) {
                    st.queue_reclaim(ino);
                }
            } else {
                st.orphans.remove(&ino);
            }
        }
    }
}
