//! The refresh: every so often the set-hashes of all replicas are compared and what differs is
//! mended; and the scrub: values are re-read from disk, at most so many bytes per refresh, and what
//! does not verify is mended. Whole small volumes are scrubbed within every refresh.

use crate::link::unexpected;
use crate::metrics::add;
use crate::plan::plan;
use crate::progress::{Ongoing, Work};
use crate::repair::mend;
use crate::shared::{Shared, stopped};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use storenode::wire::{
    BankId, BucketHash, Key, PerBank, RecordHead, Reply, Request, Status, StoreId, Version,
};

/// Heads in one page of a bucket.
const PAGE: u32 = 8_192;
/// Bytes a node re-reads for one `verify`.
const VERIFY_BYTES: u32 = 8 << 20;
/// Rounds in which one refresh looks again at buckets that were being written.
const ROUNDS: usize = 3;

/// What a refresh or scrub did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Shards looked at.
    pub shards: u64,
    /// Comparing: shards that had fewer than two replicas to compare. Re-reading: replicas that were not read to
    /// the end, or not at all.
    pub skipped: u64,
    /// Replicas that were not compared, since they are away, behind or silent, in shards where two others were.
    #[serde(default)]
    pub absent: u64,
    /// Buckets that differed.
    pub differing: u64,
    /// Records written or removed.
    pub mended: u64,
    /// Records re-read.
    pub verified: u64,
    /// Bytes re-read.
    pub bytes: u64,
    /// Damaged records found by re-reading.
    pub damaged: u64,
    /// Damage found in other places of the nodes' files; the nodes write them anew.
    #[serde(default)]
    pub damaged_files: u64,
}

impl std::ops::Add for Report {
    type Output = Report;
    /// Of a comparison and a scrub of the same shards.
    fn add(self, scrub: Report) -> Report {
        Report {
            shards: self.shards.max(scrub.shards),
            skipped: self.skipped + scrub.skipped,
            absent: self.absent + scrub.absent,
            differing: self.differing + scrub.differing,
            mended: self.mended + scrub.mended,
            verified: self.verified + scrub.verified,
            bytes: self.bytes + scrub.bytes,
            damaged: self.damaged + scrub.damaged,
            damaged_files: self.damaged_files + scrub.damaged_files,
        }
    }
}

/// What the background task keeps between refreshes.
#[derive(Debug, Default)]
pub(crate) struct Scrubber {
    /// Per shard and bank.
    spots: BTreeMap<(u16, BankId), Spot>,
}

/// How far the scrub of a store came: its records, then its files.
#[derive(Debug)]
pub(crate) enum Spot {
    Records(Key),
    Files(u32),
}

impl Default for Spot {
    fn default() -> Self {
        Self::Records(Key::new())
    }
}

/// Refreshes for ever; `kick` asks for one now.
pub(crate) async fn run(shared: Arc<Shared>, kick: Arc<tokio::sync::Notify>) {
    let interval = Duration::from_secs(shared.limits.refresh_interval_s.max(1));
    let mut scrubber = Scrubber::default();
    loop {
        tokio::select! {
            biased;
            () = tokio::time::sleep(interval) => {}
            () = kick.notified() => {}
            () = stopped(shared.stop.subscribe()) => return,
        }
        let report = refresh(&shared, &begin(&shared)).await;
        let budget = shared.limits.scrub_bytes_per_refresh;
        let progress = begin_scrub(&shared, budget).await;
        let scrubbed = scrub(&shared, &mut scrubber, budget, &progress).await;
        drop(progress);
        add(&shared.metrics.refreshes, 1);
        if report.mended + scrubbed.mended + scrubbed.damaged_files > 0 {
            tracing::info!(?report, ?scrubbed, "refresh repaired records");
        }
    }
}

/// A refresh on the board.
pub(crate) fn begin(shared: &Shared) -> Ongoing<'_> {
    shared.board.begin("refresh", "shards", u64::from(shared.shards()), shared.now())
}

/// A scrub of about `budget` bytes of each bank on the board.
pub(crate) async fn begin_scrub(shared: &Shared, budget: u64) -> Ongoing<'_> {
    let all = crate::status::node_statuses(&shared.banks, shared.limits.call_deadline()).await;
    let live = |nodes: &Vec<Option<Status>>| {
        let each = |s: &Status| s.space.live_bytes + s.space.log_bytes;
        nodes.iter().flatten().map(each).sum::<u64>().min(budget)
    };
    let total = all.iter().map(|(_, nodes)| live(nodes)).sum();
    shared.board.begin("scrub", "bytes", total, shared.now())
}

