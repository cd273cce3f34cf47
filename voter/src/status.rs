//! What the cluster looks like, for people: with a mount, and without one.

use crate::bank::{Bank, BankError};
use crate::health::Health;
use crate::link::status_of;
use crate::metrics::Counts;
use crate::progress::WorkStatus;
use crate::read::hex;
use crate::replicated::{ClusterConfig, Nodes, Replicated};
use crate::volume::VolumeSpace;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;
use storenode::wire::{
    BankId, Envelope, Found, Key, PerBank, Reply, Request, Status, StoreId, Version, VolumeId,
    WIRE_FORMAT, digest,
};

/// One replica of one shard.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ReplicaStatus {
    /// Bank.
    pub bank: BankId,
    /// Shard.
    pub shard: u16,
    /// Address.
    pub address: String,
    /// `up to date`, `behind`, `filling`, `down`; without a mount `voter`, `filling`, `blank`, `down`.
    pub state: String,
    /// Why it is down.
    pub why: Option<String>,
    /// It was away too long and is filled anew when it returns.
    #[serde(default)]
    pub struck_out: bool,
    /// Groups it is behind by.
    pub behind_groups: u64,
    /// The catch-up or refill under way.
    pub copied: Option<CopyStatus>,
    /// What the node says; `None` = no answer.
    pub node: Option<Status>,
}

/// How far a catch-up or refill came. What an interrupted one had copied before does not count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyStatus {
    /// Records copied.
    pub records: u64,
    /// Bytes of their values.
    pub bytes: u64,
    /// Records to be copied, as a source counted when it began.
    pub of_records: u64,
    /// Bytes of their values.
    pub of_bytes: u64,
    /// Milliseconds since it began.
    pub ms: u64,
}

/// The whole cluster.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ClusterStatus {
    /// The volume, once known.
    pub volume: Option<VolumeId>,
    /// Epoch of this mount; `None` without one.
    pub epoch: Option<u64>,
    /// Who holds it.
    pub holder: Option<String>,
    /// Committed through here.
    pub watermark: Option<Version>,
    /// All replicas, by shard, then bank.
    pub replicas: Vec<ReplicaStatus>,
    /// Fewest up-to-date replicas of any shard: 3 = full redundancy, 2 = one bank may not fail, less
    /// = not writable.
    pub redundancy: usize,
    /// Refreshes and scrubs under way in this mount.
    #[serde(default)]
    pub work: Vec<WorkStatus>,
    /// Dirty bytes in this mount.
    pub dirty_bytes: usize,
    /// Groups on their way.
    pub groups_in_flight: usize,
    /// Counters of this mount.
    pub counts: Option<Counts>,
    /// Seconds since the mount began.
    pub uptime_s: Option<u64>,
    /// Another mount took over.
    pub fenced: Option<String>,
    /// Sizes.
    pub space: Option<VolumeSpaceStatus>,
}

/// Sizes, bytes.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct VolumeSpaceStatus {
    /// Total.
    pub capacity_bytes: u64,
    /// Free.
    pub free_bytes: u64,
}

/// What one bank holds under one key.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Copy {
    /// Bank.
    pub bank: BankId,
    /// `ok`, `stale`, `corrupt`, `missing`, `foreign` or `silent`.
    pub state: String,
    /// Its version.
    pub version: Option<Version>,
    /// Its digest, hexadecimal.
    pub digest: Option<String>,
    /// Length of the value, bytes; `None` = tombstone or nothing.
    pub len: Option<u32>,
}

/// A key on all banks.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Inspected {
    /// Shard.
    pub shard: u16,
    /// Key, hexadecimal.
    pub key: String,
    /// Pending in the mount, not yet on the banks.
    pub pending: bool,
    /// One per bank.
    pub copies: Vec<Copy>,
}

fn observer(volume: VolumeId) -> Envelope {
    Envelope { format: WIRE_FORMAT, volume, store: StoreId::ZERO, epoch: 0, nonce: 0 }
}

