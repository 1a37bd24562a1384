//! Gateways before a cluster of Redis: what they share lies on several nodes, one of which goes.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::limits::{day, storm};
use super::outage::reasons;
use super::{Fleet, PATIENT, ask, followed, keyed, tagging, works_as_a_user};
use crate::support::admin::NewKey;
use crate::support::cluster::Cluster;
use crate::support::redis::{Redis, tls_files};
use crate::support::tls::Certificate;
use crate::support::toml::{keyed_proxy, route, tier};
use crate::support::{Gateway, Upstream, eventually};

const RECORDS: &str = "wasmgate:{r}:sentinel";

#[test]
fn a_fleet_shares_what_a_cluster_has() {
    let (fleet, up) = (Fleet::on(Cluster::start()), Upstream::text("ok"));
    let handled = "match.path_prefix = \"/tagged\"\ntarget.upstream = \"up\"\nauth = \"none\"\nhandlers = [{ module = \"acme/tag\" }]";
    let config = PATIENT.to_owned() + &day("daily", 60, "") + &keyed_proxy(up.addr, "") + &route("tagged", handled);
    let config = fleet.config(&config);
    let nodes = [Gateway::start(&config), Gateway::start(&config)];
    nodes.iter().for_each(followed);
    eventually("they know of each other", || nodes.iter().all(|node| node.metric("fleet_nodes", &[]) == 2.0));
    // Limits of several owners, whose buckets are on several nodes.
    let owners = ["acme", "globex", "initech", "umbrella"];
    let key = |owner| nodes[0].new_key(&NewKey { owner, tier: "daily", ..Default::default() });
    let keys = owners.map(key);
    for key in &keys {
        assert_eq!(storm(&nodes, &key.text, 4, 30), BTreeMap::from([(200, 60), (429, 60)]));
    }
    let requests = |owner: &str| {
        let usage = nodes[1].admin("GET", &format!("/api/usage?owner={owner}")).send().expect(200).json();
        usage["total"]["requests"].as_u64()
    };
    for owner in owners {
        eventually("usage is added up", || requests(owner) == Some(120));
    }
    nodes[1].revoke(&keys[0]);
    eventually("it is revoked", || ask(&nodes[0], &keys[0].text) == 401);
    for tag in ["one", "two"] {
        nodes[0].upload("acme/tag", "http-wasm", &tagging(tag));
        for node in &nodes {
            eventually("the version is live", || node.get("/tagged").send().header("x-tag") == Some(tag));
        }
    }
    // Without shares of them, one node would have all.
    assert!(fleet.redis.sizes().iter().all(|size| *size > 0), "{:?}", fleet.redis.sizes());
}

#[test]
fn a_fleet_gets_over_a_failover_of_the_node_with_the_records() {
    let (mut fleet, up) = (Fleet::on(Cluster::start_with_replicas()), Upstream::text("ok"));
    let config = fleet.config(&keyed(&up));
    let nodes = [Gateway::start(&config), Gateway::start(&config)];
    nodes.iter().for_each(followed);
    let (known, unknown) = (nodes[0].new_key(&NewKey::default()), nodes[0].key());
    nodes.iter().for_each(|node| assert_eq!(ask(node, &known.text), 200));
    let home = fleet.redis.place(RECORDS);
    // Acknowledged by the primary alone; its replica has it a moment later.
    assert_eq!(fleet.redis.primaries[home].cli(&["wait", "1", "20000"]).trim(), "1");
    fleet.redis.primaries[home].kill();
    for node in &nodes {
        eventually("it is known", || reasons(node).iter().any(|reason| reason == "store-unreachable"));
        assert_eq!((ask(node, &known.text), ask(node, &unknown)), (200, 503));
    }
    fleet.redis.promote(home);
    for node in &nodes {
        eventually("it heals by itself", || ask(node, &unknown) == 200);
        eventually("it is whole", || reasons(node).is_empty());
    }
    nodes[0].revoke(&known);
    eventually("it is revoked", || ask(&nodes[1], &known.text) == 401);
    fleet.redis.primaries[home].restart();
    nodes.iter().for_each(|node| assert_eq!(ask(node, &nodes[0].key()), 200));
}

