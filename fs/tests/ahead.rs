//! Reading ahead of walks and lookups: how often the volume is asked, that changes on the way win,
//! and that what cannot be read besides disturbs nobody.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use fs::filesystem::{CacheLimits, Caller, FileSystem, FormatOptions, FsOptions, Ino, Kind};
use fs::key::{self, Parsed, ROOT};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use voter::memory::MemoryVolume;
use voter::volume::{
    Key, Op, Page, Result, Stored, SyncReceipt, Version, Volume, VolumeError, VolumeId, VolumeSpace,
};

const ME: Caller = Caller { uid: 1, gid: 1, pid: 1 };

/// Directories `t/dN` of files `fN`, below each of every tenth one more of its own, in a volume of so many
/// shards; on the banks only.
async fn tree(shards: u16, dirs: u32, files: u32) -> MemoryVolume {
    let volume: Arc<MemoryVolume> = Arc::new(MemoryVolume::new(shards));
    let v: Arc<dyn Volume> = volume.clone();
    FileSystem::format(&v, &FormatOptions::default()).await.unwrap();
    let fs = FileSystem::open(v, FsOptions::default()).await.unwrap();
    let top = fs.mkdir(ROOT, b"t", 0o755, 0, ME).await.unwrap().ino;
    for d in 0..dirs {
        let dir = fs.mkdir(top, format!("d{d}").as_bytes(), 0o755, 0, ME).await.unwrap().ino;
        fill(&fs, dir, files).await;
        if d % 10 == 0 {
            let deep = fs.mkdir(dir, b"deep", 0o755, 0, ME).await.unwrap().ino;
            fill(&fs, deep, files).await;
        }
    }
    fs.sync_all().await.unwrap();
    volume.crash(0)
}

async fn fill(fs: &FileSystem, dir: Ino, files: u32) {
    for f in 0..files {
        let name = format!("f{f}");
        fs.mknod(dir, name.as_bytes(), libc::S_IFREG | 0o644, 0, 0, ME).await.unwrap();
    }
}

/// All entries of a directory, as a walker reads them.
async fn list(fs: &FileSystem, dir: Ino) -> Vec<(Vec<u8>, Ino, Kind)> {
    let (mut out, mut cookie) = (Vec::new(), 0);
    loop {
        let page = fs.readdir(dir, cookie, true, 50).await.unwrap();
        let Some(last) = page.last() else { return out };
        cookie = last.cookie;
        for e in page.into_iter().filter(|e| e.name != b"." && e.name != b"..") {
            assert!(e.attr.is_some());
            fs.forget(e.ino, 1);
            out.push((e.name, e.ino, e.kind));
        }
    }
}

/// Paths below a directory, in the order in which `find` comes to them.
fn walk<'a>(
    fs: &'a FileSystem,
    dir: Ino,
    path: String,
    out: &'a mut Vec<String>,
) -> BoxFuture<'a, ()> {
    async move {
        for (name, ino, kind) in list(fs, dir).await {
            let path = format!("{path}/{}", String::from_utf8(name).unwrap());
            out.push(path.clone());
            if kind == Kind::Directory {
                walk(fs, ino, path, out).await;
            }
        }
    }
    .boxed()
}

#[tokio::test]
async fn a_walk_through_a_tree_asks_a_few_times() {
    for shards in [1, 3] {
        let volume = Arc::new(tree(shards, 200, 10).await);
        let fs = FileSystem::open(volume.clone(), FsOptions::default()).await.unwrap();
        // As from banks: what is read ahead comes while others wait.
        volume.delay_reads(Duration::from_micros(200));
        let before = volume.counts();
        let mut found = Vec::new();
        walk(&fs, ROOT, String::new(), &mut found).await;
        let after = volume.counts();
        let asked = after.gets + after.scans - before.gets - before.scans;
        let distinct: BTreeSet<_> = found.iter().collect();
        assert_eq!((found.len(), distinct.len()), (1 + 200 + 20 + 220 * 10, found.len()));
        // It would be twice for each of 222 directories, and for their inodes.
        assert!(asked < 300, "{asked} requests with {shards} shards");
        assert!(after.keys - before.keys < 3 * 2421, "{} keys", after.keys - before.keys);
    }
}

