//! Rule 5 d to h: from the tails to the chain of each shard, the cut, and what every voter must do.

use super::{Fenced, Refusal, ShardTails, names};
use std::collections::{BTreeMap, BTreeSet};
use storenode::part::PartHead;
use storenode::wire::{BankId, OpeningMark, PerBank, Version};

/// What one fenced voter must do so that its log ends with the chain.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Step {
    /// Send `attach` with this chain: all else above its `applied` becomes void.
    pub attach: Vec<Version>,
    /// Set: it lacks parts that its peers have compacted. After `attach`, bring it up by rule 7
    /// from here before anything is appended.
    pub catch_up: Option<Version>,
    /// Then append these parts, in order, from the tail of [`ShardPlan::source`].
    pub append: Vec<Version>,
}

/// What becomes of one shard.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ShardPlan {
    /// The voter whose log is the chain; its tail has the bytes.
    pub source: BankId,
    /// The pending parts that stay, ascending: groups through the cut and opening entries of
    /// openers that did not finish.
    pub chain: Vec<Version>,
    /// Last part of the chain: the predecessor of the opening entry.
    pub end: Version,
    /// What of the chain the source has compacted: see [`ChainView::settled`].
    pub settled: Version,
    /// Opening entries that the source knows of: see [`ChainView::openings`].
    pub openings: Vec<OpeningMark>,
    /// Two voters to settle before the opening entry is written anywhere, nearest first. The
    /// others follow as in rule 5 h.
    pub settle: [BankId; 2],
    /// What each fenced voter must do.
    pub steps: PerBank<Option<Step>>,
    /// Head of the opening entry.
    pub entry: PartHead,
}

impl ShardPlan {
    /// Where a voter stands that was brought everything through [`ShardPlan::settled`]: before the
    /// first pending part that stays. `tail` is the source's, which may also hold parts that are void,
    /// and parts behind a gap: they say nothing of the chain.
    #[must_use]
    pub fn joint(&self, tail: &[PartHead]) -> Version {
        let first = self.chain.first();
        tail.iter().find(|h| Some(&h.version) == first).map_or(self.end, |h| h.predecessor)
    }
}

/// What becomes of the volume.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plan {
    /// The last group that stays.
    pub cut: Version,
    /// Position of the opening entry: (our epoch, seq of the cut). The watermark, once it is
    /// durable on two voters of every shard.
    pub entry: Version,
    /// Highest watermark that was known before.
    pub watermark: Version,
    /// Groups above the watermark that stay.
    pub kept: usize,
    /// Groups that were seen and become void.
    pub dropped: Vec<Version>,
    /// Ends of the epochs that readers must know, ascending, ours included.
    pub ends: Vec<OpeningMark>,
    /// One per shard.
    pub shards: Vec<ShardPlan>,
}

/// A voter's log, without what is void.
struct Log<'a> {
    bank: BankId,
    voter: &'a Fenced,
    /// All parts at or below this are in it.
    applied: Version,
    /// Version of the last part at or below `applied` (or of the last part at all).
    base_end: Version,
    /// Contiguous pending parts that are not void.
    parts: Vec<&'a PartHead>,
}

impl<'a> Log<'a> {
    /// Takes the contiguous run of the tail and truncates it at the first void part.
    fn new(bank: BankId, voter: &'a Fenced, last_opening: Option<OpeningMark>) -> Self {
        // Behind damage nothing may be taken for complete, whatever was applied before it.
        let applied = match voter.damaged_through {
            Some(_) => voter.applied.min(voter.position),
            None => voter.applied,
        };
        let mut tail: Vec<&PartHead> = voter
            .tail
            .iter()
            .filter(|p| p.version > applied && p.version <= voter.position)
            .collect();
        tail.sort_by_key(|p| p.version);
        let linked = 1 + tail.windows(2).take_while(|w| w[1].predecessor == w[0].version).count();
        tail.truncate(linked.min(tail.len()));
        let base_end = match tail.first() {
            Some(first) if first.predecessor <= applied => first.predecessor,
            Some(_) => {
                tail.clear();
                voter.position.min(applied)
            }
            None => voter.position,
        };
        let keep = tail.len() - void_from(&tail, last_opening);
        tail.truncate(keep);
        // A node applies as soon as it hears of a watermark, and says so only when that is durable:
        // what is below its tail is settled, whatever it calls applied.
        let applied = applied.max(base_end.min(voter.watermark));
        Self { bank, voter, applied, base_end, parts: tail }
    }

    fn end(&self) -> Version {
        self.parts.last().map_or(self.base_end, |p| p.version)
    }

