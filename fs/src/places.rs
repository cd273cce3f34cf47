//! From a path to the keys it is made of, for `tercet inspect` and for drills.

use crate::control::ControlError;
use crate::filesystem::{Attr, FileSystem, FsError, Ino, Kind};
use crate::key::{KeySpace, Place, ROOT};
use crate::name::NameHasher;
use crate::superblock::Superblock;
use voter::volume::Volume;

/// One key of a path.
#[derive(Debug)]
pub struct Named {
    /// `superblock`, `dirent of usr`, `inode`, `xattr user.x`, `block 17`.
    pub what: String,
    /// Shard and key.
    pub place: Place,
}

/// What a path is made of.
#[derive(Debug)]
pub struct Found {
    /// Its inode.
    pub ino: Ino,
    /// Its type, in words.
    pub kind: &'static str,
    /// Bytes.
    pub size: u64,
    /// Its keys, the name that leads to it first.
    pub keys: Vec<Named>,
    /// There are more keys than were asked for.
    pub more: bool,
}

fn words(e: &FsError, path: &str) -> ControlError {
    match e.errno {
        libc::ENOENT => {
            ControlError::new(1, format!("/{path} does not exist in the volume"), "check the path")
        }
        libc::ENOTDIR | libc::ENAMETOOLONG => {
            ControlError::new(1, format!("/{path}: {e}"), "check the path")
        }
        _ => ControlError::new(1, format!("/{path}: {e}"), "`tercet status` shows the banks"),
    }
}

fn kind_in_words(kind: Kind) -> &'static str {
    match kind {
        Kind::File => "file",
        Kind::Directory => "directory",
        Kind::Symlink => "symbolic link",
        Kind::Fifo => "fifo",
        Kind::Socket => "socket",
        Kind::Char => "character device",
        Kind::Block => "block device",
    }
}

/// Follows `path` from the root, no symbolic links, and lists the keys at its end: at most `limit`.
///
/// # Errors
/// The path does not exist, or cannot be read.
pub async fn of_path(
    fs: &FileSystem,
    volume: &dyn Volume,
    path: &str,
    limit: usize,
) -> Result<Found, ControlError> {
    let keys = KeySpace::new(volume.shards());
    let unreadable = |e: String| {
        ControlError::new(1, format!("the superblock: {e}"), "`tercet status` shows the banks")
    };
    let read = volume.get(vec![keys.superblock()]).await.map_err(|e| unreadable(e.to_string()))?;
    let stored =
        read.into_iter().next().flatten().ok_or_else(|| unreadable("is missing".into()))?;
    let superblock = Superblock::read(&stored.value, volume.id()).map_err(unreadable)?;
    let names = NameHasher::new(superblock.name_key);

    let mut out = Vec::new();
    let mut at = fs.getattr(ROOT).await.map_err(|e| words(&e, ""))?;
    let parts: Vec<&str> = path.split('/').filter(|p| !p.is_empty() && *p != ".").collect();
    if parts.is_empty() {
        out.push(Named { what: "superblock".into(), place: keys.superblock() });
    }
    for (i, part) in parts.iter().enumerate() {
        let dir = at.ino;
        at = fs.lookup(dir, part.as_bytes()).await.map_err(|e| words(&e, path))?;
        // lookup counts a reference of the kernel; this is not the kernel.
        fs.forget(at.ino, 1);
        if i + 1 == parts.len() {
            let place = keys.dirent(dir, names.hash(part.as_bytes()), part.as_bytes());
            out.push(Named { what: format!("dirent of {part}"), place });
        }
    }
    out.push(Named { what: "inode".into(), place: keys.inode(at.ino) });
    let more = add_content(fs, keys, &at, path, limit, &mut out).await?;
    let kind = kind_in_words(at.kind);
    Ok(Found { ino: at.ino, kind, size: at.size, keys: out, more })
}

/// Extended attributes and blocks; true = some were left out.
async fn add_content(
    fs: &FileSystem,
    keys: KeySpace,
    at: &Attr,
    path: &str,
    limit: usize,
    out: &mut Vec<Named>,
) -> Result<bool, ControlError> {
    let list = fs.listxattr(at.ino).await.map_err(|e| words(&e, path))?;
    for name in list.split(|b| *b == 0).filter(|n| !n.is_empty()) {
        let what = format!("xattr {}", String::from_utf8_lossy(name));
        out.push(Named { what, place: keys.xattr(at.ino, name) });
    }
    if at.kind != Kind::File {
        return Ok(false);
    }
    let block_size = u64::from(fs.block_size());
    let mut offset = 0;
    // Holes have no keys: go from data to data.
    while let Ok(data) = fs.lseek(at.ino, offset, libc::SEEK_DATA).await {
        let hole = fs.lseek(at.ino, data, libc::SEEK_HOLE).await.map_err(|e| words(&e, path))?;
        for block in data / block_size..hole.div_ceil(block_size) {
            if out.len() >= limit {
                return Ok(true);
            }
            out.push(Named { what: format!("block {block}"), place: keys.block(at.ino, block) });
        }
        offset = hole;
        if hole >= at.size {
            break;
        }
    }
    Ok(false)
}
