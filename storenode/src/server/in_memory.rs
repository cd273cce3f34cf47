//! The server behind a pipe in memory instead of a socket: what arrives is read by the same code,
//! with the same bounds. For the fuzz target `http`.

use super::{Node, Routes, ServerLimits, Shared, greet, serve};
use crate::token::Token;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::sync::watch;
use tokio::time::timeout;

/// Bytes that the pipe holds.
const PIPE_LEN: usize = 64 << 10;
/// A conversation whose sender has said all takes no longer.
const PATIENCE: Duration = Duration::from_secs(20);

/// A server without a listener.
pub struct InMemory<N> {
    shared: Arc<Shared<N>>,
    routes: Routes,
    stop: watch::Sender<bool>,
}

impl<N: Node> InMemory<N> {
    /// In front of `node`.
    pub fn new(node: Arc<N>, token: Token, limits: ServerLimits) -> Self {
        let shared = Shared::new(node, token, limits);
        Self { routes: Routes::new(&shared), shared, stop: watch::channel(false).0 }
    }

    /// One connection: sends `bytes`, ends its side when nothing has come back for `silence`, and
    /// returns all that came. `None` when the server does not end.
    pub async fn talk(&self, bytes: &[u8], silence: Duration) -> Option<Vec<u8>> {
        let (near, far) = duplex(PIPE_LEN);
        let stopped = self.stop.subscribe();
        let serving = async {
            let Some((stream, known)) = greet(far, &self.shared, stopped.clone()).await else {
                return;
            };
            serve(stream, known, self.routes.clone(), Arc::clone(&self.shared), stopped).await;
        };
        let (mut from, mut to) = tokio::io::split(near);
        // A server that has heard enough closes its end: then the rest is not sent.
        let send = async { to.write_all(bytes).await.map(|()| to) };
        let mut got = Vec::new();
        let receive = async {
            let mut piece = [0; 4096];
            let mut hear = async |silence| match timeout(silence, from.read(&mut piece)).await {
                Ok(n) => n.map_or(0, |n| {
                    got.extend_from_slice(&piece[..n]);
                    n
                }),
                Err(_) => usize::MAX,
            };
            let (sent, mut last) = tokio::join!(send, hear(silence));
            while last != 0 && last != usize::MAX {
                last = hear(silence).await;
            }
            if let (Ok(mut to), true) = (sent, last == usize::MAX) {
                let _ = to.shutdown().await;
            }
            while last != 0 {
                last = hear(PATIENCE).await;
            }
        };
        timeout(PATIENCE, async { tokio::join!(serving, receive) }).await.ok()?;
        Some(got)
    }

    /// Room for request bodies that is in use, KiB: none once all that was asked for is done.
    pub fn body_kib_in_hand(&self) -> usize {
        (self.shared.limits.body_bytes_max >> 10) - self.shared.body_kib.available_permits()
    }
}
