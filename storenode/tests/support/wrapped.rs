//! A disk around a disk in memory: sees what the node does with it, and says it in other words.

use std::io;
use std::sync::Arc;
use storenode::disk::{Disk, DiskFile, DiskSpace, MemoryDisk};

/// What a [`Wrapped`] disk does besides.
pub trait Watcher: Send + Sync + 'static {
    /// Before a read of so many bytes of a file; an error is what the read gives.
    fn reading(&self, _name: &str, _len: usize) -> io::Result<()> {
        Ok(())
    }
    /// Before a file is cut.
    fn cutting(&self) {}
    /// Before a file is removed.
    fn removing(&self, _name: &str) {}
    /// The error that the node gets.
    fn error(&self, e: io::Error) -> io::Error {
        e
    }
}

pub struct Wrapped<W>(pub MemoryDisk, pub Arc<W>);
struct WrappedFile<W>(Arc<dyn DiskFile>, Arc<W>, String);

impl<W: Watcher> Wrapped<W> {
    fn told<T>(&self, r: io::Result<T>) -> io::Result<T> {
        r.map_err(|e| self.1.error(e))
    }
    fn file(
        &self,
        name: &str,
        file: io::Result<Arc<dyn DiskFile>>,
    ) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(WrappedFile(self.told(file)?, Arc::clone(&self.1), name.to_owned())))
    }
}

impl<W: Watcher> Disk for Wrapped<W> {
    fn lock(&self) -> io::Result<()> {
        self.0.lock()
    }
    fn list(&self) -> io::Result<Vec<String>> {
        self.told(self.0.list())
    }
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        self.file(name, self.0.open(name))
    }
    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        self.file(name, self.0.create(name))
    }
    fn replace(&self, name: &str, content: &[u8]) -> io::Result<()> {
        self.told(self.0.replace(name, content))
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.1.removing(name);
        self.told(self.0.remove(name))
    }
    fn sync_dir(&self) -> io::Result<()> {
        self.told(self.0.sync_dir())
    }
    fn space(&self) -> io::Result<DiskSpace> {
        self.told(self.0.space())
    }
}

impl<W: Watcher> WrappedFile<W> {
    fn told<T>(&self, r: io::Result<T>) -> io::Result<T> {
        r.map_err(|e| self.1.error(e))
    }
}

impl<W: Watcher> DiskFile for WrappedFile<W> {
    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<usize> {
        self.1.reading(&self.2, into.len())?;
        self.told(self.0.read_at(into, offset))
    }
    fn write_at(&self, pieces: &[&[u8]], offset: u64) -> io::Result<()> {
        self.told(self.0.write_at(pieces, offset))
    }
    fn sync_data(&self) -> io::Result<()> {
        self.told(self.0.sync_data())
    }
    fn allocate(&self, len: u64) -> io::Result<()> {
        self.told(self.0.allocate(len))
    }
    fn truncate(&self, len: u64) -> io::Result<()> {
        self.1.cutting();
        self.told(self.0.truncate(len))
    }
    fn len(&self) -> io::Result<u64> {
        self.told(self.0.len())
    }
}
