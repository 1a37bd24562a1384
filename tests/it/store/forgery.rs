//! What whoever can write to Redis, and has no record key, can put beside the records: gateways are neither led astray nor held up.

use std::time::Duration;

use wasmgate::store::Store;
use wasmgate::store::redis::RedisStore;

use super::redis::{node, open};
use crate::support::redis::Redis;

fn eval(redis: &Redis, script: &str, key: &str) {
    redis.cli(&["eval", script, "1", key]);
}

#[tokio::test]
async fn nodes_of_nobody_are_not_even_passed_on() {
    let redis = Redis::start();
    let (a, b) = (open(&redis), open(&redis));
    let nodes = "test:{r}:nodes";
    let beat = async |store: &RedisStore, id: &str| -> Vec<String> {
        store.beat(&node(id)).await.unwrap().into_iter().map(|live| live.node.id).collect()
    };
    beat(&a, "a").await;
    assert_eq!(beat(&b, "b").await, ["a", "b"]);
    // Heard of just now, one with a long name and one with much to tell.
    let now = "local t = redis.call('time')[1] .. '000 ' ";
    let put = |field: &str, value: &str| format!("redis.call('hset', KEYS[1], {field}, t .. {value})");
    let long = "string.rep('x', 9000)";
    for forged in [put(long, "'y'"), put("'y'", long)] {
        eval(&redis, &format!("{now} {forged}"), nodes);
        assert_eq!(beat(&a, "a").await, ["a", "b"]);
        assert_eq!((redis.cli(&["hlen", nodes]).trim(), a.forged_records()), ("2", 0), "it is gone: {forged}");
    }
    for time in ["-1", "1e400", "99999999999999999999", "0x10", ""] {
        eval(
            &redis,
            &format!("redis.call('hset', KEYS[1], 'y', '{time} ' .. redis.call('hget', KEYS[1], 'a'))"),
            nodes,
        );
        assert_eq!(beat(&a, "a").await, ["a", "b"], "{time}");
    }
    // More than any fleet has: those that live tell of themselves anew.
    eval(&redis, &format!("{now} for n = 1, 200000 do {} end", put("'n' .. n", "'y'")), nodes);
    assert_eq!(beat(&a, "a").await, ["a"]);
    assert_eq!(beat(&b, "b").await, ["a", "b"]);
    // Of another type.
    for other in ["redis.call('set', KEYS[1], 'x')", "redis.call('rpush', KEYS[1], 'x')"] {
        eval(&redis, &format!("redis.call('del', KEYS[1]) {other}"), nodes);
        assert_eq!(beat(&a, "a").await, ["a"]);
        assert_eq!(beat(&b, "b").await, ["a", "b"]);
    }
    assert_eq!(a.forged_records() + b.forged_records(), 0);
}

/// A call that fails is an outage to the limiter, of all limits.
#[tokio::test]
async fn no_bucket_and_no_sum_makes_a_call_fail() {
    let redis = Redis::start();
    let store = open(&redis);
    let buckets = store.buckets().unwrap();
    let (bucket, sum, life) = ("test:l:{acme/daily}", "test:l:{acme/1}", Duration::from_secs(60));
    // 100 a day.
    let lease = async |need: u64| {
        let need = need.to_string();
        let call = [need.as_str(), "0", "0", "0", "0", "day", "c", "86400", "100", "1", "1000000", "1000000", "0", "0"];
        buckets.lease("acme/daily", call.map(str::to_owned).to_vec()).await.unwrap()
    };
    assert_eq!(lease(5).await[1..3], [5, 95]);
    for forged in [
        "redis.call('rpush', KEYS[1], 'x')",
        "redis.call('hset', KEYS[1], 'x', 'y')",
        "redis.call('set', KEYS[1], '')",
        "redis.call('set', KEYS[1], string.rep('day c 1 ', 1000000))",
        "redis.call('set', KEYS[1], 'day c 99999999999999999999 -5 1e308')",
        "redis.call('set', KEYS[1], 'day c nan inf -inf')",
        "redis.call('set', KEYS[1], 'day g 1 1 1 1 1 1 1')",
        "redis.call('set', KEYS[1], string.rep('x c 4503599627370496 1 1\\n', 1000))",
    ] {
        eval(&redis, &format!("redis.call('del', KEYS[1]) {forged}"), bucket);
        let told = lease(1).await;
        assert!(told[1] == 1 && told[2] == 99, "it begins afresh: {forged}: {told:?}");
    }
    // As if all was used, for ever: it ends with the window.
    redis.cli(&["set", bucket, "day c 4503599627370496 4503599627370496 4503599627370496"]);
    let told = lease(1).await;
    assert!(told[1] == 0 && told[3] <= 86_400_000_000, "{told:?}");

    assert_eq!(buckets.add_up("acme/1", "a", 5, life).await.unwrap(), 0);
    assert_eq!(buckets.add_up("acme/1", "b", 7, life).await.unwrap(), 5);
    for (field, is_counted) in [
        ("-1", false),
        ("-1e400", false),
        ("nan", false),
        ("x", false),
        ("", false),
        ("9e307", true),
        ("1e400", true),
        ("99999999999999999999999999", true),
    ] {
        redis.cli(&["hset", sum, "x", field]);
        let others = buckets.add_up("acme/1", "b", 7, life).await.unwrap();
        assert_eq!(others, if is_counted { 4_503_599_627_370_496 } else { 5 }, "`{field}`");
    }
    for other in ["redis.call('set', KEYS[1], 'x')", "redis.call('rpush', KEYS[1], 'x')"] {
        eval(&redis, &format!("redis.call('del', KEYS[1]) {other}"), sum);
        assert_eq!(buckets.add_up("acme/1", "a", 5, life).await.unwrap(), 0);
        assert_eq!(buckets.add_up("acme/1", "b", 7, life).await.unwrap(), 5);
    }
    // What a probe writes is in nobody's way either.
    redis.cli(&["rpush", "test:l:{probe}:probe", "x"]);
    buckets.probe().await.unwrap();
    assert_eq!(store.forged_records(), 0);
}
