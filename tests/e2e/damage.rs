//! Copies that are there and wrong: never served, healed when touched, and without being touched.

use crate::REPAIR_MAX;
use cluster::load::{check_file, make_file};
use cluster::oracle::{Holdings, holdings};
use cluster::tree::{Manifest, generate};
use cluster::{Bank, Cluster, Node, Random, Setup, until};
use std::fs;
use std::path::Path;
use std::time::Duration;

fn furnished(name: &str, setup: Setup) -> Cluster {
    let cluster = Cluster::start(name, setup);
    generate(&cluster.path("tree"), 60, &mut Random::from_env(name));
    make_file(&cluster.path("big"), 3, 32);
    fs::File::open(cluster.mountpoint()).and_then(|d| d.sync_all()).expect("fsync");
    cluster.await_equal(REPAIR_MAX);
    cluster
}

fn walk(cluster: &Cluster) -> Manifest {
    Manifest::exact(&cluster.mountpoint()).expect("walk")
}

fn held(node: &Node) -> Holdings {
    holdings(node).expect("keys of a running node")
}

/// Flips a bit in the stored value of every record of a bank: data, inodes, names, the superblock.
fn corrupt_all(cluster: &mut Cluster, bank: Bank) -> usize {
    let mut count = 0;
    for node in cluster.bank(bank) {
        for key in held(node).keys() {
            node.ask(&["corrupt", key]).assert_ok();
            count += 1;
        }
        assert!(!node.ask(&["verify"]).ok(), "{node}: verify does not see what was corrupted");
    }
    println!("{count} records of bank {} corrupted", bank.letter());
    count
}

fn verifies(cluster: &mut Cluster, bank: Bank) -> bool {
    cluster.bank(bank).iter().all(cluster::Node::verifies)
}

#[test]
fn a_corrupt_bank_is_healed_by_access_alone_with_another_bank_dead() {
    let mut cluster = furnished("access", Setup::no_refresh());
    let before = walk(&cluster);
    cluster.unmount();
    corrupt_all(&mut cluster, Bank::B);
    // The original was lost here: one copy corrupt, one dead.
    cluster.kill(Bank::A);
    cluster.mount();
    before.assert_same(&walk(&cluster), "bank B corrupt, bank A dead");
    check_file(&cluster.path("big"), 3, 32);
    // What was read is checked on all banks behind the reader, at a pace: read on until it is whole.
    until(REPAIR_MAX, "reading healed what was read", || {
        verifies(&mut cluster, Bank::B) || {
            cluster.remount();
            before.assert_same(&walk(&cluster), "bank B partly healed, bank A dead");
            false
        }
    });
    cluster.start_bank(Bank::A);
    cluster.await_whole(REPAIR_MAX);
    before.assert_same(&walk(&cluster), "after the repair");
}

#[test]
fn a_corrupt_bank_is_healed_by_refresh_alone() {
    let mut cluster = furnished("refresh", Setup::fast_refresh());
    let before = walk(&cluster);
    for bank in Bank::ALL {
        corrupt_all(&mut cluster, bank);
        until(REPAIR_MAX, "the refresh healed the bank", || verifies(&mut cluster, bank));
        cluster.await_equal(REPAIR_MAX);
    }
    cluster.remount();
    before.assert_same(&walk(&cluster), "after all banks were corrupted and healed in turn");
}

#[test]
fn the_commands_refresh_and_scrub_heal_now() {
    let mut cluster = furnished("now", Setup::no_refresh());
    corrupt_all(&mut cluster, Bank::C);
    cluster.tercet(&["scrub"]).assert_ok();
    until(REPAIR_MAX, "scrub healed the bank", || verifies(&mut cluster, Bank::C));
    let node = cluster.node(Bank::C, 0);
    let lost: Vec<String> = held(node).into_keys().take(5).collect();
    for key in &lost {
        node.ask(&["drop", key]).assert_ok();
    }
    assert!(!cluster.compare_banks().is_empty(), "the oracle sees lost records");
    cluster.tercet(&["refresh"]).assert_ok();
    cluster.await_equal(REPAIR_MAX);
    // What was healed is not told of any more.
    let status = cluster.tercet(&["status"]).expect_ok();
    assert!(!status.contains("damaged;") && status.contains("allows faults"), "{status}");
    // Nor is "nothing wrong" said of a bank that nobody looked at.
    cluster.kill(Bank::B);
    until(REPAIR_MAX, "the mount knows that bank B is away", || {
        cluster.tercet(&["status"]).expect_ok().contains("redundancy 2")
    });
    for (command, says) in [("scrub", "could not be read"), ("refresh", "were left out")] {
        let said = cluster.tercet(&[command]);
        assert_eq!(said.status.and_then(|s| s.code()), Some(1), "{said}");
        assert!(said.stdout.contains(says), "{said}");
    }
}

