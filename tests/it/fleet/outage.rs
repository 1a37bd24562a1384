//! What a gateway does while its Redis is away, frozen, emptied or another one, and how it finds back.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use super::limits::{day, storm};
use super::{Fleet, PATIENT, ask, flushed, followed, keyed, tagging};
use crate::cli::{ok, verb};
use crate::support::redis::Wire;
use crate::support::toml::{keyed_proxy, route};
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
    let warned = node.reload().expect(200).text();
    assert!(warned.contains("`acme/tag`, of which the store has to tell first: its requests get 503"), "{warned}");
    node.get("/tagged").send().problem(503, "store-unavailable");
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

/// What is in the file is taken up; of what is in the store, what was known before.
#[test]
fn a_reload_in_an_outage_takes_a_dead_upstream_out() {
    let (mut fleet, dead, alive) = (Fleet::new(), Upstream::text("dead"), Upstream::text("alive"));
    let config = |up: &Upstream, more: &str| fleet.config(&(day("daily", 5, "") + &mixed(up) + more));
    let next = route(
        "next",
        "match.path = \"/next\"\ntarget.upstream = \"up\"\nauth = \"none\"\nhandlers = [{ module = \"acme/next\" }]",
    );
    let (first, then) = (config(&dead, ""), config(&alive, &next));
    let node = Gateway::start(&first);
    node.upload("acme/tag", "http-wasm", &tagging("one"));
    let quota = serde_json::json!({"quotas": [{"name": "day", "requests": 777, "window": "1d"}]});
    node.admin("PUT", "/api/tiers/daily").json(&quota).send().expect(200);
    let key = node.key_of("daily");
    followed(&node);
    eventually("it is whole", || ask(&node, &key) == 200 && node.get("/tagged").send().header("x-tag") == Some("one"));
    fleet.redis.kill();
    eventually("it is known", || is_in(&node, "unreachable"));
    node.write_config(&then);
    let warned = node.reload().expect(200).text();
    for part in [
        "set through the admin API, and modules, are as of before",
        "`acme/next`, of which the store has to tell first",
    ] {
        assert!(warned.contains(part) && node.log().contains(part), "no `{part}`: {warned}\n{}", node.log());
    }
    assert!(node.log().contains("a change is missing in the audit log"), "{}", node.log());
    assert_eq!(node.get("/open").send().text(), "alive");
    let keyed = || node.get("/").key(&key).send().expect(200);
    assert_eq!(keyed().text(), "alive");
    let as_set = || keyed().header("ratelimit-policy").is_some_and(|policy| policy.contains("q=777"));
    assert!(as_set(), "{}", keyed());
    let tagged = node.get("/tagged").send();
    assert_eq!((tagged.header("x-tag"), tagged.text().as_str()), (Some("one"), "alive"));
    node.get("/next").send().problem(503, "store-unavailable");
    // By a signal as well.
    let generation = || node.admin("GET", "/api/state").send().expect(200).json()["generation"].as_u64();
    let before = generation();
    node.write_config(&first);
    node.signal("HUP");
    eventually("it is taken up", || generation() > before && node.get("/open").send().text() == "dead");
    node.write_config(&then);
    node.reload().expect(200);
    fleet.redis.restart();
    eventually("the store has told", || node.get("/next").send().status == 500);
    eventually("it is written to again", || node.try_upload("acme/next", "http-wasm", &tagging("two")).status == 201);
    eventually("it runs", || node.get("/next").send().header("x-tag") == Some("two"));
    assert!(as_set() && keyed().text() == "alive", "{}", keyed());
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
    let listed = || node.admin("GET", "/api/nodes").send().expect(200).json()["nodes"][0].clone();
    let told = listed();
    assert_eq!((&told["state"], &told["reasons"][0]), (&"degraded".into(), &"store-link-down".into()), "{told}");
    assert!(ok(verb(&node, &["nodes"])).contains(" degraded "));
    assert_eq!(ask(&node, &node.key()), 200);
    fleet.redis.cli(&["acl", "setuser", "default", "+client"]);
    eventually("it is whole again", || reasons(&node).is_empty());
    eventually("and told so", || listed()["state"] == "ready" && listed()["reasons"].is_null());
}

