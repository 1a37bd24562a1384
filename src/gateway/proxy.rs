//! The one implementation of Pingora's `ProxyHttp`: the pipeline decides; what is left to Pingora are requests whose
//! body streams through, and WebSockets.
//!
//! Invariant: both ways to an upstream send the head that the pipeline composed, and finish answers by the same rules.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use http::header::{CONTENT_LENGTH, TE};
use http::{HeaderValue, Method, StatusCode, Version};
use pingora::apps::{HttpPersistentSettings, HttpServerApp, HttpServerOptions, ReusedHttpStream};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::modules::http::HttpModules;
use pingora::protocols::http::ServerSession;
use pingora::protocols::http::v2::server::{H2Options, default_h2_options};
use pingora::proxy::{FailToProxy, HttpProxy, ProxyHttp, ProxyWarnLogContext, Session, http_proxy};
use pingora::server::ShutdownWatch;
use pingora::server::configuration::ServerConf;
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorSource, ErrorType, Result};

use super::access;
use super::access_log::Sink;
use super::answer;
use super::body::Pace;
use super::connection::{self, Incoming};
use super::context::Context;
use super::exchange;
use super::forward::{self, Fields};
use super::handlers::{self, Headed};
use super::identity::Ids;
use super::pipeline::{self, Next, Stop};
use super::pool::Pool;
use super::service::{ApiService, Shared};
use super::snapshot::Action;
use super::upstream::Upstream;
use crate::config;
use crate::domain::{GuestFailure, Rejection};
use crate::limit::limiter::Now;

/// Streams a client may have open on one HTTP/2 connection.
const H2_STREAMS: u32 = 128;
/// Streams a client may have opened and reset at once (rapid reset, CVE-2023-44487).
const H2_RESETS: usize = 64;
/// Bytes of answers held for one HTTP/2 connection whose client does not read.
const H2_SEND_BUFFER: usize = 256 << 10;
/// A bound above any configured number of retries: Pingora counts attempts, the gateway decides.
const ATTEMPTS: usize = 64;
/// Idle upstream connections that a worker keeps for requests that stream.
const UPSTREAM_POOL: usize = 256;

pub struct Gateway {
    pub shared: Arc<Shared>,
    pub api: Arc<dyn ApiService>,
    pub ids: Arc<Ids>,
    /// This worker's: a connection is driven by the worker that opened it.
    pub pool: Arc<Pool>,
    /// `None`: the log is not JSON.
    pub log: Option<Sink>,
}

/// `ProxyHttp` over the gateway.
pub struct Proxy(Arc<Gateway>);

/// What the proxy listeners serve.
///
/// Pingora's `process_new_http` boxes a future with the state of every way to an upstream; moving that costs a bodyless
/// request as much as its log line. Such a request never needs those ways, so it runs the pipeline by itself.
pub struct ProxyApp {
    gateway: Arc<Gateway>,
    pingora: Arc<HttpProxy<Proxy>>,
}

#[async_trait]
impl HttpServerApp for ProxyApp {
    async fn process_new_http(
        self: &Arc<Self>,
        session: ServerSession,
        shutdown: &ShutdownWatch,
    ) -> Option<ReusedHttpStream> {
        self.pingora.process_new_http(session, shutdown).await
    }

    fn h2_options(&self) -> Option<H2Options> {
        self.pingora.h2_options()
    }

    fn server_options(&self) -> Option<&HttpServerOptions> {
        self.pingora.server_options()
    }
}

impl connection::App for ProxyApp {
    async fn bodyless(self: &Arc<Self>, request: Incoming<'_>, shutdown: &ShutdownWatch) -> Option<ReusedHttpStream> {
        let mut session = request.proxy_session();
        match session.downstream_session.read_request().await {
            Ok(true) => {}
            Ok(false) => return None,
            // The guard is the stricter parser; should Pingora still refuse, nothing of the request is known.
            Err(error) => {
                tracing::debug!(%error, "a request that the guard let through could not be parsed");
                session.downstream_session.shutdown().await;
                return None;
            }
        }
        if *shutdown.borrow() {
            session.set_keepalive(None);
        }
        let gateway = &*self.gateway;
        let mut ctx = gateway.context();
        let ended = match pipeline::run(gateway, &mut session, &mut ctx).await {
            Ok(Next::Answered) => Ok(()),
            // Nothing streams without a body or an upgrade.
            Ok(Next::Stream) => gateway.refuse(&mut session, &mut ctx, Rejection::Internal).await,
            Err(Stop::Reject(rejection)) => gateway.refuse(&mut session, &mut ctx, rejection).await,
            Err(Stop::Broken(error)) => Err(error),
        };
        if let Err(error) = &ended {
            gateway.fail(&mut session, error, &mut ctx).await;
        }
        gateway.finish(&mut session, ended.as_ref().err().map(|e| &**e), &mut ctx).await;
        if ended.is_err() {
            return None;
        }
        let settings = HttpPersistentSettings::for_session(&session);
        let reusable = Box::pin(session.downstream_session.finish()).await.ok().flatten()?;
        Some(ReusedHttpStream::from_reusable_stream(reusable, settings))
    }
}