    /// May have held a part of this version that cannot be read any more.
    fn may_have_lost(&self, version: Version) -> bool {
        self.voter.position < version && self.voter.damaged_through.is_some_and(|d| version <= d)
    }
}

/// How many parts at the end of a contiguous log are void by the highest opening seen: those of
/// earlier epochs above its cut. Two exceptions: what the opening itself stands on (its opener saw
/// and kept it), and unfinished opening entries with the very same cut (its opener may have seen
/// them in a shard where it did not write its own yet).
fn void_from(parts: &[&PartHead], last: Option<OpeningMark>) -> usize {
    let Some(last) = last else { return 0 };
    if parts.iter().any(|p| p.version.epoch >= last.epoch) {
        return 0;
    }
    let stays = |p: &&&PartHead| p.version <= last.cut || p.cut == Some(last.cut);
    parts.len() - parts.iter().take_while(stays).count()
}

/// The chain of a shard and those who were read.
struct Chain<'a> {
    shard: u16,
    logs: Vec<Log<'a>>,
    /// Index in `logs` of the log that is the chain.
    best: usize,
    /// Voters that did not answer.
    unread: Vec<BankId>,
}

impl<'a> Chain<'a> {
    fn best(&self) -> &Log<'a> {
        &self.logs[self.best]
    }
    /// No part of this shard at or below this is unknown.
    fn complete_through(&self) -> Version {
        self.logs.iter().map(|l| l.applied).fold(self.best().end(), Version::max)
    }
    fn has(&self, version: Version) -> bool {
        // By contiguity the chain holds all of its parts below its tail.
        self.logs.iter().any(|l| l.applied >= version)
            || self.best().base_end >= version
            || self.best().parts.iter().any(|p| p.version == version)
    }
    /// Could two voters hold a part of this version, which is not in the chain?
    fn may_be_acked(&self, version: Version) -> bool {
        let lost = self.logs.iter().filter(|l| l.may_have_lost(version)).count();
        lost > 0 && lost + self.unread.len() >= 2
    }
    fn refuse_damaged(&self) -> Refusal {
        let damaged = self.logs.iter().filter(|l| l.voter.damaged_through.is_some());
        Refusal::Damaged {
            shard: self.shard,
            behind: self.best().end(),
            damaged: names(damaged.map(|l| l.bank)),
            needed: names(self.unread.iter().copied()),
        }
    }
    fn refuse_missing(&self, version: Version) -> Refusal {
        let damaged = self.logs.iter().any(|l| l.may_have_lost(version));
        let hint = match (&self.unread[..], damaged) {
            ([], _) => "more is damaged than can be repaired".to_string(),
            (unread, _) => format!("{} must answer", names(unread.iter().copied())),
        };
        Refusal::Missing { shard: self.shard, version, hint }
    }
}

/// A group as the chains show it.
#[derive(Default)]
struct Group {
    opening: bool,
    names: BTreeSet<u16>,
}

/// Rule 5 d, e, f: decides what stays. `shards[i]` needs at least two fenced voters.
///
/// # Errors
/// [`Refusal::Damaged`], [`Refusal::Missing`] or [`Refusal::StruckOut`] rather than dropping what may
/// have been acknowledged, or bringing back what was deleted.
pub fn decide(epoch: u64, shards: &[ShardTails]) -> Result<Plan, Refusal> {
    let fenced = || shards.iter().flat_map(|s| s.fenced.iter().filter_map(|(_, f)| f.as_ref()));
    let last_opening = fenced().flat_map(marks_of).max_by_key(|m| m.epoch);
    let watermark = fenced().map(known_watermark).max().unwrap_or_default();
    let chains = shards
        .iter()
        .enumerate()
        .map(|(i, s)| chain_of(i as u16, s, last_opening))
        .collect::<Result<Vec<_>, _>>()?;

    let groups = groups_of(&chains)?;
    check_settled(&chains, &groups, watermark, last_opening)?;
    let (cut, kept) = walk(&chains, &groups, watermark, last_opening)?;

    let entry = Version::new(epoch, cut.seq);
    if epoch <= watermark.epoch || last_opening.is_some_and(|m| m.epoch >= epoch) {
        return Err(Refusal::Inconsistent(format!("epoch {epoch} is not above all that was seen")));
    }
    let ours = OpeningMark { epoch, cut };
    let mut ends: Vec<OpeningMark> = chain_marks(&chains);
    ends.push(ours);
    let all: Vec<u16> = (0..shards.len() as u16).collect();
    let plans = chains
        .iter()
        .map(|c| settle(c, cut, entry, watermark, &all))
        .collect::<Result<Vec<_>, _>>()?;
    let seen: BTreeSet<Version> = fenced()
        .flat_map(|f| f.tail.iter().filter(|p| p.cut.is_none()).map(|p| p.version))
        .filter(|v| *v > cut || !groups.contains_key(v) && *v > watermark)
        .collect();
    Ok(Plan {
        cut,
        entry,
        watermark,
        kept,
        dropped: seen.into_iter().collect(),
        ends,
        shards: plans,
    })
}

