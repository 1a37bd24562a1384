//! Quota maths: GCRA for rolling windows, UTC calendar windows. Pure; time is a parameter.
//!
//! Invariant: integers only and no rounding on the way, so that a quota is exact for ever: GCRA counts time in
//! nanoseconds times the quota's requests, in which one request costs the window's nanoseconds.

use std::time::Duration;

use crate::domain::{Quota, Window};

/// A refusal: how long until the same cost would be admitted. `None`: never, the cost is over the policy's capacity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused(pub Option<Duration>);

/// Both clocks as the cells use them.
#[derive(Clone, Copy, Debug)]
pub struct Tick {
    /// Monotonic nanoseconds since the limiter began.
    pub mono: u64,
    /// Unix milliseconds.
    pub wall: i64,
}

impl Tick {
    pub fn seconds(self) -> i64 {
        self.wall.div_euclid(1000)
    }
}

/// `requests` over `window`, at most `burst` at once. A request moves the theoretical arrival time (TAT) on by
/// window / requests; it is admitted while the TAT is at most burst * window / requests ahead of now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    requests: u64,
    window: u64,
    burst: u64,
}

/// The theoretical arrival time, in nanoseconds times the rate's requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tat(u128);

impl Rate {
    /// A rate of 0 requests admits nothing.
    pub fn new(requests: u64, window: Duration, burst: u64) -> Self {
        let burst = if requests == 0 { 0 } else { burst };
        Self { requests, window: u64::try_from(window.as_nanos()).unwrap_or(u64::MAX), burst }
    }

    pub fn requests(&self) -> u64 {
        self.requests
    }

    /// The TAT after `cost` more requests.
    pub fn check(&self, tat: Tat, cost: u64, now: u64) -> Result<Tat, Refused> {
        if cost > self.burst {
            return Err(Refused(None));
        }
        let next = self.charge(tat, cost, now);
        let latest = self.scale(now).saturating_add(self.units(self.burst));
        if next.0 <= latest {
            return Ok(next);
        }
        Err(Refused(Some(self.duration(next.0 - latest))))
    }

    /// The TAT after `cost` more requests, admitted or not.
    pub fn charge(&self, tat: Tat, cost: u64, now: u64) -> Tat {
        Tat(tat.0.max(self.scale(now)).saturating_add(self.units(cost)))
    }

    /// Requests that would be admitted now.
    pub fn remaining(&self, tat: Tat, now: u64) -> u64 {
        let free = self.units(self.burst).saturating_sub(tat.0.saturating_sub(self.scale(now)));
        u64::try_from(free / u128::from(self.window.max(1))).unwrap_or(u64::MAX)
    }

    /// Until the whole burst is there again.
    pub fn reset(&self, tat: Tat, now: u64) -> Duration {
        self.duration(tat.0.saturating_sub(self.scale(now)))
    }

    pub fn is_idle(&self, tat: Tat, now: u64) -> bool {
        tat.0 <= self.scale(now)
    }

    /// The same backlog in time under another rate, at most what that rate can owe.
    pub fn convert(&self, tat: Tat, from: &Rate, now: u64) -> Tat {
        let backlog = tat.0.saturating_sub(from.scale(now));
        let here = backlog.saturating_mul(u128::from(self.requests)) / u128::from(from.requests.max(1));
        Tat(self.scale(now).saturating_add(here.min(self.units(self.burst))))
    }

    fn scale(&self, nanos: u64) -> u128 {
        u128::from(nanos) * u128::from(self.requests)
    }

    fn units(&self, cost: u64) -> u128 {
        u128::from(cost) * u128::from(self.window)
    }

    /// Rounded up, so that a client that waits so long is never too early.
    fn duration(&self, scaled: u128) -> Duration {
        let nanos = scaled.div_ceil(u128::from(self.requests.max(1)));
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

/// A counter over a calendar window. Times are Unix seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Calendar {
    pub start: i64,
    pub end: i64,
    pub used: u64,
}

impl Calendar {
    pub fn new(window: Window, now: i64) -> Self {
        let (start, end) = bounds(window, now);
        Self { start, end, used: 0 }
    }

