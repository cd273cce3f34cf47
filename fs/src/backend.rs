//! What lies under the filesystem: three banks, or (for measuring the mount alone) memory.

use crate::config::Config;
use crate::control::{ControlError, ProgressSink};
use crate::filesystem::{FileSystem, FormatOptions};
use crate::mount::MountOptions;
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use voter::Observer;
use voter::bank::{Bank, http::HttpBank};
use voter::memory::MemoryVolume;
use voter::open::OpenError;
use voter::replicated::{OpenOptions, Replicated};
use voter::status::Inspected;
use voter::volume::{Key, Volume};
use voter::wire::{Envelope, Request, StoreId, VolumeId, WIRE_FORMAT};

#[cfg(feature = "memory-banks")]
mod banks;

/// Longest wait of the volume in memory, as a real one would have.
const MEMORY_DEADLINE: Duration = Duration::from_secs(10);

/// A node that is asked why it is missing answers by then.
const STATUS_DEADLINE: Duration = Duration::from_secs(2);
/// Nodes named in one message.
const REASONS_SHOWN: usize = 9;

/// See the module.
#[derive(Clone)]
pub enum Backend {
    /// Gone when the mount ends.
    Memory(Arc<MemoryVolume>),
    /// The real one.
    Replicated(Arc<Replicated>),
    /// The real one, held by another mount: only read.
    Observer(Arc<Observer>),
}

/// Turns a refusal to open into words and an exit code. Where nodes are missing each is asked once
/// more, so that the message says why: not running, wrong token, no such host.
pub async fn explain(e: &OpenError, config: &Config) -> ControlError {
    match e {
        OpenError::Config(_) => {
            let hint = format!("correct {}", config.file.display());
            ControlError::new(2, e.to_string(), hint)
        }
        OpenError::Unavailable(_) => {
            let reasons = silent_nodes(config).await;
            let mut message = e.to_string();
            for (node, why) in reasons.iter().take(REASONS_SHOWN) {
                message.push_str(&format!("\n    {node}: {why}"));
            }
            let hint = match &reasons[..] {
                [] => "`tercet status` shows every node; try again".into(),
                all if all.iter().any(|(_, why)| is_about_token(why)) => {
                    right_token(&config.token_file())
                }
                _ => "start the nodes that are missing; `tercet status` shows every node".into(),
            };
            ControlError::new(3, message, hint)
        }
        OpenError::Held(_) => ControlError::new(1, e.to_string(), "end that mount first"),
        OpenError::Refused(_) | OpenError::Incomplete(_) => {
            ControlError::new(1, e.to_string(), "`tercet status` shows every node")
        }
    }
}

/// Does a node say so that refuses the token?
pub(crate) fn is_about_token(why: &str) -> bool {
    why.contains("token")
}

/// What helps then.
pub(crate) fn right_token(file: &Path) -> String {
    format!("{} must be the file that the nodes were started with", file.display())
}

/// Nodes that give no status, and why.
async fn silent_nodes(config: &Config) -> Vec<(String, String)> {
    let Ok(token) = config.token() else { return Vec::new() };
    let nodes: Vec<(String, &String)> = config
        .bank_nodes()
        .into_iter()
        .flat_map(|(letter, nodes)| {
            nodes.iter().enumerate().map(move |(shard, address)| {
                let bank = letter.to_ascii_uppercase();
                (format!("bank {bank} shard {shard} at {address}"), address)
            })
        })
        .collect();
    let ask = nodes.into_iter().map(|(node, address)| {
        let token = token.clone();
        async move {
            let bank = HttpBank::new(address, &token).map_err(|e| (node.clone(), e));
            let answer = bank?.call(nobody(), Request::Status, vec![], STATUS_DEADLINE).await;
            answer.map(drop).map_err(|e| (node, e.to_string()))
        }
    });
    let answers = futures_util::future::join_all(ask).await;
    answers.into_iter().filter_map(Result::err).collect()
}

