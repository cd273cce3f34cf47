//! One world from beginning to end.

use crate::broken::Broken;
use crate::files::Files;
use crate::keys::Keys;
use crate::life::Life;
use crate::plan::{Layer, Plan};
use crate::trace::Trace;
use crate::work::{Check, Work};
use crate::world::World;
use serde::Serialize;
use std::cell::RefCell;
use std::sync::{Arc, Once};
use std::time::Duration;

/// Longest life of a world, virtual time.
const WORLD_WITHIN: Duration = Duration::from_secs(4 * 3600);

/// What came of a world.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// From which it was drawn.
    pub seed: u64,
    /// Digest of all events: the same for the same plan.
    pub digest: String,
    /// Events.
    pub events: u64,
    /// Messages between mounts and nodes.
    pub messages: u64,
    /// Operations submitted.
    pub operations: u64,
    /// Refusals, beyond the fault model.
    pub refusals: u64,
    /// Virtual time, milliseconds.
    pub virtual_ms: u64,
    /// What was wrong; `None` = nothing.
    pub failure: Option<String>,
    /// Step of the plan at which it was seen.
    pub at_step: Option<usize>,
    /// What happened, if that was asked for.
    #[serde(skip)]
    pub lines: Vec<String>,
}

thread_local! {
    static PANICS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// Panics of tasks vanish with the task: this keeps what they said.
fn keep_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        std::panic::set_hook(Box::new(|info| {
            PANICS.with_borrow_mut(|p| p.push(info.to_string()));
        }));
    });
}

#[derive(Default)]
struct Progress {
    operations: u64,
    refusals: u64,
    at_step: Option<usize>,
}

async fn live<W: Work>(plan: &Plan, world: &Arc<World>, progress: &mut Progress) -> Check {
    let mut life = Life::<W>::begin(plan, Arc::clone(world)).await?;
    for (n, step) in plan.steps.iter().enumerate() {
        progress.at_step = Some(n);
        let done = if plan.beyond { life.step_beyond(*step).await } else { life.step(*step).await };
        progress.operations = life.operations;
        progress.refusals = life.refusals;
        done.map_err(|e| e.of(&format!("step {n}, {step:?}")))?;
        if let Some(panic) = PANICS.with_borrow(|p| p.first().cloned()) {
            return Err(format!("step {n}, {step:?}: a task panicked: {panic}").into());
        }
    }
    progress.at_step = None;
    let done = if plan.beyond { life.end_beyond().await } else { life.end().await };
    progress.refusals = life.refusals;
    done.map_err(|e| e.of(&"the end"))
}

/// Runs a plan. `lines` = keep what happens as text.
#[must_use]
pub fn run(plan: &Plan, lines: bool) -> Outcome {
    keep_panics();
    PANICS.with_borrow_mut(Vec::clear);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime without I/O");
    let mut outcome = Outcome {
        seed: plan.seed,
        digest: String::new(),
        events: 0,
        messages: 0,
        operations: 0,
        refusals: 0,
        virtual_ms: 0,
        failure: None,
        at_step: None,
        lines: Vec::new(),
    };
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        runtime.block_on(async {
            let trace = Arc::new(Trace::new(lines));
            let world = World::new(plan, Arc::clone(&trace));
            let mut progress = Progress::default();
            let lived = async {
                match plan.layer {
                    Layer::Keys => live::<Keys>(plan, &world, &mut progress).await,
                    Layer::Files => live::<Files>(plan, &world, &mut progress).await,
                }
            };
            let failure = match tokio::time::timeout(WORLD_WITHIN, lived).await {
                Ok(result) => result.err().map(|e| e.to_string()),
                Err(_) => Some("stuck: the world does not end".to_owned()),
            };
            outcome.failure = failure;
            outcome.at_step = progress.at_step;
            outcome.digest = trace.digest();
            outcome.events = trace.events();
            outcome.messages = world.net.messages();
            outcome.operations = progress.operations;
            outcome.refusals = progress.refusals;
            outcome.virtual_ms = trace.now_ms();
            outcome.lines = trace.lines();
        });
    }));
    let panics = PANICS.with_borrow_mut(std::mem::take);
    if caught.is_err() || !panics.is_empty() {
        outcome.failure.get_or_insert_with(|| format!("panic: {}", panics.join("; ")));
    }
    outcome
}

/// Leaves steps out of a plan that fails, as long as it fails, largest pieces first. `None` = it does
/// not fail. The outcome has its lines.
pub fn shrink(plan: Plan, mut told: impl FnMut(&Plan)) -> Option<(Plan, Outcome)> {
    let mut best = plan;
    let first = run(&best, false);
    first.failure.as_ref()?;
    if let Some(n) = first.at_step {
        best.steps.truncate(n + 1);
    }
    let mut piece = best.steps.len().div_ceil(2).max(1);
    loop {
        let mut at = 0;
        let mut shorter = false;
        while at < best.steps.len() {
            let mut trial = best.clone();
            trial.steps.drain(at..(at + piece).min(trial.steps.len()));
            let o = run(&trial, false);
            if o.failure.is_some() {
                best = trial;
                shorter = true;
                told(&best);
            } else {
                at += piece;
            }
        }
        match (piece, shorter) {
            (1, false) => break,
            (1, true) => {}
            _ => piece = piece.div_ceil(2),
        }
    }
    let outcome = run(&best, true);
    Some((best, outcome))
}

/// The world of a seed in which a broken rule should be noticed: one that is aimed at its trap, where
/// there is such.
#[must_use]
pub fn trap(rule: Broken, seed: u64) -> Plan {
    Plan::aimed(rule, seed).unwrap_or_else(|| Plan::draw(seed))
}

/// Runs seeds with a broken rule until one notices: the seed, and what it saw. `None` = none of them.
#[must_use]
pub fn notice(rule: Broken, seeds: std::ops::Range<u64>) -> Option<(u64, String)> {
    seeds
        .into_iter()
        .find_map(|seed| run(&trap(rule, seed).broken(rule), false).failure.map(|why| (seed, why)))
}
