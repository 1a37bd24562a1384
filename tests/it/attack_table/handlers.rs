//! Guests that are handlers of routes: those that fail in a phase, and those whose answers would split or forge.

use super::row::{Attack, Ends, Module, Place, Row};
use crate::support::{Response, wat};

pub fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    let mut row = |threat, variant: String, place, abi, wasm, config, ends| {
        let attack = Attack::Route { module: Module { abi, wasm, config }, place, ends };
        rows.push(Row { threat, variant, attack });
    };
    for (variant, [init, request, response]) in LOOPS {
        let wasm = wat(&guest("", init, request, response));
        row("infinite loop", format!("http-wasm, {variant}"), Place::Filter, "http-wasm", wasm, "", Ends::Timeout);
    }
    row("infinite loop", "cgi".into(), Place::Target, "cgi", wat(CGI_LOOP), "", Ends::Timeout);
    for (variant, [init, request, response]) in TRAPS {
        let wasm = wat(&guest("", init, request, response));
        row("trap", format!("http-wasm, {variant}"), Place::Filter, "http-wasm", wasm, "", TRAP);
    }
    for (variant, place, abi, text) in TRAPS_OF_OTHERS {
        row("trap", variant.into(), place, abi, wat(text), "", TRAP);
    }
    let exit = Ends::Problem(502, "handler-exit-code");
    row("trap", "cgi, an exit code".into(), Place::Target, "cgi", wat(&prints("Content-Type: a/b\\n\\n", 3)), "", exit);
    for (variant, text) in
        [("_initialize", "_initialize"), ("_start", "_start")].map(|(v, start)| (v, time_bomb(start, "unreachable")))
    {
        row("trap", format!("http-wasm, in {variant}"), Place::TimeBomb, "http-wasm", text.into_bytes(), "", TRAP);
    }
    let bomb = time_bomb("_initialize", "(loop (br 0))").into_bytes();
    row("infinite loop", "http-wasm, in _initialize".into(), Place::TimeBomb, "http-wasm", bomb, "", Ends::Timeout);
    for (variant, call) in FLOODS {
        let wasm = wat(&guest("", "", &format!("(loop $more {call} (br $more)) (i64.const 0)"), ""));
        let too_much = Ends::Problem(502, "handler-output-too-large");
        row("output without end", format!("http-wasm, {variant}"), Place::Target, "http-wasm", wasm, "", too_much);
    }
    for (variant, text, end) in forgeries() {
        row("forged answer", format!("http-wasm, {variant}"), Place::Target, "http-wasm", wat(&text), "", end);
    }
    for (variant, text, end) in forged_requests() {
        row("forged request", format!("http-wasm, {variant}"), Place::Filter, "http-wasm", wat(&text), "", end);
    }
    for (variant, text) in CGI_FORGERIES {
        row("forged answer", format!("cgi, {variant}"), Place::Target, "cgi", wat(&prints(text, 0)), "", INVALID);
    }
    for (variant, abi, text) in framings() {
        row("forged framing", variant, Place::Target, abi, wat(&text), "", Ends::Holds(one_answer));
    }
    rows
}

const TRAP: Ends = Ends::Problem(502, "handler-trap");
const INVALID: Ends = Ends::Problem(502, "handler-invalid-response");

