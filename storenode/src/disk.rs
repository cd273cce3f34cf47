//! The only caller of `std::fs`: one flat directory of files, as an engine sees it.
//!
//! [`RealDisk`] is a directory of the machine; [`MemoryDisk`] is one in memory that keeps apart what
//! was written and what would survive a power cut, and that can fail at a chosen operation.

mod memory;
mod real;

pub use memory::MemoryDisk;
pub use real::RealDisk;

use std::io;
use std::sync::Arc;

/// A write of this length is worth a path of its own, bytes: an append of it costs more than its sync.
pub(crate) const LONG_WRITE: usize = 256 << 10;

/// Size of the disk below, bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DiskSpace {
    /// All of it.
    pub total_bytes: u64,
    /// What this process may still take.
    pub free_bytes: u64,
}

/// One flat directory. Names are plain file names. All calls block; all are thread-safe.
pub trait Disk: Send + Sync {
    /// Takes the directory for this process until the disk is dropped.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when another process has it.
    fn lock(&self) -> io::Result<()>;

    /// Names of all files, unordered; the lock file is not among them.
    ///
    /// # Errors
    /// Whatever the directory answers.
    fn list(&self) -> io::Result<Vec<String>>;

    /// Opens an existing file for reading, and for writing where that is allowed.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] when there is none.
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;

    /// Makes a new, empty file. Its name is durable after [`Disk::sync_dir`].
    ///
    /// # Errors
    /// [`io::ErrorKind::AlreadyExists`] when there is one.
    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;

    /// Replaces a whole file durably and at once: after an error or a power cut there is either the
    /// old content or the new.
    ///
    /// # Errors
    /// Whatever the disk answers; then it is not known which of the two is there.
    fn replace(&self, name: &str, content: &[u8]) -> io::Result<()>;

    /// Removes a file; a missing one is not an error. Durable after [`Disk::sync_dir`].
    ///
    /// # Errors
    /// Whatever the directory answers.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Makes created and removed names durable.
    ///
    /// # Errors
    /// Whatever the directory answers.
    fn sync_dir(&self) -> io::Result<()>;

    /// How big and how full the disk is.
    ///
    /// # Errors
    /// Whatever the disk answers.
    fn space(&self) -> io::Result<DiskSpace>;
}

/// An open file. Reads and writes name their place; nothing has a cursor.
pub trait DiskFile: Send + Sync {
    /// Reads into `into` from `offset`; fewer bytes only at the end of the file.
    ///
    /// # Errors
    /// Whatever the disk answers.
    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Writes all of `pieces`, one behind the other, from `offset` on.
    ///
    /// # Errors
    /// Whatever the disk answers; any part of the bytes may have been written.
    fn write_at(&self, pieces: &[&[u8]], offset: u64) -> io::Result<()>;

    /// A piece of at least 256 KiB is written without a copy if its address in memory and its place in the
    /// file are equal modulo this. 1: nothing is gained by that.
    fn phase(&self) -> usize {
        1
    }

    /// Makes content and length durable.
    ///
    /// # Errors
    /// Whatever the disk answers. After an error nothing that was not synced before may be
    /// trusted, even if a later call succeeds: the kernel forgets the pages it could not write.
    fn sync_data(&self) -> io::Result<()>;

    /// Reserves space so that the file is at least `len` bytes long, filled with zeros.
    ///
    /// # Errors
    /// [`io::ErrorKind::StorageFull`], and then nothing is taken; or whatever the disk answers. A disk
    /// that cannot reserve answers `Ok` and does nothing.
    fn allocate(&self, len: u64) -> io::Result<()>;

    /// Cuts the file at `len` bytes.
    ///
    /// # Errors
    /// Whatever the disk answers.
    fn truncate(&self, len: u64) -> io::Result<()>;

    /// Length, bytes.
    ///
    /// # Errors
    /// Whatever the disk answers.
    fn len(&self) -> io::Result<u64>;

    /// Nothing in it?
    ///
    /// # Errors
    /// As [`DiskFile::len`].
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
}

/// Reads a whole file of at most `limit` bytes.
///
/// # Errors
/// [`io::ErrorKind::NotFound`], [`io::ErrorKind::FileTooLarge`], or whatever the disk answers.
pub fn read_file(disk: &dyn Disk, name: &str, limit: u64) -> io::Result<Vec<u8>> {
    let file = disk.open(name)?;
    let len = file.len()?;
    if len > limit {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("{name}: {len} bytes")));
    }
    let mut all = vec![0; len as usize];
    let n = file.read_at(&mut all, 0)?;
    all.truncate(n);
    Ok(all)
}
