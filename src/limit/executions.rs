//! Runs by module, gathered in memory and written in batches by the app's ticker.
//!
//! Invariant: what [`Executions::drain`] returned is no longer here; a failed write is given back with `give_back`.

use std::collections::HashMap;

use parking_lot::Mutex;

use crate::domain::{Name, OwnerId, Timestamp};

/// Modules held between two flushes; runs of further ones are not counted until the next.
const MAX_MODULES: usize = 20_000;

/// One module's runs since the last flush, and the last of them: what `Store::count_executions` takes.
pub type ExecutionCount = (OwnerId, Name, u64, Timestamp);

#[derive(Default)]
pub struct Executions {
    counts: Mutex<HashMap<(OwnerId, Name), (u64, Timestamp)>>,
}

impl Executions {
    pub fn count(&self, owner: &OwnerId, name: &Name, at: Timestamp) {
        self.add(owner.clone(), name.clone(), 1, at);
    }

    pub fn drain(&self) -> Vec<ExecutionCount> {
        let counts = std::mem::take(&mut *self.counts.lock());
        counts.into_iter().map(|((owner, name), (n, at))| (owner, name, n, at)).collect()
    }

    pub fn give_back(&self, counts: Vec<ExecutionCount>) {
        for (owner, name, n, at) in counts {
            self.add(owner, name, n, at);
        }
    }

    fn add(&self, owner: OwnerId, name: Name, n: u64, at: Timestamp) {
        let mut counts = self.counts.lock();
        let full = counts.len() >= MAX_MODULES;
        match counts.entry((owner, name)) {
            std::collections::hash_map::Entry::Occupied(mut held) => {
                let (sum, last) = held.get_mut();
                *sum += n;
                *last = at.max(*last);
            }
            std::collections::hash_map::Entry::Vacant(free) if !full => {
                free.insert((n, at));
            }
            std::collections::hash_map::Entry::Vacant(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_add_up_and_a_failed_flush_loses_nothing() {
        let executions = Executions::default();
        let (owner, name): (OwnerId, Name) = ("o".parse().unwrap(), "m".parse().unwrap());
        let [early, late] = [1, 2].map(|ms| Timestamp::from_unix_millis(ms).unwrap());
        executions.count(&owner, &name, late);
        let drained = executions.drain();
        executions.count(&owner, &name, early);
        executions.give_back(drained);
        assert_eq!(executions.drain(), vec![(owner, name, 2, late)]);
        assert!(executions.drain().is_empty());
    }
}
