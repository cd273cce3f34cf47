//! Entries of the log, as bytes. See docs/data-format.md.
//!
//! ```text
//!   0 magic "TLE1"   4 kind u8   5 zero[3]   8 payload length u32   12 checked length u32
//!  16 crc32c of the first `checked` bytes of the payload, u32
//!  20 crc32c of the whole payload, u32 (a part: its own last four bytes)
//!  24 ordinal u64   32 synced through u64   40 watermark (epoch u64, seq u64)   56 zero u32
//!  60 crc32c of (seed, offset of the entry u64, bytes 0..60), u32
//!  64 payload, then zeros up to a multiple of 8
//! ```
//! The last checksum binds an entry to its store, segment and place: bytes that lie elsewhere, or
//! inside a value, are never taken for one.

use super::chain::{Place, Summary};
use crate::part::{PART_HEAD_LEN, PartError};
use crate::wire::{BULK_LEN_MAX, Cursor, Digest, HEAD_LEN_MAX, KEY_LEN_MAX, Key, StoreId, Version};
use bincode::{Decode, Encode};

/// Length of an entry's header, bytes.
pub(crate) const HEADER_LEN: usize = 64;
/// Longest payload, bytes: a full `install` has 32 MiB.
pub(crate) const PAYLOAD_MAX: usize = 64 << 20;
const _: () = assert!(BULK_LEN_MAX + HEAD_LEN_MAX < PAYLOAD_MAX);
/// No store comes here; a higher one is damage, and counting on from it would overflow.
pub(crate) const ORDINAL_MAX: u64 = 1 << 62;
pub(crate) const MAGIC: [u8; 4] = *b"TLE1";
const ROW_LEN: usize = 39;

/// What an entry holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// A part, as received.
    Part = 1,
    /// Records: installed, moved by compaction, or tombstones said again.
    Records = 2,
    /// [`AttachMark`].
    Attach = 3,
    /// [`JoinMark`].
    Join = 4,
    /// [`Snapshot`]: first entry of every segment.
    Snapshot = 5,
    /// Keys whose records before this place are dead: see [`Grave`].
    Grave = 6,
    /// [`CursorMark`].
    Cursor = 7,
    /// Nothing: the header says what is synced and committed.
    Mark = 8,
}
impl Kind {
    fn of(n: u8) -> Option<Self> {
        use Kind::{Attach, Cursor, Grave, Join, Mark, Part, Records, Snapshot};
        [Part, Records, Attach, Join, Snapshot, Grave, Cursor, Mark]
            .into_iter()
            .find(|k| *k as u8 == n)
    }
}

/// The node attached to an epoch; the parts at these places are void.
#[derive(Clone, Debug, Encode, Decode)]
pub(crate) struct AttachMark {
    pub(crate) epoch: u64,
    pub(crate) void: Vec<Place>,
    pub(crate) high: Version,
    /// What damage took from the chain may still reach through here: an attach does not heal.
    pub(crate) lost: Option<Version>,
}
/// A catch-up is complete.
#[derive(Clone, Debug, Encode, Decode)]
pub(crate) struct JoinMark {
    pub(crate) at: Version,
    pub(crate) reach: Version,
}
/// How far a copy came.
#[derive(Clone, Debug, Encode, Decode)]
pub(crate) struct CursorMark(pub(crate) Cursor);
/// All records of a key that lie before `before` in the log are dead, whatever their version. The
/// payload of a [`Kind::Grave`] entry is the list of keys; its own place is `before`.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub(crate) struct Grave {
    pub(crate) key: Key,
    pub(crate) before: Place,
}
/// What would be lost with the segments before this one.
#[derive(Clone, PartialEq, Eq, Debug, Default, Encode, Decode)]
pub(crate) struct Snapshot {
    pub(crate) chain: Summary,
    pub(crate) graves: Vec<Grave>,
    /// The segment before this one and its length: what lies behind that is not of the log.
    pub(crate) previous: Option<(u32, u64)>,
    /// Damaged stretches of earlier segments that this summary takes into account.
    pub(crate) damage: Vec<Place>,
    /// What was lost there may reach through here, and nobody has settled it since.
    pub(crate) lost: Option<Version>,
}

/// Encodes one of the small payloads.
pub(crate) fn encode_small<T: Encode>(value: &T) -> Vec<u8> {
    // Encoding plain data into memory cannot fail.
    bincode::encode_to_vec(value, bincode::config::standard()).unwrap_or_default()
}

