//! What is known of the names in directories, names known to be absent included.
//!
//! A directory's inode counts its entries, so "all names are here" is computed (as many live names
//! cached as the inode counts), never declared. Besides, one interval of hashes may be *covered*:
//! every live name in it is cached. While a directory's cache exists all local changes go into it,
//! so both stay true; eviction drops a directory's cache whole.

use crate::cache::NumberMap;
use crate::filesystem::{Ino, Kind};
use crate::limits::{DIR_WHOLE_MAX, DIR_WHOLE_PER_MISS, INODES_BESIDE_MAX, WALK_SIBLINGS_MAX};
use crate::record::Dirent;
use std::collections::BTreeMap;

/// The known names of one directory, in readdir order.
pub(crate) struct DirCache {
    entries: BTreeMap<(u64, Box<[u8]>), Option<Dirent>>,
    /// How many of them are live.
    live: u64,
    /// Hashes `.0..=.1` are known completely.
    covered: Option<(u64, u64)>,
    /// Distinguishes this cache from an evicted one of the same directory.
    pub(crate) id: u64,
    used: u64,
    /// Names that were asked for one by one and had to be loaded.
    missed: u64,
    /// Names that lookups found; how often an inode had to be loaded for one, and how many were loaded
    /// besides.
    looked: u64,
    loads: u32,
    beside: u64,
    /// Its entries were listed from the first on.
    listed: bool,
}

impl DirCache {
    fn new(id: u64) -> Self {
        Self {
            entries: BTreeMap::new(),
            live: 0,
            covered: None,
            id,
            used: id,
            missed: 0,
            looked: 0,
            loads: 0,
            beside: 0,
            listed: false,
        }
    }

    pub(crate) fn find(&self, hash: u64, name: &[u8]) -> Option<Option<Dirent>> {
        self.entries
            .range((hash, Box::default())..)
            .take_while(|((h, _), _)| *h == hash)
            .find(|((_, n), _)| **n == *name)
            .map(|(_, d)| *d)
    }

    /// `true`: the entry is new here.
    fn set(&mut self, hash: u64, name: &[u8], dirent: Option<Dirent>) -> bool {
        let old = self
            .entries
            .range_mut((hash, Box::default())..)
            .take_while(|((h, _), _)| *h == hash)
            .find(|((_, n), _)| **n == *name);
        self.live += u64::from(dirent.is_some());
        match old {
            Some((_, old)) => {
                self.live -= u64::from(old.is_some());
                *old = dirent;
                false
            }
            None => {
                self.entries.insert((hash, name.into()), dirent);
                true
            }
        }
    }

    /// Last hash up to which everything from `hash` on is known; `None` = not known at `hash`.
    pub(crate) fn known_to(&self, hash: u64, entries: u64) -> Option<u64> {
        if self.live == entries {
            return Some(u64::MAX);
        }
        self.covered.filter(|&(lo, hi)| lo <= hash && hash <= hi).map(|(_, hi)| hi)
    }

    fn cover(&mut self, from: u64, to: u64) {
        self.covered = match self.covered {
            Some((lo, hi)) if lo <= from && from <= hi.saturating_add(1) => Some((lo, hi.max(to))),
            _ => Some((from, to)),
        };
    }

    /// How many inodes to load besides one that a lookup misses. A small directory soon has all of
    /// them: four times as many each time. In a large one, all in all not more than twice as many as were
    /// looked up: who looks here and there pays little for it.
    fn may_load_beside(&self) -> u64 {
        let entries = self.entries.len() as u64;
        match entries <= DIR_WHOLE_MAX {
            // All of it once; what was evicted meanwhile counts like a large one's.
            true => {
                let left = (entries + 2 * self.looked).saturating_sub(self.beside);
                4u64.saturating_pow(self.loads).min(left)
            }
            false => (2 * self.looked).saturating_sub(self.beside),
        }
    }

    /// Live entries with `from <= hash <= to`, in order.
    pub(crate) fn live_range(
        &self,
        from: u64,
        to: u64,
    ) -> impl Iterator<Item = (u64, &[u8], Dirent)> {
        self.entries
            .range((from, Box::default())..)
            .take_while(move |((h, _), _)| *h <= to)
            .filter_map(|((h, n), d)| d.map(|d| (*h, &**n, d)))
    }
}

/// A loaded name.
pub(crate) type LoadedName = (u64, Vec<u8>, Dirent);

/// All of them, bounded by the number of entries.
pub(crate) struct DirCaches {
    dirs: NumberMap<Ino, DirCache>,
    total: usize,
    bound: usize,
    /// Most inodes that a lookup may load besides.
    beside_max: u64,
    clock: u64,
}

impl DirCaches {
    /// For so many names, and beside a cache of so many inodes.
    pub(crate) fn new(bound: usize, inodes: usize) -> Self {
        let beside_max = INODES_BESIDE_MAX.min(inodes as u64 / 64);
        Self { dirs: NumberMap::default(), total: 0, bound, beside_max, clock: 0 }
    }

    pub(crate) fn total(&self) -> usize {
        self.total
    }

