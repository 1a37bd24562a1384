//! One client connection: TLS, the choice between HTTP/1.1 and HTTP/2, and the loop of HTTP/1.1 requests behind
//! the head guard.
//!
//! Invariant: no HTTP/1 head reaches Pingora's parser unless [`head::read`] let it pass.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use pingora::apps::{HttpServerApp, ReusedHttpStream, ServerApp};
use pingora::listeners::ALPN;
use pingora::listeners::tls::Acceptor;
use pingora::prelude::timeout;
use pingora::protocols::Stream;
use pingora::protocols::http::ServerSession;
use pingora::proxy::Session;
use pingora::server::ShutdownWatch;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::conn::Conn;
use super::gate::Gate;
use super::head::{self, Head, HeadLimits};
use super::shutdown::Drain;
use crate::domain::Rejection;

const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// A refused client's remaining bytes are read and dropped for so long, so that the answer is not lost to a reset.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 256 << 10;
/// The rest of a body nobody wanted is drained for so long before the connection is closed instead of reused.
const DRAIN_BODY: Duration = Duration::from_secs(2);

#[derive(Clone, Copy)]
pub struct ConnectionLimits {
    pub head: HeadLimits,
    /// Between two reads of a request body, and for a write that the client does not take.
    pub body: Duration,
}

/// What is told of a request that never got past the guard.
pub trait RefusalLog: Send + Sync {
    /// Answers' request id.
    fn refused(&self, peer: SocketAddr, rejection: &Rejection) -> String;
}

/// What answers the requests that the guard lets through. HTTP/2, bodies and upgrades go to its `HttpServerApp`.
pub trait App: HttpServerApp + Send + Sync + 'static {
    /// Serves a request without a body and without an upgrade: what nearly every request is.
    fn bodyless(
        self: &Arc<Self>,
        request: Incoming<'_>,
        shutdown: &ShutdownWatch,
    ) -> impl Future<Output = Option<ReusedHttpStream>> + Send;
}

/// A request that the guard let through, not parsed yet.
pub struct Incoming<'a> {
    gate: Box<Gate>,
    head: BytesMut,
    /// The answer closes the connection.
    last: bool,
    limits: &'a ConnectionLimits,
}

impl Incoming<'_> {
    pub fn session(self) -> ServerSession {
        let mut session = ServerSession::new_http1(self.gate);
        Self::prepare(&mut session, self.head, self.last, self.limits);
        session
    }

    pub fn proxy_session(self) -> Session {
        let mut session = Session::new_h1(self.gate);
        Self::prepare(&mut session.downstream_session, self.head, self.last, self.limits);
        session
    }

    fn prepare(session: &mut ServerSession, head: BytesMut, last: bool, limits: &ConnectionLimits) {
        if let ServerSession::H1(h1) = session {
            h1.set_pipelined_prefix(head);
        }
        session.set_read_timeout(Some(limits.body));
        session.set_write_timeout(Some(limits.body));
        session.set_total_drain_timeout(Some(DRAIN_BODY));
        if last || limits.head.idle.is_zero() {
            session.set_keepalive_reuses_remaining(Some(0));
        }
    }
}

/// A connection as it was accepted.
pub struct Accepted {
    pub tcp: TcpStream,
    pub peer: SocketAddr,
    pub tls: Option<Arc<Acceptor>>,
    /// HTTP/2 with prior knowledge is spoken here.
    pub h2c: bool,
}

