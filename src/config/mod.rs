//! Configuration: `raw` is the file as a tree with positions, `check` turns it into [`Config`] and collects every error.
//!
//! Invariant: a `Config` that exists is valid as far as the file alone can tell (names refer to things that exist,
//! numbers are in range, patterns parse). What the machine has to offer (ports, files) is found out at start.

pub mod check;
mod edits;
pub mod files;
pub mod pattern;
mod raw;
pub mod restart;
mod routes;
mod sections;
pub mod store;
mod units;
mod upstreams;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Method};
use ipnet::IpNet;

use crate::domain::{Digest, Limits, ModuleRef, Name, OwnerId, ScopeSet, Tier};

pub use check::{ConfigError, ConfigErrors, known_keys, load_file, parse, pushed_part};
pub use files::{FileUse, Finding, Look};
pub use sections::filter as log_filter;
pub use store::{RoutesFrom, Store};

/// Owner of the modules that a route names without an owner: the operator.
pub const OPERATOR: &str = "wasmgate";

#[derive(Clone, Debug)]
pub struct Config {
    pub server: Server,
    pub admin: Admin,
    pub data_dir: PathBuf,
    pub auth: Auth,
    pub log: Log,
    pub store: Store,
    pub engine: Engine,
    pub tiers: Vec<Tier>,
    pub upstreams: Vec<Upstream>,
    pub routes: Vec<Route>,
    /// What the gateway runs with, and should not for long: an expired certificate.
    pub warnings: Vec<ConfigError>,
    /// Of its text.
    pub digest: Digest,
    /// What `tiers`, `upstreams` and `routes` are from, if not from the file.
    pub pushed: Option<Pushed>,
}

/// A version of the routes that was pushed into the store.
#[derive(Clone, Debug)]
pub struct Pushed {
    pub version: u64,
    pub text: Arc<str>,
    pub digest: Digest,
}

/// What a pushed text says, which is the same on all gateways of a fleet.
#[derive(Clone, Debug)]
pub struct PushedPart {
    pub tiers: Vec<Tier>,
    pub upstreams: Vec<Upstream>,
    pub routes: Vec<Route>,
    pub warnings: Vec<ConfigError>,
}

impl Config {
    /// This gateway's own settings with these routes.
    pub fn with_pushed(&self, pushed: Pushed, part: PushedPart) -> Self {
        let PushedPart { tiers, upstreams, routes, warnings: _ } = part;
        Self { tiers, upstreams, routes, pushed: Some(pushed), ..self.clone() }
    }