    /// Moves on to the window of `now`. A clock that went back keeps what was used: neither does a jump give quota
    /// away, nor does a counter from a wrong future stand until then.
    pub fn roll(&mut self, window: Window, now: i64) {
        if now >= self.end {
            *self = Self::new(window, now);
        } else if now < self.start {
            *self = Self { used: self.used, ..Self::new(window, now) };
        }
    }

    /// The window's length.
    pub fn seconds(&self) -> u64 {
        (self.end - self.start).unsigned_abs()
    }

    pub fn until_end(&self, now: Tick) -> Duration {
        let left = self.end.saturating_mul(1000).saturating_sub(now.wall);
        Duration::from_millis(u64::try_from(left).unwrap_or(0))
    }

    pub fn check(&self, limit: u64, cost: u64, now: Tick) -> Result<(), Refused> {
        if cost > limit {
            return Err(Refused(None));
        }
        if self.used.saturating_add(cost) <= limit { Ok(()) } else { Err(Refused(Some(self.until_end(now)))) }
    }
}

/// Start (included) and end (excluded) of the window that holds `now`, Unix seconds. A rolling window, which has none,
/// counts from the second itself.
pub fn bounds(window: Window, now: i64) -> (i64, i64) {
    const DAY: i64 = 86_400;
    let aligned = |length: i64| {
        let start = now.div_euclid(length) * length;
        (start, start + length)
    };
    match window {
        Window::Rolling { seconds } => (now, now + i64::from(seconds)),
        Window::Hour => aligned(3600),
        Window::Day => aligned(DAY),
        Window::Month => {
            let day = now.div_euclid(DAY);
            let (of_month, length) = day_of_month(day);
            let first = day - of_month;
            (first * DAY, (first + length) * DAY)
        }
    }
}

/// The day of the month from 0, and the month's length, of a day since 1970-01-01 in the proleptic Gregorian calendar.
/// Years are counted from March, so that the leap day is their last; an era is 400 years.
fn day_of_month(day: i64) -> (i64, i64) {
    const ERA: i64 = 146_097;
    let day_of_era = (day + 719_468).rem_euclid(ERA);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let first = (153 * month + 2) / 5;
    let length = if month == 11 {
        // February of the civil year that follows this March year.
        let year = year_of_era + 1;
        if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) { 29 } else { 28 }
    } else {
        (153 * (month + 1) + 2) / 5 - first
    };
    (day_of_year - first, length)
}

/// One policy's state.
#[derive(Clone, Copy, Debug)]
pub enum Cell {
    Rolling { rate: Rate, tat: Tat },
    Calendar { window: Window, limit: u64, count: Calendar },
}

impl Cell {
    /// `factor` multiplies the quota (wider address ranges).
    pub fn new(quota: &Quota, factor: u64, now: Tick) -> Self {
        let requests = quota.requests.saturating_mul(factor);
        match quota.window {
            Window::Rolling { seconds } => {
                let burst = quota.burst.unwrap_or(quota.requests).saturating_mul(factor);
                let rate = Rate::new(requests, Duration::from_secs(u64::from(seconds)), burst);
                Self::Rolling { rate, tat: Tat::default() }
            }
            window => Self::Calendar { window, limit: requests, count: Calendar::new(window, now.seconds()) },
        }
    }

    /// Takes over what the same policy had before its numbers changed.
    pub fn inherit(&mut self, old: &Cell, now: Tick) {
        match (self, old) {
            (Self::Rolling { rate, tat }, Self::Rolling { rate: from, tat: had }) => {
                *tat = rate.convert(*had, from, now.mono);
            }
            (Self::Calendar { window, count, .. }, Self::Calendar { window: from, count: had, .. })
                if window == from =>
            {
                *count = *had;
            }
            _ => {}
        }
    }

    /// Whether `cost` fits; changes nothing but the calendar window.
    pub fn check(&mut self, cost: u64, now: Tick) -> Result<(), Refused> {
        match self {
            Self::Rolling { rate, tat } => rate.check(*tat, cost, now.mono).map(|_| ()),
            Self::Calendar { window, limit, count } => {
                count.roll(*window, now.seconds());
                count.check(*limit, cost, now)
            }
        }
    }

