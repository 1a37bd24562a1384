//! The examples for users do what their READMEs say.

use super::fixture::*;

#[tokio::test]
async fn the_header_transformer_sets_what_it_is_configured_with() {
    let wat = include_str!("../../../examples/http-wasm-header/header.wat");
    let module = load(engine(), wat).await;
    for (config, value) in [("", "1"), ("configured", "configured")] {
        let handler = handler(&module, config);
        assert!(!handler.wants_request_body());
        for _ in 0..300 {
            let (exchange, vm) = went_on(handler.request(get()).await);
            assert_eq!(exchange.request.headers["x-demo-handled"], value);
            assert_eq!(exchange.response.headers["x-demo-handled"], value);
            vm.response(answered(exchange, 200, "up"), false).await.result.expect("ok");
        }
    }
    let too_long = "x".repeat(257);
    handler(&module, too_long).warm().await.expect_err("it says that its configuration is too long");
}

#[tokio::test]
async fn the_rewriter_writes_text_in_upper_case() {
    let wasm = crate::support::c_example("http-wasm-rewrite/rewrite.c", &[]);
    let inspected = engine().inspect(&wasm, None, 1 << 20, &limits()).expect("a handler");
    let module = engine().load_inline(wasm.into(), &inspected, None).await.expect("it loads");
    let handler = handler(&module, "");
    for (content_type, is_error, expected) in [
        ("text/plain", false, Some(&b"MIXED CASE 1\xe9"[..])),
        ("text/plain; charset=utf-8", false, Some(b"MIXED CASE 1\xe9")),
        ("text/plain", true, None),
        ("application/json", false, None),
    ] {
        let (exchange, vm) = went_on(handler.request(get()).await);
        assert!(vm.features().has(wasmgate::engine::Features::BUFFER_RESPONSE));
        let mut exchange = answered(exchange, 200, "");
        exchange.response.headers.insert("content-type", http::HeaderValue::from_static(content_type));
        exchange.response_body = Some((&b"Mixed case 1\xe9"[..]).into());
        let outcome = vm.response(exchange, is_error).await;
        outcome.result.expect("ok");
        assert_eq!(outcome.exchange.response_body_replaced.as_deref(), expected, "{content_type} {is_error}");
        assert_eq!(outcome.exchange.response.headers.contains_key("x-rewritten"), expected.is_some());
    }
}
