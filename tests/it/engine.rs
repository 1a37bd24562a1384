//! The engine, driven directly with guests in text format: every way in which a guest can go wrong, against the real
//! compiler process, memory pool and guest threads.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use wasmgate::domain::rejection::NotLoadableKind::{self, *};
use wasmgate::domain::{Abi, GuestFailure, Limits, NotLoadable, OwnerId};
use wasmgate::engine::{
    Cancel, Compiler, Engine, Finished, Input, InstallError, Job, LoadedModule, RunError, Settings,
};

const MIB: u64 = 1 << 20;

fn config() -> wasmgate::config::Engine {
    wasmgate::config::Engine {
        threads: 2,
        queue: 64,
        queue_timeout: Duration::from_secs(20),
        per_owner: 2,
        memory_budget_bytes: 512 * MIB,
        vms_per_handler: 4,
        vm_requests: 1_000,
        artifact_cache_bytes: 64 * MIB,
        compile: wasmgate::config::Compile { processes: 2, cpu: Duration::from_secs(20), memory_bytes: 1 << 30 },
    }
}

fn limits() -> Limits {
    Limits {
        fuel: 1_000_000_000_000,
        memory_bytes: 16 * MIB,
        wall_ms: Duration::from_secs(20),
        input_bytes: MIB,
        output_bytes: MIB,
        log_bytes: 1_000,
        table_elements: 1_000,
    }
}

struct Kit {
    engine: Arc<Engine>,
    dir: tempfile::TempDir,
}

impl Kit {
    fn new() -> Kit {
        Kit::with(config())
    }

    fn with(config: wasmgate::config::Engine) -> Kit {
        let dir = tempfile::tempdir().unwrap();
        let engine = open(dir.path().to_owned(), [7; 32], config);
        Kit { engine, dir }
    }

    async fn try_load(
        &self,
        wat: &str,
        abi: Option<Abi>,
        compiler: Compiler,
    ) -> Result<Arc<LoadedModule>, NotLoadable> {
        let bytes = Bytes::from(wat::parse_str(wat).expect("the test's own text is valid"));
        self.load_bytes(bytes, abi, compiler).await
    }

    async fn load_bytes(
        &self,
        bytes: Bytes,
        abi: Option<Abi>,
        compiler: Compiler,
    ) -> Result<Arc<LoadedModule>, NotLoadable> {
        let inspected = self.engine.inspect(&bytes, abi, 64 * MIB, &limits())?;
        match compiler {
            Compiler::Fast => match self.engine.load_inline(bytes, &inspected).await {
                Ok(module) => Ok(module),
                Err(InstallError::NotLoadable(e)) => Err(e),
                Err(e) => panic!("{e}"),
            },
            Compiler::Optimising => match self.engine.install(bytes, &inspected, compiler).await {
                Ok(()) => Ok(self.engine.load(inspected.digest, inspected.abi, &inspected.shape).await.unwrap()),
                Err(InstallError::NotLoadable(e)) => Err(e),
                Err(e) => panic!("{e}"),
            },
        }
    }

    async fn load(&self, wat: &str) -> Arc<LoadedModule> {
        self.try_load(wat, None, Compiler::Fast).await.unwrap()
    }

    fn refusal(&self, wat: &str) -> NotLoadable {
        self.refusal_as(wat, None)
    }

    fn refusal_as(&self, wat: &str, abi: Option<Abi>) -> NotLoadable {
        let bytes = wat::parse_str(wat).expect("the test's own text is valid");
        self.engine.inspect(&bytes, abi, 64 * MIB, &limits()).expect_err("it must be refused")
    }

    async fn run(&self, module: &Arc<LoadedModule>, limits: Limits, input: Input) -> Finished {
        self.run_as("acme", module, limits, input).await
    }

    async fn run_as(&self, owner: &str, module: &Arc<LoadedModule>, limits: Limits, input: Input) -> Finished {
        let job = Job {
            module: module.clone(),
            owner: owner.parse::<OwnerId>().unwrap(),
            label: "acme/test@1".into(),
            limits,
            input,
            cancel: Cancel::default(),
        };
        self.engine.run(job).await
    }

    async fn run_wat(&self, wat: &str) -> Finished {
        let module = self.load(wat).await;
        self.run(&module, limits(), Input::default()).await
    }
}

fn open(data_dir: PathBuf, artifact_key: [u8; 32], config: wasmgate::config::Engine) -> Arc<Engine> {
    let compiler_exe = env!("CARGO_BIN_EXE_wasmgate").into();
    Engine::new(Settings { data_dir, artifact_key, compiler_exe, config }).unwrap()
}

fn failure(finished: &Finished) -> &GuestFailure {
    match &finished.result {
        Err(RunError::Guest(failure)) => failure,
        other => panic!("expected a guest failure, got {other:?}"),
    }
}

#[track_caller]
fn assert_refused(refusal: &NotLoadable, kind: NotLoadableKind, words: &str) {
    assert_eq!(refusal.kind, kind, "{refusal}");
    assert!(refusal.detail.contains(words), "`{}` does not name `{words}`", refusal.detail);
}

// ---------------------------------------------------------------- time and fuel

