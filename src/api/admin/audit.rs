//! The audit log, newest first.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use http::StatusCode;
use serde::{Deserialize, Serialize};

use crate::api::access::Actor;
use crate::api::body::Params;
use crate::api::openapi::json;
use crate::api::{Api, refused};
use crate::domain::{Rejection, Timestamp};
use crate::store::{AuditEntry, Role};

const MAX_ENTRIES: u64 = 1_000;

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(in crate::api) struct AuditQuery {
    /// 1 to 1,000; default 100.
    limit: Option<u64>,
}

#[derive(Serialize, utoipa::ToSchema)]
pub(in crate::api) struct AuditList {
    entries: Vec<AuditView>,
}

#[derive(Serialize, utoipa::ToSchema)]
pub(in crate::api) struct AuditView {
    #[schema(value_type = String)]
    at: Timestamp,
    /// A token's name, a key's id, or `SIGHUP`.
    actor: String,
    action: String,
    subject: String,
    detail: String,
}

impl From<AuditEntry> for AuditView {
    fn from(entry: AuditEntry) -> Self {
        let AuditEntry { at, actor, action, subject, detail } = entry;
        Self { at, actor, action, subject, detail }
    }
}

/// Lists who changed what.
#[utoipa::path(get, path = "/api/audit", tag = "admin", params(AuditQuery),
    responses((status = 200, description = "newest first", body = AuditList)))]
pub(in crate::api) async fn list(
    State(api): State<Arc<Api>>,
    actor: Actor,
    Params(query): Params<AuditQuery>,
) -> Result<Response, Rejection> {
    actor.need_role(Role::Viewer)?;
    let limit = query.limit.unwrap_or(100);
    if !(1..=MAX_ENTRIES).contains(&limit) {
        return Err(Rejection::BadRequest(format!("`limit`: use 1 to {MAX_ENTRIES}")));
    }
    let entries = api.app.store.audit(limit).await.map_err(refused)?.into_iter().map(AuditView::from).collect();
    Ok(json(StatusCode::OK, AuditList { entries }))
}
