//! The command `tercet`: what people type. `--help` teaches by example.

mod drill;
mod look;
mod mounting;
mod setup;
mod work;

use crate::config::Config;
use crate::control::{ControlError, Progress};
use clap::{Args, Parser, Subcommand, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::process::ExitCode;

/// All is well.
pub const OK: u8 = 0;
/// Something is wrong, or could not be done.
pub const WRONG: u8 = 1;
/// The command line or the configuration is wrong.
pub const USAGE: u8 = 2;
/// No mount, or not enough nodes, can be reached.
pub const UNREACHABLE: u8 = 3;

const ABOUT: &str = "A filesystem whose every byte is held by three banks and voted on";

const LONG_ABOUT: &str = "\
A filesystem whose every byte is held by three banks of storage nodes. Readers see what a majority
says; what is damaged, stale or missing on one bank is repaired when it is touched, and by a
refresh every minute when it is not.

A first volume, on one machine:
  tercet token token                          # a secret for nodes and mounts
  storenode serve --dir a --listen 127.0.0.1:7000 --bank A --shard 0 --token-file token &
  storenode serve --dir b --listen 127.0.0.1:8000 --bank B --shard 0 --token-file token &
  storenode serve --dir c --listen 127.0.0.1:9000 --bank C --shard 0 --token-file token &
  tercet config --example > tercet.toml       # edit: banks, mountpoint
  tercet init                                 # once: makes the volume
  tercet mount /mnt/tercet
  tercet status";

const AFTER: &str = "\
The configuration is --config FILE, else ./tercet.toml, else /etc/tercet/tercet.toml.
Its directory also holds run/: the running mount's socket, process id and log.

Exit codes: 0 done; 1 something is wrong or could not be done; 2 command line or configuration;
3 no mount, or not enough nodes, can be reached.";

#[derive(Parser, Debug)]
#[command(name = "tercet", version, about = ABOUT, long_about = LONG_ABOUT, after_help = AFTER)]
struct Cli {
    /// Configuration file
    #[arg(long, short = 'c', global = true, value_name = "FILE", env = "TERCET_CONFIG")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Make the secret that nodes and mounts share
    #[command(after_help = "Examples:\n  tercet token token\n  \
        tercet token /etc/tercet/token     # copy it, mode 0600, to every machine of the volume\n\n\
        A token that is there already is left as it is.")]
    Token {
        /// File to make, mode 0600
        file: PathBuf,
    },
    /// Show the effective configuration, or an example
    #[command(
        after_help = "Examples:\n  tercet config                      # every limit, its value and its meaning\n  \
        tercet config --check && echo good\n  tercet config --example > tercet.toml"
    )]
    Config {
        /// Only check file and token; print nothing if they are good
        #[arg(long)]
        check: bool,
        /// Print a file to begin with
        #[arg(long, conflicts_with = "check")]
        example: bool,
    },
    /// Make the volume and its filesystem: once, with all three banks up
    #[command(after_help = "Examples:\n  tercet init\n  \
        tercet init --block-size 64KiB     # for large files that are written in large pieces\n\n\
        All nodes must be up and blank. Run again it changes nothing, and completes what a first\n\
        run that broke off has begun.")]
    Init(setup::InitArgs),
    /// Mount the volume
    #[command(
        after_help = "Examples:\n  tercet mount                       # at the configuration's mountpoint, in the background\n  \
        tercet mount /mnt/tercet --foreground\n  \
        tercet mount --takeover            # from a mount that still holds the volume\n  \
        tercet mount --observer /mnt/view  # read beside the mount that writes\n  \
        echo '/etc/tercet/tercet.toml /mnt/tercet tercet _netdev 0 0' >> /etc/fstab\n\n\
        In the background it returns when files can be opened, or says why not. The log is\n\
        run/mount.log beside the configuration; TERCET_LOG=debug says more."
    )]
    Mount(mounting::MountArgs),
    /// Unmount: write back, release the volume, end the mount process
    #[command(
        after_help = "Examples:\n  tercet umount\n  tercet umount --lazy               # although files are open"
    )]
    Umount {
        /// Mountpoint, to be sure that it is the right one
        mountpoint: Option<PathBuf>,
        /// Detach at once; open files work until they are closed, or for the grace period
        #[arg(long, short)]
        lazy: bool,
    },
    /// Show banks, shards, redundancy and what is being repaired
    #[command(after_help = "Examples:\n  tercet status\n  tercet status --watch\n  \
        tercet status --json | jq '.cluster.redundancy'\n  \
        tercet status --check || echo not fully redundant\n\n\
        Works without a mount too; then each node speaks for itself.")]
    Status(look::StatusArgs),
    /// Show the keys of a path and what every bank holds under them
    #[command(after_help = "Examples:\n  tercet inspect /mnt/tercet/etc/passwd\n  \
        tercet inspect --json /mnt/tercet/f | jq '.keys[].copies'\n\n\
        ok = whole and newest; stale = older; corrupt = does not match its digest;\n\
        missing, foreign, silent (no answer). Exit code 1 if any copy is not ok.")]
    Inspect(look::InspectArgs),
    /// Compare all banks and repair what differs, now
    #[command(
        after_help = "Examples:\n  tercet refresh\n\nThe mount does this by itself every limits.refresh_interval_s."
    )]
    Refresh(work::WorkArgs),
    /// Re-read every value on every bank and repair what is damaged, now
    #[command(
        after_help = "Examples:\n  tercet scrub\n\nThe mount does a part of this with each refresh."
    )]
    Scrub(work::WorkArgs),
    /// Check that the whole tree is consistent; changes nothing
    #[command(after_help = "Examples:\n  tercet check && echo consistent\n  \
        tercet check --data                # also counts the blocks of every file\n\n\
        Run it on a quiet mount: what changes while it looks is not counted as wrong, but looked\n\
        at again. Exit code 1 if something is wrong.")]
    Check(work::CheckArgs),
    /// Let a lost store be filled anew from the two other banks
    #[command(
        after_help = "Examples:\n  tercet replace B                   # every shard of bank B that is not up to date\n  \
        tercet replace B 0\n  tercet status --watch              # see it fill\n\n\
        Needed only with mount.auto_replace = false; else the mount does it by itself. What the\n\
        store still holds of this volume is dropped; a store of another volume is not touched."
    )]
    Replace {
        /// Bank
        bank: BankName,
        /// Shard
        shard: Option<u16>,
    },
    /// Break something on one bank on purpose, to see it heal
    #[command(after_help = "Examples:\n  tercet fault corrupt --bank B /mnt/tercet/f\n  \
        tercet fault corrupt --bank B --what metadata /mnt/tercet/f\n  \
        tercet fault drop --bank C /mnt/tercet/f\n  \
        tercet fault put --bank A --shard 0 20000000000000000166 CORRUPTED\n  \
        tercet inspect /mnt/tercet/f       # see it\n  \
        cat /mnt/tercet/f > /dev/null      # heal it by reading, or: tercet refresh; tercet scrub\n\n\
        The nodes must run with --allow-faults.")]
    Fault {
        #[command(subcommand)]
        fault: drill::Fault,
    },
}

