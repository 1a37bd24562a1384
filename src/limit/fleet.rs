//! The limiter as one of a fleet: calls of leases on their way, alarms, and what is told of fuel.
//!
//! Invariant: no lock is held while anything is awaited. A call whose answer is late is still under way: what it is granted was taken
//! from the shared bucket, and counts here when it comes. Only who waits does not wait for it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use futures_util::stream::{FuturesUnordered, StreamExt};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::Notify;

use super::account::Account;
use super::decide::Alone;
use super::fuel::Told;
use super::lease::link::Link;
use super::lease::wire::Reply;
use super::leased::{Held, Holder, LeaseId, Outgoing};
use super::limiter::{Limiter, Now, Shard};
use super::patience::Patience;
use super::quota::Tick;
use crate::store::{Buckets, StoreError};

/// How long a request waits in all. Long before, three calls have failed, and each gateway decides alone.
pub const PATIENCE: Duration = Duration::from_millis(500);
/// Calls that no request waits for, begun at once; the next as many follow a moment later.
const AT_ONCE: usize = 256;
const MOMENT: u64 = 10_000_000;
/// The longest that a gateway that stops gives back and settles.
const LAST_WORDS: Duration = Duration::from_secs(2);

pub struct Fleet {
    buckets: Arc<dyn Buckets>,
    /// Names this process in sums.
    node: String,
    runtime: Handle,
    link: Mutex<Link>,
    patience: Mutex<Patience>,
    /// When the first alarm goes off.
    next: AtomicU64,
    alarm: Notify,
    /// The store has been lost sight of: nobody may have asked since.
    doubted: AtomicBool,
    figures: Figures,
}

#[derive(Default)]
struct Figures {
    answered: AtomicU64,
    failed: AtomicU64,
    late: AtomicU64,
    share: AtomicU64,
    open: AtomicU64,
}

/// Since the start.
#[derive(Clone, Copy, Debug)]
pub struct FleetFigures {
    /// Calls of leases and of sums: answered in time, failed, and answered late.
    pub answered: u64,
    pub failed: u64,
    pub late: u64,
    /// Requests admitted without having asked: by this gateway's share, and by tiers that fail open.
    pub share: u64,
    pub open: u64,
    /// The shared buckets can be reached.
    pub is_linked: bool,
}

/// What is sent.
pub enum Out {
    Lease(Outgoing),
    Fuel(Holder, Told),
}

/// Whose alarm it is.
pub enum Due {
    Lease(LeaseId),
    Fuel(Holder),
}

/// The alarms of a shard.
#[derive(Default)]
pub struct Timers {
    due: BTreeMap<(u64, u64), Due>,
    set: u64,
}

impl Fleet {
    pub fn new(buckets: Arc<dyn Buckets>) -> Self {
        Self {
            buckets,
            node: format!("{:016x}", random_bits()),
            runtime: Handle::current(),
            link: Mutex::new(Link::new(1)),
            patience: Mutex::new(Patience::new(Instant::now())),
            next: AtomicU64::new(u64::MAX),
            alarm: Notify::new(),
            doubted: AtomicBool::new(false),
            figures: Figures::default(),
        }
    }

    /// Under the lock of the shard.
    pub fn set(&self, timers: &mut Timers, at: u64, due: Due) {
        timers.set += 1;
        timers.due.insert((at, timers.set), due);
        if at < self.next.fetch_min(at, Ordering::AcqRel) {
            self.alarm.notify_one();
        }
    }

    pub fn count_alone(&self, alone: Alone) {
        if alone.share > 0 {
            self.figures.share.fetch_add(alone.share, Ordering::Relaxed);
        }
        if alone.open > 0 {
            self.figures.open.fetch_add(alone.open, Ordering::Relaxed);
        }
    }

