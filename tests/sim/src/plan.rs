//! What happens in one world, drawn from its seed before anything happens: a list of steps, each of
//! which carries its own dice. So a step can be left out (shrinking) without changing the others.

use crate::broken::Broken;
use crate::wire::Weather;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use storenode::wire::BankId;

/// Deletions remembered for a replica that is away, unless a world is about that.
pub const TOMBSTONES_MAX: u64 = 10_000_000;

/// Seconds between two refreshes.
pub const REFRESH_S: u64 = 20;

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
    /// Banks are compared so often, seconds.
    pub refresh_s: u64,
    /// Deletions remembered in a shard for a replica that is away.
    pub tombstones_max: u64,
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
        let refresh_s = REFRESH_S;
        let tombstones_max = *pick(&mut dice, &[2, 10, 10, TOMBSTONES_MAX]);
        Self {
            seed,
            layer,
            shards,
            keys,
            segment_bytes,
            beyond: false,
            refresh_s,
            tombstones_max,
            broken: None,
            steps,
        }
    }

    /// A calm world but for what leads into the trap of a rule, over and over: chance alone hardly ever
    /// goes there. `None` = chance is good enough. The rule is not broken yet.
    #[must_use]
    pub fn aimed(rule: Broken, seed: u64) -> Option<Self> {
        let dice = &mut StdRng::seed_from_u64(seed ^ 0xa1_3ed);
        let mut banks = BankId::ALL;
        banks.rotate_left(dice.random_range(0..3));
        if dice.random() {
            banks.swap(0, 1);
        }
        let [x, y, z] = banks;
        let mut steps = Vec::new();
        for _ in 0..3 {
            written(dice, &mut steps, 1..8);
            match rule {
                // What a flush did not make durable is acknowledged; the other bank that has it is gone
                // when the power comes back, and the message to the third was lost.
                Broken::FlushRetried => {
                    strike(dice, &mut steps, x, Fault::SyncErrors, 5_000);
                    steps.push(Step::Weather(losing(dice)));
                    written(dice, &mut steps, 1..3);
                    strike(dice, &mut steps, y, Fault::Kill, 3_000);
                    steps.push(Step::PowerCut { dice: dice.random() });
                }
                // Of the two banks that acknowledged the last group one is gone, in the other it rots.
                Broken::DamageIsAbsence => {
                    steps.push(Step::Weather(losing(dice)));
                    written(dice, &mut steps, 1..2);
                    strike(dice, &mut steps, y, Fault::Kill, 3_000);
                    // Few: a node that lost both copies of its state does not vote.
                    let rot = Fault::Flip { bits: dice.random_range(1..4), restart: true };
                    strike(dice, &mut steps, x, rot, 3_000);
                    steps.push(Step::Weather(Weather::default()));
                    steps.push(Step::MountCrash);
                }
                // One of them is emptied, and says what it said before.
                Broken::EmptyStoreVotes => {
                    steps.push(Step::Weather(losing(dice)));
                    written(dice, &mut steps, 1..2);
                    strike(dice, &mut steps, y, Fault::Kill, 3_000);
                    strike(dice, &mut steps, x, Fault::Wipe, 3_000);
                    steps.push(Step::MountCrash);
                }
                // A group reaches one bank; a mount opens without that bank, and dies before it is back;
                // the next one opens with it, and without a bank that could know.
                Broken::EntryNotAwaited => {
                    steps.push(Step::Weather(losing(dice)));
                    steps.push(Step::Submit { dice: dice.random() });
                    steps.push(Step::Pause { ms: dice.random_range(30..60) });
                    let away_ms = dice.random_range(100..900);
                    strike(dice, &mut steps, x, Fault::Kill, away_ms);
                    steps.push(Step::Weather(Weather::default()));
                    steps.push(Step::MountCrash);
                    strike(dice, &mut steps, z, Fault::Kill, 3_000);
                    steps.push(Step::MountCrash);
                }
                // A record rots and its repair is under way while it is written again, or deleted for good;
                // of the two banks that know, one is gone.
                Broken::LateRepair => {
                    written(dice, &mut steps, 10..20);
                    strike(dice, &mut steps, z, Fault::Rot { records: 6 }, 100);
                    steps.push(Step::Refresh);
                    written(dice, &mut steps, 5..20);
                    steps.push(Step::Pause { ms: 1_000 });
                    written(dice, &mut steps, 1..3);
                    steps.push(Step::Pause { ms: 2_000 });
                    strike(dice, &mut steps, x, Fault::Kill, 3_000);
                    steps.push(Step::Scan);
                }
                // A copy to a bank that was away is interrupted, and the next mount goes on with it.
                Broken::CopiedIsNewer | Broken::CopiedIsMore => {
                    strike(dice, &mut steps, x, Fault::Kill, 20);
                    written(dice, &mut steps, 10..30);
                    steps.push(Step::Weather(Weather { delay_ms: 3, ..Weather::default() }));
                    steps.push(Step::Pause { ms: dice.random_range(10..250) });
                    steps.push(Step::MountCrash);
                }
                // A bank is away too long and struck out, returns, and of the two others one is gone.
                Broken::StruckVotes => {
                    written(dice, &mut steps, 10..20);
                    strike(dice, &mut steps, x, Fault::Kill, 6_000);
                    for _ in 0..9 {
                        written(dice, &mut steps, 3..10);
                        steps.push(Step::Pause { ms: 500 });
                    }
                    steps.push(Step::MountCrash);
                    steps.push(Step::Pause { ms: 8_000 });
                    strike(dice, &mut steps, y, Fault::Kill, 3_000);
                    steps.push(Step::Scan);
                }
                _ => return None,
            }
            steps.push(Step::Weather(Weather::default()));
            steps.push(Step::Pause { ms: 8_000 });
            steps.push(Step::Scan);
        }
        let beyond = !matches!(rule, Broken::CopiedIsNewer | Broken::CopiedIsMore);
        let keys = *pick(dice, &[3, 12, 40]);
        let (layer, shards, segment_bytes) = (Layer::Keys, 1, 4 << 10);
        // What a refresh would mend is to be seen.
        let refresh_s = 3_600;
        let tombstones_max = if rule == Broken::StruckVotes { 2 } else { TOMBSTONES_MAX };
        Some(Self {
            seed,
            layer,
            shards,
            keys,
            segment_bytes,
            beyond,
            refresh_s,
            tombstones_max,
            broken: None,
            steps,
        })
    }
}

/// Some operations, and a sync that is waited for.
fn written(dice: &mut StdRng, steps: &mut Vec<Step>, n: std::ops::Range<u32>) {
    let n = dice.random_range(n);
    steps.extend((0..n).map(|_| Step::Submit { dice: dice.random() }));
    steps.push(Step::Sync);
}

fn strike(dice: &mut StdRng, steps: &mut Vec<Step>, bank: BankId, fault: Fault, for_ms: u64) {
    steps.push(Step::Strike { shard: 0, bank, fault, for_ms, dice: dice.random() });
}

/// Every third message is lost.
fn losing(dice: &mut StdRng) -> Weather {
    Weather { delay_ms: dice.random_range(0..5), lose: 0.3, ..Weather::default() }
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
