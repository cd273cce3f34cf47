//! The chain of one shard as one node holds it: what is contiguous, what is settled, what waits.
//! Pure: no I/O, no clock. Rules 1, 4, 5h and 7 of the protocol live here.

use crate::part::{PartHead, PartRecord};
use crate::wire::{Cursor, OpeningMark, PerBank, Version};
use bincode::{Decode, Encode};
use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Unbounded};
use std::sync::Arc;

/// Opening entries kept at most. Only those that a voter may still stand in are of use; this bounds
/// what a volume with a lost bank collects.
const OPENINGS_MAX: usize = 1024;

/// Where a part (or any payload) lies.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Encode, Decode)]
pub(crate) struct Place {
    /// Segment.
    pub(crate) segment: u32,
    /// Offset of the payload in it.
    pub(crate) offset: u32,
}

/// A part above `applied`.
#[derive(Clone, Debug)]
pub(crate) struct Pending {
    pub(crate) predecessor: Version,
    pub(crate) place: Place,
    /// Length of the part, bytes.
    pub(crate) len: u32,
    /// Log position behind its entry: durable when the log is synced through here.
    pub(crate) end: u64,
    pub(crate) floor: Version,
    /// Its records; `None` = to be read again from the log (so that a long detached tail costs
    /// no memory).
    pub(crate) records: Option<Arc<Vec<PartRecord>>>,
}

/// What the head of a segment and a sidecar say of the chain: all that would be lost with the
/// segments before it.
#[derive(Clone, PartialEq, Eq, Debug, Default, Encode, Decode)]
pub(crate) struct Summary {
    /// Everything through here is applied.
    pub(crate) base: Version,
    /// `base` is a part of the chain (after a join it may lie between two).
    pub(crate) base_exact: bool,
    /// Known committed through here.
    pub(crate) watermark: Version,
    /// Highest position ever acked.
    pub(crate) high: Version,
    /// Tombstones through here may be dropped.
    pub(crate) floor: Version,
    /// `high` of each bank as the writers knew it.
    pub(crate) marks: PerBank<Version>,
    /// Opening entries, ascending.
    pub(crate) openings: Vec<OpeningMark>,
    /// Epoch of the last attach.
    pub(crate) log_epoch: u64,
    /// A copy under way; see [`Chain::cursor`].
    pub(crate) cursor: Option<Cursor>,
    /// Parts that an attach made void and that still lie in a segment.
    pub(crate) voids: Vec<Place>,
}

/// The chain.
#[derive(Clone, Debug, Default)]
pub(crate) struct Chain {
    /// What is settled, and the rest of what must not be lost.
    pub(crate) sum: Summary,
    position: Version,
    position_exact: bool,
    pub(crate) pending: BTreeMap<Version, Pending>,
}

impl Chain {
    /// A chain that begins with what a segment's head says.
    pub(crate) fn new(sum: Summary) -> Self {
        let (position, position_exact) = (sum.base, sum.base_exact);
        let mut chain = Self { sum, position, position_exact, pending: BTreeMap::new() };
        // A new store has nothing: the first part of a shard has no predecessor.
        if chain.position == Version::ZERO {
            chain.sum.base_exact = true;
            chain.position_exact = true;
        }
        chain
    }

    /// Contiguous through here (durable or not: that is the log's matter).
    pub(crate) fn position(&self) -> Version {
        self.position
    }

    /// Settled through here, as far as this node holds it.
    pub(crate) fn applied(&self) -> Version {
        self.sum.watermark.min(self.position).max(self.sum.base)
    }

    /// How far a copy came that is not over: one of which all is applied has nothing more to say.
    pub(crate) fn cursor(&self) -> Option<&Cursor> {
        self.sum.cursor.as_ref().filter(|c| c.good > self.applied())
    }

    /// First and last part that cannot be linked yet.
    pub(crate) fn detached(&self) -> Option<(Version, Version)> {
        let first = self.pending.range((Excluded(self.position), Unbounded)).next()?;
        let last = self.pending.last_key_value()?;
        Some((*first.0, *last.0))
    }

