//! A disk of a node's own: an ext4 in a file, mounted by a loop device. It can be filled up, and it can
//! fail.
//!
//! Failing is `EXT4_IOC_SHUTDOWN` without a flush of the journal, what ext4's own crash tests use: from
//! then on every read, write and sync answers EIO, and what had not been synced is never written. After
//! [`replug`](NodeDisk::replug) there is what was durable, as after a power cut.

use crate::process::run;
use crate::reference::{mkfs_ext4, mount_loop};
use rustix::mount::{UnmountFlags, unmount};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// `EXT4_IOC_SHUTDOWN` with `EXT4_GOING_FLAGS_NOLOGFLUSH`. From Python: an ioctl needs `unsafe` here.
const SHUTDOWN: &str = r"
import fcntl, os, struct, sys
for at in sys.argv[1:]:
    fcntl.ioctl(os.open(at, os.O_RDONLY), 0x8004587d, struct.pack('I', 2))
";

/// The disk of one node, mounted until it is dropped.
#[derive(Debug)]
pub struct NodeDisk {
    image: PathBuf,
    mountpoint: PathBuf,
}

impl NodeDisk {
    /// Makes one of `bytes` (sparse): `at.img`, mounted at `at`.
    ///
    /// # Panics
    /// When the machine has no loop devices or no mkfs.ext4.
    #[must_use]
    pub fn make(at: &Path, bytes: u64) -> Self {
        let image = at.with_extension("img");
        fs::create_dir_all(at).expect("a mountpoint can be made");
        File::create(&image).and_then(|f| f.set_len(bytes)).expect("an image file can be made");
        mkfs_ext4(&image);
        mount_loop(&image, at);
        Self { image, mountpoint: at.into() }
    }

    fn ballast(&self) -> PathBuf {
        self.mountpoint.join("ballast")
    }

    /// Somebody else takes all space there is.
    ///
    /// # Panics
    /// When there is space left.
    pub fn fill(&self) {
        let s = rustix::fs::statvfs(&self.mountpoint).expect("statfs");
        let file = File::create(self.ballast()).expect("create");
        // Once to take nearly all, then piece by piece what is left.
        let mut at = 0;
        let mut piece = s.f_bfree * s.f_frsize;
        while piece >= 4096 {
            match rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), at, piece) {
                Ok(()) => at += piece,
                Err(rustix::io::Errno::NOSPC) => piece /= 2,
                Err(e) => panic!("fallocate: {e}"),
            }
        }
    }

    /// The space is there again.
    ///
    /// # Panics
    /// When the disk was not filled.
    pub fn unfill(&self) {
        fs::remove_file(self.ballast()).expect("the ballast");
    }

    /// They fail, one right after the other.
    ///
    /// # Panics
    /// When the kernel cannot do that.
    pub fn fail<'a>(disks: impl IntoIterator<Item = &'a Self>) {
        let mut command = Command::new("python3");
        command.args(["-c", SHUTDOWN]).args(disks.into_iter().map(|d| &d.mountpoint));
        run(&mut command, Duration::from_secs(20)).assert_ok();
    }

    /// Mounts it again, with what was durable. Nobody may use it.
    ///
    /// # Panics
    /// When somebody does.
    pub fn replug(&self) {
        self.unmount().unwrap_or_else(|e| panic!("umount {}: {e}", self.mountpoint.display()));
        // Namespaces that somebody made meanwhile have it mounted too, dead as it is. They go on with it.
        if !self.is_free_within(Duration::from_secs(5)) {
            let copy = self.image.with_extension("copy");
            let mut command = Command::new("cp");
            command.arg("--sparse=always").arg(&self.image).arg(&copy);
            run(&mut command, Duration::from_secs(60)).assert_ok();
            fs::rename(&copy, &self.image).expect("rename");
        }
        mount_loop(&self.image, &self.mountpoint);
    }

    fn is_free_within(&self, within: Duration) -> bool {
        let began = Instant::now();
        while began.elapsed() < within {
            let mut losetup = Command::new("losetup");
            losetup.arg("-j").arg(&self.image);
            if run(&mut losetup, Duration::from_secs(20)).expect_ok().is_empty() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        false
    }

    fn unmount(&self) -> io::Result<()> {
        // A process that was killed a moment ago may still hold it.
        for _ in 0..50 {
            if unmount(&self.mountpoint, UnmountFlags::empty()).is_ok() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(unmount(&self.mountpoint, UnmountFlags::empty())?)
    }
}

impl Drop for NodeDisk {
    fn drop(&mut self) {
        if self.unmount().is_err() {
            let _ = unmount(&self.mountpoint, UnmountFlags::DETACH);
        }
    }
}
