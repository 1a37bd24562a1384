//! The `cgi` ABI: a command whose environment holds CGI meta-variables and whose output is RFC 3875 section 6.
//!
//! Invariant: a reply made here holds nothing that could break or forge the framing of the answer.

use bytes::Bytes;
use http::{HeaderName, HeaderValue};

use crate::domain::{Abi, GuestFailure, ModuleShape, NotLoadable, Reply};

use super::{AbiHost, HostFn, command};

/// Of the header block.
const MAX_HEADER_BYTES: usize = 32 << 10;
const MAX_HEADERS: usize = 100;

pub struct Cgi;

impl AbiHost for Cgi {
    fn abi(&self) -> Abi {
        Abi::Cgi
    }

    /// A CGI guest looks like any command: it has to be declared.
    fn matches(&self, _shape: &ModuleShape) -> bool {
        false
    }

    fn check(&self, shape: &ModuleShape) -> Result<(), NotLoadable> {
        command::require_start(shape)
    }

    fn host_fn(&self, _module: &str, _name: &str) -> Option<&'static HostFn> {
        None
    }
}

fn bad<T>(why: impl Into<String>) -> Result<T, GuestFailure> {
    Err(GuestFailure::BadOutput(why.into()))
}

/// Headers that say how the answer is framed or what becomes of the connection: the gateway's own business. Dropped.
fn is_framing(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "connection"
            | "content-length"
            | "keep-alive"
            | "proxy-authenticate"
            | "proxy-connection"
            | "te"
            | "trailer"
            | "transfer-encoding"
            | "upgrade"
    )
}

/// RFC 3875 section 6: header fields, an empty line, the body. Lines end with LF or CR LF.
pub fn reply(stdout: Bytes) -> Result<Reply, GuestFailure> {
    let (head_len, body_at) = header_end(&stdout)?;
    let head = &stdout[..head_len];
    let mut reply = Reply { status: 200, headers: Vec::new(), body: Bytes::new() };
    let (mut status, mut located, mut typed) = (None, false, false);
    for (n, line) in head.split(|b| *b == b'\n').enumerate() {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() && n == 0 {
            break;
        }
        let Some(colon) = line.iter().position(|b| *b == b':') else {
            return bad("a header line has no colon");
        };
        let Ok(name) = HeaderName::from_bytes(&line[..colon]) else { return bad("a header's name is invalid") };
        // HeaderValue refuses CR, LF, NUL and other control characters.
        let Ok(value) = HeaderValue::from_bytes(line[colon + 1..].trim_ascii()) else {
            return bad(format!("the value of `{name}` is invalid"));
        };
        match name.as_str() {
            "status" if status.is_some() => return bad("there are two `Status` lines"),
            "status" => status = Some(status_code(value.as_bytes())?),
            _ if is_framing(&name) => {}
            _ if reply.headers.len() == MAX_HEADERS => {
                return bad(format!("there are more than {MAX_HEADERS} headers"));
            }
            _ => {
                located |= name == http::header::LOCATION;
                typed |= name == http::header::CONTENT_TYPE;
                reply.headers.push((name, value));
            }
        }
    }
    reply.body = stdout.slice(body_at..);
    // Section 6.2.3: a Location without a status is a redirect of the client.
    reply.status = status.unwrap_or(if located { 302 } else { 200 });
    if status.is_none() && !located && !typed {
        return bad("it has none of `Status`, `Location` and `Content-Type` (RFC 3875, section 6.3)");
    }
    Ok(reply)
}

/// Where the header block ends and where the body begins.
fn header_end(stdout: &[u8]) -> Result<(usize, usize), GuestFailure> {
    let window = &stdout[..stdout.len().min(MAX_HEADER_BYTES + 4)];
    let mut line_start = 0;
    for (at, _) in window.iter().enumerate().filter(|(_, b)| **b == b'\n') {
        let line = &window[line_start..at];
        if line.is_empty() || line == b"\r" {
            return Ok((line_start.saturating_sub(1), at + 1));
        }
        line_start = at + 1;
    }
    if stdout.len() > MAX_HEADER_BYTES {
        return bad(format!("its header block is longer than {MAX_HEADER_BYTES} bytes"));
    }
    bad("no empty line ends its header block")
}

/// `200 OK`: three digits and a reason that nobody reads.
fn status_code(value: &[u8]) -> Result<u16, GuestFailure> {
    let digits = value.split(|b| *b == b' ').next().unwrap_or_default();
    let code = std::str::from_utf8(digits).ok().filter(|s| s.len() == 3).and_then(|s| s.parse().ok());
    match code {
        Some(code @ 200..=599) => Ok(code),
        _ => bad("its `Status` is not 200 to 599"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Reply, GuestFailure> {
        reply(Bytes::copy_from_slice(text.as_bytes()))
    }

    fn pairs(reply: &Reply) -> Vec<(&str, &[u8])> {
        reply.headers.iter().map(|(n, v)| (n.as_str(), v.as_bytes())).collect()
    }

    #[test]
    fn a_document() {
        for text in ["Content-Type: text/plain\n\nhi\n", "Content-Type:text/plain\r\n\r\nhi\n"] {
            let reply = parse(text).unwrap();
            assert_eq!(reply.status, 200);
            assert_eq!(pairs(&reply), [("content-type", b"text/plain".as_slice())]);
            assert_eq!(&reply.body[..], b"hi\n");
        }
    }

    #[test]
    fn status_and_redirect() {
        assert_eq!(parse("Status: 404 Not Found\n\n").unwrap().status, 404);
        assert_eq!(parse("Location: https://example.org/\n\n").unwrap().status, 302);
        assert_eq!(parse("Status: 301\nLocation: /x\n\n").unwrap().status, 301);
    }

    #[test]
    fn framing_headers_are_dropped() {
        let text = "Content-Type: a/b\nContent-Length: 5\nTransfer-Encoding: chunked\nConnection: x-y\nX-Y: 1\n\n";
        assert_eq!(pairs(&parse(text).unwrap()), [("content-type", b"a/b".as_slice()), ("x-y", b"1".as_slice())]);
    }

    #[test]
    fn broken_output_is_refused() {
        for text in [
            "",
            "\n\nbody",
            "hello\n\n",
            "Content-Type: text/plain",
            "Content-Type: a\rb\n\n",
            "X: a\0b\nContent-Type: a/b\n\n",
            "Bad Name: x\nContent-Type: a/b\n\n",
            ": x\nContent-Type: a/b\n\n",
            "Status: 99\n\n",
            "Status: 100 Continue\n\n",
            "Status: 600\n\n",
            "Status: abc\n\n",
            "Status: 200\nStatus: 200\n\n",
            "X-Only: 1\n\n",
            " folded: x\nContent-Type: a/b\n\n",
        ] {
            assert!(matches!(parse(text), Err(GuestFailure::BadOutput(_))), "{text:?}");
        }
    }

    #[test]
    fn sizes_are_bounded() {
        let many: String = (0..101).map(|n| format!("x-{n}: 1\n")).collect();
        assert!(parse(&format!("{many}\n")).is_err());
        let long = format!("Content-Type: {}\n\n", "a".repeat(MAX_HEADER_BYTES));
        assert!(parse(&long).is_err());
        let body = format!("Content-Type: a/b\n\n{}", "x".repeat(1 << 20));
        assert_eq!(parse(&body).unwrap().body.len(), 1 << 20);
    }
}
