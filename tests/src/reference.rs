//! An ext4 beside the mount: what Linux itself answers.

use crate::process::run;
use rustix::mount::{UnmountFlags, unmount};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// An ext4 in a file, mounted by a loop device until it is dropped.
#[derive(Debug)]
pub struct Ext4 {
    /// Where it is mounted.
    pub mountpoint: PathBuf,
}

impl Ext4 {
    /// Makes one of `bytes` in `dir` (sparse) and mounts it.
    ///
    /// # Panics
    /// When the machine has no loop devices or no mkfs.ext4.
    #[must_use]
    pub fn make(dir: &Path, bytes: u64) -> Self {
        let image = dir.join("ext4.img");
        std::fs::File::create(&image)
            .and_then(|f| f.set_len(bytes))
            .expect("an image file can be made");
        mkfs_ext4(&image);
        let mountpoint = dir.join("ext4");
        std::fs::create_dir_all(&mountpoint).expect("a mountpoint can be made");
        mount_loop(&image, &mountpoint);
        Self { mountpoint }
    }
}

impl Drop for Ext4 {
    fn drop(&mut self) {
        let _ = unmount(&self.mountpoint, UnmountFlags::DETACH);
    }
}

/// Makes an ext4 in a file.
///
/// # Panics
/// When it cannot, with all that was said.
pub fn mkfs_ext4(image: &Path) {
    let mut command = Command::new("mkfs.ext4");
    command.args(["-q", "-F"]).arg(image);
    needs("mkfs.ext4", "e2fsprogs");
    run(&mut command, Duration::from_secs(60)).assert_ok();
}

/// Mounts an image with a loop device.
///
/// # Panics
/// When it cannot, with all that was said.
pub fn mount_loop(image: &Path, at: &Path) {
    let mut command = Command::new("mount");
    command.args(["-t", "ext4", "-o", "loop"]).arg(image).arg(at);
    let said = run(&mut command, Duration::from_secs(60));
    assert!(
        said.ok(),
        "{said}\nloop devices are needed: modprobe loop, or give the container /dev/loop-control"
    );
}

/// Fails with the package to install when a program is missing.
///
/// # Panics
/// See above.
pub fn needs(program: &str, package: &str) {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).any(|d| d.join(program).exists());
    assert!(found, "{program} is missing: apt-get install {package} (.ci/run does)");
}
