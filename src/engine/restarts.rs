//! When a VM may be started again that could not.
//!
//! Invariant: a module that fails while it starts is tried less and less often. One that fails on a request is there for
//! the next one at once: with a pause, whoever makes it crash would take its route away from all others.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::RunError;

const FIRST: Duration = Duration::from_millis(100);
pub const LONGEST: Duration = Duration::from_secs(30);
/// So many failures in a row cost no time.
const FREE: u32 = 3;

/// Starts a VM, if it is time.
pub fn start<V>(restarts: &Mutex<Restarts>, start: impl FnOnce() -> Result<V, RunError>) -> Result<V, RunError> {
    restarts.lock().admit(Instant::now())?;
    let started = start();
    match &started {
        Ok(_) => restarts.lock().started(),
        Err(error) => restarts.lock().failed(Instant::now(), error),
    }
    started
}

#[derive(Default)]
pub struct Restarts {
    in_a_row: u32,
    /// Until then the last failure is everybody's.
    again_at: Option<Instant>,
    last: Option<RunError>,
}

impl Restarts {
    fn admit(&self, now: Instant) -> Result<(), RunError> {
        match (&self.again_at, &self.last) {
            (Some(at), Some(error)) if now < *at => Err(error.clone()),
            _ => Ok(()),
        }
    }

    fn failed(&mut self, now: Instant, error: &RunError) {
        self.in_a_row = self.in_a_row.saturating_add(1);
        self.last = Some(error.clone());
        self.again_at = self.in_a_row.checked_sub(FREE).map(|n| now + (FIRST * 2u32.pow(n.min(16))).min(LONGEST));
    }

    fn started(&mut self) {
        if self.in_a_row > 0 {
            *self = Restarts::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_only_fails_is_tried_less_and_less_often() {
        let mut restarts = Restarts::default();
        let now = Instant::now();
        let error = RunError::BadCall("no".into());
        for _ in 1..FREE {
            restarts.failed(now, &error);
            assert!(restarts.admit(now).is_ok());
        }
        restarts.failed(now, &error);
        assert!(restarts.admit(now).is_err());
        assert!(restarts.admit(now + FIRST).is_ok());
        restarts.failed(now, &error);
        assert!(restarts.admit(now + FIRST).is_err());
        (0..40).for_each(|_| restarts.failed(now, &error));
        assert!(restarts.admit(now + LONGEST).is_ok());
        restarts.started();
        assert!(restarts.admit(now).is_ok());
    }
}