/// A bank, as people write it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum BankName {
    /// First bank
    #[value(alias = "A")]
    A,
    /// Second bank
    #[value(alias = "B")]
    B,
    /// Third bank
    #[value(alias = "C")]
    C,
}

/// Runs the command line and gives the exit code.
#[must_use]
pub fn main() -> ExitCode {
    let mut args: Vec<OsString> = std::env::args_os().collect();
    if let Some(helper) = mounting::as_mount_helper(&args) {
        match helper {
            Ok(translated) => args = translated,
            Err(error) => return fail(&error),
        }
    }
    let cli = Cli::parse_from(args);
    match run(cli) {
        Ok(code) => ExitCode::from(code),
        Err(error) => fail(&error),
    }
}

fn fail(error: &ControlError) -> ExitCode {
    let mut err = std::io::stderr().lock();
    // A closed stderr is no reason to panic.
    let _ = writeln!(err, "tercet: {}", error.message);
    if !error.hint.is_empty() {
        let _ = writeln!(err, "    -> {}", error.hint);
    }
    ExitCode::from(error.code)
}

type Outcome = Result<u8, ControlError>;

fn run(cli: Cli) -> Outcome {
    let load = || Config::load(cli.config.as_deref()).map_err(ControlError::from);
    match cli.command {
        Command::Token { file } => setup::token(&file),
        Command::Config { example: true, .. } => {
            say(crate::config::EXAMPLE);
            Ok(OK)
        }
        Command::Config { check, .. } => setup::config(&load()?, check),
        Command::Mount(args) => mounting::mount(load()?, args),
        other => {
            let config = load()?;
            quiet_log();
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(|e| ControlError::new(WRONG, format!("cannot start: {e}"), ""))?;
            runtime.block_on(async {
                match other {
                    Command::Init(args) => setup::init(&config, &args).await,
                    Command::Umount { mountpoint, lazy } => {
                        mounting::umount(&config, mountpoint.as_deref(), lazy).await
                    }
                    Command::Status(args) => look::status(&config, &args).await,
                    Command::Inspect(args) => look::inspect(&config, &args).await,
                    Command::Refresh(args) => work::refresh(&config, &args).await,
                    Command::Scrub(args) => work::scrub(&config, &args).await,
                    Command::Check(args) => work::check(&config, &args).await,
                    Command::Replace { bank, shard } => work::replace(&config, bank, shard).await,
                    Command::Fault { fault } => drill::fault(&config, &fault).await,
                    Command::Token { .. } | Command::Config { .. } | Command::Mount(_) => Ok(OK),
                }
            })
        }
    }
}

