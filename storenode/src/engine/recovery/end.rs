//! The end of a replay: what is written again, what is lost, and where the counters begin.

use super::super::chain::Place;
use super::super::entry::{
    AttachMark, Kind, decode_small, encode_small, entry_len, part_table_len,
};
use super::super::index::Slot;
use super::super::log::{NewEntry, Tail, WriteError, Written};
use super::super::segment::{SEGMENT_HEAD_LEN, segment_name, sidecar_name};
use super::super::{Core, Engine};
use super::{Replay, Unsynced, io_error};
use crate::service::OpenError;
use crate::wire::{Key, Version};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::Ordering;

/// Room wanted beside the tail that is written again, bytes: the head of its segment.
const SPARE_BYTES: u64 = 64 << 10;

impl Engine {
    /// Writes what may not be on the disk again, decides what is lost, and starts the counters.
    pub(super) fn finish(
        &self,
        r: &mut Replay,
        next: u32,
        read_only: bool,
    ) -> Result<(), OpenError> {
        let unsynced = std::mem::take(&mut r.unsynced);
        {
            let mut core = self.core.lock();
            let last = core.segment;
            core.segment = next;
            let watermark = core.chain.sum.watermark;
            *self.writer.lock() = Tail::new(next, r.ordinal, r.previous, watermark);
            // The head of a new segment must already tell of the damage.
            if unsynced.is_empty() {
                self.verdict(r, &mut core);
            } else if !r.gaps.is_empty() {
                core.lost = Some(Version::new(core.chain.sum.log_epoch, u64::MAX));
            }
            tracing::debug!(last, unsynced = unsynced.len(), "log replayed");
        }
        if !unsynced.is_empty() {
            self.rewrite(r, unsynced)?;
            let mut core = self.core.lock();
            self.verdict(r, &mut core);
        }
        if !read_only && let Some((last, len)) = r.previous {
            self.seal_last(last, len, r.again_in_place.take())?;
        }
        let mut core = self.core.lock();
        self.apply(&mut core);
        let (position, applied) = (core.chain.position(), core.chain.applied());
        core.steps.clear();
        core.durable_position = position;
        core.durable_applied = applied;
        core.headed = applied.max(core.chain.sum.watermark);
        core.lost = core.lost.filter(|lost| position < *lost);
        core.chain.sum.high = core.chain.sum.high.max(position);
        core.head_base = Version::ZERO;
        for f in self.files.read().values() {
            f.bases.lock().1 = core.chain.sum.base;
        }
        // Of what was to be written again only what was not is left.
        let index = self.index.read();
        let still = |(key, slot): &(Key, Slot)| index.get(key).is_some_and(|s| s == *slot);
        let again = std::mem::take(&mut core.again);
        core.again = again.into_iter().filter(still).collect();
        Ok(())
    }

    /// Cuts what is torn off the last segment and makes the rest durable.
    fn seal_last(
        &self,
        number: u32,
        len: u64,
        again: Option<(u64, Bytes)>,
    ) -> Result<(), OpenError> {
        let Some(file) = self.files.read().get(&number).cloned() else { return Ok(()) };
        let name = segment_name(number);
        if len <= SEGMENT_HEAD_LEN {
            // Never finished, or all of it was written again.
            self.disk.remove(&name).map_err(io_error(name.as_str()))?;
            self.disk.remove(&sidecar_name(number)).map_err(io_error(name.as_str()))?;
            self.disk.sync_dir().map_err(io_error(name.as_str()))?;
            self.files.write().remove(&number);
            return Ok(());
        }
        if let Some((at, bytes)) = again {
            file.file.write_at(&[&bytes], at).map_err(io_error(name.as_str()))?;
        }
        if file.file.len().map_err(io_error(name.as_str()))? != len {
            file.file.truncate(len).map_err(io_error(name.as_str()))?;
        }
        file.len.store(len, Ordering::Relaxed);
        if !file.sidecar.load(Ordering::Relaxed) {
            file.file.sync_data().map_err(io_error(name.as_str()))?;
        }
        Ok(())
    }

