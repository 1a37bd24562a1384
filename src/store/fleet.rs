//! The gateways that share a store, as each tells of itself.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Result, random_hex};
use crate::domain::{Digest, Timestamp};

/// How long a gateway that is not heard of any more counts as one of the fleet.
pub const ALIVE: Duration = Duration::from_secs(10);

/// Read by gateways of other versions as well: what is added has a default.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Of one run of the process.
    pub id: String,
    pub name: String,
    pub version: String,
    pub started_at: Timestamp,
    pub state: NodeState,
    /// Of the configuration in use: counts up with every swap.
    pub generation: u64,
    /// Of the configuration file.
    pub config: Digest,
}

impl Node {
    pub fn new_id() -> Result<String> {
        random_hex::<8>()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum NodeState {
    Starting,
    Ready,
    Draining,
}

impl NodeState {
    pub fn as_str(self) -> &'static str {
        match self {
            NodeState::Starting => "starting",
            NodeState::Ready => "ready",
            NodeState::Draining => "draining",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LiveNode {
    pub node: Node,
    /// Since it was last heard of, by the store's clock.
    pub silent: Duration,
}
