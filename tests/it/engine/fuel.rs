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
