//! The end of a transaction: one atomic group to the volume, then the same to the caches.

use super::{Done, Miss, Txn};
use crate::errno::FsError;
use crate::key::KeySpace;
use crate::limits::{DEAD_RANGES_MAX, INO_CHUNK};
use crate::record::{Counter, Inode, Orphan, Record};
use crate::state::{Changed, Handle};
use bytes::Bytes;
use voter::volume::{Change, Op, Volume};

impl Txn<'_> {
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