    pub(crate) fn get(&mut self, dir: Ino) -> Option<&DirCache> {
        self.clock += 1;
        let cache = self.dirs.get_mut(&dir)?;
        cache.used = self.clock;
        Some(cache)
    }

    fn get_or_make(&mut self, dir: Ino) -> &mut DirCache {
        self.clock += 1;
        let clock = self.clock;
        let cache = self.dirs.entry(dir).or_insert_with(|| DirCache::new(clock));
        cache.used = clock;
        cache
    }

    /// Makes sure that the directory has a cache, for a load to fill; its id.
    pub(crate) fn ensure(&mut self, dir: Ino) -> u64 {
        self.get_or_make(dir).id
    }

    /// A name was asked for that is not here: is the directory to be loaded whole, instead of this
    /// name? Small ones at once, larger ones when some names were loaded one by one.
    pub(crate) fn whole(&mut self, dir: Ino, entries: u64) -> bool {
        let cache = self.get_or_make(dir);
        cache.missed += 1;
        entries <= DIR_WHOLE_MAX.min(DIR_WHOLE_PER_MISS.saturating_mul(cache.missed))
    }

    /// A lookup found a name with this hash: the inodes to load besides, if `missing` says that its
    /// own has to be loaded. They are those that a listing gives next.
    pub(crate) fn looked(
        &mut self,
        dir: Ino,
        hash: u64,
        missing: impl Fn(Ino) -> bool,
        own: Ino,
    ) -> Vec<Ino> {
        let beside_max = self.beside_max;
        let Some(cache) = self.dirs.get_mut(&dir) else { return Vec::new() };
        cache.looked += 1;
        if !missing(own) {
            return Vec::new();
        }
        cache.loads += 1;
        let n = cache.may_load_beside().min(beside_max) as usize;
        let next = cache.live_range(hash, u64::MAX).map(|(.., d)| d.ino).take(4 * n);
        let beside: Vec<Ino> = next.filter(|&i| i != own && missing(i)).take(n).collect();
        cache.beside = cache.beside.saturating_add(beside.len() as u64);
        beside
    }

    /// What stands beside the inodes of this directory cannot be loaded: no more of it.
    pub(crate) fn alone(&mut self, dir: Ino) {
        if let Some(cache) = self.dirs.get_mut(&dir) {
            cache.beside = u64::MAX;
        }
    }

    /// A listing of the directory began.
    pub(crate) fn listing(&mut self, dir: Ino) {
        if let Some(cache) = self.dirs.get_mut(&dir) {
            cache.listed = true;
        }
    }

    /// Somebody walks through the tree, if a directory is listed whose parent was listed: the first
    /// sibling behind it on its shard (`beside` tells), in the order of inode numbers, whose names are
    /// known. Up to it, nothing that a walk comes to is.
    pub(crate) fn walk(&self, parent: Ino, dir: Ino, beside: impl Fn(Ino) -> bool) -> Option<Ino> {
        let cache = self.dirs.get(&parent).filter(|c| c.listed)?;
        if cache.entries.len() > WALK_SIBLINGS_MAX {
            return None;
        }
        let siblings = cache.live_range(0, u64::MAX).filter(|(.., d)| d.kind == Kind::Directory);
        let behind = siblings.map(|(.., d)| d.ino).filter(|i| *i > dir && beside(*i));
        Some(behind.filter(|i| self.dirs.contains_key(i)).min().unwrap_or(Ino::MAX))
    }

    /// A local change, or a name that was loaded.
    pub(crate) fn set(&mut self, dir: Ino, hash: u64, name: &[u8], dirent: Option<Dirent>) {
        self.total += usize::from(self.get_or_make(dir).set(hash, name, dirent));
    }

    /// Takes a page of names, `from..=to` of which are all that live there, if the cache is still
    /// the one that was there when the load began: then all that changed meanwhile is in it.
    pub(crate) fn fill(
        &mut self,
        dir: Ino,
        id: u64,
        (from, to): (u64, u64),
        names: Vec<LoadedName>,
    ) {
        let Some(cache) = self.dirs.get_mut(&dir).filter(|c| c.id == id) else { return };
        for (hash, name, dirent) in names {
            // What is cached is never older than what was loaded.
            if cache.find(hash, &name).is_none() {
                self.total += usize::from(cache.set(hash, &name, Some(dirent)));
            }
        }
        cache.cover(from, to);
    }

    pub(crate) fn remove(&mut self, dir: Ino) {
        if let Some(cache) = self.dirs.remove(&dir) {
            self.total -= cache.entries.len();
        }
    }

    /// Evicts whole directories, least recently used first, down to three quarters of the bound.
    pub(crate) fn trim(&mut self) {
        if self.total <= self.bound && self.dirs.len() <= self.bound.saturating_mul(2).max(64) {
            return;
        }
        let mut by_use: Vec<(u64, Ino)> = self.dirs.iter().map(|(&d, c)| (c.used, d)).collect();
        by_use.sort_unstable();
        for (_, dir) in by_use {
            if self.total <= self.bound / 4 * 3 && self.dirs.len() <= self.bound {
                break;
            }
            self.remove(dir);
        }
    }

