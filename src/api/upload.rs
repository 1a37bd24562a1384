//! Uploads: stored as a version of a module.
//!
//! Invariant: bytes are stored only for a module that its owner may keep, so refused uploads leave nothing behind.

use std::sync::Arc;

use axum::Extension;
use axum::extract::{Path, Request, State};
use axum::response::Response;
use bytes::Bytes;
use http::StatusCode;
use serde::{Deserialize, Serialize};

use super::access::Actor;
use super::body::{self, Params, bad, flag};
use super::incoming::{Incoming, compiled, not_installed};
use super::multipart::Field;
use super::openapi::{Binary, Wasm, json};
use super::{Api, modules, refused};
use crate::domain::module::Selector;
use crate::domain::{
    Abi, Bundle, Digest, LimitsChange, Module, ModuleVersion, Name, OwnerId, Rejection, Scope, Tier, Timestamp,
};
use crate::engine::{Cancel, Compiled, Compiler};
use crate::gateway::Caller;
use crate::store::{NewVersion, NoRoom, Role, Store, StoreError};

const MAX_DESCRIPTION: u64 = 1024;
const MAX_LIMITS: u64 = 1024;

/// What comes beside the bytes: the query of a raw upload.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct UploadQuery {
    /// For whom (admin).
    #[param(value_type = Option<String>)]
    owner: Option<OwnerId>,
    description: Option<String>,
    /// Anyone with the scope `execute` may run it.
    public: Option<bool>,
    /// Needed when the module's shape fits more than one.
    #[param(inline)]
    abi: Option<Abi>,
    /// Make this version the one that the name means.
    activate: Option<bool>,
    /// The module's own limits from now on, as JSON; see the change of a module.
    limits: Option<String>,
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct OwnerQuery {
    /// For whom (admin).
    #[param(value_type = Option<String>)]
    pub owner: Option<OwnerId>,
}

/// The upload form.
#[derive(utoipa::ToSchema)]
#[expect(dead_code, reason = "a schema only: the form is read field by field")]
pub(super) struct UploadForm {
    wasm: Wasm,
    /// Its files, which it finds at `/`: a zip or tar archive.
    #[schema(nullable = false)]
    assets: Option<Binary>,
    name: String,
    #[schema(nullable = false)]
    description: Option<String>,
    /// Anyone with the scope `execute` may run it.
    #[schema(nullable = false)]
    public: Option<bool>,
    /// Needed when the module's shape fits more than one.
    #[schema(nullable = false)]
    abi: Option<Abi>,
    /// Make this version the one that the name means.
    #[schema(nullable = false)]
    activate: Option<bool>,
    /// The module's own limits from now on.
    #[schema(nullable = false)]
    limits: Option<LimitsChange>,
}

#[derive(Serialize, utoipa::ToSchema)]
pub(super) struct Uploaded {
    id: String,
    #[schema(value_type = String)]
    owner: OwnerId,
    #[schema(value_type = String)]
    name: Name,
    version: u32,
    /// The name means this version now.
    active: bool,
    #[schema(value_type = String)]
    digest: Digest,
    abi: Abi,
    size_bytes: u64,
    /// The files that came with it.
    assets: Option<Bundle>,
    /// What it asks of the gateway: the modules it imports from.
    capabilities: Vec<String>,
    /// Of its own, which lower those of the caller's tier or of the route.
    limits: LimitsChange,
    #[schema(value_type = String)]
    upload_time: Timestamp,
}

/// Stores a module, or a further version of one.
#[utoipa::path(post, path = "/api/wasm/upload", tag = "wasm", params(OwnerQuery),
    request_body(content = UploadForm, content_type = "multipart/form-data"),
    responses(
        (status = 201, description = "a new version", body = Uploaded),
        (status = 200, description = "these bytes are a version already", body = Uploaded),
        (status = 402, description = "over the caller's tier"),
        (status = 409, description = "no more modules, versions or storage"),
        (status = 422, description = "the module can't be loaded"),
    ))]
