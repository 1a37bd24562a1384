//! Runs the command line; or, as a child of the gateway, the compiler.

use std::process::ExitCode;

use wasmgate::engine::compile;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // Before anything else: the compiler's child has hard limits of memory and no use for the rest.
    if std::env::args_os().nth(1).is_some_and(|verb| verb == compile::VERB) {
        return ExitCode::from(u8::try_from(compile::child_main()).unwrap_or(1));
    }
    wasmgate::cli::run()
}