/// Decodes one of the small payloads.
pub(crate) fn decode_small<T: Decode<()>>(bytes: &[u8]) -> Option<T> {
    let config = bincode::config::standard().with_limit::<PAYLOAD_MAX>();
    let (value, used) = bincode::decode_from_slice::<T, _>(bytes, config).ok()?;
    (used == bytes.len()).then_some(value)
}

/// Header of an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Header {
    pub(crate) kind: Kind,
    pub(crate) len: u32,
    /// So many bytes of the payload are under `checked_crc`; the rest are values, which have
    /// digests.
    pub(crate) checked: u32,
    pub(crate) checked_crc: u32,
    pub(crate) full_crc: u32,
    /// Grows with every entry, also over those that could not be written.
    pub(crate) ordinal: u64,
    /// This segment was synced through here when the entry was made: a bad entry below is damage,
    /// never a torn tail. All earlier segments are synced whole.
    pub(crate) synced: u64,
    /// Known committed when the entry was made.
    pub(crate) watermark: Version,
}

/// What binds entries to a store and a segment.
pub(crate) fn seed(store: StoreId, segment: u32) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&store.0), &segment.to_le_bytes())
}

fn header_crc(bytes: &[u8], seed: u32, offset: u64) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c_append(seed, &offset.to_le_bytes()), &bytes[..60])
}

/// Length of an entry with such a payload, padding included.
pub(crate) fn entry_len(payload: usize) -> u64 {
    (HEADER_LEN + payload).next_multiple_of(8) as u64
}

impl Header {
    pub(crate) fn encode(&self, seed: u32, offset: u64) -> [u8; HEADER_LEN] {
        let mut b = [0; HEADER_LEN];
        b[..4].copy_from_slice(&MAGIC);
        b[4] = self.kind as u8;
        b[8..12].copy_from_slice(&self.len.to_le_bytes());
        b[12..16].copy_from_slice(&self.checked.to_le_bytes());
        b[16..20].copy_from_slice(&self.checked_crc.to_le_bytes());
        b[20..24].copy_from_slice(&self.full_crc.to_le_bytes());
        b[24..32].copy_from_slice(&self.ordinal.to_le_bytes());
        b[32..40].copy_from_slice(&self.synced.to_le_bytes());
        b[40..48].copy_from_slice(&self.watermark.epoch.to_le_bytes());
        b[48..56].copy_from_slice(&self.watermark.seq.to_le_bytes());
        let crc = header_crc(&b, seed, offset);
        b[60..].copy_from_slice(&crc.to_le_bytes());
        b
    }

    pub(crate) fn decode(b: &[u8], seed: u32, offset: u64) -> Option<Self> {
        let b = b.get(..HEADER_LEN)?;
        if b[..4] != MAGIC || header_crc(b, seed, offset) != u32_at(b, 60) {
            return None;
        }
        let header = Self {
            kind: Kind::of(b[4])?,
            len: u32_at(b, 8),
            checked: u32_at(b, 12),
            checked_crc: u32_at(b, 16),
            full_crc: u32_at(b, 20),
            ordinal: u64_at(b, 24),
            synced: u64_at(b, 32),
            watermark: Version::new(u64_at(b, 40), u64_at(b, 48)),
        };
        // Nothing behind an entry was synced when it was made.
        let possible = header.checked <= header.len
            && header.len as usize <= PAYLOAD_MAX
            && header.synced <= offset
            && header.ordinal <= ORDINAL_MAX;
        possible.then_some(header)
    }
}

pub(crate) fn u16_at(b: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([b[at], b[at + 1]])
}
pub(crate) fn u32_at(b: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]])
}
pub(crate) fn u64_at(b: &[u8], at: usize) -> u64 {
    u64::from(u32_at(b, at)) | u64::from(u32_at(b, at + 4)) << 32
}

/// Bytes of a part before its values: what the index needs of it.
///
/// # Errors
/// When these are not the first bytes of a part.
pub(crate) fn part_table_len(b: &[u8]) -> Result<usize, PartError> {
    let len = crate::part::peek_len(b)?;
    if b.len() < PART_HEAD_LEN {
        return Err(PartError::Short { have: b.len(), need: PART_HEAD_LEN });
    }
    let table = PART_HEAD_LEN + 2 * usize::from(u16_at(b, 16)) + u32_at(b, 20) as usize;
    if table > len - 4 {
        return Err(PartError::Damaged("table beyond the end"));
    }
    Ok(table)
}

/// A record in a [`Kind::Records`] payload.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Row {
    pub(crate) key: Key,
    pub(crate) version: Version,
    pub(crate) digest: Digest,
    /// Value length; `None` = tombstone.
    pub(crate) len: Option<u32>,
    /// Offset of the value from the start of the payload.
    pub(crate) at: u32,
}