#[test]
fn lost_and_foreign_records_are_mended_by_refresh_and_never_seen() {
    let mut cluster = furnished("foreign", Setup::fast_refresh());
    // A file that was deleted: its keys and values are exactly those of a real one.
    fs::write(cluster.path("ghost"), "boo").expect("write");
    fs::File::open(cluster.mountpoint()).and_then(|d| d.sync_all()).expect("fsync");
    cluster.await_equal(REPAIR_MAX);
    let with: Vec<Holdings> = cluster.bank(Bank::B).iter().map(held).collect();
    fs::remove_file(cluster.path("ghost")).expect("unlink");
    fs::File::open(cluster.mountpoint()).and_then(|d| d.sync_all()).expect("fsync");
    cluster.await_equal(REPAIR_MAX);
    let before = walk(&cluster);
    let mut put = 0;
    for (shard, with) in with.iter().enumerate() {
        let node = cluster.node(Bank::B, shard);
        let now = held(node);
        for key in with.keys().filter(|k| !now.contains_key(*k)) {
            node.ask(&["put", key, "CORRUPTED"]).assert_ok();
            put += 1;
        }
        node.ask(&["put", "ff00ff00ff00", "FOREIGN"]).assert_ok();
        let lost = now.keys().next().expect("a node holds something").clone();
        node.ask(&["drop", &lost]).assert_ok();
    }
    assert!(put > 0, "the deleted file had keys");
    assert!(!cluster.path("ghost").exists(), "a foreign record appears in the tree");
    cluster.await_equal(REPAIR_MAX);
    cluster.remount();
    assert!(
        !cluster.path("ghost").exists(),
        "a foreign record appears in the tree after a remount"
    );
    before.assert_same(&walk(&cluster), "with foreign and lost records on one bank");
}

#[test]
fn corrupted_under_a_files_key_and_under_the_root() {
    let mut cluster = furnished("s0-corrupt", Setup::no_refresh());
    let before = walk(&cluster);
    for path in ["big", ""] {
        let said =
            cluster.tercet(&["inspect", "--json", cluster.path(path).to_str().expect("UTF-8")]);
        let rows = inspected(&said.expect_ok());
        assert!(!rows.is_empty(), "inspect names the keys of {path:?}");
        for (shard, key) in rows {
            let node = cluster.node(Bank::A, shard);
            if held(node).contains_key(&key) {
                node.ask(&["put", &key, "CORRUPTED"]).assert_ok();
            }
        }
    }
    cluster.unmount(); // nothing stays in any cache
    cluster.kill(Bank::C);
    cluster.mount();
    before.assert_same(&walk(&cluster), "CORRUPTED on bank A, bank C dead");
    until(REPAIR_MAX, "reading healed what was read", || {
        verifies(&mut cluster, Bank::A) || {
            cluster.remount();
            before.assert_same(&walk(&cluster), "bank A partly healed, bank C dead");
            false
        }
    });
    cluster.start_bank(Bank::C);
    cluster.await_whole(REPAIR_MAX);
}

/// Shard and key of every record that `tercet inspect --json` lists.
fn inspected(text: &str) -> Vec<(usize, String)> {
    fn collect(value: &serde_json::Value, out: &mut Vec<(usize, String)>) {
        match value {
            serde_json::Value::Array(all) => all.iter().for_each(|v| collect(v, out)),
            serde_json::Value::Object(fields) => {
                if let (Some(key), Some(shard)) = (
                    fields.get("key").and_then(|k| k.as_str()),
                    fields.get("shard").and_then(serde_json::Value::as_u64),
                ) {
                    out.push((usize::try_from(shard).unwrap_or(0), key.to_owned()));
                } else {
                    fields.values().for_each(|v| collect(v, out));
                }
            }
            _ => {}
        }
    }
    let mut out = Vec::new();
    let parsed =
        serde_json::from_str(text).unwrap_or_else(|e| panic!("inspect --json: {e}: {text}"));
    collect(&parsed, &mut out);
    out
}

#[test]
fn bit_flips_in_the_files_of_a_node_are_never_served() {
    let mut random = Random::from_env("bit-flips");
    let mut cluster = furnished("bit-flips", Setup::fast_refresh());
    let before = walk(&cluster);
    for round in 0..4 * crate::scale() {
        let bank = Bank::ALL[usize::try_from(random.below(3)).unwrap_or(0)];
        cluster.unmount();
        cluster.bank(bank).iter_mut().for_each(Node::stop);
        for node in cluster.bank(bank) {
            flip_bits(&node.dir, &mut random);
        }
        // A node may refuse to serve a damaged directory, but then it must say so and end.
        cluster.bank(bank).iter_mut().for_each(Node::spawn);
        std::thread::sleep(Duration::from_secs(1));
        for node in cluster.bank(bank) {
            if !node.is_running() {
                println!("round {round}: {node} refused its directory; it gets an empty one");
                node.wipe();
            }
            node.start();
        }
        cluster.mount();
        before.assert_same(&walk(&cluster), &format!("round {round}, bank {bank:?} damaged"));
        cluster.await_whole(REPAIR_MAX);
    }
}

/// Flips three bits in every file below `dir`.
fn flip_bits(dir: &Path, random: &mut Random) {
    for entry in fs::read_dir(dir).expect("readdir").flatten() {
        let path = entry.path();
        if path.is_dir() {
            flip_bits(&path, random);
            continue;
        }
        let mut bytes = fs::read(&path).expect("read");
        // What was allocated and not yet written is zeros: damage there is damage to nothing.
        let used = bytes.iter().rposition(|b| *b != 0).map_or(0, |p| p as u64 + 1);
        for _ in 0..3 {
            if used > 0 {
                let at = usize::try_from(random.below(used)).unwrap_or(0);
                bytes[at] ^= 1 << random.below(8);
            }
        }
        fs::write(&path, bytes).expect("write");
    }
}
