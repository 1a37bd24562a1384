//! The limiter: local state per (subject, policy), sharded, bounded.
//!
//! Invariant: a decision is made under one shard's lock: everything a request counts against lives in the same shard, so
//! nothing comes between check and charge.
//!
//! At the bound (`max_subjects` owners, as many addresses, as many /48 sites) the subject unused for longest makes room;
//! never one with requests in flight. It then begins anew, which gives at most its quota again to one out of more
//! subjects than the bound; when every place is busy, a new subject is refused with 503.
//!
//! In a fleet (`fleet.rs`) buckets are leased from the shared ones, and a request may have to wait for their answer; calendar
//! counters are theirs as well.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

pub use super::fleet::{FleetFigures, PATIENCE};
pub use super::headers::{Policy, headers};
pub use super::leased::Waiting;

use super::account::{Account, Bucket};
use super::decide::{InFleet, Left, Request, Stop};
use super::fleet::{Due, Fleet, Out, Timers};
use super::lease::link::Link;
use super::leased::Holder;
use super::network::{self, SITE_FACTOR, Site};
use super::quota::{Refused, Tick};
use super::spread;
use super::table::Table;
use crate::domain::{Name, OwnerId, Principal, Rejection, Subject, Timestamp};
use crate::store::Buckets;

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

/// What a caller is told, unless it has to wait for the fleet's answer.
pub type Asked<T> = Result<T, Waiting>;

pub(super) struct Shard {
    pub owners: Table<OwnerId, Account>,
    pub addresses: Table<IpAddr, Account>,
    pub sites: Table<Site, Account>,
    /// In a fleet, as of the last change.
    pub link: Link,
    pub timers: Timers,
}

pub struct Limiter {
    epoch: Instant,
    pub(super) shards: Box<[Mutex<Shard>]>,
    fuel: Name,
    pub(super) fleet: Option<Arc<Fleet>>,
    pub(super) this: Weak<Limiter>,
}

impl Limiter {
    /// Of one gateway that counts by itself.
    pub fn new(max_subjects: usize) -> Arc<Self> {
        Self::with(max_subjects, None)
    }

    /// Of one of several gateways that draw from the same buckets. Its calls run on this thread's runtime.
    pub fn in_fleet(max_subjects: usize, buckets: Arc<dyn Buckets>) -> Arc<Self> {
        let fleet = Arc::new(Fleet::new(buckets));
        let limiter = Self::with(max_subjects, Some(fleet.clone()));
        tokio::spawn(super::fleet::run(fleet, Arc::downgrade(&limiter)));
        limiter
    }

    fn with(max_subjects: usize, fleet: Option<Arc<Fleet>>) -> Arc<Self> {
        // A small bound gets few shards, so that uneven spreading does not make it much smaller still.
        let shards = (max_subjects / 64).next_power_of_two().clamp(1, MAX_SHARDS);
        let cap = max_subjects.div_ceil(shards);
        let shard = || Shard {
            owners: Table::new(cap),
            addresses: Table::new(cap),
            sites: Table::new(cap),
            link: Link::new(1),
            timers: Timers::default(),
        };
        Arc::new_cyclic(|this| Self {
            epoch: Instant::now(),
            shards: (0..shards).map(|_| Mutex::new(shard())).collect(),
            fuel: "fuel".parse().expect("`fuel` is a name"),
            fleet,
            this: this.clone(),
        })
    }

    /// Checks concurrency and all policies of the caller's tier for `cost` requests, then charges all of them or none.
    /// Quotas belong to the owner (all its keys together); anonymous callers to their address. Who is to wait calls
    /// [`Self::admit_later`].
    pub fn admit(&self, principal: &Principal, cost: u64, now: Now) -> Asked<Decision> {
        self.decide(principal, now, Waiting::default(), |request| self.admit_one(request, cost)).map(Self::told)
    }

    pub async fn admit_later(&self, principal: &Principal, cost: u64, waiting: Waiting) -> Decision {
        Self::told(self.decide_later(principal, waiting, |request| self.admit_one(request, cost)).await)
    }

    fn told(decided: Result<Decision, Rejection>) -> Decision {
        decided.unwrap_or_else(|rejection| Decision::Limited { states: Vec::new(), rejection })
    }

