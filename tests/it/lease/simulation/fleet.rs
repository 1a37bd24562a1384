//! The fleet in virtual time: arrivals, messages that take time and get lost, crashes and outages.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::sync::Arc;

use wasmgate::limit::lease::link::Link;
use wasmgate::limit::lease::terms::{Plan, Terms};
use wasmgate::limit::lease::wire::{Call, Reply};
use wasmgate::limit::lease::{Lease, Verdict};

use super::measure::{Exact, Outcome};
use crate::lease::reference::{Bucket, Micros};
use crate::lease::{Random, plan};

/// Nanoseconds of virtual time.
pub type Nanos = u64;

const SECOND: f64 = 1e9;

/// How requests spread over the nodes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pattern {
    Even,
    /// The nth node gets 1/n of what the first gets.
    Zipf,
    /// All to one node, every two seconds to the next.
    Moving,
    /// Even, two seconds of a tenth of the rate and a second of the rest.
    OnOff,
    /// Even until that second, then all to one node.
    Gather(u64),
}

#[derive(Clone, Debug)]
pub struct Scenario {
    pub policies: &'static [(u64, &'static str, Option<u64>)],
    pub overshoot_percent: u64,
    pub nodes: u32,
    /// Each node's own is between these.
    pub round_trip_ms: (f64, f64),
    /// Requests a second.
    pub offered: f64,
    pub pattern: Pattern,
    pub seconds: f64,
    /// The part of calls that are lost, or their replies.
    pub loss: f64,
    pub crashes_a_second: f64,
    /// From and to, seconds: no call is answered.
    pub outages: &'static [(f64, f64)],
    /// The first so many nodes have the outages, the others none.
    pub cut_off: u32,
    /// Probes are answered in an outage too, as by a server that is read-only.
    pub probes_answered: bool,
    /// The server's clock at the beginning.
    pub start: Micros,
    pub seed: u64,
}

impl Scenario {
    pub fn run(&self) -> Outcome {
        let mut fleet = Fleet::new(self);
        fleet.run();
        fleet.outcome()
    }
}

struct Node {
    lease: Lease,
    link: Link,
    /// Its clock is ahead of the others' by this.
    ahead: Nanos,
    round_trip: f64,
    /// Arrival times.
    waiters: VecDeque<Nanos>,
    wake: Nanos,
    /// Of the call on its way.
    call: u64,
    life: u64,
}

enum Event {
    AtServer { node: usize, life: u64, number: u64, call: Call, reply_lost: bool },
    AtNode { node: usize, life: u64, number: u64, reply: Reply },
    Deadline { node: usize, life: u64, number: u64 },
    Wake { node: usize },
    Probe { node: usize, life: u64 },
    Probed { node: usize, life: u64, answered: bool },
    Crash,
}

struct Fleet<'a> {
    scenario: &'a Scenario,
    plan: Arc<Plan>,
    bucket: Bucket,
    nodes: Vec<Node>,
    now: Nanos,
    queue: BinaryHeap<Reverse<(Nanos, u64)>>,
    events: Vec<Option<Event>>,
    free: Vec<usize>,
    sequence: u64,
    random: Random,
    exact: Exact,
    admitted: Exact,
    waits: Vec<Nanos>,
    out: Outcome,
}

