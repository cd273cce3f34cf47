//! One life of a volume: the steps of a plan carried out against the real voter, judged by a history
//! of contents kept outside.

use crate::plan::{Fault, Plan, Step};
use crate::wire::Weather;
use crate::world::{World, limits};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use storenode::wire::{BankId, Key};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use voter::volume::{Change, Op, Stored, Volume as _};
use voter::{OpenError, OpenOptions, Replicated};

/// With at most one bad replica per shard a volume opens within this, virtual time.
const OPEN_WITHIN: Duration = Duration::from_secs(90);
/// A replica whose trouble is over is whole within this of a mount's time.
const WHOLE_WITHIN_MS: u64 = 120_000;

/// Keys and values of all shards.
pub type Content = BTreeMap<Key, Vec<u8>>;

/// What went wrong; the run ends with it.
pub type Check<T = ()> = Result<T, String>;

/// Contents after each operation since the last mount; the first is what that mount found.
pub struct History {
    states: Vec<Content>,
    /// Index of the newest content that a sync acknowledged.
    synced: usize,
    /// Set once the next mount has found a content: nothing after it may be acknowledged any more.
    found: Option<usize>,
    /// The first thing that was wrong in the background.
    wrong: Option<String>,
}

impl History {
    fn begin(content: Content) -> Arc<Mutex<Self>> {
        let states = vec![content];
        Arc::new(Mutex::new(Self { states, synced: 0, found: None, wrong: None }))
    }

    fn newest(&self) -> &Content {
        &self.states[self.states.len() - 1]
    }

    fn push(&mut self, ops: &[Op]) {
        let mut next = self.newest().clone();
        for op in ops {
            match &op.change {
                Change::Put(v) | Change::PutNew(v) => drop(next.insert(op.key.clone(), v.to_vec())),
                Change::Delete => drop(next.remove(&op.key)),
                Change::Retract => {}
            }
        }
        self.states.push(next);
    }

    /// A sync that began when the history was `upto` long was acknowledged.
    fn acknowledged(&mut self, upto: usize) {
        self.synced = self.synced.max(upto);
        if self.found.is_some_and(|found| found < upto) {
            self.wrong.get_or_insert_with(|| {
                format!(
                    "a sync through {upto} was acknowledged after the next mount found {:?}",
                    self.found
                )
            });
        }
    }

    /// The next mount sees this: which of the contents is it?
    fn judge(&mut self, seen: &Content) -> Check<usize> {
        let Some(found) = self.states.iter().rposition(|s| s == seen) else {
            let near = brief(&self.states[self.synced]);
            return Err(format!(
                "the content found is none that was: {}\nsynced through {} of {}: {near}\nnewest: {}",
                brief(seen),
                self.synced,
                self.states.len() - 1,
                brief(self.newest())
            ));
        };
        if found < self.synced {
            return Err(format!(
                "the content found, {found}, is older than what was acknowledged, {}: {}\n{}",
                self.synced,
                brief(seen),
                brief(&self.states[self.synced])
            ));
        }
        self.found = Some(found);
        Ok(found)
    }
}

/// Keys with the number of the operation that wrote each.
fn brief(content: &Content) -> String {
    let one = |(key, value): (&Key, &Vec<u8>)| {
        let text = String::from_utf8_lossy(&value[value.len().saturating_sub(16)..]).into_owned();
        format!("{}={}", String::from_utf8_lossy(key), text.trim_start_matches('.'))
    };
    content.iter().map(one).collect::<Vec<_>>().join(" ")
}

/// See the module.
pub struct Life<'a> {
    plan: &'a Plan,
    /// The nodes and what is wrong with them.
    pub world: Arc<World>,
    volume: Option<Arc<Replicated>>,
    history: Arc<Mutex<History>>,
    /// Histories of mounts that were taken over and may still live.
    ghosts: Vec<(Arc<Replicated>, Arc<Mutex<History>>, JoinHandle<()>)>,
    syncs: Vec<JoinHandle<()>>,
    opened: u64,
    /// Operations submitted and syncs acknowledged, for the report.
    pub operations: u64,
}

