//! One request against the buckets that it counts in.
//!
//! Invariant: all policies of all its buckets are looked at before any is charged; what is refused, or has to wait, has
//! charged nothing.

use std::cmp::Reverse;
use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;

use super::account::Bucket;
use super::fuel::Fuel;
use super::headers::Policy;
use super::lease::Verdict;
use super::lease::link::Link;
use super::leased::{LeaseId, Outgoing, Waiting};
use super::limiter::PolicyState;
use super::quota::{Refused, Tick, bounds};
use crate::domain::{FailMode, Name, Quota, Rejection, Window};

/// What one request counts against.
pub struct Request<'a> {
    pub own: &'a mut Bucket,
    /// The owner's highest tier, or the address's /48.
    pub wide: Option<&'a mut Bucket>,
    pub fuel: Fuel,
    pub tick: Tick,
    pub fleet: Option<InFleet<'a>>,
}

/// What a decision in a fleet needs.
pub struct InFleet<'a> {
    pub link: &'a Link,
    pub waiting: &'a mut Waiting,
    pub left: &'a mut Left,
}

/// What a decision in a fleet leaves to be done.
#[derive(Default)]
pub struct Left {
    pub outgoing: Vec<Outgoing>,
    /// Alarms of leases to be set.
    pub alarms: SmallVec<[(u64, LeaseId); 2]>,
    pub alone: Alone,
}

/// Requests admitted without having asked, by what the tier says of that.
#[derive(Clone, Copy, Debug, Default)]
pub struct Alone {
    pub share: u64,
    pub open: u64,
}

/// Why nothing was charged.
pub enum Stop {
    /// For want of these, by bucket and place.
    Refused(SmallVec<[Violation; 2]>),
    /// The shared state can't be reached, and the tier fails closed.
    Lost,
    /// Tokens are asked for; the request is told when to come again.
    Wait,
}

#[derive(Clone, Copy, Debug)]
pub struct Violation {
    is_own: bool,
    policy: usize,
    /// `None`: never.
    pub wait: Option<Duration>,
}

/// By what a bucket admits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Cells,
    Lease,
    /// The cells of this gateway, in debt to the fleet.
    Open,
    Wait,
    Not,
    Lost,
}

