//! The Redis store against real servers: several gateways at once, forgery, and every way in which Redis is away.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use hmac::{Hmac, KeyInit, Mac};
use parking_lot::Mutex;
use sha2::Sha256;
use wasmgate::auth::cache::{Authenticator, Peppers, Settings};
use wasmgate::domain::{ApiKey, Digest, UsageDelta, UsageRecord};
use wasmgate::limit::failures::FailureGate;
use wasmgate::store::redis::{COMMANDS, RedisSettings, RedisStore, Server, Tls};
use wasmgate::store::{
    ALIVE, AdminToken, Batch, KvIncr, NewRoutes, NoRoom, Node, NodeState, Role, Store, StoreError, Unreplicated,
    told_apart,
};

use super::{
    Case, at, check_acknowledged, entry, hash, key, kv, name, room, routes, together, version, write_all_kinds,
};
use crate::support::redis::{Redis, Wire, free_port, tls_files};
use crate::support::tls::{self, Certificate};
use crate::support::{DEADLINE, eventually, eventually_async};

const RECORD_KEY: [u8; 32] = [42; 32];

/// Patient: the machine may be busy.
pub fn settings(server: &Server, prefix: &str) -> RedisSettings {
    let patience = Duration::from_secs(20);
    RedisSettings {
        prefix: prefix.into(),
        connect: patience,
        response: patience,
        ..RedisSettings::new(server.clone(), RECORD_KEY)
    }
}

pub fn server(redis: &Redis) -> Server {
    if redis.is_cluster() { Server::Cluster(vec![redis.url()]) } else { Server::Single(redis.url()) }
}

pub fn open(redis: &Redis) -> Arc<RedisStore> {
    RedisStore::open(settings(&server(redis), "test")).unwrap()
}

fn open_error(settings: RedisSettings) -> StoreError {
    match RedisStore::open(settings) {
        Ok(_) => panic!("it was opened"),
        Err(e) => e,
    }
}

fn is_unavailable<T: std::fmt::Debug>(result: &Result<T, StoreError>) -> bool {
    matches!(result, Err(StoreError::Unavailable(_) | StoreError::Lost(_)))
}

/// Each case under a prefix of its own, all at once: most of their time they wait for the disk.
pub async fn run_table(cases: &[Case], server: &Server) {
    let all = cases.iter().map(|(case, run)| async move {
        let began = Instant::now();
        run(RedisStore::open(settings(server, case)).unwrap()).await;
        println!("case {case}: {:?}", began.elapsed());
    });
    futures_util::future::join_all(all).await;
}

// ---- a fleet ----

#[tokio::test]
async fn what_one_gateway_writes_the_others_see_at_once() {
    let redis = Redis::start();
    let (a, b) = (open(&redis), open(&redis));
    for n in 0..20 {
        let record = key("alice", &format!("key_{n}"), 1);
        a.put_key(hash(n), &record, None).await.unwrap();
        assert_eq!(b.key_by_hash(&hash(n)).await.unwrap(), Some(record.clone()));
        let revoked = ApiKey { revoked_at: Some(at(2)), ..record };
        b.update_key(&revoked).await.unwrap();
        assert_eq!(a.key_by_hash(&hash(n)).await.unwrap(), Some(revoked));
        a.kv_set(&name("alice"), b"k", kv(n.to_string()), at(1)).await.unwrap();
        assert_eq!(b.kv_get(&name("alice"), b"k", at(1)).await.unwrap().unwrap().value, n.to_string().as_bytes());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn caps_hold_for_writes_of_several_gateways_at_once() {
    let redis = Redis::start();
    let stores = [open(&redis), open(&redis)];
    let store = |n: u64| stores[n as usize % 2].clone();
    let keys = together((0..16).map(|n| {
        let store = store(n);
        async move { store.put_key(hash(n), &key("alice", &format!("key_{n}"), 1), Some(5)).await }
    }));
    let token = |n: u64| AdminToken {
        id: format!("tok_{n}").into(),
        name: name("ops"),
        role: Role::Viewer,
        created_at: at(1),
        revoked_at: None,
    };
    let tokens = together((0..16).map(|n| {
        let store = store(n);
        async move { store.put_token(hash(100 + n), &token(n)).await }
    }));
    let modules = together((0..16).map(|n| {
        let store = store(n);
        async move { store.add_version(version("alice", &format!("m{n}"), "x"), room(3, 16)).await }
    }));
    let (keys, tokens, modules) = tokio::join!(keys, tokens, modules);
    assert_eq!(keys.iter().filter(|done| done.is_ok()).count(), 5, "{keys:?}");
    assert!(keys.iter().all(|done| matches!(done, Ok(()) | Err(StoreError::Limit(_)))), "{keys:?}");
    assert_eq!(tokens.iter().filter(|done| done.is_ok()).count(), 1, "{tokens:?}");
    assert!(tokens.iter().all(|done| matches!(done, Ok(()) | Err(StoreError::Conflict(_)))), "{tokens:?}");
    assert_eq!(modules.iter().filter(|done| done.is_ok()).count(), 3, "{modules:?}");
    let no_room = |e: &StoreError| matches!(e, StoreError::NoRoom(NoRoom::Modules { .. }));
    assert!(modules.iter().all(|done| done.as_ref().err().is_none_or(no_room)), "{modules:?}");
    for store in &stores {
        assert_eq!(store.keys(Some(&name("alice"))).await.unwrap().len(), 5);
        assert_eq!(store.tokens().await.unwrap().len(), 1);
        assert_eq!(store.stored(&name("alice")).await.unwrap().modules, 3);
    }
}

const CHILD_URL: &str = "WASMGATE_TEST_REDIS_URL";
const PROCESSES: i64 = 4;
const TASKS: i64 = 16;
const ADDITIONS: i64 = 25;

/// Child mode of [`numbers_of_several_processes_add_up`].
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn adds_in_a_child() {
    let Ok(url) = std::env::var(CHILD_URL) else { return };
    let store = RedisStore::open(settings(&Server::Single(url), "test")).unwrap();
    let add = |_| {
        let store = store.clone();
        async move {
            for _ in 0..ADDITIONS {
                store.kv_incr(&name("alice"), b"n", KvIncr { by: 1, expires_at: None }, at(1)).await.unwrap();
            }
        }
    };
    together((0..TASKS).map(add)).await;
}

#[tokio::test]
async fn numbers_of_several_processes_add_up() {
    let redis = Redis::start();
    let test = "store::redis::adds_in_a_child";
    let mut children: Vec<_> = (0..PROCESSES)
        .map(|_| {
            let mut command = std::process::Command::new(std::env::current_exe().unwrap());
            command.args([test, "--exact", "--test-threads=1"]).env(CHILD_URL, redis.url());
            command.stdout(std::process::Stdio::null()).spawn().unwrap()
        })
        .collect();
    for child in &mut children {
        assert!(child.wait().unwrap().success());
    }
    let sum = open(&redis).kv_get(&name("alice"), b"n", at(1)).await.unwrap().unwrap();
    assert_eq!(sum.value, (PROCESSES * TASKS * ADDITIONS).to_string().as_bytes());
}

#[test]
fn gateways_that_open_an_empty_store_at_once_share_it() {
    let redis = Redis::start();
    let opened = std::thread::scope(|scope| {
        let all: Vec<_> = (0..8).map(|_| scope.spawn(|| open(&redis))).collect();
        all.into_iter().map(|opening| opening.join().unwrap()).collect::<Vec<_>>()
    });
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        opened[0].put_key(hash(1), &key("alice", "key_1", 1), None).await.unwrap();
        for store in &opened {
            assert!(store.key_by_hash(&hash(1)).await.unwrap().is_some());
        }
    });
}

