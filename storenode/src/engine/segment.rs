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
use std::ops::Range;

/// Length of a segment's head; the first entry stands behind it.
pub(crate) const SEGMENT_HEAD_LEN: u64 = 64;
const SEGMENT_MAGIC: [u8; 4] = *b"TSG1";
/// Read at once by [`TableScan`], bytes.
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

/// An entry without its values.
pub(crate) struct Table {
    /// Of its header.
    pub(crate) offset: u64,
    pub(crate) header: Header,
    /// The checked bytes of its payload.
    pub(crate) bytes: Bytes,
}

/// The tables of a segment that was scanned.
pub(crate) fn tables_of(bytes: &Bytes, s: &Scan) -> Vec<Table> {
    let table = |item: &Item| match *item {
        Item::Entry { offset, header, .. } => {
            let payload = payload_of(bytes, offset, &header);
            Some(Table { offset, header, bytes: payload.slice(..header.checked as usize) })
        }
        Item::Gap { .. } => None,
    };
    s.items.iter().filter_map(table).collect()
}

/// A scan of a sealed segment that reads only heads and tables, in steps.
pub(crate) struct TableScan {
    pub(crate) number: u32,
    seed: u32,
    len: u64,
    /// Where the next entry begins.
    at: u64,
    ordinal: u64,
    /// What was read last, and where it begins.
    window: Vec<u8>,
    window_at: u64,
    /// So much is read at once from where it is needed on.
    ahead: u64,
    /// All tables so far, and which of them is where.
    bytes: Vec<u8>,
    found: Vec<(u64, Header, Range<usize>)>,
}

/// How far a scan came.
#[derive(PartialEq, Eq, Debug)]
pub(crate) enum Scanned {
    Partly,
    Whole,
    /// Something in there is not a whole entry: only all of the segment can tell what is damaged.
    NotWhole,
}

impl TableScan {
    /// `len`: of the segment.
    pub(crate) fn new(store: StoreId, number: u32, len: u64) -> Self {
        Self {
            number,
            seed: seed(store, number),
            len,
            at: SEGMENT_HEAD_LEN,
            ordinal: 0,
            window: Vec::new(),
            window_at: 0,
            ahead: TABLES_STEP,
            bytes: Vec::new(),
            found: Vec::new(),
        }
    }

    /// Makes sure that `from..to` is in the window; answers how many bytes were read for it, and `None`
    /// when the file ends before.
    fn load(&mut self, file: &dyn DiskFile, from: u64, to: u64) -> io::Result<Option<u64>> {
        let end = self.window_at + self.window.len() as u64;
        if self.window_at <= from && to <= end {
            return Ok(Some(0));
        }
        // Where entries hold long values, reading on would read those.
        let through = to.max(from + self.ahead).min(self.len);
        self.window.resize((through - from) as usize, 0);
        self.window_at = from;
        let read = file.read_at(&mut self.window, from)?;
        self.window.truncate(read);
        Ok((from + read as u64 >= to).then_some(read as u64))
    }

    fn in_window(&self, from: u64, to: u64) -> &[u8] {
        &self.window[(from - self.window_at) as usize..(to - self.window_at) as usize]
    }

