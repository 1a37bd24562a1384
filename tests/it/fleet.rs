//! Gateways that share a Redis: each a process of its own, before a real redis-server.

mod limits;
mod nodes;
mod routes;

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use wasmgate::store::redis::COMMANDS;

use crate::support::admin::NewKey;
use crate::support::redis::Redis;
use crate::support::toml::{route, upstream};
use crate::support::{Gateway, Upstream, api, c_guest, eventually, try_serve, wat};

/// For tests in which Redis is there, however busy the machine is.
const PATIENT: &str = "timeout = \"20s\"\n";

/// A Redis, and what its gateways have in common.
struct Fleet {
    redis: Redis,
    secrets: TempDir,
}

impl Fleet {
    fn new() -> Fleet {
        let fleet = Fleet { redis: Redis::start(), secrets: tempfile::tempdir().expect("a folder") };
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
            "[auth]\npepper_file = {:?}\n[store]\nkind = \"redis\"\n[store.redis]\nurls = [{:?}]\nrecord_key_file = {:?}\n{more}\n",
            secret("pepper"),
            self.redis.url(),
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
    let password = fleet.secret("password", "a password\n");
    let login = format!("username = \"wasmgate\"\npassword_file = {password:?}\n");
    let config = fleet.config(&(login + &keyed(&up)));
    let nodes = [Gateway::start(&config), Gateway::start(&config)];
    nodes.iter().for_each(followed);
    let key = nodes[0].new_key(&NewKey::default());
    assert_eq!(ask(&nodes[1], &key.text), 200);
    nodes[0].upload("acme/command", "command", &c_guest("command"));
    nodes[0].revoke(&key);
    eventually("it is revoked", || ask(&nodes[1], &key.text) == 401);
    let log = nodes.iter().map(Gateway::log).collect::<String>();
    assert!(!log.contains("NOPERM") && !log.contains("ACL") && !log.contains("a password"), "{log}");
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
