//! The rules for heads that pass through: what is dropped, what the gateway sets, for requests and for answers.
//!
//! Invariant: hop-by-hop fields and those that `Connection` names end here (RFC 9110 section 7.6.1); what the gateway
//! itself says about a request can be neither forged nor stripped by a client.

use http::header::{CONNECTION, CONTENT_LENGTH, COOKIE, EXPECT, TE, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Version};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::{Error, ErrorType, Result};

use super::context::Context;
use super::identity::{FORWARDED_FOR, FORWARDED_HOST, FORWARDED_PROTO, Ids, REQUEST_ID, TRACEPARENT, address_text};
use crate::auth::credential;
use crate::config::HeaderEdits;

const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
/// Fields of the gateway's own; a client's are dropped.
const OWN_PREFIX: &str = "x-wasmgate-";
/// Options of `Connection` looked at.
const MAX_NOMINATED: usize = 64;

/// Edits of a head. Pingora's header types copy a field's name and parse it again at every edit, so what most requests
/// need is done on the bare map: [`take`] and [`with_fields`].
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

impl Fields for HeaderMap {
    fn set(&mut self, name: &HeaderName, value: HeaderValue) -> Result<()> {
        self.try_insert(name.clone(), value).map(drop).map_err(|_| too_many())
    }

    fn add(&mut self, name: &HeaderName, value: HeaderValue) -> Result<()> {
        self.try_append(name.clone(), value).map(drop).map_err(|_| too_many())
    }

    fn drop_all(&mut self, name: &HeaderName) {
        self.remove(name);
    }
}

fn too_many() -> Box<Error> {
    Error::explain(ErrorType::InvalidHTTPHeader, "more fields than a head can have")
}

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

/// Fields that the gateway adds to a request or an answer, so that a map grows once.
const ADDED: usize = 8;

/// Takes the head out and leaves what a session itself asks of it in its place. The record of how the client spelled
/// each name, which Pingora keeps as a second map, is lost: names are case-insensitive (RFC 9110 section 5.1).
pub fn take(head: &mut RequestHeader) -> http::request::Parts {
    let (mut stand_in, ()) = http::Request::new(()).into_parts();
    (stand_in.method, stand_in.version) = (head.method.clone(), head.version);
    std::mem::replace(head, stand_in.into()).into()
}

/// Edits an answer's fields as a bare map; the reason phrase and the spelling of names are lost.
pub fn with_fields<R>(head: &mut ResponseHeader, edit: impl FnOnce(&mut HeaderMap) -> R) -> R {
    let (stand_in, ()) = http::Response::new(()).into_parts();
    let mut parts: http::response::Parts = std::mem::replace(head, stand_in.into()).into();
    let result = edit(&mut parts.headers);
    *head = parts.into();
    result
}

/// Drops what does not go past this hop. Call when the body's framing is already known to the session, and after
/// authentication: this also takes our credentials out.
pub fn strip_request(head: &mut http::request::Parts, upgrade: bool) -> Result<()> {
    let wants_trailers = head.version == Version::HTTP_2
        && head.headers.get(TE).is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"trailers"));
    let doomed = nominated(&head.headers);
    let mut kept = HeaderMap::with_capacity(head.headers.len() + ADDED);
    let mut name = None;
    for (next, value) in std::mem::take(&mut head.headers) {
        // A further value of the same field comes without its name.
        name = next.or(name);
        let Some(name) = &name else { continue };
        let text = name.as_str();
        let stays = !is_hop_by_hop(text) && !text.starts_with(OWN_PREFIX) && !credential::is_ours(name, &value);
        if stays && !doomed.contains(name) {
            kept.add(name, value)?;
        }
    }
    head.headers = kept;
    if upgrade {
        head.headers.set(&CONNECTION, HeaderValue::from_static("upgrade"))?;
        head.headers.set(&UPGRADE, HeaderValue::from_static("websocket"))?;
    }
    if wants_trailers {
        // gRPC servers insist on it; RFC 9113 section 8.2.2 allows this one value.
        head.headers.set(&TE, HeaderValue::from_static("trailers"))?;
    }
    Ok(())
}

/// What `Connection` names beside its own options.
fn nominated(map: &HeaderMap) -> Vec<HeaderName> {
    let mut doomed = Vec::new();
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
    doomed
}

/// All values of a field, one behind the other.
fn joined(fields: &HeaderMap, name: &HeaderName, separator: &[u8]) -> Vec<u8> {
    fields.get_all(name).iter().map(HeaderValue::as_bytes).collect::<Vec<_>>().join(separator)
}

/// Joins what an HTTP/2 client may split (RFC 9113 section 8.2.3), so that guests and HTTP/1 upstreams see one `Cookie`,
/// the only one that they have to understand (RFC 6265 section 5.4).
pub fn join_cookies(fields: &mut HeaderMap) -> Result<()> {
    if fields.get_all(COOKIE).iter().nth(1).is_some()
        // Of valid values' bytes; it can't fail.
        && let Ok(one) = HeaderValue::from_bytes(&joined(fields, &COOKIE, b"; "))
    {
        fields.set(&COOKIE, one)?;
    }
    Ok(())
}

