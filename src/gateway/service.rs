//! What the gateway needs from the layers around it, and the seam behind which the API lives.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::Stream;
use parking_lot::Mutex;

use super::Snapshot;
use super::guest_calls::GuestCalls;
use super::listener::Fresh;
use super::server::Listening;
use crate::auth::cache::Authenticator;
use crate::config::Config;
use crate::domain::Principal;
use crate::engine::{Cancel, Engine};
use crate::limit::failures::FailureGate;
use crate::limit::limiter::Limiter;
use crate::limit::usage::UsageRecorder;
use crate::store::{RefusedRoutes, Store, StoreError};
use crate::telemetry::Metrics;

/// A body as it arrives, or as it is to be sent.
pub type ApiBody = Pin<Box<dyn Stream<Item = std::io::Result<Bytes>> + Send>>;

/// The tenant or admin API. The request's extensions hold a [`Caller`]; its path is the whole path.
#[async_trait]
pub trait ApiService: Send + Sync + 'static {
    async fn call(&self, request: http::Request<ApiBody>) -> http::Response<ApiBody>;
}

/// Who calls the API, as far as the gateway knows.
#[derive(Clone, Debug)]
pub struct Caller {
    /// `None` on the admin listener, where the API checks the token itself.
    pub principal: Option<Principal>,
    pub request_id: Arc<str>,
    pub peer: std::net::SocketAddr,
    /// The address at which it reached the admin listener.
    pub local: Option<std::net::IpAddr>,
    /// Set when the client has gone: what runs for it stops, what changes something is finished.
    pub gone: Cancel,
}

/// What one running gateway shares between its requests.
pub struct Shared {
    pub snapshot: ArcSwap<Snapshot>,
    pub auth: Arc<Authenticator>,
    pub limiter: Arc<Limiter>,
    pub engine: Arc<Engine>,
    pub metrics: Arc<Metrics>,
    pub usage: Arc<UsageRecorder>,
    /// Failed authentications by address.
    pub failures: Arc<FailureGate>,
    pub(super) store: Arc<dyn Store>,
    /// Why usage and counters could not be written when that was tried last.
    pub(super) unwritten: Mutex<Option<StoreError>>,
    pub(super) refused_routes: Mutex<Option<RefusedRoutes>>,
    pub(super) unknown_keys: Mutex<Option<String>>,
    /// Its routes are those that it used last: the store could not be asked.
    pub(super) routes_of_disk: AtomicBool,
    listening: OnceLock<Listening>,
    ready: AtomicBool,
    draining: AtomicBool,
}

impl Shared {
    pub fn new(
        snapshot: Arc<Snapshot>,
        auth: Arc<Authenticator>,
        limiter: Arc<Limiter>,
        engine: Arc<Engine>,
        metrics: Arc<Metrics>,
        usage: Arc<UsageRecorder>,
        store: Arc<dyn Store>,
    ) -> Arc<Self> {
        let failures = FailureGate::new(snapshot.config.auth.failures_per_minute);
        let shared = Arc::new(Self {
            failures,
            snapshot: ArcSwap::new(snapshot),
            auth,
            limiter,
            engine,
            metrics,
            usage,
            store: store.clone(),
            unwritten: Mutex::default(),
            refused_routes: Mutex::default(),
            unknown_keys: Mutex::default(),
            routes_of_disk: AtomicBool::new(false),
            listening: OnceLock::new(),
            ready: AtomicBool::new(false),
            draining: AtomicBool::new(false),
        });
        shared.engine.set_outside(Arc::new(GuestCalls::of(&shared, store)));
        shared
    }

    /// What a reload changes of the listeners, once they listen.
    pub(super) fn set_listening(&self, listening: Listening) {
        // A second server over the same state keeps its own.
        let _ = self.listening.set(listening);
    }

    /// Reads every listener's certificate files again; nothing is changed yet.
    pub fn read_certificates(&self, config: &Config) -> Result<Fresh, Vec<String>> {
        self.listening.get().map_or_else(|| Ok(Fresh::default()), |listening| listening.certificates.read(config))
    }

    /// Swaps the snapshot; new connections get its `server` settings and these certificates.
    pub fn take_up(&self, snapshot: Arc<Snapshot>, certificates: Fresh) {
        if let Some(listening) = self.listening.get() {
            listening.places.resize(snapshot.config.server.max_connections);
        }
        self.snapshot.store(snapshot);
        certificates.take_up();
    }

    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire) && !self.is_draining() && !self.snapshot.load().config.lacks_routes()
    }

    pub fn set_ready(&self) {
        self.ready.store(true, Ordering::Release);
    }

    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    pub fn set_draining(&self) {
        self.draining.store(true, Ordering::Release);
    }
}
