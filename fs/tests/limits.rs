//! Limits that no test can walk up to: the record is written as if it had been.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use fs::filesystem::{Caller, FileSystem, FormatOptions, FsOptions, Ino};
use fs::key::{KeySpace, ROOT};
use fs::limits::LINKS_MAX;
use fs::record::{Inode, Record};
use std::sync::Arc;
use voter::memory::MemoryVolume;
use voter::volume::{Change, Op, Volume};

const ME: Caller = Caller { uid: 0, gid: 0, pid: 1 };

/// Opens a volume anew with so many links counted for an inode.
async fn with_links(volume: &Arc<dyn Volume>, ino: Ino, nlink: u32) -> Arc<FileSystem> {
    let (shard, key) = KeySpace::new(volume.shards()).inode(ino);
    let found = volume.get(vec![(shard, key.clone())]).await.unwrap().remove(0).unwrap();
    let inode = Inode { nlink, ..Inode::from_bytes(&found.value).unwrap() };
    volume.submit(vec![Op { shard, key, change: Change::Put(inode.to_bytes()) }]).unwrap();
    FileSystem::open(volume.clone(), FsOptions::default()).await.unwrap()
}

#[tokio::test]
async fn too_many_links_are_refused() {
    let volume: Arc<dyn Volume> = Arc::new(MemoryVolume::new(2));
    FileSystem::format(&volume, &FormatOptions::default()).await.unwrap();
    let fs = FileSystem::open(volume.clone(), FsOptions::default()).await.unwrap();
    let f = fs.mknod(ROOT, b"f", libc::S_IFREG | 0o644, 0, 0, ME).await.unwrap().ino;
    let d = fs.mkdir(ROOT, b"d", 0o755, 0, ME).await.unwrap().ino;
    let other = fs.mkdir(ROOT, b"other", 0o755, 0, ME).await.unwrap().ino;
    fs.mkdir(other, b"moving", 0o755, 0, ME).await.unwrap();

    let fs = with_links(&volume, f, LINKS_MAX - 1).await;
    assert_eq!(fs.link(f, ROOT, b"last").await.unwrap().nlink, LINKS_MAX);
    assert_eq!(fs.link(f, ROOT, b"more").await.unwrap_err().errno, libc::EMLINK);

    let fs = with_links(&volume, d, LINKS_MAX).await;
    assert_eq!(fs.mkdir(d, b"sub", 0o755, 0, ME).await.unwrap_err().errno, libc::EMLINK);
    let moved = fs.rename(other, b"moving", d, b"moved", 0, ME).await;
    assert_eq!(moved.unwrap_err().errno, libc::EMLINK);
    fs.mknod(d, b"file", libc::S_IFREG | 0o644, 0, 0, ME).await.unwrap();
}
