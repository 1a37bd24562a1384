//! Whether this node reaches the shared buckets, and what a key may do while it does not: its share of each limit.
//!
//! Invariant: what is admitted without a grant is a debt until a reply has acknowledged it, and the shares of all nodes
//! together are what the limits admit in the time of the outage. So rolling shares begin empty, at the moment the link
//! was lost: what was in the bucket then may have been handed out.

use std::time::Duration;

use super::terms::Terms;
use super::{Lease, Side, Verdict, seconds};
use crate::domain::FailMode;

/// Calls that have to fail in a row before the link counts as lost; what is lost now and then is asked for again.
const FAILURES: u32 = 3;
/// Between two probes of a lost link: nanoseconds, and as much again at random so that nodes don't probe together.
const PROBE: u64 = 200_000_000;
const PROBE_SPREAD: f64 = 1e8;
/// How long a node whose link is back goes on with its shares: until all nodes have probed, and settled what they owe. What
/// the shared bucket has before that has been spent in part.
const SETTLING: u64 = 400_000_000;
/// A refusal by a calendar share names no later time (nanoseconds): the outage ends long before the window.
const LONGEST_REFUSAL: u64 = 60_000_000_000;

/// This node's way to the shared buckets. Times are monotonic nanoseconds.
#[derive(Clone, Debug)]
pub struct Link {
    /// Nodes of the fleet, by their heartbeats; the last known number stays in force while the link is lost.
    pub nodes: u32,
    failures: u32,
    state: State,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Stands,
    Lost { since: u64, probe: u64 },
    Settling { since: u64, until: u64 },
}

impl Link {
    pub fn new(nodes: u32) -> Self {
        Self { nodes, failures: 0, state: State::Stands }
    }

    /// Nothing is to be sent but probes.
    pub fn is_lost(&self) -> bool {
        matches!(self.state, State::Lost { .. })
    }

    /// A call or a probe was answered. True: the link was lost until now, and [`Lease::tick`] is due for every key, so that
    /// all debts are settled at once and not with the keys' next requests.
    pub fn on_success(&mut self, now: u64) -> bool {
        self.failures = 0;
        let State::Lost { since, .. } = self.state else { return false };
        self.state = State::Settling { since, until: now + SETTLING };
        true
    }

    /// A call or a probe was not answered in time. `random` is in 0..1.
    pub fn on_failure(&mut self, now: u64, random: f64) {
        self.failures = self.failures.saturating_add(1);
        if self.is_lost() || self.failures >= FAILURES {
            self.lose(now, random);
        }
    }

    /// Nothing is to be sent but probes from now on.
    pub fn lose(&mut self, now: u64, random: f64) {
        let probe = now + PROBE + (PROBE_SPREAD * random) as u64;
        self.state = State::Lost { since: self.alone_since(now).unwrap_or(now), probe };
    }

    /// When to probe, with a command that belongs to no key. `None`: the link is not lost.
    pub fn probe_at(&self) -> Option<u64> {
        match self.state {
            State::Lost { probe, .. } => Some(probe),
            _ => None,
        }
    }

    /// Since when each node has had its shares alone; `None`: they ask.
    pub fn alone_since(&self, now: u64) -> Option<u64> {
        match self.state {
            State::Lost { since, .. } => Some(since),
            State::Settling { since, until } if now < until => Some(since),
            _ => None,
        }
    }

    fn share(&self) -> f64 {
        1.0 / f64::from(self.nodes.max(1))
    }
}

/// What a rolling policy's share has, in tokens.
#[derive(Clone, Copy, Debug, Default)]
pub struct Share {
    level: f64,
    at: u64,
}

impl Share {
    fn fill(&mut self, now: u64, since: u64, per_second: f64, most: f64) {
        if self.at < since {
            *self = Self { level: 0.0, at: since };
        }
        self.level = most.min(self.level + per_second * seconds(now.saturating_sub(self.at)));
        self.at = self.at.max(now);
    }
}

