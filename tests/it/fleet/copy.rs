//! `wasmgate store copy` between the embedded store and Redis, with gateways before and after it.

use std::io::{BufRead, BufReader};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use wasmgate::store::Store;
use wasmgate::store::embedded::EmbeddedStore;
use wasmgate::store::entry::Entry;

use super::*;
use crate::store::copy::{import_all, many};
use crate::support::Response;
use crate::support::gateway::run_to_end;

const EXECUTE: &str = "/api/wasm/execute";

impl Fleet {
    /// What a gateway of its own has, with the fleet's pepper.
    fn embedded(&self) -> String {
        format!("[auth]\npepper_file = {:?}\n{}\n", self.secrets.path().join("pepper"), api::config(""))
    }

    fn shared(&self) -> String {
        self.config(&(PATIENT.to_owned() + &api::config("")))
    }
}

/// A folder with a configuration in which no gateway was yet.
fn folder(config: &str) -> TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    configure(&dir, config);
    dir
}

fn configure(dir: &TempDir, config: &str) {
    let file = dir.path().join("copy.toml");
    std::fs::write(file, format!("data_dir = {:?}\n{config}", dir.path().join("data"))).expect("the folder is ours");
}

fn command(from: &TempDir, to: &TempDir, more: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command.args(["store", "copy"]).args([from, to].map(|dir| dir.path().join("copy.toml"))).args(more).arg("--json");
    command
}

fn copy(from: &TempDir, to: &TempDir, more: &[&str]) -> Output {
    run_to_end(command(from, to, more))
}

/// For people.
#[test]
fn a_copy_is_a_table_and_its_progress_is_told_beside_it() {
    let fleet = Fleet::new();
    let (from, to) = (folder(&fleet.embedded()), folder(&fleet.embedded()));
    import(&from);
    let mut copy = Command::new(binary());
    copy.args(["store", "copy"]).args([&from, &to].map(|dir| dir.path().join("copy.toml")));
    let output = run_to_end(copy);
    let (table, told) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && told.contains("copied: keys ") && told.contains("read in TO: audit "), "{told}");
    let keys: Vec<_> =
        table.lines().find(|line| line.starts_with("keys")).unwrap_or_default().split_whitespace().collect();
    assert!(keys[1..3] == ["700", "yes"] && keys[3].starts_with("sha256:"), "{table}");
}

/// What it came to: equal, and how many of each kind with which digest.
#[track_caller]
fn copied(output: Output) -> Value {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let result: Value = serde_json::from_slice(&output.stdout).expect("it is JSON");
    assert_eq!(result["equal"], true, "{result}");
    for kind in result["kinds"].as_array().expect("a list") {
        assert_eq!(kind["from"], kind["to"], "{kind}");
    }
    result
}

fn count(result: &Value, kind: &str) -> u64 {
    let kinds = result["kinds"].as_array().expect("a list");
    let found = kinds.iter().find(|k| k["kind"] == kind).unwrap_or_else(|| panic!("no {kind}: {result}"));
    found["to"]["count"].as_u64().expect("a number")
}

#[track_caller]
fn refused(output: &Output, code: i32, named: &[&str]) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{said}");
    for named in named {
        assert!(said.contains(named), "`{named}` is not named: {said}");
    }
    assert!(!said.contains("panicked"), "{said}");
}

fn stop(mut gateway: Gateway) -> TempDir {
    gateway.signal("TERM");
    assert!(gateway.wait().success());
    let empty = tempfile::tempdir().expect("a folder");
    let dir = std::mem::replace(&mut gateway.dir, empty);
    std::fs::remove_file(dir.path().join("ready.json")).expect("it was ready");
    dir
}

fn run(node: &Gateway, key: &str) -> Response {
    let call = serde_json::json!({"module": "acme/upper", "input": "hello"});
    node.post(EXECUTE, call.to_string()).key(key).header("Content-Type", "application/json").send()
}

