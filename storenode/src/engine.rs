//! One shard's records and chain in one directory: a log of segments, and an index in memory.
//!
//! ```text
//!   writer lock -> core lock -> index lock -> files lock        (always in this order)
//!   Tail: who       chain,       key ->         open segments
//!   holds it        positions    place
//!   writes
//! ```
//! Nobody waits for an fdatasync under a lock, except to begin a new segment. Values are read
//! outside all locks. The engine knows nothing of epochs promised, roles or configurations:
//! [`crate::service`] does, and decides under the writer lock.

pub(crate) mod chain;
mod check;
mod compact;
pub(crate) mod container;
pub(crate) mod entry;
pub(crate) mod index;
mod log;
mod read;
pub(crate) mod recovery;
pub(crate) mod segment;
pub(crate) mod sidecar;
mod write;

use self::chain::{Chain, Pending, Place};
pub(crate) use self::check::Checked;
pub(crate) use self::compact::remove_log;
use self::entry::{Grave, Snapshot};
use self::index::{Index, Slot};
use self::log::{Log, Tail, WriteError};
pub(crate) use self::read::Records;
pub(crate) use self::recovery::survivor;
pub(crate) use self::segment::Owner;
use crate::disk::{Disk, DiskFile};
use crate::part;
use crate::service::Metrics;
use crate::wire::{Cursor, Key, NodeError, Position, Space, Version, digest};
use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard, RwLock};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

/// Settings of an engine.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    pub(crate) segment_bytes: u64,
    pub(crate) capacity_bytes: Option<u64>,
}

/// Counters since the start.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) parts: AtomicU64,
    pub(crate) compaction_bytes: AtomicU64,
    pub(crate) segments_compacted: AtomicU64,
    pub(crate) records_read: AtomicU64,
    pub(crate) bytes_read: AtomicU64,
    pub(crate) damaged_records: AtomicU64,
}

/// A segment that is there.
pub(crate) struct SegmentFile {
    pub(crate) file: Arc<dyn DiskFile>,
    /// Its length once it is sealed; 0 = it is written to.
    pub(crate) len: AtomicU64,
    /// It has a sidecar.
    pub(crate) sidecar: AtomicBool,
    /// Parts of it are damaged: to be compacted away.
    pub(crate) damaged: AtomicBool,
    /// Choices for which compaction leaves it alone, since a value in it could not be read.
    pub(crate) resting: AtomicU32,
    /// Choices that passed over it because no later head says yet what was applied from it.
    pub(crate) waited: AtomicU32,
    /// Length of its head with the first entry.
    pub(crate) head_len: AtomicU64,
    /// Bytes of tombstones in it that must outlive older segments.
    pub(crate) held: AtomicU64,
    /// What was applied at its end (parts above were pending there), and by when all of its parts
    /// were applied or void.
    pub(crate) bases: Mutex<(Version, Version)>,
}
impl SegmentFile {
    pub(crate) fn new(file: Arc<dyn DiskFile>, len: u64) -> Self {
        Self {
            file,
            len: AtomicU64::new(len),
            sidecar: AtomicBool::new(false),
            damaged: AtomicBool::new(false),
            resting: AtomicU32::new(0),
            waited: AtomicU32::new(0),
            head_len: AtomicU64::new(0),
            held: AtomicU64::new(0),
            bases: Mutex::default(),
        }
    }
}

/// What stands in the log up to one place, to be reported once that place is durable.
struct Step {
    end: u64,
    position: Version,
    applied: Version,
}

