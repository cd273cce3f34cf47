//! Numbered operations on a directory, and a journal of them kept outside the mount.
//!
//! Each operation follows from a seed and its number. The journal knows which were issued, which are
//! covered by a sync that returned, and what the directory looks like after any of them. What is found
//! after a crash must be the state after some prefix, not shorter than what was acknowledged. Every page
//! of 4 KiB names the operation that wrote it, and its other bytes follow from that name: a wrong byte is
//! seen without knowing which version to expect.

mod state;
mod steps;

pub use state::{Op, PAGE, State};

use state::page_bytes;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use steps::{grows, next, perform};

/// Which operations.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Style {
    /// 64 KiB appended at a time to files of 16 MiB; every 16th is synced.
    Append,
    /// A new file of up to 9,000 bytes, in directories of 100; every 8th is synced.
    SmallFiles,
    /// One page of a file of 256 KiB, in place, each synced.
    Overwrites,
    /// Among 60 names in two directories, often over an existing one; every 16th is synced.
    Renames,
    /// All of it, with links and unlinks; every 6th is synced.
    Mixed,
}

/// The journal.
#[derive(Clone, Debug)]
pub struct Journal {
    dir: PathBuf,
    style: Style,
    seed: u64,
    /// The state after `base` operations is known for certain.
    state: State,
    base: u64,
    /// What came then.
    ops: Vec<Op>,
    /// So many are covered by a sync that returned.
    acked: u64,
}

/// What a load met.
#[derive(Clone, Debug, Default)]
pub struct Met {
    /// Operations that ended well.
    pub done: u64,
    /// The first error; the load ends with it.
    pub error: Option<String>,
    /// Longest operation, with its sync.
    pub stall: Duration,
}

/// A journal at work on a thread of its own.
#[derive(Debug)]
pub struct Writing {
    thread: JoinHandle<(Journal, Met)>,
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
}

impl Journal {
    /// For an empty directory that is there.
    #[must_use]
    pub fn new(dir: &Path, style: Style, seed: u64) -> Self {
        let state = State::default();
        Self { dir: dir.into(), style, seed, state, base: 0, ops: Vec::new(), acked: 0 }
    }

    /// Operations whose durability was acknowledged.
    #[must_use]
    pub fn acked(&self) -> u64 {
        self.acked
    }

    /// Operations that were begun.
    #[must_use]
    pub fn issued(&self) -> u64 {
        self.base + self.ops.len() as u64
    }

    /// Goes on with the next operations until it is stopped or one fails.
    #[must_use]
    pub fn go_on(mut self, pause: Duration) -> Writing {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let thread = {
            let (stop, done) = (stop.clone(), done.clone());
            thread::spawn(move || {
                let mut met = Met::default();
                let mut now = self.latest();
                while !stop.load(Ordering::SeqCst) && met.error.is_none() {
                    let n = self.issued();
                    let (op, sync) = next(self.style, self.seed, n, &now);
                    self.ops.push(op.clone());
                    let began = Instant::now();
                    let result = perform(&self.dir, self.seed, n, &op, sync, &now);
                    met.stall = met.stall.max(began.elapsed());
                    match result {
                        Ok(()) => {
                            met.done += 1;
                            now.apply(n, &op);
                            if sync {
                                self.acked = n + 1;
                            }
                        }
                        Err(e) => {
                            let took = began.elapsed();
                            met.error = Some(format!("operation {n}, {op:?}, after {took:?}: {e}"));
                        }
                    }
                    done.fetch_add(1, Ordering::SeqCst);
                    thread::sleep(pause);
                }
                (self, met)
            })
        };
        Writing { thread, stop, done }
    }

    fn latest(&self) -> State {
        let mut state = self.state.clone();
        for (k, op) in self.ops.iter().enumerate() {
            state.apply(self.base + k as u64, op);
        }
        state
    }

    /// The directory is as after the last operation: nothing crashed.
    ///
    /// # Errors
    /// What is not so.
    pub fn check(&self) -> Result<(), String> {
        let found = State::found(&self.dir, self.seed)?;
        match self.latest().differences(&found, None) {
            d if d.is_empty() => Ok(()),
            d => Err(listed(&d, "not as it was written")),
        }
    }

    /// After a crash: the directory is as after some prefix of the operations, at least all that were
    /// acknowledged. Goes on from there; says how many operations were lost.
    ///
    /// # Errors
    /// What is not so.
    pub fn recover(&mut self) -> Result<u64, String> {
        let found = State::found(&self.dir, self.seed)?;
        let (mut exact, mut within, mut nearest) = (None, None, Vec::new());
        let mut state = self.state.clone();
        for n in self.base..=self.issued() {
            let op = usize::try_from(n - self.base).ok().and_then(|k| self.ops.get(k));
            let before = (n >= self.acked).then(|| state.clone());
            op.into_iter().for_each(|op| state.apply(n, op));
            let Some(before) = before else { continue };
            if let Some(path) = op.and_then(grows)
                && before.differences(&found, Some((&state, path))).is_empty()
            {
                within = Some((n, before.clone(), path.to_owned()));
            }
            let differences = before.differences(&found, None);
            if differences.is_empty() {
                exact = Some((n, before));
            } else if nearest.is_empty() || differences.len() < nearest.len() {
                nearest = differences;
            }
        }
        let issued = self.issued();
        let lost = match (exact, within) {
            (Some((n, state)), _) => self.adopt(state, None).map(|()| issued - n),
            (None, Some((n, state, path))) => self.adopt(state, Some(&path)).map(|()| issued - n),
            (None, None) => {
                let (dir, acked) = (self.dir.display(), self.acked);
                let what = format!("{dir}: no prefix of {issued} operations, {acked} acknowledged");
                Err(listed(&nearest, &what))
            }
        };
        // Numbers are not used twice: what was lost must not be taken for what comes.
        (self.base, self.acked) = (issued, issued);
        self.ops.clear();
        lost
    }

