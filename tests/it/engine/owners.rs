//! What owners do to each other, asked of the running server: guest memory, places, run permits, and that all work is
//! charged for.
//!
//! Invariant: whatever others hold or burn, an owner within its own limits gets an answer, and never a 502.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::support::admin::NewKey;
use crate::support::api::{self, Form};
use crate::support::toml::{route, tier};
use crate::support::{Gateway, Response, eventually, wat};

/// Keys of owners that differ.
fn keys(gw: &Gateway, tier: &str, count: usize) -> Vec<String> {
    let new = |n| gw.new_key(&NewKey { owner: &format!("owner-{n}"), tier, ..NewKey::default() }).text;
    (0..count).map(new).collect()
}

/// `stdin` is read by none of these guests; the argument of `run` is.
fn run(gw: &Gateway, key: &str, wasm: &[u8], args: &str) -> Response {
    let form = Form::default().file("wasm", wasm).field("args", args).end();
    gw.request("POST", "/api/wasm/execute").key(key).form(form).send()
}

fn running(gw: &Gateway) -> f64 {
    gw.metric("wasm_instances", &["state=\"running\""])
}

/// Begins with `pages` of memory and sleeps until its time is over.
fn sleeper(pages: u32) -> Vec<u8> {
    wat(&format!(
        r#"(module (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
           (memory (export "memory") {pages}) (func (export "_start")
             (i64.store (i32.const 24) (i64.const 3600000000000))
             (drop (call $poll (i32.const 0) (i32.const 100) (i32.const 1) (i32.const 200)))))"#
    ))
}

/// Begins with 16 MiB and ends at once.
const SIXTEEN_MIB: &str = r#"(module (memory 256) (func (export "run") (result i32) (i32.const 7)))"#;
/// Grows by a page until it is refused; the number of pages that it got.
const GREEDY: &str = r#"(module (memory 1) (func (export "run") (result i32)
    (loop (br_if 0 (i32.ne (memory.grow (i32.const 16)) (i32.const -1)))) (memory.size)))"#;

/// Sleepers end after three seconds, queues after one.
fn budget_of_64_mib() -> Gateway {
    let engine = "[engine]\nmemory_budget = \"64MiB\"\nqueue_timeout = \"1s\"\n";
    Gateway::start(&api::config(&format!("{engine}{}", tier("roomy", "limits.wall = \"3s\"\nquotas = []\n"))))
}

#[test]
fn one_owner_holds_half_of_the_guest_memory() {
    let gw = budget_of_64_mib();
    let keys = keys(&gw, "roomy", 2);
    let (wasm, quick) = (sleeper(256), wat(SIXTEEN_MIB));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| run(&gw, &keys[0], &wasm, "").problem(504, "handler-timeout"));
        }
        eventually("the sleepers sleep", || running(&gw) == 2.0);
        let begun = Instant::now();
        let third = run(&gw, &keys[0], &quick, "");
        third.problem(503, "busy");
        assert_eq!(third.header("retry-after"), Some("1"));
        assert!(begun.elapsed() >= Duration::from_secs(1), "it waits for the queue's time: {:?}", begun.elapsed());
        assert_eq!(run(&gw, &keys[1], &quick, "").expect(200).json()["result"], 7);
        let pages = run(&gw, &keys[1], &wat(GREEDY), "").expect(200).json()["result"].as_u64();
        assert_eq!(pages, Some(241), "sixteen by sixteen, as much as stays free");
    });
    assert_eq!(gw.metric("wasm_memory_usage_bytes", &[]), 0.0);
}

