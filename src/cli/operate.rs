//! Verbs that look at or steer a running gateway: `audit`, `health`, `tier`, `usage`, `nodes`, `logs`.

use std::process::ExitCode;

use anyhow::anyhow;
use clap::Subcommand;
use http::Method;
use serde_json::{Map, Value, json};

use super::client::{Body, Connect};
use super::modules::print;
use super::{Failure, Outcome, output};
use crate::domain::{Name, OwnerId, Quota};

#[derive(clap::Args)]
pub(super) struct ConnectArgs {
    #[command(flatten)]
    connect: Connect,
}

#[derive(clap::Args)]
pub(super) struct AuditArgs {
    #[command(flatten)]
    connect: Connect,
    #[arg(long, default_value_t = 100)]
    limit: u64,
}

pub(super) fn audit(args: &AuditArgs, as_json: bool) -> Outcome {
    let list = args.connect.client()?.get("/api/audit", &[("limit", Some(args.limit.to_string()))])?;
    print(&list, as_json, |list| {
        let columns =
            [("AT", "/at"), ("ACTOR", "/actor"), ("ACTION", "/action"), ("SUBJECT", "/subject"), ("DETAIL", "/detail")];
        output::objects(&list["entries"], &columns)
    })
}

/// Exit code 1 when the gateway is not ready; one that is degraded is, and the text says so.
pub(super) fn health(args: &ConnectArgs, as_json: bool) -> Outcome {
    let (status, health) = args.connect.client()?.send(Method::GET, "/health", &[], Body::None)?;
    if health.get("store").is_none() {
        return Err(anyhow::anyhow!("the gateway answered {status}: {}", output::cell(&health, "/detail")).into());
    }
    print(&health, as_json, |health| {
        let at = |at: &str| output::cell(health, at);
        output::line(&format!("{} (wasmgate {}, since {})", at("/status"), at("/version"), at("/started_at")))?;
        for lack in health["degraded"].as_array().map(Vec::as_slice).unwrap_or_default() {
            output::line(&format!("  {}: {}", output::cell(lack, "/reason"), output::cell(lack, "/detail")))?;
        }
        output::line(&format!("store {}", at("/store")))?;
        output::line(&format!("store link {}", at("/store_link")))?;
        for upstream in health["upstreams"].as_array().map(Vec::as_slice).unwrap_or_default() {
            for endpoint in upstream["endpoints"].as_array().map(Vec::as_slice).unwrap_or_default() {
                let state = match (&endpoint["healthy"], &endpoint["ejected"]) {
                    (Value::Bool(false), _) => "unhealthy",
                    (_, Value::Bool(true)) => "ejected",
                    _ => "healthy",
                };
                let upstream = output::cell(upstream, "/upstream");
                output::line(&format!("upstream {upstream} {} {state}", output::cell(endpoint, "/address")))?;
                if !endpoint["last_error"].is_null() {
                    let (at, error) = ("/last_error/at", "/last_error/error");
                    let (at, error) = (output::cell(endpoint, at), output::cell(endpoint, error));
                    output::line(&format!("  last error, {at}: {error}"))?;
                }
            }
        }
        Ok(())
    })?;
    Ok(if status.is_success() { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

pub(super) fn nodes(args: &ConnectArgs, as_json: bool) -> Outcome {
    print(&args.connect.client()?.get("/api/nodes", &[])?, as_json, |list| {
        let columns = [
            ("NAME", "/name"),
            ("ID", "/id"),
            ("THIS", "/this"),
            ("STATE", "/state"),
            ("VERSION", "/version"),
            ("STARTED", "/started_at"),
            ("GENERATION", "/generation"),
            ("CONFIG", "/config_digest"),
            ("ROUTES", "/routes_version"),
            ("SILENT_MS", "/silent_ms"),
        ];
        let mut nodes = list["nodes"].clone();
        for digest in nodes.as_array_mut().into_iter().flatten().filter_map(|node| node.get_mut("config_digest")) {
            // To see which are the same; `--json` has all of it.
            *digest = digest.as_str().map(|text| text.chars().take("sha256:".len() + 12).collect::<String>()).into();
        }
        output::objects(&nodes, &columns)?;
        for node in list["nodes"].as_array().into_iter().flatten().filter(|node| !node["routes_refused"].is_null()) {
            let at = |at: &str| output::cell(node, at);
            let (name, version, reason) = (at("/name"), at("/routes_refused/version"), at("/routes_refused/reason"));
            // Not on standard output, whose lines are the rows.
            eprintln!("{name} can't use version {version} of the routes: {reason}");
        }
        Ok(())
    })
}

#[derive(clap::Args)]
pub(super) struct UsageArgs {
    #[command(flatten)]
    connect: Connect,
    /// First day (UTC), as `2026-01-31`.
    #[arg(long)]
    from: Option<String>,
    /// Last day; default: today.
    #[arg(long)]
    to: Option<String>,
    #[arg(long, default_value = "day", value_parser = ["day", "key"])]
    by: String,
    /// Default: every owner.
    #[arg(long)]
    owner: Option<OwnerId>,
}

pub(super) fn usage(args: &UsageArgs, as_json: bool) -> Outcome {
    let owner = args.owner.as_ref().map(ToString::to_string);
    let query = [("from", args.from.clone()), ("to", args.to.clone()), ("by", Some(args.by.clone())), ("owner", owner)];
    let by_key = args.by == "key";
    print(&args.connect.client()?.get("/api/usage", &query)?, as_json, |report| {
        let mut columns = if by_key { vec![("OWNER", "/owner"), ("KEY", "/key")] } else { vec![("DAY", "/day")] };
        columns.extend([
            ("REQUESTS", "/requests"),
            ("RUNS", "/executions"),
            ("FUEL", "/fuel"),
            ("CPU_US", "/cpu_us"),
            ("IN", "/bytes_in"),
            ("OUT", "/bytes_out"),
            ("ERRORS", "/errors"),
        ]);
        output::objects(&report["rows"], &columns)
    })
}

#[derive(clap::Args)]
pub(super) struct TierArgs {
    #[command(flatten)]
    connect: Connect,
    #[command(subcommand)]
    verb: TierVerb,
}

#[derive(Subcommand)]
enum TierVerb {
    /// List the tiers in force.
    List,
    /// Show all that a tier allows.
    Show { name: Name },
    /// Change a tier for all its keys at once; what isn't named stays.
    Set(Box<TierChange>),
    /// Go back to a tier as the configuration file has it.
    Reset { name: Name },
}

#[derive(clap::Args)]
struct TierChange {
    name: Name,
    /// `NAME=REQUESTS/WINDOW[:BURST]`, as `minute=100/1m:50` or `day=5000/1d`; replaces all quotas; may be repeated.
    #[arg(long = "quota", value_parser = quota)]
    quotas: Vec<Quota>,
    /// No rate limit at all.
    #[arg(long, conflicts_with = "quotas")]
    no_quotas: bool,
    /// Fuel units a day; 0: no limit.
    #[arg(long)]
    fuel_per_day: Option<u64>,
    #[arg(long)]
    concurrent: Option<u32>,
    #[arg(long)]
    module_bytes: Option<u64>,
    /// Of all versions of an owner's modules together, archives of their files included.
    #[arg(long)]
    module_storage_bytes: Option<u64>,
    #[arg(long)]
    modules: Option<u32>,
    #[arg(long)]
    keys: Option<u32>,
    /// Fuel units of one run.
    #[arg(long)]
    fuel: Option<u64>,
    #[arg(long)]
    memory_bytes: Option<u64>,
    #[arg(long)]
    wall_ms: Option<u64>,
    #[arg(long)]
    input_bytes: Option<u64>,
    #[arg(long)]
    output_bytes: Option<u64>,
    #[arg(long)]
    log_bytes: Option<u64>,
    #[arg(long)]
    table_elements: Option<u32>,
    #[arg(long)]
    stack_bytes: Option<u64>,
    /// What a run may keep in its `/tmp`.
    #[arg(long)]
    file_bytes: Option<u64>,
    /// Runs of one module that one owner may have under way at once.
    #[arg(long)]
    instances: Option<u32>,
    /// While the fleet's limits can't be reached: each gateway gives its part of them, or the whole, or answers 503.
    #[arg(long, value_parser = ["share", "open", "closed"])]
    fail: Option<String>,
}

fn quota(text: &str) -> Result<Quota, String> {
    let bad = || format!("`{text}` is not a quota: use `NAME=REQUESTS/WINDOW[:BURST]`, as `minute=100/1m:50`");
    let (name, rest) = text.split_once('=').ok_or_else(bad)?;
    let (requests, rest) = rest.split_once('/').ok_or_else(bad)?;
    let (window, burst) = match rest.split_once(':') {
        Some((window, burst)) => (window, Some(burst.parse().map_err(|_| bad())?)),
        None => (rest, None),
    };
    Ok(Quota {
        name: name.parse().map_err(|e: crate::domain::InvalidName| e.to_string())?,
        requests: requests.parse().map_err(|_| bad())?,
        window: window.parse()?,
        burst,
    })
}

impl TierChange {
    fn body(&self) -> Value {
        let mut body = Map::new();
        let mut limits = Map::new();
        let put = |to: &mut Map<String, Value>, name: &str, value: Option<u64>| {
            if let Some(value) = value {
                to.insert(name.into(), json!(value));
            }
        };
        put(&mut body, "fuel_per_day", self.fuel_per_day);
        put(&mut body, "concurrent", self.concurrent.map(u64::from));
        put(&mut body, "module_bytes", self.module_bytes);
        put(&mut body, "module_storage_bytes", self.module_storage_bytes);
        put(&mut body, "modules", self.modules.map(u64::from));
        put(&mut body, "keys", self.keys.map(u64::from));
        put(&mut limits, "fuel", self.fuel);
        put(&mut limits, "memory_bytes", self.memory_bytes);
        put(&mut limits, "wall_ms", self.wall_ms);
        put(&mut limits, "input_bytes", self.input_bytes);
        put(&mut limits, "output_bytes", self.output_bytes);
        put(&mut limits, "log_bytes", self.log_bytes);
        put(&mut limits, "table_elements", self.table_elements.map(u64::from));
        put(&mut limits, "stack_bytes", self.stack_bytes);
        put(&mut limits, "file_bytes", self.file_bytes);
        put(&mut limits, "instances", self.instances.map(u64::from));
        if !limits.is_empty() {
            body.insert("limits".into(), limits.into());
        }
        if let Some(fail) = &self.fail {
            body.insert("fail".into(), json!(fail));
        }
        if self.no_quotas || !self.quotas.is_empty() {
            body.insert("quotas".into(), json!(self.quotas));
        }
        body.into()
    }
}

pub(super) fn tier(args: TierArgs, as_json: bool) -> Outcome {
    match args.verb {
        TierVerb::List => print(&args.connect.client()?.get("/api/tiers", &[])?, as_json, |list| {
            let tiers = list["tiers"].as_array().map(Vec::as_slice).unwrap_or_default();
            show_tiers(tiers)
        }),
        TierVerb::Show { name } => {
            let list = args.connect.client()?.get("/api/tiers", &[])?;
            let tiers = list["tiers"].as_array().map(Vec::as_slice).unwrap_or_default();
            let Some(tier) = tiers.iter().find(|tier| tier["name"] == name.as_str()) else {
                let names: Vec<_> = tiers.iter().map(|tier| format!("`{}`", output::cell(tier, "/name"))).collect();
                return Err(anyhow!("there is no tier of this name; use {}", names.join(", ")).into());
            };
            print(tier, as_json, show_tier)
        }
        TierVerb::Set(change) => {
            let body = change.body();
            if body.as_object().is_none_or(Map::is_empty) {
                return Err(Failure::usage("name at least one thing to change; see `wasmgate tier set --help`"));
            }
            let path = format!("/api/tiers/{}", change.name);
            let tier = args.connect.client()?.call(Method::PUT, &path, &[], Body::Json(body))?;
            print(&tier, as_json, show_tier)
        }
        TierVerb::Reset { name } => {
            let path = format!("/api/tiers/{name}");
            let tier = args.connect.client()?.call(Method::DELETE, &path, &[], Body::None)?;
            print(&tier, as_json, show_tier)
        }
    }
}

fn show_tiers(tiers: &[Value]) -> std::io::Result<()> {
    let head = ["NAME", "QUOTAS", "CONCURRENT", "MODULE_BYTES", "MODULES", "KEYS", "MEMORY", "WALL_MS", "FROM"];
    let row = |tier: &Value| {
        let quotas = tier["quotas"].as_array().map(Vec::as_slice).unwrap_or_default();
        let quotas: Vec<String> =
            quotas.iter().map(|q| format!("{}/{}", output::cell(q, "/requests"), output::cell(q, "/window"))).collect();
        let mut cells =
            vec![output::cell(tier, "/name"), if quotas.is_empty() { "none".to_owned() } else { quotas.join(",") }];
        let places =
            ["/concurrent", "/module_bytes", "/modules", "/keys", "/limits/memory_bytes", "/limits/wall_ms", "/source"];
        cells.extend(places.iter().map(|at| output::cell(tier, at)));
        cells
    };
    output::table(&head, &tiers.iter().map(row).collect::<Vec<_>>())
}

/// Every member by itself, those of a run's limits under `limits.`.
fn show_tier(tier: &Value) -> std::io::Result<()> {
    let mut rows = Vec::new();
    for (name, value) in tier.as_object().into_iter().flatten() {
        match value {
            Value::Object(limits) => {
                rows.extend(
                    limits.iter().map(|(limit, value)| vec![format!("{name}.{limit}"), output::cell(value, "")]),
                );
            }
            // As `set --quota` takes them, one a row.
            Value::Array(quotas) if quotas.is_empty() => rows.push(vec![name.clone(), "none".into()]),
            Value::Array(quotas) => rows.extend(quotas.iter().map(|quota| {
                let [quota_name, requests, window] =
                    ["/name", "/requests", "/window"].map(|at| output::cell(quota, at));
                let burst = quota["burst"].as_u64().map_or_else(String::new, |burst| format!(":{burst}"));
                vec![name.clone(), format!("{quota_name}={requests}/{window}{burst}")]
            })),
            value => rows.push(vec![name.clone(), output::cell(value, "")]),
        }
    }
    output::table(&["SETTING", "VALUE"], &rows)
}

#[derive(clap::Args)]
pub(super) struct LogsArgs {
    #[command(flatten)]
    connect: Connect,
    #[command(subcommand)]
    verb: LogsVerb,
}

#[derive(Subcommand)]
enum LogsVerb {
    /// Show the log filter in force, or set it until the gateway ends.
    Level {
        /// Such as `info` or `wasmgate=debug,info`.
        filter: Option<String>,
    },
}

pub(super) fn logs(args: LogsArgs, as_json: bool) -> Outcome {
    let client = args.connect.client()?;
    let LogsVerb::Level { filter } = args.verb;
    let level = match filter {
        None => client.get("/api/log-level", &[])?,
        Some(filter) => client.call(Method::PUT, "/api/log-level", &[], Body::Json(json!({"level": filter})))?,
    };
    print(&level, as_json, |level| output::line(&output::cell(level, "/level")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotas_are_read() {
        let quota_of = |text: &str| quota(text).map(|q| (q.requests, q.window.to_string(), q.burst));
        assert_eq!(quota_of("minute=100/60s:50"), Ok((100, "60s".into(), Some(50))));
        assert_eq!(quota_of("day=5000/1d"), Ok((5000, "1d".into(), None)));
        for bad in ["", "minute", "minute=100", "minute=x/1m", "minute=1/1w", "Minute=1/1m", "m=1/1m:x"] {
            assert!(quota(bad).is_err(), "{bad}");
        }
    }
}