    /// Is this part here already, applied or pending? Then where its entry ends in the log
    /// (0 = long ago).
    pub(crate) fn known(&self, version: Version) -> Option<u64> {
        if let Some(p) = self.pending.get(&version) {
            return Some(p.end);
        }
        (version <= self.sum.base).then_some(0)
    }

    /// Takes a part that stands in the log now; answers whether it is new.
    pub(crate) fn insert(&mut self, head: &PartHead, part: Pending) -> bool {
        if self.known(head.version).is_some() {
            return false;
        }
        for (mark, new) in self.sum.marks.0.iter_mut().zip(head.marks.0) {
            *mark = (*mark).max(new);
        }
        if let Some(cut) = head.cut {
            let epoch = head.version.epoch;
            if let Err(at) = self.sum.openings.binary_search_by_key(&epoch, |o| o.epoch) {
                self.sum.openings.insert(at, OpeningMark { epoch, cut });
                self.trim_openings();
            }
        }
        self.pending.insert(head.version, part);
        self.link();
        true
    }

    /// Drops opening entries below the one that all three voters have passed.
    fn trim_openings(&mut self) {
        let all_in = self.sum.marks.0.iter().map(|m| m.epoch).min().unwrap_or(0);
        let keep = self.sum.openings.partition_point(|o| o.epoch < all_in);
        let excess = self.sum.openings.len().saturating_sub(OPENINGS_MAX);
        self.sum.openings.drain(..keep.max(excess));
    }

    /// Moves the position over what links now.
    fn link(&mut self) {
        while let Some((version, part)) =
            self.pending.range((Excluded(self.position), Unbounded)).next()
        {
            let linked = if self.position_exact {
                part.predecessor == self.position
            } else {
                part.predecessor <= self.position
            };
            if !linked {
                break;
            }
            self.position = *version;
            self.position_exact = true;
        }
    }

    fn relink(&mut self) {
        self.position = self.sum.base;
        self.position_exact = self.sum.base_exact;
        self.link();
    }

    /// Learns that all through `watermark` is committed. The caller has checked that it comes from
    /// the epoch this node is attached to.
    pub(crate) fn learn(&mut self, watermark: Version) {
        self.sum.watermark = self.sum.watermark.max(watermark);
    }

    /// The next part that is settled and contiguous, lowest first.
    pub(crate) fn peek_settled(&self) -> Option<(Version, &Pending)> {
        let (version, part) = self.pending.first_key_value()?;
        (*version <= self.sum.watermark.min(self.position)).then_some((*version, part))
    }

    /// Takes out what [`Chain::peek_settled`] showed, once it is applied.
    pub(crate) fn pop_settled(&mut self) {
        if self.peek_settled().is_some()
            && let Some((version, _)) = self.pending.pop_first()
            && version > self.sum.base
        {
            self.sum.base = version;
            self.sum.base_exact = true;
        }
    }

    /// Attaches to `epoch`: what is pending, of a lower epoch, and not of `chain`, linked without a
    /// gap from what is applied, is void. Answers the places of the void parts.
    ///
    /// Parts of `epoch` itself stay whatever `chain` says: its writer never takes one back, and a
    /// late copy of an earlier attach must not drop what was acked since. For the same reason an
    /// epoch that is attached again drops nothing.
    pub(crate) fn attach(&mut self, epoch: u64, chain: &[Version]) -> Vec<Place> {
        let mut void = Vec::new();
        if self.sum.log_epoch < epoch {
            let (mut end, mut exact) = (self.sum.base, self.sum.base_exact);
            let mut linked = true;
            let pending = std::mem::take(&mut self.pending);
            for (version, part) in pending {
                let fits = if exact { part.predecessor == end } else { part.predecessor <= end };
                let own = version.epoch == epoch;
                if own || (linked && fits && chain.binary_search(&version).is_ok()) {
                    if !own {
                        (end, exact) = (version, true);
                    }
                    self.pending.insert(version, part);
                } else {
                    // A part that is not of the chain may stand beside one that is: go on.
                    linked = linked && chain.binary_search(&version).is_err();
                    void.push(part.place);
                }
            }
            self.sum.log_epoch = epoch;
        }
        self.sum.voids.extend(&void);
        self.relink();
        void
    }

