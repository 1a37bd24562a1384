//! Whether the client is still there while something works for it, and what happens when it is not.
//!
//! An HTTP/1 client that shuts down its writing side counts as gone, as it does with nginx, Envoy, Go and Pingora: from
//! here it looks the same as one that was killed, and a guest's thread is worth more than a rare half-closed reader.
//!
//! Invariant: work is told to stop, and its end is waited for: what it used is counted, and what it began is not left
//! half done.

use pingora::Error;
use pingora::protocols::http::ServerSession;

use crate::engine::Cancel;

/// Resolves when the client is gone; what is pipelined behind the request stays where it is. `no_body`: the body is absent
/// or held; else what is left of one that nobody reads is dropped.
pub async fn gone(session: &mut ServerSession, no_body: bool) -> Box<Error> {
    loop {
        if let Err(error) = session.read_body_or_idle(no_body).await {
            return error.into_down();
        }
    }
}

/// Runs `work` to its end, and has it stopped through `cancel` when the client goes. The error: it went.
pub async fn while_here<T>(
    session: &mut ServerSession,
    cancel: &Cancel,
    work: impl Future<Output = T>,
) -> (T, Option<Box<Error>>) {
    if !session.is_body_done() {
        // The body streams to an upstream: who reads it finds out.
        return (work.await, None);
    }
    tokio::pin!(work);
    tokio::select! {
        biased;
        done = &mut work => (done, None),
        error = gone(session, true) => {
            cancel.cancel();
            (work.await, Some(error))
        }
    }
}
