//! The one in-memory state: caches, what the kernel refers to, what waits for reclaim. One short
//! mutex guards all of it; nothing here waits.

use crate::cache::{Clock, NumberMap, NumberSet};
use crate::dead::DeadSet;
use crate::dircache::DirCaches;
use crate::filesystem::{Atime, FsOptions, Ino, StatFs};
use crate::key::KeySpace;
use crate::limits::{WALK_NAMES_MAX, WALK_NAMES_MIN, WALK_REST_MAX};
use crate::name::NameHasher;
use crate::record::Inode;
use bytes::Bytes;
use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::Notify;
use tokio::sync::futures::OwnedNotified;

/// What never changes while mounted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Geometry {
    pub(crate) keys: KeySpace,
    pub(crate) names: NameHasher,
    pub(crate) block_size: u32,
    pub(crate) epoch: u64,
    /// See [`crate::filesystem::FsOptions::opens_are_told`].
    pub(crate) opens_are_told: bool,
}

/// Extended attributes of one inode.
pub(crate) type XattrMap = BTreeMap<Vec<u8>, Bytes>;

/// Who holds an inode.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Refs {
    /// Of the kernel.
    pub(crate) lookups: u64,
    /// Open handles.
    pub(crate) opens: u32,
}

/// An open handle.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Handle {
    pub(crate) ino: Ino,
    /// Where a sequential reader reads next.
    pub(crate) next: u64,
    /// Read-ahead window, bytes; 0 = not sequential.
    pub(crate) window: u64,
    /// Read-ahead was asked for up to here.
    pub(crate) ahead: u64,
}

/// Dead ranges of an inode. `stamp` changes whenever a range is added, so that a scan knows whether
/// what it saw is still all.
#[derive(Clone, Default, Debug)]
pub(crate) struct Trim {
    pub(crate) set: DeadSet,
    pub(crate) stamp: u64,
}

/// Something cached that a local operation changed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Changed {
    Inode(Ino),
    Dirent(Ino, u64),
    Block(Ino, u64),
    Xattrs(Ino),
    /// Another mount changed something, and nobody knows what.
    Everything,
}

/// What changed while a load was on its way.
pub(crate) struct Since(HashSet<Changed>);

impl Since {
    /// Must what the load brings of this be dropped?
    pub(crate) fn has(&self, what: Changed) -> bool {
        self.0.contains(&what) || self.0.contains(&Changed::Everything)
    }

    /// Directories of which names changed, or which changed themselves; `None` = maybe all.
    pub(crate) fn directories(&self) -> Option<NumberSet<Ino>> {
        let dir = |c: &Changed| match c {
            Changed::Dirent(dir, _) | Changed::Inode(dir) => Some(*dir),
            _ => None,
        };
        match self.0.contains(&Changed::Everything) {
            true => None,
            false => Some(self.0.iter().filter_map(dir).collect()),
        }
    }
}

/// How far ahead of someone who walks through a tree names are loaded: four times as far each time, and
/// from little again when it could not be done or no walk was seen.
pub(crate) struct Walk {
    window: usize,
    bound: usize,
    /// One load ahead at a time: several walkers would load the same.
    under_way: Option<Ahead>,
    /// After a failure so many directories are loaded alone; twice as many after the next one.
    pause: u32,
    rest: u32,
}

/// A load ahead: of the directories between two, on the shard of the first.
struct Ahead {
    from: Ino,
    until: Ino,
    /// Rings when it is over.
    bell: Arc<Notify>,
}

/// What someone who lists a directory that has to be loaded does about what comes after it.
pub(crate) enum Pace {
    /// Loads this directory only.
    Alone,
    /// Has so many names loaded ahead, of the directories behind it up to this one.
    Ahead(usize, Ino),
    /// What is being loaded may be it.
    Wait(OwnedNotified),
}

impl Walk {
    fn new(bound: usize) -> Self {
        Self { window: 0, bound: bound.min(WALK_NAMES_MAX), under_way: None, pause: 0, rest: 0 }
    }

