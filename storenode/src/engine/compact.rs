//! Background work: sidecars of sealed segments, burying tombstones, compaction.
//!
//! A segment goes when little of it is current: what is current is written again at the end of the
//! log, made durable, and the file is removed. Only segments with a sidecar are compacted, so all
//! of their parts are at or below the durable watermark, and none is pending (rule 9).

use super::chain::Place;
use super::entry::{Kind, Row, Snapshot, decode_rows, encode_rows};
use super::index::Slot;
use super::log::NewEntry;
use super::segment::{
    Item, Scanned, Table, TableScan, scan, segment_name, sidecar_name, tables_of,
};
use super::sidecar::{SidePart, SideRow, Sidecar};
use super::{Engine, SegmentFile, failed};
use crate::disk::{Disk, read_file};
use crate::part::{self, PartHead};
use crate::wire::{NodeError, Version};
use bytes::Bytes;
use parking_lot::MutexGuard;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// A segment is compacted when at most so many percent of it are current.
const LIVE_PERCENT: u64 = 50;
/// So many small segments (each start leaves one) are put together.
const SMALL_SEGMENTS: usize = 8;
/// Tombstones buried under one hold of the index.
const BURY_STEP: usize = 4096;
/// Bytes moved in one step, under one hold of the writer lock: appends wait so long, and the next sync
/// takes them to the disk.
const MOVE_STEP: usize = 512 << 10;
/// Of a sealed segment so large a part is read in one step to make its sidecar: 256 KiB of 64 MiB.
const READ_PART: u64 = 256;
/// Bytes of a removed segment given back in one step.
const FREE_STEP: u64 = 1 << 20;
/// Choices that pass over a segment that could not be read; about a second each when idle.
const REST: u32 = 100;
/// Choices that pass over a segment while its end would also end the one that is written to.
const WAIT: u32 = 10;
/// Longest segment that is read whole, bytes.
pub(super) const SEGMENT_MAX: u64 = 2 << 30;

/// What background work has begun. A crash leaves what was moved twice, which is the same record.
#[derive(Default)]
pub(crate) struct Compacting {
    /// To make a sidecar.
    reading: Option<TableScan>,
    moving: Option<Moving>,
    /// It has no name any more; its space is given back step by step.
    removed: Option<Arc<SegmentFile>>,
}

/// A segment that is being compacted.
struct Moving {
    number: u32,
    /// Nothing older than it is left.
    oldest: bool,
    /// Not looked at yet.
    rows: std::vec::IntoIter<SideRow>,
    /// Values the disk did not give.
    stuck: usize,
}

impl Engine {
    /// One bounded step of background work; true when there is more to do at once.
    pub(crate) fn maintain(&self) -> Result<bool, NodeError> {
        let mut compacting = self.compacting.lock();
        // The files of a store that was wiped may be the next one's by now.
        if self.failed().is_some() || self.writer().closed {
            return Ok(false);
        }
        if self.free_step(&mut compacting.removed) {
            return Ok(true);
        }
        let mut more = self.bury();
        // Once for a sidecar, and not for each step of its reading: a mark is two flushes.
        let begun = compacting.reading.as_ref().map(|r| r.number);
        if begun.is_none() || begun != self.next_without_sidecar() {
            self.mark()?;
        }
        if let Some(number) = self.next_without_sidecar() {
            self.sidecar_step(number, &mut compacting.reading)?;
            return Ok(true);
        }
        // After an error it is chosen again, and begins again with what is still there.
        let begun = match compacting.moving.take() {
            Some(begun) => Some(begun),
            None => self.candidate().map(|number| self.begin_compaction(number)).transpose()?,
        };
        if let Some(begun) = begun {
            compacting.moving = self.compaction_step(begun, &mut compacting.removed)?;
            more = true;
        }
        Ok(more)
    }

