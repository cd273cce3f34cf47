//! [`FileSystem`]: one async method per POSIX request, and nothing of FUSE.
//!
//! The kernel has already checked permissions (`default_permissions`), types where it knows them,
//! and that a directory operation is alone in its directory; what depends on the volume is checked
//! here. Names are bytes without `/`.

mod types;

pub use crate::errno::FsError;
pub use crate::limits::CacheLimits;
pub use types::*;

use bytes::Bytes;
use std::sync::Arc;
use voter::volume::Volume;

/// Result of a request.
pub type Result<T> = std::result::Result<T, FsError>;

/// What `format` makes.
#[derive(Clone, Copy, Debug)]
pub struct FormatOptions {
    /// Block size, bytes: a power of two, 4 KiB to 1 MiB.
    pub block_size: u32,
    /// Owner of the root directory.
    pub uid: u32,
    /// Group of the root directory.
    pub gid: u32,
    /// Permission bits of the root directory.
    pub perm: u16,
}

impl Default for FormatOptions {
    fn default() -> Self {
        Self { block_size: crate::limits::BLOCK_SIZE_DEFAULT, uid: 0, gid: 0, perm: 0o755 }
    }
}

/// How a filesystem is opened.
#[derive(Clone, Debug)]
pub struct FsOptions {
    /// Bounds of the caches.
    pub caches: CacheLimits,
    /// Update access times as `relatime` does (else never).
    pub relatime: bool,
    /// Reclaim and read ahead in tasks of the current tokio runtime. Without it [`FileSystem`]
    /// does nothing on its own (deterministic tests call [`FileSystem::reclaim_all`]).
    pub background: bool,
}

impl Default for FsOptions {
    fn default() -> Self {
        Self { caches: CacheLimits::default(), relatime: true, background: true }
    }
}

/// A mounted filesystem.
pub struct FileSystem {
    #[expect(dead_code, reason = "skeleton")]
    volume: Arc<dyn Volume>,
}

fn nosys<T>() -> Result<T> {
    Err(FsError::new(libc::ENOSYS))
}

#[expect(clippy::unused_async, unused_variables, reason = "skeleton")]
impl FileSystem {
    /// mkfs: superblock and root directory; durable when it returns.
    ///
    /// # Errors
    /// `EEXIST` if the volume holds a filesystem, `EINVAL` for a bad block size.
    pub async fn format(volume: &Arc<dyn Volume>, options: &FormatOptions) -> Result<()> {
        nosys()
    }

    /// Opens the filesystem on a volume; what was being reclaimed goes on in the background.
    ///
    /// # Errors
    /// `ENOENT`-like refusals say in words what was found instead of a superblock.
    pub async fn open(volume: Arc<dyn Volume>, options: FsOptions) -> Result<Arc<Self>> {
        nosys()
    }

    /// Block size of the volume, bytes.
    #[must_use]
    pub fn block_size(&self) -> u32 {
        16384
    }

    /// Finds a name. Counts one reference of the kernel to the inode.
    pub async fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Attr> {
        nosys()
    }

    /// The kernel drops `n` references.
    pub fn forget(&self, ino: Ino, n: u64) {}

    /// Attributes.
    pub async fn getattr(&self, ino: Ino) -> Result<Attr> {
        nosys()
    }

    /// chmod, chown, truncate, utimens, all at once.
    pub async fn setattr(&self, ino: Ino, set: SetAttr, caller: Caller) -> Result<Attr> {
        nosys()
    }

    /// Target of a symbolic link.
    pub async fn readlink(&self, ino: Ino) -> Result<Bytes> {
        nosys()
    }

    /// Makes a node of any type but a directory; `mode` carries the type. Counts one reference.
    pub async fn mknod(
        &self,
        parent: Ino,
        name: &[u8],
        mode: u32,
        rdev: u32,
        umask: u32,
        caller: Caller,
    ) -> Result<Attr> {
        nosys()
    }

    /// Makes a directory. Counts one reference.
    pub async fn mkdir(
        &self,
        parent: Ino,
        name: &[u8],
        mode: u32,
        umask: u32,
        caller: Caller,
    ) -> Result<Attr> {
        nosys()
    }

    /// Makes a symbolic link. Counts one reference.
    pub async fn symlink(
        &self,
        parent: Ino,
        name: &[u8],
        target: &[u8],
        caller: Caller,
    ) -> Result<Attr> {
        nosys()
    }

    /// Makes a hard link. Counts one reference.
    pub async fn link(&self, ino: Ino, newparent: Ino, newname: &[u8]) -> Result<Attr> {
        nosys()
    }

    /// Removes a name that is no directory.
    pub async fn unlink(&self, parent: Ino, name: &[u8]) -> Result<()> {
        nosys()
    }

    /// Removes an empty directory.
    pub async fn rmdir(&self, parent: Ino, name: &[u8]) -> Result<()> {
        nosys()
    }

