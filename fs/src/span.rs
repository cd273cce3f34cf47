//! Which blocks a range of bytes touches, and how bytes lie in a block. Pure.
//!
//! A block is kept without its trailing zeros: a short value means zeros up to the block size, and
//! a block of zeros has no record. So holes, tails and growth need no special cases.

use bytes::{Bytes, BytesMut};

/// The part of a byte range that lies in one block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Span {
    /// The block.
    pub block: u64,
    /// First byte in the block.
    pub from: usize,
    /// End (exclusive) in the block.
    pub to: usize,
    /// Where this part begins in the range.
    pub at: usize,
}

/// The parts of `offset..offset + len`, ascending.
pub fn spans(offset: u64, len: usize, block_size: u32) -> impl Iterator<Item = Span> {
    let bs = u64::from(block_size);
    let end = offset.saturating_add(len as u64);
    let mut pos = offset;
    std::iter::from_fn(move || {
        if pos >= end {
            return None;
        }
        let block = pos / bs;
        let from = (pos % bs) as usize;
        let to = (end - block * bs).min(bs) as usize;
        let span = Span { block, from, to, at: (pos - offset) as usize };
        pos += (to - from) as u64;
        Some(span)
    })
}

/// Drops trailing zeros; shares the buffer.
#[must_use]
pub fn trim(bytes: Bytes) -> Bytes {
    let len = trimmed_len(&bytes);
    if len == bytes.len() {
        return bytes;
    }
    if len * 2 < bytes.len() {
        // What is left must not hold the whole buffer.
        return Bytes::copy_from_slice(&bytes[..len]);
    }
    bytes.slice(..len)
}

fn trimmed_len(bytes: &[u8]) -> usize {
    let mut end = bytes.len();
    while end >= 16 && u128::from_ne_bytes(bytes[end - 16..end].try_into().expect("16")) == 0 {
        end -= 16;
    }
    while end > 0 && bytes[end - 1] == 0 {
        end -= 1;
    }
    end
}

/// `old` with `data` written over it at `from`, trimmed.
#[must_use]
pub fn overlay(old: &Bytes, from: usize, data: &Bytes) -> Bytes {
    let to = from + data.len();
    if from == 0 && to >= old.len() {
        return trim(data.clone());
    }
    let mut out = BytesMut::with_capacity(old.len().max(to));
    out.extend_from_slice(&old[..from.min(old.len())]);
    out.resize(from, 0);
    out.extend_from_slice(data);
    if to < old.len() {
        out.extend_from_slice(&old[to..]);
    }
    trim(out.freeze())
}

/// `old` with zeros from `from` to `to`, trimmed.
#[must_use]
pub fn blank(old: &Bytes, from: usize, to: usize) -> Bytes {
    if from >= old.len() {
        return old.clone();
    }
    if to >= old.len() {
        return trim(old.slice(..from));
    }
    let mut out = BytesMut::from(&old[..]);
    out[from..to].fill(0);
    trim(out.freeze())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pad(b: &[u8], n: usize) -> Vec<u8> {
        let mut v = b.to_vec();
        v.resize(n, 0);
        v
    }

    proptest! {
        #[test]
        fn spans_cover_the_range_once(offset in 0u64..200_000, len in 0usize..100_000) {
            let mut pos = 0;
            for s in spans(offset, len, 4096) {
                prop_assert_eq!(s.at, pos);
                prop_assert_eq!(s.block * 4096 + s.from as u64, offset + pos as u64);
                prop_assert!(s.from < s.to && s.to <= 4096);
                pos += s.to - s.from;
            }
            prop_assert_eq!(pos, len);
        }

        #[test]
        fn overlay_and_blank_are_what_bytes_do(
            old in proptest::collection::vec(0u8..3, 0..64),
            data in proptest::collection::vec(0u8..3, 1..64),
            from in 0usize..64,
        ) {
            let data = &data[..data.len().min(64 - from).max(1).min(data.len())];
            prop_assume!(from + data.len() <= 64);
            let old = trim(Bytes::from(old));
            prop_assert!(old.last().is_none_or(|&b| b != 0));
            let mut want = pad(&old, 64);
            want[from..from + data.len()].copy_from_slice(data);
            let got = overlay(&old, from, &Bytes::copy_from_slice(data));
            prop_assert!(got.last().is_none_or(|&b| b != 0));
            prop_assert_eq!(pad(&got, 64), want);
            let mut want = pad(&old, 64);
            want[from..from + data.len()].fill(0);
            let got = blank(&old, from, from + data.len());
            prop_assert!(got.last().is_none_or(|&b| b != 0));
            prop_assert_eq!(pad(&got, 64), want);
        }
    }
}
