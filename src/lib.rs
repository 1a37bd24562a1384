//! wasmgate: an edge gateway that checks API keys, enforces tiered limits and runs WebAssembly handlers.
//!
//! | module | what it owns |
//! |---|---|
//! | [`domain`] | pure types and maths |
//! | [`config`] | the configuration file, checked |
//! | [`store`] | records: keys, modules, usage, tokens, audit |
//! | [`auth`] | credentials, key cache |
//! | [`limit`] | quotas, concurrency |
//! | [`engine`] | Wasmer: compile, sandbox, ABIs |
//! | [`gateway`] | Pingora: listeners, routes, the request pipeline, upstreams |
//! | [`telemetry`] | metrics and tracing |
//! | [`app`] | wiring; the live snapshot |
//! | [`api`] | tenant and admin HTTP API |
//! | [`cli`] | command line |
//!
//! Imports point one way: domain <- config, store <- auth, limit, engine <- gateway <- app <- api, cli.

#![deny(unsafe_code)]

pub mod api;
pub mod app;
pub mod auth;
pub mod cli;
pub mod config;
pub mod domain;
pub mod engine;
pub mod gateway;
pub mod limit;
pub mod store;
pub mod telemetry;
