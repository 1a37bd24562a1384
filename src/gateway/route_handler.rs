//! A handler of a route: its module, loaded once; whether it may run now; and what its runs are counted in.
//!
//! Invariant: every run is told to the breaker, the metrics and the usage in [`RouteHandler::record`].

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use tokio::sync::OnceCell;

use super::breaker::{Breaker, Caller, is_crash};
use super::context::Context;
use super::service::Shared;
use super::snapshot::{Module, Resolved, Snapshot};
use crate::config;
use crate::domain::{Abi, GuestFailure, Limits, Meter, ModuleVersion, Name, Phase, Principal, Rejection};
use crate::engine::outside::{Reach, uses_host_api};
use crate::engine::{Assets, Engine, HttpHandler, LoadedModule, ProxyHandler, RunError};
use crate::limit::network;
use crate::telemetry::{Metrics, ModuleMetrics};

/// A handler on a route, or the module that answers one. Its VMs live as long as it does.
pub struct RouteHandler {
    pub config: config::Handler,
    version: Option<ModuleVersion>,
    /// Whether there is a version is not known: the store could not be asked.
    is_unread: bool,
    /// The route's under the module's own.
    pub limits: Limits,
    /// It can ask who calls.
    pub wants_info: bool,
    /// `owner/name@version`; of what is not stored, as the configuration names it.
    pub label: Arc<str>,
    pub breaker: Arc<Breaker>,
    metrics: OnceLock<Arc<ModuleMetrics>>,
    module: OnceCell<Arc<LoadedModule>>,
    assets: OnceCell<Assets>,
    filter: OnceCell<Filter>,
    /// Of a command that uses the gateway's own functions; filters have theirs.
    reach: OnceLock<Arc<Reach>>,
}

/// What has the living VMs of a handler that sees requests in phases.
pub enum Filter {
    Http(Arc<HttpHandler>),
    Proxy(Arc<ProxyHandler>),
}

impl RouteHandler {
    /// `breakers`: those of module versions in use, by label.
    pub fn new(config: config::Handler, module: Module, breakers: &mut HashMap<Arc<str>, Arc<Breaker>>) -> Self {
        let is_unread = matches!(module, Module::Unread);
        let resolved = module.stored();
        let limits = limits(&config, resolved);
        let version = resolved.map(|r| r.version.clone());
        let wants_info = version.as_ref().is_some_and(|v| v.abi == Abi::ProxyWasm || uses_host_api(&v.shape));
        let label: Arc<str> = match &version {
            Some(version) => format!("{}/{}@{}", config.owner, config.module.name, version.version).into(),
            None => config.reference().to_string().into(),
        };
        // What is not stored has no breaker to pass on to the version that will be.
        let breaker = match &version {
            Some(_) => breakers.entry(label.clone()).or_default().clone(),
            None => Arc::default(),
        };
        Self {
            config,
            version,
            is_unread,
            limits,
            wants_info,
            label,
            breaker,
            metrics: OnceLock::new(),
            module: OnceCell::new(),
            assets: OnceCell::new(),
            filter: OnceCell::new(),
            reach: OnceLock::new(),
        }
    }

    pub fn is_same(&self, config: &config::Handler, module: &Module) -> bool {
        let resolved = module.stored();
        self.config == *config
            && self.is_unread == matches!(module, Module::Unread)
            && self.version.as_ref().map(ModuleVersion::identity) == resolved.map(|r| r.version.identity())
            && self.limits == limits(config, resolved)
    }

    pub fn is_stored(&self) -> bool {
        self.version.is_some()
    }

    /// A look at the store has found that it has no such module.
    pub fn is_missing(&self) -> bool {
        self.version.is_none() && !self.is_unread
    }

    /// It sees requests in phases, rather than whole.
    pub fn is_filter(&self) -> bool {
        self.version.as_ref().is_some_and(|version| version.abi.is_filter())
    }

    /// What a command reaches beside its input.
    pub fn reach(&self, engine: &Engine) -> Option<Arc<Reach>> {
        let version = self.version.as_ref().filter(|version| uses_host_api(&version.shape));
        let make = || engine.reach_of(self.label.clone(), &self.config, self.limits.input_bytes);
        version.map(|_| self.reach.get_or_init(make).clone())
    }

