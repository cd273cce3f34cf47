//! Repair plans of a bucket: performed by nodes that take only what is newer, they make the banks
//! equal, never put an older record in the place of a newer one, and then find nothing to do.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use proptest::prelude::*;
use std::collections::BTreeMap;
use storenode::wire::{BankId, Digest, Found, Key, PerBank, RecordHead, Version, digest};
use voter::plan::{Action, Repair, plan};
use voter::vote::{Ballot, Fix, Limit, Verdict, fixes, tally};

const THROUGH: Version = Version::new(1, 9);

type Bank = BTreeMap<Key, RecordHead>;

fn head(key: &[u8], seq: u64, kind: u8) -> RecordHead {
    let version = Version::new(1, seq);
    let value = [kind];
    let value = (kind > 0).then_some(&value[..]);
    RecordHead {
        key: key.to_vec(),
        version,
        digest: digest(key, version, value),
        len: value.map(|v| v.len() as u32),
    }
}

/// The byte whose digest this is: heads stand for whole records here.
fn value_of(h: &RecordHead) -> Option<Vec<u8>> {
    h.len.map(|_| {
        let v = (1..=3).find(|k| digest(&h.key, h.version, Some(&[*k])) == h.digest);
        vec![v.unwrap_or(0)]
    })
}

/// What a node does with an install: newer only.
fn install(bank: &mut Bank, record: &RecordHead) {
    let own = bank.get(&record.key);
    if own.is_none_or(|own| own.version < record.version) {
        bank.insert(record.key.clone(), record.clone());
    }
}

fn perform(banks: &mut PerBank<Bank>, compared: PerBank<bool>, repair: &Repair, floor: Version) {
    let key = &repair.key;
    match &repair.action {
        Action::Install { version, digest, from, to, .. } => {
            let source = banks[from[0]][key].clone();
            assert_eq!((source.version, source.digest), (*version, *digest));
            for b in to {
                assert!(compared[*b]);
                let newer = banks[*b].get(key).is_some_and(|own| own.version >= *version);
                assert!(!newer, "never in the place of a newer one");
                install(&mut banks[*b], &source);
            }
        }
        Action::Remove { bank, seen } => {
            assert_eq!(banks[*bank][key].version, *seen);
            let others = BankId::ALL.into_iter().filter(|b| b != bank);
            assert!(others.into_iter().all(|b| compared[b] && !banks[b].contains_key(key)));
            banks[*bank].remove(key);
        }
        Action::Vote => vote(banks, compared, key, floor),
    }
}

fn vote(banks: &mut PerBank<Bank>, compared: PerBank<bool>, key: &Key, floor: Version) {
    let limit = Limit { through: THROUGH, ends: &[] };
    let ballots = PerBank::from_fn(|b| match banks[b].get(key) {
        _ if !compared[b] => Ballot::Silent,
        None => Ballot::Absent,
        Some(h) => {
            let found = Found::Record { version: h.version, digest: h.digest, len: h.len };
            Ballot::weigh(key, &found, value_of(h).as_deref(), limit)
        }
    });
    let verdict = tally(&ballots);
    let winner = match verdict {
        Verdict::Value { from, .. } | Verdict::Tombstone { from, .. } => {
            Some(banks[from][key].clone())
        }
        _ => None,
    };
    for (b, fix) in fixes(&ballots, &verdict, floor, THROUGH).iter() {
        match fix {
            None => {}
            Some(Fix::Remove { .. }) => drop(banks[b].remove(key)),
            Some(Fix::Install) => install(&mut banks[b], winner.as_ref().unwrap()),
        }
    }
}

fn plan_of(banks: &PerBank<Bank>, compared: PerBank<bool>, floor: Version) -> Vec<Repair> {
    let heads = PerBank::from_fn(|b| compared[b].then(|| banks[b].values().cloned().collect()));
    plan(&heads, THROUGH, floor)
}

fn record() -> impl Strategy<Value = (u8, u64, u8)> {
    (0..4u8, 1..6u64, 0..3u8)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]
    #[test]
    fn plans_heal_and_rest(
        rows in prop::collection::vec((prop::collection::vec(record(), 0..4), 0..3usize), 3),
        away in 0..6usize,
        floor in 0..6u64,
    ) {
        let mut banks: PerBank<Bank> = PerBank::default();
        for (b, (records, _)) in BankId::ALL.into_iter().zip(&rows) {
            for (key, seq, kind) in records {
                let h = head(&[b'a' + key], *seq, *kind);
                banks[b].insert(h.key.clone(), h);
            }
        }
        let compared = PerBank::from_fn(|b| b.index() != away);
        let floor = Version::new(1, floor);
        let mut left = Vec::new();
        for _ in 0..6 {
            left = plan_of(&banks, compared, floor);
            for repair in &left {
                perform(&mut banks, compared, repair, floor);
            }
        }
        // What cannot be decided stays: two or three different records of one version.
        for repair in &left {
            let all: Vec<&RecordHead> = BankId::ALL
                .into_iter()
                .filter(|b| compared[*b])
                .filter_map(|b| banks[b].get(&repair.key))
                .collect();
            let newest = all.iter().map(|h| h.version).max().unwrap();
            let digests: Vec<Digest> =
                all.iter().filter(|h| h.version == newest).map(|h| h.digest).collect();
            let conflict = digests.windows(2).any(|w| w[0] != w[1]);
            prop_assert!(conflict, "{repair:?} again: {banks:?}");
        }
    }
}

#[test]
fn one_lost_write_is_filled_from_those_who_agree() {
    use BankId::{A, B, C};
    let h = head(b"k", 3, 1);
    let heads = PerBank([Some(vec![h.clone()]), Some(vec![]), Some(vec![h.clone()])]);
    let repairs = plan(&heads, THROUGH, Version::ZERO);
    let (version, digest) = (h.version, h.digest);
    let action =
        Action::Install { version, digest, tombstone: false, from: vec![A, C], to: vec![B] };
    assert_eq!(repairs, [Repair { key: b"k".to_vec(), action }]);
}

#[test]
fn what_is_not_settled_is_left_alone() {
    let new = head(b"k", 10, 1);
    let heads = PerBank([Some(vec![new]), Some(vec![head(b"k", 3, 1)]), Some(vec![])]);
    assert!(plan(&heads, THROUGH, Version::ZERO).is_empty());
}

#[test]
fn tombstones_below_the_floor_are_no_difference_unless_a_value_hides_behind() {
    let grave = head(b"k", 3, 0);
    let floor = Version::new(1, 3);
    let heads = PerBank([Some(vec![grave.clone()]), Some(vec![]), Some(vec![grave.clone()])]);
    assert!(plan(&heads, THROUGH, floor).is_empty());
    assert_eq!(plan(&heads, THROUGH, Version::ZERO).len(), 1);
    let heads = PerBank([Some(vec![grave]), Some(vec![]), Some(vec![head(b"k", 2, 1)])]);
    assert_eq!(plan(&heads, THROUGH, floor).len(), 1);
    // All have dropped it and a late copy came back: it goes.
    let heads = PerBank([Some(vec![]), Some(vec![]), Some(vec![head(b"k", 2, 1)])]);
    let action = Action::Remove { bank: BankId::C, seen: Version::new(1, 2) };
    assert_eq!(plan(&heads, THROUGH, floor)[0].action, action);
}
