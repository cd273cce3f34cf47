//! Reading (rule 6): values from one up-to-date voter, heads of the same keys from another; the
//! third only where they do not agree, or when one is late. What loses is ordered to be repaired.

use crate::bank::BankError;
use crate::link::unexpected;
use crate::metrics::add;
use crate::shared::Shared;
use crate::volume::{Page, Stored, VolumeError};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use storenode::wire::{BankId, Digest, Found, Key, RecordHead, Reply, Request, StoreId, Version, digest};

/// Keys in one request.
const KEYS_MAX: usize = 1_024;

/// What the banks hold under a key, after the vote.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Voted {
    /// Nothing, or a tombstone that may be forgotten.
    Absent,
    /// A record; `value` `None` = a tombstone.
    Record { version: Version, digest: Digest, value: Option<Bytes> },
}

impl Voted {
    fn stored(self) -> Option<Stored> {
        match self {
            Voted::Record { version, value: Some(value), .. } => Some(Stored { version, value }),
            _ => None,
        }
    }
}

/// One bank's answer for one key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Ballot {
    Absent,
    /// A head without its value: counts as a witness, cannot be the answer by itself.
    Head { version: Version, digest: Digest, tombstone: bool },
    /// A record whose digest was verified here.
    Whole { version: Version, digest: Digest, value: Option<Bytes> },
    /// Not whole, or from beyond what was committed: no vote. Its version where one is claimed.
    Damaged(Option<Version>),
}

/// Where the first ballot goes next, so that the banks share the reading.
static TURN: AtomicUsize = AtomicUsize::new(0);

/// Votes on keys of one shard that are not pending.
pub(crate) async fn vote(
    shared: &Arc<Shared>,
    shard: u16,
    keys: &[Key],
) -> Result<Vec<Voted>, VolumeError> {
    let mut out = Vec::with_capacity(keys.len());
    for chunk in keys.chunks(KEYS_MAX) {
        out.extend(vote_chunk(shared, shard, chunk).await?);
    }
    Ok(out)
}

async fn vote_chunk(
    shared: &Arc<Shared>,
    shard: u16,
    keys: &[Key],
) -> Result<Vec<Voted>, VolumeError> {
    add(&shared.metrics.reads, keys.len());
    let limit = Instant::now() + shared.limits.read_deadline();
    let mut why = String::from("no bank is up to date");
    let mut pause = Duration::from_millis(5);
    loop {
        if let Some(f) = &shared.core.lock().fenced {
            return Err(VolumeError::Fenced(f.clone()));
        }
        match attempt(shared, shard, keys, limit).await {
            Ok(Ok(v)) => return Ok(v),
            // A verdict of "not decidable" with all three heard does not change by asking again...
            Ok(Err(NoVerdict { why: w, heard })) => {
                if heard >= 3 {
                    add(&shared.metrics.reads_failed, 1);
                    return Err(VolumeError::Damaged(w));
                }
                why = w;
            }
            Err(e) => why = e,
        }
        if Instant::now() + pause >= limit {
            add(&shared.metrics.reads_failed, 1);
            return Err(VolumeError::Unavailable(why));
        }
        // ...but a bank that is away may come back before the deadline.
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(200));
    }
}

struct NoVerdict {
    why: String,
    heard: usize,
}

