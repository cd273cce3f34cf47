//! Connections to one node, kept for the next messages. Whoever sends a message drives its connection
//! in its own task until the reply is there: no connection has a task of its own, which would have to be
//! woken for each message and to wake the sender again (docs/adr/0021-hyper.md).

use super::ClientLimits;
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

/// See the module. Clones share the connections.
#[derive(Clone)]
pub(super) struct Connections {
    host: Arc<str>,
    port: u16,
    limits: ClientLimits,
    /// The one used last is at the end.
    idle: Arc<Mutex<Vec<Idle>>>,
}

impl Connections {
    pub(super) fn new(host: &str, port: u16, limits: ClientLimits) -> Self {
        Self { host: host.into(), port, limits, idle: Arc::default() }
    }

    /// Sends a request; `receive` takes the reply in, with its body. Dropped before that, the connection ends
    /// with it.
    pub(super) async fn exchange<T, F: Future<Output = Result<T, hyper::Error>>>(
        &self,
        request: Request<Chunks>,
        receive: impl FnOnce(Response<Incoming>) -> F,
    ) -> Result<T, Broken> {
        let mut own = match self.take() {
            Some(idle) => idle,
            None => self.connect().await?,
        };
        let work = async {
            let response = own.sender.send_request(request).await?;
            receive(response).await
        };
        let (answer, over) = drive(&mut own.connection, work).await.map_err(Broken::Http)?;
        if !over && own.is_open() {
            own.since = Instant::now();
            let mut idle = self.idle.lock();
            if idle.len() < self.limits.idle_connections_max {
                idle.push(own);
            }
        }
        Ok(answer)
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
        let mut idle = self.idle.lock();
        while let Some(mut last) = idle.pop() {
            if last.since.elapsed() > self.limits.idle_timeout {
                // The others have been idle for longer.
                idle.clear();
            } else if last.is_open() {
                return Some(last);
            }
        }
        None
    }
}

/// Works on what is sent and received over a connection, and on the connection itself. True: it is over.
async fn drive<T>(
    connection: &mut Connection<TokioIo<TcpStream>, Chunks>,
    work: impl Future<Output = Result<T, hyper::Error>>,
) -> Result<(T, bool), hyper::Error> {
    let (mut work, mut over) = (pin!(work), false);
    poll_fn(|cx| {
        // Before the connection for what is to be sent, behind it for what came.
        if let Poll::Ready(answer) = work.as_mut().poll(cx) {
            return Poll::Ready(answer.map(|a| (a, over)));
        }
        if !over {
            match Pin::new(&mut *connection).poll(cx) {
                Poll::Pending => {}
                Poll::Ready(Ok(())) => over = true,
                Poll::Ready(Err(e)) => return Poll::Ready(Err(e)),
            }
        }
        work.as_mut().poll(cx).map(|answer| answer.map(|a| (a, over)))
    })
    .await
}
