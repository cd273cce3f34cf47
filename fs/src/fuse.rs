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

mod convert;
mod dispatch;
mod kernel;
mod privileges;

pub use kernel::MountFlags;

use crate::config::MountLimits;
use crate::filesystem::{Caller, FileSystem, FsError, Kind, SetAttr, Strip, XattrMode};
use crate::metrics::{Ending, Metrics, Operation};
use bytes::Bytes;
use convert::{bare, caller, file_attr, file_type, perm_of_mode, set_time, timespec};
use dispatch::{Dispatch, ErrorLog};
use fuser::{
    BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags, Generation,
    INodeNo, IoctlFlags, KernelConfig, LockOwner, Notifier, OpenFlags, PollEvents, PollFlags,
    PollNotifier, RenameFlags, ReplyAttr, ReplyBmap, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyPoll,
    ReplyStatfs, ReplyWrite, ReplyXattr, Request, Session, TimeOrNow, WriteFlags,
};
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

/// Entries of a listing asked for at once: at first, and at most.
const LISTING_FIRST: usize = 64;
const LISTING_MAX: usize = 2048;

/// Everything a session needs.
pub struct Setup {
    /// What to serve.
    pub fs: Arc<FileSystem>,
    /// Where; absolute and without symbolic links.
    pub mountpoint: PathBuf,
    /// `-o` options.
    pub flags: MountFlags,
    /// Sizes and deadlines.
    pub limits: MountLimits,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Runtime for what has to wait.
    pub runtime: Handle,
}

/// A mounted filesystem.
pub struct Serving {
    /// Hears when the session has ended (because someone unmounted).
    pub ended: oneshot::Receiver<io::Result<()>>,
    /// What the kernel remembers of it.
    pub kernel: KernelCache,
}

/// What the kernel remembers of a mounted filesystem.
#[derive(Clone)]
pub struct KernelCache(Notifier);

impl KernelCache {
    /// Makes the kernel forget attributes and content of these inodes; it asks again for each. Waits
    /// for dirty pages to be written (or to fail): never call it where a request waits for the
    /// caller, and hold nothing.
    pub fn drop_inodes(&self, inos: &[u64]) {
        for &ino in inos {
            if let Err(e) = self.0.inval_inode(INodeNo(ino), 0, 0) {
                tracing::debug!(ino, "the kernel does not drop an inode: {e}");
            }
        }
    }

    /// Makes the kernel write back what is dirty of an inode from `offset` on, and forget it; as
    /// careful as [`Self::drop_inodes`].
    fn write_back(&self, ino: INodeNo, offset: i64) {
        // An inode that it does not know has nothing dirty.
        let _ = self.0.inval_inode(ino, offset, 0);
    }
}

/// Mounts and starts serving on threads of its own.
///
/// # Errors
/// No /dev/fuse, no permission, or the kernel lacks what is needed.
pub fn serve(setup: Setup) -> io::Result<Serving> {
    let root = rustix::process::geteuid().is_root();
    let config = kernel::session_config(&setup.flags, &setup.limits, root);
    let adapter = Adapter {
        dispatch: Dispatch {
            fs: setup.fs,
            metrics: setup.metrics,
            runtime: setup.runtime,
            deadline: Duration::from_millis(setup.limits.request_deadline_ms.into()),
            log: Arc::new(ErrorLog::default()),
        },
        ttl: Duration::from_secs(setup.limits.attribute_ttl_s.into()),
        limits: setup.limits.clone(),
        spared: kernel::Spared::default(),
        cache: Arc::default(),
        plain: Listing::default(),
        plus: Listing::default(),
    };
    let cache = adapter.cache.clone();
    let session = Session::new(adapter, &setup.mountpoint, &config)?;
    kernel::tune(&setup.mountpoint, &setup.limits);
    let kernel = KernelCache(session.notifier());
    let _ = cache.set(kernel.clone());
    let (ended, receiver) = oneshot::channel();
    std::thread::Builder::new().name("fuse".into()).spawn(move || {
        let result = session.run();
        let _ = ended.send(result);
    })?;
    Ok(Serving { ended: receiver, kernel })
}

