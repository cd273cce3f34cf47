//! An opener that becomes a writer. It does one thing per step, may never be stepped again, and never
//! learns that it is dead.

use crate::model::{Broken, No, Node};
use rand::rngs::StdRng;
use rand::{RngExt as _, seq::IndexedRandom as _};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use storenode::part::PartHead;
use storenode::wire::{BankId, OpeningMark, PerBank, Version};
use voter::commit::Commit;
use voter::opening::{ChainView, Fenced, Plan, Refusal, ShardTails, decide};

pub(crate) type World = Vec<PerBank<Node>>;
pub(crate) type Place = (usize, BankId);

/// What the outside saw of a step.
#[derive(Debug)]
pub(crate) enum Seen {
    Nothing,
    /// Refused by a higher promise in a phase that needs it: this opener is done.
    GaveUp,
    Refused(Refusal),
    /// Open for service: what it found.
    Opened(BTreeSet<Version>),
    /// These groups were acknowledged.
    Acked(Vec<Version>),
}

enum Do {
    Attach(Vec<Version>),
    CatchUp(BankId),
    Append(PartHead),
    Entry(PartHead),
}

enum Phase {
    Fencing(Vec<Place>),
    Reading(Vec<Place>),
    Settling(BTreeMap<Place, VecDeque<Do>>),
    Writing,
    Dead,
}

pub(crate) struct Actor {
    pub(crate) who: (u64, u64),
    broken: Broken,
    phase: Phase,
    /// Who answered: two or three of each shard.
    reach: Vec<Place>,
    tails: Vec<ShardTails>,
    plan: Option<Plan>,
    commit: Commit,
    /// Per shard: the chain above the source's settled part, the entry, and its own parts.
    known: Vec<Vec<PartHead>>,
    attached: BTreeSet<Place>,
    sent: BTreeMap<Place, usize>,
    next_seq: u64,
    pub(crate) groups: BTreeMap<Version, BTreeSet<usize>>,
    groups_max: usize,
}

fn node(world: &mut World, (shard, bank): Place) -> &mut Node {
    &mut world[shard][bank]
}

impl Actor {
    pub(crate) fn new(
        who: (u64, u64),
        reach: Vec<Place>,
        groups_max: usize,
        shards: usize,
        broken: Broken,
    ) -> Self {
        let phase = if broken.read_before_fence {
            Phase::Reading(reach.clone())
        } else {
            Phase::Fencing(reach.clone())
        };
        let tails = vec![ShardTails { named: PerBank([true; 3]), ..ShardTails::default() }; shards];
        Self {
            who,
            broken,
            phase,
            reach,
            tails,
            plan: None,
            commit: Commit::new(shards as u16, Version::ZERO),
            known: vec![Vec::new(); shards],
            attached: BTreeSet::new(),
            sent: BTreeMap::new(),
            next_seq: 0,
            groups: BTreeMap::new(),
            groups_max,
        }
    }

    pub(crate) fn is_dead(&self) -> bool {
        matches!(self.phase, Phase::Dead)
    }
    pub(crate) fn is_settling(&self) -> bool {
        matches!(self.phase, Phase::Settling(_))
    }
    pub(crate) fn is_writing(&self) -> bool {
        matches!(self.phase, Phase::Writing)
    }

    /// The voters this opener settled.
    pub(crate) fn settled(&self) -> Vec<Place> {
        let shards = self.plan.iter().flat_map(|p| p.shards.iter().enumerate());
        shards.flat_map(|(i, s)| s.settle.map(|b| (i, b))).collect()
    }

    pub(crate) fn describe(&self) -> String {
        let Some(plan) = &self.plan else { return String::new() };
        let mut text =
            format!("  cut {} watermark {} dropped {:?}", plan.cut, plan.watermark, plan.dropped);
        for (i, p) in plan.shards.iter().enumerate() {
            text +=
                &format!("\n  {i}: source {} settle {:?} chain {:?}", p.source, p.settle, p.chain);
            for (b, s) in p.steps.iter() {
                text += &format!("\n     {b} {s:?}");
            }
        }
        text
    }

    fn give_up(&mut self) -> Seen {
        self.phase = Phase::Dead;
        Seen::GaveUp
    }

