//! How filters start: versions and shapes of modules, configurations, and starts that fail.

use super::*;
use crate::support::wat;

/// Configurations reach the callbacks that may read them, byte by byte.
#[test]
fn configurations_arrive() {
    let up = Upstream::text("answer");
    let vm = "start: get_buffer_bytes 6 0 -1 b; start: get_buffer_status 6 u u; start: args; start: get_buffer_bytes 7 0 -1 b";
    let plugin = "configure: get_buffer_bytes 7 0 -1 b; configure: get_buffer_status 7 u u; configure: args";
    let gw = gateway(&up, "", &filter("run", plugin, &format!("vm_config = {vm:?}")));
    let start = kept(&gw, "/run", "start");
    let configure = kept(&gw, "/run", "configure");
    let bytes = |result: &str| {
        String::from_utf8(unescaped(
            result.strip_prefix("get_buffer_bytes=0 [").and_then(|r| r.strip_suffix(']')).expect("bytes"),
        ))
        .expect("text")
    };
    assert_eq!((bytes(&start[0]), bytes(&configure[0])), (vm.to_owned(), plugin.to_owned()));
    assert_eq!(start[1..3], [format!("get_buffer_status=0 {} 0", vm.len()), format!("args={},0,0,0", vm.len())]);
    assert_eq!(
        configure[1..3],
        [format!("get_buffer_status=0 {} 0", plugin.len()), format!("args={},0,0,0", plugin.len())]
    );
}

/// A guest that says it can't work with its configuration is refused by a reload; what ran before goes on.
#[test]
fn a_filter_that_does_not_start_is_refused() {
    let up = Upstream::text("answer");
    let gw = runner(&up);
    for keys in [
        "vm_config = \"start: returns 0\"",
        "vm_config = \"start: trap\"",
        "vm_config = \"start: spin\", wall = \"200ms\"",
    ] {
        gw.write_config(&format!("{}{}", upstream("up", up.addr, ""), filter("run", "", keys)));
        assert!(gw.reload().status >= 400, "{keys}");
        gw.get("/run").send().expect(200);
    }
    for script in ["configure: returns 0", "configure: trap", "create: trap"] {
        gw.write_config(&format!("{}{}", upstream("up", up.addr, ""), filter("run", script, "")));
        let reload = gw.reload();
        // A context is created first by a request.
        assert!(reload.status >= 400 || script.starts_with("create"), "{script}: {reload}");
        if reload.status == 200 {
            gw.get("/run").send().problem(502, "handler-trap");
        }
    }
}

/// A filter by hand: the marker, a memory and these parts.
fn module(marker: &str, parts: &str) -> Vec<u8> {
    wat(&format!(
        r#"(module
          (import "env" "proxy_add_header_map_value" (func $add (param i32 i32 i32 i32 i32) (result i32)))
          (memory (export "memory") 2)
          (data (i32.const 0) "x-marked") (data (i32.const 16) "abcdefghij")
          (global $bits (mut i32) (i32.const 0))
          (func $mark (param $letter i32)
            (drop (call $add (i32.const 0) (i32.const 0) (i32.const 8) (i32.add (i32.const 16) (local.get $letter)) (i32.const 1))))
          (func (export "{marker}"))
          {parts})"#
    ))
}

const MALLOC: &str = "(func (export \"malloc\") (param i32) (result i32) (i32.const 4096))";
const HEADERS: &str = "(func (export \"proxy_on_request_headers\") (param i32 i32 i32) (result i32) (call $mark (global.get $bits)) (i32.const 0))";

fn plain(up: &Upstream, wasm: &[u8]) -> Gateway {
    let config = upstream("up", up.addr, "");
    Gateway::with_modules(&config, &[("acme/proxy", "proxy-wasm", wasm)], &filter("run", "", ""))
}

#[test]
fn versions_of_the_abi_run() {
    let up = Upstream::text("answer");
    for marker in ["proxy_abi_version_0_2_0", "proxy_abi_version_0_2_1"] {
        let gw = plain(&up, &module(marker, &format!("{MALLOC}{HEADERS}")));
        gw.get("/run").send().expect(200);
        assert_eq!(up.last().all("x-marked"), ["a"], "{marker}");
    }
}

/// Section 9.
#[test]
fn version_0_1_0_has_other_signatures() {
    let up = Upstream::text("answer");
    let wasm = wat(r#"(module
          (import "env" "proxy_add_header_map_value" (func $add (param i32 i32 i32 i32 i32) (result i32)))
          (import "env" "proxy_get_header_map_value" (func $get (param i32 i32 i32 i32 i32) (result i32)))
          (import "env" "proxy_get_configuration" (func $config (param i32 i32) (result i32)))
          (import "env" "proxy_continue_request" (func $continue (result i32)))
          (import "env" "proxy_continue_response" (func (result i32)))
          (import "env" "proxy_clear_route_cache" (func (result i32)))
          (memory (export "memory") 2)
          (data (i32.const 0) "x-marked") (data (i32.const 16) "x-none") (data (i32.const 32) "01234567")
          (func (export "proxy_abi_version_0_1_0"))
          (func (export "malloc") (param i32) (result i32) (i32.const 4096))
          (func (export "proxy_on_configure") (param i32 i32) (result i32)
            (drop (call $config (i32.const 64) (i32.const 68))) (i32.eq (i32.load (i32.const 68)) (local.get 1)))
          (func (export "proxy_on_request_headers") (param i32 i32) (result i32)
            ;; The status of an absent value, as a digit, then its size.
            (drop (call $add (i32.const 0) (i32.const 0) (i32.const 8)
              (i32.add (i32.const 32) (call $get (i32.const 0) (i32.const 16) (i32.const 6) (i32.const 64) (i32.const 68))) (i32.const 1)))
            (drop (call $add (i32.const 0) (i32.const 0) (i32.const 8) (i32.add (i32.const 32) (i32.load (i32.const 68))) (i32.const 1)))
            (i32.const 0))
          (func (export "proxy_on_response_headers") (param i32 i32) (result i32) (i32.const 0)))"#);
    let gw = plain(&up, &wasm);
    gw.get("/run").send().expect(200);
    assert_eq!(up.last().all("x-marked"), ["0", "0"], "OK and empty");
}

