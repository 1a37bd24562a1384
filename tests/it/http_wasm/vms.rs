//! How VMs live: kept between requests, pinned between phases, replaced when worn, gone after any failure.

use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use wasmgate::config;
use wasmgate::domain::GuestFailure;
use wasmgate::engine::{HttpExchange, HttpHandler, RunError};

use super::fixture::*;

/// Answers with how many requests its VM has seen, as one byte. A request with `x-trap` traps, with `x-grow` grows the
/// memory by 100 pages, with `x-spin` never ends, with `x-work` takes some milliseconds, with `x-pass` goes on.
fn counter() -> String {
    let asks = |name: usize| {
        format!(
            "(i64.ne (call $get_header_values (i32.const 0) (i32.const {name}) (i32.const 6) (i32.const 0) (i32.const 0)) (i64.const 0))"
        )
    };
    let (trap, grow, spin, work, pass) = (asks(0), asks(8), asks(16), asks(24), asks(32));
    let request = format!(
        "(global.set $seen (i32.add (global.get $seen) (i32.const 1)))
         (if {trap} (then unreachable))
         (if {grow} (then (if (i32.eq (memory.grow (i32.const 100)) (i32.const -1)) (then unreachable))))
         (if {spin} (then (loop $ever (br $ever))))
         (if {work} (then (local.set $i (i32.const 10000000))
            (loop $more (local.set $i (i32.sub (local.get $i) (i32.const 1))) (br_if $more (local.get $i)))))
         (if {pass} (then (return (i64.const 1))))
         (i32.store8 (i32.const 100) (global.get $seen)) (call $write_body (i32.const 1) (i32.const 100) (i32.const 1))
         (i64.const 0)"
    );
    Guest {
        more: r#"(global $seen (mut i32) (i32.const 0))
            (data (i32.const 0) "x-trap") (data (i32.const 8) "x-grow") (data (i32.const 16) "x-spin")
            (data (i32.const 24) "x-work") (data (i32.const 32) "x-pass")"#,
        request: &request,
        ..Guest::default()
    }
    .wat()
}

async fn counting(edit: impl FnOnce(&mut config::Handler)) -> Arc<HttpHandler> {
    let mut config = handler_config();
    edit(&mut config);
    HttpHandler::new(
        engine(),
        load(engine(), &counter()).await,
        None,
        "acme/counter@1".into(),
        &config,
        config.limits(),
    )
}

async fn count(handler: &Arc<HttpHandler>) -> u8 {
    reply(request(handler, get()).await).body[0]
}

#[tokio::test]
async fn a_vm_is_kept_and_its_state_with_it() {
    let handler = counting(|_| ()).await;
    for expected in 1..=250 {
        assert_eq!(count(&handler).await, expected);
    }
    assert_eq!(count(&counting(|_| ()).await).await, 1, "another handler of the same module has VMs of its own");
}

#[tokio::test]
async fn a_vm_is_replaced_after_its_share_of_requests() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let engine = engine_with(dir.path(), |config| config.vm_requests = 3);
    let module = load(&engine, &counter()).await;
    let handler =
        HttpHandler::new(&engine, module, None, "acme/counter@1".into(), &handler_config(), handler_config().limits());
    let mut seen = Vec::new();
    for _ in 0..7 {
        seen.push(count(&handler).await);
    }
    assert_eq!(seen, [1, 2, 3, 1, 2, 3, 1]);
}

#[tokio::test]
async fn a_vm_is_replaced_when_it_holds_half_of_its_memory() {
    let handler = counting(|config| config.memory_bytes = 16 << 20).await;
    assert_eq!(reply(handler.request(with_header("x-grow", "")).await).body[0], 1);
    assert_eq!(count(&handler).await, 2, "6 MiB of 16");
    assert_eq!(reply(handler.request(with_header("x-grow", "")).await).body[0], 3);
    assert_eq!(count(&handler).await, 1, "12 MiB of 16");
}

#[tokio::test]
async fn whatever_goes_wrong_the_next_request_has_a_fresh_vm() {
    let handler = counting(|config| (config.wall, config.memory_bytes) = (Duration::from_millis(100), 4 << 20)).await;
    for (header, end) in [
        ("x-trap", "handler-trap"),
        ("x-spin", "handler-timeout"),
        ("x-grow", "handler-out-of-memory"),
        ("x-trap", "handler-trap"),
    ] {
        assert_eq!(count(&handler).await, 1);
        assert_eq!(count(&handler).await, 2);
        let outcome = handler.request(with_header(header, "")).await;
        assert_eq!(failure(&outcome.result), end, "{header}");
        assert!(outcome.vm.is_none());
    }
}

