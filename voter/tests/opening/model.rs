//! Nodes without I/O: what a storage node promises about parts, epochs and damage, and nothing else.
//! Every change is durable at once; who may speak when is the scheduler's matter.

use std::collections::BTreeSet;
use storenode::part::PartHead;
use storenode::wire::{OpeningMark, PerBank, StoreId, Version};
use voter::opening::Fenced;

/// Rules left out on purpose; the simulation must notice each.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Broken {
    /// The opener serves without writing an opening entry anywhere (trap 1).
    pub(crate) no_opening_entry: bool,
    /// A voter gets its opening entry before all shards are settled (trap 2).
    pub(crate) entry_before_settling: bool,
    /// Nodes do not refuse lower epochs (trap 8).
    pub(crate) no_promise: bool,
    /// One ack commits.
    pub(crate) one_ack: bool,
    /// Damage is reported as a shorter log (trap 5).
    pub(crate) damaged_is_absent: bool,
    /// Tails are read before the fence (trap 8).
    pub(crate) read_before_fence: bool,
    /// A node that attaches keeps what is not in the chain (trap 7).
    pub(crate) attach_keeps_all: bool,
    /// A voter that attaches drops what its peer has compacted, before it has the state instead: it
    /// may be one of only two that hold it. (Found by this simulation.)
    pub(crate) attach_drops_settled: bool,
    /// A node answers a fence before the watermark that it applied by is durable: after a restart
    /// those parts are pending again, and the attach voids them. (Found over real nodes.)
    pub(crate) fence_forgets_watermark: bool,
    /// A node forgets that something is damaged when it attaches, before it has the part again.
    pub(crate) attach_forgets_damage: bool,
}

impl Broken {
    /// Shows only where something is damaged.
    pub(crate) fn is_about_damage(self) -> bool {
        self.damaged_is_absent || self.attach_forgets_damage
    }
}

/// A refusal: somebody else is obeyed, or the node was restarted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum No {
    Fenced,
    NotAttached,
}

/// One node of one shard.
#[derive(Clone, Debug, Default)]
pub(crate) struct Node {
    pub(crate) promise: (u64, u64),
    pub(crate) attached: u64,
    /// Settled parts, which are compacted: only their effect is left.
    pub(crate) base: BTreeSet<Version>,
    pub(crate) base_end: Version,
    pub(crate) applied: Version,
    /// The watermark that is durable in its log: what it calls `applied`.
    pub(crate) durable: Version,
    /// Applied parts above `durable`, no longer told in tails, which are pending again after a
    /// restart.
    pub(crate) recent: Vec<PartHead>,
    pub(crate) high: Version,
    pub(crate) watermark: Version,
    /// Contiguous parts above `applied`.
    pub(crate) log: Vec<PartHead>,
    pub(crate) openings: Vec<OpeningMark>,
    pub(crate) damaged: Option<Version>,
}

impl Node {
    pub(crate) fn end(&self) -> Version {
        self.log.last().map_or(self.base_end, |p| p.version)
    }

    fn obeys(&self, who: (u64, u64), broken: Broken) -> Result<(), No> {
        let obeyed = self.promise == who || broken.no_promise;
        if obeyed { Ok(()) } else { Err(No::Fenced) }
    }

    pub(crate) fn fence(&mut self, who: (u64, u64), broken: Broken) -> Result<(), No> {
        if who.0 > self.promise.0 || who == self.promise || broken.no_promise {
            self.promise = self.promise.max(who);
            // What it applied stays applied over a restart: the opener sees no parts for it.
            if !broken.fence_forgets_watermark {
                self.durable = self.applied;
                self.recent.clear();
            }
            return Ok(());
        }
        Err(No::Fenced)
    }

    pub(crate) fn tail(&self, who: (u64, u64), broken: Broken) -> Result<Fenced, No> {
        if !broken.read_before_fence {
            self.obeys(who, broken)?;
        }
        Ok(Fenced {
            store: StoreId::ZERO,
            position: self.end(),
            applied: self.durable,
            high: self.high,
            watermark: self.watermark,
            floor: Version::ZERO,
            marks: PerBank::default(),
            openings: self.openings.clone(),
            damaged_through: self.damaged.filter(|_| !broken.damaged_is_absent),
            tail: self.log.clone(),
        })
    }

