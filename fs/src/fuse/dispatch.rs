//! From a request to its reply: poll once where it was read, and only what has to wait moves to
//! the runtime, under a deadline.
//!
//! Most requests are answered from memory; for them a task switch would cost more than the work.
//! The others may wait for banks, and fuser answers `INTERRUPT` with `ENOSYS`, so a waiting
//! application cannot be killed: hence the deadline, after which it gets `EIO`. A request that is
//! given up is dropped between two steps, each of which is atomic.

use super::convert;
use crate::filesystem::{FileSystem, FsError};
use crate::metrics::{Ending, Metrics, Operation};
use fuser::{Errno, Request};
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tracing::Instrument as _;

/// Warnings about failed requests, at most, per second; the others are counted.
const WARNINGS_PER_SECOND: u64 = 10;

/// What all requests share.
pub(super) struct Dispatch {
    pub(super) fs: Arc<FileSystem>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) runtime: Handle,
    pub(super) deadline: Duration,
    pub(super) log: Arc<ErrorLog>,
}

impl Dispatch {
    /// Works on one request until `reply` has been called, here or in the runtime.
    pub(super) fn run<T: Send + 'static>(
        &self,
        operation: Operation,
        req: &Request,
        work: impl Future<Output = Result<T, FsError>> + Send + 'static,
        reply: impl FnOnce(Result<T, Errno>) + Send + 'static,
    ) {
        let started = Instant::now();
        let unique = req.unique().0;
        self.fs.somebody_asks();
        let mut work = Box::pin(work);
        let polled = {
            // What waits registers its timers with the runtime, also when polled from here.
            let _context = self.runtime.enter();
            work.as_mut().poll(&mut Context::from_waker(Waker::noop()))
        };
        let mut finish = Finish {
            operation,
            unique,
            started,
            metrics: self.metrics.clone(),
            log: self.log.clone(),
            inline: true,
        };
        match polled {
            Poll::Ready(result) => finish.reply(Ok(result), reply),
            Poll::Pending => {
                finish.inline = false;
                let deadline = self.deadline;
                let waiting = Waiting::new(&self.metrics);
                let span = tracing::debug_span!("request", op = operation.label(), unique);
                self.runtime.spawn(
                    async move {
                        // The waker above was a dummy: being polled again here, first thing,
                        // registers the task's own.
                        let result = tokio::time::timeout(deadline, work).await;
                        finish.reply(result.map_err(|_| ()), reply);
                        drop(waiting);
                    }
                    .instrument(span),
                );
            }
        }
    }
}

/// Counts a request as waiting while it lives.
struct Waiting(Arc<Metrics>);

impl Waiting {
    fn new(metrics: &Arc<Metrics>) -> Self {
        metrics.waiting.fetch_add(1, Relaxed);
        Self(metrics.clone())
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Relaxed);
    }
}

struct Finish {
    operation: Operation,
    unique: u64,
    started: Instant,
    metrics: Arc<Metrics>,
    log: Arc<ErrorLog>,
    inline: bool,
}

impl Finish {
    /// `Err(())` = the deadline.
    fn reply<T>(
        self,
        result: Result<Result<T, FsError>, ()>,
        reply: impl FnOnce(Result<T, Errno>),
    ) {
        let took = self.started.elapsed();
        let (answer, timeout) = match result {
            Ok(Ok(value)) => (Ok(value), false),
            Ok(Err(e)) => {
                self.log.failed(self.operation, self.unique, &e);
                (Err(convert::errno(e.errno)), false)
            }
            Err(()) => {
                let e = FsError::because(libc::EIO, format!("no answer within {took:.1?}"));
                self.log.failed(self.operation, self.unique, &e);
                (Err(Errno::EIO), true)
            }
        };
        let ending = Ending { took, error: answer.is_err(), inline: self.inline, timeout };
        // Before the reply: who has the reply may look at the counters.
        self.metrics.count(self.operation, ending);
        reply(answer);
    }
}

/// Logs failed requests at the level that their kind deserves, and not without end.
#[derive(Debug)]
pub(super) struct ErrorLog {
    since: Instant,
    second: AtomicU64,
    warnings: AtomicU64,
}

impl Default for ErrorLog {
    fn default() -> Self {
        Self { since: Instant::now(), second: AtomicU64::new(0), warnings: AtomicU64::new(0) }
    }
}

impl ErrorLog {
    fn failed(&self, operation: Operation, unique: u64, e: &FsError) {
        let op = operation.label();
        if !matches!(e.errno, libc::EIO | libc::ENOSPC | libc::ENOSYS) {
            tracing::debug!(op, unique, "{e}");
            return;
        }
        let second = self.since.elapsed().as_secs();
        if self.second.swap(second, Relaxed) != second {
            let held_back = self.warnings.swap(0, Relaxed).saturating_sub(WARNINGS_PER_SECOND);
            if held_back > 0 {
                tracing::warn!("{held_back} more requests failed");
            }
        }
        if self.warnings.fetch_add(1, Relaxed) < WARNINGS_PER_SECOND {
            tracing::warn!(op, unique, "{e}");
        }
    }
}
