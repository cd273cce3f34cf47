//! Three banks of node services in memory with wires that misbehave, and a map of what the volume should
//! hold.

use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use storenode::wire::{
    BankId, Envelope, Fault, Key, PerBank, Reply, Request, Version, WIRE_FORMAT,
};
use voter::bank::Bank;
use voter::bank::faulty::FaultyBank;
use voter::bank::memory::MemoryBank;
use voter::volume::{Change, Op, Volume};
use voter::{Limits, Nodes, OpenError, OpenOptions, Replicated};

pub(crate) const SHARDS: u16 = 2;

pub(crate) struct World {
    pub(crate) nodes: PerBank<Vec<Arc<MemoryBank>>>,
    pub(crate) wires: PerBank<Vec<Arc<FaultyBank>>>,
    pub(crate) limits: Limits,
}

pub(crate) fn limits() -> Limits {
    Limits {
        sync_deadline_ms: 3_000,
        read_deadline_ms: 2_000,
        call_deadline_ms: 500,
        hedge_ms: 30,
        group_timer_ms: 20,
        beat_ms: 100,
        lease_ms: 1_000,
        holder_watch_ms: 400,
        probe_first_ms: 10,
        probe_longest_ms: 100,
        // Tests ask for a refresh when they want one.
        refresh_interval_s: 3_600,
        ..Limits::default()
    }
}

impl World {
    pub(crate) fn new() -> Self {
        let nodes = PerBank::from_fn(|b| {
            (0..SHARDS)
                .map(|s| {
                    let seed = 1 + u64::from(s) * 3 + b.index() as u64;
                    Arc::new(MemoryBank::start_new(b, s, seed).expect("a node in memory"))
                })
                .collect::<Vec<_>>()
        });
        let wires = PerBank::from_fn(|b| {
            nodes[b]
                .iter()
                .map(|n: &Arc<MemoryBank>| Arc::new(FaultyBank::new(n.clone() as Arc<dyn Bank>, 7)))
                .collect::<Vec<_>>()
        });
        let world = Self { nodes, wires, limits: limits() };
        world.clock();
        world
    }

