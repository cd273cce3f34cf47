//! Random histories of one node against a table in memory: parts, attaches, repairs, removals, time
//! away with catch-up and join, floors, compaction, restarts and power cuts. What happens next is
//! drawn from a seed or from the bytes of a fuzzer.
#![allow(dead_code, clippy::unwrap_used)]

use crate::support::*;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use storenode::part::{PartHead, encode};
use storenode::wire::*;

/// Where choices come from.
pub trait Draw {
    /// `0..n`.
    fn below(&mut self, n: u64) -> u64;
    /// Nothing is left to choose by.
    fn is_spent(&self) -> bool {
        false
    }
}

/// A small generator: the whole run hangs on one number.
pub struct Rng(pub u64);

impl Draw for Rng {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }
}

/// Choices from bytes: one byte each, two where there are more than 256 ways to go on.
pub struct Spelled<'a>(pub &'a [u8]);

impl Draw for Spelled<'_> {
    fn below(&mut self, n: u64) -> u64 {
        let mut take = || {
            let (first, rest) = self.0.split_first().unwrap_or((&0, &[]));
            self.0 = rest;
            u64::from(*first)
        };
        let low = take();
        let all = if n > 256 { low | take() << 8 } else { low };
        all % n
    }
    fn is_spent(&self) -> bool {
        self.0.is_empty()
    }
}

type Table = BTreeMap<Key, (Version, Option<Bytes>)>;

/// What the node should hold.
#[derive(Clone, Default)]
pub struct Model {
    applied: Table,
    /// Version and predecessor.
    pending: Vec<(Version, Version, Records)>,
    position: Version,
    watermark: Version,
    epoch: u64,
    seq: u64,
    floor: Version,
}

impl Model {
    fn commit(&mut self, watermark: Version) {
        self.watermark = self.watermark.max(watermark);
        while let Some((version, ..)) = self.pending.first() {
            if *version > self.watermark {
                return;
            }
            let (version, _, records) = self.pending.remove(0);
            for (key, value) in records {
                self.applied.insert(key, (version, value));
            }
        }
    }
    fn live(&self) -> Vec<(Key, Version, Bytes)> {
        self.applied
            .iter()
            .filter_map(|(k, (v, b))| b.clone().map(|b| (k.clone(), *v, b)))
            .collect()
    }
    /// All that may stand under each key once everything pending is applied.
    fn may_hold(&self, into: &mut BTreeMap<Key, Vec<(Version, Option<Bytes>)>>) {
        for (key, held) in &self.applied {
            into.entry(key.clone()).or_default().push(held.clone());
        }
        for (version, _, records) in &self.pending {
            for (key, value) in records {
                into.entry(key.clone()).or_default().push((*version, value.clone()));
            }
        }
    }
}

fn sums(t: &Table) -> Vec<(u128, u64)> {
    let mut out = vec![(0u128, 0u64); BUCKETS];
    for (k, (version, value)) in t {
        if let Some(value) = value {
            let b = &mut out[bucket_of(k) as usize];
            b.0 = b.0.wrapping_add(set_hash_term(k, *version, digest(k, *version, Some(value))));
            b.1 += 1;
        }
    }
    out
}

/// A node, its model, and what comes next.
pub struct History<D> {
    draw: D,
    pub n: Node,
    m: Model,
    /// The model before the step under way.
    before: Model,
    /// Keys that the step under way damages on purpose.
    doubt: BTreeSet<Key>,
    log: Vec<String>,
    /// The disk may fail: no looks between steps, they would fail as well.
    failing: bool,
}

type Step = Result<(), NodeError>;

impl<D: Draw> History<D> {
    /// A new node.
    pub fn new(mut draw: D) -> Self {
        let segment = [4096, 9000, 1 << 16][draw.below(3) as usize];
        Self::on(Node::new(segment), draw)
    }

    /// A node that is new.
    pub fn on(n: Node, draw: D) -> Self {
        let m = Model { epoch: 1, ..Model::default() };
        let before = m.clone();
        Self { draw, n, m, before, doubt: BTreeSet::new(), log: Vec::new(), failing: false }
    }

