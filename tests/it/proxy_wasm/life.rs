//! How VMs and contexts live: starts, the order of callbacks, ticks, replacement, and what a failed guest costs.

use super::*;
use crate::support::wat;

#[test]
fn a_streams_callbacks_come_in_order_and_each_once() {
    let up = Upstream::text("answer");
    let order =
        ["create", "request_headers", "request_body", "response_headers", "response_body", "done", "log", "delete"];
    // The stream's context writes itself down; data lives longer than the stream.
    let config: String = order
        .iter()
        .map(|c| format!("{c}: register_shared_queue s:order u; {c}: enqueue_shared_queue $ s:{c}; "))
        .collect();
    let watcher = filter("run", "", "");
    let gw = gateway(&up, "", &(filter("watched", &config, "") + &watcher));
    gw.post("/watched", "body").send().expect(200);
    let mut seen = Vec::new();
    eventually("its end was told", || {
        let takes = "request_headers: resolve_shared_queue s: s:order u; ".to_owned()
            + &"request_headers: dequeue_shared_queue $ b; ".repeat(9);
        let items = run(&gw, takes);
        seen.extend(
            items
                .iter()
                .filter_map(|r| r.strip_prefix("dequeue_shared_queue=0 [")?.strip_suffix(']'))
                .map(str::to_owned),
        );
        seen.contains(&"delete".to_owned())
    });
    // The root's own `create`, and a body's further callbacks.
    seen.dedup();
    let start = seen.iter().rposition(|c| c == "create").expect("created");
    assert_eq!(seen[start..], order, "{seen:?}");
}

/// Section 1.5: the end is told of requests that failed early as well, with what there was still readable.
#[test]
fn the_end_is_told_of_failed_requests_too() {
    let server = ONE_VM;
    let gw = Gateway::with_modules(
        &format!("{server}{}", upstream("up", Upstream::nobody(), "")),
        &[("acme/proxy", "proxy-wasm", &c_guest("proxy"))],
        &filter("run", "log: get_header_map_value 0 s::path b; log: get_header_map_value 0 s:x-tell b", ""),
    );
    eventually("the end of a request without an upstream is told", || {
        gw.get("/run/lost").send().expect(502);
        kept(&gw, "/run", "log").first().is_some_and(|r| r == "get_header_map_value=0 [/run/lost]")
    });
}

#[test]
fn the_log_callback_reads_both_heads() {
    let up = Upstream::text("answer");
    let gw = gateway(&up, ONE_VM, &filter("run", "", ""));
    let script = "log: get_header_map_value 0 s::path b; log: get_header_map_value 2 s::status b";
    eventually("both are read", || {
        run(&gw, script);
        kept(&gw, "/run", "log") == ["get_header_map_value=0 [/run/x?y=1]", "get_header_map_value=0 [200]"]
    });
}

/// Section 1.5: a context that is not done yet lives on until it says so.
#[test]
fn a_context_can_put_off_its_end() {
    let up = Upstream::text("answer");
    let config = "configure: set_tick_period_milliseconds 10; tick: each done";
    let gw = gateway(&up, ONE_VM, &filter("run", config, ""));
    let script = "done: pause; log: log 1 s:at%20last; delete: log 1 s:gone";
    eventually("it ended", || {
        run(&gw, script);
        kept(&gw, "/run", "delete") == ["log=0"] && kept(&gw, "/run", "log") == ["log=0"]
    });
}

