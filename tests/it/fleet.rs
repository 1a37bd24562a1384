//! Gateways that share a Redis: each a process of its own, before a real redis-server.

mod cluster;
mod copy;
mod limits;
mod nodes;
mod outage;
mod replicas;
mod routes;
mod start;
mod trust;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use wasmgate::store::redis::COMMANDS;

use self::outage::reasons;
use crate::cli::{ok, verb};
use crate::support::admin::NewKey;
use crate::support::cluster::Cluster;
use crate::support::gateway::binary;
use crate::support::redis::{Redis, Wire};
use crate::support::toml::{route, upstream};
use crate::support::{Gateway, Upstream, api, c_guest, eventually, try_serve, wat};

/// For tests in which Redis is there, however busy the machine is.
const PATIENT: &str = "timeout = \"20s\"\n";

/// A Redis, and what its gateways have in common.
struct Fleet<S = Redis> {
    redis: S,
    secrets: TempDir,
}

/// What `[store.redis]` says of them.
trait Servers {
    fn settings(&self) -> String;
}

impl Servers for Redis {
    fn settings(&self) -> String {
        format!("urls = [{:?}]", self.url())
    }
}

impl Servers for Cluster {
    fn settings(&self) -> String {
        format!("urls = {:?}\ncluster = true", self.urls())
    }
}

impl Fleet {
    fn new() -> Fleet {
        Fleet::on(Redis::start())
    }
}

impl<S: Servers> Fleet<S> {
    fn on(redis: S) -> Self {
        let fleet = Self { redis, secrets: tempfile::tempdir().expect("a folder") };
        fleet.secret("pepper", &"0123456789abcdef".repeat(4));
        fleet.secret("record.key", &"fedcba9876543210".repeat(4));
        fleet
    }

    /// In a file that nobody else can read.
    fn secret(&self, name: &str, text: &str) -> PathBuf {
        let file = self.secrets.path().join(name);
        std::fs::write(&file, text).expect("the folder is ours");
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).expect("it is ours");
        file
    }

    fn config(&self, more: &str) -> String {
        let secret = |name| self.secrets.path().join(name);
        format!(
            "[auth]\npepper_file = {:?}\n[store]\nkind = \"redis\"\n[store.redis]\n{}\nrecord_key_file = {:?}\n{more}\n",
            secret("pepper"),
            self.redis.settings(),
            secret("record.key")
        )
    }
}

fn keyed(up: &Upstream) -> String {
    upstream("up", up.addr, "") + &route("all", "match.path_prefix = \"/\"\ntarget.upstream = \"up\"")
}

fn ask(gw: &Gateway, key: &str) -> u16 {
    gw.get("/").key(key).send().status
}

fn followed(node: &Gateway) {
    eventually("it is told of changes", || node.metric("store_link_up", &[]) == 1.0);
}

/// What there was has been sent, and whatever became of that.
fn flushed(node: &Gateway) {
    let flushes = || node.metric("store_latency_seconds_count", &["operation=\"flush\""]);
    let before = flushes();
    // The first one may have begun before.
    eventually("usage is sent", || flushes() > before + 1.0);
}

#[test]
fn a_key_works_on_all_gateways_until_one_revokes_it() {
    let (fleet, up) = (Fleet::new(), Upstream::text("answer"));
    let config = fleet.config(&keyed(&up));
    let nodes: Vec<_> = (0..3).map(|_| Gateway::start(&config)).collect();
    let key = nodes[0].new_key(&NewKey::default());
    for node in &nodes {
        followed(node);
        assert_eq!(ask(node, &key.text), 200);
    }
    nodes[1].revoke(&key);
    assert_eq!(ask(&nodes[1], &key.text), 401, "where it was revoked, at once");
    let revoked = Instant::now();
    for node in &nodes {
        eventually("it is revoked", || ask(node, &key.text) == 401);
    }
    // A key is believed for 30 s: they were told.
    assert!(revoked.elapsed() < Duration::from_secs(20), "{:?}", revoked.elapsed());
}

