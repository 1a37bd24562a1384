//! The one canonical form of a request's path and host.
//!
//! Invariant: routing, authorisation and the upstream see the same path, and two spellings that RFC 3986 calls
//! equivalent become one. A path on which origins disagree is refused, never repaired.

use std::borrow::Cow;

use super::Rejection;

/// RFC 3986 section 2.3.
const fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// What may stand in a path as it is: unreserved, sub-delims, `:`, `@` (`pchar`, RFC 3986 section 3.3) and `/`.
const fn is_plain(byte: u8) -> bool {
    let sub_delim = matches!(byte, b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b';' | b'=');
    is_unreserved(byte) || sub_delim || matches!(byte, b':' | b'@' | b'/')
}

/// What the bytes since the last (plain or encoded) slash amount to.
#[derive(Clone, Copy, PartialEq)]
enum Piece {
    Empty,
    Dot,
    DotDot,
    Name,
}

impl Piece {
    fn is_dots(self) -> bool {
        matches!(self, Piece::Dot | Piece::DotDot)
    }
}

/// The path in its canonical form, borrowed when it has it already.
///
/// Encoded unreserved characters are decoded (RFC 3986 section 6.2.2.2), hex digits of the other triplets become upper
/// case (6.2.2.1), and bytes that no URI may hold are encoded, as browsers do. Reserved characters stay as they were
/// sent: `%26` is not `&`, and `%2F` does not separate segments.
///
/// [`Rejection::AmbiguousPath`]: dot segments, also encoded, with parameters (`..;x`) or behind an encoded slash; empty
/// segments, but a trailing slash is fine; backslashes; control characters and spaces; invalid triplets.
pub fn normalize_path(raw: &str) -> Result<Cow<'_, str>, Rejection> {
    let bytes = raw.as_bytes();
    if bytes.first() != Some(&b'/') {
        return Err(Rejection::BadRequest("the path must begin with `/`".into()));
    }
    if is_evidently_canonical(bytes) { Ok(Cow::Borrowed(raw)) } else { canonicalize(raw) }
}

/// Nothing encoded, nothing to encode, no segment that begins like one of those refused. This is nearly every path, and
/// several times cheaper than [`canonicalize`], which decides about the rest and would say the same.
fn is_evidently_canonical(bytes: &[u8]) -> bool {
    const PLAIN: [bool; 256] = {
        let mut plain = [false; 256];
        let mut byte = 0;
        while byte < 256 {
            plain[byte] = is_plain(byte as u8);
            byte += 1;
        }
        plain
    };
    let mut after_slash = false;
    for byte in bytes {
        if !PLAIN[usize::from(*byte)] || (after_slash && matches!(byte, b'/' | b'.' | b';')) {
            return false;
        }
        after_slash = *byte == b'/';
    }
    true
}

fn canonicalize(raw: &str) -> Result<Cow<'_, str>, Rejection> {
    let bytes = raw.as_bytes();
    // Allocated when the first byte differs; holds the canonical form of `bytes[..at]`.
    let mut out: Option<String> = None;
    let mut piece = Piece::Empty;
    let mut at = 1;
    while at < bytes.len() {
        let (byte, width) = match bytes[at] {
            b'%' => (decode_triplet(&bytes[at..]).ok_or(Rejection::AmbiguousPath)?, 3),
            plain => (plain, 1),
        };
        if byte == b'\\' || byte.is_ascii_control() || (byte == b' ' && width == 1) {
            return Err(Rejection::AmbiguousPath);
        }
        let stays_encoded = if width == 3 { !is_unreserved(byte) } else { !is_plain(byte) };
        piece = match byte {
            b'/' if piece.is_dots() || (width == 1 && piece == Piece::Empty) => return Err(Rejection::AmbiguousPath),
            b'/' => Piece::Empty,
            // Some origins drop `;...` before they look for dot and empty segments.
            b';' if piece != Piece::Name => return Err(Rejection::AmbiguousPath),
            b'.' if piece == Piece::Empty => Piece::Dot,
            b'.' if piece == Piece::Dot => Piece::DotDot,
            _ => Piece::Name,
        };
        let canonical = match (width, stays_encoded) {
            (1, encoded) => !encoded,
            (_, true) => !bytes[at + 1].is_ascii_lowercase() && !bytes[at + 2].is_ascii_lowercase(),
            (_, false) => false,
        };
        if !canonical && out.is_none() {
            // A triplet grows out of at most every byte that is left.
            let mut text = String::with_capacity(raw.len() + 2 * (raw.len() - at));
            text.push_str(&raw[..at]);
            out = Some(text);
        }
        if let Some(out) = &mut out {
            if stays_encoded { push_triplet(out, byte) } else { out.push(byte as char) }
        }
        at += width;
    }
    if piece.is_dots() {
        return Err(Rejection::AmbiguousPath);
    }
    Ok(out.map_or(Cow::Borrowed(raw), Cow::Owned))
}

