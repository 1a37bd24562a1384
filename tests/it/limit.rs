//! The limiter, with both clocks as parameters: quotas, concurrency, fuel, bounds and headers.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use wasmgate::domain::rejection::retry_after_seconds;
use wasmgate::domain::{Principal, Quota, Rejection, ScopeSet, Subject, Tier, Timestamp, Window};
use wasmgate::limit::failures::FailureGate;
use wasmgate::limit::limiter::{Decision, InFlight, Limiter, Now, Policy, PolicyState, headers};
use wasmgate::store::Counter;

use crate::store::name;

/// 2024-02-29T12:00:00Z.
const NOON: i64 = 1_709_208_000;

/// Both clocks, moved by hand.
#[derive(Clone, Copy)]
struct Clock {
    start: Instant,
    mono: Duration,
    wall_ms: i64,
}

impl Clock {
    fn new() -> Self {
        Self { start: Instant::now(), mono: Duration::ZERO, wall_ms: NOON * 1000 }
    }

    fn now(&self) -> Now {
        Now { mono: self.start + self.mono, wall: Timestamp::from_unix_millis(self.wall_ms).unwrap() }
    }

    fn pass(&mut self, time: Duration) {
        self.mono += time;
        self.wall_ms += time.as_millis() as i64;
    }
}

fn quota(text: &str, requests: u64, window: &str, burst: Option<u64>) -> Quota {
    Quota { name: name(text), requests, window: window.parse().unwrap(), burst }
}

fn tier(text: &str, rank: u32, quotas: Vec<Quota>) -> Tier {
    Tier { name: name(text), rank, quotas, concurrent: 1000, ..Tier::defaults().remove(1) }
}

fn caller(owner: &str, key: &str, tier: &Arc<Tier>) -> Principal {
    let subject = Subject::Key { owner: name(owner), key: key.into() };
    Principal { subject, tier: tier.clone(), scopes: ScopeSet::default() }
}

fn stranger(address: &str, tier: &Arc<Tier>) -> Principal {
    let subject = Subject::Address(address.parse().unwrap());
    Principal { subject, tier: tier.clone(), scopes: ScopeSet::default() }
}

fn alice(tier: &Arc<Tier>) -> Principal {
    caller("alice", "key_1", tier)
}

type Outcome = Result<(Vec<PolicyState>, InFlight), (Vec<PolicyState>, Rejection)>;

fn admit(limiter: &Limiter, who: &Principal, cost: u64, clock: Clock) -> Outcome {
    match limiter.admit(who, cost, clock.now()).expect("there is nobody to wait for") {
        Decision::Allowed { states, in_flight } => Ok((states, in_flight)),
        Decision::Limited { states, rejection } => Err((states, rejection)),
    }
}

/// Requests admitted one after the other until the first refusal.
fn admitted(limiter: &Limiter, who: &Principal, clock: Clock) -> u64 {
    (0..100_000).take_while(|_| admit(limiter, who, 1, clock).is_ok()).count() as u64
}

fn wait_of(outcome: Outcome) -> Duration {
    match outcome {
        Err((_, Rejection::QuotaExceeded { retry_after, .. })) => retry_after,
        Err((_, other)) => panic!("{other:?}"),
        Ok(_) => panic!("it was admitted"),
    }
}

#[test]
fn a_client_that_waits_exactly_retry_after_is_admitted() {
    for window in ["1s", "7s", "1m", "59m", "1h", "1d", "1mo"] {
        for requests in [1, 3, 7, 10] {
            let tier = Arc::new(tier("t", 1, vec![quota("p", requests, window, None)]));
            let limiter = Limiter::new(100);
            let mut clock = Clock::new();
            clock.pass(Duration::from_millis(123));
            assert_eq!(admitted(&limiter, &alice(&tier), clock), requests);
            for _ in 0..5 {
                let (states, rejection) = admit(&limiter, &alice(&tier), 1, clock).map(drop).unwrap_err();
                let seconds = retry_after_seconds(rejection.retry_after().unwrap());
                assert!(seconds >= 1);
                let (_, limit) = headers(&states).unwrap();
                let limit = limit.to_str().unwrap().to_owned();
                let t: u64 = limit.split(";t=").nth(1).unwrap().parse().unwrap();
                assert!(seconds >= t, "Retry-After {seconds} is earlier than `{limit}`");
                clock.pass(Duration::from_secs(seconds));
                assert!(admit(&limiter, &alice(&tier), 1, clock).is_ok(), "{requests} per {window}");
                admitted(&limiter, &alice(&tier), clock);
            }
        }
    }
}

