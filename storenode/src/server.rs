//! HTTP in front of a store: bytes in, bytes out. The only file that knows axum and hyper.
//!
//! ```text
//!   accept -> first head: shows it the token? -> a thread for the connection (deadlines):
//!   token -> lengths -> body -> lane -> decode, Node::handle, encode -> reply in pieces
//! ```
//! Who has shown the token has a thread of its own, where its requests wait for the disk and for nobody's
//! hand-over: on a busy machine each of those costs as much as the work. All others share one, and get
//! one answer. The token is checked before a byte of the body is read. What arrives damaged is refused and
//! costs the sender one request; a handler that panics costs one request as well. Everything that
//! could grow has a bound: connections, requests in hand (by lane), bytes in hand, waiting time.

mod alone;
mod arrival;
mod guard;
#[cfg(feature = "fuzzing")]
pub mod in_memory;
mod message;
mod places;
#[cfg(all(test, feature = "client"))]
mod tests;

use self::alone::alone;
use self::arrival::{Arrival, arrival};
use self::guard::{Gauge, Impatient};
#[cfg(feature = "fuzzing")]
pub(crate) use self::message::decode as decode_message;
use self::message::{decode, overloaded, refusal, reply};
use self::places::{Place, Places};
use crate::background;
use crate::buffers::{Buffers, Lent};
use crate::frame::{self, FRAME_PREFIX_LEN};
use crate::metrics::{HttpMetrics, message_index, store_metrics};
use crate::service::Service;
use crate::token::Token;
use crate::wire::{BULK_LEN_MAX, Envelope, HEAD_LEN_MAX, NodeError, Reply, Request};
use axum::Router;
use axum::body::{Body, HttpBody as _};
use axum::extract::{Request as HttpRequest, State};
use axum::http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use bytes::Bytes;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::future::poll_fn;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

/// Longest body of a request, bytes.
const REQUEST_LEN_MAX: usize = FRAME_PREFIX_LEN + HEAD_LEN_MAX + BULK_LEN_MAX;

/// Background work rests this many times as long as its last step took, and at most so long.
const REST_STEPS: u32 = 4;
const REST_MAX: Duration = Duration::from_millis(250);

/// What the server needs of a store. All calls block and may wait for the disk.
pub trait Node: Send + Sync + 'static {
    /// Answers one message; see [`crate::wire`].
    ///
    /// # Errors
    /// The refusal to be sent.
    fn handle(
        &self,
        envelope: Envelope,
        request: Request,
        bulk: Bytes,
    ) -> Result<(Reply, Vec<Bytes>), NodeError>;
    /// An injected delay: how long to wait before each reply; zero when there is none.
    fn reply_delay(&self) -> Duration;
    /// Called every [`ServerLimits::tick`] with the time since the start: short work only.
    fn tick(&self, now: Duration);
    /// Called every [`ServerLimits::maintain`], and again soon while it answers true: work
    /// that may take a while, in bounded steps.
    fn maintain(&self) -> bool;
    /// Its steps are to follow each other at once; else most of the time is left to requests.
    fn hurry(&self) -> bool {
        false
    }
    /// Own counters in the Prometheus text format.
    fn metrics(&self) -> String;
}

impl Node for Service {
    fn handle(
        &self,
        envelope: Envelope,
        request: Request,
        bulk: Bytes,
    ) -> Result<(Reply, Vec<Bytes>), NodeError> {
        Service::handle(self, envelope, request, bulk)
    }
    fn reply_delay(&self) -> Duration {
        Service::reply_delay(self)
    }
    fn tick(&self, now: Duration) {
        Service::tick(self, now);
    }
    fn maintain(&self) -> bool {
        Service::maintain(self)
    }
    fn hurry(&self) -> bool {
        Service::hurry(self)
    }
    fn metrics(&self) -> String {
        store_metrics(&Service::metrics(self), &self.status())
    }
}

