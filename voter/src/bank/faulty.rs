//! A bank that misbehaves from a seed: delay, loss of the request, loss of the reply, duplicates,
//! errors, hanging, and, by different delays, reordering. For tests.

use super::{Bank, BankError};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use std::sync::Arc;
use std::time::Duration;
use storenode::wire::{Envelope, Reply, Request};

/// How often what happens: each is a chance in 0..=1 per call, drawn independently.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Faults {
    /// The request never arrives; the caller waits for its deadline.
    pub lose_request: f64,
    /// The node acts and its reply never arrives.
    pub lose_reply: f64,
    /// The request arrives a second time later, after the reply to the first.
    pub duplicate: f64,
    /// The connection breaks at once; the node heard nothing.
    pub refuse: f64,
    /// The request is held back and arrives after the caller has given up.
    pub arrive_late: f64,
    /// Longest delay before the request arrives and before the reply does (uniform, so that
    /// concurrent requests overtake each other).
    pub delay_max: Duration,
}

/// A bank wrapped in faults.
pub struct FaultyBank {
    inner: Arc<dyn Bank>,
    state: Mutex<State>,
}

struct State {
    rng: StdRng,
    faults: Faults,
    hang: bool,
    cut: bool,
    calls: u64,
}

/// What the dice said for one call.
#[derive(Clone, Copy)]
struct Fate {
    lose_request: bool,
    lose_reply: bool,
    duplicate: bool,
    refuse: bool,
    arrive_late: bool,
    before: Duration,
    after: Duration,
}

impl FaultyBank {
    /// Wraps a bank; without faults until [`Self::set`].
    #[must_use]
    pub fn new(inner: Arc<dyn Bank>, seed: u64) -> Self {
        let state = State {
            rng: StdRng::seed_from_u64(seed),
            faults: Faults::default(),
            hang: false,
            cut: false,
            calls: 0,
        };
        Self { inner, state: Mutex::new(state) }
    }

    /// Changes how often what happens.
    pub fn set(&self, faults: Faults) {
        self.state.lock().faults = faults;
    }

    /// Like a stopped process: takes requests, never answers. Those taken while it hangs arrive
    /// when it goes on, if their caller still waits.
    pub fn hang(&self, on: bool) {
        self.state.lock().hang = on;
    }

    /// Like a pulled cable: every call fails at once.
    pub fn cut(&self, on: bool) {
        self.state.lock().cut = on;
    }

    /// Calls so far.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.state.lock().calls
    }

    fn draw(&self) -> Fate {
        let mut state = self.state.lock();
        state.calls += 1;
        let (faults, cut) = (state.faults, state.cut);
        let rng = &mut state.rng;
        let mut chance = |p: f64| rng.random::<f64>() < p;
        let [lose_request, lose_reply, duplicate, refuse, arrive_late] = [
            chance(faults.lose_request),
            chance(faults.lose_reply),
            chance(faults.duplicate),
            chance(faults.refuse),
            chance(faults.arrive_late),
        ];
        let mut delay = || faults.delay_max.mul_f64(rng.random::<f64>());
        let (before, after) = (delay(), delay());
        Fate {
            lose_request,
            lose_reply,
            duplicate,
            refuse: refuse || cut,
            arrive_late,
            before,
            after,
        }
    }

    async fn while_hung(&self) {
        while self.state.lock().hang {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Sends without a caller: the reply is of no interest.
    fn send_later(
        &self,
        after: Duration,
        envelope: Envelope,
        request: Request,
        bulk: Vec<Bytes>,
        deadline: Duration,
    ) {
        let inner = Arc::clone(&self.inner);
        tokio::spawn(async move {
            tokio::time::sleep(after).await;
            let _ = inner.call(envelope, request, bulk, deadline).await;
        });
    }

    async fn attempt(
        &self,
        fate: Fate,
        envelope: Envelope,
        request: Request,
        bulk: Vec<Bytes>,
        deadline: Duration,
    ) -> Result<(Reply, Bytes), BankError> {
        tokio::time::sleep(fate.before).await;
        self.while_hung().await;
        if fate.duplicate {
            let at = fate.before + fate.after;
            self.send_later(at, envelope, request.clone(), bulk.clone(), deadline);
        }
        let answer = self.inner.call(envelope, request, bulk, deadline).await;
        tokio::time::sleep(fate.after).await;
        self.while_hung().await;
        if fate.lose_reply {
            std::future::pending::<()>().await;
        }
        answer
    }
}

impl Bank for FaultyBank {
    fn call(
        &self,
        envelope: Envelope,
        request: Request,
        bulk: Vec<Bytes>,
        deadline: Duration,
    ) -> BoxFuture<'_, Result<(Reply, Bytes), BankError>> {
        let fate = self.draw();
        Box::pin(async move {
            if fate.refuse {
                return Err(BankError::Unreachable("cut by a test".into()));
            }
            if fate.arrive_late {
                self.send_later(deadline + fate.before, envelope, request, bulk, deadline);
                tokio::time::sleep(deadline).await;
                return Err(BankError::Timeout);
            }
            if fate.lose_request {
                tokio::time::sleep(deadline).await;
                return Err(BankError::Timeout);
            }
            let attempt = self.attempt(fate, envelope, request, bulk, deadline);
            tokio::time::timeout(deadline, attempt).await.unwrap_or(Err(BankError::Timeout))
        })
    }

    fn name(&self) -> String {
        format!("faulty {}", self.inner.name())
    }
}
