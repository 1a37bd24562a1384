//! The http-wasm handlers of a route: the request phase in order, the response phase in reverse, and what is kept
//! between the two.
//!
//! Invariant: a handler that let a request pass gets its response phase, whatever became of the request (ABI section
//! 1), unless its VM failed or the client is gone.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::HeaderMap;
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use parking_lot::Mutex;
use pingora::Result;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::proxy::Session;
use tokio::sync::OnceCell;

use super::answer;
use super::body;
use super::breaker::{Breaker, Caller, is_crash};
use super::context::Context;
use super::forward;
use super::merge::merge_pending;
use super::pipeline::Stop;
use super::presence::while_here;
use super::service::Shared;
use super::snapshot::{Resolved, Snapshot};
use crate::config::{self, HandlerFail};
use crate::domain::{Abi, GuestFailure, Limits, Meter, ModuleVersion, Name, Phase, Principal, Rejection, Reply};
use crate::engine::{
    Assets, Cancel, Engine, Features, HttpExchange, HttpHandler, HttpOutcome, LoadedModule, PinnedVm, RunError, Verdict,
};
use crate::limit::network;
use crate::telemetry::{Metrics, ModuleMetrics};

/// A handler on a route, or the module that answers one. Its VMs live as long as it does.
pub struct RouteHandler {
    pub config: config::Handler,
    version: Option<ModuleVersion>,
    /// The route's under the module's own.
    pub limits: Limits,
    /// `owner/name@version`; of what is not stored, as the configuration names it.
    pub label: Arc<str>,
    pub breaker: Arc<Breaker>,
    metrics: OnceLock<Arc<ModuleMetrics>>,
    module: OnceCell<Arc<LoadedModule>>,
    assets: OnceCell<Assets>,
    http: OnceCell<Arc<HttpHandler>>,
}

impl RouteHandler {
    /// `breakers`: those of module versions in use, by label.
    pub fn new(
        config: config::Handler,
        resolved: Option<Resolved>,
        breakers: &mut HashMap<Arc<str>, Arc<Breaker>>,
    ) -> Self {
        let limits = limits(&config, resolved.as_ref());
        let version = resolved.map(|r| r.version);
        let label: Arc<str> = match &version {
            Some(version) => format!("{}/{}@{}", config.owner, config.module.name, version.version).into(),
            None => config.reference().to_string().into(),
        };
        // What is not stored has no breaker to pass on to the version that will be.
        let breaker = match &version {
            Some(_) => breakers.entry(label.clone()).or_default().clone(),
            None => Arc::default(),
        };
        Self {
            config,
            version,
            limits,
            label,
            breaker,
            metrics: OnceLock::new(),
            module: OnceCell::new(),
            assets: OnceCell::new(),
            http: OnceCell::new(),
        }
    }

    /// Refuses at once while its module does nothing but fail.
    pub fn admit(&self, ctx: &Context) -> Result<(), Rejection> {
        let admitted = self.breaker.admit(Instant::now(), || caller(ctx));
        admitted.map_err(|retry_after| Rejection::HandlerUnavailable { retry_after })
    }

    pub fn is_same(&self, config: &config::Handler, resolved: Option<&Resolved>) -> bool {
        self.config == *config
            && self.version.as_ref().map(ModuleVersion::identity) == resolved.map(|r| r.version.identity())
            && self.limits == limits(config, resolved)
    }

    pub fn version(&self) -> Option<&ModuleVersion> {
        self.version.as_ref()
    }

    fn metrics(&self, metrics: &Metrics) -> Option<&ModuleMetrics> {
        let abi = self.version.as_ref()?.abi;
        Some(self.metrics.get_or_init(|| metrics.module(&self.label, abi)))
    }

    /// Loaded by the first request that needs it; further ones wait for the same load.
    pub async fn module(&self, engine: &Arc<Engine>) -> Result<&Arc<LoadedModule>, RunError> {
        let version = self.version.as_ref().ok_or_else(|| {
            RunError::Guest(GuestFailure::NotLoadable(format!("`{}` is not stored", self.config.module)))
        })?;
        self.module
            .get_or_try_init(|| engine.load(Some(&self.config.owner), version.digest, version.abi, &version.shape))
            .await
    }

