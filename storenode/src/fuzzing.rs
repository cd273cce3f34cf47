//! What the fuzz targets need of this crate: each function takes any bytes and must neither panic
//! nor allocate more than the bytes allow. Each is run on the bytes as they are, and once more with
//! their lengths and checksums set right, because a fuzzer cannot guess those and the decoders
//! behind them must hold as well.

use crate::client::{decode_reply, split_bulk};
use crate::disk::{Disk, MemoryDisk};
use crate::engine::container::{ContainerError, seal, unseal};
use crate::engine::entry::{
    AttachMark, CursorMark, HEADER_LEN, Header, JoinMark, Snapshot, decode_rows, decode_small,
    encode_rows, encode_small, part_table_len, seed,
};
use crate::engine::segment::{
    Item, SEGMENT_HEAD_LEN, Scan, SegmentHead, decode_segment_head, encode_segment_head,
    payload_of, scan, segment_name, sidecar_name,
};
use crate::engine::sidecar::{self, Sidecar};
use crate::frame::{self, FRAME_PREFIX_LEN};
use crate::part::{self, PART_HEAD_LEN, PartHead};
use crate::server::decode_message;
use crate::service::{NodeConfig, Service};
use crate::state::{self, State};
use crate::wire::{
    BankId, Cursor, Envelope, Fault, InstallKind, Key, NodeError, Reply, Request, Role, StoreId,
    Version, VolumeId, WIRE_FORMAT, digest, path_of,
};
use bytes::Bytes;
use std::sync::Arc;

pub use crate::server::in_memory::InMemory;

fn put(b: &mut [u8], at: usize, with: &[u8]) {
    b[at..at + with.len()].copy_from_slice(with);
}
fn u32_at(b: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]])
}

/// Sets lengths and checksum of a frame right. The bulk keeps its announced length if that fits.
pub fn repair_frame(b: &mut [u8]) {
    if b.len() < FRAME_PREFIX_LEN {
        return;
    }
    let rest = b.len() - FRAME_PREFIX_LEN;
    let head = (u32_at(b, 4) as usize).min(rest);
    put(b, 0, b"TCF1");
    put(b, 4, &(head as u32).to_le_bytes());
    put(b, 8, &((rest - head) as u64).to_le_bytes());
    let crc = crc32c::crc32c_append(
        crc32c::crc32c(&b[..16]),
        &b[FRAME_PREFIX_LEN..FRAME_PREFIX_LEN + head],
    );
    put(b, 16, &crc.to_le_bytes());
}

/// Runs on the bytes, and on the bytes repaired.
fn twice(data: &[u8], repair: impl FnOnce(&mut [u8]), mut run: impl FnMut(&[u8])) {
    run(data);
    let mut fixed = data.to_vec();
    repair(&mut fixed);
    if fixed != data {
        run(&fixed);
    }
}

/// A body that a node gets.
pub fn request(data: &[u8]) {
    twice(data, repair_frame, |b| {
        let body = Bytes::copy_from_slice(b);
        let Ok(((envelope, request), bulk)) = frame::decode::<(Envelope, Request)>(&body) else {
            assert!(decode_message("/v1/status", &body).is_err());
            return;
        };
        let head = frame::encode_head(&(envelope, &request), bulk.len()).expect("within limits");
        let again = Bytes::from([&head[..], &bulk].concat());
        let back = frame::decode::<(Envelope, Request)>(&again).expect("what is encoded decodes");
        assert_eq!(back, ((envelope, request.clone()), bulk));
        let taken = decode_message(path_of(&request), &body);
        assert_eq!(taken.is_ok(), envelope.format == WIRE_FORMAT);
    });
}

