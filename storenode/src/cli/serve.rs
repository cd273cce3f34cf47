//! `storenode serve`: everything is checked before anything is made, so that a wrong flag leaves no
//! trace; then the store is opened, served, and closed in order.

use super::look::role_words;
use super::target::cannot_open;
use super::{Failure, Outcome, parse_bank, text};
use clap::Args;
use rustix::process::{Resource, getrlimit};
use std::io::Write;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use storenode::disk::RealDisk;
use storenode::server::{self, RunningServer, ServerLimits};
use storenode::service::{NodeConfig, SEGMENT_BYTES, Service};
use storenode::token::Token;
use storenode::wire::{BankId, SHARDS_MAX};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Files that a node may want open: connections and log segments.
const OPEN_FILES_WANTED: u64 = 8192;

/// Threads that take connections in and see which of them has something to say; each that has shown the
/// token is served by a thread of its own.
const TAKING_IN: usize = 2;

#[derive(Args, Debug)]
#[command(after_help = HELP)]
pub(super) struct ServeArgs {
    /// Directory of the store; made if it is not there
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Address to serve; default 127.0.0.1 and port 7000, 8000 or 9000 (bank A, B, C) + shard
    #[arg(long, value_name = "HOST:PORT")]
    listen: Option<String>,
    /// Bank this store belongs to: A, B or C
    #[arg(long, value_parser = parse_bank)]
    bank: BankId,
    /// Shard this store holds, from 0
    #[arg(long, value_parser = clap::value_parser!(u16).range(..i64::from(SHARDS_MAX)))]
    shard: u16,
    /// The volume's token, mode 0600; requests without it are refused
    #[arg(long, value_name = "FILE", env = "TERCET_TOKEN_FILE")]
    token_file: PathBuf,
    /// Use at most so much of the disk, such as 200G; not less than 80M
    #[arg(long, value_name = "BYTES", value_parser = parse_capacity)]
    capacity: Option<u64>,
    /// Let those who have the token break things on purpose (put, corrupt, drop, delay, refuse)
    #[arg(long)]
    allow_faults: bool,
    /// Write the process id here while serving
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,
}

const HELP: &str = "\
Prints one line when it is ready. Logs go to standard error; RUST_LOG=debug shows more.
SIGTERM or SIGINT: finish what is in hand, write the checkpoint, end with 0. A second one: end now.
Without authentication: GET /healthz. With the token: GET /metrics (Prometheus).

Only loopback is private. On any other address token and data travel in clear, readable and
changeable by whoever is on the way: use a tunnel (WireGuard, SSH) or a private network.

Exit code 2, with nothing changed, when the port is taken, the directory is in use or belongs to
another bank or shard, or the token file is missing or readable by others.";

pub(super) fn serve(args: &ServeArgs) -> Outcome {
    start_log();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .worker_threads(TAKING_IN)
        .thread_name("node")
        .build()
        .map_err(|e| Failure::usage(format!("cannot start threads: {e}")))?;
    outlive_file_size_limit(&runtime)?;
    file_size_suffices(getrlimit(Resource::Fsize).current)?;
    let token = Token::load(&args.token_file).map_err(Failure::usage)?;
    let addr = address(args)?;
    let limits = limits(raise_open_files());
    let outcome = runtime.block_on(run(args, addr, token, limits));
    // All is closed. A thread that still hangs in the disk must not keep the process.
    runtime.shutdown_background();
    outcome
}