    /// Its files, as [`RouteHandler::module`].
    pub async fn assets(&self, engine: &Arc<Engine>) -> Result<Option<&Assets>, RunError> {
        let Some(bundle) = self.version.as_ref().and_then(|version| version.assets.as_ref()) else { return Ok(None) };
        let load = || async { engine.assets(bundle).await.map_err(RunError::Guest) };
        self.assets.get_or_try_init(load).await.map(Some)
    }

    pub async fn http(&self, engine: &Arc<Engine>) -> Result<&Arc<HttpHandler>, RunError> {
        let module = self.module(engine).await?.clone();
        let assets = self.assets(engine).await?.cloned();
        let make = || HttpHandler::new(engine, module, assets, self.label.clone(), &self.config, self.limits.clone());
        Ok(self.http.get_or_init(|| async { make() }).await)
    }
}

fn limits(config: &config::Handler, resolved: Option<&Resolved>) -> Limits {
    let route = config.limits();
    resolved.map_or(route.clone(), |r| r.limits.lower(&route))
}

/// A handler that can't start.
#[derive(Clone, Debug)]
pub struct Cold {
    pub route: Name,
    /// `owner/name@version`.
    pub module: Arc<str>,
    pub reason: String,
}

/// How long the handlers of a snapshot may take to start; the rest are started by the first request.
const WARM: Duration = Duration::from_secs(10);

/// Loads the modules that `before` did not have, and starts one VM of each http-wasm handler among them, so that what
/// is wrong with them is known before a request comes. Gives those that failed.
pub async fn warm(snapshot: &Snapshot, before: Option<&Snapshot>, engine: &Arc<Engine>) -> Vec<Cold> {
    let known: HashSet<usize> = before.into_iter().flat_map(all).map(|(_, h)| Arc::as_ptr(h) as usize).collect();
    let mut cold = Vec::new();
    let work = async {
        for (route, handler) in all(snapshot) {
            let Some(version) = handler.version().filter(|_| !known.contains(&(Arc::as_ptr(handler) as usize))) else {
                continue;
            };
            let started = if version.abi == Abi::HttpWasm {
                match handler.http(engine).await {
                    Ok(http) => http.warm().await,
                    Err(error) => Err(error),
                }
            } else {
                match handler.module(engine).await {
                    Ok(_) => handler.assets(engine).await.map(drop),
                    Err(error) => Err(error),
                }
            };
            match started {
                Ok(()) => {}
                // Not the module's fault, and the next one would fare no better.
                Err(RunError::Busy { .. }) => break,
                Err(error) => {
                    let (module, reason) = (handler.label.clone(), rejection_of(error).detail());
                    cold.push(Cold { route: route.clone(), module, reason });
                }
            }
        }
    };
    // Too late is no failure: it only is not known yet.
    let _ = tokio::time::timeout(WARM, work).await;
    cold
}

fn all(snapshot: &Snapshot) -> impl Iterator<Item = (&Name, &Arc<RouteHandler>)> {
    snapshot.states.iter().flat_map(|state| {
        let route = &snapshot.config.routes[state.index].name;
        state.every_handler().map(move |handler| (route, handler))
    })
}

/// A handler that let the request pass, and the VM that waits for the answer.
struct Waiting {
    handler: Arc<RouteHandler>,
    /// It wants the answer's body before the head is final.
    buffers: bool,
    /// Never locked: it makes a VM, which may move between threads but not be shared, part of a shareable context.
    vm: Mutex<PinnedVm>,
}

/// Handlers that let the request pass, and what they share.
#[derive(Default)]
pub struct Chain {
    passed: Vec<Waiting>,
    /// Between phases, without the request's head; of the answer it holds what handlers set before there is one.
    exchange: Option<Box<HttpExchange>>,
}

impl Chain {
    /// The most of an answer that may be held, when a handler asked for the whole of it.
    pub fn buffer_limit(&self) -> Option<u64> {
        self.passed.iter().filter(|w| w.buffers).map(|w| w.handler.limits.input_bytes).min()
    }
}

/// What the request phase came to.
pub enum Passed {
    /// On to the upstream. `Some`: the body, gathered or written by a handler.
    On(Option<Bytes>),
    /// A handler answered. Earlier ones still have their response phase before them.
    Answered(Reply),
}