impl Gateway {
    fn context(&self) -> Context {
        Context::new(self.shared.snapshot.load_full(), Now::read(), self.ids.request_id())
    }

    async fn refuse(&self, session: &mut Session, ctx: &mut Context, rejection: Rejection) -> Result<()> {
        Box::pin(answer::reject(session, ctx, &self.shared, rejection)).await
    }

    /// Answers a failure where that can still be done; the status that the client got, 0 for none.
    async fn fail(&self, session: &mut Session, error: &Error, ctx: &mut Context) -> u16 {
        let rejection = ctx.refused.take().or_else(|| exchange::rejection(error));
        let status = rejection.as_ref().map_or(0, Rejection::status);
        if let Some(rejection) = rejection
            && !answer::written(session)
        {
            session.set_keepalive(None);
            if let Err(error) = self.refuse(session, ctx, rejection).await {
                tracing::debug!(%error, "a refusal could not be sent");
            }
        }
        status
    }

    async fn finish(&self, session: &mut Session, error: Option<&Error>, ctx: &mut Context) {
        // Before what they use is counted, and after the caller has what it asked for.
        ctx.release();
        handlers::finish(session, ctx).await;
        access::finished(session, error, ctx, &self.shared, self.log.as_ref());
    }
}

/// HTTP/2 towards clients, bounded.
pub fn h2_options(server: &config::Server) -> H2Options {
    let mut options = default_h2_options();
    options
        .max_concurrent_streams(H2_STREAMS)
        .max_header_list_size(u32::try_from(server.max_header_bytes).unwrap_or(u32::MAX))
        .max_concurrent_reset_streams(H2_RESETS)
        .max_pending_accept_reset_streams(H2_RESETS)
        .max_send_buffer_size(H2_SEND_BUFFER);
    options
}

pub fn app(gateway: Arc<Gateway>, server: &config::Server) -> Arc<ProxyApp> {
    let conf = ServerConf {
        threads: 1,
        max_retries: ATTEMPTS,
        upstream_keepalive_pool_size: UPSTREAM_POOL,
        ..ServerConf::default()
    };
    let mut proxy = http_proxy(&Arc::new(conf), Proxy(gateway.clone()));
    let mut options = HttpServerOptions::default();
    // Only connections whose first bytes are the HTTP/2 preface come to Pingora's own server.
    options.h2c = true;
    // The pipeline refuses it, as a problem document.
    options.allow_connect_method_proxying = true;
    options.h2_idle_timeout = Some(server.keepalive);
    proxy.server_options = Some(options);
    proxy.h2_options = Some(h2_options(server));
    Arc::new(ProxyApp { gateway, pingora: Arc::new(proxy) })
}

impl Proxy {
    fn upstream(ctx: &Context) -> Option<Arc<Upstream>> {
        match &ctx.route.as_ref()?.action {
            Action::Upstream(upstream) => Some(upstream.clone()),
            _ => None,
        }
    }

    /// The endpoint of the attempt failed; whether another attempt is allowed.
    fn attempt_failed(ctx: &Context, error: &Error) -> bool {
        let (Some(upstream), Some(lease)) = (Self::upstream(ctx), &ctx.lease) else { return false };
        upstream.failed(&lease.endpoint, error);
        ctx.attempts <= upstream.config.retries
    }
}

#[async_trait]
impl ProxyHttp for Proxy {
    type CTX = Context;

    fn new_ctx(&self) -> Context {
        self.0.context()
    }

    /// None: Pingora's default adds compression, which costs every request.
    fn init_downstream_modules(&self, _modules: &mut HttpModules) {}