/// Every bound of the server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ServerLimits {
    /// Open connections. A further one takes the place of the oldest that has not shown the token; if
    /// all have shown it, it waits in the kernel's backlog.
    pub connections_max: usize,
    /// Messages at once that read records. Each may hold a reply of up to 24 MiB.
    pub reads_max: usize,
    /// Messages at once that write records and wait for the disk.
    pub writes_max: usize,
    /// Messages at once of the small kind (status, beat, fence...): a lane of their own, so that a
    /// loaded node is not taken for a dead one.
    pub controls_max: usize,
    /// Bytes of request bodies in hand.
    pub body_bytes_max: usize,
    /// Wait so long for a lane and for body bytes, then refuse as overloaded.
    pub queue_timeout: Duration,
    /// Head of a request, and longest idle time of a connection.
    pub head_timeout: Duration,
    /// Whole body of a request.
    pub body_timeout: Duration,
    /// A peer that takes nothing for so long is cut off.
    pub write_stall_timeout: Duration,
    /// How often [`Node::tick`] is called.
    pub tick: Duration,
    /// How often [`Node::maintain`] is called when there was nothing to do.
    pub maintain: Duration,
    /// Requests in hand may finish within this when the server stops.
    pub stop_grace: Duration,
}

impl Default for ServerLimits {
    fn default() -> Self {
        Self {
            connections_max: 512,
            reads_max: 24,
            writes_max: 64,
            controls_max: 16,
            body_bytes_max: 256 << 20,
            queue_timeout: Duration::from_secs(10),
            head_timeout: Duration::from_secs(30),
            body_timeout: Duration::from_secs(30),
            write_stall_timeout: Duration::from_secs(30),
            tick: Duration::from_millis(50),
            maintain: Duration::from_secs(1),
            stop_grace: Duration::from_secs(5),
        }
    }
}

/// A running server. Dropping it ends what is idle, and does not wait for the rest;
/// [`RunningServer::stop`] is the polite way.
#[derive(Debug)]
pub struct RunningServer {
    addr: SocketAddr,
    stop: watch::Sender<bool>,
    tasks: [JoinHandle<()>; 3],
}

impl Drop for RunningServer {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// Takes the address. The only place that makes a listener.
///
/// # Errors
/// What the system says: in use, not ours, no permission.
pub async fn bind(addr: SocketAddr) -> std::io::Result<TcpListener> {
    TcpListener::bind(addr).await
}

/// Serves `node` on a bound listener, within the current tokio runtime.
///
/// # Errors
/// When the listener has no address.
pub fn start<N: Node>(
    listener: TcpListener,
    node: Arc<N>,
    token: Token,
    limits: ServerLimits,
) -> std::io::Result<RunningServer> {
    let addr = listener.local_addr()?;
    let (stop, stopped) = watch::channel(false);
    let shared = Shared::new(node, token, limits);
    let tasks = [
        tokio::spawn(accept_loop(listener, Arc::clone(&shared), stopped.clone())),
        tokio::spawn(tick_loop(Arc::clone(&shared), stopped.clone())),
        tokio::spawn(maintain_loop(shared, stopped)),
    ];
    Ok(RunningServer { addr, stop, tasks })
}

impl RunningServer {
    /// The bound address (the real port when 0 was asked for).
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Accepts no more, lets requests in hand finish within the grace, and returns when nothing
    /// calls the node any more (or the grace is over).
    pub async fn stop(mut self) {
        let _ = self.stop.send(true);
        for task in &mut self.tasks {
            let _ = task.await;
        }
    }
}

struct Shared<N> {
    node: Arc<N>,
    token: Token,
    limits: ServerLimits,
    lanes: Lanes,
    body_kib: Arc<Semaphore>,
    /// For bodies that come in pieces.
    buffers: Buffers,
    metrics: HttpMetrics,
}

impl<N> Shared<N> {
    fn new(node: Arc<N>, token: Token, limits: ServerLimits) -> Arc<Self> {
        Arc::new(Self {
            node,
            token,
            limits,
            lanes: Lanes::new(&limits),
            body_kib: Arc::new(Semaphore::new(limits.body_bytes_max >> 10)),
            buffers: Buffers::default(),
            metrics: HttpMetrics::default(),
        })
    }
}

/// Requests in hand, by kind: heavy ones cannot keep the small ones waiting.
struct Lanes {
    reads: Arc<Semaphore>,
    writes: Arc<Semaphore>,
    controls: Arc<Semaphore>,
}

impl Lanes {
    fn new(l: &ServerLimits) -> Self {
        let lane = |n| Arc::new(Semaphore::new(n));
        Self {
            reads: lane(l.reads_max),
            writes: lane(l.writes_max),
            controls: lane(l.controls_max),
        }
    }

