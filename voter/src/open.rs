//! Opening a volume (protocol rule 5) and making one: what [`crate::opening`] decides, done.

use crate::bank::BankError;
use crate::limits::Limits;
use crate::link::status_of;
use crate::replicated::{Nodes, OpenOptions};
use crate::shared::{RepairOrder, Shared};
use std::time::Duration;
use storenode::wire::{
    BankId, Configuration, Envelope, PerBank, Request, Role, Status, StoreId, Version, VolumeId,
    WIRE_FORMAT,
};
use tokio::sync::mpsc;

/// Why a volume cannot be opened or made. Every message says what to do next.
#[derive(Clone, Debug, thiserror::Error)]
pub enum OpenError {
    /// The configuration cannot be used.
    #[error("configuration: {0}")]
    Config(String),
    /// Too few banks answer.
    #[error("{0}")]
    Unavailable(String),
    /// Another mount holds the volume and is alive.
    #[error("the volume is held by {0}: unmount it there, or use --takeover to fence it")]
    Held(String),
    /// Nodes that are not as they should be.
    #[error("{0}")]
    Refused(String),
    /// What was acknowledged may be lost if it went on: the bank that is needed is named.
    #[error("refusing to open: {0}")]
    Incomplete(String),
}

/// Makes a volume of blank nodes.
pub(crate) async fn init(nodes: &Nodes, limits: &Limits) -> Result<VolumeId, OpenError> {
    let all = crate::status::node_statuses(&nodes.banks, limits.call_deadline()).await;
    let mut volume = None;
    let mut missing = Vec::new();
    for bank in BankId::ALL {
        for (shard, status) in all[bank].iter().enumerate() {
            let address = nodes.banks[bank][shard].name();
            let Some(s) = status else {
                missing.push(format!("bank {bank} shard {shard} at {address}"));
                continue;
            };
            if (s.bank, usize::from(s.shard)) != (bank, shard) {
                return Err(OpenError::Refused(format!(
                    "the node at {address} was started for bank {} shard {}, the config says bank {bank} shard {shard}",
                    s.bank, s.shard
                )));
            }
            let Some(v) = s.volume else { continue };
            // A volume that was ever opened has a promise; one that was only begun to be made is
            // gone on with.
            if s.promise.epoch > 0 || s.position.high > Version::ZERO {
                return Err(OpenError::Refused(format!(
                    "the node at {address} already belongs to volume {v}: mount it, or empty its directory to make a new volume"
                )));
            }
            match volume {
                None => volume = Some(v),
                Some(o) if o == v => {}
                Some(o) => {
                    return Err(OpenError::Refused(format!(
                        "nodes belong to different volumes ({o}, {v}): empty the directories of one"
                    )));
                }
            }
        }
    }
    if !missing.is_empty() {
        return Err(OpenError::Unavailable(format!(
            "making a volume needs all three banks; no answer from {}",
            missing.join(", ")
        )));
    }
    let volume = volume.unwrap_or_else(|| VolumeId(rand::random()));
    let shards = all[BankId::A].len();
    for shard in 0..shards {
        let stores = PerBank::from_fn(|b| all[b][shard].as_ref().map(|s| s.store));
        let configuration = Configuration { number: 1, stores };
        for bank in BankId::ALL {
            let Some(s) = &all[bank][shard] else { continue };
            if s.volume.is_some() {
                continue;
            }
            let request = Request::Assign {
                volume,
                bank,
                shard: shard as u16,
                shards: shards as u16,
                role: Role::Voter,
                configuration,
                wipe: false,
            };
            let envelope = Envelope {
                format: WIRE_FORMAT,
                volume: VolumeId::ZERO,
                store: s.store,
                epoch: 0,
                nonce: 0,
            };
            let node = &nodes.banks[bank][shard];
            node.call(envelope, request, vec![], limits.call_deadline())
                .await
                .map_err(BankError::from)
                .and_then(|(r, _)| status_of(r))
                .map_err(|e| {
                    OpenError::Unavailable(format!("{}: {e}; run init again", node.name()))
                })?;
        }
    }
    Ok(volume)
}

pub(crate) async fn open(
    nodes: Nodes,
    limits: Limits,
    options: OpenOptions,
) -> Result<(Shared, mpsc::Receiver<RepairOrder>), OpenError> {
    let _ = (nodes, limits, options, Duration::ZERO, StoreId::ZERO, None::<Status>);
    Err(OpenError::Unavailable("not yet".into()))
}
