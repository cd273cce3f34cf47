//! Requests on content, attributes and extended attributes.

use super::drive::Room;
use super::{
    Attr, Caller, FileSystem, FsError, Ino, Result, SetAttr, SetTime, StatFs, Strip, XattrMode,
};
use crate::key::{self, Parsed};
use crate::limits::{
    COPY_BYTES_MAX, READAHEAD_BYTES_MAX, READAHEAD_BYTES_MIN, RUN_BLOCKS, STATFS_AGE_MS,
    STREAM_READ_BYTES, WRITE_BYTES_MAX,
};
use crate::ops::{attr, data, xattr};
use crate::txn::{Held, Miss, Txn, fail};
use bytes::{Bytes, BytesMut};
use std::time::{Duration, Instant};
use voter::volume::Key;

impl FileSystem {
    /// Attributes.
    ///
    /// # Errors
    /// `ESTALE` for an inode that is gone.
    pub async fn getattr(&self, ino: Ino) -> Result<Attr> {
        self.run(Room::None, |t| {
            if let Some(ghost) = t.st.ghosts.get(&ino) {
                return Ok(t.attr(ino, ghost));
            }
            let inode = t.inode(ino)?;
            Ok(t.attr(ino, &inode))
        })
        .await
    }

    /// chmod, chown, truncate, utimens, all at once; gives the attributes after it.
    ///
    /// # Errors
    /// `EISDIR` and `EINVAL` for the size of what is no file, `EFBIG`, `ESTALE`.
    pub async fn setattr(&self, ino: Ino, set: SetAttr, _caller: Caller) -> Result<Attr> {
        self.run(Room::Freeing, |t| {
            let now = t.now;
            if let Some(ghost) = t.st.ghosts.get_mut(&ino) {
                // The kernel writes times back as late as when it drops the inode.
                if set.size.is_some() {
                    return fail(libc::ESTALE);
                }
                ghost.perm = set.perm.map_or(ghost.perm, |p| p & 0o7777);
                ghost.uid = set.uid.unwrap_or(ghost.uid);
                ghost.gid = set.gid.unwrap_or(ghost.gid);
                if let Some(SetTime::At(mtime)) = set.mtime {
                    ghost.mtime = mtime;
                }
                ghost.ctime = set.ctime.unwrap_or(now);
                return Ok(ghost.attr(ino, t.geo.block_size));
            }
            attr::setattr(t, ino, &set)
        })
        .await
    }

    /// Opens a file (`O_TRUNC` in `flags` truncates): a handle for [`Self::release`].
    ///
    /// # Errors
    /// `EISDIR`, `ELOOP` for a symbolic link, `ESTALE`.
    pub async fn open_file(&self, ino: Ino, flags: i32) -> Result<u64> {
        let room = if flags & libc::O_TRUNC != 0 { Room::Freeing } else { Room::None };
        self.run(room, |t| data::open(t, ino, flags)).await.map(|(_, handle)| handle)
    }

    /// Reads: the pieces together are what was asked for, shorter only at the end of the file. For one who
    /// `keeps` what it gets, what a stream brings takes no place in the cache.
    ///
    /// # Errors
    /// `EISDIR`, `EINVAL`, `ESTALE`, `EIO`.
    pub async fn read(
        &self,
        ino: Ino,
        handle: u64,
        offset: u64,
        size: u32,
        keeps: bool,
    ) -> Result<Vec<Bytes>> {
        self.follow(ino, handle, offset, u64::from(size));
        let passing = keeps && size >= STREAM_READ_BYTES;
        self.run(Room::None, |t| data::read(t, ino, offset, size, passing)).await
    }

