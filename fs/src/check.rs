//! Is the whole tree consistent? Looks at every record through the voter, changes nothing.
//!
//! A pass reads all inodes, names, marks and attributes (and with `data` all blocks) and compares
//! what refers to what. The mount goes on meanwhile, so a pass may see the two halves of a change:
//! what looks wrong is looked at again, and only what two passes in a row find is reported. Memory:
//! about 100 bytes for each inode.

use crate::control::{ControlError, ProgressSink};
use crate::dead::{DeadSet, Under};
use crate::filesystem::{Ino, Kind};
use crate::key::{self, KeySpace, Parsed, ROOT};
use crate::record::{Dirent, Inode, Record};
use serde::Serialize;
use std::collections::{BTreeSet, HashMap, HashSet};
use voter::volume::{Key, Volume, VolumeError};

/// Records in one page of a scan.
const PAGE: usize = 4_096;
/// Passes until what is found must be true.
const PASSES: usize = 3;
/// Findings listed; the others are counted.
const LISTED_MAX: usize = 100;

/// What a check found.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// Inodes.
    pub inodes: u64,
    /// Directory entries.
    pub names: u64,
    /// Block records; 0 without `data`.
    pub blocks: u64,
    /// How many findings.
    pub wrong: u64,
    /// The first of them, in words.
    pub findings: Vec<String>,
}

/// What is known of an inode after a pass.
struct Seen {
    inode: Inode,
    /// Names that lead to it.
    names: u32,
    /// Directory that holds its (last seen) name.
    held_by: Ino,
    /// Directories: entries, and those that are directories.
    entries: u64,
    subdirs: u32,
    xattrs: u32,
    blocks: u64,
}

#[derive(Default)]
struct Pass {
    seen: HashMap<Ino, Seen>,
    orphans: HashSet<Ino>,
    dead: HashMap<Ino, DeadSet>,
    findings: BTreeSet<String>,
    names: u64,
    blocks: u64,
}

/// Checks everything; with `data` also that each file has the blocks it counts.
///
/// # Errors
/// A shard cannot be read.
pub async fn run(
    volume: &dyn Volume,
    data: bool,
    progress: &ProgressSink,
) -> Result<Report, ControlError> {
    let mut confirmed: Option<BTreeSet<String>> = None;
    for n in 1.. {
        let what = if n == 1 { "checking".to_owned() } else { format!("checking again ({n})") };
        let pass = pass(volume, data, &what, progress).await.map_err(|e| {
            let hint = "`tercet status` shows the banks";
            ControlError::new(1, format!("the check could not read everything: {e}"), hint)
        })?;
        let both = match confirmed {
            // An inode number stands in each finding, so equal words mean the same thing.
            Some(before) => before.intersection(&pass.findings).cloned().collect(),
            None => pass.findings.clone(),
        };
        if both.is_empty() || n >= PASSES {
            return Ok(Report {
                inodes: pass.seen.len() as u64,
                names: pass.names,
                blocks: pass.blocks,
                wrong: both.len() as u64,
                findings: both.into_iter().take(LISTED_MAX).collect(),
            });
        }
        confirmed = Some(both);
    }
    unreachable!("the loop ends at PASSES")
}

async fn pass(
    volume: &dyn Volume,
    data: bool,
    what: &str,
    progress: &ProgressSink,
) -> Result<Pass, VolumeError> {
    let mut pass = Pass::default();
    let keys = KeySpace::new(volume.shards());
    let inodes = keys.inode(ROOT).1[0];
    let blocks = keys.block(ROOT, 0).1[0];
    let to = |kind: u8| vec![kind];
    // Inodes of all shards before what refers to them, marks before the blocks they cover.
    let mut rounds = vec![
        vec![(to(inodes), to(inodes + 1))],
        vec![(to(0), to(inodes)), (to(inodes + 1), to(blocks)), (to(blocks + 1), Key::new())],
    ];
    if data {
        rounds.push(vec![(to(blocks), to(blocks + 1))]);
    }
    let total = rounds.len() as u64 * u64::from(volume.shards());
    let mut done = 0;
    for ranges in rounds {
        for shard in 0..volume.shards() {
            progress.tell(what, done, total, "shards");
            for (start, end) in ranges.clone() {
                scan(volume, shard, start, end, &mut pass).await?;
            }
            done += 1;
        }
    }
    pass.judge(data);
    Ok(pass)
}

async fn scan(
    volume: &dyn Volume,
    shard: u16,
    mut start: Key,
    end: Key,
    pass: &mut Pass,
) -> Result<(), VolumeError> {
    loop {
        let page = volume.scan(shard, start, end.clone(), PAGE).await?;
        for (key, stored) in &page.records {
            pass.take(key, &stored.value);
        }
        match page.next {
            Some(next) => start = next,
            None => return Ok(()),
        }
    }
}

impl Pass {
    fn found(&mut self, finding: String) {
        self.findings.insert(finding);
    }

