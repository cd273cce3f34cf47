//! Reading ahead: blocks of a file, inodes of a directory, names of a tree. Nothing of it may fail or
//! delay what somebody waits for by more than [`LOOK_AHEAD_MS`].

use super::drive::{Flight, Landing, Load, names_of, take_off};
use super::{FileSystem, Ino, Result, Timespec};
use crate::dircache::LoadedName;
use crate::key::{self, Parsed};
use crate::limits::{DIR_PAGE, LOOK_AHEAD_MS};
use crate::name::HASH_MIN;
use crate::txn::{Held, Miss, Txn};
use std::time::Duration;

impl FileSystem {
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
            take_off(&mut st, &self.geo, Miss::Blocks { ino, blocks }, true)
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

    /// Inodes that a lookup in `dir` does not need, but the next ones may.
    pub(super) async fn load_beside(&self, dir: Ino, inos: &[Ino], began: u64) {
        if !in_time(self.load_inodes(inos, began)).await {
            self.state.lock().dirs.alone(dir);
        }
    }

    /// Names of so many entries of the directories behind one that is being listed, in the order in
    /// which they were made, and their inodes; up to directory `until`. In a task of its own, for which
    /// [`crate::state::Walk::begin`] was called.
    pub(super) fn walk_ahead(&self, dir: Ino, n: usize, until: Ino) {
        let Some(fs) = self.me.upgrade().filter(|_| self.options.background) else {
            return self.state.lock().walk.end();
        };
        let began = self.state.lock().log.begin();
        let flight = Flight { fs, landing: Landing { began, blocks: None, walking: true } };
        tokio::spawn(async move {
            let fs = &flight.fs;
            let done = in_time(fs.load_tree(dir, n, until, began)).await;
            let mut st = fs.state.lock();
            match done {
                true => st.walk.succeeded(),
                false => st.walk.failed(),
            }
            st.trim();
        });
    }

    async fn load_tree(&self, dir: Ino, n: usize, until: Ino, began: u64) -> Result<()> {
        let (shard, mut start, end) = self.geo.keys.dirents_behind(dir, until);
        let (mut inos, mut names) = (Vec::new(), Vec::new());
        while inos.len() < n && start < end {
            let limit = DIR_PAGE.min(n - inos.len());
            let page = self.volume.scan(shard, start, end.clone(), limit).await?;
            let found = names_of(&page.records)?;
            inos.extend(found.iter().map(|(_, (.., dirent))| dirent.ino));
            names.extend(found);
            names = self.take_names(names, page.next.as_deref(), began);
            let Some(next) = page.next else { break };
            start = next;
        }
        {
            let st = self.state.lock();
            inos.retain(|i| st.inodes.peek(i).is_none());
        }
        self.load_inodes(&inos, began).await
    }

    /// Takes names of many directories into their caches; gives back those of the last directory if
    /// more of it may follow at `next`.
    fn take_names(
        &self,
        names: Vec<(Ino, LoadedName)>,
        next: Option<&[u8]>,
        began: u64,
    ) -> Vec<(Ino, LoadedName)> {
        let next_dir = next.and_then(key::parse).and_then(|k| match k {
            Parsed::Dirent { dir, .. } => Some(dir),
            _ => None,
        });
        let mut st = self.state.lock();
        let changed = st.log.since(began).directories();
        let mut names = names.into_iter().peekable();
        while let Some((dir, first)) = names.next() {
            let mut of_dir = vec![first];
            while let Some((_, name)) = names.next_if(|(d, _)| *d == dir) {
                of_dir.push(name);
            }
            if next.is_some() && names.peek().is_none() && next_dir.is_none_or(|next| next == dir) {
                return of_dir.into_iter().map(|name| (dir, name)).collect();
            }
            // What was there before the load, or changed during it, knows better.
            let same = changed.as_ref().is_some_and(|c| !c.contains(&dir));
            if same && st.dirs.get(dir).is_none() {
                let id = st.dirs.ensure(dir);
                st.dirs.fill(dir, id, (HASH_MIN, u64::MAX), of_dir);
            }
        }
        Vec::new()
    }
}

/// Whether it was done, and in time.
async fn in_time(load: impl Future<Output = Result<()>>) -> bool {
    match tokio::time::timeout(Duration::from_millis(LOOK_AHEAD_MS), load).await {
        Ok(Ok(())) => true,
        Ok(Err(e)) => {
            tracing::debug!(error = %e, "reading names or inodes ahead failed");
            false
        }
        Err(_) => false,
    }
}

/// Blocks of `from..to` that count, are not cached and not on their way.
fn wanted_blocks(mut t: Txn<'_>, ino: Ino, from: u64, to: u64) -> Vec<u64> {
    let Ok(f) = t.file(ino) else { return Vec::new() };
    let to = to.min(Txn::span(&f));
    (from..to)
        .filter(|&b| t.block(&f, b) == Held::Unknown && !t.st.inflight.contains_key(&(ino, b)))
        .collect()
}