#[test]
fn refused_requests_never_prolong_the_wait() {
    let tier = Arc::new(tier("t", 1, vec![quota("minute", 10, "1m", None), quota("day", 100, "1d", None)]));
    let limiter = Limiter::new(100);
    let mut clock = Clock::new();
    assert_eq!(admitted(&limiter, &alice(&tier), clock), 10);
    let first = wait_of(admit(&limiter, &alice(&tier), 1, clock));
    for _ in 0..10_000 {
        clock.pass(Duration::from_micros(100));
        admit(&limiter, &alice(&tier), 1, clock).unwrap_err();
    }
    assert_eq!(wait_of(admit(&limiter, &alice(&tier), 1, clock)), first - Duration::from_secs(1));
    clock.pass(first - Duration::from_secs(1));
    let (states, _) = admit(&limiter, &alice(&tier), 1, clock).unwrap();
    let day = states.iter().find(|s| s.policy.name == name("day")).unwrap();
    assert_eq!(day.remaining, 100 - 11, "refused requests were charged to the day");
}

#[test]
fn requests_of_one_moment_all_count() {
    let tier = Arc::new(tier("t", 1, vec![quota("second", 5, "1s", None)]));
    let limiter = Limiter::new(100);
    let clock = Clock::new();
    let passed = (0..100).filter(|_| admit(&limiter, &alice(&tier), 1, clock).is_ok()).count();
    assert_eq!(passed, 5);
}

#[test]
fn all_policies_are_charged_or_none() {
    let quotas = vec![quota("minute", 100, "1m", None), quota("hour", 5, "1h", None), quota("day", 50, "1d", None)];
    let tier = Arc::new(tier("t", 1, quotas));
    let limiter = Limiter::new(100);
    let mut clock = Clock::new();
    for _ in 0..5 {
        admit(&limiter, &alice(&tier), 1, clock).unwrap();
    }
    for _ in 0..20 {
        let (_, rejection) = admit(&limiter, &alice(&tier), 1, clock).map(drop).unwrap_err();
        let Rejection::QuotaExceeded { policies, .. } = rejection else { panic!("{rejection:?}") };
        assert_eq!(policies, [name("hour")]);
    }
    clock.pass(Duration::from_secs(3600));
    let (states, _) = admit(&limiter, &alice(&tier), 1, clock).unwrap();
    let left = |n: &str| states.iter().find(|s| s.policy.name == name(n)).unwrap().remaining;
    assert_eq!((left("minute"), left("hour"), left("day")), (99, 4, 44));
}

#[tokio::test]
async fn a_batch_is_admitted_whole_or_not_at_all() {
    let tier = Arc::new(tier("t", 1, vec![quota("minute", 10, "1m", None)]));
    let limiter = Limiter::new(100);
    let mut clock = Clock::new();
    admit(&limiter, &alice(&tier), 7, clock).unwrap();
    let wait = wait_of(admit(&limiter, &alice(&tier), 4, clock));
    assert_eq!(wait, Duration::from_secs(6));
    limiter.charge(&alice(&tier), 3, clock.now()).await.unwrap();
    let over = limiter.charge(&alice(&tier), 1, clock.now()).await;
    assert!(matches!(over, Err(Rejection::QuotaExceeded { .. })));
    clock.pass(Duration::from_secs(60));
    let (_, never) = admit(&limiter, &alice(&tier), 11, clock).map(drop).unwrap_err();
    assert!(matches!(&never, Rejection::BadRequest(d) if d.contains("`minute`")), "{never:?}");
    admit(&limiter, &alice(&tier), 10, clock).unwrap();
}

