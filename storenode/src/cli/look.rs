//! `status`, `keys`, `get`, `verify`: what is on a node, in words and in JSON.

use super::target::{Record, Target};
use super::text::{dump, end_of_prefix, hex, printable, size};
use super::{Failure, GetArgs, KeysArgs, Outcome, TargetArgs};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use storenode::wire::{Key, RecordHead, Role, Status};

pub(super) const STATUS_HELP: &str = "\
JSON: one object: volume, bank, shard, shards, store, role (blank, filling, voter), configuration,
promise, beats, attached, position {position, applied, high, detached}, watermark, floor, marks,
openings, damaged_through, failed, cursor, space {capacity_bytes, free_bytes, live_bytes, log_bytes,
records, tombstones}, damaged_records, allow_faults, uptime_s, program; and with --dir also damage, a
list of what is wrong with the files. Versions in it are {epoch, seq}.";

pub(super) const KEYS_HELP: &str = "\
JSON: one object per line and key: key, text (printable ASCII of it), version, digest, len (bytes,
null for a tombstone), state (live, tombstone, damaged). Damage that nobody has looked for is not
seen here: use `storenode verify`.

Examples:
  storenode keys --dir /data/b0 --limit 10
  storenode keys --url 127.0.0.1:8000 --token-file token --prefix 02 --json | jq -r .key";

pub(super) const GET_HELP: &str = "\
JSON: one object: key, text, state (live, tombstone, damaged, absent), version, digest, len, value
(hexadecimal, null when there is none or with --out), why (when damaged).
Exit code 1 unless the record is there, live and whole.

Examples:
  storenode get 0100000000000001 --dir /data/b0
  storenode get text:hello --dir /data/b0 --raw | xxd | head";

pub(super) const VERIFY_HELP: &str = "\
JSON: one object: records, bytes (read), damaged (list of key, text, why), files (list of what is
wrong with the files themselves), whole (true when both lists are empty).";

/// What a verification asks for at a time: short enough for a smooth progress bar.
const VERIFY_STEP_BYTES: u32 = 8 << 20;
/// A hexadecimal dump of more than this is of no use on a screen.
const DUMP_BYTES_MAX: usize = 512;

pub(super) fn status(args: &TargetArgs) -> Outcome {
    let target = Target::open(args)?;
    let (s, damage) = (target.status()?, target.damage());
    let mut out = std::io::stdout().lock();
    if args.json {
        let mut all = serde_json::to_value(&s).map_err(|e| Failure::bad(e.to_string()))?;
        if let Target::Stopped { .. } = target {
            all["damage"] = json!(damage);
        }
        writeln!(out, "{all:#}")?;
    } else {
        write!(out, "{}", status_words(&s, &target))?;
        for line in &damage {
            writeln!(out, "damage:      {line}")?;
        }
    }
    Ok(ExitCode::from(u8::from(!damage.is_empty())))
}

fn status_words(s: &Status, target: &Target) -> String {
    use std::fmt::Write;
    let mut out = String::new();
    // Writing to a String cannot fail.
    let mut line = |name: &str, text: String| {
        let _ = writeln!(out, "{:<12} {text}", format!("{name}:"));
    };
    let of = if s.shards > 0 { format!(" of {}", s.shards) } else { String::new() };
    line("node", format!("bank {} shard {}{of}", s.bank, s.shard));
    let volume = s.volume.map_or("none".into(), |v| v.to_string());
    line("volume", volume);
    line("store", format!("{} ({})", s.store, role_words(s.role)));
    let stores = s.configuration.stores.iter().map(|(bank, store)| match store {
        Some(id) if *id == s.store => format!("{bank} this"),
        Some(id) => format!("{bank} {}", &id.to_string()[..8]),
        None => format!("{bank} none"),
    });
    let stores = stores.collect::<Vec<_>>().join(", ");
    if s.configuration.number > 0 {
        line("voters", format!("{stores} (configuration {})", s.configuration.number));
    }
    let p = &s.position;
    line("position", format!("{}, applied {}, acked {}", p.position, p.applied, p.high));
    if let Some((first, last)) = p.detached {
        line("detached", format!("{first} to {last}: waits for what lies before"));
    }
    let held = match (s.promise.epoch, s.promise.released) {
        (0, _) => "nobody yet".into(),
        (epoch, true) => format!("epoch {epoch}, released by {}", s.promise.holder),
        (epoch, false) => format!("epoch {epoch}, {}", s.promise.holder),
    };
    line("holder", held);
    line("records", format!("{} live, {} tombstones", s.space.records, s.space.tombstones));
    line("data", size(s.space.live_bytes));
    line("log", size(s.space.log_bytes));
    line("free", format!("{} of {}", size(s.space.free_bytes), size(s.space.capacity_bytes)));
    if let Some(c) = &s.cursor {
        let after = hex(&c.after);
        line("copied", format!("through {}; through {} up to key {after}", c.since, c.good));
    }
    if let Some(through) = s.damaged_through {
        line("DAMAGED LOG", format!("what is lost may reach through {through}"));
    }
    if s.damaged_records > 0 {
        line("DAMAGED", format!("{} records, as far as was looked", s.damaged_records));
    }
    if let Some(why) = &s.failed {
        line("NO VOTE", why.clone());
    }
    if let Target::Live(_) = target {
        let faults = if s.allow_faults { ", faults may be injected" } else { "" };
        line("running", format!("{} s, program {}{faults}", s.uptime_s, s.program));
    }
    out
}

