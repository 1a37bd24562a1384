//! API keys of an owner: made, listed, revoked, rotated.
//!
//! Invariant: a key never gives away more than it has. What it makes or rotates has at most its own tier, scopes and
//! lifetime; otherwise a key with the scope `keys` could hand itself a higher tier.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use serde::{Deserialize, Serialize};

use super::access::Actor;
use super::body::{JsonBody, Params};
use super::openapi::{Problem, json};
use super::upload::OwnerQuery;
use super::{Api, refused};
use crate::domain::{ApiKey, KeyHash, KeyId, Name, OwnerId, Rejection, Scope, ScopeSet, Tier, Timestamp};
use crate::store::{Role, Rotation, StoreError};

const MAX_LABEL: usize = 200;
const MAX_PAGE: usize = 100;
/// How long a rotated key still works.
const GRACE: Duration = Duration::from_secs(24 * 3600);
const MAX_GRACE: Duration = Duration::from_secs(30 * 24 * 3600);

#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewKey {
    /// For people.
    #[serde(default)]
    label: String,
    /// Default: the caller's own; an operator names one.
    #[schema(value_type = Option<String>)]
    tier: Option<Name>,
    /// Default: `proxy`, `execute`, `modules` and `usage`, as far as the caller has them.
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
    page: Option<usize>,
    /// 1 to 100; default 50.
    limit: Option<usize>,
    /// Whose (admin; default: every owner's).
    #[param(value_type = Option<String>)]
    owner: Option<OwnerId>,
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct RotateQuery {
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

/// What the caller may give away.
struct Grant {
    /// `None`: everything (a token).
    tier: Option<Arc<Tier>>,
    scopes: ScopeSet,
    expires_at: Option<Timestamp>,
}

impl Grant {
    async fn of(api: &Api, actor: &Actor) -> Result<Self, Rejection> {
        match actor {
            Actor::Key(principal) => {
                let id = principal.key_id().ok_or(Rejection::Unauthorized)?;
                let (_, own) = api.app.store.key(id).await.map_err(refused)?.ok_or(Rejection::Unauthorized)?;
                Ok(Self { tier: Some(principal.tier.clone()), scopes: principal.scopes, expires_at: own.expires_at })
            }
            Actor::Token { role, .. } => {
                let all = Scope::ALL.into_iter().filter(|s| *s != Scope::Admin || *role == Role::Admin);
                Ok(Self { tier: None, scopes: all.collect(), expires_at: None })
            }
        }
    }

    fn covers(&self, tier: &Tier, scopes: ScopeSet) -> Result<(), Rejection> {
        if let Some(own) = &self.tier
            && tier.rank > own.rank
        {
            return Err(Rejection::Forbidden(format!("`tier`: `{}` is above your own, `{}`", tier.name, own.name)));
        }
        match scopes.iter().find(|s| !self.scopes.contains(*s)) {
            Some(scope) => Err(Rejection::Forbidden(format!("`scopes`: you don't have `{}`", scope.as_str()))),
            None => Ok(()),
        }
    }
}

fn no_entropy(error: getrandom::Error) -> Rejection {
    tracing::error!(%error, "no random bytes");
    Rejection::Internal
}

fn over_cap(api: &Api, tier: &Tier, error: StoreError) -> Rejection {
    match (error, api.lowest_tier(|t| t.keys > tier.keys)) {
        (StoreError::Limit(_), Some(needs)) => Rejection::TierRequired { needs },
        (error, _) => refused(error),
    }
}

/// Makes a key.
#[utoipa::path(post, path = "/api/auth/keys", tag = "keys", params(OwnerQuery), request_body = NewKey,
    responses(
        (status = 201, description = "the key, this once", body = CreatedKey),
        (status = 402, description = "the tier allows no more keys", body = Problem, content_type = "application/problem+json"),
        (status = 403, description = "above the caller's own tier or scopes", body = Problem, content_type = "application/problem+json"),
    ))]
