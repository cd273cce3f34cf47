//! Requests on names and inodes.

use super::drive::Room;
use super::{Attr, Caller, DirEntry, FileSystem, FsError, Ino, Kind, Result};
use crate::limits::SYMLINK_LEN_MAX;
use crate::ops::make::{New, make_and_look_up};
use crate::ops::{dir, make, remove, rename};
use crate::txn::fail;
use bytes::Bytes;

impl FileSystem {
    /// Finds a name. Counts one reference of the kernel to the inode.
    ///
    /// # Errors
    /// `ENOENT`, `ENAMETOOLONG`, `ENOTDIR`, `ESTALE` for a directory that is gone.
    pub async fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Attr> {
        self.run(Room::None, |t| make::lookup(t, parent, name)).await
    }

    /// The kernel drops `n` references.
    pub fn forget(&self, ino: Ino, n: u64) {
        let wake = self.state.lock().unref(ino, n, 0);
        if wake {
            self.wake.notify_one();
        }
    }

    /// Target of a symbolic link.
    ///
    /// # Errors
    /// `EINVAL` if it is none.
    pub async fn readlink(&self, ino: Ino) -> Result<Bytes> {
        self.run(Room::None, |t| {
            let inode = t.inode(ino)?;
            match inode.kind {
                Kind::Symlink => Ok(Bytes::from(inode.target)),
                _ => fail(libc::EINVAL),
            }
        })
        .await
    }

    /// Makes a node of any type but a directory; `mode` carries the type. Counts one reference.
    ///
    /// # Errors
    /// `EEXIST`, `ENAMETOOLONG`, `EPERM` for a directory, `EINVAL` for an unknown type.
    pub async fn mknod(
        &self,
        parent: Ino,
        name: &[u8],
        mode: u32,
        rdev: u32,
        umask: u32,
        caller: Caller,
    ) -> Result<Attr> {
        let kind = match mode & libc::S_IFMT {
            0 | libc::S_IFREG => Kind::File,
            libc::S_IFIFO => Kind::Fifo,
            libc::S_IFSOCK => Kind::Socket,
            libc::S_IFCHR => Kind::Char,
            libc::S_IFBLK => Kind::Block,
            libc::S_IFDIR => return Err(FsError::new(libc::EPERM)),
            _ => return Err(FsError::new(libc::EINVAL)),
        };
        let rdev = if matches!(kind, Kind::Char | Kind::Block) { rdev } else { 0 };
        let new = New { kind, perm: perm(mode), umask: umask as u16, rdev, target: &[] };
        self.run(Room::Small, |t| make_and_look_up(t, parent, name, &new, caller)).await
    }

    /// Makes a directory. Counts one reference.
    ///
    /// # Errors
    /// `EEXIST`, `ENAMETOOLONG`, `EMLINK`.
    pub async fn mkdir(
        &self,
        parent: Ino,
        name: &[u8],
        mode: u32,
        umask: u32,
        caller: Caller,
    ) -> Result<Attr> {
        let (perm, umask) = (perm(mode), umask as u16);
        let new = New { kind: Kind::Directory, perm, umask, rdev: 0, target: &[] };
        self.run(Room::Small, |t| make_and_look_up(t, parent, name, &new, caller)).await
    }

    /// Makes a symbolic link. Counts one reference.
    ///
    /// # Errors
    /// `EEXIST`, `ENAMETOOLONG` (name or target), `ENOENT` for an empty target.
    pub async fn symlink(
        &self,
        parent: Ino,
        name: &[u8],
        target: &[u8],
        caller: Caller,
    ) -> Result<Attr> {
        match target.len() {
            0 => return Err(FsError::new(libc::ENOENT)),
            1..=SYMLINK_LEN_MAX => {}
            _ => return Err(FsError::new(libc::ENAMETOOLONG)),
        }
        let new = New { kind: Kind::Symlink, perm: 0o777, umask: 0, rdev: 0, target };
        self.run(Room::For(target.len()), |t| make_and_look_up(t, parent, name, &new, caller)).await
    }

    /// Makes a hard link. Counts one reference.
    ///
    /// # Errors
    /// `EEXIST`, `EPERM` for a directory, `EMLINK`, `ENOENT` for an inode without names.
    pub async fn link(&self, ino: Ino, newparent: Ino, newname: &[u8]) -> Result<Attr> {
        self.run(Room::Small, |t| make::link(t, ino, newparent, newname)).await
    }

    /// Removes a name that is no directory.
    ///
    /// # Errors
    /// `ENOENT`, `EISDIR`.
    pub async fn unlink(&self, parent: Ino, name: &[u8]) -> Result<()> {
        self.run(Room::Freeing, |t| remove::unlink(t, parent, name)).await
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// `ENOENT`, `ENOTDIR`, `ENOTEMPTY`.
    pub async fn rmdir(&self, parent: Ino, name: &[u8]) -> Result<()> {
        self.run(Room::Freeing, |t| remove::rmdir(t, parent, name)).await
    }

    /// renameat2; `flags` as in `libc::RENAME_*`. The caller owns a whiteout.
    ///
    /// # Errors
    /// As renameat2: `ENOENT`, `EEXIST`, `EINVAL`, `EISDIR`, `ENOTDIR`, `ENOTEMPTY`, `EMLINK`.
    pub async fn rename(
        &self,
        parent: Ino,
        name: &[u8],
        newparent: Ino,
        newname: &[u8],
        flags: u32,
        caller: Caller,
    ) -> Result<()> {
        self.run(Room::Small, |t| {
            rename::rename(t, (parent, name), (newparent, newname), flags, caller)
        })
        .await
    }

    /// Makes and opens a regular file (or opens the one that is there, without `O_EXCL`). Counts
    /// one reference; gives a handle for [`Self::release`].
    ///
    /// # Errors
    /// `EEXIST` with `O_EXCL`, `EISDIR`, `ENAMETOOLONG`.
    pub async fn create(
        &self,
        parent: Ino,
        name: &[u8],
        mode: u32,
        umask: u32,
        flags: i32,
        caller: Caller,
    ) -> Result<(Attr, u64)> {
        let mode = (perm(mode), umask as u16);
        self.run(Room::Small, |t| make::create(t, parent, name, mode, flags, caller)).await
    }

    /// Opens a directory: a handle for [`Self::release`].
    ///
    /// # Errors
    /// `ENOTDIR`, `ESTALE`.
    pub async fn opendir(&self, ino: Ino) -> Result<u64> {
        self.run(Room::None, |t| {
            t.directory(ino)?;
            Ok(t.open_handle(ino))
        })
        .await
    }

    /// Entries behind `cookie` (0 = from the start, `.` and `..` first), at most `max_entries`
    /// (at least 1); fewer are no sign of the end, none is. With `plus` each entry but `.` and `..`
    /// has attributes and counts one reference; the caller gives back ([`Self::forget`]) what it
    /// does not hand to the kernel.
    ///
    /// # Errors
    /// `ENOTDIR`, `ESTALE`.
    pub async fn readdir(
        &self,
        ino: Ino,
        cookie: u64,
        plus: bool,
        max_entries: usize,
    ) -> Result<Vec<DirEntry>> {
        self.run(Room::None, |t| dir::readdir(t, ino, cookie, plus, max_entries)).await
    }
}

/// Permission bits of a mode.
fn perm(mode: u32) -> u16 {
    (mode & 0o7777) as u16
}