#[test]
fn minting_keys_does_not_multiply_a_quota() {
    let pro = Arc::new(tier("pro", 3, vec![quota("minute", 100, "1m", None), quota("day", 1000, "1d", None)]));
    let free = Arc::new(tier("free", 1, vec![quota("minute", 10, "1m", None), quota("day", 50, "1d", None)]));
    let limiter = Limiter::new(100);
    let clock = Clock::new();
    // Many keys of one tier.
    let total: u64 = (0..20).map(|n| admitted(&limiter, &caller("bob", &format!("key_{n}"), &free), clock)).sum();
    assert_eq!(total, 10);
    // A lower key is a sub-limit of the owner's highest tier.
    for _ in 0..50 {
        admit(&limiter, &caller("alice", "key_pro", &pro), 1, clock).unwrap();
    }
    assert_eq!(admitted(&limiter, &caller("alice", "key_free", &free), clock), 10);
    assert_eq!(admitted(&limiter, &caller("alice", "key_pro", &pro), clock), 40);
    assert_eq!(admitted(&limiter, &caller("alice", "key_free2", &free), clock), 0);
    // What lower keys used today is part of what a new higher tier starts with.
    let (states, _) = admit(&limiter, &caller("bob", "key_pro", &pro), 1, clock).unwrap();
    assert_eq!(states.iter().find(|s| s.policy.name == name("day")).unwrap().remaining, 1000 - 11);
    // Others are not touched.
    assert_eq!(admitted(&limiter, &caller("carol", "key_9", &free), clock), 10);
}

#[test]
fn concurrency_is_exact_and_given_back_on_drop() {
    let tier = Arc::new(Tier { concurrent: 3, ..tier("t", 1, vec![quota("day", 10, "1d", None)]) });
    let limiter = Limiter::new(100);
    let clock = Clock::new();
    let mut held: Vec<_> =
        (0..3).map(|n| admit(&limiter, &caller("alice", &format!("k{n}"), &tier), 1, clock)).collect();
    for _ in 0..5 {
        let (states, rejection) = admit(&limiter, &alice(&tier), 1, clock).map(drop).unwrap_err();
        assert_eq!(rejection, Rejection::TooManyConcurrent { limit: 3 });
        assert_eq!(states[0].remaining, 7, "a refusal was charged");
    }
    held.pop();
    let (states, last) = admit(&limiter, &alice(&tier), 1, clock).unwrap();
    assert_eq!(states[0].remaining, 6);
    // On another thread, and in a panic.
    std::thread::spawn(move || {
        let _last = last;
        std::panic::panic_any("the request failed");
    })
    .join()
    .unwrap_err();
    assert!(admit(&limiter, &alice(&tier), 1, clock).is_ok());
    let none = Arc::new(Tier { concurrent: 0, ..(*tier).clone() });
    assert!(admit(&limiter, &caller("bob", "k", &none), 1, clock).is_err());
}

#[test]
fn threads_at_once_never_get_more_than_the_quota_or_the_places() {
    let tier = Arc::new(Tier { concurrent: 4, ..tier("t", 1, vec![quota("day", 500, "1d", None)]) });
    let limiter = Limiter::new(100);
    let clock = Clock::new();
    let (passed, inside, most) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for n in 0..8 {
            let (limiter, tier, passed, inside, most) = (&limiter, &tier, &passed, &inside, &most);
            scope.spawn(move || {
                let who = caller("alice", &format!("key_{n}"), tier);
                for _ in 0..2_000 {
                    if let Ok((_, guard)) = admit(limiter, &who, 1, clock) {
                        most.fetch_max(inside.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                        passed.fetch_add(1, Ordering::SeqCst);
                        inside.fetch_sub(1, Ordering::SeqCst);
                        drop(guard);
                    }
                }
            });
        }
    });
    assert_eq!(passed.load(Ordering::SeqCst), 500);
    assert!(most.load(Ordering::SeqCst) <= 4);
}

