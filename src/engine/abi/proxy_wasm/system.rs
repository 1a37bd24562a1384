//! Log, clock, timer, and what Emscripten's start-up code asks.

use std::time::Duration;

use tracing::Level;

use super::{Done, Env, Status, basic_call, bytes, call, give, parts, put_u32, put_u64};
use crate::engine::failure::Halt;
use crate::engine::guest_log::is_enabled;
use crate::engine::host::HostState;

/// A timer is not to be shorter.
const MIN_TICK: Duration = Duration::from_millis(5);

/// Trace 0, debug 1, info 2, warn 3, error 4, critical 5.
fn level(level: i32) -> Done<Level> {
    Ok(match level {
        0 => Level::TRACE,
        1 => Level::DEBUG,
        2 => Level::INFO,
        3 => Level::WARN,
        4 | 5 => Level::ERROR,
        _ => return Err(Status::BAD_ARGUMENT.into()),
    })
}

pub fn proxy_log(env: Env<'_>, at: i32, message: i32, len: i32) -> Result<i32, Halt> {
    basic_call(env, |state| {
        let level = level(at)?;
        let HostState { memory, fuel, lines, proxy, .. } = state;
        let text = bytes(memory, message, len)?;
        if is_enabled(level) {
            fuel.spend(text.len())?;
            lines.push(level, text, proxy.as_mut().and_then(|proxy| proxy.request_id()));
        }
        Ok(())
    })
}

/// The lowest that is written.
pub fn proxy_get_log_level(env: Env<'_>, at: i32) -> Result<i32, Halt> {
    basic_call(env, |state| {
        let lowest = (0..4).find(|n| level(*n).is_ok_and(is_enabled)).unwrap_or(4);
        put_u32(&mut state.memory, at, lowest as u32)
    })
}

pub fn proxy_get_current_time_nanoseconds(env: Env<'_>, at: i32) -> Result<i32, Halt> {
    basic_call(env, |state| {
        let now = state.clock.now();
        put_u64(&mut state.memory, at, u64::try_from(now.as_nanos()).unwrap_or(u64::MAX))
    })
}

/// Of the root context, whichever is acted on; 0 for none.
pub fn proxy_set_tick_period_milliseconds(env: Env<'_>, period: i32) -> Result<i32, Halt> {
    call(env, |env| {
        let period = Duration::from_millis(u64::from(period as u32));
        parts(env)?.proxy.tick = Some(if period.is_zero() { period } else { period.max(MIN_TICK) });
        Ok(())
    })
}

/// 0.1.0: the configuration of the callback under way.
pub fn proxy_get_configuration(env: Env<'_>, data: i32, size: i32) -> Result<i32, Halt> {
    call(env, |env| {
        let proxy = parts(env)?.proxy;
        let config = match proxy.callback {
            super::Callback::VmStart => proxy.plugin.vm_config.clone(),
            _ => proxy.plugin.reach.config.clone(),
        };
        give(env, &config, data, size)
    })
}

pub fn pthread_equal(_env: Env<'_>, a: i32, b: i32) -> Result<i32, Halt> {
    Ok(i32::from(a == b))
}

pub fn emscripten_notify_memory_growth(_env: Env<'_>, _memory: i32) -> Result<(), Halt> {
    Ok(())
}