/// How often a command was called since the last look.
fn calls(redis: &Redis, command: &str) -> usize {
    let stats = redis.cli(&["info", "commandstats"]);
    redis.cli(&["config", "resetstat"]);
    let line = stats.lines().find_map(|line| line.strip_prefix(&format!("cmdstat_{command}:calls=")));
    line.map_or(0, |line| line.split(',').next().unwrap().parse().unwrap())
}

#[tokio::test]
async fn a_look_up_of_a_key_is_one_command() {
    let redis = Redis::start();
    let store = open(&redis);
    store.put_key(hash(1), &key("alice", "key_1", 1), None).await.unwrap();
    calls(&redis, "get");
    for _ in 0..100 {
        assert!(store.key_by_hash(&hash(1)).await.unwrap().is_some());
    }
    assert_eq!(calls(&redis, "get"), 100);
    // Writes that wait together are few commits.
    together((0..500u32).map(|n| {
        let store = store.clone();
        async move { store.kv_set(&name("alice"), &n.to_be_bytes(), kv("x"), at(1)).await.unwrap() }
    }))
    .await;
    let commits = calls(&redis, "evalsha");
    assert!((1..=50).contains(&commits), "{commits}");
    // What is large is not among it, as Redis does nothing else meanwhile.
    together((0..12u8).map(|n| {
        let store = store.clone();
        async move { store.kv_set(&name("alice"), &[n], kv(vec![n; 700_000]), at(1)).await.unwrap() }
    }))
    .await;
    assert!(calls(&redis, "evalsha") >= 6);
}

/// That there is still a store one of them asks for all that wait.
#[tokio::test]
async fn absent_keys_at_once_are_hardly_more_than_a_command_each() {
    let redis = Redis::start();
    let store = open(&redis);
    store.put_key(hash(0), &key("alice", "key_0", 1), None).await.unwrap();
    calls(&redis, "get");
    let absent = |n| {
        let store = store.clone();
        async move { assert_eq!(store.key_by_hash(&hash(n)).await.unwrap(), None) }
    };
    together((1..=250).map(absent)).await;
    // Two each, if none came while another one waited.
    let gets = calls(&redis, "get");
    assert!((251..=480).contains(&gets), "{gets}");
    // Of two after each other, the second does not believe what the first was told.
    absent(1).await;
    redis.cli(&["flushall"]);
    let lost = |found: Result<_, StoreError>| assert!(matches!(found, Err(StoreError::Lost(_))), "{found:?}");
    lost(store.key_by_hash(&hash(1)).await);
    lost(store.key_by_hash(&hash(0)).await);
}