    fn of(&self, path: &str) -> &Arc<Semaphore> {
        match path {
            "/v1/append" | "/v1/install" | "/v1/remove" => &self.writes,
            "/v1/read" | "/v1/digests" | "/v1/scan" | "/v1/hashes" | "/v1/bucket" | "/v1/tail"
            | "/v1/delta" | "/v1/missed" | "/v1/verify" | "/v1/verify_files" => &self.reads,
            _ => &self.controls,
        }
    }

    /// Waits until no request is in hand.
    async fn drain(&self, l: &ServerLimits) {
        let lanes = [
            (&self.reads, l.reads_max),
            (&self.writes, l.writes_max),
            (&self.controls, l.controls_max),
        ];
        for (lane, n) in lanes {
            let _ = lane.acquire_many(u32::try_from(n).unwrap_or(u32::MAX)).await;
        }
    }
}

/// Returns when the server is to stop.
async fn until(stopped: &mut watch::Receiver<bool>) {
    let _ = stopped.wait_for(|s| *s).await;
}

async fn tick_loop<N: Node>(shared: Arc<Shared<N>>, mut stopped: watch::Receiver<bool>) {
    let began = Instant::now();
    let mut every = interval(shared.limits.tick);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = every.tick() => {}
            () = until(&mut stopped) => return,
        }
        background(&shared, move |node| node.tick(began.elapsed())).await;
    }
}

async fn maintain_loop<N: Node>(shared: Arc<Shared<N>>, mut stopped: watch::Receiver<bool>) {
    loop {
        tokio::select! {
            () = sleep(shared.limits.maintain) => {}
            () = until(&mut stopped) => return,
        }
        loop {
            let began = Instant::now();
            let step = |node: &N| node.maintain().then(|| node.hurry());
            let Some(Some(hurry)) = background(&shared, step).await else { break };
            tokio::select! {
                () = sleep(pause_after(began.elapsed(), hurry)) => {}
                () = until(&mut stopped) => return,
            }
        }
    }
}

/// How long background work rests after a step: whoever waits for the disk meets it in one of a few
/// syncs, not in each of a long row.
fn pause_after(step: Duration, hurry: bool) -> Duration {
    if hurry { Duration::ZERO } else { (step * REST_STEPS).min(REST_MAX) }
}

/// Runs background work of the node; a panic in it is logged, and it is tried again next time.
async fn background<N: Node, T: Send + 'static>(
    shared: &Shared<N>,
    work: impl FnOnce(&N) -> T + Send + 'static,
) -> Option<T> {
    let node = Arc::clone(&shared.node);
    let done = tokio::task::spawn_blocking(move || work(&node)).await;
    if done.is_err() {
        shared.metrics.panics.fetch_add(1, Relaxed);
        tracing::error!("background work of the node panicked; it is tried again");
    }
    done.ok()
}

/// What is answered to those who show the token, and to all others.
#[derive(Clone)]
struct Routes {
    known: Router,
    strangers: Router,
}