#[test]
fn a_gateway_moves_into_a_fleet_and_back() {
    let fleet = Fleet::new();
    let alone = Gateway::start(&fleet.embedded());
    let (key, gone) = (alone.key(), alone.new_key(&NewKey::default()));
    alone.revoke(&gone);
    alone.upload("acme/upper", "command", &wat("(module (func (export \"_start\")))"));
    alone.upload("acme/upper", "command", &c_guest("command"));
    alone.upload("acme/gone", "command", &c_guest("command"));
    assert!(alone.admin("DELETE", "/api/wasm/modules/gone?owner=acme").send().status < 300);
    assert!(run(&alone, &key).expect(200).text().contains("HELLO"));

    let (in_use, shared) = (folder(&fleet.shared()), folder(&fleet.shared()));
    let alone_dir = alone.dir.path().join("copy.toml");
    std::fs::write(alone_dir, format!("data_dir = {:?}\n{}", alone.dir.path().join("data"), fleet.embedded())).unwrap();
    refused(&copy(&alone.dir, &in_use, &[]), 1, &["FROM", "in use by another wasmgate"]);
    let alone = stop(alone);
    let there = copied(copy(&alone, &shared, &[]));
    assert_eq!(there["resumed"], false);
    for (kind, least) in
        [("keys", 2), ("modules", 1), ("files", 2), ("retired-versions", 1), ("usage", 1), ("audit", 4)]
    {
        assert!(count(&there, kind) >= least, "{kind}: {there}");
    }
    refused(&copy(&alone, &shared, &[]), 1, &["TO is not empty"]);
    refused(&copy(&shared, &shared, &[]), 1, &["the same store"]);
    refused(&copy(&alone, &alone, &[]), 1, &["the same store"]);
    let back = folder(&fleet.embedded());
    let again = copied(copy(&shared, &back, &[]));
    assert_eq!(again["kinds"], there["kinds"]);

    let nodes: Vec<_> = (0..2).map(|_| Gateway::start(&fleet.shared())).collect();
    let alone = Gateway::start_in(back, &fleet.embedded());
    for node in [&nodes[0], &alone] {
        assert!(run(node, &key).expect(200).text().contains("HELLO"));
        run(node, &gone.text).expect(401);
        assert_eq!(node.upload("acme/upper", "command", &wat("(module (func (export \"_start\") nop))"))["version"], 3);
        assert_eq!(node.upload("acme/gone", "command", &c_guest("command"))["version"], 2, "its numbers stay taken");
        let usage = node.admin("GET", "/api/usage?owner=acme").send().expect(200).json();
        assert!(usage["total"]["executions"].as_u64() >= Some(1), "{usage}");
    }
    followed(&nodes[1]);

    // In use.
    let other = folder(&fleet.embedded());
    refused(&copy(&shared, &other, &[]), 1, &["FROM is in use by the gateways", "--live"]);
    let stopped = folder(&fleet.embedded());
    import(&stopped);
    refused(&copy(&stopped, &shared, &["--live"]), 1, &["TO is in use by the gateways"]);
    assert_eq!(count(&copied(copy(&shared, &other, &["--live"])), "keys"), 2);
}