/// Compares and mends all shards once.
pub(crate) async fn refresh(shared: &Arc<Shared>, progress: &Work) -> Report {
    let mut report = Report::default();
    for shard in 0..shared.shards() {
        report.shards += 1;
        match refresh_shard(shared, shard, &mut report).await {
            Ok(compared) => report.absent += BankId::ALL.len().saturating_sub(compared) as u64,
            Err(why) => {
                report.skipped += 1;
                tracing::debug!(shard, %why, "shard not refreshed");
            }
        }
        progress.done.fetch_add(1, Ordering::Relaxed);
    }
    report
}

/// Answers how many replicas were compared.
async fn refresh_shard(
    shared: &Arc<Shared>,
    shard: u16,
    report: &mut Report,
) -> Result<usize, String> {
    let mut compared = 0;
    for _ in 0..ROUNDS {
        let (through, readers) = shared.readers(shard, 0);
        if readers.len() < 2 {
            return Err("fewer than two replicas are up to date".into());
        }
        let deadline = shared.limits.call_deadline();
        let answers = futures_util::future::join_all(readers.iter().map(|(bank, store)| {
            shared.call(shard, *bank, *store, Request::Hashes { through }, vec![], deadline)
        }))
        .await;
        let mut hashes: Vec<(usize, Version, Vec<BucketHash>)> = Vec::new();
        for (i, a) in answers.into_iter().enumerate() {
            match a {
                Ok((Reply::Hashes { applied, buckets }, _)) => hashes.push((i, applied, buckets)),
                Ok((other, _)) => return Err(unexpected(&other).to_string()),
                Err(e) => tracing::debug!(bank = %readers[i].0, shard, %e, "no hashes"),
            }
        }
        if hashes.len() < 2 {
            return Err("fewer than two replicas answered".into());
        }
        compared = hashes.len();
        let lowest = hashes.iter().map(|(_, a, _)| *a).min().unwrap_or_default();
        let newest = shared.core.lock().watermark;
        let n = hashes.iter().map(|(_, _, b)| b.len()).min().unwrap_or(0);
        let (mut differing, mut busy) = (Vec::new(), 0);
        for b in 0..n {
            let first = &hashes[0].2[b];
            if hashes.iter().all(|(_, _, h)| (h[b].sum, h[b].count) == (first.sum, first.count)) {
                continue;
            }
            // Written between the answers: not a difference, or not one that can be told yet.
            // (A forged version beyond the watermark does not count as a late one.)
            if hashes.iter().any(|(_, _, h)| h[b].high > lowest && h[b].high <= newest) {
                busy += 1;
            } else {
                differing.push(b as u16);
            }
        }
        let asked: Vec<(BankId, StoreId)> = hashes.iter().map(|(i, ..)| readers[*i]).collect();
        for bucket in &differing {
            report.differing += 1;
            add(&shared.metrics.buckets_differing, 1);
            let keys = differing_keys(shared, shard, *bucket, through, &asked).await?;
            report.mended += mend(shared, shard, &keys).await? as u64;
        }
        if differing.is_empty() && busy == 0 {
            break;
        }
    }
    Ok(compared)
}

/// Keys of one bucket that the replicas do not hold alike, as [`plan`] sees it from their heads. Heads
/// are claims: what becomes of the keys is decided by a vote.
async fn differing_keys(
    shared: &Arc<Shared>,
    shard: u16,
    bucket: u16,
    through: Version,
    readers: &[(BankId, StoreId)],
) -> Result<Vec<Key>, String> {
    let mut heads: PerBank<Option<Vec<RecordHead>>> = PerBank::from_fn(|_| None);
    for (bank, store) in readers {
        let mut after = Vec::new();
        let mut all = Vec::new();
        loop {
            let request = Request::Bucket { bucket, after: after.clone(), limit: PAGE, through };
            let answer = shared
                .call(shard, *bank, *store, request, vec![], shared.limits.call_deadline())
                .await
                .map_err(|e| format!("bank {bank}: {e}"))?;
            let Reply::Records { records, next, .. } = answer.0 else {
                return Err(unexpected(&answer.0).to_string());
            };
            all.extend(records);
            match next {
                Some(key) => after = key,
                None => break,
            }
        }
        heads[*bank] = Some(all);
    }
    let (floor, newest) = {
        let core = shared.core.lock();
        (core.shards[shard as usize].floor, core.watermark)
    };
    // A record from beyond what was committed is foreign; the plan would take it for a late one.
    let forged = heads.iter().flat_map(|(_, h)| h.iter().flatten()).filter(|h| h.version > newest);
    let mut keys: Vec<Key> = forged.map(|h| h.key.clone()).collect();
    keys.extend(plan(&heads, through, floor).into_iter().map(|r| r.key));
    keys.sort_unstable();
    keys.dedup();
    Ok(keys)
}

