//! The fuzz targets without a fuzzer: all corpora as they are, and seeded mutations of them. The seed
//! is printed; `FUZZ_SEED=n` runs that one, `FUZZ_RUNS=n` so many mutations of
//! each target, `FUZZ_TARGET=name` that target only.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use targets::{TARGETS, Target, engine, samples};

/// What one input may make the heap grow by, bytes: a frame and its decoded head
/// several times over, never what a length in the input claims.
const GROWTH_MAX: usize = 64 << 20;

/// Counts what is asked for and not given back. The address space would not do: malloc reserves
/// 64 MiB of it for each thread that allocates, whatever the thread asks for.
struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

fn taken(size: usize) {
    let live = LIVE.fetch_add(size, Ordering::Relaxed) + size;
    PEAK.fetch_max(live, Ordering::Relaxed);
}

#[allow(unsafe_code, reason = "an allocator cannot be written without")]
// SAFETY: every call goes on to the system's allocator with the arguments that came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        taken(layout.size());
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: `at` came from `System` with this layout.
        unsafe { System.dealloc(at, layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        taken(layout.size());
        // SAFETY: the caller keeps the contract of `alloc_zeroed`.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        taken(size);
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: `at` came from `System` with this layout; the caller keeps the contract.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static HEAP: Counting = Counting;

/// One input at a time: what the heap grew by is of that input and no other test's.
static ALONE: Mutex<()> = Mutex::new(());

struct Rng(u64);

impl Rng {
    fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    fn below(&mut self, n: usize) -> usize {
        (self.draw() % n.max(1) as u64) as usize
    }
}

/// A few changes of the kinds that find something: bits, edge values, lengths, pieces of another.
fn mutate(r: &mut Rng, sample: &[u8], other: &[u8]) -> Vec<u8> {
    let mut b = sample.to_vec();
    for _ in 0..1 + r.below(4) {
        let at = r.below(b.len());
        match r.below(8) {
            _ if b.is_empty() => b.push(r.draw() as u8),
            0 | 1 => b[at] ^= 1 << r.below(8),
            2 => b[at] = [0, 1, 0x7f, 0x80, 0xfb, 0xfc, 0xfd, 0xfe, 0xff][r.below(9)],
            3 => {
                let edge = [0, 1, u64::MAX, 1 << 31, 1 << 32, 1 << 40, 0x00ff_ffff][r.below(7)];
                let n = [2, 4, 8][r.below(3)].min(b.len() - at);
                b[at..at + n].copy_from_slice(&edge.to_le_bytes()[..n]);
            }
            4 => b.truncate(at),
            5 => b.insert(at, r.draw() as u8),
            6 => {
                b.remove(at);
            }
            _ => {
                let from = r.below(other.len());
                let piece = &other[from..(from + r.below(64)).min(other.len())];
                let to = (at + r.below(piece.len() + 1)).min(b.len());
                b.splice(at..to, piece.iter().copied());
            }
        }
    }
    b
}

fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target);
    let mut files: Vec<_> = std::fs::read_dir(&dir)
        .unwrap_or_else(|e| panic!("{}: {e}: run the program `corpus`", dir.display()))
        .map(|entry| entry.unwrap().path())
        .map(|p| {
            (p.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read(&p).unwrap())
        })
        .collect();
    files.sort();
    assert!(!files.is_empty(), "{} is empty: run the program `corpus`", dir.display());
    files
}

/// Runs the target; bytes by which the heap grew at most meanwhile.
fn run(name: &str, target: Target, what: &str, input: &[u8]) -> usize {
    let before = LIVE.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    if let Err(e) = catch_unwind(AssertUnwindSafe(|| target(input))) {
        let dir = std::env::temp_dir();
        let file = dir.join(format!("tercet-fuzz-{name}-{}", std::process::id()));
        let _ = std::fs::write(&file, input);
        eprintln!("target {name}, {what}: the input is {}", file.display());
        resume_unwind(e);
    }
    let grown = PEAK.load(Ordering::Relaxed) - before;
    assert!(grown < GROWTH_MAX, "target {name}, {what}: took {} MiB more", grown >> 20);
    grown
}