    /// `None`: it has to wait.
    fn admit_one(&self, request: &mut Request<'_>, cost: u64) -> Option<Decision> {
        for bucket in request.buckets() {
            if !bucket.has_place() {
                let rejection = Rejection::TooManyConcurrent { limit: bucket.concurrent() };
                return Some(Decision::Limited { states: request.states(), rejection });
            }
        }
        Some(match self.charge_one(request, cost)? {
            Ok(()) => {
                let in_flight = InFlight::take(request.own, request.wide.as_deref());
                Decision::Allowed { states: request.states(), in_flight }
            }
            Err((states, rejection)) => Decision::Limited { states, rejection },
        })
    }

    /// Charges `cost` further requests (batch executions) without a further place in flight.
    pub async fn charge(&self, principal: &Principal, cost: u64, now: Now) -> Result<(), Rejection> {
        let charge = |request: &mut Request<'_>| Some(self.charge_one(request, cost)?.map_err(|(_, r)| r));
        match self.decide(principal, now, Waiting::default(), charge) {
            Ok(decided) => decided?,
            Err(waiting) => self.decide_later(principal, waiting, charge).await?,
        }
    }

    /// `None`: it has to wait.
    fn charge_one(&self, request: &mut Request<'_>, cost: u64) -> Option<Result<(), (Vec<PolicyState>, Rejection)>> {
        if request.fuel_refused().is_some() {
            return Some(Err(request.refusal(&[], cost, &self.fuel)));
        }
        match request.charge(None, cost) {
            Ok(()) => Some(Ok(())),
            Err(Stop::Wait) => None,
            Err(Stop::Lost) => Some(Err((request.states(), Rejection::StoreUnavailable))),
            Err(Stop::Refused(violations)) => Some(Err(request.refusal(&violations, cost, &self.fuel))),
        }
    }