impl Request<'_> {
    pub fn buckets(&self) -> impl Iterator<Item = &Bucket> {
        std::iter::once(&*self.own).chain(self.wide.as_deref())
    }

    /// All policies, or the one of this name where there is one.
    pub fn charge(&mut self, policy: Option<&str>, cost: u64) -> Result<(), Stop> {
        let tick = self.tick;
        let first = self.fleet.as_mut().is_some_and(|fleet| fleet.waiting.arrive());
        let mut violations = SmallVec::new();
        let buckets = [Some(&mut *self.own), self.wide.as_deref_mut()].into_iter().flatten();
        let mut ways: SmallVec<[(&mut Bucket, Option<usize>, Way); 2]> = SmallVec::new();
        for (n, bucket) in buckets.enumerate() {
            let place = match policy {
                Some(name) => match bucket.policies.iter().position(|known| known.name.as_str() == name) {
                    Some(place) => Some(place),
                    None => continue,
                },
                None => None,
            };
            let look = Look { is_own: n == 0, place, cost, tick, first };
            let way = look.at(bucket, self.fleet.as_mut(), &mut violations);
            ways.push((bucket, place, way));
        }
        if !violations.is_empty() {
            return Err(Stop::Refused(violations));
        }
        if ways.iter().any(|(_, _, way)| *way == Way::Lost) {
            return Err(Stop::Lost);
        }
        let waits = ways.iter().any(|(_, _, way)| *way == Way::Wait);
        for (bucket, place, way) in ways {
            match (way, self.fleet.as_mut()) {
                (Way::Wait, Some(fleet)) => fleet.wait(bucket, place, cost, tick),
                (_, _) if waits => {}
                (Way::Cells, _) => charge_cells(bucket, place, cost, tick),
                (way, Some(fleet)) => {
                    if way == Way::Open {
                        charge_cells(bucket, place, cost, tick);
                    }
                    fleet.take(bucket, place, cost, tick, way == Way::Open);
                }
                (_, None) => {}
            }
        }
        if waits { Err(Stop::Wait) } else { Ok(()) }
    }

    /// The limit and how long it refuses.
    pub fn fuel_refused(&self) -> Option<(u64, Duration)> {
        let limit = self.own.tier.fuel_per_day?;
        (self.fuel.used(self.tick) >= limit).then(|| (limit, self.fuel.count.until_end(self.tick)))
    }

    /// What the caller is told when it is over a quota.
    pub fn refusal(&mut self, violations: &[Violation], cost: u64, fuel: &Name) -> (Vec<PolicyState>, Rejection) {
        if let Some(never) = violations.iter().find(|violation| violation.wait.is_none()) {
            let bucket = if never.is_own { &*self.own } else { self.wide.as_deref().unwrap_or(self.own) };
            let (name, most) = (&bucket.policies[never.policy].name, bucket.cells[never.policy].capacity());
            let why = format!(
                "this counts as {cost} requests, and the policy `{name}` never admits more than {most} at once"
            );
            return (self.states(), Rejection::BadRequest(why));
        }
        let mut violated: Vec<PolicyState> = Vec::new();
        if let Some((limit, reset)) = self.fuel_refused() {
            let policy = Arc::new(Policy::new(fuel.clone(), limit, 86_400, None));
            violated.push(PolicyState { policy, remaining: 0, reset });
        }
        let mut others = Vec::new();
        let own = std::iter::once((true, &*self.own));
        for (is_own, bucket) in own.chain(self.wide.as_deref().map(|b| (false, b))) {
            for (place, state) in self.states_of(bucket).into_iter().enumerate() {
                let found = violations.iter().find(|v| v.is_own == is_own && v.policy == place);
                match found.and_then(|violation| violation.wait) {
                    Some(wait) => {
                        violated.push(PolicyState {
                            reset: wait,
                            remaining: state.remaining.min(cost.saturating_sub(1)),
                            ..state
                        });
                    }
                    None if is_own => others.push(state),
                    None => {}
                }
            }
        }
        violated.sort_by_key(|p| Reverse(p.reset));
        sort(&mut others);
        let retry_after = violated.first().map_or(Duration::ZERO, |p| p.reset);
        let mut policies: Vec<Name> = Vec::new();
        for state in &violated {
            if !policies.contains(&state.policy.name) {
                policies.push(state.policy.name.clone());
            }
        }
        violated.append(&mut others);
        (violated, Rejection::QuotaExceeded { policies, retry_after })
    }

    pub fn states(&self) -> Vec<PolicyState> {
        let mut states = self.states_of(self.own);
        sort(&mut states);
        states
    }

    fn states_of(&self, bucket: &Bucket) -> Vec<PolicyState> {
        let tick = self.tick;
        let policies = bucket.tier.quotas.iter().zip(&bucket.policies);
        let state = |((quota, policy), (remaining, reset)): ((&Quota, &Arc<Policy>), (u64, Duration))| PolicyState {
            policy: of_this_month(quota.window, policy, tick),
            remaining,
            reset,
        };
        match (&bucket.leases, &self.fleet) {
            (Some(leases), Some(fleet)) if !is_open(bucket, fleet.link, tick) => {
                policies.zip(leases.all.lease.left(tick.mono, fleet.link)).map(state).collect()
            }
            _ => policies.zip(bucket.cells.iter().map(|cell| cell.left(tick))).map(state).collect(),
        }
    }
}

/// What is asked of a bucket.
struct Look {
    is_own: bool,
    /// One policy, or all.
    place: Option<usize>,
    cost: u64,
    tick: Tick,
    /// The request has not been counted yet.
    first: bool,
}

