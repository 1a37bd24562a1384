//! What an http-wasm handler adds to a request: the demo header transformer's two phases, on a warm VM.
//!
//! `cargo bench --bench http_wasm`.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use http::{HeaderMap, HeaderName, HeaderValue};
use wasmgate::config;
use wasmgate::engine::{Cancel, Compiler, Engine, HttpExchange, HttpHandler, Settings};

fn engine(dir: &Path) -> Arc<Engine> {
    let defaults = config::parse("", "defaults", dir).expect("the defaults are valid").engine;
    let config = config::Engine { vm_requests: u64::MAX, ..defaults };
    let compiler_exe = env!("CARGO_BIN_EXE_wasmgate").into();
    Engine::new(Settings { data_dir: dir.to_owned(), artifact_key: [7; 32], compiler_exe, config }).expect("an engine")
}

async fn handler(engine: &Arc<Engine>) -> Arc<HttpHandler> {
    let config = config::Handler {
        module: "wasmgate/header".parse().expect("a module"),
        owner: "wasmgate".parse().expect("an owner"),
        config: Vec::new(),
        fail: config::HandlerFail::Closed,
        env: Default::default(),
        wall: Duration::from_secs(1),
        memory_bytes: 16 << 20,
        max_buffer_bytes: 1 << 20,
    };
    let limits = config.limits();
    let wat = include_bytes!("../examples/http-wasm-header/header.wat");
    let wasm = wat::parse_bytes(wat).expect("WAT").into_owned();
    let inspected = engine.inspect(&wasm, None, 1 << 20, &limits).expect("a handler");
    engine.install(wasm.into(), &inspected, Compiler::Optimising).await.expect("it compiles");
    let module = engine.load(None, inspected.digest, inspected.abi, &inspected.shape).await.expect("it loads");
    HttpHandler::new(engine, module, None, "wasmgate/header@1".into(), &config, limits)
}

/// As much head as a browser sends; values are slices of one buffer, as in a parsed head.
fn headers() -> HeaderMap {
    const NAMES: [&str; 10] = [
        "host",
        "user-agent",
        "accept",
        "accept-language",
        "accept-encoding",
        "cookie",
        "referer",
        "x-request-id",
        "x-forwarded-for",
        "x-custom-header",
    ];
    let buffer = Bytes::from(b"some-value-of-a-header ".repeat(NAMES.len()));
    let value = |i: usize| HeaderValue::from_maybe_shared(buffer.slice(i * 23..i * 23 + 22)).expect("a value");
    NAMES.iter().enumerate().map(|(i, name)| (HeaderName::from_static(name), value(i))).collect()
}

fn exchange(headers: &HeaderMap) -> Box<HttpExchange> {
    let mut request = http::Request::get("/path?query=1").body(()).expect("a request").into_parts().0;
    request.headers = headers.clone();
    Box::new(HttpExchange {
        request,
        request_body: None,
        request_body_replaced: None,
        request_body_consumed: false,
        response: http::Response::new(()).into_parts().0,
        response_status_set: false,
        response_body: None,
        response_body_replaced: None,
        peer: "127.0.0.1:4711".parse().expect("an address"),
        request_id: "bench".into(),
        cancel: Cancel::default(),
    })
}

fn transformer(c: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let dir = tempfile::tempdir().expect("a folder");
    let engine = engine(dir.path());
    let handler = runtime.block_on(handler(&engine));
    let headers = headers();
    // Until its history puts it inline.
    for _ in 0..500 {
        let outcome = runtime.block_on(handler.request(exchange(&headers)));
        let vm = outcome.vm.expect("it goes on");
        runtime.block_on(vm.response(outcome.exchange, false)).result.expect("ok");
    }
    let both_phases = |exchange| {
        let Ok(outcome) = handler.request_now(exchange) else { panic!("it is short") };
        let vm = outcome.vm.expect("it goes on");
        let Ok(outcome) = vm.response_now(outcome.exchange, false) else { panic!("it is short") };
        outcome
    };
    let mut group = c.benchmark_group("http-wasm");
    group.bench_function("header transformer, both phases", |b| {
        b.iter_batched(|| exchange(&headers), both_phases, BatchSize::SmallInput)
    });
    group.finish();
    engine.shutdown();
}

criterion_group!(benches, transformer);
criterion_main!(benches);
