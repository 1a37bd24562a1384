//! `routes`: those in force, and those that are pushed for all gateways that share a store.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};
use clap::Subcommand;
use http::Method;
use serde_json::{Value, json};

use super::client::{Body, Client, Connect};
use super::modules::print;
use super::{Failure, Outcome, output};
use crate::config::ConfigError;

/// How long `push --wait` waits, and how often it looks.
const WAIT: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(250);

#[derive(clap::Args)]
pub(super) struct RoutesArgs {
    #[command(flatten)]
    connect: Connect,
    #[command(subcommand)]
    verb: Option<RoutesVerb>,
}

#[derive(Subcommand)]
enum RoutesVerb {
    /// List the routes in force; so does `routes` alone.
    List,
    /// Check a file of tiers, upstreams and routes on the gateway (`-`: standard input); prints every error, with its line.
    Check { file: PathBuf },
    /// Put such a file (`-`: standard input) in use on all gateways that share the store.
    Push {
        file: PathBuf,
        #[command(flatten)]
        how: How,
    },
    /// List the versions that were pushed, newest first.
    History,
    /// Print a version that was pushed; default: the newest.
    Show { version: Option<u64> },
    /// Push an older version again; default: the one before the newest.
    Rollback {
        version: Option<u64>,
        #[command(flatten)]
        how: How,
    },
}

#[derive(clap::Args)]
struct How {
    /// Only if this version is the newest; 0: only if there is none.
    #[arg(long, value_name = "VERSION")]
    expect: Option<u64>,
    /// Wait until all gateways have taken it up, half a minute at most.
    #[arg(long)]
    wait: bool,
}

/// Exit code 2 for a file with errors; 1 when a gateway has not taken up what was pushed.
pub(super) fn run(args: RoutesArgs, as_json: bool) -> Outcome {
    let client = args.connect.client()?;
    match args.verb.unwrap_or(RoutesVerb::List) {
        RoutesVerb::List => list(&client, as_json),
        RoutesVerb::Check { file } => {
            let (_, report) = check(&client, &file)?;
            if as_json {
                output::json(&report)?;
            } else if report["ok"] == true {
                output::line("ok")?;
            }
            Ok(if report["ok"] == true { ExitCode::SUCCESS } else { ExitCode::from(2) })
        }
        RoutesVerb::Push { file, how } => {
            // For its errors line by line; the push itself checks it again.
            let (text, report) = check(&client, &file)?;
            if report["ok"] != true {
                if as_json {
                    output::json(&report)?;
                }
                return Ok(ExitCode::from(2));
            }
            let query = [("expect", how.expect.map(|n| n.to_string()))];
            let pushed = client.call(Method::PUT, "/api/routes", &query, Body::Toml(text))?;
            told(&client, &pushed, &how, as_json)
        }
        RoutesVerb::History => print(&client.get("/api/routes/versions", &[])?, as_json, |list| {
            let columns = [
                ("VERSION", "/version"),
                ("PUSHED", "/pushed_at"),
                ("BY", "/pushed_by"),
                ("BYTES", "/size_bytes"),
                ("ROLLBACK_TO", "/rollback_to"),
                ("DIGEST", "/digest"),
            ];
            output::objects(&list["versions"], &columns)
        }),
        RoutesVerb::Show { version } => {
            let version = match version {
                Some(version) => version,
                None => {
                    let list = client.get("/api/routes/versions", &[])?;
                    list["versions"][0]["version"].as_u64().ok_or_else(|| anyhow!("no routes were pushed yet"))?
                }
            };
            let shown = client.get(&format!("/api/routes/versions/{version}"), &[])?;
            // As it was pushed, to be edited and pushed again.
            print(&shown, as_json, |shown| output::raw(shown["text"].as_str().unwrap_or_default().as_bytes()))
        }
        RoutesVerb::Rollback { version, how } => {
            let asked = [("version", version), ("expect", how.expect)];
            let body: serde_json::Map<_, _> =
                asked.into_iter().filter_map(|(name, n)| Some((name.to_owned(), json!(n?)))).collect();
            let pushed = client.call(Method::POST, "/api/routes/rollback", &[], Body::Json(body.into()))?;
            told(&client, &pushed, &how, as_json)
        }
    }
}