    /// Reads on, about `budget` bytes.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub(crate) fn step(&mut self, file: &dyn DiskFile, budget: u64) -> io::Result<Scanned> {
        let mut used = 0;
        while self.at < self.len {
            if used >= budget {
                return Ok(Scanned::Partly);
            }
            let (offset, payload) = (self.at, self.at + HEADER_LEN as u64);
            if payload > self.len {
                return Ok(Scanned::NotWhole);
            }
            let Some(read) = self.load(file, offset, payload)? else {
                return Ok(Scanned::NotWhole);
            };
            used += read;
            let header = Header::decode(self.in_window(offset, payload), self.seed, offset);
            let Some(header) = header.filter(|h| h.ordinal > self.ordinal) else {
                return Ok(Scanned::NotWhole);
            };
            let checked = payload + u64::from(header.checked);
            self.at = offset + entry_len(header.len as usize);
            if self.at > self.len || checked > self.at {
                return Ok(Scanned::NotWhole);
            }
            let Some(read) = self.load(file, payload, checked)? else {
                return Ok(Scanned::NotWhole);
            };
            used += read;
            let values = u64::from(header.len).saturating_sub(u64::from(header.checked));
            // Before a long part stands a mark: what comes behind it is as what came before.
            if header.kind != Kind::Mark {
                self.ahead = if values >= VALUES_SKIPPED { TABLE_STEP } else { TABLES_STEP };
            }
            let table =
                &self.window[(payload - self.window_at) as usize..][..header.checked as usize];
            if crc32c::crc32c(table) != header.checked_crc {
                return Ok(Scanned::NotWhole);
            }
            self.ordinal = header.ordinal;
            let from = self.bytes.len();
            self.bytes.extend_from_slice(table);
            self.found.push((offset, header, from..self.bytes.len()));
        }
        Ok(Scanned::Whole)
    }

    /// The tables, and the highest ordinal.
    pub(crate) fn finish(self) -> (Vec<Table>, u64) {
        let bytes = Bytes::from(self.bytes);
        let table = |(offset, header, at): (_, _, Range<usize>)| Table {
            offset,
            header,
            bytes: bytes.slice(at),
        };
        (self.found.into_iter().map(table).collect(), self.ordinal)
    }
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
        let mark = single && says_mark(&bytes[from as usize..to as usize]);
        s.items.push(Item::Gap { from, to, only: mark.then_some(Kind::Mark), single });
    }
    s.end = to;
}

