//! The HTTP API: what tenants call through a route with target `api`, and what operators call on the admin listener.
//!
//! Both faces share one set of handlers; [`access::Actor`] says who calls and on whose behalf. Routes are declared
//! together with their OpenAPI entries (`utoipa_axum`), so neither can be without the other.
//!
//! Invariant: an error answer is a [`crate::domain::Rejection`], rendered in [`edge`] alone, with the request id.

mod access;
mod admin;
mod batch;
mod body;
mod bounded;
mod call;
mod edge;
mod execute;
mod health;
mod incoming;
mod keys;
mod modules;
mod multipart;
mod openapi;
mod upload;
mod usage;
mod validate;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::app::{App, AppError};
use crate::domain::{Module, ModuleVersion, Name, OwnerId, Rejection, Tier};
use crate::engine::Turns;
use crate::gateway::{ApiService, tell_failure};
use crate::store::StoreError;

pub use edge::Probe;

/// Request bodies in memory at once, over all requests.
const BODY_BUDGET: u64 = 512 << 20;
/// Inspections of uploaded bytes at once (each keeps a thread busy), half of them of one owner; how many
/// may wait for their turn, and how long.
const INSPECTIONS: usize = 2;
const INSPECTION_QUEUE: usize = 1024;
const INSPECTION_WAIT: Duration = Duration::from_secs(5);
/// Modules whose records are kept in memory, and for how long they are believed; a change made here is seen at once.
const RESOLVED: u64 = 10_000;
const RESOLVED_TTL: Duration = Duration::from_secs(1);
/// While the store can't be asked, as long as nothing was told to have changed.
const RESOLVED_STALE: Duration = Duration::from_secs(3600);

/// Tiers that a message lists.
const MAX_TIERS_NAMED: usize = 20;

pub struct Services {
    pub tenant: Arc<dyn ApiService>,
    pub admin: Arc<dyn ApiService>,
}

/// Both faces of the API over one running gateway.
pub fn services(app: Arc<App>) -> Services {
    let api = Arc::new(Api {
        bodies: body::Budget::new(BODY_BUDGET),
        inspections: Turns::new(INSPECTIONS, INSPECTION_QUEUE),
        resolved: moka::sync::Cache::builder().max_capacity(RESOLVED).time_to_live(RESOLVED_STALE).build(),
        changes: AtomicU64::new(0),
        app,
    });
    Services {
        tenant: Arc::new(edge::Edge::new(api.clone(), edge::Face::Tenant)),
        admin: Arc::new(edge::Edge::new(api, edge::Face::Admin)),
    }
}

/// What the handlers of both faces share.
struct Api {
    app: Arc<App>,
    bodies: Arc<body::Budget>,
    inspections: Turns,
    resolved: moka::sync::Cache<(OwnerId, Name), Resolved>,
    /// Counts changes of modules: a record read before a change is not kept after it.
    changes: AtomicU64,
}

#[derive(Clone)]
struct Resolved {
    module: Arc<Module>,
    read_at: Instant,
    /// How often others had changed something by then.
    changes: u64,
}

impl Api {
    /// A module's record, from memory when it was read in the last second, or when nobody can be asked.
    async fn module(&self, owner: &OwnerId, name: &Name) -> Result<Option<Arc<Module>>, Rejection> {
        let id = (owner.clone(), name.clone());
        let known = self.resolved.get(&id);
        if let Some(Resolved { module, .. }) = known.as_ref().filter(|known| known.read_at.elapsed() < RESOLVED_TTL) {
            return Ok(Some(module.clone()));
        }
        let (before, read_at) = (self.changes.load(Ordering::Acquire), Instant::now());
        let changes = self.app.changes.load(Ordering::Acquire);
        let module = match (self.app.store.module(owner, name).await, known) {
            (Ok(Some(module)), _) => Arc::new(module),
            (Ok(None), _) => {
                self.resolved.invalidate(&id);
                return Ok(None);
            }
            (Err(StoreError::Unavailable(_) | StoreError::Lost(_)), Some(known)) if known.changes == changes => {
                return Ok(Some(known.module));
            }
            (Err(error), _) => return Err(refused(error)),
        };
        if self.changes.load(Ordering::Acquire) == before {
            self.resolved.insert(id, Resolved { module: module.clone(), read_at, changes });
        }
        Ok(Some(module))
    }

    /// After every change of a module: its record is read anew, and routes that use it follow.
    async fn module_changed(&self, owner: &OwnerId, name: &Name) -> Result<(), Rejection> {
        self.changes.fetch_add(1, Ordering::AcqRel);
        self.resolved.invalidate(&(owner.clone(), name.clone()));
        if self.app.route_using(owner, name, |_| true).is_some() { self.refresh().await } else { Ok(()) }
    }

    async fn refresh(&self) -> Result<(), Rejection> {
        self.app.refresh().await.map_err(|error| {
            tracing::error!(%error, "the change is stored, but the snapshot could not be built anew");
            Rejection::Internal
        })
    }

    /// The lowest tier that fits, for 402: above the caller's own if there is one.
    fn lowest_tier(&self, own: &Tier, fits: impl Fn(&Tier) -> bool) -> Option<Name> {
        let snapshot = self.app.snapshot();
        let fitting = snapshot.tiers.values().filter(|t| fits(t));
        fitting.min_by_key(|t| (t.rank <= own.rank, t.rank)).map(|t| t.name.clone())
    }

    /// The tiers there are, by rank, for a message about one that there isn't.
    fn tier_names(&self, fits: impl Fn(&Tier) -> bool) -> String {
        let snapshot = self.app.snapshot();
        let mut tiers: Vec<_> = snapshot.tiers.values().filter(|t| fits(t)).collect();
        tiers.sort_by_key(|t| t.rank);
        tiers.iter().take(MAX_TIERS_NAMED).map(|t| format!("`{}`", t.name)).collect::<Vec<_>>().join(", ")
    }

    fn highest_tier(&self) -> Result<Arc<Tier>, Rejection> {
        self.app.snapshot().tiers.values().max_by_key(|t| t.rank).cloned().ok_or(Rejection::Internal)
    }

    /// One line of the audit log.
    async fn audit(&self, actor: &access::Actor, action: &str, subject: impl Into<String>, detail: impl Into<String>) {
        self.app.audit(actor.audit_name(), action, subject.into(), detail.into()).await;
    }

    /// Refuses a version that a route would take up and can't use.
    async fn fits(&self, owner: &OwnerId, name: &Name, new: &ModuleVersion, activate: bool) -> Result<(), Rejection> {
        self.app.fits(owner, name, new, activate).await.map_err(|error| match error {
            AppError::Setting { message, .. } => Rejection::Conflict(message),
            AppError::Store(error) => refused(error),
            AppError::Config(_) => Rejection::Internal,
        })
    }
}

/// A store error as the client sees it; what it does not see is logged.
fn refused(error: StoreError) -> Rejection {
    if !error.is_refusal() {
        tell_failure(&error);
    }
    Rejection::from(error)
}
