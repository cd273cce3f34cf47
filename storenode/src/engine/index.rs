//! Where the newest record of each key lies. In memory; rebuilt from sidecars and the log's tail.
//!
//! Memory per record: 24 bytes of key (22 inline, longer ones on the heap) and 40 of [`Slot`] in a
//! B-tree about three quarters full: some 90 bytes, so 90 MB per million records with short keys.

use super::chain::Place;
use crate::wire::{BUCKETS, BucketHash, Digest, Version, bucket_of, set_hash_term};
use std::borrow::Borrow;
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

const INLINE_MAX: usize = 22;
const TOMBSTONE: u32 = u32::MAX;
/// Bytes of the log that a record takes beside key and value (its row in a table).
const ROW_BYTES: u64 = 40;

/// A key without an allocation when it is short.
#[derive(Clone)]
pub(crate) enum SmallKey {
    Inline(u8, [u8; INLINE_MAX]),
    Heap(Box<[u8]>),
}
impl SmallKey {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Inline(n, b) => &b[..usize::from(*n)],
            Self::Heap(b) => b,
        }
    }
}
impl From<&[u8]> for SmallKey {
    fn from(key: &[u8]) -> Self {
        if key.len() > INLINE_MAX {
            return Self::Heap(key.into());
        }
        let mut b = [0; INLINE_MAX];
        b[..key.len()].copy_from_slice(key);
        Self::Inline(key.len() as u8, b)
    }
}
impl Borrow<[u8]> for SmallKey {
    fn borrow(&self) -> &[u8] {
        self.bytes()
    }
}
impl PartialEq for SmallKey {
    fn eq(&self, other: &Self) -> bool {
        self.bytes() == other.bytes()
    }
}
impl Eq for SmallKey {}
impl PartialOrd for SmallKey {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for SmallKey {
    fn cmp(&self, other: &Self) -> Ordering {
        self.bytes().cmp(other.bytes())
    }
}

/// A record's place and head, 40 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Slot {
    digest: Digest,
    seq: u64,
    epoch: u32,
    segment: u32,
    offset: u32,
    len: u32,
}
impl Slot {
    /// `None` when the epoch is beyond what is kept (no writer gets there).
    pub(crate) fn new(
        version: Version,
        digest: Digest,
        place: Place,
        len: Option<u32>,
    ) -> Option<Self> {
        Some(Self {
            digest,
            seq: version.seq,
            epoch: u32::try_from(version.epoch).ok()?,
            segment: place.segment,
            offset: place.offset,
            len: len.unwrap_or(TOMBSTONE),
        })
    }
    pub(crate) fn version(&self) -> Version {
        Version::new(u64::from(self.epoch), self.seq)
    }
    pub(crate) fn digest(&self) -> Digest {
        self.digest
    }
    /// Of the value (of nothing in particular for a tombstone).
    pub(crate) fn place(&self) -> Place {
        Place { segment: self.segment, offset: self.offset }
    }
    /// `None` = tombstone.
    pub(crate) fn len(&self) -> Option<u32> {
        (self.len != TOMBSTONE).then_some(self.len)
    }
    fn weight(&self, key: &[u8]) -> u64 {
        key.len() as u64 + u64::from(self.len().unwrap_or(0)) + ROW_BYTES
    }
}

/// The table.
#[derive(Default)]
pub(crate) struct Index {
    map: BTreeMap<SmallKey, Slot>,
    buckets: Vec<BucketHash>,
    /// Tombstones by version, so that the floor finds its own.
    graveyard: BTreeSet<(Version, SmallKey)>,
    tombstones: u64,
    live_bytes: u64,
    /// Bytes of the log that are current, per segment.
    per_segment: BTreeMap<u32, u64>,
}

impl Index {
    pub(crate) fn new() -> Self {
        Self { buckets: vec![BucketHash::default(); BUCKETS], ..Self::default() }
    }

    pub(crate) fn get(&self, key: &[u8]) -> Option<Slot> {
        self.map.get(key).copied()
    }

    /// Records with key > `after` (from the start when it is empty), ascending.
    pub(crate) fn after(&self, after: &[u8]) -> impl Iterator<Item = (&[u8], &Slot)> {
        use std::ops::Bound::{Excluded, Unbounded};
        let from = if after.is_empty() { Unbounded } else { Excluded(after) };
        self.map.range::<[u8], _>((from, Unbounded)).map(|(k, s)| (k.bytes(), s))
    }

    /// Records with key >= `start`, ascending.
    pub(crate) fn from(&self, start: &[u8]) -> impl Iterator<Item = (&[u8], &Slot)> {
        use std::ops::Bound::{Included, Unbounded};
        self.map.range::<[u8], _>((Included(start), Unbounded)).map(|(k, s)| (k.bytes(), s))
    }

    /// Keeps the newer of two; of two with the same version the one that stands later in the log
    /// (a repaired copy, or one that compaction moved). Answers whether it was taken.
    pub(crate) fn put_newer(&mut self, key: &[u8], slot: Slot) -> bool {
        if let Some(old) = self.map.get(key)
            && (old.version(), old.place()) > (slot.version(), slot.place())
        {
            return false;
        }
        self.put(key, slot);
        true
    }

    /// Puts it whatever is there.
    pub(crate) fn put(&mut self, key: &[u8], slot: Slot) {
        self.count(key, &slot);
        let old = match self.map.get_mut(key) {
            Some(there) => Some(std::mem::replace(there, slot)),
            None => self.map.insert(SmallKey::from(key), slot),
        };
        if let Some(old) = old {
            self.discount(key, &old);
        }
    }