/// Asks two voters, and the third where needed. The inner error: no verdict for some key.
async fn attempt(
    shared: &Arc<Shared>,
    shard: u16,
    keys: &[Key],
    limit: Instant,
) -> Result<Result<Vec<Voted>, NoVerdict>, String> {
    let (through, readers) = shared.readers(shard, TURN.fetch_add(1, Ordering::Relaxed));
    if readers.is_empty() {
        return Err("no bank is up to date in this shard".into());
    }
    let hedge = Duration::from_millis(shared.limits.hedge_ms);
    let ask = |i: usize, values: bool, keys: Vec<Key>| {
        let (bank, store) = readers[i];
        async move { (i, ask(shared, shard, bank, store, keys, through, values).await) }
    };
    let mut flying = FuturesUnordered::new();
    flying.push(ask(0, true, keys.to_vec()));
    let mut asked = 1;
    if readers.len() > 1 {
        flying.push(ask(1, false, keys.to_vec()));
        asked = 2;
    }
    let mut ballots: BTreeMap<usize, Vec<Ballot>> = BTreeMap::new();
    let mut why = String::new();
    let mut late = false;
    while ballots.len() < 2 {
        let wait = if asked < readers.len() { hedge } else { limit.saturating_duration_since(Instant::now()) };
        match tokio::time::timeout(wait, flying.next()).await {
            Ok(Some((i, Ok(b)))) => {
                ballots.insert(i, b);
            }
            Ok(Some((i, Err(e)))) => {
                why = format!("bank {}: {e}", readers[i].0);
                if asked < readers.len() {
                    flying.push(ask(asked, true, keys.to_vec()));
                    asked += 1;
                }
            }
            Ok(None) => break,
            Err(_) if asked < readers.len() => {
                late = true;
                add(&shared.metrics.hedges, 1);
                for (i, (bank, _)) in readers.iter().enumerate().take(asked) {
                    if !ballots.contains_key(&i) {
                        shared.waiting(shard, *bank);
                    }
                }
                flying.push(ask(asked, true, keys.to_vec()));
                asked += 1;
            }
            Err(_) => break,
        }
    }
    drop(flying);
    if ballots.is_empty() {
        return Err(why);
    }
    // Heads whose bank alone answered with values, or keys in dispute: hear everybody, with values.
    let mut verdicts: Vec<Option<Voted>> = (0..keys.len())
        .map(|k| {
            let b: Vec<&Ballot> = ballots.values().map(|v| &v[k]).collect();
            agree(&b)
        })
        .collect();
    let open: Vec<usize> = (0..keys.len()).filter(|k| verdicts[*k].is_none()).collect();
    if open.is_empty() {
        return Ok(Ok(verdicts.into_iter().flatten().collect()));
    }
    if !late {
        add(&shared.metrics.disputes, open.len());
    }
    let subset: Vec<Key> = open.iter().map(|k| keys[*k].clone()).collect();
    let full: Vec<(usize, Result<Vec<Ballot>, BankError>)> = {
        let all: FuturesUnordered<_> =
            (0..readers.len()).map(|i| ask(i, true, subset.clone())).collect();
        collect_within(all, readers.len(), hedge * 4, limit).await
    };
    let heard: Vec<(BankId, Vec<Ballot>)> =
        full.into_iter().filter_map(|(i, r)| r.ok().map(|b| (readers[i].0, b))).collect();
    for (n, k) in open.iter().enumerate() {
        let ballots: Vec<(BankId, &Ballot)> = heard.iter().map(|(b, v)| (*b, &v[n])).collect();
        match decide(&ballots) {
            Ok((voted, losers)) => {
                if !losers.is_empty() {
                    tracing::warn!(shard, key = %hex(&keys[*k]), ?losers, "a replica differs; repairing");
                    shared.order_repair(shard, keys[*k].clone());
                }
                verdicts[*k] = Some(voted);
            }
            Err(w) => {
                let why = format!("key {} of shard {shard}: {w}", hex(&keys[*k]));
                return Ok(Err(NoVerdict { why, heard: heard.len() }));
            }
        }
    }
    Ok(Ok(verdicts.into_iter().flatten().collect()))
}

/// All answers, but once two are in not longer than `patience` for the third.
async fn collect_within<T, E>(
    mut all: FuturesUnordered<impl Future<Output = (usize, Result<T, E>)>>,
    n: usize,
    patience: Duration,
    limit: Instant,
) -> Vec<(usize, Result<T, E>)> {
    let mut out: Vec<(usize, Result<T, E>)> = Vec::with_capacity(n);
    while out.len() < n {
        let good = out.iter().filter(|(_, r)| r.is_ok()).count();
        let left = limit.saturating_duration_since(Instant::now());
        let wait = if good >= 2 { patience.min(left) } else { left };
        match tokio::time::timeout(wait, all.next()).await {
            Ok(Some(x)) => out.push(x),
            _ => break,
        }
    }
    out
}

/// One node's ballots. Values are verified here; what does not verify is damaged.
pub(crate) async fn ask(
    shared: &Arc<Shared>,
    shard: u16,
    bank: BankId,
    store: StoreId,
    keys: Vec<Key>,
    through: Version,
    values: bool,
) -> Result<Vec<Ballot>, BankError> {
    let n = keys.len();
    let request = if values {
        Request::Read { keys: keys.clone(), through }
    } else {
        Request::Digests { keys: keys.clone(), through }
    };
    let (reply, bulk) =
        shared.call(shard, bank, store, request, vec![], shared.limits.call_deadline()).await?;
    let Reply::Found { items, .. } = reply else { return Err(unexpected(&reply)) };
    if items.len() != n {
        return Err(BankError::Garbled(format!("{} answers to {n} keys", items.len())));
    }
    let newest = shared.core.lock().watermark;
    let mut at = 0usize;
    let mut out = Vec::with_capacity(n);
    for (key, item) in keys.iter().zip(items) {
        out.push(match item {
            Found::Absent => Ballot::Absent,
            Found::Damaged { what } => {
                tracing::warn!(%bank, shard, key = %hex(key), %what, "damaged record");
                Ballot::Damaged(None)
            }
            Found::Record { version, digest: d, len } => {
                let value = match len {
                    Some(len) if values => {
                        let end = at + len as usize;
                        if end > bulk.len() {
                            return Err(BankError::Garbled("values cut short".into()));
                        }
                        let v = bulk.slice(at..end);
                        at = end;
                        Some(v)
                    }
                    _ => None,
                };
                ballot(key, version, d, len, value, values, newest)
            }
        });
    }
    Ok(out)
}

