//! The driver: runs a synchronous operation under the lock; if it misses something in the caches,
//! loads it without the lock and runs it again.

use super::{FileSystem, FsError, Ino, Result};
use crate::dircache::LoadedName;
use crate::key::{self, Parsed};
use crate::limits::{ATTEMPTS_ALONE, ATTEMPTS_MAX, DIR_PAGE, XATTR_TOTAL_MAX};
use crate::name::HASH_MIN;
use crate::record::{Dirent, Inode, Record};
use crate::state::{Changed, Geometry, Pace, State, XattrMap};
use crate::txn::{Done, Miss, Stop, Txn};
use bytes::Bytes;
use std::ops::Deref;
use std::sync::Arc;
use tokio::sync::Notify;
use tokio::sync::futures::OwnedNotified;
use voter::volume::{Key, Stored};

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
pub(super) enum Load {
    /// Load these blocks; the others are on their way already.
    Blocks(BlockLoad),
    /// It is on its way: wait for it.
    Wait(OwnedNotified),
    /// Names of a directory from a hash on at least to another, into its cache with this id.
    Names {
        dir: Ino,
        from: u64,
        to: u64,
        id: u64,
        /// So many names to load ahead besides, of the directories behind it up to this one.
        ahead: Option<(usize, Ino)>,
    },
    Plain(Miss),
}

pub(super) struct BlockLoad {
    pub(super) ino: Ino,
    pub(super) blocks: Vec<u64>,
}

/// What a load has to undo when it ends.
pub(super) struct Landing {
    /// Changes since then win over what it brings.
    pub(super) began: u64,
    /// Blocks that others may wait for.
    pub(super) blocks: Option<(Ino, Vec<u64>, Arc<Notify>)>,
    /// Names are loaded ahead of a walk.
    pub(super) walking: bool,
}

/// A load in flight. Dropping it, however the load ends, lets the log of changes shrink and wakes
/// who waits for its blocks.
pub(super) struct Flight<F: Deref<Target = FileSystem>> {
    pub(super) fs: F,
    pub(super) landing: Landing,
}

impl<F: Deref<Target = FileSystem>> Drop for Flight<F> {
    fn drop(&mut self) {
        let mut st = self.fs.state.lock();
        st.log.end(self.landing.began);
        if self.landing.walking {
            st.walk.end();
        }
        if let Some((ino, blocks, notify)) = self.landing.blocks.take() {
            for b in blocks {
                st.inflight.remove(&(ino, b));
            }
            notify.notify_waiters();
        }
    }
}

/// As long as it lives nothing is evicted.
struct Struggling<'a>(&'a FileSystem);

impl<'a> Struggling<'a> {
    fn new(fs: &'a FileSystem) -> Self {
        fs.state.lock().struggling += 1;
        Self(fs)
    }
}

impl Drop for Struggling<'_> {
    fn drop(&mut self) {
        self.0.state.lock().struggling -= 1;
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
        let (mut patient, mut struggling) = (true, None);
        for attempt in 0..ATTEMPTS_MAX {
            if attempt == ATTEMPTS_ALONE {
                struggling = Some(Struggling::new(self));
            }
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
                        let (load, landing) = take_off(&mut st, &self.geo, miss, patient);
                        patient &= !matches!(load, Load::Wait(_));
                        (load, Flight { fs: self, landing })
                    }
                }
            };
            self.load(load, flight).await?;
        }
        drop(struggling);
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
            Load::Names { dir, from, to, id, ahead } => {
                if let Some((n, until)) = ahead {
                    self.walk_ahead(dir, n, until);
                }
                self.load_names(dir, (from, to), id).await
            }
            Load::Plain(Miss::Lookup { dir, ino, beside }) => {
                let own = [ino];
                let own = self.load_inodes(&own, flight.landing.began);
                tokio::join!(own, self.load_beside(dir, &beside, flight.landing.began)).0
            }
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

    pub(super) async fn load_inodes(&self, inos: &[Ino], began: u64) -> Result<()> {
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
            let names = names_of(&page.records)?;
            let last = names.last().map_or(from, |(_, (hash, ..))| *hash);
            if let Some((other, _)) = names.iter().find(|(d, _)| *d != dir) {
                return Err(FsError::corrupt(format!("a name of {other} among those of {dir}")));
            }
            let names = names.into_iter().map(|(_, name)| name).collect();
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

    pub(super) async fn load_blocks(&self, ino: Ino, blocks: &[u64], began: u64) -> Result<()> {
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
}

/// Registers the load of what was missed, in the same critical section that missed it. `patient`: the
/// operation has not yet waited for what others load.
pub(super) fn take_off(
    st: &mut State,
    geo: &Geometry,
    miss: Miss,
    patient: bool,
) -> (Load, Landing) {
    let mut landing = Landing { began: st.log.begin(), blocks: None, walking: false };
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
        Miss::DirPage { dir, from } => {
            let pace = if from == HASH_MIN { walk(st, geo, dir, patient) } else { Pace::Alone };
            let ahead = match pace {
                Pace::Wait(bell) => return (Load::Wait(bell), landing),
                Pace::Ahead(n, until) => Some((n, until)),
                Pace::Alone => None,
            };
            Load::Names { dir, from, to: from, id: st.dirs.ensure(dir), ahead }
        }
        Miss::Dirent { dir, entries, hash, .. } if st.dirs.whole(dir, entries) => {
            Load::Names { dir, from: HASH_MIN, to: hash, id: st.dirs.ensure(dir), ahead: None }
        }
        other => Load::Plain(other),
    };
    (load, landing)
}

/// A directory has to be loaded to be listed: what to do about those that come after it.
fn walk(st: &mut State, geo: &Geometry, dir: Ino, patient: bool) -> Pace {
    let keys = geo.keys;
    let beside = |ino| keys.shard_of_ino(ino) == keys.shard_of_ino(dir);
    let parent = st.inodes.peek(&dir).and_then(|i| i.as_ref()).map(|i| i.parent);
    let until = parent.and_then(|parent| st.dirs.walk(parent, dir, beside));
    st.walk.begin(dir, until, patient, beside)
}

/// Names of a page, each with its directory, in the order of the page.
pub(super) fn names_of(records: &[(Key, Stored)]) -> Result<Vec<(Ino, LoadedName)>> {
    let name = |(key, stored): &(Key, Stored)| {
        let Some(Parsed::Dirent { dir, hash, name }) = key::parse(key) else {
            return Err(FsError::corrupt("a strange key among names of a directory"));
        };
        let dirent = decode::<Dirent>(&stored.value, || format!("an entry of {dir}"))?;
        Ok((dir, (hash, name, dirent)))
    };
    records.iter().map(name).collect()
}

fn decode<R: Record>(bytes: &[u8], what: impl Fn() -> String) -> Result<R> {
    R::from_bytes(bytes).map_err(|e| FsError::corrupt(format!("{}: {e}", what())))
}
