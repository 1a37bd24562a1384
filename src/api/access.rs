//! Who calls, and on whose behalf.
//!
//! Invariant: a key acts for its own owner alone unless it has the scope `admin`; a token acts for every owner, within
//! its role.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use axum::extract::FromRequestParts;
use http::request::Parts;
use subtle::ConstantTimeEq as _;

use super::Api;
use crate::auth::cache::AuthError;
use crate::domain::{KeyId, ModuleRef, OwnerId, Principal, Rejection, Scope, Tier};
use crate::store::Role;

/// The id and name of the token in `admin.token_file`, which is not in the store.
pub(super) const BOOTSTRAP: &str = "bootstrap";

/// Owner of what an operator makes without naming another one.
pub(super) const OPERATOR: &str = "wasmgate";

#[derive(Clone)]
pub(super) enum Actor {
    /// The tenant face; the gateway has checked the key.
    Key(Principal),
    /// The admin face.
    Token { name: Arc<str>, role: Role },
}

impl Actor {
    /// A key needs the scope, a token the role.
    pub(super) fn need(&self, scope: Scope, role: Role) -> Result<(), Rejection> {
        match self {
            Actor::Key(principal) if principal.scopes.contains(scope) => Ok(()),
            Actor::Key(Principal { subject: crate::domain::Subject::Address(_), .. }) => Err(Rejection::Unauthorized),
            Actor::Key(_) => Err(Rejection::ScopeRequired(scope)),
            Actor::Token { .. } => self.need_role(role),
        }
    }

    pub(super) fn need_role(&self, needed: Role) -> Result<(), Rejection> {
        match self {
            Actor::Token { role, .. } if *role >= needed => Ok(()),
            Actor::Token { role, .. } => Err(Rejection::Forbidden(format!(
                "the token's role is `{}`; this needs `{}`",
                role_name(*role),
                role_name(needed)
            ))),
            Actor::Key(_) => Err(Rejection::Forbidden("this needs an admin token".into())),
        }
    }

    pub(super) fn acts_for_all(&self) -> bool {
        match self {
            Actor::Key(principal) => principal.scopes.contains(Scope::Admin),
            Actor::Token { .. } => true,
        }
    }

    /// Whose things are meant: the one asked for, else one's own; an operator's own are those of [`OPERATOR`].
    pub(super) fn owner(&self, asked: Option<&OwnerId>) -> Result<OwnerId, Rejection> {
        match self.owners(asked)? {
            Some(owner) => Ok(owner),
            None => OPERATOR.parse().map_err(|_| Rejection::Internal),
        }
    }

    /// As [`Self::owner`], for a module: a reference may name its owner.
    pub(super) fn owner_of(&self, reference: &ModuleRef, asked: Option<&OwnerId>) -> Result<OwnerId, Rejection> {
        match (&reference.owner, asked) {
            (Some(named), Some(asked)) if named != asked => Err(Rejection::BadRequest(format!(
                "`owner`: `{asked}` is not the owner that `{reference}` names; leave one of them out"
            ))),
            (Some(named), _) => Ok(named.clone()),
            (None, asked) => self.owner(asked),
        }
    }

    /// As [`Self::owner`], for listings: `None` is every owner.
    pub(super) fn owners(&self, asked: Option<&OwnerId>) -> Result<Option<OwnerId>, Rejection> {
        match self {
            Actor::Token { .. } => Ok(asked.cloned()),
            Actor::Key(principal) => {
                let own = principal.owner().ok_or(Rejection::Unauthorized)?;
                match asked {
                    Some(other) if other != own && !self.acts_for_all() => {
                        Err(Rejection::Forbidden("`owner`: only a key with the scope `admin` acts for others".into()))
                    }
                    Some(asked) => Ok(Some(asked.clone())),
                    None => Ok(Some(own.clone())),
                }
            }
        }
    }

    /// `None` for tokens and anonymous callers.
    pub(super) fn own(&self) -> Option<&OwnerId> {
        match self {
            Actor::Key(principal) => principal.owner(),
            Actor::Token { .. } => None,
        }
    }

    pub(super) fn principal(&self) -> Option<&Principal> {
        match self {
            Actor::Key(principal) => Some(principal),
            Actor::Token { .. } => None,
        }
    }

    /// Where the caller's usage is counted; an operator's with that of [`OPERATOR`], by token. `None` for anonymous callers.
    pub(super) fn usage_of(&self) -> Option<(OwnerId, KeyId)> {
        match self {
            Actor::Key(principal) => Some((principal.owner()?.clone(), principal.key_id()?.clone())),
            Actor::Token { name, .. } => Some((OPERATOR.parse().ok()?, format!("token:{name}").into())),
        }
    }

    /// The bounds of what the caller sends and runs; an operator has those of the highest tier.
    pub(super) fn tier(&self, api: &Api) -> Result<Arc<Tier>, Rejection> {
        match self {
            Actor::Key(principal) => Ok(principal.tier.clone()),
            Actor::Token { .. } => api.highest_tier(),
        }
    }

    pub(super) fn audit_name(&self) -> String {
        match self {
            Actor::Key(principal) => principal.key_id().map_or_else(|| "anonymous".into(), ToString::to_string),
            Actor::Token { name, .. } => name.to_string(),
        }
    }
}

/// Set by the edge for every request that needs one.
impl<S: Sync> FromRequestParts<S> for Actor {
    type Rejection = Rejection;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Rejection> {
        parts.extensions.get::<Actor>().cloned().ok_or(Rejection::Unauthorized)
    }
}

pub(super) fn role_name(role: Role) -> &'static str {
    match role {
        Role::Viewer => "viewer",
        Role::Operator => "operator",
        Role::Admin => "admin",
    }
}

/// The bearer of an `Authorization: Bearer` header on the admin face. Tokens that do not verify are counted against the
/// address they come from, together with its wrong keys.
pub(super) async fn token_actor(api: &Api, headers: &http::HeaderMap, peer: IpAddr) -> Result<Actor, Rejection> {
    let mut values = headers.get_all(http::header::AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return Err(Rejection::Unauthorized) };
    let value = value.to_str().map_err(|_| Rejection::Unauthorized)?;
    let token = match value.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => token.trim(),
        _ => return Err(Rejection::Unauthorized),
    };
    let shared = &api.app.shared;
    let presented = shared.auth.hash_token(token);
    // Hashes, and in constant time: how long it takes tells nothing of the token. It needs no look-up and so no
    // attempt: another's failures behind the same address never shut its holder out.
    if bool::from(presented.0.ct_eq(&api.app.bootstrap_token.hash.0)) {
        return Ok(Actor::Token { name: BOOTSTRAP.into(), role: Role::Admin });
    }
    let attempt = shared.failures.attempt(peer, Instant::now())?;
    match shared.auth.admin_token(token).await {
        Ok(token) => {
            attempt.forgive();
            Ok(Actor::Token { name: token.name.as_str().into(), role: token.role })
        }
        Err(AuthError::Invalid) => Err(Rejection::Unauthorized),
        Err(AuthError::StoreUnavailable) => {
            attempt.forgive();
            Err(Rejection::StoreUnavailable)
        }
    }
}
