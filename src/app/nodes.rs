//! This gateway as one of its fleet: it tells that it lives, and learns how many there are.
//!
//! Invariant: while the store can't be asked, the number of gateways stays what it was last known to be.

use std::sync::Arc;
use std::time::Duration;

use super::App;
use crate::config::RoutesFrom;
use crate::store::{LiveNode, Node, NodeState, RoutesInUse, StoreError};

/// Several of them may be lost before a gateway counts as dead.
const BEAT_EVERY: Duration = Duration::from_secs(2);

/// Runs until its task is dropped.
pub async fn run(app: Arc<App>) {
    let mut beat = tokio::time::interval(BEAT_EVERY);
    beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut is_told = false;
    loop {
        tokio::select! {
            _ = beat.tick() => {}
            () = app.told.notified() => {}
        }
        match app.beat().await {
            Ok(_) => is_told = false,
            Err(error) if !std::mem::replace(&mut is_told, true) => {
                tracing::warn!(%error, "the fleet is not told that this gateway lives");
            }
            Err(_) => {}
        }
    }
}

impl App {
    /// Tells the fleet of this gateway; who else is in it.
    pub async fn beat(&self) -> Result<Vec<LiveNode>, StoreError> {
        let nodes = self.store.beat(&self.node()).await?;
        let number = u32::try_from(nodes.len()).unwrap_or(u32::MAX).max(1);
        self.shared.limiter.set_nodes(number);
        self.shared.metrics.fleet_nodes.set(number.into());
        Ok(nodes)
    }

    /// At the end, so that nobody has to wait until this gateway counts as dead.
    pub async fn leave(&self) {
        if let Err(error) = self.store.leave(&self.node_id).await {
            tracing::warn!(%error, "the fleet is not told that this gateway stops; it will notice");
        }
    }

    pub fn state(&self) -> NodeState {
        if self.shared.is_draining() {
            NodeState::Draining
        } else if self.shared.is_ready() {
            NodeState::Ready
        } else {
            NodeState::Starting
        }
    }

    fn node(&self) -> Node {
        let snapshot = self.snapshot();
        let name = snapshot.config.server.name.as_ref().map(ToString::to_string);
        Node {
            id: self.node_id.clone(),
            name: name.or_else(host_name).unwrap_or_else(|| self.node_id.clone()),
            version: env!("CARGO_PKG_VERSION").into(),
            started_at: self.started_at,
            state: self.state(),
            lacks: self.shared.lacks().into_iter().map(|lack| lack.reason.to_owned()).collect(),
            generation: snapshot.generation,
            config: snapshot.config.digest,
            follows_routes: snapshot.config.store.routes == RoutesFrom::Store,
            routes: snapshot.config.pushed.as_ref().map(|p| RoutesInUse { version: p.version, digest: p.digest }),
            refused: self.shared.refused_routes(),
        }
    }
}

fn host_name() -> Option<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    Some(name.trim().to_owned()).filter(|name| !name.is_empty())
}
