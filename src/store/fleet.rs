//! What gateways that share a store have in common beside its records: who they are, and the routes that were pushed to them.

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
    /// What it does without, as its health says.
    #[serde(default)]
    pub lacks: Vec<String>,
    /// Of the configuration in use: counts up with every swap.
    pub generation: u64,
    /// Of the configuration file.
    pub config: Digest,
    /// Whether it takes up routes that are pushed.
    #[serde(default)]
    pub follows_routes: bool,
    /// That were pushed, and are in use. `None`: they are in the file, or there are none yet.
    #[serde(default)]
    pub routes: Option<RoutesInUse>,
    /// The newest, which it can't use.
    #[serde(default)]
    pub refused: Option<RefusedRoutes>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoutesInUse {
    pub version: u64,
    pub digest: Digest,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct RefusedRoutes {
    pub version: u64,
    pub reason: String,
}

/// Versions of the routes that are kept.
pub const ROUTES_KEPT: usize = 20;

/// A version of the routes, without its text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoutesVersion {
    pub version: u64,
    /// Of its text.
    pub digest: Digest,
    pub bytes: u64,
    pub at: Timestamp,
    /// As in the audit log.
    pub by: String,
    /// The version whose text it has again, after a rollback.
    pub again: Option<u64>,
}

/// See [`super::Store::push_routes`].
#[derive(Clone, Debug)]
pub struct NewRoutes {
    pub text: String,
    pub at: Timestamp,
    pub by: String,
    pub again: Option<u64>,
    /// Its number is higher than this one, which was seen in use.
    pub above: u64,
}

impl Node {
    pub fn new_id() -> Result<String> {
        random_hex::<8>()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeState {
    Starting,
    Ready,
    Draining,
}

impl NodeState {
    /// As health tells it. That it is degraded is none of the states, as older gateways know these alone.
    pub fn told(self, lacks_something: bool) -> &'static str {
        match self {
            NodeState::Starting => "starting",
            NodeState::Ready if lacks_something => "degraded",
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_of_an_older_gateway_is_read() {
        let digest = Digest::of(b"");
        let old = serde_json::json!({
            "id": "a", "name": "a", "version": "0.1.0", "started_at": Timestamp::now(), "state": "ready", "generation": 1,
            "config": digest,
        });
        let node: Node = serde_json::from_value(old).expect("what was added has defaults");
        assert_eq!((node.lacks.len(), node.state.told(!node.lacks.is_empty())), (0, "ready"));
    }
}
