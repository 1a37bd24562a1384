//! The fleet limiter: the shared bucket's script on a real Redis against its reference, and the node's side in a
//! simulation (`lease/simulation.rs`).

mod node;
mod reference;
mod simulation;

use std::sync::Arc;
use std::time::Duration;

use wasmgate::domain::{FailMode, Quota};
use wasmgate::limit::lease::terms::{OVERSHOOT_PERCENT, Plan};
use wasmgate::limit::lease::wire::{Call, Claim, Reply};

use self::reference::{Bucket, Micros};
use crate::store::name;
use crate::support::redis::Redis;

const SCRIPT: &str = include_str!("../../src/store/redis/lease.lua");

/// xorshift64*: the same sequence at every run.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(n)) >> 64) as u64
    }

    /// In 0..1.
    pub fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

pub fn plan(policies: &[(u64, &str, Option<u64>)], overshoot_percent: u64) -> Arc<Plan> {
    let quota = |(at, (requests, window, burst)): (usize, &(u64, &str, Option<u64>))| Quota {
        name: name(&format!("p{at}")),
        requests: *requests,
        window: window.parse().unwrap(),
        burst: *burst,
    };
    let quotas: Vec<Quota> = policies.iter().enumerate().map(quota).collect();
    Plan::new(&quotas, 1, overshoot_percent, FailMode::Share)
}

/// A call of a plan with one policy.
pub fn call(need: u64, want: u64) -> Call {
    Call { need, want, policies: [Claim::default()].into_iter().collect(), ..Call::default() }
}

fn tagged(call: Call, tag: u64, debt: u64) -> Call {
    Call { policies: [Claim { tag, debt }].into_iter().collect(), ..call }
}

/// Grant, left, held out, of a bucket with one rolling policy.
fn figures(bucket: &Bucket, reply: &Reply) -> (u64, u64, i64) {
    match bucket.0[0] {
        Some(reference::State::Gcra { before, out, .. }) => (reply.grant, reply.policies[0].left, before + out),
        _ => panic!("{bucket:?}"),
    }
}

#[test]
fn the_vectors_hold() {
    const MS: Micros = 1_000;
    let plan = plan(&[(100, "1s", None)], OVERSHOOT_PERCENT);
    let mut bucket = Bucket::default();
    let mut at = |ms: Micros, call: Call| {
        let reply = bucket.call(ms * MS, &plan, 2, &call);
        (figures(&bucket, &reply), reply.policies[0])
    };
    // Epoch 10 ends at 11 s.
    let tag = 11_000_000;
    let (got, granted) = at(10_000, call(1, 20));
    assert_eq!((got, granted.ttl, granted.tag), ((21, 79, 21), 2_000_000, tag));
    assert_eq!(at(10_010, call(1, 100)).0, (18, 62, 39));
    let renewed = Call { held: 5, acknowledged: 21, ..call(0, 15) };
    assert_eq!(at(10_200, tagged(renewed, tag, 0)).0, (15, 51, 38));
    let (got, granted) = at(10_300, call(90, 0));
    assert_eq!((got, granted.exhausted, granted.retry), ((61, 0, 99), true, 10_000));
    assert_eq!(at(10_300, call(1, 0)).0.0, 0);
    let given_back = Call { returned: 10, acknowledged: 20, ..call(0, 0) };
    assert_eq!(at(10_800, tagged(given_back, tag, 0)).0, (0, 16, 79));
    assert_eq!(at(13_500, call(1, 0)).0, (1, 99, 1));
    let (got, granted) = at(14_000, tagged(call(0, 0), 0, 500));
    assert_eq!((got.1, granted.retry), (0, 10_000));
}

#[test]
fn the_vector_of_a_minute_holds() {
    let plan = plan(&[(500, "1m", Some(100))], OVERSHOOT_PERCENT);
    let mut bucket = Bucket::default();
    assert_eq!(bucket.call(0, &plan, 2, &call(100, 0)).grant, 100);
    let refused = bucket.call(0, &plan, 2, &call(1, 0));
    assert_eq!((refused.grant, refused.policies[0].retry), (0, 120_000));
    assert_eq!(bucket.call(119_999, &plan, 2, &call(1, 0)).grant, 0);
    assert_eq!(bucket.call(120_000, &plan, 2, &call(1, 0)).grant, 1);
}

