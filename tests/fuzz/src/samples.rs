//! Real messages, records and files, small: what the corpora are made of.

use crate::http::{TOKEN, post};
use bytes::Bytes;
use fs::dead::{DeadSet, Under};
use fs::filesystem::{Kind, Timespec};
use fs::key::KeySpace;
use fs::record::{Counter, Dirent, Inode, Orphan, Record};
use fs::superblock::Superblock;
use std::sync::Arc;
use storenode::disk::MemoryDisk;
use storenode::frame::encode_head;
use storenode::fuzzing::{VOLUME, envelope, node_config, pack_files};
use storenode::part::{PartHead, encode};
use storenode::service::Service;
use storenode::wire::{
    BUCKETS, BankId, BucketHash, Configuration, Cursor, Digest, Envelope, Fault, Found,
    InstallKind, NodeError, OpeningMark, PerBank, Position, Promise, RecordHead, Reply, Request,
    Role, Space, Status, StoreId, Version, digest, path_of,
};

/// A file's name and its bytes.
pub type Sample = (String, Vec<u8>);

/// The samples of each target that has a corpus.
#[must_use]
pub fn all() -> Vec<(&'static str, Vec<Sample>)> {
    let (segments, sidecars, states, stores) = files();
    vec![
        ("request", requests().into_iter().map(|(n, r, bulk)| (n, framed(&r, &bulk))).collect()),
        ("reply", replies()),
        ("part", parts()),
        ("entry", entries(&segments)),
        ("segment", segments),
        ("sidecar", sidecars),
        ("state", states),
        ("store", stores),
        ("record", records()),
        ("key", keys()),
        ("superblock", superblocks()),
        ("control", control()),
        ("config", configs()),
        ("http", http()),
    ]
}

fn v(epoch: u64, seq: u64) -> Version {
    Version::new(epoch, seq)
}

fn named(name: &str, bytes: impl Into<Vec<u8>>) -> Sample {
    (name.to_owned(), bytes.into())
}

fn framed(request: &Request, bulk: &[u8]) -> Vec<u8> {
    frame_of(&(envelope(), request), bulk)
}

fn frame_of<T: bincode_head::Head>(head: &T, bulk: &[u8]) -> Vec<u8> {
    let mut all = head.frame(bulk.len());
    all.extend_from_slice(bulk);
    all
}

/// What can be the head of a frame here.
mod bincode_head {
    use super::{Envelope, NodeError, Reply, Request, encode_head};

    pub(super) trait Head {
        fn frame(&self, bulk_len: usize) -> Vec<u8>;
    }
    impl Head for (Envelope, &Request) {
        fn frame(&self, bulk_len: usize) -> Vec<u8> {
            encode_head(self, bulk_len).expect("a small head").to_vec()
        }
    }
    impl Head for Result<Reply, NodeError> {
        fn frame(&self, bulk_len: usize) -> Vec<u8> {
            encode_head(self, bulk_len).expect("a small head").to_vec()
        }
    }
}

fn configuration() -> Configuration {
    Configuration {
        number: 3,
        stores: PerBank([Some(StoreId([1; 16])), None, Some(StoreId([3; 16]))]),
    }
}

fn head_of(key: &[u8], version: Version, value: Option<&[u8]>) -> RecordHead {
    RecordHead {
        key: key.to_vec(),
        version,
        digest: digest(key, version, value),
        len: value.map(|b| b.len() as u32),
    }
}

fn a_part(seq: u64, predecessor: Version) -> Bytes {
    let head = PartHead { version: v(1, seq), predecessor, shards: vec![0], ..Default::default() };
    let key = format!("key {}", seq % 60).into_bytes();
    let value = Bytes::from(vec![seq as u8; (seq * 37 % 300) as usize]);
    encode(&head, &[(key, Some(value)), (b"gone".to_vec(), None)])
}

