//! A bank returns empty, stale, or after having missed deletes: it becomes equal again, and nothing
//! that applications see changes.

use crate::REPAIR_MAX;
use cluster::load::{check_file, make_file};
use cluster::process::{run, until};
use cluster::reference::{mkfs_ext4, mount_loop};
use cluster::tree::{Manifest, generate};
use cluster::{Bank, Cluster, Node, Random, Setup};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// A volume with a small tree and a file of 4 MiB.
fn furnished(name: &str, setup: Setup) -> Cluster {
    let cluster = Cluster::start(name, setup);
    generate(&cluster.path("tree"), 200, &mut Random::from_env(name));
    make_file(&cluster.path("big"), 3, 64);
    fs::File::open(cluster.mountpoint()).and_then(|d| d.sync_all()).expect("fsync");
    cluster
}

fn walk(cluster: &Cluster) -> Manifest {
    Manifest::exact(&cluster.mountpoint()).expect("walk")
}

#[test]
fn a_bank_that_returns_empty_is_refilled() {
    let mut cluster = furnished("empty", Setup::default());
    let before = walk(&cluster);
    for bank in Bank::ALL {
        cluster.kill(bank);
        cluster.wipe(bank);
        cluster.start_bank(bank);
        before.assert_same(&walk(&cluster), "while it is refilled");
        cluster.await_whole(REPAIR_MAX);
    }
    cluster.remount();
    before.assert_same(
        &walk(&cluster),
        "inode numbers, times and bytes after all banks were replaced in turn",
    );
    check_file(&cluster.path("big"), 3, 64);
}

#[test]
fn a_node_emptied_while_the_mount_is_away_is_refilled_after_mounting() {
    let mut cluster = furnished("empty-unmounted", Setup::default());
    let before = walk(&cluster);
    cluster.unmount();
    cluster.node(Bank::C, 1).kill();
    cluster.node(Bank::C, 1).wipe();
    cluster.node(Bank::C, 1).start();
    cluster.mount();
    before.assert_same(&walk(&cluster), "with one empty node");
    cluster.await_whole(REPAIR_MAX);
}

#[test]
fn a_bank_that_is_refilled_while_it_is_written_becomes_equal() {
    let mut cluster = furnished("busy-refill", Setup::default());
    fs::create_dir(cluster.path("saved")).expect("mkdir");
    let saver = cluster::load::Load::small_files(cluster.path("saved"));
    cluster.kill(Bank::B);
    cluster.wipe(Bank::B);
    cluster.start_bank(Bank::B);
    cluster.await_healthy(REPAIR_MAX);
    saver.stop().assert_unharmed("saver", crate::STALL_MAX);
    cluster.await_whole(REPAIR_MAX);
}

#[test]
fn a_bank_with_an_old_copy_put_back_catches_up_or_is_refilled() {
    let mut cluster = furnished("stale", Setup::default());
    cluster.unmount();
    for bank in Bank::ALL {
        cluster.bank(bank).iter_mut().for_each(|n| {
            n.stop();
            n.snapshot();
        });
    }
    Bank::ALL.into_iter().for_each(|b| cluster.start_bank(b));
    cluster.mount();
    fs::write(cluster.path("tree/new"), "written after the copy").expect("write");
    fs::remove_file(cluster.path("big")).expect("unlink");
    make_file(&cluster.path("big2"), 4, 64);
    let before = walk(&cluster);
    // While mounted: bank A is rolled back under the mount's feet.
    cluster.kill(Bank::A);
    cluster.bank(Bank::A).iter_mut().for_each(cluster::Node::restore);
    cluster.start_bank(Bank::A);
    before.assert_same(&walk(&cluster), "with bank A rolled back");
    cluster.await_whole(REPAIR_MAX);
    // While unmounted: bank B.
    cluster.unmount();
    cluster.kill(Bank::B);
    cluster.bank(Bank::B).iter_mut().for_each(cluster::Node::restore);
    cluster.start_bank(Bank::B);
    cluster.mount();
    before.assert_same(&walk(&cluster), "with bank B rolled back before mounting");
    cluster.await_whole(REPAIR_MAX);
    before.assert_same(&walk(&cluster), "at the end");
}

