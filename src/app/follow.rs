//! What others change in a shared store, as this gateway takes it up.
//!
//! Invariant: a key that was changed elsewhere is looked up again at its next use; routes see changed modules and tiers
//! after the next snapshot, of which there are at most a few a second.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::Notify;

use super::App;
use crate::auth::cache::Authenticator;
use crate::domain::KeyHash;
use crate::limit::limiter::Limiter;
use crate::store::Changes;
use crate::telemetry::Metrics;

/// Changes that come together are taken up together.
const TOGETHER: Duration = Duration::from_millis(100);
/// Until a refresh that failed is tried again.
const AGAIN: Duration = Duration::from_secs(1);
/// Until pushed routes are looked at again that were refused.
const RETRY: Duration = Duration::from_secs(10);

struct Follower {
    auth: Arc<Authenticator>,
    limiter: Arc<Limiter>,
    metrics: Arc<Metrics>,
    refresh: Arc<Notify>,
    changes: Arc<AtomicU64>,
}

impl Changes for Follower {
    fn key(&self, hash: &KeyHash) {
        self.auth.invalidate(hash);
    }

    fn records(&self) {
        self.changes.fetch_add(1, Ordering::AcqRel);
        self.refresh.notify_one();
    }

    fn lost(&self) {
        self.auth.link_lost();
        self.limiter.doubt();
        self.metrics.store_link_up.set(0);
    }

    fn restored(&self) {
        self.auth.link_restored();
        self.changes.fetch_add(1, Ordering::AcqRel);
        self.metrics.store_link_up.set(1);
        self.refresh.notify_one();
    }
}

/// From now until the gateway ends.
pub fn begin(app: &Arc<App>) {
    let refresh = app.changed.clone();
    let (auth, limiter, metrics) = (app.shared.auth.clone(), app.shared.limiter.clone(), app.shared.metrics.clone());
    let changes = app.changes.clone();
    app.store.follow(Arc::new(Follower { auth, limiter, metrics, refresh: refresh.clone(), changes }));
    tokio::spawn(take_up(Arc::downgrade(app), refresh));
}

async fn take_up(app: Weak<App>, refresh: Arc<Notify>) {
    let mut told = String::new();
    loop {
        tokio::select! {
            () = refresh.notified() => {}
            () = tokio::time::sleep(RETRY) => {
                let Some(app) = app.upgrade() else { return };
                app.retry_routes().await;
                continue;
            }
        }
        tokio::time::sleep(TOGETHER).await;
        let Some(app) = app.upgrade() else { return };
        let Err(error) = app.refresh().await else {
            told.clear();
            continue;
        };
        // Once, however often it is tried.
        if told != error.to_string() {
            told = error.to_string();
            tracing::warn!(error = told, "what others changed is not taken up yet");
        }
        tokio::time::sleep(AGAIN).await;
        refresh.notify_one();
    }
}
