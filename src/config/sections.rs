//! The sections about the gateway itself: server, admin, auth, log, engine, tiers.
//!
//! Invariant: a key's name, default and range stand here once; conf/wasmgate.toml documents them and a test compares.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;

use super::files::FileUse;
use super::raw::{Kind, Table};
use super::units::{GIB, KIB, MIB, choice, duration, flag, from_str, int, millis, parse_as, secs, size, text_with};
use super::{Admin, Auth, Breaker, Compile, Engine, Listener, Log, LogFormat, SecretSource, Server, Tls};
use crate::domain::path::normalize_host;
use crate::domain::{FailMode, Limits, Name, Quota, Tier, Window};

/// Bound of counts that have no other; fits the integers of TOML.
const MANY: u64 = 1_000_000_000_000_000_000;
const HOUR: Duration = secs(3600);
pub const DAY: Duration = secs(86_400);
const ADDRESS: &str = "an address; use `IP:PORT`, such as `127.0.0.1:8080` or `[::1]:8080`";

/// A path, taken from the folder of the configuration file.
pub fn file(base: &Path) -> impl Fn(&toml::de::DeValue<'_>) -> Result<PathBuf, String> {
    text_with(move |s| if s.is_empty() { Err("a path may not be empty".into()) } else { Ok(base.join(s)) })
}

pub fn server(t: &Table<'_>, base: &Path) -> Server {
    let listeners = t.sections("listeners", |l| listener(l, base));
    if listeners.as_ref().is_some_and(Vec::is_empty) && !t.doc.failed(&t.at("listeners").key) {
        t.error("listeners", "at least one listener is needed; leave the key out for `127.0.0.1:8080`");
    }
    let plain = || {
        let address = SocketAddr::from(([127, 0, 0, 1], 8080));
        take(t, "listeners", address);
        vec![Listener { address, tls: None, h2c: false }]
    };
    Server {
        listeners: listeners.unwrap_or_else(plain),
        name: t.opt("name", from_str::<Name>),
        threads: t.get("threads", 0, int(0..=1024)),
        trusted_proxies: t.list("trusted_proxies", text_with(network)),
        header_timeout: t.get("header_timeout", secs(10), duration(millis(100)..=HOUR)),
        max_header_bytes: t.get("max_header", 32 * KIB, size(KIB..=MIB)) as usize,
        max_header_fields: t.get("max_header_fields", 100, int(10..=256)),
        keepalive: t.get("keepalive", secs(60), duration(Duration::ZERO..=HOUR)),
        body_timeout: t.get("body_timeout", secs(30), duration(millis(100)..=HOUR)),
        max_connections: t.get("max_connections", 10_000, int(1..=10_000_000)),
        drain: t.get("drain", secs(30), duration(Duration::ZERO..=HOUR)),
    }
}

/// Notes that an address is listened on. Port 0 is a new port each time.
fn take(t: &Table<'_>, key: &str, address: SocketAddr) {
    if address.port() != 0 {
        t.doc.define(Kind::Address, &address.to_string(), &t.at(key));
    }
}

fn network(s: &str) -> Result<IpNet, String> {
    let net = s.parse::<IpNet>().ok().or_else(|| s.parse::<IpAddr>().ok().map(IpNet::from));
    net.ok_or_else(|| format!("`{s}` is not a network; use `10.0.0.0/8`, `fd00::/8` or an address"))
}

fn listener(t: &Table<'_>, base: &Path) -> Option<Listener> {
    let address = t.need("address", parse_as(ADDRESS));
    if let Some(address) = address {
        take(t, "address", address);
    }
    let tls = tls(t, base);
    let h2c = t.get("h2c", false, flag);
    if h2c && tls.is_some() {
        t.error("h2c", "`h2c` is HTTP/2 without TLS; with TLS, clients get HTTP/2 by ALPN: remove it");
    }
    Some(Listener { address: address?, tls, h2c })
}

fn tls(t: &Table<'_>, base: &Path) -> Option<Tls> {
    t.opt_section("tls", |t| {
        let (cert, key) = (t.need("cert_file", file(base)), t.need("key_file", file(base)));
        let tls = Tls { cert_file: cert?, key_file: key? };
        t.doc.names_file(FileUse::Certificate(tls.cert_file.clone()), t.at("cert_file"));
        t.doc.names_file(FileUse::PrivateKey(tls.key_file.clone()), t.at("key_file"));
        t.doc.names_file(FileUse::KeyPair(tls.clone()), t.at("key_file"));
        Some(tls)
    })
    .flatten()
}