    /// After a [`Self::check`] of the same cost at the same time.
    pub fn charge(&mut self, cost: u64, now: Tick) {
        match self {
            Self::Rolling { rate, tat } => {
                if let Ok(next) = rate.check(*tat, cost, now.mono) {
                    *tat = next;
                }
            }
            Self::Calendar { count, .. } => count.used = count.used.saturating_add(cost),
        }
    }

    /// What is left, and when all of it is there again.
    pub fn left(&self, now: Tick) -> (u64, Duration) {
        match self {
            Self::Rolling { rate, tat } => (rate.remaining(*tat, now.mono), rate.reset(*tat, now.mono)),
            Self::Calendar { limit, count, .. } => (limit.saturating_sub(count.used), count.until_end(now)),
        }
    }

    /// Forgetting it would give nothing away.
    pub fn is_idle(&self, now: Tick) -> bool {
        match self {
            Self::Rolling { rate, tat } => rate.is_idle(*tat, now.mono),
            Self::Calendar { count, .. } => count.used == 0 || now.seconds() >= count.end,
        }
    }

    /// The most that can be admitted at once.
    pub fn capacity(&self) -> u64 {
        match self {
            Self::Rolling { rate, .. } => rate.burst,
            Self::Calendar { limit, .. } => *limit,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// xorshift64*: the same sequence at every run.
    struct Random(u64);

    impl Random {
        fn below(&mut self, n: u64) -> u64 {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % n
        }
    }

    const SECOND: u64 = 1_000_000_000;

    fn rate(requests: u64, seconds: u64, burst: u64) -> Rate {
        Rate::new(requests, Duration::from_secs(seconds), burst)
    }

    /// The definition, in whole numbers: a bucket of `burst` tokens, each worth a window, filled `requests` a window.
    struct Bucket {
        rate: Rate,
        tokens: u128,
        at: u64,
    }

    impl Bucket {
        fn take(&mut self, cost: u64, now: u64) -> bool {
            let full = u128::from(self.rate.burst) * u128::from(self.rate.window);
            let filled = u128::from(now - self.at) * u128::from(self.rate.requests);
            self.tokens = full.min(self.tokens + filled);
            self.at = now;
            let price = u128::from(cost) * u128::from(self.rate.window);
            let ok = price <= self.tokens;
            self.tokens -= if ok { price } else { 0 };
            ok
        }
    }

    #[test]
    fn gcra_is_exactly_a_token_bucket() {
        let mut random = Random(7);
        for _ in 0..200 {
            let (requests, burst) = (1 + random.below(700), 1 + random.below(200));
            let rate = rate(requests, 1 + random.below(3599), burst);
            let full = u128::from(burst) * u128::from(rate.window);
            let mut bucket = Bucket { rate, tokens: full, at: 0 };
            let (mut tat, mut now) = (Tat::default(), 0);
            for _ in 0..2_000 {
                now += random.below(rate.window / requests * 3);
                let cost = 1 + random.below(burst.min(4));
                let got = rate.check(tat, cost, now);
                assert_eq!(got.is_ok(), bucket.take(cost, now), "{rate:?} at {now}");
                tat = got.unwrap_or(tat);
                assert_eq!(u128::from(rate.remaining(tat, now)), bucket.tokens / u128::from(rate.window));
            }
        }
    }

    #[test]
    fn a_steady_client_at_the_limit_gets_exactly_the_limit_for_ever() {
        // 7 a minute is no whole number of nanoseconds apart; a rounded interval would drift. The burst of 2 takes up the
        // part of a nanosecond by which the client's own clock is off.
        let rate = rate(7, 60, 2);
        let (mut tat, mut admitted) = (Tat::default(), 0u64);
        let minutes = 100_000;
        for n in 0..7 * minutes {
            let now = (n * 60 * SECOND).div_ceil(7);
            if let Ok(next) = rate.check(tat, 1, now) {
                (tat, admitted) = (next, admitted + 1);
            }
        }
        assert_eq!(admitted, 7 * minutes);
        // Twice as often: half of them, and the burst once.
        let (mut tat, mut admitted) = (Tat::default(), 0u64);
        for n in 0..14 * minutes {
            if let Ok(next) = rate.check(tat, 1, (n * 60 * SECOND).div_ceil(14)) {
                (tat, admitted) = (next, admitted + 1);
            }
        }
        assert_eq!(admitted, 7 * minutes + 1);
    }

    #[test]
    fn waiting_as_told_is_enough_and_less_is_not() {
        let mut random = Random(11);
        for _ in 0..2_000 {
            let burst = 1 + random.below(50);
            let rate = rate(1 + random.below(1000), 1 + random.below(3599), burst);
            let (mut tat, mut now) = (Tat::default(), random.below(1 << 50));
            let cost = 1 + random.below(burst);
            let wait = loop {
                match rate.check(tat, cost, now) {
                    Ok(next) => tat = next,
                    Err(Refused(wait)) => break wait.unwrap(),
                }
                now += random.below(1000);
            };
            let wait = wait.as_nanos() as u64;
            assert!(rate.check(tat, cost, now + wait).is_ok());
            assert!(wait == 0 || rate.check(tat, cost, now + wait - 1).is_err());
        }
    }

    #[test]
    fn what_can_never_fit_says_so() {
        assert_eq!(rate(10, 60, 5).check(Tat::default(), 6, 0), Err(Refused(None)));
        assert_eq!(rate(0, 60, 5).check(Tat::default(), 1, 0), Err(Refused(None)));
        assert_eq!(rate(0, 60, 5).remaining(Tat::default(), 9), 0);
    }

    #[test]
    fn the_largest_numbers_do_not_overflow() {
        let rate = Rate::new(u64::MAX, Duration::MAX, u64::MAX);
        let tat = rate.check(Tat::default(), 1, u64::MAX / 2).unwrap();
        assert_eq!(rate.reset(tat, u64::MAX / 2), Duration::from_nanos(1));
    }

    #[test]
    fn calendar_windows_are_those_of_utc() {
        // From `date -u -d ... +%s`.
        let month = |now| bounds(Window::Month, now);
        assert_eq!(month(1_709_210_096), (1_706_745_600, 1_709_251_200)); // 2024-02-29
        assert_eq!(month(1_709_251_200), (1_709_251_200, 1_711_929_600)); // 2024-03-01
        assert_eq!(month(1_704_067_199), (1_701_388_800, 1_704_067_200)); // 2023-12-31T23:59:59
        assert_eq!(month(0), (0, 31 * 86_400));
        assert_eq!(month(-1), (-31 * 86_400, 0)); // 1969-12
        assert_eq!(month(4_107_542_399), (4_105_123_200, 4_107_542_400)); // 2100-02-28, no leap year
        assert_eq!(month(951_782_400), (949_363_200, 951_868_800)); // 2000-02-29, a leap year
        assert_eq!(bounds(Window::Day, 1_709_210_096), (1_709_164_800, 1_709_251_200));
        assert_eq!(bounds(Window::Hour, 1_709_210_096), (1_709_208_000, 1_709_211_600));
    }

    #[test]
    fn months_join_without_gaps() {
        let (mut start, mut end) = bounds(Window::Month, -80_000_000_000);
        for _ in 0..12 * 4000 {
            assert!((28 * 86_400..=31 * 86_400).contains(&(end - start)));
            assert_eq!(bounds(Window::Month, end - 1), (start, end));
            let next = bounds(Window::Month, end);
            assert_eq!(next.0, end);
            (start, end) = next;
        }
    }

    #[test]
    fn a_clock_that_jumps_gives_nothing_away_and_leaves_no_immortal_counter() {
        let mut count = Calendar::new(Window::Day, 1_000_000);
        count.used = 9;
        let day = count;
        count.roll(Window::Day, 1_000_000 + 3);
        assert_eq!(count, day);
        // A year ahead and back again.
        count.roll(Window::Day, 1_000_000 + 31_536_000);
        assert_eq!(count.used, 0);
        count.used = 5;
        count.roll(Window::Day, 1_000_000);
        assert_eq!(count, Calendar { used: 5, ..day });
        count.roll(Window::Day, day.end);
        assert_eq!((count.used, count.start), (0, day.end));
    }
}
