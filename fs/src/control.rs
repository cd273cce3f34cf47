//! The socket through which the commands talk to a running mount.
//!
//! A unix socket, mode 0600 in a directory of mode 0700. One JSON object per line: a request, then
//! any number of `progress` lines, then one `ok` or `error` line. Everything is bounded: the length
//! of a request, the number of clients, and each wait for a client.

use crate::{config, daemon};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;
use std::future::Future;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;

/// Longest request line, bytes (a path is at most 4,096).
const REQUEST_LEN_MAX: u64 = 64 << 10;
/// A client must have sent its request by then.
const REQUEST_DEADLINE: Duration = Duration::from_secs(10);
/// A client must take a line by then.
const WRITE_DEADLINE: Duration = Duration::from_secs(10);
/// A line of a reply, at most, bytes.
const REPLY_LEN_MAX: u64 = 64 << 20;
/// Progress lines waiting for a slow client; beyond it older ones are left out.
const PROGRESS_QUEUE: usize = 64;
/// Clients that are being served when the mount ends have so long to take their answers.
const CLOSE_MAX: Duration = Duration::from_secs(2);
/// The mount must give a sign of life this often during long work.
pub const SILENCE_MAX: Duration = Duration::from_secs(30);

/// What a command asks of a mount.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
pub enum Ask {
    /// Who are you?
    Hello,
    /// State of banks, shards and the mount itself.
    Status,
    /// The keys of a path on every bank.
    Inspect {
        /// Path below the root of the volume.
        path: String,
        /// At most so many keys.
        limit: usize,
    },
    /// Compare and repair all records now.
    Refresh,
    /// Re-read and repair all values now.
    Scrub,
    /// Check that the tree is consistent.
    Check {
        /// Also that each file has the blocks it counts (reads everything).
        data: bool,
    },
    /// Allow an empty, replaced or damaged store to be filled anew.
    Replace {
        /// `A`, `B` or `C`.
        bank: String,
        /// Shard, or all of the bank that are not up to date.
        shard: Option<u16>,
    },
    /// Change the options of the mount.
    Remount {
        /// All of them, as they shall be.
        flags: crate::mount::MountFlags,
    },
    /// Write back everything, unmount, release the volume.
    Unmount {
        /// Detach at once though files are open.
        lazy: bool,
    },
}

/// How far long work has come.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct Progress {
    /// What is being done.
    pub what: String,
    /// Done so far.
    pub done: u64,
    /// Of how much; 0 = not known.
    pub total: u64,
    /// `bytes`, `records`, `shards`…
    pub unit: String,
}

/// Why a request failed.
#[derive(Clone, Debug, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct ControlError {
    /// What is wrong.
    pub message: String,
    /// What to do next.
    pub hint: String,
    /// Exit code of the command: 1 wrong, 2 usage, 3 not reachable.
    pub code: u8,
}

impl ControlError {
    /// An error with its exit code.
    #[must_use]
    pub fn new(code: u8, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { message: message.into(), hint: hint.into(), code }
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Line {
    Progress(Progress),
    Ok(Value),
    Error(ControlError),
}

/// Takes progress of long work; cheap to call often, never waits.
#[derive(Clone, Debug)]
pub struct ProgressSink(Option<mpsc::Sender<Progress>>);

impl ProgressSink {
    /// Nobody looks.
    #[must_use]
    pub fn none() -> Self {
        Self(None)
    }

    /// Into a channel; what does not fit is left out, for the next one says more.
    #[must_use]
    pub fn channel(sender: mpsc::Sender<Progress>) -> Self {
        Self(Some(sender))
    }

    /// Tells how far it is.
    pub fn tell(&self, what: &str, done: u64, total: u64, unit: &str) {
        if let Some(sender) = &self.0 {
            let _ = sender.try_send(Progress { what: what.into(), done, total, unit: unit.into() });
        }
    }
}

/// Reply of a handler.
pub type Answer = Result<Value, ControlError>;

/// What answers requests: the running mount.
pub trait Handler: Send + Sync + 'static {
    /// Answers one request.
    fn handle(
        &self,
        ask: Ask,
        progress: ProgressSink,
    ) -> Pin<Box<dyn Future<Output = Answer> + Send + '_>>;
}

/// Makes the directory for the socket, private to its owner.
///
/// # Errors
/// It cannot be made, or belongs to others.
pub fn private_dir(dir: &Path) -> io::Result<()> {
    match std::fs::DirBuilder::new().mode(0o700).create(dir) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
        _ => {}
    }
    let about = std::fs::metadata(dir)?;
    if !about.is_dir() {
        return Err(io::Error::new(io::ErrorKind::NotADirectory, "not a directory"));
    }
    if about.permissions().mode() & 0o077 != 0 {
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700))?;
    }
    Ok(())
}

