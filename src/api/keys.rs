//! API keys of an owner: made, listed, revoked, rotated. The policy is [`crate::auth::manage`]'s.
//!
//! Invariant: a key's text is in the answer that made it and nowhere else.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use serde::{Deserialize, Serialize};

use super::access::Actor;
use super::body::{self, JsonBody, Params, parse_object};
use super::openapi::json;
use super::{Api, refused};
use crate::auth::manage;
use crate::domain::{ApiKey, KeyId, Name, OwnerId, Rejection, Scope, ScopeSet, Tier, Timestamp};
use crate::store::Role;

const MAX_PAGE: usize = 100;

#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewKey {
    /// Whose it is (admin); default: the caller's own. An operator names one.
    #[schema(value_type = Option<String>)]
    owner: Option<OwnerId>,
    /// For people.
    #[serde(default)]
    label: String,
    /// Default: the caller's own; an operator's: `free`.
    #[schema(value_type = Option<String>)]
    tier: Option<Name>,
    /// Default: the caller's own; an operator's: all but `admin`.
    #[schema(value_type = Option<Vec<String>>)]
    scopes: Option<Vec<Scope>>,
    #[schema(value_type = Option<String>)]
    expires_at: Option<Timestamp>,
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct KeysQuery {
    /// From 1.
    #[param(minimum = 1)]
    page: Option<usize>,
    /// 1 to 100; default 50.
    #[param(minimum = 1, maximum = 100)]
    limit: Option<usize>,
    /// Whose (admin; default: every owner's).
    #[param(value_type = Option<String>)]
    owner: Option<OwnerId>,
}

#[derive(Debug, Default, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Rotate {
    /// How long the old key still works; default a day, at most 30.
    grace_seconds: Option<u64>,
}

#[derive(Serialize, utoipa::ToSchema)]
pub(super) struct KeyView {
    #[schema(value_type = String)]
    id: KeyId,
    #[schema(value_type = String)]
    owner: OwnerId,
    #[schema(value_type = String)]
    tier: Name,
    #[schema(value_type = Vec<String>)]
    scopes: ScopeSet,
    label: String,
    /// Neither revoked nor expired.
    live: bool,
    #[schema(value_type = String)]
    created_at: Timestamp,
    #[schema(value_type = Option<String>)]
    expires_at: Option<Timestamp>,
    #[schema(value_type = Option<String>)]
    revoked_at: Option<Timestamp>,
    /// The key that replaced it.
    #[schema(value_type = Option<String>)]
    rotated_to: Option<KeyId>,
}

#[derive(Serialize, utoipa::ToSchema)]
pub(super) struct CreatedKey {
    #[serde(flatten)]
    view: KeyView,
    /// The key itself. It is not shown again.
    key: String,
}

#[derive(Serialize, utoipa::ToSchema)]
pub(super) struct KeyList {
    keys: Vec<KeyView>,
    page: usize,
    limit: usize,
    total: usize,
    has_next: bool,
}

impl KeyView {
    fn new(key: ApiKey, now: Timestamp) -> Self {
        let live = key.is_live(now);
        let ApiKey { id, owner, tier, scopes, label, created_at, expires_at, revoked_at, rotated_to, .. } = key;
        Self { id, owner, tier, scopes, label, live, created_at, expires_at, revoked_at, rotated_to }
    }
}

/// What the policy needs to know of a caller.
async fn manager(api: &Api, actor: &Actor) -> Result<manage::Actor, Rejection> {
    match actor {
        Actor::Key(principal) => {
            let id = principal.key_id().ok_or(Rejection::Unauthorized)?;
            let (_, key) = api.app.store.key(id).await.map_err(refused)?.ok_or(Rejection::Unauthorized)?;
            Ok(manage::Actor::Key(Arc::new(key)))
        }
        Actor::Token { name, .. } => Ok(manage::Actor::Admin(name.to_string())),
    }
}

/// A key with the scope `admin` acts for every owner, which is more than an operator's token may give.
fn may_give(actor: &Actor, scopes: ScopeSet) -> Result<(), Rejection> {
    match actor {
        Actor::Token { .. } if scopes.contains(Scope::Admin) => actor.need_role(Role::Admin),
        _ => Ok(()),
    }
}

impl Api {
    /// How the policy finds a tier.
    fn tier_of(&self) -> impl Fn(&Name) -> Option<Arc<Tier>> + Sync + '_ {
        |name| self.app.tier(name)
    }

    fn keys<'a>(&'a self, tiers: manage::Tiers<'a>) -> manage::Keys<'a> {
        manage::Keys { store: &*self.app.store, auth: &self.app.shared.auth, tiers }
    }
}

/// Makes a key.
#[utoipa::path(post, path = "/api/auth/keys", tag = "keys", request_body = NewKey,
    responses(
        (status = 201, description = "the key, this once", body = CreatedKey),
        (status = 403, description = "above the caller's own tier or scopes"),
        (status = 409, description = "the owner has all the keys that the tier allows"),
    ))]
