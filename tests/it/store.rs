//! The store: one table of what the trait promises, for both stores, and what each does in faults of its own.

mod cluster;
pub mod copy;
mod forgery;
mod redis;

use std::future::Future;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::pin::Pin;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use wasmgate::domain::{
    Abi, ApiKey, Digest, KeyHash, KeyId, LimitsChange, ModuleShape, ModuleVersion, Name, Scope, Tier, Timestamp,
    TokenId, UsageDelta, UsageRecord,
};
use wasmgate::limit::lease::terms::OVERSHOOT_PERCENT;
use wasmgate::limit::lease::wire::Reply;
use wasmgate::store::embedded::EmbeddedStore;
use wasmgate::store::{
    AdminToken, AuditEntry, Batch, Counter, KvIncr, KvSet, MAX_KV_BYTES, MAX_KV_ENTRIES, NewRoutes, NewVersion, NoRoom,
    ROUTES_KEPT, Retention, Role, Rotation, Store, StoreError, Stored,
};

use crate::support::redis::Redis;
use copy::{
    what_is_pruned_meanwhile_doubles_nothing, what_was_imported_goes_on_as_before,
    what_was_written_is_exported_as_it_is,
};

pub fn name(text: &str) -> Name {
    text.parse().unwrap()
}

pub fn at(seconds: i64) -> Timestamp {
    Timestamp::from_unix_millis(seconds * 1000).unwrap()
}

fn hash(n: u64) -> KeyHash {
    let mut bytes = [7; 32];
    bytes[..8].copy_from_slice(&n.to_be_bytes());
    KeyHash(bytes)
}

fn key(owner: &str, id: &str, created: i64) -> ApiKey {
    ApiKey {
        id: id.into(),
        owner: name(owner),
        tier: name("free"),
        scopes: [Scope::Proxy, Scope::Execute].into_iter().collect(),
        label: "a label".into(),
        pepper: 1,
        created_at: at(created),
        expires_at: None,
        revoked_at: None,
        rotated_to: None,
    }
}

fn version(owner: &str, module: &str, bytes: &str) -> NewVersion {
    NewVersion {
        owner: name(owner),
        name: name(module),
        description: None,
        public: None,
        limits: None,
        version: ModuleVersion {
            version: 0,
            digest: Digest::of(bytes.as_bytes()),
            abi: Abi::Command,
            size_bytes: bytes.len() as u64,
            uploaded_at: at(1),
            shape: ModuleShape::default(),
            assets: None,
        },
        activate: false,
    }
}

/// A tier with room for so much.
fn room(modules: u32, bytes: u64) -> Option<Arc<Tier>> {
    Some(Arc::new(Tier { modules, module_storage_bytes: bytes, ..Tier::defaults().remove(1) }))
}

fn entry(subject: impl Into<String>) -> AuditEntry {
    AuditEntry {
        at: at(1),
        actor: "system".into(),
        action: "test".into(),
        subject: subject.into(),
        detail: String::new(),
    }
}

/// All at once, on the runtime's threads.
async fn together<T: Send + 'static>(
    tasks: impl IntoIterator<Item = impl Future<Output = T> + Send + 'static>,
) -> Vec<T> {
    let tasks: Vec<_> = tasks.into_iter().map(tokio::spawn).collect();
    let mut done = Vec::new();
    for task in tasks {
        done.push(task.await.unwrap());
    }
    done
}

// ---- the table ----

