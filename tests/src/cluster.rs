//! A volume: three banks of nodes, a configuration, a mount.

use crate::mount::{MOUNT_PATIENCE, Mount};
use crate::node::Node;
use crate::oracle;
use crate::process::{Said, run, until};
use crate::programs::{programs, require_environment};
use crate::random::Random;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::collections::BTreeSet;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

/// One of the three replicas of the volume.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bank {
    /// First.
    A,
    /// Second.
    B,
    /// Third.
    C,
}

impl Bank {
    /// All three.
    pub const ALL: [Self; 3] = [Self::A, Self::B, Self::C];

    /// As in flags.
    #[must_use]
    pub const fn letter(self) -> char {
        ['A', 'B', 'C'][self as usize]
    }

    /// The next one, round and round.
    #[must_use]
    pub const fn next(self) -> Self {
        Self::ALL[(self as usize + 1) % 3]
    }
}

/// What a test wants.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Nodes per bank.
    pub shards: usize,
    /// Lines of the `[limits]` table of the configuration.
    pub limits: String,
    /// `--capacity` of each node, bytes.
    pub capacity_bytes: Option<u64>,
    /// Each node has a disk of its own of so many bytes ([`crate::disk`]).
    pub disk_bytes: Option<u64>,
    /// Between the mount and each node is a network that can fail ([`crate::proxy`]).
    pub relays: bool,
    /// After so long the watchdog kills the mount.
    pub watchdog: Duration,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            shards: 2,
            limits: String::new(),
            capacity_bytes: None,
            disk_bytes: None,
            relays: false,
            watchdog: Duration::from_secs(240),
        }
    }
}

impl Setup {
    /// Background repair as good as off: only access may repair.
    #[must_use]
    pub fn no_refresh() -> Self {
        Self { limits: "refresh_interval_s = 86400\n".into(), ..Self::default() }
    }

    /// A refresh every second: nothing needs to be touched.
    #[must_use]
    pub fn fast_refresh() -> Self {
        Self { limits: "refresh_interval_s = 1\n".into(), ..Self::default() }
    }
}

/// A volume made of real processes. Dropping it unmounts, kills its processes by pid, and removes
/// its directory, unless the test failed: then logs and data stay.
#[derive(Debug)]
pub struct Cluster {
    /// Everything: `tercet.toml`, `token`, `nodes/`, `run/`, `mnt/`.
    pub root: PathBuf,
    /// What it was made of.
    pub setup: Setup,
    nodes: [Vec<Node>; 3],
    mount: Option<Mount>,
    mount_pid: Arc<AtomicU32>,
    keep: bool,
    _watchdog: mpsc::Sender<()>,
}

impl Cluster {
    /// Nodes, volume, mount: ready to use.
    ///
    /// # Panics
    /// When anything does not come up in time.
    #[must_use]
    pub fn start(name: &str, setup: Setup) -> Self {
        let mut cluster = Self::start_nodes(name, setup);
        cluster.tercet(&["init"]).assert_ok();
        cluster.mount();
        cluster
    }

    /// Nodes only: no volume yet.
    ///
    /// # Panics
    /// When a node does not come up in time.
    #[must_use]
    pub fn start_nodes(name: &str, setup: Setup) -> Self {
        let mut cluster = Self::prepare(name, setup);
        for node in cluster.nodes.iter_mut().flatten() {
            node.spawn();
        }
        for node in cluster.nodes.iter_mut().flatten() {
            node.await_ready();
        }
        cluster
    }

    /// Directory, token and configuration only.
    ///
    /// # Panics
    /// When the machine cannot run these tests.
    #[must_use]
    pub fn prepare(name: &str, setup: Setup) -> Self {
        require_environment();
        let base =
            std::env::var_os("TERCET_TEST_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
        let root = tempfile::Builder::new()
            .prefix(&format!("tercet-{name}-"))
            .tempdir_in(base)
            .expect("a directory for the test can be made")
            .keep();
        // mountinfo shows resolved paths.
        let root = root.canonicalize().expect("the directory was just made");
        std::fs::create_dir_all(root.join("run")).expect("run/ can be made");
        let ports = free_ports(3 * setup.shards);
        let nodes = Bank::ALL.map(|bank| {
            (0..setup.shards)
                .map(|shard| {
                    let port = ports[bank as usize * setup.shards + shard];
                    let mut node = Node::new(&root, bank, shard, port, setup.capacity_bytes);
                    setup.disk_bytes.into_iter().for_each(|bytes| node.give_disk(bytes));
                    if setup.relays {
                        node.give_relay();
                    }
                    node
                })
                .collect()
        });
        let mount_pid = Arc::new(AtomicU32::new(0));
        let watchdog = watch(name, setup.watchdog, mount_pid.clone());
        let keep = std::env::var_os("TERCET_KEEP").is_some();
        let cluster =
            Self { root, setup, nodes, mount: None, mount_pid, keep, _watchdog: watchdog };
        cluster.write_config();
        let mut token = Command::new(&programs().tercet);
        token.arg("token").arg(cluster.root.join("token"));
        run(&mut token, Duration::from_secs(20)).assert_ok();
        cluster
    }

    fn write_config(&self) {
        let list = |bank: Bank| {
            let all: Vec<String> = self.nodes[bank as usize]
                .iter()
                .map(|n| format!("\"127.0.0.1:{}\"", n.public_port()))
                .collect();
            all.join(", ")
        };
        let text = format!(
            "[volume]\ntoken_file = \"token\"\n\n[banks]\na = [{}]\nb = [{}]\nc = [{}]\n\n\
             [mount]\nmountpoint = \"{}\"\n\n[limits]\n{}",
            list(Bank::A),
            list(Bank::B),
            list(Bank::C),
            self.mountpoint().display(),
            self.setup.limits
        );
        std::fs::write(self.config(), text).expect("the configuration can be written");
    }

    /// `tercet.toml`.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.root.join("tercet.toml")
    }

