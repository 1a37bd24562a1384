//! The limiter: local state per (subject, policy), sharded, bounded.
//!
//! Invariant: a decision is made under one shard's lock: everything a request counts against lives in the same shard, so
//! nothing comes between check and charge.
//!
//! At the bound (`max_subjects` owners, as many addresses, as many /48 sites) the subject unused for longest makes room;
//! never one with requests in flight. It then begins anew, which gives at most its quota again to one out of more
//! subjects than the bound; when every place is busy, a new subject is refused with 503.

use std::cmp::Reverse;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

pub use super::headers::{Policy, headers};

use super::account::{Account, Bucket, FUEL_WINDOW, Restored};
use super::network::{self, SITE_FACTOR, Site};
use super::quota::{Calendar, Cell, Refused, Tick};
use super::spread;
use super::table::Table;
use crate::domain::{Name, OwnerId, Principal, Rejection, Subject, Timestamp, Window};
use crate::store::Counter;

const MAX_SHARDS: usize = 64;

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
    pub policy: Arc<Policy>,
    pub remaining: u64,
    /// Until the whole quota is there again (rolling), or the window ends (calendar). In a refusal, of a violated policy:
    /// until the request would be admitted.
    pub reset: Duration,
}

/// What admission says. `states` has the tightest policy first (a violated one, then the fewest remaining, then the
/// longest reset).
pub enum Decision {
    Allowed { states: Vec<PolicyState>, in_flight: InFlight },
    Limited { states: Vec<PolicyState>, rejection: Rejection },
}

/// A place among the caller's concurrent requests, given back on drop.
#[derive(Debug)]
pub struct InFlight {
    own: Arc<AtomicU32>,
    wide: Option<Arc<AtomicU32>>,
}

