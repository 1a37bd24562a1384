//! The system tests: they drive the running binary over real sockets. One subject a file; helpers in `support`.

mod support;

mod admin;
mod architecture;
mod auth_http;
mod cli;
mod clients;
mod config;
mod drain;
mod execute;
mod handlers;
mod http2_clients;
mod limits_http;
mod modules;
mod multipart;
mod proxy;
mod quickstart;
mod routing;
#[cfg(feature = "sdk-tests")]
mod sdk;
mod start;
mod tls;
mod uploads;
mod upstreams;
