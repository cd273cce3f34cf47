//! Three-bank majority voter.

pub mod bank;
pub mod memory;
pub mod volume;
