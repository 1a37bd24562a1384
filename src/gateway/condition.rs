//! What a gateway does without, and why: without routes it is not ready, without anything else degraded, and still fit for
//! traffic.
//!
//! Invariant: what health says, and what the metrics show, come from here.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::service::Shared;
use crate::store::{RefusedRoutes, StoreError};

/// Until the same failure is told again, and another one.
const AGAIN: Duration = Duration::from_secs(60);
const BETWEEN: Duration = Duration::from_secs(1);

/// What is known of the store at this moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreState {
    Up,
    /// It does not answer.
    Unreachable,
    /// It answers, and what it had is gone.
    Lost,
    /// It answers, and is another one's, or damaged.
    Unusable,
    /// What was to be written last could not be.
    Unwritable,
    /// What was written last was done, and too few replicas have it.
    Unreplicated,
}

impl StoreState {
    pub const ALL: [StoreState; 6] = [
        StoreState::Up,
        StoreState::Unreachable,
        StoreState::Lost,
        StoreState::Unusable,
        StoreState::Unwritable,
        StoreState::Unreplicated,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            StoreState::Up => "up",
            StoreState::Unreachable => "unreachable",
            StoreState::Lost => "lost",
            StoreState::Unusable => "unusable",
            StoreState::Unwritable => "unwritable",
            StoreState::Unreplicated => "unreplicated",
        }
    }

    fn of(error: &StoreError) -> Self {
        match error {
            StoreError::Unavailable(_) => StoreState::Unreachable,
            StoreError::Lost(_) => StoreState::Lost,
            StoreError::Full => StoreState::Unwritable,
            StoreError::Unreplicated(_) => StoreState::Unreplicated,
            _ => StoreState::Unusable,
        }
    }

    fn reason(self) -> &'static str {
        match self {
            StoreState::Up => "",
            StoreState::Unreachable => "store-unreachable",
            StoreState::Lost => "store-lost",
            StoreState::Unusable => "store-unusable",
            StoreState::Unwritable => "store-unwritable",
            StoreState::Unreplicated => "store-unreplicated",
        }
    }
}

/// Something that a gateway does without.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lack {
    pub reason: &'static str,
    /// For the operator alone.
    pub detail: String,
}

/// A failure of the store that a request has met. The same one is told again after a while only: an outage is a line, not one
/// a request.
pub fn tell_failure(error: &StoreError) {
    static TOLD: Mutex<Option<(StoreError, Instant)>> = Mutex::new(None);
    let mut told = TOLD.lock();
    let is_news = match (&*told, error) {
        (_, StoreError::Corrupt(_)) | (None, _) => true,
        (Some((before, at)), error) => at.elapsed() >= if before == error { AGAIN } else { BETWEEN },
    };
    if is_news {
        *told = Some((error.clone(), Instant::now()));
        tracing::error!(%error, "the store failed");
    }
}

impl Shared {
    /// The flush of usage and counters has ended so; whether it ended otherwise before.
    pub fn set_written(&self, failed: Option<StoreError>) -> bool {
        let mut unwritten = self.unwritten.lock();
        let was_done = |error: &Option<StoreError>| error.as_ref().map(|e| matches!(e, StoreError::Unreplicated(_)));
        let is_news = was_done(&unwritten) != was_done(&failed);
        *unwritten = failed;
        is_news
    }

    /// The newest of the routes that were pushed, if they can't be used here; what it was before.
    pub fn set_refused_routes(&self, routes: Option<RefusedRoutes>) -> Option<RefusedRoutes> {
        std::mem::replace(&mut *self.refused_routes.lock(), routes)
    }

    pub fn set_routes_of_disk(&self, are_of_disk: bool) {
        self.routes_of_disk.store(are_of_disk, Ordering::Relaxed);
    }

    pub fn refused_routes(&self) -> Option<RefusedRoutes> {
        self.refused_routes.lock().clone()
    }

    /// Why living keys are unknown here; whether that is news.
    pub fn set_unknown_keys(&self, why: Option<String>) -> bool {
        let mut unknown = self.unknown_keys.lock();
        let is_news = *unknown != why;
        *unknown = why;
        is_news
    }

    pub fn store_state(&self) -> StoreState {
        self.store_fault().map_or(StoreState::Up, |(state, _)| state)
    }

    /// Empty: it does all that it should.
    pub fn lacks(&self) -> Vec<Lack> {
        self.lacks_with(self.store_fault())
    }

    /// Both of the above, after the store was asked.
    pub async fn ask(&self) -> (StoreState, Vec<Lack>) {
        let failed = self.store.check().await.err();
        if let Some(error) = &failed {
            tell_failure(error);
        }
        let fault = failed.map(|error| (StoreState::of(&error), error)).or_else(|| self.store_fault());
        let state = fault.as_ref().map_or(StoreState::Up, |(state, _)| *state);
        (state, self.lacks_with(fault))
    }

    fn store_fault(&self) -> Option<(StoreState, StoreError)> {
        let found = self.store.fault().map(|error| (StoreState::of(&error), error));
        found.or_else(|| {
            self.unwritten.lock().clone().map(|error| match &error {
                StoreError::Unreplicated(_) => (StoreState::Unreplicated, error),
                _ => (StoreState::Unwritable, error),
            })
        })
    }

    fn lacks_with(&self, fault: Option<(StoreState, StoreError)>) -> Vec<Lack> {
        let routes = self.routes_lack(fault.is_some());
        let store = fault.map(|(state, error)| Lack { reason: state.reason(), detail: error.to_string() });
        let link = (self.metrics.store_link_up.get() == 0).then(|| Lack {
            reason: "store-link-down",
            detail: "nobody tells of what others change: keys are read again before they are believed".into(),
        });
        let alone = self.limiter.fleet_figures().filter(|figures| !figures.is_linked).map(|_| Lack {
            reason: "limits-alone",
            detail: "the fleet's limits can't be reached: this gateway decides alone, as its tiers say".into(),
        });
        let keys = self.unknown_keys.lock().clone().map(|detail| Lack { reason: "pepper-missing", detail });
        routes.into_iter().chain(store).chain(link).chain(alone).chain(keys).collect()
    }

    fn routes_lack(&self, is_store_away: bool) -> Option<Lack> {
        let lack = |reason, detail: &str| Some(Lack { reason, detail: detail.to_owned() });
        match self.refused_routes() {
            Some(RefusedRoutes { version, reason }) => {
                lack("routes-refused", &format!("version {version} of the routes can't be used here: {reason}"))
            }
            None if !self.snapshot.load().config.lacks_routes() => {
                let are_of_disk = self.routes_of_disk.load(Ordering::Relaxed);
                let told =
                    "its routes are those that it used last: the store has not told whether there are newer ones";
                are_of_disk.then(|| Lack { reason: "routes-of-disk", detail: told.into() })
            }
            None if is_store_away => lack("routes-unknown", "its routes are in the store, which has not told them yet"),
            None => lack("no-routes", "no routes were pushed yet: use `wasmgate routes push`"),
        }
    }
}
