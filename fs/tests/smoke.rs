//! The main paths of the filesystem, one after the other, over a volume in memory.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use bytes::Bytes;
use fs::acl;
use fs::filesystem::{
    Atime, Caller, FileSystem, FormatOptions, FsOptions, Kind, SetAttr, SetTime, Strip, Timespec,
    XattrMode,
};
use fs::key::ROOT;
use std::sync::Arc;
use voter::memory::MemoryVolume;
use voter::volume::{Volume, VolumeError};

const ME: Caller = Caller { uid: 1000, gid: 1000, pid: 1 };

async fn fresh(options: FsOptions) -> (Arc<MemoryVolume>, Arc<FileSystem>) {
    let memory = Arc::new(MemoryVolume::new(3));
    let volume: Arc<dyn Volume> = memory.clone();
    FileSystem::format(&volume, &FormatOptions::default()).await.unwrap();
    (memory, FileSystem::open(volume, options).await.unwrap())
}

async fn all(fs: &FileSystem, ino: u64) -> Vec<u8> {
    let size = fs.getattr(ino).await.unwrap().size as u32;
    fs.read(ino, 0, 0, size + 10, false).await.unwrap().concat()
}

#[tokio::test]
async fn create_write_read_rename_remove() {
    let (memory, fs) = fresh(FsOptions::default()).await;
    let (attr, h) = fs.create(ROOT, b"f", 0o644, 0, libc::O_RDWR, ME).await.unwrap();
    assert_eq!((attr.kind, attr.perm, attr.uid, attr.nlink), (Kind::File, 0o644, 1000, 1));
    let data: Vec<u8> = (0..3_000_000u32).map(|i| (i % 251) as u8).collect();
    fs.write(attr.ino, h, 5, Bytes::from(data.clone()), Strip::Capability, false).await.unwrap();
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

fn list(entries: &[(u16, u16)]) -> Vec<u8> {
    let mut out = vec![2, 0, 0, 0];
    for &(tag, perm) in entries {
        out.extend_from_slice(&tag.to_le_bytes());
        out.extend_from_slice(&perm.to_le_bytes());
        out.extend_from_slice(&if tag == 2 { 1234u32 } else { u32::MAX }.to_le_bytes());
    }
    out
}

#[tokio::test]
async fn access_lists_and_modes_follow_each_other() {
    let (memory, fs) = fresh(FsOptions::default()).await;
    let errno = |r: fs::filesystem::Result<Bytes>| r.unwrap_err().errno;
    let d = fs.mkdir(ROOT, b"d", 0o777, 0o022, ME).await.unwrap();
    assert_eq!(d.perm, 0o755);
    assert_eq!(errno(fs.getxattr(d.ino, acl::ACCESS).await), libc::ENODATA);
    let full = list(&[(1, 7), (2, 6), (4, 5), (0x10, 7), (0x20, 0)]);
    fs.setxattr(d.ino, acl::DEFAULT, &full, XattrMode::Any).await.unwrap();
    assert_eq!(fs.getattr(d.ino).await.unwrap().perm, 0o755, "a default list is for others");

    // The umask does not count under a default list; the mode asked for does.
    let f = fs.mknod(d.ino, b"f", libc::S_IFREG | 0o666, 0, 0o077, ME).await.unwrap();
    assert_eq!(f.perm, 0o660);
    let got = fs.getxattr(f.ino, acl::ACCESS).await.unwrap();
    assert_eq!(got, list(&[(1, 6), (2, 6), (4, 5), (0x10, 6), (0x20, 0)]));
    let sub = fs.mkdir(d.ino, b"sub", 0o777, 0o077, ME).await.unwrap();
    assert_eq!(sub.perm, 0o770);
    assert_eq!(fs.getxattr(sub.ino, acl::DEFAULT).await.unwrap(), full);

    let set = SetAttr { perm: Some(0o604), ..SetAttr::default() };
    fs.setattr(f.ino, set, ME).await.unwrap();
    let got = fs.getxattr(f.ino, acl::ACCESS).await.unwrap();
    assert_eq!(got, list(&[(1, 6), (2, 6), (4, 5), (0x10, 0), (0x20, 4)]));

    // A list that says no more than the bits becomes the bits.
    let small = list(&[(1, 7), (4, 5), (0x20, 1)]);
    fs.setxattr(f.ino, acl::ACCESS, &small, XattrMode::Any).await.unwrap();
    assert_eq!(fs.getattr(f.ino).await.unwrap().perm, 0o751);
    assert_eq!(errno(fs.getxattr(f.ino, acl::ACCESS).await), libc::ENODATA);
    let refused = fs.setxattr(f.ino, acl::DEFAULT, &full, XattrMode::Any).await;
    assert_eq!(refused.unwrap_err().errno, libc::EACCES);
    let refused = fs.setxattr(f.ino, acl::ACCESS, b"junk", XattrMode::Any).await;
    assert_eq!(refused.unwrap_err().errno, libc::EINVAL);
    let report = fs::consistency::examine(&*memory, true, |_, _| ()).await.unwrap();
    assert!(report.is_clean(), "{:?}", report.problems);
}

#[tokio::test]
async fn xattr_limits() {
    let (_, fs) = fresh(FsOptions::default()).await;
    let f = fs.mknod(ROOT, b"f", libc::S_IFREG | 0o644, 0, 0, ME).await.unwrap();
    let set = |name: Vec<u8>, len: usize| {
        let fs = fs.clone();
        async move {
            fs.setxattr(f.ino, &name, &vec![1; len], XattrMode::Any).await.map_err(|e| e.errno)
        }
    };
    assert_eq!(set([b"user.", &[b'x'; 251][..]].concat(), 1).await, Err(libc::ERANGE));
    assert_eq!(set(b"user.big".to_vec(), (64 << 10) + 1).await, Err(libc::E2BIG));
    assert_eq!(set(b"user.big".to_vec(), 64 << 10).await, Ok(()));
    assert_eq!(set(b"system.other".to_vec(), 1).await, Err(libc::EOPNOTSUPP));
    assert_eq!(set(b"user.".to_vec(), 1).await, Err(libc::EINVAL));
    let mut full = Ok(());
    for i in 0..400 {
        full = set(format!("user.{i:0200}").into_bytes(), 1).await;
        if full.is_err() {
            break;
        }
    }
    assert_eq!(full, Err(libc::ENOSPC));
    assert!(fs.listxattr(f.ino).await.unwrap().len() <= 64 << 10);
}

/// The kernel hands over a page long after the write, and overlayfs sets the owner of its copy after
/// the mode: neither takes away what was set in between.
#[tokio::test]
async fn privileges_go_by_what_the_caller_did() {
    let (_memory, fs) = fresh(FsOptions::default()).await;
    let a = fs.mknod(ROOT, b"a", libc::S_IFREG | 0o755, 0, 0, ME).await.unwrap();
    let capability = b"security.capability";
    let value = b"capable";
    fs.setxattr(a.ino, capability, value, XattrMode::Any).await.unwrap();
    let chmod = SetAttr { perm: Some(0o6755), ..SetAttr::default() };
    fs.setattr(a.ino, chmod, ME).await.unwrap();
    let look = async || {
        let perm = fs.getattr(a.ino).await.unwrap().perm;
        (perm, fs.getxattr(a.ino, capability).await.is_ok())
    };
    fs.write(a.ino, 0, 0, Bytes::from_static(b"late"), Strip::Nothing, false).await.unwrap();
    assert_eq!(look().await, (0o6755, true), "a page of the page cache");
    let mut owner = SetAttr { uid: Some(7), size: Some(4), ..SetAttr::default() };
    fs.setattr(a.ino, owner, ME).await.unwrap();
    assert_eq!(look().await, (0o6755, true), "the copy that overlayfs makes");
    fs.write(a.ino, 0, 0, Bytes::from_static(b"now"), Strip::Capability, false).await.unwrap();
    assert_eq!(look().await, (0o6755, false), "a write past the page cache");
    owner.strip = Strip::Bits(0o6000);
    fs.setattr(a.ino, owner, ME).await.unwrap();
    assert_eq!(look().await, (0o755, false), "chown(2)");
}

#[tokio::test]
async fn an_operation_that_fails_changes_nothing() {
    let (memory, fs) =
        fresh(FsOptions { caches: fs::limits::CacheLimits::tiny(), ..FsOptions::default() }).await;
    let a = fs.mknod(ROOT, b"a", libc::S_IFREG | 0o644, 0, 0, ME).await.unwrap();
    fs.write(a.ino, 0, 0, Bytes::from_static(b"hello"), Strip::Capability, false).await.unwrap();
    let before = fs.getattr(ROOT).await.unwrap();

    memory.fail_submits(Some(VolumeError::Unavailable("test".into())));
    assert_eq!(fs.unlink(ROOT, b"a").await.unwrap_err().errno, libc::EIO);
    assert_eq!(fs.mkdir(ROOT, b"d", 0o755, 0, ME).await.unwrap_err().errno, libc::EIO);
    let w = fs.write(a.ino, 0, 0, Bytes::from_static(b"HELLO"), Strip::Capability, false).await;
    assert_eq!(w.unwrap_err().errno, libc::EIO);
    memory.fail_submits(None);
    assert_eq!(fs.getattr(ROOT).await.unwrap(), before);
    assert_eq!(all(&fs, a.ino).await, b"hello");
    assert_eq!(fs.lookup(ROOT, b"d").await.unwrap_err().errno, libc::ENOENT);

    // Reads that fail are errors while they fail, and no longer.
    fs.drop_caches();
    memory.fail_reads(Some(VolumeError::Unavailable("test".into())));
    assert_eq!(fs.lookup(ROOT, b"a").await.unwrap_err().errno, libc::EIO);
    memory.fail_reads(None);
    assert_eq!(all(&fs, a.ino).await, b"hello");

    memory.fail_syncs(Some(VolumeError::Unavailable("test".into())));
    assert_eq!(fs.fsync(a.ino, true).await.unwrap_err().errno, libc::EIO);
    let w = fs.write(a.ino, 0, 0, Bytes::from_static(b"x"), Strip::Capability, true).await;
    assert_eq!(w.unwrap_err().errno, libc::EIO, "O_SYNC waits");
    memory.fail_syncs(None);
    fs.fsync(a.ino, true).await.unwrap();

    // A fenced mount serves nothing, not even from its caches.
    memory.fence("another mount");
    assert_eq!(fs.getattr(ROOT).await.unwrap_err().errno, libc::EIO);
    assert_eq!(fs.flush(a.ino, 0).await.unwrap_err().errno, libc::EIO);
}

#[tokio::test]
async fn only_what_is_a_filesystem_is_opened() {
    let memory = Arc::new(MemoryVolume::new(1));
    let volume: Arc<dyn Volume> = memory;
    let e = FileSystem::open(volume.clone(), FsOptions::default()).await.err().unwrap();
    assert!(e.errno == libc::ENODEV && e.why.contains("tercet init"), "{e}");
    let bad = FormatOptions { block_size: 5000, ..FormatOptions::default() };
    assert_eq!(FileSystem::format(&volume, &bad).await.unwrap_err().errno, libc::EINVAL);
    FileSystem::format(&volume, &FormatOptions::default()).await.unwrap();
    let again = FileSystem::format(&volume, &FormatOptions::default()).await;
    assert_eq!(again.unwrap_err().errno, libc::EEXIST);
}

#[tokio::test]
async fn large_files_go_in_the_background_and_survive_a_crash_in_between() {
    let (memory, fs) = fresh(FsOptions { background: false, ..FsOptions::default() }).await;
    let (f, h) = fs.create(ROOT, b"f", 0o644, 0, libc::O_RDWR, ME).await.unwrap();
    // Sparse: 300 blocks with data, one in three.
    for i in 0..300u64 {
        let data = Bytes::from(vec![7; 100]);
        fs.write(f.ino, h, i * 3 * 16384 + 50, data, Strip::Capability, false).await.unwrap();
    }
    assert!(fs.getattr(f.ino).await.unwrap().blocks < 901 * 32);
    let set = |size| SetAttr { size: Some(size), ..SetAttr::default() };
    fs.setattr(f.ino, set(16384 * 30), ME).await.unwrap();
    fs.setattr(f.ino, set(16384 * 900), ME).await.unwrap();
    // Into the dead range, before and after a step of reclaim.
    fs.write(f.ino, h, 16384 * 60 + 1, Bytes::from_static(b"new"), Strip::Capability, false)
        .await
        .unwrap();
    fs.fsync(f.ino, false).await.unwrap();
    let volume: Arc<dyn Volume> = Arc::new(memory.crash(0));
    let fs =
        FileSystem::open(volume.clone(), FsOptions { background: false, ..FsOptions::default() })
            .await
            .unwrap();
    let at = |offset: u64| {
        let fs = fs.clone();
        async move { fs.read(f.ino, 0, offset, 4, false).await.unwrap().concat() }
    };
    for _ in 0..2 {
        assert_eq!(at(16384 * 60).await, b"\0new");
        assert_eq!(at(16384 * 63 + 50).await, [0; 4]);
        assert_eq!(at(16384 * 27 + 50).await, [7; 4]);
        assert_eq!(fs.lseek(f.ino, 16384 * 30, libc::SEEK_DATA).await.unwrap(), 16384 * 60);
        fs.reclaim_all().await.unwrap();
    }
    let report = fs::consistency::examine(&*volume, true, |_, _| ()).await.unwrap();
    assert!(report.is_clean(), "{:?}", report.problems);
    assert_eq!((report.blocks, report.dead_blocks), (11, 0));

    // Unlinked while open: lives on, goes at the last close.
    let h = fs.open_file(f.ino, libc::O_RDWR).await.unwrap();
    fs.unlink(ROOT, b"f").await.unwrap();
    assert_eq!(at(16384 * 27 + 50).await, [7; 4]);
    fs.release(h);
    fs.reclaim_all().await.unwrap();
    let report = fs::consistency::examine(&*volume, true, |_, _| ()).await.unwrap();
    assert_eq!((report.inodes, report.blocks, report.orphans), (1, 0, 0));
    assert!(report.is_clean(), "{:?}", report.problems);
}

#[tokio::test]
async fn a_sequential_reader_is_read_ahead() {
    let (memory, fs) = fresh(FsOptions::default()).await;
    let (f, h) = fs.create(ROOT, b"f", 0o644, 0, libc::O_RDWR, ME).await.unwrap();
    let mib: Vec<u8> = (0..1u32 << 20).map(|i| (i >> 9) as u8 | 1).collect();
    for i in 0..16u64 {
        fs.write(f.ino, h, i << 20, Bytes::from(mib.clone()), Strip::Capability, false)
            .await
            .unwrap();
    }
    fs.sync_all().await.unwrap();
    fs.drop_caches();
    let before = memory.counts();
    let step = 128 << 10;
    for i in 0..128u64 {
        let got = fs.read(f.ino, h, i * step, step as u32, false).await.unwrap().concat();
        let at = (i * step) as usize % mib.len();
        assert!(got == mib[at..at + got.len()] && got.len() == step as usize);
    }
    let after = memory.counts();
    assert_eq!(after.keys - before.keys, 1024 + 1, "every block once, and the inode");
    assert!(after.gets - before.gets < 30, "{} requests", after.gets - before.gets);
}

/// Whoever keeps what it gets, as the kernel's page cache does, leaves nothing of a stream here. Small reads
/// and others find it again.
#[tokio::test]
async fn what_passes_in_a_stream_keeps_no_place_in_the_cache() {
    let (memory, fs) = fresh(FsOptions::default()).await;
    let (f, h) = fs.create(ROOT, b"f", 0o644, 0, libc::O_RDWR, ME).await.unwrap();
    // Its last block ends with the file.
    let len = (1 << 20) + 5000;
    let file: Vec<u8> = (0..len as u32).map(|i| (i >> 9) as u8 | 1).collect();
    let fill = async || {
        fs.write(f.ino, h, 0, Bytes::from(file.clone()), Strip::Capability, false).await.unwrap();
    };
    fill().await;
    fs.sync_all().await.unwrap();
    let kib = 1 << 10;
    // Whether the reader keeps it, bytes of a read, where it begins, keys that a second pass asks for.
    for (keeps, step, begin, again) in [
        (true, 128 * kib, 0, 65),
        (true, 1024 * kib, 0, 65),
        (true, 64 * kib, 0, 0),
        // Seven whole blocks of each nine that it touches.
        (true, 128 * kib, 4 * kib, 7 * 8),
        (false, 1024 * kib, 0, 0),
    ] {
        fs.drop_caches();
        let pass = async || {
            let before = memory.counts().keys;
            for at in (begin..len).step_by(step) {
                let got = fs.read(f.ino, h, at as u64, step as u32, keeps).await;
                let here = &file[at..file.len().min(at + step)];
                assert!(got.unwrap().concat() == here, "keeps {keeps}, {step} bytes from {at}");
            }
            memory.counts().keys - before
        };
        pass().await;
        assert_eq!(pass().await, again, "keeps {keeps}, {step} bytes from {begin}");
    }
    // What is not yet on the banks is not lost with its place.
    fill().await;
    for _ in 0..2 {
        assert!(fs.read(f.ino, h, 0, len as u32, true).await.unwrap().concat() == file);
    }
}

#[tokio::test]
async fn a_copy_within_the_mount_fetches_every_block_once() {
    let (memory, fs) = fresh(FsOptions::default()).await;
    let (from, h) = fs.create(ROOT, b"from", 0o644, 0, libc::O_RDWR, ME).await.unwrap();
    let mib: Vec<u8> = (0..1u32 << 20).map(|i| (i >> 9) as u8 | 1).collect();
    for i in 0..20u64 {
        let data = Bytes::from(mib.clone());
        fs.write(from.ino, h, i << 20, data, Strip::Capability, false).await.unwrap();
    }
    let (to, _) = fs.create(ROOT, b"to", 0o644, 0, libc::O_RDWR, ME).await.unwrap();
    fs.sync_all().await.unwrap();
    fs.drop_caches();
    let before = memory.counts();
    let len = 20 << 20;
    let mut done = 0;
    while done < len {
        let n = fs.copy_file_range(from.ino, done, to.ino, done, len - done).await.unwrap();
        assert!(n > 0, "it ends at {done}");
        done += n;
    }
    let after = memory.counts();
    let blocks = len / 16384;
    assert_eq!(after.keys - before.keys, blocks + 2, "every block once, and both inodes");
    fs.sync_all().await.unwrap();
    fs.drop_caches();
    assert!(all(&fs, to.ino).await == all(&fs, from.ino).await);
}

#[tokio::test]
async fn a_large_directory_pages() {
    let caches = fs::limits::CacheLimits { dirents: 500, ..Default::default() };
    let (memory, fs) = fresh(FsOptions { caches, ..FsOptions::default() }).await;
    let n = 3000;
    for i in 0..n {
        fs.mknod(ROOT, format!("f{i}").as_bytes(), libc::S_IFREG, 0, 0, ME).await.unwrap();
    }
    fs.drop_caches();
    let before = memory.counts();
    let (mut cookie, mut names) = (0, std::collections::BTreeSet::new());
    loop {
        let page = fs.readdir(ROOT, cookie, true, 300).await.unwrap();
        let Some(last) = page.last() else { break };
        cookie = last.cookie;
        names.extend(page.into_iter().map(|e| e.name));
    }
    let after = memory.counts();
    assert_eq!(names.len(), n + 2);
    assert!(after.scans - before.scans <= 12, "{} scans", after.scans - before.scans);
    assert_eq!(fs.lookup(ROOT, b"f2999").await.unwrap().nlink, 1);
    assert_eq!(fs.lookup(ROOT, b"none").await.unwrap_err().errno, libc::ENOENT);
    let counts = memory.counts();
    fs.mknod(ROOT, b"none", libc::S_IFREG, 0, 0, ME).await.unwrap();
    assert_eq!(memory.counts().gets, counts.gets, "what was looked up need not be asked again");
}

#[tokio::test]
async fn names_only_changes_wait_for_no_read() {
    let (memory, fs) = fresh(FsOptions::default()).await;
    fs.drop_caches();
    let d = fs.mkdir(ROOT, b"d", 0o755, 0, ME).await.unwrap();
    let before = memory.counts();
    for i in 0..100 {
        let name = format!("f{i}");
        assert!(fs.lookup(d.ino, name.as_bytes()).await.is_err());
        let (f, h) = fs.create(d.ino, name.as_bytes(), 0o644, 0, 0, ME).await.unwrap();
        fs.write(f.ino, h, 0, Bytes::from_static(b"data"), Strip::Capability, false).await.unwrap();
        fs.release(h);
        fs.rename(d.ino, name.as_bytes(), ROOT, name.as_bytes(), 0, ME).await.unwrap();
        assert!(fs.getxattr(f.ino, b"security.capability").await.is_err());
        fs.unlink(ROOT, name.as_bytes()).await.unwrap();
    }
    let after = memory.counts();
    assert_eq!((after.gets, after.scans), (before.gets, before.scans));
    assert_eq!(after.submits - before.submits, 400, "one group each");
}

#[tokio::test]
async fn reading_marks_a_file_as_the_mount_is_told() {
    let (_memory, fs) = fresh(FsOptions::default()).await;
    let (f, _) = fs.create(ROOT, b"f", 0o644, 0, libc::O_RDWR, ME).await.unwrap();
    fs.write(f.ino, 0, 0, Bytes::from_static(b"data"), Strip::Capability, false).await.unwrap();
    let long_ago = Timespec { sec: 1_000_000, nsec: 5 };
    let old = SetAttr { atime: Some(SetTime::At(long_ago)), ..SetAttr::default() };
    let read = async |atime: Atime| {
        fs.set_atime(atime);
        let before = fs.getattr(f.ino).await.unwrap().atime;
        fs.read(f.ino, 0, 0, 4, false).await.unwrap();
        fs.getattr(f.ino).await.unwrap().atime > before
    };
    fs.setattr(f.ino, old, ME).await.unwrap();
    assert!(!read(Atime::Never).await, "noatime");
    assert!(read(Atime::Relative).await, "relatime: it is older than mtime");
    assert!(!read(Atime::Relative).await, "relatime: it is not");
    assert!(read(Atime::Strict).await && read(Atime::Strict).await, "strictatime");
}
