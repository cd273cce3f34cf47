//! One bank may die or hang at any moment: applications notice nothing.

use crate::{REPAIR_MAX, STALL_MAX};
use cluster::load::{Load, check_file, make_file};
use cluster::tree::{Manifest, generate, pack, unpack};
use cluster::{Bank, Cluster, Random, Setup, until};
use std::fs;
use std::time::{Duration, Instant};

/// 200 MB in chunks of 64 KiB.
const BIG: u64 = 3200;
/// 16 MiB for the reader.
const SMALL: u64 = 256;

/// Keeps a 200 MB writer, a checking reader and a saver of small files busy; breaks something when a
/// third is written, mends it when two thirds are; then everything must be whole.
fn under_load(
    name: &str,
    seconds: u64,
    break_it: impl FnOnce(&mut Cluster),
    mend_it: impl FnOnce(&mut Cluster),
) {
    let mut cluster = Cluster::start(name, Setup::default());
    make_file(&cluster.path("old"), 1, SMALL);
    fs::create_dir(cluster.path("saved")).expect("mkdir");
    let writer = Load::write_file(cluster.path("new"), 2, BIG, Duration::from_secs(seconds));
    let reader = Load::read_file(cluster.path("old"), 1, SMALL);
    let saver = Load::small_files(cluster.path("saved"));
    let reach = |share: u64| {
        until(Duration::from_secs(90), "the writer goes on", || {
            writer.progress() > BIG * share / 3 || writer.is_finished()
        });
    };
    reach(1);
    break_it(&mut cluster);
    reach(2);
    mend_it(&mut cluster);
    writer.finish().assert_unharmed("writer", STALL_MAX);
    reader.stop().assert_unharmed("reader", STALL_MAX);
    saver.stop().assert_unharmed("saver", STALL_MAX);
    cluster.await_whole(REPAIR_MAX);
    cluster.remount();
    check_file(&cluster.path("new"), 2, BIG);
    check_file(&cluster.path("old"), 1, SMALL);
}

#[test]
fn a_node_is_killed_under_load_and_returns() {
    under_load("kill-node", 8, |c| c.node(Bank::B, 1).kill(), |c| c.node(Bank::B, 1).start());
}

#[test]
fn a_bank_is_killed_under_load_and_returns() {
    under_load("kill-bank", 8, |c| c.kill(Bank::A), |c| c.start_bank(Bank::A));
}

#[test]
fn a_node_hangs_under_load_and_goes_on() {
    under_load("hang-node", 10, |c| c.node(Bank::A, 0).pause(), |c| c.node(Bank::A, 0).resume());
}

#[test]
fn a_bank_hangs_under_load_and_goes_on() {
    under_load("hang-bank", 10, |c| c.pause(Bank::C), |c| c.resume(Bank::C));
}

#[test]
fn every_node_in_turn_dies_while_work_goes_on() {
    let mut cluster = Cluster::start("in-turn", Setup::default());
    fs::create_dir(cluster.path("saved")).expect("mkdir");
    let saver = Load::small_files(cluster.path("saved"));
    for bank in Bank::ALL {
        for shard in 0..cluster.setup.shards {
            let before = saver.progress();
            cluster.node(bank, shard).kill();
            until(Duration::from_secs(20), "work goes on", || saver.progress() > before + 20);
            cluster.node(bank, shard).start();
            cluster.await_healthy(REPAIR_MAX);
        }
    }
    saver.stop().assert_unharmed("saver", STALL_MAX);
    cluster.await_whole(REPAIR_MAX);
}

#[test]
fn a_tree_is_unpacked_while_a_bank_dies() {
    let mut cluster = Cluster::start("untar", Setup::default());
    let outside = cluster.root.join("outside");
    generate(&outside, 3000, &mut Random::from_env("untar"));
    let want = Manifest::of(&outside).expect("the generated tree");
    pack(&outside, &cluster.root.join("tree.tar"));
    let into = cluster.path("tree");
    fs::create_dir(&into).expect("mkdir");
    let mut tar = unpack(&cluster.root.join("tree.tar"), &into).spawn().expect("tar");
    until(Duration::from_secs(30), "tar has begun", || {
        fs::read_dir(&into).is_ok_and(|mut d| d.next().is_some())
            || matches!(tar.try_wait(), Ok(Some(_)))
    });
    cluster.kill(Bank::B);
    let mut status = None;
    until(Duration::from_secs(90), "tar ends", || {
        status = tar.try_wait().expect("wait");
        status.is_some()
    });
    assert!(status.is_some_and(|s| s.success()), "tar ended with {status:?}");
    want.assert_same(&Manifest::of(&into).expect("walk"), "with a bank dead");
    cluster.start_bank(Bank::B);
    cluster.await_whole(REPAIR_MAX);
    cluster.remount();
    // Now without another bank: what B missed must be there.
    cluster.kill(Bank::A);
    want.assert_same(
        &Manifest::of(&into).expect("walk"),
        "after a remount, with another bank dead",
    );
}

#[test]
fn once_a_bank_is_known_to_be_away_it_costs_nothing() {
    let mut cluster = Cluster::start("away", Setup::default());
    let save = |cluster: &Cluster, n: u32| {
        let began = Instant::now();
        let file = fs::File::create(cluster.path(format!("f{n}"))).expect("create");
        file.sync_all().expect("fsync");
        began.elapsed()
    };
    cluster.pause(Bank::B);
    save(&cluster, 0);
    std::thread::sleep(Duration::from_secs(4));
    let mut times: Vec<Duration> = (1..200).map(|n| save(&cluster, n)).collect();
    times.sort();
    println!("create + fsync with a hung bank: median {:?}, longest {:?}", times[100], times[198]);
    assert!(times[100] < Duration::from_millis(200), "median {:?}", times[100]);
    assert!(times[198] < STALL_MAX, "longest {:?}", times[198]);
    cluster.resume(Bank::B);
    cluster.await_whole(REPAIR_MAX);
}

#[test]
fn two_banks_gone_is_a_bounded_error_and_work_resumes_by_itself() {
    let mut cluster = Cluster::start("two-gone", Setup::default());
    fs::write(cluster.path("before"), "before").expect("write");
    fs::File::open(cluster.path("before")).and_then(|f| f.sync_all()).expect("fsync");
    cluster.kill(Bank::A);
    cluster.kill(Bank::B);
    let began = Instant::now();
    let result = fs::File::create(cluster.path("during")).and_then(|f| f.sync_all());
    let took = began.elapsed();
    println!("a sync without two banks: {result:?} after {took:?}");
    let errno = result.expect_err("one bank cannot make anything durable").raw_os_error();
    assert!(errno == Some(5) || errno == Some(30), "EIO or EROFS, not {errno:?}");
    assert!(took < Duration::from_secs(40), "the error took {took:?}");
    cluster.start_bank(Bank::A);
    until(Duration::from_secs(30), "work resumes by itself", || {
        fs::File::create(cluster.path("after")).and_then(|f| f.sync_all()).is_ok()
    });
    assert_eq!(fs::read_to_string(cluster.path("before")).expect("read"), "before");
    cluster.start_bank(Bank::B);
    cluster.await_whole(REPAIR_MAX);
    cluster.remount();
    assert_eq!(fs::read_to_string(cluster.path("before")).expect("read"), "before");
    assert!(cluster.path("after").exists());
}
