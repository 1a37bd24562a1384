//! The WebAssembly engine: everything that names `wasmer` lives below here.
//!
//! A module's way: [`Engine::inspect`] (parent, nothing run) -> [`Engine::install`] (bytes by digest, compiled in a
//! child process) -> [`Engine::load`] (artifact under MAC, one headless Wasmer engine per version) -> [`Engine::run`]
//! (a fresh pooled instance) or an [`HttpHandler`] (living VMs).
//!
//! Invariant: no guest can take the process, another guest or another owner's memory with it; every way in which a
//! guest fails is a [`GuestFailure`].

pub mod abi;
mod artifacts;
mod at_rest;
mod budget;
mod bundles;
mod cache;
mod cancel;
pub mod compile;
mod counted;
pub mod failure;
pub mod files;
pub mod fuel;
pub mod grpc;
pub mod guest;
mod guest_log;
pub mod guest_metrics;
pub mod host;
pub mod http;
mod inspect;
mod instances;
mod instrument;
mod job;
pub mod lane;
mod load;
mod loaded;
pub mod memory;
mod origin;
pub mod outside;
mod pace;
mod permits;
pub mod pool;
mod progress;
pub mod proxy;
mod restarts;
mod run;
mod scope;
mod shared;
mod stack;
mod sys;
mod tend;
mod tunables;
mod turns;
mod uploads;
mod vms;
mod wasix;

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use crate::domain::{Abi, Digest, GuestFailure, Limits, ModuleShape, NotLoadable, OwnerId};

pub use artifacts::Upload;
use artifacts::{Artifacts, Stored};
use budget::{Account, Budget};
use bundles::Bundles;
use cache::Modules;
use compile::{Compilers, Why};
use guest::Allowance;
use guest_metrics::GuestMetrics;
use instances::Instances;
use outside::Outside;
use pool::{Need, Pool};
use scope::Scopes;

pub use cancel::Cancel;
pub use files::Assets;
pub use http::{Features, HttpExchange, HttpHandler, HttpOutcome, PinnedVm, RequestInfo, TlsInfo, Values, Verdict};
pub use job::{Finished, Input, Job, Output, RunError};
pub use loaded::LoadedModule;
pub use origin::Origin;
pub use progress::Compile;
pub use proxy::{Event, Later, ProxyHandler, ProxyStream, Told};
pub use turns::Turns;
pub use uploads::Uploads;

/// What the fuzz targets ask beside the rest.
#[cfg(fuzzing)]
pub mod fuzzing {
    pub use super::artifacts::{Artifacts, Stored};
    pub use super::instrument::instrument;
}

pub struct Settings {
    /// Holds `modules/` and `artifacts/`.
    pub data_dir: PathBuf,
    /// Of this gateway alone: artifacts are loaded only under its MAC.
    pub artifact_key: [u8; 32],
    /// The binary whose hidden verb compiles (the running one).
    pub compiler_exe: PathBuf,
    pub config: crate::config::Engine,
}

pub struct Engine {
    artifacts: Arc<Artifacts>,
    compilers: Arc<Compilers>,
    modules: Modules,
    bundles: Bundles,
    instances: Instances,
    pool: Pool,
    budget: Arc<Budget>,
    config: crate::config::Engine,
    artifacts_rejected: AtomicU64,
    optimised: load::Optimised,
    vms_idle: AtomicU64,
    vms_busy: AtomicU64,
    scopes: Arc<Scopes>,
    guest_metrics: GuestMetrics,
    /// Where events of guests beside requests begin: timers, answers to calls, queues.
    events: Events,
    outside: OnceLock<Arc<dyn Outside>>,
    origin: OnceLock<Arc<dyn Origin>>,
}

/// `None` from its drop on.
struct Events(Option<tokio::runtime::Runtime>);

impl Drop for Events {
    fn drop(&mut self) {
        if let Some(events) = self.0.take() {
            events.shutdown_background();
        }
    }
}

/// What the checks before storing found.
#[derive(Clone, Debug)]
pub struct Inspected {
    pub digest: Digest,
    pub abi: Abi,
    pub shape: ModuleShape,
}

/// A module and its artifact on the way to the disk.
pub struct Compiled {
    digest: Digest,
    bytes: Bytes,
    compiler: Compiler,
    artifact: Bytes,
}

