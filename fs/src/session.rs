//! A running mount, as the control socket sees it.

use crate::backend::Backend;
use crate::check;
use crate::config::Config;
use crate::control::{Answer, Ask, ControlError, Handler, ProgressSink};
use crate::filesystem::{FileSystem, FsError};
use crate::metrics::Metrics;
use crate::mount::{self, MountFlags};
use crate::places;
use serde_json::json;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// Most keys that one `inspect` answers.
pub const INSPECT_KEYS_MAX: usize = 4_096;

/// Between two looks at whether the mountpoint is free.
const GONE_LOOK: Duration = Duration::from_millis(50);

/// See the module.
pub struct Session {
    /// Effective configuration.
    pub config: Config,
    /// Where it is mounted.
    pub mountpoint: PathBuf,
    /// The filesystem.
    pub fs: Arc<FileSystem>,
    /// The volume under it.
    pub backend: Backend,
    /// Counters of the kernel's requests.
    pub metrics: Arc<Metrics>,
    /// When it was mounted.
    pub started: Instant,
    /// How it is mounted now.
    pub flags: parking_lot::Mutex<MountFlags>,
    /// It reads beside the mount that holds the volume.
    pub observer: bool,
    /// Ends the mount.
    pub unmount_asked: mpsc::Sender<()>,
}

impl Session {
    fn about(&self) -> serde_json::Value {
        json!({
            "mountpoint": self.mountpoint,
            "pid": std::process::id(),
            "config": self.config.file,
            "uptime_s": self.started.elapsed().as_secs(),
            "program": env!("CARGO_PKG_VERSION"),
            "memory": self.backend.is_memory(),
            "flags": *self.flags.lock(),
            "observer": self.observer,
        })
    }

    async fn answer(&self, ask: Ask, progress: ProgressSink) -> Answer {
        match ask {
            Ask::Hello => Ok(self.about()),
            Ask::Status => Ok(json!({
                "mount": self.about(),
                "cluster": self.backend.status().await,
                "filesystem": self.fs.stats(),
                "requests": self.metrics.snapshot(),
                "limits": { "refresh_interval_s": self.config.voter.refresh_interval_s },
            })),
            Ask::Inspect { path, limit } => {
                let limit = limit.min(INSPECT_KEYS_MAX);
                let volume = self.backend.volume();
                let found = places::of_path(&self.fs, &*volume, &path, limit).await?;
                let places = found.keys.iter().map(|k| k.place.clone()).collect();
                let copies = self.backend.inspect(places).await?;
                let mut keys = Vec::with_capacity(copies.len());
                for (key, on) in found.keys.iter().zip(copies) {
                    let mut row = serde_json::to_value(on).unwrap_or_default();
                    row["what"] = key.what.clone().into();
                    keys.push(row);
                }
                Ok(json!({
                    "path": path,
                    "ino": found.ino,
                    "kind": found.kind,
                    "size": found.size,
                    "keys": keys,
                    "more": found.more,
                }))
            }
            Ask::Refresh => self.backend.refresh(&progress).await,
            Ask::Scrub => self.backend.scrub(&progress).await,
            Ask::Check { data } => {
                let report = check::run(&*self.backend.volume(), data, &progress).await?;
                Ok(json!(report))
            }
            Ask::Replace { bank, shard } => {
                let shards = self.backend.replace(&bank, shard)?;
                Ok(json!({ "bank": bank, "shards": shards }))
            }
            Ask::Remount { flags } => self.remount(flags).await,
            Ask::Unmount { lazy } => self.unmount(lazy).await,
        }
    }

    /// Changes the options of the running mount.
    async fn remount(&self, flags: MountFlags) -> Answer {
        if self.observer && !flags.read_only {
            let hint =
                "unmount it, then mount without --observer where no other mount holds the volume";
            return Err(ControlError::new(1, "an observer cannot be made writable", hint));
        }
        let (place, wanted) = (self.mountpoint.clone(), flags.clone());
        // In a thread: the kernel may write back, through us.
        let done = tokio::task::spawn_blocking(move || mount::remount(&place, &wanted)).await;
        if let Err(e) = done.unwrap_or_else(|e| Err(std::io::Error::other(e))) {
            let shown = self.mountpoint.display();
            let (what, hint) = match e.raw_os_error() {
                Some(libc::EBUSY) => {
                    let users = mount::users(&self.mountpoint);
                    let by = if users.is_empty() { String::new() } else { format!(" by {users}") };
                    (format!("{shown} is in use{by}"), "close what is open for writing")
                }
                _ => (format!("cannot remount {shown}: {e}"), "remounting needs root"),
            };
            return Err(ControlError::new(1, what, hint));
        }
        self.fs.set_atime(flags.marks());
        *self.flags.lock() = flags;
        Ok(self.about())
    }

    /// Tries the unmount here, so that "busy" reaches the one who asked; then ends the mount.
    async fn unmount(&self, lazy: bool) -> Answer {
        let shown = self.mountpoint.display().to_string();
        // Durable before it goes: a bank problem is told while the mount is still there.
        if !lazy {
            let fenced = || self.backend.volume().alive().is_err();
            self.fs.sync_all().await.map_err(|e| not_durable(&e, fenced()))?;
        }
        let mountpoint = self.mountpoint.clone();
        let work = tokio::task::spawn_blocking(move || mount::unmount(&mountpoint, lazy));
        let done = tokio::select! {
            biased;
            done = work => done.unwrap_or_else(|e| Err(std::io::Error::other(e))),
            // With millions of inodes to forget the kernel goes on for many seconds after the mountpoint
            // is free and the session has ended; who asked would be left without an answer.
            () = self.gone() => Ok(()),
        };
        match done {
            Ok(()) => {
                let _ = self.unmount_asked.try_send(());
                Ok(self.about())
            }
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) => {
                let users = mount::users(&self.mountpoint);
                let who = if users.is_empty() { String::new() } else { format!(" by {users}") };
                let hint = format!("end them, or `tercet umount --lazy {shown}`");
                Err(ControlError::new(1, format!("{shown} is in use{who}"), hint))
            }
            Err(e) => Err(ControlError::new(
                1,
                format!("cannot unmount {shown}: {e}"),
                format!("`tercet umount --lazy {shown}`"),
            )),
        }
    }

    /// Waits until nothing of this mount is at its mountpoint.
    async fn gone(&self) {
        while !mount::is_gone(&self.mountpoint) {
            tokio::time::sleep(GONE_LOOK).await;
        }
    }
}

fn not_durable(e: &FsError, fenced: bool) -> ControlError {
    if fenced {
        // For good, whatever the nodes do.
        let hint = "`tercet umount --lazy`: what this mount had not synced is lost";
        return ControlError::new(1, e.to_string(), hint);
    }
    let hint =
        "start nodes until two banks answer; `tercet umount --lazy` gives up what is not durable";
    ControlError::new(3, format!("not all is durable yet: {e}"), hint)
}

impl Handler for Session {
    fn handle(
        &self,
        ask: Ask,
        progress: ProgressSink,
    ) -> Pin<Box<dyn Future<Output = Answer> + Send + '_>> {
        Box::pin(self.answer(ask, progress))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fenced_mount_is_not_helped_by_nodes() {
        let e = FsError::because(libc::EIO, "no two banks");
        let waits = not_durable(&e, false);
        assert!(waits.code == 3 && waits.hint.contains("start nodes"), "{waits:?}");
        let fenced = not_durable(&e, true);
        assert!(fenced.code == 1 && fenced.hint.contains("umount --lazy"), "{fenced:?}");
        assert!(!fenced.hint.contains("start nodes"), "{fenced:?}");
    }
}
