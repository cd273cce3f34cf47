//! One node over a disk in memory, driven as a mount would.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used)]

pub mod wrapped;

use bytes::Bytes;
use std::sync::Arc;
use std::time::Duration;
use storenode::disk::MemoryDisk;
use storenode::part::{PartHead, encode};
use storenode::service::{NodeConfig, Service};
use storenode::wire::*;

/// Sizes of segments that make many, and few.
pub const SEGMENTS: [u64; 2] = [4096, 9000];

pub const VOLUME: VolumeId = VolumeId([9; 16]);

pub fn v(epoch: u64, seq: u64) -> Version {
    Version::new(epoch, seq)
}

pub type Records = Vec<(Key, Option<Bytes>)>;

/// A part; `watermark` in its head stays zero (the append says it).
pub fn part(version: Version, predecessor: Version, records: &Records) -> Bytes {
    encode(&PartHead { version, predecessor, shards: vec![0], ..PartHead::default() }, records)
}

pub fn put(key: &[u8], value: &[u8]) -> (Key, Option<Bytes>) {
    (key.to_vec(), Some(Bytes::copy_from_slice(value)))
}
pub fn del(key: &[u8]) -> (Key, Option<Bytes>) {
    (key.to_vec(), None)
}

pub struct Node {
    pub disk: MemoryDisk,
    pub service: Service,
    pub epoch: u64,
    pub segment_bytes: u64,
}

