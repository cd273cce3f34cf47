//! What cannot work is refused with a message that says what to do, an exit code, and no change.

use cluster::process::{Said, run};
use cluster::programs::programs;
use cluster::{Bank, Cluster, Setup};
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(40);

fn tercet(words: &[&str]) -> Said {
    run(Command::new(&programs().tercet).args(words).current_dir("/"), PATIENCE)
}

/// The refusal speaks of all of these.
fn assert_says(said: &str, words: &[&str]) {
    for word in words {
        assert!(said.to_lowercase().contains(&word.to_lowercase()), "no {word:?} in: {said}");
    }
}

fn small() -> Setup {
    Setup { shards: 1, ..Setup::default() }
}

#[test]
fn a_missing_or_wrong_configuration() {
    let said = tercet(&["--config", "/no/such/tercet.toml", "status"]).expect_refusal();
    assert_says(&said, &["/no/such/tercet.toml", "--config"]);
    let mut cluster = Cluster::prepare("config", small());
    let good = fs::read_to_string(cluster.config()).expect("config");
    fs::write(cluster.config(), good.replace("[banks]", "[benks]")).expect("config");
    assert_says(&cluster.tercet(&["mount", "--foreground"]).expect_refusal(), &["benks"]);
    let twice = good.replace(
        &format!("127.0.0.1:{}", cluster.node(Bank::B, 0).port),
        &format!("127.0.0.1:{}", cluster.node(Bank::A, 0).port),
    );
    fs::write(cluster.config(), twice).expect("config");
    assert_says(&cluster.tercet(&["init"]).expect_refusal(), &["same node"]);
}

