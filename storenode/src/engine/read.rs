//! What only reads: records, hashes, tails, verification. The index is held for bounded steps.

use super::chain::Place;
use super::index::{Index, Slot};
use super::{Core, Engine, SegmentFile, bad};
use crate::background;
use crate::wire::{
    BUCKETS, BULK_LEN_MAX, BucketHash, Found, Key, NodeError, RecordHead, Version, bucket_of,
};
use bytes::Bytes;
use parking_lot::RwLockReadGuard;
use std::ops::Bound::{Excluded, Unbounded};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// A scan, and a verification, stops after about so many bytes of keys and values.
const SCAN_BYTES_MAX: usize = 4 << 20;
/// Records looked at under one hold of the index.
const VISITS_MAX: usize = 64 << 10;
/// The same for what nobody waits for: such a thread may have to wait for a processor while it holds it, and all
/// who write here wait for it then.
const VISITS_BEHIND: usize = 2 << 10;
/// The heads of one reply take about so many bytes at most, well below the limit of a frame's head.
const HEADS_BYTES_MAX: usize = 3 << 20;
/// A tail stops after about so many bytes of parts.
const TAIL_BYTES_MAX: usize = 16 << 20;

/// Records, their values where asked for, damaged keys, where to go on, and what was applied.
#[derive(Default)]
pub(crate) struct Records {
    pub(crate) applied: Version,
    pub(crate) heads: Vec<RecordHead>,
    pub(crate) values: Vec<Bytes>,
    pub(crate) damaged: Vec<Key>,
    pub(crate) next: Option<Key>,
}

/// Pending parts, whether there are more, and the highest lost one.
pub(crate) struct TailParts {
    pub(crate) parts: Vec<Bytes>,
    pub(crate) more: bool,
    pub(crate) lost: Option<Version>,
}

fn visits() -> usize {
    if background::is_here() { VISITS_BEHIND } else { VISITS_MAX }
}

fn head(key: &[u8], slot: &Slot) -> RecordHead {
    RecordHead {
        key: key.to_vec(),
        version: slot.version(),
        digest: slot.digest(),
        len: slot.len(),
    }
}

/// A value: index of its key, where it lies, its length.
type Lying = (usize, Place, u32);

/// Values to be read, and the files that they are in.
struct Values {
    places: Vec<Lying>,
    /// Ascending.
    files: Vec<(u32, Arc<SegmentFile>)>,
}

impl Values {
    fn bytes(&self) -> usize {
        length(&self.places)
    }

    /// What was written in one piece (a file's blocks in order) is read in one piece.
    fn runs(&self) -> impl Iterator<Item = &[Lying]> {
        self.places.chunk_by(|a, b| {
            b.1.segment == a.1.segment && Some(b.1.offset) == a.1.offset.checked_add(a.2)
        })
    }

    fn file(&self, place: Place) -> Option<&SegmentFile> {
        let i = self.files.binary_search_by_key(&place.segment, |(n, _)| *n).ok()?;
        Some(&self.files[i].1)
    }
}

fn length(run: &[Lying]) -> usize {
    run.iter().map(|(_, _, len)| *len as usize).sum()
}

impl Engine {
    /// The index together with what is applied in it.
    fn view(&self) -> (Version, RwLockReadGuard<'_, Index>) {
        // The core is held until the index is: nothing is applied in between.
        let core: parking_lot::MutexGuard<'_, Core> = self.core.lock();
        let applied = core.chain.applied();
        (applied, self.index.read())
    }

    /// What is applied, in memory.
    pub(crate) fn applied(&self) -> Version {
        self.core.lock().chain.applied()
    }

    /// Applies through `through`, which a sender of the attached epoch says is settled.
    pub(crate) fn reach(&self, through: Version) -> Result<(), NodeError> {
        {
            let core = self.core.lock();
            if core.chain.applied() >= through {
                return Ok(());
            }
            if core.chain.position() < through {
                return Err(NodeError::NotThere { position: core.durable_position });
            }
        }
        self.learn(through)
    }