#[test]
fn what_was_deleted_stays_deleted_when_a_bank_returns() {
    let mut cluster = furnished("deletes", Setup::default());
    cluster.kill(Bank::C);
    fs::remove_dir_all(cluster.path("tree")).expect("rm -r");
    fs::rename(cluster.path("big"), cluster.path("renamed")).expect("rename");
    fs::create_dir(cluster.path("tree")).expect("mkdir");
    fs::write(cluster.path("tree/other"), "x").expect("write");
    let before = walk(&cluster);
    cluster.remount(); // with C away
    before.assert_same(&walk(&cluster), "while bank C is away");
    cluster.start_bank(Bank::C);
    cluster.await_whole(REPAIR_MAX);
    before.assert_same(&walk(&cluster), "after bank C returned");
    // Now C must carry it with either of the others.
    cluster.remount();
    for dead in [Bank::A, Bank::B] {
        cluster.kill(dead);
        before.assert_same(&walk(&cluster), "with bank C as one of the two");
        cluster.start_bank(dead);
        cluster.await_healthy(REPAIR_MAX);
    }
    cluster.await_whole(REPAIR_MAX);
}

/// The others forget what was deleted meanwhile, `status` says so, and it is filled anew by itself.
#[test]
fn a_bank_that_is_away_too_long_is_struck_out_and_filled_anew() {
    let setup = Setup {
        limits: "tombstones_max = 100\nstrike_after_ms = 1000\nreplay_bytes = 1024\n".into(),
        ..Setup::default()
    };
    let mut cluster = furnished("struck", setup);
    let stores: Vec<Value> =
        (0..2).map(|s| told(&cluster, Bank::B, s)["node"]["store"].clone()).collect();
    cluster.kill(Bank::B);
    fs::remove_dir_all(cluster.path("tree")).expect("rm -r");
    fs::File::open(cluster.mountpoint()).and_then(|d| d.sync_all()).expect("fsync");
    for shard in 0..2 {
        until(REPAIR_MAX, "status says that it is struck out", || {
            told(&cluster, Bank::B, shard)["struck_out"] == true
        });
        let mut n = 0;
        until(REPAIR_MAX, "the others forget what was deleted", || {
            // Directories lie on all shards.
            fs::create_dir(cluster.path(format!("new-{shard}-{n}"))).expect("mkdir");
            n += 1;
            fs::File::open(cluster.mountpoint()).and_then(|d| d.sync_all()).expect("fsync");
            let kept = |b| told(&cluster, b, shard)["node"]["space"]["tombstones"].as_u64();
            kept(Bank::A).is_some_and(|n| n < 50) && kept(Bank::C).is_some_and(|n| n < 50)
        });
    }
    let said = cluster.tercet(&["status"]).expect_ok();
    assert!(said.contains("struck out, will be filled anew"), "{said}");
    let before = walk(&cluster);
    cluster.start_bank(Bank::B);
    cluster.await_whole(REPAIR_MAX);
    for (shard, old) in stores.iter().enumerate() {
        let now = &told(&cluster, Bank::B, shard)["node"]["store"];
        assert_ne!(now, old, "shard {shard} kept its store id");
    }
    cluster.kill(Bank::A);
    before.assert_same(&walk(&cluster), "with the bank that was filled anew as one of the two");
    cluster.start_bank(Bank::A);
    cluster.await_healthy(REPAIR_MAX);
}

/// Copies so slowly, in pieces so small, that a copy can be caught in the middle.
fn slow() -> Setup {
    let limits = "copy_page_bytes = 16384\nrefill_bytes_per_s = 65536\n".to_owned();
    Setup { limits, ..Setup::default() }
}

/// What `tercet status` says of a replica's node.
fn told(cluster: &Cluster, bank: Bank, shard: usize) -> Value {
    let replicas = &cluster.status()["cluster"]["replicas"];
    replicas[shard * 3 + bank as usize].clone()
}

