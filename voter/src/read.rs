//! Reading (rule 6): values from one up-to-date voter, heads of the same keys from another; the
//! third only where they do not agree, or when one is late. What loses is ordered to be repaired.

use crate::bank::BankError;
use crate::link::unexpected;
use crate::metrics::add;
use crate::quorum::{Fanout, Step, Usable};
use crate::shared::Shared;
use crate::together;
use crate::volume::{Page, Stored, VolumeError};
use crate::vote::{Ballot, Limit, Verdict, fixes, tally};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use storenode::wire::{
    BankId, Digest, Found, Key, Keys, PerBank, RecordHead, Reply, Request, StoreId, Version, digest,
};
use tokio::time::Instant;

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
#[derive(Clone, Debug, Default)]
pub(crate) struct Answer {
    pub(crate) ballot: Ballot,
    /// The value, where the ballot is [`Ballot::Valid`] and no tombstone.
    pub(crate) value: Option<Bytes>,
    /// The version it claims, whatever it is worth: removing a foreign record names it.
    pub(crate) claimed: Option<Version>,
}

/// The answers of the three banks for one key.
pub(crate) type Answers = PerBank<Answer>;

/// Tallies and takes the winner's value along.
pub(crate) fn conclude(answers: &Answers) -> Result<Voted, Verdict> {
    let ballots = PerBank::from_fn(|b| answers[b].ballot);
    match tally(&ballots) {
        Verdict::Value { from, version, digest } => {
            Ok(Voted::Record { version, digest, value: answers[from].value.clone() })
        }
        Verdict::Tombstone { version, digest, .. } => {
            Ok(Voted::Record { version, digest, value: None })
        }
        Verdict::Absent => Ok(Voted::Absent),
        other => Err(other),
    }
}

/// Votes on keys of one shard that are not pending.
pub(crate) async fn vote(
    shared: &Arc<Shared>,
    shard: u16,
    keys: &Keys,
) -> Result<Vec<Voted>, VolumeError> {
    let deadline = shared.limits.read_deadline();
    let mut limit = Instant::now() + deadline;
    let mut turn = match together::vote(shared, shard, keys, limit).await {
        Ok(voted) => return Ok(voted),
        Err(turn) => turn,
    };
    if keys.len() <= KEYS_MAX {
        return vote_chunk(shared, shard, keys, turn, limit).await;
    }
    let mut out = Vec::with_capacity(keys.len());
    for chunk in keys.chunks(KEYS_MAX) {
        out.extend(vote_chunk(shared, shard, &chunk.into(), turn, limit).await?);
        (turn, limit) = (shared.next_turn(), Instant::now() + deadline);
    }
    Ok(out)
}

/// One attempt, for as long as a call takes at most: the keys' verdicts, `None` where two banks did not agree
/// at once; as many as `keys`.
pub(crate) async fn vote_once(
    shared: &Arc<Shared>,
    shard: u16,
    keys: &Keys,
    turn: usize,
    limit: Instant,
) -> Vec<Option<Voted>> {
    let nothing = || keys.iter().map(|_| None).collect();
    if shared.core.lock().fenced.is_some() {
        return nothing();
    }
    // A call ends by its own deadline first, which is noted against its bank.
    let patience = shared.limits.call_deadline() + Duration::from_millis(shared.limits.hedge_ms);
    let limit = limit.min(Instant::now() + patience);
    let Ok(readers) = readers(shared, shard, turn) else { return nothing() };
    match first_round(shared, shard, keys, &readers, limit).await {
        Ok((verdicts, _)) => {
            add(&shared.metrics.reads, verdicts.iter().flatten().count());
            check_behind(shared, shard, keys, &verdicts);
            verdicts
        }
        Err(_) => nothing(),
    }
}

async fn vote_chunk(
    shared: &Arc<Shared>,
    shard: u16,
    keys: &Keys,
    mut turn: usize,
    limit: Instant,
) -> Result<Vec<Voted>, VolumeError> {
    add(&shared.metrics.reads, keys.len());
    let mut pause = Duration::from_millis(5);
    loop {
        if let Some(f) = &shared.core.lock().fenced {
            return Err(VolumeError::Fenced(f.clone()));
        }
        let why = match attempt(shared, shard, keys, turn, limit).await {
            Ok(Ok(v)) => {
                let v: Vec<Option<Voted>> = v.into_iter().map(Some).collect();
                check_behind(shared, shard, keys, &v);
                return Ok(v.into_iter().flatten().collect());
            }
            // A verdict of "not decidable" with all three heard does not change by asking again...
            Ok(Err(NoVerdict { why: w, heard })) => {
                if heard >= 3 {
                    add(&shared.metrics.reads_failed, 1);
                    return Err(VolumeError::Damaged(w));
                }
                w
            }
            Err(e) => e,
        };
        if Instant::now() + pause >= limit {
            add(&shared.metrics.reads_failed, 1);
            return Err(VolumeError::Unavailable(why));
        }
        // ...but a bank that is away may come back before the deadline.
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(200));
        turn = shared.next_turn();
    }
}

