//! A key's lease of tokens: the node's side of the fleet limiter. Pure; whoever has the connection asks it what to send,
//! tells it what came back, and brings the time (monotonic nanoseconds) and the randomness.
//!
//! Invariant: a token is spent once, before its grant expires, and the shared bucket counts it as outstanding until
//! then. Hence nothing is sent twice: what a call gives back or acknowledges is forgotten here before it is sent, and
//! only debts, which cost the caller and not the limit, are kept until a reply has acknowledged them.
//!
//! The shared side is `store/redis/lease.lua`. How a node uses a lease:
//! - [`Lease::decide`] for a request. After [`Verdict::Wait`], [`Lease::ask`] says what to send at once, if nothing is
//!   on its way for this key. Where a request needs tokens of several leases, the parts: [`Lease::arrive`], [`Lease::check`]
//!   of each, then [`Lease::take`] of all, or [`Lease::wait`] of those that say so.
//! - After [`Lease::on_reply`] or [`Lease::on_failure`], [`Lease::resume`] for each request that waits, in order of
//!   arrival, then [`Lease::ask`] again.
//! - [`Lease::tick`] at [`Lease::wake`], which may have changed after any of these, and when the link is back.

pub mod link;
pub mod terms;
pub mod wire;

use std::sync::Arc;
use std::time::Duration;

use self::link::{Link, Share};
use self::terms::{Plan, Terms};
use self::wire::{Call, Claim, PerPolicy, Reply};

/// Calls that a key may have saved up. A call that no request waits for needs one, so that there are never more calls
/// than requests.
const MOST_CREDIT: u32 = 1000;
/// Leases below this cost more calls than they save, and strand what is left of small quotas.
const SMALLEST_LEASE: f64 = 4.0;
/// Stock that is wanted however low the rate, as far as it is spent within an epoch.
const USUAL_LEASE: f64 = 100.0;
/// Seconds of the present rate that are wanted as stock.
const STOCK_SECONDS: f64 = 0.05;
/// While a policy is exhausted, a call is made for so many requests at the most.
const REQUESTS_A_POLL: f64 = 64.0;
/// For which tokens of a late reply are kept for those who wait, who have to be given a processor first.
const WAKING: u64 = 50_000_000;
/// Calls that no request waits for go out at multiples of this, those of many keys together.
const TICK: u64 = 10_000_000;

/// What to do with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Spend,
    /// `until`: not earlier than then; `None`: never, the cost is over what a policy admits at once.
    Refuse {
        until: Option<u64>,
    },
    /// Until a reply, a failure, or the caller's own deadline ([`Lease::leave`]).
    Wait,
    /// The shared bucket is out of reach, and the tier's [`crate::domain::FailMode`] is not to share.
    Lost,
}

/// One key under one set of policies, on one node.
#[derive(Debug)]
pub struct Lease {
    plan: Arc<Plan>,
    tokens: u64,
    /// Tokens after the last reply.
    size: u64,
    expires: u64,
    /// When the shared side has to hear of what is left in stock: before it expires, or counts as used.
    renew: u64,
    blocked: u64,
    /// Tokens that the last reply left counted as outstanding.
    outstanding: u64,
    rate: Arrivals,
    credit: u32,
    /// Tokens for which requests wait.
    waiting: u64,
    in_flight: Option<Sent>,
    /// Seconds, smoothed.
    round_trip: f64,
    reviewed: u64,
    sides: PerPolicy<Side>,
}

/// One policy as this node knows it.
#[derive(Clone, Copy, Debug, Default)]
struct Side {
    tag: u64,
    left: u64,
    /// Of a calendar window, Unix seconds.
    window_end: u64,
    /// When the tokens of the last reply expire; a calendar window's end.
    ends: u64,
    debt: u64,
    share: Share,
}

#[derive(Debug)]
struct Sent {
    at: u64,
    held: u64,
    debts: PerPolicy<u64>,
}

/// Tokens asked for a second, refused ones too: an exponential average.
#[derive(Clone, Copy, Debug)]
struct Arrivals {
    per_second: f64,
    at: u64,
}

impl Arrivals {
    fn now(&self, now: u64, memory: f64) -> f64 {
        self.per_second * (-seconds(now.saturating_sub(self.at)) / memory).exp()
    }

    fn count(&mut self, now: u64, cost: u64, memory: f64) {
        *self = Self { per_second: self.now(now, memory) + cost as f64 / memory, at: self.at.max(now) };
    }
}

