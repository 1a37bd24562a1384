//! The only place where metrics and tracing are registered.
//!
//! Invariant: every label has a bounded set of values (routes and tiers come from configuration, modules are cut at
//! [`MAX_MODULE_LABELS`]); a key, a path or an address is never a label.

mod guests;

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use prometheus::{
    Encoder, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};

use crate::config;
use crate::domain::{Abi, GuestFailure, Meter, Phase};
use crate::engine::guest_metrics::GuestMetrics;
use crate::limit::limiter::FleetFigures;

/// Modules with a label of their own; the rest are counted as `other`.
pub const MAX_MODULE_LABELS: usize = 200;

const METHODS: [&str; 10] = ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT", "other"];
const STATUS_CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// Upper bounds in seconds, from 100 us to 60 s.
const LATENCY: [f64; 15] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 10.0, 60.0];

/// By label and ABI.
type ModuleHandles = HashMap<(Arc<str>, Abi), Arc<ModuleMetrics>>;

pub struct Metrics {
    registry: Registry,
    http_requests: IntCounterVec,
    http_duration: HistogramVec,
    pub active_connections: IntGauge,
    wasm_executions: IntCounterVec,
    wasm_duration: HistogramVec,
    wasm_errors: IntCounterVec,
    wasm_breakers: IntCounterVec,
    wasm_fuel: IntCounter,
    wasm_memory: IntGauge,
    wasm_compile: HistogramVec,
    wasm_instances: IntGaugeVec,
    rate_limit_hits: IntCounterVec,
    rate_limit_violations: IntCounterVec,
    rate_limit_alone: IntCounterVec,
    lease_requests: IntCounterVec,
    lease_link_up: IntGauge,
    auth: [IntCounter; AuthResult::NAMES.len()],
    key_cache: IntGaugeVec,
    store_up: IntGauge,
    store_state: IntGaugeVec,
    /// Set, by one at a time.
    store_forged: Mutex<IntCounter>,
    pub store_link_up: IntGauge,
    pub fleet_nodes: IntGauge,
    routes_version: IntGauge,
    routes_refused: IntGauge,
    store_latency: HistogramVec,
    upstream_requests: IntCounterVec,
    artifacts_rejected: IntGauge,
    artifacts_evicted: IntGauge,
    artifact_disk: IntGauge,
    modules: Mutex<ModuleHandles>,
}

/// The handles of one route, resolved once so that a request touches no label map.
pub struct RouteMetrics {
    requests: Vec<OnceLock<IntCounter>>,
    family: IntCounterVec,
    route: String,
    duration: Histogram,
}

impl RouteMetrics {
    pub fn observe(&self, method: &http::Method, status: u16, took: Duration) {
        let method = METHODS.iter().position(|m| *m == method.as_str()).unwrap_or(METHODS.len() - 1);
        let class = usize::from(status / 100).clamp(1, STATUS_CLASSES.len()) - 1;
        self.requests[method * STATUS_CLASSES.len() + class]
            .get_or_init(|| self.family.with_label_values(&[&self.route, METHODS[method], STATUS_CLASSES[class]]))
            .inc();
        self.duration.observe(took.as_secs_f64());
    }
}

/// How an authentication ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthResult {
    Ok,
    Invalid,
    Anonymous,
    StoreUnavailable,
    TooManyFailures,
}

impl AuthResult {
    /// The labels, in the order of the variants.
    const NAMES: [&str; 5] = ["ok", "invalid", "anonymous", "store_unavailable", "too_many_failures"];
}

/// The handles of one tier.
pub struct TierMetrics {
    checks: IntCounter,
}

impl TierMetrics {
    /// A request was checked against the tier's limits.
    pub fn checked(&self) {
        self.checks.inc();
    }
}

/// The handles of one module under one ABI; a counter is there from the first run that it counts.
pub struct ModuleMetrics {
    abi: Abi,
    label: Arc<str>,
    /// By phase, and whether the run failed.
    runs: [[OnceLock<IntCounter>; 2]; Phase::COUNT],
    duration: Histogram,
}

/// The handles of one upstream.
pub struct UpstreamMetrics {
    classes: [IntCounter; STATUS_CLASSES.len()],
    unanswered: IntCounter,
}

