//! What callers of the filesystem hand in and get back: plain values, nothing of FUSE.

use bincode::{Decode, Encode};
use std::time::Duration;

/// Inode number; 1 is the root.
pub type Ino = u64;

/// Who asks. The kernel has checked permissions (`default_permissions`); these only own what is made.
#[derive(Clone, Copy, Debug)]
pub struct Caller {
    /// fsuid.
    pub uid: u32,
    /// fsgid.
    pub gid: u32,
    /// Process, for logs.
    pub pid: u32,
}

/// Type of an inode.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
pub enum Kind {
    /// Regular file.
    File,
    /// Directory.
    Directory,
    /// Symbolic link.
    Symlink,
    /// Fifo.
    Fifo,
    /// Socket.
    Socket,
    /// Character device.
    Char,
    /// Block device.
    Block,
}

/// Seconds and nanoseconds since 1970 (seconds may be negative).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Encode, Decode)]
pub struct Timespec {
    /// Seconds.
    pub sec: i64,
    /// Nanoseconds, `0..1_000_000_000`.
    pub nsec: u32,
}

/// Attributes of an inode.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Attr {
    /// Inode number.
    pub ino: Ino,
    /// Generation (never reused together with `ino`).
    pub generation: u64,
    /// Type.
    pub kind: Kind,
    /// Permission bits with suid, sgid, sticky: `0o7777`.
    pub perm: u16,
    /// Links.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number for char and block.
    pub rdev: u32,
    /// Bytes.
    pub size: u64,
    /// 512-byte units really held.
    pub blocks: u64,
    /// Preferred I/O size, bytes.
    pub blksize: u32,
    /// Last access.
    pub atime: Timespec,
    /// Last change of content.
    pub mtime: Timespec,
    /// Last change of the inode.
    pub ctime: Timespec,
}

/// A time to set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SetTime {
    /// The present.
    Now,
    /// A given time.
    At(Timespec),
}

/// What `setattr` changes.
#[derive(Clone, Copy, Debug, Default)]
pub struct SetAttr {
    /// chmod (0o7777).
    pub perm: Option<u16>,
    /// chown.
    pub uid: Option<u32>,
    /// chgrp.
    pub gid: Option<u32>,
    /// truncate.
    pub size: Option<u64>,
    /// utimens.
    pub atime: Option<SetTime>,
    /// utimens, or the kernel's own mtime (writeback cache).
    pub mtime: Option<SetTime>,
    /// The kernel's own ctime.
    pub ctime: Option<Timespec>,
    /// The open handle it goes through, if any.
    pub handle: Option<u64>,
    /// What this takes away.
    pub strip: Strip,
}

/// What a change takes away from a file. Never anything from a directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Strip {
    /// Nothing. For a write: it comes from the page cache; the kernel took away what was due when the
    /// program wrote, and what was set since is there to stay.
    #[default]
    Nothing,
    /// File capabilities: it is done by somebody who may keep set-user-id and set-group-id bits.
    Capability,
    /// Those and these bits of the mode.
    Bits(u16),
}

/// One entry of a directory listing.
#[derive(Clone, Debug)]
pub struct DirEntry {
    /// Inode.
    pub ino: Ino,
    /// Give this to go on behind the entry.
    pub cookie: u64,
    /// Type.
    pub kind: Kind,
    /// Name.
    pub name: Vec<u8>,
    /// With readdirplus (not for `.` and `..`).
    pub attr: Option<Attr>,
}

/// Numbers for `statfs`; sizes in blocks of `bsize` bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct StatFs {
    /// Total blocks.
    pub blocks: u64,
    /// Free blocks.
    pub bfree: u64,
    /// Inodes.
    pub files: u64,
    /// Inodes that may yet be made.
    pub ffree: u64,
    /// Block size, bytes.
    pub bsize: u32,
    /// Longest name, bytes.
    pub namelen: u32,
}

/// When reading marks a file as read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize, serde::Deserialize)]
pub enum Atime {
    /// Never (`noatime`).
    Never,
    /// When it was changed since, or the mark is older than a day (`relatime`).
    #[default]
    Relative,
    /// Always (`strictatime`).
    Strict,
}

/// How a name that exists is treated by `setxattr`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum XattrMode {
    /// Create or replace.
    Any,
    /// XATTR_CREATE.
    Create,
    /// XATTR_REPLACE.
    Replace,
    /// Both, which never works: each gives its error.
    Both,
}

/// What callers hold valid, and for how long (the mount is the only writer).
pub const ENTRY_TTL: Duration = Duration::from_secs(3600);

/// Numbers for `status`: what stands in the caches and waits.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize)]
pub struct FsStats {
    /// Cached inodes.
    pub inodes: usize,
    /// Cached directory entries, negative ones included.
    pub dirents: usize,
    /// Cached file data, bytes.
    pub block_bytes: usize,
    /// Open handles.
    pub handles: usize,
    /// Inodes the kernel refers to.
    pub referenced: usize,
    /// Unlinked inodes and dead ranges that wait for reclaim.
    pub reclaim_waiting: usize,
}
