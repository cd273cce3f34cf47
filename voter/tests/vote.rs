//! All ballots of one key, against rule 6 of the protocol.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use storenode::wire::{BankId, Digest, Found, OpeningMark, PerBank, Version, digest};
use voter::vote::{Ballot, Fix, Limit, Verdict, Why, fixes, tally};

const OLD: Version = Version::new(1, 3);
const NEW: Version = Version::new(1, 5);
const D1: Digest = Digest([1; 16]);
const D2: Digest = Digest([2; 16]);
const T: Digest = Digest([9; 16]);

const fn valid(version: Version, digest: Digest) -> Ballot {
    Ballot::Valid { version, digest, tombstone: false }
}
const fn grave(version: Version) -> Ballot {
    Ballot::Valid { version, digest: T, tombstone: true }
}
const fn claim(version: Version, digest: Digest) -> Ballot {
    Ballot::Claim { version, digest }
}

const ALPHABET: [Ballot; 15] = [
    Ballot::NotAsked,
    Ballot::Silent,
    Ballot::NotThere,
    Ballot::Absent,
    Ballot::Damaged,
    grave(OLD),
    grave(NEW),
    claim(OLD, D1),
    claim(OLD, D2),
    claim(NEW, D1),
    claim(NEW, D2),
    valid(OLD, D1),
    valid(OLD, D2),
    valid(NEW, D1),
    valid(NEW, D2),
];

fn every_ballot(mut f: impl FnMut(PerBank<Ballot>)) -> usize {
    for a in ALPHABET {
        for b in ALPHABET {
            for c in ALPHABET {
                f(PerBank([a, b, c]));
            }
        }
    }
    ALPHABET.len().pow(3)
}

fn is_nothing(b: &Ballot) -> bool {
    matches!(b, Ballot::Absent | Ballot::Valid { tombstone: true, .. })
}
fn has_answered(b: &Ballot) -> bool {
    !matches!(b, Ballot::NotAsked | Ballot::Silent | Ballot::NotThere)
}
fn answered(ballots: &PerBank<Ballot>) -> usize {
    ballots.iter().filter(|(_, b)| has_answered(b)).count()
}

#[test]
fn each_verdict_is_earned() {
    let n = every_ballot(|ballots| {
        let verdict = tally(&ballots);
        let holders = |r| ballots.iter().filter(|(_, b)| b.record() == Some(r)).count();
        let newest = ballots.iter().filter_map(|(_, b)| b.record()).max_by_key(|r| r.0);
        let nothing = ballots.iter().filter(|(_, b)| is_nothing(b)).count();
        match verdict {
            Verdict::Value { from, version, digest } => {
                assert_eq!(ballots[from], valid(version, digest), "verified: {ballots:?}");
                let agreed = holders((version, digest)) >= 2;
                assert!(agreed || answered(&ballots) >= 2, "never from one alone: {ballots:?}");
                let best = newest.unwrap().0;
                assert!(agreed || version == best, "older only if two agree: {ballots:?}");
                assert!(nothing < 2, "{ballots:?}");
            }
            Verdict::Tombstone { from, version, digest } => {
                let there = Ballot::Valid { version, digest, tombstone: true };
                assert_eq!(ballots[from], there);
                assert!(nothing >= 2 || answered(&ballots) >= 2, "{ballots:?}");
            }
            Verdict::Absent => assert!(nothing >= 2, "absence needs two: {ballots:?}"),
            Verdict::Fetch { from } => {
                assert!(matches!(ballots[from], Ballot::Claim { .. }), "{ballots:?}");
            }
            Verdict::AskMore(who) => {
                assert!(who.any());
                assert!(who.banks().all(|b| ballots[b] == Ballot::NotAsked), "{ballots:?}");
            }
            Verdict::Undecided(why) => {
                let all_asked = ballots.iter().all(|(_, b)| *b != Ballot::NotAsked);
                assert!(all_asked, "somebody is left to ask: {ballots:?}");
                match why {
                    Why::TooFewAnswers => assert!(answered(&ballots) < 2, "{ballots:?}"),
                    Why::NothingIntact => assert_eq!(newest, None, "{ballots:?}"),
                    Why::Conflict => {
                        let best = newest.unwrap().0;
                        let rivals = ballots.iter().filter_map(|(_, b)| b.record());
                        let rivals = rivals.filter(|r| r.0 == best).count();
                        assert!(rivals >= 2 && holders(newest.unwrap()) == 1, "{ballots:?}");
                    }
                }
            }
        }
    });
    assert_eq!(n, 3375);
}

