//! gRPC over HTTP/2 as guests' calls have it (<https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>): messages with
//! their prefix, the status at the end, and what a call and its guest tell each other.
//!
//! Invariant: a call ends with one status, and nothing follows that; no message is over its limit.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::header::{CONTENT_TYPE, HeaderMap};
use http::uri::PathAndQuery;
use tokio::sync::mpsc;

use super::cancel::Cancel;
use crate::domain::Name;

/// A flag, and the length.
const PREFIX: usize = 5;

const UNKNOWN: u32 = 2;
const DEADLINE_EXCEEDED: u32 = 4;
const RESOURCE_EXHAUSTED: u32 = 8;
const INTERNAL: u32 = 13;
const UNAVAILABLE: u32 = 14;

/// A call for the layer that has the upstreams.
pub struct GrpcCall {
    pub upstream: Name,
    pub path: PathAndQuery,
    pub metadata: HeaderMap,
    /// Of the whole call; `None` for a stream, which lives as long as its VM.
    pub timeout: Option<Duration>,
    /// What the guest sends; it ends with the guest's side.
    pub messages: mpsc::Receiver<Outgoing>,
    pub events: mpsc::Sender<GrpcEvent>,
    /// Set when nobody waits for the call any more.
    pub gone: Cancel,
    /// Of a message that comes.
    pub limit: u64,
}

impl GrpcCall {
    pub async fn end(&self, status: GrpcStatus) {
        // Nobody may wait any more.
        let _ = self.events.send(GrpcEvent::Closed(status)).await;
    }
}

/// What a guest is told of a call.
#[derive(Debug)]
pub enum GrpcEvent {
    Initial(HeaderMap),
    Message(Bytes),
    Trailing(HeaderMap),
    /// The last one.
    Closed(GrpcStatus),
}

/// How a call ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrpcStatus {
    pub code: u32,
    pub message: String,
}

impl GrpcStatus {
    fn new(code: u32, message: impl Into<String>) -> GrpcStatus {
        GrpcStatus { code, message: message.into() }
    }

    pub fn unavailable(why: impl Into<String>) -> GrpcStatus {
        GrpcStatus::new(UNAVAILABLE, why)
    }

    pub fn too_late() -> GrpcStatus {
        GrpcStatus::new(DEADLINE_EXCEEDED, "the call's time is up")
    }

    /// An answer to one message that had none.
    pub fn without_message() -> GrpcStatus {
        GrpcStatus::new(INTERNAL, "the answer has no message")
    }

    /// As the answer's last fields say. `None`: they don't.
    pub fn of(fields: &HeaderMap) -> Option<GrpcStatus> {
        let code = fields.get("grpc-status")?.to_str().ok().and_then(|code| code.parse().ok()).unwrap_or(UNKNOWN);
        let message = fields.get("grpc-message").map(|message| percent_decoded(message.as_bytes()));
        Some(GrpcStatus { code, message: message.unwrap_or_default() })
    }

    /// Of an answer that ends without one.
    pub fn missing() -> GrpcStatus {
        GrpcStatus::new(UNKNOWN, "the answer has no `grpc-status`")
    }

    /// What is wrong with the head of an answer, if anything is (grpc/doc/http-grpc-status-mapping.md).
    pub fn of_head(status: http::StatusCode, fields: &HeaderMap) -> Option<GrpcStatus> {
        let code = match status.as_u16() {
            200 => {
                let kind = fields.get(CONTENT_TYPE).map_or(&b""[..], |kind| kind.as_bytes());
                let is_grpc = kind.starts_with(b"application/grpc");
                return (!is_grpc).then(|| GrpcStatus::new(UNKNOWN, "the answer is not `application/grpc`"));
            }
            400 => INTERNAL,
            401 => 16,
            403 => 7,
            404 => 12,
            429 | 502..=504 => UNAVAILABLE,
            _ => UNKNOWN,
        };
        Some(GrpcStatus::new(code, format!("the answer's HTTP status is {}", status.as_u16())))
    }
}

/// Guests read it as text.
fn percent_decoded(text: &[u8]) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, after @ ..] = rest {
        let byte = after.get(..2).filter(|_| *first == b'%').and_then(|hex| {
            let hex = std::str::from_utf8(hex).ok().filter(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()))?;
            u8::from_str_radix(hex, 16).ok()
        });
        out.push(byte.unwrap_or(*first));
        rest = if byte.is_some() { &after[2..] } else { after };
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Bytes that a VM's calls have queued.
#[derive(Clone, Default)]
pub struct Queued(Arc<AtomicU64>);

