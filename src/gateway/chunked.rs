//! Finds the end of a chunked body in passing (RFC 9112 section 7.1), without decoding it.
//!
//! Invariant: where Pingora's decoder would take the body as whole, this finds the same end. Bytes that are not valid
//! framing are all taken as the body's: the decoder refuses them, and the connection is not used again.

/// Longest line of a size with its extensions, and longest trailer section.
const MAX_LINE: usize = 8 << 10;

#[derive(Clone, Debug, Default)]
pub struct Chunked {
    state: State,
}

#[derive(Clone, Copy, Debug, Default)]
enum State {
    /// At a chunk's first line; the size so far.
    #[default]
    Start,
    Size(u64),
    Extension {
        size: u64,
        seen: usize,
    },
    /// Data left, with its CRLF.
    Data(u64),
    /// After the last chunk: `line` bytes of the trailer line at hand, without CR.
    Trailer {
        line: usize,
        seen: usize,
    },
    Invalid,
}

impl Chunked {
    /// Offset behind the body's last byte, when it is among these.
    pub fn feed(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut at = 0;
        while at < bytes.len() {
            if let State::Data(left) = self.state {
                let n = left.min((bytes.len() - at) as u64);
                at += usize::try_from(n).unwrap_or(usize::MAX);
                self.state = if n == left { State::Start } else { State::Data(left - n) };
                continue;
            }
            let byte = bytes[at];
            at += 1;
            self.state = match (self.state, byte) {
                (State::Start, _) => digit(0, byte),
                (State::Size(size), b'\n') => line_end(size),
                (State::Size(size), b'\r' | b';' | b' ' | b'\t') => State::Extension { size, seen: 0 },
                (State::Size(size), _) => digit(size, byte),
                (State::Extension { size, .. }, b'\n') => line_end(size),
                (State::Extension { size, seen }, _) if seen < MAX_LINE => State::Extension { size, seen: seen + 1 },
                (State::Trailer { line: 0, .. }, b'\n') => return Some(at),
                (State::Trailer { seen, .. }, b'\n') => State::Trailer { line: 0, seen },
                (State::Trailer { .. }, b'\r') => self.state,
                (State::Trailer { line, seen }, _) if seen < MAX_LINE => {
                    State::Trailer { line: line + 1, seen: seen + 1 }
                }
                _ => State::Invalid,
            };
        }
        None
    }
}

fn digit(size: u64, byte: u8) -> State {
    let value = (byte as char).to_digit(16).and_then(|d| size.checked_mul(16)?.checked_add(u64::from(d)));
    value.map_or(State::Invalid, State::Size)
}

fn line_end(size: u64) -> State {
    match size {
        0 => State::Trailer { line: 0, seen: 0 },
        n => n.checked_add(2).map_or(State::Invalid, State::Data),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(body: &str, end: Option<usize>) {
        assert_eq!(Chunked::default().feed(body.as_bytes()), end, "{body:?} at once");
        let mut slow = Chunked::default();
        let found = body.bytes().position(|b| slow.feed(&[b]).is_some()).map(|at| at + 1);
        assert_eq!(found, end, "{body:?} byte by byte");
    }

    #[test]
    fn ends_are_found() {
        check("0\r\n\r\n", Some(5));
        check("5\r\nhello\r\n0\r\n\r\nGET /", Some(15));
        check("A;x=\"y\"\r\n0123456789\r\n0\r\n\r\n", Some(26));
        check("1\r\na\r\n0\r\nTrailer: x\r\n\r\nrest", Some(23));
        check("00003\r\nabc\r\n000\r\n\r\n", Some(19));
    }

    #[test]
    fn unfinished_and_invalid_bodies_have_none() {
        check("5\r\nhello\r\n0\r\n", None);
        check("5\r\nhel", None);
        check("x\r\n\r\n0\r\n\r\n", None);
        check("\r\n0\r\n\r\n", None);
        check("ffffffffffffffffff\r\n0\r\n\r\n", None);
        check(&format!("1{}", ";".repeat(9000)), None);
    }
}
