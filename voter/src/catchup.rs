//! Bringing a replica up: a delta since an honest position for one that was away (rule 7), a new
//! store in the place of a lost one (rule 8). Parts flow into its detached tail meanwhile.

use crate::bank::BankError;
use crate::configuration::{Filled, Next, next_step};
use crate::health::{Health, StoreHealth};
use crate::link::{End, not_there_yet, position_of, status_of, unexpected};
use crate::metrics::add;
use crate::pace::Pace;
use crate::plan::plan;
use crate::read::{self, Voted};
use crate::shared::Shared;
use bytes::Bytes;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use storenode::wire::{
    BankId, InstallKind, Key, PerBank, RecordHead, Reply, Request, Role, Status, StoreId, Version,
    VolumeId, digest,
};
use tokio::time::Instant;

/// How long a voter that went is waited for as a second source; see [`sources`].
const CONFIRM_WITHIN: Duration = Duration::from_secs(3);

/// Bytes of values in one page of a delta.
const PAGE_BYTES: u32 = 4 << 20;

/// Makes a new, filling store of what is there: a new store id, no content. A crash after this
/// leaves a filling store that the next session goes on with.
pub(crate) async fn begin_refill(
    shared: &Arc<Shared>,
    shard: u16,
    bank: BankId,
    status: &Status,
) -> Result<Status, End> {
    let configuration = shared.core.lock().shards[shard as usize].configuration;
    let request = Request::Assign {
        volume: shared.volume,
        bank,
        shard,
        shards: shared.shards(),
        role: Role::Filling,
        configuration,
        wipe: true,
    };
    // A blank store carries no volume yet: it is addressed by its id alone.
    let volume = status.volume.unwrap_or(VolumeId::ZERO);
    debug_assert!(volume == VolumeId::ZERO || volume == shared.volume);
    let deadline = shared.limits.bulk_deadline();
    let reply = shared.call(shard, bank, status.store, request, vec![], deadline).await?;
    Ok(status_of(reply.0)?)
}

/// Moves all settled records newer than `from` to a replica, joins it at `joint` (what was committed
/// when parts began to flow to it), and, if it is a new store, makes it a voter.
pub(crate) async fn rise(
    shared: &Arc<Shared>,
    shard: u16,
    bank: BankId,
    store: StoreId,
    from: Version,
    joint: Version,
    filling: bool,
) -> Result<(), End> {
    let began = Instant::now();
    let from = if filling { Version::ZERO } else { from };
    let reach = copy(shared, shard, bank, store, from, filling).await?.max(joint);
    join(shared, shard, bank, store, joint, reach).await?;
    if filling {
        admit(shared, shard, bank, store).await?;
        add(&shared.metrics.replaced, 1);
    }
    let (records, bytes) = shared.core.lock().shards[shard as usize].replicas[bank].moved;
    tracing::info!(%bank, shard, records, bytes, seconds = began.elapsed().as_secs_f32(), filling, "caught up");
    Ok(())
}

/// Copies page by page; returns the highest version installed.
async fn copy(
    shared: &Arc<Shared>,
    shard: u16,
    bank: BankId,
    store: StoreId,
    since: Version,
    filling: bool,
) -> Result<Version, End> {
    let mut after: Key = Vec::new();
    let mut reach = Version::ZERO;
    let began = Instant::now();
    let rate = shared.limits.refill_bytes_per_s;
    let mut pace = Pace::new(rate, u64::from(PAGE_BYTES), Duration::ZERO);
    loop {
        let page = page(shared, shard, bank, since, &after).await?;
        let bytes: usize = page.values.iter().map(Bytes::len).sum();
        let count = page.heads.len();
        reach = page.heads.iter().map(|h| h.version).max().unwrap_or_default().max(reach);
        if count > 0 {
            let request = Request::Install {
                records: page.heads,
                as_of: page.as_of,
                kind: InstallKind::CatchUp,
            };
            let deadline = shared.limits.bulk_deadline();
            shared.call(shard, bank, store, request, page.values, deadline).await?;
        }
        {
            let mut core = shared.core.lock();
            let moved = &mut core.shards[shard as usize].replicas[bank].moved;
            moved.0 += count as u64;
            moved.1 += bytes as u64;
        }
        let counter = if filling { &shared.metrics.refilled } else { &shared.metrics.caught_up };
        add(counter, count);
        match page.next {
            None => return Ok(reach),
            Some(key) => after = key,
        }
        // Paid for after the fact: a page is small against a second's worth.
        while let Err(wait) = pace.take(bytes as u64, began.elapsed()) {
            tokio::time::sleep(wait).await;
        }
    }
}

