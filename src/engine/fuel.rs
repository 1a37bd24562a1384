//! Fuel and time of one invocation. The guest counts down a slice; at its end [`Fuel::expire`] decides what follows.
//!
//! Invariant: the sum of what guests are charged does not depend on how it was cut into slices, so fuel is the same on
//! every run and with every compiler, while slices follow the clock.

use std::cell::Cell;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;

use super::cancel::Cancel;
use super::failure::Halt;
use super::{permits, sys};

/// A slice never takes longer than what is left until the deadline: a unit is about an instruction, and the slowest
/// (a store to a page never touched before) take some 150 ns.
const WORST_NANOS_A_UNIT: u64 = 256;
/// Some 5 us of ordinary code, 1 ms of the slowest.
const MIN_SLICE: u64 = 4_000;
/// Bounds what a guest makes of its past.
const MAX_SLICE: u64 = 4_000_000;
const FIRST_SLICE: u64 = 64_000;
/// How long a slice is to take: half of a turn with a run permit. A slice's end costs about 100 ns.
const SLICE: Duration = Duration::from_micros(250);
/// A slice has at most so many times the units of the one before.
const FASTER: u64 = 4;
/// Work of host calls between two looks at the clock; some microseconds.
const WORK_UNCHECKED: u64 = 8_192;
/// What a host call costs beside the bytes that it moves.
const CALL: u64 = 32;
/// What waits for another thread does not depend on that thread to end.
const LATE: Duration = Duration::from_millis(10);
/// Bytes that a host function moves between two checks: some 100 us.
const PIECE: usize = 1 << 20;

#[derive(Debug)]
pub struct Fuel {
    limit: u64,
    /// Used up to the moment when the running slice was granted.
    base: u64,
    /// What the guest's counter read then.
    slice: i64,
    granted: Instant,
    /// Units that fit into [`SLICE`], by what the last slice took.
    pace: u64,
    deadline: Instant,
    cancel: Cancel,
    /// Work of host calls since the clock was last looked at.
    unchecked: u64,
    worker: Option<Worker>,
}

/// A run on a thread that has others to serve: it ends once it has used so much of it, by the thread's own clock, so that
/// a busy machine does not make it look slow.
#[derive(Debug)]
struct Worker {
    most: Duration,
    /// The thread's clock when it was first looked at, a slice from the run's beginning.
    since: Cell<Option<Duration>>,
}

impl Fuel {
    pub fn new(limit: u64, began: Instant, deadline: Instant, cancel: Cancel) -> Fuel {
        Fuel {
            limit,
            base: 0,
            slice: 0,
            granted: began,
            pace: FIRST_SLICE,
            deadline,
            cancel,
            unchecked: 0,
            worker: None,
        }
    }

    /// It may use so much of the thread that it runs on.
    pub fn on_worker(&mut self, most: Duration) {
        self.worker = Some(Worker { most, since: Cell::new(None) });
    }