#[test]
fn calendar_windows_follow_utc_and_survive_clock_jumps() {
    let tier = Arc::new(tier("t", 1, vec![quota("day", 3, "1d", None), quota("minute", 1000, "1m", None)]));
    let limiter = Limiter::new(100);
    let mut clock = Clock::new();
    clock.wall_ms = (NOON + 12 * 3600) * 1000 - 1; // the last millisecond of 29 February
    assert_eq!(admitted(&limiter, &alice(&tier), clock), 3);
    clock.wall_ms += 1;
    assert_eq!(admitted(&limiter, &alice(&tier), clock), 3);
    // The wall clock goes back a day: no fresh quota, and the wait is to the end of that day.
    clock.wall_ms -= 86_400_000;
    assert_eq!(wait_of(admit(&limiter, &alice(&tier), 1, clock)), Duration::from_secs(86_400));
    // A year ahead and back: no counter stands until then.
    clock.wall_ms += 365 * 86_400_000;
    assert_eq!(admitted(&limiter, &alice(&tier), clock), 3);
    clock.wall_ms -= 364 * 86_400_000;
    clock.wall_ms += 86_400_000;
    assert!(wait_of(admit(&limiter, &alice(&tier), 1, clock)) <= Duration::from_secs(86_400));
}

#[test]
fn rolling_windows_do_not_look_at_the_wall_clock() {
    let tier = Arc::new(tier("t", 1, vec![quota("minute", 2, "1m", None)]));
    let limiter = Limiter::new(100);
    let mut clock = Clock::new();
    assert_eq!(admitted(&limiter, &alice(&tier), clock), 2);
    for jump in [86_400_000, -3 * 86_400_000] {
        clock.wall_ms += jump;
        assert_eq!(wait_of(admit(&limiter, &alice(&tier), 1, clock)), Duration::from_secs(30));
    }
    clock.mono += Duration::from_secs(30);
    assert_eq!(admitted(&limiter, &alice(&tier), clock), 1);
}

#[test]
fn fuel_debt_blocks_until_the_day_ends() {
    let tier = Arc::new(Tier { fuel_per_day: Some(1_000), ..tier("t", 1, vec![quota("minute", 100, "1m", None)]) });
    let limiter = Limiter::new(100);
    let mut clock = Clock::new();
    let who = alice(&tier);
    limiter.charge_fuel(&who.subject, 999, clock.now());
    admit(&limiter, &who, 1, clock).unwrap();
    limiter.charge_fuel(&who.subject, 5_000, clock.now());
    let (states, rejection) = admit(&limiter, &caller("alice", "key_2", &tier), 1, clock).map(drop).unwrap_err();
    let half_day = Duration::from_secs(12 * 3600);
    assert_eq!(rejection, Rejection::QuotaExceeded { policies: vec![name("fuel")], retry_after: half_day });
    assert_eq!((states[0].policy.name.as_str(), states[0].remaining, states[0].policy.quota), ("fuel", 0, 1_000));
    clock.pass(half_day);
    admit(&limiter, &who, 1, clock).unwrap();
}

#[test]
fn an_address_is_one_caller_in_any_spelling_and_a_48_is_bounded() {
    let tier = Arc::new(tier("anonymous", 0, vec![quota("minute", 10, "1m", Some(5))]));
    let clock = Clock::new();
    let limiter = Limiter::new(10_000);
    assert_eq!(admitted(&limiter, &stranger("192.0.2.1", &tier), clock), 5);
    assert_eq!(admitted(&limiter, &stranger("::ffff:192.0.2.1", &tier), clock), 0);
    assert_eq!(admitted(&limiter, &stranger("192.0.2.2", &tier), clock), 5);
    // Rotating the lower 64 bits gives nothing.
    assert_eq!(admitted(&limiter, &stranger("2001:db8:1:1::1", &tier), clock), 5);
    assert_eq!(admitted(&limiter, &stranger("2001:db8:1:1:ffff::9", &tier), clock), 0);
    // Rotating the 16 bits above them gives 16 times the tier, all together.
    let total: u64 =
        (0..200).map(|n| admitted(&limiter, &stranger(&format!("2001:db8:2:{n:x}::1"), &tier), clock)).sum();
    assert_eq!(total, 5 * 16);
    let (_, rejection) = admit(&limiter, &stranger("2001:db8:2:ff::1", &tier), 1, clock).map(drop).unwrap_err();
    assert!(matches!(rejection, Rejection::QuotaExceeded { .. }), "{rejection:?}");
    assert_eq!(admitted(&limiter, &stranger("2001:db8:3::1", &tier), clock), 5);
}

