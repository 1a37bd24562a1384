//! The edge of both faces: paths mapped, admin callers checked, refusals rendered, security headers set.
//!
//! Invariant: nothing of an admin request is read before its `Host` and its token have been checked; only the two
//! probes are open, and they tell nothing but a status.

use std::net::IpAddr;
use std::sync::Arc;

use async_trait::async_trait;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use futures_util::TryStreamExt as _;
use http::{HeaderMap, HeaderValue, Request, StatusCode, Uri, header};
use tower::ServiceExt as _;

use super::access::{self, Actor};
use super::{Api, openapi};
use crate::config;
use crate::domain::rejection::retry_after_seconds;
use crate::domain::{Rejection, problem};
use crate::gateway::{ApiBody, ApiService, Caller, tell_failure};
use crate::store::{StoreError, Unreplicated, told_apart};

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Face {
    Tenant,
    Admin,
}

/// Other names of the same things, known here alone.
const ALIASES: [(&str, &str); 3] =
    [("/api/execute", "/api/wasm/execute"), ("/healthz", "/health/live"), ("/readyz", "/health/ready")];

/// What a probe of an orchestrator asks; answered on the admin listener without a token, and by a route's target
/// `health` on the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    Live,
    Ready,
}

impl Probe {
    /// By the last segments of a path: `/health/live`, `/healthz`, `/health/ready`, `/readyz`.
    pub fn of_path(path: &str) -> Option<Self> {
        if path.ends_with("/health/live") || path.ends_with("/healthz") {
            Some(Self::Live)
        } else if path.ends_with("/health/ready") || path.ends_with("/readyz") {
            Some(Self::Ready)
        } else {
            None
        }
    }
}

