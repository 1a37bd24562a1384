//! Proxy-Wasm 0.2.1 and 0.2.0 for HTTP, 0.1.0 by shim (<https://github.com/proxy-wasm/spec>): the host functions of `env`.
//!
//! Invariant: a function answers with a status and traps for nothing but its guest's limits; a bad pointer is
//! `INVALID_MEMORY_ACCESS` with nothing written, and a status is one that the SDKs survive where the ABI leaves a choice.

mod buffers;
mod calls;
mod foreign;
mod grpc;
mod maps;
mod pairs;
mod properties;
mod shape;
mod shared;
mod state;
mod streams;
mod system;

use smallvec::SmallVec;
use wasmer::FunctionEnvMut;

use crate::domain::{Abi, ModuleShape, NotLoadable};
use crate::engine::failure::Halt;
use crate::engine::fuel::Fuel;
use crate::engine::host::HostState;
use crate::engine::memory::GuestMemory;

use super::wire::TEXT_BYTES;
use super::{AbiHost, HostFn, host_fns};

use buffers::{proxy_get_buffer_bytes, proxy_get_buffer_status, proxy_set_buffer_bytes};
use calls::{proxy_get_status, proxy_http_call};
use foreign::proxy_call_foreign_function;
use grpc::{proxy_grpc_call, proxy_grpc_cancel, proxy_grpc_close, proxy_grpc_send, proxy_grpc_stream};
use maps::{
    proxy_add_header_map_value, proxy_get_header_map_pairs, proxy_get_header_map_size, proxy_get_header_map_value,
    proxy_remove_header_map_value, proxy_replace_header_map_value, proxy_set_header_map_pairs,
};
use properties::{proxy_get_property, proxy_set_property};
use shared::{
    proxy_define_metric, proxy_dequeue_shared_queue, proxy_enqueue_shared_queue, proxy_get_metric,
    proxy_get_shared_data, proxy_increment_metric, proxy_record_metric, proxy_register_shared_queue,
    proxy_resolve_shared_queue, proxy_set_shared_data,
};
use streams::{
    proxy_clear_route_cache, proxy_close_stream, proxy_continue_request, proxy_continue_response,
    proxy_continue_stream, proxy_done, proxy_send_local_response, proxy_set_effective_context,
};
use system::{
    emscripten_notify_memory_growth, proxy_get_configuration, proxy_get_current_time_nanoseconds, proxy_get_log_level,
    proxy_log, proxy_set_tick_period_milliseconds, pthread_equal,
};

pub use calls::{Call, CallAnswer, Calls};
pub use grpc::Begun;
pub use maps::{request_pairs, response_pairs};
pub use shape::{ALLOCATORS, Version};
pub use state::{Callback, Event, Plugin, ProxyState, ROOT, Stream, Woken};

pub const MODULE: &str = "env";

