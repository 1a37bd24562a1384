//! The fuel of an owner's day: what this gateway counts, and what the others of its fleet do.
//!
//! Invariant: a gateway tells its whole sum, so that what is told twice counts once and nothing is lost with an answer.

use std::time::Duration;

use super::quota::{Calendar, Tick};
use crate::domain::Window;

pub const WINDOW: Window = Window::Day;
/// From a run to the others' knowledge of it.
const TELL_AFTER: u64 = 250_000_000;
/// How old knowledge of others' runs may be where a limit depends on it.
const FRESH: u64 = 2_000_000_000;
/// Sums outlive their day, for gateways whose clocks are behind.
const LEEWAY: Duration = Duration::from_secs(3600);

#[derive(Clone, Copy, Debug)]
pub struct Fuel {
    pub count: Calendar,
    /// By others, as of the last answer.
    elsewhere: u64,
    told: u64,
    /// When it was last asked, nanoseconds.
    asked: Option<u64>,
    on_its_way: bool,
    alarm: u64,
}

/// What is to be told.
#[derive(Clone, Copy, Debug)]
pub struct Told {
    /// Start of the window.
    pub day: i64,
    pub used: u64,
    pub life: Duration,
}

impl Fuel {
    pub fn new(now: i64) -> Self {
        let count = Calendar::new(WINDOW, now);
        Self { count, elsewhere: 0, told: 0, asked: None, on_its_way: false, alarm: u64::MAX }
    }

    pub fn roll(&mut self, now: i64) {
        let day = self.count.start;
        self.count.roll(WINDOW, now);
        if self.count.start != day {
            *self = Self { count: self.count, on_its_way: self.on_its_way, alarm: self.alarm, ..Self::new(now) };
        }
    }

    /// Used by all.
    pub fn used(&self, now: Tick) -> u64 {
        let in_window = (self.count.start..self.count.end).contains(&now.seconds());
        if in_window { self.count.used.saturating_add(self.elsewhere) } else { 0 }
    }

    pub fn add(&mut self, fuel: u64, now: Tick) {
        self.roll(now.seconds());
        self.count.used = self.count.used.saturating_add(fuel);
    }

    /// When the alarm is to be set, where that is earlier than it is. `limited`: somebody is held to it now.
    pub fn new_alarm(&mut self, now: Tick, limited: bool) -> Option<u64> {
        let is_stale = limited && self.asked.is_none_or(|at| now.mono.saturating_sub(at) > FRESH);
        let at = match (self.on_its_way, is_stale, self.is_untold()) {
            (false, true, _) => now.mono,
            (false, false, true) => now.mono + TELL_AFTER,
            _ => return None,
        };
        (at < self.alarm).then(|| {
            self.alarm = at;
            at
        })
    }

    /// `lost`: nobody can be told; the alarm is set again when somebody can.
    pub fn tick(&mut self, at: u64, now: Tick, lost: bool) -> Option<Told> {
        if self.alarm != at {
            return None;
        }
        self.alarm = u64::MAX;
        (!lost && !self.on_its_way).then(|| self.tell(now))
    }

    /// What others don't know yet, at the end.
    pub fn close(&mut self, now: Tick) -> Option<Told> {
        (self.is_untold() && !self.on_its_way).then(|| self.tell(now))
    }

    fn tell(&mut self, now: Tick) -> Told {
        self.roll(now.seconds());
        (self.on_its_way, self.asked) = (true, Some(now.mono));
        Told { day: self.count.start, used: self.count.used, life: self.count.until_end(now) + LEEWAY }
    }

    pub fn answered(&mut self, told: &Told, others: Option<u64>) {
        self.on_its_way = false;
        if let Some(others) = others.filter(|_| told.day == self.count.start) {
            (self.elsewhere, self.told) = (others, told.used);
        }
    }

    pub fn is_untold(&self) -> bool {
        self.count.used > self.told
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn at(mono: u64) -> Tick {
        Tick { mono, wall: 1_709_251_198_000 }
    }

    /// It is told when there is somebody to tell.
    #[test]
    fn an_alarm_in_an_outage_is_not_the_last_one() {
        let mut fuel = Fuel::new(at(0).seconds());
        fuel.add(500, at(0));
        let alarm = fuel.new_alarm(at(0), false).expect("the others don't know");
        assert!(fuel.tick(alarm, at(alarm), true).is_none(), "nobody can be told");
        fuel.add(70, at(alarm + MS));
        let back = alarm + 5_000 * MS;
        let again = fuel.new_alarm(at(back), false).expect("they still don't know");
        let told = fuel.tick(again, at(again), false).expect("somebody can be told");
        assert_eq!(told.used, 570);
        fuel.answered(&told, Some(30));
        assert_eq!((fuel.used(at(again)), fuel.is_untold()), (600, false));
        assert!(fuel.new_alarm(at(again), false).is_none());
    }

    #[test]
    fn what_was_told_without_an_answer_is_told_again() {
        let mut fuel = Fuel::new(at(0).seconds());
        fuel.add(500, at(0));
        let alarm = fuel.new_alarm(at(0), false).expect("the others don't know");
        let told = fuel.tick(alarm, at(alarm), false).expect("it is time");
        assert!(fuel.new_alarm(at(alarm), true).is_none(), "one at a time");
        fuel.answered(&told, None);
        let again = fuel.new_alarm(at(alarm), false).expect("they may not know");
        assert_eq!(fuel.tick(again, at(again), false).map(|told| told.used), Some(500));
    }
}