    /// Writes the unsynced tail again, into a new segment, and replays it from there.
    fn rewrite(&self, r: &mut Replay, unsynced: Vec<Unsynced>) -> Result<(), OpenError> {
        let mut moved: BTreeMap<Place, Place> = BTreeMap::new();
        let mut tail = self.writer.lock();
        // All of it is written again, or none: what stays where it is must not lie beyond the end that
        // the head of a new segment gives to its own.
        let bytes: u64 = unsynced.iter().map(|u| entry_len(u.payload.len())).sum();
        let full_disk = self.room().1 < bytes + SPARE_BYTES;
        for u in unsynced {
            let header = u.header;
            if header.kind == Kind::Part && !u.full {
                let mut core = self.core.lock();
                r.note("a part beyond the last mark is damaged".into());
                self.replay_gap(r, &mut core, u.place, Some(Kind::Part), true);
                continue;
            }
            let mut payload = u.payload;
            if header.kind == Kind::Snapshot {
                let w = Written { place: u.place, end: 0 };
                self.replay_entry(r, &mut self.core.lock(), &header, payload, w, true);
                continue;
            }
            if header.kind == Kind::Attach
                && let Some(mut mark) = decode_small::<AttachMark>(&payload)
            {
                let places: Vec<Place> =
                    mark.void.iter().filter_map(|p| moved.get(p).copied()).collect();
                mark.void.extend(places);
                payload = Bytes::from(encode_small(&mark));
            }
            let checked = match header.kind {
                Kind::Part => part_table_len(&payload).unwrap_or(payload.len()),
                Kind::Records => header.checked as usize,
                _ => payload.len(),
            };
            let full_crc = (header.kind == Kind::Part).then_some(header.full_crc);
            let entry = NewEntry { kind: header.kind, pieces: vec![&payload], checked, full_crc };
            let written =
                if full_disk { Err(WriteError::Full) } else { self.put(&mut tail, &[entry]) };
            let w = match written {
                Ok(w) => w[0],
                Err(WriteError::Full) => {
                    // No space to write it again: it stays where it is and is synced there.
                    if !full_disk {
                        let what = "no room to write the log's tail again".to_owned();
                        let error = io::Error::from(io::ErrorKind::StorageFull);
                        return Err(OpenError::Io { what, error });
                    }
                    if let Some((n, len)) = &mut r.previous {
                        *len = (*len).max(u64::from(u.place.offset) + payload.len() as u64);
                        *len = len.next_multiple_of(8);
                        debug_assert_eq!(*n, u.place.segment);
                    }
                    Written { place: u.place, end: 0 }
                }
                Err(WriteError::Failed(what)) => {
                    let error = io::Error::other(what);
                    return Err(OpenError::Io { what: "writing the log's tail".into(), error });
                }
            };
            moved.insert(u.place, w.place);
            let mut core = self.core.lock();
            self.replay_entry(r, &mut core, &header, payload, w, u.full);
        }
        if full_disk {
            tail.previous = r.previous;
        }
        drop(tail);
        self.log.sync_through(self.log.written()).map_err(|_| OpenError::Io {
            what: "syncing the log's tail".into(),
            error: io::Error::other("fdatasync failed"),
        })?;
        Ok(())
    }

    /// What is lost, and whether any position may be told.
    fn verdict(&self, r: &mut Replay, core: &mut Core) {
        // What a cursor claims to be here may be what was lost.
        if r.holed && core.chain.sum.cursor.take().is_some() {
            core.disowned = true;
        }
        for version in std::mem::take(&mut r.suspects) {
            if core.chain.pending.contains_key(&version) {
                r.note(format!("pending part {version} is damaged"));
                core.chain.forget(version);
                core.lost = core.lost.max(Some(version));
            }
        }
        if let Some(place) = r.head_lost.take() {
            r.gap(place);
            r.distrust = true;
        }
        if r.part_gap.take().is_some_and(|(_, unsure)| unsure) {
            r.distrust = true;
        }
        if !r.gaps.is_empty() {
            let unknown = Version::new(core.chain.sum.log_epoch.max(1), u64::MAX);
            let seen = core
                .chain
                .pending
                .last_key_value()
                .map_or(Version::ZERO, |(v, _)| *v)
                .max(core.chain.sum.high)
                .max(r.newest);
            if r.distrust {
                core.chain.lose_position();
            }
            // Nothing tells what a gap at the very end held.
            let lost = if r.trailing { unknown } else { seen };
            if core.chain.position() < lost {
                core.lost = core.lost.max(Some(lost));
            }
            core.damage.append(&mut r.gaps);
            tracing::warn!(
                position = %core.chain.position(),
                lost = ?core.lost,
                "the log is damaged: the position ends before it"
            );
        }
    }
}
