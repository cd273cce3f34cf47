//! The part of a transaction that knows blocks: which of them count, and what a change does to the
//! inode's count and the dead ranges.

use super::{BlockChange, Done, Txn, fail};
use crate::dead::{DeadSet, Under};
use crate::filesystem::{Ino, Kind};
use crate::record::{Inode, inode_flags::SHRUNK};
use bytes::Bytes;

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

impl Txn<'_> {
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
        f.inode.flags |= SHRUNK;
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
}