struct PageOfDelta {
    heads: Vec<RecordHead>,
    values: Vec<Bytes>,
    next: Option<Key>,
    as_of: Version,
}

/// One page from the best source. Every value is verified, and what another up-to-date voter holds in
/// the same range is laid beside it: a record that the source alone has lost, or has rotted into
/// something else, must not be missing on two of three afterwards. What does not verify or differs is
/// voted on by itself.
async fn page(
    shared: &Arc<Shared>,
    shard: u16,
    bank: BankId,
    since: Version,
    after: &Key,
) -> Result<PageOfDelta, End> {
    let (through, sources) = sources(shared, shard, bank).await?;
    let source = sources[0];
    let ask = |(source, store): (BankId, StoreId), values: bool| {
        let limit_bytes = PAGE_BYTES;
        let request = Request::Delta { since, after: after.clone(), limit_bytes, values, through };
        let deadline = shared.limits.bulk_deadline();
        async move {
            let (reply, bulk) =
                shared.call(shard, source, store, request, vec![], deadline).await?;
            match reply {
                Reply::Records { records, damaged, next, .. } => Ok((records, damaged, next, bulk)),
                other => Err(unexpected(&other)),
            }
        }
    };
    let second = async {
        match sources.get(1) {
            Some(&second) => ask(second, false).await.map(Some),
            None => Ok(None),
        }
    };
    let ((records, damaged, mut next, bulk), second) = tokio::try_join!(ask(source, true), second)?;
    let mut doubtful: BTreeSet<Key> = damaged.into_iter().collect();
    let broken = doubtful.clone();
    if let Some((others, _, end, _)) = second {
        // Only what both have covered counts.
        next = match (next, end) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        let floor = shared.core.lock().shards[shard as usize].floor;
        let mut heads = PerBank::from_fn(|_| None);
        heads[source.0] = Some(within(&records, next.as_ref()));
        heads[sources[1].0] = Some(within(&others, next.as_ref()));
        doubtful.extend(plan(&heads, through, floor).into_iter().map(|r| r.key));
    }
    let covered = |k: &Key| next.as_ref().is_none_or(|n| k <= n);
    let (mut heads, mut values) = (Vec::with_capacity(records.len()), Vec::new());
    let mut at = 0usize;
    for head in records {
        let value = match head.len {
            // A damaged value is not in the bulk.
            Some(n) if !broken.contains(&head.key) => {
                let end = at + n as usize;
                if end > bulk.len() {
                    return Err(BankError::Garbled("delta: values cut short".into()).into());
                }
                let v = bulk.slice(at..end);
                at = end;
                Some(v)
            }
            _ => None,
        };
        if !covered(&head.key) || doubtful.contains(&head.key) {
            continue;
        }
        // Rule 11: a record is a source only after its digest was checked.
        if digest(&head.key, head.version, value.as_deref()) == head.digest {
            values.extend(value);
            heads.push(head);
        } else {
            doubtful.insert(head.key);
        }
    }
    doubtful.retain(covered);
    if !doubtful.is_empty() {
        let doubtful: Vec<Key> = doubtful.into_iter().collect();
        let verdicts =
            read::vote(shared, shard, &doubtful).await.map_err(|e| End::Other(e.to_string()))?;
        for (key, v) in doubtful.into_iter().zip(verdicts) {
            if let Voted::Record { version, digest, value } = v {
                let len = value.as_ref().map(|v| v.len() as u32);
                heads.push(RecordHead { key, version, digest, len });
                values.extend(value);
            }
        }
    }
    Ok(PageOfDelta { heads, values, next, as_of: through })
}

