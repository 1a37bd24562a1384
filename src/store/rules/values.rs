//! Rules of the values that guests keep: room of an owner, numbers, expected numbers.

use serde::{Deserialize, Serialize};

use crate::domain::OwnerId;
use crate::store::{MAX_KV_BYTES, MAX_KV_ENTRIES, Result, StoreError};

/// When a value without a time is over, in Unix milliseconds.
pub const NEVER: i64 = i64::MAX;

/// Of an owner: values, bytes of keys and values, and the number given last. Kept when all values are gone, so that no
/// number comes again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sums {
    pub entries: u64,
    pub bytes: u64,
    pub last: u64,
}

impl Sums {
    /// Whether a value of `size` has room, in the place of one that has `before`.
    pub fn fits(&self, before: Option<u64>, size: u64) -> bool {
        self.bytes.saturating_sub(before.unwrap_or(0)).saturating_add(size) <= MAX_KV_BYTES
            && self.entries + u64::from(before.is_none()) <= MAX_KV_ENTRIES
    }

    /// Counts a value; its number.
    pub fn add(&mut self, size: u64) -> u64 {
        self.entries += 1;
        self.bytes += size;
        self.last += 1;
        self.last
    }

    /// Counts a value that has its number already.
    pub fn take_up(&mut self, size: u64, number: u64) {
        self.entries += 1;
        self.bytes += size;
        self.last = self.last.max(number);
    }

    pub fn take(&mut self, size: u64) {
        self.entries = self.entries.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(size);
    }
}

pub fn no_room(owner: &OwnerId) -> StoreError {
    StoreError::Limit(format!("`{owner}` has no room for another value"))
}

/// `found` is the number of the value that is there.
pub fn check_expected(found: Option<u64>, expected: Option<u64>) -> Result<()> {
    match expected {
        Some(expected) if found.unwrap_or(0) != expected => Err(StoreError::Conflict("the value has changed".into())),
        _ => Ok(()),
    }
}

/// What a number is after `by` was added, from nothing where there is none.
pub fn add(found: Option<&[u8]>, by: i64) -> Result<i64> {
    let before = match found {
        Some(found) => std::str::from_utf8(found).ok().and_then(|text| text.parse::<i64>().ok()),
        None => Some(0),
    };
    let before = before.ok_or_else(|| StoreError::Conflict("the value is no number".into()))?;
    before.checked_add(by).ok_or_else(|| StoreError::Conflict("the number is too large".into()))
}
