//! Asks the mount for its status twenty times a second and notes since when it says that something is
//! not up to date.

use crate::cluster::Cluster;
use serde_json::Value;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// Between two questions. They overlap: a status that waits for a node which hangs takes half a second.
const PERIOD: Duration = Duration::from_millis(50);
/// The longest time to wait for an answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// A watch that runs until it is dropped.
#[derive(Debug)]
pub struct Watch {
    stop: Arc<AtomicBool>,
    first_seen: Arc<Mutex<Option<Instant>>>,
}

impl Watch {
    /// Begins.
    #[must_use]
    pub fn begin(cluster: &Cluster) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let first_seen = Arc::new(Mutex::new(None));
        let (stopped, seen, socket) =
            (stop.clone(), first_seen.clone(), cluster.root.join("run/control.sock"));
        thread::spawn(move || {
            while !stopped.load(Ordering::SeqCst) {
                let (seen, socket, stopped) = (seen.clone(), socket.clone(), stopped.clone());
                thread::spawn(move || {
                    if healthy(&socket) == Some(false) && !stopped.load(Ordering::SeqCst) {
                        let now = Instant::now();
                        seen.lock().expect("no panic under it").get_or_insert(now);
                    }
                });
                thread::sleep(PERIOD);
            }
        });
        Self { stop, first_seen }
    }

    /// When it was first said that something is not up to date.
    ///
    /// # Panics
    /// Never.
    #[must_use]
    pub fn first_seen(&self) -> Option<Instant> {
        *self.first_seen.lock().expect("no panic under it")
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

/// Does the mount behind this socket say that all is well? `None` = it says nothing.
pub(super) fn healthy(socket: &Path) -> Option<bool> {
    let cluster = ask(socket)?;
    let replicas = cluster["replicas"].as_array()?;
    let whole = replicas.iter().all(|r| r["state"] == "up to date");
    Some(whole && cluster["redundancy"] == 3)
}

/// Does it say that a node is being filled?
pub(super) fn is_filling(socket: &Path) -> bool {
    let cluster = ask(socket).unwrap_or_default();
    cluster["replicas"].as_array().is_some_and(|all| all.iter().any(|r| r["state"] == "filling"))
}

fn ask(socket: &Path) -> Option<Value> {
    let mut stream = UnixStream::connect(socket).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    stream.write_all(b"{\"do\":\"status\"}\n").ok()?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).ok()?;
    let mut answer: Value = serde_json::from_str(&line).ok()?;
    Some(answer["ok"]["cluster"].take())
}
