//! `put`, `corrupt`, `drop`, `delay`, `refuse`: breaking a node on purpose, for drills and tests. A
//! running node must have been started with `--allow-faults`.

use super::target::Target;
use super::text::hex;
use super::{DelayArgs, Failure, KeyArgs, Outcome, PutArgs, RefuseArgs, TargetArgs};
use serde_json::json;
use std::io::Write;
use std::process::ExitCode;
use storenode::wire::{Fault, VALUE_LEN_MAX};

pub(super) fn put(args: PutArgs) -> Outcome {
    let value = match (args.value, &args.from) {
        (Some(value), _) => value.0,
        (None, Some(path)) => std::fs::read(path)
            .map_err(|e| Failure::usage(format!("cannot read {}: {e}", path.display())))?,
        (None, None) => return Err(Failure::usage("no value: give it, or --from FILE")),
    };
    if value.len() > VALUE_LEN_MAX {
        return Err(Failure::usage(format!("a value has at most {VALUE_LEN_MAX} bytes")));
    }
    let done = format!("{} bytes put under {}", value.len(), hex(&args.key.0));
    inject(&args.target, Fault::Put { key: args.key.0, value, version: args.version }, &done)
}

pub(super) fn corrupt(args: KeyArgs) -> Outcome {
    let done = format!("one bit flipped in the value of {}", hex(&args.key.0));
    inject(&args.target, Fault::Corrupt { key: args.key.0 }, &done)
}

pub(super) fn drop_record(args: KeyArgs) -> Outcome {
    let done = format!("{} forgotten", hex(&args.key.0));
    inject(&args.target, Fault::Drop { key: args.key.0 }, &done)
}

pub(super) fn delay(args: &DelayArgs) -> Outcome {
    only_running(&args.target, "delay")?;
    let done = match args.millis {
        0 => "no delay any more".into(),
        n => format!("every reply waits {n} ms from now on"),
    };
    inject(&args.target, Fault::Delay { millis: args.millis }, &done)
}

pub(super) fn refuse(args: &RefuseArgs) -> Outcome {
    only_running(&args.target, "refuse")?;
    let done = if args.on { "refuses everything but status" } else { "answers again" };
    inject(&args.target, Fault::Refuse { on: args.on }, done)
}

fn only_running(target: &TargetArgs, what: &str) -> Result<(), Failure> {
    match target.dir {
        Some(_) => Err(Failure::usage(format!("{what} is for a running node: use --url"))),
        None => Ok(()),
    }
}

fn inject(target: &TargetArgs, fault: Fault, done: &str) -> Outcome {
    Target::open(target)?.inject(fault)?;
    let mut out = std::io::stdout().lock();
    match target.json {
        true => writeln!(out, "{}", json!({ "done": done }))?,
        false => writeln!(out, "{done}")?,
    }
    Ok(ExitCode::SUCCESS)
}
