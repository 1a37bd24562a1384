//! The gateway's own functions, `wasmgate_v1`, for guests of http-wasm, commands and CGI; README.md describes them.
//!
//! Buffers are http-wasm's: what does not fit is not written, and its true length returned. Invariant: a refusal is one
//! of the negative numbers below; a bad pointer, as anywhere in http-wasm, ends the guest.

use std::time::Duration;

use wasmer::FunctionEnvMut;

use super::http_wasm::output;
use super::{HostFn, host_fns, wire};
use crate::domain::Abi;
use crate::engine::failure::Halt;
use crate::engine::guest_log;
use crate::engine::guest_metrics::{HandlerMetrics, Kind};
use crate::engine::host::HostState;
use crate::engine::http;
use crate::engine::outside::{Keep, Kept, Refusal, call_time};

pub const MODULE: &str = "wasmgate_v1";

host_fns! {
    static TABLE;
    config(i32, i32) -> i32;
    log(i32, i32, i32);
    principal(i32, i32, i32, i32) -> i32;
    value_get(i32, i32, i32, i32) -> i32;
    value_set(i32, i32, i32, i32) -> i32;
    kv_get(i32, i32, i32, i32, i32) -> i32;
    kv_set(i32, i32, i32, i32, i64) -> i32;
    kv_cas(i32, i32, i32, i32, i64, i64) -> i32;
    kv_incr(i32, i32, i64, i64, i32) -> i32;
    kv_delete(i32, i32) -> i32;
    rate_check(i32, i32, i32) -> i32;
    http_call(i32, i32, i32, i32, i32, i32, i32) -> i32;
    http_answer_head(i32, i32) -> i32;
    http_answer_body(i32, i32) -> i32;
    metric_define(i32, i32, i32) -> i32;
    metric_record(i32, i64) -> i32;
    metric_increment(i32, i64) -> i32;
}

/// They answer from what the run has, and leave nothing behind but with its end.
const WITHIN_THE_RUN: [&str; 5] = ["config", "log", "principal", "value_get", "value_set"];

pub fn serves(abi: Abi) -> bool {
    matches!(abi, Abi::HttpWasm | Abi::Command | Abi::Cgi)
}

pub fn host_fn(name: &str) -> Option<&'static HostFn> {
    TABLE.iter().find(|f| f.name == name)
}

pub fn reaches_out(name: &str) -> bool {
    !WITHIN_THE_RUN.contains(&name)
}

type Env<'a> = FunctionEnvMut<'a, HostState>;

fn number(refusal: Refusal) -> i32 {
    match refusal {
        Refusal::NotFound => -1,
        Refusal::Denied => -2,
        Refusal::BadArgument => -3,
        Refusal::Full => -4,
        Refusal::Conflict => -5,
        Refusal::Timeout => -6,
        Refusal::Unavailable => -7,
    }
}

fn answer(done: Result<(), Refusal>) -> i32 {
    done.map_or_else(number, |()| 0)
}

/// Bytes of the guest, charged, as a copy; `None`: they are more than `most`.
fn up_to(state: &mut HostState, most: u64, at: i32, len: i32) -> Result<Option<Vec<u8>>, Halt> {
    let HostState { memory, fuel, .. } = state;
    let bytes = memory.slice(at as u32, len as u32)?;
    if bytes.len() as u64 > most {
        return fuel.spend(0).map(|()| None);
    }
    fuel.spend(bytes.len())?;
    let mut copy = Vec::with_capacity(bytes.len());
    fuel.append(&mut copy, bytes)?;
    Ok(Some(copy))
}

fn given(state: &mut HostState, at: i32, len: i32) -> Result<Option<Vec<u8>>, Halt> {
    up_to(state, wire::TEXT_BYTES as u64, at, len)
}

/// As a `len` result. Longer than what one can say is nothing that the host has.
fn give(state: &mut HostState, bytes: &[u8], buf: i32, cap: i32) -> Result<i32, Halt> {
    state.fuel.spend(bytes.len())?;
    output::len(&mut state.memory, bytes, buf, cap)
}

/// Milliseconds; 0 for none. `None`: they are negative.
fn lifetime(ttl: i64) -> Option<Option<Duration>> {
    let millis = u64::try_from(ttl).ok()?;
    Some((millis > 0).then(|| Duration::from_millis(millis)))
}

pub fn config(mut env: Env<'_>, buf: i32, cap: i32) -> Result<i32, Halt> {
    let state = env.data_mut();
    let config = state.config.clone();
    give(state, &config, buf, cap)
}

/// To the handler's log; an execution's is its standard error.
pub fn log(mut env: Env<'_>, level: i32, message: i32, len: i32) -> Result<(), Halt> {
    let HostState { memory, fuel, lines, log, reaching, .. } = env.data_mut();
    let text = memory.slice(message as u32, len as u32)?;
    let Some(level) = guest_log::level(level) else { return fuel.spend(0) };
    fuel.spend(text.len())?;
    if !reaching.of_handler() {
        let name = level.as_str().to_ascii_lowercase();
        [name.as_bytes(), b": ", text, b"\n"].into_iter().for_each(|part| log.write(part));
    } else if guest_log::is_enabled(level) {
        lines.push(level, text, None);
    }
    Ok(())
}

