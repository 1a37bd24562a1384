//! Listeners, worker threads, and the drain.
//!
//! One worker a core, each with a runtime of its own: a connection stays on the worker that accepted it (no work
//! stealing, which measured fastest), and all workers accept on the same sockets, so that an idle one takes the next.
//!
//! Invariant: when [`start`] returns `Ok`, every address is bound; when [`Running::drain`] returns, every worker ended.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use pingora::server::ShutdownWatch;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit as Place, Semaphore, watch};

use super::access::Refusals;
use super::access_log::AccessLog;
use super::admin::AdminApp;
use super::connection::{self, Accepted, ConnectionLimits};
use super::head::HeadLimits;
use super::identity::Ids;
use super::listener::{BindError, Bound, Certificate, Certificates};
use super::places::Places;
use super::pool::Pool;
use super::proxy::{self, Gateway};
use super::service::{ApiService, Shared};
use super::shutdown::{Drain, OpenCount};
use crate::config::{Config, Listener, LogFormat, Server};

/// Connections of the admin listener, beside `server.max_connections`: it stays reachable when the proxy is full.
const ADMIN_CONNECTIONS: usize = 256;
/// How often certificate files are looked at.
const CERTIFICATE_POLL: Duration = Duration::from_secs(5);
/// Pause after `accept` failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Workers that do not end in this time after the drain are left to the process's end.
const WORKER_END: Duration = Duration::from_secs(5);

/// A serving gateway.
pub struct Running {
    /// In the order of `server.listeners`; port 0 is resolved.
    pub proxy: Vec<SocketAddr>,
    pub admin: SocketAddr,
    shared: Arc<Shared>,
    shutdown: watch::Sender<bool>,
    stop: watch::Sender<bool>,
    open: Arc<OpenCount>,
    workers: Vec<std::thread::JoinHandle<()>>,
    /// Last, so that it outlives the workers: it writes what they left.
    access_log: Option<AccessLog>,
}

/// What one worker accepts on.
struct Doors<A> {
    listeners: Vec<Arc<Bound>>,
    serving: Serving<A>,
    make: Make<A>,
    refusals: Arc<Refusals>,
    /// One permit a connection.
    free: Arc<Semaphore>,
    open: Arc<OpenCount>,
    shared: Arc<Shared>,
    /// Proxy connections are counted in the metrics.
    counted: bool,
}

/// Makes what answers, for the settings of `server`.
type Make<A> = Arc<dyn Fn(&Server) -> Arc<A> + Send + Sync>;

/// What a new connection gets; made anew when a reload has changed `server`.
struct Serving<A> {
    config: Arc<Config>,
    app: Arc<A>,
    limits: ConnectionLimits,
}

impl<A> Serving<A> {
    fn new(config: Arc<Config>, make: &dyn Fn(&Server) -> Arc<A>) -> Self {
        let server = &config.server;
        let limits = ConnectionLimits {
            head: HeadLimits {
                deadline: server.header_timeout,
                idle: server.keepalive,
                bytes: server.max_header_bytes,
                fields: server.max_header_fields,
            },
            body: server.body_timeout,
        };
        Self { app: make(server), config, limits }
    }
}

/// What a reload changes of the listeners beside what connections take from the snapshot.
pub struct Listening {
    pub certificates: Certificates,
    pub places: Places,
}

impl<A> Clone for Doors<A> {
    fn clone(&self) -> Self {
        Self {
            listeners: self.listeners.clone(),
            serving: Serving {
                config: self.serving.config.clone(),
                app: self.serving.app.clone(),
                limits: self.serving.limits,
            },
            make: self.make.clone(),
            refusals: self.refusals.clone(),
            free: self.free.clone(),
            open: self.open.clone(),
            shared: self.shared.clone(),
            counted: self.counted,
        }
    }
}