/// The others are answered all the time, so that the link is not lost; nobody waits for what the frozen one has, and gets no 503.
#[test]
fn limits_on_a_frozen_node_are_decided_without_it() {
    let (fleet, up) = (Fleet::on(Cluster::start()), Upstream::text("ok"));
    let quota = "quotas = [{ name = \"minute\", requests = 60_000, window = \"1m\", burst = 20 }]\nfail = \"share\"";
    let node =
        Gateway::start(&fleet.config(&(PATIENT.to_owned() + &tier("sharing", quota) + &keyed_proxy(up.addr, ""))));
    followed(&node);
    let home = fleet.redis.place(RECORDS);
    let at_home = |owner: &str| fleet.redis.place(&format!("wasmgate:l:{{o/{owner}/sharing}}")) == home;
    let owners = ["acme", "globex", "initech", "umbrella", "hooli", "stark"];
    let key = |owner| node.new_key(&NewKey { owner, tier: "sharing", ..Default::default() }).text;
    let near = key(owners.into_iter().find(|owner| at_home(owner)).expect("one of six"));
    let (away, far) =
        owners.into_iter().find(|owner| !at_home(owner)).map(|owner| (owner, key(owner))).expect("one of six");
    assert_eq!([ask(&node, &near), ask(&node, &far)], [200, 200]);
    let frozen = &fleet.redis.primaries[fleet.redis.place(&format!("wasmgate:l:{{o/{away}/sharing}}"))];
    for node in &fleet.redis.primaries {
        node.cli(&["config", "set", "cluster-node-timeout", "600000"]);
    }
    frozen.freeze();
    let is_over = AtomicBool::new(false);
    let alone = || node.metric("rate_limit_alone_total", &["mode=\"share\""]);
    let statuses = std::thread::scope(|scope| {
        scope.spawn(|| {
            let start = Instant::now();
            while !is_over.load(Ordering::SeqCst) && start.elapsed() < Duration::from_secs(120) {
                assert!([200, 429].contains(&ask(&node, &near)));
            }
        });
        let mut statuses = BTreeMap::new();
        eventually("some are decided by the share", || {
            *statuses.entry(ask(&node, &far)).or_insert(0) += 1;
            alone() >= 10.0
        });
        is_over.store(true, Ordering::SeqCst);
        statuses
    });
    assert!(statuses.keys().all(|status| [200, 429].contains(status)), "{statuses:?}");
    frozen.thaw();
    eventually("the fleet's limits are back", || node.metric("lease_link_up", &[]) == 1.0);
    assert_eq!(ask(&node, &far), 200);
}

/// While a primary without a replica is away, the cluster refuses everything.
#[test]
fn a_fleet_gets_over_a_cluster_that_lacks_a_node() {
    let (mut fleet, up) = (Fleet::on(Cluster::start()), Upstream::text("ok"));
    let node = Gateway::start(&fleet.config(&keyed(&up)));
    followed(&node);
    let (known, unknown) = (node.key(), node.key());
    assert_eq!(ask(&node, &known), 200);
    let gone = (fleet.redis.place(RECORDS) + 1) % 3;
    // A node that was away for longer is taken back after twice that; half a minute, unless told.
    for node in &fleet.redis.primaries {
        node.cli(&["config", "set", "cluster-node-timeout", "3000"]);
    }
    fleet.redis.primaries[gone].kill();
    eventually("it is down", || reasons(&node).iter().any(|reason| reason == "store-unreachable"));
    assert_eq!((ask(&node, &known), ask(&node, &unknown)), (200, 503));
    fleet.redis.primaries[gone].restart();
    eventually("it heals by itself", || ask(&node, &unknown) == 200);
    eventually("it is whole", || reasons(&node).is_empty());
}