#[test]
fn a_full_48_charges_nothing_to_the_64() {
    let tier = Arc::new(tier("anonymous", 0, vec![quota("day", 2, "1d", None)]));
    let clock = Clock::new();
    let limiter = Limiter::new(10_000);
    for n in 0..16 {
        assert_eq!(admitted(&limiter, &stranger(&format!("2001:db8:2:{n:x}::1"), &tier), clock), 2);
    }
    let (states, _) = admit(&limiter, &stranger("2001:db8:2:99::1", &tier), 1, clock).map(drop).unwrap_err();
    let own = states.iter().find(|s| s.policy.quota == 2).unwrap();
    assert_eq!(own.remaining, 2);
}

#[test]
fn subjects_are_bounded_and_those_in_flight_stay() {
    let tier = Arc::new(Tier { concurrent: 1, ..tier("anonymous", 0, vec![quota("day", 5, "1d", None)]) });
    let clock = Clock::new();
    let limiter = Limiter::new(200);
    let held: Vec<_> =
        (0..20).map(|n| admit(&limiter, &stranger(&format!("10.0.0.{n}"), &tier), 1, clock).unwrap()).collect();
    for n in 0..5_000u32 {
        let address = format!("10.1.{}.{}", n >> 8, n & 255);
        drop(admit(&limiter, &stranger(&address, &tier), 1, clock));
    }
    // Shards round up, so the bound is met within a few places.
    assert!(limiter.subjects() <= 208, "{}", limiter.subjects());
    for n in 0..20 {
        let again = admit(&limiter, &stranger(&format!("10.0.0.{n}"), &tier), 1, clock);
        assert!(matches!(again, Err((_, Rejection::TooManyConcurrent { .. }))), "10.0.0.{n} was put out");
    }
    drop(held);
}

#[test]
fn a_flood_of_addresses_puts_out_no_owner() {
    let tier = Arc::new(tier("t", 1, vec![quota("day", 5, "1d", None)]));
    let clock = Clock::new();
    let limiter = Limiter::new(64);
    assert_eq!(admitted(&limiter, &alice(&tier), clock), 5);
    for n in 0..10_000u32 {
        let address = IpAddr::from(n.to_be_bytes()).to_string();
        drop(admit(&limiter, &stranger(&address, &tier), 1, clock));
    }
    assert_eq!(admitted(&limiter, &alice(&tier), clock), 0);
}

#[test]
fn two_addresses_taking_turns_in_a_full_table_are_limited() {
    let tier = Arc::new(tier("anonymous", 0, vec![quota("day", 5, "1d", None)]));
    let clock = Clock::new();
    let limiter = Limiter::new(64);
    for n in 0..64u32 {
        drop(admit(&limiter, &stranger(&format!("10.0.0.{n}"), &tier), 1, clock));
    }
    let passed = (0..1000)
        .filter(|n| admit(&limiter, &stranger(&format!("192.0.2.{}", n % 2), &tier), 1, clock).is_ok())
        .count();
    assert_eq!(passed, 10);
}

