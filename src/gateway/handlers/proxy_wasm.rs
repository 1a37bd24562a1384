//! The phases of proxy-wasm filters: headers, then a body that is there whole.
//!
//! Invariant: a filter that fails leaves heads as they were, where its policy lets the request go on.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http::header::CONTENT_LENGTH;
use http::{HeaderMap, HeaderValue};
use pingora::proxy::Session;

use super::{Ended, Place};
use crate::config::{HandlerFail, HeaderBytes};
use crate::domain::{GuestFailure, Meter, Rejection};
use crate::engine::{Cancel, Event, HttpExchange, Later, ProxyHandler, ProxyStream, Told, Verdict};
use crate::gateway::answer::has_body;
use crate::gateway::context::Context;
use crate::gateway::pipeline::Stop;
use crate::gateway::presence::while_here;
use crate::gateway::route_handler::RouteHandler;

/// Of a request's body that is shown at once.
const PIECE: usize = 64 << 10;

/// Heads as they were before a filter that may fail.
struct Before(Option<(http::request::Parts, http::response::Parts)>);

impl Before {
    fn of(handler: &RouteHandler, exchange: &HttpExchange) -> Before {
        let open = handler.config.fail == HandlerFail::Open;
        Before(open.then(|| (exchange.request.clone(), exchange.response.clone())))
    }

    /// The exchange after a failure.
    fn restore(self, left: Option<Box<HttpExchange>>, blank: impl FnOnce() -> Box<HttpExchange>) -> Box<HttpExchange> {
        let mut exchange = left.unwrap_or_else(blank);
        if let Some((request, response)) = self.0 {
            (exchange.request, exchange.response) = (request, response);
            (exchange.request_body_replaced, exchange.response_body_replaced) = (None, None);
        }
        exchange
    }
}

/// A phase that has not come to its end at once.
pub struct Begun {
    stream: ProxyStream,
    before: Before,
    cancel: Cancel,
    /// What came of the head.
    head: Result<Told, Later>,
    event: (Event, bool),
    /// The body is shown before the head goes on.
    holds_head: bool,
}

impl Begun {
    fn new(
        handler: &RouteHandler,
        mut stream: ProxyStream,
        exchange: Box<HttpExchange>,
        event: (Event, bool),
        shows_body: bool,
    ) -> Begun {
        let (before, cancel) = (Before::of(handler, &exchange), exchange.cancel.clone());
        let head = stream.tell_now(Some(exchange), event);
        let holds_head = shows_body && handler.config.proxy.hold_headers;
        Begun { stream, before, cancel, head, event, holds_head }
    }

    /// `Err`: there is more to wait for, or to show.
    fn at_once(self, session: &mut Session, ctx: &Context, shows_body: bool) -> Result<Ended, Box<Begun>> {
        match self.head {
            Ok(told) if !shows_body || !matches!(told.result, Ok(Verdict::Continue)) => {
                Ok(ended(session, ctx, told, self.before, self.stream, None))
            }
            head => Err(Box::new(Begun { head, ..self })),
        }
    }
}

/// The request phase, as far as it goes at once.
pub fn request_now(
    session: &mut Session,
    ctx: &Context,
    (handler, proxy): (&RouteHandler, &Arc<ProxyHandler>),
    mut exchange: Box<HttpExchange>,
    has_body: bool,
) -> Result<Result<Ended, RequestBegun>, Rejection> {
    if !readable(&mut exchange.request.headers, handler.config.proxy.header_bytes) {
        return Err(Rejection::BadRequest("a header value is not UTF-8".into()));
    }
    let body = exchange.request_body.clone().filter(|body| proxy.wants_request_body() && !body.is_empty());
    let event = (Event::RequestHeaders, !has_body);
    let begun = Begun::new(handler, proxy.open(), exchange, event, body.is_some());
    Ok(begun.at_once(session, ctx, body.is_some()).map_err(|begun| (begun, body)))
}

/// With the body that is to be shown.
pub type RequestBegun = (Box<Begun>, Option<Bytes>);

pub async fn request(
    session: &mut Session,
    ctx: &Context,
    handler: &RouteHandler,
    (begun, body): RequestBegun,
) -> Result<Ended, Stop> {
    let Begun { mut stream, before, cancel, head, event, holds_head } = *begun;
    let token = cancel.clone();
    let work = async {
        let head = stream.to_its_end(head, event, !holds_head, &token).await;
        match body {
            Some(body) if matches!(head.result, Ok(Verdict::Continue)) => {
                show_body(&mut stream, head, body, handler.limits.input_bytes, &token).await
            }
            _ => Ok(head),
        }
    };
    let (told, gone) = while_here(&mut session.downstream_session, &cancel, work).await;
    Ok(ended(session, ctx, told?, before, stream, gone))
}