/// As requests ask: their address first, and then the store. What a large attack sends in a second, in process.
#[tokio::test]
async fn a_flood_of_well_formed_junk_hardly_reaches_redis() {
    const FAILURES: u32 = 60;
    const ADDRESSES: u8 = 10;
    let redis = Redis::start();
    let store = open(&redis);
    let settings = Settings {
        key_fresh: Duration::from_secs(3600),
        key_max_stale: Duration::ZERO,
        absent_ttl: Duration::from_secs(5),
        entries: 10_000,
    };
    let auth = Authenticator::new(store.clone(), Peppers(vec![(1, vec![7; 32])]), settings);
    let good = auth.mint().unwrap();
    store.put_key(good.hash, &key("alice", "key_1", 1), None).await.unwrap();
    auth.authenticate(&good.secret, at(2)).await.unwrap();
    let junk: Vec<_> = (0..100_000).map(|_| auth.mint().unwrap().secret).collect();
    let gate = FailureGate::new(FAILURES);
    calls(&redis, "get");
    let (began, mut refused) = (Instant::now(), 0);
    for (n, junk) in (0..).zip(&junk) {
        assert!(auth.cached(junk, at(2)).is_none());
        match gate.attempt([10, 0, 0, (n % usize::from(ADDRESSES)) as u8].into(), Instant::now()) {
            Ok(_charged) => assert!(auth.authenticate(junk, at(2)).await.is_err()),
            Err(_) => refused += 1,
        }
        assert!(auth.cached(&good.secret, at(2)).is_some_and(|found| found.is_ok()));
    }
    // Each address has a minute's failures at once, and then one a second: a key, and the look at the sentinel.
    let each = FAILURES as usize + 1 + began.elapsed().as_secs() as usize;
    let gets = calls(&redis, "get");
    assert!(gets <= 2 * usize::from(ADDRESSES) * each, "{gets} in {:?}", began.elapsed());
    assert!(refused >= 90_000, "{refused}");
}

pub fn node(id: &str) -> Node {
    Node {
        id: id.into(),
        name: format!("gateway {id}"),
        version: "1.0.0".into(),
        started_at: at(1),
        state: NodeState::Ready,
        lacks: Vec::new(),
        generation: 1,
        config: Digest::of(b"a file"),
        follows_routes: false,
        routes: None,
        refused: None,
    }
}

#[tokio::test]
async fn routes_that_were_altered_or_moved_are_none() {
    let redis = Redis::start();
    let store = open(&redis);
    store.push_routes(routes("one"), 0).await.unwrap();
    store.push_routes(routes("two"), 1).await.unwrap();
    redis.cli(&["copy", "test:{r}:rt:1", "test:{r}:rt:2", "replace"]);
    assert_eq!(store.routes_text(2).await.unwrap(), None);
    assert_eq!((store.routes_text(1).await.unwrap().as_deref(), store.forged_records()), (Some("one"), 1));
    redis.cli(&["setrange", "test:{r}:routes", "40", "x"]);
    assert!(store.routes_versions().await.unwrap().is_empty());
    // It is in nobody's way, and no number comes again that was in use.
    let above = NewRoutes { above: 2, ..routes("three") };
    assert_eq!(store.push_routes(above, 0).await.unwrap().version, 3);
}

async fn beat(store: &RedisStore, id: &str) -> Vec<String> {
    store.beat(&node(id)).await.unwrap().into_iter().map(|live| live.node.id).collect()
}

