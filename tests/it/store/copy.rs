//! Entries: what one store gives out, the other one takes in, and neither can be told from the other by what it does.

use std::collections::BTreeMap;

use wasmgate::store::entry::{Entry, Exported, Kind, Mark, Retired, Value, batch};
use wasmgate::store::{RoutesVersion, UsageRow};

use super::*;

fn embedded() -> (tempfile::TempDir, EmbeddedStore) {
    let dir = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(&dir.path().join("store.redb")).unwrap();
    (dir, store)
}

/// All that there is, page by page.
pub async fn entries(store: &dyn Store) -> Vec<Entry> {
    let mut all = Vec::new();
    for kind in Kind::ALL {
        let mut after = None;
        loop {
            let Exported { entries, next } = store.export(kind, after.as_deref()).await.unwrap();
            all.extend(entries);
            after = next;
            if after.is_none() {
                break;
            }
        }
    }
    all
}

fn mark(done: usize) -> Mark {
    Mark { from: "a store".into(), kind: Kind::Keys, after: Some(vec![0, 255]), done, tallies: BTreeMap::new() }
}

async fn transfer(from: &dyn Store, to: &dyn Store) {
    let mut all = entries(from).await;
    let mut before = None;
    while !all.is_empty() {
        let rest = all.split_off(batch(&all).min(all.len()));
        let next = Some(mark(rest.len()));
        to.import(all, before.as_ref(), next.as_ref()).await.unwrap();
        assert_eq!(to.mark().await.unwrap(), next);
        (before, all) = (next, rest);
    }
    to.import(Vec::new(), before.as_ref(), None).await.unwrap();
    assert_eq!(to.mark().await.unwrap(), None);
}

/// Some of each kind, by the calls that gateways make.
async fn fill(store: &dyn Store) {
    store.put_tier(&Tier::defaults().remove(1)).await.unwrap();
    let token = |id: &str, name_: &str| AdminToken {
        id: id.into(),
        name: name(name_),
        role: Role::Operator,
        created_at: at(3),
        revoked_at: None,
    };
    store.put_token(hash(900), &token("tok_1", "ops")).await.unwrap();
    store.put_token(hash(901), &token("tok_10", "gone")).await.unwrap();
    store.revoke_token(&"tok_10".into(), at(9)).await.unwrap();
    store.put_key(hash(1), &key("alice", "key_1", 1), None).await.unwrap();
    store.put_key(hash(3), &key("a", "key_3", 1), None).await.unwrap();
    store.put_key(hash(4), &key("alice-b", "key_4", 1), None).await.unwrap();
    store.rotate_key(rotation("key_1", 2, 10, 5)).await.unwrap();
    store.update_key(&ApiKey { revoked_at: Some(at(2)), ..key("alice-b", "key_4", 1) }).await.unwrap();
    for bytes in ["one", "two", "three"] {
        let public = NewVersion { public: Some(true), activate: true, ..version("alice", "m", bytes) };
        store.add_version(public, None).await.unwrap();
    }
    store.delete_version(&name("alice"), &name("m"), 1).await.unwrap();
    store.add_version(version("bob", "n", "four"), None).await.unwrap();
    store.set_limits(&name("bob"), &name("n"), &LimitsChange { fuel: Some(7), ..Default::default() }).await.unwrap();
    for bytes in ["x", "y"] {
        store.add_version(version("carol", "gone", bytes), None).await.unwrap();
    }
    store.delete_module(&name("carol"), &name("gone")).await.unwrap();
    let runs = [(name("alice"), name("m"), 5, at(20))];
    store.count_executions(&Batch::first().unwrap(), &runs).await.unwrap();
    for (owner, value) in [("alice", "1"), ("alice", "2"), ("dave", "3")] {
        store.kv_set(&name(owner), b"k\0\xff", kv(value), at(1)).await.unwrap();
    }
    let ends = KvSet { expires_at: Some(at(50)), ..kv("ends") };
    store.kv_set(&name("alice"), b"", ends, at(1)).await.unwrap();
    store.kv_set(&name("erin"), b"deleted", kv("x"), at(1)).await.unwrap();
    store.kv_delete(&name("erin"), b"deleted", at(1)).await.unwrap();
    let add = UsageRecord { requests: 3, fuel: 9, errors: [("not-found".into(), 2)].into(), ..Default::default() };
    for (owner, id, day) in [("alice", "key_2", 2), ("alice", "key_1", 10), ("alice", "key_1", 2), ("a", "key_3", 2)] {
        let delta = UsageDelta { owner: name(owner), key: id.into(), day, add: add.clone() };
        store.add_usage(&Batch::first().unwrap(), &[delta]).await.unwrap();
    }
    store.push_routes(routes("first"), 0).await.unwrap();
    store.push_routes(NewRoutes { above: 6, ..routes("seventh") }, 1).await.unwrap();
    // Lines may be the same, and each is one.
    for subject in ["one", "same", "same", "last"] {
        store.append_audit(&entry(subject)).await.unwrap();
    }
}

