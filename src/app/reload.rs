//! From a configuration to the snapshot in force: at start, at a reload, and after a module or a tier changed.
//!
//! Invariant: a reload leaves one line in the log and one in the audit log, whoever asked for it and whatever came of it.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use super::open::does_without;
use super::{App, AppError, files, kept_routes};
use crate::config::{Config, ConfigError, Handler, HandlerFail, Route, restart};
use crate::domain::{Abi, ModuleVersion, Name, OwnerId, Selector, Tier};
use crate::engine::{Engine, abi};
use crate::gateway::snapshot::{self, Module, Parts, Resolved, ResolvedModules};
use crate::gateway::{Shared, Snapshot, try_out, warm};
use crate::store::{Store, StoreError};
use crate::telemetry::Metrics;

/// A new configuration is in force.
#[derive(Clone, Debug)]
pub struct Reloaded {
    pub generation: u64,
    /// Settings whose new values count from the next start on.
    pub waiting: Vec<&'static str>,
    pub warnings: Vec<ConfigError>,
}

/// What a configuration asks of the modules that are stored.
#[derive(Debug, Default)]
pub struct ModuleCheck {
    /// Why a reload would refuse it.
    pub errors: Vec<ConfigError>,
    /// Modules that are not stored.
    pub missing: Vec<ConfigError>,
    /// Settings without effect.
    pub warnings: Vec<ConfigError>,
}

impl App {
    /// Reads the configuration file again and takes it into use; on an error nothing changes. `by`: who asked.
    pub async fn reload(&self, by: &str) -> Result<Reloaded, AppError> {
        let result = self.try_reload().await;
        let detail = match &result {
            Ok(Reloaded { generation, waiting, .. }) => {
                let waiting = waiting.join("`, `");
                let rest = if waiting.is_empty() { waiting } else { format!("; a restart is needed for `{waiting}`") };
                tracing::info!(by, generation, "configuration reloaded{rest}");
                format!("generation {generation}{rest}")
            }
            Err(error) => {
                tracing::error!(by, "configuration not reloaded, nothing was changed:\n{error}");
                format!("refused: {}", first_line(error))
            }
        };
        let file = self.config_file.as_ref().map(|file| file.display().to_string()).unwrap_or_default();
        self.audit(by.to_owned(), "config.reload", file, detail).await;
        result
    }

    async fn try_reload(&self) -> Result<Reloaded, AppError> {
        let Some(file) = self.config_file.clone() else {
            return Err(AppError::setting("config", "the gateway runs without a configuration file"));
        };
        let shown = file.display().to_string();
        let config = tokio::task::spawn_blocking(move || files::load(&file)).await;
        let config = config.map_err(|e| AppError::setting("config", e))??;
        let _turn = self.swapping.lock().await;
        let config = Arc::new(self.keep_routes(config).await?);
        let certificates = self.shared.read_certificates(&config);
        let certificates = certificates.map_err(|errors| AppError::setting("server.listeners", errors.join("; ")))?;
        let before = self.snapshot();
        let Built { snapshot: next, warnings: of_modules } = self.rebuild(config.clone(), &before).await?;
        start_all(&next, &before, &self.shared.engine).await?;
        let lost = self.lost_tiers(&config).await.unwrap_or_else(|error| {
            tracing::warn!(%error, "nobody knows whether living keys have tiers that are missing");
            Vec::new()
        });
        // Nothing fails from here on. An operator's own level stays, unless the file now has another one.
        if config.log.level != before.config.log.level
            && let Err(error) = self.logs.set(&config.log.level)
        {
            tracing::error!(error, "the log level stays as it was");
        }
        let generation = next.generation;
        self.shared.take_up(next, certificates);
        kept_routes::write(&config).await;
        for warning in config.warnings.iter().chain(&lost) {
            tracing::warn!("{}", warning.in_file(&shown));
        }
        let warnings = config.warnings.iter().cloned().chain(of_modules).chain(lost).collect();
        // What a newer version of pushed routes lacked may be there now.
        if let Err(error) = self.follow_routes().await {
            tracing::warn!(%error, "newer routes, if there are some, are not taken up yet");
        }
        Ok(Reloaded { generation, waiting: restart::waiting(&self.started, &config), warnings })
    }

