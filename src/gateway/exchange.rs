//! The gateway's own exchange with an upstream, for requests without a body or with one held in memory: one pooled
//! connection, retries that are safe, the answer streamed through or held for a handler.
//!
//! Invariant: a connection goes back to the pool only after a complete answer, and a request is sent again only when
//! no byte of an answer came and sending it twice does no harm (RFC 9110 section 9.2.2).

use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderValue, StatusCode, Version};
use pingora::connectors::http::Connector;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::prelude::timeout;
use pingora::protocols::http::ServerSession;
use pingora::protocols::http::client::HttpSession;
use pingora::proxy::Session;
use pingora::upstreams::peer::{ALPN, HttpPeer};
use pingora::{Error, ErrorSource, ErrorType};

use super::answer::{self, has_body};
use super::context::Context;
use super::forward::{self, Fields};
use super::handlers;
use super::pipeline::Stop;
use super::service::Shared;
use super::upstream::Upstream;
use crate::domain::Rejection;

/// Interim answers (1xx) an upstream may send before the final one.
const MAX_INTERIM: usize = 8;

type Client = HttpSession<()>;

/// A failed attempt.
struct Failure {
    error: Box<Error>,
    /// Nothing of the request can have been acted upon, or acting twice is harmless.
    again: bool,
    /// A kept connection that the upstream had just closed: not the endpoint's fault, and not one of the retries.
    stale: bool,
}

/// Sends the session's request (composed by the pipeline) and answers the client.
pub async fn run(
    session: &mut Session,
    ctx: &mut Context,
    shared: &Shared,
    upstream: &Upstream,
    body: Option<Bytes>,
) -> Result<(), Stop> {
    let connector = ctx.snapshot.connector.clone();
    let deadline = upstream.config.total_timeout.map(|total| ctx.start.mono + total);
    let mut retries = upstream.config.retries;
    let mut stale_left = true;
    let (mut client, reused) = loop {
        let endpoint = ctx.pick(session, upstream)?.endpoint.clone();
        let head = session.req_header().clone();
        match attempt(session, &connector, &endpoint.peer, head, body.as_ref(), deadline).await {
            Ok(client) => break client,
            Err(failure) => {
                if !failure.stale {
                    upstream.failed(&endpoint);
                }
                tracing::debug!(upstream = upstream.name(), endpoint = %endpoint.label, error = %failure.error, "attempt failed");
                let free = failure.stale && std::mem::take(&mut stale_left);
                if failure.again && (free || retries > 0) {
                    retries -= u32::from(!free);
                    continue;
                }
                return Err(stop(failure.error));
            }
        }
    };
    let Some(lease) = ctx.lease.as_ref() else { return Err(Stop::Reject(Rejection::Internal)) };
    let endpoint = lease.endpoint.clone();
    ctx.endpoint = Some(endpoint.label.clone());
    tracing::trace!(reused, endpoint = %endpoint.label, "upstream answered");
    let result = relay(session, ctx, shared, upstream, &mut client, deadline).await;
    match &result {
        Ok(()) => {
            let idle = endpoint.peer.options.idle_timeout;
            connector.release_http_session(client, &endpoint.peer, idle).await;
        }
        Err(stop) => {
            if stop.is_upstreams() {
                upstream.failed(&endpoint);
            }
            client.shutdown().await;
        }
    }
    result
}

/// One try: connect or reuse, send, read up to the final answer's head.
async fn attempt(
    session: &mut Session,
    connector: &Connector,
    peer: &HttpPeer,
    mut head: RequestHeader,
    body: Option<&Bytes>,
    deadline: Option<Instant>,
) -> Result<(Client, bool), Failure> {
    let before_sending = |error: Box<Error>| Failure { error: error.into_up(), again: true, stale: false };
    let left = time_left(deadline).map_err(before_sending)?;
    let connecting = connector.get_http_session(peer);
    let (mut client, reused) = match left {
        Some(left) => timeout(left, connecting).await.unwrap_or_else(|_| Err(Error::new(ErrorType::ConnectTimedout))),
        None => connecting.await,
    }
    .map_err(|error| {
        if matches!(error.etype, ErrorType::H2Downgrade | ErrorType::InvalidH2) && peer.options.alpn != ALPN::H2 {
            connector.prefer_h1(peer);
        }
        before_sending(error)
    })?;
    let idempotent = head.method.is_idempotent();
    let after_sending = |error: Box<Error>| {
        let broken = matches!(
            error.etype,
            ErrorType::ConnectionClosed | ErrorType::ReadError | ErrorType::WriteError | ErrorType::H2Error
        );
        let refused_stream = error.retry == pingora::RetryType::Decided(true);
        Failure { again: broken && idempotent || refused_stream, stale: broken && reused, error: error.into_up() }
    };
    client.set_read_timeout(soonest(peer.options.read_timeout, left));
    client.set_write_timeout(soonest(peer.options.write_timeout, left));
    head.set_version(Version::HTTP_11);
    if let Err(error) = send(&mut client, head, body).await {
        return Err(after_sending(error));
    }
    for _ in 0..=MAX_INTERIM {
        client.read_response_header().await.map_err(after_sending)?;
        let Some(answer) = client.response_header() else { break };
        match answer.status.as_u16() {
            101 => break,
            // The client's own `Expect` was already met: the body is here.
            100 => {}
            102..=199 => {
                interim(session, answer).await.map_err(|error| Failure { error, again: false, stale: false })?
            }
            _ => return Ok((client, reused)),
        }
    }
    client.shutdown().await;
    let error = Error::explain(ErrorType::InvalidHTTPHeader, "interim answers without a final one");
    Err(Failure { error: error.into_up(), again: false, stale: false })
}

