//! Loaded modules in memory, and whose turn it is to load one.
//!
//! Invariant: bounded by the size of artifacts, least recently used out first; one load of a digest at a time.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::OwnedMutexGuard;

use crate::domain::{Abi, Digest};

use super::LoadedModule;
use super::shared::{self, Cache, OneOfEach};

/// Inline modules may use this share of the cache on top.
const INLINE_SHARE: u64 = 4;

pub struct Modules {
    /// So that better code reaches all who hold one.
    stored: OneOfEach<(Digest, Abi), LoadedModule>,
    inline: Cache<(Digest, Abi), LoadedModule>,
    turns: Arc<Turns>,
    inline_turns: Arc<Turns>,
}

/// Digests that are being loaded, stored or removed. Holds only those.
type Turns = Mutex<HashMap<Digest, Arc<tokio::sync::Mutex<()>>>>;

/// The right to load, store or remove a digest.
pub struct Turn {
    guard: Option<OwnedMutexGuard<()>>,
    digest: Digest,
    turns: Arc<Turns>,
}

impl Modules {
    pub fn new(bytes: u64) -> Modules {
        Modules {
            stored: OneOfEach::new(bytes, LoadedModule::code_bytes),
            inline: shared::cache(bytes / INLINE_SHARE, LoadedModule::code_bytes),
            turns: Arc::default(),
            inline_turns: Arc::default(),
        }
    }

    pub fn get(&self, digest: Digest, abi: Abi) -> Option<Arc<LoadedModule>> {
        self.stored.get((digest, abi))
    }

    pub fn get_inline(&self, digest: Digest, abi: Abi) -> Option<Arc<LoadedModule>> {
        self.inline.get(&(digest, abi))
    }

    pub fn put(&self, module: Arc<LoadedModule>) {
        self.stored.put((module.digest(), module.abi()), module);
    }

    pub fn put_inline(&self, module: Arc<LoadedModule>) {
        self.inline.insert((module.digest(), module.abi()), module);
    }

    pub fn forget(&self, digest: Digest) {
        for abi in Abi::ALL {
            self.stored.forget((digest, abi));
        }
    }

    /// Stored ones that are in memory.
    pub fn loaded(&self) -> HashSet<Digest> {
        self.stored.keys::<Vec<_>>().into_iter().map(|(digest, _)| digest).collect()
    }

    pub fn count(&self) -> u64 {
        self.stored.count() + self.inline.entry_count()
    }

    pub async fn turn(&self, digest: Digest) -> Turn {
        Turn::take(&self.turns, digest).await
    }

    /// For modules that are not stored: whoever removes a stored one does not wait for their compiles.
    pub async fn turn_inline(&self, digest: Digest) -> Turn {
        Turn::take(&self.inline_turns, digest).await
    }
}

impl Turn {
    async fn take(turns: &Arc<Turns>, digest: Digest) -> Turn {
        let lock = turns.lock().entry(digest).or_default().clone();
        let mut turn = Turn { guard: None, digest, turns: turns.clone() };
        turn.guard = Some(lock.lock_owned().await);
        turn
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.guard.take();
        let mut turns = self.turns.lock();
        if turns.get(&self.digest).is_some_and(|lock| Arc::strong_count(lock) == 1) {
            turns.remove(&self.digest);
        }
    }
}