    /// Notes where a handle reads; reads ahead of one that goes straight on.
    fn follow(&self, ino: Ino, handle: u64, offset: u64, size: u64) {
        let end = offset.saturating_add(size);
        let (from, to) = {
            let mut st = self.state.lock();
            let Some(h) = st.handles.get_mut(&handle).filter(|h| h.ino == ino) else { return };
            let sequential = offset == h.next && offset > 0;
            h.next = end;
            if !sequential {
                (h.window, h.ahead) = (0, end);
                return;
            }
            let most = READAHEAD_BYTES_MAX.min(self.options.caches.block_bytes as u64 / 4);
            h.window = (h.window * 2).clamp(READAHEAD_BYTES_MIN.min(most), most);
            // Half a window at a time: few large requests instead of one small one per read.
            if h.ahead >= end + h.window / 2 {
                return;
            }
            let from = h.ahead.max(end);
            h.ahead = end + h.window;
            (from, h.ahead)
        };
        let bs = u64::from(self.geo.block_size);
        self.read_ahead(ino, from / bs, to.div_ceil(bs));
    }

    /// Writes all of `data`, or an error; `sync` returns when it is durable (`O_SYNC`, `O_DSYNC`).
    ///
    /// # Errors
    /// `EFBIG`, `EISDIR`, `EINVAL`, `ENOSPC`, `EIO`. Of more than 4 MiB a beginning may be written.
    pub async fn write(
        &self,
        ino: Ino,
        _handle: u64,
        offset: u64,
        data: Bytes,
        strip: Strip,
        sync: bool,
    ) -> Result<usize> {
        let mut done = 0;
        while done < data.len() {
            // Cut at a multiple of the block size, so that no block is written twice.
            let at = offset.saturating_add(done as u64);
            let most = WRITE_BYTES_MAX - (at % u64::from(self.geo.block_size)) as usize;
            let piece = data.slice(done..data.len().min(done + most));
            self.run(Room::For(piece.len()), |t| data::write(t, ino, at, &piece, strip)).await?;
            done += piece.len();
        }
        if sync {
            self.volume.sync().await?;
        }
        Ok(done)
    }

    /// close(2) of one descriptor: tells of a volume that was lost, nothing else.
    ///
    /// # Errors
    /// `EIO` when another mount took over.
    pub async fn flush(&self, _ino: Ino, _handle: u64) -> Result<()> {
        Ok(self.volume.alive()?)
    }

    /// Last use of a handle of [`Self::open_file`], [`Self::create`] or [`Self::opendir`].
    pub fn release(&self, handle: u64) {
        let wake = {
            let mut st = self.state.lock();
            let Some(h) = st.handles.remove(&handle) else { return };
            st.unref(h.ino, 0, 1)
        };
        if wake {
            self.wake.notify_one();
        }
    }

    /// fsync and fdatasync: all operations before it, on whatever file, are durable.
    ///
    /// # Errors
    /// `EIO`: *not known to be durable*.
    pub async fn fsync(&self, _ino: Ino, _datasync: bool) -> Result<()> {
        self.sync_all().await
    }

    /// fsync of a directory: as [`Self::fsync`].
    ///
    /// # Errors
    /// As [`Self::fsync`].
    pub async fn fsyncdir(&self, _ino: Ino, _datasync: bool) -> Result<()> {
        self.sync_all().await
    }

    /// Makes everything before it durable; for unmount.
    ///
    /// # Errors
    /// As [`Self::fsync`].
    pub async fn sync_all(&self) -> Result<()> {
        self.volume.sync().await?;
        Ok(())
    }

    /// Sizes of the volume, at most a second old.
    ///
    /// # Errors
    /// The volume's.
    pub async fn statfs(&self) -> Result<StatFs> {
        self.volume.alive()?;
        let cached = self.state.lock().statfs;
        if let Some((at, stat)) = cached
            && at.elapsed() < Duration::from_millis(STATFS_AGE_MS)
        {
            return Ok(stat);
        }
        const BSIZE: u64 = 4096;
        let space = self.volume.space().await?;
        let free = space.free_bytes / BSIZE;
        let stat = StatFs {
            blocks: space.capacity_bytes / BSIZE,
            bfree: free,
            files: space.records.saturating_add(free),
            ffree: free,
            bsize: BSIZE as u32,
            namelen: crate::limits::NAME_LEN_MAX as u32,
        };
        self.state.lock().statfs = Some((Instant::now(), stat));
        Ok(stat)
    }

