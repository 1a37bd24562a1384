//! The key cache and the authenticator over it.

use std::sync::Arc;
use std::time::Duration;

use crate::domain::{ApiKey, KeyHash, Timestamp, TokenId};
use crate::store::{AdminToken, Store};

pub struct Settings {
    pub key_fresh: Duration,
    pub key_max_stale: Duration,
    pub absent_ttl: Duration,
    pub entries: u64,
}

/// Peppers by id; new keys use the highest.
pub struct Peppers(pub Vec<(u32, Vec<u8>)>);

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AuthError {
    /// Malformed, unknown, revoked or expired: the client is never told which.
    Invalid,
    StoreUnavailable,
}

/// Figures for metrics.
#[derive(Clone, Copy, Debug, Default)]
pub struct CacheStats {
    pub hit: u64,
    pub miss: u64,
    pub stale: u64,
    pub negative: u64,
}

pub struct Authenticator {}

/// A key or token as shown once to its owner. Not `Debug`: it never goes to a log.
pub struct Minted {
    pub secret: String,
    pub hash: KeyHash,
    pub pepper: u32,
}

impl Authenticator {
    pub fn new(_store: Arc<dyn Store>, _peppers: Peppers, _settings: Settings) -> Arc<Self> {
        unimplemented!()
    }

    /// Fast path: `Some` when the cache answers alone (a live key, or a refusal); `None`: call [`Self::authenticate`].
    pub fn cached(&self, _presented: &str, _now: Timestamp) -> Option<Result<Arc<ApiKey>, AuthError>> {
        unimplemented!()
    }

    pub async fn authenticate(&self, _presented: &str, _now: Timestamp) -> Result<Arc<ApiKey>, AuthError> {
        unimplemented!()
    }

    /// A revocation or rotation made here is seen by the next request.
    pub fn invalidate(&self, _hash: &KeyHash) {
        unimplemented!()
    }

    /// A new random key, `wg_live_...`.
    pub fn mint(&self) -> Result<Minted, getrandom::Error> {
        unimplemented!()
    }

    /// A new random admin token, `wg_admin_...`.
    pub fn mint_token(&self) -> Result<Minted, getrandom::Error> {
        unimplemented!()
    }

    /// The hash under which an admin token is stored.
    pub fn hash_token(&self, _presented: &str) -> KeyHash {
        unimplemented!()
    }

    pub async fn admin_token(&self, _presented: &str) -> Result<AdminToken, AuthError> {
        unimplemented!()
    }

    pub fn stats(&self) -> CacheStats {
        unimplemented!()
    }
}

#[allow(unused)]
fn _uses(_: TokenId) {}