/// Each message once, to find the replies that fit it.
fn asked() -> Vec<Request> {
    let (v, key) = (Version::new(1, 1), b"key".to_vec());
    let keys = vec![key.clone(); 3];
    let scan = |values| Request::Scan { start: vec![], end: vec![], limit: 9, values, through: v };
    vec![
        Request::Status,
        Request::Beat { watermark: v, release: false },
        Request::Read { keys: keys.clone().into(), through: v },
        Request::Digests { keys: keys.into(), through: v },
        scan(true),
        scan(false),
        Request::Hashes { through: v },
        Request::Bucket { bucket: 1, after: vec![], limit: 9, through: v },
        Request::Tail { from: v },
        Request::Delta { since: v, after: vec![], limit_bytes: 9, values: true, through: v },
        Request::Install { records: vec![], as_of: v, kind: InstallKind::Repair },
        Request::Cursor(Cursor { since: v, good: v, after: key.clone() }),
        Request::VerifyFiles { from: 0 },
        Request::Missed { since: v, after: vec![], through: v },
        Request::Verify { after: key, budget_bytes: 9 },
        Request::Inject(Fault::Delay { millis: 0 }),
    ]
}

/// A body that a client gets.
pub fn reply(data: &[u8]) {
    twice(data, repair_frame, |b| {
        let body = Bytes::copy_from_slice(b);
        let whole = frame::decode::<Result<Reply, NodeError>>(&body);
        for request in asked() {
            let Ok((reply, bulk)) = decode_reply(&request, &body) else { continue };
            let pieces = split_bulk(&request, &reply, &bulk).expect("it was checked");
            assert_eq!(pieces.iter().map(Bytes::len).sum::<usize>(), bulk.len());
            let (told, _) = whole.as_ref().expect("it was decoded");
            assert_eq!(told.as_ref(), Ok(&reply));
        }
        if let Ok((answer, bulk)) = whole {
            let head = frame::encode_head(&answer, bulk.len()).expect("within limits");
            let again = Bytes::from([&head[..], &bulk].concat());
            let back = frame::decode::<Result<Reply, NodeError>>(&again);
            assert_eq!(back.expect("what is encoded decodes").0, answer);
        }
    });
}

/// Sets length and checksum of a part right.
pub fn repair_part(b: &mut [u8]) {
    if b.len() < PART_HEAD_LEN + 4 {
        return;
    }
    put(b, 0, &part::PART_MAGIC);
    put(b, 4, &part::PART_FORMAT.to_le_bytes());
    put(b, 8, &(b.len() as u32).to_le_bytes());
    let end = b.len() - 4;
    let crc = crc32c::crc32c(&b[..end]);
    put(b, end, &crc.to_le_bytes());
}

/// One part.
pub fn part(data: &[u8]) {
    twice(data, repair_part, |b| {
        let bytes = Bytes::copy_from_slice(b);
        let structure = part::decode_structure(bytes.clone());
        let Ok(p) = part::decode(bytes) else { return };
        assert_eq!(structure.as_ref(), Ok(&p));
        let table = part_table_len(b).expect("a whole part has a table");
        let value_at = |r: &part::PartRecord| r.value.map_or(table, |(at, _)| at as usize);
        assert!(p.records.iter().all(|r| value_at(r) >= table));
        let value = |r: &part::PartRecord| {
            r.value.map(|(at, n)| p.bytes.slice(at as usize..(at + n) as usize))
        };
        let records: Vec<(Key, Option<Bytes>)> =
            p.records.iter().map(|r| (r.key.clone(), value(r))).collect();
        let right = p
            .records
            .iter()
            .zip(&records)
            .all(|(r, (k, v))| digest(k, p.head.version, v.as_deref()) == r.digest);
        // A tombstone without a length, no unknown flag, zeros where zeros belong.
        let plain = records.iter().filter_map(|r| r.1.as_ref()).map(Bytes::len).sum::<usize>()
            == b.len() - 4 - table
            && u32_at(b, 4) >> 17 == 0
            && u32_at(b, 16) >> 16 == 0
            && (p.head.cut.is_some() || b[136..152].iter().all(|x| *x == 0));
        let again = part::encode(&p.head, &records);
        let back = part::decode(again.clone()).expect("what is encoded decodes");
        assert_eq!((&back.head, back.records.len()), (&p.head, p.records.len()));
        if right && plain {
            assert_eq!(again, b, "what decodes encodes to the same bytes");
        }
    });
}

fn small<T: bincode::Encode + bincode::Decode<()>>(payload: &[u8]) {
    if let Some(value) = decode_small::<T>(payload) {
        let again = encode_small(&value);
        assert!(again.len() <= payload.len(), "the shortest encoding is the one written");
        let back = decode_small::<T>(&again).expect("what is encoded decodes");
        assert_eq!(encode_small(&back), again);
    }
}

