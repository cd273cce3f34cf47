//! A node in this process: the node's own service over a directory in memory. Everything but HTTP
//! is the real thing.

use super::{Bank, BankError};
use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;
use storenode::disk::MemoryDisk;
use storenode::service::{NodeConfig, OpenError, Service};
use storenode::wire::{BankId, Envelope, Reply, Request, Status};

/// A node that can be killed, started, cut from its power and emptied.
pub struct MemoryBank {
    config: NodeConfig,
    state: Mutex<State>,
}

struct State {
    disk: MemoryDisk,
    service: Option<Arc<Service>>,
    starts: u64,
}

impl MemoryBank {
    /// A running node on an empty directory. `seed` makes its store ids repeatable.
    ///
    /// # Errors
    /// [`OpenError`] of the service.
    pub fn start_new(bank: BankId, shard: u16, seed: u64) -> Result<Self, OpenError> {
        let config = NodeConfig {
            seed: Some(seed),
            allow_faults: true,
            segment_bytes: 1 << 20,
            ..NodeConfig::new(bank, shard)
        };
        Self::with(config, MemoryDisk::new())
    }

    /// A running node with this configuration over this directory.
    ///
    /// # Errors
    /// [`OpenError`] of the service.
    pub fn with(config: NodeConfig, disk: MemoryDisk) -> Result<Self, OpenError> {
        let bank = Self { config, state: Mutex::new(State { disk, service: None, starts: 0 }) };
        bank.start()?;
        Ok(bank)
    }

    /// Starts the node if it does not run.
    ///
    /// # Errors
    /// [`OpenError`] of the service.
    pub fn start(&self) -> Result<(), OpenError> {
        let mut state = self.state.lock();
        if state.service.is_some() {
            return Ok(());
        }
        state.starts += 1;
        let mut config = self.config.clone();
        // Another stream of store ids for each life of the process, as randomness would give.
        config.seed = config.seed.map(|s| s.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ state.starts);
        let disk = Arc::new(state.disk.clone());
        state.service = Some(Arc::new(Service::open(disk, config)?));
        Ok(())
    }

    /// Kills the process (SIGKILL): what was written stays, synced or not.
    pub fn kill(&self) {
        let mut state = self.state.lock();
        state.service = None;
        state.disk.kill();
    }

    /// Cuts the power: only what was synced stays, and of every later write as much as `keep`
    /// lets through (see [`MemoryDisk::crash_keeping`]). Start it again with [`Self::start`].
    pub fn crash(&self, keep: impl FnMut(&str, usize) -> usize) {
        let mut state = self.state.lock();
        state.service = None;
        state.disk.crash_keeping(keep);
    }

    /// Kills the node and empties its directory.
    pub fn wipe(&self) {
        let mut state = self.state.lock();
        state.service = None;
        state.disk.kill();
        state.disk = MemoryDisk::new();
    }

    /// Kills the node and puts another directory in the place of its own (an old copy put back);
    /// returns the one it had.
    pub fn replace_disk(&self, disk: MemoryDisk) -> MemoryDisk {
        let mut state = self.state.lock();
        state.service = None;
        state.disk.kill();
        std::mem::replace(&mut state.disk, disk)
    }

    /// The directory.
    #[must_use]
    pub fn disk(&self) -> MemoryDisk {
        self.state.lock().disk.clone()
    }

    /// Is it running?
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.state.lock().service.is_some()
    }

    /// The service, while it runs: to break things on purpose, or to look.
    #[must_use]
    pub fn service(&self) -> Option<Arc<Service>> {
        self.state.lock().service.clone()
    }

    /// Its status, while it runs.
    #[must_use]
    pub fn status(&self) -> Option<Status> {
        self.service().map(|s| s.status())
    }

    /// What the node's own clock does: idle marks, sidecars, compaction (all that is due).
    pub fn tick(&self, now: Duration) {
        if let Some(service) = self.service() {
            service.tick(now);
            while service.maintain() {}
        }
    }
}

impl Bank for MemoryBank {
    /// Answers in the first poll. The service blocks on nothing but its own locks here, since its
    /// disk is memory.
    fn call(
        &self,
        envelope: Envelope,
        request: Request,
        bulk: Vec<Bytes>,
        _deadline: Duration,
    ) -> BoxFuture<'_, Result<(Reply, Bytes), BankError>> {
        Box::pin(async move {
            let Some(service) = self.service() else {
                return Err(BankError::Unreachable(format!("{} is not running", self.name())));
            };
            let (reply, pieces) = service.handle(envelope, request, join(bulk))?;
            Ok((reply, join(pieces)))
        })
    }

    fn name(&self) -> String {
        format!("bank {} shard {} in memory", self.config.bank, self.config.shard)
    }
}

/// One buffer of many; a single one is not copied.
fn join(mut pieces: Vec<Bytes>) -> Bytes {
    if pieces.len() == 1 {
        return pieces.remove(0);
    }
    let mut all = BytesMut::with_capacity(pieces.iter().map(Bytes::len).sum());
    pieces.iter().for_each(|p| all.extend_from_slice(p));
    all.freeze()
}
