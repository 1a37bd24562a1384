//! Guests that break the ABI: refused by name where that can be seen, a status or a clean failure where not; the gateway stays.

use super::*;
use crate::support::wat;

fn refused(parts: &str, named: &str) {
    let gw = Gateway::start("");
    let response = gw.try_upload("acme/bad", "proxy-wasm", &wat(&format!("(module {parts})")));
    assert!(matches!(response.status, 400 | 422), "{named}: {response}");
    assert!(response.text().contains(named), "it names `{named}`: {response}");
}

#[test]
fn modules_without_what_the_abi_needs_are_refused_by_name() {
    let memory = "(memory (export \"memory\") 1)";
    let marker = "(func (export \"proxy_abi_version_0_2_1\"))";
    let malloc = "(func (export \"malloc\") (param i32) (result i32) (i32.const 64))";
    refused(&format!("{memory}{malloc}"), "proxy_abi_version");
    refused(&format!("{memory}{malloc}(func (export \"proxy_abi_version_9_9_9\"))"), "proxy_abi_version");
    refused(&format!("{marker}{malloc}"), "memory");
    refused(&format!("{marker}{malloc}(memory 1)"), "memory");
    refused(&format!("{marker}{memory}"), "proxy_on_memory_allocate");
    let with = |import: &str| format!("{import}{marker}{memory}{malloc}");
    refused(&with("(import \"env\" \"proxy_nonsense\" (func (result i32)))"), "proxy_nonsense");
    refused(&with("(import \"env\" \"proxy_log\" (func (param i32) (result i32)))"), "proxy_log");
    refused(
        &with("(import \"wasmgate_v1\" \"kv_get\" (func (param i32 i32 i32 i32 i32) (result i32)))"),
        "foreign functions: `wasmgate_kv_get`",
    );
    refused(&with("(import \"host\" \"proxy_log\" (func (param i32 i32 i32) (result i32)))"), "host");
    refused(&format!("{marker}{memory}(func (export \"malloc\") (param i64) (result i32) (i32.const 64))"), "malloc");
    let headers = "(func (export \"proxy_on_request_headers\") (param i32) (result i32) (i32.const 0))";
    refused(&format!("{marker}{memory}{malloc}{headers}"), "proxy_on_request_headers");
}

/// Without a word from the uploader they would pass for `core` modules, which answer no request of a route.
#[test]
fn filters_of_other_versions_are_not_taken_for_something_else() {
    let gw = Gateway::start("");
    let headers = "(func (export \"proxy_on_request_headers\") (param i32 i32 i32) (result i32) (i32.const 0))";
    let next = "(func (export \"proxy_abi_version_0_3_0\"))";
    for (parts, named) in [
        (format!("{next}{headers}"), "it exports `proxy_abi_version_0_3_0`; 0.1.0, 0.2.0 and 0.2.1 are served"),
        (headers.to_owned(), "it exports `proxy_on_request_headers` and no `proxy_abi_version_...`"),
    ] {
        let wasm = wat(&format!("(module (memory (export \"memory\") 1) {parts})"));
        let request = gw.admin("PUT", "/api/wasm/modules/it?owner=acme").header("Content-Type", "application/wasm");
        let response = request.body(wasm).send();
        response.problem(422, "missing-export");
        assert!(response.text().contains(named), "{response}");
    }
}

/// Section 3: what else Emscripten's filters import.
#[test]
fn imports_of_emscripten_are_served() {
    let up = Upstream::text("answer");
    let wasm = wat(r#"(module
          (import "env" "pthread_equal" (func $equal (param i32 i32) (result i32)))
          (import "env" "emscripten_notify_memory_growth" (func $grown (param i32)))
          (memory (export "memory") 1)
          (func (export "proxy_abi_version_0_2_1"))
          (func (export "malloc") (param i32) (result i32) (i32.const 64))
          (func (export "proxy_on_vm_start") (param i32 i32) (result i32)
            (call $grown (i32.const 0))
            (i32.and (call $equal (i32.const 7) (i32.const 7)) (i32.eqz (call $equal (i32.const 7) (i32.const 8))))))"#);
    let gw = Gateway::with_modules(
        &upstream("up", up.addr, ""),
        &[("acme/proxy", "proxy-wasm", &wasm)],
        &filter("run", "", ""),
    );
    gw.get("/run").send().expect(200);
}

