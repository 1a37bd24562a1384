//! The filters of a route: the request phase in order, the response phase in reverse, and what is kept between the two.
//!
//! Invariant: a filter that let a request pass gets its response phase, whatever became of the request (http-wasm's ABI,
//! section 1), unless its VM failed or the client is gone. A proxy-wasm filter that answered sees its own answer, as in
//! Envoy.

pub mod bodies;
mod proxy_wasm;

use std::sync::Arc;

use bytes::Bytes;
use http::HeaderMap;
use http::header::CONTENT_LENGTH;
use parking_lot::Mutex;
use pingora::http::ResponseHeader;
use pingora::proxy::Session;
use pingora::{Error, ErrorType, Result};
use smallvec::SmallVec;

pub use bodies::BodyFilter;

use super::answer;
use super::body;
use super::context::Context;
use super::forward;
use super::merge::merge_pending;
use super::pipeline::Stop;
use super::presence::while_here;
use super::route_handler::{Filter, RouteHandler, rejection_of};
use super::service::Shared;
use crate::config::HandlerFail;
use crate::domain::{GuestFailure, Meter, Phase, Rejection, Reply};
use crate::engine::{Features, HttpExchange, HttpHandler, HttpOutcome, PinnedVm, ProxyStream, RunError, Verdict};

/// A handler that let the request pass, and where its guest waits for the answer.
struct Waiting {
    handler: Arc<RouteHandler>,
    /// It wants the answer's body before the head is final.
    buffers: bool,
    /// It wants to see the answer's body as it comes.
    streams: bool,
    /// Never locked: it makes a VM, which may move between threads but not be shared, part of a shareable context.
    place: Mutex<Place>,
}

enum Place {
    Http(PinnedVm),
    Proxy(ProxyStream),
}

/// What one phase of a filter came to.
struct Ended {
    exchange: Box<HttpExchange>,
    result: Result<Verdict, RunError>,
    meter: Meter,
    place: Option<Place>,
    /// The client is gone.
    gone: Option<Box<Error>>,
}

/// Handlers that let the request pass, and what they share.
#[derive(Default)]
pub struct Chain {
    passed: SmallVec<[Waiting; 1]>,
    /// Between phases, without the request's head; of the answer it holds what handlers set before there is one.
    exchange: Option<Box<HttpExchange>>,
}

/// Filters that have to be told of the request's end.
pub type Closing = SmallVec<[ProxyStream; 1]>;
/// Filters that see the answer's body.
pub type BodyFilters = SmallVec<[BodyFilter; 1]>;

impl Chain {
    /// The most of an answer that may be held, when a handler asked for the whole of it.
    pub fn buffer_limit(&self) -> Option<u64> {
        self.passed.iter().filter(|w| w.buffers).map(|w| w.handler.limits.input_bytes).min()
    }