/// Each message, with its bulk.
fn requests() -> Vec<(String, Request, Vec<u8>)> {
    let (key, through) = (b"key 1".to_vec(), v(1, 3));
    let keys = vec![key.clone(), b"another".to_vec()];
    let part = a_part(1, Version::ZERO);
    let records = vec![head_of(b"key 1", v(1, 1), Some(b"value")), head_of(b"gone", v(1, 2), None)];
    let scan =
        |values| Request::Scan { start: key.clone(), end: vec![], limit: 10, values, through };
    let all = vec![
        (Request::Status, vec![]),
        (
            Request::Assign {
                volume: VOLUME,
                bank: BankId::A,
                shard: 0,
                shards: 3,
                role: Role::Filling,
                configuration: configuration(),
                wipe: true,
            },
            vec![],
        ),
        (Request::Fence { epoch: 300, nonce: u64::MAX, holder: "host pid 7 /mnt".into() }, vec![]),
        (Request::Attach { chain: vec![v(1, 1), v(1, 2), v(2, 1000)], cut: v(1, 2) }, vec![]),
        (
            Request::Append { lens: vec![part.len() as u32], watermark: Version::ZERO },
            part.to_vec(),
        ),
        (Request::Read { keys: keys.clone().into(), through }, vec![]),
        (Request::Digests { keys: keys.into(), through: Version::ZERO }, vec![]),
        (scan(true), vec![]),
        (scan(false), vec![]),
        (Request::Hashes { through }, vec![]),
        (Request::Bucket { bucket: 7, after: vec![], limit: 100, through }, vec![]),
        (Request::Tail { from: v(1, 1) }, vec![]),
        (
            Request::Delta {
                since: v(1, 1),
                after: key.clone(),
                limit_bytes: 1 << 20,
                values: true,
                through,
            },
            vec![],
        ),
        (
            Request::Install {
                records: records.clone(),
                as_of: through,
                kind: InstallKind::Repair,
            },
            b"value".to_vec(),
        ),
        (
            Request::Install { records, as_of: v(1, 9), kind: InstallKind::CatchUp },
            b"value".to_vec(),
        ),
        (Request::Remove { key: key.clone(), seen: v(1, 1), as_of: through }, vec![]),
        (Request::Join { at: v(1, 2), reach: v(1, 2) }, vec![]),
        (Request::Cursor(Cursor { since: v(1, 2), good: v(1, 3), after: key.clone() }), vec![]),
        (Request::Configure { configuration: configuration() }, vec![]),
        (Request::Admit { configuration: configuration() }, vec![]),
        (Request::Beat { watermark: v(1, 1), release: true }, vec![]),
        (Request::Verify { after: vec![], budget_bytes: 1 << 20 }, vec![]),
        (
            Request::Inject(Fault::Put { key: key.clone(), value: vec![1; 9], version: None }),
            vec![],
        ),
        (Request::Inject(Fault::Corrupt { key: key.clone() }), vec![]),
        (Request::Inject(Fault::Drop { key }), vec![]),
        (Request::Inject(Fault::Delay { millis: 0 }), vec![]),
        (Request::Inject(Fault::Refuse { on: false }), vec![]),
    ];
    all.into_iter()
        .enumerate()
        .map(|(i, (r, bulk))| (format!("{i:02}-{}", &path_of(&r)[4..]), r, bulk))
        .collect()
}

fn a_status() -> Status {
    Status {
        volume: Some(VOLUME),
        bank: BankId::B,
        shard: 2,
        shards: 3,
        store: StoreId([4; 16]),
        role: Role::Voter,
        configuration: configuration(),
        promise: Promise { epoch: 7, nonce: 8, holder: "host".into(), released: true },
        beats: 12,
        attached: 7,
        position: a_position(),
        watermark: v(7, 90),
        floor: v(6, 80),
        marks: PerBank([v(7, 1), v(7, 2), v(7, 3)]),
        openings: vec![OpeningMark { epoch: 7, cut: v(6, 88) }],
        damaged_through: Some(v(7, 95)),
        failed: Some("a disk that failed".into()),
        cursor: Some(Cursor { since: v(6, 1), good: v(6, 2), after: b"key".to_vec() }),
        space: Space { capacity_bytes: 1 << 40, ..Space::default() },
        damaged_records: 1,
        allow_faults: false,
        uptime_s: 100,
        program: "0.1.0".into(),
    }
}

