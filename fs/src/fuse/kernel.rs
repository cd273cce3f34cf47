//! What is asked of the kernel: capabilities, sizes, mount options, and the knobs it only offers
//! in /sys. Everything is named; nothing the kernel offers is passed through unseen, because fuser
//! accepts some capabilities that it does not implement.

use crate::config::MountLimits;
use crate::filesystem::Atime;
use crate::mount::MountFlags;
use fuser::{Config, InitFlags, KernelConfig, MountOption, SessionACL};
use std::path::Path;
use std::time::Duration;

/// Asked for if the kernel offers it, each with the reason.
///
/// Left out on purpose:
/// * `POSIX_LOCKS`, `FLOCK_LOCKS`: this mount is the only one that writes, so the kernel's own
///   locks are exact, interruptible and checked for deadlock; fuser cannot tell the two apart.
/// * `ATOMIC_O_TRUNC`: without it an open with `O_TRUNC` arrives as setattr and then open, so the
///   truncation needs no second path.
/// * `HANDLE_KILLPRIV` (the first version): excludes the second, and is the weaker one.
/// * `EXPORT_SUPPORT`: the kernel would look up inode numbers of an earlier mount.
/// * `PASSTHROUGH`, `OVER_IO_URING`, `SETXATTR_EXT`, `SECURITY_CTX`, `CREATE_SUPP_GROUP`,
///   `HAS_RESEND`, `REQUEST_TIMEOUT`: fuser 0.18 accepts these words without doing the work.
const WANTED: [(InitFlags, &str); 17] = [
    (InitFlags::FUSE_ASYNC_READ, "read-ahead does not wait for itself"),
    (InitFlags::FUSE_BIG_WRITES, "requests larger than a page"),
    (InitFlags::FUSE_MAX_PAGES, "requests of 1 MiB instead of 128 KiB"),
    (InitFlags::FUSE_WRITEBACK_CACHE, "small writes gather in the page cache; mmap needs no more"),
    (InitFlags::FUSE_ASYNC_DIO, "direct I/O with several requests under way"),
    (InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP, "a file may be mapped and open with O_DIRECT"),
    (InitFlags::FUSE_PARALLEL_DIROPS, "lookups and readdir of one directory side by side"),
    (InitFlags::FUSE_DO_READDIRPLUS, "ls -l in one request per page"),
    (InitFlags::FUSE_READDIRPLUS_AUTO, "and plain readdir where nobody asks for attributes"),
    (InitFlags::FUSE_CACHE_SYMLINKS, "readlink from the page cache"),
    (InitFlags::FUSE_EXPLICIT_INVAL_DATA, "cached pages stay: nobody else writes"),
    (InitFlags::FUSE_HANDLE_KILLPRIV_V2, "saves a getxattr of security.capability per write"),
    (
        InitFlags::FUSE_POSIX_ACL,
        "the kernel enforces access lists; the filesystem keeps modes in step",
    ),
    (InitFlags::FUSE_DONT_MASK, "a default access list takes the place of the umask"),
    (InitFlags::FUSE_NO_OPEN_SUPPORT, "open and close of a file without requests"),
    (InitFlags::FUSE_NO_OPENDIR_SUPPORT, "the same for directories, and listings from cache"),
    (InitFlags::FUSE_ALLOW_IDMAP, "unprivileged containers with idmapped root filesystems"),
];

/// Not asked for by a mount that reads beside the one that writes: there cached pages and listings must
/// go when their file has changed.
const NOT_BESIDE: InitFlags =
    InitFlags::FUSE_WRITEBACK_CACHE.union(InitFlags::FUSE_EXPLICIT_INVAL_DATA);

/// What it asks for instead: the kernel drops pages and listings when a file has another size or mtime
/// than they were read with.
const BESIDE: (InitFlags, &str) =
    (InitFlags::FUSE_AUTO_INVAL_DATA, "another mount writes: cached pages go by size and mtime");

/// Which requests need not be sent, as agreed with the kernel.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Spared {
    /// open and release.
    pub(super) open: bool,
    /// opendir and releasedir.
    pub(super) opendir: bool,
}