pub(super) fn role_words(role: Role) -> &'static str {
    match role {
        Role::Blank => "blank: belongs to no volume",
        Role::Filling => "filling: being copied from the other banks",
        Role::Voter => "voter",
    }
}

pub(super) fn keys(args: &KeysArgs) -> Outcome {
    let target = Target::open(&args.target)?;
    let (mut start, end) = (args.prefix.0.clone(), end_of_prefix(&args.prefix.0));
    let mut tombstones = match args.deleted {
        true => target.tombstones(&start, &end)?,
        false => Default::default(),
    };
    let mut left = args.limit.unwrap_or(u64::MAX);
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let mut shown = 0u64;
    let mut more = left > 0;
    while more {
        let page = target.keys(&start, &end)?;
        // Tombstones of a running node come apart: those up to the end of this page go in here.
        let rest = page.next.as_ref().map(|next| tombstones.split_off(next)).unwrap_or_default();
        let mut heads: Vec<RecordHead> = page.heads;
        heads.extend(std::mem::replace(&mut tombstones, rest).into_values());
        heads.sort_by(|a, b| a.key.cmp(&b.key));
        for head in heads.iter().filter(|h| args.deleted || h.len.is_some()) {
            if left == 0 {
                break;
            }
            left -= 1;
            shown += 1;
            let state = match head.len {
                _ if page.damaged.contains(&head.key) => "damaged",
                Some(_) => "live",
                None => "tombstone",
            };
            show_key(&mut out, head, state, args.target.json)?;
        }
        more = left > 0;
        match page.next {
            Some(next) => start = next,
            None => break,
        }
    }
    if !args.target.json && shown == 0 {
        writeln!(out, "no keys")?;
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

fn show_key(
    out: &mut impl Write,
    head: &RecordHead,
    state: &str,
    as_json: bool,
) -> std::io::Result<()> {
    let RecordHead { key, version, digest, len } = head;
    if as_json {
        let row = json!({
            "key": hex(key), "text": printable(key), "version": version.to_string(),
            "digest": digest.to_string(), "len": len, "state": state,
        });
        return writeln!(out, "{row}");
    }
    let len = len.map_or("-".into(), |n| n.to_string());
    let (key, text) = (hex(key), printable(key));
    writeln!(out, "{key:<40} {text:<20} {version:<12} {len:>9} {state:<9} {digest}")
}

pub(super) fn get(args: &GetArgs) -> Outcome {
    let key = &args.key.0;
    let (state, version, digest, value, why) = match Target::open(&args.target)?.get(key)? {
        None => ("absent", None, None, None, None),
        Some(Record::Whole { version, digest, value }) => {
            let state = if value.is_some() { "live" } else { "tombstone" };
            (state, Some(version), Some(digest), value, None)
        }
        Some(Record::Damaged { why, head, value }) => {
            let (version, digest) = head.unzip();
            ("damaged", version, digest, value, Some(why))
        }
    };
    let mut out = std::io::stdout().lock();
    if let (Some(path), Some(value)) = (&args.out, &value) {
        write_new(path, value)?;
    }
    let len = value.as_ref().map(bytes::Bytes::len);
    if args.raw {
        out.write_all(value.as_deref().unwrap_or_default())?;
        out.flush()?;
        if state != "live" {
            return Err(Failure::bad(format!("{}: {}", hex(key), why.as_deref().unwrap_or(state))));
        }
    } else if args.target.json {
        let shown = value.as_ref().filter(|_| args.out.is_none()).map(|v| hex(v));
        let row = json!({
            "key": hex(key), "text": printable(key), "state": state, "len": len, "why": why,
            "version": version.map(|v| v.to_string()), "digest": digest.map(|d| d.to_string()),
            "value": shown,
        });
        writeln!(out, "{row:#}")?;
    } else {
        writeln!(out, "key:     {} {}", hex(key), printable(key))?;
        writeln!(out, "state:   {state}{}", why.map(|w| format!(": {w}")).unwrap_or_default())?;
        if let (Some(version), Some(digest)) = (version, digest) {
            writeln!(out, "version: {version}\ndigest:  {digest}")?;
        }
        match (&value, &args.out) {
            (Some(value), Some(path)) => {
                writeln!(
                    out,
                    "value:   {}, written to {}",
                    size(value.len() as u64),
                    path.display()
                )?;
            }
            (Some(value), None) => {
                writeln!(out, "value:   {}", size(value.len() as u64))?;
                let part = &value[..value.len().min(DUMP_BYTES_MAX)];
                write!(out, "{}", dump(part))?;
                if part.len() < value.len() {
                    writeln!(out, "  ... (all of it with --raw or --out FILE)")?;
                }
            }
            (None, _) => {}
        }
    }
    Ok(ExitCode::from(u8::from(state != "live")))
}

fn write_new(path: &std::path::Path, value: &[u8]) -> Result<(), Failure> {
    let cannot = |e| Failure::usage(format!("cannot write {}: {e}", path.display()));
    let mut file = std::fs::File::create_new(path).map_err(cannot)?;
    file.write_all(value).map_err(cannot)
}

pub(super) fn verify(args: &TargetArgs) -> Outcome {
    let target = Target::open(args)?;
    let expected = target.status()?.space.live_bytes;
    let files = target.verify_files()?;
    let bar = progress(expected, args.json);
    let (mut records, mut bytes) = (0u64, 0u64);
    let mut damaged: Vec<(Key, String)> = Vec::new();
    let mut after = Key::new();
    loop {
        let step = target.verify(&after, VERIFY_STEP_BYTES)?;
        records += step.records;
        bytes += step.bytes;
        damaged.extend(step.bad);
        // What is written meanwhile is verified too; the bar must not run past its end.
        bar.set_length(expected.max(bytes));
        bar.set_position(bytes);
        bar.set_message(format!("{records} records, {} damaged", damaged.len()));
        match step.next {
            Some(next) => after = next,
            None => break,
        }
    }
    bar.finish_and_clear();
    let whole = damaged.is_empty() && files.is_empty();
    let mut out = std::io::stdout().lock();
    if args.json {
        let row = |(key, why): &(Key, String)| json!({ "key": hex(key), "text": printable(key), "why": why });
        let damaged: Vec<Value> = damaged.iter().map(row).collect();
        let all = json!({
            "records": records, "bytes": bytes, "damaged": damaged, "files": files, "whole": whole,
        });
        writeln!(out, "{all:#}")?;
    } else {
        for line in &files {
            writeln!(out, "damaged file: {line}")?;
        }
        for (key, why) in &damaged {
            writeln!(out, "damaged: {} {} {why}", hex(key), printable(key))?;
        }
        let verdict = match damaged.len() {
            0 if whole => "all whole".into(),
            n => format!("{n} damaged, {} files damaged", files.len()),
        };
        writeln!(out, "{records} records, {} read: {verdict}", size(bytes))?;
        if !whole {
            writeln!(out, "A mount repairs what it reads, and all of it at the next scrub.")?;
        }
    }
    Ok(ExitCode::from(u8::from(!whole)))
}

fn progress(expected: u64, quiet: bool) -> ProgressBar {
    if quiet || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template(
        "verify {bar:30} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left; {msg}",
    );
    let bar = ProgressBar::new(expected);
    match style {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
