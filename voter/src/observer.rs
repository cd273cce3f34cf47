//! Reading beside the mount that writes (rule 12): asks the nodes where they stand and reads what two
//! voters of each shard have applied. It fences nobody, rolls nothing forward and repairs nothing, so
//! it can neither disturb the writer nor undo its work.
//!
//! Each record is exact: it was committed, and is voted on like any other read. Records read one after
//! the other may come from different commits (half of a rename may be seen), and what is seen is at
//! most [`LOOK`] and a round trip old. When the newest of two voters goes away for good, a shard is seen
//! as the other two have it, which may be a little older than before: still committed, never mixed.

use crate::background::Background;
use crate::health::Event;
use crate::limits::Limits;
use crate::metrics::Metrics;
use crate::open::OpenError;
use crate::opening::{Choice, Refusal, choose};
use crate::read;
use crate::replicated::{ClusterConfig, Nodes};
use crate::shared::{Shared, stopped};
use crate::status::{ClusterStatus, node_answers, node_statuses, space, without_mount};
use crate::volume::{
    Key, Op, Page, Result, Stored, SyncReceipt, Version, Volume, VolumeError, VolumeId, VolumeSpace,
};
use crate::watched::Watched;
use crate::writer::{Core, Replica, Shard};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::time::Duration;
use storenode::wire::{OpeningMark, PerBank, Position, Status, StoreId};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// Between two looks at where the nodes stand.
const LOOK: Duration = Duration::from_millis(250);
/// A node that does not say where it stands within this is not read from until it does.
const LOOK_DEADLINE: Duration = Duration::from_millis(500);

/// Ends of epochs remembered; nodes forget those that all voters have passed.
const ENDS_MAX: usize = 256;

/// A volume that is only read. See the module.
pub struct Observer {
    shared: Arc<Shared>,
    /// Counts the looks that saw something new.
    news: Arc<Watched<u64>>,
    task: Mutex<Option<JoinHandle<()>>>,
}

type Row = PerBank<Option<Status>>;

/// Through where two voters have applied: the second highest. `None` with fewer than two.
#[must_use]
pub fn seen_by_two(applied: PerBank<Option<Version>>) -> Option<Version> {
    let mut all: Vec<Version> = applied.iter().filter_map(|(_, v)| *v).collect();
    all.sort_unstable();
    all.len().checked_sub(2).map(|i| all[i])
}

impl Observer {
    /// Begins to observe; waits until two voters of every shard answer.
    ///
    /// # Errors
    /// [`OpenError`]: addresses that are wrong, or too few nodes.
    pub async fn open(
        config: ClusterConfig,
        progress: impl Fn(&str),
    ) -> std::result::Result<Arc<Self>, OpenError> {
        Self::open_with(Nodes::http(&config)?, config.limits, progress).await
    }

    /// Like [`Observer::open`], over any kind of banks.
    ///
    /// # Errors
    /// [`OpenError`].
    pub async fn open_with(
        nodes: Nodes,
        limits: Limits,
        progress: impl Fn(&str),
    ) -> std::result::Result<Arc<Self>, OpenError> {
        let limit = Instant::now() + limits.read_deadline();
        let (choice, rows) = loop {
            let rows = look(&nodes).await;
            match choose(&rows) {
                Ok(choice) => break (choice, rows),
                Err(e @ (Refusal::NotEnough { .. } | Refusal::NoAnswer)) => {
                    if Instant::now() >= limit {
                        return Err(OpenError::Unavailable(e.to_string()));
                    }
                    progress(&format!("waiting: {e}"));
                    tokio::time::sleep(LOOK).await;
                }
                Err(e) => return Err(OpenError::Refused(e.to_string())),
            }
        };
        let shared = Arc::new(shared(nodes.clone(), limits, &choice));
        let news = Arc::new(Watched::new(0));
        take_in(&shared, &choice, &rows);
        let task = tokio::spawn(follow(shared.clone(), nodes, news.clone()));
        Ok(Arc::new(Self { shared, news, task: Mutex::new(Some(task)) }))
    }

