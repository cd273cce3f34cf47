//! What changes the log: parts, attach, join, installs, removals, marks.

use super::chain::{Pending, Place};
use super::entry::{
    AttachMark, CursorMark, Grave, JoinMark, Kind, Row, encode_rows, encode_small, part_table_len,
};
use super::index::Slot;
use super::log::{NewEntry, Tail, WriteError, Written};
use super::{Core, Engine, SegmentFile, Step, bad, failed};
use crate::part::Part;
use crate::wire::{Cursor, InstallKind, Key, NodeError, Position, RecordHead, Version, digest};
use bytes::Bytes;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Records of pending parts kept in memory; those of further parts are read again from the log.
const PENDING_RECORDS_MAX: usize = 256 << 10;
/// Pending parts beyond which none keeps its records.
const PENDING_PARTS_MAX: usize = 1024;
/// A part with fewer bytes of values than this is metadata and may use half of the reserve.
const BULK_BYTES_MIN: usize = 64 << 10;
/// Records and tombstones written again in one entry.
const PUTS_STEP: usize = 4;
const TOMBSTONES_STEP: usize = 4096;
/// Steps of [`Log::clear_step`](super::log::Log::clear_step) at once.
const CLEAR_STEPS_MAX: usize = 16;
/// Graves kept at most: they are rare (foreign records, repairs that go back).
const GRAVES_MAX: usize = 100_000;