/// However little is done with what a guest hands over, its length has a price: nothing outlives its limits by such calls.
#[test]
fn every_length_is_charged() {
    let up = Upstream::text("answer");
    let gw = gateway(&up, "[engine.breaker]\nfailures = 0\n", &filter("run", "", ""));
    let limits = serde_json::json!({"limits": {"fuel": 1_500_000}});
    gw.admin("PATCH", "/api/wasm/modules/proxy?owner=acme").json(&limits).send().expect(200);
    let long = "1048576 7000000";
    for call in [
        "log 5 LONG",
        "get_header_map_value 0 LONG b",
        "remove_header_map_value 0 LONG",
        "add_header_map_value 0 LONG s:v",
        "replace_header_map_value 0 s:x LONG",
        "set_header_map_pairs 0 LONG",
        "send_local_response 200 0 0 0 0 LONG -1",
        "get_property LONG b",
        "set_property LONG s:v",
        "set_property s:name LONG",
        "get_shared_data LONG b u",
        "set_shared_data LONG s:v 0",
        "set_shared_data s:key LONG 0",
        "register_shared_queue LONG u",
        "resolve_shared_queue LONG s:q u",
        "resolve_shared_queue s: LONG u",
        "enqueue_shared_queue 77 LONG",
        "define_metric 0 LONG u",
        "call_foreign_function LONG s:x b",
        "call_foreign_function s:wasmgate_kv_get LONG b",
    ] {
        let script = format!("request_headers: {}", call.replace("LONG", long));
        scripted(&gw, &script).send().problem(504, "handler-out-of-fuel");
    }
    // The same call with what names are like.
    assert_eq!(run(&gw, "request_headers: get_property x:5000 b"), ["get_property=1 -"]);
}

/// Names that are longer than any are refused as what is not there, where SDKs survive that.
#[test]
fn names_are_bounded() {
    let up = Upstream::text("answer");
    let gw = runner(&up);
    for (call, expected) in [
        ("get_header_map_value 0 x:70000 b", "1 -"),
        ("remove_header_map_value 0 x:70000", "0"),
        ("add_header_map_value 0 x:70000 s:v", "2"),
        ("get_property x:70000 b", "1 -"),
        ("set_property x:70000 s:v", "2"),
        ("set_property s:mine x:70000", "2"),
        ("get_shared_data x:70000 b u", "1 - -"),
        ("set_shared_data x:70000 s:v 0", "2"),
        ("register_shared_queue x:70000 u", "2 -"),
        ("resolve_shared_queue x:70000 s:q u", "1 -"),
        ("define_metric 0 x:70000 u", "2 -"),
        ("call_foreign_function x:70000 s:x b", "1 -"),
    ] {
        let name = call.split(' ').next().unwrap_or_default();
        assert_eq!(run(&gw, format!("request_headers: {call}")), [format!("{name}={expected}")], "{call}");
    }
}

/// An allocator that gives nothing, nonsense or fails: a status, or the request's failure.
#[test]
fn allocators_that_fail() {
    let up = Upstream::text("answer");
    let gw = gateway(&up, "[engine.breaker]\nfailures = 0\n", &filter("run", "", ""));
    for address in ["0", "0xfffffff0", "-1", "0x7fffffff"] {
        let script = format!(
            "allocate: returns {address}; request_headers: get_property s:plugin_name b; request_headers: get_header_map_pairs 0 b"
        );
        let response = scripted(&gw, script).send();
        let results = told(&response);
        let clean = |r: &String| ["=6 -", "=10 -"].iter().any(|end| r.ends_with(end));
        assert!(response.status == 502 || results.len() == 2 && results.iter().all(clean), "{address}: {response}");
        gw.get("/run").send().expect(200);
    }
    scripted(&gw, "allocate: trap; request_headers: get_property s:plugin_name b").send().problem(502, "handler-trap");
    eventually("a new VM serves", || gw.get("/run").send().status == 200);
}