/// Opening entries a voter knows of, in its tail or from before.
fn marks_of(f: &Fenced) -> impl Iterator<Item = OpeningMark> {
    let pending = f.tail.iter().filter(|p| p.version <= f.position);
    let pending = pending.filter_map(|p| Some(OpeningMark { epoch: p.version.epoch, cut: p.cut? }));
    f.openings.iter().copied().chain(pending)
}

/// Every watermark ever sent was true: all of them may be believed, also those in void parts.
fn known_watermark(f: &Fenced) -> Version {
    f.tail.iter().map(|p| p.watermark).fold(f.applied.max(f.watermark), Version::max)
}

fn chain_of(
    shard: u16,
    tails: &ShardTails,
    last_opening: Option<OpeningMark>,
) -> Result<Chain<'_>, Refusal> {
    let logs: Vec<Log<'_>> = tails
        .fenced
        .iter()
        .filter_map(|(b, f)| Some(Log::new(b, f.as_ref()?, last_opening)))
        .collect();
    if logs.len() < 2 {
        let missing = names(BankId::ALL.into_iter().filter(|b| tails.fenced[*b].is_none()));
        return Err(Refusal::NotEnough { shard, missing });
    }
    // Of equal ends the one that still has most of its parts, so that it can give them to others.
    let best = (0..logs.len()).max_by_key(|i| (logs[*i].end(), logs[*i].parts.len())).unwrap_or(0);
    let unread =
        BankId::ALL.into_iter().filter(|b| tails.named[*b] && tails.fenced[*b].is_none()).collect();
    Ok(Chain { shard, logs, best, unread })
}

