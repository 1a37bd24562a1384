//! The node's side call by call, on the reference of the shared bucket.

use std::sync::Arc;
use std::time::Duration;

use wasmgate::domain::{FailMode, Quota};
use wasmgate::limit::lease::link::Link;
use wasmgate::limit::lease::terms::{OVERSHOOT_PERCENT, Plan};
use wasmgate::limit::lease::wire::{Call, Reply};
use wasmgate::limit::lease::{Lease, Verdict};

use super::plan;
use super::reference::{Bucket, Micros};
use crate::store::name;

const MS: u64 = 1_000_000;
const SECOND: u64 = 1_000 * MS;
/// Two seconds before 2024-03-01T00:00:00Z, microseconds.
const EVENING: Micros = 1_709_251_198_000_000;

/// One node and the bucket.
struct Pair {
    plan: Arc<Plan>,
    lease: Lease,
    link: Link,
    bucket: Bucket,
    /// The server's clock when the node's is 0.
    start: Micros,
}

impl Pair {
    fn new(policies: &[(u64, &str, Option<u64>)]) -> Self {
        Self::of(plan(policies, OVERSHOOT_PERCENT))
    }

    fn of(plan: Arc<Plan>) -> Self {
        let lease = Lease::new(plan.clone(), 0);
        Self { lease, link: Link::new(4), bucket: Bucket::default(), plan, start: EVENING }
    }

    fn decide(&mut self, now: u64, cost: u64) -> Verdict {
        self.lease.decide(now, cost, &self.link)
    }

    /// What the bucket answers to what is to be sent for requests that wait.
    fn ask(&mut self, now: u64) -> (Call, Reply) {
        let call = self.lease.ask(now, &self.link).expect("a request waits");
        self.carry(now, call)
    }

    fn carry(&mut self, now: u64, call: Call) -> (Call, Reply) {
        let reply = self.bucket.call(self.start + (now / 1000) as Micros, &self.plan, self.link.nodes, &call);
        (call, reply)
    }

    /// A request, with the call that it may need, answered at once.
    fn request(&mut self, now: u64, cost: u64) -> Verdict {
        match self.decide(now, cost) {
            Verdict::Wait => {
                let (_, reply) = self.ask(now);
                self.lease.on_reply(now, &reply, 0.5);
                self.lease.resume(now, cost, &self.link)
            }
            verdict => verdict,
        }
    }

    fn lose_link(&mut self, now: u64) {
        while !self.link.is_lost() {
            self.link.on_failure(now, 0.5);
        }
    }
}

#[test]
fn a_request_is_admitted_whole_or_not_at_all() {
    let mut pair = Pair::new(&[(10, "1s", None), (100, "1m", None)]);
    assert_eq!(pair.decide(0, 11), Verdict::Refuse { until: None });
    assert_eq!(pair.request(0, 4), Verdict::Spend);
    assert_eq!(pair.request(0, 4), Verdict::Spend);
    // Two are granted and kept; four are there 0.2 s later.
    let Verdict::Refuse { until: Some(until) } = pair.request(0, 4) else { panic!("12 of 10 admitted") };
    assert!((200 * MS..400 * MS).contains(&until), "{until}");
    assert_eq!(pair.request(until, 4), Verdict::Spend);
    // Who wants less does not wait for who wants more.
    assert!(matches!(pair.request(until + 150 * MS, 9), Verdict::Refuse { .. }));
    assert_eq!(pair.request(until + 150 * MS, 1), Verdict::Spend);
}

#[test]
fn waiting_as_told_is_enough() {
    let limits: [&[(u64, &str, Option<u64>)]; 4] =
        [&[(10, "1s", None)], &[(7, "1m", Some(3))], &[(6, "1m", Some(1))], &[(20, "1s", None), (60, "1m", None)]];
    for policies in limits {
        let mut pair = Pair::new(policies);
        let (mut now, mut refused) = (0, 0);
        for _ in 0..200 {
            match pair.request(now, 1) {
                Verdict::Spend => now += MS,
                Verdict::Refuse { until: Some(until) } => {
                    assert!(until > now);
                    (now, refused) = (until, refused + 1);
                    assert_eq!(pair.request(now, 1), Verdict::Spend, "{policies:?} at {now}");
                }
                other => panic!("{other:?}"),
            }
        }
        assert!(refused > 20, "{policies:?}: {refused}");
    }
}

