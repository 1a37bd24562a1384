//! gRPC calls: of one message each way, and streams. They leave when the callback that asked for them has come to its end.
//!
//! Invariant: a call that its guest has given up is unknown from then on, and nothing more is told of it. Where a call
//! can't begin, the status is one that SDKs survive: they know PARSE_FAILURE and INTERNAL_FAILURE there.

use std::collections::HashMap;

use http::header::{HOST, HeaderMap, HeaderName};
use http::uri::PathAndQuery;
use tokio::sync::mpsc;

use super::calls::{Ticket, granted};
use super::{Done, Env, Parts, ProxyState, Status, Stop, bytes, call, pairs, parts, put_u32};
use crate::engine::abi::wire::{self, Message};
use crate::engine::cancel::Cancel;
use crate::engine::failure::Halt;
use crate::engine::grpc::{GrpcCall, GrpcEvent, Outgoing, Queued};
use crate::engine::outside::call_time;

/// Messages of one call that wait to be sent.
const MAX_QUEUED: usize = 64;
/// Of a service or a method.
const NAME_BYTES: usize = 1 << 10;

/// What a VM keeps of its gRPC calls.
#[derive(Default)]
pub struct Rpcs {
    open: HashMap<u32, Rpc>,
    /// Since the callback began.
    pub begun: Vec<Begun>,
    /// What the guest is told of.
    pub told: Option<GrpcEvent>,
    queued: Queued,
}

/// A call under way. It ends with this.
struct Rpc {
    unary: bool,
    /// `None`: the guest has ended its side.
    messages: Option<mpsc::Sender<Outgoing>>,
    gone: Cancel,
}

impl Drop for Rpc {
    fn drop(&mut self) {
        self.gone.cancel();
    }
}

/// A call that a guest asked for.
pub struct Begun {
    pub id: u32,
    /// One message each way.
    pub unary: bool,
    pub call: GrpcCall,
    pub events: mpsc::Receiver<GrpcEvent>,
    pub ticket: Ticket,
}

impl Rpcs {
    pub fn has(&self, id: u32) -> bool {
        self.open.contains_key(&id)
    }

    /// The event is shown to the guest, unless it has given the call up. The last one ends it.
    pub fn tell(&mut self, id: u32, event: GrpcEvent) -> bool {
        let is_known = match &event {
            GrpcEvent::Closed(_) => self.open.remove(&id).is_some(),
            GrpcEvent::Message(_) if self.open.get(&id).is_some_and(|rpc| rpc.unary) => {
                self.open.remove(&id);
                true
            }
            _ => self.has(id),
        };
        self.told = is_known.then_some(event);
        is_known
    }

    fn find(&mut self, id: i32) -> Done<&mut Rpc> {
        // One whose events were lost has nobody who would end it.
        self.open.get_mut(&(id as u32)).filter(|rpc| !rpc.gone.is_cancelled()).ok_or(Status::NOT_FOUND.into())
    }
}

/// What the guest says of a call: upstream, service, method, metadata.
struct Asked {
    upstream: (i32, i32),
    service: (i32, i32),
    method: (i32, i32),
    metadata: (i32, i32),
    /// Of a unary call: its message and how long it may take.
    unary: Option<((i32, i32), i32)>,
    id: i32,
}

fn begin(mut env: Env<'_>, asked: Asked) -> Result<i32, Halt> {
    let limit = env.data_mut().output.limit;
    call(env, |env| {
        let Parts { memory, fuel, proxy } = parts(env)?;
        let read = |(at, len)| bytes(memory, at, len);
        let (name, service, method) = (read(asked.upstream)?, read(asked.service)?, read(asked.method)?);
        let given = read(asked.metadata)?;
        let message = asked.unary.map(|(message, _)| read(message)).transpose()?;
        read((asked.id, 4))?;
        fuel.spend(service.len() + method.len() + given.len() + message.map_or(0, <[u8]>::len))?;
        let upstream = granted(proxy, name).map_err(unparsed)?;
        let path = path(service, method)?;
        let metadata = metadata(given, asked.unary.is_some())?;
        proxy.rpcs.open.retain(|_, rpc| !rpc.gone.is_cancelled());
        let ticket = proxy.plugin.calls.begin(given.len())?;
        let (sender, messages) = mpsc::channel(MAX_QUEUED);
        if let Some(message) = message {
            let message = proxy.rpcs.queued.message(message, limit).ok_or(Status::INTERNAL_FAILURE)?;
            sender.try_send(message).map_err(|_| Status::INTERNAL_FAILURE)?;
        }
        let timeout = asked.unary.map(|(_, timeout)| call_time(timeout));
        let (tell, events) = mpsc::channel(1);
        let gone = Cancel::default();
        let id = proxy.next_call();
        let unary = asked.unary.is_some();
        let call = GrpcCall { upstream, path, metadata, timeout, messages, events: tell, gone: gone.clone(), limit };
        proxy.rpcs.begun.push(Begun { id, unary, call, events, ticket });
        proxy.rpcs.open.insert(id, Rpc { unary, messages: (!unary).then_some(sender), gone });
        put_u32(memory, asked.id, id)
    })
}

