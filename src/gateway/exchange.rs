//! The gateway's own exchange with an upstream, for requests without a body or with one held in memory: one pooled
//! connection, retries that are safe, the answer streamed through or held for a handler.
//!
//! Invariant: a connection goes back to the pool only after a complete answer, and a request is sent again only when
//! no byte of an answer came and sending it twice does no harm (RFC 9110 section 9.2.2).

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, HOST, TRANSFER_ENCODING};
use http::uri::{Authority, Scheme};
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, Version};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::prelude::timeout;
use pingora::protocols::http::ServerSession;
use pingora::protocols::http::client::HttpSession;
use pingora::protocols::http::v2::client::Http2Session;
use pingora::proxy::Session;
use pingora::upstreams::peer::{ALPN, HttpPeer};
use pingora::{Error, ErrorSource, ErrorType};

use super::answer::{self, has_body};
use super::context::Context;
use super::forward::{self, Fields};
use super::handlers::bodies::{self, Came, Out};
use super::handlers::{self, Headed};
use super::pipeline::Stop;
use super::pool::{Client, Pool};
use super::presence::gone;
use super::proxy::Gateway;
use super::service::Shared;
use super::upstream::{Endpoint, Upstream};
use crate::domain::Rejection;

/// Interim answers (1xx) an upstream may send before the final one.
pub const MAX_INTERIM: usize = 8;

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
    gateway: &Gateway,
    session: &mut Session,
    ctx: &mut Context,
    upstream: &Upstream,
    body: Option<Bytes>,
) -> Result<(), Stop> {
    let pool = &*gateway.pool;
    let deadline = upstream.config.total_timeout.map(|total| ctx.start.mono + total);
    let mut retries = upstream.config.retries;
    let mut stale_left = true;
    let mut connected = loop {
        let endpoint = ctx.pick(session, upstream)?.endpoint.clone();
        let head = Box::new(session.req_header().clone());
        match attempt(session, pool, &endpoint.peer, head, body.as_ref(), deadline).await {
            Ok(client) => break Connected { client: Some(client), pool, endpoint, deadline },
            Err(failure) => {
                if !failure.stale && failure.error.esource == ErrorSource::Upstream {
                    upstream.failed(&endpoint, &failure.error);
                } else {
                    tracing::debug!(upstream = upstream.name(), endpoint = %endpoint.label, error = %failure.error,
                        "attempt ended early");
                }
                let free = failure.stale && std::mem::take(&mut stale_left);
                if failure.again && (free || retries > 0) {
                    retries -= u32::from(!free);
                    continue;
                }
                return Err(stop(failure.error));
            }
        }
    };
    let endpoint = connected.endpoint.clone();
    ctx.endpoint = Some(endpoint.clone());
    let result = relay(session, ctx, &gateway.shared, upstream, &mut connected).await;
    if let Err(stop) = &result
        && stop.is_upstreams()
    {
        let why = match stop {
            Stop::Reject(rejection) => rejection.detail(),
            Stop::Broken(error) => error.to_string(),
        };
        upstream.failed(&endpoint, &why);
    }
    if let Some(mut client) = connected.client {
        // The answer was not read to its end.
        client.shutdown().await;
    }
    result
}

/// An upstream connection whose answer has begun.
struct Connected<'a> {
    /// `None`: given back.
    client: Option<Client>,
    pool: &'a Pool,
    endpoint: Arc<Endpoint>,
    deadline: Option<Instant>,
}

impl Connected<'_> {
    fn client(&mut self) -> Result<&mut Client, Stop> {
        self.client.as_mut().ok_or(Stop::Reject(Rejection::Internal))
    }

    /// The answer is read: connection, endpoint and the caller's place are free for the client's next request, before
    /// the client can know that this one is over.
    async fn done(&mut self, ctx: &mut Context) {
        if let Some(client) = self.client.take() {
            let idle = self.endpoint.peer.options.idle_timeout;
            self.pool.release(client, &self.endpoint.peer, idle).await;
        }
        ctx.release();
    }
}

