//! A directory in memory that keeps apart what was written and what is durable.

use super::{Disk, DiskFile, DiskSpace};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

/// A directory in memory, for tests and simulations. Clones share it.
///
/// What is written is *live*; what was synced is *durable*. [`MemoryDisk::crash`] makes the durable
/// image the live one, except for as much of the unsynced writes as a caller's choice lets through.
#[derive(Clone, Debug, Default)]
pub struct MemoryDisk(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    /// Names as a running process sees them.
    live: BTreeMap<String, u64>,
    /// Names that survive a power cut.
    durable: BTreeMap<String, u64>,
    files: BTreeMap<u64, Content>,
    next_file: u64,
    capacity: Option<u64>,
    /// Grows with each crash: handles from before answer errors.
    generation: u64,
    operations: u64,
    fail_at: Option<u64>,
    /// All from this operation on fail.
    fail_from: Option<u64>,
    fail_syncs: bool,
    fail_all: bool,
    syncs: u64,
    bytes_written: u64,
    phase: Option<usize>,
}

#[derive(Clone, Debug, Default)]
struct Content {
    live: Vec<u8>,
    durable: Vec<u8>,
    /// Writes since the last sync, in order: a power cut may keep any of them, whole or in part.
    unsynced: Vec<(u64, Vec<u8>)>,
    /// It was cut since the last sync: the writes alone do not make `durable` equal `live`.
    cut: bool,
}

impl Content {
    fn whole(bytes: Vec<u8>) -> Self {
        Self { durable: bytes.clone(), live: bytes, ..Self::default() }
    }

    /// Makes what is live durable, at the cost of what was written since the last sync.
    fn sync(&mut self) {
        let writes = std::mem::take(&mut self.unsynced);
        if std::mem::take(&mut self.cut) {
            self.durable.clone_from(&self.live);
            return;
        }
        for (offset, bytes) in writes {
            put(&mut self.durable, offset, &bytes);
        }
        self.durable.resize(self.live.len(), 0);
    }
}

fn injected() -> io::Error {
    io::Error::other("injected disk error")
}

impl Inner {
    /// Every operation that could fail on a real disk passes here.
    fn step(&mut self) -> io::Result<()> {
        self.operations += 1;
        let from_here = self.fail_from.is_some_and(|n| self.operations >= n);
        if self.fail_all || from_here || self.fail_at == Some(self.operations) {
            return Err(injected());
        }
        Ok(())
    }

    fn used(&self) -> u64 {
        self.live.values().filter_map(|id| self.files.get(id)).map(|c| c.live.len() as u64).sum()
    }

    fn room(&self, more: u64) -> io::Result<()> {
        match self.capacity {
            Some(c) if self.used() + more > c => Err(io::ErrorKind::StorageFull.into()),
            _ => Ok(()),
        }
    }

    fn drop_unnamed(&mut self) {
        let named: std::collections::BTreeSet<u64> =
            self.live.values().chain(self.durable.values()).copied().collect();
        // Open handles may still read a removed file, as on Unix: keep it until the next crash.
        if named.len() < self.files.len() {
            self.files.retain(|id, _| named.contains(id));
        }
    }
}

impl MemoryDisk {
    /// An empty directory without a size limit.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks for long pieces in phase, as a disk does that writes them without a copy: see [`DiskFile::phase`].
    pub fn set_phase(&self, phase: usize) {
        self.0.lock().phase = Some(phase);
    }