    /// Charges one policy of the caller's tier, by its name, beside what the request itself was charged; `None`: the tier
    /// has no such policy.
    pub async fn spend(&self, principal: &Principal, policy: &str, cost: u64, now: Now) -> Option<Result<(), Refused>> {
        // No place for the subject, or nobody who could say: it has to come again.
        let again = Refused(Some(Duration::from_secs(1)));
        let spend = |request: &mut Request<'_>| {
            if !request.buckets().any(|bucket| bucket.policies.iter().any(|known| known.name.as_str() == policy)) {
                return Some(None);
            }
            match request.charge(Some(policy), cost) {
                Ok(()) => Some(Some(Ok(()))),
                Err(Stop::Wait) => None,
                Err(Stop::Lost) => Some(Some(Err(again))),
                Err(Stop::Refused(violations)) => {
                    // Never is longest.
                    let longest = violations.iter().map(|v| v.wait).max_by_key(|wait| wait.unwrap_or(Duration::MAX));
                    Some(Some(Err(longest.map_or(again, Refused))))
                }
            }
        };
        let decided = match self.decide(principal, now, Waiting::default(), spend) {
            Ok(decided) => decided,
            Err(waiting) => self.decide_later(principal, waiting, spend).await,
        };
        decided.unwrap_or(Some(Err(again)))
    }

    /// After [`Self::decide`] told to wait.
    async fn decide_later<T>(
        &self,
        principal: &Principal,
        mut waiting: Waiting,
        ask: impl Fn(&mut Request<'_>) -> Option<T>,
    ) -> Result<T, Rejection> {
        let end = tokio::time::Instant::now() + PATIENCE;
        loop {
            if tokio::time::timeout_at(end, waiting.woken()).await.is_err() {
                return Err(Rejection::StoreUnavailable);
            }
            match self.decide(principal, Now::read(), waiting, &ask) {
                Ok(decided) => return decided,
                Err(still) => waiting = still,
            }
        }
    }

    /// Charges fuel after a run against the day's fuel quota; debt is allowed and blocks later requests until the day
    /// ends. Fuel is the owner's: each of its keys is held to its own tier's `fuel_per_day` of the sum.
    pub fn charge_fuel(&self, subject: &Subject, fuel: u64, now: Now) {
        let tick = self.tick(now);
        let mut shard = self.shard_of(subject).lock();
        let Shard { owners, addresses, timers, .. } = &mut *shard;
        let account = match subject {
            Subject::Key { owner, .. } => {
                owners.entry(owner, || self.account(1, Holder::Owner(owner.clone()), tick), Account::is_busy)
            }
            Subject::Address(address) => {
                let caller = network::caller(*address);
                addresses.entry(&caller, || self.account(1, Holder::Address(caller), tick), Account::is_busy)
            }
        };
        if let Some(account) = account {
            account.fuel.add(fuel, tick);
            self.set_fuel_alarm(account, tick, false, timers);
        }
    }

    /// In a fleet.
    fn set_fuel_alarm(&self, account: &mut Account, tick: Tick, limited: bool, timers: &mut Timers) {
        if let (Some(fleet), Some(holder)) = (&self.fleet, &account.holder)
            && let Some(at) = account.fuel.new_alarm(tick, limited)
        {
            fleet.set(timers, at, Due::Fuel(holder.clone()));
        }
    }

    fn account(&self, factor: u64, holder: Holder, tick: Tick) -> Account {
        Account::new(factor, self.fleet.as_ref().map(|_| holder), tick)
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

    pub(super) fn tick(&self, now: Now) -> Tick {
        let mono = now.mono.saturating_duration_since(self.epoch).as_nanos();
        Tick { mono: u64::try_from(mono).unwrap_or(u64::MAX), wall: now.wall.unix_millis() }
    }

    pub(super) fn shard(&self, spread: u64) -> &Mutex<Shard> {
        &self.shards[spread as usize & (self.shards.len() - 1)]
    }

    pub(super) fn shard_of(&self, subject: &Subject) -> &Mutex<Shard> {
        match subject {
            Subject::Key { owner, .. } => self.shard(spread(owner.as_str())),
            Subject::Address(a) => self.shard(network::spread(network::caller(*a))),
        }
    }

    pub(super) fn shard_of_holder(&self, holder: &Holder) -> &Mutex<Shard> {
        match holder {
            Holder::Owner(owner) => self.shard(spread(owner.as_str())),
            Holder::Address(address) => self.shard(network::spread(*address)),
            Holder::Site(site) => self.shard(network::spread(network::site_address(*site).into())),
        }
    }

    /// `ask` says `None` where the request has to wait.
    fn decide<T>(
        &self,
        principal: &Principal,
        now: Now,
        mut waiting: Waiting,
        ask: impl FnOnce(&mut Request<'_>) -> Option<T>,
    ) -> Asked<Result<T, Rejection>> {
        let tick = self.tick(now);
        let mut left = Left::default();
        let mut guard = self.shard_of(&principal.subject).lock();
        let Shard { owners, addresses, sites, link, timers } = &mut *guard;
        let tier = &principal.tier;
        let (account, site) = match &principal.subject {
            Subject::Key { owner, .. } => {
                let fresh = || self.account(1, Holder::Owner(owner.clone()), tick);
                (owners.entry(owner, fresh, Account::is_busy), None)
            }
            Subject::Address(address) => {
                let caller = network::caller(*address);
                let site = network::site(caller).map(|site| {
                    let fresh = || self.account(SITE_FACTOR, Holder::Site(site), tick);
                    sites.entry(&site, fresh, Account::is_busy)
                });
                let fresh = || self.account(1, Holder::Address(caller), tick);
                (addresses.entry(&caller, fresh, Account::is_busy), site)
            }
        };
        let (Some(account), false) = (account, matches!(site, Some(None))) else {
            return Ok(Err(Rejection::Busy { retry_after: Duration::from_secs(1) }));
        };
        if tier.fuel_per_day.is_some() {
            self.set_fuel_alarm(account, tick, true, timers);
        }
        let mut site = site.flatten();
        if self.fleet.is_some() {
            left.outgoing = account.take_up(tier, tick, link);
            left.outgoing.extend(site.iter_mut().flat_map(|site| site.take_up(tier, tick, link)));
        }
        let fuel = account.fuel;
        let (own, highest) = account.buckets(tier, tick);
        let wide = site.map(|site| site.buckets(tier, tick).0).or(highest);
        let fleet = self.fleet.as_deref();
        let in_fleet = fleet.map(|_| InFleet { link, waiting: &mut waiting, left: &mut left });
        let told = ask(&mut Request { own, wide, fuel, tick, fleet: in_fleet });
        if let Some(fleet) = fleet {
            left.alarms.drain(..).for_each(|(at, id)| fleet.set(timers, at, Due::Lease(id)));
            drop(guard);
            fleet.count_alone(left.alone);
            left.outgoing.into_iter().for_each(|outgoing| self.send(Out::Lease(outgoing)));
        }
        told.map(Ok).ok_or(waiting)
    }
}