type Shared = Arc<dyn Store>;
type Case = (&'static str, fn(Shared) -> Pin<Box<dyn Future<Output = ()>>>);

macro_rules! cases {
    ($($case:ident),* $(,)?) => { &[$((stringify!($case), |store| Box::pin($case(store)))),*] };
}

/// What every store does; each case gets a fresh one.
const CASES: &[Case] = cases![
    keys_are_found_by_hash_and_by_id,
    an_id_or_hash_is_taken_once,
    keys_are_listed_oldest_first_by_owner,
    the_cap_counts_live_keys,
    the_cap_holds_for_writes_at_once,
    a_revoked_key_stays_revoked,
    a_key_keeps_its_owner_and_pepper,
    rotation_changes_both_keys_or_none,
    rotation_of_one_key_at_once_has_one_winner,
    rotation_has_a_cap_of_its_own,
    tiers_are_replaced_by_name,
    versions_are_numbered_in_order,
    the_same_bytes_are_the_same_version,
    versions_at_once_get_different_numbers,
    the_module_caps_hold_for_writes_at_once,
    activation_needs_the_version,
    limits_are_replaced_and_kept,
    modules_are_listed_in_pages,
    a_deleted_module_is_gone,
    a_deleted_version_gives_its_number_to_no_other,
    a_deleted_modules_numbers_stay_taken_among_any_number_of_names,
    executions_add_up,
    usage_rows_merge,
    tokens_are_revoked_for_good,
    the_audit_log_is_newest_first_and_whole,
    old_lines_and_rows_are_pruned_in_batches,
    a_tier_is_reset_by_name,
    limits_are_counted_here_or_shared,
    values_are_found_by_owner_and_key,
    values_change_only_under_their_number,
    numbers_add_up,
    values_expire,
    values_are_bounded_by_owner,
    routes_are_versions_of_which_the_newest_are_kept,
    pushes_at_once_have_one_winner,
    what_was_written_is_exported_as_it_is,
    what_was_imported_goes_on_as_before,
    what_is_pruned_meanwhile_doubles_nothing,
];

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_embedded_store_does_what_the_trait_says() {
    for (case, run) in CASES {
        println!("case {case}");
        let dir = tempfile::tempdir().unwrap();
        run(Arc::new(EmbeddedStore::open(&dir.path().join("store.redb")).unwrap())).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_redis_store_does_what_the_trait_says() {
    let server = Redis::start();
    redis::run_table(CASES, &redis::server(&server)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_redis_store_does_so_in_a_cluster() {
    let server = Redis::start_cluster();
    redis::run_table(CASES, &redis::server(&server)).await;
}

fn routes(text: impl Into<String>) -> NewRoutes {
    NewRoutes { text: text.into(), at: at(1), by: "ops".into(), again: None, above: 0 }
}

async fn routes_are_versions_of_which_the_newest_are_kept(store: Shared) {
    assert!(store.routes_versions().await.unwrap().is_empty());
    assert_eq!(store.routes_text(0).await.unwrap(), None);
    let kept = ROUTES_KEPT as u64;
    for n in 1..=kept + 2 {
        let pushed =
            store.push_routes(NewRoutes { again: Some(n), ..routes(format!("text {n}")) }, n - 1).await.unwrap();
        assert_eq!((pushed.version, pushed.again, pushed.bytes), (n, Some(n), format!("text {n}").len() as u64));
        assert_eq!(pushed.digest, Digest::of(format!("text {n}").as_bytes()));
        assert_eq!((pushed.at, pushed.by.as_str()), (at(1), "ops"));
        assert_eq!(store.routes_versions().await.unwrap()[0], pushed);
    }
    let versions: Vec<_> = store.routes_versions().await.unwrap().iter().map(|v| v.version).collect();
    assert_eq!(versions, (3..=kept + 2).rev().collect::<Vec<_>>());
    for n in [1, 2, kept + 3] {
        assert_eq!(store.routes_text(n).await.unwrap(), None, "{n}");
    }
    assert_eq!(store.routes_text(3).await.unwrap().as_deref(), Some("text 3"));
    for expect in [0, kept + 1, kept + 3] {
        let late = store.push_routes(routes("late"), expect).await;
        assert!(matches!(late, Err(StoreError::Conflict(_))), "{late:?}");
    }
    // A number that was seen in use does not come again, whatever is kept.
    let above = NewRoutes { above: 1_000, ..routes("above") };
    assert_eq!(store.push_routes(above, kept + 2).await.unwrap().version, 1_001);
    let large = "x".repeat(4 << 20);
    assert_eq!(store.push_routes(routes(large.clone()), 1_001).await.unwrap().version, 1_002);
    assert_eq!(store.routes_text(1_002).await.unwrap(), Some(large));
}

async fn pushes_at_once_have_one_winner(store: Shared) {
    let pushed = together((0..8).map(|n| {
        let store = store.clone();
        async move { store.push_routes(routes(n.to_string()), 0).await }
    }))
    .await;
    assert_eq!(pushed.iter().filter(|pushed| pushed.is_ok()).count(), 1, "{pushed:?}");
    assert!(pushed.iter().flatten().all(|version| version.version == 1), "{pushed:?}");
    assert_eq!(store.routes_versions().await.unwrap().len(), 1);
}

async fn keys_are_found_by_hash_and_by_id(store: Shared) {
    let stored = key("alice", "key_1", 10);
    store.put_key(hash(1), &stored, None).await.unwrap();
    assert_eq!(store.key_by_hash(&hash(1)).await.unwrap(), Some(stored.clone()));
    assert_eq!(store.key(&"key_1".into()).await.unwrap(), Some((hash(1), stored)));
    assert_eq!(store.key_by_hash(&hash(2)).await.unwrap(), None);
    assert_eq!(store.key(&"key_2".into()).await.unwrap(), None);
}

async fn an_id_or_hash_is_taken_once(store: Shared) {
    store.put_key(hash(1), &key("alice", "key_1", 1), None).await.unwrap();
    for (h, id) in [(1, "key_2"), (2, "key_1")] {
        let again = store.put_key(hash(h), &key("mallory", id, 1), None).await;
        assert!(matches!(again, Err(StoreError::Conflict(_))), "{again:?}");
    }
    assert_eq!(store.key_by_hash(&hash(1)).await.unwrap().unwrap().owner, name("alice"));
    assert_eq!(store.keys(None).await.unwrap().len(), 1);
}

async fn keys_are_listed_oldest_first_by_owner(store: Shared) {
    for (n, (owner, created)) in [("ab", 3), ("a", 9), ("a", 2), ("a-b", 1), ("a", 5)].into_iter().enumerate() {
        store.put_key(hash(n as u64), &key(owner, &format!("key_{n}"), created), None).await.unwrap();
    }
    let ids = |keys: Vec<ApiKey>| keys.into_iter().map(|k| k.id.to_string()).collect::<Vec<_>>();
    assert_eq!(ids(store.keys(Some(&name("a"))).await.unwrap()), ["key_2", "key_4", "key_1"]);
    assert_eq!(ids(store.keys(None).await.unwrap()), ["key_3", "key_2", "key_0", "key_4", "key_1"]);
    assert!(store.keys(Some(&name("nobody"))).await.unwrap().is_empty());
}

async fn the_cap_counts_live_keys(store: Shared) {
    let mut expired = key("alice", "key_1", 1);
    expired.expires_at = Some(at(5));
    let mut revoked = key("alice", "key_2", 1);
    revoked.revoked_at = Some(at(2));
    store.put_key(hash(1), &expired, Some(2)).await.unwrap();
    store.put_key(hash(2), &revoked, Some(2)).await.unwrap();
    store.put_key(hash(3), &key("alice", "key_3", 10), Some(2)).await.unwrap();
    store.put_key(hash(4), &key("alice", "key_4", 10), Some(2)).await.unwrap();
    let over = store.put_key(hash(5), &key("alice", "key_5", 10), Some(2)).await;
    assert!(matches!(over, Err(StoreError::Limit(_))), "{over:?}");
    assert_eq!(store.key(&"key_5".into()).await.unwrap(), None);
    store.put_key(hash(6), &key("bob", "key_6", 10), Some(2)).await.unwrap();
}

async fn the_cap_holds_for_writes_at_once(store: Shared) {
    let puts = (0..32).map(|n| {
        let store = store.clone();
        async move { store.put_key(hash(n), &key("alice", &format!("key_{n}"), 1), Some(5)).await }
    });
    let done = together(puts).await;
    assert_eq!(done.iter().filter(|d| d.is_ok()).count(), 5);
    assert!(done.iter().all(|d| matches!(d, Ok(()) | Err(StoreError::Limit(_)))), "{done:?}");
    assert_eq!(store.keys(Some(&name("alice"))).await.unwrap().len(), 5);
}

async fn a_revoked_key_stays_revoked(store: Shared) {
    let live = key("alice", "key_1", 1);
    store.put_key(hash(1), &live, None).await.unwrap();
    let revoked = ApiKey { revoked_at: Some(at(4)), ..live.clone() };
    assert_eq!(store.update_key(&revoked).await.unwrap(), hash(1));
    let back = store.update_key(&live).await;
    assert!(matches!(back, Err(StoreError::Conflict(_))), "{back:?}");
    // A tombstone, not a gap.
    assert_eq!(store.key_by_hash(&hash(1)).await.unwrap(), Some(revoked));
    let missing = store.update_key(&key("alice", "key_9", 1)).await;
    assert!(matches!(missing, Err(StoreError::NotFound(_))), "{missing:?}");
}

async fn a_key_keeps_its_owner_and_pepper(store: Shared) {
    let mine = key("alice", "key_1", 1);
    store.put_key(hash(1), &mine, None).await.unwrap();
    for other in [ApiKey { owner: name("mallory"), ..mine.clone() }, ApiKey { pepper: 2, ..mine.clone() }] {
        assert!(matches!(store.update_key(&other).await, Err(StoreError::Conflict(_))));
    }
    assert_eq!(store.key(&"key_1".into()).await.unwrap(), Some((hash(1), mine)));
}

fn rotation(old: &str, new: u64, now: i64, max_live: u32) -> Rotation {
    Rotation {
        old: old.into(),
        new_hash: hash(new),
        new: key("alice", &format!("key_{new}"), now),
        old_expires_at: at(now + 100),
        max_live: Some(max_live),
    }
}

async fn rotation_changes_both_keys_or_none(store: Shared) {
    store.put_key(hash(1), &key("alice", "key_1", 1), None).await.unwrap();
    store.put_key(hash(7), &key("alice", "key_7", 1), None).await.unwrap();
    let (old_hash, old) = store.rotate_key(rotation("key_1", 2, 10, 5)).await.unwrap();
    assert_eq!((old_hash, old.rotated_to.clone(), old.expires_at), (hash(1), Some("key_2".into()), Some(at(110))));
    assert_eq!(store.key_by_hash(&hash(1)).await.unwrap(), Some(old));
    assert_eq!(store.key_by_hash(&hash(2)).await.unwrap().unwrap().id, "key_2".into());
    // Rotated already; the new id exists; missing; revoked.
    for refused in [rotation("key_1", 3, 11, 5), rotation("key_2", 7, 11, 5)] {
        let refused = store.rotate_key(refused).await;
        assert!(matches!(refused, Err(StoreError::Conflict(_))), "{refused:?}");
    }
    assert!(matches!(store.rotate_key(rotation("key_8", 9, 11, 5)).await, Err(StoreError::NotFound(_))));
    store.update_key(&ApiKey { revoked_at: Some(at(11)), ..key("alice", "key_7", 1) }).await.unwrap();
    assert!(matches!(store.rotate_key(rotation("key_7", 9, 12, 5)).await, Err(StoreError::Conflict(_))));
    assert_eq!(store.key(&"key_3".into()).await.unwrap(), None);
    assert_eq!(store.key_by_hash(&hash(2)).await.unwrap().unwrap().rotated_to, None);
    // An expiry before the end of the grace period stays.
    let short = ApiKey { expires_at: Some(at(50)), ..key("alice", "key_4", 1) };
    store.put_key(hash(4), &short, None).await.unwrap();
    assert_eq!(store.rotate_key(rotation("key_4", 5, 10, 5)).await.unwrap().1.expires_at, Some(at(50)));
}

async fn rotation_of_one_key_at_once_has_one_winner(store: Shared) {
    store.put_key(hash(1), &key("alice", "key_1", 1), None).await.unwrap();
    let rotations = (10..26).map(|n| {
        let store = store.clone();
        async move { store.rotate_key(rotation("key_1", n, 10, 100)).await.is_ok() }
    });
    assert_eq!(together(rotations).await.into_iter().filter(|won| *won).count(), 1);
    assert_eq!(store.keys(None).await.unwrap().len(), 2);
}

async fn rotation_has_a_cap_of_its_own(store: Shared) {
    store.put_key(hash(1), &key("alice", "key_1", 1), Some(1)).await.unwrap();
    store.rotate_key(rotation("key_1", 2, 10, 2)).await.unwrap();
    // The one in its grace period does not stand in the way of a new key, and a chain of them ends.
    store.rotate_key(rotation("key_2", 3, 10, 2)).await.unwrap();
    let chain = store.rotate_key(rotation("key_3", 4, 10, 2)).await;
    assert!(matches!(chain, Err(StoreError::Limit(_))), "{chain:?}");
    store.rotate_key(rotation("key_3", 4, 200, 2)).await.unwrap();
    let over = store.put_key(hash(5), &key("alice", "key_5", 200), Some(1)).await;
    assert!(matches!(over, Err(StoreError::Limit(_))), "{over:?}");
}

async fn tiers_are_replaced_by_name(store: Shared) {
    let mut tier = Tier::defaults().remove(1);
    store.put_tier(&tier).await.unwrap();
    tier.concurrent = 99;
    store.put_tier(&tier).await.unwrap();
    assert_eq!(store.tiers().await.unwrap(), [tier]);
}

async fn versions_are_numbered_in_order(store: Shared) {
    let (module, number, added) = store.add_version(version("alice", "m", "one"), None).await.unwrap();
    assert_eq!((number, added, module.active), (1, true, 1));
    let (module, number, _) = store.add_version(version("alice", "m", "two"), None).await.unwrap();
    assert_eq!((number, module.active), (2, 1));
    let new = NewVersion { activate: true, description: Some("text".into()), ..version("alice", "m", "three") };
    let (module, number, _) = store.add_version(new, None).await.unwrap();
    assert_eq!((number, module.active, module.description.as_str()), (3, 3, "text"));
    assert_eq!(module.versions.iter().map(|v| v.version).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(module.versions[1].digest, Digest::of(b"two"));
    assert_eq!(store.module(&name("alice"), &name("m")).await.unwrap().as_ref(), Some(&module));
    assert_eq!(store.module_by_id(&module.id).await.unwrap(), Some(module));
    assert_eq!(store.module(&name("bob"), &name("m")).await.unwrap(), None);
    assert_eq!(store.module_by_id("mod_0").await.unwrap(), None);
}

async fn the_same_bytes_are_the_same_version(store: Shared) {
    store.add_version(version("alice", "m", "one"), None).await.unwrap();
    store.add_version(version("alice", "m", "two"), None).await.unwrap();
    let again = NewVersion { public: Some(true), ..version("alice", "m", "one") };
    let (module, number, added) = store.add_version(again, room(1, 1_000)).await.unwrap();
    assert_eq!((number, added, module.versions.len(), module.public), (1, false, 2, true));
    let activate = NewVersion { activate: true, ..version("alice", "m", "two") };
    let (module, number, added) = store.add_version(activate, None).await.unwrap();
    assert_eq!((number, added, module.active, module.public), (2, false, 2, true));
}

async fn versions_at_once_get_different_numbers(store: Shared) {
    let adds = (0..32).map(|n| {
        let store = store.clone();
        // Every second one has bytes that another has as well.
        let bytes = if n % 2 == 0 { "same".to_owned() } else { format!("own {n}") };
        async move { store.add_version(version("alice", "m", &bytes), None).await.unwrap() }
    });
    let done = together(adds).await;
    let mut fresh: Vec<u32> = done.iter().filter(|(.., added)| *added).map(|(_, n, _)| *n).collect();
    fresh.sort_unstable();
    assert_eq!(fresh, (1..=17).collect::<Vec<_>>());
    let module = store.module(&name("alice"), &name("m")).await.unwrap().unwrap();
    assert_eq!(module.versions.len(), 17);
    assert!(done.iter().all(|(m, ..)| m.id == module.id));
}

async fn the_module_caps_hold_for_writes_at_once(store: Shared) {
    let adds = (0..16).map(|n| {
        let store = store.clone();
        async move { store.add_version(version("alice", &format!("m{n}"), "x"), room(3, 16)).await }
    });
    let done = together(adds).await;
    assert_eq!(done.iter().filter(|d| d.is_ok()).count(), 3);
    assert!(done.iter().all(|d| matches!(d, Ok(_) | Err(StoreError::NoRoom(NoRoom::Modules { .. })))));
    assert_eq!(store.modules(None, false, 0, 100).await.unwrap().total, 3);
    assert_eq!(store.stored(&name("alice")).await.unwrap(), Stored { modules: 3, bytes: 3 });
    // A further version of a module that is there is no further module; neighbours don't count.
    let there = store.modules(None, false, 0, 1).await.unwrap().items.remove(0);
    store.add_version(version("alice-2", "m", "y"), room(3, 1)).await.unwrap();
    let adds = (0..16).map(|n| {
        let (store, there) = (store.clone(), there.name.clone());
        async move { store.add_version(version("alice", there.as_str(), &format!("{n:04}")), room(3, 14)).await }
    });
    let done = together(adds).await;
    assert_eq!(done.iter().filter(|d| d.is_ok()).count(), 2);
    assert!(done.iter().all(|d| matches!(d, Ok(_) | Err(StoreError::NoRoom(NoRoom::Bytes { .. })))));
    assert_eq!(store.stored(&name("alice")).await.unwrap(), Stored { modules: 3, bytes: 11 });
    // What is there needs no room; what goes makes some.
    store.add_version(version("alice", there.name.as_str(), "x"), room(0, 0)).await.unwrap();
    store.delete_version(&name("alice"), &there.name, 2).await.unwrap();
    assert_eq!(store.stored(&name("alice")).await.unwrap(), Stored { modules: 3, bytes: 7 });
    store.delete_module(&name("alice"), &there.name).await.unwrap();
    assert_eq!(store.stored(&name("alice")).await.unwrap(), Stored { modules: 2, bytes: 2 });
    assert_eq!(store.stored(&name("alice-2")).await.unwrap(), Stored { modules: 1, bytes: 1 });
    assert_eq!(store.stored(&name("bob")).await.unwrap(), Stored::default());
}

async fn activation_needs_the_version(store: Shared) {
    store.add_version(version("alice", "m", "one"), None).await.unwrap();
    store.add_version(version("alice", "m", "two"), None).await.unwrap();
    assert_eq!(store.activate(&name("alice"), &name("m"), 2).await.unwrap().active, 2);
    assert_eq!(store.activate(&name("alice"), &name("m"), 1).await.unwrap().active, 1);
    for (owner, v) in [("alice", 3), ("alice", 0), ("bob", 1)] {
        let refused = store.activate(&name(owner), &name("m"), v).await;
        assert!(matches!(refused, Err(StoreError::NotFound(_))), "{refused:?}");
    }
    assert_eq!(store.module(&name("alice"), &name("m")).await.unwrap().unwrap().active, 1);
}

async fn limits_are_replaced_and_kept(store: Shared) {
    let limits = |fuel| LimitsChange { fuel: Some(fuel), ..LimitsChange::default() };
    let (alice, m) = (name("alice"), name("m"));
    assert!(matches!(store.set_limits(&alice, &m, &limits(1)).await, Err(StoreError::NotFound(_))));
    let (module, ..) = store.add_version(version("alice", "m", "one"), None).await.unwrap();
    assert!(module.limits.is_empty());
    let wall = LimitsChange { wall_ms: Some(5), ..LimitsChange::default() };
    assert_eq!(store.set_limits(&alice, &m, &wall).await.unwrap().limits, wall);
    assert_eq!(store.set_limits(&alice, &m, &limits(2)).await.unwrap().limits, limits(2));
    // A version that says nothing of limits leaves them; one that does replaces them, also when its bytes are known.
    let (module, ..) = store.add_version(version("alice", "m", "two"), None).await.unwrap();
    assert_eq!((module.limits, module.versions.len()), (limits(2), 2));
    let again = NewVersion { limits: Some(limits(3)), ..version("alice", "m", "two") };
    assert_eq!(store.add_version(again, None).await.unwrap().0.limits, limits(3));
    store.activate(&alice, &m, 2).await.unwrap();
    assert_eq!(store.module(&alice, &m).await.unwrap().unwrap().limits, limits(3));
    assert!(store.set_limits(&alice, &m, &LimitsChange::default()).await.unwrap().limits.is_empty());
}

async fn modules_are_listed_in_pages(store: Shared) {
    for (owner, module, public) in [
        ("carol", "open", true),
        ("bob", "b2", false),
        ("bob", "b1", true),
        ("alice", "hidden", false),
        ("alice", "open", true),
    ] {
        let new = NewVersion { public: Some(public), ..version(owner, module, module) };
        store.add_version(new, None).await.unwrap();
    }
    let list = async |owner: Option<&str>, public, offset, limit| {
        let owner = owner.map(name);
        let page = store.modules(owner.as_ref(), public, offset, limit).await.unwrap();
        (page.items.iter().map(|m| format!("{}/{}", m.owner, m.name)).collect::<Vec<_>>().join(" "), page.total)
    };
    assert_eq!(list(Some("bob"), false, 0, 10).await, ("bob/b1 bob/b2".into(), 2));
    assert_eq!(list(Some("bob"), true, 0, 10).await, ("alice/open bob/b1 bob/b2 carol/open".into(), 4));
    assert_eq!(list(Some("bob"), true, 1, 2).await, ("bob/b1 bob/b2".into(), 4));
    assert_eq!(list(None, false, 0, 2).await, ("alice/hidden alice/open".into(), 5));
    assert_eq!(list(None, true, 4, 10).await, ("carol/open".into(), 5));
    assert_eq!(list(None, true, 9, 10).await, (String::new(), 5));
    assert_eq!(list(Some("dave"), false, 0, 10).await, (String::new(), 0));
    let hide = NewVersion { public: Some(false), ..version("carol", "open", "open") };
    store.add_version(hide, None).await.unwrap();
    assert_eq!(list(Some("bob"), true, 0, 10).await.1, 3);
}

async fn a_deleted_module_is_gone(store: Shared) {
    let new = NewVersion { public: Some(true), ..version("alice", "m", "one") };
    let (module, ..) = store.add_version(new, None).await.unwrap();
    assert_eq!(store.delete_module(&name("alice"), &name("m")).await.unwrap(), module);
    assert_eq!(store.module(&name("alice"), &name("m")).await.unwrap(), None);
    assert_eq!(store.module_by_id(&module.id).await.unwrap(), None);
    assert_eq!(store.modules(Some(&name("bob")), true, 0, 10).await.unwrap().total, 0);
    assert!(matches!(store.delete_module(&name("alice"), &name("m")).await, Err(StoreError::NotFound(_))));
    let (again, number, _) = store.add_version(version("alice", "m", "two"), room(1, 1_000)).await.unwrap();
    assert_eq!((number, again.active, again.versions.len(), again.public), (2, 2, 1, false), "`m@1` was other bytes");
    assert_ne!(again.id, module.id);
}

async fn a_deleted_version_gives_its_number_to_no_other(store: Shared) {
    let (owner, module) = (name("alice"), name("m"));
    for bytes in ["one", "two", "three"] {
        store.add_version(version("alice", "m", bytes), None).await.unwrap();
    }
    let active = store.delete_version(&owner, &module, 1).await;
    assert!(matches!(active, Err(StoreError::Conflict(_))), "{active:?}");
    assert_eq!(store.delete_version(&owner, &module, 3).await.unwrap().digest, Digest::of(b"three"));
    for gone in [3, 9] {
        let missing = store.delete_version(&owner, &module, gone).await;
        assert!(matches!(missing, Err(StoreError::NotFound(_))), "{missing:?}");
    }
    assert!(matches!(store.activate(&owner, &module, 3).await, Err(StoreError::NotFound(_))));
    // A pin to `m@3` must not mean other bytes, nor the same ones by surprise.
    let (_, number, added) = store.add_version(version("alice", "m", "three"), None).await.unwrap();
    assert_eq!((number, added), (4, true));
    let held = store.module(&owner, &module).await.unwrap().unwrap();
    assert_eq!(held.versions.iter().map(|v| v.version).collect::<Vec<_>>(), [1, 2, 4]);
}

async fn a_deleted_modules_numbers_stay_taken_among_any_number_of_names(store: Shared) {
    let owner = name("alice");
    for bytes in ["one", "two", "three"] {
        store.add_version(version("alice", "m", bytes), None).await.unwrap();
    }
    store.delete_module(&owner, &name("m")).await.unwrap();
    store.add_version(version("alice", "kept", "one"), None).await.unwrap();
    // More names than are remembered one by one.
    let (store, owner) = (&store, &owner);
    let churn = (0..1_200).map(|n| async move {
        let (_, number, _) = store.add_version(version("alice", &format!("n{n}"), "x"), None).await.unwrap();
        store.delete_module(owner, &name(&format!("n{n}"))).await.unwrap();
        number
    });
    futures_util::future::join_all(churn).await;
    for (again, at_least) in [("m", 4), ("n0", 2), ("n1199", 2)] {
        let (_, number, _) = store.add_version(version("alice", again, "other"), None).await.unwrap();
        assert!(number >= at_least, "`{again}@{number}` was other bytes");
    }
    store.delete_module(owner, &name("kept")).await.unwrap();
    let (_, number, _) = store.add_version(version("alice", "kept", "other"), None).await.unwrap();
    assert!(number >= 2, "{number}");
    let (_, number, _) = store.add_version(version("bob", "m", "other"), None).await.unwrap();
    assert_eq!(number, 1, "another owner's numbers are its own");
}

async fn executions_add_up(store: Shared) {
    store.add_version(version("alice", "m", "one"), None).await.unwrap();
    let counts = [
        (name("alice"), name("m"), 3, at(100)),
        (name("alice"), name("gone"), 9, at(100)),
        (name("alice"), name("m"), 4, at(50)),
    ];
    store.count_executions(&batch(), &counts).await.unwrap();
    let module = store.module(&name("alice"), &name("m")).await.unwrap().unwrap();
    assert_eq!((module.executions, module.last_executed), (7, Some(at(100))));
}

/// Of a sender of its own.
fn batch() -> Batch {
    Batch::first().unwrap()
}

fn used(requests: u64, error: &str) -> UsageRecord {
    UsageRecord { requests, fuel: requests * 10, errors: [(error.to_owned(), 1)].into(), ..UsageRecord::default() }
}

async fn usage_rows_merge(store: Shared) {
    let delta = |owner: &str, key: &str, day, requests, error: &str| UsageDelta {
        owner: name(owner),
        key: key.into(),
        day,
        add: used(requests, error),
    };
    store
        .add_usage(&batch(), &[delta("alice", "key_1", 5, 1, "busy"), delta("alice", "key_1", 5, 2, "busy")])
        .await
        .unwrap();
    let more = [
        delta("alice", "key_1", 5, 4, "internal"),
        delta("bob", "key_2", 5, 1, "busy"),
        delta("alice", "key_1", 4, 1, "busy"),
        delta("alice", "key_3", 7, 1, "busy"),
    ];
    store.add_usage(&batch(), &more).await.unwrap();
    let rows = store.usage(Some(&name("alice")), 4, 5).await.unwrap();
    assert_eq!(
        rows.iter().map(|r| (r.day, r.key.to_string())).collect::<Vec<_>>(),
        [(4, "key_1".into()), (5, "key_1".into())]
    );
    assert_eq!((rows[1].usage.requests, rows[1].usage.fuel), (7, 70));
    assert_eq!(rows[1].usage.errors, [("busy".to_owned(), 2), ("internal".to_owned(), 1)].into());
    assert_eq!(store.usage(None, 5, 7).await.unwrap().len(), 3);
    assert!(store.usage(None, 8, 9).await.unwrap().is_empty());
}

async fn tokens_are_revoked_for_good(store: Shared) {
    let token = |id: &str, n: &str, created| AdminToken {
        id: id.into(),
        name: name(n),
        role: Role::Operator,
        created_at: at(created),
        revoked_at: None,
    };
    store.put_token(hash(1), &token("tok_1", "ops", 2)).await.unwrap();
    store.put_token(hash(2), &token("tok_2", "ci", 1)).await.unwrap();
    for (h, t) in [(1, token("tok_3", "x", 1)), (3, token("tok_1", "x", 1)), (3, token("tok_3", "ops", 1))] {
        assert!(matches!(store.put_token(hash(h), &t).await, Err(StoreError::Conflict(_))), "{t:?}");
    }
    let names = |tokens: Vec<AdminToken>| tokens.iter().map(|t| t.name.to_string()).collect::<Vec<_>>();
    assert_eq!(names(store.tokens().await.unwrap()), ["ci", "ops"]);
    assert_eq!(store.revoke_token(&"tok_1".into(), at(9)).await.unwrap().revoked_at, Some(at(9)));
    assert_eq!(store.revoke_token(&"tok_1".into(), at(20)).await.unwrap().revoked_at, Some(at(9)));
    assert_eq!(store.token_by_hash(&hash(1)).await.unwrap().unwrap().revoked_at, Some(at(9)));
    assert_eq!(store.token_by_hash(&hash(4)).await.unwrap(), None);
    let missing = store.revoke_token(&TokenId::from("tok_9"), at(9)).await;
    assert!(matches!(missing, Err(StoreError::NotFound(_))), "{missing:?}");
    // The name of a revoked token is free again.
    store.put_token(hash(3), &token("tok_3", "ops", 30)).await.unwrap();
}

async fn the_audit_log_is_newest_first_and_whole(store: Shared) {
    for n in 0..5 {
        store.append_audit(&entry(format!("{n}"))).await.unwrap();
    }
    let newest: Vec<_> = store.audit(3).await.unwrap().into_iter().map(|e| e.subject).collect();
    assert_eq!(newest, ["4", "3", "2"]);
    let appends = (0..50).map(|n| {
        let store = store.clone();
        async move { store.append_audit(&entry(format!("p{n}"))).await.unwrap() }
    });
    together(appends).await;
    let all: std::collections::BTreeSet<_> = store.audit(1000).await.unwrap().into_iter().map(|e| e.subject).collect();
    assert_eq!(all.len(), 55);
}

async fn old_lines_and_rows_are_pruned_in_batches(store: Shared) {
    let line = |n: i64| AuditEntry { at: at(n), ..entry(format!("{n}")) };
    for n in 0..30 {
        store.append_audit(&line(n)).await.unwrap();
    }
    let row = |n: i64| UsageDelta {
        owner: name("alice"),
        key: format!("key_{n}").into(),
        day: n / 100,
        add: UsageRecord { requests: 1, ..UsageRecord::default() },
    };
    // Two batches and a part of one are over.
    store.add_usage(&batch(), &(0..2_500).map(row).collect::<Vec<_>>()).await.unwrap();
    let keep = |audit_from, audit_entries, usage_from_day| Retention {
        audit_from: at(audit_from),
        audit_entries,
        usage_from_day,
        now: at(0),
    };
    assert_eq!(store.prune(keep(0, 100, 0)).await.unwrap(), 0);
    assert_eq!(store.prune(keep(10, 100, 22)).await.unwrap(), 10 + 1_000);
    assert_eq!(store.prune(keep(10, 100, 22)).await.unwrap(), 1_000);
    assert_eq!(store.prune(keep(10, 100, 22)).await.unwrap(), 200);
    assert_eq!(store.prune(keep(10, 100, 22)).await.unwrap(), 0);
    let days: Vec<_> = store.usage(None, 0, 100).await.unwrap().into_iter().map(|r| r.day).collect();
    assert_eq!((days.len(), days[0]), (300, 22));
    let lines = || async { store.audit(1000).await.unwrap().into_iter().map(|e| e.subject).collect::<Vec<_>>() };
    assert_eq!((lines().await.len(), lines().await.pop()), (20, Some("10".into())));
    store.prune(keep(10, 5, 22)).await.unwrap();
    assert_eq!(lines().await, ["29", "28", "27", "26", "25"]);
    // The newest stays, whatever its age, and numbers go on behind it.
    store.prune(keep(1_000, 5, 22)).await.unwrap();
    store.append_audit(&line(30)).await.unwrap();
    assert_eq!(lines().await, ["30", "29"]);
}

async fn a_tier_is_reset_by_name(store: Shared) {
    let tier = Tier::defaults().swap_remove(1);
    store.put_tier(&tier).await.unwrap();
    assert!(store.delete_tier(&tier.name).await.unwrap());
    assert!(!store.delete_tier(&tier.name).await.unwrap());
    assert_eq!(store.tiers().await.unwrap(), []);
}

async fn limits_are_counted_here_or_shared(store: Shared) {
    let Some(buckets) = store.buckets() else { return counters_are_replaced_and_expire(store).await };
    let plan = crate::lease::plan(&[(100, "1s", None)], OVERSHOOT_PERCENT);
    let ask = |need| crate::lease::call(need, 0).arguments(&plan, 2);
    let granted = |numbers: Vec<i64>| Reply::parse(&numbers, &plan).expect("it is an answer").grant;
    assert_eq!(granted(buckets.lease("o/alice/pro", ask(90)).await.unwrap()), 90);
    assert!((10..90).contains(&granted(buckets.lease("o/alice/pro", ask(90)).await.unwrap())), "what is left");
    assert_eq!(granted(buckets.lease("o/bob/pro", ask(90)).await.unwrap()), 90);
    let hour = Duration::from_secs(3600);
    for (node, used, others) in [("one", 5, 0), ("two", 7, 5), ("one", 6, 7), ("one", 6, 7), ("two", 7, 6)] {
        assert_eq!(buckets.add_up("o/alice/1", node, used, hour).await.unwrap(), others, "{node} says {used}");
    }
    assert_eq!(buckets.add_up("o/bob/1", "two", u64::from(u32::MAX), hour).await.unwrap(), 0);
    assert_eq!(buckets.add_up("o/bob/1", "one", 0, hour).await.unwrap(), u64::from(u32::MAX));
    buckets.probe().await.unwrap();
}

async fn counters_are_replaced_and_expire(store: Shared) {
    let counter = |id: &str, window_start, used| Counter { id: id.into(), window_start, used };
    store.save_counters(&[counter("a", 100, 1), counter("b", 200, 5)], 0).await.unwrap();
    store.save_counters(&[counter("a", 200, 2)], 100).await.unwrap();
    assert_eq!(store.load_counters().await.unwrap(), [counter("a", 200, 2), counter("b", 200, 5)]);
    store.save_counters(&[counter("c", 300, 1)], 300).await.unwrap();
    assert_eq!(store.load_counters().await.unwrap(), [counter("c", 300, 1)]);
}

fn kv(value: impl AsRef<[u8]>) -> KvSet {
    KvSet { value: value.as_ref().to_vec(), ..KvSet::default() }
}

async fn value(store: &Shared, owner: &str, key: &[u8], now: i64) -> Option<Vec<u8>> {
    store.kv_get(&name(owner), key, at(now)).await.unwrap().map(|found| found.value)
}

async fn values_are_found_by_owner_and_key(store: Shared) {
    let (alice, bob) = (name("alice"), name("bob"));
    assert_eq!(value(&store, "alice", b"k", 1).await, None);
    store.kv_set(&alice, b"k", kv("of alice"), at(1)).await.unwrap();
    store.kv_set(&bob, b"k", kv(""), at(1)).await.unwrap();
    store.kv_set(&alice, b"\0\xff", kv([0, 255]), at(1)).await.unwrap();
    assert_eq!(value(&store, "alice", b"k", 1).await.unwrap(), b"of alice");
    assert_eq!(value(&store, "bob", b"k", 1).await.unwrap(), b"");
    assert_eq!(value(&store, "alice", b"\0\xff", 1).await.unwrap(), [0, 255]);
    assert!(store.kv_delete(&alice, b"k", at(1)).await.unwrap());
    assert!(!store.kv_delete(&alice, b"k", at(1)).await.unwrap());
    assert_eq!(value(&store, "alice", b"k", 1).await, None);
    assert_eq!(value(&store, "bob", b"k", 1).await.unwrap(), b"");
}

async fn values_change_only_under_their_number(store: Shared) {
    let alice = name("alice");
    let cas = |value: &str, expected| KvSet { expected: Some(expected), ..kv(value) };
    let conflict = |result| matches!(result, Err(StoreError::Conflict(_)));
    assert!(conflict(store.kv_set(&alice, b"k", cas("1", 7), at(1)).await), "there is none");
    let first = store.kv_set(&alice, b"k", cas("1", 0), at(1)).await.unwrap();
    assert!(conflict(store.kv_set(&alice, b"k", cas("2", 0), at(1)).await), "there is one");
    let second = store.kv_set(&alice, b"k", cas("2", first), at(1)).await.unwrap();
    assert!(second > first);
    assert!(conflict(store.kv_set(&alice, b"k", cas("3", first), at(1)).await));
    assert_eq!(store.kv_get(&alice, b"k", at(1)).await.unwrap().unwrap().version, second);
    store.kv_delete(&alice, b"k", at(1)).await.unwrap();
    let third = store.kv_set(&alice, b"k", kv("3"), at(1)).await.unwrap();
    assert!(third > second, "a number never comes again");
    // Of many at once that have seen the same value one wins.
    let at_once = (0..20).map(|_| {
        let (store, alice) = (store.clone(), alice.clone());
        async move { store.kv_set(&alice, b"k", cas("4", third), at(1)).await }
    });
    assert_eq!(together(at_once).await.into_iter().filter(Result::is_ok).count(), 1);
}

async fn numbers_add_up(store: Shared) {
    let alice = name("alice");
    let incr = |by| KvIncr { by, expires_at: None };
    let at_once = (0..50).map(|_| {
        let (store, alice) = (store.clone(), alice.clone());
        async move { store.kv_incr(&alice, b"n", incr(2), at(1)).await.unwrap() }
    });
    let mut seen = together(at_once).await;
    seen.sort_unstable();
    assert_eq!(seen, (1..=50).map(|n| 2 * n).collect::<Vec<_>>());
    assert_eq!(value(&store, "alice", b"n", 1).await.unwrap(), b"100");
    assert_eq!(store.kv_incr(&alice, b"n", incr(-101), at(1)).await.unwrap(), -1);
    store.kv_set(&alice, b"n", kv(i64::MAX.to_string()), at(1)).await.unwrap();
    assert!(matches!(store.kv_incr(&alice, b"n", incr(1), at(1)).await, Err(StoreError::Conflict(_))));
    store.kv_set(&alice, b"n", kv("text"), at(1)).await.unwrap();
    assert!(matches!(store.kv_incr(&alice, b"n", incr(1), at(1)).await, Err(StoreError::Conflict(_))));
    assert_eq!(value(&store, "alice", b"n", 1).await.unwrap(), b"text");
}

async fn values_expire(store: Shared) {
    let alice = name("alice");
    store.kv_set(&alice, b"k", KvSet { expires_at: Some(at(10)), ..kv("1") }, at(1)).await.unwrap();
    assert_eq!(value(&store, "alice", b"k", 9).await.unwrap(), b"1");
    assert_eq!(value(&store, "alice", b"k", 10).await, None);
    let fresh = KvSet { expected: Some(0), ..kv("2") };
    store.kv_set(&alice, b"k", fresh, at(10)).await.unwrap();
    assert_eq!(value(&store, "alice", b"k", 99).await.unwrap(), b"2", "without a time it stays");
    // The first addition sets the time of a counter; further ones leave it.
    let until = |seconds| KvIncr { by: 1, expires_at: Some(at(seconds)) };
    assert_eq!(store.kv_incr(&alice, b"n", until(20), at(11)).await.unwrap(), 1);
    assert_eq!(store.kv_incr(&alice, b"n", until(30), at(12)).await.unwrap(), 2);
    assert_eq!(store.kv_incr(&alice, b"n", until(40), at(20)).await.unwrap(), 1);
    assert!(!store.kv_delete(&alice, b"n", at(50)).await.unwrap());
    for n in 0..1_200u32 {
        store.kv_set(&alice, &n.to_be_bytes(), KvSet { expires_at: Some(at(60)), ..kv("x") }, at(50)).await.unwrap();
    }
    let keep = |now| Retention { audit_from: at(0), audit_entries: 100, usage_from_day: 0, now: at(now) };
    assert_eq!(store.prune(keep(59)).await.unwrap(), 0);
    assert_eq!(store.prune(keep(60)).await.unwrap(), 1_000);
    assert_eq!(store.prune(keep(60)).await.unwrap(), 200);
    assert_eq!(store.prune(keep(60)).await.unwrap(), 0);
    assert_eq!(value(&store, "alice", b"k", 99).await.unwrap(), b"2");
}

async fn values_are_bounded_by_owner(store: Shared) {
    let (alice, bob) = (name("alice"), name("bob"));
    let full = |result| matches!(result, Err(StoreError::Limit(_)));
    let quarter = || kv(vec![1; MAX_KV_BYTES as usize / 4]);
    for key in [b"a", b"b", b"c"] {
        store.kv_set(&alice, key, quarter(), at(1)).await.unwrap();
    }
    assert!(full(store.kv_set(&alice, b"d", quarter(), at(1)).await), "keys count");
    assert_eq!(value(&store, "alice", b"d", 1).await, None);
    store.kv_set(&bob, b"d", quarter(), at(1)).await.unwrap();
    store.kv_set(&alice, b"a", quarter(), at(1)).await.unwrap();
    // What has expired makes room.
    store.kv_set(&alice, b"a", KvSet { expires_at: Some(at(5)), ..quarter() }, at(1)).await.unwrap();
    assert!(full(store.kv_set(&alice, b"d", quarter(), at(4)).await));
    store.kv_set(&alice, b"d", quarter(), at(5)).await.unwrap();
    for key in [b"b", b"c", b"d"] {
        store.kv_delete(&alice, key, at(5)).await.unwrap();
    }
    let many = (0..MAX_KV_ENTRIES as u32).map(|n| {
        let (store, alice) = (store.clone(), alice.clone());
        async move { store.kv_set(&alice, &n.to_be_bytes(), kv(""), at(6)).await.unwrap() }
    });
    together(many).await;
    assert!(full(store.kv_set(&alice, b"k", kv(""), at(6)).await));
    assert!(full(store.kv_incr(&alice, b"k", KvIncr { by: 1, expires_at: None }, at(6)).await.map(|_| 0)));
    store.kv_set(&alice, &0u32.to_be_bytes(), kv("again"), at(6)).await.unwrap();
    store.kv_delete(&alice, &1u32.to_be_bytes(), at(6)).await.unwrap();
    store.kv_set(&alice, b"k", kv(""), at(6)).await.unwrap();
}

// ---- the embedded store's file ----

fn open_error(file: &Path) -> StoreError {
    match EmbeddedStore::open(file) {
        Ok(_) => panic!("`{}` was opened", file.display()),
        Err(e) => e,
    }
}

#[tokio::test]
async fn records_are_there_after_reopening_and_the_file_is_private() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("store.redb");
    for n in 0..3 {
        let store = EmbeddedStore::open(&file).unwrap();
        assert_eq!(store.keys(None).await.unwrap().len(), n);
        store.put_key(hash(n as u64), &key("alice", &format!("key_{n}"), 1), None).await.unwrap();
    }
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn a_file_in_use_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("store.redb");
    let _held = EmbeddedStore::open(&file).unwrap();
    let error = open_error(&file).to_string();
    assert!(error.contains(&file.display().to_string()) && error.contains("another wasmgate"), "{error}");
}

#[test]
fn a_newer_schema_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("store.redb");
    drop(EmbeddedStore::open(&file).unwrap());
    let db = redb::Database::open(&file).unwrap();
    let tx = db.begin_write().unwrap();
    let meta: redb::TableDefinition<&str, u32> = redb::TableDefinition::new("meta");
    tx.open_table(meta).unwrap().insert("schema", 99).unwrap();
    tx.commit().unwrap();
    drop(db);
    assert_eq!(open_error(&file), StoreError::Newer { found: 99, known: 6 });
}

/// As of the release before: no sums, and tiers without a bound of storage.
#[tokio::test]
async fn a_store_of_schema_2_is_taken_up() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("store.redb");
    let tier = Tier::defaults().remove(1);
    let store = EmbeddedStore::open(&file).unwrap();
    for (owner, module, bytes) in
        [("alice", "m", "one"), ("alice", "m", "three"), ("alice", "n", "x"), ("bob", "m", "y")]
    {
        store.add_version(version(owner, module, bytes), None).await.unwrap();
    }
    drop(store);
    let db = redb::Database::open(&file).unwrap();
    let tx = db.begin_write().unwrap();
    tx.open_table(redb::TableDefinition::<&str, u32>::new("meta")).unwrap().insert("schema", 2).unwrap();
    assert!(tx.delete_table(redb::TableDefinition::<&str, u64>::new("module_bytes")).unwrap());
    let mut old = serde_json::to_value(&tier).unwrap();
    assert!(old.as_object_mut().unwrap().remove("module_storage_bytes").is_some());
    let tiers = redb::TableDefinition::<&str, &[u8]>::new("tiers");
    tx.open_table(tiers).unwrap().insert("free", old.to_string().as_bytes()).unwrap();
    tx.commit().unwrap();
    drop(db);
    let store = EmbeddedStore::open(&file).unwrap();
    assert_eq!(store.stored(&name("alice")).await.unwrap(), Stored { modules: 2, bytes: 9 });
    assert_eq!(store.stored(&name("bob")).await.unwrap(), Stored { modules: 1, bytes: 1 });
    assert_eq!(store.tiers().await.unwrap(), [tier]);
}

#[test]
fn what_is_no_store_of_ours_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let text = dir.path().join("notes.txt");
    std::fs::write(&text, "not a database ".repeat(1000)).unwrap();
    let error = open_error(&text);
    assert!(matches!(error, StoreError::Corrupt(_)), "{error:?}");
    assert!(std::fs::read_to_string(&text).unwrap().starts_with("not a database"));

    let foreign = dir.path().join("other.redb");
    let db = redb::Database::create(&foreign).unwrap();
    let tx = db.begin_write().unwrap();
    let table: redb::TableDefinition<&str, u32> = redb::TableDefinition::new("theirs");
    tx.open_table(table).unwrap();
    tx.commit().unwrap();
    drop(db);
    let error = open_error(&foreign);
    assert!(matches!(error, StoreError::Corrupt(_)), "{error:?}");

    let missing = dir.path().join("no/such/dir/store.redb");
    assert!(matches!(open_error(&missing), StoreError::Unavailable(_)));
}

/// Whatever a damaged page holds, the store answers with records as they were or with an error; it never ends the process.
#[tokio::test]
async fn a_damaged_file_gives_errors_and_no_panic() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("store.redb");
    {
        let store = EmbeddedStore::open(&file).unwrap();
        for n in 0..200 {
            store.put_key(hash(n), &key("alice", &format!("key_{n}"), 1), None).await.unwrap();
        }
    }
    let whole = std::fs::read(&file).unwrap();
    let mut seed = 0x2545_f491_4f6c_dd1du64;
    let mut reported = 0;
    for round in 0..150 {
        let mut damaged = whole.clone();
        for _ in 0..20 {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            // Whole pages as well as single bytes, most of them where the data is.
            let at = seed as usize % damaged.len().min(400 << 10);
            let end = (at + if seed.is_multiple_of(3) { 512 } else { 1 }).min(damaged.len());
            damaged[at..end].fill((seed >> 40) as u8);
        }
        let copy = dir.path().join(format!("{round}.redb"));
        std::fs::write(&copy, &damaged).unwrap();
        match EmbeddedStore::open(&copy) {
            Err(_) => reported += 1,
            Ok(store) => {
                let mut bad = store.keys(None).await.is_err();
                for n in 0..200 {
                    bad |= store.key_by_hash(&hash(n)).await.is_err();
                }
                bad |= store.put_key(hash(1000), &key("alice", "key_1000", 1), None).await.is_err();
                reported += usize::from(bad);
            }
        }
        std::fs::remove_file(&copy).unwrap();
    }
    println!("{reported} of 150 reported");
    assert!(reported > 0, "no damage was seen at all");
}

// ---- faults: the test runs itself as a child ----

const CHILD_FILE: &str = "WASMGATE_TEST_STORE_FILE";

fn child_file() -> Option<std::path::PathBuf> {
    std::env::var_os(CHILD_FILE).map(Into::into)
}

/// Acknowledgements as they come, one a line.
fn acknowledge(line: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "ack {line}").and_then(|()| out.flush()).unwrap();
}

