//! One live guest: a store, an instance and the [`HostState`] of its host functions.
//!
//! A fresh run is [`Guest::instantiate`], one [`Guest::call`], [`Guest::meter`], drop. A living VM repeats
//! [`Guest::begin`] and calls; after any error it must be dropped.
//!
//! Invariant: between [`Guest::begin`] and [`Guest::meter`] the guest can't use more than its limits, whatever it does.

use std::time::{Duration, Instant};

use bytes::Bytes;
use wasmer::sys::NativeEngineExt;
use wasmer::{
    Extern, Function, FunctionEnv, FunctionEnvMut, Global, Instance, Store, TypedFunction, Value, WasmTypeList,
};

use crate::domain::{GuestFailure, Limits, Meter};

use super::LoadedModule;
use super::budget::Reserved;
use super::cancel::Cancel;
use super::failure::{Ended, Halt, classify, classify_instantiation};
use super::fuel::Fuel;
use super::host::{BoundedLog, HostState, Output};
use super::loaded::{Code, Link};
use super::memory::{Grant, GuestMemory, with_grant};
use super::tunables::GuestTunables;
use super::wasix::Wasix;
use super::{stack, sys};

/// Names that instrumentation adds to every module; no upload may use them.
pub const FUEL_MODULE: &str = "wasmgate:fuel";
pub const FUEL_EXPIRE: &str = "expire";
pub const FUEL_GLOBAL: &str = "wasmgate:fuel";

/// What one invocation may use, from one clock reading on.
#[derive(Clone, Debug)]
pub struct Allowance {
    pub limits: Limits,
    /// What the meter's wall time counts from, so that a run that met its deadline lasted at least its limit.
    began: Instant,
    pub deadline: Instant,
    /// Set when nobody waits for the run any more.
    pub cancel: Cancel,
    /// Of the processor time of the thread that it runs on, where that has others to serve.
    pub worker: Option<Duration>,
}

impl Allowance {
    /// The limits, their wall time beginning now.
    pub fn from_now(limits: Limits, cancel: Cancel) -> Allowance {
        let began = Instant::now();
        // No run may last longer than a day, whatever a tier says.
        let deadline = began + limits.wall_ms.min(Duration::from_secs(86_400));
        Allowance { limits, began, deadline, cancel, worker: None }
    }
}

pub struct Guest {
    store: Store,
    instance: Instance,
    env: FunctionEnv<HostState>,
    fuel: Global,
    started: Started,
    stack_bytes: u64,
}

#[derive(Clone, Copy)]
struct Started {
    wall: Instant,
    /// `None`: CPU time is the wall time. Reading the thread's clock takes two system calls, a tenth of a short phase.
    cpu: Option<Duration>,
}

impl Started {
    fn of(allowance: &Allowance) -> Started {
        Started { wall: allowance.began, cpu: Some(sys::thread_cpu_time()) }
    }
}

/// A guest that could not be made, or whose start function failed: how it ended and what it used.
pub struct StillBorn {
    pub ended: Ended,
    pub meter: Meter,
    pub stdout: Bytes,
    pub log: Bytes,
}

impl Guest {
    /// Makes a guest and runs its start function, if any, under the allowance. `prepare` fills the parts of the host
    /// state that the ABI needs from the first instruction on. `reserved`: of the budget, for its memory to begin with.
    pub fn instantiate(
        module: &LoadedModule,
        allowance: &Allowance,
        reserved: Reserved,
        prepare: impl FnOnce(&mut HostState),
    ) -> Result<Guest, Box<StillBorn>> {
        let started = Started::of(allowance);
        let limits = &allowance.limits;
        let memory = GuestMemory::default();
        let grant = Grant::new(&memory, limits.memory_bytes, limits.table_elements, reserved);
        let mut state = HostState::new(
            Fuel::new(limits.fuel, allowance.began, allowance.deadline, allowance.cancel.clone()),
            memory,
        );
        state.output = Output::up_to(limits.output_bytes);
        state.log = BoundedLog::new(limits.log_bytes);
        prepare(&mut state);

        let code = module.code();
        let mut engine = code.engine.clone();
        engine.set_tunables(GuestTunables::new(limits.stack_bytes));
        let mut store = Store::new(engine);
        let env = FunctionEnv::new(&mut store, state);
        let make = || link(&mut store, &env, &code);
        let made = stack::with(limits.stack_bytes, || with_grant(grant, make));
        let ended = match made {
            Ok((instance, fuel)) => {
                return Ok(Guest { store, instance, env, fuel, started, stack_bytes: limits.stack_bytes });
            }
            Err(ended) => ended,
        };
        let state = env.as_mut(&mut store);
        let meter = meter(state, state.fuel.used_at_least(), started);
        Err(Box::new(StillBorn { ended, meter, stdout: state.wasi.take_stdout(), log: state.log.take() }))
    }

