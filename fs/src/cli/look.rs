//! `status` and `inspect`.

use super::{JsonArg, OK, Outcome, UNREACHABLE, WRONG, bytes, say, seconds};
use crate::backend::{explain, is_about_token, right_token};
use crate::config::Config;
use crate::control::{self, Ask, ControlError};
use crate::daemon;
use clap::Args;
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::Duration;
use voter::ClusterStatus;
use voter::progress::WorkStatus;
use voter::status::CopyStatus;

#[derive(Args, Debug)]
pub(super) struct StatusArgs {
    #[command(flatten)]
    json: JsonArg,
    /// Again and again, every SECONDS
    #[arg(long, short, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "1")]
    watch: Option<u64>,
    /// Exit code 1 unless all replicas are up to date
    #[arg(long)]
    check: bool,
}

#[derive(Args, Debug)]
pub(super) struct InspectArgs {
    /// A path in the mount
    path: PathBuf,
    #[command(flatten)]
    json: JsonArg,
    /// At most so many keys; a large file has one for each block
    #[arg(long, default_value_t = 64, value_name = "N")]
    limit: usize,
}

pub(super) async fn status(config: &Config, args: &StatusArgs) -> Outcome {
    let Some(pause) = args.watch else { return status_once(config, args).await };
    loop {
        let clear = !args.json.json && std::io::stdout().is_terminal();
        if clear {
            say("\x1b[2J\x1b[H");
        }
        // What cannot be reached now may be there the next time.
        if let Err(error) = status_once(config, args).await {
            say(&format!("{}\n    -> {}", error.message, error.hint));
        }
        tokio::time::sleep(Duration::from_secs(pause.max(1))).await;
    }
}

async fn status_once(config: &Config, args: &StatusArgs) -> Outcome {
    let mut answer =
        match control::ask::<Value>(&config.control_socket(), &Ask::Status, |_| ()).await {
            Ok(answer) => answer,
            Err(error) if error.code == UNREACHABLE => {
                let cluster = match voter::survey(&config.cluster()?).await {
                    Ok(cluster) => cluster,
                    Err(e) => return Err(explain(&e, config).await),
                };
                // A mount that opens, or hangs, has no answer and a process all the same.
                let process = daemon::living(&daemon::pid_file(&config.control_socket()));
                json!({ "mount": null, "mount_process": process, "cluster": cluster })
            }
            Err(error) => return Err(error),
        };
    let cluster: Option<ClusterStatus> =
        serde_json::from_value(answer["cluster"].clone()).ok().flatten();
    let healthy = is_healthy(&answer, cluster.as_ref());
    answer["healthy"] = healthy.into();
    if args.json.json {
        say(&answer.to_string());
    } else {
        say(&words(&answer, cluster.as_ref(), config));
    }
    let silent = answer["mount"].is_null()
        && cluster.is_some_and(|c| c.replicas.iter().all(|r| r.node.is_none()));
    Ok(match (silent, args.check && !healthy) {
        (true, _) => UNREACHABLE,
        (_, true) => WRONG,
        _ => OK,
    })
}

/// All three replicas of every shard are up to date, and this mount knows it.
fn is_healthy(answer: &Value, cluster: Option<&ClusterStatus>) -> bool {
    match cluster {
        Some(c) => {
            !answer["mount"].is_null()
                && c.fenced.is_none()
                && c.redundancy == 3
                && c.replicas.iter().all(|r| r.state == "up to date")
        }
        None => answer["mount"]["memory"] == true,
    }
}

