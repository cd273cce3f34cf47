//! Three-bank majority voter.

pub mod bank;
pub mod commit;
pub mod memory;
pub mod quorum;
pub mod volume;
pub mod vote;
