//! Failed authentications by address.
//!
//! Invariant: what an address has in look-ups at once is bounded, and each that turns out badly is charged, also beyond
//! the rate: many at once gain no more than that bound, once, and pay for it with the time that follows.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::network::{self, SITE_FACTOR, Site};
use super::quota::{Rate, Refused, Tat};
use super::table::Table;
use crate::domain::Rejection;

const SHARDS: usize = 16;
/// Addresses, and sites, that are remembered.
const MAX_ADDRESSES: usize = 1 << 16;
/// Look-ups at once of one address: as many good keys may come at once from behind it that the cache does not know yet,
/// as after a start.
const MAX_PENDING: u32 = 256;

pub struct FailureGate {
    epoch: Instant,
    rate: Rate,
    site_rate: Rate,
    shards: Box<[Mutex<Shard>]>,
}

struct Shard {
    addresses: Table<IpAddr, Record>,
    sites: Table<Site, Record>,
}

#[derive(Default)]
struct Record {
    failures: Tat,
    pending: u32,
}

impl Record {
    fn admits(&self, rate: &Rate, max_pending: u32, at: u64) -> Result<(), Rejection> {
        let refused = |wait: Option<Duration>| Rejection::TooManyFailures {
            retry_after: wait.unwrap_or(Duration::from_secs(60)),
        };
        rate.check(self.failures, 1, at).map_err(|Refused(wait)| refused(wait))?;
        if self.pending < max_pending { Ok(()) } else { Err(refused(Some(Duration::from_secs(1)))) }
    }

    fn settle(&mut self, rate: &Rate, failed_at: Option<u64>) {
        self.pending = self.pending.saturating_sub(1);
        if let Some(at) = failed_at {
            self.failures = rate.charge(self.failures, 1, at);
        }
    }
}

/// An attempt under way. Dropped, it is charged: the credential was wrong.
#[must_use = "an attempt that turned out well is told so with `forgive`"]
pub struct Attempt {
    gate: Arc<FailureGate>,
    caller: IpAddr,
    at: u64,
    good: bool,
}

impl FailureGate {
    pub fn new(failures_per_minute: u32) -> Arc<Self> {
        let minute = Duration::from_secs(60);
        let (one, site) = (u64::from(failures_per_minute), u64::from(failures_per_minute) * SITE_FACTOR);
        let cap = MAX_ADDRESSES / SHARDS;
        let shard = || Mutex::new(Shard { addresses: Table::new(cap), sites: Table::new(cap) });
        Arc::new(Self {
            epoch: Instant::now(),
            rate: Rate::new(one, minute, one),
            site_rate: Rate::new(site, minute, site),
            shards: (0..SHARDS).map(|_| shard()).collect(),
        })
    }

    /// Before a credential that the cache does not know as good is looked up. A good one in the cache needs no attempt,
    /// so that callers behind a shared address are not shut out by another's failures.
    pub fn attempt(self: &Arc<Self>, address: IpAddr, now: Instant) -> Result<Attempt, Rejection> {
        let caller = network::caller(address);
        let at = self.at(now);
        let mut shard = self.shard(caller).lock();
        let shard = &mut *shard;
        let busy = |record: &Record| record.pending > 0;
        let full = || Rejection::Busy { retry_after: Duration::from_secs(1) };
        let own = shard.addresses.entry(&caller, Record::default, busy).ok_or_else(full)?;
        own.admits(&self.rate, MAX_PENDING, at)?;
        if let Some(site) = network::site(caller) {
            let wide = shard.sites.entry(&site, Record::default, busy).ok_or_else(full)?;
            wide.admits(&self.site_rate, MAX_PENDING * SITE_FACTOR as u32, at)?;
            wide.pending += 1;
        }
        own.pending += 1;
        Ok(Attempt { gate: self.clone(), caller, at, good: false })
    }

    /// Drops addresses without recent failures; called from a ticker.
    pub fn evict_idle(&self, now: Instant) {
        let at = self.at(now);
        for shard in &self.shards {
            let mut shard = shard.lock();
            shard.addresses.retain(|r| r.pending > 0 || !self.rate.is_idle(r.failures, at));
            shard.sites.retain(|r| r.pending > 0 || !self.site_rate.is_idle(r.failures, at));
        }
    }

    /// Addresses and sites held.
    pub fn subjects(&self) -> usize {
        let count = |s: &Mutex<Shard>| {
            let s = s.lock();
            s.addresses.len() + s.sites.len()
        };
        self.shards.iter().map(count).sum()
    }

    fn at(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.epoch).as_nanos()).unwrap_or(u64::MAX)
    }

    fn shard(&self, caller: IpAddr) -> &Mutex<Shard> {
        &self.shards[network::spread(caller) as usize % SHARDS]
    }
}

impl Attempt {
    /// The credential was good, or nobody could tell.
    pub fn forgive(mut self) {
        self.good = true;
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        let failed_at = (!self.good).then_some(self.at);
        let mut shard = self.gate.shard(self.caller).lock();
        if let Some(own) = shard.addresses.get(&self.caller) {
            own.settle(&self.gate.rate, failed_at);
        }
        if let Some(site) = network::site(self.caller)
            && let Some(wide) = shard.sites.get(&site)
        {
            wide.settle(&self.gate.site_rate, failed_at);
        }
    }
}