    /// What one run of it needs, if it may run now.
    pub async fn ready(
        &self,
        ctx: &Context,
        shared: &Shared,
    ) -> Result<(&Arc<LoadedModule>, Option<&Assets>), Rejection> {
        self.admit(ctx)?;
        self.load(&shared.engine).await.map_err(|error| self.not_loaded(ctx, shared, error))
    }

    /// Of a filter its VMs, as [`Self::ready`].
    pub async fn ready_filter(&self, ctx: &Context, shared: &Shared) -> Result<&Filter, Rejection> {
        self.admit(ctx)?;
        if let Some(filter) = self.filter.get() {
            return Ok(filter);
        }
        Box::pin(self.load_filter(&shared.engine)).await.map_err(|error| self.not_loaded(ctx, shared, error))
    }

    /// Refuses at once what can't be known yet, and while its module does nothing but fail.
    fn admit(&self, ctx: &Context) -> Result<(), Rejection> {
        if self.is_unread {
            return Err(Rejection::StoreUnavailable);
        }
        let admitted = self.breaker.admit(Instant::now(), || caller(ctx));
        admitted.map_err(|retry_after| Rejection::HandlerUnavailable { retry_after })
    }

    /// Its module and its files, loaded by the first request that needs them; further ones wait for the same load.
    async fn load(&self, engine: &Arc<Engine>) -> Result<(&Arc<LoadedModule>, Option<&Assets>), RunError> {
        let Some(version) = &self.version else {
            let reason = format!("`{}` is not stored", self.config.module);
            return Err(GuestFailure::NotLoadable(reason).into());
        };
        let load = || engine.load(Some(&self.config.owner), version.digest, version.abi, &version.shape);
        let module = self.module.get_or_try_init(load).await?;
        let Some(bundle) = &version.assets else { return Ok((module, None)) };
        let assets = self.assets.get_or_try_init(|| engine.assets(bundle)).await?;
        Ok((module, Some(assets)))
    }

    async fn load_filter(&self, engine: &Arc<Engine>) -> Result<&Filter, RunError> {
        let make = || async {
            let (module, assets) = self.load(engine).await?;
            let is_proxy = module.abi() == Abi::ProxyWasm;
            let (module, assets, label) = (module.clone(), assets.cloned(), self.label.clone());
            let limits = self.limits.clone();
            Ok(if is_proxy {
                Filter::Proxy(ProxyHandler::new(engine, module, assets, label, &self.config, limits))
            } else {
                Filter::Http(HttpHandler::new(engine, module, assets, label, &self.config, limits))
            })
        };
        self.filter.get_or_try_init(make).await
    }

    /// Loads what the first request would, and starts one VM of a filter.
    async fn warm(&self, engine: &Arc<Engine>) -> Result<(), RunError> {
        if !self.is_filter() {
            return self.load(engine).await.map(drop);
        }
        match self.load_filter(engine).await? {
            Filter::Http(http) => http.warm().await,
            Filter::Proxy(proxy) => proxy.warm().await,
        }
    }

    /// Counts a run, or one phase of it.
    pub fn record(&self, ctx: &mut Context, shared: &Shared, phase: Phase, error: Option<&RunError>, meter: &Meter) {
        let failure = match error {
            Some(RunError::Guest(failure)) => Some(failure),
            _ => None,
        };
        if let Some(module) = self.metrics(&shared.metrics) {
            shared.metrics.execution(module, phase, failure, meter);
        }
        if phase != Phase::Response {
            ctx.guests.runs += 1;
            shared.usage.record_runs(&self.config.owner, &self.config.module.name, 1);
        }
        ctx.guests.meter = ctx.guests.meter.and(*meter);
        let outcome = ctx.guests.outcome.get_or_insert("ok");
        if let Some(failure) = failure {
            *outcome = failure.kind();
        }
        match error {
            Some(RunError::Guest(failure)) if is_crash(failure) => self.note_crash(ctx, shared, failure),
            Some(RunError::Busy { .. } | RunError::BadCall(_) | RunError::Unread) => {}
            // A request phase that lets the request pass is half of a run.
            _ if phase == Phase::Request => {}
            _ => self.passed(),
        }
    }

    /// A run ended well.
    pub fn passed(&self) {
        if self.breaker.passed() {
            tracing::info!(handler = %self.label, "the module runs again");
        }
    }

