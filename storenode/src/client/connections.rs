//! Connections to one node, kept for the next messages. Whoever sends a message drives its connection
//! in its own task until the reply is there: no connection has a task of its own, which would have to be
//! woken for each message and to wake the sender again (docs/adr/0021-hyper.md).

use super::ClientLimits;
use crate::background;
use crate::body::Chunks;
use hyper::body::Incoming;
use hyper::client::conn::http1::{Connection, SendRequest, handshake};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use std::future::{Future, poll_fn};
use std::io::{self, ErrorKind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// What stands between a message and its reply.
#[derive(Debug)]
pub(super) enum Broken {
    /// No connection.
    Connect(io::Error),
    /// It broke, or what came is no HTTP.
    Http(hyper::Error),
}

/// A connection with nothing on it.
struct Idle {
    sender: SendRequest<Chunks>,
    connection: Connection<TokioIo<TcpStream>, Chunks>,
    since: Instant,
}

impl Idle {
    /// Has the peer not hung up? Looks only at what is known here: nothing is asked.
    fn is_open(&mut self) -> bool {
        let mut nobody = Context::from_waker(Waker::noop());
        Pin::new(&mut self.connection).poll(&mut nobody).is_pending() && self.sender.is_ready()
    }
}

/// Connections with nothing on them; the one used last is at the end.
#[derive(Default)]
struct Kept {
    foreground: Mutex<Vec<Idle>>,
    /// Nodes serve these with a lower priority; and they belong to another runtime.
    background: Mutex<Vec<Idle>>,
}

impl Kept {
    /// Those for the calling thread.
    fn here(&self) -> &Mutex<Vec<Idle>> {
        if background::is_here() { &self.background } else { &self.foreground }
    }
}

/// See the module. Clones share the connections.
#[derive(Clone)]
pub(super) struct Connections {
    host: Arc<str>,
    port: u16,
    limits: ClientLimits,
    idle: Arc<Kept>,
}

impl Connections {
    pub(super) fn new(host: &str, port: u16, limits: ClientLimits) -> Self {
        Self { host: host.into(), port, limits, idle: Arc::default() }
    }

    pub(super) fn limits(&self) -> &ClientLimits {
        &self.limits
    }

    /// Sends a request; `receive` takes the reply in, with its body. Dropped before that, the connection ends
    /// with it. A request that did not begin to leave over a connection that was kept goes over another.
    pub(super) async fn exchange<T, F: Future<Output = Result<T, hyper::Error>>>(
        &self,
        mut request: Request<Chunks>,
        receive: impl FnOnce(Response<Incoming>) -> F,
    ) -> Result<T, Broken> {
        let (sender, mut driven, response) = loop {
            let kept = self.take();
            let again = kept.is_some();
            let Idle { mut sender, connection, .. } = match kept {
                Some(idle) => idle,
                None => self.connect().await?,
            };
            let mut driven = Driven { connection: Some(connection), failed: None };
            match driven.drive(sender.try_send_request(request)).await {
                Ok(response) => break (sender, driven, response),
                Err(mut e) => match e.take_message().filter(|_| again) {
                    // One connection less is kept each time.
                    Some(unsent) => request = unsent,
                    None => return Err(Broken::Http(driven.failed.unwrap_or(e.into_error()))),
                },
            }
        };
        let answer = driven.drive(receive(response)).await;
        let answer = answer.map_err(|e| Broken::Http(driven.failed.take().unwrap_or(e)))?;
        if let Some(connection) = driven.connection {
            self.keep(Idle { sender, connection, since: Instant::now() });
        }
        Ok(answer)
    }

    /// For the next message, if it can take one.
    fn keep(&self, mut own: Idle) {
        if !own.is_open() {
            return;
        }
        let mut idle = self.idle.here().lock();
        let old = idle.partition_point(|i| i.since.elapsed() > self.limits.idle_timeout);
        let expired: Vec<_> = idle.drain(..old).collect();
        if idle.len() < self.limits.idle_connections_max {
            idle.push(own);
        }
        // Closed without the lock.
        drop(idle);
        drop(expired);
    }

    /// The one place that makes connections to nodes; TLS would be added here.
    async fn connect(&self) -> Result<Idle, Broken> {
        let connecting = TcpStream::connect((&*self.host, self.port));
        let connected = timeout(self.limits.connect_timeout, connecting).await;
        let stream = connected
            .unwrap_or_else(|_| Err(ErrorKind::TimedOut.into()))
            .and_then(|s| s.set_nodelay(true).map(|()| s))
            .map_err(Broken::Connect)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(Broken::Http)?;
        Ok(Idle { sender, connection, since: Instant::now() })
    }

    /// The one used last that is still good.
    fn take(&self) -> Option<Idle> {
        loop {
            let mut last = self.idle.here().lock().pop()?;
            if last.since.elapsed() <= self.limits.idle_timeout && last.is_open() {
                return Some(last);
            }
        }
    }
}

/// A connection under way.
struct Driven {
    /// `None` when it has ended.
    connection: Option<Connection<TokioIo<TcpStream>, Chunks>>,
    /// Why it ended, if not in good order.
    failed: Option<hyper::Error>,
}

impl Driven {
    /// Works on what is sent and received over the connection, and on the connection itself. A reply may come
    /// together with the end of its connection: it counts. The connection is dropped when it ends, which tells
    /// whoever still waits for something from it.
    async fn drive<T, E>(&mut self, work: impl Future<Output = Result<T, E>>) -> Result<T, E> {
        let mut work = pin!(work);
        poll_fn(|cx| {
            // Before the connection for what is to be sent, behind it for what came.
            if let Poll::Ready(answer) = work.as_mut().poll(cx) {
                return Poll::Ready(answer);
            }
            if let Some(connection) = &mut self.connection
                && let Poll::Ready(end) = Pin::new(connection).poll(cx)
            {
                self.connection = None;
                self.failed = end.err();
            }
            work.as_mut().poll(cx)
        })
        .await
    }
}
