//! The configuration of the running gateway: its routes, a check of another file, a reload.

use std::path::Path;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use http::StatusCode;
use serde::Serialize;

use crate::api::access::Actor;
use crate::api::body;
use crate::api::openapi::{Problem, json};
use crate::api::{Api, refused};
use crate::app::{AppError, ModuleCheck, Reloaded, files};
use crate::config::{self, HostPattern, Route, Segment, Target};
use crate::domain::Rejection;
use crate::gateway::snapshot;
use crate::store::Role;

/// Bound of a configuration sent to be checked: 10,000 routes take about 2 MiB.
const CONFIG_BYTES: u64 = 8 << 20;
/// Errors shown of one check.
const MAX_ERRORS: usize = 1_000;

#[derive(Serialize, utoipa::ToSchema)]
pub(in crate::api) struct RouteList {
    routes: Vec<RouteView>,
}

#[derive(Serialize, utoipa::ToSchema)]
pub(in crate::api) struct RouteView {
    name: String,
    hosts: Vec<String>,
    path: String,
    methods: Vec<String>,
    /// `upstream`, `handler`, `api`, `health`, `redirect` or `respond`, and what it names.
    target: String,
    /// `key`, `optional` or `none`.
    auth: &'static str,
    scopes: Vec<&'static str>,
    tier: Option<String>,
    limited: bool,
    max_body_bytes: u64,
    handlers: Vec<String>,
    /// Those of its modules that are not stored.
    not_stored: Vec<String>,
    /// Its requests get 500 for one that is not stored; they go on without one of `fail = "open"`.
    not_stored_fails: bool,
}

#[derive(Serialize, utoipa::ToSchema)]
pub(in crate::api) struct CheckReport {
    pub(super) ok: bool,
    /// In line order.
    pub(super) errors: Vec<CheckError>,
    /// What would be taken and told of: modules that are not stored yet, settings without effect, tiers of living keys that are missing.
    pub(super) warnings: Vec<CheckError>,
}

#[derive(Serialize, utoipa::ToSchema)]
pub(in crate::api) struct CheckError {
    /// `routes[2].target.upstream`.
    key: String,
    /// From 1; 0 when unknown.
    line: usize,
    message: String,
}

#[derive(Serialize, utoipa::ToSchema)]
pub(in crate::api) struct ReloadReport {
    /// Counts up with every swap.
    generation: u64,
    /// Settings that differ from those the process was started with and count only from its next start on.
    needs_restart: Vec<&'static str>,
    /// Modules that are not stored, expired certificates, tiers of living keys that are missing.
    warnings: Vec<CheckError>,
}

impl RouteView {
    fn new(route: &Route, not_stored: Vec<String>) -> Self {
        let host = |h: &HostPattern| match h {
            HostPattern::Exact(host) => host.clone(),
            HostPattern::Suffix(suffix) => format!("*.{suffix}"),
        };
        Self {
            name: route.name.to_string(),
            hosts: route.matches.hosts.iter().map(host).collect(),
            path: pattern(&route.matches.path.segments),
            methods: route.matches.methods.iter().map(ToString::to_string).collect(),
            target: target(&route.target),
            auth: match route.auth {
                config::AuthMode::Key => "key",
                config::AuthMode::Optional => "optional",
                config::AuthMode::None => "none",
            },
            scopes: route.scopes.iter().map(|s| s.as_str()).collect(),
            tier: route.tier.as_ref().map(ToString::to_string),
            limited: route.limited,
            max_body_bytes: route.max_body_bytes,
            handlers: route.handlers.iter().map(module).collect(),
            not_stored_fails: snapshot::handlers(route)
                .any(|h| h.fail == config::HandlerFail::Closed && not_stored.contains(&module(h))),
            not_stored,
        }
    }
}

/// `owner/name[@version]`.
fn module(handler: &config::Handler) -> String {
    handler.reference().to_string()
}

fn pattern(segments: &[Segment]) -> String {
    let mut text = String::new();
    for segment in segments {
        text.push('/');
        match segment {
            Segment::Literal(literal) => text.push_str(literal),
            Segment::Param(name) => text.push_str(&format!("{{{name}}}")),
            Segment::Rest(Some(name)) => text.push_str(&format!("{{*{name}}}")),
            Segment::Rest(None) => text.push('*'),
        }
    }
    if text.is_empty() { "/".into() } else { text }
}

fn target(target: &Target) -> String {
    match target {
        Target::Upstream(name) => format!("upstream {name}"),
        Target::Handler(handler) => format!("handler {}", module(handler)),
        Target::Api => "api".into(),
        Target::Health => "health".into(),
        Target::Redirect { location, status } => format!("redirect {status} {location}"),
        Target::Respond { status, .. } => format!("respond {status}"),
    }
}

