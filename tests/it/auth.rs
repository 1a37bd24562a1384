//! Credentials, the key cache and key management, over the real embedded store.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use http::{HeaderMap, HeaderName, HeaderValue};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use wasmgate::auth::cache::{AuthError, Authenticator, Peppers, Settings};
use wasmgate::auth::credential::{presented, strip};
use wasmgate::auth::format;
use wasmgate::auth::manage::{Actor, Keys, MAX_GRACE, NewKey};
use wasmgate::auth::pepper::PepperError;
use wasmgate::auth::secret_file::SecretError;
use wasmgate::config::SecretSource;
use wasmgate::domain::{
    ApiKey, KeyHash, KeyId, LimitsChange, Module, ModuleVersion, Name, OwnerId, Rejection, Scope, ScopeSet, Tier,
    Timestamp, TokenId, UsageDelta,
};
use wasmgate::store::embedded::EmbeddedStore;
use wasmgate::store::entry::{Entry, Exported, Kind, Mark};
use wasmgate::store::{
    AdminToken, AuditEntry, Batch, Counter, KvIncr, KvSet, KvValue, NewRoutes, NewVersion, Page, Result as StoreResult,
    Retention, Role, Rotation, RoutesVersion, Store, StoreError, Stored, UsageRow,
};

use crate::store::{at, name};

const PEPPER: &[u8] = b"0123456789abcdef0123456789abcdef";
const OLD_PEPPER: &[u8] = b"fedcba9876543210fedcba9876543210";

/// The embedded store, whose key look-ups are counted, can be held, and can fail.
struct Watched {
    inner: EmbeddedStore,
    lookups: AtomicU64,
    fail: AtomicBool,
    /// A look-up reads, then waits for a permit here before it answers.
    gate: Semaphore,
    _dir: tempfile::TempDir,
}

impl Watched {
    fn new() -> Arc<Self> {
        let dir = tempfile::tempdir().unwrap();
        Arc::new(Self {
            inner: EmbeddedStore::open(&dir.path().join("store.redb")).unwrap(),
            lookups: AtomicU64::new(0),
            fail: AtomicBool::new(false),
            gate: Semaphore::new(Semaphore::MAX_PERMITS),
            _dir: dir,
        })
    }

    fn lookups(&self) -> u64 {
        self.lookups.load(Ordering::SeqCst)
    }
}

