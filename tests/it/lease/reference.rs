//! The shared bucket in whole numbers, time as a parameter: what `lease.lua` is held against, and what the simulation
//! runs on.

use wasmgate::domain::Window;
use wasmgate::limit::lease::terms::{Plan, Terms};
use wasmgate::limit::lease::wire::{Call, Granted, Reply};
use wasmgate::limit::quota;

/// Microseconds of the server's clock.
pub type Micros = i64;

/// One caller's bucket; `None`: not called yet, or forgotten.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bucket(pub Vec<Option<State>>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Gcra { expiry: Micros, unit: i64, level: i64, at: Micros, ends: Micros, before: i64, out: i64 },
    Calendar { expiry: Micros, used: i64, leased: Micros },
}

/// A policy during a call.
struct Part {
    terms: Terms,
    epoch: Micros,
    state: State,
    /// Of a calendar window, Unix seconds.
    start: i64,
    left: i64,
    most: i64,
}

impl Bucket {
    pub fn call(&mut self, now: Micros, plan: &Plan, nodes: u32, call: &Call) -> Reply {
        self.0.resize(plan.policies.len(), None);
        let mut parts: Vec<Part> = Vec::new();
        for (was, ((_, terms), claim)) in self.0.iter().zip(plan.policies.iter().zip(&call.policies)) {
            let (tag, debt) = (claim.tag as i64, claim.debt as i64);
            parts.push(match *terms {
                Terms::Gcra { .. } => gcra(now, *terms, *was, call, tag, debt),
                Terms::Calendar { window, limit } => calendar(now, *terms, window, limit as i64, *was, call, tag, debt),
            });
        }
        let need = parts.iter().map(|p| p.left).fold(call.need as i64, i64::min);
        let mut stock = call.want as i64;
        for part in &parts {
            stock = stock.min(match part.terms {
                Terms::Gcra { .. } => (part.left - need).min(part.most),
                Terms::Calendar { .. } => (part.left - need).div_euclid(2 * i64::from(nodes)),
            });
        }
        let grant = need + stock;
        let granted = parts.iter_mut().map(|p| p.commit(now, grant, stock > 0 || call.held > 0)).collect();
        self.0 = parts.iter().map(|p| Some(p.state)).collect();
        Reply { now: now as u64, grant: grant as u64, policies: granted }
    }

    /// As if all of it had happened so much earlier; calendar windows stay.
    pub fn age(&mut self, by: Micros) {
        for state in self.0.iter_mut().flatten() {
            match state {
                State::Gcra { expiry, at, ends, .. } => {
                    (*expiry, *at, *ends) = (*expiry - by, *at - by, *ends - by);
                }
                State::Calendar { leased, .. } => *leased = (*leased - by).max(0),
            }
        }
    }

    /// As the script stores it.
    pub fn text(&self, plan: &Plan) -> String {
        let line = |(state, (name, _)): (&Option<State>, &(wasmgate::domain::Name, Terms))| match (*state)? {
            State::Gcra { expiry, unit, level, at, ends, before, out } => {
                Some(format!("{name} g {expiry} {unit} {level} {at} {ends} {before} {out}"))
            }
            State::Calendar { expiry, used, leased } => Some(format!("{name} c {expiry} {used} {leased}")),
        };
        self.0.iter().zip(&plan.policies).filter_map(line).collect::<Vec<_>>().join("\n")
    }

    /// When nothing of it matters any more.
    pub fn expiry(&self) -> Micros {
        let expiry = |state: &State| match *state {
            State::Gcra { expiry, .. } | State::Calendar { expiry, .. } => expiry,
        };
        self.0.iter().flatten().map(expiry).max().unwrap_or(0)
    }
}

