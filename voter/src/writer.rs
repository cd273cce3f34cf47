//! The writer's state: the open group, what is on its way, what is committed. All of it stands
//! behind one short mutex; nothing here waits, sends or reads a clock.
//!
//! ```text
//!  submit -> [open group] --seal--> [groups in flight] --acks of two voters per shard--> committed
//!               overlay: newest value of every key not yet committed (reads are answered from it)
//! ```

#[cfg(test)]
mod tests;

use crate::commit::Commit;
use crate::health::{Health, StoreHealth};
use crate::limits::Limits;
use crate::volume::{Change, Op, Stored, VolumeError};
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use storenode::part::{PartHead, Pieces};
use storenode::wire::{
    BankId, Configuration, GROUP_BYTES_MAX, Key, OpeningMark, PART_RECORDS_MAX, PerBank, Position,
    StoreId, Version,
};
use tokio::time::Instant;

/// What the group being built does to one key.
#[derive(Debug)]
enum Pending {
    /// Write this; `new` = the key never existed before this group.
    Put { value: Bytes, new: bool },
    /// Write a tombstone.
    Delete,
    /// Nothing to write any more; the entry stays so that the overlay is cleaned with the group.
    Nothing,
}

#[derive(Debug)]
struct OpenKey {
    shard: u16,
    pending: Pending,
}

/// The group that operations join now.
#[derive(Debug, Default)]
struct OpenGroup {
    keys: BTreeMap<Key, OpenKey>,
    bytes: usize,
    since: Option<Instant>,
}

/// A closed group that is not committed.
#[derive(Debug)]
struct Flying {
    version: Version,
    shards: Vec<u16>,
    keys: Vec<Key>,
    bytes: usize,
    /// Closed because somebody waits for it.
    asked: bool,
}

/// Newest uncommitted value of a key.
#[derive(Debug)]
struct Overlaid {
    shard: u16,
    version: Version,
    /// `None` = deleted; `Err` = as before this group (retracted).
    value: Option<Bytes>,
}

/// A part as it is sent, kept until its replicas have it.
#[derive(Clone, Debug)]
pub(crate) struct SentPart {
    pub(crate) version: Version,
    pub(crate) predecessor: Version,
    pub(crate) bytes: Pieces,
    /// Bytes of all parts made for this shard, up to this one and with it.
    end: u64,
}

impl SentPart {
    /// Bytes of all parts before this one.
    fn start(&self) -> u64 {
        self.end - self.bytes.len() as u64
    }
}

/// How far one pass of a catch-up or refill came.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Copied {
    pub(crate) records: u64,
    pub(crate) bytes: u64,
    /// So many are to be copied, as a source counted when it began.
    pub(crate) of_records: u64,
    pub(crate) of_bytes: u64,
    /// When it began, since the mount began.
    pub(crate) began: Duration,
}

/// One of the three replicas of a shard, as the writer knows it.
#[derive(Debug)]
pub(crate) struct Replica {
    pub(crate) store: StoreId,
    pub(crate) health: StoreHealth,
    /// Why it is down, for people.
    pub(crate) why: String,
    /// Attached to this epoch and named in the configuration: its acks count.
    pub(crate) votes: bool,
    pub(crate) position: Position,
    /// Highest position it ever acked.
    pub(crate) mark: Version,
    /// Sent up to here.
    pub(crate) cursor: Version,
    pub(crate) last_answer: Option<Duration>,
    /// When the oldest unanswered request was sent. (All times: since the mount began.)
    pub(crate) waiting_since: Option<Duration>,
    /// A catch-up or refill under way.
    pub(crate) copied: Option<Copied>,
    /// Away, and passed by the floor, which does not wait for it: no voter any more, whatever the
    /// configuration says, until it was filled anew (docs/adr/0019).
    pub(crate) struck: bool,
    /// Its store is to be filled, or is being filled, and not admitted yet.
    pub(crate) refilling: bool,
}