    async fn request_filter(&self, session: &mut Session, ctx: &mut Context) -> Result<bool> {
        match pipeline::run(&self.0, session, ctx).await {
            Ok(Next::Answered) => Ok(true),
            Ok(Next::Stream) => Ok(false),
            Err(Stop::Reject(rejection)) => self.0.refuse(session, ctx, rejection).await.map(|()| true),
            Err(Stop::Broken(error)) => Err(error),
        }
    }

    async fn upstream_peer(&self, session: &mut Session, ctx: &mut Context) -> Result<Box<HttpPeer>> {
        let internal = || Error::explain(ErrorType::InternalError, "a streamed request without an upstream");
        let upstream = Self::upstream(ctx).ok_or_else(internal)?;
        let picked = ctx.pick(session, &upstream).map(|lease| lease.endpoint.peer.clone());
        let mut peer = picked.map_err(|_| Error::explain(ErrorType::ConnectError, "no endpoint is alive").into_up())?;
        if let Some(total) = upstream.config.total_timeout {
            let left = exchange::time_left(Some(ctx.start.mono + total))?;
            peer.options.read_timeout = exchange::soonest(peer.options.read_timeout, left);
            peer.options.total_connection_timeout = exchange::soonest(peer.options.total_connection_timeout, left);
        }
        Ok(Box::new(peer))
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        head: &mut RequestHeader,
        _ctx: &mut Context,
    ) -> Result<()> {
        // Pingora drops `te` as hop-by-hop; the pipeline left the one value that gRPC needs.
        if let Some(te) = session.req_header().headers.get(TE) {
            head.set(&TE, te.clone())?;
        }
        Ok(())
    }

    async fn request_body_filter(
        &self,
        session: &mut Session,
        body: &mut Option<Bytes>,
        _end: bool,
        ctx: &mut Context,
    ) -> Result<()> {
        let Some(chunk) = body else { return Ok(()) };
        ctx.streamed += chunk.len() as u64;
        // An HTTP/2 stream may be a conversation, and holds no connection of its own.
        if !session.is_http2() && !ctx.upgrade {
            let pace = Pace::since(ctx.start.mono, ctx.snapshot.config.server.body_timeout);
            if pace.left(ctx.streamed).is_zero() {
                ctx.refused = Some(Rejection::RequestTimeout);
                return Err(Error::explain(ErrorType::ReadTimedout, "the body drips").into_down());
            }
        }
        // After the handshake of an upgrade the bytes are no body.
        let limit = ctx.route().map_or(0, |r| r.max_body_bytes);
        if ctx.streamed > limit && !ctx.upgrade {
            ctx.refused = Some(Rejection::PayloadTooLarge { limit });
            return Err(Error::explain(ErrorType::HTTPStatus(413), "the body is over the route's limit").into_down());
        }
        Ok(())
    }

    async fn upstream_response_filter(
        &self,
        session: &mut Session,
        head: &mut ResponseHeader,
        ctx: &mut Context,
    ) -> Result<()> {
        let status = head.status.as_u16();
        if status == 101 && !ctx.upgrade {
            ctx.refused = Some(Rejection::UpstreamInvalid("it switches protocols unasked"));
            return Err(Error::explain(ErrorType::InvalidHTTPHeader, "a 101 to a request without an upgrade").into_up());
        }
        *head = forward::strip_response(head)?;
        if status == 101 {
            // Exactly what a WebSocket handshake needs goes back (RFC 6455 section 4.2.2).
            head.set(&http::header::CONNECTION, HeaderValue::from_static("upgrade"))?;
            head.set(&http::header::UPGRADE, HeaderValue::from_static("websocket"))?;
        }
        if head.status.is_informational() && status != 101 {
            ctx.interim += 1;
            if ctx.interim > exchange::MAX_INTERIM {
                let what = "interim answers without a final one";
                return Err(Error::explain(ErrorType::InvalidHTTPHeader, what).into_up());
            }
            return Ok(());
        }
        if session.req_header().method == Method::HEAD && ctx.method != Method::HEAD {
            head.set(&CONTENT_LENGTH, HeaderValue::from(0))?;
        }
        answer::restore_method(session, ctx);
        if let (Some(upstream), Some(lease)) = (Self::upstream(ctx), &ctx.lease) {
            upstream.answered(&lease.endpoint, status);
            ctx.endpoint = Some(lease.endpoint.clone());
        }
        if ctx.chain.is_some() {
            let taken = std::mem::replace(head, answer::head(status)?);
            let (new, first) = match handlers::respond_head(session, ctx, &self.0.shared, taken).await {
                Ok(Headed::On(head, first)) => (head, first),
                Err(Stop::Broken(error)) => return Err(error),
                refused => {
                    ctx.refused = Some(match refused {
                        Err(Stop::Reject(rejection)) => rejection,
                        _ => {
                            let why = "it answered in place of an upgrade or of an upstream that was sent a stream";
                            Rejection::Guest(GuestFailure::BadOutput(why.into()))
                        }
                    });
                    return Err(Error::explain(ErrorType::InternalError, "a handler failed on the answer"));
                }
            };
            *head = new;
            if !first.is_empty() {
                head.drop_all(&CONTENT_LENGTH);
                ctx.before_body = first;
            }
        }
        Ok(())
    }