    /// Waits for the end of a step of background work; none begins while this is held.
    pub(crate) fn hold_background(&self) -> MutexGuard<'_, Compacting> {
        self.compacting.lock()
    }

    /// Gives back a little of the space of a removed segment; answers whether there was any. All at once
    /// would keep the disk, and whoever waits for it, busy for tens of milliseconds.
    fn free_step(&self, removed: &mut Option<Arc<SegmentFile>>) -> bool {
        // Who still reads in it reads all of it.
        let Some(segment) = removed.as_mut().and_then(Arc::get_mut) else { return false };
        let left = segment.len.get_mut();
        *left = left.saturating_sub(FREE_STEP);
        let unread = Arc::strong_count(&segment.file) == 1;
        // Where this fails the kernel does it, all at once.
        if !unread || *left == 0 || segment.file.truncate(*left).is_err() {
            *removed = None;
        }
        true
    }

    /// Background work should not wait for anybody: there is little room, or the log is much longer
    /// than what is current in it.
    pub(crate) fn hurry(&self) -> bool {
        let (capacity, free, log) = self.room();
        let roomy = free > 4 * self.reserve(capacity);
        let long = 2 * self.index.read().live_bytes() + 8 * self.settings.segment_bytes;
        !roomy || log > long
    }

    /// Drops tombstones at or below the floor from the index. Their entries stay in the log until
    /// nothing older can lie before them.
    fn bury(&self) -> bool {
        let floor = {
            let core = self.core.lock();
            if core.filling {
                return false;
            }
            core.chain.sum.floor.min(core.durable_applied)
        };
        self.index.write().bury(floor, BURY_STEP) >= BURY_STEP
    }

    /// The first sealed segment without a sidecar, if all of its parts, and all parts before it, are
    /// applied or void.
    fn next_without_sidecar(&self) -> Option<u32> {
        let (number, _) = self.files.read().iter().find_map(|(n, f)| {
            let ready = f.len.load(Ordering::Relaxed) > 0 && !f.sidecar.load(Ordering::Relaxed);
            // One that cannot be read must not keep the others from theirs.
            let rests = f.resting.load(Ordering::Relaxed) > 0;
            (ready && !rests).then_some((*n, ()))
        })?;
        let core = self.core.lock();
        let pending = core.chain.pending.values().any(|p| p.place.segment <= number);
        let settled = core.durable_applied >= core.chain.sum.base && core.lost.is_none();
        (!pending && settled && core.again.is_empty()).then_some(number)
    }

    /// Reads on in a sealed segment, and writes its sidecar when all of it was read.
    fn sidecar_step(&self, number: u32, reading: &mut Option<TableScan>) -> Result<(), NodeError> {
        let Some(file) = self.files.read().get(&number).cloned() else { return Ok(()) };
        let mut scan = match reading.take() {
            Some(begun) if begun.number == number => begun,
            _ => self.table_scan(number, &file),
        };
        let io = |e: std::io::Error| failed(format!("{}: {e}", segment_name(number)));
        let step = (self.settings.segment_bytes / READ_PART).max(1);
        let done = match scan.step(&*file.file, step).map_err(io) {
            Ok(Scanned::Partly) => {
                *reading = Some(scan);
                Ok(())
            }
            Ok(Scanned::Whole) => self.write_sidecar(number, &file, None, Some(scan)),
            Ok(Scanned::NotWhole) => self.write_sidecar(number, &file, None, None),
            Err(e) => Err(e),
        };
        if done.is_err() {
            file.resting.store(REST, Ordering::Relaxed);
        }
        done
    }

    fn table_scan(&self, number: u32, file: &SegmentFile) -> TableScan {
        TableScan::new(self.owner.store, number, file.len.load(Ordering::Relaxed))
    }

    /// Writes the sidecar of a sealed segment, at once.
    pub(super) fn make_sidecar(&self, number: u32, end: Option<Snapshot>) -> Result<(), NodeError> {
        let Some(file) = self.files.read().get(&number).cloned() else { return Ok(()) };
        let mut scan = self.table_scan(number, &file);
        let io = |e: std::io::Error| failed(format!("{}: {e}", segment_name(number)));
        let whole = scan.step(&*file.file, u64::MAX).map_err(io)? == Scanned::Whole;
        self.write_sidecar(number, &file, end, whole.then_some(scan))
    }

    /// `read`: the whole segment; `None` when there is damage in it.
    fn write_sidecar(
        &self,
        number: u32,
        file: &SegmentFile,
        end: Option<Snapshot>,
        read: Option<TableScan>,
    ) -> Result<(), NodeError> {
        let began = Instant::now();
        let io = |e: std::io::Error| failed(format!("{}: {e}", segment_name(number)));
        let len = file.len.load(Ordering::Relaxed);
        let (tables, ordinal, gaps) = match read {
            Some(read) => {
                let (tables, ordinal) = read.finish();
                (tables, ordinal, false)
            }
            None => {
                let all = read_file(&*self.disk, &segment_name(number), SEGMENT_MAX).map_err(io)?;
                let bytes = Bytes::from(all);
                let s = scan(&bytes, self.owner.store, number, Some(len), false, 0);
                let gaps = s.items.iter().any(|i| matches!(i, Item::Gap { .. }));
                (tables_of(&bytes, &s), s.ordinal, gaps)
            }
        };
        let base = self.core.lock().chain.sum.base;
        let ended_at = {
            let mut bases = file.bases.lock();
            bases.1 = base;
            bases.0
        };
        let (mut rows, parts) = self.rows_and_parts(&tables, number, ended_at);
        if gaps {
            // The index knows what was current in the damaged stretch.
            file.damaged.store(true, Ordering::Relaxed);
            rows.extend(self.indexed_in(number));
            rows.sort_by(|a, b| (&a.key, a.version, a.offset).cmp(&(&b.key, b.version, b.offset)));
            rows.dedup();
        }
        let sidecar = Sidecar {
            store: self.owner.store,
            segment: number,
            segment_len: len,
            parts,
            end,
            ordinal,
            rows,
        };
        file.held.store(sidecar.held(), Ordering::Relaxed);
        // A sidecar is a convenience: without space there is none.
        match sidecar.save(&*self.disk) {
            Ok(()) => {}
            Err(e) => {
                tracing::warn!(number, error = %e, "cannot write a sidecar");
                // An earlier one lists what may not be current any more.
                self.disk.remove(&sidecar_name(number)).map_err(io)?;
            }
        }
        file.sidecar.store(true, Ordering::Relaxed);
        tracing::debug!(number, took = ?began.elapsed(), "sidecar written");
        Ok(())
    }

    /// Current records of a segment, its tombstones that nothing newer hides, and its parts above
    /// `ended_at`: those that were pending at its end.
    fn rows_and_parts(
        &self,
        tables: &[Table],
        number: u32,
        ended_at: Version,
    ) -> (Vec<SideRow>, Vec<SidePart>) {
        let voids = self.core.lock().chain.sum.voids.clone();
        let graves = self.core.lock().graves.clone();
        let (mut rows, mut parts) = (Vec::new(), Vec::new());
        for Table { offset, header, bytes } in tables {
            let base = (*offset as usize + super::entry::HEADER_LEN) as u32;
            let place = Place { segment: number, offset: base };
            let index = self.index.read();
            let mut row = |key: Vec<u8>, version: Version, digest, at: u32, len: Option<u32>| {
                let place = Place { segment: number, offset: base + at };
                let keep = match (index.get(&key), len) {
                    (Some(slot), _) if slot.version() == version && slot.place() == place => true,
                    // A tombstone must outlive whatever older copy may lie before it.
                    (Some(slot), None) => slot.version() < version,
                    (None, None) => true,
                    _ => false,
                };
                let dead = || graves.iter().any(|g| g.before > place && g.key == key);
                if keep && !dead() {
                    rows.push(SideRow { key, version, digest, offset: base + at, len });
                }
            };
            match header.kind {
                Kind::Part if !voids.contains(&place) => {
                    let Ok((head, records)) = part::decode_table(bytes) else { continue };
                    let PartHead { version, predecessor, floor, .. } = head;
                    for r in records {
                        let (at, len) = r.value.map_or((0, None), |(at, n)| (at, Some(n)));
                        row(r.key, version, r.digest, at, len);
                    }
                    if version > ended_at {
                        parts.push(SidePart {
                            version,
                            predecessor,
                            place,
                            len: header.len,
                            floor,
                        });
                    }
                }
                Kind::Records => {
                    for r in decode_rows(bytes, header.len).unwrap_or_default() {
                        row(r.key, r.version, r.digest, r.at, r.len);
                    }
                }
                _ => {}
            }
        }
        (rows, parts)
    }

    /// Records that the index places in a segment.
    fn indexed_in(&self, number: u32) -> Vec<SideRow> {
        let index = self.index.read();
        let here = index.from(&[]).filter(|(_, s)| s.place().segment == number);
        here.map(|(key, s)| SideRow {
            key: key.to_vec(),
            version: s.version(),
            digest: s.digest(),
            offset: s.place().offset,
            len: s.len(),
        })
        .collect()
    }

    /// The next segment to compact: the one with the smallest current share, or small ones.
    ///
    /// A segment can go only when a later head says what was applied from it, which for the one sealed
    /// last none does yet. Writing that head for its sake would seal the next one early, which would be
    /// next: under small syncs of few blocks every second one, for ever. So it waits for the log to go on
    /// by itself, for a while, unless there is little room.
    fn candidate(&self) -> Option<u32> {
        let n = |a: &std::sync::atomic::AtomicU64| a.load(Ordering::Relaxed);
        let mut sealed = Vec::new();
        let head_base = self.core.lock().head_base;
        let (capacity, free, _) = self.room();
        let roomy = free > 2 * self.reserve(capacity);
        {
            let files = self.files.read();
            // The last one's head is the state's only home.
            let last = files.last_key_value().map(|(n, _)| *n);
            for (i, (number, f)) in files.iter().enumerate() {
                let rests = |n: u32| n.checked_sub(1);
                if f.resting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, rests).is_ok() {
                    continue;
                }
                let early = f.bases.lock().1 > head_base && f.waited.load(Ordering::Relaxed) < WAIT;
                let damaged = f.damaged.load(Ordering::Relaxed);
                if early && roomy && !damaged && f.sidecar.load(Ordering::Relaxed) {
                    f.waited.fetch_add(1, Ordering::Relaxed);
                    continue;
                }
                if Some(*number) != last && f.sidecar.load(Ordering::Relaxed) {
                    // Nothing older: its tombstones hide nothing.
                    let held = if i == 0 { 0 } else { n(&f.held) };
                    let payload = n(&f.len).saturating_sub(n(&f.head_len));
                    sealed.push((*number, payload, held, damaged));
                }
            }
        }
        if let Some((number, ..)) = sealed.iter().find(|(.., damaged)| *damaged) {
            return Some(*number);
        }
        let index = self.index.read();
        let mut best: Option<(u64, u32)> = None;
        let mut small = Vec::new();
        for (number, payload, held, _) in sealed {
            let current = index.live_in(number) + held;
            let gain = payload.saturating_sub(current);
            let share = current * 100 / payload.max(1);
            let worth = share <= LIVE_PERCENT && gain >= self.settings.segment_bytes / 8;
            if (worth || current == 0) && best.is_none_or(|b| (share, number) < b) {
                best = Some((share, number));
            }
            if payload < self.settings.segment_bytes / 4 {
                small.push(number);
            }
        }
        let merge = (small.len() >= SMALL_SEGMENTS).then(|| small[0]);
        best.map(|(_, number)| number).or(merge)
    }

    fn begin_compaction(&self, number: u32) -> Result<Moving, NodeError> {
        let rows = match Sidecar::load(&*self.disk, self.owner.store, number) {
            Ok(Some(s)) => s.rows,
            // It rotted, or there was no space for it: make it again.
            Ok(None) | Err(_) => {
                self.make_sidecar(number, None)?;
                match Sidecar::load(&*self.disk, self.owner.store, number) {
                    Ok(Some(s)) => s.rows,
                    _ => self.rows_of_segment(number)?,
                }
            }
        };
        // None older can come to be later.
        let oldest = self.files.read().first_key_value().map(|(n, _)| *n) == Some(number);
        Ok(Moving { number, oldest, rows: rows.into_iter(), stuck: 0 })
    }

    /// Moves up to [`MOVE_STEP`] bytes of what is current out of a segment, and removes it when nothing
    /// is left; `None` = it is done. Appends go on in between: whether a row is current is asked anew.
    fn compaction_step(
        &self,
        mut c: Moving,
        removed: &mut Option<Arc<SegmentFile>>,
    ) -> Result<Option<Moving>, NodeError> {
        let began = Instant::now();
        let (mut step, mut bytes) = (Vec::new(), 0);
        for row in c.rows.by_ref() {
            if self.wanted(c.number, &row, c.oldest) {
                bytes += row.key.len() + 48 + row.len.unwrap_or(0) as usize;
                step.push(row);
            }
            if bytes >= MOVE_STEP {
                break;
            }
        }
        c.stuck += self.move_rows(c.number, step, c.oldest)?;
        tracing::debug!(number = c.number, bytes, took = ?began.elapsed(), "moved out of a segment");
        if c.rows.len() > 0 {
            return Ok(Some(c));
        }
        *removed = self.end_compaction(c.number, c.oldest, c.stuck)?;
        Ok(None)
    }

    /// Removes a segment out of which all was moved but `stuck` values. What is answered still takes
    /// space, until it is dropped.
    fn end_compaction(
        &self,
        number: u32,
        oldest: bool,
        stuck: usize,
    ) -> Result<Option<Arc<SegmentFile>>, NodeError> {
        let began = Instant::now();
        if stuck > 0 {
            // The disk may give them the next time. If it never does, repair writes them elsewhere, and
            // then nothing in this segment is current.
            if let Some(f) = self.files.read().get(&number) {
                f.resting.store(REST, Ordering::Relaxed);
            }
            let name = segment_name(number);
            return Err(failed(format!("{name} is kept: {stuck} values in it cannot be read now")));
        }
        // A later head must say all that goes with this segment: the parts in it are applied.
        let by_when = self.files.read().get(&number).map(|f| f.bases.lock().1);
        let (disowned, head_base) = {
            let core = self.core.lock();
            (core.disowned, core.head_base)
        };
        if disowned || by_when.is_some_and(|b| b > head_base) {
            self.begin_segment(&mut self.writer()).map_err(|e| self.refusal(e))?;
            self.core.lock().disowned = false;
        }
        self.sync()?;
        let io = |e: std::io::Error| failed(format!("removing {}: {e}", segment_name(number)));
        let left = self.index.read().live_in(number);
        if left > 0 && !self.indexed_in(number).is_empty() {
            // Rows that the sidecar did not list: never remove what is current.
            let rows = self.indexed_in(number);
            let stuck = self.move_rows(number, rows, oldest)?;
            self.sync()?;
            if stuck > 0 {
                return Err(failed(format!("{stuck} values cannot be read now")));
            }
        }
        let removed = self.files.write().remove(&number);
        self.index.write().forget_segment(number);
        self.disk.remove(&segment_name(number)).map_err(io)?;
        self.disk.remove(&sidecar_name(number)).map_err(io)?;
        self.disk.sync_dir().map_err(io)?;
        self.counters.segments_compacted.fetch_add(1, Ordering::Relaxed);
        let first = self.files.read().first_key_value().map(|(n, _)| *n);
        let mut core = self.core.lock();
        if let Some(first) = first {
            core.graves.retain(|g| g.before.segment >= first);
        }
        core.chain.sum.voids.retain(|p| p.segment != number);
        core.damage.retain(|p| p.segment != number);
        tracing::debug!(number, took = ?began.elapsed(), "segment removed");
        Ok(removed)
    }

    /// Flips one bit of a stored value, on disk (an injected fault).
    pub(crate) fn corrupt(&self, key: &[u8]) -> Result<(), NodeError> {
        let slot = self.index.read().get(key);
        let (Some(slot), Some(1..)) = (slot, slot.and_then(|s| s.len())) else {
            return Err(super::bad("no value of at least one byte under this key"));
        };
        let place = slot.place();
        let byte = self.read_place(place, 1).map_err(failed)?;
        let file = self.files.read().get(&place.segment).map(|f| Arc::clone(&f.file));
        let file = file.ok_or_else(|| failed("its segment is gone"))?;
        let flipped = [byte[0] ^ 1];
        file.write_at(&[&flipped], u64::from(place.offset))
            .and_then(|()| file.sync_data())
            .map_err(|e| failed(e.to_string()))
    }

    fn rows_of_segment(&self, number: u32) -> Result<Vec<SideRow>, NodeError> {
        let name = segment_name(number);
        let io = |e: std::io::Error| failed(format!("{name}: {e}"));
        let bytes = Bytes::from(read_file(&*self.disk, &name, SEGMENT_MAX).map_err(io)?);
        let s = scan(&bytes, self.owner.store, number, None, false, 0);
        let (mut rows, _) = self.rows_and_parts(&tables_of(&bytes, &s), number, Version::ZERO);
        rows.extend(self.indexed_in(number));
        Ok(rows)
    }

    /// Is this row of a segment current, or a tombstone that may hide something older?
    fn wanted(&self, number: u32, r: &SideRow, oldest: bool) -> bool {
        let current = self.index.read().get(&r.key);
        match (current, r.len) {
            (Some(c), _) if Some(c) == slot_of(number, r) => true,
            (None, None) => !oldest,
            (Some(c), None) => c.version() < r.version && !oldest,
            _ => false,
        }
    }

    /// Writes those of `rows` again that are still current, as they are: a damaged value stays
    /// damaged, it never becomes absent. Answers how many the disk did not give: those stay where they
    /// are, since an I/O error may pass and what was there would be gone for good.
    fn move_rows(&self, number: u32, rows: Vec<SideRow>, oldest: bool) -> Result<usize, NodeError> {
        let (mut moving, mut stuck) = (Vec::new(), 0);
        let place = |r: &SideRow| Place { segment: number, offset: r.offset };
        let mut early = self.read_lying(rows.iter().map(|r| (place(r), r.len)));
        for (i, r) in rows.into_iter().enumerate() {
            let value = match (r.len, early[i].take()) {
                (None, _) => Ok(Bytes::new()),
                (Some(_), Some(value)) => Ok(value),
                (Some(n), None) => self.read_place(place(&r), n),
            };
            match value {
                Ok(value) => moving.push((r, value)),
                Err(what) => {
                    self.note_damaged(&r.key, place(&r), &what);
                    stuck += 1;
                }
            }
        }
        let mut tail = self.writer();
        // Again under the writer lock: only what is current now may be written behind what was
        // removed or replaced since.
        moving.retain(|(r, _)| self.wanted(number, r, oldest));
        if moving.is_empty() {
            return Ok(stuck);
        }
        let mut out: Vec<Row> = moving
            .iter()
            .map(|(r, _)| Row {
                key: r.key.clone(),
                version: r.version,
                digest: r.digest,
                len: r.len,
                at: 0,
            })
            .collect();
        let table = encode_rows(&mut out);
        let pieces = std::iter::once(&table[..]).chain(moving.iter().map(|(_, v)| &v[..]));
        let entry = NewEntry {
            kind: Kind::Records,
            pieces: pieces.collect(),
            checked: table.len(),
            full_crc: None,
        };
        let bytes = super::entry::entry_len(entry.len());
        let written = self.put(&mut tail, &[entry]).map_err(|e| self.refusal(e))?[0];
        self.counters.compaction_bytes.fetch_add(bytes, Ordering::Relaxed);
        let mut core = self.core.lock();
        let mut index = self.index.write();
        for ((r, _), o) in moving.iter().zip(&out) {
            let to = Place { offset: written.place.offset + o.at, ..written.place };
            if let Some(from) = slot_of(number, r)
                && index.relocate(&r.key, &from, to)
            {
                self.damaged.moved(&r.key, to);
            }
        }
        drop(index);
        self.note(&mut core, written.end);
        Ok(stuck)
    }

    /// Clean end: everything durable, reservations given back, a sidecar for the last segment.
    pub(crate) fn close(&self) {
        if let Err(e) = self.mark() {
            tracing::warn!(error = %e, "closing");
        }
        let sealed = {
            let mut tail = self.writer();
            let sealed = self.log.finish(&mut tail);
            tail.closed = true;
            sealed
        };
        let Some((number, len)) = sealed else { return };
        self.core.lock().settle(self.log.synced());
        if let Some(f) = self.files.read().get(&number) {
            f.len.store(len, Ordering::Relaxed);
        }
        while let Some(n) = self.next_without_sidecar() {
            let end = (n == number).then(|| {
                let core = self.core.lock();
                if let Some(f) = self.files.read().get(&n) {
                    f.bases.lock().0 = core.chain.sum.base;
                }
                core.snapshot()
            });
            if let Err(e) = self.make_sidecar(n, end) {
                tracing::warn!(error = %e, "closing");
                return;
            }
        }
    }
}

fn slot_of(number: u32, r: &SideRow) -> Option<Slot> {
    Slot::new(r.version, r.digest, Place { segment: number, offset: r.offset }, r.len)
}

/// Removes all segments and sidecars: the store begins anew.
pub(crate) fn remove_log(disk: &dyn Disk) -> std::io::Result<()> {
    for name in disk.list()? {
        if name.starts_with("log-") {
            disk.remove(&name)?;
        }
    }
    disk.sync_dir()
}
