//! What a phase does to an exchange: answers, pending responses, bodies, features, errors of the upstream.

use wasmgate::engine::Features;

use super::fixture::*;

/// `a`, `bc`, `x-pend` and `content-length` lie at 0, 8, 16 and 32.
const DATA: &str = r#"(data (i32.const 0) "a") (data (i32.const 8) "bc") (data (i32.const 16) "x-pend")
    (data (i32.const 32) "content-length") (data (i32.const 64) "transfer-encoding")"#;
const WRITE_A: &str = "(call $write_body (i32.const 1) (i32.const 0) (i32.const 1))";
const WRITE_BC: &str = "(call $write_body (i32.const 1) (i32.const 8) (i32.const 2))";

async fn run(request: &str) -> wasmgate::engine::HttpOutcome {
    let module = Guest { more: DATA, request, ..Guest::default() }.load().await;
    handler(&module, "").request(post("client body")).await
}

#[tokio::test]
async fn an_answer_is_the_pending_response() {
    let answer = reply(run("(i64.const 0)").await);
    assert_eq!((answer.status, answer.headers.len(), answer.body.len()), (200, 0, 0));

    let request = format!(
        "(call $set_status_code (i32.const 418)) {WRITE_A} {WRITE_BC} {WRITE_A}
         (call $add_header_value (i32.const 1) (i32.const 16) (i32.const 6) (i32.const 0) (i32.const 1))
         (call $add_header_value (i32.const 1) (i32.const 16) (i32.const 6) (i32.const 8) (i32.const 2))
         (call $set_header_value (i32.const 1) (i32.const 32) (i32.const 14) (i32.const 0) (i32.const 1))
         (call $set_header_value (i32.const 1) (i32.const 64) (i32.const 17) (i32.const 0) (i32.const 1))
         (i64.const 0)"
    );
    let answer = reply(run(&request).await);
    assert_eq!((answer.status, &answer.body[..]), (418, &b"abca"[..]), "writes append");
    let headers: Vec<_> = answer.headers.iter().map(|(n, v)| (n.as_str(), v.as_bytes())).collect();
    assert_eq!(headers, [("x-pend", &b"a"[..]), ("x-pend", b"bc")], "in order, and without framing");
}

#[tokio::test]
async fn the_low_word_alone_says_whether_to_go_on() {
    reply(run("(i64.const 0x700000000)").await);
    went_on(run("(i64.const 0x700000001)").await);
}

#[tokio::test]
async fn statuses_without_content_have_none() {
    for status in [204, 205, 304] {
        let request = format!("(call $set_status_code (i32.const {status})) {WRITE_A} (i64.const 0)");
        let answer = reply(run(&request).await);
        assert_eq!((answer.status, answer.body.len()), (status, 0));
    }
    let empty = "(call $write_body (i32.const 1) (i32.const 0) (i32.const 0)) (i64.const 0)";
    assert_eq!(reply(run(empty).await).body.len(), 0, "writing nothing is legal");
}

#[tokio::test]
async fn what_is_set_before_the_upstream_is_handed_on_for_the_merge() {
    let request = format!(
        "(call $set_status_code (i32.const 201)) {WRITE_A} {WRITE_BC}
         (call $set_header_value (i32.const 1) (i32.const 16) (i32.const 6) (i32.const 8) (i32.const 2)) (i64.const 1)"
    );
    let (exchange, _vm) = went_on(run(&request).await);
    assert_eq!((exchange.response.status.as_u16(), exchange.response_status_set), (201, true));
    assert_eq!(exchange.response.headers["x-pend"], "bc");
    assert_eq!(exchange.response_body.as_deref(), Some(&b"abc"[..]));
    assert!(exchange.response_body_replaced.is_none());

    let (exchange, _vm) = went_on(run("(i64.const 1)").await);
    assert!(!exchange.response_status_set && exchange.response.headers.is_empty() && exchange.response_body.is_none());
}

