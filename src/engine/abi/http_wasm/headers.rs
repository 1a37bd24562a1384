//! Header functions. Trailer kinds read as empty and trap on writes: the feature is not offered.
//!
//! Invariant: looking a name up allocates nothing, and one that can't exist is absent.

use wasmer::FunctionEnvMut;

use super::edits::Write;
use super::{exchange, output};
use crate::engine::abi::wire::Message;
use crate::engine::failure::Halt;
use crate::engine::host::HostState;

type Env<'a> = FunctionEnvMut<'a, HostState>;

/// `header_kind`; `None`: trailers.
fn message(kind: i32, call: &str) -> Result<Option<Message>, Halt> {
    match kind {
        0 => Ok(Some(Message::Request)),
        1 => Ok(Some(Message::Response)),
        2 | 3 => Ok(None),
        other => Err(Halt::Trap(format!("`{call}` of the unknown header kind {other}"))),
    }
}

pub fn get_header_names(mut env: Env<'_>, kind: i32, buf: i32, cap: i32) -> Result<i64, Halt> {
    let HostState { memory, http, http_state, fuel, .. } = env.data_mut();
    let exchange = exchange(http, "get_header_names")?;
    let Some(message) = message(kind, "get_header_names")? else { return Ok(0) };
    let headers = http_state.edits.headers(exchange, message)?;
    let result = output::count_len(memory, || headers.keys().map(|n| n.as_str().as_bytes()), buf, cap)?;
    fuel.spend(result as u32 as usize)?;
    Ok(result)
}

pub fn get_header_values(
    mut env: Env<'_>,
    kind: i32,
    name: i32,
    name_len: i32,
    buf: i32,
    cap: i32,
) -> Result<i64, Halt> {
    let HostState { memory, http, http_state, fuel, .. } = env.data_mut();
    let exchange = exchange(http, "get_header_values")?;
    let message = message(kind, "get_header_values")?;
    let name = named(memory.slice(name as u32, name_len as u32)?, "get_header_values")?;
    let (Some(message), Ok(name)) = (message, std::str::from_utf8(name)) else { return Ok(0) };
    let values = http_state.edits.headers(exchange, message)?.get_all(name);
    let result = output::count_len(memory, || values.iter().map(|v| v.as_bytes()), buf, cap)?;
    fuel.spend(name_len as usize + result as u32 as usize)?;
    Ok(result)
}

pub fn set_header_value(
    env: Env<'_>,
    kind: i32,
    name: i32,
    name_len: i32,
    value: i32,
    value_len: i32,
) -> Result<(), Halt> {
    write(env, "set_header_value", Write::Set, kind, (name, name_len), (value, value_len))
}

pub fn add_header_value(
    env: Env<'_>,
    kind: i32,
    name: i32,
    name_len: i32,
    value: i32,
    value_len: i32,
) -> Result<(), Halt> {
    write(env, "add_header_value", Write::Add, kind, (name, name_len), (value, value_len))
}

fn write(
    mut env: Env<'_>,
    call: &str,
    write: Write,
    kind: i32,
    name: (i32, i32),
    value: (i32, i32),
) -> Result<(), Halt> {
    let HostState { memory, http, http_state, fuel, .. } = env.data_mut();
    let exchange = exchange(http, call)?;
    let message = writable(http_state, kind, call)?;
    let name = named(memory.slice(name.0 as u32, name.1 as u32)?, call)?;
    let value = memory.slice(value.0 as u32, value.1 as u32)?;
    fuel.spend(name.len() + value.len())?;
    http_state.edits.write_header(exchange, message, write, (name, value))
}

pub fn remove_header(mut env: Env<'_>, kind: i32, name: i32, name_len: i32) -> Result<(), Halt> {
    let HostState { memory, http, http_state, fuel, .. } = env.data_mut();
    let exchange = exchange(http, "remove_header")?;
    let message = writable(http_state, kind, "remove_header")?;
    let name = named(memory.slice(name as u32, name_len as u32)?, "remove_header")?;
    fuel.spend(name.len())?;
    http_state.edits.remove_header(exchange, message, name)
}

fn writable(state: &super::HttpWasmState, kind: i32, call: &str) -> Result<Message, Halt> {
    match message(kind, call)? {
        Some(Message::Request) => state.writes_request(call).map(|()| Message::Request),
        Some(Message::Response) => state.owns_response(call).map(|()| Message::Response),
        None => Err(Halt::Trap(format!("`{call}` of trailers, which this host does not offer"))),
    }
}

fn named<'a>(name: &'a [u8], call: &str) -> Result<&'a [u8], Halt> {
    if name.is_empty() { Err(Halt::Trap(format!("`{call}` without a header name"))) } else { Ok(name) }
}
