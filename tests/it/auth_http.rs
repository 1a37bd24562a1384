//! Keys over HTTP: who gets in, what everybody else sees, and where the key's text never turns up.

use serde_json::{Value, json};

use crate::support::admin::NewKey;
use crate::support::toml::{keyed_proxy, open_proxy, route, tier, upstream};
use crate::support::{Gateway, Request, Response, Upstream, api, eventually};

/// What a refused client can tell apart: everything but the request's own id and the date.
fn visible(response: &Response) -> (u16, Vec<(String, String)>, Value) {
    let mut doc = response.json();
    doc["request_id"] = Value::Null;
    let own = |name: &str| ["date", "x-request-id"].contains(&name.to_ascii_lowercase().as_str());
    let headers = response.headers.iter().filter(|(n, _)| !own(n)).cloned().collect();
    (response.status, headers, doc)
}

#[test]
fn a_key_opens_in_either_header() {
    let up = Upstream::echo();
    let gw = Gateway::start(&keyed_proxy(up.addr, ""));
    let key = gw.key();
    gw.get("/").key(&key).send().expect(200);
    gw.get("/").header("Authorization", format!("Bearer {key}")).send().expect(200);
    gw.get("/").header("authorization", format!("bearer {key}")).send().expect(200);
    gw.get("/").key(&key).header("Authorization", format!("Bearer {key}")).send().expect(200);
}

#[test]
fn every_bad_key_gets_the_same_401() {
    let up = Upstream::echo();
    let gw = Gateway::start(&keyed_proxy(up.addr, ""));
    let other = Gateway::start(&keyed_proxy(up.addr, ""));
    let (unknown, live) = (other.key(), gw.key());
    let revoked = gw.new_key(&NewKey::default());
    gw.revoke(&revoked);
    let expired = gw.new_key(&NewKey { expires_at: Some(in_seconds(1)), ..NewKey::default() }).text;
    eventually("the key expires", || gw.get("/").key(&expired).send().status == 401);

    let mut bad_checksum = live.clone();
    let last = if bad_checksum.pop() == Some('0') { '1' } else { '0' };
    bad_checksum.push(last);
    let missing = gw.get("/").send();
    missing.problem(401, "unauthorized");
    assert!(missing.header("www-authenticate").is_some(), "RFC 9110 section 11.6.1: {missing}");
    let expected = visible(&missing);
    let junk = ["", "x", "wg_live_", "wg_live_short", &"k".repeat(4000), &live[1..], &bad_checksum];
    for key in junk.into_iter().chain([unknown.as_str(), &revoked.text, &expired]) {
        assert_eq!(visible(&gw.get("/").key(key).send()), expected, "X-Api-Key: {key}");
    }
    assert!(up.seen().iter().all(|s| s.header("x-api-key").is_none()));
}

/// The operator has to see to it; the key is good.
#[test]
fn a_key_whose_tier_is_gone_is_told_so() {
    let up = Upstream::echo();
    let config = keyed_proxy(up.addr, "");
    let with = tier("gold", "quotas = []") + &config;
    let gw = Gateway::start(&with);
    let (key, other) = (gw.key_of("gold"), gw.key());
    gw.get("/").key(&key).send().expect(200);
    let named = |warnings: &Value| {
        warnings[0]["key"] == "tiers"
            && warnings[0]["message"].to_string().contains("`gold`, which leaves 1 living key")
    };
    gw.write_config(&config);
    let checked = gw.admin("POST", "/api/config/check").send().expect(200).json();
    assert!(checked["ok"] == true && named(&checked["warnings"]), "{checked}");
    let reloaded = gw.reload().expect(200).json();
    assert!(named(&reloaded["warnings"]), "{reloaded}");
    eventually("the log warns", || gw.log().contains("no tier `gold`"));
    let problem = gw.get("/").key(&key).send().problem(503, "tier-missing");
    assert!(problem["detail"].as_str().is_some_and(|detail| detail.contains("`gold`")), "{problem}");
    eventually("the log tells of the key", || gw.log().contains("a key's tier is not configured"));
    gw.get("/").key(&other).send().expect(200);
    gw.write_config(&with);
    assert_eq!(gw.reload().expect(200).json()["warnings"], json!([]));
    gw.get("/").key(&key).send().expect(200);
}