/// One try: connect or reuse, send, read up to the final answer's head.
async fn attempt(
    session: &mut Session,
    pool: &Pool,
    peer: &HttpPeer,
    mut head: Box<RequestHeader>,
    body: Option<&Bytes>,
    deadline: Option<Instant>,
) -> Result<Client, Failure> {
    let before_sending = |error: Box<Error>| Failure { error: error.into_up(), again: true, stale: false };
    let left = time_left(deadline).map_err(before_sending)?;
    let (mut client, reused) = match left {
        Some(left) => {
            let connected = timeout(left, pool.connect(peer)).await;
            connected.unwrap_or_else(|_| Err(Error::new(ErrorType::ConnectTimedout)))
        }
        None => pool.connect(peer).await,
    }
    .map_err(|error| {
        if matches!(error.etype, ErrorType::H2Downgrade | ErrorType::InvalidH2) && peer.options.alpn != ALPN::H2 {
            pool.prefer_h1(peer);
        }
        before_sending(error)
    })?;
    let idempotent = head.method.is_idempotent();
    // Bytes went out, and none came back. Whether the upstream acted on them can't be known (it may close an idle
    // connection just then), so only a request that may arrive twice goes out again (RFC 9110 section 9.2.2); a POST is a
    // 502. A kept connection that had closed before is noticed when it is taken from the pool.
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
        tokio::select! {
            biased;
            read = client.read_response_header() => read.map_err(after_sending)?,
            error = gone(&mut session.downstream_session, true) => {
                client.shutdown().await;
                return Err(Failure { error, again: false, stale: false });
            }
        }
        let Some(answer) = client.response_header() else { break };
        match answer.status.as_u16() {
            101 => break,
            // The client's own `Expect` was already met: the body is here.
            100 => {}
            102..=199 => {
                interim(session, answer).await.map_err(|error| Failure { error, again: false, stale: false })?
            }
            _ => return Ok(client),
        }
    }
    client.shutdown().await;
    let error = Error::explain(ErrorType::InvalidHTTPHeader, "interim answers without a final one");
    Err(Failure { error: error.into_up(), again: false, stale: false })
}

/// With the host as `:authority` alone (RFC 9113 section 8.3.1).
pub fn send_h2_head(h2: &mut Http2Session, mut head: RequestHeader, end: bool) -> pingora::Result<()> {
    let host = head.remove_header(&HOST);
    let authority = host.and_then(|host| Authority::try_from(host.as_bytes()).ok());
    let path = head.uri.path_and_query().cloned();
    let mut uri = http::uri::Parts::default();
    let is_tls = h2.digest().is_some_and(|digest| digest.ssl_digest.is_some());
    uri.scheme = Some(if is_tls { Scheme::HTTPS } else { Scheme::HTTP });
    (uri.authority, uri.path_and_query) = (authority, path);
    let uri =
        Uri::from_parts(uri).map_err(|_| Error::explain(ErrorType::InvalidHTTPHeader, "no authority and path"))?;
    head.set_uri(uri);
    h2.write_request_header(Box::new(head), end)
}

pub async fn send(client: &mut Client, head: Box<RequestHeader>, body: Option<&Bytes>) -> pingora::Result<()> {
    let body = body.filter(|b| !b.is_empty());
    if let HttpSession::H2(h2) = client {
        send_h2_head(h2, *head, body.is_none())?;
    } else {
        client.write_request_header(head).await?;
    }
    if let Some(body) = body {
        client.write_request_body(body.clone(), true).await?;
    }
    match client {
        HttpSession::H2(_) => Ok(()),
        other => other.finish_request_body().await,
    }
}

/// Early hints and the like. Sessions of HTTP/1.0 and Pingora's HTTP/2 send none.
async fn interim(session: &mut Session, answer: &ResponseHeader) -> pingora::Result<()> {
    let head = forward::strip_response(answer)?;
    session.downstream_session.write_response_header(Box::new(head)).await.map_err(|e| e.into_down())
}