fn alone() -> std::sync::MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|s| s.parse().ok())
}

#[test]
fn every_decoder_survives_its_corpus_and_mutations() {
    let _alone = alone();
    let seed = number("FUZZ_SEED").unwrap_or(1);
    println!("seed {seed} (replay: FUZZ_SEED={seed})");
    let began = std::time::Instant::now();
    let only = std::env::var("FUZZ_TARGET").ok();
    for (name, target) in TARGETS {
        if only.as_ref().is_some_and(|only| only != name) {
            continue;
        }
        let files = corpus(name);
        let mut most = 0;
        for (file, bytes) in &files {
            most = most.max(run(name, target, file, bytes));
        }
        let mut r = Rng(seed);
        let usual = if matches!(name, "http" | "store") { 1500 } else { 6000 };
        let runs = number("FUZZ_RUNS").unwrap_or(usual);
        for n in 0..runs {
            let (file, sample) = &files[r.below(files.len())];
            let (_, other) = &files[r.below(files.len())];
            let input = mutate(&mut r, sample, other);
            let what = format!("mutation {n} of {file}, seed {seed}");
            most = most.max(run(name, target, &what, &input));
        }
        let (n, most) = (files.len(), most >> 10);
        println!(
            "{name}: {n} samples, {runs} mutations, {most} KiB at most, {:?}",
            began.elapsed()
        );
    }
}

#[test]
fn histories_spelled_by_bytes_match_a_table() {
    let _alone = alone();
    let seed = number("FUZZ_SEED").unwrap_or(1);
    println!("seed {seed} (replay: FUZZ_SEED={seed})");
    let mut r = Rng(seed);
    for n in 0..number("FUZZ_RUNS").unwrap_or(60) {
        let bytes: Vec<u8> = (0..r.below(1500)).map(|_| r.draw() as u8).collect();
        run("engine", engine, &format!("history {n}, seed {seed}"), &bytes);
    }
}

/// The committed corpora are what the generator makes today: a format that changed without them
/// would leave the fuzzer with messages that nobody sends.
#[test]
fn the_corpora_are_those_that_the_generator_makes() {
    let _alone = alone();
    for (target, samples) in samples::all() {
        let files = corpus(target);
        for (name, bytes) in samples {
            let file = files.iter().find(|f| f.0 == name);
            let same = file.is_some_and(|f| f.1 == bytes);
            assert!(same, "{target}/{name} is not up to date: run the program `corpus`");
        }
    }
}

/// A length that is believed is noticed, also if nothing is written there; threads alone are not.
#[test]
fn what_is_asked_for_is_counted() {
    let _alone = alone();
    let greedy: Target = |input| {
        let claimed = u64::from_le_bytes(input.try_into().unwrap());
        drop(std::hint::black_box(vec![0u8; claimed as usize]));
    };
    assert!(run("greedy", greedy, "honest", &4096u64.to_le_bytes()) < 1 << 20);
    let noticed = catch_unwind(|| run("greedy", greedy, "a lie", &(65u64 << 20).to_le_bytes()));
    assert!(noticed.is_err());
    let threads: Target = |_| {
        let many: Vec<_> = (0..32).map(|_| std::thread::spawn(|| vec![0u8; 100])).collect();
        many.into_iter().for_each(|t| drop(t.join()));
    };
    assert!(run("threads", threads, "32 threads", b"") < 4 << 20);
}

/// Each target has its file in `fuzz/`, and each file its target.
#[test]
fn the_fuzzer_has_every_target() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/fuzz_targets");
    let mut have: Vec<String> = std::fs::read_dir(dir)
        .unwrap()
        .map(|f| f.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned())
        .collect();
    have.sort();
    let mut want: Vec<_> = TARGETS.iter().map(|t| t.0).chain(["engine"]).collect();
    want.sort_unstable();
    assert_eq!(have, want);
}
