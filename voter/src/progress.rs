//! How far long work has come, for people: what runs now stands on a board, and goes when it ends or
//! is given up.

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Long work under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkStatus {
    /// `refresh` or `scrub`.
    pub what: String,
    /// Of what `done` and `total` count: `shards` or `bytes`.
    pub unit: String,
    /// So much is done.
    pub done: u64,
    /// Of so much, about; 0 = not known.
    pub total: u64,
    /// Milliseconds since it began.
    pub ms: u64,
}

/// One piece of work.
#[derive(Debug)]
pub(crate) struct Work {
    what: &'static str,
    unit: &'static str,
    began: Duration,
    pub(crate) done: AtomicU64,
    pub(crate) total: AtomicU64,
}

/// What runs now.
#[derive(Debug, Default)]
pub(crate) struct Board(Mutex<Vec<Arc<Work>>>);

/// A piece of work on the board, until it is dropped.
pub(crate) struct Ongoing<'a> {
    board: &'a Board,
    work: Arc<Work>,
}

impl Board {
    /// Begins a piece of work, `now` since the mount began.
    pub(crate) fn begin(
        &self,
        what: &'static str,
        unit: &'static str,
        total: u64,
        now: Duration,
    ) -> Ongoing<'_> {
        let total = AtomicU64::new(total);
        let work = Arc::new(Work { what, unit, began: now, done: AtomicU64::new(0), total });
        self.0.lock().push(Arc::clone(&work));
        Ongoing { board: self, work }
    }

    /// All that runs.
    pub(crate) fn show(&self, now: Duration) -> Vec<WorkStatus> {
        let board = self.0.lock();
        let row = |w: &Arc<Work>| WorkStatus {
            what: w.what.into(),
            unit: w.unit.into(),
            done: w.done.load(Ordering::Relaxed),
            total: w.total.load(Ordering::Relaxed),
            ms: now.saturating_sub(w.began).as_millis() as u64,
        };
        board.iter().map(row).collect()
    }
}

impl Deref for Ongoing<'_> {
    type Target = Work;
    fn deref(&self) -> &Work {
        &self.work
    }
}

impl Drop for Ongoing<'_> {
    fn drop(&mut self) {
        self.board.0.lock().retain(|w| !Arc::ptr_eq(w, &self.work));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_stands_on_the_board_while_it_goes_on() {
        let (board, at) = (Board::default(), Duration::from_millis);
        let scrub = board.begin("scrub", "bytes", 100, at(1_000));
        let refresh = board.begin("refresh", "shards", 3, at(2_000));
        scrub.done.store(40, Ordering::Relaxed);
        let seen = board.show(at(3_000));
        assert_eq!((seen[0].done, seen[0].total, seen[0].ms), (40, 100, 2_000));
        assert_eq!((seen[1].what.as_str(), seen[1].ms), ("refresh", 1_000));
        drop(scrub);
        assert_eq!(board.show(at(3_000)).len(), 1);
        drop(refresh);
        assert!(board.show(at(3_000)).is_empty());
    }
}