impl<'a> Fleet<'a> {
    fn new(scenario: &'a Scenario) -> Self {
        let plan = plan(scenario.policies, scenario.overshoot_percent);
        let mut random = Random(scenario.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let (from, to) = scenario.round_trip_ms;
        let node = |at: u32| {
            let ahead = u64::from(at) * 77_777_777_777;
            Node {
                lease: Lease::new(plan.clone(), ahead),
                link: Link::new(scenario.nodes),
                ahead,
                round_trip: (from + (to - from) * random.unit()) * 1e6,
                waiters: VecDeque::new(),
                wake: u64::MAX,
                call: 0,
                life: 0,
            }
        };
        Self {
            nodes: (0..scenario.nodes).map(node).collect(),
            bucket: Bucket::default(),
            now: 0,
            queue: BinaryHeap::new(),
            events: Vec::new(),
            free: Vec::new(),
            sequence: 0,
            random,
            exact: Exact::new(&plan),
            admitted: Exact::new(&plan),
            waits: Vec::new(),
            out: Outcome::default(),
            scenario,
            plan,
        }
    }

    fn run(&mut self) {
        let end = (self.scenario.seconds * SECOND) as Nanos;
        let mut arrival = self.gap(self.scenario.offered);
        if self.scenario.crashes_a_second > 0.0 {
            let after = self.gap(self.scenario.crashes_a_second);
            self.at(after, Event::Crash);
        }
        loop {
            let next = self.queue.peek().map_or(u64::MAX, |Reverse((at, _))| *at);
            if arrival.min(next) >= end {
                return;
            }
            if arrival <= next {
                self.now = arrival;
                let node = self.target();
                self.request(node);
                arrival += self.gap(self.offered());
            } else if let Some(Reverse((at, key))) = self.queue.pop() {
                self.now = at;
                let place = (key & 0xff_ffff) as usize;
                self.free.push(place);
                if let Some(event) = self.events[place].take() {
                    self.handle(event);
                }
            }
        }
    }

    fn outcome(self) -> Outcome {
        let mut waits = self.waits;
        waits.sort_unstable();
        let rolling = |t: &Terms| matches!(t, Terms::Gcra { .. });
        let worst = |calendar: bool| {
            let of = self.plan.policies.iter().zip(&self.admitted.worst);
            of.filter(|((_, t), _)| rolling(t) != calendar).map(|(_, w)| *w).fold(0.0, f64::max)
        };
        let slack = self.plan.policies.iter().filter_map(|(_, t)| match t {
            Terms::Gcra { slack, .. } => Some(*slack as f64),
            Terms::Calendar { .. } => None,
        });
        Outcome {
            overshoot: worst(false),
            slack: slack.fold(0.0, f64::max),
            limit: self.scenario.policies[0].0 as f64,
            calendar_overshoot: worst(true) as u64,
            waited: waits.len() as u64,
            wait_p99_ms: waits.get(waits.len() * 99 / 100).map_or(0.0, |w| *w as f64 / 1e6),
            ..self.out
        }
    }

    /// Exponential.
    fn gap(&mut self, rate: f64) -> Nanos {
        (-(1.0 - self.random.unit()).ln() / rate * SECOND) as Nanos
    }

    fn offered(&self) -> f64 {
        let on_off = if (self.now / 1_000_000_000) % 3 == 2 { 2.8 } else { 0.1 };
        self.scenario.offered * if self.scenario.pattern == Pattern::OnOff { on_off } else { 1.0 }
    }

    fn target(&mut self) -> usize {
        let n = self.nodes.len();
        match self.scenario.pattern {
            Pattern::Gather(second) if self.now >= second * 1_000_000_000 => 0,
            Pattern::Even | Pattern::OnOff | Pattern::Gather(_) => self.random.below(n as u64) as usize,
            Pattern::Moving => (self.now / 2_000_000_000) as usize % n,
            Pattern::Zipf => {
                let whole: f64 = (1..=n).map(|k| 1.0 / k as f64).sum();
                let mut left = self.random.unit() * whole;
                let found = (0..n).find(|k| {
                    left -= 1.0 / (k + 1) as f64;
                    left < 0.0
                });
                found.unwrap_or(n - 1)
            }
        }
    }

    fn at(&mut self, after: Nanos, event: Event) {
        let place = self.free.pop().unwrap_or_else(|| {
            self.events.push(None);
            self.events.len() - 1
        });
        self.events[place] = Some(event);
        self.sequence += 1;
        self.queue.push(Reverse((self.now + after, self.sequence << 24 | place as u64)));
    }

    fn server_time(&self) -> Micros {
        self.scenario.start + (self.now / 1000) as Micros
    }

    fn is_out(&self, node: usize) -> bool {
        let now = self.now as f64 / SECOND;
        node < self.scenario.cut_off as usize
            && self.scenario.outages.iter().any(|(from, to)| (*from..*to).contains(&now))
    }

    fn request(&mut self, at: usize) {
        self.out.requests += 1;
        self.exact.advance(self.now, self.scenario.start);
        if self.exact.admits() {
            self.exact.charge();
            self.out.exact += 1;
        }
        let node = &mut self.nodes[at];
        match node.lease.decide(self.now + node.ahead, 1, &node.link) {
            Verdict::Spend => self.admit(at),
            Verdict::Refuse { until } => {
                let until = until.expect("a request of one token fits at some time");
                assert!(until > self.now + node.ahead, "refused until a time that is past");
                return;
            }
            Verdict::Wait => node.waiters.push_back(self.now),
            Verdict::Lost => unreachable!("the plan's mode is to share"),
        }
        self.pump(at);
    }

    fn admit(&mut self, at: usize) {
        self.admitted.advance(self.now, self.scenario.start);
        self.admitted.charge();
        self.out.admitted += 1;
        self.out.alone += u64::from(self.is_out(at));
    }

    /// Sends what waiting requests need, and sets the alarm.
    fn pump(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        let now = self.now + node.ahead;
        if let Some(call) = node.lease.ask(now, &node.link) {
            self.send(at, call);
        }
        self.alarm(at);
    }

    fn alarm(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        let now = self.now + node.ahead;
        let wake = node.lease.wake(now, &node.link);
        assert!(wake >= now, "woken in the past");
        if wake < node.wake {
            node.wake = wake;
            self.at(wake - now, Event::Wake { node: at });
        }
    }

    fn send(&mut self, at: usize, call: Call) {
        self.out.commands += 1;
        let (there, back) = (0.8 + 0.4 * self.random.unit(), self.random.unit());
        let lost = self.random.unit() < self.scenario.loss;
        let node = &mut self.nodes[at];
        node.call += 1;
        let (life, number) = (node.life, node.call);
        let deadline = (3.0 * node.round_trip).max(5e6) as Nanos;
        let trip = (there * node.round_trip / 2.0) as Nanos;
        if !lost || back < 0.5 {
            self.at(trip, Event::AtServer { node: at, life, number, call, reply_lost: lost });
        }
        self.at(deadline, Event::Deadline { node: at, life, number });
    }

    fn handle(&mut self, event: Event) {
        match event {
            // A call is carried out even if its node is gone.
            Event::AtServer { node, life, number, call, reply_lost } if !self.is_out(node) => {
                let reply = self.bucket.call(self.server_time(), &self.plan, self.scenario.nodes, &call);
                if !reply_lost {
                    let trip = (0.8 + 0.4 * self.random.unit()) * self.nodes[node].round_trip / 2.0;
                    self.at(trip as Nanos, Event::AtNode { node, life, number, reply });
                }
            }
            Event::AtServer { .. } => {}
            Event::AtNode { node: at, life, number, reply } => {
                if self.nodes[at].life == life && self.nodes[at].call == number {
                    let random = self.random.unit();
                    let node = &mut self.nodes[at];
                    node.call += 1;
                    let now = self.now + node.ahead;
                    node.lease.on_reply(now, &reply, random);
                    node.link.on_success(now);
                    self.resume(at);
                }
            }
            Event::Deadline { node: at, life, number } => {
                if self.nodes[at].life == life && self.nodes[at].call == number {
                    self.out.failed += 1;
                    self.nodes[at].call += 1;
                    self.nodes[at].lease.on_failure();
                    self.fail(at);
                    self.resume(at);
                }
            }
            Event::Wake { node: at } => {
                let node = &mut self.nodes[at];
                let now = self.now + node.ahead;
                if node.wake == now {
                    node.wake = u64::MAX;
                    self.tick(at);
                }
            }
            Event::Probe { node, life } if self.nodes[node].life == life => {
                let answered = self.scenario.probes_answered || !self.is_out(node);
                let after = if answered { self.nodes[node].round_trip as Nanos } else { 5_000_000 };
                self.at(after, Event::Probed { node, life, answered });
            }
            Event::Probed { node: at, life, answered } if self.nodes[at].life == life => {
                let now = self.now + self.nodes[at].ahead;
                if !answered {
                    self.fail(at);
                } else if self.nodes[at].link.on_success(now) {
                    self.tick(at);
                }
            }
            Event::Probe { .. } | Event::Probed { .. } => {}
            Event::Crash => self.crash(),
        }
    }

    fn tick(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        if let Some(call) = node.lease.tick(self.now + node.ahead, &node.link) {
            self.send(at, call);
        }
        self.alarm(at);
    }

    fn fail(&mut self, at: usize) {
        let random = self.random.unit();
        let node = &mut self.nodes[at];
        let was = node.link.probe_at();
        let now = self.now + node.ahead;
        node.link.on_failure(now, random);
        let (life, probe) = (node.life, node.link.probe_at());
        // A probe is on its way already when a call that was sent before it fails.
        if let Some(probe) = probe
            && was.is_none_or(|was| was <= now)
        {
            self.at(probe - now, Event::Probe { node: at, life });
        }
    }

    fn resume(&mut self, at: usize) {
        for arrived in std::mem::take(&mut self.nodes[at].waiters) {
            let node = &mut self.nodes[at];
            match node.lease.resume(self.now + node.ahead, 1, &node.link) {
                Verdict::Spend => {
                    self.admit(at);
                    self.waits.push(self.now - arrived);
                }
                Verdict::Refuse { .. } => self.waits.push(self.now - arrived),
                Verdict::Wait => node.waiters.push_back(arrived),
                Verdict::Lost => unreachable!("the plan's mode is to share"),
            }
        }
        self.pump(at);
    }

    fn crash(&mut self) {
        let at = self.random.below(self.nodes.len() as u64) as usize;
        let now = self.now;
        let node = &mut self.nodes[at];
        node.lease = Lease::new(self.plan.clone(), now + node.ahead);
        node.link = Link::new(self.scenario.nodes);
        node.waiters.clear();
        node.life += 1;
        node.wake = u64::MAX;
        let after = self.gap(self.scenario.crashes_a_second);
        self.at(after, Event::Crash);
    }
}
