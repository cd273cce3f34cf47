//! The mount's side of replication: owns the tasks, implements [`Volume`].
//!
//! ```text
//!  Volume::submit -> writer::Core (open group) -> sealer: encode -> link per replica -> bank
//!  Volume::get/scan -> read: vote                                    acks -> Core -> watermark -> sync returns
//!  repair <- read, refresh, scrub                                    link: attach, catch-up, refill
//! ```

use crate::background::Background;
use crate::bank::Bank;
use crate::bank::http::HttpBank;
use crate::health::Health;
use crate::limits::Limits;
use crate::metrics::add;
use crate::open::{self, OpenError};
use crate::progress::Work;
use crate::refresh::{self, Report};
use crate::shared::{Shared, stopped};
use crate::volume::{
    Key, Op, Page, Result, Stored, SyncReceipt, Version, Volume, VolumeError, VolumeId, VolumeSpace,
};
use crate::writer::Core;
use crate::{link, read, repair};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;
use storenode::wire::{BankId, PerBank, Request, StoreId};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// Where the nodes are.
#[derive(Clone, Debug)]
pub struct ClusterConfig {
    /// `host:port` of each node, by bank; index = shard. All three equally long.
    pub nodes: PerBank<Vec<String>>,
    /// The volume's token.
    pub token: String,
    /// Limits and paces.
    pub limits: Limits,
}

/// The nodes, as things that can be called.
#[derive(Clone)]
pub struct Nodes {
    /// By bank, then shard.
    pub banks: PerBank<Vec<Arc<dyn Bank>>>,
}

impl Nodes {
    /// Nodes over HTTP.
    ///
    /// # Errors
    /// [`OpenError::Config`] when the banks differ in length, are empty, or an address is unusable.
    pub fn http(config: &ClusterConfig) -> std::result::Result<Self, OpenError> {
        let n = config.nodes[BankId::A].len();
        if n == 0 || config.nodes.iter().any(|(_, b)| b.len() != n) {
            return Err(OpenError::Config(format!(
                "each bank needs the same number of nodes, at least one (A has {}, B {}, C {})",
                config.nodes.0[0].len(),
                config.nodes.0[1].len(),
                config.nodes.0[2].len()
            )));
        }
        let mut banks = PerBank::from_fn(|_| Vec::<Arc<dyn Bank>>::new());
        for bank in BankId::ALL {
            for address in &config.nodes[bank] {
                let node = HttpBank::new(address, &config.token)
                    .map_err(|e| OpenError::Config(format!("node {address}: {e}")))?;
                banks[bank].push(Arc::new(node));
            }
        }
        Ok(Self { banks })
    }
}

/// How to open.
#[derive(Clone)]
pub struct OpenOptions {
    /// Host, process and mountpoint, told to whoever comes later.
    pub holder: String,
    /// Fence a holder that is alive.
    pub takeover: bool,
    /// Refill empty, replaced and rolled-back stores without asking.
    pub auto_replace: bool,
    /// Simulations: nonces and pauses are drawn from this seed instead of the system's randomness.
    pub seed: Option<u64>,
    /// Told what is being done, for people.
    pub progress: Arc<dyn Fn(&str) + Send + Sync>,
}

/// A volume on three banks, held by this mount. See [`Volume`].
pub struct Replicated {
    pub(crate) shared: Arc<Shared>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
    kick_refresh: Arc<Notify>,
    space: Mutex<Option<(Instant, VolumeSpace)>>,
}

impl Drop for Replicated {
    /// What runs on a thread of its own would go on, and keep that thread.
    fn drop(&mut self) {
        self.tasks.lock().drain(..).for_each(|t| t.abort());
    }
}

impl Replicated {
    /// Makes a volume of blank nodes; all of them must answer.
    ///
    /// # Errors
    /// [`OpenError`] says which node stands in the way; nothing is changed then, or what was changed
    /// is continued by the next `init`.
    pub async fn init(config: &ClusterConfig) -> std::result::Result<VolumeId, OpenError> {
        Self::init_with(&Nodes::http(config)?, &config.limits).await
    }