/// The payload of one entry behind a byte that chooses its kind, or a whole entry.
pub fn entry(data: &[u8]) {
    let Some((kind, payload)) = data.split_first() else { return };
    match kind % 8 {
        0 => small::<AttachMark>(payload),
        1 => small::<JoinMark>(payload),
        2 => small::<CursorMark>(payload),
        3 => small::<Vec<Key>>(payload),
        4 => small::<Snapshot>(payload),
        5 | 6 => rows(payload),
        _ => twice(payload, |b| _ = repair_header(b, 7, 64), |b| header(b, 7, 64)),
    }
}

fn rows(payload: &[u8]) {
    let Ok(len) = u32::try_from(payload.len()) else { return };
    let Some(mut rows) = decode_rows(payload, len) else { return };
    for r in &rows {
        let value = r.len.unwrap_or(0) as usize;
        assert!(r.at as usize + value <= payload.len(), "a value within the payload");
    }
    if rows.iter().all(|r| r.len.is_some()) {
        let was = rows.clone();
        let table = encode_rows(&mut rows);
        assert_eq!((&rows, &table[..]), (&was, &payload[..table.len()]));
    }
}

fn header(b: &[u8], seed: u32, offset: u64) {
    let Some(h) = Header::decode(b, seed, offset) else { return };
    let again = h.encode(seed, offset);
    assert_eq!(Header::decode(&again, seed, offset), Some(h));
}

/// Sets what an entry's header says of its payload right, and its checksums. `b` begins with the
/// header; answers the length of the payload.
fn repair_header(b: &mut [u8], seed: u32, offset: u64) -> usize {
    if b.len() < HEADER_LEN {
        return 0;
    }
    let len = (u32_at(b, 8) as usize).min(b.len() - HEADER_LEN);
    let checked = (u32_at(b, 12) as usize).min(len);
    let payload = HEADER_LEN..HEADER_LEN + len;
    let full = if b[4] == 1 {
        repair_part(&mut b[payload.clone()]);
        b[payload.clone()].last_chunk::<4>().map_or(0, |c| u32::from_le_bytes(*c))
    } else {
        crc32c::crc32c(&b[payload.clone()])
    };
    put(b, 0, b"TLE1");
    put(b, 8, &(len as u32).to_le_bytes());
    put(b, 12, &(checked as u32).to_le_bytes());
    let crc = crc32c::crc32c(&b[HEADER_LEN..HEADER_LEN + checked]);
    put(b, 16, &crc.to_le_bytes());
    put(b, 20, &full.to_le_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c_append(seed, &offset.to_le_bytes()), &b[..60]);
    put(b, 60, &crc.to_le_bytes());
    len
}

/// Sets the checksums of a segment and of the entries in it right.
fn repair_segment(b: &mut [u8]) {
    let head = SEGMENT_HEAD_LEN as usize;
    if b.len() < head {
        return;
    }
    put(b, 0, b"TSG1");
    let crc = crc32c::crc32c(&b[..60]);
    put(b, 60, &crc.to_le_bytes());
    let (store, number) = whose(b);
    let (seed, mut at) = (seed(store, number), head);
    while at + HEADER_LEN <= b.len() {
        let mut step = 8;
        if b[at..at + 4] == *b"TLE1" {
            let len = repair_header(&mut b[at..], seed, at as u64);
            step = (HEADER_LEN + len).next_multiple_of(8);
        }
        at += step;
    }
}

fn whose(b: &[u8]) -> (StoreId, u32) {
    match decode_segment_head(b) {
        SegmentHead::Good(owner, number) => (owner.store, number),
        _ => (StoreId::ZERO, 1),
    }
}

/// A segment: a byte that says how it is looked at, and its bytes.
pub fn segment(data: &[u8]) {
    let Some((how, data)) = data.split_first() else { return };
    twice(data, repair_segment, |b| {
        if let SegmentHead::Good(owner, number) = decode_segment_head(b) {
            let again = encode_segment_head(&owner, number);
            assert_eq!(decode_segment_head(&again), SegmentHead::Good(owner, number));
        }
        let bytes = Bytes::copy_from_slice(b);
        let (store, number) = whose(b);
        let sealed = (how & 1 != 0).then_some(b.len() as u64);
        let s = scan(&bytes, store, number, sealed, how & 2 != 0, u64::from(how >> 2));
        check_scan(&s, &bytes);
    });
}

