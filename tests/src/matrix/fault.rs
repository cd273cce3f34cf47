//! The faults: how each strikes, and how it ends.

use crate::cluster::{Bank, Cluster};
use crate::disk::NodeDisk;
use crate::node::Node;
use crate::proxy::Net;
use crate::random::Random;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Duration;

/// What goes wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// SIGKILL of a bank.
    Dead,
    /// SIGSTOP of a bank.
    Hung,
    /// Every reply of a bank waits 300 ms.
    Slow,
    /// A bank is killed and returns with empty directories.
    Empty,
    /// A bank is killed and returns with a copy from before the load.
    Stale,
    /// A node is killed and returns with a copy of itself from half a second ago, taken as it ran.
    RolledBack,
    /// A bank is killed; three bits flip in each file of its logs; it returns.
    FlippedLog,
    /// The same in the files from which the index is built.
    FlippedIndex,
    /// The same in the files that hold identity and promise.
    FlippedState,
    /// A bank is killed; the end of each log is torn off at any byte of its last 2 KiB; it returns.
    TornTail,
    /// Somebody else fills the disks of a bank.
    DiskFull,
    /// The disks of a bank answer EIO to everything, and forget what was not synced.
    DiskErrors,
    /// Nothing gets through between the mount and a bank, in either direction.
    Partition,
    /// Between the mount and *all* nodes, requests are late, repeated, and overtake each other.
    Repeated,
    /// SIGKILL of one node.
    NodeKilled,
    /// SIGKILL of the mount.
    MountKilled,
    /// SIGKILL of everything.
    AllKilled,
    /// All disks lose what was not synced, and everything is killed.
    PowerLoss,
}

/// What a fault did that the table should say.
pub(super) type Note = Option<&'static str>;

impl Fault {
    /// All of them.
    pub const ALL: [Self; 18] = [
        Self::Dead,
        Self::Hung,
        Self::Slow,
        Self::Empty,
        Self::Stale,
        Self::RolledBack,
        Self::FlippedLog,
        Self::FlippedIndex,
        Self::FlippedState,
        Self::TornTail,
        Self::DiskFull,
        Self::DiskErrors,
        Self::Partition,
        Self::Repeated,
        Self::NodeKilled,
        Self::MountKilled,
        Self::AllKilled,
        Self::PowerLoss,
    ];