/// Further members of a problem document (RFC 9457 section 3.2), set beside the [`Rejection`].
#[derive(Clone)]
pub(super) struct Members(pub Vec<(&'static str, serde_json::Value)>);

/// A refusal on its way to the edge. It stays in the answer's extensions, so that the gateway can count it.
impl IntoResponse for Rejection {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::from_u16(self.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        response.extensions_mut().insert(self);
        response
    }
}

pub(super) struct Edge {
    api: Arc<Api>,
    face: Face,
    router: axum::Router,
}

impl Edge {
    pub(super) fn new(api: Arc<Api>, face: Face) -> Self {
        let (router, document) = openapi::routes(face).split_for_parts();
        let router = router
            .fallback(|| async { Rejection::NotFound("there is nothing at this path".into()) })
            .layer(axum::Extension(openapi::Document::new(document, face)))
            .with_state(api.clone());
        Self { api, face, router }
    }

    async fn answer(&self, mut request: Request<Body>, caller: &Caller) -> Response {
        let path = match self.face {
            Face::Tenant => contract_path(request.uri().path()),
            Face::Admin => request.uri().path(),
        };
        let path = ALIASES.iter().find(|(alias, _)| *alias == path).map_or(path, |(_, path)| *path);
        let target = match request.uri().query() {
            Some(query) => format!("{path}?{query}"),
            None => path.to_owned(),
        };
        let actor = match self.face {
            Face::Tenant => caller.principal.clone().map(Actor::Key),
            Face::Admin if Probe::of_path(path).is_some() => None,
            Face::Admin => match self.admit(request.uri(), request.headers(), caller).await {
                Ok(actor) => Some(actor),
                Err(refusal) => return refusal,
            },
        };
        // The path is one that the gateway parsed, cut at a `/`.
        let Ok(uri) = target.parse::<Uri>() else { return Rejection::AmbiguousPath.into_response() };
        *request.uri_mut() = uri;
        if let Some(actor) = actor {
            request.extensions_mut().insert(actor);
        }
        match self.router.clone().oneshot(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        }
    }

    async fn admit(&self, uri: &Uri, headers: &HeaderMap, caller: &Caller) -> Result<Actor, Response> {
        if !host_is_ours(uri, headers, &self.api.app.config().admin, caller.local) {
            return Err(Rejection::MisdirectedRequest.into_response());
        }
        access::token_actor(&self.api, headers, caller.peer.ip()).await.map_err(|rejection| {
            let mut response = rejection.clone().into_response();
            if rejection == Rejection::Unauthorized {
                response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
                let detail = "send a valid admin token in `Authorization: Bearer`";
                response.extensions_mut().insert(Members(vec![("detail", detail.into())]));
            }
            response
        })
    }
}

#[async_trait]
impl ApiService for Edge {
    async fn call(&self, request: Request<ApiBody>) -> http::Response<ApiBody> {
        let caller = request.extensions().get::<Caller>().cloned();
        let request = request.map(Body::from_stream);
        let (response, request_id) = match &caller {
            Some(caller) => {
                let (response, few) = told_apart(self.answer(request, caller)).await;
                (unless_few(response, few), &*caller.request_id)
            }
            // The gateway sets it on every request.
            None => (Rejection::Internal.into_response(), ""),
        };
        finish(response, request_id)
            .map(|body| Box::pin(body.into_data_stream().map_err(std::io::Error::other)) as ApiBody)
    }
}

/// What was done, whole and audited, is not told as done while too few replicas have it.
fn unless_few(response: Response, few: Option<Unreplicated>) -> Response {
    let Some(error) = few.map(StoreError::from) else { return response };
    tell_failure(&error);
    if response.status().is_success() { Rejection::from(error).into_response() } else { response }
}

/// The path from `/api/` on: a route may mount the API below a prefix of its own.
fn contract_path(path: &str) -> &str {
    match path.find("/api/") {
        Some(at) => &path[at..],
        None => path,
    }
}

/// DNS rebinding: a browser sends the name that an attacker's page has, whatever address it leads to. So the name
/// must be one of ours; the port tells nothing, and port mappings change it. An address has no DNS: a page whose host is
/// the address that the connection was made to (`local`) came from here.
fn host_is_ours(uri: &Uri, headers: &HeaderMap, admin: &config::Admin, local: Option<IpAddr>) -> bool {
    let mut hosts = headers.get_all(header::HOST).iter();
    let host = match (uri.authority(), hosts.next(), hosts.next()) {
        (Some(authority), _, _) => authority.as_str(),
        (None, Some(host), None) => match host.to_str() {
            Ok(host) => host,
            Err(_) => return false,
        },
        _ => return false,
    };
    let Ok(authority) = host.parse::<http::uri::Authority>() else { return false };
    let name = authority.host();
    let address = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().ok();
    let listening = admin.address.ip();
    let reached = |a: IpAddr| local.is_some_and(|local| local.to_canonical() == a.to_canonical());
    let own_address =
        address.is_some_and(|a| a == listening || reached(a) || (listening.is_unspecified() && a.is_loopback()));
    own_address
        || name.eq_ignore_ascii_case("localhost")
        || admin.allowed_hosts.iter().any(|a| a.eq_ignore_ascii_case(name) || a.eq_ignore_ascii_case(host))
}

/// Renders a refusal, and sets what every answer has.
fn finish(mut response: Response, request_id: &str) -> Response {
    if response.status() == StatusCode::METHOD_NOT_ALLOWED && response.extensions().get::<Rejection>().is_none() {
        // axum's own, with `Allow` set.
        response.extensions_mut().insert(Rejection::MethodNotAllowed("one of the methods in `Allow`"));
    }
    if let Some(rejection) = response.extensions().get::<Rejection>().cloned() {
        let mut document = rejection.problem(request_id);
        for (name, value) in response.extensions_mut().remove::<Members>().map(|m| m.0).unwrap_or_default() {
            document[name] = value;
        }
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(problem::CONTENT_TYPE));
        headers.remove(header::CONTENT_LENGTH);
        if let Some(wait) = rejection.retry_after() {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(retry_after_seconds(wait)));
        }
        *response.body_mut() = Body::from(document.to_string());
    }
    let headers = response.headers_mut();
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"),
    );
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_is_taken_from_api_on() {
        assert_eq!(contract_path("/api/usage"), "/api/usage");
        assert_eq!(contract_path("/edge/v2/api/usage"), "/api/usage");
        assert_eq!(contract_path("/api/wasm/modules/api/x"), "/api/wasm/modules/api/x");
        assert_eq!(contract_path("/other"), "/other");
    }

    #[test]
    fn only_our_own_hosts_are_answered() {
        let admin = config::Admin {
            address: "127.0.0.1:9090".parse().unwrap(),
            tls: None,
            token_file: "t".into(),
            allowed_hosts: vec!["gate.example".into()],
        };
        let uri = Uri::from_static("/x");
        let reached = |host: &str, local: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, host.parse().unwrap());
            host_is_ours(&uri, &headers, &admin, local.parse().ok())
        };
        let ours = |host: &str| reached(host, "");
        for host in ["127.0.0.1:9090", "127.0.0.1", "localhost:1", "LOCALHOST", "gate.example:9090", "Gate.Example"] {
            assert!(ours(host), "{host}");
        }
        for host in ["evil.example", "127.0.0.1.evil.example", "gate.example.evil", "10.0.0.1:9090", "", "a b"] {
            assert!(!ours(host), "{host}");
        }
        for (host, local) in
            [("10.0.0.1:9090", "10.0.0.1"), ("[fd00::1]:9090", "fd00::1"), ("10.0.0.1", "::ffff:10.0.0.1")]
        {
            assert!(reached(host, local), "{host} at {local}");
        }
        for (host, local) in
            [("10.0.0.2", "10.0.0.1"), ("10.0.0.1.evil.example", "10.0.0.1"), ("evil.example", "10.0.0.1")]
        {
            assert!(!reached(host, local), "{host} at {local}");
        }
        assert!(!host_is_ours(&uri, &HeaderMap::new(), &admin, None));
        assert!(host_is_ours(&Uri::from_static("http://localhost/x"), &HeaderMap::new(), &admin, None));
    }
}