/// What the gateway tells the upstream. Runs last, so that neither client nor handler can say otherwise.
pub fn compose_request(fields: &mut HeaderMap, ctx: &Context, ids: &Ids) -> Result<()> {
    if let Ok(address) = HeaderValue::from_bytes(&address_text(ctx.peer.ip())) {
        if ctx.peer_is_trusted && fields.contains_key(FORWARDED_FOR) {
            fields.add(&FORWARDED_FOR, address)?;
            if let Ok(list) = HeaderValue::from_bytes(&joined(fields, &FORWARDED_FOR, b", ")) {
                fields.set(&FORWARDED_FOR, list)?;
            }
        } else {
            fields.set(&FORWARDED_FOR, address)?;
        }
    }
    if !ctx.peer_is_trusted {
        // RFC 7239 says the same as the fields above; nobody vouches for a client's.
        fields.drop_all(&http::header::FORWARDED);
    }
    if !(ctx.peer_is_trusted && fields.contains_key(FORWARDED_PROTO)) {
        fields.set(&FORWARDED_PROTO, HeaderValue::from_static(if ctx.tls { "https" } else { "http" }))?;
    }
    if !(ctx.peer_is_trusted && fields.contains_key(FORWARDED_HOST)) {
        match &ctx.host {
            Some(host) => fields.set(&FORWARDED_HOST, host.clone())?,
            None => fields.drop_all(&FORWARDED_HOST),
        }
    }
    fields.set(&REQUEST_ID, ctx.request_id.clone())?;
    fields.set(&TRACEPARENT, ctx.trace.header(ids))
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

/// The framing of a request whose body streams through, which a handler may have written over.
pub fn restore_framing(head: &mut RequestHeader, length: Option<u64>) -> Result<()> {
    head.drop_all(&TRANSFER_ENCODING);
    match length {
        Some(n) => head.set(&CONTENT_LENGTH, HeaderValue::from(n)),
        None => {
            head.drop_all(&CONTENT_LENGTH);
            Ok(())
        }
    }
}

/// The answer's head without what does not go past this hop, before handlers and edits see it.
pub fn strip_response(head: &ResponseHeader) -> Result<ResponseHeader> {
    let doomed = nominated(&head.headers);
    let (mut kept, ()) = http::Response::new(()).into_parts();
    (kept.status, kept.version) = (head.status, head.version);
    kept.headers = HeaderMap::with_capacity(head.headers.len() + ADDED);
    for (name, value) in &head.headers {
        // RFC 9110 section 8.6: an interim answer has no length.
        let framing = head.status.is_informational() && *name == CONTENT_LENGTH;
        if framing || is_hop_by_hop(name.as_str()) || doomed.contains(name) {
            continue;
        }
        if *name != CONTENT_LENGTH {
            kept.headers.add(name, value.clone())?;
        } else if !kept.headers.contains_key(CONTENT_LENGTH) {
            kept.headers.set(name, one_length(value))?;
        }
    }
    Ok(kept.into())
}

/// One length instead of the same one several times in a list (RFC 9110 section 8.6). Pingora has refused lengths that
/// differ, and dropped the length of a chunked answer.
fn one_length(value: &HeaderValue) -> HeaderValue {
    let first = value.as_bytes().split(|b| *b == b',').next().unwrap_or_default().trim_ascii();
    let shorter = if first.len() < value.len() { HeaderValue::from_bytes(first).ok() } else { None };
    shorter.unwrap_or_else(|| value.clone())
}

/// The last step of every answer's head, whoever made it.
pub fn finish_response(head: &mut ResponseHeader, ctx: &mut Context) -> Result<()> {
    with_fields(head, |fields| {
        if let Some(route) = ctx.route() {
            apply(fields, &route.response_headers)?;
        }
        if let Some((policy, state)) = ctx.rate.take() {
            fields.set(&RATE_LIMIT_POLICY, policy)?;
            fields.set(&RATE_LIMIT, state)?;
        }
        fields.set(&REQUEST_ID, ctx.request_id.clone())
    })
}

/// Remove, then set, then add.
pub fn apply(fields: &mut HeaderMap, edits: &HeaderEdits) -> Result<()> {
    for name in &edits.remove {
        fields.drop_all(name);
    }
    for (name, value) in &edits.set {
        fields.set(name, value.clone())?;
    }
    for (name, value) in &edits.add {
        fields.add(name, value.clone())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(fields: &[(&'static str, &'static str)]) -> http::request::Parts {
        let (mut head, ()) = http::Request::new(()).into_parts();
        for (name, value) in fields {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            head.headers.append(name, HeaderValue::from_static(value));
        }
        head
    }

    fn names(head: &http::request::Parts) -> Vec<&str> {
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
        let left: Vec<_> = head.headers.get_all(http::header::AUTHORIZATION).iter().collect();
        assert_eq!(left, ["Basic eDp5"]);
    }

    #[test]
    fn framing_follows_the_body_held() {
        let framed = |method: &str, body| {
            let mut head = RequestHeader::from(request(&[("Content-Length", "77"), ("Expect", "100-continue")]));
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