    /// With what the store has. Where it can't be asked, with what is known of that, so that a gateway can be changed in an outage.
    async fn rebuild(&self, config: Arc<Config>, before: &Snapshot) -> Result<Built, AppError> {
        let metrics = &self.shared.metrics;
        match build_snapshot(config.clone(), &*self.store, Some(before), metrics).await {
            Err(AppError::Store(error @ (StoreError::Unavailable(_) | StoreError::Lost(_)))) => {
                let mut known = Found::known(&config, Some(before));
                known.check.warnings.insert(0, as_before(&error));
                let built = build_with(config, known, Some(before), metrics).await?;
                // Whether or not it was noticed that the store was away.
                self.changed.notify_one();
                Ok(built)
            }
            built => built,
        }
    }

    /// What a reload with this configuration would refuse or warn of, as to modules.
    pub async fn check_modules(&self, config: &Config) -> Result<ModuleCheck, StoreError> {
        let Found { modules, mut check, .. } = Found::asked(config, &*self.store).await?;
        if check.errors.is_empty() {
            for used in uses(config) {
                let module = modules.get(&snapshot::module_key(used.handler));
                if let Some(resolved) = module.and_then(Module::stored).cloned() {
                    check.errors.extend(used.start(resolved, &self.shared.engine).await.err());
                }
            }
        }
        Ok(check)
    }

    /// Builds the snapshot anew: from newer routes if some were pushed, else from the same configuration, after a module was
    /// activated or a tier changed.
    pub async fn refresh(&self) -> Result<(), AppError> {
        let _turn = self.swapping.lock().await;
        if self.follow_routes().await? {
            return Ok(());
        }
        let before = self.snapshot();
        let next = build_snapshot(self.config(), &*self.store, Some(&before), &self.shared.metrics).await?.snapshot;
        self.shared.snapshot.store(next.clone());
        warm_later(&self.shared, next, Some(before));
        Ok(())
    }

    /// Whether the routes that a version of a module would serve can use it, before it is stored (its number is 0) or
    /// activated. What no route can use must not get there: the next start would refuse it.
    pub async fn fits(
        &self,
        owner: &OwnerId,
        name: &Name,
        version: &ModuleVersion,
        activate: bool,
    ) -> Result<(), AppError> {
        let config = self.config();
        let stored = self.store.module(owner, name).await?;
        let limits = stored.as_ref().map(|m| m.limits.clone()).unwrap_or_default();
        let is_free = |number| stored.as_ref().is_none_or(|m| m.select(Selector::Version(number)).is_none());
        for used in uses(&config).filter(|u| u.handler.module.name == *name && u.handler.owner == *owner) {
            let taken = match used.handler.module.selector {
                Selector::Active => activate || stored.is_none(),
                Selector::Version(number) => number == version.version || version.version == 0 && is_free(number),
            };
            if taken {
                used.check(version).map_err(unusable)?;
                let resolved = Resolved { version: version.clone(), limits: limits.clone() };
                used.start(resolved, &self.shared.engine).await.map_err(unusable)?;
            }
        }
        Ok(())
    }
}

/// The first of the errors, and how many there are.
pub(super) fn first_line(error: &AppError) -> String {
    match error {
        AppError::Config(errors) => {
            let more = errors.errors.len().saturating_sub(1);
            let first = errors.errors.first().map(|e| e.in_file(&errors.file)).unwrap_or_default();
            if more == 0 { first } else { format!("{first} (and {more} more)") }
        }
        other => other.to_string(),
    }
}

/// A module in the configuration.
struct Use<'a> {
    route: &'a Route,
    handler: &'a Handler,
    key: String,
    answers: bool,
}

fn uses(config: &Config) -> impl Iterator<Item = Use<'_>> {
    config.routes.iter().enumerate().flat_map(|(r, route)| {
        snapshot::handlers(route).enumerate().map(move |(h, handler)| {
            let answers = h == route.handlers.len();
            let place = if answers { "target.handler".to_owned() } else { format!("handlers[{h}]") };
            Use { route, handler, key: format!("routes[{r}].{place}.module"), answers }
        })
    })
}

