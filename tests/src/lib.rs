//! A tercet volume made of real processes, for tests that read like an operator's script.
//!
//! ```text
//! Cluster::start("name", Setup::default())    nodes of banks A, B, C; init; mount
//!   .kill(Bank::B) .pause(..) .wipe(..)        what breaks
//!   .path("f")                                 what an application sees
//!   .await_healthy(..) .await_equal(..)        what must be true afterwards
//! ```
//!
//! * [`programs`]: where the binaries are, what the machine must offer (a test never skips: it says
//!   what to install and fails)
//! * [`process`]: children with logs, signals and deadlines
//! * [`node`], [`mount`], [`cluster`]: one storage node, one mount, all of it together
//! * [`disk`], [`proxy`]: a disk that fills up or fails, a network that cuts off or repeats
//! * [`host`]: namespaces for the programs that use the mount, so that nothing survives a test
//! * [`oracle`]: what the banks hold, compared outside the mount
//! * [`crash`]: rounds of programs whose mount is killed
//! * [`matrix`]: every fault crossed with every load
//! * [`mod@reference`]: an ext4, to compare answers with
//! * [`journal`]: numbered operations; what is found must be the state after a prefix of them
//! * [`tree`], [`load`]: files whose hashes are kept outside, and work that goes on while
//!   something breaks
//! * [`random`]: seeds that a failure prints and `TERCET_SEED` replays
//!
//! Every wait has a deadline, and a watchdog kills the mount of a test that hangs, so that its
//! blocked system calls fail instead of blocking the run. A failed test keeps its directory with all
//! logs and data and prints where it is.

pub mod cluster;
pub mod crash;
pub mod disk;
pub mod host;
pub mod journal;
pub mod load;
pub mod matrix;
pub mod mount;
pub mod node;
pub mod oracle;
pub mod process;
pub mod programs;
pub mod proxy;
pub mod random;
pub mod reference;
pub mod tree;

pub use cluster::{Bank, Cluster, Setup};
pub use host::Host;
pub use mount::Mount;
pub use node::Node;
pub use process::until;
pub use random::Random;
