//! Processes that run out of what the machine gives them.

use crate::REPAIR_MAX;
use cluster::load::{CHUNK, Load, check_file};
use cluster::random::block;
use cluster::{Bank, Cluster, Setup};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use std::fs::File;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::FileExt;
use std::time::Duration;

const FEW: u64 = 64;

/// Strangers' connections, far more than there are descriptors, take nothing from the log and from those
/// who have the token.
#[test]
fn a_node_with_few_descriptors_serves_on_among_hundreds_of_connections() {
    let mut cluster = Cluster::start("few", Setup { shards: 1, ..Setup::no_refresh() });
    let node = cluster.node(Bank::B, 0);
    node.stop();
    node.open_files_max = Some(FEW);
    node.start();
    let address = SocketAddr::from(([127, 0, 0, 1], node.port));
    let (pid, log) = (node.pid(), node.log().to_path_buf());
    cluster.await_healthy(REPAIR_MAX);
    let strangers: Vec<_> = (0..300)
        .filter_map(|_| TcpStream::connect_timeout(&address, Duration::from_secs(1)).ok())
        .collect();
    assert!(strangers.len() as u64 > FEW, "only {} connections were made", strangers.len());
    let chunks = (96 << 20) / CHUNK as u64;
    let load = Load::write_file(cluster.path("f"), 5, chunks, Duration::from_secs(3));
    load.finish().assert_unharmed("few descriptors", crate::STALL_MAX);
    drop(strangers);
    cluster.await_equal(REPAIR_MAX);
    let node = cluster.node(Bank::B, 0);
    assert!(node.is_running() && node.pid() == pid, "it is the same process");
    let said = std::fs::read_to_string(log).expect("its log");
    assert!(said.contains("only 64 open files are allowed"), "{said}");
    assert!(!said.contains("does not vote"), "{said}");
    cluster.remount();
    check_file(&cluster.path("f"), 5, chunks);
}

/// A mount that can open nothing any more goes on with the connections it has; a bank that it cannot
/// reach for want of a descriptor is one that is away, and catches up once there are descriptors again.
#[test]
fn a_mount_without_descriptors_goes_on_and_heals_once_it_has_some() {
    let mut cluster = Cluster::start("fds", Setup { shards: 1, ..Setup::no_refresh() });
    let file = File::create(cluster.path("f")).expect("create");
    let write = |n: u64| {
        file.write_all_at(&block(6, n, CHUNK), n * CHUNK as u64).and_then(|()| file.sync_data())
    };
    for n in 0..50 {
        write(n).expect("a write and a sync");
    }
    let pid = cluster.mounted().pid().and_then(|p| Pid::from_raw(p.cast_signed()));
    let maximum = getrlimit(Resource::Nofile).maximum;
    let before = prlimit(pid, Resource::Nofile, Rlimit { current: Some(3), maximum })
        .expect("a limit for the mount");
    cluster.kill(Bank::B);
    cluster.start_bank(Bank::B);
    for n in 50..150 {
        write(n).unwrap_or_else(|e| panic!("block {n}, without a descriptor to spare: {e}"));
    }
    prlimit(pid, Resource::Nofile, before).expect("the limit of before");
    cluster.await_healthy(REPAIR_MAX);
    write(150).expect("a write and a sync");
    drop(file);
    cluster.await_equal(REPAIR_MAX);
    cluster.remount();
    check_file(&cluster.path("f"), 6, 151);
}
