//! Whom a gateway believes: admin tokens while Redis is away, and what is in Redis that no gateway wrote.

use serde_json::json;

use super::{Fleet, PATIENT, ask, followed, keyed, tagging};
use crate::support::admin::NewKey;
use crate::support::toml::route;
use crate::support::{Gateway, Request, Upstream, api, c_guest, eventually};

/// An admin token's id and text.
fn token(node: &Gateway, name: &str, role: &str) -> (String, String) {
    let body = json!({"name": name, "role": role});
    let made = node.admin("POST", "/api/tokens").json(&body).send().expect(201).json();
    let text = |field: &str| made[field].as_str().expect("text").to_owned();
    (text("id"), text("token"))
}

fn with_token(node: &Gateway, token: &str, method: &str, target: &str) -> Request {
    Request::new(node.admin, method, target).header("Authorization", format!("Bearer {token}"))
}

/// Whether it may see, and whether it may change.
fn may(node: &Gateway, token: &str) -> (u16, u16) {
    let status = |method, target| with_token(node, token, method, target).send().status;
    (status("GET", "/metrics"), status("POST", "/api/config/reload"))
}

#[test]
fn who_was_known_watches_an_outage_and_changes_nothing() {
    let (mut fleet, up) = (Fleet::new(), Upstream::text("answer"));
    let config = fleet.config(&keyed(&up));
    let (node, other) = (Gateway::start(&config), Gateway::start(&config));
    [&node, &other].into_iter().for_each(followed);
    let make = |name: &str, role: &str| token(&node, name, role);
    let ((_, viewer), (_, operator), (_, unused)) =
        (make("eyes", "viewer"), make("hands", "operator"), make("unused", "operator"));
    let (told, here) = (make("told", "operator"), make("here", "operator"));
    let revoke = |node: &Gateway, id: &str| {
        node.admin("DELETE", &format!("/api/tokens/{id}")).send().expect(204);
    };
    assert_eq!(may(&node, &here.1), (200, 200));
    revoke(&node, &here.0);
    assert_eq!(may(&node, &viewer), (200, 403));
    for token in [&operator, &told.1] {
        assert_eq!(may(&node, token), (200, 200));
    }
    // Elsewhere: what is revoked behind it is told behind it.
    revoke(&other, &told.0);
    let key = node.new_key(&NewKey::default());
    assert_eq!(ask(&node, &key.text), 200);
    other.revoke(&key);
    eventually("it is told of what is revoked", || ask(&node, &key.text) == 401);
    fleet.redis.kill();
    eventually("it is known", || node.metric("store_link_up", &[]) == 0.0);
    for _ in 0..3 {
        assert_eq!(may(&node, &viewer), (200, 403));
        assert_eq!(may(&node, &operator), (200, 403), "it goes on as a viewer");
        with_token(&node, &operator, "GET", "/api/routes/versions/1").send().problem(403, "forbidden");
        for token in [&unused, &told.1, &here.1] {
            assert_eq!(may(&node, token), (503, 503));
        }
        // Nor those that this one has not seen.
        assert_eq!(may(&other, &operator), (503, 503));
    }
    assert_eq!(may(&node, "wg_admin_of_nobody"), (401, 401));
    // With the token of its own file, which is in no store.
    node.admin("POST", "/api/config/reload").send().expect(200);
    fleet.redis.restart();
    eventually("it is as the store says", || may(&node, &operator) == (200, 200));
    for (token, status) in [(&viewer, (200, 403)), (&unused, (200, 200)), (&told.1, (401, 401)), (&here.1, (401, 401))]
    {
        assert_eq!(may(&node, token), status);
    }
}

/// What an attacker puts in the place of a key: of each type, empty, long, of the right format with another seal.
const FORGERIES: [&str; 7] = [
    "redis.call('set', KEYS[1], '')",
    "redis.call('set', KEYS[1], '{}')",
    "redis.call('set', KEYS[1], string.rep('\\1', 20000000))",
    "redis.call('hset', KEYS[1], '', '', 'x', '-1', string.rep('x', 100000), string.rep('\\1', 100000))",
    "redis.call('rpush', KEYS[1], 'x', '', string.rep('\\1', 100000))",
    "redis.call('sadd', KEYS[1], 'x', '', '\\255')",
    "for n = 1, 300 do redis.call('zadd', KEYS[1], 0, n .. '\\0\\255' .. n) end",
];

/// The same bytes under a seal of nobody's.
const UNSEALED: &str = "local function of(r) return '\\1' .. string.rep('\\0', 32) .. string.sub(r, 34) end
    local kind = redis.call('type', KEYS[1]).ok
    if kind == 'string' then redis.call('set', KEYS[1], of(redis.call('get', KEYS[1]))) end
    if kind == 'hash' then
        local all = redis.call('hgetall', KEYS[1])
        for at = 1, #all, 2 do redis.call('hset', KEYS[1], all[at], of(all[at + 1])) end
    end";

fn forgeries() -> Vec<String> {
    FORGERIES.iter().map(|put| format!("redis.call('del', KEYS[1]) {put}")).chain([UNSEALED.into()]).collect()
}

/// What reads records of each kind.
const READS: [&str; 10] = [
    "/api/auth/keys",
    "/api/tokens",
    "/api/tiers",
    "/api/wasm/modules",
    "/api/wasm/modules/tag?owner=acme",
    "/api/usage",
    "/api/audit",
    "/api/nodes",
    "/api/routes/versions",
    "/api/routes/versions/1",
];

