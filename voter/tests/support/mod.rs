//! A status to start from.

use storenode::wire::{
    BankId, Configuration, PerBank, Position, Promise, Role, Space, Status, StoreId, Version,
    VolumeId,
};

pub(crate) const VOLUME: VolumeId = VolumeId([7; 16]);

/// The store id of generation `generation` at this place.
pub(crate) fn store(shard: u16, bank: BankId, generation: u8) -> StoreId {
    let mut id = [0; 16];
    id[0] = shard as u8;
    id[1] = bank.index() as u8 + 1;
    id[2] = generation;
    StoreId(id)
}

/// The configuration that `tercet init` makes.
pub(crate) fn configuration(shard: u16) -> Configuration {
    Configuration { number: 1, stores: PerBank::from_fn(|b| Some(store(shard, b, 0))) }
}

/// An idle, healthy voter that stands at `at`.
pub(crate) fn voter(shard: u16, shards: u16, bank: BankId, at: Version) -> Status {
    Status {
        volume: Some(VOLUME),
        bank,
        shard,
        shards,
        store: store(shard, bank, 0),
        role: Role::Voter,
        configuration: configuration(shard),
        promise: Promise { epoch: at.epoch, ..Promise::default() },
        beats: 0,
        attached: at.epoch,
        position: Position { position: at, applied: at, high: at, detached: None },
        watermark: at,
        floor: Version::ZERO,
        marks: PerBank([at; 3]),
        openings: Vec::new(),
        damaged_through: None,
        failed: None,
        cursor: None,
        space: Space::default(),
        damaged_records: 0,
        allow_faults: false,
        uptime_s: 1,
        program: "test".into(),
    }
}

/// All nodes of a healthy volume.
#[allow(dead_code, reason = "each test binary uses its part of this module")]
pub(crate) fn statuses(shards: u16, at: Version) -> Vec<PerBank<Option<Status>>> {
    (0..shards).map(|s| PerBank::from_fn(|b| Some(voter(s, shards, b, at)))).collect()
}

/// A fresh directory.
#[allow(dead_code, reason = "each test binary uses its part of this module")]
pub(crate) fn blank(shard: u16, bank: BankId) -> Status {
    Status {
        volume: None,
        shards: 0,
        store: store(shard, bank, 9),
        role: Role::Blank,
        configuration: Configuration::default(),
        ..voter(shard, 0, bank, Version::ZERO)
    }
}
