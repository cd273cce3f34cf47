//! File content: open, read, write, truncate, punch. A block is kept without trailing zeros, a
//! block of zeros has no record, and records in dead ranges do not count (see `dead.rs`).

use super::attr::drop_capability;
use crate::dead::Under;
use crate::filesystem::{Atime, Attr, Ino, Kind, Strip};
use crate::limits::{ATIME_AGE_S, FILE_SIZE_MAX, TRIM_INLINE_BLOCKS};
use crate::record::inode_flags::SHRUNK;
use crate::span::{blank, overlay, spans, trim};
use crate::txn::{Done, FileEdit, Held, Miss, Txn, fail};
use bytes::Bytes;

static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// Opens a file; `O_TRUNC` truncates it in the same group.
pub(crate) fn open(t: &mut Txn<'_>, ino: Ino, flags: i32) -> Done<(Attr, u64)> {
    let inode = t.inode(ino)?;
    match inode.kind {
        Kind::Directory => return fail(libc::EISDIR),
        Kind::Symlink => return fail(libc::ELOOP),
        _ => {}
    }
    let writes = flags & libc::O_ACCMODE != libc::O_RDONLY;
    let mut attr = t.attr(ino, &inode);
    if inode.kind == Kind::File && flags & libc::O_TRUNC != 0 && writes {
        let mut f = t.edit(ino, inode);
        resize(t, &mut f, 0)?;
        drop_capability(t, ino, &mut f.inode)?;
        f.inode.mtime = t.now;
        f.inode.ctime = t.now;
        attr = t.attr(ino, &f.inode);
        t.put_inode(ino, f.inode);
    }
    Ok((attr, t.open_handle(ino)))
}

/// Reads; the pieces together are the bytes, shorter only at the end of the file.
///
/// `passing`: they lie in the kernel's page cache from now on, and nobody is about to change a part of a
/// block. Whole blocks then leave the cache: what comes next is received into their memory, not into new
/// pages, which took a fifth of a stream's CPU (docs/adr/0024).
pub(crate) fn read(
    t: &mut Txn<'_>,
    ino: Ino,
    offset: u64,
    size: u32,
    passing: bool,
) -> Done<Vec<Bytes>> {
    let f = t.file(ino)?;
    let len = u64::from(size).min(f.base.size.saturating_sub(offset)) as usize;
    let mut out = Vec::with_capacity(len / t.geo.block_size as usize + 2);
    let mut missing = Vec::new();
    for s in spans(offset, len, t.geo.block_size) {
        let Held::Known(value) = t.block(&f, s.block) else {
            missing.push(s.block);
            continue;
        };
        let held = s.to.min(value.len());
        if s.from < held {
            out.push(value.slice(s.from..held));
        }
        let mut zeros = s.to - held.max(s.from);
        while zeros > 0 {
            let n = zeros.min(ZEROS.len());
            out.push(Bytes::from_static(&ZEROS[..n]));
            zeros -= n;
        }
    }
    if !missing.is_empty() {
        return Err(Miss::Blocks { ino, blocks: missing }.into());
    }
    // Unless somebody needs all that was loaded to get on at all.
    if passing && t.st.struggling == 0 {
        let bs = u64::from(t.geo.block_size);
        for s in spans(offset, len, t.geo.block_size) {
            let to_its_end = s.to as u64 == bs || s.block * bs + s.to as u64 >= f.base.size;
            t.st.pass(ino, s.block, s.from == 0 && to_its_end);
        }
    }
    let stale = f.base.atime <= f.base.mtime
        || f.base.atime <= f.base.ctime
        || t.now.sec - f.base.atime.sec >= ATIME_AGE_S;
    let due = match t.st.atime {
        Atime::Never => false,
        Atime::Relative => stale,
        Atime::Strict => true,
    };
    if due && size > 0 {
        let mut inode = f.inode;
        inode.atime = t.now;
        t.put_inode(ino, inode);
    }
    Ok(out)
}

/// Writes; `data` is at most what one group takes.
pub(crate) fn write(
    t: &mut Txn<'_>,
    ino: Ino,
    offset: u64,
    data: &Bytes,
    strip: Strip,
) -> Done<()> {
    let mut f = t.file(ino)?;
    let end = offset.checked_add(data.len() as u64).filter(|&end| end <= FILE_SIZE_MAX);
    let Some(end) = end else { return fail(libc::EFBIG) };
    let bs = u64::from(t.geo.block_size);
    let mut missing = Vec::new();
    for s in spans(offset, data.len(), t.geo.block_size) {
        let piece = data.slice(s.at..s.at + (s.to - s.from));
        let whole = s.from == 0 && (s.to as u64 == bs || s.block * bs + s.to as u64 >= f.base.size);
        let counted = t.counted(&f, s.block);
        let value = match whole {
            true => trim(piece),
            false => match t.block(&f, s.block) {
                Held::Known(old) => overlay(&old, s.from, &piece),
                Held::Unknown => {
                    missing.push(s.block);
                    continue;
                }
            },
        };
        match counted {
            Some(counted) if missing.is_empty() => t.set_block(&mut f, s.block, value, counted),
            Some(_) => {}
            None => missing.push(s.block),
        }
    }
    if !missing.is_empty() {
        return Err(Miss::Blocks { ino, blocks: missing }.into());
    }
    f.inode.size = f.inode.size.max(end);
    touch(t, &mut f, strip)
}

