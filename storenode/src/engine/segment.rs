//! Files of the log: names, the head of a segment, and reading one whole segment with a verdict on
//! every byte of it: entry, gap (damaged), or torn tail (rule 1).

use super::entry::{
    HEADER_LEN, Header, Kind, MAGIC, entry_len, part_table_len, seed, u16_at, u32_at,
};
use crate::disk::DiskFile;
use crate::part;
use crate::wire::{BankId, StoreId, VolumeId};
use bytes::Bytes;
use std::io;

/// Length of a segment's head; the first entry stands behind it.
pub(crate) const SEGMENT_HEAD_LEN: u64 = 64;
const SEGMENT_MAGIC: [u8; 4] = *b"TSG1";
/// Read at once by [`scan_tables`], bytes.
const TABLES_STEP: u64 = 64 << 10;
/// Behind an entry with at least so many bytes of values only the next one's header is read, with what
/// most tables have.
const VALUES_SKIPPED: u64 = 8 << 10;
const TABLE_STEP: u64 = 1 << 10;
/// Layout of segments, sidecars and the state file.
pub(crate) const LOG_FORMAT: u16 = 1;

/// Name of a segment.
pub(crate) fn segment_name(number: u32) -> String {
    format!("log-{number:08x}.seg")
}
/// Name of its sidecar.
pub(crate) fn sidecar_name(number: u32) -> String {
    format!("log-{number:08x}.idx")
}
/// Number of a segment (`seg`) or sidecar (`idx`) from its name.
pub(crate) fn number_of(name: &str, extension: &str) -> Option<u32> {
    let digits = name.strip_prefix("log-")?.strip_suffix(extension)?.strip_suffix('.')?;
    if digits.len() != 8 {
        return None;
    }
    // Half of the numbers are never reached: counting on from any that is taken cannot overflow.
    u32::from_str_radix(digits, 16).ok().filter(|n| *n <= u32::MAX / 2)
}

/// Whose log this is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Owner {
    pub(crate) store: StoreId,
    pub(crate) volume: VolumeId,
    pub(crate) bank: BankId,
    pub(crate) shard: u16,
}

/// Head of a segment.
pub(crate) fn encode_segment_head(owner: &Owner, number: u32) -> [u8; SEGMENT_HEAD_LEN as usize] {
    let mut b = [0; SEGMENT_HEAD_LEN as usize];
    b[..4].copy_from_slice(&SEGMENT_MAGIC);
    b[4..6].copy_from_slice(&LOG_FORMAT.to_le_bytes());
    b[6] = owner.bank.index() as u8;
    b[8..10].copy_from_slice(&owner.shard.to_le_bytes());
    b[12..16].copy_from_slice(&number.to_le_bytes());
    b[16..32].copy_from_slice(&owner.store.0);
    b[32..48].copy_from_slice(&owner.volume.0);
    let crc = crc32c::crc32c(&b[..60]);
    b[60..].copy_from_slice(&crc.to_le_bytes());
    b
}

/// What the head of a segment says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum SegmentHead {
    Good(Owner, u32),
    UnknownFormat(u16),
    Bad,
}

/// Reads the head of a segment.
pub(crate) fn decode_segment_head(b: &[u8]) -> SegmentHead {
    let Some(b) = b.get(..SEGMENT_HEAD_LEN as usize) else { return SegmentHead::Bad };
    if b[..4] != SEGMENT_MAGIC || crc32c::crc32c(&b[..60]) != u32_at(b, 60) {
        return SegmentHead::Bad;
    }
    if u16_at(b, 4) != LOG_FORMAT {
        return SegmentHead::UnknownFormat(u16_at(b, 4));
    }
    let Some(bank) = BankId::ALL.get(usize::from(b[6])) else { return SegmentHead::Bad };
    let (mut store, mut volume) = (StoreId::ZERO, VolumeId::ZERO);
    store.0.copy_from_slice(&b[16..32]);
    volume.0.copy_from_slice(&b[32..48]);
    SegmentHead::Good(Owner { store, volume, bank: *bank, shard: u16_at(b, 8) }, u32_at(b, 12))
}

