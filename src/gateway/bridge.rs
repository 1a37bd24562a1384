//! Between Pingora's sessions and the API: requests in, answers out, bodies streamed both ways.
//!
//! Invariant: the API never gets more of a body than the limit, nor faster than it reads.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt;
use http::header::TRANSFER_ENCODING;
use pingora::ErrorType;
use pingora::http::ResponseHeader;
use pingora::prelude::timeout;
use pingora::protocols::http::ServerSession;
use pingora::proxy::Session;
use tokio::sync::mpsc;

use super::answer::{self, has_body};
use super::body::{self, Pace};
use super::context::Context;
use super::exchange::{content_length, frame};
use super::forward;
use super::handlers::{self, Headed};
use super::pipeline::Stop;
use super::presence;
use super::proxy::Gateway;
use super::service::{ApiBody, ApiService, Caller};
use crate::domain::Rejection;
use crate::engine::Cancel;

/// Chunks of a request body between the connection and the API.
const BODY_CHUNKS: usize = 4;

/// Answers from the tenant API.
pub async fn tenant_api(
    gateway: &Gateway,
    session: &mut Session,
    ctx: &mut Context,
    held: Option<Bytes>,
    max_body: u64,
) -> Result<(), Stop> {
    let caller = Caller {
        principal: ctx.principal.clone(),
        request_id: ctx.request_id().into(),
        peer: ctx.peer,
        local: None,
        gone: Cancel::default(),
    };
    let request = request(&session.downstream_session, caller)?;
    if held.is_none() {
        body::go_on(session).await?;
    }
    let body_timeout = ctx.snapshot.config.server.body_timeout;
    let answer = call(&*gateway.api, &mut session.downstream_session, request, held, max_body, body_timeout).await?;
    let (mut parts, mut body) = answer.into_parts();
    // The API leaves what it refused with, for the log and the caller's usage.
    ctx.refused = parts.extensions.remove::<Rejection>();
    let mut head = ResponseHeader::from(parts);
    let mut first = Bytes::new();
    if ctx.chain.is_some() {
        (head, first) = match handlers::respond_head(session, ctx, &gateway.shared, head).await? {
            Headed::On(head, first) => (head, first),
            Headed::Instead(reply) => {
                return Ok(answer::deliver(session, ctx, &gateway.shared, answer::from_reply(reply)?).await?);
            }
        };
    }
    forward::finish_response(&mut head, ctx)?;
    answer::restore_method(session, ctx);
    let with_body = has_body(&ctx.method, head.status);
    frame(session, &mut head, with_body, first.len())?;
    let length = content_length(&head).map(|n| n.saturating_sub(first.len() as u64));
    if !with_body || length == Some(0) {
        ctx.release();
    }
    answer::write_head(session, &gateway.shared, Box::new(head), !with_body).await?;
    if with_body {
        if !first.is_empty() {
            session.downstream_session.write_response_body(first, false).await.map_err(|e| e.into_down())?;
        }
        copy(&mut session.downstream_session, &mut body, length, || ctx.release()).await?;
    }
    ctx.release();
    session.downstream_session.finish_body().await.map_err(|e| Stop::Broken(e.into_down()))
}

/// The request as the API gets it; its body comes from [`call`].
pub fn request(session: &ServerSession, caller: Caller) -> Result<http::Request<()>, Rejection> {
    let mut parts = session.req_header().as_owned_parts();
    // The body arrives decoded.
    parts.headers.remove(TRANSFER_ENCODING);
    if !session.req_header().raw_path().starts_with(b"/") && parts.uri.path_and_query().is_none() {
        return Err(Rejection::BadRequest("the request target is malformed".into()));
    }
    let mut request = http::Request::from_parts(parts, ());
    request.extensions_mut().insert(caller);
    Ok(request)
}

/// Calls the API while the request's body is pumped to it. A client that goes, or whose body breaks off, has the call
/// stopped but not dropped: what it has begun to change is changed, audited and taken up as a whole.
pub async fn call(
    api: &dyn ApiService,
    session: &mut ServerSession,
    request: http::Request<()>,
    held: Option<Bytes>,
    max_body: u64,
    body_timeout: Duration,
) -> Result<http::Response<ApiBody>, Stop> {
    let cancel = request.extensions().get::<Caller>().map(|caller| caller.gone.clone()).unwrap_or_default();
    let mut to = None;
    let body: ApiBody = match held {
        Some(body) => Box::pin(futures_util::stream::once(async { Ok(body) })),
        None if session.is_body_done() => Box::pin(futures_util::stream::empty()),
        None => {
            let (sender, mut receiver) = mpsc::channel::<std::io::Result<Bytes>>(BODY_CHUNKS);
            to = Some(sender);
            Box::pin(futures_util::stream::poll_fn(move |cx| receiver.poll_recv(cx)))
        }
    };
    let mut answer = api.call(request.map(|()| body));
    let present = async {
        if let Some(to) = to {
            pump(session, to, max_body, body_timeout).await?;
        }
        Err(Stop::Broken(presence::gone(session, false).await))
    };
    let stop = tokio::select! {
        biased;
        answer = &mut answer => return Ok(answer),
        stop = present => stop,
    };
    cancel.cancel();
    answer.await;
    stop
}

/// Ends with the body, or when the API has stopped reading.
async fn pump(
    session: &mut ServerSession,
    to: mpsc::Sender<std::io::Result<Bytes>>,
    max_body: u64,
    body_timeout: Duration,
) -> Result<(), Stop> {
    let mut read = 0u64;
    let pace = Pace::since(Instant::now(), body_timeout);
    let stop = loop {
        let late = || Stop::Reject(Rejection::RequestTimeout);
        match timeout(pace.left(read), session.read_request_body()).await {
            Ok(Ok(None)) => return Ok(()),
            Ok(Ok(Some(chunk))) => {
                read += chunk.len() as u64;
                if read > max_body {
                    break Rejection::PayloadTooLarge { limit: max_body }.into();
                }
                if to.send(Ok(chunk)).await.is_err() {
                    return Ok(());
                }
            }
            Ok(Err(e)) if e.etype == ErrorType::ReadTimedout => break late(),
            Ok(Err(e)) => break Stop::Broken(e.into_down()),
            Err(_) => break late(),
        }
    };
    // Told to the API, so that it does not take a cut body for a whole one; what it says about it is less than what is
    // known here.
    let _ = to.send(Err(std::io::ErrorKind::UnexpectedEof.into())).await;
    Err(stop)
}

/// Streams an answer's body as it comes. With a known length, `before_end` is called before its last chunk, which ends
/// the answer for the client. An error of the API cuts the answer off, so that nobody takes it for whole.
pub async fn copy(
    session: &mut ServerSession,
    body: &mut ApiBody,
    length: Option<u64>,
    mut before_end: impl FnMut(),
) -> pingora::Result<()> {
    let mut left = length;
    while let Some(chunk) = body.next().await {
        let chunk = chunk.map_err(|e| pingora::Error::because(ErrorType::InternalError, "the API's answer", e))?;
        if let Some(left) = &mut left {
            *left = left.saturating_sub(chunk.len() as u64);
            if *left == 0 {
                before_end();
            }
        }
        session.write_response_body(chunk, false).await.map_err(|e| e.into_down())?;
    }
    Ok(())
}