impl Use<'_> {
    fn check(&self, version: &ModuleVersion) -> Result<(), ConfigError> {
        abi::serves(version.abi, &version.shape, self.answers).map_err(|why| self.refused(why))
    }

    fn refused(&self, why: impl fmt::Display) -> ConfigError {
        let (owner, name) = (&self.handler.owner, &self.handler.module.name);
        let message = format!("the route `{}` can't use this version of `{owner}/{name}`: {why}", self.route.name);
        ConfigError { key: self.key.clone(), line: 0, message }
    }

    /// Whether it starts, of a handler that begins before its first request.
    async fn start(&self, resolved: Resolved, engine: &Arc<Engine>) -> Result<(), ConfigError> {
        if !resolved.version.abi.is_filter() {
            return Ok(());
        }
        try_out(self.handler, resolved, engine).await.map_err(|why| self.refused(why))
    }

    fn missing(&self) -> ConfigError {
        let (module, meanwhile) = (self.handler.reference(), self.meanwhile(500));
        let message = format!(
            "the route `{}` uses `{module}`, which is not stored yet: {meanwhile}; upload it with \
             `wasmgate module push`, or correct the name",
            self.route.name
        );
        ConfigError { key: self.key.clone(), line: 0, message }
    }

    fn unread(&self) -> ConfigError {
        let (route, module, meanwhile) = (&self.route.name, self.handler.reference(), self.meanwhile(503));
        let message = format!("the route `{route}` uses `{module}`, of which the store has to tell first: {meanwhile}");
        ConfigError { key: self.key.clone(), line: 0, message }
    }

    /// What becomes of requests.
    fn meanwhile(&self, status: u16) -> String {
        match self.handler.fail {
            HandlerFail::Closed => format!("its requests get {status}"),
            HandlerFail::Open => "its requests go on without it (`fail = \"open\"`)".into(),
        }
    }

    /// Settings that the module's ABI does not look at.
    fn idle(&self, abi: Abi) -> Option<ConfigError> {
        let mut keys: Vec<&str> = Vec::new();
        if abi != Abi::ProxyWasm {
            keys.extend(self.handler.proxy.set());
        }
        if abi == Abi::Core && !self.handler.env.is_empty() {
            keys.push("env");
        }
        let (module, shown) = (self.handler.reference(), keys.join("`, `"));
        let message = format!(
            "the route `{}` uses `{module}` of the ABI `{abi}`, where `{shown}` has no effect; remove it",
            self.route.name
        );
        (!keys.is_empty()).then(|| ConfigError { key: self.key.clone(), line: 0, message })
    }
}

fn unusable(error: ConfigError) -> AppError {
    AppError::Setting { key: error.key, message: error.message }
}

/// Starts the new handlers, all of which have to.
pub(super) async fn start_all(next: &Snapshot, before: &Snapshot, engine: &Arc<Engine>) -> Result<(), AppError> {
    match warm(next, Some(before), engine).await.into_iter().next() {
        None => Ok(()),
        Some(cold) => {
            let message = format!("the route `{}` can't use `{}`: {}", cold.route, cold.module, cold.reason);
            Err(AppError::setting("routes", message))
        }
    }
}

/// Starts the new handlers ahead of their first request. A guest can't keep the gateway from starting by failing to
/// start itself, so that is only told.
pub(super) fn warm_later(shared: &Arc<Shared>, next: Arc<Snapshot>, before: Option<Arc<Snapshot>>) {
    let engine = shared.engine.clone();
    tokio::spawn(async move {
        for cold in warm(&next, before.as_deref(), &engine).await {
            tracing::error!(route = %cold.route, module = %cold.module, reason = cold.reason,
                "a route's module can't start: its requests fail");
        }
    });
}

pub(super) struct Built {
    pub snapshot: Arc<Snapshot>,
    /// What modules have to do with it; it has been logged.
    warnings: Vec<ConfigError>,
}

