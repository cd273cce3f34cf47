//! The end of the log: entries are written at one place, in order, and made durable together.
//!
//! One thread at a time writes (the owner of the [`Tail`]); it does not wait for the disk there.
//! Whoever needs durability calls [`Log::sync_through`]: the first to come syncs for all that was
//! written by then, the others wait for it.

use super::chain::Place;
use super::entry::{HEADER_LEN, Header, Kind, Snapshot, encode_small, entry_len, seed};
use super::segment::{Owner, SEGMENT_HEAD_LEN, encode_segment_head, segment_name};
use crate::disk::{Disk, DiskFile, LONG_WRITE};
use crate::wire::Version;
use parking_lot::{Condvar, Mutex, MutexGuard};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// When a whole segment cannot be reserved, reserve this much beside what is to be written.
const SMALL_RESERVATION: u64 = 1 << 20;
/// Longest entry that is written to bring the next one's payload to its place.
const GAP_MAX: u64 = 4096 + HEADER_LEN as u64;
const ZEROS: [u8; 8] = [0; 8];
/// What is reserved is cleared in steps of this.
const CLEAR_STEP: u64 = 256 << 10;
static CLEARED: [u8; CLEAR_STEP as usize] = [0; CLEAR_STEP as usize];
/// Clearing begins at a multiple of this, so that it never writes to a sector with an entry in it.
const CLEAR_ALIGN: u64 = 4096;

/// Why an entry could not be written.
#[derive(Clone, Debug)]
pub(crate) enum WriteError {
    /// No space; nothing was changed.
    Full,
    /// The disk failed: the log takes nothing any more.
    Failed(String),
}

impl WriteError {
    fn closed() -> Self {
        Self::Failed("this store is closed or was wiped".into())
    }
}

/// An entry to be written.
pub(crate) struct NewEntry<'a> {
    pub(crate) kind: Kind,
    /// The payload, in pieces.
    pub(crate) pieces: Vec<&'a [u8]>,
    /// So many bytes of it are under the header's checksum.
    pub(crate) checked: usize,
    /// Checksum of the payload if it is known already (a part's own).
    pub(crate) full_crc: Option<u32>,
}
impl<'a> NewEntry<'a> {
    pub(crate) fn small(kind: Kind, payload: &'a [u8]) -> Self {
        Self { kind, pieces: vec![payload], checked: payload.len(), full_crc: None }
    }
    pub(crate) fn len(&self) -> usize {
        self.pieces.iter().map(|p| p.len()).sum()
    }

    /// A payload that a disk may write without copying it, if it stands at the right place.
    fn in_one_piece(&self) -> Option<&'a [u8]> {
        match self.pieces[..] {
            [piece] if piece.len() >= LONG_WRITE => Some(piece),
            _ => None,
        }
    }

    /// Bytes in the log, with a mark before it if it is long.
    pub(crate) fn takes_at_most(&self) -> u64 {
        entry_len(self.len()) + self.in_one_piece().map_or(0, |_| GAP_MAX)
    }

    /// Length of the payload of a mark to be written at `at`, before this entry, so that this one's payload lies in
    /// the file as it does in memory, modulo `phase` ([`DiskFile::phase`]): a disk then writes it from
    /// where it is. `None` when none is needed, or none helps.
    fn gap_before(&self, at: u64, phase: usize) -> Option<usize> {
        let header = HEADER_LEN as u64;
        let payload = self.in_one_piece().filter(|_| phase > 1)?;
        let (phase, address) = (phase as u64, payload.as_ptr().addr() as u64);
        let distance = (address % phase + phase - (at + header) % phase) % phase;
        // Entries stand at multiples of 8, and none is shorter than its header.
        let distance = if distance < header { distance + phase } else { distance };
        let needed = distance != phase && distance.is_multiple_of(8) && distance <= GAP_MAX;
        needed.then(|| (distance - header) as usize)
    }
}

/// Where an entry went.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Written {
    /// Of the payload.
    pub(crate) place: Place,
    /// The entry is durable when the log is synced through here.
    pub(crate) end: u64,
}

/// The segment that is written to.
struct Active {
    number: u32,
    file: Arc<dyn DiskFile>,
    offset: u64,
    allocated: u64,
    seed: u32,
    /// Where the second entry begins.
    first: u64,
    /// Zeros were written through here.
    cleared: u64,
}

