//! Who may call what, when: every call in every phase (ABI; the request, response and body sections).

use super::fixture::*;

/// How a call must end, in: the start function, `handle_request`, `handle_response` without features, with
/// `buffer_request`, with `buffer_response`. `t` is a trap.
struct Row(&'static str, &'static str, &'static str);

const TABLE: [Row; 33] = [
    Row("enable_features", "(drop (call $enable_features (i32.const 0)))", "....."),
    Row("get_config", "(drop (call $get_config (i32.const 64) (i32.const 8)))", "....."),
    Row("log_enabled", "(drop (call $log_enabled (i32.const 0)))", "....."),
    Row("log", "(call $log (i32.const 0) (i32.const 0) (i32.const 1))", "....."),
    Row("get_method", "(drop (call $get_method (i32.const 64) (i32.const 8)))", "t...."),
    Row("set_method", "(call $set_method (i32.const 0) (i32.const 1))", "t.ttt"),
    Row("get_uri", "(drop (call $get_uri (i32.const 64) (i32.const 64)))", "t...."),
    Row("set_uri", "(call $set_uri (i32.const 8) (i32.const 1))", "t.ttt"),
    Row("get_protocol_version", "(drop (call $get_protocol_version (i32.const 64) (i32.const 64)))", "t...."),
    Row("get_source_addr", "(drop (call $get_source_addr (i32.const 64) (i32.const 64)))", "t...."),
    Row("request header names", "(drop (call $get_header_names (i32.const 0) (i32.const 64) (i32.const 64)))", "t...."),
    Row(
        "response header names",
        "(drop (call $get_header_names (i32.const 1) (i32.const 64) (i32.const 64)))",
        "t....",
    ),
    Row(
        "request trailer names",
        "(drop (call $get_header_names (i32.const 2) (i32.const 64) (i32.const 64)))",
        "t....",
    ),
    Row(
        "response trailer names",
        "(drop (call $get_header_names (i32.const 3) (i32.const 64) (i32.const 64)))",
        "t....",
    ),
    Row(
        "names of an unknown kind",
        "(drop (call $get_header_names (i32.const 4) (i32.const 64) (i32.const 64)))",
        "ttttt",
    ),
    Row(
        "request header values",
        "(drop (call $get_header_values (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 64) (i32.const 64)))",
        "t....",
    ),
    Row(
        "response header values",
        "(drop (call $get_header_values (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 64) (i32.const 64)))",
        "t....",
    ),
    Row(
        "request trailer values",
        "(drop (call $get_header_values (i32.const 2) (i32.const 0) (i32.const 1) (i32.const 64) (i32.const 64)))",
        "t....",
    ),
    Row(
        "values without a name",
        "(drop (call $get_header_values (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 64) (i32.const 64)))",
        "ttttt",
    ),
    Row(
        "set a request header",
        "(call $set_header_value (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 0) (i32.const 1))",
        "t.ttt",
    ),
    Row(
        "set a response header",
        "(call $set_header_value (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 0) (i32.const 1))",
        "t.tt.",
    ),
    Row(
        "set a request trailer",
        "(call $set_header_value (i32.const 2) (i32.const 0) (i32.const 1) (i32.const 0) (i32.const 1))",
        "ttttt",
    ),
    Row(
        "add a request header",
        "(call $add_header_value (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 0) (i32.const 1))",
        "t.ttt",
    ),
    Row(
        "add a response header",
        "(call $add_header_value (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 0) (i32.const 1))",
        "t.tt.",
    ),
    Row("remove a request header", "(call $remove_header (i32.const 0) (i32.const 0) (i32.const 1))", "t.ttt"),
    Row("remove a response header", "(call $remove_header (i32.const 1) (i32.const 0) (i32.const 1))", "t.tt."),
    Row("remove a response trailer", "(call $remove_header (i32.const 3) (i32.const 0) (i32.const 1))", "ttttt"),
    Row("read the request body", "(drop (call $read_body (i32.const 0) (i32.const 64) (i32.const 8)))", "t.t.t"),
    Row("read the response body", "(drop (call $read_body (i32.const 1) (i32.const 64) (i32.const 8)))", "t.tt."),
    Row("write the request body", "(call $write_body (i32.const 0) (i32.const 0) (i32.const 1))", "t.ttt"),
    Row("write the response body", "(call $write_body (i32.const 1) (i32.const 0) (i32.const 1))", "t.tt."),
    Row("get_status_code", "(drop (call $get_status_code))", "t...."),
    Row("set_status_code", "(call $set_status_code (i32.const 202))", "t.tt."),
];

/// One guest for the whole table. Its configuration says which call (`op`) it makes in which phase, with which features.
fn guest() -> String {
    let calls: String = (0..)
        .zip(&TABLE)
        .map(|(i, Row(_, call, _))| format!("(if (i32.eq (global.get $op) (i32.const {i})) (then {call}))\n"))
        .collect();
    Guest {
        more: &format!(
            r#"(data (i32.const 0) "x") (data (i32.const 8) "/")
            (global $op (mut i32) (i32.const 0)) (global $phase (mut i32) (i32.const 0))
            (func $op (param $phase i32) (if (i32.eq (global.get $phase) (local.get $phase)) (then {calls})))"#
        ),
        init: "(drop (call $get_config (i32.const 16) (i32.const 8)))
               (global.set $op (i32.load8_u (i32.const 16))) (global.set $phase (i32.load8_u (i32.const 17)))
               (drop (call $enable_features (i32.load8_u (i32.const 18)))) (call $op (i32.const 0))",
        request: "(call $op (i32.const 1)) (i64.const 1)",
        response: "(call $op (i32.const 2))",
    }
    .wat()
}

#[tokio::test]
async fn every_call_in_every_phase() {
    let module = load(engine(), &guest()).await;
    for (op, Row(name, _, expected)) in (0u8..).zip(&TABLE) {
        let mut found = String::new();
        for (phase, features) in [(0, 0), (1, 0), (2, 0), (2, 1), (2, 2)] {
            let handler = handler(&module, [op, phase, features]);
            let outcome = handler.request(post("body")).await;
            let mut kind = failure(&outcome.result);
            if phase == 2 {
                let (exchange, vm) = went_on(outcome);
                kind = failure(&vm.response(answered(exchange, 200, "text"), false).await.result);
            }
            found.push(match kind {
                "ok" => '.',
                "handler-trap" => 't',
                other => panic!("{name} in phase {phase}: {other}"),
            });
        }
        assert_eq!(&found, expected, "{name}: start, request, response, with buffer_request, with buffer_response");
    }
}

#[tokio::test]
async fn bad_pointers_and_arguments_trap() {
    let calls = [
        "(drop (call $get_method (i32.const 65535) (i32.const 8)))",
        "(drop (call $get_uri (i32.const -1) (i32.const -1)))",
        "(call $set_uri (i32.const 0) (i32.const -1))",
        "(call $set_method (i32.const 0) (i32.const 0))",
        "(call $log (i32.const 0) (i32.const 65535) (i32.const 2))",
        "(drop (call $get_header_values (i32.const 0) (i32.const 65536) (i32.const 1) (i32.const 0) (i32.const 0)))",
        "(call $set_header_value (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 65536) (i32.const 1))",
        "(call $set_header_value (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 1))",
        "(call $set_header_value (i32.const -1) (i32.const 0) (i32.const 1) (i32.const 0) (i32.const 1))",
        "(call $remove_header (i32.const 0) (i32.const 0) (i32.const 0))",
        "(drop (call $read_body (i32.const 0) (i32.const 0) (i32.const 0)))",
        "(drop (call $read_body (i32.const 2) (i32.const 0) (i32.const 8)))",
        "(drop (call $read_body (i32.const 0) (i32.const 65535) (i32.const 2)))",
        "(call $write_body (i32.const 2) (i32.const 0) (i32.const 1))",
        "(call $write_body (i32.const 1) (i32.const 65535) (i32.const 2))",
    ];
    let cases: String = (0..)
        .zip(calls)
        .map(|(i, call)| format!("(if (i32.eq (i32.load8_u (i32.const 16)) (i32.const {i})) (then {call}))"))
        .collect();
    let request = format!("(drop (call $get_config (i32.const 16) (i32.const 8))) {cases} (i64.const 1)");
    let module = Guest { more: r#"(data (i32.const 0) "x")"#, request: &request, ..Guest::default() }.load().await;
    for (i, call) in (0u8..).zip(calls) {
        let outcome = handler(&module, [i]).request(post("body")).await;
        assert_eq!(failure(&outcome.result), "handler-trap", "{call}");
    }
}
