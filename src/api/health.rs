//! Probes, health with details, and metrics; on the admin listener.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{StatusCode, header};
use serde::Serialize;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Api;
use super::access::Actor;
use super::openapi::json;
use crate::domain::{Rejection, Timestamp};
use crate::gateway::{EndpointState, Lack, Snapshot, StoreState};
use crate::store::{NodeState, Role};

pub(super) fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new().routes(routes!(health)).routes(routes!(live)).routes(routes!(ready)).routes(routes!(metrics))
}

/// The endpoints of one upstream, as its balancer sees them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct UpstreamHealth {
    pub upstream: String,
    pub endpoints: Vec<EndpointHealth>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct EndpointHealth {
    pub address: String,
    /// Active checks pass, or there are none.
    pub healthy: bool,
    /// Out for a while after failures (passive ejection).
    pub ejected: bool,
    /// Of the last request or check that did not reach it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<EndpointError>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct EndpointError {
    #[schema(value_type = String)]
    pub at: Timestamp,
    /// With what to do about it, where that is known.
    pub error: String,
}

/// The state of every upstream's endpoints.
pub(super) fn upstream_health(snapshot: &Snapshot) -> Vec<UpstreamHealth> {
    let now = Instant::now();
    let endpoint = |state: EndpointState<'_>| EndpointHealth {
        address: state.address.to_owned(),
        healthy: state.is_alive,
        ejected: state.is_ejected,
        last_error: state.last_error.map(|e| EndpointError { at: e.at, error: e.error }),
    };
    snapshot
        .upstreams()
        .map(|(name, upstream)| UpstreamHealth {
            upstream: name.to_string(),
            endpoints: upstream.endpoint_states(now).map(endpoint).collect(),
        })
        .collect()
}

#[derive(Serialize, utoipa::ToSchema)]
pub(super) struct Status {
    /// `alive`; or `ready`, `degraded`, `starting` or `draining`.
    status: &'static str,
    /// What it does without.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    reasons: Vec<&'static str>,
}

/// Something that a gateway does without.
#[derive(Serialize, utoipa::ToSchema)]
struct Degraded {
    reason: &'static str,
    detail: String,
}

#[derive(Serialize, utoipa::ToSchema)]
pub(super) struct Health {
    /// `ready`, `degraded`, `starting` or `draining`.
    status: &'static str,
    /// Why it is degraded, or has no routes.
    degraded: Vec<Degraded>,
    version: &'static str,
    #[schema(value_type = String)]
    started_at: Timestamp,
    /// `up`, `unreachable`, `lost`, `unusable`, `unwritable` or `unreplicated`.
    store: &'static str,
    /// Whether it tells of what other gateways change: `up` or `down`.
    store_link: &'static str,
    upstreams: Vec<UpstreamHealth>,
}

/// Answers while the process does.
#[utoipa::path(get, path = "/health/live", tag = "health", security(()),
    responses((status = 200, description = "alive", body = Status)))]
pub(super) async fn live() -> Response {
    json(StatusCode::OK, Status { status: "alive", reasons: Vec::new() })
}

/// Answers 200 once routes and engine are ready, and 503 while draining. A degraded gateway, as one that does not reach its
/// store, serves on, so it is ready and says why.
#[utoipa::path(get, path = "/health/ready", tag = "health", security(()),
    responses((status = 200, description = "ready or degraded", body = Status), (status = 503, description = "not ready", body = Status)))]
pub(super) async fn ready(State(api): State<Arc<Api>>) -> Response {
    let lacks = api.app.shared.lacks();
    let (code, status) = state(&api, &lacks);
    let reasons = lacks.iter().map(|lack| lack.reason).collect();
    json(code, Status { status, reasons })
}

fn state(api: &Api, lacks: &[Lack]) -> (StatusCode, &'static str) {
    let state = api.app.state();
    let code = if state == NodeState::Ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, state.told(!lacks.is_empty()))
}

/// The state of the gateway and of what it depends on; 503 when it isn't ready.
#[utoipa::path(get, path = "/health", tag = "health",
    responses((status = 200, description = "ready or degraded", body = Health), (status = 503, description = "not ready", body = Health)))]
pub(super) async fn health(State(api): State<Arc<Api>>, actor: Actor) -> Result<Response, Rejection> {
    actor.need_role(Role::Viewer)?;
    let shared = &api.app.shared;
    let (store, lacks) = shared.ask().await;
    let (code, status) = state(&api, &lacks);
    let health = Health {
        status,
        degraded: lacks.into_iter().map(|Lack { reason, detail }| Degraded { reason, detail }).collect(),
        version: env!("CARGO_PKG_VERSION"),
        started_at: api.app.started_at,
        store: store.as_str(),
        store_link: if shared.metrics.store_link_up.get() == 0 { "down" } else { "up" },
        upstreams: upstream_health(&api.app.snapshot()),
    };
    Ok(json(code, health))
}

/// Metrics in the Prometheus text format.
#[utoipa::path(get, path = "/metrics", tag = "health",
    responses((status = 200, description = "text format 0.0.4", content_type = "text/plain")))]
pub(super) async fn metrics(State(api): State<Arc<Api>>, actor: Actor) -> Result<Response, Rejection> {
    actor.need_role(Role::Viewer)?;
    let shared = &api.app.shared;
    shared.metrics.set_engine(&shared.engine.stats());
    shared.metrics.set_key_cache(&shared.auth.stats());
    shared.metrics.set_fleet(shared.limiter.fleet_figures());
    let store = shared.store_state();
    let states = StoreState::ALL.map(|state| (state.as_str(), state == store));
    shared.metrics.set_store(states, store == StoreState::Up, api.app.store.forged_records());
    let text = shared.metrics.render(shared.engine.guest_metrics()).map_err(|error| {
        tracing::error!(%error, "metrics can't be written");
        Rejection::Internal
    })?;
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response())
}
