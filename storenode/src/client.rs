//! The typed HTTP client of a node: one request, one reply, one deadline. It checks all that can be
//! checked without knowing what was asked for by whom: lengths, checksums of heads, that the reply
//! fits the request and that the bulk is as long as the reply says. Parts carry their own CRC and
//! values a digest; whoever uses them verifies those.

mod connections;

use crate::background;
use crate::body::Chunks;
use crate::frame::{self, FRAME_PREFIX_LEN};
use crate::token::Token;
use crate::wire::{
    BUCKETS, BULK_LEN_MAX, Envelope, Found, HEAD_LEN_MAX, Key, NodeError, RecordHead, Reply,
    Request, path_of,
};
use bytes::{Bytes, BytesMut};
use connections::{Broken, Connections};
use hyper::body::{Body as _, Incoming};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue};
use hyper::{StatusCode, Uri};
use std::collections::BTreeSet;
use std::future::poll_fn;
use std::io::ErrorKind;
use std::pin::Pin;
use std::time::{Duration, Instant};

/// Largest body of a reply, bytes.
const REPLY_LEN_MAX: usize = FRAME_PREFIX_LEN + HEAD_LEN_MAX + BULK_LEN_MAX;

/// Limits of one client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ClientLimits {
    /// Give up connecting after this; within the deadline of the call.
    pub connect_timeout: Duration,
    /// Idle connections kept for the next calls; as many again for those of the background.
    pub idle_connections_max: usize,
    /// Close an idle connection after this. Shorter than the server's own bound
    /// (30 s), so that a call rarely meets a connection that is just being closed.
    pub idle_timeout: Duration,
}

impl Default for ClientLimits {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_millis(500),
            idle_connections_max: 16,
            idle_timeout: Duration::from_secs(20),
        }
    }
}

/// Why a call brought no reply, by what the caller can do.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ClientError {
    /// No connection, or it broke. If it broke, the node may have acted on the message.
    #[error("unreachable: {0}")]
    Unreachable(String),
    /// Nothing (or not all) came back in time. The node may have acted on the message.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// The node answered, with a refusal.
    #[error(transparent)]
    Refused(NodeError),
    /// What came back is not an answer of a node to this message: cut short, damaged, or another
    /// program listens there.
    #[error("not an answer of a storage node: {0}")]
    Garbled(String),
}

/// Speaks to one node. Cheap to clone; clones share the connections.
#[derive(Clone)]
pub struct NodeClient {
    connections: Connections,
    base: String,
    /// The same as a header.
    host: HeaderValue,
    authorization: HeaderValue,
}

impl NodeClient {
    /// A client of the node at `base_url` (`http://host:port`; a bare `host:port` is taken as
    /// that). Connects when first used.
    ///
    /// # Errors
    /// A message for people when the address is none.
    pub fn new(base_url: &str, token: &Token, limits: ClientLimits) -> Result<Self, String> {
        let scheme = if base_url.contains("://") { "" } else { "http://" };
        let base = format!("{scheme}{}", base_url.strip_suffix('/').unwrap_or(base_url));
        let uri: Uri = base.parse().map_err(|e| format!("{base_url:?} is not an address: {e}"))?;
        if uri.scheme_str() != Some("http") {
            let other = uri.scheme_str().unwrap_or("that");
            return Err(format!("{base_url:?}: nodes speak plain http, not {other}"));
        }
        let (Some(host), "/", None) = (uri.authority(), uri.path(), uri.query()) else {
            return Err(format!("{base_url:?} is not of the form http://host:port"));
        };
        let port = match host.port_u16() {
            None if host.as_str() != host.host() => {
                return Err(format!("{base_url:?}: what follows the host is no port (1 to 65535)"));
            }
            port => port.unwrap_or(80),
        };
        // An address of version 6 stands in brackets.
        let name = host.host().trim_matches(['[', ']']);
        let connections = Connections::new(name, port, limits);
        let host = HeaderValue::from_str(host.as_str())
            .map_err(|_| format!("{base_url:?} cannot be sent in a header"))?;
        let mut authorization = HeaderValue::from_str(&token.header())
            .map_err(|_| "the token cannot be sent in a header".to_string())?;
        authorization.set_sensitive(true);
        Ok(Self { connections, base, host, authorization })
    }