pub(super) async fn upload(
    State(api): State<Arc<Api>>,
    actor: Actor,
    Params(query): Params<OwnerQuery>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response, Rejection> {
    actor.need(Scope::Modules, Role::Operator)?;
    let tier = actor.tier(&api)?;
    let (parts, body) = request.into_parts();
    if body::media_type(&parts.headers) != "multipart/form-data" {
        return Err(Rejection::UnsupportedMediaType("`Content-Type`: use `multipart/form-data`".into()));
    }
    let more = [
        Field::text("name", 63),
        Field::text("description", MAX_DESCRIPTION),
        Field::text("public", 5),
        Field::text("activate", 5),
        Field::text("limits", MAX_LIMITS),
    ];
    let (incoming, mut form) = Incoming::of_form(&api, &tier, &parts, body, more).await?;
    let name = form.text("name")?.ok_or_else(|| bad("name", "is missing"))?;
    let extra = UploadQuery {
        owner: query.owner,
        description: form.text("description")?,
        public: flag("public", form.text("public")?)?,
        abi: incoming.abi,
        activate: flag("activate", form.text("activate")?)?,
        limits: form.text("limits")?,
    };
    store(&api, &actor, &tier, &name, incoming, extra, &caller.gone).await
}

/// Stores a module from a raw body, without files beside it.
#[utoipa::path(put, path = "/api/wasm/modules/{module}", tag = "wasm",
    params(("module" = String, Path, description = "its name"), UploadQuery),
    request_body(content = Wasm, content_type = "application/wasm"),
    responses(
        (status = 201, description = "a new version", body = Uploaded),
        (status = 200, description = "these bytes are a version already", body = Uploaded),
        (status = 402, description = "over the caller's tier"),
        (status = 409, description = "no more modules, versions or storage"),
        (status = 422, description = "the module can't be loaded"),
    ))]