/// Answers INIT.
pub(super) fn negotiate(config: &mut KernelConfig, limits: &MountLimits, beside: bool) -> Spared {
    let wanted = WANTED.into_iter().filter(|(flag, _)| !beside || !flag.intersects(NOT_BESIDE));
    for (flag, why) in wanted.chain(beside.then_some(BESIDE)) {
        if config.add_capabilities(flag).is_err() {
            tracing::info!("this kernel does not offer {flag:?} ({why})");
        }
    }
    // Each setter answers with the nearest value it takes.
    if let Err(nearest) = config.set_max_write(limits.request_bytes) {
        let _ = config.set_max_write(nearest);
    }
    if let Err(nearest) = config.set_max_readahead(limits.readahead_bytes) {
        let _ = config.set_max_readahead(nearest);
    }
    let background = limits.background_requests;
    let _ = config.set_max_background(background);
    let _ = config.set_congestion_threshold((background / 4 * 3).max(1));
    let _ = config.set_time_granularity(Duration::from_nanos(1));
    tracing::debug!("kernel speaks FUSE {}", config.kernel_abi());
    let offered = config.capabilities();
    Spared {
        open: offered.contains(InitFlags::FUSE_NO_OPEN_SUPPORT),
        opendir: offered.contains(InitFlags::FUSE_NO_OPENDIR_SUPPORT),
    }
}

/// Options of the mount and of fuser's session.
pub(super) fn session_config(
    source: &str,
    flags: &MountFlags,
    limits: &MountLimits,
    root: bool,
) -> Config {
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName(source.into()),
        // fuser keeps its own `Subtype` from the kernel when it mounts without the helper.
        MountOption::CUSTOM("subtype=tercet".into()),
        // The kernel checks permissions; nothing is checked again here.
        MountOption::DefaultPermissions,
    ];
    for (on, option) in [
        (flags.read_only, MountOption::RO),
        (flags.noexec, MountOption::NoExec),
        (flags.sync, MountOption::Sync),
        // For whoever looks; the kernel leaves access times of FUSE files alone.
        (flags.atime == Atime::Never, MountOption::NoAtime),
    ] {
        if on {
            config.mount_options.push(option);
        }
    }
    // Only root may ask for these two; containers' root filesystems need them.
    if root && !flags.nodev {
        config.mount_options.push(MountOption::Dev);
    }
    if root && !flags.nosuid {
        config.mount_options.push(MountOption::Suid);
    }
    let all = flags.allow_other.unwrap_or(root);
    config.acl = if all { SessionACL::All } else { SessionACL::Owner };
    config.n_threads = Some(limits.fuse_threads.max(1).into());
    config.clone_fd = true;
    config
}

/// Sets what the kernel only offers in /sys: read-ahead, and how much is dirty. Needs root;
/// without it the mount works, only slower.
pub(super) fn tune(mountpoint: &Path, limits: &MountLimits) {
    let Some(device) = device_of(mountpoint) else {
        tracing::warn!("{} is not in mountinfo: read-ahead stays small", mountpoint.display());
        return;
    };
    let dir = Path::new("/sys/class/bdi").join(device);
    for (knob, value) in [
        ("read_ahead_kb", u64::from(limits.readahead_bytes / 1024)),
        ("max_bytes", u64::from(limits.dirty_pages_bytes)),
        // By this mount's share alone, however much of the machine's limit is free: else the kernel keeps
        // what is written until a sync asks for it.
        ("strict_limit", 1),
    ] {
        if let Err(e) = std::fs::write(dir.join(knob), value.to_string()) {
            tracing::info!("cannot set {}/{knob} to {value}: {e}", dir.display());
        }
    }
}

/// `major:minor` of what is mounted there, without asking the mount itself (which is us).
fn device_of(mountpoint: &Path) -> Option<String> {
    crate::mount::mounts()
        .ok()?
        .into_iter()
        .rev()
        .find(|m| m.mountpoint == mountpoint)
        .map(|m| m.device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_gets_devices_and_suid_others_do_not() {
        let limits = MountLimits::default();
        let root = session_config("t", &MountFlags::default(), &limits, true);
        assert!(root.mount_options.contains(&MountOption::Dev));
        assert!(root.mount_options.contains(&MountOption::Suid));
        assert_eq!(root.acl, SessionACL::All);
        let user = session_config("t", &MountFlags::default(), &limits, false);
        assert!(!user.mount_options.contains(&MountOption::Suid));
        assert_eq!(user.acl, SessionACL::Owner);
        let flags = MountFlags { nodev: true, nosuid: true, ..MountFlags::default() };
        let careful = session_config("t", &flags, &limits, true);
        assert!(!careful.mount_options.contains(&MountOption::Dev));
    }

    #[test]
    fn no_capability_is_wanted_twice_or_forbidden() {
        let mut all = InitFlags::empty();
        for (flag, why) in WANTED {
            assert!(!all.intersects(flag) && !why.is_empty());
            all |= flag;
        }
        let never = InitFlags::FUSE_POSIX_LOCKS
            | InitFlags::FUSE_FLOCK_LOCKS
            | InitFlags::FUSE_SETXATTR_EXT
            | InitFlags::FUSE_OVER_IO_URING;
        assert!(!all.intersects(never));
    }
}