/// The stores are the same, and the last mount says that it went on with them.
fn went_on(cluster: &Cluster, bank: Bank, stores: &[Value]) {
    let log = fs::read_to_string(cluster.root.join("run/mount.log")).expect("the mount's log");
    let says = log.matches("goes on where it was interrupted").count();
    assert!(says >= stores.len(), "{says} copies went on:\n{log}");
    for (shard, store) in stores.iter().enumerate() {
        let row = told(cluster, bank, shard);
        assert_eq!(row["node"]["store"], *store, "shard {shard} was begun anew");
    }
}

/// Waits until a copy to both nodes of a bank is under way, and shows it; the ids of their stores.
fn caught_in_the_middle(cluster: &Cluster, bank: Bank) -> Vec<Value> {
    (0..2)
        .map(|shard| {
            let mut seen = None;
            let mut row = Value::Null;
            let began = Instant::now();
            until(Duration::MAX, "a copy is under way", || {
                assert!(began.elapsed() < REPAIR_MAX, "shard {shard}: no copy was caught: {row}");
                row = told(cluster, bank, shard);
                let after = row["node"]["cursor"]["after"].as_array().map_or(0, Vec::len);
                let copied = row["copied"]["records"].as_u64().unwrap_or(0);
                let of = row["copied"]["of_records"].as_u64().unwrap_or(0);
                let ms = row["copied"]["ms"].as_u64().unwrap_or(0);
                seen = Some(row["node"]["store"].clone());
                after > 0 && copied >= 8 && copied < of && ms >= 1_000
            });
            let said = cluster.tercet(&["status"]).expect_ok();
            assert!(said.contains(" copied, ") && said.contains(" left"), "no progress:\n{said}");
            seen.expect("looked at least once")
        })
        .collect()
}

#[test]
fn a_refill_goes_on_after_the_mount_and_the_node_were_killed() {
    let mut cluster = furnished("resumed-refill", slow());
    cluster.kill(Bank::B);
    cluster.wipe(Bank::B);
    cluster.start_bank(Bank::B);
    let first = caught_in_the_middle(&cluster, Bank::B);
    // Written after its range was copied: its part is in a tail that the next mount makes void.
    for n in 0..20 {
        fs::write(cluster.path(format!("later{n}")), vec![7; 30_000]).expect("write");
    }
    fs::remove_dir_all(cluster.path("tree")).expect("rm -r");
    fs::File::open(cluster.mountpoint()).and_then(|d| d.sync_all()).expect("fsync");
    cluster.kill_mount();
    cluster.bank(Bank::B).iter_mut().for_each(Node::kill);
    cluster.start_bank(Bank::B);
    cluster.mount_with(&["--refill-rate", "1000"]);
    cluster.await_healthy(REPAIR_MAX);
    went_on(&cluster, Bank::B, &first);
    cluster.await_whole(REPAIR_MAX);
    // Any two banks hold everything, what was written in between and what was removed included.
    cluster.kill(Bank::A);
    cluster.remount();
    check_file(&cluster.path("big"), 3, 64);
    for n in 0..20 {
        assert_eq!(fs::read(cluster.path(format!("later{n}"))).expect("read"), vec![7; 30_000]);
    }
    assert!(!cluster.path("tree").exists());
}

#[test]
fn a_catch_up_goes_on_after_the_mount_was_killed() {
    let mut cluster = furnished("resumed-delta", slow());
    cluster.kill(Bank::C);
    // A file lies on the shard of its directory, and directories take the shards in turn.
    for n in 0..8 {
        fs::create_dir(cluster.path(format!("missed{n}"))).expect("mkdir");
        make_file(&cluster.path(format!("missed{n}/file")), n, 16);
    }
    fs::remove_file(cluster.path("big")).expect("unlink");
    // A mount that has no parts to send again copies.
    cluster.remount();
    cluster.start_bank(Bank::C);
    let first = caught_in_the_middle(&cluster, Bank::C);
    for n in 0..20 {
        fs::write(cluster.path(format!("later{n}")), vec![9; 30_000]).expect("write");
    }
    fs::File::open(cluster.mountpoint()).and_then(|d| d.sync_all()).expect("fsync");
    cluster.kill_mount();
    cluster.mount_with(&["--refill-rate", "1000"]);
    cluster.await_whole(REPAIR_MAX);
    went_on(&cluster, Bank::C, &first);
    for n in 0..8 {
        check_file(&cluster.path(format!("missed{n}/file")), n, 16);
    }
    cluster.tercet(&["check"]).assert_ok();
}

