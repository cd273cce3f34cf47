//! Which groups are committed: rule 4 of the protocol.
//!
//! A group is committed when, in every shard it touches, two voters of this epoch have durably
//! acked a contiguous position at or beyond it, and all earlier groups are committed. Each ack costs
//! a constant and each group is looked at once per shard it touches.

use std::collections::VecDeque;
use storenode::wire::{BankId, PerBank, Version};

/// One shard: who acked how far, and which groups still wait for it.
#[derive(Clone, Debug, Default)]
struct Shard {
    /// Contiguous durable position of each voter that counts in this epoch.
    acked: PerBank<Option<Version>>,
    /// The second highest of them: what two voters hold.
    pair: Version,
    /// Groups that touch this shard and are above `pair`.
    waiting: VecDeque<Version>,
}

#[derive(Clone, Debug)]
struct Group {
    version: Version,
    /// Touched shards in which two voters do not hold it yet.
    missing: u32,
}

/// The commit state of one epoch.
#[derive(Clone, Debug)]
pub struct Commit {
    shards: Vec<Shard>,
    groups: VecDeque<Group>,
    watermark: Version,
}

impl Commit {
    /// Begins with everything through `watermark` committed and nobody attached.
    #[must_use]
    pub fn new(shards: u16, watermark: Version) -> Self {
        let shards = vec![Shard { pair: watermark, ..Shard::default() }; usize::from(shards)];
        Self { shards, groups: VecDeque::new(), watermark }
    }

    /// Committed through here.
    #[must_use]
    pub fn watermark(&self) -> Version {
        self.watermark
    }

    /// Groups that are not committed.
    #[must_use]
    pub fn uncommitted(&self) -> usize {
        self.groups.len()
    }

    /// Position each voter acked in this shard; `None` = not attached in this epoch.
    #[must_use]
    pub fn acked(&self, shard: u16) -> PerBank<Option<Version>> {
        self.shards[usize::from(shard)].acked
    }

    /// What two voters hold of this shard.
    #[must_use]
    pub fn pair(&self, shard: u16) -> Version {
        self.shards[usize::from(shard)].pair
    }

    /// A group was closed: `touched` are its shards. Returns the new watermark if it moved (a group
    /// that touches nothing is committed with its predecessors).
    ///
    /// # Panics
    /// If groups do not come in ascending order.
    pub fn add(&mut self, version: Version, touched: &[u16]) -> Option<Version> {
        let last = self.groups.back().map_or(self.watermark, |g| g.version);
        assert!(version > last, "group {version} after {last}");
        let mut missing = 0;
        for shard in touched {
            let shard = &mut self.shards[usize::from(*shard)];
            // A position beyond a group that was not sent yet cannot be: acks name parts.
            if shard.pair < version {
                shard.waiting.push_back(version);
                missing += 1;
            }
        }
        self.groups.push_back(Group { version, missing });
        self.advance()
    }

    /// A voter was attached to this epoch and is contiguous through `position`, which replaces what
    /// it acked before. Returns the new watermark if it moved.
    pub fn attach(&mut self, shard: u16, bank: BankId, position: Version) -> Option<Version> {
        self.shards[usize::from(shard)].acked[bank] = Some(position);
        self.count(shard)
    }

    /// A voter acked `position`: late and repeated acks are harmless. Ignored unless attached.
    /// Returns the new watermark if it moved.
    pub fn ack(&mut self, shard: u16, bank: BankId, position: Version) -> Option<Version> {
        let acked = &mut self.shards[usize::from(shard)].acked[bank];
        match acked {
            Some(had) if *had < position => *had = position,
            _ => return None,
        }
        self.count(shard)
    }

    /// What this voter acked counts no more: its store was lost, failed or is replaced. A voter
    /// that is only away keeps what it acked, since that is durable there. The watermark stays.
    pub fn forget(&mut self, shard: u16, bank: BankId) {
        let shard = &mut self.shards[usize::from(shard)];
        shard.acked[bank] = None;
        // `pair` does not fall: groups it released were held by two when it rose. Later ones
        // are counted from what remains, since `pair` rises only by two live positions.
    }

    /// Recounts one shard after one of its positions rose.
    fn count(&mut self, shard: u16) -> Option<Version> {
        let shard = &mut self.shards[usize::from(shard)];
        let mut held: Vec<Version> = shard.acked.iter().filter_map(|(_, p)| *p).collect();
        held.sort_unstable();
        let pair = held.len().checked_sub(2).map_or(Version::ZERO, |i| held[i]);
        if pair <= shard.pair {
            return None;
        }
        shard.pair = pair;
        while shard.waiting.front().is_some_and(|v| *v <= pair) {
            let version = shard.waiting.pop_front().expect("just seen");
            let at = self.groups.binary_search_by_key(&version, |g| g.version);
            // A group leaves the queue only when no shard waits for it.
            let at = at.expect("a waiting group is uncommitted");
            self.groups[at].missing -= 1;
        }
        self.advance()
    }

    fn advance(&mut self) -> Option<Version> {
        let before = self.watermark;
        while self.groups.front().is_some_and(|g| g.missing == 0) {
            self.watermark = self.groups.pop_front().expect("just seen").version;
        }
        (self.watermark > before).then_some(self.watermark)
    }
}
