//! Between fuser's types and ours. No decisions here.

use crate::filesystem::{Attr, Caller, Kind, SetTime, Timespec};
use fuser::{Errno, FileAttr, FileType, INodeNo, Request, TimeOrNow};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub(super) fn caller(req: &Request) -> Caller {
    Caller { uid: req.uid(), gid: req.gid(), pid: req.pid() }
}

pub(super) fn name(name: &OsStr) -> Box<[u8]> {
    name.as_bytes().into()
}

/// With the writeback cache the kernel reads where the application only writes (to fill a page),
/// and appends by itself.
pub(super) fn handle_flags(flags: i32) -> i32 {
    let flags = flags & !libc::O_APPEND;
    match flags & libc::O_ACCMODE {
        libc::O_WRONLY => flags & !libc::O_ACCMODE | libc::O_RDWR,
        _ => flags,
    }
}

pub(super) fn errno(errno: i32) -> Errno {
    Errno::from_i32(errno)
}

pub(super) fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::File => FileType::RegularFile,
        Kind::Directory => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
        Kind::Fifo => FileType::NamedPipe,
        Kind::Socket => FileType::Socket,
        Kind::Char => FileType::CharDevice,
        Kind::Block => FileType::BlockDevice,
    }
}

pub(super) fn perm_of_mode(mode: u32) -> u16 {
    u16::try_from(mode & 0o7777).unwrap_or_default()
}

pub(super) fn system_time(t: Timespec) -> SystemTime {
    let nanos = Duration::from_nanos(t.nsec.into());
    let whole = Duration::from_secs(t.sec.unsigned_abs());
    // What no clock can show is shown as the epoch.
    let second =
        if t.sec >= 0 { UNIX_EPOCH.checked_add(whole) } else { UNIX_EPOCH.checked_sub(whole) };
    second.and_then(|s| s.checked_add(nanos)).unwrap_or(UNIX_EPOCH)
}

/// A time that the kernel sent, as fuser 0.18 hands it over. Before 1970 fuser subtracts the
/// nanoseconds that the kernel adds (-5 s + 0.9 s arrives as -5.9 s); undone here.
pub(super) fn timespec(t: SystemTime) -> Timespec {
    match t.duration_since(UNIX_EPOCH) {
        Ok(after) => Timespec {
            sec: i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
            nsec: after.subsec_nanos(),
        },
        Err(before) => {
            let before = before.duration();
            let sec = -i64::try_from(before.as_secs()).unwrap_or(i64::MAX);
            Timespec { sec, nsec: before.subsec_nanos() }
        }
    }
}

pub(super) fn set_time(t: TimeOrNow) -> SetTime {
    match t {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(t) => SetTime::At(timespec(t)),
    }
}

pub(super) fn file_attr(a: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(a.ino),
        size: a.size,
        blocks: a.blocks,
        atime: system_time(a.atime),
        mtime: system_time(a.mtime),
        ctime: system_time(a.ctime),
        crtime: UNIX_EPOCH,
        kind: file_type(a.kind),
        perm: a.perm,
        nlink: a.nlink,
        uid: a.uid,
        gid: a.gid,
        rdev: a.rdev,
        blksize: a.blksize,
        flags: 0,
    }
}

/// An entry without attributes. With inode 0 in a lookup: "this name does not exist, and you may
/// remember that". In a listing with attributes: `.` and `..`, whose attributes the kernel skips.
pub(super) fn bare(ino: u64, kind: Kind) -> FileAttr {
    FileAttr {
        ino: INodeNo(ino),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: file_type(kind),
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 0,
        flags: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What fuser 0.18 makes of the seconds and nanoseconds of a request.
    fn as_fuser_reads(sec: i64, nsec: u32) -> SystemTime {
        let both = Duration::new(sec.unsigned_abs(), nsec);
        if sec >= 0 { UNIX_EPOCH + both } else { UNIX_EPOCH - both }
    }

    /// What it makes of a reply, which is right.
    fn as_fuser_writes(t: SystemTime) -> (i64, u32) {
        let nanos = match t.duration_since(UNIX_EPOCH) {
            Ok(d) => i128::try_from(d.as_nanos()).unwrap(),
            Err(e) => -i128::try_from(e.duration().as_nanos()).unwrap(),
        };
        let sec = nanos.div_euclid(1_000_000_000);
        let nsec = nanos.rem_euclid(1_000_000_000);
        (i64::try_from(sec).unwrap(), u32::try_from(nsec).unwrap())
    }

    #[test]
    fn times_survive_both_ways_before_1970_too() {
        for (sec, nsec) in
            [(0, 0), (0, 1), (1, 999_999_999), (-1, 0), (-1, 1), (-2, 999_999_999), (1 << 40, 5)]
        {
            let t = timespec(as_fuser_reads(sec, nsec));
            assert_eq!(t, Timespec { sec, nsec });
            assert_eq!(as_fuser_writes(system_time(t)), (sec, nsec));
        }
    }

    #[test]
    fn permissions_leave_the_type_behind() {
        assert_eq!(perm_of_mode(0o104_755), 0o4755);
    }

    #[test]
    fn handles_can_be_read_and_do_not_append() {
        let flags = handle_flags(libc::O_WRONLY | libc::O_APPEND | libc::O_SYNC);
        assert_eq!(flags, libc::O_RDWR | libc::O_SYNC);
        assert_eq!(handle_flags(libc::O_RDONLY), libc::O_RDONLY);
    }
}
