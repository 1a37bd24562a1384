//! Admin tokens: named, with a role, shown once.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use serde::{Deserialize, Serialize};

use crate::api::access::{Actor, BOOTSTRAP, role_name};
use crate::api::body::JsonBody;
use crate::api::openapi::{Problem, json};
use crate::api::{Api, refused};
use crate::domain::{Name, Rejection, Timestamp, TokenId};
use crate::store::{AdminToken, Role};

/// Tokens that are not revoked.
const MAX_TOKENS: usize = 1_000;

#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::api) struct NewToken {
    /// Shown in the audit log.
    #[schema(value_type = String)]
    name: Name,
    role: Role,
}

#[derive(Serialize, utoipa::ToSchema)]
pub(in crate::api) struct TokenView {
    #[schema(value_type = String)]
    id: TokenId,
    #[schema(value_type = String)]
    name: Name,
    role: Role,
    #[schema(value_type = String)]
    created_at: Timestamp,
    #[schema(value_type = Option<String>)]
    revoked_at: Option<Timestamp>,
}

#[derive(Serialize, utoipa::ToSchema)]
pub(in crate::api) struct CreatedToken {
    #[serde(flatten)]
    view: TokenView,
    /// The token itself. It is not shown again.
    token: String,
}

#[derive(Serialize, utoipa::ToSchema)]
pub(in crate::api) struct TokenList {
    tokens: Vec<TokenView>,
}

impl From<AdminToken> for TokenView {
    fn from(token: AdminToken) -> Self {
        let AdminToken { id, name, role, created_at, revoked_at } = token;
        Self { id, name, role, created_at, revoked_at }
    }
}

/// Makes a token.
#[utoipa::path(post, path = "/api/tokens", tag = "admin", request_body = NewToken,
    responses(
        (status = 201, description = "the token, this once", body = CreatedToken),
        (status = 409, description = "a live token has this name", body = Problem, content_type = "application/problem+json"),
    ))]
pub(in crate::api) async fn create(
    State(api): State<Arc<Api>>,
    actor: Actor,
    JsonBody(new): JsonBody<NewToken>,
) -> Result<Response, Rejection> {
    actor.need_role(Role::Admin)?;
    let live: Vec<_> =
        api.app.store.tokens().await.map_err(refused)?.into_iter().filter(|t| t.revoked_at.is_none()).collect();
    if live.len() >= MAX_TOKENS {
        return Err(Rejection::Conflict(format!("there are {MAX_TOKENS} tokens: revoke one")));
    }
    // The audit log tells tokens apart by name.
    if live.iter().any(|t| t.name == new.name) || new.name.as_str() == BOOTSTRAP {
        return Err(Rejection::Conflict(format!("`name`: `{}` is taken", new.name)));
    }
    let no_entropy = |error: getrandom::Error| {
        tracing::error!(%error, "no random bytes");
        Rejection::Internal
    };
    let minted = api.app.shared.auth.mint_token().map_err(no_entropy)?;
    let id = TokenId::random().map_err(no_entropy)?;
    let token = AdminToken { id, name: new.name, role: new.role, created_at: Timestamp::now(), revoked_at: None };
    api.app.store.put_token(minted.hash, &token).await.map_err(refused)?;
    api.audit(&actor, "token.create", token.id.as_str(), format!("{} ({})", token.name, role_name(token.role))).await;
    Ok(json(StatusCode::CREATED, CreatedToken { view: token.into(), token: minted.secret }))
}

/// Lists the tokens, without their text.
#[utoipa::path(get, path = "/api/tokens", tag = "admin",
    responses((status = 200, description = "the tokens", body = TokenList)))]
pub(in crate::api) async fn list(State(api): State<Arc<Api>>, actor: Actor) -> Result<Response, Rejection> {
    actor.need_role(Role::Admin)?;
    let stored = api.app.store.tokens().await.map_err(refused)?;
    let bootstrap = TokenView {
        id: BOOTSTRAP.into(),
        name: BOOTSTRAP.parse().map_err(|_| Rejection::Internal)?,
        role: Role::Admin,
        created_at: api.app.bootstrap_token.since,
        revoked_at: None,
    };
    let tokens = [bootstrap].into_iter().chain(stored.into_iter().map(TokenView::from)).collect();
    Ok(json(StatusCode::OK, TokenList { tokens }))
}

/// Revokes a token at once.
#[utoipa::path(delete, path = "/api/tokens/{id}", tag = "admin",
    params(("id" = String, Path, description = "`tok_...`")),
    responses(
        (status = 204, description = "revoked"),
        (status = 409, description = "the first token: its file is deleted instead", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "no such token", body = Problem, content_type = "application/problem+json"),
    ))]
pub(in crate::api) async fn revoke(
    State(api): State<Arc<Api>>,
    actor: Actor,
    Path(id): Path<String>,
) -> Result<Response, Rejection> {
    actor.need_role(Role::Admin)?;
    if id == BOOTSTRAP {
        let file = api.app.bootstrap_token.file.display();
        let detail = format!("the first token is renewed by deleting its file, `{file}`, and starting again");
        return Err(Rejection::Conflict(detail));
    }
    let named = |t: &&AdminToken| t.name.as_str() == id && t.revoked_at.is_none();
    if let Some(token) = api.app.store.tokens().await.map_err(refused)?.iter().find(named) {
        let detail = format!("`{id}` is a token's name; a token is revoked by its id, here `{}`", token.id);
        return Err(Rejection::NotFound(detail));
    }
    let revoked = api.app.store.revoke_token(&TokenId::from(id.as_str()), Timestamp::now()).await.map_err(refused)?;
    api.app.shared.auth.forget_tokens();
    api.audit(&actor, "token.revoke", id, revoked.name.as_str()).await;
    Ok(StatusCode::NO_CONTENT.into_response())
}
