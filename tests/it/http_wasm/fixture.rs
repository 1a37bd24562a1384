//! An engine, guests from WAT and exchanges to hand them.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use wasmgate::config;
use wasmgate::domain::{Limits, Reply};
use wasmgate::engine::{
    Compiler, Engine, HttpExchange, HttpHandler, HttpOutcome, LoadedModule, PinnedVm, RunError, Verdict,
};

/// One for all tests: it holds no state of theirs.
pub fn engine() -> &'static Arc<Engine> {
    static ENGINE: OnceLock<(tempfile::TempDir, Arc<Engine>)> = OnceLock::new();
    let (_, engine) = ENGINE.get_or_init(|| {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let engine = engine_with(dir.path(), |_| ());
        (dir, engine)
    });
    engine
}

pub fn engine_with(dir: &std::path::Path, edit: impl FnOnce(&mut config::Engine)) -> Arc<Engine> {
    let mut config = config::Engine {
        per_owner: 64,
        memory_budget_bytes: Some(1 << 30),
        vms_per_handler: 1,
        vm_requests: 1_000_000,
        ..crate::engine::config()
    };
    edit(&mut config);
    crate::engine::open(dir.to_owned(), [7; 32], config)
}

const CALLS: &str = r#"
  (import "http_handler" "enable_features" (func $enable_features (param i32) (result i32)))
  (import "http_handler" "get_config" (func $get_config (param i32 i32) (result i32)))
  (import "http_handler" "log_enabled" (func $log_enabled (param i32) (result i32)))
  (import "http_handler" "log" (func $log (param i32 i32 i32)))
  (import "http_handler" "get_method" (func $get_method (param i32 i32) (result i32)))
  (import "http_handler" "set_method" (func $set_method (param i32 i32)))
  (import "http_handler" "get_uri" (func $get_uri (param i32 i32) (result i32)))
  (import "http_handler" "set_uri" (func $set_uri (param i32 i32)))
  (import "http_handler" "get_protocol_version" (func $get_protocol_version (param i32 i32) (result i32)))
  (import "http_handler" "get_header_names" (func $get_header_names (param i32 i32 i32) (result i64)))
  (import "http_handler" "get_header_values" (func $get_header_values (param i32 i32 i32 i32 i32) (result i64)))
  (import "http_handler" "set_header_value" (func $set_header_value (param i32 i32 i32 i32 i32)))
  (import "http_handler" "add_header_value" (func $add_header_value (param i32 i32 i32 i32 i32)))
  (import "http_handler" "remove_header" (func $remove_header (param i32 i32 i32)))
  (import "http_handler" "read_body" (func $read_body (param i32 i32 i32) (result i64)))
  (import "http_handler" "write_body" (func $write_body (param i32 i32 i32)))
  (import "http_handler" "get_status_code" (func $get_status_code (result i32)))
  (import "http_handler" "set_status_code" (func $set_status_code (param i32)))
  (import "http_handler" "get_source_addr" (func $get_source_addr (param i32 i32) (result i32)))
"#;

/// What a guest does when; each part is a function's body. Memory: one page, more by `more`.
#[derive(Default)]
pub struct Guest<'a> {
    /// Further functions, globals and data.
    pub more: &'a str,
    pub init: &'a str,
    /// Gives an i64; default: go on.
    pub request: &'a str,
    pub response: &'a str,
}

impl Guest<'_> {
    pub fn wat(&self) -> String {
        let Guest { more, init, request, response } = self;
        let request = if request.is_empty() { "(i64.const 1)" } else { request };
        format!(
            r#"(module {CALLS}
  (memory (export "memory") 1)
  {more}
  (func (export "_initialize") (local $i i32) {init})
  (func (export "handle_request") (result i64) (local $i i32) (local $l i64) {request})
  (func (export "handle_response") (param $context i32) (param $is_error i32) (local $i i32) (local $l i64) {response}))"#
        )
    }

    pub async fn load(&self) -> Arc<LoadedModule> {
        load(engine(), &self.wat()).await
    }
}

pub fn limits() -> Limits {
    handler_config().limits()
}

