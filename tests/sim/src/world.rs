//! The nodes, the network, and what is wrong with them: the fault model is kept here. In each shard at
//! most one replica is bad at a time, and it counts as bad until it is whole again.

use crate::broken::Broken;
use crate::node::Node;
use crate::plan::{Fault, Plan, TOMBSTONES_MAX};
use crate::trace::Trace;
use crate::wire::{Link, Net, Wire};
use bytes::Bytes;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use storenode::disk::{Disk as _, MemoryDisk};
use storenode::wire::{
    BankId, Configuration, Digest, Envelope, Fault as NodeFault, Key, PerBank, Reply, Request,
    Role, StoreId, Version, VolumeId, WIRE_FORMAT,
};
use voter::bank::Bank;
use voter::{Limits, Nodes};

/// Everything faster than in life, so that little has to happen while something times out.
#[must_use]
pub fn limits(plan: &Plan) -> Limits {
    Limits {
        sync_deadline_ms: 30_000,
        read_deadline_ms: 20_000,
        room_deadline_ms: 30_000,
        call_deadline_ms: 1_000,
        hedge_ms: 20,
        group_timer_ms: 30,
        stream_bytes: 64 << 10,
        // So little that a replica cannot simply be sent what it missed, where it is to be struck out.
        replay_bytes: if plan.tombstones_max < TOMBSTONES_MAX { 1 << 10 } else { 64 << 10 },
        // So much more is kept for a replica that is up to date: one that lags must be given up now and then.
        dirty_bytes: 256 << 10,
        beat_ms: 100,
        lease_ms: 1_500,
        holder_watch_ms: 400,
        probe_first_ms: 10,
        probe_longest_ms: 100,
        refresh_interval_s: plan.refresh_s,
        tombstones_max: plan.tombstones_max,
        strike_after_ms: 3_000,
        copy_page_bytes: 8,
        ..Limits::default()
    }
}

/// What is wrong with one replica.
#[derive(Clone, Copy, Debug)]
struct Bad {
    shard: u16,
    bank: BankId,
    fault: Fault,
    /// Its cause is over since (virtual milliseconds); what remains is to become whole.
    ended: Option<u64>,
}

/// Live records of one node: what an observer compares.
pub type Content = BTreeMap<Key, (Version, Digest)>;

/// See the module.
pub struct World {
    /// What happened.
    pub trace: Arc<Trace>,
    /// The network.
    pub net: Arc<Net>,
    /// By bank, then shard.
    pub nodes: PerBank<Vec<Arc<Node>>>,
    /// Shards of the volume.
    pub shards: u16,
    bad: Mutex<Vec<Bad>>,
    /// Bad replicas of one shard at a time, at most: one, or two beyond the fault model.
    bad_most: usize,
    /// Old copies of directories, to be put back.
    copies: Mutex<BTreeMap<(BankId, u16), MemoryDisk>>,
    mounts: AtomicU64,
    broken: Option<Broken>,
}

impl World {
    /// Running nodes on empty directories, and their clock.
    #[must_use]
    pub fn new(plan: &Plan, trace: Arc<Trace>) -> Arc<Self> {
        let mut dice = StdRng::seed_from_u64(plan.seed ^ 0x5eed);
        let nodes = PerBank::from_fn(|bank| {
            let node = |shard| {
                Arc::new(Node::new(bank, shard, dice.random(), plan.segment_bytes, plan.broken))
            };
            (0..plan.shards).map(node).collect::<Vec<_>>()
        });
        let world = Arc::new(Self {
            net: Arc::new(Net::new(Arc::clone(&trace), dice.random(), plan.broken)),
            trace,
            nodes,
            shards: plan.shards,
            bad: Mutex::default(),
            bad_most: if plan.beyond { 2 } else { 1 },
            copies: Mutex::default(),
            mounts: AtomicU64::new(0),
            broken: plan.broken,
        });
        let clock = Arc::clone(&world);
        tokio::spawn(async move {
            let began = tokio::time::Instant::now();
            for n in 1_u64.. {
                tokio::time::sleep(Duration::from_millis(50)).await;
                let nodes = clock.nodes.iter().flat_map(|(_, b)| b);
                nodes.for_each(|node| node.tick(began.elapsed(), n.is_multiple_of(8)));
            }
        });
        world
    }

