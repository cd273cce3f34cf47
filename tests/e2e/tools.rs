//! Looking inside: a node, live and offline, and the commands of the mount.

use crate::REPAIR_MAX;
use cluster::load::make_file;
use cluster::oracle::{holdings, parse_holdings, rows};
use cluster::{Bank, Cluster, Setup};
use std::fs;

#[test]
fn a_node_shows_its_keys_values_and_state_live_and_offline() {
    let mut cluster = Cluster::start("look", Setup::default());
    make_file(&cluster.path("f"), 1, 8);
    cluster.await_equal(REPAIR_MAX);
    cluster.unmount();
    for shard in 0..cluster.setup.shards {
        let node = cluster.node(Bank::B, shard);
        let live = holdings(node).expect("keys");
        assert!(!live.is_empty(), "{node} holds something");
        let words = node.ask(&["keys"]).expect_ok();
        assert!(words.lines().count() >= live.len(), "keys in words: {words}");
        let key = live.keys().next().expect("a key").clone();
        node.ask(&["get", &key]).assert_ok();
        node.ask(&["get", &key, "--json"]).assert_ok();
        node.ask(&["verify"]).assert_ok();
        node.ask(&["verify", "--json"]).assert_ok();
        let status = node.ask(&["status", "--json"]).expect_ok();
        let status = &rows(&status).expect("JSON")[0];
        assert_eq!(status["bank"], "B");
        node.stop();
        let offline =
            parse_holdings(&node.ask_offline(&["keys", "--json"]).expect_ok()).expect("JSON");
        assert_eq!(live, offline, "the same keys live and offline");
        node.ask_offline(&["get", &key]).assert_ok();
        node.ask_offline(&["verify"]).assert_ok();
        node.start();
        node.ask(&["corrupt", &key]).assert_ok();
        let bad = node.ask(&["verify"]).expect_refusal();
        assert!(bad.contains(&key), "verify names the corrupt key: {bad}");
        node.stop();
        assert!(node.ask_offline(&["verify"]).expect_refusal().contains(&key));
        node.start();
    }
}

#[test]
fn a_path_is_followed_to_its_keys_on_every_bank() {
    let cluster = Cluster::start("inspect", Setup::no_refresh());
    make_file(&cluster.path("f"), 1, 8);
    cluster.await_equal(REPAIR_MAX);
    let f = cluster.path("f").to_str().expect("UTF-8").to_owned();
    let said = cluster.tercet(&["inspect", &f]).expect_ok();
    println!("{said}");
    assert!(said.contains("ok"), "{said}");
    let healthy = cluster.tercet(&["inspect", "--json", &f]).expect_ok();
    assert!(!healthy.contains("corrupt"), "{healthy}");
    cluster.tercet(&["fault", "corrupt", "--bank", "B", &f]).assert_ok();
    let said = cluster.tercet(&["inspect", &f]);
    assert!(format!("{said}").contains("corrupt"), "inspect sees it: {said}");
    cluster.tercet(&["scrub"]).assert_ok();
    let said = cluster.tercet(&["inspect", &f]);
    assert!(!format!("{said}").contains("corrupt"), "scrub healed it: {said}");
    assert!(fs::read(&f).is_ok());
}

#[test]
fn status_tells_what_is_down_and_what_is_behind() {
    let mut cluster = Cluster::start("status", Setup::default());
    fs::write(cluster.path("f"), "x").expect("write");
    cluster.await_healthy(REPAIR_MAX);
    let words = cluster.tercet(&["status"]).expect_ok();
    println!("{words}");
    cluster.kill(Bank::B);
    fs::write(cluster.path("g"), "x").expect("write");
    cluster::until(REPAIR_MAX, "status names the dead bank", || {
        let said = cluster.tercet(&["status"]);
        said.stdout.to_lowercase().contains("down")
    });
    assert!(!cluster::oracle::is_healthy(&cluster.status()));
    cluster.start_bank(Bank::B);
    cluster.await_healthy(REPAIR_MAX);
}

#[test]
fn umount_ends_the_daemon_and_status_says_so() {
    let mut cluster = Cluster::start("umount", Setup::default());
    fs::write(cluster.path("f"), "x").expect("write");
    cluster.unmount();
    // As people do: a daemon, not a child of the test.
    cluster.tercet(&["mount"]).assert_ok();
    assert_eq!(fs::read_to_string(cluster.path("f")).expect("read"), "x");
    cluster.tercet(&["umount"]).assert_ok();
    assert!(!cluster::mount::is_mounted(&cluster.mountpoint()));
    let said = cluster.tercet(&["status"]);
    println!("{said}");
    cluster.mount();
    assert_eq!(fs::read_to_string(cluster.path("f")).expect("read"), "x");
}
