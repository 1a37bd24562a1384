//! The `core` ABI: a module without imports, one exported function with scalar arguments and results.
//!
//! Invariant: arguments are parsed by the function's own signature before anything of the guest runs.

use serde_json::Value as Json;
use wasmer::{Type, Value};

use crate::domain::rejection::NotLoadableKind;
use crate::domain::{Abi, GuestFailure, ModuleShape, NotLoadable};
use crate::engine::failure::Ended;
use crate::engine::guest::Guest;
use crate::engine::{Input, RunError};

use super::{AbiHost, HostFn};

/// Tried in this order when the caller names no function.
const ENTRIES: [&str; 3] = ["_start", "main", "run"];
/// Of an argument's text in messages.
const SHOWN_CHARS: usize = 64;
const SHOWN_EXPORTS: usize = 8;

pub struct Core;

impl AbiHost for Core {
    fn abi(&self) -> Abi {
        Abi::Core
    }

    fn matches(&self, shape: &ModuleShape) -> bool {
        shape.imports.is_empty()
    }

    fn check(&self, shape: &ModuleShape) -> Result<(), NotLoadable> {
        if shape.exports.iter().any(|e| e.ty.starts_with('(')) {
            return Ok(());
        }
        Err(NotLoadable::new(NotLoadableKind::MissingExport, "a core module must export a function, such as `run`"))
    }

    fn host_fn(&self, _module: &str, _name: &str) -> Option<&'static HostFn> {
        None
    }

    fn wasi(&self) -> bool {
        false
    }
}

/// The function to call and its arguments, or what is wrong with the call.
pub fn prepare(shape: &ModuleShape, input: &Input) -> Result<(String, Vec<Value>), RunError> {
    let is_function = |name: &str| shape.export(name).filter(|e| e.ty.starts_with('('));
    let entry = match &input.entry {
        Some(name) => is_function(name).ok_or_else(|| no_function(shape, name))?,
        None => ENTRIES.into_iter().find_map(is_function).ok_or_else(|| {
            RunError::BadCall("`function`: the module exports none of `_start`, `main` and `run`; name one".into())
        })?,
    };
    let (params, results) = split_signature(&entry.ty);
    if params.len() != input.function_args.len() {
        return Err(RunError::BadCall(format!(
            "`args`: `{}` is {}; give {} arguments, not {}",
            entry.name,
            entry.ty,
            params.len(),
            input.function_args.len()
        )));
    }
    if let Some(other) = params.iter().chain(&results).find(|t| !matches!(**t, "i32" | "i64" | "f32" | "f64")) {
        return Err(RunError::BadCall(format!(
            "`{}` has a value of type {other}: only numbers can be passed",
            entry.name
        )));
    }
    let args = params.iter().zip(&input.function_args).map(|(ty, text)| parse(ty, text)).collect::<Result<_, _>>()?;
    Ok((entry.name.clone(), args))
}

pub fn call(guest: &mut Guest, entry: &str, args: &[Value]) -> Result<Vec<Json>, Ended> {
    let initialise = guest.function::<(), ()>("_initialize");
    guest
        .call(|store, instance| {
            if let Some(f) = initialise.filter(|_| entry != "_initialize") {
                f.call(store)?;
            }
            let function =
                instance.exports.get_function(entry).map_err(|e| wasmer::RuntimeError::new(e.to_string()))?;
            let results = function.call(store, args)?;
            Ok(results.iter().map(json).collect::<Vec<_>>())
        })?
        .into_iter()
        .collect::<Option<Vec<_>>>()
        .ok_or_else(|| Ended::Failed(GuestFailure::BadOutput("it returned a value that is no number".into())))
}

/// `(i32, i64) -> f64` as its parts.
fn split_signature(ty: &str) -> (Vec<&str>, Vec<&str>) {
    let (params, results) = ty.split_once(" -> ").unwrap_or((ty, ""));
    (list(params), list(results))
}

