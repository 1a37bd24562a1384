//! The command line. Verbs that change a running gateway talk to its admin API; `check` and `exec` work alone.
//!
//! Invariant: exit code 0 is success, 1 a failure, 2 a mistake in the arguments or the configuration; a secret is never
//! an argument.

mod bundle;
mod check;
mod client;
mod exec;
mod keys;
mod modules;
mod operate;
mod output;
mod quickstart;
mod routes;
pub mod serve;
mod store;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};

#[derive(Parser)]
#[command(name = "wasmgate", version, about = "An edge gateway for API keys, tiered limits and WebAssembly handlers")]
#[command(after_help = "Without a command the gateway starts with a demo of everything under ./data.")]
struct Cli {
    /// Print JSON instead of tables.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Run the gateway (without a configuration file: the quickstart).
    Serve(serve::ServeArgs),
    /// Check a configuration file; prints every error, with its line.
    Check { file: PathBuf },
    /// Run a module here, with the gateway's engine, without a gateway.
    Exec(exec::ExecArgs),
    /// Store, show and switch modules.
    Module(modules::ModuleArgs),
    /// Make and revoke API keys.
    Key(keys::KeyArgs),
    /// Make and revoke admin tokens.
    Token(keys::TokenArgs),
    /// Show who changed what, newest first.
    Audit(operate::AuditArgs),
    /// Show whether the gateway is ready.
    Health(operate::ConnectArgs),
    /// Show and change tiers.
    Tier(operate::TierArgs),
    /// Sum up usage by day or key.
    Usage(operate::UsageArgs),
    /// List the routes in force; push, list and roll back those of a fleet.
    Routes(routes::RoutesArgs),
    /// List the gateways of the fleet.
    Nodes(operate::ConnectArgs),
    /// Copy all records into another store.
    Store(store::StoreArgs),
    /// Show or set the log level.
    Logs(operate::LogsArgs),
    /// Print completions for a shell.
    Completions { shell: clap_complete::Shell },
}

/// Why a verb failed; the exit code says whose mistake it was.
pub(crate) struct Failure {
    code: u8,
    error: anyhow::Error,
}

impl Failure {
    /// A mistake in the arguments or the configuration.
    fn usage(message: impl Into<String>) -> Self {
        Self { code: 2, error: anyhow::anyhow!(message.into()) }
    }
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self { code: 1, error: error.into() }
    }
}

type Outcome = Result<ExitCode, Failure>;

/// Parses the arguments and runs the verb. Usage errors end the process with code 2, as clap has it.
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    let json = cli.json;
    let outcome = match cli.command {
        None => return serve::run(serve::ServeArgs::default()),
        Some(Command::Serve(args)) => return serve::run(args),
        Some(Command::Check { file }) => check::run(&file, json),
        Some(Command::Exec(args)) => exec::run(args, json),
        Some(Command::Module(args)) => modules::run(args, json),
        Some(Command::Key(args)) => keys::run(args, json),
        Some(Command::Token(args)) => keys::run_token(args, json),
        Some(Command::Audit(args)) => operate::audit(&args, json),
        Some(Command::Health(args)) => operate::health(&args, json),
        Some(Command::Tier(args)) => operate::tier(args, json),
        Some(Command::Usage(args)) => operate::usage(&args, json),
        Some(Command::Routes(args)) => routes::run(args, json),
        Some(Command::Nodes(args)) => operate::nodes(&args, json),
        Some(Command::Store(args)) => store::run(args, json),
        Some(Command::Logs(args)) => operate::logs(args, json),
        Some(Command::Completions { shell }) => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "wasmgate", &mut script);
            output::raw(&script).map(|()| ExitCode::SUCCESS).map_err(Failure::from)
        }
    };
    outcome.unwrap_or_else(|failure| {
        if output::reader_is_gone(&failure.error) {
            return ExitCode::SUCCESS;
        }
        eprintln!("wasmgate: {:#}", failure.error);
        ExitCode::from(failure.code)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn no_arguments_start_the_quickstart() {
        assert!(Cli::try_parse_from(["wasmgate"]).unwrap().command.is_none());
    }

    #[test]
    fn connection_settings_may_stand_anywhere_and_no_argument_takes_a_token() {
        let parsed = Cli::try_parse_from(["wasmgate", "module", "list", "--admin", "http://localhost:1", "--json"]);
        assert!(parsed.is_ok_and(|cli| cli.json));
        assert!(Cli::try_parse_from(["wasmgate", "module", "list", "--token", "x"]).is_err());
    }
}
