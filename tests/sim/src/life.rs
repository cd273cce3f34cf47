//! One life of a volume: the steps of a plan carried out against the real stack, judged by a history of
//! contents kept outside.

use crate::plan::{Fault, Plan, Step};
use crate::wire::Weather;
use crate::work::{Check, Tag, Trouble, Work, refused};
use crate::world::{World, limits};
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;
use storenode::wire::BankId;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use voter::{OpenError, OpenOptions, Replicated};

/// With at most one bad replica per shard a volume opens within this, virtual time.
const OPEN_WITHIN: Duration = Duration::from_secs(90);
/// Beyond the fault model no opener is more patient than this.
const OPEN_PATIENCE: Duration = Duration::from_secs(10);
/// A replica whose trouble is over is whole within this of a mount's time.
const WHOLE_WITHIN_MS: u64 = 120_000;

/// Contents after each operation since the last mount; the first is what that mount found.
pub struct History<W: Work> {
    states: Vec<W::State>,
    /// Index of the newest content that a sync acknowledged.
    synced: usize,
    /// Set once the next mount has found a content: nothing after it may be acknowledged any more.
    found: Option<usize>,
    /// The first thing that was wrong, or refused, in the background.
    wrong: Option<String>,
    refused: Option<String>,
}

impl<W: Work> History<W> {
    fn begin(content: W::State) -> Arc<Mutex<Self>> {
        let states = vec![content];
        Arc::new(Mutex::new(Self { states, synced: 0, found: None, wrong: None, refused: None }))
    }

    fn newest(&self) -> &W::State {
        &self.states[self.states.len() - 1]
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
    fn judge(&mut self, seen: &W::State) -> Check<usize> {
        let Some(found) = self.states.iter().rposition(|s| s == seen) else {
            let near = W::brief(&self.states[self.synced]);
            return Err(format!(
                "the content found is none that was: {}\nsynced through {} of {}: {near}\nnewest: {}",
                W::brief(seen),
                self.synced,
                self.states.len() - 1,
                W::brief(self.newest())
            )
            .into());
        };
        if found < self.synced {
            return Err(format!(
                "the content found, {found}, is older than what was acknowledged, {}: {}\n{}",
                self.synced,
                W::brief(seen),
                W::brief(&self.states[self.synced])
            )
            .into());
        }
        self.found = Some(found);
        Ok(found)
    }
}

/// A mount that was taken over, its history, and what still writes to it.
type Ghost<W> = (Arc<Replicated>, Arc<Mutex<History<W>>>, JoinHandle<()>);

/// See the module.
pub struct Life<'a, W: Work> {
    plan: &'a Plan,
    /// The nodes and what is wrong with them.
    pub world: Arc<World>,
    mount: Option<(Arc<Replicated>, W)>,
    history: Arc<Mutex<History<W>>>,
    /// Histories of mounts that were taken over and may still live.
    ghosts: Vec<Ghost<W>>,
    syncs: Vec<JoinHandle<()>>,
    opened: u64,
    /// Operations submitted and syncs acknowledged, for the report.
    pub operations: u64,
    /// What was refused beyond the fault model.
    pub refusals: u64,
}

impl<'a, W: Work> Life<'a, W> {
    /// Makes the volume and mounts it.
    ///
    /// # Errors
    /// What went wrong.
    pub async fn begin(plan: &'a Plan, world: Arc<World>) -> Check<Self> {
        world.name_volume(plan.seed)?;
        Replicated::init_with(&world.wires(), &limits(plan)).await.map_err(refused("init"))?;
        let mut life = Self {
            plan,
            world,
            mount: None,
            history: History::begin(W::empty()),
            ghosts: Vec::new(),
            syncs: Vec::new(),
            opened: 0,
            operations: 0,
            refusals: 0,
        };
        life.mount().await?;
        Ok(life)
    }

    fn mounted(&self) -> Check<&(Arc<Replicated>, W)> {
        self.mount.as_ref().ok_or_else(|| Trouble::Refused("not mounted".to_owned()))
    }

    fn unmount(&mut self) -> Check<(Arc<Replicated>, W)> {
        self.mount.take().ok_or_else(|| Trouble::Refused("not mounted".to_owned()))
    }

    fn opening(&mut self) -> impl Future<Output = Result<Arc<Replicated>, OpenError>> + use<W> {
        self.opened += 1;
        let options = OpenOptions {
            holder: format!("mount {}", self.opened),
            takeover: true,
            auto_replace: true,
            seed: Some(self.plan.seed ^ (self.opened << 40)),
            progress: Arc::new(|_| {}),
        };
        Replicated::open_with(self.world.wires(), limits(self.plan), options)
    }