fn ballot(
    key: &[u8],
    version: Version,
    d: Digest,
    len: Option<u32>,
    value: Option<Bytes>,
    values: bool,
    newest: Version,
) -> Ballot {
    // Trap 26: from beyond what was ever committed.
    if version > newest {
        return Ballot::Damaged(Some(version));
    }
    if !values && len.is_some() {
        return Ballot::Head { version, digest: d, tombstone: false };
    }
    if digest(key, version, value.as_deref()) != d {
        return Ballot::Damaged(Some(version));
    }
    Ballot::Whole { version, digest: d, value }
}

/// The common case: two ballots that say the same, one of them with the value.
fn agree(b: &[&Ballot]) -> Option<Voted> {
    let (&first, &second) = (b.first()?, b.get(1)?);
    match (first, second) {
        (Ballot::Absent, Ballot::Absent) => Some(Voted::Absent),
        (Ballot::Whole { version, digest, value }, other)
        | (other, Ballot::Whole { version, digest, value }) => match other {
            Ballot::Head { version: v, digest: d, tombstone }
                if (v, d) == (version, digest) && *tombstone == value.is_none() =>
            {
                Some(Voted::Record { version: *version, digest: *digest, value: value.clone() })
            }
            Ballot::Whole { version: v, digest: d, .. } if (v, d) == (version, digest) => {
                Some(Voted::Record { version: *version, digest: *digest, value: value.clone() })
            }
            // One of them forgot the tombstone already: the floor passed.
            Ballot::Absent if value.is_none() => Some(Voted::Absent),
            _ => None,
        },
        _ => None,
    }
}

/// The tally of rule 6 over full ballots. Returns the verdict and the banks that hold something
/// else.
pub(crate) fn decide(ballots: &[(BankId, &Ballot)]) -> Result<(Voted, Vec<BankId>), String> {
    let absent = |b: &Ballot| match b {
        Ballot::Absent => true,
        Ballot::Whole { value, .. } => value.is_none(),
        _ => false,
    };
    // A majority for one record.
    let mut best: Option<(usize, Version, Digest, &Option<Bytes>)> = None;
    let mut conflict = false;
    for (_, b) in ballots {
        if let Ballot::Whole { version, digest, value } = b {
            let same = |o: &Ballot| matches!(o, Ballot::Whole { version: v, digest: d, .. } if (v, d) == (version, digest));
            let count = ballots.iter().filter(|(_, o)| same(o)).count();
            match &best {
                Some((c, v, d, _)) if (*c, *v) == (count, *version) && d != digest => conflict = true,
                Some((c, v, _, _)) if (*c, *v) >= (count, *version) => {}
                _ => {
                    conflict = false;
                    best = Some((count, *version, *digest, value));
                }
            }
        }
    }
    let absences = ballots.iter().filter(|(_, b)| **b == Ballot::Absent).count();
    let damaged = ballots.iter().filter(|(_, b)| matches!(b, Ballot::Damaged(_))).count();
    let voted = match best {
        Some((count, ..)) if count >= 2 => None,
        _ if absences >= 2 => Some(Voted::Absent),
        Some(_) if conflict => {
            return Err("two copies of one version differ and no third decides".into());
        }
        // One intact copy: enough when another bank at least answered (damaged, or older).
        Some(_) if ballots.len() >= 2 => None,
        Some(_) => return Err("only one bank answers".into()),
        None if ballots.iter().filter(|(_, b)| absent(b)).count() >= 2 => Some(Voted::Absent),
        None => {
            return Err(format!(
                "{damaged} copies are damaged, {absences} absent, {} banks silent",
                3usize.saturating_sub(ballots.len())
            ));
        }
    };
    let voted = match (voted, best) {
        (Some(v), _) => v,
        (None, Some((_, version, digest, value))) => {
            Voted::Record { version, digest, value: value.clone() }
        }
        (None, None) => return Err("no copy".into()),
    };
    let losers = ballots
        .iter()
        .filter(|(_, b)| match (&voted, b) {
            (Voted::Absent, b) => !absent(b),
            (Voted::Record { version, digest, .. }, Ballot::Whole { version: v, digest: d, .. }) => {
                (version, digest) != (v, d)
            }
            (Voted::Record { value: None, .. }, Ballot::Absent) => false,
            _ => true,
        })
        .map(|(b, _)| *b)
        .collect();
    Ok((voted, losers))
}