/// What it does when it starts, for a request and for an answer.
type Phases = [&'static str; 3];

const LOOPS: [(&str, Phases); 9] = [
    ("in the request phase", ["", "(loop (br 0)) (i64.const 1)", ""]),
    (
        "around get_method",
        ["", "(loop (drop (call $get_method (i32.const 0) (i32.const 8))) (br 0)) (i64.const 1)", ""],
    ),
    (
        "around get_header_names",
        ["", "(loop (drop (call $names (i32.const 0) (i32.const 0) (i32.const 0))) (br 0)) (i64.const 1)", ""],
    ),
    ("around log_enabled", ["", "(loop (drop (call $log_enabled (i32.const 0))) (br 0)) (i64.const 1)", ""]),
    ("around enable_features", ["", "(loop (drop (call $enable (i32.const 0))) (br 0)) (i64.const 1)", ""]),
    ("around get_status_code", ["", "(loop (drop (call $get_status)) (br 0)) (i64.const 1)", ""]),
    ("around log", ["", "(loop (call $log (i32.const 2) (i32.const 0) (i32.const 1024)) (br 0)) (i64.const 1)", ""]),
    ("in the response phase", ["", "", "(loop (br 0))"]),
    ("in a response phase that is held", ["(drop (call $enable (i32.const 2)))", "", "(loop (br 0))"]),
];

const TRAPS: [(&str, Phases); 8] = [
    ("in the request phase", ["", "unreachable", ""]),
    ("in the response phase", ["", "", "unreachable"]),
    ("in a response phase that is held", ["(drop (call $enable (i32.const 2)))", "", "unreachable"]),
    ("a bad pointer", ["", "(drop (call $get_method (i32.const -1) (i32.const 8))) (i64.const 1)", ""]),
    ("a length beyond the memory", ["", "(call $set_uri (i32.const 0) (i32.const -1)) (i64.const 1)", ""]),
    ("a call that is not for its phase", ["", "", "(call $set_uri (i32.const 0) (i32.const 1))"]),
    ("deep recursion", ["", "(call $dive (i64.const 1))", ""]),
    ("a body of no kind", ["", "(call $write (i32.const 7) (i32.const 0) (i32.const 1)) (i64.const 1)", ""]),
];

const TRAPS_OF_OTHERS: [(&str, Place, &str, &str); 4] = [
    ("cgi", Place::Target, "cgi", r#"(module (memory (export "memory") 1) (func (export "_start") unreachable))"#),
    (
        "cgi, in its start section",
        Place::Target,
        "cgi",
        r#"(module (memory (export "memory") 1) (func $s unreachable) (start $s) (func (export "_start")))"#,
    ),
    (
        "a command on a route",
        Place::Target,
        "command",
        r#"(module (memory (export "memory") 1) (func (export "_start") unreachable))"#,
    ),
    ("a core module on a route", Place::Target, "core", r#"(module (func (export "run") unreachable))"#),
];

const FLOODS: [(&str, &str); 2] = [
    ("in its answer's body", "(call $write (i32.const 1) (i32.const 0) (i32.const 60000))"),
    ("in the request's body", "(call $write (i32.const 0) (i32.const 0) (i32.const 60000))"),
];

const CGI_LOOP: &str = r#"(module (memory (export "memory") 1) (func (export "_start") (loop (br 0))))"#;

/// As WAT escapes them.
const CGI_FORGERIES: [(&str, &str); 11] = [
    ("no header block", "forged"),
    ("an empty header block", "\\n\\nforged"),
    ("a NUL in a value", "Content-Type: a/b\\nX-A: forged\\00\\n\\n"),
    ("a CR in a value", "Content-Type: a/b\\nX-A: a\\0dX-Forged: 1\\n\\n"),
    ("a space in a name", "Content-Type: a/b\\nX Forged: 1\\n\\n"),
    ("no name", "Content-Type: a/b\\n: forged\\n\\n"),
    ("a folded line", "Content-Type: a/b\\n forged\\n\\n"),
    ("the status 99", "Status: 99\\n\\nforged"),
    ("the status 100", "Status: 100 Continue\\n\\nforged"),
    ("the status 600", "Status: 600\\n\\nforged"),
    ("two statuses", "Status: 200\\nStatus: 404\\n\\nforged"),
];

/// A CGI program that prints this and exits with `code`.
fn prints(text: &str, code: u32) -> String {
    let length = wat(&format!("(module (memory 1) (data (i32.const 0) \"{text}\"))"));
    let length = length.len() - wat("(module (memory 1) (data (i32.const 0) \"\"))").len();
    format!(
        r#"(module (import "wasi_snapshot_preview1" "fd_write" (func $w (param i32 i32 i32 i32) (result i32)))
             (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
             (memory (export "memory") 1) (data (i32.const 16) "{text}")
             (func (export "_start") (i32.store (i32.const 0) (i32.const 16)) (i32.store (i32.const 4) (i32.const {length}))
               (drop (call $w (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8))) (call $exit (i32.const {code}))))"#
    )
}

/// Answers with this status and this header.
fn answers(status: i32, name: &str, value: &str) -> String {
    let header = header(1, name, value);
    let request = format!(
        "(call $set_status (i32.const {status})) {header} (call $write (i32.const 1) (i32.const 0) (i32.const 6)) (i64.const 0)"
    );
    guest(&data(name, value), "", &request, "")
}

/// The bytes that calls of `header` point to.
fn data(name: &str, value: &str) -> String {
    format!(r#"(data (i32.const 0) "forged") (data (i32.const 64) "{name}") (data (i32.const 128) "{value}")"#)
}

fn header(kind: u32, name: &str, value: &str) -> String {
    // `\0d` is one byte.
    let length = |text: &str| text.len() - 2 * text.matches('\\').count();
    format!(
        "(call $set_header (i32.const {kind}) (i32.const 64) (i32.const {}) (i32.const 128) (i32.const {}))",
        length(name),
        length(value)
    )
}

fn forgeries() -> Vec<(String, String, Ends)> {
    let mut all = Vec::new();
    for status in [-1, 0, 99, 100, 101, 199, 600, 1000, 65736] {
        all.push((format!("the status {status}"), answers(status, "x-a", "b"), INVALID));
    }
    for (what, text) in [("CR", "\\0d"), ("LF", "\\0a"), ("NUL", "\\00"), ("CR LF", "\\0d\\0a"), ("DEL", "\\7f")] {
        let value = format!("a{text}x-forged: 1");
        all.push((format!("{what} in a value"), answers(200, "x-a", &value), INVALID));
        let name = format!("x-a{text}x-forged");
        all.push((format!("{what} in a name"), answers(200, &name, "1"), INVALID));
    }
    for (what, name) in [("a space", "x forged"), ("a colon", "x-forged:"), ("no ASCII", "x-forged\\c3\\bc")] {
        all.push((format!("{what} in a name"), answers(200, name, "1"), INVALID));
    }
    all.push(("no name".into(), answers(200, "", "forged"), TRAP));
    all
}

/// Framing is the gateway's: what a guest says of it is dropped, whether it is true or not.
fn framings() -> Vec<(String, &'static str, String)> {
    let mut all = Vec::new();
    for (name, value) in [
        ("content-length", "3"),
        ("transfer-encoding", "chunked"),
        ("connection", "upgrade"),
        ("upgrade", "h2c"),
        ("keep-alive", "timeout=1"),
        ("trailer", "x-a"),
        ("te", "trailers"),
    ] {
        all.push((format!("http-wasm, `{name}`"), "http-wasm", answers(200, name, value)));
        let text = format!("Content-Type: a/b\\n{name}: {value}\\n\\nforged");
        all.push((format!("cgi, `{name}`"), "cgi", prints(&text, 0)));
    }
    all
}

/// As long as what the guest wrote, and nothing of what it said of that.
fn one_answer(answer: &Response) -> bool {
    let none = ["transfer-encoding", "upgrade", "trailer", "te"].iter().all(|name| answer.all(name).is_empty());
    let connection = answer.all("connection").iter().all(|value| ["close", "keep-alive"].contains(value));
    let ours = connection && answer.all("keep-alive").iter().all(|value| !value.contains("timeout=1"));
    none && ours && answer.all("content-length") == ["6"] && answer.text() == "forged"
}

/// What the upstream gets is asserted of every row: nothing that is forged.
fn forged_requests() -> Vec<(String, String, Ends)> {
    let mut all = Vec::new();
    for (what, text) in [("CR LF", "\\0d\\0a"), ("NUL", "\\00"), ("LF", "\\0a")] {
        let value = format!("a{text}x-forged: 1");
        let request = format!("{} (i64.const 1)", header(0, "x-a", &value));
        all.push((format!("{what} in a header"), guest(&data("x-a", &value), "", &request, ""), INVALID));
        let uri = format!("/a{text}x-forged");
        let length = uri.len() - 2 * uri.matches('\\').count();
        let request = |call: &str| format!("(call ${call} (i32.const 128) (i32.const {length})) (i64.const 1)");
        all.push((format!("{what} in the URI"), guest(&data("", &uri), "", &request("set_uri"), ""), TRAP));
        all.push((format!("{what} in the method"), guest(&data("", &uri), "", &request("set_method"), ""), INVALID));
    }
    all
}

/// It starts and answers well until it is due; then its request phase traps, and the next VM's start does `what`.
/// Text, as the arena says when that is.
fn time_bomb(start: &str, what: &str) -> String {
    format!(
        r#"(module (import "wasi_snapshot_preview1" "clock_time_get" (func $clock (param i32 i64 i32) (result i32)))
             (memory (export "memory") 1)
             (func $is_due (result i32) (drop (call $clock (i32.const 0) (i64.const 0) (i32.const 0)))
               (i64.gt_u (i64.load (i32.const 0)) (i64.const DUE)))
             (func (export "{start}") (if (call $is_due) (then {what})))
             (func (export "handle_request") (result i64) (if (call $is_due) (then unreachable)) (i64.const 1))
             (func (export "handle_response") (param i32 i32)))"#
    )
}

fn guest(more: &str, init: &str, request: &str, response: &str) -> String {
    let request = if request.is_empty() { "(i64.const 1)" } else { request };
    format!(
        r#"(module
  (import "http_handler" "enable_features" (func $enable (param i32) (result i32)))
  (import "http_handler" "log_enabled" (func $log_enabled (param i32) (result i32)))
  (import "http_handler" "log" (func $log (param i32 i32 i32)))
  (import "http_handler" "get_method" (func $get_method (param i32 i32) (result i32)))
  (import "http_handler" "set_method" (func $set_method (param i32 i32)))
  (import "http_handler" "set_uri" (func $set_uri (param i32 i32)))
  (import "http_handler" "get_header_names" (func $names (param i32 i32 i32) (result i64)))
  (import "http_handler" "set_header_value" (func $set_header (param i32 i32 i32 i32 i32)))
  (import "http_handler" "write_body" (func $write (param i32 i32 i32)))
  (import "http_handler" "get_status_code" (func $get_status (result i32)))
  (import "http_handler" "set_status_code" (func $set_status (param i32)))
  (memory (export "memory") 1) {more}
  (func $dive (param i64) (result i64) (i64.add (local.get 0) (call $dive (local.get 0))))
  (func (export "_initialize") {init})
  (func (export "handle_request") (result i64) {request})
  (func (export "handle_response") (param i32 i32) {response}))"#
    )
}
