//! Stops a guest whose caller has gone: at its next slice of fuel, in its sleep, or before its turn came.
//!
//! Invariant: a stopped run ends as every other does, with a meter, so what it used is still charged.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use tokio::sync::Notify;

/// Shared by the caller and all that runs for it. Once set, it stays.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    cancelled: AtomicBool,
    /// For guest threads that sleep.
    sleepers: Mutex<()>,
    wake: Condvar,
    /// For tasks.
    tasks: Notify,
}

impl Cancel {
    pub fn cancel(&self) {
        self.0.cancelled.store(true, Ordering::Release);
        // With the lock nobody is between looking at the flag and falling asleep.
        drop(self.0.sleepers.lock());
        self.0.wake.notify_all();
        self.0.tasks.notify_waiters();
    }

    pub fn is_cancelled(&self) -> bool {
        self.0.cancelled.load(Ordering::Acquire)
    }

    /// Blocks the thread for so long, or until the caller has gone.
    pub fn sleep(&self, wanted: Duration) {
        let until = Instant::now() + wanted;
        let mut turn = self.0.sleepers.lock();
        while !self.is_cancelled() && !self.0.wake.wait_until(&mut turn, until).timed_out() {}
    }

    /// Resolves when the caller has gone.
    pub async fn cancelled(&self) {
        let mut told = std::pin::pin!(self.0.tasks.notified());
        told.as_mut().enable();
        if !self.is_cancelled() {
            told.await;
        }
    }

    /// `work`, or `None` when the caller has gone before its end; the rest of it is dropped.
    pub async fn or_cancelled<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            done = work => Some(done),
            () = self.cancelled() => None,
        }
    }
}
