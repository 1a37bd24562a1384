//! `read_body` and `write_body`.
//!
//! Invariant: a body that is read is whole, whatever the number of reads; what a guest writes stays within its limit.

use wasmer::FunctionEnvMut;

use super::{HttpWasmState, exchange, output};
use crate::engine::abi::wire::Message;
use crate::engine::failure::Halt;
use crate::engine::host::HostState;
use crate::engine::http::{Features, HttpExchange};

fn message(kind: i32, call: &str) -> Result<Message, Halt> {
    match kind {
        0 => Ok(Message::Request),
        1 => Ok(Message::Response),
        other => Err(Halt::Trap(format!("`{call}` of the unknown body kind {other}"))),
    }
}

pub fn read_body(mut env: FunctionEnvMut<'_, HostState>, kind: i32, buf: i32, cap: i32) -> Result<i64, Halt> {
    let HostState { memory, http, http_state, fuel, .. } = env.data_mut();
    let exchange = exchange(http, "read_body")?;
    let message = message(kind, "read_body")?;
    match message {
        Message::Request => http_state.reads_request_body("read_body")?,
        Message::Response => http_state.owns_response("read_body")?,
    }
    if cap == 0 {
        return Err(Halt::Trap("`read_body` into a buffer of no bytes".into()));
    }
    let into = memory.slice_mut(buf as u32, cap as u32)?;
    let (body, at) = match message {
        Message::Request => (request_body(http_state, exchange), http_state.request_read),
        Message::Response => (response_body(http_state, exchange), http_state.response_read),
    };
    let rest = body.get(at..).unwrap_or_default();
    let n = rest.len().min(into.len());
    fuel.copy(&mut into[..n], &rest[..n])?;
    let eof = n == rest.len();
    let nothing_there = body.is_empty();
    match message {
        Message::Request => {
            http_state.request_read = at + n;
            let kept = http_state.features.has(Features::BUFFER_REQUEST) || http_state.edits.request_body.is_some();
            // ABI, `read_body`: without the feature, the next handler may not be able to read it.
            http_state.edits.consumed |= !kept && !nothing_there;
        }
        Message::Response => http_state.response_read = at + n,
    }
    fuel.spend(n)?;
    Ok(output::eof_len(eof, n as u32))
}

fn request_body<'a>(state: &'a HttpWasmState, exchange: &'a HttpExchange) -> &'a [u8] {
    if let Some(written) = &state.edits.request_body {
        return written;
    }
    match (&exchange.request_body_replaced, &exchange.request_body) {
        (Some(replaced), _) => replaced,
        (None, Some(body)) if !exchange.request_body_consumed => body,
        _ => &[],
    }
}

fn response_body<'a>(state: &'a HttpWasmState, exchange: &'a HttpExchange) -> &'a [u8] {
    match (&state.edits.response_body, &exchange.response_body_replaced, &exchange.response_body) {
        (Some(written), ..) => written,
        (_, Some(replaced), _) => replaced,
        (.., Some(body)) => body,
        _ => &[],
    }
}

pub fn write_body(mut env: FunctionEnvMut<'_, HostState>, kind: i32, body: i32, len: i32) -> Result<(), Halt> {
    let HostState { memory, http, http_state, fuel, output, .. } = env.data_mut();
    exchange(http, "write_body")?;
    let message = message(kind, "write_body")?;
    match message {
        Message::Request => http_state.writes_request("write_body")?,
        Message::Response => http_state.owns_response("write_body")?,
    }
    let bytes = memory.slice(body as u32, len as u32)?;
    fuel.spend(bytes.len())?;
    output.spend(bytes.len())?;
    let (written, read) = match message {
        Message::Request => (&mut http_state.edits.request_body, &mut http_state.request_read),
        Message::Response => (&mut http_state.edits.response_body, &mut http_state.response_read),
    };
    if written.is_none() {
        // The first write discards what was there, and what was read of it.
        *read = 0;
    }
    fuel.append(written.get_or_insert_default(), bytes)
}