fn check_scan(s: &Scan, bytes: &Bytes) {
    let mut at = SEGMENT_HEAD_LEN;
    for item in &s.items {
        match item {
            Item::Entry { offset, header, .. } => {
                assert!(*offset >= at);
                at = offset + (HEADER_LEN + header.len as usize) as u64;
                assert!(at <= bytes.len() as u64, "an entry within the segment");
                assert_eq!(payload_of(bytes, *offset, header).len(), header.len as usize);
            }
            Item::Gap { from, to, .. } => {
                assert!(*from >= at && to >= from);
                at = *to;
            }
        }
    }
}

fn repair_container(magic: [u8; 4]) -> impl FnOnce(&mut [u8]) {
    move |b| {
        if b.len() < 24 {
            return;
        }
        put(b, 0, &magic);
        put(b, 8, &((b.len() - 24) as u64).to_le_bytes());
        let crc = crc32c::crc32c(&b[24..]);
        put(b, 16, &crc.to_le_bytes());
        let crc = crc32c::crc32c(&b[..20]);
        put(b, 20, &crc.to_le_bytes());
    }
}

fn container<T>(magic: [u8; 4], b: &[u8])
where
    T: bincode::Encode + bincode::Decode<()> + PartialEq + std::fmt::Debug,
{
    if let Ok(value) = unseal::<T>(magic, b) {
        assert_eq!(unseal::<T>(magic, &seal(magic, &value)), Ok(value));
    }
}

/// A sidecar.
pub fn sidecar(data: &[u8]) {
    twice(data, repair_container(sidecar::MAGIC), |b| container::<Sidecar>(sidecar::MAGIC, b));
}

/// A state file, alone and beside another one.
pub fn state(data: &[u8]) {
    twice(data, repair_container(state::MAGIC), |b| {
        container::<State>(state::MAGIC, b);
        let wrong = matches!(unseal::<State>(state::MAGIC, b), Err(ContainerError::Damaged(_)));
        let disk = MemoryDisk::new();
        disk.replace("state.a", b).expect("a disk in memory");
        let damaged = matches!(State::load(&disk), Ok(state::Loaded::Damaged(_)));
        assert_eq!(damaged, wrong, "what is damaged is never taken for good or missing");
    });
}

/// Settings of the nodes that the targets open.
pub fn node_config() -> NodeConfig {
    NodeConfig { segment_bytes: 4096, seed: Some(7), ..NodeConfig::new(BankId::A, 0) }
}

/// A file of a node's directory, as [`store`] takes them: a byte that chooses the file, the number of
/// the segment, the length of the content (all numbers little endian), the content.
pub fn pack_files(disk: &MemoryDisk) -> Vec<u8> {
    let mut out = Vec::new();
    let mut add = |kind: u8, number: u32, content: Vec<u8>| {
        out.push(kind);
        out.extend(number.to_le_bytes());
        out.extend((content.len() as u32).to_le_bytes());
        out.extend(content);
    };
    for (kind, name) in [(0, "state.a"), (1, "state.b")] {
        disk.content(name).into_iter().for_each(|c| add(kind, 0, c));
    }
    for number in 0..64 {
        disk.content(&segment_name(number)).into_iter().for_each(|c| add(2, number, c));
        disk.content(&sidecar_name(number)).into_iter().for_each(|c| add(3, number, c));
    }
    out
}

fn unpack_files(data: &[u8], repaired: bool) -> MemoryDisk {
    let disk = MemoryDisk::new();
    disk.set_capacity(Some(64 << 20));
    let mut at = 0;
    while let Some(head) = data.get(at..at + 9) {
        let len = (u32_at(head, 5) as usize).min(data.len() - at - 9);
        let mut content = data[at + 9..at + 9 + len].to_vec();
        let number = u32_at(head, 1);
        let name = match head[0] % 4 {
            0 => "state.a".to_owned(),
            1 => "state.b".to_owned(),
            2 => segment_name(number),
            _ => sidecar_name(number),
        };
        if repaired {
            match head[0] % 4 {
                0 | 1 => repair_container(state::MAGIC)(&mut content),
                2 => repair_segment(&mut content),
                _ => repair_container(sidecar::MAGIC)(&mut content),
            }
        }
        let _ = disk.replace(&name, &content);
        at += 9 + len;
    }
    disk
}

