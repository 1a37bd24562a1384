//! HTTP handlers with living VMs (http-wasm): what the gateway hands to a guest and gets back.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use parking_lot::Mutex;

use super::budget::{Account, Reserved};
use super::cancel::Cancel;
use super::guest::Allowance;
use super::lane::{self, INLINE_FUEL, Lane, took};
use super::outside::Reach;
use super::pool::Need;
use super::restarts::{self, Restarts};
use super::vms::{Handled, Leased, Turn, Vm, Vms};
use super::{Assets, Engine, LoadedModule, RunError};
use crate::domain::{GuestFailure, Limits, Meter, Name, OwnerId, Principal, Reply, Timestamp};

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
    /// Of the body as it came, where it was gathered.
    pub request_size: u64,
    /// The guest read the body without buffering it, so the upstream gets none (ABI section 3).
    pub request_body_consumed: bool,
    /// In REQ: what guests set ahead of time (merged with the upstream's answer: single-valued fields: the
    /// upstream's wins; others append). In RESP: the answer itself.
    pub response: http::response::Parts,
    /// The answer's head has gone on.
    pub response_passed: bool,
    /// Heads that have gone on, before a guest wrote into them.
    pub passed: Passed,
    /// A guest called `set_status_code` in REQ.
    pub response_status_set: bool,
    /// REQ: body bytes that precede the upstream's. RESP with `BUFFER_RESPONSE`: the answer's body.
    pub response_body: Option<Bytes>,
    /// RESP: a guest wrote the body anew.
    pub response_body_replaced: Option<Vec<u8>>,
    pub response_trailers: Option<HeaderMap>,
    /// The answer's head can't be changed any more.
    pub head_sent: bool,
    pub peer: SocketAddr,
    /// `http` or `https`, as the client came.
    pub scheme: &'static str,
    /// For log lines.
    pub request_id: Arc<str>,
    pub info: Option<Arc<RequestInfo>>,
    /// The endpoint that answers.
    pub upstream: Option<Arc<str>>,
    /// What handlers of the chain hand on.
    pub values: Values,
    /// Set when the client has gone.
    pub cancel: Cancel,
}

impl HttpExchange {
    /// Of a request that no handler has seen yet.
    pub fn new(request: http::request::Parts, peer: SocketAddr, request_id: Arc<str>) -> HttpExchange {
        HttpExchange {
            request,
            request_body: None,
            request_body_replaced: None,
            request_size: 0,
            request_body_consumed: false,
            response: http::Response::new(()).into_parts().0,
            response_passed: false,
            passed: Passed::default(),
            response_status_set: false,
            response_body: None,
            response_body_replaced: None,
            response_trailers: None,
            head_sent: false,
            peer,
            scheme: "http",
            request_id,
            info: None,
            upstream: None,
            values: BTreeMap::new(),
            cancel: Cancel::default(),
        }
    }

    /// The same request and answer, without bodies.
    pub fn twin(&self) -> Box<HttpExchange> {
        let request = self.passed.0.as_deref().unwrap_or(&self.request);
        Box::new(HttpExchange {
            request_size: self.request_size,
            response: self.passed.1.as_deref().unwrap_or(&self.response).clone(),
            response_passed: self.response_passed,
            response_status_set: self.response_status_set,
            head_sent: self.head_sent,
            scheme: self.scheme,
            info: self.info.clone(),
            upstream: self.upstream.clone(),
            values: self.values.clone(),
            cancel: self.cancel.clone(),
            // A body is its filter's own.
            ..HttpExchange::new(request.clone(), self.peer, self.request_id.clone())
        })
    }

    /// Before a guest writes into the request's head, which has gone on.
    pub fn keep_request(&mut self) {
        let Passed(kept, _) = &mut self.passed;
        kept.get_or_insert_with(|| Box::new(self.request.clone()));
    }