fn seconds(nanos: u64) -> f64 {
    nanos as f64 / 1e9
}

impl Lease {
    pub fn new(plan: Arc<Plan>, now: u64) -> Self {
        let sides = plan.policies.iter().map(|_| Side::default()).collect();
        Self {
            plan,
            tokens: 0,
            size: 0,
            expires: 0,
            renew: 0,
            blocked: 0,
            outstanding: 0,
            rate: Arrivals { per_second: 0.0, at: now },
            credit: 0,
            waiting: 0,
            in_flight: None,
            round_trip: 0.0,
            reviewed: now,
            sides,
        }
    }

    /// A request that costs `cost` tokens.
    pub fn decide(&mut self, now: u64, cost: u64, link: &Link) -> Verdict {
        self.arrive(now, cost);
        self.resume(now, cost, link)
    }

    /// A request that was told to wait, after what it waited for.
    pub fn resume(&mut self, now: u64, cost: u64, link: &Link) -> Verdict {
        let verdict = self.check(now, cost, link);
        match verdict {
            Verdict::Spend => {
                self.take(now, cost);
            }
            Verdict::Wait => self.wait(cost),
            Verdict::Refuse { .. } | Verdict::Lost => {}
        }
        verdict
    }

    /// Counts a request, once however often it is decided; one that costs as many as several stands for these.
    pub fn arrive(&mut self, now: u64, cost: u64) {
        let requests = u32::try_from(cost).unwrap_or(MOST_CREDIT);
        self.credit = self.credit.saturating_add(requests).min(MOST_CREDIT);
        self.rate.count(now, cost, self.memory());
    }

    /// Charges nothing.
    pub fn check(&mut self, now: u64, cost: u64, link: &Link) -> Verdict {
        if cost > self.plan.capacity {
            return Verdict::Refuse { until: None };
        }
        self.expire(now);
        if self.tokens >= cost {
            return Verdict::Spend;
        }
        if now < self.blocked {
            return Verdict::Refuse { until: Some(self.blocked.saturating_add(self.time_of(cost))) };
        }
        match link.alone_since(now) {
            Some(since) => self.check_alone(now, cost, since, link),
            None => Verdict::Wait,
        }
    }

    /// After a [`Self::check`] of the same cost at the same time that said [`Verdict::Spend`]. Whether they were granted.
    pub fn take(&mut self, now: u64, cost: u64) -> bool {
        let left = self.tokens.checked_sub(cost);
        match left {
            Some(left) => self.tokens = left,
            None => self.owe(now, cost),
        }
        left.is_some()
    }

    /// A request waits for so many tokens.
    pub fn wait(&mut self, cost: u64) {
        self.waiting = self.waiting.saturating_add(cost);
    }

    /// A request that waited has left.
    pub fn leave(&mut self, cost: u64) {
        self.waiting = self.waiting.saturating_sub(cost);
    }

    /// The call that waiting requests need, to be sent now.
    pub fn ask(&mut self, now: u64, link: &Link) -> Option<Call> {
        if self.waiting == 0 || self.in_flight.is_some() || link.alone_since(now).is_some() {
            return None;
        }
        self.expire(now);
        Some(self.send(now, self.tokens, self.want(now, link)))
    }

    /// The call that is due without a request: a debt, stock that runs low, or stock that is not used.
    pub fn tick(&mut self, now: u64, link: &Link) -> Option<Call> {
        if self.in_flight.is_some() || link.is_lost() {
            return None;
        }
        self.expire(now);
        let want = self.want(now, link);
        if self.in_debt() || self.runs_low(now, link) {
            return Some(self.send(now, self.tokens, want));
        }
        if self.tokens == 0 || now < self.review_at() {
            return None;
        }
        let (keep, ending) = (self.tokens.min(want), now >= self.renew_at());
        self.reviewed = now;
        let unused = (keep as f64) < 0.75 * self.tokens as f64;
        ((unused || ending) && self.credit > 0).then(|| self.send(now, if unused { keep } else { self.tokens }, want))
    }

    /// When [`Self::tick`] has something to do; `u64::MAX`: not before something else happens.
    pub fn wake(&self, now: u64, link: &Link) -> u64 {
        if self.in_flight.is_some() || link.is_lost() {
            u64::MAX
        } else if self.in_debt() || self.runs_low(now, link) {
            (now / TICK + 1) * TICK
        } else if self.tokens > 0 && now < self.expires {
            self.review_at().max(now)
        } else {
            u64::MAX
        }
    }

