//! Between bytes and messages: a body becomes a request, an answer becomes a body in pieces.

use super::{Node, Shared};
use crate::body::Chunks;
use crate::frame::{self, FRAME_PREFIX_LEN, FrameError};
use crate::metrics::HttpMetrics;
use crate::wire::{Envelope, NodeError, Reply, Request, WIRE_FORMAT, path_of};
use axum::body::{Body, HttpBody};
use axum::http::header::{CONNECTION, CONTENT_TYPE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use std::pin::Pin;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};

pub(crate) fn decode(path: &str, body: &Bytes) -> Result<(Envelope, Request, Bytes), NodeError> {
    let bad = |what: String| NodeError::Bad { what };
    let ((envelope, request), bulk) = match frame::decode::<(Envelope, Request)>(body) {
        Ok(((envelope, request), bulk)) => ((envelope, request), bulk),
        Err(e) => return Err(newer_format(body, &e).unwrap_or_else(|| bad(e.to_string()))),
    };
    if envelope.format != WIRE_FORMAT {
        return Err(NodeError::UnknownFormat { format: envelope.format });
    }
    if path_of(&request) != path {
        return Err(bad(format!("{path} was given a message for {}", path_of(&request))));
    }
    Ok((envelope, request, bulk))
}

/// A whole frame that does not decode may speak a newer format, which is its first field.
fn newer_format(body: &Bytes, e: &FrameError) -> Option<NodeError> {
    let head = body.get(FRAME_PREFIX_LEN..)?;
    if !matches!(e, FrameError::Damaged(what) if what != "checksum") || !body.starts_with(b"TCF1") {
        return None;
    }
    let (format, _) =
        bincode::decode_from_slice::<u16, _>(head, bincode::config::standard()).ok()?;
    (format != WIRE_FORMAT).then_some(NodeError::UnknownFormat { format })
}

pub(super) fn reply<N: Node, G: Unpin + Send + 'static>(
    shared: &Shared<N>,
    answer: Result<(Reply, Vec<Bytes>), NodeError>,
    in_hand: G,
) -> Response {
    let (reply, bulk) = match answer {
        Ok(good) => good,
        Err(e) => return refusal(status_of(&e), &e),
    };
    let bulk_len = bulk.iter().map(Bytes::len).sum();
    let head = match frame::encode_head(&Ok::<_, NodeError>(reply), bulk_len) {
        Ok(head) => head,
        Err(e) => {
            let what = format!("the reply does not fit a frame ({e}): ask for less");
            return refusal(StatusCode::BAD_REQUEST, &NodeError::Bad { what });
        }
    };
    shared.metrics.sent_bytes.fetch_add((head.len() + bulk_len) as u64, Relaxed);
    let body = Held { chunks: Chunks::new(head, bulk), _until_sent: in_hand };
    framed(StatusCode::OK, Body::new(body))
}

pub(super) fn refusal(status: StatusCode, e: &NodeError) -> Response {
    let head = frame::encode_head(&Err::<Reply, _>(e), 0).unwrap_or_default();
    let mut response = framed(status, Body::from(head));
    if matches!(
        status,
        StatusCode::UNAUTHORIZED | StatusCode::PAYLOAD_TOO_LARGE | StatusCode::REQUEST_TIMEOUT
    ) {
        // The body was not read; what is left of it must not be taken for the next request.
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// Not a frame on purpose: there is no refusal for it, the sender treats it like silence.
pub(super) fn overloaded(metrics: &HttpMetrics) -> Response {
    metrics.overloaded.fetch_add(1, Relaxed);
    let close = [(CONNECTION, HeaderValue::from_static("close"))];
    (StatusCode::SERVICE_UNAVAILABLE, close, "overloaded\n").into_response()
}

fn framed(status: StatusCode, body: Body) -> Response {
    let kind = [(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"))];
    (status, kind, body).into_response()
}

/// For people and proxies; clients look at the refusal itself.
fn status_of(e: &NodeError) -> StatusCode {
    match e {
        NodeError::Unauthorized => StatusCode::UNAUTHORIZED,
        NodeError::WrongVolume { .. }
        | NodeError::WrongStore { .. }
        | NodeError::WrongPlace { .. } => StatusCode::MISDIRECTED_REQUEST,
        NodeError::Fenced { .. }
        | NodeError::NotAttached { .. }
        | NodeError::NotThere { .. }
        | NodeError::WrongRole { .. }
        | NodeError::BelowFloor { .. } => StatusCode::CONFLICT,
        NodeError::Failed { .. } => StatusCode::INTERNAL_SERVER_ERROR,
        NodeError::Full { .. } => StatusCode::INSUFFICIENT_STORAGE,
        NodeError::Bad { .. } | NodeError::UnknownFormat { .. } => StatusCode::BAD_REQUEST,
        NodeError::Fault { .. } => StatusCode::FORBIDDEN,
    }
}

/// A reply that keeps its places until it has left: replies in hand are bounded like requests.
struct Held<G> {
    chunks: Chunks,
    _until_sent: G,
}

impl<G: Unpin> HttpBody for Held<G> {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Self::Error>>> {
        Pin::new(&mut self.chunks).poll_frame(cx)
    }
    fn is_end_stream(&self) -> bool {
        self.chunks.is_end_stream()
    }
    fn size_hint(&self) -> http_body::SizeHint {
        self.chunks.size_hint()
    }
}