/// Every shape of a loop, with the text of a whole module.
const LOOPS: &[(&str, &str)] = &[
    ("loop br", r#"(module (func (export "run") (loop (br 0))))"#),
    ("loop br_if", r#"(module (func (export "run") (loop (br_if 0 (i32.const 1)))))"#),
    ("br_table back edge", r#"(module (func (export "run") (block (loop (br_table 0 0 1 (i32.const 1))))))"#),
    ("outer loop only", r#"(module (func (export "run") (loop (block (block (br 2))))))"#),
    (
        "nested loops",
        r#"(module (func (export "run") (local i32)
        (loop (local.set 0 (i32.const 3))
            (loop (local.set 0 (i32.sub (local.get 0) (i32.const 1))) (br_if 0 (local.get 0)))
            (br 0))))"#,
    ),
    (
        "loop with a value",
        r#"(module (func (export "run") (result i32) (i32.const 1) (loop (param i32) (result i32) (br 0))))"#,
    ),
    ("loop in an if", r#"(module (func (export "run") (if (i32.const 1) (then (loop (br 0))) (else))))"#),
    ("loop in an else", r#"(module (func (export "run") (if (i32.const 0) (then) (else (loop (br 0))))))"#),
    (
        "loop after unreachable code",
        r#"(module (func (export "run") (block (br 0) (loop (br 0)) (unreachable)) (loop (br 0))))"#,
    ),
    ("loop in start", r#"(module (func $s (loop (br 0))) (start $s) (func (export "run")))"#),
    (
        "tail of mutual recursion in a loop",
        r#"(module (func $a (param i32) (if (local.get 0) (then (call $b (i32.sub (local.get 0) (i32.const 1))))))
           (func $b (param i32) (if (local.get 0) (then (call $a (i32.sub (local.get 0) (i32.const 1))))))
           (func (export "run") (loop (call $a (i32.const 40)) (br 0))))"#,
    ),
    (
        "recursion without depth",
        r#"(module (func $f (param i32) (result i32)
             (if (result i32) (i32.lt_u (local.get 0) (i32.const 2)) (then (i32.const 1))
               (else (i32.add (call $f (i32.sub (local.get 0) (i32.const 1)))
                              (call $f (i32.sub (local.get 0) (i32.const 2)))))))
           (func (export "run") (result i32) (call $f (i32.const 80))))"#,
    ),
    (
        "call_indirect in a loop",
        r#"(module (type $t (func)) (table 1 funcref) (elem (i32.const 0) $f) (func $f)
           (func (export "run") (loop (call_indirect (type $t) (i32.const 0)) (br 0))))"#,
    ),
    (
        "mutual call_indirect",
        r#"(module (type $t (func (param i32) (result i32))) (table 2 funcref) (elem (i32.const 0) $f $g)
           (func $f (type $t) (if (result i32) (i32.eqz (local.get 0)) (then (i32.const 0))
             (else (i32.add (call_indirect (type $t) (i32.sub (local.get 0) (i32.const 1)) (i32.const 1))
                            (call_indirect (type $t) (i32.sub (local.get 0) (i32.const 1)) (i32.const 1))))))
           (func $g (type $t) (if (result i32) (i32.eqz (local.get 0)) (then (i32.const 0))
             (else (i32.add (call_indirect (type $t) (i32.sub (local.get 0) (i32.const 1)) (i32.const 0))
                            (call_indirect (type $t) (i32.sub (local.get 0) (i32.const 1)) (i32.const 0))))))
           (func (export "run") (result i32) (call_indirect (type $t) (i32.const 70) (i32.const 0))))"#,
    ),
    (
        "around memory.fill",
        r#"(module (memory 200) (func (export "run")
           (loop (memory.fill (i32.const 0) (i32.const 1) (i32.const 13107200)) (br 0))))"#,
    ),
    (
        "around memory.copy",
        r#"(module (memory 200) (func (export "run")
           (loop (memory.copy (i32.const 1) (i32.const 0) (i32.const 13107199)) (br 0))))"#,
    ),
    (
        "around memory.grow 0",
        r#"(module (memory 1) (func (export "run") (loop (drop (memory.grow (i32.const 0))) (br 0))))"#,
    ),
    (
        "around a refused memory.grow",
        r#"(module (memory 1) (func (export "run") (loop (drop (memory.grow (i32.const 1))) (br 0))))"#,
    ),
    (
        "around table.fill",
        r#"(module (table 1000 funcref) (func (export "run")
           (loop (table.fill (i32.const 0) (ref.null func) (i32.const 1000)) (br 0))))"#,
    ),
    (
        "around host calls",
        r#"(module (import "wasi_snapshot_preview1" "sched_yield" (func $y (result i32))) (memory 1)
           (func (export "_start") (loop (drop (call $y)) (br 0))))"#,
    ),
    (
        "around random_get",
        r#"(module (import "wasi_snapshot_preview1" "random_get" (func $r (param i32 i32) (result i32))) (memory 200)
           (func (export "_start") (loop (drop (call $r (i32.const 0) (i32.const 13107200))) (br 0))))"#,
    ),
    (
        "a long sleep",
        r#"(module (import "wasi_snapshot_preview1" "poll_oneoff" (func $p (param i32 i32 i32 i32) (result i32)))
           (memory 1) (func (export "_start")
             (i64.store (i32.const 24) (i64.const 3600000000000))
             (drop (call $p (i32.const 0) (i32.const 100) (i32.const 1) (i32.const 200)))))"#,
    ),
];

/// The deadline and a hundredth of a second; what a loaded test machine adds is allowed for by the best of some runs.
async fn assert_ends_in_time(kit: &Kit, name: &str, wat: &str, compiler: Compiler) {
    let module = kit.try_load(wat, None, compiler).await.unwrap_or_else(|e| panic!("{name}: {e}"));
    let wall = Duration::from_millis(40);
    let mut best = Duration::MAX;
    for _ in 0..10 {
        let finished = kit.run(&module, Limits { wall_ms: wall, ..limits() }, Input::default()).await;
        assert_eq!(*failure(&finished), GuestFailure::Deadline, "{name} with {compiler:?}");
        assert!(finished.meter.wall >= wall, "{name}: ended before its time");
        best = best.min(finished.meter.wall);
        if best < wall + Duration::from_millis(10) {
            return;
        }
    }
    panic!("{name} with {compiler:?}: the best of 10 runs took {best:?}");
}

#[tokio::test]
async fn every_shape_of_loop_meets_the_deadline_compiled_fast() {
    let kit = Kit::new();
    for (name, wat) in LOOPS {
        assert_ends_in_time(&kit, name, wat, Compiler::Fast).await;
    }
}

#[tokio::test]
async fn every_shape_of_loop_meets_the_deadline_optimised() {
    let kit = Kit::new();
    for (name, wat) in LOOPS {
        assert_ends_in_time(&kit, name, wat, Compiler::Optimising).await;
    }
}

#[tokio::test]
async fn every_shape_of_loop_runs_out_of_fuel() {
    let kit = Kit::new();
    for (name, wat) in LOOPS.iter().filter(|(name, _)| *name != "a long sleep") {
        let module = kit.load(wat).await;
        let finished = kit.run(&module, Limits { fuel: 1_000_000, ..limits() }, Input::default()).await;
        assert_eq!(*failure(&finished), GuestFailure::OutOfFuel, "{name}");
        assert!(finished.meter.fuel > 1_000_000, "{name}: {:?}", finished.meter);
    }
}

const SIEVE: &str = r#"(module (memory 1) (func (export "run") (param $n i32) (result i32)
    (local $i i32) (local $j i32) (local $count i32)
    (local.set $i (i32.const 2))
    (loop $outer
      (if (i32.eqz (i32.load8_u (local.get $i))) (then
        (local.set $count (i32.add (local.get $count) (i32.const 1)))
        (local.set $j (i32.mul (local.get $i) (i32.const 2)))
        (block $done (loop $inner
          (br_if $done (i32.ge_u (local.get $j) (local.get $n)))
          (i32.store8 (local.get $j) (i32.const 1))
          (local.set $j (i32.add (local.get $j) (local.get $i)))
          (br $inner)))))
      (local.set $i (i32.add (local.get $i) (i32.const 1)))
      (br_if $outer (i32.lt_u (local.get $i) (local.get $n))))
    (local.get $count)))"#;

fn number(n: u32) -> Input {
    Input { function_args: vec![n.to_string()], ..Input::default() }
}