fn child(mut command: Command, test: &str, file: &Path) -> Child {
    command
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env(CHILD_FILE, file)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

fn acknowledgements(child: &mut Child) -> impl Iterator<Item = String> + use<> {
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    // The harness prints `test name ... ` before the first line.
    lines.filter_map(|line| line.split_once("ack ").map(|(_, ack)| ack.to_owned()))
}

/// Child mode of [`no_acknowledged_write_is_lost_by_kill_9`]: writes without end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_until_killed() {
    let Some(file) = child_file() else { return };
    let store: Shared = Arc::new(EmbeddedStore::open(&file).unwrap());
    let failed = together((0..4).map(|lane| write_all_kinds(store.clone(), lane, acknowledge))).await;
    panic!("{failed:?}");
}

/// Until a write fails; tells of each that was acknowledged.
async fn write_all_kinds(store: Shared, lane: u32, acknowledge: impl Fn(&str)) -> StoreError {
    let round = async || {
        let id = KeyId::random().unwrap();
        let mut h = [0u8; 32];
        getrandom::fill(&mut h).unwrap();
        let record = ApiKey { id: id.clone(), ..key("alice", "", 1) };
        store.put_key(KeyHash(h), &record, None).await?;
        acknowledge(&format!("key {id}"));
        store.append_audit(&entry(id.as_str())).await?;
        acknowledge(&format!("audit {id}"));
        let (_, n, _) = store.add_version(version("alice", &format!("m{lane}"), id.as_str()), None).await?;
        acknowledge(&format!("version {lane} {n} {id}"));
        store.update_key(&ApiKey { revoked_at: Some(at(9)), ..record }).await?;
        acknowledge(&format!("revoked {id}"));
        Ok(())
    };
    loop {
        if let Err(e) = round().await {
            return e;
        }
    }
}

