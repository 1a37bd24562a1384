//! Rules of API keys: caps of an owner, what an update may change, rotation.

use crate::domain::{ApiKey, Timestamp};
use crate::store::{Result, Rotation, StoreError};

/// Revoked and expired records kept of one owner; the oldest go first. The audit log keeps their story.
const MAX_DEAD: usize = 1_000;

/// Whether the owner of `owned` may have one more.
pub fn check_new(owned: &[ApiKey], key: &ApiKey, max_live: Option<u32>) -> Result<()> {
    let now = key.created_at;
    let Some(max) = max_live else { return Ok(()) };
    check_cap(owned.iter().filter(|k| k.is_live(now) && k.rotated_to.is_none()).count(), max, key)
}

pub fn taken(key: &ApiKey) -> StoreError {
    StoreError::Conflict(format!("`{}` exists already", key.id))
}

pub fn check_update(old: &ApiKey, key: &ApiKey) -> Result<()> {
    if old.owner != key.owner || old.pepper != key.pepper {
        return Err(StoreError::Conflict(format!("`{}` keeps its owner and its pepper", key.id)));
    }
    if old.revoked_at.is_some() && key.revoked_at.is_none() {
        return Err(StoreError::Conflict(format!("`{}` is revoked and stays so", key.id)));
    }
    Ok(())
}

/// The old key as it is after the rotation; `owned` is what its owner has.
pub fn rotate(owned: &[ApiKey], mut old: ApiKey, rotation: &Rotation) -> Result<ApiKey> {
    let Rotation { new, old_expires_at, max_live, .. } = rotation;
    let now = new.created_at;
    if old.owner != new.owner {
        return Err(StoreError::Conflict(format!("`{}` belongs to another owner", old.id)));
    }
    if !old.is_live(now) || old.rotated_to.is_some() {
        return Err(StoreError::Conflict(format!("`{}` is revoked, expired or already rotated", old.id)));
    }
    if let Some(max) = max_live {
        // Without this bound a chain of rotations would keep any number of keys alive through their grace periods.
        let graced = owned.iter().filter(|k| k.is_live(now) && k.rotated_to.is_some()).count();
        check_cap(graced, *max, new)?;
    }
    old.rotated_to = Some(new.id.clone());
    old.expires_at = Some(old.expires_at.map_or(*old_expires_at, |at| at.min(*old_expires_at)));
    Ok(old)
}

/// Which of an owner's keys are to be forgotten.
pub fn surplus(mut owned: Vec<ApiKey>, now: Timestamp) -> impl Iterator<Item = ApiKey> {
    owned.retain(|k| !k.is_live(now));
    let surplus = owned.len().saturating_sub(MAX_DEAD);
    owned.sort_by_key(|k| k.created_at);
    owned.into_iter().take(surplus)
}

pub fn sort(keys: &mut [ApiKey]) {
    keys.sort_by(|a, b| (a.created_at, &a.id).cmp(&(b.created_at, &b.id)));
}

fn check_cap(held: usize, max: u32, key: &ApiKey) -> Result<()> {
    if held >= max as usize {
        return Err(StoreError::Limit(format!(
            "`{}` has {held} live keys of the {max} that its tier allows (`keys`); revoke one first",
            key.owner
        )));
    }
    Ok(())
}