    /// Limits all files together; `None` = no limit.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.0.lock().capacity = bytes;
    }

    /// Cuts the power: only what was synced remains. Handles of before answer errors from now on.
    pub fn crash(&self) {
        self.crash_keeping(|_, _| 0);
    }

    /// Cuts the power; of each write that was not synced, `keep(file, length)` says how many of its
    /// first bytes reached the disk all the same.
    pub fn crash_keeping(&self, mut keep: impl FnMut(&str, usize) -> usize) {
        let mut i = self.0.lock();
        i.generation += 1;
        i.live = i.durable.clone();
        let names: Vec<(String, u64)> = i.durable.iter().map(|(n, id)| (n.clone(), *id)).collect();
        i.drop_unnamed();
        for (name, id) in names {
            let Some(c) = i.files.get_mut(&id) else { continue };
            c.cut = false;
            for (offset, bytes) in std::mem::take(&mut c.unsynced) {
                let n = keep(&name, bytes.len()).min(bytes.len());
                put(&mut c.durable, offset, &bytes[..n]);
            }
            c.live = c.durable.clone();
        }
        i.fail_at = None;
        i.fail_from = None;
        i.fail_syncs = false;
        i.fail_all = false;
    }

    /// Ends the process without a power cut: all that was written stays, handles of before answer
    /// errors, injected failures end.
    pub fn kill(&self) {
        let mut i = self.0.lock();
        i.generation += 1;
        i.fail_at = None;
        i.fail_from = None;
        i.fail_syncs = false;
        i.fail_all = false;
    }

    /// The `n`-th operation from now on (1 = the next one) fails; the ones behind it work.
    pub fn fail_nth(&self, n: u64) {
        let mut i = self.0.lock();
        i.fail_at = Some(i.operations + n);
    }

    /// The `n`-th operation from now on (1 = the next one) and all behind it fail.
    pub fn fail_from(&self, n: u64) {
        let mut i = self.0.lock();
        i.fail_from = Some(i.operations + n);
    }

    /// All syncs fail; the written bytes are forgotten, as a kernel does.
    pub fn fail_syncs(&self, on: bool) {
        self.0.lock().fail_syncs = on;
    }

    /// Everything fails.
    pub fn fail_all(&self, on: bool) {
        self.0.lock().fail_all = on;
    }

    /// Operations so far: what [`MemoryDisk::fail_nth`] counts.
    #[must_use]
    pub fn operations(&self) -> u64 {
        self.0.lock().operations
    }

    /// File syncs so far.
    #[must_use]
    pub fn syncs(&self) -> u64 {
        self.0.lock().syncs
    }

    /// Bytes written so far.
    #[must_use]
    pub fn bytes_written(&self) -> u64 {
        self.0.lock().bytes_written
    }

    /// Flips bits of one byte, live and durable. Answers false when there is no such byte.
    pub fn flip(&self, name: &str, offset: u64, mask: u8) -> bool {
        let mut i = self.0.lock();
        let Some(id) = i.live.get(name).copied() else { return false };
        let Some(c) = i.files.get_mut(&id) else { return false };
        let Some(b) = c.live.get_mut(offset as usize) else { return false };
        *b ^= mask;
        if let Some(b) = c.durable.get_mut(offset as usize) {
            *b ^= mask;
        }
        true
    }

    /// A copy of a file's live content.
    #[must_use]
    pub fn content(&self, name: &str) -> Option<Vec<u8>> {
        let i = self.0.lock();
        i.live.get(name).and_then(|id| i.files.get(id)).map(|c| c.live.clone())
    }

    /// A second directory with the same content, all of it durable (an old copy to be put back).
    #[must_use]
    pub fn copy(&self) -> Self {
        let i = self.0.lock();
        let mut files = BTreeMap::new();
        for id in i.live.values() {
            if let Some(c) = i.files.get(id) {
                files.insert(*id, Content::whole(c.live.clone()));
            }
        }
        Self(Arc::new(Mutex::new(Inner {
            live: i.live.clone(),
            durable: i.live.clone(),
            files,
            next_file: i.next_file,
            capacity: i.capacity,
            ..Inner::default()
        })))
    }

    fn handle(&self, i: &Inner, id: u64) -> Arc<dyn DiskFile> {
        Arc::new(MemoryFile { disk: self.0.clone(), id, generation: i.generation })
    }
}

fn put(into: &mut Vec<u8>, offset: u64, bytes: &[u8]) {
    let (from, to) = (offset as usize, offset as usize + bytes.len());
    if bytes.is_empty() {
        return;
    }
    if into.len() < to {
        into.resize(to, 0);
    }
    into[from..to].copy_from_slice(bytes);
}

