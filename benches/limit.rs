//! The limiter's admission as a request pays for it: decision, guard, headers.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, criterion_group, criterion_main};
use wasmgate::domain::{Principal, Quota, ScopeSet, Subject, Tier, Window};
use wasmgate::limit::failures::FailureGate;
use wasmgate::limit::limiter::{Decision, Limiter, Now, headers};

fn caller(owner: &str, quotas: usize) -> Principal {
    let policies = [("minute", Window::Rolling { seconds: 60 }), ("day", Window::Day), ("month", Window::Month)];
    let quotas = policies.into_iter().take(quotas).map(|(name, window)| Quota {
        name: name.parse().expect("a name"),
        requests: u64::from(u32::MAX),
        window,
        burst: None,
    });
    let tier = Tier { quotas: quotas.collect(), concurrent: 1_000_000, ..Tier::defaults().remove(3) };
    let subject = Subject::Key { owner: owner.parse().expect("a name"), key: "key_0".into() };
    Principal { subject, tier: Arc::new(tier), scopes: ScopeSet::default() }
}

fn admission(c: &mut Criterion) {
    let mut group = c.benchmark_group("limit");
    for quotas in 0..=3 {
        let limiter = Limiter::new(100_000);
        let who = caller("alice", quotas);
        let now = Now::read();
        group.bench_function(format!("admit, {quotas} policies"), |b| {
            b.iter(|| matches!(limiter.admit(black_box(&who), 1, now), Ok(Decision::Allowed { .. })));
        });
    }
    // Every request from another of 50,000 owners: the caches of the machine no longer hold the table.
    let limiter = Limiter::new(100_000);
    let first = caller("owner-0", 2);
    let many: Vec<Principal> = (0..50_000)
        .map(|n| {
            let owner = format!("owner-{n}").parse().expect("a name");
            Principal { subject: Subject::Key { owner, key: "key_0".into() }, ..first.clone() }
        })
        .collect();
    let (mut at, now) = (0, Now::read());
    group.bench_function("admit, 50,000 owners", |b| {
        b.iter(|| {
            at = (at + 7919) % many.len();
            matches!(limiter.admit(&many[at], 1, now), Ok(Decision::Allowed { .. }))
        });
    });
    group.bench_function("both clocks", |b| b.iter(Now::read));
    let who = caller("alice", 2);
    let Ok(Decision::Allowed { states, .. }) = limiter.admit(&who, 1, now) else { return };
    group.bench_function("headers", |b| b.iter(|| headers(black_box(&states))));
    let gate = FailureGate::new(1_000_000);
    let address = "192.0.2.1".parse().expect("an address");
    group.bench_function("attempt, given back", |b| {
        b.iter(|| gate.attempt(address, now.mono).map(|attempt| attempt.forgive()));
    });
    group.finish();
}

criterion_group!(benches, admission);
criterion_main!(benches);
