//! Worlds that once went wrong, shrunk, as they were found: one for each bug of the product that the
//! simulation found and that no smaller test shows.

use sim::plan::{Fault, Layer, Plan, REFRESH_S, Step, TOMBSTONES_MAX};
use sim::run::run;
use sim::wire::Weather;
use storenode::wire::BankId;

fn goes_well(seed: u64, shards: u16, keys: u16, segment_bytes: u64, steps: Vec<Step>) {
    let plan = Plan {
        seed,
        layer: Layer::Keys,
        shards,
        keys,
        segment_bytes,
        beyond: false,
        refresh_s: REFRESH_S,
        tombstones_max: TOMBSTONES_MAX,
        broken: None,
        steps,
    };
    let outcome = run(&plan, true);
    if let Some(why) = outcome.failure {
        let last = outcome.lines.len().saturating_sub(40);
        panic!("{why}\n{}", outcome.lines[last..].join("\n"));
    }
}

/// In one shard a node is dead, in another a bank is full: two nodes of each shard have room. The
/// volume called itself full, because a bank counted only when all of its nodes answered.
#[test]
fn different_banks_in_different_shards_may_be_dead_and_full() {
    let strike = |shard, bank, fault| Step::Strike { shard, bank, fault, for_ms: 4_000, dice: 1 };
    let steps = vec![
        Step::Submit { dice: 1 },
        Step::Sync,
        strike(1, BankId::C, Fault::Kill),
        strike(0, BankId::B, Fault::Full { slack: 0 }),
        Step::MountCrash,
        Step::Submit { dice: 2 },
        Step::Sync,
    ];
    goes_well(416, 2, 12, 32 << 10, steps);
}

/// B, last to be attached, is behind by more than is kept for it; A is emptied; C alone has the newest
/// group. B's catch-up waited until that group was committed, which waits for B: for ever.
#[test]
fn a_replica_that_is_behind_is_what_the_uncommitted_waits_for() {
    let steps = vec![
        Step::Pause { ms: 100 },
        Step::Submit { dice: 8270137587528326573 },
        Step::Weather(Weather { delay_ms: 7, lose: 0.01, twice: 0.05, late: 0.02 }),
        Step::Refresh,
        Step::Refresh,
        Step::Submit { dice: 6783052285566812518 },
        Step::Remount,
        Step::Submit { dice: 10803186747740679812 },
        Step::Submit { dice: 3879553454595095453 },
        Step::Strike {
            shard: 11,
            bank: BankId::A,
            fault: Fault::Flip { bits: 13, restart: true },
            for_ms: 1,
            dice: 4595744284031919209,
        },
    ];
    goes_well(2709, 1, 40, 262144, steps);
}

/// The opener brought a replica up from one that held a part behind a gap, and joined it there: a
/// position nobody had. The next opener took the group for settled, in this shard without its part.
#[test]
fn a_part_behind_a_gap_tears_no_group() {
    let steps = vec![
        Step::Submit { dice: 9218365653113676347 },
        Step::Pause { ms: 100 },
        Step::Weather(Weather { delay_ms: 7, lose: 0.01, twice: 0.05, late: 0.02 }),
        Step::Get { dice: 1848575154213649458 },
        Step::Submit { dice: 5549062808822493492 },
        Step::SyncBehind,
        Step::Submit { dice: 706660679660870829 },
        Step::Scan,
        Step::Get { dice: 3151239356557948266 },
        Step::AllKilled,
        Step::Submit { dice: 14760379469146413235 },
        Step::Submit { dice: 14595716530307635407 },
        Step::Pause { ms: 100 },
        Step::Submit { dice: 14682588477791634635 },
        Step::Submit { dice: 10135015150372414574 },
        Step::Pause { ms: 100 },
        Step::Sync,
        Step::Submit { dice: 111561426910920761 },
        Step::Submit { dice: 6517751115166440284 },
        Step::Get { dice: 657163601354559755 },
        Step::Takeover,
    ];
    goes_well(1464, 3, 12, 4096, steps);
}

/// Whole worlds that went wrong once, for as long as their seeds draw the same; what was wrong is in
/// docs/adr/0015-second-source.md, and each has a smaller test beside the code that was wrong.
#[test]
fn seeds_that_once_went_wrong() {
    for seed in [
        112_785, 117_707, 120_001, 131_954, // a late answer taken for foreign; one source
        200_255, 203_919, 205_047, // admitted, and wiped
        301_277, 304_064, // one source, the other not found yet
        302_139, 307_333, 314_887, 315_428, 318_192, // compaction through an I/O error
        701_679, // a position between two parts that a restart did not find again
        705_788, 809_815, 900_948,   // lost messages that cost the deadline of bulk
        1_008_070, // a late fence of the same epoch
        2_074_245, // a wipe that failed behind the old log's end
        516_680,   // opened with one source while the third voter was only slow
    ] {
        let outcome = run(&Plan { tombstones_max: TOMBSTONES_MAX, ..Plan::draw(seed) }, false);
        assert_eq!(outcome.failure, None, "seed {seed}");
    }
    for seed in [
        512_960, 527_317, 530_216, // struck out in the moment in which another bank was lost
    ] {
        let outcome = run(&Plan::draw(seed), false);
        assert_eq!(outcome.failure, None, "seed {seed}");
    }
}