fn groups_of(chains: &[Chain<'_>]) -> Result<BTreeMap<Version, Group>, Refusal> {
    let mut groups: BTreeMap<Version, Group> = BTreeMap::new();
    for chain in chains {
        for part in &chain.best().parts {
            if part.shards.iter().any(|s| usize::from(*s) >= chains.len()) {
                let what = format!("{} names a shard that the volume does not have", part.version);
                return Err(Refusal::Inconsistent(what));
            }
            let group = groups.entry(part.version).or_default();
            group.opening |= part.cut.is_some();
            group.names.extend(&part.shards);
            group.names.insert(chain.shard);
        }
    }
    Ok(groups)
}

/// Nothing at or below a known watermark, or the cut of the highest opening, may be missing.
fn check_settled(
    chains: &[Chain<'_>],
    groups: &BTreeMap<Version, Group>,
    watermark: Version,
    last_opening: Option<OpeningMark>,
) -> Result<(), Refusal> {
    let settled = last_opening.map_or(watermark, |m| watermark.max(m.cut));
    for (version, group) in groups.iter().filter(|(v, g)| **v <= settled && !g.opening) {
        let lacking = group.names.iter().map(|s| &chains[usize::from(*s)]);
        if let Some(chain) = lacking.into_iter().find(|c| !c.has(*version)) {
            return Err(chain.refuse_missing(*version));
        }
    }
    // Groups nobody has a part of any more, because the only one that was read is damaged.
    for chain in chains {
        let from = chain.complete_through();
        let may_hide = |l: &Log<'_>| {
            let lost_after = from.max(l.voter.position);
            lost_after < settled && l.voter.damaged_through.is_some_and(|d| d > lost_after)
        };
        let lost = chain.logs.iter().filter(|l| may_hide(l)).count();
        if lost > 0 && lost + chain.unread.len() >= 2 {
            return Err(chain.refuse_damaged());
        }
    }
    Ok(())
}

/// From the watermark on, group by group: stays while it is whole in every shard it names.
/// Returns the last one that stays and how many there are.
fn walk(
    chains: &[Chain<'_>],
    groups: &BTreeMap<Version, Group>,
    watermark: Version,
    last_opening: Option<OpeningMark>,
) -> Result<(Version, usize), Refusal> {
    // All through the cut of the highest opening is settled: it was checked above.
    let mut cut = last_opening.map_or(watermark, |m| watermark.max(m.cut));
    let mut kept = groups.range(..=cut).filter(|(v, g)| **v > watermark && !g.opening).count();
    let mut open_end = last_opening.map(|m| m.epoch).unwrap_or_default().max(cut.epoch);
    for (version, group) in
        groups.range((std::ops::Bound::Excluded(cut), std::ops::Bound::Unbounded))
    {
        let lacking: Vec<&Chain<'_>> = group
            .names
            .iter()
            .map(|s| &chains[usize::from(*s)])
            .filter(|c| !c.has(*version))
            .collect();
        if group.opening {
            // Whole: that epoch began, its groups follow. Else a no-op that stays where it is.
            if lacking.is_empty() && group.names.len() == chains.len() {
                cut = *version;
                open_end = cut.epoch;
            }
            continue;
        }
        if version.seq != cut.seq + 1 {
            break;
        }
        if lacking.is_empty() {
            cut = *version;
            kept += 1;
            continue;
        }
        // Acked would mean: two voters in every shard. One shard where that cannot be is enough.
        return if lacking.iter().all(|c| c.may_be_acked(*version)) {
            Err(lacking[0].refuse_damaged())
        } else {
            Ok((cut, kept))
        };
    }
    // The next group is unknown: was there one, all of it under damage?
    let next = Version::new(open_end, cut.seq + 1);
    let hidden = chains.iter().find(|c| c.complete_through() < next && c.may_be_acked(next));
    hidden.map_or(Ok((cut, kept)), |c| Err(c.refuse_damaged()))
}

/// Ends of epochs, from what is in the chains and from settled history.
fn chain_marks(chains: &[Chain<'_>]) -> Vec<OpeningMark> {
    let mut ends: BTreeMap<u64, Version> = BTreeMap::new();
    for chain in chains {
        let best = chain.best();
        let pending = best.parts.iter().filter_map(|p| Some((p.version.epoch, p.cut?)));
        let old = best.voter.openings.iter().filter(|m| m.epoch <= best.applied.epoch);
        ends.extend(old.map(|m| (m.epoch, m.cut)).chain(pending));
    }
    ends.into_iter().map(|(epoch, cut)| OpeningMark { epoch, cut }).collect()
}

/// Rule 5 f and g for one shard.
///
/// A voter below the floor was struck out (docs/adr/0019): what it lacks may be a deletion whose
/// tombstone is gone. The part that raised the floor past it may still be pending in the chain, where
/// [`choose`](super::choose) could not see it; two voters acked it, and this one was none of them.
fn settle(
    chain: &Chain<'_>,
    cut: Version,
    entry: Version,
    watermark: Version,
    all: &[u16],
) -> Result<ShardPlan, Refusal> {
    let best = chain.best();
    let stays = |p: &&&PartHead| p.version <= cut || p.cut.is_some();
    let kept: Vec<&PartHead> = best.parts.iter().take_while(stays).copied().collect();
    let versions: Vec<Version> = kept.iter().map(|p| p.version).collect();
    let end = versions.last().copied().unwrap_or(best.base_end);

    let parts: Vec<(Version, Version)> = kept.iter().map(|p| (p.version, p.predecessor)).collect();
    let openings = &best.voter.openings;
    let view = ChainView { settled: best.applied, openings, parts: &parts, end };
    let mut steps = PerBank::from_fn(|_| None);
    for log in &chain.logs {
        steps[log.bank] = Some(view.step_of(log));
    }
    let max = |f: &dyn Fn(&Fenced) -> Version| {
        chain.logs.iter().map(|l| f(l.voter)).max().unwrap_or_default()
    };
    let floor = kept.iter().map(|p| p.floor).fold(max(&|f| f.floor), Version::max);
    // Parts that are all here bring their deletions with them.
    let struck = |l: &Log<'_>| {
        let copied_from = steps[l.bank].as_ref().and_then(|s: &Step| s.catch_up);
        l.voter.applied.max(l.voter.position) < floor
            || copied_from.is_some_and(|from| from < floor)
    };
    let mut order: Vec<&Log<'_>> = chain.logs.iter().collect();
    order.sort_by_key(|l| {
        let step = steps[l.bank].as_ref();
        let behind = step.is_some_and(|s: &Step| s.catch_up.is_some());
        let missing = step.map_or(0, |s| s.append.len());
        (struck(l), behind, l.bank != best.bank, l.voter.damaged_through.is_some(), missing)
    });
    if let Some(old) = order[..2].iter().find(|l| struck(l)) {
        return Err(Refusal::StruckOut {
            shard: chain.shard,
            bank: old.bank,
            applied: old.voter.applied,
            floor,
            needed: names(chain.unread.iter().copied()),
        });
    }
    let marks = PerBank::from_fn(|b| {
        let own = chain.logs.iter().find(|l| l.bank == b).map_or(Version::ZERO, |l| l.voter.high);
        kept.iter().map(|p| p.marks[b]).fold(max(&|f| f.marks[b]).max(own), Version::max)
    });
    let entry = PartHead {
        version: entry,
        predecessor: end,
        watermark,
        floor,
        marks,
        cut: Some(cut),
        shards: all.to_vec(),
    };
    let settle = [order[0].bank, order[1].bank];
    Ok(ShardPlan {
        source: best.bank,
        chain: versions,
        end,
        settled: best.applied,
        openings: best.voter.openings.clone(),
        settle,
        steps,
        entry,
    })
}

/// The chain of one shard, for attaching a voter to it.
#[derive(Clone, Copy, Debug)]
pub struct ChainView<'a> {
    /// All of the chain through here is settled, and may be compacted everywhere.
    pub settled: Version,
    /// Opening entries of the chain: where each epoch ended.
    pub openings: &'a [OpeningMark],
    /// The chain above `settled`: version and predecessor of each part, ascending.
    pub parts: &'a [(Version, Version)],
    /// Last part of the chain.
    pub end: Version,
}

impl ChainView<'_> {
    /// Is this part of some voter's log a part of the chain? For a settled one, whose place in the
    /// chain is compacted, the ends of the epochs tell: of each epoch all groups through its end
    /// stayed and no others.
    fn has(&self, part: &PartHead) -> bool {
        let version = part.version;
        if version > self.settled {
            return self.parts.iter().any(|(v, _)| *v == version);
        }
        if let Some(cut) = part.cut {
            return self.openings.contains(&OpeningMark { epoch: version.epoch, cut });
        }
        let mut later = self.openings.iter().filter(|m| m.epoch > version.epoch).peekable();
        let ended = version.epoch < self.settled.epoch;
        // Without the end of its epoch nothing shows that it stayed.
        !(ended && later.peek().is_none()) && later.all(|m| version <= m.cut)
    }

    /// What a fenced voter must do to stand at the end of the chain. Also for a voter that turns up
    /// after the opening (rule 5 h).
    ///
    /// What it holds of the settled chain stays: it may be one of only two that hold it.
    #[must_use]
    pub fn step(&self, voter: &Fenced) -> Step {
        // Void parts among them are told apart below.
        self.step_of(&Log::new(BankId::A, voter, None))
    }

    fn step_of(&self, log: &Log<'_>) -> Step {
        let own: Vec<Version> =
            log.parts.iter().take_while(|p| self.has(p)).map(|p| p.version).collect();
        let stands = own.last().copied().unwrap_or(log.base_end);
        let above = |from: Version| self.parts.iter().filter(move |(v, _)| *v > from);
        let reached = stands.max(log.applied);
        let joins = match above(reached).next() {
            // It has everything before the first part that it lacks: that one follows on its log,
            // or all before it was applied (its last part may be older than that).
            Some((_, predecessor)) => *predecessor == stands || *predecessor <= log.applied,
            None => reached >= self.end,
        };
        let append: Vec<Version> = above(reached).map(|(v, _)| *v).collect();
        let attach = own.into_iter().chain(append.iter().copied()).collect();
        Step { attach, catch_up: (!joins).then_some(log.applied), append }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Found by the simulation: the source was at 4 and held 6 detached; who was joined at 6's
    /// predecessor 5 claimed a part that nobody had, and the next opener took group 5 for settled.
    #[test]
    fn a_part_behind_a_gap_does_not_say_where_the_chain_ends() {
        let v = |seq| Version::new(2, seq);
        let head = |seq, predecessor| PartHead {
            version: v(seq),
            predecessor: v(predecessor),
            ..PartHead::default()
        };
        let plan = |chain: Vec<Version>, end| ShardPlan {
            source: BankId::A,
            chain,
            end,
            settled: v(4),
            openings: Vec::new(),
            settle: [BankId::A, BankId::B],
            steps: PerBank::from_fn(|_| None),
            entry: PartHead::default(),
        };
        assert_eq!(plan(vec![], v(4)).joint(&[head(6, 5)]), v(4));
        assert_eq!(plan(vec![v(7)], v(7)).joint(&[head(7, 3), head(9, 8)]), v(3));
    }
}
