//! `wasmgate key` and `wasmgate token`: credentials of a running gateway. A secret is printed once, when it is made.

use std::process::ExitCode;

use clap::Subcommand;
use http::Method;
use serde_json::{Value, json};

use super::client::{Body, Connect, encoded};
use super::modules::print;
use super::{Outcome, output};
use crate::domain::{Name, OwnerId, Scope, Timestamp};

#[derive(clap::Args)]
pub(super) struct KeyArgs {
    #[command(flatten)]
    connect: Connect,
    #[command(subcommand)]
    verb: KeyVerb,
}

#[derive(Subcommand)]
enum KeyVerb {
    /// Make a key; it is printed once.
    Create {
        #[arg(long)]
        owner: OwnerId,
        #[arg(long)]
        tier: Name,
        /// `proxy`, `execute`, `modules`, `usage`, `keys`, `admin`; default: all but the last.
        #[arg(long, value_delimiter = ',', value_parser = Scope::ALL.map(Scope::as_str), hide_possible_values = true)]
        scopes: Vec<String>,
        #[arg(long, default_value = "")]
        label: String,
        /// RFC 3339, as `2027-01-31T00:00:00Z`.
        #[arg(long, value_parser = moment)]
        expires_at: Option<Timestamp>,
    },
    /// List keys, without their text.
    List {
        #[arg(long)]
        owner: Option<OwnerId>,
        #[arg(long, default_value_t = 1)]
        page: u64,
        #[arg(long, default_value_t = 100)]
        limit: u64,
    },
    /// Revoke a key at once.
    Revoke { id: String },
    /// Replace a key; the old one works until its grace period ends.
    Rotate {
        id: String,
        /// Default: a day.
        #[arg(long)]
        grace_seconds: Option<u64>,
    },
}

fn moment(text: &str) -> Result<Timestamp, String> {
    text.parse().map_err(|_| "use a date and time as in `2027-01-31T00:00:00Z`".into())
}

pub(super) fn run(args: KeyArgs, as_json: bool) -> Outcome {
    let client = args.connect.client()?;
    match args.verb {
        KeyVerb::Create { owner, tier, scopes, label, expires_at } => {
            let mut new = json!({"owner": owner, "tier": tier, "label": label});
            if !scopes.is_empty() {
                new["scopes"] = json!(scopes);
            }
            if let Some(at) = expires_at {
                new["expires_at"] = json!(at);
            }
            print(&client.call(Method::POST, "/api/auth/keys", &[], Body::Json(new))?, as_json, created_key)
        }
        KeyVerb::List { owner, page, limit } => {
            let owner = owner.map(String::from);
            let query = [("owner", owner), ("page", Some(page.to_string())), ("limit", Some(limit.to_string()))];
            print(&client.get("/api/auth/keys", &query)?, as_json, |list| {
                let columns = [
                    ("ID", "/id"),
                    ("OWNER", "/owner"),
                    ("TIER", "/tier"),
                    ("SCOPES", "/scopes"),
                    ("LIVE", "/live"),
                    ("CREATED", "/created_at"),
                    ("EXPIRES", "/expires_at"),
                    ("LABEL", "/label"),
                ];
                output::objects(&list["keys"], &columns)?;
                output::more(list)
            })
        }
        KeyVerb::Revoke { id } => {
            client.call(Method::DELETE, &format!("/api/auth/keys/{}", encoded(&id)), &[], Body::None)?;
            print(&json!({"revoked": id}), as_json, |_| output::line(&format!("revoked {id}")))
        }
        KeyVerb::Rotate { id, grace_seconds } => {
            let path = format!("/api/auth/keys/{}/rotate", encoded(&id));
            let grace = grace_seconds.map_or(Body::None, |s| Body::Json(json!({"grace_seconds": s})));
            print(&client.call(Method::POST, &path, &[], grace)?, as_json, created_key)
        }
    }
}

/// The secret on standard output alone, so that a script can take it; the rest is for people.
fn created_key(key: &Value) -> std::io::Result<()> {
    let at = |at: &str| output::cell(key, at);
    eprintln!(
        "{} of {} (tier {}, scopes {}); the key is not shown again:",
        at("/id"),
        at("/owner"),
        at("/tier"),
        at("/scopes")
    );
    output::line(&at("/key"))
}

#[derive(clap::Args)]
pub(super) struct TokenArgs {
    #[command(flatten)]
    connect: Connect,
    #[command(subcommand)]
    verb: TokenVerb,
}

#[derive(Subcommand)]
enum TokenVerb {
    /// Make an admin token; it is printed once.
    Create {
        /// Shown in the audit log.
        name: Name,
        /// `viewer` reads all but the text of pushed routes, `operator` also changes, `admin` also manages tokens.
        #[arg(long, default_value = "operator", value_parser = ["viewer", "operator", "admin"])]
        role: String,
    },
    /// List admin tokens, without their text.
    List,
    /// Revoke an admin token at once.
    Revoke {
        /// `tok_...`, as `wasmgate token list` shows it.
        id: String,
    },
}

pub(super) fn run_token(args: TokenArgs, as_json: bool) -> Outcome {
    let client = args.connect.client()?;
    match args.verb {
        TokenVerb::Create { name, role } => {
            let new = Body::Json(json!({"name": name, "role": role}));
            print(&client.call(Method::POST, "/api/tokens", &[], new)?, as_json, |token| {
                eprintln!("{} ({role}); the token is not shown again:", output::cell(token, "/id"));
                output::line(&output::cell(token, "/token"))
            })
        }
        TokenVerb::List => print(&client.get("/api/tokens", &[])?, as_json, |list| {
            let columns = [
                ("ID", "/id"),
                ("NAME", "/name"),
                ("ROLE", "/role"),
                ("CREATED", "/created_at"),
                ("REVOKED", "/revoked_at"),
            ];
            output::objects(&list["tokens"], &columns)
        }),
        TokenVerb::Revoke { id } => {
            client.call(Method::DELETE, &format!("/api/tokens/{}", encoded(&id)), &[], Body::None)?;
            print(&json!({"revoked": id}), as_json, |_| output::line(&format!("revoked {id}")))?;
            Ok(ExitCode::SUCCESS)
        }
    }
}