/// The answer, from the upstream's head to its end.
async fn relay(
    session: &mut Session,
    ctx: &mut Context,
    shared: &Shared,
    upstream: &Upstream,
    connected: &mut Connected<'_>,
) -> Result<(), Stop> {
    let client = connected.client()?;
    let head = client.response_header().ok_or(Rejection::UpstreamInvalid("it has no head"))?;
    let mut head = forward::strip_response(head)?;
    upstream.answered(&connected.endpoint, head.status.as_u16());
    if session.req_header().method == Method::HEAD && ctx.method != Method::HEAD {
        // A handler asked for the head alone: its length is not that of what the client gets.
        head.set(&CONTENT_LENGTH, HeaderValue::from(0))?;
    }
    answer::restore_method(session, ctx);
    let with_body = has_body(&ctx.method, head.status);
    let limit = ctx.chain.as_ref().and_then(|chain| chain.buffer_limit());
    if let Some(limit) = limit {
        let body = if with_body { Box::pin(hold(session, connected, limit)).await? } else { Bytes::new() };
        connected.done(ctx).await;
        return Ok(Box::pin(answer::deliver(session, ctx, shared, (head, body))).await?);
    }
    let mut first = Bytes::new();
    if ctx.chain.is_some() {
        (head, first) = match handlers::respond_head(session, ctx, shared, head).await? {
            Headed::On(head, first) => (head, first),
            Headed::Instead(reply) => {
                let reply = answer::from_reply(reply)?;
                return Ok(Box::pin(answer::deliver(session, ctx, shared, reply)).await?);
            }
        };
    }
    if with_body && !ctx.body_filters.is_empty() {
        return Box::pin(filtered(session, ctx, shared, connected, head, first)).await;
    }
    forward::finish_response(&mut head, ctx)?;
    frame(session, &mut head, with_body, first.len())?;
    if !with_body || connected.client()?.response_done() {
        connected.done(ctx).await;
        return Ok(answer::write(session, shared, Box::new(head), first).await?);
    }
    if head.headers.contains_key(CONTENT_LENGTH) {
        // A short answer usually came with its head: then the upstream is done before the client reads a byte.
        let chunk = next_chunk(session, connected).await?.unwrap_or_default();
        first = if first.is_empty() { chunk } else { [first, chunk].concat().into() };
        if connected.client()?.response_done() {
            connected.done(ctx).await;
            return Ok(answer::write(session, shared, Box::new(head), first).await?);
        }
    }
    let left = content_length(&head).map(|n| n.saturating_sub(first.len() as u64));
    answer::write_head(session, shared, Box::new(head), false).await?;
    if !first.is_empty() {
        session.downstream_session.write_response_body(first, false).await.map_err(|e| e.into_down())?;
    }
    copy_body(session, ctx, connected, left).await?;
    connected.done(ctx).await;
    Ok(session.downstream_session.finish_body().await.map_err(|e| e.into_down())?)
}

/// The rest of an answer whose body filters see as it comes. Its length is theirs to change, so it is not announced
/// unless the end is there with the beginning.
async fn filtered(
    session: &mut Session,
    ctx: &mut Context,
    shared: &Shared,
    connected: &mut Connected<'_>,
    head: ResponseHeader,
    mut first: Bytes,
) -> Result<(), Stop> {
    bodies::keep_head(session, ctx, head);
    let mut head_waits = true;
    loop {
        let came = next_for_filters(session, ctx, connected, &mut first).await?;
        let end = matches!(came, Came::End(..));
        let (out, trailers) = match bodies::pass(session, ctx, shared, came).await? {
            Out::Bytes(out, trailers) => (out, trailers),
            Out::Instead(reply) => {
                let (head, body) = answer::from_reply(reply)?;
                return Ok(answer::send(session, ctx, shared, head, body).await?);
            }
        };
        // Pingora writes none to HTTP/1 clients.
        let takes_trailers = matches!(*session.downstream_session, ServerSession::H2(_));
        let trailers = trailers.filter(|fields| takes_trailers && !fields.is_empty());
        if head_waits && end && trailers.is_none() {
            connected.done(ctx).await;
            let head = bodies::take_head(ctx, true)?;
            return Ok(answer::send(session, ctx, shared, head, out).await?);
        }
        if head_waits && (end || !out.is_empty()) {
            head_waits = false;
            let mut head = bodies::take_head(ctx, end)?;
            head.drop_all(&CONTENT_LENGTH);
            forward::finish_response(&mut head, ctx)?;
            frame(session, &mut head, true, 0)?;
            answer::write_head(session, shared, Box::new(head), false).await?;
        }
        if !out.is_empty() {
            session.downstream_session.write_response_body(out, false).await.map_err(|e| e.into_down())?;
        }
        if end {
            if let Some(trailers) = trailers {
                session.downstream_session.write_response_trailers(trailers).await.map_err(|e| e.into_down())?;
            }
            break;
        }
    }
    connected.done(ctx).await;
    Ok(session.downstream_session.finish_body().await.map_err(|e| e.into_down())?)
}

/// The next that filters are to see: more of the answer behind `first`, or one of them that goes on by itself.
async fn next_for_filters(
    session: &mut Session,
    ctx: &mut Context,
    connected: &mut Connected<'_>,
    first: &mut Bytes,
) -> Result<Came, Stop> {
    let chunk = tokio::select! {
        biased;
        chunk = next_chunk(session, connected) => chunk?,
        woken = bodies::woken(&mut ctx.body_filters) => return Ok(woken),
    };
    let end = chunk.is_none() || connected.client()?.response_done();
    let (before, chunk) = (std::mem::take(first), chunk.unwrap_or_default());
    let data = if before.is_empty() { chunk } else { [before, chunk].concat().into() };
    Ok(if end { Came::End(data, read_trailers(connected).await?) } else { Came::Piece(data) })
}

