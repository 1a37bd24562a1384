//! What filters have of WASI (section 6), under both names it goes by.

use super::*;
use crate::support::wat;

/// Checks in the callback of a request's headers: an expression and the numbers it may give. Memory has an iovec for
/// "printed\n" at 0, and room from 64 on.
const CHECKS: &[(&str, &[i32])] = &[
    ("(call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 64))", &[0]),
    ("(i32.load (i32.const 64))", &[8]),
    ("(call $fd_write (i32.const 2) (i32.const 0) (i32.const 1) (i32.const 64))", &[0]),
    ("(call $fd_write (i32.const 77) (i32.const 0) (i32.const 1) (i32.const 64))", &[8]),
    ("(call $clock_time_get (i32.const 0) (i64.const 0) (i32.const 64))", &[0]),
    // After 2020, in nanoseconds.
    ("(i64.gt_u (i64.load (i32.const 64)) (i64.const 1577836800000000000))", &[1]),
    ("(call $clock_time_get (i32.const 1) (i64.const 0) (i32.const 64))", &[0]),
    ("(call $clock_time_get (i32.const 77) (i64.const 0) (i32.const 64))", &[58, 28]),
    ("(call $random_get (i32.const 64) (i32.const 1024))", &[0]),
    ("(i64.ne (i64.load (i32.const 64)) (i64.load (i32.const 72)))", &[1]),
    ("(call $args_sizes_get (i32.const 64) (i32.const 68))", &[0]),
    ("(i32.load (i32.const 64))", &[0]),
    ("(call $args_get (i32.const 64) (i32.const 68))", &[0]),
    // `A=b` of the configuration and nothing of the gateway's.
    ("(call $environ_sizes_get (i32.const 64) (i32.const 68))", &[0]),
    ("(i32.load (i32.const 64))", &[1]),
    ("(i32.load (i32.const 68))", &[4]),
    ("(call $environ_get (i32.const 64) (i32.const 68))", &[0]),
    ("(i32.load (i32.load (i32.const 64)))", &[0x0062_3d41]),
    ("(call $sched_yield)", &[0]),
    ("(call $fd_prestat_get (i32.const 3) (i32.const 64))", &[8]),
];

/// Pointers out of range.
const FAULTS: [&str; 4] = [
    "(call $fd_write (i32.const 1) (i32.const 0xfffffff0) (i32.const 4) (i32.const 64))",
    "(call $clock_time_get (i32.const 0) (i64.const 0) (i32.const 0xfffffffc))",
    "(call $random_get (i32.const 0xfffffff0) (i32.const 64))",
    "(call $environ_sizes_get (i32.const 0xfffffff0) (i32.const 68))",
];

fn module(wasi: &str, callbacks: &str) -> Vec<u8> {
    let imports: String = [
        ("fd_write", "i32 i32 i32 i32"),
        ("clock_time_get", "i32 i64 i32"),
        ("random_get", "i32 i32"),
        ("args_sizes_get", "i32 i32"),
        ("args_get", "i32 i32"),
        ("environ_sizes_get", "i32 i32"),
        ("environ_get", "i32 i32"),
        ("fd_prestat_get", "i32 i32"),
        ("poll_oneoff", "i32 i32 i32 i32"),
    ]
    .map(|(name, params)| format!("(import \"{wasi}\" \"{name}\" (func ${name} (param {params}) (result i32)))"))
    .concat();
    wat(&format!(
        r#"(module {imports}
          (import "{wasi}" "sched_yield" (func $sched_yield (result i32)))
          (import "{wasi}" "proc_exit" (func $proc_exit (param i32)))
          (import "env" "proxy_send_local_response" (func $respond (param i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))
          (memory (export "memory") 2)
          (data (i32.const 0) "\10\00\00\00\08\00\00\00") (data (i32.const 16) "printed\n")
          (func (export "proxy_abi_version_0_2_1"))
          (func (export "malloc") (param i32) (result i32) (i32.const 4096))
          {callbacks})"#
    ))
}

fn gateway_of(up: &Upstream, wasm: &[u8]) -> Gateway {
    let routes = filter("run", "", "env = { A = \"b\" }");
    Gateway::with_modules(&upstream("up", up.addr, ""), &[("acme/proxy", "proxy-wasm", wasm)], &routes)
}

