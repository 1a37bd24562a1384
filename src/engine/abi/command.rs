//! The `command` ABI: WASI preview1, `_start`, standard input to standard output.
//!
//! Invariant: a command that calls `proc_exit` has ended by itself, whatever its code.

use crate::domain::rejection::NotLoadableKind;
use crate::domain::{Abi, ModuleShape, NotLoadable};
use crate::engine::failure::Ended;
use crate::engine::guest::Guest;
use crate::engine::{Input, RunError};

use super::{AbiHost, HostFn};

pub const START: &str = "_start";
const START_TYPE: &str = "() -> ()";

pub struct Command;

impl AbiHost for Command {
    fn abi(&self) -> Abi {
        Abi::Command
    }

    fn matches(&self, shape: &ModuleShape) -> bool {
        shape.export(START).is_some_and(|e| e.ty == START_TYPE)
    }

    fn check(&self, shape: &ModuleShape) -> Result<(), NotLoadable> {
        require_start(shape)
    }

    fn host_fn(&self, _module: &str, _name: &str) -> Option<&'static HostFn> {
        None
    }
}

pub fn require_start(shape: &ModuleShape) -> Result<(), NotLoadable> {
    match shape.export(START) {
        Some(e) if e.ty == START_TYPE => Ok(()),
        Some(e) => Err(NotLoadable::new(
            NotLoadableKind::MissingExport,
            format!("the export `{START}` is {}; it must be {START_TYPE}", e.ty),
        )),
        None => Err(NotLoadable::new(NotLoadableKind::MissingExport, format!("the module exports no `{START}`"))),
    }
}

/// The export to call: `_start`, or another one of the same type that the caller names.
pub fn prepare(shape: &ModuleShape, input: &Input) -> Result<String, RunError> {
    let entry = input.entry.as_deref().unwrap_or(START);
    match shape.export(entry) {
        Some(e) if e.ty == START_TYPE => Ok(entry.to_owned()),
        Some(e) if e.ty.starts_with('(') => Err(RunError::BadCall(format!(
            "`function`: `{entry}` is {}; an entry of a command must be {START_TYPE}",
            e.ty
        ))),
        _ => Err(super::core::no_function(shape, entry)),
    }
}

/// Runs the entry; gives the exit code.
pub fn call(guest: &mut Guest, entry: &str) -> Result<i32, Ended> {
    let Some(function) = guest.function::<(), ()>(entry) else {
        return Err(Ended::Failed(crate::domain::GuestFailure::NotLoadable(format!("it exports no `{entry}`"))));
    };
    match guest.call(|store, _| function.call(store)) {
        Ok(()) => Ok(0),
        Err(Ended::Exit(code)) => Ok(code),
        Err(ended) => Err(ended),
    }
}