host_fns! {
    static TABLE;
    proxy_log(i32, i32, i32) -> i32;
    proxy_get_log_level(i32) -> i32;
    proxy_get_current_time_nanoseconds(i32) -> i32;
    proxy_set_tick_period_milliseconds(i32) -> i32;
    proxy_get_buffer_bytes(i32, i32, i32, i32, i32) -> i32;
    proxy_set_buffer_bytes(i32, i32, i32, i32, i32) -> i32;
    proxy_get_buffer_status(i32, i32, i32) -> i32;
    proxy_get_header_map_size(i32, i32) -> i32;
    proxy_get_header_map_pairs(i32, i32, i32) -> i32;
    proxy_set_header_map_pairs(i32, i32, i32) -> i32;
    proxy_get_header_map_value(i32, i32, i32, i32, i32) -> i32;
    proxy_add_header_map_value(i32, i32, i32, i32, i32) -> i32;
    proxy_replace_header_map_value(i32, i32, i32, i32, i32) -> i32;
    proxy_remove_header_map_value(i32, i32, i32) -> i32;
    proxy_continue_stream(i32) -> i32;
    proxy_close_stream(i32) -> i32;
    proxy_get_status(i32, i32, i32) -> i32;
    proxy_send_local_response(i32, i32, i32, i32, i32, i32, i32, i32) -> i32;
    proxy_http_call(i32, i32, i32, i32, i32, i32, i32, i32, i32, i32) -> i32;
    proxy_grpc_call(i32, i32, i32, i32, i32, i32, i32, i32, i32, i32, i32, i32) -> i32;
    proxy_grpc_stream(i32, i32, i32, i32, i32, i32, i32, i32, i32) -> i32;
    proxy_grpc_send(i32, i32, i32, i32) -> i32;
    proxy_grpc_cancel(i32) -> i32;
    proxy_grpc_close(i32) -> i32;
    proxy_set_shared_data(i32, i32, i32, i32, i32) -> i32;
    proxy_get_shared_data(i32, i32, i32, i32, i32) -> i32;
    proxy_register_shared_queue(i32, i32, i32) -> i32;
    proxy_resolve_shared_queue(i32, i32, i32, i32, i32) -> i32;
    proxy_enqueue_shared_queue(i32, i32, i32) -> i32;
    proxy_dequeue_shared_queue(i32, i32, i32) -> i32;
    proxy_define_metric(i32, i32, i32, i32) -> i32;
    proxy_record_metric(i32, i64) -> i32;
    proxy_increment_metric(i32, i64) -> i32;
    proxy_get_metric(i32, i32) -> i32;
    proxy_get_property(i32, i32, i32, i32) -> i32;
    proxy_set_property(i32, i32, i32, i32) -> i32;
    proxy_call_foreign_function(i32, i32, i32, i32, i32, i32) -> i32;
    proxy_done() -> i32;
    proxy_set_effective_context(i32) -> i32;
    proxy_get_configuration(i32, i32) -> i32;
    proxy_continue_request() -> i32;
    proxy_continue_response() -> i32;
    proxy_clear_route_cache() -> i32;
    pthread_equal(i32, i32) -> i32;
    emscripten_notify_memory_growth(i32);
}

/// What a host function gives back (ABI, "proxy_status_t").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status(i32);

impl Status {
    pub const OK: Status = Status(0);
    pub const NOT_FOUND: Status = Status(1);
    pub const BAD_ARGUMENT: Status = Status(2);
    pub const SERIALIZATION_FAILURE: Status = Status(3);
    pub const PARSE_FAILURE: Status = Status(4);
    pub const INVALID_MEMORY_ACCESS: Status = Status(6);
    pub const EMPTY: Status = Status(7);
    pub const CAS_MISMATCH: Status = Status(8);
    pub const INTERNAL_FAILURE: Status = Status(10);
}

/// Why a host function stops before its end.
#[derive(Debug)]
pub enum Stop {
    Status(Status),
    Halt(Halt),
}

impl From<Status> for Stop {
    fn from(status: Status) -> Stop {
        Stop::Status(status)
    }
}

/// The guest is out of something: it ends here.
impl From<Halt> for Stop {
    fn from(halt: Halt) -> Stop {
        Stop::Halt(halt)
    }
}

type Env<'a> = FunctionEnvMut<'a, HostState>;
pub type Done<T = ()> = Result<T, Stop>;

fn answer(done: Done) -> Result<i32, Halt> {
    match done {
        Ok(()) => Ok(Status::OK.0),
        Err(Stop::Status(status)) => Ok(status.0),
        Err(Stop::Halt(halt)) => Err(halt),
    }
}

/// A host call. Not one of those that are served at any time: while the guest starts, or allocates for the host, there
/// is nothing that it could ask for.
fn call(mut env: Env<'_>, work: impl FnOnce(&mut Env<'_>) -> Done) -> Result<i32, Halt> {
    let state = env.data_mut();
    state.fuel.spend(0)?;
    let serves = state.proxy.as_ref().is_some_and(|proxy| !proxy.allocating && proxy.callback != Callback::Start);
    answer(if serves { work(&mut env) } else { Err(Status::INTERNAL_FAILURE.into()) })
}

/// A host call that is always served.
fn basic_call(mut env: Env<'_>, work: impl FnOnce(&mut HostState) -> Done) -> Result<i32, Halt> {
    let state = env.data_mut();
    state.fuel.spend(0)?;
    answer(work(state))
}

