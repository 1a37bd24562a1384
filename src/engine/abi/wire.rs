//! What guests may put on the wire, whatever their ABI.

use bytes::Bytes;
use http::header::{self, HOST, HeaderName, HeaderValue};
use http::uri::{Authority, PathAndQuery};
use http::{Method, Request, StatusCode};

/// Fields of one message after a guest's writes.
pub const FIELDS: usize = 256;
/// Of names and values that a guest may write into one message.
pub const HEADER_BYTES: usize = 256 << 10;
/// Of a name, a key, a path or a head that a guest hands over. Nothing longer is looked at or kept.
pub const TEXT_BYTES: usize = 64 << 10;
/// Longer ones are no methods of anything.
const METHOD_BYTES: usize = 64;
/// Longer ones are refused by most origins.
const TARGET_BYTES: usize = 16 << 10;
/// A name of DNS has 255 at most.
const HOST_BYTES: usize = 1 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    Request,
    Response,
}

/// Fields of connection and framing (RFC 9110 section 7.6.1): the gateway writes them itself. A guest's writes of them
/// are without effect, since guests written for other hosts set a correct `content-length`.
pub fn is_gateways(name: &HeaderName, message: Message) -> bool {
    match *name {
        header::CONNECTION
        | header::CONTENT_LENGTH
        | header::TRANSFER_ENCODING
        | header::TE
        | header::TRAILER
        | header::UPGRADE => true,
        header::EXPECT => message == Message::Request,
        _ => matches!(name.as_str(), "keep-alive" | "proxy-connection" | "http2-settings"),
    }
}

pub fn is_host(text: &[u8]) -> bool {
    text.len() <= HOST_BYTES && Authority::try_from(text).is_ok()
}

/// A method to forward.
pub fn method(text: &[u8]) -> Option<Method> {
    Method::from_bytes(text).ok().filter(|m| *m != Method::CONNECT && text.len() <= METHOD_BYTES)
}

/// A path with a query. `PathAndQuery` drops a fragment without a word, and takes what is no path.
pub fn target(text: &[u8]) -> Option<PathAndQuery> {
    let is_path = matches!(text, [b'/', ..]) && text.len() <= TARGET_BYTES && !text.contains(&b'#');
    if is_path { PathAndQuery::try_from(text).ok() } else { None }
}

/// A status that ends a request.
pub fn status(code: u16) -> Option<StatusCode> {
    StatusCode::from_u16(code).ok().filter(|code| (200..600).contains(&code.as_u16()))
}

/// A field's value, without the whitespace around it that is no part of it (RFC 9110 section 5.5).
pub fn value(text: &[u8]) -> Option<HeaderValue> {
    HeaderValue::from_bytes(text.trim_ascii()).ok()
}

/// Fields of a guest's for a message, but pseudo headers and those that are the gateway's to write.
pub fn fields(given: &[(&[u8], &[u8])], message: Message) -> Option<Vec<(HeaderName, HeaderValue)>> {
    let bytes: usize = given.iter().map(|(name, value)| name.len() + value.len()).sum();
    if given.len() > FIELDS || bytes > HEADER_BYTES {
        return None;
    }
    let mut fields = Vec::with_capacity(given.len());
    for (name, value) in given.iter().filter(|(name, _)| !name.starts_with(b":")) {
        let name = HeaderName::from_bytes(name).ok()?;
        let value = self::value(value)?;
        if !is_gateways(&name, message) {
            fields.push((name, value));
        }
    }
    Some(fields)
}

/// A guest's request to an upstream: fields with `:method`, `:path` and `:authority` among them, which it needs.
pub fn request(given: &[(&[u8], &[u8])], body: Bytes) -> Option<Request<Bytes>> {
    let (mut to, mut path, mut host) = (None, None, None);
    for (name, value) in given {
        match *name {
            b":method" => to = Some(method(value)?),
            b":path" => path = Some(target(value)?),
            b":authority" if is_host(value) => host = Some(HeaderValue::from_bytes(value).ok()?),
            b":authority" => return None,
            _ => {}
        }
    }
    let mut request = Request::new(body);
    for (name, value) in fields(given, Message::Request)? {
        request.headers_mut().try_append(name, value).ok()?;
    }
    // Not one of the guest's fields.
    request.headers_mut().insert(HOST, host?);
    *request.method_mut() = to?;
    *request.uri_mut() = path?.into();
    Some(request)
}
