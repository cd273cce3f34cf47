//! The mount process, as a child of the test.

use crate::process::{Process, until};
use crate::programs::programs;
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::Signal;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Opening a volume may have to watch a vanished holder's beat for 5 s, and settle a tail.
pub const MOUNT_PATIENCE: Duration = Duration::from_secs(60);

/// `tercet mount --foreground`.
#[derive(Debug)]
pub struct Mount {
    /// Where.
    pub point: PathBuf,
    process: Process,
    watched: Arc<AtomicU32>,
}

impl Mount {
    /// Starts it and waits until the filesystem is there. `watched` gets its pid, for the watchdog.
    ///
    /// # Panics
    /// As [`await_mounted`](Self::await_mounted), after [`MOUNT_PATIENCE`].
    pub fn start(
        config: &Path,
        point: &Path,
        args: &[&str],
        log: &Path,
        watched: Arc<AtomicU32>,
    ) -> Self {
        let mut mount = Self::begin(config, point, args, log, watched);
        mount.await_mounted(MOUNT_PATIENCE);
        mount
    }

    /// Starts it and returns at once.
    pub fn begin(
        config: &Path,
        point: &Path,
        args: &[&str],
        log: &Path,
        watched: Arc<AtomicU32>,
    ) -> Self {
        std::fs::create_dir_all(point).expect("the mountpoint can be made");
        let mut command = Command::new(&programs().tercet);
        command.arg("--config").arg(config).args(["mount", "--foreground"]).args(args).arg(point);
        let process = Process::spawn("mount", &mut command, log);
        watched.store(process.pid().unwrap_or(0), Ordering::SeqCst);
        Self { point: point.into(), process, watched }
    }

    /// Waits until the filesystem is there.
    ///
    /// # Panics
    /// When it ends or does not mount in time, with the end of its log.
    pub fn await_mounted(&mut self, within: Duration) {
        let log = self.process.log().to_owned();
        until(within, &format!("mounted (log {})", log.display()), || {
            assert!(self.is_running(), "the mount ended:\n{}", self.process.log_tail(25));
            is_mounted(&self.point)
        });
    }

    /// Does its process exist?
    pub fn is_running(&mut self) -> bool {
        self.process.is_running()
    }

    /// Its pid.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.process.pid()
    }

    /// SIGTERM: unmounts cleanly, all that was written is written.
    ///
    /// # Panics
    /// When it does not end within 30 s, or does not unmount.
    pub fn unmount(mut self) {
        let status = self.process.terminate(Duration::from_secs(30));
        assert!(
            status.is_none_or(|s| s.success()),
            "a clean unmount ends with {status:?}:\n{}",
            self.process.log_tail(25)
        );
        assert!(!is_mounted(&self.point), "still mounted after SIGTERM");
    }

    /// SIGKILL: the machine lost power, as far as the mount is concerned.
    pub fn kill(mut self) {
        self.process.kill();
    }

    /// SIGSTOP.
    pub fn pause(&mut self) {
        self.process.signal(Signal::STOP);
    }

    /// SIGCONT.
    pub fn resume(&mut self) {
        self.process.signal(Signal::CONT);
    }

    /// The last lines of its log.
    #[must_use]
    pub fn log_tail(&self, lines: usize) -> String {
        self.process.log_tail(lines)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        self.process.kill();
        self.watched.store(0, Ordering::SeqCst);
        // What a killed mount leaves behind answers ENOTCONN for ever.
        if is_mounted(&self.point) {
            let _ = unmount(&self.point, UnmountFlags::DETACH);
        }
    }
}

/// Is something mounted exactly there?
#[must_use]
pub fn is_mounted(point: &Path) -> bool {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    table.lines().any(|l| l.split(' ').nth(4).is_some_and(|p| Path::new(p) == point))
}
