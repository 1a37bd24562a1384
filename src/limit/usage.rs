//! Usage is gathered in memory and written in batches by the app's ticker; a request only adds to a sharded map.
//!
//! Invariant: what a `drain` returned is no longer here; a failed write is given back with `record`.

use std::collections::HashMap;
use std::collections::hash_map::{DefaultHasher, Entry};
use std::hash::{Hash, Hasher};

use parking_lot::Mutex;

use crate::domain::{KeyId, Name, OwnerId, UsageDelta, UsageRecord};

const SHARDS: usize = 16;
/// Keys a shard holds between two flushes; further ones are added to the owner's row of unnamed keys.
const MAX_ROWS: usize = 10_000;

/// Modules whose runs a shard holds between two flushes; runs of further ones are not counted.
const MAX_MODULES: usize = 10_000;

type Rows = HashMap<(OwnerId, KeyId, i64), UsageRecord>;
type Runs = HashMap<(OwnerId, Name), u64>;

#[derive(Default)]
pub struct UsageRecorder {
    shards: [Mutex<Rows>; SHARDS],
    runs: [Mutex<Runs>; SHARDS],
}

impl UsageRecorder {
    pub fn record(&self, owner: &OwnerId, key: &KeyId, day: i64, add: &UsageRecord) {
        let mut rows = self.shards[shard(key)].lock();
        let full = rows.len() >= MAX_ROWS;
        match rows.entry((owner.clone(), key.clone(), day)) {
            Entry::Occupied(row) => row.into_mut().merge(add),
            Entry::Vacant(row) if !full => {
                row.insert(add.clone());
            }
            Entry::Vacant(_) => rows.entry((owner.clone(), "other".into(), day)).or_default().merge(add),
        }
    }

    /// Takes all that has come since the last call.
    pub fn drain(&self) -> Vec<UsageDelta> {
        let mut out = Vec::new();
        for shard in &self.shards {
            let rows = std::mem::take(&mut *shard.lock());
            out.extend(rows.into_iter().map(|((owner, key, day), add)| UsageDelta { owner, key, day, add }));
        }
        out
    }

    /// Runs of a stored module, by the execute endpoint and by routes.
    pub fn record_runs(&self, owner: &OwnerId, name: &Name, n: u64) {
        let mut runs = self.runs[shard(name)].lock();
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
}

fn shard(of: &impl Hash) -> usize {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    hasher.finish() as usize % SHARDS
}
