//! Many tasks at once, reads that take time, tiny caches: loads are overtaken by changes all the
//! time. Each task knows what its own files hold; all fight over a few shared names.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use bytes::Bytes;
use fs::filesystem::{CacheLimits, Caller, FileSystem, FormatOptions, FsOptions, Ino, Strip};
use fs::key::ROOT;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use std::sync::Arc;
use std::time::Duration;
use voter::memory::MemoryVolume;
use voter::volume::Volume;

const ME: Caller = Caller { uid: 1, gid: 1, pid: 1 };

/// Errors that a race may bring, and no others.
fn fine<T>(result: fs::filesystem::Result<T>) -> Option<T> {
    match result {
        Ok(t) => Some(t),
        Err(e) => {
            let races = [
                libc::ENOENT,
                libc::EEXIST,
                libc::ENOTEMPTY,
                libc::EISDIR,
                libc::ENOTDIR,
                libc::ESTALE,
                libc::EINVAL,
            ];
            assert!(races.contains(&e.errno), "{e}");
            None
        }
    }
}

async fn task(fs: Arc<FileSystem>, id: u64, shared: Ino, seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed ^ id);
    let own = fs.mkdir(ROOT, format!("own{id}").as_bytes(), 0o755, 0, ME).await.unwrap().ino;
    let (file, handle) = fs.create(own, b"f", 0o644, 0, libc::O_RDWR, ME).await.unwrap();
    let mut content = vec![0u8; 200_000];
    fs.write(file.ino, handle, 0, Bytes::from(content.clone()), Strip::Capability, false)
        .await
        .unwrap();
    for round in 0..60u8 {
        let at = rng.random_range(0..190_000usize);
        let len = rng.random_range(1..10_000usize);
        content[at..at + len].fill(round);
        let data = Bytes::from(vec![round; len]);
        fs.write(file.ino, handle, at as u64, data, Strip::Capability, false).await.unwrap();
        let at = rng.random_range(0..190_000usize);
        let got = fs.read(file.ino, handle, at as u64, 10_000, false).await.unwrap().concat();
        assert!(got == content[at..at + 10_000], "task {id}, round {round}");

        let name = [b'a' + rng.random_range(0..4u8)];
        let other = [b'a' + rng.random_range(0..4u8)];
        match rng.random_range(0..8u8) {
            0 => drop(fine(fs.mkdir(shared, &name, 0o755, 0, ME).await)),
            1 => drop(fine(fs.mknod(shared, &name, libc::S_IFREG | 0o644, 0, 0, ME).await)),
            2 => drop(fine(fs.unlink(shared, &name).await)),
            3 => drop(fine(fs.rmdir(shared, &name).await)),
            4 => drop(fine(fs.rename(shared, &name, shared, &other, 0, ME).await)),
            5 => drop(fine(fs.rename(own, b"f", shared, &name, libc::RENAME_NOREPLACE, ME).await)),
            6 => {
                if let Some(attr) = fine(fs.lookup(shared, &name).await) {
                    // Not into another task's own file, which may have been renamed to here.
                    if attr.size < 200_000 {
                        let x = Bytes::from_static(b"x");
                        fine(fs.write(attr.ino, 0, 5, x, Strip::Capability, false).await);
                    }
                    fs.forget(attr.ino, 1);
                }
            }
            _ => {
                let found = fine(fs.readdir(shared, 0, true, 100).await).unwrap_or_default();
                for e in found.iter().filter(|e| e.attr.is_some()) {
                    fs.forget(e.ino, 1);
                }
            }
        }
    }
    fs.release(handle);
}

fn run(seed: u64, caches: CacheLimits) {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let memory = Arc::new(MemoryVolume::new(3));
        let volume: Arc<dyn Volume> = memory.clone();
        let format = FormatOptions { block_size: 4096, ..FormatOptions::default() };
        FileSystem::format(&volume, &format).await.unwrap();
        let options = FsOptions { caches, ..FsOptions::default() };
        let fs = FileSystem::open(volume, options.clone()).await.unwrap();
        let shared = fs.mkdir(ROOT, b"shared", 0o755, 0, ME).await.unwrap().ino;
        memory.delay_reads(Duration::from_micros(50));
        let tasks: Vec<_> =
            (0..8).map(|id| tokio::spawn(task(fs.clone(), id, shared, seed))).collect();
        for t in tasks {
            t.await.unwrap();
        }
        memory.delay_reads(Duration::ZERO);
        // After a restart nobody holds anything: all orphans go.
        fs.sync_all().await.unwrap();
        drop(fs);
        let memory = Arc::new(memory.crash(0));
        let fs = FileSystem::open(memory.clone(), FsOptions { background: false, ..options })
            .await
            .unwrap();
        fs.reclaim_all().await.unwrap();
        let report = fs::consistency::examine(&*memory, true, |_, _| ()).await.unwrap();
        assert!(report.is_clean() && report.orphans == 0, "seed {seed}: {:#?}", report.problems);
    });
}

#[test]
fn tasks_with_tiny_caches() {
    let seed = rand::random();
    println!("seed {seed}");
    run(seed, CacheLimits::tiny());
}

#[test]
fn tasks_with_large_caches() {
    let seed = rand::random();
    println!("seed {seed}");
    run(seed, CacheLimits::default());
}
