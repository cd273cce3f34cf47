//! The traps of the protocol, one by one.