    /// Where the volume is mounted.
    #[must_use]
    pub fn mountpoint(&self) -> PathBuf {
        self.root.join("mnt")
    }

    /// A path inside the mount.
    #[must_use]
    pub fn path(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.mountpoint().join(relative)
    }

    /// Keeps logs and data, though no test has panicked.
    pub fn keep(&mut self) {
        self.keep = true;
    }

    // --- the mount ---------------------------------------------------------------------------

    /// Mounts.
    pub fn mount(&mut self) {
        self.mount_with(&[]);
    }

    /// Mounts with more flags.
    ///
    /// # Panics
    /// When it does not mount in time.
    pub fn mount_with(&mut self, args: &[&str]) {
        self.begin_mount(args);
        self.mounted().await_mounted(MOUNT_PATIENCE);
    }

    /// Starts to mount and returns at once.
    ///
    /// # Panics
    /// When it is mounted already.
    pub fn begin_mount(&mut self, args: &[&str]) {
        assert!(self.mount.is_none(), "mounted already");
        let log = self.root.join("run").join("mount.log");
        let pid = self.mount_pid.clone();
        self.mount = Some(Mount::begin(&self.config(), &self.mountpoint(), args, &log, pid));
    }

    /// Unmounts cleanly (SIGTERM).
    pub fn unmount(&mut self) {
        if let Some(m) = self.mount.take() {
            m.unmount();
        }
    }

    /// SIGKILLs the mount.
    pub fn kill_mount(&mut self) {
        if let Some(m) = self.mount.take() {
            m.kill();
        }
    }

    /// Clean unmount and mount: nothing stays in any cache.
    pub fn remount(&mut self) {
        self.unmount();
        self.mount();
    }

    /// The mount process.
    ///
    /// # Panics
    /// When nothing is mounted.
    pub fn mounted(&mut self) -> &mut Mount {
        self.mount.as_mut().expect("mounted")
    }

    // --- nodes -------------------------------------------------------------------------------

    /// The nodes of a bank.
    pub fn bank(&mut self, bank: Bank) -> &mut [Node] {
        &mut self.nodes[bank as usize]
    }

    /// One node.
    pub fn node(&mut self, bank: Bank, shard: usize) -> &mut Node {
        &mut self.nodes[bank as usize][shard]
    }

    /// All nodes.
    #[must_use]
    pub fn nodes(&self) -> &[Vec<Node>; 3] {
        &self.nodes
    }

    /// SIGKILLs a bank.
    pub fn kill(&mut self, bank: Bank) {
        self.bank(bank).iter_mut().for_each(Node::kill);
    }

    /// SIGSTOPs a bank.
    pub fn pause(&mut self, bank: Bank) {
        self.bank(bank).iter_mut().for_each(Node::pause);
    }

    /// SIGCONTs a bank.
    pub fn resume(&mut self, bank: Bank) {
        self.bank(bank).iter_mut().for_each(Node::resume);
    }

    /// Starts a bank and waits until its nodes answer.
    pub fn start_bank(&mut self, bank: Bank) {
        self.bank(bank).iter_mut().for_each(Node::spawn);
        self.bank(bank).iter_mut().for_each(Node::await_ready);
    }

    /// Empties a bank's directories.
    pub fn wipe(&mut self, bank: Bank) {
        self.bank(bank).iter_mut().for_each(Node::wipe);
    }

    // --- what people ask ---------------------------------------------------------------------

    /// `tercet --config C WORDS...`, at most 60 s.
    #[must_use]
    pub fn tercet(&self, words: &[&str]) -> Said {
        run(&mut self.tercet_command(words), Duration::from_secs(60))
    }

