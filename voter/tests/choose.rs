//! Rule 5 a to c: who may vote, and which message says what to do when too few may.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use BankId::{A, B, C};
use storenode::wire::{BankId, PerBank, Role, Version, VolumeId};
use support::{blank, configuration, statuses, store, voter};
use voter::opening::{Refusal, Replace, choose, owned};

const AT: Version = Version::new(3, 20);

#[test]
fn a_healthy_volume() {
    let choice = choose(&statuses(2, AT)).unwrap();
    assert_eq!((choice.epoch, choice.volume), (4, support::VOLUME));
    for (i, shard) in choice.shards.iter().enumerate() {
        assert_eq!(shard.voters, PerBank::from_fn(|b| Some(store(i as u16, b, 0))));
        assert_eq!(shard.replace, PerBank([None, None, None]));
        assert!(!shard.configure.any() && shard.admit.is_none());
    }
    let promised = [PerBank([true, true, false]), PerBank([true, false, false])];
    assert_eq!(owned(&choice, &promised), [1]);
    assert!(owned(&choice, &[PerBank([true, true, false]); 2]).is_empty());
}

#[test]
fn one_bank_may_be_dead_or_empty_and_two_may_not() {
    let mut s = statuses(2, AT);
    for (i, row) in s.iter_mut().enumerate() {
        row[B] = (i == 0).then(|| blank(0, B));
    }
    let choice = choose(&s).unwrap();
    assert_eq!(choice.shards[0].replace[B], Some(Replace::Blank));
    assert_eq!(choice.shards[1].replace[B], None);
    s[1][C] = Some(blank(1, C));
    let refusal = choose(&s).unwrap_err();
    let Refusal::NotEnough { shard: 1, missing } = refusal else { panic!("{refusal:?}") };
    assert_eq!(missing, "bank B (no answer), bank C (empty)");
}

#[test]
fn a_store_below_its_mark_or_below_the_floor_is_refilled() {
    let mut s = statuses(1, AT);
    let c = s[0][C].as_mut().unwrap();
    c.position.high = Version::new(3, 19);
    let choice = choose(&s).unwrap();
    let rolled = Replace::RolledBack { mark: AT, high: Version::new(3, 19) };
    assert_eq!(choice.shards[0].replace[C], Some(rolled));
    assert_eq!(choice.shards[0].voters[C], None);

    let mut s = statuses(1, AT);
    let old = Version::new(2, 5);
    let c = s[0][C].as_mut().unwrap();
    c.position.applied = old;
    assert!(choose(&s).unwrap().shards[0].voters[C].is_some(), "behind is no reason");
    s[0][A].as_mut().unwrap().floor = Version::new(2, 6);
    assert!(
        choose(&s).unwrap().shards[0].voters[C].is_some(),
        "its log brings what it has not applied"
    );
    s[0][C].as_mut().unwrap().position.position = old;
    let floor = Replace::BelowFloor { floor: Version::new(2, 6), applied: old };
    assert_eq!(choose(&s).unwrap().shards[0].replace[C], Some(floor));
}

/// Trap 20: the highest configuration counts, and is finished before serving.
#[test]
fn an_unfinished_configuration() {
    let mut next = configuration(0);
    next.number = 2;
    next.stores[C] = Some(store(0, C, 1));
    // A holds it, B does not; the new store waits to be admitted.
    let mut s = statuses(1, AT);
    s[0][A].as_mut().unwrap().configuration = next;
    let c = s[0][C].as_mut().unwrap();
    (c.store, c.role) = (store(0, C, 1), Role::Filling);
    let choice = choose(&s).unwrap();
    assert_eq!(choice.shards[0].configuration, next);
    assert_eq!(choice.shards[0].configure.banks().collect::<Vec<_>>(), [B]);
    assert_eq!(choice.shards[0].admit, Some((C, store(0, C, 1))));
    // The old store came back in its place: it has no vote, whatever it says.
    s[0][C] = Some(voter(0, 1, C, AT));
    let choice = choose(&s).unwrap();
    assert_eq!(choice.shards[0].replace[C], Some(Replace::NotNamed));
    // With B away, A and the old store are one voter.
    s[0][B] = None;
    assert!(matches!(choose(&s), Err(Refusal::NotEnough { .. })));
}

#[test]
fn wrong_addresses() {
    assert_eq!(choose(&[PerBank([None, None, None])]), Err(Refusal::NoAnswer));
    let mut s = statuses(1, AT);
    s[0] = PerBank::from_fn(|b| Some(blank(0, b)));
    assert_eq!(choose(&s), Err(Refusal::NoVolume { silent: 0, of: 3 }));
    // Those that are away may hold the volume: nobody should be told to make a new one.
    s[0][B] = None;
    let refusal = choose(&s).unwrap_err();
    assert_eq!(refusal, Refusal::NoVolume { silent: 1, of: 3 });
    assert!(refusal.to_string().contains("1 of 3 nodes did not answer"), "{refusal}");

    // Bank B's address leads to bank A.
    let mut s = statuses(1, AT);
    s[0][B] = s[0][A].clone();
    assert!(matches!(choose(&s), Err(Refusal::SameStore { .. })));
    let mut s = statuses(2, AT);
    s[0][B] = None;
    s[0][C] = s[1][C].take();
    assert!(matches!(choose(&s), Err(Refusal::WrongPlace { bank: C, shard: 0, is_shard: 1, .. })));

    let mut s = statuses(1, AT);
    let other = VolumeId([8; 16]);
    s[0][B].as_mut().unwrap().volume = Some(other);
    let choice = choose(&s).unwrap();
    assert_eq!(choice.shards[0].replace[B], Some(Replace::Foreign { volume: other }));
    s[0][C] = None;
    assert!(matches!(choose(&s), Err(Refusal::MixedVolumes(..))));

    assert!(matches!(
        choose(&statuses(3, AT)[..2]),
        Err(Refusal::WrongShape { configured: 2, actual: 3 })
    ));
}

#[test]
fn the_epoch_is_above_everything_seen() {
    let mut s = statuses(1, AT);
    s[0][B].as_mut().unwrap().promise.epoch = 9;
    assert_eq!(choose(&s).unwrap().epoch, 10);
}

#[test]
fn a_failed_store_does_not_vote() {
    let mut s = statuses(1, AT);
    s[0][B].as_mut().unwrap().failed = Some("disk error".into());
    let choice = choose(&s).unwrap();
    assert_eq!((choice.shards[0].voters[B], choice.shards[0].replace[B].clone()), (None, None));
    s[0][C] = None;
    let Err(Refusal::NotEnough { missing, .. }) = choose(&s) else { panic!() };
    assert_eq!(missing, "bank B (disk error), bank C (no answer)");
}
