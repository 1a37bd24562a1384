//! The http-wasm HTTP handler ABI: its state inside a guest and its host functions.

use crate::domain::{Abi, ModuleShape, NotLoadable};

use super::{AbiHost, HostFn};

/// What http-wasm keeps in a guest between calls.
#[derive(Default)]
pub struct HttpWasmState {}

pub struct HttpWasm;

impl AbiHost for HttpWasm {
    fn abi(&self) -> Abi {
        Abi::HttpWasm
    }

    fn matches(&self, shape: &ModuleShape) -> bool {
        shape.imports_from("http_handler")
            || (shape.export("handle_request").is_some() && shape.export("handle_response").is_some())
    }

    fn check(&self, _shape: &ModuleShape) -> Result<(), NotLoadable> {
        Ok(())
    }

    fn host_fn(&self, _module: &str, _name: &str) -> Option<&'static HostFn> {
        None
    }
}
