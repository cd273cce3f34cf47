//! Work that goes on while something breaks, and notes every error and its longest stall.

use crate::random::{Random, block};
use rustix::fs::{Advice, fadvise};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Bytes per write or read.
pub const CHUNK: usize = 64 << 10;

/// How a load went.
#[derive(Debug)]
pub struct Report {
    /// Operations that succeeded.
    pub done: u64,
    /// What failed, first 20.
    pub errors: Vec<String>,
    /// Longest operation: a write with its sync, a read, a file saved with all that belongs to it.
    pub longest_stall: Duration,
    /// The longest single call of the system, and when it was.
    longest_call: (Duration, String),
    began: Instant,
}

impl Report {
    fn begin() -> Self {
        let longest_call = (Duration::ZERO, "none".to_owned());
        let (longest_stall, began) = (Duration::ZERO, Instant::now());
        Self { done: 0, errors: Vec::new(), longest_stall, longest_call, began }
    }

    /// Makes one call, and notes how long it took.
    fn call<T>(&mut self, name: &str, act: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let began = Instant::now();
        let result = act();
        let took = began.elapsed();
        if took > self.longest_call.0 {
            let at = (began - self.began).as_secs_f64();
            self.longest_call = (took, format!("{name} at {at:.1} s"));
        }
        result
    }

    fn note(&mut self, what: &str, began: Instant, result: io::Result<()>) {
        let took = began.elapsed();
        self.longest_stall = self.longest_stall.max(took);
        match result {
            Ok(()) => self.done += 1,
            Err(e) if self.errors.len() < 20 => {
                self.errors.push(format!("{what} after {took:?}: {e}"));
            }
            Err(_) => {}
        }
    }

    /// No error, and no operation longer than `stall_max`. The promise is 1 s; tests on shared
    /// machines assert with slack and print what they measured.
    ///
    /// # Panics
    /// When an operation failed or took longer.
    pub fn assert_unharmed(&self, what: &str, stall_max: Duration) {
        let (call, name) = &self.longest_call;
        println!(
            "{what}: {} operations, longest stall {:.2?}; longest call {call:.2?} ({name})",
            self.done, self.longest_stall
        );
        assert!(self.errors.is_empty(), "{what}: {}", self.errors.join("\n"));
        assert!(self.done > 0, "{what}: did nothing");
        assert!(self.longest_stall < stall_max, "{what}: stalled {:?}", self.longest_stall);
    }
}

/// A load on a thread of its own.
#[derive(Debug)]
pub struct Load {
    thread: Option<JoinHandle<Report>>,
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
}

impl Load {
    fn spawn(work: impl FnOnce(&AtomicBool, &AtomicU64) -> Report + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let done = Arc::new(AtomicU64::new(0));
        let thread = {
            let (stop, done) = (stop.clone(), done.clone());
            Some(thread::spawn(move || work(&stop, &done)))
        };
        Self { thread, stop, done }
    }

    /// Writes `chunks` generated chunks in order, `fdatasync` every 16 (1 MiB), over at least
    /// `at_least`; ends by itself. Check with [`check_file`].
    #[must_use]
    pub fn write_file(path: PathBuf, seed: u64, chunks: u64, at_least: Duration) -> Self {
        Self::spawn(move |_, done| {
            let mut report = Report::begin();
            let file = match File::create(&path) {
                Ok(f) => f,
                Err(e) => {
                    report.errors.push(format!("create: {e}"));
                    return report;
                }
            };
            let start = Instant::now();
            for n in 0..chunks {
                let due = at_least.mul_f64(n as f64 / chunks as f64);
                thread::sleep(due.saturating_sub(start.elapsed()));
                let data = block(seed, n, CHUNK);
                let began = Instant::now();
                let mut result =
                    report.call("write", || file.write_all_at(&data, n * CHUNK as u64));
                if n % 16 == 15 && result.is_ok() {
                    result = report.call("fdatasync", || file.sync_data());
                }
                report.note(&format!("write of chunk {n}"), began, result);
                done.store(n + 1, Ordering::SeqCst);
            }
            let began = Instant::now();
            let result = report.call("fsync", || file.sync_all());
            report.note("last fsync", began, result);
            report
        })
    }

    /// Reads chunks of a file made by [`make_file`] at random, past the kernel's cache, and checks
    /// every byte, until stopped.
    #[must_use]
    pub fn read_file(path: PathBuf, seed: u64, chunks: u64) -> Self {
        Self::spawn(move |stop, done| {
            let mut report = Report::begin();
            let mut random = Random::new(seed);
            let mut buf = vec![0; CHUNK];
            while !stop.load(Ordering::SeqCst) {
                let n = random.below(chunks);
                let want = block(seed, n, CHUNK);
                let began = Instant::now();
                let result = report.call("open", || File::open(&path)).and_then(|file| {
                    fadvise(&file, 0, None, Advice::DontNeed)?;
                    report.call("read", || file.read_exact_at(&mut buf, n * CHUNK as u64))?;
                    if buf == want { Ok(()) } else { Err(io::Error::other("WRONG BYTES")) }
                });
                report.note(&format!("read of chunk {n}"), began, result);
                done.fetch_add(1, Ordering::SeqCst);
                thread::sleep(Duration::from_millis(1));
            }
            report
        })
    }