fn a_position() -> Position {
    let detached = Some((v(7, 97), v(7, 99)));
    Position { position: v(7, 91), applied: v(7, 90), high: v(7, 99), detached }
}

fn replies() -> Vec<Sample> {
    let applied = v(1, 3);
    let found = |len| Found::Record { version: v(1, 1), digest: Digest([7; 16]), len };
    let items = vec![found(Some(5)), Found::Absent, Found::Damaged { what: "torn".into() }];
    let records = vec![
        head_of(b"a", v(1, 1), Some(b"value")),
        head_of(b"b", v(1, 2), None),
        head_of(b"c", v(1, 3), Some(b"xx")),
    ];
    let list = |damaged: &[&[u8]], next| Reply::Records {
        applied,
        records: records.clone(),
        damaged: damaged.iter().map(|k| k.to_vec()).collect(),
        next,
    };
    let good: Vec<(Reply, &[u8])> = vec![
        (Reply::Status(Box::new(a_status())), b""),
        (Reply::Position(a_position()), b""),
        (Reply::Found { applied, items }, b"value"),
        (Reply::Found { applied, items: vec![found(None); 3] }, b""),
        (list(&[], None), b"valuexx"),
        (list(&[b"c"], Some(b"c".to_vec())), b"value"),
        (list(&[], None), b""),
        (Reply::Hashes { applied, buckets: vec![BucketHash::default(); BUCKETS] }, b""),
        (Reply::Tail { lens: vec![3, 4], more: true, damaged_through: None }, b"abcdefg"),
        (Reply::Installed { taken: 3 }, b""),
        (
            Reply::Verified {
                bad: vec![(b"key".to_vec(), "does not verify".into())],
                next: Some(b"key".to_vec()),
                records: 9,
                bytes: 1000,
            },
            b"",
        ),
        (Reply::Done, b""),
    ];
    let refusals = vec![
        NodeError::Unauthorized,
        NodeError::WrongVolume { have: VOLUME },
        NodeError::WrongStore { have: StoreId([1; 16]) },
        NodeError::WrongPlace { bank: BankId::C, shard: 9 },
        NodeError::Fenced { promise: a_status().promise },
        NodeError::NotAttached { attached: 3 },
        NodeError::NotThere { position: applied },
        NodeError::WrongRole { role: Role::Blank },
        NodeError::Failed { what: "disk".into() },
        NodeError::Full { free_bytes: 12 },
        NodeError::BelowFloor { as_of: v(1, 1), floor: v(1, 2) },
        NodeError::Bad { what: "malformed".into() },
        NodeError::UnknownFormat { format: 2 },
        NodeError::Fault { what: "on purpose".into() },
    ];
    let good = good.into_iter().map(|(r, bulk)| frame_of(&Ok::<_, NodeError>(r), bulk));
    let refused = refusals.into_iter().map(|e| frame_of(&Err::<Reply, _>(e), b""));
    good.chain(refused).enumerate().map(|(i, b)| (format!("{i:02}"), b)).collect()
}