/// What a reader's loop makes of what the three banks would answer.
fn read(truth: &PerBank<Ballot>, first: [BankId; 2], silent: Option<BankId>) -> Verdict {
    let mut ballots = PerBank([Ballot::NotAsked; 3]);
    let mut fetched = 0;
    let ask = |ballots: &mut PerBank<Ballot>, b: BankId, value: bool| {
        ballots[b] = match truth[b] {
            _ if silent == Some(b) => Ballot::Silent,
            Ballot::Valid { version, digest, tombstone: false } if !value => claim(version, digest),
            // The claim of an entry whose value does not verify.
            Ballot::Claim { .. } if value => Ballot::Damaged,
            answer => answer,
        };
    };
    ask(&mut ballots, first[0], true);
    ask(&mut ballots, first[1], false);
    loop {
        match tally(&ballots) {
            Verdict::AskMore(who) => who.banks().for_each(|b| ask(&mut ballots, b, false)),
            Verdict::Fetch { from } => {
                fetched += 1;
                assert!(fetched <= 3, "each claim is looked at once");
                ask(&mut ballots, from, true);
            }
            verdict => return verdict,
        }
    }
}

fn right(verdict: Verdict, truth: Ballot) -> bool {
    match (verdict, truth) {
        (Verdict::Value { version, digest, .. }, t) => t == valid(version, digest),
        (Verdict::Tombstone { .. } | Verdict::Absent, t) => is_nothing(&t),
        _ => false,
    }
}

fn every_order(mut f: impl FnMut([BankId; 2])) {
    for a in BankId::ALL {
        for b in BankId::ALL.into_iter().filter(|b| *b != a) {
            f([a, b]);
        }
    }
}

const TRUTHS: [Ballot; 5] =
    [Ballot::Absent, valid(OLD, D1), valid(NEW, D1), grave(OLD), grave(NEW)];

/// One bank may answer anything at all, right digests included; its two peers are right.
#[test]
fn one_liar_is_outvoted() {
    for truth in TRUTHS {
        for bad in BankId::ALL {
            for lie in ALPHABET.into_iter().filter(|l| *l != Ballot::NotAsked) {
                let mut banks = PerBank([truth; 3]);
                banks[bad] = lie;
                every_order(|first| {
                    let verdict = read(&banks, first, None);
                    assert!(right(verdict, truth), "{truth:?} {bad} says {lie:?}: {verdict:?}");
                });
            }
        }
    }
}

/// One bank is dead and another one lost or damaged its copy: what is left is enough, or the answer
/// is a refusal; never wrong.
#[test]
fn one_dead_and_one_damaged_bank() {
    for truth in TRUTHS {
        every_order(|[dead, bad]| {
            for answer in [Ballot::Damaged, Ballot::Absent, valid(OLD, D1), grave(OLD)] {
                let older =
                    answer.record().is_none_or(|r| truth.record().is_some_and(|t| r.0 < t.0));
                if !older {
                    continue;
                }
                let mut banks = PerBank([truth; 3]);
                banks[bad] = answer;
                every_order(|first| {
                    let verdict = read(&banks, first, Some(dead));
                    if truth == Ballot::Absent && answer == Ballot::Damaged {
                        assert_eq!(verdict, Verdict::Undecided(Why::NothingIntact));
                    } else {
                        assert!(right(verdict, truth), "{truth:?} {answer:?}: {verdict:?}");
                    }
                });
            }
        });
    }
}

#[test]
fn two_banks_gone_is_a_refusal() {
    for mut ballots in TRUTHS.map(|t| PerBank([t, Ballot::Silent, Ballot::NotThere])) {
        assert_eq!(tally(&ballots), Verdict::Undecided(Why::TooFewAnswers));
        ballots.0.rotate_right(1);
        assert_eq!(tally(&ballots), Verdict::Undecided(Why::TooFewAnswers));
    }
}

#[test]
fn equal_versions_that_differ_are_refused_without_a_third() {
    let mut ballots = PerBank([valid(NEW, D1), valid(NEW, D2), Ballot::Silent]);
    assert_eq!(tally(&ballots), Verdict::Undecided(Why::Conflict));
    ballots[BankId::C] = Ballot::NotAsked;
    assert!(matches!(tally(&ballots), Verdict::AskMore(_)));
    ballots[BankId::C] = claim(NEW, D2);
    let from = BankId::B;
    assert_eq!(tally(&ballots), Verdict::Value { from, version: NEW, digest: D2 });
}