#[tokio::test]
async fn a_second_handler_sees_what_the_first_one_left() {
    let first = Guest {
        more: DATA,
        request: "(call $write_body (i32.const 0) (i32.const 8) (i32.const 2)) (call $write_body (i32.const 1) (i32.const 0) (i32.const 1))
                  (call $set_header_value (i32.const 1) (i32.const 16) (i32.const 6) (i32.const 0) (i32.const 1))
                  (call $set_status_code (i32.const 202)) (i64.const 1)",
        ..Guest::default()
    };
    // Copies the request body that it reads behind the status that it sees.
    let second = Guest {
        init: "(drop (call $enable_features (i32.const 1)))",
        request: "(i32.store16 (i32.const 100) (call $get_status_code))
                  (local.set $l (call $read_body (i32.const 0) (i32.const 102) (i32.const 100)))
                  (call $write_body (i32.const 1) (i32.const 100) (i32.add (i32.const 2) (i32.wrap_i64 (local.get $l)))) (i64.const 0)",
        ..Guest::default()
    };
    let (exchange, _vm) = went_on(handler(&first.load().await, "").request(post("client body")).await);
    let answer = reply(handler(&second.load().await, "").request(exchange).await);
    assert_eq!(
        (answer.status, &answer.body[..]),
        (202, &[202, 0, b'b', b'c'][..]),
        "its own body replaces the first one's"
    );
    assert_eq!(answer.headers.len(), 1, "headers set before stay");
}

#[tokio::test]
async fn reading_consumes_the_body_unless_it_is_buffered() {
    let read_all = "(loop $more (local.set $l (call $read_body (i32.const 0) (i32.const 100) (i32.const 4)))
                     (call $write_body (i32.const 1) (i32.const 100) (i32.wrap_i64 (local.get $l)))
                     (br_if $more (i64.eqz (i64.shr_u (local.get $l) (i64.const 32)))))";
    let body = "x".repeat(5_001);
    for (features, consumed) in [(0, true), (1, false)] {
        let request = format!("(drop (call $enable_features (i32.const {features}))) {read_all} (i64.const 1)");
        let module = Guest { more: DATA, request: &request, ..Guest::default() }.load().await;
        let (exchange, _vm) = went_on(handler(&module, "").request(post(body.clone())).await);
        assert_eq!(exchange.response_body.as_deref(), Some(body.as_bytes()), "1,251 reads give the whole body");
        assert_eq!(exchange.request_body_consumed, consumed);
        assert_eq!(exchange.request_body.as_deref(), Some(body.as_bytes()));
        assert!(exchange.request_body_replaced.is_none());
    }
    let (exchange, _vm) = went_on(run("(i64.const 1)").await);
    assert!(!exchange.request_body_consumed, "a body that is not read is forwarded");
    let (exchange, _vm) = went_on(run("(call $write_body (i32.const 0) (i32.const 0) (i32.const 1)) (call $write_body (i32.const 0) (i32.const 8) (i32.const 2)) (i64.const 1)").await);
    assert_eq!(exchange.request_body_replaced.as_deref(), Some(&b"abc"[..]), "the first write replaces, others append");
    let read_then_write =
        format!("{read_all} (call $write_body (i32.const 0) (i32.const 0) (i32.const 1)) (i64.const 1)");
    let (exchange, _vm) = went_on(run(&read_then_write).await);
    assert_eq!((exchange.request_body_replaced.as_deref(), exchange.request_body_consumed), (Some(&b"a"[..]), false));
}

#[tokio::test]
async fn features_of_a_module_stay_and_those_of_a_request_do_not() {
    let module = Guest {
        more: r#"(data (i32.const 0) "x-more")"#,
        init: "(drop (call $enable_features (i32.const 1)))",
        request: "(if (i64.ne (call $get_header_values (i32.const 0) (i32.const 0) (i32.const 6) (i32.const 0) (i32.const 0)) (i64.const 0))
                    (then (drop (call $enable_features (i32.const 6))))) (i64.const 1)",
        response: "(drop (call $enable_features (i32.const 2)))",
    };
    let handler = handler(&module.load().await, "");
    for (exchange, features) in [(get(), 1), (with_header("x-more", "1"), 3), (get(), 1)] {
        let (exchange, vm) = went_on(handler.request(exchange).await);
        assert_eq!(vm.features(), Features(features));
        vm.response(answered(exchange, 200, "text"), false).await.result.expect("ok");
    }
}

/// Answers in RESP with its context, `is_error`, the status and the body as it found them.
const TELLS: &str =
    "(i32.store8 (i32.const 100) (local.get $context)) (i32.store8 (i32.const 101) (local.get $is_error))
    (i32.store16 (i32.const 102) (call $get_status_code))
    (local.set $l (call $read_body (i32.const 1) (i32.const 104) (i32.const 100)))
    (call $write_body (i32.const 1) (i32.const 100) (i32.add (i32.const 4) (i32.wrap_i64 (local.get $l))))";