    /// Small files as programs save them: write a temporary, fsync, rename over the old one, read it
    /// back, list the directory, delete now and then; until stopped.
    #[must_use]
    pub fn small_files(dir: PathBuf) -> Self {
        Self::spawn(move |stop, done| {
            let mut report = Report::begin();
            for n in 0.. {
                if stop.load(Ordering::SeqCst) {
                    break;
                }
                let began = Instant::now();
                let result = save_and_check(&mut report, &dir, n);
                report.note(&format!("round {n}"), began, result);
                done.fetch_add(1, Ordering::SeqCst);
                thread::sleep(Duration::from_millis(2));
            }
            report
        })
    }

    /// Operations that ended so far, well or not.
    #[must_use]
    pub fn progress(&self) -> u64 {
        self.done.load(Ordering::SeqCst)
    }

    /// Has it come to its end?
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Stops it and says how it went.
    ///
    /// # Panics
    /// When the load itself panicked.
    #[must_use]
    pub fn stop(mut self) -> Report {
        self.stop.store(true, Ordering::SeqCst);
        self.report()
    }

    /// Lets it come to its end and says how it went.
    ///
    /// # Panics
    /// When the load itself panicked.
    #[must_use]
    pub fn finish(mut self) -> Report {
        self.report()
    }

    fn report(&mut self) -> Report {
        let thread = self.thread.take().expect("a load is asked once");
        thread.join().expect("a load does not panic")
    }
}

fn save_and_check(report: &mut Report, dir: &Path, n: u64) -> io::Result<()> {
    let name = dir.join(format!("file-{}", n % 40));
    let fresh = dir.join(format!("file-{}.new", n % 40));
    let data = block(77, n, 3000);
    let file = report.call("create", || File::create(&fresh))?;
    report.call("write", || file.write_all_at(&data, 0))?;
    report.call("fsync", || file.sync_all())?;
    report.call("rename", || std::fs::rename(&fresh, &name))?;
    if report.call("read", || std::fs::read(&name))? != data {
        return Err(io::Error::other("WRONG BYTES"));
    }
    if n % 10 == 9 {
        report.call("unlink", || std::fs::remove_file(&name))?;
    }
    // Never a short listing: 40 names come and go, and each is deleted only by this thread.
    let list = || std::fs::read_dir(dir)?.collect::<io::Result<Vec<_>>>();
    let listed = report.call("listing", list)?.len() as u64;
    let want = expected_names(n);
    if listed == want {
        Ok(())
    } else {
        Err(io::Error::other(format!("SHORT LISTING: {listed}, not {want}")))
    }
}

/// How many names [`save_and_check`] has left behind after round `n`.
fn expected_names(n: u64) -> u64 {
    let mut present = [false; 40];
    for k in n.saturating_sub(39)..=n {
        present[usize::try_from(k % 40).unwrap_or(0)] = k % 10 != 9;
    }
    present.iter().filter(|p| **p).count() as u64
}

/// Writes and syncs a file of `chunks` generated chunks.
///
/// # Panics
/// When that fails.
pub fn make_file(path: &Path, seed: u64, chunks: u64) {
    let file = File::create(path).expect("create");
    for n in 0..chunks {
        file.write_all_at(&block(seed, n, CHUNK), n * CHUNK as u64).expect("write");
    }
    file.sync_all().expect("fsync");
}

/// Compares a file with what it was generated from.
///
/// # Panics
/// When a byte differs or cannot be read.
pub fn check_file(path: &Path, seed: u64, chunks: u64) {
    let file = File::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let len = file.metadata().expect("fstat").len();
    assert_eq!(len, chunks * CHUNK as u64, "length of {}", path.display());
    let mut buf = vec![0; CHUNK];
    for n in 0..chunks {
        file.read_exact_at(&mut buf, n * CHUNK as u64)
            .unwrap_or_else(|e| panic!("{} chunk {n}: {e}", path.display()));
        assert!(buf == block(seed, n, CHUNK), "{} chunk {n}: WRONG BYTES", path.display());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The load is its own oracle: it must agree with an ordinary filesystem first.
    #[test]
    fn loads_run_clean_on_an_ordinary_filesystem() {
        let dir = tempfile::tempdir().unwrap();
        for n in 0..200 {
            save_and_check(&mut Report::begin(), dir.path(), n).unwrap();
        }
        make_file(&dir.path().join("f"), 5, 20);
        check_file(&dir.path().join("f"), 5, 20);
        let reader = Load::read_file(dir.path().join("f"), 5, 20);
        crate::until(Duration::from_secs(5), "some reads", || reader.progress() > 5);
        reader.stop().assert_unharmed("reads", Duration::from_secs(3));
    }
}
