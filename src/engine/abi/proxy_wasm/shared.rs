//! Shared data, queues and metrics.

use super::{Env, Parts, Status, bytes, call, give, parts, put_u32, put_u64, short};
use crate::engine::failure::Halt;
use crate::engine::guest_metrics::{self, Kind};
use crate::engine::scope;

impl From<scope::Refused> for Status {
    fn from(refused: scope::Refused) -> Status {
        match refused {
            scope::Refused::NotFound => Status::NOT_FOUND,
            scope::Refused::CasMismatch => Status::CAS_MISMATCH,
            scope::Refused::Full => Status::INTERNAL_FAILURE,
        }
    }
}

impl From<guest_metrics::Refused> for Status {
    fn from(refused: guest_metrics::Refused) -> Status {
        match refused {
            guest_metrics::Refused::NotFound => Status::NOT_FOUND,
            guest_metrics::Refused::BadArgument => Status::BAD_ARGUMENT,
        }
    }
}

pub fn proxy_set_shared_data(env: Env<'_>, key: i32, kl: i32, value: i32, vl: i32, cas: i32) -> Result<i32, Halt> {
    call(env, |env| {
        let Parts { memory, fuel, proxy } = parts(env)?;
        let value = bytes(memory, value, vl)?;
        let key = short(memory, fuel, (key, kl), Status::BAD_ARGUMENT)?;
        fuel.spend(value.len())?;
        Ok(proxy.plugin.scope.set(key, value, cas as u32).map_err(Status::from)?)
    })
}

pub fn proxy_get_shared_data(env: Env<'_>, key: i32, kl: i32, data: i32, size: i32, cas: i32) -> Result<i32, Halt> {
    call(env, |env| {
        let Parts { memory, fuel, proxy } = parts(env)?;
        let key = short(memory, fuel, (key, kl), Status::NOT_FOUND)?;
        let (value, number) = proxy.plugin.scope.get(key).ok_or(Status::NOT_FOUND)?;
        bytes(memory, cas, 4)?;
        give(env, &value, data, size)?;
        put_u32(parts(env)?.memory, cas, number)
    })
}

pub fn proxy_register_shared_queue(env: Env<'_>, name: i32, len: i32, id: i32) -> Result<i32, Halt> {
    call(env, |env| {
        let Parts { memory, fuel, proxy } = parts(env)?;
        let name = short(memory, fuel, (name, len), Status::BAD_ARGUMENT)?;
        bytes(memory, id, 4)?;
        let queue = proxy.plugin.scope.register(name).map_err(Status::from)?;
        if !proxy.registered.contains(&queue) {
            proxy.registered.push(queue);
        }
        put_u32(memory, id, queue)
    })
}

pub fn proxy_resolve_shared_queue(
    env: Env<'_>,
    vm: i32,
    vm_len: i32,
    name: i32,
    len: i32,
    id: i32,
) -> Result<i32, Halt> {
    call(env, |env| {
        let Parts { memory, fuel, proxy } = parts(env)?;
        bytes(memory, name, len)?;
        let vm = short(memory, fuel, (vm, vm_len), Status::NOT_FOUND)?;
        let name = short(memory, fuel, (name, len), Status::NOT_FOUND)?;
        let vm = std::str::from_utf8(vm).map_err(|_| Status::NOT_FOUND)?;
        let queue = proxy.plugin.scope.resolve(vm, name).ok_or(Status::NOT_FOUND)?;
        put_u32(memory, id, queue)
    })
}

pub fn proxy_enqueue_shared_queue(env: Env<'_>, queue: i32, data: i32, len: i32) -> Result<i32, Halt> {
    call(env, |env| {
        let Parts { memory, fuel, proxy } = parts(env)?;
        let item = bytes(memory, data, len)?;
        fuel.spend(item.len())?;
        Ok(proxy.plugin.scope.enqueue(queue as u32, item).map_err(Status::from)?)
    })
}

pub fn proxy_dequeue_shared_queue(env: Env<'_>, queue: i32, data: i32, size: i32) -> Result<i32, Halt> {
    call(env, |env| {
        let Parts { memory, proxy, .. } = parts(env)?;
        // Looked at first: nothing is taken out that could not be handed over.
        bytes(memory, data, 4)?;
        bytes(memory, size, 4)?;
        let item = proxy.plugin.scope.dequeue(queue as u32).map_err(Status::from)?.ok_or(Status::EMPTY)?;
        give(env, &item, data, size)
    })
}

pub fn proxy_define_metric(env: Env<'_>, of: i32, name: i32, len: i32, id: i32) -> Result<i32, Halt> {
    call(env, |env| {
        let Parts { memory, fuel, proxy } = parts(env)?;
        let name = short(memory, fuel, (name, len), Status::BAD_ARGUMENT)?;
        let kind = Kind::of(of).ok_or(Status::BAD_ARGUMENT)?;
        bytes(memory, id, 4)?;
        let number = proxy.plugin.metrics.define(kind, name).map_err(Status::from)?;
        put_u32(memory, id, number)
    })
}

pub fn proxy_record_metric(env: Env<'_>, id: i32, value: i64) -> Result<i32, Halt> {
    call(env, |env| Ok(parts(env)?.proxy.plugin.metrics.record(id as u32, value as u64).map_err(Status::from)?))
}

pub fn proxy_increment_metric(env: Env<'_>, id: i32, by: i64) -> Result<i32, Halt> {
    call(env, |env| Ok(parts(env)?.proxy.plugin.metrics.increment(id as u32, by).map_err(Status::from)?))
}

pub fn proxy_get_metric(env: Env<'_>, id: i32, value: i32) -> Result<i32, Halt> {
    call(env, |env| {
        let Parts { memory, proxy, .. } = parts(env)?;
        let now = proxy.plugin.metrics.get(id as u32).map_err(Status::from)?;
        put_u64(memory, value, now)
    })
}
