//! The field's suites, as they are: pjdfstest (what POSIX says of calls) and fsx (random reads, writes,
//! mappings, holes, copies and truncations of one file, each read compared). `scripts/suites` installs
//! them; `scripts/test suites` runs them at length.

use crate::scale;
use cluster::process::{Said, run};
use cluster::programs::repo;
use cluster::reference::needs;
use cluster::{Bank, Cluster, Random, Setup};
use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

/// A program that `scripts/suites` has installed.
fn suite(program: &str) -> PathBuf {
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| repo().join("target"), PathBuf::from);
    let path = target.join("suites/bin").join(program);
    assert!(path.exists(), "the crate {program} is not installed: run scripts/suites");
    path
}

/// Tests of pjdfstest 0.2.2 that apply to Linux.
const PJDFSTEST_COUNT: usize = 398;

/// `pathconf(_PC_LINK_MAX)` is answered by the C library, from a table of filesystems in which FUSE
/// does not stand. Of what it would test, `fs/tests/limits.rs` tests ours.
const PJDFSTEST_SKIPS: [&str; 1] = ["link::link_count_max"];

#[test]
fn pjdfstest_passes() {
    let cluster = Cluster::start("pjdfstest", Setup::default());
    let second = cluster.root.join("second");
    fs::create_dir(&second).expect("mkdir");
    for dir in [&cluster.root, &second, &cluster.mountpoint()] {
        fs::set_permissions(dir, Permissions::from_mode(0o755)).expect("chmod");
    }
    // The tests with a read-only mount run by themselves, as on ext4: others leave files open for
    // writing, with which nothing becomes read-only.
    let rest = pjdfstest(&cluster, &second, "false", &[]);
    let read_only = pjdfstest(&cluster, &second, "true", &["erofs"]);
    let skipped: BTreeSet<_> = rest.skipped.iter().filter(|n| !n.contains("::erofs")).collect();
    assert!(skipped.into_iter().eq(&PJDFSTEST_SKIPS), "skipped: {:?}", rest.skipped);
    assert_eq!(read_only.skipped, Vec::<String>::new());
    let passed = rest.passed + read_only.passed;
    assert_eq!(passed + PJDFSTEST_SKIPS.len(), PJDFSTEST_COUNT, "some tests did not run");
    println!("pjdfstest: {passed} passed");
    cluster.tercet(&["check"]).assert_ok();
}

struct Counted {
    passed: usize,
    skipped: Vec<String>,
}

fn pjdfstest(cluster: &Cluster, second: &Path, allow_remount: &str, filter: &[&str]) -> Counted {
    let config = cluster.root.join(format!("pjdfstest-{allow_remount}.toml"));
    // Any two users with groups of their own; naptime: longer than the coarsest clock.
    let text = format!(
        "[features]\nposix_fallocate = {{}}\nrename_ctime = {{}}\nutime_now = {{}}\nutimensat = {{}}\n\
         [settings]\nnaptime = 0.02\nallow_remount = {allow_remount}\n\
         [dummy_auth]\nentries = [[\"daemon\", \"daemon\"], [\"bin\", \"bin\"]]\n"
    );
    fs::write(&config, text).expect("write");
    let mut command = Command::new(suite("pjdfstest"));
    command.arg("-c").arg(&config).arg("-p").arg(cluster.mountpoint()).arg("-s").arg(second);
    command.args(filter).env("NO_COLOR", "1").env("PATH", path_with_plain_mount(cluster));
    let said = run(&mut command, Duration::from_secs(200));
    let ending = |end: &'static str| {
        let lines = said.stdout.lines().filter_map(move |l| l.strip_suffix(end));
        lines.map(|l| l.trim().to_owned()).filter(|l| !l.contains(' '))
    };
    let failed: Vec<String> = ending("FAILED").collect();
    assert!(failed.is_empty() && said.ok(), "failed: {failed:?}\n{said}");
    Counted { passed: ending("ok").count(), skipped: ending("skipped").collect() }
}

/// A PATH in which `mount` does not look for helpers: the one of the package fuse3 cannot remount, and
/// ours is not installed here.
fn path_with_plain_mount(cluster: &Cluster) -> std::ffi::OsString {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let real = std::env::split_paths(&path).map(|d| d.join("mount")).find(|p| p.exists());
    let bin = cluster.root.join("bin");
    fs::create_dir_all(&bin).expect("mkdir");
    let script = format!("#!/bin/sh\nexec {} -i \"$@\"\n", real.expect("mount(8)").display());
    fs::write(bin.join("mount"), script).expect("write");
    fs::set_permissions(bin.join("mount"), Permissions::from_mode(0o755)).expect("chmod");
    std::env::join_paths([bin].into_iter().chain(std::env::split_paths(&path))).expect("a PATH")
}

/// Largest file, largest operation, operations.
const FSX_RUNS: [(u64, u64, u64); 4] = [
    (1 << 10, 512, 3000),
    (256 << 10, 64 << 10, 3000),
    (4 << 20, 256 << 10, 1500),
    (64 << 20, 1 << 20, 300),
];

fn fsx(cluster: &Cluster, (file, largest, operations): (u64, u64, u64), seed: u64) -> Said {
    let config = cluster.root.join(format!("fsx-{file}.toml"));
    // At least one byte: fsx takes the EINVAL of a posix_fallocate of none, which any filesystem
    // gives, for a lack of support.
    let text = format!(
        "flen = {file}\n[opsize]\nmin = 1\nmax = {largest}\n[weights]\nclose_open = 1\nread = 10\nwrite = 10\n\
         mapread = 10\nmapwrite = 10\ninvalidate = 1\ntruncate = 3\nfsync = 1\nfdatasync = 1\n\
         posix_fallocate = 2\npunch_hole = 3\nsendfile = 2\nposix_fadvise = 1\ncopy_file_range = 3\n"
    );
    fs::write(&config, text).expect("write");
    let mut command = Command::new(suite("fsx"));
    command.arg("-f").arg(&config).args(["-N", &operations.to_string(), "-S", &seed.to_string()]);
    command.arg("-P").arg(&cluster.root).arg(cluster.path(format!("fsx-{file}-{seed}")));
    run(&mut command, Duration::from_secs(220))
}

#[test]
fn fsx_passes_also_while_a_bank_dies_and_returns() {
    needs("mount", "mount");
    let setup = Setup {
        watchdog: Duration::from_secs(if scale() > 1 { 3000 } else { 240 }),
        ..Setup::default()
    };
    let mut cluster = Cluster::start("fsx", setup);
    let seed = Random::from_env("fsx").below(1 << 30);
    for n in 0..scale() {
        for run in FSX_RUNS {
            fsx(&cluster, run, seed + n).assert_ok();
        }
    }
    // All sizes at once, while a bank is killed, and comes back behind.
    let bank = Bank::ALL[usize::try_from(seed % 3).expect("small")];
    cluster.kill(bank);
    let said = thread::scope(|scope| {
        let cluster = &cluster;
        let runs = FSX_RUNS.map(|run| scope.spawn(move || fsx(cluster, run, seed + 1000)));
        runs.map(|r| r.join().expect("fsx runs"))
    });
    said.iter().for_each(Said::assert_ok);
    cluster.start_bank(bank);
    for run in FSX_RUNS {
        fsx(&cluster, run, seed + 2000).assert_ok();
    }
    cluster.await_whole(crate::REPAIR_MAX);
}