impl Replica {
    /// A replica that is to be found, `now` since the mount began.
    pub(crate) fn unknown(store: StoreId, mark: Version, applied: Version, now: Duration) -> Self {
        let position =
            Position { position: Version::ZERO, applied, high: Version::ZERO, detached: None };
        Self {
            store,
            health: StoreHealth::new(now),
            why: "not attached yet".into(),
            votes: false,
            position,
            mark,
            cursor: Version::ZERO,
            last_answer: None,
            waiting_since: None,
            copied: None,
            struck: false,
            refilling: false,
        }
    }

    /// May answer reads and is compared by refreshes.
    pub(crate) fn is_up_to_date(&self) -> bool {
        self.votes && self.health.health() == Health::UpToDate
    }
}

/// One shard.
#[derive(Debug)]
pub(crate) struct Shard {
    pub(crate) configuration: Configuration,
    /// Last part made.
    pub(crate) chain_end: Version,
    /// Last part at or below the watermark: the `W` of rule 6.
    pub(crate) committed_end: Version,
    pub(crate) floor: Version,
    pub(crate) replicas: PerBank<Replica>,
    /// Recent parts, contiguous through `chain_end`.
    pub(crate) parts: VecDeque<SentPart>,
    /// Bytes of all parts made.
    made_bytes: u64,
    /// Versions of recent parts of this epoch, ascending: what an attaching replica may keep.
    recent: VecDeque<Version>,
}

/// Versions remembered per shard for [`Shard::recent_above`]; a replica further behind gives up its
/// unapplied parts and catches up.
const RECENT_MAX: usize = 65_536;
/// Groups on their way that somebody waits for; see [`Core::wants_seal`].
const ASKED_IN_FLIGHT_MAX: usize = 2;

/// Pace of those who write much while a replica lags; see [`Core::pace`].
const LAGGING_BYTES_PER_S: f64 = (64 << 20) as f64;
/// Who has not answered for so long is not waited for: it hangs.
const LAG_PATIENCE: Duration = Duration::from_millis(250);
/// So many bytes at once are much.
const MUCH_BYTES: usize = 128 << 10;

impl Shard {
    /// Versions of the chain above `applied`, if all of them are remembered.
    pub(crate) fn recent_above(&self, applied: Version) -> Vec<Version> {
        self.recent.iter().copied().filter(|v| *v > applied).collect()
    }

    /// Can parts be sent from here, without a catch-up? True when the first part behind `position`
    /// is still kept. When none is, all that were made have arrived everywhere; the end of the chain
    /// may be ahead of them, since a group is given its place there before its parts are encoded.
    pub(crate) fn can_replay_from(&self, position: Version) -> bool {
        let made = || self.recent.back().is_none_or(|v| position >= *v);
        self.parts.front().map_or_else(made, |p| position >= p.predecessor)
    }

    /// Parts behind `cursor`, about `bytes` of them, at most 256.
    pub(crate) fn parts_after(&self, cursor: Version, bytes: usize) -> Vec<SentPart> {
        let start = self.parts.partition_point(|p| p.version <= cursor);
        let mut sum = 0;
        self.parts
            .range(start..)
            .take(256)
            .take_while(|p| {
                let first = sum == 0;
                sum += p.bytes.len();
                first || sum <= bytes
            })
            .cloned()
            .collect()
    }

    /// The last part that two or three up-to-date replicas have applied durably, or a position before it,
    /// `but` not counted; `None` when fewer than two are up to date or one is not that should be. Never
    /// before a part that is not committed: a replica that has to apply it again would stand below it.
    fn applied_by_all(&self, but: Option<BankId>) -> Option<Version> {
        let mut others = self.replicas.iter().filter(|(b, r)| Some(*b) != but && !r.struck);
        let applied: Vec<Version> = others.try_fold(Vec::new(), |mut all, (_, r)| {
            all.push(r.position.applied);
            r.is_up_to_date().then_some(all)
        })?;
        let lowest = applied.iter().min().filter(|_| applied.len() >= 2)?;
        Some(self.committed_end.min(*lowest))
    }

