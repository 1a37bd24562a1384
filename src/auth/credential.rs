//! What a request presents: `X-Api-Key`, or `Authorization: Bearer` when it starts with our prefix.

use http::HeaderMap;

use crate::domain::Rejection;

/// `Ok(None)`: nothing of ours. Two different keys: [`Rejection::ConflictingCredentials`]. Header text that is not
/// visible ASCII counts as an invalid key, not as none.
pub fn presented(_headers: &HeaderMap) -> Result<Option<&str>, Rejection> {
    unimplemented!()
}
