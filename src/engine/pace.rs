//! How long the first compiler may take: a multiple of what ordinary code of that size takes, function by function.
//!
//! Cranelift's time is not linear in a function's size for all code (live values times blocks, loops times locals), and
//! no count of anything tells bombs from large programs as well as the time itself does.
//!
//! Invariant: the process ends by SIGPROF in the first function that takes longer than its size explains, and when all
//! of them together do.

use std::time::Duration;

use wasmer::sys::wasmparser::Operator;
use wasmer::sys::{FunctionMiddleware, MiddlewareError, MiddlewareReaderState, ModuleMiddleware};
use wasmer_types::LocalFunctionIndex;
use wasmparser::{Parser, Payload};

use super::sys;

/// For whatever a process or a function takes at least.
const BASE: Duration = Duration::from_millis(400);

#[derive(Debug)]
pub struct Pace {
    /// Bytes of each function before fuel was put into it: that makes tiny ones five times as large.
    functions: Vec<u64>,
    per_mib: Duration,
}

impl Pace {
    /// For this module, beginning now.
    pub fn of(wasm: &[u8], per_mib: Duration) -> Result<Pace, wasmparser::Error> {
        let mut functions: Vec<u64> = Vec::new();
        for payload in Parser::new(0).parse_all(wasm) {
            if let Payload::CodeSectionEntry(body) = payload? {
                functions.push(body.range().end - body.range().start);
            }
        }
        sys::end_after_cpu_time(BASE + time_for(functions.iter().sum(), per_mib));
        Ok(Pace { functions, per_mib })
    }
}

fn time_for(bytes: u64, per_mib: Duration) -> Duration {
    const MIB: u32 = 1 << 20;
    let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
    // An hour for each of 4,096 MiB fits.
    per_mib.saturating_mul(bytes / MIB) + per_mib.mul_f64(f64::from(bytes % MIB) / f64::from(MIB))
}

impl ModuleMiddleware for Pace {
    fn generate_function_middleware<'a>(&self, function: LocalFunctionIndex) -> Box<dyn FunctionMiddleware<'a> + 'a> {
        let bytes = self.functions.get(function.as_u32() as usize).copied().unwrap_or(0);
        // Without a timer there is still the bound of all functions.
        let _ = sys::end_after_thread_cpu_time(BASE + time_for(bytes, self.per_mib));
        Box::new(Untouched)
    }
}

/// Passes operators on as they are.
#[derive(Debug)]
struct Untouched;

impl<'a> FunctionMiddleware<'a> for Untouched {
    fn feed(&mut self, operator: Operator<'a>, state: &mut MiddlewareReaderState<'a>) -> Result<(), MiddlewareError> {
        state.push_operator(operator);
        Ok(())
    }
}
