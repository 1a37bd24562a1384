//! The proxy: everything that names `pingora` lives below here.
//!
//! A connection's way: [`server`] accepts, [`connection`] guards each head ([`head`]) and hands it to [`proxy`], which
//! runs the [`pipeline`]; that answers by itself ([`respond`], [`guest`], [`bridge`]), or through [`exchange`], or
//! leaves streaming to Pingora.
//!
//! Invariant: a refusal reaches the client as one [`crate::domain::Rejection`], and neither an upstream nor a guest
//! ever sees a credential of ours.

mod access;
mod access_log;
mod admin;
mod answer;
mod body;
mod breaker;
mod bridge;
mod chunked;
mod condition;
mod conn;
mod connection;
mod context;
mod exchange;
mod forward;
mod gate;
mod guest;
mod guest_calls;
mod guest_grpc;
mod handlers;
mod head;
mod health;
mod identity;
mod listener;
mod merge;
pub mod pem;
mod pipeline;
mod places;
mod pool;
mod presence;
mod proxy;
mod respond;
mod route_handler;
pub mod routes;
pub mod server;
pub mod service;
mod shutdown;
pub mod snapshot;
mod sys;
mod upstream;

pub use condition::{Lack, StoreState, tell_failure};
#[cfg(fuzzing)]
pub use head::check as check_head;
pub use listener::BindError;
pub use route_handler::{Cold, try_out, warm};
pub use server::{Running, start};
pub use service::{ApiBody, ApiService, Caller, Shared};
pub use snapshot::Snapshot;
pub use upstream::{EndpointState, UpstreamError};
