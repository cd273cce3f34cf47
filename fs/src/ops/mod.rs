//! The operations: one synchronous function each, over a [`crate::txn::Txn`]. They decide; they
//! never wait. What they miss in the caches they say, and are called again.

pub(crate) mod attr;
pub(crate) mod data;
pub(crate) mod dir;
pub(crate) mod make;
pub(crate) mod reclaim;
pub(crate) mod remove;
pub(crate) mod rename;
pub(crate) mod xattr;