#[tokio::test]
async fn the_response_phase_gets_its_context_and_whether_the_upstream_failed() {
    let init = "(drop (call $enable_features (i32.const 2)))";
    let module = Guest { more: DATA, init, request: "(i64.const 0x4200000001)", response: TELLS }.load().await;
    let handler = handler(&module, "");
    for (is_error, status) in [(false, 203u16), (true, 502)] {
        let (exchange, vm) = went_on(handler.request(get()).await);
        let outcome = vm.response(answered(exchange, status, "up"), is_error).await;
        outcome.result.as_ref().expect("ok");
        let [low, high] = status.to_le_bytes();
        let expected = [0x42, u8::from(is_error), low, high, b'u', b'p'];
        assert_eq!(outcome.exchange.response_body_replaced.as_deref(), Some(&expected[..]));
        assert_eq!(outcome.exchange.response.status.as_u16(), status);
        assert!(outcome.vm.is_none());
    }
}

#[tokio::test]
async fn a_buffered_response_is_changed_in_place() {
    let response = "(call $set_status_code (i32.const 299)) (call $remove_header (i32.const 1) (i32.const 48) (i32.const 4))
        (call $set_header_value (i32.const 1) (i32.const 16) (i32.const 6) (i32.const 0) (i32.const 1))
        (call $write_body (i32.const 1) (i32.const 0) (i32.const 1)) (call $write_body (i32.const 1) (i32.const 8) (i32.const 2))";
    let more = format!(r#"{DATA} (data (i32.const 48) "x-up")"#);
    let init = "(drop (call $enable_features (i32.const 2)))";
    let module = Guest { more: &more, init, request: "", response }.load().await;
    let (exchange, vm) = went_on(handler(&module, "").request(get()).await);
    let exchange = vm.response(answered(exchange, 200, "upstream"), false).await.exchange;
    assert_eq!(exchange.response.status.as_u16(), 299);
    assert_eq!(
        (exchange.response.headers.get("x-up"), &exchange.response.headers["x-pend"]),
        (None, &"a".parse().expect("a value"))
    );
    assert_eq!(exchange.response_body_replaced.as_deref(), Some(&b"abc"[..]));
}

#[tokio::test]
async fn a_failed_phase_leaves_the_exchange_as_it_was() {
    let edits = "(call $set_method (i32.const 0) (i32.const 1)) (call $set_uri (i32.const 128) (i32.const 1))
        (call $set_header_value (i32.const 0) (i32.const 16) (i32.const 6) (i32.const 0) (i32.const 1))
        (call $set_header_value (i32.const 1) (i32.const 16) (i32.const 6) (i32.const 0) (i32.const 1))
        (drop (call $read_body (i32.const 0) (i32.const 200) (i32.const 4)))
        (call $write_body (i32.const 0) (i32.const 0) (i32.const 1)) (call $write_body (i32.const 1) (i32.const 0) (i32.const 1))
        (call $set_status_code (i32.const 299)) unreachable";
    let more = format!(r#"{DATA} (data (i32.const 128) "/")"#);
    let module = Guest { more: &more, request: edits, ..Guest::default() }.load().await;
    let outcome = handler(&module, "").request(post("client body")).await;
    assert_eq!(failure(&outcome.result), "handler-trap");
    assert_eq!(format!("{:?}", outcome.exchange), format!("{:?}", post("client body")));

    let init = "(drop (call $enable_features (i32.const 2)))";
    let response = "(call $set_header_value (i32.const 1) (i32.const 16) (i32.const 6) (i32.const 0) (i32.const 1))
        (call $write_body (i32.const 1) (i32.const 0) (i32.const 1)) (call $set_status_code (i32.const 299)) unreachable";
    let module = Guest { more: DATA, init, response, request: "" }.load().await;
    let (exchange, vm) = went_on(handler(&module, "").request(get()).await);
    let outcome = vm.response(answered(exchange, 200, "up"), false).await;
    assert_eq!(failure(&outcome.result), "handler-trap");
    assert_eq!(format!("{:?}", outcome.exchange), format!("{:?}", answered(get(), 200, "up")));
}
