//! Writes that are done and that too few replicas have.
//!
//! Invariant: such a write is an error, unless whoever began it asked to be told of it beside what the write came to.

use std::cell::Cell;
use std::future::Future;

use super::{Result, StoreError};

/// Of `of` replicas that were to have a write, `have` have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("redis: written, but only {have} of {of} replicas have it: a failover may lose it")]
pub struct Unreplicated {
    pub have: u32,
    pub of: u32,
}

tokio::task_local! {
    static FOUND: Cell<Option<Unreplicated>>;
}

/// Has writes of this task that too few replicas have count as done, and tells of the last one: what belongs to a change is then
/// done as a whole, and whoever asked for it is told what it is worth. Tasks that the work spawns get the error.
pub async fn told_apart<T>(work: impl Future<Output = T>) -> (T, Option<Unreplicated>) {
    let work = async {
        let done = work.await;
        (done, FOUND.with(Cell::get))
    };
    FOUND.scope(Cell::new(None), work).await
}

/// Of a write that was done.
pub(super) fn found(few: Option<Unreplicated>) -> Result<()> {
    let Some(few) = few else { return Ok(()) };
    FOUND.try_with(|found| found.set(Some(few))).map_err(|_| StoreError::Unreplicated(few))
}
