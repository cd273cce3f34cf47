//! Places for connections. Whoever has shown the token keeps its place; when none is free, the oldest
//! connection that has not makes room: strangers that connect and say nothing keep nobody out.

use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// A bounded number of places.
#[derive(Clone)]
pub(super) struct Places {
    free: Arc<Semaphore>,
    strangers: Arc<Mutex<Strangers>>,
}

/// Connections that have not shown the token, by age.
#[derive(Default)]
struct Strangers {
    next: u64,
    by_age: BTreeMap<u64, Arc<Notify>>,
}

/// The place of one connection; free again when dropped.
pub(super) struct Place {
    age: u64,
    of: Arc<Mutex<Strangers>>,
    wanted: Arc<Notify>,
    _place: Option<OwnedSemaphorePermit>,
}

impl Places {
    pub(super) fn new(n: usize) -> Self {
        Self { free: Arc::new(Semaphore::new(n)), strangers: Arc::default() }
    }

    /// A place; if there is none, the oldest stranger's.
    pub(super) async fn take(&self) -> Place {
        if self.free.available_permits() == 0
            && let Some((_, oldest)) = self.strangers.lock().by_age.pop_first()
        {
            oldest.notify_one();
        }
        let place = Arc::clone(&self.free).acquire_owned().await.ok();
        let wanted = Arc::new(Notify::new());
        let mut strangers = self.strangers.lock();
        strangers.next += 1;
        let age = strangers.next;
        strangers.by_age.insert(age, Arc::clone(&wanted));
        Place { age, of: Arc::clone(&self.strangers), wanted, _place: place }
    }
}

impl Place {
    /// Its holder has shown the token: it is not given away any more. False = it was already.
    pub(super) fn keep(&self) -> bool {
        self.of.lock().by_age.remove(&self.age).is_some()
    }

    /// Returns when somebody else is to have this place.
    pub(super) async fn wanted(&self) {
        self.wanted.notified().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.keep();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::time::timeout;

    #[tokio::test]
    async fn the_oldest_stranger_makes_room_and_who_is_known_does_not() {
        let places = Places::new(2);
        let (known, second) = (places.take().await, places.take().await);
        assert!(known.keep());
        let third = {
            let places = places.clone();
            tokio::spawn(async move { places.take().await })
        };
        second.wanted().await;
        assert!(!second.keep(), "too late");
        drop(second);
        let third = third.await.unwrap();
        assert!(timeout(Duration::from_millis(20), known.wanted()).await.is_err());
        assert!(third.keep());
        // Both are known: nobody makes room.
        assert!(timeout(Duration::from_millis(20), places.take()).await.is_err());
        drop(known);
        places.take().await;
        assert_eq!(places.strangers.lock().by_age.len(), 0);
    }
}
