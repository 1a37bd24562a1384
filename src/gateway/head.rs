//! The guard before Pingora's HTTP/1 parser: reads a request head under a deadline and refuses what is malformed,
//! ambiguous or too large (RFC 9112 sections 2.2, 3.2, 5, 6; RFC 9110 section 8.6).
//!
//! Invariant: a head that passes has exactly one reading. Its framing is none, one decimal `Content-Length` or one
//! `Transfer-Encoding: chunked`, its lines end in CRLF, and it names at most one host.

use std::mem::MaybeUninit;
use std::time::{Duration, Instant};

use bytes::{Buf, BytesMut};
use pingora::prelude::timeout;
use tokio::io::AsyncReadExt;

use super::chunked::Chunked;
use super::gate::{Gate, Rest};
use super::shutdown::Drain;
use crate::domain::Rejection;
use crate::domain::path::normalize_host;

/// Pingora's parser knows 256 fields; a larger configured limit is cut to this.
const FIELDS: usize = 256;
const INITIAL_BUFFER: usize = 2048;
/// Empty lines a client may send before a request line (RFC 9112 section 2.2 asks to ignore at least one).
const LEADING_CRLF: usize = 4;

#[derive(Clone, Copy, Debug)]
pub struct HeadLimits {
    /// From the first byte of a head to its last.
    pub deadline: Duration,
    /// From the previous answer to the first byte; on a new connection the deadline counts.
    pub idle: Duration,
    pub bytes: usize,
    pub fields: usize,
}

pub enum Head {
    /// A head that passed, and what of its body came with it. The gate is shut behind the request.
    /// `bodyless`: nothing of the connection but the head belongs to it: no body, no upgrade. `last`: no request can
    /// follow.
    Request {
        buf: BytesMut,
        bodyless: bool,
        last: bool,
    },
    /// The client is gone or has been idle too long: nothing is owed.
    Closed,
    Refused(Rejection),
}

/// Reads one request head. `idle`: how long its first byte may take.
pub async fn read(gate: &mut Gate, limits: &HeadLimits, idle: Duration, drain: &mut Drain) -> Head {
    let mut buf = BytesMut::with_capacity(INITIAL_BUFFER);
    let first = timeout(idle, drain.or_closing(gate.read_buf(&mut buf))).await;
    if !matches!(first, Ok(Some(Ok(n))) if n > 0) {
        return Head::Closed;
    }
    let started = Instant::now();
    let mut searched = 0;
    loop {
        for _ in 0..LEADING_CRLF {
            if searched == 0 && buf.starts_with(b"\r\n") {
                buf.advance(2);
            }
        }
        match end_of_head(&buf, searched) {
            Some(end) if end > limits.bytes => return Head::Refused(Rejection::HeadersTooLarge),
            Some(end) => {
                return match check(&buf[..end], limits.fields) {
                    Ok(rest) => {
                        let bodyless = matches!(rest, Rest::Bytes(0));
                        let last = matches!(rest, Rest::Everything);
                        gate.shut_behind(&mut buf, end, rest);
                        Head::Request { buf, bodyless, last }
                    }
                    Err(rejection) => Head::Refused(rejection),
                };
            }
            None if buf.len() > limits.bytes => return Head::Refused(Rejection::HeadersTooLarge),
            None if searched == 0 && !may_become_request(&buf) => return Head::Refused(malformed("request line")),
            None => searched = buf.len(),
        }
        let left = limits.deadline.saturating_sub(started.elapsed());
        if left.is_zero() {
            return Head::Refused(Rejection::RequestTimeout);
        }
        if buf.capacity() - buf.len() < INITIAL_BUFFER / 4 {
            buf.reserve(INITIAL_BUFFER);
        }
        match timeout(left, gate.read_buf(&mut buf)).await {
            Err(_) => return Head::Refused(Rejection::RequestTimeout),
            Ok(Ok(0)) | Ok(Err(_)) => return Head::Closed,
            Ok(Ok(_)) => {}
        }
    }
}

/// Length of the head with its empty line. `searched` bytes are known to hold no end.
fn end_of_head(buf: &[u8], searched: usize) -> Option<usize> {
    let from = searched.saturating_sub(3);
    buf[from..].windows(4).position(|w| w == b"\r\n\r\n").map(|at| from + at + 4)
}

/// Tells a request from another protocol (a TLS hello, say) without waiting for an end that will not come.
fn may_become_request(buf: &[u8]) -> bool {
    buf.iter().take_while(|b| **b != b' ').all(|b| b.is_ascii_graphic())
}

