//! The system tests: one subject a file.

mod auth;
mod config;
mod engine;
mod http_wasm;
mod limit;
mod store;
