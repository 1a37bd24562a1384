//! What a request sees of the configuration: immutable, swapped whole, kept by a request until its end.

use std::collections::HashMap;
use std::sync::Arc;

use pingora::connectors::ConnectorOptions;
use pingora::connectors::http::Connector;

use super::route_handler::RouteHandler;
use super::routes::Routes;
use super::upstream::{Upstream, UpstreamError};
use crate::config::{self, Config, Target};
use crate::domain::{LimitsChange, ModuleRef, ModuleVersion, Name, OwnerId, Tier};
use crate::telemetry::{Metrics, RouteMetrics, TierMetrics};

/// Resolved before a snapshot is built: which version each handler's selector means now.
pub type ResolvedModules = HashMap<(OwnerId, String), Module>;

#[derive(Clone, Debug)]
pub enum Module {
    Stored(Box<Resolved>),
    /// The route answers 500 `handler-not-loadable` until a module of that name is uploaded.
    Missing,
    /// The store could not be asked; the route answers 503 `store-unavailable` until it was.
    Unread,
}

impl Module {
    pub fn stored(&self) -> Option<&Resolved> {
        match self {
            Module::Stored(resolved) => Some(resolved),
            Module::Missing | Module::Unread => None,
        }
    }
}

/// What a handler's selector means.
#[derive(Clone, Debug)]
pub struct Resolved {
    pub version: ModuleVersion,
    /// The module's own.
    pub limits: LimitsChange,
}

/// The label in metrics and logs of a request that no route took.
pub const NO_ROUTE: &str = "none";

pub struct Snapshot {
    pub config: Arc<Config>,
    pub tiers: HashMap<Name, Arc<Tier>>,
    /// As they were when it was built.
    pub modules: ResolvedModules,
    /// Counts up with every swap.
    pub generation: u64,
    pub(super) routes: Routes,
    /// In the order of the configuration.
    pub(super) states: Vec<Arc<RouteState>>,
    pub(super) upstreams: HashMap<Name, Arc<Upstream>>,
    /// Connects for health checks, which keep no connections.
    prober: Arc<Connector>,
    pub(super) unmatched: RouteMetrics,
    pub(super) anonymous: Option<Arc<Tier>>,
    /// By tier: few enough that looking at each is the quickest way.
    tier_metrics: Vec<(Arc<Tier>, TierMetrics)>,
}

/// A route with everything that needs no request to be known.
pub(super) struct RouteState {
    pub index: usize,
    pub metrics: RouteMetrics,
    pub action: Action,
    pub handlers: Vec<Arc<RouteHandler>>,
    /// The least tier.
    pub needs: Option<Arc<Tier>>,
}

pub(super) enum Action {
    Upstream(Arc<Upstream>),
    Guest(Arc<RouteHandler>),
    Api,
    /// Health, a redirect or a fixed answer.
    Own,
}

/// What a snapshot is made from.
pub struct Parts<'a> {
    pub config: Arc<Config>,
    pub tiers: HashMap<Name, Arc<Tier>>,
    pub modules: ResolvedModules,
    /// The snapshot to take living VMs, upstream health and connections over from.
    pub previous: Option<&'a Snapshot>,
    pub metrics: &'a Arc<Metrics>,
}

/// Where a handler's module is found in [`ResolvedModules`]: the owner, and `name[@version]`.
pub fn module_key(handler: &config::Handler) -> (OwnerId, String) {
    let bare = ModuleRef { owner: None, ..handler.module.clone() };
    (handler.owner.clone(), bare.to_string())
}

/// Every handler of a route, the one that answers included.
pub fn handlers(route: &config::Route) -> impl Iterator<Item = &config::Handler> {
    let answering = match &route.target {
        Target::Handler(handler) => Some(&**handler),
        _ => None,
    };
    route.handlers.iter().chain(answering)
}

