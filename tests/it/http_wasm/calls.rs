//! What calls give back and take: encodings, buffers, checks of what guests write.

use http::Version;

use super::fixture::*;

/// Makes the call that its configuration names with the given capacity, and answers with the result (8 bytes, little
/// endian) and the buffer, which held 0xEE before.
fn probe() -> String {
    let calls = [
        "(i64.extend_i32_u (call $get_method (i32.const 256) (local.get $cap)))",
        "(i64.extend_i32_u (call $get_uri (i32.const 256) (local.get $cap)))",
        "(i64.extend_i32_u (call $get_protocol_version (i32.const 256) (local.get $cap)))",
        "(i64.extend_i32_u (call $get_source_addr (i32.const 256) (local.get $cap)))",
        "(i64.extend_i32_u (call $get_config (i32.const 256) (local.get $cap)))",
        "(call $get_header_names (i32.const 0) (i32.const 256) (local.get $cap))",
        "(call $get_header_values (i32.const 0) (i32.const 0) (i32.const 5) (i32.const 256) (local.get $cap))",
        "(call $get_header_values (i32.const 0) (i32.const 8) (i32.const 6) (i32.const 256) (local.get $cap))",
        "(call $read_body (i32.const 0) (i32.const 256) (local.get $cap))",
        "(call $get_header_names (i32.const 1) (i32.const 256) (local.get $cap))",
        "(call $get_header_names (i32.const 2) (i32.const 256) (local.get $cap))",
        "(i64.extend_i32_u (call $enable_features (i32.const -1)))",
        "(i64.extend_i32_u (call $get_status_code))",
    ];
    let cases: String = (0..)
        .zip(calls)
        .map(|(i, call)| format!("(if (i32.eq (local.get $op) (i32.const {i})) (then (local.set $l {call})))\n"))
        .collect();
    let more = format!(
        r#"(data (i32.const 0) "MuLtI") (data (i32.const 8) "absent")
        (func $probe (param $op i32) (param $cap i32) (local $l i64)
          (memory.fill (i32.const 256) (i32.const 0xEE) (i32.const 1024))
          {cases}
          (i64.store (i32.const 248) (local.get $l))
          (call $write_body (i32.const 1) (i32.const 248) (i32.const 72)))"#
    );
    Guest {
        more: &more,
        request: "(drop (call $get_config (i32.const 16) (i32.const 8)))
                  (call $probe (i32.load8_u (i32.const 16)) (i32.load8_u (i32.const 17))) (i64.const 0)",
        ..Guest::default()
    }
    .wat()
}

/// The call, by its place in `probe`.
#[derive(Clone, Copy, PartialEq)]
#[repr(u8)]
enum Call {
    Method,
    Uri,
    Version,
    Source,
    Config,
    Names,
    Values,
    Absent,
    Body,
    ResponseNames,
    TrailerNames,
    Features,
    Status,
}

/// The raw result, and what was written; `None` where the buffer was left alone.
async fn ask(exchange: Box<wasmgate::engine::HttpExchange>, call: Call, cap: u8) -> (u64, Option<Vec<u8>>) {
    let module = load(engine(), &probe()).await;
    let reply = reply(handler(&module, [call as u8, cap]).request(exchange).await);
    let result = u64::from_le_bytes(reply.body[..8].try_into().expect("8 bytes"));
    let buffer = &reply.body[8..];
    let written = (result as u32 as usize).min(buffer.len());
    assert!(buffer[written..].iter().all(|b| *b == 0xEE), "written beyond the result: {buffer:?}");
    let untouched = buffer.iter().all(|b| *b == 0xEE);
    (result, (!untouched).then(|| buffer[..written].to_vec()))
}

#[tokio::test]
async fn lengths_are_true_and_nothing_is_cut() {
    let cases: [(Call, &[u8]); 5] = [
        (Call::Method, b"GET"),
        (Call::Uri, b"/path?query=%26"),
        (Call::Version, b"HTTP/1.1"),
        (Call::Source, b"127.0.0.1:4711"),
        (Call::Config, &[Call::Config as u8, 2]),
    ];
    for (call, expected) in cases {
        let length = expected.len() as u8;
        if call != Call::Config {
            assert_eq!(ask(get(), call, 0).await, (u64::from(length), None));
            assert_eq!(ask(get(), call, length - 1).await, (u64::from(length), None), "too small: nothing is written");
            assert_eq!(ask(get(), call, length + 1).await, (u64::from(length), Some(expected.to_vec())));
        }
        assert_eq!(ask(get(), call, length).await, (u64::from(length), Some(expected.to_vec())));
    }
}

