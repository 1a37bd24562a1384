//! Answers that the gateway has whole: refusals, fixed responses, what modules answered.
//!
//! Invariant: every refusal of a request that has a session leaves through [`reject`].

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderValue, Method, StatusCode};
use pingora::http::ResponseHeader;
use pingora::protocols::http::ServerSession;
use pingora::proxy::Session;
use pingora::{Error, ErrorType, Result};

use super::context::Context;
use super::exchange;
use super::forward::{self, Fields};
use super::handlers;
use super::service::Shared;
use crate::domain::rejection::retry_after_seconds;
use crate::domain::{Rejection, Reply, problem};

/// Headers an answer usually has, so that the map is allocated once.
const FIELDS: usize = 10;

pub fn head(status: u16) -> Result<ResponseHeader> {
    ResponseHeader::build_no_case(status, Some(FIELDS))
}

/// Whether an answer to this method with this status has a body (RFC 9110 section 6.4.1).
pub fn has_body(method: &Method, status: StatusCode) -> bool {
    *method != Method::HEAD && !matches!(status.as_u16(), 100..=199 | 204 | 205 | 304)
}

/// The head as the client gets it. `end`: nothing follows.
pub async fn write_head(
    session: &mut Session,
    shared: &Shared,
    mut head: Box<ResponseHeader>,
    end: bool,
) -> Result<()> {
    if shared.is_draining() {
        session.set_keepalive(None);
    }
    head.set_version(http::Version::HTTP_11);
    match &mut *session.downstream_session {
        ServerSession::H2(h2) => h2.write_response_header(head, end),
        other => other.write_response_header(head).await,
    }
    .map_err(|e| e.into_down())
}

/// A finished head and all that follows it.
pub async fn write(session: &mut Session, shared: &Shared, head: Box<ResponseHeader>, body: Bytes) -> Result<()> {
    let end = body.is_empty();
    write_head(session, shared, head, end).await?;
    if end {
        session.downstream_session.finish_body().await.map_err(|e| e.into_down())
    } else {
        session.downstream_session.write_response_body(body, true).await.map_err(|e| e.into_down())
    }
}

/// Sends a whole answer that is no refusal, as the handlers that let its request pass leave it.
pub async fn deliver(
    session: &mut Session,
    ctx: &mut Context,
    shared: &Shared,
    (head, body): (ResponseHeader, Bytes),
) -> Result<()> {
    let (head, body) = handlers::respond(session, ctx, shared, head, body, false).await?;
    send(session, ctx, shared, head, body).await
}

/// Sends a whole answer that handlers have seen. The head is finished here: edits, limits, ids, framing.
pub async fn send(
    session: &mut Session,
    ctx: &mut Context,
    shared: &Shared,
    mut head: ResponseHeader,
    body: Bytes,
) -> Result<()> {
    ctx.release();
    restore_method(session, ctx);
    forward::finish_response(&mut head, ctx)?;
    if has_body(&Method::GET, head.status) {
        head.set(&CONTENT_LENGTH, HeaderValue::from(body.len()))?;
    } else {
        head.drop_all(&CONTENT_LENGTH);
    }
    let with_body = has_body(&ctx.method, head.status);
    exchange::frame(session, &mut head, with_body, 0)?;
    write(session, shared, Box::new(head), if with_body { body } else { Bytes::new() }).await
}

/// A handler may have changed the method for the upstream; what the client reads is framed by the one it sent.
pub fn restore_method(session: &mut Session, ctx: &Context) {
    if session.req_header().method != ctx.method {
        session.req_header_mut().set_method(ctx.method.clone());
    }
}

/// What a handler or module answered.
pub fn from_reply(reply: Reply) -> Result<(ResponseHeader, Bytes)> {
    let mut head = ResponseHeader::build_no_case(reply.status, Some(reply.headers.len() + FIELDS))?;
    for (name, value) in reply.headers {
        head.add(&name, value)?;
    }
    Ok((head, reply.body))
}

/// Refuses the request. Handlers that saw it are told (`is_error`), and may change what the client reads.
///
/// An answer that has begun can only be broken off: the error keeps the caller from ending it like a whole one.
pub async fn reject(session: &mut Session, ctx: &mut Context, shared: &Shared, rejection: Rejection) -> Result<()> {
    if written(session) {
        return Err(Error::explain(ErrorType::InternalError, rejection.detail()));
    }
    let problem = problem_answer(session, ctx, &rejection)?;
    if rejection.status() == 400 {
        // Whoever sent something with two readings may mean something else by what follows.
        session.set_keepalive(None);
    }
    // A handler can't put its hands on an answer that is refused for being more than it takes.
    let editable = !matches!(rejection, Rejection::UpstreamTooLarge { .. });
    ctx.refused = Some(rejection);
    let (head, body) = if ctx.chain.is_some() {
        let (head, body) = problem;
        let unedited = (head.clone(), body.clone());
        let edited = handlers::respond(session, ctx, shared, head, body, true).await?;
        if editable { edited } else { unedited }
    } else {
        problem
    };
    send(session, ctx, shared, head, body).await
}

/// Whether a final answer has begun: nothing else may be written then.
pub fn written(session: &Session) -> bool {
    session
        .response_written()
        .is_some_and(|h| !h.status.is_informational() || h.status == StatusCode::SWITCHING_PROTOCOLS)
}

/// The problem document of a refusal; on gRPC requests its status in trailers-only form.
pub fn problem_answer(session: &Session, ctx: &Context, rejection: &Rejection) -> Result<(ResponseHeader, Bytes)> {
    let request = &session.req_header().headers;
    let grpc = request.get(CONTENT_TYPE).is_some_and(|v| v.as_bytes().starts_with(b"application/grpc"));
    if grpc {
        let mut head = head(200)?;
        head.set(&CONTENT_TYPE, HeaderValue::from_static("application/grpc"))?;
        head.set(&http::HeaderName::from_static("grpc-status"), HeaderValue::from(grpc_status(rejection.status())))?;
        if let Ok(message) = HeaderValue::from_str(rejection.code()) {
            head.set(&http::HeaderName::from_static("grpc-message"), message)?;
        }
        return Ok((head, Bytes::new()));
    }
    let mut head = head(rejection.status())?;
    head.set(&CONTENT_TYPE, HeaderValue::from_static(problem::CONTENT_TYPE))?;
    head.set(&CACHE_CONTROL, HeaderValue::from_static("no-store"))?;
    if let Some(wait) = rejection.retry_after() {
        head.set(&RETRY_AFTER, HeaderValue::from(retry_after_seconds(wait)))?;
    }
    match rejection {
        Rejection::Unauthorized => {
            head.set(&WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"wasmgate\""))?;
        }
        Rejection::MethodNotAllowed(_) => {
            let allow =
                ctx.allow.clone().unwrap_or(HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"));
            head.set(&ALLOW, allow)?;
        }
        _ => {}
    }
    Ok((head, rejection.problem(ctx.request_id()).to_string().into()))
}

/// The gRPC status that stands for an HTTP status (grpc/doc/statuscodes.md).
fn grpc_status(status: u16) -> u16 {
    match status {
        400 | 413 | 415 | 422 | 431 => 3,
        401 => 16,
        402 | 403 => 7,
        404 | 405 => 12,
        408 | 504 => 4,
        409 => 10,
        429 | 507 => 8,
        502 | 503 => 14,
        _ => 13,
    }
}