impl UpstreamMetrics {
    /// One attempt; `status` is 0 when there was no answer.
    pub fn attempt(&self, status: u16) {
        match status {
            100..=599 => self.classes[usize::from(status / 100) - 1].inc(),
            _ => self.unanswered.inc(),
        }
    }
}

impl Metrics {
    /// All families of the contract, plus `process_*` and `build_info`.
    pub fn new() -> Arc<Self> {
        let registry = Registry::new();
        // Names and labels below are constants, each registered once.
        const VALID: &str = "metric names are valid and unique";
        let counter = |name: &str, help: &str, labels: &[&str]| {
            let family = IntCounterVec::new(Opts::new(name, help), labels).expect(VALID);
            registry.register(Box::new(family.clone())).expect(VALID);
            family
        };
        let histogram = |name: &str, help: &str, labels: &[&str]| {
            let opts = HistogramOpts::new(name, help).buckets(LATENCY.to_vec());
            let family = HistogramVec::new(opts, labels).expect(VALID);
            registry.register(Box::new(family.clone())).expect(VALID);
            family
        };
        let gauges = |name: &str, help: &str, labels: &[&str]| {
            let family = IntGaugeVec::new(Opts::new(name, help), labels).expect(VALID);
            registry.register(Box::new(family.clone())).expect(VALID);
            family
        };
        let gauge = |name: &str, help: &str| {
            let gauge = IntGauge::new(name, help).expect(VALID);
            registry.register(Box::new(gauge.clone())).expect(VALID);
            gauge
        };
        let build = gauges("build_info", "version of this gateway; always 1", &["version"]);
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        registry
            .register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))
            .expect("the process collector is registered once");
        let wasm_fuel = IntCounter::new("wasm_fuel_total", "fuel units used by guests").expect(VALID);
        registry.register(Box::new(wasm_fuel.clone())).expect(VALID);
        let store_forged = IntCounter::new(
            "store_forged_records_total",
            "records of a shared store that nobody with its record key has written; they count as absent",
        )
        .expect(VALID);
        registry.register(Box::new(store_forged.clone())).expect(VALID);
        let auth = counter("auth_total", "authentications by result", &["result"]);
        Arc::new(Self {
            http_requests: counter("http_requests_total", "requests answered", &["route", "method", "status_class"]),
            http_duration: histogram(
                "http_request_duration_seconds",
                "from the request's head to the answer's end",
                &["route"],
            ),
            active_connections: gauge("active_connections", "client connections open on the proxy listeners"),
            wasm_executions: counter("wasm_executions_total", "runs of guests", &["module", "abi", "phase", "outcome"]),
            wasm_duration: histogram("wasm_execution_duration_seconds", "wall time of a run", &["module", "abi"]),
            wasm_errors: counter("wasm_execution_errors_total", "runs that failed", &["kind"]),
            wasm_breakers: counter(
                "wasm_breaker_opened_total",
                "times that a module was refused on its routes after failures in a row",
                &["module"],
            ),
            wasm_fuel,
            wasm_memory: gauge("wasm_memory_usage_bytes", "linear memory of live guests"),
            wasm_compile: histogram("wasm_compile_duration_seconds", "time to compile a module", &["compiler"]),
            wasm_instances: gauges("wasm_instances", "instances by state", &["module", "state"]),
            rate_limit_hits: counter("rate_limit_hits_total", "requests checked against limits", &["tier"]),
            rate_limit_violations: counter("rate_limit_violations_total", "requests over a limit", &["tier", "policy"]),
            rate_limit_alone: counter(
                "rate_limit_alone_total",
                "requests admitted without the fleet's shared limits, which could not be reached",
                &["mode"],
            ),
            lease_requests: counter("lease_requests_total", "calls for shares of the fleet's limits", &["outcome"]),
            lease_link_up: gauge(
                "lease_link_up",
                "1 while the fleet's limits can be reached; always 1 with the embedded store",
            ),
            auth: AuthResult::NAMES.map(|result| auth.with_label_values(&[result])),
            key_cache: gauges("key_cache", "key cache look-ups by result", &["result"]),
            store_up: gauge("store_up", "1 while the store can be used"),
            store_state: gauges("store_state", "1 for the state that the store is in, as health names it", &["state"]),
            store_link_up: gauge(
                "store_link_up",
                "1 while a shared store tells of what others change; always 1 with the embedded one",
            ),
            fleet_nodes: gauge(
                "fleet_nodes",
                "gateways that share the store, this one included, when it was last asked",
            ),
            store_forged: Mutex::new(store_forged),
            routes_version: gauge(
                "routes_version",
                "version of the pushed routes in use; 0: they are in the file, or there are none",
            ),
            routes_refused: gauge("routes_refused", "1 while the newest pushed routes can't be taken up here"),
            store_latency: histogram("store_latency_seconds", "time of a store operation", &["operation"]),
            upstream_requests: counter(
                "upstream_requests_total",
                "attempts at upstreams",
                &["upstream", "status_class"],
            ),
            artifacts_rejected: gauge("wasm_artifacts_rejected", "artifacts whose MAC did not verify, since start"),
            artifacts_evicted: gauge("wasm_artifacts_evicted", "artifacts deleted to make room, since start"),
            artifact_disk: gauge("wasm_artifact_disk_bytes", "compiled modules on disk"),
            modules: Mutex::default(),
            registry,
        })
    }

    pub fn route(&self, route: &str) -> RouteMetrics {
        RouteMetrics {
            requests: (0..METHODS.len() * STATUS_CLASSES.len()).map(|_| OnceLock::new()).collect(),
            family: self.http_requests.clone(),
            route: route.to_owned(),
            duration: self.http_duration.with_label_values(&[route]),
        }
    }

    /// `module`: `owner/name@version`.
    pub fn module(&self, module: &Arc<str>, abi: Abi) -> Arc<ModuleMetrics> {
        let mut modules = self.modules.lock();
        let key = (module.clone(), abi);
        if let Some(known) = modules.get(&key) {
            return known.clone();
        }
        let named = modules.len() < MAX_MODULE_LABELS;
        let label = if named { module.clone() } else { "other".into() };
        let metrics = Arc::new(ModuleMetrics {
            abi,
            runs: Default::default(),
            duration: self.wasm_duration.with_label_values(&[&*label, abi.as_str()]),
            label,
        });
        if named {
            modules.insert(key, metrics.clone());
        }
        metrics
    }

    /// One run of a guest, however it ended.
    pub fn execution(&self, module: &ModuleMetrics, phase: Phase, failure: Option<&GuestFailure>, meter: &Meter) {
        let outcome = usize::from(failure.is_some());
        let labels = || [&*module.label, module.abi.as_str(), phase.as_str(), ["ok", "error"][outcome]];
        let runs = &module.runs[phase as usize][outcome];
        runs.get_or_init(|| self.wasm_executions.with_label_values(&labels())).inc();
        module.duration.observe(meter.wall.as_secs_f64());
        self.wasm_fuel.inc_by(meter.fuel);
        if let Some(failure) = failure {
            self.wasm_errors.with_label_values(&[failure.kind()]).inc();
        }
    }

    pub fn breaker_opened(&self, module: &ModuleMetrics) {
        self.wasm_breakers.with_label_values(&[&*module.label]).inc();
    }

    pub fn compiled(&self, compiler: &str, took: Duration) {
        self.wasm_compile.with_label_values(&[compiler]).observe(took.as_secs_f64());
    }

    pub fn tier(&self, tier: &str) -> TierMetrics {
        TierMetrics { checks: self.rate_limit_hits.with_label_values(&[tier]) }
    }

    pub fn limit_violated(&self, tier: &str, policy: &str) {
        self.rate_limit_violations.with_label_values(&[tier, policy]).inc();
    }

    pub fn authenticated(&self, result: AuthResult) {
        self.auth[result as usize].inc();
    }

    pub fn store_operation(&self, operation: &'static str, took: Duration) {
        self.store_latency.with_label_values(&[operation]).observe(took.as_secs_f64());
    }

    pub fn upstream(&self, upstream: &str) -> UpstreamMetrics {
        let counter = |class: &str| self.upstream_requests.with_label_values(&[upstream, class]);
        UpstreamMetrics { classes: STATUS_CLASSES.map(counter), unanswered: counter("none") }
    }

    pub fn set_routes(&self, version: u64, is_refused: bool) {
        self.routes_version.set(signed(version));
        self.routes_refused.set(is_refused.into());
    }

    /// Copies the figures that other layers keep themselves; called before a scrape.
    pub fn set_engine(&self, stats: &crate::engine::Stats) {
        self.wasm_memory.set(signed(stats.memory_bytes));
        self.artifacts_rejected.set(signed(stats.artifacts_rejected));
        self.artifacts_evicted.set(signed(stats.artifacts_evicted));
        self.artifact_disk.set(signed(stats.artifact_disk_bytes));
        for (state, n) in [
            ("running", stats.guests_running),
            ("queued", stats.guests_queued),
            ("idle", stats.vms_idle),
            ("busy", stats.vms_busy),
        ] {
            self.wasm_instances.with_label_values(&["all", state]).set(signed(n));
        }
    }

    pub fn set_key_cache(&self, stats: &crate::auth::cache::CacheStats) {
        for (result, n) in
            [("hit", stats.hit), ("miss", stats.miss), ("stale", stats.stale), ("negative", stats.negative)]
        {
            self.key_cache.with_label_values(&[result]).set(signed(n));
        }
    }

    /// `None`: the gateway counts by itself.
    pub fn set_fleet(&self, figures: Option<FleetFigures>) {
        self.lease_link_up.set(i64::from(figures.is_none_or(|figures| figures.is_linked)));
        let Some(figures) = figures else { return };
        let set = |family: &IntCounterVec, label: &str, n: u64| {
            let counter = family.with_label_values(&[label]);
            counter.inc_by(n.saturating_sub(counter.get()));
        };
        for (outcome, n) in [("answered", figures.answered), ("failed", figures.failed), ("late", figures.late)] {
            set(&self.lease_requests, outcome, n);
        }
        for (mode, n) in [("share", figures.share), ("open", figures.open)] {
            set(&self.rate_limit_alone, mode, n);
        }
    }

    pub fn set_store(&self, states: impl IntoIterator<Item = (&'static str, bool)>, is_up: bool, forged: u64) {
        let counter = self.store_forged.lock();
        counter.inc_by(forged.saturating_sub(counter.get()));
        self.store_up.set(i64::from(is_up));
        for (state, is_in) in states {
            self.store_state.with_label_values(&[state]).set(i64::from(is_in));
        }
    }

    /// Prometheus text format 0.0.4.
    /// `guests`: what guests count themselves.
    pub fn render(&self, guests: &GuestMetrics) -> Result<Vec<u8>, prometheus::Error> {
        let mut out = Vec::with_capacity(16 << 10);
        TextEncoder::new().encode(&self.registry.gather(), &mut out)?;
        out.extend_from_slice(guests::render(&guests.snapshot()).as_bytes());
        Ok(out)
    }
}

fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// Changes the log filter of the running process (the admin API's log level).
#[derive(Clone)]
pub struct LogControl(tracing_subscriber::reload::Handle<tracing_subscriber::EnvFilter, tracing_subscriber::Registry>);

impl LogControl {
    /// The filter in force, as text.
    pub fn get(&self) -> String {
        self.0.with_current(ToString::to_string).unwrap_or_default()
    }

    /// The message names what is wrong with the filter.
    pub fn set(&self, filter: &str) -> Result<(), String> {
        let filter = parse_filter(filter)?;
        self.0.reload(filter).map_err(|e| e.to_string())
    }
}

fn parse_filter(filter: &str) -> Result<tracing_subscriber::EnvFilter, String> {
    let filter = config::log_filter(filter)?;
    tracing_subscriber::EnvFilter::builder().parse(&filter).map_err(|e| e.to_string())
}

/// Logs to standard error. Called once, by the serve command.
pub fn init_logs(log: &config::Log) -> Result<LogControl, String> {
    use tracing_subscriber::util::SubscriberInitExt;
    let (subscriber, control) = log_subscriber(log)?;
    subscriber.try_init().map_err(|e| e.to_string())?;
    Ok(control)
}

/// What writes the log, not in force yet, and its control.
pub fn log_subscriber(log: &config::Log) -> Result<(Box<dyn tracing::Subscriber + Send + Sync>, LogControl), String> {
    use tracing_subscriber::layer::SubscriberExt;
    let (filter, handle) = tracing_subscriber::reload::Layer::new(parse_filter(&log.level)?);
    let base = tracing_subscriber::registry().with(filter);
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let subscriber: Box<dyn tracing::Subscriber + Send + Sync> = match log.format {
        config::LogFormat::Json => Box::new(base.with(lines.json().flatten_event(true).with_current_span(false))),
        config::LogFormat::Pretty => {
            Box::new(base.with(lines.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))))
        }
    };
    Ok((subscriber, LogControl(handle)))
}
