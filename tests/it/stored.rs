//! What is on disk: the bounds of compiled modules and of what an owner stores, files that nothing refers to, and a start
//! with thousands of modules.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use serde_json::json;
use wasmgate::domain::{Abi, Digest, ModuleVersion, Timestamp};
use wasmgate::store::embedded::EmbeddedStore;
use wasmgate::store::{NewVersion, Store};

use crate::support::admin::NewKey;
use crate::support::toml::tier;
use crate::support::{Gateway, Response, api, eventually, wat};

fn constant(n: usize) -> Vec<u8> {
    wat(&format!("(module (func (export \"run\") (result i32) (i32.const {n})))"))
}

/// As [`constant`], with so much code that its artifact has some 400 KB.
fn large(n: usize) -> Vec<u8> {
    let body =
        "(i32.store (local.get 0) (i32.add (i32.load (local.get 0)) (i32.load offset=4 (local.get 0))))".repeat(40);
    let functions = format!("(func (param i32) {body})").repeat(150);
    wat(&format!("(module (memory 1) (func (export \"run\") (result i32) (i32.const {n})) {functions})"))
}

fn run(gw: &Gateway, key: &str, module: &str) -> serde_json::Value {
    let request = gw.request("POST", "/api/wasm/execute").key(key).json(&json!({"module": module}));
    request.send().expect(200).json()["result"].clone()
}

fn names(folder: &Path) -> Vec<String> {
    let mut all: Vec<_> = std::fs::read_dir(folder)
        .expect("a folder")
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("a plain name"))
        .collect();
    all.sort();
    all
}

fn bytes(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).expect("a folder").flatten();
    entries.filter_map(|entry| entry.metadata().ok()).map(|about| about.len()).sum()
}

#[test]
fn compiled_modules_stay_within_their_bound_and_every_module_runs() {
    let config = api::config("[engine]\nartifact_disk = \"1MiB\"\n");
    let gw = Gateway::start(&config);
    let key = gw.key();
    for n in 0..8 {
        gw.upload(&format!("acme/m{n}"), "core", &large(n));
    }
    let data = gw.dir.path().join("data");
    let evicted = gw.metric("wasm_artifacts_evicted", &[]);
    assert!(evicted >= 1.0, "{evicted}: {:?}", names(&data.join("artifacts")));
    for round in 0..2 {
        for n in 0..8 {
            assert_eq!(run(&gw, &key, &format!("m{n}")), n, "round {round}");
        }
        eventually("they fit", || bytes(&data.join("artifacts")) <= 1 << 20);
    }
    assert_eq!(names(&data.join("modules")).len(), 8);
    let gw = gw.restart(&config);
    for n in 0..8 {
        assert_eq!(run(&gw, &key, &format!("m{n}")), n, "after a restart");
    }
    let data = gw.dir.path().join("data");
    eventually("they fit", || bytes(&data.join("artifacts")) <= 1 << 20);
}

/// An owner whose compiled modules do not fit takes turns among its own, as with uploads.
#[test]
fn compiling_stored_modules_again_leaves_compilers_to_others() {
    let config =
        api::config("[engine]\nartifact_disk = \"1MiB\"\nartifact_cache = \"1MiB\"\n[engine.compile]\nprocesses = 2\n");
    let gw = Gateway::start(&config);
    let key = gw.key();
    // Each artifact alone is over both bounds.
    let body = "(local.set 1 (i32.add (i32.load (local.get 0)) (local.get 1)))".repeat(40);
    let functions = format!("(func (param i32 i32) (result i32) {body} (local.get 1))").repeat(3_000);
    for n in 0..4 {
        let run = format!("(func (export \"run\") (result i32) (i32.const {n}))");
        gw.upload(&format!("acme/m{n}"), "core", &wat(&format!("(module (memory 1) {run} {functions})")));
    }
    let gw = gw.restart(&config);
    let other = gw.new_key(&NewKey { owner: "other", ..NewKey::default() }).text;
    let compiles = || gw.admin("GET", "/api/state").send().expect(200).json()["engine"]["compiles"].clone();
    let fast = |compiles: &serde_json::Value| {
        let running = compiles["running"].as_array().expect("a list").clone();
        running.into_iter().filter(|c| c["compiler"] == "cranelift-fast").collect::<Vec<_>>()
    };
    std::thread::scope(|scope| {
        let runs: Vec<_> = (0..4)
            .map(|n| {
                (
                    n,
                    scope.spawn({
                        let (gw, key) = (&gw, &key);
                        move || run(gw, key, &format!("m{n}"))
                    }),
                )
            })
            .collect();
        eventually("one compiles, others wait", || {
            let now = compiles();
            fast(&now).len() == 1 && now["waiting_total"].as_u64() > Some(0)
        });
        assert_eq!(fast(&compiles())[0]["owner"], "acme");
        gw.execute(&other, &constant(1), b"").expect(200);
        assert!(fast(&compiles()).len() <= 1);
        for (n, run) in runs {
            assert_eq!(run.join().expect("no panic"), n);
        }
    });
}

