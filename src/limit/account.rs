//! What the limiter keeps of one subject: a bucket for each tier it used, and the fuel of the day.
//!
//! Invariant: a subject's request counts in its own tier's bucket and, when the subject also has a higher tier, in that
//! one's: a key of a lower tier is a sub-limit and adds nothing to what its owner may do.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::fuel::Fuel;
use super::headers::Policy;
use super::lease::link::Link;
use super::leased::{Holder, Leases, Outgoing};
use super::quota::{Cell, Tick, bounds};
use crate::domain::{Quota, Tier, Window};

/// The state of one tier's policies. `cells` and `policies` are in the order of `tier.quotas`.
pub struct Bucket {
    pub tier: Arc<Tier>,
    /// In a fleet, what this gateway admits by itself while nobody can be asked.
    pub cells: Vec<Cell>,
    /// In a fleet, where the tier has quotas.
    pub leases: Option<Leases>,
    pub policies: Vec<Arc<Policy>>,
    /// Shared with the guards, which give back without the shard's lock.
    pub in_flight: Arc<AtomicU32>,
    factor: u64,
}

impl Bucket {
    fn new(tier: &Arc<Tier>, factor: u64, holder: Option<&Holder>, now: Tick) -> Self {
        let cells: Vec<Cell> = tier.quotas.iter().map(|q| Cell::new(q, factor, now)).collect();
        let policies = tier.quotas.iter().zip(&cells).map(|(quota, cell)| Arc::new(policy(quota, cell))).collect();
        let leases = holder.and_then(|holder| Leases::new(holder, tier, factor, now.mono));
        Self { tier: tier.clone(), cells, leases, policies, in_flight: Arc::default(), factor }
    }

    pub fn concurrent(&self) -> u32 {
        u32::try_from(u64::from(self.tier.concurrent) * self.factor).unwrap_or(u32::MAX)
    }

    pub fn has_place(&self) -> bool {
        self.in_flight.load(Ordering::Acquire) < self.concurrent()
    }

    /// The tier may have changed with a reload; what was used stays used. The leases that are not used any more.
    fn adopt(&mut self, tier: &Arc<Tier>, holder: Option<&Holder>, now: Tick) -> Option<Leases> {
        let mut retired = None;
        if *self.tier != **tier {
            let mut fresh = Self::new(tier, self.factor, holder, now);
            for (quota, cell) in tier.quotas.iter().zip(&mut fresh.cells) {
                let before = self.tier.quotas.iter().position(|q| q.name == quota.name && q.window == quota.window);
                if let Some(at) = before {
                    cell.inherit(&self.cells[at], now);
                }
            }
            (self.cells, self.policies) = (fresh.cells, fresh.policies);
            retired = std::mem::replace(&mut self.leases, fresh.leases);
        }
        self.tier = tier.clone();
        retired
    }

    fn is_idle(&self, now: Tick) -> bool {
        self.in_flight.load(Ordering::Acquire) == 0
            && self.cells.iter().all(|c| c.is_idle(now))
            && self.leases.as_ref().is_none_or(|leases| leases.is_idle(now.mono))
    }

    /// Whose loss would leave something behind.
    fn is_busy(&self) -> bool {
        self.in_flight.load(Ordering::Acquire) > 0 || self.leases.as_ref().is_some_and(Leases::is_busy)
    }
}

fn policy(quota: &Quota, cell: &Cell) -> Policy {
    let (requests, window_seconds, burst) = match (cell, quota.window) {
        (Cell::Rolling { rate, .. }, Window::Rolling { seconds }) => {
            (rate.requests(), u64::from(seconds), Some(cell.capacity()).filter(|b| *b != rate.requests()))
        }
        (Cell::Calendar { limit, count, .. }, _) => (*limit, count.seconds(), None),
        (Cell::Rolling { rate, .. }, _) => (rate.requests(), 0, None),
    };
    Policy::new(quota.name.clone(), requests, window_seconds, burst)
}

/// A counter from before a restart, until its tier is seen.
pub struct Restored {
    pub tier: String,
    pub policy: String,
    pub window: Window,
    pub start: i64,
    pub used: u64,
}

