//! Versions of the routes: how they are numbered, and which are kept.

use crate::domain::Digest;
use crate::store::{NewRoutes, ROUTES_KEPT, Result, RoutesVersion, StoreError};

/// Adds a version to those that are kept, newest first; it, and the numbers of those that go.
pub fn push(kept: &mut Vec<RoutesVersion>, new: &NewRoutes, expect: u64) -> Result<(RoutesVersion, Vec<u64>)> {
    let newest = kept.first().map_or(0, |newest| newest.version);
    if newest != expect {
        return Err(conflict(newest, expect));
    }
    let version = RoutesVersion {
        version: newest.max(new.above) + 1,
        digest: Digest::of(new.text.as_bytes()),
        bytes: new.text.len() as u64,
        at: new.at,
        by: new.by.clone(),
        again: new.again,
    };
    kept.insert(0, version.clone());
    let over = kept.split_off(kept.len().min(ROUTES_KEPT));
    Ok((version, over.into_iter().map(|old| old.version).collect()))
}

pub fn conflict(newest: u64, expected: u64) -> StoreError {
    let number = |n: u64| if n == 0 { "none".to_owned() } else { format!("`{n}`") };
    let (newest, expected) = (number(newest), number(expected));
    StoreError::Conflict(format!(
        "the newest version of the routes is {newest}, not {expected}: look at what has changed, then push again"
    ))
}