/// Runs the request phase of `handlers`, the session's head as each left it.
pub async fn request_phase(
    session: &mut Session,
    ctx: &mut Context,
    shared: &Shared,
    handlers: &[Arc<RouteHandler>],
    max_body: u64,
) -> Result<Passed, Stop> {
    ctx.chain = Some(Box::default());
    let has_body = !session.downstream_session.is_body_empty();
    let mut body: Option<Bytes> = None;
    let mut consumed = false;
    for handler in handlers {
        let http = match ready(ctx, shared, handler).await {
            Ok(http) => http,
            Err(rejection) => {
                tolerate(ctx, handler, rejection)?;
                continue;
            }
        };
        if has_body && body.is_none() && http.wants_request_body() {
            body = Some(body::gather(session, ctx, max_body.min(handler.limits.input_bytes)).await?);
        }
        let mut exchange = take_exchange(session, ctx);
        exchange.request_body = if has_body { body.clone() } else { Some(Bytes::new()) };
        let (outcome, gone) = match http.request_now(exchange) {
            Ok(outcome) => (outcome, None),
            Err(exchange) => {
                let cancel = exchange.cancel.clone();
                Box::pin(while_here(&mut session.downstream_session, &cancel, http.request(exchange))).await
            }
        };
        let HttpOutcome { exchange, result, meter, vm } = outcome;
        record(ctx, shared, handler, Phase::Request, result.as_ref().err(), &meter);
        let edit = put_back(session, ctx, exchange);
        if let Some(error) = gone {
            return Err(Stop::Broken(error));
        }
        match result {
            Ok(Verdict::Respond(reply)) => {
                passed(handler);
                // The reply has what was pending in it.
                if let Some(chain) = &mut ctx.chain {
                    chain.exchange = None;
                }
                return Ok(Passed::Answered(reply));
            }
            Ok(Verdict::Continue) => {
                if let Some(written) = edit.replaced {
                    body = Some(written);
                    consumed = false;
                } else if edit.consumed {
                    consumed = true;
                }
                if let (Some(chain), Some(vm)) = (&mut ctx.chain, vm) {
                    let buffers = vm.features().has(Features::BUFFER_RESPONSE);
                    chain.passed.push(Waiting { handler: handler.clone(), buffers, vm: Mutex::new(vm) });
                }
            }
            Err(error) => tolerate(ctx, handler, rejection_of(error))?,
        }
    }
    if consumed {
        return Ok(Passed::On(Some(Bytes::new())));
    }
    // A handler that holds the answer back does so in the gateway's own exchange, which needs the body whole.
    let holds = ctx.chain.as_ref().is_some_and(|chain| chain.buffer_limit().is_some());
    if holds && has_body && body.is_none() {
        body = Some(body::gather(session, ctx, max_body).await?);
    }
    Ok(Passed::On(body))
}

/// A handler whose module may run and can be loaded.
async fn ready<'a>(
    ctx: &mut Context,
    shared: &Shared,
    handler: &'a RouteHandler,
) -> Result<&'a Arc<HttpHandler>, Rejection> {
    handler.admit(ctx)?;
    let loaded = handler.http(&shared.engine).await;
    loaded.map_err(|error| not_loaded(ctx, shared, handler, error))
}

/// What a request phase did to the body.
struct BodyEdit {
    replaced: Option<Bytes>,
    consumed: bool,
}

/// Moves the head out of the session into the chain's exchange. Its framing is known to the session by now.
fn take_exchange(session: &mut Session, ctx: &mut Context) -> Box<HttpExchange> {
    let spare = ctx.chain.as_mut().and_then(|chain| chain.exchange.take());
    lend_head(session, ctx, spare)
}

fn lend_head(session: &mut Session, ctx: &Context, spare: Option<Box<HttpExchange>>) -> Box<HttpExchange> {
    let request = forward::take(session.req_header_mut());
    if let Some(mut exchange) = spare {
        exchange.request = request;
        return exchange;
    }
    Box::new(HttpExchange {
        request,
        request_body: None,
        request_body_replaced: None,
        request_body_consumed: false,
        response: http::Response::new(()).into_parts().0,
        response_status_set: false,
        response_body: None,
        response_body_replaced: None,
        peer: ctx.peer,
        request_id: ctx.request_id().into(),
        cancel: Cancel::default(),
    })
}

fn return_head(session: &mut Session, exchange: &mut HttpExchange) {
    let (stand_in, ()) = http::Request::new(()).into_parts();
    *session.req_header_mut() = std::mem::replace(&mut exchange.request, stand_in).into();
}

