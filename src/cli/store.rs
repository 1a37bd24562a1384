//! `wasmgate store copy`: all records of one store into another one, without a gateway.

use std::cell::RefCell;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Subcommand;
use serde_json::json;

use super::{Failure, Outcome, output};
use crate::app::copy::{self, Copied, CopyError};
use crate::config::{self, Config};

/// Between two lines of progress on one kind.
const TOLD: Duration = Duration::from_secs(1);

const COPY_HELP: &str = "\
TO has to be empty, or what an interrupted copy of the same store has left: that goes on where it was. Gateways do not start on
it before all is there. At the end both are read whole and compared.
Exit code: 0 when both have the same records; 1 when they differ (the kinds are named) or the copy failed; 2 for a mistake in the
arguments or a configuration.";

#[derive(clap::Args)]
pub(super) struct StoreArgs {
    #[command(subcommand)]
    command: StoreCommand,
}

#[derive(Subcommand)]
enum StoreCommand {
    /// Copy the store of one configuration file into that of another.
    #[command(after_help = COPY_HELP)]
    Copy {
        /// Configuration file of a gateway that uses the store which is copied.
        from: PathBuf,
        /// Configuration file of a gateway that will use the copy.
        to: PathBuf,
        /// Copy while gateways use FROM (Redis): what they change meanwhile may be missing.
        #[arg(long)]
        live: bool,
    },
}

pub(super) fn run(args: StoreArgs, as_json: bool) -> Outcome {
    let StoreCommand::Copy { from, to, live } = args.command;
    let (from, to) = (load(&from)?, load(&to)?);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let told = RefCell::new((String::new(), Instant::now()));
    // Standard output has the result alone.
    let progress = |done: &str, kind: &str, count: u64| {
        let (mut told, now) = (told.borrow_mut(), format!("{done}: {kind}"));
        if told.0 != now || told.1.elapsed() >= TOLD {
            // Nobody may be reading, and the copy goes on.
            let _ = writeln!(std::io::stderr(), "{now} {count}");
            *told = (now, Instant::now());
        }
    };
    let copied = runtime.block_on(copy::copy(&from, &to, live, &progress)).map_err(|error| match error {
        CopyError::Config { .. } => Failure { code: 2, error: error.into() },
        error => error.into(),
    })?;
    report(&copied, live, as_json)
}

/// Their files are looked at where they are used: those of the other configuration may be on another machine.
fn load(file: &Path) -> Result<Config, Failure> {
    config::load_file(file, |_| Ok(())).map_err(|errors| {
        let errors = errors.errors.iter().map(|e| e.in_file(&file.display().to_string()));
        Failure::usage(errors.collect::<Vec<_>>().join("\n"))
    })
}

fn report(copied: &Copied, live: bool, as_json: bool) -> Outcome {
    let differing: Vec<_> = copied.differing().collect();
    if as_json {
        let kinds = copied.kinds.iter().map(|(kind, from, to)| {
            let tally = |tally: &crate::store::entry::Tally| json!({"count": tally.count, "digest": tally.digest});
            json!({"kind": kind, "equal": from == to, "from": tally(from), "to": tally(to)})
        });
        output::json(&json!({
            "equal": differing.is_empty(),
            "resumed": copied.resumed,
            "live": live,
            "kinds": kinds.collect::<Vec<_>>(),
        }))?;
    } else {
        let rows: Vec<_> = copied
            .kinds
            .iter()
            .map(|(kind, from, to)| {
                let same = if from == to { "yes" } else { "NO" };
                vec![kind.clone(), to.count.to_string(), same.to_owned(), to.digest.to_string()]
            })
            .collect();
        output::table(&["KIND", "COUNT", "SAME", "DIGEST"], &rows)?;
    }
    if differing.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    let kinds = differing.join("`, `");
    Err(anyhow::anyhow!(
        "FROM and TO differ in `{kinds}`: something has changed one of them; empty TO and copy again while nothing uses either"
    )
    .into())
}
