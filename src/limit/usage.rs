//! Usage is gathered in memory and written in batches by the app's ticker; a request only adds to a sharded map.
//!
//! Invariant: what a `drain` returned is no longer here; who called it writes it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::spread;
use crate::domain::{KeyId, Name, OwnerId, UsageDelta, UsageRecord};

const SHARDS: usize = 16;
/// Rows a shard holds between two flushes; further keys are added to the owner's row of unnamed keys.
const MAX_ROWS: usize = 10_000;

/// Modules whose runs a shard holds between two flushes; runs of further ones are not counted.
const MAX_MODULES: usize = 10_000;

/// A key's rows: one, or two around midnight.
type Rows = HashMap<KeyId, Vec<UsageDelta>>;
type Runs = HashMap<(OwnerId, Name), u64>;

/// All of it, as it can be kept.
#[derive(Default, Serialize, Deserialize)]
pub struct Gathered {
    usage: Vec<UsageDelta>,
    runs: Vec<((OwnerId, Name), u64)>,
}

#[derive(Default)]
pub struct UsageRecorder {
    shards: [Mutex<Rows>; SHARDS],
    runs: [Mutex<Runs>; SHARDS],
}

impl UsageRecorder {
    pub fn record(&self, owner: &OwnerId, key: &KeyId, day: i64, add: &UsageRecord) {
        let mut shard = self.shards[spread(key.as_str()) as usize % SHARDS].lock();
        let is_it = |row: &&mut UsageDelta| row.day == day && row.owner == *owner;
        if let Some(row) = shard.get_mut(key).and_then(|rows| rows.iter_mut().find(is_it)) {
            row.add.merge(add);
            return;
        }
        let key = if shard.len() < MAX_ROWS { key.clone() } else { "other".into() };
        let rows = shard.entry(key.clone()).or_default();
        match rows.iter_mut().find(is_it) {
            Some(row) => row.add.merge(add),
            None => rows.push(UsageDelta { owner: owner.clone(), key, day, add: add.clone() }),
        }
    }

    /// Takes all that has come since the last call.
    pub fn drain(&self) -> Vec<UsageDelta> {
        self.shards.iter().flat_map(|shard| std::mem::take(&mut *shard.lock()).into_values().flatten()).collect()
    }

    /// Runs of a stored module, by the execute endpoint and by routes.
    pub fn record_runs(&self, owner: &OwnerId, name: &Name, n: u64) {
        let mut runs = self.runs[spread(name.as_str()) as usize % SHARDS].lock();
        let full = runs.len() >= MAX_MODULES;
        match runs.entry((owner.clone(), name.clone())) {
            Entry::Occupied(sum) => *sum.into_mut() += n,
            Entry::Vacant(_) if full => {}
            Entry::Vacant(sum) => {
                sum.insert(n);
            }
        }
    }

    /// As [`Self::drain`], of what `record_runs` gathered.
    pub fn drain_runs(&self) -> Vec<((OwnerId, Name), u64)> {
        self.runs.iter().flat_map(|shard| std::mem::take(&mut *shard.lock())).collect()
    }

    /// It stays here.
    pub fn gathered(&self) -> Gathered {
        let usage = self.shards.iter().flat_map(|shard| shard.lock().values().flatten().cloned().collect::<Vec<_>>());
        let runs =
            self.runs.iter().flat_map(|shard| shard.lock().iter().map(|(of, n)| (of.clone(), *n)).collect::<Vec<_>>());
        Gathered { usage: usage.collect(), runs: runs.collect() }
    }

    /// What an earlier run of the process had gathered.
    pub fn restore(&self, gathered: Gathered) {
        for UsageDelta { owner, key, day, add } in &gathered.usage {
            self.record(owner, key, *day, add);
        }
        for ((owner, name), n) in &gathered.runs {
            self.record_runs(owner, name, *n);
        }
    }
}
