//! Running in the background: starting the mount as a child in a session of its own, hearing from
//! it whether it is ready, and finding it again.
//!
//! The child is this program again with `--foreground --report`: its standard input is one end of a
//! socket pair, on which it says how far it is, and then `ready` or the precise error. Nothing is
//! inherited but that; its log is a file.

use crate::control::{self, ControlError, Progress};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// A log longer than this is set aside (as `mount.log.1`) when a mount starts, bytes.
const LOG_LEN_MAX: u64 = 16 << 20;
/// The lock of a living mount is asked for so often, with pauses: for half a second, which is far longer than
/// anybody looks.
const LOCK_TRIES: u32 = 50;
/// Lines of the log shown when the mount dies without a word.
const LOG_LINES_SHOWN: usize = 8;

/// What the child tells the process that started it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Report {
    /// Still opening.
    Progress(Progress),
    /// Mounted and serving.
    Ready {
        /// Process id.
        pid: u32,
    },
    /// Not mounted.
    Failed(ControlError),
}

/// The child's end of the socket pair.
#[derive(Debug)]
pub struct Reporter(Option<UnixStream>);

impl Reporter {
    /// Nobody waits (a mount in the foreground).
    #[must_use]
    pub fn none() -> Self {
        Self(None)
    }

    /// The process that started this one listens on our standard input. Also leaves its session,
    /// so that the end of a terminal does not end the mount.
    ///
    /// # Errors
    /// Standard input is no socket: `--report` was given by hand.
    pub fn from_stdin() -> io::Result<Self> {
        // Fails only if we lead a process group already, and then nothing is lost.
        let _ = rustix::process::setsid();
        let fd: OwnedFd = io::stdin().as_fd().try_clone_to_owned()?;
        let stream = UnixStream::from(fd);
        stream.set_write_timeout(Some(Duration::from_secs(5)))?;
        Ok(Self(Some(stream)))
    }

    /// Has the process that started this one gone, without waiting for the end of the opening?
    #[must_use]
    pub fn is_abandoned(&self) -> bool {
        let Some(stream) = &self.0 else { return false };
        let mut end = [PollFd::new(stream, PollFlags::empty())];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let seen = rustix::event::poll(&mut end, Some(&now));
        seen.is_ok() && end[0].revents().contains(PollFlags::HUP)
    }

    /// Sends one report; a parent that is gone is no error.
    pub fn tell(&mut self, report: &Report) {
        if let Some(stream) = &mut self.0
            && let Ok(mut line) = serde_json::to_vec(report)
        {
            line.push(b'\n');
            let _ = stream.write_all(&line);
        }
    }
}

/// Starts this program again in the background with `args` and waits until it reports.
///
/// # Errors
/// What the child reports; or that it died or fell silent (it is killed then), with the end of its
/// log.
pub fn spawn(
    args: &[OsString],
    log: &Path,
    mut progress: impl FnMut(Progress),
) -> Result<u32, ControlError> {
    let failed = |e: io::Error| {
        let hint = "`tercet mount --foreground` shows more";
        ControlError::new(1, format!("cannot start the mount in the background: {e}"), hint)
    };
    let program = std::env::current_exe().map_err(failed)?;
    let (ours, childs) = UnixStream::pair().map_err(failed)?;
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::from(OwnedFd::from(childs)))
        .stdout(Stdio::null())
        .stderr(Stdio::from(open_log(log).map_err(failed)?))
        .spawn()
        .map_err(failed)?;
    ours.set_read_timeout(Some(control::SILENCE_MAX)).map_err(failed)?;
    let mut reader = BufReader::new(ours);
    let mut line = String::new();
    loop {
        line.clear();
        match reader.read_line(&mut line) {
            Ok(0) => {
                let status = child.wait().map_err(failed)?;
                return Err(died(&format!("the mount ended early ({status})"), log));
            }
            Ok(_) => match serde_json::from_str(&line) {
                Ok(Report::Progress(p)) => progress(p),
                Ok(Report::Ready { pid }) => return Ok(pid),
                Ok(Report::Failed(error)) => {
                    let _ = child.wait();
                    return Err(error);
                }
                Err(e) => return Err(died(&format!("the mount says what is not known: {e}"), log)),
            },
            Err(e) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(died(&format!("the mount fell silent ({e}) and was ended"), log));
            }
        }
    }
}

fn died(what: &str, log: &Path) -> ControlError {
    let mut message = what.to_owned();
    for line in last_lines(log, LOG_LINES_SHOWN).unwrap_or_default() {
        message.push_str("\n    ");
        message.push_str(&line);
    }
    let hint = format!("read {}, or try `tercet mount --foreground`", log.display());
    ControlError::new(1, message, hint)
}

fn last_lines(file: &Path, lines: usize) -> io::Result<Vec<String>> {
    let mut file = File::open(file)?;
    let len = file.metadata()?.len();
    file.seek(SeekFrom::Start(len.saturating_sub(16 << 10)))?;
    let mut bytes = Vec::new();
    file.take(16 << 10).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<&str> = text.lines().collect();
    Ok(all[all.len().saturating_sub(lines)..].iter().map(|&l| l.to_owned()).collect())
}