#[test]
fn grants_that_come_late_serve_who_waits_but_never_in_another_window() {
    // The bucket is full again, and its epochs over, before the answer is here.
    let mut pair = Pair::new(&[(1_000, "1s", Some(1))]);
    assert_eq!(pair.decide(0, 1), Verdict::Wait);
    let (_, reply) = pair.ask(0);
    pair.lease.on_reply(20 * MS, &reply, 0.5);
    // Nor is who waits given a processor at once.
    assert_eq!(pair.lease.resume(45 * MS, 1, &pair.link), Verdict::Spend);
    assert!(pair.lease.is_idle(SECOND));

    let mut pair = Pair::new(&[(100, "1d", None)]);
    let before = 2 * SECOND - MS;
    assert_eq!(pair.decide(before, 1), Verdict::Wait);
    let (_, reply) = pair.ask(before);
    pair.lease.on_reply(2 * SECOND, &reply, 0.5);
    assert_eq!(pair.lease.resume(2 * SECOND, 1, &pair.link), Verdict::Wait);
    let (_, reply) = pair.ask(2 * SECOND);
    assert_eq!(reply.policies[0].left, 99, "the new day's");
    pair.lease.on_reply(2 * SECOND + MS, &reply, 0.5);
    assert_eq!(pair.lease.resume(2 * SECOND + MS, 1, &pair.link), Verdict::Spend);
}