    /// Could the floor pass this replica, which is away? Not when it lacks nothing, is struck out already, or
    /// the two others are not both up to date.
    pub(crate) fn may_strike(&self, bank: BankId) -> bool {
        let away = &self.replicas[bank];
        // What can be sent to it as it is needs no tombstones.
        let behind = !self.can_replay_from(away.position.position.max(away.mark));
        let raises = self.applied_by_all(Some(bank)).is_some_and(|lowest| self.floor < lowest);
        behind && !away.struck && raises
    }

    /// Rule 8, striking out: the floor goes on without a replica that is away. Only between two
    /// sessions with it: what is copied to it meanwhile would miss the deletions that are forgotten.
    /// It takes effect with the next part, which both others must ack, as the third cannot: whoever
    /// opens the volume later finds the floor on any of the two. Answers the new floor.
    pub(crate) fn strike(&mut self, bank: BankId) -> Option<Version> {
        if !self.may_strike(bank) {
            return None;
        }
        self.floor = self.applied_by_all(Some(bank))?;
        self.replicas[bank].struck = true;
        Some(self.floor)
    }

    /// Banks whose answers count for reads through `through`, best first: those that are not keeping
    /// others waiting, then in the order given by `turn`.
    pub(crate) fn readers(
        &self,
        through: Version,
        turn: usize,
        now: Duration,
        slow: Duration,
    ) -> Vec<BankId> {
        let mut banks: Vec<(bool, usize, BankId)> = self
            .replicas
            .iter()
            .filter(|(_, r)| r.is_up_to_date() && r.position.position >= through)
            .map(|(b, r)| {
                let waiting = r.waiting_since.is_some_and(|t| now.saturating_sub(t) > slow);
                let late = waiting || r.health.suspected(now);
                (late, (b.index() + 3 - turn % 3) % 3, b)
            })
            .collect();
        banks.sort_unstable();
        banks.into_iter().map(|(_, _, b)| b).collect()
    }

    /// Bytes of the parts up to `v`; those that are not kept any more count as well.
    fn bytes_through(&self, v: Version) -> u64 {
        match self.parts.partition_point(|p| p.version <= v).checked_sub(1) {
            Some(last) => self.parts[last].end,
            None => self.parts.front().map_or(self.made_bytes, SentPart::start),
        }
    }

    /// Is there a replica that answers, and lacks committed parts of over half of the bytes that are kept for
    /// one, and nothing yet that is not?
    fn lags(&self, replay_bytes: u64, now: Duration) -> bool {
        let kept = self.parts.front().map_or(0, |front| self.made_bytes - front.start());
        if kept <= replay_bytes / 2 {
            return false;
        }
        let committed = self.bytes_through(self.committed_end);
        self.replicas.iter().any(|(_, r)| {
            // What it has of one that is copied to ends where the copy began, and says nothing; what was sent
            // to it since then does.
            let copied_to = !r.votes || !self.can_replay_from(r.position.position);
            let at = if copied_to { r.cursor } else { r.position.position };
            let lacks = committed.saturating_sub(self.bytes_through(at));
            let answers = r.last_answer.is_some_and(|t| now.saturating_sub(t) < LAG_PATIENCE);
            let follows = r.health.health() != Health::Down && self.can_replay_from(at);
            follows && answers && lacks > replay_bytes / 2
        })
    }

    /// Drops parts that every replica has, and of the committed ones the oldest beyond the bound. What is on
    /// its way to all does not count: a stream would be more than the bound by itself, and whichever replica
    /// is a little later than the others would be given up. For one that is not down so much more is kept
    /// as may commit after those who write begin to wait for it.
    fn prune(&mut self, limits: &Limits) {
        let committed = self.bytes_through(self.committed_end);
        while let Some(front) = self.parts.front() {
            let lacking = self.replicas.iter().filter(|(_, r)| {
                if self.configuration.stores.0.contains(&Some(r.store)) {
                    r.position.position < front.version
                } else {
                    // A store that is being filled is in no configuration yet. Without what was not
                    // yet sent to it, it would have to begin again, and under writes for ever.
                    r.cursor < front.version && r.health.health() != Health::Down
                }
            });
            let bounds = lacking.map(|(_, r)| match r.health.health() {
                Health::Down => limits.replay_bytes,
                _ => limits.replay_bytes + limits.dirty_bytes,
            });
            let kept = committed.saturating_sub(front.start());
            let keep = bounds.max().is_some_and(|bound| kept <= bound as u64);
            if front.version > self.committed_end || keep {
                break;
            }
            self.parts.pop_front();
        }
    }
}

