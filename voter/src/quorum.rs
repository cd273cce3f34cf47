//! Progress of one fan-out over the three banks of a shard: whom to ask next, when to stop waiting
//! for a slow one, when it is done or out of reach. Time is an argument: a [`Duration`] since any
//! fixed moment.

use std::time::Duration;
use storenode::wire::{BankId, PerBank};

/// A set of banks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Usable(pub PerBank<bool>);

impl Usable {
    /// All three.
    pub const ALL: Usable = Usable(PerBank([true; 3]));
    /// Builds the set.
    pub fn from_fn(f: impl FnMut(BankId) -> bool) -> Self {
        Self(PerBank::from_fn(f))
    }
    /// Members, in order.
    pub fn banks(self) -> impl Iterator<Item = BankId> {
        BankId::ALL.into_iter().filter(move |b| self.0[*b])
    }
    /// How many.
    #[must_use]
    pub fn count(self) -> usize {
        self.banks().count()
    }
    /// At least one.
    #[must_use]
    pub fn any(self) -> bool {
        self.count() > 0
    }
    /// Is this bank in it?
    #[must_use]
    pub fn contains(self, bank: BankId) -> bool {
        self.0[bank]
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Leg {
    Unusable,
    Spare,
    Asked { since: Duration },
    Good,
    Failed,
}

/// What to do next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Ask this bank, then call [`Fanout::next`] again.
    Ask(BankId),
    /// Wait for an answer, or until then: another bank is worth asking from that moment. `None` =
    /// only an answer (or its deadline) changes anything.
    Wait(Option<Duration>),
    /// Enough good answers.
    Done,
    /// Cannot succeed any more.
    OutOfReach,
}

/// One fan-out: `need` good answers of the usable banks, as few asked as possible.
#[derive(Clone, Debug)]
pub struct Fanout {
    legs: PerBank<Leg>,
    order: [BankId; 3],
    need: usize,
    hedge_after: Duration,
}

impl Fanout {
    /// Begins. `order` is the preference; a bank that has not answered `hedge_after` after it was
    /// asked gets company, if a spare one is left.
    #[must_use]
    pub fn new(usable: Usable, order: [BankId; 3], need: usize, hedge_after: Duration) -> Self {
        let legs =
            PerBank::from_fn(|b| if usable.contains(b) { Leg::Spare } else { Leg::Unusable });
        Self { legs, order, need, hedge_after }
    }

    fn count(&self, f: impl Fn(&Leg) -> bool) -> usize {
        self.legs.iter().filter(|(_, l)| f(l)).count()
    }

    /// What to do now; call it until it does not say [`Step::Ask`].
    #[must_use]
    pub fn next(&mut self, now: Duration) -> Step {
        let good = self.count(|l| *l == Leg::Good);
        if good >= self.need {
            return Step::Done;
        }
        let late = |l: &Leg| matches!(l, Leg::Asked { since } if now >= *since + self.hedge_after);
        let asked = self.count(|l| matches!(l, Leg::Asked { .. }));
        let hopeful = asked - self.count(late);
        let spare = self.order.into_iter().find(|b| self.legs[*b] == Leg::Spare);
        if let (true, Some(bank)) = (good + hopeful < self.need, spare) {
            self.legs[bank] = Leg::Asked { since: now };
            return Step::Ask(bank);
        }
        if good + asked + self.count(|l| *l == Leg::Spare) < self.need {
            return Step::OutOfReach;
        }
        let next_late = self.legs.iter().filter_map(|(_, l)| match l {
            Leg::Asked { since } if spare.is_some() => Some(*since + self.hedge_after),
            _ => None,
        });
        Step::Wait(next_late.min())
    }

    /// A good answer came.
    pub fn answered(&mut self, bank: BankId) {
        self.legs[bank] = Leg::Good;
    }

    /// An error, a refusal or an abstention came, or the deadline passed.
    pub fn failed(&mut self, bank: BankId) {
        self.legs[bank] = Leg::Failed;
    }

    /// One good answer more is needed than was thought (two disagree).
    pub fn need_more(&mut self) {
        self.need += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use BankId::{A, B, C};

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn asks_two_and_the_third_only_when_one_is_late_or_fails() {
        let mut f = Fanout::new(Usable::ALL, [B, C, A], 2, 50 * MS);
        assert_eq!(f.next(MS), Step::Ask(B));
        assert_eq!(f.next(MS), Step::Ask(C));
        assert_eq!(f.next(2 * MS), Step::Wait(Some(51 * MS)));
        f.answered(C);
        assert_eq!(f.next(3 * MS), Step::Wait(Some(51 * MS)));
        assert_eq!(f.next(51 * MS), Step::Ask(A));
        assert_eq!(f.next(52 * MS), Step::Wait(None));
        f.answered(B);
        assert_eq!(f.next(53 * MS), Step::Done);
    }

    #[test]
    fn a_failure_is_replaced_at_once_and_two_are_the_end() {
        let mut f = Fanout::new(Usable::ALL, [A, B, C], 2, 50 * MS);
        assert_eq!((f.next(MS), f.next(MS)), (Step::Ask(A), Step::Ask(B)));
        f.failed(A);
        assert_eq!(f.next(MS), Step::Ask(C));
        f.failed(B);
        assert_eq!(f.next(MS), Step::OutOfReach);
    }

    #[test]
    fn unusable_banks_are_never_asked() {
        let mut f = Fanout::new(Usable::from_fn(|b| b != B), [A, B, C], 2, MS);
        assert_eq!((f.next(MS), f.next(MS)), (Step::Ask(A), Step::Ask(C)));
        assert_eq!(f.next(9 * MS), Step::Wait(None));
        f.answered(A);
        f.answered(C);
        assert_eq!(f.next(9 * MS), Step::Done);
        f.need_more();
        assert_eq!(f.next(9 * MS), Step::OutOfReach);
    }
}
