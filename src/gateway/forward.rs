//! The rules for heads that pass through: what is dropped, what the gateway sets, for requests and for answers.
//!
//! Invariant: hop-by-hop fields and those that `Connection` names end here (RFC 9110 section 7.6.1); what the gateway
//! itself says about a request can be neither forged nor stripped by a client.

use http::header::{AUTHORIZATION, CONNECTION, CONTENT_LENGTH, COOKIE, EXPECT, TE, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Version};
use pingora::Result;
use pingora::http::{RequestHeader, ResponseHeader};

use super::context::Context;
use super::identity::{FORWARDED_FOR, FORWARDED_HOST, FORWARDED_PROTO, Ids, REQUEST_ID, TRACEPARENT};
use crate::auth::credential;
use crate::config::HeaderEdits;

const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
/// Fields of the gateway's own; a client's are dropped.
const OWN_PREFIX: &str = "x-wasmgate-";
/// Options of `Connection` looked at.
const MAX_NOMINATED: usize = 64;

/// The part of Pingora's two header types that both have.
pub trait Fields {
    fn set(&mut self, name: &HeaderName, value: HeaderValue) -> Result<()>;
    fn add(&mut self, name: &HeaderName, value: HeaderValue) -> Result<()>;
    fn drop_all(&mut self, name: &HeaderName);
}

macro_rules! fields {
    ($ty:ty) => {
        impl Fields for $ty {
            fn set(&mut self, name: &HeaderName, value: HeaderValue) -> Result<()> {
                self.insert_header(name, value)
            }

            fn add(&mut self, name: &HeaderName, value: HeaderValue) -> Result<()> {
                self.append_header(name, value).map(drop)
            }

            fn drop_all(&mut self, name: &HeaderName) {
                self.remove_header(name);
            }
        }
    };
}

fields!(RequestHeader);
fields!(ResponseHeader);

/// RFC 9110 section 7.6.1, and what custom has added to it.
fn is_hop_by_hop(name: &str) -> bool {
    matches!(
        name,
        "connection"
            | "keep-alive"
            | "proxy-connection"
            | "proxy-authenticate"
            | "proxy-authorization"
            | "te"
            | "trailer"
            | "transfer-encoding"
            | "upgrade"
            | "http2-settings"
    )
}

/// Fields that `Connection` may name without effect: dropping them would change what the request means.
fn is_protected(name: &str) -> bool {
    matches!(name, "host" | "content-length" | "content-type" | "authorization" | "cookie" | "expect")
}

/// Whether the client asks for a WebSocket, the one upgrade that passes (RFC 6455 section 4.1).
pub fn is_websocket(head: &RequestHeader) -> bool {
    head.version == Version::HTTP_11
        && head.method == Method::GET
        && head.headers.get(UPGRADE).is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"websocket"))
        && connection_options(&head.headers).any(|o| o.eq_ignore_ascii_case(b"upgrade"))
}

fn connection_options(map: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    let options = map.get_all(CONNECTION).iter().flat_map(|v| v.as_bytes().split(|b| *b == b','));
    options.map(<[u8]>::trim_ascii).filter(|o| !o.is_empty()).take(MAX_NOMINATED)
}

/// More options of `Connection` than are looked at: what they name could not be dropped.
pub fn has_too_many_options(map: &HeaderMap) -> bool {
    let commas = |v: &HeaderValue| v.as_bytes().iter().filter(|b| **b == b',').count() + 1;
    map.get_all(CONNECTION).iter().map(commas).sum::<usize>() > MAX_NOMINATED
}

/// Fields that the gateway adds to a request.
const ADDED: usize = 8;

/// Takes the head out and leaves what a session itself asks of it in its place.
pub fn take(head: &mut RequestHeader) -> http::request::Parts {
    let (mut stand_in, ()) = http::Request::new(()).into_parts();
    (stand_in.method, stand_in.version) = (head.method.clone(), head.version);
    std::mem::replace(head, stand_in.into()).into()
}

/// Drops the record of how the client spelled each field's name, which Pingora keeps as a second map: every later edit
/// and copy costs half. Names are case-insensitive (RFC 9110 section 5.1).
pub fn forget_case(head: &mut RequestHeader) {
    let mut parts = take(head);
    parts.headers.reserve(ADDED);
    *head = parts.into();
}

