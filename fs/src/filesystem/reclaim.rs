//! The reclaim task: paced, resumed at open, one group after the other.

use super::drive::Room;
use super::{FileSystem, Ino, Result};
use crate::dead::Range;
use crate::key::{self, Parsed};
use crate::limits::{RECLAIM_BATCH, RECLAIM_PAUSE_MS};
use crate::ops::reclaim::{Next, found, looked, step};
use std::sync::Weak;
use std::time::Duration;

/// Ranges up to so many blocks are looked up by key, longer ones by scanning.
const BY_KEY_MAX: u64 = 256;

/// Works until the filesystem is dropped.
pub(super) async fn run(fs: Weak<FileSystem>) {
    loop {
        let Some(fs_now) = fs.upgrade() else { return };
        let next = fs_now.state.lock().next_reclaim();
        let pause = match next {
            None => {
                // At most so long does the task keep a filesystem alive that nobody else holds.
                let woken = fs_now.wake.notified();
                let _ = tokio::time::timeout(Duration::from_secs(1), woken).await;
                continue;
            }
            Some(ino) => match fs_now.reclaim_step(ino).await {
                Ok(true) => {
                    fs_now.state.lock().queue_reclaim(ino);
                    RECLAIM_PAUSE_MS
                }
                // Small files go one after the other: usually their unlink is in the same group
                // still, and next to nothing is left to write.
                Ok(false) => {
                    tokio::task::yield_now().await;
                    continue;
                }
                Err(e) if fs_now.volume.alive().is_err() => {
                    tracing::warn!(error = %e, "reclaim ends: the volume is lost");
                    return;
                }
                Err(e) => {
                    tracing::warn!(ino, error = %e, "reclaim will be tried again");
                    fs_now.state.lock().queue_reclaim(ino);
                    1000
                }
            },
        };
        drop(fs_now);
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }
}

impl FileSystem {
    /// Reclaims all that waits for it, now (tests, unmount of small backlogs).
    ///
    /// # Errors
    /// The volume's; what is left is reclaimed later.
    pub async fn reclaim_all(&self) -> Result<()> {
        loop {
            let next = self.state.lock().next_reclaim();
            let Some(ino) = next else { return Ok(()) };
            match self.reclaim_step(ino).await {
                Ok(false) => {}
                Ok(true) => self.state.lock().queue_reclaim(ino),
                Err(e) => {
                    self.state.lock().queue_reclaim(ino);
                    return Err(e);
                }
            }
        }
    }

    /// One step for one inode; true = there is more to do.
    pub(super) async fn reclaim_step(&self, ino: Ino) -> Result<bool> {
        match self.run(Room::Freeing, |t| step(t, ino)).await? {
            Next::Done => Ok(false),
            Next::More => Ok(true),
            Next::Look { range, stamp } => {
                self.look(ino, range).await?;
                self.run(Room::Freeing, |t| looked(t, ino, range, stamp)).await?;
                Ok(true)
            }
        }
    }

    /// Finds and deletes the records of a dead range.
    async fn look(&self, ino: Ino, range: Range) -> Result<()> {
        if range.end - range.start <= BY_KEY_MAX {
            let blocks: Vec<u64> = (range.start..range.end).collect();
            let keys = blocks.iter().map(|&b| self.geo.keys.block(ino, b)).collect();
            let there = self.volume.get(keys).await?;
            let blocks: Vec<u64> = blocks
                .into_iter()
                .zip(there)
                .filter(|(_, s)| s.is_some())
                .map(|(b, _)| b)
                .collect();
            return self.run(Room::Freeing, |t| found(t, ino, &blocks)).await;
        }
        let (from, end) = self.geo.keys.blocks(ino, range.start, range.end);
        for shard in 0..self.geo.keys.shards() {
            let mut start = from.clone();
            loop {
                let page = self.volume.scan(shard, start, end.clone(), RECLAIM_BATCH).await?;
                let blocks: Vec<u64> = page
                    .records
                    .iter()
                    .filter_map(|(key, _)| match key::parse(key) {
                        Some(Parsed::Block { block, .. }) => Some(block),
                        _ => None,
                    })
                    .collect();
                drop(page.records);
                self.run(Room::Freeing, |t| found(t, ino, &blocks)).await?;
                match page.next {
                    Some(next) => start = next,
                    None => break,
                }
            }
        }
        Ok(())
    }
}