fn parts() -> Vec<Sample> {
    let head = PartHead {
        version: v(3, 9),
        predecessor: v(3, 7),
        watermark: v(3, 6),
        floor: v(2, 1),
        marks: PerBank([v(3, 8), v(3, 7), v(3, 6)]),
        cut: None,
        shards: vec![0, 2, 5],
    };
    let put = |key: &[u8], n: usize| (key.to_vec(), Some(Bytes::from(vec![n as u8; n])));
    let opening = PartHead { cut: Some(v(2, 88)), ..head.clone() };
    vec![
        named("empty", encode(&PartHead::default(), &[])),
        named("opening", encode(&opening, &[])),
        named("one", encode(&head, &[put(b"k", 1)])),
        named("deleted", encode(&head, &[(b"k".to_vec(), None)])),
        named("no-value", encode(&head, &[put(b"k", 0)])),
        named("mixed", encode(&head, &[put(b"a", 3), (b"b".to_vec(), None), put(b"c", 200)])),
        named("long-key", encode(&head, &[put(&[b'k'; 512], 2)])),
        named("many", encode(&head, &(0..40u8).map(|i| put(&[i], 2)).collect::<Vec<_>>())),
    ]
}

/// Entries of real segments as the target takes them: one byte for the kind, then the payload.
fn entries(segments: &[Sample]) -> Vec<Sample> {
    let mut out = Vec::new();
    for (name, packed) in segments {
        let segment = &packed[1..];
        let word = |at: usize| {
            let bytes = segment.get(at..at + 4).and_then(|b| b.first_chunk::<4>());
            bytes.map_or(0, |b| u32::from_le_bytes(*b) as usize)
        };
        let mut at = 64;
        while segment.get(at..at + 4) == Some(b"TLE1") {
            let (kind, len) = (segment[at + 4], word(at + 8));
            let Some(payload) = segment.get(at + 64..at + 64 + len) else { break };
            let selector = match kind {
                3 => 0,
                4 => 1,
                7 => 2,
                6 => 3,
                5 => 4,
                2 => 5,
                _ => 7,
            };
            let body = if selector == 7 { &segment[at..at + 64] } else { payload };
            let mut bytes = vec![selector];
            bytes.extend_from_slice(body);
            let same = |s: &Sample| s.1.first() == Some(&selector);
            if out.iter().filter(|s| same(s)).count() < 6 {
                out.push((format!("{name}-{at:05}"), bytes));
            }
            at += (64 + len).next_multiple_of(8);
        }
    }
    out
}

type Files = (Vec<Sample>, Vec<Sample>, Vec<Sample>, Vec<Sample>);

/// Files of nodes that have lived a little.
fn files() -> Files {
    let (mut segments, mut sidecars, mut states, mut stores) = (vec![], vec![], vec![], vec![]);
    for life in 0..LIVES {
        let disk = lived(life);
        stores.push((format!("life-{life}"), pack_files(&disk)));
        states.extend(disk.content("state.a").map(|b| (format!("life-{life}"), b)));
        for number in 0..20u32 {
            let of = |ext: &str| disk.content(&format!("log-{number:08x}.{ext}"));
            if let Some(mut bytes) = of("seg") {
                // A segment is reserved in full: leave most of the zeros out.
                let end = bytes.iter().rposition(|b| *b != 0).map_or(0, |at| at + 9);
                bytes.truncate(end);
                bytes.insert(0, 2);
                segments.push((format!("life-{life}-{number}"), bytes));
            }
            sidecars.extend(of("idx").map(|b| (format!("life-{life}-{number}"), b)));
        }
    }
    segments.truncate(24);
    sidecars.truncate(24);
    (segments, sidecars, states, stores)
}

const LIVES: u64 = 9;

