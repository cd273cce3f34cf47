//! A directory of the machine.

use super::{Disk, DiskFile, DiskSpace};
use parking_lot::Mutex;
use rustix::fs::{FallocateFlags, FlockOperation};
use rustix::io::ReadWriteFlags;
use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

const LOCK_NAME: &str = "lock";
/// Pieces that one `pwritev` takes (the kernel's limit is 1,024).
const PIECES_MAX: usize = 512;

/// A directory of the machine; one process at a time holds its [lock](Disk::lock).
#[derive(Debug)]
pub struct RealDisk {
    path: PathBuf,
    dir: File,
    lock: Mutex<Option<File>>,
}

impl RealDisk {
    /// Opens the directory; makes it (mode 0700), with its parents, when `create` is set.
    ///
    /// # Errors
    /// When it is not there, is no directory, or may not be opened.
    pub fn open(path: &Path, create: bool) -> io::Result<Self> {
        if create {
            use std::os::unix::fs::DirBuilderExt;
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
            // The new directory's own name must survive a power cut as well.
            if let Some(parent) = path.canonicalize()?.parent() {
                File::open(parent)?.sync_all()?;
            }
        }
        allow_many_files();
        let dir = File::open(path)?;
        if !dir.metadata()?.is_dir() {
            return Err(io::Error::new(io::ErrorKind::NotADirectory, path.display().to_string()));
        }
        Ok(Self { path: path.to_path_buf(), dir, lock: Mutex::new(None) })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Every segment of the log stays open: 1,024 descriptors, the usual soft limit, would end a node at
/// 64 GiB. The hard limit is far above that.
fn allow_many_files() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        limit.current = limit.maximum;
        if let Err(e) = setrlimit(Resource::Nofile, limit) {
            tracing::warn!(error = %e, "cannot raise the limit of open files");
        }
    }
}

fn options() -> OpenOptions {
    let mut o = OpenOptions::new();
    o.read(true).write(true).mode(0o600);
    o
}

impl Disk for RealDisk {
    fn lock(&self) -> io::Result<()> {
        let mut held = self.lock.lock();
        if held.is_some() {
            return Ok(());
        }
        let file = options().create(true).truncate(false).open(self.path.join(LOCK_NAME))?;
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        *held = Some(file);
        Ok(())
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.path)? {
            let entry = entry?;
            if let Some(name) = entry.file_name().to_str()
                && name != LOCK_NAME
                && entry.file_type()?.is_file()
            {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let path = self.path.join(name);
        let file = match options().open(&path) {
            // Looking into a directory of someone else's, or on a read-only filesystem.
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem
                ) =>
            {
                File::open(&path)?
            }
            other => other?,
        };
        Ok(Arc::new(RealFile(file)))
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(RealFile(options().create_new(true).open(self.path.join(name))?)))
    }

    fn replace(&self, name: &str, content: &[u8]) -> io::Result<()> {
        let temporary = self.path.join(format!("{name}.tmp"));
        let file = options().create(true).truncate(true).open(&temporary)?;
        file.write_all_at(content, 0)?;
        file.sync_all()?;
        std::fs::rename(&temporary, self.path.join(name))?;
        self.sync_dir()
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        match std::fs::remove_file(self.path.join(name)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    fn sync_dir(&self) -> io::Result<()> {
        self.dir.sync_all()
    }

    fn space(&self) -> io::Result<DiskSpace> {
        let s = rustix::fs::fstatvfs(&self.dir)?;
        Ok(DiskSpace {
            total_bytes: s.f_blocks.saturating_mul(s.f_frsize),
            free_bytes: s.f_bavail.saturating_mul(s.f_frsize),
        })
    }
}

struct RealFile(File);

impl DiskFile for RealFile {
    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < into.len() {
            match self.0.read_at(&mut into[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }

    fn read_at_once(&self, into: &mut [u8], offset: u64) -> bool {
        let mut slices = [IoSliceMut::new(into)];
        let got = rustix::io::preadv2(&self.0, &mut slices, offset, ReadWriteFlags::NOWAIT);
        got == Ok(into.len())
    }

    fn write_at(&self, pieces: &[&[u8]], offset: u64) -> io::Result<()> {
        let mut at = offset;
        for chunk in pieces.chunks(PIECES_MAX) {
            let mut slices: Vec<IoSlice<'_>> = chunk.iter().map(|p| IoSlice::new(p)).collect();
            let mut rest: &mut [IoSlice<'_>] = &mut slices;
            let mut left: usize = chunk.iter().map(|p| p.len()).sum();
            while left > 0 {
                match rustix::io::pwritev(&self.0, rest, at) {
                    Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                    Ok(n) => {
                        at += n as u64;
                        left -= n;
                        IoSlice::advance_slices(&mut rest, n);
                    }
                    Err(rustix::io::Errno::INTR) => {}
                    Err(e) => return Err(e.into()),
                }
            }
        }
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        use rustix::io::Errno;
        let before = self.len()?;
        match rustix::fs::fallocate(&self.0, FallocateFlags::empty(), 0, len) {
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
            Err(e @ (Errno::NOSPC | Errno::DQUOT)) => {
                // ext4 keeps what it could reserve until then, and that is all there was.
                self.truncate(before)?;
                Err(e.into())
            }
            other => Ok(other?),
        }
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }
}
