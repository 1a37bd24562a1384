//! Making, rotating, revoking and listing keys, for the API and the command line alike.
//!
//! Invariant: without admin rights nobody gets a key that may more than the one he acts with: not a higher tier, not
//! another scope, not a later expiry, not another owner; neither a new one nor, by rotation, an existing one's secret.

use std::sync::Arc;
use std::time::Duration;

use super::cache::{Authenticator, Minted};
use crate::domain::{ApiKey, KeyId, Name, OwnerId, Rejection, Scope, ScopeSet, Tier, Timestamp};
use crate::store::{AuditEntry, Rotation, Store};

/// How long a rotated key goes on working.
pub const DEFAULT_GRACE: Duration = Duration::from_secs(24 * 3600);
pub const MAX_GRACE: Duration = Duration::from_secs(30 * 24 * 3600);
const MAX_LABEL_BYTES: usize = 200;
/// The tier of an owner's key when an administrator names none.
const DEFAULT_TIER: &str = "free";

/// Who asks.
#[derive(Clone, Debug)]
pub enum Actor {
    Key(Arc<ApiKey>),
    /// A token that may change things, by its name.
    Admin(String),
}

impl Actor {
    fn is_admin(&self) -> bool {
        match self {
            Actor::Key(key) => key.scopes.contains(Scope::Admin),
            Actor::Admin(_) => true,
        }
    }

    fn name(&self) -> &str {
        match self {
            Actor::Key(key) => key.id.as_str(),
            Actor::Admin(name) => name,
        }
    }
}

/// What is asked for; `None` takes the caller's own (an administrator's: the tier `free`, all scopes but `admin`).
#[derive(Clone, Debug, Default)]
pub struct NewKey {
    pub owner: Option<OwnerId>,
    pub tier: Option<Name>,
    pub scopes: Option<ScopeSet>,
    pub label: String,
    pub expires_at: Option<Timestamp>,
}

/// A new key with its text, which is shown this once. Not `Debug`.
pub struct Created {
    pub key: ApiKey,
    pub secret: String,
}

/// The configured (and overridden) tiers.
pub type Tiers<'a> = &'a (dyn Fn(&Name) -> Option<Arc<Tier>> + Sync);

/// The operations, over what they need.
pub struct Keys<'a> {
    pub store: &'a dyn Store,
    pub auth: &'a Authenticator,
    pub tiers: Tiers<'a>,
}