#[tokio::test]
async fn fuel_is_the_same_at_both_levels_and_on_every_run() {
    let kit = Kit::new();
    let mut seen = Vec::new();
    for compiler in [Compiler::Fast, Compiler::Optimising] {
        let other = kit.dir.path().join(format!("{compiler:?}"));
        let engine = open(other, [7; 32], config());
        let bytes = Bytes::from(wat::parse_str(SIEVE).unwrap());
        let inspected = engine.inspect(&bytes, None, MIB, &limits()).unwrap();
        engine.install(bytes, &inspected, compiler).await.unwrap();
        let module = engine.load(inspected.digest, inspected.abi, &inspected.shape).await.unwrap();
        for wall in [2_000, 20_000] {
            // Slices differ with the time that is left; the sum must not.
            let limits = Limits { wall_ms: Duration::from_millis(wall), ..limits() };
            let finished = kit.run(&module, limits, number(50_000)).await;
            assert_eq!(finished.result.unwrap().values, [serde_json::json!(5_133)]);
            seen.push(finished.meter.fuel);
        }
    }
    assert!(seen.windows(2).all(|w| w[0] == w[1]), "{seen:?}");
    // "About one unit for an instruction": this run executes some 2 million.
    assert!((1_000_000..4_000_000).contains(&seen[0]), "{seen:?}");
}

#[tokio::test]
async fn what_is_executed_is_charged_for() {
    // The long arm is skipped in one run and taken in the other.
    let work = "(local.set 1 (i32.add (local.get 1) (i32.const 1)))".repeat(1_000);
    let wat = format!(
        r#"(module (func (export "run") (param i32) (result i32) (local i32)
           (block (br_if 0 (local.get 0)) {work}) (local.get 1)))"#
    );
    let kit = Kit::new();
    let module = kit.load(&wat).await;
    let skipped = kit.run(&module, limits(), number(1)).await.meter.fuel;
    let taken = kit.run(&module, limits(), number(0)).await.meter.fuel;
    assert!(skipped < 100, "{skipped}");
    assert!((4_000..4_200).contains(&taken), "{taken}");
}

// ---------------------------------------------------------------- memory, tables, stack

/// Writes its argument over its memory after looking whether all of it was zero.
const CANARY: &str = r#"(module (memory 8) (func (export "run") (param $mark i32) (result i32)
    (local $i i32) (local $seen i32)
    (loop $next
      (local.set $seen (i32.or (local.get $seen) (i32.load (local.get $i))))
      (i32.store (local.get $i) (local.get $mark))
      (local.set $i (i32.add (local.get $i) (i32.const 4)))
      (br_if $next (i32.lt_u (local.get $i) (i32.const 524288))))
    (local.get $seen)))"#;

#[tokio::test]
async fn no_owner_sees_what_another_left_in_a_slot() {
    let kit = Kit::with(wasmgate::config::Engine { threads: 1, ..config() });
    let module = kit.load(CANARY).await;
    for n in 0..50u32 {
        let owner = if n % 2 == 0 { "acme" } else { "evil" };
        let finished = kit.run_as(owner, &module, limits(), number(0xA5A5_0000 + n)).await;
        assert_eq!(finished.result.unwrap().values, [serde_json::json!(0)], "run {n}");
    }
    // One thread and one memory: the slot came back each time. Nothing is left when no guest is.
    assert_eq!(kit.engine.stats().memory_bytes, 0);
}

const GROW: &str = r#"(module (memory 1) (func (export "run") (param i32) (result i32) (memory.grow (local.get 0))))"#;

#[tokio::test]
async fn growth_beyond_the_limit_gives_minus_one() {
    let kit = Kit::new();
    let module = kit.load(GROW).await;
    for (pages, want) in [(255, 1), (256, -1), (65_535, -1), (u32::MAX, -1), (0, 1)] {
        let finished = kit.run(&module, limits(), number(pages)).await;
        assert_eq!(finished.result.unwrap().values, [serde_json::json!(want)], "{pages} pages");
        let peak = if want == 1 { u64::from(pages + 1) << 16 } else { 1 << 16 };
        assert_eq!(finished.meter.memory_peak_bytes, peak);
    }
}

