//! Changes that fewer replicas have than are to have them: done as a whole, audited, and told for what they are.

use serde_json::{Value, json};

use super::outage::reasons;
use super::{Fleet, ask, flushed, followed, keyed, tagging};
use crate::cli::verb;
use crate::support::admin::NewKey;
use crate::support::redis::Redis;
use crate::support::{Gateway, Request, Upstream, eventually};

fn audited(node: &Gateway) -> Vec<(String, String)> {
    let list = node.admin("GET", "/api/audit").send().expect(200).json();
    let text = |line: &Value, name: &str| line[name].as_str().expect("text").to_owned();
    let lines = list["entries"].as_array().expect("a list");
    lines.iter().map(|line| (text(line, "action"), text(line, "detail"))).collect()
}

#[track_caller]
fn unreplicated(request: Request) {
    let problem = request.send().problem(503, "unreplicated");
    let detail = problem["detail"].as_str().expect("text");
    assert!(detail.contains("it was done") && detail.contains("0 of 1 replicas"), "{detail}");
}

#[test]
fn a_change_without_its_replicas_is_told_as_done_and_audited() {
    let (fleet, up) = (Fleet::on(Redis::start_on_port(&[])), Upstream::text("answer"));
    let in_store = |more: &str| fleet.config(more).replace("[store]\n", "[store]\nroutes = \"store\"\n");
    // It waits for no replicas.
    let other = Gateway::start(&in_store("timeout = \"20s\""));
    other.admin("PUT", "/api/routes").body(keyed(&up)).send().expect(201);
    other.upload("acme/tag", "http-wasm", &tagging("one"));
    let (key, gone) = (other.key(), other.new_key(&NewKey::default()));
    let before = audited(&other).len();
    let node = Gateway::start(&in_store("replicas = 1\ntimeout = \"2s\""));
    followed(&node);
    assert_eq!((ask(&node, &key), ask(&node, &gone.text)), (200, 200));

    let keys = || other.admin("GET", "/api/auth/keys").send().expect(200).json()["total"].clone();
    let had = keys().as_u64().expect("a number");
    unreplicated(node.admin("POST", "/api/auth/keys").json(&json!({"owner": "acme"})));
    assert_eq!(keys(), had + 1);
    let revoked = verb(&node, &["key", "revoke", &gone.id]);
    let errors = String::from_utf8_lossy(&revoked.stderr).into_owned();
    assert!(revoked.status.code() == Some(1) && errors.contains("it was done, but only 0 of 1"), "{errors}");
    assert_eq!(ask(&node, &gone.text), 401);
    unreplicated(node.admin("PUT", "/api/tiers/free").json(&json!({"concurrent": 3})));
    let tiers = node.admin("GET", "/api/tiers").send().expect(200).json();
    let free = tiers["tiers"].as_array().and_then(|all| all.iter().find(|tier| tier["name"] == "free").cloned());
    assert_eq!(free.expect("it is there")["concurrent"], 3, "it is in force");
    let target = "/api/wasm/modules/tag?owner=acme&abi=http-wasm&activate=true";
    unreplicated(node.admin("PUT", target).header("Content-Type", "application/wasm").body(tagging("two")));
    let module = node.admin("GET", "/api/wasm/modules/tag?owner=acme").send().expect(200).json();
    assert_eq!(module["version"], 2, "{module}");
    unreplicated(node.admin("POST", "/api/tokens").json(&json!({"name": "eyes", "role": "viewer"})));
    unreplicated(node.admin("PUT", "/api/routes").body(keyed(&up) + "# again\n"));
    assert_eq!(node.metric("routes_version", &[]), 2.0, "they are in use");
    let lines = audited(&other);
    let new: Vec<_> = lines[..lines.len() - before].iter().rev().map(|(action, _)| action.as_str()).collect();
    assert_eq!(new, ["key.create", "key.revoke", "tier.set", "module.upload", "token.create", "routes.push"]);
    assert!(!lines.iter().any(|(_, detail)| detail.contains("refused")), "{lines:?}");

    // Usage is written once, and what is known of it is told.
    let requests =
        || other.admin("GET", "/api/usage?owner=acme").send().expect(200).json()["total"]["requests"].clone();
    let mut sent = 2;
    eventually("it is told", || {
        assert_eq!(ask(&node, &key), 200);
        sent += 1;
        reasons(&node).iter().any(|reason| reason == "store-unreplicated")
    });
    eventually("all are there", || requests() == sent);
    flushed(&node);
    assert_eq!(requests(), sent);
    assert!(!node.dir.path().join("data/usage.journal").exists());

    let replica = Redis::start_on_port(&["--replicaof", "127.0.0.1", &fleet.redis.port()]);
    eventually("it replicates", || replica.cli(&["info", "replication"]).contains("master_link_status:up"));
    node.admin("PUT", "/api/tiers/free").json(&json!({"concurrent": 4})).send().expect(200);
    assert_eq!(ask(&node, &key), 200);
    eventually("it is whole", || reasons(&node).is_empty());
}