    /// Its routes are in the store, and none have been taken up.
    pub fn lacks_routes(&self) -> bool {
        self.store.routes == RoutesFrom::Store && self.pushed.is_none()
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    pub listeners: Vec<Listener>,
    /// In the list of a fleet's nodes; `None`: the machine's.
    pub name: Option<Name>,
    /// Worker threads of the proxy; 0: one a core.
    pub threads: usize,
    pub trusted_proxies: Vec<IpNet>,
    /// From the first byte of a request head to its last.
    pub header_timeout: Duration,
    pub max_header_bytes: usize,
    pub max_header_fields: usize,
    /// Idle time of a kept-alive client connection.
    pub keepalive: Duration,
    /// Between two reads of a request body.
    pub body_timeout: Duration,
    pub max_connections: usize,
    /// In-flight requests get this long after SIGTERM.
    pub drain: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    pub address: SocketAddr,
    pub tls: Option<Tls>,
    /// HTTP/2 with prior knowledge on a plaintext listener.
    pub h2c: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    pub cert_file: PathBuf,
    pub key_file: PathBuf,
}

#[derive(Clone, Debug)]
pub struct Admin {
    pub address: SocketAddr,
    pub tls: Option<Tls>,
    /// The bootstrap admin token; made with mode 0600 when it is missing.
    pub token_file: PathBuf,
    /// `Host` values answered, beside the listening address itself (DNS rebinding).
    pub allowed_hosts: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Auth {
    /// 32 bytes or more; made in the data directory when nothing is configured.
    pub pepper: SecretSource,
    pub key_fresh: Duration,
    pub key_max_stale: Duration,
    pub absent_ttl: Duration,
    pub cache_entries: u64,
    /// Failed authentications an address may make a minute before 429.
    pub failures_per_minute: u32,
}

/// Where a secret comes from. Never the configuration's own text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretSource {
    File(PathBuf),
    Env(String),
    /// A file of this name in the data directory, made at first start with mode 0600.
    Generated(&'static str),
}

#[derive(Clone, Debug)]
pub struct Log {
    pub format: LogFormat,
    /// A `tracing` filter, such as `info` or `wasmgate=debug,info`.
    pub level: String,
    pub access: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Json,
    Pretty,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Engine {
    /// Runs at once, each with a thread; 0: 64 a core, at least 256.
    pub threads: usize,
    /// Runs that may wait to begin.
    pub queue: usize,
    pub queue_timeout: Duration,
    /// Runs at once of one owner; never more than half of them all.
    pub per_owner: usize,
    /// Guest memory of the whole process, half of it for one owner at most; `None`: half of the machine's memory.
    pub memory_budget_bytes: Option<u64>,
    /// Living VMs of one handler.
    pub vms_per_handler: usize,
    /// A living VM is replaced after so many requests.
    pub vm_requests: u64,
    /// Of one handler, a second.
    pub guest_log_lines: u32,
    /// Loaded modules in memory.
    pub artifact_cache_bytes: u64,
    /// Compiled modules on disk.
    pub artifact_disk_bytes: u64,
    pub compile: Compile,
    pub breaker: Breaker,
}

/// When a module version that fails again and again is refused on its routes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Breaker {
    /// In a row; 0: never.
    pub failures: u32,
    /// They count when they are no further apart than this, first to last.
    pub window: Duration,
    pub cool_down: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compile {
    pub processes: usize,
    pub cpu: Duration,
    /// CPU time that the first compile may take for each MiB of code, and for one function in proportion.
    pub per_mib: Duration,
    pub memory_bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    pub name: Name,
    pub endpoints: Vec<Endpoint>,
    pub balance: Balance,
    /// TLS to the endpoints.
    pub tls: Option<UpstreamTls>,
    pub http: UpstreamHttp,
    pub connect_timeout: Duration,
    pub read_timeout: Duration,
    pub write_timeout: Duration,
    /// From the request's arrival to the end of the answer; `None`: no bound of its own.
    pub total_timeout: Option<Duration>,
    pub idle_timeout: Duration,
    /// Further attempts after a failed one (see `gateway::upstream` for when it is safe).
    pub retries: u32,
    pub health: Option<HealthCheck>,
    pub ejection: Option<Ejection>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// `host:port`; a host name is resolved at start and at every reload.
    pub address: String,
    pub weight: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Balance {
    /// Round robin; weighted when weights differ.
    RoundRobin,
    LeastConnections,
    /// Ketama over what is named.
    ConsistentHash(HashOn),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HashOn {
    ClientAddress,
    Header(HeaderName),
    Path,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamTls {
    /// Server name to send and verify; default: the endpoint's host.
    pub sni: Option<String>,
    pub verify: bool,
    pub ca_file: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpstreamHttp {
    H1,
    /// By ALPN over TLS, prior knowledge without.
    H2,
    /// h2 where ALPN offers it, else HTTP/1.1 (TLS only).
    Auto,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// `None`: a TCP connect.
    pub http_path: Option<String>,
    pub interval: Duration,
    pub timeout: Duration,
    pub healthy_after: usize,
    pub unhealthy_after: usize,
}

/// Passive: an endpoint that fails `failures` times in a row gets no requests for `duration`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ejection {
    pub failures: u32,
    pub duration: Duration,
}

#[derive(Clone, Debug)]
pub struct Route {
    pub name: Name,
    pub matches: Match,
    pub target: Target,
    pub auth: AuthMode,
    /// All of these are needed (keys only).
    pub scopes: ScopeSet,
    /// The least tier that may use this route.
    pub tier: Option<Name>,
    /// Whether requests count against the caller's quotas.
    pub limited: bool,
    pub max_body_bytes: u64,
    pub rewrite: Option<Rewrite>,
    pub request_headers: HeaderEdits,
    pub response_headers: HeaderEdits,
    pub handlers: Vec<Handler>,
}

#[derive(Clone, Debug, Default)]
pub struct Match {
    /// Empty: every host. Lower case.
    pub hosts: Vec<HostPattern>,
    pub path: PathPattern,
    /// Empty: every method.
    pub methods: Vec<Method>,
    pub headers: Vec<HeaderMatch>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum HostPattern {
    Exact(String),
    /// `*.example.com`: the suffix behind `*.`.
    Suffix(String),
}

/// A path pattern as segments. `/api/{id}/files/{*rest}`; a prefix ends in `Rest(None)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathPattern {
    pub segments: Vec<Segment>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Segment {
    Literal(String),
    Param(String),
    /// All that follows, also nothing; only as the last one. Unnamed in a prefix match.
    Rest(Option<String>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderMatch {
    pub name: HeaderName,
    /// `None`: it is there.
    pub value: Option<String>,
}

#[derive(Clone, Debug)]
pub enum Target {
    Upstream(Name),
    /// A module answers.
    Handler(Box<Handler>),
    /// The tenant API, below the route's path prefix.
    Api,
    Health,
    Redirect {
        location: String,
        status: u16,
    },
    Respond {
        status: u16,
        headers: Vec<(HeaderName, HeaderValue)>,
        body: String,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthMode {
    Key,
    /// Anonymous callers get the tier `anonymous` by address; a key that is sent must be valid.
    Optional,
    None,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rewrite {
    /// Removes these leading segments, which are literals of the route's pattern. No trailing slash.
    StripPrefix(String),
    /// Puts `to` in their place. No trailing slashes; empty for the root.
    ReplacePrefix { from: String, to: String },
    /// A whole new path; `{name}` stands for parameters of the route's pattern.
    Path(String),
}

/// Applied as: remove, then set, then add. Connection and framing headers are refused by `check`.
#[derive(Clone, Debug, Default)]
pub struct HeaderEdits {
    pub remove: Vec<HeaderName>,
    pub set: Vec<(HeaderName, HeaderValue)>,
    pub add: Vec<(HeaderName, HeaderValue)>,
}

impl HeaderEdits {
    pub fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.set.is_empty() && self.add.is_empty()
    }
}

/// A module version, its configuration and its failure policy on a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handler {
    pub module: ModuleRef,
    /// Whose module: the one that the reference names, else the operator's own, `wasmgate`.
    pub owner: OwnerId,
    /// Handed to the guest as it is (http-wasm `get_config`).
    pub config: Vec<u8>,
    pub fail: HandlerFail,
    /// Environment of command and CGI guests.
    pub env: BTreeMap<String, String>,
    /// Wall time of one phase; default: the engine's for operators, 1 s.
    pub wall: Duration,
    pub memory_bytes: u64,
    /// Bound of a request or response body that this handler has buffered.
    pub max_buffer_bytes: u64,
    /// Upstreams that the guest may call. None by default.
    pub upstreams: Vec<Name>,
    pub proxy: ProxyWasm,
}

/// What proxy-wasm filters know beside `config`, which is their plugin configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyWasm {
    /// The property `plugin_name`; default: the module's name.
    pub plugin: Option<String>,
    pub root_id: String,
    /// Handlers of one owner with the same `vm_id` share data and queues.
    pub vm_id: String,
    pub vm_config: Vec<u8>,
    /// A pause in a headers phase holds the head alone: the body is shown to the filter meanwhile.
    pub hold_headers: bool,
    /// Writing the head of a request that has gone on is an error for the guest, not merely in vain.
    pub strict: bool,
    pub header_bytes: HeaderBytes,
    /// How long a request or its answer may stay paused.
    pub pause: Duration,
}

impl Default for ProxyWasm {
    fn default() -> Self {
        Self {
            plugin: None,
            root_id: String::new(),
            vm_id: String::new(),
            vm_config: Vec::new(),
            hold_headers: false,
            strict: false,
            header_bytes: HeaderBytes::Reject,
            pause: Duration::from_secs(30),
        }
    }
}

/// What becomes of header values that are not UTF-8, which most filters trap on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderBytes {
    /// The request is answered 400, the upstream's answer becomes a 502.
    Reject,
    /// The field is taken out.
    Drop,
    /// Filters see U+FFFD in their place; what goes on is what came unless a filter writes it.
    Lossy,
}

impl Handler {
    /// Its module with the owner: `owner/name[@version]`.
    pub fn reference(&self) -> ModuleRef {
        ModuleRef { owner: Some(self.owner.clone()), ..self.module.clone() }
    }

    /// What one run may use here, its module's own limits aside.
    pub fn limits(&self) -> Limits {
        Limits {
            // Time is what ends it.
            fuel: u64::MAX / 2,
            memory_bytes: self.memory_bytes,
            wall_ms: self.wall,
            input_bytes: self.max_buffer_bytes,
            output_bytes: self.max_buffer_bytes,
            log_bytes: 64 << 10,
            table_elements: 100_000,
            stack_bytes: Limits::STACK_BYTES,
            file_bytes: Limits::FILE_BYTES,
            // The operator's own bounds are `engine.per_owner` and `engine.vms_per_handler`.
            instances: u32::MAX,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HandlerFail {
    /// The request fails with the handler's status.
    Closed,
    /// The request goes on as if the handler were not there.
    Open,
}