/// The chain and what hangs on it.
pub(crate) struct Core {
    pub(crate) chain: Chain,
    /// Damaged log: what is lost may reach through here.
    pub(crate) lost: Option<Version>,
    pub(crate) graves: Vec<Grave>,
    pub(crate) damage: Vec<Place>,
    steps: VecDeque<Step>,
    durable_position: Version,
    durable_applied: Version,
    /// Highest watermark that an entry of the log says: what a restart would know.
    headed: Version,
    /// Records to be written again at the end of the log: tombstones applied from an earlier
    /// segment than the one written to (a tombstone must never lie before a copy of what it hides),
    /// and records whose key was removed between the arrival and the commit of their part.
    again: Vec<(Key, Slot)>,
    /// Segment that is written to, and what its head says is applied.
    segment: u32,
    head_base: Version,
    /// A filling store drops no tombstone (rule 8).
    filling: bool,
    /// The log still has a cursor that damage made untrue: a head must say that there is none before
    /// the damage is compacted away.
    disowned: bool,
}

impl Core {
    pub(crate) fn snapshot(&self) -> Snapshot {
        Snapshot {
            chain: self.chain.sum.clone(),
            graves: self.graves.clone(),
            previous: None,
            damage: self.damage.clone(),
            lost: self.lost,
        }
    }

    /// All through `synced` is durable: positions may be told.
    fn settle(&mut self, synced: u64) {
        while let Some(step) = self.steps.front() {
            if step.end > synced {
                break;
            }
            self.durable_position = step.position;
            self.durable_applied = self.durable_applied.max(step.applied);
            self.chain.sum.high = self.chain.sum.high.max(step.position);
            self.steps.pop_front();
        }
        if self.lost.is_some_and(|l| self.durable_position >= l) {
            self.lost = None;
        }
    }

    fn position(&self) -> Position {
        Position {
            position: self.durable_position,
            applied: self.durable_applied,
            high: self.chain.sum.high,
            detached: self.chain.detached(),
        }
    }
}

/// The engine.
pub(crate) struct Engine {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) owner: Owner,
    settings: Settings,
    pub(crate) log: Log,
    writer: Mutex<Tail>,
    core: Mutex<Core>,
    index: RwLock<Index>,
    files: RwLock<BTreeMap<u32, Arc<SegmentFile>>>,
    /// Held through a step of background work, before any other lock.
    compacting: Mutex<compact::Compacting>,
    /// Bytes of the segment that is written to: used, reserved beside.
    tail_used: AtomicU64,
    tail_unused: AtomicU64,
    pub(crate) counters: Counters,
    damaged: Damaged,
    buffers: crate::buffers::Buffers,
    /// What was wrong at the start, for people.
    pub(crate) damage_notes: Vec<String>,
}

/// Records that a read or a look found damaged, and where: at most so many of them, [`DAMAGED_KEPT`]. One that
/// lies elsewhere now was replaced, and is whole.
#[derive(Debug, Default)]
struct Damaged(Mutex<BTreeMap<Key, Place>>);

/// See [`Damaged`].
const DAMAGED_KEPT: usize = 4_096;

impl Damaged {
    fn note(&self, key: &[u8], place: Place) {
        let mut known = self.0.lock();
        if known.len() < DAMAGED_KEPT || known.contains_key(key) {
            known.insert(key.to_vec(), place);
        }
    }

    /// It could be read after all.
    fn whole(&self, key: &[u8]) {
        self.0.lock().remove(key);
    }

    /// Compaction takes a damaged value along as it is.
    fn moved(&self, key: &[u8], to: Place) {
        if let Some(place) = self.0.lock().get_mut(key) {
            *place = to;
        }
    }

    /// How many are left.
    fn count(&self, index: &Index) -> usize {
        let mut known = self.0.lock();
        known.retain(|key, place| index.get(key).is_some_and(|s| s.place() == *place));
        known.len()
    }
}

/// What a chain's head and openings say, for a status.
pub(crate) struct ChainStatus {
    pub(crate) position: Position,
    pub(crate) watermark: Version,
    pub(crate) sum: chain::Summary,
    /// A copy that is not over.
    pub(crate) cursor: Option<Cursor>,
    pub(crate) lost: Option<Version>,
}