macro_rules! pass_on {
    ($($(#[$m:meta])* fn $method:ident(&self $(, $arg:ident: $ty:ty)*) -> $out:ty;)*) => {
        #[async_trait]
        impl Store for Watched {
            async fn key_by_hash(&self, hash: &KeyHash) -> StoreResult<Option<ApiKey>> {
                self.lookups.fetch_add(1, Ordering::SeqCst);
                let found = self.inner.key_by_hash(hash).await;
                self.gate.acquire().await.unwrap().forget();
                if self.fail.load(Ordering::SeqCst) {
                    return Err(StoreError::Unavailable("cut off".into()));
                }
                found
            }
            $(async fn $method(&self $(, $arg: $ty)*) -> $out { self.inner.$method($($arg),*).await })*
        }
    };
}

pass_on! {
    fn put_key(&self, hash: KeyHash, key: &ApiKey, max_live: Option<u32>) -> StoreResult<()>;
    fn key(&self, id: &KeyId) -> StoreResult<Option<(KeyHash, ApiKey)>>;
    fn keys(&self, owner: Option<&OwnerId>) -> StoreResult<Vec<ApiKey>>;
    fn update_key(&self, key: &ApiKey) -> StoreResult<KeyHash>;
    fn rotate_key(&self, rotation: Rotation) -> StoreResult<(KeyHash, ApiKey)>;
    fn tiers(&self) -> StoreResult<Vec<Tier>>;
    fn put_tier(&self, tier: &Tier) -> StoreResult<()>;
    fn delete_tier(&self, name: &Name) -> StoreResult<bool>;
    fn prune(&self, keep: Retention) -> StoreResult<u64>;
    fn add_version(&self, new: NewVersion, within: Option<Arc<Tier>>) -> StoreResult<(Module, u32, bool)>;
    fn stored(&self, owner: &OwnerId) -> StoreResult<Stored>;
    fn module(&self, owner: &OwnerId, name: &Name) -> StoreResult<Option<Module>>;
    fn module_by_id(&self, id: &str) -> StoreResult<Option<Module>>;
    fn modules(&self, owner: Option<&OwnerId>, public: bool, offset: u64, limit: u64) -> StoreResult<Page<Module>>;
    fn activate(&self, owner: &OwnerId, name: &Name, version: u32) -> StoreResult<Module>;
    fn set_limits(&self, owner: &OwnerId, name: &Name, limits: &LimitsChange) -> StoreResult<Module>;
    fn delete_module(&self, owner: &OwnerId, name: &Name) -> StoreResult<Module>;
    fn delete_version(&self, owner: &OwnerId, name: &Name, version: u32) -> StoreResult<ModuleVersion>;
    fn count_executions(&self, batch: &Batch, counts: &[(OwnerId, Name, u64, Timestamp)]) -> StoreResult<()>;
    fn add_usage(&self, batch: &Batch, deltas: &[UsageDelta]) -> StoreResult<()>;
    fn usage(&self, owner: Option<&OwnerId>, from_day: i64, to_day: i64) -> StoreResult<Vec<UsageRow>>;
    fn push_routes(&self, new: NewRoutes, expect: u64) -> StoreResult<RoutesVersion>;
    fn routes_versions(&self) -> StoreResult<Vec<RoutesVersion>>;
    fn routes_text(&self, version: u64) -> StoreResult<Option<String>>;
    fn put_token(&self, hash: KeyHash, token: &AdminToken) -> StoreResult<()>;
    fn token_by_hash(&self, hash: &KeyHash) -> StoreResult<Option<AdminToken>>;
    fn tokens(&self) -> StoreResult<Vec<AdminToken>>;
    fn revoke_token(&self, id: &TokenId, at: Timestamp) -> StoreResult<AdminToken>;
    fn append_audit(&self, entry: &AuditEntry) -> StoreResult<()>;
    fn audit(&self, limit: u64) -> StoreResult<Vec<AuditEntry>>;
    fn save_counters(&self, counters: &[Counter], expire_before: i64) -> StoreResult<()>;
    fn load_counters(&self) -> StoreResult<Vec<Counter>>;
    fn kv_get(&self, owner: &OwnerId, key: &[u8], now: Timestamp) -> StoreResult<Option<KvValue>>;
    fn kv_set(&self, owner: &OwnerId, key: &[u8], set: KvSet, now: Timestamp) -> StoreResult<u64>;
    fn kv_incr(&self, owner: &OwnerId, key: &[u8], incr: KvIncr, now: Timestamp) -> StoreResult<i64>;
    fn kv_delete(&self, owner: &OwnerId, key: &[u8], now: Timestamp) -> StoreResult<bool>;
    fn id(&self) -> StoreResult<String>;
    fn export(&self, kind: Kind, after: Option<&[u8]>) -> StoreResult<Exported>;
    fn import(&self, entries: Vec<Entry>, mark: Option<&Mark>, next: Option<&Mark>) -> StoreResult<()>;
    fn mark(&self) -> StoreResult<Option<Mark>>;
}

fn settings(fresh: Duration, max_stale: Duration) -> Settings {
    Settings { key_fresh: fresh, key_max_stale: max_stale, absent_ttl: Duration::from_secs(60), entries: 1000 }
}

fn authenticator(store: &Arc<Watched>, settings: Settings) -> Arc<Authenticator> {
    Authenticator::new(store.clone(), Peppers(vec![(1, PEPPER.to_vec())]), settings)
}

fn usual(store: &Arc<Watched>) -> Arc<Authenticator> {
    authenticator(store, settings(Duration::from_secs(30), Duration::from_secs(60)))
}

fn scopes(list: &[Scope]) -> ScopeSet {
    list.iter().copied().collect()
}

fn tiers(name: &Name) -> Option<Arc<Tier>> {
    Tier::defaults().into_iter().find(|t| t.name == *name).map(Arc::new)
}

fn admin() -> Actor {
    Actor::Admin("ops".into())
}

/// A key of `alice`, made by an administrator at second 100.
async fn make(store: &Arc<Watched>, auth: &Authenticator, tier: &str, list: &[Scope]) -> (String, Arc<ApiKey>) {
    let new =
        NewKey { owner: Some(name("alice")), tier: Some(name(tier)), scopes: Some(scopes(list)), ..NewKey::default() };
    let made = keys(store, auth).create(&admin(), new, at(100)).await.map_err(|e| e.detail()).unwrap();
    (made.secret, Arc::new(made.key))
}

fn keys<'a>(store: &'a Arc<Watched>, auth: &'a Authenticator) -> Keys<'a> {
    Keys { store: &**store, auth, tiers: &tiers }
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < deadline, "not within 10 s: {what}");
        tokio::task::yield_now().await;
    }
}

// ---- what a request presents ----