/// Drops what does not go past this hop. Call when the body's framing is already known to the session, and after
/// authentication: this also takes our credentials out.
pub fn strip_request(head: &mut RequestHeader, upgrade: bool) -> Result<()> {
    let wants_trailers = head.version == Version::HTTP_2
        && head.headers.get(TE).is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"trailers"));
    let mut doomed: Vec<HeaderName> = Vec::new();
    let mut theirs: Vec<HeaderValue> = Vec::new();
    for (name, value) in &head.headers {
        let text = name.as_str();
        if is_hop_by_hop(text) || text.starts_with(OWN_PREFIX) || credential::is_ours(name, value) {
            doomed.push(name.clone());
        } else if *name == AUTHORIZATION {
            theirs.push(value.clone());
        }
    }
    nominated(&head.headers, &mut doomed);
    for name in &doomed {
        head.drop_all(name);
    }
    if !theirs.is_empty() && doomed.contains(&AUTHORIZATION) {
        // A key of ours and a token for the upstream came under the same name.
        for value in theirs {
            head.add(&AUTHORIZATION, value)?;
        }
    }
    if upgrade {
        head.set(&CONNECTION, HeaderValue::from_static("upgrade"))?;
        head.set(&UPGRADE, HeaderValue::from_static("websocket"))?;
    }
    if wants_trailers {
        // gRPC servers insist on it; RFC 9113 section 8.2.2 allows this one value.
        head.set(&TE, HeaderValue::from_static("trailers"))?;
    }
    Ok(())
}

fn nominated(map: &HeaderMap, doomed: &mut Vec<HeaderName>) {
    for option in connection_options(map) {
        let plain = option.eq_ignore_ascii_case(b"close") || option.eq_ignore_ascii_case(b"keep-alive");
        if plain {
            continue;
        }
        if let Ok(name) = HeaderName::from_bytes(option)
            && !is_protected(name.as_str())
        {
            doomed.push(name);
        }
    }
}

/// Joins what an HTTP/2 client may split (RFC 9113 section 8.2.3), so that guests and HTTP/1 upstreams see one `Cookie`,
/// the only one that they have to understand (RFC 6265 section 5.4).
pub fn join_cookies(head: &mut RequestHeader) -> Result<()> {
    let mut crumbs = head.headers.get_all(COOKIE).iter();
    if let (Some(first), Some(second)) = (crumbs.next(), crumbs.next()) {
        let mut joined = first.as_bytes().to_vec();
        for crumb in std::iter::once(second).chain(crumbs) {
            joined.extend_from_slice(b"; ");
            joined.extend_from_slice(crumb.as_bytes());
        }
        // Of valid values' bytes; it can't fail.
        if let Ok(joined) = HeaderValue::from_bytes(&joined) {
            head.set(&COOKIE, joined)?;
        }
    }
    Ok(())
}

/// What the gateway tells the upstream. Runs last, so that neither client nor handler can say otherwise.
pub fn compose_request(head: &mut RequestHeader, ctx: &Context, ids: &Ids) -> Result<()> {
    if let Ok(address) = HeaderValue::from_str(&ctx.peer.ip().to_canonical().to_string()) {
        match head.headers.get(FORWARDED_FOR) {
            Some(before) if ctx.peer_is_trusted => {
                let mut list = Vec::with_capacity(before.len() + 2 + address.len());
                for value in head.headers.get_all(FORWARDED_FOR) {
                    list.extend_from_slice(value.as_bytes());
                    list.extend_from_slice(b", ");
                }
                list.extend_from_slice(address.as_bytes());
                if let Ok(list) = HeaderValue::from_bytes(&list) {
                    head.set(&FORWARDED_FOR, list)?;
                }
            }
            _ => head.set(&FORWARDED_FOR, address)?,
        }
    }
    if !ctx.peer_is_trusted {
        // RFC 7239 says the same as the fields above; nobody vouches for a client's.
        head.drop_all(&http::header::FORWARDED);
    }
    if !(ctx.peer_is_trusted && head.headers.contains_key(FORWARDED_PROTO)) {
        head.set(&FORWARDED_PROTO, HeaderValue::from_static(if ctx.tls { "https" } else { "http" }))?;
    }
    if !(ctx.peer_is_trusted && head.headers.contains_key(FORWARDED_HOST)) {
        match &ctx.host {
            Some(host) => head.set(&FORWARDED_HOST, host.clone())?,
            None => head.drop_all(&FORWARDED_HOST),
        }
    }
    head.set(&REQUEST_ID, ctx.request_id.clone())?;
    head.set(&TRACEPARENT, ctx.trace.header(ids))
}

/// The framing of a request whose body the gateway holds (or that has none).
pub fn frame_request(head: &mut RequestHeader, body: Option<usize>) -> Result<()> {
    head.drop_all(&TRANSFER_ENCODING);
    // The client was told to go on, or has nothing to send.
    head.drop_all(&EXPECT);
    let expects_body = matches!(head.method, Method::POST | Method::PUT | Method::PATCH);
    match body {
        Some(n) if n > 0 || expects_body => head.set(&CONTENT_LENGTH, HeaderValue::from(n)),
        // RFC 9110 section 8.6: such methods say that they have no body.
        None if expects_body => head.set(&CONTENT_LENGTH, HeaderValue::from(0)),
        _ => {
            head.drop_all(&CONTENT_LENGTH);
            Ok(())
        }
    }
}

