//! A start: the log is read again, segment by segment, and every bad byte gets its verdict.
//!
//! A sealed segment is taken from its sidecar, any other is read whole. What stands beyond the last
//! synced-mark may never have reached the disk although it can be read: it is written again, into a
//! new segment, before any position is told.

mod end;

use super::chain::{Chain, Pending, Place, Summary};
use super::entry::{
    AttachMark, CursorMark, Grave, HEADER_LEN, Header, JoinMark, Kind, ORDINAL_MAX, Snapshot,
    decode_rows, decode_small,
};
use super::index::{Index, Slot};
use super::log::{Log, Tail, Written, log_position};
use super::segment::{
    Item, Owner, SEGMENT_HEAD_LEN, SegmentHead, decode_segment_head, number_of, payload_of, scan,
    segment_name, sidecar_name,
};
use super::sidecar::Sidecar;
use super::{Core, Counters, Damaged, Engine, SegmentFile, Settings};
use crate::disk::{Disk, read_file};
use crate::part;
use crate::service::OpenError;
use crate::wire::{Key, Version, digest};
use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// An entry beyond the last synced-mark.
struct Unsynced {
    header: Header,
    payload: Bytes,
    /// Where it stands now.
    place: Place,
    full: bool,
}

/// What a replay keeps beside the core.
#[derive(Default)]
struct Replay {
    notes: Vec<String>,
    /// Damaged stretches that no later head took into account.
    gaps: Vec<Place>,
    /// Something was lost that may have been content.
    holed: bool,
    /// What was lost may be anything: no position may be told.
    distrust: bool,
    /// A lost part is told by the next one; the position before it, and whether it may have been
    /// something else than a part.
    part_gap: Option<(Version, bool)>,
    /// The head of a segment is lost, and so are the segments before it: the next head must say
    /// what it said.
    head_lost: Option<Place>,
    /// No part followed the last gap.
    trailing: bool,
    /// Pending parts whose values are damaged.
    suspects: BTreeSet<Version>,
    /// Highest version of any part seen.
    newest: Version,
    ordinal: u64,
    previous_number: Option<u32>,
    previous: Option<(u32, u64)>,
    unsynced: Vec<Unsynced>,
    /// Bytes of the last segment to be written again where they are.
    again_in_place: Option<(u64, Bytes)>,
}

impl Replay {
    fn note(&mut self, what: String) {
        tracing::warn!(%what, "damage found at the start");
        self.notes.push(what);
    }
    fn gap(&mut self, place: Place) {
        self.holed = true;
        self.gaps.push(place);
    }
    fn settled(&mut self, core: &mut Core) {
        core.damage.append(&mut self.gaps);
        core.lost = None;
        self.distrust = false;
        self.part_gap = None;
        self.head_lost = None;
    }
}

fn io_error(what: impl Into<String>) -> impl FnOnce(io::Error) -> OpenError {
    let what = what.into();
    move |error| OpenError::Io { what, error }
}

/// The first entry of a segment, read without the rest.
fn head_snapshot(bytes: &[u8], store: crate::wire::StoreId, number: u32) -> Option<Snapshot> {
    let at = SEGMENT_HEAD_LEN as usize;
    let header = Header::decode(bytes.get(at..)?, super::entry::seed(store, number), at as u64)?;
    let payload = bytes.get(at + HEADER_LEN..)?.get(..header.len as usize)?;
    let whole = crc32c::crc32c(payload) == header.full_crc && header.kind == Kind::Snapshot;
    if whole { decode_small(payload) } else { None }
}

/// Is there a log in a directory without a state, and whose is it? `None` = no log at all.
///
/// # Errors
/// Whatever the disk answers to listing.
pub(crate) fn survivor(disk: &dyn Disk) -> io::Result<Option<Option<Owner>>> {
    let names = disk.list()?;
    if !names.iter().any(|n| n.starts_with("log-")) {
        return Ok(None);
    }
    let owner = names.iter().filter(|n| number_of(n, "seg").is_some()).find_map(|name| {
        let mut head = [0; SEGMENT_HEAD_LEN as usize];
        let n = disk.open(name).ok()?.read_at(&mut head, 0).ok()?;
        match decode_segment_head(&head[..n]) {
            SegmentHead::Good(owner, _) => Some(owner),
            _ => None,
        }
    });
    Ok(Some(owner))
}