/// The byte that `%XY` at the start of `bytes` stands for.
fn decode_triplet(bytes: &[u8]) -> Option<u8> {
    let digit = |at: usize| bytes.get(at).and_then(|b| (*b as char).to_digit(16));
    u8::try_from(digit(1)? * 16 + digit(2)?).ok()
}

fn push_triplet(out: &mut String, byte: u8) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    out.push('%');
    out.push(HEX[usize::from(byte >> 4)] as char);
    out.push(HEX[usize::from(byte & 15)] as char);
}

/// A `Host` or `:authority` value as route matching wants it: lower case, without port, user or trailing dot; an IPv6
/// literal keeps its brackets. Borrowed when it is that already. 400 when it is empty, too long or no host.
pub fn normalize_host(raw: &str) -> Result<Cow<'_, str>, Rejection> {
    let bad = || Rejection::BadRequest("the `Host` header is not a host name or address".into());
    // RFC 1035 section 2.3.4 bounds a name at 255 octets.
    const MAX: usize = 255;
    let (host, port) = match raw.strip_prefix('[').and_then(|_| raw.find(']')) {
        Some(end) => raw.split_at(end + 1),
        None => raw.split_at(raw.find(':').unwrap_or(raw.len())),
    };
    let port_ok = port.is_empty() || port.strip_prefix(':').is_some_and(|p| p.bytes().all(|b| b.is_ascii_digit()));
    let ok = if let Some(inner) = host.strip_prefix('[') {
        inner.strip_suffix(']').is_some_and(|ip| ip.parse::<std::net::Ipv6Addr>().is_ok())
    } else {
        host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=%".contains(&b))
    };
    let host = host.strip_suffix('.').unwrap_or(host);
    let empty_label = host.starts_with('.') || host.ends_with('.') || host.contains("..");
    if !port_ok || !ok || host.is_empty() || host.len() > MAX || empty_label {
        return Err(bad());
    }
    if host.bytes().any(|b| b.is_ascii_uppercase()) {
        return Ok(Cow::Owned(host.to_ascii_lowercase()));
    }
    Ok(Cow::Borrowed(host))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(raw: &str) -> String {
        normalize_path(raw).unwrap_or_else(|e| panic!("{raw}: {e:?}")).into_owned()
    }

    #[test]
    fn canonical_paths_are_borrowed() {
        for raw in ["/", "/a", "/a/", "/a/b.c/..d/.e/f..", "/a;v=1/b:c@d", "/a%2Fb", "/%26", "/...", "/%E2%82%AC"] {
            assert!(matches!(normalize_path(raw), Ok(Cow::Borrowed(same)) if same == raw), "{raw}");
        }
    }

    #[test]
    fn equivalent_spellings_become_one() {
        assert_eq!(path("/%61%62c/%7euser/%2D"), "/abc/~user/-");
        assert_eq!(path("/a%2fb%3aC"), "/a%2Fb%3AC", "reserved characters stay encoded, in upper case");
        assert_eq!(path("/caf\u{e9}"), "/caf%C3%A9");
        assert_eq!(path("/caf%c3%a9"), "/caf%C3%A9");
        assert_eq!(path("/a|b\"<>^`{}"), "/a%7Cb%22%3C%3E%5E%60%7B%7D");
        assert_eq!(path("/a%20b"), "/a%20b");
        assert_eq!(path("/%252e%252e/"), "/%252e%252e/", "decoded once only");
        assert_eq!(path("/a%2Eb"), "/a.b");
        assert_eq!(path("/url/https%3A%2F%2Fexample.com"), "/url/https%3A%2F%2Fexample.com");
    }

    #[test]
    fn ambiguous_paths_are_refused() {
        for raw in [
            "//",
            "/a//b",
            "/a//",
            "/.",
            "/..",
            "/./a",
            "/a/../b",
            "/a/..",
            "/%2e/a",
            "/a/%2e%2e/b",
            "/a/.%2E",
            "/a/%2E./b",
            "/a/..;x/b",
            "/a/..%3bx",
            "/a/.;",
            "/;/a",
            "/;x",
            "/a/%3b",
            "/a%2f..",
            "/a%2f../b",
            "/..%2fa",
            "/a%2F%2e%2e%2Fb",
            "/a%2f.",
            "/a\\b",
            "/a%5cb",
            "/a/..%5c..",
            "/%00",
            "/a%0d%0ab",
            "/a%7f",
            "/a%1F",
            "/a\u{7f}",
            "/a\tb",
            "/a b",
            "/%",
            "/%2",
            "/%zz",
            "/%2g",
            "/%+1",
            "/a%\u{e9}1",
        ] {
            assert_eq!(normalize_path(raw), Err(Rejection::AmbiguousPath), "{raw:?}");
        }
        for raw in ["", "a", "*", "?a"] {
            assert!(matches!(normalize_path(raw), Err(Rejection::BadRequest(_))), "{raw:?}");
        }
    }

    /// Every string of up to five pieces of an alphabet that holds all special cases.
    #[test]
    fn properties_of_what_is_accepted() {
        let alphabet = ["/", ".", ";", "a", "%2e", "%2F", "%61", "%c3", "\u{e9}", "%26", "\\", "%"];
        let mut accepted = 0;
        for n in 0..alphabet.len().pow(5) {
            let (mut raw, mut rest) = (String::from("/"), n);
            while rest > 0 {
                raw.push_str(alphabet[rest % alphabet.len()]);
                rest /= alphabet.len();
            }
            assert_eq!(normalize_path(&raw), canonicalize(&raw), "the short way agrees: {raw}");
            let Ok(normal) = normalize_path(&raw) else { continue };
            accepted += 1;
            assert!(matches!(normalize_path(&normal), Ok(Cow::Borrowed(same)) if same == normal), "{raw} -> {normal}");
            assert!(normal.is_ascii() && !normal.contains("//") && !normal.contains('\\'), "{raw} -> {normal}");
            // Nothing an origin could read as a dot segment, whatever it decodes or strips.
            let decoded = normal.replace("%2F", "/").replace("%2E", ".");
            for segment in decoded.split('/') {
                let name = segment.split(';').next().unwrap_or_default();
                assert!(name != "." && name != "..", "{raw} -> {normal}");
            }
        }
        assert!(accepted > 1000, "{accepted}");
    }

    #[test]
    fn hosts() {
        let host = |raw| normalize_host(raw).map(Cow::into_owned);
        for (raw, expected) in [
            ("example.com", "example.com"),
            ("Example.COM", "example.com"),
            ("example.com:8080", "example.com"),
            ("example.com.", "example.com"),
            ("example.com.:443", "example.com"),
            ("example.com:", "example.com"),
            ("127.0.0.1:80", "127.0.0.1"),
            ("[::1]", "[::1]"),
            ("[2001:DB8::1]:8443", "[2001:db8::1]"),
            ("my_host", "my_host"),
        ] {
            assert_eq!(host(raw).as_deref(), Ok(expected), "{raw}");
        }
        let long = "a".repeat(256);
        for raw in [
            "",
            ":80",
            ".",
            ".a",
            "a..b",
            "a..",
            "a..:80",
            "a:b",
            "a:80:90",
            "a b",
            "a/b",
            "user@host",
            "[::1",
            "[::1]x",
            "[zz]",
            "::1",
            "a\u{e9}",
            "[]",
            &long,
        ] {
            assert!(matches!(host(raw), Err(Rejection::BadRequest(_))), "{raw:?}");
        }
        assert!(matches!(normalize_host("a.b"), Ok(Cow::Borrowed(_))));
    }
}