pub fn principal(mut env: Env<'_>, field: i32, field_len: i32, buf: i32, cap: i32) -> Result<i32, Halt> {
    let state = env.data_mut();
    let Some(field) = given(state, field, field_len)? else { return Ok(number(Refusal::NotFound)) };
    match state.info().and_then(|info| info.field(&field)).map(str::to_owned) {
        Some(value) => give(state, value.as_bytes(), buf, cap),
        None => Ok(number(Refusal::NotFound)),
    }
}

pub fn value_get(mut env: Env<'_>, name: i32, name_len: i32, buf: i32, cap: i32) -> Result<i32, Halt> {
    let state = env.data_mut();
    let Some(name) = given(state, name, name_len)? else { return Ok(number(Refusal::NotFound)) };
    match state.handed_on().get(&name).cloned() {
        Some(value) => give(state, &value, buf, cap),
        None => Ok(number(Refusal::NotFound)),
    }
}

pub fn value_set(mut env: Env<'_>, name: i32, name_len: i32, value: i32, value_len: i32) -> Result<i32, Halt> {
    let state = env.data_mut();
    let (Some(name), Some(value)) = (given(state, name, name_len)?, given(state, value, value_len)?) else {
        return Ok(number(Refusal::Full));
    };
    Ok(if http::hand_on(state.hand_on(), &name, &value) { 0 } else { number(Refusal::Full) })
}

/// `version`: where to write the value's number, 8 bytes; 0 for nowhere.
pub fn kv_get(mut env: Env<'_>, key: i32, key_len: i32, buf: i32, cap: i32, version: i32) -> Result<i32, Halt> {
    let state = env.data_mut();
    let Some(key) = given(state, key, key_len)? else { return Ok(number(Refusal::BadArgument)) };
    match state.keep(key, Keep::Get)? {
        Ok(Kept::Value(found)) => {
            if version != 0 {
                state.memory.write_u64(version as u32, found.version)?;
            }
            give(state, &found.value, buf, cap)
        }
        Ok(_) => Ok(number(Refusal::NotFound)),
        Err(refusal) => Ok(number(refusal)),
    }
}

pub fn kv_set(env: Env<'_>, key: i32, key_len: i32, value: i32, value_len: i32, ttl: i64) -> Result<i32, Halt> {
    write(env, (key, key_len), (value, value_len), ttl, None)
}

pub fn kv_cas(
    env: Env<'_>,
    key: i32,
    key_len: i32,
    value: i32,
    value_len: i32,
    ttl: i64,
    version: i64,
) -> Result<i32, Halt> {
    write(env, (key, key_len), (value, value_len), ttl, Some(version as u64))
}

fn write(mut env: Env<'_>, key: (i32, i32), value: (i32, i32), ttl: i64, expected: Option<u64>) -> Result<i32, Halt> {
    let state = env.data_mut();
    let (Some(key), Some(value)) = (given(state, key.0, key.1)?, given(state, value.0, value.1)?) else {
        return Ok(number(Refusal::BadArgument));
    };
    let Some(ttl) = lifetime(ttl) else { return Ok(number(Refusal::BadArgument)) };
    Ok(answer(state.keep(key, Keep::Set { value, ttl, expected })?.map(drop)))
}

/// `sum`: where to write it, 8 bytes.
pub fn kv_incr(mut env: Env<'_>, key: i32, key_len: i32, by: i64, ttl: i64, sum: i32) -> Result<i32, Halt> {
    let state = env.data_mut();
    let Some(key) = given(state, key, key_len)? else { return Ok(number(Refusal::BadArgument)) };
    state.memory.slice(sum as u32, 8)?;
    let Some(ttl) = lifetime(ttl) else { return Ok(number(Refusal::BadArgument)) };
    match state.keep(key, Keep::Add { by, ttl })? {
        Ok(Kept::Sum(total)) => state.memory.write_u64(sum as u32, total as u64).map(|()| 0),
        Ok(_) => Ok(number(Refusal::Unavailable)),
        Err(refusal) => Ok(number(refusal)),
    }
}

pub fn kv_delete(mut env: Env<'_>, key: i32, key_len: i32) -> Result<i32, Halt> {
    let state = env.data_mut();
    let Some(key) = given(state, key, key_len)? else { return Ok(number(Refusal::BadArgument)) };
    Ok(answer(state.keep(key, Keep::Delete)?.map(drop)))
}

/// 0, or the seconds until it would be admitted.
pub fn rate_check(mut env: Env<'_>, quota: i32, quota_len: i32, cost: i32) -> Result<i32, Halt> {
    let state = env.data_mut();
    let quota = given(state, quota, quota_len)?;
    let charged = match (quota, u64::try_from(cost)) {
        (Some(quota), Ok(cost)) if cost > 0 => state.charge(&quota, cost)?,
        _ => Err(Refusal::BadArgument),
    };
    Ok(match charged {
        Ok(None) => 0,
        Ok(Some(wait)) => i32::try_from(wait.as_millis().div_ceil(1000)).unwrap_or(i32::MAX).max(1),
        Err(refusal) => number(refusal),
    })
}

