//! A part: one group's share of one shard, as bytes. The same bytes travel to the three nodes and
//! are what their logs hold, so a value is encoded once and written once. See docs/data-format.md.
//!
//! ```text
//!   0 magic "TPRT"     4 format u16   6 flags u16 (1 = opening entry)   8 total length u32
//!  12 records u32     16 shards u16  18 zero u16   20 table length u32
//!  24 version         40 predecessor in this shard 56 watermark        72 floor
//!  88 marks A B C    136 cut (opening entry; else zero)               152 shards: u16 each
//!   . record table: per record  kind u8 (1 put, 0 delete), key length u16, value length u32,
//!                               digest [16], key
//!   . values, concatenated
//!   . crc32c of all before, u32
//! ```
//! All numbers little-endian; a version is epoch u64, seq u64.

use crate::wire::{
    Digest, GROUP_BYTES_MAX, KEY_LEN_MAX, Key, PART_RECORDS_MAX, PerBank, VALUE_LEN_MAX, Version,
    digest,
};
use bytes::{BufMut, Bytes, BytesMut};
use std::sync::Arc;

/// First bytes of a part.
pub const PART_MAGIC: [u8; 4] = *b"TPRT";
/// Version of the layout.
pub const PART_FORMAT: u16 = 1;
/// Length of the fixed head, bytes.
pub const PART_HEAD_LEN: usize = 152;
/// Values of this length are not copied into the part, bytes: to copy shorter ones costs less than to send them apart.
pub const PIECE_MIN: usize = 16 << 10;
/// See [`encode_in_pieces`]; bytes of values.
const JOIN_MIN: usize = 256 << 10;
const FLAG_OPENING: u16 = 1;
const RECORD_HEAD_LEN: usize = 23;

/// What stands in the head of a part.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PartHead {
    /// (epoch, seq) of the group; version of all records in it.
    pub version: Version,
    /// The part of this shard before this one.
    pub predecessor: Version,
    /// All groups up to here were committed when this was sent.
    pub watermark: Version,
    /// Tombstones up to here may be dropped.
    pub floor: Version,
    /// Highest position each bank acked for this shard, as the writer knows it.
    pub marks: PerBank<Version>,
    /// `Some`: an opening entry, and where the epochs before it end.
    pub cut: Option<Version>,
    /// All shards the group touches, ascending.
    pub shards: Vec<u16>,
}

/// One record of a part; `value` is its place in the part's bytes, `None` = tombstone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PartRecord {
    /// The key.
    pub key: Key,
    /// Its digest.
    pub digest: Digest,
    /// Offset from the start of the part and length, bytes.
    pub value: Option<(u32, u32)>,
}

/// A part whose checksum and structure were verified.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Part {
    /// Its head.
    pub head: PartHead,
    /// Its records.
    pub records: Vec<PartRecord>,
    /// All of its bytes.
    pub bytes: Bytes,
}

/// Why bytes are not a part.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PartError {
    /// Not enough bytes: a torn tail, or a short body.
    #[error("the part is cut short: {have} of {need} bytes")]
    Short {
        /// Bytes there.
        have: usize,
        /// Bytes needed.
        need: usize,
    },
    /// Bytes are wrong.
    #[error("the part is damaged: {0}")]
    Damaged(&'static str),
    /// A newer layout.
    #[error("part format {0} is not known to this program: update it")]
    UnknownFormat(u16),
}

fn put_version(b: &mut BytesMut, v: Version) {
    b.put_u64_le(v.epoch);
    b.put_u64_le(v.seq);
}
fn u16_at(b: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([b[at], b[at + 1]])
}
fn u32_at(b: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]])
}
fn version_at(b: &[u8], at: usize) -> Version {
    let n = |i: usize| {
        let mut a = [0u8; 8];
        a.copy_from_slice(&b[i..i + 8]);
        u64::from_le_bytes(a)
    };
    Version::new(n(at), n(at + 8))
}

/// An encoded part in pieces, one behind the other.
#[derive(Clone, Debug)]
pub struct Pieces {
    pieces: Arc<[Bytes]>,
    len: usize,
}

