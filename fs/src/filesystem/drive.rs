//! The driver: runs a synchronous operation under the lock; if it misses something in the caches,
//! loads it without the lock and runs it again.

use super::{FileSystem, FsError, Ino, Result, Timespec};
use crate::key::{self, Parsed};
use crate::limits::{ATTEMPTS_MAX, DIR_PAGE, DIR_WHOLE_MAX, XATTR_TOTAL_MAX};
use crate::name::HASH_MIN;
use crate::record::{Dirent, Inode, Record};
use crate::state::{Changed, State, XattrMap};
use crate::txn::{Done, Miss, Stop, Txn};
use bytes::Bytes;
use std::ops::Deref;
use std::sync::Arc;
use tokio::sync::Notify;
use tokio::sync::futures::OwnedNotified;

/// About what a change of names and inodes writes, bytes.
const SMALL_BYTES: usize = 1024;

/// What an operation writes, for the bound on dirty data and the space left.
#[derive(Clone, Copy)]
pub(super) enum Room {
    /// Nothing (or an access time).
    None,
    /// Deletes and rewrites: goes on when the volume is full, from what is reserved for it.
    Freeing,
    /// Names and inodes.
    Small,
    /// So many bytes of data.
    For(usize),
}

/// What a miss became while the lock was still held.
enum Load {
    /// Load these blocks; the others are on their way already.
    Blocks(BlockLoad),
    /// All blocks are on their way: wait for one of them.
    Wait(OwnedNotified),
    /// Names of a directory from a hash on at least to another, into its cache with this id.
    Names {
        dir: Ino,
        from: u64,
        to: u64,
        id: u64,
    },
    Plain(Miss),
}

struct BlockLoad {
    ino: Ino,
    blocks: Vec<u64>,
}

/// What a load has to undo when it ends.
struct Landing {
    /// Changes since then win over what it brings.
    began: u64,
    /// Blocks that others may wait for.
    blocks: Option<(Ino, Vec<u64>, Arc<Notify>)>,
}

/// A load in flight. Dropping it, however the load ends, lets the log of changes shrink and wakes
/// who waits for its blocks.
struct Flight<F: Deref<Target = FileSystem>> {
    fs: F,
    landing: Landing,
}

impl<F: Deref<Target = FileSystem>> Drop for Flight<F> {
    fn drop(&mut self) {
        let mut st = self.fs.state.lock();
        st.log.end(self.landing.began);
        if let Some((ino, blocks, notify)) = self.landing.blocks.take() {
            for b in blocks {
                st.inflight.remove(&(ino, b));
            }
            notify.notify_waiters();
        }
    }
}

