//! Routes that are pushed into the store, and taken up by each gateway whole or not at all.

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use serde_json::{Value, json};

use super::{Fleet, PATIENT, followed, tagging};
use crate::cli::{command, ok, verb};
use crate::support::admin::NewKey;
use crate::support::tls::Certificate;
use crate::support::toml::{route, tier, upstream};
use crate::support::{Conn, Gateway, Request, Response, Upstream, eventually, poll, try_serve};

/// Routes of a gateway of this fleet are those that are pushed.
fn in_store(fleet: &Fleet) -> String {
    fleet.config(PATIENT).replace("[store]\n", "[store]\nroutes = \"store\"\n")
}

/// A route that answers by itself.
fn says(path: &str, body: &str) -> String {
    let name = format!("r{}", path.replace('/', "-"));
    route(&name, format!("match.path = \"{path}\"\nauth = \"none\"\ntarget.respond = {{ body = \"{body}\" }}"))
}

fn push(node: &Gateway, text: &str) -> Response {
    push_to(node, "/api/routes", text)
}

fn push_to(node: &Gateway, target: &str, text: &str) -> Response {
    node.admin("PUT", target).header("Content-Type", "application/toml").body(text).send()
}

/// The number of a version that was taken.
#[track_caller]
fn pushed(node: &Gateway, text: &str) -> u64 {
    push(node, text).expect(201).json()["version"].as_u64().expect("a number")
}

fn said(node: &Gateway) -> String {
    node.get("/").send().text()
}

/// Of a node, as it tells of itself.
fn own(node: &Gateway) -> Value {
    let list = node.admin("GET", "/api/nodes").send().expect(200).json();
    list["nodes"].as_array().expect("a list").iter().find(|n| n["this"] == true).expect("it is there").clone()
}

fn is_ready(node: &Gateway) -> bool {
    node.admin("GET", "/health/ready").send().status == 200
}

/// What health says: its reasons for all, and for the operator with details.
fn health(node: &Gateway) -> (Value, String) {
    let reasons = node.admin("GET", "/health/ready").send().json()["reasons"].clone();
    (reasons, String::from_utf8_lossy(&verb(node, &["health"]).stdout).into_owned())
}

#[test]
fn a_gateway_that_may_starts_without_its_routes_and_takes_them_up() {
    let mut fleet = Fleet::new();
    let first = Gateway::start(&in_store(&fleet));
    assert_eq!(health(&first).0, json!(["no-routes"]));
    pushed(&first, &says("/", "one"));
    drop(first);
    fleet.redis.kill();
    let config = in_store(&fleet).replace(PATIENT, "on_start = \"degraded\"\n");
    let node = Gateway::start(&config);
    assert!(!is_ready(&node));
    let (reasons, told) = health(&node);
    assert_eq!(reasons[0], "routes-unknown", "{reasons}");
    assert!(told.starts_with("starting ") && told.contains("routes-unknown: its routes are in the store"), "{told}");
    let unrouted = node.get("/").send();
    assert!(unrouted.header("retry-after").is_some(), "{unrouted}");
    assert_eq!(unrouted.problem(503, "no-routes")["detail"], "the gateway has no routes yet");
    push(&node, &says("/", "two")).problem(503, "store-unavailable");
    node.reload().expect(200);
    fleet.redis.restart();
    eventually("it takes them up", || said(&node) == "one" && is_ready(&node));
    eventually("it lacks nothing", || health(&node).0.is_null());
    // As long as none were pushed, it is ready for the first.
    fleet.redis.cli(&["flushall"]);
    fleet.redis.kill();
    let empty = Gateway::start(&config);
    fleet.redis.restart();
    eventually("it knows that there are none", || health(&empty).0 == json!(["no-routes"]));
    pushed(&empty, &says("/", "first"));
    assert!(said(&empty) == "first" && is_ready(&empty));
}