/// Lists the routes in force.
#[utoipa::path(get, path = "/api/routes", tag = "admin",
    responses((status = 200, description = "the routes, in the file's order", body = RouteList)))]
pub(in crate::api) async fn routes(State(api): State<Arc<Api>>, actor: Actor) -> Result<Response, Rejection> {
    actor.need_role(Role::Viewer)?;
    let snapshot = api.app.snapshot();
    let routes = snapshot.config.routes.iter().zip(snapshot.not_stored());
    let routes = routes.map(|(route, not_stored)| RouteView::new(route, not_stored)).collect();
    Ok(json(StatusCode::OK, RouteList { routes }))
}

/// Checks a configuration (TOML in the body; without one, the gateway's own file) and changes nothing.
#[utoipa::path(post, path = "/api/config/check", tag = "admin",
    request_body(content = Option<String>, content_type = "application/toml"),
    responses((status = 200, description = "all its errors, or none", body = CheckReport)))]
pub(in crate::api) async fn check(
    State(api): State<Arc<Api>>,
    actor: Actor,
    request: Request,
) -> Result<Response, Rejection> {
    actor.need_role(Role::Operator)?;
    let (parts, sent) = request.into_parts();
    let over = |_| Rejection::PayloadTooLarge { limit: CONFIG_BYTES };
    let bytes = body::gather(&api, &parts.headers, sent, CONFIG_BYTES, over).await?;
    let text = std::str::from_utf8(&bytes).map_err(|_| Rejection::BadRequest("the body is not UTF-8 text".into()))?;
    let (text, file) = (text.to_owned(), api.app.config_file.clone());
    if text.is_empty() && file.is_none() {
        return Err(Rejection::BadRequest("the gateway runs without a configuration file: send one".into()));
    }
    // A large file takes a while to check.
    let checked = tokio::task::spawn_blocking(move || match (text.is_empty(), file) {
        (true, Some(file)) => files::load(&file),
        (_, file) => {
            let base = file.as_deref().and_then(Path::parent).unwrap_or(Path::new("."));
            config::check::check(&text, "body", base, files::look)
        }
    });
    let (errors, warnings) = match checked.await.map_err(|_| Rejection::Internal)? {
        Ok(mut config) => {
            let ModuleCheck { errors, missing, warnings } = api.app.check_modules(&config).await.map_err(refused)?;
            let lost = api.app.lost_tiers(&config).await.map_err(refused)?;
            config.warnings.extend(errors);
            (shown(config.warnings), shown([missing, warnings, lost].concat()))
        }
        Err(errors) => (shown(errors.errors), Vec::new()),
    };
    Ok(json(StatusCode::OK, CheckReport { ok: errors.is_empty(), errors, warnings }))
}

pub(super) fn shown(errors: Vec<config::ConfigError>) -> Vec<CheckError> {
    let shown = |e: config::ConfigError| CheckError { key: e.key, line: e.line, message: e.message };
    errors.into_iter().take(MAX_ERRORS).map(shown).collect()
}

/// Reads the configuration file anew. With an error nothing changes, and every error is listed.
#[utoipa::path(post, path = "/api/config/reload", tag = "admin",
    responses(
        (status = 200, description = "the new configuration is in force", body = ReloadReport),
        (status = 400, description = "the file has errors", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "there is no file", body = Problem, content_type = "application/problem+json"),
    ))]
pub(in crate::api) async fn reload(State(api): State<Arc<Api>>, actor: Actor) -> Result<Response, Rejection> {
    actor.need_role(Role::Operator)?;
    if api.app.config_file.is_none() {
        return Err(Rejection::Conflict("the gateway runs without a configuration file".into()));
    }
    match api.app.reload(&actor.audit_name()).await {
        Ok(Reloaded { generation, waiting, warnings }) => {
            let report = ReloadReport { generation, needs_restart: waiting, warnings: shown(warnings) };
            Ok(json(StatusCode::OK, report))
        }
        Err(error) => Err(not_taken(error)),
    }
}

/// Why a configuration was not taken into use, all of it.
pub(super) fn not_taken(error: AppError) -> Rejection {
    match error {
        AppError::Config(errors) => {
            let lines = errors.errors.iter().take(MAX_ERRORS).map(|e| e.in_file(&errors.file));
            Rejection::BadRequest(lines.collect::<Vec<_>>().join("; "))
        }
        AppError::Setting { key, message } => Rejection::BadRequest(format!("`{key}`: {message}")),
        AppError::Store(error) => refused(error),
    }
}