    /// For people.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Dead => "dead bank",
            Self::Hung => "hung bank",
            Self::Slow => "slow bank",
            Self::Empty => "empty bank",
            Self::Stale => "stale bank",
            Self::RolledBack => "rolled back node",
            Self::FlippedLog => "bit flips in logs",
            Self::FlippedIndex => "bit flips in indexes",
            Self::FlippedState => "bit flips in states",
            Self::TornTail => "torn log tails",
            Self::DiskFull => "full disks",
            Self::DiskErrors => "disk errors",
            Self::Partition => "partition",
            Self::Repeated => "repeated messages",
            Self::NodeKilled => "node killed",
            Self::MountKilled => "mount killed",
            Self::AllKilled => "all killed",
            Self::PowerLoss => "power loss",
        }
    }

    /// Each node needs a disk of its own of so many bytes. A disk on which not even one segment can be
    /// reserved is full soon after somebody filled it up.
    #[must_use]
    pub const fn disk_bytes(self) -> Option<u64> {
        match self {
            Self::DiskFull => Some(66 << 20),
            Self::DiskErrors | Self::PowerLoss => Some(512 << 20),
            _ => None,
        }
    }

    /// There must be a network that can fail.
    #[must_use]
    pub const fn relays(self) -> bool {
        matches!(self, Self::Partition | Self::Repeated)
    }

    /// Applications on the mount die with it.
    #[must_use]
    pub const fn kills_mount(self) -> bool {
        matches!(self, Self::MountKilled | Self::AllKilled | Self::PowerLoss)
    }

    /// Records are damaged of which nobody knows until they are read: by an application, or by a scrub.
    #[must_use]
    pub const fn leaves_rot(self) -> bool {
        matches!(self, Self::FlippedLog | Self::FlippedIndex | Self::FlippedState | Self::TornTail)
    }

    /// How long it lasts. What returns at once needs no time.
    #[must_use]
    pub const fn lasts(self) -> Duration {
        match self {
            Self::Empty
            | Self::Stale
            | Self::RolledBack
            | Self::FlippedLog
            | Self::FlippedIndex
            | Self::FlippedState
            | Self::TornTail => Duration::ZERO,
            Self::MountKilled | Self::AllKilled | Self::PowerLoss => Duration::from_millis(200),
            // What gives no answer is found out by its silence, and that takes longest.
            Self::Hung | Self::Partition => Duration::from_secs(6),
            _ => Duration::from_millis(1500),
        }
    }

    /// Before the load begins.
    pub fn prepare(self, cluster: &mut Cluster, bank: Bank) {
        match self {
            Self::Stale => cluster.bank(bank).iter_mut().for_each(Node::snapshot_running),
            // A node in good order writes the index of what it holds when it ends.
            Self::FlippedIndex => {
                cluster.bank(bank).iter_mut().for_each(Node::stop);
                cluster.start_bank(bank);
                for node in cluster.bank(bank) {
                    crate::until(crate::node::NODE_PATIENCE, "an index is written", || {
                        !files(node, ".idx").is_empty()
                    });
                }
            }
            _ => {}
        }
    }

    /// Half a second before it strikes.
    pub fn announce(self, cluster: &mut Cluster, bank: Bank, shard: usize) {
        if self == Self::RolledBack {
            cluster.node(bank, shard).snapshot_running();
        }
    }

    /// It strikes. Surgery on a killed node is part of that: it returns by itself.
    pub fn strike(
        self,
        cluster: &mut Cluster,
        bank: Bank,
        shard: usize,
        random: &mut Random,
    ) -> Note {
        match self {
            Self::Dead => cluster.kill(bank),
            Self::Hung => cluster.pause(bank),
            Self::Slow => delay(cluster, bank, "300"),
            Self::NodeKilled => cluster.node(bank, shard).kill(),
            Self::MountKilled => cluster.kill_mount(),
            Self::AllKilled => kill_all(cluster, random),
            Self::PowerLoss => {
                NodeDisk::fail(cluster.nodes().iter().flatten().filter_map(|n| n.disk.as_ref()));
                kill_all(cluster, random);
            }
            Self::DiskFull => disks(cluster, bank).for_each(NodeDisk::fill),
            Self::DiskErrors => NodeDisk::fail(disks(cluster, bank)),
            Self::Partition => net(&cluster.nodes()[bank as usize], Net::Cut),
            Self::Repeated => cluster.nodes().iter().for_each(|b| net(b, Net::Repeating)),
            Self::Empty | Self::Stale => {
                cluster.kill(bank);
                let change = if self == Self::Empty { Node::wipe } else { Node::restore };
                cluster.bank(bank).iter_mut().for_each(change);
                cluster.start_bank(bank);
            }
            Self::RolledBack => {
                let node = cluster.node(bank, shard);
                node.kill();
                node.restore();
                node.start();
            }
            Self::FlippedLog | Self::FlippedIndex | Self::FlippedState | Self::TornTail => {
                cluster.kill(bank);
                for node in cluster.bank(bank) {
                    self.operate(node, random);
                }
                return start_or_replace(cluster, bank);
            }
        }
        None
    }

    fn operate(self, node: &Node, random: &mut Random) {
        let named = |what: &str| files(node, what);
        match self {
            Self::FlippedLog => named(".seg").iter().for_each(|f| flip(f, random)),
            Self::FlippedIndex => {
                // One that is being refilled has none yet.
                named(".idx").iter().for_each(|f| flip(f, random));
            }
            Self::FlippedState => named("state.").iter().for_each(|f| flip(f, random)),
            _ => {
                let written = |f: &&PathBuf| used(&fs::read(f).expect("read")) > 64;
                if let Some(last) = named(".seg").iter().rfind(written) {
                    tear(last, random);
                }
            }
        }
    }

    /// It ends.
    pub fn end(self, cluster: &mut Cluster, bank: Bank, shard: usize) {
        match self {
            Self::Dead => cluster.start_bank(bank),
            Self::Hung => cluster.resume(bank),
            Self::Slow => delay(cluster, bank, "0"),
            Self::NodeKilled => cluster.node(bank, shard).start(),
            Self::MountKilled => {}
            Self::AllKilled => Bank::ALL.into_iter().for_each(|b| cluster.start_bank(b)),
            Self::PowerLoss => {
                cluster
                    .nodes()
                    .iter()
                    .flatten()
                    .filter_map(|n| n.disk.as_ref())
                    .for_each(NodeDisk::replug);
                Bank::ALL.into_iter().for_each(|b| cluster.start_bank(b));
            }
            Self::DiskFull => disks(cluster, bank).for_each(NodeDisk::unfill),
            Self::DiskErrors => {
                cluster.kill(bank);
                disks(cluster, bank).for_each(NodeDisk::replug);
                cluster.start_bank(bank);
            }
            Self::Partition => net(&cluster.nodes()[bank as usize], Net::Good),
            Self::Repeated => cluster.nodes().iter().for_each(|b| net(b, Net::Good)),
            Self::Empty
            | Self::Stale
            | Self::RolledBack
            | Self::FlippedLog
            | Self::FlippedIndex
            | Self::FlippedState
            | Self::TornTail => {}
        }
    }
}