fn words(answer: &Value, cluster: Option<&ClusterStatus>, config: &Config) -> String {
    let mut out = String::new();
    let mount = &answer["mount"];
    let at = mount["mountpoint"].as_str().unwrap_or("?");
    let volume = cluster.and_then(|c| c.volume).map_or("none yet".into(), |v| v.to_string());
    if let Some(pid) = answer["mount_process"].as_u64().and_then(|pid| u32::try_from(pid).ok()) {
        let log = config.run_dir().join("mount.log");
        let _ = writeln!(
            out,
            "volume {volume}: {}\n    -> {}",
            daemon::unheard(pid),
            daemon::what_ends(pid, &log)
        );
    } else if mount.is_null() {
        let _ = writeln!(out, "volume {volume}, not mounted with {}", config.file.display());
        if let Some(at) = daemon::died_at(&daemon::pid_file(&config.control_socket())) {
            let at = at.display();
            let _ = writeln!(out, "the mount at {at} died: `tercet mount {at}` mounts it again");
        }
    } else {
        let up = seconds(mount["uptime_s"].as_u64().unwrap_or_default());
        let _ =
            writeln!(out, "volume {volume}, mounted at {at} for {up} (process {})", mount["pid"]);
    }
    let Some(c) = cluster else {
        out.push_str("kept in memory: no banks\n");
        return out;
    };
    if mount.is_null()
        && let Some(holder) = &c.holder
    {
        let _ = writeln!(out, "held, or not released, by {holder}");
    }
    if let Some(why) = &c.fenced {
        let _ = writeln!(
            out,
            "FENCED: {why}\n    -> this mount is of no more use: `tercet umount --lazy`"
        );
    }
    let meaning = meaning(!mount.is_null(), c, &config.token_file());
    let _ = writeln!(out, "redundancy {} of 3: {meaning}", c.redundancy);
    if let Some(space) = c.space {
        let used = space.capacity_bytes.saturating_sub(space.free_bytes);
        let _ = writeln!(
            out,
            "space {} used of {}, {} free",
            bytes(used),
            bytes(space.capacity_bytes),
            bytes(space.free_bytes)
        );
    }
    let _ = writeln!(out, "\n{:<5} {:<4} {:<22} {:<11} details", "shard", "bank", "node", "state");
    for r in &c.replicas {
        let mut details = Vec::new();
        if let Some(why) = &r.why {
            details.push(why.clone());
        }
        if r.behind_groups > 0 {
            details.push(format!("{} groups behind", r.behind_groups));
        }
        if let Some(c) = &r.copied {
            details.push(copying(c));
        }
        if let Some(node) = &r.node {
            details.push(format!(
                "{} records, {}",
                node.space.records,
                bytes(node.space.live_bytes)
            ));
            if node.damaged_records > 0 {
                details.push(format!("{} damaged", node.damaged_records));
            }
            if node.allow_faults {
                details.push("allows faults".into());
            }
        }
        let (shard, bank, state) = (r.shard, r.bank.to_string(), &r.state);
        let _ = writeln!(
            out,
            "{shard:<5} {bank:<4} {:<22} {state:<11} {}",
            r.address,
            details.join("; ")
        );
    }
    if !c.work.is_empty() {
        out.push('\n');
    }
    for w in &c.work {
        let _ = writeln!(out, "{}", working(w));
    }
    if let Some(n) = c.counts {
        let _ = writeln!(
            out,
            "\nrepaired {}, caught up {}, refilled {}, scrubbed {} records ({} damaged); {} refreshes; \
             {} syncs, {} refused",
            n.repaired,
            n.caught_up,
            n.refilled,
            n.scrubbed,
            n.scrub_damaged,
            n.refreshes,
            n.syncs,
            n.syncs_failed
        );
        let _ = writeln!(
            out,
            "not yet on the banks: {} in {} groups; waiting requests: {}",
            bytes(c.dirty_bytes as u64),
            c.groups_in_flight,
            answer["requests"]["waiting"]
        );
    }
    out
}

/// What the redundancy means, and what to do about it.
fn meaning(mounted: bool, c: &ClusterStatus, token: &Path) -> String {
    // Nodes that run and refuse the token need no start.
    let refused = c.replicas.iter().any(|r| r.why.as_deref().is_some_and(is_about_token));
    let what = match (mounted, c.redundancy) {
        (true, _) if c.fenced.is_some() => "as this mount saw it last",
        (false, 3) => "every node is there",
        (false, 2) => "can be mounted",
        (true, 3) => "any one bank may fail",
        (true, 2) => "works; no further bank may fail until it is 3 again",
        (mounted, _) => {
            let state = match mounted {
                true => "reads what it can, writes wait",
                false => "cannot be mounted",
            };
            let help = match (refused, mounted) {
                (true, _) => &*right_token(token),
                (false, true) => "start nodes",
                (false, false) => "start nodes until two of each shard are voters",
            };
            return format!("{state}: {help}");
        }
    };
    what.into()
}