impl Engine {
    /// Opens the log in `disk`; makes nothing until the first write. `read_only` writes nothing.
    ///
    /// # Errors
    /// [`OpenError::Io`] and [`OpenError::UnknownFormat`]; damage is no error.
    pub(crate) fn open(
        disk: Arc<dyn Disk>,
        owner: Owner,
        settings: Settings,
        read_only: bool,
    ) -> Result<Self, OpenError> {
        let names = disk.list().map_err(io_error("listing the directory"))?;
        let mut numbers: Vec<u32> = names.iter().filter_map(|n| number_of(n, "seg")).collect();
        numbers.sort_unstable();
        if !read_only {
            for name in &names {
                let orphan = number_of(name, "idx").is_some_and(|n| !numbers.contains(&n));
                if orphan || name.ends_with(".tmp") {
                    disk.remove(name).map_err(io_error(name.as_str()))?;
                }
            }
        }
        let mut files = BTreeMap::new();
        for n in &numbers {
            let name = segment_name(*n);
            let file = disk.open(&name).map_err(io_error(name.as_str()))?;
            let len = file.len().map_err(io_error(name.as_str()))?;
            files.insert(*n, Arc::new(SegmentFile::new(file, len)));
        }
        let core = Core {
            chain: Chain::new(Summary::default()),
            lost: None,
            graves: Vec::new(),
            damage: Vec::new(),
            steps: VecDeque::new(),
            durable_position: Version::ZERO,
            durable_applied: Version::ZERO,
            headed: Version::ZERO,
            again: Vec::new(),
            segment: 0,
            head_base: Version::ZERO,
            filling: true,
            disowned: false,
        };
        let next = numbers.last().map_or(1, |n| n + 1);
        let mut engine = Self {
            log: Log::new(Arc::clone(&disk), owner, settings.segment_bytes),
            disk,
            owner,
            settings,
            writer: Mutex::new(Tail::new(next, 0, None, Version::ZERO)),
            core: Mutex::new(core),
            index: RwLock::new(Index::new()),
            files: RwLock::new(files),
            compacting: Mutex::default(),
            tail_used: AtomicU64::new(0),
            tail_unused: AtomicU64::new(0),
            counters: Counters::default(),
            damaged: Damaged::default(),
            buffers: Default::default(),
            damage_notes: Vec::new(),
        };
        let mut r = Replay::default();
        for (i, n) in numbers.iter().enumerate() {
            engine.replay_segment(&mut r, *n, numbers.get(i + 1).copied(), read_only)?;
        }
        engine.finish(&mut r, next, read_only)?;
        engine.damage_notes = r.notes;
        Ok(engine)
    }

    fn file_head(&self, number: u32) -> Result<Vec<u8>, OpenError> {
        let Some(file) = self.files.read().get(&number).map(|f| Arc::clone(&f.file)) else {
            return Ok(Vec::new());
        };
        let error = io_error(segment_name(number));
        let mut bytes = vec![0; 4096];
        let n = file.read_at(&mut bytes, 0);
        let n = match n {
            Ok(n) => n,
            Err(e) => return Err(error(e)),
        };
        bytes.truncate(n);
        // A long snapshot (many openings, voids, graves) needs a second look.
        let at = SEGMENT_HEAD_LEN as usize;
        let seed = super::entry::seed(self.owner.store, number);
        if let Some(h) = bytes.get(at..).and_then(|b| Header::decode(b, seed, at as u64)) {
            let need = at + HEADER_LEN + h.len as usize;
            if need > bytes.len() && n == 4096 {
                bytes.resize(need, 0);
                let n = file.read_at(&mut bytes, 0).map_err(error)?;
                bytes.truncate(n);
            }
        }
        Ok(bytes)
    }