impl Disk for MemoryDisk {
    fn lock(&self) -> io::Result<()> {
        Ok(())
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut i = self.0.lock();
        i.step()?;
        Ok(i.live.keys().cloned().collect())
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let mut i = self.0.lock();
        i.step()?;
        let id = *i.live.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(self.handle(&i, id))
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let mut i = self.0.lock();
        i.step()?;
        if i.live.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let id = i.next_file;
        i.next_file += 1;
        i.live.insert(name.to_owned(), id);
        i.files.insert(id, Content::default());
        Ok(self.handle(&i, id))
    }

    fn replace(&self, name: &str, content: &[u8]) -> io::Result<()> {
        let mut i = self.0.lock();
        i.step()?;
        i.room(content.len() as u64)?;
        let id = i.next_file;
        i.next_file += 1;
        i.bytes_written += content.len() as u64;
        i.files.insert(id, Content::whole(content.to_vec()));
        i.live.insert(name.to_owned(), id);
        i.durable.insert(name.to_owned(), id);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut i = self.0.lock();
        i.step()?;
        i.live.remove(name);
        Ok(())
    }

    fn sync_dir(&self) -> io::Result<()> {
        let mut i = self.0.lock();
        i.step()?;
        i.durable = i.live.clone();
        Ok(())
    }

    fn space(&self) -> io::Result<DiskSpace> {
        let mut i = self.0.lock();
        i.step()?;
        let total_bytes = i.capacity.unwrap_or(1 << 40);
        Ok(DiskSpace { total_bytes, free_bytes: total_bytes.saturating_sub(i.used()) })
    }
}

struct MemoryFile {
    disk: Arc<Mutex<Inner>>,
    id: u64,
    generation: u64,
}

impl MemoryFile {
    fn with<T>(&self, f: impl FnOnce(&mut Inner, u64) -> io::Result<T>) -> io::Result<T> {
        let mut i = self.disk.lock();
        if i.generation != self.generation || !i.files.contains_key(&self.id) {
            return Err(io::Error::other("handle of before the crash"));
        }
        i.step()?;
        f(&mut i, self.id)
    }
}

impl DiskFile for MemoryFile {
    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<usize> {
        self.with(|i, id| {
            let all = i.files.get(&id).map_or(&[][..], |c| &c.live);
            let from = (offset as usize).min(all.len());
            let n = into.len().min(all.len() - from);
            into[..n].copy_from_slice(&all[from..from + n]);
            Ok(n)
        })
    }

    fn write_at(&self, pieces: &[&[u8]], offset: u64) -> io::Result<()> {
        self.with(|i, id| {
            let bytes = pieces.concat();
            let have = i.files.get(&id).map_or(0, |c| c.live.len() as u64);
            i.room((offset + bytes.len() as u64).saturating_sub(have))?;
            i.bytes_written += bytes.len() as u64;
            if let Some(c) = i.files.get_mut(&id) {
                put(&mut c.live, offset, &bytes);
                c.unsynced.push((offset, bytes));
            }
            Ok(())
        })
    }

    fn phase(&self) -> usize {
        self.disk.lock().phase.unwrap_or(1)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.with(|i, id| {
            let fail = i.fail_syncs;
            i.syncs += 1;
            let Some(c) = i.files.get_mut(&id) else { return Ok(()) };
            if fail {
                // The kernel marks the pages clean: they can be read until the power goes, and no
                // later sync writes them.
                c.unsynced.clear();
                return Err(injected());
            }
            c.sync();
            Ok(())
        })
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        self.with(|i, id| {
            let have = i.files.get(&id).map_or(0, |c| c.live.len() as u64);
            i.room(len.saturating_sub(have))?;
            if let Some(c) = i.files.get_mut(&id)
                && c.live.len() < len as usize
            {
                c.live.resize(len as usize, 0);
            }
            Ok(())
        })
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.with(|i, id| {
            if let Some(c) = i.files.get_mut(&id) {
                c.cut |= (len as usize) < c.live.len();
                c.live.resize(len as usize, 0);
            }
            Ok(())
        })
    }

    fn len(&self) -> io::Result<u64> {
        self.with(|i, id| Ok(i.files.get(&id).map_or(0, |c| c.live.len() as u64)))
    }
}
