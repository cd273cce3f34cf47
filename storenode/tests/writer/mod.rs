//! A lone writer: makes a blank store the voter of a one-shard volume, opens it, appends groups.
//! What a mount does for three banks, for one.

#![allow(dead_code, reason = "each user needs a part of it")]
#![allow(clippy::unwrap_used, reason = "a helper of tests")]

use bytes::Bytes;
use std::time::Duration;
use storenode::client::{ClientError, NodeClient};
use storenode::part::{PartHead, encode};
use storenode::wire::{
    BankId, Configuration, Envelope, Key, PerBank, Position, Reply, Request, Role, Status, StoreId,
    Version, VolumeId, WIRE_FORMAT,
};

pub(crate) const DEADLINE: Duration = Duration::from_secs(20);
pub(crate) const VOLUME: VolumeId = VolumeId([7; 16]);

pub(crate) struct Writer {
    pub(crate) client: NodeClient,
    pub(crate) envelope: Envelope,
    pub(crate) last: Version,
}

pub(crate) fn observer() -> Envelope {
    Envelope {
        format: WIRE_FORMAT,
        volume: VolumeId::ZERO,
        store: StoreId::ZERO,
        epoch: 0,
        nonce: 0,
    }
}

pub(crate) async fn status(client: &NodeClient) -> Status {
    match client.call(observer(), &Request::Status, vec![], DEADLINE).await.unwrap().0 {
        Reply::Status(s) => *s,
        other => panic!("{other:?}"),
    }
}

impl Writer {
    /// Assigns if blank; fences and attaches with the next epoch; writes the opening entry.
    pub(crate) async fn open(client: NodeClient) -> Self {
        let s = status(&client).await;
        let mut envelope = Envelope { store: s.store, ..observer() };
        if s.role == Role::Blank {
            let mut stores = PerBank::from_fn(|b| Some(StoreId([b as u8 + 1; 16])));
            stores[s.bank] = Some(s.store);
            let configuration = Configuration { number: 1, stores };
            let (volume, bank, shard) = (VOLUME, s.bank, s.shard);
            let request = Request::Assign {
                volume,
                bank,
                shard,
                shards: 1,
                role: Role::Voter,
                configuration,
                wipe: false,
            };
            client.call(envelope, &request, vec![], DEADLINE).await.unwrap();
        }
        envelope.volume = VOLUME;
        envelope.epoch = s.promise.epoch + 1;
        envelope.nonce = 99;
        let epoch = envelope.epoch;
        let fence = Request::Fence { epoch, nonce: 99, holder: "test".into() };
        client.call(envelope, &fence, vec![], DEADLINE).await.unwrap();
        let cut = s.position.position;
        let attach = Request::Attach { chain: vec![], cut };
        client.call(envelope, &attach, vec![], DEADLINE).await.unwrap();
        let mut w = Self { client, envelope, last: cut };
        let opening = Version::new(epoch, cut.seq);
        let part = w.part(opening, Some(cut), &[]);
        w.append(vec![part], cut).await.unwrap();
        w.last = opening;
        w
    }

    pub(crate) fn part(
        &self,
        version: Version,
        cut: Option<Version>,
        records: &[(Key, Option<Bytes>)],
    ) -> Bytes {
        let head = PartHead {
            version,
            predecessor: self.last,
            cut,
            shards: vec![0],
            ..Default::default()
        };
        encode(&head, records)
    }

    /// The next group, as a part; the caller sends it.
    pub(crate) fn next(&mut self, records: &[(Key, Option<Bytes>)]) -> Bytes {
        let version = Version::new(self.envelope.epoch, self.last.seq + 1);
        let part = self.part(version, None, records);
        self.last = version;
        part
    }

    pub(crate) async fn append(
        &self,
        parts: Vec<Bytes>,
        watermark: Version,
    ) -> Result<Position, ClientError> {
        let lens = parts.iter().map(|p| p.len() as u32).collect();
        let request = Request::Append { lens, watermark };
        match self.client.call(self.envelope, &request, parts, DEADLINE).await?.0 {
            Reply::Position(p) => Ok(p),
            other => panic!("{other:?}"),
        }
    }

    /// Appends one group and commits it.
    pub(crate) async fn put(&mut self, records: &[(Key, Option<Bytes>)]) -> Position {
        let part = self.next(records);
        self.append(vec![part], self.last).await.unwrap();
        self.beat(false).await
    }

    pub(crate) async fn beat(&self, release: bool) -> Position {
        let request = Request::Beat { watermark: self.last, release };
        match self.client.call(self.envelope, &request, vec![], DEADLINE).await.unwrap().0 {
            Reply::Position(p) => p,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn get(&self, key: &[u8]) -> Result<(Reply, Bytes), ClientError> {
        let request = Request::Read { keys: [key.to_vec()].into(), through: self.last };
        self.client.call(self.envelope, &request, vec![], DEADLINE).await
    }
}

/// The bank used throughout.
pub(crate) const BANK: BankId = BankId::B;