    pub(crate) fn clear(&mut self) {
        self.dirs.clear();
        self.total = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filesystem::Kind;

    const E: Dirent = Dirent { ino: 9, kind: Kind::File };
    const D: Option<Dirent> = Some(E);

    #[test]
    fn complete_is_computed_and_equal_hashes_are_told_apart() {
        let mut c = DirCaches::new(100, 100_000);
        c.set(1, 50, b"a", D);
        c.set(1, 50, b"b", None);
        let dir = c.get(1).unwrap();
        assert_eq!(
            (dir.find(50, b"a"), dir.find(50, b"b"), dir.find(50, b"c")),
            (Some(D), Some(None), None)
        );
        assert_eq!((dir.known_to(16, 1), dir.known_to(16, 2)), (Some(u64::MAX), None));
        c.set(1, 50, b"b", D);
        assert_eq!(c.get(1).unwrap().known_to(16, 2), Some(u64::MAX));
        assert_eq!(c.total(), 2);
    }

    #[test]
    fn pages_extend_what_is_covered_and_changes_win() {
        let mut c = DirCaches::new(100, 100_000);
        let id = c.ensure(1);
        c.set(1, 20, b"gone", None); // removed locally while the page was on its way
        c.fill(1, id, (16, 30), vec![(20, b"gone".into(), E), (25, b"x".into(), E)]);
        c.fill(1, id, (31, 40), vec![(33, b"y".into(), E)]);
        let dir = c.get(1).unwrap();
        assert_eq!(dir.known_to(16, 99), Some(40));
        assert_eq!(dir.known_to(41, 99), None);
        let live: Vec<_> = dir.live_range(16, 40).map(|(_, n, _)| n.to_vec()).collect();
        assert_eq!(live, [b"x".to_vec(), b"y".to_vec()]);
        c.remove(1);
        c.ensure(1);
        c.fill(1, id, (16, 90), vec![]);
        assert_eq!(c.get(1).unwrap().known_to(16, 99), None, "an evicted cache is not filled");
    }

    #[test]
    fn who_looks_at_all_of_a_directory_gets_more_each_time() {
        for (files, step, most) in [(1000u64, 1, 8), (1000, 377, 40), (3000, 1, 30)] {
            let mut c = DirCaches::new(10_000, 100_000);
            for i in 0..files {
                c.set(1, 16 + i, b"n", Some(Dirent { ino: 5000 + i, kind: Kind::File }));
            }
            let (mut have, mut loads) = (std::collections::HashSet::new(), 0);
            for i in 0..files {
                let at = i * step % files;
                let beside = c.looked(1, 16 + at, |ino| !have.contains(&ino), 5000 + at);
                loads += u32::from(have.insert(5000 + at));
                have.extend(beside);
                if files > DIR_WHOLE_MAX {
                    assert!(have.len() as u64 <= 3 * (i + 1), "{} loaded after {i}", have.len());
                }
            }
            assert!(loads <= most, "{loads} loads of {files} in steps of {step}");
            c.alone(1);
            assert!(c.looked(1, 16, |_| true, 5000).is_empty());
        }
    }

    #[test]
    fn a_large_directory_is_loaded_whole_only_when_several_names_were_missed() {
        let mut c = DirCaches::new(100, 100_000);
        assert!(c.whole(1, 128));
        let asked_alone = (0..).take_while(|_| !c.whole(2, 1000)).count();
        assert_eq!(asked_alone, 7);
        assert!((0..1000).all(|_| !c.whole(3, 2000)));
    }

    #[test]
    fn a_walk_is_one_who_lists_the_children_of_what_he_listed() {
        let mut c = DirCaches::new(100, 100_000);
        for (hash, name, ino) in [(20, b"a", 10), (30, b"b", 30), (40, b"c", 20)] {
            c.set(1, hash, name, Some(Dirent { ino, kind: Kind::Directory }));
        }
        c.set(1, 50, b"f", Some(Dirent { ino: 15, kind: Kind::File }));
        c.ensure(15);
        assert_eq!(c.walk(1, 10, |_| true), None, "its parent was not listed");
        c.listing(1);
        assert_eq!((c.walk(1, 10, |_| true), c.walk(2, 10, |_| true)), (Some(Ino::MAX), None));
        c.ensure(30);
        assert_eq!((c.walk(1, 10, |_| true), c.walk(1, 30, |_| true)), (Some(30), Some(Ino::MAX)));
        c.ensure(20);
        assert_eq!(c.walk(1, 10, |_| true), Some(20));
        assert_eq!(c.walk(1, 10, |ino| ino != 20), Some(30));
    }

    #[test]
    fn bounded() {
        let mut c = DirCaches::new(100, 100_000);
        for dir in 0..50 {
            for n in 0..10u64 {
                c.set(dir, 16 + n, b"n", D);
            }
            c.trim();
            assert!(c.total() <= 100);
        }
        assert!(c.get(49).is_some() && c.get(0).is_none());
    }
}
