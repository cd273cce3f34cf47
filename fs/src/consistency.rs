//! One pass over every record of a volume: what does not fit together?
//!
//! Exact on a volume that nobody changes meanwhile (tests, after a crash); `check.rs` repeats it on
//! one that is in use. It changes nothing. Memory: about 250 bytes for each inode.

use crate::dead::{DeadSet, Under};
use crate::filesystem::{Ino, Kind};
use crate::key::{self, KeySpace, Parsed, ROOT};
use crate::name::NameHasher;
use crate::record::{Counter, Dirent, Inode, Orphan, Record, inode_flags};
use crate::superblock::Superblock;
use std::collections::{BTreeMap, BTreeSet};
use voter::volume::{Key, Volume, VolumeError};

/// Most problems kept in words; all are counted.
const PROBLEMS_KEPT: usize = 100_000;
/// Records of one page.
const PAGE: usize = 4096;

/// What was found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Inodes, orphans included.
    pub inodes: u64,
    /// Directories among them.
    pub directories: u64,
    /// Names.
    pub names: u64,
    /// Block records.
    pub blocks: u64,
    /// Bytes in them.
    pub block_bytes: u64,
    /// Block records that do not count and wait for reclaim.
    pub dead_blocks: u64,
    /// Extended attributes.
    pub xattrs: u64,
    /// Unlinked inodes that wait for reclaim.
    pub orphans: u64,
    /// Number of problems.
    pub problem_count: u64,
    /// They, in words (the first hundred thousand). Each names its inode, so equal words of two
    /// passes mean the same thing.
    pub problems: BTreeSet<String>,
}

impl Report {
    /// Nothing is wrong.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.problem_count == 0
    }

    fn problem(&mut self, what: String) {
        self.problem_count += 1;
        if self.problems.len() < PROBLEMS_KEPT {
            self.problems.insert(what);
        }
    }
}

struct Seen {
    inode: Inode,
    /// Names that lead to it.
    names: u32,
    /// The directory of the last of them.
    named_in: Ino,
    /// Names in it, if a directory.
    entries: u64,
    subdirs: u32,
    xattrs: u32,
    /// What its attributes say of its flags.
    flags: u8,
    blocks: u64,
}

struct Checker<'a> {
    volume: &'a dyn Volume,
    keys: KeySpace,
    report: Report,
    inodes: BTreeMap<Ino, Seen>,
    dirents: Vec<(Ino, Dirent)>,
    xattrs: Vec<(Ino, u8)>,
    orphans: BTreeMap<Ino, ()>,
    dead: BTreeMap<Ino, DeadSet>,
    counter: Option<Counter>,
    superblock: Option<Superblock>,
}

/// Examines a volume. With `data` blocks are read too; without, what depends on them is not judged.
/// `progress` hears how many of how many steps are done.
///
/// # Errors
/// A shard cannot be read; everything else is in the report.
pub async fn examine(
    volume: &dyn Volume,
    data: bool,
    mut progress: impl FnMut(u64, u64),
) -> Result<Report, VolumeError> {
    let mut c = Checker {
        volume,
        keys: KeySpace::new(volume.shards()),
        report: Report::default(),
        inodes: BTreeMap::new(),
        dirents: Vec::new(),
        xattrs: Vec::new(),
        orphans: BTreeMap::new(),
        dead: BTreeMap::new(),
        counter: None,
        superblock: None,
    };
    let shards = volume.shards();
    let total = u64::from(shards) * if data { 2 } else { 1 };
    // Blocks come last: what they are compared with must be known.
    let (blocks, after) = (vec![key::BLOCK], vec![key::BLOCK + 1]);
    for shard in 0..shards {
        progress(u64::from(shard), total);
        c.scan(shard, Key::new(), blocks.clone()).await?;
        c.scan(shard, after.clone(), Key::new()).await?;
    }
    c.join();
    for shard in (0..shards).filter(|_| data) {
        progress(u64::from(shards) + u64::from(shard), total);
        c.scan(shard, blocks.clone(), after.clone()).await?;
    }
    c.finish(data);
    Ok(c.report)
}

