//! The `RateLimit` fields (draft-ietf-httpapi-ratelimit-headers, structured fields of RFC 9651).
//!
//! Invariant: one item a policy, in the order given; both fields name the same policies.

use http::HeaderValue;
use smallvec::SmallVec;

use super::limiter::PolicyState;

/// Bytes of a field that need no allocation but the value's own; four policies as a rule.
const FIELD_BYTES: usize = 256;

type Text = SmallVec<[u8; FIELD_BYTES]>;

/// `RateLimit-Policy` and `RateLimit`. `burst` is a parameter of our own, there when fewer or more than the quota may
/// come at once. Written by hand, as every answer of a limited route pays for it.
pub fn headers(states: &[PolicyState]) -> Option<(HeaderValue, HeaderValue)> {
    if states.is_empty() {
        return None;
    }
    let (mut policy, mut limit) = (Text::new(), Text::new());
    for state in states {
        let PolicyState { name, quota, window_seconds, burst, remaining, reset } = state;
        item(&mut policy, name.as_str());
        parameter(&mut policy, b";q=", *quota);
        parameter(&mut policy, b";w=", *window_seconds);
        if let Some(burst) = burst {
            parameter(&mut policy, b";burst=", *burst);
        }
        item(&mut limit, name.as_str());
        parameter(&mut limit, b";r=", *remaining);
        parameter(&mut limit, b";t=", reset.as_secs() + u64::from(reset.subsec_nanos() > 0));
    }
    Some((HeaderValue::from_bytes(&policy).ok()?, HeaderValue::from_bytes(&limit).ok()?))
}

/// A name has no character that a structured-field string would escape.
fn item(out: &mut Text, name: &str) {
    if !out.is_empty() {
        out.extend_from_slice(b", ");
    }
    out.push(b'"');
    out.extend_from_slice(name.as_bytes());
    out.push(b'"');
}

fn parameter(out: &mut Text, key: &[u8], value: u64) {
    // Structured-field integers have at most 15 digits (RFC 9651 section 3.3.1).
    let mut rest = value.min(999_999_999_999_999);
    let mut digits = [0u8; 15];
    let mut first = digits.len();
    loop {
        first -= 1;
        digits[first] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    out.extend_from_slice(key);
    out.extend_from_slice(&digits[first..]);
}