    pub(crate) fn step(&mut self, world: &mut World, rng: &mut StdRng) -> Seen {
        match &mut self.phase {
            Phase::Dead => Seen::Nothing,
            Phase::Fencing(left) => {
                let at = left.swap_remove(rng.random_range(0..left.len()));
                let last = left.is_empty();
                if node(world, at).fence(self.who, self.broken).is_err() {
                    return self.give_up();
                }
                if last && self.broken.read_before_fence {
                    return self.decide();
                }
                if last {
                    self.phase = Phase::Reading(self.reach.clone());
                }
                Seen::Nothing
            }
            Phase::Reading(left) => {
                let at = left.swap_remove(rng.random_range(0..left.len()));
                let last = left.is_empty();
                let Ok(tail) = node(world, at).tail(self.who, self.broken) else {
                    return self.give_up();
                };
                self.tails[at.0].fenced[at.1] = Some(tail);
                if last && self.broken.read_before_fence {
                    self.phase = Phase::Fencing(self.reach.clone());
                } else if last {
                    return self.decide();
                }
                Seen::Nothing
            }
            Phase::Settling(_) => self.settle(world, rng),
            Phase::Writing => self.write(world, rng),
        }
    }

    fn decide(&mut self) -> Seen {
        let plan = match decide(self.who.0, &self.tails) {
            Ok(plan) => plan,
            Err(refusal) => {
                self.phase = Phase::Dead;
                return Seen::Refused(refusal);
            }
        };
        let mut work = BTreeMap::new();
        self.commit = Commit::new(self.tails.len() as u16, plan.cut);
        for (shard, p) in plan.shards.iter().enumerate() {
            let source: &Fenced = self.tails[shard].fenced[p.source].as_ref().unwrap();
            let in_chain = |v: &Version| p.chain.contains(v);
            self.known[shard] =
                source.tail.iter().filter(|h| in_chain(&h.version)).cloned().collect();
            let part = |v: &Version| {
                self.known[shard].iter().find(|h| h.version == *v).cloned().expect("of the chain")
            };
            for bank in p.settle {
                let step = p.steps[bank].as_ref().expect("fenced");
                let mut attach = step.attach.clone();
                if self.broken.attach_drops_settled {
                    attach.retain(|v| p.chain.contains(v));
                }
                let mut todo = VecDeque::from([Do::Attach(attach)]);
                todo.extend(step.catch_up.map(|_| Do::CatchUp(p.source)));
                todo.extend(step.append.iter().map(|v| Do::Append(part(v))));
                todo.push_back(Do::Entry(p.entry.clone()));
                work.insert((shard, bank), todo);
            }
            self.known[shard].push(p.entry.clone());
        }
        let all: Vec<u16> = (0..self.tails.len() as u16).collect();
        self.commit.add(plan.entry, &all);
        self.next_seq = plan.cut.seq + 1;
        self.plan = Some(plan);
        self.phase = Phase::Settling(work);
        Seen::Nothing
    }

    fn ack(&mut self, (shard, bank): Place, position: Version) -> Vec<Version> {
        let before = self.commit.watermark();
        let mut banks = vec![bank];
        if self.broken.one_ack {
            banks.push(BankId::ALL[(bank.index() + 1) % 3]);
        }
        for b in banks {
            if self.commit.acked(shard as u16)[b].is_none() {
                self.commit.attach(shard as u16, b, position);
            } else {
                self.commit.ack(shard as u16, b, position);
            }
        }
        let after = self.commit.watermark();
        self.groups.range(..=after).filter(|(v, _)| **v > before).map(|(v, _)| *v).collect()
    }

    fn settle(&mut self, world: &mut World, rng: &mut StdRng) -> Seen {
        let Phase::Settling(work) = &mut self.phase else { unreachable!() };
        let settled = work.values().all(|w| matches!(w.front(), None | Some(Do::Entry(_))));
        let early = self.broken.entry_before_settling;
        let ready = |w: &VecDeque<Do>| match w.front() {
            None => false,
            Some(Do::Entry(_)) => settled || early,
            Some(_) => true,
        };
        let places: Vec<Place> = work.iter().filter(|(_, w)| ready(w)).map(|(p, _)| *p).collect();
        let Some(at) = places.choose(rng).copied() else { return self.give_up() };
        let todo = work.get_mut(&at).and_then(VecDeque::pop_front).expect("ready");
        let entry_of = self.plan.as_ref().map(|p| p.entry);
        let cut = self.plan.as_ref().map(|p| p.cut).expect("decided");
        let (who, broken) = (self.who, self.broken);
        let skip = broken.no_opening_entry && matches!(todo, Do::Entry(_));
        let done: Result<Option<Version>, No> = match todo {
            _ if skip => Ok(entry_of),
            Do::Attach(chain) => node(world, at).attach(who, &chain, cut, broken).map(|()| None),
            Do::CatchUp(from) => {
                let from = world[at.0][from].clone();
                node(world, at).catch_up(who, &from, broken).map(|()| None)
            }
            Do::Append(part) => {
                node(world, at).append(who, &part, Version::ZERO, broken).map(|_| None)
            }
            Do::Entry(entry) => {
                node(world, at).append(who, &entry, entry.watermark, broken).map(Some)
            }
        };
        match done {
            Err(_) => self.give_up(),
            Ok(None) => Seen::Nothing,
            Ok(Some(position)) => {
                let entry = entry_of.expect("decided");
                if position < entry {
                    return Seen::Nothing;
                }
                self.attached.insert(at);
                self.sent.insert(at, self.known[at.0].len());
                self.ack(at, entry);
                if self.commit.watermark() < entry {
                    return Seen::Nothing;
                }
                self.phase = Phase::Writing;
                Seen::Opened(self.view(world))
            }
        }
    }

