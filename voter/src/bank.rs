//! The edge to a storage node: one asynchronous method, request and bulk in, reply and bulk out.
//!
//! [`http`] is the real one, [`memory`] runs the node's own service in this process over a disk in
//! memory, [`faulty`] wraps any of them and misbehaves on purpose, from a seed.

#[cfg(any(test, feature = "testing"))]
pub mod faulty;
pub mod http;
#[cfg(any(test, feature = "testing"))]
pub mod memory;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use std::time::Duration;
use storenode::wire::{Envelope, NodeError, Reply, Request};

/// One node of one bank, as the voter sees it: an address that may or may not answer, and that may
/// hold another store than yesterday (the [`Envelope`] names the store that is meant).
pub trait Bank: Send + Sync {
    /// Sends one message and waits for its reply, at most `deadline`.
    ///
    /// An error other than [`BankError::Refused`] says nothing about whether the node performed
    /// the request: it may still do so later, once or twice. Dropping the future does not recall
    /// the message either.
    ///
    /// # Errors
    /// [`BankError`]; the call returns at the deadline at the latest.
    fn call(
        &self,
        envelope: Envelope,
        request: Request,
        bulk: Vec<Bytes>,
        deadline: Duration,
    ) -> BoxFuture<'_, Result<(Reply, Bytes), BankError>>;

    /// Address, for messages to people.
    fn name(&self) -> String;
}

/// Why a node gave no usable answer.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BankError {
    /// No connection, or it broke.
    #[error("unreachable: {0}")]
    Unreachable(String),
    /// No reply within the deadline.
    #[error("no reply in time")]
    Timeout,
    /// The node answered and said no.
    #[error("{0}")]
    Refused(#[from] NodeError),
    /// The answer is not what the contract allows: short, damaged or of the wrong type.
    #[error("garbled reply: {0}")]
    Garbled(String),
}

impl BankError {
    /// The node, or the way to it, is away: nothing is known of what it holds. `false` = it
    /// answered.
    #[must_use]
    pub fn is_away(&self) -> bool {
        matches!(self, Self::Unreachable(_) | Self::Timeout)
    }
}
