//! The filesystem of tercet: POSIX over voted records.
//!
//! ```text
//!   fuse.rs -> filesystem.rs -> ops/* over txn.rs -> state.rs (one mutex) -> voter::volume
//!   (kernel)   (one async fn    (one synchronous    (caches, references,     (atomic groups on
//!               per request)     fn per decision)    one submit per op)       three banks)
//! ```

// The filesystem.
pub mod acl;
mod cache;
pub mod consistency;
pub mod dead;
mod dircache;
pub mod errno;
pub mod filesystem;
pub mod key;
pub mod limits;
pub mod name;
mod ops;
pub mod record;
pub mod span;
mod state;
pub mod superblock;
mod txn;

// The mount and its command line.
pub mod backend;
pub mod check;
pub mod cli;
pub mod config;
pub mod control;
pub mod daemon;
pub mod fuse;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
pub mod metrics;
pub mod mount;
pub mod places;
pub mod session;
pub mod telemetry;
