//! Small reads of a shard that come while others of it are under way wait for one of these to end and
//! then go in one message: as group commit does for syncs, reads of many threads share the cost of
//! messages, and a single reader waits for nobody.

use crate::read::{self, Voted};
use crate::replicated::Nodes;
use crate::shared::Shared;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use storenode::background;
use storenode::wire::{BankId, Keys};
use tokio::sync::oneshot;
use tokio::time::Instant;

/// A read of more keys goes alone.
const SMALL_MAX: usize = 4;
/// Keys that go together, at most: with values of 1 MiB they fit into one reply.
const TOGETHER_MAX: usize = 16;
/// Messages under way for small reads of one shard, before others wait.
const UNDER_WAY_MAX: usize = 4;

/// The small reads of one shard.
#[derive(Default)]
pub(crate) struct Together(Mutex<Queue>);

impl Together {
    /// One for each shard.
    pub(crate) fn of(nodes: &Nodes) -> Vec<Self> {
        nodes.banks[BankId::A].iter().map(|_| Self::default()).collect()
    }
}

#[derive(Default)]
struct Queue {
    under_way: usize,
    waiting: VecDeque<Waiting>,
}

/// The verdicts; or whose turn it was, where not all keys got one from two banks at once. They are asked
/// for alone then, so that a key that nobody can decide, or only late, holds up nobody else's; and the same
/// banks first, so that the copy that differs is seen and mended.
type Answer = Result<Vec<Voted>, usize>;

struct Waiting {
    keys: Keys,
    answer: oneshot::Sender<Answer>,
}

impl Queue {
    /// Reads to go together next; not those that nobody waits for any more.
    fn take(&mut self) -> Vec<Waiting> {
        self.waiting.retain(|w| !w.answer.is_closed());
        let mut keys = 0;
        let n = self.waiting.iter().take_while(|w| {
            keys += w.keys.len();
            keys <= TOGETHER_MAX
        });
        let n = n.count();
        self.waiting.drain(..n).collect()
    }
}

/// The right to have a message under way. Hands it on when it ends, however it ends.
struct Turn {
    shared: Arc<Shared>,
    shard: u16,
}

impl Turn {
    fn queue(&self) -> &Mutex<Queue> {
        &self.shared.together[usize::from(self.shard)].0
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut queue = self.queue().lock();
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            // Everything ends; who waits is told by the dropped sender.
            queue.waiting.clear();
            queue.under_way -= 1;
            return;
        };
        let next = queue.take();
        if next.is_empty() {
            queue.under_way -= 1;
            return;
        }
        drop(queue);
        let turn = Turn { shared: self.shared.clone(), shard: self.shard };
        runtime.spawn(async move {
            let keys: Keys = next.iter().flat_map(|w| w.keys.iter().cloned()).collect();
            let limit = Instant::now() + turn.shared.limits.read_deadline();
            let first = turn.shared.next_turn();
            let voted = read::vote_once(&turn.shared, turn.shard, &keys, first, limit).await;
            // The next ones go while these are handed out.
            drop(turn);
            let mut voted = voted.into_iter();
            for w in next {
                // Taken before it is looked at: one without a verdict must not shift the others.
                let own: Vec<_> = voted.by_ref().take(w.keys.len()).collect();
                let own: Option<Vec<_>> = own.into_iter().collect();
                let _ = w.answer.send(own.ok_or(first));
            }
        });
    }
}

/// What a small read has to do.
enum Place {
    Go(Turn),
    Wait(oneshot::Receiver<Answer>),
}

/// Votes on keys of one shard until `limit`, with others who ask at the same time. An error: ask alone, in
/// this turn.
pub(crate) async fn vote(shared: &Arc<Shared>, shard: u16, keys: &Keys, limit: Instant) -> Answer {
    let first = shared.next_turn();
    // What nobody waits for does not take others along into the background.
    if keys.len() > SMALL_MAX || background::is_here() {
        return Err(first);
    }
    let place = {
        let mut queue = shared.together[usize::from(shard)].0.lock();
        if queue.under_way < UNDER_WAY_MAX {
            queue.under_way += 1;
            Place::Go(Turn { shared: shared.clone(), shard })
        } else {
            let (answer, receiver) = oneshot::channel();
            queue.waiting.push_back(Waiting { keys: keys.clone(), answer });
            Place::Wait(receiver)
        }
    };
    match place {
        Place::Go(turn) => {
            let voted = read::vote_once(shared, shard, keys, first, limit).await;
            drop(turn);
            voted.into_iter().collect::<Option<Vec<_>>>().ok_or(first)
        }
        Place::Wait(receiver) => match tokio::time::timeout_at(limit, receiver).await {
            Ok(Ok(answer)) => answer,
            _ => Err(first),
        },
    }
}
