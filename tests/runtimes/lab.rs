//! A volume, a host whose programs use it, and the weather.

use crate::{REPAIR_MAX, STALL_MAX};
use cluster::load::Load;
use cluster::programs::require_programs;
use cluster::{Bank, Cluster, Host, Setup};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// What goes wrong while a scenario runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Weather {
    /// Nothing.
    Fair,
    /// At one turn a bank is killed, at the next it comes back and catches up; then the next bank.
    BanksDie,
    /// The same, but the bank hangs (SIGSTOP): its connections stay, and nobody is told.
    BanksHang,
    /// At every turn the next bank is killed, emptied and started: it is refilled while the scenario
    /// goes on.
    BanksAreRefilled,
}

/// One scenario's world.
pub(crate) struct Lab {
    pub(crate) cluster: Cluster,
    host: Option<Host>,
    weather: Weather,
    next: Bank,
    down: Option<Bank>,
    saver: Option<Load>,
    began: Instant,
}

/// (program, package) of every line of `packages`, which `scripts/test runtimes` installs.
fn packages() -> Vec<(&'static str, &'static str)> {
    let lines = include_str!("packages").lines().filter(|l| !l.is_empty() && !l.starts_with('#'));
    lines.map(|l| l.split_once(' ').expect("packages: PROGRAM PACKAGE")).collect()
}

impl Lab {
    /// Volume, mount, host, and the saver.
    pub(crate) fn open(name: &str, weather: Weather) -> Self {
        require_programs(&packages());
        let setup = Setup { watchdog: Duration::from_secs(1500), ..Setup::default() };
        let cluster = Cluster::start(name, setup);
        let host = Some(Host::of(&cluster));
        let saved = cluster.path("saved");
        std::fs::create_dir(&saved).expect("mkdir");
        let saver = Some(Load::small_files(saved));
        let began = Instant::now();
        Self { cluster, host, weather, next: Bank::B, down: None, saver, began }
    }

    /// Where the programs run.
    pub(crate) fn host(&self) -> &Host {
        self.host.as_ref().expect("a scenario runs on a host")
    }

    /// The directory outside the mount that scripts call `$W`.
    pub(crate) fn outside(&self, name: &str) -> PathBuf {
        self.cluster.root.join("outside").join(name)
    }

    /// Runs a script on the host, with its time in the test's output.
    pub(crate) fn sh(&self, script: &str) {
        let _ = self.ask(script);
    }

    /// The same; what it said.
    pub(crate) fn ask(&self, script: &str) -> String {
        self.with("", script)
    }

    /// The same, with the shell functions of `prelude`.
    pub(crate) fn with(&self, prelude: &str, script: &str) -> String {
        // In a file of its own: a failure shows the script, and not pages of functions.
        let functions = self.cluster.root.join("run/functions");
        std::fs::write(&functions, prelude).expect("write");
        let said = self.host().ask(&format!(". {}; {script}", functions.display()));
        let first = script.trim_start().lines().next().unwrap_or_default();
        println!("{:7.1}s {}", self.began.elapsed().as_secs_f64(), first.trim_end());
        said
    }

    /// Between two steps of a scenario: the weather changes.
    pub(crate) fn turn(&mut self) {
        match self.weather {
            Weather::Fair => return,
            Weather::BanksDie | Weather::BanksHang => {
                if !self.bring_back() {
                    self.cluster.await_healthy(REPAIR_MAX);
                    if self.weather == Weather::BanksDie {
                        self.cluster.kill(self.next);
                    } else {
                        self.cluster.pause(self.next);
                    }
                    self.down = Some(self.next);
                    self.next = self.next.next();
                }
            }
            Weather::BanksAreRefilled => {
                self.cluster.await_healthy(REPAIR_MAX);
                self.cluster.kill(self.next);
                self.cluster.wipe(self.next);
                self.cluster.start_bank(self.next);
                self.next = self.next.next();
            }
        }
        let now = self.began.elapsed().as_secs_f64();
        println!("{now:7.1}s {:?}: away {:?}, next {:?}", self.weather, self.down, self.next);
    }

    /// The bank that is away, if one is, goes on or starts again.
    fn bring_back(&mut self) -> bool {
        let Some(bank) = self.down.take() else { return false };
        self.cluster.resume(bank);
        self.cluster.start_bank(bank);
        true
    }

    /// The bank that is away comes back, and all three are whole.
    pub(crate) fn calm_down(&mut self) {
        self.bring_back();
        self.cluster.await_healthy(REPAIR_MAX);
    }

    /// Kills the mount with everything on it, mounts again, boots the host.
    pub(crate) fn crash_host(&mut self) {
        self.finish_saver();
        self.cluster.kill_mount();
        self.reboot();
    }

    fn finish_saver(&mut self) {
        if let Some(saver) = self.saver.take() {
            saver.stop().assert_unharmed("saver", STALL_MAX);
        }
    }

    /// Shuts the host down, unmounts, mounts, boots.
    pub(crate) fn remount(&mut self) {
        self.finish_saver();
        self.host_off();
        self.cluster.unmount();
        self.reboot();
    }

    fn host_off(&mut self) {
        if let Some(host) = self.host.take() {
            host.shut_down();
        }
    }

    fn reboot(&mut self) {
        self.host_off();
        self.cluster.mount();
        self.host = Some(Host::of(&self.cluster));
    }

    /// The end: nothing failed or stalled beside it, the three banks are equal and whole, and the tree
    /// is consistent. Then a last look, on banks B and C alone after a remount: these are the first that the
    /// weather strikes.
    pub(crate) fn close(mut self, last_look: impl FnOnce(&Self)) {
        self.finish_saver();
        self.calm_down();
        assert!(self.cluster.mounted().is_running(), "the mount process ended");
        self.host_off();
        self.cluster.await_whole(REPAIR_MAX);
        self.cluster.tercet(&["check"]).assert_ok();
        self.cluster.unmount();
        self.cluster.kill(Bank::A);
        self.reboot();
        last_look(&self);
        self.host_off();
        println!("{:7.1}s closed", self.began.elapsed().as_secs_f64());
    }
}
