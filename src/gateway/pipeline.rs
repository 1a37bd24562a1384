//! The steps of one request, from its head to the decision who answers.
//!
//! Invariant: nothing reads the body, and no guest or upstream sees anything, before the caller is known, allowed and
//! admitted.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::header::HOST;
use http::uri::PathAndQuery;
use http::{HeaderValue, Uri, Version};
use pingora::Error;
use pingora::http::RequestHeader;
use pingora::protocols::http::ServerSession;
use pingora::proxy::Session;

use super::answer;
use super::bridge;
use super::context::Context;
use super::exchange;
use super::forward::{self, Fields};
use super::guest;
use super::handlers::{self, Passed};
use super::identity::{self, Trace};
use super::proxy::Gateway;
use super::routes::{self, Found};
use super::snapshot::{Action, RouteState};
use super::{body, respond};
use crate::auth::cache::AuthError;
use crate::auth::credential;
use crate::config::{AuthMode, Route};
use crate::domain::path::{normalize_host, normalize_path};
use crate::domain::{ApiKey, Principal, Rejection, ScopeSet, Subject};
use crate::limit::limiter::{self, Decision};
use crate::limit::network;
use crate::telemetry::AuthResult;

/// Why a request ends before its answer.
pub enum Stop {
    /// The client is told.
    Reject(Rejection),
    /// The client is gone, or its answer already broken off.
    Broken(Box<Error>),
}

impl Stop {
    /// An answer that broke on the upstream's side.
    pub fn is_upstreams(&self) -> bool {
        match self {
            Stop::Reject(rejection) => matches!(rejection, Rejection::UpstreamInvalid(_) | Rejection::UpstreamTimeout),
            Stop::Broken(error) => error.esource == pingora::ErrorSource::Upstream,
        }
    }
}

impl From<Rejection> for Stop {
    fn from(rejection: Rejection) -> Self {
        Stop::Reject(rejection)
    }
}

impl From<Box<Error>> for Stop {
    fn from(error: Box<Error>) -> Self {
        Stop::Broken(error)
    }
}

pub enum Next {
    /// The client has its answer.
    Answered,
    /// Pingora's proxy streams the request to the upstream.
    Stream,
}

pub async fn run(gateway: &Gateway, session: &mut Session, ctx: &mut Context) -> Result<Next, Stop> {
    identify(gateway, session, ctx);
    if session.is_http2() {
        // HTTP/1 sessions get theirs from the connection loop.
        let patience = ctx.snapshot.config.server.body_timeout;
        session.set_write_timeout(Some(patience));
    }
    let old = session.req_header().version == Version::HTTP_10;
    if let ServerSession::H1(h1) = &mut *session.downstream_session {
        // HTTP/1.0 knows no interim answers (RFC 9110 section 15.2).
        h1.set_ignore_info_resp(old);
    }
    let target = find_route(session, ctx)?;
    let state = ctx.route.clone().ok_or(Rejection::Internal)?;
    let snapshot = ctx.snapshot.clone();
    let route = &snapshot.config.routes[state.index];
    authorise(gateway, session, ctx, route, &state).await?;
    admit(gateway, ctx, route).await?;
    // From here on the session knows the body's framing by itself; the head may change.
    let bodyless = session.downstream_session.is_body_empty();
    let length = body::declared(session);
    if length.is_some_and(|n| n > route.max_body_bytes) {
        return Err(Rejection::PayloadTooLarge { limit: route.max_body_bytes }.into());
    }
    ctx.upgrade = matches!(state.action, Action::Upstream(_)) && forward::is_websocket(session.req_header());
    let upgrade = ctx.upgrade;
    if forward::has_too_many_options(&session.req_header().headers) {
        return Err(Rejection::BadRequest("`Connection` has too many options".into()).into());
    }
    let head = forward::take(session.req_header_mut());
    *session.req_header_mut() = compose(gateway, ctx, route, &state, head, target)?;
    let mut held: Option<Bytes> = None;
    if !state.handlers.is_empty() {
        let phase = handlers::request_phase(session, ctx, &gateway.shared, &state.handlers, route.max_body_bytes);
        match phase.await? {
            Passed::On(body) => held = body,
            Passed::Answered(reply) => {
                let reply = answer::from_reply(reply)?;
                // Boxed, like all that most requests don't do: the future of a request is moved when Pingora boxes it.
                Box::pin(answer::deliver(session, ctx, &gateway.shared, reply)).await?;
                return Ok(Next::Answered);
            }
        }
    }
    match &state.action {
        Action::Upstream(upstream) => {
            if !upgrade && (bodyless || held.is_some()) {
                forward::frame_request(session.req_header_mut(), held.as_ref().map(Bytes::len))?;
                exchange::run(gateway, session, ctx, upstream, held).await?;
                return Ok(Next::Answered);
            }
            forward::restore_framing(session.req_header_mut(), length.filter(|_| !bodyless))?;
            return Ok(Next::Stream);
        }
        Action::Guest(handler) => {
            Box::pin(guest::answer(gateway, session, ctx, handler, held, route.max_body_bytes)).await?;
        }
        Action::Api => Box::pin(bridge::tenant_api(gateway, session, ctx, held, route.max_body_bytes)).await?,
        Action::Own => Box::pin(respond::own(gateway, session, ctx, &route.target)).await?,
    }
    Ok(Next::Answered)
}

