//! The Redis store in a cluster of several nodes: what is where, nodes that are away, and slots that move.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use wasmgate::domain::{ApiKey, Digest, KeyHash};
use wasmgate::limit::lease::terms::OVERSHOOT_PERCENT;
use wasmgate::limit::lease::wire::Reply;
use wasmgate::store::redis::{RedisSettings, RedisStore, Server};
use wasmgate::store::{Changes, Store, StoreError};

use super::redis::{run_table, settings};
use super::{CASES, at, entry, hash, key};
use crate::support::cluster::Cluster;
use crate::support::redis::{Redis, Wire};
use crate::support::{DEADLINE, eventually, eventually_async, poll_async};

/// Of a key whose slot all records are in.
const RECORDS: &str = "test:{r}:sentinel";

fn on(cluster: &Cluster) -> RedisSettings {
    settings(&Server::Cluster(cluster.urls()), "test")
}

/// Asks until it is not away any more.
async fn once_there<T>(what: &str, mut ask: impl AsyncFnMut() -> Result<T, StoreError>) -> T {
    let end = std::time::Instant::now() + DEADLINE;
    loop {
        match ask().await {
            Ok(found) => return found,
            Err(StoreError::Unavailable(why)) => assert!(std::time::Instant::now() < end, "{what}: {why}"),
            Err(e) => panic!("{what}: {e}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Blobs, at least so many on each primary, and the place of each.
async fn blobs_everywhere(store: &RedisStore, cluster: &Cluster, each: usize) -> Vec<(usize, Digest)> {
    let mut blobs = Vec::new();
    let enough = |blobs: &[(usize, Digest)]| (0..3).all(|n| blobs.iter().filter(|(at, _)| *at == n).count() >= each);
    for n in 0_u64.. {
        let digest = Digest::of(&n.to_be_bytes());
        store.put_blob(digest, &n.to_be_bytes()).await.unwrap();
        blobs.push((cluster.place(&format!("{{{}}}", digest.hex())), digest));
        if enough(&blobs) {
            break;
        }
    }
    blobs
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_cluster_of_several_does_what_the_trait_says() {
    let cluster = Cluster::start();
    run_table(CASES, &Server::Cluster(cluster.urls())).await;
}

#[tokio::test]
async fn blobs_and_buckets_are_shared_out_and_records_are_together() {
    let cluster = Cluster::start();
    let (store, other) = (RedisStore::open(on(&cluster)).unwrap(), RedisStore::open(on(&cluster)).unwrap());
    store.put_key(hash(1), &key("alice", "key_1", 1), None).await.unwrap();
    let records = cluster.sizes();
    assert_eq!(records.iter().filter(|size| **size > 0).count(), 1, "{records:?}");
    assert!(records[cluster.place(RECORDS)] > 0, "{records:?}");
    let blobs = blobs_everywhere(&store, &cluster, 2).await;
    for (_, digest) in &blobs {
        assert!(other.get_blob(*digest).await.unwrap().is_some());
    }
    assert_eq!(other.blobs().await.unwrap().len(), blobs.len());
    let plan = crate::lease::plan(&[(100, "1d", None)], OVERSHOOT_PERCENT);
    for n in 0..20 {
        for (store, granted) in [(&store, 60), (&other, 40)] {
            let ask = crate::lease::call(60, 0).arguments(&plan, 2);
            let answer = store.buckets().unwrap().lease(&format!("o/owner{n}/pro"), ask).await.unwrap();
            assert_eq!(Reply::parse(&answer, &plan).unwrap().grant, granted);
        }
    }
    assert!(cluster.sizes().iter().all(|size| *size > 4), "{:?}", cluster.sizes());
    for (_, digest) in &blobs {
        assert!(other.delete_blob(*digest).await.unwrap());
        assert_eq!(store.get_blob(*digest).await.unwrap(), None);
    }
    assert!(store.advice().await.is_empty());
    cluster.primaries[2].cli(&["config", "set", "maxmemory-policy", "allkeys-lru"]);
    assert!(store.advice().await.join(" ").contains("noeviction"), "one of them is enough");
}

/// What is given back twice would be spent twice.
#[tokio::test]
async fn a_lease_whose_answer_was_lost_is_not_asked_for_again() {
    let mut redis = Redis::start_cluster();
    let wire = Wire::to(&redis);
    redis.restart_with("--cluster-announce-port", wire.url.rsplit(':').next().unwrap());
    let store = RedisStore::open(settings(&Server::Cluster(vec![wire.url.clone()]), "test")).unwrap();
    let buckets = store.buckets().unwrap();
    let plan = crate::lease::plan(&[(100, "1d", None)], OVERSHOOT_PERCENT);
    let ask = async |need| buckets.lease("o/alice/pro", crate::lease::call(need, 0).arguments(&plan, 2)).await;
    let granted = |answer: Vec<i64>| Reply::parse(&answer, &plan).unwrap().grant;
    assert_eq!(granted(ask(10).await.unwrap()), 10);
    wire.cuts.store(1, Ordering::SeqCst);
    let lost = ask(20).await;
    assert!(matches!(lost, Err(StoreError::Unavailable(_))), "{lost:?}");
    assert_eq!(wire.cuts.load(Ordering::SeqCst), 0, "no answer was lost");
    assert_eq!(granted(ask(100).await.unwrap()), 70, "it was done once");
    // Records' commits may be sent again, and are done once.
    wire.cuts.store(1, Ordering::SeqCst);
    store.append_audit(&entry("x")).await.unwrap();
    assert_eq!(wire.cuts.load(Ordering::SeqCst), 0, "no answer was lost");
    assert_eq!(store.audit(9).await.unwrap().len(), 1);
}

/// What it is told of, as far as tests ask.
#[derive(Default)]
struct Told {
    is_told: AtomicBool,
    key: AtomicBool,
}

impl Changes for Told {
    fn key(&self, _: &KeyHash) {
        self.key.store(true, Ordering::SeqCst);
    }

    fn records(&self) {}

    fn lost(&self) {
        self.is_told.store(false, Ordering::SeqCst);
    }

    fn restored(&self) {
        self.is_told.store(true, Ordering::SeqCst);
    }
}

/// That changes of a key by another gateway are told of, now or as soon as the link leads to where the records are.
async fn check_told(told: &Told, other: &RedisStore, n: u64) {
    let id = format!("key_{n}");
    once_there("a key is written", async || {
        match other.put_key(hash(n), &key("alice", &id, 1), None).await {
            // Done, when its answer was lost.
            Err(StoreError::Conflict(_)) => Ok(()),
            put => put,
        }
    })
    .await;
    for second in 1.. {
        assert!(second < DEADLINE.as_secs() as i64, "it is told of nothing");
        told.key.store(false, Ordering::SeqCst);
        let changed = ApiKey { expires_at: Some(at(1_000 + second)), ..key("alice", &id, 1) };
        once_there("it is changed", async || other.update_key(&changed).await).await;
        if poll_async(Duration::from_secs(1), || told.key.load(Ordering::SeqCst)).await {
            return;
        }
    }
}

#[tokio::test]
async fn a_replica_takes_the_records_over_and_gives_them_back() {
    let mut cluster = Cluster::start_with_replicas();
    let quick = || RedisSettings { response: Duration::from_secs(3), ..on(&cluster) };
    let (store, other) = (RedisStore::open(quick()).unwrap(), RedisStore::open(quick()).unwrap());
    let told = Arc::new(Told::default());
    store.follow(told.clone());
    check_told(&told, &other, 1).await;
    let home = cluster.place(RECORDS);
    // It has all that is written so far.
    assert_eq!(cluster.primaries[home].cli(&["wait", "1", "20000"]).trim(), "1");
    cluster.primaries[home].kill();
    let away = store.key_by_hash(&hash(1)).await;
    assert!(matches!(away, Err(StoreError::Unavailable(_))), "{away:?}");
    eventually_async("nobody tells of changes", || !told.is_told.load(Ordering::SeqCst)).await;
    cluster.promote(home);
    let found = once_there("another one has them", async || store.key_by_hash(&hash(1)).await).await;
    assert_eq!(found.unwrap().id, "key_1".into());
    check_told(&told, &other, 2).await;
    // What was the primary comes back as the replica, and then takes its place again.
    cluster.primaries[home].restart();
    let is_in_step = |node: &Redis| node.cli(&["info", "replication"]).contains("master_link_status:up");
    eventually("it follows", || is_in_step(&cluster.primaries[home]));
    check_told(&told, &other, 3).await;
    cluster.primaries[home].cli(&["cluster", "failover"]);
    eventually("it has its slots again", || is_in_step(&cluster.replicas[home]));
    for n in 1..=3 {
        assert!(once_there("it is there", async || store.key_by_hash(&hash(n)).await).await.is_some(), "{n}");
    }
    check_told(&told, &other, 4).await;
    assert_eq!(store.keys(None).await.unwrap().len(), 4);
}

/// Killed, and then silent: what is elsewhere goes on without a failure.
#[tokio::test]
async fn a_node_without_records_takes_none_along() {
    let mut cluster = Cluster::start();
    let settings = RedisSettings { response: Duration::from_secs(2), connect: Duration::from_secs(6), ..on(&cluster) };
    let store = RedisStore::open(settings.clone()).unwrap();
    store.put_key(hash(1), &key("alice", "key_1", 1), None).await.unwrap();
    let blobs = blobs_everywhere(&store, &cluster, 1).await;
    let home = cluster.place(RECORDS);
    let gone = (home + 1) % 3;
    for node in &cluster.primaries {
        node.cli(&["config", "set", "cluster-require-full-coverage", "no"]);
    }
    let on = |place| blobs.iter().find(|(at, _)| *at == place).unwrap().1;
    for kill in [true, false] {
        if kill {
            cluster.primaries[gone].kill()
        } else {
            cluster.primaries[gone].freeze()
        }
        for n in 0..4 {
            let missed = store.get_blob(on(gone)).await;
            assert!(matches!(missed, Err(StoreError::Unavailable(_))), "{missed:?}");
            assert!(store.is_up());
            assert!(store.key_by_hash(&hash(1)).await.unwrap().is_some());
            store.append_audit(&entry(n.to_string())).await.unwrap();
            assert!(store.get_blob(on(home)).await.unwrap().is_some());
        }
        // One that starts now as well.
        let fresh = RedisStore::open(settings.clone()).unwrap();
        assert!(fresh.key_by_hash(&hash(1)).await.unwrap().is_some());
        if kill {
            cluster.primaries[gone].restart()
        } else {
            cluster.primaries[gone].thaw()
        }
        for store in [&store, &fresh] {
            assert!(once_there("it is back", async || store.get_blob(on(gone)).await).await.is_some());
        }
    }
}

/// A slot on its way is on two nodes: what is there is found, and what can't be written now can be afterwards.
#[tokio::test]
async fn records_and_blobs_move_to_another_node() {
    let cluster = Cluster::start();
    let (store, other) = (RedisStore::open(on(&cluster)).unwrap(), RedisStore::open(on(&cluster)).unwrap());
    let told = Arc::new(Told::default());
    store.follow(told.clone());
    check_told(&told, &other, 0).await;
    for n in 1..20 {
        store.put_key(hash(n), &key("alice", &format!("key_{n}"), 1), None).await.unwrap();
    }
    let (_, blob) = blobs_everywhere(&store, &cluster, 1).await[0];
    for (tag, from) in [("{r}".to_owned(), RECORDS.to_owned()), (format!("{{{}}}", blob.hex()), blob.hex())] {
        let from = cluster.place(&from);
        let (from, to) = (&cluster.primaries[from], &cluster.primaries[(from + 1) % 3]);
        let slot = from.cli(&["cluster", "keyslot", &tag]);
        let (slot, ids) = (slot.trim(), [from, to].map(|node| node.cli(&["cluster", "myid"]).trim().to_owned()));
        let ok = |node: &Redis, words: &[&str]| assert_eq!(node.cli(words).trim(), "OK", "{words:?}");
        ok(to, &["cluster", "setslot", slot, "importing", &ids[0]]);
        ok(from, &["cluster", "setslot", slot, "migrating", &ids[1]]);
        let all = from.cli(&["cluster", "getkeysinslot", slot, "1000"]);
        let all: Vec<_> = all.lines().collect();
        let (first, rest) = all.split_at(all.len() / 2);
        let find_all = async || {
            for n in 0..20 {
                for store in [&store, &other] {
                    assert!(store.key_by_hash(&hash(n)).await.unwrap().is_some(), "{n}");
                }
            }
            assert_eq!(store.keys(None).await.unwrap().len(), 20);
            assert_eq!(store.key_by_hash(&hash(99)).await.unwrap(), None);
            assert!(store.get_blob(blob).await.unwrap().is_some());
        };
        let move_keys = |keys: &[&str]| {
            let words = ["migrate", "127.0.0.1", &to.port(), "", "0", "20000", "keys"].map(str::to_owned);
            let words: Vec<_> = words.iter().map(String::as_str).chain(keys.iter().copied()).collect();
            ok(from, &words);
        };
        find_all().await;
        move_keys(first);
        find_all().await;
        if tag == "{r}" {
            let halfway = store.append_audit(&entry("halfway")).await;
            assert!(matches!(&halfway, Err(StoreError::Unavailable(why)) if why.contains("moves")), "{halfway:?}");
        }
        move_keys(rest);
        find_all().await;
        for node in [to, from] {
            ok(node, &["cluster", "setslot", slot, "node", &ids[1]]);
        }
        find_all().await;
        store.append_audit(&entry("moved")).await.unwrap();
    }
    check_told(&told, &other, 30).await;
    assert_eq!(store.audit(9).await.unwrap().len(), 2);
}
