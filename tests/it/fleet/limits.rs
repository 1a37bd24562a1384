//! Limits that the gateways of a fleet share: counted over all of them, in order and in disorder.

use std::collections::BTreeMap;
use std::sync::Mutex;

use super::{Fleet, PATIENT, followed};
use crate::support::admin::NewKey;
use crate::support::redis::Redis;
use crate::support::toml::{keyed_proxy, route, tier};
use crate::support::{Gateway, Upstream, api, c_guest, eventually};

/// A fleet of `nodes`, each with these tiers, before one upstream.
fn start(fleet: &Fleet, up: &Upstream, tiers: &str, nodes: usize) -> Vec<Gateway> {
    let config = fleet.config(&(tiers.to_owned() + &keyed_proxy(up.addr, "")));
    let nodes: Vec<_> = (0..nodes).map(|_| Gateway::start(&config)).collect();
    nodes.iter().for_each(followed);
    nodes
}

/// How often each status came, of so many requests by each of some clients to gateways in turn.
pub fn storm(nodes: &[Gateway], key: &str, clients: usize, each: usize) -> BTreeMap<u16, usize> {
    let statuses = Mutex::new(BTreeMap::new());
    std::thread::scope(|scope| {
        for client in 0..clients {
            let statuses = &statuses;
            scope.spawn(move || {
                for n in 0..each {
                    let status = nodes[(client + n) % nodes.len()].get("/").key(key).send().status;
                    *statuses.lock().expect("nobody panics").entry(status).or_default() += 1;
                }
            });
        }
    });
    statuses.into_inner().expect("nobody panics")
}

pub fn day(name: &str, requests: u64, more: &str) -> String {
    tier(name, &format!("quotas = [{{ name = \"day\", requests = {requests}, window = \"1d\" }}]\n{more}"))
}

#[test]
fn a_day_quota_is_the_fleets_to_the_request() {
    let (fleet, up) = (Fleet::new(), Upstream::text("ok"));
    let nodes = start(&fleet, &up, &day("daily", 60, ""), 4);
    let key = nodes[0].key_of("daily");
    let statuses = storm(&nodes, &key, 8, 30);
    assert_eq!(statuses, BTreeMap::from([(200, 60), (429, 180)]));
    assert_eq!(up.seen().len(), 60);
    for node in &nodes {
        let refused = node.get("/").key(&key).send();
        assert_eq!(refused.problem(429, "quota-exceeded")["violated-policies"], serde_json::json!(["day"]));
        assert!(refused.header("ratelimit").is_some_and(|field| field.starts_with("\"day\";r=0;t=")), "{refused}");
        assert_eq!(refused.header("ratelimit-policy"), Some("\"day\";q=60;w=86400"));
    }
}

/// What one had taken ahead it gives back, whether or not it was used; what a killed one had is nobody's.
#[test]
fn what_a_stopped_gateway_held_others_spend() {
    let (fleet, up) = (Fleet::new(), Upstream::text("ok"));
    let mut nodes = start(&fleet, &up, &day("daily", 2_000, ""), 3);
    let key = nodes[0].key_of("daily");
    // Busy enough to be given tokens ahead.
    let first = storm(&nodes, &key, 6, 100);
    assert_eq!(first, BTreeMap::from([(200, 600)]));
    let mut stopped = nodes.remove(0);
    stopped.signal("TERM");
    assert!(stopped.wait().success());
    let rest = storm(&nodes, &key, 8, 250);
    assert_eq!(rest, BTreeMap::from([(200, 1_400), (429, 600)]));
}

#[test]
fn a_killed_gateway_gives_nobody_more() {
    let (fleet, up) = (Fleet::new(), Upstream::text("ok"));
    let mut nodes = start(&fleet, &up, &day("daily", 1_000, ""), 3);
    let key = nodes[0].key_of("daily");
    let first = storm(&nodes, &key, 6, 50);
    drop(nodes.remove(0));
    let rest = storm(&nodes, &key, 8, 200);
    let admitted = first[&200] + rest[&200];
    assert!((700..=1_000).contains(&admitted), "{first:?}, then {rest:?}");
    assert_eq!(up.seen().len(), admitted);
}

/// Slow enough that nothing comes back during the test.
#[test]
fn a_burst_is_the_fleets() {
    let (fleet, up) = (Fleet::new(), Upstream::text("ok"));
    let quota = "quotas = [{ name = \"hour\", requests = 60, window = \"59m\", burst = 20 }]";
    let nodes = start(&fleet, &up, &tier("slow", quota), 3);
    let key = nodes[0].key_of("slow");
    let statuses = storm(&nodes, &key, 6, 20);
    // The burst, a twentieth of the quota, and one that may come back meanwhile.
    assert!((20..=24).contains(&statuses[&200]), "{statuses:?}");
    let refused = nodes[1].get("/").key(&key).send().expect(429);
    let wait: u64 = refused.header("retry-after").and_then(|value| value.parse().ok()).expect("seconds");
    assert!((1..=60).contains(&wait), "one of 60 an hour comes back each minute: {refused}");
}

