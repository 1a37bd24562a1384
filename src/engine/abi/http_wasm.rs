//! The http-wasm HTTP handler ABI (`http_handler`, 19 functions): which call is legal when, and what guests changed.
//!
//! Invariant: while a phase runs, the exchange is only read. What a guest changes collects in [`Edits`] and reaches
//! the exchange when the phase has come to its end, so that a failed or repeated phase leaves no trace.

mod body;
mod edits;
mod head;
mod headers;
pub mod output;

use crate::domain::rejection::NotLoadableKind;
use crate::domain::{Abi, ModuleShape, NotLoadable};
use crate::engine::failure::Halt;
use crate::engine::http::{Features, HttpExchange};

use super::{AbiHost, HostFn, host_fns};

pub use edits::Edits;

use body::{read_body, write_body};
use head::{
    enable_features, get_config, get_method, get_protocol_version, get_source_addr, get_status_code, get_uri, log,
    log_enabled, set_method, set_status_code, set_uri,
};
use headers::{add_header_value, get_header_names, get_header_values, remove_header, set_header_value};

const MODULE: &str = "http_handler";

/// Trailers are not offered: their bit is cleared, they read as empty and writing them traps (ABI, "Trailers").
const SUPPORTED: Features = Features(Features::BUFFER_REQUEST.0 | Features::BUFFER_RESPONSE.0);

host_fns! {
    static TABLE;
    enable_features(i32) -> i32;
    get_config(i32, i32) -> i32;
    log_enabled(i32) -> i32;
    log(i32, i32, i32);
    get_method(i32, i32) -> i32;
    set_method(i32, i32);
    get_uri(i32, i32) -> i32;
    set_uri(i32, i32);
    get_protocol_version(i32, i32) -> i32;
    get_header_names(i32, i32, i32) -> i64;
    get_header_values(i32, i32, i32, i32, i32) -> i64;
    set_header_value(i32, i32, i32, i32, i32);
    add_header_value(i32, i32, i32, i32, i32);
    remove_header(i32, i32, i32);
    read_body(i32, i32, i32) -> i64;
    write_body(i32, i32, i32);
    get_status_code() -> i32;
    set_status_code(i32);
    get_source_addr(i32, i32) -> i32;
}

/// Where a guest stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stage {
    /// Its start functions.
    #[default]
    Init,
    /// Inside `handle_request`.
    Request,
    /// Inside `handle_response`.
    Response,
}

/// What http-wasm keeps in a guest between calls.
#[derive(Default)]
pub struct HttpWasmState {
    pub stage: Stage,
    /// Enabled by the start functions, for every request of this guest.
    defaults: Features,
    /// In force for the request under way.
    pub features: Features,
    pub edits: Edits,
    request_read: usize,
    response_read: usize,
}

impl HttpWasmState {
    /// A new request on this guest. What an earlier one left is gone.
    pub fn begin_request(&mut self) {
        self.begin(Stage::Request);
        self.features = self.defaults;
    }

    /// The response to the request that this guest saw last.
    pub fn begin_response(&mut self) {
        self.begin(Stage::Response);
    }

    fn begin(&mut self, stage: Stage) {
        self.stage = stage;
        self.edits = Edits::default();
        self.request_read = 0;
        self.response_read = 0;
    }

    /// Request writes: before the next handler only (ABI, "Request functions").
    fn writes_request(&self, call: &str) -> Result<(), Halt> {
        match self.stage {
            Stage::Request => Ok(()),
            Stage::Init => Err(no_request(call)),
            Stage::Response => Err(Halt::Trap(format!("`{call}` on a request that has been passed on"))),
        }
    }

    /// Response writes and its body: before the next handler, or with the response buffered.
    fn owns_response(&self, call: &str) -> Result<(), Halt> {
        match self.stage {
            Stage::Request => Ok(()),
            Stage::Init => Err(no_request(call)),
            Stage::Response if self.features.has(Features::BUFFER_RESPONSE) => Ok(()),
            Stage::Response => {
                Err(Halt::Trap(format!("`{call}` on a response that was not buffered: enable `buffer_response`")))
            }
        }
    }

    /// The request body: before the next handler, or with the request buffered.
    fn reads_request_body(&self, call: &str) -> Result<(), Halt> {
        match self.stage {
            Stage::Request => Ok(()),
            Stage::Init => Err(no_request(call)),
            Stage::Response if self.features.has(Features::BUFFER_REQUEST) => Ok(()),
            Stage::Response => {
                Err(Halt::Trap(format!("`{call}` of a request that was not buffered: enable `buffer_request`")))
            }
        }
    }
}

fn no_request(call: &str) -> Halt {
    Halt::Trap(format!("`{call}` while the module starts: there is no request yet"))
}

/// The exchange of the phase under way.
fn exchange<'a>(http: &'a Option<Box<HttpExchange>>, call: &str) -> Result<&'a HttpExchange, Halt> {
    http.as_deref().ok_or_else(|| no_request(call))
}

pub struct HttpWasm;

impl AbiHost for HttpWasm {
    fn abi(&self) -> Abi {
        Abi::HttpWasm
    }

    fn matches(&self, shape: &ModuleShape) -> bool {
        shape.imports_from(MODULE)
            || (shape.export("handle_request").is_some() && shape.export("handle_response").is_some())
    }

    fn check(&self, shape: &ModuleShape) -> Result<(), NotLoadable> {
        const NEEDED: [(&str, &str); 3] =
            [("memory", "memory"), ("handle_request", "() -> i64"), ("handle_response", "(i32, i32) -> ()")];
        for (name, ty) in NEEDED {
            let detail = match shape.export(name) {
                Some(export) if export.ty == ty => continue,
                Some(export) => format!("the export `{name}` is `{}`; http-wasm needs `{ty}`", export.ty),
                None => format!("the export `{name}` (`{ty}`) is missing; http-wasm needs it"),
            };
            return Err(NotLoadable::new(NotLoadableKind::MissingExport, detail));
        }
        for start in ["_start", "_initialize"] {
            if let Some(export) = shape.export(start).filter(|e| e.ty != "() -> ()") {
                let detail = format!("the export `{start}` is `{}`; http-wasm needs `() -> ()`", export.ty);
                return Err(NotLoadable::new(NotLoadableKind::MissingExport, detail));
            }
        }
        Ok(())
    }

    fn host_fn(&self, module: &str, name: &str) -> Option<&'static HostFn> {
        (module == MODULE).then(|| TABLE.iter().find(|f| f.name == name)).flatten()
    }
}