pub struct Account {
    pub buckets: Vec<Bucket>,
    pub fuel: Fuel,
    pub restored: Vec<Restored>,
    /// Leases of tiers that have changed since, to be closed.
    retired: Vec<Leases>,
    /// In a fleet.
    pub holder: Option<Holder>,
    factor: u64,
}

impl Account {
    pub fn new(factor: u64, holder: Option<Holder>, now: Tick) -> Self {
        Self {
            buckets: Vec::with_capacity(1),
            fuel: Fuel::new(now.seconds()),
            restored: Vec::new(),
            retired: Vec::new(),
            holder,
            factor,
        }
    }

    /// The bucket of `tier`, and that of the highest tier the subject has, when it is another one.
    pub fn buckets(&mut self, tier: &Arc<Tier>, now: Tick) -> (&mut Bucket, Option<&mut Bucket>) {
        let own = match self.buckets.iter().position(|b| Arc::ptr_eq(&b.tier, tier)) {
            Some(own) => own,
            None => self.find_or_add(tier, now),
        };
        let top = (0..self.buckets.len()).max_by_key(|at| (self.buckets[*at].tier.rank, *at == own)).unwrap_or(own);
        if own < top {
            let (left, right) = self.buckets.split_at_mut(top);
            (&mut left[own], right.first_mut())
        } else {
            let (left, right) = self.buckets.split_at_mut(own);
            (&mut right[0], if top == own { None } else { Some(&mut left[top]) })
        }
    }

    fn find_or_add(&mut self, tier: &Arc<Tier>, now: Tick) -> usize {
        if let Some(at) = self.buckets.iter().position(|b| b.tier.name == tier.name) {
            self.retired.extend(self.buckets[at].adopt(tier, self.holder.as_ref(), now));
            return at;
        }
        let mut bucket = Bucket::new(tier, self.factor, self.holder.as_ref(), now);
        let is_top = self.buckets.iter().all(|b| b.tier.rank < tier.rank);
        for (quota, cell) in tier.quotas.iter().zip(&mut bucket.cells) {
            let Cell::Calendar { window, count, .. } = cell else { continue };
            // What lower keys used in this window is part of what the owner used.
            for other in self.buckets.iter().filter(|_| is_top).flat_map(|b| &b.cells) {
                if let Cell::Calendar { window: w, count: c, .. } = other
                    && w == window
                    && c.start == count.start
                {
                    count.used = count.used.max(c.used);
                }
            }
            let same =
                |r: &&Restored| r.tier == tier.name.as_str() && r.policy == quota.name.as_str() && r.window == *window;
            if let Some(r) = self.restored.iter().find(same)
                && r.start == count.start
            {
                count.used = count.used.max(r.used);
            }
        }
        self.restored.retain(|r| r.tier != tier.name.as_str());
        self.buckets.push(bucket);
        self.buckets.len() - 1
    }

    /// The bucket of this tier is one of it as it is now. The last calls of leases of tiers that have changed since.
    pub fn take_up(&mut self, tier: &Arc<Tier>, now: Tick, link: &Link) -> Vec<Outgoing> {
        if !self.buckets.iter().any(|bucket| Arc::ptr_eq(&bucket.tier, tier)) {
            self.find_or_add(tier, now);
        }
        let mut calls = Vec::new();
        for mut leases in self.retired.drain(..) {
            let last = leases.close(now.mono, link);
            let heir = self.buckets.iter_mut().find(|bucket| bucket.tier.name == *leases.tier());
            if let Some(heir) = heir.and_then(|bucket| bucket.leases.as_mut()) {
                heir.inherit(&leases, now.mono);
            }
            leases.wake();
            calls.extend(last);
        }
        calls
    }

    pub fn is_busy(&self) -> bool {
        self.buckets.iter().any(Bucket::is_busy) || (self.holder.is_some() && self.fuel.is_untold())
    }

    /// Forgets what is idle; whether anything is left that forgetting would give away.
    pub fn shrink(&mut self, now: Tick) -> bool {
        self.restored.retain(|r| bounds(r.window, r.start).1 > now.seconds());
        self.buckets.retain(|b| !b.is_idle(now));
        let fuel = self.fuel.count.used > 0 && now.seconds() < self.fuel.count.end;
        fuel || !self.restored.is_empty() || !self.buckets.is_empty()
    }
}