#[test]
fn a_run_waits_for_the_memory_that_it_begins_with() {
    let gw = budget_of_64_mib();
    let keys = keys(&gw, "roomy", 3);
    let (wasm, quick) = (sleeper(512), wat(SIXTEEN_MIB));
    std::thread::scope(|scope| {
        for key in &keys[..2] {
            scope.spawn(|| run(&gw, key, &wasm, "").problem(504, "handler-timeout"));
        }
        eventually("all memory is taken", || gw.metric("wasm_memory_usage_bytes", &[]) == f64::from(64 << 20));
        // Not its own fault: never 502.
        let refused = run(&gw, &keys[2], &quick, "");
        refused.problem(503, "busy");
        assert_eq!(refused.header("retry-after"), Some("1"));
        assert_eq!(run(&gw, &keys[2], &wat(r#"(module (func (export "run")))"#), "").status, 200, "it needs none");
        eventually("it gets in once the others end, without being asked for again", || {
            run(&gw, &keys[2], &quick, "").status == 200
        });
    });
}

/// Hoarders take what they can, touch none of it and sleep.
#[test]
fn growth_leaves_memory_to_other_owners() {
    let gw = budget_of_64_mib();
    let keys = keys(&gw, "roomy", 3);
    let hoarder = wat(
        r#"(module (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
           (memory (export "memory") 1) (func (export "_start")
             (i64.store (i32.const 24) (i64.const 3600000000000))
             (loop (br_if 0 (i32.ne (memory.grow (i32.const 1)) (i32.const -1))))
             (drop (call $poll (i32.const 0) (i32.const 100) (i32.const 1) (i32.const 200)))))"#,
    );
    let quick = wat(SIXTEEN_MIB);
    // Compiled before: the hoarders do not stay for long.
    run(&gw, &keys[2], &quick, "").expect(200);
    std::thread::scope(|scope| {
        for key in &keys[..2] {
            scope.spawn(|| run(&gw, key, &hoarder, "").problem(504, "handler-timeout"));
        }
        let held = || gw.metric("wasm_memory_usage_bytes", &[]);
        eventually("they hold what they can", || held() >= f64::from(42 << 20));
        assert_eq!(run(&gw, &keys[2], &quick, "").expect(200).json()["result"], 7);
        assert!(held() >= f64::from(42 << 20), "the hoarders are still there");
    });
}

#[test]
fn what_can_never_be_had_is_not_waited_for() {
    let gw = budget_of_64_mib();
    let key = &keys(&gw, "roomy", 1)[0];
    let begun = Instant::now();
    run(&gw, key, &wat(r#"(module (memory 513) (func (export "run")))"#), "").problem(502, "handler-out-of-memory");
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
}

/// Sixty-four owners loop without end; the sixty-fifth has short runs.
#[test]
fn loops_of_many_owners_leave_turns_to_others() {
    const LOOPS: usize = 64;
    const SHORT_RUNS: usize = 100;
    // All keys are new at once, from one address.
    let auth = "[auth]\nfailures_per_minute = 1000\n";
    let like_free = tier("free-like", "concurrent = 1\nlimits.wall = \"5s\"\nquotas = []\n");
    let gw = Gateway::start(&api::config(&format!("{auth}{like_free}")));
    let keys = keys(&gw, "free-like", LOOPS + 1);
    let spin = wat(r#"(module (func (export "run") (loop (br 0))))"#);
    let short = wat(r#"(module (func (export "run") (param i32) (result i32)
             (loop (local.set 0 (i32.sub (local.get 0) (i32.const 1))) (br_if 0 (local.get 0))) (i32.const 7)))"#);
    // Compiled before: this is about running.
    run(&gw, &keys[LOOPS], &short, "100000").expect(200);
    let (done, ended) = mpsc::channel();
    let mut took = std::thread::scope(|scope| {
        for key in &keys[..LOOPS] {
            let (done, gw, spin) = (done.clone(), &gw, &spin);
            scope.spawn(move || {
                run(gw, key, spin, "").problem(504, "handler-timeout");
                done.send(Instant::now()).expect("the test waits");
            });
        }
        eventually("the loops are under way", || running(&gw) == LOOPS as f64);
        let mut took = Vec::with_capacity(SHORT_RUNS);
        for _ in 0..SHORT_RUNS {
            let begun = Instant::now();
            assert_eq!(run(&gw, &keys[LOOPS], &short, "100000").expect(200).json()["result"], 7);
            took.push(begun.elapsed());
        }
        assert!(ended.try_recv().is_err(), "the short runs were over before the first loop: {took:?}");
        took
    });
    took.sort();
    let (median, p99) = (took[SHORT_RUNS / 2], took[SHORT_RUNS * 99 / 100 - 1]);
    println!("{SHORT_RUNS} short runs beside {LOOPS} loops: median {median:?}, p99 {p99:?}");
    assert!(p99 < Duration::from_secs(1), "within the queue's time: {took:?}");
}

/// Guests that hardly ever end a slice: nearly all of their time is the host's.
const HOST_LOOPS: [(&str, &str); 3] = [
    (r#""random_get" (func $call (param i32 i32) (result i32))"#, "(i32.const 0) (i32.const 0x1000000)"),
    // Vectors of no bytes, read and written.
    (
        r#""fd_read" (func $call (param i32 i32 i32 i32) (result i32))"#,
        "(i32.const 0) (i32.const 0) (i32.const 1024) (i32.const 9000)",
    ),
    (
        r#""fd_write" (func $call (param i32 i32 i32 i32) (result i32))"#,
        "(i32.const 2) (i32.const 0) (i32.const 1024) (i32.const 9000)",
    ),
];

#[test]
fn loops_of_host_calls_leave_turns_to_others() {
    let engine = "[engine]\nqueue_timeout = \"1s\"\n";
    let like_free = tier("free-like", "limits.wall = \"3s\"\nquotas = []\n");
    let log =
        wat(r#"(module (import "http_handler" "log" (func $log (param i32 i32 i32))) (memory (export "memory") 1)
        (func (export "handle_request") (result i64)
          (loop (call $log (i32.const 0) (i32.const 0) (i32.const 60000)) (br 0)) (i64.const 0))
        (func (export "handle_response") (param i32 i32)))"#);
    let lines = "match.path = \"/log\"\ntarget.respond.status = 200\nauth = \"none\"\n\
                 handlers = [{ module = \"acme/log\", wall = \"3s\" }]";
    let config = api::config(&format!("{engine}{like_free}"));
    let gw = Gateway::with_modules(&config, &[("acme/log", "http-wasm", &log)], &route("log", lines));
    // More than there are permits.
    let loops = std::thread::available_parallelism().map_or(1, usize::from);
    let keys = keys(&gw, "free-like", loops + 1);
    let short = wat(r#"(module (func (export "run") (result i32) (i32.const 7)))"#);
    run(&gw, &keys[loops], &short, "").expect(200);
    let beside = |what: &str, attack: &(dyn Fn(&str) -> Response + Sync)| {
        std::thread::scope(|scope| {
            let attacks: Vec<_> = keys[..loops].iter().map(|key| scope.spawn(|| attack(key))).collect();
            eventually("the loops are under way", || running(&gw) >= loops as f64);
            for _ in 0..5 {
                assert_eq!(run(&gw, &keys[loops], &short, "").expect(200).json()["result"], 7);
            }
            assert!(!attacks.iter().any(|attack| attack.is_finished()), "{what}: the short runs were over before");
            for attack in attacks {
                attack.join().expect("an answer").problem(504, "handler-timeout");
            }
        });
    };
    for (import, args) in HOST_LOOPS {
        let wasm = wat(&format!(
            r#"(module (import "wasi_snapshot_preview1" {import}) (memory (export "memory") 256)
               (func (export "_start") (loop (drop (call $call {args})) (br 0))))"#
        ));
        beside(import, &|key| run(&gw, key, &wasm, ""));
    }
    beside("log", &|_| gw.get("/log").send());
}

/// What making an instance copies is work like any other.
#[test]
fn segments_are_charged_by_their_length() {
    let gw = Gateway::start(&api::config(""));
    let key = gw.key();
    let fuel = |module: &str| {
        let wasm = wat(&format!(r#"(module (func $f) {module} (func (export "run")))"#));
        run(&gw, &key, &wasm, "").expect(200).json()["fuel"].as_u64().expect("a number")
    };
    let bytes = "x".repeat(1 << 20);
    let elements = "$f ".repeat(40_000);
    let none = fuel("(memory 20) (table 40000 funcref)");
    assert!(none < 100, "{none}");
    let data = fuel(&format!(r#"(memory 20) (data (i32.const 0) "{bytes}")"#));
    assert!((16_384..17_000).contains(&data), "a MiB is as much as a `memory.init` of it: {data}");
    let passive = fuel(&format!(r#"(memory 20) (data "{bytes}")"#));
    assert!(passive < 100, "nothing of it was copied: {passive}");
    let table = fuel(&format!("(table 40000 funcref) (elem (i32.const 0) {elements})"));
    assert!((10_000..11_000).contains(&table), "{table}");
    let small = r#"(data (i32.const 0) "x")"#.repeat(10_000);
    let segments = fuel(&format!("(memory 20) {small}"));
    assert!((80_000..90_000).contains(&segments), "each segment costs something: {segments}");
}