    /// The cluster as the nodes tell it.
    pub async fn status(&self) -> ClusterStatus {
        let nodes = Nodes { banks: self.shared.banks.clone() };
        let all = node_answers(&nodes.banks, LOOK_DEADLINE).await;
        without_mount(&nodes, &all)
    }

    /// Ends the task.
    pub async fn close(&self) {
        self.shared.stop.set(true);
        let task = self.task.lock().take();
        if let Some(task) = task {
            let _ = tokio::time::timeout(Duration::from_secs(2), task).await;
        }
    }
}

async fn look(nodes: &Nodes) -> Vec<Row> {
    let all = node_statuses(&nodes.banks, LOOK_DEADLINE).await;
    let shards = all.0[0].len();
    (0..shards).map(|i| PerBank::from_fn(|b| all[b][i].clone())).collect()
}

/// What a mount keeps, of one that holds nothing.
fn shared(nodes: Nodes, limits: Limits, choice: &Choice) -> Shared {
    let shards = choice.shards.iter().map(|c| {
        let replica = |b| {
            let store = c.configuration.stores[b].unwrap_or(StoreId::ZERO);
            Replica::unknown(store, Version::ZERO, Version::ZERO, Duration::ZERO)
        };
        let replicas = PerBank::from_fn(replica);
        Shard::opened(c.configuration, Version::ZERO, Version::ZERO, replicas)
    });
    let core = Core::new(0, 0, Version::ZERO, shards.collect());
    // Nobody takes orders for repairs: a queue without an end is a closed one.
    let (repairs, _) = mpsc::channel(1);
    let (checks, _) = mpsc::channel(1);
    Shared {
        core: Mutex::new(core),
        limits,
        volume: choice.volume,
        holder: String::new(),
        auto_replace: false,
        replace: Mutex::default(),
        together: crate::together::Together::of(&nodes),
        banks: nodes.banks,
        watermark: Watched::new(Version::ZERO),
        pushed: Watched::new(0),
        seal_bell: Notify::new(),
        stop: Watched::new(false),
        repairs,
        checks,
        metrics: Metrics::default(),
        started: Instant::now(),
        board: crate::progress::Board::default(),
        copy_pace: Mutex::new((
            crate::pace::Pace::new(0, 1, Duration::ZERO),
            crate::pace::Busy::new(Duration::ZERO),
        )),
        asked: AtomicU64::new(0),
        turn: AtomicUsize::new(0),
        background: Background::none(),
        observing: true,
    }
}

/// Looks again and again, until the end.
async fn follow(shared: Arc<Shared>, nodes: Nodes, news: Arc<Watched<u64>>) {
    loop {
        tokio::select! {
            biased;
            () = tokio::time::sleep(LOOK) => {}
            () = stopped(shared.stop.subscribe()) => return,
        }
        let rows = look(&nodes).await;
        match choose(&rows) {
            Ok(choice) if choice.volume == shared.volume => {
                if take_in(&shared, &choice, &rows) {
                    news.modify(|n| *n += 1);
                }
            }
            Ok(choice) => {
                let volume = choice.volume;
                tracing::error!(%volume, "another volume stands in the place of this one");
                nobody_answers(&shared);
            }
            // Reads find too few banks until that ends.
            Err(why) => {
                tracing::debug!(%why, "not enough nodes to read from");
                nobody_answers(&shared);
            }
        }
    }
}

fn nobody_answers(shared: &Shared) {
    let now = shared.now();
    for shard in &mut shared.core.lock().shards {
        for replica in &mut shard.replicas.0 {
            replica.health.on(Event::Unreachable, now);
        }
    }
}