async fn run(args: &ServeArgs, addr: SocketAddr, token: Token, limits: ServerLimits) -> Outcome {
    // Before anything is opened: a signal while the log is read must not be lost.
    let mut signals = Signals::new()?;
    let listener = server::bind(addr).await.map_err(|e| cannot_bind(addr, &e))?;
    if !addr.ip().is_loopback() {
        tracing::warn!(
            "{addr} is not loopback: there is no TLS, so the token and all data travel in clear \
             and can be read and changed on the way. Use a tunnel or a private network, or \
             --listen 127.0.0.1:{}",
            addr.port()
        );
    }
    let opening = {
        let (dir, config) = (args.dir.clone(), config(args));
        tokio::task::spawn_blocking(move || open(&dir, config))
    };
    let service = tokio::select! {
        opened = opening => opened.map_err(|e| Failure::bad(format!("opening failed: {e}")))??,
        () = signals.next() => return Err(Failure::bad("stopped while opening the store")),
    };
    let service = Arc::new(service);
    let pid_file = match &args.pid_file {
        Some(path) => match PidFile::write(path) {
            Ok(file) => Some(file),
            Err(failure) => {
                service.close();
                return Err(failure);
            }
        },
        None => None,
    };
    let running = server::start(listener, Arc::clone(&service), token, limits)?;
    say_ready(args, &service, &running)?;
    signals.next().await;
    tracing::info!("stopping");
    tokio::spawn(async move {
        signals.next().await;
        tracing::warn!("second signal: ending at once");
        std::process::exit(1);
    });
    running.stop().await;
    let closing = tokio::task::spawn_blocking(move || service.close());
    closing.await.map_err(|e| Failure::bad(format!("closing failed: {e}")))?;
    drop(pid_file);
    tracing::info!("stopped");
    Ok(ExitCode::SUCCESS)
}

fn open(dir: &Path, config: NodeConfig) -> Result<Service, Failure> {
    let disk = RealDisk::open(dir, true)
        .map_err(|e| Failure::usage(format!("cannot open the directory {}: {e}", dir.display())))?;
    Service::open(Arc::new(disk), config).map_err(|e| cannot_open(dir, &e))
}

fn config(args: &ServeArgs) -> NodeConfig {
    let mut config = NodeConfig::new(args.bank, args.shard);
    config.capacity_bytes = args.capacity;
    config.allow_faults = args.allow_faults;
    config
}

/// The one line on standard output.
fn say_ready(args: &ServeArgs, service: &Service, running: &RunningServer) -> Result<(), Failure> {
    let s = service.status();
    if let Some(why) = &s.failed {
        tracing::error!("this node does not vote: {why}");
    }
    if args.allow_faults {
        tracing::warn!("--allow-faults: whoever has the token can damage this node on purpose");
    }
    let mut out = std::io::stdout().lock();
    let line = writeln!(
        out,
        "storenode: bank {} shard {} ready on http://{} ({}; store {}; {}; pid {})",
        s.bank,
        s.shard,
        running.addr(),
        role_words(s.role),
        s.store,
        args.dir.display(),
        std::process::id()
    );
    // Nobody may be listening; that is no reason not to serve.
    let _ = line.and_then(|()| out.flush());
    Ok(())
}

fn address(args: &ServeArgs) -> Result<SocketAddr, Failure> {
    let Some(listen) = &args.listen else {
        let base = 7000 + 1000 * args.bank.index() as u32 + u32::from(args.shard);
        let port = u16::try_from(base).map_err(|_| Failure::usage("no such port: --listen"))?;
        return Ok(SocketAddr::from(([127, 0, 0, 1], port)));
    };
    let bad = |e: &dyn std::fmt::Display| {
        Failure::usage(format!("--listen {listen}: not an address HOST:PORT ({e})"))
    };
    let mut found = listen.to_socket_addrs().map_err(|e| bad(&e))?;
    found.next().ok_or_else(|| bad(&"the name has no address"))
}

fn cannot_bind(addr: SocketAddr, e: &std::io::Error) -> Failure {
    let port = addr.port();
    let hint = match e.kind() {
        std::io::ErrorKind::AddrInUse => format!(
            "port {port} is in use; see by whom: ss -ltnp 'sport = :{port}'. \
             Stop that, or choose another port with --listen"
        ),
        std::io::ErrorKind::AddrNotAvailable => "this machine has no such address".into(),
        std::io::ErrorKind::PermissionDenied => "ports below 1024 need privileges".into(),
        _ => e.to_string(),
    };
    Failure::usage(format!("cannot listen on {addr}: {hint}. Nothing was changed"))
}

