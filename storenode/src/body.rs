//! An HTTP body that is a row of [`Bytes`]: a frame's head and its bulk leave without being copied
//! into one buffer first. Used by the client for requests and by the server for replies.

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

/// Pieces shorter than this are gathered: copying them costs less than a place in a `writev`.
const GATHER_BELOW: usize = 16 << 10;
/// Largest gathered piece, bytes.
const GATHER_MAX: usize = 64 << 10;

/// A body of known length.
#[derive(Clone, Debug, Default)]
pub(crate) struct Chunks {
    chunks: VecDeque<Bytes>,
    remaining: u64,
}

impl Chunks {
    /// The body that consists of `head` and then `bulk`.
    pub(crate) fn new(head: Bytes, bulk: Vec<Bytes>) -> Self {
        let mut out = Self::default();
        let mut small = BytesMut::new();
        for chunk in std::iter::once(head).chain(bulk).filter(|c| !c.is_empty()) {
            if chunk.len() >= GATHER_BELOW {
                out.push(small.split().freeze());
                out.push(chunk);
                continue;
            }
            if small.len() + chunk.len() > GATHER_MAX {
                out.push(small.split().freeze());
            }
            small.extend_from_slice(&chunk);
        }
        out.push(small.freeze());
        out
    }

    fn push(&mut self, chunk: Bytes) {
        if !chunk.is_empty() {
            self.remaining += chunk.len() as u64;
            self.chunks.push_back(chunk);
        }
    }
}

impl Body for Chunks {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let next = self.chunks.pop_front();
        self.remaining -= next.as_ref().map_or(0, |c| c.len() as u64);
        Poll::Ready(next.map(|c| Ok(Frame::data(c))))
    }

    fn is_end_stream(&self) -> bool {
        self.chunks.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.remaining)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_lost_and_large_pieces_are_not_copied() {
        let large = Bytes::from(vec![7u8; GATHER_BELOW]);
        let small: Vec<Bytes> = (0..200).map(|i| Bytes::from(vec![i as u8; 1000])).collect();
        let mut bulk = small.clone();
        bulk.insert(100, large.clone());
        bulk.insert(0, Bytes::new());
        let mut body = Chunks::new(Bytes::from_static(b"head"), bulk.clone());
        let want: Vec<u8> = std::iter::once(&b"head"[..])
            .chain(bulk.iter().map(|b| &b[..]))
            .flatten()
            .copied()
            .collect();
        assert_eq!(body.size_hint().exact(), Some(want.len() as u64));
        assert!(body.chunks.iter().any(|c| c.as_ptr() == large.as_ptr()));
        assert!(body.chunks.len() < 12);
        let mut got = Vec::new();
        let mut cx = Context::from_waker(std::task::Waker::noop());
        while let Poll::Ready(Some(Ok(f))) = Pin::new(&mut body).poll_frame(&mut cx) {
            got.extend_from_slice(&f.into_data().unwrap());
        }
        assert_eq!(got, want);
        assert!(body.is_end_stream());
    }
}