/// Values of keys of any shards; pending ones from memory.
pub(crate) async fn get(
    shared: &Arc<Shared>,
    keys: Vec<(u16, Key)>,
) -> Result<Vec<Option<Stored>>, VolumeError> {
    let mut out: Vec<Option<Option<Stored>>> = {
        let core = shared.core.lock();
        keys.iter().map(|(_, k)| core.pending(k)).collect()
    };
    let mut by_shard: BTreeMap<u16, Vec<usize>> = BTreeMap::new();
    for (i, (shard, _)) in keys.iter().enumerate() {
        if out[i].is_none() {
            by_shard.entry(*shard).or_default().push(i);
        }
    }
    let asked = by_shard.into_iter().map(|(shard, at)| {
        let wanted: Vec<Key> = at.iter().map(|i| keys[*i].1.clone()).collect();
        async move { (at, vote(shared, shard, &wanted).await) }
    });
    for (at, answer) in futures_util::future::join_all(asked).await {
        for (i, v) in at.into_iter().zip(answer?) {
            out[i] = Some(v.stored());
        }
    }
    // What was submitted meanwhile is newer.
    let core = shared.core.lock();
    for (i, (_, k)) in keys.iter().enumerate() {
        if let Some(p) = core.pending(k) {
            out[i] = Some(p);
        }
    }
    Ok(out.into_iter().map(Option::flatten).collect())
}

/// A page of live records of one shard, pending changes laid over it.
pub(crate) async fn scan(
    shared: &Arc<Shared>,
    shard: u16,
    start: Key,
    end: Key,
    limit: usize,
) -> Result<Page, VolumeError> {
    let before = shared.core.lock().pending_range(shard, &start, &end);
    let stop = Instant::now() + shared.limits.read_deadline();
    let mut pause = Duration::from_millis(5);
    let (mut records, next) = loop {
        if let Some(f) = &shared.core.lock().fenced {
            return Err(VolumeError::Fenced(f.clone()));
        }
        match scan_once(shared, shard, &start, &end, limit, stop).await {
            Ok(page) => break page,
            Err(ScanError::Final(e)) => return Err(e),
            Err(ScanError::Again(why)) if Instant::now() + pause >= stop => {
                add(&shared.metrics.reads_failed, 1);
                return Err(VolumeError::Unavailable(why));
            }
            Err(ScanError::Again(_)) => tokio::time::sleep(pause).await,
        }
        pause = (pause * 2).min(Duration::from_millis(200));
    };
    let after = shared.core.lock().pending_range(shard, &start, &end);
    for (key, change) in before.into_iter().chain(after) {
        // Beyond this page the next one will tell.
        if next.as_ref().is_some_and(|n| key >= *n) {
            continue;
        }
        match change {
            Some(s) => records.insert(key, s),
            None => records.remove(&key),
        };
    }
    Ok(Page { records: records.into_iter().collect(), next })
}

enum ScanError {
    Again(String),
    Final(VolumeError),
}

type Scanned = (BTreeMap<Key, Stored>, Option<Key>);