/// By a signal, and by a failure of its machine; whether or not Redis did what it could not answer.
#[test]
fn usage_of_an_outage_outlives_the_gateway_and_counts_once() {
    let (mut fleet, up) = (Fleet::new(), Upstream::echo());
    let wire = Wire::to(&fleet.redis);
    let other = Gateway::start(&fleet.config(&keyed(&up)));
    let routes = keyed(&up).replace("target.", "handlers = [{ module = \"acme/tag\" }]\ntarget.");
    let config = fleet.config(&routes).replace(&fleet.redis.url(), &wire.url);
    let mut node = Gateway::start(&config);
    node.upload("acme/tag", "http-wasm", &tagging("one"));
    let key = node.key();
    followed(&node);
    let journal = |node: &Gateway| node.dir.path().join("data/usage.journal");
    let mut sent = 0;
    let mut ask_some = |node: &Gateway| {
        (0..20).for_each(|_| assert_eq!(ask(node, &key), 200));
        sent += 20;
        sent
    };
    let counted = |sent: u64| {
        let told =
            ["/api/usage?owner=acme", "/api/wasm/modules/tag?owner=acme"].map(|of| other.admin("GET", of).send());
        if told.iter().any(|told| told.status != 200) {
            return false;
        }
        let [usage, module] = told.map(|told| told.json());
        let runs = module["execution_count"].as_u64().unwrap_or(0);
        let requests = usage["total"]["requests"].as_u64().unwrap_or(0);
        assert!(requests <= sent && runs <= sent, "{requests} and {runs} of {sent}");
        (requests, runs) == (sent, sent)
    };
    let sent = ask_some(&node);
    eventually("it is written", || counted(sent));
    assert!(!journal(&node).exists(), "nothing is kept twice");
    for is_killed in [false, true] {
        ask_some(&node);
        wire.cuts.store(u32::MAX, Ordering::SeqCst);
        flushed(&node);
        fleet.redis.kill();
        let sent = ask_some(&node);
        if is_killed {
            flushed(&node);
        } else {
            node.signal("TERM");
            assert!(node.wait().success());
        }
        assert!(journal(&node).exists());
        wire.cuts.store(0, Ordering::SeqCst);
        fleet.redis.restart();
        node = node.restart(&config);
        eventually("it is sent by the next run", || counted(sent));
        eventually("and kept no longer", || !journal(&node).exists());
        assert!(node.log().contains("is sent to it now"));
    }
}

/// It has not written that itself, or not all of it.
#[test]
fn a_journal_that_cannot_be_read_is_put_aside() {
    let (fleet, up) = (Fleet::new(), Upstream::echo());
    let config = fleet.config(&keyed(&up));
    let node = Gateway::start(&config);
    let data = node.dir.path().join("data");
    std::fs::write(data.join("usage.journal"), "{\"sent\": 5").expect("the folder is ours");
    let node = node.restart(&config);
    assert!(node.log().contains("usage.journal-unread"), "{}", node.log());
    let data = node.dir.path().join("data");
    assert!(data.join("usage.journal-unread").exists() && !data.join("usage.journal").exists());
    assert_eq!(ask(&node, &node.key()), 200);
    let second = try_serve(node.dir.path(), &config);
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(second.status.code() == Some(2) && said.contains("is in use by another wasmgate"), "{said}");
}