/// Binds everything, then serves on threads of its own.
pub fn start(
    shared: Arc<Shared>,
    tenant_api: Arc<dyn ApiService>,
    admin_api: Arc<dyn ApiService>,
) -> Result<Running, BindError> {
    let config = shared.snapshot.load().config.clone();
    match super::sys::raise_open_files() {
        Ok(limit) => tracing::debug!(limit, "open files"),
        Err(error) => tracing::warn!(%error, "the limit of open files could not be raised"),
    }
    let server = &config.server;
    let mut proxies = Vec::with_capacity(server.listeners.len());
    for (i, listener) in server.listeners.iter().enumerate() {
        proxies.push(Arc::new(Bound::bind(listener, &format!("server.listeners[{i}]"))?));
    }
    let admin_listener = Listener { address: config.admin.address, tls: config.admin.tls.clone(), h2c: false };
    let admin = Arc::new(Bound::bind(&admin_listener, "admin")?);

    let threads = match server.threads {
        0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        n => n,
    };
    let (shutdown, watch) = watch::channel(false);
    let (stop, stopped) = watch::channel(false);
    let open = Arc::new(OpenCount::default());
    let ids = Ids::new()
        .map_err(|e| BindError { key: "server".into(), message: format!("the system has no random numbers ({e})") })?;
    let ids = Arc::new(ids);
    let refusals = Arc::new(Refusals { shared: shared.clone(), ids: ids.clone() });
    let places = Places::new(server.max_connections);
    let free = places.free.clone();
    let admin_ids = ids.clone();
    let make_admin = Arc::new(move |server: &Server| {
        Arc::new(AdminApp::new(admin_api.clone(), admin_ids.clone(), server.body_timeout, proxy::h2_options(server)))
    });
    let admin_doors = Doors {
        listeners: vec![admin.clone()],
        serving: Serving::new(config.clone(), &*make_admin),
        make: make_admin,
        refusals: refusals.clone(),
        free: Arc::new(Semaphore::new(ADMIN_CONNECTIONS)),
        open: Arc::new(OpenCount::default()),
        shared: shared.clone(),
        counted: false,
    };
    let certificates = Certificates::of(proxies.iter().chain([&admin]));
    shared.set_listening(Listening { certificates, places });
    let access_log = match config.log.format {
        LogFormat::Json => Some(AccessLog::start().map_err(|e| BindError {
            key: "log.format".into(),
            message: format!("the access log's thread can't start ({e}): use `pretty`"),
        })?),
        LogFormat::Pretty => None,
    };
    let mut running = Running {
        proxy: proxies.iter().map(|b| b.address).collect(),
        admin: admin.address,
        shared,
        shutdown,
        stop,
        open,
        workers: Vec::with_capacity(threads),
        access_log,
    };
    for i in 0..threads {
        let gateway = Arc::new(Gateway {
            shared: running.shared.clone(),
            api: tenant_api.clone(),
            ids: ids.clone(),
            pool: Arc::new(Pool::new()),
            log: running.access_log.as_ref().and_then(AccessLog::sink),
        });
        let make = Arc::new(move |server: &Server| proxy::app(gateway.clone(), server));
        let proxy_doors = Doors {
            listeners: proxies.clone(),
            serving: Serving::new(config.clone(), &*make),
            make,
            refusals: refusals.clone(),
            free: free.clone(),
            open: running.open.clone(),
            shared: running.shared.clone(),
            counted: true,
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| BindError {
            key: "server.threads".into(),
            message: format!("worker {i} of {threads} can't start ({e}): use fewer"),
        })?;
        let admin_doors = admin_doors.clone();
        let (watch, mut stopped) = (watch.clone(), stopped.clone());
        let bound = proxies.iter().chain([&admin]).filter(|_| i == 0);
        let watched: Vec<_> = bound.filter_map(|b| b.tls.clone()).collect();
        let worker = std::thread::Builder::new().name(format!("proxy-{i}")).spawn(move || {
            runtime.block_on(async move {
                // By value: a worker's copy of a socket must go when it stops accepting.
                proxy_doors.accept_all(&watch);
                // The admin listener tells of the drain, so it stays to its end.
                admin_doors.accept_all(&stopped);
                tokio::spawn(watch_certificates(watched));
                // An error means that `Running` is gone, and with it the reason to serve.
                let _ = stopped.wait_for(|stop| *stop).await;
            });
        });
        running.workers.push(worker.map_err(|e| BindError {
            key: "server.threads".into(),
            message: format!("worker {i} of {threads} can't start ({e}): use fewer"),
        })?);
    }
    Ok(running)
}