/// Serves a [`FileSystem`] to the kernel.
struct Adapter {
    dispatch: Dispatch,
    ttl: Duration,
    limits: MountLimits,
    spared: kernel::Spared,
    /// Set once the session exists.
    cache: Arc<OnceLock<KernelCache>>,
    /// Sizes of listings without and with attributes.
    plain: Listing,
    plus: Listing,
}

/// How many entries fit into the kernel's buffer. fuser does not tell its size, so it is learned
/// from the last reply.
#[derive(Clone)]
struct Listing(Arc<AtomicUsize>);

impl Default for Listing {
    fn default() -> Self {
        Self(Arc::new(AtomicUsize::new(LISTING_FIRST)))
    }
}

impl Listing {
    fn ask(&self) -> usize {
        self.0.load(Relaxed)
    }

    /// Of `asked` entries that there were, so many were taken.
    fn learn(&self, asked: usize, taken: usize) {
        let next = if taken < asked { taken + 1 } else { asked * 2 };
        self.0.store(next.clamp(1, LISTING_MAX), Relaxed);
    }
}

impl Adapter {
    fn fs(&self) -> Arc<FileSystem> {
        self.dispatch.fs.clone()
    }
}

fn name(name: &OsStr) -> Box<[u8]> {
    name.as_bytes().into()
}

/// Sends an entry, or the error.
fn entry(reply: ReplyEntry, ttl: Duration) -> impl FnOnce(Result<crate::filesystem::Attr, Errno>) {
    move |result| match result {
        Ok(attr) => reply.entry(&ttl, &file_attr(&attr), Generation(attr.generation)),
        Err(e) => reply.error(e),
    }
}

/// Sends attributes, or the error.
fn attr(reply: ReplyAttr, ttl: Duration) -> impl FnOnce(Result<crate::filesystem::Attr, Errno>) {
    move |result| match result {
        Ok(attr) => reply.attr(&ttl, &file_attr(&attr)),
        Err(e) => reply.error(e),
    }
}

/// Sends "done", or the error.
fn empty(reply: ReplyEmpty) -> impl FnOnce(Result<(), Errno>) {
    move |result| match result {
        Ok(()) => reply.ok(),
        Err(e) => reply.error(e),
    }
}

/// Sends the value of an extended attribute by the rules of getxattr(2): its length if `size` is
/// 0, `ERANGE` if it does not fit.
fn sized<T: AsRef<[u8]>>(reply: ReplyXattr, size: u32) -> impl FnOnce(Result<T, Errno>) {
    move |result| match result {
        Ok(value) => {
            let value = value.as_ref();
            let len = u32::try_from(value.len()).unwrap_or(u32::MAX);
            match size {
                0 => reply.size(len),
                _ if len > size => reply.error(Errno::ERANGE),
                _ => reply.data(value),
            }
        }
        Err(e) => reply.error(e),
    }
}

/// With the writeback cache the kernel reads where the application only writes (to fill a page),
/// and appends by itself.
fn handle_flags(flags: i32) -> i32 {
    let flags = flags & !libc::O_APPEND;
    match flags & libc::O_ACCMODE {
        libc::O_WRONLY => flags & !libc::O_ACCMODE | libc::O_RDWR,
        _ => flags,
    }
}

/// Clears set-user-id and set-group-id bits if this caller must not keep them; for requests that do
/// not say so themselves.
async fn drop_privileges(fs: &FileSystem, ino: u64, caller: Caller) -> Result<(), FsError> {
    let perm = fs.getattr(ino).await?.perm;
    if privileges::has_bits(perm) && privileges::must_kill(caller.pid) {
        let set = SetAttr { kill_suid_gid: true, ..SetAttr::default() };
        fs.setattr(ino, set, caller).await?;
    }
    Ok(())
}