/// Until the store tells newer ones. What is not whole counts for nothing, and neither does what another store had.
#[test]
fn a_gateway_that_starts_in_an_outage_has_its_last_routes() {
    let (mut fleet, up) = (Fleet::new(), Upstream::text("answer"));
    let config = in_store(&fleet).replace(PATIENT, &format!("{PATIENT}on_start = \"degraded\"\n"));
    let mut nodes = [(); 3].map(|()| Gateway::start(&config));
    nodes.iter().for_each(followed);
    nodes[0].upload("acme/tag", "http-wasm", &tagging("one"));
    let lines =
        "match.path = \"/tagged\"\ntarget.upstream = \"up\"\nauth = \"none\"\nhandlers = [{ module = \"acme/tag\" }]";
    let handled = upstream("up", up.addr, "") + &route("tagged", lines);
    pushed(&nodes[0], &says("/", "first"));
    pushed(&nodes[1], &(says("/", "second") + &handled));
    let last = |node: &Gateway| node.dir.path().join("data/routes.last");
    for node in &nodes {
        eventually("it has them", || said(node) == "second");
        eventually("it keeps them", || std::fs::read_to_string(last(node)).is_ok_and(|kept| kept.contains("second")));
        let mode = std::fs::metadata(last(node)).expect("it is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "they may have secrets");
    }
    fleet.redis.kill();
    let [good, damaged, strange] = &nodes;
    let replace = |node: &Gateway, from: &str, to: &str| {
        let kept = std::fs::read_to_string(last(node)).expect("it is there");
        assert!(kept.contains(from), "{kept}");
        std::fs::write(last(node), kept.replace(from, to)).expect("writable");
    };
    let id = std::fs::read_to_string(good.dir.path().join("data/store.id")).expect("it is there");
    replace(damaged, "second", "evil");
    replace(strange, id.trim(), &"0".repeat(id.trim().len()));
    nodes = nodes.map(|node| node.restart(&config));
    let [good, damaged, strange] = &nodes;
    assert!(said(good) == "second" && is_ready(good));
    let (reasons, told) = health(good);
    assert!(reasons[0] == "routes-of-disk" && told.starts_with("degraded "), "{reasons} {told}");
    good.get("/tagged").send().problem(503, "store-unavailable");
    good.reload().expect(200);
    assert_eq!(said(good), "second");
    for node in [damaged, strange] {
        node.get("/").send().problem(503, "no-routes");
        assert!(!is_ready(node));
    }
    assert!(damaged.log().contains("its text does not fit its digest"), "{}", damaged.log());
    fleet.redis.restart();
    for node in &nodes {
        eventually("it has what it had", || node.get("/tagged").send().header("x-tag") == Some("one"));
        eventually("it lacks nothing", || is_ready(node) && said(node) == "second" && health(node).0.is_null());
        followed(node);
    }
    // Who can only write to Redis makes nobody go back, by a restart neither.
    assert_eq!(pushed(&nodes[0], &says("/", "third")), 3);
    eventually("it keeps it", || std::fs::read_to_string(last(&nodes[0])).is_ok_and(|kept| kept.contains("third")));
    fleet.redis.cli(&["del", "wasmgate:{r}:routes"]);
    let [node, ..] = nodes.map(|node| node.restart(&config));
    assert_eq!(said(&node), "third");
    assert!(node.log().contains("the store has older routes"), "{}", node.log());
    assert!(pushed(&node, &says("/", "fourth")) > 3);
}

#[test]
fn a_push_is_taken_up_whole_by_all_gateways() {
    let fleet = Fleet::new();
    let config = in_store(&fleet);
    let nodes: Vec<_> = (0..3).map(|_| Gateway::start(&config)).collect();
    nodes.iter().for_each(followed);
    for node in &nodes {
        assert!(!is_ready(node), "there are no routes yet");
        assert_eq!((own(node)["state"].clone(), node.get("/").send().status), (json!("starting"), 503));
    }
    let text = |n: u64| says("/", &n.to_string()) + &says(&format!("/{n}"), "mine");
    let newest = 12;
    std::thread::scope(|scope| {
        let watch = |node| {
            let mut before = 0;
            while before < newest {
                let now = said(node).parse::<u64>().unwrap_or(before);
                assert!(now >= before, "{now} after {before}");
                for old in 1..now {
                    assert_eq!(node.get(&format!("/{old}")).send().status, 404, "of version {old} in {now}");
                }
                let own = node.get(&format!("/{now}")).send().status;
                assert!(now == 0 || own == 200 || said(node) != now.to_string(), "version {now} is not whole");
                before = now;
            }
        };
        let watched: Vec<_> = nodes.iter().map(|node| scope.spawn(move || watch(node))).collect();
        for n in 1..=newest {
            assert_eq!(pushed(&nodes[n as usize % 3], &text(n)), n);
            assert_eq!(said(&nodes[n as usize % 3]), n.to_string(), "where it was pushed, at once");
        }
        watched.into_iter().for_each(|watched| watched.join().expect("it saw whole versions"));
    });
    for node in &nodes {
        assert!(is_ready(node));
        eventually("it tells what it uses", || own(node)["routes_version"] == newest);
        assert_eq!(node.metric("routes_version", &[]), newest as f64);
    }
    let digests: Vec<_> = nodes.iter().map(|node| own(node)["routes_digest"].clone()).collect();
    assert!(digests[0].is_string() && digests.iter().all(|digest| *digest == digests[0]), "{digests:?}");
    // One that joins late, and one that begins anew.
    assert_eq!(said(&Gateway::start(&config)), newest.to_string());
    let mut nodes = nodes;
    let again = nodes.remove(0).restart(&config);
    assert!(said(&again) == newest.to_string() && is_ready(&again));
}

#[test]
fn a_text_with_errors_changes_nothing_and_all_are_listed() {
    let fleet = Fleet::new();
    let config = in_store(&fleet);
    let nodes = [Gateway::start(&config), Gateway::start(&config)];
    nodes.iter().for_each(followed);
    pushed(&nodes[0], &says("/", "good"));
    eventually("both have it", || said(&nodes[1]) == "good");
    let wrong = "[server]\nthreads = 1\n".to_owned()
        + &says("/", "bad")
        + &route("lost", "match.path = \"/lost\"\ntarget.upstream = \"nowhere\"\nauth = \"none\"")
        + &route("gold", "match.path = \"/gold\"\ntarget.api = true\ntier = \"gold\"");
    let problem = push(&nodes[0], &wrong).problem(400, "bad-request");
    let detail = problem["detail"].as_str().expect("text");
    for part in [
        "routes:1: server",
        "configuration file",
        "`nowhere` is not an upstream",
        "path_prefix",
        "`gold` is not a tier",
    ] {
        assert!(detail.contains(part), "no `{part}`: {detail}");
    }
    let modules = |module: &str| {
        let handler = format!("match.path = \"/{module}\"\ntarget.handler = {{ module = \"acme/{module}\" }}");
        route(module, handler)
    };
    let detail = push(&nodes[0], &(modules("one") + &modules("two"))).problem(400, "bad-request")["detail"].to_string();
    assert!(detail.contains("acme/one") && detail.contains("acme/two") && detail.contains("module push"), "{detail}");
    // Whoever may push gets at no files.
    let handler = "match.path = \"/\"\ntarget.handler = { module = \"acme/one\", config_file = \"data/pepper\" }";
    let detail = push(&nodes[0], &route("spy", handler)).problem(400, "bad-request")["detail"].to_string();
    assert!(detail.contains("config_file: files of a gateway"), "{detail}");
    // What a machine lacks is found out where it is pushed.
    let unresolved = "[[upstreams]]\nname = \"up\"\nendpoints = [\"host.invalid:1\"]\n".to_owned() + &says("/", "bad");
    let detail = push(&nodes[0], &unresolved).problem(400, "bad-request")["detail"].to_string();
    assert!(detail.contains("host.invalid"), "{detail}");
    let report = nodes[0].admin("POST", "/api/routes/check").body(unresolved).send().expect(200).json();
    assert!(report["ok"] == false && report["errors"][0]["message"].to_string().contains("host.invalid"), "{report}");
    push(&nodes[0], "[[routes]\n").problem(400, "bad-request");
    push(&nodes[0], &format!("# {}", "x".repeat(4 << 20))).problem(413, "payload-too-large");
    let report = nodes[0].admin("POST", "/api/routes/check").body(wrong).send().expect(200).json();
    assert!(report["ok"] == false && report["errors"].as_array().is_some_and(|errors| errors.len() >= 4), "{report}");
    let report = nodes[0].admin("POST", "/api/routes/check").body(says("/", "other")).send().expect(200).json();
    assert_eq!(report["ok"], true, "{report}");
    let list = nodes[1].admin("GET", "/api/routes/versions").send().expect(200).json();
    assert_eq!((list["versions"].as_array().map(Vec::len), &list["in_use"]), (Some(1), &json!(1)), "{list}");
    for node in &nodes {
        assert_eq!((said(node), own(node)["routes_version"].clone()), ("good".into(), json!(1)));
    }
    let lines = nodes[0].admin("GET", "/api/audit").send().expect(200).json();
    let refused = |line: &Value| line["action"] == "routes.push" && line["detail"].to_string().contains("refused");
    assert!(lines["entries"].as_array().is_some_and(|lines| lines.iter().any(refused)), "{lines}");
}

#[test]
fn a_gateway_that_lacks_something_stays_with_what_it_has_and_says_so() {
    let (fleet, up) = (Fleet::new(), Upstream::text("answer"));
    let config = in_store(&fleet);
    let nodes = [Gateway::start(&config), Gateway::start(&config)];
    nodes.iter().for_each(followed);
    pushed(&nodes[0], &says("/", "one"));
    eventually("both have it", || said(&nodes[1]) == "one");
    let authority = Certificate::authority("an authority");
    let give = |node: &Gateway| {
        let at = |name: &str| node.dir.path().join(name);
        authority.write(&at("ca.pem"), &at("ca.key"));
    };
    give(&nodes[0]);
    let tls = upstream("tls", up.addr, "tls.ca_file = \"ca.pem\"");
    assert_eq!(pushed(&nodes[0], &(tls.clone() + &says("/", "two"))), 2);
    assert_eq!(said(&nodes[0]), "two");
    eventually("it tells that it can't", || own(&nodes[1])["routes_refused"]["version"] == 2);
    let told = nodes[0].admin("GET", "/api/nodes").send().expect(200).text();
    assert!(told.contains("ca.pem"), "{told}");
    assert_eq!((said(&nodes[1]), own(&nodes[1])["routes_version"].clone()), ("one".into(), json!(1)));
    assert_eq!(own(&nodes[1])["routes_from"], "store");
    assert!(is_ready(&nodes[1]) && nodes[1].log().contains("not taken up"));
    assert_eq!((nodes[1].metric("routes_refused", &[]), nodes[1].metric("routes_version", &[])), (1.0, 1.0));
    assert!(own(&nodes[0])["routes_refused"].is_null());
    let (reasons, told) = health(&nodes[1]);
    assert_eq!(reasons, json!(["routes-refused"]));
    let refused = |told: &str| told.contains("routes-refused: version 2 of the routes") && told.contains("ca.pem");
    assert!(told.starts_with("degraded ") && refused(&told), "{told}");
    // One that has had nothing else is not ready with it.
    let late = Gateway::start(&config);
    assert!(!is_ready(&late) && own(&late)["routes_refused"]["version"] == 2);
    assert!(refused(&health(&late).1), "{}", health(&late).1);
    for node in [&nodes[1], &late] {
        give(node);
        node.reload().expect(200);
        eventually("it takes it up", || said(node) == "two" && is_ready(node));
        assert!(own(node)["routes_refused"].is_null());
        assert_eq!(node.metric("routes_refused", &[]), 0.0);
    }
}

#[test]
fn versions_are_expected_listed_and_rolled_back() {
    let fleet = Fleet::new();
    let config = in_store(&fleet);
    let nodes = [Gateway::start(&config), Gateway::start(&config)];
    nodes.iter().for_each(followed);
    let (one, two) = (says("/", "one"), says("/", "two"));
    push_to(&nodes[0], "/api/routes?expect=3", &one).problem(409, "conflict");
    push_to(&nodes[0], "/api/routes?expect=0", &one).expect(201);
    let late = push_to(&nodes[1], "/api/routes?expect=0", &two).problem(409, "conflict");
    assert!(late["detail"].to_string().contains("`1`"), "{late}");
    push_to(&nodes[1], "/api/routes?expect=1", &two).expect(201);
    eventually("both have it", || nodes.iter().all(|node| said(node) == "two"));
    // The same text again is the same version.
    assert_eq!(push(&nodes[0], &two).expect(200).json()["version"], 2);
    let back = |node: &Gateway, body: Value| node.admin("POST", "/api/routes/rollback").json(&body).send();
    back(&nodes[0], json!({"version": 9})).problem(404, "not-found");
    back(&nodes[0], json!({"expect": 1})).problem(409, "conflict");
    let third = back(&nodes[0], json!({})).expect(201).json();
    assert_eq!((&third["version"], &third["rollback_to"]), (&json!(3), &json!(1)), "{third}");
    eventually("both go back", || nodes.iter().all(|node| said(node) == "one"));
    back(&nodes[1], json!({"version": 2, "expect": 3})).expect(201);
    eventually("and forth", || nodes.iter().all(|node| said(node) == "two"));
    let list = nodes[0].admin("GET", "/api/routes/versions").send().expect(200).json();
    let told = |name: &str| -> Vec<_> {
        list["versions"].as_array().expect("a list").iter().map(|version| version[name].clone()).collect()
    };
    assert_eq!(told("version"), [4, 3, 2, 1].map(|n| json!(n)));
    assert_eq!(told("rollback_to"), [json!(2), json!(1), json!(null), json!(null)]);
    assert!(told("pushed_by").iter().all(|by| by == "bootstrap"), "{list}");
    assert_eq!(told("digest")[0], told("digest")[2]);
    let shown = nodes[1].admin("GET", "/api/routes/versions/1").send().expect(200).json();
    assert_eq!((shown["text"].as_str(), &shown["version"]), (Some(one.as_str()), &json!(1)));
    nodes[1].admin("GET", "/api/routes/versions/5").send().problem(404, "not-found");
    let audit = nodes[0].admin("GET", "/api/audit").send().expect(200).json();
    for (action, subject) in [("routes.push", "routes@1"), ("routes.push", "routes@2"), ("routes.rollback", "routes@4")]
    {
        let line = |line: &Value| line["action"] == action && line["subject"] == subject;
        assert!(audit["entries"].as_array().is_some_and(|lines| lines.iter().any(line)), "{action} {subject}: {audit}");
    }
}

#[test]
fn a_reload_and_an_outage_keep_what_was_pushed() {
    let (mut fleet, up) = (Fleet::new(), Upstream::text("answer"));
    let config = in_store(&fleet);
    let nodes = [Gateway::start(&config), Gateway::start(&config)];
    nodes.iter().for_each(followed);
    let keyed = tier("gold", "quotas = []")
        + &upstream("up", up.addr, "")
        + &route("all", "match.path_prefix = \"/\"\ntarget.upstream = \"up\"\ntier = \"gold\"");
    pushed(&nodes[0], &keyed);
    let key = nodes[0].key_of("gold");
    eventually("tiers are pushed with routes", || nodes[1].get("/").key(&key).send().status == 200);
    nodes[1].write_config(&("[server]\nkeepalive = \"61s\"\n".to_owned() + &config));
    nodes[1].reload().expect(200);
    assert_eq!(nodes[1].get("/").key(&key).send().text(), "answer");
    fleet.redis.kill();
    eventually("the link is lost", || nodes[1].metric("store_link_up", &[]) == 0.0);
    let says = |path: &str, body: &str| tier("gold", "quotas = []") + &says(path, body);
    push(&nodes[0], &says("/", "late")).problem(503, "store-unavailable");
    assert_eq!(nodes[1].get("/").key(&key).send().text(), "answer");
    fleet.redis.restart();
    eventually("it is pushed", || matches!(push(&nodes[0], &says("/", "late")).status, 200 | 201));
    eventually("what was missed is taken up", || said(&nodes[1]) == "late");
    // Who can only write to Redis makes nobody go back.
    fleet.redis.cli(&["del", "wasmgate:{r}:routes"]);
    fleet.redis.cli(&["set", "wasmgate:{r}:changes", "x"]);
    nodes[0].reload().expect(200);
    assert_eq!(said(&nodes[0]), "late");
    assert!(pushed(&nodes[0], &says("/", "later")) > 2);
    eventually("it goes on from there", || said(&nodes[1]) == "later");
}

/// All of their requests would be refused on all gateways.
#[test]
fn a_tier_that_living_keys_have_is_not_pushed_away() {
    let fleet = Fleet::new();
    let config = in_store(&fleet);
    let nodes = [Gateway::start(&config), Gateway::start(&config)];
    nodes.iter().for_each(followed);
    let (without, with) = (says("/", "without"), tier("gold", "quotas = []") + &says("/", "with"));
    pushed(&nodes[0], &without);
    pushed(&nodes[0], &with);
    eventually("both have it", || said(&nodes[1]) == "with");
    let gold = NewKey { tier: "gold", ..NewKey::default() };
    let keys = [nodes[1].new_key(&gold), nodes[1].new_key(&gold), nodes[1].new_key(&gold)];
    nodes[1].revoke(&keys[0]);
    let file = nodes[0].dir.path().join("pushed.toml");
    std::fs::write(&file, &without).expect("writable");
    let back = || nodes[0].admin("POST", "/api/routes/rollback").json(&json!({"version": 1})).send();
    for (revoked, living) in [(&keys[1], "2 living keys"), (&keys[2], "1 living key")] {
        for refused in [push(&nodes[0], &without), back()] {
            let detail = refused.problem(400, "bad-request")["detail"].to_string();
            assert!(detail.contains("no tier `gold`") && detail.contains(living), "{detail}");
        }
        for verbs in [["routes", "check"], ["routes", "push"]] {
            let refused = verb(&nodes[0], &[&verbs[..], &[file.to_str().expect("UTF-8")]].concat());
            let errors = String::from_utf8_lossy(&refused.stderr).into_owned();
            assert!(refused.status.code() == Some(2) && errors.contains(living), "{errors}");
        }
        assert_eq!(nodes.each_ref().map(said), ["with", "with"]);
        nodes[1].revoke(revoked);
    }
    back().expect(201);
    eventually("nobody has it any more", || nodes.iter().all(|node| said(node) == "without"));
}

#[test]
fn routes_are_in_one_place() {
    let fleet = Fleet::new();
    let (file, store) = (fleet.config(&format!("{PATIENT}{}", says("/", "file"))), in_store(&fleet));
    let node = Gateway::start(&file);
    assert_eq!(own(&node)["routes_from"], "file");
    let problem = push(&node, &says("/", "pushed")).problem(409, "conflict");
    assert!(problem["detail"].to_string().contains("store.routes"), "{problem}");
    let both = store.clone() + &tier("gold", "") + &says("/", "file");
    let refused = try_serve(tempfile::tempdir().expect("a folder").path(), &both);
    let errors = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(2), "{errors}");
    for part in ["routes: is in the store", "tiers: is in the store", "wasmgate routes push", "wasmgate.toml:"] {
        assert!(errors.contains(part), "no `{part}`: {errors}");
    }
    // From the file to the store without an interruption.
    node.write_config(&store);
    let problem = node.reload().problem(400, "bad-request");
    assert!(problem["detail"].to_string().contains("store.routes"), "{problem}");
    assert_eq!(said(&node), "file");
    let first = Gateway::start(&store);
    pushed(&first, &says("/", "pushed"));
    node.reload().expect(200);
    assert_eq!(said(&node), "pushed");
    pushed(&first, &says("/", "again"));
    eventually("it follows", || said(&node) == "again");
    node.write_config(&file);
    node.reload().expect(200);
    assert_eq!((said(&node), own(&node)["routes_version"].clone()), ("file".into(), json!(null)));
}

