//! Where a run happens: on the calling worker when it is known to be short, else on the guest pool.
//!
//! Invariant: nothing runs inline before [`SHORT_RUNS`] runs in a row were short, and one long run takes that away.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::domain::{GuestFailure, Limits, Meter};

/// So many in a row.
pub const SHORT_RUNS: u32 = 128;
/// A run below this is short.
pub const SHORT: Duration = Duration::from_micros(200);
/// What an inline run may use: about a millisecond of processor time, counted in fuel, so that a busy machine does not
/// make a guest look slow. Over it, the run is trapped and started again on the pool.
pub const INLINE_FUEL: u64 = 250_000;
/// Where fuel says too little about time.
pub const INLINE_WALL: Duration = Duration::from_millis(20);

/// A guest's own limits under those of the lane; `fuel` for what the lane gives.
pub fn inline(own: &Limits, fuel: u64) -> Limits {
    Limits { fuel: own.fuel.min(fuel), wall_ms: own.wall_ms.min(INLINE_WALL), ..own.clone() }
}

/// An inline run met the bound of its lane, not one of its own: it has to be done again on the pool.
pub fn overran(failure: &GuestFailure, own: &Limits) -> bool {
    match failure {
        GuestFailure::OutOfFuel => own.fuel > INLINE_FUEL,
        GuestFailure::Deadline => own.wall_ms > INLINE_WALL,
        _ => false,
    }
}

/// Time in the guest, for its lane. A run that used little fuel was short, whatever the clock says: it was the processor
/// that was busy.
pub fn took(meter: &Meter) -> Duration {
    const SLOW_NANOS_A_UNIT: u64 = 20;
    meter.cpu.min(Duration::from_nanos(meter.fuel.saturating_mul(SLOW_NANOS_A_UNIT)))
}

/// The history of one module or handler.
#[derive(Debug)]
pub struct Lane {
    short_in_a_row: AtomicU32,
    /// So many make it inline.
    wanted: AtomicU32,
}

/// How much longer a row has to be after each run that held up its worker.
const LONGER: u32 = 4;
/// At about so many it is never inline again.
const LONGEST_ROW: u32 = 1 << 24;
/// An inline run of this has held up its worker.
const HELD_UP: Duration = Duration::from_millis(2);

impl Default for Lane {
    fn default() -> Lane {
        Lane::new()
    }
}

impl Lane {
    pub const fn new() -> Lane {
        Lane { short_in_a_row: AtomicU32::new(0), wanted: AtomicU32::new(SHORT_RUNS) }
    }

    /// The next run may use the calling worker, for [`INLINE_FUEL`].
    pub fn is_inline(&self) -> bool {
        self.short_in_a_row.load(Ordering::Relaxed) >= self.wanted.load(Ordering::Relaxed)
    }

    /// As [`Self::record`], of an inline run that was not to be broken off: who takes long again and again is let on a
    /// worker less and less often.
    pub fn record_whole(&self, took: Duration) {
        if took >= HELD_UP {
            let wanted = self.wanted.load(Ordering::Relaxed);
            self.wanted.store(wanted.saturating_mul(LONGER).min(LONGEST_ROW), Ordering::Relaxed);
        }
        self.record(took);
    }

    /// A run ended after `took` in the guest, without the time in queues.
    pub fn record(&self, took: Duration) {
        if took >= SHORT {
            self.overran();
            return;
        }
        // Lost updates only delay the inline lane.
        let n = self.short_in_a_row.load(Ordering::Relaxed);
        if n < self.wanted.load(Ordering::Relaxed) {
            self.short_in_a_row.store(n + 1, Ordering::Relaxed);
        }
    }

    /// An inline run met the end of its slice.
    pub fn overran(&self) {
        self.short_in_a_row.store(0, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inline_after_a_row_of_short_runs() {
        let lane = Lane::new();
        for _ in 0..SHORT_RUNS {
            assert!(!lane.is_inline());
            lane.record(Duration::from_micros(50));
        }
        assert!(lane.is_inline());
    }

    #[test]
    fn who_holds_a_worker_up_is_let_on_it_less_often() {
        let lane = Lane::new();
        let row = |n: u32| (0..n).for_each(|_| lane.record(Duration::ZERO));
        row(SHORT_RUNS);
        lane.record_whole(HELD_UP);
        row(SHORT_RUNS);
        assert!(!lane.is_inline());
        row(3 * SHORT_RUNS);
        assert!(lane.is_inline());
        lane.record_whole(SHORT);
        row(4 * SHORT_RUNS);
        assert!(lane.is_inline(), "a run that was only not short costs its row alone");
    }

    #[test]
    fn one_long_run_takes_it_away() {
        let lane = Lane::new();
        for _ in 0..SHORT_RUNS {
            lane.record(Duration::ZERO);
        }
        lane.record(SHORT);
        assert!(!lane.is_inline());
        for _ in 0..SHORT_RUNS - 1 {
            lane.record(Duration::ZERO);
        }
        assert!(!lane.is_inline());
        lane.record(Duration::ZERO);
        assert!(lane.is_inline());
        lane.overran();
        assert!(!lane.is_inline());
    }
}