/// The disk of a node that was blank, a voter, busy, closed, fenced again, repaired, away, or filling.
fn lived(life: u64) -> MemoryDisk {
    let disk = MemoryDisk::new();
    let config = storenode::service::NodeConfig { allow_faults: true, ..node_config() };
    let service = Service::open(Arc::new(disk.clone()), config).expect("an empty disk");
    if life == 0 {
        return disk;
    }
    let call = |epoch: u64, request: Request, bulk: &[u8]| {
        let s = service.status();
        let blank = s.volume.is_none();
        let e = envelope();
        let (volume, store) =
            (s.volume.unwrap_or_default(), if blank { StoreId::ZERO } else { s.store });
        let e = Envelope { volume, store, epoch, nonce: 7, ..e };
        service.handle(e, request, Bytes::copy_from_slice(bulk)).expect("a node that works").0
    };
    let assign = |role, wipe| Request::Assign {
        volume: VOLUME,
        bank: BankId::A,
        shard: 0,
        shards: 1,
        role,
        configuration: Configuration::default(),
        wipe,
    };
    let fence = |epoch| Request::Fence { epoch, nonce: 7, holder: "corpus".into() };
    let attach = |chain| Request::Attach { chain, cut: Version::ZERO };
    call(0, assign(Role::Voter, false), b"");
    call(1, fence(1), b"");
    call(1, attach(vec![]), b"");
    let mut last = Version::ZERO;
    for seq in 1..=12 * life {
        let part = a_part(seq, last);
        last = v(1, seq);
        call(
            1,
            Request::Append { lens: vec![part.len() as u32], watermark: v(1, seq * 3 / 4) },
            &part,
        );
    }
    if life >= 3 {
        // A foreign record, removed; a writer that keeps none of what is pending.
        let fault = Fault::Put { key: b"zz".to_vec(), value: b"evil".to_vec(), version: None };
        call(1, Request::Inject(fault), b"");
        let remove = Request::Remove { key: b"zz".to_vec(), seen: v(1, 1), as_of: v(1, 9 * life) };
        call(1, remove, b"");
        call(2, fence(2), b"");
        call(2, attach(vec![]), b"");
    }
    if life >= 4 {
        // Away, and not yet back.
        let part = a_part(900, v(1, 800));
        call(2, Request::Append { lens: vec![part.len() as u32], watermark: Version::ZERO }, &part);
        let records = vec![head_of(b"key 9", v(1, 700), Some(b"value"))];
        let kind = InstallKind::CatchUp;
        call(2, Request::Install { records, as_of: v(1, 800), kind }, b"value");
        call(
            2,
            Request::Cursor(Cursor { since: v(1, 700), good: v(1, 800), after: b"key 9".to_vec() }),
            b"",
        );
    }
    if life >= 5 {
        call(2, Request::Join { at: v(1, 800), reach: v(1, 800) }, b"");
    }
    if life >= 2 {
        // Sealed segments get their sidecars; the later lives also compact.
        service.tick(std::time::Duration::from_millis(50));
        service.tick(std::time::Duration::from_millis(100));
        for _ in 0..2 * life {
            service.maintain();
        }
    }
    match life {
        8 => {
            call(2, assign(Role::Filling, true), b"");
        }
        2 | 5 => service.close(),
        _ => {}
    }
    disk
}

fn records() -> Vec<Sample> {
    let time = Timespec { sec: -5, nsec: 999_999_999 };
    let inode = Inode {
        kind: Kind::File,
        perm: 0o4755,
        uid: 1000,
        gid: 100_000,
        nlink: 3,
        rdev: 0,
        size: 1 << 40,
        blocks: 77,
        atime: time,
        mtime: Timespec { sec: 1 << 33, nsec: 1 },
        ctime: Timespec::default(),
        btime: Timespec::default(),
        generation: 9,
        parent: 0,
        xattrs: 1,
        flags: 3,
        target: Box::default(),
    };
    let link = Inode { kind: Kind::Symlink, target: (*b"../some/where").into(), ..inode.clone() };
    let dir = Inode { kind: Kind::Directory, size: 12, nlink: 2, parent: 1, ..inode.clone() };
    let device = Inode { kind: Kind::Char, rdev: 0x103, ..inode.clone() };
    let largest = Inode { size: u64::MAX, blocks: u64::MAX, ..inode.clone() };
    let mut dead = DeadSet::default();
    dead.add(10, 1000, Under::Dense);
    dead.add(500, 1 << 40, Under::Counted);
    dead.remove(70, 80);
    let with = |which: u8, bytes: Bytes| {
        let mut out = vec![which];
        out.extend_from_slice(&bytes);
        out
    };
    vec![
        named("file", with(0, inode.to_bytes())),
        named("symlink", with(0, link.to_bytes())),
        named("directory", with(0, dir.to_bytes())),
        named("device", with(0, device.to_bytes())),
        named("largest", with(0, largest.to_bytes())),
        named("dirent", with(1, Dirent { ino: 1 << 40, kind: Kind::Fifo }.to_bytes())),
        named("orphan", with(2, Orphan { since: time }.to_bytes())),
        named("counter", with(3, Counter { next: 16384 }.to_bytes())),
        named("dead", with(4, dead.to_bytes())),
        named("none-dead", with(4, DeadSet::default().to_bytes())),
    ]
}