#[test]
fn several_policies_are_charged_together_or_not_at_all() {
    let (fleet, up) = (Fleet::new(), Upstream::text("ok"));
    let quotas = "quotas = [{ name = \"burst\", requests = 30, window = \"59m\" }, { name = \"day\", requests = 100, window = \"1d\" }]";
    let nodes = start(&fleet, &up, &tier("both", quotas), 3);
    let key = nodes[0].key_of("both");
    let statuses = storm(&nodes, &key, 6, 30);
    let admitted = statuses[&200];
    assert!((30..=33).contains(&admitted), "{statuses:?}");
    // What the first policy refused has not cost the second.
    let refused = nodes[2].get("/").key(&key).send().expect(429);
    let left =
        refused.header("ratelimit").and_then(|field| field.split("\"day\";r=").nth(1)?.split(';').next()?.parse().ok());
    assert!(
        left.is_some_and(|left: usize| left <= 100 - admitted && left >= 100 - admitted - 8),
        "{admitted}: {refused}"
    );
}

/// A bucket of its owner's for each tier, whatever key; others are others.
#[test]
fn keys_of_an_owner_share_and_owners_do_not() {
    let (fleet, up) = (Fleet::new(), Upstream::text("ok"));
    let nodes = start(&fleet, &up, &day("daily", 10, ""), 2);
    let keys: Vec<_> = (0..5).map(|_| nodes[0].key_of("daily")).collect();
    let sum: usize = keys.iter().map(|key| storm(&nodes, key, 1, 10).get(&200).copied().unwrap_or_default()).sum();
    assert_eq!(sum, 10);
    let other = NewKey { owner: "globex", tier: "daily", ..Default::default() };
    let other = nodes[1].new_key(&other).text;
    assert_eq!(storm(&nodes, &other, 2, 10), BTreeMap::from([(200, 10), (429, 10)]));
}

fn cut_off(fleet: &mut Fleet, nodes: &[Gateway]) {
    fleet.redis.kill();
    eventually("they know", || nodes.iter().all(|node| node.metric("lease_link_up", &[]) == 0.0));
}

fn joined(fleet: &mut Fleet, nodes: &[Gateway]) {
    fleet.redis.restart();
    eventually("they know", || nodes.iter().all(|node| node.metric("lease_link_up", &[]) == 1.0));
}

/// Half of what each knew to be left is its own; what was spent meanwhile counts when Redis is back.
#[test]
fn shares_add_up_to_the_limit_and_are_settled() {
    let (mut fleet, up) = (Fleet::new(), Upstream::text("ok"));
    let nodes = start(&fleet, &up, &day("daily", 100, "fail = \"share\""), 2);
    eventually("they know of each other", || nodes.iter().all(|node| node.metric("fleet_nodes", &[]) == 2.0));
    let key = nodes[0].key_of("daily");
    assert_eq!(storm(&nodes, &key, 2, 10), BTreeMap::from([(200, 20)]));
    cut_off(&mut fleet, &nodes);
    // Tokens taken ahead are spent first, and are part of the limit.
    let alone = storm(&nodes, &key, 4, 60);
    assert!((20..=100).contains(&alone[&200]) && alone[&200] + alone[&429] == 240, "{alone:?}");
    assert!(nodes.iter().any(|node| node.metric("rate_limit_alone_total", &["mode=\"share\""]) > 0.0));
    joined(&mut fleet, &nodes);
    eventually("it is settled", || {
        storm(&nodes, &key, 2, 4);
        nodes.iter().all(|node| node.get("/").key(&key).send().status == 429)
    });
    assert!((100..=120).contains(&up.seen().len()), "all that the day has, and no more but what nobody could know of");
}

