//! Stored modules: listed, shown, activated, deleted.
//!
//! Invariant: another owner's module that is not public is answered as if it did not exist.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use serde::{Deserialize, Serialize};

use super::access::Actor;
use super::body::{JsonBody, Params};
use super::openapi::json;
use super::upload::OwnerQuery;
use super::{Api, refused};
use crate::domain::module::{ExportShape, ImportShape};
use crate::domain::{
    Abi, Bundle, Digest, LimitsChange, Module, ModuleRef, ModuleShape, ModuleVersion, Name, OwnerId, Rejection, Scope,
    Selector, Tier, Timestamp,
};
use crate::store::Role;

const MAX_PAGE: u64 = 100;

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ListQuery {
    /// From 1.
    #[param(minimum = 1)]
    page: Option<u64>,
    /// 1 to 100; default 20.
    #[param(minimum = 1, maximum = 100)]
    limit: Option<u64>,
    /// Also the public modules of others.
    include_public: Option<bool>,
    /// Whose (admin; default: every owner's).
    #[param(value_type = Option<String>)]
    owner: Option<OwnerId>,
}

/// A module, and the version that its name means (or that was asked for).
#[derive(Serialize, utoipa::ToSchema)]
pub(super) struct ModuleView {
    id: String,
    #[schema(value_type = String)]
    owner: OwnerId,
    #[schema(value_type = String)]
    name: Name,
    description: String,
    public: bool,
    version: u32,
    #[schema(value_type = String)]
    digest: Digest,
    abi: Abi,
    size_bytes: u64,
    /// The files that came with it.
    assets: Option<Bundle>,
    capabilities: Vec<String>,
    /// Of its own, which lower those of the caller's tier or of the route.
    limits: LimitsChange,
    #[schema(value_type = String)]
    upload_time: Timestamp,
    #[schema(value_type = Option<String>)]
    last_executed: Option<Timestamp>,
    execution_count: u64,
}

#[derive(Serialize, utoipa::ToSchema)]
pub(super) struct ModuleDetails {
    #[serde(flatten)]
    module: ModuleView,
    active_version: u32,
    /// The one that was active before, which a rollback activates; `null` when none was, or when it was deleted.
    previous_version: Option<u32>,
    imports: Vec<ImportShape>,
    exports: Vec<ExportShape>,
    versions: Vec<VersionView>,
}

#[derive(Serialize, utoipa::ToSchema)]
pub(super) struct VersionView {
    version: u32,
    active: bool,
    #[schema(value_type = String)]
    digest: Digest,
    abi: Abi,
    size_bytes: u64,
    /// The files that came with it.
    assets: Option<Bundle>,
    #[schema(value_type = String)]
    upload_time: Timestamp,
}

#[derive(Serialize, utoipa::ToSchema)]
pub(super) struct ModuleList {
    modules: Vec<ModuleView>,
    page: u64,
    limit: u64,
    total: u64,
    has_next: bool,
}

#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ActivateRequest {
    version: u32,
}

#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ModuleChange {
    /// The module's own limits from now on, in place of all that it had; `{}`: none.
    limits: LimitsChange,
}

impl ModuleView {
    fn new(module: &Module, version: &ModuleVersion) -> Self {
        Self {
            id: module.id.clone(),
            owner: module.owner.clone(),
            name: module.name.clone(),
            description: module.description.clone(),
            public: module.public,
            version: version.version,
            digest: version.digest,
            abi: version.abi,
            size_bytes: version.size_bytes,
            assets: version.assets,
            capabilities: capabilities(version),
            limits: module.limits.clone(),
            upload_time: version.uploaded_at,
            last_executed: module.last_executed,
            execution_count: module.executions,
        }
    }
}

/// What a version asks of the gateway: the modules it imports from.
pub(super) fn capabilities(version: &ModuleVersion) -> Vec<String> {
    let distinct: BTreeSet<&str> = version.shape.imports.iter().map(|i| i.module.as_str()).collect();
    distinct.into_iter().map(str::to_owned).collect()
}

