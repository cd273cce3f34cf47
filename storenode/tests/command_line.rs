//! The `storenode` program itself: one node, looked into live and offline, broken on purpose, and
//! every refusal at the start.

#![allow(clippy::unwrap_used, reason = "tests")]

mod writer;

use bytes::Bytes;
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use storenode::client::{ClientLimits, NodeClient};
use storenode::token::Token;
use writer::Writer;

const PROGRAM: &str = env!("CARGO_BIN_EXE_storenode");

struct Node {
    child: Child,
    url: String,
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Place {
    root: tempfile::TempDir,
    token: Token,
}

impl Place {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let token = Token::create(&root.path().join("token")).unwrap();
        Self { root, token }
    }
    fn dir(&self) -> PathBuf {
        self.root.path().join("data")
    }
    fn serve(&self, more: &[&str]) -> Command {
        let mut c = Command::new(PROGRAM);
        c.args(["serve", "--listen", "127.0.0.1:0", "--bank", "B", "--shard", "0"]);
        c.arg("--dir").arg(self.dir()).arg("--token-file").arg(self.root.path().join("token"));
        c.args(more).stdout(Stdio::piped()).stderr(Stdio::piped());
        c
    }
    fn start(&self) -> Node {
        let pid = self.root.path().join("pid");
        let pid = pid.to_str().unwrap();
        let mut child = self.serve(&["--allow-faults", "--pid-file", pid]).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let url = line.split_whitespace().find(|w| w.starts_with("http://")).unwrap_or_else(|| {
            let _ = child.kill();
            panic!("not ready: {line:?} {:?}", child.wait())
        });
        Node { url: url.to_owned(), child }
    }
    fn live(&self, node: &Node, words: &[&str]) -> Output {
        let mut c = Command::new(PROGRAM);
        c.args(words).args(["--url", &node.url]);
        c.arg("--token-file").arg(self.root.path().join("token")).output().unwrap()
    }
    fn offline(&self, words: &[&str]) -> Output {
        Command::new(PROGRAM).args(words).arg("--dir").arg(self.dir()).output().unwrap()
    }
}

fn code(o: &Output) -> i32 {
    o.status.code().unwrap()
}

fn out(o: &Output) -> String {
    assert_eq!(code(o), 0, "{o:?}");
    String::from_utf8(o.stdout.clone()).unwrap()
}

fn says(o: &Output, want: i32, words: &[&str]) {
    let text = String::from_utf8_lossy(&o.stderr).to_lowercase();
    assert_eq!(code(o), want, "{o:?}");
    for word in words {
        assert!(text.contains(word), "no {word:?} in {text}");
    }
    assert!(!text.contains("panicked"), "{text}");
}

/// Ends in order, as by `kill PID`.
fn terminate(mut node: Node) {
    let pid = rustix::process::Pid::from_child(&node.child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(node.child.wait().unwrap().code(), Some(0));
}

fn fill(place: &Place, node: &Node) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let client = NodeClient::new(&node.url, &place.token, ClientLimits::default()).unwrap();
    runtime.block_on(async {
        let mut w = Writer::open(client).await;
        let put = |k: &str, n: usize| (k.as_bytes().to_vec(), Some(Bytes::from(vec![b'v'; n])));
        w.put(&[put("apple", 10), put("apricot", 100_000), put("banana", 0), put("plum", 7)]).await;
        w.put(&[(b"plum".to_vec(), None)]).await;
        w.beat(true).await;
    });
}