/// Nothing here has to outlive the server.
fn connect(redis: &Redis) -> redis::Connection {
    redis.cli(&["config", "set", "appendonly", "no"]);
    redis::Client::open(redis.url()).unwrap().get_connection().unwrap()
}

/// The script's answer as it is, and parsed.
fn evaluate(to: &mut redis::Connection, key: &str, arguments: &[String]) -> redis::RedisResult<Vec<i64>> {
    redis::cmd("EVAL").arg(SCRIPT).arg(1).arg(key).arg(arguments).query(to)
}

fn stored(to: &mut redis::Connection, key: &str) -> Option<String> {
    redis::cmd("GET").arg(key).query(to).unwrap()
}

/// What a node could send, and what it could not: tokens held, returned and acknowledged that were never handed out.
fn any_call(random: &mut Random, plan: &Plan, last: &[Reply]) -> Call {
    let up_to = |random: &mut Random, most: u64| if random.below(3) == 0 { random.below(most) } else { 0 };
    let before = (!last.is_empty()).then(|| &last[random.below(last.len() as u64) as usize]);
    let claim = |at: usize, random: &mut Random| {
        let tag = before.map_or(0, |reply| reply.policies[at].tag);
        let tag = if random.below(8) == 0 { random.below(2) * (tag + 1) } else { tag };
        Claim { tag, debt: if random.below(20) == 0 { random.below(50) } else { 0 } }
    };
    Call {
        need: if random.below(4) == 0 { random.below(200) } else { random.below(4) },
        want: up_to(random, 150),
        held: up_to(random, 30),
        returned: up_to(random, 20),
        acknowledged: before.map_or(0, |reply| random.below(reply.grant + 2)),
        policies: (0..plan.policies.len()).map(|at| claim(at, random)).collect(),
    }
}

#[test]
fn the_script_and_its_reference_agree_on_a_real_redis() {
    let redis = Redis::start();
    let mut to = connect(&redis);
    let mut random = Random(0x5eed);
    let plans = [
        plan(&[(100, "1s", None)], OVERSHOOT_PERCENT),
        plan(&[(10_000, "1s", Some(50))], OVERSHOOT_PERCENT),
        plan(&[(500, "1m", Some(100))], 0),
        plan(&[(7, "1m", Some(2))], OVERSHOOT_PERCENT),
        plan(&[(1_000_003, "3599s", None)], OVERSHOOT_PERCENT),
        plan(&[(300, "1d", None)], OVERSHOOT_PERCENT),
        plan(&[(1 << 45, "1mo", None)], OVERSHOOT_PERCENT),
        plan(&[(1_000, "1s", Some(40)), (5_000, "1d", None), (20_000, "1mo", None)], OVERSHOOT_PERCENT),
        plan(&[(10, "1s", None), (100, "1m", None), (900, "1h", None)], OVERSHOOT_PERCENT),
    ];
    for (at, plan) in plans.iter().enumerate() {
        let (key, mut bucket, mut last) = (format!("bucket{at}"), Bucket::default(), Vec::<Reply>::new());
        for turn in 0..700 {
            let nodes = 1 + random.below(16) as u32;
            let call = any_call(&mut random, plan, &last);
            let mut both = redis::pipe();
            both.atomic().cmd("EVAL").arg(SCRIPT).arg(1).arg(&key).arg(call.arguments(plan, nodes));
            both.cmd("GET").arg(&key).cmd("PTTL").arg(&key).cmd("TIME");
            type All = (Vec<i64>, Option<String>, i64, (Micros, Micros));
            let (got, stored, life, (second, micro)): All = both.query(&mut to).unwrap();
            let got = Reply::parse(&got, plan).unwrap();
            let expected = bucket.call(got.now as Micros, plan, nodes, &call);
            assert_eq!(got, expected, "plan {at}, turn {turn}: {call:?} on {bucket:?}");
            // Small buckets are full again, and gone, after some milliseconds.
            if second * 1_000_000 + micro < bucket.expiry() {
                assert_eq!(stored, Some(bucket.text(plan)), "plan {at}, turn {turn}");
                let most = (bucket.expiry() - got.now as Micros) / 1000 + 2;
                assert!((0..=most).contains(&life), "the bucket lives {life} ms, what is in it {most} ms");
            }
            last.push(got);
            if last.len() > 4 {
                last.remove(0);
            }
            if random.below(12) == 0 {
                // Up to 10 s, mostly less: within an epoch, over one, over two, over all.
                let by = random.below(10_000_000) >> random.below(12);
                // Some of it forward: the server's clock went back.
                bucket.age(if random.below(4) == 0 { -(by as Micros) } else { by as Micros });
                let life = Duration::from_secs(3600).as_millis() as u64;
                redis::cmd("SET").arg(&key).arg(bucket.text(plan)).arg("PX").arg(life).exec(&mut to).unwrap();
            }
        }
    }
}