#[tokio::test]
async fn a_trap_in_the_response_phase_costs_only_its_vm() {
    let guest = Guest { response: "unreachable", ..Guest::default() };
    let handler = handler(&guest.load().await, "");
    for _ in 0..3 {
        let (exchange, vm) = went_on(handler.request(get()).await);
        let outcome = vm.response(answered(exchange, 200, "up"), false).await;
        assert_eq!(failure(&outcome.result), "handler-trap");
        assert_eq!(outcome.exchange.response.status.as_u16(), 200);
    }
}

#[tokio::test]
async fn a_short_handler_that_turns_long_is_run_again_unharmed() {
    let handler = counting(|_| ()).await;
    for expected in 1..=200 {
        assert_eq!(count(&handler).await, expected, "short ones stay on one VM");
    }
    // Takes far longer than an inline slice, and far less than the wall.
    let outcome = request(&handler, with_header("x-work", "")).await;
    let expected = with_header("x-work", "");
    assert_eq!(format!("{:?}", outcome.exchange.request), format!("{:?}", expected.request));
    assert_eq!(reply(outcome).body[0], 1, "on a fresh VM");
    assert_eq!(count(&handler).await, 2);
}

#[tokio::test]
async fn a_response_phase_that_turns_from_short_to_endless_is_stopped() {
    let guest = Guest {
        more: r#"(data (i32.const 0) "x-spin")"#,
        response: "(if (i64.ne (call $get_header_values (i32.const 1) (i32.const 0) (i32.const 6) (i32.const 0) (i32.const 0)) (i64.const 0))
            (then (loop $ever (br $ever))))",
        ..Guest::default()
    };
    let handler = handler(&guest.load().await, "");
    for i in 0..200 {
        let (exchange, vm) = went_on(request(&handler, get()).await);
        let outcome = response(vm, answered(exchange, 200, "up"), false).await;
        assert_eq!(failure(&outcome.result), "ok", "{i}");
    }
    let (exchange, vm) = went_on(request(&handler, get()).await);
    let mut exchange = answered(exchange, 200, "up");
    exchange.response.headers.insert("x-spin", http::HeaderValue::from_static("1"));
    let start = Instant::now();
    let outcome = response(vm, exchange, false).await;
    assert_eq!(failure(&outcome.result), "handler-timeout");
    assert!(start.elapsed() < Duration::from_secs(2), "inline, it may not hold its worker for the wall of 10 s");
    assert!(outcome.exchange.response.headers.contains_key("x-spin"));
    went_on(request(&handler, get()).await);
}

#[tokio::test]
async fn a_vm_is_pinned_until_the_response_and_others_wait_in_order() {
    let handler = counting(|_| ()).await;
    let (exchange, vm) = went_on(handler.request(with_header("x-pass", "")).await);
    let waiting: Vec<_> = (0..3)
        .map(|_| {
            let handler = handler.clone();
            tokio::spawn(async move { count(&handler).await })
        })
        .collect();
    tokio::task::yield_now().await;
    assert!(waiting.iter().all(|task| !task.is_finished()), "the only VM is pinned");
    vm.response(answered(exchange, 200, "up"), false).await.result.expect("ok");
    let mut seen = Vec::new();
    for task in waiting {
        seen.push(task.await.expect("no panic"));
    }
    assert_eq!(seen, [2, 3, 4]);
}

#[tokio::test]
async fn a_pinned_vm_that_is_dropped_is_gone_and_makes_room() {
    let handler = counting(|_| ()).await;
    assert_eq!(count(&handler).await, 1);
    drop(went_on(handler.request(with_header("x-pass", "")).await));
    assert_eq!(count(&handler).await, 1);
}

#[tokio::test]
async fn more_than_the_cap_at_once_is_busy() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let engine = engine_with(dir.path(), |config| {
        config.vms_per_handler = 2;
        config.queue_timeout = Duration::from_millis(20);
    });
    let module = load(&engine, &counter()).await;
    let handler =
        HttpHandler::new(&engine, module, None, "acme/counter@1".into(), &handler_config(), handler_config().limits());
    let pass = || handler.request(with_header("x-pass", ""));
    let (_, first) = went_on(pass().await);
    let (_, second) = went_on(pass().await);
    assert_eq!((engine.stats().vms_busy, engine.stats().vms_idle), (2, 0));
    let outcome = pass().await;
    assert_eq!(failure(&outcome.result), "busy");
    assert!(outcome.exchange.request.headers.contains_key("x-pass"), "the exchange comes back");
    first.response(get(), false).await.result.expect("ok");
    drop(second);
    assert_eq!((engine.stats().vms_busy, engine.stats().vms_idle), (0, 1));
    went_on(pass().await);
}