impl Filesystem for Adapter {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        self.spared = kernel::negotiate(config, &self.limits);
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
        let work = async move {
            let mut set = SetAttr {
                perm: mode.map(perm_of_mode),
                uid,
                gid,
                size,
                atime: atime.map(set_time),
                mtime: mtime.map(set_time),
                ctime: ctime.map(timespec),
                handle: fh.map(|fh| fh.0),
                kill_suid_gid: false,
                silent: false,
            };
            if uid.is_some() || gid.is_some() || size.is_some() {
                let now = fs.getattr(ino.0).await?;
                // chown(2) and truncate(2) bring the ctime of a regular file, whose times the kernel keeps.
                set.silent = ctime.is_none() && now.kind == Kind::File;
                set.kill_suid_gid = size.is_some()
                    && !set.silent
                    && now.kind != Kind::Directory
                    && privileges::has_bits(now.perm)
                    && privileges::must_kill(caller.pid);
            }
            fs.setattr(ino.0, set, caller).await
        };
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
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let (fs, metrics) = (self.fs(), self.dispatch.metrics.clone());
        let work = async move { fs.read(ino.0, fh.0, offset, size).await };
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
        let strip = if write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID) {
            Strip::All
        } else if cached {
            Strip::Nothing
        } else {
            Strip::Capability
        };
        let sync = !cached && flags.0 & (libc::O_SYNC | libc::O_DSYNC) != 0;
        let work = async move { fs.write(ino.0, fh.0, offset, data, strip, sync).await };
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
        let fs = self.fs();
        let work = async move {
            fs.release(fh.0);
            Ok(())
        };
        self.dispatch.run(Operation::Release, req, work, empty(reply));
    }

    fn fsync(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        datasync: bool,
        reply: ReplyEmpty,
    ) {
        let fs = self.fs();
        let work = async move { fs.fsync(ino.0, datasync).await };
        self.dispatch.run(Operation::Fsync, req, work, empty(reply));
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
                let taken = entries
                    .iter()
                    .take_while(|e| {
                        let name = OsStr::from_bytes(&e.name);
                        !reply.add(INodeNo(e.ino), e.cookie, file_type(e.kind), name)
                    })
                    .count();
                if entries.len() == asked || taken < entries.len() {
                    listing.learn(entries.len(), taken);
                }
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
                let taken = entries
                    .iter()
                    .take_while(|e| {
                        let name = OsStr::from_bytes(&e.name);
                        let (attr, generation) = match &e.attr {
                            Some(attr) => (file_attr(attr), attr.generation),
                            None => (bare(e.ino, e.kind), 0),
                        };
                        let generation = Generation(generation);
                        !reply.add(INodeNo(e.ino), e.cookie, name, &ttl, &attr, generation)
                    })
                    .count();
                if entries.len() == asked || taken < entries.len() {
                    listing.learn(entries.len(), taken);
                }
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
        let fs = self.fs();
        let work = async move {
            fs.release(fh.0);
            Ok(())
        };
        self.dispatch.run(Operation::Releasedir, req, work, empty(reply));
    }

    fn fsyncdir(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        datasync: bool,
        reply: ReplyEmpty,
    ) {
        let fs = self.fs();
        let work = async move { fs.fsyncdir(ino.0, datasync).await };
        self.dispatch.run(Operation::Fsyncdir, req, work, empty(reply));
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
        let mode = match flags {
            libc::XATTR_CREATE => XattrMode::Create,
            libc::XATTR_REPLACE => XattrMode::Replace,
            _ => XattrMode::Any,
        };
        let work = async move { fs.setxattr(ino.0, &wanted, &value, mode).await };
        self.dispatch.run(Operation::Setxattr, req, work, empty(reply));
    }

    fn getxattr(&self, req: &Request, ino: INodeNo, wanted: &OsStr, size: u32, reply: ReplyXattr) {
        let (fs, wanted) = (self.fs(), name(wanted));
        let work = async move { fs.getxattr(ino.0, &wanted).await };
        self.dispatch.run(Operation::Getxattr, req, work, sized(reply, size));
    }

    fn listxattr(&self, req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let fs = self.fs();
        let work = async move { fs.listxattr(ino.0).await };
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
            drop_privileges(&fs, ino.0, caller).await
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
            drop_privileges(&fs, ino_out.0, caller).await?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handles_can_be_read_and_do_not_append() {
        let flags = handle_flags(libc::O_WRONLY | libc::O_APPEND | libc::O_SYNC);
        assert_eq!(flags, libc::O_RDWR | libc::O_SYNC);
        assert_eq!(handle_flags(libc::O_RDONLY), libc::O_RDONLY);
    }

    #[test]
    fn listings_learn_what_fits() {
        let listing = Listing::default();
        listing.learn(64, 64);
        assert_eq!(listing.ask(), 128);
        listing.learn(128, 90);
        assert_eq!(listing.ask(), 91);
        listing.learn(91, 0);
        assert_eq!(listing.ask(), 1);
    }
}
