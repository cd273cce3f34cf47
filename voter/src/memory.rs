//! [`MemoryVolume`]: the executable specification of [`Volume`], on a `BTreeMap`, with knobs that
//! make it fail the ways the real one can.

use crate::volume::{
    Change, Key, Op, Page, Result, Stored, SyncReceipt, Version, Volume, VolumeError, VolumeId,
    VolumeSpace,
};
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::time::Duration;
use storenode::wire::{GROUP_BYTES_MAX, KEY_LEN_MAX, PART_RECORDS_MAX, VALUE_LEN_MAX};

/// Most bytes of values in one [`Page`], about; one record always fits.
const PAGE_BYTES_MAX: usize = 4 << 20;
/// How often a held call looks whether it may go on.
const HOLD_POLL: Duration = Duration::from_millis(1);

/// Records and what is needed to replay operations on them.
#[derive(Clone, Default)]
struct Image {
    records: BTreeMap<(u16, Key), Stored>,
    /// Keys that ever had a value: checks the promise of `PutNew`.
    ever: BTreeSet<Key>,
    /// What the open group found under the keys that it changed.
    before_group: BTreeMap<Key, Option<Stored>>,
    /// Last change of a key in the open group was a put.
    put_in_group: BTreeSet<Key>,
}

impl Image {
    fn apply(&mut self, version: Version, ops: &[Op]) {
        for op in ops {
            let at = (op.shard, op.key.clone());
            match &op.change {
                Change::Put(value) | Change::PutNew(value) => {
                    let old = self.records.insert(at, Stored { version, value: value.clone() });
                    self.before_group.entry(op.key.clone()).or_insert(old);
                    self.put_in_group.insert(op.key.clone());
                    let first = self.ever.insert(op.key.clone());
                    assert!(
                        first || matches!(op.change, Change::Put(_)),
                        "PutNew of a key that existed before: {:02x?}",
                        op.key
                    );
                }
                Change::Delete => {
                    let old = self.records.remove(&at);
                    self.before_group.entry(op.key.clone()).or_insert(old);
                    self.put_in_group.remove(&op.key);
                }
                Change::Retract => {
                    if self.put_in_group.remove(&op.key) {
                        match self.before_group.remove(&op.key).flatten() {
                            Some(old) => self.records.insert(at, old),
                            None => self.records.remove(&at),
                        };
                    }
                }
            }
        }
    }

    fn close_group(&mut self) {
        self.before_group.clear();
        self.put_in_group.clear();
    }

    fn replay<'a>(&mut self, log: impl Iterator<Item = &'a (Version, Vec<Op>)>) {
        let mut group = Version::ZERO;
        for (version, ops) in log {
            if *version != group {
                self.close_group();
            }
            group = *version;
            self.apply(group, ops);
        }
        self.close_group();
    }
}

/// What the tests turn.
#[derive(Default)]
struct Knobs {
    read_error: Option<VolumeError>,
    sync_error: Option<VolumeError>,
    submit_error: Option<VolumeError>,
    hold_reads: bool,
    hold_syncs: bool,
    no_room: bool,
    fenced: Option<String>,
    read_delay: Duration,
}

#[derive(Default)]
struct State {
    /// As of the last sync.
    durable: Image,
    /// With all that was submitted.
    now: Image,
    /// Operations since the last sync with the version of the group they joined.
    log: Vec<(Version, Vec<Op>)>,
    /// The open group.
    group: Version,
    /// Submitted and not settled: `None` = deleted.
    unsettled: BTreeMap<Key, Option<Stored>>,
    knobs: Knobs,
    counts: MemoryCounts,
}

/// How often the volume was asked, for tests of caches.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct MemoryCounts {
    /// Calls of `get`.
    pub gets: u64,
    /// Keys in them.
    pub keys: u64,
    /// Calls of `scan`.
    pub scans: u64,
    /// Syncs that returned a receipt.
    pub syncs: u64,
    /// Atomic operations submitted.
    pub submits: u64,
}

