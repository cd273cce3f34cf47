//! Extended attributes. Namespaces `user`, `trusted` and `security` are stored as they are; POSIX
//! ACLs (`system.posix_acl_*`) are applied (`acl.rs`), never stored without effect.

use crate::acl::{self, Acl};
use crate::filesystem::{Ino, Kind, XattrMode};
use crate::limits::{XATTR_LIST_MAX, XATTR_NAME_MAX, XATTR_TOTAL_MAX, XATTR_VALUE_MAX};
use crate::record::inode_flags;
use crate::txn::{Done, Txn, fail};
use bytes::Bytes;

fn check(name: &[u8]) -> Done<()> {
    if name.len() > XATTR_NAME_MAX {
        return fail(libc::ERANGE);
    }
    if name == acl::ACCESS || name == acl::DEFAULT {
        return Ok(());
    }
    let spaces: [&[u8]; 3] = [b"user.", b"trusted.", b"security."];
    match spaces.iter().find(|s| name.starts_with(s)) {
        Some(space) if name.len() > space.len() => Ok(()),
        Some(_) => fail(libc::EINVAL),
        None => fail(libc::EOPNOTSUPP),
    }
}

pub(crate) fn set(
    t: &mut Txn<'_>,
    ino: Ino,
    name: &[u8],
    value: &Bytes,
    mode: XattrMode,
) -> Done<()> {
    check(name)?;
    if value.len() > XATTR_VALUE_MAX {
        return fail(libc::E2BIG);
    }
    let mut inode = t.inode(ino)?;
    let map = t.xattrs(ino, &inode)?;
    if name == acl::ACCESS || name == acl::DEFAULT {
        let access = name == acl::ACCESS;
        let Some(list) = Acl::parse(value) else { return fail(libc::EINVAL) };
        match inode.kind {
            Kind::Symlink => return fail(libc::EOPNOTSUPP),
            Kind::Directory => {}
            _ if access => {}
            _ => return fail(libc::EACCES),
        }
        if let Some(list) = list.as_ref().filter(|_| access) {
            inode.perm = inode.perm & 0o7000 | list.mode();
        }
        if !list.is_some_and(|list| !access || list.is_extended()) {
            // Nothing that the permission bits do not say.
            if map.contains_key(name) {
                t.set_xattr(ino, &mut inode, name, None)?;
            }
            inode.ctime = t.now;
            t.put_inode(ino, inode);
            return Ok(());
        }
    }
    match (map.contains_key(name), mode) {
        (true, XattrMode::Create | XattrMode::Both) => return fail(libc::EEXIST),
        (false, XattrMode::Replace | XattrMode::Both) => return fail(libc::ENODATA),
        _ => {}
    }
    let (mut names, mut total) = (name.len() + 1, name.len() + value.len());
    for (k, v) in map.iter().filter(|(k, _)| k.as_slice() != name) {
        names += k.len() + 1;
        total += k.len() + v.len();
    }
    if names > XATTR_LIST_MAX || total > XATTR_TOTAL_MAX {
        return fail(libc::ENOSPC);
    }
    t.set_xattr(ino, &mut inode, name, Some(value.clone()))?;
    inode.ctime = t.now;
    t.put_inode(ino, inode);
    Ok(())
}

pub(crate) fn get(t: &mut Txn<'_>, ino: Ino, name: &[u8]) -> Done<Bytes> {
    check(name)?;
    let inode = t.inode(ino)?;
    // What the kernel asks for all the time costs nothing.
    let flag = inode_flags::of_xattr(name);
    if flag != 0 && inode.flags & flag == 0 {
        return fail(libc::ENODATA);
    }
    match t.xattrs(ino, &inode)?.get(name) {
        Some(value) => Ok(value.clone()),
        None => fail(libc::ENODATA),
    }
}

pub(crate) fn list(t: &mut Txn<'_>, ino: Ino) -> Done<Vec<u8>> {
    let inode = t.inode(ino)?;
    let mut out = Vec::new();
    for name in t.xattrs(ino, &inode)?.keys() {
        out.extend_from_slice(name);
        out.push(0);
    }
    Ok(out)
}

pub(crate) fn remove(t: &mut Txn<'_>, ino: Ino, name: &[u8]) -> Done<()> {
    check(name)?;
    let mut inode = t.inode(ino)?;
    if !t.xattrs(ino, &inode)?.contains_key(name) {
        // An access list that says nothing is not stored, so it is there to be removed.
        let list = name == acl::ACCESS || name == acl::DEFAULT;
        return if list { Ok(()) } else { fail(libc::ENODATA) };
    }
    t.set_xattr(ino, &mut inode, name, None)?;
    inode.ctime = t.now;
    t.put_inode(ino, inode);
    Ok(())
}
