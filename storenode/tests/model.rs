//! The engine against a table in memory: random parts, attaches, installs, removals, compaction,
//! restarts and power cuts. A failure prints its seed; `NODE_SEED=n` runs that one alone, and
//! `NODE_RUNS=n` that many.
#![cfg(feature = "server")]
#![allow(clippy::unwrap_used)]

#[allow(unreachable_pub)]
mod support;

use bytes::Bytes;
use std::collections::BTreeMap;
use storenode::wire::*;
use support::*;

/// A small generator: the whole run hangs on one number.
struct Rng(u64);
impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

type Table = BTreeMap<Key, (Version, Option<Bytes>)>;

#[derive(Default)]
struct Model {
    applied: Table,
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

fn key(r: &mut Rng) -> Key {
    let n = r.below(40);
    // Short and long ones.
    if n.is_multiple_of(5) {
        format!("a long key of more than 22 bytes {n}")
    } else {
        format!("k{n}")
    }
    .into_bytes()
}

fn records(r: &mut Rng) -> Records {
    let mut out = BTreeMap::new();
    for _ in 0..1 + r.below(6) {
        let value = (r.below(4) > 0).then(|| {
            let n = [0, 1, 30, 400, 3000][r.below(5) as usize];
            Bytes::from(vec![r.next() as u8; n])
        });
        out.insert(key(r), value);
    }
    out.into_iter().collect()
}

/// All that a reader can see is what the model holds.
fn check(n: &Node, m: &Model, log: &[String]) {
    let p = n.position();
    let context =
        || format!("{:#?}\n{p:?} {:?}", &log[log.len().saturating_sub(12)..], m.watermark);
    assert_eq!(p.position, m.position, "{}", context());
    assert!(p.applied <= m.position && n.service.status().failed.is_none(), "{}", context());
    let (have, want) = (n.scan(), m.live());
    if have != want {
        let short = |x: &[(Key, Version, Bytes)]| -> Vec<_> {
            x.iter()
                .map(|(k, v, b)| {
                    (String::from_utf8_lossy(k).into_owned(), *v, b.len(), b.first().copied())
                })
                .collect()
        };
        let (have, want) = (short(&have), short(&want));
        let only = |a: &[(String, Version, usize, Option<u8>)],
                    b: &[(String, Version, usize, Option<u8>)]| {
            format!("{:?}", a.iter().filter(|x| !b.contains(x)).collect::<Vec<_>>())
        };
        panic!("has {} instead of {} {}", only(&have, &want), only(&want, &have), context());
    }
    let got: Vec<_> = n.hashes().iter().map(|b| (b.sum, b.count)).collect();
    assert!(got == sums(&m.applied), "hashes differ {}", context());
}

fn run(seed: u64, steps: u64) {
    let dbg = std::env::var("NODE_DEBUG").is_ok();
    if dbg {
        let _ = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::DEBUG)
            .without_time()
            .try_init();
    }
    let mut r = Rng(seed);
    let mut n = Node::new([4096, 9000, 1 << 16][r.below(3) as usize]);
    let mut m = Model { epoch: 1, ..Model::default() };
    let mut log: Vec<String> = Vec::new();
    for step in 0..steps {
        let what = r.below(100);
        log.push(format!("{step}: {what}"));
        if dbg {
            println!(
                "STEP {step} {what} pos {} wm {} files {:?}",
                m.position,
                m.watermark,
                n.log_files()
                    .iter()
                    .map(|f| format!("{f}:{}", n.disk.content(f).map_or(0, |c| c.len())))
                    .collect::<Vec<_>>()
            );
        }
        match what {
            // A part, sometimes several at once, sometimes with a duplicate.
            0..50 => {
                let mut parts = Vec::new();
                for _ in 0..1 + r.below(3) {
                    m.seq += 1 + r.below(2);
                    let records = records(&mut r);
                    let version = v(m.epoch, m.seq);
                    let head = storenode::part::PartHead {
                        version,
                        predecessor: m.position,
                        floor: m.floor,
                        shards: vec![0],
                        ..Default::default()
                    };
                    parts.push(storenode::part::encode(&head, &records));
                    if r.below(5) == 0 {
                        parts.push(parts[parts.len() - 1].clone());
                    }
                    m.pending.push((version, m.position, records));
                    m.position = version;
                }
                let w = if r.below(3) > 0 { m.watermark } else { m.pending[0].0 };
                let p = n.append(&parts, w).unwrap();
                assert_eq!(p.position, m.position, "seed {seed} {log:?}");
                m.commit(w);
            }
            50..62 => {
                if let Some((w, ..)) = m.pending.get(r.below(4) as usize).cloned() {
                    n.commit(w);
                    m.commit(w);
                }
            }
            62..66 => n.tick(),
            66..72 => n.maintain(),
            // A new writer, which may know only a part of what is pending.
            72..78 => {
                let keep = r.below(m.pending.len() as u64 + 1) as usize;
                m.epoch += 1;
                n.fence(m.epoch).unwrap();
                let chain: Vec<Version> = m.pending[..keep].iter().map(|p| p.0).collect();
                n.attach(chain).unwrap();
                for (_, predecessor, _) in m.pending.drain(keep..).rev() {
                    m.position = predecessor;
                }
            }
            // A repair of something that was broken.
            78..84 => {
                let live = m.live();
                if let Some((key, version, value)) =
                    live.get(r.below(live.len().max(1) as u64) as usize).cloned()
                {
                    let fault = match r.below(3) {
                        0 if !value.is_empty() => Fault::Corrupt { key: key.clone() },
                        1 => Fault::Put { key: key.clone(), value: b"?".to_vec(), version: None },
                        _ => Fault::Drop { key: key.clone() },
                    };
                    log.push(format!("{fault:?}"));
                    // A part that is damaged while it is pending ends the position: not here.
                    n.tick();
                    n.service.inject(fault).unwrap();
                    if r.below(2) == 0 {
                        n.tick();
                        n.maintain();
                    }
                    if r.below(3) == 0 {
                        n = again(n, &mut r);
                        attach_all(&n, &m);
                    }
                    let records = [(key, version, Some(value))];
                    let as_of = m.watermark.max(version);
                    if m.floor <= as_of {
                        n.install(&records, as_of, InstallKind::Repair).unwrap();
                    }
                }
            }
            // A foreign record, removed again.
            84..88 => {
                let key = key(&mut r);
                let held = m.applied.get(&key).is_some_and(|x| x.1.is_some());
                let in_flight = m.pending.iter().any(|p| p.2.iter().any(|x| x.0 == key));
                if !held && !in_flight && m.watermark >= m.floor {
                    let version = v(m.epoch, 1_000_000 + step);
                    let fault = Fault::Put {
                        key: key.clone(),
                        value: b"evil".to_vec(),
                        version: Some(version),
                    };
                    log.push(format!("{fault:?} and remove"));
                    n.service.inject(fault).unwrap();
                    if r.below(2) == 0 {
                        n.maintain();
                    }
                    let remove = Request::Remove { key, seen: version, as_of: m.watermark };
                    assert_eq!(n.call(remove).unwrap().0, Reply::Installed { taken: 1 });
                    // The tombstone that lay below is gone with it.
                }
            }
            88..90 => {
                // As the writer would: all voters (this one) have it applied, durably.
                n.tick();
                m.floor = m.floor.max(n.position().applied);
            }
            90..94 => {
                n.service.close();
                n = n.start();
                attach_all(&n, &m);
            }
            _ => {
                n = again(n, &mut r);
                attach_all(&n, &m);
            }
        }
        if step % 5 == 0 || what >= 66 {
            // The watermark may have been known in memory only.
            if n.position().applied < m.watermark.min(m.position) {
                n.commit(m.watermark);
            }
            check(&n, &m, &log);
        }
    }
}

/// A start, after a kill or a power cut that tears what was not synced.
fn again(n: Node, r: &mut Rng) -> Node {
    if r.below(2) == 0 {
        return n.start();
    }
    n.disk.crash_keeping(|_, len| r.below(len as u64 + 1) as usize);
    n.start()
}

fn attach_all(n: &Node, m: &Model) {
    n.attach(m.pending.iter().map(|p| p.0).collect()).unwrap();
    n.commit(m.watermark);
}

#[test]
fn random_histories_match_a_table() {
    let number = |name: &str| std::env::var(name).ok().and_then(|s| s.parse::<u64>().ok());
    if let Some(seed) = number("NODE_SEED") {
        return run(seed, 200);
    }
    for seed in 0..number("NODE_RUNS").unwrap_or(60) {
        let result = std::panic::catch_unwind(|| run(seed, 200));
        if let Err(e) = result {
            eprintln!("NODE_SEED={seed}");
            std::panic::resume_unwind(e);
        }
    }
}
