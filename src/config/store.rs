//! The section `store`: where records are kept, and how long.
//!
//! Invariant: a URL that stands in the file has no secret in it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::SecretSource;
use super::files::FileUse;
use super::raw::Table;
use super::sections::{DAY, file, secret};
use super::units::{choice, duration, flag, int, millis, secs, text_with};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Store {
    /// `None`: the embedded one, in the data directory.
    pub redis: Option<Redis>,
    pub routes: RoutesFrom,
    /// Audit lines older than this go, and the oldest beyond so many.
    pub audit_keep: Duration,
    pub audit_entries: u64,
    /// Usage of whole days (UTC) older than this goes.
    pub usage_keep: Duration,
}

/// Where routes, upstreams and tiers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RoutesFrom {
    /// In the configuration file.
    File,
    /// In the store, where they were pushed.
    Store,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redis {
    /// One server's; several of a cluster's nodes, or of sentinels.
    pub urls: Vec<String>,
    pub cluster: bool,
    /// What the sentinels call the primary; `None`: there are none.
    pub primary: Option<String>,
    /// That have to have a write before it counts as done.
    pub replicas: u32,
    pub username: Option<String>,
    pub password: Option<SecretSource>,
    /// Of the sentinels, which have others than the servers.
    pub sentinel_username: Option<String>,
    pub sentinel_password: Option<SecretSource>,
    /// Instead of the system's authorities.
    pub ca_file: Option<PathBuf>,
    /// What all of its keys there begin with.
    pub prefix: String,
    /// Under which records are authenticated; the same on every gateway of a fleet.
    pub record_key: SecretSource,
    /// Of one command.
    pub timeout: Duration,
    pub on_start: OnStart,
}

/// When the store can't be reached at start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnStart {
    /// Listens once it is there.
    Wait,
    /// Listens at once, and does without it what can be done.
    Degraded,
    Fail,
}

pub fn store(t: &Table<'_>, base: &Path) -> Store {
    let is_redis = t.get("kind", false, choice(&[("embedded", false), ("redis", true)]));
    let redis = t.opt_section("redis", |t| redis(t, base)).flatten();
    match (is_redis, &redis) {
        (true, None) if !t.has("redis") => t.error("kind", "`redis` needs a section `[store.redis]` with its `urls`"),
        (false, _) if t.has("redis") && !t.doc.failed(&t.at("kind").key) => {
            t.error("redis", "the store is the embedded one: set `kind = \"redis\"`, or remove this section")
        }
        _ => {}
    }
    let keep = || duration(DAY..=3660 * DAY);
    let from = [("file", RoutesFrom::File), ("store", RoutesFrom::Store)];
    Store {
        redis,
        routes: t.get("routes", RoutesFrom::File, choice(&from)),
        audit_keep: t.get("audit_keep", 400 * DAY, keep()),
        audit_entries: t.get("audit_entries", 100_000, int(100..=100_000_000)),
        usage_keep: t.get("usage_keep", 400 * DAY, keep()),
    }
}