    fn replay_segment(
        &self,
        r: &mut Replay,
        number: u32,
        next: Option<u32>,
        read_only: bool,
    ) -> Result<(), OpenError> {
        let name = segment_name(number);
        let Some(file) = self.files.read().get(&number).cloned() else { return Ok(()) };
        let file_len = file.len.load(Ordering::Relaxed);
        let head = self.file_head(number)?;
        match decode_segment_head(&head) {
            SegmentHead::UnknownFormat(format) => {
                return Err(OpenError::UnknownFormat { file: name, format });
            }
            SegmentHead::Good(o, _) if o.store != self.owner.store => {
                let what = format!("{name} belongs to store {}", o.store);
                self.log.fail(what.clone());
                r.note(what);
                return Ok(());
            }
            SegmentHead::Good(..) => {}
            SegmentHead::Bad if next.is_some() || file_len > SEGMENT_HEAD_LEN => {
                // A segment that was never finished has zeros; what follows decides.
                if head.iter().any(|b| *b != 0) {
                    r.note(format!("{name}: its head is damaged"));
                }
            }
            SegmentHead::Bad => {}
        }
        let at = SEGMENT_HEAD_LEN as usize;
        let seed = super::entry::seed(self.owner.store, number);
        if let Some(h) = head.get(at..).and_then(|b| Header::decode(b, seed, at as u64)) {
            let len = SEGMENT_HEAD_LEN + super::entry::entry_len(h.len as usize);
            file.head_len.store(len, Ordering::Relaxed);
        }
        // The next segment knows where this one ends.
        let next_snapshot = match next {
            Some(n) => head_snapshot(&self.file_head(n)?, self.owner.store, n),
            None => None,
        };
        let sealed = next_snapshot
            .as_ref()
            .and_then(|s| s.previous)
            .filter(|(n, _)| *n == number)
            .map(|(_, len)| len);
        if let Some(s) = &next_snapshot {
            file.bases.lock().0 = s.chain.base;
        }
        let mut core = self.core.lock();
        core.segment = number;
        match Sidecar::load(&*self.disk, self.owner.store, number) {
            Ok(Some(s)) if self.fits(&s, sealed, next, file_len) => {
                self.replay_sidecar(r, &mut core, s, &head, &file);
                r.previous = Some((number, file.len.load(Ordering::Relaxed)));
                r.previous_number = Some(number);
                return Ok(());
            }
            Ok(Some(_)) => r.note(format!("{}: does not fit its segment", sidecar_name(number))),
            Ok(None) => {}
            Err(what) => r.note(format!("{}: {what}; built again", sidecar_name(number))),
        }
        drop(core);
        let bytes = read_file(&*self.disk, &name, super::compact::SEGMENT_MAX)
            .map_err(io_error(name.as_str()))?;
        self.replay_scan(r, number, Bytes::from(bytes), sealed, next.is_none(), &file, read_only);
        r.previous_number = Some(number);
        Ok(())
    }

    fn fits(&self, s: &Sidecar, sealed: Option<u64>, next: Option<u32>, file_len: u64) -> bool {
        if s.ordinal > ORDINAL_MAX {
            return false;
        }
        match (sealed, next) {
            (Some(len), _) => s.segment_len == len && file_len >= len,
            (None, Some(_)) => s.segment_len <= file_len,
            (None, None) => s.end.is_some() && s.segment_len == file_len,
        }
    }

    fn replay_sidecar(
        &self,
        r: &mut Replay,
        core: &mut Core,
        s: Sidecar,
        head: &[u8],
        file: &SegmentFile,
    ) {
        if let Some(snapshot) = head_snapshot(head, self.owner.store, s.segment) {
            self.adopt(r, core, snapshot);
        } else {
            r.note(format!("{}: its first entry is damaged", segment_name(s.segment)));
            self.lost_snapshot(r, core, s.segment);
            file.damaged.store(true, Ordering::Relaxed);
        }
        file.len.store(s.segment_len, Ordering::Relaxed);
        file.sidecar.store(true, Ordering::Relaxed);
        r.ordinal = r.ordinal.max(s.ordinal);
        file.held.store(s.held(), Ordering::Relaxed);
        let mut index = self.index.write();
        for row in &s.rows {
            let place = Place { segment: s.segment, offset: row.offset };
            let dead = core.graves.iter().any(|g| g.before > place && g.key == row.key);
            if let (false, Some(slot)) = (dead, Slot::new(row.version, row.digest, place, row.len))
            {
                index.put_newer(&row.key, slot);
            }
        }
        drop(index);
        for p in &s.parts {
            r.newest = r.newest.max(p.version);
            let pending = Pending {
                predecessor: p.predecessor,
                place: p.place,
                len: p.len,
                end: log_position(s.segment, s.segment_len),
                floor: p.floor,
                records: None,
            };
            core.chain.insert_bare(p.version, pending);
        }
        if let Some(end) = s.end {
            self.adopt(r, core, end);
        }
    }