/// More than one page of each kind of which there may be many.
pub fn many() -> Vec<Entry> {
    let owner = |n: usize| name(&format!("owner{:02}", n % 40));
    let keys = (0..700).map(|n| Entry::Key(hash(10_000 + n as u64), key(owner(n).as_str(), &format!("many_{n}"), 1)));
    let retired = (0..600).map(|n| {
        let names = [(format!("m{n}"), n + 1)].into();
        Entry::Retired(Retired { owner: name(&format!("was{n:04}")), floor: n % 3, names })
    });
    let modules = (0..60).map(|n| {
        let version = version(owner(n).as_str(), "x", &n.to_string()).version;
        let module = wasmgate::domain::Module {
            id: format!("mod_{n}"),
            owner: owner(n),
            name: name(&format!("many{n}")),
            description: "d".into(),
            public: n % 2 == 0,
            active: 3,
            previous: None,
            versions: vec![ModuleVersion { version: 3, ..version }],
            limits: LimitsChange::default(),
            executions: n as u64,
            last_executed: (n > 0).then(|| at(30)),
        };
        Entry::Module(module, 3 + n as u32)
    });
    let values = (0..700).map(|n| {
        let owner = name(if n < 400 { "v1" } else { "v2" });
        let expires = if n % 2 == 0 { i64::MAX } else { 90_000 };
        Entry::Value(Value { owner, key: format!("{n:03}").into(), version: n + 1, expires, value: vec![7; 30] })
    });
    let numbers = [Entry::Number(name("v1"), 5_000), Entry::Number(name("v2"), 6_000)];
    let usage = (0..3).flat_map(|day| (0..300).map(move |n| (day, n))).map(|(day, n)| {
        let usage = UsageRecord { requests: n + 1, ..Default::default() };
        Entry::Usage(UsageRow {
            day: 100 + day,
            owner: name(&format!("u{:03}", n / 2)),
            key: format!("k{n}").into(),
            usage,
        })
    });
    let text = |n: u64| format!("# {n}\n").repeat(50_000);
    let routes = (50..55).map(|n| {
        let (digest, bytes) = (Digest::of(text(n).as_bytes()), text(n).len() as u64);
        Entry::Routes(RoutesVersion { version: n, digest, bytes, at: at(1), by: "ops".into(), again: None }, text(n))
    });
    let audit = (0..1_300).map(|n| Entry::Audit(entry(format!("line {n}"))));
    let all = keys.chain(retired).chain(modules).chain(numbers).chain(values);
    all.chain(usage).chain(routes).chain(audit).collect()
}

pub async fn import_all(store: &dyn Store, mut entries: Vec<Entry>) {
    while !entries.is_empty() {
        let rest = entries.split_off(batch(&entries).min(entries.len()));
        store.import(entries, None, None).await.unwrap();
        entries = rest;
    }
}

pub async fn what_was_written_is_exported_as_it_is(store: Shared) {
    assert!(!store.id().await.unwrap().is_empty());
    assert!(entries(&*store).await.is_empty());
    fill(&*store).await;
    import_all(&*store, many()).await;
    let (_dir, other) = embedded();
    assert_ne!(store.id().await.unwrap(), other.id().await.unwrap());
    transfer(&*store, &other).await;
    let (all, copied) = (entries(&*store).await, entries(&other).await);
    assert_eq!(all.len(), many().len() + 26);
    for (is, copied) in all.iter().zip(&copied) {
        assert_eq!(is, copied);
    }
    assert_eq!(all.len(), copied.len());
}

