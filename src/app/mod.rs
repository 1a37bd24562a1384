//! Wires the layers into one running gateway, and holds what changes while it runs: the snapshot.
//!
//! Invariant: a new snapshot is taken whole or not at all; requests under way keep theirs.

mod catalogue;
pub mod copy;
pub mod files;
mod follow;
mod journal;
mod kept_routes;
pub mod keys;
pub mod nodes;
mod open;
mod outbox;
mod pushed;
mod reload;
pub mod secrets;
pub mod tickers;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use crate::auth::cache::{self, Authenticator};
use crate::config::{self, Config, ConfigErrors};
use crate::domain::{Digest, Name, OwnerId, Selector, Tier, Timestamp};
use crate::engine::{self, Engine};
use crate::gateway::{Shared, Snapshot, snapshot};
use crate::limit::limiter::{Limiter, Now};
use crate::limit::usage::UsageRecorder;
use crate::store::{AuditEntry, Node, Store, StoreError, told_apart};
use crate::telemetry::{LogControl, Metrics};
use pushed::AtStart;
use reload::{build_snapshot, warm_later};
use secrets::BootstrapToken;

pub use pushed::{Done, MAX_ROUTES_BYTES, Push};
pub use reload::{ModuleCheck, Reloaded};

/// Callers whose limit state is kept at once; the longest idle go first.
const MAX_SUBJECTS: usize = 200_000;