#[tokio::test]
async fn declared_memory_over_the_limit_is_refused() {
    let kit = Kit::new();
    assert_refused(&kit.refusal(r#"(module (memory 257) (func (export "run")))"#), MemoryLimit, "16777216");
    assert_refused(&kit.refusal(r#"(module (table 1001 funcref) (func (export "run")))"#), MemoryLimit, "1000");
    // A caller with smaller limits than the uploader's.
    let module = kit.load(r#"(module (memory 32) (func (export "run")))"#).await;
    let finished = kit.run(&module, Limits { memory_bytes: MIB, ..limits() }, Input::default()).await;
    assert_eq!(*failure(&finished), GuestFailure::OutOfMemory);
}

#[tokio::test]
async fn the_budget_of_the_process_bounds_all_guests() {
    let kit = Kit::with(wasmgate::config::Engine { memory_budget_bytes: 3 << 16, ..config() });
    let module = kit.load(GROW).await;
    let values = |f: Finished| f.result.unwrap().values;
    assert_eq!(values(kit.run(&module, limits(), number(3)).await), [serde_json::json!(-1)]);
    assert_eq!(values(kit.run(&module, limits(), number(2)).await), [serde_json::json!(1)]);
    let finished = kit.run_wat(r#"(module (memory 4) (func (export "run")))"#).await;
    assert_eq!(*failure(&finished), GuestFailure::OutOfMemory);
    assert_eq!(kit.engine.stats().memory_bytes, 0);
}

#[tokio::test]
async fn an_allocator_that_aborts_ran_out_of_memory() {
    let kit = Kit::new();
    let finished = kit
        .run_wat(
            r#"(module (memory 1) (func (export "run")
               (if (i32.eq (memory.grow (i32.const 1000)) (i32.const -1)) (then unreachable))))"#,
        )
        .await;
    assert_eq!(*failure(&finished), GuestFailure::OutOfMemory);
}

#[tokio::test]
async fn tables_grow_to_their_limit_only() {
    let kit = Kit::new();
    let module = kit
        .load(
            r#"(module (table 0 funcref) (func (export "run") (param i32) (result i32)
                 (table.grow (ref.null func) (local.get 0))))"#,
        )
        .await;
    for (delta, want) in [(1_000, 0), (1_001, -1), (u32::MAX, -1)] {
        let finished = kit.run(&module, limits(), number(delta)).await;
        assert_eq!(finished.result.unwrap().values, [serde_json::json!(want)], "{delta}");
    }
}

#[tokio::test]
async fn traps_end_the_guest_alone() {
    let kit = Kit::new();
    for (body, reason) in [
        ("unreachable", "unreachable"),
        ("(drop (i32.div_u (i32.const 1) (i32.const 0)))", "divide by zero"),
        ("(drop (i32.load (i32.const 65536)))", "out of bounds"),
        ("(drop (i64.load offset=4294967295 (i32.const -1)))", "out of bounds"),
        ("(memory.fill (i32.const 1) (i32.const 0) (i32.const 65536))", "out of bounds"),
        ("(memory.copy (i32.const 0) (i32.const 1) (i32.const 65536))", "out of bounds"),
        ("(call_indirect (i32.const 0))", "element"),
        ("(drop (i32.trunc_f32_s (f32.const nan)))", "conversion"),
        ("(call $deep)", "stack"),
    ] {
        let wat = format!(
            r#"(module (memory 1) (table 1 funcref) (func $deep (call $deep)) (func $inner {body})
               (func (export "run") (call $inner)))"#
        );
        for compiler in [Compiler::Fast, Compiler::Optimising] {
            let module = kit.try_load(&wat, None, compiler).await.unwrap();
            let finished = kit.run(&module, limits(), Input::default()).await;
            match failure(&finished) {
                GuestFailure::Trap { reason: found, backtrace } => {
                    assert!(found.contains(reason), "{body} with {compiler:?}: {found}");
                    assert!(backtrace.len() < 8_192);
                }
                other => panic!("{body}: {other:?}"),
            }
            assert!(finished.meter.fuel > 0 && finished.meter.wall > Duration::ZERO, "{body}");
        }
    }
}

#[tokio::test]
async fn a_backtrace_names_functions() {
    let kit = Kit::new();
    let finished = kit
        .run_wat(
            r#"(module (func $oops unreachable) (func $middle (call $oops)) (func (export "run") (call $middle)))"#,
        )
        .await;
    match failure(&finished) {
        GuestFailure::Trap { backtrace, .. } => {
            let (oops, middle) = (backtrace.find("oops").unwrap(), backtrace.find("middle").unwrap());
            assert!(oops < middle, "{backtrace}");
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn bulk_instructions_in_pieces_do_what_they_did() {
    // 3 MiB, so that each works in several pieces; overlapping copies in both directions.
    let kit = Kit::new();
    let module = kit
        .load(
            r#"(module (memory 100) (data $d "wasm") (func (export "run") (result i32 i32 i32 i32 i32)
               (memory.fill (i32.const 10) (i32.const 7) (i32.const 3145728))
               (i32.store8 (i32.const 10) (i32.const 1))
               (i32.store8 (i32.const 3145737) (i32.const 9))
               (memory.copy (i32.const 11) (i32.const 10) (i32.const 3145728))
               (memory.copy (i32.const 5) (i32.const 11) (i32.const 3145728))
               (memory.init $d (i32.const 4000000) (i32.const 1) (i32.const 3))
               (i32.load8_u (i32.const 5)) (i32.load8_u (i32.const 6)) (i32.load8_u (i32.const 3145732))
               (i32.load8_u (i32.const 9)) (i32.load (i32.const 4000000))))"#,
        )
        .await;
    let finished = kit.run(&module, limits(), Input::default()).await;
    let asm = i32::from_le_bytes(*b"asm\0");
    let want = [1, 7, 9, 7, asm].map(serde_json::Value::from);
    assert_eq!(finished.result.unwrap().values, want);
    assert!(finished.meter.fuel > 3 * 3_145_728 / 64);
}

// ---------------------------------------------------------------- what is refused at upload

#[test]
fn refused_features_are_named() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _context = runtime.enter();
    let kit = Kit::new();
    for (wat, words) in [
        (r#"(module (memory 1 2 shared) (func (export "run")))"#, "threads"),
        (r#"(module (memory 1) (func (export "run") (drop (i32.atomic.load (i32.const 0)))))"#, "threads"),
        (r#"(module (memory i64 1) (func (export "run")))"#, "64-bit memory"),
        (r#"(module (tag) (func (export "run") (throw 0)))"#, "exceptions"),
        (r#"(module (func $f) (func (export "run") (return_call $f)))"#, "tail calls"),
        (r#"(module (memory 1) (memory 1) (func (export "run")))"#, "more than one memory"),
        (
            r#"(module (func (export "run") (drop (f32x4.relaxed_min (v128.const i64x2 0 0) (v128.const i64x2 0 0)))))"#,
            "relaxed SIMD",
        ),
        (r#"(module (type (struct)) (func (export "run") (drop (struct.new 0))))"#, "garbage collection"),
    ] {
        assert_refused(&kit.refusal(wat), UnsupportedFeature, words);
    }
}

#[test]
fn formats_imports_and_exports_are_checked() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _context = runtime.enter();
    let kit = Kit::new();
    let refuse = |bytes: &[u8]| kit.engine.inspect(bytes, None, 1_000, &limits()).unwrap_err();
    assert_refused(&refuse(b""), InvalidModule, "empty");
    assert_refused(&refuse(b"#!/bin/sh"), UnsupportedFormat, "not a WebAssembly");
    assert_refused(&refuse(b"\0asm\x0d\0\x01\0"), UnsupportedFormat, "component");
    assert_refused(&refuse(b"\0asm\x02\0\0\0"), UnsupportedFormat, "version");
    assert_refused(&refuse(b"\0asm\x01\0\0\0\x01\xff"), InvalidModule, "invalid");
    assert_refused(&refuse(&[0; 1_001]), CompileLimit, "1000");

    let import = |module: &str, name: &str| {
        format!(r#"(module (import "{module}" "{name}" (func)) (memory 1) (func (export "_start")))"#)
    };
    assert_refused(&kit.refusal(&import("env", "magic")), UnknownImport, "`env.magic`");
    assert_refused(&kit.refusal(&import("env", "proxy_log")), UnknownImport, "proxy-wasm");
    assert_refused(&kit.refusal(&import("wasi_unstable", "fd_write")), UnknownImport, "wasip1");
    assert_refused(&kit.refusal(&import("wasix_32v1", "thread_spawn")), UnknownImport, "WASIX");
    assert_refused(&kit.refusal(&import("wasi_snapshot_preview1", "no_such")), UnknownImport, "no_such");
    assert_refused(
        &kit.refusal(&import("wasi_snapshot_preview1", "fd_write")),
        UnknownImport,
        "(i32, i32, i32, i32) -> i32",
    );
    assert_refused(&kit.refusal(&import("wasmgate:fuel", "expire")), UnknownImport, "wasmgate:fuel");
    let memory = r#"(module (import "env" "memory" (memory 1)) (func (export "_start")))"#;
    assert_refused(&kit.refusal(memory), UnknownImport, "`env.memory`");
    assert_refused(
        &kit.refusal(r#"(module (global (export "wasmgate:fuel") (mut i64) (i64.const 0)) (func (export "run")))"#),
        InvalidModule,
        "wasmgate:",
    );
    assert_refused(&kit.refusal("(module)"), MissingExport, "export a function");
    let reactor =
        r#"(module (import "wasi_snapshot_preview1" "sched_yield" (func (result i32))) (func (export "go")))"#;
    assert_refused(&kit.refusal(reactor), MissingExport, "`_start`");
    let typed = r#"(module (func (export "_start") (param i32)))"#;
    assert_refused(&kit.refusal_as(typed, Some(Abi::Command)), MissingExport, "() -> ()");
    assert_refused(&kit.refusal_as(reactor, Some(Abi::Core)), UnknownImport, "core");
}

#[test]
fn abis_are_found_by_shape() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _context = runtime.enter();
    let kit = Kit::new();
    let found = |wat: &str, declared| {
        let bytes = wat::parse_str(wat).unwrap();
        kit.engine.inspect(&bytes, declared, MIB, &limits()).unwrap().abi
    };
    assert_eq!(found(r#"(module (func (export "_start")))"#, None), Abi::Command);
    assert_eq!(found(r#"(module (func (export "_start")))"#, Some(Abi::Cgi)), Abi::Cgi);
    assert_eq!(found(r#"(module (func (export "_start")))"#, Some(Abi::Core)), Abi::Core);
    assert_eq!(found(r#"(module (func (export "add") (param i32 i32) (result i32) (i32.const 0)))"#, None), Abi::Core);
}

#[test]
fn compile_bombs_are_refused_before_any_compiler() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _context = runtime.enter();
    let kit = Kit::new();
    let begun = Instant::now();
    let locals = format!(r#"(module (func (export "run") (local {})))"#, "i64 ".repeat(50_000));
    assert_refused(&kit.refusal(&locals), CompileLimit, "locals");
    let targets = format!(r#"(module (func (export "run") (br_table {} (i32.const 0))))"#, "0 ".repeat(20_000));
    assert_refused(&kit.refusal(&targets), CompileLimit, "br_table");
    let body = format!(r#"(module (func (export "run") {}))"#, "nop ".repeat(1_100_000));
    assert_refused(&kit.refusal(&body), CompileLimit, "bytes");
    let functions = format!(r#"(module (func (export "run")) {})"#, "(func)".repeat(100_001));
    assert_refused(&kit.refusal(&functions), CompileLimit, "functions");
    let types: String = (0..10_001).map(|n| format!("(type (func (param {})))", "i32 ".repeat(n % 100))).collect();
    assert_refused(&kit.refusal(&format!("(module {types})")), CompileLimit, "types");
    let deep = format!(r#"(module (func (export "run") {}{}))"#, "block ".repeat(5_000), "end ".repeat(5_000));
    assert_refused(&kit.refusal(&deep), CompileLimit, "nested");
    let stack = format!(r#"(module (func (export "run") {}unreachable))"#, "(i32.const 0) ".repeat(5_000));
    assert_refused(&kit.refusal(&stack), CompileLimit, "stack");
    let globals = "(global i32 (i32.const 0))".repeat(10_001);
    assert_refused(&kit.refusal(&format!(r#"(module (func (export "run")) {globals})"#)), CompileLimit, "globals");
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_compiler_without_time_or_memory_refuses_the_module() {
    let work = "(local.set 0 (i64.mul (i64.add (local.get 0) (i64.const 1)) (local.get 1)))".repeat(20_000);
    let functions = format!("(func (param i64 i64) (result i64) {work} (local.get 0))").repeat(40);
    let bytes = Bytes::from(wat::parse_str(format!(r#"(module (func (export "run")) {functions})"#)).unwrap());
    for compile in [
        wasmgate::config::Compile { processes: 1, cpu: Duration::from_secs(1), memory_bytes: 4 << 30 },
        wasmgate::config::Compile { processes: 1, cpu: Duration::from_secs(60), memory_bytes: 64 * MIB },
    ] {
        let kit = Kit::with(wasmgate::config::Engine { compile, ..config() });
        let inspected = kit.engine.inspect(&bytes, None, 64 * MIB, &limits()).unwrap();
        let begun = Instant::now();
        match kit.engine.install(bytes.clone(), &inspected, Compiler::Optimising).await {
            Err(InstallError::NotLoadable(e)) => assert_refused(&e, CompileLimit, "compile"),
            other => panic!("{other:?}"),
        }
        assert!(begun.elapsed() < Duration::from_secs(10));
        assert_eq!(kit.engine.stats().compiling, 0);
    }
}

// ---------------------------------------------------------------- artifacts

fn files(kit: &Kit, folder: &str) -> Vec<PathBuf> {
    std::fs::read_dir(kit.dir.path().join(folder)).unwrap().map(|e| e.unwrap().path()).collect()
}

#[tokio::test]
async fn a_tampered_artifact_is_never_loaded() {
    let kit = Kit::new();
    let bytes = Bytes::from(wat::parse_str(SIEVE).unwrap());
    let inspected = kit.engine.inspect(&bytes, None, MIB, &limits()).unwrap();
    kit.engine.install(bytes, &inspected, Compiler::Optimising).await.unwrap();
    let [artifact] = files(&kit, "artifacts").try_into().unwrap();
    let good = std::fs::read(&artifact).unwrap();
    let mut cases: Vec<Vec<u8>> =
        vec![Vec::new(), good[..40].to_vec(), good[..good.len() - 1].to_vec(), vec![0; 5_000]];
    for at in [0, 31, 32, good.len() / 2, good.len() - 1] {
        let mut bad = good.clone();
        bad[at] ^= 1;
        cases.push(bad);
    }
    for (n, bad) in cases.into_iter().enumerate() {
        std::fs::write(&artifact, &bad).unwrap();
        let engine = open(kit.dir.path().to_owned(), [7; 32], config());
        let module = engine.load(inspected.digest, inspected.abi, &inspected.shape).await.unwrap();
        let finished = kit.run(&module, limits(), number(100)).await;
        assert_eq!(finished.result.unwrap().values, [serde_json::json!(25)]);
        assert_eq!(engine.stats().artifacts_rejected, 1, "case {n}");
        assert_ne!(std::fs::read(&artifact).unwrap(), bad, "it is made anew");
    }
    // Another gateway's key is as good as tampering; the artifact of another digest too.
    let engine = open(kit.dir.path().to_owned(), [8; 32], config());
    engine.load(inspected.digest, inspected.abi, &inspected.shape).await.unwrap();
    assert_eq!(engine.stats().artifacts_rejected, 1);
    let other = kit.try_load(GROW, None, Compiler::Optimising).await.unwrap();
    let other_path = artifact.with_file_name(format!("{}.cranelift", other.digest().hex()));
    std::fs::copy(&other_path, &artifact).unwrap();
    let engine = open(kit.dir.path().to_owned(), [7; 32], config());
    engine.load(inspected.digest, inspected.abi, &inspected.shape).await.unwrap();
    assert_eq!(engine.stats().artifacts_rejected, 1);
}

#[tokio::test]
async fn a_version_can_be_removed_and_temporaries_go_at_start() {
    let kit = Kit::new();
    let module = kit.try_load(SIEVE, None, Compiler::Optimising).await.unwrap();
    assert_eq!((files(&kit, "modules").len(), files(&kit, "artifacts").len()), (1, 1));
    std::fs::write(kit.dir.path().join("modules/.tmp-1-1"), b"torn").unwrap();
    let again = open(kit.dir.path().to_owned(), [7; 32], config());
    assert_eq!(files(&kit, "modules").len(), 1);
    again.remove(module.digest()).await.unwrap();
    assert_eq!((files(&kit, "modules").len(), files(&kit, "artifacts").len()), (0, 0));
    let gone = again.load(module.digest(), module.abi(), module.shape()).await;
    assert!(matches!(gone, Err(GuestFailure::NotLoadable(_))));
    // A run that holds it goes on.
    assert!(kit.run(&module, limits(), number(10)).await.result.is_ok());
}

#[tokio::test]
async fn loads_are_coalesced() {
    let kit = Kit::new();
    let bytes = Bytes::from(wat::parse_str(SIEVE).unwrap());
    let inspected = kit.engine.inspect(&bytes, None, MIB, &limits()).unwrap();
    let loads = (0..16).map(|_| kit.engine.load_inline(bytes.clone(), &inspected));
    let modules = futures_util::future::join_all(loads).await;
    let first = modules[0].as_ref().unwrap();
    assert!(modules.iter().all(|m| Arc::ptr_eq(m.as_ref().unwrap(), first)));
}

// ---------------------------------------------------------------- WASI commands

fn wasi(body: &str) -> String {
    format!(
        r#"(module
        (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
        (import "wasi_snapshot_preview1" "clock_time_get" (func $clock (param i32 i64 i32) (result i32)))
        (import "wasi_snapshot_preview1" "path_open"
          (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
        (memory (export "memory") 2)
        (data (i32.const 1024) "hello\n")
        (func $put (param $fd i32) (param $at i32) (param $len i32)
          (i32.store (i32.const 0) (local.get $at)) (i32.store (i32.const 4) (local.get $len))
          (drop (call $write (local.get $fd) (i32.const 0) (i32.const 1) (i32.const 8))))
        (func (export "_start") {body}))"#
    )
}

#[tokio::test]
async fn proc_exit_ends_a_command_with_its_output() {
    let kit = Kit::new();
    for code in [0, 3, 255] {
        let body = format!(
            "(call $put (i32.const 1) (i32.const 1024) (i32.const 6)) (call $exit (i32.const {code})) unreachable"
        );
        let finished = kit.run_wat(&wasi(&body)).await;
        let output = finished.result.unwrap();
        assert_eq!((output.exit_code, &output.stdout[..]), (code, b"hello\n".as_slice()));
        assert_eq!(finished.meter.output_bytes, 6);
    }
}

#[tokio::test]
async fn output_is_bounded_and_logs_are_cut() {
    let kit = Kit::new();
    let forever = "(loop (call $put (i32.const 1) (i32.const 0) (i32.const 65536)) (br 0))";
    let finished = kit.run_wat(&wasi(forever)).await;
    assert_eq!(*failure(&finished), GuestFailure::OutputTooLarge);
    assert!(finished.meter.output_bytes > MIB);
    let log = "(loop (call $put (i32.const 2) (i32.const 0) (i32.const 65536)) (br 0))";
    let module = kit.load(&wasi(log)).await;
    let finished = kit.run(&module, Limits { wall_ms: Duration::from_millis(50), ..limits() }, Input::default()).await;
    assert_eq!(*failure(&finished), GuestFailure::Deadline);
    assert_eq!(finished.stderr.len(), 1_000);
}

#[tokio::test]
async fn bad_pointers_trap_and_files_are_out_of_reach() {
    let kit = Kit::new();
    for body in [
        "(drop (call $write (i32.const 1) (i32.const -8) (i32.const 1) (i32.const 0)))",
        "(call $put (i32.const 1) (i32.const 131071) (i32.const 2))",
        "(call $put (i32.const 1) (i32.const 0) (i32.const -1))",
        "(drop (call $clock (i32.const 0) (i64.const 0) (i32.const 131068)))",
    ] {
        let finished = kit.run_wat(&wasi(body)).await;
        assert!(matches!(failure(&finished), GuestFailure::Trap { .. }), "{body}: {:?}", finished.result);
    }
    // ENOTCAPABLE is 76.
    let open = "(call $exit (call $open (i32.const 3) (i32.const 0) (i32.const 1024) (i32.const 5) (i32.const 0)
        (i64.const 0) (i64.const 0) (i32.const 0) (i32.const 0)))";
    assert_eq!(kit.run_wat(&wasi(open)).await.result.unwrap().exit_code, 76);
}

#[tokio::test]
async fn clocks_are_coarse_and_move() {
    let kit = Kit::new();
    // Waits until the monotonic clock moves, then exits with whether both readings are whole milliseconds.
    let body = "(drop (call $clock (i32.const 1) (i64.const 0) (i32.const 16)))
        (loop (drop (call $clock (i32.const 1) (i64.const 0) (i32.const 24)))
          (br_if 0 (i64.eq (i64.load (i32.const 16)) (i64.load (i32.const 24)))))
        (drop (call $clock (i32.const 0) (i64.const 0) (i32.const 32)))
        (call $exit (i32.wrap_i64 (i64.or
          (i64.rem_u (i64.load (i32.const 24)) (i64.const 1000000))
          (i64.rem_u (i64.load (i32.const 32)) (i64.const 1000000)))))";
    assert_eq!(kit.run_wat(&wasi(body)).await.result.unwrap().exit_code, 0);
}

#[tokio::test]
async fn a_command_in_c_sees_its_arguments_environment_and_input() {
    let Some(bytes) = compile_c(
        "echo",
        r#"
        #include <stdio.h>
        #include <stdlib.h>
        #include <string.h>
        #include <time.h>
        int main(int argc, char **argv) {
            for (int i = 1; i < argc; i++) printf("arg %s\n", argv[i]);
            printf("env %s %s\n", getenv("NAME"), getenv("HOME") ? "leaked" : "clean");
            char line[64];
            while (fgets(line, sizeof line, stdin)) printf("in %s", line);
            if (fopen("/etc/passwd", "r")) printf("file!\n");
            char *p = malloc(100000); memset(p, 1, 100000); free(p);
            if (time(0) < 1600000000) printf("no time\n");
            fprintf(stderr, "done\n");
            return 5;
        }"#,
    ) else {
        return;
    };
    let kit = Kit::new();
    for compiler in [Compiler::Fast, Compiler::Optimising] {
        let module = kit.load_bytes(bytes.clone(), None, compiler).await.unwrap();
        assert_eq!(module.abi(), Abi::Command);
        let input = Input {
            args: vec!["one".into(), "two words".into()],
            env: vec![("NAME".into(), "value".into())],
            stdin: Bytes::from_static(b"first\nsecond\n"),
            ..Input::default()
        };
        let finished = kit.run(&module, limits(), input).await;
        let output = finished.result.unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert_eq!(text, "arg one\narg two words\nenv value clean\nin first\nin second\n");
        assert_eq!((output.exit_code, &finished.stderr[..]), (5, b"done\n".as_slice()));
        assert!(finished.meter.cpu > Duration::ZERO && finished.meter.memory_peak_bytes >= 2 << 16);
    }
}

#[tokio::test]
async fn a_cgi_guest_in_c_answers() {
    let Some(bytes) = compile_c(
        "cgi",
        r#"
        #include <stdio.h>
        #include <stdlib.h>
        int main(void) {
            printf("Status: 201 Created\r\nContent-Type: text/plain\r\nX-Path: %s\r\n\r\n", getenv("PATH_INFO"));
            int c; while ((c = getchar()) != EOF) putchar(c);
            return 0;
        }"#,
    ) else {
        return;
    };
    let kit = Kit::new();
    let module = kit.load_bytes(bytes, Some(Abi::Cgi), Compiler::Fast).await.unwrap();
    let input = Input {
        env: vec![("PATH_INFO".into(), "/a/b".into())],
        stdin: Bytes::from_static(b"\xff\x00body"),
        ..Input::default()
    };
    let output = kit.run(&module, limits(), input).await.result.unwrap();
    let reply = Engine::cgi_reply(output.stdout).unwrap();
    assert_eq!((reply.status, &reply.body[..]), (201, b"\xff\x00body".as_slice()));
    assert_eq!(reply.headers[1].1, "/a/b");
}

/// A guest in C, where clang and wasi-libc are installed; `scripts/test` installs them.
fn compile_c(name: &str, source: &str) -> Option<Bytes> {
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("engine-guests");
    std::fs::create_dir_all(&dir).unwrap();
    let (c, wasm) = (dir.join(format!("{name}.c")), dir.join(format!("{name}.wasm")));
    std::fs::write(&c, source).unwrap();
    let clang = std::process::Command::new("clang")
        .args(["--target=wasm32-wasi", "-O2", "-s", "-o"])
        .arg(&wasm)
        .arg(&c)
        .output();
    match clang {
        Ok(output) if output.status.success() => Some(std::fs::read(&wasm).unwrap().into()),
        Ok(output) => panic!("clang: {}", String::from_utf8_lossy(&output.stderr)),
        Err(_) => {
            eprintln!("clang is not installed: the C guest `{name}` is not tried");
            None
        }
    }
}

// ---------------------------------------------------------------- core functions

#[tokio::test]
async fn core_functions_take_and_give_numbers() {
    let kit = Kit::new();
    let module = kit
        .load(
            r#"(module
               (func (export "add") (param i32 i64) (result i64) (i64.add (i64.extend_i32_s (local.get 0)) (local.get 1)))
               (func (export "half") (param f32 f64) (result f64)
                 (f64.mul (f64.promote_f32 (local.get 0)) (local.get 1)))
               (func (export "both") (result i32 f32) (i32.const -1) (f32.const 0.5))
               (func (export "nan") (result f64) (f64.const nan))
               (func (export "reference") (param externref)))"#,
        )
        .await;
    let call = async |entry: &str, args: &[&str]| {
        let function_args = args.iter().map(|s| (*s).to_owned()).collect();
        let input = Input { entry: Some(entry.into()), function_args, ..Input::default() };
        kit.run(&module, limits(), input).await.result.map(|o| o.values)
    };
    assert_eq!(call("add", &["-5", "0xff"]).await.unwrap(), [serde_json::json!(250)]);
    assert_eq!(call("half", &["3", "0.5"]).await.unwrap(), [serde_json::json!(1.5)]);
    assert_eq!(call("both", &[]).await.unwrap(), [serde_json::json!(-1), serde_json::json!(0.5)]);
    assert_eq!(call("nan", &[]).await.unwrap(), [serde_json::json!("NaN")]);
    for (entry, args) in [
        ("add", vec!["1"]),
        ("add", vec!["1", "2", "3"]),
        ("add", vec!["x", "1"]),
        ("add", vec!["4294967296", "1"]),
        ("missing", vec![]),
        ("reference", vec!["1"]),
    ] {
        assert!(matches!(call(entry, &args).await, Err(RunError::BadCall(_))), "{entry} {args:?}");
    }
}

#[tokio::test]
async fn a_core_module_has_a_fixed_entry_order() {
    let kit = Kit::new();
    let answer = async |wat: &str| {
        let module = kit.try_load(wat, Some(Abi::Core), Compiler::Fast).await.unwrap();
        kit.run(&module, limits(), Input::default()).await.result.map(|o| o.values)
    };
    let f = |name: &str, n: i32| format!(r#"(func (export "{name}") (result i32) (i32.const {n}))"#);
    let wat = |names: &[(&str, i32)]| format!("(module {})", names.iter().map(|(s, n)| f(s, *n)).collect::<String>());
    assert_eq!(answer(&wat(&[("run", 3), ("main", 2), ("_start", 1)])).await.unwrap(), [serde_json::json!(1)]);
    assert_eq!(answer(&wat(&[("run", 3), ("main", 2)])).await.unwrap(), [serde_json::json!(2)]);
    assert_eq!(answer(&wat(&[("run", 3)])).await.unwrap(), [serde_json::json!(3)]);
    assert!(matches!(answer(&wat(&[("other", 1)])).await, Err(RunError::BadCall(_))));
}

#[tokio::test]
async fn simd_runs_at_both_levels() {
    let kit = Kit::new();
    let wat = r#"(module (func (export "run") (param i32) (result i32)
        (i32x4.extract_lane 2 (i32x4.add (i32x4.splat (local.get 0)) (i32x4.splat (i32.const 1))))))"#;
    for compiler in [Compiler::Fast, Compiler::Optimising] {
        let module = kit.try_load(wat, None, compiler).await.unwrap();
        let values = kit.run(&module, limits(), number(41)).await.result.unwrap().values;
        assert_eq!(values, [serde_json::json!(42)], "{compiler:?}");
    }
}

// ---------------------------------------------------------------- the compiler's processes

/// A compiler that never ends and leaves its process id in `hung`.
fn hanging_compiler(dir: &std::path::Path) -> PathBuf {
    let (exe, hung) = (dir.join("compiler"), dir.join("hung"));
    // Written by another process: a descriptor that some fork of this one inherits would make the file busy.
    let script = format!("#!/bin/sh\necho $$ > {0}.new; mv {0}.new {0}; exec sleep 300\n", hung.display());
    let made = std::process::Command::new("sh")
        .args(["-c", r#"printf '%s' "$1" > "$2" && chmod +x "$2""#, "sh", &script])
        .arg(&exe)
        .status();
    assert!(made.unwrap().success());
    exe
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_compile_waits_for_a_process_in_bounds_and_dies_with_its_caller() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config();
    config.compile.processes = 1;
    let compiler_exe = hanging_compiler(dir.path());
    let engine =
        Engine::new(Settings { data_dir: dir.path().join("data"), artifact_key: [7; 32], compiler_exe, config })
            .unwrap();
    let install = |wat: &str| {
        let (engine, bytes) = (engine.clone(), Bytes::from(wat::parse_str(wat).unwrap()));
        async move {
            let inspected = engine.inspect(&bytes, None, MIB, &limits()).unwrap();
            engine.install(bytes, &inspected, Compiler::Optimising).await
        }
    };
    let hanging = tokio::spawn(install(SIEVE));
    let hung = dir.path().join("hung");
    until("the compiler does not start", || hung.exists()).await;
    let process = PathBuf::from("/proc").join(std::fs::read_to_string(&hung).unwrap().trim());
    assert!(process.exists());

    let begun = Instant::now();
    assert!(matches!(install(SPIN).await, Err(InstallError::Busy)));
    let waited = begun.elapsed();
    assert!((Duration::from_secs(5)..Duration::from_secs(8)).contains(&waited), "{waited:?}");

    hanging.abort();
    until("the compiler outlives the upload", || !process.exists()).await;
    until("it still counts as running", || engine.stats().compiling == 0).await;
}

#[tokio::test]
async fn a_compiler_that_hangs_is_killed_at_its_deadline() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config();
    config.compile.cpu = Duration::from_secs(1);
    let compiler_exe = hanging_compiler(dir.path());
    let engine =
        Engine::new(Settings { data_dir: dir.path().join("data"), artifact_key: [7; 32], compiler_exe, config })
            .unwrap();
    let bytes = Bytes::from(wat::parse_str(SIEVE).unwrap());
    let inspected = engine.inspect(&bytes, None, MIB, &limits()).unwrap();
    match engine.install(bytes, &inspected, Compiler::Optimising).await {
        Err(InstallError::NotLoadable(e)) => assert_eq!(e.kind, NotLoadableKind::CompileLimit),
        other => panic!("{other:?}"),
    }
    let process = PathBuf::from("/proc").join(std::fs::read_to_string(dir.path().join("hung")).unwrap().trim());
    until("the compiler outlives its deadline", || !process.exists()).await;
}

// ---------------------------------------------------------------- the pool and the inline lane

const SPIN: &str = r#"(module (func (export "run") (loop (br 0))))"#;

#[tokio::test]
async fn one_owner_cannot_take_every_thread() {
    // Half of the threads is the most, whatever `per_owner` says.
    let kit = Kit::with(wasmgate::config::Engine { threads: 2, per_owner: 2, ..config() });
    let (spin, quick) = (kit.load(SPIN).await, kit.load(SIEVE).await);
    let slow = Limits { wall_ms: Duration::from_millis(400), ..limits() };
    let spins =
        futures_util::future::join_all((0..4).map(|_| kit.run_as("evil", &spin, slow.clone(), Input::default())));
    let others = async {
        let begun = Instant::now();
        for _ in 0..20 {
            assert!(kit.run_as("acme", &quick, limits(), number(10)).await.result.is_ok());
        }
        begun.elapsed()
    };
    let (spins, took) = tokio::join!(spins, others);
    assert!(spins.iter().all(|f| *failure(f) == GuestFailure::Deadline));
    assert!(took < Duration::from_millis(400), "{took:?}");
}

#[tokio::test]
async fn owners_that_fill_their_shares_leave_places_by_default() {
    let kit = Kit::with(wasmgate::config::Engine { threads: 0, per_owner: 4, ..config() });
    let (spin, quick) = (kit.load(SPIN).await, kit.load(SIEVE).await);
    let wall = Duration::from_secs(3);
    let slow = Limits { wall_ms: wall, ..limits() };
    let begun = Instant::now();
    let loops = futures_util::future::join_all((0..8).map(|n| {
        let (kit, spin, slow) = (&kit, &spin, slow.clone());
        async move { kit.run_as(["evil", "worse"][n % 2], spin, slow, Input::default()).await }
    }));
    let other = async {
        while kit.engine.stats().guests_running < 8 {
            assert!(begun.elapsed() < wall, "the loops are not under way: {:?}", kit.engine.stats());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(kit.run_as("acme", &quick, limits(), number(10)).await.result.is_ok());
        begun.elapsed()
    };
    let (loops, took) = tokio::join!(loops, other);
    assert!(loops.iter().all(|f| *failure(f) == GuestFailure::Deadline));
    assert!(took < wall / 2, "{took:?}");
}

#[tokio::test]
async fn a_full_pool_refuses_at_once_and_a_long_queue_in_time() {
    let queue_timeout = Duration::from_millis(100);
    let kit = Kit::with(wasmgate::config::Engine { threads: 1, queue: 2, queue_timeout, ..config() });
    let spin = kit.load(SPIN).await;
    let slow = Limits { wall_ms: Duration::from_millis(600), ..limits() };
    let begun = Instant::now();
    let runs = futures_util::future::join_all((0..6).map(|n| {
        let owner = ["a", "b", "c"][n % 3];
        let (kit, spin, slow) = (&kit, &spin, slow.clone());
        async move { (kit.run_as(owner, spin, slow, Input::default()).await, begun.elapsed()) }
    }))
    .await;
    let (ran, busy): (Vec<_>, Vec<_>) = runs.iter().partition(|(f, _)| matches!(f.result, Err(RunError::Guest(_))));
    assert_eq!((ran.len(), busy.len()), (1, 5));
    for (finished, at) in busy {
        assert!(
            matches!(&finished.result, Err(RunError::Busy { retry_after }) if *retry_after >= Duration::from_secs(1))
        );
        assert!(*at < Duration::from_millis(500), "{at:?}");
    }
    // A thread notes the end of a run just after it handed over the result.
    let deadline = Instant::now() + Duration::from_secs(5);
    while kit.engine.stats().guests_running > 0 {
        assert!(Instant::now() < deadline, "a thread still counts as running");
        tokio::task::yield_now().await;
    }
    assert_eq!(kit.engine.stats().guests_queued, 0);
}

#[tokio::test]
async fn a_short_module_that_turns_long_still_gets_its_time() {
    let kit = Kit::new();
    let module = kit.load(SIEVE).await;
    // Becomes inline, then needs some 10 ms.
    for _ in 0..300 {
        kit.run(&module, limits(), number(10)).await.result.unwrap();
    }
    let finished = kit.run(&module, limits(), number(65_000)).await;
    assert_eq!(finished.result.unwrap().values, [serde_json::json!(6_493)]);
    // An endless run of an inline module meets its own deadline, not the slice's.
    let spin = kit.load(r#"(module (func (export "run") (param i32) (loop (br_if 0 (local.get 0)))))"#).await;
    for _ in 0..300 {
        kit.run(&spin, limits(), number(0)).await.result.unwrap();
    }
    let finished = kit.run(&spin, Limits { wall_ms: Duration::from_millis(80), ..limits() }, number(1)).await;
    assert_eq!(*failure(&finished), GuestFailure::Deadline);
    assert!(finished.meter.wall >= Duration::from_millis(80));
}

#[tokio::test]
async fn shutdown_refuses_what_waits() {
    let kit = Kit::new();
    let module = kit.load(SIEVE).await;
    kit.engine.shutdown();
    let finished = kit.run(&module, limits(), number(10)).await;
    assert!(matches!(finished.result, Err(RunError::Busy { .. })));
}
