//! `[[upstreams]]`.
//!
//! Invariant: every upstream has an endpoint, and every endpoint a host and a port.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::time::Duration;

use http::HeaderName;
use toml::de::DeValue;

use super::files::FileUse;
use super::raw::{Kind, Table};
use super::sections::file;
use super::units::{choice, duration, flag, from_str, int, millis, secs, text_with, type_of};
use super::{Balance, Ejection, Endpoint, HashOn, HealthCheck, Upstream, UpstreamHttp, UpstreamTls};
use crate::domain::Name;

const MAX_TIMEOUT: Duration = secs(86_400);

pub fn upstreams(t: &Table<'_>, base: &Path) -> Vec<Upstream> {
    t.sections("upstreams", |t| upstream(t, base)).unwrap_or_default()
}

fn upstream(t: &Table<'_>, base: &Path) -> Option<Upstream> {
    let name = t.need("name", from_str::<Name>);
    if let Some(name) = &name {
        t.doc.define(Kind::Upstream, name.as_str(), &t.at("name"));
    }
    let endpoints = endpoints(t);
    let tls = t.opt_section("tls", |t| {
        let ca_file = t.opt("ca_file", file(base));
        if let Some(file) = &ca_file {
            t.doc.names_file(FileUse::Authorities(file.clone()), t.at("ca_file"));
        }
        UpstreamTls { sni: t.opt("sni", text_with(server_name)), verify: t.get("verify", true, flag), ca_file }
    });
    let usual = if tls.is_some() { UpstreamHttp::Auto } else { UpstreamHttp::H1 };
    let versions = [("h1", UpstreamHttp::H1), ("h2", UpstreamHttp::H2), ("auto", UpstreamHttp::Auto)];
    let http = t.get("http", usual, choice(&versions));
    if http == UpstreamHttp::Auto && tls.is_none() && t.has("http") {
        t.error("http", "`auto` needs `tls`, where ALPN chooses; use `h1` or `h2`");
    }
    let balance = balance(t);
    let timeout = || duration(millis(1)..=MAX_TIMEOUT);
    let connect_timeout = t.get("connect_timeout", secs(3), timeout());
    let read_timeout = t.get("read_timeout", secs(60), timeout());
    let write_timeout = t.get("write_timeout", secs(60), timeout());
    let total_timeout = t.opt("total_timeout", timeout());
    let idle_timeout = t.get("idle_timeout", secs(60), duration(Duration::ZERO..=MAX_TIMEOUT));
    let retries = t.get("retries", 1, int(0..=10));
    let health = t.opt_section("health", health);
    let ejection = t.opt_section("ejection", |t| Ejection {
        failures: t.get("failures", 5, int(1..=1_000_000)),
        duration: t.get("duration", secs(10), duration(millis(1)..=MAX_TIMEOUT)),
    });
    // Every key has been read before a missing one ends this.
    Some(Upstream {
        name: name?,
        endpoints: endpoints?,
        balance,
        tls,
        http,
        connect_timeout,
        read_timeout,
        write_timeout,
        total_timeout,
        idle_timeout,
        retries,
        health,
        ejection,
    })
}

fn endpoints(t: &Table<'_>) -> Option<Vec<Endpoint>> {
    t.survey_below("endpoints", "[]", |t| weighted(t));
    let Some(item) = t.item("endpoints") else {
        t.doc.error(&t.at, "`endpoints` is missing");
        return None;
    };
    let elements = item.elements();
    if elements.is_empty() && matches!(item.value, DeValue::Array(_)) {
        t.error("endpoints", "an upstream needs an endpoint, such as `\"127.0.0.1:9000\"`");
    }
    let read = elements.iter().filter_map(|element| match element.value {
        DeValue::Table(_) => element.table(weighted).flatten(),
        DeValue::String(_) => element.read(text_with(endpoint)).map(|address| Endpoint { address, weight: 1 }),
        other => {
            let wanted = "expected `\"host:port\"` or `{ address = \"host:port\", weight = 1 }`";
            t.doc.error(&element.at, format!("{wanted}, found {}", type_of(other)));
            None
        }
    });
    Some(read.collect())
}

