//! The HTTP side over loopback, with a node that echoes, waits or panics on demand.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use super::*;
use crate::client::{ClientError, ClientLimits, NodeClient};
use crate::disk::LONG_WRITE;
use crate::frame;
use crate::wire::{Found, Position, StoreId, Version, VolumeId, WIRE_FORMAT};
use std::io::{Read, Write};
use std::sync::atomic::{AtomicI32, AtomicU64};

/// `read` returns one megabyte per key, `append` its bulk's length as a position; a key `panic`,
/// `slow` or `refuse` does that.
#[derive(Default)]
struct Fake {
    ticks: AtomicU64,
    most_at_once: AtomicU64,
    at_once: AtomicU64,
    delay_ms: AtomicU64,
    /// Of the thread that took the last message.
    nice: AtomicI32,
}

const VALUE_LEN: u32 = 1 << 20;

impl Node for Fake {
    fn handle(
        &self,
        _: Envelope,
        request: Request,
        bulk: Bytes,
    ) -> Result<(Reply, Vec<Bytes>), NodeError> {
        let now = self.at_once.fetch_add(1, Relaxed) + 1;
        self.most_at_once.fetch_max(now, Relaxed);
        self.nice.store(rustix::process::getpriority_process(None).unwrap(), Relaxed);
        let answer = match request {
            Request::Read { keys, .. } => {
                match keys.first().map(Vec::as_slice) {
                    Some(b"panic") => panic!("asked to"),
                    Some(b"slow") => std::thread::sleep(Duration::from_millis(300)),
                    Some(b"refuse") => {
                        self.at_once.fetch_sub(1, Relaxed);
                        return Err(NodeError::NotThere { position: Version::new(1, 7) });
                    }
                    _ => {}
                }
                let found = Found::Record {
                    version: Version::new(1, 1),
                    digest: crate::wire::Digest::ZERO,
                    len: Some(VALUE_LEN),
                };
                let value = Bytes::from(vec![9u8; VALUE_LEN as usize]);
                let items = vec![found; keys.len()];
                let values = vec![value; keys.len()];
                Ok((Reply::Found { applied: Version::ZERO, items }, values))
            }
            Request::Append { .. } => {
                let aligned = bulk.as_ptr().addr().is_multiple_of(8);
                assert!(
                    bulk.len() < LONG_WRITE || aligned,
                    "a long part cannot be written in place"
                );
                let position = Version::new(1, bulk.len() as u64);
                Ok((Reply::Position(at(position)), vec![]))
            }
            _ => Err(NodeError::Bad { what: "not in this fake".into() }),
        };
        self.at_once.fetch_sub(1, Relaxed);
        answer
    }
    fn reply_delay(&self) -> Duration {
        Duration::from_millis(self.delay_ms.load(Relaxed))
    }
    fn maintain(&self) -> bool {
        false
    }
    fn tick(&self, _: Duration) {
        self.ticks.fetch_add(1, Relaxed);
    }
    fn metrics(&self) -> String {
        "fake 1\n".into()
    }
}

fn at(position: Version) -> Position {
    Position { position, applied: position, high: position, detached: None }
}

const ENVELOPE: Envelope = Envelope {
    format: WIRE_FORMAT,
    volume: VolumeId([1; 16]),
    store: StoreId([2; 16]),
    epoch: 1,
    nonce: 3,
};
const SECOND: Duration = Duration::from_secs(10);

fn read(key: &[u8], n: usize) -> Request {
    Request::Read { keys: vec![key.to_vec(); n].into(), through: Version::ZERO }
}

struct World {
    node: Arc<Fake>,
    server: RunningServer,
    token: Token,
    client: NodeClient,
}

async fn world(limits: ServerLimits) -> World {
    let node = Arc::new(Fake::default());
    let token = Token::random().unwrap();
    let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let server = start(listener, Arc::clone(&node), token.clone(), limits).unwrap();
    let url = format!("http://{}", server.addr());
    let client = NodeClient::new(&url, &token, ClientLimits::default()).unwrap();
    World { node, server, token, client }
}

impl World {
    async fn works(&self) {
        let append = Request::Append { lens: vec![3], watermark: Version::ZERO };
        let bulk = vec![Bytes::from_static(b"abc")];
        let (reply, _) = self.client.call(ENVELOPE, &append, bulk, SECOND).await.unwrap();
        assert_eq!(reply, Reply::Position(at(Version::new(1, 3))));
    }