#[tokio::test]
async fn many_lookups_in_a_directory_ask_a_few_times() {
    let volume = Arc::new(tree(1, 1, 1000).await);
    let fs = FileSystem::open(volume.clone(), FsOptions::default()).await.unwrap();
    let top = fs.lookup(ROOT, b"t").await.unwrap().ino;
    let dir = fs.lookup(top, b"d0").await.unwrap().ino;
    let before = volume.counts();
    for f in 0..1000 {
        fs.lookup(dir, format!("f{f}").as_bytes()).await.unwrap();
    }
    let asked = volume.counts().gets + volume.counts().scans - before.gets - before.scans;
    assert!(asked < 60, "{asked}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn walks_beside_changes_show_what_is_there() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    for round in 0..6 {
        let volume = Arc::new(tree(2, 30, 8).await);
        let small = CacheLimits { inodes: 300, dirents: 400, ..CacheLimits::default() };
        let caches = if round % 2 == 0 { CacheLimits::default() } else { small };
        let options = FsOptions { caches, ..FsOptions::default() };
        let fs = FileSystem::open(volume.clone(), options).await.unwrap();
        volume.delay_reads(Duration::from_micros(300));
        let top = fs.lookup(ROOT, b"t").await.unwrap().ino;
        let mut tasks = Vec::new();
        for k in 0..3u64 {
            let fs = fs.clone();
            tasks.push(tokio::spawn(async move {
                let mut dice = StdRng::seed_from_u64(seed ^ (round * 10 + k));
                let mut truth: BTreeMap<u64, BTreeSet<String>> = BTreeMap::new();
                for step in 0..150 {
                    // Directories of this task only, so that it knows what is there.
                    let d = dice.random_range(0..10) * 3 + k;
                    let dir = fs.lookup(top, format!("d{d}").as_bytes()).await.unwrap().ino;
                    let names = truth.entry(d).or_insert_with(|| {
                        let deep = (d % 10 == 0).then(|| "deep".to_owned());
                        (0..8).map(|f| format!("f{f}")).chain(deep).collect()
                    });
                    let name = format!("f{}", dice.random_range(0..12));
                    let bytes = name.as_bytes();
                    if names.remove(&name) {
                        fs.unlink(dir, bytes).await.unwrap();
                    } else {
                        fs.mknod(dir, bytes, libc::S_IFREG | 0o644, 0, 0, ME).await.unwrap();
                        names.insert(name);
                    }
                    if step % 5 == 0 {
                        fs.drop_caches();
                        list(&fs, top).await;
                    }
                    let mut got = list(&fs, dir).await;
                    got.sort_by(|a, b| a.0.cmp(&b.0));
                    let got: Vec<_> =
                        got.iter().map(|(n, ..)| String::from_utf8_lossy(n)).collect();
                    let want: Vec<&str> = names.iter().map(String::as_str).collect();
                    assert_eq!(got, want, "seed {seed}, round {round}, task {k}, step {step}");
                }
            }));
        }
        for t in tasks {
            t.await.unwrap();
        }
    }
}

/// How long a read takes that finds nothing; much longer than anybody may wait for others' files.
const SLOW: Duration = Duration::from_secs(4);

/// A volume of which some keys cannot be read: at once, or only after a long time.
struct Bad {
    inner: MemoryVolume,
    bad: Box<dyn Fn(&Parsed) -> bool + Send + Sync>,
    slow: bool,
}

impl Bad {
    async fn refuse(&self) -> VolumeError {
        if self.slow {
            tokio::time::sleep(SLOW).await;
        }
        VolumeError::Damaged("two copies are lost".into())
    }