#[tokio::test]
async fn lists_are_counted_and_nul_terminated() {
    let names = b"host\0multi\0x-one\0".to_vec();
    let whole = 3 << 32 | names.len() as u64;
    assert_eq!(ask(get(), Call::Names, 0).await, (whole, None));
    assert_eq!(ask(get(), Call::Names, names.len() as u8 - 1).await, (whole, None));
    assert_eq!(ask(get(), Call::Names, names.len() as u8).await, (whole, Some(names)));
    let values = b"value1\0value2\0".to_vec();
    assert_eq!(ask(get(), Call::Values, 13).await, (2 << 32 | 14, None));
    assert_eq!(ask(get(), Call::Values, 14).await, (2 << 32 | 14, Some(values)));
    assert_eq!(ask(get(), Call::Absent, 64).await, (0, None));
    assert_eq!(ask(get(), Call::ResponseNames, 64).await, (0, None));
    assert_eq!(ask(get(), Call::TrailerNames, 64).await, (0, None));
}

#[tokio::test]
async fn bodies_come_piece_by_piece_with_their_end() {
    const EOF: u64 = 1 << 32;
    assert_eq!(ask(post("hello"), Call::Body, 3).await, (3, Some(b"hel".to_vec())));
    assert_eq!(ask(post("hello"), Call::Body, 5).await, (EOF | 5, Some(b"hello".to_vec())));
    assert_eq!(ask(post("hello"), Call::Body, 8).await, (EOF | 5, Some(b"hello".to_vec())));
    assert_eq!(ask(post(""), Call::Body, 8).await, (EOF, None));
    assert_eq!(ask(get(), Call::Body, 8).await, (EOF, None));
}

#[tokio::test]
async fn versions_addresses_and_roots_in_the_abis_words() {
    let mut exchange = get();
    exchange.request.version = Version::HTTP_2;
    assert_eq!(ask(exchange, Call::Version, 64).await.1.as_deref(), Some(&b"HTTP/2.0"[..]));
    for (peer, expected) in [("[2001:db8::1]:80", "[2001:db8::1]:80"), ("[::ffff:10.0.0.1]:9", "10.0.0.1:9")] {
        let mut exchange = get();
        exchange.peer = peer.parse().expect("an address");
        assert_eq!(ask(exchange, Call::Source, 64).await.1.as_deref(), Some(expected.as_bytes()));
    }
    let mut exchange = get();
    exchange.request.uri = "http://example.com".parse().expect("a URI");
    assert_eq!(ask(exchange, Call::Uri, 64).await.1.as_deref(), Some(&b"/"[..]), "an empty path is `/`");
    assert_eq!(ask(get(), Call::Status, 0).await.0, 200);
    assert_eq!(ask(get(), Call::Features, 0).await.0, 3, "trailers are not offered");
}

/// Writes the URI, method or header that the request's `x-…` headers hold, as they are.
async fn written(kind: &str, value: &[u8]) -> (&'static str, Box<wasmgate::engine::HttpExchange>) {
    let write = match kind {
        "uri" => "(call $set_uri (i32.const 64) (local.get $i))",
        "method" => "(call $set_method (i32.const 64) (local.get $i))",
        "request name" => {
            "(call $set_header_value (i32.const 0) (i32.const 64) (local.get $i) (i32.const 0) (i32.const 1))"
        }
        "request value" => {
            "(call $set_header_value (i32.const 0) (i32.const 8) (i32.const 3) (i32.const 64) (local.get $i))"
        }
        "added value" => {
            "(call $add_header_value (i32.const 0) (i32.const 8) (i32.const 3) (i32.const 64) (local.get $i))"
        }
        "response value" => {
            "(call $set_header_value (i32.const 1) (i32.const 8) (i32.const 3) (i32.const 64) (local.get $i))"
        }
        "host" => "(call $set_header_value (i32.const 0) (i32.const 16) (i32.const 4) (i32.const 64) (local.get $i))",
        "added host" => {
            "(call $add_header_value (i32.const 0) (i32.const 16) (i32.const 4) (i32.const 64) (local.get $i))"
        }
        "removed" => "(call $remove_header (i32.const 0) (i32.const 64) (local.get $i))",
        "status" => "(call $set_status_code (i32.load16_s (i32.const 64)))",
        other => panic!("{other}"),
    };
    let request = format!("(local.set $i (call $get_config (i32.const 64) (i32.const 4096))) {write} (i64.const 1)");
    let more = r#"(data (i32.const 0) "v") (data (i32.const 8) "x-w") (data (i32.const 16) "Host")"#;
    let module = Guest { more, request: &request, ..Guest::default() }.load().await;
    let outcome = handler(&module, value).request(get()).await;
    (failure(&outcome.result), outcome.exchange)
}

#[tokio::test]
async fn uris_are_taken_byte_by_byte_or_not_at_all() {
    for uri in ["/", "/simple%26clean", "/disney?name=chip%26dale", "//a/./../b?", "/?x=%2e%2E"] {
        let (end, exchange) = written("uri", uri.as_bytes()).await;
        assert_eq!((end, exchange.request.uri.to_string().as_str()), ("ok", uri));
    }
    assert_eq!(written("uri", b"").await.1.request.uri, "/");
    for uri in [&b"no-slash"[..], b"/a b", b"/a\r\nx: y", b"/a\0", b"http://other/", b"/a#b", b"*"] {
        let (end, exchange) = written("uri", uri).await;
        assert_eq!(end, "handler-trap", "{}", uri.escape_ascii());
        assert_eq!(exchange.request.uri, "/path?query=%26");
    }
}