pub(super) async fn create(
    State(api): State<Arc<Api>>,
    actor: Actor,
    JsonBody(new): JsonBody<NewKey>,
) -> Result<Response, Rejection> {
    actor.need(Scope::Keys, Role::Operator)?;
    let scopes = new.scopes.map(|scopes| scopes.into_iter().collect::<ScopeSet>());
    may_give(&actor, scopes.unwrap_or_default())?;
    let NewKey { owner, label, tier, expires_at, .. } = new;
    if let Some(tier) = tier.as_ref().filter(|tier| api.app.tier(tier).is_none()) {
        let names = api.tier_names(|t| t.name.as_str() != Tier::ANONYMOUS);
        return Err(Rejection::BadRequest(format!("the tier `{tier}` does not exist; use {names}")));
    }
    let new = manage::NewKey { owner, tier, scopes, label, expires_at };
    let (tiers, now) = (api.tier_of(), Timestamp::now());
    let keys = api.keys(&tiers);
    let made = keys.create(&manager(&api, &actor).await?, new, now).await?;
    Ok(json(StatusCode::CREATED, CreatedKey { view: KeyView::new(made.key, now), key: made.secret }))
}

/// Lists keys, oldest first, without their text.
#[utoipa::path(get, path = "/api/auth/keys", tag = "keys", params(KeysQuery),
    responses((status = 200, description = "a page of them", body = KeyList)))]
pub(super) async fn list(
    State(api): State<Arc<Api>>,
    actor: Actor,
    Params(query): Params<KeysQuery>,
) -> Result<Response, Rejection> {
    actor.need(Scope::Keys, Role::Viewer)?;
    let (page, limit) = (query.page.unwrap_or(1), query.limit.unwrap_or(50));
    if page == 0 || !(1..=MAX_PAGE).contains(&limit) {
        return Err(Rejection::BadRequest(format!("`page`: from 1, `limit`: 1 to {MAX_PAGE}")));
    }
    let owner = actor.owners(query.owner.as_ref())?;
    let all = api.app.store.keys(owner.as_ref()).await.map_err(refused)?;
    let (total, now) = (all.len(), Timestamp::now());
    let offset = (page - 1).saturating_mul(limit);
    let keys: Vec<_> = all.into_iter().skip(offset).take(limit).map(|k| KeyView::new(k, now)).collect();
    let has_next = offset.saturating_add(limit) < total;
    Ok(json(StatusCode::OK, KeyList { keys, page, limit, total, has_next }))
}

/// Shows a key, without its text.
#[utoipa::path(get, path = "/api/auth/keys/{id}", tag = "keys",
    params(("id" = String, Path, description = "`key_...`")),
    responses(
        (status = 200, description = "the key", body = KeyView),
        (status = 404, description = "no such key"),
    ))]
pub(super) async fn get(
    State(api): State<Arc<Api>>,
    actor: Actor,
    Path(id): Path<String>,
) -> Result<Response, Rejection> {
    actor.need(Scope::Keys, Role::Viewer)?;
    let tiers = api.tier_of();
    let keys = api.keys(&tiers);
    let key = keys.get(&manager(&api, &actor).await?, &KeyId::from(id)).await?;
    Ok(json(StatusCode::OK, KeyView::new(key, Timestamp::now())))
}

/// Revokes a key at once and for good.
#[utoipa::path(delete, path = "/api/auth/keys/{id}", tag = "keys",
    params(("id" = String, Path, description = "`key_...`")),
    responses(
        (status = 204, description = "revoked"),
        (status = 404, description = "no such key"),
    ))]
pub(super) async fn revoke(
    State(api): State<Arc<Api>>,
    actor: Actor,
    Path(id): Path<String>,
) -> Result<Response, Rejection> {
    actor.need(Scope::Keys, Role::Operator)?;
    let tiers = api.tier_of();
    let keys = api.keys(&tiers);
    keys.revoke(&manager(&api, &actor).await?, &KeyId::from(id), Timestamp::now()).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Makes a key that replaces this one; the old one works until its grace period ends. The body may be left out.
#[utoipa::path(post, path = "/api/auth/keys/{id}/rotate", tag = "keys",
    params(("id" = String, Path, description = "`key_...`")), request_body = Option<Rotate>,
    responses(
        (status = 201, description = "the new key, this once", body = CreatedKey),
        (status = 403, description = "it is above the caller's own tier or scopes"),
        (status = 404, description = "no such key"),
        (status = 409, description = "revoked, expired or rotated already"),
    ))]
pub(super) async fn rotate(
    State(api): State<Arc<Api>>,
    actor: Actor,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, Rejection> {
    actor.need(Scope::Keys, Role::Operator)?;
    let (parts, sent) = request.into_parts();
    let over = |_| Rejection::PayloadTooLarge { limit: body::JSON_BYTES };
    let sent = body::gather(&api, &parts.headers, sent, body::JSON_BYTES, over).await?;
    let rotate: Rotate = if sent.is_empty() { Rotate::default() } else { parse_object(&sent)? };
    let grace = rotate.grace_seconds.map(Duration::from_secs);

    let (tiers, now, id) = (api.tier_of(), Timestamp::now(), KeyId::from(id));
    let keys = api.keys(&tiers);
    let manager = manager(&api, &actor).await?;
    may_give(&actor, keys.get(&manager, &id).await?.scopes)?;
    let made = keys.rotate(&manager, &id, grace, now).await?;
    Ok(json(StatusCode::CREATED, CreatedKey { view: KeyView::new(made.key, now), key: made.secret }))
}
