//! A caller's policies in the numbers that leases are worked out in.
//!
//! Invariant: whole numbers only. A GCRA level is counted in units, of which a microsecond brings `rate` and a token has
//! `unit`, so that the script's doubles are exact; where a bucket would have more than 2^50 of them the rate is rounded
//! down, never up.

use std::sync::Arc;
use std::time::Duration;

use crate::domain::{FailMode, Name, Quota, Window};

/// How far a rolling limit may be overshot, in hundredths of its quota.
pub const OVERSHOOT_PERCENT: u64 = 5;
/// No lease of a rolling limit is spent for longer than twice this without a call.
const LONGEST_EPOCH: Duration = Duration::from_secs(2);
/// The most units of a bucket, and the most tokens of a quota; beyond them it is as good as unlimited.
const FULL: u64 = 1 << 50;

/// One policy's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Terms {
    Gcra {
        /// Units a microsecond.
        rate: u64,
        /// Units a token.
        unit: u64,
        /// Tokens at once.
        burst: u64,
        /// Tokens beyond the burst that may be out on nodes.
        slack: u64,
    },
    Calendar {
        /// Hour, day or month.
        window: Window,
        limit: u64,
    },
}

impl Terms {
    /// `factor` multiplies the quota (wider address ranges).
    pub fn new(quota: &Quota, factor: u64, overshoot_percent: u64) -> Self {
        let requests = quota.requests.saturating_mul(factor).min(FULL);
        match quota.window {
            Window::Rolling { seconds } => {
                let burst = quota.burst.unwrap_or(quota.requests).saturating_mul(factor).min(FULL / 2);
                let burst = if requests == 0 { 0 } else { burst };
                let slack = requests.saturating_mul(overshoot_percent) / 100;
                Self::gcra(requests, u64::from(seconds) * 1_000_000, burst, slack.min(FULL / 2))
            }
            window => Self::Calendar { window, limit: requests },
        }
    }

    /// `requests` over `window` microseconds.
    fn gcra(requests: u64, window: u64, burst: u64, slack: u64) -> Self {
        let common = gcd(requests, window).max(1);
        let (mut rate, mut unit) = (requests / common, window / common);
        while (burst + slack).saturating_mul(unit) > FULL && rate > 1 {
            unit = unit.div_ceil(2);
            rate /= 2;
        }
        // Years to fill: nobody waits for the rest.
        let burst = burst.min(FULL / unit);
        Self::Gcra { rate, unit, burst, slack: slack.min(FULL / unit - burst) }
    }

    /// The most that can be granted at once.
    pub fn capacity(&self) -> u64 {
        match self {
            Self::Gcra { burst, .. } => *burst,
            Self::Calendar { limit, .. } => *limit,
        }
    }

    /// Tokens a second; none for calendar windows.
    pub fn per_second(&self) -> Option<f64> {
        match self {
            Self::Gcra { rate, unit, .. } => Some(*rate as f64 * 1e6 / *unit as f64),
            Self::Calendar { .. } => None,
        }
    }

    /// How long the tokens handed out in one epoch are sure to count as outstanding, in microseconds: what fills the
    /// bucket, and 2 s at most.
    pub fn epoch(&self) -> u64 {
        let longest = LONGEST_EPOCH.as_micros() as u64;
        match self {
            Self::Gcra { rate, unit, burst, .. } => (burst * unit / (*rate).max(1)).clamp(1, longest),
            Self::Calendar { .. } => longest,
        }
    }

    /// The longest pause, in seconds, between two calls for an exhausted policy that is asked for all the time.
    pub(super) fn poll(&self) -> f64 {
        match self.per_second() {
            Some(r) => (self.capacity() as f64 / (4.0 * r)).min((4.0 / r).clamp(0.25, 1.0)),
            None => LONGEST_EPOCH.as_secs_f64(),
        }
    }

    /// The five numbers of the script's argument list, microseconds and seconds, behind the kind.
    pub(super) fn arguments(&self, nodes: u32) -> (&'static str, [u64; 5]) {
        match *self {
            Self::Gcra { rate, unit, burst, slack } => ("g", [rate, unit, burst, slack, self.epoch()]),
            Self::Calendar { window, limit } => {
                let window = match window {
                    Window::Rolling { seconds } => u64::from(seconds),
                    Window::Hour => 3_600,
                    Window::Day => 86_400,
                    Window::Month => 0,
                };
                // A lease is reviewed within its epoch; its reply takes a moment more.
                ("c", [window, limit, u64::from(nodes.max(1)), self.epoch(), self.epoch() + 100_000])
            }
        }
    }
}

fn gcd(mut a: u64, mut b: u64) -> u64 {
    while b > 0 {
        (a, b) = (b, a % b);
    }
    a
}

/// The policies that one lease counts against, all or none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    pub policies: Box<[(Name, Terms)]>,
    /// While the shared bucket is out of reach.
    pub fail: FailMode,
    /// Tokens that can ever be granted at once.
    pub capacity: u64,
    /// The shortest of the policies' epochs, nanoseconds.
    pub(super) epoch: u64,
}

impl Plan {
    pub fn new(quotas: &[Quota], factor: u64, overshoot_percent: u64, fail: FailMode) -> Arc<Self> {
        let policies: Box<[_]> =
            quotas.iter().map(|q| (q.name.clone(), Terms::new(q, factor, overshoot_percent))).collect();
        let capacity = policies.iter().map(|(_, t)| t.capacity()).min().unwrap_or(u64::MAX);
        let epoch = policies.iter().map(|(_, t)| t.epoch()).min().unwrap_or(0) * 1000;
        Arc::new(Self { policies, fail, capacity, epoch })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn terms(requests: u64, window: &str, burst: Option<u64>) -> Terms {
        let quota = Quota { name: "p".parse().unwrap(), requests, window: window.parse().unwrap(), burst };
        Terms::new(&quota, 1, OVERSHOOT_PERCENT)
    }

    #[test]
    fn rates_are_exact_where_they_fit_and_rounded_down_where_they_do_not() {
        assert_eq!(terms(100, "1s", None), Terms::Gcra { rate: 1, unit: 10_000, burst: 100, slack: 5 });
        assert_eq!(terms(500, "1m", Some(100)), Terms::Gcra { rate: 1, unit: 120_000, burst: 100, slack: 25 });
        assert_eq!(terms(7, "1m", Some(2)), Terms::Gcra { rate: 7, unit: 60_000_000, burst: 2, slack: 0 });
        for requests in [10_000_001, 1 << 40, u64::MAX] {
            let Terms::Gcra { rate, unit, burst, slack } = terms(requests, "3599s", None) else { panic!() };
            assert!(u128::from(burst + slack) * u128::from(unit) <= 1 << 50, "{requests}: {burst} + {slack}, {unit}");
            let exact = requests.min(FULL) as f64 / 3599.0;
            let got = rate as f64 * 1e6 / unit as f64;
            assert!(got <= exact && (requests == u64::MAX || got > 0.9 * exact), "{requests}: {got} of {exact}");
        }
    }

    #[test]
    fn nothing_divides_by_zero_or_overflows() {
        for (requests, burst) in [(0, None), (0, Some(5)), (5, Some(0)), (u64::MAX, Some(u64::MAX))] {
            let terms = terms(requests, "1s", burst);
            assert!(terms.epoch() > 0 && terms.poll() >= 0.0, "{terms:?}");
        }
    }
}