#[test]
fn a_gateway_with_a_store_of_its_own_has_them_there_as_well() {
    let config = "[store]\nroutes = \"store\"\n";
    let node = Gateway::start(config);
    assert!(!is_ready(&node));
    pushed(&node, &says("/", "one"));
    assert_eq!(pushed(&node, &says("/", "two")), 2);
    assert!(!node.dir.path().join("data/routes.last").exists(), "they are on its disk as it is");
    let node = node.restart(config);
    assert!(said(&node) == "two" && is_ready(&node));
    node.admin("POST", "/api/routes/rollback").json(&json!({})).send().expect(201);
    assert_eq!(said(&node), "one");
}

/// The wrong file, most likely: with it every request would get 404.
#[test]
fn a_text_without_routes_is_not_pushed() {
    let config = "[store]\nroutes = \"store\"\n";
    let node = Gateway::start(config);
    pushed(&node, &says("/", "good"));
    let file = node.dir.path().join("pushed.toml");
    for text in [String::new(), "# nothing\n".into(), tier("gold", "quotas = []")] {
        let detail = push(&node, &text).problem(400, "bad-request")["detail"].to_string();
        assert!(detail.contains("every request would get 404"), "{detail}");
        let report = node.admin("POST", "/api/routes/check").body(text.as_str()).send().expect(200).json();
        assert_eq!((&report["ok"], &report["errors"][0]["key"]), (&json!(false), &json!("routes")), "{report}");
        std::fs::write(&file, text).expect("writable");
        let refused = verb(&node, &["routes", "push", file.to_str().expect("UTF-8")]);
        let errors = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(refused.status.code() == Some(2) && errors.contains("is this the right file?"), "{errors}");
    }
    let list = node.admin("GET", "/api/routes/versions").send().expect(200).json();
    assert_eq!((list["versions"].as_array().map(Vec::len), said(&node)), (Some(1), "good".into()), "{list}");
}