/// What every node answers when it is asked for its status.
pub(crate) type Answers = PerBank<Vec<Result<Status, BankError>>>;

/// Status of every node, or why there is none in time.
pub(crate) async fn node_answers(
    banks: &PerBank<Vec<Arc<dyn Bank>>>,
    deadline: Duration,
) -> Answers {
    let ask = |bank: BankId| async move {
        futures_util::future::join_all(banks[bank].iter().map(|node| async {
            let asked = node.call(observer(VolumeId::ZERO), Request::Status, vec![], deadline);
            asked.await.and_then(|(reply, _)| status_of(reply))
        }))
        .await
    };
    let (a, b, c) =
        futures_util::future::join3(ask(BankId::A), ask(BankId::B), ask(BankId::C)).await;
    PerBank([a, b, c])
}

/// Status of every node, `None` where there is no answer in time.
pub(crate) async fn node_statuses(
    banks: &PerBank<Vec<Arc<dyn Bank>>>,
    deadline: Duration,
) -> PerBank<Vec<Option<Status>>> {
    let all = node_answers(banks, deadline).await;
    PerBank(all.0.map(|nodes| nodes.into_iter().map(Result::ok).collect()))
}

/// Why a node shows no status, for people: one that refuses the token runs, and starting it would not
/// help.
fn no_status(e: &BankError) -> String {
    match e {
        e if e.is_away() => "no answer".into(),
        BankError::Refused(why) => format!("refuses: {why}"),
        e => e.to_string(),
    }
}

/// Capacity and free space: two banks must hold everything, so the second-best bank counts; within a
/// bank the fullest shard bounds the rest. Also: who did not answer?
pub(crate) async fn space(
    banks: &PerBank<Vec<Arc<dyn Bank>>>,
    shards: u16,
) -> (Option<VolumeSpace>, Vec<(BankId, u16)>) {
    let all = node_statuses(banks, Duration::from_millis(500)).await;
    let silent = |shard: u16| {
        let all = &all;
        BankId::ALL
            .into_iter()
            .filter(move |b| all[*b][usize::from(shard)].is_none())
            .map(move |b| (b, shard))
    };
    let silent = (0..shards).flat_map(silent).collect();
    (per_shard(&all, shards), silent)
}

/// In each shard the second most free of its three nodes, since two must hold everything (and in
/// different shards different banks may be away or full); of the shards the fullest counts, times
/// their number.
fn per_shard(all: &PerBank<Vec<Option<Status>>>, shards: u16) -> Option<VolumeSpace> {
    let n = u64::from(shards);
    let mut out = VolumeSpace { capacity_bytes: u64::MAX, free_bytes: u64::MAX, records: 0 };
    for shard in 0..usize::from(shards) {
        let nodes = all.iter().filter_map(|(_, nodes)| nodes.get(shard)?.as_ref());
        let mut spaces: Vec<(u64, u64, u64)> = nodes
            .filter(|s| s.failed.is_none())
            .map(|s| (s.space.free_bytes, s.space.capacity_bytes, s.space.records))
            .collect();
        spaces.sort_unstable_by(|a, b| b.cmp(a));
        let (free, capacity, records) = *spaces.get(1)?;
        out.free_bytes = out.free_bytes.min(free.saturating_mul(n));
        out.capacity_bytes = out.capacity_bytes.min(capacity.saturating_mul(n));
        out.records += records;
    }
    Some(out)
}

