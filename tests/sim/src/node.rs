//! One storage node: the real service over a simulated disk, as a process that can be killed, hung,
//! cut from its power, emptied, and started again.

use crate::broken::Broken;
use crate::disk::SimDisk;
use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;
use storenode::disk::MemoryDisk;
use storenode::service::{NodeConfig, Service};
use storenode::wire::{BankId, Envelope, NodeError, Reply, Request, Status};
use tokio::sync::Notify;

/// See the module.
pub struct Node {
    /// Its place.
    pub bank: BankId,
    /// Its place.
    pub shard: u16,
    config: NodeConfig,
    broken: Option<Broken>,
    state: Mutex<State>,
    /// Rings when it goes on after having hung, or ends.
    pub woken: Notify,
}

struct State {
    disk: SimDisk,
    service: Option<Arc<Service>>,
    hung: bool,
    /// Counts processes: a request that arrived at one is not answered by the next.
    life: u64,
}

/// What became of a request that reached a node.
pub enum Outcome {
    /// The answer.
    Answered(Result<(Reply, Bytes), NodeError>),
    /// The process ended while it worked on it, or does not run.
    Gone,
}

impl Node {
    /// A running node on an empty directory.
    #[must_use]
    pub fn new(
        bank: BankId,
        shard: u16,
        seed: u64,
        segment_bytes: u64,
        broken: Option<Broken>,
    ) -> Self {
        let config = NodeConfig {
            seed: Some(seed),
            allow_faults: true,
            segment_bytes,
            ..NodeConfig::new(bank, shard)
        };
        let disk = disk_for(broken, MemoryDisk::new());
        let state = Mutex::new(State { disk, service: None, hung: false, life: 0 });
        let node = Self { bank, shard, config, broken, state, woken: Notify::new() };
        node.start();
        node
    }

    /// Starts it if it does not run. A start that meets a disk error leaves it dead; the caller
    /// tries again.
    pub fn start(&self) {
        let mut s = self.state.lock();
        s.hung = false;
        if s.service.is_none() {
            s.life += 1;
            let mut config = self.config.clone();
            // Another stream of store ids for each life, as randomness would give.
            config.seed = config.seed.map(|x| x.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ s.life);
            s.service = Service::open(Arc::new(s.disk.clone()), config).ok().map(Arc::new);
            if s.disk.died() {
                s.service = None;
                s.disk.memory().kill();
            }
        }
        drop(s);
        self.woken.notify_waiters();
    }

    fn end(&self, s: &mut State) {
        s.service = None;
        s.hung = false;
        s.life += 1;
        let _ = s.disk.died();
        s.disk.err(0.0, 0);
        s.disk.fail_syncs(false);
        self.woken.notify_waiters();
    }

    /// Kills the process (SIGKILL): what was written stays, synced or not.
    pub fn kill(&self) {
        let mut s = self.state.lock();
        self.end(&mut s);
        s.disk.memory().kill();
    }

    /// Cuts the power: only what was synced stays, and of every later write as much as `keep` lets
    /// through.
    pub fn crash(&self, keep: impl FnMut(&str, usize) -> usize) {
        let mut s = self.state.lock();
        self.end(&mut s);
        s.disk.crash(keep);
    }

    /// Kills it and puts another directory in the place of its own.
    pub fn replace_disk(&self, disk: MemoryDisk) {
        let mut s = self.state.lock();
        self.end(&mut s);
        s.disk.memory().kill();
        s.disk = disk_for(self.broken, disk);
    }

    /// Stops it (SIGSTOP) or lets it go on.
    pub fn hang(&self, on: bool) {
        self.state.lock().hung = on;
        if !on {
            self.woken.notify_waiters();
        }
    }

    /// Does it hang?
    #[must_use]
    pub fn hangs(&self) -> bool {
        self.state.lock().hung
    }

    /// Number of its present process, if it runs.
    #[must_use]
    pub fn life(&self) -> Option<u64> {
        let s = self.state.lock();
        s.service.is_some().then_some(s.life)
    }

    /// Its directory.
    #[must_use]
    pub fn disk(&self) -> SimDisk {
        self.state.lock().disk.clone()
    }

    /// The service, while it runs: to break things on purpose, or to look.
    #[must_use]
    pub fn service(&self) -> Option<Arc<Service>> {
        self.state.lock().service.clone()
    }

    /// Its status, while it runs and does not hang.
    #[must_use]
    pub fn status(&self) -> Option<Status> {
        if self.hangs() {
            return None;
        }
        self.service().map(|s| s.status())
    }

    /// Hands it a request that arrived for its process number `life`.
    pub fn handle(&self, life: u64, e: Envelope, request: Request, bulk: Bytes) -> Outcome {
        let service = {
            let s = self.state.lock();
            if s.life != life {
                return Outcome::Gone;
            }
            let Some(service) = s.service.clone() else { return Outcome::Gone };
            service
        };
        let answer = service.handle(e, request, bulk).map(|(reply, bulk)| (reply, join(bulk)));
        if self.bury() { Outcome::Gone } else { Outcome::Answered(answer) }
    }

    /// Buries a process whose disk says that it ended inside an operation.
    fn bury(&self) -> bool {
        let mut s = self.state.lock();
        let died = s.disk.died_peek();
        if died {
            self.end(&mut s);
            s.disk.memory().kill();
        }
        died
    }

    /// The node's own clock: marks of idle logs, sidecars, compaction.
    pub fn tick(&self, now: Duration, maintain: bool) {
        if self.hangs() {
            return;
        }
        let Some(service) = self.service() else { return };
        service.tick(now);
        while maintain && service.maintain() {}
        drop(service);
        self.bury();
    }
}

/// A disk that keeps the rules, or not.
fn disk_for(broken: Option<Broken>, memory: MemoryDisk) -> SimDisk {
    let disk = SimDisk::over(memory);
    match broken {
        Some(Broken::FlushLies) => disk.lie(),
        Some(Broken::FlushRetried) => disk.retry_syncs(),
        Some(Broken::StateNotDurable) => disk.forget_states(),
        _ => {}
    }
    disk
}

/// One buffer of many; a single one is not copied.
pub(crate) fn join(mut pieces: Vec<Bytes>) -> Bytes {
    if pieces.len() == 1 {
        return pieces.remove(0);
    }
    let mut all = BytesMut::with_capacity(pieces.iter().map(Bytes::len).sum());
    pieces.iter().for_each(|p| all.extend_from_slice(p));
    all.freeze()
}
