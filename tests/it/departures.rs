//! Clients that leave while something works for them: it stops, what it used is counted, and its places are free.

use crate::support::api::{self, Form};
use crate::support::h2c::H2;
use crate::support::toml::{route, tier};
use crate::support::{Conn, DEADLINE, Gateway, Request, eventually, poll, wat};

/// Longer than any test waits, so that nothing here ends by itself.
const WALL: &str = "limits.wall = \"120s\"";

const SPIN: &str = "(module (memory (export \"memory\") 1) (func (export \"_start\") (loop (br 0))))";

/// Sleeps in `poll_oneoff` for an hour: a clock subscription at 0.
const SLEEP: &str = r#"(module
    (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
    (memory (export "memory") 1)
    (func (export "_start")
        (i32.store (i32.const 16) (i32.const 1))
        (i64.store (i32.const 24) (i64.const 3600000000000))
        (drop (call $poll (i32.const 0) (i32.const 64) (i32.const 1) (i32.const 128)))))"#;

/// The same through wasmer-wasix's functions.
const SLEEP_IN_WASIX: &str = r#"(module
    (import "wasix_32v1" "thread_sleep" (func $sleep (param i64) (result i32)))
    (import "wasix_32v1" "fd_sync" (func (param i32) (result i32)))
    (memory (export "memory") 1)
    (func (export "_start") (drop (call $sleep (i64.const 3600000000000)))))"#;

const SPINNING_HANDLER: &str = r#"(module (memory (export "memory") 1)
    (func (export "handle_request") (result i64) (loop (br 0)) (i64.const 1))
    (func (export "handle_response") (param i32 i32)))"#;

const H2C: &str = "[[server.listeners]]\naddress = \"127.0.0.1:0\"\nh2c = true\n";

/// One caller, who may have one request under way.
fn start() -> (Gateway, String) {
    let one = tier("one", &format!("quotas = []\nconcurrent = 1\n{WALL}"));
    let gw = Gateway::start(&api::config(&format!("{H2C}\n{one}")));
    let key = gw.key_of("one");
    (gw, key)
}

fn guests(gw: &Gateway, state: &str) -> f64 {
    gw.metric("wasm_instances", &[&format!("state=\"{state}\"")])
}

fn execution(gw: &Gateway, key: &str, module: &str) -> Request {
    gw.request("POST", "/api/wasm/execute").key(key).form(Form::default().file("wasm", &wat(module)).end())
}

/// Sends a request, waits until its guest runs, leaves in some way; then the guest's thread is free.
#[track_caller]
fn leaves(gw: &Gateway, request: &Request, leave: impl FnOnce(Conn) -> Option<Conn>) {
    // An answer may arrive before its guest's thread is free.
    eventually("no other guest runs", || guests(gw, "running") == 0.0);
    let mut conn = Conn::connect(gw.proxy);
    conn.send(request.bytes());
    eventually("the guest runs", || guests(gw, "running") == 1.0);
    let left = leave(conn);
    eventually("the guest has stopped", || guests(gw, "running") == 0.0);
    drop(left);
}

#[test]
fn a_run_ends_with_its_client_and_is_charged() {
    let (gw, key) = start();
    for module in [SPIN, SLEEP, SLEEP_IN_WASIX] {
        leaves(&gw, &execution(&gw, &key, module), |conn| {
            drop(conn);
            None
        });
        let quick = "(module (func (export \"run\")))";
        eventually("the caller's place is free", || execution(&gw, &key, quick).send().status == 200);
    }
    let mut usage = String::new();
    let counted = poll(DEADLINE, || {
        usage = gw.get("/api/usage").key(&key).send().text();
        usage.contains("\"executions\":6") && !usage.contains("\"fuel\":0")
    });
    assert!(counted, "three runs that were left and three others: {usage}");
}

/// It can't be told from one that is gone, and is treated as nginx, Envoy, Go and Pingora treat it.
#[test]
fn a_half_closed_client_counts_as_gone() {
    let (gw, key) = start();
    leaves(&gw, &execution(&gw, &key, SPIN), |mut conn| {
        conn.shutdown_write();
        Some(conn)
    });
    // What is answered at once still gets there.
    let mut conn = Conn::connect(gw.proxy);
    conn.send("GET /nowhere HTTP/1.1\r\nHost: a\r\n\r\n");
    conn.shutdown_write();
    conn.read().problem(404, "not-found");
}

