//! What a change takes away: set-user-id and set-group-id bits, file capabilities.
//!
//! With `HANDLE_KILLPRIV_V2` the kernel leaves it to us to clear the bits when a file is written,
//! truncated or given away. File capabilities (`security.capability`) it removes itself, through
//! removexattr, before all of these; before a write to the page cache at the time of the call, not
//! when the page comes here. How the requests tell who loses what:
//!
//! * write: says so (`FUSE_WRITE_KILL_SUIDGID`); pages from the page cache lose nothing any more.
//! * truncation: says so in a bit that fuser 0.18 does not hand over; fallocate and copy_file_range in
//!   none. There we look at the caller, and only for files that have such bits.
//! * chown(2): for regular files, whose times the kernel keeps, with a ctime. Without one it is
//!   overlayfs, which sets mode and then owner of its copy, and that must not take the mode away again.
//! * chown(2) of nothing (`chown :`) is a request to set nothing but that ctime.
//! * setting an access list: in none; there, too, somebody outside the file's group loses its
//!   set-group-id.
//!
//! Set-group-id goes with the right of the group to execute; without that right it goes where the
//! caller is not in the group.

use super::asker::Asker;
use crate::acl;
use crate::filesystem::{Attr, Caller, FileSystem, FsError, Kind, SetAttr, Strip, XattrMode};

const SUID: u16 = 0o4000;
const SGID: u16 = 0o2000;
const GROUP_EXECUTES: u16 = 0o010;

fn has_bits(attr: &Attr) -> bool {
    attr.kind != Kind::Directory && attr.perm & (SUID | SGID) != 0
}

/// The bits that go when somebody without privileges changes the file.
fn lost(perm: u16, is_in_group: impl FnOnce() -> bool) -> u16 {
    let sgid = perm & SGID != 0 && (perm & GROUP_EXECUTES != 0 || !is_in_group());
    perm & SUID | if sgid { SGID } else { 0 }
}

/// What a change of content takes away when nobody has said whether the caller may keep the bits.
fn strip_of(attr: &Attr, caller: Caller) -> Strip {
    if !has_bits(attr) {
        return Strip::Nothing;
    }
    let asker = Asker::of(caller.pid);
    match asker.keeps_bits(attr.uid, attr.gid) {
        true => Strip::Nothing,
        false => Strip::Bits(lost(attr.perm, || asker.is_in_group(attr.gid))),
    }
}

/// What a write takes away; `kills` and `cached` as the request says.
pub(super) async fn strip_of_write(
    fs: &FileSystem,
    ino: u64,
    caller: Caller,
    (kills, cached): (bool, bool),
) -> Result<Strip, FsError> {
    if !kills {
        return Ok(if cached { Strip::Nothing } else { Strip::Capability });
    }
    let attr = fs.getattr(ino).await?;
    let is_in_group = || Asker::of(caller.pid).is_in_group(attr.gid);
    Ok(Strip::Bits(lost(attr.perm, is_in_group)))
}

/// Takes away what is due after a change of content by another request than write.
pub(super) async fn content_changed(
    fs: &FileSystem,
    ino: u64,
    caller: Caller,
) -> Result<(), FsError> {
    let now = fs.getattr(ino).await?;
    let strip = strip_of(&now, caller);
    if strip != Strip::Nothing {
        let ctime = Some(now.ctime);
        fs.setattr(ino, SetAttr { strip, ctime, ..SetAttr::default() }, caller).await?;
    }
    Ok(())
}

/// setattr with what it takes away.
pub(super) async fn setattr(
    fs: &FileSystem,
    ino: u64,
    mut set: SetAttr,
    caller: Caller,
) -> Result<Attr, FsError> {
    let owned = set.uid.is_some() || set.gid.is_some();
    let timed = set.atime.is_some() || set.mtime.is_some();
    let nothing = !owned && !timed && set.perm.is_none() && set.size.is_none();
    if !(owned || nothing || set.size.is_some()) {
        return fs.setattr(ino, set, caller).await;
    }
    let now = fs.getattr(ino).await?;
    let regular = now.kind == Kind::File;
    let chown = (owned || nothing) && (set.ctime.is_some() || !regular);
    if chown && has_bits(&now) {
        let asker = Asker::of(caller.pid);
        if nothing && !asker.owns(now.uid, now.gid) {
            return Err(FsError::new(libc::EPERM));
        }
        set.strip = Strip::Bits(lost(now.perm, || {
            asker.is_in_group(now.gid) || asker.keeps_bits(now.uid, now.gid)
        }));
    } else if chown && now.kind != Kind::Directory {
        set.strip = Strip::Capability;
    } else if !owned {
        // A new size, or what the kernel does before a change of content.
        set.strip = strip_of(&now, caller);
    }
    if regular {
        // The kernel keeps the times of regular files: it would not know of a new one.
        set.ctime = set.ctime.or(Some(now.ctime));
    }
    fs.setattr(ino, set, caller).await
}

/// setxattr; of an access list with what it takes away.
pub(super) async fn setxattr(
    fs: &FileSystem,
    ino: u64,
    name: &[u8],
    value: &[u8],
    mode: XattrMode,
    caller: Caller,
) -> Result<(), FsError> {
    fs.setxattr(ino, name, value, mode).await?;
    if name != acl::ACCESS {
        return Ok(());
    }
    let now = fs.getattr(ino).await?;
    if now.perm & SGID != 0 {
        let asker = Asker::of(caller.pid);
        if !asker.is_in_group(now.gid) && !asker.keeps_bits(now.uid, now.gid) {
            let (perm, ctime) = (Some(now.perm & !SGID), Some(now.ctime));
            fs.setattr(ino, SetAttr { perm, ctime, ..SetAttr::default() }, caller).await?;
        }
    }
    Ok(())
}

/// Names of extended attributes that the caller may see.
pub(super) async fn listxattr(
    fs: &FileSystem,
    ino: u64,
    caller: Caller,
) -> Result<Vec<u8>, FsError> {
    let names = fs.listxattr(ino).await?;
    let is_hidden = |name: &[u8]| name.starts_with(b"trusted.");
    let any = names.split(|&b| b == 0).any(is_hidden);
    if !any || Asker::of(caller.pid).sees_trusted() {
        return Ok(names);
    }
    let kept = names.split_inclusive(|&b| b == 0).filter(|n| !is_hidden(n));
    Ok(kept.flatten().copied().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_that_go() {
        for (perm, member, gone) in [
            (0o6777, true, 0o6000),
            (0o6777, false, 0o6000),
            (0o6767, true, 0o4000),
            (0o6767, false, 0o6000),
            (0o2767, true, 0),
            (0o1777, false, 0),
        ] {
            assert_eq!(lost(perm, || member), gone, "{perm:o}");
        }
    }
}