#[test]
fn nothing_that_is_put_into_redis_is_believed_or_ends_a_gateway() {
    let (fleet, up) = (Fleet::new(), Upstream::text("answer"));
    let config = fleet.config(PATIENT).replace("[store]\n", "[store]\nroutes = \"store\"\n");
    // Wrong keys are not what is tried here.
    let config = config.replace("[auth]\n", "[auth]\nfailures_per_minute = 1000000\n");
    let handled = "match.path_prefix = \"/tagged\"\ntarget.upstream = \"up\"\nauth = \"none\"\nhandlers = [{ module = \"acme/tag\" }]";
    let routes = keyed(&up) + &route("tagged", handled);
    let mut nodes = [Gateway::start(&config), Gateway::start(&config)];
    nodes.iter().for_each(followed);
    nodes[0].upload("acme/tag", "http-wasm", &tagging("one"));
    nodes[0].admin("PUT", "/api/routes").body(routes).send().expect(201);
    nodes[0].admin("PUT", "/api/tiers/free").json(&json!({"concurrent": 3})).send().expect(200);
    let (good, revoked) = (nodes[0].key(), nodes[0].new_key(&NewKey::default()));
    nodes[0].revoke(&revoked);
    let (_, viewer) = token(&nodes[0], "eyes", "viewer");
    let (id, gone) = token(&nodes[0], "gone", "admin");
    nodes[0].admin("DELETE", &format!("/api/tokens/{id}")).send().expect(204);
    let is_whole = |node: &Gateway| {
        ask(node, &good) == 200
            && node.get("/tagged").send().header("x-tag") == Some("one")
            && may(node, &viewer) == (200, 403)
            && node.admin("POST", "/api/config/reload").send().status == 200
            && node.admin("GET", "/api/audit").send().status == 200
            && node.admin("GET", "/api/nodes").send().json()["nodes"].as_array().is_some_and(|all| all.len() == 2)
    };
    nodes.iter().for_each(|node| eventually("it is whole", || is_whole(node)));
    eventually("usage is written", || fleet.redis.cli(&["--scan", "--pattern", "*:u*"]).lines().count() > 0);
    let poke = |node: &Gateway, what: &str| {
        ask(node, &good);
        let status = ask(node, &revoked.text);
        assert!([401, 503].contains(&status), "{what}: {status}");
        let (_, changed) = may(node, &viewer);
        assert_ne!(changed, 200, "{what}");
        assert!([401, 503].contains(&may(node, &gone).0), "{what}");
        node.get("/tagged").send();
        for target in READS {
            node.admin("GET", target).send();
        }
        node.admin("POST", "/api/config/reload").send();
    };
    let all = fleet.redis.cli(&["--scan"]);
    let lasting = |key: &&str| !key.contains(":op:") && !key.contains(":turn:") && !key.contains(":l:");
    let keys: Vec<&str> = all.lines().filter(lasting).collect();
    assert!(keys.len() > 20, "{keys:?}");
    for (n, key) in keys.into_iter().enumerate() {
        for (m, forged) in forgeries().iter().enumerate() {
            fleet.redis.cli(&["copy", key, "saved", "replace"]);
            let done = fleet.redis.cli(&["eval", forged, "1", key]);
            assert!(done.trim().is_empty(), "{forged}: {done}");
            let node = &mut nodes[(n + m) % 2];
            poke(node, &format!("{key}: {forged}"));
            assert!(node.is_running(), "{key}: {forged}");
            fleet.redis.cli(&["copy", "saved", key, "replace"]);
        }
    }
    for node in &nodes {
        eventually("it is as before", || is_whole(node));
        assert!(!node.log().contains("panicked"), "{}", node.log());
    }
}

/// An upload of the same bytes puts them right.
#[test]
fn bytes_of_a_module_that_were_altered_run_nowhere() {
    let fleet = Fleet::new();
    let config = fleet.config(&(PATIENT.to_owned() + &api::config("")));
    let first = Gateway::start(&config);
    let key = first.key();
    let run = |node: &Gateway| {
        let call = json!({"module": "acme/upper", "input": "hello"});
        node.post("/api/wasm/execute", call.to_string()).key(&key).header("Content-Type", "application/json").send()
    };
    let upload = || first.upload("acme/upper", "command", &c_guest("command"));
    upload();
    let piece = fleet.redis.cli(&["--scan", "--pattern", "wasmgate:b:*:0"]).trim().to_owned();
    let manifest = piece.strip_suffix('0').expect("a piece").to_owned() + "m";
    let other = tagging("evil");
    let late = Gateway::start(&config);
    for forge in ["altered", "replaced", "cut", "gone", "typed", "unsealed", "unnamed"] {
        match forge {
            "altered" => drop(fleet.redis.cli(&["setrange", &piece, "100", "x"])),
            "replaced" => fleet.redis.set(&piece, &other),
            "cut" => fleet.redis.set(&piece, &c_guest("command")[..200]),
            "gone" => drop(fleet.redis.cli(&["del", &piece])),
            "typed" => {
                fleet.redis.cli(&["del", &piece, &manifest]);
                fleet.redis.cli(&["rpush", &manifest, "x"]);
                fleet.redis.cli(&["rpush", &piece, "x"]);
            }
            "unsealed" => fleet.redis.set(&manifest, b"999999999999"),
            _ => drop(fleet.redis.cli(&["del", &manifest])),
        }
        let refused = run(&late);
        assert!((500..=503).contains(&refused.status) && !refused.text().contains("HELLO"), "{forge}: {refused}");
        assert!(run(&first).expect(200).text().contains("HELLO"), "{forge}: what it has itself is good");
        upload();
        let again = Gateway::start(&config);
        assert!(run(&again).expect(200).text().contains("HELLO"), "{forge}");
    }
    assert!(run(&late).expect(200).text().contains("HELLO"));
    assert!(!late.log().contains("panicked"), "{}", late.log());
}