    /// Counts a failure to load that is the module's own.
    fn not_loaded(&self, ctx: &Context, shared: &Shared, error: RunError) -> Rejection {
        if let RunError::Guest(failure) = &error {
            self.note_crash(ctx, shared, failure);
        }
        rejection_of(error)
    }

    fn note_crash(&self, ctx: &Context, shared: &Shared, failure: &GuestFailure) {
        let config = &ctx.snapshot.config.engine.breaker;
        if self.breaker.failed(Instant::now(), caller(ctx), config) {
            if let Some(module) = self.metrics(&shared.metrics) {
                shared.metrics.breaker_opened(module);
            }
            tracing::error!(
                handler = %self.label, last = failure.kind(), failures = config.failures,
                "the module fails again and again: it is refused for a while; activate another version of it"
            );
        }
    }

    fn metrics(&self, metrics: &Metrics) -> Option<&ModuleMetrics> {
        let abi = self.version.as_ref()?.abi;
        Some(self.metrics.get_or_init(|| metrics.module(&self.label, abi)))
    }
}

fn limits(config: &config::Handler, resolved: Option<&Resolved>) -> Limits {
    let route = config.limits();
    match resolved {
        Some(resolved) => resolved.limits.lower(&route),
        None => route,
    }
}

fn caller(ctx: &Context) -> Caller {
    match ctx.principal.as_ref().and_then(Principal::owner) {
        Some(owner) => Caller::Owner(owner.clone()),
        None => Caller::Address(network::caller(ctx.client)),
    }
}

pub fn rejection_of(error: RunError) -> Rejection {
    match error {
        RunError::Guest(failure) => Rejection::Guest(failure),
        // An operator's handler is called by the gateway: a bad call is a module that does not fit.
        RunError::BadCall(detail) => Rejection::Guest(GuestFailure::NotLoadable(detail)),
        RunError::Busy { retry_after } => Rejection::Busy { retry_after },
        RunError::Unread => Rejection::StoreUnavailable,
    }
}

/// A handler that can't start.
#[derive(Clone, Debug)]
pub struct Cold {
    pub route: Name,
    /// `owner/name@version`.
    pub module: Arc<str>,
    pub reason: String,
}

/// How long the handlers of a snapshot may take to start; the rest are started by the first request.
const WARM: Duration = Duration::from_secs(10);

/// Warms the handlers that `before` did not have, so that what is wrong with them is known before a request comes. Gives
/// those that failed.
pub async fn warm(snapshot: &Snapshot, before: Option<&Snapshot>, engine: &Arc<Engine>) -> Vec<Cold> {
    let known: HashSet<usize> = before.into_iter().flat_map(all).map(|(_, h)| Arc::as_ptr(h).addr()).collect();
    let mut cold = Vec::new();
    let work = async {
        for (route, handler) in all(snapshot) {
            if !handler.is_stored() || known.contains(&Arc::as_ptr(handler).addr()) {
                continue;
            }
            match handler.warm(engine).await {
                Ok(()) => {}
                // Not the module's fault, and the next one would fare no better.
                Err(RunError::Busy { .. } | RunError::Unread) => break,
                Err(error) => {
                    let (module, reason) = (handler.label.clone(), rejection_of(error).detail());
                    cold.push(Cold { route: route.clone(), module, reason });
                }
            }
        }
    };
    // Too late is no failure: it only is not known yet.
    let _ = tokio::time::timeout(WARM, work).await;
    cold
}

/// Starts a handler as its route would, and lets it go. The error: why it can't; what is not known in time is none.
pub async fn try_out(config: &config::Handler, resolved: Resolved, engine: &Arc<Engine>) -> Result<(), String> {
    let handler = RouteHandler::new(config.clone(), Module::Stored(resolved.into()), &mut HashMap::new());
    match tokio::time::timeout(WARM, handler.warm(engine)).await {
        Ok(Err(error @ (RunError::Guest(_) | RunError::BadCall(_)))) => Err(rejection_of(error).detail()),
        _ => Ok(()),
    }
}

fn all(snapshot: &Snapshot) -> impl Iterator<Item = (&Name, &Arc<RouteHandler>)> {
    snapshot.states.iter().flat_map(|state| {
        let route = &snapshot.config.routes[state.index].name;
        state.every_handler().map(move |handler| (route, handler))
    })
}
