//! Where log lines go: standard error, which is the log file when the mount runs as a daemon.
//!
//! `TERCET_LOG` filters as `RUST_LOG` does elsewhere (`TERCET_LOG=debug`, `TERCET_LOG=fs=trace`).

use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;

/// Environment variable with the filter.
pub const FILTER: &str = "TERCET_LOG";

/// Starts logging; `default` holds where [`FILTER`] is not set.
pub fn start(default: &str) {
    let filter = EnvFilter::try_from_env(FILTER).unwrap_or_else(|_| EnvFilter::new(default));
    // A second start (tests) changes nothing.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(true)
        // A line that cannot be written is lost; told on standard error too, it would be a panic.
        .log_internal_errors(false)
        .try_init();
}