pub(super) fn is_own(actor: &Actor, module: &Module) -> bool {
    actor.acts_for_all() || actor.own() == Some(&module.owner)
}

/// Lists modules.
#[utoipa::path(get, path = "/api/wasm/modules", tag = "wasm", params(ListQuery),
    responses((status = 200, description = "a page of them", body = ModuleList)))]
pub(super) async fn list(
    State(api): State<Arc<Api>>,
    actor: Actor,
    Params(query): Params<ListQuery>,
) -> Result<Response, Rejection> {
    actor.need(Scope::Modules, Role::Viewer)?;
    let (page, limit) = (query.page.unwrap_or(1), query.limit.unwrap_or(20));
    if page == 0 || page > u64::from(u32::MAX) {
        return Err(Rejection::BadRequest("`page`: use a number from 1".into()));
    }
    if !(1..=MAX_PAGE).contains(&limit) {
        return Err(Rejection::BadRequest(format!("`limit`: use 1 to {MAX_PAGE}")));
    }
    let owner = actor.owners(query.owner.as_ref())?;
    let public = query.include_public.unwrap_or(false);
    let offset = (page - 1) * limit;
    let found = api.app.store.modules(owner.as_ref(), public, offset, limit).await.map_err(refused)?;
    let modules: Vec<_> =
        found.items.iter().filter_map(|m| m.select(Selector::Active).map(|v| ModuleView::new(m, v))).collect();
    let has_next = offset + limit < found.total;
    Ok(json(StatusCode::OK, ModuleList { modules, page, limit, total: found.total, has_next }))
}

/// Shows a module and its versions.
#[utoipa::path(get, path = "/api/wasm/modules/{module}", tag = "wasm",
    params(("module" = String, Path, description = "its id, or name[@version]"), OwnerQuery),
    responses(
        (status = 200, description = "the module", body = ModuleDetails),
        (status = 404, description = "no such module"),
    ))]
pub(super) async fn get(
    State(api): State<Arc<Api>>,
    actor: Actor,
    Path(module): Path<String>,
    Params(query): Params<OwnerQuery>,
) -> Result<Response, Rejection> {
    actor.need(Scope::Modules, Role::Viewer)?;
    let (module, selector) = find(&api, &actor, query.owner.as_ref(), &module).await?;
    Ok(json(StatusCode::OK, details(&module, selector)?))
}

pub(super) fn version(module: &Module, selector: Selector) -> Result<&ModuleVersion, Rejection> {
    let missing = || match selector {
        Selector::Version(number) => Rejection::NotFound(format!("`{}` has no version {number}", module.name)),
        // A module's active version is one that it has.
        Selector::Active => Rejection::Internal,
    };
    module.select(selector).ok_or_else(missing)
}

fn details(module: &Module, selector: Selector) -> Result<ModuleDetails, Rejection> {
    let shown = version(module, selector)?;
    Ok(ModuleDetails {
        module: ModuleView::new(module, shown),
        active_version: module.active,
        previous_version: module.previous,
        imports: shown.shape.imports.clone(),
        exports: shown.shape.exports.clone(),
        versions: module
            .versions
            .iter()
            .map(|v| VersionView {
                version: v.version,
                active: v.version == module.active,
                digest: v.digest,
                abi: v.abi,
                size_bytes: v.size_bytes,
                assets: v.assets,
                upload_time: v.uploaded_at,
            })
            .collect(),
    })
}

