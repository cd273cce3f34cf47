//! How fast is the filesystem itself, over a volume in memory? Not a test of anything: run with
//! `cargo test --release -p tercet-fs --test speed -- --ignored --nocapture`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use bytes::Bytes;
use fs::filesystem::{Caller, FileSystem, FormatOptions, FsOptions, Strip};
use fs::key::ROOT;
use std::sync::Arc;
use std::time::Instant;
use voter::memory::MemoryVolume;
use voter::volume::Volume;

const ME: Caller = Caller { uid: 1, gid: 1, pid: 1 };

fn told(what: &str, n: u64, unit: &str, since: Instant) {
    let s = since.elapsed().as_secs_f64();
    println!("{what:32} {:>12.0} {unit}/s", n as f64 / s);
}

#[tokio::test]
#[ignore = "measures"]
async fn speed() {
    let memory = Arc::new(MemoryVolume::new(3));
    let volume: Arc<dyn Volume> = memory.clone();
    FileSystem::format(&volume, &FormatOptions::default()).await.unwrap();
    let fs = FileSystem::open(volume, FsOptions::default()).await.unwrap();
    let n = 20_000u64;
    let dir = fs.mkdir(ROOT, b"d", 0o755, 0, ME).await.unwrap().ino;
    let names: Vec<String> = (0..n).map(|i| format!("file{i}")).collect();

    let t = Instant::now();
    for name in &names {
        let (_, h) = fs.create(dir, name.as_bytes(), 0o644, 0, 0, ME).await.unwrap();
        fs.release(h);
    }
    told("create and close", n, "files", t);
    fs.sync_all().await.unwrap();

    let t = Instant::now();
    let mut inos = Vec::new();
    for name in &names {
        inos.push(fs.lookup(dir, name.as_bytes()).await.unwrap().ino);
    }
    told("lookup, cached", n, "names", t);

    let t = Instant::now();
    let data = Bytes::from(vec![1; 4096]);
    for &ino in &inos {
        fs.write(ino, 0, 0, data.clone(), Strip::Capability, false).await.unwrap();
    }
    told("write 4 KiB", n, "files", t);
    fs.sync_all().await.unwrap();

    let t = Instant::now();
    for &ino in &inos {
        assert_eq!(fs.getattr(ino).await.unwrap().size, 4096);
    }
    told("getattr", n, "inodes", t);

    let t = Instant::now();
    let (mut cookie, mut seen) = (0, 0);
    loop {
        let page = fs.readdir(dir, cookie, true, 1000).await.unwrap();
        let Some(last) = page.last() else { break };
        cookie = last.cookie;
        seen += page.len() as u64;
    }
    told("readdirplus", seen, "names", t);
    fs.drop_caches();
    let t = Instant::now();
    let mut cookie = 0;
    loop {
        let page = fs.readdir(dir, cookie, true, 1000).await.unwrap();
        let Some(last) = page.last() else { break };
        cookie = last.cookie;
    }
    told("readdirplus, cold", seen, "names", t);

    let big = fs.create(ROOT, b"big", 0o644, 0, 0, ME).await.unwrap().0.ino;
    let data = Bytes::from(vec![1; 1 << 20]);
    let t = Instant::now();
    for i in 0..256u64 {
        fs.write(big, 0, i << 20, data.clone(), Strip::Capability, false).await.unwrap();
    }
    told("write 1 MiB", 256, "MiB", t);
    fs.sync_all().await.unwrap();
    fs.drop_caches();
    let h = fs.open_file(big, 0).await.unwrap();
    let t = Instant::now();
    for i in 0..2048u64 {
        fs.read(big, h, i << 17, 1 << 17, false).await.unwrap();
    }
    told("read 128 KiB in order, cold", 256, "MiB", t);
    println!("{:?}", memory.counts());

    let t = Instant::now();
    for name in &names {
        fs.unlink(dir, name.as_bytes()).await.unwrap();
    }
    told("unlink", n, "files", t);
}
