//! `wasmgate module`: modules of a running gateway.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::anyhow;
use clap::Subcommand;
use http::Method;
use serde_json::{Value, json};

use super::client::{Body, Client, Connect, encoded};
use super::{Failure, Outcome, bundle, output};
use crate::domain::{Abi, LimitsChange, ModuleRef, Name, OwnerId, Selector};

#[derive(clap::Args)]
pub(super) struct ModuleArgs {
    #[command(flatten)]
    connect: Connect,
    /// Whose modules; default: the operator's own, `wasmgate`.
    #[arg(long, global = true)]
    owner: Option<OwnerId>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Store a module or a further version of it.
    Push {
        /// WebAssembly, binary or text.
        file: PathBuf,
        /// `[owner/]name`; default: the file's name without its ending.
        #[arg(long)]
        name: Option<ModuleRef>,
        #[arg(long)]
        description: Option<String>,
        /// Let anyone with the scope `execute` run it.
        #[arg(long)]
        public: bool,
        /// `command`, `cgi`, `core`, `http-wasm` or `proxy-wasm`; default: what its shape says.
        #[arg(long)]
        abi: Option<Abi>,
        /// Make this version the active one at once.
        #[arg(long)]
        activate: bool,
        /// Files that the module finds at `/`: a zip or tar archive, or a folder to make one of.
        #[arg(long, value_name = "FILE|FOLDER")]
        assets: Option<PathBuf>,
        /// The module's own limits, as `memory_bytes=1048576`; replaces all that it had; may be repeated.
        #[arg(long = "limit", value_name = "NAME=NUMBER", value_parser = limit)]
        limits: Vec<(String, u64)>,
    },
    /// List modules (of all owners without `--owner`).
    List {
        #[arg(long, default_value_t = 1)]
        page: u64,
        #[arg(long, default_value_t = 100)]
        limit: u64,
    },
    /// Show a module and its versions.
    Show { module: ModuleRef },
    /// Make a version the one that the name means.
    Activate {
        /// `[owner/]name@version`.
        module: ModuleRef,
    },
    /// Activate the version that was active before; a second time goes back again.
    Rollback { module: ModuleRef },
    /// Set the limits that a module has of its own, under those of its callers' tiers and of routes.
    Limit {
        module: ModuleRef,
        /// `memory_bytes=1048576`, `instances=2` ...; all that are not named are taken away.
        #[arg(value_name = "NAME=NUMBER", value_parser = limit, required_unless_present = "none")]
        limits: Vec<(String, u64)>,
        /// No limits of its own.
        #[arg(long, conflicts_with = "limits")]
        none: bool,
    },
    /// Delete a module, or one version of it.
    Rm { module: ModuleRef },
}

pub(super) fn run(args: ModuleArgs, as_json: bool) -> Outcome {
    let client = args.connect.client()?;
    let owner = args.owner.map(String::from);
    match args.verb {
        Verb::Push { file, name, description, public, abi, activate, assets, limits } => {
            let module = match name {
                Some(module) => unversioned(module)?,
                None => name_of(&file)?,
            };
            let (path, [owner]) = place(&module, owner)?;
            let wasm = read_module(&file)?;
            let extra = [
                ("description", description),
                ("public", public.then(|| "true".into())),
                ("abi", abi.map(|a| a.to_string())),
                ("activate", activate.then(|| "true".into())),
                ("limits", (!limits.is_empty()).then(|| own_limits(limits).to_string())),
            ];
            let stored = match assets {
                None => {
                    let query: Vec<_> = std::iter::once(owner).chain(extra).collect();
                    client.call(Method::PUT, &path, &query, Body::Wasm(wasm))?
                }
                Some(assets) => {
                    let mut form = vec![("name", module.name.to_string().into_bytes()), ("wasm", wasm)];
                    form.push(("assets", bundle::read(&assets)?));
                    form.extend(extra.into_iter().filter_map(|(name, value)| Some((name, value?.into_bytes()))));
                    client.call(Method::POST, "/api/wasm/upload", &[owner], Body::Form(form))?
                }
            };
            print(&stored, as_json, |m| {
                let at = |at: &str| output::cell(m, at);
                let module = format!("{}/{}@{}", at("/owner"), at("/name"), at("/version"));
                let state = match m["active"] == json!(true) {
                    true => "active".to_owned(),
                    false => format!("not active; to switch: wasmgate module activate {module}"),
                };
                output::line(&format!("{module} {} {} {state}", at("/abi"), at("/digest")))
            })
        }
        Verb::List { page, limit } => {
            let query = [("owner", owner), ("page", Some(page.to_string())), ("limit", Some(limit.to_string()))];
            let list = client.get("/api/wasm/modules", &query)?;
            print(&list, as_json, |list| {
                let columns = [
                    ("OWNER", "/owner"),
                    ("NAME", "/name"),
                    ("ACTIVE", "/version"),
                    ("ABI", "/abi"),
                    ("BYTES", "/size_bytes"),
                    ("RUNS", "/execution_count"),
                    ("UPLOADED", "/upload_time"),
                ];
                output::objects(&list["modules"], &columns)?;
                output::more(list)
            })
        }
        Verb::Show { module } => {
            let (path, query) = place(&module, owner)?;
            print(&client.get(&path, &query)?, as_json, show)
        }
        Verb::Activate { module } => match module.selector {
            Selector::Version(version) => print(&activate(&client, &module, owner, version)?, as_json, show),
            Selector::Active => Err(Failure::usage(format!("name the version, as in `{module}@2`"))),
        },
        Verb::Rollback { module } => {
            let module = unversioned(module)?;
            let (path, query) = place(&module, owner.clone())?;
            let shown = client.get(&path, &query)?;
            let before = shown["previous_version"].as_u64().ok_or_else(|| {
                anyhow!(
                    "which version of `{module}` was active before is not known, or it was deleted: name one, \
                     as in `wasmgate module activate {module}@1`"
                )
            })?;
            print(&activate(&client, &module, owner, u32::try_from(before)?)?, as_json, show)
        }
        Verb::Limit { module, limits, none: _ } => {
            let (path, query) = place(&unversioned(module)?, owner)?;
            let body = Body::Json(json!({"limits": own_limits(limits)}));
            print(&client.call(Method::PATCH, &path, &query, body)?, as_json, show)
        }
        Verb::Rm { module } => {
            let (path, query) = place(&module, owner)?;
            client.call(Method::DELETE, &path, &query, Body::None)?;
            print(&json!({"deleted": module.to_string()}), as_json, |_| output::line(&format!("deleted {module}")))
        }
    }
}