fn list(s: &str) -> Vec<&str> {
    s.trim_start_matches('(').trim_end_matches(')').split(", ").filter(|t| !t.is_empty()).collect()
}

fn parse(ty: &str, text: &str) -> Result<Value, RunError> {
    let bad = || RunError::BadCall(format!("`args`: `{}` is no {ty}", shown(text)));
    let text = text.trim();
    Ok(match ty {
        "i32" => {
            let n = integer(text).filter(|n| (i128::from(i32::MIN)..=i128::from(u32::MAX)).contains(n));
            Value::I32(n.ok_or_else(bad)? as u32 as i32)
        }
        "i64" => {
            let n = integer(text).filter(|n| (i128::from(i64::MIN)..=i128::from(u64::MAX)).contains(n));
            Value::I64(n.ok_or_else(bad)? as u64 as i64)
        }
        "f32" => Value::F32(text.parse().map_err(|_| bad())?),
        _ => Value::F64(text.parse().map_err(|_| bad())?),
    })
}

/// Decimal, or hexadecimal behind `0x`; either with a sign.
fn integer(text: &str) -> Option<i128> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if !digits.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let magnitude = match digits.strip_prefix("0x") {
        Some(hex) => i128::from(u64::from_str_radix(hex, 16).ok()?),
        None => i128::from(digits.parse::<u64>().ok()?),
    };
    Some(if negative { -magnitude } else { magnitude })
}

fn json(value: &Value) -> Option<Json> {
    // JSON has no NaN and no infinities; they travel as text.
    let float = |x: f64| serde_json::Number::from_f64(x).map_or_else(|| Json::String(x.to_string()), Json::Number);
    match value {
        Value::I32(n) => Some(Json::from(*n)),
        Value::I64(n) => Some(Json::from(*n)),
        Value::F32(x) => Some(float(f64::from(*x))),
        Value::F64(x) => Some(float(*x)),
        other => {
            debug_assert!(!matches!(other.ty(), Type::I32 | Type::I64 | Type::F32 | Type::F64));
            None
        }
    }
}

/// A call of what is not there; names some of the functions that are.
pub(super) fn no_function(shape: &ModuleShape, name: &str) -> RunError {
    let functions = shape.exports.iter().filter(|e| e.ty.starts_with('(')).take(SHOWN_EXPORTS);
    let some: Vec<_> = functions.map(|e| format!("`{}`", shown(&e.name))).collect();
    RunError::BadCall(format!("`function`: the module exports no `{}`; it has {}", shown(name), some.join(", ")))
}

fn shown(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).take(SHOWN_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_wrap_as_in_the_text_format() {
        for (text, want) in [("-1", -1), ("4294967295", -1), ("0xffffffff", -1), ("2147483647", i32::MAX), ("+5", 5)] {
            assert_eq!(parse("i32", text).unwrap(), Value::I32(want), "{text}");
        }
        for text in ["4294967296", "-2147483649", "", "1.5", "0x", "--1", "1_0", "0x-1", "+-1"] {
            assert!(parse("i32", text).is_err(), "{text}");
        }
        assert_eq!(parse("i64", "18446744073709551615").unwrap(), Value::I64(-1));
    }

    #[test]
    fn signatures_split() {
        assert_eq!(split_signature("(i32, i64) -> f64"), (vec!["i32", "i64"], vec!["f64"]));
        assert_eq!(split_signature("() -> ()"), (vec![], vec![]));
        assert_eq!(split_signature("() -> (i32, f32)"), (vec![], vec!["i32", "f32"]));
    }

    #[test]
    fn what_json_lacks_is_text() {
        assert_eq!(json(&Value::F64(f64::NAN)), Some(Json::String("NaN".into())));
        assert_eq!(json(&Value::F64(f64::INFINITY)), Some(Json::String("inf".into())));
        assert_eq!(json(&Value::I64(i64::MAX)), Some(Json::from(i64::MAX)));
    }
}