/// How far a copy came, how fast it goes, and how long it will take.
fn copying(c: &CopyStatus) -> String {
    let (of_records, of_bytes) = (c.of_records.max(c.records), c.of_bytes.max(c.bytes));
    // Small records cost by their number, large ones by their bytes.
    let share = |done: u64, of: u64| if of == 0 { 1.0 } else { done as f64 / of as f64 };
    let done = share(c.records, of_records).min(share(c.bytes, of_bytes));
    format!(
        "{} of {of_records} records, {} of {} copied{}",
        c.records,
        bytes(c.bytes),
        bytes(of_bytes),
        pace(&format!("{}/s", bytes(per_second(c.bytes, c.ms))), done, c.ms)
    )
}

/// The same of a refresh or scrub.
fn working(w: &WorkStatus) -> String {
    let total = w.total.max(w.done);
    let (done, of, rate) = match w.unit.as_str() {
        "bytes" => (bytes(w.done), bytes(total), format!("{}/s", bytes(per_second(w.done, w.ms)))),
        unit => (w.done.to_string(), format!("{total} {unit}"), String::new()),
    };
    let share = if total == 0 { 0.0 } else { w.done as f64 / total as f64 };
    format!("{}: {done} of {of}{}", w.what, pace(&rate, share, w.ms))
}

fn per_second(n: u64, ms: u64) -> u64 {
    n.saturating_mul(1000) / ms.max(1)
}

/// Rate and time left, once they can be told.
fn pace(rate: &str, done: f64, ms: u64) -> String {
    if ms < 500 || done <= 0.0 {
        return String::new();
    }
    // To whole milliseconds first: a share such as a third is not exact.
    let left = (ms as f64 * (1.0 - done) / done).round() / 1000.0;
    let comma = if rate.is_empty() { "" } else { ", " };
    format!("{comma}{rate}, {} left", seconds(left.ceil() as u64))
}

pub(super) async fn inspect(config: &Config, args: &InspectArgs) -> Outcome {
    let found = keys_of(config, &args.path, args.limit).await?;
    let mut wrong = 0;
    let mut out = String::new();
    let kind = found["kind"].as_str().unwrap_or_default();
    let _ = writeln!(
        out,
        "{}: {kind}, inode {}, {} bytes",
        args.path.display(),
        found["ino"],
        found["size"]
    );
    for key in found["keys"].as_array().into_iter().flatten() {
        let pending = key["pending"] == true;
        let _ = writeln!(
            out,
            "\n{}: shard {}, key {}{}",
            key["what"].as_str().unwrap_or_default(),
            key["shard"],
            key["key"].as_str().unwrap_or_default(),
            if pending { " (newer in the mount than on the banks)" } else { "" }
        );
        for copy in key["copies"].as_array().into_iter().flatten() {
            let state = copy["state"].as_str().unwrap_or_default();
            if state != "ok" && !pending {
                wrong += 1;
            }
            let version = &copy["version"];
            let version = match (version["epoch"].as_u64(), version["seq"].as_u64()) {
                (Some(epoch), Some(seq)) => format!("e{epoch}.{seq}"),
                _ => "-".into(),
            };
            let len = copy["len"].as_u64().map_or("-".into(), |n| format!("{n} bytes"));
            let digest = copy["digest"].as_str().unwrap_or("-");
            let bank = copy["bank"].as_str().unwrap_or("?");
            let _ = writeln!(out, "    {bank}  {state:<8} {version:<12} {len:>14}  {digest}");
        }
    }
    if found["more"] == true {
        let _ = writeln!(out, "\nmore keys: --limit N");
    }
    if args.json.json {
        say(&found.to_string());
    } else {
        say(&out);
    }
    Ok(if wrong > 0 { WRONG } else { OK })
}

