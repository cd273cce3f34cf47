//! Worlds from seeds. `TERCET_SEED` and `TERCET_RUNS` choose which and how many.

use sim::broken::Broken;
use sim::plan::{Layer, Plan};
use sim::run::{notice, run};
use std::sync::atomic::{AtomicU64, Ordering};

fn number(name: &str, or: u64) -> u64 {
    let said = std::env::var(name).ok().filter(|s| !s.is_empty());
    said.map_or(or, |s| s.parse().expect("a number"))
}

/// Runs worlds on two threads; each world has one.
fn all_go_well(runs: u64, plan: impl Fn(u64) -> Plan + Sync, again: &str) {
    let from = number("TERCET_SEED", 1);
    let next = AtomicU64::new(from);
    let end = from + number("TERCET_RUNS", runs);
    std::thread::scope(|s| {
        for _ in 0..2 {
            s.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end {
                        return;
                    }
                    if let Some(why) = run(&plan(seed), false).failure {
                        // Tests of one thread each: the first failure ends the others.
                        next.store(end, Ordering::Relaxed);
                        panic!("seed {seed}: {why}\nagain: sim replay {seed}{again}");
                    }
                }
            });
        }
    });
}

#[test]
fn within_the_fault_model_nothing_goes_wrong() {
    all_go_well(1_500, Plan::draw, "");
}

#[test]
fn beyond_the_fault_model_there_is_only_refusal() {
    all_go_well(500, |seed| Plan::draw(seed).beyond(), " --beyond");
}

#[test]
fn the_same_seed_is_the_same_run() {
    let mut seen = Vec::new();
    for seed in 1..=12 {
        let plan = Plan::draw(seed);
        seen.push(plan.layer);
        let (a, b) = (run(&plan, false), run(&plan, true));
        assert_eq!((a.digest, a.events), (b.digest, b.events), "seed {seed}");
        let other = run(&Plan { seed: seed + 1_000_000, ..plan }, false);
        assert_ne!(other.digest, String::new());
    }
    assert!(seen.contains(&Layer::Keys) && seen.contains(&Layer::Files));
}

/// The simulation is worth what it notices: each rule of the protocol, broken, must be.
#[test]
fn every_broken_rule_is_noticed() {
    let unnoticed: Vec<Broken> =
        Broken::ALL.into_iter().filter(|rule| notice(*rule, 1..2_001).is_none()).collect();
    assert!(unnoticed.is_empty(), "not noticed: {unnoticed:?}");
}

/// Where they are kept, the worlds that are aimed at their traps show nothing.
#[test]
fn kept_rules_hold_in_the_worlds_that_are_aimed_at_them() {
    for rule in Broken::ALL.into_iter().chain(Broken::UNNOTICED) {
        for plan in (1..60).filter_map(|seed| Plan::aimed(rule, seed)) {
            assert_eq!(run(&plan, false).failure, None, "{rule:?}, seed {}", plan.seed);
        }
    }
}
