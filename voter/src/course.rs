//! Where a copy to a store goes on (rules 7 and 8): pure. Why this is right stands in
//! docs/adr/0016-interrupted-copies.md.

use storenode::wire::{Cursor, Version};

/// What a store says that decides it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Told {
    /// A new store on its way in.
    pub filling: bool,
    /// All settled records through here are in its index.
    pub applied: Version,
    /// Records and tombstones in its index.
    pub held: u64,
    /// How far an earlier copy came.
    pub cursor: Option<Cursor>,
}

/// What a copy begins with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Course {
    /// Copy, under keys beyond `after`, what is newer than `since`; then the store is as good as one that
    /// stands at `good`.
    From(Cursor),
    /// What it holds is too old: tombstones that it would need may be gone. It must be emptied first.
    Anew,
}

/// The course of a copy that is to end at `joint`, where the others have no tombstones at or below
/// `floor` any more.
#[must_use]
pub fn course(told: &Told, joint: Version, floor: Version) -> Course {
    if let Some(c) = &told.cursor
        && c.good > told.applied
        && c.good <= joint
    {
        let since = c.since.max(told.applied);
        // A store that had nothing holds what copies brought, and those were no older than `good`.
        let oldest = if since == Version::ZERO { c.good } else { since };
        if oldest >= floor {
            return Course::From(Cursor { since, ..c.clone() });
        }
    }
    let begun = told.filling && told.applied == Version::ZERO && told.held > 0;
    let empty = told.filling && told.applied == Version::ZERO;
    if begun || (!empty && told.applied < floor) {
        return Course::Anew;
    }
    // Its applied records may reach beyond its place in the chain.
    let good = joint.max(told.applied);
    Course::From(Cursor { since: told.applied, good, after: Vec::new() })
}

/// What is to be copied when a pass that ends at `done` is over; `None` = the store may join.
#[must_use]
pub fn next_pass(done: &Cursor, joint: Version) -> Option<Cursor> {
    (done.good < joint).then(|| Cursor { since: done.good, good: joint, after: Vec::new() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v(seq: u64) -> Version {
        Version::new(1, seq)
    }
    fn cursor(since: Version, good: Version) -> Option<Cursor> {
        Some(Cursor { since, good, after: b"k".to_vec() })
    }
    fn filling(held: u64, cursor: Option<Cursor>) -> Told {
        Told { filling: true, applied: Version::ZERO, held, cursor }
    }
    fn voter(applied: Version, cursor: Option<Cursor>) -> Told {
        Told { filling: false, applied, held: 9, cursor }
    }
    fn from(since: Version, good: Version, after: &[u8]) -> Course {
        Course::From(Cursor { since, good, after: after.to_vec() })
    }

    #[test]
    fn a_copy_that_was_not_begun_begins_where_the_store_stands() {
        assert_eq!(course(&filling(0, None), v(9), v(5)), from(Version::ZERO, v(9), b""));
        assert_eq!(course(&voter(v(5), None), v(9), v(5)), from(v(5), v(9), b""));
        assert_eq!(course(&voter(v(10), None), v(9), v(5)), from(v(10), v(10), b""));
        assert_eq!(course(&voter(v(4), None), v(9), v(5)), Course::Anew);
        assert_eq!(course(&voter(Version::ZERO, None), v(9), v(5)), Course::Anew);
    }

    #[test]
    fn an_interrupted_one_goes_on_and_is_good_for_what_it_was_good_for() {
        let c = cursor(Version::ZERO, v(7));
        assert_eq!(course(&filling(3, c.clone()), v(9), v(5)), from(Version::ZERO, v(7), b"k"));
        let c = cursor(v(5), v(7));
        assert_eq!(course(&voter(v(5), c.clone()), v(9), v(5)), from(v(5), v(7), b"k"));
        // It learned since that more of its own was settled.
        assert_eq!(course(&voter(v(6), c.clone()), v(9), v(6)), from(v(6), v(7), b"k"));
        // It got there by other means.
        assert_eq!(course(&voter(v(7), c), v(9), v(5)), from(v(7), v(9), b""));
    }

    #[test]
    fn content_older_than_the_floor_is_dropped() {
        let c = cursor(Version::ZERO, v(7));
        assert_eq!(course(&filling(3, c.clone()), v(9), v(8)), Course::Anew);
        assert_eq!(course(&filling(3, None), v(9), Version::ZERO), Course::Anew);
        // The second pass of a filling store: keys beyond the cursor are as old as the first.
        assert_eq!(course(&filling(3, cursor(v(4), v(7))), v(9), v(5)), Course::Anew);
        // A claim beyond what is settled is no claim.
        assert_eq!(course(&filling(3, c), v(6), v(1)), Course::Anew);
    }

    #[test]
    fn what_was_written_between_two_sessions_is_a_pass_of_its_own() {
        let done = Cursor { since: Version::ZERO, good: v(7), after: b"z".to_vec() };
        let next = Cursor { since: v(7), good: v(9), after: Vec::new() };
        assert_eq!(next_pass(&done, v(9)), Some(next.clone()));
        assert_eq!(next_pass(&next, v(9)), None);
    }
}
