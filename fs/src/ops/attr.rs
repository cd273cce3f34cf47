//! setattr: chmod, chown, truncate, utimens; and what Linux takes away on a write.

use crate::acl::{self, Acl};
use crate::errno::FsError;
use crate::filesystem::{Attr, Ino, Kind, SetAttr, SetTime, Strip, Timespec};
use crate::record::{Inode, inode_flags};
use crate::txn::{Done, Txn, fail};

/// Name of the attribute that holds file capabilities.
pub(crate) const CAPABILITY: &[u8] = b"security.capability";

/// Applies what is asked for, all at once.
pub(crate) fn setattr(t: &mut Txn<'_>, ino: Ino, set: &SetAttr) -> Done<Attr> {
    let inode = t.inode(ino)?;
    let kind = inode.kind;
    let mut f = t.edit(ino, inode);
    if let Some(size) = set.size {
        let before = f.inode.size;
        match kind {
            Kind::File => super::data::resize(t, &mut f, size)?,
            Kind::Directory => return fail(libc::EISDIR),
            _ => return fail(libc::EINVAL),
        }
        if size != before {
            f.inode.mtime = t.now;
        }
    }
    if kind != Kind::Directory {
        strip(t, ino, &mut f.inode, set.strip)?;
    }
    let inode = &mut f.inode;
    inode.uid = set.uid.unwrap_or(inode.uid);
    inode.gid = set.gid.unwrap_or(inode.gid);
    if let Some(perm) = set.perm {
        inode.perm = perm & 0o7777;
        chmod_acl(t, ino, inode)?;
    }
    let at = |time: SetTime, now: Timespec| match time {
        SetTime::Now => now,
        SetTime::At(time) => time,
    };
    inode.atime = set.atime.map_or(inode.atime, |x| at(x, t.now));
    inode.mtime = set.mtime.map_or(inode.mtime, |x| at(x, t.now));
    inode.ctime = set.ctime.unwrap_or(t.now);
    let attr = t.attr(ino, inode);
    t.put_inode(ino, f.inode);
    Ok(attr)
}

/// The access list follows the permission bits.
fn chmod_acl(t: &mut Txn<'_>, ino: Ino, inode: &mut Inode) -> Done<()> {
    if inode.flags & inode_flags::ACL == 0 {
        return Ok(());
    }
    let map = t.xattrs(ino, inode)?;
    let stored = map.get(acl::ACCESS).and_then(|bytes| Acl::parse(bytes).flatten());
    let Some(mut list) = stored else {
        return Err(FsError::corrupt(format!("the access list of inode {ino} is not valid")).into());
    };
    list.chmod(inode.perm);
    t.set_xattr(ino, inode, acl::ACCESS, Some(list.to_bytes()))
}

/// Takes away what is due.
pub(crate) fn strip(t: &mut Txn<'_>, ino: Ino, inode: &mut Inode, strip: Strip) -> Done<()> {
    match strip {
        Strip::Nothing => return Ok(()),
        Strip::Capability => {}
        Strip::Bits(bits) => inode.perm &= !bits,
    }
    drop_capability(t, ino, inode)
}

/// Removes file capabilities, as every change of content does.
pub(crate) fn drop_capability(t: &mut Txn<'_>, ino: Ino, inode: &mut Inode) -> Done<()> {
    if inode.flags & inode_flags::CAPABILITY != 0 {
        t.set_xattr(ino, inode, CAPABILITY, None)?;
    }
    Ok(())
}