/// Takes in where the nodes stand. True: something can be seen that could not be before.
fn take_in(shared: &Shared, choice: &Choice, rows: &[Row]) -> bool {
    let now = shared.now();
    let mut core = shared.core.lock();
    let (mut moved, mut newest) = (false, core.watermark);
    let mut ends: BTreeMap<u64, OpeningMark> = core.ends.iter().map(|o| (o.epoch, *o)).collect();
    for ((shard, chosen), row) in core.shards.iter_mut().zip(&choice.shards).zip(rows) {
        let voters = PerBank::from_fn(|b| row[b].as_ref().filter(|_| chosen.voters[b].is_some()));
        let through = seen_by_two(PerBank::from_fn(|b| voters[b].map(|s| s.position.applied)));
        shard.configuration = chosen.configuration;
        let through = through.unwrap_or(shard.committed_end);
        moved |= through != shard.committed_end;
        shard.committed_end = through;
        for (bank, voter) in voters.iter() {
            let replica = &mut shard.replicas[bank];
            replica.votes = voter.is_some();
            let Some(status) = voter else {
                replica.health.on(Event::Unreachable, now);
                continue;
            };
            let at = status.position.applied;
            newest = newest.max(at);
            ends.extend(status.openings.iter().map(|o| (o.epoch, *o)));
            replica.store = status.store;
            replica.position = Position { position: at, ..status.position };
            shard.floor = shard.floor.max(status.floor);
            replica.health.on(Event::Stands { at, to: at }, now);
        }
    }
    core.watermark = newest;
    while ends.len() > ENDS_MAX {
        ends.pop_first();
    }
    core.ends = ends.into_values().collect();
    moved
}

impl Volume for Observer {
    fn id(&self) -> VolumeId {
        self.shared.volume
    }
    fn shards(&self) -> u16 {
        self.shared.shards()
    }
    fn epoch(&self) -> u64 {
        0
    }
    fn news(&self) -> Option<u64> {
        Some(self.news.get())
    }
    fn submit(&self, _ops: Vec<Op>) -> Result<Version> {
        Err(VolumeError::ReadOnly)
    }
    fn pending(&self, _key: &[u8]) -> Option<Option<Stored>> {
        None
    }
    fn room(&self, _bytes: usize) -> BoxFuture<'_, Result<()>> {
        async { Err(VolumeError::ReadOnly) }.boxed()
    }
    fn has_room(&self, _bytes: usize) -> bool {
        false
    }
    fn get(&self, keys: Vec<(u16, Key)>) -> BoxFuture<'_, Result<Vec<Option<Stored>>>> {
        read::get(&self.shared, keys).boxed()
    }
    fn scan(&self, shard: u16, start: Key, end: Key, limit: usize) -> BoxFuture<'_, Result<Page>> {
        read::scan(&self.shared, shard, start, end, limit).boxed()
    }
    /// Nothing is dirty here.
    fn sync(&self) -> BoxFuture<'_, Result<SyncReceipt>> {
        async { Ok(SyncReceipt(())) }.boxed()
    }
    fn space(&self) -> BoxFuture<'_, Result<VolumeSpace>> {
        async move {
            space(&self.shared.banks, self.shared.shards()).await.0.ok_or_else(|| {
                VolumeError::Unavailable("no two banks say how full they are".into())
            })
        }
        .boxed()
    }
    fn alive(&self) -> Result<()> {
        Ok(())
    }
    fn deadline(&self) -> Duration {
        self.shared.limits.read_deadline() * 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_must_have_applied_it() {
        let v = |seq| Some(Version::new(1, seq));
        assert_eq!(seen_by_two(PerBank([v(3), v(9), v(7)])), v(7));
        assert_eq!(seen_by_two(PerBank([v(3), v(3), v(3)])), v(3));
        assert_eq!(seen_by_two(PerBank([None, v(9), v(7)])), v(7));
        assert_eq!(seen_by_two(PerBank([None, v(9), None])), None);
        assert_eq!(seen_by_two(PerBank([None, None, None])), None);
    }
}
