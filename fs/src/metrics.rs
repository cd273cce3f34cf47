//! What the mount counts, each with its unit, in one place.
//!
//! Counters are relaxed atomics: they order nothing, and no request waits for them.

use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Upper ends of the latency classes, microseconds; the last class is open.
pub const LATENCY_CLASSES_US: [u64; 12] =
    [8, 16, 32, 64, 128, 512, 2_048, 8_192, 32_768, 131_072, 1_000_000, 10_000_000];

macro_rules! operations {
    ($($name:ident $label:literal),+ $(,)?) => {
        /// A kind of kernel request.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum Operation {
            $(#[doc = $label] $name),+
        }

        impl Operation {
            /// All of them, in order.
            pub const ALL: &'static [Operation] = &[$(Operation::$name),+];

            /// Its name, as in the kernel's protocol.
            #[must_use]
            pub fn label(self) -> &'static str {
                match self { $(Operation::$name => $label),+ }
            }
        }
    };
}

operations! {
    Lookup "lookup", Getattr "getattr", Setattr "setattr", Readlink "readlink", Mknod "mknod",
    Mkdir "mkdir", Unlink "unlink", Rmdir "rmdir", Symlink "symlink", Rename "rename", Link "link",
    Open "open", Create "create", Read "read", Write "write", Flush "flush", Release "release",
    Fsync "fsync", Opendir "opendir", Readdir "readdir", Readdirplus "readdirplus",
    Releasedir "releasedir", Fsyncdir "fsyncdir", Statfs "statfs", Setxattr "setxattr",
    Getxattr "getxattr", Listxattr "listxattr", Removexattr "removexattr",
    Fallocate "fallocate", Lseek "lseek", CopyFileRange "copy_file_range", Forget "forget",
}

/// Counters of one kind of request.
#[derive(Debug, Default)]
struct Counters {
    /// Answered, with or without an error.
    requests: AtomicU64,
    /// Answered with an error of any kind (ENOENT too).
    errors: AtomicU64,
    /// Answered without leaving the thread that read it.
    inline: AtomicU64,
    /// Ended by the deadline.
    timeouts: AtomicU64,
    /// Sum of times, microseconds.
    total_us: AtomicU64,
    /// Longest, microseconds.
    max_us: AtomicU64,
    /// Requests per latency class.
    classes: [AtomicU64; LATENCY_CLASSES_US.len() + 1],
}

/// How a request ended.
#[derive(Clone, Copy, Debug)]
pub struct Ending {
    /// From reading it to the reply.
    pub took: Duration,
    /// It failed.
    pub error: bool,
    /// It never left the reading thread.
    pub inline: bool,
    /// The deadline ended it.
    pub timeout: bool,
}

/// All counters of a mount.
#[derive(Debug)]
pub struct Metrics {
    operations: Box<[Counters]>,
    /// Bytes handed to the kernel by reads.
    pub read_bytes: AtomicU64,
    /// Bytes taken from the kernel by writes.
    pub written_bytes: AtomicU64,
    /// Requests waiting for something right now.
    pub waiting: AtomicU64,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            operations: Operation::ALL.iter().map(|_| Counters::default()).collect(),
            read_bytes: AtomicU64::new(0),
            written_bytes: AtomicU64::new(0),
            waiting: AtomicU64::new(0),
        }
    }
}

impl Metrics {
    /// Counts one request.
    pub fn count(&self, operation: Operation, ending: Ending) {
        let c = &self.operations[operation as usize];
        let us = u64::try_from(ending.took.as_micros()).unwrap_or(u64::MAX);
        c.requests.fetch_add(1, Relaxed);
        c.errors.fetch_add(u64::from(ending.error), Relaxed);
        c.inline.fetch_add(u64::from(ending.inline), Relaxed);
        c.timeouts.fetch_add(u64::from(ending.timeout), Relaxed);
        c.total_us.fetch_add(us, Relaxed);
        if us > c.max_us.load(Relaxed) {
            c.max_us.fetch_max(us, Relaxed);
        }
        c.classes[LATENCY_CLASSES_US.partition_point(|&end| end < us)].fetch_add(1, Relaxed);
    }

    /// How often a kind of request was answered.
    #[must_use]
    pub fn requests(&self, operation: Operation) -> u64 {
        self.operations[operation as usize].requests.load(Relaxed)
    }

    /// The counters, for people and programs.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let mut operations = BTreeMap::new();
        for &operation in Operation::ALL {
            let c = &self.operations[operation as usize];
            let requests = c.requests.load(Relaxed);
            if requests > 0 {
                operations.insert(
                    operation.label(),
                    OperationSnapshot {
                        requests,
                        errors: c.errors.load(Relaxed),
                        inline: c.inline.load(Relaxed),
                        timeouts: c.timeouts.load(Relaxed),
                        mean_us: c.total_us.load(Relaxed) / requests,
                        max_us: c.max_us.load(Relaxed),
                        classes: c.classes.iter().map(|n| n.load(Relaxed)).collect(),
                    },
                );
            }
        }
        Snapshot {
            operations,
            read_bytes: self.read_bytes.load(Relaxed),
            written_bytes: self.written_bytes.load(Relaxed),
            waiting: self.waiting.load(Relaxed),
        }
    }
}

/// [`Metrics`] at one moment.
#[derive(Debug, Serialize)]
pub struct Snapshot {
    /// By kind of request; kinds never asked for are left out.
    pub operations: BTreeMap<&'static str, OperationSnapshot>,
    /// See [`Metrics::read_bytes`].
    pub read_bytes: u64,
    /// See [`Metrics::written_bytes`].
    pub written_bytes: u64,
    /// See [`Metrics::waiting`].
    pub waiting: u64,
}

/// One kind of request at one moment.
#[derive(Debug, Serialize)]
pub struct OperationSnapshot {
    /// Answered.
    pub requests: u64,
    /// Answered with an error.
    pub errors: u64,
    /// Answered by the thread that read them.
    pub inline: u64,
    /// Ended by the deadline.
    pub timeouts: u64,
    /// Mean time, microseconds.
    pub mean_us: u64,
    /// Longest time, microseconds.
    pub max_us: u64,
    /// Requests per class of [`LATENCY_CLASSES_US`], and one class above.
    pub classes: Vec<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_fall_into_their_class() {
        let metrics = Metrics::default();
        for us in [1, 8, 9, 20_000_000] {
            let took = Duration::from_micros(us);
            let ending = Ending { took, error: us == 9, inline: true, timeout: false };
            metrics.count(Operation::Fsync, ending);
        }
        let snapshot = metrics.snapshot();
        let fsync = &snapshot.operations["fsync"];
        assert_eq!((fsync.requests, fsync.errors, fsync.max_us), (4, 1, 20_000_000));
        assert_eq!((fsync.classes[0], fsync.classes[1], *fsync.classes.last().unwrap()), (2, 1, 1));
        assert_eq!(snapshot.operations.len(), 1);
    }
}