fn kill_all(cluster: &mut Cluster, random: &mut Random) {
    if random.below(2) == 0 {
        cluster.kill_mount();
    }
    let first = usize::try_from(random.below(3)).unwrap_or(0);
    (0..3).for_each(|k| cluster.kill(Bank::ALL[(first + k) % 3]));
    cluster.kill_mount();
}

fn delay(cluster: &Cluster, bank: Bank, millis: &str) {
    cluster.nodes()[bank as usize].iter().for_each(|n| n.ask(&["delay", millis]).assert_ok());
}

fn disks(cluster: &Cluster, bank: Bank) -> impl Iterator<Item = &NodeDisk> {
    cluster.nodes()[bank as usize].iter().filter_map(|n| n.disk.as_ref())
}

fn net(bank: &[Node], net: Net) {
    bank.iter().filter_map(|n| n.relay.as_ref()).for_each(|r| r.set(net));
}

/// Starts a bank. A node that refuses its damaged directory gets an empty one, as an operator would do.
fn start_or_replace(cluster: &mut Cluster, bank: Bank) -> Note {
    let mut note = None;
    for node in cluster.bank(bank) {
        node.spawn();
        let mut runs = true;
        crate::until(crate::node::NODE_PATIENCE, "the node answers or refuses", || {
            runs = node.is_running();
            !runs || node.ask(&["status", "--json"]).ok()
        });
        if !runs {
            node.wipe();
            node.start();
            note = Some("replaced");
        }
    }
    note
}

/// Files of a node whose name has `what` in it, in order.
fn files(node: &Node, what: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(&node.dir).expect("the node's directory").flatten();
    let mut all: Vec<PathBuf> = entries.map(|e| e.path()).collect();
    all.retain(|p| p.file_name().is_some_and(|n| n.to_string_lossy().contains(what)));
    all.sort();
    all
}

/// What was allocated and not yet written is zeros: damage there is damage to nothing.
fn used(bytes: &[u8]) -> usize {
    bytes.iter().rposition(|b| *b != 0).map_or(0, |p| p + 1)
}

fn flip(file: &PathBuf, random: &mut Random) {
    let bytes = fs::read(file).expect("read");
    let used = used(&bytes) as u64;
    let open = File::options().write(true).open(file).expect("open");
    for _ in 0..3 {
        if used > 0 {
            let at = random.below(used);
            let byte = bytes[usize::try_from(at).unwrap_or(0)] ^ (1 << random.below(8));
            open.write_all_at(&[byte], at).expect("write");
        }
    }
}

fn tear(file: &PathBuf, random: &mut Random) {
    let bytes = fs::read(file).expect("read");
    let end = used(&bytes) as u64;
    let at = end - random.below(2048.min(end));
    // Not before the head of the file: it is durable before anything is acknowledged.
    let at = at.max(64);
    let open = File::options().write(true).open(file).expect("open");
    let zeros = vec![0; usize::try_from(end.saturating_sub(at)).unwrap_or(0)];
    open.write_all_at(&zeros, at).expect("write");
}