    /// A new invocation of a living VM: fresh fuel, deadline, counters and log. `may_block`: on a guest thread, else
    /// inline.
    pub fn begin(&mut self, allowance: &Allowance, may_block: bool) {
        self.started = if may_block { Started::of(allowance) } else { Started { wall: allowance.began, cpu: None } };
        let state = self.env.as_mut(&mut self.store);
        state.may_block = may_block;
        state.fuel = Fuel::new(allowance.limits.fuel, allowance.began, allowance.deadline, allowance.cancel.clone());
        if let Some(most) = allowance.worker {
            state.fuel.on_worker(most);
        }
        state.clock.begin(self.started.wall);
        state.output = Output::up_to(allowance.limits.output_bytes);
        state.log = BoundedLog::new(allowance.limits.log_bytes);
        state.reaching.answer = None;
        let slice = state.fuel.begin();
        // It can't fail: the counter is a mutable i64. A failure would leave an old count, and `expire` would notice.
        let _ = self.fuel.set(&mut self.store, Value::I64(slice));
    }

    pub fn host(&mut self) -> &mut HostState {
        self.env.as_mut(&mut self.store)
    }

    pub fn exports(&self, name: &str) -> bool {
        self.instance.exports.contains(name)
    }

    /// The export as a function of this type, to be called again and again on a living VM; `None` when there is none.
    pub fn function<Args: WasmTypeList, Rets: WasmTypeList>(&self, name: &str) -> Option<TypedFunction<Args, Rets>> {
        self.instance.exports.get_typed_function(&self.store, name).ok()
    }

    /// Runs `call` with the store, and says how it ended.
    pub fn call<R>(
        &mut self,
        call: impl FnOnce(&mut Store, &Instance) -> Result<R, wasmer::RuntimeError>,
    ) -> Result<R, Ended> {
        let result = stack::with(self.stack_bytes, || call(&mut self.store, &self.instance)).map_err(|e| {
            let refused = self.env.as_ref(&self.store).memory.take_refused();
            classify(&e, refused)
        });
        let counter = self.counter();
        let over = self.env.as_ref(&self.store).fuel.is_over(counter);
        match result {
            Ok(_) | Err(Ended::Exit(_)) if over => Err(Ended::Failed(GuestFailure::OutOfFuel)),
            result => result,
        }
    }

    fn counter(&mut self) -> i64 {
        match self.fuel.get(&mut self.store) {
            Value::I64(n) => n,
            _ => 0,
        }
    }

    /// What this invocation used so far.
    pub fn meter(&mut self) -> Meter {
        let counter = self.counter();
        let state = self.env.as_ref(&self.store);
        meter(state, state.fuel.used(counter), self.started)
    }

    /// Beyond half of its limit since it started: a living VM is replaced then. A module that starts with more than half
    /// is not worn by that.
    pub fn has_grown(&self, at_start: u64, limit: u64) -> bool {
        self.memory_bytes() > (limit / 2).max(at_start)
    }

    /// Bytes of its memory now.
    pub fn memory_bytes(&self) -> u64 {
        self.env.as_ref(&self.store).memory.size() as u64
    }
}

/// Makes the imports and the instance. Gives the instance's fuel counter too.
fn link(store: &mut Store, env: &FunctionEnv<HostState>, code: &Code) -> Result<(Instance, Global), Ended> {
    let not_loadable = |why: String| Ended::Failed(GuestFailure::NotLoadable(why));
    let wasix = code.needs_wasix.then(|| Wasix::begin(store, env)).transpose().map_err(not_loadable)?;
    let make = |link: &Link| match (link, &wasix) {
        (Link::Host(make), _) => Ok(Extern::from(make(store, env))),
        (Link::Wasix(import), Some(wasix)) => wasix.function(store, env, import).map(Extern::from),
        (Link::Wasix(import), None) => Err(format!("`{}` has nobody to serve it", import.name)),
    };
    let imports = code.imports.iter().map(make).collect::<Result<Vec<_>, _>>().map_err(not_loadable)?;
    let instance = Instance::new_by_index(store, &code.module, &imports).map_err(|e| {
        let refused = env.as_ref(store).memory.take_refused();
        classify_instantiation(&e, refused)
    })?;
    let fuel = instance.exports.get_global(FUEL_GLOBAL).cloned();
    let fuel = fuel.map_err(|_| not_loadable("the artifact has no fuel counter".into()))?;
    if let Some(wasix) = wasix {
        wasix.initialize(store, env, &instance).map_err(not_loadable)?;
    }
    Ok((instance, fuel))
}

fn meter(state: &HostState, fuel: u64, started: Started) -> Meter {
    let wall = started.wall.elapsed();
    Meter {
        fuel,
        cpu: started.cpu.map_or(wall, |cpu| sys::thread_cpu_time().saturating_sub(cpu)),
        wall,
        memory_peak_bytes: state.memory.peak_bytes(),
        output_bytes: state.output.written,
    }
}

/// The host function behind [`FUEL_EXPIRE`]: takes the guest's counter, gives the next one.
pub fn make_expire(store: &mut Store, env: &FunctionEnv<HostState>) -> Function {
    fn expire(mut env: FunctionEnvMut<'_, HostState>, counter: i64) -> Result<i64, Halt> {
        env.data_mut().fuel.expire(counter)
    }
    Function::new_typed_with_env(store, env, expire)
}