    async fn response_filter(&self, session: &mut Session, head: &mut ResponseHeader, ctx: &mut Context) -> Result<()> {
        if head.status.is_informational() && head.status.as_u16() != 101 {
            return Ok(());
        }
        forward::finish_response(head, ctx)?;
        if head.status != StatusCode::SWITCHING_PROTOCOLS {
            let version = session.req_header().version;
            let with_body = answer::has_body(&ctx.method, head.status);
            exchange::frame_answer(head, version, with_body, 0)?;
            ctx.bodiless = !with_body;
            let length = exchange::content_length(head);
            if !with_body || length == Some(0) {
                ctx.release();
            }
            if version == Version::HTTP_10 && with_body && length.is_none() {
                session.set_keepalive(None);
            }
        }
        if self.0.shared.is_draining() {
            session.set_keepalive(None);
        }
        Ok(())
    }

    fn response_body_filter(
        &self,
        _session: &mut Session,
        body: &mut Option<Bytes>,
        end: bool,
        ctx: &mut Context,
    ) -> Result<Option<std::time::Duration>> {
        if end {
            ctx.release();
        }
        if ctx.bodiless {
            *body = None;
        } else if !ctx.before_body.is_empty() {
            let first = std::mem::take(&mut ctx.before_body);
            let rest = body.take().unwrap_or_default();
            *body = Some([first, rest].concat().into());
        }
        let total = Self::upstream(ctx).and_then(|u| u.config.total_timeout).filter(|_| !ctx.upgrade);
        if let Some(total) = total {
            exchange::time_left(Some(ctx.start.mono + total))?;
        }
        Ok(None)
    }

    fn fail_to_connect(
        &self,
        _session: &mut Session,
        _peer: &HttpPeer,
        ctx: &mut Context,
        mut error: Box<Error>,
    ) -> Box<Error> {
        // Nothing was sent yet.
        error.set_retry(Self::attempt_failed(ctx, &error));
        error
    }

    fn error_while_proxy(
        &self,
        _peer: &HttpPeer,
        session: &mut Session,
        mut error: Box<Error>,
        ctx: &mut Context,
        client_reused: bool,
    ) -> Box<Error> {
        let upstreams = error.esource == ErrorSource::Upstream;
        let allowed = upstreams && Self::attempt_failed(ctx, &error);
        let replayable = session.req_header().method.is_idempotent()
            && !session.as_ref().retry_buffer_truncated()
            && !answer::written(session);
        error.retry.decide_reuse(client_reused);
        let retry = error.retry() && allowed && replayable;
        error.set_retry(retry);
        if retry {
            ctx.streamed = 0;
        }
        error
    }

    async fn fail_to_proxy(&self, session: &mut Session, error: &Error, ctx: &mut Context) -> FailToProxy {
        let error_code = self.0.fail(session, error, ctx).await;
        FailToProxy { error_code, can_reuse_downstream: false }
    }

    async fn logging(&self, session: &mut Session, error: Option<&Error>, ctx: &mut Context) {
        self.0.finish(session, error, ctx).await;
    }

    /// The access log says it.
    fn suppress_error_log(&self, _session: &Session, _ctx: &Context, _error: &Error) -> bool {
        true
    }

    fn suppress_proxy_warn_log(
        &self,
        _session: &Session,
        _ctx: &Context,
        _error: &Error,
        _context: ProxyWarnLogContext,
    ) -> bool {
        true
    }
}