async fn check_nodes(redis: Redis) {
    let (a, b) = (open(&redis), open(&redis));
    assert_eq!(beat(&a, "a").await, ["a"]);
    assert_eq!(beat(&b, "b").await, ["a", "b"]);
    let live = a.beat(&Node { state: NodeState::Draining, ..node("a") }).await.unwrap();
    assert_eq!(live[0].node, Node { state: NodeState::Draining, ..node("a") });
    assert!(live.iter().all(|live| live.silent < ALIVE));
    a.leave("a").await.unwrap();
    assert_eq!(beat(&b, "b").await, ["b"]);
    // One that is silent: by the server's clock.
    beat(&a, "a").await;
    let end = Instant::now() + DEADLINE;
    while beat(&b, "b").await != ["b"] {
        assert!(Instant::now() < end, "it lives for ever");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(redis.cli(&["hkeys", "test:{r}:nodes"]).trim(), "b");
}

#[tokio::test]
async fn nodes_live_as_long_as_they_are_heard_of() {
    check_nodes(Redis::start()).await;
}

#[tokio::test]
async fn nodes_live_so_in_a_cluster() {
    check_nodes(Redis::start_cluster()).await;
}

#[tokio::test]
async fn a_forged_node_is_none() {
    let redis = Redis::start();
    let store = open(&redis);
    beat(&store, "a").await;
    // A good record under another name, one of a time to come, and bytes.
    let eval = |script: &str| redis.cli(&["eval", script, "1", "test:{r}:nodes"]);
    eval("redis.call('hset', KEYS[1], 'other', redis.call('hget', KEYS[1], 'a'))");
    assert_eq!(beat(&store, "a").await, ["a"]);
    assert_eq!(store.forged_records(), 1);
    eval("local all = redis.call('hget', KEYS[1], 'a') redis.call('hset', KEYS[1], 'a', '99999999999999' .. all)");
    eval("redis.call('hset', KEYS[1], 'x', 'y') redis.call('hset', KEYS[1], '', '')");
    assert_eq!(beat(&store, "b").await, ["b"]);
    assert_eq!(redis.cli(&["hlen", "test:{r}:nodes"]).trim(), "2");
    // In a store that was lost nobody lives.
    redis.cli(&["flushall"]);
    assert!(is_unavailable(&store.beat(&node("a")).await));
    assert_eq!(redis.cli(&["dbsize"]).trim(), "0");
}

// ---- forgery ----

/// The key of a record, by what is in its name.
fn record_key(redis: &Redis, part: &str) -> String {
    let keys = redis.cli(&["keys", &format!("test:*:{part}*")]);
    keys.lines().next().unwrap_or_else(|| panic!("no key with `{part}`")).to_owned()
}

#[tokio::test]
async fn a_record_that_was_altered_moved_or_cut_is_absent_and_told() {
    let redis = Redis::start();
    let store = open(&redis);
    let put = async || {
        redis.cli(&["flushall"]);
        let store = open(&redis);
        store.put_key(hash(1), &key("alice", "key_1", 1), None).await.unwrap();
        store.put_key(hash(2), &key("mallory", "key_2", 1), None).await.unwrap();
        store.kv_set(&name("alice"), b"k", kv("1"), at(1)).await.unwrap();
        store
    };
    drop(store);
    let store = put().await;
    let hex = |n: u64| hash(n).0.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let (own, other) = (record_key(&redis, &format!("kh:{}", hex(1))), record_key(&redis, &format!("kh:{}", hex(2))));
    assert_eq!(store.forged_records(), 0);

    // Another tier, with the MAC as it was.
    let end = redis.cli(&["strlen", &own]).trim().parse::<usize>().unwrap();
    redis.cli(&["setrange", &own, &(end - 3).to_string(), "x"]);
    assert_eq!(store.key_by_hash(&hash(1)).await.unwrap(), None);
    assert_eq!(store.key(&"key_1".into()).await.unwrap(), None);
    assert!(store.keys(Some(&name("alice"))).await.unwrap().is_empty());
    assert!(store.forged_records() >= 1);

    // A good record under another key.
    let store = put().await;
    redis.cli(&["copy", &own, &other, "replace"]);
    assert_eq!(store.key_by_hash(&hash(2)).await.unwrap(), None);
    assert_eq!((store.forged_records(), store.key_by_hash(&hash(1)).await.unwrap().is_some()), (1, true));
    // A field of one owner's values in another's.
    let values = record_key(&redis, "v:alice");
    redis.cli(&["copy", &values, &values.replace("alice", "bob")]);
    assert_eq!(store.kv_get(&name("bob"), b"k", at(1)).await.unwrap(), None);
    assert_eq!(store.forged_records(), 2);

    // Cut off, down to nothing, or of no format.
    for kept in ["40", "20", "0"] {
        let store = put().await;
        let script = format!("redis.call('set', KEYS[1], string.sub(redis.call('get', KEYS[1]), 1, {kept}))");
        redis.cli(&["eval", &script, "1", &own]);
        assert_eq!(store.key_by_hash(&hash(1)).await.unwrap(), None, "{kept} bytes");
        assert_eq!(store.forged_records(), 1, "{kept} bytes");
        // It is in nobody's way.
        store.put_key(hash(1), &key("alice", "key_9", 1), None).await.unwrap();
        assert_eq!(store.key_by_hash(&hash(1)).await.unwrap().unwrap().id, "key_9".into());
    }
    // Of another type.
    let store = put().await;
    redis.cli(&["del", &own]);
    redis.cli(&["rpush", &own, "x"]);
    assert!(matches!(store.key_by_hash(&hash(1)).await, Err(StoreError::Corrupt(_))));
    assert!(store.key_by_hash(&hash(2)).await.unwrap().is_some());
}

fn mac(key: &[u8; 32], parts: &[&[u8]]) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap();
    parts.iter().for_each(|part| mac.update(part));
    mac.finalize().into_bytes().into()
}

#[tokio::test]
async fn a_store_of_another_record_key_or_a_newer_schema_is_refused() {
    let redis = Redis::start();
    let server = Server::Single(redis.url());
    drop(open(&redis));
    let other = RedisSettings { record_key: [1; 32], ..settings(&server, "test") };
    let error = open_error(other).to_string();
    assert!(error.contains("another record key"), "{error}");
    // Neighbours don't meet.
    let neighbour = RedisStore::open(settings(&server, "neighbour")).unwrap();
    neighbour.put_key(hash(1), &key("alice", "key_1", 1), None).await.unwrap();
    assert_eq!(open(&redis).key_by_hash(&hash(1)).await.unwrap(), None);
    // Made by a later release, with our key: what the seal is made of is the same for ever.
    let place = "newer:{r}:sentinel";
    let sealing = mac(&RECORD_KEY, &[b"wasmgate sentinel"]);
    let content = br#"{"schema":2,"store":"x"}"#;
    let length = (place.len() as u64).to_be_bytes();
    let tag = mac(&sealing, &[&length, place.as_bytes(), &u64::MAX.to_be_bytes(), content]);
    redis.set(place, &[&[1], &tag[..], content].concat());
    assert_eq!(open_error(settings(&server, "newer")), StoreError::Newer { found: 2, known: 1 });
    let bad = RedisSettings { prefix: "a{b}".into(), ..settings(&server, "") };
    assert!(open_error(bad).to_string().contains("prefix"));
}