/// The end of the log; whoever holds it writes.
pub(crate) struct Tail {
    active: Option<Active>,
    next_segment: u32,
    ordinal: u64,
    /// Sealed before the next segment is made; goes into its snapshot.
    pub(crate) previous: Option<(u32, u64)>,
    /// The log of a wiped store: nothing may be written any more.
    pub(crate) closed: bool,
    /// Headers written so far said this much was synced and committed.
    said: (u64, Version),
}
impl Tail {
    pub(crate) fn new(
        next_segment: u32,
        ordinal: u64,
        previous: Option<(u32, u64)>,
        watermark: Version,
    ) -> Self {
        let said = (0, watermark);
        Self { active: None, next_segment, ordinal, previous, closed: false, said }
    }
    /// Number of the segment that the next entry goes to, if it fits.
    pub(crate) fn segment(&self) -> u32 {
        self.active.as_ref().map_or(self.next_segment, |a| a.number)
    }
    /// Reserved but unused bytes of the segment that is written to.
    pub(crate) fn unused(&self) -> u64 {
        self.active.as_ref().map_or(0, |a| a.allocated.saturating_sub(a.offset))
    }
    /// Length of the head of the segment that is written to, first entry included.
    pub(crate) fn head_len(&self) -> u64 {
        self.active.as_ref().map_or(0, |a| a.first)
    }
    /// Bytes in the segment that is written to.
    pub(crate) fn used(&self) -> u64 {
        self.active.as_ref().map_or(0, |a| a.offset)
    }
}

#[derive(Default)]
struct Syncing {
    /// Written through here, in this file.
    written: u64,
    file: Option<Arc<dyn DiskFile>>,
    synced: u64,
    running: bool,
    failed: Option<String>,
}

/// What the log did, for people.
#[derive(Debug, Default)]
pub(crate) struct LogCounters {
    pub(crate) bytes_written: AtomicU64,
    pub(crate) syncs: AtomicU64,
    pub(crate) sync_micros: AtomicU64,
}

/// A position in the log: compares as (segment, offset).
pub(crate) fn log_position(segment: u32, offset: u64) -> u64 {
    u64::from(segment) << 32 | offset.min(u64::from(u32::MAX))
}

/// The log's files, as a writer sees them.
pub(crate) struct Log {
    disk: Arc<dyn Disk>,
    owner: Owner,
    segment_bytes: u64,
    syncing: Mutex<Syncing>,
    synced: Condvar,
    pub(crate) counters: LogCounters,
}

impl Log {
    pub(crate) fn new(disk: Arc<dyn Disk>, owner: Owner, segment_bytes: u64) -> Self {
        Self {
            disk,
            owner,
            // Offsets inside a segment are 32 bits wide.
            segment_bytes: segment_bytes.clamp(4096, 1 << 30),
            syncing: Mutex::default(),
            synced: Condvar::new(),
            counters: LogCounters::default(),
        }
    }

    /// Why the log takes nothing any more.
    pub(crate) fn failed(&self) -> Option<String> {
        self.syncing.lock().failed.clone()
    }

    /// Stops the log for good (until the next start).
    pub(crate) fn fail(&self, what: String) {
        tracing::error!(%what, "the log failed: this node does not vote any more");
        let mut s = self.syncing.lock();
        s.failed.get_or_insert(what);
        self.synced.notify_all();
    }

    /// Written through here.
    pub(crate) fn written(&self) -> u64 {
        self.syncing.lock().written
    }

    /// Synced through here.
    pub(crate) fn synced(&self) -> u64 {
        self.syncing.lock().synced
    }

    /// Waits until everything through `end` is durable; answers through where it is.
    pub(crate) fn sync_through(&self, end: u64) -> Result<u64, WriteError> {
        let mut s = self.syncing.lock();
        loop {
            if s.synced >= end {
                return Ok(s.synced);
            }
            if let Some(what) = &s.failed {
                return Err(WriteError::Failed(what.clone()));
            }
            if s.running {
                self.synced.wait(&mut s);
                continue;
            }
            let (target, Some(file)) = (s.written, s.file.clone()) else { return Ok(s.synced) };
            s = self.run_sync(s, &*file, target);
        }
    }

