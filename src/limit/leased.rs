//! A bucket of a fleet: the leases from which one gateway serves it, and who waits for their answers.
//!
//! Invariant: at most one call of a lease is on its way, and whoever waits is woken by its answer or its failure.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use smallvec::SmallVec;
use tokio::sync::Notify;

use super::lease::Lease;
use super::lease::link::Link;
use super::lease::terms::{OVERSHOOT_PERCENT, Plan};
use super::lease::wire::{Call, Reply};
use super::network::{self, Site};
use crate::domain::{Name, OwnerId, Tier};

/// Whose limits; shown as the shared side names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder {
    Owner(OwnerId),
    Address(IpAddr),
    Site(Site),
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Owner(owner) => write!(f, "o/{owner}"),
            Self::Address(address) => write!(f, "a/{address}"),
            Self::Site(site) => write!(f, "s/{}", network::site_address(*site)),
        }
    }
}

/// Which lease of which bucket; one that was replaced is not it any more.
#[derive(Clone, Debug)]
pub struct LeaseId {
    pub holder: Holder,
    pub tier: Name,
    /// Names one lease of this process.
    pub serial: u64,
}

/// A call that is to be sent.
#[derive(Debug)]
pub struct Outgoing {
    pub id: LeaseId,
    pub plan: Arc<Plan>,
    pub call: Call,
}

/// A request that waits for the answers to calls.
#[derive(Debug, Default)]
pub struct Waiting {
    /// There from the first wait on.
    woken: Option<Arc<Notify>>,
    /// Leases that count its tokens among those waited for: serial and answers so far.
    on: SmallVec<[(u64, u64); 2]>,
    arrived: bool,
}

impl Waiting {
    pub async fn woken(&self) {
        if let Some(woken) = &self.woken {
            woken.notified().await;
        }
    }

    /// True the first time.
    pub fn arrive(&mut self) -> bool {
        !std::mem::replace(&mut self.arrived, true)
    }
}

/// One lease.
#[derive(Debug)]
pub struct Held {
    pub lease: Lease,
    plan: Arc<Plan>,
    pub serial: u64,
    /// Answers and failures so far.
    answers: u64,
    waiters: Vec<Arc<Notify>>,
    /// When its alarm goes off; the earliest of those that are set counts.
    alarm: u64,
}

impl Held {
    fn new(plan: Arc<Plan>, now: u64) -> Self {
        static SERIAL: AtomicU64 = AtomicU64::new(0);
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        Self { lease: Lease::new(plan.clone(), now), plan, serial, answers: 0, waiters: Vec::new(), alarm: u64::MAX }
    }

    pub fn is_awaited_by(&self, waiting: &Waiting) -> bool {
        waiting.on.contains(&(self.serial, self.answers))
    }

    pub fn wait(&mut self, cost: u64, waiting: &mut Waiting) {
        self.lease.wait(cost);
        self.waiters.push(waiting.woken.get_or_insert_default().clone());
        waiting.on.retain(|(serial, _)| *serial != self.serial);
        waiting.on.push((self.serial, self.answers));
    }

    /// A request that waits does so no longer.
    pub fn leave(&mut self, cost: u64, waiting: &mut Waiting) {
        self.lease.leave(cost);
        waiting.on.retain(|(serial, _)| *serial != self.serial);
    }

    /// Who waits; they do so still.
    pub fn waiters(&mut self) -> Vec<Arc<Notify>> {
        self.waiters.clone()
    }

    /// The call that waiting requests need now.
    pub fn ask(&mut self, now: u64, link: &Link) -> Option<(Arc<Plan>, Call)> {
        self.lease.ask(now, link).map(|call| (self.plan.clone(), call))
    }

    /// When its alarm is to be set, where that is earlier than it is.
    pub fn new_alarm(&mut self, now: u64, link: &Link) -> Option<u64> {
        let wake = self.lease.wake(now, link);
        (wake < self.alarm).then(|| {
            self.alarm = wake;
            wake
        })
    }

    /// Its alarm that was set for `at` goes off, unless an earlier one took its place.
    pub fn tick(&mut self, at: u64, now: u64, link: &Link) -> Option<(Arc<Plan>, Call)> {
        if self.alarm != at {
            return None;
        }
        self.alarm = u64::MAX;
        self.lease.tick(now, link).map(|call| (self.plan.clone(), call))
    }

    /// Whom to wake.
    pub fn answered(&mut self, now: u64, reply: Option<&Reply>, random: f64) -> Vec<Arc<Notify>> {
        match reply {
            Some(reply) => self.lease.on_reply(now, reply, random),
            None => self.lease.on_failure(),
        }
        self.answers += 1;
        std::mem::take(&mut self.waiters)
    }

    fn close(&mut self, now: u64, link: &Link) -> Option<(Arc<Plan>, Call)> {
        self.lease.close(now, link).map(|call| (self.plan.clone(), call))
    }