fn malformed(what: &str) -> Rejection {
    Rejection::BadRequest(format!("the {what} is malformed"))
}

/// Checks a complete head, and says what follows it. Pure.
pub fn check(head: &[u8], max_fields: usize) -> Result<Rest, Rejection> {
    // A bare CR or LF ends a line for some parsers and not for others.
    if head.iter().enumerate().any(|(i, b)| *b == b'\n' && (i == 0 || head[i - 1] != b'\r')) {
        return Err(Rejection::BadRequest("lines of a request head end in CR LF".into()));
    }
    let mut fields = [const { MaybeUninit::uninit() }; FIELDS];
    let mut request = httparse::Request::new(&mut []);
    match request.parse_with_uninit_headers(head, &mut fields) {
        Ok(httparse::Status::Complete(_)) => {}
        Ok(httparse::Status::Partial) => return Err(malformed("request head")),
        Err(httparse::Error::TooManyHeaders) => return Err(Rejection::HeadersTooLarge),
        Err(httparse::Error::Version) => return Err(Rejection::BadRequest("use HTTP/1.1 or HTTP/2".into())),
        Err(httparse::Error::HeaderName | httparse::Error::HeaderValue | httparse::Error::NewLine) => {
            return Err(malformed("header section"));
        }
        Err(_) => return Err(malformed("request line")),
    }
    if request.headers.len() > max_fields {
        return Err(Rejection::HeadersTooLarge);
    }
    let (Some(method), Some(target), Some(version)) = (request.method, request.path, request.version) else {
        return Err(malformed("request line"));
    };
    let framing = Framing::of(request.headers)?;
    framing.check(version)?;
    if method == "CONNECT" {
        return Err(Rejection::MethodNotAllowed("another method: CONNECT is not served here"));
    }
    check_target(method, target, framing.host)?;
    Ok(if framing.upgrade {
        // After a 101 the connection is the other protocol's, and it is closed behind any other answer.
        Rest::Everything
    } else if framing.coding {
        Rest::Chunks(Chunked::default())
    } else {
        Rest::Bytes(framing.length.unwrap_or(0))
    })
}

#[derive(Default)]
struct Framing<'a> {
    host: Option<&'a [u8]>,
    length: Option<u64>,
    coding: bool,
    /// To a WebSocket, the one that can be granted; others are asked for in vain.
    upgrade: bool,
}