fn check_behind(shared: &Arc<Shared>, shard: u16, keys: &Keys, voted: &[Option<Voted>]) {
    let len = |v: &Option<Voted>| match v {
        Some(Voted::Record { value: Some(value), .. }) => Some(value.len() as u64),
        _ => None,
    };
    let bytes = voted.iter().filter_map(len).sum();
    let found = match voted.iter().all(|v| len(v).is_some()) {
        true => keys.clone(),
        false => keys
            .iter()
            .zip(voted)
            .filter(|(_, v)| len(v).is_some())
            .map(|(k, _)| k.clone())
            .collect(),
    };
    shared.order_check(shard, found, bytes);
}

struct NoVerdict {
    why: String,
    heard: usize,
}

type Ask = (BankId, Result<Vec<Answer>, BankError>);

/// The position to read at, and who may be asked, in the order of this read.
type Readers = (Version, Vec<(BankId, StoreId)>);

fn readers(shared: &Arc<Shared>, shard: u16, turn: usize) -> Result<Readers, String> {
    let (through, readers) = shared.readers(shard, turn);
    match readers.len() {
        2.. => Ok((through, readers)),
        n => Err(format!("{n} of 3 banks are up to date, 2 are needed")),
    }
}

/// Asks two voters, and the third where needed. The inner error: no verdict for some key.
async fn attempt(
    shared: &Arc<Shared>,
    shard: u16,
    keys: &Keys,
    turn: usize,
    limit: Instant,
) -> Result<Result<Vec<Voted>, NoVerdict>, String> {
    let who = readers(shared, shard, turn)?;
    let (mut verdicts, mut why) = first_round(shared, shard, keys, &who, limit).await?;
    let open: Vec<usize> = (0..keys.len()).filter(|k| verdicts[*k].is_none()).collect();
    if open.is_empty() {
        return Ok(Ok(verdicts.into_iter().flatten().collect()));
    }
    // Round two, for the keys without a verdict: everybody, with values.
    let (through, readers) = who;
    add(&shared.metrics.disputes, open.len());
    let subset: Keys = open.iter().map(|k| keys[*k].clone()).collect();
    let ask_bank = |(bank, store): (BankId, StoreId)| {
        let keys = subset.clone();
        async move { (bank, ask(shared, shard, bank, store, keys, through, true).await) }
    };
    let all: FuturesUnordered<_> = readers.iter().copied().map(ask_bank).collect();
    let patience = Duration::from_millis(shared.limits.hedge_ms) * 4;
    let answers = collect_within(all, readers.len(), patience, limit).await;
    let (tables, heard) = tabulate(subset.len(), answers, &mut why);
    let floor = shared.core.lock().shards[shard as usize].floor;
    for (n, k) in open.iter().enumerate() {
        match conclude(&tables[n]) {
            Ok(voted) => {
                if needs_repair(&tables[n], floor, through) {
                    tracing::warn!(shard, key = %hex(&keys[*k]), "a replica differs; repairing");
                    shared.order_repair(shard, keys[*k].clone());
                }
                verdicts[*k] = Some(voted);
            }
            Err(verdict) => {
                let reason = match verdict {
                    Verdict::Undecided(w) => w.to_string(),
                    _ => "no verdict".into(),
                };
                let why = format!("key {} of shard {shard}: {reason} {why}", hex(&keys[*k]));
                return Ok(Err(NoVerdict { why, heard }));
            }
        }
    }
    Ok(Ok(verdicts.into_iter().flatten().collect()))
}

