//! readdir: pages of a directory in the order of the hashes of its names.

use crate::filesystem::{DirEntry, Ino, Kind};
use crate::key::ROOT;
use crate::name::HASH_MIN;
use crate::record::Dirent;
use crate::txn::{Done, Miss, Txn};

/// Cookies of `.` and `..`; smaller than every hash.
const DOT: u64 = 1;
const DOTDOT: u64 = 2;

/// Entries behind `cookie`, at most `max`; fewer are no sign of the end, none is. With `plus` every
/// entry but `.` and `..` counts a reference.
pub(crate) fn readdir(
    t: &mut Txn<'_>,
    ino: Ino,
    cookie: u64,
    plus: bool,
    max: usize,
) -> Done<Vec<DirEntry>> {
    let dir = t.directory(ino)?;
    let max = max.max(1);
    let mut out = Vec::new();
    let parent = if ino == ROOT { ROOT } else { dir.parent };
    for (at, ino, name) in [(DOT, ino, &b"."[..]), (DOTDOT, parent, b"..")] {
        if cookie < at && out.len() < max {
            let name = name.to_vec();
            out.push(DirEntry { ino, cookie: at, kind: Kind::Directory, name, attr: None });
        }
    }
    let Some(from) = cookie.max(HASH_MIN - 1).checked_add(1) else { return Ok(out) };
    if dir.size == 0 || out.len() == max {
        return Ok(out);
    }
    let found: Vec<(u64, Vec<u8>, Dirent)> = {
        let page = |from| Miss::DirPage { dir: ino, from };
        let Some(cache) = t.st.dirs.get(ino) else { return Err(page(from).into()) };
        let Some(to) = cache.known_to(from, dir.size) else { return Err(page(from).into()) };
        let found: Vec<_> = cache
            .live_range(from, to)
            .take(max - out.len())
            .map(|(hash, name, dirent)| (hash, name.to_vec(), dirent))
            .collect();
        if found.is_empty() && out.is_empty() && to < u64::MAX {
            return Err(page(to + 1).into());
        }
        found
    };
    if from == HASH_MIN {
        t.st.dirs.listing(ino);
    }
    let mut missing = Vec::new();
    for (hash, name, dirent) in found {
        let mut entry =
            DirEntry { ino: dirent.ino, cookie: hash, kind: dirent.kind, name, attr: None };
        if plus {
            match t.st.inodes.get(&dirent.ino) {
                Some(Some(inode)) => entry.attr = Some(inode.attr(dirent.ino, t.geo.block_size)),
                // A name without its inode is listed all the same; `check` tells of it.
                Some(None) => {}
                None => missing.push(dirent.ino),
            }
        }
        out.push(entry);
    }
    if !missing.is_empty() {
        return Err(Miss::Inodes(missing).into());
    }
    for entry in out.iter().filter(|e| e.attr.is_some()) {
        t.count_lookup(entry.ino);
    }
    Ok(out)
}