/// Section 1.2: TinyGo's modules have both allocators; `malloc` leaks in them.
#[test]
fn the_abis_own_allocator_is_preferred() {
    let up = Upstream::text("answer");
    let reads = r#"
      (import "env" "proxy_get_header_map_value" (func $get (param i32 i32 i32 i32 i32) (result i32)))
      (memory (export "memory") 2)
      (data (i32.const 0) ":path")
      (func (export "proxy_abi_version_0_2_1"))
      (func (export "malloc") (param i32) (result i32) unreachable)
      (func (export "proxy_on_memory_allocate") (param i32) (result i32) (i32.const 4096))
      (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
        (if (call $get (i32.const 0) (i32.const 0) (i32.const 5) (i32.const 64) (i32.const 68)) (then unreachable))
        (i32.const 0))"#;
    let gw = plain(&up, &wat(&format!("(module {reads})")));
    gw.get("/run").send().expect(200);
}

/// Section 1.3: `_initialize`, then `main`; `_start` only without `_initialize`.
#[test]
fn modules_start_as_the_abi_says() {
    let up = Upstream::text("answer");
    let bit = |name: &str, types: &str, bit: u32, result: &str| {
        format!(
            "(func (export \"{name}\") {types} (global.set $bits (i32.or (global.get $bits) (i32.const {bit}))) {result})"
        )
    };
    let initialize = bit("_initialize", "", 1, "");
    let main = bit("main", "(param i32 i32) (result i32)", 2, "(i32.const 0)");
    let start = bit("_start", "", 4, "");
    for (parts, letter) in [
        (vec![], "a"),
        (vec![&initialize], "b"),
        (vec![&initialize, &main], "d"),
        (vec![&initialize, &main, &start], "d"),
        (vec![&start], "e"),
    ] {
        let parts: String = parts.into_iter().map(String::as_str).collect();
        let gw = plain(&up, &module("proxy_abi_version_0_2_1", &format!("{MALLOC}{HEADERS}{parts}")));
        gw.get("/run").send().expect(200);
        assert_eq!(up.last().all("x-marked"), [letter], "{parts}");
    }
}

/// All callbacks are optional.
#[test]
fn a_filter_without_callbacks_lets_everything_pass() {
    let up = Upstream::text("answer");
    let gw = plain(&up, &module("proxy_abi_version_0_2_1", MALLOC));
    assert_eq!(gw.post("/run", "body").send().expect(200).text(), "answer");
    assert_eq!(up.last().body, b"body");
}

/// What works stays, when a version comes that does not.
#[test]
fn a_version_that_does_not_start_does_not_become_active() {
    let up = Upstream::text("answer");
    let gw = runner(&up);
    let refuses = "(func (export \"proxy_on_configure\") (param i32 i32) (result i32) (i32.const 0))";
    let wasm = module("proxy_abi_version_0_2_1", &format!("{MALLOC}{refuses}"));
    let push = |query: &str| {
        gw.admin("PUT", &format!("/api/wasm/modules/proxy?owner=acme&abi=proxy-wasm{query}"))
            .header("Content-Type", "application/wasm")
            .body(wasm.clone())
            .send()
    };
    let refused = push("&activate=true").expect(409);
    assert!(refused.text().contains("`proxy_on_configure` refused its configuration"), "{refused}");
    push("").expect(201);
    let activate = gw.admin("POST", "/api/wasm/modules/proxy/activate?owner=acme");
    let refused = activate.header("Content-Type", "application/json").body(r#"{"version":2}"#).send().expect(409);
    assert!(refused.text().contains("the route `run` can't use"), "{refused}");
    gw.get("/run").send().expect(200);
}

#[test]
fn a_check_starts_filters() {
    let up = Upstream::text("answer");
    let gw = runner(&up);
    let check = |script: &str| {
        let config = format!("{}{}", upstream("up", up.addr, ""), filter("run", script, ""));
        gw.admin("POST", "/api/config/check").body(config).send().expect(200).json()
    };
    assert_eq!(check("")["ok"], true);
    let report = check("configure: returns 0");
    assert_eq!(report["ok"], false, "{report}");
    assert!(
        report["errors"][0]["message"].as_str().is_some_and(|m| m.contains("refused its configuration")),
        "{report}"
    );
}