pub(super) async fn put(
    State(api): State<Arc<Api>>,
    actor: Actor,
    Path(name): Path<String>,
    Params(query): Params<UploadQuery>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response, Rejection> {
    actor.need(Scope::Modules, Role::Operator)?;
    let tier = actor.tier(&api)?;
    let incoming = Incoming::of_body(&api, &tier, request, query.abi).await?;
    store(&api, &actor, &tier, &name, incoming, query, &caller.gone).await
}

async fn store(
    api: &Arc<Api>,
    actor: &Actor,
    tier: &Arc<Tier>,
    name: &str,
    incoming: Incoming,
    extra: UploadQuery,
    gone: &Cancel,
) -> Result<Response, Rejection> {
    let name: Name = name.parse().map_err(|e: crate::domain::InvalidName| bad("name", e))?;
    if extra.description.as_ref().is_some_and(|d| d.len() as u64 > MAX_DESCRIPTION) {
        return Err(bad("description", format!("is longer than {MAX_DESCRIPTION} bytes")));
    }
    let owner = actor.owner(extra.owner.as_ref())?;
    let limits: Option<LimitsChange> = match &extra.limits {
        Some(json) => Some(serde_json::from_str(json).map_err(|e| bad("limits", e))?),
        None => None,
    };
    // An operator stores what it wants.
    let within = actor.principal().map(|principal| principal.tier.clone());
    let (inspected, assets) = incoming.look(api, &owner, tier).await?;
    let before = api.app.store.module(&owner, &name).await.map_err(refused)?;
    if let Some(limits) = &limits {
        modules::allowed(limits, tier, &inspected.shape)?;
        // They are the module's, so they are at once those of the version that is active.
        if let Some(active) = before.as_ref().and_then(|module| module.select(Selector::Active)) {
            modules::begins(limits, &active.shape)?;
        }
    } else if let Some(module) = before.as_ref().filter(|_| extra.activate == Some(true)) {
        modules::begins(&module.limits, &inspected.shape)?;
    }
    let size_bytes = incoming.wasm.len() as u64;
    let version = ModuleVersion {
        version: 0,
        digest: inspected.digest,
        abi: inspected.abi,
        size_bytes,
        uploaded_at: Timestamp::now(),
        shape: inspected.shape.clone(),
        assets,
    };
    let (description, public, activate) = (extra.description, extra.public, extra.activate.unwrap_or(false));
    let new = NewVersion { owner, name, description, public, limits, version, activate };
    may_keep(api, before.as_ref(), &new, within.as_deref()).await?;
    let engine = &api.app.shared.engine;
    let compiled = compiled(gone, engine.compile(incoming.wasm, &inspected, Compiler::Fast, Some(&new.owner))).await?;
    let digests = new.version.digests().collect();
    let kept = keep(api, new, compiled, incoming.assets, within).await;
    if kept.is_err() {
        let _alone = api.app.catalogue.write().await;
        if let Err(error) = api.app.remove_unused(digests).await {
            tracing::warn!(%error, "the files of a refused upload stay for now");
        }
    }
    let (module, version, is_new) = kept?;
    api.module_changed(&module.owner, &module.name).await?;
    let subject = format!("{}/{}@{version}", module.owner, module.name);
    let detail = format!("{} bytes, active version {}", size_bytes, module.active);
    api.audit(actor, "module.upload", subject, detail).await;
    let status = if is_new { StatusCode::CREATED } else { StatusCode::OK };
    Ok(json(status, Uploaded::new(&module, version)?))
}

/// Writes the files, then the record that refers to them.
async fn keep(
    api: &Api,
    new: NewVersion,
    compiled: Compiled,
    archive: Option<Bytes>,
    within: Option<Arc<Tier>>,
) -> Result<(Module, u32, bool), Rejection> {
    // From here to the record no delete may take the files away; compiling is too long to hold deletes up for.
    let _shared = api.app.catalogue.read().await;
    let before = api.app.store.module(&new.owner, &new.name).await.map_err(refused)?;
    may_keep(api, before.as_ref(), &new, within.as_deref()).await?;
    let (engine, store) = (&api.app.shared.engine, &api.app.store);
    let mut blobs = vec![(new.version.digest, compiled.bytes())];
    engine.store(compiled).await.map_err(not_installed)?;
    if let (Some(bundle), Some(archive)) = (new.version.assets, archive) {
        blobs.push((bundle.digest, archive.clone()));
        engine.store_bundle(bundle.digest, archive).await.map_err(not_installed)?;
    }
    api.fits(&new.owner, &new.name, &new.version, new.activate).await?;
    share(&**store, &blobs).await?;
    let added = match store.add_version(new, within.clone()).await {
        Err(StoreError::NoRoom(why)) => return Err(no_room(api, within.as_deref(), why)),
        other => other.map_err(refused)?,
    };
    // What was there already, and named by nothing, another gateway may have swept away until now.
    share(&**store, &blobs).await?;
    Ok(added)
}

/// Where other gateways find them.
async fn share(store: &dyn Store, blobs: &[(Digest, Bytes)]) -> Result<(), Rejection> {
    for (digest, bytes) in blobs {
        store.put_blob(*digest, bytes).await.map_err(refused)?;
    }
    Ok(())
}

impl Uploaded {
    fn new(module: &Module, version: u32) -> Result<Self, Rejection> {
        let stored = module.select(Selector::Version(version)).ok_or(Rejection::Internal)?;
        Ok(Self {
            id: module.id.clone(),
            owner: module.owner.clone(),
            name: module.name.clone(),
            version,
            active: module.active == version,
            digest: stored.digest,
            abi: stored.abi,
            size_bytes: stored.size_bytes,
            assets: stored.assets,
            capabilities: super::modules::capabilities(stored),
            limits: module.limits.clone(),
            upload_time: stored.uploaded_at,
        })
    }
}

/// Refuses before anything is written what the store would refuse after it; `module`: as it is without the version.
async fn may_keep(
    api: &Api,
    module: Option<&Module>,
    new: &NewVersion,
    within: Option<&Tier>,
) -> Result<(), Rejection> {
    if module.is_some_and(|module| module.versions.iter().any(|v| v.identity() == new.version.identity())) {
        return Ok(());
    }
    let versions = module.map(|module| module.versions.len() as u32);
    let stored = api.app.store.stored(&new.owner).await.map_err(refused)?;
    new.room(versions, stored, within).map_err(|why| no_room(api, within, why))
}

/// 402 where another tier has the room.
fn no_room(api: &Api, within: Option<&Tier>, why: NoRoom) -> Rejection {
    let roomy = |fits: &dyn Fn(&Tier) -> bool| api.lowest_tier(within?, fits);
    let needs = match why {
        NoRoom::Versions { .. } => None,
        NoRoom::Modules { held, .. } => roomy(&|t| u64::from(t.modules) > held),
        NoRoom::Bytes { needs, .. } => roomy(&|t| t.module_storage_bytes >= needs),
    };
    match needs {
        Some(needs) => Rejection::OverTier { detail: format!("{why}, or use the tier `{needs}`"), needs },
        None => refused(why.into()),
    }
}
