//! `mount`, `umount`, and `mount.tercet` for mount(8) and fstab.

use super::{Bar, OK, Outcome, USAGE, WRONG, say};
use crate::config::{AutoReplace, Config};
use crate::control::{self, Ask, ControlError};
use crate::daemon::{self, Report, Reporter};
use crate::mount::{self, MountFlags, MountOptions, Wish};
use clap::Args;
use serde_json::Value;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The mount process writes back and ends within this after an unmount.
const END_MAX: Duration = Duration::from_secs(60);
/// Threads for requests that wait, for connections and for repair.
const RUNTIME_THREADS_MAX: usize = 4;

#[derive(Args, Debug)]
pub(super) struct MountArgs {
    /// Where; default: the configuration's mount.mountpoint
    mountpoint: Option<PathBuf>,
    /// Stay in the foreground and log to standard error
    #[arg(long, short)]
    foreground: bool,
    /// Take the volume although another mount holds it; that one fails from then on
    #[arg(long)]
    takeover: bool,
    /// Only read, beside the mount that holds the volume (on this host or another); changes are seen
    /// within 2 s
    #[arg(long, conflicts_with = "takeover")]
    observer: bool,
    /// Compare and mend all banks every so many seconds; default: limits.refresh_interval_s
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    refresh_interval: Option<u64>,
    /// Copy at most so many MiB per second to replicas that catch up or are refilled, whether people
    /// work or not; default: limits.refill_bytes_per_s, refill_busy_bytes_per_s while people work
    #[arg(long, value_name = "MIB/S", value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    refill_rate: Option<u64>,
    /// Refill stores that come back empty or rolled back without asking; default:
    /// mount.auto_replace
    #[arg(long, value_name = "true|false")]
    auto_replace: Option<bool>,
    /// As of mount(8): ro, nodev, nosuid, noexec, sync, noatime, relatime, strictatime, allow_other,
    /// noallow_other, takeover, observer; with remount: change the mount that is there
    #[arg(short = 'o', value_name = "OPTIONS", value_delimiter = ',')]
    options: Vec<String>,
    /// Report to the process that started this one (used by itself)
    #[arg(long, hide = true, requires = "foreground")]
    report: bool,
    /// Keep everything in memory, with so many shards: measures the mount without banks
    #[arg(long, hide = true, value_name = "SHARDS", num_args = 0..=1, require_equals = true, default_missing_value = "1")]
    memory: Option<u16>,
    /// With --memory: three banks in this process, voted on and written to like any, without HTTP and
    /// disks
    #[cfg(feature = "memory-banks")]
    #[arg(long, hide = true, requires = "memory")]
    memory_banks: bool,
}

pub(super) fn mount(config: Config, args: MountArgs) -> Outcome {
    let mut reporter = Reporter::none();
    if args.report {
        reporter = Reporter::from_stdin().map_err(|e| {
            let hint = "leave --report out";
            ControlError::new(
                USAGE,
                format!("--report needs a socket as standard input: {e}"),
                hint,
            )
        })?;
    }
    let result = mount_or_spawn(config, &args, &mut reporter);
    if let Err(error) = &result {
        reporter.tell(&Report::Failed(error.clone()));
    }
    result
}

fn mount_or_spawn(mut config: Config, args: &MountArgs, reporter: &mut Reporter) -> Outcome {
    if let Some(seconds) = args.refresh_interval {
        config.voter.refresh_interval_s = seconds;
    }
    if let Some(rate) = args.refill_rate {
        config.voter.refill_bytes_per_s = rate << 20;
        config.voter.refill_busy_bytes_per_s = rate << 20;
    }
    if let Some(on) = args.auto_replace {
        config.mount.auto_replace = AutoReplace(on);
    }
    let mountpoint = args.mountpoint.clone().or_else(|| config.mountpoint()).ok_or_else(|| {
        let hint = "`tercet mount /mnt/tercet`, or set mount.mountpoint in the configuration";
        ControlError::new(USAGE, "no mountpoint", hint)
    })?;
    let allow_other = config.mount.allow_other;
    let mut wish = Wish {
        flags: MountFlags { allow_other, ..MountFlags::default() },
        takeover: args.takeover,
        observer: args.observer,
        remount: false,
    };
    wish.apply(&args.options)?;
    if wish.remount {
        return runtime()?.block_on(remount(&config, &mountpoint, &args.options));
    }
    let mountpoint = std::path::absolute(&mountpoint).unwrap_or(mountpoint);
    if wish.observer {
        config = config.for_observer(&mountpoint);
    }
    let options = MountOptions {
        mountpoint,
        takeover: wish.takeover,
        observer: wish.observer,
        memory: args.memory,
        #[cfg(feature = "memory-banks")]
        memory_banks: args.memory_banks,
        flags: wish.flags,
    };
    if options.memory.is_none() {
        // Before anything is started, so that the message is short.
        config.token()?;
    }
    if args.foreground {
        crate::telemetry::start("info,fuser=error");
        let runtime = runtime()?;
        runtime.block_on(mount::run(config, options, reporter))?;
        // Tasks that wait for a dead node must not keep the process.
        runtime.shutdown_timeout(Duration::from_secs(2));
        return Ok(OK);
    }
    in_background(&config, args, &options)
}