#[test]
fn tiers_say_what_becomes_of_limits_that_nobody_can_ask_for() {
    let (mut fleet, up) = (Fleet::new(), Upstream::text("ok"));
    let tiers = day("closed", 50, "fail = \"closed\"") + &day("open", 50, "fail = \"open\"");
    let nodes = start(&fleet, &up, &tiers, 2);
    let (closed, open) = (nodes[0].key_of("closed"), nodes[0].key_of("open"));
    for key in [&closed, &open] {
        assert_eq!(storm(&nodes, key, 2, 1), BTreeMap::from([(200, 2)]));
    }
    cut_off(&mut fleet, &nodes);
    for node in &nodes {
        node.get("/").key(&closed).send().problem(503, "store-unavailable");
        // Its own limit holds for each by itself.
        assert_eq!(storm(std::slice::from_ref(node), &open, 2, 30), BTreeMap::from([(200, 50), (429, 10)]));
        assert_eq!(node.metric("rate_limit_alone_total", &["mode=\"open\""]), 50.0);
    }
    joined(&mut fleet, &nodes);
    // What was let through is owed.
    for node in &nodes {
        eventually("the day's quota is over", || node.get("/").key(&open).send().status == 429);
        eventually("it is asked for again", || node.get("/").key(&closed).send().status == 200);
    }
}

/// A frozen Redis says nothing at all.
#[test]
fn no_request_hangs_on_a_frozen_redis() {
    let (fleet, up) = (Fleet::new(), Upstream::text("ok"));
    let nodes = start(&fleet, &up, &day("daily", 1_000_000, "fail = \"share\""), 2);
    let key = nodes[0].key_of("daily");
    assert_eq!(storm(&nodes, &key, 2, 20), BTreeMap::from([(200, 40)]));
    fleet.redis.freeze();
    assert_eq!(storm(&nodes, &key, 4, 100), BTreeMap::from([(200, 400)]), "each one's share is large");
    fleet.redis.thaw();
    eventually("they ask again", || nodes.iter().all(|node| node.metric("lease_link_up", &[]) == 1.0));
    assert_eq!(storm(&nodes, &key, 2, 20), BTreeMap::from([(200, 40)]));
}

#[test]
fn fuel_of_the_day_is_the_fleets() {
    let fleet = Fleet::new();
    let tiers = tier("frugal", "quotas = []\nfuel_per_day = 2_000_000");
    let config = fleet.config(&(tiers + &api::config("")));
    let nodes: Vec<_> = (0..3).map(|_| Gateway::start(&config)).collect();
    nodes.iter().for_each(followed);
    let key = nodes[0].key_of("frugal");
    nodes[0].upload("acme/upper", "command", &c_guest("command"));
    let run = |node: &Gateway| {
        let input = "hello ".repeat(1_000);
        let call = serde_json::json!({"module": "acme/upper", "input": input});
        node.post("/api/wasm/execute", call.to_string()).key(&key).header("Content-Type", "application/json").send()
    };
    let fuel = run(&nodes[0]).expect(200).json()["fuel"].as_u64().expect("a number");
    assert!(fuel > 1_000, "{fuel}");
    let most = 2_000_000 / fuel + 1;
    // One gateway spends it all; the others, which ran nothing, refuse as well.
    let mut runs = 1;
    while run(&nodes[0]).status == 200 {
        runs += 1;
        assert!(runs <= most, "{runs} runs of {fuel}");
    }
    assert_eq!(runs, most);
    for node in &nodes {
        eventually("it knows of the others' runs", || {
            let response = run(node);
            response.status == 429 && response.problem(429, "quota-exceeded")["violated-policies"][0] == "fuel"
        });
    }
    // One that comes later, too.
    let late = Gateway::start(&config);
    eventually("it knows what was used before it came", || run(&late).status == 429);
}

