//! HTTP handlers with living VMs (http-wasm): what the gateway hands to a guest and gets back.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;

use super::{Engine, LoadedModule};
use crate::domain::{Meter, Reply};

/// `enable_features` bits of the http-wasm ABI, section 2.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features(pub u32);

impl Features {
    pub const BUFFER_REQUEST: Features = Features(1);
    pub const BUFFER_RESPONSE: Features = Features(2);
    pub const TRAILERS: Features = Features(4);

    pub fn has(self, other: Features) -> bool {
        self.0 & other.0 == other.0
    }
}

/// A request and its answer as handlers see and edit them. Owned, so that it can travel to a guest thread and back;
/// `http` parts convert to and from Pingora's headers by move.
#[derive(Debug)]
pub struct HttpExchange {
    /// Method, URI (path and query exactly as sent), version, headers. Credentials are already taken out.
    pub request: http::request::Parts,
    /// `Some` when the gateway gathered the body.
    pub request_body: Option<Bytes>,
    /// Body written by a guest in place of the client's; the gateway fixes the framing headers.
    pub request_body_replaced: Option<Vec<u8>>,
    /// The guest read the body without buffering it, so the upstream gets none (ABI section 3).
    pub request_body_consumed: bool,
    /// In REQ: what guests set ahead of time (merged with the upstream's answer: single-valued fields: the
    /// upstream's wins; others append). In RESP: the answer itself.
    pub response: http::response::Parts,
    /// A guest called `set_status_code` in REQ.
    pub response_status_set: bool,
    /// REQ: body bytes that precede the upstream's. RESP with `BUFFER_RESPONSE`: the answer's body.
    pub response_body: Option<Bytes>,
    /// RESP: a guest wrote the body anew.
    pub response_body_replaced: Option<Vec<u8>>,
    pub peer: SocketAddr,
    /// For log lines.
    pub request_id: Arc<str>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Continue,
    Respond(Reply),
}

/// What a phase gave back. On an error the exchange is as it was handed in, where the handler's policy may go on.
pub struct HttpOutcome {
    pub exchange: Box<HttpExchange>,
    pub result: Result<Verdict, super::RunError>,
    pub meter: Meter,
    /// After REQ with `Continue`: the VM that must also see the response.
    pub vm: Option<PinnedVm>,
}

/// A handler of http-wasm guests: its module, configuration and pool of living VMs, keyed by owner, handler and
/// configuration by being one object per handler of a route.
pub struct HttpHandler {}

/// A VM between its two phases. Dropping it without `response` discards the VM.
pub struct PinnedVm {}

impl PinnedVm {
    /// Module default and what this request enabled.
    pub fn features(&self) -> Features {
        unimplemented!()
    }

    /// `handle_response`. `is_error`: the upstream failed.
    pub async fn response(self, _exchange: Box<HttpExchange>, _is_error: bool) -> HttpOutcome {
        unimplemented!()
    }
}

impl HttpHandler {
    pub fn new(
        _engine: &Arc<Engine>,
        _module: Arc<LoadedModule>,
        _label: Arc<str>,
        _handler: &crate::config::Handler,
    ) -> Arc<HttpHandler> {
        unimplemented!()
    }

    /// The module may read the request body, so the gateway gathers it first (it imports `read_body`).
    pub fn wants_request_body(&self) -> bool {
        unimplemented!()
    }

    pub async fn request(self: &Arc<Self>, _exchange: Box<HttpExchange>) -> HttpOutcome {
        unimplemented!()
    }
}
