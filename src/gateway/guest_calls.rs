//! What guests ask of the world: requests to upstreams, values that they keep, quotas of their caller.
//!
//! Invariant: a guest reaches configured endpoints alone, by the upstream's name; redirects are its own to follow. Keys and
//! values are in no log.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::{Request, Response};
use pingora::http::RequestHeader;
use pingora::{Error, ErrorType};

use super::exchange::{MAX_INTERIM, send};
use super::forward::{self, frame_request};
use super::guest_grpc;
use super::pool::{Client, Pool};
use super::service::Shared;
use super::upstream::Tried;
use crate::domain::{Name, OwnerId, Principal, Timestamp};
use crate::engine::grpc::{GrpcCall, GrpcStatus};
use crate::engine::outside::{Answering, Charged, Keep, Kept, Later, NotKept, Outside};
use crate::limit::limiter::Now;
use crate::limit::quota::Refused;
use crate::store::{KvIncr, KvSet, Store, StoreError};

pub struct GuestCalls {
    shared: Weak<Shared>,
    pool: Arc<Pool>,
    store: Arc<dyn Store>,
}

impl GuestCalls {
    pub fn of(shared: &Arc<Shared>, store: Arc<dyn Store>) -> GuestCalls {
        GuestCalls { shared: Arc::downgrade(shared), pool: Arc::new(Pool::new()), store }
    }
}

impl Outside for GuestCalls {
    fn call(&self, upstream: Name, request: Request<Bytes>, limit: u64) -> Answering {
        let (shared, pool) = (self.shared.clone(), self.pool.clone());
        Box::pin(async move {
            let shared = shared.upgrade().ok_or("the gateway is ending")?;
            let upstream = shared.snapshot.load().upstream(&upstream).ok_or("it is no upstream")?;
            let lease = upstream.pick(&[], Tried::default(), Instant::now()).ok_or("no endpoint is alive")?;
            match exchange(&pool, &lease.endpoint.peer, request, limit).await {
                Ok(answer) => {
                    upstream.answered(&lease.endpoint, answer.status().as_u16());
                    Ok(answer)
                }
                Err(error) => {
                    upstream.failed(&lease.endpoint, &error);
                    Err(error.to_string())
                }
            }
        })
    }

    fn grpc(&self, call: GrpcCall) -> Later<()> {
        let (shared, pool) = (self.shared.clone(), self.pool.clone());
        Box::pin(async move {
            let upstream = shared.upgrade().and_then(|shared| shared.snapshot.load().upstream(&call.upstream));
            match upstream {
                Some(upstream) => guest_grpc::run(&pool, &upstream, call).await,
                None => call.end(GrpcStatus::unavailable("it is no upstream")).await,
            }
        })
    }

    fn keep(&self, owner: OwnerId, key: Vec<u8>, operation: Keep) -> Later<Result<Kept, NotKept>> {
        let store = self.store.clone();
        Box::pin(async move {
            keep(&*store, &owner, &key, operation).await.map_err(|error| match error {
                StoreError::Conflict(_) => NotKept::Conflict,
                StoreError::Limit(_) | StoreError::Full => NotKept::Full,
                error => {
                    // Guests may ask in a loop; what the gateway itself can't write is told as an error.
                    tracing::debug!(%error, %owner, "a guest's value");
                    NotKept::Unavailable
                }
            })
        })
    }

    fn charge(&self, principal: Principal, quota: String, cost: u64) -> Later<Charged> {
        let shared = self.shared.clone();
        Box::pin(async move {
            let Some(shared) = shared.upgrade() else { return Charged::Unknown };
            match shared.limiter.spend(&principal, &quota, cost, Now::read()).await {
                None => Charged::Unknown,
                Some(Ok(())) => Charged::Allowed,
                Some(Err(Refused(Some(wait)))) => Charged::Limited(wait),
                Some(Err(Refused(None))) => Charged::Never,
            }
        })
    }
}

async fn keep(store: &dyn Store, owner: &OwnerId, key: &[u8], operation: Keep) -> Result<Kept, StoreError> {
    let now = Timestamp::now();
    let until = |ttl: Option<Duration>| ttl.map(|ttl| now.saturating_add(ttl));
    Ok(match operation {
        Keep::Get => store.kv_get(owner, key, now).await?.map_or(Kept::Nothing, Kept::Value),
        Keep::Set { value, ttl, expected } => {
            store.kv_set(owner, key, KvSet { value, expires_at: until(ttl), expected }, now).await?;
            Kept::Written
        }
        Keep::Add { by, ttl } => {
            Kept::Sum(store.kv_incr(owner, key, KvIncr { by, expires_at: until(ttl) }, now).await?)
        }
        Keep::Delete => match store.kv_delete(owner, key, now).await? {
            true => Kept::Written,
            false => Kept::Nothing,
        },
    })
}

/// One request and its whole answer. Once more where a kept connection had closed.
async fn exchange(
    pool: &Pool,
    peer: &pingora::upstreams::peer::HttpPeer,
    request: Request<Bytes>,
    limit: u64,
) -> pingora::Result<Response<Bytes>> {
    let (parts, body) = request.into_parts();
    let mut head = RequestHeader::from(parts);
    frame_request(&mut head, Some(body.len()).filter(|n| *n > 0))?;
    head.set_version(http::Version::HTTP_11);
    let mut again = head.method.is_idempotent();
    let mut client = loop {
        let (mut client, reused) = pool.connect(peer).await?;
        client.set_read_timeout(peer.options.read_timeout);
        client.set_write_timeout(peer.options.write_timeout);
        match read_head(&mut client, &head, &body).await {
            Ok(()) => break client,
            Err(_) if reused && std::mem::take(&mut again) => client.shutdown().await,
            Err(error) => return Err(error),
        }
    };
    let Some(answer) = client.response_header() else {
        return Error::e_explain(ErrorType::InvalidHTTPHeader, "an answer without a head");
    };
    let head = forward::strip_response(answer)?;
    let mut body = BytesMut::new();
    while let Some(chunk) = client.read_response_body().await? {
        if (body.len() + chunk.len()) as u64 > limit {
            client.shutdown().await;
            return Error::e_explain(ErrorType::InvalidHTTPHeader, "the answer is over the handler's `max_buffer`");
        }
        body.extend_from_slice(&chunk);
    }
    pool.release(client, peer, peer.options.idle_timeout).await;
    Ok(Response::from_parts(head.into(), body.freeze()))
}

async fn read_head(client: &mut Client, head: &RequestHeader, body: &Bytes) -> pingora::Result<()> {
    send(client, Box::new(head.clone()), Some(body)).await?;
    for _ in 0..=MAX_INTERIM {
        client.read_response_header().await?;
        let final_answer = client.response_header().is_none_or(|head| !head.status.is_informational());
        if final_answer {
            return Ok(());
        }
    }
    Error::e_explain(ErrorType::InvalidHTTPHeader, "interim answers without a final one")
}