fn weighted(t: &Table<'_>) -> Option<Endpoint> {
    let address = t.need("address", text_with(endpoint));
    let weight = t.get("weight", 1, int(1..=256));
    Some(Endpoint { address: address?, weight })
}

/// `host:port`, where the host is a name, an IPv4 address or an IPv6 address in brackets.
fn endpoint(s: &str) -> Result<String, String> {
    const WANTED: &str = "use `host:port`, such as `127.0.0.1:9000`, `[::1]:9000` or `backend.internal:80`";
    if let Some((scheme, rest)) = s.split_once("://") {
        let tls = if scheme == "https" { ", and `tls = {}` for TLS" } else { "" };
        return Err(format!("`{s}` is a URL; use `{}`{tls}", rest.split('/').next().unwrap_or(rest)));
    }
    let Some((host, port)) = s.rsplit_once(':').filter(|(host, _)| !host.is_empty()) else {
        return Err(format!("`{s}` has no port; {WANTED}"));
    };
    if !port.parse::<u16>().is_ok_and(|p| p > 0) || port.starts_with('+') {
        return Err(format!("`{s}`: `{port}` is not a port; use 1 to 65535"));
    }
    let ok = match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
        Some(v6) => v6.parse::<Ipv6Addr>().is_ok(),
        None => host.parse::<Ipv4Addr>().is_ok() || is_host_name(host),
    };
    if ok { Ok(s.to_owned()) } else { Err(format!("`{s}`: `{host}` is not a host; {WANTED}")) }
}

/// A DNS name. One whose last label is a number would be a mistyped address (RFC 1123 section 2.1).
fn is_host_name(host: &str) -> bool {
    let label =
        |l: &str| (1..=63).contains(&l.len()) && l.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
    let last = host.rsplit('.').next().unwrap_or(host);
    host.len() <= 253 && host.split('.').all(label) && !last.bytes().all(|b| b.is_ascii_digit())
}

fn server_name(s: &str) -> Result<String, String> {
    if is_host_name(s) {
        Ok(s.to_ascii_lowercase())
    } else {
        Err(format!("`{s}` is not a server name; use a DNS name"))
    }
}

fn balance(t: &Table<'_>) -> Balance {
    #[derive(Clone, Copy, PartialEq)]
    enum How {
        RoundRobin,
        LeastConnections,
        ConsistentHash,
    }
    let words = [
        ("round-robin", How::RoundRobin),
        ("least-connections", How::LeastConnections),
        ("consistent-hash", How::ConsistentHash),
    ];
    let how = t.get("balance", How::RoundRobin, choice(&words));
    let hash_on = t.opt("hash_on", text_with(hash_on));
    if hash_on.is_some() && how != How::ConsistentHash {
        t.error("hash_on", "`hash_on` needs `balance = \"consistent-hash\"`");
    }
    match how {
        How::RoundRobin => Balance::RoundRobin,
        How::LeastConnections => Balance::LeastConnections,
        How::ConsistentHash => Balance::ConsistentHash(hash_on.unwrap_or(HashOn::ClientAddress)),
    }
}

fn hash_on(s: &str) -> Result<HashOn, String> {
    match s {
        "client-address" => Ok(HashOn::ClientAddress),
        "path" => Ok(HashOn::Path),
        _ => {
            let header = s.strip_prefix("header:").and_then(|name| name.parse::<HeaderName>().ok());
            let wanted = "use `client-address`, `path` or `header:NAME`";
            header.map(HashOn::Header).ok_or_else(|| format!("`{s}` is not allowed here; {wanted}"))
        }
    }
}

fn health(t: &Table<'_>) -> HealthCheck {
    HealthCheck {
        http_path: t.opt(
            "http_path",
            text_with(|s| match s.parse::<http::uri::PathAndQuery>() {
                Ok(_) if s.starts_with('/') => Ok(s.to_owned()),
                _ => Err(format!("`{s}` is not a path; use one such as `/health`")),
            }),
        ),
        interval: t.get("interval", secs(5), duration(millis(100)..=MAX_TIMEOUT)),
        timeout: t.get("timeout", secs(2), duration(millis(1)..=MAX_TIMEOUT)),
        healthy_after: t.get("healthy_after", 2, int(1..=1000)),
        unhealthy_after: t.get("unhealthy_after", 3, int(1..=1000)),
    }
}