/// Whom to copy from, at least one, best first, and through where. A second one confirms what the first
/// shows; one that has only just gone is waited for.
async fn sources(
    shared: &Arc<Shared>,
    shard: u16,
    bank: BankId,
) -> Result<(Version, Vec<(BankId, StoreId)>), End> {
    let limit = Instant::now() + shared.limits.bulk_deadline();
    loop {
        let (through, mut readers) = shared.readers(shard, bank.index() + 1);
        readers.retain(|(b, _)| *b != bank);
        if readers.is_empty() {
            return Err(End::Other("no up-to-date replica to copy from".into()));
        }
        let alone = {
            let core = shared.core.lock();
            let other = |b: &BankId| *b != bank && readers.iter().all(|(r, _)| r != b);
            BankId::ALL.into_iter().filter(other).all(|third| {
                let health = &core.shards[shard as usize].replicas[third].health;
                !may_confirm(health, shared.now())
            })
        };
        if readers.len() >= 2 || alone || Instant::now() >= limit {
            return Ok((through, readers));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Is a voter that cannot be read from worth waiting for, before another is believed alone? One that went
/// (or was not found yet) a moment ago is; one that is behind itself has nothing to say.
fn may_confirm(third: &StoreHealth, now: Duration) -> bool {
    third.health() == Health::Down && now.saturating_sub(third.since()) < CONFIRM_WITHIN
}

fn within(heads: &[RecordHead], last: Option<&Key>) -> Vec<RecordHead> {
    heads.iter().take_while(|h| last.is_none_or(|l| h.key <= *l)).cloned().collect()
}

/// The durable step from "being brought up" to "contiguous". The tail may still be on its way.
async fn join(
    shared: &Arc<Shared>,
    shard: u16,
    bank: BankId,
    store: StoreId,
    at: Version,
    reach: Version,
) -> Result<(), End> {
    let limit = Instant::now() + shared.limits.bulk_deadline();
    loop {
        let request = Request::Join { at, reach };
        let deadline = shared.limits.bulk_deadline();
        match shared.call(shard, bank, store, request, vec![], deadline).await {
            Ok((reply, _)) => {
                let p = position_of(reply)?;
                shared.acked(shard, bank, p);
                return Ok(());
            }
            Err(e) if not_there_yet(&e) && Instant::now() < limit => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(e) => return Err(e.into()),
        }
    }
}

/// Rule 8: the new configuration on both remaining voters, each fsynced; only then is the store
/// told that it is a voter; only then do its acks and votes count here. What comes next is read off
/// the nodes each time ([`next_step`]), so a crash in between is simply gone on with.
async fn admit(shared: &Arc<Shared>, shard: u16, bank: BankId, store: StoreId) -> Result<(), End> {
    let deadline = shared.limits.call_deadline();
    // Configure both, admit, done: three steps, and one to spare.
    for _ in 0..4 {
        let (stores, filled) = {
            let core = shared.core.lock();
            let s = &core.shards[shard as usize];
            let filled =
                Filled { through: s.replicas[bank].position.position, mark: s.replicas[bank].mark };
            (PerBank::from_fn(|b| s.replicas[b].store), filled)
        };
        let ask = |b: BankId| async move {
            let answer = shared.call(shard, b, stores[b], Request::Status, vec![], deadline).await;
            answer.and_then(|(r, _)| status_of(r)).ok()
        };
        let (a, b, c) = tokio::join!(ask(BankId::A), ask(BankId::B), ask(BankId::C));
        let statuses = PerBank([a, b, c]);
        let admitted =
            statuses[bank].as_ref().filter(|s| s.role == Role::Voter && s.store == store);
        if let Some(status) = admitted {
            let configuration = status.configuration;
            {
                let mut core = shared.core.lock();
                let s = &mut core.shards[shard as usize];
                s.configuration = configuration;
                let r = &mut s.replicas[bank];
                r.votes = true;
            }
            shared.attached(shard, bank, status.position);
            return Ok(());
        }
        match next_step(&statuses, PerBank::from_fn(|b| b == bank), filled) {
            Next::Configure { banks, configuration } => {
                for b in banks {
                    let request = Request::Configure { configuration };
                    shared.call(shard, b, stores[b], request, vec![], deadline).await?;
                }
            }
            Next::Admit { configuration, .. } => {
                let request = Request::Admit { configuration };
                shared.call(shard, bank, store, request, vec![], deadline).await?;
            }
            Next::Wait(why) => return Err(End::Other(why.to_string())),
            other => return Err(End::Other(format!("not ready to be admitted: {other:?}"))),
        }
    }
    Err(End::Other("the nodes do not take the new configuration".into()))
}
