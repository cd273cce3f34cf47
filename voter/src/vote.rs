//! One key, up to three answers, one verdict: rule 6 of the protocol, as a pure function.
//!
//! An answer is weighed by what it proves. A record whose digest was computed here is *valid*; one
//! of which only version and digest were told is a *claim*, good for agreement but not for a
//! value. What is damaged, silent or not there has no vote; in particular nothing but two answers
//! that say so makes a key absent.

use crate::quorum::Usable;
use storenode::wire::{BankId, Digest, Found, OpeningMark, PerBank, Version, digest};

/// What one up-to-date voter answered about one key.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Ballot {
    /// Could still be asked.
    #[default]
    NotAsked,
    /// No answer, an I/O error, or a bank that is down: no vote.
    Silent,
    /// The node abstains, since it is not contiguous through the position asked for, or is no
    /// voter: no vote.
    NotThere,
    /// Nothing under this key, not even a tombstone.
    Absent,
    /// Version and digest were told, the value was not seen.
    Claim {
        /// Its version.
        version: Version,
        /// Its digest.
        digest: Digest,
    },
    /// A value or a tombstone whose digest was verified here.
    Valid {
        /// Its version.
        version: Version,
        /// Its digest.
        digest: Digest,
        /// The record says that the key was deleted.
        tombstone: bool,
    },
    /// Something is there and it is not whole, or cannot be: no vote, and never "absent".
    Damaged,
}

/// Up to where versions are credible.
#[derive(Clone, Copy, Debug)]
pub struct Limit<'a> {
    /// Position of the shard that was asked for (`W_i`): newer records are forged.
    pub through: Version,
    /// Ends of the epochs, any order. A record of an epoch above its end was discarded by an
    /// opening.
    pub ends: &'a [OpeningMark],
}

impl Limit<'_> {
    /// May a settled record have this version?
    #[must_use]
    pub fn allows(&self, version: Version) -> bool {
        version <= self.through
            && !self.ends.iter().any(|end| end.epoch > version.epoch && version > end.cut)
    }
}

impl Ballot {
    /// Weighs a node's answer. `value` is what came with it in the bulk, if values were asked for.
    /// A tombstone needs no value: its digest is computed from key and version.
    #[must_use]
    pub fn weigh(key: &[u8], found: &Found, value: Option<&[u8]>, limit: Limit<'_>) -> Self {
        match found {
            Found::Absent => Self::Absent,
            Found::Damaged { .. } => Self::Damaged,
            Found::Record { version, .. } if !limit.allows(*version) => Self::Damaged,
            Found::Record { version, digest: told, len } => {
                let (version, told) = (*version, *told);
                let check = |value: Option<&[u8]>| {
                    if digest(key, version, value) == told {
                        Self::Valid { version, digest: told, tombstone: value.is_none() }
                    } else {
                        Self::Damaged
                    }
                };
                match (len, value) {
                    (None, _) => check(None),
                    (Some(len), Some(v)) if v.len() == *len as usize => check(Some(v)),
                    (Some(_), Some(_)) => Self::Damaged,
                    (Some(_), None) => Self::Claim { version, digest: told },
                }
            }
        }
    }

    /// Version and digest of a record, seen or claimed.
    #[must_use]
    pub fn record(&self) -> Option<(Version, Digest)> {
        match *self {
            Self::Claim { version, digest } | Self::Valid { version, digest, .. } => {
                Some((version, digest))
            }
            _ => None,
        }
    }

    /// Says, on its own, that the key has no value.
    fn is_nothing(&self) -> bool {
        matches!(self, Self::Absent | Self::Valid { tombstone: true, .. })
    }

    /// The node was reached and is up to date, whatever it holds.
    fn answered(&self) -> bool {
        !matches!(self, Self::NotAsked | Self::Silent | Self::NotThere)
    }
}

/// What the ballots say together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// The verified value of this bank is right.
    Value {
        /// Whose.
        from: BankId,
        /// Its version.
        version: Version,
        /// Its digest.
        digest: Digest,
    },
    /// This bank's claim would win: read its value, replace its ballot, tally again.
    Fetch {
        /// Whose.
        from: BankId,
    },
    /// The key was deleted; this bank holds the tombstone.
    Tombstone {
        /// Whose.
        from: BankId,
        /// Its version.
        version: Version,
        /// Its digest.
        digest: Digest,
    },
    /// Two say that there is nothing.
    Absent,
    /// Ask these too, then tally again.
    AskMore(Usable),
    /// Refuse: answering would be a guess.
    Undecided(Why),
}

/// Why there is no verdict.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Why {
    /// Fewer than two up-to-date voters answered: may work later.
    #[error("fewer than two banks that are up to date answered")]
    TooFewAnswers,
    /// Two answered, and nothing whole is among the answers (absent and damaged, or both damaged).
    #[error("no intact copy is left, or its absence cannot be shown")]
    NothingIntact,
    /// Two valid records of one version that differ, and no third to decide.
    #[error("two intact copies of the same version differ")]
    Conflict,
}