/// With optimised code from the beginning: no living VM is replaced by itself.
pub async fn load(engine: &Arc<Engine>, wat: &str) -> Arc<LoadedModule> {
    let bytes = wat::parse_str(wat).unwrap_or_else(|e| panic!("{e}\n{wat}"));
    let inspected = engine.inspect(&bytes, None, 1 << 20, &limits()).unwrap_or_else(|e| panic!("{e}\n{wat}"));
    let installed = engine.install(bytes.into(), &inspected, Compiler::Optimising).await;
    installed.unwrap_or_else(|e| panic!("{e}\n{wat}"));
    let loaded = engine.load(None, inspected.digest, inspected.abi, &inspected.shape).await;
    loaded.unwrap_or_else(|e| panic!("{e}\n{wat}"))
}

pub fn handler_config() -> config::Handler {
    config::Handler {
        module: "acme/guest".parse().expect("a module"),
        owner: "acme".parse().expect("an owner"),
        config: Vec::new(),
        fail: config::HandlerFail::Closed,
        env: Default::default(),
        wall: Duration::from_secs(10),
        memory_bytes: 16 << 20,
        max_buffer_bytes: 1 << 20,
        upstreams: Vec::new(),
        proxy: Default::default(),
    }
}

pub fn handler(module: &Arc<LoadedModule>, config: impl Into<Vec<u8>>) -> Arc<HttpHandler> {
    let config = config::Handler { config: config.into(), ..handler_config() };
    HttpHandler::new(engine(), module.clone(), None, "acme/guest@1".into(), &config, config.limits())
}

/// `GET /path?query` from 127.0.0.1:4711 with the headers `host`, `multi` (twice) and `x-one`.
pub fn get() -> Box<HttpExchange> {
    let (request, ()) = http::Request::get("/path?query=%26")
        .header("host", "example.com")
        .header("multi", "value1")
        .header("multi", "value2")
        .header("x-one", "1")
        .body(())
        .expect("a valid request")
        .into_parts();
    Box::new(HttpExchange::new(request, "127.0.0.1:4711".parse().expect("an address"), "id-1".into()))
}

pub fn with_header(name: &'static str, value: &'static str) -> Box<HttpExchange> {
    let mut exchange = get();
    exchange.request.headers.insert(name, http::HeaderValue::from_static(value));
    exchange
}

pub fn post(body: impl Into<Bytes>) -> Box<HttpExchange> {
    let mut exchange = get();
    exchange.request.method = http::Method::POST;
    exchange.request_body = Some(body.into());
    exchange
}

/// The upstream's answer, in the exchange that the request phase gave back.
pub fn answered(mut exchange: Box<HttpExchange>, status: u16, body: &'static str) -> Box<HttpExchange> {
    let response = http::Response::builder().status(status).header("content-type", "text/plain").header("x-up", "1");
    exchange.response = response.body(()).expect("a valid response").into_parts().0;
    exchange.response_status_set = false;
    exchange.response_body = Some(body.into());
    exchange
}

/// A request phase where the gateway runs it: at once where its past allows that, else on the pool.
pub async fn request(handler: &Arc<HttpHandler>, exchange: Box<HttpExchange>) -> HttpOutcome {
    match handler.request_now(exchange) {
        Ok(outcome) => outcome,
        Err(exchange) => handler.request(exchange).await,
    }
}

/// As [`request`].
pub async fn response(vm: PinnedVm, exchange: Box<HttpExchange>, is_error: bool) -> HttpOutcome {
    match vm.response_now(exchange, is_error) {
        Ok(outcome) => outcome,
        Err((vm, exchange)) => vm.response(exchange, is_error).await,
    }
}

/// Of a request phase that answered.
#[track_caller]
pub fn reply(outcome: HttpOutcome) -> Reply {
    match outcome.result {
        Ok(Verdict::Respond(reply)) => reply,
        other => panic!("no answer: {other:?}"),
    }
}

/// Of a request phase that went on.
#[track_caller]
pub fn went_on(outcome: HttpOutcome) -> (Box<HttpExchange>, PinnedVm) {
    match (outcome.result, outcome.vm) {
        (Ok(Verdict::Continue), Some(vm)) => (outcome.exchange, vm),
        (result, _) => panic!("did not go on: {result:?}"),
    }
}

/// How the guest failed, by its label.
pub fn failure(result: &Result<Verdict, RunError>) -> &'static str {
    match result {
        Ok(_) => "ok",
        Err(RunError::Guest(failure)) => failure.kind(),
        Err(RunError::Busy { .. } | RunError::Unread) => "busy",
        Err(RunError::BadCall(_)) => "bad-call",
    }
}