fn head(fields: &[(&'static str, &str)]) -> HeaderMap {
    let field =
        |(n, v): &(&'static str, &str)| (HeaderName::from_static(n), HeaderValue::from_bytes(v.as_bytes()).unwrap());
    fields.iter().map(field).collect()
}

#[test]
fn a_key_comes_in_one_of_two_fields() {
    let ok = |fields: &[(&'static str, &str)]| presented(&head(fields)).unwrap().map(str::to_owned);
    assert_eq!(ok(&[("x-api-key", "wg_live_1")]), Some("wg_live_1".into()));
    assert_eq!(ok(&[("authorization", "Bearer wg_live_1")]), Some("wg_live_1".into()));
    assert_eq!(ok(&[("authorization", "bearer   wg_live_1")]), Some("wg_live_1".into()));
    assert_eq!(ok(&[("x-api-key", "wg_live_1"), ("authorization", "Bearer wg_live_1")]), Some("wg_live_1".into()));
    assert_eq!(ok(&[]), None);
    for theirs in ["Bearer eyJhbGciOi", "Basic d2dfbGl2ZV8x", "Bearerwg_live_1", "wg_live_1", "Bearer"] {
        assert_eq!(ok(&[("authorization", theirs)]), None, "{theirs}");
    }
    assert_eq!(ok(&[("x-api-key", "wg_live_1"), ("authorization", "Bearer jwt")]), Some("wg_live_1".into()));
    // A key that can't be read is a wrong key, not none: `optional` routes must not serve it as anonymous.
    for bad in ["", "wg_live_\u{e9}", "wg live"] {
        let got = ok(&[("x-api-key", bad)]).expect("something was presented");
        assert!(!format::is_well_formed(&got, format::KEY_PREFIX));
    }
}

#[test]
fn two_different_keys_conflict() {
    for fields in [
        [("x-api-key", "wg_live_1"), ("authorization", "Bearer wg_live_2")],
        [("x-api-key", "wg_live_1"), ("x-api-key", "wg_live_2")],
        [("authorization", "Bearer wg_live_1"), ("authorization", "Bearer wg_live_2")],
        [("x-api-key", ""), ("x-api-key", "wg_live_2")],
    ] {
        assert_eq!(presented(&head(&fields)), Err(Rejection::ConflictingCredentials), "{fields:?}");
    }
}

#[test]
fn stripping_leaves_only_what_is_the_upstreams() {
    let mut headers = head(&[
        ("x-api-key", "anything"),
        ("authorization", "Bearer wg_live_1"),
        ("authorization", "Bearer jwt"),
        ("x-api-key", "more"),
        ("accept", "*/*"),
    ]);
    strip(&mut headers);
    assert_eq!(headers, head(&[("authorization", "Bearer jwt"), ("accept", "*/*")]));
    let mut ours = head(&[("authorization", "BEARER wg_live_1")]);
    strip(&mut ours);
    assert!(ours.is_empty());
    let mut token = head(&[("authorization", "Bearer wg_admin_1")]);
    strip(&mut token);
    assert!(token.is_empty(), "an admin token sent by mistake goes no further");
}

// ---- the authenticator ----

#[tokio::test]
async fn a_live_key_is_cached_after_one_look_up() {
    let store = Watched::new();
    let auth = usual(&store);
    let (secret, key) = make(&store, &auth, "free", &[Scope::Proxy]).await;
    assert_eq!(auth.cached(&secret, at(101)), None);
    assert_eq!(auth.authenticate(&secret, at(101)).await, Ok(key.clone()));
    for _ in 0..100 {
        assert_eq!(auth.cached(&secret, at(101)), Some(Ok(key.clone())));
    }
    assert_eq!(store.lookups(), 1);
    let stats = auth.stats();
    assert_eq!((stats.hit, stats.miss, stats.stale, stats.negative), (100, 1, 0, 0));
}

#[tokio::test]
async fn junk_reaches_neither_cache_nor_store() {
    let store = Watched::new();
    let auth = usual(&store);
    let (secret, _) = make(&store, &auth, "free", &[Scope::Proxy]).await;
    let mut typo = secret.clone().into_bytes();
    typo[12] = if typo[12] == b'a' { b'b' } else { b'a' };
    let token = auth.mint_token().unwrap().secret;
    for junk in ["", "wg_live_", "x", std::str::from_utf8(&typo).unwrap(), &token, &secret[1..]] {
        assert_eq!(auth.cached(junk, at(101)), Some(Err(AuthError::Invalid)), "{junk}");
        assert_eq!(auth.authenticate(junk, at(101)).await, Err(AuthError::Invalid));
    }
    assert_eq!(store.lookups(), 0);
}

#[tokio::test]
async fn an_absent_key_is_looked_up_once() {
    let store = Watched::new();
    let auth = usual(&store);
    let stranger = auth.mint().unwrap().secret;
    assert_eq!(auth.authenticate(&stranger, at(1)).await, Err(AuthError::Invalid));
    assert_eq!(auth.cached(&stranger, at(1)), Some(Err(AuthError::Invalid)));
    assert_eq!(auth.authenticate(&stranger, at(1)).await, Err(AuthError::Invalid));
    assert_eq!((store.lookups(), auth.stats().negative), (1, 2));
}

#[tokio::test]
async fn a_flood_of_well_formed_junk_puts_out_no_good_key() {
    let store = Watched::new();
    let auth = usual(&store);
    let (secret, key) = make(&store, &auth, "free", &[Scope::Proxy]).await;
    auth.authenticate(&secret, at(101)).await.unwrap();
    for _ in 0..5_000 {
        let junk = auth.mint().unwrap().secret;
        assert_eq!(auth.authenticate(&junk, at(101)).await, Err(AuthError::Invalid));
    }
    assert_eq!(auth.cached(&secret, at(101)), Some(Ok(key)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn loads_of_one_key_are_one_load() {
    let store = Watched::new();
    let auth = usual(&store);
    let (secret, _) = make(&store, &auth, "free", &[Scope::Proxy]).await;
    store.gate.forget_permits(Semaphore::MAX_PERMITS);
    let asking: Vec<_> = (0..50)
        .map(|_| {
            let (auth, secret) = (auth.clone(), secret.clone());
            tokio::spawn(async move { auth.authenticate(&secret, at(101)).await.is_ok() })
        })
        .collect();
    until("all fifty wait", || auth.stats().miss == 50).await;
    // The first client goes away; its load serves the others.
    asking[0].abort();
    store.gate.add_permits(1);
    for asked in asking.into_iter().skip(1) {
        assert!(asked.await.unwrap());
    }
    assert_eq!(store.lookups(), 1);
}

#[tokio::test]
async fn expiry_is_checked_at_each_use() {
    let store = Watched::new();
    let auth = usual(&store);
    let new = NewKey { owner: Some(name("alice")), expires_at: Some(at(200)), ..NewKey::default() };
    let secret = keys(&store, &auth).create(&admin(), new, at(100)).await.ok().unwrap().secret;
    assert!(auth.authenticate(&secret, at(199)).await.is_ok());
    assert!(auth.cached(&secret, at(199)).unwrap().is_ok());
    assert_eq!(auth.cached(&secret, at(200)), Some(Err(AuthError::Invalid)));
    assert_eq!(auth.authenticate(&secret, at(200)).await, Err(AuthError::Invalid));
    assert_eq!(store.lookups(), 1, "no sweep and no look-up was needed");
}

#[tokio::test]
async fn a_revocation_is_seen_by_the_next_request() {
    let store = Watched::new();
    let auth = usual(&store);
    let (secret, key) = make(&store, &auth, "free", &[Scope::Proxy]).await;
    auth.authenticate(&secret, at(101)).await.unwrap();
    keys(&store, &auth).revoke(&admin(), &key.id, at(102)).await.unwrap();
    assert_eq!(auth.cached(&secret, at(102)), None);
    assert_eq!(auth.authenticate(&secret, at(102)).await, Err(AuthError::Invalid));
    // The tombstone is cached.
    assert_eq!(auth.cached(&secret, at(102)), Some(Err(AuthError::Invalid)));
    assert!(store.key(&key.id).await.unwrap().unwrap().1.revoked_at.is_some());
}

/// A read that has found the live record and has not answered yet.
async fn held_read(
    store: &Watched,
    auth: &Arc<Authenticator>,
    secret: &str,
) -> JoinHandle<Result<Arc<ApiKey>, AuthError>> {
    store.gate.forget_permits(Semaphore::MAX_PERMITS);
    let (auth, secret) = (auth.clone(), secret.to_owned());
    let early = tokio::spawn(async move { auth.authenticate(&secret, at(101)).await });
    until("the early read", || store.lookups() == 1).await;
    early
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_read_that_an_invalidation_crosses_brings_nothing_stale() {
    let store = Watched::new();
    let auth = usual(&store);
    let (secret, key) = make(&store, &auth, "free", &[Scope::Proxy]).await;
    let early = held_read(&store, &auth, &secret).await;
    keys(&store, &auth).revoke(&admin(), &key.id, at(102)).await.unwrap();
    let late = tokio::spawn({
        let (auth, secret) = (auth.clone(), secret.clone());
        async move { auth.authenticate(&secret, at(102)).await }
    });
    store.gate.add_permits(100);
    assert_eq!(late.await.unwrap(), Err(AuthError::Invalid));
    assert_eq!(early.await.unwrap(), Err(AuthError::Invalid), "the crossed read was made again");
    assert_eq!(auth.cached(&secret, at(103)), Some(Err(AuthError::Invalid)));
}

#[tokio::test]
async fn a_stale_key_is_served_while_it_is_read_again() {
    let store = Watched::new();
    let auth = authenticator(&store, settings(Duration::ZERO, Duration::from_secs(3600)));
    let (secret, key) = make(&store, &auth, "free", &[Scope::Proxy]).await;
    auth.authenticate(&secret, at(101)).await.unwrap();
    store.fail.store(true, Ordering::SeqCst);
    for _ in 0..10 {
        assert_eq!(auth.cached(&secret, at(101)), Some(Ok(key.clone())), "the store is cut off");
    }
    assert_eq!(auth.stats().stale, 10);
    until("one refresh", || {
        auth.cached(&secret, at(101));
        store.lookups() >= 2
    })
    .await;
    // Revoked by another process: no invalidation comes, the refresh finds it.
    store.fail.store(false, Ordering::SeqCst);
    let revoked = ApiKey { revoked_at: Some(at(102)), ..(*key).clone() };
    store.update_key(&revoked).await.unwrap();
    until("the revocation is found", || auth.cached(&secret, at(103)) == Some(Err(AuthError::Invalid))).await;
}

#[tokio::test]
async fn past_max_stale_the_store_must_answer() {
    let store = Watched::new();
    let auth = authenticator(&store, settings(Duration::ZERO, Duration::ZERO));
    let (secret, key) = make(&store, &auth, "free", &[Scope::Proxy]).await;
    assert_eq!(auth.authenticate(&secret, at(101)).await, Ok(key.clone()));
    store.fail.store(true, Ordering::SeqCst);
    assert_eq!(auth.cached(&secret, at(101)), None);
    assert_eq!(auth.authenticate(&secret, at(101)).await, Err(AuthError::StoreUnavailable));
    store.fail.store(false, Ordering::SeqCst);
    assert_eq!(auth.authenticate(&secret, at(101)).await, Ok(key));
}

#[tokio::test]
async fn an_invalidation_of_another_key_disturbs_no_read() {
    let store = Watched::new();
    let auth = usual(&store);
    let (secret, key) = make(&store, &auth, "free", &[Scope::Proxy]).await;
    let early = held_read(&store, &auth, &secret).await;
    make(&store, &auth, "free", &[Scope::Proxy]).await;
    store.gate.add_permits(1);
    assert_eq!(early.await.unwrap(), Ok(key));
    assert_eq!(store.lookups(), 1);
}

/// Revoked by another gateway, of which nobody tells this one.
async fn revoke_elsewhere(store: &Watched, key: &ApiKey) {
    store.update_key(&ApiKey { revoked_at: Some(at(102)), ..key.clone() }).await.unwrap();
}

#[tokio::test]
async fn while_nobody_tells_of_changes_a_key_is_read_again() {
    let store = Watched::new();
    let auth = authenticator(&store, settings(Duration::from_secs(3600), Duration::from_secs(3600)));
    let (secret, key) = make(&store, &auth, "free", &[Scope::Proxy]).await;
    auth.authenticate(&secret, at(101)).await.unwrap();
    auth.cached(&secret, at(101));
    revoke_elsewhere(&store, &key).await;
    assert_eq!(auth.cached(&secret, at(103)), Some(Ok(key)), "as far as is known");
    auth.link_lost();
    until("it is not believed any more", || auth.cached(&secret, at(103)).is_none()).await;
    assert_eq!(auth.authenticate(&secret, at(103)).await, Err(AuthError::Invalid));
}

#[tokio::test]
async fn what_was_read_before_the_link_was_there_again_is_read_anew() {
    let store = Watched::new();
    let auth = authenticator(&store, settings(Duration::from_secs(3600), Duration::from_secs(3600)));
    let (secret, key) = make(&store, &auth, "free", &[Scope::Proxy]).await;
    let (other, _) = make(&store, &auth, "free", &[Scope::Proxy]).await;
    let unknown = authenticator(&store, settings(Duration::ZERO, Duration::ZERO)).mint().unwrap();
    auth.authenticate(&secret, at(101)).await.unwrap();
    auth.authenticate(&other, at(101)).await.unwrap();
    assert_eq!(auth.authenticate(&unknown.secret, at(101)).await, Err(AuthError::Invalid));
    auth.link_lost();
    revoke_elsewhere(&store, &key).await;
    let new = ApiKey { id: "key_new".into(), rotated_to: None, ..(*key).clone() };
    store.put_key(unknown.hash, &new, None).await.unwrap();
    auth.link_restored();
    assert_eq!(auth.cached(&secret, at(103)), None);
    assert_eq!(auth.authenticate(&secret, at(103)).await, Err(AuthError::Invalid));
    assert_eq!(auth.authenticate(&unknown.secret, at(103)).await, Ok(Arc::new(new)), "made meanwhile");
    auth.authenticate(&other, at(103)).await.unwrap();
    let before = store.lookups();
    auth.authenticate(&other, at(103)).await.unwrap();
    assert_eq!(store.lookups(), before, "read once, and believed since");
}

#[tokio::test]
async fn cut_off_from_store_and_link_known_keys_work_on() {
    let store = Watched::new();
    for (max_stale, expected) in
        [(Duration::from_secs(3600), None), (Duration::ZERO, Some(AuthError::StoreUnavailable))]
    {
        let auth = authenticator(&store, settings(Duration::from_secs(3600), max_stale));
        let (secret, key) = make(&store, &auth, "free", &[Scope::Proxy]).await;
        let (unread, _) = make(&store, &auth, "free", &[Scope::Proxy]).await;
        auth.authenticate(&secret, at(101)).await.unwrap();
        store.fail.store(true, Ordering::SeqCst);
        auth.link_restored();
        auth.link_lost();
        let before = store.lookups();
        for _ in 0..1000 {
            assert_eq!(auth.authenticate(&secret, at(101)).await, expected.clone().map_or(Ok(key.clone()), Err));
        }
        if expected.is_none() {
            assert!(store.lookups() - before < 500, "the store is not asked for each request");
        }
        assert_eq!(auth.authenticate(&unread, at(101)).await, Err(AuthError::StoreUnavailable));
        store.fail.store(false, Ordering::SeqCst);
    }
}

#[tokio::test]
async fn without_the_store_an_unknown_key_is_neither_allowed_nor_remembered_as_absent() {
    let store = Watched::new();
    let auth = usual(&store);
    let (secret, key) = make(&store, &auth, "free", &[Scope::Proxy]).await;
    store.fail.store(true, Ordering::SeqCst);
    assert_eq!(auth.authenticate(&secret, at(101)).await, Err(AuthError::StoreUnavailable));
    assert_eq!(auth.cached(&secret, at(101)), None);
    assert_eq!(Rejection::from(AuthError::StoreUnavailable).status(), 503);
    store.fail.store(false, Ordering::SeqCst);
    assert_eq!(auth.authenticate(&secret, at(101)).await, Ok(key));
}

#[tokio::test]
async fn keys_of_an_older_pepper_work_and_are_revoked_as_quickly() {
    let store = Watched::new();
    let before = Authenticator::new(
        store.clone(),
        Peppers(vec![(1, OLD_PEPPER.to_vec())]),
        settings(Duration::from_secs(30), Duration::ZERO),
    );
    let (secret, key) = make(&store, &before, "free", &[Scope::Proxy]).await;
    let both = Peppers(vec![(1, OLD_PEPPER.to_vec()), (2, PEPPER.to_vec())]);
    let auth = Authenticator::new(store.clone(), both, settings(Duration::from_secs(30), Duration::ZERO));
    assert_eq!(auth.mint().unwrap().pepper, 2);
    assert_eq!(auth.authenticate(&secret, at(101)).await, Ok(key.clone()));
    assert_eq!(auth.cached(&secret, at(101)), Some(Ok(key.clone())));
    keys(&store, &auth).revoke(&admin(), &key.id, at(102)).await.unwrap();
    assert_eq!(auth.cached(&secret, at(102)), None);
    assert_eq!(auth.authenticate(&secret, at(102)).await, Err(AuthError::Invalid));
    // Without the old pepper its keys are unknown.
    let alone = usual(&store);
    assert_eq!(alone.authenticate(&secret, at(101)).await, Err(AuthError::Invalid));
}

#[tokio::test]
async fn admin_tokens_are_no_keys_and_end_with_their_revocation() {
    let store = Watched::new();
    let auth = usual(&store);
    let minted = auth.mint_token().unwrap();
    assert!(minted.secret.starts_with("wg_admin_"));
    assert_eq!(auth.hash_token(&minted.secret), minted.hash);
    let token = AdminToken {
        id: TokenId::random().unwrap(),
        name: name("ops"),
        role: Role::Operator,
        created_at: at(1),
        revoked_at: None,
    };
    store.put_token(minted.hash, &token).await.unwrap();
    assert_eq!(auth.admin_token(&minted.secret).await, Ok(token.clone()));
    assert_eq!(auth.authenticate(&minted.secret, at(1)).await, Err(AuthError::Invalid));
    let (key, _) = make(&store, &auth, "free", &Scope::ALL).await;
    assert_eq!(auth.admin_token(&key).await, Err(AuthError::Invalid));
    assert_eq!(auth.admin_token(&auth.mint_token().unwrap().secret).await, Err(AuthError::Invalid));
    store.revoke_token(&token.id, at(2)).await.unwrap();
    assert_eq!(auth.admin_token(&minted.secret).await, Err(AuthError::Invalid));
}

// ---- key management ----

fn refused<T>(outcome: Result<T, Rejection>) -> Rejection {
    match outcome {
        Ok(_) => panic!("it was allowed"),
        Err(rejection) => rejection,
    }
}

#[tokio::test]
async fn nobody_mints_more_than_he_has() {
    let store = Watched::new();
    let auth = usual(&store);
    let own = [Scope::Proxy, Scope::Keys];
    let (_, key) = make(&store, &auth, "free", &own).await;
    let actor = Actor::Key(key);
    let keys = keys(&store, &auth);
    let create = async |new: NewKey| keys.create(&actor, new, at(101)).await.map(|c| c.key);

    let plain = create(NewKey::default()).await.unwrap();
    assert_eq!((plain.owner, plain.tier, plain.scopes), (name("alice"), name("free"), scopes(&own)));
    for tier in ["basic", "pro", "enterprise"] {
        let higher = NewKey { tier: Some(name(tier)), ..NewKey::default() };
        assert!(matches!(refused(create(higher).await), Rejection::Forbidden(_)), "{tier}");
    }
    for scope in [Scope::Admin, Scope::Execute, Scope::Modules, Scope::Usage] {
        let wider = NewKey { scopes: Some(scopes(&[Scope::Proxy, scope])), ..NewKey::default() };
        assert!(matches!(refused(create(wider).await), Rejection::Forbidden(_)), "{scope:?}");
    }
    let others = NewKey { owner: Some(name("bob")), ..NewKey::default() };
    assert!(matches!(refused(create(others).await), Rejection::Forbidden(_)));
    for bad in [
        NewKey { tier: Some(name("anonymous")), ..NewKey::default() },
        NewKey { tier: Some(name("no-such")), ..NewKey::default() },
        NewKey { scopes: Some(ScopeSet::default()), ..NewKey::default() },
        NewKey { expires_at: Some(at(101)), ..NewKey::default() },
        NewKey { label: "a\nb".into(), ..NewKey::default() },
        NewKey { label: "x".repeat(201), ..NewKey::default() },
    ] {
        assert!(matches!(refused(create(bad).await), Rejection::BadRequest(_)));
    }
    assert_eq!(store.keys(None).await.unwrap().len(), 2, "what was refused was not stored");
}

#[tokio::test]
async fn managing_needs_the_scope_and_a_current_key() {
    let store = Watched::new();
    let auth = usual(&store);
    let (_, plain) = make(&store, &auth, "free", &[Scope::Proxy]).await;
    let (_, manager) = make(&store, &auth, "free", &[Scope::Keys]).await;
    let keys = keys(&store, &auth);
    let actor = Actor::Key(plain.clone());
    let needs = Rejection::ScopeRequired(Scope::Keys);
    assert_eq!(refused(keys.create(&actor, NewKey::default(), at(101)).await), needs);
    assert_eq!(refused(keys.list(&actor, None).await), needs);
    assert_eq!(refused(keys.revoke(&actor, &plain.id, at(101)).await), needs);
    assert_eq!(refused(keys.rotate(&actor, &plain.id, None, at(101)).await), needs);
    assert_eq!(refused(keys.get(&actor, &plain.id).await), needs);

    keys.rotate(&Actor::Key(manager.clone()), &manager.id, None, at(101)).await.ok().unwrap();
    let graced = Actor::Key(Arc::new(store.key(&manager.id).await.unwrap().unwrap().1));
    assert!(matches!(refused(keys.create(&graced, NewKey::default(), at(102)).await), Rejection::Forbidden(_)));
}

#[tokio::test]
async fn a_key_can_not_outlive_its_maker() {
    let store = Watched::new();
    let auth = usual(&store);
    let keys = keys(&store, &auth);
    let new = NewKey { owner: Some(name("alice")), expires_at: Some(at(500)), ..NewKey::default() };
    let short = Actor::Key(Arc::new(keys.create(&admin(), new, at(100)).await.ok().unwrap().key));
    let made = keys.create(&short, NewKey::default(), at(101)).await.ok().unwrap().key;
    assert_eq!(made.expires_at, Some(at(500)));
    let longer = NewKey { expires_at: Some(at(501)), ..NewKey::default() };
    assert!(matches!(refused(keys.create(&short, longer, at(101)).await), Rejection::Forbidden(_)));
    let (_, lasting) = make(&store, &auth, "free", &[Scope::Proxy]).await;
    assert!(matches!(refused(keys.rotate(&short, &lasting.id, None, at(101)).await), Rejection::Forbidden(_)));
}

#[tokio::test]
async fn keys_of_others_do_not_exist() {
    let store = Watched::new();
    let auth = usual(&store);
    let keys = keys(&store, &auth);
    let (_, mine) = make(&store, &auth, "pro", &Scope::ALL[..5]).await;
    let new = NewKey { owner: Some(name("bob")), ..NewKey::default() };
    let theirs = keys.create(&admin(), new, at(100)).await.ok().unwrap().key;
    let actor = Actor::Key(mine.clone());
    for outcome in [
        keys.revoke(&actor, &theirs.id, at(101)).await.map(drop),
        keys.rotate(&actor, &theirs.id, None, at(101)).await.map(drop),
        keys.get(&actor, &theirs.id).await.map(drop),
        keys.get(&actor, &"key_none".into()).await.map(drop),
    ] {
        assert!(matches!(refused(outcome), Rejection::NotFound(_)));
    }
    assert!(store.key(&theirs.id).await.unwrap().unwrap().1.is_live(at(101)));
    assert_eq!(keys.list(&actor, None).await.unwrap(), [(*mine).clone()]);
    assert!(matches!(refused(keys.list(&actor, Some(&name("bob"))).await), Rejection::Forbidden(_)));
    assert_eq!(keys.list(&admin(), Some(&name("bob"))).await.unwrap(), std::slice::from_ref(&theirs));
    assert_eq!(keys.list(&admin(), None).await.unwrap().len(), 2);
    let (_, chief) = make(&store, &auth, "free", &[Scope::Admin]).await;
    keys.revoke(&Actor::Key(chief), &theirs.id, at(101)).await.unwrap();
}

#[tokio::test]
async fn rotation_gives_no_secret_above_the_callers_own_rights() {
    let store = Watched::new();
    let auth = usual(&store);
    let keys = keys(&store, &auth);
    let (_, low) = make(&store, &auth, "free", &[Scope::Proxy, Scope::Keys]).await;
    let (_, high_tier) = make(&store, &auth, "pro", &[Scope::Proxy]).await;
    let (_, high_scope) = make(&store, &auth, "free", &[Scope::Proxy, Scope::Admin]).await;
    for target in [&high_tier, &high_scope] {
        let outcome = keys.rotate(&Actor::Key(low.clone()), &target.id, None, at(101)).await;
        assert!(matches!(refused(outcome), Rejection::Forbidden(_)));
        assert_eq!(store.key(&target.id).await.unwrap().unwrap().1, **target);
    }
}

#[tokio::test]
async fn a_rotated_key_works_through_its_grace_period() {
    let store = Watched::new();
    let auth = usual(&store);
    let keys = keys(&store, &auth);
    let (old_secret, old) = make(&store, &auth, "free", &[Scope::Proxy]).await;
    auth.authenticate(&old_secret, at(100)).await.unwrap();
    let new = keys.rotate(&admin(), &old.id, None, at(200)).await.ok().unwrap();
    assert_eq!((&new.key.tier, new.key.scopes, &new.key.owner), (&old.tier, old.scopes, &old.owner));
    assert_eq!(auth.authenticate(&new.secret, at(201)).await.unwrap().id, new.key.id);
    let day = 24 * 3600;
    assert_eq!(auth.authenticate(&old_secret, at(200 + day - 1)).await.unwrap().rotated_to, Some(new.key.id.clone()));
    assert_eq!(auth.cached(&old_secret, at(200 + day)), Some(Err(AuthError::Invalid)));
    let twice = keys.rotate(&admin(), &old.id, None, at(201)).await;
    assert!(matches!(refused(twice), Rejection::Conflict(_)));
    let long = Some(MAX_GRACE + Duration::from_secs(1));
    assert!(matches!(refused(keys.rotate(&admin(), &new.key.id, long, at(201)).await), Rejection::BadRequest(_)));
    let at_once = keys.rotate(&admin(), &new.key.id, Some(Duration::ZERO), at(300)).await.ok().unwrap();
    assert_eq!(auth.authenticate(&new.secret, at(300)).await, Err(AuthError::Invalid));
    assert!(auth.authenticate(&at_once.secret, at(300)).await.is_ok());
}

#[tokio::test]
async fn keys_per_owner_are_capped_by_the_callers_tier_and_changes_are_audited() {
    let store = Watched::new();
    let auth = usual(&store);
    let keys = keys(&store, &auth);
    let (_, first) = make(&store, &auth, "free", &[Scope::Keys]).await;
    let cap = tiers(&name("free")).unwrap().keys as usize;
    let actor = Actor::Key(first.clone());
    for _ in 1..cap {
        keys.create(&actor, NewKey::default(), at(101)).await.ok().unwrap();
    }
    assert!(matches!(refused(keys.create(&actor, NewKey::default(), at(101)).await), Rejection::Conflict(_)));
    let one = keys.list(&actor, None).await.unwrap().pop().unwrap();
    keys.revoke(&actor, &one.id, at(102)).await.unwrap();
    keys.revoke(&actor, &one.id, at(103)).await.unwrap();
    assert_eq!(store.key(&one.id).await.unwrap().unwrap().1.revoked_at, Some(at(102)));
    keys.create(&actor, NewKey::default(), at(104)).await.ok().unwrap();
    let log = store.audit(1000).await.unwrap();
    let count = |action: &str| log.iter().filter(|e| e.action == action).count();
    assert_eq!((count("key.create"), count("key.revoke")), (cap + 1, 1));
    assert_eq!(log[0].actor, first.id.as_str());
    assert_eq!(log.last().unwrap().actor, "ops");
}

// ---- peppers ----

#[test]
fn a_generated_pepper_is_private_and_stays() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let source = SecretSource::Generated("pepper");
    let first = Peppers::load(&source, dir.path()).unwrap();
    assert_eq!(Peppers::load(&source, dir.path()).unwrap().0, first.0);
    assert_eq!(first.0.len(), 1);
    assert!(first.0[0].1.len() >= 32);
    let mode = std::fs::metadata(dir.path().join("pepper")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left aside");
    let other = tempfile::tempdir().unwrap();
    assert_ne!(Peppers::load(&source, other.path()).unwrap().0, first.0);
}

#[test]
fn a_pepper_file_others_can_read_is_refused() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pepper");
    std::fs::write(&file, "0123456789abcdef0123456789abcdef\n").unwrap();
    let ours = std::fs::metadata(&file).unwrap().gid();
    let foreign = ours + 4_000;
    let group = |mode, group, ok| (mode, Some(group), ok);
    let mut modes = vec![
        group(0o644, ours, false),
        group(0o604, ours, false),
        group(0o660, ours, false),
        group(0o650, ours, false),
        group(0o641, ours, false),
        group(0o600, ours, true),
        group(0o400, ours, true),
        group(0o640, ours, true),
        group(0o440, ours, true),
    ];
    // Files are given to another group by root alone.
    if std::os::unix::fs::chown(&file, None, Some(foreign)).is_ok() {
        modes.extend([group(0o640, foreign, false), group(0o440, foreign, false), group(0o400, foreign, true)]);
    }
    for (mode, group, ok) in modes {
        std::os::unix::fs::chown(&file, None, group).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
        let loaded = Peppers::load(&SecretSource::File(file.clone()), dir.path());
        match loaded {
            Ok(_) => assert!(ok, "{mode:o}"),
            Err(e) => assert!(!ok && matches!(e, PepperError::Secret(SecretError::Readable { .. })), "{mode:o}: {e}"),
        }
    }
}

#[test]
fn weak_peppers_are_refused_and_several_have_ids() {
    use std::os::unix::fs::OpenOptionsExt;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pepper");
    let load = |text: &str| {
        use std::io::Write;
        let _ = std::fs::remove_file(&file);
        let mut f = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&file).unwrap();
        f.write_all(text.as_bytes()).unwrap();
        Peppers::load(&SecretSource::File(file.clone()), dir.path())
    };
    let good = "0123456789abcdef0123456789abcdef";
    let other = "fedcba9876543210fedcba9876543210";
    for weak in
        ["", "short", &good[1..], &"a".repeat(64), &format!("1:{good}\n1:{other}"), &format!("2:{}", &good[1..])]
    {
        let Err(e) = load(weak) else { panic!("`{weak}` was taken") };
        assert!(matches!(e, PepperError::Weak { .. }), "{e}");
        assert!(weak.is_empty() || !e.to_string().contains(weak), "the secret is in the message");
    }
    assert_eq!(load(&format!("{good}\n")).unwrap().0, [(1, good.as_bytes().to_vec())]);
    let two = load(&format!("1:{good}\n2: {other}\n\n")).unwrap().0;
    assert_eq!(two, [(1, good.as_bytes().to_vec()), (2, other.as_bytes().to_vec())]);
    assert!(Peppers::load(&SecretSource::File("/no/such/pepper".into()), dir.path()).is_err());
    assert!(Peppers::load(&SecretSource::Env("WASMGATE_TEST_NO_SUCH".into()), dir.path()).is_err());
}