#[test]
fn months_in_the_script_are_those_of_the_gateway() {
    let redis = Redis::start();
    let function = SCRIPT.split("local function month").nth(1).unwrap().split("\nend\n").next().unwrap();
    let script = format!(
        "local floor = math.floor\nlocal DAY = 86400\nlocal function month{function}\nend\n\
         local out = {{}}\nfor _, s in ipairs(ARGV) do\nlocal a, b = month(tonumber(s))\n\
         out[#out + 1] = a\nout[#out + 1] = b\nend\nreturn out"
    );
    // 170 years from 1970 on, every 11 days and the seconds around the month's ends.
    let mut moments: Vec<i64> = (0..5_600).map(|n| n * 11 * 86_400 + 12_345).collect();
    let ends: Vec<i64> = moments.iter().map(|m| wasmgate::limit::quota::bounds("1mo".parse().unwrap(), *m).1).collect();
    moments.extend(ends.iter().flat_map(|end| [end - 1, *end]));
    for moments in moments.chunks(4_000) {
        let got: Vec<i64> = redis::cmd("EVAL").arg(&script).arg(0).arg(moments).query(&mut connect(&redis)).unwrap();
        let expected = moments.iter().flat_map(|m| {
            let (start, end) = wasmgate::limit::quota::bounds("1mo".parse().unwrap(), *m);
            [start, end]
        });
        assert_eq!(got, expected.collect::<Vec<_>>());
    }
}

#[test]
fn a_damaged_bucket_begins_afresh() {
    let redis = Redis::start();
    let mut to = connect(&redis);
    let plan = plan(&[(100, "1m", None), (1_000, "1d", None)], OVERSHOOT_PERCENT);
    let call = Call { need: 3, policies: (0..2).map(|_| Claim::default()).collect(), ..Call::default() };
    let arguments = call.arguments(&plan, 2);
    let first = evaluate(&mut to, "k", &arguments).unwrap();
    let good = stored(&mut to, "k").unwrap();
    let long = "p0 g 1 ".repeat(1 << 12);
    let damaged = [
        "".to_owned(),
        "\0\u{1}\u{ff}".to_owned(),
        "p0 g".to_owned(),
        "p0 g nan nan nan nan nan nan nan\np1 c inf -1 0".to_owned(),
        good.replace(" g ", " c ").replace("p1 c", "p1 g"),
        good.replace("p0", "p7").replace("p1", "p0"),
        good.split_whitespace().collect::<Vec<_>>().join("\n"),
        good.replace(char::is_numeric, "9999999999999999999"),
        long,
    ];
    for value in damaged {
        redis::cmd("SET").arg("k").arg(&value).exec(&mut to).unwrap();
        let got = evaluate(&mut to, "k", &arguments).unwrap_or_else(|e| panic!("{value:?}: {e}"));
        let got = Reply::parse(&got, &plan).unwrap();
        let left: Vec<u64> = got.policies.iter().map(|p| p.left).collect();
        assert_eq!((got.grant, left), (3, vec![97, 997]), "{value:?}");
        let life: i64 = redis::cmd("PTTL").arg("k").query(&mut to).unwrap();
        assert!((0..=2 * 86_400_000).contains(&life), "{life} after {value:?}");
    }
    redis::cmd("DEL").arg("k").exec(&mut to).unwrap();
    redis::cmd("LPUSH").arg("k").arg("list").exec(&mut to).unwrap();
    assert_eq!(evaluate(&mut to, "k", &arguments).unwrap()[1], first[1]);
    // A level, a use or a lease beyond any that there can be refuses until its window ends, and no longer.
    let numbers = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let mut lines: Vec<Vec<String>> = good.lines().map(numbers).collect();
    lines[0][4] = (1u64 << 52).to_string();
    lines[1][3] = (1u64 << 52).to_string();
    lines[1][4] = (1u64 << 52).to_string();
    let value = lines.iter().map(|l| l.join(" ")).collect::<Vec<_>>().join("\n");
    redis::cmd("SET").arg("k").arg(&value).exec(&mut to).unwrap();
    let got = Reply::parse(&evaluate(&mut to, "k", &arguments).unwrap(), &plan).unwrap();
    assert_eq!((got.grant, got.policies[0].left, got.policies[1].left), (0, 102, 0), "{value}");
    assert!(got.policies[1].retry <= 86_400_000_000);
}

