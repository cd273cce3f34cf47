//! Rule 5 a to c: who votes, who must be refilled, which epoch.

use super::Refusal;
use crate::quorum::Usable;
use std::collections::BTreeMap;
use storenode::wire::{BankId, Configuration, PerBank, Role, Status, StoreId, Version, VolumeId};

/// Why a store cannot vote and must be filled anew, under a new id (rule 8).
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Replace {
    /// An empty directory in the place of a known store.
    #[error("empty")]
    Blank,
    /// Its filling was begun and goes on.
    #[error("being filled")]
    Filling,
    /// It belongs to another volume: the owner must agree to drop what is in it.
    #[error("of another volume, {volume}")]
    Foreign {
        /// Which.
        volume: VolumeId,
    },
    /// Another store has taken its place.
    #[error("replaced by another store")]
    NotNamed,
    /// It acked more than it knows of: its directory was rolled back.
    #[error("rolled back: it acked {mark} and knows only {high}")]
    RolledBack {
        /// What a peer remembers that it acked.
        mark: Version,
        /// What it says.
        high: Version,
    },
    /// It was away too long: its peers dropped tombstones that it would need.
    #[error(
        "struck out, away too long: it stands at {applied}, deletions through {floor} are forgotten"
    )]
    BelowFloor {
        /// The floor of a peer.
        floor: Version,
        /// Its own.
        applied: Version,
    },
}

/// One shard's voters.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ShardChoice {
    /// The highest configuration seen.
    pub configuration: Configuration,
    /// Stores that may vote now and answered.
    pub voters: PerBank<Option<StoreId>>,
    /// Stores that answered, cannot vote, and why.
    pub replace: PerBank<Option<Replace>>,
    /// Stores that answered and say that they failed.
    pub failed: PerBank<Option<String>>,
    /// Voters that hold an older configuration: configure them before serving.
    pub configure: Usable,
    /// A filled store that is named and not yet told so: admit it once all of `configure` is
    /// durable on both others.
    pub admit: Option<(BankId, StoreId)>,
}

/// What the statuses say.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Choice {
    /// The volume.
    pub volume: VolumeId,
    /// Epoch to fence with, above all promises seen.
    pub epoch: u64,
    /// One per shard.
    pub shards: Vec<ShardChoice>,
}

/// Rule 5 a, b: judges the statuses of all nodes (`None` = no answer), index = shard.
///
/// # Errors
/// [`Refusal`] when two voters of every shard are not there, or the addresses are wrong.
pub fn choose(statuses: &[PerBank<Option<Status>>]) -> Result<Choice, Refusal> {
    check_places(statuses)?;
    let volume = volume_of(statuses)?;
    let shards = statuses
        .iter()
        .enumerate()
        .map(|(shard, row)| choose_shard(shard, row, volume, statuses.len()))
        .collect::<Result<Vec<_>, _>>()?;
    let promised = all(statuses).filter(|(_, _, s)| s.volume == Some(volume)).map(|(_, _, s)| {
        // A store that knows parts of an epoch without its promise was rolled back; go above both.
        let entries = s.openings.iter().map(|o| o.epoch).max().unwrap_or(0);
        s.promise.epoch.max(s.position.high.epoch).max(s.watermark.epoch).max(entries)
    });
    Ok(Choice { volume, epoch: 1 + promised.max().unwrap_or(0), shards })
}

/// Rule 5 c: shards in which fewer than two voters promised to obey us (with our nonce). Empty = the
/// epoch is ours.
#[must_use]
pub fn owned(choice: &Choice, promised: &[PerBank<bool>]) -> Vec<u16> {
    let not_ours =
        choice.shards.iter().zip(promised).enumerate().filter(|(_, (shard, promised))| {
            Usable::from_fn(|b| shard.voters[b].is_some() && promised[b]).count() < 2
        });
    not_ours.map(|(i, _)| i as u16).collect()
}

fn all(statuses: &[PerBank<Option<Status>>]) -> impl Iterator<Item = (u16, BankId, &Status)> {
    statuses
        .iter()
        .enumerate()
        .flat_map(|(i, row)| row.iter().filter_map(move |(b, s)| Some((i as u16, b, s.as_ref()?))))
}

fn check_places(statuses: &[PerBank<Option<Status>>]) -> Result<(), Refusal> {
    let mut seen = BTreeMap::new();
    for (shard, bank, s) in all(statuses) {
        if let Some((b, i)) = seen.insert(s.store, (bank, shard)) {
            return Err(Refusal::SameStore {
                store: s.store,
                first: format!("bank {b} shard {i}"),
                second: format!("bank {bank} shard {shard}"),
            });
        }
        if (s.bank, s.shard) != (bank, shard) {
            return Err(Refusal::WrongPlace { bank, shard, is_bank: s.bank, is_shard: s.shard });
        }
    }
    if seen.is_empty() { Err(Refusal::NoAnswer) } else { Ok(()) }
}

