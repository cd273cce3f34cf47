//! unlink and rmdir, and what becomes of an inode without names.

use crate::filesystem::{Ino, Kind};
use crate::limits::TRIM_INLINE_BLOCKS;
use crate::record::{Dirent, Inode};
use crate::txn::{Done, Txn, fail};

/// Removes a name that is no directory.
pub(crate) fn unlink(t: &mut Txn<'_>, parent: Ino, name: &[u8]) -> Done<()> {
    t.directory(parent)?;
    let dirent = t.existing(parent, name)?;
    if dirent.kind == Kind::Directory {
        return fail(libc::EISDIR);
    }
    let inode = t.inode_of(dirent)?;
    t.set_dirent(parent, name, Some(dirent), None)?;
    drop_link(t, dirent.ino, inode)
}

/// Removes an empty directory.
pub(crate) fn rmdir(t: &mut Txn<'_>, parent: Ino, name: &[u8]) -> Done<()> {
    match name {
        b"." => return fail(libc::EINVAL),
        b".." => return fail(libc::ENOTEMPTY),
        _ => {}
    }
    t.directory(parent)?;
    let dirent = t.existing(parent, name)?;
    if dirent.kind != Kind::Directory {
        return fail(libc::ENOTDIR);
    }
    let inode = t.inode_of(dirent)?;
    if inode.size > 0 {
        return fail(libc::ENOTEMPTY);
    }
    t.set_dirent(parent, name, Some(dirent), None)?;
    drop_target(t, dirent, inode)
}

/// A name of `dirent` is gone, whatever it is; a directory must be empty.
pub(crate) fn drop_target(t: &mut Txn<'_>, dirent: Dirent, inode: Inode) -> Done<()> {
    if dirent.kind == Kind::Directory {
        let inode = Inode { nlink: 0, ctime: t.now, ..inode };
        return vanish(t, dirent.ino, inode);
    }
    drop_link(t, dirent.ino, inode)
}

fn drop_link(t: &mut Txn<'_>, ino: Ino, mut inode: Inode) -> Done<()> {
    inode.nlink = inode.nlink.saturating_sub(1);
    inode.ctime = t.now;
    if inode.nlink > 0 {
        t.put_inode(ino, inode);
        return Ok(());
    }
    vanish(t, ino, inode)
}

/// The last name is gone. What is small and not in use goes in the same group (an open that is just
/// on its way gets `ESTALE`, and the kernel looks the name up again); all else becomes an orphan,
/// reclaimed when nobody holds it any more.
fn vanish(t: &mut Txn<'_>, ino: Ino, inode: Inode) -> Done<()> {
    let refs = t.refs(ino);
    let used = refs.opens > 0 || (refs.lookups > 0 && !t.geo.opens_are_told);
    let used = used && inode.kind != Kind::Directory;
    if used || !delete_if_small(t, ino, &inode)? {
        t.put_inode(ino, Inode { nlink: 0, ..inode });
        t.set_orphan(ino, true);
    }
    Ok(())
}

/// Deletes an inode with all that belongs to it if that fits a group beside other things; false =
/// it does not, and nothing was done.
pub(crate) fn delete_if_small(t: &mut Txn<'_>, ino: Ino, inode: &Inode) -> Done<bool> {
    let f = t.edit(ino, inode.clone());
    let small = Txn::span(&f) <= TRIM_INLINE_BLOCKS || f.inode.kind != Kind::File;
    let names = match f.inode.xattrs {
        0 => Some(Vec::new()),
        _ => t.st.xattrs.get(&ino).map(|map| map.keys().cloned().collect()),
    };
    let names = names.filter(|n| n.len() <= TRIM_INLINE_BLOCKS as usize);
    let Some(names) = names.filter(|_| small && t.dead(ino).is_none()) else {
        return Ok(false);
    };
    if f.inode.kind == Kind::File && f.inode.blocks > 0 {
        // Not known to be a hole is reason enough to delete.
        let blocks: Vec<u64> =
            (0..Txn::span(&f)).filter(|&b| t.counted(&f, b) != Some(false)).collect();
        t.delete_blocks(ino, blocks.into_iter());
    }
    let mut inode = f.inode;
    for name in names {
        t.set_xattr(ino, &mut inode, &name, None)?;
    }
    t.delete_inode(ino);
    Ok(true)
}
