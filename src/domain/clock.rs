//! Wall-clock time as the records keep it. Limits use the monotonic clock instead (`std::time::Instant`).

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A moment in UTC, written as RFC 3339.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(jiff::Timestamp);

impl Timestamp {
    pub fn now() -> Self {
        Self(jiff::Timestamp::now())
    }

    /// `None` outside years -9999 to 9999.
    pub fn from_unix_millis(millis: i64) -> Option<Self> {
        jiff::Timestamp::from_millisecond(millis).ok().map(Self)
    }

    pub fn unix_millis(self) -> i64 {
        self.0.as_millisecond()
    }

    pub fn unix_seconds(self) -> i64 {
        self.0.as_second()
    }

    /// Microseconds within its second.
    pub fn subsec_micros(self) -> u32 {
        self.0.subsec_nanosecond().unsigned_abs() / 1000
    }

    /// Whole days since 1970-01-01, UTC.
    pub fn day(self) -> i64 {
        self.0.as_second().div_euclid(86_400)
    }

    pub fn saturating_add(self, delta: Duration) -> Self {
        let delta = jiff::SignedDuration::try_from(delta).unwrap_or(jiff::SignedDuration::MAX);
        Self(self.0.saturating_add(delta).unwrap_or(jiff::Timestamp::MAX))
    }
}

impl std::fmt::Display for Timestamp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl std::str::FromStr for Timestamp {
    type Err = jiff::Error;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        s.parse().map(Self)
    }
}