/// Round one: values from the first, heads from the second; the third only if one is late. The verdicts
/// where two banks agree, and why a bank did not answer.
async fn first_round(
    shared: &Arc<Shared>,
    shard: u16,
    keys: &Keys,
    (through, readers): &Readers,
    limit: Instant,
) -> Result<(Vec<Option<Voted>>, String), String> {
    let store_of = |bank: BankId| readers.iter().find(|(b, _)| *b == bank).map(|(_, s)| *s);
    let usable = Usable::from_fn(|b| store_of(b).is_some());
    let ask_bank = |bank: BankId, values: bool| {
        let (store, keys) = (store_of(bank).unwrap_or(StoreId::ZERO), keys.clone());
        async move { (bank, ask(shared, shard, bank, store, keys, *through, values).await) }
    };
    let mut tables: Vec<Answers> = vec![Answers::default(); keys.len()];
    for (b, _) in PerBank([(); 3]).iter() {
        if !usable.contains(b) {
            for t in &mut tables {
                t[b].ballot = Ballot::Silent;
            }
        }
    }
    let mut order = readers.iter().map(|(b, _)| *b).collect::<Vec<_>>();
    order.extend(BankId::ALL.into_iter().filter(|b| !usable.contains(*b)));
    let hedge = Duration::from_millis(shared.limits.hedge_ms);
    let mut fanout = Fanout::new(usable, [order[0], order[1], order[2]], 2, hedge);
    let began = Instant::now();
    let mut flying = FuturesUnordered::new();
    let mut asked: Vec<BankId> = Vec::new();
    let mut why = String::new();
    loop {
        let wait = match fanout.next(began.elapsed()) {
            Step::Done | Step::OutOfReach => break,
            Step::Ask(bank) => {
                if asked.len() >= 2 {
                    add(&shared.metrics.hedges, 1);
                    for late in asked.iter().filter(|b| tables[0][**b].ballot == Ballot::NotAsked) {
                        shared.overtaken(shard, *late);
                    }
                }
                flying.push(ask_bank(bank, asked.len() != 1));
                asked.push(bank);
                continue;
            }
            Step::Wait(until) => {
                let until = until.map_or(limit, |d| (began + d).min(limit));
                until.saturating_duration_since(Instant::now())
            }
        };
        match tokio::time::timeout(wait, flying.next()).await {
            Ok(Some((bank, answer))) => match answer {
                Ok(answers) => {
                    fanout.answered(bank);
                    lay(&mut tables, bank, answers);
                }
                Err(e) => {
                    fanout.failed(bank);
                    why = format!("bank {bank}: {e}");
                    for t in &mut tables {
                        t[bank].ballot = Ballot::Silent;
                    }
                }
            },
            Ok(None) => break,
            Err(_) if Instant::now() >= limit => return Err("no answer in time".into()),
            Err(_) => {}
        }
    }
    Ok((tables.iter().map(|t| conclude(t).ok()).collect(), why))
}

fn lay(tables: &mut [Answers], bank: BankId, answers: Vec<Answer>) {
    for (t, a) in tables.iter_mut().zip(answers) {
        t[bank] = a;
    }
}

/// Answers by key; banks that did not answer are silent. Also how many did.
pub(crate) fn tabulate(n: usize, answers: Vec<Ask>, why: &mut String) -> (Vec<Answers>, usize) {
    let silent = || Answer { ballot: Ballot::Silent, ..Answer::default() };
    let mut tables: Vec<Answers> = (0..n).map(|_| PerBank::from_fn(|_| silent())).collect();
    let mut heard = 0;
    for (bank, answer) in answers {
        match answer {
            Ok(a) => {
                heard += 1;
                lay(&mut tables, bank, a);
            }
            Err(e) => *why = format!("(bank {bank}: {e})"),
        }
    }
    (tables, heard)
}

fn needs_repair(answers: &Answers, floor: Version, through: Version) -> bool {
    let ballots = PerBank::from_fn(|b| answers[b].ballot);
    let verdict = tally(&ballots);
    let foreign = matches!(verdict, Verdict::Absent | Verdict::Tombstone { .. })
        && answers.iter().any(|(_, a)| a.ballot == Ballot::Damaged);
    foreign || fixes(&ballots, &verdict, floor, through).iter().any(|(_, f)| f.is_some())
}