/// Shard, head and records of a part that is not encoded yet.
type SealedPart = (u16, PartHead, Vec<(Key, Option<Bytes>)>);

/// A sealed group, to be encoded and sent.
#[derive(Debug)]
pub(crate) struct Sealed {
    /// Per shard: head of the part and its records.
    pub(crate) parts: Vec<SealedPart>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) epoch: u64,
    pub(crate) nonce: u64,
    pub(crate) cut: Version,
    pub(crate) watermark: Version,
    pub(crate) shards: Vec<Shard>,
    /// Where earlier epochs end (rule 6).
    pub(crate) ends: Arc<[OpeningMark]>,
    pub(crate) fenced: Option<String>,
    commit: Commit,
    open: OpenGroup,
    next_seq: u64,
    /// Seal as soon as possible, whatever the size.
    pub(crate) seal_asked: bool,
    flying: VecDeque<Flying>,
    flying_bytes: usize,
    /// The last of those who wait for a replica that lags may go on then; see [`Core::pace`].
    paced: Option<Duration>,
    overlay: BTreeMap<Key, Overlaid>,
    /// Closed and not yet encoded, in order.
    pub(crate) sealed: VecDeque<Sealed>,
    /// Free bytes (see [`crate::volume::Volume::space`]) when they were last asked for; `u64::MAX` until known.
    pub(crate) free_bytes: u64,
    /// Bytes of parts made so far, and when the free space was asked for: what was sent since is not
    /// free any more.
    pub(crate) made_bytes: u64,
    pub(crate) made_when_asked: u64,
    /// Not given to writers, bytes: tombstones and repairs need room too.
    pub(crate) reserve_bytes: u64,
}

impl Core {
    /// A core that continues behind `cut` (the opening entry is already in every shard).
    pub(crate) fn new(epoch: u64, nonce: u64, cut: Version, shards: Vec<Shard>) -> Self {
        let watermark = Version::new(epoch, cut.seq);
        let commit = Commit::new(shards.len() as u16, watermark);
        Self {
            epoch,
            nonce,
            cut,
            watermark,
            shards,
            ends: Arc::from([]),
            fenced: None,
            commit,
            open: OpenGroup::default(),
            next_seq: cut.seq + 1,
            seal_asked: false,
            flying: VecDeque::new(),
            flying_bytes: 0,
            paced: None,
            overlay: BTreeMap::new(),
            sealed: VecDeque::new(),
            free_bytes: u64::MAX,
            made_bytes: 0,
            made_when_asked: 0,
            reserve_bytes: 0,
        }
    }

    /// Version of the group that operations join now.
    fn open_version(&self) -> Version {
        Version::new(self.epoch, self.next_seq)
    }

    /// Dirty bytes: submitted and not committed.
    pub(crate) fn dirty_bytes(&self) -> usize {
        self.open.bytes + self.flying_bytes
    }

    /// Does a replica lag so far that writers of much should wait for it? When none does, the queue of those
    /// who wait is over: whoever waits for the next that lags does not stand behind those who have gone.
    pub(crate) fn lags(&mut self, limits: &Limits, now: Duration) -> bool {
        let lags = self.shards.iter().any(|s| s.lags(limits.replay_bytes as u64, now));
        if !lags {
            self.paced = None;
        }
        lags
    }