fn as_before(error: &StoreError) -> ConfigError {
    let message = format!("tiers that were set through the admin API, and modules, are as of before: {error}");
    ConfigError { key: "store".into(), line: 0, message }
}

/// What there is beside the configuration.
struct Found {
    /// Overrides of configured tiers.
    tiers: Vec<Tier>,
    modules: ResolvedModules,
    check: ModuleCheck,
}

impl Found {
    async fn asked(config: &Config, store: &dyn Store) -> Result<Self, StoreError> {
        let tiers = store.tiers().await?;
        let (mut modules, mut check) = (HashMap::new(), ModuleCheck::default());
        for used in uses(config) {
            let found = store.module(&used.handler.owner, &used.handler.module.name).await?;
            let resolved = found.as_ref().and_then(|m| {
                let version = m.select(used.handler.module.selector)?.clone();
                Some(Box::new(Resolved { version, limits: m.limits.clone() }))
            });
            let module = resolved.map_or(Module::Missing, Module::Stored);
            check.look_at(&used, &module);
            modules.insert(snapshot::module_key(used.handler), module);
        }
        Ok(Self { tiers, modules, check })
    }

    /// Without the store: as the snapshot in use has it.
    fn known(config: &Config, before: Option<&Snapshot>) -> Self {
        let is_override =
            |before: &Snapshot, tier: &Tier| before.config.tiers.iter().all(|configured| configured != tier);
        let tiers = before.into_iter().flat_map(|b| b.tiers.values().filter(|tier| is_override(b, tier)));
        let (mut modules, mut check) = (HashMap::new(), ModuleCheck::default());
        for used in uses(config) {
            let key = snapshot::module_key(used.handler);
            let module = before.and_then(|before| before.modules.get(&key)).cloned().unwrap_or(Module::Unread);
            check.look_at(&used, &module);
            modules.insert(key, module);
        }
        Self { tiers: tiers.map(|tier| (**tier).clone()).collect(), modules, check }
    }
}

impl ModuleCheck {
    fn look_at(&mut self, used: &Use<'_>, module: &Module) {
        match module {
            Module::Stored(resolved) => {
                self.errors.extend(used.check(&resolved.version).err());
                self.warnings.extend(used.idle(resolved.version.abi));
            }
            Module::Missing => self.missing.push(used.missing()),
            Module::Unread => self.warnings.push(used.unread()),
        }
    }
}

/// Configured tiers under the store's overrides; each handler's selector resolved to a version.
pub(super) async fn build_snapshot(
    config: Arc<Config>,
    store: &dyn Store,
    before: Option<&Snapshot>,
    metrics: &Arc<Metrics>,
) -> Result<Built, AppError> {
    let found = match Found::asked(&config, store).await {
        // From the start on, what there was is better.
        Err(error) if before.is_none() && does_without(&config, &error) => Found::known(&config, None),
        found => found?,
    };
    build_with(config, found, before, metrics).await
}

async fn build_with(
    config: Arc<Config>,
    found: Found,
    before: Option<&Snapshot>,
    metrics: &Arc<Metrics>,
) -> Result<Built, AppError> {
    let Found { tiers: overrides, modules, check } = found;
    let mut tiers: HashMap<Name, Arc<Tier>> =
        config.tiers.iter().map(|t| (t.name.clone(), Arc::new(t.clone()))).collect();
    for tier in overrides {
        if tiers.get(&tier.name).is_some_and(|configured| **configured != tier) {
            tracing::warn!(tier = %tier.name, "the tier is as it was set through the admin API, not as configured");
        }
        tiers.insert(tier.name.clone(), Arc::new(tier));
    }
    let ModuleCheck { errors, missing, warnings } = check;
    let warnings = [missing, warnings].concat();
    if let Some(error) = errors.into_iter().next() {
        return Err(unusable(error));
    }
    for ConfigError { key, message, .. } in &warnings {
        tracing::warn!("{key}: {message}");
    }
    let built = Snapshot::build(Parts { config, tiers, modules, previous: before, metrics }).await;
    let snapshot = built.map_err(|e| AppError::Setting { key: e.key, message: e.message })?;
    Ok(Built { snapshot, warnings })
}