/// Shows a request's body piece by piece, as it would come: a filter that lets pieces go needs no room for all of it.
async fn show_body(
    stream: &mut ProxyStream,
    mut last: Told,
    mut body: Bytes,
    limit: u64,
    cancel: &Cancel,
) -> Result<Told, Rejection> {
    let (mut passed, mut held) = (BytesMut::new(), 0);
    loop {
        let piece = body.split_to(body.len().min(PIECE));
        let event = (Event::RequestBody, body.is_empty());
        let meter = last.meter;
        held += piece.len() as u64;
        if last.exchange.is_none() && held > limit {
            return Err(Rejection::PayloadTooLarge { limit });
        }
        last = stream.show(last.exchange, piece, event, cancel).await;
        last.meter = last.meter.and(meter);
        if !matches!(last.result, Ok(Verdict::Continue)) {
            return Ok(last);
        }
        if let Some(exchange) = &mut last.exchange {
            held = 0;
            if event.1 && passed.is_empty() {
                return Ok(last);
            }
            passed.extend_from_slice(&exchange.take_body(true));
            if event.1 {
                exchange.request_body_replaced = Some(passed.into());
                return Ok(last);
            }
        }
    }
}

/// The response phase, as far as it goes at once.
pub fn response_now(
    session: &mut Session,
    ctx: &Context,
    handler: &RouteHandler,
    stream: ProxyStream,
    mut exchange: Box<HttpExchange>,
) -> Result<Ended, ResponseBegun> {
    exchange.upstream = ctx.endpoint.as_ref().map(|endpoint| endpoint.label.as_str().into());
    if !readable(&mut exchange.response.headers, handler.config.proxy.header_bytes) {
        let why = GuestFailure::BadOutput("the answer has a header value that is not UTF-8".into());
        let told = Told { exchange: Some(exchange), twin: None, result: Err(why.into()), meter: Meter::default() };
        return Ok(ended(session, ctx, told, Before(None), stream, None));
    }
    let head = &exchange.response;
    let empty = match &exchange.response_body {
        Some(body) => body.is_empty(),
        None => head.headers.get(CONTENT_LENGTH).is_some_and(|length| length == "0"),
    };
    let has_body = !empty && has_body(&ctx.method, head.status);
    let shows_body = stream.handler().wants_response_body() && exchange.response_body.is_some() && has_body;
    let begun = Begun::new(handler, stream, exchange, (Event::ResponseHeaders, !has_body), shows_body);
    begun.at_once(session, ctx, shows_body).map_err(|begun| (begun, shows_body))
}

/// Whether the body is to be shown.
pub type ResponseBegun = (Box<Begun>, bool);

pub async fn response(session: &mut Session, ctx: &Context, (begun, shows_body): ResponseBegun) -> Ended {
    let Begun { mut stream, before, cancel, head, event, holds_head } = *begun;
    let token = cancel.clone();
    let work = async {
        let head = stream.to_its_end(head, event, !holds_head, &token).await;
        if !shows_body || !matches!(head.result, Ok(Verdict::Continue)) {
            return head;
        }
        let body = stream.tell(head.exchange, (Event::ResponseBody, true), true, &token).await;
        Told { meter: head.meter.and(body.meter), ..body }
    };
    let (told, gone) = while_here(&mut session.downstream_session, &cancel, work).await;
    ended(session, ctx, told, before, stream, gone)
}

fn ended(
    session: &mut Session,
    ctx: &Context,
    told: Told,
    before: Before,
    stream: ProxyStream,
    gone: Option<Box<pingora::Error>>,
) -> Ended {
    let Told { exchange, result, meter, .. } = told;
    let exchange = match (&result, exchange) {
        (Ok(_), Some(exchange)) => exchange,
        (_, left) => before.restore(left, || super::lend_head(session, ctx, None)),
    };
    let place = result.is_ok().then(|| Place::Proxy(stream));
    Ended { exchange, result, meter, place, gone }
}

/// Whether all values are UTF-8 now. Most filters trap on others.
fn readable(fields: &mut HeaderMap, policy: HeaderBytes) -> bool {
    let is_text = |value: &HeaderValue| value.as_bytes().is_ascii() || std::str::from_utf8(value.as_bytes()).is_ok();
    if fields.values().all(is_text) {
        return true;
    }
    match policy {
        HeaderBytes::Reject => return false,
        HeaderBytes::Drop => {
            let kept = fields.iter().filter(|(_, value)| is_text(value));
            *fields = kept.map(|(name, value)| (name.clone(), value.clone())).collect();
        }
        HeaderBytes::Lossy => {
            for value in fields.values_mut().filter(|value| !is_text(value)) {
                let text = String::from_utf8_lossy(value.as_bytes()).into_owned();
                // U+FFFD is no control character.
                *value = HeaderValue::from_bytes(text.as_bytes()).unwrap_or_else(|_| HeaderValue::from_static(""));
            }
        }
    }
    true
}