/// The file's text, and what the gateway says of it; its errors and warnings are printed.
fn check(client: &Client, file: &Path) -> Result<(Vec<u8>, Value), Failure> {
    let read = if file == Path::new("-") {
        let mut text = Vec::new();
        std::io::stdin().lock().read_to_end(&mut text).map(|_| text)
    } else {
        std::fs::read(file)
    };
    let text = read.with_context(|| format!("`{}`", file.display())).map_err(|error| Failure { code: 2, error })?;
    let report = client.call(Method::POST, "/api/routes/check", &[], Body::Toml(text.clone()))?;
    for finding in ["errors", "warnings"].iter().flat_map(|kind| report[*kind].as_array().into_iter().flatten()) {
        let text = |name: &str| output::printable(finding[name].as_str().unwrap_or_default());
        let line = finding["line"].as_u64().and_then(|line| usize::try_from(line).ok()).unwrap_or(0);
        let finding = ConfigError { key: text("key"), line, message: text("message") };
        eprintln!("{}", finding.in_file(&file.display().to_string()));
    }
    Ok((text, report))
}

fn told(client: &Client, pushed: &Value, how: &How, as_json: bool) -> Outcome {
    print(pushed, as_json, |pushed| {
        output::line(&format!("version {} {}", output::cell(pushed, "/version"), output::cell(pushed, "/digest")))
    })?;
    if !how.wait {
        return Ok(ExitCode::SUCCESS);
    }
    let version = pushed["version"].as_u64().unwrap_or(0);
    let end = Instant::now() + WAIT;
    // As each was heard of last: one that falls silent has not taken it up.
    let mut known: BTreeMap<String, Value> = BTreeMap::new();
    loop {
        let list = client.get("/api/nodes", &[])?;
        let nodes = list["nodes"].as_array().map(Vec::as_slice).unwrap_or_default();
        known.extend(nodes.iter().map(|node| (output::cell(node, "/id"), node.clone())));
        // Who has its routes elsewhere, or stops, takes up nothing.
        let follows = |node: &&Value| node["routes_from"] == "store" && node["state"] != "draining";
        let lacks = |node: &&Value| node["routes_version"].as_u64().is_none_or(|n| n < version);
        let missing: Vec<&Value> = known.values().filter(follows).filter(lacks).collect();
        let is_told = |node: &&Value| node["routes_refused"]["version"].as_u64().is_some_and(|n| n >= version);
        let is_gone = |node: &&Value| nodes.iter().all(|live| live["id"] != node["id"]);
        if missing.is_empty() {
            return Ok(ExitCode::SUCCESS);
        }
        if missing.iter().all(|node| is_told(node) || is_gone(node)) || Instant::now() > end {
            for node in missing {
                let why = if is_told(&node) {
                    output::cell(node, "/routes_refused/reason")
                } else if is_gone(&node) {
                    "it is not heard of any more".into()
                } else {
                    format!("it has not said so within {} s", WAIT.as_secs())
                };
                eprintln!("{} has not taken it up: {why}", output::cell(node, "/name"));
            }
            return Ok(ExitCode::from(1));
        }
        std::thread::sleep(LOOK);
    }
}

fn list(client: &Client, as_json: bool) -> Outcome {
    print(&client.get("/api/routes", &[])?, as_json, |list| {
        let columns = [
            ("NAME", "/name"),
            ("HOSTS", "/hosts"),
            ("PATH", "/path"),
            ("METHODS", "/methods"),
            ("TARGET", "/target"),
            ("AUTH", "/auth"),
            ("HANDLERS", "/handlers"),
        ];
        output::objects(&list["routes"], &columns)?;
        let routes = list["routes"].as_array().map(Vec::as_slice).unwrap_or_default();
        for route in routes.iter().filter(|route| route["not_stored"].as_array().is_some_and(|m| !m.is_empty())) {
            let (name, modules) = (output::cell(route, "/name"), output::cell(route, "/not_stored"));
            // Not on standard output, whose lines are the rows.
            if route["not_stored_fails"] == json!(false) {
                eprintln!("requests of the route {name} go on without what is not stored: {modules}");
            } else {
                eprintln!("the route {name} fails: not stored: {modules}");
            }
        }
        Ok(())
    })
}