    /// Goes on until something fails, or so many steps are made, or nothing is left to choose by.
    pub fn run(&mut self, steps: u64) -> Step {
        for step in 0..steps {
            if self.draw.is_spent() {
                break;
            }
            self.before = self.m.clone();
            self.doubt.clear();
            let what = self.draw.below(100);
            self.log.push(format!("{step}: {what} (operation {})", self.n.disk.operations()));
            self.step(what, step)?;
            if !self.failing && (step % 5 == 0 || what >= 62) {
                self.check();
            }
        }
        Ok(())
    }

    fn step(&mut self, what: u64, step: u64) -> Step {
        match what {
            0..46 => self.write()?,
            46..58 => {
                let nth = self.draw.below(4) as usize;
                if let Some(w) = self.m.pending.get(nth).map(|p| p.0) {
                    self.m.commit(w);
                    self.beat(w)?;
                }
            }
            58..62 => self.n.tick(),
            62..68 => self.maintain(),
            68..74 => self.new_writer()?,
            74..80 => self.repair()?,
            80..84 => self.foreign(step)?,
            84..90 => self.away()?,
            90..92 => {
                // As the writer would: all voters (this one) have it applied, durably.
                self.n.tick();
                self.m.floor = self.m.floor.max(self.n.position().applied);
            }
            92..95 if !self.failing => {
                self.n.service.close();
                self.n.restart();
                self.attach_again();
            }
            _ if !self.failing => self.again(),
            _ => {}
        }
        Ok(())
    }

    fn beat(&self, watermark: Version) -> Step {
        self.n.call(Request::Beat { watermark, release: false }).map(|_| ())
    }

    fn maintain(&self) {
        let mut idle = 0;
        for _ in 0..2000 {
            // What waits for the log to go on waits for a dozen calls.
            idle = if self.n.service.maintain() { 0 } else { idle + 1 };
            if idle == 15 {
                return;
            }
            assert!(self.n.service.status().failed.is_none() || self.failing, "it does not fail");
            if self.n.service.status().failed.is_some() {
                return;
            }
        }
        panic!("maintenance does not end: {}", self.context());
    }

    fn key(&mut self) -> Key {
        let n = self.draw.below(40);
        // Short and long ones.
        if n.is_multiple_of(5) {
            format!("a long key of more than 22 bytes {n}")
        } else {
            format!("k{n}")
        }
        .into_bytes()
    }

    fn records(&mut self) -> Records {
        let mut out = BTreeMap::new();
        for _ in 0..1 + self.draw.below(6) {
            let value = (self.draw.below(4) > 0).then(|| {
                let n = [0, 1, 30, 400, 3000][self.draw.below(5) as usize];
                Bytes::from(vec![self.draw.below(256) as u8; n])
            });
            out.insert(self.key(), value);
        }
        out.into_iter().collect()
    }

    /// The next part of the chain, in the model as pending.
    fn next_part(&mut self) -> Bytes {
        self.m.seq += 1 + self.draw.below(2);
        let records = self.records();
        let version = v(self.m.epoch, self.m.seq);
        let head = PartHead {
            version,
            predecessor: self.m.position,
            floor: self.m.floor,
            shards: vec![0],
            ..Default::default()
        };
        let part = encode(&head, &records);
        self.m.pending.push((version, self.m.position, records));
        self.m.position = version;
        part
    }

    /// Parts, sometimes several at once, sometimes with a duplicate.
    fn write(&mut self) -> Step {
        let mut parts = Vec::new();
        for _ in 0..1 + self.draw.below(3) {
            parts.push(self.next_part());
            if self.draw.below(5) == 0 {
                parts.push(parts[parts.len() - 1].clone());
            }
        }
        let w = if self.draw.below(3) > 0 { self.m.watermark } else { self.m.pending[0].0 };
        self.m.commit(w);
        let p = self.n.append(&parts, w)?;
        assert_eq!(p.position, self.m.position, "{}", self.context());
        Ok(())
    }

    /// A new writer, which may know only a part of what is pending.
    fn new_writer(&mut self) -> Step {
        let keep = self.draw.below(self.m.pending.len() as u64 + 1) as usize;
        self.m.epoch += 1;
        let chain: Vec<Version> = self.m.pending[..keep].iter().map(|p| p.0).collect();
        for (_, predecessor, _) in self.m.pending.drain(keep..).rev() {
            self.m.position = predecessor;
        }
        self.n.fence(self.m.epoch)?;
        self.n.attach(chain)?;
        Ok(())
    }

