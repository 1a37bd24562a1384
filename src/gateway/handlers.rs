//! The http-wasm handlers of a route: the request phase in order, the response phase in reverse, and what is kept
//! between the two.
//!
//! Invariant: a handler that let a request pass gets its response phase, whatever became of the request (ABI section
//! 1), unless its VM failed or the client is gone.

use std::sync::Arc;

use bytes::Bytes;
use http::HeaderMap;
use http::header::CONTENT_LENGTH;
use parking_lot::Mutex;
use pingora::Result;
use pingora::http::ResponseHeader;
use pingora::proxy::Session;

use super::answer;
use super::body;
use super::context::Context;
use super::forward;
use super::merge::merge_pending;
use super::pipeline::Stop;
use super::presence::while_here;
use super::route_handler::{RouteHandler, rejection_of};
use super::service::Shared;
use crate::config::HandlerFail;
use crate::domain::{Phase, Rejection, Reply};
use crate::engine::{Cancel, Features, HttpExchange, HttpOutcome, PinnedVm, Verdict};

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
        let http = match handler.ready_http(ctx, shared).await {
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
    handler.record(ctx, shared, Phase::Response, result.as_ref().err(), &meter);
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

/// The response phase over an answer whose body is still to come. Gives the head, and the bytes that precede the body if
/// there is to be one.
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
    if !answer::has_body(&ctx.method, answer.head.status) && !first.is_empty() {
        // The length would be that of the upstream's body alone.
        answer.head.headers.remove(CONTENT_LENGTH);
        return Ok((answer.head.into(), Bytes::new()));
    }
    Ok((answer.head.into(), first))
}