/// Section 8: host calls from within the allocator that would need the allocator again end with a status, not in a recursion.
#[test]
fn host_calls_in_the_allocator() {
    let up = Upstream::text("answer");
    let gw = gateway(&up, "", &filter("run", "", ""));
    let calls = [
        "get_property s:plugin_name b",
        "get_header_map_pairs 0 b",
        "get_header_map_value 0 s::path b",
        "set_header_map_pairs 0 m:a=b",
        "add_header_map_value 0 s:a s:b",
        "send_local_response 403 0 0 s:x 0 0 -1",
        "continue_stream 0",
        "close_stream 0",
        "done",
        "set_effective_context $c",
    ];
    for call in calls {
        let script = format!("allocate: {call}; request_headers: get_property s:plugin_name b; request_headers: tell");
        let response = scripted(&gw, script).send();
        let name = call.split(' ').next().unwrap_or_default();
        let text = response.text();
        let line = text.lines().find(|l| l.starts_with("allocate: ")).unwrap_or_else(|| panic!("{call}: {response}"));
        assert!(!line.contains(&format!("{name}=0")), "{call} is not served there: {line}");
        assert!(text.contains("get_property=0 [proxy"), "what called the allocator goes on: {call}: {response}");
    }
    let script = "allocate: log 2 s:x; request_headers: get_property s:plugin_name b; request_headers: tell";
    let text = scripted(&gw, script).send().expect(200).text();
    assert!(text.contains("log=0;"), "a log line is: {text}");
    gw.get("/run").send().expect(200);
}

/// Section 3: pairs that do not add up are refused with a status, and change nothing.
#[test]
fn pairs_that_do_not_add_up() {
    let up = Upstream::text("answer");
    let gw = gateway(&up, "", &filter("run", "", "upstreams = [\"up\"]"));
    let one = "%01%00%00%00%01%00%00%00%01%00%00%00";
    let broken = [
        "%01",
        "%01%00%00",
        "%01%00%00%00",
        "%ff%ff%ff%ff",
        "%01%04%00%00",
        &format!("{one}a%00b"),
        &format!("{one}axb%00"),
        &format!("{one}a%00bx"),
        &format!("{one}a%00b%00trailing"),
        "%01%00%00%00%ff%ff%ff%ff%ff%ff%ff%ffa%00b%00",
        "%01%00%00%00%ff%ff%ff%7f%00%00%00%00a%00b%00",
        "%02%00%00%00%01%00%00%00%01%00%00%00a%00b%00",
    ];
    for pairs in broken {
        for call in [
            format!("set_header_map_pairs 0 s:{pairs}"),
            format!("send_local_response 403 0 0 s:evil s:{pairs} -1"),
            format!("http_call s:up s:{pairs} 0 0 0 0 1000 u"),
            format!("http_call s:up m::method=GET,:path=/evil,:authority=a 0 0 s:{pairs} 1000 u"),
        ] {
            let response = scripted(&gw, format!("request_headers: {call}")).send().expect(200);
            let results = told(&response);
            assert!(!results[0].contains("=0") && !results[0].contains("=12"), "{call}: {results:?}");
        }
    }
    assert!(up.seen().iter().all(|s| s.target == "/run/x?y=1"), "nothing else reached the upstream");
    // Section 3: an empty map may have a count or not.
    for empty in ["0 0", "s:%00%00%00%00"] {
        let script = format!("request_headers: send_local_response 403 0 0 s:no {empty} -1");
        assert_eq!(scripted(&gw, script).send().expect(403).text(), "no");
    }
}

#[test]
fn more_pairs_than_anyone_has_are_refused() {
    let up = Upstream::text("answer");
    let gw = runner(&up);
    let pairs = |n: usize| (0..n).map(|i| format!("{i:x}=")).collect::<Vec<_>>().join(",");
    let results = run(&gw, format!("request_headers: set_header_map_pairs 0 m:{}", pairs(1025)));
    assert_ne!(results, ["set_header_map_pairs=0"]);
    // A head that grows call by call does not grow for ever, either.
    let adds = "response_headers: add_header_map_value 2 s:x s:y; ".repeat(150);
    let response = scripted(&gw, adds).send();
    assert!(matches!(response.status, 200 | 502), "{response}");
    gw.get("/run").send().expect(200);
}

/// A context of another stream is not to be had by its number once it has ended, nor another handler's.
#[test]
fn contexts_of_others_are_out_of_reach() {
    let up = Upstream::text("answer");
    let gw = gateway(&up, "", &(filter("run", "", "") + &filter("other", "", "")));
    gw.get("/other").send().expect(200);
    let tries: String =
        (0..100).map(|id| format!("request_headers: set_effective_context {}; ", id * 1000 + 500)).collect();
    assert!(run(&gw, tries).iter().all(|r| r == "set_effective_context=2"));
}

