//! Limits over HTTP: exact counts, the headers that announce them, and who shares which bucket.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::support::admin::NewKey;
use crate::support::toml::{keyed_proxy, route, tier, upstream};
use crate::support::upstream::{Gate, respond};
use crate::support::{Gateway, Response, Upstream, eventually};

fn retry_after(response: &Response) -> u64 {
    let value = response.header("retry-after").unwrap_or_else(|| panic!("no Retry-After: {response}"));
    value.parse().unwrap_or_else(|e| panic!("Retry-After `{value}` is not whole seconds: {e}"))
}

/// The parameter of the first item of a `RateLimit` or `RateLimit-Policy` field.
fn parameter(response: &Response, header: &str, name: &str) -> u64 {
    let value = response.header(header).unwrap_or_else(|| panic!("no {header}: {response}"));
    let first = value.split(',').next().unwrap_or_default();
    let found = first.split(';').find_map(|p| p.trim().strip_prefix(name)?.strip_prefix('='));
    found.and_then(|v| v.parse().ok()).unwrap_or_else(|| panic!("no `{name}` in {header}: {value}"))
}

#[test]
fn a_quota_admits_exactly_its_burst_and_says_so() {
    let up = Upstream::text("ok");
    let quota = tier("small", "quotas = [{ name = \"minute\", requests = 5, window = \"1m\", burst = 5 }]");
    let gw = Gateway::start(&(quota + &keyed_proxy(up.addr, "")));
    let key = gw.key_of("small");
    for left in (0..5).rev() {
        let response = gw.get("/").key(&key).send().expect(200);
        assert_eq!(response.header("ratelimit-policy"), Some("\"minute\";q=5;w=60"));
        assert!(response.header("ratelimit").is_some_and(|v| v.starts_with("\"minute\";r=")), "{response}");
        assert_eq!(parameter(&response, "ratelimit", "r"), left, "{response}");
        assert!(parameter(&response, "ratelimit", "t") <= 60, "{response}");
    }
    let refused = gw.get("/").key(&key).send();
    let doc = refused.problem(429, "quota-exceeded");
    assert_eq!(doc["violated-policies"], serde_json::json!(["minute"]));
    assert_eq!(parameter(&refused, "ratelimit", "r"), 0);
    // One of five a minute comes back every twelve seconds.
    assert!((11..=12).contains(&retry_after(&refused)), "{refused}");
    assert_eq!(up.seen().len(), 5);
}

#[test]
fn who_waits_exactly_retry_after_is_admitted_and_refusals_prolong_nothing() {
    let up = Upstream::text("ok");
    let quota = tier("small", "quotas = [{ name = \"s\", requests = 2, window = \"4s\", burst = 2 }]");
    let gw = Gateway::start(&(quota + &keyed_proxy(up.addr, "")));
    let key = gw.key_of("small");
    gw.get("/").key(&key).send().expect(200);
    gw.get("/").key(&key).send().expect(200);
    let refused = gw.get("/").key(&key).send();
    let told = Instant::now();
    let wait = Duration::from_secs(retry_after(&refused.clone().expect(429)));
    // Asking again and again meanwhile must not push the moment back.
    let mut admitted = None;
    eventually("admitted again", || {
        let asked = Instant::now();
        let status = gw.get("/").key(&key).send().status;
        assert!(status == 429 || status == 200, "{status}");
        admitted = (status == 200).then(|| told.elapsed());
        // A request sent after the announced moment has to be let in.
        assert!(
            status == 200 || asked.duration_since(told) <= wait,
            "still refused {:?} after Retry-After: {wait:?}",
            told.elapsed()
        );
        admitted.is_some()
    });
    assert!(admitted.is_some_and(|after| after <= wait + Duration::from_secs(1)), "{admitted:?} against {wait:?}");
}