fn put_back(session: &mut Session, ctx: &mut Context, mut exchange: Box<HttpExchange>) -> BodyEdit {
    return_head(session, &mut exchange);
    exchange.request_body = None;
    if let Some(written) = exchange.response_body_replaced.take() {
        exchange.response_body = Some(written.into());
    }
    let replaced = exchange.request_body_replaced.take().map(Bytes::from);
    let consumed = std::mem::take(&mut exchange.request_body_consumed);
    if let Some(chain) = &mut ctx.chain {
        chain.exchange = Some(exchange);
    }
    BodyEdit { replaced, consumed }
}

/// The handler's failure policy: `Ok` goes on without it.
fn tolerate(ctx: &mut Context, handler: &RouteHandler, rejection: Rejection) -> Result<(), Stop> {
    ctx.guests.outcome = Some(rejection.code());
    // That it is refused from now on has been said once.
    if !matches!(rejection, Rejection::HandlerUnavailable { .. }) {
        tracing::warn!(handler = %handler.label, code = rejection.code(), detail = rejection.detail(), "handler failed");
    }
    match handler.config.fail {
        HandlerFail::Open => Ok(()),
        HandlerFail::Closed => Err(Stop::Reject(rejection)),
    }
}

pub fn rejection_of(error: RunError) -> Rejection {
    match error {
        RunError::Guest(failure) => Rejection::Guest(failure),
        // An operator's handler is called by the gateway: a bad call is a module that does not fit.
        RunError::BadCall(detail) => Rejection::Guest(GuestFailure::NotLoadable(detail)),
        RunError::Busy { retry_after } => Rejection::Busy { retry_after },
    }
}

pub fn record(
    ctx: &mut Context,
    shared: &Shared,
    handler: &RouteHandler,
    phase: Phase,
    error: Option<&RunError>,
    meter: &Meter,
) {
    let failure = match error {
        Some(RunError::Guest(failure)) => Some(failure),
        _ => None,
    };
    if let Some(module) = handler.metrics(&shared.metrics) {
        shared.metrics.execution(module, phase, failure, meter);
    }
    if phase != Phase::Response {
        ctx.guests.runs += 1;
        shared.usage.record_runs(&handler.config.owner, &handler.config.module.name, 1);
    }
    ctx.guests.meter = ctx.guests.meter.and(*meter);
    let outcome = ctx.guests.outcome.get_or_insert("ok");
    if let Some(failure) = failure {
        *outcome = failure.kind();
    }
    match error {
        Some(RunError::Guest(failure)) if is_crash(failure) => note_crash(ctx, shared, handler, failure),
        Some(RunError::Busy { .. } | RunError::BadCall(_)) => {}
        // A request phase that lets the request pass is half of a run.
        _ if phase == Phase::Request => {}
        _ => passed(handler),
    }
}

fn passed(handler: &RouteHandler) {
    if handler.breaker.passed() {
        tracing::info!(handler = %handler.label, "the module runs again");
    }
}

/// Counts a failure to load that is the module's own.
pub fn not_loaded(ctx: &Context, shared: &Shared, handler: &RouteHandler, error: RunError) -> Rejection {
    if let RunError::Guest(failure) = &error {
        note_crash(ctx, shared, handler, failure);
    }
    rejection_of(error)
}

fn caller(ctx: &Context) -> Caller {
    match ctx.principal.as_ref().and_then(Principal::owner) {
        Some(owner) => Caller::Owner(owner.clone()),
        None => Caller::Address(network::caller(ctx.client)),
    }
}

fn note_crash(ctx: &Context, shared: &Shared, handler: &RouteHandler, failure: &GuestFailure) {
    let config = &ctx.snapshot.config.engine.breaker;
    if handler.breaker.failed(Instant::now(), caller(ctx), config) {
        if let Some(module) = handler.metrics(&shared.metrics) {
            shared.metrics.breaker_opened(module);
        }
        tracing::error!(
            handler = %handler.label, last = failure.kind(), failures = config.failures,
            "the module fails again and again: it is refused for a while; activate another version of it"
        );
    }
}

/// An answer on its way back through the handlers that let its request pass.
struct Answer {
    head: http::response::Parts,
    /// `None`: still to come.
    body: Option<Bytes>,
    /// The upstream failed, or a handler after this one.
    is_error: bool,
}

