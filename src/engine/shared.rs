//! What is made at a price and then shared by all who use it.
//!
//! Invariant: there is one of each, in the cache or held by somebody; what nobody holds is within the cache's bound, least
//! recently used out first.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

pub type Cache<K, T> = moka::sync::Cache<K, Arc<T>>;

pub struct OneOfEach<K, T> {
    cache: Cache<K, T>,
    /// Those that somebody holds, in the cache or not.
    alive: Mutex<HashMap<K, Weak<T>>>,
}

impl<K: Copy + Eq + Hash + Send + Sync + 'static, T: Send + Sync + 'static> OneOfEach<K, T> {
    pub fn new(bytes: u64, size: fn(&T) -> u64) -> Self {
        Self { cache: cache(bytes, size), alive: Mutex::default() }
    }

    pub fn get(&self, key: K) -> Option<Arc<T>> {
        self.cache.get(&key).or_else(|| {
            let alive = self.alive.lock().get(&key).and_then(Weak::upgrade)?;
            self.cache.insert(key, alive.clone());
            Some(alive)
        })
    }

    pub fn put(&self, key: K, one: Arc<T>) {
        let mut alive = self.alive.lock();
        alive.retain(|_, one| one.strong_count() > 0);
        alive.insert(key, Arc::downgrade(&one));
        drop(alive);
        self.cache.insert(key, one);
    }

    pub fn forget(&self, key: K) {
        self.alive.lock().remove(&key);
        self.cache.invalidate(&key);
    }

    /// Of those in memory.
    pub fn keys<C: FromIterator<K>>(&self) -> C {
        self.alive.lock().iter().filter(|(_, one)| one.strong_count() > 0).map(|(key, _)| *key).collect()
    }

    /// In the cache.
    pub fn count(&self) -> u64 {
        self.cache.entry_count()
    }
}

/// Bounded by the sizes of what is in it, least recently used out first.
pub fn cache<K: Eq + Hash + Send + Sync + 'static, T: Send + Sync + 'static>(
    bytes: u64,
    size: fn(&T) -> u64,
) -> Cache<K, T> {
    moka::sync::Cache::builder()
        .max_capacity(bytes)
        .weigher(move |_, one: &Arc<T>| u32::try_from(size(one)).unwrap_or(u32::MAX))
        .eviction_policy(moka::policy::EvictionPolicy::lru())
        .build()
}
