//! The running process: drain, log level, state.

use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use serde::{Deserialize, Serialize};

use crate::api::Api;
use crate::api::access::Actor;
use crate::api::body::JsonBody;
use crate::api::health::{UpstreamHealth, upstream_health};
use crate::api::openapi::{Problem, json};
use crate::domain::{Digest, OwnerId, Rejection, Timestamp};
use crate::engine::{Compile, Engine};
use crate::store::Role;

#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::api) struct LogLevel {
    /// A filter such as `info` or `wasmgate=debug,info`.
    level: String,
}

#[derive(Serialize, utoipa::ToSchema)]
pub(in crate::api) struct RuntimeState {
    version: &'static str,
    #[schema(value_type = String)]
    started_at: Timestamp,
    ready: bool,
    draining: bool,
    /// Of the configuration in force; counts up with every swap.
    generation: u64,
    routes: usize,
    connections: i64,
    engine: EngineState,
    upstreams: Vec<UpstreamHealth>,
}

#[derive(Serialize, utoipa::ToSchema)]
pub(in crate::api) struct EngineState {
    guests_running: u64,
    guests_queued: u64,
    vms_idle: u64,
    vms_busy: u64,
    memory_bytes: u64,
    modules_loaded: u64,
    compiling: u64,
    compiles: Compiles,
    artifacts_rejected: u64,
    artifacts_evicted: u64,
    /// Of compiled modules on disk.
    artifact_disk_bytes: u64,
}

/// Compiles of modules, those asked for first first, the first 50 of each kind.
#[derive(Serialize, utoipa::ToSchema)]
pub(in crate::api) struct Compiles {
    /// How many may run at once, beside the one for better code.
    processes: usize,
    running: Vec<CompileView>,
    waiting: Vec<CompileView>,
    waiting_total: usize,
    /// Modules that run, and wait for better code.
    waiting_for_better_code: usize,
}

#[derive(Serialize, utoipa::ToSchema)]
pub(in crate::api) struct CompileView {
    #[schema(value_type = String)]
    digest: Digest,
    /// Who asked; `null`: the gateway itself.
    #[schema(value_type = Option<String>)]
    owner: Option<OwnerId>,
    /// `cranelift-fast`, or `cranelift`, whose code is better.
    compiler: &'static str,
    size_bytes: u64,
    /// Since when it waits, or runs.
    #[schema(value_type = String)]
    since: Timestamp,
}

impl Compiles {
    fn now(engine: &Engine) -> Self {
        const SHOWN: usize = 50;
        let (compiles, waiting_for_better_code) = engine.compiles(SHOWN);
        let view = |Compile { digest, owner, compiler, bytes, since }| CompileView {
            digest,
            owner,
            compiler: compiler.as_str(),
            size_bytes: bytes,
            since,
        };
        Self {
            processes: engine.config().compile.processes,
            running: compiles.running.into_iter().map(view).collect(),
            waiting: compiles.waiting.into_iter().map(view).collect(),
            waiting_total: compiles.waiting_total,
            waiting_for_better_code,
        }
    }
}

/// Drains the gateway, as SIGTERM does: it is no longer ready, requests under way finish, then it ends.
#[utoipa::path(post, path = "/api/drain", tag = "admin",
    responses((status = 202, description = "draining")))]
pub(in crate::api) async fn drain(State(api): State<Arc<Api>>, actor: Actor) -> Result<Response, Rejection> {
    actor.need_role(Role::Operator)?;
    api.audit(&actor, "drain", "gateway", "").await;
    api.app.shared.set_draining();
    api.app.ask_drain();
    Ok(StatusCode::ACCEPTED.into_response())
}

/// Shows the log filter in force.
#[utoipa::path(get, path = "/api/log-level", tag = "admin",
    responses((status = 200, description = "the filter", body = LogLevel)))]
pub(in crate::api) async fn log_level(State(api): State<Arc<Api>>, actor: Actor) -> Result<Response, Rejection> {
    actor.need_role(Role::Viewer)?;
    Ok(json(StatusCode::OK, LogLevel { level: api.app.logs.get() }))
}

/// Sets the log filter of this process, until it ends.
#[utoipa::path(put, path = "/api/log-level", tag = "admin", request_body = LogLevel,
    responses(
        (status = 200, description = "the filter", body = LogLevel),
        (status = 400, description = "not a filter", body = Problem, content_type = "application/problem+json"),
    ))]
pub(in crate::api) async fn set_log_level(
    State(api): State<Arc<Api>>,
    actor: Actor,
    JsonBody(body): JsonBody<LogLevel>,
) -> Result<Response, Rejection> {
    actor.need_role(Role::Operator)?;
    let before = api.app.logs.get();
    api.app.logs.set(&body.level).map_err(|e| Rejection::BadRequest(format!("`level`: {e}")))?;
    api.audit(&actor, "log.level", body.level.as_str(), format!("before: {before}")).await;
    Ok(json(StatusCode::OK, LogLevel { level: api.app.logs.get() }))
}

/// Shows what the process is doing now.
#[utoipa::path(get, path = "/api/state", tag = "admin",
    responses((status = 200, description = "figures of this moment", body = RuntimeState)))]
pub(in crate::api) async fn state(State(api): State<Arc<Api>>, actor: Actor) -> Result<Response, Rejection> {
    actor.need_role(Role::Viewer)?;
    let shared = &api.app.shared;
    let snapshot = api.app.snapshot();
    let stats = shared.engine.stats();
    let state = RuntimeState {
        version: env!("CARGO_PKG_VERSION"),
        started_at: api.app.started_at,
        ready: shared.is_ready(),
        draining: shared.is_draining(),
        generation: snapshot.generation,
        routes: snapshot.config.routes.len(),
        connections: shared.metrics.active_connections.get(),
        engine: EngineState {
            guests_running: stats.guests_running,
            guests_queued: stats.guests_queued,
            vms_idle: stats.vms_idle,
            vms_busy: stats.vms_busy,
            memory_bytes: stats.memory_bytes,
            modules_loaded: stats.modules_loaded,
            compiling: stats.compiling,
            compiles: Compiles::now(&shared.engine),
            artifacts_rejected: stats.artifacts_rejected,
            artifacts_evicted: stats.artifacts_evicted,
            artifact_disk_bytes: stats.artifact_disk_bytes,
        },
        upstreams: upstream_health(&api.app.snapshot()),
    };
    Ok(json(StatusCode::OK, state))
}
