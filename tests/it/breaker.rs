//! The breaker of a module version that does nothing but fail on its routes.

use serde_json::json;

use crate::support::api::{self, Form};
use crate::support::toml::{route, upstream};
use crate::support::{Gateway, Request, Upstream, eventually, wat};

/// Callers are told apart by the address that a proxy names.
const PROXY: &str = "[server]\ntrusted_proxies = [\"127.0.0.0/8\"]\n";

/// Traps when the path begins with `/t`; `version` only makes the bytes differ.
fn traps_on_t(version: u32) -> Vec<u8> {
    wat(&format!(
        r#"(module (import "http_handler" "get_uri" (func $uri (param i32 i32) (result i32)))
          (memory (export "memory") 1) (global i32 (i32.const {version}))
          (func (export "handle_request") (result i64)
            (drop (call $uri (i32.const 0) (i32.const 64)))
            (if (i32.eq (i32.load8_u (i32.const 1)) (i32.const 116)) (then unreachable))
            (i64.const 1))
          (func (export "handle_response") (param i32 i32)))"#
    ))
}

fn gateway(cool_down: &str, up: &Upstream, handler: &str) -> Gateway {
    let breaker = format!("[engine.breaker]\nfailures = 3\ncool_down = \"{cool_down}\"\n");
    let handlers = format!("handlers = [{{ module = \"acme/m\"{handler} }}]");
    let lines =
        |path: &str| format!("match.path_prefix = \"{path}\"\ntarget.upstream = \"up\"\nauth = \"none\"\n{handlers}");
    let routes = route("all", lines("/")) + &route("other", lines("/other"));
    Gateway::with_modules(
        &(PROXY.to_owned() + &breaker + &upstream("up", up.addr, "")),
        &[("acme/m", "http-wasm", &traps_on_t(1))],
        &routes,
    )
}

fn by(gw: &Gateway, caller: u32, path: &str) -> Request {
    gw.get(path).header("X-Forwarded-For", format!("10.0.0.{caller}"))
}

/// By the callers 0, 1 and 2.
fn crash(gw: &Gateway) {
    for caller in 0..3 {
        by(gw, caller, "/trap").send().problem(502, "handler-trap");
    }
}

#[test]
fn a_version_that_only_crashes_is_refused_quickly_and_tried_again() {
    let up = Upstream::echo();
    let gw = gateway("2s", &up, "");
    for _ in 0..5 {
        gw.get("/trap").send().problem(502, "handler-trap");
        gw.get("/fine").send().expect(200);
    }
    crash(&gw);
    let seen = up.seen().len();
    let refused = gw.get("/fine").send();
    refused.problem(503, "handler-unavailable");
    assert!(refused.header("retry-after").is_some_and(|s| ["1", "2"].contains(&s)), "{refused}");
    gw.get("/other").send().problem(503, "handler-unavailable");
    assert_eq!(up.seen().len(), seen, "nothing passes a handler that is refused");
    assert_eq!(gw.metric("wasm_breaker_opened_total", &["acme/m@1"]), 1.0);
    assert_eq!(gw.log().matches("fails again and again").count(), 1);
    eventually("one is let through, and ends well", || gw.get("/fine").send().status == 200);
    gw.get("/other").send().expect(200);
    // A trial that fails leaves it open.
    crash(&gw);
    eventually("one is let through", || by(&gw, 3, "/trap").send().status == 502);
    by(&gw, 4, "/fine").send().problem(503, "handler-unavailable");
}

#[test]
fn a_caller_that_crashes_a_module_takes_it_from_nobody() {
    let up = Upstream::echo();
    let gw = gateway("1s", &up, "");
    for _ in 0..20 {
        by(&gw, 0, "/trap").send().problem(502, "handler-trap");
    }
    by(&gw, 9, "/fine").send().expect(200);
    crash(&gw);
    by(&gw, 9, "/fine").send().problem(503, "handler-unavailable");
    // It asks all the time, and so takes the trials of those that are known to fail.
    let mut failed_again = 0;
    eventually("the attacker had several trials", || {
        failed_again += u32::from(by(&gw, 0, "/trap").send().status == 502);
        failed_again == 3
    });
    by(&gw, 9, "/fine").send().expect(200);
}

#[test]
fn a_handler_that_may_fail_open_is_passed_by() {
    let up = Upstream::echo();
    let gw = gateway("1h", &up, ", fail = \"open\"");
    for caller in 0..6 {
        by(&gw, caller, "/trap").send().expect(200);
    }
    gw.get("/fine").send().expect(200);
    assert_eq!(gw.log().matches("handler failed").count(), 3, "the rest did not run");
}

#[test]
fn activating_a_version_lets_it_begin_anew() {
    let up = Upstream::echo();
    let gw = gateway("1h", &up, "");
    crash(&gw);
    gw.get("/fine").send().problem(503, "handler-unavailable");
    gw.upload("acme/m", "http-wasm", &traps_on_t(2));
    gw.get("/fine").send().expect(200);
    crash(&gw);
    for version in [2, 1, 2] {
        gw.get("/fine").send().problem(503, "handler-unavailable");
        let target = "/api/wasm/modules/m/activate?owner=acme";
        gw.admin("POST", target).json(&json!({"version": version})).send().expect(200);
        gw.get("/fine").send().expect(200);
        crash(&gw);
    }
}

#[test]
fn executions_of_an_owner_have_no_breaker() {
    let traps = wat(r#"(module (memory (export "memory") 1) (func (export "_start") unreachable))"#);
    let lines = "match.path = \"/m\"\ntarget.handler = { module = \"acme/m\" }\nauth = \"none\"";
    let breaker = "[engine.breaker]\nfailures = 3\ncool_down = \"1h\"\n";
    let gw = Gateway::with_modules(
        &api::config(&format!("{PROXY}{breaker}")),
        &[("acme/m", "command", &traps)],
        &route("m", lines),
    );
    let key = gw.key();
    let execute = || {
        let form = Form::default().field("module", "acme/m").end();
        gw.request("POST", "/api/wasm/execute").key(&key).form(form).send()
    };
    for _ in 0..6 {
        execute().problem(502, "handler-trap");
    }
    for caller in 0..3 {
        by(&gw, caller, "/m").send().problem(502, "handler-trap");
    }
    gw.get("/m").send().problem(503, "handler-unavailable");
    execute().problem(502, "handler-trap");
}
