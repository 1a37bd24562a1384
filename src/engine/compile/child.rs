//! What the child process does: instrument, compile, serialise.
//!
//! Invariant: nothing of a stranger's module is looked at before the limits of CPU time and address space hold.

use std::io::{Read, Write};
use std::num::NonZero;
use std::sync::Arc;
use std::time::Duration;

use wasmer::sys::{CompilerConfig, Cranelift, CraneliftOptLevel, EngineBuilder, NativeEngineExt};
use wasmer_types::Features;

use crate::domain::Limits;

use super::processes::AHEAD;
use super::{ANSWER, DONE, HEADER, MAGIC, REFUSED};
use crate::engine::instrument::instrument;
use crate::engine::pace::Pace;
use crate::engine::tunables::GuestTunables;
use crate::engine::{Compiler, sys};

const MAX_MESSAGE: usize = 512;
/// As guests: somebody waits for it.
const FAST_NICE: i32 = 5;
/// `(module (memory 1) (func (param i32) (result i32) (loop (br_if 0 (i32.load (local.get 0)))) (local.get 0)))`
const WARM_UP: &[u8] = b"\0asm\x01\0\0\0\
    \x01\x06\x01\x60\x01\x7f\x01\x7f\
    \x03\x02\x01\x00\
    \x05\x03\x01\x00\x01\
    \x0a\x10\x01\x0e\x00\x03\x40\x20\x00\x28\x02\x00\x0d\x00\x0b\x20\x00\x0b";

/// What the hidden verb runs: one request from standard input, one answer to standard output. Gives the exit code.
pub fn child_main() -> i32 {
    sys::close_inherited();
    if std::env::args_os().nth(2).is_some_and(|arg| arg == AHEAD) {
        warm_up();
    }
    let answer = match read_request() {
        Ok(Request { compiler, per_mib, wasm }) => {
            let compiled = std::panic::catch_unwind(|| compile(&wasm, compiler, per_mib));
            compiled.unwrap_or_else(|_| Err("the compiler panicked".into()))
        }
        Err(e) => {
            let _ = writeln!(std::io::stderr(), "{e}");
            return 2;
        }
    };
    let (status, body) = match answer {
        Ok(artifact) => (DONE, artifact),
        Err(why) => (REFUSED, why.bytes().take(MAX_MESSAGE).collect()),
    };
    let mut header = [status; ANSWER];
    header[1..].copy_from_slice(&(body.len() as u64).to_le_bytes());
    let mut out = std::io::stdout().lock();
    match out.write_all(&header).and_then(|()| out.write_all(&body)).and_then(|()| out.flush()) {
        Ok(()) => 0,
        Err(_) => 1,
    }
}

/// Compiles a module of our own: a first compile takes longer, as the program's pages and the allocator's are not there yet,
/// nor the threads.
fn warm_up() {
    sys::nice_this_thread(FAST_NICE);
    // A failure is met again with the job.
    let _ = std::panic::catch_unwind(|| compile(WARM_UP, Compiler::Fast, Duration::ZERO));
}

struct Request {
    compiler: Compiler,
    /// CPU time for a MiB of code.
    per_mib: Duration,
    wasm: Vec<u8>,
}

fn read_request() -> std::io::Result<Request> {
    let bad = || std::io::Error::new(std::io::ErrorKind::InvalidData, "this verb is the gateway's own");
    let mut input = std::io::stdin().lock();
    let mut header = [0u8; HEADER];
    input.read_exact(&mut header)?;
    let number = |at: usize| header[at..at + 8].try_into().map(u64::from_le_bytes).map_err(|_| bad());
    let compiler = match (header.starts_with(&MAGIC), header[4]) {
        (true, 0) => Compiler::Fast,
        (true, 1) => Compiler::Optimising,
        _ => return Err(bad()),
    };
    let (cpu, per_mib, memory, len) = (number(5)?, number(13)?, number(21)?, number(29)?);
    // Before the first byte of the module: nothing of it is looked at without limits.
    sys::set_limit(libc::RLIMIT_CPU, cpu)?;
    // On top of what the program itself occupies.
    sys::set_limit(libc::RLIMIT_AS, memory.saturating_add(sys::address_space()?))?;
    sys::set_limit(libc::RLIMIT_CORE, 0)?;
    sys::nice_this_thread(match compiler {
        Compiler::Fast => FAST_NICE,
        Compiler::Optimising => 19,
    });
    let mut wasm = Vec::new();
    input.take(len).read_to_end(&mut wasm)?;
    if wasm.len() as u64 != len {
        return Err(bad());
    }
    Ok(Request { compiler, per_mib: Duration::from_nanos(per_mib), wasm })
}

fn compile(wasm: &[u8], compiler: Compiler, per_mib: Duration) -> Result<Vec<u8>, String> {
    let instrumented = instrument(wasm, compiler).map_err(|e| e.to_string())?;
    let mut cranelift = Cranelift::new();
    cranelift.opt_level(match compiler {
        Compiler::Fast => CraneliftOptLevel::None,
        Compiler::Optimising => CraneliftOptLevel::Speed,
    });
    cranelift.num_threads(match compiler {
        // How many compile at once is the parent's choice; but somebody waits for this one.
        Compiler::Fast => const { NonZero::new(2).unwrap() },
        Compiler::Optimising => NonZero::<usize>::MIN,
    });
    if compiler == Compiler::Fast && !per_mib.is_zero() {
        cranelift.push_middleware(Arc::new(Pace::of(wasm, per_mib).map_err(|e| e.to_string())?));
    }
    let config: Box<dyn CompilerConfig> = Box::new(cranelift);
    let mut engine: wasmer::Engine = EngineBuilder::new(config).set_features(Some(features())).engine().into();
    engine.set_tunables(GuestTunables::new(Limits::STACK_BYTES));
    let module = wasmer::Module::new(&engine, instrumented).map_err(|e| e.to_string())?;
    module.serialize().map(|bytes| bytes.to_vec()).map_err(|e| e.to_string())
}

/// The same allow-list as inspection's; Wasmer has no switches for the rest of it.
fn features() -> Features {
    let mut features = Features::none();
    features.bulk_memory = true;
    features.multi_value = true;
    features.reference_types = true;
    features.simd = true;
    features.extended_const = true;
    features
}