    /// A directory has to be loaded for a listing; `until`: somebody walks, and names behind it up to
    /// this one may be loaded ahead. `patient`: the listing has not waited yet. `beside` tells who is on
    /// the shard of this directory.
    pub(crate) fn begin(
        &mut self,
        dir: Ino,
        until: Option<Ino>,
        patient: bool,
        beside: impl Fn(Ino) -> bool,
    ) -> Pace {
        if let Some(a) = &self.under_way {
            let coming = a.from < dir && dir < a.until && beside(a.from);
            return match coming && patient {
                true => Pace::Wait(a.bell.clone().notified_owned()),
                false => Pace::Alone,
            };
        }
        let Some(until) = until else {
            self.window = 0;
            return Pace::Alone;
        };
        if self.rest > 0 {
            self.rest -= 1;
            return Pace::Alone;
        }
        self.window = (4 * self.window).max(WALK_NAMES_MIN).min(self.bound);
        if self.window == 0 {
            return Pace::Alone;
        }
        self.under_way = Some(Ahead { from: dir, until, bell: Arc::default() });
        Pace::Ahead(self.window, until)
    }

    /// The load is over.
    pub(crate) fn end(&mut self) {
        if let Some(ahead) = self.under_way.take() {
            ahead.bell.notify_waiters();
        }
    }

    /// It brought what it was to bring.
    pub(crate) fn succeeded(&mut self) {
        self.pause = 0;
    }

    /// It brought an error, or nothing in time.
    pub(crate) fn failed(&mut self) {
        self.window = 0;
        self.pause = (2 * self.pause).clamp(2, WALK_REST_MAX);
        self.rest = self.pause;
    }
}

/// An orphan, or what of an inode is dead.
pub(crate) enum Mark {
    Orphan(Ino),
    Dead(Ino, DeadSet),
}

impl Mark {
    pub(crate) fn ino(&self) -> Ino {
        match self {
            Mark::Orphan(ino) | Mark::Dead(ino, _) => *ino,
        }
    }
}

/// Changes since the oldest load in flight began: what a load brings is dropped where it was
/// changed meanwhile.
#[derive(Default)]
pub(crate) struct ChangeLog {
    seq: u64,
    /// Where the loads in flight began, and how many began there.
    loads: BTreeMap<u64, u32>,
    changes: VecDeque<(u64, Changed)>,
}

impl ChangeLog {
    pub(crate) fn begin(&mut self) -> u64 {
        *self.loads.entry(self.seq).or_default() += 1;
        self.seq
    }

    pub(crate) fn end(&mut self, began: u64) {
        if let Some(n) = self.loads.get_mut(&began) {
            *n -= 1;
            if *n == 0 {
                self.loads.remove(&began);
            }
        }
        let Some((&oldest, _)) = self.loads.first_key_value() else {
            self.changes.clear();
            return;
        };
        while self.changes.front().is_some_and(|(seq, _)| *seq <= oldest) {
            self.changes.pop_front();
        }
    }

    pub(crate) fn note(&mut self, change: Changed) {
        if !self.loads.is_empty() {
            self.seq += 1;
            self.changes.push_back((self.seq, change));
        }
    }

    pub(crate) fn since(&self, began: u64) -> Since {
        Since(self.changes.iter().rev().take_while(|(s, _)| *s > began).map(|(_, c)| *c).collect())
    }
}

/// See the module.
pub(crate) struct State {
    /// When reading updates access times.
    pub(crate) atime: Atime,
    /// `None` = known not to exist.
    pub(crate) inodes: Clock<Ino, Option<Inode>>,
    pub(crate) dirs: DirCaches,
    pub(crate) walk: Walk,
    /// As the record is; empty = known to have none. Whether it counts the dead ranges say.
    pub(crate) blocks: Clock<(Ino, u64), Bytes>,
    pub(crate) xattrs: Clock<Ino, Arc<XattrMap>>,
    /// All of the volume.
    pub(crate) trims: NumberMap<Ino, Trim>,
    /// All of the volume.
    pub(crate) orphans: NumberSet<Ino>,
    pub(crate) refs: NumberMap<Ino, Refs>,
    /// Inodes that are gone but that the kernel still refers to, for getattr.
    pub(crate) ghosts: NumberMap<Ino, Inode>,
    pub(crate) handles: NumberMap<u64, Handle>,
    pub(crate) next_handle: u64,
    /// Inode numbers: the next one, and the first that is not reserved.
    pub(crate) next_ino: u64,
    pub(crate) ino_limit: u64,
    pub(crate) log: ChangeLog,
    /// Blocks that are being loaded.
    pub(crate) inflight: NumberMap<(Ino, u64), Arc<Notify>>,
    /// Inodes that wait for reclaim.
    pub(crate) reclaim: VecDeque<Ino>,
    /// What stands in it.
    queued: NumberSet<Ino>,
    /// For [`Trim::stamp`].
    pub(crate) next_stamp: u64,
    pub(crate) statfs: Option<(Instant, StatFs)>,
    /// Operations that have tried so often that nothing may be evicted ([`crate::limits::ATTEMPTS_ALONE`]).
    pub(crate) struggling: u32,
}