    /// Before a guest writes into the answer's head.
    pub fn keep_response(&mut self) {
        let Passed(_, kept) = &mut self.passed;
        if self.response_passed {
            kept.get_or_insert_with(|| Box::new(self.response.clone()));
        }
    }

    /// After a guest: heads that have gone on are as they were.
    pub fn restore_passed(&mut self) {
        let Passed(request, response) = std::mem::take(&mut self.passed);
        if let Some(head) = request {
            self.request = *head;
        }
        if let Some(head) = response {
            self.response = *head;
        }
    }

    /// The body of one direction as guests have left it.
    pub fn take_body(&mut self, of_request: bool) -> Bytes {
        let (written, given) = match of_request {
            true => (self.request_body_replaced.take(), self.request_body.take()),
            false => (self.response_body_replaced.take(), self.response_body.take()),
        };
        written.map(Bytes::from).or(given).unwrap_or_default()
    }

    pub fn body_len(&self, of_request: bool) -> usize {
        let (written, given) = match of_request {
            true => (&self.request_body_replaced, &self.request_body),
            false => (&self.response_body_replaced, &self.response_body),
        };
        written.as_ref().map(Vec::len).or(given.as_ref().map(Bytes::len)).unwrap_or(0)
    }

    /// In place of what there was.
    pub fn set_body(&mut self, of_request: bool, body: Bytes) {
        match of_request {
            true => (self.request_body, self.request_body_replaced) = (Some(body), None),
            false => (self.response_body, self.response_body_replaced) = (Some(body), None),
        }
    }

    /// What has come behind it.
    pub fn append(&mut self, of_request: bool, more: Bytes) {
        let before = self.take_body(of_request);
        let all = if before.is_empty() {
            more
        } else {
            let mut all = before.try_into_mut().unwrap_or_else(|shared| BytesMut::from(&shared[..]));
            all.extend_from_slice(&more);
            all.freeze()
        };
        self.set_body(of_request, all);
    }
}

#[derive(Debug, Default)]
pub struct Passed(Option<Box<http::request::Parts>>, Option<Box<http::response::Parts>>);

/// What handlers of a request hand on to later ones.
pub type Values = BTreeMap<Vec<u8>, Bytes>;

/// Of one request.
const MAX_VALUES: usize = 64;
/// Of one name and its value.
const MAX_VALUE_BYTES: usize = 64 << 10;

/// Whether there was room.
pub fn hand_on(values: &mut Values, name: &[u8], value: &[u8]) -> bool {
    let fits = name.len() + value.len() <= MAX_VALUE_BYTES;
    let fits = fits && (values.len() < MAX_VALUES || values.contains_key(name));
    if fits {
        values.insert(name.to_vec(), Bytes::copy_from_slice(value));
    }
    fits
}

/// What handlers may know of a request beside its head. The same for all of a chain.
#[derive(Debug)]
pub struct RequestInfo {
    /// For log lines.
    pub request_id: Arc<str>,
    /// `None` in an execution.
    pub route: Option<Name>,
    /// When its head was there.
    pub began: Instant,
    pub wall: Timestamp,
    /// Where the client connected to.
    pub local: Option<SocketAddr>,
    /// The other end of the connection; `None` in an execution.
    pub peer: Option<SocketAddr>,
    pub tls: Option<TlsInfo>,
    pub principal: Option<Principal>,
    /// Parameters of the route's path, in its order.
    pub params: Vec<(String, String)>,
}

impl RequestInfo {
    /// Of a run that no route has to do with.
    pub fn of_execution(principal: Option<Principal>) -> RequestInfo {
        RequestInfo {
            request_id: "".into(),
            route: None,
            began: Instant::now(),
            wall: Timestamp::now(),
            local: None,
            peer: None,
            tls: None,
            principal,
            params: Vec::new(),
        }
    }

    /// One number a connection: both ends of one are its alone while it lives. Guests read a signed number.
    pub fn connection(&self) -> u64 {
        static CONNECTIONS: LazyLock<RandomState> = LazyLock::new(RandomState::new);
        self.peer.map_or(0, |peer| CONNECTIONS.hash_one((peer, self.local)) >> 1)
    }