/// Changes the options of the mount that is there; those that are not mentioned stay.
async fn remount(config: &Config, mountpoint: &Path, options: &[String]) -> Outcome {
    let config = &of_mount_at(config, Some(mountpoint));
    let socket = config.control_socket();
    let about: Value = control::ask(&socket, &Ask::Hello, |_| ()).await?;
    let at = mounted_at(&about, Some(mountpoint))?;
    let flags = serde_json::from_value(about["flags"].clone()).map_err(|e| {
        let hint = "unmount and mount again with this version";
        ControlError::new(WRONG, format!("the running mount does not tell its options: {e}"), hint)
    })?;
    let mut wish = Wish { flags, ..Wish::default() };
    wish.apply(options)?;
    let _: Value = control::ask(&socket, &Ask::Remount { flags: wish.flags }, |_| ()).await?;
    say(&format!("remounted {}", at.display()));
    Ok(OK)
}

/// Where the running mount is; an error if another place was named.
fn mounted_at(about: &Value, named: Option<&Path>) -> Result<PathBuf, ControlError> {
    let at = PathBuf::from(about["mountpoint"].as_str().unwrap_or_default());
    let named = named.map(|m| std::path::absolute(m).unwrap_or_else(|_| m.to_owned()));
    match named.filter(|n| *n != at && n.canonicalize().ok().as_ref() != Some(&at)) {
        None => Ok(at),
        Some(named) => {
            let hint = format!("name {}, or nothing", at.display());
            let (at, named) = (at.display(), named.display());
            let what = format!("this configuration is mounted at {at}, not {named}");
            Err(ControlError::new(USAGE, what, hint))
        }
    }
}

fn runtime() -> Result<tokio::runtime::Runtime, ControlError> {
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads.clamp(2, RUNTIME_THREADS_MAX))
        .thread_name("tercet")
        .enable_all()
        .build()
        .map_err(|e| ControlError::new(WRONG, format!("cannot start threads: {e}"), ""))
}

fn in_background(config: &Config, args: &MountArgs, options: &MountOptions) -> Outcome {
    let run_dir = config.run_dir();
    control::private_dir(&run_dir).map_err(|e| {
        let hint = "the directory of the configuration file must be writable";
        ControlError::new(WRONG, format!("cannot make {}: {e}", run_dir.display()), hint)
    })?;
    let mut words: Vec<OsString> = vec!["--config".into(), config.file.clone().into()];
    words.extend(["mount", "--foreground", "--report"].map(OsString::from));
    words.push(options.mountpoint.clone().into());
    for (on, word) in [(options.takeover, "--takeover"), (options.observer, "--observer")] {
        if on {
            words.push(word.into());
        }
    }
    if let Some(seconds) = args.refresh_interval {
        words.push(format!("--refresh-interval={seconds}").into());
    }
    if let Some(rate) = args.refill_rate {
        words.push(format!("--refill-rate={rate}").into());
    }
    if let Some(on) = args.auto_replace {
        words.push(format!("--auto-replace={on}").into());
    }
    if let Some(shards) = options.memory {
        words.push(format!("--memory={shards}").into());
        #[cfg(feature = "memory-banks")]
        if options.memory_banks {
            words.push("--memory-banks".into());
        }
    }
    if !args.options.is_empty() {
        words.extend(["-o".into(), args.options.join(",").into()]);
    }
    let bar = Bar::new(false);
    let log = run_dir.join("mount.log");
    let pid = daemon::spawn(&words, &log, |p| bar.show(&p))?;
    drop(bar);
    say(&format!(
        "mounted at {} (process {pid}, log {})",
        options.mountpoint.display(),
        log.display()
    ));
    Ok(OK)
}

/// The configuration as the mount at this place has it: an observer was mounted there, or not.
pub(super) fn of_mount_at(config: &Config, mountpoint: Option<&Path>) -> Config {
    let observer = mountpoint
        .and_then(|m| std::path::absolute(m).ok())
        .map(|m| config.for_observer(&m))
        .filter(|c| daemon::pid_file(&c.control_socket()).exists());
    observer.unwrap_or_else(|| config.clone())
}

