//! API keys and the principals they stand for. The key's text is never here: only its keyed hash is.

use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{KeyId, Name, OwnerId, Tier, Timestamp};

/// HMAC-SHA256 of a key's text under the server's pepper.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyHash(pub [u8; 32]);

impl std::fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "KeyHash({:02x}{:02x}..)", self.0[0], self.0[1])
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Use routes.
    Proxy,
    /// Run modules through the execute API.
    Execute,
    /// Upload, list, activate and delete modules.
    Modules,
    /// Read own usage.
    Usage,
    /// Manage keys of the same owner.
    Keys,
    /// Act for any owner.
    Admin,
}

impl Scope {
    pub const ALL: [Scope; 6] = [Scope::Proxy, Scope::Execute, Scope::Modules, Scope::Usage, Scope::Keys, Scope::Admin];

    pub fn as_str(self) -> &'static str {
        match self {
            Scope::Proxy => "proxy",
            Scope::Execute => "execute",
            Scope::Modules => "modules",
            Scope::Usage => "usage",
            Scope::Keys => "keys",
            Scope::Admin => "admin",
        }
    }
}

/// A set of scopes; a list of names in records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<Scope>", into = "Vec<Scope>")]
pub struct ScopeSet(u8);

impl ScopeSet {
    pub fn contains(self, scope: Scope) -> bool {
        self.0 & (1 << scope as u8) != 0
    }

    pub fn contains_all(self, other: ScopeSet) -> bool {
        self.0 & other.0 == other.0
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub fn iter(self) -> impl Iterator<Item = Scope> {
        Scope::ALL.into_iter().filter(move |s| self.contains(*s))
    }
}

impl FromIterator<Scope> for ScopeSet {
    fn from_iter<I: IntoIterator<Item = Scope>>(iter: I) -> Self {
        Self(iter.into_iter().fold(0, |set, s| set | 1 << s as u8))
    }
}

impl From<Vec<Scope>> for ScopeSet {
    fn from(v: Vec<Scope>) -> Self {
        v.into_iter().collect()
    }
}

impl From<ScopeSet> for Vec<Scope> {
    fn from(s: ScopeSet) -> Self {
        s.iter().collect()
    }
}

/// The stored record of a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiKey {
    pub id: KeyId,
    pub owner: OwnerId,
    pub tier: Name,
    pub scopes: ScopeSet,
    /// Free text for people.
    pub label: String,
    /// Which pepper its hash was made with.
    pub pepper: u32,
    pub created_at: Timestamp,
    pub expires_at: Option<Timestamp>,
    pub revoked_at: Option<Timestamp>,
    /// The key that replaced this one; this one expires at the end of the grace period.
    pub rotated_to: Option<KeyId>,
}

impl ApiKey {
    pub fn is_live(&self, now: Timestamp) -> bool {
        self.revoked_at.is_none() && self.expires_at.is_none_or(|at| now < at)
    }
}

/// Whom a request counts against.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Subject {
    Key {
        owner: OwnerId,
        key: KeyId,
    },
    /// Anonymous: an IPv4 address, or an IPv6 address with its lower 64 bits cleared.
    Address(IpAddr),
}

/// An authenticated (or anonymous) caller.
#[derive(Clone, Debug)]
pub struct Principal {
    pub subject: Subject,
    pub tier: Arc<Tier>,
    pub scopes: ScopeSet,
}

impl Principal {
    /// `None` for anonymous callers.
    pub fn owner(&self) -> Option<&OwnerId> {
        match &self.subject {
            Subject::Key { owner, .. } => Some(owner),
            Subject::Address(_) => None,
        }
    }

    pub fn key_id(&self) -> Option<&KeyId> {
        match &self.subject {
            Subject::Key { key, .. } => Some(key),
            Subject::Address(_) => None,
        }
    }
}
