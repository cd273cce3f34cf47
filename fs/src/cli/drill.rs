//! `fault`: breaking something on one bank on purpose.

use super::{BankName, OK, Outcome, UNREACHABLE, USAGE, WRONG, look, say};
use crate::backend::nobody;
use crate::config::Config;
use crate::control::ControlError;
use clap::{Subcommand, ValueEnum};
use std::path::PathBuf;
use std::time::Duration;
use voter::bank::{Bank, BankError, http::HttpBank};
use voter::wire::{Fault as Injected, Reply, Request, VolumeId};

/// A node has so long to break something.
const NODE_DEADLINE: Duration = Duration::from_secs(5);
/// Keys of one path that are broken, at most.
const KEYS_MAX: usize = 4_096;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum What {
    /// Its content
    Data,
    /// Its inode
    Metadata,
}

#[derive(Subcommand, Debug)]
pub(super) enum Fault {
    /// Overwrite what one bank holds of a path with rubbish
    #[command(after_help = "Examples:\n  tercet fault corrupt --bank B /mnt/tercet/f\n  \
        tercet fault corrupt --bank B --flip /mnt/tercet/f")]
    Corrupt {
        /// A path in the mount
        path: PathBuf,
        /// Bank
        #[arg(long)]
        bank: BankName,
        /// Default: data, or metadata of what has no data
        #[arg(long)]
        what: Option<What>,
        /// Flip one bit on the disk instead
        #[arg(long)]
        flip: bool,
    },
    /// Make one bank forget what it holds of a path
    #[command(after_help = "Example:\n  tercet fault drop --bank C /mnt/tercet/f")]
    Drop {
        /// A path in the mount
        path: PathBuf,
        /// Bank
        #[arg(long)]
        bank: BankName,
        /// Default: data, or metadata of what has no data
        #[arg(long)]
        what: Option<What>,
    },
    /// Put a value under any key of one node
    #[command(
        after_help = "Example:\n  tercet fault put --bank A --shard 0 100000000000000001 CORRUPTED"
    )]
    Put {
        /// Key, in hexadecimal as `tercet inspect` shows it
        key: String,
        /// Value
        value: String,
        /// Bank
        #[arg(long)]
        bank: BankName,
        /// Shard
        #[arg(long)]
        shard: u16,
    },
    /// Make one node answer late, until it is told 0
    #[command(after_help = "Example:\n  tercet fault delay --bank A --shard 0 300")]
    Delay {
        /// Milliseconds
        millis: u32,
        /// Bank
        #[arg(long)]
        bank: BankName,
        /// Shard
        #[arg(long)]
        shard: u16,
    },
}

pub(super) async fn fault(config: &Config, fault: &Fault) -> Outcome {
    match fault {
        Fault::Corrupt { path, bank, what, flip } => {
            let keys = chosen(config, path, *what).await?;
            let damage = |key| match flip {
                true => Injected::Corrupt { key },
                false => Injected::Put { key, value: b"CORRUPTED".to_vec(), version: None },
            };
            inject_all(config, *bank, keys, damage).await
        }
        Fault::Drop { path, bank, what } => {
            let keys = chosen(config, path, *what).await?;
            inject_all(config, *bank, keys, |key| Injected::Drop { key }).await
        }
        Fault::Put { key, value, bank, shard } => {
            let key = from_hex(key).ok_or_else(|| {
                ControlError::new(USAGE, format!("{key} is no key"), "keys are hexadecimal")
            })?;
            let value = value.clone().into_bytes();
            let put = Injected::Put { key, value, version: None };
            inject(config, *bank, *shard, put).await?;
            say("done; `tercet refresh` repairs it, so does reading");
            Ok(OK)
        }
        Fault::Delay { millis, bank, shard } => {
            inject(config, *bank, *shard, Injected::Delay { millis: *millis }).await?;
            say("done; `tercet fault delay ... 0` ends it");
            Ok(OK)
        }
    }
}

async fn chosen(
    config: &Config,
    path: &std::path::Path,
    what: Option<What>,
) -> Result<Vec<(u16, Vec<u8>)>, ControlError> {
    let found = look::keys_of(config, path, KEYS_MAX).await?;
    let of = |wanted: &str| -> Vec<(u16, Vec<u8>)> {
        let keys = found["keys"].as_array().into_iter().flatten();
        keys.filter(|k| k["what"].as_str().is_some_and(|w| w.starts_with(wanted)))
            .filter_map(|k| {
                let shard = u16::try_from(k["shard"].as_u64()?).ok()?;
                Some((shard, from_hex(k["key"].as_str()?)?))
            })
            .collect()
    };
    let data = of("block");
    let keys = match what {
        Some(What::Data) => data,
        None if !data.is_empty() => data,
        _ => of("inode"),
    };
    if keys.is_empty() {
        let what = format!("{} has no data records", path.display());
        return Err(ControlError::new(WRONG, what, "try --what metadata"));
    }
    Ok(keys)
}

async fn inject_all(
    config: &Config,
    bank: BankName,
    keys: Vec<(u16, Vec<u8>)>,
    damage: impl Fn(Vec<u8>) -> Injected,
) -> Outcome {
    let count = keys.len();
    for (shard, key) in keys {
        inject(config, bank, shard, damage(key)).await?;
    }
    say(&format!(
        "{count} records on bank {bank:?}; `tercet inspect` shows them.\n\
         Reading heals them (not what is still cached: remount, or drop caches), so do `tercet refresh`\n\
         and `tercet scrub`."
    ));
    Ok(OK)
}

async fn inject(
    config: &Config,
    bank: BankName,
    shard: u16,
    fault: Injected,
) -> Result<(), ControlError> {
    let (letter, nodes) = config.bank_nodes()[bank as usize];
    let Some(address) = nodes.get(usize::from(shard)) else {
        let what = format!("bank {letter} has no shard {shard}");
        return Err(ControlError::new(USAGE, what, "`tercet config` lists the nodes"));
    };
    let refused = |e: BankError| match e {
        BankError::Refused(why) => {
            let hint = "start the node with --allow-faults";
            ControlError::new(WRONG, format!("the node at {address} refuses: {why}"), hint)
        }
        other => {
            let hint = "start the node, then try again";
            ControlError::new(UNREACHABLE, format!("the node at {address}: {other}"), hint)
        }
    };
    let node = HttpBank::new(address, &config.token()?).map_err(|e| {
        ControlError::new(USAGE, format!("{address}: {e}"), "correct the configuration")
    })?;
    let mut envelope = nobody();
    let status =
        node.call(envelope, Request::Status, vec![], NODE_DEADLINE).await.map_err(refused)?;
    if let (Reply::Status(status), _) = status {
        envelope.store = status.store;
        envelope.volume = status.volume.unwrap_or(VolumeId::ZERO);
    }
    node.call(envelope, Request::Inject(fault), vec![], NODE_DEADLINE).await.map_err(refused)?;
    Ok(())
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    if text.is_empty() || !text.is_ascii() || !text.len().is_multiple_of(2) {
        return None;
    }
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_as_they_are_shown() {
        assert_eq!(from_hex("100a"), Some(vec![16, 10]));
        assert_eq!(
            (from_hex("1"), from_hex("zz"), from_hex(""), from_hex("é")),
            (None, None, None, None)
        );
    }
}
