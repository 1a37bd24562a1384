//! The guest of the conformance checks on exchanges made here. `http_wasm_tck` runs it in the whole gateway.

use http::{HeaderValue, Method};
use wasmgate::engine::HttpExchange;

use super::fixture::*;
use crate::support::c_guest;

fn request(id: &str, method: &str, uri: &str, headers: &[(&'static str, &'static str)]) -> Box<HttpExchange> {
    let mut exchange = post("");
    exchange.request.method = Method::from_bytes(method.as_bytes()).expect("a method");
    exchange.request.uri = uri.parse().expect("a URI");
    for (name, value) in headers {
        exchange.request.headers.append(*name, HeaderValue::from_static(value));
    }
    exchange.request.headers.insert("x-httpwasm-tck-testid", id.parse().expect("a value"));
    exchange
}

#[tokio::test]
async fn the_guest_has_nothing_to_object_to() {
    let wasm = c_guest("tck");
    let inspected = engine().inspect(&wasm, None, 1 << 20, &limits()).expect("a handler");
    let module = engine().load_inline(wasm.into(), &inspected, None).await.expect("it loads");
    let handler = handler(&module, "");
    let mut exchanges = vec![
        request("get_protocol_version", "GET", "/", &[]),
        request("set_method", "GET", "/", &[]),
        request("get_header_values/lower", "GET", "/", &[("single-header", "value")]),
        request("get_header_values/mixed", "GET", "/", &[("single-header", "value")]),
        request("get_header_values/absent", "GET", "/", &[]),
        request("get_header_values/two", "GET", "/", &[("multi-header", "value1"), ("multi-header", "value2")]),
        request("get_header_names", "GET", "/", &[("a-header", "1"), ("b-header", "2")]),
        request("get_source_addr", "GET", "/", &[]),
    ];
    for write in ["set_header_value", "add_header_value", "remove_header"] {
        exchanges.push(request(&format!("{write}/new"), "GET", "/", &[]));
        exchanges.push(request(&format!("{write}/existing"), "GET", "/", &[("existing-header", "bear")]));
    }
    for method in ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH"] {
        exchanges.push(request(&format!("get_method/{method}"), method, "/", &[]));
    }
    for uri in ["/simple", "/simple%26clean", "/animal?name=panda", "/disney?name=chip%26dale"] {
        exchanges.push(request(&format!("get_uri/{uri}"), "GET", uri, &[]));
        exchanges.push(request(&format!("set_uri/{uri}"), "GET", "/other", &[]));
    }
    for length in [0, 5, 2048, 4096, 5000] {
        let mut exchange = request(&format!("read_body/{length}"), "POST", "/", &[]);
        exchange.request_body = Some(vec![b'a'; length].into());
        exchanges.push(exchange);
    }
    assert_eq!(exchanges.len(), 35);
    for exchange in exchanges {
        let id = exchange.request.headers["x-httpwasm-tck-testid"].to_str().expect("text").to_owned();
        let outcome = handler.request(exchange).await;
        assert_eq!(failure(&outcome.result), "ok", "{id}");
        assert!(outcome.vm.is_some(), "{id}: {:?}", outcome.result);
        let (exchange, vm) = went_on(outcome);
        assert_eq!(exchange.response.headers["x-httpwasm-tck-handled"], "1", "{id}");
        assert!(!exchange.request_body_consumed, "{id}");
        match id.as_str() {
            "get_protocol_version" => assert_eq!(exchange.response_body.as_deref(), Some(&b"HTTP/1.1"[..])),
            "set_method" => assert_eq!(exchange.request.method, "POST"),
            "add_header_value/existing" => {
                let values: Vec<_> = exchange.request.headers.get_all("existing-header").iter().collect();
                assert_eq!(values, ["bear", "value"]);
            }
            id if id.starts_with("set_uri/") => assert_eq!(exchange.request.uri, id["set_uri/".len()..]),
            _ => {}
        }
        vm.response(exchange, false).await.result.expect("ok");
    }
}
