//! Refuses the runs of a module version that does nothing but fail, so that a crash loop costs its callers a quick 503
//! and its neighbours nothing.
//!
//! Invariant: a breaker that is open lets one run through at the end of each cool-down, and closes when one ends well.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::config;
use crate::domain::GuestFailure;

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
    open: Option<Open>,
}

struct Open {
    until: Instant,
    cool_down: Duration,
}

impl Breaker {
    /// `Err`: how long it stays open.
    pub fn admit(&self, now: Instant) -> Result<(), Duration> {
        if !self.troubled.load(Ordering::Relaxed) {
            return Ok(());
        }
        let mut state = self.state.lock();
        let Some(open) = &mut state.open else { return Ok(()) };
        let left = open.until.saturating_duration_since(now);
        if !left.is_zero() {
            return Err(left);
        }
        // This one finds out; should it be lost, another does after it.
        open.until = now + open.cool_down;
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
    pub fn failed(&self, now: Instant, config: &config::Breaker) -> bool {
        if config.failures == 0 {
            return false;
        }
        let mut state = self.state.lock();
        self.troubled.store(true, Ordering::Relaxed);
        let until = now + config.cool_down;
        if let Some(open) = &mut state.open {
            open.until = until;
            return false;
        }
        let begun = *state.since.get_or_insert(now);
        if now.saturating_duration_since(begun) > config.window {
            state.row = 0;
            state.since = Some(now);
        }
        state.row += 1;
        let opens = state.row >= config.failures;
        if opens {
            state.open = Some(Open { until, cool_down: config.cool_down });
        }
        opens
    }
}

/// A crash, as opposed to an answer that can't be used, which what a caller asks for makes more often than a module,
/// and to a caller that leaves.
pub fn is_crash(failure: &GuestFailure) -> bool {
    !matches!(failure, GuestFailure::BadOutput(_) | GuestFailure::OutputTooLarge | GuestFailure::Cancelled)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: config::Breaker =
        config::Breaker { failures: 3, window: Duration::from_secs(30), cool_down: Duration::from_secs(10) };

    fn opened(now: Instant) -> Breaker {
        let breaker = Breaker::default();
        assert_eq!([0; 3].map(|_| breaker.failed(now, &CONFIG)), [false, false, true]);
        breaker
    }

    #[test]
    fn failures_in_a_row_open_it_and_one_run_closes_it() {
        let now = Instant::now();
        let breaker = opened(now);
        assert_eq!(breaker.admit(now), Err(CONFIG.cool_down));
        let later = now + CONFIG.cool_down;
        assert_eq!(breaker.admit(later), Ok(()));
        assert_eq!(breaker.admit(later), Err(CONFIG.cool_down), "one at a time");
        assert!(breaker.passed() && !breaker.passed());
        assert_eq!(breaker.admit(later), Ok(()));
        assert!(!breaker.failed(later, &CONFIG), "it counts anew");
    }

    #[test]
    fn a_failed_trial_keeps_it_open() {
        let now = Instant::now();
        let breaker = opened(now);
        let later = now + CONFIG.cool_down;
        assert_eq!(breaker.admit(later), Ok(()));
        assert!(!breaker.failed(later, &CONFIG));
        assert_eq!(breaker.admit(later + CONFIG.cool_down - Duration::from_millis(1)), Err(Duration::from_millis(1)));
    }

    #[test]
    fn failures_far_apart_or_between_good_runs_do_not_open_it() {
        let now = Instant::now();
        let breaker = Breaker::default();
        for n in 0..10 {
            assert!(!breaker.failed(now + n * Duration::from_secs(16), &CONFIG));
        }
        breaker.reset();
        for _ in 0..10 {
            assert!(!breaker.failed(now, &CONFIG));
            breaker.passed();
        }
        let off = config::Breaker { failures: 0, ..CONFIG };
        assert!((0..10).all(|_| !breaker.failed(now, &off)));
        assert!(opened(now).reset());
    }
}