impl<'a> Life<'a> {
    /// Makes the volume and mounts it.
    ///
    /// # Errors
    /// What went wrong.
    pub async fn begin(plan: &'a Plan, world: Arc<World>) -> Check<Self> {
        world.name_volume(plan.seed)?;
        Replicated::init_with(&world.wires(), &limits()).await.map_err(|e| e.to_string())?;
        let mut life = Self {
            plan,
            world,
            volume: None,
            history: History::begin(Content::new()),
            ghosts: Vec::new(),
            syncs: Vec::new(),
            opened: 0,
            operations: 0,
        };
        life.mount().await?;
        Ok(life)
    }

    fn volume(&self) -> Check<&Arc<Replicated>> {
        self.volume.as_ref().ok_or_else(|| "not mounted".to_owned())
    }

    fn opening(&mut self) -> impl Future<Output = Result<Arc<Replicated>, OpenError>> + use<> {
        self.opened += 1;
        let options = OpenOptions {
            holder: format!("mount {}", self.opened),
            takeover: true,
            auto_replace: true,
            seed: Some(self.plan.seed ^ (self.opened << 40)),
            progress: Arc::new(|_| {}),
        };
        Replicated::open_with(self.world.wires(), limits(), options)
    }

    /// Opens, patiently, and judges what is found.
    async fn mount(&mut self) -> Check {
        let limit = Instant::now() + OPEN_WITHIN;
        let volume = loop {
            match self.opening().await {
                Ok(volume) => break volume,
                Err(e) => {
                    self.world.trace.note(format_args!("-- cannot open: {e}"));
                    if Instant::now() >= limit {
                        return Err(format!("stuck: cannot open: {e}\n{}", self.world.describe()));
                    }
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
        };
        let seen = dump(&volume).await?;
        let found = self.history.lock().judge(&seen)?;
        self.world.trace.note(format_args!("-- mounted: found {found}: {}", brief(&seen)));
        self.volume = Some(volume);
        self.history = History::begin(seen);
        Ok(())
    }

    /// The mount dies without a word.
    fn die(&mut self) {
        self.syncs.drain(..).for_each(|s| s.abort());
        if let Some(volume) = self.volume.take() {
            volume.abandon();
        }
    }

    fn ops(&self, dice: u64) -> Vec<Op> {
        let mut dice = StdRng::seed_from_u64(dice);
        let mut ops: Vec<Op> = Vec::new();
        for _ in 0..dice.random_range(1..=4) {
            let number: u16 = dice.random_range(0..self.plan.keys);
            let op = self.op(number, &mut dice);
            if ops.iter().all(|o| o.key != op.key) {
                ops.push(op);
            }
        }
        ops
    }

    fn op(&self, number: u16, dice: &mut StdRng) -> Op {
        // A key belongs to one shard for ever.
        let shard = number % self.plan.shards;
        let key = format!("k{number}").into_bytes();
        let change = if dice.random_ratio(1, 3) {
            Change::Delete
        } else {
            let len = match dice.random_range(0..20) {
                0 => 40_000,
                1..=3 => 3_000,
                _ => 3,
            };
            let mut value = vec![b'.'; len];
            value.extend(format!("{}.{}", self.opened, self.operations).as_bytes());
            Change::Put(value.into())
        };
        Op { shard, key, change }
    }

    async fn submit(&mut self, dice: u64) -> Check {
        self.operations += 1;
        let ops = self.ops(dice);
        let volume = self.volume()?;
        let bytes = 50_000;
        volume.room(bytes).await.map_err(|e| format!("no room: {e}"))?;
        volume.submit(ops.clone()).map_err(|e| format!("submit: {e}"))?;
        self.history.lock().push(&ops);
        Ok(())
    }

    async fn sync(&mut self) -> Check {
        let upto = self.history.lock().states.len() - 1;
        let done = self.volume()?.sync().await;
        done.map_err(|e| format!("sync: {e}\n{}", self.world.describe()))?;
        self.history.lock().acknowledged(upto);
        Ok(())
    }

    fn sync_behind(&mut self) -> Check {
        let volume = Arc::clone(self.volume()?);
        let history = Arc::clone(&self.history);
        let upto = history.lock().states.len() - 1;
        self.syncs.retain(|s| !s.is_finished());
        self.syncs.push(tokio::spawn(async move {
            match volume.sync().await {
                Ok(_) => history.lock().acknowledged(upto),
                Err(e) => {
                    history.lock().wrong.get_or_insert(format!("sync behind: {e}"));
                }
            }
        }));
        Ok(())
    }

    async fn get(&self, dice: u64) -> Check {
        let mut dice = StdRng::seed_from_u64(dice);
        let numbers: Vec<u16> =
            (0..dice.random_range(1..=5)).map(|_| dice.random_range(0..self.plan.keys)).collect();
        let key = |n: u16| format!("k{n}").into_bytes();
        let keys = numbers.iter().map(|n| (n % self.plan.shards, key(*n))).collect();
        let got = self.volume()?.get(keys).await.map_err(|e| format!("get: {e}"))?;
        let history = self.history.lock();
        for (n, got) in numbers.iter().zip(got) {
            let want = history.newest().get(&key(*n));
            if got.as_ref().map(|s| &s.value[..]) != want.map(|v| &v[..]) {
                let (got, want) = (got.map(|s| s.value.to_vec()), want.cloned());
                let one = |v: Option<Vec<u8>>| {
                    brief(&v.into_iter().map(|v| (key(*n), v)).collect::<Content>())
                };
                return Err(format!("read {:?} and not {:?}", one(got), one(want)));
            }
        }
        Ok(())
    }

    async fn scan(&self) -> Check {
        let seen = dump(self.volume()?).await?;
        let history = self.history.lock();
        if seen != *history.newest() {
            return Err(format!("listed {}\nand not {}", brief(&seen), brief(history.newest())));
        }
        Ok(())
    }

    /// One step, then a look at everything that must hold all the time.
    ///
    /// # Errors
    /// What went wrong.
    pub async fn step(&mut self, step: Step) -> Check {
        if !matches!(step, Step::Submit { .. } | Step::Get { .. } | Step::Scan | Step::Pause { .. })
        {
            self.world.trace.note(format_args!("-- {step:?}"));
        }
        match step {
            Step::Submit { dice } => self.submit(dice).await?,
            Step::Sync => self.sync().await?,
            Step::SyncBehind => self.sync_behind()?,
            Step::Get { dice } => self.get(dice).await?,
            Step::Scan => self.scan().await?,
            Step::Pause { ms } => tokio::time::sleep(Duration::from_millis(ms)).await,
            Step::Refresh => drop(self.volume()?.refresh(|_, _| {}).await),
            Step::Strike { shard, bank, fault, for_ms, dice } => {
                self.world.strike((bank, shard % self.plan.shards), fault, for_ms, dice);
            }
            Step::Weather(weather) => self.world.net.set(weather),
            Step::MountCrash => {
                self.die();
                self.mount().await?;
            }
            Step::MountCrashTwice { ms } => {
                self.die();
                let opening = self.opening();
                let _ = tokio::time::timeout(Duration::from_millis(ms), opening)
                    .await
                    .map(|opened| opened.map(|volume| volume.abandon()));
                self.mount().await?;
            }
            Step::Remount => {
                let upto = self.history.lock().states.len() - 1;
                let volume = self.volume.take().ok_or("not mounted")?;
                volume.close().await.map_err(|e| format!("close: {e}"))?;
                self.history.lock().acknowledged(upto);
                self.die();
                self.mount().await?;
            }
            Step::AllKilled => {
                self.die();
                self.world.all_end(None);
                self.world.all_start();
                self.mount().await?;
            }
            Step::PowerCut { dice } => {
                self.die();
                self.world.all_end(Some(dice));
                self.world.all_start();
                self.mount().await?;
            }
            Step::Takeover => self.takeover().await?,
        }
        self.look()
    }

    /// The mount lives on and writes while the next one takes over.
    async fn takeover(&mut self) -> Check {
        self.syncs.drain(..).for_each(|s| s.abort());
        let old = self.volume.take().ok_or("not mounted")?;
        let history = Arc::clone(&self.history);
        let (volume, log) = (Arc::clone(&old), Arc::clone(&history));
        let first = self.op(0, &mut StdRng::seed_from_u64(self.operations));
        let task = tokio::spawn(async move {
            for n in 0..200 {
                let value = format!("ghost {n}").into_bytes();
                let op = Op { change: Change::Put(value.into()), ..first.clone() };
                let upto = {
                    let mut log = log.lock();
                    if volume.submit(vec![op.clone()]).is_err() {
                        return;
                    }
                    // What it writes after the next mount has looked is nobody's any more.
                    if log.found.is_none() {
                        log.push(&[op]);
                    }
                    log.states.len() - 1 + usize::from(log.found.is_some())
                };
                if volume.sync().await.is_ok() {
                    log.lock().acknowledged(upto);
                }
                tokio::time::sleep(Duration::from_millis(3)).await;
            }
        });
        self.ghosts.push((old, history, task));
        self.mount().await
    }

    /// What must hold all the time: nothing wrong in the background, nobody stuck.
    fn look(&mut self) -> Check {
        let mut histories = vec![&self.history];
        histories.extend(self.ghosts.iter().map(|(_, h, _)| h));
        for h in histories {
            if let Some(wrong) = h.lock().wrong.take() {
                return Err(wrong);
            }
        }
        if let Some((why, since)) = self.world.look()
            && self.world.trace.now_ms() > since + WHOLE_WITHIN_MS
        {
            return Err(format!("stuck: not whole: {why}\n{}", self.world.describe()));
        }
        Ok(())
    }

    /// Waits until nothing is bad any more.
    async fn await_whole(&mut self) -> Check {
        while self.world.look().is_some() {
            self.look()?;
            if self.world.rots() {
                self.volume()?.refresh(|_, _| {}).await;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        self.look()
    }

    /// All faults end; what is then found must be right, on every bank.
    ///
    /// # Errors
    /// What went wrong.
    pub async fn end(&mut self) -> Check {
        self.world.trace.note(format_args!("-- the end: all is well again"));
        self.world.net.set(Weather::default());
        self.world.end_all(self.plan.seed);
        self.await_whole().await?;
        for (old, _, task) in self.ghosts.drain(..) {
            task.abort();
            old.abandon();
        }
        self.sync().await?;
        self.scan().await?;
        self.volume()?.refresh(|_, _| {}).await;
        self.await_equal("at the end").await?;
        self.volume
            .take()
            .ok_or("not mounted")?
            .close()
            .await
            .map_err(|e| format!("close: {e}"))?;
        let upto = self.history.lock().states.len() - 1;
        self.history.lock().acknowledged(upto);
        // Any two banks hold everything.
        let bank = BankId::ALL[(self.plan.seed % 3) as usize];
        for shard in 0..self.plan.shards {
            self.world.strike((bank, shard), Fault::Kill, 1_000, 0);
        }
        self.mount().await?;
        self.scan().await?;
        tokio::time::sleep(Duration::from_millis(1_001)).await;
        self.await_whole().await?;
        self.await_equal("after the last fault").await?;
        self.die();
        Ok(())
    }

    async fn await_equal(&mut self, when: &str) -> Check {
        let limit = Instant::now() + Duration::from_secs(60);
        while let Some(why) = self.world.difference() {
            if Instant::now() >= limit {
                return Err(format!("stuck: unequal {when}: {why}\n{}", self.world.describe()));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }
}

/// Everything that a mount sees.
async fn dump(volume: &Replicated) -> Check<Content> {
    let mut all = Content::new();
    for shard in 0..volume.shards() {
        let mut start = Key::new();
        loop {
            let page = volume.scan(shard, start, Key::new(), 7).await;
            let page = page.map_err(|e| format!("scan of shard {shard}: {e}"))?;
            all.extend(
                page.records.into_iter().map(|(k, Stored { value, .. })| (k, value.to_vec())),
            );
            match page.next {
                Some(next) => start = next,
                None => break,
            }
        }
    }
    Ok(all)
}
