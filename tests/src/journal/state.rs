//! What a directory looks like: after so many operations, or as it is found.

use crate::random::block;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Bytes of a page.
pub const PAGE: usize = 4096;
/// A page that was never written.
const HOLE: u64 = 0;

/// One operation. Paths are relative.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Op {
    /// A new directory.
    Mkdir(String),
    /// A new file of `len` bytes.
    Make(String, usize),
    /// So many new pages at the end of a file (made if it is not there).
    Append(String, usize),
    /// Page `n` of a file is replaced.
    Overwrite(String, usize),
    /// Also over an existing file.
    Rename(String, String),
    /// A second name.
    Link(String, String),
    /// A name goes.
    Unlink(String),
}

/// Content of a file, without its bytes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Content {
    pub(super) len: usize,
    /// Who wrote each page.
    pub(super) pages: Vec<u64>,
}

/// A directory: the state after a number of operations, or what was found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct State {
    pub(super) dirs: BTreeSet<String>,
    /// Name to file.
    pub(super) names: BTreeMap<String, u64>,
    files: BTreeMap<u64, Content>,
}

/// The name that operation `n` gives to page `page` of what it writes.
fn stamp(n: u64, page: usize) -> u64 {
    (n + 1) << 12 | page as u64
}

pub(super) fn page_bytes(seed: u64, stamp: u64, len: usize) -> Vec<u8> {
    let mut bytes = block(seed, stamp, len);
    bytes[..8].copy_from_slice(&stamp.to_le_bytes());
    bytes
}

/// Who wrote this page; `Err` = nobody.
fn read_page(seed: u64, bytes: &[u8]) -> Result<u64, String> {
    if bytes.iter().all(|b| *b == 0) {
        return Ok(HOLE);
    }
    let stamp = bytes.first_chunk().map_or(0, |b| u64::from_le_bytes(*b));
    if bytes.len() >= 8 && page_bytes(seed, stamp, bytes.len()) == bytes {
        return Ok(stamp);
    }
    // A page that is longer than what was written is filled up with zeros.
    Err(format!("WRONG BYTES in a page that begins with {:02x?}", &bytes[..bytes.len().min(16)]))
}

impl State {
    /// The bytes operation `n` writes, by page; and where the first stands.
    pub(super) fn written(&self, n: u64, op: &Op) -> (usize, Vec<(u64, usize)>) {
        let whole = |count: usize| (0..count).map(|p| (stamp(n, p), PAGE)).collect::<Vec<_>>();
        match op {
            Op::Make(_, len) => {
                let pages =
                    (0..len.div_ceil(PAGE)).map(|p| (stamp(n, p), PAGE.min(len - p * PAGE)));
                (0, pages.collect())
            }
            Op::Append(path, count) => {
                (self.content(path).map_or(0, |c| c.pages.len()), whole(*count))
            }
            Op::Overwrite(_, page) => (*page, whole(1)),
            _ => (0, Vec::new()),
        }
    }

    pub(super) fn content(&self, path: &str) -> Option<&Content> {
        self.files.get(self.names.get(path)?)
    }

    /// Performs operation `n`.
    pub(super) fn apply(&mut self, n: u64, op: &Op) {
        let (at, pages) = self.written(n, op);
        match op {
            Op::Mkdir(path) => {
                self.dirs.insert(path.clone());
            }
            Op::Make(path, _) | Op::Append(path, _) | Op::Overwrite(path, _) => {
                let file = *self.names.entry(path.clone()).or_insert(n);
                let content = self.files.entry(file).or_default();
                for (k, (stamp, len)) in pages.into_iter().enumerate() {
                    content.pages.resize(content.pages.len().max(at + k + 1), HOLE);
                    content.pages[at + k] = stamp;
                    content.len = content.len.max((at + k) * PAGE + len);
                }
            }
            Op::Rename(from, to) => {
                if let Some(file) = self.names.remove(from) {
                    self.names.insert(to.clone(), file);
                }
            }
            Op::Link(from, to) => {
                if let Some(file) = self.names.get(from).copied() {
                    self.names.insert(to.clone(), file);
                }
            }
            Op::Unlink(path) => {
                self.names.remove(path);
            }
        }
        if matches!(op, Op::Rename(..) | Op::Unlink(..)) {
            let used: BTreeSet<u64> = self.names.values().copied().collect();
            self.files.retain(|file, _| used.contains(file));
        }
    }

