//! `token`, `config`, `init`.

use super::{OK, Outcome, USAGE, WRONG, say};
use crate::backend::explain;
use crate::config::{self, Config};
use crate::control::ControlError;
use crate::filesystem::{FileSystem, FormatOptions};
use clap::Args;
use std::path::Path;
use std::sync::Arc;
use voter::volume::Volume;
use voter::{OpenOptions, Replicated};

#[derive(Args, Debug)]
pub(super) struct InitArgs {
    /// Unit in which files are stored and rewritten: 4KiB to 1MiB, a power of two
    #[arg(long, value_name = "SIZE", value_parser = block_size)]
    block_size: Option<u32>,
}

fn block_size(text: &str) -> Result<u32, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        other => return Err(format!("unknown unit {other}: write 16384, 16KiB or 1MiB")),
    };
    let bytes = digits.parse::<u32>().ok().and_then(|n| n.checked_mul(unit));
    bytes
        .filter(|b| b.is_power_of_two() && (4 << 10..=1 << 20).contains(b))
        .ok_or_else(|| "a power of two from 4KiB to 1MiB".into())
}

pub(super) fn token(file: &Path) -> Outcome {
    let made = config::make_token(file)?;
    let state = if made { "made" } else { "is there already, left as it is" };
    say(&format!("{} {state}", file.display()));
    Ok(OK)
}

pub(super) fn config(config: &Config, check: bool) -> Outcome {
    if check {
        config.token()?;
    } else {
        say(&config.render());
    }
    Ok(OK)
}

pub(super) async fn init(config: &Config, args: &InitArgs) -> Outcome {
    let cluster = config.cluster()?;
    let id = match Replicated::init(&cluster).await {
        Ok(id) => id,
        Err(e) => return Err(explain(&e, config).await),
    };
    // The volume is there; now the filesystem in it. Held for a moment only.
    let open = OpenOptions {
        holder: "tercet init".into(),
        takeover: false,
        auto_replace: false,
        seed: None,
        progress: Arc::new(|what: &str| tracing::info!("{what}")),
    };
    let volume = match Replicated::open(cluster, open).await {
        Ok(volume) => volume,
        Err(e) => return Err(explain(&e, config).await),
    };
    let mut options = FormatOptions {
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        ..FormatOptions::default()
    };
    if let Some(bytes) = args.block_size {
        options.block_size = bytes;
    }
    let as_volume: Arc<dyn Volume> = volume.clone();
    let formatted = FileSystem::format(&as_volume, &options).await;
    let closed = volume.close().await;
    match formatted {
        Ok(()) => {}
        Err(e) if e.errno == libc::EEXIST => {
            let hint = "mount it with `tercet mount`";
            return Err(ControlError::new(
                WRONG,
                format!("volume {id} holds a filesystem already"),
                hint,
            ));
        }
        Err(e) if e.errno == libc::EINVAL => {
            return Err(ControlError::new(USAGE, e.to_string(), "choose another --block-size"));
        }
        Err(e) => {
            let hint = "`tercet status` shows the nodes; then run `tercet init` again";
            return Err(ControlError::new(WRONG, format!("cannot make the filesystem: {e}"), hint));
        }
    }
    closed.map_err(|e| {
        let hint = "run `tercet init` again";
        ControlError::new(WRONG, format!("the new filesystem is not known durable: {e}"), hint)
    })?;
    let shards = config.shards();
    let plural = if shards == 1 { "shard" } else { "shards" };
    say(&format!(
        "volume {id}: {shards} {plural} on three banks, blocks of {}\nnext: tercet mount",
        super::bytes(options.block_size.into())
    ));
    Ok(OK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_sizes_are_read_and_bounded() {
        assert_eq!(block_size("16KiB"), Ok(16 << 10));
        assert_eq!(block_size("65536"), Ok(65536));
        assert_eq!(block_size("1M"), Ok(1 << 20));
        for bad in ["", "5000", "2KiB", "2MiB", "16GiB", "KiB"] {
            assert!(block_size(bad).is_err(), "{bad}");
        }
    }
}