#[test]
fn when_every_place_is_busy_a_new_subject_is_refused_and_nothing_grows() {
    let tier = Arc::new(tier("anonymous", 0, vec![]));
    let clock = Clock::new();
    let limiter = Limiter::new(8);
    let held: Vec<_> =
        (0..8).map(|n| admit(&limiter, &stranger(&format!("10.0.0.{n}"), &tier), 1, clock).unwrap()).collect();
    let (_, rejection) = admit(&limiter, &stranger("10.0.1.1", &tier), 1, clock).map(drop).unwrap_err();
    assert!(matches!(rejection, Rejection::Busy { .. }), "{rejection:?}");
    drop(held);
    admit(&limiter, &stranger("10.0.1.1", &tier), 1, clock).unwrap();
}

#[test]
fn idle_subjects_go_and_counters_in_use_stay() {
    let rolling = Arc::new(tier("r", 1, vec![quota("minute", 10, "1m", None)]));
    let daily = Arc::new(tier("d", 1, vec![quota("day", 10, "1d", None)]));
    let limiter = Limiter::new(1000);
    let mut clock = Clock::new();
    drop(admit(&limiter, &caller("rolls", "k", &rolling), 1, clock));
    drop(admit(&limiter, &caller("counts", "k", &daily), 1, clock));
    let busy = admit(&limiter, &caller("busy", "k", &rolling), 1, clock).unwrap();
    clock.pass(Duration::from_secs(60));
    limiter.evict_idle(clock.now());
    assert_eq!(limiter.subjects(), 2, "the rolling one is idle again");
    drop(busy);
    limiter.evict_idle(clock.now());
    assert_eq!(limiter.subjects(), 1);
    clock.pass(Duration::from_secs(86_400));
    limiter.evict_idle(clock.now());
    assert_eq!(limiter.subjects(), 0);
}

#[test]
fn calendar_counters_survive_a_restart() {
    let quotas = vec![quota("minute", 100, "1m", None), quota("day", 10, "1d", None), quota("month", 50, "1mo", None)];
    let tier = Arc::new(Tier { fuel_per_day: Some(100), ..tier("t", 1, quotas) });
    let mut clock = Clock::new();
    let before = Limiter::new(100);
    for _ in 0..4 {
        admit(&before, &alice(&tier), 1, clock).unwrap();
        admit(&before, &stranger("2001:db8::1", &tier), 1, clock).unwrap();
    }
    before.charge_fuel(&alice(&tier).subject, 70, clock.now());
    let saved = before.counters(clock.now());
    assert_eq!(saved.len(), 2 + 1 + 2 + 2, "{saved:?}");
    assert_eq!(before.counters(clock.now()).len(), saved.len(), "reading them clears nothing");

    let after = Limiter::new(100);
    let odd = |id: &str| Counter { id: id.into(), window_start: 1_709_164_800, used: 9 };
    let mut saved = saved;
    saved.extend(["", "o/", "o/UPPER/fuel", "x/alice/fuel", "o/alice/t/day/2d", "a/nowhere/t/day/1d"].map(odd));
    after.restore(saved.clone(), clock.now());
    let left = |limiter: &Limiter, who: &Principal, clock: Clock, n: &str| {
        let (states, _) = admit(limiter, who, 1, clock).unwrap();
        states.iter().find(|s| s.policy.name == name(n)).unwrap().remaining
    };
    assert_eq!(left(&after, &alice(&tier), clock, "day"), 5);
    assert_eq!(left(&after, &stranger("2001:db8::2", &tier), clock, "day"), 5);
    after.charge_fuel(&alice(&tier).subject, 30, clock.now());
    assert!(admit(&after, &alice(&tier), 1, clock).is_err(), "the fuel of before counts");

    // The next day the day's counters are over and the month's are not: 29 February is the last of its month, so go back.
    clock.wall_ms -= 5 * 86_400_000;
    let before = Limiter::new(100);
    admit(&before, &alice(&tier), 3, clock).unwrap();
    let saved = before.counters(clock.now());
    clock.wall_ms += 86_400_000;
    let after = Limiter::new(100);
    after.restore(saved, clock.now());
    assert_eq!(left(&after, &alice(&tier), clock, "day"), 9);
    assert_eq!(left(&after, &alice(&tier), clock, "month"), 45);
}