/// The envelope of a question that is for any node.
#[must_use]
pub fn nobody() -> Envelope {
    Envelope {
        format: WIRE_FORMAT,
        volume: VolumeId::ZERO,
        store: StoreId::ZERO,
        epoch: 0,
        nonce: 0,
    }
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
            let backend = Self::in_memory(shards.max(1), config, options).await?;
            format(&backend.volume()).await?;
            return Ok(backend);
        }
        let cluster = config.cluster()?;
        if options.observer {
            let tell = |what: &str| progress.tell(what, 0, 0, "");
            return match Observer::open(cluster, tell).await {
                Ok(volume) => Ok(Self::Observer(volume)),
                Err(e) => Err(explain(&e, config).await),
            };
        }
        let open = OpenOptions {
            holder: holder(mountpoint),
            takeover: options.takeover,
            auto_replace: config.mount.auto_replace.0,
            seed: None,
            progress: Arc::new(move |what: &str| progress.tell(what, 0, 0, "")),
        };
        match Replicated::open(cluster, open).await {
            Ok(volume) => Ok(Self::Replicated(volume)),
            Err(e) => Err(explain(&e, config).await),
        }
    }

    #[cfg_attr(not(feature = "memory-banks"), expect(unused_variables, clippy::unused_async))]
    async fn in_memory(
        shards: u16,
        config: &Config,
        options: &MountOptions,
    ) -> Result<Self, ControlError> {
        #[cfg(feature = "memory-banks")]
        if options.memory_banks {
            return banks::in_memory(shards, config).await;
        }
        let volume = MemoryVolume::new(shards).with_deadline(MEMORY_DEADLINE);
        Ok(Self::Memory(Arc::new(volume)))
    }

    /// The volume for the filesystem.
    #[must_use]
    pub fn volume(&self) -> Arc<dyn Volume> {
        match self {
            Self::Memory(v) => v.clone(),
            Self::Replicated(v) => v.clone(),
            Self::Observer(v) => v.clone(),
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
            Self::Observer(_) => Err(ControlError::new(
                2,
                "this mount only reads (--observer): it repairs nothing and holds nothing",
                "ask the mount that writes",
            )),
        }
    }

    /// State of the cluster; null in memory.
    pub async fn status(&self) -> Value {
        match self {
            Self::Memory(_) => Value::Null,
            Self::Observer(v) => serde_json::to_value(v.status().await).unwrap_or_default(),
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

    /// Allows stores of a bank to be filled anew; the shards.
    ///
    /// # Errors
    /// No such bank or shard, or nothing to replace.
    pub fn replace(&self, bank: &str, shard: Option<u16>) -> Result<Vec<u16>, ControlError> {
        let hint = "`tercet status` shows which replicas are not up to date";
        let bank = bank.parse().map_err(|_| {
            ControlError::new(2, format!("there is no bank {bank}"), "banks are A, B and C")
        })?;
        self.replicated()?.replace(bank, shard).map_err(|why| ControlError::new(1, why, hint))
    }

    /// Writes back, releases the volume, ends all tasks.
    pub async fn close(&self) {
        match self {
            Self::Memory(_) => {}
            Self::Observer(v) => v.close().await,
            Self::Replicated(v) => {
                if let Err(e) = v.close().await {
                    tracing::error!("closing the volume: {e}");
                }
            }
        }
    }
}

/// Makes the filesystem on a volume in memory.
async fn format(volume: &Arc<dyn Volume>) -> Result<(), ControlError> {
    let owner = FormatOptions {
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        ..FormatOptions::default()
    };
    FileSystem::format(volume, &owner).await.map_err(|e| {
        ControlError::new(1, format!("cannot format: {e}"), "this is a defect, report it")
    })
}

/// What other mounts are told about this one.
fn holder(mountpoint: &Path) -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = host.trim();
    format!("{host}, process {}, mounted at {}", std::process::id(), mountpoint.display())
}