#[test]
fn a_module_that_one_gateway_took_runs_on_all() {
    let fleet = Fleet::new();
    let config = fleet.config(&api::config(""));
    let nodes: Vec<_> = (0..2).map(|_| Gateway::start(&config)).collect();
    let key = nodes[0].key();
    nodes.iter().for_each(followed);
    let run = |node: &Gateway| {
        let call = serde_json::json!({"module": "acme/upper", "input": "hello"});
        node.post("/api/wasm/execute", call.to_string()).key(&key).header("Content-Type", "application/json").send()
    };
    nodes[0].upload("acme/upper", "command", &c_guest("command"));
    assert!(run(&nodes[1]).expect(200).text().contains("HELLO"));
    let files = || std::fs::read_dir(nodes[1].dir.path().join("data/modules")).expect("it has modules").count();
    assert!(files() > 0, "it is on its own disk");
    // Fetched once: without Redis it still runs from there.
    let late = Gateway::start(&config);
    assert!(run(&late).expect(200).text().contains("HELLO"), "one that joins late");
}

#[test]
fn routes_take_up_a_version_that_another_gateway_made_active() {
    let (fleet, up) = (Fleet::new(), Upstream::echo());
    let handler =
        "match.path_prefix = \"/\"\ntarget.upstream = \"up\"\nauth = \"none\"\nhandlers = [{ module = \"acme/tag\" }]";
    let config = fleet.config(&(upstream("up", up.addr, "") + &route("all", handler)));
    let nodes: Vec<_> = (0..2).map(|_| Gateway::start(&config)).collect();
    nodes.iter().for_each(followed);
    let tagged = |node: &Gateway| node.get("/").send().header("x-tag").map(str::to_owned);
    for tag in ["one", "two"] {
        nodes[0].upload("acme/tag", "http-wasm", &tagging(tag));
        for node in &nodes {
            eventually("the version is live", || tagged(node).as_deref() == Some(tag));
        }
    }
}

/// What its routes use is fetched before anything else is done with it.
#[test]
fn gateways_that_join_have_their_modules_from_the_start() {
    let (fleet, up) = (Fleet::new(), Upstream::echo());
    let handler =
        "match.path_prefix = \"/\"\ntarget.upstream = \"up\"\nauth = \"none\"\nhandlers = [{ module = \"acme/tag\" }]";
    let config = fleet.config(&(PATIENT.to_owned() + &upstream("up", up.addr, "") + &route("all", handler)));
    let first = Gateway::start(&config);
    first.upload("acme/tag", "http-wasm", &tagging("one"));
    for _ in 0..8 {
        let late = Gateway::start(&config);
        assert_eq!(late.get("/").send().header("x-tag"), Some("one"));
        assert!(!late.log().contains("can't start"), "{}", late.log());
    }
}

/// Sets a field of the answer.
fn tagging(tag: &str) -> Vec<u8> {
    wat(&format!(
        r#"(module
          (import "http_handler" "set_header_value" (func $set (param i32 i32 i32 i32 i32)))
          (memory (export "memory") 1) (data (i32.const 0) "x-tag{tag}")
          (func (export "handle_request") (result i64)
            (call $set (i32.const 1) (i32.const 0) (i32.const 5) (i32.const 5) (i32.const 3)) (i64.const 1))
          (func (export "handle_response") (param i32 i32)))"#
    ))
}

#[test]
fn known_keys_work_on_while_redis_is_away_and_unknown_ones_wait() {
    let (mut fleet, up) = (Fleet::new(), Upstream::text("answer"));
    let node = Gateway::start(&fleet.config(&keyed(&up)));
    let (known, unknown) = (node.key(), node.key());
    followed(&node);
    assert_eq!(ask(&node, &known), 200);
    fleet.redis.kill();
    eventually("nobody tells of changes", || node.metric("store_link_up", &[]) == 0.0);
    for _ in 0..200 {
        assert_eq!(ask(&node, &known), 200);
    }
    node.get("/").key(&unknown).send().problem(503, "store-unavailable");
    fleet.redis.restart();
    eventually("it heals by itself", || ask(&node, &unknown) == 200);
    followed(&node);
}

#[test]
fn a_gateway_waits_for_redis_or_says_why_not() {
    let (mut fleet, up) = (Fleet::new(), Upstream::text("answer"));
    fleet.redis.kill();
    let failing = try_serve(
        tempfile::tempdir().expect("a folder").path(),
        &fleet.config(&format!("on_start = \"fail\"\n{}", keyed(&up))),
    );
    let said = String::from_utf8_lossy(&failing.stderr).into_owned();
    assert!(failing.status.code() == Some(2) && said.contains("store.redis") && said.contains("redis"), "{said}");
    std::thread::scope(|scope| {
        let config = fleet.config(&keyed(&up));
        let node = scope.spawn(move || Gateway::start(&config));
        fleet.redis.restart();
        let node = node.join().expect("it starts");
        assert_eq!(ask(&node, &node.key()), 200);
    });
}