#[test]
fn parallel_requests_are_counted_exactly() {
    let up = Upstream::text("ok");
    let quota = tier("small", "quotas = [{ name = \"day\", requests = 20, window = \"1d\" }]");
    let gw = Arc::new(Gateway::start(&(quota + &keyed_proxy(up.addr, ""))));
    let key = gw.key_of("small");
    let ask = |_| {
        let (gw, key) = (gw.clone(), key.clone());
        std::thread::spawn(move || (0..5).filter(|_| gw.get("/").key(&key).send().status == 200).count())
    };
    let threads: Vec<_> = (0..10).map(ask).collect();
    let admitted: usize = threads.into_iter().map(|t| t.join().expect("it asks")).sum();
    assert_eq!((admitted, up.seen().len()), (20, 20));
}

#[test]
fn all_policies_are_charged_or_none() {
    let up = Upstream::text("ok");
    let quotas = "quotas = [{ name = \"burst\", requests = 1, window = \"2s\", burst = 1 }, { name = \"day\", requests = 3, window = \"1d\" }]";
    let gw = Gateway::start(&(tier("small", quotas) + &keyed_proxy(up.addr, "")));
    let key = gw.key_of("small");
    // Refusals by `burst` leave `day` alone: three are admitted however often one asks.
    let mut refused = 0;
    eventually("three are admitted", || {
        refused += usize::from(gw.get("/").key(&key).send().status == 429);
        up.seen().len() == 3
    });
    assert!(refused > 0);
    eventually("only `day` refuses", || {
        let doc = gw.get("/").key(&key).send().problem(429, "quota-exceeded");
        doc["violated-policies"] == serde_json::json!(["day"])
    });
}

#[test]
fn keys_of_one_owner_share_its_quota() {
    let up = Upstream::text("ok");
    let quota = tier("small", "quotas = [{ name = \"day\", requests = 4, window = \"1d\" }]");
    let gw = Gateway::start(&(quota + &keyed_proxy(up.addr, "")));
    let (one, two) = (gw.key_of("small"), gw.key_of("small"));
    let other = gw.new_key(&NewKey { owner: "other", tier: "small", ..NewKey::default() }).text;
    for key in [&one, &two, &one, &two] {
        gw.get("/").key(key).send().expect(200);
    }
    for key in [&one, &two] {
        gw.get("/").key(key).send().problem(429, "quota-exceeded");
    }
    gw.get("/").key(&other).send().expect(200);
}

#[test]
fn requests_in_flight_are_bounded_and_given_back() {
    let gate = Gate::default();
    let at_the_gate = gate.clone();
    let up = Upstream::start(move |_, stream| {
        at_the_gate.wait();
        respond(stream, 200, &[], b"ok")
    });
    let gw = Gateway::start(&(tier("small", "quotas = []\nconcurrent = 2") + &keyed_proxy(up.addr, "")));
    let key = gw.key_of("small");
    let held: Vec<_> = (0..2)
        .map(|_| {
            let request = gw.get("/").key(&key);
            std::thread::spawn(move || request.send().status)
        })
        .collect();
    eventually("both are in flight", || up.seen().len() == 2);
    let refused = gw.get("/").key(&key).send();
    refused.problem(429, "concurrency-exceeded");
    assert!(retry_after(&refused) >= 1);
    gate.open();
    assert!(held.into_iter().all(|t| t.join().is_ok_and(|status| status == 200)));
    gw.get("/").key(&key).send().expect(200);
}

#[test]
fn a_client_that_goes_away_gives_its_place_back() {
    let up = Upstream::start(|seen, stream| match seen.target.as_str() {
        "/hang" => crate::support::upstream::hang(stream),
        _ => respond(stream, 200, &[], b"ok"),
    });
    let gw = Gateway::start(&(tier("small", "quotas = []\nconcurrent = 1") + &keyed_proxy(up.addr, "")));
    let key = gw.key_of("small");
    let mut conn = crate::support::Conn::connect(gw.proxy);
    conn.send(gw.get("/hang").key(&key).bytes());
    eventually("it is in flight", || up.seen().len() == 1);
    gw.get("/").key(&key).send().problem(429, "concurrency-exceeded");
    drop(conn);
    eventually("its place is free", || gw.get("/").key(&key).send().status == 200);
}

