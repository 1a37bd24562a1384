//! The check of a key as a request pays for it, and the reads and writes of the store behind it.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use http::HeaderMap;
use wasmgate::auth::cache::{Authenticator, Peppers, Settings};
use wasmgate::auth::{credential, format};
use wasmgate::domain::{ApiKey, KeyId, Scope, Timestamp};
use wasmgate::store::embedded::EmbeddedStore;
use wasmgate::store::{AuditEntry, Store};

fn record(pepper: u32) -> ApiKey {
    ApiKey {
        id: KeyId::random().expect("random bytes"),
        owner: "alice".parse().expect("a name"),
        tier: "free".parse().expect("a name"),
        scopes: [Scope::Proxy].into_iter().collect(),
        label: String::new(),
        pepper,
        created_at: Timestamp::now(),
        expires_at: None,
        revoked_at: None,
        rotated_to: None,
    }
}

fn keys(c: &mut Criterion) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let dir = tempfile::tempdir().expect("a directory");
    let store = Arc::new(EmbeddedStore::open(&dir.path().join("store.redb")).expect("a store"));
    let settings = Settings {
        key_fresh: Duration::from_secs(3600),
        key_max_stale: Duration::ZERO,
        absent_ttl: Duration::from_secs(3600),
        entries: 100_000,
    };
    let peppers = Peppers(vec![(1, b"0123456789abcdef0123456789abcdef".to_vec())]);
    let auth = Authenticator::new(store.clone(), peppers, settings);
    let minted = auth.mint().expect("random bytes");
    let now = Timestamp::now();
    runtime.block_on(async {
        store.put_key(minted.hash, &record(minted.pepper), None).await.expect("a write");
        auth.authenticate(&minted.secret, now).await.expect("a live key");
    });
    let secret = minted.secret.as_str();

    let mut group = c.benchmark_group("auth");
    group.bench_function("format", |b| b.iter(|| format::is_well_formed(black_box(secret), format::KEY_PREFIX)));
    let mut headers = HeaderMap::new();
    headers.insert("x-api-key", secret.parse().expect("a header value"));
    headers.insert("accept", "*/*".parse().expect("a header value"));
    group.bench_function("presented", |b| b.iter(|| credential::presented(black_box(&headers)).is_ok()));
    group.bench_function("cached key", |b| b.iter(|| auth.cached(black_box(secret), now)));
    let absent = auth.mint().expect("random bytes").secret;
    runtime.block_on(auth.authenticate(&absent, now)).expect_err("an unknown key");
    group.bench_function("absent key", |b| b.iter(|| auth.cached(black_box(&absent), now)));
    group.finish();

    let mut group = c.benchmark_group("store");
    group.bench_function("key by hash", |b| {
        b.iter(|| runtime.block_on(store.key_by_hash(black_box(&minted.hash))).expect("a read"));
    });
    let entry = AuditEntry {
        at: now,
        actor: "bench".into(),
        action: "bench".into(),
        subject: String::new(),
        detail: String::new(),
    };
    group.bench_function("one durable write", |b| {
        b.iter(|| runtime.block_on(store.append_audit(&entry)).expect("a write"));
    });
    group.bench_function("64 durable writes at once", |b| {
        b.iter(|| {
            let writes = (0..64).map(|_| store.append_audit(&entry));
            runtime.block_on(futures_util::future::join_all(writes))
        });
    });
    group.finish();
}

criterion_group!(benches, keys);
criterion_main!(benches);