async fn scan_once(
    shared: &Arc<Shared>,
    shard: u16,
    start: &Key,
    end: &Key,
    limit: usize,
    stop: Instant,
) -> Result<Scanned, ScanError> {
    let (through, readers) = shared.readers(shard, TURN.fetch_add(1, Ordering::Relaxed));
    if readers.len() < 2 {
        return Err(ScanError::Again("two up-to-date banks are needed to list".into()));
    }
    let request = |values: bool| Request::Scan {
        start: start.clone(),
        end: end.clone(),
        limit: limit.min(100_000) as u32,
        values,
        through,
    };
    let ask = |i: usize, values: bool| {
        let (bank, store) = readers[i];
        let r = request(values);
        async move {
            let a = shared.call(shard, bank, store, r, vec![], shared.limits.call_deadline()).await;
            (i, a.map(|(reply, bulk)| (values, reply, bulk)))
        }
    };
    // The first that comes with values and one other; a late one is hedged by the third.
    let mut flying = FuturesUnordered::new();
    flying.push(ask(0, true));
    flying.push(ask(1, false));
    let mut asked = 2;
    let mut whole: Option<(Vec<RecordHead>, BTreeSet<Key>, Option<Key>, Bytes)> = None;
    let mut witness: Option<(Vec<RecordHead>, Option<Key>)> = None;
    let mut why = String::from("late");
    while whole.is_none() || witness.is_none() {
        let hedge = Duration::from_millis(shared.limits.hedge_ms);
        let left = stop.saturating_duration_since(Instant::now());
        let wait = if asked < 3 { hedge.min(left) } else { left };
        match tokio::time::timeout(wait, flying.next()).await {
            Ok(Some((_, Ok((values, Reply::Records { records, damaged, next, .. }, bulk))))) => {
                if values && whole.is_none() {
                    whole = Some((records, damaged.into_iter().collect(), next, bulk));
                } else {
                    witness = Some((records, next));
                }
            }
            Ok(Some((i, other))) => {
                why = match other {
                    Ok((_, reply, _)) => unexpected(&reply).to_string(),
                    Err(e) => format!("bank {}: {e}", readers[i].0),
                };
                if asked < readers.len() {
                    flying.push(ask(asked, true));
                    asked += 1;
                } else if flying.is_empty() {
                    return Err(ScanError::Again(why));
                }
            }
            Ok(None) => return Err(ScanError::Again(why)),
            Err(_) if asked < readers.len() => {
                for (bank, _) in readers.iter().take(2) {
                    shared.waiting(shard, *bank);
                }
                add(&shared.metrics.hedges, 1);
                flying.push(ask(asked, true));
                asked += 1;
            }
            Err(_) => {
                asked = 3;
                if Instant::now() >= stop {
                    return Err(ScanError::Again(why));
                }
            }
        }
    }
    let (Some((heads, damaged, next_a, bulk)), Some((others, next_b))) = (whole, witness) else {
        return Err(ScanError::Again(why));
    };
    merge(shared, shard, heads, &damaged, next_a, &bulk, others, next_b).await.map_err(|e| match e {
        VolumeError::Unavailable(w) => ScanError::Again(w),
        e => ScanError::Final(e),
    })
}

/// Lays the two listings side by side; keys in which they differ are voted on one by one.
#[allow(clippy::too_many_arguments, reason = "two listings, spelled out")]
async fn merge(
    shared: &Arc<Shared>,
    shard: u16,
    heads: Vec<RecordHead>,
    damaged: &BTreeSet<Key>,
    next_a: Option<Key>,
    bulk: &Bytes,
    others: Vec<RecordHead>,
    next_b: Option<Key>,
) -> Result<Scanned, VolumeError> {
    // Only what both have covered counts; `next` of a scan is the key behind its last one.
    let behind = |k: Key| {
        let mut k = k;
        k.push(0);
        k
    };
    let next = match (next_a.map(behind), next_b.map(behind)) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    };
    let inside = |k: &Key| next.as_ref().is_none_or(|n| k < n);
    let mut second: BTreeMap<Key, (Version, Digest)> = others
        .into_iter()
        .filter(|h| inside(&h.key))
        .map(|h| (h.key, (h.version, h.digest)))
        .collect();
    let mut records = BTreeMap::new();
    let mut disputed = Vec::new();
    let mut at = 0usize;
    let newest = shared.core.lock().watermark;
    for h in heads {
        let n = h.len.unwrap_or(0) as usize;
        let is_damaged = damaged.contains(&h.key);
        let value = if is_damaged {
            Bytes::new()
        } else {
            if at + n > bulk.len() {
                return Err(VolumeError::Unavailable("a listing was cut short".into()));
            }
            let v = bulk.slice(at..at + n);
            at += n;
            v
        };
        if !inside(&h.key) {
            continue;
        }
        let agreed = second.remove(&h.key) == Some((h.version, h.digest));
        if agreed && !is_damaged && h.version <= newest && digest(&h.key, h.version, Some(&value)) == h.digest {
            records.insert(h.key, Stored { version: h.version, value });
        } else {
            disputed.push(h.key);
        }
    }
    disputed.extend(second.into_keys());
    if !disputed.is_empty() {
        let verdicts = vote(shared, shard, &disputed).await?;
        for (key, v) in disputed.into_iter().zip(verdicts) {
            if let Some(s) = v.stored() {
                records.insert(key, s);
            }
        }
    }
    Ok((records, next))
}

/// Bytes as hexadecimal, at most 32 of them, for messages.
pub(crate) fn hex(b: &[u8]) -> String {
    b.iter().take(32).map(|x| format!("{x:02x}")).collect()
}
