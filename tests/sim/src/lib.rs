//! The whole stack in one thread, from a seed: the real voter over real storage nodes, with simulated
//! network, disks and clock. One seed is one world; the same seed is the same run.
//!
//! ```text
//!   plan.rs    what happens, drawn from the seed: a list of steps, each with its own dice
//!   life.rs    carries it out; the history of contents is the oracle
//!   work.rs    what a mount is used for: keys.rs, straight on the voter; files.rs, the filesystem
//!   world.rs   nodes, network, faults; keeps the fault model
//!   node.rs    one process over one disk      wire.rs   messages: late, lost, twice
//!   disk.rs    a disk that dies and errs      trace.rs  events and their digest
//!   run.rs     one world from beginning to end; shrinking
//!   broken.rs  rules broken on purpose, which it must notice
//! ```

pub mod broken;
pub mod disk;
pub mod files;
pub mod keys;
pub mod life;
pub mod node;
pub mod plan;
pub mod run;
pub mod trace;
pub mod wire;
pub mod work;
pub mod world;
