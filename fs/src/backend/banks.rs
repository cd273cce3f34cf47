//! Three banks in this process, for iozone/ladder.

use super::Backend;
use crate::config::Config;
use crate::control::ControlError;
use std::sync::Arc;
use storenode::disk::MemoryDisk;
use storenode::service::NodeConfig;
use voter::bank::{Bank, memory::MemoryBank};
use voter::replicated::{Nodes, OpenOptions, Replicated};
use voter::wire::{BankId, PerBank};

/// A new volume on banks in this process: what voting and replication cost, without HTTP and disks.
/// Nothing compacts them.
pub(super) async fn in_memory(shards: u16, config: &Config) -> Result<Backend, ControlError> {
    let failed = |e: String| ControlError::new(1, e, "banks in memory need nothing but memory");
    let mut banks = PerBank::from_fn(|_| Vec::<Arc<dyn Bank>>::new());
    for bank in BankId::ALL {
        for shard in 0..shards {
            let node = MemoryBank::with(NodeConfig::new(bank, shard), MemoryDisk::new());
            banks[bank].push(Arc::new(node.map_err(|e| failed(e.to_string()))?));
        }
    }
    let (nodes, limits) = (Nodes { banks }, config.voter.clone());
    let open = OpenOptions {
        holder: format!("process {}", std::process::id()),
        takeover: false,
        auto_replace: true,
        seed: None,
        progress: Arc::new(|_: &str| ()),
    };
    Replicated::init_with(&nodes, &limits).await.map_err(|e| failed(e.to_string()))?;
    let volume = Replicated::open_with(nodes, limits, open).await;
    Ok(Backend::Replicated(volume.map_err(|e| failed(e.to_string()))?))
}