impl Node {
    /// A voter of a new volume, fenced and attached to epoch 1.
    pub fn new(segment_bytes: u64) -> Self {
        let mut n = Self::blank(MemoryDisk::new(), segment_bytes);
        n.assign(Role::Voter);
        n.take(1);
        n
    }
    pub fn blank(disk: MemoryDisk, segment_bytes: u64) -> Self {
        let service = Service::open(Arc::new(disk.clone()), config(segment_bytes)).unwrap();
        Self { disk, service, epoch: 0, segment_bytes }
    }
    pub fn assign(&mut self, role: Role) {
        let store = self.service.status().store;
        let configuration = Configuration { number: 1, stores: PerBank([Some(store), None, None]) };
        self.call(Request::Assign {
            volume: VOLUME,
            bank: BankId::A,
            shard: 0,
            shards: 1,
            role,
            configuration,
            wipe: false,
        })
        .unwrap();
    }
    /// Fences and attaches, keeping every pending part.
    pub fn take(&mut self, epoch: u64) -> Position {
        self.fence(epoch).unwrap();
        let chain = self.tail().iter().map(|p| p.0).collect();
        self.attach(chain).unwrap()
    }
    pub fn fence(&mut self, epoch: u64) -> Result<(), NodeError> {
        self.epoch = epoch;
        let fence = Request::Fence { epoch, nonce: epoch * 7, holder: "test".into() };
        self.call(fence).map(|_| ())
    }
    pub fn attach(&self, chain: Vec<Version>) -> Result<Position, NodeError> {
        position(self.call(Request::Attach { chain, cut: Version::ZERO }))
    }
    pub fn envelope(&self) -> Envelope {
        Envelope {
            format: WIRE_FORMAT,
            volume: VOLUME,
            store: self.service.status().store,
            epoch: self.epoch,
            nonce: self.epoch * 7,
        }
    }
    pub fn call(&self, r: Request) -> Result<(Reply, Vec<Bytes>), NodeError> {
        self.handle(self.envelope(), r)
    }
    pub fn observe(&self, r: Request) -> Result<(Reply, Vec<Bytes>), NodeError> {
        self.handle(Envelope { epoch: 0, ..self.envelope() }, r)
    }
    /// What a reader makes of the answer: the bulk cut into its pieces, values that do not match
    /// their digest damaged.
    fn handle(&self, e: Envelope, r: Request) -> Result<(Reply, Vec<Bytes>), NodeError> {
        let (mut reply, bulk) = self.service.handle(e, r.clone(), Bytes::new())?;
        let (Request::Read { keys, .. }, Reply::Found { items, .. }) = (&r, &mut reply) else {
            return Ok((reply, bulk));
        };
        let bulk = Bytes::from(bulk.concat());
        let (mut values, mut at) = (Vec::new(), 0);
        for (key, item) in keys.iter().zip(items) {
            let Found::Record { version, digest: told, len: Some(len) } = *item else { continue };
            let value = bulk.slice(at..at + len as usize);
            at += len as usize;
            if digest(key, version, Some(&value)) == told {
                values.push(value);
            } else {
                *item = Found::Damaged { what: "the value does not match its digest".into() };
            }
        }
        assert_eq!(at, bulk.len());
        Ok((reply, values))
    }
    pub fn append(&self, parts: &[Bytes], watermark: Version) -> Result<Position, NodeError> {
        let lens = parts.iter().map(|p| p.len() as u32).collect();
        let bulk = Bytes::from(parts.concat());
        position(self.service.handle(self.envelope(), Request::Append { lens, watermark }, bulk))
    }
    /// Appends the next part of epoch `self.epoch` and commits all before it.
    pub fn write(&self, seq: u64, records: &Records) -> Result<Position, NodeError> {
        let at = self.service.status().position.position;
        self.append(&[part(v(self.epoch, seq), at, records)], at)
    }
    pub fn commit(&self, watermark: Version) -> Position {
        position(self.call(Request::Beat { watermark, release: false })).unwrap()
    }
    pub fn read(&self, key: &[u8], through: Version) -> Result<(Found, Option<Bytes>), NodeError> {
        let r = Request::Read { keys: [key.to_vec()].into(), through };
        match self.call(r)? {
            (Reply::Found { mut items, .. }, mut bulk) => Ok((items.remove(0), bulk.pop())),
            other => panic!("{other:?}"),
        }
    }
    pub fn tail(&self) -> Vec<(Version, Bytes)> {
        match self.call(Request::Tail { from: Version::ZERO }).unwrap() {
            (Reply::Tail { .. }, parts) => parts
                .into_iter()
                .map(|b| (storenode::part::decode(b.clone()).unwrap().head.version, b))
                .collect(),
            other => panic!("{other:?}"),
        }
    }
    pub fn install(
        &self,
        records: &[(Key, Version, Option<Bytes>)],
        as_of: Version,
        kind: InstallKind,
    ) -> Result<u32, NodeError> {
        let heads = records
            .iter()
            .map(|(key, version, value)| RecordHead {
                key: key.clone(),
                version: *version,
                digest: digest(key, *version, value.as_deref()),
                len: value.as_ref().map(|v| v.len() as u32),
            })
            .collect();
        let bulk: Vec<u8> = records.iter().flat_map(|r| r.2.clone().unwrap_or_default()).collect();
        let r = Request::Install { records: heads, as_of, kind };
        match self.service.handle(self.envelope(), r, bulk.into())? {
            (Reply::Installed { taken }, _) => Ok(taken),
            other => panic!("{other:?}"),
        }
    }
    pub fn hashes(&self) -> Vec<BucketHash> {
        match self.observe(Request::Hashes { through: Version::ZERO }).unwrap() {
            (Reply::Hashes { buckets, .. }, _) => buckets,
            other => panic!("{other:?}"),
        }
    }
    /// All live records with their values.
    pub fn scan(&self) -> Vec<(Key, Version, Bytes)> {
        let mut out = Vec::new();
        let mut start = Vec::new();
        loop {
            let r = Request::Scan {
                start: start.clone(),
                end: Vec::new(),
                limit: 7,
                values: true,
                through: Version::ZERO,
            };
            let (Reply::Records { records, damaged, next, .. }, values) = self.observe(r).unwrap()
            else {
                panic!()
            };
            assert!(damaged.is_empty(), "damaged {damaged:?}");
            for (r, value) in records.into_iter().zip(values) {
                assert_eq!(digest(&r.key, r.version, Some(&value)), r.digest);
                out.push((r.key, r.version, value));
            }
            match next {
                Some(mut n) => {
                    n.push(0);
                    start = n;
                }
                None => return out,
            }
        }
    }
    /// Keys whose values are damaged.
    pub fn scan_damaged(&self) -> Vec<Key> {
        match self.observe(Request::Verify { after: Vec::new(), budget_bytes: 16 << 20 }).unwrap().0
        {
            Reply::Verified { bad, next: None, .. } => bad.into_iter().map(|(k, _)| k).collect(),
            other => panic!("{other:?}"),
        }
    }
    /// Makes it a new store to be filled; `ready` is called just before.
    pub fn wipe(&self, ready: impl FnOnce()) -> Result<(), NodeError> {
        let envelope = self.envelope();
        let order = Request::Assign {
            volume: VOLUME,
            bank: BankId::A,
            shard: 0,
            shards: 1,
            role: Role::Filling,
            configuration: self.service.status().configuration,
            wipe: true,
        };
        ready();
        self.service.handle(envelope, order, Bytes::new()).map(drop)
    }
    /// 100 ms pass.
    pub fn tick(&self) {
        self.service.tick(Duration::from_millis(50));
        self.service.tick(Duration::from_millis(100));
    }
    /// A quarter of a minute without requests: all background work that is due, and what waits a
    /// while for the log to go on.
    pub fn maintain(&self) {
        let (mut files, mut idle) = (Vec::new(), 0);
        for _ in 0..2000 {
            idle = if self.service.maintain() { 0 } else { idle + 1 };
            if idle == 15 {
                return;
            }
            let len = |f: &String| (f.clone(), self.disk.content(f).map_or(0, |c| c.len()));
            files.push(self.log_files().iter().map(len).collect::<Vec<_>>());
        }
        panic!("maintenance does not end: {:?}", &files[1995..]);
    }
    /// Power cut and start.
    pub fn crash(self) -> Self {
        self.disk.crash();
        self.start()
    }
    /// Start on the same disk; epoch and nonce of before are used again, not attached.
    pub fn start(mut self) -> Self {
        self.restart();
        self
    }
    /// The same in place.
    pub fn restart(&mut self) {
        self.disk.kill();
        let disk = Arc::new(self.disk.clone());
        self.service = Service::open(disk, config(self.segment_bytes)).unwrap();
    }
    pub fn position(&self) -> Position {
        self.service.status().position
    }
    pub fn log_files(&self) -> Vec<String> {
        use storenode::disk::Disk;
        let mut names = self.disk.list().unwrap();
        names.sort();
        names
    }
}

pub fn config(segment_bytes: u64) -> NodeConfig {
    NodeConfig { segment_bytes, allow_faults: true, seed: Some(7), ..NodeConfig::new(BankId::A, 0) }
}

pub fn position(r: Result<(Reply, Vec<Bytes>), NodeError>) -> Result<Position, NodeError> {
    match r? {
        (Reply::Position(p), _) => Ok(p),
        other => panic!("{other:?}"),
    }
}
