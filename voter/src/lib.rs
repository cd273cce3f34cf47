//! Three-bank majority voter: versions, votes, commits, opening, repair. Never knows what a value
//! means.
//!
//! ```text
//!  volume.rs     the edge to the filesystem: submit, get, scan, sync
//!  replicated.rs the real volume: owns the tasks
//!    open.rs       fence, read tails, settle, opening entry  (decided by opening.rs)
//!    writer.rs     open group, seal, what is in flight       (committed by commit.rs)
//!    link.rs       one task per replica: attach, send, beat
//!    catchup.rs    delta, refill, admission
//!    read.rs       ask two, tally, ask the third             (vote.rs, quorum.rs)
//!    repair.rs     mend what differs
//!    refresh.rs    compare set-hashes, scrub
//!    status.rs     for people
//!  observer.rs   reading beside the mount that writes
//!  bank.rs       the edge to a node; http, memory, faulty
//! ```
//! Fault model in one paragraph: any one bank may be dead, hung, slow, empty, stale, rolled back or
//! corrupt, at any time; a record damaged on one bank while another bank is dead still reads right;
//! with two banks gone everything is refused until one returns, and nothing is guessed.

pub mod bank;
pub mod commit;
pub mod configuration;
pub mod course;
pub mod health;
pub mod limits;
pub mod memory;
pub mod metrics;
pub mod observer;
pub mod open;
pub mod opening;
pub mod pace;
pub mod plan;
pub mod progress;
pub mod quorum;
pub mod refresh;
pub mod replicated;
pub mod status;
pub mod volume;
pub mod vote;

mod background;
mod catchup;
mod link;
mod read;
mod repair;
mod shared;
mod together;
mod watched;
mod writer;

pub use limits::Limits;
pub use observer::Observer;
pub use open::OpenError;
pub use replicated::{ClusterConfig, Nodes, OpenOptions, Replicated};
pub use status::{ClusterStatus, survey};
/// The messages and identities of nodes, for the tools around a mount.
pub use storenode::wire;