fn gcra(now: Micros, terms: Terms, was: Option<State>, call: &Call, tag: i64, debt: i64) -> Part {
    let Terms::Gcra { rate, unit, burst, slack } = terms else { unreachable!() };
    let (rate, unit, burst, slack) = (rate as i64, unit as i64, burst as i64, slack as i64);
    let (epoch, full) = (terms.epoch() as i64, burst * unit);
    let aligned = (now.div_euclid(epoch) + 1) * epoch;
    let (mut level, mut at, mut ends, mut before, mut out) = (full, now, aligned, 0, 0);
    if let Some(State::Gcra { expiry, unit: unit_was, level: l, at: a, ends: e, before: b, out: o }) = was
        && now < expiry
    {
        let converted = if unit_was == unit { l } else { (l as f64 / unit_was as f64 * unit as f64) as i64 };
        (level, before, out) = (converted.min((burst + slack) * unit), b, o);
        if a <= now + epoch && (a..=a + 2 * epoch).contains(&e) {
            (at, ends) = (a, e);
            let mut refill = |to: Micros, level: &mut i64, outstanding: i64| {
                let full_after = (full + rate - 1) / rate;
                let gain = rate * (to - at).max(0).min(full_after);
                let room = burst.min(burst + slack - outstanding) * unit;
                *level = (*level).max((*level + gain).min(room));
                at = at.max(to);
            };
            for _ in 0..2 {
                if ends <= now {
                    refill(ends, &mut level, before + out);
                    (before, out, ends) = (out, 0, ends + epoch);
                }
            }
            refill(now, &mut level, before + out);
            if ends <= now {
                ends = aligned;
            }
        }
    }
    let acknowledged = call.acknowledged as i64;
    if tag == ends {
        out = (out - acknowledged).max(0);
    } else if tag == ends - epoch {
        before = (before - acknowledged).max(0);
    }
    out += call.held as i64;
    let outstanding = before + out;
    level = (level + call.returned as i64 * unit).min((burst + slack - outstanding).max(0) * unit);
    level = (level - debt * unit).max(level.min(0));
    let most = (burst + 2 * slack - 2 * outstanding).div_euclid(4).max(0);
    let state = State::Gcra { expiry: 0, unit, level, at, ends, before, out };
    Part { terms, epoch, state, start: 0, left: level / unit, most }
}

#[allow(clippy::too_many_arguments)]
fn calendar(
    now: Micros,
    terms: Terms,
    window: Window,
    limit: i64,
    was: Option<State>,
    call: &Call,
    tag: i64,
    debt: i64,
) -> Part {
    let (start, end) = quota::bounds(window, now.div_euclid(1_000_000));
    let (mut used, mut leased) = (0, 0);
    if let Some(State::Calendar { expiry, used: u, leased: l }) = was
        && now < expiry
    {
        (used, leased) = (u, l);
    }
    if tag == start {
        used = (used - call.returned as i64).max(0);
    }
    if tag == 0 || tag >= start {
        used += debt;
    }
    let expiry = end * 1_000_000;
    let state = State::Calendar { expiry, used, leased: leased.min(expiry) };
    Part { terms, epoch: 2_000_000, state, start, left: (limit - used).max(0), most: 0 }
}

/// Until there is a token, if nobody calls, an epoch after the other.
fn wait(
    terms: Terms,
    (mut level, mut at, mut ends): (i64, Micros, Micros),
    (mut before, mut out): (i64, i64),
    now: Micros,
) -> Micros {
    let Terms::Gcra { rate, unit, burst, slack } = terms else { unreachable!() };
    let (rate, unit, burst, slack) = (rate as i64, unit as i64, burst as i64, slack as i64);
    loop {
        if level >= unit {
            return at - now;
        }
        let room = burst.min(burst + slack - before - out) * unit;
        let there = at + (unit - level + rate - 1) / rate;
        if before + out == 0 || (room >= unit && there <= ends) {
            return there - now;
        }
        level = level.max((level + rate * (ends - at)).min(room));
        (at, ends, before, out) = (ends, ends + terms.epoch() as i64, out, 0);
    }
}

impl Part {
    fn commit(&mut self, now: Micros, grant: i64, stocked: bool) -> Granted {
        match (&mut self.state, self.terms) {
            (State::Gcra { expiry, unit, level, at, ends, before, out }, terms @ Terms::Gcra { rate, burst, .. }) => {
                let until = |units: i64| units.max(0).unsigned_abs().div_ceil(rate);
                *level -= grant * *unit;
                *out += grant;
                *expiry = *ends + self.epoch + until(burst as i64 * *unit - *level) as i64;
                Granted {
                    left: (*level / *unit) as u64,
                    ttl: (*ends + self.epoch - now) as u64,
                    tag: *ends as u64,
                    window_end: 0,
                    exhausted: *level < *unit,
                    retry: wait(terms, (*level, *at, *ends), (*before, *out), now) as u64,
                }
            }
            (State::Calendar { expiry, used, leased }, Terms::Calendar { limit, .. }) => {
                *used += grant;
                let left = (limit as i64 - *used).max(0);
                let ttl = *expiry - now;
                if stocked {
                    *leased = (*leased).max(now + ttl.min(2_100_000));
                }
                let retry = if *leased > now { ttl.min(*leased - now).min(2_000_000) } else { ttl };
                Granted {
                    left: left as u64,
                    ttl: ttl as u64,
                    tag: self.start as u64,
                    window_end: (*expiry / 1_000_000) as u64,
                    exhausted: left < 1,
                    retry: retry as u64,
                }
            }
            _ => unreachable!("a part's state is of its terms' kind"),
        }
    }
}
