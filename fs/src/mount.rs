//! A mount from its first check to its end: look, lock, open the volume, serve, and on the way out
//! write back, release and leave no dead mountpoint behind.

use crate::backend::Backend;
use crate::config::Config;
use crate::control::{self, ControlError, ProgressSink};
use crate::daemon::{self, PidFile, Report, Reporter};
use crate::filesystem::{FileSystem, FsOptions};
use crate::fuse;
use crate::metrics::Metrics;
use crate::session::Session;
use rustix::mount::UnmountFlags;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

mod options;

pub use options::{MountFlags, Wish, remount};

/// Looking at a mountpoint takes no longer, or it is taken for hung.
const LOOK_DEADLINE: Duration = Duration::from_secs(5);
/// How often a mount looks whether it was fenced; reading a flag.
const FENCE_LOOK: Duration = Duration::from_millis(200);
/// How often an opening mount looks whether somebody still waits for it.
const PARENT_LOOK: Duration = Duration::from_millis(200);
/// Type of our mounts, as in /proc/self/mountinfo.
const FS_TYPE: &str = "fuse.tercet";
/// Queue of progress between opening and the process that waits for it.
const PROGRESS_QUEUE: usize = 16;

/// What the command line says about a mount, beyond the configuration.
#[derive(Clone, Debug, Default)]
pub struct MountOptions {
    /// Where.
    pub mountpoint: PathBuf,
    /// Take the volume from another mount that holds it.
    pub takeover: bool,
    /// Read beside the mount that holds the volume; hold nothing.
    pub observer: bool,
    /// A volume in memory with so many shards, gone at the end: for measuring the mount itself.
    pub memory: Option<u16>,
    /// That volume lies on three banks, in memory too.
    #[cfg(feature = "memory-banks")]
    pub memory_banks: bool,
    /// `-o` options.
    pub flags: MountFlags,
}

/// One line of /proc/self/mountinfo.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountInfo {
    /// `major:minor`
    pub device: String,
    /// Where.
    pub mountpoint: PathBuf,
    /// `fuse.tercet`, `ext4`…
    pub fs_type: String,
}

/// What is mounted, oldest first; asks no filesystem.
///
/// # Errors
/// No /proc.
pub fn mounts() -> io::Result<Vec<MountInfo>> {
    Ok(parse_mountinfo(&std::fs::read_to_string("/proc/self/mountinfo")?))
}

fn parse_mountinfo(text: &str) -> Vec<MountInfo> {
    text.lines()
        .filter_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            let mut left = left.split(' ').skip(2);
            Some(MountInfo {
                device: left.next()?.to_owned(),
                mountpoint: unescape(left.nth(1)?),
                fs_type: right.split(' ').next()?.to_owned(),
            })
        })
        .collect()
}

/// mountinfo writes space, tab, newline and backslash as three octal digits.
fn unescape(text: &str) -> PathBuf {
    use std::os::unix::ffi::OsStringExt;
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let octal = bytes.get(i + 1..i + 4).and_then(|d| std::str::from_utf8(d).ok());
        match octal.and_then(|d| u8::from_str_radix(d, 8).ok()) {
            Some(byte) if bytes[i] == b'\\' => {
                out.push(byte);
                i += 4;
            }
            _ => {
                out.push(bytes[i]);
                i += 1;
            }
        }
    }
    std::ffi::OsString::from_vec(out).into()
}

/// Is one of ours mounted exactly there?
#[must_use]
pub fn is_ours(mountpoint: &Path) -> bool {
    is_mounted(mountpoint).unwrap_or(false)
}

/// Nothing of ours is mounted there, for sure.
#[must_use]
pub fn is_gone(mountpoint: &Path) -> bool {
    matches!(is_mounted(mountpoint), Ok(false))
}

fn is_mounted(mountpoint: &Path) -> io::Result<bool> {
    let ours = |m: &MountInfo| m.mountpoint == mountpoint && m.fs_type == FS_TYPE;
    Ok(mounts()?.iter().any(ours))
}