/// Binds the socket, in the place of one that a dead mount left.
///
/// # Errors
/// As of bind; the caller has made sure (by its lock) that no living mount owns it.
pub fn bind(socket: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(socket) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = UnixListener::bind(socket)?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Serves clients in the background until closed.
#[derive(Debug)]
pub struct Server {
    accepting: JoinHandle<()>,
    places: Arc<Semaphore>,
    clients_max: u32,
}

impl Server {
    /// Starts serving, `clients_max` at a time.
    #[must_use]
    pub fn start(listener: UnixListener, handler: Arc<dyn Handler>, clients_max: u16) -> Self {
        let places = Arc::new(Semaphore::new(clients_max.into()));
        let accepting = tokio::spawn(accept(listener, handler, places.clone()));
        Self { accepting, places, clients_max: clients_max.into() }
    }

    /// Takes no more clients, and lets those that are being served have their answers: who asked
    /// for the unmount is one of them.
    pub async fn close(self) {
        self.accepting.abort();
        // The place that `accept` holds while it waits comes back with it.
        let _ = self.accepting.await;
        let all = self.places.acquire_many(self.clients_max);
        let _ = tokio::time::timeout(CLOSE_MAX, all).await;
    }
}

async fn accept(listener: UnixListener, handler: Arc<dyn Handler>, places: Arc<Semaphore>) {
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let handler = handler.clone();
                tokio::spawn(async move {
                    if let Err(e) = serve_client(stream, handler).await {
                        tracing::debug!("control client: {e}");
                    }
                    drop(place);
                });
            }
            Err(e) => {
                // Out of descriptors, most likely: it passes.
                tracing::warn!("control socket: {e}");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
}

async fn serve_client(stream: UnixStream, handler: Arc<dyn Handler>) -> io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut reader = BufReader::new(read.take(REQUEST_LEN_MAX));
    let mut line = String::new();
    tokio::time::timeout(REQUEST_DEADLINE, reader.read_line(&mut line)).await??;
    if line.trim().is_empty() {
        return Ok(()); // a probe that only connects
    }
    let ask = match serde_json::from_str::<Ask>(&line) {
        Ok(ask) => ask,
        Err(e) => {
            let hint = "command and mount are of different versions: restart the mount";
            let error = ControlError::new(2, format!("the mount does not know this: {e}"), hint);
            return send(&mut write, &Line::Error(error)).await;
        }
    };
    let (sender, mut progress) = mpsc::channel(PROGRESS_QUEUE);
    let work = handler.handle(ask, ProgressSink::channel(sender));
    tokio::pin!(work);
    let mut last = Progress::default();
    let mut alive = tokio::time::interval(SILENCE_MAX / 6);
    alive.tick().await;
    let answer = loop {
        tokio::select! {
            biased;
            answer = &mut work => break answer,
            Some(p) = progress.recv() => {
                send(&mut write, &Line::Progress(p.clone())).await?;
                last = p;
            }
            _ = alive.tick() => send(&mut write, &Line::Progress(last.clone())).await?,
        }
    };
    let line = match answer {
        Ok(value) => Line::Ok(value),
        Err(error) => Line::Error(error),
    };
    send(&mut write, &line).await
}

async fn send(write: &mut (impl AsyncWriteExt + Unpin), line: &Line) -> io::Result<()> {
    let mut bytes = serde_json::to_vec(line)?;
    bytes.push(b'\n');
    tokio::time::timeout(WRITE_DEADLINE, write.write_all(&bytes)).await?
}

/// Asks the mount behind `socket`.
///
/// # Errors
/// Code 3 if none answers; else what the mount says.
pub async fn ask<T: DeserializeOwned>(
    socket: &Path,
    ask: &Ask,
    mut progress: impl FnMut(Progress),
) -> Result<T, ControlError> {
    let gone = |e: io::Error| no_answer(socket, daemon::living(&daemon::pid_file(socket)), &e);
    let stream = tokio::time::timeout(REQUEST_DEADLINE, UnixStream::connect(socket))
        .await
        .map_err(io::Error::from)
        .and_then(|r| r)
        .map_err(gone)?;
    let (read, mut write) = stream.into_split();
    let mut request = serde_json::to_vec(ask).map_err(|e| gone(e.into()))?;
    request.push(b'\n');
    write.write_all(&request).await.map_err(gone)?;
    let mut reader = BufReader::new(read.take(REPLY_LEN_MAX));
    let mut line = String::new();
    loop {
        line.clear();
        let n = tokio::time::timeout(SILENCE_MAX, reader.read_line(&mut line))
            .await
            .map_err(io::Error::from)
            .and_then(|r| r)
            .map_err(gone)?;
        if n == 0 {
            return Err(gone(io::Error::new(io::ErrorKind::UnexpectedEof, "it ended")));
        }
        match serde_json::from_str::<Line>(&line).map_err(|e| gone(e.into()))? {
            Line::Progress(p) => progress(p),
            Line::Ok(value) => return serde_json::from_value(value).map_err(|e| gone(e.into())),
            Line::Error(error) => return Err(error),
        }
    }
}