#[test]
fn unlimited_routes_neither_count_nor_announce() {
    let up = Upstream::text("ok");
    let config = tier("small", "quotas = [{ name = \"day\", requests = 1, window = \"1d\" }]")
        + &keyed_proxy(up.addr, "limited = false");
    let gw = Gateway::start(&config);
    let key = gw.key_of("small");
    for _ in 0..3 {
        let response = gw.get("/").key(&key).send().expect(200);
        assert_eq!((response.header("ratelimit"), response.header("ratelimit-policy")), (None, None));
    }
}

/// Strangers get three requests a day by address.
fn anonymous(up: &Upstream, server: &str) -> String {
    format!("[server]\n{server}\n")
        + &tier("anonymous", "quotas = [{ name = \"day\", requests = 3, window = \"1d\" }]")
        + &upstream("up", up.addr, "")
        + &route("all", "match.path_prefix = \"/\"\ntarget.upstream = \"up\"\nauth = \"optional\"")
}

#[test]
fn strangers_are_counted_by_address_and_a_forged_one_is_ignored() {
    let up = Upstream::text("ok");
    let gw = Gateway::start(&anonymous(&up, ""));
    for i in 0..3 {
        let forged =
            gw.get("/").header("X-Forwarded-For", format!("10.0.0.{i}")).header("X-Real-Ip", format!("10.1.0.{i}"));
        forged.send().expect(200);
        let passed = up.last();
        assert!(!passed.mentions("10.0.0."), "a forged address goes on: {passed:?}");
    }
    gw.get("/").header("X-Forwarded-For", "10.0.0.9").send().problem(429, "quota-exceeded");
}

#[test]
fn a_trusted_proxy_names_the_client_from_the_right() {
    let up = Upstream::text("ok");
    let gw = Gateway::start(&anonymous(&up, "trusted_proxies = [\"127.0.0.0/8\", \"10.9.0.0/16\"]"));
    let ask = |forwarded: &str| gw.get("/").header("X-Forwarded-For", forwarded).send().status;
    for forged in ["1.1.1.1, 192.0.2.1", "2.2.2.2, 192.0.2.1, 10.9.0.1", "192.0.2.1"] {
        assert_eq!(ask(forged), 200, "{forged}");
    }
    assert_eq!(ask("3.3.3.3, 192.0.2.1"), 429, "what is left of the first untrusted address is the client's invention");
    assert_eq!(ask("192.0.2.2"), 200);
    // One IPv6 /64 is one client.
    assert_eq!(["2001:db8::1", "2001:db8::2", "2001:db8:0:0:ffff::3"].map(&ask), [200; 3]);
    assert_eq!(ask("2001:db8::4"), 429);
    assert_eq!(ask("::ffff:192.0.2.1"), 429, "a mapped address is the IPv4 one");
}

#[test]
fn calendar_counters_survive_a_graceful_restart() {
    let up = Upstream::text("ok");
    let quota = tier("small", "quotas = [{ name = \"day\", requests = 3, window = \"1d\" }]");
    let config = quota + &keyed_proxy(up.addr, "");
    let mut gw = Gateway::start(&config);
    let key = gw.key_of("small");
    gw.get("/").key(&key).send().expect(200);
    gw.get("/").key(&key).send().expect(200);
    gw.signal("TERM");
    gw.wait();
    let gw = gw.restart(&config);
    let response = gw.get("/").key(&key).send().expect(200);
    assert_eq!(parameter(&response, "ratelimit", "r"), 0, "{response}");
    gw.get("/").key(&key).send().problem(429, "quota-exceeded");
}
