//! How VMs and contexts live: the order of callbacks, ticks, replacement, reloads, and what a failed guest costs.

use std::io::Write;

use super::*;
use crate::support::upstream::{Gate, respond};

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

/// A VM that has always been quick may take its time once, as for a large body or its garbage: it can't be begun again.
#[test]
fn a_long_callback_behind_many_short_ones_is_no_timeout() {
    let up = Upstream::text("answer");
    let gw = gateway(&up, ONE_VM, &filter("run", "", ""));
    let large = vec![b'a'; 2 << 20];
    for _ in 0..2 {
        for _ in 0..200 {
            gw.get("/run").send().expect(200);
        }
        scripted(&gw, "request_body: more? pause; request_body: end? upper 0").body(large.clone()).send().expect(200);
        assert!(up.last().body == large.to_ascii_uppercase());
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
        eventually("the answer is there before the end", || {
            scripted(&gw, format!("{callback}: spin")).send().status == 200
        });
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

/// A reload lets streams that wait in the handlers before it end there, and then ends their ticks.
#[test]
fn a_reload_leaves_waiting_streams_alone() {
    let gate = Gate::default();
    let up = Upstream::text("answer");
    let auth = Upstream::start({
        let gate = gate.clone();
        move |seen, stream| {
            if seen.target == "/wait" {
                gate.wait();
            }
            respond(stream, 200, &[], b"")
        }
    });
    let upstreams = upstream("up", up.addr, "") + &upstream("auth", auth.addr, "");
    let call = |path: &str| format!("http_call s:auth m::method=GET,:path={path},:authority=a 0 0 0 0 20000 u");
    let ticks = format!("configure: set_tick_period_milliseconds 5; tick: {}", call("/tick"));
    let route = |script: &str| filter("run", script, "upstreams = [\"auth\"], pause = \"60s\"");
    let modules = [("acme/proxy", "proxy-wasm", &c_guest("proxy")[..])];
    let gw = Gateway::with_modules(&upstreams, &modules, &route(&ticks));
    let script = format!("request_headers: {}; request_headers: pause; call: continue_stream 0", call("/wait"));
    let request = scripted(&gw, script);
    let waiting = std::thread::spawn(move || request.send());
    let count = |path: &str| auth.seen().iter().filter(|seen| seen.target == path).count();
    eventually("it waits and ticks", || count("/wait") == 1 && count("/tick") > 0);
    gw.write_config(&(upstreams + &route("")));
    gw.reload().expect(200);
    gw.get("/run").send().expect(200);
    gate.open();
    assert_eq!(waiting.join().expect("it was answered").expect(200).text(), "answer");
    eventually("the ticks end", || {
        let before = count("/tick");
        for _ in 0..50 {
            gw.get("/run").send().expect(200);
        }
        count("/tick") == before
    });
}

/// Whatever the other filters of a chain make of a stream's end, this one sees what the request was.
#[test]
fn the_end_of_one_filter_is_not_anothers() {
    let up = Upstream::text("answer");
    for other in ["done: pause", "done: trap", "log: trap"] {
        let logs = entry("log: get_header_map_value 0 s::path b", "");
        let gw = gateway(&up, ONE_VM, &chain("run", &[logs, entry(other, "pause = \"300s\"")]));
        eventually("the path is read", || {
            gw.get("/run/seen").send().expect(200);
            kept(&gw, "/run", "log").first().is_some_and(|r| r == "get_header_map_value=0 [/run/seen]")
        });
    }
}

/// Ends can be put off by so many streams at once; those of others come.
#[test]
fn not_every_stream_can_put_off_its_end() {
    let up = Upstream::text("answer");
    let wasm = crate::support::wat(
        r#"(module
          (import "env" "proxy_define_metric" (func $define (param i32 i32 i32 i32) (result i32)))
          (import "env" "proxy_increment_metric" (func $add (param i32 i64) (result i32)))
          (memory (export "memory") 1) (data (i32.const 0) "ended")
          (func (export "proxy_abi_version_0_2_1"))
          (func (export "malloc") (param i32) (result i32) (i32.const 4096))
          (func (export "proxy_on_done") (param i32) (result i32) (i32.const 0))
          (func (export "proxy_on_delete") (param i32)
            (drop (call $define (i32.const 0) (i32.const 0) (i32.const 5) (i32.const 64)))
            (drop (call $add (i32.load (i32.const 64)) (i64.const 1)))))"#,
    );
    let config = format!("{ONE_VM}{}", upstream("up", up.addr, ""));
    let gw =
        Gateway::with_modules(&config, &[("acme/proxy", "proxy-wasm", &wasm)], &filter("run", "", "pause = \"300s\""));
    // Two VMs may have served them: one with code compiled fast, one with better code.
    for _ in 0..600 {
        gw.get("/run").send().expect(200);
    }
    eventually("some have ended", || gw.metric("wasm_guest_ended", &[]) >= 40.0);
}

/// A stream whose VM has failed meanwhile does not go on in the one that serves those that waited for it.
#[test]
fn a_stream_never_goes_on_in_another_vm() {
    let gate = Gate::default();
    let up = Upstream::start({
        let gate = gate.clone();
        move |seen, stream| {
            if seen.target.starts_with("/run/held") {
                gate.wait();
            }
            respond(stream, 200, &[], b"answer");
            true
        }
    });
    let server = format!("{ONE_VM}[engine.breaker]\nfailures = 0\n");
    let gw = gateway(&up, &server, &filter("run", "", "wall = \"300ms\""));
    std::thread::scope(|scope| {
        let held = scope.spawn(|| gw.get("/run/held").header("X-Run", "response_headers: log 1 s:x").send());
        eventually("it is at the upstream", || up.seen().iter().any(|seen| seen.target.starts_with("/run/held")));
        let loops = scope.spawn(|| scripted(&gw, "request_headers: spin").send());
        // One of them waits for the VM that the loop has, before its request or with its answer.
        while !loops.is_finished() {
            assert!(matches!(gw.get("/run").send().status, 200 | 502));
        }
        loops.join().expect("an answer").problem(504, "handler-timeout");
        gate.open();
        held.join().expect("an answer").problem(502, "handler-trap");
    });
}

/// Nor is one started for timers and queues where that waited for the VM that failed.
#[test]
fn a_revived_vm_takes_no_lost_place() {
    let gate = Gate::default();
    let up = Upstream::start({
        let gate = gate.clone();
        move |seen, stream| {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n").expect("the gateway listens");
            if seen.target.starts_with("/run/held") {
                gate.wait();
            }
            stream.write_all(b"answer").is_ok()
        }
    });
    let server = format!("{ONE_VM}[engine.breaker]\nfailures = 0\n");
    let counts =
        |callback: &str| format!("{callback}: define_metric 0 s:{callback} u; {callback}: increment_metric $ 1");
    let script = counts("configure") + "; configure: register_shared_queue s:q u";
    let gw = gateway(&up, &server, &filter("run", &script, "wall = \"2s\", fail = \"open\""));
    scripted(&gw, "request_headers: trap").send().expect(200);
    std::thread::scope(|scope| {
        let request = gw.get("/run/held").header("X-Run", counts("response_headers"));
        let held = scope.spawn(|| request.send());
        eventually("it waits for its body", || gw.metric("wasm_guest_response_headers", &[]) > 0.0);
        let before = gw.metric("wasm_guest_configure", &[]);
        // It has the VM when the one that failed is to be replaced.
        scripted(&gw, "request_headers: spin").send().expect(200);
        eventually("a VM comes back by itself", || gw.metric("wasm_guest_configure", &[]) > before);
        gate.open();
        assert_eq!(held.join().expect("an answer").expect(200).text(), "answer");
    });
}

/// It is asked once whether it is done; when it has not said by the end of its pause, it ends.
#[test]
fn a_stream_is_asked_once_whether_it_is_done() {
    let up = Upstream::text("answer");
    let counts =
        |callback: &str| format!("{callback}: define_metric 0 s:{callback}s u; {callback}: increment_metric $ 1; ");
    let config = counts("done") + &counts("delete") + "done: pause";
    let gw = gateway(&up, "", &filter("run", &config, "pause = \"100ms\""));
    for _ in 0..5 {
        gw.get("/run").send().expect(200);
    }
    eventually("they have ended", || gw.metric("wasm_guest_deletes", &[]) >= 5.0);
    assert_eq!(gw.metric("wasm_guest_dones", &[]), 5.0);
}