#[test]
fn a_run_ends_with_its_http2_stream() {
    let (gw, key) = start();
    let form = Form::default().file("wasm", &wat(SPIN)).end();
    let kind = format!("multipart/form-data; boundary={}", api::BOUNDARY);
    let headers = [("x-api-key", key.as_str()), ("content-type", kind.as_str())];
    let client = H2::connect(gw.proxy);
    client.abandon("POST", "http://a/api/wasm/execute", &headers, &form, || {
        eventually("the guest runs", || guests(&gw, "running") == 1.0);
    });
    eventually("the guest has stopped", || guests(&gw, "running") == 0.0);
    // The connection is not to blame, and the caller's place is free.
    eventually("the next is answered", || client.get("http://a/api/usage", &headers[..1]).status == 200);
}

#[test]
fn who_leaves_the_queue_is_not_run() {
    let room = tier("many", &format!("quotas = []\n{WALL}"));
    let engine = "[engine]\nthreads = 1\nqueue_timeout = \"60s\"\n";
    let gw = Gateway::start(&api::config(&format!("{engine}{room}")));
    let key = gw.key_of("many");
    let mut first = Conn::connect(gw.proxy);
    first.send(execution(&gw, &key, SPIN).bytes());
    eventually("one runs", || guests(&gw, "running") == 1.0);
    let mut second = Conn::connect(gw.proxy);
    second.send(execution(&gw, &key, SPIN).bytes());
    eventually("one waits", || guests(&gw, "queued") == 1.0);
    drop(second);
    eventually("nobody waits", || guests(&gw, "queued") == 0.0);
    assert_eq!(guests(&gw, "running"), 1.0, "the first one's client is still there");
}

#[test]
fn modules_and_handlers_of_routes_end_with_their_client() {
    let lines = |path: &str, more: &str| format!("match.path_prefix = \"{path}\"\nauth = \"none\"\n{more}");
    let answers = route("cgi", lines("/cgi", "target.handler = { module = \"acme/spin\", wall = \"120s\" }"));
    let more = "target.respond = { status = 200 }\nhandlers = [{ module = \"acme/filter\", wall = \"120s\", fail = \"open\" }]";
    let filters = route("filter", lines("/filter", more));
    let modules: [(&str, &str, &[u8]); 2] =
        [("acme/spin", "cgi", &wat(SPIN)), ("acme/filter", "http-wasm", &wat(SPINNING_HANDLER))];
    let gw = Gateway::with_modules("", &modules, &(answers + &filters));
    for path in ["/cgi", "/filter"] {
        leaves(&gw, &gw.get(path), |conn| {
            drop(conn);
            None
        });
    }
    eventually("both are in the log as abandoned", || gw.log().matches("\"status\":499").count() == 2);
}

#[test]
fn a_compile_ends_with_its_client() {
    let compile = "[engine.compile]\ncpu = \"60s\"\n";
    let gw = Gateway::start(&api::config(compile));
    let key = gw.key();
    let body = "(local.set 0 (i64.add (i64.mul (local.get 0) (i64.const 31)) (local.get 1)))".repeat(200);
    let function = format!("(func (param i64 i64) {body})");
    let slow = wat(&format!("(module {} (func (export \"run\")))", function.repeat(5_000)));
    for (method, target) in [("PUT", "/api/wasm/modules/slow"), ("POST", "/api/wasm/validate")] {
        let mut conn = Conn::connect(gw.proxy);
        let request = gw.request(method, target).key(&key).header("Content-Type", "application/wasm");
        conn.send(request.body(slow.clone()).bytes());
        eventually("the compiler runs", || gw.children().len() == 1);
        drop(conn);
        eventually("the compiler has ended", || gw.children().is_empty());
    }
    let listed = gw.get("/api/wasm/modules").key(&key).send().expect(200);
    assert!(!listed.text().contains("slow"), "{listed}");
}
