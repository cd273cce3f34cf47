//! Who comes: the head of the first request is read before it is decided where its connection is served.

use crate::token::Token;
use axum::http::header::AUTHORIZATION;
use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

/// Longest head of a first request that can show the token, bytes; more headers than this cannot either.
const HEAD_MAX: usize = 8 << 10;
const HEADERS_MAX: usize = 64;

/// What was read of a connection.
pub(super) struct Arrival {
    /// To be read again.
    pub(super) head: Bytes,
    /// The token was shown.
    pub(super) known: bool,
}

/// Reads until the head of the first request is there; `None` when the peer ended before that. The caller
/// bounds the time.
pub(super) async fn arrival<S: AsyncRead + Unpin>(
    stream: &mut S,
    token: &Token,
) -> std::io::Result<Option<Arrival>> {
    let mut head = BytesMut::with_capacity(1 << 10);
    loop {
        if stream.read_buf(&mut head).await? == 0 {
            return Ok(None);
        }
        let known = match shows(&head, token) {
            Some(known) => known,
            None if head.len() < HEAD_MAX => continue,
            None => false,
        };
        return Ok(Some(Arrival { head: head.freeze(), known }));
    }
}

/// Does a request that begins with `head` show the token? `None` = its head is not all there.
fn shows(head: &[u8], token: &Token) -> Option<bool> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(head) {
        Ok(httparse::Status::Partial) => None,
        Ok(httparse::Status::Complete(_)) => {
            let named =
                |h: &&httparse::Header<'_>| h.name.eq_ignore_ascii_case(AUTHORIZATION.as_str());
            let shown = request.headers.iter().find(named);
            Some(token.allows(shown.map(|h| h.value)))
        }
        // It is told so where strangers are served.
        Err(_) => Some(false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_token_is_seen_however_the_head_is_cut_and_nothing_is_lost() {
        let token = Token::random().unwrap();
        let post = |name: &str, value: &str| {
            format!("POST /v1/read HTTP/1.1\r\nHost: x\r\n{name}: {value}\r\n\r\nbody").into_bytes()
        };
        let (good, other) = (token.header(), Token::random().unwrap().header());
        let cases = [
            (post("aUTHORIZATION", &good), Some(true)),
            (post("Authorization", &other), Some(false)),
            (post("Authentication", &good), Some(false)),
            (b"\x16\x03\x01 hello\r\n\r\n".to_vec(), Some(false)),
            (b"POST / HTTP/1.1\r\nHost".to_vec(), None),
            (post("X", &"y".repeat(HEAD_MAX)), Some(false)),
        ];
        for (bytes, want) in cases {
            for cut in [1, 7, bytes.len() - 1] {
                let (first, second) = bytes.split_at(cut);
                let mut stream = first.chain(second);
                let got = arrival(&mut stream, &token).await.unwrap();
                assert_eq!(got.as_ref().map(|a| a.known), want);
                if let Some(mut got) = got.map(|a| a.head.to_vec()) {
                    stream.read_to_end(&mut got).await.unwrap();
                    assert_eq!(got, bytes);
                }
            }
        }
    }
}