#[test]
fn what_is_no_call_is_refused_and_changes_nothing() {
    let redis = Redis::start();
    let mut to = connect(&redis);
    let plan = plan(&[(100, "1m", None)], OVERSHOOT_PERCENT);
    let good = call(1, 0).arguments(&plan, 2);
    evaluate(&mut to, "k", &good).unwrap();
    let before = stored(&mut to, "k");
    let with = |at: usize, text: &str| {
        let mut bad = good.clone();
        bad[at] = text.to_owned();
        bad
    };
    let mut bad: Vec<Vec<String>> = vec![vec![], good[..good.len() - 1].to_vec(), good[..5].to_vec()];
    for at in (0..5).chain(7..good.len()) {
        bad.extend(["", "x", "-1", "1.5", "nan", "inf", "1e300"].map(|text| with(at, text)));
    }
    bad.extend(["", "a b", "a\nb", "-a", &"a".repeat(64)].map(|name| with(5, name)));
    bad.extend(["", "x", "G"].map(|kind| with(6, kind)));
    bad.extend([7, 8, 9, 11].map(|at| with(at, "0")));
    bad.push([good.clone(), good[5..].to_vec()].concat());
    let many = (0..17).flat_map(|n| [vec![format!("p{n}")], good[6..].to_vec()].concat());
    bad.push(good[..5].iter().cloned().chain(many).collect());
    for arguments in bad {
        let got = evaluate(&mut to, "k", &arguments);
        assert!(got.is_err(), "{arguments:?}: {got:?}");
        assert_eq!(stored(&mut to, "k"), before, "{arguments:?}");
    }
}

#[test]
fn all_policies_are_charged_the_same_or_none_is() {
    let plan = plan(&[(10, "1s", None), (100, "1m", None), (30, "1d", None)], OVERSHOOT_PERCENT);
    let claims = || (0..3).map(|_| Claim::default()).collect();
    let mut bucket = Bucket::default();
    let mut total = 0;
    for second in 0..20 {
        let before = bucket.clone();
        let reply = bucket.call(second * 1_000_000, &plan, 4, &Call { need: 7, policies: claims(), ..Call::default() });
        total += reply.grant;
        assert_eq!(reply.policies[2].left, 30 - total, "{before:?}");
        assert!(reply.grant == 7 || reply.policies.iter().any(|p| p.exhausted), "{reply:?} on {before:?}");
    }
    // The day's quota ends it, and what was refused cost the others nothing.
    assert_eq!(total, 30);
    let refused = bucket.call(60_000_000, &plan, 4, &Call { need: 7, policies: claims(), ..Call::default() });
    assert_eq!(refused.policies.iter().map(|p| p.left).collect::<Vec<_>>(), [10, 100, 0]);
}