pub async fn what_was_imported_goes_on_as_before(store: Shared) {
    let (_dir, other) = embedded();
    fill(&other).await;
    import_all(&other, many()).await;
    transfer(&other, &*store).await;
    assert_eq!(entries(&*store).await, entries(&other).await);
    // Nobody else's copy is gone on with.
    for (before, after) in [(Some(mark(1)), None), (Some(mark(1)), Some(mark(2)))] {
        let wrong = store.import(vec![Entry::Audit(entry("not"))], before.as_ref(), after.as_ref()).await;
        assert!(matches!(wrong, Err(StoreError::Conflict(_))), "{wrong:?}");
    }
    assert_eq!(store.mark().await.unwrap(), None);

    let (alice, carol) = (name("alice"), name("carol"));
    for store in [&*store, &other as &dyn Store] {
        assert_eq!(store.key_by_hash(&hash(1)).await.unwrap().unwrap().rotated_to, Some("key_2".into()));
        assert_eq!(store.key(&"key_4".into()).await.unwrap().unwrap().1.revoked_at, Some(at(2)));
        assert!(matches!(store.update_key(&key("alice-b", "key_4", 1)).await, Err(StoreError::Conflict(_))));
        assert!(matches!(store.put_key(hash(2), &key("z", "key_9", 1), None).await, Err(StoreError::Conflict(_))));
        assert_eq!(store.token_by_hash(&hash(900)).await.unwrap().unwrap().id, "tok_1".into());
        // Sums, indexes and numbers.
        assert_eq!(store.stored(&alice).await.unwrap(), Stored { modules: 1, bytes: 8 });
        let (module, number, _) = store.add_version(version("alice", "m", "new"), None).await.unwrap();
        assert_eq!((number, module.active, module.executions, module.last_executed), (4, 3, 5, Some(at(20))));
        assert_eq!(store.module_by_id(&module.id).await.unwrap(), Some(module));
        assert_eq!(store.add_version(version("carol", "gone", "z"), None).await.unwrap().1, 3);
        let seen = store.modules(Some(&carol), true, 0, 1_000).await.unwrap();
        assert_eq!(seen.total, 1 + 1 + 30, "its own, and what is public");
        assert_eq!(store.kv_set(&alice, b"k", kv("x"), at(40)).await.unwrap(), 4);
        assert_eq!(store.kv_set(&name("erin"), b"k", kv("x"), at(40)).await.unwrap(), 2);
        assert_eq!(store.kv_set(&name("v1"), b"k", kv("x"), at(40)).await.unwrap(), 5_001);
        assert_eq!(store.kv_get(&alice, b"", at(49)).await.unwrap().unwrap().value, b"ends");
        assert_eq!(store.kv_get(&alice, b"", at(50)).await.unwrap(), None);
        let keep = Retention { audit_from: at(1), audit_entries: 10_000, usage_from_day: 2, now: at(91) };
        assert_eq!(store.prune(keep).await.unwrap(), 1 + 350, "values whose time is over");
        assert_eq!(store.usage(Some(&name("u007")), 100, 102).await.unwrap().len(), 6);
        let pushed = store.push_routes(routes("next"), 54).await.unwrap();
        assert_eq!((pushed.version, store.routes_text(7).await.unwrap().as_deref()), (55, Some("seventh")));
        store.append_audit(&entry("after")).await.unwrap();
        let lines: Vec<_> = store.audit(3).await.unwrap().into_iter().map(|line| line.subject).collect();
        assert_eq!(lines, ["after", "line 1299", "line 1298"]);
    }
}

/// As gateways do in a store that is read while they use it.
pub async fn what_is_pruned_meanwhile_doubles_nothing(store: Shared) {
    import_all(&*store, many()).await;
    let page = async |kind, after: &Option<Vec<u8>>| store.export(kind, after.as_deref()).await.unwrap();
    let rest = async |kind, mut after: Option<Vec<u8>>| {
        let mut all = Vec::new();
        while let Some(place) = after {
            let Exported { entries, next } = page(kind, &Some(place)).await;
            all.extend(entries);
            after = next;
        }
        all
    };
    let lines = |from: usize| (from..1_300).map(|n| Entry::Audit(entry(format!("line {n}")))).collect::<Vec<_>>();
    let first = page(Kind::Audit, &None).await;
    let second = page(Kind::Audit, &first.next).await;
    let read = first.entries.len() + second.entries.len();
    assert!(read < 1_200, "{read}");
    let keep =
        |audit_entries, usage_from_day| Retention { audit_from: at(0), audit_entries, usage_from_day, now: at(0) };
    store.prune(keep(1_100, 0)).await.unwrap();
    assert_eq!(rest(Kind::Audit, second.next.clone()).await, lines(read));
    // Beyond what was read.
    store.prune(keep(50, 0)).await.unwrap();
    while store.prune(keep(50, 0)).await.unwrap() > 0 {}
    assert_eq!(rest(Kind::Audit, second.next).await, lines(1_250));

    let of = |entries: &[Entry]| entries.iter().filter(|e| matches!(e, Entry::Usage(row) if row.day == 102)).count();
    let mut read = page(Kind::Usage, &None).await;
    while of(&read.entries) == 0 {
        read = page(Kind::Usage, &read.next).await;
    }
    let before = rest(Kind::Usage, read.next.clone()).await;
    assert!((1..300).contains(&before.len()), "{}", before.len());
    while store.prune(keep(50, 102)).await.unwrap() > 0 {}
    assert_eq!(rest(Kind::Usage, read.next).await, before);
}