/// Unmounts; by the set-uid helper where that takes root and we are not.
///
/// # Errors
/// `EBUSY` while files are open, unless `lazy`.
pub fn unmount(mountpoint: &Path, lazy: bool) -> io::Result<()> {
    let flags = if lazy { UnmountFlags::DETACH } else { UnmountFlags::NOFOLLOW };
    match rustix::mount::unmount(mountpoint, flags) {
        Err(rustix::io::Errno::PERM) => {}
        other => return other.map_err(io::Error::from),
    }
    let mut helper = Command::new("fusermount3");
    helper.arg("-u").args(lazy.then_some("-z")).arg("--").arg(mountpoint);
    let output = helper.stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(());
    }
    let why = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if why.contains("busy") {
        return Err(io::Error::from_raw_os_error(libc::EBUSY));
    }
    Err(io::Error::new(io::ErrorKind::PermissionDenied, why))
}

/// Checks the place before anything is opened, and gives it without symbolic links. A mountpoint
/// that an earlier mount of ours left dead (killed with -9) is cleaned up.
///
/// # Errors
/// Precise, with what to do.
pub async fn check_place(mountpoint: &Path) -> Result<PathBuf, ControlError> {
    let device = Path::new("/dev/fuse");
    match std::fs::metadata(device) {
        Ok(about) if about.file_type().is_char_device() => {}
        _ => {
            let hint = "load the module (modprobe fuse); in a container, pass --device /dev/fuse";
            return Err(ControlError::new(1, "there is no /dev/fuse: FUSE is not available", hint));
        }
    }
    if let Err(e) = std::fs::OpenOptions::new().read(true).write(true).open(device) {
        let hint = "run as root, or join the group that may use it";
        return Err(ControlError::new(1, format!("cannot open /dev/fuse: {e}"), hint));
    }
    let shown = mountpoint.display().to_string();
    match look(mountpoint).await {
        Err(e) if e.raw_os_error() == Some(libc::ENOTCONN) && is_ours(&plain(mountpoint)) => {
            tracing::warn!("{shown}: an earlier mount died here; detaching what is left of it");
            unmount(&plain(mountpoint), true).map_err(|e| {
                let hint = format!("umount -l {shown}");
                ControlError::new(1, format!("{shown}: cannot detach a dead mount: {e}"), hint)
            })?;
        }
        _ => {}
    }
    let place = look(mountpoint).await.map_err(|e| match e.raw_os_error() {
        Some(libc::ENOTCONN) => ControlError::new(
            1,
            format!("{shown}: a dead FUSE mount is in the way"),
            format!("umount -l {shown}"),
        ),
        _ if e.kind() == io::ErrorKind::NotFound => {
            ControlError::new(1, format!("{shown} does not exist"), format!("mkdir -p {shown}"))
        }
        _ => ControlError::new(1, format!("{shown}: {e}"), "choose another mountpoint"),
    })?;
    let Some(place) = place else {
        let hint = "choose a directory; it need not be empty";
        return Err(ControlError::new(1, format!("{shown} is not a directory"), hint));
    };
    if is_ours(&place) {
        return Err(ControlError::new(
            1,
            format!("{shown} is busy: a tercet volume is mounted there"),
            format!("`tercet umount {shown}` first, or choose another mountpoint"),
        ));
    }
    Ok(place)
}

/// Processes that use what is mounted there, for a message: their current directory or an open file
/// lies in it. By what /proc says, which asks no filesystem.
#[must_use]
pub fn users(mountpoint: &Path) -> String {
    const SHOWN: usize = 5;
    let mut found = Vec::new();
    for process in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let dir = process.path();
        let Some(pid) = process.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else {
            continue;
        };
        let files = std::fs::read_dir(dir.join("fd")).into_iter().flatten().flatten();
        let mut links =
            ["cwd", "root", "exe"].map(|l| dir.join(l)).into_iter().chain(files.map(|f| f.path()));
        if links.any(|l| std::fs::read_link(l).is_ok_and(|t| t.starts_with(mountpoint))) {
            let name = std::fs::read_to_string(dir.join("comm")).unwrap_or_default();
            found.push(format!("{} ({pid})", name.trim()));
        }
    }
    let more = found.len().saturating_sub(SHOWN);
    found.truncate(SHOWN);
    if more > 0 {
        found.push(format!("{more} more"));
    }
    found.join(", ")
}