impl Look {
    fn at(
        &self,
        bucket: &mut Bucket,
        fleet: Option<&mut InFleet<'_>>,
        violations: &mut SmallVec<[Violation; 2]>,
    ) -> Way {
        let now = self.tick.mono;
        let (Some(fleet), Some(leases)) = (fleet, &mut bucket.leases) else {
            return self.at_cells(bucket, Way::Cells, violations);
        };
        let held = leases.lease(self.place, now);
        if self.first {
            held.lease.arrive(now, self.cost);
        }
        if held.is_awaited_by(fleet.waiting) {
            // Woken for another lease's answer, or because its own is late.
            if fleet.link.alone_since(now).is_none() {
                return Way::Wait;
            }
            held.leave(self.cost, fleet.waiting);
        }
        match held.lease.check(now, self.cost, fleet.link) {
            Verdict::Spend => Way::Lease,
            Verdict::Wait => Way::Wait,
            Verdict::Lost if bucket.tier.fail == FailMode::Open => self.at_cells(bucket, Way::Open, violations),
            Verdict::Lost => Way::Lost,
            Verdict::Refuse { until } => {
                let wait = until.map(|until| Duration::from_nanos(until.saturating_sub(now).max(1)));
                for place in held.to_blame(self.cost, now, fleet.link, until.is_some()) {
                    violations.push(Violation { is_own: self.is_own, policy: self.place.unwrap_or(place), wait });
                }
                Way::Not
            }
        }
    }

    fn at_cells(&self, bucket: &mut Bucket, way: Way, violations: &mut SmallVec<[Violation; 2]>) -> Way {
        let before = violations.len();
        for (policy, cell) in bucket.cells.iter_mut().enumerate() {
            if self.place.is_none_or(|place| place == policy)
                && let Err(Refused(wait)) = cell.check(self.cost, self.tick)
            {
                violations.push(Violation { is_own: self.is_own, policy, wait });
            }
        }
        if violations.len() == before { way } else { Way::Not }
    }
}

fn charge_cells(bucket: &mut Bucket, place: Option<usize>, cost: u64, tick: Tick) {
    match place {
        Some(place) => bucket.cells[place].charge(cost, tick),
        None => bucket.cells.iter_mut().for_each(|cell| cell.charge(cost, tick)),
    }
}

impl InFleet<'_> {
    fn wait(&mut self, bucket: &mut Bucket, place: Option<usize>, cost: u64, tick: Tick) {
        let Some(leases) = &mut bucket.leases else { return };
        let held = leases.lease(place, tick.mono);
        if held.is_awaited_by(self.waiting) {
            return;
        }
        held.wait(cost, self.waiting);
        let (serial, asked) = (held.serial, held.ask(tick.mono, self.link));
        if let Some((plan, call)) = asked {
            self.left.outgoing.push(Outgoing { id: leases.id(serial), plan, call });
        }
    }

    fn take(&mut self, bucket: &mut Bucket, place: Option<usize>, cost: u64, tick: Tick, is_open: bool) {
        let Some(leases) = &mut bucket.leases else { return };
        let held = leases.lease(place, tick.mono);
        if is_open {
            held.lease.owe(tick.mono, cost);
            self.left.alone.open += 1;
        } else if !held.lease.take(tick.mono, cost) {
            self.left.alone.share += 1;
        }
        let (serial, alarm) = (held.serial, held.new_alarm(tick.mono, self.link));
        if let Some(at) = alarm {
            self.left.alarms.push((at, leases.id(serial)));
        }
    }
}

fn sort(states: &mut [PolicyState]) {
    states.sort_unstable_by_key(|p| (p.remaining, Reverse(p.reset)));
}

/// What this gateway admits by itself counts.
fn is_open(bucket: &Bucket, link: &Link, tick: Tick) -> bool {
    bucket.tier.fail == FailMode::Open && link.alone_since(tick.mono).is_some()
}

/// Months differ in length.
fn of_this_month(window: Window, policy: &Arc<Policy>, tick: Tick) -> Arc<Policy> {
    if window == Window::Month {
        let (start, end) = bounds(window, tick.seconds());
        let seconds = (end - start).unsigned_abs();
        if seconds != policy.window_seconds {
            return Arc::new(Policy::new(policy.name.clone(), policy.quota, seconds, None));
        }
    }
    policy.clone()
}