    pub(crate) fn attach(
        &mut self,
        who: (u64, u64),
        chain: &[Version],
        cut: Version,
        broken: Broken,
    ) -> Result<(), No> {
        self.obeys(who, broken)?;
        self.attached = who.0;
        if !broken.attach_keeps_all {
            let keep = self.log.iter().take_while(|p| chain.contains(&p.version)).count();
            for void in self.log.drain(keep..) {
                self.openings.retain(|m| m.epoch != void.version.epoch || void.cut.is_none());
            }
        }
        if broken.attach_forgets_damage {
            self.damaged = None;
        }
        // Whoever attaches knows what stays; of that, all this node lost must come back first.
        let stays = chain.last().map_or(cut, |v| cut.max(*v));
        self.damaged = self.damaged.map(|d| d.min(stays));
        self.mend();
        Ok(())
    }

    /// Catch-up by state: everything settled at a peer. One step here; rule 7 makes it one.
    pub(crate) fn catch_up(
        &mut self,
        who: (u64, u64),
        from: &Node,
        broken: Broken,
    ) -> Result<(), No> {
        self.obeys(who, broken)?;
        if from.applied > self.applied {
            self.base = from.base.clone();
            self.base_end = from.base_end;
            self.applied = from.applied;
            self.durable = from.applied;
            self.recent.clear();
            self.openings = from.openings.clone();
            self.openings.retain(|m| from.log.iter().all(|p| p.version.epoch != m.epoch));
            self.log.clear();
            self.mend();
        }
        Ok(())
    }

    /// Appends one part; the answer is the contiguous position. A gap is not an error.
    pub(crate) fn append(
        &mut self,
        who: (u64, u64),
        part: &PartHead,
        watermark: Version,
        broken: Broken,
    ) -> Result<Version, No> {
        self.obeys(who, broken)?;
        if self.attached != who.0 && !broken.no_promise {
            return Err(No::NotAttached);
        }
        if part.predecessor == self.end() && part.version > self.end() {
            self.durable = self.applied;
            self.recent.clear();
            self.log.push(part.clone());
            if let Some(cut) = part.cut {
                self.openings.push(OpeningMark { epoch: part.version.epoch, cut });
            }
            self.high = self.high.max(part.version);
            self.mend();
        }
        self.apply(watermark);
        Ok(self.end())
    }

    /// Damage is forgotten only when the log reaches beyond what may be lost: before, this node
    /// would look as if it never had it.
    fn mend(&mut self) {
        if self.damaged.is_some_and(|d| self.end() >= d) {
            self.damaged = None;
        }
    }

    pub(crate) fn apply(&mut self, watermark: Version) {
        self.watermark = self.watermark.max(watermark);
        let reach = watermark.min(self.end());
        let n = self.log.iter().take_while(|p| p.version <= reach).count();
        for part in self.log.drain(..n) {
            self.base_end = part.version;
            if part.cut.is_none() {
                self.base.insert(part.version);
            }
            self.recent.push(part);
        }
        self.applied = self.applied.max(reach);
    }

    pub(crate) fn restart(&mut self) {
        self.attached = 0;
        self.applied = self.durable;
        self.watermark = self.durable;
        if let Some(first) = self.recent.first() {
            self.base_end = first.predecessor;
            self.base.retain(|v| self.recent.iter().all(|p| p.version != *v));
            self.log.splice(..0, self.recent.drain(..));
        }
    }

    /// A pending part rots, and all behind it is out of reach.
    /// `unknown`: how much was lost cannot be told.
    pub(crate) fn damage(&mut self, at: usize, unknown: bool) {
        self.restart();
        let end = self.end();
        let epoch = self.promise.0.max(end.epoch);
        self.damaged = Some(if unknown { Version::new(epoch, u64::MAX) } else { end });
        for lost in self.log.drain(at..) {
            self.openings.retain(|m| m.epoch != lost.version.epoch || lost.cut.is_none());
        }
    }

    /// Groups whose effect this node holds.
    pub(crate) fn groups(&self) -> BTreeSet<Version> {
        let pending = self.log.iter().filter(|p| p.cut.is_none()).map(|p| p.version);
        self.base.iter().copied().chain(pending).collect()
    }
}