/// What the README says that Redis' user needs is enough.
#[test]
fn one_acl_rule_is_enough() {
    let (fleet, up) = (Fleet::new(), Upstream::text("answer"));
    let readme = include_str!("../../README.md");
    let rule = readme.split('`').find(|code| code.starts_with("~wasmgate:*")).expect("it has the rule");
    let user = ["acl", "setuser", "wasmgate", "on", ">a password"];
    let rule: Vec<_> = rule.split_whitespace().collect();
    // The one that a refused gateway tells of.
    assert_eq!(rule[1..].join(" "), COMMANDS);
    assert_eq!(fleet.redis.cli(&[&user[..], &rule].concat()).trim(), "OK");
    fleet.redis.cli(&["acl", "setuser", "default", "off"]);
    works_as_a_user(&fleet, &up, "a password");
}

/// Of Redis, with all that gateways do there.
fn works_as_a_user<S: Servers>(fleet: &Fleet<S>, up: &Upstream, password: &str) {
    let file = fleet.secret("password", &format!("{password}\n"));
    let login = format!("username = \"wasmgate\"\npassword_file = {file:?}\n");
    let config = fleet.config(&(login + &keyed(up)));
    let nodes = [Gateway::start(&config), Gateway::start(&config)];
    nodes.iter().for_each(followed);
    let key = nodes[0].new_key(&NewKey::default());
    assert_eq!(ask(&nodes[1], &key.text), 200);
    nodes[0].upload("acme/command", "command", &c_guest("command"));
    nodes[0].revoke(&key);
    eventually("it is revoked", || ask(&nodes[1], &key.text) == 401);
    let log = nodes.iter().map(Gateway::log).collect::<String>();
    assert!(!log.contains("NOPERM") && !log.contains("ACL") && !log.contains(password), "{log}");
}

/// Nothing turns into an absent key, and a restart begins no new store in its place.
#[test]
fn a_store_that_was_flushed_is_lost() {
    let (fleet, up) = (Fleet::new(), Upstream::text("answer"));
    let node = Gateway::start(&fleet.config(&keyed(&up)));
    followed(&node);
    let (known, unknown) = (node.key(), node.key());
    assert_eq!(ask(&node, &known), 200);
    fleet.redis.cli(&["flushall"]);
    for _ in 0..100 {
        assert_eq!(ask(&node, &known), 200, "it goes on until it is too old");
        assert_eq!(ask(&node, &unknown), 503, "nobody knows");
    }
    let config = fleet.config(&format!("on_start = \"fail\"\n{}", keyed(&up)));
    let again = try_serve(node.dir.path(), &config);
    let said = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(again.status.code() == Some(2) && said.contains("lost"), "{said}");
}

/// Nothing is gained by waiting for that.
#[test]
fn a_gateway_with_another_record_key_does_not_start() {
    let (fleet, up) = (Fleet::new(), Upstream::text("answer"));
    let config = fleet.config(&keyed(&up));
    let node = Gateway::start(&config);
    fleet.secret("record.key", &"0123456789abcdef".repeat(4));
    let other = try_serve(tempfile::tempdir().expect("a folder").path(), &config);
    let said = String::from_utf8_lossy(&other.stderr).into_owned();
    assert!(other.status.code() == Some(2) && said.contains("record key"), "{said}");
    assert_eq!(ask(&node, &node.key()), 200);
}