#[tokio::test]
async fn no_acknowledged_write_is_lost_by_kill_9() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("store.redb");
    let mut acks: Vec<String> = Vec::new();
    for cycle in 0..20 {
        let mut writer = child(Command::new(std::env::current_exe().unwrap()), "store::writes_until_killed", &file);
        let mut lines = acknowledgements(&mut writer);
        let mut byte = [0];
        getrandom::fill(&mut byte).unwrap();
        for _ in 0..=byte[0] % 64 {
            acks.push(lines.next().unwrap_or_else(|| panic!("the child of cycle {cycle} wrote nothing")));
        }
        writer.kill().unwrap();
        // What it had acknowledged before the kill is in the pipe.
        acks.extend(lines);
        writer.wait().unwrap();

        let store = EmbeddedStore::open(&file).unwrap();
        check_acknowledged(&store, &acks).await;
        assert!(!acks.is_empty(), "cycle {cycle}");
    }
}

/// All of it is there, and indexes and records agree.
async fn check_acknowledged(store: &dyn Store, acks: &[String]) {
    let audited: std::collections::HashSet<_> =
        store.audit(u64::MAX).await.unwrap().into_iter().map(|e| e.subject).collect();
    for ack in acks {
        let words: Vec<&str> = ack.split(' ').collect();
        let there = match words.as_slice() {
            ["key", id] => store.key(&(*id).into()).await.unwrap().is_some(),
            ["revoked", id] => store.key(&(*id).into()).await.unwrap().unwrap().1.revoked_at.is_some(),
            ["audit", id] => audited.contains(*id),
            ["version", lane, n, id] => {
                let module = store.module(&name("alice"), &name(&format!("m{lane}"))).await.unwrap().unwrap();
                let n: u32 = n.parse().unwrap();
                module.versions.iter().any(|held| held.version == n && held.digest == Digest::of(id.as_bytes()))
            }
            _ => panic!("{ack}"),
        };
        assert!(there, "`{ack}` was acknowledged and is lost");
    }
    for key in store.keys(None).await.unwrap() {
        let (hash, _) = store.key(&key.id).await.unwrap().unwrap();
        assert_eq!(store.key_by_hash(&hash).await.unwrap().unwrap().id, key.id);
    }
}

