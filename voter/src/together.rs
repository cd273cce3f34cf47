//! Small reads of a shard that come while others of it are under way wait for one of these to end and
//! then go in one message: as group commit does for syncs, reads of many threads share the cost of
//! messages, and a single reader waits for nobody.

use crate::read::{self, Voted};
use crate::replicated::Nodes;
use crate::shared::Shared;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use storenode::wire::{BankId, Key};
use tokio::sync::oneshot;

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

struct Waiting {
    keys: Vec<Key>,
    /// Dropped without an answer where they did not all get a verdict at once: each asks for itself then,
    /// so that a key that nobody can decide, or only late, holds up nobody else's.
    answer: oneshot::Sender<Vec<Voted>>,
}

impl Queue {
    /// Reads to go together next.
    fn take(&mut self) -> Vec<Waiting> {
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
        // Without a runtime everything ends; who waits is told by the dropped sender.
        let runtime = tokio::runtime::Handle::try_current().ok();
        let next = queue.take();
        let Some(runtime) = runtime.filter(|_| !next.is_empty()) else {
            queue.under_way -= 1;
            return;
        };
        drop(queue);
        let turn = Turn { shared: self.shared.clone(), shard: self.shard };
        runtime.spawn(async move {
            let keys: Vec<Key> = next.iter().flat_map(|w| w.keys.iter().cloned()).collect();
            let voted = read::vote_once(&turn.shared, turn.shard, &keys).await;
            // The next ones go while these are handed out.
            drop(turn);
            let Some(mut voted) = voted else { return };
            for w in next.into_iter().rev() {
                let own = voted.split_off(voted.len() - w.keys.len());
                let _ = w.answer.send(own);
            }
        });
    }
}

/// What a small read has to do.
enum Place {
    Go(Turn),
    Wait(oneshot::Receiver<Vec<Voted>>),
}

/// Votes on keys of one shard, with others who ask at the same time; `None` = ask alone.
pub(crate) async fn vote(shared: &Arc<Shared>, shard: u16, keys: &[Key]) -> Option<Vec<Voted>> {
    if keys.len() > SMALL_MAX {
        return None;
    }
    let place = {
        let mut queue = shared.together[usize::from(shard)].0.lock();
        if queue.under_way < UNDER_WAY_MAX {
            queue.under_way += 1;
            Place::Go(Turn { shared: shared.clone(), shard })
        } else {
            let (answer, receiver) = oneshot::channel();
            queue.waiting.push_back(Waiting { keys: keys.to_vec(), answer });
            Place::Wait(receiver)
        }
    };
    match place {
        Place::Go(turn) => {
            let voted = read::vote_once(shared, shard, keys).await;
            drop(turn);
            voted
        }
        Place::Wait(receiver) => receiver.await.ok(),
    }
}
