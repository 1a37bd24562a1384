//! The list of a fleet's gateways: who lives, who has stopped, who was killed.

use serde_json::Value;

use super::{Fleet, PATIENT, keyed};
use crate::support::{Gateway, Upstream, eventually};

/// The nodes as one of them tells of them.
fn nodes(node: &Gateway) -> Vec<Value> {
    let list = node.admin("GET", "/api/nodes").send().expect(200).json();
    list["nodes"].as_array().expect("a list").clone()
}

fn names(node: &Gateway) -> Vec<String> {
    nodes(node).iter().map(|node| node["name"].as_str().expect("a name").to_owned()).collect()
}

fn named(name: &str, config: &str) -> String {
    format!("[server]\nname = \"{name}\"\n{config}")
}

#[test]
fn gateways_see_each_other_until_they_stop_or_are_killed() {
    let (fleet, up) = (Fleet::new(), Upstream::text("answer"));
    let config = fleet.config(&format!("{PATIENT}{}", keyed(&up)));
    let start = |name: &str| Gateway::start(&named(name, &config));
    let (first, mut second, third) = (start("first"), start("second"), start("third"));
    let all = ["first", "second", "third"];
    for node in [&first, &second, &third] {
        eventually("it sees all", || names(node) == all);
        eventually("and counts them", || node.metric("fleet_nodes", &[]) == 3.0);
    }
    let told = nodes(&second);
    for (node, at) in told.iter().zip([&first, &second, &third]) {
        assert_eq!(node["this"], node["name"] == "second", "{node}");
        assert_eq!(node["version"], env!("CARGO_PKG_VERSION"));
        assert_eq!(node["started_at"], at.admin("GET", "/api/state").send().expect(200).json()["started_at"]);
        assert!(node["config_digest"].as_str().is_some_and(|digest| digest.starts_with("sha256:")), "{node}");
        assert!(node["silent_ms"].as_u64().is_some_and(|silent| silent < 10_000), "{node}");
        assert!(node["generation"].as_u64() >= Some(1), "{node}");
    }
    // Its configuration is another one.
    let before = told[0]["config_digest"].clone();
    first.write_config(&named("first", &(config.clone() + "# changed\n")));
    first.reload().expect(200);
    eventually("the others see what it has in use", || {
        let seen = &nodes(&third)[0];
        seen["generation"].as_u64() > told[0]["generation"].as_u64() && seen["config_digest"] != before
    });
    second.signal("TERM");
    assert!(second.wait().success());
    assert!(!names(&first).contains(&"second".to_owned()), "one that stops takes itself off");
    drop(third);
    eventually("one that was killed is missed", || names(&first) == ["first"]);
    eventually("and not counted", || first.metric("fleet_nodes", &[]) == 1.0);
}

#[test]
fn the_last_known_number_stays_while_redis_is_away() {
    let (mut fleet, up) = (Fleet::new(), Upstream::text("answer"));
    let config = fleet.config(&format!("{PATIENT}{}", keyed(&up)));
    let nodes = [Gateway::start(&config), Gateway::start(&config)];
    eventually("it sees both", || nodes[0].metric("fleet_nodes", &[]) == 2.0);
    fleet.redis.kill();
    eventually("a beat has failed", || nodes[0].log().contains("the fleet is not told"));
    nodes[0].admin("GET", "/api/nodes").send().problem(503, "store-unavailable");
    assert_eq!(nodes[0].metric("fleet_nodes", &[]), 2.0);
    fleet.redis.restart();
    eventually("it is told again", || nodes[0].admin("GET", "/api/nodes").send().status == 200);
}

#[test]
fn a_gateway_with_a_store_of_its_own_is_alone() {
    let up = Upstream::text("answer");
    let node = Gateway::start(&keyed(&up));
    let list = nodes(&node);
    assert_eq!((list.len(), &list[0]["this"], &list[0]["state"]), (1, &true.into(), &"ready".into()));
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").expect("the machine has a name");
    assert_eq!(list[0]["name"], host.trim());
    eventually("it counts itself", || node.metric("fleet_nodes", &[]) == 1.0);
}