impl Running {
    /// Stops accepting, lets requests under way finish within `server.drain`, then ends the workers.
    /// `true`: nothing had to be cut off.
    pub async fn drain(mut self) -> bool {
        self.shared.set_draining();
        self.shutdown.send_replace(true);
        let drain = self.shared.snapshot.load().config.server.drain;
        let finished = tokio::time::timeout(drain, self.open.none_left()).await.is_ok();
        self.stop.send_replace(true);
        let workers = std::mem::take(&mut self.workers);
        let ended = tokio::task::spawn_blocking(move || {
            for worker in workers {
                if worker.join().is_err() {
                    tracing::error!("a worker thread panicked");
                }
            }
        });
        if tokio::time::timeout(WORKER_END, ended).await.is_err() {
            tracing::warn!("a worker did not end in time");
        }
        finished
    }
}

impl<A> Doors<A>
where
    A: connection::App,
{
    fn accept_all(self, watch: &ShutdownWatch) {
        for bound in &self.listeners {
            let listener = bound.socket.try_clone().and_then(TcpListener::from_std);
            match listener {
                Ok(listener) => {
                    tokio::spawn(self.clone().accept(listener, bound.clone(), Drain(watch.clone())));
                }
                // Descriptors ran out between binding and now; the other workers may still serve it.
                Err(error) => tracing::error!(address = %bound.address, %error, "a worker can't accept"),
            }
        }
    }

    async fn accept(mut self, listener: TcpListener, bound: Arc<Bound>, drain: Drain) {
        let mut stop = drain.0.clone();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                _ = stop.wait_for(|draining| *draining) => {
                    // Those that the system already accepted for us are served; then this worker's copy of the
                    // socket goes, and with the last copy further connects are refused.
                    while let Some(Ok((tcp, peer))) = listener.accept().now_or_never() {
                        let Ok(place) = self.free.clone().try_acquire_owned() else { return };
                        self.spawn(tcp, peer, place, &bound, drain.clone());
                    }
                    return;
                }
            };
            match accepted {
                Ok((tcp, peer)) => {
                    // At the limit this one waits here, and further ones in the listen queue.
                    let Ok(place) = self.free.clone().acquire_owned().await else { return };
                    self.spawn(tcp, peer, place, &bound, drain.clone());
                }
                Err(error) => {
                    tracing::warn!(address = %bound.address, %error, "accept failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn spawn(&mut self, tcp: TcpStream, peer: SocketAddr, place: Place, bound: &Arc<Bound>, drain: Drain) {
        let snapshot = self.shared.snapshot.load();
        if !Arc::ptr_eq(&snapshot.config, &self.serving.config) {
            if snapshot.config.server == self.serving.config.server {
                self.serving.config = snapshot.config.clone();
            } else {
                self.serving = Serving::new(snapshot.config.clone(), &*self.make);
            }
        }
        let open = self.open.open();
        let accepted = Accepted { tcp, peer, tls: bound.tls.as_ref().map(|c| c.acceptor()), h2c: bound.h2c };
        let (app, limits) = (self.serving.app.clone(), self.serving.limits);
        let (shared, refusals) = (self.counted.then(|| self.shared.clone()), self.refusals.clone());
        tokio::spawn(async move {
            let _held = (open, place);
            let _counted = shared.as_deref().map(Counted::new);
            connection::serve(&app, &*refusals, accepted, &limits, drain).await;
        });
    }
}

/// A connection in the metrics, for as long as it lives.
struct Counted<'a>(&'a Shared);

impl<'a> Counted<'a> {
    fn new(shared: &'a Shared) -> Self {
        shared.metrics.active_connections.inc();
        Self(shared)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.metrics.active_connections.dec();
    }
}

async fn watch_certificates(certificates: Vec<Arc<Certificate>>) {
    if certificates.is_empty() {
        return;
    }
    let mut tick = tokio::time::interval(CERTIFICATE_POLL);
    loop {
        tick.tick().await;
        let certificates = certificates.clone();
        let refresh = tokio::task::spawn_blocking(move || {
            for certificate in &certificates {
                match certificate.refresh() {
                    Ok(true) => tracing::info!("certificate reloaded"),
                    Ok(false) => {}
                    Err(error) => tracing::error!(%error, "certificate kept: the new one can't be used"),
                }
            }
        });
        if refresh.await.is_err() {
            tracing::error!("reading certificates panicked");
        }
    }
}