/// The volume that most stores belong to.
fn volume_of(statuses: &[PerBank<Option<Status>>]) -> Result<VolumeId, Refusal> {
    let mut votes: BTreeMap<VolumeId, usize> = BTreeMap::new();
    for volume in all(statuses).filter_map(|(_, _, s)| s.volume) {
        *votes.entry(volume).or_default() += 1;
    }
    let mut votes: Vec<(usize, VolumeId)> = votes.into_iter().map(|(v, n)| (n, v)).collect();
    votes.sort_unstable();
    match votes[..] {
        [] => {
            let of = statuses.len() * BankId::ALL.len();
            Err(Refusal::NoVolume { silent: of - all(statuses).count(), of })
        }
        [.., (n, a), (m, b)] if n == m => Err(Refusal::MixedVolumes(a, b)),
        [.., (_, volume)] => Ok(volume),
    }
}

fn choose_shard(
    shard: usize,
    row: &PerBank<Option<Status>>,
    volume: VolumeId,
    configured: usize,
) -> Result<ShardChoice, Refusal> {
    let of_volume = |b: BankId| row[b].as_ref().filter(|s| s.volume == Some(volume));
    // A store that lost its state files knows its volume from its log and nothing more: it says 0.
    if let Some(s) = BankId::ALL
        .into_iter()
        .find_map(|b| of_volume(b).filter(|s| s.shards != 0 && usize::from(s.shards) != configured))
    {
        return Err(Refusal::WrongShape { configured, actual: s.shards });
    }
    let configuration = BankId::ALL
        .into_iter()
        .filter_map(|b| of_volume(b).map(|s| s.configuration))
        .max_by_key(|c| c.number)
        .unwrap_or_default();
    let named = |b: BankId| of_volume(b).filter(|s| configuration.stores[b] == Some(s.store));
    let is_voter = |b: BankId| named(b).filter(|s| s.role == Role::Voter);
    let peers = |b: BankId| BankId::ALL.into_iter().filter(move |p| *p != b).filter_map(is_voter);

    let replace = PerBank::from_fn(|b| {
        let s = row[b].as_ref()?;
        match s.volume {
            None => return Some(Replace::Blank),
            Some(other) if other != volume => return Some(Replace::Foreign { volume: other }),
            Some(_) => {}
        }
        match (s.role, named(b).is_some()) {
            (Role::Blank, _) => return Some(Replace::Blank),
            (Role::Filling, false) => return Some(Replace::Filling),
            // Named and not yet admitted: `admit` finishes it.
            (Role::Filling, true) => return None,
            (Role::Voter, false) => return Some(Replace::NotNamed),
            (Role::Voter, true) => {}
        }
        let (high, applied) = (s.position.high, s.position.applied);
        let mark = peers(b).map(|p| p.marks[b]).max().unwrap_or_default();
        let floor = peers(b).map(|p| p.floor).max().unwrap_or_default();
        if high < mark {
            return Some(Replace::RolledBack { mark, high });
        }
        // What it holds of the chain above `applied` brings its deletions with it.
        (applied.max(s.position.position) < floor).then_some(Replace::BelowFloor { floor, applied })
    });
    let failed = PerBank::from_fn(|b| row[b].as_ref().and_then(|s| s.failed.clone()));
    let voters = PerBank::from_fn(|b| {
        let usable = replace[b].is_none() && failed[b].is_none();
        is_voter(b).filter(|_| usable).map(|s| s.store)
    });
    if voters.iter().filter(|(_, v)| v.is_some()).count() < 2 {
        let why = |b: BankId| match (&row[b], &replace[b], &failed[b]) {
            (None, _, _) => "no answer".into(),
            (_, Some(replace), _) => replace.to_string(),
            (_, _, Some(failed)) => failed.clone(),
            _ => "not admitted yet".into(),
        };
        let missing: Vec<String> = BankId::ALL
            .into_iter()
            .filter(|b| voters[*b].is_none())
            .map(|b| format!("bank {b} ({})", why(b)))
            .collect();
        return Err(Refusal::NotEnough { shard: shard as u16, missing: missing.join(", ") });
    }
    let configure = Usable::from_fn(|b| {
        voters[b].is_some() && row[b].as_ref().is_some_and(|s| s.configuration != configuration)
    });
    let admit = BankId::ALL
        .into_iter()
        .find_map(|b| named(b).filter(|s| s.role == Role::Filling).map(|s| (b, s.store)));
    Ok(ShardChoice { configuration, voters, replace, failed, configure, admit })
}