    /// An attach as the log has it.
    pub(crate) fn replay_attach(&mut self, epoch: u64, void: &[Place], high: Version) {
        self.pending.retain(|_, p| !void.contains(&p.place));
        self.sum.voids.extend(void);
        self.sum.log_epoch = self.sum.log_epoch.max(epoch);
        self.sum.high = self.sum.high.max(high);
        self.relink();
    }

    /// Drops everything pending: an attach was lost, so nothing is known to be of the chain.
    pub(crate) fn forget_all(&mut self) {
        self.pending.clear();
        self.relink();
    }

    /// A pending part as a sidecar has it.
    pub(crate) fn insert_bare(&mut self, version: Version, part: Pending) {
        if self.known(version).is_none() {
            self.pending.insert(version, part);
            self.link();
        }
    }

    /// Would [`Chain::join`] reach `reach`?
    pub(crate) fn can_join(&self, at: Version, reach: Version) -> bool {
        let mut trial = self.clone();
        trial.join(at);
        trial.position >= reach
    }

    /// All settled records through `at` are installed: the position becomes `at` and goes on over
    /// the tail.
    pub(crate) fn join(&mut self, at: Version) {
        if at > self.sum.base {
            self.sum.base_exact = self.pending.contains_key(&at);
            self.sum.base = at;
            self.sum.watermark = self.sum.watermark.max(at);
        }
        self.sum.cursor = None;
        self.relink();
    }

    /// Goes on from what the head of a later segment, or a sidecar, says. Answers the pending parts
    /// that are settled by it. Not to be called once a part of the log is known to be lost: then
    /// later heads know positions that this node no longer holds.
    pub(crate) fn adopt(&mut self, sum: Summary) -> Vec<(Version, Pending)> {
        let mut settled = Vec::new();
        for (version, part) in std::mem::take(&mut self.pending) {
            if sum.voids.contains(&part.place) {
                continue;
            }
            if version <= sum.base {
                settled.push((version, part));
            } else {
                self.pending.insert(version, part);
            }
        }
        self.sum = sum;
        self.relink();
        settled
    }

    /// After damage: takes from a later head only what cannot claim more than is there.
    pub(crate) fn adopt_marks(&mut self, sum: &Summary) {
        self.sum.high = self.sum.high.max(sum.high);
        self.sum.log_epoch = self.sum.log_epoch.max(sum.log_epoch);
        self.sum.floor = self.sum.floor.max(sum.floor);
        for (mark, new) in self.sum.marks.0.iter_mut().zip(sum.marks.0) {
            *mark = (*mark).max(new);
        }
        for o in &sum.openings {
            if let Err(at) = self.sum.openings.binary_search_by_key(&o.epoch, |x| x.epoch) {
                self.sum.openings.insert(at, *o);
            }
        }
        self.sum.voids.clone_from(&sum.voids);
        self.pending.retain(|_, p| !sum.voids.contains(&p.place));
        self.relink();
    }

    /// The log lost something that no later part tells of: nothing is known to be contiguous.
    pub(crate) fn lose_position(&mut self) {
        self.sum.base = Version::ZERO;
        self.sum.base_exact = true;
        self.sum.watermark = Version::ZERO;
        self.position = Version::ZERO;
        self.position_exact = true;
        self.relink();
    }