#[test]
fn ticks_come_until_they_are_turned_off() {
    let up = Upstream::text("answer");
    let counts = |name: &str| format!("tick: define_metric 0 s:{name} u; tick: increment_metric $ 1; ");
    let counting = "configure: set_tick_period_milliseconds 5; ".to_owned() + &counts("often");
    let once = "configure: define_metric 0 s:vms u; configure: increment_metric $ 1; configure: set_tick_period_milliseconds 5; \
                tick: set_tick_period_milliseconds 0; "
        .to_owned()
        + &counts("once");
    let gw = gateway(&up, ONE_VM, &(filter("run", &counting, "") + &filter("once", &once, "")));
    let count = |path: &str, name: &str| {
        let reads = format!("request_headers: define_metric 0 s:{name} u; request_headers: get_metric $ U");
        let results = told(&gw.get(path).header("X-Run", reads).send().expect(200));
        results[1].strip_prefix("get_metric=0 ").and_then(|n| n.parse::<u32>().ok()).expect("a number")
    };
    eventually("one ticks once", || count("/once", "once") > 0);
    eventually("the other goes on", || count("/run", "often") > 50);
    let (ticks, vms) = (count("/once", "once"), count("/once", "vms"));
    // One may have been due already when it was turned off.
    assert!(ticks <= 2 * vms, "{ticks} ticks of {vms} VMs");
}

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

const STREAM_CALLBACKS: [&str; 4] = ["request_headers", "request_body", "response_headers", "response_body"];

#[test]
fn a_trap_fails_its_request_and_nobody_elses() {
    let up = Upstream::text("answer");
    let routes = filter("run", "", "") + &filter("open", "", "fail = \"open\"");
    let gw = gateway(&up, "[engine.breaker]\nfailures = 0\n", &routes);
    for callback in STREAM_CALLBACKS {
        let request = |path: &str| gw.post(path, "body").header("X-Run", format!("{callback}: trap"));
        if callback != "response_body" {
            request("/run").send().problem(502, "handler-trap");
            let passed = request("/open").send().expect(200);
            assert_eq!(passed.text(), "answer", "{callback}");
        } else {
            // The head may have gone out already; then the connection is cut, never a whole answer.
            assert!(request("/run").try_send().map_or(true, |r| r.status == 502), "{callback}");
        }
        eventually("a new VM serves", || gw.get("/run").send().status == 200);
        eventually("a new VM serves", || gw.get("/open").send().status == 200);
    }
    for callback in ["done", "log", "delete"] {
        scripted(&gw, format!("{callback}: trap")).send().expect(200);
        eventually("a new VM serves", || gw.get("/run").send().status == 200);
    }
}

#[test]
fn a_loop_ends_with_its_time() {
    let up = Upstream::text("answer");
    let routes = filter("run", "", "wall = \"200ms\"") + &filter("open", "", "fail = \"open\", wall = \"200ms\"");
    let gw = gateway(&up, "[engine.breaker]\nfailures = 0\n", &routes);
    for callback in STREAM_CALLBACKS {
        let request = |path: &str| gw.post(path, "body").header("X-Run", format!("{callback}: spin"));
        if callback != "response_body" {
            request("/run").send().problem(504, "handler-timeout");
            assert_eq!(request("/open").send().expect(200).text(), "answer", "{callback}");
        } else {
            assert!(request("/run").try_send().map_or(true, |r| r.status == 504), "{callback}");
        }
        eventually("a new VM serves", || gw.get("/run").send().status == 200);
        eventually("a new VM serves", || gw.get("/open").send().status == 200);
    }
    for callback in ["done", "log", "delete"] {
        scripted(&gw, format!("{callback}: spin")).send().expect(200);
        eventually("a new VM serves", || gw.get("/run").send().status == 200);
    }
}

/// Section 7: streams that wait in a VM that dies end at once, as the handler's policy says. They never hang.
#[test]
fn streams_of_a_dead_vm_end_at_once() {
    let up = Upstream::text("answer");
    let keys = "pause = \"300s\"";
    let routes = filter("closed", "", keys) + &filter("open", "", &format!("{keys}, fail = \"open\""));
    let gw = lasting(&up, &format!("{ONE_VM}[engine.breaker]\nfailures = 0\n"), &routes);
    for (path, status) in [("/closed", 502), ("/open", 200)] {
        let noted = format!(
            "request_headers: define_metric 1 s:waiting{} u; request_headers: increment_metric $ 1; request_headers: pause",
            &path[1..]
        );
        let waiting: Vec<_> = (0..4)
            .map(|_| {
                let request = gw.get(path).header("X-Run", &noted);
                std::thread::spawn(move || request.send())
            })
            .collect();
        eventually("all wait", || {
            let count =
                format!("request_headers: define_metric 1 s:waiting{} u; request_headers: get_metric $ U", &path[1..]);
            told(&gw.get(path).header("X-Run", count).send()).last().is_some_and(|r| r == "get_metric=0 4")
        });
        gw.get(path).header("X-Run", "request_headers: trap").send().expect(status);
        for waiting in waiting {
            waiting.join().expect("it was answered").expect(status);
        }
        eventually("a new VM serves", || gw.get(path).send().status == 200);
    }
}