    /// renameat2; `flags` as in `libc::RENAME_*`.
    pub async fn rename(
        &self,
        parent: Ino,
        name: &[u8],
        newparent: Ino,
        newname: &[u8],
        flags: u32,
        caller: Caller,
    ) -> Result<()> {
        nosys()
    }

    /// Makes and opens a regular file (or opens the one that is there, without `O_EXCL`). Counts
    /// one reference; gives a handle for [`Self::release`].
    pub async fn create(
        &self,
        parent: Ino,
        name: &[u8],
        mode: u32,
        umask: u32,
        flags: i32,
        caller: Caller,
    ) -> Result<(Attr, u64)> {
        nosys()
    }

    /// Opens a file (`O_TRUNC` in `flags` truncates): a handle for [`Self::release`].
    pub async fn open_file(&self, ino: Ino, flags: i32) -> Result<u64> {
        nosys()
    }

    /// Reads: the pieces together are what was asked for, shorter only at the end of the file.
    pub async fn read(&self, ino: Ino, handle: u64, offset: u64, size: u32) -> Result<Vec<Bytes>> {
        nosys()
    }

    /// Writes all of `data`, or an error. `kill_priv` drops suid, sgid and capabilities
    /// (`FUSE_WRITE_KILL_SUIDGID`); `sync` returns when it is durable (`O_SYNC`, `O_DSYNC`).
    pub async fn write(
        &self,
        ino: Ino,
        handle: u64,
        offset: u64,
        data: Bytes,
        kill_priv: bool,
        sync: bool,
    ) -> Result<usize> {
        nosys()
    }

    /// close(2) of one descriptor: tells of a volume that was lost, nothing else.
    pub async fn flush(&self, ino: Ino, handle: u64) -> Result<()> {
        nosys()
    }

    /// Last use of a handle of [`Self::open_file`], [`Self::create`] or [`Self::opendir`].
    pub fn release(&self, handle: u64) {}

    /// fsync and fdatasync: all operations before it are durable.
    pub async fn fsync(&self, ino: Ino, datasync: bool) -> Result<()> {
        nosys()
    }

    /// Opens a directory: a handle for [`Self::release`].
    pub async fn opendir(&self, ino: Ino) -> Result<u64> {
        nosys()
    }

    /// Entries behind `cookie` (0 = from the start, `.` and `..` first), at most `max_entries`
    /// (at least 1); empty = the end. With `plus` each entry but `.` and `..` has attributes and
    /// counts one reference; the caller gives back ([`Self::forget`]) what it does not hand to the
    /// kernel.
    pub async fn readdir(
        &self,
        ino: Ino,
        cookie: u64,
        plus: bool,
        max_entries: usize,
    ) -> Result<Vec<DirEntry>> {
        nosys()
    }

    /// fsync of a directory: as [`Self::fsync`].
    pub async fn fsyncdir(&self, ino: Ino, datasync: bool) -> Result<()> {
        nosys()
    }

    /// Sizes of the volume.
    pub async fn statfs(&self) -> Result<StatFs> {
        nosys()
    }

    /// Sets an extended attribute.
    pub async fn setxattr(
        &self,
        ino: Ino,
        name: &[u8],
        value: &[u8],
        mode: XattrMode,
    ) -> Result<()> {
        nosys()
    }

    /// Value of an extended attribute, `ENODATA` if there is none (size rules are the adapter's).
    pub async fn getxattr(&self, ino: Ino, name: &[u8]) -> Result<Bytes> {
        nosys()
    }

    /// Names of all extended attributes, each with a NUL behind it.
    pub async fn listxattr(&self, ino: Ino) -> Result<Vec<u8>> {
        nosys()
    }

    /// Removes an extended attribute.
    pub async fn removexattr(&self, ino: Ino, name: &[u8]) -> Result<()> {
        nosys()
    }

    /// fallocate: mode 0, keep-size, punch, zero-range; others `EOPNOTSUPP`.
    pub async fn fallocate(
        &self,
        ino: Ino,
        handle: u64,
        offset: u64,
        len: u64,
        mode: i32,
    ) -> Result<()> {
        nosys()
    }

    /// `SEEK_DATA` and `SEEK_HOLE` (others are the kernel's).
    pub async fn lseek(&self, ino: Ino, offset: u64, whence: i32) -> Result<u64> {
        nosys()
    }

    /// Copies bytes between files; may copy less than asked for.
    pub async fn copy_file_range(
        &self,
        ino_in: Ino,
        offset_in: u64,
        ino_out: Ino,
        offset_out: u64,
        len: u64,
    ) -> Result<u64> {
        nosys()
    }

    /// Makes everything before it durable; for unmount.
    pub async fn sync_all(&self) -> Result<()> {
        nosys()
    }

    /// Reclaims all that waits for it, now (tests, unmount of small backlogs).
    pub async fn reclaim_all(&self) -> Result<()> {
        nosys()
    }

    /// What stands in the caches and waits, for `status`.
    #[must_use]
    pub fn stats(&self) -> FsStats {
        FsStats::default()
    }
}
