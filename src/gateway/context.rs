//! What the gateway knows of one request, from its head to its log line.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, Method, Uri};
use pingora::proxy::Session;

use super::handlers::{BodyFilters, Chain, Closing};
use super::identity::Trace;
use super::snapshot::{RouteState, Snapshot};
use super::upstream::{Endpoint, Lease, Tried, Upstream};
use crate::config::{self, HashOn};
use crate::domain::{Meter, Principal, Rejection};
use crate::engine::{HttpExchange, RequestInfo, TlsInfo, Values};
use crate::limit::limiter::{InFlight, Now};

pub struct Context {
    pub start: Now,
    pub snapshot: Arc<Snapshot>,
    pub(super) route: Option<Arc<RouteState>>,
    pub request_id: HeaderValue,
    pub trace: Trace,
    /// Of the connection.
    pub peer: SocketAddr,
    /// Behind trusted proxies.
    pub client: IpAddr,
    pub peer_is_trusted: bool,
    /// As the client sent them; handlers and rewrites change the request, not these.
    pub method: Method,
    pub uri: Uri,
    /// `Host` or `:authority`.
    pub host: Option<HeaderValue>,
    /// The connection is encrypted.
    pub tls: bool,
    pub principal: Option<Principal>,
    /// `RateLimit-Policy` and `RateLimit`, until the answer's head has them.
    pub rate: Option<(HeaderValue, HeaderValue)>,
    /// Given back with the context, after the answer.
    pub in_flight: Option<InFlight>,
    /// `Allow` of a 405.
    pub allow: Option<HeaderValue>,
    /// A WebSocket handshake.
    pub upgrade: bool,
    /// Request body bytes that went upstream as they came.
    pub streamed: u64,
    /// Interim answers of the upstream so far, where the answer streams through Pingora's proxy.
    pub interim: usize,
    /// The answer has no body, whatever the upstream sends.
    pub bodiless: bool,
    pub(super) chain: Option<Chain>,
    pub(super) closing: Closing,
    /// Those that see the answer's body as it comes, in their order.
    pub(super) body_filters: BodyFilters,
    /// What they share of it, while none of them runs: with the answer's head, without the request's.
    pub(super) lent: Option<Box<HttpExchange>>,
    /// Of the route's path, for handlers.
    pub params: Vec<(String, String)>,
    /// What handlers may know of the request, once one of them asks.
    info: Option<Arc<RequestInfo>>,
    /// What handlers hand on, while none of them runs.
    pub values: Values,
    /// Bytes of handlers that precede the streamed body of the upstream's answer.
    pub before_body: Bytes,
    pub(super) lease: Option<Lease>,
    pub(super) tried: Tried,
    pub attempts: u32,
    /// The endpoint that answered, for the log.
    pub(super) endpoint: Option<Arc<Endpoint>>,
    pub guests: GuestUse,
    /// What the client was refused with.
    pub refused: Option<Rejection>,
    pub(super) logged: bool,
}

/// What guests of this request used.
#[derive(Default)]
pub struct GuestUse {
    pub runs: u64,
    pub meter: Meter,
    /// `ok`, or the last failure's slug.
    pub outcome: Option<&'static str>,
}

impl Context {
    pub fn new(snapshot: Arc<Snapshot>, start: Now, request_id: HeaderValue) -> Self {
        let unknown = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        Self {
            start,
            snapshot,
            route: None,
            request_id,
            trace: Trace { id: [b'0'; 32], flags: *b"00" },
            peer: SocketAddr::new(unknown, 0),
            client: unknown,
            peer_is_trusted: false,
            method: Method::GET,
            uri: Uri::default(),
            host: None,
            tls: false,
            principal: None,
            rate: None,
            in_flight: None,
            allow: None,
            upgrade: false,
            streamed: 0,
            interim: 0,
            bodiless: false,
            chain: None,
            closing: Closing::new(),
            body_filters: BodyFilters::new(),
            lent: None,
            params: Vec::new(),
            info: None,
            values: Values::new(),
            before_body: Bytes::new(),
            lease: None,
            tried: Tried::default(),
            attempts: 0,
            endpoint: None,
            guests: GuestUse::default(),
            refused: None,
            logged: false,
        }
    }

    pub fn request_id(&self) -> &str {
        self.request_id.to_str().unwrap_or_default()
    }

    /// What handlers may know of the request beside its head.
    pub fn info(&mut self, session: &Session, request_id: &Arc<str>) -> Arc<RequestInfo> {
        if let Some(info) = &self.info {
            return info.clone();
        }
        let local = session.server_addr().and_then(|address| address.as_inet()).copied();
        let tls = session.digest().and_then(|digest| digest.ssl_digest.as_ref());
        let info = Arc::new(RequestInfo {
            request_id: request_id.clone(),
            route: self.route().map(|route| route.name.clone()),
            began: self.start.mono,
            wall: self.start.wall,
            local,
            peer: Some(self.peer),
            tls: tls.map(|tls| TlsInfo { version: tls.version.to_string(), server_name: None }),
            principal: self.principal.clone(),
            params: self.params.clone(),
        });
        self.info.insert(info).clone()
    }

    /// The configuration of the route that took the request.
    pub fn route(&self) -> Option<&config::Route> {
        self.route.as_ref().map(|state| &self.snapshot.config.routes[state.index])
    }

    /// Gives back what this request holds of others' limits: its place among the caller's requests, and its share of
    /// the endpoint's load. Called before the client can see its answer's end, so that a next request finds both free.
    pub fn release(&mut self) {
        self.in_flight = None;
        self.lease = None;
    }

    /// Chooses the endpoint of the next attempt.
    pub(super) fn pick(&mut self, session: &Session, upstream: &Upstream) -> Result<&Lease, Rejection> {
        let address;
        let head = session.req_header();
        let key: &[u8] = match upstream.hash_on() {
            None => &[],
            Some(HashOn::ClientAddress) => {
                address = match self.client {
                    IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
                    IpAddr::V6(v6) => v6.octets(),
                };
                &address
            }
            Some(HashOn::Header(name)) => head.headers.get(name).map_or(&[], |v| v.as_bytes()),
            Some(HashOn::Path) => head.uri.path().as_bytes(),
        };
        let now = if self.attempts == 0 { self.start.mono } else { std::time::Instant::now() };
        let lease = upstream.pick(key, self.tried, now).ok_or(Rejection::UpstreamUnavailable)?;
        self.tried.add(lease.index);
        self.attempts += 1;
        Ok(self.lease.insert(lease))
    }
}
