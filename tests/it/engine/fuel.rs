//! Time and fuel: every shape of a loop meets its deadline, and what executes is charged for.

use super::*;

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
    // Others may have the processor for most of them.
    const RUNS: u32 = 100;
    let wall = Duration::from_millis(40);
    let mut best = Duration::MAX;
    for _ in 0..RUNS {
        let finished = kit.run(&module, Limits { wall_ms: wall, ..limits() }, Input::default()).await;
        assert_eq!(*failure(&finished), GuestFailure::Deadline, "{name} with {compiler:?}");
        assert!(finished.meter.wall >= wall, "{name}: ended before its time");
        best = best.min(finished.meter.wall);
        if best < wall + Duration::from_millis(10) {
            return;
        }
    }
    panic!("{name} with {compiler:?}: the best of {RUNS} runs took {best:?}");
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

/// Control through loops in every way; each takes how often, and long enough that slices end within.
const CONTROL: &[&str] = &[
    // Out of three loops at once, on with each of them, and back to the outermost from the innermost.
    r#"(module (func (export "run") (param $n i32) (result i32) (local $x i32) (local $i i32)
        (block $out (loop $a
          (local.set $x (i32.add (local.get $x) (i32.const 1)))
          (loop $b
            (local.set $x (i32.mul (local.get $x) (i32.const 31)))
            (loop $c
              (local.set $i (i32.add (local.get $i) (i32.const 1)))
              (local.set $x (i32.xor (local.get $x) (local.get $i)))
              (br_if $out (i32.ge_u (local.get $i) (local.get $n)))
              (br_table $a $b $c $c $b $a (i32.rem_u (local.get $x) (i32.const 7)))))))
        (local.get $x)))"#,
    // A loop with a result, left by falling through, by a branch with the value, and by a return.
    r#"(module (func $f (param $n i32) (result i32) (local $i i32)
          (block $out (result i32)
            (loop $l (result i32)
              (local.set $i (i32.add (local.get $i) (i32.const 3)))
              (br_if $l (i32.lt_u (local.get $i) (local.get $n)))
              (if (i32.and (local.get $i) (i32.const 1)) (then (br $out (i32.add (local.get $i) (i32.const 1000)))))
              (if (i32.and (local.get $i) (i32.const 2)) (then (return (i32.mul (local.get $i) (i32.const 7)))))
              (local.get $i))))
        (func (export "run") (param $n i32) (result i32) (local $sum i32)
          (loop $l
            (local.set $sum (i32.add (i32.mul (local.get $sum) (i32.const 3)) (call $f (i32.rem_u (local.get $n) (i32.const 300)))))
            (br_if $l (local.tee $n (i32.sub (local.get $n) (i32.const 1)))))
          (local.get $sum)))"#,
    // A loop with parameters inside one without, and operands below on the stack.
    r#"(module (func (export "run") (param $n i32) (result i32)
        (i32.const 5)
        (loop $l (result i32)
          (i32.const 1) (local.get $n)
          (loop $m (param i32 i32) (result i32)
            (i32.add)
            (local.get $n) (i32.const 3) (i32.rem_u) (i32.eqz)
            (if (param i32) (result i32) (then (i32.const 9) (i32.mul)))
            (local.set $n (i32.sub (local.get $n) (i32.const 1)))
            (i32.const 2) (local.get $n)
            (br_if $m) (drop))
          (br_if 1 (i32.eqz (local.get $n)))
          (br $l))
        (i32.sub)))"#,
    // Long bodies, so that some charges within look at nothing; a call and a bulk instruction in the loop.
    r#"(module (memory 1) (func $g (param i32) (result i32) (i32.rotl (local.get 0) (i32.const 5)))
        (func (export "run") (param $n i32) (result i32) (local $x i32)
          (loop $l
            (if (i32.and (local.get $n) (i32.const 1)) (then (local.set $x (call $g (i32.add (local.get $x) (local.get $n)))))
              (else (memory.fill (i32.const 0) (local.get $x) (i32.const 100))
                    (local.set $x (i32.add (local.get $x) (i32.load (i32.const 96))))))
            (block $b (loop $never (br $b)) )
            (block (br_if 0 (i32.and (local.get $n) (i32.const 4)))
              (local.set $x (i32.xor (local.get $x) (i32.shl (local.get $n) (i32.const 7))))
              (local.set $x (i32.add (local.get $x) (i32.const 77)))
              (local.set $x (i32.xor (local.get $x) (i32.shr_u (local.get $x) (i32.const 3))))
              (local.set $x (i32.add (local.get $x) (i32.const 78))))
            (br_if $l (local.tee $n (i32.sub (local.get $n) (i32.const 1)))))
          (local.get $x)))"#,
];

#[tokio::test]
async fn control_goes_where_it_went_before_fuel_was_put_in() {
    let kit = Kit::new();
    for text in CONTROL {
        let mut store = wasmer::Store::default();
        let module = wasmer::Module::new(&store, wat::parse_str(text).unwrap()).unwrap();
        let instance = wasmer::Instance::new(&mut store, &module, &wasmer::imports! {}).unwrap();
        let alone = instance.exports.get_typed_function::<i32, i32>(&store, "run").unwrap();
        for compiler in [Compiler::Fast, Compiler::Optimising] {
            let module = kit.try_load(text, None, compiler).await.unwrap();
            for n in [1, 2, 10, 3_000_000] {
                let input = Input { function_args: vec![n.to_string()], ..Input::default() };
                let output = kit.run(&module, limits(), input).await.result.unwrap();
                let expected = alone.call(&mut store, n).unwrap();
                assert_eq!(output.result(), Some(expected.into()), "{compiler:?}, {n}: {text}");
            }
        }
    }
}