/// A message on its way, with its prefix.
pub struct Outgoing {
    pub framed: Bytes,
    queued: Queued,
}

impl Queued {
    /// `None`: it has no room within `limit`. Calls are one VM's, whose guest runs once at a time.
    pub fn message(&self, message: &[u8], limit: u64) -> Option<Outgoing> {
        let size = (PREFIX + message.len()) as u64;
        let len = u32::try_from(message.len()).ok()?;
        if self.0.load(Ordering::Relaxed).saturating_add(size) > limit {
            return None;
        }
        self.0.fetch_add(size, Ordering::Relaxed);
        let mut framed = BytesMut::with_capacity(PREFIX + message.len());
        framed.put_u8(0);
        framed.put_u32(len);
        framed.put_slice(message);
        Some(Outgoing { framed: framed.freeze(), queued: self.clone() })
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        self.queued.0.fetch_sub(self.framed.len() as u64, Ordering::Relaxed);
    }
}

/// Messages out of a body.
#[derive(Default)]
pub struct Messages(BytesMut);

impl Messages {
    pub fn push(&mut self, piece: &[u8]) {
        self.0.extend_from_slice(piece);
    }

    /// The next one that is there whole.
    pub fn next(&mut self, limit: u64) -> Result<Option<Bytes>, GrpcStatus> {
        let Some(&[flag, a, b, c, d]) = self.0.first_chunk::<PREFIX>() else { return Ok(None) };
        if flag != 0 {
            return Err(GrpcStatus::new(INTERNAL, "a message is compressed, which was not offered"));
        }
        let len = u32::from_be_bytes([a, b, c, d]);
        if u64::from(len) > limit {
            return Err(GrpcStatus::new(RESOURCE_EXHAUSTED, "a message is over the handler's `max_buffer`"));
        }
        let len = len as usize;
        if self.0.len() - PREFIX < len {
            return Ok(None);
        }
        self.0.advance(PREFIX);
        Ok(Some(self.0.split_to(len).freeze()))
    }

    /// After the last piece.
    pub fn end(&self) -> Result<(), GrpcStatus> {
        if self.0.is_empty() { Ok(()) } else { Err(GrpcStatus::new(INTERNAL, "the last message is cut off")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_out_as_they_went_in_whatever_the_pieces() {
        let queued = Queued::default();
        let sent: [&[u8]; 4] = [b"one", b"", b"three", &[7; 3000]];
        let wire: Vec<u8> = sent.iter().flat_map(|m| queued.message(m, 1 << 20).unwrap().framed.to_vec()).collect();
        for size in [1, 4, 5, 6, 1000, wire.len()] {
            let mut messages = Messages::default();
            let mut got = Vec::new();
            for piece in wire.chunks(size) {
                messages.push(piece);
                while let Some(message) = messages.next(3000).unwrap() {
                    got.push(message);
                }
            }
            assert_eq!(got, sent, "in pieces of {size}");
            assert!(messages.end().is_ok());
        }
    }

    #[test]
    fn what_is_too_long_compressed_or_cut_off_is_a_status() {
        let mut messages = Messages::default();
        messages.push(b"\0\0\0\0\x04abc");
        assert_eq!(messages.next(4), Ok(None));
        assert_eq!(messages.end().unwrap_err().code, INTERNAL);
        assert_eq!(messages.next(3).unwrap_err().code, RESOURCE_EXHAUSTED);
        let mut messages = Messages::default();
        messages.push(b"\x01\0\0\0\0");
        assert_eq!(messages.next(4).unwrap_err().code, INTERNAL);
    }

    #[test]
    fn what_is_queued_is_bounded_until_it_is_sent() {
        let queued = Queued::default();
        let first = queued.message(b"12345", 20).unwrap();
        let second = queued.message(b"12345", 20).unwrap();
        assert!(queued.message(b"", 20).is_none());
        drop((first, second));
        assert!(queued.message(b"12345", 20).is_some());
    }

    #[test]
    fn statuses_are_read_as_they_are_written() {
        let fields = |code: &str, message: &str| {
            let pairs = [("grpc-status", code), ("grpc-message", message)];
            pairs
                .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
                .into_iter()
                .collect::<HeaderMap>()
        };
        let of = |code, message| GrpcStatus::of(&fields(code, message)).unwrap();
        assert_eq!(of("5", "not%20here%"), GrpcStatus::new(5, "not here%"));
        assert_eq!(of("x", "%zz%E4%BD"), GrpcStatus::new(UNKNOWN, "%zz\u{fffd}"));
        assert_eq!(GrpcStatus::of(&HeaderMap::new()), None);
    }
}
