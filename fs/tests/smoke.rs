//! The main paths of the filesystem, one after the other, over a volume in memory.

use bytes::Bytes;
use fs::filesystem::{Caller, FileSystem, FormatOptions, FsOptions, Kind, SetAttr};
use fs::key::ROOT;
use std::sync::Arc;
use voter::memory::MemoryVolume;
use voter::volume::Volume;

const ME: Caller = Caller { uid: 1000, gid: 1000, pid: 1 };

async fn fresh(options: FsOptions) -> (Arc<MemoryVolume>, Arc<FileSystem>) {
    let memory = Arc::new(MemoryVolume::new(3));
    let volume: Arc<dyn Volume> = memory.clone();
    FileSystem::format(&volume, &FormatOptions::default()).await.unwrap();
    (memory, FileSystem::open(volume, options).await.unwrap())
}

async fn all(fs: &FileSystem, ino: u64) -> Vec<u8> {
    let size = fs.getattr(ino).await.unwrap().size as u32;
    fs.read(ino, 0, 0, size + 10).await.unwrap().concat()
}

#[tokio::test]
async fn create_write_read_rename_remove() {
    let (memory, fs) = fresh(FsOptions::default()).await;
    let (attr, h) = fs.create(ROOT, b"f", 0o644, 0, libc::O_RDWR, ME).await.unwrap();
    assert_eq!((attr.kind, attr.perm, attr.uid, attr.nlink), (Kind::File, 0o644, 1000, 1));
    let data: Vec<u8> = (0..3_000_000u32).map(|i| (i % 251) as u8).collect();
    fs.write(attr.ino, h, 5, Bytes::from(data.clone()), false, false).await.unwrap();
    let got = all(&fs, attr.ino).await;
    assert_eq!(got.len(), data.len() + 5);
    assert!(got[..5] == [0; 5] && got[5..] == data[..]);
    let d = fs.mkdir(ROOT, b"d", 0o755, 0, ME).await.unwrap();
    fs.rename(ROOT, b"f", d.ino, b"g", 0, ME).await.unwrap();
    assert_eq!(fs.lookup(ROOT, b"f").await.unwrap_err().errno, libc::ENOENT);
    let root = fs.getattr(ROOT).await.unwrap();
    assert_eq!((root.nlink, root.size), (3, 1));
    fs.fsync(attr.ino, false).await.unwrap();

    // Another mount sees the same.
    let volume: Arc<dyn Volume> = Arc::new(memory.crash(0));
    let other = FileSystem::open(volume, FsOptions::default()).await.unwrap();
    let d2 = other.lookup(ROOT, b"d").await.unwrap();
    let g = other.lookup(d2.ino, b"g").await.unwrap();
    assert_eq!((g.ino, g.size), (attr.ino, data.len() as u64 + 5));
    assert_eq!(all(&other, g.ino).await, got);
    let names: Vec<_> = other.readdir(d2.ino, 0, true, 10).await.unwrap();
    assert_eq!(names.len(), 3);
    assert_eq!(names[2].attr.unwrap().ino, attr.ino);

    // Truncate: far beyond what one group deletes, then grow: zeros.
    let set = SetAttr { size: Some(10), ..SetAttr::default() };
    other.setattr(g.ino, set, ME).await.unwrap();
    let set = SetAttr { size: Some(2_000_000), ..SetAttr::default() };
    other.setattr(g.ino, set, ME).await.unwrap();
    let back = all(&other, g.ino).await;
    assert!(back[..10] == got[..10] && back[10..].iter().all(|&b| b == 0));
    other.unlink(d2.ino, b"g").await.unwrap();
    other.rmdir(ROOT, b"d").await.unwrap();
    other.forget(g.ino, 100);
    other.reclaim_all().await.unwrap();
    let root = other.getattr(ROOT).await.unwrap();
    assert_eq!((root.nlink, root.size), (2, 0));
    fs.release(h);
}
