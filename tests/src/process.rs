//! Children with a log, signals by pid, and a deadline on every wait.

use rustix::process::{Pid, Signal, kill_process};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

/// Tries `done` every 20 ms until it says yes.
///
/// # Panics
/// When `within` has passed, naming `what` was waited for.
pub fn until(within: Duration, what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < within, "not within {within:?}: {what}");
        sleep(Duration::from_millis(20));
    }
}

/// What a command that ended said.
#[derive(Clone, Debug)]
pub struct Said {
    /// As typed.
    pub command: String,
    /// How it ended; `None` = killed at its deadline.
    pub status: Option<ExitStatus>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Said {
    /// It ended with 0.
    #[must_use]
    pub fn ok(&self) -> bool {
        self.status.is_some_and(|s| s.success())
    }

    /// Its standard output, if it ended well.
    ///
    /// # Panics
    /// When it did not, with all it said.
    #[must_use]
    pub fn expect_ok(self) -> String {
        assert!(self.ok(), "{self}");
        self.stdout
    }

    /// Fails unless it ended well.
    ///
    /// # Panics
    /// When it did not, with all it said.
    pub fn assert_ok(&self) {
        assert!(self.ok(), "{self}");
    }

    /// All it said, if it failed as it should: with an exit code of its own (no panic, no signal).
    ///
    /// # Panics
    /// When it succeeded, panicked or was killed.
    #[must_use]
    pub fn expect_refusal(self) -> String {
        let code = self.status.and_then(|s| s.code());
        assert!(code.is_some_and(|c| c != 0 && c != 101), "no clean refusal: {self}");
        assert!(!self.stderr.contains("panicked at"), "a panic is no message: {self}");
        format!("{}{}", self.stdout, self.stderr)
    }
}

impl std::fmt::Display for Said {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { command, status, stdout, stderr } = self;
        match status {
            Some(s) => writeln!(f, "$ {command}   [{s}]")?,
            None => writeln!(f, "$ {command}   [killed at its deadline]")?,
        }
        write!(f, "{stdout}{stderr}")
    }
}

/// Runs a command to its end, killing it when `within` has passed.
///
/// # Panics
/// When it cannot be started.
pub fn run(command: &mut Command, within: Duration) -> Said {
    let typed = format!("{command:?}").replace('"', "");
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("cannot start {typed}: {e}"));
    let stdout = collect(child.stdout.take());
    let stderr = collect(child.stderr.take());
    let status = wait(&mut child, within);
    if status.is_none() {
        let _ = child.kill();
        let _ = child.wait();
    }
    Said { command: typed, status, stdout: finish(stdout), stderr: finish(stderr) }
}

type Collected = std::sync::mpsc::Receiver<Vec<u8>>;

/// Reads a pipe on a thread of its own: a child that fills one pipe must not block on the other.
fn collect(pipe: Option<impl Read + Send + 'static>) -> Collected {
    let (tx, rx) = std::sync::mpsc::channel();
    thread::spawn(move || {
        let mut pipe = pipe;
        let mut buf = vec![0; 64 << 10];
        while let Some(n) = pipe.as_mut().and_then(|p| p.read(&mut buf).ok()).filter(|n| *n > 0) {
            if tx.send(buf[..n].to_vec()).is_err() {
                break;
            }
        }
    });
    rx
}

/// What was read. A daemon that the child left behind may hold the pipe open: wait a little only.
fn finish(rx: Collected) -> String {
    let mut all = Vec::new();
    while let Ok(more) = rx.recv_timeout(Duration::from_millis(500)) {
        all.extend(more);
    }
    String::from_utf8_lossy(&all).into_owned()
}

fn wait(child: &mut Child, within: Duration) -> Option<ExitStatus> {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().ok().flatten() {
            return Some(status);
        }
        if start.elapsed() > within {
            return None;
        }
        sleep(Duration::from_millis(5));
    }
}

/// A child of the test that runs for a while. Dropping it kills it, by pid.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Option<Child>,
    log: PathBuf,
}

impl Process {
    /// Starts it with its output appended to `log`.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn spawn(name: &str, command: &mut Command, log: &Path) -> Self {
        let open = || {
            File::options()
                .create(true)
                .append(true)
                .open(log)
                .unwrap_or_else(|e| panic!("cannot open {}: {e}", log.display()))
        };
        let child = command
            .stdin(Stdio::null())
            .stdout(open())
            .stderr(open())
            .spawn()
            .unwrap_or_else(|e| panic!("cannot start {command:?}: {e}"));
        Self { name: name.into(), child: Some(child), log: log.into() }
    }

    /// Its pid, while it runs. The child is not reaped before, so the pid is nobody else's.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Does it run (or hang)?
    pub fn is_running(&mut self) -> bool {
        if self.child.as_mut().is_some_and(|c| matches!(c.try_wait(), Ok(Some(_)))) {
            self.child = None;
        }
        self.child.is_some()
    }

    /// Sends a signal, if it runs.
    pub fn signal(&mut self, signal: Signal) {
        if !self.is_running() {
            return;
        }
        if let Some(pid) = self.pid().and_then(|p| Pid::from_raw(i32::try_from(p).ok()?)) {
            let _ = kill_process(pid, signal);
        }
    }

    /// SIGKILL, and waits until it is gone. Fine if it is already.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.reap(Duration::from_secs(20));
    }

    /// SIGTERM, and waits until it is gone.
    ///
    /// # Panics
    /// When it does not go.
    pub fn terminate(&mut self, within: Duration) -> Option<ExitStatus> {
        self.signal(Signal::TERM);
        self.reap(within)
    }

    /// Waits until it is gone.
    ///
    /// # Panics
    /// When it does not go.
    pub fn reap(&mut self, within: Duration) -> Option<ExitStatus> {
        let child = self.child.as_mut()?;
        let status = wait(child, within);
        assert!(
            status.is_some() || thread::panicking(),
            "{} (pid {}) does not end; log {}\n{}",
            self.name,
            child.id(),
            self.log.display(),
            self.log_tail(15)
        );
        self.child = None;
        status
    }

    /// The last lines of its log.
    #[must_use]
    pub fn log_tail(&self, lines: usize) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    /// Where its output goes.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.is_running() {
            self.signal(Signal::KILL);
            if let Some(child) = self.child.as_mut() {
                let _ = wait(child, Duration::from_secs(20));
            }
        }
    }
}