impl Checker<'_> {
    async fn scan(&mut self, shard: u16, mut start: Key, end: Key) -> Result<(), VolumeError> {
        loop {
            let page = self.volume.scan(shard, start, end.clone(), PAGE).await?;
            for (key, stored) in page.records {
                self.record(shard, &key, &stored.value);
            }
            match page.next {
                Some(next) => start = next,
                None => return Ok(()),
            }
        }
    }

    fn place(&mut self, shard: u16, expected: u16, what: &Parsed) {
        if shard != expected {
            self.report.problem(format!("{what:?} lies on shard {shard}, not {expected}"));
        }
    }

    fn decode<R: Record>(&mut self, key: &Parsed, value: &[u8]) -> Option<R> {
        match R::from_bytes(value) {
            Ok(record) => Some(record),
            Err(e) => {
                self.report.problem(format!("{key:?}: {e}"));
                None
            }
        }
    }

    fn record(&mut self, shard: u16, key: &[u8], value: &[u8]) {
        let Some(parsed) = key::parse(key) else {
            self.report.problem(format!("a key that is none of ours: {key:02x?}"));
            return;
        };
        let keys = self.keys;
        match &parsed {
            Parsed::Superblock => match Superblock::read(value, self.volume.id()) {
                Ok(sb) => self.superblock = Some(sb),
                Err(e) => self.report.problem(e),
            },
            Parsed::Counter => self.counter = self.decode(&parsed, value),
            Parsed::Inode(ino) => {
                self.place(shard, keys.shard_of_ino(*ino), &parsed);
                self.report.inodes += 1;
                if let Some(inode) = self.decode::<Inode>(&parsed, value) {
                    self.report.directories += u64::from(inode.kind == Kind::Directory);
                    let seen = Seen {
                        inode,
                        names: 0,
                        named_in: 0,
                        entries: 0,
                        subdirs: 0,
                        xattrs: 0,
                        flags: 0,
                        blocks: 0,
                    };
                    self.inodes.insert(*ino, seen);
                }
            }
            Parsed::Dirent { dir, hash, name } => {
                self.place(shard, keys.shard_of_ino(*dir), &parsed);
                self.report.names += 1;
                let hasher = self.superblock.as_ref().map(|sb| NameHasher::new(sb.name_key));
                // Shard 0 comes first and holds the superblock first.
                if hasher.is_some_and(|h| h.hash(name) != *hash) {
                    self.report.problem(format!("{parsed:?}: the hash is not the name's"));
                }
                if let Some(dirent) = self.decode(&parsed, value) {
                    self.dirents.push((*dir, dirent));
                }
            }
            Parsed::Xattr { ino, name } => {
                self.place(shard, keys.shard_of_ino(*ino), &parsed);
                self.report.xattrs += 1;
                self.xattrs.push((*ino, inode_flags::of_xattr(name)));
            }
            Parsed::Orphan(ino) => {
                self.place(shard, keys.shard_of_ino(*ino), &parsed);
                self.report.orphans += 1;
                if self.decode::<Orphan>(&parsed, value).is_some() {
                    self.orphans.insert(*ino, ());
                }
            }
            Parsed::Dead(ino) => {
                self.place(shard, keys.shard_of_ino(*ino), &parsed);
                if let Some(set) = self.decode::<DeadSet>(&parsed, value) {
                    self.dead.insert(*ino, set);
                }
            }
            Parsed::Block { ino, block } => {
                self.place(shard, keys.shard_of_block(*ino, *block), &parsed);
                self.block(*ino, *block, value);
            }
        }
    }

    fn block(&mut self, ino: Ino, block: u64, value: &[u8]) {
        self.report.blocks += 1;
        self.report.block_bytes += value.len() as u64;
        let bs = self.superblock.as_ref().map_or(u32::MAX, |sb| sb.block_size);
        if value.len() > bs as usize || value.last().is_none_or(|&b| b == 0) {
            let len = value.len();
            self.report
                .problem(format!("block {block} of {ino}: {len} bytes or a zero at its end"));
        }
        let Some(seen) = self.inodes.get_mut(&ino) else {
            self.report.problem(format!("block {block} of inode {ino}, which is not there"));
            return;
        };
        match self.dead.get(&ino).and_then(|set| set.get(block)) {
            Some(under) => {
                self.report.dead_blocks += 1;
                seen.blocks += u64::from(under == Under::Counted);
            }
            None if seen.inode.kind != Kind::File || block >= seen.inode.span(bs) => {
                let size = seen.inode.size;
                self.report.problem(format!("block {block} of {ino} lies behind its {size} bytes"));
            }
            None => {
                seen.blocks += 1;
                let end = block * u64::from(bs) + value.len() as u64;
                if end > seen.inode.size {
                    self.report.problem(format!("block {block} of {ino} has bytes behind the end"));
                }
            }
        }
    }

    /// Names and attributes to their inodes.
    fn join(&mut self) {
        for (dir, dirent) in std::mem::take(&mut self.dirents) {
            let is_dir = dirent.kind == Kind::Directory;
            match self.inodes.get_mut(&dir) {
                Some(seen) if seen.inode.kind == Kind::Directory => {
                    seen.entries += 1;
                    seen.subdirs += u32::from(is_dir);
                }
                _ => self.report.problem(format!("a name in {dir}, which is no directory")),
            }
            match self.inodes.get_mut(&dirent.ino) {
                None => {
                    self.report
                        .problem(format!("a name in {dir} leads to {}: not there", dirent.ino));
                }
                Some(seen) => {
                    seen.names += 1;
                    seen.named_in = dir;
                    if seen.inode.kind != dirent.kind {
                        self.report.problem(format!(
                            "a name in {dir} says {:?} of {}, which is {:?}",
                            dirent.kind, dirent.ino, seen.inode.kind
                        ));
                    }
                }
            }
        }
        for (ino, flag) in std::mem::take(&mut self.xattrs) {
            match self.inodes.get_mut(&ino) {
                Some(seen) => {
                    seen.xattrs += 1;
                    seen.flags |= flag;
                }
                None => self.report.problem(format!("an attribute of {ino}, which is not there")),
            }
        }
    }

    fn finish(&mut self, data: bool) {
        let mut problems = Vec::new();
        if self.superblock.is_none() {
            problems.push("no superblock".into());
        }
        match self.inodes.get(&ROOT) {
            Some(root) if root.inode.kind == Kind::Directory && root.names == 0 => {}
            _ => problems.push("the root directory is not there, or has a name".into()),
        }
        let next = self.counter.map_or(0, |c| c.next);
        for ino in self.orphans.keys().chain(self.dead.keys()) {
            if !self.inodes.contains_key(ino) {
                problems.push(format!("a mark of inode {ino}, which is not there"));
            }
        }
        for (&ino, seen) in &self.inodes {
            let i = &seen.inode;
            if ino >> 8 >= next {
                problems.push(format!("inode {ino} has a number that was never reserved"));
            }
            if (i.nlink == 0) != self.orphans.contains_key(&ino) {
                problems.push(format!("inode {ino} has {} links, orphan or not", i.nlink));
            }
            let (nlink, names) = match i.kind {
                Kind::Directory if i.nlink > 0 => (2 + seen.subdirs, u32::from(ino != ROOT)),
                Kind::Directory => (0, 0),
                _ => (seen.names, i.nlink),
            };
            if i.nlink != nlink || seen.names != names {
                let (links, names) = (i.nlink, seen.names);
                problems
                    .push(format!("inode {ino}: {links} links, should be {nlink}; {names} names"));
            }
            if i.kind == Kind::Directory {
                if i.size != seen.entries {
                    let (size, entries) = (i.size, seen.entries);
                    problems.push(format!("directory {ino} says {size} entries, has {entries}"));
                }
                if i.nlink > 0 && ino != ROOT && i.parent != seen.named_in {
                    let (parent, named) = (i.parent, seen.named_in);
                    problems.push(format!("directory {ino} says parent {parent}, lies in {named}"));
                }
            }
            if i.xattrs != seen.xattrs || seen.flags != i.flags & inode_flags::XATTRS {
                let (says, has) = (i.xattrs, seen.xattrs);
                problems.push(format!("inode {ino} says {says} attributes, has {has}"));
            }
            if data && i.blocks != seen.blocks {
                let (says, has) = (i.blocks, seen.blocks);
                problems.push(format!("inode {ino} says {says} blocks, has {has}"));
            }
        }
        self.cycles(&mut problems);
        for p in problems {
            self.report.problem(p);
        }
    }

    /// Every directory leads up to the root.
    fn cycles(&self, problems: &mut Vec<String>) {
        let mut good = BTreeMap::from([(ROOT, ())]);
        for (&ino, seen) in &self.inodes {
            if seen.inode.kind != Kind::Directory || seen.inode.nlink == 0 {
                continue;
            }
            let (mut path, mut at) = (Vec::new(), ino);
            while !good.contains_key(&at) {
                if path.contains(&at) || path.len() > self.inodes.len() {
                    problems.push(format!("directory {ino} is not reachable from the root"));
                    path.clear();
                    break;
                }
                path.push(at);
                at = match self.inodes.get(&at) {
                    Some(seen) if seen.names == 1 => seen.named_in,
                    _ => {
                        problems.push(format!("directory {ino} is not reachable from the root"));
                        path.clear();
                        break;
                    }
                };
            }
            good.extend(path.into_iter().map(|d| (d, ())));
        }
    }
}