    /// One fdatasync; the caller has seen that none is running. Two at once would share one error:
    /// the kernel tells it to one of them, and the other would call durable what is not.
    fn run_sync<'a>(
        &'a self,
        mut s: MutexGuard<'a, Syncing>,
        file: &dyn DiskFile,
        target: u64,
    ) -> MutexGuard<'a, Syncing> {
        s.running = true;
        drop(s);
        let start = Instant::now();
        let result = file.sync_data();
        self.counters.syncs.fetch_add(1, Ordering::Relaxed);
        let micros = start.elapsed().as_micros() as u64;
        self.counters.sync_micros.fetch_add(micros, Ordering::Relaxed);
        s = self.syncing.lock();
        s.running = false;
        match result {
            Ok(()) => s.synced = s.synced.max(target),
            // Rule 4: no retry. The kernel has forgotten the pages; a second call would lie.
            Err(e) => {
                tracing::error!(error = %e, "fdatasync failed: this node does not vote");
                s.failed.get_or_insert(format!("fdatasync of the log failed: {e}"));
            }
        }
        self.synced.notify_all();
        s
    }

    /// Writes zeros over one step of what is reserved, not further than `ahead` bytes behind the end;
    /// answers whether there was one. A filesystem keeps reserved space as *unwritten*: the first
    /// write there changes the file's map, which an fdatasync must write too. Where zeros were
    /// written before, it writes the data and nothing else.
    pub(crate) fn clear_step(&self, tail: &mut Tail, ahead: u64) -> bool {
        if tail.closed || self.failed().is_some() {
            return false;
        }
        let Some(active) = tail.active.as_mut() else { return false };
        let from = active.cleared.max(active.offset).next_multiple_of(CLEAR_ALIGN);
        let to = from + CLEAR_STEP;
        if to > active.allocated.min(active.offset + ahead) {
            return false;
        }
        // Nothing counts on it: an error costs speed only.
        if let Err(e) = active.file.write_at(&[&CLEARED], from) {
            tracing::debug!(error = %e, "cannot clear what is reserved");
            return false;
        }
        active.cleared = to;
        true
    }

    /// Takes what was cleared to the disk, unless a sync is running, so that the next one that
    /// somebody waits for need not.
    pub(crate) fn sync_cleared(&self) {
        let s = self.syncing.lock();
        if s.running || s.failed.is_some() {
            return;
        }
        if let (target, Some(file)) = (s.written, s.file.clone()) {
            drop(self.run_sync(s, &*file, target));
        }
    }

    /// Writes entries behind each other. `snapshot` is asked when a new segment is begun.
    ///
    /// On [`WriteError::Full`] none of the entries counts, even if some of their bytes were written.
    pub(crate) fn write(
        &self,
        tail: &mut Tail,
        entries: &[NewEntry<'_>],
        watermark: Version,
        snapshot: &dyn Fn() -> Snapshot,
    ) -> Result<Vec<Written>, WriteError> {
        if tail.closed {
            return Err(WriteError::closed());
        }
        if let Some(what) = self.failed() {
            return Err(WriteError::Failed(what));
        }
        // With the marks that may stand before long entries.
        let most: u64 = entries.iter().map(NewEntry::takes_at_most).sum();
        let fits = tail.active.as_ref().is_some_and(|a| a.offset + most <= self.segment_bytes);
        if !fits {
            self.roll(tail, most, snapshot)?;
        }
        let synced = self.synced();
        let Some(active) = tail.active.as_mut() else {
            return Err(WriteError::Failed("no segment".into()));
        };
        let synced = synced.saturating_sub(log_position(active.number, 0)).min(active.offset);
        let phase = active.file.phase();
        let mut headers = Vec::with_capacity(entries.len());
        let mut written = Vec::with_capacity(entries.len());
        let mut at = active.offset;
        for entry in entries {
            let mut header = |entry: &NewEntry<'_>, at| {
                tail.ordinal += 1;
                header_of(entry, tail.ordinal, synced, watermark).encode(active.seed, at)
            };
            let gap = entry.gap_before(at, phase);
            let mark = gap.map(|len| {
                let mark = NewEntry::small(Kind::Mark, &CLEARED[..len]);
                let header = header(&mark, at);
                at += entry_len(len);
                (header, len)
            });
            headers.push((mark, header(entry, at)));
            let offset = (at + HEADER_LEN as u64) as u32;
            at += entry_len(entry.len());
            let place = Place { segment: active.number, offset };
            written.push(Written { place, end: log_position(active.number, at) });
        }
        let total = at - active.offset;
        let mut pieces: Vec<&[u8]> = Vec::with_capacity(entries.len() * 5);
        for (entry, (mark, header)) in entries.iter().zip(&headers) {
            if let Some((header, len)) = mark {
                pieces.extend([&header[..], &CLEARED[..*len]]);
            }
            pieces.push(header);
            pieces.extend(&entry.pieces);
            let pad = entry_len(entry.len()) as usize - HEADER_LEN - entry.len();
            pieces.push(&ZEROS[..pad]);
        }
        let copied;
        // One small write is cheaper than a list of pieces.
        if total <= 64 << 10 {
            // What is reserved is zeros, and stays so through the end of the page: a page that was cleared
            // past the kernel's cache would be read from the disk first, were only a part of it written.
            let page = at.next_multiple_of(CLEAR_ALIGN);
            if page <= active.allocated {
                pieces.push(&CLEARED[..(page - at) as usize]);
            }
            copied = pieces.concat();
            pieces = vec![&copied];
        }
        self.put(&active.file, &pieces, active.offset)?;
        self.counters.bytes_written.fetch_add(total, Ordering::Relaxed);
        active.offset = at;
        active.allocated = active.allocated.max(at);
        tail.said = (log_position(active.number, synced), watermark);
        let mut s = self.syncing.lock();
        s.written = log_position(active.number, at);
        s.file = Some(Arc::clone(&active.file));
        Ok(written)
    }

    /// Is there something that no header says yet: a sync, a watermark?
    pub(crate) fn wants_mark(&self, tail: &Tail, watermark: Version) -> bool {
        let Some(active) = &tail.active else { return watermark > tail.said.1 };
        let end = log_position(active.number, active.offset);
        // A mark says that what stands before it is synced; of itself nothing needs to be said.
        let said = tail.said.0 + entry_len(0) >= end;
        !said || watermark > tail.said.1
    }

    fn put(&self, file: &Arc<dyn DiskFile>, pieces: &[&[u8]], at: u64) -> Result<(), WriteError> {
        file.write_at(pieces, at).map_err(|e| {
            if is_full(&e) {
                return WriteError::Full;
            }
            let what = format!("writing the log failed: {e}");
            self.fail(what.clone());
            WriteError::Failed(what)
        })
    }

    /// Seals the segment that is written to and begins the next.
    pub(crate) fn roll(
        &self,
        tail: &mut Tail,
        total: u64,
        snapshot: &dyn Fn() -> Snapshot,
    ) -> Result<(), WriteError> {
        let began = Instant::now();
        if tail.closed {
            return Err(WriteError::closed());
        }
        if let Some(old) = &tail.active {
            self.sync_through(log_position(old.number, old.offset))?;
            tail.previous = Some((old.number, old.offset));
        }
        let number = tail.next_segment;
        let name = segment_name(number);
        let said = Snapshot { previous: tail.previous, ..snapshot() };
        let watermark = said.chain.watermark;
        let payload = encode_small(&said);
        let entry = NewEntry::small(Kind::Snapshot, &payload);
        let first = SEGMENT_HEAD_LEN + entry_len(payload.len());
        let made = self.disk.create(&name).and_then(|file| {
            let mut allocated = self.segment_bytes.max(first + total);
            match file.allocate(allocated) {
                Err(e) if is_full(&e) => {
                    allocated = (first + total + SMALL_RESERVATION).min(allocated);
                    if file.allocate(allocated).is_err() {
                        allocated = first + total;
                        file.allocate(allocated)?;
                    }
                }
                other => other?,
            }
            let seed = seed(self.owner.store, number);
            let header = header_of(&entry, tail.ordinal + 1, 0, watermark);
            let pad = entry_len(payload.len()) as usize - HEADER_LEN - payload.len();
            file.write_at(
                &[
                    &encode_segment_head(&self.owner, number),
                    &header.encode(seed, SEGMENT_HEAD_LEN),
                    &payload,
                    &ZEROS[..pad],
                ],
                0,
            )?;
            self.disk.sync_dir()?;
            Ok(Active { number, file, offset: first, allocated, seed, first, cleared: 0 })
        });
        match made {
            Ok(active) => {
                if let Some(old) = &tail.active
                    && let Err(e) = old.file.truncate(old.offset)
                {
                    // Only the space of a reservation; its length is in the new segment's head.
                    tracing::warn!(error = %e, "cannot cut a sealed segment");
                }
                tail.ordinal += 1;
                tail.next_segment = number + 1;
                tail.said = (log_position(number, 0), watermark);
                let mut s = self.syncing.lock();
                s.written = log_position(number, first);
                s.file = Some(Arc::clone(&active.file));
                tail.active = Some(active);
                tracing::debug!(number, took = ?began.elapsed(), "segment begun");
                Ok(())
            }
            Err(e) if is_full(&e) => {
                self.disk.remove(&name).and_then(|()| self.disk.sync_dir()).map_err(|e| {
                    let what = format!("cannot remove {name}: {e}");
                    self.fail(what.clone());
                    WriteError::Failed(what)
                })?;
                Err(WriteError::Full)
            }
            Err(e) => {
                let what = format!("cannot make {name}: {e}");
                self.fail(what.clone());
                Err(WriteError::Failed(what))
            }
        }
    }

    /// After the last write of all: gives back what was reserved. Answers the segment's length.
    pub(crate) fn finish(&self, tail: &mut Tail) -> Option<(u32, u64)> {
        let active = tail.active.take()?;
        if let Err(e) = active.file.truncate(active.offset).and_then(|()| active.file.sync_data()) {
            tracing::warn!(error = %e, "cannot cut the last segment");
            return None;
        }
        Some((active.number, active.offset))
    }

    /// The file of the segment that is written to.
    pub(crate) fn active_file(&self, tail: &Tail) -> Option<(u32, Arc<dyn DiskFile>)> {
        tail.active.as_ref().map(|a| (a.number, Arc::clone(&a.file)))
    }
}

