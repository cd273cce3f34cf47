//! What the tasks of one mount share: the writer's state behind its mutex, the banks, and the bells
//! that wake tasks. No task holds the mutex across an await.

use crate::background::Background;
use crate::bank::{Bank, BankError};
use crate::health::{Event, Health};
use crate::limits::Limits;
use crate::metrics::Metrics;
use crate::pace::{Busy, Pace};
use crate::progress::Board;
use crate::together::Together;
use crate::watched::{Watched, Watcher};
use crate::writer::{Copied, Core};
use bytes::Bytes;
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
use storenode::background;
use storenode::wire::{
    BankId, Envelope, Keys, NodeError, PerBank, Position, Reply, Request, StoreId, Version,
    VolumeId, WIRE_FORMAT,
};
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

/// A record that some bank holds wrong; the repair task votes on it again and mends it.
#[derive(Clone, Debug)]
pub(crate) struct RepairOrder {
    pub(crate) shard: u16,
    pub(crate) key: Vec<u8>,
}

/// Records that were just read from two banks, to be looked at on all three ("check behind").
#[derive(Clone, Debug)]
pub(crate) struct CheckOrder {
    pub(crate) shard: u16,
    pub(crate) keys: Keys,
    /// Of their values.
    pub(crate) bytes: u64,
}

/// Bytes of values that a copy takes at a time while people work.
const COPY_PAGE_BUSY: u32 = 512 << 10;
/// What a copy may take at once after idleness: this part of what it may take in a second.
const COPY_BURST: u64 = 16;

/// See the module.
pub(crate) struct Shared {
    pub(crate) core: Mutex<Core>,
    pub(crate) limits: Limits,
    pub(crate) volume: VolumeId,
    pub(crate) holder: String,
    pub(crate) auto_replace: bool,
    /// Replicas that the owner allowed to be filled anew, each once.
    pub(crate) replace: Mutex<BTreeSet<(BankId, u16)>>,
    /// By bank, then shard.
    pub(crate) banks: PerBank<Vec<Arc<dyn Bank>>>,
    /// The watermark, for whoever waits for commits.
    pub(crate) watermark: Watched<Version>,
    /// Counts the parts pushed; links look for work when it moves.
    pub(crate) pushed: Watched<u64>,
    /// The sealer looks at the open group.
    pub(crate) seal_bell: Notify,
    /// True when the mount closes.
    pub(crate) stop: Watched<bool>,
    /// Bounded; a full queue loses nothing, the next refresh finds the record again.
    pub(crate) repairs: mpsc::Sender<RepairOrder>,
    /// Bounded; what does not fit is left to the scrub.
    pub(crate) checks: mpsc::Sender<CheckOrder>,
    pub(crate) metrics: Metrics,
    pub(crate) started: Instant,
    /// Refreshes and scrubs under way.
    pub(crate) board: Board,
    /// Of all copies together.
    pub(crate) copy_pace: Mutex<(Pace, Busy)>,
    /// Requests of the filesystem so far: who copies looks at it.
    pub(crate) asked: AtomicU64,
    /// Where the first ballot of the next read goes, so that the banks share the reading.
    pub(crate) turn: AtomicUsize,
    /// By shard.
    pub(crate) together: Vec<Together>,
    /// For what nobody waits for.
    pub(crate) background: Background,
    /// Another mount writes; this one only reads ([`crate::observer`]).
    pub(crate) observing: bool,
}

impl Shared {
    /// Number of shards.
    pub(crate) fn shards(&self) -> u16 {
        self.banks[BankId::A].len() as u16
    }

    /// A request of the filesystem.
    pub(crate) fn somebody_asks(&self) {
        self.asked.fetch_add(1, Ordering::Relaxed);
    }

    /// Whose turn it is to be asked first ([`Shared::turn`]).
    pub(crate) fn next_turn(&self) -> usize {
        self.turn.fetch_add(1, Ordering::Relaxed)
    }

    /// Sends one message to the node of `shard` in `bank`, meant for `store`, in this mount's epoch.
    /// A refusal by a higher fence ends the mount's life as holder.
    pub(crate) async fn call(
        &self,
        shard: u16,
        bank: BankId,
        store: StoreId,
        request: Request,
        bulk: Vec<Bytes>,
        deadline: Duration,
    ) -> Result<(Reply, Bytes), BankError> {
        let (epoch, nonce) = {
            let core = self.core.lock();
            (core.epoch, core.nonce)
        };
        let envelope = Envelope { format: WIRE_FORMAT, volume: self.volume, store, epoch, nonce };
        let node = &self.banks[bank][shard as usize];
        let began = self.now();
        let answer = node.call(envelope, request, bulk, deadline).await;
        match &answer {
            Err(BankError::Refused(NodeError::Fenced { promise })) => {
                // One of this epoch and another nonce was an opener that did not get it: this mount has two
                // voters of every shard, and each promises an epoch once. The node is of no use until the
                // next mount, the others are.
                if promise.epoch > epoch {
                    self.fence(format!("{} took over (epoch {})", promise.holder, promise.epoch));
                }
            }
            // Nobody waits for what is said in the background, nor is its lateness the node's.
            _ if background::is_here() => {}
            Err(BankError::Timeout) => {
                let mut core = self.core.lock();
                let r = &mut core.shards[shard as usize].replicas[bank];
                r.health.on(Event::TimedOut, self.now());
            }
            Err(_) => {}
            Ok(_) => self.heard(shard, bank, began),
        }
        answer
    }