    /// Like [`Replicated::init`], over any kind of banks.
    ///
    /// # Errors
    /// [`OpenError`].
    pub async fn init_with(
        nodes: &Nodes,
        limits: &Limits,
    ) -> std::result::Result<VolumeId, OpenError> {
        open::init(nodes, limits).await
    }

    /// Opens the volume for writing (protocol rule 5).
    ///
    /// # Errors
    /// [`OpenError`].
    pub async fn open(
        config: ClusterConfig,
        options: OpenOptions,
    ) -> std::result::Result<Arc<Self>, OpenError> {
        let nodes = Nodes::http(&config)?;
        Self::open_on(nodes, config.limits, options, Background::start()).await
    }

    /// Like [`Replicated::open`], over any kind of banks.
    ///
    /// # Errors
    /// [`OpenError`].
    pub async fn open_with(
        nodes: Nodes,
        limits: Limits,
        options: OpenOptions,
    ) -> std::result::Result<Arc<Self>, OpenError> {
        Self::open_on(nodes, limits, options, Background::none()).await
    }

    async fn open_on(
        nodes: Nodes,
        limits: Limits,
        options: OpenOptions,
        background: Background,
    ) -> std::result::Result<Arc<Self>, OpenError> {
        let (mut shared, orders) = open::open(nodes, limits, options).await?;
        shared.background = background;
        let shared = Arc::new(shared);
        let background = shared.background.runtime();
        let kick_refresh = Arc::new(Notify::new());
        let mut tasks = Vec::new();
        for bank in BankId::ALL {
            for shard in 0..shared.shards() {
                tasks.push(tokio::spawn(link::run(shared.clone(), shard, bank)));
            }
        }
        tasks.push(tokio::spawn(seal(shared.clone())));
        tasks.push(tokio::spawn(repair::run(shared.clone(), orders.to_repair)));
        tasks.push(background.spawn(repair::check_behind(shared.clone(), orders.to_check)));
        tasks.push(background.spawn(refresh::run(shared.clone(), kick_refresh.clone())));
        tasks.push(tokio::spawn(watch_space(shared.clone())));
        let this = Self { shared, tasks: Mutex::new(tasks), kick_refresh, space: Mutex::new(None) };
        this.await_two(Duration::from_millis(this.shared.limits.sync_deadline_ms)).await;
        Ok(Arc::new(this))
    }

