//! Calendar counters of a gateway that counts by itself, as they outlive a restart.

use std::net::IpAddr;

use super::account::{Account, Restored};
use super::fuel;
use super::limiter::{Limiter, Now};
use super::network::{self, SITE_FACTOR};
use super::quota::{Calendar, Cell, Tick, bounds};
use super::spread;
use crate::domain::{OwnerId, Subject, Window};
use crate::store::Counter;

impl Limiter {
    /// All that are in use, with their whole sums, so that a save that failed is made good by the next one. A fleet's are not kept
    /// here.
    pub fn counters(&self, now: Now) -> Vec<Counter> {
        let tick = self.tick(now);
        let mut out = Vec::new();
        let here = if self.fleet.is_none() { &self.shards[..] } else { &[] };
        for shard in here {
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
            let window = what.map_or(fuel::WINDOW, |(_, _, window)| window);
            if bounds(window, tick.seconds()).0 != counter.window_start {
                continue;
            }
            self.with_account(kind, name, tick, |account| match what {
                None => account.fuel.add(counter.used, tick),
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

    fn with_account(&self, kind: &str, name: &str, tick: Tick, change: impl FnOnce(&mut Account)) {
        let account = |factor| move || Account::new(factor, None, tick);
        match (kind, name.parse::<OwnerId>(), name.parse::<IpAddr>()) {
            ("o", Ok(owner), _) => {
                let mut shard = self.shard(spread(owner.as_str())).lock();
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

fn collect(account: &Account, subject: std::fmt::Arguments<'_>, now: Tick, out: &mut Vec<Counter>) {
    let mut push = |id: String, count: &Calendar| {
        if count.used > 0 && now.seconds() < count.end {
            out.push(Counter { id, window_start: count.start, used: count.used });
        }
    };
    push(format!("{subject}/fuel"), &account.fuel.count);
    for bucket in &account.buckets {
        for (quota, cell) in bucket.tier.quotas.iter().zip(&bucket.cells) {
            if let Cell::Calendar { window, count, .. } = cell {
                push(format!("{subject}/{}/{}/{window}", bucket.tier.name, quota.name), count);
            }
        }
    }
}