fn keys() -> Vec<Sample> {
    let k = KeySpace::new(7);
    let all = [
        ("superblock", k.superblock()),
        ("counter", k.counter()),
        ("inode", k.inode(1)),
        ("inode-last", k.inode(u64::MAX)),
        ("dirent", k.dirent(1, 77, b"name")),
        ("dirent-long", k.dirent(1 << 40, u64::MAX, &[b'n'; 255])),
        ("xattr", k.xattr(9, b"user.x")),
        ("xattr-last", k.xattr(u64::MAX, b"user.x")),
        ("block", k.block(7, 0)),
        ("block-far", k.block(7, 1 << 50)),
        ("orphan", k.orphan(7)),
        ("dead", k.dead(7)),
    ];
    all.into_iter().map(|(name, (_, key))| named(name, key)).collect()
}

fn superblocks() -> Vec<Sample> {
    let time = Timespec { sec: 1 << 31, nsec: 5 };
    let good = |size, id| Superblock::new(size, voter::volume::VolumeId([id; 16]), [id; 16], time);
    let mut newer = good(65536, 3).to_bytes().to_vec();
    newer[0] = 2;
    vec![
        named("small", good(4096, 1).to_bytes()),
        named("usual", good(65536, 9).to_bytes()),
        named("odd", good(5000, 7).to_bytes()),
        named("newer", newer),
    ]
}

fn control() -> Vec<Sample> {
    let asks = [
        r#"{"do":"hello"}"#,
        r#"{"do":"status"}"#,
        r#"{"do":"inspect","path":"/a/b","limit":100}"#,
        r#"{"do":"refresh"}"#,
        r#"{"do":"scrub"}"#,
        r#"{"do":"check","data":true}"#,
        r#"{"do":"replace","bank":"B","shard":2}"#,
        r#"{"do":"replace","bank":"A","shard":null}"#,
        r#"{"do":"unmount","lazy":false}"#,
        r#"{"progress":{"what":"scrub","done":7,"total":9,"unit":"bytes"}}"#,
        r#"{"ok":{"mountpoint":"/m","n":[1,-2.5e3,null,true,"\u00e9\n"]}}"#,
        r#"{"error":{"message":"no","hint":"do this","code":3}}"#,
        r#"{"do":"dance"}"#,
        r#"{"do":"hello","more":1}"#,
    ];
    let flags = fs::mount::MountFlags::default();
    let remount = serde_json::to_string(&fs::control::Ask::Remount { flags }).expect("JSON");
    let asks = asks.into_iter().map(str::to_owned).chain([remount]);
    asks.enumerate().map(|(i, text)| (format!("{i:02}"), text.into_bytes())).collect()
}