/// One of a module's own limits.
fn limit(text: &str) -> Result<(String, u64), String> {
    let bad = || format!("`{text}` is not a limit: use `NAME=NUMBER`, as `memory_bytes=1048576`");
    let (name, number) = text.split_once('=').ok_or_else(bad)?;
    let number = number.parse::<u64>().map_err(|_| bad())?;
    match serde_json::from_value::<LimitsChange>(json!({name: number})) {
        Ok(_) => Ok((name.to_owned(), number)),
        Err(e) => Err(e.to_string()),
    }
}

fn own_limits(limits: Vec<(String, u64)>) -> Value {
    limits.into_iter().map(|(name, number)| (name, json!(number))).collect::<serde_json::Map<_, _>>().into()
}

type Place = (String, [(&'static str, Option<String>); 1]);

/// Where a reference is in the API. Its owner is the one that it names, or `--owner`.
fn place(module: &ModuleRef, owner: Option<String>) -> Result<Place, Failure> {
    let named = module.owner.as_ref().map(ToString::to_string);
    if let (Some(named), Some(owner)) = (&named, &owner)
        && named != owner
    {
        return Err(Failure::usage(format!(
            "`{module}` is of `{named}`, `--owner` says `{owner}`: leave `--owner` out"
        )));
    }
    let bare = ModuleRef { owner: None, ..module.clone() };
    Ok((format!("/api/wasm/modules/{}", encoded(&bare.to_string())), [("owner", named.or(owner))]))
}

fn activate(client: &Client, module: &ModuleRef, owner: Option<String>, version: u32) -> Result<Value, Failure> {
    let (path, query) = place(&ModuleRef { selector: Selector::Active, ..module.clone() }, owner)?;
    Ok(client.call(Method::POST, &format!("{path}/activate"), &query, Body::Json(json!({"version": version})))?)
}

fn unversioned(module: ModuleRef) -> Result<ModuleRef, Failure> {
    match module.selector {
        Selector::Active => Ok(module),
        Selector::Version(_) => Err(Failure::usage(format!("`{module}`: leave out the version"))),
    }
}

fn show(module: &Value) -> std::io::Result<()> {
    for (name, at) in [
        ("module", "/name"),
        ("owner", "/owner"),
        ("id", "/id"),
        ("description", "/description"),
        ("public", "/public"),
        ("abi", "/abi"),
        ("imports from", "/capabilities"),
        ("own limits", "/limits"),
        ("active before", "/previous_version"),
        ("runs", "/execution_count"),
        ("last run", "/last_executed"),
    ] {
        output::line(&format!("{name:<13} {}", output::cell(module, at)))?;
    }
    let columns = [
        ("VERSION", "/version"),
        ("ACTIVE", "/active"),
        ("ABI", "/abi"),
        ("BYTES", "/size_bytes"),
        ("FILES", "/assets/files"),
        ("UPLOADED", "/upload_time"),
        ("DIGEST", "/digest"),
    ];
    output::objects(&module["versions"], &columns)
}

pub(super) fn print(value: &Value, as_json: bool, human: impl Fn(&Value) -> std::io::Result<()>) -> Outcome {
    if as_json {
        output::json(value)?
    } else {
        human(value)?
    }
    Ok(ExitCode::SUCCESS)
}

fn name_of(file: &Path) -> Result<ModuleRef, Failure> {
    let stem = file.file_stem().and_then(|s| s.to_str()).unwrap_or_default();
    match stem.parse::<Name>() {
        Ok(name) => Ok(ModuleRef { owner: None, name, selector: Selector::Active }),
        Err(e) => Err(Failure::usage(format!("{e}; or give `--name`"))),
    }
}

/// A module's bytes; text is turned into binary.
pub(super) fn read_module(file: &Path) -> Result<Vec<u8>, Failure> {
    let bytes = std::fs::read(file).map_err(|e| Failure::usage(format!("`{}`: {e}", file.display())))?;
    if !bytes.starts_with(b"\0asm") && std::str::from_utf8(&bytes).is_err() {
        return Err(anyhow!("`{}` is not WebAssembly, neither binary nor text", file.display()).into());
    }
    wat::parse_bytes(&bytes).map(|wasm| wasm.into_owned()).map_err(|mut e| {
        e.set_path(file);
        anyhow!("{e}").into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_has_one_owner() {
        let at = |text: &str, owner: &str| place(&text.parse().unwrap(), Some(owner.into())).ok();
        let of = |path: &str, owner: &str| Some((format!("/api/wasm/modules/{path}"), [("owner", Some(owner.into()))]));
        assert_eq!(at("m@3", "o"), of("m%403", "o"));
        assert_eq!(at("p/m", "p"), of("m", "p"));
        assert_eq!(at("p/m", "o"), None);
    }
}