    /// By name: `key_id`, `owner`, `tier`, `route`, `params.NAME`.
    pub fn field(&self, name: &[u8]) -> Option<&str> {
        let principal = self.principal.as_ref();
        match name {
            b"route" => Some(self.route.as_ref()?.as_str()),
            b"key_id" => Some(principal?.key_id()?.as_str()),
            b"owner" => Some(principal?.owner()?.as_str()),
            b"tier" => Some(principal?.tier.name.as_str()),
            _ => {
                let name = name.strip_prefix(b"params.")?;
                let found = self.params.iter().find(|(known, _)| known.as_bytes() == name);
                found.map(|(_, value)| value.as_str())
            }
        }
    }
}

#[derive(Debug)]
pub struct TlsInfo {
    pub version: String,
    pub server_name: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Continue,
    Respond(Reply),
    /// The stream ends here, without an answer.
    Close,
}

/// What a phase gave back. On an error the exchange is as it was handed in, where the handler's policy may go on.
pub struct HttpOutcome {
    pub exchange: Box<HttpExchange>,
    pub result: Result<Verdict, RunError>,
    pub meter: Meter,
    /// After REQ with `Continue`: the VM that must also see the response.
    pub vm: Option<PinnedVm>,
}

/// A response phase can't be run again, since its guest holds the request's state. It gets more, once per row of short
/// runs, so that only a guest that is far from its own past loses the request.
const INLINE_RESPONSE_FUEL: u64 = 4 * INLINE_FUEL;

impl HttpOutcome {
    fn failed(exchange: Box<HttpExchange>, error: RunError, meter: Meter) -> HttpOutcome {
        HttpOutcome { exchange, result: Err(error), meter, vm: None }
    }
}

/// A handler of http-wasm guests: its module, configuration and pool of living VMs, keyed by owner, handler and
/// configuration by being one object per handler of a route.
pub struct HttpHandler {
    engine: Arc<Engine>,
    module: Arc<LoadedModule>,
    reads_body: bool,
    assets: Option<Assets>,
    owner: OwnerId,
    account: Arc<Account>,
    reach: Arc<Reach>,
    limits: Limits,
    vms: Vms,
    requests: Lane,
    responses: Lane,
    restarts: Mutex<Restarts>,
}

/// A VM between its two phases. Dropping it without `response` discards the VM.
pub struct PinnedVm {
    handler: Arc<HttpHandler>,
    leased: Leased,
    context: i32,
    features: Features,
}

impl HttpHandler {
    pub fn new(
        engine: &Arc<Engine>,
        module: Arc<LoadedModule>,
        assets: Option<Assets>,
        label: Arc<str>,
        handler: &crate::config::Handler,
        limits: Limits,
    ) -> Arc<HttpHandler> {
        Arc::new(HttpHandler {
            engine: engine.clone(),
            reads_body: module.shape().imports_function("http_handler", "read_body"),
            module,
            assets,
            owner: handler.owner.clone(),
            account: engine.account(&handler.owner),
            reach: engine.reach_of(label, handler, limits.input_bytes),
            vms: Vms::new(engine.clone(), &limits),
            limits,
            requests: Lane::new(),
            responses: Lane::new(),
            restarts: Mutex::default(),
        })
    }

    /// The module may read the request body, so the gateway gathers it first (it imports `read_body`).
    pub fn wants_request_body(&self) -> bool {
        self.reads_body
    }

    /// Starts one VM ahead of the first request, so that a module that refuses its configuration says so at once.
    pub async fn warm(self: &Arc<Self>) -> Result<(), RunError> {
        let permit = self.vms.permit().await?;
        let handler = self.clone();
        let start = move |memory| (handler.start_vm(memory), permit);
        let started = self.engine.pool().run(&self.owner, &Cancel::default(), self.need(false), start).await;
        let (vm, permit) = started?;
        self.vms.give_back(Leased { vm: vm?, permit }, &self.module);
        Ok(())
    }

