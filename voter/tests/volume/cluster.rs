//! Three banks of real nodes in this process, behind faulty connections, on disks in memory.

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use storenode::wire::{BankId, Key, PerBank};
use voter::bank::Bank;
use voter::bank::faulty::{Faults, FaultyBank};
use voter::bank::memory::MemoryBank;
use voter::volume::{Stored, Volume as _};
use voter::{Limits, Nodes, OpenError, OpenOptions, Replicated};

pub(crate) type Content = BTreeMap<(u16, Key), Vec<u8>>;

/// Everything faster than in life, so that waiting costs little.
pub(crate) fn limits() -> Limits {
    Limits {
        sync_deadline_ms: 8_000,
        read_deadline_ms: 4_000,
        room_deadline_ms: 8_000,
        call_deadline_ms: 300,
        hedge_ms: 15,
        group_timer_ms: 10,
        beat_ms: 50,
        lease_ms: 1_000,
        holder_watch_ms: 200,
        probe_first_ms: 10,
        probe_longest_ms: 60,
        refresh_interval_s: 3600,
        ..Limits::default()
    }
}

pub(crate) struct Cluster {
    pub(crate) nodes: PerBank<Vec<Arc<MemoryBank>>>,
    pub(crate) links: PerBank<Vec<Arc<FaultyBank>>>,
    pub(crate) shards: u16,
    stop: Arc<AtomicBool>,
}

impl Cluster {
    pub(crate) fn new(shards: u16, seed: u64) -> Self {
        let mut dice = StdRng::seed_from_u64(seed);
        let nodes = PerBank::from_fn(|bank| {
            (0..shards)
                .map(|s| Arc::new(MemoryBank::start_new(bank, s, dice.random()).expect("starts")))
                .collect::<Vec<_>>()
        });
        let links = PerBank::from_fn(|bank| {
            let of = |n: &Arc<MemoryBank>| {
                Arc::new(FaultyBank::new(Arc::clone(n) as Arc<dyn Bank>, dice.random()))
            };
            nodes[bank].iter().map(of).collect::<Vec<_>>()
        });
        let stop = Arc::new(AtomicBool::new(false));
        let all: Vec<Arc<MemoryBank>> = nodes.iter().flat_map(|(_, n)| n.clone()).collect();
        let stopped = Arc::clone(&stop);
        // The nodes' own clock.
        std::thread::spawn(move || {
            let began = Instant::now();
            while !stopped.load(Ordering::Relaxed) {
                all.iter().for_each(|n| n.tick(began.elapsed()));
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        Self { nodes, links, shards, stop }
    }

    /// Makes the volume.
    pub(crate) async fn init(self) -> Self {
        Replicated::init_with(&self.address_book(), &limits()).await.expect("init");
        self
    }

    fn address_book(&self) -> Nodes {
        let of = |bank: BankId| {
            self.links[bank].iter().map(|l| Arc::clone(l) as Arc<dyn Bank>).collect()
        };
        Nodes { banks: PerBank::from_fn(of) }
    }

    pub(crate) async fn try_open(&self) -> Result<Arc<Replicated>, OpenError> {
        let options = OpenOptions {
            holder: "test".into(),
            takeover: true,
            auto_replace: true,
            seed: None,
            progress: Arc::new(|_| {}),
        };
        Replicated::open_with(self.address_book(), limits(), options).await
    }

    /// Opens; a message lost in the middle of it is a reason to begin again.
    pub(crate) async fn open(&self) -> Arc<Replicated> {
        let mut last = String::new();
        for _ in 0..10 {
            match self.try_open().await {
                Ok(volume) => return volume,
                Err(OpenError::Unavailable(e)) => last = e,
                // A voter that was fenced and then lost the message that asked for its tail.
                Err(OpenError::Incomplete(e)) if e.contains("needs two") => last = e,
                Err(e) => panic!("cannot open: {e}\n{}", self.describe()),
            }
        }
        panic!("cannot open: {last}\n{}", self.describe());
    }

    pub(crate) fn each(&self, bank: BankId, f: impl Fn(&MemoryBank)) {
        self.nodes[bank].iter().for_each(|n| f(n));
    }

    pub(crate) fn kill(&self, bank: BankId) {
        self.each(bank, MemoryBank::kill);
    }

    pub(crate) fn start(&self, bank: BankId) {
        self.each(bank, |n| n.start().expect("starts"));
    }

    pub(crate) fn faults(&self, bank: BankId, faults: Faults) {
        self.links[bank].iter().for_each(|l| l.set(faults));
    }

    pub(crate) fn hang(&self, bank: BankId, on: bool) {
        self.links[bank].iter().for_each(|l| l.hang(on));
    }

    /// Waits until every voter of every shard holds and has applied everything.
    pub(crate) async fn await_equal(&self, what: &str) {
        let began = Instant::now();
        loop {
            let Some(different) = self.difference() else { return };
            assert!(
                began.elapsed() < Duration::from_secs(20),
                "{what}: {different}\n{}",
                self.describe()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// What the nodes say of themselves.
    fn describe(&self) -> String {
        let mut text = String::new();
        for shard in 0..usize::from(self.shards) {
            for bank in BankId::ALL {
                let Some(s) = self.nodes[bank][shard].status() else { continue };
                text += &format!(
                    "{bank}{shard} {:?} {:?} watermark {} attached {} promise {} openings {:?} lost {:?} \
                     cursor {:?} failed {:?} configuration {} marks {:?}\n",
                    s.role,
                    s.position,
                    s.watermark,
                    s.attached,
                    s.promise.epoch,
                    s.openings,
                    s.damaged_through,
                    s.cursor,
                    s.failed,
                    s.configuration.number,
                    s.marks
                );
            }
        }
        text
    }

    /// What the three banks disagree about: positions, then contents.
    pub(crate) fn difference(&self) -> Option<String> {
        for shard in 0..self.shards {
            let row = PerBank::from_fn(|b| self.nodes[b][usize::from(shard)].status());
            let state = PerBank::from_fn(|b| {
                row[b].as_ref().map(|s| {
                    let space = (s.space.records, s.space.live_bytes);
                    (s.role, s.position.position, s.position.applied, s.configuration.number, space)
                })
            });
            let settled = row.iter().all(|(_, s)| {
                s.as_ref().is_some_and(|s| s.position.applied == s.position.position)
            });
            let equal =
                state[BankId::A] == state[BankId::B] && state[BankId::A] == state[BankId::C];
            if !equal || !settled {
                return Some(format!("shard {shard}: {state:?}"));
            }
        }
        None
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// All that a reader of the volume sees.
pub(crate) async fn dump(volume: &Replicated) -> Content {
    let mut all = Content::new();
    for shard in 0..volume.shards() {
        let mut start = Key::new();
        loop {
            let page = volume.scan(shard, start, Key::new(), 7).await;
            let page = page.unwrap_or_else(|e| panic!("scan of shard {shard}: {e}"));
            let records = page.records.into_iter();
            all.extend(records.map(|(k, Stored { value, .. })| ((shard, k), value.to_vec())));
            match page.next {
                Some(next) => start = next,
                None => break,
            }
        }
    }
    all
}