fn is_full(e: &io::Error) -> bool {
    matches!(
        e.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
    )
}

fn header_of(entry: &NewEntry<'_>, ordinal: u64, synced: u64, watermark: Version) -> Header {
    let mut checked_crc = 0;
    let mut left = entry.checked;
    for p in &entry.pieces {
        let n = p.len().min(left);
        checked_crc = crc32c::crc32c_append(checked_crc, &p[..n]);
        left -= n;
    }
    let full = || entry.pieces.iter().fold(0, |crc, p| crc32c::crc32c_append(crc, p));
    Header {
        kind: entry.kind,
        len: entry.len() as u32,
        checked: entry.checked as u32,
        checked_crc,
        full_crc: entry.full_crc.unwrap_or_else(full),
        ordinal,
        synced,
        watermark,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_brings_a_payload_into_phase_and_nothing_else_is() {
        let memory = vec![0; LONG_WRITE + 8192];
        for address in 0..8192 {
            let payload = &memory[address..address + LONG_WRITE];
            let address = payload.as_ptr().addr() as u64;
            let entry =
                NewEntry { kind: Kind::Part, pieces: vec![payload], checked: 0, full_crc: None };
            for at in (0..4096 * 2).step_by(136) {
                let gap = entry.gap_before(at, 4096);
                assert!(gap.map_or(0, entry_len) + entry_len(LONG_WRITE) <= entry.takes_at_most());
                let begins = at + gap.map_or(0, entry_len) + HEADER_LEN as u64;
                assert_eq!(
                    begins % 4096 == address % 4096,
                    address.is_multiple_of(8),
                    "{address} {at}"
                );
                assert!(address.is_multiple_of(8) || gap.is_none());
                assert_eq!(entry.gap_before(at, 1), None);
            }
        }
        let short = NewEntry::small(Kind::Part, &memory[..LONG_WRITE - 1]);
        assert_eq!(
            (short.gap_before(0, 4096), short.takes_at_most()),
            (None, entry_len(LONG_WRITE - 1))
        );
    }
}