    /// The same for a message of a copy, which may be said again: one that is lost must not cost the whole
    /// deadline of bulk, nor a new session. Patience grows, for a node that only takes its time.
    pub(crate) async fn call_again(
        &self,
        shard: u16,
        bank: BankId,
        store: StoreId,
        request: Request,
        bulk: Vec<Bytes>,
    ) -> Result<(Reply, Bytes), BankError> {
        let (mut left, mut patience) = (self.limits.bulk_deadline(), self.limits.call_deadline());
        loop {
            let once = patience.min(left);
            left -= once;
            match self.call(shard, bank, store, request.clone(), bulk.clone(), once).await {
                Err(BankError::Timeout) if !left.is_zero() => patience *= 2,
                answer => return answer,
            }
        }
    }

    /// Time since the mount began: the voter's clock.
    pub(crate) fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// The end of this mount as a writer: every call fails from now on, for good.
    pub(crate) fn fence(&self, why: String) {
        let mut core = self.core.lock();
        if core.fenced.is_none() {
            tracing::error!(%why, "this mount was fenced");
            core.fenced = Some(why);
        }
        drop(core);
        // Wake all who wait; they see the fence.
        self.watermark.modify(|_| {});
    }

    /// Did another mount take the volume over?
    pub(crate) fn is_fenced(&self) -> bool {
        self.core.lock().fenced.is_some()
    }

    fn heard(&self, shard: u16, bank: BankId, began: Duration) {
        let now = self.now();
        let mut core = self.core.lock();
        let r = &mut core.shards[shard as usize].replicas[bank];
        r.last_answer = Some(now);
        r.waiting_since = None;
        r.health.on(Event::Answered { after: now.saturating_sub(began) }, now);
    }

    /// A request to this replica is under way; it counts as late from then on until it answers.
    pub(crate) fn waiting(&self, shard: u16, bank: BankId) {
        let mut core = self.core.lock();
        let r = &mut core.shards[shard as usize].replicas[bank];
        r.waiting_since.get_or_insert_with(|| self.now());
    }

    /// Another bank answered a read and this one did not: readers turn away from it for a while.
    pub(crate) fn overtaken(&self, shard: u16, bank: BankId) {
        let mut core = self.core.lock();
        core.shards[shard as usize].replicas[bank].health.overtaken(self.now());
    }

    /// Takes a position in; wakes those who wait for commits.
    pub(crate) fn acked(&self, shard: u16, bank: BankId, p: Position) {
        self.stands(shard, bank, p, false);
    }

    /// The same right after an attach or an admission: replaces what was known.
    pub(crate) fn attached(&self, shard: u16, bank: BankId, p: Position) {
        self.stands(shard, bank, p, true);
    }

    fn stands(&self, shard: u16, bank: BankId, p: Position, anew: bool) {
        let moved = {
            let mut core = self.core.lock();
            let moved = if anew {
                core.attached(shard, bank, p, &self.limits)
            } else {
                core.acked(shard, bank, p, &self.limits)
            };
            let s = &mut core.shards[shard as usize];
            let end = s.committed_end;
            let r = &mut s.replicas[bank];
            let at = r.position.position;
            // What is in flight does not make one "behind": an attach does. One that was given up
            // for timeouts and then answers is back.
            let lost = matches!(r.health.health(), Health::Behind { .. } | Health::Down);
            let arriving = anew || (at >= end && lost);
            if r.votes && arriving {
                let news = r.health.on(Event::Stands { at, to: end }, self.now());
                if news.is_some_and(|t| t.to == Health::UpToDate) {
                    tracing::info!(%bank, shard, %at, "replica is up to date");
                }
            }
            moved.then_some(core.watermark)
        };
        if let Some(w) = moved {
            // Two banks' answers come at the same time, and the lock is given back in between.
            self.watermark.raise(w);
            self.seal_bell.notify_one();
        }
    }