#[test]
fn a_reload_keeps_what_was_used() {
    let limiter = Limiter::new(100);
    let clock = Clock::new();
    let old = Arc::new(tier("t", 1, vec![quota("minute", 10, "1m", None), quota("day", 20, "1d", None)]));
    for _ in 0..6 {
        admit(&limiter, &alice(&old), 1, clock).unwrap();
    }
    let same = Arc::new((*old).clone());
    let (states, _) = admit(&limiter, &alice(&same), 1, clock).unwrap();
    assert_eq!(states.iter().map(|s| s.remaining).collect::<Vec<_>>(), [3, 13]);
    let new = Arc::new(tier("t", 1, vec![quota("day", 10, "1d", None), quota("minute", 20, "1m", None)]));
    let (states, _) = admit(&limiter, &alice(&new), 1, clock).unwrap();
    assert_eq!(states[0].policy.name, name("day"));
    assert_eq!(states[0].remaining, 2);
    // Seven of ten were 42 s of backlog: 14 of 20.
    assert_eq!(states[1].remaining, 20 - 14 - 1);
}

#[test]
fn without_quotas_only_concurrency_binds() {
    let tier = Arc::new(Tier { concurrent: 2, ..tier("enterprise", 4, vec![]) });
    let limiter = Limiter::new(100);
    let clock = Clock::new();
    for _ in 0..10_000 {
        let (states, _) = admit(&limiter, &alice(&tier), 1, clock).unwrap();
        assert!(headers(&states).is_none());
    }
    let _held = [admit(&limiter, &alice(&tier), 1, clock).unwrap(), admit(&limiter, &alice(&tier), 1, clock).unwrap()];
    assert!(admit(&limiter, &alice(&tier), 1, clock).is_err());
}

#[test]
fn the_default_tiers_do_what_their_table_says() {
    for (at, at_once, a_day) in [(0, 5, 500), (1, 10, 500), (2, 50, 10_000), (3, 100, 50_000)] {
        let tier = Arc::new(Tier::defaults().remove(at));
        let limiter = Limiter::new(100);
        let mut clock = Clock::new();
        clock.wall_ms -= 12 * 3_600_000; // midnight
        assert_eq!(admitted(&limiter, &alice(&tier), clock), at_once, "{}", tier.name);
        let mut total = at_once;
        while clock.wall_ms < (NOON + 12 * 3600) * 1000 - 60_000 {
            clock.pass(Duration::from_secs(60));
            total += admitted(&limiter, &alice(&tier), clock);
        }
        assert_eq!(total, a_day, "{}", tier.name);
    }
}