impl Compiled {
    /// The module's.
    pub fn bytes(&self) -> Bytes {
        self.bytes.clone()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Compiler {
    /// Cranelift without optimisation: fast to compile; what every module begins with.
    Fast,
    /// Cranelift at its default level: fast to run; takes the place of the other in the background.
    Optimising,
}

impl Compiler {
    const BEST_FIRST: [Compiler; 2] = [Compiler::Optimising, Compiler::Fast];

    /// The label in metrics, and the suffix of artifacts.
    pub fn as_str(self) -> &'static str {
        match self {
            Compiler::Fast => "cranelift-fast",
            Compiler::Optimising => "cranelift",
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    #[error(transparent)]
    NotLoadable(#[from] NotLoadable),
    #[error("too many modules are being compiled")]
    Busy,
    #[error("the gateway's storage is full")]
    StorageFull,
    #[error("the store that has the module can't be reached")]
    Unread,
    #[error("{0}")]
    Io(String),
}

/// Figures for metrics and the admin API.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stats {
    pub guests_running: u64,
    pub guests_queued: u64,
    pub vms_idle: u64,
    pub vms_busy: u64,
    pub memory_bytes: u64,
    pub modules_loaded: u64,
    pub compiling: u64,
    pub artifacts_rejected: u64,
    pub artifacts_evicted: u64,
    /// As of the last count, with what was written since.
    pub artifact_disk_bytes: u64,
}

impl Engine {
    pub fn new(settings: Settings) -> Result<Arc<Engine>, String> {
        let Settings { data_dir, artifact_key, compiler_exe, config } = settings;
        let artifacts = Artifacts::open(&data_dir, artifact_key, config.artifact_disk_bytes)
            .map_err(|e| format!("can't use the data directory `{}`: {e}", data_dir.display()))?;
        let budget = Budget::new(config.memory_budget_bytes);
        let pool = Pool::start(&config, &budget).map_err(|e| format!("can't start guest threads: {e}"))?;
        let events =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).thread_name("events").enable_all().build();
        let events = events.map_err(|e| format!("can't start the events' thread: {e}"))?;
        Ok(Arc::new(Engine {
            artifacts: Arc::new(artifacts),
            compilers: Compilers::new(compiler_exe, config.compile.clone()),
            modules: Modules::new(config.artifact_cache_bytes),
            bundles: Bundles::new(config.artifact_cache_bytes),
            instances: Instances::default(),
            pool,
            budget,
            config,
            artifacts_rejected: AtomicU64::new(0),
            optimised: load::Optimised::default(),
            vms_idle: AtomicU64::new(0),
            vms_busy: AtomicU64::new(0),
            scopes: Arc::default(),
            guest_metrics: GuestMetrics::default(),
            events: Events(Some(events)),
            outside: OnceLock::new(),
            origin: OnceLock::new(),
        }))
    }

    /// Has `observer` told of every compile (a metric of the layers above).
    pub fn observe_compiles(&self, observer: compile::Observer) {
        self.compilers.observe(observer);
    }

    /// Every check of an upload that needs no compiler: format, features, limits of size, imports and exports, ABI.
    /// Takes milliseconds per megabyte: not for async workers.
    pub fn inspect(
        &self,
        bytes: &[u8],
        declared: Option<Abi>,
        max_bytes: u64,
        limits: &Limits,
    ) -> Result<Inspected, NotLoadable> {
        let (abi, shape) = inspect::inspect(bytes, declared, max_bytes, limits)?;
        Ok(Inspected { digest: Digest::of(bytes), abi, shape })
    }

    /// [`Engine::compile`] and [`Engine::store`], for the gateway itself.
    pub async fn install(
        self: &Arc<Self>,
        bytes: Bytes,
        inspected: &Inspected,
        compiler: Compiler,
    ) -> Result<(), InstallError> {
        let compiled = self.compile(bytes, inspected, compiler, None).await?;
        self.store(compiled).await
    }

    /// Compiles, and writes nothing; an artifact that is stored is taken as it is. `owner`: who asks for it.
    pub async fn compile(
        &self,
        bytes: Bytes,
        inspected: &Inspected,
        compiler: Compiler,
        owner: Option<&OwnerId>,
    ) -> Result<Compiled, InstallError> {
        let digest = inspected.digest;
        let good_enough: &[Compiler] = match compiler {
            Compiler::Fast => &Compiler::BEST_FIRST,
            Compiler::Optimising => &[Compiler::Optimising],
        };
        for compiler in good_enough.iter().copied() {
            let stored = self.blocking(move |artifacts| artifacts.read_artifact(digest, compiler)).await?;
            if let Stored::Good(artifact) = stored {
                return Ok(Compiled { digest, bytes, compiler, artifact: artifact.into() });
            }
        }
        let artifact = self.compilers.compile((digest, &bytes), compiler, owner, Why::New).await?;
        Ok(Compiled { digest, bytes, compiler, artifact })
    }

    /// Stores the bytes by digest and their artifact (fsynced, renamed into place), where they are not stored already.
    pub async fn store(self: &Arc<Self>, compiled: Compiled) -> Result<(), InstallError> {
        let Compiled { digest, bytes, compiler, artifact } = compiled;
        let _turn = self.modules.turn(digest).await;
        // Side by side: each waits for the disk. An artifact without its module is nothing to anybody, and goes with the
        // upload's failure.
        let kept = self.blocking(move |artifacts| artifacts.keep(Upload::Module, digest, &bytes));
        let written = self.blocking(move |artifacts| match artifacts.read_artifact(digest, compiler)? {
            Stored::Good(_) => Ok(()),
            Stored::Missing | Stored::Rejected => artifacts.write_artifact(digest, compiler, &artifact),
        });
        let (kept, written) = tokio::join!(kept, written);
        kept.and(written)?;
        self.make_room().await;
        if compiler == Compiler::Fast {
            self.optimise(digest);
        }
        Ok(())
    }

    /// Forgets a version: its loaded form, artifacts and bytes.
    pub async fn remove(&self, digest: Digest) -> io::Result<()> {
        let _turn = self.modules.turn(digest).await;
        self.modules.forget(digest);
        self.bundles.forget(digest);
        let artifacts = self.artifacts.clone();
        tokio::task::spawn_blocking(move || artifacts.remove(digest)).await.map_err(io::Error::other)?
    }

    /// Runs a command, cgi or core module: on the guest pool, or at once where its history says that it is short.
    pub async fn run(self: &Arc<Self>, job: Job) -> Finished {
        let call = match run::Call::prepare(&job.module, &job.input) {
            Ok(call) => call,
            Err(error) => return run::refused(error),
        };
        if job.input.stdin.len() as u64 > job.limits.input_bytes {
            return run::refused(RunError::BadCall(format!("the input is over {} bytes", job.limits.input_bytes)));
        }
        // Held to the end of the run.
        let (key, cap) = ((job.owner.clone(), job.module.digest()), job.limits.instances);
        let _pass = match job.cancel.or_cancelled(self.instances.enter(key, cap, &self.config)).await {
            Some(Ok(pass)) => pass,
            Some(Err(busy)) => return run::refused(busy),
            None => return run::refused(RunError::Guest(GuestFailure::Cancelled)),
        };
        let need = self.need(&job.module, &self.account(&job.owner), &job.limits);
        if job.module.lane().is_inline()
            && !job.module.needs_pool()
            && let Some(memory) = need.account.reserve(need.bytes)
        {
            let finished = self.run_inline(&job, &call, memory);
            let failure = finished.result.as_ref().err();
            if !matches!(failure, Some(RunError::Guest(failure)) if lane::overran(failure, &job.limits)) {
                job.module.lane().record(lane::took(&finished.meter));
                return finished;
            }
            // The run on the pool is the run: what the first try used is not charged twice.
            job.module.lane().overran();
        }
        let Job { module, owner, label, limits, input, cancel } = job;
        let token = cancel.clone();
        let work = move |memory| {
            let allowance = Allowance::from_now(limits, token);
            let finished = run::execute(&module, &label, &input, &call, &allowance, memory, true);
            module.lane().record(lane::took(&finished.meter));
            finished
        };
        match self.pool.run(&owner, &cancel, need, work).await {
            Ok(finished) => finished,
            Err(busy) => run::refused(busy.into()),
        }
    }

    /// What a guest begins with. More than it may ever have is not waited for: it fails as it begins.
    pub(crate) fn need(&self, module: &LoadedModule, account: &Arc<Account>, limits: &Limits) -> Need {
        let bytes = module.shape().memory_min_bytes;
        let possible = bytes <= limits.memory_bytes.min(self.budget.share());
        Need { account: account.clone(), bytes: if possible { bytes } else { 0 } }
    }

    fn run_inline(&self, job: &Job, call: &run::Call, memory: budget::Reserved) -> Finished {
        let limits = lane::inline(&job.limits, lane::INLINE_FUEL);
        let allowance = Allowance::from_now(limits, job.cancel.clone());
        run::execute(&job.module, &job.label, &job.input, call, &allowance, memory, false)
    }

    /// RFC 3875 output of a CGI guest as an answer.
    pub fn cgi_reply(stdout: Bytes) -> Result<crate::domain::Reply, GuestFailure> {
        abi::cgi::reply(stdout)
    }

    pub fn stats(&self) -> Stats {
        let (guests_running, guests_queued) = self.pool.load();
        let (artifact_disk_bytes, artifacts_evicted) = self.artifacts.room();
        Stats {
            guests_running,
            guests_queued,
            vms_idle: self.vms_idle.load(Ordering::Relaxed),
            vms_busy: self.vms_busy.load(Ordering::Relaxed),
            memory_bytes: self.budget.used(),
            modules_loaded: self.modules.count(),
            compiling: self.compilers.progress.running(),
            artifacts_rejected: self.artifacts_rejected.load(Ordering::Relaxed),
            artifacts_evicted,
            artifact_disk_bytes,
        }
    }

    /// The compiles under way and those that wait, at most so many of each, and how many modules wait for better code.
    pub fn compiles(&self, most: usize) -> (progress::Snapshot, usize) {
        (self.compilers.progress.snapshot(most), self.optimised.waiting())
    }

    /// Ends the pool's threads after the runs under way; for shutdown. Blocks until they have ended.
    pub fn shutdown(&self) {
        self.pool.shutdown();
    }

    /// For HTTP handlers: where their runs happen.
    pub(crate) fn pool(&self) -> &Pool {
        &self.pool
    }

    /// For HTTP handlers: an owner's part of what all guests share.
    pub(crate) fn account(&self, owner: &OwnerId) -> Arc<Account> {
        self.budget.account(owner)
    }

    /// For filters: what those of one owner share.
    pub(crate) fn scopes(&self) -> &Arc<Scopes> {
        &self.scopes
    }

    /// What guests have counted.
    pub fn guest_metrics(&self) -> &GuestMetrics {
        &self.guest_metrics
    }

    /// For filters: runs what comes beside requests.
    pub(crate) fn spawn(&self, event: impl Future<Output = ()> + Send + 'static) -> Option<tokio::task::AbortHandle> {
        self.events.0.as_ref().map(|events| events.spawn(event).abort_handle())
    }

    /// Has done by this what guests ask of the world. The first one stays.
    pub fn set_outside(&self, outside: Arc<dyn Outside>) {
        let _ = self.outside.set(outside);
    }

    pub(crate) fn outside(&self) -> Option<Arc<dyn Outside>> {
        self.outside.get().cloned()
    }

    /// Where what guests wait for is done.
    pub(crate) fn waits(&self) -> Option<tokio::runtime::Handle> {
        self.events.0.as_ref().map(|events| events.handle().clone())
    }

    /// What it was started with.
    pub(crate) fn config(&self) -> &crate::config::Engine {
        &self.config
    }

    /// Living VMs that wait, and that hold a request; kept by the handlers, shown in [`Stats`].
    pub(crate) fn vm_counters(&self) -> (&AtomicU64, &AtomicU64) {
        (&self.vms_idle, &self.vms_busy)
    }

    /// File work, away from the async workers.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Artifacts) -> io::Result<T> + Send + 'static,
    ) -> Result<T, InstallError> {
        let artifacts = self.artifacts.clone();
        let done = tokio::task::spawn_blocking(move || work(&artifacts)).await.map_err(io::Error::other);
        done.and_then(|r| r).map_err(|e| match e.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => InstallError::StorageFull,
            _ => InstallError::Io(format!("the data directory: {e}")),
        })
    }
}