/// What a request costs beside itself: as its guest says, and for each execution of a batch.
#[test]
fn what_guests_and_batches_charge_is_the_fleets() {
    let fleet = Fleet::new();
    let guest =
        "match.path_prefix = \"/guest\"\ntarget.handler = { module = \"acme/guest\", wall = \"60s\" }\nauth = \"key\"";
    let config = PATIENT.to_owned() + &day("daily", 60, "") + &route("guest", guest) + &api::config("");
    let config = fleet.config(&config);
    let nodes: Vec<_> = (0..2).map(|_| Gateway::start(&config)).collect();
    nodes.iter().for_each(followed);
    nodes[0].upload("acme/guest", "http-wasm", &c_guest("host_api_http"));
    nodes[0].upload("acme/upper", "command", &c_guest("command"));
    let check =
        |node: &Gateway, key: &str, lines: &str| node.post("/guest", lines).key(key).header("X-Answer", "yes").send();
    // Values are the fleet's as well.
    let (writer, reader) = (nodes[0].key(), nodes[1].key());
    eventually("the handler is known", || nodes.iter().all(|node| check(node, &reader, "").status == 200));
    assert_eq!(check(&nodes[0], &writer, "kv_set k v 0").expect(200).text().trim(), "kv_set=0");
    assert_eq!(check(&nodes[1], &reader, "kv_get k").expect(200).text().trim(), "kv_get=1 [v]");
    let (guests, batches) =
        (nodes[0].key_of("daily"), nodes[0].new_key(&NewKey { owner: "globex", tier: "daily", ..Default::default() }));
    let charged =
        |node: &Gateway, cost: u32| check(node, &guests, &format!("rate_check day {cost}")).expect(200).text();
    assert_eq!(charged(&nodes[0], 9).trim(), "rate_check=0");
    assert_eq!(charged(&nodes[1], 20).trim(), "rate_check=0");
    let mut admitted = 31;
    // What one gateway was given ahead it gives back.
    eventually("the day is over", || {
        let some = (0..20).filter(|n| check(&nodes[n % 2], &guests, "").status == 200).count();
        admitted += some;
        admitted == 60
    });
    (0..20).for_each(|n| drop(check(&nodes[n % 2], &guests, "").problem(429, "quota-exceeded")));
    let batch = |node: &Gateway, n: usize| {
        let calls = vec![serde_json::json!({"module": "acme/upper", "input": "x"}); n];
        let request = node.post("/api/wasm/batch", serde_json::json!(calls).to_string()).key(&batches.text);
        request.header("Content-Type", "application/json").send().status
    };
    let statuses: Vec<_> = [(0, 30), (1, 32), (0, 32)].map(|(node, n)| batch(&nodes[node], n)).into();
    assert_eq!(statuses, [200, 429, 429]);
}

/// Requests to a fast key mostly cost Redis nothing, and there are never more calls than requests.
#[test]
fn calls_are_fewer_than_requests() {
    let (fleet, up) = (Fleet::new(), Upstream::text("ok"));
    let fast = "quotas = [{ name = \"second\", requests = 20_000, window = \"1s\" }]";
    let slow = "quotas = [{ name = \"minute\", requests = 600, window = \"1m\", burst = 100 }]";
    let nodes = start(&fleet, &up, &(tier("fast", fast) + &tier("slow", slow)), 2);
    let calls = |redis: &Redis| -> u64 {
        let stats = redis.cli(&["info", "commandstats"]);
        let line = stats.lines().find(|line| line.starts_with("cmdstat_evalsha:")).unwrap_or_default();
        line.split(['=', ',']).nth(1).and_then(|calls| calls.parse().ok()).unwrap_or_default()
    };
    for (name, per_thousand) in [("fast", 250), ("slow", 1_000)] {
        let key = nodes[0].key_of(name);
        storm(&nodes, &key, 1, 2);
        let before = calls(&fleet.redis);
        let statuses = storm(&nodes, &key, 4, 500);
        assert!(statuses.keys().all(|status| [200, 429].contains(status)), "{statuses:?}");
        // Beside leases there are the writes of usage, every five seconds.
        let after = calls(&fleet.redis) - before;
        assert!(after <= 2_000 * per_thousand / 1_000 + 20, "{name}: {after} calls of 2,000 requests");
    }
}

/// A tier that changes takes what is held back and what is owed along.
#[test]
fn a_changed_tier_counts_what_was_used() {
    let (fleet, up) = (Fleet::new(), Upstream::text("ok"));
    let nodes = start(&fleet, &up, &day("daily", 100, ""), 2);
    let key = nodes[0].key_of("daily");
    assert_eq!(storm(&nodes, &key, 2, 20), BTreeMap::from([(200, 40)]));
    let config = fleet.config(&(day("daily", 60, "") + &keyed_proxy(up.addr, "")));
    for node in &nodes {
        node.write_config(&config);
        node.reload().expect(200);
    }
    let mut admitted = 40;
    eventually("what was held under the old limit is given back", || {
        admitted += storm(&nodes, &key, 2, 10).get(&200).copied().unwrap_or_default();
        admitted >= 60
    });
    assert_eq!((admitted, storm(&nodes, &key, 4, 30)), (60, BTreeMap::from([(429, 120)])));
}

#[test]
fn anonymous_callers_have_one_limit_by_address() {
    let (fleet, up) = (Fleet::new(), Upstream::text("ok"));
    let tiers = "[tiers.anonymous]\nrank = 0\nconcurrent = 100\nquotas = [{ name = \"day\", requests = 15, window = \"1d\" }]\n";
    let config = fleet.config(&(tiers.to_owned() + &keyed_proxy(up.addr, "").replace("\"key\"", "\"optional\"")));
    let nodes: Vec<_> = (0..3).map(|_| Gateway::start(&config)).collect();
    let send = |n: usize| nodes[n % 3].get("/").send().status;
    let admitted = (0..45).filter(|n| send(*n) == 200).count();
    assert_eq!(admitted, 15);
}