impl Routes {
    fn new<N: Node>(shared: &Arc<Shared<N>>) -> Self {
        let with = |message, metrics| {
            Router::new()
                .route("/v1/{name}", message)
                .route("/healthz", get(async || "ok\n"))
                .route("/metrics", metrics)
                .fallback(async || {
                    (StatusCode::NOT_FOUND, "a tercet storage node: POST /v1/<message>\n")
                })
                .with_state(Arc::clone(shared))
        };
        Self {
            known: with(post(message::<N>), get(metrics::<N>)),
            strangers: with(post(no_message::<N>), get(no_metrics::<N>)),
        }
    }
}

async fn accept_loop<N: Node>(
    listener: TcpListener,
    shared: Arc<Shared<N>>,
    mut stopped: watch::Receiver<bool>,
) {
    let limits = shared.limits;
    let places = Places::new(limits.connections_max);
    let routes = Routes::new(&shared);
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
            () = until(&mut stopped) => break,
        };
        match accepted {
            Ok((stream, _)) => {
                let place = tokio::select! {
                    place = places.take() => place,
                    () = until(&mut stopped) => break,
                };
                shared.metrics.accepted.fetch_add(1, Relaxed);
                if let Err(e) = stream.set_nodelay(true) {
                    tracing::debug!("cannot set TCP_NODELAY: {e}");
                }
                let (shared, stopped) = (Arc::clone(&shared), stopped.clone());
                connections.spawn(take_in(stream, place, routes.clone(), shared, stopped));
            }
            Err(e) => {
                // Out of descriptors, most likely: nothing to gain from asking again at once.
                tracing::warn!("cannot accept a connection: {e}");
                sleep(Duration::from_millis(50)).await;
            }
        }
    }
    drop(listener);
    let finish = async {
        while connections.join_next().await.is_some() {}
        // Requests whose sender went away may still be with the node.
        shared.lanes.drain(&limits).await;
    };
    if timeout(limits.stop_grace, finish).await.is_err() {
        tracing::warn!(
            "requests did not finish within {:?}; stopping all the same",
            limits.stop_grace
        );
    }
}

/// Finds out who comes, and sees the connection served to its end.
async fn take_in<N: Node>(
    stream: TcpStream,
    place: Place,
    routes: Routes,
    shared: Arc<Shared<N>>,
    stopped: watch::Receiver<bool>,
) {
    let open = Gauge::up(Arc::clone(&shared), |m| &m.connections);
    let greeted = tokio::select! {
        greeted = greet(stream, &shared, stopped.clone()) => greeted,
        () = place.wanted() => None,
    };
    let Some((stream, known)) = greeted else { return };
    if !known {
        let serving = serve(stream, known, routes, shared, stopped);
        tokio::select! {
            () = serving => {}
            () = place.wanted() => {}
        }
    } else if place.keep() {
        let (ended, end) = oneshot::channel::<()>();
        let (stream, head) = stream.into_parts();
        let (runtime, patience) = (Handle::current(), shared.limits.write_stall_timeout);
        let started = stream.into_std().and_then(|stream| {
            let work = move || {
                let _kept = (open, place, ended);
                // For timers.
                let _runtime = runtime.enter();
                let served = alone(stream).map(|(stream, thread)| {
                    let stream = Impatient::new(stream, head, patience);
                    thread.run(serve(stream, known, routes, shared, stopped));
                });
                if let Err(e) = served {
                    tracing::warn!("cannot serve a connection: {e}");
                }
            };
            thread::Builder::new().name("connection".into()).spawn(work)
        });
        match started {
            // It says nothing; it is dropped in the end.
            Ok(_) => drop(end.await),
            Err(e) => tracing::warn!("cannot start a thread for a connection: {e}"),
        }
    }
}

