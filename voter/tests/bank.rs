//! The misbehaving bank misbehaves as it is told, and the same way for the same seed.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use bytes::Bytes;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;
use storenode::wire::{Envelope, Reply, Request, StoreId, Version, VolumeId, WIRE_FORMAT};
use voter::bank::faulty::{Faults, FaultyBank};
use voter::bank::{Bank, BankError};

const DEADLINE: Duration = Duration::from_millis(100);

/// Remembers what arrived, in order.
#[derive(Default)]
struct Recorder(Mutex<Vec<u64>>);

impl Bank for Recorder {
    fn call(
        &self,
        _: Envelope,
        request: Request,
        _: Vec<Bytes>,
        _: Duration,
    ) -> BoxFuture<'_, Result<(Reply, Bytes), BankError>> {
        let Request::Beat { watermark, .. } = request else { panic!("only beats here") };
        self.0.lock().push(watermark.seq);
        Box::pin(async { Ok((Reply::Done, Bytes::new())) })
    }
    fn name(&self) -> String {
        "recorder".into()
    }
}

fn pair(seed: u64, faults: Faults) -> (Arc<Recorder>, Arc<FaultyBank>) {
    let inner = Arc::new(Recorder::default());
    let bank = Arc::new(FaultyBank::new(Arc::clone(&inner) as Arc<dyn Bank>, seed));
    bank.set(faults);
    (inner, bank)
}

async fn beat(bank: &FaultyBank, seq: u64) -> Result<(Reply, Bytes), BankError> {
    let envelope = Envelope {
        format: WIRE_FORMAT,
        volume: VolumeId::ZERO,
        store: StoreId::ZERO,
        epoch: 1,
        nonce: 1,
    };
    let request = Request::Beat { watermark: Version::new(1, seq), release: false };
    let began = tokio::time::Instant::now();
    let answer = bank.call(envelope, request, vec![], DEADLINE).await;
    assert!(began.elapsed() <= DEADLINE + Duration::from_millis(5), "the deadline holds");
    answer
}

#[tokio::test(start_paused = true)]
async fn lost_requests_and_lost_replies_look_the_same() {
    let (inner, bank) = pair(1, Faults { lose_request: 1.0, ..Faults::default() });
    assert_eq!(beat(&bank, 1).await, Err(BankError::Timeout));
    assert!(inner.0.lock().is_empty());
    let (inner, bank) = pair(1, Faults { lose_reply: 1.0, ..Faults::default() });
    assert_eq!(beat(&bank, 1).await, Err(BankError::Timeout));
    assert_eq!(*inner.0.lock(), [1], "but the node acted");
}

#[tokio::test(start_paused = true)]
async fn duplicates_and_late_arrivals() {
    let (inner, bank) = pair(1, Faults { duplicate: 1.0, ..Faults::default() });
    assert!(beat(&bank, 1).await.is_ok());
    tokio::time::sleep(DEADLINE).await;
    assert_eq!(*inner.0.lock(), [1, 1]);
    let (inner, bank) = pair(1, Faults { arrive_late: 1.0, ..Faults::default() });
    assert_eq!(beat(&bank, 1).await, Err(BankError::Timeout));
    bank.set(Faults::default());
    assert!(beat(&bank, 2).await.is_ok());
    tokio::time::sleep(DEADLINE).await;
    assert!(inner.0.lock().contains(&1), "it arrives after its caller gave up");
}

#[tokio::test(start_paused = true)]
async fn delays_reorder() {
    let (inner, bank) =
        pair(7, Faults { delay_max: Duration::from_millis(40), ..Faults::default() });
    let calls = (0..20).map(|i| beat(&bank, i));
    let answers = futures_util::future::join_all(calls).await;
    assert!(answers.iter().all(Result::is_ok));
    let arrived = inner.0.lock().clone();
    assert!(arrived.windows(2).any(|w| w[0] > w[1]), "{arrived:?}");
}

#[tokio::test(start_paused = true)]
async fn cut_and_hung() {
    let (inner, bank) = pair(1, Faults::default());
    bank.cut(true);
    assert!(matches!(beat(&bank, 1).await, Err(BankError::Unreachable(_))));
    bank.cut(false);
    bank.hang(true);
    assert_eq!(beat(&bank, 2).await, Err(BankError::Timeout));
    bank.hang(false);
    assert!(beat(&bank, 3).await.is_ok());
    assert_eq!(*inner.0.lock(), [3]);
    assert_eq!(bank.calls(), 3);
}

#[tokio::test(start_paused = true)]
async fn the_same_seed_gives_the_same_fate() {
    let faults = Faults { lose_request: 0.3, lose_reply: 0.3, refuse: 0.1, ..Faults::default() };
    let mut fates = Vec::new();
    for seed in [5, 5, 6] {
        let (_, bank) = pair(seed, faults);
        let mut fate = Vec::new();
        for i in 0..30 {
            fate.push(beat(&bank, i).await);
        }
        fates.push(fate);
    }
    assert_eq!(fates[0], fates[1]);
    assert_ne!(fates[0], fates[2]);
}
