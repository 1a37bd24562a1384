//! How many runs of one module may be under way at once, and the line before that.
//!
//! Invariant: who has a [`Pass`] is one of at most so many; who waits does so in the order of asking, for the queue's time
//! and in a line of the queue's length, and leaves it by dropping the future.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::RunError;
use super::counted::Counted;
use crate::domain::{Digest, OwnerId};

/// So many at once.
pub struct Gate {
    permits: Arc<Semaphore>,
    waiting: AtomicUsize,
}

impl Gate {
    pub fn new(cap: usize) -> Gate {
        Gate { permits: Arc::new(Semaphore::new(cap.clamp(1, Semaphore::MAX_PERMITS))), waiting: AtomicUsize::new(0) }
    }

    /// Unless others wait.
    pub fn enter_now(&self) -> Option<OwnedSemaphorePermit> {
        self.permits.clone().try_acquire_owned().ok()
    }

    /// `Busy` after the queue's time, and at once when the line is full.
    pub async fn enter(&self, config: &crate::config::Engine) -> Result<OwnedSemaphorePermit, RunError> {
        if let Some(permit) = self.enter_now() {
            return Ok(permit);
        }
        let busy = RunError::Busy { retry_after: config.queue_timeout.max(Duration::from_secs(1)) };
        let place = Counted::enter(&self.waiting, config.queue).ok_or(busy.clone())?;
        let in_time = tokio::time::timeout(config.queue_timeout, self.permits.clone().acquire_owned()).await;
        drop(place);
        in_time.ok().and_then(Result::ok).ok_or(busy)
    }
}

/// Whose run, of which module, and how many of those there may be: where that changes, a new gate is for the new number.
type Key = (OwnerId, Digest, u32);

/// The gates of modules whose runs are under way or waiting. Holds only those.
#[derive(Default)]
pub struct Instances {
    gates: Mutex<HashMap<Key, Arc<Gate>>>,
}

/// Held by a run, and while it waits to become one.
pub struct Pass<'a> {
    instances: &'a Instances,
    key: Key,
    /// `None` from its drop on.
    gate: Option<Arc<Gate>>,
    permit: Option<OwnedSemaphorePermit>,
}

impl Instances {
    pub async fn enter(&self, key: Key, config: &crate::config::Engine) -> Result<Pass<'_>, RunError> {
        let cap = usize::try_from(key.2).unwrap_or(usize::MAX);
        let gate = self.gates.lock().entry(key.clone()).or_insert_with(|| Arc::new(Gate::new(cap))).clone();
        let mut pass = Pass { instances: self, key, gate: Some(gate), permit: None };
        if let Some(gate) = &pass.gate {
            pass.permit = Some(gate.enter(config).await?);
        }
        Ok(pass)
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        self.permit.take();
        let mut gates = self.instances.gates.lock();
        // Under the lock, where alone gates are handed out: the last one to go sees that it is.
        self.gate.take();
        if gates.get(&self.key).is_some_and(|gate| Arc::strong_count(gate) == 1) {
            gates.remove(&self.key);
        }
    }
}
