//! Every call answers as on ext4: the same script of calls runs in a directory of each, and what it
//! tells must be the same, line by line. The calls are in `tests/calls/` (Python, which can make any
//! of them as any user); `tests/calls/main.py --help` runs them by hand.
//!
//! What differs on purpose, or because FUSE cannot say it, is left out there and stands in
//! `docs/semantics.md`.

use crate::scale;
use cluster::process::run;
use cluster::programs::repo;
use cluster::reference::{Ext4, needs};
use cluster::{Bank, Cluster, Random, Setup};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// A cluster and an ext4, both open to all users.
fn both(name: &str) -> (Cluster, Ext4) {
    needs("python3", "python3");
    let cluster = Cluster::start(name, Setup::default());
    let ext4 = Ext4::make(&cluster.root, 2 << 30);
    for dir in [&cluster.root, &cluster.mountpoint(), &ext4.mountpoint] {
        fs::set_permissions(dir, Permissions::from_mode(0o755)).expect("chmod");
    }
    (cluster, ext4)
}

/// What the calls told, in a fresh directory below `top`.
fn transcript(top: &Path, directory: &str, words: &[&str]) -> String {
    let mut command = Command::new("python3");
    command.arg(repo().join("tests/calls/main.py")).arg(words[0]).arg(top.join(directory));
    command.args(&words[1..]).env("PYTHONDONTWRITEBYTECODE", "1").env("LC_ALL", "C.UTF-8");
    run(&mut command, Duration::from_secs(180)).expect_ok()
}

/// Runs the calls on both; gives the number of lines that agree.
fn compare(cluster: &Cluster, ext4: &Ext4, directory: &str, words: &[&str]) -> usize {
    let want = transcript(&ext4.mountpoint, directory, words);
    let got = transcript(&cluster.mountpoint(), directory, words);
    for broken in ["Traceback", "a child ended with"] {
        assert!(!want.contains(broken), "the script itself is broken:\n{want}");
    }
    let mut table = "";
    for (n, (w, g)) in want.lines().zip(got.lines()).enumerate() {
        table = w.strip_prefix("## ").unwrap_or(table);
        assert_eq!(g, w, "line {n} of {words:?}, table {table}: got, and what ext4 says");
    }
    assert_eq!(got.lines().count(), want.lines().count(), "{words:?}: a transcript is shorter");
    want.lines().count()
}

#[test]
fn every_call_answers_as_on_ext4() {
    let (cluster, ext4) = both("tables");
    let lines = compare(&cluster, &ext4, "calls", &["tables"]);
    assert!(lines > 5000, "only {lines} answers were compared");
    println!("{lines} answers compared");
    cluster.tercet(&["check"]).assert_ok();
}

#[test]
fn random_calls_answer_as_on_ext4_also_with_a_bank_away() {
    let (mut cluster, ext4) = both("walk");
    let first = Random::from_env("walk").below(1 << 30);
    let mut lines = 0;
    for n in 0..6 * scale() {
        if n == 3 {
            cluster.kill(Bank::C);
        }
        let seed = (first + n).to_string();
        let words = ["random", seed.as_str(), "800"];
        lines += compare(&cluster, &ext4, &format!("walk{n}"), &words);
    }
    println!("{lines} answers compared");
    cluster.start_bank(Bank::C);
    cluster.await_whole(crate::REPAIR_MAX);
    cluster.tercet(&["check"]).assert_ok();
}