    /// Moves a record that lies at `from` to `to`, if it is still the current one there.
    pub(crate) fn relocate(&mut self, key: &[u8], from: &Slot, to: Place) -> bool {
        match self.map.get_mut(key) {
            Some(there) if there == from => {
                there.segment = to.segment;
                there.offset = to.offset;
                let w = from.weight(key);
                *self.per_segment.entry(to.segment).or_default() += w;
                if let Some(n) = self.per_segment.get_mut(&from.segment) {
                    *n = n.saturating_sub(w);
                }
                true
            }
            _ => false,
        }
    }

    /// Forgets a key.
    pub(crate) fn remove(&mut self, key: &[u8]) -> Option<Slot> {
        let old = self.map.remove(key)?;
        self.discount(key, &old);
        Some(old)
    }

    fn count(&mut self, key: &[u8], slot: &Slot) {
        let version = slot.version();
        let bucket = &mut self.buckets[usize::from(bucket_of(key))];
        bucket.high = bucket.high.max(version);
        if slot.len().is_some() {
            bucket.sum = bucket.sum.wrapping_add(set_hash_term(key, version, slot.digest));
            bucket.count += 1;
            self.live_bytes += slot.weight(key) - ROW_BYTES;
        } else {
            self.tombstones += 1;
            self.graveyard.insert((version, SmallKey::from(key)));
        }
        *self.per_segment.entry(slot.segment).or_default() += slot.weight(key);
    }

    fn discount(&mut self, key: &[u8], slot: &Slot) {
        let version = slot.version();
        if slot.len().is_some() {
            let bucket = &mut self.buckets[usize::from(bucket_of(key))];
            bucket.sum = bucket.sum.wrapping_sub(set_hash_term(key, version, slot.digest));
            bucket.count -= 1;
            self.live_bytes -= slot.weight(key) - ROW_BYTES;
        } else {
            self.tombstones -= 1;
            self.graveyard.remove(&(version, SmallKey::from(key)));
        }
        if let Some(n) = self.per_segment.get_mut(&slot.segment) {
            *n = n.saturating_sub(slot.weight(key));
        }
    }

    /// Drops at most `limit` tombstones at or below the floor; answers how many.
    pub(crate) fn bury(&mut self, floor: Version, limit: usize) -> usize {
        let mut done = 0;
        while done < limit && self.graveyard.first().is_some_and(|(v, _)| *v <= floor) {
            let Some((_, key)) = self.graveyard.pop_first() else { break };
            self.remove(key.bytes());
            done += 1;
        }
        done
    }

    pub(crate) fn buckets(&self) -> &[BucketHash] {
        &self.buckets
    }
    pub(crate) fn records(&self) -> u64 {
        self.map.len() as u64 - self.tombstones
    }
    pub(crate) fn tombstones(&self) -> u64 {
        self.tombstones
    }
    pub(crate) fn live_bytes(&self) -> u64 {
        self.live_bytes
    }
    /// Bytes of a segment that are current.
    pub(crate) fn live_in(&self, segment: u32) -> u64 {
        self.per_segment.get(&segment).copied().unwrap_or(0)
    }
    pub(crate) fn forget_segment(&mut self, segment: u32) {
        self.per_segment.remove(&segment);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::digest;

    fn slot(key: &[u8], seq: u64, value: Option<&[u8]>, segment: u32) -> Slot {
        let version = Version::new(1, seq);
        let place = Place { segment, offset: seq as u32 };
        let len = value.map(|v| v.len() as u32);
        Slot::new(version, digest(key, version, value), place, len).unwrap()
    }

    #[test]
    fn sums_do_not_depend_on_the_way() {
        let (mut a, mut b) = (Index::new(), Index::new());
        for i in 0..100u64 {
            let key = [b'k', i as u8, 7];
            a.put_newer(&key, slot(&key, i, Some(b"x"), 1));
            a.put_newer(&key, slot(&key, i + 100, (i % 3 > 0).then_some(b"yy"), 2));
            assert!(!a.put_newer(&key, slot(&key, i, Some(b"x"), 3)), "older");
        }
        for i in (0..100u64).rev().filter(|i| i % 3 > 0) {
            let key = [b'k', i as u8, 7];
            b.put_newer(&key, slot(&key, i + 100, Some(b"yy"), 9));
        }
        let sums = |x: &Index| x.buckets().iter().map(|b| (b.sum, b.count)).collect::<Vec<_>>();
        assert_eq!(sums(&a), sums(&b));
        assert_eq!((a.records(), a.tombstones(), b.records()), (66, 34, 66));
        assert_eq!((a.live_bytes(), a.live_in(1)), (66 * 5, 0));
        assert_eq!(a.bury(Version::new(1, 120), 1000), 7);
        assert_eq!(a.bury(Version::new(9, 0), 1000), 27);
        assert_eq!(a.tombstones(), 0);
    }

    #[test]
    fn a_later_copy_of_the_same_version_wins_and_only_the_current_one_moves() {
        let mut x = Index::new();
        let first = slot(b"k", 5, Some(b"v"), 3);
        x.put_newer(b"k", first);
        assert!(!x.put_newer(b"k", slot(b"k", 5, Some(b"v"), 2)));
        assert!(x.relocate(b"k", &first, Place { segment: 7, offset: 1 }));
        assert!(!x.relocate(b"k", &first, Place { segment: 8, offset: 1 }));
        assert_eq!((x.live_in(3), x.live_in(7)), (0, 42));
        assert_eq!(std::mem::size_of::<Slot>(), 40);
        assert_eq!(std::mem::size_of::<SmallKey>(), 24);
    }
}