#[test]
fn two_different_keys_conflict() {
    let up = Upstream::echo();
    let gw = Gateway::start(&keyed_proxy(up.addr, ""));
    let (one, two) = (gw.key(), gw.key());
    let both = gw.get("/").key(&one).header("Authorization", format!("Bearer {two}"));
    both.send().problem(400, "conflicting-credentials");
    gw.get("/").key(&one).key(&two).send().problem(400, "conflicting-credentials");
    assert!(up.seen().is_empty());
}

#[test]
fn the_key_never_reaches_the_upstream_or_the_log() {
    let up = Upstream::echo();
    let gw = Gateway::start(&keyed_proxy(up.addr, ""));
    let key = gw.key();
    gw.get("/").key(&key).send().expect(200);
    gw.get("/").header("Authorization", format!("Bearer {key}")).send().expect(200);
    // Somebody else's credential is none of ours.
    gw.get("/").key(&key).header("Authorization", "Bearer eyJ.of.upstream").send().expect(200);
    gw.get("/").key(&format!("{key}x")).send().expect(401);
    for seen in up.seen() {
        assert!(!seen.mentions(&key), "{seen:?}");
        assert_eq!(seen.header("x-api-key"), None);
    }
    assert_eq!(up.last().header("authorization"), Some("Bearer eyJ.of.upstream"));
    assert!(!gw.log().contains(&key), "the key is in the log");
}

#[test]
fn a_key_in_the_query_counts_for_nothing() {
    let up = Upstream::echo();
    let gw = Gateway::start(&keyed_proxy(up.addr, ""));
    let key = gw.key();
    for name in ["key", "api_key", "apikey", "x-api-key", "access_token"] {
        gw.get(&format!("/?{name}={key}")).send().problem(401, "unauthorized");
    }
    assert!(!gw.log().contains(&key), "the log has queries, or the key");
}

#[test]
fn an_unguarded_route_strips_the_key_too() {
    let up = Upstream::echo();
    let gw = Gateway::start(&open_proxy(up.addr, ""));
    let key = gw.key();
    gw.get("/").key(&key).send().expect(200);
    assert!(!up.only().mentions(&key));
}

#[test]
fn optional_routes_let_strangers_in_but_not_bad_keys() {
    let up = Upstream::echo();
    let lines = "match.path_prefix = \"/\"\ntarget.upstream = \"up\"\nauth = \"optional\"";
    let gw = Gateway::start(&(upstream("up", up.addr, "") + &route("all", lines)));
    gw.get("/").send().expect(200);
    gw.get("/").key(&gw.key()).send().expect(200);
    gw.get("/").key("wg_live_nonsense").send().problem(401, "unauthorized");
}

#[test]
fn scopes_and_tiers_are_enforced() {
    let up = Upstream::echo();
    let to_up = "target.upstream = \"up\"\nauth = \"key\"";
    let config = upstream("up", up.addr, "")
        + &route("scoped", format!("match.path_prefix = \"/scoped\"\nscopes = [\"execute\"]\n{to_up}"))
        + &route("tiered", format!("match.path_prefix = \"/tiered\"\ntier = \"pro\"\n{to_up}"))
        + &route("plain", format!("match.path_prefix = \"/plain\"\n{to_up}"));
    let gw = Gateway::start(&config);
    let weak = gw.new_key(&NewKey { tier: "basic", scopes: &["proxy"], ..NewKey::default() }).text;
    let doc = gw.get("/scoped").key(&weak).send().problem(403, "scope-required");
    assert!(doc["detail"].as_str().is_some_and(|d| d.contains("`execute`")), "{doc}");
    let doc = gw.get("/tiered").key(&weak).send().problem(402, "tier-required");
    assert_eq!(doc["needs_tier"], "pro");
    gw.get("/plain").key(&weak).send().expect(200);
    let strong = gw.key();
    gw.get("/scoped").key(&strong).send().expect(200);
    gw.get("/tiered").key(&strong).send().expect(200);
    let no_proxy = gw.new_key(&NewKey { scopes: &["usage"], ..NewKey::default() }).text;
    gw.get("/plain").key(&no_proxy).send().problem(403, "scope-required");
}

#[test]
fn a_revocation_is_seen_at_once() {
    let up = Upstream::echo();
    let gw = Gateway::start(&keyed_proxy(up.addr, ""));
    let key = gw.new_key(&NewKey::default());
    for _ in 0..5 {
        gw.get("/").key(&key.text).send().expect(200);
    }
    gw.revoke(&key);
    gw.get("/").key(&key.text).send().problem(401, "unauthorized");
}

