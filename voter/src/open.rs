//! Opening a volume (protocol rule 5) and making one: what [`crate::opening`] decides, done.

use crate::background::Background;
use crate::bank::BankError;
use crate::catchup::CONFIRM_WITHIN;
use crate::course::{Course, Told, course, next_pass};
use crate::limits::Limits;
use crate::link::{position_of, status_of, unexpected};
use crate::metrics::Metrics;
use crate::opening::{Choice, Fenced, Plan, Refusal, ShardPlan, ShardTails, choose, decide, owned};
use crate::pace::{Busy, Pace};
use crate::progress::Board;
use crate::replicated::{Nodes, OpenOptions};
use crate::shared::{CheckOrder, RepairOrder, Shared};
use crate::status::node_statuses;
use crate::together::Together;
use crate::watched::Watched;
use crate::writer::{Core, Replica, Shard};
use bytes::Bytes;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::time::Duration;
use storenode::part::{self, PartHead};
use storenode::wire::{
    BankId, Configuration, Envelope, InstallKind, PerBank, Position, Reply, Request, Role, Status,
    StoreId, Version, VolumeId, WIRE_FORMAT,
};
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

/// Why a volume cannot be opened or made. Every message says what to do next.
#[derive(Clone, Debug, thiserror::Error)]
pub enum OpenError {
    /// The configuration cannot be used.
    #[error("configuration: {0}")]
    Config(String),
    /// Too few banks answer.
    #[error("{0}")]
    Unavailable(String),
    /// Another mount holds the volume and is alive.
    #[error("the volume is held by {0}: unmount it there, or use --takeover to fence it")]
    Held(String),
    /// Nodes that are not as they should be.
    #[error("{0}")]
    Refused(String),
    /// What was acknowledged may be lost if it went on: the bank that is needed is named.
    #[error("refusing to open: {0}")]
    Incomplete(String),
}

/// Makes a volume of blank nodes.
pub(crate) async fn init(nodes: &Nodes, limits: &Limits) -> Result<VolumeId, OpenError> {
    let all = crate::status::node_statuses(&nodes.banks, limits.call_deadline()).await;
    let mut volume = None;
    let mut missing = Vec::new();
    for bank in BankId::ALL {
        for (shard, status) in all[bank].iter().enumerate() {
            let address = nodes.banks[bank][shard].name();
            let Some(s) = status else {
                missing.push(format!("bank {bank} shard {shard} at {address}"));
                continue;
            };
            if (s.bank, usize::from(s.shard)) != (bank, shard) {
                return Err(OpenError::Refused(format!(
                    "the node at {address} was started for bank {} shard {}, the config says bank {bank} shard {shard}",
                    s.bank, s.shard
                )));
            }
            let Some(v) = s.volume else { continue };
            // A volume that was ever opened has a promise; one that was only begun to be made is
            // gone on with.
            if s.promise.epoch > 0 || s.position.high > Version::ZERO {
                return Err(OpenError::Refused(format!(
                    "the node at {address} already belongs to volume {v}: mount it, or empty its directory to make a new volume"
                )));
            }
            match volume {
                None => volume = Some(v),
                Some(o) if o == v => {}
                Some(o) => {
                    return Err(OpenError::Refused(format!(
                        "nodes belong to different volumes ({o}, {v}): empty the directories of one"
                    )));
                }
            }
        }
    }
    if !missing.is_empty() {
        return Err(OpenError::Unavailable(format!(
            "making a volume needs all three banks; no answer from {}",
            missing.join(", ")
        )));
    }
    let volume = volume.unwrap_or_else(|| VolumeId(rand::random()));
    let shards = all[BankId::A].len();
    for shard in 0..shards {
        let stores = PerBank::from_fn(|b| all[b][shard].as_ref().map(|s| s.store));
        let configuration = Configuration { number: 1, stores };
        for bank in BankId::ALL {
            let Some(s) = &all[bank][shard] else { continue };
            if s.volume.is_some() {
                continue;
            }
            let request = Request::Assign {
                volume,
                bank,
                shard: shard as u16,
                shards: shards as u16,
                role: Role::Voter,
                configuration,
                wipe: false,
            };
            let envelope = Envelope {
                format: WIRE_FORMAT,
                volume: VolumeId::ZERO,
                store: s.store,
                epoch: 0,
                nonce: 0,
            };
            let node = &nodes.banks[bank][shard];
            node.call(envelope, request, vec![], limits.call_deadline())
                .await
                .and_then(|(r, _)| status_of(r))
                .map_err(|e| {
                    OpenError::Unavailable(format!("{}: {e}; run init again", node.name()))
                })?;
        }
    }
    Ok(volume)
}

