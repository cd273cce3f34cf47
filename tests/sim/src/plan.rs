//! What happens in one world, drawn from its seed before anything happens: a list of steps, each of
//! which carries its own dice. So a step can be left out (shrinking) without changing the others.

use crate::broken::Broken;
use crate::wire::Weather;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use storenode::wire::BankId;

/// One thing that goes wrong with one replica of one shard. Each ends by itself.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    /// The process is killed; it is started again later.
    Kill,
    /// Its power is cut: unsynced writes are lost, whole or in part.
    Power,
    /// It stops (SIGSTOP) and goes on later.
    Hang,
    /// Every message takes so long, each way.
    Slow {
        /// Milliseconds.
        ms: u64,
    },
    /// Messages to it vanish.
    Cut,
    /// Its directory is emptied.
    Wipe,
    /// An old copy of its directory is put back.
    RollBack,
    /// Its disk is full but for so many bytes.
    Full {
        /// Bytes left.
        slack: u64,
    },
    /// Flushes fail; later the process is started again.
    SyncErrors,
    /// Disk operations fail at random.
    DiskErrors {
        /// One in so many.
        one_in: u32,
    },
    /// The process dies inside its n-th disk operation from now.
    DieIn {
        /// Which.
        n: u64,
        /// By a power cut, so that what was not synced is gone too.
        power: bool,
    },
    /// So many bits flip in files of its directory; later the disk is replaced.
    Flip {
        /// Bits.
        bits: u32,
        /// The process is started anew on what is left.
        restart: bool,
    },
    /// Records rot, vanish or appear behind its back; refresh and scrub mend it.
    Rot {
        /// Records.
        records: u32,
    },
}

/// One step of a world.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Step {
    /// One atomic operation.
    Submit {
        /// Its dice.
        dice: u64,
    },
    /// Wait for a sync.
    Sync,
    /// Begin a sync and go on.
    SyncBehind,
    /// Read some keys, compare.
    Get {
        /// Its dice.
        dice: u64,
    },
    /// List everything, compare.
    Scan,
    /// Let time pass.
    Pause {
        /// Milliseconds.
        ms: u64,
    },
    /// Compare and mend the banks now.
    Refresh,
    /// A replica goes wrong, if the fault model has room for that now.
    Strike {
        /// Its shard; modulo the number of shards.
        shard: u16,
        /// Its bank.
        bank: BankId,
        /// What.
        fault: Fault,
        /// For so long, milliseconds.
        for_ms: u64,
        /// Its dice.
        dice: u64,
    },
    /// The network changes.
    Weather(Weather),
    /// The mount is killed and opened again.
    MountCrash,
    /// The mount is killed, and the next one too, so long after it began to open.
    MountCrashTwice {
        /// Milliseconds.
        ms: u64,
    },
    /// The mount is closed and opened again.
    Remount,
    /// Everything is killed and started again.
    AllKilled,
    /// The power fails everywhere; of unsynced writes any part may have reached the disks.
    PowerCut {
        /// Its dice.
        dice: u64,
    },
    /// Another mount takes the volume over while this one lives on and writes.
    Takeover,
}

/// What the mounts of a world are used for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Layer {
    /// Keys and values, on the voter.
    Keys,
    /// Files, on the filesystem core.
    Files,
}

/// One world.
#[derive(Clone, Debug)]
pub struct Plan {
    /// From which it was drawn; also the seed of stores, nonces and of the network.
    pub seed: u64,
    /// What its mounts are used for.
    pub layer: Layer,
    /// Shards of the volume.
    pub shards: u16,
    /// Keys in use.
    pub keys: u16,
    /// Length of a log segment, bytes.
    pub segment_bytes: u64,
    /// Two replicas of a shard may be bad at once: then only refusal is allowed, never wrong data.
    pub beyond: bool,
    /// A rule that is broken on purpose.
    pub broken: Option<Broken>,
    /// What happens.
    pub steps: Vec<Step>,
}

