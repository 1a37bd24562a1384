//! Whom a gateway believes: admin tokens while Redis is away, and what is in Redis that no gateway wrote.

use serde_json::json;

use super::{Fleet, ask, followed, keyed};
use crate::support::admin::NewKey;
use crate::support::{Gateway, Request, Upstream, eventually};

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
    node.admin("POST", "/api/config/reload").send().problem(503, "store-unavailable");
    fleet.redis.restart();
    eventually("it is as the store says", || may(&node, &operator) == (200, 200));
    for (token, status) in [(&viewer, (200, 403)), (&unused, (200, 200)), (&told.1, (401, 401)), (&here.1, (401, 401))] {
        assert_eq!(may(&node, token), status);
    }
}
