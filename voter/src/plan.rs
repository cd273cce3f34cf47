//! The repair plan of one bucket: from the record heads of the voters at one position W, what must
//! be installed where, removed, or looked at more closely. Rule 11 of the protocol.
//!
//! A plan is a list of suspicions, not of orders: heads are claims. Whoever performs it reads the
//! source's value, verifies it, and installs it with `as_of = W`; the node refuses what is older.

use storenode::wire::{BankId, Digest, Key, PerBank, RecordHead, Version};

/// One thing to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Repair {
    /// The key.
    pub key: Key,
    /// What to do.
    pub action: Action,
}

/// What to do about one key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Action {
    /// Read from one of `from` (they agree), verify, install on `to`.
    Install {
        /// The record.
        version: Version,
        /// Its digest.
        digest: Digest,
        /// It is a tombstone.
        tombstone: bool,
        /// Banks that claim to have it, at least one.
        from: Vec<BankId>,
        /// Banks that lack it or hold an older or different record.
        to: Vec<BankId>,
    },
    /// Two hold nothing: remove the foreign record if its version is still `seen`.
    Remove {
        /// Where.
        bank: BankId,
        /// Its version now.
        seen: Version,
    },
    /// The heads do not decide: read the key with a vote, and repair by its verdict.
    Vote,
}

/// Plans one bucket. `heads[b]` are the heads of all applied records (tombstones included) that
/// bank `b` holds, ascending by key, `None` = that bank is not compared (down or behind). All were
/// taken through the same position `through`; `floor` is the tombstone floor. Keys for which any
/// head is newer than `through` are left for later: their bucket is not quiet.
#[must_use]
pub fn plan(
    heads: &PerBank<Option<Vec<RecordHead>>>,
    through: Version,
    floor: Version,
) -> Vec<Repair> {
    let banks: Vec<BankId> = BankId::ALL.into_iter().filter(|b| heads[*b].is_some()).collect();
    let mut at = PerBank([0usize; 3]);
    let head = |b: BankId, at: &PerBank<usize>| heads[b].as_ref().and_then(|h| h.get(at[b]));
    let mut repairs = Vec::new();
    while let Some(key) = banks.iter().filter_map(|b| head(*b, &at)).map(|h| &h.key).min() {
        let row = PerBank::from_fn(|b| head(b, &at).filter(|h| h.key == *key));
        if let Some(action) = plan_key(&banks, &row, through, floor) {
            repairs.push(Repair { key: key.clone(), action });
        }
        for b in &banks {
            at[*b] += usize::from(row[*b].is_some());
        }
    }
    repairs
}

fn plan_key(
    banks: &[BankId],
    row: &PerBank<Option<&RecordHead>>,
    through: Version,
    floor: Version,
) -> Option<Action> {
    let there: Vec<(BankId, &RecordHead)> =
        banks.iter().filter_map(|b| Some((*b, row[*b]?))).collect();
    if banks.len() < 2 || there.iter().any(|(_, h)| h.version > through) {
        return None;
    }
    let newest = there.iter().map(|(_, h)| h.version).max()?;
    let of_newest: Vec<&(BankId, &RecordHead)> =
        there.iter().filter(|(_, h)| h.version == newest).collect();
    let model = of_newest[0].1;
    if of_newest.iter().any(|(_, h)| h.digest != model.digest || h.len != model.len) {
        return Some(Action::Vote);
    }
    let to: Vec<BankId> =
        banks.iter().filter(|b| row[**b].is_none_or(|h| h.version < newest)).copied().collect();
    if to.is_empty() {
        return None;
    }
    let live = |h: &RecordHead| h.len.is_some();
    if !live(model) {
        // No value anywhere newer than the tombstone. At or below the floor it may be gone rightly.
        let older_value = there.iter().any(|(_, h)| h.version < newest && live(h));
        if newest <= floor && !older_value {
            return None;
        }
    }
    let missing = banks.len() - there.len();
    if there.len() == 1 && missing == 2 && live(model) {
        return Some(Action::Remove { bank: there[0].0, seen: newest });
    }
    // One against two that agree on something older, or two banks of which one has nothing: which
    // is wrong is for a vote over verified records to say.
    let agreed_older = there.iter().filter(|(_, h)| h.version < newest).count() >= 2;
    if of_newest.len() == 1 && (agreed_older || (missing > 0 && live(model))) {
        return Some(Action::Vote);
    }
    let (version, digest, tombstone) = (model.version, model.digest, !live(model));
    let from = of_newest.iter().map(|(b, _)| *b).collect();
    Some(Action::Install { version, digest, tombstone, from, to })
}
