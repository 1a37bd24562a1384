//! Runs with wasmer-wasix: what it is given, and its functions behind our checks (`gate.rs`).
//!
//! It is given the run's tree of files, three streams, and nothing else: a task manager that starts no task, no
//! network, no tty, no packages. Which of its functions a guest may call is `abi/wasix.rs`.
//!
//! Invariant: a run's host memory is bounded by its limits and the number of its descriptors, and all of it goes with the
//! store.

mod files;
mod gate;
mod open;
mod streams;

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use wasmer::sys::NativeEngineExt;
use wasmer::{Engine, FunctionEnv, FunctionType, Imports, Instance, Store};
use wasmer_wasix::runtime::task_manager::TaskWasm;
use wasmer_wasix::{
    PluggableRuntime, Runtime, VirtualTaskManager, WasiEnvBuilder, WasiFunctionEnv, WasiRuntimeError, WasiThreadError,
    WasiVersion, generate_import_object_from_env,
};

use super::abi::wasix::{MODULE, Served, WasixFn};
use super::failure::Halt;
use super::files::tree::Tree;
use super::host::HostState;
use files::Files;
use streams::{Stream, Streams};

pub use files::MAX_PATH;

/// What host functions need of the run's wasmer-wasix.
#[derive(Debug, Default)]
pub struct WasixState {
    streams: Streams,
    /// It knows the instance; a start function runs before that.
    ready: bool,
}

/// Of a guest that is being made.
pub struct Wasix {
    env: WasiFunctionEnv,
    functions: Imports,
}

impl Wasix {
    /// Takes the run's input and files.
    pub fn begin(store: &mut Store, host: &FunctionEnv<HostState>) -> Result<Wasix, String> {
        let state = host.as_mut(store);
        let tree = std::mem::take(&mut state.wasi.files).into_tree();
        let files = Files::new(tree, state.clock.started_at());
        state.wasix = WasixState { streams: Streams::new(std::mem::take(&mut state.wasi.stdin)), ready: false };
        let streams = state.wasix.streams.clone();
        let env = gate::unlogged(|| environment(store, files, &streams).map_err(|e| e.to_string()))?;
        let functions = generate_import_object_from_env(store, &env.env, WasiVersion::Wasix32v1);
        Ok(Wasix { env, functions })
    }

    /// The host function behind an import.
    pub fn function(
        &self,
        store: &mut Store,
        host: &FunctionEnv<HostState>,
        import: &'static WasixFn,
    ) -> Result<wasmer::Function, String> {
        let theirs = |name: &str| match self.functions.get_export(MODULE, name) {
            Some(wasmer::Extern::Function(function)) => Ok(function),
            _ => Err(format!("wasmer-wasix has no `{name}`")),
        };
        match import.served {
            Served::Ours(make) => Ok(make(store, host)),
            Served::Refused => Ok(gate::refusing(store, host, import)),
            Served::Checked(checks) => {
                Ok(gate::checked(store, host, import, checks, theirs(&import.name)?, theirs("fd_close")?))
            }
        }
    }

    /// Makes the instance known, so that its functions can be called.
    pub fn initialize(
        mut self,
        store: &mut Store,
        host: &FunctionEnv<HostState>,
        instance: &Instance,
    ) -> Result<(), String> {
        gate::unlogged(|| self.env.initialize(store, instance.clone())).map_err(|e| e.to_string())?;
        host.as_mut(store).wasix.ready = true;
        Ok(())
    }
}

/// Names and types of all that wasmer-wasix has.
pub fn functions() -> HashMap<String, FunctionType> {
    let mut store = Store::new(Engine::headless());
    let streams = Streams::default();
    let Ok(env) = environment(&mut store, Files::new(Tree::default(), Duration::ZERO), &streams) else {
        return HashMap::new();
    };
    let functions = generate_import_object_from_env(&mut store, &env.env, WasiVersion::Wasix32v1);
    let of_module = functions.iter().filter(|(module, _, _)| *module == MODULE);
    of_module
        .filter_map(|(_, name, export)| match export {
            wasmer::Extern::Function(function) => Some((name.to_owned(), function.ty(&store))),
            _ => None,
        })
        .collect()
}

// Its error is large, and passed on once.
#[allow(clippy::result_large_err)]
fn environment(store: &mut Store, files: Files, streams: &Streams) -> Result<WasiFunctionEnv, WasiRuntimeError> {
    // Arguments and environment are ours to give.
    WasiEnvBuilder::new("guest")
        .runtime(runtime())
        .fs(Arc::new(files) as Arc<dyn virtual_fs::FileSystem + Send + Sync>)
        .stdin(Box::new(Stream::input(streams)))
        .stdout(Box::new(Stream::output(streams)))
        .stderr(Box::new(Stream::errors(streams)))
        .disable_default_builtins(true)
        .preopen_dir("/")?
        .current_dir("/")
        .finalize(store)
}

/// One for the process: it holds nothing of a run.
fn runtime() -> Arc<dyn Runtime + Send + Sync> {
    static RUNTIME: OnceLock<Arc<PluggableRuntime>> = OnceLock::new();
    let make = || {
        gate::hush_asserts();
        let mut runtime = PluggableRuntime::new(Arc::new(NoTasks));
        runtime.set_engine(Engine::headless());
        Arc::new(runtime)
    };
    RUNTIME.get_or_init(make).clone()
}

/// No threads, no tasks, and nothing that waits.
#[derive(Debug)]
struct NoTasks;

impl VirtualTaskManager for NoTasks {
    fn sleep_now(&self, _time: Duration) -> Pin<Box<dyn Future<Output = ()> + Send + Sync + 'static>> {
        Box::pin(std::future::ready(()))
    }

    fn task_shared(
        &self,
        _task: Box<dyn FnOnce() -> futures_util::future::BoxFuture<'static, ()> + Send + 'static>,
    ) -> Result<(), WasiThreadError> {
        Err(WasiThreadError::Unsupported)
    }

    fn task_wasm(&self, _task: TaskWasm) -> Result<(), WasiThreadError> {
        Err(WasiThreadError::Unsupported)
    }

    fn task_dedicated(&self, _task: Box<dyn FnOnce() + Send + 'static>) -> Result<(), WasiThreadError> {
        Err(WasiThreadError::Unsupported)
    }

    fn thread_parallelism(&self) -> Result<usize, WasiThreadError> {
        Ok(1)
    }
}

impl HostState {
    /// Takes over what the guest wrote to its streams.
    fn take_output(&mut self) -> Result<(), Halt> {
        let (output, errors) = self.wasix.streams.take_written();
        if !errors.is_empty() {
            self.log.write(&errors);
        }
        if output.is_empty() {
            return Ok(());
        }
        self.output.spend(output.len())?;
        match &mut self.wasi.stdout {
            super::abi::wasi::Stdout::Kept(out) => self.fuel.append(out, &output),
            super::abi::wasi::Stdout::Log => {
                self.log.write(&output);
                Ok(())
            }
        }
    }
}