/// What `--capacity` names: room for a segment of the log beside the reserve, an eighth of it all.
const CAPACITY_MIN: u64 = SEGMENT_BYTES / 4 * 5;

fn parse_capacity(text: &str) -> Result<u64, String> {
    match text::parse_size(text)? {
        n if n < CAPACITY_MIN => Err(format!(
            "a node needs at least {}, for one segment of its log and a reserve",
            text::size(CAPACITY_MIN)
        )),
        n => Ok(n),
    }
}

/// A write beyond the limit of a file's size ends a process, unless it takes the signal: then the write
/// fails, which for the log on standard error is no matter.
fn outlive_file_size_limit(runtime: &tokio::runtime::Runtime) -> Result<(), Failure> {
    let _inside = runtime.enter();
    // It is taken for good, whether somebody listens or not.
    let kind = SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw());
    signal(kind).map(drop).map_err(|e| Failure::usage(format!("cannot take signals: {e}")))
}

/// A segment of the log must fit a file.
fn file_size_suffices(limit: Option<u64>) -> Result<(), Failure> {
    match limit {
        Some(limit) if limit < SEGMENT_BYTES => Err(Failure::usage(format!(
            "files may have at most {} here (RLIMIT_FSIZE, `ulimit -f`), and a segment of the log has \
             {}: raise that limit. Nothing was changed",
            text::size(limit),
            text::size(SEGMENT_BYTES)
        ))),
        _ => Ok(()),
    }
}

fn start_log() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    // Fails only when there is a log already.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_target(false)
        // A line that cannot be written is lost; told on standard error too, it would be a panic.
        .log_internal_errors(false)
        .try_init();
}

/// The usual limits, with at most half of the descriptors for connections, two for each: the log needs the
/// others, and a log that cannot open its next segment ends the node's vote.
fn limits(open_files: u64) -> ServerLimits {
    let mut limits = ServerLimits::default();
    let most = usize::try_from(open_files / 4).unwrap_or(usize::MAX);
    if most < limits.connections_max {
        tracing::warn!("only {open_files} open files are allowed: at most {most} connections");
        limits.connections_max = most.max(1);
    }
    limits
}

/// Many systems give 1,024 by default and far more for the asking. Answers what there is now.
fn raise_open_files() -> u64 {
    use rustix::process::{Rlimit, setrlimit};
    let now = getrlimit(Resource::Nofile);
    let allowed = now.maximum.unwrap_or(u64::MAX);
    if now.current.is_some_and(|n| n < OPEN_FILES_WANTED.min(allowed)) {
        let more = Rlimit { current: Some(OPEN_FILES_WANTED.min(allowed)), maximum: now.maximum };
        if let Err(e) = setrlimit(Resource::Nofile, more) {
            tracing::warn!("cannot raise the limit of open files: {e}");
        }
    }
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// SIGTERM and SIGINT.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Removed when the node ends in order. The directory's lock, not this file, keeps two nodes apart.
struct PidFile(PathBuf);

impl PidFile {
    fn write(path: &Path) -> Result<Self, Failure> {
        std::fs::write(path, format!("{}\n", std::process::id()))
            .map_err(|e| Failure::usage(format!("cannot write {}: {e}", path.display())))?;
        Ok(Self(path.to_path_buf()))
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_capacity_has_room_for_a_segment_and_the_reserve() {
        assert_eq!(parse_capacity("80M"), Ok(80 << 20));
        for little in ["0", "1M", "79M"] {
            assert!(parse_capacity(little).unwrap_err().contains("80.0 MiB"), "{little}");
        }
    }

    #[test]
    fn a_limit_of_file_sizes_is_named() {
        assert!(file_size_suffices(None).is_ok());
        assert!(file_size_suffices(Some(SEGMENT_BYTES)).is_ok());
        let refused = file_size_suffices(Some(64 << 10)).unwrap_err();
        assert!(refused.code == 2 && refused.message.contains("ulimit -f"), "{refused:?}");
    }
}