fn configs() -> Vec<Sample> {
    let banks = "[volume]\ntoken_file = \"t\"\n[banks]\na = [\"h:1\", \"h:2\"]\nb = [\"[::1]:3\", \"h:4\"]\nc = [\"h:5\", \"h:6\"]\n";
    let mount = "[mount]\nmountpoint = \"/m\"\nallow_other = false\nauto_replace = false\n";
    let limits = "[limits]\nsync_deadline_ms = 5\nblock_cache_bytes = 0\nfuse_threads = 32\n";
    let odd = banks.replace("\"t\"", "\"t\\u00e9\\t\\\"\\u007f\"");
    vec![
        named("example", fs::config::EXAMPLE),
        named("banks", banks),
        named("mount", format!("{banks}{mount}")),
        named("limits", format!("{banks}{limits}")),
        named("odd-path", odd),
        named("unequal", banks.replace("\"h:1\", ", "")),
        named("twice", banks.replace("h:6", "h:2")),
        named("no-port", banks.replace("h:6", "h")),
        named("unknown-key", format!("{banks}[limits]\nsync_deadlin_ms = 3\n")),
        named("out-of-range", format!("{banks}[limits]\nfuse_threads = 0\n")),
        named("negative", format!("{banks}[limits]\nbeat_ms = -1\n")),
        named("unknown-table", format!("{banks}[x]\n")),
        named("no-toml", "[[["),
    ]
}

fn http() -> Vec<Sample> {
    let mut out: Vec<Sample> = requests()
        .into_iter()
        .map(|(name, request, bulk)| {
            let mut bytes = vec![1];
            bytes.extend(post(path_of(&request), "", &framed(&request, &bulk)));
            (name, bytes)
        })
        .collect();
    let status = framed(&Request::Status, b"");
    let two = [post("/v1/status", "", &status), post("/v1/status", "", &status)].concat();
    let auth = format!("Authorization: Bearer {TOKEN}\r\n");
    let odd: Vec<(&str, Vec<u8>)> = vec![
        ("pipelined", two),
        ("healthz", b"GET /healthz HTTP/1.1\r\nHost: n\r\n\r\n".to_vec()),
        ("metrics", format!("GET /metrics HTTP/1.1\r\nHost: n\r\n{auth}\r\n").into()),
        ("metrics-no-token", b"GET /metrics HTTP/1.1\r\nHost: n\r\n\r\n".to_vec()),
        ("no-token", b"POST /v1/status HTTP/1.1\r\nHost: n\r\nContent-Length: 4\r\n\r\nabcd".to_vec()),
        (
            "chunked",
            format!("POST /v1/read HTTP/1.1\r\nHost: n\r\n{auth}Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n").into(),
        ),
        (
            "both-lengths",
            format!("POST /v1/read HTTP/1.1\r\nHost: n\r\n{auth}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n").into(),
        ),
        (
            "too-long",
            format!("POST /v1/read HTTP/1.1\r\nHost: n\r\n{auth}Content-Length: 99999999999\r\n\r\nx").into(),
        ),
        (
            "short",
            format!("POST /v1/read HTTP/1.1\r\nHost: n\r\n{auth}Content-Length: 1000000\r\n\r\nx").into(),
        ),
        (
            "expect",
            format!("POST /v1/status HTTP/1.1\r\nHost: n\r\n{auth}Expect: 100-continue\r\nContent-Length: 0\r\n\r\n").into(),
        ),
        ("http-2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec()),
        ("tls", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec()),
        ("nothing", b"\r\n\r\n".to_vec()),
        ("upgrade", b"GET / HTTP/1.1\r\nHost: n\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n".to_vec()),
        ("elsewhere", b"DELETE /v2/../x?y=%00 HTTP/1.0\r\n\r\n".to_vec()),
        ("many-headers", {
            let many: String = (0..120).map(|i| format!("X-{i}: {i}\r\n")).collect();
            format!("GET /healthz HTTP/1.1\r\nHost: n\r\n{many}\r\n").into()
        }),
    ];
    for (name, mut bytes) in odd {
        bytes.insert(0, 0);
        out.push((name.to_owned(), bytes));
    }
    out
}