    /// The groups through the cut, as the two settled voters of each shard hold them.
    fn view(&self, world: &World) -> BTreeSet<Version> {
        let plan = self.plan.as_ref().expect("decided");
        let mut view = BTreeSet::new();
        for (shard, p) in plan.shards.iter().enumerate() {
            for bank in p.settle {
                let groups = world[shard][bank].groups();
                view.extend(groups.into_iter().filter(|v| *v <= plan.cut));
            }
        }
        view
    }

    fn write(&mut self, world: &mut World, rng: &mut StdRng) -> Seen {
        let shards = self.tails.len();
        let shard = rng.random_range(0..shards);
        let at = (shard, BankId::ALL[rng.random_range(0..3)]);
        if rng.random_ratio(1, 8) && self.groups.len() < self.groups_max {
            self.new_group(rng);
            return Seen::Nothing;
        }
        if !self.attached.contains(&at) {
            if rng.random_ratio(1, 4) {
                self.attach_late(world, at, rng);
            }
            return Seen::Nothing;
        }
        let watermark = self.commit.watermark();
        let next = self.sent.get(&at).copied().unwrap_or(0);
        let Some(part) = self.known[shard].get(next).cloned() else {
            if rng.random_ratio(1, 4) && node(world, at).promise == self.who {
                node(world, at).apply(watermark);
            }
            return Seen::Nothing;
        };
        match node(world, at).append(self.who, &part, watermark, self.broken) {
            Err(_) => {
                self.attached.remove(&at);
                Seen::Nothing
            }
            Ok(position) => {
                self.sent.insert(at, next + 1);
                if position >= part.version {
                    return Seen::Acked(self.ack(at, position));
                }
                Seen::Nothing
            }
        }
    }

    fn new_group(&mut self, rng: &mut StdRng) {
        let shards = self.tails.len();
        let mut touched: BTreeSet<usize> = (0..shards).filter(|_| rng.random_ratio(1, 2)).collect();
        touched.insert(rng.random_range(0..shards));
        let version = Version::new(self.who.0, self.next_seq);
        self.next_seq += 1;
        let names: Vec<u16> = touched.iter().map(|s| *s as u16).collect();
        for shard in &touched {
            let predecessor = self.known[*shard].last().expect("the entry").version;
            self.known[*shard].push(PartHead {
                version,
                predecessor,
                watermark: self.commit.watermark(),
                shards: names.clone(),
                ..PartHead::default()
            });
        }
        self.commit.add(version, &names);
        self.groups.insert(version, touched);
    }

    /// Rule 5 h: fence, look at its tail, attach it, catch it up if it must be.
    fn attach_late(&mut self, world: &mut World, at: Place, rng: &mut StdRng) {
        let (who, broken, shard) = (self.who, self.broken, at.0);
        let plan = &self.plan.as_ref().expect("decided").shards[shard];
        let parts: Vec<(Version, Version)> =
            self.known[shard].iter().map(|p| (p.version, p.predecessor)).collect();
        let mut openings = plan.openings.clone();
        let cut = plan.entry.cut.expect("an entry");
        openings.push(OpeningMark { epoch: who.0, cut });
        let end = parts.last().expect("the entry").0;
        let view = ChainView { settled: plan.settled, openings: &openings, parts: &parts, end };

        let n = node(world, at);
        if n.fence(who, broken).is_err() {
            return;
        }
        let Ok(tail) = n.tail(who, broken) else { return };
        let step = view.step(&tail);
        if n.attach(who, &step.attach, cut, broken).is_err() {
            return;
        }
        if step.catch_up.is_some() {
            let peers: Vec<BankId> = BankId::ALL
                .into_iter()
                .filter(|b| *b != at.1 && self.attached.contains(&(shard, *b)))
                .filter(|b| world[shard][*b].promise == who)
                .collect();
            let Some(from) = peers.choose(rng) else { return };
            let from = world[shard][*from].clone();
            if node(world, at).catch_up(who, &from, broken).is_err() {
                return;
            }
        }
        let stands = node(world, at).end();
        let next = self.known[shard].iter().position(|p| p.version > stands);
        self.attached.insert(at);
        self.sent.insert(at, next.unwrap_or(self.known[shard].len()));
        if self.commit.acked(shard as u16)[at.1].is_none() {
            self.commit.attach(shard as u16, at.1, stands);
        }
    }
}