/// A whole directory: a node starts on it, says what it has, and goes on.
pub fn store(data: &[u8]) {
    for repaired in [false, true] {
        let disk = unpack_files(data, repaired);
        start_on(&disk);
        // What it wrote it can read again.
        disk.kill();
        start_on(&disk);
    }
}

fn start_on(disk: &MemoryDisk) {
    let Ok(service) = Service::open(Arc::new(disk.clone()), node_config()) else { return };
    let s = service.status();
    let Some(volume) = s.volume else { return };
    let envelope =
        |epoch| Envelope { format: WIRE_FORMAT, volume, store: s.store, epoch, nonce: 5 };
    let call = |epoch, request| service.handle(envelope(epoch), request, Bytes::new());
    let through = Version::ZERO;
    let keys: Vec<Key> = (0..9).map(|n| format!("key {n}").into_bytes()).collect();
    let _ = call(0, Request::Read { keys: keys.into(), through });
    let scan = Request::Scan { start: vec![], end: vec![], limit: 1000, values: true, through };
    let _ = call(0, scan);
    let _ = call(0, Request::Verify { after: vec![], budget_bytes: 1 << 20 });
    let _ = call(0, Request::Hashes { through });
    let epoch = s.promise.epoch.saturating_add(1);
    let _ = call(epoch, Request::Fence { epoch, nonce: 5, holder: "fuzz".into() });
    let _ = call(epoch, Request::Tail { from: through });
    let _ = call(epoch, Request::Attach { chain: vec![], cut: through });
    let seq = s.position.position.seq.saturating_add(1);
    let head = PartHead {
        version: Version::new(epoch, seq),
        predecessor: service.status().position.position,
        shards: vec![0],
        ..PartHead::default()
    };
    let bulk = part::encode(&head, &[(b"new".to_vec(), Some(Bytes::from_static(b"value")))]);
    let append = Request::Append { lens: vec![bulk.len() as u32], watermark: through };
    let _ = service.handle(envelope(epoch), append, bulk);
    for _ in 0..50 {
        service.maintain();
    }
    service.close();
}

/// A node with a volume, attached to epoch 1, over a disk in memory of 64 MiB.
pub fn node() -> Service {
    let disk = MemoryDisk::new();
    disk.set_capacity(Some(64 << 20));
    let service = Service::open(Arc::new(disk), node_config()).expect("an empty disk in memory");
    let mut envelope = envelope();
    envelope.volume = VolumeId::ZERO;
    envelope.store = StoreId::ZERO;
    let assign = Request::Assign {
        volume: VOLUME,
        bank: BankId::A,
        shard: 0,
        shards: 1,
        role: Role::Voter,
        configuration: crate::wire::Configuration::default(),
        wipe: false,
    };
    let fence = Request::Fence { epoch: 1, nonce: 7, holder: "fuzz".into() };
    let attach = Request::Attach { chain: vec![], cut: Version::ZERO };
    for request in [assign, fence, attach] {
        service.handle(envelope, request, Bytes::new()).expect("a new node");
        envelope.volume = VOLUME;
        envelope.store = service.status().store;
    }
    service
}

/// Volume of [`node`].
pub const VOLUME: VolumeId = VolumeId([9; 16]);

/// The envelope that [`node`] obeys.
pub fn envelope() -> Envelope {
    let store = node_config_store();
    Envelope { format: WIRE_FORMAT, volume: VOLUME, store, epoch: 1, nonce: 7 }
}

/// The first store id that the seed of [`node_config`] gives.
fn node_config_store() -> StoreId {
    let disk = MemoryDisk::new();
    let service = Service::open(Arc::new(disk), node_config()).expect("an empty disk in memory");
    service.status().store
}