/// A root that traps on tick, in a queue or in a call's answer costs its VM, not the gateway, and does not come back faster
/// than the back-off lets it.
#[test]
fn roots_that_trap_are_replaced() {
    let up = Upstream::text("answer");
    let scripts = [
        "configure: set_tick_period_milliseconds 5; tick: trap",
        "configure: set_tick_period_milliseconds 5; tick: spin",
        "configure: register_shared_queue s:q u; request_headers: resolve_shared_queue s: s:q u; request_headers: enqueue_shared_queue $ s:x; queue: trap",
        "configure: set_tick_period_milliseconds 5; tick: http_call s:up m::method=GET,:path=/,:authority=a 0 0 0 0 1000 u; call: trap",
    ];
    let routes: String = (0..)
        .zip(scripts)
        .map(|(i, s)| filter(&format!("r{i}"), s, "wall = \"200ms\", upstreams = [\"up\"], fail = \"open\""))
        .collect();
    let gw = gateway(&up, "[engine.breaker]\nfailures = 0\n", &(routes + &filter("run", "", "")));
    for i in 0..scripts.len() {
        for _ in 0..5 {
            assert_eq!(gw.get(&format!("/r{i}")).send().expect(200).text(), "answer");
            gw.get("/run").send().expect(200);
        }
    }
}

#[test]
fn a_vm_is_replaced_after_its_share_of_requests() {
    let up = Upstream::text("answer");
    let server = "[engine]\nvms_per_handler = 1\nvm_requests = 3\n";
    let config = "configure: define_metric 0 s:vms u; configure: increment_metric $ 1; request_headers: define_metric 0 s:vms u; request_headers: get_metric $ U";
    let gw = gateway(&up, server, &filter("run", config, ""));
    let vms = || {
        told(&gw.get("/run").send().expect(200))
            .pop()
            .and_then(|r| r.strip_prefix("get_metric=0 ")?.parse::<u32>().ok())
            .expect("a number")
    };
    let first = vms();
    for _ in 0..12 {
        vms();
    }
    assert!(vms() >= first + 3, "12 requests, 3 a VM");
}

#[test]
fn memory_that_a_filter_takes_is_bounded() {
    let up = Upstream::text("answer");
    let gw = gateway(&up, "", &filter("run", "", "memory = \"32MiB\""));
    assert_eq!(run(&gw, "request_headers: grow 100000; request_headers: grow 1"), ["grow=refused", "grow=done"]);
    for _ in 0..200 {
        run(&gw, "request_headers: grow 50");
    }
    gw.get("/run").send().expect(200);
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

/// Section 2: a result that is neither 0 nor 1 pauses, as filters of Envoy's SDK say it.
#[test]
fn any_action_but_continue_pauses() {
    let up = Upstream::text("answer");
    let gw = gateway(&up, "", &filter("run", "", "pause = \"200ms\""));
    for action in ["1", "2", "3", "4", "-1"] {
        scripted(&gw, format!("request_headers: returns {action}")).send().problem(504, "handler-timeout");
    }
}

/// A filter that closes its stream: the client gets no whole answer of the upstream.
#[test]
fn a_stream_can_be_closed() {
    let up = Upstream::text("answer");
    let gw = runner(&up);
    for (callback, stream) in [("request_headers", 0), ("response_headers", 1)] {
        let script = format!("{callback}: close_stream {stream}");
        assert!(scripted(&gw, script).try_send().map_or(true, |r| r.status >= 500), "{callback}");
        gw.get("/run").send().expect(200);
    }
}