    /// Where the node is: `http://host:port`.
    #[must_use]
    pub fn base_url(&self) -> &str {
        &self.base
    }

    /// Sends one message and waits for its reply and bulk, at most `deadline`.
    ///
    /// A message that may be sent twice is sent once more if its connection turns out to be dead
    /// (the node was restarted since it was used).
    ///
    /// # Errors
    /// [`ClientError`]; only `Refused` says what the node did.
    pub async fn call(
        &self,
        envelope: Envelope,
        request: &Request,
        bulk: Vec<Bytes>,
        deadline: Duration,
    ) -> Result<(Reply, Bytes), ClientError> {
        let bulk_len = bulk.iter().map(Bytes::len).sum();
        let head = frame::encode_head(&(envelope, request), bulk_len)
            .map_err(|e| ClientError::Refused(NodeError::Bad { what: e.to_string() }))?;
        let body = Chunks::new(head, bulk);
        let began = Instant::now();
        let answer = async {
            let again = may_repeat(request).then(|| body.clone());
            match (self.exchange(request, body).await, again) {
                (Err(ClientError::Unreachable(_)), Some(body))
                    if began.elapsed() < deadline / 2 =>
                {
                    self.exchange(request, body).await
                }
                (answer, _) => answer,
            }
        };
        let bytes = tokio::time::timeout(deadline, answer)
            .await
            .unwrap_or(Err(ClientError::Timeout(deadline)))?;
        decode_reply(request, &bytes)
    }

    async fn exchange(&self, request: &Request, body: Chunks) -> Result<Bytes, ClientError> {
        let mut http = hyper::Request::post(path_of(request))
            .header(HOST, self.host.clone())
            .header(AUTHORIZATION, self.authorization.clone())
            .header(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        if background::is_here() {
            http = http.header(background::PRIORITY, HeaderValue::from_static(background::LOWEST));
        }
        let http = http.body(body).map_err(|e| ClientError::Garbled(e.to_string()))?;
        let received = self.connections.exchange(http, async |response| {
            let (status, body) = (response.status(), response.into_body());
            let announced = body.size_hint().exact();
            Ok((status, announced, receive(body).await?))
        });
        let (status, announced, whole) = received.await.map_err(|e| self.broken(&e))?;
        let garbled = |what: &str| ClientError::Garbled(format!("HTTP status {status}, {what}"));
        let Some(whole) = whole else { return Err(garbled("a body over the limit")) };
        if status == StatusCode::SERVICE_UNAVAILABLE && !whole.starts_with(b"TCF1") {
            return Err(ClientError::Unreachable(format!("{}: overloaded", self.base)));
        }
        match announced {
            Some(n) if n != whole.len() as u64 => Err(garbled("a body cut short")),
            _ if whole.starts_with(b"TCF1") => Ok(whole),
            _ => Err(garbled("no frame: is it another program that listens there?")),
        }
    }

    fn broken(&self, e: &Broken) -> ClientError {
        match e {
            Broken::Connect(e) if e.kind() == ErrorKind::TimedOut => {
                ClientError::Unreachable(format!(
                    "{}: no connection within {:?}",
                    self.base,
                    self.connections.limits().connect_timeout
                ))
            }
            Broken::Connect(e) => ClientError::Unreachable(format!("{}: {e}", self.base)),
            Broken::Http(e) => ClientError::Unreachable(format!("{}: {}", self.base, chain(e))),
        }
    }
}

/// A body in one piece; `None` when it is over the limit.
async fn receive(mut body: Incoming) -> Result<Option<Bytes>, hyper::Error> {
    let announced = body.size_hint().exact().and_then(|n| usize::try_from(n).ok());
    if announced.is_some_and(|n| n > REPLY_LEN_MAX) {
        return Ok(None);
    }
    // One piece: use it as it is. More: gather them, growing only with what has really come.
    let mut first = Bytes::new();
    let mut rest = BytesMut::new();
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        let Ok(chunk) = frame?.into_data() else { continue };
        if first.len() + rest.len() + chunk.len() > REPLY_LEN_MAX {
            return Ok(None);
        }
        if first.is_empty() && rest.is_empty() {
            first = chunk;
            continue;
        }
        if rest.is_empty() {
            rest.reserve(announced.unwrap_or(first.len() + chunk.len()));
            rest.extend_from_slice(&first);
            first = Bytes::new();
        }
        rest.extend_from_slice(&chunk);
    }
    Ok(Some(if rest.is_empty() { first } else { rest.freeze() }))
}

