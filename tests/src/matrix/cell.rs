//! One cell: a load, a fault, and what must be true afterwards.

use super::watch::{self, Watch};
use super::{Cell, Fault, Work};
use crate::cluster::{Bank, Cluster, Setup};
use crate::journal::{Journal, Style, Writing};
use crate::load::{self, check_file, make_file};
use crate::mount::MOUNT_PATIENCE;
use crate::node::Node;
use crate::process::until;
use crate::random::Random;
use serde_json::Value;
use std::fs::{self, File};
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// What a cell may take.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// No operation takes longer, unless the mount died under it.
    pub stall_max: Duration,
    /// Everything is whole within so long after the fault ended.
    pub repair_max: Duration,
}

/// Operations before a fault strikes.
const WARM: u64 = 30;
/// An idle mount asks every node how it is once a second.
const NOTICE_MAX: Duration = Duration::from_secs(3);
/// How long a load goes on once all is up to date.
const AFTERWARDS: Duration = Duration::from_millis(300);
/// 8 MiB, for the reader.
const BASE_CHUNKS: u64 = 128;
/// So that a repair lasts long enough to be struck; and a killed mount needs not be watched for 5 s.
const LIMITS: &str = "refill_bytes_per_s = 4194304\nholder_watch_ms = 1000\n";

/// One fault with all loads, on one volume.
#[derive(Debug)]
pub struct Row {
    cluster: Cluster,
    fault: Fault,
    times: Times,
    random: Random,
    number: usize,
    journals: Vec<Journal>,
}

enum Load {
    Idle,
    Writing(Writing),
    Reading(load::Load),
}

impl Load {
    fn progress(&self) -> u64 {
        match self {
            Self::Idle => WARM,
            Self::Writing(w) if w.has_ended() => WARM.max(w.progress()),
            Self::Writing(w) => w.progress(),
            Self::Reading(r) => r.progress(),
        }
    }
}

