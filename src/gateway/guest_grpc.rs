//! gRPC calls that guests make to upstreams: one stream of a pooled HTTP/2 connection each.
//!
//! Invariant: a call that nobody waits for is reset, and its connection stays with the pool; one that waits is told how it
//! ended.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST, TE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request};
use pingora::ErrorType;
use pingora::http::RequestHeader;
use pingora::protocols::http::client::HttpSession;
use pingora::protocols::http::v2::client::Http2Session;
use pingora::protocols::http::v2::write_body;
use pingora::upstreams::peer::{ALPN, HttpPeer};

use super::exchange::send_h2_head;
use super::pool::Pool;
use super::upstream::{Tried, Upstream};
use crate::engine::grpc::{GrpcCall, GrpcEvent, GrpcStatus, Messages};

const TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// The call, to its end.
pub async fn run(pool: &Pool, upstream: &Upstream, mut call: GrpcCall) {
    let gone = call.gone.clone();
    let deadline = call.timeout.map(|timeout| Instant::now() + timeout);
    let Some(lease) = upstream.pick(&[], Tried::default(), Instant::now()) else {
        return call.end(GrpcStatus::unavailable("no endpoint is alive")).await;
    };
    let peer = &lease.endpoint.peer;
    if peer.options.alpn == ALPN::H1 {
        let why = format!("the upstream `{}` is not configured with `http = \"h2\"`", upstream.name());
        return call.end(GrpcStatus::unavailable(why)).await;
    }
    let opened = in_time(deadline, open(pool, peer, head(upstream, &call)));
    let mut h2 = match gone.or_cancelled(opened).await {
        Some(Ok(Ok(h2))) => h2,
        Some(Ok(Err(why))) => {
            upstream.failed(&lease.endpoint, &why);
            return call.end(GrpcStatus::unavailable(why)).await;
        }
        Some(Err(late)) => return call.end(late).await,
        None => return,
    };
    let work = exchange(&mut h2, &mut call, peer.options.write_timeout, |status| {
        upstream.answered(&lease.endpoint, status);
    });
    let ended = gone.or_cancelled(in_time(deadline, work)).await;
    // What is not at its end is reset by this.
    pool.release(HttpSession::H2(h2), peer, peer.options.idle_timeout).await;
    if let Some(ended) = ended {
        call.end(ended.unwrap_or_else(|late| late)).await;
    }
}

async fn in_time<T>(deadline: Option<Instant>, work: impl Future<Output = T>) -> Result<T, GrpcStatus> {
    match deadline {
        Some(deadline) => tokio::time::timeout_at(deadline.into(), work).await.map_err(|_| GrpcStatus::too_late()),
        None => Ok(work.await),
    }
}

/// (gRPC over HTTP/2, "Requests")
fn head(upstream: &Upstream, call: &GrpcCall) -> RequestHeader {
    let (mut head, ()) = Request::new(()).into_parts();
    head.method = Method::POST;
    head.uri = call.path.clone().into();
    head.headers = call.metadata.clone();
    let mut set = |name, value| head.headers.insert(name, value);
    set(HOST, upstream.authority.clone());
    set(TE, HeaderValue::from_static("trailers"));
    set(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    // At most 60 s, so never over the eight digits that it may have.
    let timeout = call.timeout.map(|timeout| HeaderValue::from_str(&format!("{}m", timeout.as_millis())));
    if let Some(Ok(timeout)) = timeout {
        set(TIMEOUT, timeout);
    }
    head.into()
}

/// A stream whose head has gone. Once more where a kept connection had closed.
async fn open(pool: &Pool, peer: &HttpPeer, head: RequestHeader) -> Result<Http2Session, String> {
    let mut again = true;
    loop {
        let (client, reused) = pool.connect(peer).await.map_err(|error| error.to_string())?;
        let HttpSession::H2(mut h2) = client else { return Err("the endpoint speaks no HTTP/2".into()) };
        match send_h2_head(&mut h2, head.clone(), false) {
            Ok(()) => return Ok(h2),
            Err(_) if reused && std::mem::take(&mut again) => {}
            Err(error) => return Err(error.to_string()),
        }
    }
}

/// Both directions, until the answer has ended.
async fn exchange(
    h2: &mut Http2Session,
    call: &mut GrpcCall,
    write_timeout: Option<Duration>,
    answered: impl FnOnce(u16),
) -> GrpcStatus {
    let Some(mut writer) = h2.take_request_body_writer() else { return GrpcStatus::unavailable("there is no stream") };
    let GrpcCall { messages, events, limit, .. } = call;
    let sending = async {
        while let Some(message) = messages.recv().await {
            match write_body(&mut writer, message.framed.clone(), false, write_timeout).await {
                Ok(()) => {}
                Err(error) if error.etype == ErrorType::WriteTimedout => {
                    return GrpcStatus::unavailable(error.to_string());
                }
                // What comes says how it ended.
                Err(_) => return std::future::pending().await,
            }
        }
        let _ = writer.send_data(Bytes::new(), true);
        std::future::pending().await
    };
    let receiving = async {
        let told = answer(h2, events, *limit, answered).await;
        told.unwrap_or_else(|status| status)
    };
    tokio::select! {
        biased;
        status = receiving => status,
        status = sending => status,
    }
}

/// The answer, told as it comes. The error: how a broken one ends.
async fn answer(
    h2: &mut Http2Session,
    events: &tokio::sync::mpsc::Sender<GrpcEvent>,
    limit: u64,
    answered: impl FnOnce(u16),
) -> Result<GrpcStatus, GrpcStatus> {
    let broken = |error: Box<pingora::Error>| GrpcStatus::unavailable(error.to_string());
    let unheard = |_| GrpcStatus::unavailable("nobody listens");
    h2.read_response_header().await.map_err(broken)?;
    let head = h2.response_header().ok_or_else(GrpcStatus::missing)?;
    let (status, fields): (_, HeaderMap) = (head.status, head.headers.clone());
    answered(status.as_u16());
    if let Some(status) = GrpcStatus::of_head(status, &fields) {
        return Err(status);
    }
    if h2.check_response_end_or_error().map_err(broken)? {
        // An answer of trailers alone.
        let status = GrpcStatus::of(&fields).ok_or_else(GrpcStatus::missing)?;
        events.send(GrpcEvent::Trailing(fields)).await.map_err(unheard)?;
        return Ok(status);
    }
    events.send(GrpcEvent::Initial(fields)).await.map_err(unheard)?;
    let mut messages = Messages::default();
    while let Some(piece) = h2.read_response_body().await.map_err(broken)? {
        messages.push(&piece);
        while let Some(message) = messages.next(limit)? {
            events.send(GrpcEvent::Message(message)).await.map_err(unheard)?;
        }
    }
    messages.end()?;
    let fields = h2.read_trailers().await.map_err(broken)?.ok_or_else(GrpcStatus::missing)?;
    let status = GrpcStatus::of(&fields).ok_or_else(GrpcStatus::missing)?;
    events.send(GrpcEvent::Trailing(fields)).await.map_err(unheard)?;
    Ok(status)
}