impl InFlight {
    /// Under the shard's lock, after `has_place`: others only give back meanwhile.
    fn take(own: &Bucket, wide: Option<&Bucket>) -> Self {
        own.in_flight.fetch_add(1, Ordering::AcqRel);
        let wide = wide.map(|wide| {
            wide.in_flight.fetch_add(1, Ordering::AcqRel);
            wide.in_flight.clone()
        });
        Self { own: own.in_flight.clone(), wide }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.own.fetch_sub(1, Ordering::AcqRel);
        if let Some(wide) = &self.wide {
            wide.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

struct Shard {
    owners: Table<OwnerId, Account>,
    addresses: Table<IpAddr, Account>,
    sites: Table<Site, Account>,
}

pub struct Limiter {
    epoch: Instant,
    shards: Box<[Mutex<Shard>]>,
    fuel: Name,
    /// Gateways of the fleet.
    nodes: AtomicU32,
}

impl Limiter {
    pub fn new(max_subjects: usize) -> Arc<Self> {
        // A small bound gets few shards, so that uneven spreading does not make it much smaller still.
        let shards = (max_subjects / 64).next_power_of_two().clamp(1, MAX_SHARDS);
        let cap = max_subjects.div_ceil(shards);
        let shard = || Shard { owners: Table::new(cap), addresses: Table::new(cap), sites: Table::new(cap) };
        Arc::new(Self {
            epoch: Instant::now(),
            shards: (0..shards).map(|_| Mutex::new(shard())).collect(),
            fuel: "fuel".parse().expect("`fuel` is a name"),
            nodes: AtomicU32::new(1),
        })
    }

    /// How many gateways there are, this one included.
    pub fn set_nodes(&self, n: u32) {
        self.nodes.store(n, Ordering::Relaxed);
    }

    /// Checks concurrency and all policies of the caller's tier for `cost` requests, then charges all of them or none.
    /// Quotas belong to the owner (all its keys together); anonymous callers to their address.
    pub fn admit(&self, principal: &Principal, cost: u64, now: Now) -> Decision {
        self.with_buckets(principal, now, |request| {
            for bucket in request.buckets() {
                if !bucket.has_place() {
                    let rejection = Rejection::TooManyConcurrent { limit: bucket.concurrent() };
                    return Decision::Limited { states: request.states(), rejection };
                }
            }
            match request.charge(cost, &self.fuel) {
                Ok(()) => {
                    let in_flight = InFlight::take(request.own, request.wide.as_deref());
                    Decision::Allowed { states: request.states(), in_flight }
                }
                Err((states, rejection)) => Decision::Limited { states, rejection },
            }
        })
        .unwrap_or_else(|rejection| Decision::Limited { states: Vec::new(), rejection })
    }

    /// Charges `cost` further requests (batch executions) without a further place in flight.
    pub fn charge(&self, principal: &Principal, cost: u64, now: Now) -> Result<(), Rejection> {
        self.with_buckets(principal, now, |request| request.charge(cost, &self.fuel).map_err(|(_, r)| r))?
    }

    /// Charges one policy of the caller's tier, by its name, beside what the request itself was charged; `None`: the tier
    /// has no such policy.
    pub fn spend(&self, principal: &Principal, policy: &str, cost: u64, now: Now) -> Option<Result<(), Refused>> {
        let spent = self.with_buckets(principal, now, |request| request.spend(policy, cost));
        // No place for the subject: it has to come again.
        spent.unwrap_or(Some(Err(Refused(Some(Duration::from_secs(1))))))
    }

    /// Charges fuel after a run against the day's fuel quota; debt is allowed and blocks later requests until the day
    /// ends. Fuel is the owner's: each of its keys is held to its own tier's `fuel_per_day` of the sum.
    pub fn charge_fuel(&self, subject: &Subject, fuel: u64, now: Now) {
        let tick = self.tick(now);
        let mut shard = self.shard_of(subject).lock();
        let account = match subject {
            Subject::Key { owner, .. } => shard.owners.entry(owner, || Account::new(1, tick), Account::is_busy),
            Subject::Address(a) => {
                shard.addresses.entry(&network::caller(*a), || Account::new(1, tick), Account::is_busy)
            }
        };
        if let Some(account) = account {
            account.fuel.roll(FUEL_WINDOW, tick.seconds());
            account.fuel.used = account.fuel.used.saturating_add(fuel);
        }
    }

    /// Calendar counters to persist: all that are in use, with their whole sums, so that a save that failed is made good
    /// by the next one.
    pub fn counters(&self, now: Now) -> Vec<Counter> {
        let tick = self.tick(now);
        let mut out = Vec::new();
        for shard in &self.shards {
            let shard = shard.lock();
            for (owner, account) in shard.owners.iter() {
                collect(account, format_args!("o/{owner}"), tick, &mut out);
            }
            for (address, account) in shard.addresses.iter() {
                collect(account, format_args!("a/{address}"), tick, &mut out);
            }
            for (site, account) in shard.sites.iter() {
                collect(account, format_args!("s/{}", network::site_address(*site)), tick, &mut out);
            }
        }
        out
    }

    /// Takes back what [`Self::counters`] gave before a restart; counters of windows that are over, and ids of another
    /// form, are skipped.
    pub fn restore(&self, counters: Vec<Counter>, now: Now) {
        let tick = self.tick(now);
        for counter in counters {
            let parts: Vec<&str> = counter.id.split('/').collect();
            let (kind, name, what) = match parts.as_slice() {
                [kind, name, "fuel"] => (*kind, *name, None),
                [kind, name, tier, policy, window] => match window.parse::<Window>() {
                    Ok(window) => (*kind, *name, Some((*tier, *policy, window))),
                    Err(_) => continue,
                },
                _ => continue,
            };
            let window = what.map_or(FUEL_WINDOW, |(_, _, window)| window);
            if super::quota::bounds(window, tick.seconds()).0 != counter.window_start {
                continue;
            }
            self.with_account(kind, name, tick, |account| match what {
                None => {
                    account.fuel.roll(FUEL_WINDOW, tick.seconds());
                    account.fuel.used = account.fuel.used.saturating_add(counter.used);
                }
                Some((tier, policy, window)) => account.restored.push(Restored {
                    tier: tier.to_owned(),
                    policy: policy.to_owned(),
                    window,
                    start: counter.window_start,
                    used: counter.used,
                }),
            });
        }
    }

    /// Drops subjects whose loss changes nothing (nothing in flight, every counter back at its start); called from a
    /// ticker.
    pub fn evict_idle(&self, now: Now) {
        let tick = self.tick(now);
        for shard in &self.shards {
            let mut shard = shard.lock();
            shard.owners.retain(|a| a.shrink(tick));
            shard.addresses.retain(|a| a.shrink(tick));
            shard.sites.retain(|a| a.shrink(tick));
        }
    }

    /// Owners, addresses and sites held, for a gauge.
    pub fn subjects(&self) -> usize {
        let count = |s: &Mutex<Shard>| {
            let s = s.lock();
            s.owners.len() + s.addresses.len() + s.sites.len()
        };
        self.shards.iter().map(count).sum()
    }

    fn tick(&self, now: Now) -> Tick {
        let mono = now.mono.saturating_duration_since(self.epoch).as_nanos();
        Tick { mono: u64::try_from(mono).unwrap_or(u64::MAX), wall: now.wall.unix_millis() }
    }

    fn shard_of(&self, subject: &Subject) -> &Mutex<Shard> {
        let spread = match subject {
            Subject::Key { owner, .. } => spread(owner.as_str()),
            Subject::Address(a) => network::spread(network::caller(*a)),
        };
        &self.shards[spread as usize & (self.shards.len() - 1)]
    }

    fn with_buckets<T>(
        &self,
        principal: &Principal,
        now: Now,
        decide: impl FnOnce(&mut Request<'_>) -> T,
    ) -> Result<T, Rejection> {
        let tick = self.tick(now);
        let full = || Rejection::Busy { retry_after: Duration::from_secs(1) };
        let mut shard = self.shard_of(&principal.subject).lock();
        let shard = &mut *shard;
        match &principal.subject {
            Subject::Key { owner, .. } => {
                let account = shard.owners.entry(owner, || Account::new(1, tick), Account::is_busy).ok_or_else(full)?;
                let fuel = account.fuel;
                let (own, wide) = account.buckets(&principal.tier, tick);
                Ok(decide(&mut Request { own, wide, fuel, tick }))
            }
            Subject::Address(address) => {
                let caller = network::caller(*address);
                let account =
                    shard.addresses.entry(&caller, || Account::new(1, tick), Account::is_busy).ok_or_else(full)?;
                let fuel = account.fuel;
                let own = account.buckets(&principal.tier, tick).0;
                let wide = match network::site(caller) {
                    Some(site) => {
                        let fresh = || Account::new(SITE_FACTOR, tick);
                        let site = shard.sites.entry(&site, fresh, Account::is_busy).ok_or_else(full)?;
                        Some(site.buckets(&principal.tier, tick).0)
                    }
                    None => None,
                };
                Ok(decide(&mut Request { own, wide, fuel, tick }))
            }
        }
    }

    fn with_account(&self, kind: &str, name: &str, tick: Tick, change: impl FnOnce(&mut Account)) {
        let account = |factor| move || Account::new(factor, tick);
        match (kind, name.parse::<OwnerId>(), name.parse::<IpAddr>()) {
            ("o", Ok(owner), _) => {
                let mut shard = self.shards[spread(owner.as_str()) as usize & (self.shards.len() - 1)].lock();
                shard.owners.entry(&owner, account(1), Account::is_busy).map(change);
            }
            ("a", _, Ok(address)) => {
                let mut shard = self.shard_of(&Subject::Address(address)).lock();
                shard.addresses.entry(&address, account(1), Account::is_busy).map(change);
            }
            ("s", _, Ok(address)) => {
                let mut shard = self.shard_of(&Subject::Address(address)).lock();
                if let Some(site) = network::site(address) {
                    shard.sites.entry(&site, account(SITE_FACTOR), Account::is_busy).map(change);
                }
            }
            _ => {}
        }
    }
}

/// What one request counts against.
struct Request<'a> {
    own: &'a mut Bucket,
    /// The owner's highest tier, or the address's /48.
    wide: Option<&'a mut Bucket>,
    fuel: Calendar,
    tick: Tick,
}

impl Request<'_> {
    fn buckets(&self) -> impl Iterator<Item = &Bucket> {
        std::iter::once(&*self.own).chain(self.wide.as_deref())
    }

    /// All policies, or none and why.
    fn charge(&mut self, cost: u64, fuel: &Name) -> Result<(), (Vec<PolicyState>, Rejection)> {
        let tick = self.tick;
        let fits = |b: &mut Bucket| b.cells.iter_mut().all(|cell| cell.check(cost, tick).is_ok());
        if self.fuel_refused().is_some() || !fits(self.own) || !self.wide.as_deref_mut().is_none_or(fits) {
            return Err(self.refusal(cost, fuel));
        }
        for cell in &mut self.own.cells {
            cell.charge(cost, tick);
        }
        for cell in self.wide.iter_mut().flat_map(|b| &mut b.cells) {
            cell.charge(cost, tick);
        }
        Ok(())
    }

    /// One policy, where its cells have room for it in the caller's own bucket and in the wide one.
    fn spend(&mut self, policy: &str, cost: u64) -> Option<Result<(), Refused>> {
        let tick = self.tick;
        let buckets = std::iter::once(&mut *self.own).chain(self.wide.as_deref_mut());
        let named = |(policies, cell): (&Arc<Policy>, _)| (policies.name.as_str() == policy).then_some(cell);
        let mut cells: Vec<&mut Cell> =
            buckets.flat_map(|b| b.policies.iter().zip(&mut b.cells).filter_map(named)).collect();
        let refused = cells.iter_mut().filter_map(|cell| cell.check(cost, tick).err());
        // Never is longest.
        let refused = refused.max_by_key(|Refused(wait)| wait.unwrap_or(Duration::MAX));
        match refused {
            _ if cells.is_empty() => None,
            Some(refused) => Some(Err(refused)),
            None => {
                cells.iter_mut().for_each(|cell| cell.charge(cost, tick));
                Some(Ok(()))
            }
        }
    }

    /// The limit and how long it refuses.
    fn fuel_refused(&self) -> Option<(u64, Duration)> {
        let limit = self.own.tier.fuel_per_day?;
        let in_window = (self.fuel.start..self.fuel.end).contains(&self.tick.seconds());
        (in_window && self.fuel.used >= limit).then(|| (limit, self.fuel.until_end(self.tick)))
    }

    fn refusal(&mut self, cost: u64, fuel: &Name) -> (Vec<PolicyState>, Rejection) {
        let tick = self.tick;
        let mut violated: Vec<PolicyState> = Vec::new();
        let mut others = Vec::new();
        if let Some((limit, reset)) = self.fuel_refused() {
            let policy = Arc::new(Policy::new(fuel.clone(), limit, 86_400, None));
            violated.push(PolicyState { policy, remaining: 0, reset });
        }
        let own = std::iter::once((true, &mut *self.own));
        for (is_own, bucket) in own.chain(self.wide.as_deref_mut().map(|b| (false, b))) {
            for (policy, cell) in bucket.policies.iter().zip(&mut bucket.cells) {
                match cell.check(cost, tick) {
                    Ok(()) if is_own => others.push(state(policy, cell, tick)),
                    Ok(()) => {}
                    Err(Refused(Some(wait))) => {
                        violated.push(PolicyState { reset: wait, ..state(policy, cell, tick) });
                    }
                    Err(Refused(None)) => {
                        let most = cell.capacity();
                        let why = format!(
                            "this counts as {cost} requests, and the policy `{}` never admits more than {most} at once",
                            policy.name
                        );
                        return (self.states(), Rejection::BadRequest(why));
                    }
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

    fn states(&self) -> Vec<PolicyState> {
        let policies = self.own.policies.iter().zip(&self.own.cells);
        let mut states: Vec<_> = policies.map(|(policy, cell)| state(policy, cell, self.tick)).collect();
        sort(&mut states);
        states
    }
}

fn sort(states: &mut [PolicyState]) {
    states.sort_unstable_by_key(|p| (p.remaining, Reverse(p.reset)));
}

fn state(policy: &Arc<Policy>, cell: &Cell, tick: Tick) -> PolicyState {
    let (remaining, reset) = cell.left(tick);
    let policy = match cell {
        // Months differ in length.
        Cell::Calendar { limit, count, .. } if policy.window_seconds != count.seconds() => {
            Arc::new(Policy::new(policy.name.clone(), *limit, count.seconds(), None))
        }
        _ => policy.clone(),
    };
    PolicyState { policy, remaining, reset }
}

fn collect(account: &Account, subject: std::fmt::Arguments<'_>, now: Tick, out: &mut Vec<Counter>) {
    let mut push = |id: String, count: &Calendar| {
        if count.used > 0 && now.seconds() < count.end {
            out.push(Counter { id, window_start: count.start, used: count.used });
        }
    };
    push(format!("{subject}/fuel"), &account.fuel);
    for bucket in &account.buckets {
        for (quota, cell) in bucket.tier.quotas.iter().zip(&bucket.cells) {
            if let Cell::Calendar { window, count, .. } = cell {
                push(format!("{subject}/{}/{}/{window}", bucket.tier.name, quota.name), count);
            }
        }
    }
}
