//! What a gateway does while its Redis is away, frozen, emptied or another one, and how it finds back.

use super::{Fleet, ask, followed, keyed, tagging};
use crate::cli::{ok, verb};
use crate::support::toml::route;
use crate::support::{Gateway, Request, Upstream, api, c_guest, eventually, try_serve};

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
    let config = fleet.config(&format!("on_start = \"degraded\"\n{}", mixed(&up)));
    for (secret, told) in [("pepper", "a pepper that this gateway does not have"), ("record.key", "another record key")]
    {
        fleet.secret(secret, &"00112233445566778899".repeat(4)[..64]);
        let refused = try_serve(tempfile::tempdir().expect("a folder").path(), &config);
        assert_eq!(refused.status.code(), Some(2), "it answers, so it is known at once");
        fleet.redis.kill();
        let node = Gateway::start(&config);
        fleet.redis.restart();
        eventually("it is told", || node.log().contains(told));
        eventually("by its health", || is_in(&node, "unusable"));
        assert_eq!(status(&node, "/open"), 200);
        node.get("/").key(&key).send().problem(503, "store-unavailable");
        node.admin("GET", "/api/auth/keys").send().problem(503, "store-unavailable");
        assert!(!node.dir.path().join("data/store.id").exists());
    }
}

/// What `/health/ready` says: always that the gateway is fit for traffic.
pub fn reasons(node: &Gateway) -> Vec<String> {
    let ready = Request::new(node.admin, "GET", "/health/ready").send().expect(200).json();
    let reasons: Vec<String> =
        ready["reasons"].as_array().into_iter().flatten().map(|r| r.as_str().expect("text").to_owned()).collect();
    assert_eq!(ready["status"], if reasons.is_empty() { "ready" } else { "degraded" }, "{ready}");
    reasons
}

fn is_in(node: &Gateway, state: &str) -> bool {
    let is_up = node.metric("store_up", &[]) == 1.0;
    node.metric("store_state", &[&format!("state=\"{state}\"")]) == 1.0 && is_up == (state == "up")
}

#[test]
fn a_gateway_without_redis_is_degraded_and_ready() {
    let (mut fleet, up) = (Fleet::new(), Upstream::echo());
    let health = "match.path_prefix = \"/health\"\ntarget.health = true\nauth = \"none\"";
    let node = Gateway::start(&fleet.config(&(keyed(&up) + &route("health", health))));
    let key = node.key();
    assert_eq!(ask(&node, &key), 200);
    followed(&node);
    eventually("it is whole", || reasons(&node).is_empty() && is_in(&node, "up"));
    assert!(ok(verb(&node, &["health"])).starts_with("ready "));
    // Killed, and then cut off: seen without any request.
    for kill in [true, false] {
        if kill {
            fleet.redis.kill()
        } else {
            fleet.redis.freeze()
        }
        eventually("it is known", || is_in(&node, "unreachable"));
        eventually("and why", || reasons(&node).iter().any(|reason| reason == "store-unreachable"));
        assert_eq!(ask(&node, &key), 200);
        assert_eq!(node.get("/health/ready").send().expect(200).text(), "{\"status\":\"degraded\"}");
        let details = node.admin("GET", "/health").send().expect(200).json();
        assert_eq!((&details["store"], &details["status"]), (&"unreachable".into(), &"degraded".into()), "{details}");
        let text = ok(verb(&node, &["health"]));
        assert!(text.starts_with("degraded ") && text.contains("store-unreachable: "), "{text}");
        eventually("keys are served as stale", || {
            assert_eq!(ask(&node, &key), 200);
            node.metric("key_cache", &["stale"]) > 0.0
        });
        if kill {
            fleet.redis.restart()
        } else {
            fleet.redis.thaw()
        }
        eventually("it is whole again", || reasons(&node).is_empty() && is_in(&node, "up"));
    }
}

#[test]
fn a_flushed_store_is_told_without_being_asked() {
    let (fleet, up) = (Fleet::new(), Upstream::echo());
    let node = Gateway::start(&fleet.config(&keyed(&up)));
    followed(&node);
    fleet.redis.cli(&["flushall"]);
    eventually("it is known", || is_in(&node, "lost"));
    assert_eq!(reasons(&node)[0], "store-lost");
    let remedy = format!(
        "delete `store.id` in each one's data directory (here `{}`)",
        node.dir.path().join("data/store.id").display()
    );
    let details = node.admin("GET", "/health").send().expect(200).json();
    assert!(details["degraded"][0]["detail"].as_str().is_some_and(|detail| detail.contains(&remedy)), "{details}");
    assert!(node.log().contains(&remedy), "{}", node.log());
}

