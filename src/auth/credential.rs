//! What a request presents: `X-Api-Key`, or `Authorization: Bearer` when it starts with our prefix.
//!
//! Invariant: what [`presented`] takes as ours, [`strip`] removes; the query string is never looked at.

use http::header::{AUTHORIZATION, Entry};
use http::{HeaderMap, HeaderName, HeaderValue};

use super::format::{KEY_PREFIX, TOKEN_PREFIX};
use crate::domain::Rejection;

pub const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// Stands for header text that no key can be; the authenticator refuses it by its format.
const UNREADABLE: &str = "";

/// `Ok(None)`: nothing of ours. Two different keys: [`Rejection::ConflictingCredentials`]. Header text that is not
/// visible ASCII counts as an invalid key, not as none.
pub fn presented(headers: &HeaderMap) -> Result<Option<&str>, Rejection> {
    let mut found: Option<&[u8]> = None;
    let keys = headers.get_all(X_API_KEY).iter().map(HeaderValue::as_bytes);
    let bearers = headers.get_all(AUTHORIZATION).iter().filter_map(our_bearer);
    for text in keys.chain(bearers) {
        match found {
            Some(first) if first != text => return Err(Rejection::ConflictingCredentials),
            _ => found = Some(text),
        }
    }
    let visible = |text: &&[u8]| text.iter().all(u8::is_ascii_graphic);
    Ok(found.map(|text| Some(text).filter(visible).and_then(|t| std::str::from_utf8(t).ok()).unwrap_or(UNREADABLE)))
}

/// Before a request goes to an upstream or a guest: removes `X-Api-Key`, and `Authorization` where it is ours.
pub fn strip(headers: &mut HeaderMap) {
    headers.remove(X_API_KEY);
    let values = headers.get_all(AUTHORIZATION);
    if !values.iter().any(|v| our_bearer(v).is_some()) {
        return;
    }
    let others: Vec<HeaderValue> = values.iter().filter(|v| our_bearer(v).is_none()).cloned().collect();
    if let Entry::Occupied(entry) = headers.entry(AUTHORIZATION) {
        entry.remove_entry_mult();
    }
    for value in others {
        headers.append(AUTHORIZATION, value);
    }
}

/// Whether a field holds a credential of ours, so that it may not go on.
pub fn is_ours(name: &HeaderName, value: &HeaderValue) -> bool {
    *name == X_API_KEY || *name == AUTHORIZATION && our_bearer(value).is_some()
}

/// The token, when the scheme is `Bearer` in any case (RFC 9110 section 11.1) and it begins as ours do. An admin token
/// here is ours too: it must not reach an upstream by mistake.
fn our_bearer(value: &HeaderValue) -> Option<&[u8]> {
    let (scheme, rest) = value.as_bytes().split_at_checked("bearer".len())?;
    let token = rest.trim_ascii();
    let ours = [KEY_PREFIX, TOKEN_PREFIX].iter().any(|p| token.starts_with(p.as_bytes()));
    (scheme.eq_ignore_ascii_case(b"bearer") && (rest.starts_with(b" ") || rest.starts_with(b"\t")) && ours)
        .then_some(token)
}