/// Whoever sends it all before reading an answer gets the answer.
#[test]
fn a_text_over_the_bound_is_told_the_bound() {
    let node = Gateway::start("[store]\nroutes = \"store\"\n");
    let body = vec![b'#'; 6 << 20];
    let is_told = |answer: Response| {
        let problem = answer.problem(413, "payload-too-large");
        assert!(problem["detail"].to_string().contains(&(4 << 20).to_string()), "{problem}");
    };
    for (method, target) in [("PUT", "/api/routes"), ("POST", "/api/routes/check")] {
        // Whole, or in chunks, so that nobody knows ahead how long it is.
        let whole = node.admin(method, target).body(body.as_slice()).bytes();
        let chunked = node.admin(method, target).header("Transfer-Encoding", "chunked").bytes();
        let chunks = [format!("{:x}\r\n", body.len()).as_bytes(), &body, b"\r\n0\r\n\r\n"].concat();
        for sent in [whole, [chunked, chunks].concat()] {
            let mut conn = Conn::connect(node.admin);
            assert!(conn.try_write(&sent), "{method} {target}: the connection was closed before it was all sent");
            is_told(conn.try_read(method).expect("an answer"));
        }
    }
    // Nor does a stranger lose its answer.
    let mut conn = Conn::connect(node.admin);
    assert!(conn.try_write(&Request::new(node.admin, "PUT", "/api/routes").body(body.as_slice()).bytes()));
    conn.try_read("PUT").expect("an answer").problem(401, "unauthorized");
    let file = node.dir.path().join("pushed.toml");
    std::fs::write(&file, body).expect("writable");
    let refused = verb(&node, &["routes", "push", file.to_str().expect("UTF-8")]);
    let errors = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(errors.contains(&(4 << 20).to_string()), "{errors}");
}

