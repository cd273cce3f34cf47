//! lookup, and everything that makes a name: create, mknod, mkdir, symlink, link.

use crate::acl::{self, Acl};
use crate::errno::FsError;
use crate::filesystem::{Attr, Caller, Ino, Kind};
use crate::limits::LINKS_MAX;
use crate::name;
use crate::record::{Dirent, Inode, inode_flags};
use crate::txn::{Done, Txn, fail};
use bytes::Bytes;

const S_ISGID: u16 = 0o2000;

/// Finds a name; counts a reference.
pub(crate) fn lookup(t: &mut Txn<'_>, parent: Ino, name: &[u8]) -> Done<Attr> {
    if name.len() > crate::limits::NAME_LEN_MAX {
        return fail(libc::ENAMETOOLONG);
    }
    let dir = t.directory(parent)?;
    let ino = match name {
        b"." => parent,
        b".." if parent == crate::key::ROOT => parent,
        b".." => dir.parent,
        _ => {
            let dirent = t.existing(parent, name)?;
            let inode = t.looked_up(parent, name, dirent)?;
            t.count_lookup(dirent.ino);
            return Ok(t.attr(dirent.ino, &inode));
        }
    };
    let inode = t.inode(ino)?;
    t.count_lookup(ino);
    Ok(t.attr(ino, &inode))
}

/// What is to be made.
pub(crate) struct New<'a> {
    pub(crate) kind: Kind,
    pub(crate) perm: u16,
    /// Does not count where a default access list is inherited.
    pub(crate) umask: u16,
    pub(crate) rdev: u32,
    pub(crate) target: &'a [u8],
}

/// Makes an inode and its name; gives its number. Does not count a reference (whiteouts).
pub(crate) fn make(
    t: &mut Txn<'_>,
    parent: Ino,
    name: &[u8],
    new: &New<'_>,
    caller: Caller,
) -> Done<(Ino, Inode)> {
    name::check(name)?;
    let dir = t.directory(parent)?;
    if dir.nlink == 0 {
        return fail(libc::ENOENT);
    }
    if t.dirent(parent, name)?.is_some() {
        return fail(libc::EEXIST);
    }
    let is_dir = new.kind == Kind::Directory;
    if is_dir && dir.nlink >= LINKS_MAX {
        return fail(libc::EMLINK);
    }
    let inherited = inherited(t, parent, &dir, new)?;
    let perm = match &inherited {
        Some((list, _)) => new.perm & 0o7000 | list.mode(),
        None => new.perm & !(new.umask & 0o777),
    };
    let (gid, perm) = match dir.perm & S_ISGID {
        0 => (caller.gid, perm),
        _ => (dir.gid, if is_dir { perm | S_ISGID } else { perm }),
    };
    let ino = t.new_ino((!is_dir).then(|| Txn::slot(parent)));
    let mut inode = Inode {
        kind: new.kind,
        perm,
        uid: caller.uid,
        gid,
        nlink: if is_dir { 2 } else { 1 },
        rdev: new.rdev,
        size: 0,
        blocks: 0,
        atime: t.now,
        mtime: t.now,
        ctime: t.now,
        btime: t.now,
        generation: t.geo.epoch,
        parent: if is_dir { parent } else { 0 },
        xattrs: 0,
        flags: 0,
        target: new.target.into(),
    };
    if let Some((list, default)) = inherited {
        if list.is_extended() {
            t.set_xattr(ino, &mut inode, acl::ACCESS, Some(list.to_bytes()))?;
        }
        if is_dir {
            t.set_xattr(ino, &mut inode, acl::DEFAULT, Some(default))?;
        }
    }
    t.make_inode(ino, inode.clone());
    t.set_dirent(parent, name, None, Some(Dirent { ino, kind: new.kind }))?;
    Ok((ino, inode))
}

/// The access list that a new node gets from its directory's default list, and that list itself.
fn inherited(
    t: &mut Txn<'_>,
    parent: Ino,
    dir: &Inode,
    new: &New<'_>,
) -> Done<Option<(Acl, Bytes)>> {
    if dir.flags & inode_flags::DEFAULT_ACL == 0 || new.kind == Kind::Symlink {
        return Ok(None);
    }
    let map = t.xattrs(parent, dir)?;
    let Some(default) = map.get(acl::DEFAULT) else { return Ok(None) };
    match Acl::parse(default).flatten() {
        Some(list) => Ok(Some((list.inherited(new.perm), default.clone()))),
        None => Err(FsError::corrupt(format!("the default list of {parent} is not valid")).into()),
    }
}

/// mknod, mkdir, symlink: counts a reference.
pub(crate) fn make_and_look_up(
    t: &mut Txn<'_>,
    parent: Ino,
    name: &[u8],
    new: &New<'_>,
    caller: Caller,
) -> Done<Attr> {
    let (ino, inode) = make(t, parent, name, new, caller)?;
    t.count_lookup(ino);
    Ok(t.attr(ino, &inode))
}

/// open(O_CREAT): makes the file or, without `O_EXCL`, opens the one that is there.
pub(crate) fn create(
    t: &mut Txn<'_>,
    parent: Ino,
    name: &[u8],
    (perm, umask): (u16, u16),
    flags: i32,
    caller: Caller,
) -> Done<(Attr, u64)> {
    name::check(name)?;
    t.directory(parent)?;
    if let Some(dirent) = t.dirent(parent, name)? {
        if flags & libc::O_EXCL != 0 {
            return fail(libc::EEXIST);
        }
        let (attr, handle) = super::data::open(t, dirent.ino, flags)?;
        t.count_lookup(dirent.ino);
        return Ok((attr, handle));
    }
    let new = New { kind: Kind::File, perm, umask, rdev: 0, target: &[] };
    let (ino, inode) = make(t, parent, name, &new, caller)?;
    t.count_lookup(ino);
    let handle = t.open_handle(ino);
    Ok((t.attr(ino, &inode), handle))
}

/// A hard link; counts a reference.
pub(crate) fn link(t: &mut Txn<'_>, ino: Ino, newparent: Ino, newname: &[u8]) -> Done<Attr> {
    name::check(newname)?;
    let dir = t.directory(newparent)?;
    let mut inode = t.inode(ino)?;
    if inode.kind == Kind::Directory {
        return fail(libc::EPERM);
    }
    if inode.nlink == 0 || dir.nlink == 0 {
        return fail(libc::ENOENT);
    }
    if inode.nlink >= LINKS_MAX {
        return fail(libc::EMLINK);
    }
    if t.dirent(newparent, newname)?.is_some() {
        return fail(libc::EEXIST);
    }
    inode.nlink += 1;
    inode.ctime = t.now;
    let attr = t.attr(ino, &inode);
    let dirent = Dirent { ino, kind: inode.kind };
    t.put_inode(ino, inode);
    t.set_dirent(newparent, newname, None, Some(dirent))?;
    t.count_lookup(ino);
    Ok(attr)
}
