//! Is the whole tree consistent? Looks at every record through the voter, changes nothing.
//!
//! A pass ([`crate::consistency`]) reads all inodes, names, marks and attributes (and with `data`
//! all blocks) and compares what refers to what. The mount goes on meanwhile, so a pass may see the
//! two halves of a change: what looks wrong is looked at again, and only what passes in a row find
//! is reported.

use crate::consistency::examine;
use crate::control::{ControlError, ProgressSink};
use serde::Serialize;
use std::collections::BTreeSet;
use voter::volume::Volume;

/// Passes until what is found must be true.
const PASSES: usize = 3;
/// Findings listed; the others are counted.
const LISTED_MAX: usize = 100;

/// What a check found.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// Inodes.
    pub inodes: u64,
    /// Directory entries.
    pub names: u64,
    /// Block records; 0 without `data`.
    pub blocks: u64,
    /// Unlinked inodes that wait for reclaim.
    pub orphans: u64,
    /// Blocks that wait for reclaim; 0 without `data`.
    pub dead_blocks: u64,
    /// How many findings.
    pub wrong: u64,
    /// The first of them, in words.
    pub findings: Vec<String>,
}

/// Checks everything; with `data` also that each file has the blocks it counts.
///
/// # Errors
/// A shard cannot be read.
pub async fn run(
    volume: &dyn Volume,
    data: bool,
    progress: &ProgressSink,
) -> Result<Report, ControlError> {
    let mut confirmed: Option<BTreeSet<String>> = None;
    for n in 1.. {
        let what = if n == 1 { "checking".to_owned() } else { format!("checking again ({n})") };
        let tell = |done, total| progress.tell(&what, done, total, "shards");
        let pass = examine(volume, data, tell).await.map_err(|e| {
            let hint = "`tercet status` shows the banks";
            ControlError::new(1, format!("the check could not read everything: {e}"), hint)
        })?;
        let both = match confirmed {
            // An inode number stands in each finding, so equal words mean the same thing.
            Some(before) => before.intersection(&pass.problems).cloned().collect(),
            None => pass.problems.clone(),
        };
        if both.is_empty() || n >= PASSES {
            return Ok(Report {
                inodes: pass.inodes,
                names: pass.names,
                blocks: pass.blocks,
                orphans: pass.orphans,
                dead_blocks: pass.dead_blocks,
                wrong: both.len() as u64,
                findings: both.into_iter().take(LISTED_MAX).collect(),
            });
        }
        confirmed = Some(both);
    }
    unreachable!("the loop ends at PASSES")
}
