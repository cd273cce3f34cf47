//! A bank returns empty, stale, or after having missed deletes: it becomes equal again, and nothing
//! that applications see changes.

use crate::REPAIR_MAX;
use cluster::load::{check_file, make_file};
use cluster::tree::{Manifest, generate};
use cluster::{Bank, Cluster, Random, Setup};
use std::fs;

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
