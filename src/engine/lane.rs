//! Where a run happens: on the calling worker when it is known to be short, else on the guest pool.
//!
//! Invariant: nothing runs inline before [`SHORT_RUNS`] runs in a row were short, and one long run takes that away.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// So many in a row.
pub const SHORT_RUNS: u32 = 128;
/// A run below this is short.
pub const SHORT: Duration = Duration::from_micros(200);
/// An inline run is trapped at this time and started again on the pool.
pub const INLINE_SLICE: Duration = Duration::from_millis(1);

/// The history of one module or handler.
#[derive(Debug, Default)]
pub struct Lane {
    short_in_a_row: AtomicU32,
}

impl Lane {
    pub const fn new() -> Lane {
        Lane { short_in_a_row: AtomicU32::new(0) }
    }

    /// The next run may use the calling worker, for [`INLINE_SLICE`].
    pub fn is_inline(&self) -> bool {
        self.short_in_a_row.load(Ordering::Relaxed) >= SHORT_RUNS
    }

    /// A run ended after `took` in the guest, without the time in queues.
    pub fn record(&self, took: Duration) {
        if took >= SHORT {
            self.overran();
            return;
        }
        // Lost updates only delay the inline lane.
        let n = self.short_in_a_row.load(Ordering::Relaxed);
        if n < SHORT_RUNS {
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