/// A [`Volume`] in memory. Checks what its callers promise (key lengths, one shard per key,
/// `PutNew`) and panics when they break it, since only tests use it.
pub struct MemoryVolume {
    id: VolumeId,
    shards: u16,
    epoch: u64,
    deadline: Duration,
    state: Mutex<State>,
}

impl MemoryVolume {
    /// An empty volume in its first epoch.
    ///
    /// # Panics
    /// If `shards` is 0.
    #[must_use]
    pub fn new(shards: u16) -> Self {
        assert!(shards > 0, "a volume has at least one shard");
        Self {
            id: VolumeId(*b"in memory volume"),
            shards,
            epoch: 1,
            deadline: Duration::from_secs(10),
            state: Mutex::new(State { group: Version::new(1, 1), ..State::default() }),
        }
    }

    /// Sets what [`Volume::deadline`] answers and after what a held call gives up; default 10 s.
    #[must_use]
    pub fn with_deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// The volume that the next mount finds after a crash now: the content of the last sync and
    /// the first `keep` of the atomic operations submitted after it ([`Self::unsynced`] says how
    /// many there are). All knobs are back at rest. `self` stays usable and does not notice.
    #[must_use]
    pub fn crash(&self, keep: usize) -> MemoryVolume {
        let state = self.state.lock();
        let mut image = state.durable.clone();
        image.replay(state.log.iter().take(keep));
        let group = Version::new(self.epoch + 1, state.group.seq + 1);
        MemoryVolume {
            id: self.id,
            shards: self.shards,
            epoch: self.epoch + 1,
            deadline: self.deadline,
            state: Mutex::new(State {
                durable: image.clone(),
                now: image,
                group,
                ..State::default()
            }),
        }
    }

    /// Atomic operations submitted since the last sync.
    #[must_use]
    pub fn unsynced(&self) -> usize {
        self.state.lock().log.len()
    }

    /// Closes the open group as the real volume's timer does: later operations cannot retract
    /// what is in it. Nothing becomes durable.
    pub fn close_group(&self) {
        let mut state = self.state.lock();
        state.group.seq += 1;
        state.now.close_group();
    }

    /// Every read fails with this; `None` = reads work again.
    pub fn fail_reads(&self, error: Option<VolumeError>) {
        self.state.lock().knobs.read_error = error;
    }

    /// Every sync fails with this; nothing becomes durable meanwhile.
    pub fn fail_syncs(&self, error: Option<VolumeError>) {
        self.state.lock().knobs.sync_error = error;
    }

    /// Every submit fails with this and changes nothing.
    pub fn fail_submits(&self, error: Option<VolumeError>) {
        self.state.lock().knobs.submit_error = error;
    }

    /// Reads begun from now on wait until this is turned off (or fail at the deadline).
    pub fn hang_reads(&self, on: bool) {
        self.state.lock().knobs.hold_reads = on;
    }

    /// Syncs begun from now on wait until this is turned off (or fail at the deadline).
    pub fn hang_syncs(&self, on: bool) {
        self.state.lock().knobs.hold_syncs = on;
    }

    /// Every read takes this long, so that it does not complete in its first poll.
    pub fn delay_reads(&self, delay: Duration) {
        self.state.lock().knobs.read_delay = delay;
    }

    /// `has_room` answers false and `room` waits while this is on.
    pub fn no_room(&self, on: bool) {
        self.state.lock().knobs.no_room = on;
    }

    /// Another mount took over: everything fails from now on, for good.
    pub fn fence(&self, holder: &str) {
        self.state.lock().knobs.fenced = Some(holder.into());
    }

    /// How often it was asked.
    #[must_use]
    pub fn counts(&self) -> MemoryCounts {
        self.state.lock().counts
    }

    /// Everything a reader sees now, for comparing.
    #[must_use]
    pub fn dump(&self) -> BTreeMap<(u16, Key), Stored> {
        self.state.lock().now.records.clone()
    }

