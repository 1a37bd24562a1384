//! The `RateLimit` fields (draft-ietf-httpapi-ratelimit-headers, structured fields of RFC 9651).
//!
//! Invariant: one item a policy, in the order given; both fields name the same policies.

use http::HeaderValue;
use itoa::Buffer as Digits;
use smallvec::SmallVec;

use super::limiter::PolicyState;
use crate::domain::Name;

/// Bytes of a field that need no allocation but the value's own; four policies as a rule.
const FIELD_BYTES: usize = 256;

type Text = SmallVec<[u8; FIELD_BYTES]>;

/// One policy as `RateLimit-Policy` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    pub name: Name,
    pub quota: u64,
    pub window_seconds: u64,
    /// Its item in the field; every answer of a limited route has it.
    item: String,
}

impl Policy {
    /// `burst`, how many may come at once where that is not the quota, is a parameter of our own.
    pub fn new(name: Name, quota: u64, window_seconds: u64, burst: Option<u64>) -> Self {
        let mut item = format!("\"{name}\";q={};w={}", integer(quota), integer(window_seconds));
        if let Some(burst) = burst {
            item.push_str(&format!(";burst={}", integer(burst)));
        }
        Self { name, quota, window_seconds, item }
    }
}

/// `RateLimit-Policy` and `RateLimit`. Written by hand, as every answer of a limited route pays for it.
pub fn headers(states: &[PolicyState]) -> Option<(HeaderValue, HeaderValue)> {
    if states.is_empty() {
        return None;
    }
    let (mut policies, mut limit) = (Text::new(), Text::new());
    for PolicyState { policy, remaining, reset } in states {
        separate(&mut policies);
        policies.extend_from_slice(policy.item.as_bytes());
        separate(&mut limit);
        // A name has no character that a structured-field string would escape.
        limit.push(b'"');
        limit.extend_from_slice(policy.name.as_str().as_bytes());
        limit.extend_from_slice(b"\";r=");
        limit.extend_from_slice(Digits::new().format(integer(*remaining)).as_bytes());
        limit.extend_from_slice(b";t=");
        let seconds = reset.as_secs() + u64::from(reset.subsec_nanos() > 0);
        limit.extend_from_slice(Digits::new().format(integer(seconds)).as_bytes());
    }
    Some((HeaderValue::from_bytes(&policies).ok()?, HeaderValue::from_bytes(&limit).ok()?))
}

fn separate(field: &mut Text) {
    if !field.is_empty() {
        field.extend_from_slice(b", ");
    }
}

/// Structured-field integers have at most 15 digits (RFC 9651 section 3.3.1).
fn integer(n: u64) -> u64 {
    n.min(999_999_999_999_999)
}