    /// When `bytes` more may be written although a replica lags: writers of much go at
    /// [`LAGGING_BYTES_PER_S`] together, in the order in which they ask. So a replica that is a little
    /// slower than the others keeps up; one that is much slower is given up soon, as before, and costs
    /// the writers no more than that pace until then. `None`: at once. Who writes little never waits.
    /// (Times: since the mount began.)
    pub(crate) fn pace(
        &mut self,
        bytes: usize,
        limits: &Limits,
        now: Duration,
    ) -> Option<Duration> {
        if !self.lags(limits, now) || bytes < MUCH_BYTES {
            return None;
        }
        let wait = Duration::from_secs_f64(bytes as f64 / LAGGING_BYTES_PER_S);
        self.paced = Some(self.paced.map_or(now, |t| t.max(now)) + wait);
        self.paced
    }

    /// Joins an operation to the open group; see [`crate::volume::Volume::submit`]. The caller seals
    /// first when [`Core::must_seal_before`] says so.
    pub(crate) fn submit(&mut self, ops: Vec<Op>, now: Instant) -> Result<Version, VolumeError> {
        if let Some(why) = &self.fenced {
            return Err(VolumeError::Fenced(why.clone()));
        }
        let version = self.open_version();
        self.open.since.get_or_insert(now);
        for op in ops {
            self.join(op, version);
        }
        Ok(version)
    }

    /// Records and bytes of an operation; an error when no group can hold it.
    pub(crate) fn footprint(ops: &[Op]) -> Result<(usize, usize), VolumeError> {
        let bytes = ops
            .iter()
            .map(|o| match &o.change {
                Change::Put(v) | Change::PutNew(v) => v.len(),
                _ => 0,
            })
            .sum();
        if ops.len() > PART_RECORDS_MAX || bytes > GROUP_BYTES_MAX {
            return Err(VolumeError::TooLarge);
        }
        Ok((ops.len(), bytes))
    }

    /// Would this operation overflow the open group? Operations never straddle groups.
    pub(crate) fn must_seal_before(&self, (records, bytes): (usize, usize)) -> bool {
        self.open.keys.len() + records > PART_RECORDS_MAX
            || self.open.bytes + bytes > GROUP_BYTES_MAX
    }

    fn join(&mut self, op: Op, version: Version) {
        let Op { shard, key, change } = op;
        let before = self.open.keys.get(&key);
        let was_new =
            matches!(before, Some(OpenKey { pending: Pending::Put { new: true, .. }, .. }));
        let freed = match before {
            Some(OpenKey { pending: Pending::Put { value, .. }, .. }) => value.len(),
            _ => 0,
        };
        let known_absent =
            was_new || matches!(before, Some(OpenKey { pending: Pending::Nothing, .. }));
        let (pending, value) = match change {
            Change::Put(v) => (Pending::Put { value: v.clone(), new: known_absent }, Some(v)),
            Change::PutNew(v) => (Pending::Put { value: v.clone(), new: true }, Some(v)),
            // A key that was born in this group leaves no trace.
            Change::Delete if known_absent => (Pending::Nothing, None),
            Change::Delete => (Pending::Delete, None),
            // The caller knows that what lies under the mark is a hole: a tombstone says the same
            // and stays right whatever the mark's reclaim does.
            Change::Retract if before.is_none() => return,
            Change::Retract if known_absent => (Pending::Nothing, None),
            Change::Retract => (Pending::Delete, None),
        };
        self.open.bytes = self.open.bytes - freed + value.as_ref().map_or(0, Bytes::len);
        self.overlay.insert(key.clone(), Overlaid { shard, version, value });
        self.open.keys.insert(key, OpenKey { shard, pending });
    }

    /// What is pending under a key.
    pub(crate) fn pending(&self, key: &[u8]) -> Option<Option<Stored>> {
        self.overlay
            .get(key)
            .map(|o| o.value.clone().map(|value| Stored { version: o.version, value }))
    }