/// A text may have secrets: fields that a route sets.
#[test]
fn a_viewer_sees_which_versions_there_are_and_not_what_is_in_them() {
    let node = Gateway::start("[store]\nroutes = \"store\"\n");
    pushed(&node, &says("/", "secret"));
    let body = json!({"name": "eyes", "role": "viewer"});
    let token = node.admin("POST", "/api/tokens").json(&body).send().expect(201).json()["token"].clone();
    let bearer = format!("Bearer {}", token.as_str().expect("text"));
    let see = |target: &str| Request::new(node.admin, "GET", target).header("Authorization", &bearer).send();
    let list = see("/api/routes/versions").expect(200).json();
    assert!(list["versions"][0]["version"] == 1 && !list.to_string().contains("secret"), "{list}");
    let refused = see("/api/routes/versions/1").problem(403, "forbidden");
    assert!(refused["detail"].to_string().contains("`operator`"), "{refused}");
    let told = &see("/api/openapi.json").expect(200).json()["paths"]["/api/routes/versions/{version}"]["get"];
    assert!(told["responses"]["403"].is_object() && told["description"].to_string().contains("`operator`"), "{told}");
    assert!(ok(verb(&node, &["routes", "show", "1"])).contains("secret"));
}

#[test]
fn who_waits_for_a_push_is_told_of_gateways_that_fall_silent() {
    let fleet = Fleet::new();
    let named = |name: &str| Gateway::start(&format!("[server]\nname = \"{name}\"\n{}", in_store(&fleet)));
    let (first, frozen, killed) = (named("first"), named("frozen"), named("killed"));
    [&first, &frozen, &killed].into_iter().for_each(followed);
    pushed(&first, &says("/", "one"));
    for node in [&frozen, &killed] {
        eventually("all have it", || said(node) == "one");
    }
    eventually("and tell", || {
        let list = first.admin("GET", "/api/nodes").send().expect(200).json();
        list["nodes"].as_array().is_some_and(|all| all.len() == 3 && all.iter().all(|n| n["routes_version"] == 1))
    });
    let file = first.dir.path().join("pushed.toml");
    std::fs::write(&file, says("/", "two")).expect("writable");
    frozen.signal("STOP");
    drop(killed);
    let (out, errors) = (first.dir.path().join("out"), first.dir.path().join("errors"));
    let create = |path| std::fs::File::create(path).expect("writable");
    let mut waiting = command(&first, &["routes", "push", file.to_str().expect("UTF-8"), "--wait"])
        .stdout(create(&out))
        .stderr(create(&errors))
        .spawn()
        .expect("the binary starts");
    let mut ended = None;
    // They count as silent after ten seconds, and it waits for half a minute at most.
    poll(Duration::from_secs(90), || {
        ended = waiting.try_wait().expect("it is our child");
        ended.is_some()
    });
    frozen.signal("CONT");
    let errors = std::fs::read_to_string(errors).expect("it was written");
    let Some(ended) = ended else {
        waiting.kill().expect("it is our child");
        panic!("it waits for ever: {errors}");
    };
    assert_eq!(ended.code(), Some(1), "{errors}");
    for name in ["frozen", "killed"] {
        assert!(errors.contains(&format!("{name} has not taken it up: it is not heard of any more")), "{errors}");
    }
    assert!(!errors.contains("first has not"), "{errors}");
    assert!(std::fs::read_to_string(out).expect("it was written").starts_with("version 2 "));
    eventually("it comes back, and takes it up", || said(&frozen) == "two");
    ok(verb(&first, &["routes", "push", file.to_str().expect("UTF-8"), "--wait"]));
}