impl Pieces {
    /// Bytes of all of them.
    #[must_use]
    #[allow(clippy::len_without_is_empty, reason = "no part is empty")]
    pub fn len(&self) -> usize {
        self.len
    }
    /// They themselves.
    pub fn iter(&self) -> impl Iterator<Item = &Bytes> {
        self.pieces.iter()
    }
}

impl From<Bytes> for Pieces {
    fn from(whole: Bytes) -> Self {
        Self { len: whole.len(), pieces: Arc::from([whole]) }
    }
}

/// Encodes a part into one piece; see [`encode_in_pieces`].
///
/// # Panics
/// If a limit of [`crate::wire`] is exceeded: the caller bounds its groups.
#[must_use]
pub fn encode(head: &PartHead, records: &[(Key, Option<Bytes>)]) -> Bytes {
    let parts = encode_in_pieces(head, records);
    match &*parts.pieces {
        [whole] => whole.clone(),
        pieces => pieces.concat().into(),
    }
}

/// Encodes a part; computes each record's digest over the part's version. Values of [`PIECE_MIN`] bytes and
/// more are pieces as they are, without a copy.
///
/// # Panics
/// If a limit of [`crate::wire`] is exceeded: the caller bounds its groups.
#[must_use]
pub fn encode_in_pieces(head: &PartHead, records: &[(Key, Option<Bytes>)]) -> Pieces {
    assert!(records.len() <= PART_RECORDS_MAX, "a part has at most {PART_RECORDS_MAX} records");
    let keys: usize = records.iter().map(|(k, _)| RECORD_HEAD_LEN + k.len()).sum();
    let values: usize = records.iter().map(|(_, v)| v.as_ref().map_or(0, Bytes::len)).sum();
    let table = PART_HEAD_LEN + 2 * head.shards.len() + keys;
    let total = table + values + 4;
    assert!(values <= GROUP_BYTES_MAX + VALUE_LEN_MAX, "a part has at most one group of values");
    let copied = |v: &&Bytes| v.len() < PIECE_MIN;
    let short: usize =
        records.iter().filter_map(|(_, v)| v.as_ref()).filter(copied).map(Bytes::len).sum();
    let mut b = BytesMut::with_capacity(table + short + 4);
    let n = |x: usize| u32::try_from(x).expect("bounded by the asserts above");
    b.put_slice(&PART_MAGIC);
    b.put_u16_le(PART_FORMAT);
    b.put_u16_le(if head.cut.is_some() { FLAG_OPENING } else { 0 });
    b.put_u32_le(n(total));
    b.put_u32_le(n(records.len()));
    b.put_u16_le(u16::try_from(head.shards.len()).expect("shards fit u16"));
    b.put_u16_le(0);
    b.put_u32_le(n(keys));
    for v in [head.version, head.predecessor, head.watermark, head.floor] {
        put_version(&mut b, v);
    }
    for v in head.marks.0 {
        put_version(&mut b, v);
    }
    put_version(&mut b, head.cut.unwrap_or_default());
    for s in &head.shards {
        b.put_u16_le(*s);
    }
    // Digest and checksum look at a value one after the other, while the processor has it at hand. But the
    // table comes first and is known last, and to join two checksums takes 10 us: as long as a pass over
    // all values of a part that is not longer than this.
    let joined = values > JOIN_MIN;
    let mut values_crc = 0;
    for (key, value) in records {
        assert!(!key.is_empty() && key.len() <= KEY_LEN_MAX, "key length");
        let bytes = value.as_deref();
        b.put_u8(u8::from(value.is_some()));
        b.put_u16_le(key.len() as u16);
        b.put_u32_le(n(bytes.map_or(0, <[u8]>::len)));
        b.put_slice(&digest(key, head.version, bytes).0);
        b.put_slice(key);
        if joined {
            values_crc = crc32c::crc32c_append(values_crc, bytes.unwrap_or_default());
        }
    }
    let table_crc = crc32c::crc32c(&b);
    let crc = if joined {
        crc32c::crc32c_combine(table_crc, values_crc, values)
    } else {
        let values = records.iter().filter_map(|(_, v)| v.as_deref());
        values.fold(table_crc, crc32c::crc32c_append)
    };
    let mut pieces = Vec::new();
    for value in records.iter().filter_map(|(_, v)| v.as_ref()) {
        if copied(&value) {
            b.put_slice(value);
        } else {
            pieces.extend([b.split().freeze(), value.clone()]);
        }
    }
    b.put_u32_le(crc);
    pieces.push(b.freeze());
    pieces.retain(|p| !p.is_empty());
    debug_assert_eq!(pieces.iter().map(Bytes::len).sum::<usize>(), total);
    Pieces { pieces: pieces.into(), len: total }
}