/// Commands that end soon log only what went wrong.
fn quiet_log() {
    crate::telemetry::start("error");
}

/// Prints to standard output; a reader that went away (`| head`) is no error.
pub(crate) fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{}", text.trim_end_matches('\n'));
}

/// Shows progress of long work: a bar with rate and time left on a terminal, else nothing.
pub(crate) struct Bar(Option<ProgressBar>);

impl Bar {
    /// Nothing is shown until something is known.
    pub(crate) fn new(quiet: bool) -> Self {
        let shown = !quiet && std::io::stderr().is_terminal();
        Self(shown.then(|| ProgressBar::new(0)))
    }

    /// Takes progress in.
    pub(crate) fn show(&self, p: &Progress) {
        let Some(bar) = &self.0 else { return };
        let style = match (p.total, p.unit.as_str()) {
            (0, _) => "{spinner} {msg}",
            (_, "bytes") => {
                "{msg} [{bar:30}] {bytes}/{total_bytes} {binary_bytes_per_sec}, {eta} left"
            }
            _ => "{msg} [{bar:30}] {pos}/{len} {per_sec}, {eta} left",
        };
        if let Ok(style) = ProgressStyle::with_template(style) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_message(p.what.clone());
        bar.set_length(p.total);
        bar.set_position(p.done);
        bar.tick();
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

/// Bytes as people read them.
pub(crate) fn bytes(n: u64) -> String {
    indicatif::BinaryBytes(n).to_string()
}

/// Seconds as people read them.
pub(crate) fn seconds(n: u64) -> String {
    indicatif::HumanDuration(std::time::Duration::from_secs(n)).to_string()
}

/// The path below the root of the volume, of a path in the mount: found as the kernel finds it, so that
/// what is shown or broken is what other programs see there. Follows no symbolic link at its end.
pub(crate) fn below_root(path: &Path, mountpoint: &Path) -> Result<String, ControlError> {
    let relative = resolve(path, mountpoint, |p| {
        // Resolving may forgive a slash behind what is no directory; looking does not.
        std::fs::metadata(p).and_then(|_| p.canonicalize())
    })?;
    relative.into_os_string().into_string().map_err(|name| {
        let what = format!("{} is not UTF-8", name.display());
        ControlError::new(USAGE, what, "such names cannot be inspected yet")
    })
}

/// The same over any `canonicalize`.
fn resolve(
    path: &Path,
    mountpoint: &Path,
    canonicalize: impl Fn(&Path) -> io::Result<PathBuf>,
) -> Result<PathBuf, ControlError> {
    let shown = path.display();
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let inside = |p: &Path| p.strip_prefix(mountpoint).ok().map(Path::to_owned);
    let (through, name) = match (absolute.parent(), absolute.file_name()) {
        // With a slash behind it: it must be a directory.
        (Some(parent), Some(name)) if !is_followed(path) => (parent.join(""), Some(name)),
        _ => (path.to_owned(), None),
    };
    let found = match canonicalize(&through) {
        Ok(through) => {
            let found = name.map_or_else(|| through.clone(), |name| through.join(name));
            // A link beside the mount that leads into it.
            inside(&found).or_else(|| inside(&canonicalize(&found).ok()?))
        }
        // The mount cannot read a directory on the way, or hides it from root: what stands there can be
        // asked for all the same. Where `..` leads is not known then.
        Err(e) if matches!(e.raw_os_error(), Some(libc::EIO | libc::EACCES)) => {
            if absolute.components().any(|c| c == Component::ParentDir) {
                let hint = "name it without `..`";
                return Err(ControlError::new(WRONG, format!("{shown}: {e}"), hint));
            }
            inside(&absolute)
        }
        Err(e) => return Err(ControlError::new(WRONG, format!("{shown}: {e}"), "check the path")),
    };
    found.ok_or_else(|| {
        let at = mountpoint.display();
        let what = format!("{shown} is not in the mount at {at}");
        ControlError::new(USAGE, what, format!("name a path below {at}"))
    })
}

/// Does the kernel follow a link at the end of this path, and want a directory there?
fn is_followed(path: &Path) -> bool {
    let bytes = path.as_os_str().as_bytes();
    let last = bytes.rsplit(|b| *b == b'/').next().unwrap_or_default();
    matches!(last, b"" | b"." | b"..")
}

#[derive(Args, Debug, Clone, Copy)]
pub(crate) struct JsonArg {
    /// As JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound_and_every_command_has_an_example() {
        let mut command = Cli::command();
        command.clone().debug_assert();
        for sub in command.get_subcommands_mut() {
            let help = sub.render_long_help().to_string();
            assert!(help.contains("Examples:"), "{} teaches nothing", sub.get_name());
        }
    }

    #[test]
    fn paths_are_found_as_the_kernel_finds_them() {
        use std::os::unix::fs::symlink;
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().canonicalize().unwrap();
        let mnt = top.join("mnt");
        std::fs::create_dir_all(mnt.join("d/e")).unwrap();
        for file in ["mnt/f", "mnt/d/f", "lim", "mnt/lim"] {
            std::fs::write(top.join(file), "").unwrap();
        }
        symlink("d", mnt.join("link")).unwrap();
        symlink(mnt.join("d"), top.join("beside")).unwrap();
        symlink("/etc", mnt.join("out")).unwrap();
        let found = |path: &str| below_root(&top.join(path), &mnt);
        for (path, below) in [
            ("mnt", ""),
            ("mnt/", ""),
            ("mnt/f", "f"),
            ("mnt/./f", "f"),
            ("mnt/new", "new"),
            ("mnt/d/../f", "f"),
            ("mnt/../mnt/f", "f"),
            ("mnt/link", "link"),
            ("mnt/link/", "d"),
            ("mnt/link/.", "d"),
            ("mnt/link/f", "d/f"),
            ("mnt/link/..", ""),
            ("beside", "d"),
            ("beside/f", "d/f"),
        ] {
            assert_eq!(found(path).unwrap(), below, "{path}");
        }
        for outside in ["mnt/../lim", "lim", "mnt/..", "mnt/out/passwd"] {
            assert_eq!(found(outside).unwrap_err().code, USAGE, "{outside}");
        }
        for (path, why) in [
            ("mnt/f/", "Not a directory"),
            ("mnt/f/.", "Not a directory"),
            ("mnt/f/g", "Not a directory"),
            ("mnt/no/f", "No such file"),
        ] {
            let error = found(path).unwrap_err();
            assert!(error.code == WRONG && error.message.contains(why), "{path}: {error}");
        }
    }

    #[test]
    fn what_the_mount_cannot_read_can_be_asked_for_by_its_plain_name() {
        let mnt = Path::new("/mnt/t");
        let unreadable = |_: &Path| Err(io::Error::from_raw_os_error(libc::EIO));
        let found = |path: &str| resolve(Path::new(path), mnt, unreadable);
        assert_eq!(found("/mnt/t/a/b").unwrap(), Path::new("a/b"));
        assert_eq!(found("/mnt/t/../t/b").unwrap_err().code, WRONG);
        assert_eq!(found("/elsewhere/b").unwrap_err().code, USAGE);
    }

    #[test]
    fn the_help_of_inspect_reads_what_inspect_writes() {
        let copies = Vec::new();
        let key = voter::status::Inspected { shard: 0, key: "10".into(), pending: false, copies };
        let written = serde_json::to_value(key).unwrap();
        let mut command = Cli::command();
        let inspect = command.find_subcommand_mut("inspect").unwrap();
        let help = inspect.render_long_help().to_string();
        let asked = help.split("'.keys[].").nth(1).and_then(|h| h.split('\'').next()).unwrap();
        assert!(written.get(asked).is_some(), "{asked} is not in {written}");
    }
}
