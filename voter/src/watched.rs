//! A value that tasks wait to change: `tokio::sync::watch` in small, waking its waiters in the order
//! in which they came. (The original spreads them at random, and the simulation of the whole stack
//! must be the same run for the same seed; see docs/adr/0014-simulation.md.)

use parking_lot::Mutex;
use std::sync::Arc;
use tokio::sync::Notify;

#[derive(Debug)]
struct Inner<T> {
    /// The value, and how often it was set.
    state: Mutex<(T, u64)>,
    bell: Notify,
}

/// The value; lives as long as anybody waits for it.
#[derive(Debug)]
pub(crate) struct Watched<T>(Arc<Inner<T>>);

/// One waiter: has seen the value as it was when it subscribed.
#[derive(Debug)]
pub(crate) struct Watcher<T> {
    inner: Arc<Inner<T>>,
    seen: u64,
}

impl<T: Copy> Watched<T> {
    /// A value that nobody waits for yet.
    pub(crate) fn new(value: T) -> Self {
        Self(Arc::new(Inner { state: Mutex::new((value, 0)), bell: Notify::new() }))
    }

    /// The value now.
    pub(crate) fn get(&self) -> T {
        self.0.state.lock().0
    }

    /// Sets it and wakes all who wait.
    pub(crate) fn set(&self, value: T) {
        self.modify(|v| *v = value);
    }

    /// Changes it in place (or not at all) and wakes all who wait.
    pub(crate) fn modify(&self, f: impl FnOnce(&mut T)) {
        {
            let mut state = self.0.state.lock();
            f(&mut state.0);
            state.1 += 1;
        }
        self.0.bell.notify_waiters();
    }

    /// Sets it, unless what stands there is later: of two who tell of their news at the same time, the one
    /// with the older news may come last.
    pub(crate) fn raise(&self, value: T)
    where
        T: Ord,
    {
        self.modify(|v| *v = value.max(*v));
    }

    /// A waiter for changes from now on.
    pub(crate) fn subscribe(&self) -> Watcher<T> {
        Watcher { inner: Arc::clone(&self.0), seen: self.0.state.lock().1 }
    }
}

impl<T: Copy> Watcher<T> {
    /// The value now, which counts as seen.
    pub(crate) fn get(&mut self) -> T {
        let state = self.inner.state.lock();
        self.seen = state.1;
        state.0
    }

    /// Waits until it was set since it was last seen; that counts as seen then.
    pub(crate) async fn changed(&mut self) {
        loop {
            let mut rung = std::pin::pin!(self.inner.bell.notified());
            // Registered before the look, so that a change in between is not missed.
            rung.as_mut().enable();
            {
                let times = self.inner.state.lock().1;
                if times != self.seen {
                    self.seen = times;
                    return;
                }
            }
            rung.await;
        }
    }

    /// Waits until the value is such.
    pub(crate) async fn wait_for(&mut self, such: impl Fn(T) -> bool) {
        while !such(self.get()) {
            self.changed().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test]
    async fn no_change_is_missed_and_none_is_seen_twice() {
        let value = Watched::new(0);
        let mut early = value.subscribe();
        value.set(1);
        value.set(2);
        early.changed().await;
        assert_eq!(early.get(), 2);
        let again = tokio::time::timeout(Duration::from_millis(5), early.changed()).await;
        assert!(again.is_err(), "seen already");
        let waiter = tokio::spawn(async move { early.wait_for(|v| v == 4).await });
        tokio::task::yield_now().await;
        value.set(3);
        value.modify(|v| *v += 1);
        waiter.await.unwrap();
        assert_eq!(value.get(), 4);
    }

    #[test]
    fn late_news_does_not_take_it_back() {
        let value = Watched::new(9);
        let all = [11, 10].map(|news| {
            value.raise(news);
            value.get()
        });
        assert_eq!(all, [11, 11]);
    }
}