/// Length of the part that begins here, from its first 12 bytes.
///
/// # Errors
/// [`PartError`] when these are not the first bytes of a part.
pub fn peek_len(b: &[u8]) -> Result<usize, PartError> {
    if b.len() < 12 {
        return Err(PartError::Short { have: b.len(), need: 12 });
    }
    if b[..4] != PART_MAGIC {
        return Err(PartError::Damaged("no part begins here"));
    }
    let format = u16_at(b, 4);
    if format != PART_FORMAT {
        return Err(PartError::UnknownFormat(format));
    }
    let len = u32_at(b, 8) as usize;
    if !(PART_HEAD_LEN + 4..=crate::wire::BULK_LEN_MAX).contains(&len) {
        return Err(PartError::Damaged("impossible length"));
    }
    Ok(len)
}

/// Decodes and verifies a part that is exactly `bytes`. Checks the checksum and the structure, not
/// the digests of the records (readers and scrubs do).
///
/// # Errors
/// [`PartError`] when it is not whole.
pub fn decode(bytes: Bytes) -> Result<Part, PartError> {
    let len = peek_len(&bytes)?;
    if bytes.len() != len {
        return Err(PartError::Short { have: bytes.len(), need: len });
    }
    if crc32c::crc32c(&bytes[..len - 4]) != u32_at(&bytes, len - 4) {
        return Err(PartError::Damaged("checksum"));
    }
    decode_structure(bytes)
}

/// Decodes a part without looking at its checksum: for a caller that knows by other means that
/// head and table are whole (values have their digests).
///
/// # Errors
/// [`PartError`] when the structure is not that of a part.
pub fn decode_structure(bytes: Bytes) -> Result<Part, PartError> {
    let len = peek_len(&bytes)?;
    if bytes.len() != len {
        return Err(PartError::Short { have: bytes.len(), need: len });
    }
    let (head, records) = decode_table(&bytes)?;
    Ok(Part { head, records, bytes })
}

