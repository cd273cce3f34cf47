//! `refresh`, `scrub`, `check`, `replace`: long work in the mount, with a progress bar here.

use super::{BankName, Bar, OK, Outcome, WRONG, bytes, say};
use crate::config::Config;
use crate::control::{self, Ask};
use clap::Args;
use serde_json::Value;

#[derive(Args, Debug)]
pub(super) struct WorkArgs {
    #[command(flatten)]
    json: super::JsonArg,
    /// No progress bar
    #[arg(long, short)]
    quiet: bool,
}

async fn ask(config: &Config, what: &Ask, args: &WorkArgs) -> Result<Value, control::ControlError> {
    let bar = Bar::new(args.quiet || args.json.json);
    control::ask(&config.control_socket(), what, |p| bar.show(&p)).await
}

fn number(value: &Value, name: &str) -> u64 {
    value[name].as_u64().unwrap_or_default()
}

pub(super) async fn refresh(config: &Config, args: &WorkArgs) -> Outcome {
    let report = ask(config, &Ask::Refresh, args).await?;
    let (shards, skipped) = (number(&report, "shards"), number(&report, "skipped"));
    let absent = number(&report, "absent");
    if args.json.json {
        say(&report.to_string());
    } else {
        say(&format!(
            "compared {} of {shards} shards: {} records repaired",
            shards - skipped.min(shards),
            number(&report, "mended")
        ));
        if skipped > 0 {
            say(&format!("{skipped} shards have no two replicas to compare: see `tercet status`"));
        }
        if absent > 0 {
            say(&format!(
                "{absent} replicas are not up to date and were left out: see `tercet status`"
            ));
        }
    }
    Ok(if skipped + absent > 0 { WRONG } else { OK })
}

pub(super) async fn scrub(config: &Config, args: &WorkArgs) -> Outcome {
    let report = ask(config, &Ask::Scrub, args).await?;
    let (damaged, skipped) = (number(&report, "damaged"), number(&report, "skipped"));
    if args.json.json {
        say(&report.to_string());
    } else {
        say(&format!(
            "re-read {} records and all files ({}): {damaged} damaged, {} repaired",
            number(&report, "verified"),
            bytes(number(&report, "bytes")),
            number(&report, "mended")
        ));
        let files = number(&report, "damaged_files");
        if files > 0 {
            say(&format!("{files} places in files were damaged: the nodes write them anew"));
        }
        if skipped > 0 {
            say(&format!("{skipped} replicas could not be read: see `tercet status`"));
        }
    }
    Ok(if skipped > 0 || number(&report, "mended") < damaged { WRONG } else { OK })
}

#[derive(Args, Debug)]
pub(super) struct CheckArgs {
    #[command(flatten)]
    work: WorkArgs,
    /// Also that each file has the blocks it counts; reads the whole volume
    #[arg(long)]
    data: bool,
}

pub(super) async fn check(config: &Config, args: &CheckArgs) -> Outcome {
    let report = ask(config, &Ask::Check { data: args.data }, &args.work).await?;
    let args = &args.work;
    let wrong = number(&report, "wrong");
    if args.json.json {
        say(&report.to_string());
    } else {
        for line in report["findings"].as_array().into_iter().flatten() {
            say(line.as_str().unwrap_or_default());
        }
        let verdict = if wrong == 0 { "consistent".into() } else { format!("{wrong} findings") };
        let waiting = match (number(&report, "orphans"), number(&report, "dead_blocks")) {
            (0, 0) => String::new(),
            (inodes, blocks) => format!("; {inodes} inodes, {blocks} blocks wait for reclaim"),
        };
        say(&format!(
            "{} inodes, {} names: {verdict}{waiting}",
            number(&report, "inodes"),
            number(&report, "names")
        ));
    }
    Ok(if wrong == 0 { OK } else { WRONG })
}

pub(super) async fn replace(config: &Config, bank: BankName, shard: Option<u16>) -> Outcome {
    let ask = Ask::Replace { bank: format!("{bank:?}"), shard };
    let answer: Value = control::ask(&config.control_socket(), &ask, |_| ()).await?;
    let shards: Vec<String> =
        answer["shards"].as_array().into_iter().flatten().map(Value::to_string).collect();
    say(&format!(
        "bank {bank:?}, shard {}: filled anew as soon as the node answers; `tercet status --watch` shows it",
        shards.join(", ")
    ));
    Ok(OK)
}