    /// Waits while `held` says so, at most the deadline.
    async fn wait_while(&self, held: impl Fn(&Knobs) -> bool) -> Result<()> {
        let give_up = tokio::time::Instant::now() + self.deadline;
        while held(&self.state.lock().knobs) {
            if tokio::time::Instant::now() >= give_up {
                return Err(VolumeError::Unavailable("held by a test".into()));
            }
            tokio::time::sleep(HOLD_POLL).await;
        }
        self.alive()
    }

    async fn before_read(&self) -> Result<()> {
        // One look at the knobs without waiting: a read that is not held completes in one poll.
        let (hold, delay) = {
            let state = self.state.lock();
            (state.knobs.hold_reads, state.knobs.read_delay)
        };
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        if hold {
            self.wait_while(|k| k.hold_reads).await?;
        }
        self.alive()?;
        self.state.lock().knobs.read_error.clone().map_or(Ok(()), Err)
    }

    fn check(&self, ops: &[Op]) -> Result<()> {
        let mut bytes = 0;
        for op in ops {
            assert!(op.shard < self.shards, "shard {} of {}", op.shard, self.shards);
            assert!((1..=KEY_LEN_MAX).contains(&op.key.len()), "key of {} bytes", op.key.len());
            if let Change::Put(v) | Change::PutNew(v) = &op.change {
                assert!(v.len() <= VALUE_LEN_MAX, "value of {} bytes", v.len());
                bytes += v.len();
            }
        }
        if ops.len() > PART_RECORDS_MAX || bytes > GROUP_BYTES_MAX {
            return Err(VolumeError::TooLarge);
        }
        Ok(())
    }
}

impl Volume for MemoryVolume {
    fn id(&self) -> VolumeId {
        self.id
    }

    fn shards(&self) -> u16 {
        self.shards
    }

    fn epoch(&self) -> u64 {
        self.epoch
    }

    fn submit(&self, ops: Vec<Op>) -> Result<Version> {
        self.check(&ops)?;
        self.alive()?;
        let mut state = self.state.lock();
        let state = &mut *state;
        if let Some(error) = &state.knobs.submit_error {
            return Err(error.clone());
        }
        let version = state.group;
        state.now.apply(version, &ops);
        for op in &ops {
            let at = (op.shard, op.key.clone());
            let unsettled = match &op.change {
                Change::Put(v) | Change::PutNew(v) => {
                    Some(Some(Stored { version, value: v.clone() }))
                }
                Change::Delete => Some(None),
                // What an earlier, still unsettled group put there shows again.
                Change::Retract if state.unsettled.contains_key(&op.key) => {
                    let now = state.now.records.get(&at);
                    (now != state.durable.records.get(&at)).then(|| now.cloned())
                }
                Change::Retract => None,
            };
            match unsettled {
                Some(value) => state.unsettled.insert(op.key.clone(), value),
                None => state.unsettled.remove(&op.key),
            };
        }
        state.log.push((version, ops));
        state.counts.submits += 1;
        Ok(version)
    }

    fn pending(&self, key: &[u8]) -> Option<Option<Stored>> {
        self.state.lock().unsettled.get(key).cloned()
    }