impl Row {
    /// A volume with something on it.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn begin(fault: Fault, times: Times, random: Random) -> Self {
        let setup = Setup {
            limits: LIMITS.into(),
            disk_bytes: fault.disk_bytes(),
            relays: fault.relays(),
            watchdog: Duration::from_secs(900),
            ..Setup::default()
        };
        let cluster = Cluster::start(&format!("matrix-{fault:?}").to_lowercase(), setup);
        make_file(&cluster.path("base"), 1, BASE_CHUNKS);
        Self { cluster, fault, times, random, number: 0, journals: Vec::new() }
    }

    /// Keeps logs and data.
    pub fn keep(&mut self) {
        self.cluster.keep();
    }

    /// Runs a cell. What was measured and found wrong is in the result.
    ///
    /// # Panics
    /// When the volume does not become whole, or does not mount.
    #[must_use]
    pub fn cell(&mut self, work: Work) -> Cell {
        let bank = Bank::ALL[self.number % 3];
        let shard = self.number % self.cluster.setup.shards;
        self.number += 1;
        let mut cell =
            Cell { fault: self.fault.name().into(), work: work.name().into(), ..Cell::default() };
        let mut problems = Vec::new();
        self.fault.prepare(&mut self.cluster, bank);
        self.await_healthy();
        let mut opening = None;
        let mut load = match work {
            Work::Repair => self.begin_repair(bank),
            Work::Opening => {
                opening = Some(self.begin_opening());
                Load::Idle
            }
            _ => self.begin_load(work),
        };
        until(self.times.repair_max, "the load has begun", || load.progress() >= WARM);
        if self.fault == Fault::RolledBack {
            self.fault.announce(&mut self.cluster, bank, shard);
            sleep(Duration::from_millis(500));
        }
        sleep(Duration::from_millis(self.random.below(500)));

        let watch = Watch::begin(&self.cluster);
        let struck = Instant::now();
        let note = self.fault.strike(&mut self.cluster, bank, shard, &mut self.random);
        cell.note = note.unwrap_or_default().into();
        if let Some(began) = opening.filter(|_| !self.fault.kills_mount()) {
            self.cluster.mounted().await_mounted(MOUNT_PATIENCE);
            cell.stall_ms = Some(millis(began.elapsed()));
            cell.note = format!("mount again {}", cell.note).trim_end().into();
            load = self.recover(&mut cell, &mut problems);
        }
        sleep(self.fault.lasts());
        self.fault.end(&mut self.cluster, bank, shard);
        let ended = Instant::now();
        if self.fault.kills_mount() {
            // What applications saw of it is no error of ours.
            self.stop(load);
            self.cluster.mount();
            cell.stall_ms = Some(millis(ended.elapsed()));
            cell.note = "mount again".into();
            load = self.recover(&mut cell, &mut problems);
        }
        let plain = !matches!(work, Work::Repair | Work::Opening) && !self.fault.kills_mount();
        // What went and came back within an instant is whole only once that was noticed.
        while plain && self.fault.lasts().is_zero() && watch.first_seen().is_none() {
            if ended.elapsed() > NOTICE_MAX {
                break;
            }
            sleep(Duration::from_millis(10));
        }
        let healthy = self.await_healthy();
        cell.redundancy_ms = Some(millis(healthy.duration_since(ended)));
        if plain {
            let seen = watch.first_seen().and_then(|t| t.checked_duration_since(struck));
            cell.detect_ms = seen.map(millis);
        }
        drop(watch);
        sleep(AFTERWARDS);
        self.close(load, &mut cell, &mut problems);
        cell.result = match problems.is_empty() {
            true => "passed".into(),
            false => problems.join("; "),
        };
        cell
    }

    /// Mounts with another bank dead, and compares everything this row has written once more.
    ///
    /// # Panics
    /// When something is not as it was written.
    pub fn end(mut self) {
        self.cluster.unmount();
        let dead = Bank::ALL[self.number % 3];
        self.cluster.kill(dead);
        self.cluster.mount();
        for journal in &self.journals {
            journal.check().unwrap_or_else(|e| panic!("at the end, bank {dead:?} dead: {e}"));
        }
        check_file(&self.cluster.path("base"), 1, BASE_CHUNKS);
        self.cluster.start_bank(dead);
        self.cluster.await_whole(self.times.repair_max);
    }

    fn begin_load(&mut self, work: Work) -> Load {
        let style = match work {
            Work::Idle => return Load::Idle,
            Work::Reads => {
                let base = self.cluster.path("base");
                return Load::Reading(load::Load::read_file(base, 1, BASE_CHUNKS));
            }
            Work::SequentialWrite => Style::Append,
            Work::SmallFiles => Style::SmallFiles,
            Work::SyncedOverwrites => Style::Overwrites,
            Work::RenameStorm => Style::Renames,
            Work::Repair | Work::Opening => Style::Mixed,
        };
        let journal = Journal::new(&self.fresh_dir(), style, self.random.draw());
        Load::Writing(journal.go_on(pause(style)))
    }

    fn fresh_dir(&self) -> PathBuf {
        let dir = self.cluster.path(format!("cell{}", self.number));
        fs::create_dir(&dir).expect("mkdir");
        // The journal begins in a directory that is there.
        File::open(&dir).and_then(|d| d.sync_all()).expect("fsync");
        dir
    }

    /// A bank misses some work; then it is there again, one of its nodes empty.
    fn begin_repair(&mut self, bank: Bank) -> Load {
        let load = self.begin_load(Work::Repair);
        self.cluster.kill(bank);
        until(self.times.repair_max, "work without the bank", || load.progress() >= 10 * WARM);
        let socket = self.cluster.root.join("run/control.sock");
        until(self.times.repair_max, "the mount knows", || watch::healthy(&socket) == Some(false));
        self.cluster.node(bank, self.number % self.cluster.setup.shards).wipe();
        self.cluster.bank(bank).iter_mut().for_each(Node::spawn);
        // Struck as soon as it is seen to fill; one that was too quick to be seen is struck right after.
        until(self.times.repair_max, "the node is refilled", || {
            watch::is_filling(&socket) || watch::healthy(&socket) == Some(true)
        });
        self.cluster.start_bank(bank);
        load
    }

    /// The mount is killed under load and begins to open the volume.
    fn begin_opening(&mut self) -> Instant {
        let load = self.begin_load(Work::Opening);
        until(self.times.repair_max, "the load has begun", || load.progress() >= WARM);
        self.cluster.kill_mount();
        self.stop(load);
        self.cluster.begin_mount(&[]);
        let began = Instant::now();
        sleep(Duration::from_millis(self.random.below(1400)));
        began
    }

    /// Stops a load whose errors do not count, and keeps its journal.
    fn stop(&mut self, load: Load) {
        match load {
            Load::Writing(writing) => self.journals.push(writing.stop().0),
            Load::Reading(reading) => drop(reading.stop()),
            Load::Idle => {}
        }
    }

    /// After a crash of the mount: a prefix is there. The newest journal goes on.
    fn recover(&mut self, cell: &mut Cell, problems: &mut Vec<String>) -> Load {
        // A fault may have struck the mount while no load of this cell ran.
        let Some(mut journal) = self.journals.pop() else { return Load::Idle };
        match journal.recover() {
            Ok(lost) => {
                cell.unsynced_lost += lost;
                Load::Writing(journal.go_on(pause(Style::Mixed)))
            }
            Err(e) => {
                cell.wrong += 1;
                problems.push(e);
                Load::Idle
            }
        }
    }

    /// Ends the load and judges everything.
    fn close(&mut self, load: Load, cell: &mut Cell, problems: &mut Vec<String>) {
        let (done, stall, errors) = match load {
            Load::Writing(writing) => {
                let (journal, met) = writing.stop();
                self.journals.push(journal);
                (met.done, met.stall, met.error.into_iter().collect())
            }
            Load::Reading(reading) => {
                let report = reading.stop();
                (report.done, report.longest_stall, report.errors)
            }
            Load::Idle => (0, Duration::ZERO, Vec::new()),
        };
        cell.operations += done;
        cell.errors += errors.len() as u64;
        problems.extend(errors);
        if done > 0 && cell.stall_ms.is_none() {
            cell.stall_ms = Some(millis(stall));
        }
        if stall >= self.times.stall_max {
            problems.push(format!("stalled {stall:?}"));
        }
        if self.fault.leaves_rot() {
            self.scrub();
        }
        self.cluster.await_whole(self.times.repair_max);
        if let Some(Err(e)) = self.journals.last().map(Journal::check) {
            cell.wrong += 1;
            problems.push(e);
        }
        check_file(&self.cluster.path("base"), 1, BASE_CHUNKS);
        problems.extend(await_clean(&self.cluster, self.times.repair_max).err());
    }

    /// Re-reads every record until every value on every disk is what it should be.
    fn scrub(&self) {
        let verifies = || self.cluster.nodes().iter().flatten().all(|n| n.ask(&["verify"]).ok());
        until(self.times.repair_max, "scrubbing mends what rotted", || {
            verifies() || {
                let _ = self.cluster.tercet(&["scrub"]);
                false
            }
        });
    }

    /// When the mount first said that all is up to date.
    fn await_healthy(&self) -> Instant {
        let socket = self.cluster.root.join("run/control.sock");
        let began = Instant::now();
        while watch::healthy(&socket) != Some(true) {
            if began.elapsed() > self.times.repair_max {
                self.cluster.await_healthy(Duration::ZERO); // says what is not
            }
            sleep(Duration::from_millis(20));
        }
        Instant::now()
    }
}

fn pause(style: Style) -> Duration {
    Duration::from_millis(if style == Style::Append { 15 } else { 1 })
}

fn millis(d: Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}

/// `tercet check --data` finds nothing wrong, and, once reclaim has ended, nothing left to reclaim.
///
/// # Errors
/// What it found.
pub fn await_clean(cluster: &Cluster, within: Duration) -> Result<(), String> {
    let began = Instant::now();
    loop {
        let said = cluster.tercet(&["check", "--data", "--json"]);
        let report: Value = serde_json::from_str(&said.stdout).unwrap_or_default();
        let number = |name: &str| report[name].as_u64();
        if number("wrong") != Some(0) {
            return Err(format!("tercet check: {said}"));
        }
        let left = [number("orphans"), number("dead_blocks")];
        if left == [Some(0), Some(0)] {
            return Ok(());
        }
        if began.elapsed() > within {
            return Err(format!("never reclaimed (orphans, dead blocks): {left:?}"));
        }
        sleep(Duration::from_millis(100));
    }
}