    fn is_bad(&self, key: &[u8]) -> bool {
        key::parse(key).is_some_and(|k| (self.bad)(&k))
    }
}

impl Volume for Bad {
    fn id(&self) -> VolumeId {
        self.inner.id()
    }
    fn shards(&self) -> u16 {
        self.inner.shards()
    }
    fn epoch(&self) -> u64 {
        self.inner.epoch()
    }
    fn submit(&self, ops: Vec<Op>) -> Result<Version> {
        self.inner.submit(ops)
    }
    fn pending(&self, key: &[u8]) -> Option<Option<Stored>> {
        self.inner.pending(key)
    }
    fn room(&self, bytes: usize) -> BoxFuture<'_, Result<()>> {
        self.inner.room(bytes)
    }
    fn has_room(&self, bytes: usize) -> bool {
        self.inner.has_room(bytes)
    }
    fn get(&self, keys: Vec<(u16, Key)>) -> BoxFuture<'_, Result<Vec<Option<Stored>>>> {
        async move {
            if keys.iter().any(|(_, k)| self.is_bad(k)) {
                return Err(self.refuse().await);
            }
            self.inner.get(keys).await
        }
        .boxed()
    }
    fn scan(&self, shard: u16, start: Key, end: Key, limit: usize) -> BoxFuture<'_, Result<Page>> {
        async move {
            let page = self.inner.scan(shard, start, end, limit).await?;
            if page.records.iter().any(|(k, _)| self.is_bad(k)) {
                return Err(self.refuse().await);
            }
            Ok(page)
        }
        .boxed()
    }
    fn sync(&self) -> BoxFuture<'_, Result<SyncReceipt>> {
        self.inner.sync()
    }
    fn space(&self) -> BoxFuture<'_, Result<VolumeSpace>> {
        self.inner.space()
    }
    fn alive(&self) -> Result<()> {
        self.inner.alive()
    }
    fn deadline(&self) -> Duration {
        self.inner.deadline()
    }
}

#[tokio::test]
async fn what_cannot_be_read_besides_disturbs_nobody() {
    for (slow, lost_name) in [(false, false), (false, true), (true, false), (true, true)] {
        let volume = tree(1, 40, 10).await;
        let fs = FileSystem::open(Arc::new(volume.crash(0)), FsOptions::default()).await.unwrap();
        let top = fs.lookup(ROOT, b"t").await.unwrap().ino;
        let d7 = fs.lookup(top, b"d7").await.unwrap().ino;
        let f3 = fs.lookup(d7, b"f3").await.unwrap().ino;
        drop(fs);
        let bad = move |k: &Parsed| match k {
            Parsed::Inode(ino) => *ino == f3 && !lost_name,
            Parsed::Dirent { dir, name, .. } => *dir == d7 && name == b"f3" && lost_name,
            _ => false,
        };
        let volume = Arc::new(Bad { inner: volume, bad: Box::new(bad), slow });
        let fs = FileSystem::open(volume, FsOptions::default()).await.unwrap();
        let began = std::time::Instant::now();
        let top = fs.lookup(ROOT, b"t").await.unwrap().ino;
        if !lost_name {
            // Nobody has listed the directory: its inodes are read one by one.
            for f in (0..10).filter(|f| *f != 3) {
                fs.lookup(d7, format!("f{f}").as_bytes()).await.unwrap();
            }
        }
        list(&fs, top).await;
        for d in (0..40).filter(|d| *d != 7) {
            let dir = fs.lookup(top, format!("d{d}").as_bytes()).await.unwrap().ino;
            assert_eq!(list(&fs, dir).await.len(), if d % 10 == 0 { 11 } else { 10 });
        }
        let took = began.elapsed();
        assert!(took < SLOW, "slow {slow}, name {lost_name}: {took:?}");
        if !slow {
            let found = fs.readdir(d7, 0, true, 100).await;
            assert_eq!(found.unwrap_err().errno, libc::EIO, "what is lost is not left out");
        }
    }
}