impl State {
    pub(crate) fn new(options: &FsOptions, next_ino: u64) -> Self {
        let limits = &options.caches;
        Self {
            atime: options.atime,
            inodes: Clock::new(limits.inodes),
            dirs: DirCaches::new(limits.dirents, limits.inodes),
            walk: Walk::new(limits.dirents.min(limits.inodes) / 64),
            blocks: Clock::new(limits.block_bytes),
            xattrs: Clock::new(limits.xattr_bytes),
            trims: NumberMap::default(),
            orphans: NumberSet::default(),
            refs: NumberMap::default(),
            ghosts: NumberMap::default(),
            handles: NumberMap::default(),
            next_handle: 1,
            next_ino,
            ino_limit: next_ino,
            log: ChangeLog::default(),
            inflight: NumberMap::default(),
            reclaim: VecDeque::new(),
            queued: NumberSet::default(),
            next_stamp: 1,
            statfs: None,
            struggling: 0,
        }
    }

    /// Brings the caches back to their bounds, unless an operation needs what it has loaded.
    pub(crate) fn trim(&mut self) {
        if self.struggling > 0 {
            return;
        }
        self.inodes.trim();
        self.dirs.trim();
        self.blocks.trim();
        self.xattrs.trim();
    }

    /// Forgets everything that can be read again.
    pub(crate) fn drop_caches(&mut self) {
        self.inodes.clear();
        self.dirs.clear();
        self.blocks.clear();
        self.xattrs.clear();
    }

    /// Another mount changed something: forgets all that came from the volume, and what is on its way
    /// from it; takes the marks as they are now.
    pub(crate) fn take_news(&mut self, marks: Vec<Mark>) {
        self.drop_caches();
        self.log.note(Changed::Everything);
        self.orphans.clear();
        self.trims.clear();
        self.reclaim.clear();
        self.queued.clear();
        for mark in marks {
            self.add_mark(mark);
        }
    }

    /// Takes in an orphan or dead ranges as the volume has them.
    pub(crate) fn add_mark(&mut self, mark: Mark) {
        match mark {
            Mark::Orphan(ino) => {
                self.orphans.insert(ino);
            }
            Mark::Dead(ino, set) => {
                let stamp = self.next_stamp;
                self.next_stamp += 1;
                self.trims.insert(ino, Trim { set, stamp });
            }
        }
    }

    pub(crate) fn put_block(&mut self, ino: Ino, block: u64, value: Bytes) {
        // The map's own share, so that holes are bounded too.
        let weight = value.len() + 64;
        self.blocks.insert((ino, block), value, weight);
    }

    /// What a stream has read of a block: a `whole` one leaves the cache. One that stays must not hold the
    /// buffer in which it came, which its neighbours have left: the bound counts its own bytes alone.
    pub(crate) fn pass(&mut self, ino: Ino, block: u64, whole: bool) {
        if whole {
            self.blocks.remove(&(ino, block));
        } else if let Some(value) = self.blocks.peek(&(ino, block)) {
            let own = Bytes::copy_from_slice(value);
            self.put_block(ino, block, own);
        }
    }

    pub(crate) fn put_xattrs(&mut self, ino: Ino, map: Arc<XattrMap>) {
        let weight = 128 + map.iter().map(|(k, v)| k.len() + v.len() + 64).sum::<usize>();
        self.xattrs.insert(ino, map, weight);
    }

