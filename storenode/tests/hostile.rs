//! Strangers, slow clients and malformed messages against the program itself: each is refused, memory
//! stays bounded, and a writer with the token is served all the while.

#![allow(clippy::unwrap_used, reason = "tests")]

mod writer;

use bytes::Bytes;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use storenode::client::{ClientError, ClientLimits, NodeClient};
use storenode::frame;
use storenode::token::Token;
use storenode::wire::{
    Cursor, InstallKind, KEY_LEN_MAX, NodeError, RecordHead, Request, Version, digest,
};
use writer::{DEADLINE, Writer, status};

/// What a node may take more of memory because of strangers, bytes: 512 connections of 0.4 MB.
const GROWTH_MAX: u64 = 256 << 20;
/// Longest wait of the writer meanwhile. Undisturbed it is some milliseconds; the machine is shared.
const STALL_MAX: Duration = Duration::from_secs(5);

/// The program, with a limit of open files.
struct Node {
    child: Child,
    token: Token,
    addr: SocketAddr,
    _root: tempfile::TempDir,
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Node {
    fn start(open_files: u32) -> Self {
        let root = tempfile::tempdir().unwrap();
        let token = Token::create(&root.path().join("token")).unwrap();
        let mut child = Command::new("sh")
            .arg("-c")
            .arg(format!("ulimit -n {open_files} && exec \"$@\""))
            .args(["sh", env!("CARGO_BIN_EXE_storenode"), "serve", "--listen", "127.0.0.1:0"])
            .args(["--bank", "B", "--shard", "0", "--dir"])
            .arg(root.path().join("data"))
            .arg("--token-file")
            .arg(root.path().join("token"))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let addr = line.split_whitespace().find_map(|w| w.strip_prefix("http://"));
        let addr = addr.unwrap_or_else(|| panic!("not ready: {line:?}")).parse().unwrap();
        Self { child, token, addr, _root: root }
    }

    fn client(&self) -> NodeClient {
        let url = format!("http://{}", self.addr);
        NodeClient::new(&url, &self.token, ClientLimits::default()).unwrap()
    }

    fn connect(&self) -> TcpStream {
        let s = TcpStream::connect(self.addr).unwrap();
        s.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        s
    }

    /// Highest resident memory so far, bytes.
    fn peak(&self) -> u64 {
        let file = format!("/proc/{}/status", self.child.id());
        let text = std::fs::read_to_string(file).unwrap();
        let line = text.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap();
        line.trim().split(' ').next().unwrap().parse::<u64>().unwrap() << 10
    }

    fn head(&self, path: &str, more: &str) -> String {
        let token = self.token.header();
        format!("POST {path} HTTP/1.1\r\nHost: n\r\nAuthorization: {token}\r\n{more}\r\n")
    }
}

/// Sends what the other side takes, and returns the first line of what comes back.
fn ask(mut s: TcpStream, bytes: &[u8]) -> String {
    let _ = s.write_all(bytes);
    let mut got = vec![0; 4096];
    let n = s.read(&mut got).unwrap_or(0);
    let text = String::from_utf8_lossy(&got[..n]).into_owned();
    text.lines().next().unwrap_or_default().to_owned()
}

/// Puts until it is told to stop; the longest wait, and how many.
async fn write_until(
    client: NodeClient,
    mut stop: tokio::sync::oneshot::Receiver<()>,
) -> (Duration, u32) {
    let mut writer = Writer::open(client).await;
    let (mut longest, mut n) = (Duration::ZERO, 0u32);
    while stop.try_recv().is_err() {
        let began = Instant::now();
        let key = format!("key {}", n % 50).into_bytes();
        writer.put(&[(key, Some(Bytes::from(vec![n as u8; 2000])))]).await;
        longest = longest.max(began.elapsed());
        n += 1;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    (longest, n)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_and_slow_clients_keep_nobody_out_and_take_no_memory() {
    let node = Node::start(1024);
    let (stop, stopped) = tokio::sync::oneshot::channel();
    let writing = tokio::spawn(write_until(node.client(), stopped));
    tokio::time::sleep(Duration::from_millis(300)).await;
    let before = node.peak();
    let talking = tokio::task::spawn_blocking(move || {
        let held = strangers(&node);
        (node, held)
    });
    let (node, held) = talking.await.unwrap();
    // A new client, although strangers sit on more places than there are.
    let began = Instant::now();
    status(&node.client()).await;
    assert!(began.elapsed() < STALL_MAX, "a new client waited {:?}", began.elapsed());
    drop(held);
    stop.send(()).unwrap();
    let (longest, n) = writing.await.unwrap();
    let grown = node.peak() - before;
    println!("{n} puts, longest {longest:?}; resident memory grew by {} KiB", grown >> 10);
    assert!(n > 10 && longest < STALL_MAX, "{n} puts, longest {longest:?}");
    assert!(grown < GROWTH_MAX, "strangers cost {} MiB", grown >> 20);
}

/// All that strangers and slow clients can do; those that hold a place still hold it.
fn strangers(node: &Node) -> Vec<TcpStream> {
    let big = 30 << 20;
    // Refused by the head alone: not a byte of the body was sent.
    let thief = format!("POST /v1/append HTTP/1.1\r\nHost: n\r\nContent-Length: {big}\r\n\r\n");
    assert!(ask(node.connect(), thief.as_bytes()).contains(" 401 "));
    let wrong = thief.replace("\r\n\r\n", "\r\nAuthorization: Bearer 00\r\n\r\n");
    assert!(ask(node.connect(), wrong.as_bytes()).contains(" 401 "));
    let over = node.head("/v1/append", "Content-Length: 99999999999\r\n");
    assert!(ask(node.connect(), over.as_bytes()).contains(" 413 "));
    let endless = node.head("/v1/append", "Transfer-Encoding: chunked\r\n");
    assert!(ask(node.connect(), endless.as_bytes()).contains(" 413 "));
    // Heads without end, and too many of them: refused or cut off, never answered with 200.
    let bomb = [b"GET /healthz HTTP/1.1\r\nX: ", vec![b'a'; 2 << 20].as_slice()].concat();
    let many: String = (0..2000).map(|n| format!("X-{n}: {n}\r\n")).collect();
    let many = format!("GET /healthz HTTP/1.1\r\n{many}\r\n");
    for bytes in [&bomb[..], many.as_bytes()] {
        for _ in 0..50 {
            let got = ask(node.connect(), bytes);
            assert!(got.is_empty() || got.contains(" 431 "), "{got}");
        }
    }
    // Connections that say nothing, half a head, or half a body, and some that close one side. More
    // than there are places.
    let mut held = Vec::new();
    for n in 0..700u32 {
        let mut s = node.connect();
        let _ = match n % 7 {
            0 => s.write_all(b"POST /v1/append HT"),
            1 => s.write_all(b"GET /healthz HTTP/1.1\r\nHost: n\r\nX-Slow"),
            2 => s.shutdown(Shutdown::Write),
            _ => Ok(()),
        };
        held.push(s);
    }
    for s in held.iter_mut().take(200) {
        let _ = s.write_all(b"a");
    }
    // With the token, too: bodies that stop half way.
    let frame = frame::encode_head(&(7u16, "half"), 1 << 20).unwrap();
    for _ in 0..4 {
        let mut s = node.connect();
        let head = node.head("/v1/append", &format!("Content-Length: {}\r\n", 2 << 20));
        let _ = s.write_all(head.as_bytes());
        let _ = s.write_all(&frame);
        held.push(s);
    }
    std::thread::sleep(Duration::from_millis(500));
    held
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_keys_and_lengths_are_refused_with_what_is_wrong() {
    let node = Node::start(1024);
    let client = node.client();
    let mut writer = Writer::open(client.clone()).await;
    writer.put(&[(b"k".to_vec(), Some(Bytes::from_static(b"value")))]).await;
    let (as_of, through) = (writer.last, Version::ZERO);
    let long = vec![b'k'; KEY_LEN_MAX + 1];
    let head = |key: &[u8], len| RecordHead {
        key: key.to_vec(),
        version: Version::new(1, 1),
        digest: digest(key, Version::new(1, 1), Some(b"value")),
        len: Some(len),
    };
    let install = |records| Request::Install { records, as_of, kind: InstallKind::Repair };
    let value = Bytes::from_static(b"value");
    let remove = |key: &[u8]| Request::Remove { key: key.to_vec(), seen: as_of, as_of };
    let far = Version::new(u64::MAX, 1);
    let cases = [
        (install(vec![head(b"", 5)]), value.clone(), "a key has 1 to 512 bytes"),
        (install(vec![head(&long, 5)]), value.clone(), "a key has 1 to 512 bytes"),
        (install(vec![head(b"x", u32::MAX)]), value.clone(), "over the limit"),
        (install(vec![head(b"x", 6)]), value.clone(), "cut short"),
        (install(vec![head(b"x", 4)]), value.clone(), "digest"),
        (remove(b""), Bytes::new(), "a key has 1 to 512 bytes"),
        (remove(&long), Bytes::new(), "a key has 1 to 512 bytes"),
        (
            Request::Cursor(Cursor { since: as_of, good: as_of, after: long }),
            Bytes::new(),
            "at most 512 bytes",
        ),
        (Request::Append { lens: vec![9, 9], watermark: through }, value, "cut short"),
        (
            Request::Read { keys: vec![b"k".to_vec(); 5000].into(), through },
            Bytes::new(),
            "4096 keys",
        ),
        (Request::Join { at: far, reach: far }, Bytes::new(), "a later epoch"),
        (Request::Fence { epoch: u64::MAX, nonce: 1, holder: "x".into() }, Bytes::new(), "range"),
    ];
    for (request, bulk, want) in cases {
        let e = client.call(writer.envelope, &request, vec![bulk], DEADLINE).await.unwrap_err();
        let ClientError::Refused(NodeError::Bad { what }) = &e else { panic!("{e:?} {request:?}") };
        assert!(what.contains(want), "{what:?} does not say {want:?}");
    }
    writer.put(&[(b"k".to_vec(), Some(Bytes::from_static(b"again")))]).await;
    assert_eq!(writer.get(b"k").await.unwrap().1, Bytes::from_static(b"again"));
}

/// With few descriptors, and more connections than those: the log still gets its next segments.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_with_few_descriptors_goes_on() {
    let node = Node::start(64);
    let mut writer = Writer::open(node.client()).await;
    let held: Vec<TcpStream> = (0..200).map(|_| node.connect()).collect();
    // More than one segment of 64 MiB.
    let value = Bytes::from(vec![7u8; 2 << 20]);
    for n in 0..45u32 {
        writer.put(&[(n.to_le_bytes().to_vec(), Some(value.clone()))]).await;
    }
    let s = status(&node.client()).await;
    assert_eq!((s.failed, s.position.position), (None, writer.last));
    drop(held);
    assert_eq!(writer.get(&7u32.to_le_bytes()).await.unwrap().1, value);
}