/// One stretch of a segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Item {
    /// An entry whose header and checked bytes are whole.
    Entry {
        /// Of its header.
        offset: u64,
        header: Header,
        /// All of the payload is whole; else only values in it are damaged.
        full: bool,
    },
    /// Damaged.
    Gap {
        from: u64,
        to: u64,
        /// Exactly one entry is missing, and it is of this kind.
        only: Option<Kind>,
        /// Exactly one entry is missing.
        single: bool,
    },
}

/// All of a segment.
#[derive(Debug, Default)]
pub(crate) struct Scan {
    pub(crate) items: Vec<Item>,
    /// Everything below is known to have been synced.
    pub(crate) synced: u64,
    /// Behind the last item; what follows is torn, or was never written.
    pub(crate) end: u64,
    /// Highest ordinal seen.
    pub(crate) ordinal: u64,
}

/// Payload of an entry.
pub(crate) fn payload_of(segment: &Bytes, offset: u64, header: &Header) -> Bytes {
    let from = offset as usize + HEADER_LEN;
    segment.slice(from..from + header.len as usize)
}

/// Reads a whole segment. `sealed` is its length when a later segment knows it: then all of it was
/// synced. `last`: no later segment follows, so the end of this one may be torn. `ordinal`: the
/// highest of the segments before, 0 = unknown. Store and number come from elsewhere than the bytes.
pub(crate) fn scan(
    bytes: &Bytes,
    store: StoreId,
    number: u32,
    sealed: Option<u64>,
    last: bool,
    ordinal: u64,
) -> Scan {
    let seed = seed(store, number);
    let limit = sealed.map_or(bytes.len(), |s| bytes.len().min(s as usize)) as u64;
    let (synced, end) = (sealed.unwrap_or(0), SEGMENT_HEAD_LEN);
    let mut s = Scan { synced, end, ordinal, ..Scan::default() };
    let mut at = SEGMENT_HEAD_LEN;
    while let Some((offset, header)) = next_header(bytes, seed, at, limit, s.ordinal) {
        if offset > at {
            push_gap(&mut s, bytes, at, Some((offset, header.ordinal)));
        }
        s.ordinal = header.ordinal;
        s.synced = s.synced.max(header.synced);
        at = offset + entry_len(header.len as usize);
        let payload = &bytes[offset as usize + HEADER_LEN..][..header.len as usize];
        if crc32c::crc32c(&payload[..header.checked as usize]) != header.checked_crc {
            s.items.push(Item::Gap { from: offset, to: at, only: Some(header.kind), single: true });
        } else {
            let full = full_crc(header.kind, payload) == Some(header.full_crc);
            s.items.push(Item::Entry { offset, header, full });
        }
        s.end = at;
    }
    if at < s.synced {
        push_gap(&mut s, bytes, at, None);
    }
    // Nothing valid behind it and no mark that covers it: torn.
    while last && let Some(item) = s.items.last() {
        match *item {
            Item::Entry { offset, full: false, .. } if offset >= s.synced => s.end = offset,
            Item::Gap { from, .. } if from >= s.synced => s.end = from,
            _ => break,
        }
        s.items.pop();
    }
    s
}

/// [`scan`] of a sealed segment of `len` bytes that reads only heads and tables; values are left out of
/// the bytes it answers (zeros), and `full` is what it does not know. `None` when anything in there is
/// not a whole entry: then only all of it can tell what is damaged.
///
/// # Errors
/// When the file cannot be read.
pub(crate) fn scan_tables(
    file: &dyn DiskFile,
    len: u64,
    store: StoreId,
    number: u32,
) -> io::Result<Option<(Bytes, Scan)>> {
    let seed = seed(store, number);
    // Memory that is never touched costs nothing.
    let mut bytes = vec![0; len as usize];
    let mut s = Scan { synced: len, end: SEGMENT_HEAD_LEN, ..Scan::default() };
    let mut read_through = 0;
    // Where entries hold long values, reading on would read those.
    let mut load = |bytes: &mut [u8], from: u64, to: u64, step: u64| -> io::Result<bool> {
        let from = from.max(read_through);
        if from < to {
            let ahead = to.max(from + step).min(len);
            let into = &mut bytes[from as usize..ahead as usize];
            read_through = from + file.read_at(into, from)? as u64;
        }
        Ok(read_through >= to)
    };
    let mut step = TABLES_STEP;
    while s.end < len {
        let (offset, payload) = (s.end, s.end + HEADER_LEN as u64);
        if payload > len || !load(&mut bytes, offset, payload, step)? {
            return Ok(None);
        }
        let header = Header::decode(&bytes[offset as usize..], seed, offset);
        let Some(header) = header.filter(|h| h.ordinal > s.ordinal) else { return Ok(None) };
        let checked = payload + u64::from(header.checked);
        s.end = offset + entry_len(header.len as usize);
        let values = u64::from(header.len).saturating_sub(u64::from(header.checked));
        step = if values >= VALUES_SKIPPED { TABLE_STEP } else { TABLES_STEP };
        if s.end > len || checked > s.end || !load(&mut bytes, payload, checked, 0)? {
            return Ok(None);
        }
        if crc32c::crc32c(&bytes[payload as usize..checked as usize]) != header.checked_crc {
            return Ok(None);
        }
        s.ordinal = header.ordinal;
        s.items.push(Item::Entry { offset, header, full: true });
    }
    Ok(Some((Bytes::from(bytes), s)))
}