pub(super) async fn umount(config: &Config, mountpoint: Option<&Path>, lazy: bool) -> Outcome {
    let config = &of_mount_at(config, mountpoint);
    let socket = config.control_socket();
    let pid_file = daemon::pid_file(&socket);
    let named = mountpoint.map(|m| std::path::absolute(m).unwrap_or_else(|_| m.to_owned()));
    let about: Value = match control::ask(&socket, &Ask::Hello, |_| ()).await {
        Ok(about) => about,
        Err(error) => {
            // A mount that died leaves its mountpoint behind; that can be cleaned up here.
            let dead = daemon::died_at(&pid_file).filter(|m| mount::is_ours(m));
            let Some(dead) = dead.filter(|d| named.is_none_or(|n| n == *d)) else {
                return Err(error);
            };
            mount::unmount(&dead, true).map_err(|e| {
                let what = format!("cannot detach the dead mount at {}: {e}", dead.display());
                ControlError::new(WRONG, what, format!("umount -l {}", dead.display()))
            })?;
            say(&format!("{}: detached what a dead mount had left", dead.display()));
            return Ok(OK);
        }
    };
    let at = mounted_at(&about, mountpoint)?;
    let bar = Bar::new(false);
    let _: Value = control::ask(&socket, &Ask::Unmount { lazy }, |p| bar.show(&p)).await?;
    drop(bar);
    let ended = tokio::task::spawn_blocking(move || daemon::wait_end(&pid_file, END_MAX)).await;
    if !ended.unwrap_or(false) {
        let log = config.run_dir().join("mount.log");
        let what = format!("unmounted, but the mount process lives on after {END_MAX:?}");
        return Err(ControlError::new(WRONG, what, format!("read {}", log.display())));
    }
    say(&format!("unmounted {}", at.display()));
    Ok(OK)
}

/// Names under which mount(8) looks for us: by the type in fstab, and by the type in mountinfo (for
/// `mount -o remount,... MOUNTPOINT`).
const HELPERS: [&str; 2] = ["mount.tercet", "mount.fuse.tercet"];

/// `mount -t tercet CONFIG MOUNTPOINT` calls `mount.tercet CONFIG MOUNTPOINT [-sfnv] [-o OPTIONS]`:
/// the words of our own command line for that, if this is how we were called.
pub(super) fn as_mount_helper(args: &[OsString]) -> Option<Result<Vec<OsString>, ControlError>> {
    let name = Path::new(args.first()?).file_name()?.to_str()?;
    HELPERS.contains(&name).then(|| translate(&args[1..]))
}

fn translate(args: &[OsString]) -> Result<Vec<OsString>, ControlError> {
    let usage = |what: String| {
        let hint = "mount -t tercet /etc/tercet/tercet.toml /mnt/tercet -o nodev,nosuid";
        ControlError::new(USAGE, what, hint)
    };
    let mut places = Vec::new();
    let mut options: Vec<String> = Vec::new();
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let text = arg.to_str().ok_or_else(|| usage("an argument is not UTF-8".into()))?;
        match text {
            "-o" => {
                let list = args.next().and_then(|l| l.to_str());
                options.extend(list.unwrap_or_default().split(',').map(str::to_owned));
            }
            "-N" | "-t" => {
                args.next();
            }
            _ if text.starts_with("-o") => {
                options.extend(text[2..].split(',').map(str::to_owned));
            }
            // -s sloppy, -f fake, -n no mtab, -v verbose: nothing to do for these.
            _ if text.starts_with('-') && text[1..].chars().all(|c| "sfnv".contains(c)) => {
                if text.contains('f') {
                    return Err(usage("-f (fake) is not supported".into()));
                }
            }
            _ if text.starts_with('-') => return Err(usage(format!("unknown option {text}"))),
            _ => places.push(arg.clone()),
        }
    }
    let [config, mountpoint] = <[OsString; 2]>::try_from(places)
        .map_err(|_| usage("mount.tercet needs a configuration file and a mountpoint".into()))?;
    let mut words = vec!["tercet".into(), "--config".into(), config, "mount".into(), mountpoint];
    options.retain(|o| !o.is_empty());
    if !options.is_empty() {
        words.extend(["-o".into(), options.join(",").into()]);
    }
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn helper(words: &[&str]) -> Option<Result<Vec<OsString>, ControlError>> {
        as_mount_helper(&words.iter().map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn fstab_lines_become_commands() {
        assert!(helper(&["/usr/bin/tercet", "mount"]).is_none());
        let words = helper(&["/sbin/mount.tercet", "/etc/t.toml", "/srv", "-sn", "-o", "rw,nodev"]);
        let words = words.unwrap().unwrap();
        assert_eq!(words, ["tercet", "--config", "/etc/t.toml", "mount", "/srv", "-o", "rw,nodev"]);
        assert_eq!(helper(&["mount.tercet", "/etc/t.toml"]).unwrap().unwrap_err().code, USAGE);
        assert!(helper(&["mount.tercet", "a", "b", "-x"]).unwrap().is_err());
    }
}