/// Opens for writing: rule 5, in its order. Nothing is served before this returns; whatever step it
/// stops at, a later opener can repeat everything.
pub(crate) async fn open(
    nodes: Nodes,
    limits: Limits,
    options: OpenOptions,
) -> Result<(Shared, Orders), OpenError> {
    let dice = StdRng::seed_from_u64(options.seed.unwrap_or_else(rand::random));
    let volume = VolumeId::ZERO;
    let confirmed_by = Instant::now();
    let mut opener =
        Opener { nodes, limits, options, volume, epoch: 0, nonce: 0, dice, confirmed_by };
    opener.wait_for_holder().await?;
    opener.confirmed_by = Instant::now() + CONFIRM_WITHIN;
    // Any step may be repeated: a node that goes away in the middle only costs a new beginning,
    // under a higher epoch.
    let limit = Instant::now() + opener.limits.read_deadline() * 2;
    let limit = limit.max(opener.confirmed_by + Duration::from_secs(1));
    loop {
        match opener.attempt().await {
            Err(OpenError::Unavailable(why)) if Instant::now() < limit => {
                tracing::warn!(%why, "opening again");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Err(e) => return Err(e),
            Ok((plan, choice, tails, bytes)) => {
                return Ok(opener.serve(plan, &choice, &tails, bytes));
            }
        }
    }
}

type Opened = (Plan, Choice, Vec<ShardTails>, TailBytes);

/// Parts of each shard's tails by version, as they were read.
type TailBytes = Vec<BTreeMap<Version, Bytes>>;

struct Opener {
    nodes: Nodes,
    limits: Limits,
    options: OpenOptions,
    volume: VolumeId,
    epoch: u64,
    nonce: u64,
    dice: StdRng,
    /// Until then a third voter is waited for, where it would spare a copy from one source.
    confirmed_by: Instant,
}

/// Work for the repair tasks.
pub(crate) struct Orders {
    pub(crate) to_repair: mpsc::Receiver<RepairOrder>,
    pub(crate) to_check: mpsc::Receiver<CheckOrder>,
}

/// Reads waiting to be checked on all banks; each holds the keys of one read.
const CHECKS_WAITING: usize = 1024;

/// Fences tried before giving up: each was lost to another opener.
const FENCE_TRIES: usize = 20;

impl Opener {
    /// Steps a to g, once.
    async fn attempt(&mut self) -> Result<Opened, OpenError> {
        let (choice, fenced) = self.fence().await?;
        let (tails, bytes) = self.tails(&choice, fenced).await?;
        let plan = decide(self.epoch, &tails).map_err(|e| match e {
            // A voter that was fenced and then did not show its tail.
            Refusal::NotEnough { .. } | Refusal::StruckOut { .. } => {
                OpenError::Unavailable(e.to_string())
            }
            e => OpenError::Incomplete(e.to_string()),
        })?;
        tracing::info!(
            epoch = self.epoch, cut = %plan.cut, kept = plan.kept, dropped = plan.dropped.len(),
            "opening"
        );
        self.await_third(&plan, &choice, &tails)?;
        self.finish_configurations(&choice).await?;
        self.settle(&plan, &choice, &tails, &bytes).await?;
        self.write_entries(&plan, &choice).await?;
        Ok((plan, choice, tails, bytes))
    }

    /// A voter that is far behind would be brought up from the one other that answered. If that one has
    /// lost a record without a word, two of three would lack it (docs/adr/0015). The third may only be
    /// slow, and then nothing need be copied now: it is asked again for a while.
    fn await_third(
        &self,
        plan: &Plan,
        choice: &Choice,
        tails: &[ShardTails],
    ) -> Result<(), OpenError> {
        if Instant::now() >= self.confirmed_by {
            return Ok(());
        }
        for (shard, (p, t)) in plan.shards.iter().zip(tails).enumerate() {
            let c = &choice.shards[shard];
            let copies = |b: &BankId| p.steps[*b].as_ref().is_some_and(|s| s.catch_up.is_some());
            // One that answered and cannot vote will not be able to in three seconds.
            let hoped_for = |b: &BankId| c.replace[*b].is_none() && c.failed[*b].is_none();
            let unread = |b: &BankId| t.named[*b] && t.fenced[*b].is_none() && hoped_for(b);
            let unread = BankId::ALL.into_iter().find(unread);
            if let (Some(bank), Some(third)) = (p.settle.iter().find(|b| copies(b)), unread) {
                return Err(OpenError::Unavailable(format!(
                    "bank {bank} shard {shard} is behind: waiting for bank {third} a little"
                )));
            }
        }
        Ok(())
    }

    fn shards(&self) -> usize {
        self.nodes.banks[BankId::A].len()
    }

    async fn call(
        &self,
        shard: usize,
        bank: BankId,
        store: StoreId,
        request: Request,
        bulk: Vec<Bytes>,
    ) -> Result<(Reply, Bytes), BankError> {
        let envelope = Envelope {
            format: WIRE_FORMAT,
            volume: self.volume,
            store,
            epoch: self.epoch,
            nonce: self.nonce,
        };
        // Every message of an opening may be said again: one that is lost must not cost the whole
        // deadline, nor a new beginning.
        let node = &self.nodes.banks[bank][shard];
        let (mut left, mut patience) = (self.limits.bulk_deadline(), self.limits.call_deadline());
        loop {
            let once = patience.min(left);
            left -= once;
            match node.call(envelope, request.clone(), bulk.clone(), once).await {
                Err(BankError::Timeout) if !left.is_zero() => patience *= 2,
                answer => return answer,
            }
        }
    }

    fn broken(&self, shard: usize, bank: BankId, e: &BankError) -> OpenError {
        let name = self.nodes.banks[bank][shard].name();
        OpenError::Unavailable(format!("bank {bank} shard {shard} at {name}: {e}; try again"))
    }

    /// Statuses by shard.
    async fn statuses(&self) -> Vec<PerBank<Option<Status>>> {
        // Rule 5a: a hung node may cost a second, no more.
        let all = node_statuses(&self.nodes.banks, Duration::from_secs(1)).await;
        (0..self.shards()).map(|i| PerBank::from_fn(|b| all[b][i].clone())).collect()
    }

    /// Statuses that choose well; patient, since nodes may just be starting.
    async fn choose(&self) -> Result<Choice, OpenError> {
        let limit = Instant::now() + self.limits.read_deadline();
        loop {
            match choose(&self.statuses().await) {
                Ok(choice) => return Ok(choice),
                Err(e @ (Refusal::NotEnough { .. } | Refusal::NoAnswer)) => {
                    if Instant::now() >= limit {
                        return Err(OpenError::Unavailable(e.to_string()));
                    }
                    (self.options.progress)(&format!("waiting: {e}"));
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
                Err(e) => return Err(OpenError::Refused(e.to_string())),
            }
        }
    }

    /// Rule 12: a holder that beats is asked for, a silent one is passed after a while of our own
    /// clock. Politeness only: safety is in the fence.
    async fn wait_for_holder(&self) -> Result<(), OpenError> {
        if self.options.takeover {
            return Ok(());
        }
        let began = Instant::now();
        let watch = Duration::from_millis(self.limits.holder_watch_ms);
        let mut before: Option<Vec<PerBank<Option<Status>>>> = None;
        loop {
            let now = self.statuses().await;
            let held = now
                .iter()
                .flat_map(|r| r.iter().filter_map(|(_, s)| s.as_ref()))
                .find(|s| s.promise.epoch > 0 && !s.promise.released);
            let Some(held) = held else { return Ok(()) };
            // The newest promise decides: an older one may have missed the goodbye.
            let newest = now
                .iter()
                .flat_map(|r| r.iter().filter_map(|(_, s)| s.as_ref()))
                .max_by_key(|s| s.promise.epoch)
                .unwrap_or(held);
            if newest.promise.released {
                return Ok(());
            }
            if let Some(before) = &before {
                let beats = |row: &PerBank<Option<Status>>, b: BankId| {
                    row[b].as_ref().map(|s| (s.promise.epoch, s.beats))
                };
                let beating = before.iter().zip(&now).any(|(old, new)| {
                    let moved = BankId::ALL.into_iter().filter(|b| {
                        match (beats(old, *b), beats(new, *b)) {
                            (Some((e, o)), Some((f, n))) => e == f && n > o,
                            _ => false,
                        }
                    });
                    moved.count() >= 2
                });
                if beating {
                    return Err(OpenError::Held(newest.promise.holder.clone()));
                }
            } else {
                (self.options.progress)(&format!(
                    "the last holder, {}, did not say goodbye: watching for {} s whether it is alive",
                    newest.promise.holder,
                    watch.as_secs()
                ));
            }
            if began.elapsed() >= watch {
                return Ok(());
            }
            before = Some(now);
            tokio::time::sleep(Duration::from_millis(self.limits.beat_ms + 200)).await;
        }
    }

    /// Rule 5 a to c.
    async fn fence(&mut self) -> Result<(Choice, Vec<PerBank<Option<Status>>>), OpenError> {
        for _ in 0..FENCE_TRIES {
            let choice = self.choose().await?;
            self.volume = choice.volume;
            self.epoch = choice.epoch;
            self.nonce = self.dice.random::<u64>() | 1;
            let rows = futures_util::future::join_all(choice.shards.iter().enumerate().map(
                |(shard, c)| {
                    let this = &*self;
                    async move {
                        let ask = |bank: BankId| async move {
                            let store = c.voters[bank]?;
                            let request = Request::Fence {
                                epoch: this.epoch,
                                nonce: this.nonce,
                                holder: this.options.holder.clone(),
                            };
                            let answer = this.call(shard, bank, store, request, vec![]).await;
                            answer.and_then(|(r, _)| status_of(r)).ok()
                        };
                        let (a, b, c) =
                            tokio::join!(ask(BankId::A), ask(BankId::B), ask(BankId::C));
                        PerBank([a, b, c])
                    }
                },
            ))
            .await;
            let promised: Vec<PerBank<bool>> =
                rows.iter().map(|r| PerBank::from_fn(|b| r[b].is_some())).collect();
            if owned(&choice, &promised).is_empty() {
                return Ok((choice, rows));
            }
            // Another opener, or a bank that just went: begin again, at a random moment.
            let pause = 50 + self.dice.random::<u64>() % 450;
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
        Err(OpenError::Unavailable("other mounts keep fencing this one; try again later".into()))
    }

    /// Rule 5 d: the tails of the fenced voters.
    async fn tails(
        &self,
        choice: &Choice,
        rows: Vec<PerBank<Option<Status>>>,
    ) -> Result<(Vec<ShardTails>, TailBytes), OpenError> {
        let mut tails = Vec::new();
        let mut bytes: TailBytes = Vec::new();
        for (shard, row) in rows.into_iter().enumerate() {
            let c = &choice.shards[shard];
            let mut fenced = PerBank::from_fn(|_| None);
            let mut parts = BTreeMap::new();
            for bank in BankId::ALL {
                let (Some(status), Some(store)) = (&row[bank], c.voters[bank]) else { continue };
                match self.tail_of(shard, bank, store).await {
                    Ok((heads, raw, damaged)) => {
                        parts.extend(raw);
                        fenced[bank] = Some(Fenced::new(status, heads, damaged));
                    }
                    Err(e) => {
                        tracing::warn!(%bank, shard, %e, "its tail cannot be read; going on without it");
                    }
                }
            }
            let named = PerBank::from_fn(|b| c.configuration.stores[b].is_some());
            tails.push(ShardTails { named, fenced });
            bytes.push(parts);
        }
        Ok((tails, bytes))
    }

    #[allow(clippy::type_complexity, reason = "heads, bytes by version, damage")]
    async fn tail_of(
        &self,
        shard: usize,
        bank: BankId,
        store: StoreId,
    ) -> Result<(Vec<PartHead>, BTreeMap<Version, Bytes>, Option<Version>), BankError> {
        let (mut heads, mut raw, mut damage) = (Vec::new(), BTreeMap::new(), None);
        let mut from = Version::ZERO;
        loop {
            let (reply, bulk) =
                self.call(shard, bank, store, Request::Tail { from }, vec![]).await?;
            let Reply::Tail { lens, more, damaged_through } = reply else {
                return Err(unexpected(&reply));
            };
            damage = damage.max(damaged_through);
            let mut at = 0usize;
            for len in lens {
                let end = at + len as usize;
                if end > bulk.len() {
                    return Err(BankError::Garbled("tail cut short".into()));
                }
                let part = part::decode(bulk.slice(at..end))
                    .map_err(|e| BankError::Garbled(format!("a part of the tail: {e}")))?;
                at = end;
                from = from.max(part.head.version);
                raw.insert(part.head.version, part.bytes);
                heads.push(part.head);
            }
            if !more || at == 0 {
                return Ok((heads, raw, damage));
            }
        }
    }

    /// Rule 8: a configuration that one of the remaining voters holds is given to the other before
    /// anything is served.
    async fn finish_configurations(&self, choice: &Choice) -> Result<(), OpenError> {
        for (shard, c) in choice.shards.iter().enumerate() {
            for bank in c.configure.banks() {
                let Some(store) = c.voters[bank] else { continue };
                let request = Request::Configure { configuration: c.configuration };
                self.call(shard, bank, store, request, vec![])
                    .await
                    .map_err(|e| self.broken(shard, bank, &e))?;
            }
        }
        Ok(())
    }

    /// Rule 5 f: two voters of every shard end with the chain, durably, and hold nothing else.
    async fn settle(
        &self,
        plan: &Plan,
        choice: &Choice,
        tails: &[ShardTails],
        bytes: &TailBytes,
    ) -> Result<(), OpenError> {
        for (shard, p) in plan.shards.iter().enumerate() {
            let voters = &choice.shards[shard].voters;
            for bank in p.settle {
                let (Some(step), Some(store)) = (&p.steps[bank], voters[bank]) else {
                    return Err(OpenError::Incomplete(format!("bank {bank} left during opening")));
                };
                let fail = |e: BankError| self.broken(shard, bank, &e);
                let attach = Request::Attach { chain: step.attach.clone(), cut: plan.cut };
                let reply = self.call(shard, bank, store, attach, vec![]).await.map_err(fail)?;
                let mut at = position_of(reply.0).map_err(fail)?;
                if let Some(since) = step.catch_up {
                    at = self.catch_up(shard, bank, store, since, p, choice, tails).await?;
                }
                let missing: Vec<Bytes> =
                    step.append.iter().filter_map(|v| bytes[shard].get(v).cloned()).collect();
                if missing.len() != step.append.len() {
                    return Err(OpenError::Incomplete(format!(
                        "shard {shard}: a part of the chain is gone"
                    )));
                }
                for batch in missing.chunks(64) {
                    let mut batch = batch.to_vec();
                    while !batch.is_empty() {
                        let mut sum = 0;
                        let n = batch
                            .iter()
                            .take_while(|b| {
                                sum += b.len();
                                sum <= 16 << 20
                            })
                            .count()
                            .max(1);
                        let now: Vec<Bytes> = batch.drain(..n).collect();
                        let lens = now.iter().map(|b| b.len() as u32).collect();
                        let request = Request::Append { lens, watermark: plan.watermark };
                        let reply =
                            self.call(shard, bank, store, request, now).await.map_err(fail)?;
                        at = position_of(reply.0).map_err(fail)?;
                    }
                }
                if at.position != p.end {
                    return Err(OpenError::Incomplete(format!(
                        "bank {bank} shard {shard} stands at {} and should at {}",
                        at.position, p.end
                    )));
                }
            }
        }
        Ok(())
    }

    /// A voter that lacks what its peers have compacted: the delta from the voter whose log is the
    /// chain, then its place in the chain.
    #[allow(clippy::too_many_arguments, reason = "one step of the plan, spelled out")]
    async fn catch_up(
        &self,
        shard: usize,
        bank: BankId,
        store: StoreId,
        since: Version,
        p: &ShardPlan,
        choice: &Choice,
        tails: &[ShardTails],
    ) -> Result<Position, OpenError> {
        let (Some(source), Some(told)) =
            (choice.shards[shard].voters[p.source], &tails[shard].fenced[p.source])
        else {
            return Err(OpenError::Incomplete("the source of a catch-up is gone".into()));
        };
        let through = p.settled;
        // Where the source's applied records end in the chain.
        let at = p.joint(&told.tail);
        let fail = |e: BankError| self.broken(shard, bank, &e);
        let reply = self.call(shard, bank, store, Request::Status, vec![]).await.map_err(fail)?;
        let cursor = status_of(reply.0).map_err(fail)?.cursor;
        // An earlier copy to it that was broken off counts.
        let known = Told { filling: false, applied: since, held: 0, cursor };
        let Course::From(mut cursor) = course(&known, at, p.entry.floor) else {
            return Err(OpenError::Incomplete(format!("bank {bank} shard {shard} is too old")));
        };
        let mut moved = 0usize;
        loop {
            let (since, after) = (cursor.since, cursor.after.clone());
            let limit_bytes = self.limits.copy_page_bytes;
            let request = Request::Delta { since, after, limit_bytes, values: true, through };
            let (reply, bulk) =
                self.call(shard, p.source, source, request, vec![]).await.map_err(fail)?;
            let Reply::Records { records, damaged, next, .. } = reply else {
                return Err(fail(unexpected(&reply)));
            };
            // One intact source is all there may be: what it cannot show whole is not copied, and
            // the replica is mended by the first refresh. It counts as damaged, not as absent, only
            // on the source; so refuse rather than let two of three lack it.
            if let Some(key) = damaged.first() {
                return Err(OpenError::Incomplete(format!(
                    "bank {} shard {shard} holds a damaged record ({}) that bank {bank} lacks: the third bank must answer",
                    p.source,
                    crate::read::hex(key)
                )));
            }
            moved += records.len();
            (self.options.progress)(&format!(
                "bank {bank} shard {shard} catches up: {moved} records"
            ));
            if !records.is_empty() {
                let request =
                    Request::Install { records, as_of: through, kind: InstallKind::CatchUp };
                self.call(shard, bank, store, request, vec![bulk]).await.map_err(fail)?;
            }
            match (next, next_pass(&cursor, at)) {
                (Some(key), _) => cursor.after = key,
                (None, Some(next)) => cursor = next,
                (None, None) => break,
            }
            let request = Request::Cursor(cursor.clone());
            self.call(shard, bank, store, request, vec![]).await.map_err(fail)?;
        }
        let request = Request::Join { at, reach: at };
        let reply = self.call(shard, bank, store, request, vec![]).await.map_err(fail)?;
        position_of(reply.0).map_err(fail)
    }

    /// Rule 5 g: only when every shard is settled, the opening entry, in every shard, on two voters.
    async fn write_entries(&self, plan: &Plan, choice: &Choice) -> Result<(), OpenError> {
        let mut writes = Vec::new();
        for (shard, p) in plan.shards.iter().enumerate() {
            let entry = part::encode(&p.entry, &[]);
            for bank in p.settle {
                let Some(store) = choice.shards[shard].voters[bank] else { continue };
                let entry = entry.clone();
                writes.push(async move {
                    let request = Request::Append {
                        lens: vec![entry.len() as u32],
                        watermark: plan.watermark,
                    };
                    let answer = self.call(shard, bank, store, request, vec![entry]).await;
                    let at = answer.and_then(|(r, _)| position_of(r));
                    match at {
                        Ok(at) if at.position == plan.entry => Ok(()),
                        Ok(at) => Err(OpenError::Incomplete(format!(
                            "bank {bank} shard {shard} stands at {} after the opening entry {}",
                            at.position, plan.entry
                        ))),
                        Err(e) => Err(self.broken(shard, bank, &e)),
                    }
                });
            }
        }
        futures_util::future::try_join_all(writes).await.map(drop)
    }

    /// The volume is open; the links take over.
    fn serve(
        self,
        plan: Plan,
        choice: &Choice,
        tails: &[ShardTails],
        bytes: TailBytes,
    ) -> (Shared, Orders) {
        let mut shards = Vec::new();
        for (i, p) in plan.shards.iter().enumerate() {
            let c = &choice.shards[i];
            let replicas = PerBank::from_fn(|b| {
                let told = tails[i].fenced[b].as_ref();
                let store = c.configuration.stores[b].unwrap_or(StoreId::ZERO);
                let applied = told.map(|t| t.applied).unwrap_or_default();
                let mut r = Replica::unknown(store, p.entry.marks[b], applied, Duration::ZERO);
                r.refilling = c.replace[b].is_some();
                r
            });
            let mut shard = Shard::opened(c.configuration, plan.watermark, p.entry.floor, replicas);
            // The parts that were settled are kept for the third voter like any others.
            for version in &p.chain {
                if let Some(raw) = bytes[i].get(version)
                    && let Ok(part) = part::decode(raw.clone())
                {
                    shard.push(&part.head, part.bytes.into());
                } else {
                    shard.remember(*version);
                }
            }
            shard.push(&p.entry, part::encode(&p.entry, &[]).into());
            shard.chain_end = plan.entry;
            shard.committed_end = plan.entry;
            shards.push(shard);
        }
        let mut core = Core::new(self.epoch, self.nonce, plan.cut, shards);
        core.ends = plan.ends.into();
        let (repairs, to_repair) = mpsc::channel(self.limits.repair_queue);
        let (checks, to_check) = mpsc::channel(CHECKS_WAITING);
        let watermark = core.watermark;
        let shared = Shared {
            core: Mutex::new(core),
            limits: self.limits,
            volume: self.volume,
            holder: self.options.holder,
            auto_replace: self.options.auto_replace,
            replace: Mutex::default(),
            together: Together::of(&self.nodes),
            banks: self.nodes.banks,
            watermark: Watched::new(watermark),
            pushed: Watched::new(0),
            seal_bell: Notify::new(),
            stop: Watched::new(false),
            repairs,
            checks,
            metrics: Metrics::default(),
            started: Instant::now(),
            board: Board::default(),
            copy_pace: Mutex::new((Pace::new(0, 1, Duration::ZERO), Busy::new(Duration::ZERO))),
            asked: AtomicU64::new(0),
            // Each mount begins with another bank: mounts that leave after a few reads would otherwise all
            // take (and look behind) the same copies, and damage on the others would stay.
            turn: AtomicUsize::new(usize::try_from(self.epoch).unwrap_or_default()),
            background: Background::none(),
            observing: false,
        };
        (shared, Orders { to_repair, to_check })
    }
}
