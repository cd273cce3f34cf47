//! A thread for what nobody waits for: copies, refreshes, looking behind reads. Its priority is lower than that
//! of all others, and so is that of its messages in the nodes ([`storenode::background`]).

use std::io;
use std::sync::mpsc;
use storenode::background;
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

/// See the module. The thread ends when this is dropped.
pub(crate) struct Background {
    runtime: Handle,
    _ends: Option<oneshot::Sender<()>>,
}

impl Background {
    /// A thread of its own; when none can be had, what calls this does the work as well.
    pub(crate) fn start() -> Self {
        let (ends, ended) = oneshot::channel::<()>();
        let (tell, told) = mpsc::channel();
        // Made and dropped there: a runtime may not be dropped in a task of another.
        let work = move || {
            background::enter();
            let runtime = match Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime,
                Err(e) => return drop(tell.send(Err(e))),
            };
            let _ = tell.send(Ok(runtime.handle().clone()));
            // Only the other side's end ends it.
            let _ = runtime.block_on(ended);
        };
        let started = std::thread::Builder::new().name("background".into()).spawn(work);
        let gone = |_| Err(io::Error::other("its thread ended"));
        match started.and_then(|_| told.recv().unwrap_or_else(gone)) {
            Ok(runtime) => Self { runtime, _ends: Some(ends) },
            Err(e) => {
                tracing::warn!(error = %e, "no thread for background work");
                Self::none()
            }
        }
    }

    /// The current runtime does everything.
    pub(crate) fn none() -> Self {
        Self { runtime: Handle::current(), _ends: None }
    }

    /// Where tasks of the background are spawned.
    pub(crate) fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// Does `work` there; it is given up when this is dropped. `None` when it panicked, or everything ends.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Option<T> {
        let mut only = JoinSet::new();
        only.spawn_on(work, &self.runtime);
        only.join_next().await?.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::time::Duration;

    #[tokio::test]
    async fn work_is_done_there_and_given_up_with_whoever_waits_for_it() {
        for (own, there) in [(Background::start(), true), (Background::none(), false)] {
            assert_eq!(own.run(async { background::is_here() }).await, Some(there));
            assert!(!background::is_here());
            let held = Arc::new(());
            let inside = held.clone();
            let long = own.run(async move {
                let _inside = inside;
                std::future::pending::<()>().await;
            });
            assert!(tokio::time::timeout(Duration::from_millis(20), long).await.is_err());
            while Arc::strong_count(&held) > 1 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            assert_eq!(own.run(async { panic!("asked to") }).await, None::<()>);
            assert_eq!(own.run(async { 7 }).await, Some(7), "it goes on");
        }
    }

    #[tokio::test]
    async fn the_end_of_it_ends_what_is_there() {
        let own = Background::start();
        let there = own.runtime().spawn(std::future::pending::<()>());
        drop(own);
        assert!(there.await.unwrap_err().is_cancelled());
    }
}