#[test]
fn debts_are_sent_until_they_are_acknowledged() {
    let mut pair = Pair::new(&[(100, "1s", None), (1_000, "1d", None)]);
    assert_eq!(pair.request(0, 1), Verdict::Spend);
    pair.lose_link(MS);
    // A share begins empty: a quarter of 100 a second.
    let mut admitted = 0;
    for at in 0..400 {
        match pair.decide(MS + at * MS, 1) {
            Verdict::Spend => admitted += 1,
            Verdict::Refuse { until: Some(until) } => assert!(until > MS + at * MS),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(admitted, 9, "0.4 s at 25 a second, and none at once");
    assert!(pair.lease.tick(402 * MS, &pair.link).is_none(), "nothing is sent over a lost link");

    let now = 500 * MS;
    assert!(pair.link.on_success(now) && !pair.link.on_success(now));
    let call = pair.lease.tick(now, &pair.link).expect("a debt is due");
    assert_eq!((call.need, call.want), (0, 0));
    assert!(call.policies.iter().all(|claim| claim.debt == admitted), "{call:?}");
    pair.lease.on_failure();
    // What comes meanwhile is the share's, and owed as well.
    assert_eq!(pair.decide(now + MS, 1), Verdict::Spend);
    let again = pair.lease.tick(now + 10 * MS, &pair.link).expect("it is still due");
    assert!(again.policies.iter().all(|claim| claim.debt == admitted + 1), "{again:?}");
    assert_eq!(pair.decide(now + 50 * MS, 1), Verdict::Spend);
    let (_, reply) = pair.carry(now + 10 * MS, again);
    assert_eq!(reply.policies[1].left, 1_000 - 1 - admitted - 1);
    pair.lease.on_reply(now + 60 * MS, &reply, 0.5);
    let rest = pair.lease.tick(now + 60 * MS, &pair.link).expect("one more");
    assert!(rest.policies.iter().all(|claim| claim.debt == 1), "{rest:?}");
    let (_, reply) = pair.carry(now + 60 * MS, rest);
    pair.lease.on_reply(now + 61 * MS, &reply, 0.5);
    assert!(pair.lease.tick(now + 70 * MS, &pair.link).is_none());
    // All nodes have settled: tokens are drawn again.
    assert_eq!(pair.decide(now + SECOND, 1), Verdict::Wait);
}

/// A tier that changes takes its debts along, but for those of which a call tells already.
#[test]
fn debts_are_inherited_once() {
    let mut pair = Pair::new(&[(1_000, "1d", None)]);
    assert_eq!(pair.request(0, 1), Verdict::Spend);
    let heir = |pair: &Pair, now| {
        let mut heir = Lease::new(plan(&[(500, "1d", None)], OVERSHOOT_PERCENT), now);
        heir.inherit(&pair.lease, now);
        (heir.debt(), heir.left(now, &pair.link).next().expect("a policy").0)
    };
    pair.lose_link(MS);
    (0..7).for_each(|_| assert_eq!(pair.decide(2 * MS, 1), Verdict::Spend));
    assert_eq!(heir(&pair, 3 * MS), (7, 499 / 4 - 7));
    pair.link.on_success(3 * MS);
    assert_eq!(pair.lease.tick(3 * MS, &pair.link).expect("a debt is due").policies[0].debt, 7);
    assert_eq!(heir(&pair, 4 * MS).0, 0);
    (0..2).for_each(|_| assert_eq!(pair.decide(5 * MS, 1), Verdict::Spend));
    assert_eq!(heir(&pair, 6 * MS).0, 2);
}

#[test]
fn an_outage_over_midnight_begins_the_new_day_and_forgets_the_old_debt() {
    let mut pair = Pair::new(&[(1_000, "1d", None), (5_000, "1mo", None)]);
    assert_eq!(pair.request(0, 1), Verdict::Spend);
    pair.lose_link(MS);
    let spend = |pair: &mut Pair, from: u64| {
        (0..2_000).filter(|at| pair.decide(from + at * 100_000, 1) == Verdict::Spend).count() as u64
    };
    assert_eq!(spend(&mut pair, SECOND), 999 / 4, "what was left, shared by four nodes");
    // It is also the first of a month.
    assert_eq!(spend(&mut pair, 3 * SECOND), 1_000 / 4);
    let now = 4 * SECOND;
    pair.link.on_success(now);
    let call = pair.lease.tick(now, &pair.link).unwrap();
    assert!(call.policies.iter().all(|claim| claim.debt == 250), "{call:?}");
    let (_, reply) = pair.carry(now, call);
    assert_eq!([reply.policies[0].left, reply.policies[1].left], [750, 4_750]);
}

#[test]
fn tiers_that_do_not_share_leave_it_to_the_caller() {
    for fail in [FailMode::Open, FailMode::Closed] {
        let quota = Quota { name: name("minute"), requests: 60, window: "1m".parse().unwrap(), burst: None };
        let mut pair = Pair::of(Plan::new(&[quota], 1, OVERSHOOT_PERCENT, fail));
        pair.lose_link(0);
        assert_eq!(pair.decide(MS, 1), Verdict::Lost);
        // Whoever admits it all the same says so.
        pair.lease.owe(MS, 1);
        pair.link.on_success(2 * MS);
        assert_eq!(pair.lease.tick(2 * MS, &pair.link).unwrap().policies[0].debt, 1);
    }
}

#[test]
fn what_a_lost_call_gave_is_not_given_again() {
    let mut pair = Pair::new(&[(1_000, "1s", None), (10_000, "1d", None)]);
    pair.start = EVENING - 3_600_000_000;
    for at in 0..500 {
        assert_eq!(pair.request(at * MS, 1), Verdict::Spend);
    }
    let stock = |pair: &Pair, now| pair.lease.left(now, &pair.link).nth(1).unwrap().0;
    // Nobody comes any more: the stock is given back, the call is carried out, its reply is lost.
    let mut now = pair.lease.wake(500 * MS, &pair.link);
    let call = loop {
        assert!(now < 10 * SECOND, "stock is given back in time");
        match pair.lease.tick(now, &pair.link) {
            Some(call) if call.returned > 0 => break call,
            Some(call) => {
                let (_, reply) = pair.carry(now, call);
                pair.lease.on_reply(now, &reply, 0.5);
            }
            None => {}
        }
        now = pair.lease.wake(now, &pair.link);
    };
    let (returned, held) = (call.returned, call.held);
    assert!(call.acknowledged >= held + returned, "{call:?}");
    let (_, reply) = pair.carry(now, call);
    assert_eq!(reply.policies[1].left, 9_500 - held);
    let known = stock(&pair, now);
    pair.lease.on_failure();
    assert_eq!(stock(&pair, now), known, "what was given back is not spent");
    assert_eq!(pair.decide(now, held + 1), Verdict::Wait);
    let (again, reply) = pair.ask(now);
    assert_eq!((again.returned, again.acknowledged, again.held), (0, 0, held));
    // One more of them is granted for the request, and a lease beside it.
    assert_eq!(reply.policies[1].left, 9_500 - held - reply.grant);
}

#[test]
fn a_node_that_stops_gives_all_back() {
    let mut pair = Pair::new(&[(1_000, "1s", None), (10_000, "1d", None)]);
    for at in 0..500 {
        assert_eq!(pair.request(at * MS, 1), Verdict::Spend);
    }
    let now = 500 * MS;
    assert!(!pair.lease.is_idle(now));
    let call = pair.lease.close(now, &pair.link).expect("it has stock");
    assert!(call.returned > 0 && call.held == 0, "{call:?}");
    let (_, reply) = pair.carry(now, call);
    assert_eq!(reply.policies[1].left, 9_500, "what was not spent is there for others");
    pair.lease.on_reply(now, &reply, 0.5);
    assert!(pair.lease.is_idle(now) && pair.lease.close(now, &pair.link).is_none());
}

#[test]
fn what_is_left_is_told_with_what_the_node_holds() {
    let mut pair = Pair::new(&[(100, "1s", None), (5_000, "1d", None)]);
    let left = |pair: &Pair, now| pair.lease.left(now, &pair.link).collect::<Vec<_>>();
    assert_eq!(left(&pair, 0)[0], (100, Duration::ZERO));
    for at in 0..50 {
        assert_eq!(pair.request(at * MS, 1), Verdict::Spend);
    }
    let now = 50 * MS;
    let told = left(&pair, now);
    // What the bucket has got back since the last call is not known here.
    assert!((50..=55).contains(&told[0].0), "{told:?}");
    assert!(told[0].1 <= Duration::from_millis(500), "{told:?}");
    assert_eq!(told[1], (4_950, Duration::from_micros(1_950_000)));
}

#[test]
fn while_a_node_is_alone_it_tells_of_its_shares() {
    let mut pair = Pair::new(&[(100, "1s", None), (1_000, "1d", None)]);
    assert_eq!(pair.request(0, 1), Verdict::Spend);
    pair.lose_link(MS);
    let left = |pair: &Pair, now| pair.lease.left(now, &pair.link).collect::<Vec<_>>();
    let told = left(&pair, MS);
    assert_eq!([told[0], (told[1].0, Duration::ZERO)], [(0, Duration::from_secs(1)), (999 / 4, Duration::ZERO)]);
    let now = 202 * MS;
    assert_eq!(left(&pair, now)[0].0, 5, "25 a second");
    (0..2).for_each(|_| assert_eq!(pair.decide(now, 1), Verdict::Spend));
    let told = left(&pair, now);
    assert_eq!([told[0].0, told[1].0], [3, 999 / 4 - 2]);
    assert!(told[0].1 > Duration::from_millis(870) && told[0].1 < Duration::from_millis(890), "{told:?}");
}

#[test]
fn a_used_up_day_is_asked_for_while_others_hold_stock() {
    let plan = plan(&[(100, "1d", None)], OVERSHOOT_PERCENT);
    let mut bucket = Bucket::default();
    let noon = EVENING - 43_198_000_000;
    let stock = bucket.call(noon, &plan, 2, &super::call(1, 50));
    assert_eq!((stock.grant, stock.policies[0].left), (25, 75), "one and a quarter of the rest: two nodes");
    let last = bucket.call(noon, &plan, 2, &super::call(75, 0));
    assert_eq!((last.grant, last.policies[0].exhausted, last.policies[0].retry), (75, true, 2_000_000));
    // Nothing came back, and no lease lives that long without a call.
    let later = bucket.call(noon + 2_100_000, &plan, 2, &super::call(1, 0));
    assert_eq!((later.grant, later.policies[0].retry), (0, 43_200_000_000 - 2_100_000));
}

#[test]
fn a_clock_that_goes_back_gives_nothing_and_locks_nobody_out() {
    let plan = plan(&[(100, "1s", None), (1_000, "1d", None)], OVERSHOOT_PERCENT);
    let call = |need| Call { need, policies: (0..2).map(|_| Default::default()).collect(), ..Call::default() };
    let mut bucket = Bucket::default();
    assert_eq!(bucket.call(EVENING, &plan, 2, &call(100)).grant, 100);
    // A little: the same time does not refill twice.
    assert_eq!(bucket.call(EVENING - 500_000, &plan, 2, &call(9)).grant, 0);
    assert_eq!(bucket.call(EVENING + 50_000, &plan, 2, &call(9)).grant, 5);
    // An hour: the bucket goes on from there, and the day's count stands.
    let hour_before = EVENING - 3_600_000_000;
    assert_eq!(bucket.call(hour_before, &plan, 2, &call(9)).grant, 0);
    let reply = bucket.call(hour_before + 3_000_000, &plan, 2, &call(100));
    assert_eq!((reply.grant, reply.policies[1].left), (100, 1_000 - 205));
    // A day ahead, and back: what the new day used is not given away.
    assert_eq!(bucket.call(EVENING + 10_000_000, &plan, 2, &call(100)).policies[1].left, 900);
    assert_eq!(bucket.call(EVENING, &plan, 2, &call(0)).policies[1].left, 900);
}
