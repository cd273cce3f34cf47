//! Repair (rule 11): a record that the banks do not hold alike is voted on with everybody heard, and
//! what lost is overwritten, or removed when it is foreign. Only settled records move; the node
//! refuses what is older than its own.

use crate::link::unexpected;
use crate::metrics::add;
use crate::pace::Pace;
use crate::read::{Voted, ask, conclude, hex, tabulate};
use crate::shared::{CheckOrder, RepairOrder, Shared, stopped};
use crate::vote::{Ballot, Fix, Verdict, fixes, tally};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use storenode::wire::{
    BankId, InstallKind, Key, Keys, PerBank, RecordHead, Reply, Request, StoreId, Version,
};
use tokio::sync::mpsc;

/// Keys voted on together.
const BATCH_MAX: usize = 256;
/// Orders to look behind reads gather for so long.
const CHECK_GATHER: Duration = Duration::from_millis(20);
/// About so many bytes are looked at together.
const CHECK_STEP: u64 = 1 << 20;
/// What may be looked at at once after idleness: this part of what may be in a second.
const CHECK_BURST: u64 = 16;

/// Mends what reads found, in batches, until the mount closes.
pub(crate) async fn run(shared: Arc<Shared>, mut orders: mpsc::Receiver<RepairOrder>) {
    let mut batch = Vec::new();
    loop {
        let n = tokio::select! {
            biased;
            n = orders.recv_many(&mut batch, BATCH_MAX) => n,
            () = stopped(shared.stop.subscribe()) => return,
        };
        if n == 0 {
            return;
        }
        let mut by_shard: BTreeMap<u16, BTreeSet<Key>> = BTreeMap::new();
        for o in batch.drain(..) {
            by_shard.entry(o.shard).or_default().insert(o.key);
        }
        for (shard, keys) in by_shard {
            let keys: Vec<Key> = keys.into_iter().collect();
            if let Err(why) = mend(&shared, shard, &keys).await {
                tracing::debug!(shard, %why, "not repaired now; the refresh will try again");
            }
        }
    }
}

/// Looks at what was read on all banks, at its pace, until the mount closes: this is what makes every
/// access heal, whichever two banks it asked.
///
/// It must not take from the reader what it gives to the banks. So the orders of a moment go together,
/// one request to each bank for many reads, and little is taken at once: a reader that has just begun
/// meets few of them. Orders wait while the pace is kept; what finds their queue full is left to the
/// scrub.
pub(crate) async fn check_behind(shared: Arc<Shared>, mut orders: mpsc::Receiver<CheckOrder>) {
    let work = async {
        let rate = shared.limits.check_behind_bytes_per_s;
        let mut pace = Pace::new(rate, rate / CHECK_BURST, shared.now());
        let mut batch = Vec::new();
        while let Some(order) = orders.recv().await {
            batch.push(order);
            tokio::time::sleep(CHECK_GATHER).await;
            while batch.len() < BATCH_MAX
                && let Ok(order) = orders.try_recv()
            {
                batch.push(order);
            }
            for (shard, (keys, cost)) in together(batch.drain(..)) {
                while let Err(wait) = pace.take(cost, shared.now()) {
                    tokio::time::sleep(wait).await;
                }
                let keys: Vec<Key> = keys.into_iter().collect();
                if let Err(why) = mend(&shared, shard, &keys).await {
                    tracing::debug!(shard, %why, "not checked behind a read");
                }
            }
        }
    };
    tokio::select! {
        biased;
        () = work => {}
        () = stopped(shared.stop.subscribe()) => {}
    }
}

/// Keys and cost of orders by shard, in steps of about [`CHECK_STEP`] bytes. A key costs a request's
/// share even when its value is small.
fn together(orders: impl Iterator<Item = CheckOrder>) -> Vec<(u16, (BTreeSet<Key>, u64))> {
    let mut open: BTreeMap<u16, (BTreeSet<Key>, u64)> = BTreeMap::new();
    let mut full = Vec::new();
    for order in orders {
        let (keys, cost) = open.entry(order.shard).or_default();
        *cost += order.bytes + 256 * order.keys.len() as u64;
        keys.extend(order.keys.iter().cloned());
        if *cost >= CHECK_STEP || keys.len() >= BATCH_MAX {
            full.extend(open.remove_entry(&order.shard));
        }
    }
    full.extend(open);
    full
}

/// Makes all up-to-date replicas hold the voted record of each key; returns how many records were
/// written.
pub(crate) async fn mend(shared: &Arc<Shared>, shard: u16, keys: &[Key]) -> Result<usize, String> {
    let mut mended = 0;
    for chunk in keys.chunks(BATCH_MAX) {
        mended += mend_chunk(shared, shard, chunk).await?;
    }
    Ok(mended)
}