/// A disk that promises more than it has, as a thinly provisioned one does: writes beyond that are
/// answered with an I/O error.
struct BrokenDisk(std::path::PathBuf);

impl BrokenDisk {
    fn under(dir: &Path, root: &Path, bytes: u64) -> Self {
        let store = root.join("thin");
        fs::create_dir_all(&store).expect("mkdir");
        let size = format!("size={bytes}");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &size, "thin"]).arg(&store);
        run(&mut mount, Duration::from_secs(20)).assert_ok();
        let image = store.join("disk");
        fs::File::create(&image).and_then(|f| f.set_len(512 << 20)).expect("an image");
        mkfs_ext4(&image);
        fs::create_dir_all(dir).expect("mkdir");
        mount_loop(&image, dir);
        Self(store)
    }

    fn remove(dir: &Path, store: &Path) {
        for at in [dir, store] {
            let _ = run(Command::new("umount").arg("-l").arg(at), Duration::from_secs(20));
        }
    }
}

#[test]
fn a_node_whose_disk_fails_stops_voting_says_so_and_is_replaced_by_one_command() {
    let setup = Setup { shards: 1, ..Setup::default() };
    let mut cluster = Cluster::prepare("broken-disk", setup);
    let config = fs::read_to_string(cluster.config()).expect("the configuration");
    let config = config.replace("[mount]\n", "[mount]\nauto_replace = false\n");
    fs::write(cluster.config(), config).expect("the configuration can be written");
    let dir = cluster.node(Bank::B, 0).dir.clone();
    let disk = BrokenDisk::under(&dir, &cluster.root.clone(), 40 << 20);
    Bank::ALL.into_iter().for_each(|b| cluster.start_bank(b));
    cluster.tercet(&["init"]).assert_ok();
    cluster.mount();
    // No error reaches the application. Small synced files: bulk data goes past the page cache, and this
    // disk then answers the write itself, with ENOSPC; that is a full disk, which is another test
    // (`space`). Here the error must come where nothing can be taken back: from fdatasync.
    for n in 0..384 {
        make_file(&cluster.path(format!("f{n}")), n, 4);
    }
    until(REPAIR_MAX, "the node stops voting", || {
        let row = told(&cluster, Bank::B, 0);
        row["state"] == "down" && row["node"]["failed"].is_string()
    });
    let row = told(&cluster, Bank::B, 0);
    let why = row["why"].as_str().unwrap_or_default();
    assert!(why.contains("does not vote") || why.contains("failed"), "status says why: {row}");
    assert!(!cluster.tercet(&["status", "--check"]).ok(), "an alarm sees it");
    let log = fs::read_to_string(cluster.node(Bank::B, 0).log()).expect("the node's log");
    assert!(log.contains("does not vote"), "the node's log says it:\n{log}");
    // A new disk in its place, and one command.
    cluster.kill(Bank::B);
    BrokenDisk::remove(&dir, &disk.0);
    cluster.start_bank(Bank::B);
    until(REPAIR_MAX, "status names the command", || {
        told(&cluster, Bank::B, 0)["why"].as_str().is_some_and(|w| w.contains("tercet replace B"))
    });
    cluster.tercet(&["replace", "B"]).assert_ok();
    cluster.await_whole(REPAIR_MAX);
    (0..384).for_each(|n| check_file(&cluster.path(format!("f{n}")), n, 4));
}