#[test]
fn files_that_no_version_refers_to_go_at_the_next_start() {
    let config = api::config("");
    let gw = Gateway::start(&config);
    let key = gw.key();
    gw.upload("acme/kept", "core", &constant(7));
    let data = gw.dir.path().join("data");
    let (modules, artifacts) = (data.join("modules"), data.join("artifacts"));
    let kept = names(&modules);
    let lost = Digest::of(b"an upload that was cut off").hex();
    for file in [format!("{lost}.wasm"), ".tmp-1-1".into(), "notes.txt".into(), format!("{}.wasm", "G".repeat(64))] {
        std::fs::write(modules.join(file), b"x").expect("the folder is ours");
    }
    for compiler in ["cranelift", "cranelift-fast"] {
        std::fs::write(artifacts.join(format!("{lost}.{compiler}")), b"x").expect("the folder is ours");
    }
    let gw = gw.restart(&config);
    let data = gw.dir.path().join("data");
    let (modules, artifacts) = (data.join("modules"), data.join("artifacts"));
    eventually("what is ours and of nobody is gone", || {
        let all = [names(&modules), names(&artifacts)].concat();
        !all.iter().any(|name| name.starts_with(&lost) || name.starts_with(".tmp"))
    });
    // What is not ours stays.
    let all = names(&modules);
    assert_eq!(all.len(), 3, "{all:?}");
    assert!(kept.iter().all(|name| all.contains(name)) && all.contains(&"notes.txt".to_owned()), "{all:?}");
    assert_eq!(run(&gw, &key, "kept"), 7);
}

/// A store that was lost is put back, and what it refers to is still there.
#[test]
fn an_empty_store_costs_no_module() {
    let config = api::config("");
    let gw = Gateway::start(&config);
    let key = gw.key();
    gw.upload("acme/kept", "core", &constant(7));
    let file = |gw: &Gateway, name: &str| gw.dir.path().join("data").join(name);
    std::fs::rename(file(&gw, "wasmgate.redb"), file(&gw, "backup")).expect("one folder");
    let gw = gw.restart(&config);
    gw.get("/api/wasm/modules").key(&key).send().problem(401, "unauthorized");
    eventually("it is told", || gw.log().contains("refers to no module"));
    assert_eq!(names(&gw.dir.path().join("data/modules")).len(), 1);
    std::fs::rename(file(&gw, "backup"), file(&gw, "wasmgate.redb")).expect("one folder");
    let gw = gw.restart(&config);
    assert_eq!(run(&gw, &key, "kept"), 7);
}

fn upload(gw: &Gateway, key: &str, name: &str, wasm: &[u8]) -> Response {
    let request = gw.request("PUT", &format!("/api/wasm/modules/{name}")).key(key);
    request.header("Content-Type", "application/wasm").body(wasm).send()
}

/// All built-in tiers, and the tier `small` with this bound: none has more.
fn storage(bytes: usize) -> String {
    let table = |name: &str| format!("[tiers.{name}]\nmodule_storage = \"{bytes}B\"\n");
    let built_in = ["anonymous", "free", "basic", "pro", "enterprise"].map(table).concat();
    api::config(&(built_in + &tier("small", &format!("quotas = []\nmodule_storage = \"{bytes}B\""))))
}

#[test]
fn what_an_owner_stores_is_bounded_to_the_byte() {
    let (len, config) = (constant(0).len(), storage(3 * constant(0).len()));
    let gw = Gateway::start(&config);
    let key = gw.key_of("small");
    for n in 0..3 {
        upload(&gw, &key, if n == 2 { "other" } else { "m" }, &constant(n)).expect(201);
    }
    let files = |gw: &Gateway| names(&gw.dir.path().join("data/modules")).len();
    let full = |gw: &Gateway| {
        let before = files(gw);
        for name in ["m", "new"] {
            let doc = upload(gw, &key, name, &constant(3)).problem(409, "conflict");
            let detail = doc["detail"].as_str().unwrap_or_default();
            let says = ["`small`", "module_storage", "delete", &(3 * len).to_string(), &(4 * len).to_string()];
            assert!(says.iter().all(|says| detail.contains(says)), "{detail}");
        }
        assert_eq!(files(gw), before, "a refused upload leaves nothing behind");
    };
    full(&gw);
    upload(&gw, &key, "m", &constant(1)).expect(200);
    let other = gw.new_key(&NewKey { owner: "other", tier: "small", ..NewKey::default() }).text;
    upload(&gw, &other, "m", &constant(0)).expect(201);
    let gw = gw.restart(&config);
    full(&gw);
    let delete = |module: &str| {
        gw.request("DELETE", &format!("/api/wasm/modules/{module}")).key(&key).send().expect(204);
    };
    delete("m@2");
    // The operator's have no bound, and count for whom they are.
    gw.upload("acme/operators", "core", &constant(4));
    full(&gw);
    gw.upload("acme/operators", "core", &constant(5));
    delete("m");
    full(&gw);
    delete("other");
    upload(&gw, &key, "new", &constant(3)).expect(201);
}

