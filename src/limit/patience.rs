//! How long answers to calls for limits may take, and when their absence is an outage. Pure: times are given.

use std::time::{Duration, Instant};

/// Until when an answer is in time: what answers take usually and four times what that varies (RFC 6298 section 2), between these.
const SOONEST: Duration = Duration::from_millis(5);
const LATEST: Duration = Duration::from_millis(150);
/// Answers that are late are no outage before nothing at all was heard for this long: a moment in which this process or Redis is
/// not given a processor is none.
const SILENCE: Duration = Duration::from_millis(35);

/// Times of answers in seconds, smoothed; and when something was heard.
#[derive(Debug)]
pub struct Patience {
    mean: f64,
    deviation: f64,
    answer: Instant,
    failure: Instant,
}

impl Patience {
    /// Nothing was measured yet.
    pub fn new(now: Instant) -> Self {
        Self { mean: 0.01, deviation: 0.005, answer: now, failure: now }
    }

    pub fn is(&self) -> Duration {
        Duration::from_secs_f64(self.mean + 4.0 * self.deviation).clamp(SOONEST, LATEST)
    }

    pub fn answered(&mut self, sent: Instant, now: Instant) {
        let took = now.duration_since(sent).as_secs_f64();
        let difference = took - self.mean;
        self.deviation += 0.25 * (difference.abs() - self.deviation);
        self.mean += 0.125 * difference;
        self.answer = now;
    }

    /// A call that was sent then has no answer yet. Whether that counts as a failure: nobody has heard anything for long.
    pub fn is_failure(&mut self, sent: Instant, now: Instant) -> bool {
        let heard = self.answer.max(self.failure).max(sent);
        let failed = now.duration_since(heard) >= self.is().max(SILENCE);
        if failed {
            self.failure = now;
        }
        failed
    }

    /// A call that was sent then has failed. Whether that counts: what fails together, as with its connection, has failed once.
    pub fn is_new_failure(&mut self, sent: Instant, now: Instant) -> bool {
        let failed = sent > self.failure;
        if failed {
            self.failure = now;
        }
        failed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// Answers after so many milliseconds each, one after the other.
    fn used_to(times: impl IntoIterator<Item = u32>) -> (Patience, Instant) {
        let mut now = Instant::now();
        let mut patience = Patience::new(now);
        for time in times {
            let sent = now;
            now += MS * time;
            patience.answered(sent, now);
        }
        (patience, now)
    }

    #[test]
    fn answers_may_take_what_they_usually_take_and_more() {
        let (quick, _) = used_to([1; 100]);
        assert_eq!(quick.is(), 5 * MS);
        let (slow, _) = used_to([40; 100]);
        assert!((40 * MS..45 * MS).contains(&slow.is()), "{slow:?}");
        let (uneven, _) = used_to([10, 50].repeat(50));
        assert!((90 * MS..130 * MS).contains(&uneven.is()), "{uneven:?}");
        let (slowest, _) = used_to([400; 100]);
        assert_eq!(slowest.is(), 150 * MS);
    }

    #[test]
    fn late_answers_are_no_failures_while_others_come() {
        let (mut patience, start) = used_to([1; 100]);
        for n in 0..100 {
            let now = start + n * 10 * MS;
            patience.answered(now - MS, now);
            assert!(!patience.is_failure(start, now + 9 * MS), "{n}");
        }
    }

    #[test]
    fn silence_fails_once_in_a_while_however_many_wait() {
        let (mut patience, start) = used_to([1; 100]);
        assert!(!patience.is_failure(start, start + 34 * MS));
        let failures = (0..1_000u32).filter(|n| patience.is_failure(start, start + n / 10 * MS)).count();
        assert_eq!(failures, 2, "in a tenth of a second, looked at by ten each millisecond");
        // What was sent just now has its time.
        let now = start + 200 * MS;
        assert!(!patience.is_failure(now - 20 * MS, now));
        assert!(patience.is_failure(now - 35 * MS, now));
    }

    #[test]
    fn calls_that_fail_together_fail_once() {
        let (mut patience, start) = used_to([1; 100]);
        let failures = |patience: &mut Patience, sent: Instant, now: Instant| {
            (0..50).filter(|_| patience.is_new_failure(sent, now)).count()
        };
        assert_eq!(failures(&mut patience, start + MS, start + 3 * MS), 1);
        assert_eq!(failures(&mut patience, start + 2 * MS, start + 3 * MS), 0, "sent before it was known");
        assert_eq!(failures(&mut patience, start + 4 * MS, start + 5 * MS), 1);
    }
}