/// The request's head as handlers and upstreams get it.
fn compose(
    gateway: &Gateway,
    ctx: &Context,
    route: &Route,
    state: &RouteState,
    mut head: http::request::Parts,
    target: Option<Uri>,
) -> Result<RequestHeader, Stop> {
    forward::strip_request(&mut head, ctx.upgrade)?;
    if let Some(target) = target {
        head.uri = target;
    }
    let fields = &mut head.headers;
    forward::join_cookies(fields)?;
    if !fields.contains_key(HOST) {
        // HTTP/2 has `:authority` instead; handlers and HTTP/1 upstreams look for `Host`. An HTTP/1.0 client may name
        // none, and goes to the upstream's default.
        let host = match (&ctx.host, &state.action) {
            (Some(host), _) => Some(host),
            (None, Action::Upstream(upstream)) => Some(&upstream.authority),
            (None, _) => None,
        };
        if let Some(host) = host {
            fields.set(&HOST, host.clone())?;
        }
    }
    // Before handlers look: a guest believes a forwarded address as an upstream does.
    forward::compose_request(fields, ctx, &gateway.ids)?;
    if !route.request_headers.is_empty() {
        forward::apply(fields, &route.request_headers)?;
    }
    Ok(head.into())
}

/// Addresses and ids.
fn identify(gateway: &Gateway, session: &Session, ctx: &mut Context) {
    let head = session.req_header();
    if let Some(peer) = session.client_addr().and_then(|a| a.as_inet()) {
        ctx.peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
    }
    let trusted = &ctx.snapshot.config.server.trusted_proxies;
    ctx.peer_is_trusted = !trusted.is_empty() && identity::is_trusted(ctx.peer.ip(), trusted);
    ctx.client = identity::client_address(ctx.peer, &head.headers, trusted);
    if let Some(id) = identity::sane_request_id(&head.headers) {
        ctx.request_id = id;
    }
    ctx.trace = Trace::of(&head.headers, &gateway.ids);
    ctx.method = head.method.clone();
    ctx.uri = head.uri.clone();
    ctx.host = match head.headers.get(HOST) {
        Some(host) => Some(host.clone()),
        None => head.uri.authority().and_then(|a| HeaderValue::from_str(a.as_str()).ok()),
    };
    ctx.tls = session.digest().is_some_and(|d| d.ssl_digest.is_some());
}