    /// Removes a pending part whose bytes turned out to be damaged.
    pub(crate) fn forget(&mut self, version: Version) {
        self.pending.remove(&version);
        self.relink();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v(epoch: u64, seq: u64) -> Version {
        Version::new(epoch, seq)
    }
    fn add(c: &mut Chain, version: Version, predecessor: Version) -> bool {
        let head = PartHead { version, predecessor, ..PartHead::default() };
        let place = Place { segment: version.epoch as u32, offset: version.seq as u32 };
        let (floor, records) = (Version::ZERO, None);
        c.insert(&head, Pending { predecessor, place, len: 1, end: 1, floor, records })
    }
    fn settle(c: &mut Chain, w: Version) -> Vec<Version> {
        c.learn(w);
        let mut done = Vec::new();
        while let Some((v, _)) = c.peek_settled() {
            done.push(v);
            c.pop_settled();
        }
        done
    }

    #[test]
    fn a_gap_holds_the_position_and_what_fills_it_moves_it_over_the_tail() {
        let mut c = Chain::new(Summary::default());
        assert!(add(&mut c, v(1, 1), Version::ZERO));
        assert!(add(&mut c, v(1, 4), v(1, 3)));
        assert_eq!((c.position(), c.detached()), (v(1, 1), Some((v(1, 4), v(1, 4)))));
        assert_eq!(settle(&mut c, v(1, 9)), [v(1, 1)], "a part behind a gap is never applied");
        assert_eq!(c.applied(), v(1, 1));
        assert!(!add(&mut c, v(1, 4), v(1, 3)), "duplicate");
        assert!(add(&mut c, v(1, 3), v(1, 1)));
        assert_eq!((c.position(), c.detached()), (v(1, 4), None));
        let settled = settle(&mut c, v(1, 3));
        assert_eq!(settled, [v(1, 3), v(1, 4)], "the watermark 1.9 is not forgotten");
        assert_eq!(c.applied(), v(1, 4));
    }

    #[test]
    fn attach_voids_what_is_not_of_the_chain_and_cannot_be_replayed_against_its_own_epoch() {
        let mut c = Chain::new(Summary::default());
        for s in 1..=4 {
            add(&mut c, v(1, s), if s == 1 { Version::ZERO } else { v(1, s - 1) });
        }
        settle(&mut c, v(1, 1));
        assert_eq!(c.attach(2, &[v(1, 2), v(1, 9)]).len(), 2);
        assert_eq!(c.position(), v(1, 2));
        add(&mut c, v(2, 3), v(1, 2));
        assert_eq!(c.position(), v(2, 3));
        assert!(c.attach(2, &[]).is_empty(), "a late copy of the attach drops nothing");
        assert_eq!(c.position(), v(2, 3));
        assert_eq!(settle(&mut c, v(2, 3)), [v(1, 2), v(2, 3)]);
    }

    #[test]
    fn attach_drops_a_detached_tail_even_if_the_chain_names_it() {
        let mut c = Chain::new(Summary::default());
        add(&mut c, v(1, 1), Version::ZERO);
        add(&mut c, v(1, 3), v(1, 2));
        assert_eq!(c.attach(2, &[v(1, 1), v(1, 2), v(1, 3)]).len(), 1);
        assert_eq!((c.position(), c.detached()), (v(1, 1), None));
    }

    #[test]
    fn join_needs_a_tail_that_reaches() {
        let mut c = Chain::new(Summary::default());
        c.attach(2, &[]);
        add(&mut c, v(2, 7), v(2, 6));
        add(&mut c, v(2, 9), v(2, 7));
        assert_eq!(c.position(), Version::ZERO);
        assert!(!c.can_join(v(2, 5), v(2, 9)), "2.6 is missing");
        assert!(!c.can_join(v(2, 8), v(2, 10)));
        assert!(c.can_join(v(2, 8), v(2, 9)), "2.8 lies between two parts of this shard");
        c.join(v(2, 8));
        assert_eq!(c.position(), v(2, 9));
        assert_eq!(settle(&mut c, v(2, 9)), [v(2, 7), v(2, 9)]);
        add(&mut c, v(2, 12), v(2, 9));
        assert_eq!(c.position(), v(2, 12));
    }

    #[test]
    fn the_first_opening_of_an_epoch_counts_and_old_ones_go_when_all_voters_passed_them() {
        let mut c = Chain::new(Summary::default());
        for e in 1..5u64 {
            let head = PartHead {
                version: v(e, e),
                predecessor: if e == 1 { Version::ZERO } else { v(e - 1, e - 1) },
                cut: Some(v(e - 1, e)),
                marks: PerBank([v(3, 1); 3]),
                ..PartHead::default()
            };
            let place = Place { segment: 1, offset: e as u32 };
            let floor = Version::ZERO;
            let predecessor = head.predecessor;
            c.insert(&head, Pending { predecessor, place, len: 1, end: 1, floor, records: None });
        }
        assert_eq!(c.sum.openings.iter().map(|o| o.epoch).collect::<Vec<_>>(), [3, 4]);
    }
}
