//! How many runs of one module may be under way at once, and the line before that.
//!
//! Invariant: who has a [`Pass`] is one of at most so many; who waits does so in the order of asking, for the queue's time
//! and in a line of the queue's length, and leaves it by dropping the future.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::RunError;
use crate::domain::{Digest, OwnerId};

/// So many at once as each who asks says: who allows fewer waits longer.
#[derive(Default)]
pub struct Gate {
    line: Mutex<Line>,
}

#[derive(Default)]
struct Line {
    inside: usize,
    waiting: VecDeque<Waiting>,
}

struct Waiting {
    cap: usize,
    turn: oneshot::Sender<Permit>,
}

/// One place inside.
pub struct Permit(Arc<Gate>);

impl Gate {
    /// Unless there are so many already, or somebody waits who may go first.
    pub fn enter_now(self: &Arc<Gate>, cap: usize) -> Option<Permit> {
        let mut line = self.line.lock();
        let enters = line.inside < cap;
        line.inside += usize::from(enters);
        enters.then(|| Permit(self.clone()))
    }

    /// `Busy` after the queue's time, and at once when the line is full.
    pub async fn enter(self: &Arc<Gate>, cap: usize, config: &crate::config::Engine) -> Result<Permit, RunError> {
        let busy = RunError::Busy { retry_after: config.queue_timeout.max(Duration::from_secs(1)) };
        let turn = {
            let mut line = self.line.lock();
            if line.inside < cap {
                line.inside += 1;
                return Ok(Permit(self.clone()));
            }
            if line.waiting.len() >= config.queue {
                line.waiting.retain(|waiting| !waiting.turn.is_closed());
            }
            if line.waiting.len() >= config.queue {
                return Err(busy);
            }
            let (sender, turn) = oneshot::channel();
            line.waiting.push_back(Waiting { cap, turn: sender });
            turn
        };
        tokio::time::timeout(config.queue_timeout, turn).await.ok().and_then(Result::ok).ok_or(busy)
    }

    /// The first in the line who may.
    fn next(&self) -> Option<oneshot::Sender<Permit>> {
        let mut line = self.line.lock();
        line.waiting.retain(|waiting| !waiting.turn.is_closed());
        let inside = line.inside;
        let next = line.waiting.iter().position(|waiting| inside < waiting.cap)?;
        let next = line.waiting.remove(next)?;
        line.inside += 1;
        Some(next.turn)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.line.lock().inside -= 1;
        while let Some(turn) = self.0.next() {
            // Who has gone just now leaves again by dropping it.
            let _ = turn.send(Permit(self.0.clone()));
        }
    }
}

/// Whose runs, of which module.
type Key = (OwnerId, Digest);

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
    permit: Option<Permit>,
}

impl Instances {
    /// `cap`: how many of those there may be with this one, whatever number the others came with.
    pub async fn enter(&self, key: Key, cap: u32, config: &crate::config::Engine) -> Result<Pass<'_>, RunError> {
        let cap = usize::try_from(cap).unwrap_or(usize::MAX).max(1);
        let gate = self.gates.lock().entry(key.clone()).or_default().clone();
        let mut pass = Pass { instances: self, key, gate: Some(gate), permit: None };
        if let Some(gate) = &pass.gate {
            pass.permit = Some(gate.enter(cap, config).await?);
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
