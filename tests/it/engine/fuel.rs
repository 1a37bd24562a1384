//! Fuel: every shape of a loop is charged, and so is whatever else executes. That loops end in time is in the attack table.

use super::*;
use crate::attack_table::loops::LOOPS;
use crate::support::{c_guest, wat};

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

/// Real guests and a kernel, each with an argument that keeps it busy for a while.
fn guests() -> [(&'static str, Vec<u8>, Input); 4] {
    let words = Input { stdin: "make me loud ".repeat(2_000).into(), ..Input::default() };
    let core = Input { entry: Some("add".into()), function_args: vec!["2".into(), "40".into()], ..Input::default() };
    [
        ("sieve", wat(SIEVE), number(50_000)),
        ("a command in C", c_guest("command"), words.clone()),
        ("a CGI program in C", c_guest("cgi"), words),
        ("core functions in C", c_guest("core"), core),
    ]
}

#[tokio::test]
async fn fuel_is_the_same_at_both_levels_and_on_every_run() {
    for (name, wasm, input) in guests() {
        let kit = Kit::new();
        let mut seen = Vec::new();
        for compiler in [Compiler::Fast, Compiler::Optimising] {
            let module = kit.load_bytes(wasm.clone().into(), None, compiler).await.unwrap();
            for wall in [2_000, 20_000] {
                // Slices differ with the time that is left; the sum must not.
                let limits = Limits { wall_ms: Duration::from_millis(wall), ..limits() };
                let finished = kit.run(&module, limits, input.clone()).await;
                let output = finished.result.unwrap_or_else(|e| panic!("{name}: {e}"));
                seen.push((finished.meter.fuel, output.values, output.stdout));
            }
        }
        assert!(seen.windows(2).all(|w| w[0] == w[1]), "{name}: {seen:?}");
        if name == "sieve" {
            assert_eq!(seen[0].1, [serde_json::json!(5_133)]);
            // "About one unit for an instruction": this run executes some 2 million.
            assert!((1_000_000..4_000_000).contains(&seen[0].0), "{seen:?}");
        }
    }
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