/// Child mode of [`a_full_disk_refuses_writes_and_nothing_else`], under a limit on file sizes.
#[tokio::test]
async fn writes_until_full() {
    let Some(file) = child_file() else { return };
    let store = EmbeddedStore::open(&file).unwrap();
    store.put_key(hash(1), &key("alice", "key_1", 1), None).await.unwrap();
    let filler = AuditEntry { detail: "x".repeat(50_000), ..entry("filler") };
    let mut written = 0;
    let refused = loop {
        match store.append_audit(&filler).await {
            Ok(()) => written += 1,
            Err(e) => break e,
        }
        assert!(written < 10_000, "the limit is not met");
    };
    acknowledge(&format!("{refused:?}"));
    assert!(store.key_by_hash(&hash(1)).await.unwrap().is_some());
    assert_eq!(store.audit(u64::MAX).await.unwrap().len(), written);
    assert_eq!(store.append_audit(&filler).await, Err(StoreError::Full));
    assert_eq!(store.key_by_hash(&hash(1)).await.unwrap().unwrap().id, "key_1".into());
    acknowledge("reads");
    let raised = Command::new("prlimit").args(["--pid", &std::process::id().to_string(), "--fsize=unlimited"]).status();
    assert!(raised.unwrap().success());
    store.append_audit(&filler).await.unwrap();
    assert_eq!(store.audit(u64::MAX).await.unwrap().len(), written + 1);
    acknowledge("writes again");
}

#[test]
fn a_full_disk_refuses_writes_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let mut shell = Command::new("sh");
    // A soft limit on file sizes fails writes as a full disk does (EFBIG for ENOSPC), without needing a mount.
    shell.args(["-c", r#"trap "" XFSZ; ulimit -S -f 16384; exec "$0" "$@""#]).arg(std::env::current_exe().unwrap());
    let mut writer = child(shell, "store::writes_until_full", &dir.path().join("store.redb"));
    let acks: Vec<String> = acknowledgements(&mut writer).collect();
    assert!(writer.wait().unwrap().success(), "{acks:?}");
    assert_eq!(acks, ["Full", "reads", "writes again"]);
}
