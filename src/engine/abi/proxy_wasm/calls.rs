//! Requests to upstreams. They leave when the callback that asked for them has come to its end.
//!
//! Invariant: a guest reaches upstreams that its handler grants by name, and has a bounded number of calls under way.

use std::time::Duration;

use bytes::Bytes;
use http::header::HeaderMap;
use http::{Request, StatusCode};

use super::{Done, Env, Parts, ProxyState, Status, bytes, call, give, pairs, parts, put_u32};
use crate::domain::Name;
use crate::engine::abi::wire;
use crate::engine::failure::Halt;
use crate::engine::grpc::GrpcEvent;
use crate::engine::outside::call_time;

/// Of one VM at once, gRPC calls among them.
pub const MAX_OPEN: usize = 256;

/// A call that a guest asked for.
pub struct Call {
    pub id: u32,
    pub upstream: Name,
    pub request: Request<Bytes>,
    pub timeout: Duration,
}

/// What came of one.
#[derive(Debug, Default)]
pub struct CallAnswer {
    pub id: u32,
    /// `None`: there was no answer.
    pub status: Option<StatusCode>,
    pub headers: HeaderMap,
    pub trailers: HeaderMap,
    pub body: Bytes,
}

impl CallAnswer {
    /// Fields with the status among them; none at all where there was no answer.
    pub fn fields(&self) -> usize {
        self.headers.len() + usize::from(self.status.is_some())
    }
}

#[expect(clippy::too_many_arguments, reason = "the ABI's")]
pub fn proxy_http_call(
    mut env: Env<'_>,
    upstream: i32,
    upstream_len: i32,
    headers: i32,
    headers_len: i32,
    body: i32,
    body_len: i32,
    trailers: i32,
    trailers_len: i32,
    timeout: i32,
    id: i32,
) -> Result<i32, Halt> {
    let limit = env.data_mut().output.limit;
    call(env, |env| {
        let Parts { memory, fuel, proxy } = parts(env)?;
        let upstream = granted(proxy, bytes(memory, upstream, upstream_len)?)?;
        let (headers, body) = (bytes(memory, headers, headers_len)?, bytes(memory, body, body_len)?);
        // Trailers are taken and not sent, as many upstreams would drop them.
        pairs::decode(bytes(memory, trailers, trailers_len)?)?;
        bytes(memory, id, 4)?;
        fuel.spend(headers.len() + body.len())?;
        let mut request = wire::request(&pairs::decode(headers)?, Bytes::new()).ok_or(Status::BAD_ARGUMENT)?;
        if proxy.calls_under_way() >= MAX_OPEN || body.len() as u64 > limit {
            return Err(Status::INTERNAL_FAILURE.into());
        }
        *request.body_mut() = Bytes::copy_from_slice(body);
        let timeout = call_time(timeout);
        proxy.open_calls += 1;
        let number = proxy.next_call();
        proxy.calls.push(Call { id: number, upstream, request, timeout });
        put_u32(memory, id, number)
    })
}

/// An upstream that the handler's configuration names.
pub fn granted(proxy: &ProxyState, name: &[u8]) -> Done<Name> {
    proxy.plugin.reach.granted(name).ok_or_else(|| Status::BAD_ARGUMENT.into())
}

/// Of the call that the guest is told of: an answer's HTTP status, or how a gRPC call ended; 0 elsewhere.
pub fn proxy_get_status(env: Env<'_>, code: i32, message: i32, size: i32) -> Result<i32, Halt> {
    call(env, |env| {
        let Parts { memory, proxy, .. } = parts(env)?;
        let (status, text) = match (&proxy.rpcs.told, &proxy.answer) {
            (Some(GrpcEvent::Closed(status)), _) => (status.code, status.message.clone()),
            (_, Some(CallAnswer { status: Some(status), .. })) => {
                (status.as_u16().into(), status.canonical_reason().unwrap_or_default().to_owned())
            }
            _ => (0, String::new()),
        };
        bytes(memory, message, 4)?;
        bytes(memory, size, 4)?;
        put_u32(memory, code, status)?;
        give(env, text.as_bytes(), message, size)
    })
}
