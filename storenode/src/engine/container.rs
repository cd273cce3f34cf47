//! Small files that are written whole: state and sidecars. Magic, format, length, checksums.
//!
//! ```text
//!   0 magic [4]   4 format u16   6 zero u16   8 body length u64   16 crc32c of the body u32
//!  20 crc32c of bytes 0..20 u32   24 body
//! ```

use super::entry::{u16_at, u32_at, u64_at};
use super::segment::LOG_FORMAT;
use bincode::{Decode, Encode};

const PREFIX_LEN: usize = 24;
const BODY_MAX: usize = 1 << 30;
/// Steps of what a body may claim, bytes: the limit of a decoder is a constant.
const SMALL: usize = 1 << 20;
const MEDIUM: usize = 1 << 24;
const LARGE: usize = 1 << 28;

/// Why a file is not what its name says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum ContainerError {
    Damaged(&'static str),
    UnknownFormat(u16),
}

/// The bytes of a file.
pub(crate) fn seal<T: Encode>(magic: [u8; 4], value: &T) -> Vec<u8> {
    let mut b = vec![0; PREFIX_LEN];
    // Encoding plain data into memory cannot fail.
    let _ = bincode::encode_into_std_write(value, &mut b, bincode::config::standard());
    let (len, crc) = ((b.len() - PREFIX_LEN) as u64, crc32c::crc32c(&b[PREFIX_LEN..]));
    b[..4].copy_from_slice(&magic);
    b[4..6].copy_from_slice(&LOG_FORMAT.to_le_bytes());
    b[8..16].copy_from_slice(&len.to_le_bytes());
    b[16..20].copy_from_slice(&crc.to_le_bytes());
    let crc = crc32c::crc32c(&b[..20]);
    b[20..24].copy_from_slice(&crc.to_le_bytes());
    b
}

/// The value in a file's bytes.
pub(crate) fn unseal<T: Decode<()>>(magic: [u8; 4], b: &[u8]) -> Result<T, ContainerError> {
    use ContainerError::{Damaged, UnknownFormat};
    if b.len() < PREFIX_LEN {
        return Err(Damaged("too short"));
    }
    if b[..4] != magic || crc32c::crc32c(&b[..20]) != u32_at(b, 20) {
        return Err(Damaged("head"));
    }
    if u16_at(b, 4) != LOG_FORMAT {
        return Err(UnknownFormat(u16_at(b, 4)));
    }
    let body = &b[PREFIX_LEN..];
    if u64_at(b, 8) != body.len() as u64 || crc32c::crc32c(body) != u32_at(b, 16) {
        return Err(Damaged("checksum or length"));
    }
    // A list is allocated by the length it claims, before its rows are read: so what may be claimed
    // follows what is there. No row takes 16 times its encoding in memory.
    let decoded = match body.len().saturating_mul(16) {
        0..SMALL => decode::<T, SMALL>(body),
        SMALL..MEDIUM => decode::<T, MEDIUM>(body),
        MEDIUM..LARGE => decode::<T, LARGE>(body),
        _ => decode::<T, BODY_MAX>(body),
    };
    decoded.ok_or(Damaged("content"))
}

/// Decodes all of a body that may claim `LIMIT` bytes.
fn decode<T: Decode<()>, const LIMIT: usize>(body: &[u8]) -> Option<T> {
    let config = bincode::config::standard().with_limit::<LIMIT>();
    let (value, used) = bincode::decode_from_slice(body, config).ok()?;
    (used == body.len()).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_claimed_follows_what_is_there() {
        // As a list of 2^28 versions: a length that no body of 20 bytes can keep.
        let mut lie = bincode::encode_to_vec(1u64 << 28, bincode::config::standard()).unwrap();
        lie.resize(20, 0);
        assert_eq!(decode::<Vec<(u64, u64)>, SMALL>(&lie), None);
        for n in [0usize, 1, 3000, 5_000, 100_000, 3_000_000] {
            let rows = vec![(1u8, [0u64; 6], Some(2u32)); n];
            assert_eq!(unseal::<Vec<_>>(*b"TEST", &seal(*b"TEST", &rows)), Ok(rows), "{n} rows");
        }
    }
}
