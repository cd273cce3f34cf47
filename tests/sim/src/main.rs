//! `sim`: many worlds, one world again, a smaller world.

use clap::{Parser, Subcommand};
use sim::broken::Broken;
use sim::plan::Plan;
use sim::run::{Outcome, notice, run, trap};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Deterministic simulation of tercet: one seed is one world.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// One JSON object per line instead of text.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Run many seeds; those that fail are named with how to see them again.
    Run {
        /// How many.
        #[arg(long, default_value_t = 1000)]
        seeds: u64,
        /// The first.
        #[arg(long, default_value_t = 1)]
        from: u64,
        /// Threads; each world has one.
        #[arg(long, default_value_t = 1)]
        jobs: usize,
        /// Stop after so many failures.
        #[arg(long, default_value_t = 10)]
        failures: u64,
        /// Stop after so many minutes, whatever is left.
        #[arg(long)]
        minutes: Option<u64>,
        /// Two bad replicas at a time: only refusal is allowed, never wrong data.
        #[arg(long)]
        beyond: bool,
    },
    /// Run one seed again and print what happens.
    Replay {
        /// The seed.
        seed: u64,
        /// The world of `broken`, in which this rule is broken, instead of that of `run`.
        #[arg(long, value_name = "RULE", value_parser = rule)]
        broken: Option<Broken>,
        /// With --broken: the same world with the rule kept.
        #[arg(long, requires = "broken")]
        kept: bool,
        /// Only the last so many lines.
        #[arg(long)]
        last: Option<usize>,
        /// As in `run`.
        #[arg(long)]
        beyond: bool,
        /// Write the voter's and the nodes' own log to stderr (RUST_LOG).
        #[arg(long)]
        log: bool,
    },
    /// Leave steps out of a seed that fails, as long as it fails; print what is left.
    Shrink {
        /// The seed.
        seed: u64,
        /// Print the events of the smallest one.
        #[arg(long)]
        trace: bool,
        /// As in `run`.
        #[arg(long)]
        beyond: bool,
    },
    /// Break each rule in turn and run seeds until one notices.
    Broken {
        /// Seeds tried for each rule, at most.
        #[arg(long, default_value_t = 3000)]
        seeds: u64,
        /// Only the rules whose names contain this.
        #[arg(long, default_value = "")]
        only: String,
    },
}

