//! What a filter decides about its streams: going on, answering, closing; and which of them it acts on.
//!
//! Invariant: a decision takes effect when the callback has come to its end.

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue};

use super::state::{ROOT, Stream};
use super::{Done, Env, ProxyState, Status, bytes, call, pairs, parts};
use crate::domain::Reply;
use crate::engine::abi::wire::{self, HEADER_BYTES, Message};
use crate::engine::failure::Halt;
use crate::engine::host::HostState;
use crate::engine::http::HttpExchange;

/// `proxy_stream_type_t`; those of connections are never there.
const REQUEST: i32 = 0;
const RESPONSE: i32 = 1;

/// Notes that the driver has to look at the stream acted on.
fn touch(proxy: &mut ProxyState) -> Done<&mut Stream> {
    let context = proxy.effective;
    let stream = proxy.streams.get_mut(&context).ok_or(Status::BAD_ARGUMENT)?;
    proxy.touched.insert(context);
    Ok(stream)
}

pub fn proxy_continue_stream(env: Env<'_>, kind: i32) -> Result<i32, Halt> {
    call(env, |env| resume(parts(env)?.proxy, kind))
}

/// 0.1.0.
pub fn proxy_continue_request(env: Env<'_>) -> Result<i32, Halt> {
    call(env, |env| resume(parts(env)?.proxy, REQUEST))
}

/// 0.1.0.
pub fn proxy_continue_response(env: Env<'_>) -> Result<i32, Halt> {
    call(env, |env| resume(parts(env)?.proxy, RESPONSE))
}

/// One that is not paused goes on as it does.
fn resume(proxy: &mut ProxyState, kind: i32) -> Done {
    match kind {
        REQUEST | RESPONSE => {
            let stream = touch(proxy)?;
            stream.resumed |= stream.event.is_request() == (kind == REQUEST);
            Ok(())
        }
        _ => Err(Status::BAD_ARGUMENT.into()),
    }
}

pub fn proxy_close_stream(env: Env<'_>, kind: i32) -> Result<i32, Halt> {
    call(env, |env| match kind {
        REQUEST | RESPONSE => {
            touch(parts(env)?.proxy)?.closed = true;
            Ok(())
        }
        _ => Err(Status::BAD_ARGUMENT.into()),
    })
}

/// 0.1.0: a route is found once, before any filter.
pub fn proxy_clear_route_cache(env: Env<'_>) -> Result<i32, Halt> {
    call(env, |_| Ok(()))
}

#[expect(clippy::too_many_arguments, reason = "the ABI's")]
pub fn proxy_send_local_response(
    env: Env<'_>,
    status: i32,
    details: i32,
    details_len: i32,
    body: i32,
    body_len: i32,
    headers: i32,
    headers_len: i32,
    grpc_status: i32,
) -> Result<i32, Halt> {
    call(env, |env| {
        let HostState { memory, fuel, proxy, output, .. } = env.data_mut();
        let proxy = proxy.as_deref_mut().ok_or(Status::INTERNAL_FAILURE)?;
        bytes(memory, details, details_len)?;
        let (body, headers) = (bytes(memory, body, body_len)?, bytes(memory, headers, headers_len)?);
        fuel.spend(body.len() + headers.len())?;
        // SDKs written for Envoy set `:status` among them, which the call's own argument says.
        let headers = wire::fields(&pairs::decode(headers)?, Message::Response).ok_or(Status::BAD_ARGUMENT)?;
        let stream = touch(proxy)?;
        let Some(exchange) = &stream.exchange else { return Err(Status::BAD_ARGUMENT.into()) };
        if stream.replied {
            // The first one stands.
            return Ok(());
        }
        if exchange.head_sent {
            // Too late for another answer: this one breaks off, as in Envoy.
            stream.closed = true;
            return Ok(());
        }
        let reply = match u16::try_from(grpc_status) {
            Ok(grpc_status) if is_grpc(exchange) => grpc(grpc_status, body, headers)?,
            _ => {
                output.spend(body.len())?;
                Reply { status: valid(status), headers, body: Bytes::copy_from_slice(body) }
            }
        };
        stream.replied = true;
        stream.reply = Some(reply);
        Ok(())
    })
}

/// What is no status becomes a failure.
fn valid(status: i32) -> u16 {
    u16::try_from(status).ok().filter(|status| (200..600).contains(status)).unwrap_or(500)
}

fn is_grpc(exchange: &HttpExchange) -> bool {
    let kind = exchange.request.headers.get(CONTENT_TYPE);
    kind.is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

/// An answer of headers alone (gRPC over HTTP/2, "Trailers-Only").
fn grpc(status: u16, message: &[u8], mut headers: Vec<(HeaderName, HeaderValue)>) -> Done<Reply> {
    let room = HEADER_BYTES - headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum::<usize>();
    let message = Some(message).filter(|message| message.len() <= room).map(percent_encoded);
    let message = message.filter(|text| text.len() <= room).ok_or(Status::BAD_ARGUMENT)?;
    headers.retain(|(name, _)| *name != CONTENT_TYPE);
    headers.push((CONTENT_TYPE, HeaderValue::from_static("application/grpc")));
    headers.push((HeaderName::from_static("grpc-status"), HeaderValue::from(status)));
    if let Ok(message) = HeaderValue::from_str(&message) {
        headers.push((HeaderName::from_static("grpc-message"), message));
    }
    Ok(Reply { status: 200, headers, body: Bytes::new() })
}

/// As gRPC wants it in `grpc-message` (gRPC over HTTP/2, "Status-Message").
fn percent_encoded(message: &[u8]) -> String {
    let mut text = String::with_capacity(message.len());
    for byte in message {
        match byte {
            b'%' | ..=0x1f | 0x7f.. => {
                let digit = |n: u8| char::from(b"0123456789ABCDEF"[usize::from(n & 15)]);
                text.extend(['%', digit(byte >> 4), digit(*byte)]);
            }
            _ => text.push(char::from(*byte)),
        }
    }
    text
}

/// The end of a context whose `proxy_on_done` asked to wait.
pub fn proxy_done(env: Env<'_>) -> Result<i32, Halt> {
    call(env, |env| {
        let proxy = parts(env)?.proxy;
        let context = proxy.effective;
        match proxy.stream() {
            Some(stream) if stream.finishing => {
                stream.finishing = false;
                proxy.done.push(context);
                Ok(())
            }
            _ => Err(Status::NOT_FOUND.into()),
        }
    })
}

pub fn proxy_set_effective_context(env: Env<'_>, context: i32) -> Result<i32, Halt> {
    call(env, |env| {
        let proxy = parts(env)?.proxy;
        let context = context as u32;
        if context != ROOT && !proxy.streams.contains_key(&context) {
            return Err(Status::BAD_ARGUMENT.into());
        }
        proxy.effective = context;
        Ok(())
    })
}