fn rows(text: &str) -> Vec<Value> {
    text.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

#[test]
fn a_node_is_looked_into_live_and_offline_alike() {
    let place = Place::new();
    let node = place.start();
    let pid = std::fs::read_to_string(place.root.path().join("pid")).unwrap();
    assert_eq!(pid.trim(), node.child.id().to_string());
    fill(&place, &node);
    let look = |ask: &dyn Fn(&[&str]) -> Output| {
        let keys = out(&ask(&["keys", "--json"]));
        let names: Vec<_> = rows(&keys).iter().map(|r| r["text"].clone()).collect();
        assert_eq!(names, ["apple", "apricot", "banana"]);
        let deleted = rows(&out(&ask(&["keys", "--json", "--deleted"])));
        assert_eq!(deleted.len(), 4);
        assert_eq!(
            (&deleted[3]["text"], &deleted[3]["state"]),
            (&"plum".into(), &"tombstone".into())
        );
        let some = out(&ask(&["keys", "--prefix", "text:ap", "--limit", "1"]));
        assert!(some.lines().count() == 1 && some.contains("6170706c65") && some.contains("live"));
        assert!(out(&ask(&["get", "text:apple"])).contains("vvvvvvvvvv"));
        assert_eq!(out(&ask(&["get", "text:apricot", "--raw"])).len(), 100_000);
        let got: Value =
            serde_json::from_str(&out(&ask(&["get", "text:banana", "--json"]))).unwrap();
        assert_eq!((&got["state"], &got["value"]), (&"live".into(), &"".into()));
        assert_eq!(code(&ask(&["get", "text:plum"])), 1);
        assert_eq!(code(&ask(&["get", "text:nothing"])), 1);
        let v: Value = serde_json::from_str(&out(&ask(&["verify", "--json"]))).unwrap();
        assert_eq!((&v["whole"], &v["damaged"]), (&true.into(), &Value::Array(vec![])));
        let s: Value = serde_json::from_str(&out(&ask(&["status", "--json"]))).unwrap();
        assert_eq!((&s["bank"], &s["role"]), (&"B".into(), &"voter".into()));
        assert!(out(&ask(&["status"])).contains("bank B shard 0"));
        keys
    };
    let live = look(&|words| place.live(&node, words));
    says(&place.offline(&["keys"]), 2, &["in use", "--url"]);
    says(&place.serve(&[]).output().unwrap(), 2, &["in use"]);
    terminate(node);
    assert!(!place.root.path().join("pid").exists());
    assert_eq!(look(&|words| place.offline(words)), live);
    says(&place.offline(&["delay", "5"]), 2, &["running"]);

    // A directory of another bank or shard, a taken port, a bad token: 2, and nothing changes.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().to_string();
    let swap = |from: &str, to: &str| {
        let args: Vec<_> = place.serve(&[]).get_args().map(|a| a.to_os_string()).collect();
        let args = args.into_iter().map(|a| if a == from { to.into() } else { a });
        Command::new(PROGRAM).args(args).output().unwrap()
    };
    says(&swap("B", "C"), 2, &["bank b"]);
    says(&swap("127.0.0.1:0", &port), 2, &["in use"]);
    let token = place.root.path().join("token");
    says(&swap(token.to_str().unwrap(), "/no/token"), 2, &["token"]);
    assert_eq!(look(&|words| place.offline(words)), live);
}

#[test]
fn what_is_broken_on_purpose_is_seen() {
    let place = Place::new();
    let node = place.start();
    fill(&place, &node);
    let live = |words: &[&str]| place.live(&node, words);
    out(&live(&["corrupt", "text:apricot"]));
    let seen = live(&["verify"]);
    assert_eq!(code(&seen), 1);
    assert!(String::from_utf8_lossy(&seen.stdout).contains("apricot"));
    let got = live(&["get", "text:apricot", "--json"]);
    assert_eq!(code(&got), 1);
    assert_eq!(serde_json::from_slice::<Value>(&got.stdout).unwrap()["state"], "damaged");
    out(&live(&["put", "text:apple", "REPLACED"]));
    assert_eq!(code(&live(&["get", "text:apple"])), 1);
    out(&live(&["put", "text:zebra", "foreign", "--version", "e1.1"]));
    assert_eq!(out(&live(&["get", "text:zebra", "--raw"])), "foreign");
    out(&live(&["drop", "text:banana"]));
    assert_eq!(code(&live(&["get", "text:banana"])), 1);

    out(&live(&["delay", "300"]));
    let began = std::time::Instant::now();
    out(&live(&["status"]));
    assert!(began.elapsed().as_millis() >= 300);
    out(&live(&["delay", "0"]));
    out(&live(&["refuse", "on"]));
    assert_eq!(code(&live(&["keys"])), 1);
    out(&live(&["status"]));
    out(&live(&["refuse", "off"]));
    out(&live(&["keys"]));

    terminate(node);
    assert_eq!(code(&place.offline(&["verify"])), 1);
    out(&place.offline(&["drop", "text:zebra"]));
    assert_eq!(code(&place.offline(&["get", "text:zebra"])), 1);
}

#[test]
fn a_token_that_others_may_read_and_a_node_that_is_not_there() {
    use std::os::unix::fs::PermissionsExt;
    let place = Place::new();
    let token = place.root.path().join("token");
    std::fs::set_permissions(&token, PermissionsExt::from_mode(0o644)).unwrap();
    says(&place.serve(&[]).output().unwrap(), 2, &["token", "chmod 600"]);
    assert!(!place.dir().exists());
    says(&place.offline(&["keys"]), 2, &["data"]);
    let mut c = Command::new(PROGRAM);
    says(&c.args(["keys", "--url", "127.0.0.1:1"]).output().unwrap(), 2, &["--token-file"]);
    assert!(!Path::new(&place.dir()).exists());
}

/// Under a limit of file sizes.
fn limited(bytes: u64, serve: &Command) -> Command {
    let mut c = Command::new("prlimit");
    c.arg(format!("--fsize={bytes}")).arg(PROGRAM).args(serve.get_args());
    c.stdout(Stdio::piped()).stderr(Stdio::piped());
    c
}

#[test]
fn a_limit_of_file_sizes_is_told_and_costs_the_log_only() {
    use storenode::service::SEGMENT_BYTES;
    let place = Place::new();
    let little = limited(64 << 10, &place.serve(&[])).output().unwrap();
    says(&little, 2, &["rlimit_fsize", "64.0 mib"]);
    assert!(!place.dir().exists(), "nothing was changed");

    // A log that has all it may have; the warning about faults is the first line that finds no place.
    let log = place.root.path().join("log");
    let full = std::fs::File::options().create(true).append(true).open(&log).unwrap();
    full.set_len(SEGMENT_BYTES).unwrap();
    let mut serve = limited(SEGMENT_BYTES, &place.serve(&["--allow-faults"]));
    let mut child = serve.stderr(full).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.contains("ready"), "{line:?} {:?}", child.wait());
    terminate(Node { child, url: String::new() });
    assert_eq!(std::fs::metadata(&log).unwrap().len(), SEGMENT_BYTES);
}