impl Lease {
    /// Without tokens, while each node has its shares alone.
    pub(super) fn check_alone(&mut self, now: u64, cost: u64, since: u64, link: &Link) -> Verdict {
        if self.plan.fail != FailMode::Share {
            return Verdict::Lost;
        }
        self.roll(now);
        let mut until = 0;
        for (side, (_, terms)) in self.sides.iter_mut().zip(&self.plan.policies) {
            until = until.max(side.free_at(now, cost, terms, since, link));
        }
        if until > now {
            return Verdict::Refuse { until: Some(until) };
        }
        Verdict::Spend
    }

    /// Tokens spent without a grant: by a share, or by a caller that admits without asking (`FailMode::Open`).
    pub fn owe(&mut self, now: u64, cost: u64) {
        self.roll(now);
        for side in &mut self.sides {
            side.debt = side.debt.saturating_add(cost);
            side.share.level -= cost as f64;
        }
    }

    /// Calendar windows that ended while there was no reply: the next one is whole, and what was owed went with the old.
    pub(super) fn roll(&mut self, now: u64) {
        for (side, (_, terms)) in self.sides.iter_mut().zip(&self.plan.policies) {
            let Terms::Calendar { window, limit } = *terms else { continue };
            while side.tag != 0 && now >= side.ends {
                let end = i64::try_from(side.window_end).unwrap_or(i64::MAX / 2);
                let next = crate::limit::quota::bounds(window, end).1.max(end + 1);
                (side.tag, side.window_end) = (side.window_end, next.unsigned_abs());
                side.ends = side.ends.saturating_add((next - end).unsigned_abs().saturating_mul(1_000_000_000));
                (side.left, side.debt) = (limit, 0);
            }
        }
    }
}

impl Side {
    /// When this policy's share has `cost` tokens; not after `now`: it has.
    fn free_at(&mut self, now: u64, cost: u64, terms: &Terms, since: u64, link: &Link) -> u64 {
        match *terms {
            Terms::Gcra { burst, .. } => {
                let (per_second, most) = rolling_share(terms, burst, link);
                self.share.fill(now, since, per_second, most);
                let missing = cost as f64 - self.share.level;
                // A part of a token too little is no token, and a wait is not rounded to nothing.
                if missing <= 0.0 { now } else { now.saturating_add(1 + (missing / per_second * 1e9) as u64) }
            }
            Terms::Calendar { limit, .. } => {
                if self.calendar_share(limit, link) >= cost {
                    return now;
                }
                let latest = now.saturating_add(LONGEST_REFUSAL);
                if self.tag == 0 { latest } else { self.ends.min(latest) }
            }
        }
    }

    /// Tokens that this policy's share has, and how long until it has all of them.
    pub(super) fn share_left(&self, now: u64, terms: &Terms, since: u64, link: &Link) -> (u64, Duration) {
        match *terms {
            Terms::Gcra { burst, .. } => {
                let (per_second, most) = rolling_share(terms, burst, link);
                let mut share = self.share;
                share.fill(now, since, per_second, most);
                let reset = Duration::try_from_secs_f64((most - share.level) / per_second);
                (share.level.max(0.0) as u64, reset.unwrap_or(Duration::MAX))
            }
            Terms::Calendar { limit, .. } => {
                (self.calendar_share(limit, link), Duration::from_nanos(self.ends.saturating_sub(now)))
            }
        }
    }

    fn calendar_share(&self, limit: u64, link: &Link) -> u64 {
        let known = if self.tag == 0 { limit } else { self.left };
        (known / u64::from(link.nodes.max(1))).saturating_sub(self.debt)
    }
}

/// Tokens a second, and the most that it saves up.
fn rolling_share(terms: &Terms, burst: u64, link: &Link) -> (f64, f64) {
    (terms.per_second().unwrap_or(0.0) * link.share(), (burst as f64 * link.share()).max(1.0))
}
