//! Functions of the gateway's own, by name. Numbers in arguments and results are little-endian.
//!
//! | name | arguments | result |
//! |---|---|---|
//! | `clear_route_cache` | | |
//! | `wasmgate_request_header_values` | name | all values of a header, each with a NUL |
//! | `wasmgate_kv_get` | key | number (8 bytes), value; `NOT_FOUND` |
//! | `wasmgate_kv_set` | time to live in ms (8), length of the key (4), key, value | |
//! | `wasmgate_kv_cas` | expected number (8), time to live in ms (8), length of the key (4), key, value | one byte: 1 written, 0 not |
//! | `wasmgate_kv_incr` | addend (8), time to live in ms (8), key | sum (8) |
//! | `wasmgate_kv_delete` | key | one byte: 1 there was a value, 0 there was none |
//!
//! What the arguments are not is `BAD_ARGUMENT`; no room, or a store that can't be reached, `INTERNAL_FAILURE`.

use std::time::Duration;

use super::{Done, Env, Parts, Status, bytes, call, give, parts, short};
use crate::engine::failure::Halt;
use crate::engine::host::HostState;
use crate::engine::outside::{Keep, Kept, Refusal};

pub fn proxy_call_foreign_function(
    env: Env<'_>,
    name: i32,
    name_len: i32,
    arguments: i32,
    arguments_len: i32,
    results: i32,
    size: i32,
) -> Result<i32, Halt> {
    call(env, |env| {
        let Parts { memory, fuel, proxy } = parts(env)?;
        let arguments = bytes(memory, arguments, arguments_len)?;
        let name = short(memory, fuel, (name, name_len), Status::NOT_FOUND)?;
        fuel.spend(arguments.len())?;
        let result = match name {
            // A route is found once, before any filter.
            b"clear_route_cache" => Vec::new(),
            // Of these `proxy_get_header_map_value` gives the first.
            b"wasmgate_request_header_values" => {
                let name = http::HeaderName::from_bytes(arguments).map_err(|_| Status::BAD_ARGUMENT)?;
                let (exchange, _) = proxy.exchange()?;
                let values = exchange.request.headers.get_all(name).iter();
                values.flat_map(|value| value.as_bytes().iter().copied().chain([0])).collect()
            }
            name => {
                let operation = name.strip_prefix(b"wasmgate_kv_").ok_or(Status::NOT_FOUND)?;
                let (key, keep) = operation_of(operation, arguments)?;
                keep_value(env.data_mut(), key, keep)?
            }
        };
        // Who wants no result says so with a pointer to nowhere.
        if results == 0 || size == 0 {
            return Ok(env.data_mut().fuel.spend(result.len())?);
        }
        give(env, &result, results, size)
    })
}

fn operation_of(name: &[u8], mut arguments: &[u8]) -> Done<(Vec<u8>, Keep)> {
    let rest = &mut arguments;
    Ok(match name {
        b"get" => (rest.to_vec(), Keep::Get),
        b"delete" => (rest.to_vec(), Keep::Delete),
        b"set" => set(rest, None)?,
        b"cas" => {
            let expected = u64::from_le_bytes(take(rest)?);
            set(rest, Some(expected))?
        }
        b"incr" => {
            let (by, ttl) = (i64::from_le_bytes(take(rest)?), lifetime(rest)?);
            (rest.to_vec(), Keep::Add { by, ttl })
        }
        _ => return Err(Status::NOT_FOUND.into()),
    })
}

fn set(rest: &mut &[u8], expected: Option<u64>) -> Done<(Vec<u8>, Keep)> {
    let (ttl, length) = (lifetime(rest)?, u32::from_le_bytes(take(rest)?));
    let (key, value) = rest.split_at_checked(length as usize).ok_or(Status::BAD_ARGUMENT)?;
    Ok((key.to_vec(), Keep::Set { value: value.to_vec(), ttl, expected }))
}

fn take<const N: usize>(rest: &mut &[u8]) -> Done<[u8; N]> {
    let (number, behind) = rest.split_first_chunk().ok_or(Status::BAD_ARGUMENT)?;
    *rest = behind;
    Ok(*number)
}

fn lifetime(rest: &mut &[u8]) -> Done<Option<Duration>> {
    let millis = u64::from_le_bytes(take(rest)?);
    Ok((millis > 0).then(|| Duration::from_millis(millis)))
}

fn keep_value(state: &mut HostState, key: Vec<u8>, keep: Keep) -> Done<Vec<u8>> {
    let (is_cas, deletes) = (matches!(keep, Keep::Set { expected: Some(_), .. }), matches!(keep, Keep::Delete));
    Ok(match state.keep(key, keep)? {
        Ok(Kept::Value(found)) => [&found.version.to_le_bytes()[..], &found.value].concat(),
        Ok(Kept::Sum(sum)) => sum.to_le_bytes().to_vec(),
        Ok(Kept::Written) if is_cas || deletes => vec![1],
        Ok(_) => Vec::new(),
        Err(Refusal::Conflict) if is_cas => vec![0],
        Err(Refusal::NotFound) if deletes => vec![0],
        Err(Refusal::NotFound) => return Err(Status::NOT_FOUND.into()),
        Err(Refusal::BadArgument | Refusal::Conflict) => return Err(Status::BAD_ARGUMENT.into()),
        Err(_) => return Err(Status::INTERNAL_FAILURE.into()),
    })
}
