//! Replacing a store (rule 8): the steps reach their end from any point, in the one safe order.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use BankId::{A, B, C};
use storenode::wire::{BankId, Cursor, PerBank, Role, Status, Version};
use support::{blank, statuses, store};
use voter::configuration::{Filled, Next, Waiting, next_step};

const AT: Version = Version::new(3, 20);
const FILLED: Filled = Filled { through: AT, mark: AT };

/// What the nodes do when told; checks the order that trap 20 asks for.
fn perform(s: &mut PerBank<Option<Status>>, next: &Next, partly: bool) {
    match next {
        Next::AssignFilling { bank } => {
            let n = s[*bank].as_mut().unwrap();
            n.volume = Some(support::VOLUME);
            (n.role, n.store) = (Role::Filling, store(0, *bank, 1));
            n.position.position = Version::ZERO;
            n.position.high = Version::ZERO;
        }
        Next::Fill { bank, store } => {
            let n = s[*bank].as_mut().unwrap();
            assert_eq!((n.store, n.role), (*store, Role::Filling));
            (n.position.position, n.position.applied, n.position.high) = (AT, AT, AT);
        }
        Next::Configure { banks, configuration } => {
            for b in &banks[..if partly { 1 } else { banks.len() }] {
                let n = s[*b].as_mut().unwrap();
                assert!(n.role == Role::Voter && configuration.number > n.configuration.number);
                n.configuration = *configuration;
            }
        }
        Next::Admit { bank, store, configuration } => {
            for b in BankId::ALL.into_iter().filter(|b| b != bank) {
                let held = s[b].as_ref().unwrap().configuration;
                assert_eq!(held, *configuration, "admitted before bank {b} knows");
            }
            let n = s[*bank].as_mut().unwrap();
            assert_eq!(n.store, *store);
            (n.role, n.configuration) = (Role::Voter, *configuration);
        }
        Next::Done | Next::Wait(_) => {}
    }
}

#[test]
fn an_empty_store_is_replaced_step_by_step() {
    for bank in BankId::ALL {
        let mut s = statuses(1, AT).remove(0);
        s[bank] = Some(blank(0, bank));
        let mut steps = Vec::new();
        for _ in 0..10 {
            // Only before it is filled is it one to be replaced.
            let replace = PerBank::from_fn(|b| b == bank && steps.len() < 3);
            let next = next_step(&s, replace, FILLED);
            perform(&mut s, &next, true);
            steps.push(next);
            if steps.last() == Some(&Next::Done) {
                break;
            }
        }
        let n = steps.len();
        assert!(matches!(steps[0], Next::AssignFilling { .. }));
        assert!(matches!(steps[1], Next::Fill { .. }));
        assert!(matches!(steps[2], Next::Configure { .. }), "{steps:?}");
        assert!(matches!(steps[n - 2], Next::Admit { .. }), "{steps:?}");
        assert_eq!(steps[n - 1], Next::Done);
        let c = s[A].as_ref().unwrap().configuration;
        assert_eq!((c.number, c.stores[bank]), (2, Some(store(0, bank, 1))));
    }
}

#[test]
fn it_waits_for_the_peer_that_is_away() {
    let mut s = statuses(1, AT).remove(0);
    s[C] = Some(blank(0, C));
    let replace = PerBank([false, false, true]);
    for _ in 0..2 {
        let next = next_step(&s, replace, FILLED);
        perform(&mut s, &next, false);
    }
    let away = s[B].take();
    assert_eq!(next_step(&s, replace, FILLED), Next::Wait(Waiting::PeerAway(B)));
    s[B] = away.clone();
    let next = next_step(&s, replace, FILLED);
    perform(&mut s, &next, true);
    // A has it, B does not and goes away again: nobody is admitted.
    s[B] = None;
    assert_eq!(next_step(&s, PerBank([false; 3]), FILLED), Next::Wait(Waiting::PeerAway(B)));
    s[B] = away;
    let Next::Configure { banks, .. } = next_step(&s, PerBank([false; 3]), FILLED) else {
        panic!()
    };
    assert_eq!(banks, [B]);
}

#[test]
fn a_store_is_not_done_before_it_holds_everything() {
    let mut s = statuses(1, AT).remove(0);
    s[C] = Some(blank(0, C));
    let replace = PerBank([false, false, true]);
    for _ in 0..2 {
        let next = next_step(&s, replace, FILLED);
        perform(&mut s, &next, false);
    }
    let more = Filled { through: Version::new(3, 21), mark: AT };
    assert!(matches!(next_step(&s, replace, more), Next::Fill { .. }));
    // It would look rolled back to the next opener.
    let mark = Filled { through: AT, mark: Version::new(3, 22) };
    assert!(matches!(next_step(&s, replace, mark), Next::Fill { .. }));
    s[C].as_mut().unwrap().cursor =
        Some(Cursor { since: Version::ZERO, good: Version::new(9, 9), after: b"k".to_vec() });
    assert!(matches!(next_step(&s, replace, FILLED), Next::Fill { .. }));
}

#[test]
fn nothing_to_do_or_nobody_there() {
    let mut s = statuses(1, AT).remove(0);
    assert_eq!(next_step(&s, PerBank([false; 3]), FILLED), Next::Done);
    s[C] = None;
    assert_eq!(next_step(&s, PerBank([false; 3]), FILLED), Next::Wait(Waiting::Away(C)));
    assert_eq!(next_step(&s, PerBank([false, false, true]), FILLED), Next::Wait(Waiting::Away(C)));
}
