//! What the fuzz targets need of this crate: each function takes any bytes and must neither panic
//! nor allocate more than the bytes allow.

use crate::config::Config;
use crate::control::{Ask, Line};
use crate::dead::{DeadSet, Under};
use crate::key::{KeySpace, Parsed, parse};
use crate::record::{Counter, Dirent, Inode, Orphan, Record};
use crate::superblock::{Superblock, block_size_is_good};
use std::path::Path;
use voter::volume::VolumeId;

fn again<R: Record + PartialEq + std::fmt::Debug>(bytes: &[u8]) -> Option<R> {
    let record = R::from_bytes(bytes).ok()?;
    let written = record.to_bytes();
    assert!(written.len() <= bytes.len(), "the shortest encoding is the one written");
    assert_eq!(R::from_bytes(&written).as_ref(), Ok(&record));
    Some(record)
}

/// A record of the filesystem, behind a byte that chooses which.
pub fn record(data: &[u8]) {
    let Some((which, bytes)) = data.split_first() else { return };
    match which % 5 {
        0 => {
            if let Some(inode) = again::<Inode>(bytes) {
                // What a reply to the kernel is made of.
                let attr = inode.attr(7, 65536);
                let _ = crate::fuse::shown(&attr);
                let _ = inode.span(65536);
            }
        }
        1 => drop(again::<Dirent>(bytes)),
        2 => drop(again::<Orphan>(bytes)),
        3 => drop(again::<Counter>(bytes)),
        _ => {
            if let Some(set) = again::<DeadSet>(bytes) {
                dead(set);
            }
        }
    }
}

fn dead(mut set: DeadSet) {
    let _ = (set.is_empty(), set.has_counted(), set.skip(0), set.get(u64::MAX));
    for at in set.ranges().iter().flat_map(|r| [r.start, r.end]).take(16).collect::<Vec<_>>() {
        let _ = (set.get(at), set.skip(at));
        set.add(at, at.saturating_add(9), Under::Sparse);
        set.remove(at.saturating_add(3), at.saturating_add(4));
    }
    set.uncount();
}

/// A key of the filesystem. What decodes encodes to the same bytes.
pub fn key(data: &[u8]) {
    let keys = KeySpace::new(7);
    let Some(parsed) = parse(data) else { return };
    let (shard, written) = match &parsed {
        Parsed::Superblock => keys.superblock(),
        Parsed::Counter => keys.counter(),
        Parsed::Inode(ino) => keys.inode(*ino),
        Parsed::Dirent { dir, hash, name } => keys.dirent(*dir, *hash, name),
        Parsed::Xattr { ino, name } => keys.xattr(*ino, name),
        Parsed::Block { ino, block } => keys.block(*ino, *block),
        Parsed::Orphan(ino) => keys.orphan(*ino),
        Parsed::Dead(ino) => keys.dead(*ino),
    };
    assert_eq!(written, data);
    assert!(shard < 7);
    if let Parsed::Xattr { ino, .. } = parsed {
        let (_, start, end) = keys.xattrs(ino);
        assert!(start.as_slice() <= data && data < end.as_slice());
    }
}

/// A superblock.
pub fn superblock(data: &[u8]) {
    // The volume that it names, so that the checks behind that one are reached.
    let sb = again::<Superblock>(data);
    let own = VolumeId(sb.as_ref().map_or([0; 16], |sb| sb.volume));
    if let Ok(read) = Superblock::read(data, own) {
        assert!(block_size_is_good(read.block_size));
        assert_eq!(Some(&read), sb.as_ref());
        assert!(Superblock::read(data, VolumeId([0x55; 16])).is_err() || own.0 == [0x55; 16]);
    }
}

/// A line on the control socket: what a mount reads, and what a command reads.
pub fn control(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(ask) = serde_json::from_str::<Ask>(text) {
        let written = serde_json::to_string(&ask).expect("a request can be written");
        let back: Ask = serde_json::from_str(&written).expect("what is written can be read");
        assert_eq!(serde_json::to_string(&back).expect("again"), written);
        assert!(!written.contains('\n'), "one line");
    }
    if let Ok(line) = serde_json::from_str::<Line>(text) {
        let written = serde_json::to_string(&line).expect("a line can be written");
        let _: Line = serde_json::from_str(&written).expect("what is written can be read");
        assert!(!written.contains('\n'), "one line");
    }
}

/// A configuration file.
pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let file = Path::new("/etc/tercet/tercet.toml");
    match Config::parse(text, file) {
        Ok(config) => {
            // `tercet config` prints what could be the file.
            let shown = config.render();
            let back = Config::parse(&shown, file)
                .unwrap_or_else(|e| panic!("what is shown is no configuration: {e}\n{shown}"));
            assert_eq!(back.render(), shown);
        }
        Err(e) => assert!(!e.what.is_empty() && !e.hint.is_empty()),
    }
}