pub(crate) fn failed(what: impl Into<String>) -> NodeError {
    NodeError::Failed { what: what.into() }
}
pub(crate) fn bad(what: impl Into<String>) -> NodeError {
    NodeError::Bad { what: what.into() }
}

impl Engine {
    /// Takes the right to write; everything that changes the log or the promise holds it.
    pub(crate) fn writer(&self) -> MutexGuard<'_, Tail> {
        self.writer.lock()
    }

    /// Why the engine takes nothing any more.
    pub(crate) fn failed(&self) -> Option<String> {
        self.log.failed()
    }

    /// Waits until all that was written so far is durable.
    pub(crate) fn sync(&self) -> Result<(), NodeError> {
        self.sync_through(self.log.written())
    }

    fn sync_through(&self, end: u64) -> Result<(), NodeError> {
        let synced = self.log.sync_through(end).map_err(|e| self.refusal(e))?;
        self.core.lock().settle(synced);
        Ok(())
    }

    /// Positions, as far as they are durable.
    pub(crate) fn position(&self) -> Position {
        self.core.lock().position()
    }

    pub(crate) fn chain_status(&self) -> ChainStatus {
        let core = self.core.lock();
        ChainStatus {
            position: core.position(),
            watermark: core.chain.applied().max(core.chain.sum.watermark),
            sum: core.chain.sum.clone(),
            cursor: core.chain.cursor().cloned(),
            lost: core.lost,
        }
    }

    pub(crate) fn set_filling(&self, on: bool) {
        self.core.lock().filling = on;
    }

    fn refusal(&self, e: WriteError) -> NodeError {
        match e {
            WriteError::Full => NodeError::Full { free_bytes: self.space().free_bytes },
            WriteError::Failed(what) => NodeError::Failed { what },
        }
    }

    /// How full: what is reported as free is what a writer of data may use.
    pub(crate) fn space(&self) -> Space {
        let (capacity_bytes, free, log_bytes) = self.room();
        let index = self.index.read();
        Space {
            capacity_bytes,
            free_bytes: free.saturating_sub(self.reserve(capacity_bytes)),
            live_bytes: index.live_bytes(),
            log_bytes,
            records: index.records(),
            tombstones: index.tombstones(),
        }
    }

    /// Capacity, free bytes with the reserve, size of the log.
    fn room(&self) -> (u64, u64, u64) {
        let sealed: u64 = self.files.read().values().map(|f| f.len.load(Ordering::Relaxed)).sum();
        let used = sealed + self.tail_used.load(Ordering::Relaxed);
        let disk = self.disk.space().unwrap_or_default();
        let free = disk.free_bytes + self.tail_unused.load(Ordering::Relaxed);
        match self.settings.capacity_bytes {
            Some(c) => {
                let c = c.min(disk.total_bytes);
                (c, free.min(c.saturating_sub(used)), used)
            }
            None => (disk.total_bytes, free, used),
        }
    }

    /// Kept for deletes, marks, repairs and compaction, bytes: two segments, at most an eighth.
    fn reserve(&self, capacity: u64) -> u64 {
        (2 * self.settings.segment_bytes).min(capacity / 8)
    }

    /// Applies what is settled. Answers false when the log could not be read.
    fn apply(&self, core: &mut Core) -> bool {
        while let Some((version, part)) = core.chain.peek_settled() {
            let part = part.clone();
            if let Err(what) = self.apply_part(core, version, &part) {
                self.log.fail(format!("cannot read part {version}: {what}"));
                return false;
            }
            core.chain.pop_settled();
        }
        true
    }

    fn apply_part(&self, core: &mut Core, version: Version, part: &Pending) -> Result<(), String> {
        let records = match &part.records {
            Some(r) => Arc::clone(r),
            None => Arc::new(self.read_part(part.place, part.len)?.records),
        };
        let place = part.place;
        let mut index = self.index.write();
        for r in records.iter() {
            let (offset, len) = r.value.map_or((0, None), |(at, n)| (at, Some(n)));
            let at = Place { segment: place.segment, offset: place.offset + offset };
            let Some(slot) = Slot::new(version, r.digest, at, len) else { continue };
            if !index.put_newer(&r.key, slot) {
                continue;
            }
            let buried = || core.graves.iter().any(|g| g.before > at && g.key == r.key);
            if (len.is_none() && place.segment < core.segment) || buried() {
                core.again.push((r.key.clone(), slot));
            }
        }
        core.chain.sum.floor = core.chain.sum.floor.max(part.floor);
        Ok(())
    }

    /// Reads a pending part's head and table from the log.
    fn read_part(&self, place: Place, len: u32) -> Result<part::Part, String> {
        let bytes = self.read_place(place, len)?;
        part::decode_structure(bytes).map_err(|e| e.to_string())
    }

    fn read_place(&self, place: Place, len: u32) -> Result<Bytes, String> {
        let file = self.files.read().get(&place.segment).map(|f| Arc::clone(&f.file));
        let Some(file) = file else { return Err("its segment is gone".into()) };
        read_exact(&*file, place.offset, len)
    }

    /// The value of a record, verified against its digest; `Err` says what is wrong with it.
    fn read_value(&self, key: &[u8], slot: &Slot) -> Result<Option<Bytes>, String> {
        let Some(len) = slot.len() else { return Ok(None) };
        let value = self.read_place(slot.place(), len)?;
        self.check_value(key, slot, value).map(Some)
    }

    fn check_value(&self, key: &[u8], slot: &Slot, value: Bytes) -> Result<Bytes, String> {
        self.counters.records_read.fetch_add(1, Ordering::Relaxed);
        self.counters.bytes_read.fetch_add(value.len() as u64, Ordering::Relaxed);
        if digest(key, slot.version(), Some(&value)) == slot.digest() {
            return Ok(value);
        }
        Err("the value does not match its digest".into())
    }

    /// Counters, as far as the engine keeps them.
    pub(crate) fn metrics(&self) -> Metrics {
        let n = |a: &AtomicU64| a.load(Ordering::Relaxed);
        Metrics {
            requests: 0,
            refused: 0,
            parts: n(&self.counters.parts),
            log_bytes_written: n(&self.log.counters.bytes_written),
            compaction_bytes_written: n(&self.counters.compaction_bytes),
            segments_compacted: n(&self.counters.segments_compacted),
            syncs: n(&self.log.counters.syncs),
            sync_micros: n(&self.log.counters.sync_micros),
            records_read: n(&self.counters.records_read),
            bytes_read: n(&self.counters.bytes_read),
            damaged_records: n(&self.counters.damaged_records),
        }
    }

    /// Records known to be damaged that were not replaced since; at most [`DAMAGED_KEPT`].
    pub(crate) fn damaged_records(&self) -> u64 {
        self.damaged.count(&self.index.read()) as u64
    }

    fn note_damaged(&self, key: &[u8], place: Place, what: &str) {
        self.counters.damaged_records.fetch_add(1, Ordering::Relaxed);
        self.damaged.note(key, place);
        tracing::warn!(key = %hex(key), what, "damaged record");
    }
}

fn read_exact(file: &dyn DiskFile, offset: u32, len: u32) -> Result<Bytes, String> {
    let mut value = vec![0; len as usize];
    match file.read_at(&mut value, u64::from(offset)) {
        Ok(n) if n == value.len() => Ok(Bytes::from(value)),
        Ok(n) => Err(format!("the file ends after {n} of {len} bytes")),
        Err(e) => Err(e.to_string()),
    }
}

/// For messages: the first bytes of a key.
pub(crate) fn hex(key: &[u8]) -> String {
    key.iter().take(40).map(|b| format!("{b:02x}")).collect()
}