    /// The same, not yet started.
    #[must_use]
    pub fn tercet_command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&programs().tercet);
        command.arg("--config").arg(self.config()).args(words);
        command
    }

    /// `tercet status --json`, parsed.
    ///
    /// # Panics
    /// When it fails.
    #[must_use]
    pub fn status(&self) -> Value {
        let text = self.tercet(&["status", "--json"]).expect_ok();
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("status --json: {e}: {text}"))
    }

    /// Waits until every replica of every shard is up to date.
    ///
    /// # Panics
    /// When it takes longer, with the last status.
    pub fn await_healthy(&self, within: Duration) {
        let start = Instant::now();
        loop {
            let said = self.tercet(&["status", "--json"]);
            if said.ok() && serde_json::from_str(&said.stdout).is_ok_and(|v| oracle::is_healthy(&v))
            {
                return;
            }
            assert!(start.elapsed() < within, "not healthy within {within:?}:\n{said}");
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// What differs between the banks, key by key; empty = three equal copies of all that was
    /// committed. Two nodes that both have yet to apply the same parts differ too: what is pending
    /// is not listed by a node, and equal lists would prove nothing of it.
    #[must_use]
    pub fn compare_banks(&self) -> Vec<String> {
        let mut out = oracle::pending(&self.nodes);
        if self.mount.is_some() {
            let cluster = &self.status()["cluster"];
            let held = ["dirty_bytes", "groups_in_flight"].map(|n| cluster[n].as_u64());
            if held != [Some(0), Some(0)] {
                out.push(format!("the mount still holds {held:?} bytes and groups"));
            }
        }
        out.extend(oracle::compare(&self.nodes));
        out
    }

    /// Waits until the three banks hold the same, by their own word.
    ///
    /// # Panics
    /// When it takes longer, with the differences.
    pub fn await_equal(&self, within: Duration) {
        let start = Instant::now();
        loop {
            let differences = self.compare_banks();
            if differences.is_empty() {
                return;
            }
            assert!(
                start.elapsed() < within,
                "banks differ after {within:?} in {} keys:\n{}",
                differences.len(),
                differences[..differences.len().min(20)].join("\n")
            );
            thread::sleep(Duration::from_millis(200));
        }
    }

    /// Healthy, then equal, then every value re-read from every disk by `storenode verify`.
    ///
    /// # Panics
    /// When it takes longer or a value does not verify.
    pub fn await_whole(&self, within: Duration) {
        self.await_healthy(within);
        self.await_equal(within);
        for node in self.nodes.iter().flatten() {
            assert!(node.verifies(), "{node}: {}", node.ask(&["verify"]));
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let failed = thread::panicking();
        if failed {
            // A hung filesystem must not hang the cleaning up: no clean unmount after a failure.
            self.kill_mount();
        } else if let Some(m) = self.mount.take() {
            m.unmount();
        }
        for node in self.nodes.iter_mut().flatten() {
            node.kill();
            drop(node.disk.take());
        }
        if failed || self.keep {
            eprintln!("kept: logs in {0}/run, data in {0}/nodes", self.root.display());
        } else {
            let _ = std::fs::remove_dir_all(&self.root);
        }
    }
}

/// Kills the mount when the test takes too long: then its system calls fail, and so does it.
fn watch(name: &str, after: Duration, mount_pid: Arc<AtomicU32>) -> mpsc::Sender<()> {
    let (alive, gone) = mpsc::channel();
    let name = name.to_owned();
    thread::spawn(move || {
        if gone.recv_timeout(after) == Err(mpsc::RecvTimeoutError::Timeout) {
            eprintln!("watchdog: {name} takes longer than {after:?}; killing its mount");
            let pid = i32::try_from(mount_pid.load(Ordering::SeqCst)).ok();
            if let Some(pid) = pid.filter(|p| *p > 0).and_then(Pid::from_raw) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
    });
    alive
}

/// Ports that nobody listens on, below the range the kernel gives to clients.
///
/// # Panics
/// When there are not that many.
#[must_use]
pub fn free_ports(count: usize) -> Vec<u16> {
    let mut random = Random::new(u64::from(std::process::id()) ^ clock());
    let mut found = BTreeSet::new();
    for _ in 0..count * 1000 {
        if found.len() == count {
            break;
        }
        let port = 12_000 + u16::try_from(random.below(18_000)).unwrap_or(0);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            found.insert(port);
        }
    }
    assert_eq!(found.len(), count, "not enough free ports on 127.0.0.1");
    found.into_iter().collect()
}

fn clock() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |d| u64::from(d.subsec_nanos()))
}

/// Waits for a condition of the mount, for tests.
pub fn eventually(within: Duration, what: &str, done: impl FnMut() -> bool) {
    until(within, what, done);
}
