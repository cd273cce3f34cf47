//! Dead ranges: blocks of a file whose records, if any, do not count.
//!
//! Truncating, punching or removing a large file must not delete a million records in one group. It
//! marks the range dead instead, in the group that changes the inode; readers see a hole at once,
//! and the records are deleted later, in paced groups that shrink the mark as they go. A write into
//! a dead range takes its blocks out of it *in the same group*. So in every prefix of the groups
//! the mark says exactly which records count, without comparing versions, and a reclaim that
//! resumes after a crash needs no other state. (Rule 13 of the protocol asks for a mark compared
//! by version; this says the same by state, and it needs neither the versions of blocks nor
//! `Retract`.)

use bincode::{Decode, Encode};

/// What is known of the records under a dead range.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
pub enum Under {
    /// Most blocks have one, none is counted in `Inode::blocks`: delete without looking.
    Dense,
    /// Few blocks have one, none is counted: look for them (a scan), then delete.
    Sparse,
    /// Some have one, and those are still counted: look, delete and subtract.
    Counted,
}

/// A range of dead blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Range {
    /// First block.
    pub start: u64,
    /// End, exclusive.
    pub end: u64,
    /// What is under it.
    pub under: Under,
}

/// The dead ranges of an inode: ascending, disjoint, none empty, neighbours of one sort merged.
#[derive(Clone, PartialEq, Eq, Debug, Default, Encode, Decode)]
pub struct DeadSet {
    ranges: Vec<Range>,
}

impl DeadSet {
    /// The ranges.
    #[must_use]
    pub fn ranges(&self) -> &[Range] {
        &self.ranges
    }

    /// No range.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// How a block is dead, if it is.
    #[must_use]
    pub fn get(&self, block: u64) -> Option<Under> {
        let i = self.ranges.partition_point(|r| r.end <= block);
        self.ranges.get(i).filter(|r| r.start <= block).map(|r| r.under)
    }

    /// End of the dead range that holds `block`, or `block`.
    #[must_use]
    pub fn skip(&self, mut block: u64) -> u64 {
        let mut i = self.ranges.partition_point(|r| r.end <= block);
        while let Some(r) = self.ranges.get(i).filter(|r| r.start <= block) {
            block = r.end;
            i += 1;
        }
        block
    }

    /// Some records under a range are still in the inode's count.
    #[must_use]
    pub fn has_counted(&self) -> bool {
        self.ranges.iter().any(|r| r.under == Under::Counted)
    }

    /// Marks `start..end`. `under` says it of the blocks that are not dead yet. If it is not
    /// [`Under::Counted`], the caller has taken every record in the range out of the count, so that
    /// counted parts become [`Under::Sparse`]; else dead parts stay as they are.
    pub fn add(&mut self, start: u64, end: u64, under: Under) {
        if start >= end {
            return;
        }
        let inside = self.cut(start, end);
        let mut pos = start;
        for r in inside {
            self.ranges.push(Range { start: pos, end: r.start, under });
            let under = match (r.under, under) {
                (Under::Counted, Under::Dense | Under::Sparse) => Under::Sparse,
                (old, _) => old,
            };
            self.ranges.push(Range { under, ..r });
            pos = r.end;
        }
        self.ranges.push(Range { start: pos, end, under });
        self.normalize();
    }

    /// All records under the ranges were taken out of the count.
    pub fn uncount(&mut self) {
        for r in &mut self.ranges {
            if r.under == Under::Counted {
                r.under = Under::Sparse;
            }
        }
        self.normalize();
    }

    /// Takes `start..end` out: its records count from now on, or there are none.
    pub fn remove(&mut self, start: u64, end: u64) {
        if start < end {
            self.cut(start, end);
            self.normalize();
        }
    }

    /// Removes and returns what lies in `start..end`, cutting ranges at its borders.
    fn cut(&mut self, start: u64, end: u64) -> Vec<Range> {
        let mut inside = Vec::new();
        let mut outside = Vec::with_capacity(self.ranges.len() + 2);
        for r in self.ranges.drain(..) {
            outside.push(Range { end: r.end.min(start), ..r });
            outside.push(Range { start: r.start.max(end), ..r });
            let r = Range { start: r.start.max(start), end: r.end.min(end), ..r };
            if r.start < r.end {
                inside.push(r);
            }
        }
        outside.retain(|r| r.start < r.end);
        self.ranges = outside;
        inside
    }

    fn normalize(&mut self) {
        self.ranges.retain(|r| r.start < r.end);
        self.ranges.sort_unstable_by_key(|r| r.start);
        self.ranges.dedup_by(|next, kept| {
            let merge = kept.end == next.start && kept.under == next.under;
            if merge {
                kept.end = next.end;
            }
            merge
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const N: usize = 24;

    fn model(set: &DeadSet) -> Vec<Option<Under>> {
        (0..N as u64).map(|b| set.get(b)).collect()
    }

    proptest! {
        #[test]
        fn a_set_is_what_an_array_is(
            steps in proptest::collection::vec((0u64..24, 0u64..24, 0u8..4), 0..40)
        ) {
            let mut set = DeadSet::default();
            let mut want = [None; N];
            for (a, b, what) in steps {
                let under = [Under::Dense, Under::Sparse, Under::Counted].get(what as usize);
                match under {
                    Some(&u) => set.add(a, b, u),
                    None => set.remove(a, b),
                }
                for w in want.iter_mut().take(b as usize).skip(a as usize) {
                    *w = match (*w, under) {
                        (_, None) => None,
                        (None, Some(&u)) => Some(u),
                        (Some(Under::Counted), Some(Under::Dense | Under::Sparse)) => {
                            Some(Under::Sparse)
                        }
                        (old, _) => old,
                    };
                }
                prop_assert_eq!(model(&set), want.to_vec());
                let r = set.ranges();
                prop_assert!(r.iter().all(|r| r.start < r.end));
                prop_assert!(r.windows(2).all(|w| w[0].end < w[1].start
                    || (w[0].end == w[1].start && w[0].under != w[1].under)));
                for b in 0..24 {
                    let next = (b..).find(|&x| set.get(x).is_none()).unwrap();
                    prop_assert_eq!(set.skip(b), next);
                }
            }
        }
    }
}