/// What it shows it also checks; how fast all of it is depends on the machine.
#[test]
fn the_demo_shows_what_it_says() {
    let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/fleet-demo");
    let ran = std::process::Command::new(demo).arg("--quick").env("WASMGATE_BIN", binary()).output();
    let ran = ran.expect("python3 is there: `apt-get install python3`");
    let (said, wrong) = (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    assert!(ran.status.success() && wrong.is_empty(), "{said}{wrong}");
    for shown in ["1. One limit", "2. Revocations", "3. An outage", "4. The fleet", "ended and removed"] {
        assert!(said.contains(shown), "{said}");
    }
    assert!(!said.contains("DOES NOT HOLD") && said.matches("holds:").count() >= 8, "{said}");
    let folder = said.split_whitespace().find_map(|word| word.strip_suffix(':').filter(|word| word.starts_with('/')));
    assert!(!Path::new(folder.expect("it says where it works")).exists(), "{said}");
}

/// Redis does what it is asked to and the gateway is not told, several times in a row.
#[test]
fn usage_counts_once_when_answers_are_lost() {
    let (fleet, up) = (Fleet::new(), Upstream::text("answer"));
    let wire = Wire::to(&fleet.redis);
    let routes = keyed(&up).replace("target.", "handlers = [{ module = \"acme/tag\" }]\ntarget.");
    let node = Gateway::start(&fleet.config(&routes).replace(&fleet.redis.url(), &wire.url));
    node.upload("acme/tag", "http-wasm", &tagging("one"));
    let key = node.key();
    let other = Gateway::start(&fleet.config(&routes));
    let sums = || {
        let usage = other.admin("GET", "/api/usage?owner=acme").send().expect(200).json();
        let module = other.admin("GET", "/api/wasm/modules/tag?owner=acme").send().expect(200).json();
        (usage["total"]["requests"].as_u64().unwrap_or(0), module["execution_count"].as_u64().unwrap_or(0))
    };
    let mut sent = 0;
    let mut ask_some = |n| {
        (0..n).for_each(|_| assert_eq!(ask(&node, &key), 200));
        sent += n;
        sent
    };
    for round in 1..=2 {
        ask_some(20);
        wire.cuts.store(u32::MAX, Ordering::SeqCst);
        flushed(&node);
        // Meanwhile there is more.
        let sent = ask_some(10);
        wire.cuts.store(0, Ordering::SeqCst);
        eventually("all are there", || sums().0 >= sent);
        eventually("all runs are there", || sums().1 >= sent);
        assert_eq!(sums(), (sent, sent), "round {round}");
    }
}

#[test]
fn forged_records_are_counted_and_told() {
    let (fleet, up) = (Fleet::new(), Upstream::text("answer"));
    let node = Gateway::start(&fleet.config(&keyed(&up)));
    let keys: Vec<_> = (0..5).map(|_| node.key()).collect();
    assert_eq!(node.metric("store_forged_records_total", &[]), 0.0);
    for record in fleet.redis.cli(&["--scan", "--pattern", "wasmgate:{r}:kh:*"]).lines() {
        fleet.redis.set(record, b"{\"tier\":\"enterprise\"}");
    }
    for key in &keys {
        assert_eq!(ask(&node, key), 401);
    }
    assert!(node.metric("store_forged_records_total", &[]) >= 5.0);
    let told = node.log().matches("was altered or forged").count();
    assert!(told == 1, "one line in ten seconds, not {told}");
}

#[test]
fn gateways_have_the_fleets_pepper_also_while_it_is_replaced() {
    let (fleet, up) = (Fleet::new(), Upstream::text("answer"));
    let (old, new) = ("0123456789abcdef".repeat(4), "f0e1d2c3b4a59687".repeat(4));
    let config = fleet.config(&keyed(&up));
    let refused = |what: &str| {
        let other = try_serve(tempfile::tempdir().expect("a folder").path(), &config);
        let said = String::from_utf8_lossy(&other.stderr).into_owned();
        assert!(other.status.code() == Some(2) && said.contains("auth.pepper_file"), "{what}: {said}");
        assert!(!said.contains(&old) && !said.contains(&new), "{said}");
    };
    let first = Gateway::start(&config);
    let key = first.key();
    fleet.secret("pepper", &new);
    refused("another pepper");
    fleet.secret("pepper", &format!("1:{old}\n2:{new}\n"));
    let second = Gateway::start(&config);
    assert_eq!(ask(&second, &key), 200, "a key of the old one");
    let newer = second.key();
    fleet.secret("pepper", &old);
    refused("it would not know the second one's keys");
    fleet.secret("pepper", &format!("2:{new}\n1:{old}\n"));
    let first = first.restart(&config);
    assert_eq!(ask(&first, &newer), 200);
    fleet.secret("pepper", &format!("2:{new}\n"));
    let second = second.restart(&config);
    assert_eq!((ask(&second, &newer), ask(&second, &key)), (200, 401), "the old one's time is over");
    // Too early: who looks at one gateway without it sees that, and which keys are left.
    let missing = "pepper 1 is missing here, which leaves 1 living key with 401";
    eventually("it is told", || reasons(&second) == ["pepper-missing"]);
    assert!(ok(verb(&second, &["health"])).contains(missing));
    eventually("the log tells it", || second.log().contains(missing));
    assert!(!reasons(&first).contains(&"pepper-missing".to_owned()));
}