fn plain(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// The canonical path, or `None` if it is no directory. In a thread, because what is mounted there
/// already may hang.
async fn look(path: &Path) -> io::Result<Option<PathBuf>> {
    let path = path.to_owned();
    let work = tokio::task::spawn_blocking(move || {
        let about = std::fs::metadata(&path)?;
        if about.is_dir() { std::fs::canonicalize(&path).map(Some) } else { Ok(None) }
    });
    match tokio::time::timeout(LOOK_DEADLINE, work).await {
        Ok(done) => done.map_err(io::Error::other)?,
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "what is mounted there hangs")),
    }
}

/// The signals that end a mount.
struct Ends {
    term: Signal,
    int: Signal,
    hup: Signal,
}

impl Ends {
    fn new() -> io::Result<Self> {
        Ok(Self {
            term: signal(SignalKind::terminate())?,
            int: signal(SignalKind::interrupt())?,
            hup: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.term.recv() => "SIGTERM",
            _ = self.int.recv() => "SIGINT",
            _ = self.hup.recv() => "SIGHUP",
        }
    }
}

/// Mounts, serves until unmounted or told to end, and closes the volume.
///
/// # Errors
/// Why it could not be mounted; nothing is left changed then.
pub async fn run(
    config: Config,
    options: MountOptions,
    reporter: &mut Reporter,
) -> Result<(), ControlError> {
    let internal = |what: &str, e: io::Error| {
        ControlError::new(1, format!("{what}: {e}"), "free resources and try again")
    };
    let mut ends = Ends::new().map_err(|e| internal("signals", e))?;
    // A log that reaches RLIMIT_FSIZE ends a process, unless it takes this signal (once is for good): then
    // the write fails, and a line is lost.
    signal(SignalKind::from_raw(libc::SIGXFSZ)).map(drop).map_err(|e| internal("signals", e))?;
    let mountpoint = check_place(&options.mountpoint).await?;
    let run_dir = config.run_dir();
    control::private_dir(&run_dir).map_err(|e| {
        let hint = "the directory of the configuration file must be writable";
        ControlError::new(1, format!("cannot make {}: {e}", run_dir.display()), hint)
    })?;
    let pid_path = daemon::pid_file(&config.control_socket());
    let pid_file = PidFile::lock(&pid_path, &mountpoint).map_err(|e| match e.kind() {
        io::ErrorKind::WouldBlock => running_already(daemon::living(&pid_path), &run_dir),
        _ => internal("mount.pid", e),
    })?;

    let opened = {
        let opening = open(&config, &options, &mountpoint, reporter);
        tokio::select! {
            opened = opening => opened?,
            name = ends.next() => {
                let hint = "nothing was mounted";
                return Err(ControlError::new(1, format!("ended by {name} while opening"), hint));
            }
        }
    };
    let (backend, fs) = opened;
    if reporter.is_abandoned() {
        backend.close().await;
        return Err(abandoned());
    }

    let metrics = Arc::new(Metrics::default());
    let (unmount_asked, mut asked) = mpsc::channel(1);
    let session = Arc::new(Session {
        config: config.clone(),
        mountpoint: mountpoint.clone(),
        fs: fs.clone(),
        backend: backend.clone(),
        metrics: metrics.clone(),
        started: std::time::Instant::now(),
        flags: parking_lot::Mutex::new(options.flags.clone()),
        observer: options.observer,
        unmount_asked,
    });
    // Before mounting: who sees the mount may ask for its status.
    let server = match control::bind(&config.control_socket()) {
        Ok(listener) => {
            let clients = config.limits.control_clients;
            control::Server::start(listener, session, clients)
        }
        Err(e) => {
            backend.close().await;
            return Err(internal("control socket", e));
        }
    };
    let setup = fuse::Setup {
        fs: fs.clone(),
        mountpoint: mountpoint.clone(),
        source: source(&config.file),
        flags: options.flags.clone(),
        beside: options.observer,
        limits: config.limits.clone(),
        metrics,
        runtime: tokio::runtime::Handle::current(),
    };
    let served = tokio::task::spawn_blocking(move || fuse::serve(setup)).await;
    let fuse::Serving { mut ended, kernel } = match served
        .unwrap_or_else(|e| Err(io::Error::other(e)))
    {
        Ok(serving) => serving,
        Err(e) => {
            server.close().await;
            let _ = std::fs::remove_file(config.control_socket());
            backend.close().await;
            let hint = "as another user than root, fusermount3 must be installed (package fuse3)";
            let what = format!("cannot mount at {}: {e}", mountpoint.display());
            return Err(ControlError::new(1, what, hint));
        }
    };
    // From here on something is mounted: every way out leads through `leave` or an unmount.
    tracing::info!("mounted at {}", mountpoint.display());
    reporter.tell(&Report::Ready { pid: std::process::id() });

    let fence = tokio::spawn(watch_fence(backend.clone(), fs.clone(), kernel));
    let why = tokio::select! {
        name = ends.next() => name,
        _ = asked.recv() => "tercet umount",
        result = &mut ended => {
            if let Ok(Err(e)) = result {
                tracing::error!("the FUSE session broke: {e}");
            }
            "unmounted"
        }
    };
    tracing::info!("ending: {why}");
    if why == "tercet umount" {
        // The mountpoint is free already; who still has files open may finish.
        let grace = Duration::from_millis(config.limits.shutdown_grace_ms.into());
        wait_for_users(&mut ended, &mut ends, grace).await;
    } else if why != "unmounted" {
        let grace = Duration::from_millis(config.limits.shutdown_grace_ms.into());
        leave(&mountpoint, &mut ended, &mut ends, grace).await;
    } else if is_ours(&mountpoint) {
        // The session broke while mounted: better no mount than a dead one.
        let _ = unmount(&mountpoint, true);
    }
    fence.abort();
    let result = fs.sync_all().await;
    if let Err(e) = &result {
        tracing::error!("the last operations are not known to be durable: {e}");
    }
    backend.close().await;
    server.close().await;
    let _ = std::fs::remove_file(config.control_socket());
    drop(pid_file);
    tracing::info!("ended");
    result.map_err(|e| {
        let hint = "what was acknowledged by fsync is safe; mount again when two banks answer";
        ControlError::new(1, format!("not all could be written back: {e}"), hint)
    })
}

fn running_already(living: Option<u32>, run_dir: &Path) -> ControlError {
    let who = living.map(|pid| format!(" (process {pid})")).unwrap_or_default();
    let shown = run_dir.display();
    ControlError::new(
        1,
        format!("a mount{who} with this configuration is opening or running already ({shown})"),
        "`tercet status` shows it; `tercet umount` ends it, or says what does while it opens",
    )
}

/// Whoever started this mount was ended and waits for it no more: they mean it not to be there.
fn abandoned() -> ControlError {
    let what = "the command that started this mount was ended while it was opening";
    ControlError::new(1, what, "nothing was mounted")
}

/// Once another mount has taken the volume over, nothing that the kernel still has cached may be
/// served as if it were current: it is made to forget it, and every request fails from then on.
async fn watch_fence(backend: Backend, fs: Arc<FileSystem>, kernel: fuse::KernelCache) {
    let volume = backend.volume();
    while volume.alive().is_ok() {
        tokio::time::sleep(FENCE_LOOK).await;
    }
    tracing::error!("fenced: dropping what the kernel has cached; unmount when convenient");
    // Twice: a request that was on its way when the fence fell may have brought something back.
    for _ in 0..2 {
        let (inos, kernel) = (fs.referenced(), kernel.clone());
        // In a thread: the kernel may wait for dirty pages that we must refuse meanwhile.
        let _ = tokio::task::spawn_blocking(move || kernel.drop_inodes(&inos)).await;
        tokio::time::sleep(FENCE_LOOK).await;
    }
}

async fn open(
    config: &Config,
    options: &MountOptions,
    mountpoint: &Path,
    reporter: &mut Reporter,
) -> Result<(Backend, Arc<FileSystem>), ControlError> {
    let (sender, mut progress) = mpsc::channel(PROGRESS_QUEUE);
    let sink = ProgressSink::channel(sender);
    let opening = async {
        let backend = Backend::open(config, options, mountpoint, sink).await?;
        let fs = open_fs(&backend, config, &options.flags).await;
        if fs.is_err() {
            backend.close().await;
        }
        Ok((backend, fs?))
    };
    tokio::pin!(opening);
    let mut last = control::Progress { what: "opening".into(), ..Default::default() };
    let mut alive = tokio::time::interval(control::SILENCE_MAX / 6);
    let mut look = tokio::time::interval(PARENT_LOOK);
    loop {
        tokio::select! {
            biased;
            done = &mut opening => return done,
            Some(p) = progress.recv() => {
                if p.what != last.what {
                    tracing::info!("{}", p.what);
                }
                last = p;
                reporter.tell(&Report::Progress(last.clone()));
            }
            _ = alive.tick() => reporter.tell(&Report::Progress(last.clone())),
            _ = look.tick() => if reporter.is_abandoned() {
                return Err(abandoned());
            },
        }
    }
}

/// The device of a mount: its configuration, as in fstab, so that mount(8) finds back to it for a
/// remount. Not where that would need escapes that not every reader undoes.
fn source(config: &Path) -> String {
    let text = config.to_str().filter(|t| !t.contains([',', ' ', '\t', '\n', '\\']));
    text.unwrap_or("tercet").to_owned()
}

async fn open_fs(
    backend: &Backend,
    config: &Config,
    flags: &MountFlags,
) -> Result<Arc<FileSystem>, ControlError> {
    let volume = backend.volume();
    // The FUSE layer spares the kernel the requests for open and release.
    let options = FsOptions {
        caches: config.caches,
        atime: flags.marks(),
        opens_are_told: false,
        ..FsOptions::default()
    };
    FileSystem::open(volume, options).await.map_err(|e| {
        let hint = "a new volume needs `tercet init` first; `tercet status` shows the banks";
        ControlError::new(1, format!("cannot open the filesystem: {e}"), hint)
    })
}

/// Unmounts and waits until the last user is gone; not for ever: detached, the mountpoint is free
/// for the next mount, and who still has files open gets errors from then on.
async fn leave(
    mountpoint: &Path,
    ended: &mut tokio::sync::oneshot::Receiver<io::Result<()>>,
    ends: &mut Ends,
    grace: Duration,
) {
    let detach = |lazy| {
        let mountpoint = mountpoint.to_owned();
        // In a thread: unmounting makes the kernel send us its dirty pages.
        tokio::task::spawn_blocking(move || unmount(&mountpoint, lazy))
    };
    match detach(false).await {
        Ok(Ok(())) => {}
        Ok(Err(e)) => {
            tracing::warn!("{} is in use ({e}): detaching it", mountpoint.display());
            if let Ok(Err(e)) = detach(true).await {
                tracing::error!("cannot detach {}: {e}", mountpoint.display());
            }
        }
        Err(e) => tracing::error!("unmounting: {e}"),
    }
    wait_for_users(ended, ends, grace).await;
}

async fn wait_for_users(
    ended: &mut tokio::sync::oneshot::Receiver<io::Result<()>>,
    ends: &mut Ends,
    grace: Duration,
) {
    tokio::select! {
        _ = ended => {}
        () = tokio::time::sleep(grace) => {
            tracing::warn!("files are still open after {grace:?}; their users will see errors");
        }
        name = ends.next() => tracing::warn!("{name} again: not waiting for open files"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_is_read_with_odd_names() {
        let text = "36 35 98:0 / /mnt/a\\040b rw,noatime master:1 - fuse.tercet tercet rw\n\
                    37 35 0:44 / /proc rw - proc proc rw\n\
                    rubbish\n";
        let found = parse_mountinfo(text);
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].mountpoint, Path::new("/mnt/a b"));
        assert_eq!((found[0].device.as_str(), found[0].fs_type.as_str()), ("98:0", FS_TYPE));
    }

    #[tokio::test]
    async fn places_are_judged_precisely() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "x").unwrap();
        assert_eq!(look(dir.path()).await.unwrap(), Some(dir.path().canonicalize().unwrap()));
        assert_eq!(look(&file).await.unwrap(), None);
        let nothing = dir.path().join("nothing");
        assert_eq!(look(&nothing).await.unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