#[tokio::test]
async fn a_full_queue_refuses_at_once() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let engine = engine_with(dir.path(), |config| config.queue = 2);
    let module = load(&engine, &counter()).await;
    let handler =
        HttpHandler::new(&engine, module, None, "acme/counter@1".into(), &handler_config(), handler_config().limits());
    let (exchange, vm) = went_on(handler.request(with_header("x-pass", "")).await);
    let waiting: Vec<_> = (0..2)
        .map(|_| {
            let handler = handler.clone();
            tokio::spawn(async move { count(&handler).await })
        })
        .collect();
    tokio::task::yield_now().await;
    // The queue's time is 20 s, which this test does not wait for.
    let refused = tokio::time::timeout(Duration::from_secs(5), handler.request(get())).await;
    assert_eq!(failure(&refused.expect("at once").result), "busy");
    vm.response(exchange, false).await.result.expect("ok");
    for task in waiting {
        task.await.expect("those that wait are served");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_at_once_share_what_there_is() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let engine = engine_with(dir.path(), |config| (config.vms_per_handler, config.queue) = (4, 200));
    let module = load(&engine, &counter()).await;
    let handler =
        HttpHandler::new(&engine, module, None, "acme/counter@1".into(), &handler_config(), handler_config().limits());
    let tasks: Vec<_> = (0..200)
        .map(|i| {
            let handler = handler.clone();
            tokio::spawn(async move {
                if i % 10 == 0 {
                    let outcome = handler.request(with_header("x-trap", "")).await;
                    assert_eq!(failure(&outcome.result), "handler-trap");
                } else {
                    assert!(count(&handler).await > 0);
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("no panic");
    }
    // The last ones may have trapped, or gone as better code came.
    let stats = engine.stats();
    assert_eq!(stats.vms_busy, 0);
    assert!(stats.vms_idle <= 4, "{stats:?}");
    assert!(count(&handler).await > 0);
}

#[tokio::test]
async fn the_start_function_runs_once_and_one_of_two() {
    let wat = Guest {
        more: r#"(global $starts (mut i32) (i32.const 0))
            (func (export "_start") (global.set $starts (i32.add (global.get $starts) (i32.const 100))))"#,
        init: "(global.set $starts (i32.add (global.get $starts) (i32.const 1)))",
        request: "(i32.store8 (i32.const 100) (global.get $starts)) (call $write_body (i32.const 1) (i32.const 100) (i32.const 1)) (i64.const 0)",
        ..Guest::default()
    }
    .wat();
    for (wat, expected) in [(wat.clone(), 1), (wat.replace("\"_initialize\"", "\"other\""), 100)] {
        let handler = handler(&load(engine(), &wat).await, "");
        handler.warm().await.expect("it starts");
        for _ in 0..3 {
            assert_eq!(reply(handler.request(get()).await).body[0], expected);
        }
    }
}

/// A module whose `_start` leaves with this code.
fn exits(code: u8) -> String {
    format!(
        r#"(module (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32))) (memory (export "memory") 1)
          (func (export "_start") (call $exit (i32.const {code})))
          (func (export "handle_request") (result i64) (i64.const 1))
          (func (export "handle_response") (param i32 i32)))"#
    )
}

#[tokio::test]
async fn leaving_start_with_zero_is_success() {
    let handler = handler(&load(engine(), &exits(0)).await, "");
    handler.warm().await.expect("it starts");
    for _ in 0..3 {
        let (exchange, vm) = went_on(handler.request(get()).await);
        vm.response(answered(exchange, 200, "up"), false).await.result.expect("ok");
    }
}

#[tokio::test]
async fn leaving_start_with_another_code_says_that_it_cannot_run() {
    let handler = handler(&load(engine(), &exits(3)).await, "");
    let Err(RunError::Guest(GuestFailure::NotLoadable(why))) = handler.warm().await else { panic!("it started") };
    assert!(why.contains("code 3"), "{why}");
    assert_eq!(failure(&handler.request(get()).await.result), "handler-not-loadable");
}

#[tokio::test]
async fn the_configuration_arrives_byte_by_byte() {
    let module = Guest {
        request: "(call $write_body (i32.const 1) (i32.const 100) (call $get_config (i32.const 100) (i32.const 4096))) (i64.const 0)",
        ..Guest::default()
    };
    let module = module.load().await;
    let binary: Vec<u8> = (0..=255).chain([0, 0]).collect();
    for config in [binary, Vec::new(), b"{\"a\": 1}\n".to_vec()] {
        assert_eq!(reply(handler(&module, config.clone()).request(get()).await).body, config);
    }
}

/// Lines that guests logged, as this process's log has them.
fn log_lines() -> &'static Mutex<Vec<u8>> {
    static LINES: OnceLock<&'static Mutex<Vec<u8>>> = OnceLock::new();
    LINES.get_or_init(|| {
        let lines: &'static Mutex<Vec<u8>> = Box::leak(Box::default());
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::INFO)
            .with_ansi(false)
            .with_writer(move || Shared(lines))
            .finish();
        tracing::subscriber::set_global_default(subscriber).expect("nobody else sets one");
        lines
    })
}

struct Shared(&'static Mutex<Vec<u8>>);

impl std::io::Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("no writer panics").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn logs_have_signed_levels_and_name_the_handler_and_the_request() {
    let lines = log_lines();
    // Which levels are enabled, as a bit set from debug (-1) to one beyond none (4).
    let module = Guest {
        more: r#"(data (i32.const 0) "quiet-words") (data (i32.const 16) "loud\nwords")"#,
        request: "(local.set $i (i32.const -1))
            (loop $more
              (i32.store8 (i32.const 100) (i32.or (i32.load8_u (i32.const 100))
                (i32.shl (call $log_enabled (local.get $i)) (i32.add (local.get $i) (i32.const 1)))))
              (br_if $more (i32.lt_s (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 5))))
            (call $log (i32.const -1) (i32.const 0) (i32.const 11)) (call $log (i32.const 3) (i32.const 0) (i32.const 11))
            (call $log (i32.const 2) (i32.const 16) (i32.const 10))
            (call $write_body (i32.const 1) (i32.const 100) (i32.const 1)) (i64.const 0)",
        ..Guest::default()
    };
    let mut config = handler_config();
    config.owner = "acme".parse().expect("an owner");
    let handler =
        HttpHandler::new(engine(), module.load().await, None, "acme/logging@7".into(), &config, config.limits());
    let exchange = Box::new(HttpExchange { request_id: "id-of-the-log-test".into(), ..*get() });
    assert_eq!(reply(handler.request(exchange).await).body, [0b01110][..], "info, warn and error");
    let text = String::from_utf8_lossy(&lines.lock().expect("no writer panics")).into_owned();
    let ours: Vec<_> = text.lines().filter(|l| l.contains("id-of-the-log-test")).collect();
    assert_eq!(ours.len(), 1, "one line, though the guest's text has two:\n{text}");
    assert!(
        ours[0].contains("ERROR") && ours[0].contains("acme/logging@7") && ours[0].contains("loud\\nwords"),
        "{}",
        ours[0]
    );
    assert!(!text.contains("quiet-words"));
}

#[tokio::test]
async fn what_is_printed_goes_to_the_log_line_by_line() {
    let lines = log_lines();
    let wat = r#"(module
      (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
      (memory (export "memory") 1)
      (data (i32.const 0) "\10\00\00\00\12\00\00\00") (data (i32.const 16) "printed-by-it\nmore")
      (func $print (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8))))
      (func (export "handle_request") (result i64) (call $print) (i64.const 1))
      (func (export "handle_response") (param i32 i32) (call $print) unreachable))"#;
    let handler = handler(&load(engine(), wat).await, "");
    let exchange = Box::new(HttpExchange { request_id: "id-of-the-print-test".into(), ..*get() });
    let (exchange, vm) = went_on(handler.request(exchange).await);
    assert_eq!(failure(&vm.response(exchange, false).await.result), "handler-trap");
    let text = String::from_utf8_lossy(&lines.lock().expect("no writer panics")).into_owned();
    let ours: Vec<_> = text.lines().filter(|l| l.contains("id-of-the-print-test")).collect();
    assert_eq!(ours.len(), 4, "two lines a phase, also of the one that failed:\n{text}");
    assert_eq!(ours.iter().filter(|l| l.contains("guest: printed-by-it ")).count(), 2, "{ours:?}");
}

#[tokio::test]
async fn modules_that_are_no_handlers_are_refused_by_name() {
    let engine = engine();
    let whole = Guest::default().wat();
    let cases = [
        (whole.replace("(memory (export \"memory\") 1)", "(memory 1)"), "memory"),
        (whole.replace("(export \"handle_request\")", ""), "handle_request"),
        (whole.replace("(export \"handle_response\")", ""), "handle_response"),
        (whole.replace("(param $context i32) (param $is_error i32)", "(param $context i32)"), "handle_response"),
        (whole.replace("\"get_uri\"", "\"get_url\""), "get_url"),
        (
            whole.replace("(func $get_uri (param i32 i32) (result i32))", "(func $get_uri (param i32) (result i32))"),
            "get_uri",
        ),
    ];
    for (wat, name) in cases {
        let bytes = wat::parse_str(&wat).expect("valid WAT");
        let refused = engine.inspect(&bytes, Some(wasmgate::domain::Abi::HttpWasm), 1 << 20, &limits());
        let error = refused.expect_err(name).to_string();
        assert!(error.contains(&format!("`{name}`")) || error.contains(&format!(".{name}`")), "{name}: {error}");
    }
}