/// Finds the route, and the target that goes on when it differs from the client's.
fn find_route(session: &Session, ctx: &mut Context) -> Result<Option<Uri>, Rejection> {
    let head = session.req_header();
    let limits = &ctx.snapshot.config.server;
    if head.headers.len() > limits.max_header_fields {
        return Err(Rejection::HeadersTooLarge);
    }
    if head.method == http::Method::CONNECT {
        return Err(Rejection::MethodNotAllowed("another method: CONNECT is not served here"));
    }
    if !head.raw_path().is_ascii() {
        return Err(Rejection::BadRequest("the path is not percent-encoded".into()));
    }
    let host = host_of(head)?;
    let raw = head.uri.path();
    let path = normalize_path(raw)?;
    match ctx.snapshot.routes.find(&host, &path, &head.method, &head.headers) {
        Found::NoMatch if ctx.snapshot.config.lacks_routes() => Err(Rejection::NoRoutes),
        Found::NoMatch => Err(Rejection::NotFound("no route matches this host and path".into())),
        Found::MethodNotAllowed { allow } => {
            ctx.allow = HeaderValue::from_str(&allow).ok();
            Err(Rejection::MethodNotAllowed("one of the methods in `Allow`"))
        }
        Found::Route { route, params } => {
            let state = ctx.snapshot.states[route].clone();
            if state.every_handler().next().is_some() {
                ctx.params = params.iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
            }
            let rewritten =
                ctx.snapshot.config.routes[route].rewrite.as_ref().map(|r| routes::rewrite(r, &path, &params));
            let target = match (rewritten, path) {
                (Some(path), _) => Some(target(&path, head.uri.query())?),
                (None, Cow::Owned(path)) => Some(target(&path, head.uri.query())?),
                // Absolute-form and HTTP/2 carry an authority that does not go into the next hop's request line.
                (None, Cow::Borrowed(path)) if head.uri.authority().is_some() || !head.raw_path().starts_with(b"/") => {
                    Some(target(path, head.uri.query())?)
                }
                (None, Cow::Borrowed(_)) => None,
            };
            ctx.route = Some(state);
            Ok(target)
        }
    }
}

/// The canonical host; empty for an HTTP/1.0 request that names none.
fn host_of(head: &RequestHeader) -> Result<Cow<'_, str>, Rejection> {
    let field = head.headers.get(http::header::HOST);
    let raw = match (head.uri.authority(), field) {
        (Some(authority), _) => authority.as_str(),
        (None, Some(host)) => host.to_str().map_err(|_| Rejection::BadRequest("`Host` is not ASCII".into()))?,
        (None, None) if head.version == Version::HTTP_10 => return Ok(Cow::Borrowed("")),
        (None, None) => return Err(Rejection::BadRequest("send a `Host`".into())),
    };
    normalize_host(raw)
}

fn target(path: &str, query: Option<&str>) -> Result<Uri, Rejection> {
    let text = match query {
        Some(query) => Cow::Owned(format!("{path}?{query}")),
        None => Cow::Borrowed(path),
    };
    let parsed = text.parse::<PathAndQuery>().map(Uri::from);
    parsed.map_err(|_| Rejection::BadRequest("the request target is malformed".into()))
}

/// Who calls, and whether this route is for them.
async fn authorise(
    gateway: &Gateway,
    session: &Session,
    ctx: &mut Context,
    route: &Route,
    state: &RouteState,
) -> Result<(), Rejection> {
    if route.auth == AuthMode::None {
        if route.limited {
            ctx.principal = Some(anonymous(ctx)?);
        }
        return Ok(());
    }
    let principal = match credential::presented(&session.req_header().headers)? {
        Some(presented) => {
            let key = authenticate(gateway, ctx, presented).await?;
            principal_of(ctx, &key)?
        }
        None if route.auth == AuthMode::Optional && route.scopes.is_empty() => {
            gateway.shared.metrics.authenticated(AuthResult::Anonymous);
            anonymous(ctx)?
        }
        None => {
            gateway.shared.metrics.authenticated(AuthResult::Invalid);
            return Err(Rejection::Unauthorized);
        }
    };
    let missing = route.scopes.iter().find(|scope| !principal.scopes.contains(*scope));
    let too_low = state.needs.as_ref().filter(|needs| principal.tier.rank < needs.rank);
    let needs = too_low.map(|needs| needs.name.clone());
    ctx.principal = Some(principal);
    if let Some(scope) = missing {
        return Err(Rejection::ScopeRequired(scope));
    }
    match needs {
        Some(needs) => Err(Rejection::TierRequired { needs }),
        None => Ok(()),
    }
}

