//! Which compiles are under way and which wait, for whoever operates the gateway.
//!
//! Invariant: a compile is listed exactly while its future lives, so there are no more than requests that want one.

use std::collections::BTreeMap;

use parking_lot::Mutex;

use super::Compiler;
use crate::domain::{Digest, OwnerId, Timestamp};

/// What one of them is.
#[derive(Clone, Debug)]
pub struct Compile {
    pub digest: Digest,
    /// Who asked; `None`: the gateway itself.
    pub owner: Option<OwnerId>,
    pub compiler: Compiler,
    /// Of the module.
    pub bytes: u64,
    /// Since when it waits, or has its process.
    pub since: Timestamp,
}

/// All of a moment, those asked for first first.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// At most as many as were asked for of each.
    pub running: Vec<Compile>,
    pub waiting: Vec<Compile>,
    pub waiting_total: usize,
}

#[derive(Default)]
pub struct Progress {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    next: u64,
    waiting: BTreeMap<u64, Compile>,
    running: BTreeMap<u64, Compile>,
}

/// Its place in the list; left by dropping it.
pub struct Listed<'a> {
    progress: &'a Progress,
    number: u64,
}

impl Progress {
    pub fn waits(&self, digest: Digest, owner: Option<&OwnerId>, compiler: Compiler, bytes: usize) -> Listed<'_> {
        let since = Timestamp::now();
        let compile = Compile { digest, owner: owner.cloned(), compiler, bytes: bytes as u64, since };
        let mut state = self.state.lock();
        let number = state.next;
        state.next += 1;
        state.waiting.insert(number, compile);
        Listed { progress: self, number }
    }

    pub fn running(&self) -> u64 {
        self.state.lock().running.len() as u64
    }

    pub fn snapshot(&self, most: usize) -> Snapshot {
        let state = self.state.lock();
        let first = |of: &BTreeMap<u64, Compile>| of.values().take(most).cloned().collect();
        Snapshot { running: first(&state.running), waiting: first(&state.waiting), waiting_total: state.waiting.len() }
    }
}

impl Listed<'_> {
    /// It has its process.
    pub fn runs(&self) {
        let mut state = self.progress.state.lock();
        if let Some(compile) = state.waiting.remove(&self.number) {
            state.running.insert(self.number, Compile { since: Timestamp::now(), ..compile });
        }
    }
}

impl Drop for Listed<'_> {
    fn drop(&mut self) {
        let mut state = self.progress.state.lock();
        state.waiting.remove(&self.number);
        state.running.remove(&self.number);
    }
}
