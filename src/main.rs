//! Runs the command line; or, as a child of the gateway, the compiler.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    wasmgate::cli::run()
}
