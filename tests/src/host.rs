//! A machine of its own for the programs of a test, made of namespaces.
//!
//! Container runtimes leave daemons, bridges, mounts and addresses behind when a test fails. Here
//! they cannot: the process that holds the namespaces is their init, and everything ends with it.

use crate::cluster::Cluster;
use crate::process::{Process, Said, run, until};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// How long a script may take, unless it says otherwise.
pub const SCRIPT_PATIENCE: Duration = Duration::from_secs(240);

/// What the init of the namespaces does. `/run` and `/dev/shm` are fresh, as after a boot; `/sys` shows the private
/// network, and keeps the machine's cgroups. It reaps whatever is orphaned: a server that was killed
/// must not live on as a zombie whose pid file looks valid.
const INIT: &str = r"
    mount -t tmpfs tmpfs /run && mount -t tmpfs tmpfs /dev/shm && mkdir -p /run/lock /run/cgroups &&
    mount --rbind /sys/fs/cgroup /run/cgroups && mount -t sysfs sysfs /sys &&
    mount --rbind /run/cgroups /sys/fs/cgroup && ip link set lo up && hostname tercet-test &&
    touch /run/booted || exit 1
    while :; do sleep 1000 & wait $!; done
";

/// Private mount, network, process, IPC and host name namespaces. Dropping it ends everything in it.
///
/// It sees the mount that is there when it boots, and holds it: shut it down before a clean unmount, and
/// boot another after a remount. (An operator does not reboot for that. Whether a new mount reaches
/// namespaces that exist depends on the machine's mount propagation, and tests should not.)
#[derive(Debug)]
pub struct Host {
    init: Process,
    pid: u32,
    mountpoint: PathBuf,
    outside: PathBuf,
    log_dir: PathBuf,
}

impl Host {
    /// Boots one for the programs of this cluster, with `outside/` beside the mount for what they
    /// compare with.
    #[must_use]
    pub fn of(cluster: &Cluster) -> Self {
        Self::boot(&cluster.mountpoint(), &cluster.root.join("outside"), &cluster.root.join("run"))
    }

    /// Boots it. Scripts find the mount under `$M` and a directory outside of it under `$W`;
    /// `log_dir` gets the output of what is left running.
    ///
    /// # Panics
    /// When the machine does not allow namespaces, with what it said.
    #[must_use]
    pub fn boot(mountpoint: &Path, outside: &Path, log_dir: &Path) -> Self {
        std::fs::create_dir_all(outside).expect("the directory outside can be made");
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--propagation", "private", "--net", "--ipc", "--uts", "--pid"])
            .args(["--fork", "--kill-child", "--mount-proc", "bash", "-c", INIT]);
        let mut init = Process::spawn("host", &mut command, &log_dir.join("host.log"));
        let unshare = init.pid().expect("just started");
        let mut pid = None;
        until(
            Duration::from_secs(20),
            "the namespaces are there (unshare, ip: see host.log)",
            || {
                assert!(init.is_running(), "no namespaces on this machine:\n{}", init.log_tail(10));
                let children = format!("/proc/{unshare}/task/{unshare}/children");
                let children = std::fs::read_to_string(children).unwrap_or_default();
                pid = children.split_whitespace().next().and_then(|p| p.parse::<u32>().ok());
                pid.is_some_and(|p| Path::new(&format!("/proc/{p}/root/run/booted")).exists())
            },
        );
        let pid = pid.expect("found above");
        let [mountpoint, outside, log_dir] = [mountpoint, outside, log_dir].map(Path::to_path_buf);
        Self { init, pid, mountpoint, outside, log_dir }
    }

    fn command(&self, script: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args(["-t", &self.pid.to_string()])
            .args(["--mount", "--net", "--ipc", "--uts", "--pid", "bash", "-euo", "pipefail", "-c"])
            .arg(script)
            .current_dir("/")
            .env("LC_ALL", "C.UTF-8")
            .env("HOME", "/run")
            .env("M", &self.mountpoint)
            .env("W", &self.outside);
        command
    }

    /// Runs a bash script that stops at the first command that fails.
    #[must_use]
    pub fn try_sh(&self, script: &str, within: Duration) -> Said {
        run(&mut self.command(script), within)
    }

    /// The same; its standard output.
    ///
    /// # Panics
    /// When it fails or takes longer than [`SCRIPT_PATIENCE`], with all it said.
    #[must_use]
    pub fn ask(&self, script: &str) -> String {
        self.try_sh(script, SCRIPT_PATIENCE).expect_ok()
    }

    /// The same, when what it says does not matter.
    ///
    /// # Panics
    /// When it fails or takes longer than [`SCRIPT_PATIENCE`], with all it said.
    pub fn sh(&self, script: &str) {
        self.try_sh(script, SCRIPT_PATIENCE).assert_ok();
    }

    /// Starts a script and lets it run. Its output is appended to `NAME.log`. A signal to this process
    /// reaches nsenter only: stop what it started by a script, or by dropping the host.
    #[must_use]
    pub fn spawn(&self, name: &str, script: &str) -> Process {
        Process::spawn(name, &mut self.command(script), &self.log_dir.join(format!("{name}.log")))
    }

    /// Ends it, with everything that runs in it.
    pub fn shut_down(mut self) {
        self.init.kill();
    }
}