async fn mend_chunk(shared: &Arc<Shared>, shard: u16, keys: &[Key]) -> Result<usize, String> {
    let (through, readers) = shared.readers(shard, 0);
    let asked = Keys::from(keys);
    let answers = futures_util::future::join_all(readers.iter().map(|(bank, store)| async {
        (*bank, ask(shared, shard, *bank, *store, asked.clone(), through, true).await)
    }))
    .await;
    let mut why = String::new();
    let (tables, heard) = tabulate(keys.len(), answers, &mut why);
    if heard < 2 {
        return Err(format!("two banks are needed to decide {why}"));
    }
    let floor = shared.core.lock().shards[shard as usize].floor;
    let mut installs: BTreeMap<BankId, (Vec<RecordHead>, Vec<Bytes>)> = BTreeMap::new();
    let mut removals: Vec<(BankId, Key, Version)> = Vec::new();
    for (answers, key) in tables.iter().zip(keys) {
        let voted = match conclude(answers) {
            Ok(v) => v,
            Err(verdict) => {
                tracing::error!(shard, key = %hex(key), ?verdict, "cannot be repaired");
                continue;
            }
        };
        let ballots = PerBank::from_fn(|b| answers[b].ballot);
        let verdict = tally(&ballots);
        for (bank, fix) in fixes(&ballots, &verdict, floor, through).iter() {
            // A record from beyond what was committed has no vote, but it is there.
            let foreign = (verdict == Verdict::Absent && ballots[bank] == Ballot::Damaged)
                .then_some(answers[bank].claimed)
                .flatten()
                .map(|seen| Fix::Remove { seen });
            match fix.or(foreign) {
                None => {}
                Some(Fix::Remove { seen }) => removals.push((bank, key.clone(), seen)),
                Some(Fix::Install) => {
                    let Voted::Record { version, digest, value } = &voted else { continue };
                    let (heads, values) = installs.entry(bank).or_default();
                    heads.push(RecordHead {
                        key: key.clone(),
                        version: *version,
                        digest: *digest,
                        len: value.as_ref().map(|v| v.len() as u32),
                    });
                    values.extend(value.clone());
                }
            }
        }
    }
    let stores: BTreeMap<BankId, StoreId> = readers.into_iter().collect();
    let deadline = shared.limits.bulk_deadline();
    let mut mended = 0;
    for (bank, (records, values)) in installs {
        let n = records.len();
        let keys: Vec<Key> = records.iter().map(|r| r.key.clone()).collect();
        let request = Request::Install { records, as_of: through, kind: InstallKind::Repair };
        let reply = shared.call(shard, bank, stores[&bank], request, values, deadline).await;
        match reply.map_err(|e| format!("bank {bank}: {e}"))?.0 {
            Reply::Installed { taken } => {
                tracing::info!(%bank, shard, records = n, taken, first = %hex(&keys[0]), "repaired");
                add(&shared.metrics.repaired, taken as usize);
                mended += taken as usize;
            }
            other => return Err(unexpected(&other).to_string()),
        }
    }
    for (bank, key, seen) in removals {
        let request = Request::Remove { key: key.clone(), seen, as_of: through };
        let reply = shared.call(shard, bank, stores[&bank], request, vec![], deadline).await;
        if let Reply::Installed { taken } = reply.map_err(|e| format!("bank {bank}: {e}"))?.0 {
            tracing::info!(%bank, shard, key = %hex(&key), %seen, "foreign record removed");
            add(&shared.metrics.removed, taken as usize);
            mended += taken as usize;
        }
    }
    Ok(mended)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(shard: u16, keys: std::ops::Range<u8>, bytes: u64) -> CheckOrder {
        CheckOrder { shard, keys: keys.map(|k| vec![k]).collect(), bytes }
    }

    #[test]
    fn orders_go_together_by_shard_in_bounded_steps() {
        let many = [order(0, 0..2, 10), order(1, 0..1, 20), order(0, 1..3, 30)];
        let steps = together(many.into_iter());
        assert_eq!(steps.len(), 2);
        let (keys, cost) = &steps[0].1;
        assert_eq!(keys.iter().map(|k| k[0]).collect::<Vec<_>>(), [0, 1, 2], "each once");
        assert_eq!(*cost, 40 + 4 * 256);
        assert_eq!((steps[1].0, steps[1].1.1), (1, 20 + 256));
        // A step that is full is closed, whatever comes behind it.
        let large = (0..5).map(|k| order(3, k..k + 1, CHECK_STEP / 2));
        let steps = together(large);
        assert_eq!(steps.iter().map(|s| s.1.0.len()).collect::<Vec<_>>(), [2, 2, 1]);
    }
}
