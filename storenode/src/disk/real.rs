//! A directory of the machine.

use super::{Disk, DiskFile, DiskSpace, LONG_WRITE};
use crate::background;
use parking_lot::Mutex;
use rustix::fs::{Advice, FallocateFlags, FlockOperation, OFlags};
use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

const LOCK_NAME: &str = "lock";
/// Pieces that one `pwritev` takes (the kernel's limit is 1,024).
const PIECES_MAX: usize = 512;

/// Bytes that one direct write takes through a buffer of as much.
const DIRECT_STEP: usize = 1 << 20;
/// The same for what nobody waits for: others' syncs get in between.
const DIRECT_STEP_BEHIND: usize = 128 << 10;
/// Offset, length and memory of a direct write are multiples of this; no disk asks for more.
const ALIGN: usize = 4096;

/// A directory of the machine; one process at a time holds its [lock](Disk::lock).
#[derive(Debug)]
pub struct RealDisk {
    path: PathBuf,
    dir: File,
    lock: Mutex<Option<File>>,
    direct: Arc<Mutex<Direct>>,
}

/// Long writes go past the page cache (`O_DIRECT`). The copy into it, most of it into memory that was
/// never touched, is what a node costs the machine otherwise, and what three nodes keep there nobody
/// reads: the mount keeps it too. Reads and short writes stay as they are; the kernel keeps both views
/// of a file the same. A filesystem that cannot do this gets ordinary writes.
#[derive(Debug, Default)]
struct Direct {
    /// The file written to last: a log writes to one at a time. Not by its name, which another one may have
    /// by now.
    file: Option<(FileId, File)>,
    buffer: Vec<u8>,
    refused: bool,
}

/// Device and inode: which file it is, as long as somebody has it open.
type FileId = (u64, u64);

fn id_of(file: &File) -> io::Result<FileId> {
    let m = file.metadata()?;
    Ok((m.dev(), m.ino()))
}

impl Direct {
    /// Writes the bytes `skip..skip + len` of `pieces`; `skip` stands at `offset`, both it and `len` are
    /// multiples of [`ALIGN`]. Answers how many were written: a multiple again, and less when direct
    /// writes are refused.
    fn write(
        &mut self,
        to: &RealFile,
        pieces: &[&[u8]],
        skip: usize,
        len: usize,
        offset: u64,
    ) -> io::Result<usize> {
        if !self.open(to) {
            return Ok(0);
        }
        if self.buffer.is_empty() {
            self.buffer = vec![0; DIRECT_STEP + ALIGN];
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        let start = buffer.as_ptr().align_offset(ALIGN).min(ALIGN);
        let mut from = Gather { pieces, piece: 0, at: 0 };
        from.skip(skip);
        let (mut done, step) = (0, step_of(len));
        let written = loop {
            if done == len {
                break Ok(done);
            }
            let bytes = &mut buffer[start..start + step.min(len - done)];
            from.fill(bytes);
            match self.put(bytes, offset + done as u64) {
                Ok(n) if n == bytes.len() => done += n,
                other => break other.map(|n| done + n),
            }
        };
        self.buffer = buffer;
        written
    }

    /// The same for one piece that lies in memory as it will in the file.
    fn write_in_place(&mut self, to: &RealFile, piece: &[u8], offset: u64) -> io::Result<usize> {
        if !self.open(to) {
            return Ok(0);
        }
        let mut done = 0;
        let step = if background::is_here() { step_of(piece.len()) } else { piece.len() };
        for step in piece.chunks(step.max(1)) {
            let n = self.put(step, offset + done as u64)?;
            done += n;
            if n < step.len() {
                break;
            }
        }
        Ok(done)
    }

    /// Makes sure that `of` is the file to write to. False: it cannot be written to directly.
    fn open(&mut self, of: &RealFile) -> bool {
        if self.file.as_ref().is_some_and(|(id, _)| *id == of.id) {
            return true;
        }
        let flag = i32::try_from(OFlags::DIRECT.bits()).unwrap_or_default();
        match OpenOptions::new().write(true).custom_flags(flag).open(&of.path) {
            // Removed meanwhile, and perhaps made anew: the name is not that of this file any more.
            Ok(file) if id_of(&file).is_ok_and(|id| id == of.id) => {
                self.file = Some((of.id, file));
                true
            }
            Ok(_) => false,
            Err(e) if e.kind() == io::ErrorKind::NotFound => false,
            Err(e) => {
                tracing::info!(error = %e, "no direct writes here");
                self.refused = true;
                false
            }
        }
    }

    /// Writes `bytes`, all of it or less; what is left goes the other way.
    fn put(&mut self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        use rustix::io::Errno;
        let Some((_, file)) = &self.file else { return Ok(0) };
        let mut written = 0;
        while written < bytes.len() {
            match rustix::io::pwrite(file, &bytes[written..], offset + written as u64) {
                Ok(n) if n > 0 && n.is_multiple_of(ALIGN) => written += n,
                Ok(n) => return Ok(written + n / ALIGN * ALIGN),
                Err(Errno::INTR) => {}
                Err(Errno::INVAL | Errno::OPNOTSUPP) => {
                    self.refused = true;
                    break;
                }
                Err(e) => return Err(e.into()),
            }
        }
        Ok(written)
    }
}

/// Bytes per step of a direct write of `len`.
fn step_of(len: usize) -> usize {
    // What is long is of a moment in which nobody works.
    if background::is_here() && len < DIRECT_STEP { DIRECT_STEP_BEHIND } else { DIRECT_STEP }
}

/// The whole pages of the first long piece from byte `from` of `pieces` on that lies in memory as it will in the
/// file: where they begin in `pieces`, of which the first byte stands at `offset`, and they themselves.
fn in_place<'a>(pieces: &[&'a [u8]], from: usize, offset: u64) -> Option<(usize, &'a [u8])> {
    let align = ALIGN as u64;
    let mut at = 0;
    for piece in pieces {
        let place = offset + at as u64;
        let in_phase = piece.as_ptr().addr() as u64 % align == place % align;
        if at >= from && piece.len() >= LONG_WRITE && in_phase {
            let before = (place.next_multiple_of(align) - place) as usize;
            let whole = (piece.len() - before) / ALIGN * ALIGN;
            return Some((at + before, &piece[before..before + whole]));
        }
        at += piece.len();
    }
    None
}

