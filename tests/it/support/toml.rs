//! Pieces of configuration that most tests need.
//!
//! Invariant: what a test is about stands in the test; only the frame around it stands here.

use std::fmt::Display;
use std::net::SocketAddr;

/// An upstream of one endpoint, with more lines of its table.
pub fn upstream(name: &str, addr: SocketAddr, more: &str) -> String {
    format!("[[upstreams]]\nname = \"{name}\"\nendpoints = [\"{addr}\"]\n{more}\n")
}

/// A route of these lines.
pub fn route(name: &str, lines: impl Display) -> String {
    format!("[[routes]]\nname = \"{name}\"\n{lines}\n")
}

/// Everything goes to `addr` without a key; more lines of that route.
pub fn open_proxy(addr: SocketAddr, more: &str) -> String {
    let lines = format!("match.path_prefix = \"/\"\ntarget.upstream = \"up\"\nauth = \"none\"\n{more}");
    upstream("up", addr, "") + &route("all", lines)
}

/// Everything goes to `addr` with a key; more lines of that route.
pub fn keyed_proxy(addr: SocketAddr, more: &str) -> String {
    let lines = format!("match.path_prefix = \"/\"\ntarget.upstream = \"up\"\nauth = \"key\"\n{more}");
    upstream("up", addr, "") + &route("all", lines)
}

/// A tier with these lines; room for a hundred requests at once unless they say otherwise.
pub fn tier(name: &str, lines: &str) -> String {
    let room = if lines.contains("concurrent") { "" } else { "concurrent = 100\n" };
    format!("[tiers.{name}]\nrank = 9\n{room}{lines}\n")
}
