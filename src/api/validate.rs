//! The checks of an upload, without storing.

use std::sync::Arc;

use axum::Extension;
use axum::extract::{Request, State};
use axum::response::Response;
use http::StatusCode;
use serde::{Deserialize, Serialize};

use super::Api;
use super::access::Actor;
use super::body::{self, Params};
use super::incoming::{self, Incoming};
use super::openapi::{Binary, Wasm, json};
use crate::domain::module::{ExportShape, ImportShape};
use crate::domain::{Abi, Bundle, Rejection, Scope};
use crate::gateway::Caller;
use crate::store::Role;

#[derive(utoipa::ToSchema)]
#[expect(dead_code, reason = "a schema only: the form is read field by field")]
pub(super) struct ValidateForm {
    wasm: Wasm,
    /// Its files: a zip or tar archive.
    #[schema(nullable = false)]
    assets: Option<Binary>,
    #[schema(nullable = false)]
    abi: Option<Abi>,
}

/// What the checks of an upload found.
#[derive(Serialize, utoipa::ToSchema)]
pub(super) struct Validated {
    #[schema(value_type = String)]
    digest: crate::domain::Digest,
    abi: Abi,
    size_bytes: u64,
    assets: Option<Bundle>,
    imports: Vec<ImportShape>,
    exports: Vec<ExportShape>,
    memory_min_bytes: u64,
    memory_max_bytes: Option<u64>,
    /// What a run of it may use in the caller's tier.
    #[schema(value_type = Object)]
    limits: crate::domain::Limits,
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ValidateQuery {
    /// For a raw body.
    #[param(inline)]
    abi: Option<Abi>,
}

/// Makes all checks of an upload, and stores nothing.
#[utoipa::path(post, path = "/api/wasm/validate", tag = "wasm", params(ValidateQuery),
    request_body(content((ValidateForm = "multipart/form-data"), (Wasm = "application/wasm"))),
    responses(
        (status = 200, description = "it can be uploaded", body = Validated),
        (status = 422, description = "it can't be loaded"),
    ))]
pub(super) async fn validate(
    State(api): State<Arc<Api>>,
    actor: Actor,
    Params(query): Params<ValidateQuery>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response, Rejection> {
    actor.need(Scope::Modules, Role::Operator)?;
    let tier = actor.tier(&api)?;
    let incoming = if body::media_type(request.headers()) == "multipart/form-data" {
        let (parts, body) = request.into_parts();
        Incoming::of_form(&api, &tier, &parts, body, []).await?.0
    } else {
        Incoming::of_body(&api, &tier, request, query.abi).await?
    };
    let owner = actor.owner(None)?;
    let (inspected, assets) = incoming.look(&api, &owner, &tier).await?;
    let size_bytes = incoming.wasm.len() as u64;
    // That it compiles within its bounds is one of the checks.
    let load = api.app.shared.engine.load_inline(incoming.wasm, &inspected, Some(&owner));
    incoming::compiled(&caller.gone, load).await?;
    let shape = inspected.shape;
    let found = Validated {
        digest: inspected.digest,
        abi: inspected.abi,
        size_bytes,
        assets,
        imports: shape.imports,
        exports: shape.exports,
        memory_min_bytes: shape.memory_min_bytes,
        memory_max_bytes: shape.memory_max_bytes,
        limits: tier.limits.clone(),
    };
    Ok(json(StatusCode::OK, found))
}