    /// Sends raw bytes, returns all that comes back until the connection ends or is idle.
    async fn raw(&self, bytes: &[u8]) -> String {
        let (addr, bytes) = (self.server.addr(), bytes.to_vec());
        let talk = move || {
            let mut s = std::net::TcpStream::connect(addr).unwrap();
            s.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
            s.write_all(&bytes).unwrap();
            let mut got = Vec::new();
            let _ = s.read_to_end(&mut got);
            got
        };
        let got = tokio::task::spawn_blocking(talk).await.unwrap();
        String::from_utf8_lossy(&got).into_owned()
    }

    fn head(&self, path: &str, more: &str) -> String {
        format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: {}\r\n{more}\r\n",
            self.token.header()
        )
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bulk_goes_both_ways_and_refusals_arrive_as_they_are() {
    let w = world(ServerLimits::default()).await;
    w.works().await;
    let append = Request::Append { lens: vec![], watermark: Version::ZERO };
    let bulk: Vec<Bytes> = (0..20).map(|_| Bytes::from(vec![5u8; 1 << 20])).collect();
    let (reply, _) = w.client.call(ENVELOPE, &append, bulk, SECOND).await.unwrap();
    assert_eq!(reply, Reply::Position(at(Version::new(1, 20 << 20))));
    // However long the head is.
    for n in 0..8 {
        let append = Request::Append { lens: vec![7; n], watermark: Version::ZERO };
        let bulk = vec![Bytes::from(vec![5; LONG_WRITE])];
        w.client.call(ENVELOPE, &append, bulk, SECOND).await.unwrap();
    }
    let (_, bulk) = w.client.call(ENVELOPE, &read(b"k", 20), vec![], SECOND).await.unwrap();
    assert_eq!(bulk.len(), 20 << 20);
    assert!(bulk.iter().all(|b| *b == 9));
    let e = w.client.call(ENVELOPE, &read(b"refuse", 1), vec![], SECOND).await.unwrap_err();
    assert_eq!(e, ClientError::Refused(NodeError::NotThere { position: Version::new(1, 7) }));
    // A reply over the limit of a frame is refused, not cut.
    let e = w.client.call(ENVELOPE, &read(b"k", 25), vec![], SECOND).await.unwrap_err();
    assert!(matches!(e, ClientError::Refused(NodeError::Bad { what }) if what.contains("less")));
    w.server.stop().await;
    assert!(w.node.ticks.load(Relaxed) > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_malformed_request_stops_the_node() {
    let limits = ServerLimits { body_timeout: Duration::from_millis(200), ..Default::default() };
    let w = world(limits).await;
    let stranger = Token::random().unwrap();
    let thief = NodeClient::new(w.client.base_url(), &stranger, ClientLimits::default()).unwrap();
    let e = thief.call(ENVELOPE, &read(b"k", 1), vec![], SECOND).await.unwrap_err();
    assert_eq!(e, ClientError::Refused(NodeError::Unauthorized));

    let newer = Envelope { format: 99, ..ENVELOPE };
    let e = w.client.call(newer, &read(b"k", 1), vec![], SECOND).await.unwrap_err();
    assert_eq!(e, ClientError::Refused(NodeError::UnknownFormat { format: 99 }));

    let e = w.client.call(ENVELOPE, &read(b"panic", 1), vec![], SECOND).await.unwrap_err();
    assert!(matches!(e, ClientError::Refused(NodeError::Failed { .. })), "{e:?}");

    // A newer format whose request this node cannot even decode.
    let alien = frame::encode_head(&(99u16, "whatever follows"), 0).unwrap();
    assert_eq!(decode("/v1/read", &alien).unwrap_err(), NodeError::UnknownFormat { format: 99 });

    let frame = frame::encode_head(&(ENVELOPE, read(b"k", 1)), 0).unwrap();
    let n = frame.len();
    let post = |path: &str, head: &str, body: &[u8]| {
        let mut all = w.head(path, head).into_bytes();
        all.extend_from_slice(body);
        all
    };
    let cases: [(&str, Vec<u8>, &str); 9] = [
        (
            "no token",
            b"POST /v1/read HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n".to_vec(),
            "401",
        ),
        ("another path", post("/v1/scan", &format!("Content-Length: {n}\r\n"), &frame), "400"),
        ("unknown path", post("/v1/what", &format!("Content-Length: {n}\r\n"), &frame), "400"),
        ("outside", post("/v2/read", "Content-Length: 0\r\n", b""), "404"),
        ("oversized", post("/v1/read", "Content-Length: 99999999\r\n", b"xx"), "413"),
        ("no length", post("/v1/read", "Transfer-Encoding: chunked\r\n", b"0\r\n\r\n"), "413"),
        ("garbage", post("/v1/read", "Content-Length: 40\r\n", &[7; 40]), "400"),
        (
            "a body that stalls",
            post("/v1/read", &format!("Content-Length: {n}\r\n"), &frame[..n - 1]),
            "408",
        ),
        ("no HTTP", b"\x16\x03\x01 hello\r\n\r\n".to_vec(), "400"),
    ];
    for (name, bytes, status) in cases {
        let got = w.raw(&bytes).await;
        assert!(got.starts_with(&format!("HTTP/1.1 {status}")), "{name}: {got:?}");
        w.works().await;
    }
    // Cut off in the middle of a body.
    let mut s = std::net::TcpStream::connect(w.server.addr()).unwrap();
    s.write_all(&post("/v1/read", &format!("Content-Length: {n}\r\n"), &frame[..n / 2])).unwrap();
    drop(s);
    // Every bit of a frame flipped: refused or answered, never the end of the node.
    for bit in 0..n * 8 {
        let mut bad = frame.to_vec();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(decode("/v1/read", &Bytes::from(bad)).is_err());
    }
    w.works().await;
    let text = w.raw(format!("GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: {}\r\n\r\n", w.token.header()).as_bytes()).await;
    assert!(text.contains("storenode_http_panics_total 1") && text.contains("fake 1"), "{text}");
    assert!(
        w.raw(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            .await
            .contains("401")
    );
    // Strangers get one answer, whatever they ask for next; who has shown the token goes on.
    let twice = |head: &str| format!("{head}\r\nHost: x\r\n\r\n").repeat(2).into_bytes();
    let got = w.raw(&twice("GET /healthz HTTP/1.1")).await;
    assert_eq!(got.matches("ok\n").count(), 1, "{got}");
    let known = format!("GET /healthz HTTP/1.1\r\nAuthorization: {}", w.token.header());
    assert_eq!(w.raw(&twice(&known)).await.matches("ok\n").count(), 2);
    let metrics = w.raw(&twice(&known.replace("healthz", "metrics"))).await;
    assert!(metrics.contains("storenode_http_unauthorized_total 3"), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn lanes_bound_what_is_in_hand_and_deadlines_bound_waiting() {
    let limits = ServerLimits { reads_max: 2, ..Default::default() };
    let w = world(limits).await;
    let slow = (0..6).map(|_| {
        let c = w.client.clone();
        tokio::spawn(async move { c.call(ENVELOPE, &read(b"slow", 1), vec![], SECOND).await })
    });
    let slow: Vec<_> = slow.collect();
    sleep(Duration::from_millis(50)).await;
    // Writes have their own lane: not behind the six.
    let began = Instant::now();
    w.works().await;
    assert!(began.elapsed() < Duration::from_millis(250));
    let soon = Duration::from_millis(30);
    let e = w.client.call(ENVELOPE, &read(b"k", 1), vec![], soon).await.unwrap_err();
    assert_eq!(e, ClientError::Timeout(soon));
    w.node.delay_ms.store(40, Relaxed);
    let began = Instant::now();
    w.works().await;
    assert!(began.elapsed() >= Duration::from_millis(40));
    for s in slow {
        s.await.unwrap().unwrap();
    }
    // Two reads and one write.
    assert!(w.node.most_at_once.load(Relaxed) <= 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_finishes_what_is_in_hand_and_the_client_survives_a_restart() {
    let w = world(ServerLimits::default()).await;
    w.works().await;
    let c = w.client.clone();
    let slow =
        tokio::spawn(async move { c.call(ENVELOPE, &read(b"slow", 1), vec![], SECOND).await });
    sleep(Duration::from_millis(100)).await;
    let addr = w.server.addr();
    w.server.stop().await;
    slow.await.unwrap().unwrap();
    let e = w.client.call(ENVELOPE, &read(b"k", 1), vec![], SECOND).await.unwrap_err();
    assert!(matches!(&e, ClientError::Unreachable(what) if what.contains("refused")), "{e:?}");

    let listener = bind(addr).await.unwrap();
    let server = start(listener, Arc::clone(&w.node), w.token, ServerLimits::default()).unwrap();
    w.client.call(ENVELOPE, &read(b"k", 1), vec![], SECOND).await.unwrap();
    server.stop().await;
}

/// A client that keeps connections, and its node, which was restarted since.
async fn restarted() -> (NodeClient, RunningServer) {
    let w = world(ServerLimits::default()).await;
    let slow = (0..4).map(|_| {
        let c = w.client.clone();
        tokio::spawn(async move { c.call(ENVELOPE, &read(b"slow", 1), vec![], SECOND).await })
    });
    for s in slow.collect::<Vec<_>>() {
        s.await.unwrap().unwrap();
    }
    let World { node, server, token, client } = w;
    let addr = server.addr();
    server.stop().await;
    let listener = bind(addr).await.unwrap();
    let server = start(listener, node, token, ServerLimits::default()).unwrap();
    // The four ends have arrived by then.
    sleep(Duration::from_millis(100)).await;
    (client, server)
}

/// May be sent once only; the fake refuses it.
const ONCE: Request = Request::Inject(crate::wire::Fault::Delay { millis: 0 });

/// Connections that are kept die with a node. Whoever comes next must not lose his message to one of them:
/// what may be sent only once could not be sent again.
#[tokio::test(flavor = "multi_thread")]
async fn no_message_goes_over_a_connection_of_a_node_that_was_restarted() {
    let (client, server) = restarted().await;
    let e = client.call(ENVELOPE, &ONCE, vec![], SECOND).await.unwrap_err();
    assert!(matches!(&e, ClientError::Refused(NodeError::Bad { .. })), "{e:?}");
    server.stop().await;
}

/// Whether a connection is still open is not always to be seen before it is used: a task that has done much
/// in one go is told nothing any more by tokio.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_found_dead_when_it_is_used_costs_no_message_and_no_deadline() {
    let (client, server) = restarted().await;
    let tired = tokio::spawn(async move {
        let mut call = pin!(async { client.call(ENVELOPE, &ONCE, vec![], SECOND).await });
        let mut work = 1000;
        poll_fn(|cx| {
            for _ in 0..std::mem::take(&mut work) {
                let _ = pin!(tokio::task::consume_budget()).poll(cx);
            }
            call.as_mut().poll(cx)
        })
        .await
    });
    let began = Instant::now();
    let e = tired.await.unwrap().unwrap_err();
    assert!(matches!(&e, ClientError::Refused(NodeError::Bad { .. })), "{e:?}");
    assert!(began.elapsed() < SECOND / 2, "it waited for an answer that could not come");
    server.stop().await;
}

/// A node that refuses by the head alone ends the connection, while the body is still being sent.
#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_counts_though_the_connection_ends_with_it() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    const TIMES: usize = 3;
    let other = tokio::task::spawn_blocking(move || {
        let refusal = frame::encode_head(&Err::<Reply, _>(NodeError::Unauthorized), 0).unwrap();
        for _ in 0..TIMES {
            let (mut s, _) = listener.accept().unwrap();
            let mut b = [0u8; 4096];
            let _ = s.read(&mut b);
            let n = refusal.len();
            let head = format!(
                "HTTP/1.1 401 Unauthorized\r\nContent-Length: {n}\r\nConnection: close\r\n\r\n"
            );
            s.write_all(&[head.as_bytes(), &refusal[..]].concat()).unwrap();
            s.shutdown(std::net::Shutdown::Write).unwrap();
            // What was sent and never read would be answered by a reset, and that may overtake the reply.
            std::thread::sleep(Duration::from_millis(200));
        }
    });
    let client = NodeClient::new(&url, &Token::random().unwrap(), ClientLimits::default()).unwrap();
    for _ in 0..TIMES {
        let append = Request::Append { lens: vec![], watermark: Version::ZERO };
        let bulk = vec![Bytes::from(vec![5u8; 20 << 20])];
        let mut call = pin!(client.call(ENVELOPE, &append, bulk, SECOND));
        let e = poll_fn(|cx| {
            let answer = call.as_mut().poll(cx);
            // Both have come when it is looked at again.
            std::thread::sleep(Duration::from_millis(50));
            answer
        });
        assert_eq!(e.await.unwrap_err(), ClientError::Refused(NodeError::Unauthorized));
    }
    other.await.unwrap();
}

/// A reply that nobody waits for any more must not be taken for that of the next message.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_given_up_takes_its_connection_with_it() {
    let w = world(ServerLimits::default()).await;
    for _ in 0..3 {
        let soon = Duration::from_millis(50);
        let e = w.client.call(ENVELOPE, &read(b"slow", 1), vec![], soon).await.unwrap_err();
        assert_eq!(e, ClientError::Timeout(soon));
        w.works().await;
    }
    w.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_program_is_told_from_a_node() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let other = tokio::task::spawn_blocking(move || {
        for answer in [
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\nConnection: close\r\n\r\n",
            "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        ] {
            let (mut s, _) = listener.accept().unwrap();
            let mut b = [0u8; 4096];
            let _ = s.read(&mut b);
            s.write_all(answer.as_bytes()).unwrap();
        }
    });
    let client = NodeClient::new(&url, &Token::random().unwrap(), ClientLimits::default()).unwrap();
    for want in ["another program", "over the limit"] {
        let e = client.call(ENVELOPE, &Request::Status, vec![], SECOND).await.unwrap_err();
        assert!(matches!(&e, ClientError::Garbled(what) if what.contains(want)), "{e:?}");
    }
    let assign = Request::Inject(crate::wire::Fault::Delay { millis: 0 });
    let e = client.call(ENVELOPE, &assign, vec![], SECOND).await.unwrap_err();
    assert!(matches!(&e, ClientError::Unreachable(what) if what.contains("overloaded")), "{e:?}");
    other.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn peers_that_send_nothing_or_take_nothing_are_cut_off() {
    let short = Duration::from_millis(200);
    let limits = ServerLimits {
        connections_max: 2,
        head_timeout: short,
        write_stall_timeout: short,
        ..Default::default()
    };
    let w = world(limits).await;
    // One says nothing, one says half a head, one asks for 20 MiB and does not read them.
    let connect = || std::net::TcpStream::connect(w.server.addr()).unwrap();
    let silent = connect();
    let mut half = connect();
    half.write_all(b"POST /v1/read HTTP/1.1\r\nHost").unwrap();
    let frame = frame::encode_head(&(ENVELOPE, read(b"k", 20)), 0).unwrap();
    let mut full = w.head("/v1/read", &format!("Content-Length: {}\r\n", frame.len())).into_bytes();
    full.extend_from_slice(&frame);
    let mut deaf = connect();
    deaf.write_all(&full).unwrap();
    // Two places, three that sit on them: they are freed again, and the work goes on.
    let began = Instant::now();
    w.works().await;
    assert!(began.elapsed() < Duration::from_secs(5));
    sleep(3 * short).await;
    w.works().await;
    let text = w.raw(format!("GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: {}\r\n\r\n", w.token.header()).as_bytes()).await;
    assert!(text.contains("storenode_http_in_flight 0"), "{text}");
    drop((silent, half, deaf));
}

#[test]
fn background_work_leaves_most_of_the_time_to_requests_unless_it_must_hurry() {
    let ms = Duration::from_millis;
    assert_eq!(pause_after(ms(5), false), ms(20));
    assert_eq!(pause_after(ms(5), true), Duration::ZERO);
    assert_eq!(pause_after(ms(10_000), false), REST_MAX, "a stop need not wait long");
}

#[tokio::test]
async fn background_messages_have_threads_of_lower_priority_and_others_do_not() {
    let w = world(ServerLimits::default()).await;
    let nice = || w.node.nice.load(Relaxed);
    w.works().await;
    let usual = nice();
    for _ in 0..2 {
        let client = w.client.clone();
        // Of a runtime of its own, which ends with its connections: they are not for others.
        let behind = tokio::task::spawn_blocking(move || {
            background::enter();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let work = async || {
                for _ in 0..3 {
                    client.call(ENVELOPE, &read(b"x", 1), vec![], SECOND).await.unwrap();
                }
            };
            runtime.unwrap().block_on(work());
        });
        behind.await.unwrap();
        assert_eq!(nice(), (usual + 10).min(19));
        w.works().await;
        assert_eq!(nice(), usual);
    }
}
