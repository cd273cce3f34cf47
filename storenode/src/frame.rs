//! A frame: the body of every HTTP message. A bincode head, checksummed, and bulk bytes that carry
//! their own checks (parts a CRC, values a digest).
//!
//! ```text
//!   0 magic "TCF1"   4 head length u32   8 bulk length u64   16 crc32c of bytes 0..16 and head
//!  20 head           then bulk
//! ```

use crate::wire::{BULK_LEN_MAX, HEAD_LEN_MAX};
use bytes::{BufMut, Bytes, BytesMut};

/// Bytes before the head.
pub const FRAME_PREFIX_LEN: usize = 20;
const MAGIC: [u8; 4] = *b"TCF1";

/// Why a body is not a frame. A body that ends early is as common as a wrong one: both are told.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FrameError {
    /// Too few or too many bytes.
    #[error("body of {have} bytes, {need} announced")]
    Length {
        /// Received.
        have: usize,
        /// Announced.
        need: usize,
    },
    /// Over a limit of [`crate::wire`].
    #[error("frame over the limit")]
    TooLarge,
    /// Not a frame, or damaged on the way.
    #[error("not a frame: {0}")]
    Damaged(String),
}

/// Encodes the prefix and head of a frame whose bulk is `bulk_len` bytes; the caller sends the bulk
/// behind it without copying.
///
/// # Errors
/// [`FrameError::TooLarge`] over the limits.
pub fn encode_head<T: bincode::Encode>(head: &T, bulk_len: usize) -> Result<Bytes, FrameError> {
    let body = bincode::encode_to_vec(head, bincode::config::standard())
        .map_err(|e| FrameError::Damaged(e.to_string()))?;
    if body.len() > HEAD_LEN_MAX || bulk_len > BULK_LEN_MAX {
        return Err(FrameError::TooLarge);
    }
    let mut b = BytesMut::with_capacity(FRAME_PREFIX_LEN + body.len());
    b.put_slice(&MAGIC);
    b.put_u32_le(body.len() as u32);
    b.put_u64_le(bulk_len as u64);
    let crc = crc32c::crc32c_append(crc32c::crc32c(&b), &body);
    b.put_u32_le(crc);
    b.put_slice(&body);
    Ok(b.freeze())
}

/// Where the bulk of a body begins that begins like this, if it is a frame; `None` when too little is there.
#[cfg(feature = "server")]
pub(crate) fn bulk_at(start: &[u8]) -> Option<usize> {
    let head_len = start.get(4..8)?.try_into().ok()?;
    Some(FRAME_PREFIX_LEN + u32::from_le_bytes(head_len) as usize)
}

/// Splits and verifies a whole body into head and bulk.
///
/// # Errors
/// [`FrameError`] when it is short, long, damaged or over a limit.
pub fn decode<T: bincode::Decode<()>>(body: &Bytes) -> Result<(T, Bytes), FrameError> {
    if body.len() < FRAME_PREFIX_LEN {
        return Err(FrameError::Length { have: body.len(), need: FRAME_PREFIX_LEN });
    }
    if body[..4] != MAGIC {
        return Err(FrameError::Damaged("wrong magic".into()));
    }
    let word = |at: usize| u32::from_le_bytes([body[at], body[at + 1], body[at + 2], body[at + 3]]);
    let (head_len, bulk_len) = (word(4) as usize, word(8) as usize);
    if head_len > HEAD_LEN_MAX || bulk_len > BULK_LEN_MAX || word(12) != 0 {
        return Err(FrameError::TooLarge);
    }
    let need = FRAME_PREFIX_LEN + head_len + bulk_len;
    if body.len() != need {
        return Err(FrameError::Length { have: body.len(), need });
    }
    let head = &body[FRAME_PREFIX_LEN..FRAME_PREFIX_LEN + head_len];
    if crc32c::crc32c_append(crc32c::crc32c(&body[..16]), head) != word(16) {
        return Err(FrameError::Damaged("checksum".into()));
    }
    let config = bincode::config::standard().with_limit::<HEAD_LEN_MAX>();
    let (value, used) = bincode::decode_from_slice::<T, _>(head, config)
        .map_err(|e| FrameError::Damaged(e.to_string()))?;
    if used != head_len {
        return Err(FrameError::Damaged("bytes after the head".into()));
    }
    Ok((value, body.slice(FRAME_PREFIX_LEN + head_len..)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Request, Version};

    #[test]
    fn round_trip_and_every_damage_is_seen() {
        let r = Request::Beat { watermark: Version::new(1, 2), release: false };
        let mut whole = encode_head(&r, 3).unwrap().to_vec();
        whole.extend_from_slice(b"abc");
        let (back, bulk) = decode::<Request>(&Bytes::from(whole.clone())).unwrap();
        assert_eq!((back, &bulk[..]), (r, &b"abc"[..]));
        for cut in 0..whole.len() {
            assert!(decode::<Request>(&Bytes::from(whole[..cut].to_vec())).is_err());
        }
        for bit in 0..(whole.len() - 3) * 8 {
            let mut bad = whole.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(decode::<Request>(&Bytes::from(bad)).is_err(), "bit {bit}");
        }
    }
}
