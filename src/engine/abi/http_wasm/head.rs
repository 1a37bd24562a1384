//! Functions of the request line, the status, configuration, logs and features.
//!
//! Invariant: what the next handler gets is what a guest set, byte by byte, or the phase fails.

use std::io::Write;

use http::Version;
use http::uri::PathAndQuery;
use tracing::Level;
use wasmer::FunctionEnvMut;

use super::edits::bad;
use super::{SUPPORTED, Stage, exchange, output};
use crate::engine::abi::wire;
use crate::engine::failure::Halt;
use crate::engine::guest_log;
use crate::engine::host::HostState;
use crate::engine::http::Features;

type Env<'a> = FunctionEnvMut<'a, HostState>;

pub fn enable_features(mut env: Env<'_>, features: i32) -> Result<i32, Halt> {
    let state = &mut env.data_mut().http_state;
    let asked = features as u32 & SUPPORTED.0;
    let in_force = match state.stage {
        Stage::Init => {
            state.defaults = Features(state.defaults.0 | asked);
            state.defaults
        }
        Stage::Request => {
            state.features = Features(state.features.0 | asked);
            state.features
        }
        Stage::Response => state.features,
    };
    Ok(in_force.0 as i32)
}

pub fn get_config(mut env: Env<'_>, buf: i32, cap: i32) -> Result<i32, Halt> {
    let HostState { memory, config, fuel, .. } = env.data_mut();
    fuel.spend(config.len())?;
    output::len(memory, config, buf, cap)
}

/// `None` where nothing is logged.
fn enabled(level: i32) -> Option<Level> {
    guest_log::level(level).filter(|level| guest_log::is_enabled(*level))
}

pub fn log_enabled(_env: Env<'_>, level: i32) -> Result<i32, Halt> {
    Ok(i32::from(enabled(level).is_some()))
}

pub fn log(mut env: Env<'_>, level: i32, message: i32, len: i32) -> Result<(), Halt> {
    let HostState { memory, lines, fuel, .. } = env.data_mut();
    let text = memory.slice(message as u32, len as u32)?;
    let Some(level) = enabled(level) else { return fuel.spend(0) };
    fuel.spend(text.len())?;
    lines.push(level, text, None);
    Ok(())
}

pub fn get_method(mut env: Env<'_>, buf: i32, cap: i32) -> Result<i32, Halt> {
    let HostState { memory, http, http_state, fuel, .. } = env.data_mut();
    let exchange = exchange(http, "get_method")?;
    fuel.spend(0)?;
    let method = http_state.edits.method.as_ref().unwrap_or(&exchange.request.method);
    output::len(memory, method.as_str().as_bytes(), buf, cap)
}

pub fn set_method(mut env: Env<'_>, method: i32, len: i32) -> Result<(), Halt> {
    let HostState { memory, http_state, fuel, .. } = env.data_mut();
    http_state.writes_request("set_method")?;
    let text = memory.slice(method as u32, len as u32)?;
    fuel.spend(0)?;
    if text.is_empty() {
        return Err(Halt::Trap("`set_method` without a method".into()));
    }
    // CONNECT has neither a path nor a body; it would change what the connection is.
    http_state.edits.method = Some(wire::method(text).ok_or_else(|| bad("the method is none to forward"))?);
    Ok(())
}

pub fn get_uri(mut env: Env<'_>, buf: i32, cap: i32) -> Result<i32, Halt> {
    let HostState { memory, http, http_state, fuel, .. } = env.data_mut();
    let exchange = exchange(http, "get_uri")?;
    let uri = http_state.edits.uri.as_ref().or(exchange.request.uri.path_and_query());
    let uri = match uri.map_or("", PathAndQuery::as_str) {
        "" => "/",
        uri => uri,
    };
    let length = output::len(memory, uri.as_bytes(), buf, cap)?;
    fuel.spend(length as usize)?;
    Ok(length)
}

pub fn set_uri(mut env: Env<'_>, uri: i32, len: i32) -> Result<(), Halt> {
    let HostState { memory, http_state, fuel, .. } = env.data_mut();
    http_state.writes_request("set_uri")?;
    let text = memory.slice(uri as u32, len as u32)?;
    fuel.spend(text.len())?;
    let uri = match text {
        [] => Some(PathAndQuery::from_static("/")),
        text => wire::target(text),
    };
    http_state.edits.uri = Some(uri.ok_or_else(|| Halt::Trap("`set_uri` of what is no path and query".into()))?);
    Ok(())
}

pub fn get_protocol_version(mut env: Env<'_>, buf: i32, cap: i32) -> Result<i32, Halt> {
    let HostState { memory, http, fuel, .. } = env.data_mut();
    let version = match exchange(http, "get_protocol_version")?.request.version {
        Version::HTTP_09 => "HTTP/0.9",
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2.0",
        Version::HTTP_3 => "HTTP/3.0",
        _ => "HTTP/1.1",
    };
    fuel.spend(0)?;
    output::len(memory, version.as_bytes(), buf, cap)
}

pub fn get_status_code(mut env: Env<'_>) -> Result<i32, Halt> {
    let HostState { http, http_state, .. } = env.data_mut();
    let exchange = exchange(http, "get_status_code")?;
    let pending = http_state.stage == Stage::Request;
    Ok(i32::from(http_state.edits.status(exchange, pending).as_u16()))
}

pub fn set_status_code(mut env: Env<'_>, code: i32) -> Result<(), Halt> {
    let state = &mut env.data_mut().http_state;
    state.owns_response("set_status_code")?;
    let status = u16::try_from(code).ok().and_then(wire::status);
    state.edits.status = Some(status.ok_or_else(|| bad("the status is not one from 200 to 599"))?);
    Ok(())
}

pub fn get_source_addr(mut env: Env<'_>, buf: i32, cap: i32) -> Result<i32, Halt> {
    let HostState { memory, http, fuel, .. } = env.data_mut();
    let peer = exchange(http, "get_source_addr")?.peer;
    fuel.spend(0)?;
    // The longest is `[` 39 `]:` 5: 47 bytes.
    let mut text = [0u8; 64];
    let mut rest = &mut text[..];
    let ip = peer.ip().to_canonical();
    let written = match ip {
        std::net::IpAddr::V4(ip) => write!(rest, "{ip}:{}", peer.port()),
        std::net::IpAddr::V6(ip) => write!(rest, "[{ip}]:{}", peer.port()),
    };
    written.map_err(|_| Halt::Trap("the address has no text".into()))?;
    let left = rest.len();
    output::len(memory, &text[..64 - left], buf, cap)
}
