//! How long the first compiler may take: a multiple of what ordinary code of that size takes, function by function.
//!
//! Cranelift's time is not linear in a function's size for all code (live values times blocks, loops times locals), and
//! no count of anything tells bombs from large programs as well as the time itself does.
//!
//! Invariant: the process ends by SIGPROF in the first function that takes longer than its size explains (where two
//! threads compile: while neither begins another), and when all of them together do.

use std::time::Duration;

use wasmer::sys::wasmparser::Operator;
use wasmer::sys::{FunctionMiddleware, MiddlewareError, MiddlewareReaderState, ModuleMiddleware};
use wasmer_types::LocalFunctionIndex;
use wasmparser::{Parser, Payload};

use super::sys;

/// For whatever a process or a function takes at least.
const BASE: Duration = Duration::from_millis(400);
/// The part of the time for all code that what comes behind the last function may take.
const FINISHING: u32 = 10;

#[derive(Debug)]
pub struct Pace {
    /// Bytes of each function before fuel was put into it: that makes tiny ones five times as large.
    functions: Vec<u64>,
    per_mib: Duration,
    finishing: Duration,
    /// CPU time of the process at which it ends.
    end: Duration,
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
        let code = time_for(functions.iter().sum(), per_mib);
        let all = BASE + code;
        sys::end_after_cpu_time(all);
        let end = sys::process_cpu_time() + all;
        Ok(Pace { functions, per_mib, finishing: code / FINISHING, end })
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
        let left = self.end.saturating_sub(sys::process_cpu_time());
        sys::end_after_cpu_time(left.min(BASE + time_for(bytes, self.per_mib) + self.finishing));
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
