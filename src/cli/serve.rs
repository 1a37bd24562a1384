//! `wasmgate serve`: run the gateway.

use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Debug, Default, clap::Args)]
pub struct ServeArgs {
    /// Configuration file (TOML); without one, the quickstart.
    #[arg(short, long)]
    pub config: Option<PathBuf>,
    /// Write a JSON file with addresses and credentials' places once everything listens.
    #[arg(long)]
    pub ready_file: Option<PathBuf>,
}

/// Runs until a signal ends it.
pub fn run(args: ServeArgs) -> ExitCode {
    unimplemented!("{args:?}")
}