    /// The node of a place.
    #[must_use]
    pub fn node(&self, bank: BankId, shard: u16) -> &Arc<Node> {
        &self.nodes[bank][usize::from(shard)]
    }

    fn all(&self) -> impl Iterator<Item = &Arc<Node>> {
        self.nodes.0.iter().flatten()
    }

    /// Ways to all nodes for one more mount.
    pub fn wires(&self) -> Nodes {
        let mount = self.mounts.fetch_add(1, Ordering::Relaxed) + 1;
        let wire =
            |n: &Arc<Node>| Wire::new(Arc::clone(&self.net), Arc::clone(n), mount) as Arc<dyn Bank>;
        Nodes { banks: PerBank::from_fn(|b| self.nodes[b].iter().map(wire).collect()) }
    }

    /// Makes the first store a member of a volume with an id from the seed; `init` goes on with it.
    ///
    /// # Errors
    /// In words.
    pub fn name_volume(&self, seed: u64) -> Result<(), String> {
        let stores = PerBank::from_fn(|b| self.node(b, 0).status().map(|s| s.store));
        let node = self.node(BankId::A, 0);
        let mut id = [7; 16];
        id[..8].copy_from_slice(&seed.to_le_bytes());
        let envelope = Envelope {
            format: WIRE_FORMAT,
            volume: VolumeId::ZERO,
            store: stores[BankId::A].unwrap_or(StoreId::ZERO),
            epoch: 0,
            nonce: 0,
        };
        let request = Request::Assign {
            volume: VolumeId(id),
            bank: BankId::A,
            shard: 0,
            shards: self.shards,
            role: Role::Voter,
            configuration: Configuration { number: 1, stores },
            wipe: false,
        };
        let service = node.service().ok_or("a new node does not run")?;
        service.handle(envelope, request, Bytes::new()).map(drop).map_err(|e| e.to_string())
    }

