//! What a gateway does while its Redis is away, frozen, emptied or another one, and how it finds back.

use super::{Fleet, ask, followed, keyed, tagging};
use crate::support::toml::{route, upstream};
use crate::support::{Gateway, Upstream, eventually, try_serve};

/// What needs no store, a handler, and the rest with a key.
fn mixed(up: &Upstream) -> String {
    let handled = "match.path_prefix = \"/tagged\"\ntarget.upstream = \"up\"\nauth = \"none\"\nhandlers = [{ module = \"acme/tag\" }]";
    let open = "match.path_prefix = \"/open\"\ntarget.upstream = \"up\"\nauth = \"none\"";
    keyed(up) + &route("open", open) + &route("tagged", handled)
}

fn status(node: &Gateway, path: &str) -> u16 {
    node.get(path).send().status
}

#[test]
fn a_gateway_that_may_starts_without_redis_and_heals() {
    let (mut fleet, up) = (Fleet::new(), Upstream::echo());
    let first = Gateway::start(&fleet.config(&mixed(&up)));
    first.upload("acme/tag", "http-wasm", &tagging("one"));
    let key = first.key();
    fleet.redis.kill();
    let node = Gateway::start(&fleet.config(&format!("on_start = \"degraded\"\n{}", mixed(&up))));
    for _ in 0..20 {
        assert_eq!(status(&node, "/open"), 200, "it needs no store");
        node.get("/").key(&key).send().problem(503, "store-unavailable");
        let handled = node.get("/tagged").send();
        assert!(handled.header("retry-after").is_some(), "{handled}");
        handled.problem(503, "store-unavailable");
    }
    assert_eq!(node.get("/").send().status, 401, "no key at all");
    node.admin("GET", "/api/auth/keys").send().problem(503, "store-unavailable");
    node.admin("GET", "/api/wasm/modules").send().problem(503, "store-unavailable");
    node.try_upload("acme/other", "http-wasm", &tagging("two")).problem(503, "store-unavailable");
    node.reload().problem(503, "store-unavailable");
    let routes = node.admin("GET", "/api/routes").send().expect(200).text();
    assert!(!routes.contains("\"not_stored\":[\""), "nobody knows: {routes}");
    fleet.redis.restart();
    eventually("its keys are known", || ask(&node, &key) == 200);
    eventually("its handlers run", || node.get("/tagged").send().header("x-tag") == Some("one"));
    followed(&node);
    assert_eq!(ask(&node, &node.key()), 200);
    let id = |node: &Gateway| std::fs::read_to_string(node.dir.path().join("data/store.id")).expect("it is kept");
    assert_eq!(id(&node), id(&first));
}

#[test]
fn a_store_that_turns_out_to_be_anothers_is_not_used() {
    let (mut fleet, up) = (Fleet::new(), Upstream::echo());
    let first = Gateway::start(&fleet.config(&mixed(&up)));
    let key = first.key();
    drop(first);
    fleet.secret("record.key", &"0123456789abcdef".repeat(4));
    let config = fleet.config(&format!("on_start = \"degraded\"\n{}", mixed(&up)));
    let refused = try_serve(tempfile::tempdir().expect("a folder").path(), &config);
    assert_eq!(refused.status.code(), Some(2), "it answers, so it is known at once");
    fleet.redis.kill();
    let node = Gateway::start(&config);
    fleet.redis.restart();
    eventually("it is told", || node.log().contains("another record key"));
    assert_eq!(status(&node, "/open"), 200);
    node.get("/").key(&key).send().problem(503, "store-unavailable");
    node.admin("GET", "/api/auth/keys").send().problem(503, "store-unavailable");
}
