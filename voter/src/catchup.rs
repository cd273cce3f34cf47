//! Bringing a replica up: a delta since an honest position for one that was away (rule 7), a new
//! store in the place of a lost one (rule 8). Parts flow into its detached tail meanwhile.

use crate::bank::BankError;
use crate::configuration::{Filled, Next, next_step};
use crate::course::next_pass;
use crate::health::{Health, StoreHealth};
use crate::link::{End, not_there_yet, position_of, status_of, unexpected};
use crate::metrics::add;
use crate::plan::plan;
use crate::read::{self, Voted};
use crate::shared::Shared;
use bytes::Bytes;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use storenode::wire::{
    BankId, Cursor, InstallKind, Key, Keys, PerBank, RecordHead, Reply, Request, Role, Status,
    StoreId, Version, VolumeId, digest,
};
use tokio::time::Instant;

/// How long a voter that went is waited for as a second source; see [`sources`]. An opener waits as long
/// for a third voter before it copies to the second from the first alone.
pub(crate) const CONFIRM_WITHIN: Duration = Duration::from_secs(3);

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

/// Copies to a replica what it lacks, from where its [`Course`](crate::course::Course) says, joins it
/// at `joint` (what was committed when parts began to flow to it), and, if it is a new store, makes it
/// a voter. What was copied before an interruption counts; what was written since is a pass of its own.
pub(crate) async fn rise(
    shared: &Arc<Shared>,
    to: Place,
    mut cursor: Cursor,
    joint: Version,
    joined: bool,
) -> Result<(), End> {
    let Place { shard, bank, filling, .. } = to;
    let began = shared.now();
    let (mut records, mut bytes) = (0, 0);
    if !joined {
        let mut reach = joint;
        if !cursor.after.is_empty() {
            let (since, good) = (cursor.since, cursor.good);
            tracing::info!(%bank, shard, %since, %good, "a copy goes on where it was interrupted");
        }
        // What is installed must be claimed: a store whose content nobody can date begins anew.
        if filling && cursor.after.is_empty() {
            remember(shared, to, cursor.clone()).await?;
        }
        loop {
            reach = reach.max(copy(shared, to, &mut cursor).await?);
            let copied = shared.core.lock().shards[shard as usize].replicas[bank].copied.take();
            records += copied.as_ref().map_or(0, |c| c.records);
            bytes += copied.as_ref().map_or(0, |c| c.bytes);
            let Some(next) = next_pass(&cursor, joint) else { break };
            remember(shared, to, next.clone()).await?;
            cursor = next;
        }
        join(shared, to, joint, reach).await?;
    }
    if filling {
        admit(shared, shard, bank, to.store).await?;
        add(&shared.metrics.replaced, 1);
    }
    let seconds = (shared.now() - began).as_secs_f32();
    tracing::info!(%bank, shard, records, bytes, seconds, filling, "caught up");
    Ok(())
}

/// The store that is copied to.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    pub(crate) shard: u16,
    pub(crate) bank: BankId,
    pub(crate) store: StoreId,
    /// A new store on its way in.
    pub(crate) filling: bool,
}

async fn remember(shared: &Arc<Shared>, to: Place, cursor: Cursor) -> Result<(), End> {
    let request = Request::Cursor(cursor);
    shared.call_again(to.shard, to.bank, to.store, request, vec![]).await?;
    Ok(())
}

/// One pass: copies page by page from `cursor` on and moves it; returns the highest version installed.
/// While a page is made durable, the next one is read, and how far the last one reached is remembered.
async fn copy(shared: &Arc<Shared>, to: Place, cursor: &mut Cursor) -> Result<Version, End> {
    let mut reach = Version::ZERO;
    announce(shared, to, cursor).await?;
    let mut page = page(shared, to, cursor.since, cursor.after.clone()).await?;
    let mut unsaid: Option<Cursor> = None;
    loop {
        let PageOfDelta { heads, values, next, as_of } = page;
        let bytes: usize = values.iter().map(Bytes::len).sum();
        let count = heads.len();
        reach = heads.iter().map(|h| h.version).max().unwrap_or_default().max(reach);
        let install = async {
            if count > 0 {
                let kind = InstallKind::CatchUp;
                let request = Request::Install { records: heads, as_of, kind };
                shared.call_again(to.shard, to.bank, to.store, request, values).await?;
            }
            Ok::<(), End>(())
        };
        let say = async {
            match unsaid.take() {
                Some(c) => remember(shared, to, c).await,
                None => Ok(()),
            }
        };
        let fetch = async {
            match &next {
                Some(key) => self::page(shared, to, cursor.since, key.clone()).await.map(Some),
                None => Ok(None),
            }
        };
        let (installed, said, following) = futures_util::future::join3(install, say, fetch).await;
        installed?;
        said?;
        shared.copied(to.shard, to.bank, count as u64, bytes as u64);
        let counter = if to.filling { &shared.metrics.refilled } else { &shared.metrics.caught_up };
        add(counter, count);
        let (Some(key), Some(following)) = (next, following?) else { return Ok(reach) };
        cursor.after = key;
        unsaid = Some(cursor.clone());
        page = following;
        shared.pace_copy(to.shard, bytes as u64).await;
    }
}

/// Asks a source how much there is to copy, for people.
async fn announce(shared: &Arc<Shared>, to: Place, cursor: &Cursor) -> Result<(), End> {
    let (through, sources) = sources(shared, to).await?;
    let (since, after) = (cursor.since, cursor.after.clone());
    let request = Request::Missed { since, after, through };
    let (bank, store) = sources[0];
    let (reply, _) = shared.call_again(to.shard, bank, store, request, vec![]).await?;
    let Reply::Missed { records, bytes } = reply else { return Err(unexpected(&reply).into()) };
    shared.copy_begins(to.shard, to.bank, records, bytes);
    Ok(())
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
    to: Place,
    since: Version,
    after: Key,
) -> Result<PageOfDelta, End> {
    let (through, sources) = sources(shared, to).await?;
    let (shard, source) = (to.shard, sources[0]);
    let limit_bytes = shared.copy_page(shard);
    let ask = |(source, store): (BankId, StoreId), values: bool| {
        let request = Request::Delta { since, after: after.clone(), limit_bytes, values, through };
        async move {
            let (reply, bulk) = shared.call_again(shard, source, store, request, vec![]).await?;
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
        let doubtful: Keys = doubtful.into_iter().collect();
        let verdicts =
            read::vote(shared, shard, &doubtful).await.map_err(|e| End::Other(e.to_string()))?;
        for (key, v) in doubtful.iter().cloned().zip(verdicts) {
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
    Place { shard, bank, .. }: Place,
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
async fn join(shared: &Arc<Shared>, to: Place, at: Version, reach: Version) -> Result<(), End> {
    let Place { shard, bank, store, .. } = to;
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
                // Given up, and begun anew meanwhile: what this one has says nothing of that one.
                if r.store != store {
                    return Err(End::Other("another store took its place meanwhile".into()));
                }
                r.votes = true;
                r.refilling = false;
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
