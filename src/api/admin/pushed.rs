//! Routes that are pushed into the store, for all gateways that share it.

use std::sync::Arc;

use axum::extract::{Path, Request, State};
use axum::response::Response;
use http::StatusCode;
use serde::{Deserialize, Serialize};

use super::config::{CheckError, CheckReport, not_taken, shown};
use crate::api::access::Actor;
use crate::api::body::{self, JsonBody, Params};
use crate::api::openapi::{Problem, json};
use crate::api::{Api, refused};
use crate::app::{AppError, Done, MAX_ROUTES_BYTES, Push};
use crate::domain::{Digest, Rejection, Timestamp};
use crate::store::{Role, RoutesVersion};

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(in crate::api) struct PushQuery {
    /// Push only if this version is the newest; 0: only if there is none.
    expect: Option<u64>,
}

#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::api) struct Rollback {
    /// Default: the one before the newest.
    #[schema(nullable = false)]
    version: Option<u64>,
    /// Roll back only if this version is the newest.
    #[schema(nullable = false)]
    expect: Option<u64>,
}

#[derive(Serialize, utoipa::ToSchema)]
pub(in crate::api) struct PushedList {
    /// The newest first; the last 20 are kept.
    versions: Vec<PushedView>,
    /// What this gateway uses; `null`: none of them.
    in_use: Option<u64>,
}

#[derive(Serialize, utoipa::ToSchema)]
pub(in crate::api) struct PushedView {
    version: u64,
    #[schema(value_type = String)]
    digest: Digest,
    size_bytes: u64,
    #[schema(value_type = String)]
    pushed_at: Timestamp,
    /// As in the audit log.
    pushed_by: String,
    /// The version whose text it has again, after a rollback.
    rollback_to: Option<u64>,
}

#[derive(Serialize, utoipa::ToSchema)]
pub(in crate::api) struct PushedText {
    #[serde(flatten)]
    about: PushedView,
    text: String,
}

#[derive(Serialize, utoipa::ToSchema)]
pub(in crate::api) struct PushReport {
    #[serde(flatten)]
    about: PushedView,
    /// Settings without effect, expired certificates.
    warnings: Vec<CheckError>,
}

impl From<RoutesVersion> for PushedView {
    fn from(of: RoutesVersion) -> Self {
        let RoutesVersion { version, digest, bytes, at, by, again } = of;
        Self { version, digest, size_bytes: bytes, pushed_at: at, pushed_by: by, rollback_to: again }
    }
}

fn done(Done { version, is_new, warnings }: Done) -> Response {
    let status = if is_new { StatusCode::CREATED } else { StatusCode::OK };
    json(status, PushReport { about: version.into(), warnings: shown(warnings) })
}

async fn text(api: &Api, request: Request) -> Result<String, Rejection> {
    let (parts, sent) = request.into_parts();
    let over = |_| Rejection::PayloadTooLarge { limit: MAX_ROUTES_BYTES };
    let bytes = body::gather(api, &parts.headers, sent, MAX_ROUTES_BYTES, over).await?;
    String::from_utf8(bytes.to_vec()).map_err(|_| Rejection::BadRequest("the body is not UTF-8 text".into()))
}

/// Pushes tiers, upstreams and routes to all gateways that share the store: checked, kept as a new version, in use here when this
/// is answered and on the others as soon as they have checked it. With an error nothing changes, and every error is listed.
#[utoipa::path(put, path = "/api/routes", tag = "admin", params(PushQuery),
    request_body(content = String, content_type = "application/toml"),
    responses(
        (status = 201, description = "a new version", body = PushReport),
        (status = 200, description = "the newest version has this text already", body = PushReport),
        (status = 400, description = "all its errors", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "another version is the newest, or the routes are in the gateway's file", body = Problem,
            content_type = "application/problem+json"),
    ))]
pub(in crate::api) async fn push(
    State(api): State<Arc<Api>>,
    actor: Actor,
    Params(query): Params<PushQuery>,
    request: Request,
) -> Result<Response, Rejection> {
    actor.need_role(Role::Operator)?;
    let push = Push { text: text(&api, request).await?, expect: query.expect, again: None };
    api.app.push_routes(&actor.audit_name(), push).await.map(done).map_err(not_taken)
}

/// Checks what could be pushed, and changes nothing.
#[utoipa::path(post, path = "/api/routes/check", tag = "admin",
    request_body(content = String, content_type = "application/toml"),
    responses((status = 200, description = "all its errors, or none", body = CheckReport)))]
pub(in crate::api) async fn check(
    State(api): State<Arc<Api>>,
    actor: Actor,
    request: Request,
) -> Result<Response, Rejection> {
    actor.need_role(Role::Operator)?;
    let (errors, warnings) = match api.app.check_routes(text(&api, request).await?).await {
        Ok(warnings) => (Vec::new(), shown(warnings)),
        Err(AppError::Config(errors)) => (shown(errors.errors), Vec::new()),
        Err(error) => return Err(not_taken(error)),
    };
    Ok(json(StatusCode::OK, CheckReport { ok: errors.is_empty(), errors, warnings }))
}

/// Lists the versions that were pushed.
#[utoipa::path(get, path = "/api/routes/versions", tag = "admin",
    responses((status = 200, description = "the versions", body = PushedList)))]
pub(in crate::api) async fn versions(State(api): State<Arc<Api>>, actor: Actor) -> Result<Response, Rejection> {
    actor.need_role(Role::Viewer)?;
    let versions = api.app.store.routes_versions().await.map_err(refused)?;
    let in_use = api.app.config().pushed.as_ref().map(|pushed| pushed.version);
    Ok(json(StatusCode::OK, PushedList { versions: versions.into_iter().map(PushedView::from).collect(), in_use }))
}

/// Shows a version with its text.
///
/// Needs the role `operator`: the text may have secrets, such as fields that a route sets.
#[utoipa::path(get, path = "/api/routes/versions/{version}", tag = "admin",
    params(("version" = u64, Path, description = "its number")),
    responses(
        (status = 200, description = "the version", body = PushedText),
        (status = 404, description = "no such version", body = Problem, content_type = "application/problem+json"),
    ))]
pub(in crate::api) async fn version(
    State(api): State<Arc<Api>>,
    actor: Actor,
    Path(version): Path<u64>,
) -> Result<Response, Rejection> {
    actor.need_role(Role::Operator)?;
    let versions = api.app.store.routes_versions().await.map_err(refused)?;
    let missing = || Rejection::NotFound(format!("`routes@{version}` does not exist"));
    let about = versions.into_iter().find(|v| v.version == version).ok_or_else(missing)?;
    let text = api.app.store.routes_text(version).await.map_err(refused)?.ok_or_else(missing)?;
    Ok(json(StatusCode::OK, PushedText { about: about.into(), text }))
}

/// Pushes the text of an older version as a new one.
#[utoipa::path(post, path = "/api/routes/rollback", tag = "admin", request_body = Rollback,
    responses(
        (status = 201, description = "a new version", body = PushReport),
        (status = 200, description = "the newest version has this text already", body = PushReport),
        (status = 400, description = "why it can't be used any more", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "no such version", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "another version is the newest, or there is none before it", body = Problem,
            content_type = "application/problem+json"),
    ))]
pub(in crate::api) async fn rollback(
    State(api): State<Arc<Api>>,
    actor: Actor,
    JsonBody(Rollback { version, expect }): JsonBody<Rollback>,
) -> Result<Response, Rejection> {
    actor.need_role(Role::Operator)?;
    api.app.roll_back_routes(&actor.audit_name(), version, expect).await.map(done).map_err(not_taken)
}