/// Reads the first head; the stream gives it again. `None` when there is none, or it takes too long.
async fn greet<N: Node, S: AsyncRead + Unpin>(
    mut stream: S,
    shared: &Shared<N>,
    mut stopped: watch::Receiver<bool>,
) -> Option<(Impatient<S>, bool)> {
    // TLS would wrap the stream here; nothing below knows what carries the bytes.
    let arrived = tokio::select! {
        arrived = timeout(shared.limits.head_timeout, arrival(&mut stream, &shared.token)) => arrived,
        () = until(&mut stopped) => return None,
    };
    let Ok(Ok(Some(Arrival { head, known }))) = arrived else { return None };
    Some((Impatient::new(stream, head, shared.limits.write_stall_timeout), known))
}

async fn serve<N: Node, S: AsyncRead + AsyncWrite + Unpin>(
    stream: Impatient<S>,
    known: bool,
    routes: Routes,
    shared: Arc<Shared<N>>,
    mut stopped: watch::Receiver<bool>,
) {
    let router = if known { routes.known } else { routes.strangers };
    let service = hyper_util::service::TowerToHyperService::new(router);
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(shared.limits.head_timeout);
    // Who shows the token with a later request comes again, and is known.
    http.keep_alive(known);
    let mut serving = pin!(http.serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = serving.as_mut() => ended,
        () = until(&mut stopped) => {
            serving.as_mut().graceful_shutdown();
            // What is still on its way then finds a store that is closed.
            match timeout(shared.limits.stop_grace, serving).await {
                Ok(ended) => ended,
                Err(_) => return,
            }
        }
    };
    if let Err(e) = ended {
        tracing::debug!("connection ended: {e}");
    }
}

/// Does this request show the token, as the first one on its connection did?
fn authorized<N: Node>(shared: &Shared<N>, request: &HttpRequest) -> bool {
    let shown = request.headers().get(AUTHORIZATION).map(HeaderValue::as_bytes);
    let ok = shared.token.allows(shown);
    if !ok {
        shared.metrics.unauthorized.fetch_add(1, Relaxed);
    }
    ok
}

async fn no_message<N: Node>(State(shared): State<Arc<Shared<N>>>) -> Response {
    shared.metrics.unauthorized.fetch_add(1, Relaxed);
    refusal(StatusCode::UNAUTHORIZED, &NodeError::Unauthorized)
}

async fn no_metrics<N: Node>(State(shared): State<Arc<Shared<N>>>) -> Response {
    shared.metrics.unauthorized.fetch_add(1, Relaxed);
    token_missing()
}

fn token_missing() -> Response {
    (StatusCode::UNAUTHORIZED, "the token is missing or wrong\n").into_response()
}

async fn metrics<N: Node>(State(shared): State<Arc<Shared<N>>>, request: HttpRequest) -> Response {
    if !authorized(&shared, &request) {
        return token_missing();
    }
    let own = catch_unwind(AssertUnwindSafe(|| shared.node.metrics())).unwrap_or_default();
    let text = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    ([(CONTENT_TYPE, text)], shared.metrics.render() + &own).into_response()
}