fn redis(t: &Table<'_>, base: &Path) -> Option<Redis> {
    let urls = t.list("urls", text_with(url));
    let cluster = t.get("cluster", false, flag);
    let primary = t.opt("primary", text_with(named));
    if urls.is_empty() && !t.has("urls") {
        t.error("urls", "is missing; use `urls = [\"redis://127.0.0.1:6379\"]`");
    } else if urls.len() > 1 && !cluster && primary.is_none() {
        let advice = "set `cluster = true` for a cluster's nodes, `primary` for sentinels, or keep one";
        t.error("urls", format!("several URLs are not those of one server; {advice}"));
    }
    if cluster && urls.iter().any(|url| database(url).is_some_and(|number| number.parse() != Ok(0))) {
        t.error("urls", "a cluster has the database 0 alone; remove the number behind the `/`");
    }
    let replicas = t.get("replicas", 0, int(0..=64));
    if cluster && primary.is_some() {
        t.error("primary", "a cluster has no sentinels; remove it, or `cluster`");
    } else if cluster && replicas > 0 {
        t.error("replicas", "commands of a cluster can't wait for replicas; remove it");
    }
    for key in ["sentinel_username", "sentinel_password_file", "sentinel_password_env"] {
        if primary.is_none() && t.has(key) {
            t.error(key, "is of sentinels; set `primary` as well, or remove it");
        }
    }
    t.refuse("password", "a secret may not stand in this file; use `password_file` or `password_env`");
    let ca_file = t.opt("ca_file", file(base));
    if let Some(file) = &ca_file {
        t.doc.names_file(FileUse::Authorities(file.clone()), t.at("ca_file"));
        if urls.iter().any(|url| !url.starts_with("rediss://")) {
            t.error("ca_file", "is for TLS; use URLs that begin with `rediss://`, or remove it");
        }
    }
    let start = [("wait", OnStart::Wait), ("degraded", OnStart::Degraded), ("fail", OnStart::Fail)];
    let redis = Redis {
        cluster,
        primary,
        replicas,
        username: t.opt("username", text_with(named)),
        password: secret(t, base, ("password_file", "password_env"), FileUse::Secret),
        sentinel_username: t.opt("sentinel_username", text_with(named)),
        sentinel_password: secret(t, base, ("sentinel_password_file", "sentinel_password_env"), FileUse::Secret),
        ca_file,
        prefix: t.get("prefix", "wasmgate".into(), text_with(prefix)),
        record_key: secret(t, base, ("record_key_file", "record_key_env"), FileUse::RecordKey)
            .unwrap_or(SecretSource::Generated("record.key")),
        timeout: t.get("timeout", millis(500), duration(millis(1)..=secs(60))),
        on_start: t.get("on_start", OnStart::Wait, choice(&start)),
        urls,
    };
    (!redis.urls.is_empty()).then_some(redis)
}

fn named(s: &str) -> Result<String, String> {
    if s.is_empty() { Err("it may not be empty; remove it".into()) } else { Ok(s.into()) }
}

/// `redis://` or `rediss://` with a host, a port and a database; `unix://` with a path.
fn url(s: &str) -> Result<String, String> {
    let place = ["redis://", "rediss://", "unix://"].iter().find_map(|scheme| s.strip_prefix(scheme));
    let Some(place) = place.filter(|place| !place.is_empty()) else {
        return Err(format!(
            "`{}` is not a URL of Redis; use `redis://HOST:PORT`, or `rediss://HOST:PORT` for TLS",
            without_secret(s)
        ));
    };
    if place.split('/').next().is_some_and(|authority| authority.contains('@')) || place.contains("pass=") {
        return Err("a secret may not stand in a URL; use `username`, and `password_file` or `password_env`".into());
    }
    if !s.starts_with("unix://") {
        let authority = place.split('/').next().unwrap_or_default();
        let port = match authority.rsplit_once(':') {
            Some((_, port)) if !port.ends_with(']') => port,
            _ => "6379",
        };
        if port.parse::<u16>().ok().is_none_or(|port| port == 0) {
            return Err(format!("`{port}` is not a port of `{s}`; use 1 to 65535"));
        }
        if let Some(number) = database(s).filter(|number| number.parse::<u32>().is_err()) {
            return Err(format!("`{number}` is not a database of `{s}`; use its number, or remove it"));
        }
    }
    Ok(s.to_owned())
}

/// What a URL says of it, if it does.
fn database(url: &str) -> Option<&str> {
    let (_, place) = url.split_once("://")?;
    place.split_once('/').map(|(_, number)| number).filter(|number| !number.is_empty() && !url.starts_with("unix://"))
}

fn without_secret(url: &str) -> &str {
    url.rsplit('@').next().unwrap_or_default()
}

/// Short, as it is part of every key; without what Redis and its ACL rules read as patterns or hash tags.
fn prefix(s: &str) -> Result<String, String> {
    let ok =
        (1..=32).contains(&s.len()) && s.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    if ok { Ok(s.into()) } else { Err(format!("`{s}` is not a prefix; use 1 to 32 of `a-z A-Z 0-9 - _ .`")) }
}
