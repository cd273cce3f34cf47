//! A node's HTTP surface: any bytes on a connection, then a good request, which is answered.

use bytes::Bytes;
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};
use storenode::frame;
use storenode::fuzzing::{InMemory, envelope, node, repair_frame};
use storenode::server::{Node, ServerLimits};
use storenode::service::Service;
use storenode::token::Token;
use storenode::wire::{Envelope, NodeError, Reply, Request};

/// The token of the node under test, so that a corpus can hold it.
pub const TOKEN: &str = "00000000000000000000000000000000000000000000000000000000000000aa";
/// Conversations with one node before it is replaced: what was written to it stays in memory.
const CONVERSATIONS: u32 = 500;
/// After so much silence a stranger ends its side of the conversation.
const STRANGER: Duration = Duration::from_millis(3);
/// After so much silence who asks properly does.
const PATIENT: Duration = Duration::from_secs(15);
/// A small limit on bodies in hand, so that what is announced and never sent is refused quickly.
const LIMITS: fn() -> ServerLimits = || ServerLimits {
    body_bytes_max: 64 << 20,
    queue_timeout: Duration::from_secs(5),
    ..ServerLimits::default()
};

/// The node, and how often it panicked, also for a sender that left before the answer.
struct Watched {
    service: Service,
    panics: AtomicU32,
}

impl Node for Watched {
    fn handle(
        &self,
        envelope: Envelope,
        request: Request,
        bulk: Bytes,
    ) -> Result<(Reply, Vec<Bytes>), NodeError> {
        let work = AssertUnwindSafe(|| self.service.handle(envelope, request, bulk));
        catch_unwind(work).unwrap_or_else(|panic| {
            self.panics.fetch_add(1, Relaxed);
            resume_unwind(panic)
        })
    }
    fn reply_delay(&self) -> Duration {
        self.service.reply_delay()
    }
    fn tick(&self, now: Duration) {
        self.service.tick(now);
    }
    fn maintain(&self) -> bool {
        self.service.maintain()
    }
    fn metrics(&self) -> String {
        Node::metrics(&self.service)
    }
}

struct World {
    runtime: tokio::runtime::Runtime,
    node: Arc<Watched>,
    server: InMemory<Watched>,
    conversations: u32,
}

impl World {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(2)
            .build()
            .expect("a runtime");
        let token: Token = TOKEN.parse().expect("a token");
        let node = Arc::new(Watched { service: node(), panics: AtomicU32::new(0) });
        let server = InMemory::new(Arc::clone(&node), token, LIMITS());
        Self { runtime, node, server, conversations: 0 }
    }

    fn talk(&mut self, bytes: &[u8], silence: Duration) -> Vec<u8> {
        self.conversations += 1;
        let answer = self.runtime.block_on(self.server.talk(bytes, silence));
        let answer = answer.expect("the server ends a conversation whose other end is closed");
        // What a sender that left had asked for is still being done.
        let began = Instant::now();
        while self.server.body_kib_in_hand() > 0 {
            assert!(began.elapsed() < PATIENT, "room that nobody uses any more");
            self.runtime.block_on(async { tokio::time::sleep(Duration::from_millis(1)).await });
        }
        assert_eq!(self.node.panics.load(Relaxed), 0, "the node panicked");
        answer
    }
}

/// A message as a client sends it.
#[must_use]
pub fn post(path: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let mut all = format!(
        "POST {path} HTTP/1.1\r\nHost: n\r\nAuthorization: Bearer {TOKEN}\r\n{headers}Content-Length: {}\r\n\r\n",
        body.len()
    )
    .into_bytes();
    all.extend_from_slice(body);
    all
}

fn status() -> Vec<u8> {
    let frame = frame::encode_head(&(envelope(), Request::Status), 0).expect("small");
    post("/v1/status", "Connection: close\r\n", &frame)
}

/// The same bytes with the frame in their (first) body set right, and its announced length.
fn repaired(data: &[u8]) -> Option<Vec<u8>> {
    let end = data.windows(4).position(|w| w == b"\r\n\r\n")? + 4;
    let (head, body) = data.split_at(end);
    let mut body = body.to_vec();
    repair_frame(&mut body);
    let head = String::from_utf8_lossy(head);
    let mut out = String::new();
    for line in head.trim_end().split("\r\n") {
        if !line.to_ascii_lowercase().starts_with("content-length:") {
            out.push_str(line);
            out.push_str("\r\n");
        }
    }
    let mut out = format!("{out}Content-Length: {}\r\n\r\n", body.len()).into_bytes();
    out.extend(body);
    Some(out)
}

thread_local! {
    static WORLD: RefCell<Option<World>> = const { RefCell::new(None) };
}

/// Any bytes on a connection. A byte in front chooses whether they are sent as they are.
pub fn http(data: &[u8]) {
    let Some((how, data)) = data.split_first() else { return };
    WORLD.with_borrow_mut(|world| {
        if world.as_ref().is_none_or(|w| w.conversations > CONVERSATIONS) {
            *world = Some(World::new());
        }
        let world = world.as_mut().expect("made above");
        let repaired = (how & 1 != 0).then(|| repaired(data)).flatten();
        world.talk(repaired.as_deref().unwrap_or(data), STRANGER);
        let answer = world.talk(&status(), PATIENT);
        let body = answer.windows(4).position(|w| w == b"\r\n\r\n").map_or(0, |at| at + 4);
        let body = Bytes::copy_from_slice(&answer[body..]);
        let (reply, _) = frame::decode::<Result<Reply, NodeError>>(&body).expect("a frame");
        assert!(matches!(reply, Ok(Reply::Status(_))), "{reply:?}");
    });
}