/// Runs the checks in a filter that imports from `wasi`.
#[track_caller]
fn check(wasi: &str, checks: &[(&str, &[i32])]) -> Gateway {
    let up = Upstream::text("answer");
    let code: String = (300..)
        .zip(checks)
        .map(|(status, (expression, allowed))| {
            let fits = allowed.iter().map(|n| format!("(i32.eq (local.get $got) (i32.const {n}))"));
            let fits = fits.reduce(|a, b| format!("(i32.or {a} {b})")).unwrap_or_default();
            // The status says which check failed.
            format!(
                "(local.set $got {expression}) (if (i32.eqz {fits}) (then (drop (call $respond (i32.const {status}) (i32.const 0) (i32.const 0)
                   (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const -1))) (return (i32.const 1))))"
            )
        })
        .collect();
    let callback = format!(
        "(func (export \"proxy_on_request_headers\") (param i32 i32 i32) (result i32) (local $got i32) {code} (i32.const 0))"
    );
    let gw = gateway_of(&up, &module(wasi, &callback));
    let response = gw.get("/run").send();
    let failed = checks.get(usize::from(response.status).wrapping_sub(300));
    assert_eq!(response.status, 200, "{wasi}: {failed:?}");
    gw
}

#[test]
fn what_filters_need_of_wasi_is_served() {
    for wasi in ["wasi_snapshot_preview1", "wasi_unstable"] {
        let gw = check(wasi, CHECKS);
        eventually("what it prints is in the log", || gw.log().contains("printed"));
    }
}

/// As for all guests they end the run.
#[test]
fn pointers_out_of_range_end_the_guest() {
    for fault in FAULTS {
        let callback = format!(
            "(func (export \"proxy_on_request_headers\") (param i32 i32 i32) (result i32) (drop {fault}) (i32.const 0))"
        );
        let up = Upstream::text("answer");
        let gw = gateway_of(&up, &module("wasi_snapshot_preview1", &callback));
        gw.get("/run").send().problem(502, "handler-trap");
        gw.admin("GET", "/metrics").send().expect(200);
    }
}

/// A guest can leave; the gateway can't be left.
#[test]
fn leaving_ends_the_guest_alone() {
    let up = Upstream::text("answer");
    let callback = "(func (export \"proxy_on_request_headers\") (param i32 i32 i32) (result i32) (call $proc_exit (i32.const 3)) (i32.const 0))";
    let gw = gateway_of(&up, &module("wasi_snapshot_preview1", callback));
    for _ in 0..3 {
        let response = gw.get("/run").send();
        assert!((500..=504).contains(&response.status), "{response}");
    }
    gw.admin("GET", "/metrics").send().expect(200);
}

/// Over a VM's life, not from callback to callback: garbage collectors count on it, and Go's ends the program at a 0.
#[test]
fn the_monotonic_clock_goes_on() {
    let up = Upstream::text("answer");
    let callback = r#"(global $last (mut i64) (i64.const 0))
        (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
          (drop (call $clock_time_get (i32.const 1) (i64.const 0) (i32.const 64)))
          (if (i32.or (i64.eqz (i64.load (i32.const 64))) (i64.lt_u (i64.load (i32.const 64)) (global.get $last)))
            (then (drop (call $respond (i32.const 599) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0)
              (i32.const 0) (i32.const -1)))))
          (global.set $last (i64.load (i32.const 64)))
          (i32.const 0))"#;
    let gw = gateway_of(&up, &module("wasi_snapshot_preview1", callback));
    for _ in 0..50 {
        gw.get("/run").send().expect(200);
    }
}

/// Section 6: runtimes with a scheduler (Go's) ask to wait when they have nothing to do; that ends nobody.
#[test]
fn a_wait_is_short_and_ends_well() {
    let up = Upstream::text("answer");
    // One relative clock subscription of 50 microseconds: kind at 8, clock at 16, timeout at 24.
    let callback = r#"(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
          (i32.store (i32.const 144) (i32.const 1))
          (i64.store (i32.const 152) (i64.const 50000))
          (if (call $poll_oneoff (i32.const 128) (i32.const 256) (i32.const 1) (i32.const 64)) (then unreachable))
          (i32.const 0))"#;
    let gw = gateway_of(&up, &module("wasi_snapshot_preview1", callback));
    for _ in 0..300 {
        gw.get("/run").send().expect(200);
    }
}