    /// Where reads of a shard must stand, and whom to ask, best first.
    pub(crate) fn readers(&self, shard: u16, turn: usize) -> (Version, Vec<(BankId, StoreId)>) {
        let core = self.core.lock();
        let s = &core.shards[shard as usize];
        let slow = Duration::from_millis(self.limits.hedge_ms);
        let banks = s.readers(s.committed_end, turn, self.now(), slow);
        (s.committed_end, banks.into_iter().map(|b| (b, s.replicas[b].store)).collect())
    }

    /// Up to where a record may be believed that a node showed which has applied through `applied`. A mount
    /// that writes knows the newest commit; one that observes is always a little behind, and what a
    /// node has applied was committed.
    pub(crate) fn credible(&self, newest: Version, applied: Version) -> Version {
        if self.observing { newest.max(applied) } else { newest }
    }

    /// Rule 10 and 12: did two banks answer within the lease?
    pub(crate) fn lease_holds(&self) -> bool {
        let core = self.core.lock();
        let lease = self.limits.lease();
        core.shards.first().is_some_and(|s| {
            s.replicas
                .iter()
                .filter(|(_, r)| {
                    r.votes && r.last_answer.is_some_and(|t| self.now().saturating_sub(t) < lease)
                })
                .count()
                >= 2
        })
    }

    /// A pass of a copy to this replica begins.
    pub(crate) fn copy_begins(&self, shard: u16, bank: BankId, of_records: u64, of_bytes: u64) {
        let began = self.now();
        let mut core = self.core.lock();
        let r = &mut core.shards[shard as usize].replicas[bank];
        r.copied = Some(Copied { of_records, of_bytes, began, ..Copied::default() });
    }

    /// So much more was copied to it.
    pub(crate) fn copied(&self, shard: u16, bank: BankId, records: u64, bytes: u64) {
        let mut core = self.core.lock();
        if let Some(c) = &mut core.shards[shard as usize].replicas[bank].copied {
            c.records += records;
            c.bytes += bytes;
        }
    }

    /// Is one more replica all that people wait for? Without two nothing is read or committed.
    pub(crate) fn lacks_one(&self, shard: u16) -> bool {
        self.readers(shard, 0).1.len() < 2
    }

    /// Should copies make way?
    fn makes_way(&self, shard: u16, busy: &mut Busy, now: Duration) -> bool {
        busy.look(self.asked.load(Ordering::Relaxed), now) && !self.lacks_one(shard)
    }

    /// Bytes of values to copy at a time: what is on its way when somebody comes, he waits for.
    pub(crate) fn copy_page(&self, shard: u16) -> u32 {
        let most = self.limits.copy_page_bytes;
        match self.makes_way(shard, &mut self.copy_pace.lock().1, self.now()) {
            true => most.min(COPY_PAGE_BUSY),
            false => most,
        }
    }

    /// Waits until so many bytes more may be copied. Paid for after the fact: a page is small against
    /// a second's worth.
    pub(crate) async fn pace_copy(&self, shard: u16, bytes: u64) {
        loop {
            let now = self.now();
            let taken = {
                let (pace, busy) = &mut *self.copy_pace.lock();
                let rate = match self.makes_way(shard, busy, now) {
                    true => self.limits.refill_bytes_per_s.min(self.limits.refill_busy_bytes_per_s),
                    false => self.limits.refill_bytes_per_s,
                };
                pace.set(rate, rate / COPY_BURST, now);
                pace.take(bytes, now)
            };
            match taken {
                Ok(()) => return,
                // Not all of it: people may stop working.
                Err(wait) => tokio::time::sleep(wait.min(Duration::from_secs(1))).await,
            }
        }
    }

    /// May this replica be filled anew? An owner's word is used up by it.
    pub(crate) fn may_replace(&self, bank: BankId, shard: u16) -> bool {
        self.replace.lock().remove(&(bank, shard)) || self.auto_replace
    }

    /// Asks the repair task to look at a record.
    pub(crate) fn order_repair(&self, shard: u16, key: Vec<u8>) {
        if !self.observing && self.repairs.try_send(RepairOrder { shard, key }).is_err() {
            tracing::debug!(shard, "repair queue is full; the next refresh will find the record");
        }
    }

    /// Has what was just read looked at on all banks, soon: the vote compares heads, and a value that
    /// rotted on a bank that only gave its head would stay unseen.
    pub(crate) fn order_check(&self, shard: u16, keys: Keys, bytes: u64) {
        if !keys.is_empty() {
            let _ = self.checks.try_send(CheckOrder { shard, keys, bytes });
        }
    }

    /// Is the mount closing?
    pub(crate) fn stopping(&self) -> bool {
        self.stop.get()
    }
}

/// Waits until the mount closes.
pub(crate) async fn stopped(mut stop: Watcher<bool>) {
    stop.wait_for(|s| s).await;
}