    /// What a node that stops gives back and settles, with nothing on its way and nobody waiting.
    pub fn close(&mut self, now: u64, link: &Link) -> Option<Call> {
        self.expire(now);
        let due = self.tokens > 0 || self.in_debt();
        (due && self.in_flight.is_none() && !link.is_lost()).then(|| self.send(now, 0, 0))
    }

    /// The answer to the call on its way. `random` is in 0..1.
    pub fn on_reply(&mut self, now: u64, reply: &Reply, random: f64) {
        let Some(sent) = self.in_flight.take() else { return };
        let took = seconds(now.saturating_sub(sent.at));
        self.round_trip += if self.round_trip == 0.0 { took } else { 0.2 * (took - self.round_trip) };
        self.expire(now);
        self.tokens = self.tokens.saturating_add(reply.grant);
        self.outstanding = sent.held.saturating_add(reply.grant);
        (self.blocked, self.reviewed) = (0, sent.at);
        let poll = REQUESTS_A_POLL / self.rate.now(now, self.memory());
        let (mut expires, mut renew, mut window_over) = (u64::MAX, u64::MAX, false);
        let policies = self.plan.policies.iter().zip(&reply.policies).zip(&sent.debts);
        for (side, (((_, terms), granted), debt)) in self.sides.iter_mut().zip(policies) {
            let ends = sent.at.saturating_add(granted.ttl.saturating_mul(1000));
            *side = Side {
                tag: granted.tag,
                left: granted.left,
                window_end: granted.window_end,
                ends,
                debt: side.debt.saturating_sub(*debt),
                share: side.share,
            };
            expires = expires.min(ends);
            let calendar = matches!(terms, Terms::Calendar { .. });
            window_over |= calendar && now >= ends;
            // A calendar window's lease lasts as long as the window, but after an epoch without a call other nodes are told
            // that nothing will come back.
            let heard_of = if calendar { sent.at.saturating_add(terms.epoch() * 1000) } else { u64::MAX };
            renew = renew.min(ends).min(heard_of);
            if granted.exhausted {
                let pause = if calendar { 0.0 } else { terms.poll().min(poll) * (0.9 + 0.2 * random) };
                let pause = granted.retry.saturating_mul(1000).max((pause * 1e9) as u64);
                // Whoever waited for this reply is refused, however late it is.
                self.blocked = self.blocked.max(sent.at.saturating_add(pause)).max(now + 1);
            }
        }
        if now >= expires {
            // Over a slow link to a small bucket the tokens of a rolling limit are late for stock, not for those who wait.
            self.tokens = if window_over { 0 } else { self.tokens.min(self.waiting) };
            expires = now + WAKING;
        }
        (self.expires, self.renew) = (expires, renew.min(expires));
        (self.size, self.waiting) = (self.tokens, 0);
    }

    /// The call on its way is lost, or its answer is. What it gave back or acknowledged stays given.
    pub fn on_failure(&mut self) {
        if self.in_flight.take().is_some() {
            self.credit = (self.credit + 1).min(MOST_CREDIT);
        }
        self.waiting = 0;
    }

    /// By policy: tokens left, as far as this node knows, and how long until all are there again; of its shares, while it is alone.
    pub fn left(&self, now: u64, link: &Link) -> impl Iterator<Item = (u64, Duration)> {
        let held = if now < self.expires { self.tokens } else { 0 };
        let alone = link.alone_since(now);
        self.sides.iter().zip(&self.plan.policies).map(move |(side, (_, terms))| {
            if let Some(since) = alone {
                let (left, reset) = side.share_left(now, terms, since, link);
                return (left.saturating_add(held).min(terms.capacity()), reset);
            }
            let known = if side.tag == 0 { terms.capacity() } else { side.left };
            let left = known.saturating_add(held).min(terms.capacity());
            let reset = match terms.per_second() {
                Some(r) => Duration::try_from_secs_f64((terms.capacity() - left) as f64 / r).unwrap_or(Duration::MAX),
                None => Duration::from_nanos(side.ends.saturating_sub(now)),
            };
            (left, reset)
        })
    }

    /// Forgetting it would lose nothing but an average.
    pub fn is_idle(&self, now: u64) -> bool {
        let held = self.tokens > 0 && now < self.expires;
        !self.is_busy() && !held && now >= self.blocked
    }

