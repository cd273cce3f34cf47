//! mkfs, and opening what is there.

use super::{FileSystem, FormatOptions, FsError, FsOptions, Kind, Result};
use crate::dead::DeadSet;
use crate::key::{self, KeySpace, Parsed, ROOT};
use crate::limits::DIR_PAGE;
use crate::name::NameHasher;
use crate::record::{Counter, Inode, Record};
use crate::state::{Geometry, Mark, State};
use crate::superblock::{Superblock, block_size_is_good};
use bytes::Bytes;
use parking_lot::Mutex;
use std::sync::Arc;
use tokio::sync::Notify;
use voter::volume::{Change, Op, Volume};

impl FileSystem {
    /// mkfs: superblock and root directory, in one group; durable when it returns.
    ///
    /// # Errors
    /// `EEXIST` if the volume holds a filesystem, `EINVAL` for a bad block size, or the volume's.
    pub async fn format(volume: &Arc<dyn Volume>, options: &FormatOptions) -> Result<()> {
        if !block_size_is_good(options.block_size) {
            let why =
                format!("block size {}: use a power of two, 4 KiB to 1 MiB", options.block_size);
            return Err(FsError::because(libc::EINVAL, why));
        }
        let keys = KeySpace::new(volume.shards());
        let found = volume.get(vec![keys.superblock()]).await?;
        if found.into_iter().next().flatten().is_some() {
            let why = format!("volume {} holds a filesystem already", volume.id());
            return Err(FsError::because(libc::EEXIST, why));
        }
        let now = (options.clock)();
        let name_key = options.name_key.unwrap_or_else(rand::random);
        let superblock = Superblock::new(options.block_size, volume.id(), name_key, now);
        let root = Inode {
            kind: Kind::Directory,
            perm: options.perm & 0o7777,
            uid: options.uid,
            gid: options.gid,
            nlink: 2,
            rdev: 0,
            size: 0,
            blocks: 0,
            atime: now,
            mtime: now,
            ctime: now,
            btime: now,
            generation: volume.epoch(),
            parent: ROOT,
            xattrs: 0,
            flags: 0,
            target: Box::default(),
        };
        let put = |(shard, key), value: Bytes| Op { shard, key, change: Change::Put(value) };
        volume.submit(vec![
            put(keys.superblock(), superblock.to_bytes()),
            put(keys.counter(), Counter { next: 1 }.to_bytes()),
            put(keys.inode(ROOT), root.to_bytes()),
        ])?;
        volume.sync().await?;
        Ok(())
    }

    /// Opens the filesystem on a volume; what was being reclaimed goes on in the background.
    ///
    /// # Errors
    /// `ENODEV` where there is no filesystem, `EIO` with what is wrong with its superblock, or the
    /// volume's.
    pub async fn open(volume: Arc<dyn Volume>, options: FsOptions) -> Result<Arc<Self>> {
        let keys = KeySpace::new(volume.shards());
        let mut found = volume.get(vec![keys.superblock(), keys.counter()]).await?.into_iter();
        let (superblock, counter) = (found.next().flatten(), found.next().flatten());
        let Some(superblock) = superblock else {
            let why = format!("volume {} holds no filesystem: run `tercet init`", volume.id());
            return Err(FsError::because(libc::ENODEV, why));
        };
        let superblock =
            Superblock::read(&superblock.value, volume.id()).map_err(FsError::corrupt)?;
        let counter = counter.ok_or_else(|| FsError::corrupt("the inode counter is missing"))?;
        let counter = Counter::from_bytes(&counter.value)?;
        let mut state = State::new(&options, counter.next);
        let news = volume.news();
        for mark in load_marks(&*volume, keys).await? {
            if news.is_none() {
                state.queue_reclaim(mark.ino());
            }
            state.add_mark(mark);
        }
        let geo = Geometry {
            opens_are_told: options.opens_are_told,
            keys,
            names: NameHasher::new(superblock.name_key),
            block_size: superblock.block_size,
            epoch: volume.epoch(),
        };
        let fs = Arc::new_cyclic(|me| Self {
            volume,
            geo,
            options,
            state: Mutex::new(state),
            wake: Notify::new(),
            me: me.clone(),
        });
        match news {
            Some(seen) if fs.options.background => {
                tokio::spawn(super::follow::run(Arc::downgrade(&fs), seen));
            }
            None if fs.options.background => {
                fs.wake.notify_one();
                tokio::spawn(super::reclaim::run(Arc::downgrade(&fs)));
            }
            _ => {}
        }
        Ok(fs)
    }
}

/// Orphans and dead ranges: both are held in memory whole (they are few, and every access to a file
/// asks for its dead ranges).
pub(super) async fn load_marks(volume: &dyn Volume, keys: KeySpace) -> Result<Vec<Mark>> {
    let mut marks = Vec::new();
    for shard in 0..keys.shards() {
        let (mut start, end) = keys.marks();
        loop {
            let page = volume.scan(shard, start, end.clone(), DIR_PAGE).await?;
            for (key, stored) in page.records {
                marks.push(match key::parse(&key) {
                    Some(Parsed::Orphan(ino)) => Mark::Orphan(ino),
                    Some(Parsed::Dead(ino)) => Mark::Dead(ino, DeadSet::from_bytes(&stored.value)?),
                    _ => return Err(FsError::corrupt(format!("a strange key {key:02x?}"))),
                });
            }
            match page.next {
                Some(next) => start = next,
                None => break,
            }
        }
    }
    Ok(marks)
}