impl FileSystem {
    /// Runs `op` until it completes.
    pub(super) async fn run<T>(
        &self,
        room: Room,
        mut op: impl FnMut(&mut Txn<'_>) -> Done<T>,
    ) -> Result<T> {
        self.volume.alive()?;
        let bytes = match room {
            Room::None => None,
            Room::Freeing => Some(0),
            Room::Small => Some(SMALL_BYTES),
            Room::For(bytes) => Some(SMALL_BYTES + bytes),
        };
        if let Some(bytes) = bytes.filter(|&b| !self.volume.has_room(b)) {
            self.volume.room(bytes).await?;
        }
        let now = (self.options.clock)();
        for _ in 0..ATTEMPTS_MAX {
            let (load, flight) = {
                let mut st = self.state.lock();
                let mut txn = Txn::new(&mut st, &self.geo, now);
                let done = match op(&mut txn) {
                    Ok(value) => txn.commit(&*self.volume).map(|()| value),
                    Err(stop) => Err(stop),
                };
                match done {
                    Ok(value) => {
                        st.trim();
                        let wake = !st.reclaim.is_empty();
                        drop(st);
                        if wake {
                            self.wake.notify_one();
                        }
                        return Ok(value);
                    }
                    Err(Stop::Fail(e)) => {
                        st.trim();
                        return Err(e);
                    }
                    Err(Stop::Miss(miss)) => {
                        let (load, landing) = take_off(&mut st, miss);
                        (load, Flight { fs: self, landing })
                    }
                }
            };
            self.load(load, flight).await?;
        }
        Err(FsError::because(libc::EIO, format!("no progress in {ATTEMPTS_MAX} attempts")))
    }

    async fn load(&self, load: Load, flight: Flight<&FileSystem>) -> Result<()> {
        match load {
            Load::Blocks(BlockLoad { ino, blocks }) => {
                self.load_blocks(ino, &blocks, flight.landing.began).await
            }
            Load::Wait(notified) => {
                drop(flight);
                // Whoever loads them has the volume's deadline; its error is found by loading again.
                let _ = tokio::time::timeout(self.volume.deadline(), notified).await;
                Ok(())
            }
            Load::Names { dir, from, to, id } => self.load_names(dir, (from, to), id).await,
            Load::Plain(Miss::Inodes(inos)) => self.load_inodes(&inos, flight.landing.began).await,
            Load::Plain(Miss::Dirent { dir, hash, name, .. }) => {
                self.load_dirent(dir, hash, name, flight.landing.began).await
            }
            Load::Plain(Miss::Xattrs(ino)) => self.load_xattrs(ino, flight.landing.began).await,
            Load::Plain(Miss::Reclaim(ino)) => {
                drop(flight);
                Box::pin(self.reclaim_step(ino)).await.map(|_| ())
            }
            Load::Plain(Miss::Blocks { ino, blocks }) => {
                self.load_blocks(ino, &blocks, flight.landing.began).await
            }
            Load::Plain(Miss::DirPage { .. }) => Ok(()),
        }
    }

    async fn load_inodes(&self, inos: &[Ino], began: u64) -> Result<()> {
        let keys = inos.iter().map(|&i| self.geo.keys.inode(i)).collect();
        let found = self.volume.get(keys).await?;
        let mut decoded = Vec::with_capacity(inos.len());
        for (&ino, stored) in inos.iter().zip(found) {
            let inode = match stored {
                Some(s) => Some(decode::<Inode>(&s.value, || format!("inode {ino}"))?),
                None => None,
            };
            decoded.push((ino, inode));
        }
        let mut st = self.state.lock();
        let changed = st.log.since(began);
        for (ino, inode) in decoded {
            if !changed.has(Changed::Inode(ino)) && st.inodes.peek(&ino).is_none() {
                st.inodes.insert(ino, inode, 1);
            }
        }
        Ok(())
    }

    /// A name, and the inode it leads to, which is what comes next.
    async fn load_dirent(&self, dir: Ino, hash: u64, name: Vec<u8>, began: u64) -> Result<()> {
        let found = self.volume.get(vec![self.geo.keys.dirent(dir, hash, &name)]).await?;
        let what = || format!("entry {:?} of {dir}", String::from_utf8_lossy(&name));
        let dirent = match found.into_iter().next().flatten() {
            Some(s) => Some(decode::<Dirent>(&s.value, what)?),
            None => None,
        };
        let next = {
            let mut st = self.state.lock();
            if !st.log.since(began).has(Changed::Dirent(dir, hash)) {
                st.dirs.set(dir, hash, &name, dirent);
            }
            dirent.map(|d| d.ino).filter(|ino| st.inodes.peek(ino).is_none())
        };
        match next {
            Some(ino) => self.load_inodes(&[ino], began).await,
            None => Ok(()),
        }
    }

    /// Names of a directory into its cache: a page, or as many as it takes to know `to`.
    async fn load_names(&self, dir: Ino, (mut from, to): (u64, u64), id: u64) -> Result<()> {
        loop {
            let (shard, start, end) = self.geo.keys.dirents(dir, from);
            let page = self.volume.scan(shard, start, end, DIR_PAGE).await?;
            let mut names = Vec::with_capacity(page.records.len());
            let mut last = from;
            for (key, stored) in page.records {
                let Some(Parsed::Dirent { hash, name, .. }) = key::parse(&key) else {
                    return Err(FsError::corrupt(format!("a strange key in directory {dir}")));
                };
                let dirent = decode::<Dirent>(&stored.value, || format!("an entry of {dir}"))?;
                last = hash;
                names.push((hash, name, dirent));
            }
            // A page may end between two names of one hash: that hash is not known completely.
            let known = match page.next.as_deref().map(key::parse) {
                None => u64::MAX,
                Some(Some(Parsed::Dirent { hash, .. })) if hash > last => hash - 1,
                Some(_) => last.saturating_sub(1).max(from),
            };
            self.state.lock().dirs.fill(dir, id, (from, known), names);
            if known >= to {
                return Ok(());
            }
            from = known + 1;
        }
    }

    async fn load_xattrs(&self, ino: Ino, began: u64) -> Result<()> {
        let (shard, mut start, end) = self.geo.keys.xattrs(ino);
        let (mut map, mut total) = (XattrMap::new(), 0);
        loop {
            let page = self.volume.scan(shard, start, end.clone(), DIR_PAGE).await?;
            for (key, stored) in page.records {
                if let Some(Parsed::Xattr { name, .. }) = key::parse(&key) {
                    total += name.len() + stored.value.len();
                    map.insert(name, stored.value);
                }
            }
            if total > 2 * XATTR_TOTAL_MAX {
                return Err(FsError::corrupt(format!("over {total} bytes of xattrs on {ino}")));
            }
            match page.next {
                Some(next) => start = next,
                None => break,
            }
        }
        let mut st = self.state.lock();
        if !st.log.since(began).has(Changed::Xattrs(ino)) {
            st.put_xattrs(ino, Arc::new(map));
        }
        Ok(())
    }

    async fn load_blocks(&self, ino: Ino, blocks: &[u64], began: u64) -> Result<()> {
        let keys = blocks.iter().map(|&b| self.geo.keys.block(ino, b)).collect();
        let found = self.volume.get(keys).await?;
        let bs = self.geo.block_size as usize;
        let mut st = self.state.lock();
        let changed = st.log.since(began);
        for (&b, stored) in blocks.iter().zip(found) {
            let value = stored.map_or_else(Bytes::new, |s| s.value);
            if value.len() > bs {
                let len = value.len();
                return Err(FsError::corrupt(format!("block {b} of {ino} has {len} bytes")));
            }
            if !changed.has(Changed::Block(ino, b)) && st.blocks.peek(&(ino, b)).is_none() {
                st.put_block(ino, b, value);
            }
        }
        Ok(())
    }

    /// Reads blocks ahead of a sequential reader, in a task of its own.
    pub(super) fn read_ahead(&self, ino: Ino, from: u64, to: u64) {
        if !self.options.background {
            return;
        }
        let Some(fs) = self.me.upgrade() else { return };
        let (load, landing) = {
            let mut st = self.state.lock();
            let txn = Txn::new(&mut st, &self.geo, Timespec::default());
            let blocks = wanted_blocks(txn, ino, from, to);
            if blocks.is_empty() {
                return;
            }
            // Registered before the task runs, so that the reader waits for it and does not ask
            // twice.
            take_off(&mut st, Miss::Blocks { ino, blocks })
        };
        let flight = Flight { fs, landing };
        tokio::spawn(async move {
            let fs = &flight.fs;
            if let Load::Blocks(load) = load
                && let Err(e) = fs.load_blocks(load.ino, &load.blocks, flight.landing.began).await
            {
                tracing::debug!(ino, error = %e, "read-ahead failed");
            }
            let fs = fs.clone();
            drop(flight);
            fs.state.lock().trim();
        });
    }
}

/// Registers the load of what was missed, in the same critical section that missed it.
fn take_off(st: &mut State, miss: Miss) -> (Load, Landing) {
    let mut landing = Landing { began: st.log.begin(), blocks: None };
    let load = match miss {
        Miss::Blocks { ino, blocks } => {
            let ours: Vec<u64> =
                blocks.iter().copied().filter(|b| !st.inflight.contains_key(&(ino, *b))).collect();
            match (ours.is_empty(), blocks.first()) {
                (true, Some(&b)) => match st.inflight.get(&(ino, b)) {
                    Some(notify) => Load::Wait(notify.clone().notified_owned()),
                    None => Load::Plain(Miss::Blocks { ino, blocks }),
                },
                _ => {
                    let notify = Arc::new(Notify::new());
                    for &b in &ours {
                        st.inflight.insert((ino, b), notify.clone());
                    }
                    landing.blocks = Some((ino, ours.clone(), notify));
                    Load::Blocks(BlockLoad { ino, blocks: ours })
                }
            }
        }
        Miss::DirPage { dir, from } => Load::Names { dir, from, to: from, id: st.dirs.ensure(dir) },
        Miss::Dirent { dir, entries, hash, .. } if entries <= DIR_WHOLE_MAX => {
            Load::Names { dir, from: HASH_MIN, to: hash, id: st.dirs.ensure(dir) }
        }
        other => Load::Plain(other),
    };
    (load, landing)
}

/// Blocks of `from..to` that count, are not cached and not on their way.
fn wanted_blocks(mut t: Txn<'_>, ino: Ino, from: u64, to: u64) -> Vec<u64> {
    let Ok(f) = t.file(ino) else { return Vec::new() };
    let to = to.min(Txn::span(&f));
    (from..to)
        .filter(|&b| {
            t.block(&f, b) == crate::txn::Held::Unknown && !t.st.inflight.contains_key(&(ino, b))
        })
        .collect()
}

fn decode<R: Record>(bytes: &[u8], what: impl Fn() -> String) -> Result<R> {
    R::from_bytes(bytes).map_err(|e| FsError::corrupt(format!("{}: {e}", what())))
}