/// Serves a connection to its end. `A` also answers HTTP/2, through Pingora's own server.
pub async fn serve<A>(
    app: &Arc<A>,
    refusals: &dyn RefusalLog,
    accepted: Accepted,
    limits: &ConnectionLimits,
    mut drain: Drain,
) where
    A: App,
{
    let Accepted { tcp, peer, tls, h2c } = accepted;
    // Fails only on a socket that is already dead; the first read finds out.
    let _ = tcp.set_nodelay(true);
    let mut conn = Conn::new(tcp, peer);
    let (stream, ahead): (Stream, BytesMut) = if let Some(acceptor) = tls {
        match timeout(limits.head.deadline, acceptor.tls_handshake(conn)).await {
            Ok(Ok(stream)) => (Box::new(stream), BytesMut::new()),
            Ok(Err(e)) => {
                tracing::debug!(%peer, error = %e, "TLS handshake failed");
                return;
            }
            Err(_) => return,
        }
    } else if h2c {
        let Some((prefix, is_h2)) = sniff_preface(&mut conn, limits, &mut drain).await else { return };
        if is_h2 {
            conn.give_back(prefix);
            app.process_new(Box::new(conn), &drain.0).await;
            return;
        }
        (Box::new(conn), prefix)
    } else {
        (Box::new(conn), BytesMut::new())
    };
    if matches!(stream.selected_alpn_proto(), Some(ALPN::H2)) {
        app.process_new(stream, &drain.0).await;
        return;
    }
    let mut gate = Box::new(Gate::new(stream, ahead));
    // A new connection has as long as a head has: places are few, and silence holds one.
    let mut idle = limits.head.deadline;
    loop {
        match head::read(&mut gate, &limits.head, idle, &mut drain).await {
            Head::Request { buf, bodyless, last } => {
                idle = limits.head.idle;
                let request = Incoming { gate, head: buf, last, limits };
                let reused = if bodyless {
                    app.bodyless(request, &drain.0).await
                } else {
                    app.process_new_http(request.session(), &drain.0).await
                };
                match reused.and_then(|reused| Gate::next(reused.consume().0)) {
                    Some(next) => gate = next,
                    None => return,
                }
            }
            Head::Closed => {
                // The client may be gone already.
                let _ = AsyncWriteExt::shutdown(&mut *gate).await;
                return;
            }
            Head::Refused(rejection) => {
                let id = refusals.refused(peer, &rejection);
                refuse(&mut gate, &rejection, &id).await;
                return;
            }
        }
    }
}

/// `None`: the client is gone. Otherwise what it sent so far, and whether that is the HTTP/2 preface.
async fn sniff_preface(conn: &mut Conn, limits: &ConnectionLimits, drain: &mut Drain) -> Option<(BytesMut, bool)> {
    let mut buf = BytesMut::with_capacity(2048);
    let first = timeout(limits.head.deadline, drain.or_closing(conn.read_buf(&mut buf))).await;
    if !matches!(first, Ok(Some(Ok(n))) if n > 0) {
        return None;
    }
    while buf.len() < H2_PREFACE.len() && H2_PREFACE.starts_with(&buf) {
        match timeout(limits.head.deadline, conn.read_buf(&mut buf)).await {
            Ok(Ok(n)) if n > 0 => {}
            _ => return None,
        }
    }
    let is_h2 = buf.starts_with(H2_PREFACE);
    Some((buf, is_h2))
}

/// Answers a refusal on a connection that no session owns, and closes it.
async fn refuse(stream: &mut Gate, rejection: &Rejection, request_id: &str) {
    let answer = refusal_bytes(rejection, request_id);
    let write = async {
        stream.write_all(&answer).await?;
        stream.flush().await
    };
    if !matches!(timeout(LINGER, write).await, Ok(Ok(()))) {
        return;
    }
    if AsyncWriteExt::shutdown(stream).await.is_err() {
        return;
    }
    let mut left = LINGER_BYTES;
    let mut sink = [0u8; 4096];
    let linger = async {
        while let Ok(n) = stream.read(&mut sink).await {
            left = left.saturating_sub(n);
            if n == 0 || left == 0 {
                return;
            }
        }
    };
    // Time is up or the client has closed: either way the connection is done.
    let _ = timeout(LINGER, linger).await;
}

/// A whole HTTP/1.1 answer for a request that has no session.
pub fn refusal_bytes(rejection: &Rejection, request_id: &str) -> Vec<u8> {
    let status = rejection.status();
    let reason = http::StatusCode::from_u16(status).ok().and_then(|s| s.canonical_reason()).unwrap_or("Error");
    let body = rejection.problem(request_id).to_string();
    let mut out = format!(
        "HTTP/1.1 {status} {reason}\r\ncontent-type: {}\r\ncontent-length: {}\r\ncache-control: no-store\r\n\
         x-request-id: {request_id}\r\nconnection: close\r\n",
        crate::domain::problem::CONTENT_TYPE,
        body.len(),
    );
    if let Rejection::MethodNotAllowed(_) = rejection {
        out.push_str("allow: GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS\r\n");
    }
    if let Some(wait) = rejection.retry_after() {
        out.push_str(&format!("retry-after: {}\r\n", crate::domain::rejection::retry_after_seconds(wait)));
    }
    out.push_str("\r\n");
    out.push_str(&body);
    out.into_bytes()
}