    /// Lets a fault happen, if the model has room for it; answers whether it did.
    pub fn strike(
        self: &Arc<Self>,
        (bank, shard): (BankId, u16),
        fault: Fault,
        for_ms: u64,
        seed: u64,
    ) -> bool {
        {
            let mut bad = self.bad.lock();
            let of_shard: Vec<&Bad> = bad.iter().filter(|b| b.shard == shard).collect();
            if of_shard.len() >= self.bad_most || of_shard.iter().any(|b| b.bank == bank) {
                return false;
            }
            // Two copies of which one is old, and no third: nothing can tell which.
            if self.bad_most > 1 && fault == Fault::RollBack {
                return false;
            }
            // One that was struck out without any fault of its own counts as bad until it is whole.
            if self.bad_most == 1 && self.leaving(shard).is_some_and(|b| b != bank) {
                return false;
            }
            bad.push(Bad { shard, bank, fault, ended: None });
        }
        if !self.begin(bank, shard, fault, seed) {
            self.healed(bank, shard);
            return false;
        }
        self.trace.note(format_args!("-- {bank}{shard} {fault:?} for {for_ms} ms"));
        let this = Arc::clone(self);
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(for_ms)).await;
            // It ends with an empty disk: not while another is being filled.
            let mut tries = 0;
            while matches!(fault, Fault::Flip { .. })
                && this.bad_most == 1
                && this.leaving(shard).is_some_and(|b| b != bank)
                && tries < 600
            {
                tokio::time::sleep(Duration::from_millis(200)).await;
                tries += 1;
            }
            this.end(bank, shard, seed);
        });
        true
    }

    /// A replica that is being filled anew or has to be.
    fn leaving(&self, shard: u16) -> Option<BankId> {
        let row = PerBank::from_fn(|b| self.node(b, shard).status());
        let floor = row.iter().filter_map(|(_, s)| s.as_ref()).map(|s| s.floor).max();
        BankId::ALL.into_iter().find(|b| {
            row[*b].as_ref().is_some_and(|s| {
                let stands = s.position.applied.max(s.position.position);
                s.role != Role::Voter || floor.is_some_and(|f| stands < f)
            })
        })
    }

    fn healed(&self, bank: BankId, shard: u16) {
        self.bad.lock().retain(|b| (b.bank, b.shard) != (bank, shard));
    }

    fn begin(&self, bank: BankId, shard: u16, fault: Fault, seed: u64) -> bool {
        let node = self.node(bank, shard);
        let mut dice = StdRng::seed_from_u64(seed);
        match fault {
            Fault::Kill => node.kill(),
            Fault::Power => node.crash(keeping(&mut dice)),
            Fault::Hang => node.hang(true),
            Fault::Slow { ms } => self.net.set_link(bank, shard, Link { cut: false, slow_ms: ms }),
            Fault::Cut => self.net.set_link(bank, shard, Link { cut: true, slow_ms: 0 }),
            Fault::Wipe => {
                node.replace_disk(self.emptied(&node.disk()));
                node.start();
            }
            Fault::RollBack => {
                let Some(copy) = self.copies.lock().remove(&(bank, shard)) else {
                    // Nothing to go back to yet: take a copy for later.
                    let copy = node.disk().memory().copy();
                    self.copies.lock().insert((bank, shard), copy);
                    return false;
                };
                node.replace_disk(copy);
                node.start();
            }
            Fault::Full { slack } => {
                let disk = node.disk();
                let Ok(space) = disk.memory().space() else { return false };
                let used = space.total_bytes - space.free_bytes;
                disk.memory().set_capacity(Some(used + slack));
            }
            Fault::SyncErrors => node.disk().fail_syncs(true),
            Fault::DiskErrors { one_in } => node.disk().err(1.0 / f64::from(one_in), seed),
            Fault::DieIn { n, .. } => node.disk().die_in(n),
            Fault::Flip { bits, restart } => {
                if self.bad_most > 1 {
                    // What rots before its mark is written is a window that the fault model names.
                    for _ in 0..2 {
                        node.tick(Duration::from_millis(self.trace.now_ms()), false);
                    }
                }
                flip(node.disk().memory(), bits, &mut dice);
                if restart {
                    node.kill();
                    node.start();
                }
            }
            Fault::Rot { records } => return self.rot(bank, shard, records, &mut dice),
        }
        true
    }

    /// What an emptied directory holds: nothing, unless that rule is broken.
    fn emptied(&self, old: &crate::disk::SimDisk) -> MemoryDisk {
        let disk = MemoryDisk::new();
        if self.broken == Some(Broken::EmptyStoreVotes) {
            for name in ["state.a", "state.b"] {
                let _ = disk.replace(name, &old.memory().content(name).unwrap_or_default());
            }
        }
        disk
    }

    /// Breaks records of a running node behind its back.
    fn rot(&self, bank: BankId, shard: u16, records: u32, dice: &mut StdRng) -> bool {
        let Some(service) = self.node(bank, shard).service() else { return false };
        let Ok(all) = self.content(bank, shard) else { return false };
        let keys: Vec<Key> = all.into_keys().collect();
        if keys.is_empty() {
            return false;
        }
        let mut done = 0;
        for _ in 0..records {
            let key = keys[dice.random_range(0..keys.len())].clone();
            let fault = match dice.random_range(0..4) {
                0 | 1 => NodeFault::Corrupt { key },
                // Two lost writes outvote the third copy: nothing can tell.
                2 if self.bad_most == 1 => NodeFault::Drop { key },
                _ => NodeFault::Put { key, value: b"rotten".to_vec(), version: None },
            };
            done += u32::from(service.inject(fault).is_ok());
        }
        done > 0
    }

    /// The cause of what is bad in a replica is over; it must become whole by itself.
    fn end(&self, bank: BankId, shard: u16, seed: u64) {
        let fault = {
            let mut bad = self.bad.lock();
            let here = |b: &&mut Bad| (b.bank, b.shard, b.ended) == (bank, shard, None);
            let Some(b) = bad.iter_mut().find(here) else { return };
            b.ended = Some(self.trace.now_ms());
            b.fault
        };
        let node = self.node(bank, shard);
        self.trace.note(format_args!("-- {bank}{shard} {fault:?} ends"));
        match fault {
            Fault::Hang => node.hang(false),
            Fault::Slow { .. } | Fault::Cut => self.net.set_link(bank, shard, Link::default()),
            Fault::Full { .. } => node.disk().memory().set_capacity(None),
            Fault::SyncErrors | Fault::DiskErrors { .. } => {
                node.disk().err(0.0, 0);
                node.kill();
            }
            Fault::DieIn { power: true, .. } if node.life().is_none() => {
                node.crash(keeping(&mut StdRng::seed_from_u64(seed)));
            }
            Fault::Flip { .. } => node.replace_disk(MemoryDisk::new()),
            // Half of those that are being filled are interrupted.
            Fault::Wipe => match seed % 4 {
                0 => node.kill(),
                1 => node.crash(keeping(&mut StdRng::seed_from_u64(seed))),
                _ => {}
            },
            _ => {}
        }
        // The countdown to a death that did not come.
        if matches!(fault, Fault::DieIn { .. }) {
            let _ = node.disk().died();
        }
        node.start();
    }

    /// Ends all faults now.
    pub fn end_all(&self, seed: u64) {
        let bad = self.bad.lock().clone();
        bad.iter().for_each(|b| self.end(b.bank, b.shard, seed));
    }

    /// Marks replicas that are whole again; answers what is not whole yet, and since when it could
    /// be, virtual milliseconds.
    pub fn look(&self) -> Option<(String, u64)> {
        let mut rest = None;
        let bad = self.bad.lock().clone();
        for Bad { shard, bank, fault, ended } in bad {
            let Some(since) = ended else { continue };
            let rotten = || match fault {
                Fault::Rot { .. } => self.still_rotten(bank, shard),
                _ => None,
            };
            match self.not_whole(shard).or_else(rotten) {
                None => {
                    self.trace.note(format_args!("-- {bank}{shard} is whole"));
                    self.healed(bank, shard);
                }
                Some(why) => rest = Some((format!("{bank}{shard} ({fault:?}): {why}"), since)),
            }
        }
        rest
    }

    /// Is some replica bad because its records rotted? Refreshing and scrubbing ends that.
    #[must_use]
    pub fn rots(&self) -> bool {
        self.bad.lock().iter().any(|b| matches!(b.fault, Fault::Rot { .. }))
    }

    /// What refresh and scrub have not mended yet on a replica whose records rotted.
    fn still_rotten(&self, bank: BankId, shard: u16) -> Option<String> {
        let content = PerBank::from_fn(|b| self.content(b, shard));
        if content.0[0] != content.0[1] || content.0[1] != content.0[2] {
            return Some("records are lost, foreign or old".into());
        }
        let service = self.node(bank, shard).service()?;
        let status = service.status();
        let envelope = Envelope {
            format: WIRE_FORMAT,
            volume: status.volume?,
            store: status.store,
            epoch: 0,
            nonce: 0,
        };
        let mut after = Key::new();
        loop {
            let request = Request::Verify { after, budget_bytes: 16 << 20 };
            match service.handle(envelope, request, Bytes::new()) {
                Ok((Reply::Verified { bad, next, .. }, _)) => {
                    if let Some((_, what)) = bad.first() {
                        return Some(format!("damaged: {what}"));
                    }
                    after = next?;
                }
                other => return Some(format!("{other:?}")),
            }
        }
    }

    /// Why a shard is not whole: its three replicas as a person would look at them.
    #[must_use]
    pub fn not_whole(&self, shard: u16) -> Option<String> {
        let row = PerBank::from_fn(|b| self.node(b, shard).status());
        let newest = row.iter().filter_map(|(_, s)| Some(s.as_ref()?.promise.epoch)).max();
        let mut at = Vec::new();
        for (bank, status) in row.iter() {
            let Some(s) = status else { return Some(format!("{bank} does not answer")) };
            if let Some(why) = &s.failed {
                return Some(format!("{bank} failed: {why}"));
            }
            if s.role != Role::Voter {
                return Some(format!("{bank} is {:?}", s.role));
            }
            if Some(s.attached) != newest {
                return Some(format!("{bank} is attached to {} of {newest:?}", s.attached));
            }
            if s.damaged_through.is_some() || s.cursor.is_some() || s.position.detached.is_some() {
                return Some(format!("{bank} is catching up: {:?}", s.position));
            }
            at.push((s.position.position, s.configuration));
        }
        (at[0] != at[1] || at[1] != at[2]).then(|| format!("they stand at {at:?}"))
    }

    /// Live records of one node as an observer sees them: version and digest by key.
    ///
    /// # Errors
    /// In words.
    pub fn content(&self, bank: BankId, shard: u16) -> Result<Content, String> {
        let service = self.node(bank, shard).service().ok_or("does not run")?;
        let status = service.status();
        let envelope = Envelope {
            format: WIRE_FORMAT,
            volume: status.volume.ok_or("no volume")?,
            store: status.store,
            epoch: 0,
            nonce: 0,
        };
        let mut out = BTreeMap::new();
        let mut start = Key::new();
        loop {
            let request = Request::Scan {
                start,
                end: Key::new(),
                limit: 1_000,
                values: false,
                through: Version::ZERO,
            };
            let answer = service.handle(envelope, request, Bytes::new());
            let Reply::Records { records, next, .. } = answer.map_err(|e| e.to_string())?.0 else {
                return Err("a strange reply".into());
            };
            out.extend(records.into_iter().map(|r| (r.key, (r.version, r.digest))));
            match next {
                Some(mut key) => {
                    key.push(0);
                    start = key;
                }
                None => return Ok(out),
            }
        }
    }

    /// What the banks disagree about: position, what is applied, live records.
    #[must_use]
    pub fn difference(&self) -> Option<String> {
        for shard in 0..self.shards {
            if let Some(why) = self.not_whole(shard) {
                return Some(format!("shard {shard}: {why}"));
            }
            let applied =
                PerBank::from_fn(|b| self.node(b, shard).status().map(|s| s.position.applied));
            if applied.0[0] != applied.0[1] || applied.0[1] != applied.0[2] {
                return Some(format!("shard {shard}: applied {applied:?}"));
            }
            let content = PerBank::from_fn(|b| self.content(b, shard));
            if content.0[0] != content.0[1] || content.0[1] != content.0[2] {
                return Some(format!("shard {shard}: {content:?}"));
            }
        }
        None
    }

    /// Kills all nodes; `power`: what was not synced is lost, but for what these dice keep.
    pub fn all_end(&self, power: Option<u64>) {
        self.trace.note(format_args!("-- all end, power cut {}", power.is_some()));
        let mut dice = StdRng::seed_from_u64(power.unwrap_or(0));
        for node in self.all() {
            match power {
                Some(_) => node.crash(keeping(&mut dice)),
                None => node.kill(),
            }
        }
    }

    /// Starts all nodes that run but for their end; those that were away before stay away.
    pub fn all_start(&self) {
        let bad = self.bad.lock().clone();
        for node in self.all() {
            let away = bad.iter().any(|b| {
                (b.bank, b.shard) == (node.bank, node.shard)
                    && b.ended.is_none()
                    && matches!(b.fault, Fault::Kill | Fault::Power | Fault::Hang)
            });
            if !away {
                node.start();
            }
        }
    }

    /// All nodes, as they describe themselves.
    #[must_use]
    pub fn describe(&self) -> String {
        let mut text = String::new();
        for shard in 0..self.shards {
            for bank in BankId::ALL {
                let Some(s) = self.node(bank, shard).status() else {
                    text += &format!("{bank}{shard} does not answer\n");
                    continue;
                };
                text += &format!(
                    "{bank}{shard} {:?} {} {:?} w {} floor {} attached {} promise {} openings {:?} \
                     lost {:?} cursor {:?} failed {:?} configuration {:?} marks {:?}\n",
                    s.role,
                    s.store,
                    s.position,
                    s.watermark,
                    s.floor,
                    s.attached,
                    s.promise.epoch,
                    s.openings,
                    s.damaged_through,
                    s.cursor,
                    s.failed,
                    s.configuration,
                    s.marks
                );
            }
        }
        text
    }
}

/// How much of each unsynced write a power cut lets through: all, nothing, or a part.
fn keeping(dice: &mut StdRng) -> impl FnMut(&str, usize) -> usize {
    let mut dice = StdRng::seed_from_u64(dice.random());
    let mood: u32 = dice.random_range(0..4);
    move |_, len| match mood {
        0 => 0,
        1 => len,
        _ if dice.random() => len,
        _ => dice.random_range(0..=len),
    }
}

/// Flips bits in files of a directory.
fn flip(disk: &MemoryDisk, bits: u32, dice: &mut StdRng) {
    let Ok(names) = disk.list() else { return };
    for _ in 0..bits {
        let name = &names[dice.random_range(0..names.len())];
        let len = disk.content(name).map_or(0, |c| c.len() as u64);
        if len > 0 {
            disk.flip(name, dice.random_range(0..len), 1 << dice.random_range(0..8));
        }
    }
}