/// Encodes the table of a [`Kind::Records`] payload; the values follow it. Sets `at` of each row.
pub(crate) fn encode_rows(rows: &mut [Row]) -> Vec<u8> {
    let table: usize = 8 + rows.iter().map(|r| ROW_LEN + r.key.len()).sum::<usize>();
    let mut b = Vec::with_capacity(table);
    b.extend((rows.len() as u32).to_le_bytes());
    b.extend((table as u32).to_le_bytes());
    let mut at = table as u32;
    for r in rows {
        b.push(u8::from(r.len.is_some()));
        b.extend((r.key.len() as u16).to_le_bytes());
        b.extend(r.len.unwrap_or(0).to_le_bytes());
        b.extend(r.version.epoch.to_le_bytes());
        b.extend(r.version.seq.to_le_bytes());
        b.extend(r.digest.0);
        b.extend(&r.key);
        r.at = at;
        at += r.len.unwrap_or(0);
    }
    b
}

/// Decodes the table; `len` is the length of the whole payload. `None` when it is not one.
pub(crate) fn decode_rows(b: &[u8], len: u32) -> Option<Vec<Row>> {
    if b.len() < 8 {
        return None;
    }
    let (count, table) = (u32_at(b, 0) as usize, u32_at(b, 4) as usize);
    let b = b.get(..table)?;
    let (mut i, mut at) = (8, table as u64);
    let mut rows = Vec::with_capacity(count.min(table / ROW_LEN));
    for _ in 0..count {
        let head = b.get(i..i + ROW_LEN)?;
        let key_len = usize::from(u16_at(head, 1));
        if key_len == 0 || key_len > KEY_LEN_MAX || head[0] > 1 {
            return None;
        }
        let mut digest = Digest::ZERO;
        digest.0.copy_from_slice(&head[23..39]);
        let value_len = u32_at(head, 3);
        i += ROW_LEN;
        rows.push(Row {
            key: b.get(i..i + key_len)?.to_vec(),
            version: Version::new(u64_at(head, 7), u64_at(head, 15)),
            digest,
            len: (head[0] == 1).then_some(value_len),
            at: u32::try_from(at).ok()?,
        });
        i += key_len;
        at += u64::from(value_len);
    }
    (i == table && at == u64::from(len)).then_some(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header {
            kind: Kind::Attach,
            len: 77,
            checked: 70,
            checked_crc: 1,
            full_crc: 2,
            ordinal: 3,
            synced: 4,
            watermark: Version::new(5, 6),
        }
    }

    #[test]
    fn every_flipped_bit_of_a_header_is_seen_and_so_is_another_place() {
        let s = seed(StoreId([7; 16]), 3);
        let good = header().encode(s, 4096);
        assert_eq!(Header::decode(&good, s, 4096), Some(header()));
        assert_eq!(Header::decode(&good, s, 4104), None);
        assert_eq!(Header::decode(&good, seed(StoreId([7; 16]), 4), 4096), None);
        assert_eq!(Header::decode(&good, seed(StoreId([8; 16]), 3), 4096), None);
        for bit in 0..HEADER_LEN * 8 {
            let mut bad = good;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Header::decode(&bad, s, 4096), None, "bit {bit}");
        }
    }

    /// A mark beyond the segment would make a start reserve whatever it says.
    #[test]
    fn impossible_marks_and_ordinals_are_no_header() {
        for (synced, good) in [(4096, true), (4097, false), (1 << 40, false)] {
            let bytes = Header { synced, ..header() }.encode(7, 4096);
            assert_eq!(Header::decode(&bytes, 7, 4096).is_some(), good, "{synced}");
        }
        let last = Header { ordinal: u64::MAX, ..header() }.encode(7, 4096);
        assert_eq!(Header::decode(&last, 7, 4096), None, "there is none after it");
    }

    #[test]
    fn rows_round_trip() {
        let row = |key: &[u8], len| Row {
            key: key.to_vec(),
            version: Version::new(1, 2),
            digest: Digest([3; 16]),
            len,
            at: 0,
        };
        let mut rows = [row(b"a", Some(5)), row(b"bb", None), row(b"c", Some(0))];
        let table = encode_rows(&mut rows);
        let len = table.len() as u32 + 5;
        assert_eq!(decode_rows(&table, len).unwrap(), rows);
        assert_eq!(decode_rows(&table, len + 1), None);
        for cut in 0..table.len() {
            assert_eq!(decode_rows(&table[..cut], len), None);
        }
    }
}