/// One that is full, or has become a replica, still answers: what it says does not help, as nothing can be drawn from it.
#[test]
fn limits_are_the_gateways_own_while_redis_can_not_be_written_to() {
    let full = ("config set maxmemory 1", "config set maxmemory 0");
    let replica = ("replicaof 127.0.0.1 1", "replicaof no one");
    for (what, undone) in [full, replica] {
        let (fleet, up) = (Fleet::new(), Upstream::text("ok"));
        let tier = day("daily", 100, "fail = \"share\"");
        let config = fleet.config(&format!("{PATIENT}{tier}{}", keyed_proxy(up.addr, "")));
        let nodes = [Gateway::start(&config), Gateway::start(&config)];
        nodes.iter().for_each(followed);
        eventually("they know of each other", || nodes.iter().all(|node| node.metric("fleet_nodes", &[]) == 2.0));
        let key = nodes[0].key_of("daily");
        assert_eq!(storm(&nodes, &key, 2, 10), BTreeMap::from([(200, 20)]));
        let redis = |command: &str| fleet.redis.cli(&command.split(' ').collect::<Vec<_>>());
        redis(what);
        let link = |node: &Gateway| node.metric("lease_link_up", &[]);
        eventually("it is known", || {
            storm(&nodes, &key, 2, 1);
            nodes.iter().all(|node| link(node) == 0.0)
        });
        let failed = |node: &Gateway| node.metric("lease_requests_total", &["failed"]);
        let probed: Vec<f64> = nodes.iter().map(|node| failed(node) + 10.0).collect();
        eventually("it is asked again and again", || {
            let statuses = storm(&nodes, &key, 2, 8);
            assert!(statuses.keys().all(|status| [200, 429].contains(status)), "{what}: {statuses:?}");
            for node in &nodes {
                assert_eq!(link(node), 0.0, "{what}: it can't be written to");
            }
            nodes.iter().zip(&probed).all(|(node, probed)| failed(node) >= *probed)
        });
        assert_eq!(storm(&nodes, &key, 2, 10), BTreeMap::from([(429, 20)]), "{what}: the shares are spent");
        redis(undone);
        eventually("the limits are the fleet's again", || nodes.iter().all(|node| link(node) == 1.0));
        eventually("and what was let through counts", || {
            storm(&nodes, &key, 2, 4);
            nodes.iter().all(|node| node.get("/").key(&key).send().status == 429)
        });
        assert!((100..=120).contains(&up.seen().len()), "{what}: {}", up.seen().len());
        eventually("nothing is left of probes", || !redis("keys *probe*").contains("probe"));
    }
}

/// Which stored module a call means is asked of the store; which one a route means is known.
#[test]
fn an_outage_stops_no_runs_of_what_is_known() {
    let mut fleet = Fleet::new();
    let handler = "match.path = \"/upper\"\ntarget.handler = { module = \"acme/upper\" }\nauth = \"none\"";
    let config = fleet.config(&(api::config("") + &route("upper", handler)));
    let config = config.replace("[auth]\n", "[auth]\nkey_max_stale = \"1h\"\n");
    let node = Gateway::start(&config);
    let key = node.key();
    for name in ["upper", "other", "gone"] {
        node.upload(&format!("acme/{name}"), "command", &c_guest("command"));
    }
    followed(&node);
    let run = |name: &str| {
        let call = serde_json::json!({"module": format!("acme/{name}"), "input": "hello"});
        node.post("/api/wasm/execute", call.to_string()).key(&key).header("Content-Type", "application/json").send()
    };
    let stored = || run("other");
    assert_eq!([run("upper"), run("gone")].map(|ran| ran.status), [200, 200]);
    node.admin("DELETE", "/api/wasm/modules/gone?owner=acme").send().expect(204);
    let routed = || node.post("/upper", "hello").send().status;
    // A change of which it was told after it had read a module keeps it from believing that.
    eventually("what was run a moment ago runs on", || {
        fleet.redis.restart();
        followed(&node);
        assert_eq!((run("upper").status, routed()), (200, 200));
        fleet.redis.kill();
        eventually("it is known", || !reasons(&node).is_empty());
        run("upper").status == 200
    });
    node.reload().expect(200);
    for _ in 0..50 {
        assert_eq!((run("upper").status, routed()), (200, 200));
    }
    run("gone").problem(503, "store-unavailable");
    stored().problem(503, "store-unavailable");
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