/// A place in a list of pieces.
struct Gather<'a> {
    pieces: &'a [&'a [u8]],
    piece: usize,
    at: usize,
}

impl<'a> Gather<'a> {
    /// What is left of the piece it stands in, at most `max` bytes of it; goes on behind that.
    fn next(&mut self, max: usize) -> &'a [u8] {
        while self.piece < self.pieces.len() && self.at == self.pieces[self.piece].len() {
            (self.piece, self.at) = (self.piece + 1, 0);
        }
        let Some(piece) = self.pieces.get(self.piece) else { return &[] };
        let n = max.min(piece.len() - self.at);
        self.at += n;
        &piece[self.at - n..self.at]
    }
    fn skip(&mut self, mut n: usize) {
        while n > 0 {
            n -= self.next(n).len();
        }
    }
    fn fill(&mut self, mut into: &mut [u8]) {
        while !into.is_empty() {
            let piece = self.next(into.len());
            let (here, rest) = into.split_at_mut(piece.len());
            here.copy_from_slice(piece);
            into = rest;
        }
    }
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
        Ok(Self { path: path.to_path_buf(), dir, lock: Mutex::new(None), direct: Arc::default() })
    }

    /// Of a file whatever is asked for is read and nothing else: three banks take turns in answering, so what
    /// follows in one log is asked of another bank, and reading ahead would read everything three times.
    fn file(&self, name: &str, file: File) -> io::Result<Arc<dyn DiskFile>> {
        // Advice; without it all is as right.
        let _ = rustix::fs::fadvise(&file, 0, None, Advice::Random);
        let (id, direct) = (id_of(&file)?, Arc::clone(&self.direct));
        Ok(Arc::new(RealFile { file, id, path: self.path.join(name), direct }))
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
        self.file(name, file)
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        self.file(name, options().create_new(true).open(self.path.join(name))?)
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
        // An open one would keep its space.
        self.direct.lock().file = None;
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

struct RealFile {
    file: File,
    id: FileId,
    path: PathBuf,
    direct: Arc<Mutex<Direct>>,
}

impl RealFile {
    /// Writes `pieces` one behind the other, through the page cache.
    fn write_cached(&self, pieces: &[&[u8]], offset: u64) -> io::Result<()> {
        let mut at = offset;
        for chunk in pieces.chunks(PIECES_MAX) {
            let mut slices: Vec<IoSlice<'_>> = chunk.iter().map(|p| IoSlice::new(p)).collect();
            let mut rest: &mut [IoSlice<'_>] = &mut slices;
            let mut left: usize = chunk.iter().map(|p| p.len()).sum();
            while left > 0 {
                match rustix::io::pwritev(&self.file, rest, at) {
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

    /// Writes the bytes `from..to` of `pieces`, of which the first stands at `offset`, through the page cache.
    fn write_part(&self, pieces: &[&[u8]], from: usize, to: usize, offset: u64) -> io::Result<()> {
        let mut gather = Gather { pieces, piece: 0, at: 0 };
        gather.skip(from);
        let (mut part, mut at) = (Vec::new(), from);
        while at < to {
            part.push(gather.next(to - at));
            at += part.last().map_or(to, |p| p.len());
        }
        self.write_cached(&part, offset + from as u64)
    }

    /// The same, past the page cache if it is long, through a buffer.
    fn write_copied(
        &self,
        pieces: &[&[u8]],
        from: usize,
        to: usize,
        offset: u64,
    ) -> io::Result<()> {
        let mut direct = self.direct.lock();
        if to - from < LONG_WRITE || direct.refused {
            drop(direct);
            return self.write_part(pieces, from, to, offset);
        }
        // The pages at both ends are shared with what stands before and what comes behind.
        let place = offset + from as u64;
        let first = from + (place.next_multiple_of(ALIGN as u64) - place) as usize;
        let whole = (to - first) / ALIGN * ALIGN;
        let done = direct.write(self, pieces, first, whole, offset + first as u64)?;
        drop(direct);
        self.write_part(pieces, from, first, offset)?;
        self.write_part(pieces, first + done, to, offset)
    }
}

impl DiskFile for RealFile {
    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < into.len() {
            match self.file.read_at(&mut into[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }

    fn write_at(&self, pieces: &[&[u8]], offset: u64) -> io::Result<()> {
        let len: usize = pieces.iter().map(|p| p.len()).sum();
        if len < LONG_WRITE || self.phase() == 1 {
            return self.write_cached(pieces, offset);
        }
        let mut at = 0;
        while at < len {
            let found = in_place(pieces, at, offset);
            let until = found.map_or(len, |(begin, _)| begin);
            self.write_copied(pieces, at, until, offset)?;
            at = until;
            if let Some((_, pages)) = found {
                let mut direct = self.direct.lock();
                let done = direct.write_in_place(self, pages, offset + at as u64)?;
                drop(direct);
                // What was refused.
                self.write_part(pieces, at + done, at + pages.len(), offset)?;
                at += pages.len();
            }
        }
        Ok(())
    }

    fn phase(&self) -> usize {
        if self.direct.lock().refused { 1 } else { ALIGN }
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        use rustix::io::Errno;
        let before = self.len()?;
        match rustix::fs::fallocate(&self.file, FallocateFlags::empty(), 0, len) {
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
        self.file.set_len(len)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_pages_of_a_long_piece_in_phase_are_found_and_nothing_else() {
        let memory = vec![0u8; LONG_WRITE + 3 * ALIGN];
        let page = memory.as_ptr().align_offset(ALIGN);
        let piece = |from: usize, len: usize| &memory[page + from..page + from + len];
        let long = piece(64, LONG_WRITE);
        let found = |pieces: &[&[u8]], from, offset| {
            in_place(pieces, from, offset)
                .map(|(at, p)| (at, p.as_ptr().addr() - page - memory.as_ptr().addr(), p.len()))
        };
        let whole = LONG_WRITE - ALIGN;
        assert_eq!(found(&[long], 0, 64), Some((ALIGN - 64, ALIGN, whole)));
        let behind = [piece(0, 64), long, piece(0, 100)];
        assert_eq!(found(&behind, 0, 8 * 4096), Some((ALIGN, ALIGN, whole)));
        assert_eq!(found(&behind, 65, 8 * 4096), None, "it began before");
        assert_eq!(found(&behind, 0, 8 * 4096 + 8), None, "not in phase");
        assert_eq!(found(&[piece(64, LONG_WRITE - 1)], 0, 64), None, "not long");
        assert_eq!(found(&[piece(0, LONG_WRITE)], 0, 0), Some((0, 0, LONG_WRITE)));
    }
}