/// Many records, and the files that they name.
fn import(dir: &TempDir) -> usize {
    let data = dir.path().join("data");
    std::fs::create_dir_all(data.join("modules")).expect("the folder is ours");
    let all = many();
    for entry in &all {
        if let Entry::Module(module, _) = entry {
            let n = module.name.as_str().trim_start_matches("many");
            let file = data.join("modules").join(format!("{}.wasm", module.versions[0].digest.hex()));
            std::fs::write(file, n).expect("the folder is ours");
        }
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let (store, length) = (EmbeddedStore::open(&data.join("wasmgate.redb")).expect("it is new"), all.len());
    runtime.block_on(import_all(&store, all));
    length
}

/// Kills it when it has told of progress so many times; what it came to, if it was done before.
fn killed(from: &TempDir, to: &TempDir, lines: usize) -> Option<Output> {
    let mut child = command(from, to, &[]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    let told = BufReader::new(child.stderr.take().expect("it is piped")).lines().map_while(Result::ok);
    let told: Vec<_> = told.take(lines).collect();
    if told.len() == lines {
        child.kill().expect("it is our child");
    } else {
        println!("{told:?}");
    }
    let output = child.wait_with_output().expect("it ends");
    output.status.code().map(|_| Output { stderr: told.join("\n").into_bytes(), ..output })
}

#[test]
fn a_copy_that_is_killed_goes_on_and_doubles_nothing() {
    let fleet = Fleet::new();
    let from = folder(&fleet.embedded());
    let records = import(&from) as u64;
    let mut kinds = None;
    let (shared, back) = (folder(&fleet.shared()), folder(&fleet.embedded()));
    for (from, to, config) in [(&from, &shared, fleet.shared()), (&shared, &back, fleet.embedded())] {
        assert!(killed(from, to, 1).is_none(), "it has only begun");
        let half = try_serve(to.path(), &config);
        refused(&half, 2, &["half copied", "store copy"]);
        // Another store's copy does not go on in it, and nobody copies from it.
        let other = folder(&fleet.embedded());
        import(&other);
        refused(&copy(&other, to, &[]), 1, &["another store than FROM"]);
        let empty = folder(&fleet.embedded());
        let half = copy(to, &empty, &[]);
        assert!(!half.status.success() && String::from_utf8_lossy(&half.stderr).contains("half copied"), "{half:?}");
        // In each kind, and while both are compared.
        let done = (0..40).find_map(|n| killed(from, to, 1 + n % 4 + n / 4));
        let result = copied(done.unwrap_or_else(|| copy(from, to, &[])));
        assert_eq!(result["resumed"], true);
        let all: u64 = result["kinds"].as_array().unwrap().iter().map(|k| k["to"]["count"].as_u64().unwrap()).sum();
        assert_eq!(all, records + count(&result, "files"));
        assert_eq!(kinds.get_or_insert(result["kinds"].clone()), &result["kinds"]);
    }
    let node = Gateway::start_in(back, &fleet.embedded());
    assert_eq!(
        node.admin("GET", "/api/wasm/modules/many7?owner=owner07").send().expect(200).json()["active_version"],
        3
    );
}

/// Redis does what it is asked to and the copy is not told, several times.
#[test]
fn a_copy_whose_answers_are_lost_doubles_nothing() {
    let fleet = Fleet::new();
    let wire = Wire::to(&fleet.redis);
    let (from, to) = (folder(&fleet.embedded()), folder(&fleet.shared().replace(&fleet.redis.url(), &wire.url)));
    let records = import(&from) as u64;
    wire.cuts.store(9, Ordering::SeqCst);
    // One that gives up is run again.
    let done = (0..10).map(|_| copy(&from, &to, &[])).find(|output| output.status.success());
    let result = copied(done.expect("it gets through"));
    assert_eq!(wire.cuts.load(Ordering::SeqCst), 0);
    let all: u64 = result["kinds"].as_array().unwrap().iter().map(|k| k["to"]["count"].as_u64().unwrap()).sum();
    assert_eq!(all, records + count(&result, "files"));
}

#[test]
fn a_forged_record_is_told_and_not_copied() {
    let fleet = Fleet::new();
    let from = folder(&fleet.embedded());
    import(&from);
    let (shared, to) = (folder(&fleet.shared()), folder(&fleet.embedded()));
    copied(copy(&from, &shared, &[]));
    let keys = fleet.redis.cli(&["--scan", "--pattern", "wasmgate:{r}:kh:*"]);
    let forged = keys.lines().nth(5).expect("there are keys");
    fleet.redis.set(forged, b"{\"tier\":\"enterprise\"}");
    fleet.redis.cli(&["hset", "wasmgate:{r}:v:v1", "007", "forged"]);
    refused(&copy(&shared, &to, &[]), 1, &["FROM", forged, "forged"]);
    fleet.redis.cli(&["del", forged]);
    refused(&copy(&shared, &to, &[]), 1, &["FROM", "wasmgate:{r}:v:v1", "`007`"]);
    fleet.redis.cli(&["hdel", "wasmgate:{r}:v:v1", "007"]);
    let result = copied(copy(&shared, &to, &[]));
    assert_eq!((count(&result, "keys"), count(&result, "values"), &result["resumed"]), (699, 699, &true.into()));
}

/// Whatever is in TO and was not in FROM.
#[test]
fn what_differs_is_named_and_not_used() {
    let fleet = Fleet::new();
    let from = folder(&fleet.embedded());
    import(&from);
    let to = folder(&fleet.embedded());
    assert!(killed(&from, &to, 3).is_none(), "it has only begun");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    {
        let store = EmbeddedStore::open(&from.path().join("data/wasmgate.redb")).expect("nobody uses it");
        let add = wasmgate::domain::UsageRecord { requests: 1, ..Default::default() };
        let delta = wasmgate::domain::UsageDelta { owner: "late".parse().unwrap(), key: "k".into(), day: 1, add };
        let batch = wasmgate::store::Batch::first().unwrap();
        // Before all that there are; and a key in a kind that was copied.
        runtime.block_on(store.add_usage(&batch, &[delta])).expect("it has room");
        let (hash, key) = runtime.block_on(store.key(&"many_0".into())).unwrap().expect("it is there");
        let key = wasmgate::domain::ApiKey { revoked_at: Some(key.created_at), ..key };
        assert_eq!(runtime.block_on(store.update_key(&key)).unwrap(), hash);
    }
    let output = copy(&from, &to, &[]);
    refused(&output, 1, &["differ in `keys`"]);
    let result: Value = serde_json::from_slice(&output.stdout).expect("it is JSON");
    assert_eq!(result["equal"], false, "{result}");
    refused(&try_serve(to.path(), &fleet.embedded()), 2, &["half copied"]);
    // Of a file that is missing, or another one.
    let file = std::fs::read_dir(from.path().join("data/modules")).unwrap().flatten().next().expect("a file").path();
    let to = folder(&fleet.shared());
    std::fs::write(&file, "altered").unwrap();
    refused(&copy(&from, &to, &[]), 1, &["FROM: the module of `owner", "damaged"]);
}

#[test]
fn both_have_the_same_pepper() {
    let fleet = Fleet::new();
    let from = folder(&fleet.embedded());
    import(&from);
    // One that a start would make.
    let to = folder("[log]\nformat = \"json\"\n");
    refused(&copy(&from, &to, &[]), 2, &["TO: `auth.pepper_file`", "copy `", "pepper` to `"]);
    assert!(!to.path().join("data/pepper").exists() && !to.path().join("data/wasmgate.redb").exists());
    let other = fleet.secret("other-pepper", &"f0e1d2c3b4a59687".repeat(4));
    let other = fleet.shared().replace(fleet.secrets.path().join("pepper").to_str().unwrap(), other.to_str().unwrap());
    refused(&copy(&from, &folder(&other), &[]), 2, &["the pepper is another one"]);
    assert_eq!(fleet.redis.cli(&["dbsize"]).trim(), "0", "nothing was begun");
    // Redis has that of a gateway which no longer runs.
    drop(stop(Gateway::start(&other)));
    refused(&copy(&from, &folder(&fleet.shared()), &[]), 2, &["store.redis", "auth.pepper_file"]);
    refused(&copy(&folder(&fleet.embedded()), &to, &[]), 2, &["FROM: `data_dir`", "has no store"]);
}
