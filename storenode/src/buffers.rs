//! Memory for large values and messages on their way, used again: fresh memory costs a page fault for
//! every 4 KiB, which is more than the copy into it does.

use bytes::Bytes;
use parking_lot::Mutex;
use std::sync::Arc;

/// What is shorter gets memory of its own, bytes.
const LEND_MIN: usize = 64 << 10;
/// What is longer too.
const LEND_MAX: usize = 32 << 20;
/// Kept when nobody uses them, bytes.
const KEPT_MAX: usize = 48 << 20;

/// Buffers that wait for their next use.
#[derive(Default)]
pub(crate) struct Buffers(Arc<Mutex<Vec<Vec<u8>>>>);

/// One in use; it goes back when the last slice of it is dropped.
pub(crate) struct Lent {
    buffer: Vec<u8>,
    start: usize,
    len: usize,
    home: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.buffer[self.start..self.len]
    }
}

impl Lent {
    /// Takes more bytes in.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.buffer.truncate(self.len);
        self.buffer.extend_from_slice(bytes);
        self.len = self.buffer.len();
    }

    /// All that was taken in.
    pub(crate) fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if !(LEND_MIN..=LEND_MAX).contains(&self.buffer.capacity()) {
            return;
        }
        let mut idle = self.home.lock();
        let kept: usize = idle.iter().map(Vec::capacity).sum();
        if kept + self.buffer.capacity() <= KEPT_MAX {
            idle.push(std::mem::take(&mut self.buffer));
        }
    }
}

impl Buffers {
    /// `len` bytes as `read` fills them, or nothing if it cannot. They are not zeros before.
    pub(crate) fn fill(&self, len: usize, read: impl FnOnce(&mut [u8]) -> bool) -> Option<Bytes> {
        if !(LEND_MIN..=LEND_MAX).contains(&len) {
            let mut buffer = vec![0; len];
            return read(&mut buffer).then(|| Bytes::from(buffer));
        }
        let mut lent = self.take(len);
        if lent.buffer.len() < len {
            lent.buffer.resize(len, 0);
        }
        lent.len = len;
        read(&mut lent.buffer[..len]).then(|| lent.freeze())
    }

    /// Room for `len` bytes that come in pieces, `before` bytes behind an address that is a multiple of 8 (as all
    /// allocators give them; nothing but speed counts on it).
    pub(crate) fn gather(&self, len: usize, before: usize) -> Lent {
        let mut lent = self.take(len);
        lent.buffer.clear();
        lent.buffer.reserve_exact(before + len);
        lent.buffer.resize(before, 0);
        (lent.start, lent.len) = (before, before);
        lent
    }

    fn take(&self, len: usize) -> Lent {
        let lends = (LEND_MIN..=LEND_MAX).contains(&len);
        let buffer = if lends { self.0.lock().pop() } else { None };
        let buffer = buffer.unwrap_or_default();
        Lent { buffer, start: 0, len: 0, home: Arc::clone(&self.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(buffers: &Buffers, len: usize, with: u8) -> Bytes {
        let read = |into: &mut [u8]| {
            into.fill(with);
            true
        };
        buffers.fill(len, read).unwrap()
    }

    #[test]
    fn a_buffer_is_used_again_when_its_last_slice_is_gone_and_not_before() {
        let buffers = Buffers::default();
        let first = filled(&buffers, LEND_MIN + 1, 1);
        let slice = first.slice(7..9);
        drop(first);
        let second = filled(&buffers, LEND_MIN, 2);
        assert_eq!(&slice[..], [1, 1], "still held");
        assert_eq!(second.len(), LEND_MIN);
        drop((slice, second));
        assert_eq!(buffers.0.lock().len(), 2);
        let third = filled(&buffers, LEND_MIN, 3);
        assert!(third.iter().all(|b| *b == 3) && third.len() == LEND_MIN);
        assert_eq!(buffers.0.lock().len(), 1);
        drop(third);
        assert!(buffers.fill(LEND_MIN, |_| false).is_none());
        assert_eq!(buffers.0.lock().len(), 2, "what could not be filled comes back too");
    }

    #[test]
    fn what_is_gathered_has_nothing_of_what_was_there() {
        let buffers = Buffers::default();
        for (len, kept) in [(LEND_MIN, 1), (LEND_MIN * 2, 1), (10, 1), (LEND_MAX + 1, 1)] {
            let mut gathered = buffers.gather(len, len % 7);
            let half = vec![len as u8; len / 2];
            gathered.push(&half);
            gathered.push(&half);
            let bytes = gathered.freeze();
            assert!(bytes.len() == half.len() * 2 && bytes.iter().all(|b| *b == len as u8));
            drop(bytes);
            assert_eq!(buffers.0.lock().len(), kept, "{len}");
            drop(filled(&buffers, LEND_MIN, 77));
        }
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let buffers = Buffers::default();
        let many: Vec<Bytes> = (0..20).map(|_| filled(&buffers, LEND_MAX, 1)).collect();
        drop(many);
        let kept: usize = buffers.0.lock().iter().map(Vec::capacity).sum();
        assert!(kept <= KEPT_MAX && kept > 0, "{kept}");
    }
}