/// What changed content takes away. It does not set times: with the writeback cache the kernel keeps mtime
/// and ctime of regular files, and sends them when its own are newer than what it sent last. Times set
/// here, later than the write they belong to, would come to light at the next mount.
fn touch(t: &mut Txn<'_>, f: &mut FileEdit, strip: Strip) -> Done<()> {
    super::attr::strip(t, f.ino, &mut f.inode, strip)?;
    t.put_inode(f.ino, f.inode.clone());
    Ok(())
}

/// Sets the size. Growth needs nothing: behind the end there are only holes.
pub(crate) fn resize(t: &mut Txn<'_>, f: &mut FileEdit, size: u64) -> Done<()> {
    if size > FILE_SIZE_MAX {
        return fail(libc::EFBIG);
    }
    if size < f.base.size {
        let bs = u64::from(t.geo.block_size);
        if !size.is_multiple_of(bs) {
            edge(t, f, size / bs, (size % bs) as usize, bs as usize)?;
        }
        drop_blocks(t, f, size.div_ceil(bs), Txn::span(f))?;
    }
    f.inode.size = size;
    Ok(())
}

/// Makes `start..end` zeros, within the size as it is.
fn zero(t: &mut Txn<'_>, f: &mut FileEdit, start: u64, end: u64) -> Done<()> {
    let bs = u64::from(t.geo.block_size);
    let end = end.min(f.base.size);
    if start >= end {
        return Ok(());
    }
    // What lies behind the end of the file is zero anyway: the last block is whole to its end.
    let end = if end == f.base.size { end.next_multiple_of(bs) } else { end };
    let (first, last) = (start.div_ceil(bs), end / bs);
    if first > last {
        return edge(t, f, last, (start % bs) as usize, (end % bs) as usize);
    }
    if !start.is_multiple_of(bs) {
        edge(t, f, first - 1, (start % bs) as usize, bs as usize)?;
    }
    drop_blocks(t, f, first, last)?;
    if !end.is_multiple_of(bs) {
        edge(t, f, last, 0, (end % bs) as usize)?;
    }
    Ok(())
}

/// Makes part of one block zeros.
fn edge(t: &mut Txn<'_>, f: &mut FileEdit, block: u64, from: usize, to: usize) -> Done<()> {
    match t.block(f, block) {
        Held::Known(old) if from < old.len() => {
            f.inode.flags |= SHRUNK;
            t.set_block(f, block, blank(&old, from, to), true);
            Ok(())
        }
        Held::Known(_) => Ok(()),
        Held::Unknown => Err(Miss::Blocks { ino: f.ino, blocks: vec![block] }.into()),
    }
}

/// Makes holes of whole blocks: a few are deleted here, many are marked dead.
fn drop_blocks(t: &mut Txn<'_>, f: &mut FileEdit, start: u64, end: u64) -> Done<()> {
    let end = end.min(Txn::span(f));
    if start >= end || f.base.blocks == 0 {
        return Ok(());
    }
    f.inode.flags |= SHRUNK;
    let (ino, n, few) = (f.ino, end - start, end - start <= TRIM_INLINE_BLOCKS);
    if Txn::is_dense(f) {
        if few {
            t.delete_blocks(ino, start..end);
        } else {
            t.add_dead(f, start, end, Under::Dense);
        }
        f.inode.blocks -= n;
    } else if start == 0 && end == Txn::span(f) {
        // All of it: what was there need not be known.
        if few {
            let dead = |t: &Txn<'_>, b| t.dead(ino).is_some_and(|d| d.get(b).is_some());
            let blocks: Vec<u64> = (0..end).filter(|&b| !dead(t, b)).collect();
            t.delete_blocks(ino, blocks.into_iter());
        } else {
            let mostly = f.base.blocks >= n / 4;
            t.add_dead(f, start, end, if mostly { Under::Dense } else { Under::Sparse });
        }
        t.uncount(f);
    } else if few {
        let mut missing = Vec::new();
        for b in start..end {
            if t.dead(ino).is_some_and(|d| d.get(b).is_some()) {
                continue;
            }
            match t.counted(f, b) {
                Some(true) if missing.is_empty() => t.set_block(f, b, Bytes::new(), true),
                Some(_) => {}
                None => missing.push(b),
            }
        }
        if !missing.is_empty() {
            return Err(Miss::Blocks { ino, blocks: missing }.into());
        }
    } else {
        t.add_dead(f, start, end, Under::Counted);
    }
    Ok(())
}

/// fallocate. Space is not reserved (a volume that is full says so at the write), so allocation is
/// a matter of size only.
pub(crate) fn fallocate(t: &mut Txn<'_>, ino: Ino, offset: u64, len: u64, mode: i32) -> Done<()> {
    use libc::{FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE};
    let keep = mode & FALLOC_FL_KEEP_SIZE != 0;
    let zeros = match mode & !FALLOC_FL_KEEP_SIZE {
        0 => false,
        FALLOC_FL_PUNCH_HOLE if keep => true,
        FALLOC_FL_ZERO_RANGE => true,
        _ => return fail(libc::EOPNOTSUPP),
    };
    if len == 0 {
        return fail(libc::EINVAL);
    }
    let end = offset.checked_add(len).filter(|&end| end <= FILE_SIZE_MAX);
    let Some(end) = end else { return fail(libc::EFBIG) };
    let inode = t.inode(ino)?;
    if inode.kind != Kind::File {
        return fail(libc::ENODEV);
    }
    let mut f = t.edit(ino, inode);
    if zeros {
        zero(t, &mut f, offset, end)?;
    }
    if !keep {
        f.inode.size = f.inode.size.max(end);
    }
    touch(t, &mut f, Strip::Capability)
}