pub fn admin(t: &Table<'_>, base: &Path, data_dir: &Path) -> Admin {
    let address = t.get("address", SocketAddr::from(([127, 0, 0, 1], 9090)), parse_as(ADDRESS));
    take(t, "address", address);
    let tls = tls(t, base);
    if !address.ip().to_canonical().is_loopback() && tls.is_none() && !t.has("tls") {
        let advice = "use a loopback address or give `admin.tls` a `cert_file` and a `key_file`";
        t.error("address", format!("`{address}` would send admin tokens in the clear; {advice}"));
    }
    t.refuse("token", "a secret may not stand in this file; use `token_file`");
    let token_file = t.get("token_file", data_dir.join("admin.token"), file(base));
    let token = FileUse::AdminToken { file: token_file.clone(), data_dir: data_dir.to_owned() };
    t.doc.names_file(token, t.at("token_file"));
    Admin {
        address,
        tls,
        token_file,
        allowed_hosts: t.list(
            "allowed_hosts",
            text_with(|s| match normalize_host(s) {
                Ok(host) => Ok(host.into_owned()),
                Err(_) => Err(format!("`{s}` is not a host; use a name such as `gateway.example.com`")),
            }),
        ),
    }
}

pub fn auth(t: &Table<'_>, base: &Path) -> Auth {
    t.refuse("pepper", "a secret may not stand in this file; use `pepper_file` or `pepper_env`");
    let pepper = secret(t, base, ("pepper_file", "pepper_env"), FileUse::Pepper);
    Auth {
        pepper: pepper.unwrap_or(SecretSource::Generated("pepper")),
        key_fresh: t.get("key_fresh", secs(30), duration(Duration::ZERO..=HOUR)),
        key_max_stale: t.get("key_max_stale", secs(60), duration(Duration::ZERO..=DAY)),
        absent_ttl: t.get("absent_ttl", secs(5), duration(Duration::ZERO..=HOUR)),
        cache_entries: t.get("cache_entries", 100_000, int(1..=100_000_000)),
        failures_per_minute: t.get("failures_per_minute", 60, int(1..=1_000_000)),
    }
}

/// From a file or from the environment, by the first key or the second.
pub fn secret(
    t: &Table<'_>,
    base: &Path,
    (in_file, in_env): (&'static str, &'static str),
    used: fn(PathBuf) -> FileUse,
) -> Option<SecretSource> {
    let path = t.opt(in_file, file(base));
    if let Some(file) = &path {
        t.doc.names_file(used(file.clone()), t.at(in_file));
    }
    let from_file = path.map(SecretSource::File);
    let from_env = t.opt(in_env, text_with(variable)).map(SecretSource::Env);
    if from_file.is_some() && from_env.is_some() {
        t.error(in_env, format!("`{in_file}` and `{in_env}` exclude each other; keep one"));
    }
    from_file.or(from_env)
}

/// The name of an environment variable.
fn variable(s: &str) -> Result<String, String> {
    let ok = !s.is_empty() && !s.contains(['=', '\0']);
    if ok { Ok(s.into()) } else { Err(format!("`{s}` is not the name of an environment variable")) }
}

pub fn log(t: &Table<'_>) -> Log {
    Log {
        format: t.get("format", LogFormat::Json, choice(&[("json", LogFormat::Json), ("pretty", LogFormat::Pretty)])),
        level: t.get("level", "info".into(), text_with(filter)),
        access: t.get("access", true, flag),
    }
}

/// `info` or `wasmgate=debug,info`. Stricter than `tracing`, which takes a mistyped level for the name of a target.
pub fn filter(s: &str) -> Result<String, String> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    for directive in s.split(',') {
        let level = directive.rsplit_once('=').map_or(directive, |(_, level)| level).trim();
        if !LEVELS.contains(&level) {
            let levels = LEVELS.join("`, `");
            return Err(format!("`{level}` is not a log level; use `{levels}`, or `target=level` separated by commas"));
        }
    }
    match tracing_subscriber::EnvFilter::try_new(s) {
        Ok(_) => Ok(s.to_owned()),
        Err(e) => Err(format!("`{s}` is not a log filter ({e}); use a level such as `info`, or `wasmgate=debug,info`")),
    }
}

pub fn engine(t: &Table<'_>) -> Engine {
    Engine {
        threads: t.get("threads", 0, int(0..=1024)),
        queue: t.get("queue", 1024, int(0..=1_000_000)),
        queue_timeout: t.get("queue_timeout", secs(1), duration(millis(1)..=secs(60))),
        per_owner: t.get("per_owner", 4, int(1..=1024)),
        memory_budget_bytes: t.opt("memory_budget", size(16 * MIB..=1024 * GIB)),
        vms_per_handler: t.get("vms_per_handler", 256, int(1..=1024)),
        vm_requests: t.get("vm_requests", 10_000, int(1..=1_000_000_000)),
        guest_log_lines: t.get("guest_log_lines", 100, int(1..=100_000)),
        artifact_cache_bytes: t.get("artifact_cache", GIB, size(MIB..=1024 * GIB)),
        artifact_disk_bytes: t.get("artifact_disk", 10 * GIB, size(MIB..=1024 * GIB)),
        compile: t.section("compile", |t| Compile {
            processes: t.get("processes", 2, int(1..=64)),
            cpu: t.get("cpu", secs(20), duration(secs(1)..=HOUR)),
            per_mib: t.get("per_mib", secs(3), duration(millis(1)..=HOUR)),
            memory_bytes: t.get("memory", GIB, size(256 * MIB..=64 * GIB)),
        }),
        breaker: t.section("breaker", |t| Breaker {
            failures: t.get("failures", 10, int(0..=1_000_000)),
            window: t.get("window", secs(30), duration(millis(1)..=HOUR)),
            cool_down: t.get("cool_down", secs(10), duration(millis(1)..=HOUR)),
        }),
    }
}