/// What a call may reach: memory and fuel beside what the ABI keeps.
struct Parts<'a> {
    memory: &'a mut GuestMemory,
    fuel: &'a mut Fuel,
    proxy: &'a mut ProxyState,
}

fn parts<'a>(env: &'a mut Env<'_>) -> Done<Parts<'a>> {
    let HostState { memory, fuel, proxy, .. } = env.data_mut();
    let proxy = proxy.as_deref_mut().ok_or(Status::INTERNAL_FAILURE)?;
    Ok(Parts { memory, fuel, proxy })
}

fn bytes(memory: &GuestMemory, at: i32, len: i32) -> Done<&[u8]> {
    memory.slice(at as u32, len as u32).map_err(|_| Status::INVALID_MEMORY_ACCESS.into())
}

/// A name, a key or a path of the guest's. Its length is charged, whatever it is, and nothing looks at one that is too
/// long.
fn short<'a>(memory: &'a GuestMemory, fuel: &mut Fuel, (at, len): (i32, i32), too_long: Status) -> Done<&'a [u8]> {
    let text = bytes(memory, at, len)?;
    fuel.spend(text.len())?;
    if text.len() <= TEXT_BYTES { Ok(text) } else { Err(too_long.into()) }
}

fn put_u32(memory: &mut GuestMemory, at: i32, value: u32) -> Done {
    memory.write_u32(at as u32, value).map_err(|_| Status::INVALID_MEMORY_ACCESS.into())
}

fn put_u64(memory: &mut GuestMemory, at: i32, value: u64) -> Done {
    memory.write_u64(at as u32, value).map_err(|_| Status::INVALID_MEMORY_ACCESS.into())
}

/// A copy of what is to be given: the guest's allocator runs before.
type Given = SmallVec<[u8; 128]>;

/// Hands bytes to the guest in memory that its allocator gives, which is its own from then on. Its allocator is never
/// asked for nothing: SDKs look at the first byte of what they gave.
fn give(env: &mut Env<'_>, given: &[u8], data: i32, size: i32) -> Done {
    let (state, mut store) = env.data_and_store_mut();
    state.fuel.spend(given.len())?;
    bytes(&state.memory, data, 4)?;
    bytes(&state.memory, size, 4)?;
    let mut at = 0;
    if !given.is_empty() {
        let len = i32::try_from(given.len()).map_err(|_| Status::INTERNAL_FAILURE)?;
        let proxy = state.proxy.as_deref_mut().ok_or(Status::INTERNAL_FAILURE)?;
        let allocate = proxy.allocate.clone().ok_or(Status::INTERNAL_FAILURE)?;
        proxy.allocating = true;
        let allocated = allocate.call(&mut store, len);
        let state = env.data_mut();
        if let Some(proxy) = &mut state.proxy {
            proxy.allocating = false;
        }
        at = allocated.map_err(|error| match error.downcast_ref::<Halt>() {
            Some(halt) => halt.clone(),
            None => Halt::Trap(format!("the guest's allocator: {}", error.message())),
        })?;
        if at == 0 {
            return Err(Status::INVALID_MEMORY_ACCESS.into());
        }
        let written = state.memory.write(at as u32, given);
        written.map_err(|_| Status::INVALID_MEMORY_ACCESS)?;
    }
    let memory = &mut env.data_mut().memory;
    put_u32(memory, data, at as u32)?;
    put_u32(memory, size, given.len() as u32)
}

pub struct ProxyWasm;

impl AbiHost for ProxyWasm {
    fn abi(&self) -> Abi {
        Abi::ProxyWasm
    }

    fn matches(&self, shape: &ModuleShape) -> bool {
        shape::is_filter(shape)
    }

    fn check(&self, shape: &ModuleShape) -> Result<(), NotLoadable> {
        shape::check(shape)
    }

    fn host_fn(&self, module: &str, name: &str) -> Option<&'static HostFn> {
        (module == MODULE).then(|| TABLE.iter().find(|f| f.name == name)).flatten()
    }
}
