//! One task per replica: finds the node, fences and attaches it, brings it up to where the others
//! are, and from then on sends it every part of its shard. Ends never: a node that is away is probed
//! for ever, so an outage that ends leaves no trace.

use crate::bank::BankError;
use crate::catchup;
use crate::course::{Course, Told, course};
use crate::health::{Event, Health};
use crate::metrics::add;
use crate::shared::{Shared, stopped};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use std::sync::Arc;
use std::time::Duration;
use storenode::wire::{
    BankId, NodeError, Position, Reply, Request, Role, Status, StoreId, Version,
};

/// Why a session with a node ended, for people; the link begins a new one.
#[derive(Debug, thiserror::Error)]
pub(crate) enum End {
    #[error("{0}")]
    Bank(#[from] BankError),
    #[error("{0}")]
    Other(String),
    #[error("closed")]
    Stopped,
}

/// Runs until the mount closes, or is fenced: whoever took the volume over looks after the nodes now.
pub(crate) async fn run(shared: Arc<Shared>, shard: u16, bank: BankId) {
    while !shared.stopping() && !shared.is_fenced() {
        let end = tokio::select! {
            biased;
            end = session(&shared, shard, bank) => end,
            () = stopped(shared.stop.subscribe()) => End::Stopped,
        };
        if matches!(end, End::Stopped) {
            return;
        }
        let pause = down(&shared, shard, bank, &end);
        let rest = async {
            strike_out(&shared, shard, bank).await;
            tokio::time::sleep(pause).await;
        };
        tokio::select! {
            biased;
            () = rest => {}
            () = stopped(shared.stop.subscribe()) => return,
        }
    }
}

/// Notes that a replica went; returns how long to wait before it is probed again.
fn down(shared: &Shared, shard: u16, bank: BankId, end: &End) -> Duration {
    let why = end.to_string();
    let event = match end {
        End::Bank(e) if e.is_away() => Event::Unreachable,
        _ => Event::Failed,
    };
    let now = shared.now();
    let mut core = shared.core.lock();
    let r = &mut core.shards[shard as usize].replicas[bank];
    let news = r.health.on(event, now).is_some() || r.why != why;
    if news {
        tracing::warn!(%bank, shard, node = %shared.banks[bank][shard as usize].name(), %why, "replica is down");
    }
    r.why = why;
    r.waiting_since = None;
    let at = r.health.probe_at().unwrap_or(now);
    let longest = Duration::from_millis(shared.limits.probe_longest_ms);
    at.saturating_sub(now).clamp(Duration::from_millis(shared.limits.probe_first_ms), longest)
}

/// Rule 8 for a replica that is away: when more deletions must be remembered for it than the limit, it
/// is struck out. One that went a moment ago is waited for: it may be about to catch up, and one of the
/// two that would be left may have gone with nobody knowing it yet.
async fn strike_out(shared: &Arc<Shared>, shard: u16, bank: BankId) {
    if shared.observing {
        return;
    }
    let due = {
        let core = shared.core.lock();
        let s = &core.shards[shard as usize];
        let health = &s.replicas[bank].health;
        let away = shared.now().saturating_sub(health.away_since());
        let long = health.health() == Health::Down && away >= shared.limits.strike_after();
        long && s.may_strike(bank)
    };
    if !due {
        return;
    }
    // Both must be there now, and not only be remembered as up to date.
    let Ok(others) = other_voters(shared, shard, bank).await else { return };
    let tombstones = others.iter().map(|s| s.space.tombstones).min().unwrap_or_default();
    if tombstones <= shared.limits.tombstones_max {
        return;
    }
    if let Some(floor) = shared.core.lock().shards[shard as usize].strike(bank) {
        add(&shared.metrics.struck, 1);
        tracing::warn!(
            %bank, shard, tombstones, %floor,
            "struck out: away while more deletions had to be remembered for it than limits.tombstones_max; \
             when it returns it is filled anew"
        );
    }
}

/// What a node's status means for its replica.
#[derive(Debug, PartialEq, Eq)]
enum Standing {
    /// The configured voter: attach it.
    Voter,
    /// A new store on its way in.
    Filling,
    /// Must begin anew under a new store id; why.
    Refill(String),
    /// Leave it alone; what a person should do.
    Leave(String),
}

/// Rule 5b and 8 for one node. `mark` is the highest position this replica is known to have acked.
fn standing(shared: &Shared, s: &Status, configured: Option<StoreId>, mark: Version) -> Standing {
    let addr = || format!("bank {} shard {}", s.bank, s.shard);
    match s.volume {
        None => return Standing::Refill(format!("{} is empty", addr())),
        Some(v) if v != shared.volume => {
            return Standing::Leave(format!(
                "{} holds a store of another volume ({v}): point the config at the right node, or empty its directory",
                addr()
            ));
        }
        Some(_) => {}
    }
    // What it promised and which configuration it knew is gone: as good as empty.
    if s.shards == 0 {
        return Standing::Refill(format!("{} lost its state files", addr()));
    }
    if let Some(why) = &s.failed {
        return Standing::Leave(format!("{} does not vote: {why}", addr()));
    }
    // A new store has no mark of its own until it is named.
    if s.role == Role::Filling && configured != Some(s.store) && s.damaged_through.is_none() {
        return Standing::Filling;
    }
    if configured != Some(s.store) && s.role != Role::Filling {
        return Standing::Refill(format!("{} holds a store that was replaced", addr()));
    }
    if s.position.high < mark {
        return Standing::Refill(format!(
            "{} stands at {} but had acked {mark}: it was rolled back",
            addr(),
            s.position.high
        ));
    }
    if let Some(v) = s.damaged_through {
        return Standing::Refill(format!("{}: its log is damaged through {v}", addr()));
    }
    if s.role == Role::Filling { Standing::Filling } else { Standing::Voter }
}

fn told(s: &Status, filling: bool) -> Told {
    Told {
        filling,
        applied: s.position.applied,
        held: s.space.records + s.space.tombstones,
        cursor: s.cursor.clone(),
    }
}

async fn session(shared: &Arc<Shared>, shard: u16, bank: BankId) -> End {
    match try_session(shared, shard, bank).await {
        Ok(()) => End::Stopped,
        Err(e) => e,
    }
}

async fn try_session(shared: &Arc<Shared>, shard: u16, bank: BankId) -> Result<(), End> {
    let short = shared.limits.call_deadline();
    let reply = shared.call(shard, bank, StoreId::ZERO, Request::Status, vec![], short).await?;
    let mut status = status_of(reply.0)?;
    if (status.bank, status.shard) != (bank, shard) {
        return Err(End::Other(format!(
            "the node at {} serves bank {} shard {}: the config says bank {bank} shard {shard}",
            shared.banks[bank][shard as usize].name(),
            status.bank,
            status.shard
        )));
    }
    let filling = prepare(shared, shard, bank, &mut status).await?;
    let store = status.store;
    let (cut, chain) = {
        let mut core = shared.core.lock();
        let cut = core.cut;
        let s = &mut core.shards[shard as usize];
        let r = &mut s.replicas[bank];
        r.store = store;
        r.votes = !filling;
        if filling {
            r.health.on(Event::IsFilling, shared.now());
        }
        r.copied = None;
        (cut, s.recent_above(status.position.applied))
    };
    let status = fence(shared, shard, bank, store).await?;
    let attach = Request::Attach { chain, cut };
    // Not the deadline of bulk: a lost answer must not keep a replica out of the vote for long, and an attach
    // that takes its time is done when it is asked for again.
    let p = position_of(shared.call(shard, bank, store, attach, vec![], short).await?.0)?;

    // From here parts flow; what lies before them is brought by replay or catch-up.
    let behind = {
        let mut core = shared.core.lock();
        let s = &mut core.shards[shard as usize];
        let replay = !filling && s.can_replay_from(p.position);
        // Parts that are not committed are all kept. So what must be copied is settled already, and
        // this replica may be the very one that what is not committed waits for.
        let (joint, floor) = (s.committed_end, s.floor);
        let r = &mut s.replicas[bank];
        r.cursor = if replay { p.position } else { joint };
        (!replay).then_some((joint, floor))
    };
    shared.attached(shard, bank, p);
    let rise = async {
        if let Some((joint, floor)) = behind {
            let told = Told { applied: p.applied, ..told(&status, filling) };
            let Course::From(cursor) = course(&told, joint, floor) else {
                return Err(End::Other("what it holds became too old just now".into()));
            };
            // It was filled and joined, and only not yet admitted.
            let joined = filling && p.position >= joint;
            let to = catchup::Place { shard, bank, store, filling };
            if shared.lacks_one(shard) {
                catchup::rise(shared, to, cursor, joint, joined).await?;
            } else {
                let own = shared.clone();
                let work = async move { catchup::rise(&own, to, cursor, joint, joined).await };
                let broken = || End::Other("the copy broke off".into());
                shared.background.run(work).await.ok_or_else(broken)??;
            }
        }
        std::future::pending::<Result<(), End>>().await
    };
    tokio::select! {
        biased;
        r = pump(shared, shard, bank, store) => r,
        r = rise => r,
    }
}

/// Decides what a node is, and begins anew with what must be filled anew. True: a store on its way in.
async fn prepare(
    shared: &Arc<Shared>,
    shard: u16,
    bank: BankId,
    status: &mut Status,
) -> Result<bool, End> {
    let (configured, mark, floor, joint) = {
        let mut core = shared.core.lock();
        let s = &mut core.shards[shard as usize];
        // Admitted by a session of this mount that broke before it heard the answer. Nobody else changes
        // a configuration while this mount holds the volume, and both other voters kept this one first.
        if status.role == Role::Voter
            && status.configuration.number > s.configuration.number
            && status.configuration.stores[bank] == Some(status.store)
        {
            s.configuration = status.configuration;
        }
        // From here on the floor waits for it again: what it lacks is looked at against this one.
        s.replicas[bank].struck = false;
        (s.configuration.stores[bank], s.replicas[bank].mark, s.floor, s.committed_end)
    };
    let verdict = match standing(shared, status, configured, mark) {
        good @ (Standing::Voter | Standing::Filling) => {
            // Tombstones up to the floor are gone at the others: a delta would miss them.
            let filling = good == Standing::Filling;
            match course(&told(status, filling), joint, floor) {
                Course::From(_) => good,
                Course::Anew => Standing::Refill(format!(
                    "bank {bank} shard {shard} was struck out: it was away too long, deletions through {floor} are forgotten"
                )),
            }
        }
        other => other,
    };
    // What was never a voter may be emptied without asking.
    let counts_for_nothing = status.role == Role::Filling && configured != Some(status.store);
    let refilling = |on| {
        shared.core.lock().shards[shard as usize].replicas[bank].refilling = on;
    };
    if matches!(verdict, Standing::Leave(_) | Standing::Refill(_)) {
        shared.core.lock().distrust(shard, bank);
    }
    match verdict {
        Standing::Voter => {
            refilling(false);
            Ok(false)
        }
        Standing::Filling => {
            refilling(true);
            Ok(true)
        }
        Standing::Leave(why) => Err(End::Other(why)),
        Standing::Refill(why) => {
            let voter = status.role == Role::Voter && configured == Some(status.store);
            let missing = if voter { other_voters(shared, shard, bank).await.err() } else { None };
            let waits_for = missing.or_else(|| {
                let s = &mut shared.core.lock().shards[shard as usize];
                let other =
                    BankId::ALL.into_iter().find(|b| *b != bank && s.replicas[*b].refilling);
                s.replicas[bank].refilling |= !voter || other.is_none();
                other.filter(|_| voter)
            });
            if let Some(other) = waits_for {
                // It obeys meanwhile: the configuration that admits the other is kept here too.
                fence(shared, shard, bank, status.store).await?;
                let until = format!("it waits until bank {other} is a voter");
                return Err(End::Other(format!("{why}; {until}")));
            }
            if !counts_for_nothing && !shared.may_replace(bank, shard) {
                refilling(false);
                return Err(End::Other(format!(
                    "{why}; `tercet replace {bank} {shard}` fills it anew"
                )));
            }
            tracing::warn!(%bank, shard, %why, "refilling under a new store id");
            *status = catchup::begin_refill(shared, shard, bank, status).await?;
            Ok(true)
        }
    }
}

/// What the two other banks say of themselves now, or one that is no voter. Both must keep the configuration
/// that admits a new store (rule 8), and an emptied store keeps none: where two must be filled anew, whichever
/// comes first, one is emptied only when the other has been admitted. One that is only behind or damaged keeps
/// it as well.
async fn other_voters(
    shared: &Arc<Shared>,
    shard: u16,
    bank: BankId,
) -> Result<Vec<Status>, BankId> {
    let configured = shared.core.lock().shards[shard as usize].configuration.stores;
    let short = shared.limits.call_deadline();
    let mut voters = Vec::with_capacity(2);
    for other in BankId::ALL.into_iter().filter(|b| *b != bank) {
        let ask = shared.call(shard, other, StoreId::ZERO, Request::Status, vec![], short).await;
        match ask.and_then(|(r, _)| status_of(r)) {
            Ok(s)
                if s.role == Role::Voter
                    && configured[other] == Some(s.store)
                    && s.failed.is_none() =>
            {
                voters.push(s);
            }
            _ => return Err(other),
        }
    }
    Ok(voters)
}

/// Has a node obey this mount.
async fn fence(
    shared: &Arc<Shared>,
    shard: u16,
    bank: BankId,
    store: StoreId,
) -> Result<Status, End> {
    let request = {
        let core = shared.core.lock();
        let (epoch, nonce) = (core.epoch, core.nonce);
        Request::Fence { epoch, nonce, holder: shared.holder.clone() }
    };
    let short = shared.limits.call_deadline();
    Ok(status_of(shared.call(shard, bank, store, request, vec![], short).await?.0)?)
}

/// Sends parts and beats until something breaks.
async fn pump(shared: &Arc<Shared>, shard: u16, bank: BankId, store: StoreId) -> Result<(), End> {
    let limits = &shared.limits;
    let mut pushed = shared.pushed.subscribe();
    let mut beat = tokio::time::interval(Duration::from_millis(limits.beat_ms));
    beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut flying = FuturesUnordered::new();
    let mut beating = false;
    // Half of the in-flight bound in one request keeps two streaming and a third small one free.
    let batch = (limits.in_flight_bytes / 4).clamp(1 << 20, 16 << 20);
    loop {
        while flying.len() < limits.append_window {
            let (parts, watermark) = {
                let mut core = shared.core.lock();
                let watermark = core.watermark;
                let s = &mut core.shards[shard as usize];
                let cursor = s.replicas[bank].cursor;
                if !s.can_replay_from(cursor) {
                    return Err(End::Other("fell behind what is kept for it".into()));
                }
                let parts = s.parts_after(cursor, batch);
                let Some(last) = parts.last() else { break };
                let r = &mut s.replicas[bank];
                r.cursor = last.version;
                r.waiting_since.get_or_insert_with(|| shared.now());
                (parts, watermark)
            };
            let lens = parts.iter().map(|p| p.bytes.len() as u32).collect();
            let bulk = parts.iter().flat_map(|p| p.bytes.iter().cloned()).collect();
            let request = Request::Append { lens, watermark };
            flying.push(send(
                shared,
                shard,
                bank,
                store,
                request,
                bulk,
                limits.bulk_deadline(),
                false,
            ));
        }
        tokio::select! {
            biased;
            _ = beat.tick(), if !beating => {
                // A beat is sent even while appends fly: it is what notices a node that hangs.
                beating = true;
                shared.waiting(shard, bank);
                let watermark = shared.core.lock().watermark;
                let request = Request::Beat { watermark, release: false };
                flying.push(send(shared, shard, bank, store, request, vec![], limits.call_deadline(), true));
            }
            Some((was_beat, answer)) = flying.next() => {
                beating &= !was_beat;
                let p = position_of(answer?.0)?;
                shared.acked(shard, bank, p);
                if !flying.is_empty() {
                    shared.waiting(shard, bank);
                }
            }
            () = pushed.changed() => {}
        }
    }
}

#[allow(clippy::too_many_arguments, reason = "one message, spelled out")]
async fn send(
    shared: &Arc<Shared>,
    shard: u16,
    bank: BankId,
    store: StoreId,
    request: Request,
    bulk: Vec<bytes::Bytes>,
    deadline: Duration,
    is_beat: bool,
) -> (bool, Result<(Reply, bytes::Bytes), BankError>) {
    (is_beat, shared.call(shard, bank, store, request, bulk, deadline).await)
}

/// The status in a reply.
pub(crate) fn status_of(reply: Reply) -> Result<Status, BankError> {
    match reply {
        Reply::Status(s) => Ok(*s),
        other => Err(unexpected(&other)),
    }
}

/// The position in a reply.
pub(crate) fn position_of(reply: Reply) -> Result<Position, BankError> {
    match reply {
        Reply::Position(p) => Ok(p),
        other => Err(unexpected(&other)),
    }
}

/// A reply of the wrong type.
pub(crate) fn unexpected(reply: &Reply) -> BankError {
    let text = format!("{reply:?}");
    BankError::Garbled(format!(
        "reply of another type: {}",
        text.chars().take(80).collect::<String>()
    ))
}

/// Is this refusal one that a little patience cures?
pub(crate) fn not_there_yet(e: &BankError) -> bool {
    matches!(e, BankError::Refused(NodeError::NotThere { .. }))
}