    fn check_worker(&self) -> Result<(), Halt> {
        let Some(Worker { most, since }) = &self.worker else { return Ok(()) };
        let now = sys::thread_cpu_time();
        let began = since.get().unwrap_or(now);
        since.set(Some(began));
        if now.saturating_sub(began) > *most { Err(Halt::Deadline) } else { Ok(()) }
    }

    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Time left; zero when the deadline has passed.
    pub fn remaining(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// What was used when the guest's counter reads `counter`.
    pub fn used(&self, counter: i64) -> u64 {
        let spent = i128::from(self.slice) - i128::from(counter);
        self.base.saturating_add(u64::try_from(spent).unwrap_or(0))
    }

    /// What is known without the guest's counter.
    pub fn used_at_least(&self) -> u64 {
        self.base
    }

    /// Charges work that a host function did for the guest.
    pub fn charge(&mut self, units: u64) {
        self.base = self.base.saturating_add(units);
    }

    /// The first slice; 0 when there is none, and the first instruction finds out why.
    pub fn begin(&mut self) -> i64 {
        self.slice = self.next_slice(self.granted).unwrap_or(0);
        self.slice
    }

    /// The counter fell below zero: a new slice, after others have had their turns, or the end.
    pub fn expire(&mut self, counter: i64) -> Result<i64, Halt> {
        let now = Instant::now();
        self.follow_the_clock(counter, now);
        self.base = self.used(counter);
        self.slice = counter;
        if self.base > self.limit {
            return Err(Halt::OutOfFuel);
        }
        self.check_worker()?;
        permits::pass_on(now, self.deadline);
        self.slice = self.next_slice(Instant::now())?;
        Ok(self.slice)
    }

    /// Host functions charge between slices, so a guest may end by itself before its counter shows that it is over.
    pub fn is_over(&self, counter: i64) -> bool {
        self.used(counter) > self.limit
    }

    /// For host functions, at least once in half a turn of their work: the fuel, the caller and the deadline, checked
    /// after others have had their turns. A guest that does little but call them meets the end of a slice hardly ever.
    pub fn check(&self) -> Result<(), Halt> {
        if self.base > self.limit {
            return Err(Halt::OutOfFuel);
        }
        self.check_worker()?;
        permits::pass_on(Instant::now(), self.deadline);
        self.time_left(Instant::now()).map(drop)
    }

    /// Charges a host call that moves so many bytes. A guest that only calls the host would otherwise outlive its
    /// deadline: its own counter hardly moves.
    pub fn spend(&mut self, bytes: usize) -> Result<(), Halt> {
        let units = CALL + bytes as u64 / 4;
        self.charge(units);
        self.unchecked += units;
        if self.unchecked > WORK_UNCHECKED {
            self.unchecked = 0;
            self.check()?;
        }
        Ok(())
    }

    /// As `extend_from_slice`, however much it is.
    pub fn append(&self, to: &mut Vec<u8>, bytes: &[u8]) -> Result<(), Halt> {
        bytes.chunks(PIECE).try_for_each(|piece| {
            to.extend_from_slice(piece);
            if piece.len() < PIECE { Ok(()) } else { self.check() }
        })
    }

    /// As `copy_from_slice`, however much it is.
    pub fn copy(&self, to: &mut [u8], bytes: &[u8]) -> Result<(), Halt> {
        to.chunks_mut(PIECE).zip(bytes.chunks(PIECE)).try_for_each(|(to, piece)| {
            to.copy_from_slice(piece);
            if piece.len() < PIECE { Ok(()) } else { self.check() }
        })
    }

    /// Sleeps, never past the deadline: a longer sleep ends the guest there.
    pub fn sleep(&self, wanted: Duration) -> Result<(), Halt> {
        permits::aside(self.deadline, || self.cancel.sleep(wanted.min(self.remaining())));
        self.time_left(Instant::now()).map(drop)
    }

    /// Waits for work of other threads, for so long at most; `None`: it is not done. Never past the deadline, which ends
    /// the guest, as a caller that has gone does.
    pub fn wait<T: Send + 'static>(
        &self,
        on: &Handle,
        work: impl Future<Output = T> + Send + 'static,
        limit: Duration,
    ) -> Result<Option<T>, Halt> {
        let (cancel, limit) = (self.cancel.clone(), limit.min(self.remaining()));
        // Of the standard library, as this thread may be one that tokio would not let wait.
        let (tell, told) = mpsc::sync_channel(1);
        on.spawn(async move {
            let done = tokio::time::timeout(limit, cancel.or_cancelled(work)).await;
            // Who waited may have gone.
            let _ = tell.send(done.ok().flatten());
        });
        let mut done = None;
        // A runtime that ends drops its tasks, which tells as well.
        permits::aside(self.deadline, || done = told.recv_timeout(limit + LATE).ok().flatten());
        self.time_left(Instant::now())?;
        Ok(done)
    }

    fn time_left(&self, now: Instant) -> Result<Duration, Halt> {
        if self.cancel.is_cancelled() {
            return Err(Halt::Cancelled);
        }
        let left = self.deadline.saturating_duration_since(now);
        if left.is_zero() { Err(Halt::Deadline) } else { Ok(left) }
    }

