//! The incremental watermark against its definition, over random acks, losses and late voters.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use proptest::prelude::*;
use std::collections::BTreeSet;
use storenode::wire::{BankId, PerBank, Version};
use voter::commit::Commit;

const SHARDS: u16 = 3;

#[derive(Clone, Debug)]
enum Event {
    Group(BTreeSet<u16>),
    /// A position: how many of the shard's parts (modulo what exists) the bank holds.
    Ack(u16, usize, usize),
    Attach(u16, usize, usize),
    Forget(u16, usize),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let shard = 0..SHARDS;
    let bank = 0..3usize;
    let event = prop_oneof![
        3 => prop::collection::btree_set(shard.clone(), 1..=3).prop_map(Event::Group),
        8 => (shard.clone(), bank.clone(), 0..9usize).prop_map(|(s, b, n)| Event::Ack(s, b, n)),
        2 => (shard.clone(), bank.clone(), 0..9usize).prop_map(|(s, b, n)| Event::Attach(s, b, n)),
        1 => (shard, bank).prop_map(|(s, b)| Event::Forget(s, b)),
    ];
    prop::collection::vec(event, 1..80)
}

/// Rule 4 as it is written.
#[derive(Default)]
struct Model {
    groups: Vec<(Version, BTreeSet<u16>)>,
    acked: Vec<PerBank<Option<Version>>>,
    /// Groups two voters held at one moment, per shard.
    held: BTreeSet<(u16, Version)>,
}

impl Model {
    fn part(&self, shard: u16, n: usize) -> Version {
        let parts: Vec<Version> =
            self.groups.iter().filter(|(_, t)| t.contains(&shard)).map(|(v, _)| *v).collect();
        if parts.is_empty() { Version::new(4, 10) } else { parts[n % parts.len()] }
    }
    fn watermark(&mut self) -> Version {
        for (version, touched) in &self.groups {
            for shard in touched {
                let at = &self.acked[usize::from(*shard)];
                if at.iter().filter(|(_, p)| p.is_some_and(|p| p >= *version)).count() >= 2 {
                    self.held.insert((*shard, *version));
                }
            }
        }
        let whole =
            |(v, t): &&(Version, BTreeSet<u16>)| t.iter().all(|s| self.held.contains(&(*s, *v)));
        self.groups.iter().take_while(whole).last().map_or(Version::new(4, 10), |(v, _)| *v)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn the_watermark_is_what_the_rule_says(events in events()) {
        let start = Version::new(4, 10);
        let mut commit = Commit::new(SHARDS, start);
        let mut model = Model { acked: vec![PerBank([None; 3]); usize::from(SHARDS)], ..Model::default() };
        let mut seq = 10;
        let mut before = start;
        for event in events {
            let moved = match event {
                Event::Group(touched) => {
                    seq += 1;
                    let version = Version::new(5, seq);
                    let shards: Vec<u16> = touched.iter().copied().collect();
                    model.groups.push((version, touched));
                    commit.add(version, &shards)
                }
                Event::Ack(shard, bank, n) => {
                    let (bank, position) = (BankId::ALL[bank], model.part(shard, n));
                    let had = &mut model.acked[usize::from(shard)][bank];
                    if let Some(had) = had { *had = (*had).max(position); }
                    commit.ack(shard, bank, position)
                }
                Event::Attach(shard, bank, n) => {
                    let (bank, position) = (BankId::ALL[bank], model.part(shard, n));
                    model.acked[usize::from(shard)][bank] = Some(position);
                    commit.attach(shard, bank, position)
                }
                Event::Forget(shard, bank) => {
                    model.acked[usize::from(shard)][BankId::ALL[bank]] = None;
                    commit.forget(shard, BankId::ALL[bank]);
                    None
                }
            };
            let watermark = model.watermark();
            prop_assert_eq!(commit.watermark(), watermark);
            prop_assert_eq!(moved, (watermark > before).then_some(watermark));
            before = watermark;
        }
    }
}

#[test]
fn a_later_group_waits_for_an_earlier_one_in_another_shard() {
    use BankId::{A, B, C};
    let v = |seq| Version::new(2, seq);
    let mut commit = Commit::new(2, v(0));
    for shard in 0..2 {
        for bank in BankId::ALL {
            commit.attach(shard, bank, v(0));
        }
    }
    commit.add(v(1), &[0]);
    commit.add(v(2), &[1]);
    assert_eq!(commit.ack(1, A, v(2)), None);
    assert_eq!(commit.ack(1, B, v(2)), None, "two of its shard, but the first is open");
    assert_eq!(commit.ack(0, C, v(1)), None, "one is not two");
    assert_eq!(commit.ack(0, C, v(1)), None, "nor is one twice");
    assert_eq!(commit.ack(0, A, v(1)), Some(v(2)));
    assert_eq!(commit.uncommitted(), 0);
}

#[test]
fn an_unattached_voter_does_not_count() {
    let v = Version::new(2, 1);
    let mut commit = Commit::new(1, Version::new(2, 0));
    commit.attach(0, BankId::A, Version::new(2, 0));
    commit.add(v, &[0]);
    assert_eq!(commit.ack(0, BankId::A, v), None);
    assert_eq!(commit.ack(0, BankId::B, v), None, "filling, or not attached");
    assert_eq!(commit.attach(0, BankId::B, v), Some(v));
}
