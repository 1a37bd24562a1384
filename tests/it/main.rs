//! The system tests: most drive the running binary over real sockets, the rest one layer with real parts below it.
//! One subject a file; helpers in `support`.

mod support;

mod admin;
mod answers;
mod api;
mod architecture;
mod attack_table;
mod attacks;
mod auth;
mod auth_http;
mod breaker;
mod calls;
mod cli;
mod clients;
mod config;
mod departures;
mod docker;
mod drain;
mod engine;
mod execute;
mod files;
mod fleet;
mod gateway;
mod generated;
mod handlers;
mod host_api;
mod http2_clients;
mod http_wasm;
mod http_wasm_tck;
mod lease;
mod limit;
mod limits_http;
mod module_limits;
mod modules;
mod multipart;
mod openapi;
mod proxy;
mod proxy_wasm;
mod quickstart;
mod routing;
#[cfg(feature = "sdk-tests")]
mod sdk;
mod start;
mod store;
mod stored;
mod tls;
mod upstreams;
