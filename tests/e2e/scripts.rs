//! `scripts/launch` and `scripts/kill`, as in the README: start, break, heal, stop, start again.

use cluster::cluster::free_ports;
use cluster::mount::is_mounted;
use cluster::process::{Said, run};
use cluster::programs::{programs, repo, require_environment};
use cluster::until;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// A volume that only the scripts touch, with a space in all its paths; dropping it stops what is left with `kill --signal KILL`.
struct Launched {
    dir: PathBuf,
    bases: [u16; 3],
    _keep: tempfile::TempDir,
}

impl Launched {
    fn new() -> Self {
        require_environment();
        let keep = tempfile::tempdir().expect("a directory");
        let dir = keep.path().canonicalize().expect("the directory").join("a volume");
        // Two nodes per bank: pairs of neighbouring ports.
        let bases = loop {
            let found = free_ports(3);
            if found.iter().all(|p| std::net::TcpListener::bind(("127.0.0.1", p + 1)).is_ok()) {
                break [found[0], found[1], found[2]];
            }
        };
        Self { dir, bases, _keep: keep }
    }

    fn script(&self, name: &str, words: &[&str]) -> Said {
        let mut command = Command::new(repo().join("scripts").join(name));
        command
            .args(words)
            .env("TERCET_DIR", &self.dir)
            .env("TERCET_BIN_DIR", &programs().dir)
            .env("TERCET_PORT_BASES", self.bases.map(|b| b.to_string()).join(" "));
        run(&mut command, Duration::from_secs(120))
    }

    fn pid_of(&self, port: u16) -> String {
        let text =
            fs::read_to_string(self.dir.join(format!("run/node-{port}.pid"))).unwrap_or_default();
        text.split_whitespace().next().unwrap_or_default().to_owned()
    }

    fn mountpoint(&self) -> PathBuf {
        self.dir.join("mnt")
    }
}

impl Drop for Launched {
    fn drop(&mut self) {
        let said = self.script("kill", &["--signal", "KILL"]);
        if std::thread::panicking() {
            eprintln!("{said}");
            let log = fs::read_to_string(self.dir.join("run/mount.log")).unwrap_or_default();
            eprintln!("mount.log:\n{log}");
        }
    }
}

/// Does the process run? One that ended and was not yet reaped does not.
fn alive(pid: &str) -> bool {
    let stat = fs::read_to_string(Path::new("/proc").join(pid).join("stat")).unwrap_or_default();
    !pid.is_empty()
        && stat.rsplit(") ").next().is_some_and(|s| !s.is_empty() && !s.starts_with('Z'))
}

#[test]
fn launch_kill_launch() {
    let l = Launched::new();
    let said = l.script("launch", &["2"]);
    println!("{said}");
    let said = said.expect_ok();
    for word in ["bank A", "bank B", "bank C", "mount", "--allow-faults", "Try:"] {
        assert!(said.contains(word), "launch tells of {word}: {said}");
    }
    let f = l.mountpoint().join("f");
    fs::write(&f, "hello").expect("write");

    // Again: nothing is started, nothing is harmed.
    let pids: Vec<_> = l.bases.iter().map(|b| l.pid_of(*b)).collect();
    let said = l.script("launch", &[]).expect_ok();
    assert!(said.contains("0 node(s) started"), "{said}");
    assert_eq!(pids, l.bases.iter().map(|b| l.pid_of(*b)).collect::<Vec<_>>());
    assert!(l.script("launch", &["5"]).expect_refusal().contains("2 nodes per bank"));

    // One node, by port; only that one is started again.
    let (victim, other) = (l.bases[1] + 1, l.bases[1]);
    let pid = l.pid_of(victim);
    l.script("kill", &[&victim.to_string()]).assert_ok();
    assert!(!alive(&pid) && alive(&l.pid_of(other)));
    let again = l.script("kill", &[&victim.to_string()]);
    assert_eq!(again.status.and_then(|s| s.code()), Some(3), "not running: {again}");
    assert_eq!(fs::read_to_string(&f).expect("read"), "hello");
    let said = l.script("launch", &[]).expect_ok();
    assert!(said.contains("1 node(s) started"), "{said}");

    // A bank hangs and goes on; a bank dies.
    l.script("kill", &["--signal", "STOP", "bank", "A"]).assert_ok();
    fs::write(l.mountpoint().join("g"), "with bank A hung").expect("write");
    l.script("kill", &["--signal", "CONT", "bank", "A"]).assert_ok();
    l.script("kill", &["bank", "B"]).assert_ok();
    fs::write(l.mountpoint().join("h"), "with bank B dead").expect("write");

    // A stale pid file that names somebody else's process is not believed.
    fs::write(l.dir.join(format!("run/node-{other}.pid")), format!("{} 1\n", std::process::id()))
        .expect("pid file");
    let said = l.script("kill", &[&other.to_string()]);
    assert_eq!(said.status.and_then(|s| s.code()), Some(3), "{said}");
    let said = l.script("launch", &[]).expect_ok();
    assert!(said.contains("2 node(s) started"), "{said}");

    // Everything, and back: the data survives.
    l.script("kill", &[]).assert_ok();
    assert!(!is_mounted(&l.mountpoint()));
    until(Duration::from_secs(5), "all nodes are gone", || {
        l.bases.iter().all(|b| !alive(&l.pid_of(*b)))
    });
    l.script("launch", &[]).assert_ok();
    assert_eq!(fs::read_to_string(&f).expect("read"), "hello");
    assert_eq!(fs::read_to_string(l.mountpoint().join("h")).expect("read"), "with bank B dead");

    // The mount killed hard leaves a dead mountpoint: launch clears it.
    l.script("kill", &["--signal", "KILL", "mount"]).assert_ok();
    l.script("launch", &[]).assert_ok();
    assert_eq!(fs::read_to_string(&f).expect("read"), "hello");
    l.script("kill", &[]).assert_ok();
}

#[test]
fn launch_names_the_taken_port() {
    let l = Launched::new();
    let _taken = std::net::TcpListener::bind(("127.0.0.1", l.bases[2])).expect("bind");
    let said = l.script("launch", &["1"]).expect_refusal();
    assert!(said.contains(&l.bases[2].to_string()) && said.contains("taken"), "{said}");
}

#[test]
fn kill_refuses_what_it_does_not_know() {
    let l = Launched::new();
    for words in [&["bank", "D"][..], &["everything"], &["--signal", "HUP"], &["--no-such"]] {
        let said = l.script("kill", words);
        let code = said.status.and_then(|s| s.code());
        assert!(code == Some(2) || code == Some(3), "{said}");
    }
}