fn open_log(log: &Path) -> io::Result<File> {
    if std::fs::metadata(log).is_ok_and(|m| m.len() > LOG_LEN_MAX) {
        std::fs::rename(log, log.with_extension("log.1"))?;
    }
    std::fs::OpenOptions::new().create(true).append(true).mode(0o600).open(log)
}

/// Holds `mount.pid` locked as long as the mount lives: one mount per configuration directory, and
/// a dead one is told from a living one without guessing by process id.
#[derive(Debug)]
pub struct PidFile {
    file: File,
    path: PathBuf,
}

impl PidFile {
    /// Takes the lock and writes this process's id and where it mounts.
    ///
    /// # Errors
    /// `WouldBlock` if a living mount holds it.
    pub fn lock(path: &Path, mountpoint: &Path) -> io::Result<Self> {
        let mut file = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)?;
        // A command that looks whether a mount lives has the lock for a moment.
        let mut looks = 0;
        while let Err(e) = rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            looks += 1;
            if e != Errno::WOULDBLOCK || looks > LOCK_TRIES {
                return Err(e.into());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        file.set_len(0)?;
        writeln!(file, "{}\n{}", std::process::id(), mountpoint.display())?;
        Ok(Self { file, path: path.to_owned() })
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        // Emptied, not removed: removing it would let two mounts lock two files of one name.
        let _ = self.file.set_len(0);
        tracing::debug!("released {}", self.path.display());
    }
}

/// The file that a mount with this control socket holds locked.
#[must_use]
pub fn pid_file(socket: &Path) -> PathBuf {
    socket.with_file_name("mount.pid")
}

/// What a mount is whose process lives and whose control socket is silent.
#[must_use]
pub fn unheard(pid: u32) -> String {
    format!("a mount (process {pid}) is opening or ending, or does not answer")
}

/// What to do about it.
#[must_use]
pub fn what_ends(pid: u32, log: &Path) -> String {
    format!("wait for it, or `kill {pid}` ends it; its log is {}", log.display())
}

/// Process id of the living mount, if there is one.
#[must_use]
pub fn living(path: &Path) -> Option<u32> {
    let mut file = File::open(path).ok()?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => None,
        Err(_) => {
            let mut text = String::new();
            file.read_to_string(&mut text).ok()?;
            text.lines().next()?.trim().parse().ok()
        }
    }
}

/// Where a mount was that ended without cleaning up, if one did.
#[must_use]
pub fn died_at(path: &Path) -> Option<PathBuf> {
    if living(path).is_some() {
        return None;
    }
    let text = std::fs::read_to_string(path).ok()?;
    text.split_once('\n').map(|(_, at)| PathBuf::from(at.trim_end_matches('\n')))
}

/// Waits until the mount has ended; false = it still lives after `wait`.
#[must_use]
pub fn wait_end(pid_file: &Path, wait: Duration) -> bool {
    let end = std::time::Instant::now() + wait;
    while living(pid_file).is_some() {
        if std::time::Instant::now() >= end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_holder_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mount.pid");
        assert_eq!(living(&path), None);
        let held = PidFile::lock(&path, Path::new("/m")).unwrap();
        assert_eq!(living(&path), Some(std::process::id()));
        let second = PidFile::lock(&path, Path::new("/n")).unwrap_err();
        assert_eq!(second.kind(), io::ErrorKind::WouldBlock);
        assert!(!wait_end(&path, Duration::from_millis(30)));
        drop(held);
        assert_eq!(living(&path), None);
        assert!(wait_end(&path, Duration::ZERO));
        assert_eq!(died_at(&path), None, "a clean end leaves nothing");
        std::fs::write(&path, "1\n/m\n").unwrap();
        assert_eq!(died_at(&path), Some(PathBuf::from("/m")));
        drop(PidFile::lock(&path, Path::new("/m")).unwrap());
    }

    #[test]
    fn a_child_notices_that_its_parent_has_gone() {
        let (ours, childs) = UnixStream::pair().unwrap();
        let mut reporter = Reporter(Some(childs));
        reporter.tell(&Report::Ready { pid: 1 });
        assert!(!reporter.is_abandoned(), "what it said waits to be read");
        drop(ours);
        assert!(reporter.is_abandoned());
        assert!(!Reporter::none().is_abandoned(), "in the foreground nobody waits");
    }

    #[test]
    fn who_looks_whether_a_mount_lives_does_not_keep_one_from_beginning() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mount.pid");
        drop(PidFile::lock(&path, Path::new("/m")).unwrap());
        let looking = File::open(&path).unwrap();
        rustix::fs::flock(&looking, FlockOperation::NonBlockingLockShared).unwrap();
        let look = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(5));
            drop(looking);
        });
        assert!(PidFile::lock(&path, Path::new("/m")).is_ok());
        look.join().unwrap();
    }

    #[test]
    fn the_end_of_a_log_is_shown() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("mount.log");
        std::fs::write(&log, "one\ntwo\nthree\n").unwrap();
        assert_eq!(last_lines(&log, 2).unwrap(), ["two", "three"]);
        let error = died("it died", &log);
        assert!(error.message.ends_with("three") && error.hint.contains("mount.log"));
    }
}