    /// What is pending in a range of one shard, ascending.
    pub(crate) fn pending_range(
        &self,
        shard: u16,
        start: &[u8],
        end: &[u8],
    ) -> Vec<(Key, Option<Stored>)> {
        use std::ops::Bound::{Excluded, Included, Unbounded};
        if !end.is_empty() && start >= end {
            return Vec::new();
        }
        let upper = if end.is_empty() { Unbounded } else { Excluded(end) };
        self.overlay
            .range::<[u8], _>((Included(start), upper))
            .filter(|(_, o)| o.shard == shard)
            .map(|(k, o)| {
                (k.clone(), o.value.clone().map(|value| Stored { version: o.version, value }))
            })
            .collect()
    }

    /// Should the open group be sent now?
    pub(crate) fn wants_seal(&self, limits: &Limits, now: Instant) -> bool {
        let Some(since) = self.open.since else { return false };
        let room = self.flying_bytes < limits.in_flight_bytes;
        let old = now.saturating_duration_since(since).as_millis() as u64 >= limits.group_timer_ms;
        // While two are on their way, those who ask gather in the open group: many threads that sync
        // share a few round trips. What commits rings the bell; the timer bounds the wait.
        let asked = self.flying.iter().filter(|g| g.asked).count();
        (self.seal_asked && asked < ASKED_IN_FLIGHT_MAX)
            || (room
                && (old
                    || self.open.bytes >= limits.stream_bytes
                    || self.open.keys.len() >= PART_RECORDS_MAX / 2))
    }

    /// When the open group becomes due by the timer alone.
    pub(crate) fn seal_due(&self, limits: &Limits) -> Option<Instant> {
        self.open.since.map(|t| t + Duration::from_millis(limits.group_timer_ms))
    }

    /// The last seq a sync must wait for: everything submitted so far.
    pub(crate) fn sync_target(&self) -> u64 {
        if self.open.since.is_some() { self.next_seq } else { self.next_seq - 1 }
    }

    /// Closes the open group: gives it its seq and its place in the chain of each shard it touches.
    /// The parts must be pushed with [`Core::push_part`] in the order of sealing.
    /// False when the group was empty.
    pub(crate) fn seal(&mut self) -> bool {
        let asked = std::mem::take(&mut self.seal_asked);
        if self.open.since.is_none() {
            return false;
        }
        let open = std::mem::take(&mut self.open);
        let version = self.open_version();
        let mut by_shard: BTreeMap<u16, Vec<(Key, Option<Bytes>)>> = BTreeMap::new();
        let mut keys = Vec::with_capacity(open.keys.len());
        for (key, OpenKey { shard, pending }) in open.keys {
            keys.push(key.clone());
            match pending {
                Pending::Put { value, .. } => {
                    by_shard.entry(shard).or_default().push((key, Some(value)));
                }
                Pending::Delete => by_shard.entry(shard).or_default().push((key, None)),
                Pending::Nothing => {}
            }
        }
        self.next_seq += 1;
        let shards: Vec<u16> = by_shard.keys().copied().collect();
        // A group that came to nothing still takes its seq and touches shard 0: seqs have no gaps.
        let shards = if shards.is_empty() { vec![0] } else { shards };
        let mut parts = Vec::with_capacity(shards.len());
        for s in &shards {
            let watermark = self.watermark;
            let shard = &mut self.shards[*s as usize];
            let head = PartHead {
                version,
                predecessor: shard.chain_end,
                watermark,
                floor: shard.floor,
                marks: PerBank::from_fn(|b| shard.replicas[b].mark),
                cut: None,
                shards: shards.clone(),
            };
            shard.chain_end = version;
            parts.push((*s, head, by_shard.remove(s).unwrap_or_default()));
        }
        self.flying_bytes += open.bytes;
        self.commit.add(version, &shards);
        self.flying.push_back(Flying { version, shards, keys, bytes: open.bytes, asked });
        self.sealed.push_back(Sealed { parts });
        true
    }

    /// Hands an encoded part to the links of its shard.
    pub(crate) fn push_part(&mut self, shard: u16, head: &PartHead, bytes: Pieces) {
        self.made_bytes += bytes.len() as u64;
        self.shards[shard as usize].push(head, bytes);
    }

