//! Wires the layers into one running gateway, and holds what changes while it runs: the snapshot.
//!
//! Invariant: a new snapshot is taken whole or not at all; requests under way keep theirs.

pub mod secrets;
pub mod tickers;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use crate::auth::cache::{self, Authenticator};
use crate::config::{self, Config, ConfigErrors};
use crate::domain::{KeyHash, Name, OwnerId, Selector, Tier};
use crate::engine::{self, Engine};
use crate::gateway::snapshot::{self, Parts};
use crate::gateway::{Shared, Snapshot};
use crate::limit::limiter::{Limiter, Now};
use crate::limit::usage::UsageRecorder;
use crate::store::embedded::EmbeddedStore;
use crate::store::{Store, StoreError};
use crate::telemetry::{LogControl, Metrics};

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

pub struct App {
    pub shared: Arc<Shared>,
    pub store: Arc<dyn Store>,
    pub logs: LogControl,
    /// Hash of the bootstrap admin token's text, which its file holds.
    pub bootstrap_token: KeyHash,
    /// `None`: the quickstart, which has no file.
    pub config_file: Option<PathBuf>,
    /// Held while a snapshot is built, so that the newer configuration is the one that stays.
    swapping: tokio::sync::Mutex<()>,
    drain: tokio::sync::Notify,
}

impl App {
    /// Opens everything that the data directory holds and builds the first snapshot. Listens to nothing yet.
    /// `compiler_exe`: the wasmgate binary whose hidden verb compiles modules.
    pub async fn open(
        config: Config,
        config_file: Option<PathBuf>,
        logs: LogControl,
        compiler_exe: PathBuf,
    ) -> Result<Arc<App>, AppError> {
        let data_dir = &config.data_dir;
        secrets::private_dir(data_dir)
            .map_err(|e| AppError::setting("data_dir", format!("`{}`: {e}", data_dir.display())))?;
        let store: Arc<dyn Store> = Arc::new(EmbeddedStore::open(&data_dir.join("wasmgate.redb"))?);
        let peppers = secrets::peppers(&config.auth.pepper, data_dir)?;
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
        let limiter = Limiter::new(MAX_SUBJECTS);
        limiter.restore(store.load_counters().await?, Now::read());
        let metrics = Metrics::new();
        metrics.store_up.set(1);
        let compiles = metrics.clone();
        engine.observe_compiles(Box::new(move |compiler, took| compiles.compiled(compiler.as_str(), took)));
        let snapshot = build_snapshot(Arc::new(config), &*store, None, &metrics).await?;
        let shared = Shared::new(snapshot, auth, limiter, engine, metrics, Arc::new(UsageRecorder::default()));
        Ok(Arc::new(App {
            shared,
            store,
            logs,
            bootstrap_token,
            config_file,
            swapping: tokio::sync::Mutex::new(()),
            drain: tokio::sync::Notify::new(),
        }))
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

    /// Reads the configuration file again and swaps the snapshot; on an error nothing changes.
    pub async fn reload(&self) -> Result<(), AppError> {
        let Some(file) = &self.config_file else {
            return self.refresh().await;
        };
        let config = Arc::new(config::load_file(file)?);
        let _turn = self.swapping.lock().await;
        self.check_unchanged(&config)?;
        self.shared.reload_certificates().map_err(|errors| AppError::setting("server.listeners", errors.join("; ")))?;
        self.swap(config).await
    }

    /// Builds the snapshot anew from the same configuration: after a module was activated or a tier changed.
    pub async fn refresh(&self) -> Result<(), AppError> {
        let _turn = self.swapping.lock().await;
        self.swap(self.config()).await
    }

    async fn swap(&self, config: Arc<Config>) -> Result<(), AppError> {
        let before = self.snapshot();
        let next = build_snapshot(config, &*self.store, Some(&before), &self.shared.metrics).await?;
        self.shared.snapshot.store(next);
        Ok(())
    }

    /// What is opened once at start cannot change under a running process; saying so beats ignoring it.
    fn check_unchanged(&self, new: &Config) -> Result<(), AppError> {
        let old = self.config();
        let addresses = |c: &Config| c.server.listeners.iter().map(|l| (l.address, l.h2c)).collect::<Vec<_>>();
        let restart = "this needs a restart; nothing was changed";
        if addresses(&old) != addresses(new) {
            return Err(AppError::setting("server.listeners", restart));
        }
        if old.admin.address != new.admin.address {
            return Err(AppError::setting("admin.address", restart));
        }
        if old.data_dir != new.data_dir {
            return Err(AppError::setting("data_dir", restart));
        }
        Ok(())
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

    /// Asks the serve command to drain and stop, as SIGTERM does.
    pub fn ask_drain(&self) {
        self.drain.notify_one();
    }

    pub async fn drain_asked(&self) {
        self.drain.notified().await;
    }
}

/// Configured tiers under the store's overrides; each handler's selector resolved to a version.
async fn build_snapshot(
    config: Arc<Config>,
    store: &dyn Store,
    before: Option<&Snapshot>,
    metrics: &Arc<Metrics>,
) -> Result<Arc<Snapshot>, AppError> {
    let mut tiers: HashMap<Name, Arc<Tier>> =
        config.tiers.iter().map(|t| (t.name.clone(), Arc::new(t.clone()))).collect();
    for tier in store.tiers().await? {
        if tiers.get(&tier.name).is_some_and(|configured| **configured != tier) {
            tracing::warn!(tier = %tier.name, "the tier is as it was set through the admin API, not as configured");
        }
        tiers.insert(tier.name.clone(), Arc::new(tier));
    }
    let mut modules = HashMap::new();
    for handler in config.routes.iter().flat_map(snapshot::handlers) {
        let key = snapshot::module_key(handler);
        let found = store.module(&key.0, &handler.module.name).await?;
        let version = found.as_ref().and_then(|m| m.select(handler.module.selector)).cloned();
        if version.is_none() {
            tracing::warn!(
                owner = %key.0, module = %key.1,
                "a route's handler is not stored yet; upload it with `wasmgate module push`"
            );
        }
        modules.insert(key, version);
    }
    let parts = Parts { config, tiers, modules: &modules, previous: before, metrics };
    Snapshot::build(parts).await.map_err(|e| AppError::Setting { key: e.key, message: e.message })
}