    /// A repair of something that was broken.
    fn repair(&mut self) -> Step {
        let live = self.m.live();
        let nth = self.draw.below(live.len().max(1) as u64) as usize;
        let Some((key, version, value)) = live.get(nth).cloned() else { return Ok(()) };
        let fault = match self.draw.below(3) {
            0 if !value.is_empty() => Fault::Corrupt { key: key.clone() },
            1 => Fault::Put { key: key.clone(), value: b"?".to_vec(), version: None },
            _ => Fault::Drop { key: key.clone() },
        };
        self.log.push(format!("{fault:?}"));
        self.doubt.insert(key.clone());
        // A part that is damaged while it is pending ends the position: not here.
        self.n.tick();
        self.n.service.inject(fault)?;
        if self.draw.below(2) == 0 {
            self.n.tick();
            self.maintain();
        }
        if self.draw.below(3) == 0 && !self.failing {
            self.again();
        }
        let records = [(key, version, Some(value))];
        let as_of = self.m.watermark.max(version);
        if self.m.floor <= as_of {
            let taken = self.n.install(&records, as_of, InstallKind::Repair)?;
            self.log.push(format!("taken {taken}"));
        }
        Ok(())
    }

    /// A foreign record, removed again.
    fn foreign(&mut self, step: u64) -> Step {
        let key = self.key();
        let held = self.m.applied.get(&key).is_some_and(|x| x.1.is_some());
        let in_flight = self.m.pending.iter().any(|p| p.2.iter().any(|x| x.0 == key));
        if held || in_flight || self.m.watermark < self.m.floor {
            return Ok(());
        }
        let version = v(self.m.epoch, 1_000_000 + step);
        let (value, version_of_it) = (b"evil".to_vec(), Some(version));
        let fault = Fault::Put { key: key.clone(), value, version: version_of_it };
        self.log.push(format!("{fault:?} and remove"));
        self.doubt.insert(key.clone());
        self.n.service.inject(fault)?;
        if self.draw.below(2) == 0 {
            self.maintain();
        }
        let remove = Request::Remove { key, seen: version, as_of: self.m.watermark };
        // The tombstone that lay below is gone with it.
        assert_eq!(self.n.call(remove)?.0, Reply::Installed { taken: 1 });
        Ok(())
    }

    /// The node is away for some groups, gets later ones as a detached tail, what it missed as
    /// records, and joins.
    fn away(&mut self) -> Step {
        let since = self.m.position;
        for _ in 0..1 + self.draw.below(3) {
            self.next_part();
        }
        let reach = self.m.position;
        let tail: Vec<Bytes> = (0..self.draw.below(3)).map(|_| self.next_part()).collect();
        self.m.commit(reach);
        if !tail.is_empty() {
            let p = self.n.append(&tail, reach)?;
            assert_eq!(p.position, since, "nothing counts behind a gap: {}", self.context());
            let first = self.m.pending[0].0;
            assert_eq!(p.detached, Some((first, self.m.position)), "{}", self.context());
        }
        let missed: Vec<(Key, Version, Option<Bytes>)> = self
            .m
            .applied
            .iter()
            .filter(|(_, (version, _))| *version > since)
            .map(|(key, (version, value))| (key.clone(), *version, value.clone()))
            .collect();
        let size = 1 + self.draw.below(4) as usize;
        for piece in missed.chunks(size) {
            self.n.install(piece, reach, InstallKind::CatchUp)?;
            let after = piece[piece.len() - 1].0.clone();
            self.n.call(Request::Cursor(Cursor { since, good: reach, after }))?;
            match self.draw.below(6) {
                // The unfinished catch-up goes on after a start. Some of it is sent again.
                0 if !self.failing => {
                    self.again();
                    self.n.install(piece, reach, InstallKind::CatchUp)?;
                }
                1 => self.maintain(),
                _ => {}
            }
        }
        let too_far = Request::Join { at: reach, reach: v(self.m.epoch, self.m.seq + 1) };
        let refused = self.n.call(too_far);
        assert!(refused.is_err(), "joined with a tail that is too short: {}", self.context());
        let p = position(self.n.call(Request::Join { at: reach, reach }))?;
        assert_eq!((p.position, p.detached), (self.m.position, None), "{}", self.context());
        assert!(p.applied >= reach && self.n.service.status().cursor.is_none());
        Ok(())
    }

