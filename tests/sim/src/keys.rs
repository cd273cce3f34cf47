//! Keys and values, straight on the voter: the content is a table.

use crate::plan::Plan;
use crate::work::{Check, Tag, Work, refused};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use std::collections::BTreeMap;
use std::sync::Arc;
use storenode::wire::Key;
use voter::Replicated;
use voter::volume::{Change, Op, Stored, Volume as _};

/// Room asked for before an operation, bytes: more than any has.
const ROOM: usize = 200_000;

/// Keys and values of all shards.
pub type Content = BTreeMap<Key, Vec<u8>>;

/// See the module.
pub struct Keys {
    volume: Arc<Replicated>,
    keys: u16,
    shards: u16,
}

fn key(number: u16) -> Key {
    format!("k{number}").into_bytes()
}

fn apply(content: &mut Content, ops: &[Op]) {
    for op in ops {
        match &op.change {
            Change::Put(v) | Change::PutNew(v) => drop(content.insert(op.key.clone(), v.to_vec())),
            Change::Delete => drop(content.remove(&op.key)),
            Change::Retract => {}
        }
    }
}

impl Keys {
    fn op(&self, dice: &mut StdRng, tag: Tag) -> Op {
        let number: u16 = dice.random_range(0..self.keys);
        let change = if dice.random_ratio(1, 3) {
            Change::Delete
        } else {
            let len = match dice.random_range(0..20) {
                0 => 40_000,
                1..=3 => 3_000,
                _ => 3,
            };
            let mut value = vec![b'.'; len];
            value.extend(format!("{}.{}", tag.mount, tag.operation).as_bytes());
            Change::Put(value.into())
        };
        // A key belongs to one shard for ever.
        Op { shard: number % self.shards, key: key(number), change }
    }
}

impl Work for Keys {
    type State = Content;

    fn empty() -> Content {
        Content::new()
    }

    fn brief(content: &Content) -> String {
        let one = |(key, value): (&Key, &Vec<u8>)| {
            let tail = &value[value.len().saturating_sub(16)..];
            let text = String::from_utf8_lossy(tail).into_owned();
            format!("{}={}", String::from_utf8_lossy(key), text.trim_start_matches('.'))
        };
        content.iter().map(one).collect::<Vec<_>>().join(" ")
    }

    async fn open(plan: &Plan, volume: &Arc<Replicated>) -> Check<Self> {
        Ok(Self { volume: Arc::clone(volume), keys: plan.keys, shards: plan.shards })
    }

    async fn operate(&self, mut state: Content, dice: u64, tag: Tag) -> Check<Content> {
        let mut dice = StdRng::seed_from_u64(dice);
        let mut ops: Vec<Op> = Vec::new();
        for _ in 0..dice.random_range(1..=4) {
            let op = self.op(&mut dice, tag);
            if ops.iter().all(|o| o.key != op.key) {
                ops.push(op);
            }
        }
        self.volume.room(ROOM).await.map_err(refused("no room"))?;
        self.volume.submit(ops.clone()).map_err(refused("submit"))?;
        apply(&mut state, &ops);
        Ok(state)
    }

    async fn haunt(&self, mut state: Content, n: u32) -> Check<Content> {
        let change = Change::Put(format!("ghost {n}").into_bytes().into());
        let ops = vec![Op { shard: 0, key: key(0), change }];
        self.volume.submit(ops.clone()).map_err(refused("submit"))?;
        apply(&mut state, &ops);
        Ok(state)
    }

    async fn look(&self, state: &Content, dice: u64) -> Check {
        let mut dice = StdRng::seed_from_u64(dice);
        let numbers: Vec<u16> =
            (0..dice.random_range(1..=5)).map(|_| dice.random_range(0..self.keys)).collect();
        let keys = numbers.iter().map(|n| (n % self.shards, key(*n))).collect();
        let got = self.volume.get(keys).await.map_err(refused("get"))?;
        for (n, got) in numbers.iter().zip(got) {
            let want = state.get(&key(*n));
            if got.as_ref().map(|s| &s.value[..]) != want.map(|v| &v[..]) {
                let one = |v: Option<Vec<u8>>| {
                    Self::brief(&v.into_iter().map(|v| (key(*n), v)).collect::<Content>())
                };
                let (got, want) = (one(got.map(|s| s.value.to_vec())), one(want.cloned()));
                return Err(format!("read {got:?} and not {want:?}").into());
            }
        }
        Ok(())
    }

    async fn dump(&self) -> Check<Content> {
        let mut all = Content::new();
        for shard in 0..self.shards {
            let mut start = Key::new();
            loop {
                let page = self.volume.scan(shard, start, Key::new(), 7).await;
                let page = page.map_err(refused("scan"))?;
                let records = page.records.into_iter();
                all.extend(records.map(|(k, Stored { value, .. })| (k, value.to_vec())));
                match page.next {
                    Some(next) => start = next,
                    None => break,
                }
            }
        }
        Ok(all)
    }

    fn sync(&self) -> BoxFuture<'static, Check> {
        let volume = Arc::clone(&self.volume);
        async move { volume.sync().await.map(drop).map_err(refused("sync")) }.boxed()
    }

    async fn settle(&self) -> Check {
        Ok(())
    }
}
