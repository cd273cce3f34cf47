//! What a sync acknowledged is there, whatever was killed; and only one mount writes.

use crate::{REPAIR_MAX, scale};
use cluster::load::{CHUNK, check_file, make_file};
use cluster::random::block;
use cluster::{Bank, Cluster, Mount, Random, Setup, until};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Saves numbered files and keeps the list of those whose fsync returned, outside the mount.
struct Recorder {
    acknowledged: Arc<Mutex<Vec<u64>>>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Recorder {
    fn start(dir: PathBuf, first: u64) -> Self {
        let acknowledged = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let thread = {
            let (acknowledged, stop) = (acknowledged.clone(), stop.clone());
            thread::spawn(move || {
                for n in first.. {
                    if stop.load(Ordering::SeqCst) || save(&dir, n).is_err() {
                        return;
                    }
                    acknowledged.lock().expect("no panic under it").push(n);
                }
            })
        };
        Self { acknowledged, stop, thread }
    }

    fn count(&self) -> usize {
        self.acknowledged.lock().expect("no panic under it").len()
    }

    fn stop(self) -> Vec<u64> {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().expect("the recorder does not panic");
        self.acknowledged.lock().expect("no panic under it").clone()
    }
}

fn content(n: u64) -> Vec<u8> {
    block(9, n, 100 + usize::try_from(n * 37 % 9000).unwrap_or(0))
}

/// One acknowledged save: new file, fsync, rename into place, fsync of the directory. Every third is
/// an overwrite in place of the file before, with fdatasync.
fn save(dir: &Path, n: u64) -> io::Result<()> {
    let name = dir.join(format!("n{n}"));
    let fresh = dir.join("fresh");
    let file = File::create(&fresh)?;
    file.write_all_at(&content(n), 0)?;
    file.sync_all()?;
    fs::rename(&fresh, &name)?;
    File::open(dir)?.sync_all()?;
    if n.is_multiple_of(3) {
        let counter =
            File::options().create(true).truncate(false).write(true).open(dir.join("counter"))?;
        counter.write_all_at(&n.to_le_bytes(), 8 * (n % 64))?;
        counter.sync_data()?;
    }
    Ok(())
}

fn check_saved(dir: &Path, acknowledged: &[u64]) {
    for n in acknowledged {
        let found = fs::read(dir.join(format!("n{n}")));
        assert!(
            found.as_ref().is_ok_and(|f| *f == content(*n)),
            "acknowledged save {n}: {:?}",
            found.map(|f| f.len())
        );
    }
    if let Some(last) = acknowledged.iter().rev().find(|n| *n % 3 == 0) {
        let counter = fs::read(dir.join("counter")).expect("the counter");
        let at = usize::try_from(8 * (last % 64)).unwrap_or(0);
        let found = u64::from_le_bytes(counter[at..at + 8].try_into().expect("8 bytes"));
        assert!(found >= *last, "overwrite in place: {found}, acknowledged {last}");
    }
}

#[test]
fn kill_9_of_everything_loses_no_acknowledged_sync() {
    let mut random = Random::from_env("kill-9");
    let mut cluster = Cluster::start("kill-9", Setup::default());
    fs::create_dir(cluster.path("d")).expect("mkdir");
    File::open(cluster.mountpoint()).and_then(|d| d.sync_all()).expect("fsync");
    let mut all = Vec::new();
    for round in 0..4 * scale() {
        let recorder = Recorder::start(cluster.path("d"), round * 100_000);
        // Bulk beside it, never synced: it may be lost, it must not harm.
        let bulk = cluster.path(format!("bulk{round}"));
        let writer = thread::spawn(move || {
            let file = File::create(bulk)?;
            (0..2000).try_for_each(|n| file.write_all_at(&block(1, n, CHUNK), n * CHUNK as u64))
        });
        until(Duration::from_secs(30), "some saves", || recorder.count() > 20);
        thread::sleep(Duration::from_millis(random.below(700)));
        // In a random order: sometimes the nodes first, sometimes the mount.
        if random.below(2) == 0 {
            cluster.kill_mount();
        }
        let first = random.below(3);
        for k in 0..3 {
            cluster.kill(Bank::ALL[usize::try_from((first + k) % 3).unwrap_or(0)]);
        }
        cluster.kill_mount();
        all.extend(recorder.stop());
        let _ = writer.join().expect("the bulk writer does not panic");
        println!("round {round}: {} saves acknowledged so far", all.len());
        Bank::ALL.into_iter().for_each(|b| cluster.start_bank(b));
        cluster.mount();
        check_saved(&cluster.path("d"), &all);
    }
    cluster.await_whole(REPAIR_MAX);
    let said = cluster.tercet(&["check"]);
    assert!(said.ok(), "{said}");
}

#[test]
fn kill_9_of_the_mount_and_one_bank_at_opening_loses_no_acknowledged_sync() {
    let mut random = Random::from_env("kill-mount");
    let mut cluster = Cluster::start("kill-mount", Setup::default());
    fs::create_dir(cluster.path("d")).expect("mkdir");
    let mut all = Vec::new();
    for round in 0..4 * scale() {
        let recorder = Recorder::start(cluster.path("d"), round * 100_000);
        until(Duration::from_secs(30), "some saves", || recorder.count() > 20);
        thread::sleep(Duration::from_millis(random.below(500)));
        cluster.kill_mount();
        all.extend(recorder.stop());
        // A bank that may be one of the two that acknowledged is dead when the volume opens.
        let dead = Bank::ALL[usize::try_from(random.below(3)).unwrap_or(0)];
        cluster.kill(dead);
        cluster.mount();
        check_saved(&cluster.path("d"), &all);
        cluster.start_bank(dead);
        cluster.await_healthy(REPAIR_MAX);
    }
    cluster.await_whole(REPAIR_MAX);
}

#[test]
fn a_volume_starts_with_any_one_bank_dead() {
    let mut cluster = Cluster::start("one-dead", Setup::default());
    make_file(&cluster.path("f"), 1, 32);
    for dead in Bank::ALL {
        cluster.unmount();
        cluster.kill(dead);
        cluster.mount();
        check_file(&cluster.path("f"), 1, 32);
        let name = cluster.path(format!("with-{dead:?}-dead"));
        fs::write(&name, "x").expect("write");
        File::open(&name).and_then(|f| f.sync_all()).expect("fsync with one bank dead");
        cluster.start_bank(dead);
        cluster.await_whole(REPAIR_MAX);
    }
}

#[test]
fn a_second_mount_is_refused_and_takeover_fences_the_first() {
    let mut cluster = Cluster::start("second", Setup::default());
    fs::write(cluster.path("f"), "first").expect("write");
    File::open(cluster.path("f")).and_then(|f| f.sync_all()).expect("fsync");
    // The second host: same banks and token, its own directory.
    let other = cluster.root.join("other");
    fs::create_dir_all(other.join("run")).expect("mkdir");
    fs::copy(cluster.root.join("token"), other.join("token")).expect("copy the token");
    let point = other.join("mnt");
    fs::create_dir_all(&point).expect("mkdir");
    let text = fs::read_to_string(cluster.config()).expect("config");
    let text =
        text.replace(&cluster.mountpoint().display().to_string(), &point.display().to_string());
    let config = other.join("tercet.toml");
    fs::write(&config, text).expect("config");

    let mut command = std::process::Command::new(&cluster::programs::programs().tercet);
    command.arg("--config").arg(&config).args(["mount", "--foreground"]).arg(&point);
    let said = cluster::process::run(&mut command, Duration::from_secs(40)).expect_refusal();
    assert!(said.contains("takeover"), "the message says what to do: {said}");
    assert!(
        said.contains(&cluster.mountpoint().display().to_string()) || said.contains("held by"),
        "and who holds it: {said}"
    );
    fs::write(cluster.path("still"), "the first goes on").expect("write");

    let second = Mount::start(
        &config,
        &point,
        &["--takeover"],
        &other.join("run/mount.log"),
        Arc::default(),
    );
    assert_eq!(fs::read_to_string(point.join("f")).expect("read"), "first");
    fs::write(point.join("f"), "second").expect("write");
    File::open(point.join("f")).and_then(|f| f.sync_all()).expect("fsync");
    // Fenced: no sync of the first may succeed any more, and it must not serve what it cached.
    let (f, g) = (cluster.path("f"), cluster.path("g"));
    until(Duration::from_secs(20), "the first mount is fenced", || {
        File::create(&g).and_then(|f| f.sync_all()).is_err()
    });
    until(Duration::from_secs(20), "the first mount stops serving", || {
        fs::read_to_string(&f).is_err() || !cluster.mounted().is_running()
    });
    assert_eq!(fs::read_to_string(point.join("f")).expect("read"), "second");
    assert!(!point.join("g").exists(), "a fenced write has reached the volume");
    cluster.kill_mount();
    second.unmount();
}