    /// Has the inode's reclaim looked at, once.
    pub(crate) fn queue_reclaim(&mut self, ino: Ino) {
        if self.queued.insert(ino) {
            self.reclaim.push_back(ino);
        }
    }

    /// The next inode to look at.
    pub(crate) fn next_reclaim(&mut self) -> Option<Ino> {
        let ino = self.reclaim.pop_front()?;
        self.queued.remove(&ino);
        Some(ino)
    }

    /// Drops references; an inode that nobody holds any more becomes reclaimable. True = it did.
    pub(crate) fn unref(&mut self, ino: Ino, lookups: u64, opens: u32) -> bool {
        let Some(refs) = self.refs.get_mut(&ino) else { return false };
        refs.lookups = refs.lookups.saturating_sub(lookups);
        refs.opens = refs.opens.saturating_sub(opens);
        if refs.lookups > 0 || refs.opens > 0 {
            return false;
        }
        self.refs.remove(&ino);
        self.ghosts.remove(&ino);
        let orphan = self.orphans.contains(&ino);
        if orphan {
            self.queue_reclaim(ino);
        }
        orphan
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_walk_is_followed_further_each_time() {
        let mut w = Walk::new(1000);
        let begin = |w: &mut Walk, dir, until, patient| match w.begin(dir, until, patient, |_| true)
        {
            Pace::Ahead(n, _) => n,
            Pace::Alone => 0,
            Pace::Wait(_) => 1,
        };
        assert_eq!(begin(&mut w, 10, None, true), 0);
        assert_eq!(begin(&mut w, 10, Some(20), true), 128);
        let others = [(15, true), (15, false), (5, true), (20, true), (10, true)];
        let paces = others.map(|(dir, patient)| begin(&mut w, dir, Some(90), patient));
        assert_eq!(paces, [1, 0, 0, 0, 0], "only who comes to what is being loaded waits, once");
        assert!(matches!(w.begin(15, Some(90), true, |_| false), Pace::Alone), "another shard");
        w.end();
        assert_eq!(begin(&mut w, 10, Some(20), true), 512);
        w.end();
        assert_eq!(begin(&mut w, 10, Some(20), true), 1000);
        let mut alone = Vec::new();
        for _ in 0..3 {
            w.failed();
            w.end();
            alone.push((0..).take_while(|_| begin(&mut w, 10, Some(20), true) == 0).count());
        }
        assert_eq!(alone, [2, 4, 8]);
        w.succeeded();
        w.failed();
        w.end();
        assert_eq!((0..).take_while(|_| begin(&mut w, 10, Some(20), true) == 0).count(), 2);
        assert_eq!(begin(&mut Walk::new(0), 10, Some(20), true), 0);
    }

    /// Found by reading: the tail of each file that was streamed kept up to a megabyte, which nothing counted.
    #[test]
    fn what_stays_of_a_stream_does_not_hold_what_has_passed() {
        let mut st = State::new(&FsOptions::default(), 100);
        let reply = Bytes::from(vec![7; 1 << 20]);
        for b in 0..64 {
            st.put_block(9, b, reply.slice(b as usize * 16384..(b as usize + 1) * 16384));
        }
        for b in 0..64 {
            st.pass(9, b, b % 63 != 0);
        }
        assert!(reply.is_unique());
        assert_eq!(st.blocks.weight(), 2 * (16384 + 64));
        assert_eq!(st.blocks.get(&(9, 63)).unwrap(), &reply[..16384]);
        assert!(st.blocks.get(&(9, 1)).is_none());
    }

    #[test]
    fn the_log_is_kept_only_as_long_as_a_load_needs_it() {
        let mut log = ChangeLog::default();
        log.note(Changed::Inode(1));
        let a = log.begin();
        log.note(Changed::Inode(2));
        let b = log.begin();
        log.note(Changed::Inode(3));
        assert_eq!(log.since(a).0, HashSet::from([Changed::Inode(2), Changed::Inode(3)]));
        assert_eq!(log.since(b).0, HashSet::from([Changed::Inode(3)]));
        log.end(a);
        assert_eq!(log.changes.len(), 1);
        assert_eq!(log.since(b).0, HashSet::from([Changed::Inode(3)]));
        log.end(b);
        assert!(log.changes.is_empty());
    }
}
