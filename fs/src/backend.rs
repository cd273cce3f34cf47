//! What lies under the filesystem: three banks, or (for measuring the mount alone) memory.

use crate::config::Config;
use crate::control::{ControlError, ProgressSink};
use crate::mount::MountOptions;
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use voter::memory::MemoryVolume;
use voter::open::OpenError;
use voter::replicated::{OpenOptions, Replicated};
use voter::status::Inspected;
use voter::volume::{Key, Volume};

/// Longest wait of the volume in memory, as a real one would have.
const MEMORY_DEADLINE: Duration = Duration::from_secs(10);

/// See the module.
#[derive(Clone)]
pub enum Backend {
    /// Gone when the mount ends.
    Memory(Arc<MemoryVolume>),
    /// The real one.
    Replicated(Arc<Replicated>),
}

/// Turns a refusal to open into words and an exit code.
pub fn explain(e: &OpenError, config: &Config) -> ControlError {
    let file = config.file.display();
    let (code, hint) = match e {
        OpenError::Config(_) => (2, format!("correct {file}")),
        _ => (3, "`tercet status` shows every node; start those that are down".to_owned()),
    };
    ControlError::new(code, e.to_string(), hint)
}

impl Backend {
    /// Opens the volume for this mount.
    ///
    /// # Errors
    /// What stands in the way: configuration, nodes, or another holder.
    pub async fn open(
        config: &Config,
        options: &MountOptions,
        mountpoint: &Path,
        progress: ProgressSink,
    ) -> Result<Self, ControlError> {
        if let Some(shards) = options.memory {
            let volume = MemoryVolume::new(shards.max(1)).with_deadline(MEMORY_DEADLINE);
            return Ok(Self::Memory(Arc::new(volume)));
        }
        let cluster = config.cluster()?;
        let open = OpenOptions {
            holder: holder(mountpoint),
            takeover: options.takeover,
            auto_replace: config.mount.auto_replace.0,
            progress: Arc::new(move |what: &str| progress.tell(what, 0, 0, "")),
        };
        let volume = Replicated::open(cluster, open).await.map_err(|e| explain(&e, config))?;
        Ok(Self::Replicated(volume))
    }

    /// The volume for the filesystem.
    #[must_use]
    pub fn volume(&self) -> Arc<dyn Volume> {
        match self {
            Self::Memory(v) => v.clone(),
            Self::Replicated(v) => v.clone(),
        }
    }

    /// Nothing of it outlives the mount.
    #[must_use]
    pub fn is_memory(&self) -> bool {
        matches!(self, Self::Memory(_))
    }

    fn replicated(&self) -> Result<&Arc<Replicated>, ControlError> {
        match self {
            Self::Replicated(v) => Ok(v),
            Self::Memory(_) => Err(ControlError::new(
                2,
                "this mount keeps its volume in memory: there are no banks",
                "mount without --memory",
            )),
        }
    }

    /// State of the cluster; null in memory.
    pub async fn status(&self) -> Value {
        match self {
            Self::Memory(_) => Value::Null,
            Self::Replicated(v) => serde_json::to_value(v.status().await).unwrap_or_default(),
        }
    }

    /// What the banks hold under some keys.
    ///
    /// # Errors
    /// In memory there are no banks.
    pub async fn inspect(&self, keys: Vec<(u16, Key)>) -> Result<Vec<Inspected>, ControlError> {
        Ok(self.replicated()?.inspect(keys).await)
    }

    /// Compares and repairs everything now.
    ///
    /// # Errors
    /// In memory there are no banks.
    pub async fn refresh(&self, progress: &ProgressSink) -> Result<Value, ControlError> {
        let tell = |done, total| progress.tell("comparing", done, total, "shards");
        Ok(json!(self.replicated()?.refresh(tell).await))
    }

    /// Re-reads and repairs everything now.
    ///
    /// # Errors
    /// In memory there are no banks.
    pub async fn scrub(&self, progress: &ProgressSink) -> Result<Value, ControlError> {
        let tell = |done, total| progress.tell("re-reading", done, total, "bytes");
        Ok(json!(self.replicated()?.scrub(tell).await))
    }

    /// Writes back, releases the volume, ends all tasks.
    pub async fn close(&self) {
        if let Self::Replicated(v) = self
            && let Err(e) = v.close().await
        {
            tracing::error!("closing the volume: {e}");
        }
    }
}

/// What other mounts are told about this one.
fn holder(mountpoint: &Path) -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = host.trim();
    format!("{host}, process {}, mounted at {}", std::process::id(), mountpoint.display())
}