/// The other nodes answer: that says nothing of the one where calls fail.
#[test]
fn limits_on_a_node_that_is_full_are_the_gateways_own() {
    let (fleet, up) = (Fleet::on(Cluster::start()), Upstream::text("ok"));
    let config = PATIENT.to_owned() + &day("daily", 60, "fail = \"share\"") + &keyed_proxy(up.addr, "");
    let node = Gateway::start(&fleet.config(&config));
    followed(&node);
    // On a node without the records.
    let home = fleet.redis.place(RECORDS);
    let has_bucket = |redis: &Redis| redis.cli(&["keys", "wasmgate:l:*"]).contains("/daily");
    let mut owners = ["acme", "globex", "initech", "umbrella", "hooli", "stark"].into_iter();
    let (key, full) = owners
        .find_map(|owner| {
            let key = node.new_key(&NewKey { owner, tier: "daily", ..Default::default() }).text;
            assert_eq!(ask(&node, &key), 200);
            let of_others = |n: &usize| *n != home && has_bucket(&fleet.redis.primaries[*n]);
            (0..3).find(of_others).map(|n| (key, n))
        })
        .expect("owners are on all nodes");
    let full = &fleet.redis.primaries[full];
    full.cli(&["config", "set", "maxmemory", "1"]);
    let failed = || node.metric("lease_requests_total", &["failed"]);
    eventually("it is known", || {
        ask(&node, &key);
        node.metric("lease_link_up", &[]) == 0.0
    });
    let probed = failed() + 10.0;
    eventually("it is asked again and again", || {
        assert!([200, 429].contains(&ask(&node, &key)));
        assert_eq!(node.metric("lease_link_up", &[]), 0.0);
        failed() >= probed
    });
    full.cli(&["config", "set", "maxmemory", "0"]);
    eventually("it heals by itself", || node.metric("lease_link_up", &[]) == 1.0);
}

#[test]
fn a_fleet_talks_to_a_cluster_under_tls() {
    let (certificate, dir) = (Certificate::for_name("127.0.0.1"), tempfile::tempdir().expect("a folder"));
    let fleet = Fleet::on(Cluster::start_under_tls(&tls_files(&certificate, dir.path())));
    let up = Upstream::text("ok");
    let authority = fleet.secret("ca.pem", &certificate.cert_pem);
    let more = format!("{PATIENT}ca_file = {authority:?}\n{}{}", day("daily", 60, ""), keyed_proxy(up.addr, ""));
    let config = fleet.config(&more).replace("\"redis://", "\"rediss://");
    let nodes = [Gateway::start(&config), Gateway::start(&config)];
    nodes.iter().for_each(followed);
    let key = |owner| nodes[0].new_key(&NewKey { owner, tier: "daily", ..Default::default() });
    let keys = ["acme", "globex", "initech", "umbrella"].map(key);
    for key in &keys {
        assert_eq!(storm(&nodes, &key.text, 2, 40), BTreeMap::from([(200, 60), (429, 20)]));
    }
    nodes[1].revoke(&keys[0]);
    eventually("it is revoked", || ask(&nodes[0], &keys[0].text) == 401);
}

#[test]
fn one_acl_rule_is_enough_in_a_cluster() {
    let (fleet, up) = (Fleet::on(Cluster::start()), Upstream::text("ok"));
    let readme = include_str!("../../../README.md");
    let rule = readme.split('`').find(|code| code.starts_with("~wasmgate:*")).expect("it has the rule");
    let more = readme.split('`').find(|code| code.starts_with("+cluster|slots")).expect("and what is more");
    let user =
        "acl setuser wasmgate on >a-password".split(' ').chain(rule.split_whitespace()).chain(more.split_whitespace());
    let user: Vec<_> = user.collect();
    for node in &fleet.redis.primaries {
        assert_eq!(node.cli(&user).trim(), "OK");
        node.cli(&["acl", "setuser", "default", "-@all", "+acl", "+cluster", "+config", "+dbsize", "+client"]);
    }
    works_as_a_user(&fleet, &up, "a-password");
    // What redis-rs tells of itself it may leave untold.
    for node in &fleet.redis.primaries {
        let log = node.cli(&["acl", "log"]);
        let refused = |line: &str| ["ping", "asking"].contains(&line) || line.starts_with("cluster");
        assert!(!log.lines().any(refused), "{log}");
    }
}