/// Why nobody answers, and what helps: there is no mount, or the process `living` is one that does not
/// answer yet, or no more.
fn no_answer(socket: &Path, living: Option<u32>, e: &io::Error) -> ControlError {
    let shown = socket.display();
    match living {
        _ if e.kind() == io::ErrorKind::PermissionDenied => {
            let hint = config::hint_of(e, "");
            ControlError::new(1, format!("cannot ask the mount at {shown}: {e}"), hint)
        }
        Some(pid) => {
            let log = socket.with_file_name("mount.log");
            ControlError::new(
                3,
                format!("{}: {shown}: {e}", daemon::unheard(pid)),
                daemon::what_ends(pid, &log),
            )
        }
        None => ControlError::new(
            3,
            format!("no mount answers at {shown}: {e}"),
            "start one with `tercet mount`, or name its configuration with --config FILE",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_that_does_not_answer_is_told_from_none_and_from_another_users() {
        let socket = Path::new("/t/run/control.sock");
        let said = |living, errno| no_answer(socket, living, &io::Error::from_raw_os_error(errno));
        let none = said(None, libc::ENOENT);
        assert!(none.code == 3 && none.hint.contains("tercet mount"), "{none:?}");
        let opening = said(Some(7), libc::ENOENT);
        assert!(
            opening.code == 3 && opening.message.contains("a mount (process 7)"),
            "{opening:?}"
        );
        assert!(opening.hint.contains("`kill 7`") && opening.hint.contains("/t/run/mount.log"));
        let others = said(None, libc::EACCES);
        assert!(others.code == 1 && others.hint.contains("run it as the user"), "{others:?}");
    }

    struct Echo;

    impl Handler for Echo {
        fn handle(
            &self,
            ask: Ask,
            progress: ProgressSink,
        ) -> Pin<Box<dyn Future<Output = Answer> + Send + '_>> {
            Box::pin(async move {
                progress.tell("work", 1, 2, "records");
                tokio::time::sleep(Duration::from_millis(20)).await;
                match ask {
                    Ask::Hello => Ok(serde_json::json!({"mountpoint": "/m"})),
                    _ => Err(ControlError::new(1, "no", "do this")),
                }
            })
        }
    }

    #[tokio::test]
    async fn a_request_gets_progress_and_one_answer() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("run");
        private_dir(&run).unwrap();
        let socket = run.join("control.sock");
        let server = Server::start(bind(&socket).unwrap(), Arc::new(Echo), 2);
        let mode = |p: &Path| std::fs::metadata(p).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&run), mode(&socket)), (0o700, 0o600));
        let mut seen = Vec::new();
        let value: Value = ask(&socket, &Ask::Hello, |p| seen.push(p.done)).await.unwrap();
        assert_eq!((value["mountpoint"].as_str(), seen), (Some("/m"), vec![1]));
        let error = ask::<Value>(&socket, &Ask::Status, |_| ()).await.unwrap_err();
        assert_eq!((error.code, error.hint.as_str()), (1, "do this"));
        // Rubbish is answered, too much of it is cut off, and the server lives on.
        let mut raw = UnixStream::connect(&socket).await.unwrap();
        raw.write_all(b"{\"do\":\"dance\"}\n").await.unwrap();
        let mut reply = String::new();
        raw.read_to_string(&mut reply).await.unwrap();
        assert!(reply.contains("does not know"), "{reply}");
        // Who is being served gets its answer although the server closes.
        let late = tokio::spawn({
            let socket = socket.clone();
            async move { ask::<Value>(&socket, &Ask::Hello, |_| ()).await }
        });
        tokio::time::sleep(Duration::from_millis(10)).await;
        server.close().await;
        assert!(late.await.unwrap().is_ok());
        assert_eq!(ask::<Value>(&socket, &Ask::Hello, |_| ()).await.unwrap_err().code, 3);
    }
}
