//! Everything that reads bytes which somebody else wrote, as functions from bytes to nothing: they
//! return, or the product has a bug.
//!
//! `fuzz/` hands each to libFuzzer; the test `decoders` runs all of them over the corpora in
//! `fuzz/corpus` and over seeded mutations, so that they hold where there is no fuzzer.

#[path = "../../../storenode/tests/history/mod.rs"]
#[allow(unreachable_pub, reason = "shared with storenode's own tests")]
mod history;
#[path = "../../../storenode/tests/support/mod.rs"]
#[allow(unreachable_pub, reason = "shared with storenode's own tests")]
mod support;

pub mod http;
pub mod samples;

/// Takes any bytes; panics when a property does not hold.
pub type Target = fn(&[u8]);

/// All targets, by the names that `fuzz/fuzz_targets` and `fuzz/corpus` use.
pub const TARGETS: [(&str, Target); 14] = [
    ("request", storenode::fuzzing::request),
    ("reply", storenode::fuzzing::reply),
    ("part", storenode::fuzzing::part),
    ("entry", storenode::fuzzing::entry),
    ("segment", storenode::fuzzing::segment),
    ("sidecar", storenode::fuzzing::sidecar),
    ("state", storenode::fuzzing::state),
    ("store", storenode::fuzzing::store),
    ("record", fs::fuzzing::record),
    ("key", fs::fuzzing::key),
    ("superblock", fs::fuzzing::superblock),
    ("control", fs::fuzzing::control),
    ("config", fs::fuzzing::config),
    ("http", http::http),
];

/// Operations on a node, spelled by the bytes, compared with a table in memory. Not one of
/// [`TARGETS`]: any bytes are a valid history, so it needs no corpus of real messages, and
/// storenode's own test `model` runs it from seeds.
pub fn engine(data: &[u8]) {
    let mut history = history::History::new(history::Spelled(data));
    history.run(400).expect("a disk in memory that works");
}

/// Runs one target by its name.
///
/// # Panics
/// When there is none of that name, or a property does not hold.
pub fn run(name: &str, data: &[u8]) {
    let known = TARGETS.iter().copied().chain([("engine", engine as Target)]);
    let (_, target) = known.into_iter().find(|t| t.0 == name).expect("a target of that name");
    target(data);
}
