//! Draining: how a connection learns of it, and how the server learns that the last one is gone.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use pingora::server::ShutdownWatch;
use tokio::sync::Notify;

/// An idle kept-alive connection may send one more request in this time after the drain began: a client that was
/// just about to reuse it gets its answer (with `Connection: close`) instead of a reset.
pub const IDLE_GRACE: Duration = Duration::from_millis(500);

/// One connection's view of the drain.
#[derive(Clone)]
pub struct Drain(pub ShutdownWatch);

impl Drain {
    /// `None`: the drain began and [`IDLE_GRACE`] is over.
    pub async fn or_closing<F: Future>(&mut self, work: F) -> Option<F::Output> {
        tokio::select! {
            biased;
            out = work => Some(out),
            () = Self::closing(&mut self.0) => None,
        }
    }

    async fn closing(watch: &mut ShutdownWatch) {
        while !*watch.borrow_and_update() {
            if watch.changed().await.is_err() {
                return;
            }
        }
        pingora::prelude::sleep(IDLE_GRACE).await;
    }
}

/// Counts what is open; the holder of the last [`Open`] wakes who waits.
#[derive(Default)]
pub struct OpenCount {
    n: AtomicUsize,
    none: Notify,
}

pub struct Open(Arc<OpenCount>);

impl OpenCount {
    pub fn open(self: &Arc<Self>) -> Open {
        self.n.fetch_add(1, Ordering::AcqRel);
        Open(self.clone())
    }

    pub async fn none_left(&self) {
        loop {
            let notified = self.none.notified();
            tokio::pin!(notified);
            notified.as_mut().enable();
            if self.n.load(Ordering::Acquire) == 0 {
                return;
            }
            notified.await;
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if self.0.n.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.none.notify_waiters();
        }
    }
}