    /// The answer, however late; `is_silent` is called as often as one could have come while none came to anybody.
    async fn ask<T>(&self, call: impl Future<Output = Result<T, StoreError>>, is_silent: impl Fn()) -> Option<T> {
        let (sent, mut call) = (Instant::now(), std::pin::pin!(call));
        let mut in_time = true;
        let answer = loop {
            let patience = self.patience.lock().is();
            match tokio::time::timeout(patience, &mut call).await {
                Ok(answer) => break answer,
                Err(_) if self.patience.lock().is_failure(sent, Instant::now()) => is_silent(),
                Err(_) => {}
            }
            in_time = false;
        };
        let figures = &self.figures;
        match answer {
            Ok(answer) => {
                self.patience.lock().answered(sent, Instant::now());
                if in_time { &figures.answered } else { &figures.late }.fetch_add(1, Ordering::Relaxed);
                Some(answer)
            }
            Err(error) => {
                tracing::debug!(%error, "a call for limits failed");
                figures.failed.fetch_add(1, Ordering::Relaxed);
                if self.patience.lock().is_new_failure(sent, Instant::now()) {
                    is_silent();
                }
                None
            }
        }
    }
}

fn random_bits() -> u64 {
    // Only spreads calls and names nodes: no randomness is no reason to fail.
    getrandom::u64().unwrap_or_else(|_| u64::from(std::process::id()).wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

/// In 0..1.
fn random() -> f64 {
    (random_bits() >> 11) as f64 / (1u64 << 53) as f64
}

/// Alarms and probes, until the limiter is dropped.
pub async fn run(fleet: Arc<Fleet>, limiter: Weak<Limiter>) {
    // The first call finds a connection and a known round trip.
    let _ = fleet.buckets.probe().await;
    loop {
        let Some(limiter) = limiter.upgrade() else { return };
        let now = limiter.tick(Now::read());
        let probe = fleet.link.lock().probe_at();
        let is_doubted = probe.is_none() && fleet.doubted.swap(false, Ordering::AcqRel);
        if is_doubted || probe.is_some_and(|at| at <= now.mono) {
            let answered = fleet.ask(fleet.buckets.probe(), || limiter.heard(&fleet, false)).await.is_some();
            fleet.doubted.fetch_or(!answered, Ordering::AcqRel);
            if answered {
                limiter.heard(&fleet, true);
            } else if probe.is_some() {
                fleet.link.lock().on_failure(limiter.tick(Now::read()).mono, random());
            }
            continue;
        }
        let next = fleet.next.load(Ordering::Acquire).min(probe.unwrap_or(u64::MAX));
        if next > now.mono {
            drop(limiter);
            let pause = Duration::from_nanos(next - now.mono).min(Duration::from_secs(1));
            // Either way it is looked at again.
            let _ = tokio::time::timeout(pause, fleet.alarm.notified()).await;
            continue;
        }
        // Alarms that are set from here on count again.
        fleet.next.store(u64::MAX, Ordering::Release);
        for out in limiter.ring(&fleet, now) {
            limiter.send(out);
        }
    }
}

impl Limiter {
    /// How many gateways there are, this one included; what is not known any more stays as it was.
    pub fn set_nodes(&self, nodes: u32) {
        if let Some(fleet) = &self.fleet {
            let mut link = fleet.link.lock();
            if link.nodes != nodes.max(1) {
                link.nodes = nodes.max(1);
                self.publish(&link);
            }
        }
    }

    /// Something says that the store is away: it is asked, also while no request needs it.
    pub fn doubt(&self) {
        if let Some(fleet) = &self.fleet {
            fleet.doubted.store(true, Ordering::Release);
            fleet.alarm.notify_one();
        }
    }

    pub fn fleet_figures(&self) -> Option<FleetFigures> {
        let fleet = self.fleet.as_ref()?;
        let of = |figure: &AtomicU64| figure.load(Ordering::Relaxed);
        let Figures { answered, failed, late, share, open } = &fleet.figures;
        Some(FleetFigures {
            answered: of(answered),
            failed: of(failed),
            late: of(late),
            share: of(share),
            open: of(open),
            is_linked: !fleet.link.lock().is_lost(),
        })
    }

    fn publish(&self, link: &Link) {
        for shard in &self.shards {
            shard.lock().link = link.clone();
        }
    }

    pub(super) fn send(&self, out: Out) {
        if let (Some(fleet), Some(limiter)) = (&self.fleet, self.this.upgrade()) {
            let fleet_of_call = fleet.clone();
            fleet.runtime.spawn(async move { limiter.call(&fleet_of_call, out).await });
        }
    }

    async fn call(&self, fleet: &Arc<Fleet>, out: Out) {
        match out {
            Out::Lease(Outgoing { id, plan, call }) => {
                let arguments = call.arguments(&plan, fleet.link.lock().nodes);
                let bucket = format!("{}/{}", id.holder, id.tier);
                let is_silent = || {
                    self.heard(fleet, false);
                    self.wake(&id);
                };
                let answer = fleet.ask(fleet.buckets.lease(&bucket, arguments), is_silent).await;
                let reply = answer.and_then(|numbers| Reply::parse(&numbers, &plan));
                if reply.is_some() {
                    self.heard(fleet, true);
                }
                self.replied(fleet, &id, reply.as_ref());
            }
            Out::Fuel(holder, told) => {
                let sum = format!("{holder}/{}", told.day);
                let telling = fleet.buckets.add_up(&sum, &fleet.node, told.used, told.life);
                let others = fleet.ask(telling, || self.heard(fleet, false)).await;
                if others.is_some() {
                    self.heard(fleet, true);
                }
                let tick = self.tick(Now::read());
                let mut guard = self.shard_of_holder(&holder).lock();
                let shard = &mut *guard;
                let lost = shard.link.is_lost();
                let Some(account) = account(shard, &holder) else { return };
                account.fuel.answered(&told, others);
                // A lost link's alarms are set when it is back.
                let alarm = if lost { None } else { account.fuel.new_alarm(tick, false) };
                if let Some(at) = alarm {
                    fleet.set(&mut shard.timers, at, Due::Fuel(holder));
                }
            }
        }
    }

    /// A request has waited for as long as it may: this gateway decides alone for a while, also where answers come, too late.
    pub(super) fn give_up(&self) {
        let Some(fleet) = &self.fleet else { return };
        let mut link = fleet.link.lock();
        if !link.is_lost() {
            link.lose(self.tick(Now::read()).mono, random());
            tracing::warn!("the fleet's limits answer too late; this gateway decides alone, as its tiers say");
            self.publish(&link);
        }
    }

    /// An answer has come, or none for long.
    fn heard(&self, fleet: &Fleet, answered: bool) {
        let now = self.tick(Now::read());
        let mut link = fleet.link.lock();
        let was_lost = link.is_lost();
        if answered {
            if link.on_success(now.mono) {
                tracing::info!("limits are the fleet's again");
                self.publish(&link);
                drop(link);
                self.set_alarms(fleet, now);
            }
        } else {
            link.on_failure(now.mono, random());
            if link.is_lost() && !was_lost {
                tracing::warn!("the fleet's limits can't be reached; this gateway decides alone, as its tiers say");
                self.publish(&link);
            }
        }
    }

    /// Whoever waits for a late answer looks whether to wait on.
    fn wake(&self, id: &LeaseId) {
        let waiters = lease(&mut self.shard_of_holder(&id.holder).lock(), id).map(Held::waiters);
        waiters.into_iter().flatten().for_each(|waiter| waiter.notify_one());
    }

    fn replied(&self, fleet: &Fleet, id: &LeaseId, reply: Option<&Reply>) {
        let now = self.tick(Now::read()).mono;
        let mut guard = self.shard_of_holder(&id.holder).lock();
        let shard = &mut *guard;
        let link = shard.link.clone();
        let Some(held) = lease(shard, id) else { return };
        let waiters = held.answered(now, reply, random());
        let alarm = held.new_alarm(now, &link);
        if let Some(at) = alarm {
            fleet.set(&mut shard.timers, at, Due::Lease(id.clone()));
        }
        drop(guard);
        waiters.iter().for_each(|waiter| waiter.notify_one());
    }

    /// What alarms that are due give to send.
    fn ring(&self, fleet: &Fleet, now: Tick) -> Vec<Out> {
        let mut out = Vec::new();
        let mut next = u64::MAX;
        for shard in &self.shards {
            let shard = &mut *shard.lock();
            let link = shard.link.clone();
            while let Some(first) = shard.timers.due.first_entry() {
                let (at, _) = *first.key();
                if at > now.mono || out.len() >= AT_ONCE {
                    next = next.min(at.max(now.mono + if out.len() >= AT_ONCE { MOMENT } else { 0 }));
                    break;
                }
                match first.remove() {
                    Due::Lease(id) => {
                        let Some(held) = lease(shard, &id) else { continue };
                        let asked = held.tick(at, now.mono, &link);
                        let alarm = held.new_alarm(now.mono, &link);
                        if let Some(at) = alarm {
                            fleet.set(&mut shard.timers, at, Due::Lease(id.clone()));
                        }
                        out.extend(asked.map(|(plan, call)| Out::Lease(Outgoing { id, plan, call })));
                    }
                    Due::Fuel(holder) => {
                        let account = account(shard, &holder);
                        let told = account.and_then(|account| account.fuel.tick(at, now, link.is_lost()));
                        out.extend(told.map(|told| Out::Fuel(holder, told)));
                    }
                }
            }
        }
        fleet.next.fetch_min(next, Ordering::AcqRel);
        out
    }

    /// When the link is back: all debts are settled at once, and not with the callers' next requests.
    fn set_alarms(&self, fleet: &Fleet, now: Tick) {
        for shard in &self.shards {
            let Shard { owners, addresses, sites, link, timers } = &mut *shard.lock();
            for account in owners.values_mut().chain(addresses.values_mut()).chain(sites.values_mut()) {
                for leases in account.buckets.iter_mut().filter_map(|bucket| bucket.leases.as_mut()) {
                    for (at, id) in leases.new_alarms(now.mono, link) {
                        fleet.set(timers, at, Due::Lease(id));
                    }
                }
                if let (Some(holder), Some(at)) = (&account.holder, account.fuel.new_alarm(now, false)) {
                    fleet.set(timers, at, Due::Fuel(holder.clone()));
                }
            }
        }
    }

    /// At the end, when nobody asks any more: gives back what is held and settles what is owed.
    pub async fn close(&self) {
        let Some(fleet) = &self.fleet else { return };
        let closing = async {
            loop {
                let (calls, busy) = self.last_calls();
                if calls.is_empty() && !busy {
                    return;
                }
                let mut calls = calls.into_iter();
                let mut under_way: FuturesUnordered<_> =
                    calls.by_ref().take(AT_ONCE).map(|out| self.call(fleet, out)).collect();
                while under_way.next().await.is_some() {
                    under_way.extend(calls.next().map(|out| self.call(fleet, out)));
                }
                // What was on its way.
                tokio::time::sleep(Duration::from_nanos(MOMENT)).await;
            }
        };
        if tokio::time::timeout(LAST_WORDS, closing).await.is_err() {
            tracing::warn!("what this gateway held of the fleet's limits was not given back; it expires by itself");
        }
    }

    /// And whether there are others whose last call is on its way.
    fn last_calls(&self) -> (Vec<Out>, bool) {
        let now = self.tick(Now::read());
        let (mut out, mut busy) = (Vec::new(), false);
        for shard in &self.shards {
            let Shard { owners, addresses, sites, link, .. } = &mut *shard.lock();
            if link.is_lost() {
                continue;
            }
            for account in owners.values_mut().chain(addresses.values_mut()).chain(sites.values_mut()) {
                for leases in account.buckets.iter_mut().filter_map(|bucket| bucket.leases.as_mut()) {
                    out.extend(leases.close(now.mono, link).into_iter().map(Out::Lease));
                    busy |= leases.is_busy();
                }
                if let (Some(holder), Some(told)) = (&account.holder, account.fuel.close(now)) {
                    out.push(Out::Fuel(holder.clone(), told));
                }
                busy |= account.fuel.is_untold();
            }
        }
        (out, busy)
    }
}

fn account<'a>(shard: &'a mut Shard, holder: &Holder) -> Option<&'a mut Account> {
    match holder {
        Holder::Owner(owner) => shard.owners.get(owner),
        Holder::Address(address) => shard.addresses.get(address),
        Holder::Site(site) => shard.sites.get(site),
    }
}

fn lease<'a>(shard: &'a mut Shard, id: &LeaseId) -> Option<&'a mut Held> {
    let buckets = &mut account(shard, &id.holder)?.buckets;
    let bucket = buckets.iter_mut().find(|bucket| bucket.tier.name == id.tier)?;
    bucket.leases.as_mut()?.find(id.serial)
}
