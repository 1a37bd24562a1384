//! Request bodies gathered in memory, for guests and for the gateway's own exchange.
//!
//! Invariant: no more than the limit is ever held, and a client that drips is cut off.

use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, EXPECT};
use pingora::ErrorType;
use pingora::prelude::timeout;
use pingora::proxy::Session;

use super::context::Context;
use super::pipeline::Stop;
use crate::domain::Rejection;

/// Bytes a second that a body has to keep up on average, beyond one `body_timeout`.
const LEAST_RATE: u64 = 1024;
/// Allocated ahead of a declared length; a lie costs no more.
const AHEAD: u64 = 64 << 10;

/// How long a body may take: one `body_timeout`, and beyond it what its bytes take at the least rate. So one that drips
/// is cut off, and one that only takes long is not.
pub struct Pace {
    began: Instant,
    per_read: Duration,
}

impl Pace {
    pub fn since(began: Instant, per_read: Duration) -> Self {
        Self { began, per_read }
    }

    /// For the next read, when so many bytes have come. Zero: the client is too slow.
    pub fn left(&self, bytes: u64) -> Duration {
        let allowed = self.per_read + Duration::from_millis(bytes.saturating_mul(1000) / LEAST_RATE);
        allowed.saturating_sub(self.began.elapsed()).min(self.per_read)
    }
}

/// The declared length, if there is one.
pub fn declared(session: &Session) -> Option<u64> {
    session.req_header().headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Reads the whole body. Answers `Expect: 100-continue` first.
pub async fn gather(session: &mut Session, ctx: &Context, limit: u64) -> Result<Bytes, Stop> {
    let too_large = || Stop::Reject(Rejection::PayloadTooLarge { limit });
    let declared = declared(session);
    if declared.is_some_and(|n| n > limit) {
        return Err(too_large());
    }
    if session.downstream_session.is_body_done() {
        return Ok(Bytes::new());
    }
    go_on(session).await?;
    let pace = Pace::since(Instant::now(), ctx.snapshot.config.server.body_timeout);
    let mut body = BytesMut::with_capacity(usize::try_from(declared.unwrap_or(0).min(AHEAD)).unwrap_or(0));
    loop {
        let late = || Stop::Reject(Rejection::RequestTimeout);
        let chunk = timeout(pace.left(body.len() as u64), session.downstream_session.read_request_body())
            .await
            .map_err(|_| late())?;
        match chunk {
            Ok(None) => return Ok(body.freeze()),
            Ok(Some(chunk)) => {
                if (body.len() + chunk.len()) as u64 > limit {
                    return Err(too_large());
                }
                body.extend_from_slice(&chunk);
            }
            Err(e) if e.etype == ErrorType::ReadTimedout => return Err(late()),
            Err(e) => return Err(Stop::Broken(e.into_down())),
        }
    }
}

/// `100 Continue` for a client that waits for it (RFC 9110 section 10.1.1).
pub async fn go_on(session: &mut Session) -> Result<(), Stop> {
    let expects = session.req_header().headers.get(EXPECT);
    if expects.is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"100-continue")) {
        let sent = session.downstream_session.write_continue_response().await;
        sent.map_err(|e| Stop::Broken(e.into_down()))?;
    }
    Ok(())
}