/// Decides about one key. Every ballot is of a voter that is up to date for the position asked for;
/// others abstain ([`Ballot::NotThere`]).
#[must_use]
pub fn tally(ballots: &PerBank<Ballot>) -> Verdict {
    if let Some(verdict) = agreement(ballots) {
        return verdict;
    }
    let not_asked = Usable::from_fn(|b| ballots[b] == Ballot::NotAsked);
    if not_asked.any() {
        return Verdict::AskMore(not_asked);
    }
    if ballots.iter().filter(|(_, b)| b.answered()).count() < 2 {
        return Verdict::Undecided(Why::TooFewAnswers);
    }
    newest(ballots)
}

/// Two banks that say the same. Different tombstones, or a tombstone and nothing, are the same: a
/// key without a value (one of them may have dropped its tombstone at the floor).
fn agreement(ballots: &PerBank<Ballot>) -> Option<Verdict> {
    let nothing: Vec<BankId> =
        BankId::ALL.into_iter().filter(|b| ballots[*b].is_nothing()).collect();
    if nothing.len() >= 2 {
        let newest_tombstone = nothing
            .iter()
            .filter_map(|b| ballots[*b].record().map(|r| (r, *b)))
            .max_by_key(|(r, _)| r.0);
        return Some(match newest_tombstone {
            Some(((version, digest), from)) => Verdict::Tombstone { from, version, digest },
            None => Verdict::Absent,
        });
    }
    let agreed = BankId::ALL.into_iter().find(|b| {
        ballots[*b].record().is_some_and(|r| {
            BankId::ALL.into_iter().any(|o| o != *b && ballots[o].record() == Some(r))
        })
    })?;
    let record = ballots[agreed].record()?;
    Some(take(ballots, record))
}

/// The newest record wins; two different ones of that version do not.
fn newest(ballots: &PerBank<Ballot>) -> Verdict {
    let Some(best) = ballots.iter().filter_map(|(_, b)| b.record()).max_by_key(|r| r.0) else {
        return Verdict::Undecided(Why::NothingIntact);
    };
    let rivals =
        Usable::from_fn(|b| ballots[b].record().is_some_and(|r| r.0 == best.0 && r.1 != best.1));
    if rivals.any() {
        // One that is only claimed may turn out to be damaged: look before refusing.
        let claimed = BankId::ALL.into_iter().find(|b| {
            let newest = ballots[*b].record().is_some_and(|r| r.0 == best.0);
            newest && matches!(ballots[*b], Ballot::Claim { .. })
        });
        return match claimed {
            Some(from) => Verdict::Fetch { from },
            None => Verdict::Undecided(Why::Conflict),
        };
    }
    take(ballots, best)
}

/// The verdict for a record that won: from who showed it, or else from who claims it.
fn take(ballots: &PerBank<Ballot>, (version, digest): (Version, Digest)) -> Verdict {
    let holders =
        || BankId::ALL.into_iter().filter(|b| ballots[*b].record() == Some((version, digest)));
    for from in holders() {
        if let Ballot::Valid { tombstone, .. } = ballots[from] {
            return if tombstone {
                Verdict::Tombstone { from, version, digest }
            } else {
                Verdict::Value { from, version, digest }
            };
        }
    }
    let from = holders().next().expect("the record came from a ballot");
    Verdict::Fetch { from }
}

/// What one bank needs so that it holds what the verdict says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fix {
    /// Install the winning record (a value or a tombstone).
    Install,
    /// Remove the foreign record of this version: two others hold nothing, or agree on a record
    /// that is older or of the same version.
    Remove {
        /// Its version, which must be unchanged when it is removed.
        seen: Version,
    },
}

/// Which banks need repair after a final verdict. Only banks that answered are named: what is
/// silent or behind heals by catch-up. A tombstone at or below `floor` may be missing rightly.
///
/// `through` is the position asked for. A bank that answers late may rightly hold what was written
/// meanwhile, and the others, who answered before, do not have it: then their agreement says nothing
/// about it, and nobody is repaired (trap 28). The next look sees them at one position.
#[must_use]
pub fn fixes(
    ballots: &PerBank<Ballot>,
    verdict: &Verdict,
    floor: Version,
    through: Version,
) -> PerBank<Option<Fix>> {
    if ballots.iter().any(|(_, b)| b.record().is_some_and(|(version, _)| version > through)) {
        return PerBank::from_fn(|_| None);
    }
    PerBank::from_fn(|b| {
        let ballot = &ballots[b];
        if !ballot.answered() {
            return None;
        }
        // A node takes only what is newer. A record that lost to two others and is not older than
        // theirs must go first; the next look installs theirs.
        let replace = |version: Version, digest: Digest| match ballot.record() {
            Some(r) if r == (version, digest) => None,
            Some((seen, _)) if seen >= version => Some(Fix::Remove { seen }),
            _ => Some(Fix::Install),
        };
        match *verdict {
            Verdict::Value { version, digest, .. } => replace(version, digest),
            Verdict::Tombstone { version, digest, .. } => match ballot {
                Ballot::Absent => (version > floor).then_some(Fix::Install),
                Ballot::Valid { version: v, tombstone: true, .. } if *v < version => {
                    (version > floor).then_some(Fix::Install)
                }
                _ => replace(version, digest),
            },
            Verdict::Absent => ballot.record().map(|(seen, _)| Fix::Remove { seen }),
            _ => None,
        }
    })
}
