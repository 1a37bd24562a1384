//! Generated modules with both compilers: what one computes, charges and traps on, so does the other.

use super::*;
use crate::generated::{ARGUMENTS, Kind, keep, module, seeds};

/// What a run came to, but for what the clock and the depth of the machine's stack have a part in.
#[derive(Debug, PartialEq)]
struct Outcome {
    end: Result<Vec<serde_json::Value>, String>,
    fuel: u64,
    memory: u64,
}

impl Outcome {
    /// How deep a recursion may be is the compiler's, as frames differ in size, and in the last frame the clock's: a slice
    /// of fuel that ends there calls the host.
    fn is_stack_overflow(&self) -> bool {
        self.end.as_ref().is_err_and(|end| end.contains("stack"))
    }
}

async fn outcome(kit: &Kit, module: &Arc<LoadedModule>) -> Outcome {
    let function_args = ARGUMENTS.iter().map(|(_, text)| (*text).to_owned()).collect();
    let input = Input { entry: Some("check".into()), function_args, ..Input::default() };
    let finished = kit.run(module, Limits { fuel: 500_000, ..limits() }, input).await;
    let end = match finished.result {
        Ok(output) => Ok(output.values),
        Err(RunError::Guest(GuestFailure::Trap { reason, .. })) => Err(reason),
        Err(other) => Err(format!("{other:?}")),
    };
    Outcome { end, fuel: finished.meter.fuel, memory: finished.meter.memory_peak_bytes }
}

#[tokio::test]
async fn both_compilers_make_the_same_of_a_generated_module() {
    let kit = Kit::new();
    let (mut ended, mut trapped, mut refused, mut deep) = (0, 0, 0, 0);
    for seed in seeds(150) {
        let wasm = Bytes::from(module(Kind::Core, seed));
        let kept = || keep(Kind::Core, seed, &wasm);
        let fast = match kit.load_bytes(wasm.clone(), None, Compiler::Fast).await {
            Ok(fast) => fast,
            // Such as a start function of a kind that nobody may have.
            Err(refusal) => {
                assert!(refusal.kind != InvalidModule, "seed {seed}, {}: {refusal}", kept().display());
                refused += 1;
                continue;
            }
        };
        let optimised = kit.load_bytes(wasm.clone(), None, Compiler::Optimising).await.unwrap();
        let first = outcome(&kit, &fast).await;
        let again = outcome(&kit, &fast).await;
        let other = outcome(&kit, &optimised).await;
        let other_again = outcome(&kit, &optimised).await;
        if [&first, &again, &other, &other_again].iter().any(|outcome| outcome.is_stack_overflow()) {
            deep += 1;
            continue;
        }
        assert_eq!(first, again, "compiled fast, twice: seed {seed}, {}", kept().display());
        assert_eq!(other, other_again, "optimised, twice: seed {seed}, {}", kept().display());
        assert_eq!(first, other, "fast and optimised: seed {seed}, {}", kept().display());
        match first.end {
            Ok(_) => ended += 1,
            Err(_) => trapped += 1,
        }
    }
    println!("{ended} ended, {trapped} trapped, {refused} refused, {deep} too deep");
    assert!(ended > 0 && trapped > 0 && refused + deep < ended + trapped, "the modules tell too little");
}