impl Snapshot {
    /// Resolves upstream names and starts health checks, so it needs a runtime that outlives the snapshot.
    pub async fn build(parts: Parts<'_>) -> Result<Arc<Self>, UpstreamError> {
        let Parts { config, tiers, modules, previous, metrics } = parts;
        let prober = match previous {
            Some(previous) => previous.prober.clone(),
            None => Arc::new(Connector::new(Some(ConnectorOptions::new(1)))),
        };
        let mut upstreams = HashMap::with_capacity(config.upstreams.len());
        for (i, upstream) in config.upstreams.iter().enumerate() {
            let known = previous.and_then(|p| p.upstreams.get(&upstream.name));
            let built = Upstream::build(upstream, &format!("upstreams[{i}]"), known, &prober, metrics).await?;
            upstreams.insert(upstream.name.clone(), built);
        }
        let known: HashMap<&Name, &RouteState> = previous
            .map(|p| p.states.iter().map(|s| (&p.config.routes[s.index].name, &**s)).collect())
            .unwrap_or_default();
        // Of versions that stay in use; one that comes back begins anew.
        let mut breakers: HashMap<_, _> = previous
            .map(|p| p.route_handlers().map(|h| (h.label.clone(), h.breaker.clone())).collect())
            .unwrap_or_default();
        let mut states = Vec::with_capacity(config.routes.len());
        for (index, route) in config.routes.iter().enumerate() {
            let known = known.get(&route.name).copied();
            let mut handler = |config: &config::Handler| {
                let module = modules.get(&module_key(config)).cloned().unwrap_or(Module::Missing);
                known
                    .and_then(|s| s.same_handler(config, &module))
                    .unwrap_or_else(|| Arc::new(RouteHandler::new(config.clone(), module, &mut breakers)))
            };
            let action = match &route.target {
                // A checked configuration names upstreams that exist.
                Target::Upstream(name) => {
                    Action::Upstream(upstreams.get(name).cloned().ok_or_else(|| UpstreamError {
                        key: format!("routes[{index}].target.upstream"),
                        message: format!("`{name}` is not an upstream"),
                    })?)
                }
                Target::Handler(config) => Action::Guest(handler(config)),
                Target::Api => Action::Api,
                Target::Health | Target::Redirect { .. } | Target::Respond { .. } => Action::Own,
            };
            states.push(Arc::new(RouteState {
                index,
                metrics: metrics.route(route.name.as_str()),
                action,
                handlers: route.handlers.iter().map(&mut handler).collect(),
                needs: route.tier.as_ref().and_then(|name| tiers.get(name)).cloned(),
            }));
        }
        let anonymous = tiers.iter().find(|(name, _)| name.as_str() == Tier::ANONYMOUS).map(|(_, tier)| tier.clone());
        let tier_metrics = tiers.values().map(|tier| (tier.clone(), metrics.tier(tier.name.as_str()))).collect();
        Ok(Arc::new(Self {
            tier_metrics,
            routes: Routes::compile(&config.routes),
            states,
            upstreams,
            prober,
            unmatched: metrics.route(NO_ROUTE),
            anonymous,
            generation: previous.map_or(1, |p| p.generation + 1),
            config,
            tiers,
            modules,
        }))
    }

    pub fn tier(&self, name: &Name) -> Option<&Arc<Tier>> {
        self.tiers.get(name)
    }

    /// Of a tier that this snapshot gave out.
    pub(super) fn tier_metrics(&self, tier: &Arc<Tier>) -> Option<&TierMetrics> {
        self.tier_metrics.iter().find(|(known, _)| Arc::ptr_eq(known, tier)).map(|(_, metrics)| metrics)
    }

    fn route_handlers(&self) -> impl Iterator<Item = &Arc<RouteHandler>> {
        self.states.iter().flat_map(|state| state.every_handler())
    }

    /// Lets a module that was refused for its failures run again at once.
    pub fn reset_breakers(&self, owner: &OwnerId, name: &Name) {
        for handler in self.route_handlers() {
            if handler.config.module.name == *name && handler.config.owner == *owner {
                handler.breaker.reset();
            }
        }
    }

    /// Of each route, in the order of the configuration, the modules that are not stored.
    pub fn not_stored(&self) -> impl Iterator<Item = Vec<String>> {
        let missing = |h: &&Arc<RouteHandler>| h.is_missing();
        self.states.iter().map(move |s| s.every_handler().filter(missing).map(|h| h.label.to_string()).collect())
    }

    pub(super) fn upstream(&self, name: &Name) -> Option<Arc<Upstream>> {
        self.upstreams.get(name).cloned()
    }

    /// The upstreams by name, for the admin API.
    pub fn upstreams(&self) -> impl Iterator<Item = (&Name, &Upstream)> {
        let mut all: Vec<_> = self.upstreams.iter().map(|(name, upstream)| (name, &**upstream)).collect();
        all.sort_by_key(|(name, _)| *name);
        all.into_iter()
    }
}

impl RouteState {
    /// A handler of this route that has the same module version, limits and configuration: its VMs live on.
    fn same_handler(&self, config: &config::Handler, module: &Module) -> Option<Arc<RouteHandler>> {
        self.every_handler().find(|h| h.is_same(config, module)).cloned()
    }

    pub(super) fn every_handler(&self) -> impl Iterator<Item = &Arc<RouteHandler>> {
        let answering = match &self.action {
            Action::Guest(handler) => Some(handler),
            _ => None,
        };
        self.handlers.iter().chain(answering)
    }
}