impl<'a> Framing<'a> {
    fn of(fields: &[httparse::Header<'a>]) -> Result<Self, Rejection> {
        let mut found = Self::default();
        for field in fields {
            let (name, value) = (field.name, field.value);
            if name.eq_ignore_ascii_case("host") {
                if found.host.replace(value).is_some() {
                    return Err(Rejection::BadRequest("send one `Host`".into()));
                }
                // Also refused by Pingora, but without a word.
                let text = std::str::from_utf8(value).unwrap_or_default();
                normalize_host(text)?;
            } else if name.eq_ignore_ascii_case("content-length") {
                // RFC 9110 section 8.6 lets a recipient refuse repeated equal values; so it does.
                let digits = Some(value).filter(|v| v.iter().all(u8::is_ascii_digit));
                let length = digits.and_then(|v| std::str::from_utf8(v).ok()?.parse().ok());
                let length = length.ok_or_else(|| Rejection::BadRequest("`Content-Length` is not a number".into()))?;
                if found.length.replace(length).is_some() {
                    return Err(Rejection::BadRequest("send one `Content-Length`".into()));
                }
            } else if name.eq_ignore_ascii_case("upgrade") {
                found.upgrade |= value.eq_ignore_ascii_case(b"websocket");
            } else if name.eq_ignore_ascii_case("transfer-encoding")
                && (std::mem::replace(&mut found.coding, true) || !value.eq_ignore_ascii_case(b"chunked"))
            {
                return Err(Rejection::BadRequest("`Transfer-Encoding` may only be `chunked`".into()));
            }
        }
        Ok(found)
    }

    fn check(&self, version: u8) -> Result<(), Rejection> {
        if self.coding && self.length.is_some() {
            return Err(Rejection::BadRequest("send `Content-Length` or `Transfer-Encoding`, not both".into()));
        }
        if self.coding && version == 0 {
            return Err(Rejection::BadRequest("HTTP/1.0 has no `Transfer-Encoding`".into()));
        }
        // RFC 6455 section 4.1. It would pass like the bytes of a WebSocket, which no limit on bodies is kept for.
        if self.upgrade && (self.coding || self.length.unwrap_or(0) > 0) {
            return Err(Rejection::BadRequest("a WebSocket handshake has no body".into()));
        }
        if self.host.is_none() && version == 1 {
            return Err(Rejection::BadRequest("send a `Host`".into()));
        }
        Ok(())
    }
}

/// RFC 9112 section 3.2: origin-form, absolute-form whose authority is the `Host`, or `OPTIONS *`.
fn check_target(method: &str, target: &str, host: Option<&[u8]>) -> Result<(), Rejection> {
    // Pingora's parser refuses more than httparse does, without an answer of ours.
    if !target.bytes().all(|b| b.is_ascii_graphic() && b != b'#') || target.parse::<http::Uri>().is_err() {
        return Err(malformed("request target"));
    }
    if target.starts_with('/') || (target == "*" && method == "OPTIONS") {
        return Ok(());
    }
    let rest = ["http://", "https://"]
        .iter()
        .find_map(|scheme| target.get(..scheme.len()).filter(|t| t.eq_ignore_ascii_case(scheme)))
        .map(|scheme| &target[scheme.len()..])
        .ok_or_else(|| malformed("request target"))?;
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    match host {
        Some(host) if !authority.is_empty() && host.eq_ignore_ascii_case(authority.as_bytes()) => Ok(()),
        _ => Err(Rejection::BadRequest("the request target's authority differs from `Host`".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn status(head: &str) -> u16 {
        check(head.as_bytes(), 100).map_or_else(|r| r.status(), |_| 200)
    }

    #[test]
    fn ordinary_heads_pass() {
        assert_eq!(status("GET / HTTP/1.1\r\nHost: a\r\n\r\n"), 200);
        assert_eq!(status("GET / HTTP/1.0\r\n\r\n"), 200);
        assert_eq!(status("POST /x?y=%20 HTTP/1.1\r\nHost: a:8080\r\nContent-Length: 12\r\n\r\n"), 200);
        assert_eq!(status("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n"), 200);
        assert_eq!(status("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n"), 200);
        assert_eq!(status("GET http://A/x HTTP/1.1\r\nHost: a\r\n\r\n"), 200);
    }

    #[test]
    fn ambiguous_framing_is_refused() {
        for fields in [
            "Content-Length: 3\r\nTransfer-Encoding: chunked",
            "Content-Length: 3\r\nContent-Length: 3",
            "Content-Length: 3\r\nContent-Length: 4",
            "Content-Length: 3, 3",
            "Content-Length: +3",
            "Content-Length: 0x3",
            "Content-Length:",
            "Content-Length: 9999999999999999999999",
            "Transfer-Encoding: gzip, chunked",
            "Transfer-Encoding: chunked, identity",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: xchunked",
            "Transfer-Encoding : chunked",
            "Upgrade: WebSocket\r\nTransfer-Encoding: chunked",
            "Upgrade: websocket\r\nContent-Length: 1",
            "X: 1\r\n folded",
            "X: a\rb",
            "Host: b",
            "Host: user@a",
            "Host: a b",
            "Host:",
        ] {
            assert_eq!(status(&format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n")), 400, "{fields}");
        }
        assert_eq!(status("POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"), 400);
    }

    #[test]
    fn hosts_and_targets_have_one_meaning() {
        assert_eq!(status("GET / HTTP/1.1\r\n\r\n"), 400);
        assert_eq!(status("GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n"), 400);
        assert_eq!(status("GET a/b HTTP/1.1\r\nHost: a\r\n\r\n"), 400);
        assert_eq!(status("GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n"), 400);
        assert_eq!(status("GET /\u{e9} HTTP/1.1\r\nHost: a\r\n\r\n"), 400);
        assert_eq!(status("CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n"), 405);
        assert_eq!(status("GET / HTTP/2.0\r\nHost: a\r\n\r\n"), 400);
        assert_eq!(status("GET / HTTP/1.1\nHost: a\n\r\n\r\n"), 400);
    }

    #[test]
    fn too_many_fields_are_431() {
        let many = |n: usize| "X: y\r\n".repeat(n);
        assert_eq!(status(&format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", many(99))), 200);
        assert_eq!(status(&format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", many(100))), 431);
        assert_eq!(status(&format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", many(1000))), 431);
    }

    #[test]
    fn the_end_is_found_across_reads() {
        let head = b"GET / HTTP/1.1\r\nHost: a\r\n\r\nrest";
        for split in 1..27 {
            let searched = if end_of_head(&head[..split], 0).is_none() { split } else { 0 };
            assert_eq!(end_of_head(head, searched), Some(27), "{split}");
        }
    }
}