async fn authenticate(gateway: &Gateway, ctx: &Context, presented: &str) -> Result<Arc<ApiKey>, Rejection> {
    let shared = &gateway.shared;
    let now = ctx.start.wall;
    let cached = shared.auth.cached(presented, now);
    if let Some(Ok(key)) = cached {
        shared.metrics.authenticated(AuthResult::Ok);
        return Ok(key);
    }
    // What the cache does not know as good is counted against its address until it turns out well.
    let attempt = shared.failures.attempt(ctx.client, ctx.start.mono).inspect_err(|_| {
        shared.metrics.authenticated(AuthResult::TooManyFailures);
    })?;
    let result = match cached {
        Some(result) => result,
        None => Box::pin(shared.auth.authenticate(presented, now)).await,
    };
    match result {
        Ok(key) => {
            attempt.forgive();
            shared.metrics.authenticated(AuthResult::Ok);
            Ok(key)
        }
        Err(AuthError::Invalid) => {
            shared.metrics.authenticated(AuthResult::Invalid);
            Err(Rejection::Unauthorized)
        }
        Err(AuthError::StoreUnavailable) => {
            attempt.forgive();
            shared.metrics.authenticated(AuthResult::StoreUnavailable);
            Err(Rejection::StoreUnavailable)
        }
    }
}

fn principal_of(ctx: &Context, key: &ApiKey) -> Result<Principal, Rejection> {
    let tier = ctx.snapshot.tier(&key.tier).cloned().ok_or_else(|| {
        tracing::error!(key = %key.id, tier = %key.tier, "a key's tier is not configured");
        Rejection::TierMissing(key.tier.clone())
    })?;
    let subject = Subject::Key { owner: key.owner.clone(), key: key.id.clone() };
    Ok(Principal { subject, tier, scopes: key.scopes })
}

fn anonymous(ctx: &Context) -> Result<Principal, Rejection> {
    let tier = ctx.snapshot.anonymous.clone().ok_or(Rejection::Unauthorized)?;
    Ok(Principal { subject: Subject::Address(network::caller(ctx.client)), tier, scopes: ScopeSet::default() })
}

/// Quotas and concurrency.
async fn admit(gateway: &Gateway, ctx: &mut Context, route: &Route) -> Result<(), Rejection> {
    let Some(principal) = ctx.principal.as_ref().filter(|_| route.limited) else { return Ok(()) };
    let tier = principal.tier.name.as_str();
    if let Some(metrics) = ctx.snapshot.tier_metrics(&principal.tier) {
        metrics.checked();
    }
    let limiter = &gateway.shared.limiter;
    let decision = match limiter.admit(principal, 1, ctx.start) {
        Ok(decision) => decision,
        Err(waiting) => Box::pin(limiter.admit_later(principal, 1, waiting)).await,
    };
    match decision {
        Decision::Allowed { states, in_flight } => {
            ctx.rate = limiter::headers(&states);
            ctx.in_flight = Some(in_flight);
            Ok(())
        }
        Decision::Limited { states, rejection } => {
            match &rejection {
                Rejection::QuotaExceeded { policies, .. } => {
                    for policy in policies {
                        gateway.shared.metrics.limit_violated(tier, policy.as_str());
                    }
                }
                other => gateway.shared.metrics.limit_violated(tier, other.code()),
            }
            ctx.rate = limiter::headers(&states);
            Err(rejection)
        }
    }
}