impl Plan {
    /// The plan of a seed.
    #[must_use]
    pub fn draw(seed: u64) -> Self {
        let mut dice = StdRng::seed_from_u64(seed);
        let layer = *pick(&mut dice, &[Layer::Keys, Layer::Keys, Layer::Files]);
        let shards = *pick(&mut dice, &[1, 1, 2, 2, 3]);
        let keys = *pick(&mut dice, &[3, 12, 12, 40]);
        let segment_bytes = *pick(&mut dice, &[4 << 10, 32 << 10, 256 << 10]);
        let n = dice.random_range(20..=160);
        // Some worlds are calm, some see a fault every few steps.
        let faults = *pick(&mut dice, &[4, 10, 10, 25]);
        let steps = (0..n).map(|_| step(&mut dice, faults)).collect();
        Self { seed, layer, shards, keys, segment_bytes, beyond: false, broken: None, steps }
    }
}

impl Plan {
    /// The same with two bad replicas at a time.
    #[must_use]
    pub fn beyond(self) -> Self {
        Self { beyond: true, ..self }
    }

    /// The same with a broken rule.
    #[must_use]
    pub fn broken(self, rule: Broken) -> Self {
        Self { broken: Some(rule), ..self }
    }
}

fn pick<'a, T>(dice: &mut StdRng, of: &'a [T]) -> &'a T {
    &of[dice.random_range(0..of.len())]
}

/// `faults`: percent of steps that break something.
fn step(dice: &mut StdRng, faults: u32) -> Step {
    if dice.random_range(0..100) < faults {
        return breaking(dice);
    }
    match dice.random_range(0..100) {
        0..=49 => Step::Submit { dice: dice.random() },
        50..=57 => Step::Sync,
        58..=69 => Step::SyncBehind,
        70..=75 => Step::Get { dice: dice.random() },
        76..=78 => Step::Scan,
        79..=93 => Step::Pause { ms: *pick(dice, &[1, 2, 5, 20, 100, 400]) },
        94..=96 => Step::Pause { ms: dice.random_range(500..5_000) },
        _ => Step::Refresh,
    }
}

fn breaking(dice: &mut StdRng) -> Step {
    match dice.random_range(0..100) {
        0..=54 => Step::Strike {
            shard: dice.random_range(0..12),
            bank: *pick(dice, &BankId::ALL),
            fault: fault(dice),
            for_ms: *pick(dice, &[0, 1, 10, 50, 300, 1_000, 4_000]),
            dice: dice.random(),
        },
        55..=66 => Step::Weather(weather(dice)),
        67..=76 => Step::MountCrash,
        77..=81 => Step::MountCrashTwice { ms: dice.random_range(0..400) },
        82..=85 => Step::Remount,
        86..=89 => Step::AllKilled,
        90..=95 => Step::PowerCut { dice: dice.random() },
        _ => Step::Takeover,
    }
}

fn weather(dice: &mut StdRng) -> Weather {
    match dice.random_range(0..4) {
        0 | 1 => Weather { delay_ms: dice.random_range(0..5), ..Weather::default() },
        2 => Weather { delay_ms: dice.random_range(0..40), twice: 0.05, ..Weather::default() },
        _ => Weather { delay_ms: dice.random_range(0..10), lose: 0.01, twice: 0.05, late: 0.02 },
    }
}

fn fault(dice: &mut StdRng) -> Fault {
    match dice.random_range(0..13) {
        0 => Fault::Kill,
        1 => Fault::Power,
        2 => Fault::Hang,
        3 => Fault::Slow { ms: dice.random_range(1..400) },
        4 => Fault::Cut,
        5 => Fault::Wipe,
        6 => Fault::RollBack,
        7 => Fault::Full { slack: dice.random_range(0..20_000) },
        8 => Fault::SyncErrors,
        9 => Fault::DiskErrors { one_in: dice.random_range(2..50) },
        10 => Fault::DieIn { n: dice.random_range(1..60), power: dice.random() },
        11 => Fault::Flip { bits: dice.random_range(1..30), restart: dice.random() },
        _ => Fault::Rot { records: dice.random_range(1..6) },
    }
}