    /// Heads, and values too when asked; a value that cannot be read is [`Found::Damaged`]. Whether
    /// a value is whole is for the reader to say, who must check its digest anyway.
    pub(crate) fn read(
        &self,
        keys: &[Key],
        values: bool,
    ) -> Result<(Version, Vec<Found>, Vec<Bytes>), NodeError> {
        let (applied, index) = self.view();
        let (mut items, found) = self.look_up(index, keys);
        if !values {
            return Ok((applied, items, Vec::new()));
        }
        if found.bytes() > BULK_LEN_MAX {
            let total = found.bytes();
            return Err(bad(format!("{total} bytes of values: ask for fewer keys at once")));
        }
        self.count_reads(&found);
        let read = |place: Place, len: u32| -> Result<Bytes, String> {
            let file = found.file(place).ok_or_else(|| "its segment is gone".to_owned())?;
            super::read_exact(&*file.file, place.offset, len)
        };
        let mut bulk = Vec::new();
        for run in found.runs() {
            if let Some(bytes) = self.read_run(&found, run) {
                bulk.push(bytes);
                continue;
            }
            // One bad sector must not take its neighbours along.
            for &(i, place, len) in run {
                match read(place, len) {
                    Ok(value) => bulk.push(value),
                    Err(what) => {
                        self.note_damaged(&keys[i], place, &what);
                        items[i] = Found::Damaged { what };
                    }
                }
            }
        }
        Ok((applied, items, bulk))
    }

    /// A run in one piece; `None` when it cannot be read whole.
    fn read_run(&self, of: &Values, run: &[Lying]) -> Option<Bytes> {
        let (file, offset) = (of.file(run[0].1)?, u64::from(run[0].1.offset));
        self.buffers.fill(length(run), |into| {
            file.file.read_at(into, offset).is_ok_and(|n| n == into.len())
        })
    }

    /// What the index says about keys, and the values.
    fn look_up(&self, index: RwLockReadGuard<'_, Index>, keys: &[Key]) -> (Vec<Found>, Values) {
        let (mut items, mut places) = (Vec::with_capacity(keys.len()), Vec::new());
        for (i, key) in keys.iter().enumerate() {
            let Some(s) = index.get(key) else {
                items.push(Found::Absent);
                continue;
            };
            let len = s.len();
            items.push(Found::Record { version: s.version(), digest: s.digest(), len });
            places.extend(len.map(|len| (i, s.place(), len)));
        }
        // The files are taken while the index is held: compaction moves records in the index
        // before it removes a file.
        let values = self.with_files(places);
        drop(index);
        (items, values)
    }

    fn with_files(&self, places: Vec<Lying>) -> Values {
        let mut numbers: Vec<u32> = places.iter().map(|(_, place, _)| place.segment).collect();
        numbers.sort_unstable();
        numbers.dedup();
        let all = self.files.read();
        let file = |n: u32| Some((n, Arc::clone(all.get(&n)?)));
        let files = numbers.into_iter().filter_map(file).collect();
        drop(all);
        Values { places, files }
    }

    fn count_reads(&self, found: &Values) {
        self.counters.records_read.fetch_add(found.places.len() as u64, Ordering::Relaxed);
        self.counters.bytes_read.fetch_add(found.bytes() as u64, Ordering::Relaxed);
    }

