//! The proxy: everything that names `pingora` lives below here.
//!
//! Invariant: a refusal reaches the client as one [`crate::domain::Rejection`], and neither an upstream nor a guest
//! ever sees a credential of ours.

pub mod routes;
pub mod service;
pub mod snapshot;

pub use service::{ApiBody, ApiService, Caller, Shared};
pub use snapshot::Snapshot;