/// Head and records of a part of which at least head and table are there; their checksum is the
/// caller's matter.
///
/// # Errors
/// [`PartError`] when the structure is not that of a part.
pub fn decode_table(b: &[u8]) -> Result<(PartHead, Vec<PartRecord>), PartError> {
    let len = peek_len(b)?;
    if b.len() < PART_HEAD_LEN {
        return Err(PartError::Short { have: b.len(), need: PART_HEAD_LEN });
    }
    let count = u32_at(b, 12) as usize;
    let shards_n = u16_at(b, 16) as usize;
    let table_len = u32_at(b, 20) as usize;
    let table = PART_HEAD_LEN + 2 * shards_n;
    let values = table.checked_add(table_len).filter(|v| *v <= len - 4);
    let (Some(values), true) = (values, count <= PART_RECORDS_MAX) else {
        return Err(PartError::Damaged("table beyond the end"));
    };
    if b.len() < values {
        return Err(PartError::Short { have: b.len(), need: values });
    }
    let head = PartHead {
        version: version_at(b, 24),
        predecessor: version_at(b, 40),
        watermark: version_at(b, 56),
        floor: version_at(b, 72),
        marks: PerBank([version_at(b, 88), version_at(b, 104), version_at(b, 120)]),
        cut: (u16_at(b, 6) & FLAG_OPENING != 0).then(|| version_at(b, 136)),
        shards: (0..shards_n).map(|i| u16_at(b, PART_HEAD_LEN + 2 * i)).collect(),
    };
    let (mut at, mut value_at, mut records) = (table, values, Vec::with_capacity(count));
    for _ in 0..count {
        if at + RECORD_HEAD_LEN > values {
            return Err(PartError::Damaged("record beyond the table"));
        }
        let (kind, key_len) = (b[at], u16_at(b, at + 1) as usize);
        let value_len = u32_at(b, at + 3) as usize;
        let mut digest = Digest::ZERO;
        digest.0.copy_from_slice(&b[at + 7..at + 23]);
        at += RECORD_HEAD_LEN;
        if key_len == 0 || key_len > KEY_LEN_MAX || at + key_len > values {
            return Err(PartError::Damaged("key length"));
        }
        if kind > 1 || value_len > VALUE_LEN_MAX || value_at + value_len > len - 4 {
            return Err(PartError::Damaged("value length"));
        }
        records.push(PartRecord {
            key: b[at..at + key_len].to_vec(),
            digest,
            value: (kind == 1).then_some((value_at as u32, value_len as u32)),
        });
        at += key_len;
        value_at += value_len;
    }
    if at != values || value_at != len - 4 {
        return Err(PartError::Damaged("lengths do not add up"));
    }
    Ok((head, records))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> (PartHead, Vec<(Key, Option<Bytes>)>) {
        let head = PartHead {
            version: Version::new(3, 9),
            predecessor: Version::new(3, 7),
            watermark: Version::new(3, 6),
            shards: vec![0, 2],
            ..PartHead::default()
        };
        let records = vec![
            (b"k1".to_vec(), Some(Bytes::from_static(b"hello"))),
            (b"k2".to_vec(), None),
            (b"k3".to_vec(), Some(Bytes::new())),
        ];
        (head, records)
    }

    #[test]
    fn round_trip() {
        let (head, records) = sample();
        let part = decode(encode(&head, &records)).unwrap();
        assert_eq!(part.head, head);
        let back: Vec<_> = part
            .records
            .iter()
            .map(|r| {
                let v = r.value.map(|(at, n)| part.bytes.slice(at as usize..(at + n) as usize));
                assert_eq!(r.digest, digest(&r.key, head.version, v.as_deref()));
                (r.key.clone(), v)
            })
            .collect();
        assert_eq!(back, records);
    }

    #[test]
    fn long_values_are_not_copied_and_the_pieces_are_the_part() {
        let (head, _) = sample();
        let value = |len, byte: u8| Some(Bytes::from(vec![byte; len]));
        let long = Bytes::from(vec![7; PIECE_MIN]);
        let value_of = |i| match i {
            0 | 3 => value(PIECE_MIN - 1, 1),
            1 => Some(long.clone()),
            2 => None,
            // With any other, more than is gone over twice.
            n => value(JOIN_MIN, n as u8),
        };
        for kinds in 0..1 << 5 {
            let chosen = (0..5).filter(|i| kinds & 1 << i != 0);
            let records: Vec<_> = chosen.map(|i| (vec![i as u8 + 1], value_of(i))).collect();
            let pieces = encode_in_pieces(&head, &records);
            let whole = Bytes::from(pieces.iter().flatten().copied().collect::<Vec<u8>>());
            assert_eq!((whole.len(), &whole), (pieces.len(), &encode(&head, &records)));
            let part = decode(whole).unwrap();
            for (r, (key, value)) in part.records.iter().zip(&records) {
                let stored =
                    r.value.map(|(at, n)| part.bytes.slice(at as usize..(at + n) as usize));
                assert_eq!((&r.key, &stored), (key, value));
                assert_eq!(r.digest, digest(key, head.version, value.as_deref()));
            }
            let same = pieces.iter().any(|p| p.as_ptr() == long.as_ptr());
            assert_eq!(same, kinds & 2 != 0);
        }
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_seen() {
        let (head, records) = sample();
        let good = encode(&head, &records);
        for cut in 0..good.len() {
            assert!(decode(good.slice(..cut)).is_err(), "cut at {cut}");
        }
        for bit in 0..good.len() * 8 {
            let mut bad = good.to_vec();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(Bytes::from(bad)).is_err(), "bit {bit}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused_or_decoded_without_panic(b in prop::collection::vec(any::<u8>(), 0..400)) {
            let mut b = b;
            if b.len() > 12 { b[..4].copy_from_slice(&PART_MAGIC); }
            let _ = decode(Bytes::from(b));
        }
    }
}