    /// Heads of the records that `pick` wants, from `records` on, which are in order of their keys;
    /// and where to go on when `limit` records, or `values_max` bytes of values, or too many bytes of
    /// heads were reached.
    fn collect<'a>(
        records: impl Iterator<Item = (&'a [u8], &'a Slot)>,
        limit: usize,
        values_max: usize,
        mut pick: impl FnMut(&[u8], &Slot) -> bool,
    ) -> (Vec<(RecordHead, Slot)>, Option<Key>) {
        let (mut out, mut heads, mut values) = (Vec::new(), 0, 0);
        let mut last: &[u8] = &[];
        let most = visits();
        for (visited, (key, slot)) in records.enumerate() {
            let full = out.len() >= limit || heads >= HEADS_BYTES_MAX || values >= values_max;
            if full || visited >= most {
                return (out, Some(last.to_vec()));
            }
            last = key;
            if pick(key, slot) {
                heads += key.len() + 48;
                values += slot.len().unwrap_or(0) as usize;
                out.push((head(key, slot), *slot));
            }
        }
        (out, None)
    }

    /// Reads the values of what was collected; those not whole become empty and are listed.
    fn fill(&self, applied: Version, found: Vec<(RecordHead, Slot)>, next: Option<Key>) -> Records {
        let mut out = Records { applied, next, ..Records::default() };
        let mut early = self.read_runs(&found);
        for (i, (head, slot)) in found.into_iter().enumerate() {
            match self.whole_value(&head.key, slot, early[i].take()) {
                Ok((slot, value)) => {
                    out.heads.push(RecordHead {
                        version: slot.version(),
                        digest: slot.digest(),
                        len: slot.len(),
                        ..head
                    });
                    out.values.extend(value);
                }
                Err(what) => {
                    self.note_damaged(&head.key, slot.place(), &what);
                    out.damaged.push(head.key.clone());
                    out.heads.push(head);
                }
            }
        }
        out
    }

    /// The values of what was looked up, where they can be read in as few pieces as they were written in.
    /// Whether they are what they should be is for [`Engine::whole_value`].
    fn read_runs(&self, found: &[(RecordHead, Slot)]) -> Vec<Option<Bytes>> {
        self.read_lying(found.iter().map(|(_, s)| (s.place(), s.len())))
    }

    /// The same for places and lengths of values; without a length there is none.
    pub(super) fn read_lying(
        &self,
        all: impl ExactSizeIterator<Item = (Place, Option<u32>)>,
    ) -> Vec<Option<Bytes>> {
        let mut out = vec![None; all.len()];
        let lying = |(i, (place, len)): (usize, (Place, Option<u32>))| Some((i, place, len?));
        let all = self.with_files(all.enumerate().filter_map(lying).collect());
        for run in all.runs() {
            let Some(mut bytes) = self.read_run(&all, run) else { continue };
            for (i, _, len) in run {
                out[*i] = Some(bytes.split_to(*len as usize));
            }
        }
        out
    }

    /// A value that verifies: what was read early, or else what is read now.
    fn whole_value(
        &self,
        key: &[u8],
        slot: Slot,
        early: Option<Bytes>,
    ) -> Result<(Slot, Option<Bytes>), String> {
        match early.map(|value| self.check_value(key, &slot, value)) {
            Some(Ok(value)) => Ok((slot, Some(value))),
            _ => self.read_value_anew(key, slot),
        }
    }

    /// Reads a value outside the index lock. Compaction may have moved it since it was looked up:
    /// then it is looked up again before anything is called damaged.
    fn read_value_anew(&self, key: &[u8], slot: Slot) -> Result<(Slot, Option<Bytes>), String> {
        let what = match self.read_value(key, &slot) {
            Ok(value) => return Ok((slot, value)),
            Err(what) => what,
        };
        let again = self.index.read().get(key);
        match again {
            Some(s) if s.version() == slot.version() && s.place() != slot.place() => {
                self.read_value(key, &s).map(|v| (s, v))
            }
            _ => Err(what),
        }
    }

    /// Live records of a range (see `Request::Scan`).
    pub(crate) fn scan(&self, start: &[u8], end: &[u8], limit: usize, values: bool) -> Records {
        let (applied, index) = self.view();
        let range = index.from(start).take_while(|(k, _)| end.is_empty() || *k < end);
        let bytes_max = if values { SCAN_BYTES_MAX } else { usize::MAX };
        let limit = limit.clamp(1, VISITS_MAX);
        let (found, next) = Self::collect(range, limit, bytes_max, |_, s| s.len().is_some());
        drop(index);
        self.shown(applied, found, next, values)
    }

    /// All applied records of one bucket, tombstones too.
    pub(crate) fn bucket(&self, bucket: u16, after: &[u8], limit: usize) -> Records {
        let mut after = after.to_vec();
        let mut out = Records::default();
        let limit = limit.clamp(1, VISITS_MAX);
        // A bucket is a thousandth of the records: go on over stretches without one.
        loop {
            let (applied, index) = self.view();
            let left = limit - out.heads.len();
            let (found, next) = Self::collect(index.after(&after), left, usize::MAX, |k, _| {
                usize::from(bucket_of(k)) == usize::from(bucket) % BUCKETS
            });
            // What was applied at the first step is what the whole answer is good for.
            if out.applied == Version::ZERO {
                out.applied = applied;
            }
            out.heads.extend(found.into_iter().map(|(h, _)| h));
            let heads: usize = out.heads.iter().map(|h| h.key.len() + 48).sum();
            match next {
                Some(n) if out.heads.len() < limit && heads < HEADS_BYTES_MAX => after = n,
                next => {
                    out.next = next;
                    return out;
                }
            }
        }
    }

    /// Records newer than `since` (see `Request::Delta`).
    pub(crate) fn delta(
        &self,
        since: Version,
        after: &[u8],
        limit_bytes: usize,
        values: bool,
    ) -> Records {
        let bytes_max = limit_bytes.clamp(1, TAIL_BYTES_MAX);
        let (mut visited, mut from) = (0, after.to_vec());
        // What was applied at the first step is what the whole answer is good for.
        let mut good = None;
        // On over stretches in which there is nothing, each under a hold of its own.
        loop {
            let (applied, index) = self.view();
            let good = *good.get_or_insert(applied);
            let (found, next) = Self::collect(index.after(&from), VISITS_MAX, bytes_max, |_, s| {
                s.version() > since && s.version() <= applied
            });
            drop(index);
            visited += visits();
            match next {
                Some(next) if found.is_empty() && visited < VISITS_MAX => from = next,
                next => return self.shown(good, found, next, values),
            }
        }
    }

    /// Heads, with their values where they are asked for.
    fn shown(
        &self,
        applied: Version,
        found: Vec<(RecordHead, Slot)>,
        next: Option<Key>,
        values: bool,
    ) -> Records {
        if values {
            return self.fill(applied, found, next);
        }
        let heads = found.into_iter().map(|(h, _)| h).collect();
        Records { applied, heads, next, ..Records::default() }
    }

    /// How many records, and bytes of values, [`Engine::delta`] would bring in all.
    pub(crate) fn missed(&self, since: Version, after: &[u8]) -> (u64, u64) {
        let (mut count, mut bytes, mut after) = (0, 0, after.to_vec());
        loop {
            let (applied, index) = self.view();
            let mut last = None;
            for (key, slot) in index.after(&after).take(visits()) {
                if slot.version() > since && slot.version() <= applied {
                    count += 1;
                    bytes += u64::from(slot.len().unwrap_or(0));
                }
                last = Some(key);
            }
            let Some(last) = last.map(<[u8]>::to_vec) else { return (count, bytes) };
            after = last;
        }
    }

    /// Heads with key >= `start`.
    pub(crate) fn heads(&self, start: &[u8], limit: usize) -> Vec<RecordHead> {
        self.index.read().from(start).take(limit).map(|(k, s)| head(k, s)).collect()
    }

    /// One record with its value.
    pub(crate) fn get(&self, key: &[u8]) -> Option<(RecordHead, Result<Option<Bytes>, String>)> {
        let slot = self.index.read().get(key)?;
        let value = self.read_value_anew(key, slot).map(|(_, v)| v);
        Some((head(key, &slot), value))
    }

    pub(crate) fn hashes(&self) -> (Version, Vec<BucketHash>) {
        let (applied, index) = self.view();
        (applied, index.buckets().to_vec())
    }

    /// Pending parts with version > `from`, ascending.
    pub(crate) fn tail_parts(&self, from: Version) -> TailParts {
        let (places, lost) = {
            let core = self.core.lock();
            let range = core.chain.pending.range((Excluded(from), Unbounded));
            let (mut places, mut bytes) = (Vec::new(), 0);
            let mut more = false;
            for (version, p) in range {
                if bytes > 0 && bytes + p.len as usize > TAIL_BYTES_MAX {
                    more = true;
                    break;
                }
                bytes += p.len as usize;
                places.push((*version, p.place, p.len));
            }
            ((places, more), core.lost)
        };
        let (mut parts, mut lost, (places, mut more)) = (Vec::new(), lost, places);
        for (version, place, len) in places {
            let part = self
                .read_place(place, len)
                .and_then(|b| crate::part::decode(b).map_err(|e| e.to_string()));
            match part {
                Ok(p) => parts.push(p.bytes),
                // Applied and compacted meanwhile: it is settled, nobody needs it as a part.
                Err(_) if self.applied() >= version => {}
                Err(what) => {
                    // Rotted since it was written: not the same as absent.
                    tracing::warn!(%version, what, "damaged pending part");
                    self.lose(version);
                    lost = lost.max(Some(version));
                    more = false;
                    break;
                }
            }
        }
        TailParts { parts, more, lost }
    }

    /// A pending part is damaged: the position ends before it.
    fn lose(&self, version: Version) {
        let mut core = self.core.lock();
        core.chain.forget(version);
        core.lost = core.lost.max(Some(version));
        let position = core.chain.position();
        core.durable_position = core.durable_position.min(position);
        for step in &mut core.steps {
            step.position = step.position.min(position);
        }
    }

    /// Re-reads records (see `Request::Verify`): bad ones, records, bytes, where to go on.
    pub(crate) fn verify(
        &self,
        after: &[u8],
        budget_bytes: usize,
    ) -> (Vec<(Key, String)>, u64, u64, Option<Key>) {
        let budget = budget_bytes.clamp(1, SCAN_BYTES_MAX);
        let index = self.index.read();
        let (found, next) = Self::collect(index.after(after), 4096, budget, |_, _| true);
        drop(index);
        let (mut wrong, mut records, mut bytes) = (Vec::new(), 0, 0);
        let mut early = self.read_runs(&found);
        for (i, (head, slot)) in found.into_iter().enumerate() {
            records += 1;
            bytes += u64::from(slot.len().unwrap_or(0));
            match self.whole_value(&head.key, slot, early[i].take()) {
                Ok(_) => self.damaged.whole(&head.key),
                Err(what) => {
                    // Replaced since it was looked up: the old bytes concern nobody.
                    let still = self.index.read().get(&head.key);
                    if let Some(now) = still.filter(|s| s.version() == slot.version()) {
                        self.note_damaged(&head.key, now.place(), &what);
                        wrong.push((head.key, what));
                    }
                }
            }
        }
        (wrong, records, bytes, next)
    }
}