    /// Reads a directory.
    ///
    /// # Errors
    /// What cannot be read, and pages that nobody wrote.
    pub fn found(root: &Path, seed: u64) -> Result<Self, String> {
        let mut out = Self::default();
        let mut todo = vec![root.to_path_buf()];
        while let Some(dir) = todo.pop() {
            let fail = |e: io::Error| format!("{}: {e}", dir.display());
            for entry in fs::read_dir(&dir).map_err(fail)? {
                let path = entry.map_err(fail)?.path();
                let fail = |e: io::Error| format!("{}: {e}", path.display());
                let meta = path.symlink_metadata().map_err(fail)?;
                let name = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().into_owned();
                if meta.is_dir() {
                    out.dirs.insert(name);
                    todo.push(path);
                    continue;
                }
                if let std::collections::btree_map::Entry::Vacant(e) = out.files.entry(meta.ino()) {
                    let bytes = fs::read(&path).map_err(fail)?;
                    let pages = bytes.chunks(PAGE).map(|p| read_page(seed, p));
                    let pages = pages.collect::<Result<_, _>>();
                    let pages = pages.map_err(|e| format!("{}: {e}", path.display()))?;
                    e.insert(Content { len: bytes.len(), pages });
                }
                out.names.insert(name, meta.ino());
            }
        }
        Ok(out)
    }

    /// How `found` differs, the first few; `open` may be anything that lies between its state here and
    /// its state in `next`.
    pub(super) fn differences(&self, found: &Self, next: Option<(&Self, &str)>) -> Vec<String> {
        let mut out = Vec::new();
        let dirs = self.dirs.symmetric_difference(&found.dirs);
        out.extend(dirs.map(|d| format!("directory {d}: there, or not there")));
        let names: BTreeSet<&String> = self.names.keys().chain(found.names.keys()).collect();
        // Two names are one file in both, or in neither.
        let mut same: BTreeMap<u64, u64> = BTreeMap::new();
        for name in names {
            let (want, have) = (self.content(name), found.content(name));
            let between = next.is_some_and(|(next, open)| {
                open == name && is_between(want, have, next.content(name))
            });
            if want != have && !between {
                out.push(format!("{name}: wanted {}, found {}", in_words(want), in_words(have)));
            }
            if let (Some(a), Some(b)) = (self.names.get(name), found.names.get(name))
                && *same.entry(*a).or_insert(*b) != *b
            {
                out.push(format!("{name}: another file than its other name"));
            }
        }
        out
    }
}

fn in_words(content: Option<&Content>) -> String {
    match content {
        None => "nothing".into(),
        Some(c) => {
            let first = c.pages.iter().take(4).map(|s| format!("{}.{}", s >> 12, s & 0xfff));
            format!("{} bytes, pages {:?}...", c.len, first.collect::<Vec<_>>())
        }
    }
}

/// May this be seen while a file is on its way from `old` to `new`? It is made, and pages reach it one
/// by one, in whatever order the kernel writes them back.
fn is_between(old: Option<&Content>, have: Option<&Content>, new: Option<&Content>) -> bool {
    let none = Content::default();
    let (Some(have), Some(new)) = (have, new) else { return have == old };
    let old = old.unwrap_or(&none);
    let page = |c: &Content, n: usize| c.pages.get(n).copied().unwrap_or(HOLE);
    have.len <= new.len
        && (have.len == old.len || have.len == new.len || have.len % PAGE == 0)
        && have.len >= old.len.min(new.len)
        && (0..have.pages.len()).all(|n| [page(old, n), page(new, n)].contains(&page(have, n)))
}
