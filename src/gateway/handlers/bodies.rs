//! The body of an answer, and its trailers, on their way through the proxy-wasm filters that want to see it.
//!
//! Invariant: a filter holds at most its limit of it, and what one lets go is what the next one is shown. Until the first
//! bytes go out the head has not gone either, so that a filter can still answer in the upstream's place.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use http::HeaderMap;
use pingora::http::ResponseHeader;
use pingora::proxy::Session;

use super::{closed, lend_head, lend_knowledge, return_head, tolerate};
use crate::domain::{Phase, Rejection, Reply};
use crate::engine::{Event, HttpExchange, ProxyStream, Told, Verdict};
use crate::gateway::context::Context;
use crate::gateway::pipeline::Stop;
use crate::gateway::presence::while_here;
use crate::gateway::route_handler::{RouteHandler, rejection_of};
use crate::gateway::service::Shared;

/// A filter that has seen the head.
pub struct BodyFilter {
    handler: Arc<RouteHandler>,
    stream: ProxyStream,
    /// Bytes that it has since it paused.
    held: u64,
    /// It has failed, and the answer goes on without it.
    skipped: bool,
}

/// What has come for filters.
pub enum Came {
    Piece(Bytes),
    /// The last of the body, and what follows it.
    End(Bytes, Option<HeaderMap>),
    /// The filter at this place goes on by itself with what it held.
    Woken(usize, Told),
}

/// What came out behind the last filter.
pub enum Out {
    /// With what follows the body, behind its last piece.
    Bytes(Bytes, Option<HeaderMap>),
    /// A filter answers in place of the upstream, whose head has not gone yet.
    Instead(Reply),
}

impl BodyFilter {
    pub fn new(handler: Arc<RouteHandler>, stream: ProxyStream) -> BodyFilter {
        BodyFilter { handler, stream, held: 0, skipped: false }
    }

    pub fn into_stream(self) -> ProxyStream {
        self.stream
    }
}

/// Keeps the answer's head while filters see the body: they may read it.
pub fn keep_head(session: &mut Session, ctx: &mut Context, head: ResponseHeader) {
    let mut exchange = ctx.lent.take().unwrap_or_else(|| {
        let mut exchange = lend_head(session, ctx, None);
        return_head(session, &mut exchange);
        exchange
    });
    exchange.response = head.into();
    exchange.response_passed = true;
    ctx.lent = Some(exchange);
}

/// The head that is to go out now. `ends`: with all of the body; else filters go on reading it.
pub fn take_head(ctx: &mut Context, ends: bool) -> Result<ResponseHeader, Rejection> {
    let exchange = ctx.lent.as_mut().ok_or(Rejection::Internal)?;
    exchange.head_sent = true;
    Ok(if ends {
        let (blank, ()) = http::Response::new(()).into_parts();
        std::mem::replace(&mut exchange.response, blank).into()
    } else {
        exchange.response.clone().into()
    })
}

/// Resolves when a filter goes on that held a part of the body.
pub async fn woken(filters: &mut [BodyFilter]) -> Came {
    poll_fn(|cx| {
        let ready = filters.iter_mut().enumerate().find_map(|(place, filter)| match filter.stream.poll_woken(cx) {
            Poll::Ready(told) => Some(Came::Woken(place, told)),
            Poll::Pending => None,
        });
        ready.map_or(Poll::Pending, Poll::Ready)
    })
    .await
}

/// Shows filters what came, in their order.
pub async fn pass(session: &mut Session, ctx: &mut Context, shared: &Shared, came: Came) -> Result<Out, Stop> {
    let mut filters = std::mem::take(&mut ctx.body_filters);
    let out = pass_through(session, ctx, shared, &mut filters, came).await;
    ctx.body_filters = filters;
    out
}

async fn pass_through(
    session: &mut Session,
    ctx: &mut Context,
    shared: &Shared,
    filters: &mut [BodyFilter],
    came: Came,
) -> Result<Out, Stop> {
    let (mut data, mut trailers, end, from) = match came {
        Came::Piece(data) => (data, None, false, 0),
        Came::End(data, trailers) => (data, trailers, true, 0),
        Came::Woken(place, told) => match settle(ctx, shared, &mut filters[place], (told, None), Bytes::new())? {
            Ok(data) => (data, None, false, place + 1),
            Err(reply) => return Ok(Out::Instead(reply)),
        },
    };
    for filter in filters.iter_mut().skip(from).filter(|filter| !filter.skipped) {
        // As in Envoy, trailers are the end for who sees them.
        let follows = trailers.is_some() && filter.stream.handler().wants_response_trailers();
        let last = end && !follows;
        if last || !data.is_empty() {
            data = match show_body(session, ctx, shared, filter, data, last).await? {
                Ok(data) => data,
                Err(reply) => return Ok(Out::Instead(reply)),
            };
        }
        if let Some(fields) = trailers.take_if(|_| follows && !filter.skipped) {
            let told = tell_trailers(session, ctx, filter, fields.clone()).await;
            match settle(ctx, shared, filter, told, Bytes::new())? {
                Ok(more) if data.is_empty() => data = more,
                Ok(more) => data = [data, more].concat().into(),
                Err(reply) => return Ok(Out::Instead(reply)),
            }
            let edited = ctx.lent.as_mut().and_then(|exchange| exchange.response_trailers.take());
            trailers = Some(edited.unwrap_or(fields));
        }
    }
    Ok(Out::Bytes(data, trailers))
}