    /// Sets an extended attribute.
    ///
    /// # Errors
    /// `EEXIST`, `ENODATA`, `ERANGE` (name over 255 bytes), `E2BIG` (value over 64 KiB), `ENOSPC`
    /// (names over 64 KiB or everything over 1 MiB), `EOPNOTSUPP` outside `user.`, `trusted.`,
    /// `security.` and `system.posix_acl_*`; `EINVAL` and `EACCES` for access lists.
    pub async fn setxattr(
        &self,
        ino: Ino,
        name: &[u8],
        value: &[u8],
        mode: XattrMode,
    ) -> Result<()> {
        let value = Bytes::copy_from_slice(value);
        self.run(Room::For(value.len()), |t| xattr::set(t, ino, name, &value, mode)).await
    }

    /// Value of an extended attribute (what fits the caller's buffer is the adapter's matter).
    ///
    /// # Errors
    /// `ENODATA`, `ERANGE`, `EOPNOTSUPP`.
    pub async fn getxattr(&self, ino: Ino, name: &[u8]) -> Result<Bytes> {
        self.run(Room::None, |t| xattr::get(t, ino, name)).await
    }

    /// Names of all extended attributes, each with a NUL behind it.
    ///
    /// # Errors
    /// `ESTALE`.
    pub async fn listxattr(&self, ino: Ino) -> Result<Vec<u8>> {
        self.run(Room::None, |t| xattr::list(t, ino)).await
    }

    /// Removes an extended attribute.
    ///
    /// # Errors
    /// `ENODATA`, `ERANGE`, `EOPNOTSUPP`.
    pub async fn removexattr(&self, ino: Ino, name: &[u8]) -> Result<()> {
        self.run(Room::Freeing, |t| xattr::remove(t, ino, name)).await
    }

    /// fallocate: mode 0, keep-size, punch, zero-range. Allocation reserves nothing.
    ///
    /// # Errors
    /// `EOPNOTSUPP` for other modes, `EINVAL`, `EFBIG`, `ENODEV`.
    pub async fn fallocate(
        &self,
        ino: Ino,
        _handle: u64,
        offset: u64,
        len: u64,
        mode: i32,
    ) -> Result<()> {
        let punch = mode & libc::FALLOC_FL_PUNCH_HOLE != 0;
        let room = if punch { Room::Freeing } else { Room::Small };
        self.run(room, |t| data::fallocate(t, ino, offset, len, mode)).await
    }

    /// `SEEK_DATA` and `SEEK_HOLE` (others are the kernel's), by whole blocks.
    ///
    /// # Errors
    /// `ENXIO` at or behind the end or without data behind, `EINVAL`.
    pub async fn lseek(&self, ino: Ino, offset: u64, whence: i32) -> Result<u64> {
        let want_data = match whence {
            libc::SEEK_DATA => true,
            libc::SEEK_HOLE => false,
            _ => return Err(FsError::new(libc::EINVAL)),
        };
        let mut block = offset / u64::from(self.geo.block_size);
        // The block that is known to have a record.
        let mut record = None;
        loop {
            let step = |t: &mut Txn<'_>| seek_step(t, ino, offset, block, record, want_data);
            match self.run(Room::None, step).await? {
                Seek::At(at) => return Ok(at),
                Seek::On(next) => block = next,
                Seek::Scan(from, span) => match self.next_record(ino, from, span).await? {
                    Some(next) => (block, record) = (next, Some(next)),
                    None => return Err(FsError::new(libc::ENXIO)),
                },
            }
        }
    }

    /// The first block of `from..to` that has a record, counting or not.
    async fn next_record(&self, ino: Ino, from: u64, to: u64) -> Result<Option<u64>> {
        let (start, end) = self.geo.keys.blocks(ino, from, to);
        let shards = 0..self.geo.keys.shards();
        let found = shards.map(|shard| self.first_block(shard, start.clone(), end.clone()));
        let found = futures_util::future::try_join_all(found).await?;
        Ok(found.into_iter().flatten().min())
    }

