//! Upstreams: their endpoints, which one a request takes, and what is known of their health.
//!
//! Invariant: an endpoint that the active check found dead gets no request. One that only failed passively is ejected
//! for a while, but never the last one: a wrong guess must not take a whole upstream away.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use http::HeaderValue;
use parking_lot::Mutex;
use pingora::connectors::http::Connector;
use pingora::lb::Backend;
use pingora::lb::selection::{BackendIter, BackendSelection, Consistent, RoundRobin};
use pingora::protocols::l4::socket::SocketAddr as PingoraAddr;
use pingora::upstreams::peer::{ALPN, HttpPeer};

use super::health;
use crate::config::{self, Balance, UpstreamHttp};
use crate::domain::Timestamp;
use crate::telemetry::{Metrics, UpstreamMetrics};

/// Streams of one HTTP/2 connection to an endpoint; Pingora's default of 1 would open a connection a request.
const H2_STREAMS: usize = 100;
/// How often a selection is asked for another endpoint before the rest are tried in order.
const PICKS: usize = 16;

pub struct Upstream {
    pub config: config::Upstream,
    pub endpoints: Vec<Arc<Endpoint>>,
    /// `Host` for requests that name none: the TLS server name, else the first endpoint as it is configured.
    pub authority: HeaderValue,
    balance: Selection,
    epoch: Instant,
    metrics: UpstreamMetrics,
    /// Ends with the upstream.
    _health: Option<health::Checker>,
}

enum Selection {
    RoundRobin(Arc<RoundRobin>),
    /// Where the next search among equals begins.
    LeastConnections(AtomicUsize),
    Hash(Arc<Consistent>, config::HashOn),
}

/// One address of an upstream. Shared by successive snapshots, as long as the upstream's configuration is the same.
pub struct Endpoint {
    pub peer: HttpPeer,
    pub address: SocketAddr,
    pub label: String,
    weight: usize,
    alive: AtomicBool,
    consecutive_failures: AtomicU32,
    /// Milliseconds since the upstream's epoch; 0: not ejected.
    ejected_until: AtomicU64,
    in_flight: AtomicUsize,
    last_error: Mutex<Option<LastError>>,
}

/// Why an endpoint was last not reached, by a request or a health check.
#[derive(Clone, Debug)]
pub struct LastError {
    pub at: Timestamp,
    pub error: String,
}

/// An endpoint as `/health` shows it.
pub struct EndpointState<'a> {
    pub address: &'a str,
    /// Active checks pass, or there are none.
    pub is_alive: bool,
    /// Out for a while after failures.
    pub is_ejected: bool,
    pub last_error: Option<LastError>,
}

/// A request's use of an endpoint.
pub struct Lease {
    pub endpoint: Arc<Endpoint>,
    pub index: usize,
}

/// Why an upstream can't be built; names the setting.
#[derive(Debug, thiserror::Error)]
#[error("`{key}`: {message}")]
pub struct UpstreamError {
    pub key: String,
    pub message: String,
}

impl Endpoint {
    fn new(peer: HttpPeer, address: SocketAddr, weight: usize) -> Self {
        Self {
            peer,
            address,
            label: address.to_string(),
            weight,
            alive: AtomicBool::new(true),
            consecutive_failures: AtomicU32::new(0),
            ejected_until: AtomicU64::new(0),
            in_flight: AtomicUsize::new(0),
            last_error: Mutex::new(None),
        }
    }

    pub fn is_alive(&self) -> bool {
        self.alive.load(Ordering::Relaxed)
    }

    pub fn note_error(&self, error: &str) {
        *self.last_error.lock() = Some(LastError { at: Timestamp::now(), error: error.to_owned() });
    }