impl Engine {
    /// Writes entries and takes note of the segment they went to. The caller updates the chain and
    /// then calls [`Engine::note`].
    pub(super) fn put(
        &self,
        tail: &mut Tail,
        entries: &[NewEntry<'_>],
    ) -> Result<Vec<Written>, WriteError> {
        let before = tail.segment();
        let watermark = self.core.lock().chain.sum.watermark;
        let snapshot = || {
            let mut core = self.core.lock();
            core.head_base = core.chain.sum.base;
            core.snapshot()
        };
        let result = self.log.write(tail, entries, watermark, &snapshot);
        self.follow(tail, before);
        let mut core = self.core.lock();
        core.headed = core.headed.max(watermark);
        drop(core);
        result
    }

    /// Takes note of a new segment.
    pub(super) fn follow(&self, tail: &Tail, before: u32) {
        self.tail_used.store(tail.used(), Ordering::Relaxed);
        self.tail_unused.store(tail.unused(), Ordering::Relaxed);
        let Some((number, file)) = self.log.active_file(tail) else { return };
        if self.files.read().contains_key(&number) {
            return;
        }
        let head_base = {
            let mut core = self.core.lock();
            core.segment = number;
            core.head_base
        };
        let mut files = self.files.write();
        if let Some((sealed, len)) = tail.previous
            && let Some(f) = files.get(&sealed)
        {
            f.len.store(len, Ordering::Relaxed);
            f.bases.lock().0 = head_base;
        }
        let file = SegmentFile::new(file, 0);
        file.head_len.store(tail.head_len(), Ordering::Relaxed);
        files.insert(number, Arc::new(file));
        drop(files);
        tracing::debug!(number, before, "new segment");
    }

    /// Begins a new segment, so that its head says what is applied now.
    pub(super) fn begin_segment(&self, tail: &mut Tail) -> Result<(), WriteError> {
        let before = tail.segment();
        let snapshot = || {
            let mut core = self.core.lock();
            core.head_base = core.chain.sum.base;
            core.snapshot()
        };
        let result = self.log.roll(tail, 0, &snapshot);
        self.follow(tail, before);
        result
    }

    /// What was written through `end` gives this position; it may be told once that is durable. A read
    /// or a beat may have taught a higher watermark while it was written: that is in no entry yet, and
    /// what is told would be more than a restart knows.
    pub(super) fn note(&self, core: &mut Core, end: u64) {
        let position = core.chain.position();
        let applied = core.headed.min(position);
        core.steps.push_back(Step { end, position, applied });
    }

    /// Refuses what does not fit, before anything is changed.
    fn check_room(&self, bytes: u64, values: usize, puts: bool) -> Result<(), NodeError> {
        let (capacity, free, _) = self.room();
        let reserve = self.reserve(capacity);
        let keep = match (values >= BULK_BYTES_MIN, puts) {
            (true, _) => reserve,
            (false, true) => reserve / 2,
            (false, false) => 0,
        };
        if free < bytes + keep {
            return Err(NodeError::Full { free_bytes: free.saturating_sub(reserve) });
        }
        Ok(())
    }

    /// Learns a watermark of the attached epoch, applies what it settles.
    pub(crate) fn learn(&self, watermark: Version) -> Result<(), NodeError> {
        let mut core = self.core.lock();
        core.chain.learn(watermark);
        if self.apply(&mut core) { Ok(()) } else { Err(self.failure()) }
    }

    fn failure(&self) -> NodeError {
        failed(self.failed().unwrap_or_else(|| "the log failed".into()))
    }

    /// Stores parts; answers what must be durable before the reply. The caller holds the writer
    /// lock, and has checked the epoch under it.
    pub(crate) fn append(
        &self,
        tail: &mut Tail,
        parts: &[Part],
        watermark: Version,
    ) -> Result<u64, NodeError> {
        self.learn(watermark)?;
        let mut wait = 0;
        let (mut seen, mut new) = (BTreeSet::new(), Vec::new());
        {
            let core = self.core.lock();
            for p in parts {
                match core.chain.known(p.head.version) {
                    Some(end) => wait = wait.max(end),
                    None if seen.insert(p.head.version) => new.push(p),
                    None => {}
                }
            }
        }
        if new.is_empty() {
            return Ok(wait);
        }
        let mut entries = Vec::with_capacity(new.len());
        let (mut bytes, mut values, mut puts) = (0, 0, false);
        for p in &new {
            let checked = part_table_len(&p.bytes).map_err(|e| bad(e.to_string()))?;
            let tail = p.bytes.last_chunk::<4>().map(|b| u32::from_le_bytes(*b));
            values += p.bytes.len() - checked;
            puts |= p.records.iter().any(|r| r.value.is_some());
            let pieces = vec![&p.bytes[..]];
            entries.push(NewEntry { kind: Kind::Part, pieces, checked, full_crc: tail });
            bytes += entries.last().map_or(0, NewEntry::takes_at_most);
        }
        self.check_room(bytes, values, puts)?;
        let written = self.put(tail, &entries).map_err(|e| self.refusal(e))?;
        let mut core = self.core.lock();
        for (p, w) in new.iter().zip(&written) {
            self.insert_part(&mut core, p, *w);
            wait = wait.max(w.end);
        }
        self.counters.parts.fetch_add(new.len() as u64, Ordering::Relaxed);
        if !self.apply(&mut core) {
            return Err(self.failure());
        }
        self.note(&mut core, wait);
        Ok(wait)
    }

    pub(super) fn insert_part(&self, core: &mut Core, p: &Part, w: Written) {
        let kept = core.chain.pending.len() < PENDING_PARTS_MAX
            && core.pending_records() + p.records.len() <= PENDING_RECORDS_MAX;
        let pending = Pending {
            predecessor: p.head.predecessor,
            place: w.place,
            len: p.bytes.len() as u32,
            end: w.end,
            floor: p.head.floor,
            records: kept.then(|| Arc::new(p.records.clone())),
        };
        core.chain.insert(&p.head, pending);
    }

    /// Waits for what [`Engine::append`] and its kin answered, then tells the position.
    pub(crate) fn wait(&self, end: u64) -> Result<Position, NodeError> {
        self.sync_through(end)?;
        Ok(self.position())
    }

    /// Attaches to an epoch (rule 5h, 7): what is not of the chain is void. `cut` is where the epochs
    /// before it end.
    pub(crate) fn attach(
        &self,
        tail: &mut Tail,
        epoch: u64,
        chain: &[Version],
        cut: Version,
    ) -> Result<u64, NodeError> {
        let mark = {
            let core = self.core.lock();
            let void = core.chain.clone().attach(epoch, chain);
            // Nothing beyond the chain of before is of interest any more. What is of it and was lost
            // stays lost until this node holds it again, also over a restart.
            let end = chain.last().copied().unwrap_or_default().max(cut);
            let lost = match core.lost {
                Some(lost) if core.chain.sum.log_epoch < epoch => Some(lost.min(end)),
                lost => lost,
            };
            AttachMark { epoch, void, high: core.chain.sum.high, lost }
        };
        let payload = encode_small(&mark);
        let entry = NewEntry::small(Kind::Attach, &payload);
        let end = self.put(tail, &[entry]).map_err(|e| self.refusal(e))?[0].end;
        let mut core = self.core.lock();
        // Without the writer lock pending parts can only be applied, and those are not void: this
        // finds the same ones as above.
        core.lost = mark.lost;
        core.chain.attach(epoch, chain);
        if !self.apply(&mut core) {
            return Err(self.failure());
        }
        self.note(&mut core, end);
        Ok(end)
    }

    /// Ends a catch-up (rule 7).
    pub(crate) fn join(
        &self,
        tail: &mut Tail,
        at: Version,
        reach: Version,
    ) -> Result<u64, NodeError> {
        {
            let core = self.core.lock();
            if at <= core.chain.position() && core.chain.position() >= reach {
                // Answered again.
                return Ok(self.log.written());
            }
            if !core.chain.can_join(at, reach) {
                return Err(NodeError::NotThere { position: core.durable_position });
            }
        }
        let payload = encode_small(&JoinMark { at, reach });
        let entry = NewEntry::small(Kind::Join, &payload);
        let end = self.put(tail, &[entry]).map_err(|e| self.refusal(e))?[0].end;
        let mut core = self.core.lock();
        core.chain.join(at);
        core.chain.learn(reach);
        // The entry says so.
        core.headed = core.headed.max(reach).max(at);
        if !self.apply(&mut core) {
            return Err(self.failure());
        }
        self.note(&mut core, end);
        Ok(end)
    }

    /// Remembers how far a copy came.
    pub(crate) fn cursor(&self, tail: &mut Tail, cursor: Cursor) -> Result<u64, NodeError> {
        if cursor.good <= self.core.lock().chain.applied() {
            // A late copy: that catch-up has been joined since.
            return Ok(0);
        }
        let payload = encode_small(&CursorMark(cursor.clone()));
        let entry = NewEntry::small(Kind::Cursor, &payload);
        let end = self.put(tail, &[entry]).map_err(|e| self.refusal(e))?[0].end;
        let mut core = self.core.lock();
        core.chain.sum.cursor = Some(cursor);
        self.note(&mut core, end);
        Ok(end)
    }

    /// Takes settled records from elsewhere (rules 7, 8, 11). `values` holds their values in order.
    pub(crate) fn install(
        &self,
        tail: &mut Tail,
        records: &[RecordHead],
        values: &Bytes,
        as_of: Version,
        kind: InstallKind,
    ) -> Result<(u32, u64), NodeError> {
        let (floor, applied) = {
            let core = self.core.lock();
            (core.chain.sum.floor, core.chain.applied())
        };
        if as_of < floor {
            return Err(NodeError::BelowFloor { as_of, floor });
        }
        let (mut rows, mut pieces, mut lowered) = (Vec::new(), Vec::new(), Vec::new());
        for (r, value) in records.iter().zip(split(records, values)?) {
            let own = self.index.read().get(&r.key);
            let take = match own {
                None => true,
                Some(own) if own.version() < r.version => true,
                Some(_) if kind == InstallKind::CatchUp => false,
                Some(own) if own.version() > r.version && own.version() > applied => true,
                // Written after the repair was decided: even damaged it says more than the repair.
                Some(own) if own.version() > as_of => false,
                Some(own) => self.read_value(&r.key, &own).is_err(),
            };
            if !take {
                continue;
            }
            if own.is_some_and(|o| o.version() > r.version) {
                lowered.push(r.key.clone());
            }
            rows.push(Row {
                key: r.key.clone(),
                version: r.version,
                digest: r.digest,
                len: r.len,
                at: 0,
            });
            pieces.push(value);
        }
        if rows.is_empty() {
            return Ok((0, 0));
        }
        let end = self.put_rows(tail, rows, &pieces, lowered)?;
        Ok((pieces.len() as u32, end))
    }

    /// Logs records as they are and puts them into the index, whatever is there.
    pub(super) fn put_rows(
        &self,
        tail: &mut Tail,
        mut rows: Vec<Row>,
        values: &[Bytes],
        lowered: Vec<Key>,
    ) -> Result<u64, NodeError> {
        let table = encode_rows(&mut rows);
        let graves = encode_small(&lowered);
        let mut entries = Vec::with_capacity(2);
        if !lowered.is_empty() {
            entries.push(NewEntry::small(Kind::Grave, &graves));
        }
        let pieces = std::iter::once(&table[..]).chain(values.iter().map(|v| &v[..])).collect();
        entries.push(NewEntry {
            kind: Kind::Records,
            pieces,
            checked: table.len(),
            full_crc: None,
        });
        let (_, free, _) = self.room();
        let bytes: u64 = entries.iter().map(NewEntry::takes_at_most).sum();
        if free < bytes {
            return Err(NodeError::Full { free_bytes: 0 });
        }
        let written = self.put(tail, &entries).map_err(|e| self.refusal(e))?;
        let mut core = self.core.lock();
        let mut index = self.index.write();
        if let [grave, _] = written[..] {
            for key in lowered {
                index.remove(&key);
                core.graves.push(Grave { key, before: grave.place });
            }
        }
        let at = written[written.len() - 1];
        for r in &rows {
            let place = Place { segment: at.place.segment, offset: at.place.offset + r.at };
            if let Some(slot) = Slot::new(r.version, r.digest, place, r.len) {
                index.put_newer(&r.key, slot);
            }
        }
        drop(index);
        self.note(&mut core, at.end);
        Ok(at.end)
    }

    /// Replaces the value under a key, leaving version and digest, or makes a foreign record (an
    /// injected fault).
    pub(crate) fn put_fault(
        &self,
        tail: &mut Tail,
        key: Key,
        value: Vec<u8>,
        version: Option<Version>,
    ) -> Result<u64, NodeError> {
        let own = self.index.read().get(&key).filter(|s| s.len().is_some());
        let version = own.map_or(version.unwrap_or(Version::new(1, 1)), |s| s.version());
        let digest = own.map_or_else(|| digest(&key, version, Some(&value)), |s| s.digest());
        let rows = vec![Row { key, version, digest, len: Some(value.len() as u32), at: 0 }];
        self.put_rows(tail, rows, &[Bytes::from(value)], Vec::new())
    }

    /// Forgets a foreign record (rule 11), or, without `seen`, whatever is there (an injected fault).
    pub(crate) fn remove(
        &self,
        tail: &mut Tail,
        key: &Key,
        seen: Option<Version>,
        as_of: Version,
    ) -> Result<(u32, u64), NodeError> {
        let applied = {
            let core = self.core.lock();
            let floor = core.chain.sum.floor;
            if seen.is_some() && as_of < floor {
                return Err(NodeError::BelowFloor { as_of, floor });
            }
            if core.graves.len() >= GRAVES_MAX {
                return Err(bad("too many removals before the next compaction"));
            }
            core.chain.applied()
        };
        let own = self.index.read().get(key);
        if own.is_none_or(|o| seen.is_some_and(|s| o.version() != s)) {
            return Ok((0, 0));
        }
        // What was rightly written after the decision is not what was decided about.
        if seen.is_some_and(|s| s > as_of && s <= applied) {
            return Ok((0, 0));
        }
        let payload = encode_small(&vec![key.clone()]);
        let entry = NewEntry::small(Kind::Grave, &payload);
        let written = self.put(tail, &[entry]).map_err(|e| self.refusal(e))?[0];
        let mut core = self.core.lock();
        self.index.write().remove(key);
        core.graves.push(Grave { key: key.clone(), before: written.place });
        self.note(&mut core, written.end);
        Ok((1, written.end))
    }

    /// Writes again what [`Core`] remembers for it.
    pub(super) fn say_again(&self, tail: &mut Tail) -> Result<(), NodeError> {
        let again = std::mem::take(&mut self.core.lock().again);
        let (puts, tombstones): (Vec<_>, Vec<_>) =
            again.into_iter().partition(|(_, slot)| slot.len().is_some());
        let steps = puts.chunks(PUTS_STEP).chain(tombstones.chunks(TOMBSTONES_STEP));
        let mut result = Ok(());
        for step in steps {
            if result.is_ok() {
                result = self.say_again_step(tail, step);
            }
            if result.is_err() {
                self.core.lock().again.extend(step.iter().cloned());
            }
        }
        result
    }

    fn say_again_step(&self, tail: &mut Tail, chunk: &[(Key, Slot)]) -> Result<(), NodeError> {
        let (mut rows, mut values, mut slots) = (Vec::new(), Vec::new(), Vec::new());
        for (key, slot) in chunk {
            // A value that cannot be read stays where it is, damaged.
            let Ok(value) = slot.len().map(|n| self.read_place(slot.place(), n)).transpose() else {
                continue;
            };
            values.push(value.unwrap_or_default());
            slots.push(*slot);
            rows.push(Row {
                key: key.clone(),
                version: slot.version(),
                digest: slot.digest(),
                len: slot.len(),
                at: 0,
            });
        }
        let table = encode_rows(&mut rows);
        let pieces = std::iter::once(&table[..]).chain(values.iter().map(|v| &v[..])).collect();
        let entry = NewEntry { kind: Kind::Records, pieces, checked: table.len(), full_crc: None };
        let written = self.put(tail, &[entry]).map_err(|e| self.refusal(e))?[0];
        let mut core = self.core.lock();
        let mut index = self.index.write();
        for (r, slot) in rows.iter().zip(slots) {
            let at = Place { offset: written.place.offset + r.at, ..written.place };
            index.relocate(&r.key, &slot, at);
        }
        drop(index);
        self.note(&mut core, written.end);
        Ok(())
    }

    /// Writes the synced-mark of an idle log (rule 1), and makes the watermark durable.
    pub(crate) fn mark(&self) -> Result<(), NodeError> {
        let again = !self.core.lock().again.is_empty();
        if again {
            self.say_again(&mut self.writer())?;
        }
        let watermark = self.core.lock().chain.sum.watermark;
        if !self.log.wants_mark(&self.writer(), watermark) {
            return Ok(());
        }
        self.sync()?;
        let end = {
            let mut tail = self.writer();
            let entry = NewEntry::small(Kind::Mark, &[]);
            let end = self.put(&mut tail, &[entry]).map_err(|e| self.refusal(e))?[0].end;
            self.note(&mut self.core.lock(), end);
            end
        };
        self.sync_through(end)
    }
}

impl Engine {
    /// For a log that is synced often: clears what it will write next, at most `ahead` bytes.
    pub(crate) fn clear(&self, ahead: u64) {
        for _ in 0..CLEAR_STEPS_MAX {
            let cleared = self.log.clear_step(&mut self.writer(), ahead);
            if !cleared {
                return;
            }
            self.log.sync_cleared();
        }
    }
}

impl Core {
    fn pending_records(&self) -> usize {
        self.chain.pending.values().filter_map(|p| p.records.as_ref()).map(|r| r.len()).sum()
    }
}

/// Splits the bulk of an install into values and checks every digest.
fn split(records: &[RecordHead], values: &Bytes) -> Result<Vec<Bytes>, NodeError> {
    let mut at = 0usize;
    let mut out = Vec::with_capacity(records.len());
    for r in records {
        let len = r.len.unwrap_or(0) as usize;
        if at + len > values.len() {
            return Err(bad("the values are cut short"));
        }
        let value = values.slice(at..at + len);
        at += len;
        if digest(&r.key, r.version, r.len.map(|_| &value[..])) != r.digest {
            return Err(bad(format!("{} does not match its digest", super::hex(&r.key))));
        }
        out.push(value);
    }
    if at != values.len() {
        return Err(bad("more values than records"));
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::MemoryDisk;
    use crate::engine::Settings;
    use crate::engine::segment::Owner;
    use crate::part;
    use crate::wire::{BankId, StoreId, VolumeId};

    /// Else a voter of which less was durable than it had said would look struck out after a power cut,
    /// and the log could be trimmed by a watermark that a restart does not know (trap 16).
    #[test]
    fn nothing_is_told_as_applied_that_the_log_does_not_say() {
        let v = |seq| Version::new(1, seq);
        let disk = Arc::new(MemoryDisk::new());
        let open = || {
            let (store, volume) = (StoreId([1; 16]), VolumeId([2; 16]));
            let owner = Owner { store, volume, bank: BankId::A, shard: 0 };
            let settings = Settings { segment_bytes: 1 << 20, capacity_bytes: None };
            Engine::open(disk.clone(), owner, settings, false).unwrap()
        };
        let part = |seq, predecessor| {
            let (version, shards) = (v(seq), vec![0]);
            let head = part::PartHead { version, predecessor, shards, ..Default::default() };
            part::decode(part::encode(&head, &[(b"k".to_vec(), None)])).unwrap()
        };
        let engine = open();
        let mut tail = engine.writer();
        engine.attach(&mut tail, 1, &[], Version::ZERO).unwrap();
        let parts = [part(1, Version::ZERO), part(2, v(1))];
        let end = engine.append(&mut tail, &parts, Version::ZERO).unwrap();
        drop(tail);
        assert_eq!(engine.wait(end).unwrap().position, v(2));
        engine.learn(v(1)).unwrap();
        // As every writer does it, with a beat in between.
        let mut tail = engine.writer();
        let entry = NewEntry::small(Kind::Mark, &[]);
        let end = engine.put(&mut tail, &[entry]).unwrap()[0].end;
        engine.learn(v(2)).unwrap();
        engine.note(&mut engine.core.lock(), end);
        drop(tail);
        let told = engine.wait(end).unwrap().applied;
        drop(engine);
        assert_eq!((told, open().position().applied), (v(1), v(1)));
    }
}
