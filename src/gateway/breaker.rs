//! Refuses the runs of a module version that does nothing but fail, so that a crash loop costs its callers a quick 503
//! and its neighbours nothing.
//!
//! Invariant: a breaker that is open lets one run through at the end of each cool-down, and closes when one ends well.
//! One caller alone neither opens it nor takes the others' trials: those whose runs failed have trials of their own.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::config;
use crate::domain::{GuestFailure, OwnerId};

/// So many callers have to fail: a module that fails for fewer costs nobody but them.
const CALLERS: usize = 3;
/// Failing callers that are remembered; the one remembered for longest goes.
const REMEMBERED: usize = 64;

/// Whose run it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// With whichever of its keys.
    Owner(OwnerId),
    /// As limits count it.
    Address(IpAddr),
}

/// Of one module version, on whatever routes it is.
#[derive(Default)]
pub struct Breaker {
    /// There is something in `state`: no healthy handler's request takes the lock.
    troubled: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Failures in a row, and when the first of them was.
    row: u32,
    since: Option<Instant>,
    /// Whose runs failed.
    failing: VecDeque<Caller>,
    open: Option<Open>,
}

struct Open {
    until: Instant,
    /// For callers that are known to fail.
    until_failing: Instant,
    cool_down: Duration,
}

impl Breaker {
    /// `Err`: how long it stays open.
    pub fn admit(&self, now: Instant, caller: impl FnOnce() -> Caller) -> Result<(), Duration> {
        if !self.troubled.load(Ordering::Relaxed) {
            return Ok(());
        }
        let mut state = self.state.lock();
        let State { open: Some(open), failing, .. } = &mut *state else { return Ok(()) };
        let until = if failing.contains(&caller()) { &mut open.until_failing } else { &mut open.until };
        let left = until.saturating_duration_since(now);
        if !left.is_zero() {
            return Err(left);
        }
        // This one finds out; should it be lost, another does after it.
        *until = now + open.cool_down;
        Ok(())
    }

    /// A run ended well. True when that closes it.
    pub fn passed(&self) -> bool {
        if !self.troubled.load(Ordering::Relaxed) {
            return false;
        }
        self.reset()
    }

    /// Forgets every failure, as for a version that was activated by hand. True when it was open.
    pub fn reset(&self) -> bool {
        let mut state = self.state.lock();
        self.troubled.store(false, Ordering::Relaxed);
        std::mem::take(&mut *state).open.is_some()
    }

    /// A run failed. True when that opens it.
    pub fn failed(&self, now: Instant, caller: Caller, config: &config::Breaker) -> bool {
        if config.failures == 0 {
            return false;
        }
        let mut state = self.state.lock();
        self.troubled.store(true, Ordering::Relaxed);
        let until = now + config.cool_down;
        if let State { open: Some(open), failing, .. } = &mut *state {
            let own = if failing.contains(&caller) { &mut open.until_failing } else { &mut open.until };
            *own = until;
            state.remember(caller);
            return false;
        }
        let begun = *state.since.get_or_insert(now);
        if now.saturating_duration_since(begun) > config.window {
            *state = State { since: Some(now), ..State::default() };
        }
        state.remember(caller);
        state.row = state.row.saturating_add(1);
        let opens = state.row >= config.failures && state.failing.len() >= CALLERS;
        if opens {
            state.open = Some(Open { until, until_failing: until, cool_down: config.cool_down });
        }
        opens
    }
}

impl State {
    fn remember(&mut self, caller: Caller) {
        if !self.failing.contains(&caller) {
            self.failing.truncate(REMEMBERED - 1);
            self.failing.push_front(caller);
        }
    }
}

/// A crash, as opposed to an answer that can't be used, which what a caller asks for makes more often than a module,
/// and to a caller that leaves.
pub fn is_crash(failure: &GuestFailure) -> bool {
    !matches!(failure, GuestFailure::BadOutput(_) | GuestFailure::OutputTooLarge | GuestFailure::Cancelled)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const CONFIG: config::Breaker =
        config::Breaker { failures: 3, window: Duration::from_secs(30), cool_down: Duration::from_secs(10) };

    fn caller(n: u32) -> Caller {
        Caller::Address(Ipv4Addr::from_bits(n).into())
    }

    /// By the callers 0, 1 and 2.
    fn opened(now: Instant) -> Breaker {
        let breaker = Breaker::default();
        assert_eq!([0, 1, 2].map(|n| breaker.failed(now, caller(n), &CONFIG)), [false, false, true]);
        breaker
    }

    #[test]
    fn failures_in_a_row_open_it_and_one_run_closes_it() {
        let now = Instant::now();
        let breaker = opened(now);
        let admit = |now| breaker.admit(now, || caller(9));
        assert_eq!(admit(now), Err(CONFIG.cool_down));
        let later = now + CONFIG.cool_down;
        assert_eq!(admit(later), Ok(()));
        assert_eq!(admit(later), Err(CONFIG.cool_down), "one at a time");
        assert!(breaker.passed() && !breaker.passed());
        assert_eq!(admit(later), Ok(()));
        assert!((0..2).all(|n| !breaker.failed(later, caller(n), &CONFIG)), "it counts anew");
    }

    #[test]
    fn one_caller_does_not_open_it() {
        let now = Instant::now();
        let breaker = Breaker::default();
        assert!((0..100).all(|n| !breaker.failed(now, caller(n % 2), &CONFIG)));
        assert!(breaker.failed(now, caller(2), &CONFIG));
    }

    #[test]
    fn failing_callers_do_not_take_the_trials_of_others() {
        let now = Instant::now();
        let breaker = opened(now);
        let later = now + CONFIG.cool_down;
        assert_eq!(breaker.admit(later, || caller(0)), Ok(()), "it may have been mended for them");
        assert_eq!(breaker.admit(later, || caller(1)), Err(CONFIG.cool_down));
        assert!(!breaker.failed(later, caller(0), &CONFIG));
        assert_eq!(breaker.admit(later, || caller(9)), Ok(()));
        assert!(!breaker.failed(later, caller(9), &CONFIG));
        assert_eq!(breaker.admit(later, || caller(8)), Err(CONFIG.cool_down), "a new one that fails keeps it open");
        assert!((10..1_000).all(|n| !breaker.failed(later, caller(n), &CONFIG)));
        assert_eq!(breaker.state.lock().failing.len(), REMEMBERED);
    }

    #[test]
    fn failures_far_apart_or_between_good_runs_do_not_open_it() {
        let now = Instant::now();
        let breaker = Breaker::default();
        for n in 0..10 {
            assert!(!breaker.failed(now + n * Duration::from_secs(16), caller(n), &CONFIG));
        }
        breaker.reset();
        for n in 0..10 {
            assert!(!breaker.failed(now, caller(n), &CONFIG));
            breaker.passed();
        }
        let off = config::Breaker { failures: 0, ..CONFIG };
        assert!((0..10).all(|n| !breaker.failed(now, caller(n), &off)));
        assert!(opened(now).reset());
    }
}