#[test]
fn records_beyond_the_position_or_their_epoch_are_damaged() {
    let ends = [
        OpeningMark { epoch: 2, cut: Version::new(1, 5) },
        OpeningMark { epoch: 3, cut: Version::new(2, 9) },
    ];
    let limit = Limit { through: Version::new(3, 20), ends: &ends };
    for (epoch, seq, good) in [
        (1, 5, true),
        (1, 6, false),
        (2, 6, true),
        (2, 9, true),
        (2, 10, false),
        (3, 10, true),
        (3, 20, true),
        (3, 21, false),
        (4, 1, false),
    ] {
        let version = Version::new(epoch, seq);
        let digest = digest(b"k", version, Some(b"v"));
        let found = Found::Record { version, digest, len: Some(1) };
        let ballot = Ballot::weigh(b"k", &found, Some(b"v"), limit);
        assert_eq!(ballot != Ballot::Damaged, good, "{version}: {ballot:?}");
    }
}

#[test]
fn only_what_verifies_is_valid() {
    let limit = Limit { through: NEW, ends: &[] };
    let found = |len| Found::Record { version: NEW, digest: digest(b"k", NEW, Some(b"v")), len };
    let weigh = |found: &Found, value: Option<&[u8]>| Ballot::weigh(b"k", found, value, limit);
    assert!(matches!(weigh(&found(Some(1)), Some(b"v")), Ballot::Valid { tombstone: false, .. }));
    assert!(matches!(weigh(&found(Some(1)), None), Ballot::Claim { .. }));
    assert_eq!(weigh(&found(Some(1)), Some(b"w")), Ballot::Damaged);
    assert_eq!(weigh(&found(Some(2)), Some(b"v")), Ballot::Damaged);
    assert_eq!(weigh(&found(None), None), Ballot::Damaged, "not the digest of a tombstone");
    let grave = Found::Record { version: NEW, digest: digest(b"k", NEW, None), len: None };
    assert!(matches!(weigh(&grave, None), Ballot::Valid { tombstone: true, .. }));
    assert_eq!(Ballot::weigh(b"other", &grave, None, limit), Ballot::Damaged, "moved");
    assert_eq!(weigh(&Found::Damaged { what: "x".into() }, None), Ballot::Damaged);
}

/// Performing the fixes makes the banks that answered agree with the verdict.
#[test]
fn fixes_heal() {
    every_ballot(|mut ballots| {
        let verdict = tally(&ballots);
        let todo = fixes(&ballots, &verdict, Version::ZERO, NEW);
        let winner = match verdict {
            Verdict::Value { from, .. } | Verdict::Tombstone { from, .. } => Some(ballots[from]),
            Verdict::Absent => None,
            _ => return assert_eq!(todo, PerBank([None; 3])),
        };
        for (b, fix) in todo.iter() {
            match fix {
                None => {}
                Some(Fix::Install) => ballots[b] = winner.expect("a record to install"),
                Some(Fix::Remove { seen }) => {
                    assert_eq!(ballots[b].record().unwrap().0, *seen);
                    ballots[b] = Ballot::Absent;
                }
            }
        }
        for (b, ballot) in ballots.iter().filter(|(_, b)| has_answered(b)) {
            let healed = match winner {
                Some(w) => ballot.record() == w.record(),
                None => *ballot == Ballot::Absent,
            };
            // Left over: what was removed is installed by the next look, and damage under a key that
            // two know nothing of names no version to remove.
            let left = *ballot == Ballot::Damaged && verdict == Verdict::Absent
                || matches!(todo[b], Some(Fix::Remove { .. }));
            assert!(healed || left, "{verdict:?} {ballots:?}");
        }
    });
}

#[test]
fn a_dropped_tombstone_is_no_difference() {
    let ballots = PerBank([grave(OLD), Ballot::Absent, grave(OLD)]);
    let verdict = tally(&ballots);
    assert_eq!(fixes(&ballots, &verdict, OLD, NEW), PerBank([None; 3]));
    let todo = fixes(&ballots, &verdict, Version::ZERO, NEW);
    assert_eq!(todo[BankId::B], Some(Fix::Install));
}

/// A bank that answers late holds what was committed meanwhile; the two that answered before agree on
/// what was there then, or on nothing. Its record must stay (trap 28).
#[test]
fn what_is_newer_than_the_question_is_no_loser() {
    every_ballot(|ballots| {
        let todo = fixes(&ballots, &tally(&ballots), Version::ZERO, OLD);
        if ballots.iter().any(|(_, b)| b.record().is_some_and(|(v, _)| v > OLD)) {
            assert_eq!(todo, PerBank([None; 3]), "{ballots:?}");
        }
    });
}
