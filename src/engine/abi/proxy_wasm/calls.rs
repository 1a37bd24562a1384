//! Requests to upstreams. They leave when the callback that asked for them has come to its end.
//!
//! Invariant: a guest reaches upstreams that its handler grants by name, and has a bounded number of calls under way.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::HeaderMap;
use http::{Request, StatusCode};

use super::{Done, Env, Parts, ProxyState, Status, Stop, bytes, call, give, pairs, parts, put_u32};
use crate::domain::Name;
use crate::engine::abi::wire;
use crate::engine::budget::{Account, Reserved};
use crate::engine::failure::Halt;
use crate::engine::grpc::GrpcEvent;
use crate::engine::outside::call_time;

/// Of one handler at once for each VM that it may have, gRPC calls among them.
pub const MAX_OPEN: usize = 256;

/// Calls under way of one handler, whatever becomes of the VMs that made them.
pub struct Calls {
    open: AtomicUsize,
    most: usize,
    account: Arc<Account>,
}

/// A call's place among them, and its owner's memory for what it sends. Given back when it has ended.
pub struct Ticket {
    calls: Arc<Calls>,
    _memory: Reserved,
}

impl Calls {
    pub fn new(vms: usize, account: Arc<Account>) -> Arc<Calls> {
        Arc::new(Calls { open: AtomicUsize::new(0), most: MAX_OPEN * vms, account })
    }

    pub fn begin(self: &Arc<Self>, bytes: usize) -> Done<Ticket> {
        let full = || Stop::from(Status::INTERNAL_FAILURE);
        let memory = self.account.reserve(bytes as u64).ok_or_else(full)?;
        if self.open.fetch_add(1, Ordering::Relaxed) >= self.most {
            self.open.fetch_sub(1, Ordering::Relaxed);
            return Err(full());
        }
        Ok(Ticket { calls: self.clone(), _memory: memory })
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.calls.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A call that a guest asked for.
pub struct Call {
    pub id: u32,
    pub upstream: Name,
    pub request: Request<Bytes>,
    pub timeout: Duration,
    pub ticket: Ticket,
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
        let trailers = bytes(memory, trailers, trailers_len)?;
        bytes(memory, id, 4)?;
        fuel.spend(headers.len() + body.len() + trailers.len())?;
        // They are taken and not sent, as many upstreams would drop them.
        pairs::decode(trailers)?;
        let mut request = wire::request(&pairs::decode(headers)?, Bytes::new()).ok_or(Status::BAD_ARGUMENT)?;
        if body.len() as u64 > limit {
            return Err(Status::INTERNAL_FAILURE.into());
        }
        let ticket = proxy.plugin.calls.begin(headers.len() + body.len())?;
        *request.body_mut() = Bytes::copy_from_slice(body);
        let timeout = call_time(timeout);
        let number = proxy.next_call();
        proxy.calls.push(Call { id: number, upstream, request, timeout, ticket });
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
