//! proxy-wasm filters in the running gateway: `tests/guests/c/proxy.c`, which runs scripts (its comment has their grammar).
//!
//! The expectations are the ABI's (https://github.com/proxy-wasm/spec, v0.2.1) and what filters in the wild rely on, not
//! this host's.

mod bad;
mod bodies;
mod calls;
mod diagnosis;
mod example;
mod grpc;
mod headers;
mod life;
mod pointers;
mod properties;
mod shared;
mod starts;
mod table;
mod wasi;

use std::fmt::Display;

use crate::support::toml::{route, upstream};
use crate::support::{Gateway, Request, Response, Upstream, c_guest, eventually};

/// One entry of a route's `handlers`: the scripted filter with this plugin configuration. Unless a test is about time, it
/// has enough for a busy machine.
fn entry(script: &str, keys: &str) -> String {
    let wall = if keys.contains("wall = ") { "" } else { ", wall = \"20s\"" };
    let comma = if keys.is_empty() { "" } else { ", " };
    format!("{{ module = \"acme/proxy\", config = {script:?}{wall}{comma}{keys} }}")
}

/// A route at `/<name>` through these entries to the upstream.
fn chain(name: &str, entries: &[String]) -> String {
    let handlers = entries.join(", ");
    let lines =
        format!("match.path_prefix = \"/{name}\"\ntarget.upstream = \"up\"\nauth = \"none\"\nhandlers = [{handlers}]");
    route(name, lines)
}

/// A route at `/<name>` through the scripted filter to the upstream.
fn filter(name: &str, script: &str, keys: &str) -> String {
    chain(name, &[entry(script, keys)])
}

/// The scripted filter on these routes before `up`. `server` is what else the configuration has.
fn gateway(up: &Upstream, server: &str, routes: &str) -> Gateway {
    let config = complete(up, server);
    Gateway::with_modules(&config, &[("acme/proxy", "proxy-wasm", &c_guest("proxy"))], routes)
}

fn complete(up: &Upstream, server: &str) -> String {
    let engine = if server.contains("[engine]") { "" } else { PATIENT };
    format!("{engine}{server}\n{}", upstream("up", up.addr, ""))
}

/// As `gateway`, with code that nothing replaces: what one request left in a VM, the next one finds.
fn lasting(up: &Upstream, server: &str, routes: &str) -> Gateway {
    gateway(up, server, routes).optimised(&(complete(up, server) + routes))
}

/// One filter whose streams run what their requests say, at `/run`.
fn runner(up: &Upstream) -> Gateway {
    gateway(up, "", &filter("run", "", ""))
}

const PATIENT: &str = "[engine]\nqueue_timeout = \"20s\"\n";

/// One VM a handler, so that what a VM kept is found by the next request.
const ONE_VM: &str = "[engine]\nqueue_timeout = \"20s\"\nvms_per_handler = 1\n";

/// `GET /run/x?y=1` with this script.
fn scripted(gw: &Gateway, script: impl Display) -> Request {
    gw.get("/run/x?y=1").header("X-Run", script.to_string())
}

/// What a script's operations gave, in order.
fn results(told: &str) -> Vec<String> {
    told.split(';').map(str::trim).filter(|result| !result.is_empty()).map(str::to_owned).collect()
}

/// The bytes behind `%XX`.
fn unescaped(text: &str) -> Vec<u8> {
    let mut bytes = text.bytes();
    let mut all = Vec::new();
    while let Some(byte) = bytes.next() {
        let mut digit = || bytes.next().and_then(|b| char::from(b).to_digit(16)).expect("two hex digits") as u8;
        all.push(if byte == b'%' { digit() << 4 | digit() } else { byte });
    }
    all
}

/// The results of a stream, from its response.
fn told(response: &Response) -> Vec<String> {
    results(response.header("x-results").unwrap_or_default())
}

/// Runs a script in a stream of its own and gives its results.
#[track_caller]
fn run(gw: &Gateway, script: impl Display) -> Vec<String> {
    told(&scripted(gw, script).send().expect(200))
}

/// The results of a callback that a VM has kept, by a request to the filter at this path.
fn kept(gw: &Gateway, path: &str, callback: &str) -> Vec<String> {
    let response = gw.get(path).header("X-Run", "request_headers: tell").send();
    let text = response.text();
    let line = text.lines().find_map(|line| line.strip_prefix(callback)?.strip_prefix(": "));
    results(line.unwrap_or_default())
}

/// Repeats what makes a callback run until a VM has kept results of it. More than once, since a VM may be replaced between
/// two requests.
#[track_caller]
fn eventually_kept(gw: &Gateway, path: &str, callback: &str, mut makes: impl FnMut()) -> Vec<String> {
    let mut results = Vec::new();
    eventually(&format!("`{callback}` runs"), || {
        makes();
        results = kept(gw, path, callback);
        !results.is_empty()
    });
    results
}