/// Checksum of a whole payload as the header has it.
fn full_crc(kind: Kind, payload: &[u8]) -> Option<u32> {
    if kind != Kind::Part {
        return Some(crc32c::crc32c(payload));
    }
    let (body, own) = payload.split_last_chunk::<4>()?;
    let own = u32::from_le_bytes(*own);
    (crc32c::crc32c(body) == own).then_some(own)
}

/// The first whole header at or behind `at` that is younger than `ordinal` and whose payload fits.
fn next_header(
    bytes: &[u8],
    seed: u32,
    at: u64,
    limit: u64,
    ordinal: u64,
) -> Option<(u64, Header)> {
    let mut offset = at;
    while offset + HEADER_LEN as u64 <= limit {
        let here = &bytes[offset as usize..];
        if here[..4] == MAGIC
            && let Some(h) = Header::decode(here, seed, offset)
            && h.ordinal > ordinal
            && offset + HEADER_LEN as u64 + u64::from(h.len) <= limit
        {
            return Some((offset, h));
        }
        offset += 8;
    }
    None
}

/// A stretch without a whole header. A part has a checksum of its own: if exactly one fits there,
/// only the header around it is damaged and nothing is lost.
fn push_gap(s: &mut Scan, bytes: &Bytes, from: u64, next: Option<(u64, u64)>) {
    let to = next.map_or(s.synced, |(offset, _)| offset).max(from);
    let single = next.is_some_and(|(_, ordinal)| ordinal == s.ordinal + 2);
    let payload = bytes.slice((from as usize + HEADER_LEN).min(bytes.len())..);
    if (single || next.is_none())
        && let Ok(len) = part::peek_len(&payload)
        && len <= payload.len()
        && from + entry_len(len) == to
        && let Ok(table) = part_table_len(&payload)
        && let Ok(p) = part::decode(payload.slice(..len))
    {
        let full_crc = u32_at(&p.bytes, len - 4);
        let header = Header {
            kind: Kind::Part,
            len: len as u32,
            checked: table as u32,
            checked_crc: crc32c::crc32c(&payload[..table]),
            full_crc,
            ordinal: s.ordinal + 1,
            synced: 0,
            watermark: crate::wire::Version::ZERO,
        };
        s.items.push(Item::Entry { offset: from, header, full: true });
    } else {
        s.items.push(Item::Gap { from, to, only: None, single });
    }
    s.end = to;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Version;

    const STORE: StoreId = StoreId([5; 16]);

    /// A segment of small marks; the `synced` of each entry as given.
    fn build(synced: &[u64]) -> (Vec<u8>, Vec<u64>) {
        let owner = Owner { store: STORE, volume: VolumeId([1; 16]), bank: BankId::B, shard: 3 };
        let mut b = encode_segment_head(&owner, 9).to_vec();
        assert_eq!(decode_segment_head(&b), SegmentHead::Good(owner, 9));
        let mut starts = Vec::new();
        for (i, synced) in synced.iter().enumerate() {
            let payload = vec![i as u8; 20 + i];
            let crc = crc32c::crc32c(&payload);
            let header = Header {
                kind: Kind::Cursor,
                len: payload.len() as u32,
                checked: payload.len() as u32,
                checked_crc: crc,
                full_crc: crc,
                ordinal: 1 + i as u64,
                synced: *synced,
                watermark: Version::ZERO,
            };
            let at = b.len() as u64;
            starts.push(at);
            b.extend(header.encode(seed(STORE, 9), at));
            b.extend(payload);
            b.resize(b.len().next_multiple_of(8), 0);
        }
        starts.push(b.len() as u64);
        (b, starts)
    }
    fn run(b: &[u8]) -> (Vec<bool>, u64) {
        let s = scan(&Bytes::copy_from_slice(b), STORE, 9, None, true, 0);
        (s.items.iter().map(|i| matches!(i, Item::Entry { .. })).collect(), s.end)
    }

    #[test]
    fn torn_only_at_the_end_and_only_beyond_the_last_mark() {
        let (good, at) = build(&[0, 0, 0]);
        assert_eq!(run(&good), (vec![true; 3], at[3]));
        let mut bad = good.clone();
        bad[at[2] as usize + 70] ^= 1;
        assert_eq!(run(&bad), (vec![true; 2], at[2]), "last one: torn");
        let mut bad = good.clone();
        bad[at[1] as usize + 70] ^= 1;
        assert_eq!(run(&bad), (vec![true, false, true], at[3]), "something valid behind it");
        let mut bad = good;
        bad[at[1] as usize + 3] ^= 1;
        assert_eq!(run(&bad), (vec![true, false, true], at[3]), "header");

        let (_, at) = build(&[0, 0, 0]);
        let (good, _) = build(&[0, 0, at[2]]);
        let mut bad = good.clone();
        bad[at[1] as usize + 70] ^= 1;
        bad[at[2] as usize + 70] ^= 1;
        let s = scan(&Bytes::copy_from_slice(&bad), STORE, 9, None, true, 0);
        assert_eq!(s.items.len(), 2, "the second is covered by the mark in the third's header");
        assert_eq!(s.end, at[2]);
        let all: Vec<u8> = good.iter().copied().chain([0; 4096]).collect();
        assert_eq!(run(&all), (vec![true; 3], at[3]), "zeros behind the end are no entries");
    }

    /// Values that nobody reads do not matter to it; anything else sends the caller to the whole segment.
    #[test]
    fn tables_alone_say_the_same_and_nothing_once_a_byte_of_them_is_wrong() {
        let disk = crate::disk::MemoryDisk::default();
        let (good, at) = build(&[0; 6]);
        let len = *at.last().unwrap();
        let tables = |name: &str, b: &[u8]| {
            let file = crate::disk::Disk::create(&disk, name).unwrap();
            file.write_at(&[b], 0).unwrap();
            scan_tables(&*file, len, STORE, 9)
                .unwrap()
                .map(|(bytes, s)| (bytes, s.items, s.ordinal))
        };
        let whole = scan(&Bytes::copy_from_slice(&good), STORE, 9, Some(len), false, 0);
        let (bytes, items, ordinal) = tables("good", &good).unwrap();
        assert_eq!((items, ordinal), (whole.items, whole.ordinal));
        assert_eq!(bytes[64..], good[64..]);
        let padding = |byte: usize| {
            at.windows(2)
                .enumerate()
                .any(|(i, w)| (w[0] as usize + 84 + i..w[1] as usize).contains(&byte))
        };
        for byte in 64..good.len() {
            let mut bad = good.clone();
            bad[byte] ^= 4;
            assert!(tables(&format!("flip{byte}"), &bad).is_none() != padding(byte), "byte {byte}");
        }
        for cut in [65, 127, 128, good.len() - 9] {
            assert!(tables(&format!("cut{cut}"), &good[..cut]).is_none(), "cut at {cut}");
        }
    }

    #[test]
    fn every_cut_and_every_flip_leaves_only_whole_entries() {
        let (good, at) = build(&[0, 0, 0, 0]);
        let whole = scan(&Bytes::copy_from_slice(&good), STORE, 9, None, true, 0).items;
        for cut in 64..good.len() {
            let n = at.iter().filter(|a| **a <= cut as u64).count() - 1;
            // Padding may be cut off: nothing of the entry is lost.
            let got = run(&good[..cut]).0.len();
            assert!(got == n || got == n + 1, "cut at {cut}");
        }
        for byte in 64..good.len() {
            let mut bad = good.clone();
            bad[byte] ^= 0x10;
            for i in scan(&Bytes::from(bad), STORE, 9, None, true, 0).items {
                assert!(matches!(i, Item::Gap { .. }) || whole.contains(&i), "byte {byte}");
            }
        }
    }
}