    pub fn set_alive(&self, alive: bool) {
        self.alive.store(alive, Ordering::Relaxed);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.endpoint.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Endpoints already tried by this request.
#[derive(Clone, Copy, Default)]
pub struct Tried(u64);

impl Tried {
    /// Beyond 64 endpoints a retry may meet the same one again.
    pub fn add(&mut self, index: usize) {
        self.0 |= 1u64.checked_shl(index as u32).unwrap_or(0);
    }

    fn has(self, index: usize) -> bool {
        self.0 & 1u64.checked_shl(index as u32).unwrap_or(0) != 0
    }
}

/// Its place among the endpoints, carried by Pingora's selection.
#[derive(Clone, Copy)]
struct Index(usize);

impl Upstream {
    /// Resolves names, and keeps what `previous` knew of the same endpoints.
    pub async fn build(
        config: &config::Upstream,
        key: &str,
        previous: Option<&Arc<Upstream>>,
        connector: &Arc<Connector>,
        metrics: &Metrics,
    ) -> Result<Arc<Self>, UpstreamError> {
        let previous = previous.filter(|p| p.config == *config);
        let mut endpoints: Vec<Arc<Endpoint>> = Vec::new();
        for (i, endpoint) in config.endpoints.iter().enumerate() {
            let fail = |message| UpstreamError { key: format!("{key}.endpoints[{i}].address"), message };
            let resolved = tokio::net::lookup_host(&endpoint.address).await;
            let addresses: BTreeSet<_> = resolved
                .map_err(|e| {
                    fail(format!("`{}` can't be resolved ({e}): use another name or address", endpoint.address))
                })?
                .collect();
            if addresses.is_empty() {
                return Err(fail(format!("`{}` has no address: use another name or address", endpoint.address)));
            }
            for address in addresses {
                let known = previous.and_then(|p| p.endpoints.iter().find(|e| e.address == address));
                if endpoints.iter().all(|e| e.address != address) {
                    endpoints.push(match known {
                        Some(known) => known.clone(),
                        None => {
                            let peer = peer(config, key, &endpoint.address, address)?;
                            Arc::new(Endpoint::new(peer, address, endpoint.weight.max(1)))
                        }
                    });
                }
            }
        }
        let backends: BTreeSet<Backend> = endpoints.iter().enumerate().map(|(i, e)| backend(i, e)).collect();
        let balance = match &config.balance {
            Balance::RoundRobin => Selection::RoundRobin(Arc::new(RoundRobin::build(&backends))),
            Balance::LeastConnections => Selection::LeastConnections(AtomicUsize::new(0)),
            Balance::ConsistentHash(on) => Selection::Hash(Arc::new(Consistent::build(&backends)), on.clone()),
        };
        let checker = config.health.as_ref().map(|check| {
            health::Checker::spawn(config.name.clone(), check.clone(), endpoints.clone(), connector.clone())
        });
        Ok(Arc::new(Self {
            config: config.clone(),
            endpoints,
            authority: authority(config, key)?,
            balance,
            epoch: previous.map_or_else(Instant::now, |p| p.epoch),
            metrics: metrics.upstream(config.name.as_str()),
            _health: checker,
        }))
    }

    pub fn name(&self) -> &str {
        self.config.name.as_str()
    }

    /// What the consistent hash is over, if that is how this upstream is balanced.
    pub fn hash_on(&self) -> Option<&config::HashOn> {
        match &self.balance {
            Selection::Hash(_, on) => Some(on),
            _ => None,
        }
    }

    /// The endpoint for a request's next attempt. `None`: none is alive.
    pub fn pick(&self, key: &[u8], tried: Tried, now: Instant) -> Option<Lease> {
        let now = self.millis(now);
        let fits = |i: usize| {
            let endpoint = &self.endpoints[i];
            endpoint.is_alive() && endpoint.ejected_until.load(Ordering::Relaxed) <= now
        };
        let fresh = |i: usize| fits(i) && !tried.has(i);
        let chosen = match &self.balance {
            _ if self.endpoints.len() == 1 => None,
            Selection::RoundRobin(selection) => first(selection.iter(key), fresh),
            Selection::Hash(selection, _) => first(selection.iter(key), fresh),
            Selection::LeastConnections(start) => self.least_loaded(start.fetch_add(1, Ordering::Relaxed), fresh),
        };
        let all = 0..self.endpoints.len();
        let index = chosen
            .or_else(|| all.clone().find(|i| fresh(*i)))
            .or_else(|| all.clone().find(|i| fits(*i)))
            .or_else(|| all.clone().find(|i| self.endpoints[*i].is_alive() && !tried.has(*i)))
            .or_else(|| all.clone().find(|i| self.endpoints[*i].is_alive()))?;
        let endpoint = self.endpoints[index].clone();
        endpoint.in_flight.fetch_add(1, Ordering::Relaxed);
        Some(Lease { endpoint, index })
    }

    fn least_loaded(&self, start: usize, fresh: impl Fn(usize) -> bool) -> Option<usize> {
        let n = self.endpoints.len();
        (0..n).map(|i| (start + i) % n).filter(|i| fresh(*i)).min_by(|a, b| {
            let (a, b) = (&self.endpoints[*a], &self.endpoints[*b]);
            // Load over weight, compared without division.
            let load = |e: &Endpoint| e.in_flight.load(Ordering::Relaxed) + 1;
            (load(a) * b.weight).cmp(&(load(b) * a.weight))
        })
    }

    /// An attempt brought an answer of any status.
    pub fn answered(&self, endpoint: &Endpoint, status: u16) {
        self.metrics.attempt(status);
        if endpoint.consecutive_failures.load(Ordering::Relaxed) != 0 {
            endpoint.consecutive_failures.store(0, Ordering::Relaxed);
        }
    }

    /// An attempt failed at connecting, or its connection broke or timed out before the answer was whole.
    pub fn failed(&self, endpoint: &Endpoint, error: &impl std::fmt::Display) {
        let error = explain(error);
        tracing::warn!(upstream = self.name(), endpoint = %endpoint.label, error, "attempt failed");
        endpoint.note_error(&error);
        self.metrics.attempt(0);
        let Some(ejection) = &self.config.ejection else { return };
        let failures = endpoint.consecutive_failures.fetch_add(1, Ordering::Relaxed) + 1;
        if failures >= ejection.failures {
            endpoint.consecutive_failures.store(0, Ordering::Relaxed);
            let until = self.millis(Instant::now()).saturating_add(millis(ejection.duration));
            endpoint.ejected_until.store(until, Ordering::Relaxed);
            tracing::warn!(upstream = %self.config.name, endpoint = %endpoint.label, failures, "endpoint ejected");
        }
    }

    pub fn endpoint_states(&self, now: Instant) -> impl Iterator<Item = EndpointState<'_>> {
        let now = self.millis(now);
        self.endpoints.iter().map(move |e| EndpointState {
            address: &e.label,
            is_alive: e.is_alive(),
            is_ejected: e.ejected_until.load(Ordering::Relaxed) > now,
            last_error: e.last_error.lock().clone(),
        })
    }

    /// At least 1, so that 0 can mean "not ejected".
    fn millis(&self, now: Instant) -> u64 {
        millis(now.saturating_duration_since(self.epoch)).saturating_add(1)
    }
}

fn millis(d: Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}

fn backend(index: usize, endpoint: &Endpoint) -> Backend {
    let mut ext = pingora::lb::Extensions::new();
    ext.insert(Index(index));
    Backend { addr: PingoraAddr::Inet(endpoint.address), weight: endpoint.weight, ext }
}

fn first(mut candidates: impl BackendIter, fits: impl Fn(usize) -> bool) -> Option<usize> {
    for _ in 0..PICKS {
        let index = candidates.next()?.ext.get::<Index>()?.0;
        if fits(index) {
            return Some(index);
        }
    }
    None
}

/// An error on the way to an upstream, with what to do about it where that is known.
pub fn explain(error: &impl std::fmt::Display) -> String {
    let text = error.to_string();
    let hint = TLS_HINTS.iter().find(|(sign, _)| text.contains(sign)).map(|(_, hint)| hint);
    match hint {
        Some(hint) => format!("{text}; {hint}"),
        None => text,
    }
}

/// What rustls says of a certificate, and what an operator does about it.
const TLS_HINTS: [(&str, &str); 4] = [
    (
        "CaUsedAsEndEntity",
        "the upstream serves a certificate authority's certificate as its own, as `openssl req -x509` makes it by \
         default: make it with `openssl req -x509 ... -addext basicConstraints=critical,CA:FALSE`, and give the new one \
         to the upstream and to `tls.ca_file`",
    ),
    ("UnknownIssuer", "name the authority that issued the upstream's certificate in `tls.ca_file`"),
    ("NotValidForName", "set `tls.sni` to a name that the upstream's certificate has"),
    ("Expired", "renew the upstream's certificate"),
];

fn authority(config: &config::Upstream, key: &str) -> Result<HeaderValue, UpstreamError> {
    let sni = config.tls.as_ref().and_then(|tls| tls.sni.as_deref());
    let text = sni.or(config.endpoints.first().map(|e| e.address.as_str())).unwrap_or_default();
    let message = || format!("`{text}` can't be a `Host`: use another name or address");
    HeaderValue::from_str(text).map_err(|_| UpstreamError { key: format!("{key}.endpoints"), message: message() })
}

fn peer(config: &config::Upstream, key: &str, name: &str, address: SocketAddr) -> Result<HttpPeer, UpstreamError> {
    let host = name.rsplit_once(':').map_or(name, |(host, _)| host).trim_start_matches('[').trim_end_matches(']');
    let sni = match &config.tls {
        None => String::new(),
        // Pingora verifies nothing when the name is empty, so an address stands for itself.
        Some(tls) => tls.sni.clone().unwrap_or_else(|| host.to_owned()),
    };
    let mut peer = HttpPeer::new(address, config.tls.is_some(), sni);
    let options = &mut peer.options;
    options.connection_timeout = Some(config.connect_timeout);
    options.total_connection_timeout = Some(config.connect_timeout);
    options.read_timeout = Some(config.read_timeout);
    options.write_timeout = Some(config.write_timeout);
    options.idle_timeout = Some(config.idle_timeout);
    options.max_h2_streams = H2_STREAMS;
    options.alpn = match config.http {
        UpstreamHttp::H1 => ALPN::H1,
        UpstreamHttp::H2 => ALPN::H2,
        UpstreamHttp::Auto => ALPN::H2H1,
    };
    if let Some(tls) = &config.tls {
        options.verify_cert = tls.verify;
        options.verify_hostname = tls.verify;
        if let Some(file) = &tls.ca_file {
            let fail = |message| UpstreamError { key: format!("{key}.tls.ca_file"), message };
            options.ca = Some(super::pem::authorities(file).map_err(fail)?);
        }
    }
    // Pingora's pool knows neither authorities nor protocols: connections of one upstream are not another's.
    let mut hasher = std::hash::DefaultHasher::new();
    std::hash::Hash::hash(&(config.name.as_str(), format!("{:?} {:?}", config.tls, config.http)), &mut hasher);
    peer.group_key = std::hash::Hasher::finish(&hasher);
    Ok(peer)
}
