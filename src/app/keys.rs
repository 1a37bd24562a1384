//! Living keys against what they need of this gateway's configuration.

use std::collections::{BTreeMap, HashSet};

use super::App;
use crate::config::{Config, ConfigError};
use crate::domain::{ApiKey, Name, Timestamp};
use crate::store::StoreError;

impl App {
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