/// One message, from its head to its reply.
async fn message<N: Node>(State(shared): State<Arc<Shared<N>>>, request: HttpRequest) -> Response {
    if !authorized(&shared, &request) {
        return refusal(StatusCode::UNAUTHORIZED, &NodeError::Unauthorized);
    }
    // This thread is the connection's; its sender has others for what somebody waits for.
    if request.headers().get(background::PRIORITY).is_some_and(|p| p == background::LOWEST) {
        background::enter();
    }
    let metrics = &shared.metrics;
    let index = message_index(request.uri().path());
    let Some(len) = announced_len(request.headers()) else {
        metrics.malformed.fetch_add(1, Relaxed);
        let what = format!("a body of known length, at most {REQUEST_LEN_MAX} bytes, is needed");
        return refusal(StatusCode::PAYLOAD_TOO_LARGE, &NodeError::Bad { what });
    };
    let path = request.uri().path().to_owned();
    let kib = u32::try_from((len >> 10) + 1).unwrap_or(u32::MAX);
    let room = Arc::clone(&shared.body_kib).acquire_many_owned(kib);
    let Ok(Ok(room)) = timeout(shared.limits.queue_timeout, room).await else {
        return overloaded(metrics);
    };
    let body = match timeout(
        shared.limits.body_timeout,
        read_body(request.into_body(), len, &shared.buffers),
    )
    .await
    {
        Ok(Ok(body)) => body,
        Ok(Err(what)) => {
            metrics.malformed.fetch_add(1, Relaxed);
            return refusal(StatusCode::BAD_REQUEST, &NodeError::Bad { what });
        }
        Err(_) => {
            metrics.malformed.fetch_add(1, Relaxed);
            let what = format!("the body did not arrive within {:?}", shared.limits.body_timeout);
            return refusal(StatusCode::REQUEST_TIMEOUT, &NodeError::Bad { what });
        }
    };
    metrics.received_bytes.fetch_add(len as u64, Relaxed);
    let lane = Arc::clone(shared.lanes.of(&path)).acquire_owned();
    let Ok(Ok(lane)) = timeout(shared.limits.queue_timeout, lane).await else {
        return overloaded(metrics);
    };
    let began = Instant::now();
    let in_hand = InHand {
        _lane: lane,
        _room: room,
        _gauge: Gauge::up(Arc::clone(&shared), |m| &m.in_flight),
    };
    // This thread is the connection's: who waits for the disk here keeps nobody else waiting.
    let work = || decode(&path, &body).and_then(|(e, r, bulk)| shared.node.handle(e, r, bulk));
    let Ok(answer) = catch_unwind(AssertUnwindSafe(work)) else {
        metrics.panics.fetch_add(1, Relaxed);
        tracing::error!("handling a message panicked; it is refused and the node goes on");
        let what = "internal error, see the log of the node".into();
        return refusal(StatusCode::INTERNAL_SERVER_ERROR, &NodeError::Failed { what });
    };
    if let Err(e) = &answer {
        tracing::debug!(message = index.map(|i| crate::metrics::MESSAGES[i]), "refused: {e}");
    }
    metrics.answered(index, answer.is_ok(), began.elapsed());
    let delay = shared.node.reply_delay();
    if !delay.is_zero() {
        sleep(delay).await;
    }
    reply(&shared, answer, in_hand)
}

/// What a request holds until its reply has left.
struct InHand<G> {
    _lane: OwnedSemaphorePermit,
    _room: OwnedSemaphorePermit,
    _gauge: G,
}

/// `Content-Length`, when there is one within the limit. Chunked bodies are not taken: a length
/// that is known beforehand can be bounded beforehand.
fn announced_len(headers: &HeaderMap) -> Option<usize> {
    let len = headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()?;
    (len <= REQUEST_LEN_MAX).then_some(len)
}

async fn read_body(body: Body, len: usize, buffers: &Buffers) -> Result<Bytes, String> {
    let mut body = pin!(body);
    let mut all: Option<Lent> = None;
    let mut have = 0;
    while let Some(piece) = poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
        let piece = piece.map_err(|e| format!("the body broke off: {e}"))?;
        let Ok(data) = piece.into_data() else { continue };
        have += data.len();
        if have > len {
            return Err("the body is longer than announced".into());
        }
        if data.len() == len {
            return Ok(data);
        }
        let gather = || {
            // A part at a multiple of 8 can be written from where it is: see `engine::log`.
            let before = frame::bulk_at(&data).map_or(0, |at| at.wrapping_neg() % 8);
            buffers.gather(len, before)
        };
        all.get_or_insert_with(gather).push(&data);
    }
    match have {
        _ if have == len => Ok(all.map(Lent::freeze).unwrap_or_default()),
        have => Err(format!("the body broke off: {have} of {len} bytes")),
    }
}
