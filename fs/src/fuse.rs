//! The kernel's requests, and the only code that knows fuser.
//!
//! Each method is: take what is borrowed, call the filesystem, send its reply or its errno. What
//! the kernel is asked for stands in [`kernel`], how a request is driven in [`dispatch`].
//!
//! Two traps. `ENOSYS` from most requests means "never ask again, it worked": fsync would succeed
//! for ever. It is answered on purpose only for open, opendir and flush, once each: an open file is
//! held by the kernel's reference to its inode, directory cookies need no state, and before flush
//! the kernel has written back everything itself, so these would be round trips for nothing. And
//! nothing may be held while the kernel is notified of something. Two do that ([`KernelCache`]): a
//! mount that was fenced, and lseek (see there). Else this mount is the only writer, and repair never
//! changes what a file holds.

mod asker;
mod convert;
mod dispatch;
mod kernel;
mod listing;
mod privileges;
mod replies;
mod session;

pub use session::{KernelCache, Serving, Setup, serve};

/// As a reply to the kernel has it.
#[cfg(feature = "fuzzing")]
pub(crate) fn shown(attr: &crate::filesystem::Attr) -> fuser::FileAttr {
    file_attr(attr)
}

use crate::config::MountLimits;
use crate::filesystem::{FileSystem, FsError, Kind, SetAttr, Strip, XattrMode};
use crate::metrics::{Ending, Operation};
use bytes::Bytes;
use convert::{
    bare, caller, file_attr, file_type, handle_flags, name, perm_of_mode, set_time, timespec,
};
use dispatch::{Dispatch, ErrorLog};
use fuser::{
    BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags, Generation,
    INodeNo, IoctlFlags, KernelConfig, LockOwner, OpenFlags, PollEvents, PollFlags, PollNotifier,
    RenameFlags, ReplyAttr, ReplyBmap, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus,
    ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite,
    ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use listing::Listing;
use replies::{attr, empty, entry, sized};
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

/// How long the kernel keeps attributes and names that another mount may change.
const BESIDE_TTL: Duration = Duration::from_secs(1);

/// Serves a [`FileSystem`] to the kernel.
struct Adapter {
    dispatch: Dispatch,
    ttl: Duration,
    /// Another mount writes.
    beside: bool,
    limits: MountLimits,
    spared: kernel::Spared,
    /// Set once the session exists.
    cache: Arc<OnceLock<KernelCache>>,
    /// Sizes of listings without and with attributes.
    plain: Listing,
    plus: Listing,
}

impl Adapter {
    fn new(setup: &Setup) -> Self {
        Self {
            dispatch: Dispatch {
                fs: setup.fs.clone(),
                metrics: setup.metrics.clone(),
                runtime: setup.runtime.clone(),
                deadline: Duration::from_millis(setup.limits.request_deadline_ms.into()),
                log: Arc::new(ErrorLog::default()),
            },
            ttl: match setup.beside {
                true => BESIDE_TTL,
                false => Duration::from_secs(setup.limits.attribute_ttl_s.into()),
            },
            beside: setup.beside,
            limits: setup.limits.clone(),
            spared: kernel::Spared::default(),
            cache: Arc::default(),
            plain: Listing::default(),
            plus: Listing::default(),
        }
    }

    fn fs(&self) -> Arc<FileSystem> {
        self.dispatch.fs.clone()
    }

    /// Last use of a handle.
    fn close(&self, operation: Operation, req: &Request, fh: FileHandle, reply: ReplyEmpty) {
        let fs = self.fs();
        let work = async move {
            fs.release(fh.0);
            Ok(())
        };
        self.dispatch.run(operation, req, work, empty(reply));
    }

    /// fsync, of whatever: all that was handed over before it becomes durable.
    fn sync(&self, operation: Operation, req: &Request, reply: ReplyEmpty) {
        let fs = self.fs();
        let work = async move { fs.sync_all().await };
        self.dispatch.run(operation, req, work, empty(reply));
    }
}

impl Filesystem for Adapter {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        self.spared = kernel::negotiate(config, &self.limits, self.beside);
        Ok(())
    }

    fn lookup(&self, req: &Request, parent: INodeNo, wanted: &OsStr, reply: ReplyEntry) {
        let (fs, wanted, ttl) = (self.fs(), name(wanted), self.ttl);
        let work = async move {
            match fs.lookup(parent.0, &wanted).await {
                Ok(attr) => Ok(Some(attr)),
                // Remembered by the kernel: creates and searches ask for what is not there.
                Err(e) if e.errno == libc::ENOENT => Ok(None),
                Err(e) => Err(e),
            }
        };
        self.dispatch.run(Operation::Lookup, req, work, move |result| match result {
            Ok(Some(attr)) => reply.entry(&ttl, &file_attr(&attr), Generation(attr.generation)),
            Ok(None) => reply.entry(&ttl, &bare(0, Kind::File), Generation(0)),
            Err(e) => reply.error(e),
        });
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        let started = Instant::now();
        self.dispatch.fs.forget(ino.0, nlookup);
        let ending = Ending { took: started.elapsed(), error: false, inline: true, timeout: false };
        self.dispatch.metrics.count(Operation::Forget, ending);
    }

    fn getattr(&self, req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        let fs = self.fs();
        let work = async move { fs.getattr(ino.0).await };
        self.dispatch.run(Operation::Getattr, req, work, attr(reply, self.ttl));
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let (fs, caller) = (self.fs(), caller(req));
        let set = SetAttr {
            perm: mode.map(perm_of_mode),
            uid,
            gid,
            size,
            atime: atime.map(set_time),
            mtime: mtime.map(set_time),
            ctime: ctime.map(timespec),
            handle: fh.map(|fh| fh.0),
            strip: Strip::Nothing,
        };
        let work = async move { privileges::setattr(&fs, ino.0, set, caller).await };
        self.dispatch.run(Operation::Setattr, req, work, attr(reply, self.ttl));
    }

    fn readlink(&self, req: &Request, ino: INodeNo, reply: ReplyData) {
        let fs = self.fs();
        let work = async move { fs.readlink(ino.0).await };
        self.dispatch.run(Operation::Readlink, req, work, move |result| match result {
            Ok(target) => reply.data(&target),
            Err(e) => reply.error(e),
        });
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        new: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let (fs, new, caller) = (self.fs(), name(new), caller(req));
        let work = async move { fs.mknod(parent.0, &new, mode, rdev, umask, caller).await };
        self.dispatch.run(Operation::Mknod, req, work, entry(reply, self.ttl));
    }

    fn mkdir(
        &self,
        req: &Request,
        parent: INodeNo,
        new: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        let (fs, new, caller) = (self.fs(), name(new), caller(req));
        let work = async move { fs.mkdir(parent.0, &new, mode, umask, caller).await };
        self.dispatch.run(Operation::Mkdir, req, work, entry(reply, self.ttl));
    }

    fn unlink(&self, req: &Request, parent: INodeNo, old: &OsStr, reply: ReplyEmpty) {
        let (fs, old) = (self.fs(), name(old));
        let work = async move { fs.unlink(parent.0, &old).await };
        self.dispatch.run(Operation::Unlink, req, work, empty(reply));
    }

    fn rmdir(&self, req: &Request, parent: INodeNo, old: &OsStr, reply: ReplyEmpty) {
        let (fs, old) = (self.fs(), name(old));
        let work = async move { fs.rmdir(parent.0, &old).await };
        self.dispatch.run(Operation::Rmdir, req, work, empty(reply));
    }

    fn symlink(
        &self,
        req: &Request,
        parent: INodeNo,
        new: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let (fs, new, caller) = (self.fs(), name(new), caller(req));
        let target = name(target.as_os_str());
        let work = async move { fs.symlink(parent.0, &new, &target, caller).await };
        self.dispatch.run(Operation::Symlink, req, work, entry(reply, self.ttl));
    }

    fn rename(
        &self,
        req: &Request,
        parent: INodeNo,
        old: &OsStr,
        newparent: INodeNo,
        new: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let (fs, old, new, caller) = (self.fs(), name(old), name(new), caller(req));
        let work =
            async move { fs.rename(parent.0, &old, newparent.0, &new, flags.bits(), caller).await };
        self.dispatch.run(Operation::Rename, req, work, empty(reply));
    }

    fn link(
        &self,
        req: &Request,
        ino: INodeNo,
        newparent: INodeNo,
        new: &OsStr,
        reply: ReplyEntry,
    ) {
        let (fs, new) = (self.fs(), name(new));
        let work = async move { fs.link(ino.0, newparent.0, &new).await };
        self.dispatch.run(Operation::Link, req, work, entry(reply, self.ttl));
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if self.spared.open {
            return reply.error(Errno::ENOSYS);
        }
        let fs = self.fs();
        let work = async move { fs.open_file(ino.0, handle_flags(flags.0)).await };
        self.dispatch.run(Operation::Open, req, work, move |result| match result {
            Ok(handle) => reply.opened(FileHandle(handle), FopenFlags::FOPEN_KEEP_CACHE),
            Err(e) => reply.error(e),
        });
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        new: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let (fs, new, caller, ttl) = (self.fs(), name(new), caller(req), self.ttl);
        let flags = handle_flags(flags);
        let keeps_handle = !self.spared.open;
        let work = async move {
            let (attr, handle) = fs.create(parent.0, &new, mode, umask, flags, caller).await?;
            if keeps_handle {
                return Ok((attr, handle));
            }
            // Where opens are spared so are releases, also of what was created.
            fs.release(handle);
            Ok((attr, 0))
        };
        self.dispatch.run(Operation::Create, req, work, move |result| match result {
            Ok((attr, handle)) => reply.created(
                &ttl,
                &file_attr(&attr),
                Generation(attr.generation),
                FileHandle(handle),
                FopenFlags::FOPEN_KEEP_CACHE,
            ),
            Err(e) => reply.error(e),
        });
    }

    fn read(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let (fs, metrics) = (self.fs(), self.dispatch.metrics.clone());
        // Its pages keep it, and nobody who reads this way sends back a part of a block. (The flags are those
        // of the descriptor, here with each read: opening needs no request, see `spared`.)
        let keeps = flags.0 & (libc::O_ACCMODE | libc::O_DIRECT) == libc::O_RDONLY;
        let work = async move { fs.read(ino.0, fh.0, offset, size, keeps).await };
        self.dispatch.run(Operation::Read, req, work, move |result| match result {
            Ok(pieces) => {
                metrics.read_bytes.fetch_add(pieces.iter().map(|p| p.len() as u64).sum(), Relaxed);
                match &pieces[..] {
                    [] => reply.data(&[]),
                    [whole] => reply.data(whole),
                    // fuser takes one slice only.
                    _ => reply.data(&pieces.concat()),
                }
            }
            Err(e) => reply.error(e),
        });
    }

    fn write(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let fs = self.fs();
        self.dispatch.metrics.written_bytes.fetch_add(data.len() as u64, Relaxed);
        // The one copy: the buffer belongs to the thread, the data to the group it joins.
        let data = Bytes::copy_from_slice(data);
        // From the page cache: the kernel sends an fsync by itself where one is due.
        let cached = write_flags.contains(WriteFlags::FUSE_WRITE_CACHE);
        let kills = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        let sync = !cached && flags.0 & (libc::O_SYNC | libc::O_DSYNC) != 0;
        let caller = caller(req);
        let work = async move {
            let strip = privileges::strip_of_write(&fs, ino.0, caller, (kills, cached)).await?;
            fs.write(ino.0, fh.0, offset, data, strip, sync).await
        };
        self.dispatch.run(Operation::Write, req, work, move |result| match result {
            Ok(written) => reply.written(u32::try_from(written).unwrap_or(u32::MAX)),
            Err(e) => reply.error(e),
        });
    }

    fn flush(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        // Errors of writes reach close(2) by the kernel's own writeback; locks are the kernel's.
        reply.error(Errno::ENOSYS);
    }

    fn release(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.close(Operation::Release, req, fh, reply);
    }

    fn fsync(
        &self,
        req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        self.sync(Operation::Fsync, req, reply);
    }

    fn opendir(&self, req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        if self.spared.opendir {
            return reply.error(Errno::ENOSYS);
        }
        let fs = self.fs();
        let work = async move { fs.opendir(ino.0).await };
        let flags = FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_CACHE_DIR;
        self.dispatch.run(Operation::Opendir, req, work, move |result| match result {
            Ok(handle) => reply.opened(FileHandle(handle), flags),
            Err(e) => reply.error(e),
        });
    }

    fn readdir(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let (fs, listing) = (self.fs(), self.plain.clone());
        let asked = listing.ask();
        let work = async move { fs.readdir(ino.0, offset, false, asked).await };
        self.dispatch.run(Operation::Readdir, req, work, move |result| match result {
            Ok(entries) => {
                listing.fill(asked, &entries, |e| {
                    let name = OsStr::from_bytes(&e.name);
                    reply.add(INodeNo(e.ino), e.cookie, file_type(e.kind), name)
                });
                reply.ok();
            }
            Err(e) => reply.error(e),
        });
    }

    fn readdirplus(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let (fs, listing, ttl) = (self.fs(), self.plus.clone(), self.ttl);
        let giving_back = fs.clone();
        let asked = listing.ask();
        let work = async move { fs.readdir(ino.0, offset, true, asked).await };
        self.dispatch.run(Operation::Readdirplus, req, work, move |result| match result {
            Ok(entries) => {
                let taken = listing.fill(asked, &entries, |e| {
                    let name = OsStr::from_bytes(&e.name);
                    let (attr, generation) = match &e.attr {
                        Some(attr) => (file_attr(attr), attr.generation),
                        None => (bare(e.ino, e.kind), 0),
                    };
                    let generation = Generation(generation);
                    reply.add(INodeNo(e.ino), e.cookie, name, &ttl, &attr, generation)
                });
                reply.ok();
                // The kernel has no reference to what it was not handed.
                for e in entries[taken..].iter().filter(|e| e.attr.is_some()) {
                    giving_back.forget(e.ino, 1);
                }
            }
            Err(e) => reply.error(e),
        });
    }

    fn releasedir(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.close(Operation::Releasedir, req, fh, reply);
    }

    fn fsyncdir(
        &self,
        req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        self.sync(Operation::Fsyncdir, req, reply);
    }

    fn statfs(&self, req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        let fs = self.fs();
        let work = async move { fs.statfs().await };
        self.dispatch.run(Operation::Statfs, req, work, move |result| match result {
            Ok(s) => reply
                .statfs(s.blocks, s.bfree, s.bfree, s.files, s.ffree, s.bsize, s.namelen, s.bsize),
            Err(e) => reply.error(e),
        });
    }

    fn setxattr(
        &self,
        req: &Request,
        ino: INodeNo,
        wanted: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let (fs, wanted, value) = (self.fs(), name(wanted), Box::<[u8]>::from(value));
        let mode = match (flags & libc::XATTR_CREATE != 0, flags & libc::XATTR_REPLACE != 0) {
            (true, true) => XattrMode::Both,
            (true, false) => XattrMode::Create,
            (false, true) => XattrMode::Replace,
            (false, false) => XattrMode::Any,
        };
        let caller = caller(req);
        let work =
            async move { privileges::setxattr(&fs, ino.0, &wanted, &value, mode, caller).await };
        self.dispatch.run(Operation::Setxattr, req, work, empty(reply));
    }

    fn getxattr(&self, req: &Request, ino: INodeNo, wanted: &OsStr, size: u32, reply: ReplyXattr) {
        let (fs, wanted) = (self.fs(), name(wanted));
        let work = async move { fs.getxattr(ino.0, &wanted).await };
        self.dispatch.run(Operation::Getxattr, req, work, sized(reply, size));
    }

    fn listxattr(&self, req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let (fs, caller) = (self.fs(), caller(req));
        let work = async move { privileges::listxattr(&fs, ino.0, caller).await };
        self.dispatch.run(Operation::Listxattr, req, work, sized(reply, size));
    }

    fn removexattr(&self, req: &Request, ino: INodeNo, wanted: &OsStr, reply: ReplyEmpty) {
        let (fs, wanted) = (self.fs(), name(wanted));
        let work = async move { fs.removexattr(ino.0, &wanted).await };
        self.dispatch.run(Operation::Removexattr, req, work, empty(reply));
    }

    fn fallocate(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let (fs, caller) = (self.fs(), caller(req));
        let work = async move {
            fs.fallocate(ino.0, fh.0, offset, length, mode).await?;
            privileges::content_changed(&fs, ino.0, caller).await
        };
        self.dispatch.run(Operation::Fallocate, req, work, empty(reply));
    }

    fn lseek(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let (fs, cache) = (self.fs(), self.cache.get().cloned());
        let work = async move {
            // The kernel has answered the other kinds itself.
            let from = u64::try_from(offset).map_err(|_| FsError::new(libc::ENXIO))?;
            if let Some(cache) = cache {
                // The kernel asks without writing back what is dirty: data that an open writer has
                // not synced would look like a hole, and `cp` would copy one. In a thread of its
                // own, for the pages come as requests that other threads answer.
                let _ = tokio::task::spawn_blocking(move || cache.write_back(ino, offset)).await;
            }
            let found = fs.lseek(ino.0, from, whence).await?;
            i64::try_from(found).map_err(|_| FsError::new(libc::EOVERFLOW))
        };
        self.dispatch.run(Operation::Lseek, req, work, move |result| match result {
            Ok(offset) => reply.offset(offset),
            Err(e) => reply.error(e),
        });
    }

    fn copy_file_range(
        &self,
        req: &Request,
        ino_in: INodeNo,
        _fh_in: FileHandle,
        offset_in: u64,
        ino_out: INodeNo,
        _fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let (fs, caller) = (self.fs(), caller(req));
        // The reply has 32 bits; the caller goes on with the rest.
        let len = len.min(u64::from(u32::MAX));
        let work = async move {
            let copied =
                fs.copy_file_range(ino_in.0, offset_in, ino_out.0, offset_out, len).await?;
            privileges::content_changed(&fs, ino_out.0, caller).await?;
            Ok(copied)
        };
        self.dispatch.run(Operation::CopyFileRange, req, work, move |result| match result {
            Ok(copied) => reply.written(u32::try_from(copied).unwrap_or(u32::MAX)),
            Err(e) => reply.error(e),
        });
    }

    // What a filesystem need not have. `ENOSYS` is right here: the kernel then does what it does
    // for any filesystem, and does not ask again. (fuser's own answers would also log each one.)

    fn poll(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _ph: PollNotifier,
        _events: PollEvents,
        _flags: PollFlags,
        reply: ReplyPoll,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn bmap(&self, _req: &Request, _ino: INodeNo, _blocksize: u32, _idx: u64, reply: ReplyBmap) {
        reply.error(Errno::ENOSYS);
    }

    fn ioctl(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        _cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }
}