/// The keys of a path and the copies under them, from the running mount.
pub(super) async fn keys_of(
    config: &Config,
    path: &Path,
    limit: usize,
) -> Result<Value, ControlError> {
    let socket = config.control_socket();
    let about: Value = control::ask(&socket, &Ask::Hello, |_| ()).await?;
    let mountpoint = PathBuf::from(about["mountpoint"].as_str().unwrap_or_default());
    let path = super::below_root(path, &mountpoint)?;
    control::ask(&socket, &Ask::Inspect { path, limit }, |_| ()).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_copied_shows_its_rate_and_what_is_left() {
        let c = CopyStatus {
            records: 25,
            bytes: 50 << 20,
            of_records: 100,
            of_bytes: 100 << 20,
            ms: 10_000,
        };
        let said = copying(&c);
        assert!(said.contains("25 of 100 records, 50.00 MiB of 100.00 MiB copied"), "{said}");
        assert!(said.ends_with("5.00 MiB/s, 30 seconds left"), "the slower share decides: {said}");
        let young = copying(&CopyStatus { ms: 100, ..c });
        assert!(young.ends_with("copied"), "{young}");
        let more = copying(&CopyStatus { records: 101, bytes: 101 << 20, ..c });
        assert!(more.contains("101 of 101") && more.ends_with("0 seconds left"), "{more}");
    }

    fn cluster(redundancy: usize, why: &str, fenced: Option<&str>) -> ClusterStatus {
        let replica = json!({
            "bank": "A", "shard": 0, "address": "h:1", "state": "down", "why": why,
            "behind_groups": 0, "copied": null, "node": null,
        });
        serde_json::from_value(json!({
            "volume": null, "epoch": null, "holder": null, "watermark": null,
            "replicas": [replica], "redundancy": redundancy, "dirty_bytes": 0,
            "groups_in_flight": 0, "counts": null, "uptime_s": null, "fenced": fenced, "space": null,
        }))
        .unwrap()
    }

    #[test]
    fn what_helps_is_said_and_nothing_else() {
        let said = |mounted, c| meaning(mounted, &c, Path::new("/t/token"));
        for mounted in [true, false] {
            assert!(said(mounted, cluster(1, "no answer", None)).contains("start nodes"));
            let refused = "refuses: the volume's token is missing or wrong";
            let wrong = said(mounted, cluster(0, refused, None));
            assert!(wrong.contains("/t/token") && !wrong.contains("start nodes"), "{wrong}");
        }
        let fenced = said(true, cluster(0, "no answer", Some("taken over")));
        assert!(!fenced.contains("start nodes"), "{fenced}");
    }

    #[test]
    fn a_mount_that_opens_is_shown() {
        let file = Path::new("/t/tercet.toml");
        let config = Config::parse(crate::config::EXAMPLE, file).unwrap();
        let c = cluster(3, "", None);
        let opening = words(&json!({"mount": null, "mount_process": 7}), Some(&c), &config);
        assert!(opening.contains("a mount (process 7)") && opening.contains("`kill 7`"));
        assert!(!opening.contains("not mounted"), "{opening}");
        let none = words(&json!({"mount": null, "mount_process": null}), Some(&c), &config);
        assert!(none.contains("not mounted with /t/tercet.toml"), "{none}");
    }

    #[test]
    fn long_work_shows_the_same() {
        let w = |what: &str, unit: &str, done, total| WorkStatus {
            what: what.into(),
            unit: unit.into(),
            done,
            total,
            ms: 2_000,
        };
        assert_eq!(
            working(&w("refresh", "shards", 1, 3)),
            "refresh: 1 of 3 shards, 4 seconds left"
        );
        let scrub = working(&w("scrub", "bytes", 1 << 20, 4 << 20));
        assert_eq!(scrub, "scrub: 1.00 MiB of 4.00 MiB, 512.00 KiB/s, 6 seconds left");
    }
}