/// Re-reads records on every up-to-date replica, about `budget` bytes each, from where the last call
/// ended; mends what is damaged.
pub(crate) async fn scrub(
    shared: &Arc<Shared>,
    scrubber: &mut Scrubber,
    budget: u64,
    progress: &Work,
) -> Report {
    let mut report = Report::default();
    for shard in 0..shared.shards() {
        report.shards += 1;
        let (_, readers) = shared.readers(shard, 0);
        report.skipped += BankId::ALL.len().saturating_sub(readers.len()) as u64;
        for (bank, store) in readers {
            let spot = scrubber.spots.entry((shard, bank)).or_default();
            let share = budget / u64::from(shared.shards());
            if let Err(why) =
                scrub_store(shared, (shard, bank, store), spot, share, &mut report, progress).await
            {
                report.skipped += 1;
                tracing::debug!(%bank, shard, %why, "scrub stopped");
            }
        }
    }
    add(&shared.metrics.scrubbed, report.verified as usize);
    add(&shared.metrics.scrub_damaged, report.damaged as usize);
    report
}

async fn scrub_store(
    shared: &Arc<Shared>,
    of: (u16, BankId, StoreId),
    spot: &mut Spot,
    budget: u64,
    report: &mut Report,
    progress: &Work,
) -> Result<(), String> {
    let mut read = 0;
    while read < budget && !shared.stopping() {
        let (bytes, next) = match spot {
            Spot::Records(after) => scrub_records(shared, of, after.clone(), report).await?,
            Spot::Files(from) => scrub_files(shared, of, *from, report).await?,
        };
        read += bytes;
        report.bytes += bytes;
        progress.done.fetch_add(bytes, Ordering::Relaxed);
        match next {
            Some(next) => *spot = next,
            None => {
                *spot = Spot::default();
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Re-reads some records and mends what is damaged; bytes read, and where to go on.
async fn scrub_records(
    shared: &Arc<Shared>,
    (shard, bank, store): (u16, BankId, StoreId),
    after: Key,
    report: &mut Report,
) -> Result<(u64, Option<Spot>), String> {
    let request = Request::Verify { after, budget_bytes: VERIFY_BYTES };
    let deadline = shared.limits.bulk_deadline();
    let answer = shared.call(shard, bank, store, request, vec![], deadline).await;
    let reply = answer.map_err(|e| e.to_string())?.0;
    let Reply::Verified { bad, next, records, bytes } = reply else {
        return Err(unexpected(&reply).to_string());
    };
    report.verified += records;
    if !bad.is_empty() {
        report.damaged += bad.len() as u64;
        tracing::warn!(%bank, shard, records = bad.len(), first = %bad[0].1, "scrub found damage");
        let keys: Vec<Key> = bad.into_iter().map(|(k, _)| k).collect();
        report.mended += mend(shared, shard, &keys).await? as u64;
    }
    Ok((bytes, Some(next.map_or(Spot::Files(0), Spot::Records))))
}

/// Has a node re-read one of its files, and write anew what is damaged.
async fn scrub_files(
    shared: &Arc<Shared>,
    (shard, bank, store): (u16, BankId, StoreId),
    from: u32,
    report: &mut Report,
) -> Result<(u64, Option<Spot>), String> {
    let request = Request::VerifyFiles { from };
    let deadline = shared.limits.bulk_deadline();
    let answer = shared.call(shard, bank, store, request, vec![], deadline).await;
    let reply = answer.map_err(|e| e.to_string())?.0;
    let Reply::FilesVerified { bad, bytes, next } = reply else {
        return Err(unexpected(&reply).to_string());
    };
    for what in &bad {
        tracing::warn!(%bank, shard, %what, "scrub found a damaged file: the node writes it anew");
    }
    report.damaged_files += bad.len() as u64;
    Ok((bytes, next.map(Spot::Files)))
}