pub(crate) fn without_mount(nodes: &Nodes, all: &Answers) -> ClusterStatus {
    let mut replicas = Vec::new();
    let shards = nodes.banks[BankId::A].len();
    let mut redundancy = 3;
    for shard in 0..shards {
        let mut voters = 0;
        for bank in BankId::ALL {
            let answer = &all[bank][shard];
            let state = match answer {
                Err(_) => "down".to_string(),
                Ok(s) if s.failed.is_some() => "down".to_string(),
                Ok(s) => format!("{:?}", s.role).to_lowercase(),
            };
            voters += usize::from(state == "voter");
            replicas.push(ReplicaStatus {
                bank,
                shard: shard as u16,
                address: nodes.banks[bank][shard].name(),
                state,
                why: match answer {
                    Err(e) => Some(no_status(e)),
                    Ok(s) => s.failed.clone(),
                },
                struck_out: false,
                behind_groups: 0,
                copied: None,
                node: answer.as_ref().ok().cloned(),
            });
        }
        redundancy = redundancy.min(voters);
    }
    let first = replicas.iter().filter_map(|r| r.node.as_ref()).find(|s| s.volume.is_some());
    ClusterStatus {
        volume: first.and_then(|s| s.volume),
        epoch: None,
        holder: first
            .filter(|s| !s.promise.released && s.promise.epoch > 0)
            .map(|s| s.promise.holder.clone()),
        watermark: None,
        replicas,
        redundancy,
        work: Vec::new(),
        dirty_bytes: 0,
        groups_in_flight: 0,
        counts: None,
        uptime_s: None,
        fenced: None,
        space: None,
    }
}

/// Looks at the cluster without opening it.
///
/// # Errors
/// [`crate::open::OpenError::Config`].
pub async fn survey(config: &ClusterConfig) -> Result<ClusterStatus, crate::open::OpenError> {
    let nodes = Nodes::http(config)?;
    let all = node_answers(&nodes.banks, config.limits.call_deadline()).await;
    Ok(without_mount(&nodes, &all))
}

impl Replicated {
    /// The cluster as this mount sees it.
    pub async fn status(&self) -> ClusterStatus {
        let shared = &self.shared;
        let nodes = Nodes { banks: shared.banks.clone() };
        let all = node_answers(&nodes.banks, Duration::from_millis(500)).await;
        let mut out = without_mount(&nodes, &all);
        let (space, _) = space(&shared.banks, shared.shards()).await;
        let core = shared.core.lock();
        out.volume = Some(shared.volume);
        out.epoch = Some(core.epoch);
        out.holder = Some(shared.holder.clone());
        out.watermark = Some(core.watermark);
        out.work = shared.board.show(shared.now());
        out.dirty_bytes = core.dirty_bytes();
        out.groups_in_flight = core.in_flight().0;
        out.counts = Some(shared.metrics.read());
        out.uptime_s = Some(shared.started.elapsed().as_secs());
        out.fenced.clone_from(&core.fenced);
        out.space = space.map(|s| VolumeSpaceStatus {
            capacity_bytes: s.capacity_bytes,
            free_bytes: s.free_bytes,
        });
        let mut redundancy = 3;
        for (i, s) in core.shards.iter().enumerate() {
            let good = s.replicas.iter().filter(|(_, r)| r.is_up_to_date());
            redundancy = redundancy.min(good.count());
            for (bank, r) in s.replicas.iter() {
                let Some(row) = out.replicas.get_mut(i * 3 + bank.index()) else { continue };
                row.behind_groups = s.committed_end.seq.saturating_sub(r.position.position.seq);
                row.copied = r.copied.map(|c| CopyStatus {
                    records: c.records,
                    bytes: c.bytes,
                    of_records: c.of_records,
                    of_bytes: c.of_bytes,
                    ms: shared.now().saturating_sub(c.began).as_millis() as u64,
                });
                row.state = r.health.health().word().into();
                row.why = None;
                row.struck_out = r.struck;
                match r.health.health() {
                    Health::UpToDate => row.behind_groups = 0,
                    Health::Down if r.struck => {
                        row.why = Some(format!("struck out, will be filled anew; {}", r.why));
                    }
                    Health::Down => row.why = Some(r.why.clone()),
                    Health::Behind { .. } | Health::Filling => {}
                }
            }
        }
        out.redundancy = redundancy;
        out
    }