/// Innermost cause: what the system said, without the layers that carried it.
fn chain(e: &hyper::Error) -> String {
    let mut cause: &dyn std::error::Error = e;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

/// May the node get this twice? True for all that reads and for what names its own position.
fn may_repeat(r: &Request) -> bool {
    match r {
        Request::Status
        | Request::Fence { .. }
        | Request::Append { .. }
        | Request::Read { .. }
        | Request::Digests { .. }
        | Request::Scan { .. }
        | Request::Hashes { .. }
        | Request::Bucket { .. }
        | Request::Tail { .. }
        | Request::Delta { .. }
        | Request::Beat { .. }
        | Request::Cursor(_)
        | Request::Verify { .. }
        | Request::VerifyFiles { .. }
        | Request::Missed { .. } => true,
        Request::Assign { .. }
        | Request::Attach { .. }
        | Request::Install { .. }
        | Request::Remove { .. }
        | Request::Join { .. }
        | Request::Configure { .. }
        | Request::Admit { .. }
        | Request::Inject(_) => false,
    }
}

pub(crate) fn decode_reply(
    request: &Request,
    bytes: &Bytes,
) -> Result<(Reply, Bytes), ClientError> {
    let (answer, bulk) = frame::decode::<Result<Reply, NodeError>>(bytes)
        .map_err(|e| ClientError::Garbled(e.to_string()))?;
    let reply = answer.map_err(ClientError::Refused)?;
    let lens = bulk_lens(request, &reply).map_err(ClientError::Garbled)?;
    let announced: usize = lens.iter().sum();
    if announced != bulk.len() {
        return Err(ClientError::Garbled(format!(
            "{} bytes of bulk where the reply announces {announced}",
            bulk.len()
        )));
    }
    Ok((reply, bulk))
}

/// Lengths of the pieces of bulk that follow `reply`, in order: one per found record of a `read`,
/// per record with a value of a `scan` or `delta`, per part of a `tail`. Zero-length values count;
/// absent, deleted and damaged ones do not, except that a damaged value listed by `scan` stands for
/// an empty piece.
///
/// # Errors
/// What is wrong, when the reply does not fit the request.
pub fn bulk_lens(request: &Request, reply: &Reply) -> Result<Vec<usize>, String> {
    let records_lens = |records: &[RecordHead], damaged: &[Key]| {
        let damaged: BTreeSet<&Key> = damaged.iter().collect();
        let sent = |r: &RecordHead| match r.len {
            Some(_) if damaged.contains(&r.key) => Some(0),
            len => len.map(|n| n as usize),
        };
        records.iter().filter_map(sent).collect()
    };
    Ok(match (request, reply) {
        (Request::Read { keys, .. }, Reply::Found { items, .. }) if keys.len() == items.len() => {
            let len = |f: &Found| match f {
                Found::Record { len, .. } => len.map(|n| n as usize),
                Found::Absent | Found::Damaged { .. } => None,
            };
            items.iter().filter_map(len).collect()
        }
        (Request::Digests { keys, .. }, Reply::Found { items, .. })
            if keys.len() == items.len() =>
        {
            Vec::new()
        }
        (
            Request::Scan { values: true, .. } | Request::Delta { values: true, .. },
            Reply::Records { records, damaged, .. },
        ) => records_lens(records, damaged),
        (Request::Tail { .. }, Reply::Tail { lens, .. }) => {
            lens.iter().map(|n| *n as usize).collect()
        }
        (Request::Hashes { .. }, Reply::Hashes { buckets, .. }) if buckets.len() == BUCKETS => {
            Vec::new()
        }
        (
            Request::Scan { values: false, .. }
            | Request::Delta { values: false, .. }
            | Request::Bucket { .. },
            Reply::Records { .. },
        )
        | (
            Request::Status
            | Request::Assign { .. }
            | Request::Fence { .. }
            | Request::Admit { .. },
            Reply::Status(_),
        )
        | (
            Request::Attach { .. }
            | Request::Append { .. }
            | Request::Join { .. }
            | Request::Beat { .. },
            Reply::Position(_),
        )
        | (Request::Install { .. } | Request::Remove { .. }, Reply::Installed { .. })
        | (Request::Verify { .. }, Reply::Verified { .. })
        | (Request::VerifyFiles { .. }, Reply::FilesVerified { .. })
        | (Request::Missed { .. }, Reply::Missed { .. })
        | (Request::Cursor(_) | Request::Configure { .. } | Request::Inject(_), Reply::Done) => {
            Vec::new()
        }
        _ => return Err(format!("a reply that does not fit {}", path_of(request))),
    })
}

/// Cuts the bulk of a reply into its pieces, in the order of [`bulk_lens`]; nothing is copied.
///
/// # Errors
/// What is wrong, when the bulk is not as long as the reply says.
pub fn split_bulk(request: &Request, reply: &Reply, bulk: &Bytes) -> Result<Vec<Bytes>, String> {
    let lens = bulk_lens(request, reply)?;
    if lens.iter().sum::<usize>() != bulk.len() {
        return Err("the bulk is not as long as the reply says".into());
    }
    let mut at = 0;
    let mut cut = |len: usize| {
        at += len;
        bulk.slice(at - len..at)
    };
    Ok(lens.into_iter().map(&mut cut).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Digest, Version};

    fn client(url: &str) -> Result<NodeClient, String> {
        NodeClient::new(url, &Token::random().unwrap(), ClientLimits::default())
    }

    #[test]
    fn addresses() {
        assert_eq!(client("127.0.0.1:8000").unwrap().base_url(), "http://127.0.0.1:8000");
        assert_eq!(client("http://[::1]:8000/").unwrap().base_url(), "http://[::1]:8000");
        for bad in ["https://h:1", "http://h:1/x", "http://h:1?q", "http://", "", "h:99999"] {
            assert!(client(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_reply_must_fit_its_request_and_its_bulk() {
        let record = |key: &[u8], len| RecordHead {
            key: key.to_vec(),
            version: Version::new(1, 1),
            digest: Digest::ZERO,
            len,
        };
        let scan = |values| Request::Scan {
            start: vec![],
            end: vec![],
            limit: 9,
            values,
            through: Version::ZERO,
        };
        let reply = Reply::Records {
            applied: Version::ZERO,
            records: vec![
                record(b"a", Some(2)),
                record(b"b", Some(0)),
                record(b"c", Some(9)),
                record(b"d", Some(1)),
                record(b"e", None),
            ],
            damaged: vec![b"c".to_vec()],
            next: None,
        };
        assert_eq!(bulk_lens(&scan(true), &reply).unwrap(), vec![2, 0, 0, 1]);
        assert_eq!(bulk_lens(&scan(false), &reply).unwrap(), Vec::<usize>::new());
        assert!(bulk_lens(&Request::Status, &reply).is_err());
        let bulk = Bytes::from_static(b"xyz");
        let pieces = split_bulk(&scan(true), &reply, &bulk).unwrap();
        assert_eq!(pieces.iter().map(|p| &p[..]).collect::<Vec<_>>(), [&b"xy"[..], b"", b"", b"z"]);

        let whole = |tail: &[u8]| {
            let mut b = frame::encode_head(&Ok::<_, NodeError>(reply.clone()), tail.len())
                .unwrap()
                .to_vec();
            b.extend_from_slice(tail);
            Bytes::from(b)
        };
        assert_eq!(decode_reply(&scan(true), &whole(b"xyz")).unwrap().0, reply);
        let garbled = |r| matches!(r, Err(ClientError::Garbled(_)));
        assert!(garbled(decode_reply(&scan(true), &whole(b"xyzz"))));
        assert!(garbled(decode_reply(&scan(true), &whole(b"xyz").slice(..40))));
        assert!(garbled(decode_reply(&Request::Status, &whole(b"xyz"))));
    }
}