// ---- Redis away ----

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nothing_acknowledged_is_lost_when_redis_is_killed() {
    let redis = Redis::start();
    kill_and_look(redis).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nothing_acknowledged_is_lost_when_a_cluster_is_killed() {
    let redis = Redis::start_cluster();
    kill_and_look(redis).await;
}

async fn kill_and_look(mut redis: Redis) {
    let store = RedisStore::open(settings(&server(&redis), "test")).unwrap();
    let acks = Arc::new(Mutex::new(Vec::<String>::new()));
    for cycle in 0..5 {
        let enough = acks.lock().len() + 40;
        let writers: Vec<_> = (0..4)
            .map(|lane| {
                let (store, acks) = (store.clone(), acks.clone());
                tokio::spawn(write_all_kinds(store, lane, move |ack| acks.lock().push(ack.to_owned())))
            })
            .collect();
        eventually_async("writes are acknowledged", || acks.lock().len() >= enough).await;
        redis.kill();
        for writer in writers {
            let failed = writer.await.unwrap();
            assert!(matches!(failed, StoreError::Unavailable(_)), "cycle {cycle}: {failed:?}");
        }
        redis.restart();
        eventually_async("the store is up", || store.is_up()).await;
        let acks = acks.lock().clone();
        check_acknowledged(&*store, &acks).await;
        assert_eq!(store.forged_records(), 0);
    }
}

#[tokio::test]
async fn a_frozen_redis_costs_a_bounded_time_then_none_and_heals() {
    let redis = Redis::start();
    let (alice, response) = (name("alice"), Duration::from_secs(1));
    open(&redis).put_key(hash(1), &key("alice", "key_1", 1), None).await.unwrap();
    let quick = RedisSettings { response, connect: response, ..settings(&server(&redis), "test") };
    let mut opened = None;
    eventually("it opens", || {
        opened = RedisStore::open(quick.clone()).ok();
        opened.is_some()
    });
    let store = opened.unwrap();
    redis.freeze();
    let began = Instant::now();
    assert!(is_unavailable(&store.key_by_hash(&hash(1)).await));
    assert!(is_unavailable(&store.kv_set(&alice, b"k", kv("1"), at(1)).await));
    assert!(is_unavailable(&store.keys(None).await));
    assert!(began.elapsed() < Duration::from_secs(25), "{:?}", began.elapsed());
    let mut tries = 0;
    while store.is_up() {
        assert!(is_unavailable(&store.key_by_hash(&hash(1)).await));
        tries += 1;
        assert!(tries < 10);
    }
    // A thousand calls in less than the time of one answer, of which the last is told: nobody waits.
    let quickest = (0..20).map(async |_| {
        let began = Instant::now();
        assert!(is_unavailable(&store.key_by_hash(&hash(1)).await));
        assert!(is_unavailable(&store.kv_get(&alice, b"k", at(1)).await));
        began.elapsed()
    });
    let quickest = futures_util::future::join_all(quickest).await.into_iter().min().unwrap();
    assert!(quickest < response / 2, "{quickest:?}");
    redis.thaw();
    // As patient as a busy machine asks for.
    let end = Instant::now() + DEADLINE;
    while store.kv_set(&alice, b"k", kv("2"), at(1)).await.is_err() {
        assert!(Instant::now() < end, "it does not heal");
        tokio::task::yield_now().await;
    }
    assert_eq!(open(&redis).kv_get(&alice, b"k", at(1)).await.unwrap().unwrap().value, b"2");
    assert!(open(&redis).key_by_hash(&hash(1)).await.unwrap().is_some());
}

#[tokio::test]
async fn a_store_that_was_lost_is_unavailable_and_not_empty() {
    let redis = Redis::start();
    let store = open(&redis);
    let alice = name("alice");
    store.put_key(hash(1), &key("alice", "key_1", 1), None).await.unwrap();
    redis.cli(&["flushall"]);
    let lost = async |when: &str| {
        let told = store.key_by_hash(&hash(1)).await;
        assert!(matches!(&told, Err(StoreError::Lost(why)) if why.contains("begin anew")), "{when}: {told:?}");
        assert!(is_unavailable(&store.key(&"key_1".into()).await), "{when}");
        assert!(is_unavailable(&store.keys(None).await), "{when}");
        assert!(is_unavailable(&store.module(&alice, &name("m")).await), "{when}");
        assert!(is_unavailable(&store.kv_get(&alice, b"k", at(1)).await), "{when}");
        assert!(is_unavailable(&store.blobs().await), "{when}");
        assert!(is_unavailable(&store.check().await), "{when}");
        // Neither is anything written, nor refused for what is not there.
        assert!(is_unavailable(&store.put_key(hash(2), &key("alice", "key_2", 1), None).await), "{when}");
        assert!(is_unavailable(&store.activate(&alice, &name("m"), 1).await), "{when}");
        assert!(is_unavailable(&store.append_audit(&entry("x")).await), "{when}");
        assert!(is_unavailable(&store.kv_delete(&alice, b"k", at(1)).await), "{when}");
    };
    lost("flushed").await;
    assert_eq!(redis.cli(&["dbsize"]).trim(), "0");
    // Another gateway has begun anew: this one does not take part in that by chance.
    let fresh = open(&redis);
    assert_eq!(fresh.key_by_hash(&hash(1)).await.unwrap(), None);
    lost("begun anew").await;
    fresh.put_key(hash(1), &key("bob", "key_1", 1), None).await.unwrap();
    lost("with other records").await;
    assert_eq!(open(&redis).key_by_hash(&hash(1)).await.unwrap().unwrap().owner, name("bob"));
}

/// A restart does not make an empty store of one that was lost.
#[test]
fn a_gateway_that_knows_its_store_begins_no_other() {
    let redis = Redis::start();
    let file = redis.dir.path().join("store.id");
    let again = || RedisSettings { id_file: Some(file.clone()), ..settings(&Server::Single(redis.url()), "test") };
    let id = RedisStore::open(again()).unwrap().store_id().to_owned();
    assert_eq!(RedisStore::open(again()).unwrap().store_id(), id);
    redis.cli(&["flushall"]);
    let remedy = format!("delete `store.id` in each one's data directory (here `{}`)", file.display());
    let refused = |what: &str| {
        let told = open_error(again());
        let StoreError::Lost(why) = &told else { panic!("{told:?}") };
        assert!(why.contains(what) && why.contains(&remedy), "{why}");
    };
    refused("lost");
    assert_eq!(redis.cli(&["dbsize"]).trim(), "0");
    assert_ne!(open(&redis).store_id(), id);
    refused("another store");
    std::fs::remove_file(&file).unwrap();
    let anew = RedisStore::open(again()).unwrap();
    assert_eq!(RedisStore::open(again()).unwrap().store_id(), anew.store_id());
}

#[tokio::test]
async fn settings_that_would_lose_records_are_told() {
    for redis in [Redis::start(), Redis::start_cluster()] {
        let store = RedisStore::open(settings(&server(&redis), "test")).unwrap();
        assert!(store.advice().await.is_empty());
        redis.cli(&["config", "set", "maxmemory-policy", "allkeys-lru"]);
        redis.cli(&["config", "set", "appendonly", "no"]);
        let advice = store.advice().await.join(" ");
        assert!(advice.contains("noeviction") && advice.contains("appendonly"), "{advice}");
    }
}

#[tokio::test]
async fn a_write_whose_answer_was_lost_is_done_once() {
    let redis = Redis::start();
    let wire = Wire::to(&redis);
    let store = RedisStore::open(settings(&Server::Single(wire.url.clone()), "test")).unwrap();
    let alice = name("alice");
    for round in 1..=10 {
        wire.cuts.store(1, Ordering::SeqCst);
        let sum = store.kv_incr(&alice, b"n", KvIncr { by: 1, expires_at: None }, at(1)).await.unwrap();
        assert_eq!(sum, round);
        assert_eq!(wire.cuts.load(Ordering::SeqCst), 0, "no answer was lost");
        wire.cuts.store(1, Ordering::SeqCst);
        store.append_audit(&entry(round.to_string())).await.unwrap();
        assert_eq!(wire.cuts.load(Ordering::SeqCst), 0, "no answer was lost");
        wire.cuts.store(1, Ordering::SeqCst);
        store.put_key(hash(round as u64), &key("alice", &format!("key_{round}"), 1), Some(10)).await.unwrap();
    }
    let seen = open(&redis);
    assert_eq!(seen.kv_get(&alice, b"n", at(1)).await.unwrap().unwrap().value, b"10");
    assert_eq!(seen.audit(100).await.unwrap().len(), 10);
    assert_eq!(seen.keys(None).await.unwrap().len(), 10);
}

/// Also where an error was told each time, and where others have written meanwhile.
#[tokio::test]
async fn a_batch_counts_once_however_often_it_is_sent() {
    let redis = Redis::start();
    let (store, other) = (open(&redis), open(&redis));
    let alice = name("alice");
    let usage = |requests| {
        let add = UsageRecord { requests, ..UsageRecord::default() };
        [UsageDelta { owner: alice.clone(), key: "key_1".into(), day: 5, add }]
    };
    store.add_version(version("alice", "m", "one"), None).await.unwrap();
    let runs = [(alice.clone(), name("m"), 3, at(100))];
    let (mut of_usage, mut of_runs, others) =
        (Batch::first().unwrap(), Batch::first().unwrap(), Batch::first().unwrap());
    for round in 1..=3 {
        for store in [&store, &store, &other] {
            store.add_usage(&of_usage, &usage(10)).await.unwrap();
            store.count_executions(&of_runs, &runs).await.unwrap();
        }
        other.add_usage(&Batch { number: round, ..others.clone() }, &usage(1)).await.unwrap();
        of_usage.next();
        of_runs.next();
    }
    let rows = other.usage(None, 5, 5).await.unwrap();
    assert_eq!(rows.iter().map(|row| row.usage.requests).collect::<Vec<_>>(), [33]);
    assert_eq!(other.module(&alice, &name("m")).await.unwrap().unwrap().executions, 9);
    let kept = redis.cli(&["pttl", &format!("test:{{r}}:batch:{}", of_usage.sender)]);
    assert!(kept.trim().parse::<u64>().unwrap() > 29 * 86_400_000, "{kept}");
}

#[tokio::test]
async fn a_full_redis_refuses_writes_and_nothing_else() {
    let redis = Redis::start();
    let store = open(&redis);
    store.put_key(hash(1), &key("alice", "key_1", 1), None).await.unwrap();
    redis.cli(&["config", "set", "maxmemory", "1"]);
    assert_eq!(store.append_audit(&entry("x")).await, Err(StoreError::Full));
    assert_eq!(store.put_blob(Digest::of(b"x"), b"x").await, Err(StoreError::Full));
    assert!(store.key_by_hash(&hash(1)).await.unwrap().is_some());
    assert!(store.is_up());
    redis.cli(&["config", "set", "maxmemory", "0"]);
    store.append_audit(&entry("y")).await.unwrap();
    assert_eq!(store.audit(9).await.unwrap().len(), 1);
    // A script that Redis has forgotten is sent again.
    redis.cli(&["script", "flush"]);
    store.append_audit(&entry("z")).await.unwrap();
}

#[tokio::test]
async fn what_redis_refuses_is_told_with_what_to_do() {
    let redis = Redis::start();
    let store = open(&redis);
    store.put_key(hash(1), &key("alice", "key_1", 1), None).await.unwrap();
    let refused = async |part: &str| {
        let told = store.append_audit(&entry("x")).await;
        assert!(matches!(&told, Err(StoreError::Unavailable(why)) if why.contains(part)), "{told:?}");
    };
    redis.cli(&["config", "set", "min-replicas-to-write", "1"]);
    refused("min-replicas-to-write").await;
    redis.cli(&["config", "set", "min-replicas-to-write", "0"]);
    redis.cli(&["replicaof", "127.0.0.1", "1"]);
    refused("primary").await;
    redis.cli(&["replicaof", "no", "one"]);
    eventually_async("the store is up", || store.is_up()).await;
    store.append_audit(&entry("y")).await.unwrap();
    assert_eq!(store.audit(9).await.unwrap().len(), 1);
}

#[tokio::test]
async fn records_travel_under_tls_with_an_authority_of_ones_own() {
    let certificate = Certificate::for_name("localhost");
    let dir = tempfile::tempdir().unwrap();
    let (files, port) = (tls_files(&certificate, dir.path()), free_port().to_string());
    let options: Vec<_> = files.iter().map(String::as_str).chain(["--tls-port", &port]).collect();
    let redis = Redis::start_with(&options);
    tls::install_provider();
    let url = format!("rediss://localhost:{port}");
    let trusting = |authorities: &str| RedisSettings {
        tls: Some(Tls { authorities: Some(authorities.as_bytes().to_vec()), certificate: None }),
        ..settings(&Server::Single(url.clone()), "test")
    };
    let store = RedisStore::open(trusting(&certificate.cert_pem)).unwrap();
    store.put_key(hash(1), &key("alice", "key_1", 1), None).await.unwrap();
    assert!(open(&redis).key_by_hash(&hash(1)).await.unwrap().is_some());
    let stranger = Certificate::for_name("localhost");
    let error = open_error(trusting(&stranger.cert_pem));
    assert!(matches!(error, StoreError::Unavailable(_)), "{error:?}");
}

#[tokio::test]
async fn one_rule_of_the_acl_is_enough_and_secrets_are_told_to_nobody() {
    let redis = Redis::start();
    let user = ["acl", "setuser", "gate", "reset", "on", ">hunter2", "~test:*"];
    redis.cli(&user.into_iter().chain(COMMANDS.split_whitespace()).collect::<Vec<_>>());
    let with = |username: &str, password: &str, prefix: &str| RedisSettings {
        username: Some(username.into()),
        password: Some(password.into()),
        ..settings(&Server::Single(redis.url()), prefix)
    };
    let store = RedisStore::open(with("gate", "hunter2", "test")).unwrap();
    let table = super::CASES.iter().find(|(case, _)| *case == "values_expire").unwrap();
    table.1(store.clone()).await;
    for (case, run) in super::CASES.iter().filter(|(case, _)| {
        [
            "rotation_changes_both_keys_or_none",
            "a_deleted_module_is_gone",
            "limits_are_counted_here_or_shared",
            "what_was_written_is_exported_as_it_is",
        ]
        .contains(case)
    }) {
        println!("case {case}");
        run(RedisStore::open(with("gate", "hunter2", &format!("test:{case}"))).unwrap()).await;
    }
    old_rows(store.clone()).await;
    store.put_blob(Digest::of(b"x"), b"x").await.unwrap();
    assert_eq!(store.get_blob(Digest::of(b"x")).await.unwrap(), Some(b"x".to_vec()));
    assert!(store.delete_blob(Digest::of(b"x")).await.unwrap());
    // What it may not, it says.
    let error = open_error(with("gate", "hunter2", "other")).to_string();
    assert!(error.contains("ACL"), "{error}");
    let secret = "geheim99";
    let wrong = with("gate", secret, "test");
    assert!(!format!("{wrong:?}").contains(secret) && !format!("{wrong:?}").contains("unix://"), "{wrong:?}");
    let error = open_error(wrong).to_string();
    assert!(error.contains("refuses the user or the password") && !error.contains(secret), "{error}");
    redis.cli(&["config", "set", "requirepass", "x"]);
    let error = open_error(settings(&Server::Single(redis.url()), "test")).to_string();
    assert!(error.contains("wants a user and a password"), "{error}");
    for url in [format!("redis://gate:{secret}@127.0.0.1:1"), format!("redis:/gate:{secret}@"), format!("x{secret}")] {
        let bad = settings(&Server::Single(url), "test");
        assert!(!format!("{bad:?}").contains(secret));
        let error = open_error(bad);
        assert!(matches!(&error, StoreError::Unavailable(why) if !why.contains(secret)), "{error:?}");
    }
}

async fn old_rows(store: Arc<RedisStore>) {
    let keep = wasmgate::store::Retention { audit_from: at(9), audit_entries: 1, usage_from_day: 9, now: at(9) };
    for n in 0..3 {
        store.append_audit(&entry(n.to_string())).await.unwrap();
    }
    assert!(store.prune(keep).await.unwrap() >= 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nothing_acknowledged_is_lost_by_a_failover() {
    let mut primary = Redis::start_on_port(&[]);
    let replica = Redis::start_on_port(&["--replicaof", "127.0.0.1", &primary.port()]);
    eventually("it replicates", || replica.cli(&["info", "replication"]).contains("master_link_status:up"));
    let sentinel = Redis::start_sentinel(&primary);
    // Sentinels have a password of their own.
    sentinel.cli(&["acl", "setuser", "gate", "on", ">of sentinels", "+@all", "~*", "&*"]);
    sentinel.cli(&["acl", "setuser", "default", "off"]);
    let server = Server::Sentinel { urls: vec![sentinel.url()], primary: "main".into() };
    let stranger = open_error(settings(&server, "test")).to_string();
    assert!(stranger.contains("`store.redis.sentinel_password_file`"), "{stranger}");
    let replicated = RedisSettings {
        replicas: 1,
        response: Duration::from_secs(5),
        sentinel_username: Some("gate".into()),
        sentinel_password: Some("of sentinels".into()),
        ..settings(&server, "test")
    };
    let store = RedisStore::open(replicated).unwrap();
    let acks = Arc::new(Mutex::new(Vec::<String>::new()));
    let writers: Vec<_> = (0..4)
        .map(|lane| {
            let (store, acks) = (store.clone(), acks.clone());
            tokio::spawn(write_all_kinds(store, lane, move |ack| acks.lock().push(ack.to_owned())))
        })
        .collect();
    eventually_async("writes are acknowledged", || acks.lock().len() >= 40).await;
    primary.kill();
    for writer in writers {
        let failed = writer.await.unwrap();
        assert!(matches!(failed, StoreError::Unavailable(_)), "{failed:?}");
    }
    eventually("there is another primary", || replica.cli(&["role"]).starts_with("master"));
    eventually_async("the store is up", || store.is_up()).await;
    let acks = acks.lock().clone();
    check_acknowledged(&*store, &acks).await;
    // Nobody has a copy of what is written now, so it is not acknowledged.
    let alone = store.append_audit(&entry("alone")).await;
    assert_eq!(alone, Err(StoreError::Unreplicated(Unreplicated { have: 0, of: 1 })));
    let (alone, few) = told_apart(store.append_audit(&entry("told apart"))).await;
    assert_eq!((alone, few), (Ok(()), Some(Unreplicated { have: 0, of: 1 })));
    assert_eq!(store.audit(2).await.unwrap().iter().map(|e| &*e.subject).collect::<Vec<_>>(), ["told apart", "alone"]);
    // What was the primary comes back as the replica; the sentinel would see to it in its own time.
    primary.restart();
    primary.cli(&["replicaof", "127.0.0.1", &replica.port()]);
    eventually("it replicates", || primary.cli(&["info", "replication"]).contains("master_link_status:up"));
    store.append_audit(&entry("both")).await.unwrap();
}

/// Each blocks the connection of all for three quarters of the time that one may take.
#[tokio::test]
async fn commits_wait_for_replicas_one_after_the_other() {
    let redis = Redis::start();
    let alone = RedisSettings { replicas: 1, response: Duration::from_secs(2), ..settings(&server(&redis), "test") };
    let store = RedisStore::open(alone).unwrap();
    let writes = (0..4).map(|n| {
        let store = store.clone();
        async move { store.put_key(hash(n), &key(&format!("owner-{n}"), &format!("key_{n}"), 1), None).await }
    });
    for written in futures_util::future::join_all(writes).await {
        assert_eq!(written, Err(StoreError::Unreplicated(Unreplicated { have: 0, of: 1 })));
    }
    assert_eq!(store.keys(None).await.unwrap().len(), 4);
}

/// Nobody has to notice that connections have ended.
#[tokio::test]
async fn a_restart_between_two_calls_costs_none() {
    for mut redis in [Redis::start(), Redis::start_cluster()] {
        let store = RedisStore::open(settings(&server(&redis), "test")).unwrap();
        for n in 0..3 {
            store.put_key(hash(n), &key("alice", &format!("key_{n}"), 1), None).await.unwrap();
            assert!(store.key_by_hash(&hash(n)).await.unwrap().is_some());
            redis.restart();
            assert!(store.key_by_hash(&hash(n)).await.unwrap().is_some());
            redis.restart();
        }
    }
}

// ---- blobs ----

#[tokio::test]
async fn blobs_are_found_whole_or_not_at_all() {
    let redis = Redis::start();
    let (store, other) = (open(&redis), open(&redis));
    let bytes: Vec<u8> = (0..1_300_000u32).flat_map(|n| n.to_le_bytes()).take(1_300_000).collect();
    let (digest, empty) = (Digest::of(&bytes), Digest::of(b""));
    assert_eq!(store.get_blob(digest).await.unwrap(), None);
    assert!(store.put_blob(digest, b"others").await.is_err());
    assert!(store.put_blob(digest, &bytes).await.unwrap());
    assert!(!other.put_blob(digest, &bytes).await.unwrap());
    assert!(store.put_blob(empty, b"").await.unwrap());
    assert_eq!(other.get_blob(digest).await.unwrap().as_deref(), Some(bytes.as_slice()));
    assert_eq!(other.get_blob(empty).await.unwrap().as_deref(), Some(&b""[..]));
    assert_eq!(other.blobs().await.unwrap().len(), 2);
    // A piece that was altered, and one that is missing.
    let piece = format!("test:b:{{{}}}:1", digest.hex());
    redis.cli(&["setrange", &piece, "5", "x"]);
    assert_eq!(other.get_blob(digest).await.unwrap(), None);
    redis.cli(&["del", &piece]);
    assert_eq!(other.get_blob(digest).await.unwrap(), None);
    assert_eq!(other.forged_records(), 2);
    assert!(other.delete_blob(digest).await.unwrap());
    assert!(!other.delete_blob(digest).await.unwrap());
    assert_eq!(redis.cli(&["keys", &format!("*{}*", digest.hex())]).trim(), "");
    assert_eq!(store.blobs().await.unwrap(), [empty]);
    assert!(store.put_blob(digest, &bytes).await.unwrap());
    assert_eq!(other.get_blob(digest).await.unwrap(), Some(bytes));
}

#[test]
fn a_redis_that_is_not_there_is_told_at_once() {
    let mut redis = Redis::start();
    let server = Server::Single(redis.url());
    redis.kill();
    let error = open_error(settings(&server, "test"));
    assert!(matches!(error, StoreError::Unavailable(_)), "{error:?}");
    redis.restart();
    eventually("it opens", || RedisStore::open(settings(&server, "test")).is_ok());
}