    /// What every bank holds under some keys, compared with the majority.
    pub async fn inspect(&self, keys: Vec<(u16, Key)>) -> Vec<Inspected> {
        let mut out = Vec::with_capacity(keys.len());
        for (shard, key) in keys {
            out.push(self.inspect_one(shard, key).await);
        }
        out
    }

    async fn inspect_one(&self, shard: u16, key: Key) -> Inspected {
        let shared = &self.shared;
        let (through, pending, stores) = {
            let core = shared.core.lock();
            let s = &core.shards[shard as usize];
            (
                s.committed_end,
                core.pending(&key).is_some(),
                PerBank::from_fn(|b| s.replicas[b].store),
            )
        };
        let found = futures_util::future::join_all(BankId::ALL.map(|bank| {
            let request = Request::Read { keys: [key.clone()].into(), through };
            shared.call(shard, bank, stores[bank], request, vec![], Duration::from_secs(1))
        }))
        .await;
        let mut copies: Vec<Copy> = Vec::new();
        for (bank, answer) in BankId::ALL.into_iter().zip(found) {
            let mut copy =
                Copy { bank, state: "silent".into(), version: None, digest: None, len: None };
            if let Ok((Reply::Found { items, .. }, bulk)) = answer {
                match items.into_iter().next() {
                    Some(Found::Absent) => copy.state = "missing".into(),
                    Some(Found::Damaged { .. }) => copy.state = "corrupt".into(),
                    Some(Found::Record { version, digest: d, len }) => {
                        copy.version = Some(version);
                        copy.digest = Some(d.to_string());
                        copy.len = len;
                        let value = len.map(|n| bulk.slice(..(n as usize).min(bulk.len())));
                        let good = digest(&key, version, value.as_deref()) == d;
                        copy.state = if !good {
                            "corrupt"
                        } else if version > through {
                            "foreign"
                        } else {
                            "ok"
                        }
                        .into();
                    }
                    None => {}
                }
            }
            copies.push(copy);
        }
        classify(&mut copies);
        Inspected { shard, key: hex_all(&key), pending, copies }
    }
}

/// Relates the whole copies to each other: the newest that is not alone wins; older ones are stale,
/// and where the others hold nothing a single one is foreign.
fn classify(copies: &mut [Copy]) {
    let missing = copies.iter().filter(|c| c.state == "missing").count();
    let ok: Vec<Version> =
        copies.iter().filter(|c| c.state == "ok").filter_map(|c| c.version).collect();
    let newest = ok.iter().max().copied();
    // Nothing anywhere is agreement, not loss.
    if newest.is_none() && copies.iter().all(|c| matches!(c.state.as_str(), "missing" | "silent")) {
        for c in copies.iter_mut().filter(|c| c.state == "missing") {
            c.state = "ok".into();
        }
        return;
    }
    for c in copies.iter_mut().filter(|c| c.state == "ok") {
        if missing >= 2 && c.len.is_some() {
            c.state = "foreign".into();
        } else if c.version < newest {
            c.state = "stale".into();
        }
    }
    // Two hold nothing (or a tombstone): then nothing is right.
    let tombstone = copies.iter().any(|c| c.state == "ok" && c.len.is_none());
    if missing >= 2 || tombstone {
        for c in copies.iter_mut().filter(|c| c.state == "missing") {
            c.state = "ok".into();
        }
    }
}

fn hex_all(b: &[u8]) -> String {
    b.chunks(32).map(hex).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use storenode::wire::NodeError;

    #[test]
    fn a_node_that_refuses_is_not_one_that_is_away() {
        assert_eq!(no_status(&BankError::Timeout), "no answer");
        assert_eq!(no_status(&BankError::Unreachable("refused".into())), "no answer");
        let wrong = no_status(&BankError::Refused(NodeError::Unauthorized));
        assert!(wrong.starts_with("refuses: ") && wrong.contains("token"), "{wrong}");
        assert!(no_status(&BankError::Garbled("no frame".into())).contains("no frame"));
    }
}