/// The end of an HTTP/2 answer, with what follows its body.
async fn trailers(session: &mut Session, connected: &mut Connected<'_>) -> Result<(), Stop> {
    if let Some(trailers) = read_trailers(connected).await? {
        session.downstream_session.write_response_trailers(trailers).await.map_err(|e| e.into_down())?;
    }
    Ok(())
}

async fn read_trailers(connected: &mut Connected<'_>) -> Result<Option<HeaderMap>, Stop> {
    let HttpSession::H2(h2) = connected.client()? else { return Ok(None) };
    h2.check_response_end_or_error().map_err(|e| e.into_up())?;
    Ok(h2.read_trailers().await.map_err(|e| e.into_up())?)
}

/// The next of the upstream's body, or the client's end.
async fn next_chunk(session: &mut Session, connected: &mut Connected<'_>) -> Result<Option<Bytes>, Stop> {
    time_left(connected.deadline).map_err(stop)?;
    tokio::select! {
        biased;
        chunk = connected.client()?.read_response_body() => chunk.map_err(|e| stop(e.into_up())),
        error = gone(&mut session.downstream_session, true) => Err(Stop::Broken(error)),
    }
}

/// The whole body, for a handler that asked for it.
async fn hold(session: &mut Session, connected: &mut Connected<'_>, limit: u64) -> Result<Bytes, Stop> {
    let mut body = BytesMut::new();
    while let Some(chunk) = next_chunk(session, connected).await? {
        if (body.len() + chunk.len()) as u64 > limit {
            return Err(Stop::Reject(Rejection::UpstreamTooLarge { limit }));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.freeze())
}

/// Passes the rest of the body on as it comes. `left`: its length, when it is known.
async fn copy_body(
    session: &mut Session,
    ctx: &mut Context,
    connected: &mut Connected<'_>,
    mut left: Option<u64>,
) -> Result<(), Stop> {
    // With a known length the client sees the end with the last chunk, and not when this loop does.
    let mut count = |chunk: &[u8]| {
        if let Some(left) = &mut left {
            *left = left.saturating_sub(chunk.len() as u64);
            if *left == 0 {
                ctx.release();
            }
        }
    };
    let deadline = connected.deadline;
    let client = connected.client()?;
    if let (ServerSession::H1(down), HttpSession::H1(up)) = (&mut *session.downstream_session, &mut *client) {
        // The common pair needs no copy between the two connections' buffers.
        loop {
            time_left(deadline)?;
            let chunk = tokio::select! {
                biased;
                chunk = up.read_body_ref() => chunk.map_err(|e| e.into_up())?,
                error = down.read_body_or_idle(true) => match error {
                    Err(error) => return Err(Stop::Broken(error.into_down())),
                    Ok(_) => continue,
                },
            };
            match chunk {
                Some([]) => {}
                Some(chunk) => {
                    count(chunk);
                    down.write_body(chunk).await.map_err(|e| e.into_down())?;
                }
                None => return Ok(()),
            }
        }
    }
    while let Some(chunk) = next_chunk(session, connected).await? {
        count(&chunk);
        session.downstream_session.write_response_body(chunk, false).await.map_err(|e| e.into_down())?;
    }
    trailers(session, connected).await
}

/// As [`frame_answer`]; a body without a length ends with its HTTP/1.0 connection.
pub fn frame(session: &mut Session, head: &mut ResponseHeader, with_body: bool, first: usize) -> pingora::Result<()> {
    let version = session.req_header().version;
    frame_answer(head, version, with_body, first)?;
    if version == Version::HTTP_10 && with_body && !head.headers.contains_key(CONTENT_LENGTH) {
        session.set_keepalive(None);
    }
    Ok(())
}

/// The answer's framing towards the client, from the length that the upstream declared, if it did.
pub fn frame_answer(head: &mut ResponseHeader, version: Version, with_body: bool, first: usize) -> pingora::Result<()> {
    head.drop_all(&TRANSFER_ENCODING);
    if !with_body {
        // The length of a HEAD or 304 answer speaks of the answer to a GET; a 204 has none. A 205 has to say that it is
        // empty, as its end is found like that of a 200 (RFC 9110 section 15.3.6, RFC 9112 section 6.3).
        match head.status {
            StatusCode::NO_CONTENT => head.drop_all(&CONTENT_LENGTH),
            StatusCode::RESET_CONTENT => head.set(&CONTENT_LENGTH, HeaderValue::from(0))?,
            _ => {}
        }
        return Ok(());
    }
    match content_length(head) {
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

pub fn content_length(head: &ResponseHeader) -> Option<u64> {
    head.headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
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

/// What the client is told of an error, unless its answer has begun ([`answer::reject`]).
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
