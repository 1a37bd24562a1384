//! Which modules are proxy-wasm filters (ABI, "Functions exposed by the Wasm module").

use crate::domain::rejection::NotLoadableKind;
use crate::domain::{ModuleShape, NotLoadable};

/// The markers, newest first: a module may carry more than one.
const MARKERS: [(&str, Version); 3] = [
    ("proxy_abi_version_0_2_1", Version::V0_2),
    ("proxy_abi_version_0_2_0", Version::V0_2),
    ("proxy_abi_version_0_1_0", Version::V0_1),
];

const MARKER: &str = "proxy_abi_version_";
const CALLBACK: &str = "proxy_on_";
const SERVED: &str = "0.1.0, 0.2.0 and 0.2.1 are served";

/// Whatever its version: one that is not served is to be told of, and not taken for something else.
pub fn is_filter(shape: &ModuleShape) -> bool {
    shape.exports.iter().any(|export| export.name.starts_with(MARKER) || export.name.starts_with(CALLBACK))
}

pub const ALLOCATORS: [&str; 2] = ["proxy_on_memory_allocate", "malloc"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// Its header callbacks don't tell of the stream's end.
    V0_1,
    V0_2,
}

impl Version {
    pub fn of(shape: &ModuleShape) -> Option<Version> {
        MARKERS.iter().find(|(marker, _)| shape.export(marker).is_some()).map(|(_, version)| *version)
    }
}

/// Callbacks with their types; all are optional.
const CALLBACKS: [(&str, &str); 20] = [
    ("proxy_on_vm_start", "(i32, i32) -> i32"),
    ("proxy_on_configure", "(i32, i32) -> i32"),
    ("proxy_on_context_create", "(i32, i32) -> ()"),
    ("proxy_on_done", "(i32) -> i32"),
    ("proxy_on_log", "(i32) -> ()"),
    ("proxy_on_delete", "(i32) -> ()"),
    ("proxy_on_tick", "(i32) -> ()"),
    ("proxy_on_request_body", "(i32, i32, i32) -> i32"),
    ("proxy_on_response_body", "(i32, i32, i32) -> i32"),
    ("proxy_on_request_trailers", "(i32, i32) -> i32"),
    ("proxy_on_response_trailers", "(i32, i32) -> i32"),
    ("proxy_on_http_call_response", "(i32, i32, i32, i32, i32) -> ()"),
    ("proxy_on_grpc_receive_initial_metadata", "(i32, i32, i32) -> ()"),
    ("proxy_on_grpc_receive_trailing_metadata", "(i32, i32, i32) -> ()"),
    ("proxy_on_grpc_receive", "(i32, i32, i32) -> ()"),
    ("proxy_on_grpc_close", "(i32, i32, i32) -> ()"),
    ("proxy_on_queue_ready", "(i32, i32) -> ()"),
    ("proxy_on_foreign_function", "(i32, i32, i32) -> ()"),
    ("_initialize", "() -> ()"),
    ("_start", "() -> ()"),
];

const HEADERS: [&str; 2] = ["proxy_on_request_headers", "proxy_on_response_headers"];

pub fn check(shape: &ModuleShape) -> Result<(), NotLoadable> {
    let refuse = |why: String| Err(NotLoadable::new(NotLoadableKind::MissingExport, why));
    let Some(version) = Version::of(shape) else {
        let begins = |with: &str| shape.exports.iter().find(|export| export.name.starts_with(with));
        return refuse(match (begins(MARKER), begins(CALLBACK)) {
            (Some(marker), _) => format!("it exports `{}`; {SERVED}", marker.name),
            (None, Some(callback)) => {
                format!("it exports `{}` and no `{MARKER}...`, which tells a filter's version; {SERVED}", callback.name)
            }
            (None, None) => "it exports no `proxy_abi_version_0_2_1`, so it is no proxy-wasm filter".into(),
        });
    };
    if !shape.exports.iter().any(|export| export.name == "memory" && export.ty == "memory") {
        return refuse("it exports no `memory`; proxy-wasm needs it".into());
    }
    let allocates = |name: &&str| shape.export(name).is_some_and(|export| export.ty == "(i32) -> i32");
    if !ALLOCATORS.iter().any(allocates) {
        return refuse("it exports no `proxy_on_memory_allocate` or `malloc` of the type `(i32) -> i32`".into());
    }
    let headers = match version {
        Version::V0_1 => "(i32, i32) -> i32",
        Version::V0_2 => "(i32, i32, i32) -> i32",
    };
    for (name, ty) in CALLBACKS.into_iter().chain(HEADERS.map(|name| (name, headers))) {
        if let Some(export) = shape.export(name).filter(|export| export.ty != ty) {
            return refuse(format!("the export `{name}` is `{}`; proxy-wasm needs `{ty}`", export.ty));
        }
    }
    Ok(())
}
