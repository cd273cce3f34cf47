//! Replacing a store: rule 8 of the protocol, as "what to do next". The step is computed from what
//! the three nodes say now, so it can be taken up again by anybody at any point.
//!
//! ```text
//!   AssignFilling -> Fill -> Configure both others -> Admit -> Done
//! ```
//! The order matters: a configuration counts only when both remaining voters hold it durably, and
//! only then may the new store vote. Otherwise the old store and the voter that knows nothing of
//! the change could open the volume without what the new store acked.

use storenode::wire::{BankId, Configuration, PerBank, Role, Status, StoreId, Version};

/// What to do next to have three voters in a shard.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Next {
    /// All three are voters of one configuration.
    Done,
    /// Send `assign` with role filling and `wipe`: the node makes a new store id.
    AssignFilling {
        /// Where.
        bank: BankId,
    },
    /// Fill this store (rule 7 with p = 0), until it is joined.
    Fill {
        /// Where.
        bank: BankId,
        /// Its new id.
        store: StoreId,
    },
    /// Send this configuration to these voters; each is durable before its reply.
    Configure {
        /// The banks that do not hold it yet; never the new store.
        banks: Vec<BankId>,
        /// What to send.
        configuration: Configuration,
    },
    /// Both others hold the configuration: tell the new store that it is a voter.
    Admit {
        /// Where.
        bank: BankId,
        /// Its id.
        store: StoreId,
        /// What to send.
        configuration: Configuration,
    },
    /// Nothing can be done now.
    Wait(Waiting),
}

/// What a replacement waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Waiting {
    /// This node does not answer; it may hold the old store, which only waits to come back.
    #[error("bank {0} does not answer")]
    Away(BankId),
    /// One of the two remaining voters is away: a configuration on one of them does not count.
    #[error("bank {0} must answer before a store can be replaced")]
    PeerAway(BankId),
    /// More than one store would have to be replaced.
    #[error("fewer than two voters are left")]
    NoPeers,
}

/// How far a store that is being filled has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Filled {
    /// The watermark that the writer knows for this shard (`W_i`): the store must hold all of it.
    pub through: Version,
    /// The writer's mark of this bank. The new store must stand at or above it, or it would look
    /// rolled back to the next opener.
    pub mark: Version,
}

/// The next step for one shard. `replace` are the banks whose store may and must be replaced
/// ([`crate::opening::Replace`], and the owner agrees); at most one of them is worked on.
#[must_use]
pub fn next_step(
    statuses: &PerBank<Option<Status>>,
    replace: PerBank<bool>,
    filled: Filled,
) -> Next {
    let newest = BankId::ALL
        .into_iter()
        .filter_map(|b| statuses[b].as_ref().map(|s| s.configuration))
        .max_by_key(|c| c.number)
        .unwrap_or_default();
    let named = |b: BankId| statuses[b].as_ref().filter(|s| newest.stores[b] == Some(s.store));
    let voter = |b: BankId| named(b).filter(|s| s.role == Role::Voter && !replace[b]);

    // A change that was begun is finished before anything else.
    let admitting =
        BankId::ALL.into_iter().find(|b| named(*b).is_some_and(|s| s.role == Role::Filling));
    let target = admitting.or_else(|| BankId::ALL.into_iter().find(|b| replace[*b]));
    let others = |bank: BankId| BankId::ALL.into_iter().filter(move |b| *b != bank);
    let Some(bank) = target else {
        return match BankId::ALL
            .into_iter()
            .find(|b| voter(*b).is_none() && newest.stores[*b].is_some())
        {
            Some(away) => Next::Wait(Waiting::Away(away)),
            None => finish_configure(statuses, newest, &BankId::ALL),
        };
    };
    let Some(status) = &statuses[bank] else { return Next::Wait(Waiting::Away(bank)) };
    let peers: Vec<BankId> = others(bank).filter(|b| newest.stores[*b].is_some()).collect();
    if peers.len() < 2 && admitting.is_none() {
        return Next::Wait(Waiting::NoPeers);
    }
    if admitting == Some(bank) {
        if let Some(away) = peers.iter().find(|b| voter(**b).is_none()) {
            return Next::Wait(Waiting::PeerAway(*away));
        }
        return match finish_configure(statuses, newest, &peers) {
            Next::Done => Next::Admit { bank, store: status.store, configuration: newest },
            configure => configure,
        };
    }
    if status.role != Role::Filling {
        return Next::AssignFilling { bank };
    }
    let high = status.position.high.max(status.position.position);
    if status.position.position < filled.through || high < filled.mark || status.cursor.is_some() {
        return Next::Fill { bank, store: status.store };
    }
    if let Some(away) = peers.iter().find(|b| voter(**b).is_none()) {
        return Next::Wait(Waiting::PeerAway(*away));
    }
    let mut configuration = newest;
    configuration.number += 1;
    configuration.stores[bank] = Some(status.store);
    Next::Configure { banks: peers, configuration }
}

/// Which of these banks hold an older configuration.
fn finish_configure(
    statuses: &PerBank<Option<Status>>,
    configuration: Configuration,
    banks: &[BankId],
) -> Next {
    let old = |b: &&BankId| {
        statuses[**b].as_ref().is_some_and(|s| s.configuration.number < configuration.number)
    };
    let banks: Vec<BankId> = banks.iter().filter(old).copied().collect();
    if banks.is_empty() { Next::Done } else { Next::Configure { banks, configuration } }
}
