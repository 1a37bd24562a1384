//! Usage per owner, key and UTC day.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{KeyId, OwnerId};

/// What one request adds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct UsageDelta {
    pub owner: OwnerId,
    pub key: KeyId,
    /// Days since 1970-01-01, UTC.
    pub day: i64,
    pub add: UsageRecord,
}

/// Sums. Bytes are body bytes, as the client sent and got them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct UsageRecord {
    pub requests: u64,
    pub executions: u64,
    pub fuel: u64,
    pub cpu_us: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
    /// Refusals and failures by their problem slug.
    pub errors: BTreeMap<String, u64>,
}

impl UsageRecord {
    pub fn merge(&mut self, other: &UsageRecord) {
        self.requests = self.requests.saturating_add(other.requests);
        self.executions = self.executions.saturating_add(other.executions);
        self.fuel = self.fuel.saturating_add(other.fuel);
        self.cpu_us = self.cpu_us.saturating_add(other.cpu_us);
        self.bytes_in = self.bytes_in.saturating_add(other.bytes_in);
        self.bytes_out = self.bytes_out.saturating_add(other.bytes_out);
        for (kind, n) in &other.errors {
            match self.errors.get_mut(kind) {
                Some(sum) => *sum = sum.saturating_add(*n),
                None => {
                    self.errors.insert(kind.clone(), *n);
                }
            }
        }
    }
}