    /// The first block of one shard in a range of keys. A page without one need not be the last: what
    /// it spans may have been deleted by what is still on its way to the banks.
    async fn first_block(&self, shard: u16, mut start: Key, end: Key) -> Result<Option<u64>> {
        let mut limit = 1;
        loop {
            let page = self.volume.scan(shard, start, end.clone(), limit).await?;
            for (key, _) in page.records {
                if let Some(Parsed::Block { block, .. }) = key::parse(&key) {
                    return Ok(Some(block));
                }
            }
            match page.next {
                Some(next) => start = next,
                None => return Ok(None),
            }
            limit = (limit * 4).min(RUN_BLOCKS as usize);
        }
    }

    /// Copies bytes between files; may copy less than asked for (at most 16 MiB at once).
    ///
    /// # Errors
    /// `EINVAL` for overlapping ranges of one file, and those of read and write.
    pub async fn copy_file_range(
        &self,
        ino_in: Ino,
        offset_in: u64,
        ino_out: Ino,
        offset_out: u64,
        len: u64,
    ) -> Result<u64> {
        let len = len.min(COPY_BYTES_MAX);
        let overlap = offset_in < offset_out.saturating_add(len)
            && offset_out < offset_in.saturating_add(len);
        if ino_in == ino_out && overlap {
            return Err(FsError::new(libc::EINVAL));
        }
        // The end of the source as it is now: copying within a file may move it.
        let source = self.run(Room::None, |t| t.file(ino_in)).await?.base.size;
        let len = len.min(source.saturating_sub(offset_in));
        let mut done = 0;
        while done < len {
            let size = (len - done).min(1 << 20) as u32;
            let mut pieces = self.read(ino_in, 0, offset_in + done, size, false).await?;
            let n: usize = pieces.iter().map(Bytes::len).sum();
            if n == 0 {
                break;
            }
            let data = match pieces.len() {
                1 => pieces.swap_remove(0),
                _ => pieces
                    .iter()
                    .fold(BytesMut::with_capacity(n), |mut all, piece| {
                        all.extend_from_slice(piece);
                        all
                    })
                    .freeze(),
            };
            self.write(ino_out, 0, offset_out + done, data, Strip::Capability, false).await?;
            done += n as u64;
        }
        Ok(done)
    }
}

/// How a search for data or a hole goes on.
enum Seek {
    At(u64),
    /// Look on the volume for the next record from here (to the end of the file, in blocks).
    Scan(u64, u64),
    /// Go on here.
    On(u64),
}

fn seek_step(
    t: &mut Txn<'_>,
    ino: Ino,
    offset: u64,
    block: u64,
    record: Option<u64>,
    want_data: bool,
) -> crate::txn::Done<Seek> {
    let f = t.file(ino)?;
    let (size, span, bs) = (f.base.size, Txn::span(&f), u64::from(t.geo.block_size));
    if offset >= size {
        return fail(libc::ENXIO);
    }
    let at = |b: u64| (b * bs).max(offset).min(size);
    if f.base.blocks == 0 {
        return if want_data { fail(libc::ENXIO) } else { Ok(Seek::At(offset)) };
    }
    if Txn::is_dense(&f) {
        return Ok(Seek::At(if want_data { offset } else { size }));
    }
    let mut b = block;
    while b < span {
        let dead_to = t.dead(ino).map_or(b, |d| d.skip(b));
        if dead_to > b {
            if !want_data {
                return Ok(Seek::At(at(b)));
            }
            b = dead_to;
            continue;
        }
        match t.block(&f, b) {
            Held::Known(value) if value.is_empty() != want_data => return Ok(Seek::At(at(b))),
            Held::Known(_) => b += 1,
            Held::Unknown if record == Some(b) => return Ok(Seek::At(at(b))),
            Held::Unknown if want_data => return Ok(Seek::Scan(b, span)),
            // A window at a time, so that what was passed may leave the cache.
            Held::Unknown if b > block => return Ok(Seek::On(b)),
            Held::Unknown => {
                let blocks = (b..span.min(b + RUN_BLOCKS))
                    .filter(|&b| t.block(&f, b) == Held::Unknown)
                    .collect();
                return Err(Miss::Blocks { ino, blocks }.into());
            }
        }
    }
    if want_data { fail(libc::ENXIO) } else { Ok(Seek::At(size)) }
}