/// All answers, but once two are in not longer than `patience` for the third.
async fn collect_within(
    mut all: FuturesUnordered<impl Future<Output = Ask>>,
    n: usize,
    patience: Duration,
    limit: Instant,
) -> Vec<Ask> {
    let mut out: Vec<Ask> = Vec::with_capacity(n);
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

/// One node's answers. Values are verified here; what does not verify is damaged.
pub(crate) async fn ask(
    shared: &Arc<Shared>,
    shard: u16,
    bank: BankId,
    store: StoreId,
    keys: Keys,
    through: Version,
    values: bool,
) -> Result<Vec<Answer>, BankError> {
    let n = keys.len();
    let request = if values {
        Request::Read { keys: keys.clone(), through }
    } else {
        Request::Digests { keys: keys.clone(), through }
    };
    let (reply, bulk) =
        shared.call(shard, bank, store, request, vec![], shared.limits.call_deadline()).await?;
    let Reply::Found { items, applied } = reply else { return Err(unexpected(&reply)) };
    if items.len() != n {
        return Err(BankError::Garbled(format!("{} answers to {n} keys", items.len())));
    }
    // Trap 26: what lies beyond anything committed is forged. The limit is read after the answer:
    // the node may rightly know a later group than the one that was asked for.
    let (newest, ends) = {
        let core = shared.core.lock();
        (core.watermark, core.ends.clone())
    };
    let newest = shared.credible(newest, applied);
    let limit = Limit { through: newest, ends: &ends };
    let mut at = 0usize;
    let mut out = Vec::with_capacity(n);
    for (key, item) in keys.iter().zip(items) {
        let (mut value, mut claimed) = (None, None);
        match &item {
            Found::Record { version, len, .. } => {
                claimed = Some(*version);
                if let (Some(len), true) = (len, values) {
                    let end = at + *len as usize;
                    if end > bulk.len() {
                        return Err(BankError::Garbled("values cut short".into()));
                    }
                    value = Some(bulk.slice(at..end));
                    at = end;
                }
            }
            Found::Damaged { what } => {
                tracing::warn!(%bank, shard, key = %hex(key), %what, "damaged record");
            }
            Found::Absent => {}
        }
        let ballot = Ballot::weigh(key, &item, value.as_deref(), limit);
        out.push(Answer { ballot, value, claimed });
    }
    Ok(out)
}

/// Values of keys of any shards; pending ones from memory.
pub(crate) async fn get(
    shared: &Arc<Shared>,
    keys: Vec<(u16, Key)>,
) -> Result<Vec<Option<Stored>>, VolumeError> {
    let mut out: Vec<Option<Stored>> = vec![None; keys.len()];
    let mut by_shard: BTreeMap<u16, (Vec<usize>, Vec<Key>)> = BTreeMap::new();
    let mut pending: Vec<(usize, Key)> = Vec::new();
    {
        let core = shared.core.lock();
        for (i, (shard, key)) in keys.into_iter().enumerate() {
            match core.pending(&key) {
                Some(value) => {
                    out[i] = value;
                    pending.push((i, key));
                }
                None => {
                    let (at, wanted) = by_shard.entry(shard).or_default();
                    at.push(i);
                    wanted.push(key);
                }
            }
        }
    }
    let asked = by_shard.into_iter().map(|(shard, (at, wanted))| async move {
        let wanted = Keys::from(wanted);
        let answer = vote(shared, shard, &wanted).await;
        (at, wanted, answer)
    });
    let asked = futures_util::future::join_all(asked).await;
    // What was submitted meanwhile is newer: all of it, for it may belong together.
    let core = shared.core.lock();
    for (at, wanted, answer) in asked {
        for ((i, key), voted) in at.into_iter().zip(&*wanted).zip(answer?) {
            out[i] = core.pending(key).unwrap_or_else(|| voted.stored());
        }
    }
    for (i, key) in pending {
        if let Some(newer) = core.pending(&key) {
            out[i] = newer;
        }
    }
    Ok(out)
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

/// Heads, damaged keys, cursor and values of one bank's page.
type WholePage = (Vec<RecordHead>, BTreeSet<Key>, Option<Key>, Bytes);

type Scanned = (BTreeMap<Key, Stored>, Option<Key>);

async fn scan_once(
    shared: &Arc<Shared>,
    shard: u16,
    start: &Key,
    end: &Key,
    limit: usize,
    stop: Instant,
) -> Result<Scanned, ScanError> {
    let (through, readers) = shared.readers(shard, shared.next_turn());
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
    let mut whole: Option<WholePage> = None;
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
                    shared.overtaken(shard, *bank);
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
    merge(shared, shard, heads, &damaged, next_a, &bulk, others, next_b).await.map_err(
        |e| match e {
            VolumeError::Unavailable(w) => ScanError::Again(w),
            e => ScanError::Final(e),
        },
    )
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
    // An observer knows no newer commit than it last saw; there two nodes that agree are enough.
    let newest = shared.credible(shared.core.lock().watermark, Version::new(u64::MAX, u64::MAX));
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
        if agreed
            && !is_damaged
            && h.version <= newest
            && digest(&h.key, h.version, Some(&value)) == h.digest
        {
            records.insert(h.key, Stored { version: h.version, value });
        } else {
            disputed.push(h.key);
        }
    }
    disputed.extend(second.into_keys());
    if !disputed.is_empty() {
        let disputed = Keys::from(disputed);
        let verdicts = vote(shared, shard, &disputed).await?;
        for (key, v) in disputed.iter().cloned().zip(verdicts) {
            if let Some(s) = v.stored() {
                records.insert(key, s);
            }
        }
    }
    let bytes = records.values().map(|s: &Stored| s.value.len() as u64).sum();
    shared.order_check(shard, records.keys().cloned().collect(), bytes);
    Ok((records, next))
}

/// Bytes as hexadecimal, at most 32 of them, for messages.
pub(crate) fn hex(b: &[u8]) -> String {
    b.iter().take(32).map(|x| format!("{x:02x}")).collect()
}