    /// The nodes' own clock: marks of idle logs, sidecars, compaction.
    pub(crate) fn clock(&self) {
        let nodes: Vec<_> = self.nodes.0.iter().flatten().cloned().collect();
        let began = Instant::now();
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_millis(50)).await;
                nodes.iter().for_each(|n| n.tick(began.elapsed()));
            }
        });
    }

    pub(crate) fn as_nodes(&self) -> Nodes {
        Nodes {
            banks: PerBank::from_fn(|b| {
                self.wires[b].iter().map(|w| w.clone() as Arc<dyn Bank>).collect()
            }),
        }
    }

    pub(crate) async fn made() -> Self {
        let world = Self::new();
        Replicated::init_with(&world.as_nodes(), &limits()).await.expect("init");
        world
    }

    pub(crate) async fn open(&self) -> Arc<Replicated> {
        self.try_open(true).await.expect("open")
    }

    pub(crate) async fn try_open(&self, takeover: bool) -> Result<Arc<Replicated>, OpenError> {
        let options = OpenOptions {
            holder: "test".into(),
            takeover,
            auto_replace: true,
            seed: None,
            progress: Arc::new(|_| {}),
        };
        Replicated::open_with(self.as_nodes(), self.limits.clone(), options).await
    }

    pub(crate) fn each(&self, bank: BankId, f: impl Fn(&MemoryBank)) {
        self.nodes[bank].iter().for_each(|n| f(n));
    }

    pub(crate) fn kill(&self, bank: BankId) {
        self.each(bank, MemoryBank::kill);
    }

    pub(crate) fn start(&self, bank: BankId) {
        self.each(bank, |n| n.start().expect("restart"));
    }

    pub(crate) fn all(&self, f: impl Fn(BankId)) {
        BankId::ALL.into_iter().for_each(f);
    }

    /// Breaks something of a key on one node.
    pub(crate) fn inject(&self, bank: BankId, key: &Key, fault: Fault) {
        let node = &self.nodes[bank][usize::from(shard_of(key))];
        node.service().expect("runs").inject(fault).expect("inject");
    }

    /// Asks one node as an observer does, at what it knows to be committed.
    pub(crate) fn ask(
        &self,
        bank: BankId,
        shard: u16,
        request: impl FnOnce(Version) -> Request,
    ) -> (Reply, Vec<Bytes>) {
        let service = self.nodes[bank][shard as usize].service().expect("running");
        let status = service.status();
        let envelope = Envelope {
            format: WIRE_FORMAT,
            volume: status.volume.expect("a volume"),
            store: status.store,
            epoch: 0,
            nonce: 0,
        };
        service.handle(envelope, request(status.watermark), Bytes::new()).expect("an answer")
    }

    /// Live records of one node: version and digest by key.
    pub(crate) fn content(&self, bank: BankId, shard: u16) -> BTreeMap<Key, (String, String)> {
        let mut out = BTreeMap::new();
        let mut start = Vec::new();
        loop {
            let (reply, _) = self.ask(bank, shard, |through| Request::Scan {
                start: start.clone(),
                end: vec![],
                limit: 1_000,
                values: false,
                through,
            });
            let Reply::Records { records, next, .. } = reply else { panic!("{reply:?}") };
            for r in records {
                out.insert(r.key, (r.version.to_string(), r.digest.to_string()));
            }
            match next {
                Some(mut k) => {
                    k.push(0);
                    start = k;
                }
                None => return out,
            }
        }
    }

    /// The bytes of a record as one node sends them; nothing of one that is damaged.
    pub(crate) fn sent(&self, bank: BankId, key: &Key) -> Vec<u8> {
        let read = |through| Request::Read { keys: [key.clone()].into(), through };
        self.ask(bank, shard_of(key), read).1.concat()
    }

    /// Waits until all three banks hold the same.
    pub(crate) async fn await_equal(&self) {
        let limit = Instant::now() + Duration::from_secs(10);
        loop {
            let differ = (0..SHARDS).find(|s| {
                let a = self.content(BankId::A, *s);
                a != self.content(BankId::B, *s) || a != self.content(BankId::C, *s)
            });
            let Some(shard) = differ else { return };
            if Instant::now() > limit {
                for b in BankId::ALL {
                    eprintln!(
                        "bank {b} shard {shard}: {:?}",
                        self.nodes[b][shard as usize].status()
                    );
                    eprintln!("  {} records", self.content(b, shard).len());
                }
                panic!("the banks do not become equal in shard {shard}");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

pub(crate) async fn await_redundancy(v: &Replicated, n: usize) {
    let limit = Instant::now() + Duration::from_secs(10);
    loop {
        let status = v.status().await;
        if status.redundancy == n {
            return;
        }
        assert!(
            Instant::now() < limit,
            "redundancy {} and not {n}: {status:#?}",
            status.redundancy
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub(crate) async fn until(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let limit = Instant::now() + Duration::from_secs(10);
    while !done().await {
        assert!(Instant::now() < limit, "not within 10 s: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A volume and what it should hold.
pub(crate) struct Checked {
    pub(crate) v: Arc<Replicated>,
    pub(crate) model: BTreeMap<Key, Bytes>,
}

pub(crate) fn shard_of(key: &[u8]) -> u16 {
    u16::from(key[0]) % SHARDS
}
pub(crate) fn key(n: usize) -> Key {
    vec![n as u8, (n >> 8) as u8, b'k']
}

impl Checked {
    pub(crate) fn put(&mut self, n: usize, text: &str) {
        let (key, value) = (key(n), Bytes::from(format!("{text} {n}")));
        let op = Op { shard: shard_of(&key), key: key.clone(), change: Change::Put(value.clone()) };
        self.v.submit(vec![op]).expect("submit");
        self.model.insert(key, value);
    }
    pub(crate) fn delete(&mut self, n: usize) {
        let key = key(n);
        let op = Op { shard: shard_of(&key), key: key.clone(), change: Change::Delete };
        self.v.submit(vec![op]).expect("submit");
        self.model.remove(&key);
    }
    pub(crate) async fn sync(&self) {
        self.v.sync().await.expect("sync");
    }
    /// Every key of the model, and some that are not in it, read singly and by scan.
    pub(crate) async fn check(&self) {
        let mut wanted: Vec<Key> = self.model.keys().cloned().collect();
        wanted.extend((0..600).map(key));
        let asked = wanted.iter().map(|k| (shard_of(k), k.clone())).collect();
        let got = self.v.get(asked).await.expect("get");
        for (k, g) in wanted.iter().zip(got) {
            assert_eq!(g.map(|s| s.value), self.model.get(k).cloned(), "key {k:?}");
        }
        let mut scanned = BTreeMap::new();
        for shard in 0..SHARDS {
            let mut start = Vec::new();
            loop {
                let page = self.v.scan(shard, start, vec![], 37).await.expect("scan");
                scanned.extend(page.records.into_iter().map(|(k, s)| (k, s.value)));
                match page.next {
                    Some(n) => start = n,
                    None => break,
                }
            }
        }
        assert_eq!(scanned, self.model);
    }
}

pub(crate) async fn filled(world: &World) -> Checked {
    let mut c = Checked { v: world.open().await, model: BTreeMap::new() };
    (0..300).for_each(|n| c.put(n, "first"));
    c.sync().await;
    c.check().await;
    c
}

pub(crate) fn runtime_test(f: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        tokio::time::timeout(Duration::from_secs(60), f).await.expect("stuck");
    });
}