/// What a filter asks for while it runs does not outlast the callback's own bounds.
#[test]
fn a_flood_of_host_calls_ends() {
    let up = Upstream::text("answer");
    let gw = runner(&up);
    for call in [
        "log 5 s:flood",
        "get_header_map_pairs 0 b",
        "add_header_map_value 0 s:x s:y",
        "get_property s:request%00headers b",
    ] {
        let script = format!("request_headers: {call}; ").repeat(6000 / (call.len() + 19));
        let response = scripted(&gw, script).send();
        assert!(matches!(response.status, 200 | 431 | 502 | 504), "{call}: {response}");
    }
    gw.get("/run").send().expect(200);
}

/// Log lines of filters are data: one line each, whatever bytes they have.
#[test]
fn log_lines_cannot_forge_others() {
    let up = Upstream::text("answer");
    let gw = runner(&up);
    run(&gw, "request_headers: log 4 s:first%0a%7b%22level%22%3a%22forged%22%7d%0dsecond%1b[31m");
    eventually("the line is there", || gw.log().contains("first"));
    let log = gw.log();
    assert!(!log.lines().any(|line| line.starts_with("{\"level\":\"forged\"")), "{log}");
    assert!(!log.contains('\u{1b}'), "no escape sequences");
}

#[test]
fn log_lines_of_a_handler_are_bounded_as_configured() {
    let up = Upstream::text("answer");
    let gw = gateway(&up, "[engine]\nqueue_timeout = \"20s\"\nguest_log_lines = 1\n", &filter("run", "", ""));
    run(&gw, "request_headers: log 4 s:many;".repeat(100));
    eventually("it is told that lines were cut", || {
        run(&gw, "request_headers: log 4 s:another");
        gw.log().contains("guest logs were cut")
    });
    let written = gw.log().matches("\"many\"").count();
    assert!((1..100).contains(&written), "{written} of 100 lines, at one a second");
}

/// Calls of any function with any numbers, from any callback: a status of the ABI, or the end of the guest, which may have
/// had its own memory overwritten. Never the gateway's.
#[test]
fn calls_with_any_arguments() {
    const NUMBERS: [&str; 12] =
        ["0", "1", "2", "4", "7", "16", "4096", "65536", "0x7fffffff", "0xfffffff0", "0xffffffff", "1048577"];
    const CALLBACKS: [&str; 5] = ["request_headers", "request_body", "response_headers", "response_body", "log"];
    let header = include_str!("../../guests/c/proxy_wasm.h");
    let functions: Vec<(&str, usize)> = header
        .split("F(")
        .skip(1)
        .filter_map(|rest| rest.split(')').next()?.split_once(", "))
        .filter_map(|(name, n)| Some((name, n.parse().ok()?)))
        .chain([("record_metric", 2), ("increment_metric", 2)])
        .collect();
    assert_eq!(functions.len(), 39);
    let up = Upstream::text("answer");
    let keys = "wall = \"300ms\", pause = \"300ms\", upstreams = [\"up\"], memory = \"32MiB\"";
    let gw = gateway(&up, "[engine.breaker]\nfailures = 0\n", &(filter("run", "", keys) + &filter("calm", "", "")));
    // A fixed sequence, so that a failure comes again.
    let mut state = 1u64;
    let mut next = |n: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % n
    };
    let statuses = ["0", "1", "2", "3", "4", "6", "7", "8", "10", "12"];
    for _ in 0..400 {
        let (name, n) = functions[next(functions.len())];
        let arguments: String = (0..n).map(|_| format!(" {}", NUMBERS[next(NUMBERS.len())])).collect();
        let script = format!("{}: {name}{arguments}", CALLBACKS[next(CALLBACKS.len())]);
        let Ok(response) = scripted(&gw, &script).body("body").try_send() else { continue };
        for result in told(&response) {
            let status = result.split_once('=').map(|(_, rest)| rest.split(' ').next().unwrap_or_default());
            assert!(status.is_some_and(|status| statuses.contains(&status)), "{script}: {response}");
        }
    }
    gw.get("/calm").send().expect(200);
    eventually("a whole VM serves", || gw.get("/run").send().status == 200);
}