async fn send(client: &mut Client, head: RequestHeader, body: Option<&Bytes>) -> pingora::Result<()> {
    let body = body.filter(|b| !b.is_empty());
    if let HttpSession::H2(h2) = client {
        h2.write_request_header(Box::new(head), body.is_none())?;
    } else {
        client.write_request_header(Box::new(head)).await?;
    }
    if let Some(body) = body {
        client.write_request_body(body.clone(), true).await?;
    }
    match client {
        HttpSession::H2(_) => Ok(()),
        other => other.finish_request_body().await,
    }
}

/// Early hints and the like. HTTP/1.0 knows none (RFC 9110 section 15.2), Pingora's HTTP/2 sends none.
async fn interim(session: &mut Session, answer: &ResponseHeader) -> pingora::Result<()> {
    if session.req_header().version != Version::HTTP_11 {
        return Ok(());
    }
    let mut head = answer.clone();
    forward::strip_response(&mut head);
    session.downstream_session.write_response_header(Box::new(head)).await.map_err(|e| e.into_down())
}

/// The answer, from the upstream's head to its end.
async fn relay(
    session: &mut Session,
    ctx: &mut Context,
    shared: &Shared,
    upstream: &Upstream,
    client: &mut Client,
    deadline: Option<Instant>,
) -> Result<(), Stop> {
    let mut head = client.response_header().cloned().ok_or(Rejection::UpstreamInvalid("it has no head"))?;
    if let Some(lease) = &ctx.lease {
        upstream.answered(&lease.endpoint, head.status.as_u16());
    }
    forward::strip_response(&mut head);
    let limit = ctx.chain.as_ref().and_then(|chain| chain.buffer_limit());
    if let Some(limit) = limit {
        let body = if has_body(&ctx.method, head.status) { hold(client, limit, deadline).await? } else { Bytes::new() };
        let (head, body) = handlers::respond(session, ctx, shared, head, body, false).await.map_err(Stop::Broken)?;
        return answer::send(session, ctx, shared, head, body).await.map_err(Stop::Broken);
    }
    let mut first = Bytes::new();
    if ctx.chain.is_some() {
        (head, first) = handlers::respond_head(session, ctx, shared, head).await?;
    }
    stream(session, ctx, shared, client, head, first, deadline).await
}