    /// Goes on from what a head says, if all damage so far was known to who wrote it.
    fn adopt(&self, r: &mut Replay, core: &mut Core, s: Snapshot) {
        let known = r.gaps.iter().all(|g| s.damage.contains(g));
        let graves: Vec<Grave> =
            s.graves.iter().filter(|g| !core.graves.contains(g)).cloned().collect();
        if known {
            r.gaps.clear();
            r.distrust = false;
            r.part_gap = None;
            r.head_lost = None;
            for (version, part) in core.chain.adopt(s.chain) {
                if let Err(what) = self.apply_part(core, version, &part) {
                    // Its segment's sidecar has its records; only what it hid may be missing.
                    r.note(format!("part {version} cannot be read again: {what}"));
                    r.gap(part.place);
                    r.distrust = true;
                }
            }
            core.damage = s.damage;
            core.lost = s.lost;
            core.graves = s.graves;
        } else {
            core.chain.adopt_marks(&s.chain);
            core.graves.extend(graves.iter().cloned());
        }
        let mut index = self.index.write();
        for g in graves {
            if index.get(&g.key).is_some_and(|slot| slot.place() < g.before) {
                index.remove(&g.key);
            }
        }
    }

    /// The head of a segment is lost: harmless if the segment before it was replayed, or if the
    /// next head can be read.
    fn lost_snapshot(&self, r: &mut Replay, core: &mut Core, number: u32) {
        if r.previous_number.map(|n| n + 1) == Some(number) || number == 1 {
            return;
        }
        let place = Place { segment: number, offset: SEGMENT_HEAD_LEN as u32 };
        r.head_lost = Some(place);
        if !core.chain.pending.is_empty() {
            // They were applied or made void in what is gone, and nothing tells which.
            core.chain.forget_all();
            r.gap(place);
            r.distrust = true;
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn replay_scan(
        &self,
        r: &mut Replay,
        number: u32,
        bytes: Bytes,
        sealed: Option<u64>,
        last: bool,
        file: &SegmentFile,
        read_only: bool,
    ) {
        let s = scan(&bytes, self.owner.store, number, sealed, last, r.ordinal);
        let synced = if last { s.synced } else { s.end };
        r.ordinal = r.ordinal.max(s.ordinal);
        file.len.store(sealed.unwrap_or(s.end), Ordering::Relaxed);
        let mut core = self.core.lock();
        let first_is_snapshot = s.items.first().is_some_and(|i| {
            matches!(i, Item::Entry { offset: SEGMENT_HEAD_LEN, header, .. }
                if header.kind == Kind::Snapshot)
        });
        if !first_is_snapshot && !s.items.is_empty() {
            self.lost_snapshot(r, &mut core, number);
        }
        for item in s.items {
            match item {
                Item::Gap { from, to, only, single } => {
                    r.note(format!("{}: bytes {from}..{to} are damaged", segment_name(number)));
                    file.damaged.store(true, Ordering::Relaxed);
                    let place = Place { segment: number, offset: from as u32 };
                    self.replay_gap(r, &mut core, place, only, single);
                }
                Item::Entry { offset, header, full } => {
                    let place =
                        Place { segment: number, offset: offset as u32 + HEADER_LEN as u32 };
                    let payload = payload_of(&bytes, offset, &header);
                    if last && !read_only && offset >= synced {
                        r.unsynced.push(Unsynced { header, payload, place, full });
                        continue;
                    }
                    let end = log_position(number, offset + super::entry::entry_len(payload.len()));
                    self.replay_entry(r, &mut core, &header, payload, Written { place, end }, full);
                }
            }
        }
        let mut end = if last && !read_only { synced } else { s.end };
        // Marks, and a head, are written again where they are: they are few, and with them this
        // segment ends where it says.
        if r.unsynced.iter().all(|u| matches!(u.header.kind, Kind::Mark | Kind::Snapshot)) {
            for u in std::mem::take(&mut r.unsynced) {
                let w = Written { place: u.place, end: 0 };
                self.replay_entry(r, &mut core, &u.header, u.payload, w, u.full);
            }
            if end < s.end && s.end <= bytes.len() as u64 {
                r.again_in_place = Some((end, bytes.slice(end as usize..s.end as usize)));
                end = s.end;
            }
        }
        r.previous = Some((number, end));
    }

    fn replay_gap(
        &self,
        r: &mut Replay,
        core: &mut Core,
        place: Place,
        only: Option<Kind>,
        single: bool,
    ) {
        let before = core.chain.position();
        let head = single && u64::from(place.offset) == SEGMENT_HEAD_LEN;
        match only {
            None if head => return,
            // Nothing that is not said again; or what it says is only more than is known.
            Some(Kind::Mark | Kind::Cursor | Kind::Join | Kind::Snapshot) => return,
            Some(Kind::Part) => r.part_gap = Some((before, false)),
            None if single && r.part_gap.is_none() => r.part_gap = Some((before, true)),
            Some(Kind::Attach) => core.chain.forget_all(),
            Some(Kind::Records | Kind::Grave) | None => r.distrust = true,
        }
        r.gap(place);
        r.trailing = true;
    }

    fn replay_entry(
        &self,
        r: &mut Replay,
        core: &mut Core,
        header: &Header,
        payload: Bytes,
        w: Written,
        full: bool,
    ) {
        // A watermark of an epoch whose attach is not in the log must not be believed: parts that
        // the attach made void would come back.
        if header.watermark.epoch <= core.chain.sum.log_epoch {
            core.chain.learn(header.watermark);
            if !self.apply(core) {
                return;
            }
        }
        r.newest = r.newest.max(header.watermark);
        let understood = match header.kind {
            Kind::Part => self.replay_part(r, core, payload, w, full),
            Kind::Records => self.replay_rows(&payload, header.len, w),
            Kind::Attach => decode_small::<AttachMark>(&payload).map(|m| {
                if m.epoch > core.chain.sum.log_epoch && !r.distrust {
                    r.settled(core);
                    core.lost = m.lost;
                }
                core.chain.replay_attach(m.epoch, &m.void, m.high);
            }),
            Kind::Join => decode_small::<JoinMark>(&payload).map(|m| {
                r.settled(core);
                core.chain.join(m.at);
                core.chain.learn(m.reach);
            }),
            Kind::Snapshot => decode_small(&payload).map(|s| self.adopt(r, core, s)),
            Kind::Grave => decode_small::<Vec<Key>>(&payload).map(|keys| {
                let mut index = self.index.write();
                for key in keys {
                    index.remove(&key);
                    core.graves.push(Grave { key, before: w.place });
                }
            }),
            Kind::Cursor => decode_small::<CursorMark>(&payload).map(|c| {
                core.chain.sum.cursor = Some(c.0);
            }),
            Kind::Mark => Some(()),
        };
        if understood.is_none() {
            r.note(format!("an entry of kind {:?} makes no sense", header.kind));
            r.gap(w.place);
            r.distrust = true;
        }
        self.apply(core);
        let position = core.chain.position();
        core.chain.sum.high = core.chain.sum.high.max(position);
    }

    fn replay_part(
        &self,
        r: &mut Replay,
        core: &mut Core,
        payload: Bytes,
        w: Written,
        full: bool,
    ) -> Option<()> {
        let p = part::decode_structure(payload).ok()?;
        let version = p.head.version;
        r.newest = r.newest.max(version);
        r.trailing = false;
        if core.chain.sum.voids.contains(&w.place) {
            return Some(());
        }
        let fresh = core.chain.known(version).is_none();
        if let Some((position, unsure)) = r.part_gap
            && fresh
        {
            r.part_gap = None;
            if p.head.predecessor <= position {
                // The chain goes on without what was lost. A part: then it was not of the chain.
                if unsure {
                    r.distrust = true;
                } else {
                    r.gaps.pop();
                }
            }
        }
        if !fresh && full && r.suspects.remove(&version) {
            // A damaged copy stood before this good one.
            core.chain.forget(version);
        }
        if !full && fresh {
            r.suspects.insert(version);
        }
        self.insert_part(core, &p, w);
        Some(())
    }

    fn replay_rows(&self, payload: &[u8], len: u32, w: Written) -> Option<()> {
        let rows = decode_rows(payload, len)?;
        let mut index = self.index.write();
        for row in rows {
            let place = Place { segment: w.place.segment, offset: w.place.offset + row.at };
            // A copy that was never made durable (compaction, cut off by a power cut, and something whole
            // behind it) must not hide the one it was made of.
            let whole = || {
                let value = payload.get(row.at as usize..)?.get(..row.len? as usize)?;
                Some(digest(&row.key, row.version, Some(value)) == row.digest)
            };
            let copied = index.get(&row.key).is_some_and(|s| s.version() == row.version);
            if copied && whole() == Some(false) {
                continue;
            }
            if let Some(slot) = Slot::new(row.version, row.digest, place, row.len) {
                index.put_newer(&row.key, slot);
            }
        }
        Some(())
    }
}
