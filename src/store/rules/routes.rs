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

/// The oldest version that is newer than the one in `after`, and where to go on behind it.
pub fn after<'a>(
    versions: &'a [RoutesVersion],
    after: Option<&[u8]>,
) -> Option<(Option<&'a RoutesVersion>, Option<Vec<u8>>)> {
    let after = after.map_or(Some(0), |after| after.try_into().ok().map(u64::from_be_bytes))?;
    let mut newer = versions.iter().rev().filter(|version| version.version > after);
    let found = newer.next();
    let next = newer.next().and(found).map(|found| found.version.to_be_bytes().to_vec());
    Some((found, next))
}

pub fn no_text(version: u64) -> StoreError {
    StoreError::Corrupt(format!("the text of version {version} of the routes is missing"))
}

pub fn conflict(newest: u64, expected: u64) -> StoreError {
    let number = |n: u64| if n == 0 { "none".to_owned() } else { format!("`{n}`") };
    let (newest, expected) = (number(newest), number(expected));
    StoreError::Conflict(format!(
        "the newest version of the routes is {newest}, not {expected}: look at what has changed, then push again"
    ))
}