    /// Takes over what one of the same caller knows of calendar windows, under the policies as they were, and what it owes
    /// of which no call tells.
    pub fn inherit(&mut self, before: &Lease, now: u64) {
        let olds = || before.sides.iter().zip(&before.plan.policies);
        for (side, (name, terms)) in self.sides.iter_mut().zip(&self.plan.policies) {
            let old = olds().find(|(_, (known, _))| known == name);
            if let (Terms::Calendar { window, limit }, Some((old, (_, Terms::Calendar { window: was, limit: of })))) =
                (terms, old)
                && window == was
            {
                let left = limit.saturating_sub(of.saturating_sub(old.left));
                *side = Side { left, debt: 0, share: Share::default(), ..*old };
            }
        }
        self.owe(now, before.untold_debt());
    }

    /// Forgetting it would leave somebody waiting, or a debt unsettled.
    pub fn is_busy(&self) -> bool {
        self.in_flight.is_some() || self.waiting > 0 || self.in_debt()
    }

    /// Tokens spent without a grant that no reply has acknowledged.
    pub fn debt(&self) -> u64 {
        self.sides.iter().map(|side| side.debt).max().unwrap_or(0)
    }

    fn untold_debt(&self) -> u64 {
        let told = |at: usize| self.in_flight.as_ref().and_then(|sent| sent.debts.get(at)).copied().unwrap_or(0);
        self.sides.iter().enumerate().map(|(at, side)| side.debt.saturating_sub(told(at))).max().unwrap_or(0)
    }

    fn send(&mut self, now: u64, keep: u64, want: u64) -> Call {
        self.roll(now);
        let returned = self.tokens - keep;
        self.tokens = keep;
        self.credit = self.credit.saturating_sub(1);
        let debts = self.sides.iter().map(|side| side.debt).collect();
        self.in_flight = Some(Sent { at: now, held: keep, debts });
        Call {
            need: self.waiting.saturating_sub(keep),
            want: want.saturating_sub(keep),
            held: keep,
            returned,
            acknowledged: std::mem::take(&mut self.outstanding),
            policies: self.sides.iter().map(|side| Claim { tag: side.tag, debt: side.debt }).collect(),
        }
    }

    fn expire(&mut self, now: u64) {
        if now >= self.expires {
            (self.tokens, self.size) = (0, 0);
        }
    }

    fn in_debt(&self) -> bool {
        self.debt() > 0
    }

    /// Stock that is likely to be spent within an epoch; no more than there is while nothing may be drawn.
    fn want(&self, now: u64, link: &Link) -> u64 {
        if link.alone_since(now).is_some() {
            return self.tokens;
        }
        let rate = self.rate.now(now, self.memory());
        let want = (rate * STOCK_SECONDS).max(USUAL_LEASE).min(rate * seconds(self.plan.epoch)).floor();
        if want < SMALLEST_LEASE { 0 } else { want as u64 }
    }

    fn runs_low(&self, now: u64, link: &Link) -> bool {
        let live = self.size > 0 && self.credit > 0 && (self.blocked..self.expires).contains(&now);
        // Half a lease is the most that the mark can be, and the average costs an exponential.
        live && self.tokens <= self.size / 2 && {
            let mark = self.rate.now(now, self.memory()) * (1.5 * self.round_trip + seconds(TICK)) + 1.0;
            self.tokens as f64 <= mark && self.want(now, link) > self.tokens
        }
    }

    fn review_at(&self) -> u64 {
        let (next, renew) = (self.reviewed + self.plan.epoch / 2, self.renew_at());
        if self.reviewed < renew { next.min(renew) } else { next }
    }

    /// Late enough for one call before [`Self::renew`].
    fn renew_at(&self) -> u64 {
        self.renew.saturating_sub((1.5e9 * self.round_trip) as u64 + 2 * TICK)
    }

    /// Seconds over which arrivals are averaged.
    fn memory(&self) -> f64 {
        seconds(self.plan.epoch).max(0.2)
    }

    /// Nanoseconds from the first token on until there are `cost` of them, one after the other.
    fn time_of(&self, cost: u64) -> u64 {
        let policies = self.sides.iter().zip(&self.plan.policies);
        let times = policies.filter_map(|(side, (_, terms))| {
            let missing = (cost - 1).saturating_sub(side.left).saturating_sub(self.tokens);
            Some((missing as f64 / terms.per_second()? * 1e9) as u64)
        });
        times.max().unwrap_or(0)
    }
}