    /// The policies, by their place in the plan, for which so many tokens are refused; `ever`: not for want of capacity.
    pub fn to_blame(&self, cost: u64, now: u64, link: &Link, ever: bool) -> SmallVec<[usize; 2]> {
        let least = self.lease.left(now, link).enumerate().min_by_key(|(_, (left, _))| *left).map(|(at, _)| at);
        let capacities = self.plan.policies.iter().map(|(_, terms)| terms.capacity());
        let short = self.lease.left(now, link).zip(capacities).enumerate();
        let short = short.filter(|(_, ((left, _), capacity))| if ever { *left < cost } else { *capacity < cost });
        let blamed: SmallVec<[usize; 2]> = short.map(|(at, _)| at).collect();
        // A share, or what others have taken since.
        if blamed.is_empty() { least.into_iter().collect() } else { blamed }
    }
}

/// The leases of one bucket: one for all of its policies, and one for each that a guest charges by itself.
#[derive(Debug)]
pub struct Leases {
    holder: Holder,
    tier: Arc<Tier>,
    factor: u64,
    pub all: Held,
    single: Vec<(usize, Held)>,
}

impl Leases {
    /// `None`: there is nothing to count.
    pub fn new(holder: &Holder, tier: &Arc<Tier>, factor: u64, now: u64) -> Option<Self> {
        if tier.quotas.is_empty() {
            return None;
        }
        let plan = Plan::new(&tier.quotas, factor, OVERSHOOT_PERCENT, tier.fail);
        let (holder, tier) = (holder.clone(), tier.clone());
        Some(Self { holder, tier, factor, all: Held::new(plan, now), single: Vec::new() })
    }

    /// Of all policies, or of the one in this place.
    pub fn lease(&mut self, policy: Option<usize>, now: u64) -> &mut Held {
        let Some(policy) = policy else { return &mut self.all };
        let at = match self.single.iter().position(|(n, _)| *n == policy) {
            Some(at) => at,
            None => {
                let quota = &self.tier.quotas[policy..=policy];
                let plan = Plan::new(quota, self.factor, OVERSHOOT_PERCENT, self.tier.fail);
                self.single.push((policy, Held::new(plan, now)));
                self.single.len() - 1
            }
        };
        &mut self.single[at].1
    }

    pub fn tier(&self) -> &Name {
        &self.tier.name
    }

    pub fn find(&mut self, serial: u64) -> Option<&mut Held> {
        self.every_mut().find(|held| held.serial == serial)
    }

    pub fn id(&self, serial: u64) -> LeaseId {
        LeaseId { holder: self.holder.clone(), tier: self.tier.name.clone(), serial }
    }

    fn every(&self) -> impl Iterator<Item = &Held> {
        std::iter::once(&self.all).chain(self.single.iter().map(|(_, held)| held))
    }

    fn every_mut(&mut self) -> impl Iterator<Item = &mut Held> {
        std::iter::once(&mut self.all).chain(self.single.iter_mut().map(|(_, held)| held))
    }

    /// Sets alarms that changed with the link.
    pub fn new_alarms(&mut self, now: u64, link: &Link) -> SmallVec<[(u64, LeaseId); 1]> {
        let alarms = self.every_mut().filter_map(|held| Some((held.new_alarm(now, link)?, held.serial)));
        let alarms: SmallVec<[(u64, u64); 1]> = alarms.collect();
        alarms.into_iter().map(|(at, serial)| (at, self.id(serial))).collect()
    }

    pub fn is_busy(&self) -> bool {
        self.every().any(|held| held.lease.is_busy())
    }

    pub fn is_idle(&self, now: u64) -> bool {
        self.every().all(|held| held.lease.is_idle(now))
    }

    /// Whoever waits for an answer asks those that have taken the place of these.
    pub fn wake(&mut self) {
        self.every_mut().flat_map(Held::waiters).for_each(|waiter| waiter.notify_one());
    }

    /// What a gateway that needs them no more gives back and settles.
    pub fn close(&mut self, now: u64, link: &Link) -> Vec<Outgoing> {
        let calls: Vec<_> = self.every_mut().filter_map(|held| Some((held.serial, held.close(now, link)?))).collect();
        calls.into_iter().map(|(serial, (plan, call))| Outgoing { id: self.id(serial), plan, call }).collect()
    }

    /// Takes over what those of another configuration know and owe, after their last calls were made.
    pub fn inherit(&mut self, before: &Leases, now: u64) {
        self.all.lease.inherit(&before.all.lease, now);
        for (policy, held) in &before.single {
            let name = &before.tier.quotas[*policy].name;
            if let Some(heir) = self.tier.quotas.iter().position(|quota| quota.name == *name) {
                self.lease(Some(heir), now).lease.inherit(&held.lease, now);
            }
        }
    }
}
