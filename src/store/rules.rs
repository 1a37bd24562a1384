//! What every store decides in the same way: pure functions of what is kept and what is asked for.
//!
//! Invariant: each rule is here and nowhere else; a store brings the records and keeps what comes out.

pub mod keys;
pub mod modules;
pub mod routes;
pub mod values;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{AdminToken, AuditEntry, Result, Retention, StoreError};

/// Rows of one kind that one call of `prune` deletes.
pub const PRUNE_BATCH: u64 = 1_000;

pub fn encode<T: Serialize>(record: &T) -> Result<Vec<u8>> {
    serde_json::to_vec(record).map_err(|e| StoreError::Corrupt(format!("a record can't be written: {e}")))
}

/// `what` names the record in the error.
pub fn decode<T: DeserializeOwned>(bytes: &[u8], what: &str) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|e| StoreError::Corrupt(format!("the record of `{what}`: {e}")))
}

/// The store is copied into by somebody else, or not at all.
pub fn other_copy() -> StoreError {
    StoreError::Conflict("the store has the mark of another copy than this one, or of none".into())
}

/// What the caller of a write is told, from what became of all that was committed with it and from what it came to.
pub fn answer<T>(committed: &Result<()>, done: Option<Result<T>>) -> Result<T> {
    match (committed, done) {
        (Err(e), _) => Err(e.clone()),
        (Ok(()), Some(done)) => done,
        (Ok(()), None) => Err(StoreError::Unavailable("the write was not reached".into())),
    }
}

/// Whether another token stands in the way of a new one. The audit log names tokens, so a live name stands for one.
pub fn token_is_taken(other: &AdminToken, new: &AdminToken) -> bool {
    other.id == new.id || (other.name == new.name && other.revoked_at.is_none())
}

pub fn token_taken(new: &AdminToken) -> StoreError {
    StoreError::Conflict(format!("a token `{}` exists already; revoke it first", new.name))
}

/// The oldest of `held` audit lines is not to be kept. The newest always is: it says where the log goes on.
pub fn audit_is_over(held: u64, oldest: impl FnOnce() -> Result<AuditEntry>, keep: &Retention) -> Result<bool> {
    Ok(held > 1 && (held > keep.audit_entries || oldest()?.at < keep.audit_from))
}
