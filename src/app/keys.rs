//! Living keys against what they need of this gateway: their tier, and their pepper.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use super::App;
use crate::config::{Config, ConfigError};
use crate::domain::{ApiKey, Name, Timestamp};
use crate::store::StoreError;

/// Between two counts, and after one that failed.
const COUNT_EVERY: Duration = Duration::from_secs(600);
const COUNT_AGAIN: Duration = Duration::from_secs(5);

/// Counts keys that are unknown here for the lack of an older pepper, at once and now and then. Runs until its task is dropped,
/// where one is lacking.
pub async fn run(app: Arc<App>) {
    if !app.shared.auth.lacks_older_peppers() {
        return;
    }
    loop {
        let counted = app.count_unknown().await;
        tokio::time::sleep(if counted.is_ok() { COUNT_EVERY } else { COUNT_AGAIN }).await;
    }
}

impl App {
    async fn count_unknown(&self) -> Result<(), StoreError> {
        let has = |id| self.shared.auth.has_pepper(id);
        let unknown = self.living(|key| (!has(key.pepper)).then_some(key.pepper)).await?;
        let told = |(pepper, keys): (&u32, &u64)| {
            let keys = counted(*keys);
            format!(
                "pepper {pepper} is missing here, which leaves {keys} with 401: give this gateway that one as well (`auth.pepper_file` or \
                 `auth.pepper_env`), or make those keys anew"
            )
        };
        let unknown = (!unknown.is_empty()).then(|| unknown.iter().map(told).collect::<Vec<_>>().join("; "));
        if self.shared.set_unknown_keys(unknown.clone()) {
            match unknown {
                Some(unknown) => tracing::error!("{unknown}"),
                None => tracing::info!("no living key needs a pepper that is missing here any more"),
            }
        }
        Ok(())
    }

    /// What living keys lose with this configuration: tiers that are neither in it nor set through the API, one line each.
    pub async fn lost_tiers(&self, config: &Config) -> Result<Vec<ConfigError>, StoreError> {
        if config.lacks_routes() {
            return Ok(Vec::new());
        }
        let set = self.store.tiers().await?;
        let tiers: HashSet<&Name> = config.tiers.iter().chain(&set).map(|tier| &tier.name).collect();
        let lost = self.living(|key| (!tiers.contains(&key.tier)).then(|| key.tier.clone())).await?;
        let told = |(tier, keys): (Name, u64)| {
            let keys = counted(keys);
            let message =
                format!("there is no tier `{tier}`, which leaves {keys} with 503: put it there, or revoke those keys");
            ConfigError { key: "tiers".into(), line: 0, message }
        };
        Ok(lost.into_iter().map(told).collect())
    }

    /// How many keys that live have each of what is looked for.
    async fn living<T: Ord>(&self, look: impl Fn(&ApiKey) -> Option<T>) -> Result<BTreeMap<T, u64>, StoreError> {
        let (keys, now) = (self.store.keys(None).await?, Timestamp::now());
        let mut found = BTreeMap::new();
        for what in keys.iter().filter(|key| key.is_live(now)).filter_map(look) {
            *found.entry(what).or_insert(0) += 1;
        }
        Ok(found)
    }
}

fn counted(keys: u64) -> String {
    if keys == 1 { "1 living key".into() } else { format!("{keys} living keys") }
}
