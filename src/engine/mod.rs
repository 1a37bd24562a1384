//! The WebAssembly engine: everything that names `wasmer` lives below here.
//!
//! A module's way: [`Engine::inspect`] (parent, nothing run) -> [`Engine::install`] (bytes by digest, compiled in a
//! child process) -> [`Engine::load`] (artifact under MAC, one headless Wasmer engine per version) -> [`Engine::run`]
//! (a fresh pooled instance) or an [`HttpHandler`] (living VMs).
//!
//! Invariant: no guest can take the process, another guest or another owner's memory with it; every way in which a
//! guest fails is a [`GuestFailure`].

pub mod abi;
pub mod failure;
pub mod fuel;
pub mod guest;
pub mod host;
pub mod http;
pub mod memory;
mod sys;
mod tunables;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::domain::{Abi, Digest, GuestFailure, Limits, Meter, ModuleShape, NotLoadable, OwnerId};

pub use http::{Features, HttpExchange, HttpHandler, HttpOutcome, PinnedVm, Verdict};

pub struct Settings {
    /// Holds `modules/` and `artifacts/`.
    pub data_dir: PathBuf,
    /// Of this gateway alone: artifacts are loaded only under its MAC.
    pub artifact_key: [u8; 32],
    /// The binary whose hidden verb compiles (the running one).
    pub compiler_exe: PathBuf,
    pub config: crate::config::Engine,
}

pub struct Engine {}

/// What the checks before storing found.
#[derive(Clone, Debug)]
pub struct Inspected {
    pub digest: Digest,
    pub abi: Abi,
    pub shape: ModuleShape,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Compiler {
    /// Fast to compile; for modules run once.
    Singlepass,
    /// Fast to run; for uploads. SIMD modules always take it.
    Cranelift,
}

#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    #[error(transparent)]
    NotLoadable(#[from] NotLoadable),
    #[error("too many modules are being compiled")]
    Busy,
    #[error("the gateway's storage is full")]
    StorageFull,
    #[error("{0}")]
    Io(String),
}

/// A compiled module that can be instantiated at once. Cheap to clone behind `Arc`.
pub struct LoadedModule {
    digest: Digest,
    abi: Abi,
    shape: ModuleShape,
    /// Headless and of this version alone: its code is freed with it, and no other module's compile or signatures can
    /// disturb it.
    engine: wasmer::Engine,
    module: wasmer::Module,
    /// How to make each import, in the module's order.
    imports: Vec<abi::MakeFn>,
}

impl LoadedModule {
    pub fn digest(&self) -> Digest {
        self.digest
    }

    pub fn abi(&self) -> Abi {
        self.abi
    }

    pub fn shape(&self) -> &ModuleShape {
        &self.shape
    }

    fn wasmer_engine(&self) -> &wasmer::Engine {
        &self.engine
    }

    fn wasmer_module(&self) -> &wasmer::Module {
        &self.module
    }

    fn imports(&self) -> &[abi::MakeFn] {
        &self.imports
    }
}

/// One run of a `command`, `cgi` or `core` module.
pub struct Job {
    pub module: Arc<LoadedModule>,
    /// For fairness between owners; anonymous callers share the module's owner.
    pub owner: OwnerId,
    /// Label in logs and metrics: `owner/name@version`, or `inline`.
    pub label: Arc<str>,
    pub limits: Limits,
    pub input: Input,
}

#[derive(Clone, Debug, Default)]
pub struct Input {
    /// `argv[1..]` of a command.
    pub args: Vec<String>,
    pub env: Vec<(String, String)>,
    pub stdin: Bytes,
    /// Export to call; default `_start` for commands, the first of `_start`, `main`, `run` for core modules.
    pub entry: Option<String>,
    /// Arguments of a core function, as text; parsed by its signature.
    pub function_args: Vec<String>,
}

/// A run that came to its own end.
#[derive(Clone, Debug, Default)]
pub struct Output {
    pub stdout: Bytes,
    pub exit_code: i32,
    /// What a core function returned.
    pub values: Vec<serde_json::Value>,
}

/// How a run ended, with what it used and wrote to stderr (cut at the log limit) in every case.
#[derive(Debug)]
pub struct Finished {
    pub result: Result<Output, RunError>,
    pub meter: Meter,
    pub stderr: Bytes,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Guest(#[from] GuestFailure),
    /// The caller's arguments do not fit the function's signature, or there is no such export.
    #[error("{0}")]
    BadCall(String),
    /// Pool and queue are full.
    #[error("no capacity to run the module now")]
    Busy { retry_after: Duration },
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
}

impl Engine {
    pub fn new(_settings: Settings) -> Result<Arc<Engine>, String> {
        unimplemented!()
    }

    /// Every check of an upload that needs no compiler: format, features, limits of size, imports and exports, ABI.
    pub fn inspect(
        &self,
        _bytes: &[u8],
        _declared: Option<Abi>,
        _max_bytes: u64,
        _limits: &Limits,
    ) -> Result<Inspected, NotLoadable> {
        unimplemented!()
    }

    /// Stores the bytes by digest (fsynced, renamed into place) and compiles them. Again for the same digest: nothing.
    pub async fn install(
        self: &Arc<Self>,
        _bytes: Bytes,
        _inspected: &Inspected,
        _compiler: Compiler,
    ) -> Result<(), InstallError> {
        unimplemented!()
    }

    /// From memory, else from the artifact cache, else compiled anew from the stored bytes. Loads are coalesced.
    pub async fn load(
        self: &Arc<Self>,
        _digest: Digest,
        _abi: Abi,
        _shape: &ModuleShape,
    ) -> Result<Arc<LoadedModule>, GuestFailure> {
        unimplemented!()
    }

    /// Compiles (Singlepass) and loads without storing the bytes; kept in a bounded memory cache by digest.
    pub async fn load_inline(
        self: &Arc<Self>,
        _bytes: Bytes,
        _inspected: &Inspected,
    ) -> Result<Arc<LoadedModule>, InstallError> {
        unimplemented!()
    }

    /// Forgets a version: its loaded form, artifacts and bytes.
    pub async fn remove(&self, _digest: Digest) -> std::io::Result<()> {
        unimplemented!()
    }

    /// Runs a command, cgi or core module on the guest pool.
    pub async fn run(self: &Arc<Self>, _job: Job) -> Finished {
        unimplemented!()
    }

    /// RFC 3875 output of a CGI guest as an answer.
    pub fn cgi_reply(_stdout: Bytes) -> Result<crate::domain::Reply, GuestFailure> {
        unimplemented!()
    }

    pub fn stats(&self) -> Stats {
        unimplemented!()
    }

    /// Ends the pool's threads after the runs under way; for shutdown.
    pub fn shutdown(&self) {}
}