/// By name with or without version (of the owner asked for), else by id. What the caller may not see is not found.
async fn find(api: &Api, actor: &Actor, asked: Option<&OwnerId>, text: &str) -> Result<(Module, Selector), Rejection> {
    let (mut found, mut sought) = (None, text.chars().take(128).collect::<String>());
    if let Ok(reference) = text.parse::<ModuleRef>() {
        let owner = actor.owner_of(&reference, asked)?;
        let module = api.app.store.module(&owner, &reference.name).await.map_err(refused)?;
        sought = format!("{owner}/{}", reference.name);
        found = module.map(|m| (m, reference.selector));
    }
    if found.is_none() {
        let by_id = api.app.store.module_by_id(text).await.map_err(refused)?;
        found = by_id.filter(|m| asked.is_none_or(|owner| m.owner == *owner)).map(|m| (m, Selector::Active));
    }
    match found {
        Some((module, selector)) if module.public || is_own(actor, &module) => Ok((module, selector)),
        _ => Err(Rejection::NotFound(format!("`{sought}` is not a module"))),
    }
}

/// As [`find`], for a change: a public module of somebody else is forbidden.
async fn find_own(
    api: &Api,
    actor: &Actor,
    asked: Option<&OwnerId>,
    text: &str,
) -> Result<(Module, Selector), Rejection> {
    let (module, selector) = find(api, actor, asked, text).await?;
    if is_own(actor, &module) {
        Ok((module, selector))
    } else {
        Err(Rejection::Forbidden(format!("`{}` belongs to another owner", module.name)))
    }
}

/// Deletes a module with all its versions, or one version that is not active.
#[utoipa::path(delete, path = "/api/wasm/modules/{module}", tag = "wasm",
    params(("module" = String, Path, description = "its id, or name[@version]"), OwnerQuery),
    responses(
        (status = 204, description = "deleted"),
        (status = 403, description = "somebody else's"),
        (status = 404, description = "no such module"),
        (status = 409, description = "in use"),
    ))]
pub(super) async fn delete(
    State(api): State<Arc<Api>>,
    actor: Actor,
    Path(module): Path<String>,
    Params(query): Params<OwnerQuery>,
) -> Result<Response, Rejection> {
    actor.need(Scope::Modules, Role::Operator)?;
    let (module, selector) = find_own(&api, &actor, query.owner.as_ref(), &module).await?;
    let (owner, name) = (&module.owner, &module.name);
    // A route holds the version that it pins, or the active one.
    let meant = |by: Selector| match (selector, by) {
        (Selector::Version(version), Selector::Version(pinned)) => version == pinned,
        (Selector::Version(version), Selector::Active) => version == module.active,
        (Selector::Active, _) => true,
    };
    let named = match selector {
        Selector::Active => format!("{owner}/{name}"),
        Selector::Version(version) => format!("{owner}/{name}@{version}"),
    };
    if let Some(route) = api.app.route_using(owner, name, meant) {
        let remedy = match selector {
            Selector::Version(version) if version == module.active => "activate another version first",
            _ => "change the route first",
        };
        return Err(Rejection::Conflict(format!("the route `{route}` uses `{named}`; {remedy}")));
    }
    let alone = api.app.catalogue.write().await;
    let digests: HashSet<Digest> = match selector {
        Selector::Active => {
            let deleted = api.app.store.delete_module(owner, name).await.map_err(refused)?;
            deleted.versions.iter().flat_map(ModuleVersion::digests).collect()
        }
        Selector::Version(version) => {
            let deleted = api.app.store.delete_version(owner, name, version).await.map_err(refused)?;
            deleted.digests().collect()
        }
    };
    api.module_changed(owner, name).await?;
    // The same bytes may be a version of another module too.
    if let Err(error) = api.app.remove_unused(digests).await {
        tracing::warn!(%error, "the files of a deleted module stay on disk for now");
    }
    drop(alone);
    api.audit(&actor, "module.delete", named, "").await;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Sets which version the module's name means; older ones too (rollback). It takes effect at once.
#[utoipa::path(post, path = "/api/wasm/modules/{module}/activate", tag = "wasm",
    params(("module" = String, Path, description = "its id or name"), OwnerQuery), request_body = ActivateRequest,
    responses(
        (status = 200, description = "the module", body = ModuleDetails),
        (status = 404, description = "no such module or version"),
    ))]