    /// What is there is this state, and perhaps a piece of what came next in `open`: that piece is
    /// taken away.
    fn adopt(&mut self, state: State, open: Option<&str>) -> Result<(), String> {
        let mend = |path: &str| -> io::Result<()> {
            let full = self.dir.join(path);
            match state.content(path) {
                None if full.exists() => fs::remove_file(&full)?,
                None => {}
                Some(old) => {
                    let file = File::options().write(true).open(&full)?;
                    file.set_len(old.len as u64)?;
                    for (page, stamp) in old.pages.iter().enumerate() {
                        let bytes = page_bytes(self.seed, *stamp, PAGE.min(old.len - page * PAGE));
                        file.write_all_at(&bytes, (page * PAGE) as u64)?;
                    }
                }
            }
            File::open(&self.dir)?.sync_all()
        };
        if let Some(path) = open {
            mend(path).map_err(|e| format!("after the recovery, {path}: {e}"))?;
        }
        self.state = state;
        Ok(())
    }
}

impl Writing {
    /// Operations begun and ended so far.
    #[must_use]
    pub fn progress(&self) -> u64 {
        self.done.load(Ordering::SeqCst)
    }

    /// Has it met an error?
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.thread.is_finished()
    }

    /// Stops it.
    ///
    /// # Panics
    /// When the load itself panicked.
    #[must_use]
    pub fn stop(self) -> (Journal, Met) {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().expect("a load does not panic")
    }
}

fn listed(differences: &[String], what: &str) -> String {
    let shown = &differences[..differences.len().min(12)];
    format!("{what}; {} differences:\n  {}", differences.len(), shown.join("\n  "))
}

#[cfg(test)]
mod tests {
    use super::*;

    const STYLES: [Style; 5] =
        [Style::Append, Style::SmallFiles, Style::Overwrites, Style::Renames, Style::Mixed];

    fn written(style: Style, ops: u64) -> (tempfile::TempDir, Journal) {
        let dir = tempfile::tempdir().unwrap();
        let writing = Journal::new(dir.path(), style, 7).go_on(Duration::ZERO);
        crate::until(Duration::from_secs(20), "operations", || writing.progress() >= ops);
        let (journal, met) = writing.stop();
        assert_eq!(met.error, None, "{style:?} on an ordinary filesystem");
        (dir, journal)
    }

    /// The load is its own oracle: it must agree with an ordinary filesystem first.
    #[test]
    fn every_style_agrees_with_an_ordinary_filesystem() {
        for style in STYLES {
            let (_dir, mut journal) = written(style, 150);
            journal.check().unwrap();
            assert_eq!(journal.recover(), Ok(0));
            journal.check().unwrap();
        }
    }

    /// The state after any prefix is accepted from the acknowledged one on, and no other.
    #[test]
    fn prefixes_are_told_from_everything_else() {
        for style in STYLES {
            let (_dir, journal) = written(style, 150);
            let acked = journal.acked();
            for cut in [acked.saturating_sub(1), acked, (acked + journal.issued()) / 2] {
                let there = tempfile::tempdir().unwrap();
                let mut state = State::default();
                for (n, op) in (0..cut).zip(&journal.ops) {
                    perform(there.path(), 7, n, op, false, &state).unwrap();
                    state.apply(n, op);
                }
                let mut journal = Journal { dir: there.path().into(), ..journal.clone() };
                let issued = journal.issued();
                let found = journal.recover();
                if cut < acked {
                    assert!(found.is_err(), "{style:?}: an acknowledged operation is missing");
                } else {
                    let lost = found.unwrap_or_else(|e| panic!("{style:?}, cut {cut}: {e}"));
                    assert!(lost <= issued - cut, "{style:?}: {lost} lost");
                    journal.check().unwrap();
                }
            }
        }
    }

    #[test]
    fn a_flipped_bit_a_lost_name_and_an_unordered_one_are_seen() {
        let (dir, mut journal) = written(Style::SmallFiles, 150);
        let file = dir.path().join("d0/f3");
        let mut bytes = fs::read(&file).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 4;
        fs::write(&file, &bytes).unwrap();
        assert!(journal.check().unwrap_err().contains("WRONG BYTES"));
        bytes[last] ^= 4;
        fs::write(&file, &bytes).unwrap();
        journal.check().unwrap();
        fs::remove_file(dir.path().join("d1/f120")).unwrap();
        assert!(journal.check().unwrap_err().contains("d1/f120"));
        assert!(journal.recover().unwrap_err().contains("no prefix"), "later ones are there");
    }
}