/// One handler's response phase. `Ok`: how it ended, the answer edited. The error: the client has gone.
async fn response_phase(
    session: &mut Session,
    ctx: &mut Context,
    shared: &Shared,
    waiting: Waiting,
    exchange: &mut Option<Box<HttpExchange>>,
    answer: &mut Answer,
) -> Result<Result<(), Rejection>> {
    let Waiting { handler, vm, .. } = waiting;
    let mut lent = lend_head(session, ctx, exchange.take());
    std::mem::swap(&mut lent.response, &mut answer.head);
    lent.response_body = answer.body.clone();
    let (outcome, gone) = match vm.into_inner().response_now(lent, answer.is_error) {
        Ok(outcome) => (outcome, None),
        Err((vm, lent)) => {
            let cancel = lent.cancel.clone();
            let phase = vm.response(lent, answer.is_error);
            Box::pin(while_here(&mut session.downstream_session, &cancel, phase)).await
        }
    };
    let HttpOutcome { exchange: mut lent, result, meter, .. } = outcome;
    record(ctx, shared, &handler, Phase::Response, result.as_ref().err(), &meter);
    return_head(session, &mut lent);
    std::mem::swap(&mut lent.response, &mut answer.head);
    if let Some(written) = lent.response_body_replaced.take() {
        answer.body = Some(written.into());
    }
    *exchange = Some(lent);
    match gone {
        Some(error) => Err(error),
        None => Ok(result.map(drop).map_err(rejection_of)),
    }
}

/// What handlers set of the answer before there was one.
fn take_pending(exchange: &mut Option<Box<HttpExchange>>) -> (HeaderMap, Bytes) {
    let Some(exchange) = exchange else { return Default::default() };
    (std::mem::take(&mut exchange.response.headers), exchange.response_body.take().unwrap_or_default())
}

/// The response phase over an answer whose body is held. Gives the answer as the client is to read it.
pub async fn respond(
    session: &mut Session,
    ctx: &mut Context,
    shared: &Shared,
    head: ResponseHeader,
    body: Bytes,
    is_error: bool,
) -> Result<(ResponseHeader, Bytes)> {
    let Some(chain) = ctx.chain.take() else { return Ok((head, body)) };
    let Chain { passed, mut exchange } = *chain;
    let (pending, first) = take_pending(&mut exchange);
    let mut answer = Answer { head: head.into(), body: Some(body), is_error };
    if !is_error {
        merge_pending(&mut answer.head.headers, pending);
        if !first.is_empty() {
            answer.body = answer.body.map(|body| [first, body].concat().into());
        }
    }
    for waiting in passed.into_iter().rev() {
        let handler = waiting.handler.clone();
        let ended = response_phase(session, ctx, shared, waiting, &mut exchange, &mut answer).await?;
        if let Err(rejection) = ended
            && let Err(Stop::Reject(rejection)) = tolerate(ctx, &handler, rejection)
        {
            let (head, body) = answer::problem_answer(session, ctx, &rejection)?;
            answer = Answer { head: head.into(), body: Some(body), is_error: true };
            ctx.refused = Some(rejection);
        }
    }
    Ok((answer.head.into(), answer.body.unwrap_or_default()))
}

/// The response phase over an answer whose body is still to come. Gives the head, and the bytes that precede the body.
pub async fn respond_head(
    session: &mut Session,
    ctx: &mut Context,
    shared: &Shared,
    head: ResponseHeader,
) -> Result<(ResponseHeader, Bytes), Stop> {
    let Some(chain) = ctx.chain.take() else { return Ok((head, Bytes::new())) };
    let Chain { mut passed, mut exchange } = *chain;
    let (pending, first) = take_pending(&mut exchange);
    let mut answer = Answer { head: head.into(), body: None, is_error: false };
    merge_pending(&mut answer.head.headers, pending);
    while let Some(waiting) = passed.pop() {
        let handler = waiting.handler.clone();
        let ended = response_phase(session, ctx, shared, waiting, &mut exchange, &mut answer).await?;
        if let Err(rejection) = ended
            && let Err(stop) = tolerate(ctx, &handler, rejection)
        {
            // The refusal passes the handlers before this one.
            ctx.chain = Some(Box::new(Chain { passed, exchange: None }));
            return Err(stop);
        }
    }
    Ok((answer.head.into(), first))
}

/// Restores the framing that a guest may have written over, for a body that streams through.
pub fn restore_framing(head: &mut RequestHeader, length: Option<u64>) -> Result<()> {
    head.remove_header(&TRANSFER_ENCODING);
    match length {
        Some(n) => head.insert_header(CONTENT_LENGTH, n),
        None => {
            head.remove_header(&CONTENT_LENGTH);
            Ok(())
        }
    }
}