/// A mark with a damaged header, at the length of which the next entry stands: no other kind has a payload of
/// zeros, and where everything was lost the header would be zeros too. Each long part has one before it,
/// and what is damaged there must not cost more than what is damaged in the part.
fn says_mark(bytes: &[u8]) -> bool {
    let Some((header, payload)) = bytes.split_at_checked(HEADER_LEN) else { return false };
    header[..4] == MAGIC
        && header[4] == Kind::Mark as u8
        && entry_len(u32_at(header, 8) as usize) == bytes.len() as u64
        && payload.iter().all(|b| *b == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Version;

    const STORE: StoreId = StoreId([5; 16]);

    #[test]
    fn a_mark_with_a_damaged_header_is_known_for_one_and_what_was_zeroed_is_not() {
        let owner = Owner { store: STORE, volume: VolumeId([1; 16]), bank: BankId::B, shard: 3 };
        let mut b = encode_segment_head(&owner, 9).to_vec();
        let mut starts = Vec::new();
        for (ordinal, kind, len) in
            [(1, Kind::Cursor, 24), (2, Kind::Mark, 104), (3, Kind::Join, 8)]
        {
            let payload = vec![if kind == Kind::Mark { 0 } else { 7 }; len];
            let crc = crc32c::crc32c(&payload);
            let (checked, checked_crc, full_crc) = (len as u32, crc, crc);
            let (synced, watermark, len) = (b.len() as u64, Version::ZERO, len as u32);
            let header =
                Header { kind, len, checked, checked_crc, full_crc, ordinal, synced, watermark };
            starts.push(b.len());
            b.extend(header.encode(seed(STORE, 9), b.len() as u64));
            b.extend(payload);
        }
        let gap = |b: Vec<u8>| {
            let s = scan(&Bytes::from(b), STORE, 9, None, true, 0);
            let gaps = s.items.iter().filter_map(|i| match *i {
                Item::Gap { only, single, from, to } => {
                    Some((only, single, from as usize, to as usize))
                }
                Item::Entry { .. } => None,
            });
            gaps.collect::<Vec<_>>()
        };
        assert_eq!(gap(b.clone()), []);
        let at = starts[1]..starts[2];
        for bit in 0..HEADER_LEN * 8 {
            let mut bad = b.clone();
            bad[at.start + bit / 8] ^= 1 << (bit % 8);
            let told = !matches!(bit / 8, 0..=4 | 8..=11);
            assert_eq!(
                gap(bad),
                [(told.then_some(Kind::Mark), true, at.start, at.end)],
                "bit {bit}"
            );
        }
        let mut bad = b.clone();
        bad[at.clone()].fill(0);
        assert_eq!(gap(bad), [(None, true, at.start, at.end)]);
        // A part that lost its content, with a header that looks like that of a mark.
        let mut bad = b.clone();
        bad[at.start + 60] ^= 1;
        bad[at.end - 1] ^= 1;
        assert_eq!(gap(bad), [(None, true, at.start, at.end)]);
    }

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
        // The whole in one step, and in as many as it can take.
        let tables = |name: &str, b: &[u8]| {
            let file = crate::disk::Disk::create(&disk, name).unwrap();
            file.write_at(&[b], 0).unwrap();
            let all = [u64::MAX, 1].map(|budget| {
                let mut scan = TableScan::new(STORE, 9, len);
                let mut steps = 1;
                scan.ahead = budget.min(TABLES_STEP);
                let end = loop {
                    match scan.step(&*file, budget).unwrap() {
                        Scanned::Partly => steps += 1,
                        end => break end,
                    }
                };
                let (tables, ordinal) = scan.finish();
                let tables: Vec<_> =
                    tables.into_iter().map(|t| (t.offset, t.header, t.bytes)).collect();
                (steps, (end == Scanned::Whole).then_some((tables, ordinal)))
            });
            let [(1, once), (steps, stepwise)] = all else { panic!("one step of all took more") };
            assert_eq!(once, stepwise);
            (steps, once)
        };
        let bytes = Bytes::copy_from_slice(&good);
        let whole = scan(&bytes, STORE, 9, Some(len), false, 0);
        let want = tables_of(&bytes, &whole);
        let want: Vec<_> = want.into_iter().map(|t| (t.offset, t.header, t.bytes)).collect();
        assert_eq!(want.len(), 6);
        let (steps, got) = tables("good", &good);
        assert_eq!(got.unwrap(), (want, whole.ordinal));
        assert!(steps > 1);
        let tables = |name: &str, b: &[u8]| tables(name, b).1;
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

    /// Values, short ones and such as it does not read, and tables longer than what it reads at once.
    #[test]
    fn tables_among_values_are_found_in_steps() {
        let owner = Owner { store: STORE, volume: VolumeId([1; 16]), bank: BankId::B, shard: 3 };
        let mut b = encode_segment_head(&owner, 9).to_vec();
        for (i, (table, values)) in [
            (90, 10),
            (200_000, 0),
            (70, 50_000),
            (3_000, 20_000),
            (10, 0),
            (90, 9_000),
            (4_000, 0),
        ]
        .iter()
        .enumerate()
        {
            let payload: Vec<u8> = (0..table + values).map(|n| (n * 7 + i) as u8).collect();
            let header = Header {
                kind: if i == 6 { Kind::Mark } else { Kind::Records },
                len: payload.len() as u32,
                checked: *table as u32,
                checked_crc: crc32c::crc32c(&payload[..*table]),
                full_crc: crc32c::crc32c(&payload),
                ordinal: 1 + i as u64,
                synced: 0,
                watermark: Version::ZERO,
            };
            b.extend(header.encode(seed(STORE, 9), b.len() as u64));
            b.extend(payload);
            b.resize(b.len().next_multiple_of(8), 0);
        }
        let disk = crate::disk::MemoryDisk::default();
        let file = crate::disk::Disk::create(&disk, "log").unwrap();
        file.write_at(&[&b], 0).unwrap();
        let (bytes, len) = (Bytes::from(b), file.len().unwrap());
        let whole = scan(&bytes, STORE, 9, Some(len), false, 0);
        let told = |tables: Vec<Table>| -> Vec<_> {
            tables.into_iter().map(|t| (t.offset, t.header, t.bytes)).collect()
        };
        let want = told(tables_of(&bytes, &whole));
        assert_eq!(want.len(), 7);
        for budget in [1, 5_000, u64::MAX] {
            let mut scan = TableScan::new(STORE, 9, len);
            let mut steps = 1;
            while scan.step(&*file, budget).unwrap() == Scanned::Partly {
                steps += 1;
            }
            assert_eq!(
                (scan.at, scan.ahead),
                (len, TABLE_STEP),
                "what is long goes on behind a mark"
            );
            assert_eq!(told(scan.finish().0), want, "budget {budget}");
            assert_eq!(steps > 3, budget < u64::MAX, "{steps} steps of {budget}");
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
