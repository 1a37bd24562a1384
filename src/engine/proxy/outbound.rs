//! Requests of guests to upstreams. The layer that has the upstreams does them.

use std::future::Future;
use std::pin::Pin;

use bytes::Bytes;
use http::{Request, Response};

use crate::domain::Name;
use crate::engine::grpc::GrpcCall;

/// Why there is no answer, for the log.
pub type Failed = String;
pub type Calling = Pin<Box<dyn Future<Output = ()> + Send>>;
pub type Answering = Pin<Box<dyn Future<Output = Result<Response<Bytes>, Failed>> + Send>>;

pub trait Outbound: Send + Sync {
    /// Sends the request to the upstream of this name; an answer whose body is over `limit` bytes is none.
    fn call(&self, upstream: Name, request: Request<Bytes>, limit: u64) -> Answering;

    /// Makes a gRPC call, until it has ended or nobody waits for it any more.
    fn grpc(&self, call: GrpcCall) -> Calling;
}
