//! Two small guards: a gauge that goes down by itself, and a stream that gives up on a peer that
//! takes nothing and gives again what was read of it before.

use super::Shared;
use crate::metrics::HttpMetrics;
use bytes::{Buf, Bytes};
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

/// Counts itself in a gauge while it lives.
pub(super) struct Gauge<N> {
    shared: Arc<Shared<N>>,
    of: fn(&HttpMetrics) -> &AtomicU64,
}

impl<N> Gauge<N> {
    pub(super) fn up(shared: Arc<Shared<N>>, of: fn(&HttpMetrics) -> &AtomicU64) -> Self {
        of(&shared.metrics).fetch_add(1, Relaxed);
        Self { shared, of }
    }
}

impl<N> Drop for Gauge<N> {
    fn drop(&mut self) {
        (self.of)(&self.shared.metrics).fetch_sub(1, Relaxed);
    }
}

/// A stream whose writes fail when the peer accepts not one byte for a while. Reads need no such
/// bound here: heads and bodies have their own.
pub(super) struct Impatient<S> {
    stream: S,
    /// Comes before what is read from it.
    head: Bytes,
    patience: Duration,
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<S> Impatient<S> {
    pub(super) fn new(stream: S, head: Bytes, patience: Duration) -> Self {
        Self { stream, head, patience, stalled: None }
    }

    /// The stream, and what is to be read before it.
    pub(super) fn into_parts(self) -> (S, Bytes) {
        (self.stream, self.head)
    }

    fn bound<T>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let patience = self.patience;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(patience)));
        ready!(stalled.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the peer takes nothing")))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Impatient<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.head.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        }
        let n = self.head.len().min(buf.remaining());
        buf.put_slice(&self.head[..n]);
        self.head.advance(n);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Impatient<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.bound(cx, written)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.bound(cx, written)
    }
    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
