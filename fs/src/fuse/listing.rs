//! How many entries of a directory are asked for at once.

use crate::filesystem::DirEntry;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Entries of a listing asked for at once: at first, and at most.
const LISTING_FIRST: usize = 64;
const LISTING_MAX: usize = 2048;

/// How many entries fit into the kernel's buffer. fuser does not tell its size, so it is learned
/// from the last reply.
#[derive(Clone)]
pub(super) struct Listing(Arc<AtomicUsize>);

impl Default for Listing {
    fn default() -> Self {
        Self(Arc::new(AtomicUsize::new(LISTING_FIRST)))
    }
}

impl Listing {
    pub(super) fn ask(&self) -> usize {
        self.0.load(Relaxed)
    }

    /// Adds entries until `add` says that one did not fit; how many did.
    pub(super) fn fill(
        &self,
        asked: usize,
        entries: &[DirEntry],
        mut add: impl FnMut(&DirEntry) -> bool,
    ) -> usize {
        let taken = entries.iter().take_while(|e| !add(e)).count();
        if entries.len() == asked || taken < entries.len() {
            self.learn(entries.len(), taken);
        }
        taken
    }

    /// Of `asked` entries that there were, so many were taken.
    fn learn(&self, asked: usize, taken: usize) {
        let next = if taken < asked { taken + 1 } else { asked * 2 };
        self.0.store(next.clamp(1, LISTING_MAX), Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listings_learn_what_fits() {
        let listing = Listing::default();
        listing.learn(64, 64);
        assert_eq!(listing.ask(), 128);
        listing.learn(128, 90);
        assert_eq!(listing.ask(), 91);
        listing.learn(91, 0);
        assert_eq!(listing.ask(), 1);
    }
}