#[test]
fn uploads_at_once_share_what_is_left() {
    let (len, config) = (constant(0).len(), storage(3 * constant(0).len() + 1));
    let gw = Gateway::start(&config);
    let key = gw.key_of("small");
    // The compiler may have too much to do for this many; that is no refusal of the tier's.
    let outcome = |n: usize| {
        let mut tries = (0..20).map(|_| upload(&gw, &key, &format!("m{}", n % 2), &constant(n)).status);
        tries.find(|status| *status != 503)
    };
    let done: Vec<_> = std::thread::scope(|scope| {
        let uploads: Vec<_> = (0..8).map(|n| scope.spawn(move || outcome(n))).collect();
        uploads.into_iter().map(|upload| upload.join().expect("no panic")).collect()
    });
    let of = |status| done.iter().filter(|done| **done == Some(status)).count();
    assert_eq!((of(201), of(409)), (3, 5), "{done:?}");
    assert_eq!(bytes(&gw.dir.path().join("data/modules")), 3 * len as u64);
}

/// Puts so many modules into a data directory, without their artifacts.
fn prepare(data: &Path, modules: usize) {
    let folder = data.join("modules");
    std::fs::create_dir_all(&folder).expect("a folder");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let store: Arc<dyn Store> = Arc::new(EmbeddedStore::open(&data.join("wasmgate.redb")).expect("a store"));
    runtime.block_on(async {
        let mut writes = tokio::task::JoinSet::new();
        for n in 0..modules {
            let wasm = constant(n);
            let digest = Digest::of(&wasm);
            std::fs::write(folder.join(format!("{}.wasm", digest.hex())), &wasm).expect("the folder is ours");
            let version = ModuleVersion {
                version: 0,
                digest,
                abi: Abi::Core,
                size_bytes: wasm.len() as u64,
                uploaded_at: Timestamp::now(),
                shape: serde_json::from_value(json!({
                    "imports": [], "exports": [{"name": "run", "ty": "() -> i32"}],
                    "memory_min_bytes": 0, "memory_max_bytes": null, "has_start": false,
                }))
                .expect("a shape"),
                assets: None,
            };
            let (owner, name) = ("acme".parse().expect("a name"), format!("m{n}").parse().expect("a name"));
            let (description, public, limits) = (None, None, None);
            let new = NewVersion { owner, name, description, public, limits, version, activate: true };
            let store = store.clone();
            // Together they are a few commits.
            writes.spawn(async move { store.add_version(new, None).await.map(drop) });
        }
        while let Some(done) = writes.join_next().await {
            done.expect("no panic").expect("a write");
        }
    });
}

#[test]
fn five_thousand_modules_cost_a_start_nothing_and_each_is_compiled_when_it_is_first_used() {
    const MODULES: usize = 5_000;
    let dir = tempfile::TempDir::new().expect("a folder");
    prepare(&dir.path().join("data"), MODULES);
    let began = Instant::now();
    let gw = Gateway::start_in(dir, &api::config(""));
    let took = began.elapsed();
    gw.admin("GET", "/health/ready").send().expect(200);
    let key = gw.key();
    let state = || gw.admin("GET", "/api/state").send().expect(200).json()["engine"].clone();
    let engine = state();
    assert_eq!((&engine["modules_loaded"], &engine["compiling"]), (&json!(0), &json!(0)), "{engine}");
    assert_eq!(gw.metric("wasm_compile_duration_seconds_count", &[]), 0.0, "nothing was compiled");
    let artifacts = gw.dir.path().join("data/artifacts");
    assert!(names(&artifacts).is_empty());
    for n in [0, 2_500, MODULES - 1] {
        assert_eq!(run(&gw, &key, &format!("m{n}")), n);
    }
    let listed = gw.get("/api/wasm/modules?limit=1").key(&key).send().expect(200).json();
    assert_eq!(listed["total"], MODULES);
    // For whoever measures, with `--nocapture`, and with `WASMGATE_BIN` naming a release build.
    println!("a start with {MODULES} modules: ready after {} ms", took.as_millis());
    assert_eq!(names(&gw.dir.path().join("data/modules")).len(), MODULES, "none of them was taken for an orphan");
}
