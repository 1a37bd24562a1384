//! Failed authentications by address.
//!
//! Invariant: an attempt is charged before the look-up and given back when it turns out well, so that many at once can't
//! pass a check that none has yet been counted in.

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

pub struct FailureGate {
    epoch: Instant,
    rate: Rate,
    site_rate: Rate,
    shards: Box<[Mutex<Shard>]>,
}

struct Shard {
    addresses: Table<IpAddr, Tat>,
    sites: Table<Site, Tat>,
}

/// A charged attempt. Dropped, it stays charged: the credential was wrong.
#[must_use = "an attempt that turned out well is given back with `forgive`"]
pub struct Attempt {
    gate: Arc<FailureGate>,
    caller: IpAddr,
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
        let refused = |Refused(wait): Refused| Rejection::TooManyFailures {
            retry_after: wait.unwrap_or(Duration::from_secs(60)),
        };
        let busy = |_: &Tat| false;
        let full = || Rejection::Busy { retry_after: Duration::from_secs(1) };
        let own = shard.addresses.entry(&caller, Tat::default, busy).ok_or_else(full)?;
        let own_next = self.rate.check(*own, 1, at).map_err(refused)?;
        if let Some(site) = network::site(caller) {
            let wide = shard.sites.entry(&site, Tat::default, busy).ok_or_else(full)?;
            *wide = self.site_rate.check(*wide, 1, at).map_err(refused)?;
        }
        *own = own_next;
        Ok(Attempt { gate: self.clone(), caller })
    }

    /// Drops addresses without recent failures; called from a ticker.
    pub fn evict_idle(&self, now: Instant) {
        let at = self.at(now);
        for shard in &self.shards {
            let mut shard = shard.lock();
            shard.addresses.retain(|tat| !self.rate.is_idle(*tat, at));
            shard.sites.retain(|tat| !self.site_rate.is_idle(*tat, at));
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
    pub fn forgive(self) {
        let mut shard = self.gate.shard(self.caller).lock();
        if let Some(tat) = shard.addresses.get(&self.caller) {
            *tat = self.gate.rate.give_back(*tat, 1);
        }
        if let Some(site) = network::site(self.caller)
            && let Some(tat) = shard.sites.get(&site)
        {
            *tat = self.gate.site_rate.give_back(*tat, 1);
        }
    }
}