/// Drops what does not go past this hop, before handlers and edits see the answer.
pub fn strip_response(head: &mut ResponseHeader) {
    settle_length(head);
    let mut doomed: Vec<HeaderName> = Vec::new();
    for name in head.headers.keys() {
        let text = name.as_str();
        if is_hop_by_hop(text) {
            doomed.push(name.clone());
        }
    }
    nominated(&head.headers, &mut doomed);
    for name in &doomed {
        head.drop_all(name);
    }
}

/// One length instead of the same one several times, in lines or in a list (RFC 9110 section 8.6). Pingora has refused
/// lengths that differ, and dropped the length of a chunked answer.
fn settle_length(head: &mut ResponseHeader) {
    let Some(value) = head.headers.get(CONTENT_LENGTH) else { return };
    let first = value.as_bytes().split(|b| *b == b',').next().unwrap_or_default().trim_ascii();
    if first.len() != value.len() || head.headers.get_all(CONTENT_LENGTH).iter().nth(1).is_some() {
        let one = HeaderValue::from_bytes(first);
        head.drop_all(&CONTENT_LENGTH);
        if let Ok(one) = one {
            // The map has room for what was just taken out.
            let _ = head.set(&CONTENT_LENGTH, one);
        }
    }
}

/// The last step of every answer's head, whoever made it.
pub fn finish_response(head: &mut ResponseHeader, ctx: &mut Context) -> Result<()> {
    if let Some(route) = ctx.route() {
        apply(head, &route.response_headers)?;
    }
    if let Some((policy, state)) = ctx.rate.take() {
        head.set(&RATE_LIMIT_POLICY, policy)?;
        head.set(&RATE_LIMIT, state)?;
    }
    head.set(&REQUEST_ID, ctx.request_id.clone())
}

/// Remove, then set, then add.
pub fn apply(head: &mut impl Fields, edits: &HeaderEdits) -> Result<()> {
    for name in &edits.remove {
        head.drop_all(name);
    }
    for (name, value) in &edits.set {
        head.set(name, value.clone())?;
    }
    for (name, value) in &edits.add {
        head.add(name, value.clone())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(fields: &[(&'static str, &'static str)]) -> RequestHeader {
        let mut head = RequestHeader::build("GET", b"/", None).unwrap();
        for (name, value) in fields {
            head.append_header(*name, *value).unwrap();
        }
        head
    }

    fn names(head: &RequestHeader) -> Vec<&str> {
        let mut names: Vec<_> = head.headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn hop_by_hop_nominated_and_own_fields_are_dropped() {
        let mut head = request(&[
            ("Host", "a"),
            ("Connection", "close, X-Secret, host"),
            ("X-Secret", "1"),
            ("Keep-Alive", "timeout=5"),
            ("TE", "trailers"),
            ("Upgrade", "h2c"),
            ("Proxy-Authorization", "x"),
            ("X-Wasmgate-Owner", "root"),
            ("Accept", "*/*"),
        ]);
        strip_request(&mut head, false).unwrap();
        assert_eq!(names(&head), ["accept", "host"]);
    }

    #[test]
    fn our_credentials_are_taken_out_and_others_stay() {
        let mut head = request(&[("X-Api-Key", "wg_live_abc"), ("Authorization", "Bearer eyJ.x.y")]);
        strip_request(&mut head, false).unwrap();
        assert_eq!(names(&head), ["authorization"]);
        let mut head = request(&[("Authorization", "bearer  wg_live_abc"), ("Authorization", "Basic eDp5")]);
        strip_request(&mut head, false).unwrap();
        let left: Vec<_> = head.headers.get_all(AUTHORIZATION).iter().collect();
        assert_eq!(left, ["Basic eDp5"]);
    }

    #[test]
    fn framing_follows_the_body_held() {
        let framed = |method: &str, body| {
            let mut head = request(&[("Content-Length", "77"), ("Expect", "100-continue")]);
            head.set_method(method.parse().unwrap());
            frame_request(&mut head, body).unwrap();
            assert!(!head.headers.contains_key(EXPECT));
            head.headers.get(CONTENT_LENGTH).map(|v| v.to_str().unwrap().to_owned())
        };
        assert_eq!(framed("GET", None), None);
        assert_eq!(framed("GET", Some(0)), None);
        assert_eq!(framed("GET", Some(3)).as_deref(), Some("3"));
        assert_eq!(framed("POST", None).as_deref(), Some("0"));
        assert_eq!(framed("POST", Some(5)).as_deref(), Some("5"));
    }
}
