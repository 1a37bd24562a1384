//! The body of an answer on its way through the proxy-wasm filters that want to see it.
//!
//! Invariant: a filter holds at most its limit of it, and what one lets go is what the next one is shown. Until the first
//! bytes go out the head has not gone either, so that a filter can still answer in the upstream's place.

use std::sync::Arc;

use bytes::Bytes;
use pingora::http::ResponseHeader;
use pingora::proxy::Session;

use super::{closed, tolerate};
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
    /// `None`: the guest has it.
    exchange: Option<Box<HttpExchange>>,
    /// Bytes that it has since it paused.
    held: u64,
    /// It has failed, and the answer goes on without it.
    skipped: bool,
}

/// What came out behind the last filter.
pub enum Out {
    Bytes(Bytes),
    /// A filter answers in place of the upstream, whose head has not gone yet.
    Instead(Reply),
}

impl BodyFilter {
    pub fn new(handler: Arc<RouteHandler>, stream: ProxyStream) -> BodyFilter {
        BodyFilter { handler, stream, exchange: None, held: 0, skipped: false }
    }

    /// Gives it heads of its own: it may keep them while others see more of the body.
    pub fn begin(
        &mut self,
        session: &Session,
        ctx: &Context,
        common: Option<&HttpExchange>,
        head: &http::response::Parts,
    ) {
        let request = http::request::Parts::from(session.req_header().clone());
        let mut exchange = Box::new(HttpExchange::new(request, ctx.peer, ctx.request_id().into()));
        if let Some(common) = common {
            exchange.scheme = common.scheme;
            exchange.request_size = common.request_size;
            exchange.info = common.info.clone();
            exchange.upstream = common.upstream.clone();
            exchange.cancel = common.cancel.clone();
        }
        exchange.values = ctx.values.clone();
        exchange.response = head.clone();
        self.exchange = Some(exchange);
    }

    pub fn into_stream(self) -> ProxyStream {
        self.stream
    }
}

/// Notes that the client has the head.
pub fn head_is_sent(ctx: &mut Context, head: &ResponseHeader) {
    for filter in &mut ctx.body_filters {
        if let Some(exchange) = &mut filter.exchange {
            exchange.head_sent = true;
            exchange.response.status = head.status;
        }
    }
}

/// Shows filters what came of the body, in their order.
pub async fn pass(
    session: &mut Session,
    ctx: &mut Context,
    shared: &Shared,
    chunk: Bytes,
    end: bool,
) -> Result<Out, Stop> {
    let mut filters = std::mem::take(&mut ctx.body_filters);
    let out = pass_through(session, ctx, shared, &mut filters, chunk, end).await;
    ctx.body_filters = filters;
    out
}

async fn pass_through(
    session: &mut Session,
    ctx: &mut Context,
    shared: &Shared,
    filters: &mut [BodyFilter],
    mut data: Bytes,
    end: bool,
) -> Result<Out, Stop> {
    for filter in filters.iter_mut().filter(|filter| !filter.skipped) {
        if data.is_empty() && !end {
            break;
        }
        let limit = filter.handler.limits.input_bytes;
        let came = data.clone();
        if filter.exchange.is_none() && filter.held + data.len() as u64 > limit {
            return Err(Rejection::UpstreamTooLarge { limit }.into());
        }
        let (told, gone) = tell(session, filter, data, end).await;
        let Told { exchange, result, meter } = told;
        filter.handler.record(ctx, shared, Phase::Response, result.as_ref().err(), &meter);
        if let Some(error) = gone {
            return Err(Stop::Broken(error));
        }
        match (result, exchange) {
            (Ok(Verdict::Continue), Some(mut exchange)) => {
                data = exchange.take_body(false);
                filter.held = 0;
                filter.exchange = Some(exchange);
            }
            (Ok(Verdict::Continue), None) => {
                filter.held += came.len() as u64;
                if filter.held > limit {
                    return Err(Rejection::UpstreamTooLarge { limit }.into());
                }
                data = Bytes::new();
            }
            (Ok(Verdict::Respond(reply)), exchange) => {
                filter.exchange = exchange;
                return Ok(Out::Instead(reply));
            }
            (Ok(Verdict::Close), _) => return Err(Stop::Broken(closed())),
            (Err(error), _) => {
                filter.skipped = true;
                tolerate(ctx, &filter.handler, rejection_of(error))?;
                if filter.held > 0 {
                    // What it held is lost with it.
                    return Err(Stop::Broken(closed()));
                }
                data = came;
            }
        }
    }
    Ok(Out::Bytes(data))
}

async fn tell(
    session: &mut Session,
    filter: &mut BodyFilter,
    data: Bytes,
    end: bool,
) -> (Told, Option<Box<pingora::Error>>) {
    let BodyFilter { stream, exchange, .. } = filter;
    let event = (Event::ResponseBody, end);
    let cancel = exchange.as_ref().map(|exchange| exchange.cancel.clone()).unwrap_or_default();
    let work = async {
        match exchange.take() {
            Some(mut exchange) => {
                exchange.response_body = Some(data);
                exchange.response_body_replaced = None;
                stream.tell(Some(exchange), event, end, &cancel).await
            }
            None => stream.feed(data, event, &cancel).await,
        }
    };
    while_here(&mut session.downstream_session, &cancel, work).await
}