    /// Waits until two replicas of each shard can be read, so that the first request finds them.
    async fn await_two(&self, patience: Duration) {
        let limit = Instant::now() + patience;
        while Instant::now() < limit {
            let ready = (0..self.shared.shards()).all(|s| self.shared.readers(s, 0).1.len() >= 2);
            if ready {
                return;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// What the periodic refresh does, now: compares and mends all shards, then re-reads values from
    /// disk as far as the budget of one refresh goes (small volumes: all of them). `progress` is
    /// called with (done, total) shards, then bytes.
    pub async fn refresh(&self, progress: impl Fn(u64, u64)) -> Report {
        let compared = {
            let p = refresh::begin(&self.shared);
            let mut work = std::pin::pin!(refresh::refresh(&self.shared, &p));
            watch_progress(&mut work, &p, &progress).await
        };
        compared + self.scrub_some(self.shared.limits.scrub_bytes_per_refresh, progress).await
    }

    /// Re-reads and mends everything now. `progress` is called with (done, total) bytes.
    pub async fn scrub(&self, progress: impl Fn(u64, u64)) -> Report {
        self.scrub_some(u64::MAX, progress).await
    }

    /// Re-reads about `budget` bytes of each bank.
    async fn scrub_some(&self, budget: u64, progress: impl Fn(u64, u64)) -> Report {
        let p = refresh::begin_scrub(&self.shared, budget).await;
        let mut scrubber = refresh::Scrubber::default();
        let mut work = std::pin::pin!(refresh::scrub(&self.shared, &mut scrubber, budget, &p));
        watch_progress(&mut work, &p, &progress).await
    }

    /// When the estimate says "full": lets what is dirty be committed, then asks the banks. True
    /// when `bytes` fit after all.
    async fn fits_after_all(&self, bytes: usize, limit: Instant) -> bool {
        let mut watch = self.shared.watermark.subscribe();
        {
            let mut core = self.shared.core.lock();
            core.seal_asked = true;
        }
        self.shared.seal_bell.notify_one();
        while self.shared.core.lock().dirty_bytes() > 0 {
            match tokio::time::timeout_at(limit, watch.changed()).await {
                Ok(()) => {}
                Err(_) => break,
            }
        }
        // A node that did not answer this once may be the one with room.
        for _ in 0..SPACE_TRIES {
            let silent = ask_space(&self.shared).await;
            if self.shared.core.lock().fits(bytes) {
                return true;
            }
            // Who has been away for a while is not asked again: the others must hold it then.
            let hoped_for = {
                let core = self.shared.core.lock();
                let lease = self.shared.limits.lease();
                let now = self.shared.now();
                silent.iter().any(|(b, s)| {
                    let health = &core.shards[usize::from(*s)].replicas[*b].health;
                    let away = now.saturating_sub(health.away_since());
                    health.health() != Health::Down || away < lease
                })
            };
            if !hoped_for || Instant::now() >= limit {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        false
    }

    /// Allows the stores of a bank (of one shard, or of all that are not up to date) to be filled anew
    /// when they are empty, were replaced, rolled back or are damaged; gives the shards. Filling
    /// begins with the next look at the node. A store of another volume stays untouched.
    ///
    /// # Errors
    /// In words: no such shard, or nothing to replace.
    pub fn replace(
        &self,
        bank: BankId,
        shard: Option<u16>,
    ) -> std::result::Result<Vec<u16>, String> {
        let shards = self.shared.shards();
        if let Some(s) = shard.filter(|s| *s >= shards) {
            return Err(format!("there is no shard {s}: the volume has {shards}"));
        }
        let wanted: Vec<u16> = {
            let core = self.shared.core.lock();
            let lost = |s: &u16| !core.shards[usize::from(*s)].replicas[bank].is_up_to_date();
            (0..shards).filter(|s| shard.is_none_or(|only| only == *s)).filter(lost).collect()
        };
        if wanted.is_empty() {
            return Err(format!("bank {bank} is up to date there: nothing to replace"));
        }
        self.shared.replace.lock().extend(wanted.iter().map(|s| (bank, *s)));
        Ok(wanted)
    }

    /// Starts a refresh in the background.
    pub fn kick_refresh(&self) {
        self.kick_refresh.notify_one();
    }

    /// Dies without a word, as a killed process would: what was not sent is lost.
    pub fn abandon(&self) {
        self.shared.fence("abandoned".into());
        self.tasks.lock().drain(..).for_each(|t| t.abort());
    }

    /// Syncs, says goodbye to the nodes (the next mount need not wait) and ends all tasks.
    ///
    /// # Errors
    /// Of the last sync.
    pub async fn close(&self) -> Result<()> {
        let synced = self.sync().await.map(drop);
        let watermark = self.shared.core.lock().watermark;
        // Only after a clean sync: a holder that left dirty data behind was not clean.
        if synced.is_ok() {
            let mut goodbyes = Vec::new();
            for bank in BankId::ALL {
                for shard in 0..self.shared.shards() {
                    let store: StoreId =
                        self.shared.core.lock().shards[shard as usize].replicas[bank].store;
                    let request = Request::Beat { watermark, release: true };
                    let shared = self.shared.clone();
                    goodbyes.push(async move {
                        let deadline = Duration::from_secs(1);
                        let _ = shared.call(shard, bank, store, request, vec![], deadline).await;
                    });
                }
            }
            futures_util::future::join_all(goodbyes).await;
        }
        self.shared.stop.set(true);
        let tasks = std::mem::take(&mut *self.tasks.lock());
        for t in tasks {
            // A task that panicked has nothing to add.
            let _ = tokio::time::timeout(Duration::from_secs(2), t).await;
        }
        synced
    }
}

async fn watch_progress<T>(
    work: &mut (impl Future<Output = T> + Unpin),
    p: &Work,
    progress: &impl Fn(u64, u64),
) -> T {
    use std::sync::atomic::Ordering::Relaxed;
    loop {
        tokio::select! {
            biased;
            r = &mut *work => {
                progress(p.done.load(Relaxed), p.total.load(Relaxed));
                return r;
            }
            () = tokio::time::sleep(Duration::from_millis(100)) => {
                progress(p.done.load(Relaxed), p.total.load(Relaxed));
            }
        }
    }
}

/// Closes groups when they are due and encodes them, in order; the only task that does.
async fn seal(shared: Arc<Shared>) {
    loop {
        let (sealed, due) = {
            let mut core = shared.core.lock();
            if core.wants_seal(&shared.limits, Instant::now()) {
                core.seal();
            }
            (core.sealed.pop_front(), core.seal_due(&shared.limits))
        };
        if let Some(group) = sealed {
            add(&shared.metrics.groups, 1);
            for (shard, head, records) in group.parts {
                let bytes = storenode::part::encode_in_pieces(&head, &records);
                add(&shared.metrics.part_bytes, bytes.len());
                shared.core.lock().push_part(shard, &head, bytes);
            }
            shared.pushed.modify(|n| *n += 1);
            continue;
        }
        // A due group that finds no room in flight is looked at again when something commits.
        let pause = due
            .map_or(Duration::from_secs(3600), |t| t.saturating_duration_since(Instant::now()))
            .max(Duration::from_millis(10));
        tokio::select! {
            biased;
            () = shared.seal_bell.notified() => {}
            () = tokio::time::sleep(pause) => {}
            () = stopped(shared.stop.subscribe()) => return,
        }
    }
}

/// Who waits for a replica that lags looks so often whether it still does.
const LAG_LOOK: Duration = Duration::from_millis(2);

/// How often all nodes are asked for their free space before a writer is told that there is none, if not
/// all answer.
const SPACE_TRIES: usize = 4;

/// Asks all nodes for their free space; who did not answer?
async fn ask_space(shared: &Shared) -> Vec<(BankId, u16)> {
    let made = shared.core.lock().made_bytes;
    let (space, silent) = crate::status::space(&shared.banks, shared.shards()).await;
    let Some(s) = space else { return silent };
    let mut core = shared.core.lock();
    core.free_bytes = s.free_bytes;
    core.made_when_asked = made;
    core.reserve_bytes = (s.capacity_bytes / 32).min(256 << 20);
    silent
}

/// Keeps the free space known, so that a full bank says ENOSPC to writers and not EIO to syncs.
async fn watch_space(shared: Arc<Shared>) {
    loop {
        ask_space(&shared).await;
        // Near the end look more often.
        let pause = if shared.core.lock().free_bytes < 4 << 30 { 500 } else { 5_000 };
        tokio::select! {
            biased;
            () = tokio::time::sleep(Duration::from_millis(pause)) => {}
            () = stopped(shared.stop.subscribe()) => return,
        }
    }
}

impl Volume for Replicated {
    fn id(&self) -> VolumeId {
        self.shared.volume
    }
    fn shards(&self) -> u16 {
        self.shared.shards()
    }
    fn epoch(&self) -> u64 {
        self.shared.core.lock().epoch
    }
    fn somebody_asks(&self) {
        self.shared.somebody_asks();
    }

    fn submit(&self, ops: Vec<Op>) -> Result<Version> {
        let footprint = Core::footprint(&ops)?;
        let mut core = self.shared.core.lock();
        let mut ring = false;
        if core.must_seal_before(footprint) {
            core.seal();
            ring = true;
        }
        let now = Instant::now();
        let first = core.seal_due(&self.shared.limits).is_none();
        let version = core.submit(ops, now)?;
        // The sealer sleeps until the group's timer; it must be told of the first and the full.
        if ring || first || core.wants_seal(&self.shared.limits, now) {
            drop(core);
            self.shared.seal_bell.notify_one();
        }
        Ok(version)
    }

    fn pending(&self, key: &[u8]) -> Option<Option<Stored>> {
        self.shared.core.lock().pending(key)
    }

    fn room(&self, bytes: usize) -> BoxFuture<'_, Result<()>> {
        async move {
            let mut watch = self.shared.watermark.subscribe();
            let limit = Instant::now() + self.shared.limits.room_deadline();
            let (now, limits) = (|| self.shared.now(), &self.shared.limits);
            let paced = self.shared.core.lock().pace(bytes, limits, now());
            while let Some(left) = paced.and_then(|t| t.checked_sub(now()))
                && Instant::now() < limit
                && self.shared.core.lock().lags(limits, now())
            {
                tokio::time::sleep(left.min(LAG_LOOK)).await;
            }
            loop {
                self.alive()?;
                {
                    let (dirty, fits) = {
                        let core = self.shared.core.lock();
                        (core.dirty_bytes(), core.fits(bytes))
                    };
                    if !fits && !self.fits_after_all(bytes, limit).await {
                        return Err(VolumeError::NoSpace);
                    }
                    if dirty == 0 || dirty + bytes <= self.shared.limits.dirty_bytes {
                        return Ok(());
                    }
                }
                self.shared.seal_bell.notify_one();
                match tokio::time::timeout_at(limit, watch.changed()).await {
                    Ok(()) => {}
                    Err(_) => {
                        return Err(VolumeError::Unavailable(
                            "dirty data could not be committed in time".into(),
                        ));
                    }
                }
            }
        }
        .boxed()
    }

    fn has_room(&self, bytes: usize) -> bool {
        let limits = &self.shared.limits;
        let mut core = self.shared.core.lock();
        let dirty = core.dirty_bytes();
        let free = core.fits(bytes) && dirty + bytes <= limits.dirty_bytes;
        core.fenced.is_none() && free && !core.lags(limits, self.shared.now())
    }

    fn get(&self, keys: Vec<(u16, Key)>) -> BoxFuture<'_, Result<Vec<Option<Stored>>>> {
        read::get(&self.shared, keys).boxed()
    }

    fn scan(&self, shard: u16, start: Key, end: Key, limit: usize) -> BoxFuture<'_, Result<Page>> {
        read::scan(&self.shared, shard, start, end, limit).boxed()
    }

    fn sync(&self) -> BoxFuture<'_, Result<SyncReceipt>> {
        async move {
            let limit = Instant::now() + self.shared.limits.sync_deadline();
            let mut watch = self.shared.watermark.subscribe();
            let target = {
                let mut core = self.shared.core.lock();
                core.seal_asked = true;
                core.sync_target()
            };
            self.shared.seal_bell.notify_one();
            let result = async {
                loop {
                    self.alive()?;
                    if watch.get().seq >= target {
                        break;
                    }
                    watch.changed().await;
                }
                // Trap 10: a mount that is cut off must not say "durable", even with nothing dirty.
                while !self.shared.lease_holds() {
                    self.alive()?;
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                self.alive()
            };
            match tokio::time::timeout_at(limit, result).await {
                Ok(Ok(())) => {
                    add(&self.shared.metrics.syncs, 1);
                    Ok(SyncReceipt(()))
                }
                Ok(Err(e)) => Err(e),
                Err(_) => {
                    add(&self.shared.metrics.syncs_failed, 1);
                    Err(VolumeError::Unavailable(
                        "not known to be durable on two banks; it may still commit".into(),
                    ))
                }
            }
        }
        .boxed()
    }

    fn space(&self) -> BoxFuture<'_, Result<VolumeSpace>> {
        async move {
            if let Some((at, s)) = *self.space.lock()
                && at.elapsed() < Duration::from_secs(1)
            {
                return Ok(s);
            }
            let (fresh, _) = crate::status::space(&self.shared.banks, self.shared.shards()).await;
            let mut known = self.space.lock();
            if let Some(s) = fresh {
                *known = Some((Instant::now(), s));
            }
            known.map(|(_, s)| s).ok_or_else(|| {
                VolumeError::Unavailable("no two banks say how full they are".into())
            })
        }
        .boxed()
    }

    fn alive(&self) -> Result<()> {
        match &self.shared.core.lock().fenced {
            Some(why) => Err(VolumeError::Fenced(why.clone())),
            None => Ok(()),
        }
    }

    fn deadline(&self) -> Duration {
        self.shared.limits.sync_deadline().max(self.shared.limits.room_deadline())
            + self.shared.limits.read_deadline()
    }
}