    /// Would `bytes` more fit on two banks, with the reserve left for tombstones and repairs? What
    /// is answered to a writer must be committable (trap 35): a group that no bank can store would
    /// block all later ones, deletes included. Cautious: what is in flight counts twice.
    pub(crate) fn fits(&self, bytes: usize) -> bool {
        let since = self.made_bytes - self.made_when_asked;
        let need = (bytes + self.dirty_bytes()) as u64 + since + self.reserve_bytes;
        bytes == 0 || self.free_bytes >= need
    }

    /// A replica was attached to this epoch and stands at `p`; this replaces what it said before (it
    /// may have voided parts). Returns true when the watermark moved.
    pub(crate) fn attached(
        &mut self,
        shard: u16,
        bank: BankId,
        p: Position,
        limits: &Limits,
    ) -> bool {
        let r = &mut self.shards[shard as usize].replicas[bank];
        r.position = p;
        if r.votes {
            self.commit.attach(shard, bank, p.position);
        } else {
            self.commit.forget(shard, bank);
        }
        self.acked(shard, bank, p, limits)
    }

    /// What a replica acked counts no more: its store must be filled anew, or does not vote.
    pub(crate) fn distrust(&mut self, shard: u16, bank: BankId) {
        self.shards[shard as usize].replicas[bank].votes = false;
        self.commit.forget(shard, bank);
    }

    /// A replica says where it stands. Returns true when the watermark moved.
    pub(crate) fn acked(&mut self, shard: u16, bank: BankId, p: Position, limits: &Limits) -> bool {
        let s = &mut self.shards[shard as usize];
        let r = &mut s.replicas[bank];
        r.position.position = r.position.position.max(p.position);
        r.position.applied = r.position.applied.max(p.applied);
        r.position.detached = p.detached;
        if r.votes {
            r.mark = r.mark.max(p.high);
            self.commit.ack(shard, bank, p.position);
        }
        let moved = self.settle();
        let s = &mut self.shards[shard as usize];
        // Rule 10: the floor follows what all three have applied durably, or the two that are left.
        if s.replicas.iter().all(|(_, r)| r.is_up_to_date() || r.struck) {
            s.floor = s.floor.max(s.applied_by_all(None).unwrap_or_default());
        }
        s.prune(limits);
        moved
    }

    /// Takes what [`Commit`] found committed out of flight.
    fn settle(&mut self) -> bool {
        let watermark = self.commit.watermark();
        let mut moved = false;
        while self.flying.front().is_some_and(|g| g.version <= watermark) {
            let Some(g) = self.flying.pop_front() else { break };
            self.watermark = g.version;
            self.flying_bytes -= g.bytes;
            for s in g.shards {
                self.shards[s as usize].committed_end = g.version;
            }
            for key in g.keys {
                if self.overlay.get(&key).is_some_and(|o| o.version == g.version) {
                    self.overlay.remove(&key);
                }
            }
            moved = true;
        }
        moved
    }

    /// Counts of what is on its way: groups, bytes.
    pub(crate) fn in_flight(&self) -> (usize, usize) {
        (self.flying.len(), self.flying_bytes)
    }
}

impl Shard {
    /// A shard right after its opening entry.
    pub(crate) fn opened(
        configuration: Configuration,
        end: Version,
        floor: Version,
        replicas: PerBank<Replica>,
    ) -> Self {
        Self {
            configuration,
            chain_end: end,
            committed_end: end,
            floor,
            replicas,
            parts: VecDeque::new(),
            made_bytes: 0,
            recent: VecDeque::from([end]),
        }
    }

    /// A version of the chain whose bytes are not kept.
    pub(crate) fn remember(&mut self, version: Version) {
        self.recent.push_back(version);
        if self.recent.len() > RECENT_MAX {
            self.recent.pop_front();
        }
    }

    /// A part of the chain, behind all others.
    pub(crate) fn push(&mut self, head: &PartHead, bytes: Pieces) {
        self.remember(head.version);
        self.made_bytes += bytes.len() as u64;
        let (version, predecessor) = (head.version, head.predecessor);
        self.parts.push_back(SentPart { version, predecessor, bytes, end: self.made_bytes });
    }
}