    /// A handler wants to see the answer's body as it comes.
    pub fn streams(&self) -> bool {
        self.passed.iter().any(|w| w.streams)
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
    ctx.chain = Some(Chain::default());
    let has_body = !session.downstream_session.is_body_empty();
    let mut body: Option<Bytes> = None;
    let mut consumed = false;
    for handler in handlers {
        let filter = match handler.ready_filter(ctx, shared).await {
            Ok(filter) => filter,
            Err(rejection) => {
                tolerate(ctx, handler, rejection)?;
                continue;
            }
        };
        let wants_body = match filter {
            Filter::Http(http) => http.wants_request_body(),
            Filter::Proxy(proxy) => proxy.wants_request_body(),
        };
        if has_body && body.is_none() && wants_body {
            let limit = match filter {
                Filter::Http(_) => max_body.min(handler.limits.input_bytes),
                // It sees pieces, and is bounded in what it holds of them.
                Filter::Proxy(_) => max_body,
            };
            body = Some(Box::pin(body::gather(session, ctx, limit)).await?);
        }
        let mut exchange = take_exchange(session, ctx, handler);
        exchange.request_body = if has_body { body.clone() } else { Some(Bytes::new()) };
        exchange.request_size = body.as_ref().map_or(0, |body| body.len() as u64);
        let ended = match filter {
            Filter::Http(http) => http_request(session, http, exchange).await,
            Filter::Proxy(proxy) => {
                match proxy_wasm::request_now(session, ctx, (handler, proxy), exchange, has_body)? {
                    Ok(ended) => ended,
                    Err(begun) => Box::pin(proxy_wasm::request(session, ctx, handler, begun)).await?,
                }
            }
        };
        let Ended { exchange, result, meter, place, gone } = ended;
        handler.record(ctx, shared, Phase::Request, result.as_ref().err(), &meter);
        let edit = put_back(session, ctx, exchange);
        if let Some(error) = gone {
            return Err(Stop::Broken(error));
        }
        match result {
            Ok(Verdict::Respond(reply)) => {
                handler.passed();
                // The reply has what was pending in it.
                if let Some(chain) = &mut ctx.chain {
                    chain.exchange = None;
                    if let Some(place) = place {
                        chain.passed.push(Waiting::new(handler, place));
                    }
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
                if let (Some(chain), Some(place)) = (&mut ctx.chain, place) {
                    chain.passed.push(Waiting::new(handler, place));
                }
            }
            Ok(Verdict::Close) => return Err(Stop::Broken(closed())),
            Err(error) => tolerate(ctx, handler, rejection_of(error))?,
        }
    }
    if consumed {
        return Ok(Passed::On(Some(Bytes::new())));
    }
    // A handler that holds the answer back, or sees its body, does so in the gateway's own exchange, which needs the
    // request's body whole.
    let holds = ctx.chain.as_ref().is_some_and(|chain| chain.buffer_limit().is_some() || chain.streams());
    if holds && has_body && body.is_none() {
        body = Some(Box::pin(body::gather(session, ctx, max_body)).await?);
    }
    Ok(Passed::On(body))
}

impl Waiting {
    fn new(handler: &Arc<RouteHandler>, place: Place) -> Waiting {
        let (buffers, streams) = match &place {
            Place::Http(vm) => (vm.features().has(Features::BUFFER_RESPONSE), false),
            Place::Proxy(stream) => {
                let body = stream.handler().wants_response_body();
                (body && handler.config.proxy.hold_headers, body)
            }
        };
        Waiting { handler: handler.clone(), buffers, streams, place: Mutex::new(place) }
    }
}

async fn http_request(session: &mut Session, http: &Arc<HttpHandler>, exchange: Box<HttpExchange>) -> Ended {
    let (outcome, gone) = match http.request_now(exchange) {
        Ok(outcome) => (outcome, None),
        Err(exchange) => {
            let cancel = exchange.cancel.clone();
            Box::pin(while_here(&mut session.downstream_session, &cancel, http.request(exchange))).await
        }
    };
    let HttpOutcome { exchange, result, meter, vm } = outcome;
    Ended { exchange, result, meter, place: vm.map(Place::Http), gone }
}

/// A filter broke the stream off: the client sees its connection end.
fn closed() -> Box<Error> {
    Error::explain(ErrorType::ConnectionClosed, "a filter closed the stream").into_down()
}

/// What a request phase did to the body.
struct BodyEdit {
    replaced: Option<Bytes>,
    consumed: bool,
}

/// Moves the head out of the session into the chain's exchange. Its framing is known to the session by now.
fn take_exchange(session: &mut Session, ctx: &mut Context, handler: &RouteHandler) -> Box<HttpExchange> {
    let spare = ctx.chain.as_mut().and_then(|chain| chain.exchange.take());
    let mut exchange = lend_head(session, ctx, spare);
    lend_knowledge(session, ctx, handler, &mut exchange);
    exchange
}

/// What the handler may know beside the head, and what others hand on to it.
fn lend_knowledge(session: &Session, ctx: &mut Context, handler: &RouteHandler, exchange: &mut HttpExchange) {
    if handler.wants_info {
        exchange.info = Some(ctx.info(session, &exchange.request_id));
    }
    exchange.values = std::mem::take(&mut ctx.values);
}

fn lend_head(session: &mut Session, ctx: &Context, spare: Option<Box<HttpExchange>>) -> Box<HttpExchange> {
    let request = forward::take(session.req_header_mut());
    if let Some(mut exchange) = spare {
        exchange.request = request;
        return exchange;
    }
    let mut exchange = Box::new(HttpExchange::new(request, ctx.peer, ctx.request_id().into()));
    exchange.scheme = if ctx.tls { "https" } else { "http" };
    exchange
}

fn return_head(session: &mut Session, exchange: &mut HttpExchange) {
    let (stand_in, ()) = http::Request::new(()).into_parts();
    *session.req_header_mut() = std::mem::replace(&mut exchange.request, stand_in).into();
}

fn put_back(session: &mut Session, ctx: &mut Context, mut exchange: Box<HttpExchange>) -> BodyEdit {
    return_head(session, &mut exchange);
    exchange.request_body = None;
    ctx.values = std::mem::take(&mut exchange.values);
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
        let backtrace = match &rejection {
            Rejection::Guest(GuestFailure::Trap { backtrace, .. }) if !backtrace.is_empty() => Some(&**backtrace),
            _ => None,
        };
        tracing::warn!(
            handler = %handler.label, request_id = ctx.request_id(), code = rejection.code(), detail = rejection.detail(),
            backtrace, "handler failed"
        );
    }
    match handler.config.fail {
        HandlerFail::Open => Ok(()),
        HandlerFail::Closed => Err(Stop::Reject(rejection)),
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
) -> Result<Result<Option<Reply>, Rejection>> {
    let Waiting { handler, place, streams, .. } = waiting;
    let mut lent = lend_head(session, ctx, exchange.take());
    lend_knowledge(session, ctx, &handler, &mut lent);
    std::mem::swap(&mut lent.response, &mut answer.head);
    lent.response_body = answer.body.clone();
    let ended = match place.into_inner() {
        Place::Http(vm) => http_response(session, vm, lent, answer.is_error).await,
        Place::Proxy(stream) => match proxy_wasm::response_now(session, ctx, &handler, stream, lent) {
            Ok(ended) => ended,
            Err(begun) => Box::pin(proxy_wasm::response(session, ctx, begun)).await,
        },
    };
    let Ended { exchange: mut lent, result, meter, place, gone } = ended;
    handler.record(ctx, shared, Phase::Response, result.as_ref().err(), &meter);
    if let Some(Place::Proxy(stream)) = place {
        match streams && answer.body.is_none() {
            true => ctx.body_filters.push(BodyFilter::new(handler, stream)),
            false => ctx.closing.push(stream),
        }
    }
    return_head(session, &mut lent);
    ctx.values = std::mem::take(&mut lent.values);
    std::mem::swap(&mut lent.response, &mut answer.head);
    if let Some(written) = lent.response_body_replaced.take() {
        answer.body = Some(written.into());
    }
    *exchange = Some(lent);
    match (gone, result) {
        (Some(error), _) => Err(error),
        (None, Ok(Verdict::Close)) => Err(closed()),
        (None, Ok(Verdict::Respond(reply))) => Ok(Ok(Some(reply))),
        (None, Ok(Verdict::Continue)) => Ok(Ok(None)),
        (None, Err(error)) => Ok(Err(rejection_of(error))),
    }
}

async fn http_response(session: &mut Session, vm: PinnedVm, lent: Box<HttpExchange>, is_error: bool) -> Ended {
    let (outcome, gone) = match vm.response_now(lent, is_error) {
        Ok(outcome) => (outcome, None),
        Err((vm, lent)) => {
            let cancel = lent.cancel.clone();
            let phase = vm.response(lent, is_error);
            Box::pin(while_here(&mut session.downstream_session, &cancel, phase)).await
        }
    };
    let HttpOutcome { exchange, result, meter, .. } = outcome;
    Ended { exchange, result, meter, place: None, gone }
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
    let Chain { passed, mut exchange } = chain;
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
        match ended {
            Ok(None) => {}
            Ok(Some(reply)) => {
                let (head, body) = answer::from_reply(reply)?;
                answer = Answer { head: head.into(), body: Some(body), is_error: answer.is_error };
            }
            Err(rejection) => {
                if let Err(Stop::Reject(rejection)) = tolerate(ctx, &handler, rejection) {
                    let (head, body) = answer::problem_answer(session, ctx, &rejection)?;
                    answer = Answer { head: head.into(), body: Some(body), is_error: true };
                    ctx.refused = Some(rejection);
                }
            }
        }
    }
    Ok((answer.head.into(), answer.body.unwrap_or_default()))
}

/// An answer after the response phase over its head.
pub enum Headed {
    /// With the bytes that precede the body, if there is to be one.
    On(ResponseHeader, Bytes),
    /// A handler answers in its place; the handlers before it are still to see that.
    Instead(Reply),
}

/// The response phase over an answer whose body is still to come.
pub async fn respond_head(
    session: &mut Session,
    ctx: &mut Context,
    shared: &Shared,
    head: ResponseHeader,
) -> Result<Headed, Stop> {
    let Some(chain) = ctx.chain.take() else { return Ok(Headed::On(head, Bytes::new())) };
    let Chain { mut passed, mut exchange } = chain;
    let (pending, first) = take_pending(&mut exchange);
    let mut answer = Answer { head: head.into(), body: None, is_error: false };
    merge_pending(&mut answer.head.headers, pending);
    while let Some(waiting) = passed.pop() {
        let handler = waiting.handler.clone();
        let ended = response_phase(session, ctx, shared, waiting, &mut exchange, &mut answer).await?;
        let instead = match ended {
            Ok(None) => continue,
            Ok(Some(reply)) => Ok(Headed::Instead(reply)),
            Err(rejection) => match tolerate(ctx, &handler, rejection) {
                Ok(()) => continue,
                Err(stop) => Err(stop),
            },
        };
        // What the client gets passes the handlers before this one.
        ctx.chain = Some(Chain { passed, exchange: None });
        return instead;
    }
    ctx.lent = exchange;
    if !answer::has_body(&ctx.method, answer.head.status) && !first.is_empty() {
        // The length would be that of the upstream's body alone.
        answer.head.headers.remove(CONTENT_LENGTH);
        return Ok(Headed::On(answer.head.into(), Bytes::new()));
    }
    Ok(Headed::On(answer.head.into(), first))
}

/// Tells filters that the request is over, whatever became of it.
pub async fn finish(session: &mut Session, ctx: &mut Context) {
    if ctx.closing.is_empty() && ctx.body_filters.is_empty() {
        return;
    }
    // Those that never saw an answer end with their context.
    let closing = std::mem::take(&mut ctx.closing);
    let filters = std::mem::take(&mut ctx.body_filters);
    let spare = ctx.lent.take();
    let mut exchange = lend_head(session, ctx, spare);
    exchange.info = Some(ctx.info(session, &exchange.request_id));
    exchange.values = std::mem::take(&mut ctx.values);
    if let Some(written) = session.response_written() {
        exchange.response = http::response::Parts::from(written.clone());
    }
    let mut exchange = Some(exchange);
    for stream in closing.into_iter().chain(filters.into_iter().map(BodyFilter::into_stream)) {
        let (back, meter) = stream.finish(exchange.take()).await;
        exchange = back;
        ctx.guests.meter = ctx.guests.meter.and(meter);
    }
    if let Some(mut exchange) = exchange {
        return_head(session, &mut exchange);
    }
}