/// What the filter lets go of the body, or its answer in the upstream's place.
async fn show_body(
    session: &mut Session,
    ctx: &mut Context,
    shared: &Shared,
    filter: &mut BodyFilter,
    data: Bytes,
    end: bool,
) -> Result<Result<Bytes, Reply>, Stop> {
    let limit = filter.handler.limits.input_bytes;
    if filter.stream.is_paused() && filter.held + data.len() as u64 > limit {
        return Err(Rejection::UpstreamTooLarge { limit }.into());
    }
    let told = tell(session, ctx, filter, data.clone(), end).await;
    let out = settle(ctx, shared, filter, told, data)?;
    if filter.held > limit {
        return Err(Rejection::UpstreamTooLarge { limit }.into());
    }
    Ok(out)
}

/// `came`: what it was shown.
fn settle(
    ctx: &mut Context,
    shared: &Shared,
    filter: &mut BodyFilter,
    (told, gone): (Told, Option<Box<pingora::Error>>),
    came: Bytes,
) -> Result<Result<Bytes, Reply>, Stop> {
    let Told { exchange, result, meter, .. } = told;
    filter.handler.record(ctx, shared, Phase::Response, result.as_ref().err(), &meter);
    if let Some(error) = gone {
        return Err(Stop::Broken(error));
    }
    let data = exchange.map(|mut exchange| {
        let data = exchange.take_body(false);
        give_back(ctx, exchange);
        data
    });
    match (result, data) {
        (Ok(Verdict::Continue), Some(data)) => {
            filter.held = 0;
            Ok(Ok(data))
        }
        (Ok(Verdict::Continue), None) => {
            filter.held += came.len() as u64;
            Ok(Ok(Bytes::new()))
        }
        (Ok(Verdict::Respond(reply)), _) => Ok(Err(reply)),
        (Ok(Verdict::Close), _) => Err(Stop::Broken(closed())),
        (Err(error), _) => {
            filter.skipped = true;
            tolerate(ctx, &filter.handler, rejection_of(error))?;
            if filter.held > 0 {
                // What it held is lost with it.
                return Err(Stop::Broken(closed()));
            }
            Ok(Ok(came))
        }
    }
}

async fn tell(
    session: &mut Session,
    ctx: &mut Context,
    filter: &mut BodyFilter,
    data: Bytes,
    end: bool,
) -> (Told, Option<Box<pingora::Error>>) {
    let BodyFilter { stream, handler, .. } = filter;
    let event = (Event::ResponseBody, end);
    let exchange = (!stream.is_paused()).then(|| lend(session, ctx, handler));
    let cancel = exchange.as_ref().map(|exchange| exchange.cancel.clone()).unwrap_or_default();
    let (told, gone) = match stream.show_now(exchange, data, event) {
        Ok(told) => (told, None),
        later => {
            let work = stream.to_its_end(later, event, end, &cancel);
            Box::pin(while_here(&mut session.downstream_session, &cancel, work)).await
        }
    };
    (returned(session, ctx, told), gone)
}

async fn tell_trailers(
    session: &mut Session,
    ctx: &mut Context,
    filter: &mut BodyFilter,
    fields: HeaderMap,
) -> (Told, Option<Box<pingora::Error>>) {
    let BodyFilter { stream, handler, .. } = filter;
    let exchange = (!stream.is_paused()).then(|| lend(session, ctx, handler));
    let cancel = exchange.as_ref().map(|exchange| exchange.cancel.clone()).unwrap_or_default();
    let work = stream.trailers(exchange, fields, &cancel);
    let (told, gone) = Box::pin(while_here(&mut session.downstream_session, &cancel, work)).await;
    (returned(session, ctx, told), gone)
}

/// The exchange that all share, for one callback.
fn lend(session: &mut Session, ctx: &mut Context, handler: &RouteHandler) -> Box<HttpExchange> {
    let spare = ctx.lent.take();
    let mut exchange = lend_head(session, ctx, spare);
    lend_knowledge(session, ctx, handler, &mut exchange);
    exchange
}

/// After a callback: others have their heads again, from whichever of the two is there.
fn returned(session: &mut Session, ctx: &mut Context, mut told: Told) -> Told {
    if ctx.lent.is_some() {
        // It was paused before: the guest had one of its own.
        return told;
    }
    if let Some(mut twin) = told.twin.take() {
        return_head(session, &mut twin);
        ctx.values = std::mem::take(&mut twin.values);
        ctx.lent = Some(twin);
    } else if let Some(exchange) = &mut told.exchange {
        return_head(session, exchange);
        ctx.values = std::mem::take(&mut exchange.values);
    }
    told
}

/// The shared exchange, unless there is one since a pause.
fn give_back(ctx: &mut Context, exchange: Box<HttpExchange>) {
    match &mut ctx.lent {
        Some(shared) => shared.response_trailers = exchange.response_trailers,
        none => *none = Some(exchange),
    }
}
