//! Three-bank majority voter.

pub mod volume;