/// Why the gateway can't start or reload; the message names the setting to change.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    #[error(transparent)]
    Config(#[from] ConfigErrors),
    /// A setting's key, and what is wrong with its value on this machine.
    #[error("`{key}`: {message}")]
    Setting { key: String, message: String },
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl AppError {
    pub fn setting(key: &str, message: impl std::fmt::Display) -> Self {
        Self::Setting { key: key.into(), message: message.to_string() }
    }
}

/// Everything that the data directory holds, opened; there is no snapshot yet.
pub struct Opened {
    pub config: Arc<Config>,
    pub store: Arc<dyn Store>,
    pub auth: Arc<Authenticator>,
    pub engine: Arc<Engine>,
    limiter: Arc<Limiter>,
    bootstrap_token: BootstrapToken,
}

pub struct App {
    pub shared: Arc<Shared>,
    pub store: Arc<dyn Store>,
    pub logs: LogControl,
    pub bootstrap_token: BootstrapToken,
    /// Of this run, among those of a fleet.
    pub node_id: String,
    pub started_at: Timestamp,
    /// `None`: the quickstart, which has no file.
    pub config_file: Option<PathBuf>,
    /// What the process was started with, for the settings that a reload does not change.
    started: Arc<Config>,
    /// Held while a snapshot is built, so that the newer configuration is the one that stays.
    swapping: tokio::sync::Mutex<()>,
    drain: tokio::sync::Notify,
    /// How often others were said to have changed modules, tiers or routes: what was read before may not be so any more.
    pub changes: Arc<AtomicU64>,
    /// What others change is to be taken up.
    changed: Arc<tokio::sync::Notify>,
    /// What the fleet knows of this gateway has changed.
    told: tokio::sync::Notify,
    /// Uploads hold it shared while they store and record; who deletes holds it alone, so that bytes it removes are not
    /// those of an upload under way.
    pub catalogue: tokio::sync::RwLock<()>,
    /// Blobs of a shared store that nothing referred to at the last sweep.
    orphans: parking_lot::Mutex<HashSet<Digest>>,
    unwritten: tokio::sync::Mutex<tickers::Unwritten>,
}

impl Opened {
    /// `compiler_exe`: the wasmgate binary whose hidden verb compiles modules.
    pub async fn open(config: Config, compiler_exe: PathBuf) -> Result<Opened, AppError> {
        let data_dir = &config.data_dir;
        secrets::private_dir(data_dir)
            .map_err(|e| AppError::setting("data_dir", format!("`{}`: {e}", data_dir.display())))?;
        let peppers = secrets::peppers(&config.auth.pepper, data_dir)?;
        let store = open::open(&config, &peppers).await?;
        let auth = Authenticator::new(
            store.clone(),
            peppers,
            cache::Settings {
                key_fresh: config.auth.key_fresh,
                key_max_stale: config.auth.key_max_stale,
                absent_ttl: config.auth.absent_ttl,
                entries: config.auth.cache_entries,
            },
        );
        let bootstrap_token = secrets::bootstrap_token(&config.admin.token_file, &auth)?;
        let engine = Engine::new(engine::Settings {
            data_dir: data_dir.clone(),
            artifact_key: secrets::artifact_key(data_dir)?,
            compiler_exe,
            config: config.engine.clone(),
        })
        .map_err(|e| AppError::setting("engine", e))?;
        engine.set_origin(Arc::new(catalogue::Blobs(store.clone())));
        let limiter = match store.buckets() {
            Some(buckets) => Limiter::in_fleet(MAX_SUBJECTS, buckets),
            None => Limiter::new(MAX_SUBJECTS),
        };
        limiter.restore(store.load_counters().await?, Now::read());
        Ok(Opened { config: Arc::new(config), store, auth, engine, limiter, bootstrap_token })
    }

    /// Builds the first snapshot. Listens to nothing yet.
    pub async fn start(self, config_file: Option<PathBuf>, logs: LogControl) -> Result<Arc<App>, AppError> {
        let Opened { config, store, auth, engine, limiter, bootstrap_token } = self;
        let metrics = Metrics::new();
        // A shared store says otherwise until it is followed.
        metrics.store_link_up.set(i64::from(config.store.redis.is_none()));
        let compiles = metrics.clone();
        engine.observe_compiles(Box::new(move |compiler, took| compiles.compiled(compiler.as_str(), took)));
        let (snapshot, routes) = first_snapshot(&config, &*store, config_file.as_deref(), &metrics).await?;
        let usage = Arc::new(UsageRecorder::default());
        let unwritten = tickers::Unwritten::open(&config.data_dir, config.store.redis.is_some(), &usage)?;
        kept_routes::write(&snapshot.config).await;
        let shared = Shared::new(snapshot.clone(), auth, limiter, engine, metrics, usage, store.clone());
        shared.set_routes_of_disk(routes.are_of_disk);
        warm_later(&shared, snapshot, None);
        let app = Arc::new(App {
            shared,
            store,
            logs,
            bootstrap_token,
            node_id: Node::new_id()?,
            started_at: Timestamp::now(),
            config_file,
            started: config,
            swapping: tokio::sync::Mutex::new(()),
            drain: tokio::sync::Notify::new(),
            changes: Arc::default(),
            changed: Arc::default(),
            told: tokio::sync::Notify::new(),
            catalogue: tokio::sync::RwLock::new(()),
            orphans: parking_lot::Mutex::default(),
            unwritten: tokio::sync::Mutex::new(unwritten),
        });
        app.refuse(routes.refused);
        follow::begin(&app);
        Ok(app)
    }
}

/// With the routes of the file; or with those that were pushed, if they can be used here, and with none otherwise.
async fn first_snapshot(
    own: &Arc<Config>,
    store: &dyn Store,
    file: Option<&Path>,
    metrics: &Arc<Metrics>,
) -> Result<(Arc<Snapshot>, AtStart), AppError> {
    let (config, mut routes) = pushed::at_start((**own).clone(), store, file).await?;
    let config = Arc::new(config);
    let built = match build_snapshot(config.clone(), store, None, metrics).await {
        Err(error @ (AppError::Setting { .. } | AppError::Config(_))) if config.pushed.is_some() => {
            routes.refused = config.pushed.as_ref().map(|pushed| pushed::refused(pushed.version, &error));
            build_snapshot(own.clone(), store, None, metrics).await?
        }
        built => built?,
    };
    Ok((built.snapshot, routes))
}

impl App {
    /// See [`Opened`]; both of its steps.
    pub async fn open(
        config: Config,
        config_file: Option<PathBuf>,
        logs: LogControl,
        compiler_exe: PathBuf,
    ) -> Result<Arc<App>, AppError> {
        Opened::open(config, compiler_exe).await?.start(config_file, logs).await
    }

    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.shared.snapshot.load_full()
    }

    pub fn config(&self) -> Arc<Config> {
        self.snapshot().config.clone()
    }

    pub fn tier(&self, name: &Name) -> Option<Arc<Tier>> {
        self.snapshot().tier(name).cloned()
    }

    /// The route that uses a module by one of these selectors, if one does.
    pub fn route_using(&self, owner: &OwnerId, name: &Name, by: impl Fn(Selector) -> bool) -> Option<Name> {
        let snapshot = self.snapshot();
        let uses = |handler: &config::Handler| {
            handler.owner == *owner && handler.module.name == *name && by(handler.module.selector)
        };
        let of_route = |route: &&config::Route| snapshot::handlers(route).any(uses);
        snapshot.config.routes.iter().find(of_route).map(|route| route.name.clone())
    }

    /// One line of the audit log. The change has been made by now, so a failed write is logged whole instead.
    pub async fn audit(&self, actor: String, action: &str, subject: String, detail: String) {
        let entry = AuditEntry { at: Timestamp::now(), actor, action: action.to_owned(), subject, detail };
        // Too few replicas have the change itself as well, which is told.
        let (written, _) = told_apart(self.store.append_audit(&entry)).await;
        if let Err(error) = written {
            tracing::error!(%error, actor = entry.actor, action = entry.action, subject = entry.subject,
                detail = entry.detail, "a change is missing in the audit log");
        }
    }

    /// Asks the serve command to drain and stop, as SIGTERM does.
    pub fn ask_drain(&self) {
        self.drain.notify_one();
    }

    pub async fn drain_asked(&self) {
        self.drain.notified().await;
    }
}