/// What was used is gone with the store, so nothing is drawn from what is in its place.
#[test]
fn a_lost_store_gives_no_new_quota() {
    let (fleet, up) = (Fleet::new(), Upstream::echo());
    let tier = "[tiers.daily]\nrank = 2\nconcurrent = 100\nfail = \"closed\"\n\
                quotas = [{ name = \"day\", requests = 10, window = \"1d\" }]\n";
    let free = "match.path_prefix = \"/free\"\ntarget.upstream = \"up\"\nlimited = false";
    let config = fleet.config(&(tier.to_owned() + &keyed(&up) + &route("free", free)));
    let (node, other) = (Gateway::start(&config), Gateway::start(&config));
    [&node, &other].into_iter().for_each(followed);
    let key = node.key_of("daily");
    eventually("the day's quota is used", || ask(&node, &key) == 429);
    other.get("/free").key(&key).send().expect(200);
    fleet.redis.cli(&["flushall"]);
    eventually("it is known", || is_in(&other, "lost"));
    for _ in 0..20 {
        assert_ne!(ask(&other, &key), 200);
    }
    other.get("/free").key(&key).send().expect(200);
    eventually("it is told", || reasons(&other).iter().any(|reason| reason == "limits-alone"));
}

/// From the loss to the new beginning, on a gateway that is restarted and on one that only sees it.
#[test]
fn an_operator_begins_anew_after_a_loss() {
    let (fleet, up) = (Fleet::new(), Upstream::echo());
    let config = fleet.config(&keyed(&up));
    let (node, other) = (Gateway::start(&config), Gateway::start(&config));
    let key = node.key();
    let id = |node: &Gateway| node.dir.path().join("data/store.id");
    let remedy =
        |node: &Gateway| format!("delete `store.id` in each one's data directory (here `{}`)", id(node).display());
    let refused = |node: &Gateway, what: &str| {
        let again = try_serve(node.dir.path(), &config);
        let said = String::from_utf8_lossy(&again.stderr).into_owned();
        assert_eq!(again.status.code(), Some(2), "{said}");
        assert!(said.contains(what) && said.contains(&remedy(node)), "{said}");
    };
    fleet.redis.cli(&["flushall"]);
    refused(&node, "lost");
    std::fs::remove_file(id(&node)).expect("it is there");
    let node = node.restart(&config);
    assert_eq!(ask(&node, &key), 401, "it was lost");
    let key = node.key();
    assert_eq!(ask(&node, &key), 200);
    // The other one takes no part in that before its operator says so.
    eventually("it is told", || other.log().contains("another store has taken the place"));
    assert!(other.log().contains(&remedy(&other)) && is_in(&other, "lost"), "{}", other.log());
    assert_eq!(ask(&other, &key), 503);
    refused(&other, "another store has taken the place");
    std::fs::remove_file(id(&other)).expect("it is there");
    let other = other.restart(&config);
    assert_eq!(ask(&other, &key), 200);
}

#[test]
fn a_link_that_is_cut_alone_is_told_as_that() {
    let (fleet, up) = (Fleet::new(), Upstream::echo());
    let node = Gateway::start(&fleet.config(&keyed(&up)));
    followed(&node);
    fleet.redis.cli(&["acl", "setuser", "default", "-client", "+client|kill"]);
    fleet.redis.cli(&["client", "kill", "type", "normal"]);
    eventually("it is known", || reasons(&node) == ["store-link-down"]);
    assert!(is_in(&node, "up"));
    assert_eq!(ask(&node, &node.key()), 200);
    fleet.redis.cli(&["acl", "setuser", "default", "+client"]);
    eventually("it is whole again", || reasons(&node).is_empty());
}

/// Which stored module a call means is asked of the store; which one a route means is known.
#[test]
fn an_outage_keeps_routes_and_inline_runs_and_stops_runs_of_stored_modules() {
    let mut fleet = Fleet::new();
    let handler = "match.path = \"/upper\"\ntarget.handler = { module = \"acme/upper\" }\nauth = \"none\"";
    let config = fleet.config(&(api::config("") + &route("upper", handler)));
    let config = config.replace("[auth]\n", "[auth]\nkey_max_stale = \"1h\"\n");
    let node = Gateway::start(&config);
    let key = node.key();
    node.upload("acme/upper", "command", &c_guest("command"));
    followed(&node);
    let stored = || {
        let call = serde_json::json!({"module": "acme/upper", "input": "hello"});
        node.post("/api/wasm/execute", call.to_string()).key(&key).header("Content-Type", "application/json").send()
    };
    stored().expect(200);
    let routed = || node.post("/upper", "hello").send().status;
    assert_eq!(routed(), 200);
    fleet.redis.kill();
    eventually("it is refused", || stored().status == 503);
    stored().problem(503, "store-unavailable");
    assert_eq!(routed(), 200);
    node.execute(&key, &c_guest("command"), b"hello").expect(200);
    // An outage is a line, not one a request.
    let told = || node.log().lines().filter(|line| line.contains("\"the store failed\"")).count();
    for _ in 0..100 {
        stored().problem(503, "store-unavailable");
        node.admin("GET", "/health").send();
    }
    assert!(told() < 50, "{}", node.log());
    fleet.redis.restart();
    eventually("it runs again", || stored().status == 200);
}
