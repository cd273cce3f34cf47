//! One storage node: a process, a directory, an address.

use crate::cluster::Bank;
use crate::disk::NodeDisk;
use crate::process::{Process, Said, run, until};
use crate::programs::programs;
use crate::proxy::Proxy;
use rustix::process::Signal;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// How long a node may take to serve after its start, or a question to it may take.
pub const NODE_PATIENCE: Duration = Duration::from_secs(30);

/// A storage node, running or not.
#[derive(Debug)]
pub struct Node {
    /// Its bank.
    pub bank: Bank,
    /// Its shard.
    pub shard: usize,
    /// Its TCP port on 127.0.0.1.
    pub port: u16,
    /// Its data.
    pub dir: PathBuf,
    /// A disk of its own, if the setup says so.
    pub disk: Option<NodeDisk>,
    /// The network between it and the mount, if the setup says so.
    pub relay: Option<Proxy>,
    /// So many files, sockets among them, may it have open from its next start on.
    pub open_files_max: Option<u64>,
    token: PathBuf,
    log: PathBuf,
    capacity_bytes: Option<u64>,
    process: Option<Process>,
}

impl Node {
    /// A node that was never started.
    #[must_use]
    pub fn new(root: &Path, bank: Bank, shard: usize, port: u16, capacity: Option<u64>) -> Self {
        let name = format!("{}{shard}", bank.letter().to_ascii_lowercase());
        Self {
            bank,
            shard,
            port,
            dir: root.join("nodes").join(&name),
            disk: None,
            relay: None,
            open_files_max: None,
            token: root.join("token"),
            log: root.join("run").join(format!("node-{name}.log")),
            capacity_bytes: capacity,
            process: None,
        }
    }

    /// Gives it a disk of its own.
    pub fn give_disk(&mut self, bytes: u64) {
        self.disk = Some(NodeDisk::make(&self.dir, bytes));
        self.dir = self.dir.join("data");
    }

    /// Puts a relay between it and the mount.
    pub fn give_relay(&mut self) {
        self.relay = Some(Proxy::start(self.port, u64::from(self.port)));
    }

    /// The port that the configuration names.
    #[must_use]
    pub fn public_port(&self) -> u16 {
        self.relay.as_ref().map_or(self.port, |r| r.port)
    }

    /// Where it answers.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Starts the process, if it does not run, and returns at once.
    pub fn spawn(&mut self) {
        if self.is_running() {
            return;
        }
        std::fs::create_dir_all(&self.dir).expect("the node's directory can be made");
        let mut command = Command::new(&programs().storenode);
        if let Some(max) = self.open_files_max {
            command = Command::new("prlimit");
            command.arg(format!("--nofile={max}:{max}")).arg(&programs().storenode);
        }
        command
            .arg("serve")
            .arg("--dir")
            .arg(&self.dir)
            .args(["--listen", &format!("127.0.0.1:{}", self.port)])
            .args(["--bank", &self.bank.letter().to_string()])
            .args(["--shard", &self.shard.to_string()])
            .arg("--token-file")
            .arg(&self.token)
            .arg("--allow-faults");
        if let Some(bytes) = self.capacity_bytes {
            command.args(["--capacity", &bytes.to_string()]);
        }
        self.process = Some(Process::spawn(&self.to_string(), &mut command, &self.log));
    }

    /// Waits until it answers.
    ///
    /// # Panics
    /// When it ends or does not answer in time, with the end of its log.
    pub fn await_ready(&mut self) {
        let what = format!("{self} answers (log {})", self.log.display());
        until(NODE_PATIENCE, &what, || {
            let process = self.process.as_mut().expect("only a started node gets ready");
            assert!(process.is_running(), "{} ended:\n{}", what, process.log_tail(15));
            self.ask(&["status", "--json"]).ok()
        });
    }

    /// Starts it and waits until it answers.
    pub fn start(&mut self) {
        self.spawn();
        self.await_ready();
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut p) = self.process.take() {
            p.kill();
        }
    }

    /// SIGTERM, and waits.
    pub fn stop(&mut self) {
        if let Some(mut p) = self.process.take() {
            p.terminate(Duration::from_secs(20));
        }
    }

    /// SIGSTOP: it hangs, its connections stay.
    pub fn pause(&mut self) {
        self.process.iter_mut().for_each(|p| p.signal(Signal::STOP));
    }

    /// SIGCONT.
    pub fn resume(&mut self) {
        self.process.iter_mut().for_each(|p| p.signal(Signal::CONT));
    }

    /// Does its process exist?
    pub fn is_running(&mut self) -> bool {
        self.process.as_mut().is_some_and(Process::is_running)
    }

    /// Its pid.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().and_then(Process::pid)
    }

    /// Empties its directory, as a new disk would. It must not run.
    pub fn wipe(&mut self) {
        assert!(!self.is_running(), "{self} runs: kill it first");
        std::fs::remove_dir_all(&self.dir).expect("the node's directory can be removed");
        std::fs::create_dir_all(&self.dir).expect("the node's directory can be made");
    }

    /// Copies its directory aside, to be put back later. It must not run.
    pub fn snapshot(&mut self) {
        assert!(!self.is_running(), "{self} runs: kill it first");
        copy_tree(&self.dir, &self.dir.with_extension("old"));
    }

    /// The same of a running one, which stands still meanwhile: the copy is as after a crash.
    pub fn snapshot_running(&mut self) {
        self.pause();
        copy_tree(&self.dir, &self.dir.with_extension("old"));
        self.resume();
    }

    /// Puts the copy back: the node is rolled back to then. It must not run.
    pub fn restore(&mut self) {
        assert!(!self.is_running(), "{self} runs: kill it first");
        copy_tree(&self.dir.with_extension("old"), &self.dir);
    }

    /// `storenode WORDS...` against the running node.
    #[must_use]
    pub fn ask(&self, words: &[&str]) -> Said {
        let mut command = Command::new(&programs().storenode);
        command.args(words).args(["--url", &self.url()]).arg("--token-file").arg(&self.token);
        run(&mut command, NODE_PATIENCE)
    }

    /// Does every record verify? Bytes in its files that belong to none any more may be damaged still:
    /// those go with the next scrub, and reading does not touch them.
    #[must_use]
    pub fn verifies(&self) -> bool {
        let said = self.ask(&["verify", "--json"]);
        let all: serde_json::Value = serde_json::from_str(&said.stdout).unwrap_or_default();
        all["damaged"].as_array().is_some_and(Vec::is_empty)
    }

    /// `storenode WORDS... --dir`: the same without a process.
    #[must_use]
    pub fn ask_offline(&self, words: &[&str]) -> Said {
        let mut command = Command::new(&programs().storenode);
        command.args(words).arg("--dir").arg(&self.dir);
        run(&mut command, NODE_PATIENCE)
    }

    /// Where its output goes.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }
}

impl std::fmt::Display for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "bank {} node {} (port {})", self.bank.letter(), self.shard, self.port)
    }
}

fn copy_tree(from: &Path, to: &Path) {
    let _ = std::fs::remove_dir_all(to);
    run(Command::new("cp").arg("-a").arg(from).arg(to), Duration::from_secs(60)).assert_ok();
}