    fn take(&mut self, key: &[u8], value: &[u8]) {
        match key::parse(key) {
            None => self.found(format!("unknown key {key:02x?}")),
            Some(Parsed::Superblock | Parsed::Counter) => {}
            Some(Parsed::Inode(ino)) => match Inode::from_bytes(value) {
                Ok(inode) => {
                    let seen = Seen {
                        inode,
                        names: 0,
                        held_by: 0,
                        entries: 0,
                        subdirs: 0,
                        xattrs: 0,
                        blocks: 0,
                    };
                    self.seen.insert(ino, seen);
                }
                Err(e) => self.found(format!("inode {ino}: {e}")),
            },
            Some(Parsed::Dirent { dir, name, .. }) => self.take_name(dir, &name, value),
            Some(Parsed::Xattr { ino, .. }) => match self.seen.get_mut(&ino) {
                Some(seen) => seen.xattrs += 1,
                None => {
                    self.found(format!("extended attributes of inode {ino}, which is not there"))
                }
            },
            Some(Parsed::Block { ino, block }) => self.take_block(ino, block),
            Some(Parsed::Orphan(ino)) => {
                self.orphans.insert(ino);
            }
            Some(Parsed::Dead(ino)) => match DeadSet::from_bytes(value) {
                Ok(set) => {
                    self.dead.insert(ino, set);
                }
                Err(e) => self.found(format!("dead ranges of inode {ino}: {e}")),
            },
        }
    }

    fn take_name(&mut self, dir: Ino, name: &[u8], value: &[u8]) {
        self.names += 1;
        let shown = String::from_utf8_lossy(name).into_owned();
        let entry = match Dirent::from_bytes(value) {
            Ok(entry) => entry,
            Err(e) => return self.found(format!("name {shown} in directory {dir}: {e}")),
        };
        match self.seen.get_mut(&dir) {
            Some(seen) if seen.inode.kind == Kind::Directory => {
                seen.entries += 1;
                seen.subdirs += u32::from(entry.kind == Kind::Directory);
            }
            _ => self.found(format!("name {shown} in inode {dir}, which is no directory")),
        }
        match self.seen.get_mut(&entry.ino) {
            Some(seen) => {
                seen.names += 1;
                seen.held_by = dir;
                if seen.inode.kind != entry.kind {
                    let is = seen.inode.kind;
                    let ino = entry.ino;
                    self.found(format!(
                        "name {shown} in directory {dir} says {:?}, inode {ino} is {is:?}",
                        entry.kind
                    ));
                }
            }
            None => self.found(format!(
                "name {shown} in directory {dir} leads to inode {}, which is not there",
                entry.ino
            )),
        }
    }

    fn take_block(&mut self, ino: Ino, block: u64) {
        self.blocks += 1;
        let under = self.dead.get(&ino).and_then(|set| set.get(block));
        match self.seen.get_mut(&ino) {
            Some(seen) => seen.blocks += u64::from(matches!(under, None | Some(Under::Counted))),
            None if under.is_some() => {} // reclaimed with the mark
            None => self.found(format!("blocks of inode {ino}, which is not there")),
        }
    }

    /// Compares what was counted with what the inodes say.
    fn judge(&mut self, data: bool) {
        let mut found = Vec::new();
        for (ino, seen) in &self.seen {
            let inode = &seen.inode;
            let orphan = self.orphans.contains(ino);
            if orphan != (inode.nlink == 0) {
                found.push(format!(
                    "inode {ino} has {} links, its orphan mark is {}",
                    inode.nlink,
                    if orphan { "there" } else { "missing" }
                ));
            }
            if inode.kind == Kind::Directory {
                let names = u32::from(*ino != ROOT && inode.nlink > 0);
                if seen.names != names {
                    found.push(format!("directory {ino} has {} names", seen.names));
                }
                if inode.nlink > 0 && inode.nlink != seen.subdirs + 2 {
                    found.push(format!(
                        "directory {ino} has {} links and {} subdirectories",
                        inode.nlink, seen.subdirs
                    ));
                }
                if inode.size != seen.entries {
                    found.push(format!(
                        "directory {ino} counts {} entries, {} are there",
                        inode.size, seen.entries
                    ));
                }
                if seen.names == 1 && inode.parent != seen.held_by {
                    found.push(format!(
                        "directory {ino} lies in {}, it says {}",
                        seen.held_by, inode.parent
                    ));
                }
            } else if inode.nlink != seen.names {
                found.push(format!(
                    "inode {ino} has {} links, {} names lead to it",
                    inode.nlink, seen.names
                ));
            }
            if inode.xattrs != seen.xattrs {
                found.push(format!(
                    "inode {ino} counts {} extended attributes, {} are there",
                    inode.xattrs, seen.xattrs
                ));
            }
            if data && inode.blocks != seen.blocks {
                found.push(format!(
                    "inode {ino} counts {} blocks, {} are there",
                    inode.blocks, seen.blocks
                ));
            }
        }
        if !self.seen.contains_key(&ROOT) {
            found.push("the root directory is not there".into());
        }
        for ino in self.orphans.iter().filter(|ino| !self.seen.contains_key(ino)) {
            found.push(format!("orphan mark of inode {ino}, which is not there"));
        }
        self.findings.extend(found);
    }
}