impl Keys<'_> {
    pub async fn create(&self, actor: &Actor, new: NewKey, now: Timestamp) -> Result<Created, Rejection> {
        may_manage(actor)?;
        let (grant, cap) = grant(actor, new, self.tiers, now)?;
        let minted = self.mint()?;
        let key = ApiKey {
            id: KeyId::random().map_err(|_| Rejection::Internal)?,
            owner: grant.owner,
            tier: grant.tier,
            scopes: grant.scopes,
            label: grant.label,
            pepper: minted.pepper,
            created_at: now,
            expires_at: grant.expires_at,
            revoked_at: None,
            rotated_to: None,
        };
        self.store.put_key(minted.hash, &key, Some(cap)).await?;
        self.auth.invalidate(&minted.hash);
        self.audit(actor, "key.create", &key, now, format!("owner {} tier {}", key.owner, key.tier)).await?;
        Ok(Created { key, secret: minted.secret })
    }

    /// A successor with the same rights; the old key works on for `grace`.
    pub async fn rotate(
        &self,
        actor: &Actor,
        id: &KeyId,
        grace: Option<Duration>,
        now: Timestamp,
    ) -> Result<Created, Rejection> {
        may_manage(actor)?;
        let grace = grace.unwrap_or(DEFAULT_GRACE);
        if grace > MAX_GRACE {
            return Err(Rejection::BadRequest("the grace period is at most 30 days".into()));
        }
        let old = self.find(actor, id).await?;
        may_hold(actor, &old, self.tiers)?;
        let tier = known_tier(self.tiers, &old.tier)?;
        let minted = self.mint()?;
        let new = ApiKey {
            id: KeyId::random().map_err(|_| Rejection::Internal)?,
            pepper: minted.pepper,
            created_at: now,
            ..old
        };
        let rotation = Rotation {
            old: id.clone(),
            new_hash: minted.hash,
            new: new.clone(),
            old_expires_at: now.saturating_add(grace),
            max_live: Some(tier.keys.max(1)),
        };
        let (old_hash, _) = self.store.rotate_key(rotation).await?;
        self.auth.invalidate(&old_hash);
        self.auth.invalidate(&minted.hash);
        self.audit(actor, "key.rotate", &new, now, format!("successor of {id}, grace {} s", grace.as_secs())).await?;
        Ok(Created { key: new, secret: minted.secret })
    }

    /// At once and for ever. A revoked key stays as it is.
    pub async fn revoke(&self, actor: &Actor, id: &KeyId, now: Timestamp) -> Result<ApiKey, Rejection> {
        may_manage(actor)?;
        let mut key = self.find(actor, id).await?;
        if key.revoked_at.is_some() {
            return Ok(key);
        }
        key.revoked_at = Some(now);
        let hash = self.store.update_key(&key).await?;
        self.auth.invalidate(&hash);
        self.audit(actor, "key.revoke", &key, now, format!("owner {}", key.owner)).await?;
        Ok(key)
    }

    /// Oldest first: the caller's owner's; an administrator's choice, or all.
    pub async fn list(&self, actor: &Actor, owner: Option<&OwnerId>) -> Result<Vec<ApiKey>, Rejection> {
        may_manage(actor)?;
        let owner = match actor {
            Actor::Key(own) if !actor.is_admin() => Some(owner_of(own, owner)?),
            _ => owner,
        };
        Ok(self.store.keys(owner).await?)
    }

    pub async fn get(&self, actor: &Actor, id: &KeyId) -> Result<ApiKey, Rejection> {
        may_manage(actor)?;
        self.find(actor, id).await
    }

    /// Another owner's key does not exist for those who may not see it.
    async fn find(&self, actor: &Actor, id: &KeyId) -> Result<ApiKey, Rejection> {
        let found = self.store.key(id).await?.map(|(_, key)| key);
        let visible = |key: &ApiKey| match actor {
            Actor::Key(own) => actor.is_admin() || own.owner == key.owner,
            Actor::Admin(_) => true,
        };
        found.filter(visible).ok_or_else(|| Rejection::NotFound(format!("`{id}` does not exist")))
    }

    fn mint(&self) -> Result<Minted, Rejection> {
        self.auth.mint().map_err(|error| {
            tracing::error!(%error, "no random bytes for a key");
            Rejection::Internal
        })
    }

    async fn audit(
        &self,
        actor: &Actor,
        action: &str,
        key: &ApiKey,
        at: Timestamp,
        detail: String,
    ) -> Result<(), Rejection> {
        let (actor, action) = (actor.name().to_owned(), action.to_owned());
        let entry = AuditEntry { at, actor, action, subject: key.id.to_string(), detail };
        Ok(self.store.append_audit(&entry).await?)
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Grant {
    owner: OwnerId,
    tier: Name,
    scopes: ScopeSet,
    label: String,
    expires_at: Option<Timestamp>,
}

fn may_manage(actor: &Actor) -> Result<(), Rejection> {
    let Actor::Key(key) = actor else { return Ok(()) };
    if !key.scopes.contains(Scope::Keys) && !actor.is_admin() {
        return Err(Rejection::ScopeRequired(Scope::Keys));
    }
    if key.rotated_to.is_some() {
        return Err(Rejection::Forbidden("this key was rotated; use its successor".into()));
    }
    Ok(())
}

/// What a new key will be, and how many keys its owner may have.
fn grant(actor: &Actor, new: NewKey, tiers: Tiers<'_>, now: Timestamp) -> Result<(Grant, u32), Rejection> {
    let bad = |why: &str| Err(Rejection::BadRequest(why.to_owned()));
    if new.label.len() > MAX_LABEL_BYTES || new.label.chars().any(char::is_control) {
        return bad("`label` has at most 200 bytes and no control characters");
    }
    if new.expires_at.is_some_and(|at| at <= now) {
        return bad("`expires_at` is in the past");
    }
    if new.scopes.is_some_and(ScopeSet::is_empty) {
        return bad("`scopes` names at least one scope");
    }
    let owner = match (actor, &new.owner) {
        (Actor::Key(own), asked) if !actor.is_admin() => owner_of(own, asked.as_ref())?.clone(),
        (_, Some(asked)) => asked.clone(),
        (Actor::Key(own), None) => own.owner.clone(),
        (Actor::Admin(_), None) => return bad("`owner` is missing"),
    };
    let own = match actor {
        Actor::Key(own) => Some(own),
        Actor::Admin(_) => None,
    };
    let tier = match (&new.tier, own) {
        (Some(tier), _) => tier.clone(),
        (None, Some(own)) => own.tier.clone(),
        (None, None) => DEFAULT_TIER.parse().map_err(|_| Rejection::Internal)?,
    };
    if tier.as_str() == Tier::ANONYMOUS {
        return bad("the tier `anonymous` is for callers without a key");
    }
    let all = || Scope::ALL.into_iter().filter(|s| *s != Scope::Admin).collect();
    let grant = Grant {
        owner,
        scopes: new.scopes.or(own.map(|o| o.scopes)).unwrap_or_else(all),
        label: new.label,
        expires_at: new.expires_at.or(own.filter(|_| !actor.is_admin()).and_then(|o| o.expires_at)),
        tier,
    };
    let wanted = known_tier(tiers, &grant.tier)?;
    within(actor, &wanted, grant.scopes, grant.expires_at, tiers)?;
    let cap = match own.filter(|_| !actor.is_admin()) {
        Some(own) => known_tier(tiers, &own.tier)?.keys,
        None => wanted.keys,
    };
    Ok((grant, cap))
}

/// Whether the caller may learn a secret with the rights of `key`.
fn may_hold(actor: &Actor, key: &ApiKey, tiers: Tiers<'_>) -> Result<(), Rejection> {
    within(actor, &*known_tier(tiers, &key.tier)?, key.scopes, key.expires_at, tiers)
}

fn within(
    actor: &Actor,
    tier: &Tier,
    scopes: ScopeSet,
    expires_at: Option<Timestamp>,
    tiers: Tiers<'_>,
) -> Result<(), Rejection> {
    let Actor::Key(own) = actor else { return Ok(()) };
    if actor.is_admin() {
        return Ok(());
    }
    let forbidden = |why: String| Err(Rejection::Forbidden(why));
    if tier.rank > known_tier(tiers, &own.tier)?.rank {
        return forbidden(format!("the tier `{}` is above this key's own tier `{}`", tier.name, own.tier));
    }
    if let Some(scope) = scopes.iter().find(|s| !own.scopes.contains(*s)) {
        return forbidden(format!("this key lacks the scope `{}` and can't give it", scope.as_str()));
    }
    if let Some(own_end) = own.expires_at
        && expires_at.is_none_or(|at| at > own_end)
    {
        return forbidden("a key can't outlive the key that makes it".into());
    }
    Ok(())
}

fn owner_of<'a>(own: &'a ApiKey, asked: Option<&OwnerId>) -> Result<&'a OwnerId, Rejection> {
    match asked {
        Some(other) if *other != own.owner => {
            Err(Rejection::Forbidden("keys of another owner need the scope `admin`".into()))
        }
        _ => Ok(&own.owner),
    }
}

fn known_tier(tiers: Tiers<'_>, name: &Name) -> Result<Arc<Tier>, Rejection> {
    tiers(name).ok_or_else(|| Rejection::BadRequest(format!("the tier `{name}` does not exist")))
}