fn rule(name: &str) -> Result<Broken, String> {
    let mut all = Broken::ALL.into_iter().chain(Broken::UNNOTICED);
    all.find(|r| format!("{r:?}") == name).ok_or_else(|| {
        let all: Vec<_> =
            Broken::ALL.iter().chain(&Broken::UNNOTICED).map(|r| format!("{r:?}")).collect();
        format!("no such rule; there are {}", all.join(", "))
    })
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let failed = match cli.command {
        Command::Run { seeds, from, jobs, failures, minutes, beyond } => {
            run_many(cli.json, &Many { from, seeds, jobs: jobs.max(1), failures, minutes, beyond })
        }
        Command::Replay { seed, broken, kept, last, beyond, log } => {
            let plan = match broken {
                Some(rule) if kept => trap(rule, seed),
                Some(rule) => trap(rule, seed).broken(rule),
                None => draw(seed, beyond),
            };
            replay(cli.json, &plan, last, log)
        }
        Command::Shrink { seed, trace, beyond } => shrink(cli.json, draw(seed, beyond), trace),
        Command::Broken { seeds, only } => break_rules(cli.json, seeds, &only),
    };
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn tell(json: bool, o: &Outcome) {
    if json {
        println!("{}", serde_json::to_string(o).unwrap_or_default());
    } else {
        let what = o.failure.as_deref().unwrap_or("nothing wrong");
        println!(
            "seed {}: {what}\n  digest {} events {} virtual {} ms",
            o.seed, o.digest, o.events, o.virtual_ms
        );
    }
}

fn draw(seed: u64, beyond: bool) -> Plan {
    let plan = Plan::draw(seed);
    if beyond { plan.beyond() } else { plan }
}

struct Many {
    from: u64,
    seeds: u64,
    jobs: usize,
    failures: u64,
    minutes: Option<u64>,
    beyond: bool,
}

fn run_many(json: bool, many: &Many) -> bool {
    let &Many { from, seeds, jobs, failures: most, minutes, beyond } = many;
    let began = Instant::now();
    let limit = minutes.map(|m| Duration::from_secs(60 * m));
    let [next, done, failed, operations, refusals, messages, virtual_ms, told] =
        [(); 8].map(|()| AtomicU64::new(0));
    std::thread::scope(|s| {
        for _ in 0..jobs {
            s.spawn(|| {
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    let late = limit.is_some_and(|l| began.elapsed() > l);
                    if n >= seeds || late || failed.load(Ordering::Relaxed) >= most {
                        return;
                    }
                    let o = run(&draw(from + n, beyond), false);
                    done.fetch_add(1, Ordering::Relaxed);
                    operations.fetch_add(o.operations, Ordering::Relaxed);
                    refusals.fetch_add(o.refusals, Ordering::Relaxed);
                    messages.fetch_add(o.messages, Ordering::Relaxed);
                    virtual_ms.fetch_add(o.virtual_ms, Ordering::Relaxed);
                    if o.failure.is_some() {
                        failed.fetch_add(1, Ordering::Relaxed);
                        tell(json, &o);
                        if !json {
                            println!("  again: sim replay {0}   smaller: sim shrink {0}", o.seed);
                        }
                    }
                    let second = began.elapsed().as_secs() / 10;
                    if told.fetch_max(second, Ordering::Relaxed) < second {
                        let done = done.load(Ordering::Relaxed);
                        let rate = done as f64 / began.elapsed().as_secs_f64();
                        eprintln!(
                            "{done} of {seeds} worlds, {rate:.1}/s, {} failed",
                            failed.load(Ordering::Relaxed)
                        );
                    }
                }
            });
        }
    });
    let (done, failed) = (done.into_inner(), failed.into_inner());
    let seconds = began.elapsed().as_secs_f64();
    let (operations, messages) = (operations.into_inner(), messages.into_inner());
    let hours = virtual_ms.into_inner() as f64 / 3.6e6;
    if json {
        let all = serde_json::json!({
            "worlds": done, "from": from, "failed": failed, "seconds": seconds,
            "worlds_per_s": done as f64 / seconds, "operations": operations,
            "refusals": refusals.into_inner(), "messages": messages, "virtual_hours": hours,
        });
        println!("{all}");
    } else {
        println!(
            "{done} worlds from seed {from}, {failed} failed: {operations} operations, {} refusals, \
             {messages} messages, {hours:.1} virtual hours in {seconds:.1} s ({:.1} worlds/s)",
            refusals.into_inner(),
            done as f64 / seconds
        );
    }
    failed > 0
}

fn replay(json: bool, plan: &Plan, last: Option<usize>, log: bool) -> bool {
    if log {
        tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
            .with_writer(std::io::stderr)
            .init();
    }
    let o = run(plan, true);
    show(&o.lines, last);
    tell(json, &o);
    o.failure.is_some()
}

fn show(lines: &[String], last: Option<usize>) {
    let skip = last.map_or(0, |n| lines.len().saturating_sub(n));
    lines.iter().skip(skip).for_each(|l| println!("{l}"));
}

fn shrink(json: bool, plan: Plan, trace: bool) -> bool {
    let seed = plan.seed;
    let Some((small, o)) = sim::run::shrink(plan, |p| eprintln!("{} steps", p.steps.len())) else {
        eprintln!("seed {seed} does not fail");
        return false;
    };
    if trace {
        show(&o.lines, None);
    }
    if !json {
        println!("shards {} keys {} segments {}", small.shards, small.keys, small.segment_bytes);
        small.steps.iter().for_each(|s| println!("  {s:?}"));
    }
    tell(json, &o);
    true
}

fn break_rules(json: bool, seeds: u64, only: &str) -> bool {
    let mut unnoticed = 0;
    // Those that are not noticed yet, only when they are named.
    let more = Broken::UNNOTICED.into_iter().filter(|_| !only.is_empty());
    for rule in Broken::ALL.into_iter().chain(more).filter(|r| format!("{r:?}").contains(only)) {
        let began = Instant::now();
        let noticed = notice(rule, 1..1 + seeds);
        let seconds = began.elapsed().as_secs_f64();
        unnoticed += u64::from(noticed.is_none());
        let (seed, why) = noticed.unzip();
        if json {
            let one = serde_json::json!({
                "rule": format!("{rule:?}"), "seed": seed, "what": why, "seconds": seconds,
            });
            println!("{one}");
            continue;
        }
        match (seed, why) {
            (Some(seed), Some(why)) => {
                let why: String =
                    why.lines().next().unwrap_or_default().chars().take(160).collect();
                println!("{rule:?}: noticed by seed {seed} after {seconds:.1} s: {why}");
            }
            _ => println!("{rule:?}: NOT noticed by {seeds} seeds in {seconds:.1} s"),
        }
    }
    unnoticed > 0
}