    /// Opens, patiently, and judges what is found.
    async fn mount(&mut self) -> Check {
        let patience = if self.plan.beyond { OPEN_PATIENCE } else { OPEN_WITHIN };
        let limit = Instant::now() + patience;
        let volume = loop {
            match self.opening().await {
                Ok(volume) => break volume,
                Err(e) => {
                    self.world.trace.note(format_args!("-- cannot open: {e}"));
                    if Instant::now() >= limit {
                        return Err(refused("stuck: cannot open")(format!(
                            "{e}\n{}",
                            self.world.describe()
                        )));
                    }
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
        };
        let begun = async {
            let work = W::open(self.plan, &volume).await?;
            let seen = work.dump().await?;
            Ok::<_, Trouble>((work, seen))
        };
        let (work, seen) = match begun.await {
            Ok(begun) => begun,
            Err(e) => {
                volume.abandon();
                return Err(e);
            }
        };
        let found = self.history.lock().judge(&seen)?;
        self.world.trace.note(format_args!("-- mounted: found {found}: {}", W::brief(&seen)));
        self.mount = Some((volume, work));
        self.history = History::begin(seen);
        Ok(())
    }

    /// The mount dies without a word.
    fn die(&mut self) {
        self.syncs.drain(..).for_each(|s| s.abort());
        if let Some((volume, _)) = self.mount.take() {
            volume.abandon();
        }
    }

    async fn submit(&mut self, dice: u64) -> Check {
        self.operations += 1;
        let newest = self.history.lock().newest().clone();
        let tag = Tag { mount: self.opened, operation: self.operations };
        let next = self.mounted()?.1.operate(newest, dice, tag).await?;
        self.history.lock().states.push(next);
        Ok(())
    }

    async fn sync(&mut self) -> Check {
        let upto = self.history.lock().states.len() - 1;
        let done = self.mounted()?.1.sync().await;
        done.map_err(|e| e.of(&self.world.describe()))?;
        self.history.lock().acknowledged(upto);
        Ok(())
    }

    fn sync_behind(&mut self) -> Check {
        let sync = self.mounted()?.1.sync();
        let history = Arc::clone(&self.history);
        let upto = history.lock().states.len() - 1;
        self.syncs.retain(|s| !s.is_finished());
        self.syncs.push(tokio::spawn(async move {
            match sync.await {
                Ok(()) => history.lock().acknowledged(upto),
                Err(e) => {
                    history.lock().refused.get_or_insert(format!("sync behind: {e}"));
                }
            }
        }));
        Ok(())
    }

    async fn get(&self, dice: u64) -> Check {
        let want = self.history.lock().newest().clone();
        self.mounted()?.1.look(&want, dice).await
    }

    async fn scan(&self) -> Check {
        let seen = self.mounted()?.1.dump().await?;
        let history = self.history.lock();
        if seen != *history.newest() {
            return Err(format!(
                "listed {}\nand not {}",
                W::brief(&seen),
                W::brief(history.newest())
            )
            .into());
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
            Step::Refresh => drop(self.mounted()?.0.refresh(|_, _| {}).await),
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
                let (volume, _work) = self.unmount()?;
                volume.close().await.map_err(refused("close"))?;
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
        let (old, work) = self.unmount()?;
        let history = Arc::clone(&self.history);
        let log = Arc::clone(&history);
        let task = tokio::spawn(async move {
            for n in 0..200 {
                let newest = log.lock().newest().clone();
                let Ok(next) = work.haunt(newest, n).await else { return };
                let upto = {
                    let mut log = log.lock();
                    // What it writes after the next mount has looked is nobody's any more.
                    if log.found.is_none() {
                        log.states.push(next);
                    }
                    log.states.len() - 1 + usize::from(log.found.is_some())
                };
                if work.sync().await.is_ok() {
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
            let mut h = h.lock();
            if let Some(wrong) = h.wrong.take() {
                return Err(wrong.into());
            }
            if let Some(e) = h.refused.take() {
                return Err(Trouble::Refused(e));
            }
        }
        if let Some((why, since)) = self.world.look()
            && !self.plan.beyond
            && self.world.trace.now_ms() > since + WHOLE_WITHIN_MS
        {
            return Err(format!("stuck: not whole: {why}\n{}", self.world.describe()).into());
        }
        Ok(())
    }

    /// Waits until nothing is bad any more.
    async fn await_whole(&mut self) -> Check {
        while self.world.look().is_some() {
            self.look()?;
            if self.world.rots() {
                self.mounted()?.0.refresh(|_, _| {}).await;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        self.look()
    }

    /// A step beyond the fault model: it may be refused, and nothing else.
    ///
    /// # Errors
    /// What was wrong.
    pub async fn step_beyond(&mut self, step: Step) -> Check {
        let mut done = Ok(());
        if self.mount.is_none() {
            done = self.mount().await;
        }
        if done.is_ok() {
            done = self.step(step).await;
        }
        match done {
            Err(Trouble::Refused(why)) => {
                self.refusals += 1;
                let brief = why.lines().next().unwrap_or_default();
                self.world.trace.note(format_args!("-- refused: {brief}"));
                self.look_beyond()
            }
            done => done,
        }
    }

    /// Refusals in the background are allowed, too.
    fn look_beyond(&mut self) -> Check {
        loop {
            match self.look() {
                Err(Trouble::Refused(_)) => self.refusals += 1,
                done => return done,
            }
        }
    }

    /// All causes end. What can be opened then must be right.
    ///
    /// # Errors
    /// What was wrong.
    pub async fn end_beyond(&mut self) -> Check {
        self.world.trace.note(format_args!("-- the end"));
        self.world.net.set(Weather::default());
        self.world.end_all(self.plan.seed);
        for (old, _, task) in self.ghosts.drain(..) {
            task.abort();
            old.abandon();
        }
        self.step_beyond(Step::Sync).await?;
        self.step_beyond(Step::Scan).await?;
        self.step_beyond(Step::MountCrash).await?;
        self.step_beyond(Step::Scan).await?;
        self.die();
        Ok(())
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
        self.await_equal("at the end").await?;
        let mended = self.mounted()?.0.refresh(|_, _| {}).await;
        if mended.mended > 0 {
            return Err(format!("equal banks were mended: {mended:?}").into());
        }
        self.await_equal("after a refresh").await?;
        let (volume, work) = self.unmount()?;
        work.settle().await?;
        volume.close().await.map_err(refused("close"))?;
        drop(work);
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
                return Err(
                    format!("stuck: unequal {when}: {why}\n{}", self.world.describe()).into()
                );
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }
}