/// The default tiers, as the file changes them, and its own.
pub fn tiers(t: &Table<'_>) -> Vec<Tier> {
    let mut tiers = Tier::defaults();
    for tier in &tiers {
        t.doc.define_builtin(Kind::Tier, tier.name.as_str());
    }
    for (name, item) in t.entries("tiers") {
        let Ok(name) = name.parse::<Name>().map_err(|e| t.doc.error(&item.at, e.to_string())) else { continue };
        t.doc.define_builtin(Kind::Tier, name.as_str());
        let known = tiers.iter().position(|tier| tier.name == name);
        let mut tier = tiers[known.unwrap_or(FREE)].clone();
        tier.name = name;
        item.table(|t| edit_tier(t, &mut tier, known.is_none()));
        match known {
            Some(at) => tiers[at] = tier,
            None => tiers.push(tier),
        }
    }
    t.survey_below("tiers", ".<name>", |t| edit_tier(t, &mut tiers[FREE], true));
    tiers
}

/// Place of the tier `free` in `Tier::defaults()`, from which a new tier takes what it does not say.
const FREE: usize = 1;

fn edit_tier(t: &Table<'_>, tier: &mut Tier, is_new: bool) {
    let rank = int(0..=1_000_000);
    tier.rank = if is_new { t.need("rank", rank) } else { t.opt("rank", rank) }.unwrap_or(tier.rank);
    if let Some(item) = t.item("quotas") {
        tier.quotas.clear();
        for quota in item.elements() {
            let Some(quota) = quota.table(read_quota).flatten() else { continue };
            if tier.quotas.iter().any(|q| q.name == quota.name) {
                t.error("quotas", format!("two quotas have the name `{}`; names are unique in a tier", quota.name));
            }
            tier.quotas.push(quota);
        }
        if tier.quotas.len() > Tier::MOST_QUOTAS {
            t.error("quotas", format!("a tier has at most {} quotas", Tier::MOST_QUOTAS));
        }
    }
    t.survey_below("quotas", "[]", read_quota);
    tier.fuel_per_day = t.opt("fuel_per_day", int(1..=MANY)).or(tier.fuel_per_day);
    tier.concurrent = t.get("concurrent", tier.concurrent, int(1..=1_000_000));
    tier.module_bytes = t.get("module_size", tier.module_bytes, size(0..=Tier::MOST_MODULE_BYTES));
    let usual = Tier::usual_storage(tier.module_bytes);
    tier.module_storage_bytes = t.get("module_storage", usual, size(0..=Tier::MOST_STORAGE_BYTES));
    tier.modules = t.get("modules", tier.modules, int(0..=1_000_000));
    tier.keys = t.get("keys", tier.keys, int(0..=1_000_000));
    let fail = [("share", FailMode::Share), ("open", FailMode::Open), ("closed", FailMode::Closed)];
    tier.fail = t.get("fail", tier.fail, choice(&fail));
    let old = tier.limits.clone();
    tier.limits = t.section("limits", |t| Limits {
        fuel: t.get("fuel", old.fuel, int(1_000..=Limits::MOST.fuel)),
        memory_bytes: t.get("memory", old.memory_bytes, size(64 * KIB..=Limits::MOST.memory_bytes)),
        wall_ms: t.get("wall", old.wall_ms, duration(millis(1)..=Limits::MOST.wall_ms)),
        input_bytes: t.get("input", old.input_bytes, size(0..=Limits::MOST.input_bytes)),
        output_bytes: t.get("output", old.output_bytes, size(0..=Limits::MOST.output_bytes)),
        log_bytes: t.get("log", old.log_bytes, size(0..=Limits::MOST.log_bytes)),
        table_elements: t.get("table_elements", old.table_elements, int(0..=Limits::MOST.table_elements)),
        stack_bytes: t.get("stack", old.stack_bytes, size(Limits::STACK_RANGE)),
        file_bytes: t.get("files", old.file_bytes, size(0..=Limits::MOST.file_bytes)),
        instances: t.get("instances", old.instances, int(1..=Limits::MOST.instances)),
    });
}

fn read_quota(t: &Table<'_>) -> Option<Quota> {
    let name = t.need("name", from_str::<Name>);
    let requests = t.need("requests", int(1..=MANY));
    let window = t.need("window", from_str::<Window>);
    let burst = t.opt("burst", int(1..=MANY));
    if let Some(Err(why)) = window.map(|window| window.check_burst(burst)) {
        t.error("burst", why);
    }
    Some(Quota { name: name?, requests: requests?, window: window?, burst })
}