/// The whole body, for a handler that asked for it.
async fn hold(client: &mut Client, limit: u64, deadline: Option<Instant>) -> Result<Bytes, Stop> {
    let mut body = BytesMut::new();
    loop {
        time_left(deadline).map_err(stop)?;
        let Some(chunk) = client.read_response_body().await.map_err(|e| stop(e.into_up()))? else { break };
        if (body.len() + chunk.len()) as u64 > limit {
            return Err(Stop::Reject(Rejection::UpstreamTooLarge { limit }));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.freeze())
}

/// Passes the answer on as it comes. `first` precedes the upstream's body.
async fn stream(
    session: &mut Session,
    ctx: &Context,
    shared: &Shared,
    client: &mut Client,
    mut head: ResponseHeader,
    first: Bytes,
    deadline: Option<Instant>,
) -> Result<(), Stop> {
    forward::finish_response(&mut head, ctx).map_err(Stop::Broken)?;
    let version = session.req_header().version;
    let with_body = has_body(&ctx.method, head.status);
    let nothing = first.is_empty() && (!with_body || client.response_done());
    frame_answer(&mut head, version, with_body, first.len()).map_err(Stop::Broken)?;
    if version == Version::HTTP_10 && with_body && !head.headers.contains_key(CONTENT_LENGTH) {
        session.set_keepalive(None);
    }
    answer::write_head(session, shared, head, nothing).await.map_err(Stop::Broken)?;
    if with_body {
        if !first.is_empty() {
            session
                .downstream_session
                .write_response_body(first, false)
                .await
                .map_err(|e| Stop::Broken(e.into_down()))?;
        }
        copy_body(session, client, deadline).await?;
    }
    session.downstream_session.finish_body().await.map_err(|e| Stop::Broken(e.into_down()))
}

async fn copy_body(session: &mut Session, client: &mut Client, deadline: Option<Instant>) -> Result<(), Stop> {
    let broken = |e: Box<Error>| Stop::Broken(e.into_down());
    if let (ServerSession::H1(down), HttpSession::H1(up)) = (&mut *session.downstream_session, &mut *client) {
        // The common pair needs no copy between the two connections' buffers.
        loop {
            if deadline.is_some() {
                time_left(deadline).map_err(Stop::Broken)?;
            }
            match up.read_body_ref().await.map_err(|e| Stop::Broken(e.into_up()))? {
                Some([]) => {}
                Some(chunk) => drop(down.write_body(chunk).await.map_err(broken)?),
                None => return Ok(()),
            }
        }
    }
    loop {
        time_left(deadline).map_err(Stop::Broken)?;
        match client.read_response_body().await.map_err(|e| Stop::Broken(e.into_up()))? {
            Some(chunk) => session.downstream_session.write_response_body(chunk, false).await.map_err(broken)?,
            None => break,
        }
    }
    if let HttpSession::H2(h2) = client {
        h2.check_response_end_or_error().map_err(|e| Stop::Broken(e.into_up()))?;
        if let Some(trailers) = h2.read_trailers().await.map_err(|e| Stop::Broken(e.into_up()))? {
            session.downstream_session.write_response_trailers(trailers).await.map_err(broken)?;
        }
    }
    Ok(())
}

/// The answer's framing towards the client, from the length that the upstream declared, if it did.
pub fn frame_answer(head: &mut ResponseHeader, version: Version, with_body: bool, first: usize) -> pingora::Result<()> {
    head.drop_all(&TRANSFER_ENCODING);
    if !with_body {
        // The length of a HEAD or 304 answer speaks of the answer to a GET; a 204 has none.
        if head.status == StatusCode::NO_CONTENT {
            head.drop_all(&CONTENT_LENGTH);
        }
        return Ok(());
    }
    let length = head.headers.get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()).and_then(|v| v.parse::<u64>().ok());
    match length {
        Some(n) if first > 0 => head.set(&CONTENT_LENGTH, HeaderValue::from(n + first as u64)),
        Some(_) => Ok(()),
        None => {
            head.drop_all(&CONTENT_LENGTH);
            if version == Version::HTTP_11 {
                head.set(&TRANSFER_ENCODING, HeaderValue::from_static("chunked"))?;
            }
            Ok(())
        }
    }
}

/// `Ok(None)`: no bound. An error when the time is up.
pub fn time_left(deadline: Option<Instant>) -> pingora::Result<Option<Duration>> {
    let Some(deadline) = deadline else { return Ok(None) };
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(Error::explain(ErrorType::ReadTimedout, "the upstream's total timeout").into_up());
    }
    Ok(Some(left))
}

pub fn soonest(a: Option<Duration>, b: Option<Duration>) -> Option<Duration> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (one, other) => one.or(other),
    }
}

/// An error before anything of the answer was sent.
fn stop(error: Box<Error>) -> Stop {
    match rejection(&error) {
        Some(rejection) => Stop::Reject(rejection),
        None => Stop::Broken(error),
    }
}

/// What an error of Pingora means to the client, on either way. `None`: the client is gone.
pub fn rejection(error: &Error) -> Option<Rejection> {
    use ErrorType::*;
    if let HTTPStatus(status) = error.etype {
        return Some(if status == 408 { Rejection::RequestTimeout } else { Rejection::Internal });
    }
    match error.esource {
        ErrorSource::Upstream => Some(match error.etype {
            ConnectTimedout | ReadTimedout | WriteTimedout | TLSHandshakeTimedout => Rejection::UpstreamTimeout,
            InvalidHTTPHeader | H1Error | H2Error | InvalidH2 | H2Downgrade => {
                Rejection::UpstreamInvalid("it is not valid HTTP")
            }
            ConnectionClosed | ReadError | WriteError => {
                Rejection::UpstreamInvalid("the connection ended before the answer was complete")
            }
            _ => Rejection::UpstreamUnavailable,
        }),
        ErrorSource::Downstream => match error.etype {
            ReadTimedout => Some(Rejection::RequestTimeout),
            ConnectionClosed | ReadError | WriteError | WriteTimedout | H2Error => None,
            _ => Some(Rejection::BadRequest("the request is malformed".into())),
        },
        ErrorSource::Internal | ErrorSource::Unset => Some(Rejection::Internal),
    }
}
