//! Work that nobody waits for (copies, refreshes, looking behind reads) runs on threads of lower priority: here, in a
//! mount, and in the nodes, which are told by a header. Whoever waits for something meets it less then, however
//! large its pieces; a machine with nothing else to do gives it all the same.

use std::cell::Cell;

/// The header (RFC 9218) that says so; its lowest urgency is meant for background work.
pub(crate) const PRIORITY: &str = "priority";
pub(crate) const LOWEST: &str = "u=7";

/// Added to a thread's nice value: about a tenth of the share of others when there is not enough for all. Not
/// the least there is, since such a thread may hold a lock for a moment.
const NICE: i32 = 10;

thread_local! {
    static HERE: Cell<bool> = const { Cell::new(false) };
}

/// The calling thread works in the background from now on; there is no way back. Messages that it sends
/// have connections of their own, and nodes serve these in the background as well.
pub fn enter() {
    if !HERE.replace(true)
        && let Err(e) = rustix::process::nice(NICE)
    {
        tracing::warn!(error = %e, "cannot lower the priority of background work");
    }
}

/// Does the calling thread work in the background?
#[must_use]
pub fn is_here() -> bool {
    HERE.get()
}