pub(super) async fn create(
    State(api): State<Arc<Api>>,
    actor: Actor,
    Params(query): Params<OwnerQuery>,
    JsonBody(new): JsonBody<NewKey>,
) -> Result<Response, Rejection> {
    actor.need(Scope::Keys, Role::Operator)?;
    let bad = |field: &str, why: &str| Rejection::BadRequest(format!("`{field}`: {why}"));
    let owner = actor.owner(query.owner.as_ref())?;
    let grant = Grant::of(&api, &actor).await?;
    let now = Timestamp::now();
    let tier = match (&new.tier, &grant.tier) {
        (Some(name), _) => api.app.tier(name).ok_or_else(|| bad("tier", &format!("there is no tier `{name}`")))?,
        (None, Some(own)) => own.clone(),
        (None, None) => return Err(bad("tier", "is missing")),
    };
    if tier.name.as_str() == Tier::ANONYMOUS {
        return Err(bad("tier", "`anonymous` is for callers without a key"));
    }
    let scopes: ScopeSet = match new.scopes {
        Some(scopes) => scopes.into_iter().collect(),
        None => {
            let usual = [Scope::Proxy, Scope::Execute, Scope::Modules, Scope::Usage];
            usual.into_iter().filter(|s| grant.scopes.contains(*s)).collect()
        }
    };
    if scopes.is_empty() {
        return Err(bad("scopes", "name at least one"));
    }
    grant.covers(&tier, scopes)?;
    if new.label.len() > MAX_LABEL {
        return Err(bad("label", &format!("is longer than {MAX_LABEL} bytes")));
    }
    if new.expires_at.is_some_and(|at| at <= now) {
        return Err(bad("expires_at", "is in the past"));
    }
    let expires_at = [new.expires_at, grant.expires_at].into_iter().flatten().min();

    let minted = api.app.shared.auth.mint().map_err(no_entropy)?;
    let key = ApiKey {
        id: KeyId::random().map_err(no_entropy)?,
        owner,
        tier: tier.name.clone(),
        scopes,
        label: new.label,
        pepper: minted.pepper,
        created_at: now,
        expires_at,
        revoked_at: None,
        rotated_to: None,
    };
    // Of the caller's tier: a key of a lower one must not widen what its owner may hold, nor narrow it.
    let cap = grant.tier.unwrap_or(tier);
    let put = api.app.store.put_key(minted.hash, &key, Some(cap.keys)).await;
    put.map_err(|e| over_cap(&api, &cap, e))?;
    // A refusal of this very text may be cached.
    api.app.shared.auth.invalidate(&minted.hash);
    api.audit(&actor, "key.create", key.id.as_str(), format!("owner {}, tier {}", key.owner, key.tier)).await;
    Ok(json(StatusCode::CREATED, CreatedKey { view: KeyView::new(key, now), key: minted.secret }))
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

/// A key of the caller's owner, or of any for an admin; others do not exist.
async fn find(api: &Api, actor: &Actor, id: &str) -> Result<(KeyHash, ApiKey), Rejection> {
    let found = api.app.store.key(&KeyId::from(id)).await.map_err(refused)?;
    match found {
        Some((hash, key)) if actor.acts_for_all() || actor.own() == Some(&key.owner) => Ok((hash, key)),
        _ => Err(Rejection::NotFound("there is no key of this id".into())),
    }
}

/// Shows a key, without its text.
#[utoipa::path(get, path = "/api/auth/keys/{id}", tag = "keys",
    params(("id" = String, Path, description = "`key_...`")),
    responses(
        (status = 200, description = "the key", body = KeyView),
        (status = 404, description = "no such key", body = Problem, content_type = "application/problem+json"),
    ))]
pub(super) async fn get(
    State(api): State<Arc<Api>>,
    actor: Actor,
    Path(id): Path<String>,
) -> Result<Response, Rejection> {
    actor.need(Scope::Keys, Role::Viewer)?;
    let (_, key) = find(&api, &actor, &id).await?;
    Ok(json(StatusCode::OK, KeyView::new(key, Timestamp::now())))
}

/// Revokes a key at once and for good.
#[utoipa::path(delete, path = "/api/auth/keys/{id}", tag = "keys",
    params(("id" = String, Path, description = "`key_...`")),
    responses(
        (status = 204, description = "revoked"),
        (status = 404, description = "no such key", body = Problem, content_type = "application/problem+json"),
    ))]
pub(super) async fn revoke(
    State(api): State<Arc<Api>>,
    actor: Actor,
    Path(id): Path<String>,
) -> Result<Response, Rejection> {
    actor.need(Scope::Keys, Role::Operator)?;
    let (hash, mut key) = find(&api, &actor, &id).await?;
    if key.revoked_at.is_none() {
        key.revoked_at = Some(Timestamp::now());
        api.app.store.update_key(&key).await.map_err(refused)?;
        api.app.shared.auth.invalidate(&hash);
        api.audit(&actor, "key.revoke", id, format!("owner {}", key.owner)).await;
    }
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Makes a key that replaces this one; the old one works until its grace period ends.
#[utoipa::path(post, path = "/api/auth/keys/{id}/rotate", tag = "keys",
    params(("id" = String, Path, description = "`key_...`"), RotateQuery),
    responses(
        (status = 201, description = "the new key, this once", body = CreatedKey),
        (status = 403, description = "it is above the caller's own tier or scopes", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "no such key", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "revoked, expired or rotated already", body = Problem, content_type = "application/problem+json"),
    ))]
pub(super) async fn rotate(
    State(api): State<Arc<Api>>,
    actor: Actor,
    Path(id): Path<String>,
    Params(query): Params<RotateQuery>,
) -> Result<Response, Rejection> {
    actor.need(Scope::Keys, Role::Operator)?;
    let grace = query.grace_seconds.map_or(GRACE, Duration::from_secs);
    if grace > MAX_GRACE {
        return Err(Rejection::BadRequest(format!("`grace_seconds`: at most {}", MAX_GRACE.as_secs())));
    }
    let (_, old) = find(&api, &actor, &id).await?;
    let grant = Grant::of(&api, &actor).await?;
    let gone = || Rejection::Conflict(format!("the key's tier `{}` is gone: make a new key", old.tier));
    let tier = api.app.tier(&old.tier).ok_or_else(gone)?;
    grant.covers(&tier, old.scopes)?;

    let now = Timestamp::now();
    let minted = api.app.shared.auth.mint().map_err(no_entropy)?;
    let new = ApiKey {
        id: KeyId::random().map_err(no_entropy)?,
        pepper: minted.pepper,
        created_at: now,
        expires_at: [old.expires_at, grant.expires_at].into_iter().flatten().min(),
        revoked_at: None,
        rotated_to: None,
        ..old.clone()
    };
    let rotation = Rotation {
        old: old.id,
        new_hash: minted.hash,
        new: new.clone(),
        old_expires_at: now.saturating_add(grace),
        max_live: Some(tier.keys),
    };
    let (old_hash, _) = api.app.store.rotate_key(rotation).await.map_err(|e| over_cap(&api, &tier, e))?;
    api.app.shared.auth.invalidate(&old_hash);
    api.app.shared.auth.invalidate(&minted.hash);
    api.audit(&actor, "key.rotate", id, format!("to {}, owner {}", new.id, new.owner)).await;
    Ok(json(StatusCode::CREATED, CreatedKey { view: KeyView::new(new, now), key: minted.secret }))
}