#[test]
fn a_revocation_survives_kill_9() {
    let up = Upstream::echo();
    let config = keyed_proxy(up.addr, "");
    let gw = Gateway::start(&config);
    let (kept, gone) = (gw.new_key(&NewKey::default()), gw.new_key(&NewKey::default()));
    gw.revoke(&gone);
    let gw = gw.restart(&config);
    gw.get("/").key(&kept.text).send().expect(200);
    gw.get("/").key(&gone.text).send().problem(401, "unauthorized");
}

#[test]
fn brute_force_is_stopped_by_address() {
    let up = Upstream::echo();
    let gw = Gateway::start(&format!("[auth]\nfailures_per_minute = 5\n{}", keyed_proxy(up.addr, "")));
    let statuses: Vec<_> = (0..8).map(|i| gw.get("/").key(&format!("guess{i}")).send().status).collect();
    assert_eq!(statuses[..5], [401; 5]);
    let refused = gw.get("/").key("guess").send();
    refused.problem(429, "too-many-failures");
    let wait: u64 = refused.header("retry-after").and_then(|v| v.parse().ok()).expect("Retry-After in seconds");
    assert!((1..=60).contains(&wait), "{wait}");
}

/// A request to the tenant's key API.
fn keys(gw: &Gateway, method: &str, rest: &str, key: &str) -> Request {
    gw.request(method, &format!("/api/auth/keys{rest}")).key(key)
}

#[test]
fn tenants_manage_their_own_keys_and_never_rise() {
    let gw = Gateway::start(&api::config(""));
    let acme = NewKey { owner: "acme", tier: "basic", scopes: &["proxy", "keys"], ..NewKey::default() };
    let key = gw.new_key(&acme).text;
    let made =
        keys(&gw, "POST", "", &key).json(&json!({"tier": "free", "scopes": ["proxy"]})).send().expect(201).json();
    assert!(made["key"].as_str().is_some_and(|k| k.starts_with("wg_live_") && k.len() == 44), "{made}");
    for rise in [
        json!({"tier": "pro"}),
        json!({"scopes": ["execute"]}),
        json!({"scopes": ["admin"]}),
        json!({"owner": "other"}),
    ] {
        let refused = keys(&gw, "POST", "", &key).json(&rise).send();
        assert!(matches!(refused.status, 402 | 403), "{rise}: {refused}");
    }
    let listed = keys(&gw, "GET", "", &key).send().expect(200);
    let text = made["key"].as_str().unwrap_or_default();
    assert!(!listed.text().contains(text), "a key is shown once: {listed}");
    assert!(listed.text().contains(made["id"].as_str().unwrap_or_default()), "{listed}");

    let stranger = gw.new_key(&NewKey { owner: "other", ..NewKey::default() });
    let refused = keys(&gw, "DELETE", &format!("/{}", stranger.id), &key).send();
    assert!(matches!(refused.status, 403 | 404), "{refused}");
    assert!(!keys(&gw, "GET", "", &key).send().text().contains(&stranger.id), "other owners' keys are not listed");
    let without_scope = gw.new_key(&NewKey { scopes: &["proxy"], ..acme }).text;
    keys(&gw, "GET", "", &without_scope).send().problem(403, "scope-required");
}

#[test]
fn rotation_leaves_the_old_key_a_grace_period() {
    let up = Upstream::echo();
    let gw = Gateway::start(&keyed_proxy(up.addr, ""));
    let old = gw.new_key(&NewKey::default());
    let rotate = |body: Value| gw.admin("POST", &format!("/api/auth/keys/{}/rotate", old.id)).json(&body).send();
    let made = rotate(json!({"grace_seconds": 2})).json();
    let new = made["key"].as_str().expect("the new key").to_owned();
    gw.get("/").key(&old.text).send().expect(200);
    gw.get("/").key(&new).send().expect(200);
    eventually("the grace period ends", || gw.get("/").key(&old.text).send().status == 401);
    gw.get("/").key(&new).send().expect(200);
}

fn in_seconds(n: u64) -> String {
    (jiff::Timestamp::now() + std::time::Duration::from_secs(n)).to_string()
}
