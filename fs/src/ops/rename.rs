//! renameat2 with all its flags, in one group.

use super::make::{New, make};
use super::remove::drop_target;
use crate::filesystem::{Caller, Ino, Kind};
use crate::key::ROOT;
use crate::limits::LINKS_MAX;
use crate::name;
use crate::record::Dirent;
use crate::txn::{Done, Txn, fail};

/// See the module.
pub(crate) fn rename(
    t: &mut Txn<'_>,
    (parent, name): (Ino, &[u8]),
    (newparent, newname): (Ino, &[u8]),
    flags: u32,
    caller: Caller,
) -> Done<()> {
    const KNOWN: u32 = libc::RENAME_NOREPLACE | libc::RENAME_EXCHANGE | libc::RENAME_WHITEOUT;
    let exchange = flags & libc::RENAME_EXCHANGE != 0;
    if flags & !KNOWN != 0 || (exchange && flags != libc::RENAME_EXCHANGE) {
        return fail(libc::EINVAL);
    }
    name::check(newname)?;
    t.directory(parent)?;
    let newdir = t.directory(newparent)?;
    let source = t.existing(parent, name)?;
    let target = t.dirent(newparent, newname)?;
    let same_place = parent == newparent && name == newname;
    if exchange {
        let Some(target) = target else { return fail(libc::ENOENT) };
        if same_place || source.ino == target.ino {
            return Ok(());
        }
        return swap(t, (parent, name, source), (newparent, newname, target));
    }
    if newdir.nlink == 0 {
        return fail(libc::ENOENT);
    }
    if let Some(target) = target {
        if flags & libc::RENAME_NOREPLACE != 0 {
            return fail(libc::EEXIST);
        }
        if source.ino == target.ino {
            // Two names of one file, or one place: POSIX says to do nothing.
            return Ok(());
        }
    }
    let moving_dir = source.kind == Kind::Directory;
    if moving_dir && parent != newparent {
        not_below(t, source.ino, newparent)?;
    }
    let replaced = match target {
        None => None,
        Some(target) => {
            match (moving_dir, target.kind == Kind::Directory) {
                (true, false) => return fail(libc::ENOTDIR),
                (false, true) => return fail(libc::EISDIR),
                _ => {}
            }
            let inode = t.inode_of(target)?;
            if target.kind == Kind::Directory && inode.size > 0 {
                return fail(libc::ENOTEMPTY);
            }
            Some((target, inode))
        }
    };
    if moving_dir && replaced.is_none() && parent != newparent && newdir.nlink >= LINKS_MAX {
        return fail(libc::EMLINK);
    }
    t.set_dirent(parent, name, Some(source), None)?;
    t.set_dirent(newparent, newname, target, Some(source))?;
    moved(t, source, newparent)?;
    if let Some((target, inode)) = replaced {
        drop_target(t, target, inode)?;
    }
    if flags & libc::RENAME_WHITEOUT != 0 {
        let whiteout = New { kind: Kind::Char, perm: 0, umask: 0, rdev: 0, target: &[] };
        make(t, parent, name, &whiteout, caller)?;
    }
    Ok(())
}

type Place<'a> = (Ino, &'a [u8], Dirent);

fn swap(t: &mut Txn<'_>, a: Place<'_>, b: Place<'_>) -> Done<()> {
    let ((dir_a, name_a, a), (dir_b, name_b, b)) = (a, b);
    if dir_a != dir_b {
        for (moving, to) in [(a, dir_b), (b, dir_a)] {
            if moving.kind == Kind::Directory {
                not_below(t, moving.ino, to)?;
            }
        }
    }
    t.set_dirent(dir_a, name_a, Some(a), Some(b))?;
    t.set_dirent(dir_b, name_b, Some(b), Some(a))?;
    moved(t, a, dir_b)?;
    moved(t, b, dir_a)
}

/// A moved inode: ctime, and a directory's parent.
fn moved(t: &mut Txn<'_>, dirent: Dirent, to: Ino) -> Done<()> {
    let mut inode = t.inode_of(dirent)?;
    inode.ctime = t.now;
    if dirent.kind == Kind::Directory {
        inode.parent = to;
    }
    t.put_inode(dirent.ino, inode);
    Ok(())
}

/// `EINVAL` if directory `to` is `moving` or lies below it.
fn not_below(t: &mut Txn<'_>, moving: Ino, to: Ino) -> Done<()> {
    let mut at = to;
    while at != ROOT {
        if at == moving {
            return fail(libc::EINVAL);
        }
        at = t.directory(at)?.parent;
    }
    Ok(())
}