#[test]
fn a_wrong_token_serves_nobody() {
    let mut cluster = Cluster::start("token", small());
    fs::write(cluster.path("f"), "x").expect("write");
    cluster.unmount();
    let right = fs::read(cluster.root.join("token")).expect("token");
    fs::write(cluster.root.join("token"), "0".repeat(64)).expect("token");
    let said = cluster.tercet(&["mount", "--foreground"]).expect_refusal();
    assert_says(&said, &["token"]);
    let said = format!("{}", cluster.tercet(&["status"]));
    assert_says(&said, &["refuses", "must be the file"]);
    assert!(!said.contains("start nodes"), "they run: {said}");
    let said = cluster.node(Bank::A, 0).ask(&["keys"]).expect_refusal();
    assert_says(&said, &["token"]);
    // Without any: nothing but a refusal comes back.
    let mut stream =
        TcpStream::connect(("127.0.0.1", cluster.node(Bank::A, 0).port)).expect("connect");
    stream.set_read_timeout(Some(PATIENCE)).expect("timeout");
    stream
        .write_all(b"POST /v1/status HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        .expect("send");
    // The body is a frame, not text.
    let mut reply = Vec::new();
    let _ = stream.read_to_end(&mut reply);
    let reply = String::from_utf8_lossy(&reply);
    assert!(reply.starts_with("HTTP/1.1 401"), "{reply}");
    fs::write(cluster.root.join("token"), right).expect("token");
    cluster.mount();
    assert_eq!(fs::read_to_string(cluster.path("f")).expect("read"), "x");
}

#[test]
fn a_token_file_that_others_may_read() {
    use std::os::unix::fs::PermissionsExt;
    let cluster = Cluster::prepare("token-mode", small());
    let file = cluster.root.join("token");
    let mode = fs::metadata(&file).expect("token").permissions().mode() & 0o777;
    assert_eq!(mode, 0o600, "tercet token makes it private");
    fs::set_permissions(&file, PermissionsExt::from_mode(0o644)).expect("chmod");
    assert_says(&cluster.tercet(&["init"]).expect_refusal(), &["token", "600"]);
}

#[test]
fn a_taken_port() {
    let mut cluster = Cluster::prepare("port", small());
    let node = cluster.node(Bank::A, 0);
    let _taken = TcpListener::bind(("127.0.0.1", node.port)).expect("bind");
    node.spawn();
    cluster::until(PATIENCE, "the node ends", || !node.is_running());
    let log = fs::read_to_string(node.log()).expect("log");
    assert_says(&log, &[&node.port.to_string(), "in use"]);
    assert!(!log.contains("panicked"), "{log}");
}

#[test]
fn a_busy_or_missing_mountpoint() {
    let mut cluster = Cluster::start("busy", small());
    // The same mountpoint again, by the same configuration.
    let said = cluster.tercet(&["mount"]).expect_refusal();
    assert_says(&said, &["mount"]);
    cluster.unmount();
    let file = cluster.root.join("a-file");
    fs::write(&file, "").expect("write");
    let said =
        cluster.tercet(&["mount", "--foreground", file.to_str().expect("UTF-8")]).expect_refusal();
    assert_says(&said, &["a-file"]);
    let said = cluster.tercet(&["mount", "--foreground", "/no/such/dir"]).expect_refusal();
    assert_says(&said, &["/no/such/dir"]);
}

#[test]
fn a_volume_that_is_not_there_and_one_that_is() {
    let mut cluster = Cluster::start_nodes("init", small());
    assert_says(&cluster.tercet(&["mount", "--foreground"]).expect_refusal(), &["init"]);
    cluster.kill(Bank::C);
    let said = cluster.tercet(&["init"]).expect_refusal(); // mkfs needs all three
    assert_says(&said, &["C"]);
    cluster.start_bank(Bank::C);
    cluster.tercet(&["init"]).assert_ok();
    cluster.mount();
    fs::write(cluster.path("precious"), "x").expect("write");
    cluster.unmount();
    let _ = cluster.tercet(&["init"]).expect_refusal();
    cluster.mount();
    assert!(cluster.path("precious").exists(), "a second init has changed something");
}

#[test]
fn a_store_of_another_volume_in_the_place_of_ours() {
    let mut other = Cluster::start("foreign-store", small());
    fs::write(other.path("theirs"), "x").expect("write");
    other.unmount();
    other.kill(Bank::B);
    let foreign = other.node(Bank::B, 0).dir.clone();

    let mut cluster = Cluster::start("own-store", small());
    fs::write(cluster.path("ours"), "x").expect("write");
    cluster.unmount();
    cluster.kill(Bank::B);
    let ours = cluster.node(Bank::B, 0).dir.clone();
    fs::rename(&ours, ours.with_extension("aside")).expect("rename");
    let copied = Command::new("cp").arg("-a").arg(&foreign).arg(&ours).status().expect("cp");
    assert!(copied.success());
    let listed =
        |dir: &std::path::Path| run(Command::new("ls").arg("-lR").arg(dir), PATIENCE).stdout;
    let before = listed(&foreign);
    cluster.start_bank(Bank::B);
    cluster.mount();
    assert!(cluster.path("ours").exists() && !cluster.path("theirs").exists());
    fs::write(cluster.path("more"), "x").expect("write");
    fs::File::open(cluster.path("more")).and_then(|f| f.sync_all()).expect("fsync with two banks");
    let status = cluster.tercet(&["status"]);
    assert_says(&format!("{status}"), &["volume"]);
    assert_eq!(listed(&foreign), before, "the original is untouched");
    // The foreign data is not ours to wipe: the node still has it.
    let said = cluster.node(Bank::B, 0).ask(&["status", "--json"]);
    println!("{said}");
}

#[test]
fn help_teaches_by_example() {
    for words in
        [&["--help"][..], &["mount", "--help"], &["init", "--help"], &["inspect", "--help"]]
    {
        let said = tercet(words).expect_ok();
        assert!(said.contains("tercet "), "{words:?}: {said}");
    }
    let said = run(Command::new(&programs().storenode).arg("--help"), PATIENCE).expect_ok();
    for verb in ["serve", "keys", "get", "verify", "corrupt", "status"] {
        assert!(said.contains(verb), "{verb} is missing in {said}");
    }
    assert!(!tercet(&["no-such-command"]).ok());
}
