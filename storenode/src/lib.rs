//! A storage node: keys and values of one shard of one bank, in one directory, over HTTP.
//!
//! ```text
//!   client.rs ==HTTP==> server.rs -> service.rs -> engine.rs -> log, index -> disk.rs
//!   (voter uses this)   (bytes)      (refusals,     (positions,   (bytes)      (the only
//!                                     the protocol)  records)                   caller of std::fs)
//! ```
//! The node never interprets a key or a value.

#[cfg(any(feature = "client", feature = "server"))]
pub mod background;
#[cfg(any(feature = "client", feature = "server"))]
mod body;
#[cfg(feature = "server")]
mod buffers;
#[cfg(feature = "client")]
pub mod client;
#[cfg(feature = "server")]
pub mod disk;
#[cfg(feature = "server")]
mod engine;
pub mod frame;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
#[cfg(feature = "server")]
pub mod metrics;
#[cfg(feature = "server")]
pub mod offline;
pub mod part;
#[cfg(feature = "server")]
pub mod server;
#[cfg(feature = "server")]
pub mod service;
#[cfg(feature = "server")]
mod state;
pub mod token;
pub mod wire;
