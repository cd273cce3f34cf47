//! A disk that dies, errs and lies when told to, over the disk in memory of the storage node.

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use std::io;
use std::sync::Arc;
use storenode::disk::{Disk, DiskFile, DiskSpace, MemoryDisk};

/// One directory of one node. Clones share it.
#[derive(Clone)]
pub struct SimDisk {
    inner: MemoryDisk,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// The process dies at this operation from now on.
    dies_in: Option<u64>,
    died: bool,
    /// Each operation fails with this chance.
    errors: Option<(StdRng, f64)>,
    /// A deliberately broken rule: a flush answers Ok and does nothing.
    lying: bool,
    /// A deliberately broken rule: a flush that failed is said to have worked.
    retried: bool,
    fail_syncs: bool,
    /// A deliberately broken rule: whole files are replaced in memory only.
    volatile: bool,
    /// Their contents before.
    before: Vec<(String, Option<Vec<u8>>)>,
}

fn error(what: &str) -> io::Error {
    io::Error::other(what)
}

impl SimDisk {
    /// An empty directory.
    #[must_use]
    pub fn new() -> Self {
        Self::over(MemoryDisk::new())
    }

    /// This directory.
    #[must_use]
    pub fn over(inner: MemoryDisk) -> Self {
        Self { inner, state: Arc::default() }
    }

    /// The directory itself.
    #[must_use]
    pub fn memory(&self) -> &MemoryDisk {
        &self.inner
    }

    /// The process ends at the `n`-th operation from now on: a write there is torn, nothing after it
    /// happens.
    pub fn die_in(&self, n: u64) {
        self.state.lock().dies_in = Some(n);
    }

    /// Did the process end inside an operation? Asking forgets it.
    #[must_use]
    pub fn died(&self) -> bool {
        let mut s = self.state.lock();
        s.dies_in = None;
        std::mem::take(&mut s.died)
    }

    /// The same, without forgetting.
    #[must_use]
    pub fn died_peek(&self) -> bool {
        self.state.lock().died
    }

    /// Each operation fails with the chance `p`; 0 ends it.
    pub fn err(&self, p: f64, seed: u64) {
        self.state.lock().errors = (p > 0.0).then(|| (StdRng::seed_from_u64(seed), p));
    }

    /// Every flush fails, and what it should have made durable is forgotten.
    pub fn fail_syncs(&self, on: bool) {
        self.state.lock().fail_syncs = on;
        self.inner.fail_syncs(on);
    }

    /// Breaks a rule on purpose: flushes lie.
    pub fn lie(&self) {
        self.state.lock().lying = true;
    }

    /// Breaks a rule on purpose: a failed flush is tried again and believed.
    pub fn retry_syncs(&self) {
        self.state.lock().retried = true;
    }

    /// Breaks a rule on purpose: replaced files (promise, role, configuration) are not durable.
    pub fn forget_states(&self) {
        self.state.lock().volatile = true;
    }

    /// A power cut.
    pub fn crash(&self, keep: impl FnMut(&str, usize) -> usize) {
        self.inner.crash_keeping(keep);
        let before = std::mem::take(&mut self.state.lock().before);
        for (name, content) in before.into_iter().rev() {
            // The directory in memory does not fail here.
            let _ = match content {
                Some(bytes) => self.inner.replace(&name, &bytes),
                None => self.inner.remove(&name),
            };
        }
    }

    /// Every operation passes here.
    fn step(&self) -> io::Result<()> {
        let mut s = self.state.lock();
        if s.died {
            return Err(error("the process ended"));
        }
        if let Some(n) = &mut s.dies_in {
            *n = n.saturating_sub(1);
            if *n == 0 {
                s.died = true;
                return Err(error("the process ends here"));
            }
        }
        if let Some((dice, p)) = &mut s.errors
            && dice.random::<f64>() < *p
        {
            return Err(error("simulated disk error"));
        }
        Ok(())
    }
}

impl Default for SimDisk {
    fn default() -> Self {
        Self::new()
    }
}

impl Disk for SimDisk {
    fn lock(&self) -> io::Result<()> {
        self.inner.lock()
    }
    fn list(&self) -> io::Result<Vec<String>> {
        self.step()?;
        self.inner.list()
    }
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        self.step()?;
        let file = self.inner.open(name)?;
        Ok(Arc::new(SimFile { file, disk: self.clone() }))
    }
    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        self.step()?;
        let file = self.inner.create(name)?;
        Ok(Arc::new(SimFile { file, disk: self.clone() }))
    }
    fn replace(&self, name: &str, content: &[u8]) -> io::Result<()> {
        self.step()?;
        let volatile = self.state.lock().volatile;
        if volatile {
            let old = self.inner.content(name);
            self.state.lock().before.push((name.to_owned(), old));
        }
        self.inner.replace(name, content)
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.step()?;
        self.inner.remove(name)
    }
    fn sync_dir(&self) -> io::Result<()> {
        self.step()?;
        self.inner.sync_dir()
    }
    fn space(&self) -> io::Result<DiskSpace> {
        self.step()?;
        self.inner.space()
    }
}

struct SimFile {
    file: Arc<dyn DiskFile>,
    disk: SimDisk,
}

impl DiskFile for SimFile {
    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<usize> {
        self.disk.step()?;
        self.file.read_at(into, offset)
    }
    fn write_at(&self, pieces: &[&[u8]], offset: u64) -> io::Result<()> {
        let result = self.disk.step();
        if result.is_err() && self.disk.state.lock().died {
            // Torn: the first part of it is there.
            let all = pieces.concat();
            let _ = self.file.write_at(&[&all[..all.len() / 2]], offset);
        }
        result?;
        self.file.write_at(pieces, offset)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.disk.step()?;
        let (lying, retried, failing) = {
            let s = self.disk.state.lock();
            (s.lying, s.retried, s.fail_syncs)
        };
        if lying {
            return Ok(());
        }
        let result = self.file.sync_data();
        if failing && retried { Ok(()) } else { result }
    }
    fn allocate(&self, len: u64) -> io::Result<()> {
        self.disk.step()?;
        self.file.allocate(len)
    }
    fn truncate(&self, len: u64) -> io::Result<()> {
        self.disk.step()?;
        self.file.truncate(len)
    }
    fn len(&self) -> io::Result<u64> {
        self.disk.step()?;
        self.file.len()
    }
}