#[tokio::test]
async fn methods_are_tokens() {
    assert_eq!(written("method", b"POST").await.1.request.method, "POST");
    assert_eq!(written("method", b"PURGE").await.1.request.method, "PURGE");
    assert_eq!(written("method", b"").await.0, "handler-trap");
    for method in [&b"A B"[..], b"GET\r\n", b"CONNECT", &[b'A'; 1000]] {
        assert_eq!(written("method", method).await.0, "handler-invalid-response", "{}", method.escape_ascii());
    }
}

#[tokio::test]
async fn nothing_invalid_gets_into_headers() {
    for value in [&b"a\r\nx: y"[..], b"a\rb", b"a\nb", b"a\0b", b"\x01", b"\x7f"] {
        for kind in ["request value", "added value", "response value"] {
            let (end, exchange) = written(kind, value).await;
            assert_eq!(end, "handler-invalid-response", "{kind} {}", value.escape_ascii());
            assert!(!exchange.request.headers.contains_key("x-w") && exchange.response.headers.is_empty());
        }
    }
    for name in [&b"a b"[..], b"a:", b":path", b"a\r\n", b"\xff", b"a\0"] {
        assert_eq!(written("request name", name).await.0, "handler-invalid-response", "{}", name.escape_ascii());
        assert_eq!(written("removed", name).await.0, "ok", "removing what can't be there is nothing to do");
    }
    for value in [&b"tab\there"[..], b"", b"latin \xe9"] {
        let (end, exchange) = written("request value", value).await;
        assert_eq!((end, exchange.request.headers["x-w"].as_bytes()), ("ok", value));
    }
    // Whitespace around a value is no part of it (RFC 9110 section 5.5), and makes an answer malformed in HTTP/2.
    assert_eq!(written("request value", b"  spaces\t ").await.1.request.headers["x-w"], "spaces");
    assert_eq!(written("request name", b"X-MiXeD").await.1.request.headers["x-mixed"], "v");
}

#[tokio::test]
async fn a_status_is_one_that_can_end_a_request() {
    for code in [200i16, 204, 418, 599] {
        let (end, exchange) = written("status", &code.to_le_bytes()).await;
        assert_eq!((end, exchange.response.status.as_u16()), ("ok", code as u16));
        assert!(exchange.response_status_set);
    }
    for code in [-1i16, 0, 99, 100, 101, 199, 600, 1000] {
        assert_eq!(written("status", &code.to_le_bytes()).await.0, "handler-invalid-response", "{code}");
    }
}

#[tokio::test]
async fn framing_stays_the_gateways() {
    for name in ["content-length", "Transfer-Encoding", "connection", "keep-alive", "proxy-connection", "te", "upgrade"]
    {
        let (end, exchange) = written("request name", name.as_bytes()).await;
        assert_eq!((end, exchange.request.headers.contains_key(name)), ("ok", false), "{name}");
    }
}

#[tokio::test]
async fn there_is_always_one_host() {
    for kind in ["host", "added host"] {
        let (_, exchange) = written(kind, b"other.example:8080").await;
        let hosts: Vec<_> = exchange.request.headers.get_all("host").iter().collect();
        assert_eq!(hosts, ["other.example:8080"], "{kind}");
        assert_eq!(written(kind, b"a b/c").await.0, "handler-invalid-response");
    }
    assert_eq!(written("removed", b"host").await.1.request.headers["host"], "example.com");
    assert!(!written("removed", b"X-ONE").await.1.request.headers.contains_key("x-one"));
}

#[tokio::test]
async fn large_headers_and_too_many_of_them() {
    let big = "v".repeat(20_000);
    let mut exchange = get();
    exchange.request.headers.insert("x-big", big.parse().expect("a value"));
    let module = Guest {
        more: r#"(data (i32.const 0) "x-big")"#,
        // Asks for the length first, then reads and writes it back as a response header.
        request: "(local.set $l (call $get_header_values (i32.const 0) (i32.const 0) (i32.const 5) (i32.const 0) (i32.const 0)))
                  (drop (call $get_header_values (i32.const 0) (i32.const 0) (i32.const 5) (i32.const 64) (i32.wrap_i64 (local.get $l))))
                  (call $set_header_value (i32.const 1) (i32.const 0) (i32.const 5) (i32.const 64) (i32.sub (i32.wrap_i64 (local.get $l)) (i32.const 1)))
                  (i64.const 0)",
        ..Guest::default()
    };
    let outcome = handler(&module.load().await, "").request(exchange).await;
    assert_eq!(reply(outcome).headers, [("x-big".parse().expect("a name"), big.parse().expect("a value"))]);

    let endless = Guest {
        more: r#"(data (i32.const 0) "x")"#,
        request: "(loop $again (call $add_header_value (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 0) (i32.const 1)) (br $again)) (i64.const 1)",
        ..Guest::default()
    };
    let outcome = handler(&endless.load().await, "").request(get()).await;
    assert_eq!(failure(&outcome.result), "handler-output-too-large");
    assert!(outcome.exchange.response.headers.is_empty());
}