/// SDKs survive no other error about what they said.
fn unparsed(stop: Stop) -> Stop {
    match stop {
        Stop::Status(Status::BAD_ARGUMENT) => Stop::Status(Status::PARSE_FAILURE),
        stop => stop,
    }
}

fn path(service: &[u8], method: &[u8]) -> Done<PathAndQuery> {
    let is_name = |name: &[u8]| {
        !name.is_empty() && name.len() <= NAME_BYTES && name.iter().all(|b| b.is_ascii_graphic() && !b"/?#".contains(b))
    };
    let valid = is_name(service) && is_name(method);
    let path = valid.then(|| [b"/", service, b"/", method].concat());
    path.and_then(|path| wire::target(&path)).ok_or(Status::PARSE_FAILURE.into())
}

/// The guest's own fields: those of the protocol are the gateway's.
fn metadata(given: &[u8], unary: bool) -> Done<HeaderMap> {
    let bad = Status::PARSE_FAILURE;
    let given = wire::fields(&pairs::decode(given).map_err(unparsed)?, Message::Request).ok_or(bad)?;
    let is_protocols = |name: &HeaderName| match name.as_str() {
        "content-type" | "grpc-encoding" | "grpc-accept-encoding" => true,
        "grpc-timeout" => unary,
        _ => *name == HOST,
    };
    let mut fields = HeaderMap::with_capacity(given.len());
    for (name, value) in given.into_iter().filter(|(name, _)| !is_protocols(name)) {
        fields.try_append(name, value).map_err(|_| bad)?;
    }
    Ok(fields)
}

#[expect(clippy::too_many_arguments, reason = "the ABI's")]
pub fn proxy_grpc_call(
    env: Env<'_>,
    upstream: i32,
    upstream_len: i32,
    service: i32,
    service_len: i32,
    method: i32,
    method_len: i32,
    metadata: i32,
    metadata_len: i32,
    message: i32,
    message_len: i32,
    timeout: i32,
    id: i32,
) -> Result<i32, Halt> {
    let asked = Asked {
        upstream: (upstream, upstream_len),
        service: (service, service_len),
        method: (method, method_len),
        metadata: (metadata, metadata_len),
        unary: Some(((message, message_len), timeout)),
        id,
    };
    begin(env, asked)
}

#[expect(clippy::too_many_arguments, reason = "the ABI's")]
pub fn proxy_grpc_stream(
    env: Env<'_>,
    upstream: i32,
    upstream_len: i32,
    service: i32,
    service_len: i32,
    method: i32,
    method_len: i32,
    metadata: i32,
    metadata_len: i32,
    id: i32,
) -> Result<i32, Halt> {
    let asked = Asked {
        upstream: (upstream, upstream_len),
        service: (service, service_len),
        method: (method, method_len),
        metadata: (metadata, metadata_len),
        unary: None,
        id,
    };
    begin(env, asked)
}

/// BAD_ARGUMENT: there is no room for it now.
pub fn proxy_grpc_send(mut env: Env<'_>, id: i32, message: i32, len: i32, end: i32) -> Result<i32, Halt> {
    let limit = env.data_mut().output.limit;
    call(env, |env| {
        let Parts { memory, fuel, proxy } = parts(env)?;
        let message = bytes(memory, message, len)?;
        let queued = proxy.rpcs.queued.clone();
        let sender = &mut proxy.rpcs.find(id)?.messages;
        let open = sender.as_ref().ok_or(Status::NOT_FOUND)?;
        fuel.spend(message.len())?;
        let message = queued.message(message, limit).ok_or(Status::BAD_ARGUMENT)?;
        open.try_send(message).map_err(|_| Status::BAD_ARGUMENT)?;
        if end != 0 {
            *sender = None;
        }
        Ok(())
    })
}

pub fn proxy_grpc_cancel(env: Env<'_>, id: i32) -> Result<i32, Halt> {
    call(env, |env| give_up(parts(env)?.proxy, id))
}

/// Of a stream: the guest's side ends behind what it has sent, and the answer is still told. Of a unary call, whose side
/// has ended: as to cancel it.
pub fn proxy_grpc_close(env: Env<'_>, id: i32) -> Result<i32, Halt> {
    call(env, |env| {
        let proxy = parts(env)?.proxy;
        let rpc = proxy.rpcs.find(id)?;
        if rpc.unary {
            return give_up(proxy, id);
        }
        rpc.messages.take().map(drop).ok_or(Status::NOT_FOUND.into())
    })
}

fn give_up(proxy: &mut ProxyState, id: i32) -> Done {
    proxy.rpcs.find(id)?;
    proxy.rpcs.open.remove(&(id as u32));
    Ok(())
}