    fn room(&self, _bytes: usize) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.alive()?;
            self.wait_while(|k| k.no_room).await
        })
    }

    fn has_room(&self, _bytes: usize) -> bool {
        !self.state.lock().knobs.no_room
    }

    fn get(&self, keys: Vec<(u16, Key)>) -> BoxFuture<'_, Result<Vec<Option<Stored>>>> {
        Box::pin(async move {
            self.before_read().await?;
            let mut state = self.state.lock();
            state.counts.gets += 1;
            state.counts.keys += keys.len() as u64;
            Ok(keys.iter().map(|at| state.now.records.get(at).cloned()).collect())
        })
    }

    fn scan(&self, shard: u16, start: Key, end: Key, limit: usize) -> BoxFuture<'_, Result<Page>> {
        Box::pin(async move {
            self.before_read().await?;
            let mut state = self.state.lock();
            state.counts.scans += 1;
            let mut page = Page::default();
            if !end.is_empty() && end <= start {
                return Ok(page);
            }
            let upper = match (end.is_empty(), shard.checked_add(1)) {
                (false, _) => Bound::Excluded((shard, end)),
                (true, Some(next)) => Bound::Excluded((next, Key::new())),
                (true, None) => Bound::Unbounded,
            };
            // As over the network: a page is what so many settled records span, and what was
            // submitted since is laid over it. It may be empty and not the last.
            let range = (Bound::Included((shard, start)), upper);
            let mut bytes = 0;
            for (n, ((_, key), value)) in state.durable.records.range(range.clone()).enumerate() {
                if n >= limit.max(1) || bytes >= PAGE_BYTES_MAX {
                    page.next = Some(key.clone());
                    break;
                }
                bytes += value.value.len();
            }
            let ends = |key: &Key| page.next.as_ref().is_some_and(|next| key >= next);
            let now = state.now.records.range(range).take_while(|((_, key), _)| !ends(key));
            page.records = now.map(|((_, key), value)| (key.clone(), value.clone())).collect();
            Ok(page)
        })
    }

    fn sync(&self) -> BoxFuture<'_, Result<SyncReceipt>> {
        // What counts is what was submitted before the call, not before the first poll.
        let (upto, hold) = {
            let mut state = self.state.lock();
            state.group.seq += 1;
            state.now.close_group();
            (state.counts.submits, state.knobs.hold_syncs)
        };
        Box::pin(async move {
            if hold {
                self.wait_while(|k| k.hold_syncs).await?;
            }
            self.alive()?;
            let mut state = self.state.lock();
            let state = &mut *state;
            if let Some(error) = &state.knobs.sync_error {
                return Err(error.clone());
            }
            // A sync that was overtaken finds its part done.
            let done = state.counts.submits - state.log.len() as u64;
            let mine = usize::try_from(upto.saturating_sub(done)).unwrap_or(usize::MAX);
            state.durable.replay(state.log.drain(..mine).as_slice().iter());
            let later: BTreeSet<Key> =
                state.log.iter().flat_map(|(_, ops)| ops).map(|op| op.key.clone()).collect();
            state.unsettled.retain(|key, _| later.contains(key));
            state.counts.syncs += 1;
            Ok(SyncReceipt(()))
        })
    }

    fn space(&self) -> BoxFuture<'_, Result<VolumeSpace>> {
        Box::pin(async move {
            self.before_read().await?;
            let state = self.state.lock();
            let used: u64 =
                state.now.records.iter().map(|((_, k), v)| (k.len() + v.value.len()) as u64).sum();
            let capacity_bytes = 64 << 30;
            Ok(VolumeSpace {
                capacity_bytes,
                free_bytes: capacity_bytes - used.min(capacity_bytes),
                records: state.now.records.len() as u64,
            })
        })
    }

    fn alive(&self) -> Result<()> {
        match &self.state.lock().knobs.fenced {
            Some(holder) => Err(VolumeError::Fenced(holder.clone())),
            None => Ok(()),
        }
    }

    fn deadline(&self) -> Duration {
        self.deadline
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    fn now<T>(f: impl Future<Output = T>) -> T {
        match pin!(f).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(t) => t,
            Poll::Pending => panic!("would wait"),
        }
    }
    fn op(key: &str, change: Change) -> Op {
        Op { shard: 0, key: key.into(), change }
    }
    fn put(key: &str, value: &'static str) -> Op {
        op(key, Change::Put(Bytes::from_static(value.as_bytes())))
    }
    fn get(v: &MemoryVolume, key: &str) -> Option<String> {
        let found = now(v.get(vec![(0, key.into())])).unwrap().remove(0);
        found.map(|s| String::from_utf8(s.value.to_vec()).unwrap())
    }

    #[test]
    fn a_crash_keeps_the_sync_and_the_chosen_prefix() {
        let v = MemoryVolume::new(1);
        let first = v.submit(vec![put("a", "1")]).unwrap();
        now(v.sync()).unwrap();
        assert_eq!(v.pending(b"a"), None);
        let second = v.submit(vec![put("a", "2"), put("b", "2")]).unwrap();
        assert!(second > first);
        v.submit(vec![op("a", Change::Delete)]).unwrap();
        assert_eq!(v.pending(b"a"), Some(None));
        assert_eq!((v.unsynced(), get(&v, "a")), (2, None));
        assert_eq!(get(&v.crash(0), "a"), Some("1".into()));
        let mid = v.crash(1);
        assert_eq!((get(&mid, "a"), get(&mid, "b")), (Some("2".into()), Some("2".into())));
        assert!(mid.submit(vec![put("c", "3")]).unwrap() > second);
        assert_eq!(get(&v.crash(9), "a"), None);
    }

    #[test]
    fn retract_reaches_only_into_the_open_group() {
        let v = MemoryVolume::new(1);
        v.submit(vec![put("a", "1")]).unwrap();
        v.close_group();
        v.submit(vec![op("a", Change::Retract)]).unwrap();
        assert_eq!(get(&v, "a"), Some("1".into()), "of an earlier group");
        v.submit(vec![put("a", "2"), put("b", "2")]).unwrap();
        v.submit(vec![op("a", Change::Retract), op("b", Change::Retract)]).unwrap();
        assert_eq!((get(&v, "a"), get(&v, "b")), (Some("1".into()), None));
        assert_eq!(v.pending(b"b"), None);
        assert_eq!(v.pending(b"a").unwrap().unwrap().value, "1");
        let after = v.crash(9);
        assert_eq!((get(&after, "a"), get(&after, "b")), (Some("1".into()), None));
    }

    #[test]
    fn pages_go_on_where_they_ended() {
        let v = MemoryVolume::new(2);
        for k in ["a", "b", "c", "d"] {
            v.submit(vec![put(k, "x")]).unwrap();
        }
        v.submit(vec![Op { shard: 1, ..put("e", "other shard") }]).unwrap();
        now(v.sync()).unwrap();
        let page = now(v.scan(0, b"b".to_vec(), Key::new(), 2)).unwrap();
        let keys: Vec<_> = page.records.iter().map(|(k, _)| k[0]).collect();
        assert_eq!((keys, page.next.clone()), (b"bc".to_vec(), Some(b"d".to_vec())));
        let page = now(v.scan(0, page.next.unwrap(), Key::new(), 2)).unwrap();
        assert_eq!((page.records.len(), page.next), (1, None));
        assert_eq!(now(v.scan(0, b"a".to_vec(), b"c".to_vec(), 9)).unwrap().records.len(), 2);
        // What is submitted is laid over a page of what is settled.
        v.submit(vec![op("a", Change::Delete), op("b", Change::Delete)]).unwrap();
        let page = now(v.scan(0, b"a".to_vec(), Key::new(), 2)).unwrap();
        assert_eq!((page.records.len(), page.next), (0, Some(b"c".to_vec())));
    }

    #[test]
    fn knobs() {
        let v = MemoryVolume::new(1);
        v.submit(vec![put("a", "1")]).unwrap();
        v.fail_reads(Some(VolumeError::Damaged("test".into())));
        assert!(matches!(now(v.get(vec![(0, b"a".to_vec())])), Err(VolumeError::Damaged(_))));
        v.fail_syncs(Some(VolumeError::Unavailable("test".into())));
        assert!(now(v.sync()).is_err());
        assert_eq!(v.unsynced(), 1);
        v.fail_syncs(None);
        now(v.sync()).unwrap();
        v.fence("other");
        assert!(matches!(v.submit(vec![put("a", "1")]), Err(VolumeError::Fenced(_))));
    }

    #[tokio::test(start_paused = true)]
    async fn a_held_sync_gives_up_at_its_deadline() {
        let v = MemoryVolume::new(1).with_deadline(Duration::from_secs(3));
        v.hang_syncs(true);
        v.submit(vec![put("a", "1")]).unwrap();
        assert!(matches!(v.sync().await, Err(VolumeError::Unavailable(_))));
        let held = v.sync();
        v.hang_syncs(false);
        held.await.unwrap();
        assert_eq!(v.unsynced(), 0);
    }
}