    /// The request phase at once on this thread, where its past says that it is short; else the exchange comes back, for
    /// [`Self::request`].
    pub fn request_now(self: &Arc<Self>, exchange: Box<HttpExchange>) -> Result<HttpOutcome, Box<HttpExchange>> {
        if !self.requests.is_inline() || self.module.needs_pool() {
            return Err(exchange);
        }
        let Some(permit) = self.vms.permit_now() else { return Err(exchange) };
        let Some(vm) = self.vms.take(&permit) else { return Err(exchange) };
        let mut leased = Leased { vm, permit };
        let turn = self.turn(Some(INLINE_FUEL), &exchange);
        let mut exchange = Some(exchange);
        let (result, meter) = leased.vm.request(&mut exchange, &turn);
        let exchange = given_back(exchange);
        if matches!(&result, Err(failure) if lane::overran(failure, &self.limits)) {
            // The run on the pool is the run: what this try used is not charged.
            self.requests.overran();
            return Err(exchange);
        }
        self.requests.record(took(&meter));
        Ok(self.settle_request(exchange, leased, result, meter))
    }

    /// The request phase on a guest thread.
    pub async fn request(self: &Arc<Self>, exchange: Box<HttpExchange>) -> HttpOutcome {
        let permit = match self.vms.permit().await {
            Ok(permit) => permit,
            Err(busy) => return HttpOutcome::failed(exchange, busy, Meter::default()),
        };
        let vm = self.vms.take(&permit);
        let need = self.need(vm.is_some());
        self.on_pool(exchange, (vm, permit), need, |handler, exchange, (vm, permit), memory| {
            let mut vm = match vm.map_or_else(|| handler.start_vm(memory), Ok) {
                Ok(vm) => vm,
                Err(failure) => return HttpOutcome::failed(exchange, failure, Meter::default()),
            };
            let turn = handler.turn(None, &exchange);
            let mut exchange = Some(exchange);
            let (result, meter) = vm.request(&mut exchange, &turn);
            handler.requests.record(took(&meter));
            handler.settle_request(given_back(exchange), Leased { vm, permit }, result, meter)
        })
        .await
    }

    fn settle_request(
        self: &Arc<Self>,
        exchange: Box<HttpExchange>,
        mut leased: Leased,
        result: Result<Handled, GuestFailure>,
        meter: Meter,
    ) -> HttpOutcome {
        match result {
            Ok(Handled { verdict: Verdict::Continue, context }) => {
                let features = leased.vm.features();
                let pinned = PinnedVm { handler: self.clone(), leased, context, features };
                HttpOutcome { exchange, result: Ok(Verdict::Continue), meter, vm: Some(pinned) }
            }
            Ok(Handled { verdict, .. }) => {
                self.vms.give_back(leased, &self.module);
                HttpOutcome { exchange, result: Ok(verdict), meter, vm: None }
            }
            Err(failure) => {
                leased.vm.print(&exchange.request_id, &self.reach.log);
                HttpOutcome::failed(exchange, failure.into(), meter)
            }
        }
    }