#[test]
fn headers_are_structured_fields_with_the_tightest_first() {
    let quotas = vec![quota("day", 500, "1d", None), quota("minute", 100, "1m", None)];
    let t = Arc::new(tier("t", 1, quotas));
    let limiter = Limiter::new(100);
    let clock = Clock::new();
    let (states, _) = admit(&limiter, &alice(&t), 58, clock).unwrap();
    let (policy, limit) = headers(&states).unwrap();
    assert_eq!(policy, r#""minute";q=100;w=60, "day";q=500;w=86400"#);
    assert_eq!(limit, r#""minute";r=42;t=35, "day";r=442;t=43200"#);

    let burst = Arc::new(tier("b", 1, vec![quota("minute", 100, "1m", Some(50))]));
    let (states, _) = admit(&limiter, &caller("bob", "k", &burst), 1, clock).unwrap();
    let (policy, limit) = headers(&states).unwrap();
    assert_eq!(policy, r#""minute";q=100;w=60;burst=50"#);
    assert_eq!(limit, r#""minute";r=49;t=1"#);

    // Structured-field integers end at 15 digits, and 0 is one.
    let policy = Arc::new(Policy::new(name("minute"), u64::MAX, 60, Some(u64::MAX)));
    let (policy, limit) = headers(&[PolicyState { policy, remaining: 0, reset: Duration::ZERO }]).unwrap();
    assert_eq!(policy, r#""minute";q=999999999999999;w=60;burst=999999999999999"#);
    assert_eq!(limit, r#""minute";r=0;t=0"#);

    // Both violated: the longer wait is first and is what Retry-After says.
    let both = Arc::new(tier("both", 1, vec![quota("minute", 2, "1m", None), quota("day", 2, "1d", None)]));
    admitted(&limiter, &caller("carol", "k", &both), clock);
    let (states, rejection) = admit(&limiter, &caller("carol", "k", &both), 1, clock).map(drop).unwrap_err();
    let Rejection::QuotaExceeded { policies, retry_after } = rejection else { panic!() };
    assert_eq!(policies, [name("day"), name("minute")]);
    assert_eq!(retry_after, Duration::from_secs(12 * 3600));
    assert_eq!(headers(&states).unwrap().1, r#""day";r=0;t=43200, "minute";r=0;t=30"#);
}

#[test]
fn windows_are_shown_in_seconds() {
    for (window, seconds) in [("30s", 30), ("1h", 3600), ("1d", 86_400), ("1mo", 29 * 86_400)] {
        let tier = Arc::new(tier("t", 1, vec![quota("p", 10, window, None)]));
        let (states, _) = admit(&Limiter::new(10), &alice(&tier), 1, Clock::new()).unwrap();
        assert_eq!(states[0].policy.window_seconds, seconds, "{:?}", window.parse::<Window>());
    }
}

// ---- failed authentications ----

#[test]
fn failures_are_limited_by_address_and_good_keys_cost_nothing() {
    let gate = FailureGate::new(3);
    let start = Instant::now();
    let address = |text: &str| text.parse::<IpAddr>().unwrap();
    let fails = |who: &str, now: Instant| gate.attempt(address(who), now).map(drop);
    for _ in 0..100 {
        gate.attempt(address("192.0.2.1"), start).unwrap().forgive();
    }
    for _ in 0..3 {
        fails("192.0.2.1", start).unwrap();
    }
    let Err(Rejection::TooManyFailures { retry_after }) = fails("192.0.2.1", start) else { panic!("not refused") };
    assert_eq!(retry_after, Duration::from_secs(20));
    for _ in 0..1000 {
        fails("::ffff:192.0.2.1", start).unwrap_err();
    }
    fails("192.0.2.2", start).unwrap();
    // Refusals did not prolong it.
    fails("192.0.2.1", start + retry_after).unwrap();
    fails("192.0.2.1", start + retry_after).unwrap_err();
}

#[test]
fn attempts_at_once_are_bounded_and_each_failure_is_paid_for() {
    let gate = FailureGate::new(3);
    let now = Instant::now();
    let attempt = |now| gate.attempt("192.0.2.1".parse().unwrap(), now);
    // Good keys that the cache does not know yet may come together.
    let mut open: Vec<_> = (0..1000).filter_map(|_| attempt(now).ok()).collect();
    assert_eq!(open.len(), 256);
    open.drain(10..).for_each(|good| good.forgive());
    drop(open);
    // Ten failures at three a minute: seven more than at once, so the next after eight times 20 s.
    let Err(Rejection::TooManyFailures { retry_after }) = attempt(now) else { panic!("not refused") };
    assert_eq!(retry_after, Duration::from_secs(160));
    attempt(now + retry_after).unwrap().forgive();
}

#[test]
fn ipv6_rotation_does_not_pass_the_gate_and_its_memory_is_bounded() {
    let gate = FailureGate::new(3);
    let now = Instant::now();
    let passed = (0..10_000u32)
        .filter(|n| gate.attempt(format!("2001:db8:1:{:x}::{n:x}", n % 4096).parse().unwrap(), now).is_ok())
        .count();
    assert_eq!(passed, 3 * 16);
    for n in 0..200_000u32 {
        let _ = gate.attempt(IpAddr::from(n.to_be_bytes()), now);
    }
    assert!(gate.subjects() <= (1 << 16) + 10_000, "{}", gate.subjects());
    gate.evict_idle(now + Duration::from_secs(60));
    assert_eq!(gate.subjects(), 0);
}
