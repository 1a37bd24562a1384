//! The system tests. One subject a file.

mod engine;
mod http_wasm;