pub(super) async fn activate(
    State(api): State<Arc<Api>>,
    actor: Actor,
    Path(module): Path<String>,
    Params(query): Params<OwnerQuery>,
    JsonBody(body): JsonBody<ActivateRequest>,
) -> Result<Response, Rejection> {
    actor.need(Scope::Modules, Role::Operator)?;
    let (module, _) = find_own(&api, &actor, query.owner.as_ref(), &module).await?;
    let wanted = version(&module, Selector::Version(body.version))?;
    begins(&module.limits, &wanted.shape)?;
    api.fits(&module.owner, &module.name, wanted, true).await?;
    let before = module.active;
    let module = api.app.store.activate(&module.owner, &module.name, body.version).await.map_err(refused)?;
    api.module_changed(&module.owner, &module.name).await?;
    api.app.snapshot().reset_breakers(&module.owner, &module.name);
    let subject = format!("{}/{}@{}", module.owner, module.name, body.version);
    api.audit(&actor, "module.activate", subject, format!("before: {before}")).await;
    Ok(json(StatusCode::OK, details(&module, Selector::Active)?))
}

/// Sets the limits that the module has of its own. They lower those of whoever runs it, and of the routes that use it.
#[utoipa::path(patch, path = "/api/wasm/modules/{module}", tag = "wasm",
    params(("module" = String, Path, description = "its id or name"), OwnerQuery), request_body = ModuleChange,
    responses(
        (status = 200, description = "the module", body = ModuleDetails),
        (status = 403, description = "somebody else's"),
        (status = 404, description = "no such module"),
    ))]
pub(super) async fn change(
    State(api): State<Arc<Api>>,
    actor: Actor,
    Path(module): Path<String>,
    Params(query): Params<OwnerQuery>,
    JsonBody(body): JsonBody<ModuleChange>,
) -> Result<Response, Rejection> {
    actor.need(Scope::Modules, Role::Operator)?;
    let (before, selector) = find_own(&api, &actor, query.owner.as_ref(), &module).await?;
    if selector != Selector::Active {
        return Err(Rejection::BadRequest("limits are those of all versions: leave out the version".into()));
    }
    let active = version(&before, Selector::Active)?;
    let tier = actor.tier(&api)?;
    allowed(&body.limits, &tier, &active.shape)?;
    let module = api.app.store.set_limits(&before.owner, &before.name, &body.limits).await.map_err(refused)?;
    api.module_changed(&module.owner, &module.name).await?;
    let shown = |limits: &LimitsChange| serde_json::json!(limits);
    let detail = format!("{} -> {}", shown(&before.limits), shown(&module.limits));
    api.audit(&actor, "module.limits", format!("{}/{}", module.owner, module.name), detail).await;
    Ok(json(StatusCode::OK, details(&module, Selector::Active)?))
}

/// A module's own limits are those that a run could have and still begin, within the tier of who sets them.
pub(super) fn allowed(own: &LimitsChange, tier: &Tier, shape: &ModuleShape) -> Result<(), Rejection> {
    let bad = |field: &str, why: String| Err(Rejection::BadRequest(format!("`limits.{field}`: {why}")));
    if let Some((field, most)) = own.exceeds(&tier.limits) {
        return bad(field, format!("is over the {most} of the tier `{}`", tier.name));
    }
    if let Err((field, why)) = own.apply(&tier.limits).check() {
        return bad(field, why);
    }
    begins(own, shape)
}

/// With its module's limits a version has the memory that it begins with.
pub(super) fn begins(own: &LimitsChange, shape: &ModuleShape) -> Result<(), Rejection> {
    match own.memory_bytes {
        Some(bytes) if bytes < shape.memory_min_bytes => Err(Rejection::BadRequest(format!(
            "`limits.memory_bytes`: is {bytes}, the module begins with {}",
            shape.memory_min_bytes
        ))),
        _ => Ok(()),
    }
}
