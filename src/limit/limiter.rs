//! The limiter: local state per (subject, policy), sharded, bounded, evicted when idle.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::HeaderValue;

use crate::domain::{Name, Principal, Rejection, Subject, Timestamp};
use crate::store::Counter;

/// Both clocks of one moment: rolling windows use `mono`, calendar windows `wall`.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    pub mono: Instant,
    pub wall: Timestamp,
}

impl Now {
    pub fn read() -> Self {
        Self { mono: Instant::now(), wall: Timestamp::now() }
    }
}

/// One policy after a decision, for the `RateLimit` headers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyState {
    pub name: Name,
    /// Quota and window in seconds, as `RateLimit-Policy` shows them.
    pub quota: u64,
    pub window_seconds: u64,
    pub remaining: u64,
    /// Until the whole quota is there again (rolling), or the window ends (calendar).
    pub reset: Duration,
}

/// What admission says. `states` has the tightest policy first (the fewest remaining, then the longest reset).
pub enum Decision {
    Allowed { states: Vec<PolicyState>, in_flight: InFlight },
    Limited { states: Vec<PolicyState>, rejection: Rejection },
}

/// A place among the caller's concurrent requests, given back on drop.
pub struct InFlight {}

pub struct Limiter {}

impl Limiter {
    pub fn new(_max_subjects: usize) -> Arc<Self> {
        unimplemented!()
    }

    /// Checks concurrency and all policies of the caller's tier for `cost` requests, then charges all of them or none.
    /// Quotas belong to the owner (all its keys together); anonymous callers to their address.
    pub fn admit(&self, _principal: &Principal, _cost: u64, _now: Now) -> Decision {
        unimplemented!()
    }

    /// Charges `cost` further requests (batch executions) without a further place in flight.
    pub fn charge(&self, _principal: &Principal, _cost: u64, _now: Now) -> Result<(), Rejection> {
        unimplemented!()
    }

    /// Charges fuel after a run against the day's fuel quota; debt is allowed and blocks later requests.
    pub fn charge_fuel(&self, _subject: &Subject, _fuel: u64, _now: Now) {
        unimplemented!()
    }

    /// Calendar counters to persist.
    pub fn counters(&self, _now: Now) -> Vec<Counter> {
        unimplemented!()
    }

    pub fn restore(&self, _counters: Vec<Counter>, _now: Now) {
        unimplemented!()
    }

    /// Drops idle subjects; called from a ticker.
    pub fn evict_idle(&self, _now: Now) {
        unimplemented!()
    }
}

/// `RateLimit-Policy` and `RateLimit` (draft-ietf-httpapi-ratelimit-headers, structured fields).
pub fn headers(_states: &[PolicyState]) -> Option<(HeaderValue, HeaderValue)> {
    unimplemented!()
}