    /// On a guest thread; a failure hands the exchange back when no thread takes it in time.
    async fn on_pool<T: Send + 'static>(
        self: &Arc<Self>,
        exchange: Box<HttpExchange>,
        with: T,
        need: Need,
        run: impl FnOnce(&Arc<HttpHandler>, Box<HttpExchange>, T, Reserved) -> HttpOutcome + Send + 'static,
    ) -> HttpOutcome {
        let (cancel, handler) = (exchange.cancel.clone(), self.clone());
        let job = move |(exchange, with), memory| run(&handler, exchange, with, memory);
        match self.engine.pool().run_with(&self.owner, &cancel, need, (exchange, with), job).await {
            Ok(outcome) => outcome,
            Err(((exchange, _), busy)) => HttpOutcome::failed(exchange, busy.into(), Meter::default()),
        }
    }

    /// A VM that lives has its memory; one that is to start needs some.
    fn need(&self, lives: bool) -> Need {
        match lives {
            true => Need::nothing(&self.account),
            false => self.engine.need(&self.module, &self.account, &self.limits),
        }
    }

    fn start_vm(&self, memory: Reserved) -> Result<Box<Vm>, RunError> {
        restarts::start(&self.restarts, || {
            Vm::start(&self.module, &self.limits, memory, &self.reach, self.assets.clone())
        })
    }

    /// A phase's limits from now on: on a guest thread, or inline with so much fuel.
    fn turn(&self, inline: Option<u64>, exchange: &HttpExchange) -> Turn<'_> {
        let limits = inline.map_or_else(|| self.limits.clone(), |fuel| lane::inline(&self.limits, fuel));
        let allowance = Allowance::from_now(limits, exchange.cancel.clone());
        Turn { allowance, may_block: inline.is_none(), log: &self.reach.log }
    }
}

impl PinnedVm {
    /// Module default and what this request enabled.
    pub fn features(&self) -> Features {
        self.features
    }

    /// `handle_response` at once on this thread, where its past says that it is short; else what was given comes back, for
    /// [`Self::response`]. `is_error`: the upstream failed.
    pub fn response_now(
        self,
        exchange: Box<HttpExchange>,
        is_error: bool,
    ) -> Result<HttpOutcome, (PinnedVm, Box<HttpExchange>)> {
        // How long a guest takes for a body depends on the body: the past says nothing.
        let is_short = self.handler.responses.is_inline() && !self.handler.module.needs_pool();
        if !is_short || self.features.has(Features::BUFFER_RESPONSE) {
            return Err((self, exchange));
        }
        let PinnedVm { handler, leased, context, .. } = self;
        Ok(handler.run_response(exchange, leased, (context, is_error), Some(INLINE_RESPONSE_FUEL)))
    }

    /// `handle_response` on a guest thread.
    pub async fn response(self, exchange: Box<HttpExchange>, is_error: bool) -> HttpOutcome {
        let PinnedVm { handler, leased, context, .. } = self;
        let call = (context, is_error);
        let run =
            move |handler: &Arc<HttpHandler>, exchange, leased, _| handler.run_response(exchange, leased, call, None);
        handler.on_pool(exchange, leased, handler.need(true), run).await
    }
}

impl HttpHandler {
    fn run_response(
        &self,
        exchange: Box<HttpExchange>,
        mut leased: Leased,
        call: (i32, bool),
        inline: Option<u64>,
    ) -> HttpOutcome {
        let turn = self.turn(inline, &exchange);
        let mut exchange = Some(exchange);
        let (result, meter) = leased.vm.response(&mut exchange, call, &turn);
        let exchange = given_back(exchange);
        match result {
            Ok(()) => {
                self.responses.record(took(&meter));
                self.vms.give_back(leased, &self.module);
                HttpOutcome { exchange, result: Ok(Verdict::Continue), meter, vm: None }
            }
            Err(failure) => {
                self.responses.overran();
                // The lane's fuel stood for time.
                let of_lane = inline.is_some_and(|fuel| self.limits.fuel > fuel);
                let failure = match failure {
                    GuestFailure::OutOfFuel if of_lane => GuestFailure::Deadline,
                    failure => failure,
                };
                leased.vm.print(&exchange.request_id, &self.reach.log);
                HttpOutcome::failed(exchange, failure.into(), meter)
            }
        }
    }
}

const _: () = {
    const fn travels_and_is_shared<T: Send + Sync>() {}
    travels_and_is_shared::<PinnedVm>();
    travels_and_is_shared::<HttpHandler>();
};

fn given_back(exchange: Option<Box<HttpExchange>>) -> Box<HttpExchange> {
    exchange.expect("a phase gives back the exchange that it was lent")
}