/// `head`: `METHOD /path`, then `name: value` lines. The status, and the answer for the two calls below.
#[expect(clippy::too_many_arguments, reason = "a pointer and a length for each of three")]
pub fn http_call(
    mut env: Env<'_>,
    upstream: i32,
    upstream_len: i32,
    head: i32,
    head_len: i32,
    body: i32,
    body_len: i32,
    timeout_ms: i32,
) -> Result<i32, Halt> {
    let state = env.data_mut();
    let (upstream, head) = (given(state, upstream, upstream_len)?, given(state, head, head_len)?);
    let body = up_to(state, state.output.limit, body, body_len)?;
    let (Some(upstream), Some(head), Some(body)) = (upstream, head, body) else {
        return Ok(number(Refusal::BadArgument));
    };
    let Some(request) = parse(&upstream, &head).and_then(|fields| wire::request(&fields, body.into())) else {
        return Ok(number(Refusal::BadArgument));
    };
    Ok(state.fetch(&upstream, request, call_time(timeout_ms))?.map_or_else(number, |status| status.as_u16().into()))
}

/// As `wire::request` wants it. Without a `host` it is the upstream's name.
fn parse<'a>(upstream: &'a [u8], head: &'a [u8]) -> Option<Vec<(&'a [u8], &'a [u8])>> {
    let mut lines = head.split(|b| *b == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let first = lines.next()?;
    let space = first.iter().position(|b| *b == b' ')?;
    let mut fields: Vec<(&[u8], &[u8])> = vec![(b":method", &first[..space]), (b":path", &first[space + 1..])];
    let mut host = upstream;
    for line in lines.filter(|line| !line.is_empty()) {
        let colon = line.iter().position(|b| *b == b':')?;
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if name.eq_ignore_ascii_case(b"host") {
            host = value;
        } else {
            // An empty name, which a field of ours begins with, is none.
            fields.push((Some(name).filter(|name| !name.is_empty())?, value));
        }
    }
    fields.push((b":authority", host));
    Some(fields)
}

pub fn http_answer_head(mut env: Env<'_>, buf: i32, cap: i32) -> Result<i32, Halt> {
    let HostState { memory, fuel, reaching, .. } = env.data_mut();
    let Some(answer) = &reaching.answer else { return Ok(number(Refusal::NotFound)) };
    fuel.spend(answer.head.len())?;
    output::len(memory, &answer.head, buf, cap)
}

pub fn http_answer_body(mut env: Env<'_>, buf: i32, cap: i32) -> Result<i32, Halt> {
    let HostState { memory, fuel, reaching, .. } = env.data_mut();
    let Some(answer) = &reaching.answer else { return Ok(number(Refusal::NotFound)) };
    fuel.spend(answer.body.len())?;
    let length = u32::try_from(answer.body.len()).map_err(|_| Halt::OutputTooLarge)?;
    if length <= cap as u32 && length > 0 {
        fuel.copy(memory.slice_mut(buf as u32, length)?, &answer.body)?;
    }
    Ok(length as i32)
}

/// Counter 0, gauge 1, histogram 2. Its number, from 1.
pub fn metric_define(mut env: Env<'_>, kind: i32, name: i32, name_len: i32) -> Result<i32, Halt> {
    let state = env.data_mut();
    let Some(name) = given(state, name, name_len)? else { return Ok(number(Refusal::BadArgument)) };
    let Some(kind) = Kind::of(kind) else { return Ok(number(Refusal::BadArgument)) };
    let defined = metrics(state).and_then(|metrics| metrics.define(kind, &name).map_err(Refusal::from));
    // What is beyond the bound has a number that no guest can hold.
    let id = defined.and_then(|id| i32::try_from(id).map_err(|_| Refusal::Full));
    Ok(id.unwrap_or_else(number))
}

pub fn metric_record(mut env: Env<'_>, id: i32, value: i64) -> Result<i32, Halt> {
    let state = env.data_mut();
    state.fuel.spend(0)?;
    Ok(match u64::try_from(value) {
        Ok(value) => answer(metrics(state).and_then(|metrics| Ok(metrics.record(id as u32, value)?))),
        Err(_) => number(Refusal::BadArgument),
    })
}

pub fn metric_increment(mut env: Env<'_>, id: i32, by: i64) -> Result<i32, Halt> {
    let state = env.data_mut();
    state.fuel.spend(0)?;
    Ok(answer(metrics(state).and_then(|metrics| Ok(metrics.increment(id as u32, by)?))))
}

fn metrics(state: &HostState) -> Result<&HandlerMetrics, Refusal> {
    state.reaching.reach.as_ref().and_then(|reach| reach.metrics.as_deref()).ok_or(Refusal::Denied)
}
