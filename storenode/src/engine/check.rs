//! The scrub of a running node's own files. Records are re-read by [`Engine::verify`] and repaired from
//! the other banks; here every other byte is looked at: heads, entries, tables, paddings, sidecars. What
//! is damaged is written anew from what the process knows, before a restart has to go by it.

use super::Engine;
use super::entry::{HEADER_LEN, Header, entry_len, seed};
use super::segment::{
    Item, SEGMENT_HEAD_LEN, SegmentHead, decode_segment_head, scan, segment_name, sidecar_name,
};
use super::sidecar::Sidecar;
use crate::wire::NodeError;
use bytes::Bytes;
use std::sync::atomic::Ordering;

/// What a look at one file found.
#[derive(Debug, Default)]
pub(crate) struct Checked {
    /// What is damaged, for people.
    pub(crate) bad: Vec<String>,
    /// Bytes read.
    pub(crate) bytes: u64,
    /// Number of the next segment.
    pub(crate) next: Option<u32>,
}

impl Engine {
    /// Looks at the first segment at or behind `from`, and at its sidecar. With `mend` a damaged sidecar
    /// is made again, a damaged segment compacted away, by [`Engine::maintain`].
    pub(crate) fn check_segment(&self, from: u32, mend: bool) -> Result<Checked, NodeError> {
        let found = self.files.read().range(from..).next().map(|(n, f)| (*n, f.clone()));
        let Some((number, file)) = found else { return Ok(Checked::default()) };
        let next = self.files.read().range(number + 1..).next().map(|(n, _)| *n);
        let len = match file.len.load(Ordering::Relaxed) {
            0 => {
                let tail = self.writer();
                // It was sealed just now, or all of it is written by what holds this lock.
                if tail.segment() == number {
                    tail.used()
                } else {
                    file.len.load(Ordering::Relaxed)
                }
            }
            len => len,
        };
        let mut out = Checked { bad: Vec::new(), bytes: len, next };
        let bytes = u32::try_from(len)
            .map_err(|_| "too long".to_owned())
            .and_then(|len| super::read_exact(&*file.file, 0, len));
        // Gone meanwhile: its records were moved.
        if !self.files.read().contains_key(&number) {
            return Ok(Checked { next, ..Checked::default() });
        }
        match bytes {
            Ok(bytes) => out.bad = self.damage_in(number, &bytes),
            Err(what) => out.bad.push(format!("{}: {what}", segment_name(number))),
        }
        if mend && !out.bad.is_empty() {
            self.give_up(number)?;
        }
        if file.sidecar.load(Ordering::Relaxed)
            && let Err(what) = Sidecar::load(&*self.disk, self.owner.store, number)
        {
            out.bad.push(format!("{}: {what}", sidecar_name(number)));
            if mend {
                file.sidecar.store(false, Ordering::Relaxed);
            }
        }
        for what in &out.bad {
            tracing::warn!(%what, mend, "scrub found damage in a file");
        }
        Ok(out)
    }

    /// What is damaged in a segment of which these are all bytes.
    fn damage_in(&self, number: u32, bytes: &Bytes) -> Vec<String> {
        let name = segment_name(number);
        let mut bad = Vec::new();
        match decode_segment_head(bytes) {
            SegmentHead::Good(owner, n) if (owner, n) == (self.owner, number) => {}
            _ => bad.push(format!("{name}: its head is damaged")),
        }
        let (store, len) = (self.owner.store, bytes.len() as u64);
        let mut at = SEGMENT_HEAD_LEN;
        for item in scan(bytes, store, number, Some(len), false, 0).items {
            match item {
                Item::Gap { from, to, .. } => {
                    bad.push(format!("{name}: bytes {from}..{to} are damaged"));
                    at = to;
                }
                Item::Entry { offset, header, full } => {
                    let end = offset + HEADER_LEN as u64 + u64::from(header.len);
                    at = offset + entry_len(header.len as usize);
                    let padding = &bytes[end as usize..at.min(len) as usize];
                    let own =
                        Header::decode(&bytes[offset as usize..], seed(store, number), offset);
                    if !full || own.is_none() || padding.iter().any(|b| *b != 0) {
                        bad.push(format!("{name}: the entry at {offset} is damaged"));
                    }
                }
            }
        }
        if at < len {
            bad.push(format!("{name}: bytes {at}..{len} are damaged"));
        }
        bad
    }

    /// Has a damaged segment compacted away. The sidecars before it are made again first: they may list
    /// a copy of which the tombstone stood in what is damaged.
    fn give_up(&self, number: u32) -> Result<(), NodeError> {
        let mut tail = self.writer();
        // The last one's head is the state's only home: it goes when there is another.
        let last = self.files.read().last_key_value().map(|(n, _)| *n) == Some(number);
        if last {
            self.begin_segment(&mut tail).map_err(|e| self.refusal(e))?;
        }
        drop(tail);
        let files = self.files.read();
        let Some(file) = files.get(&number) else { return Ok(()) };
        if !file.damaged.swap(true, Ordering::Relaxed) {
            for f in files.range(..=number).map(|(_, f)| f) {
                f.sidecar.store(false, Ordering::Relaxed);
            }
        }
        Ok(())
    }
}