    fn follow_the_clock(&mut self, counter: i64, now: Instant) {
        let units = u128::try_from(i128::from(self.slice) - i128::from(counter)).unwrap_or(0);
        let took = now.saturating_duration_since(self.granted);
        let fit = units * SLICE.as_nanos() / took.as_nanos().max(1);
        let fit = u64::try_from(fit).unwrap_or(u64::MAX);
        self.pace = fit.min(self.pace.saturating_mul(FASTER)).clamp(MIN_SLICE, MAX_SLICE);
    }

    fn next_slice(&mut self, now: Instant) -> Result<i64, Halt> {
        self.granted = now;
        let left = self.time_left(now)?;
        let by_time = u64::try_from(left.as_nanos()).unwrap_or(u64::MAX) / WORST_NANOS_A_UNIT;
        let slice = by_time.max(MIN_SLICE).min(self.pace).min(self.limit - self.base);
        Ok(i64::try_from(slice).unwrap_or(i64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_does_not_depend_on_slices() {
        let mut fuel =
            Fuel::new(10_000_000, Instant::now(), Instant::now() + Duration::from_secs(60), Cancel::default());
        let first = fuel.expire(-7).unwrap();
        assert_eq!(fuel.used(first), 7);
        let second = fuel.expire(-3).unwrap();
        assert_eq!(fuel.used(second), 7 + first as u64 + 3);
        fuel.charge(10);
        assert_eq!(fuel.used(second), 7 + first as u64 + 13);
        assert!(!fuel.is_over(second));
    }

    #[test]
    fn the_last_slice_is_what_is_left() {
        let mut fuel = Fuel::new(100, Instant::now(), Instant::now() + Duration::from_secs(60), Cancel::default());
        assert_eq!(fuel.expire(0).unwrap(), 100);
        assert_eq!(fuel.expire(-1), Err(Halt::OutOfFuel));
        assert_eq!(fuel.used_at_least(), 101);
        assert_eq!(fuel.used(-1), 101, "the counter stays where it ended");
    }

    #[test]
    fn the_deadline_ends_it() {
        let mut fuel = Fuel::new(u64::MAX, Instant::now(), Instant::now(), Cancel::default());
        assert_eq!(fuel.expire(0), Err(Halt::Deadline));
    }

    #[test]
    fn a_caller_that_has_gone_ends_it() {
        let cancel = Cancel::default();
        let mut fuel = Fuel::new(u64::MAX, Instant::now(), Instant::now() + Duration::from_secs(60), cancel.clone());
        assert!(fuel.expire(0).is_ok());
        cancel.cancel();
        assert_eq!(fuel.expire(0), Err(Halt::Cancelled));
        assert_eq!(fuel.check(), Err(Halt::Cancelled));
        assert_eq!(fuel.sleep(Duration::from_secs(30)), Err(Halt::Cancelled), "without sleeping");
    }

    #[test]
    fn slices_shrink_towards_the_deadline() {
        let mut far = Fuel::new(u64::MAX, Instant::now(), Instant::now() + Duration::from_secs(60), Cancel::default());
        let mut near =
            Fuel::new(u64::MAX, Instant::now(), Instant::now() + Duration::from_millis(2), Cancel::default());
        assert_eq!(far.begin() as u64, FIRST_SLICE);
        assert!((near.begin() as u64) < 10_000);
    }

    #[test]
    fn slices_follow_the_clock() {
        let mut fuel = Fuel::new(u64::MAX, Instant::now(), Instant::now() + Duration::from_secs(60), Cancel::default());
        fuel.begin();
        // As if the slice had taken ten times as long as it should.
        fuel.granted = Instant::now() - 10 * SLICE;
        let slow = fuel.expire(0).unwrap() as u64;
        assert!((MIN_SLICE..FIRST_SLICE / 9).contains(&slow), "{slow}");
        let fast = fuel.expire(0).unwrap() as u64;
        assert!(fast > slow && fast <= FASTER * slow, "{fast} after {slow}");
    }
}