    /// A start, after a kill or a power cut that tears what was not synced.
    fn again(&mut self) {
        if self.draw.below(2) != 0 {
            let draw = &mut self.draw;
            self.n.disk.crash_keeping(|_, len| draw.below(len as u64 + 1) as usize);
        }
        self.n.restart();
        self.attach_again();
    }

    fn attach_again(&self) {
        self.n.attach(self.m.pending.iter().map(|p| p.0).collect()).unwrap();
        if self.n.position().position >= self.m.watermark {
            self.n.commit(self.m.watermark);
        }
    }

    fn context(&self) -> String {
        let log = &self.log[self.log.len().saturating_sub(40)..];
        format!("{log:#?}\n{:?} watermark {:?}", self.n.position(), self.m.watermark)
    }

    /// All that a reader can see is what the model holds.
    fn check(&self) {
        let (n, m) = (&self.n, &self.m);
        // The watermark may have been known in memory only.
        if n.position().applied < m.watermark.min(m.position) {
            n.commit(m.watermark);
        }
        let p = n.position();
        assert_eq!(p.position, m.position, "{}", self.context());
        let failed = n.service.status().failed;
        assert!(p.applied <= m.position && failed.is_none(), "{}", self.context());
        let (have, want) = (n.scan(), m.live());
        if have != want {
            let only = |a: &[(Key, Version, Bytes)], b: &[(Key, Version, Bytes)]| {
                let short = a.iter().filter(|x| !b.contains(x)).map(|(k, v, b)| {
                    (String::from_utf8_lossy(k).into_owned(), *v, b.len(), b.first().copied())
                });
                format!("{:?}", short.collect::<Vec<_>>())
            };
            let (more, less) = (only(&have, &want), only(&want, &have));
            panic!("has {more} instead of {less} {}", self.context());
        }
        let got: Vec<_> = n.hashes().iter().map(|b| (b.sum, b.count)).collect();
        assert!(got == sums(&m.applied), "hashes differ {}", self.context());
    }

    /// From here on the disk fails as it is told to.
    pub fn may_fail(&mut self) {
        self.failing = true;
    }

    /// After a step that failed, and whatever ended the process: the node starts, votes, has lost
    /// nothing that was acknowledged, shows nothing that was never written, and goes on.
    pub fn check_survived(&mut self, what: &str) {
        self.n.restart();
        let s = self.n.service.status();
        assert_eq!((&s.failed, &s.damaged_through), (&None, &None), "{what} {}", self.context());
        let (low, high) = (self.before.position, self.m.position);
        let (low, high) = (low.min(high), low.max(high));
        let at = s.position.position;
        assert!(at >= low && at <= high, "{what}: {at} is not in {low}..={high}");
        self.n.take(s.promise.epoch.max(self.m.epoch) + 1);
        assert_eq!(self.n.position().position, at, "{what}");
        self.n.commit(at);
        let mut may = BTreeMap::new();
        self.before.may_hold(&mut may);
        self.m.may_hold(&mut may);
        for (key, may) in may.iter().filter(|(key, _)| !self.doubt.contains(*key)) {
            let least = self.before.applied.get(key).map_or(Version::ZERO, |held| held.0);
            let (found, value) = self.n.read(key, at).unwrap();
            let name = String::from_utf8_lossy(key);
            match found {
                Found::Record { version, len, .. } => {
                    assert_eq!(len.is_some(), value.is_some());
                    let known = may.contains(&(version, value));
                    assert!(known && version >= least, "{what}: {name} is {version} {found:?}");
                }
                Found::Absent => {
                    let gone = least == Version::ZERO
                        || may.iter().any(|(v, b)| *v >= least && b.is_none());
                    assert!(gone, "{what}: {name} is lost");
                }
                Found::Damaged { what: why } => {
                    panic!("{what}: {name} is damaged: {why} {}", self.context())
                }
            }
        }
        let after = part(v(self.n.epoch, at.seq + 1), at, &vec![put(b"later", b"x")]);
        let p = self.n.append(&[after], at).unwrap();
        assert_eq!(p.position, v(self.n.epoch, at.seq + 1), "{what}");
    }
}
