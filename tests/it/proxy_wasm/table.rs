//! Every host function with every status it may give, row by row: callback, call, result.
//!
//! A result is `status outs`; alternatives stand between `|`, `*` is anything from there on, `!0` any status but OK. An out
//! that must not be written is `-`. Statuses: OK 0, NOT_FOUND 1, BAD_ARGUMENT 2, EMPTY 7, CAS_MISMATCH 8, INTERNAL_FAILURE 10.

use super::*;

struct Row(&'static str, &'static str);

/// In the callback of a request's headers; `GET /run/x?y=1` with `x-one: 1`, `x-two: a` and `x-two: b`, and `x-empty:`.
const REQUEST_HEADERS: &[Row] = &[
    Row("get_header_map_size 0 u", "0 *"),
    Row("get_header_map_size 8 u", "2 -"),
    Row("get_header_map_pairs 8 b", "2 -"),
    Row("get_header_map_value 0 s::path b", "0 [/run/x?y=1]"),
    Row("get_header_map_value 0 s::method b", "0 [GET]"),
    Row("get_header_map_value 0 s::scheme b", "0 [http]"),
    Row("get_header_map_value 0 s:X-One b", "0 [1]"),
    Row("get_header_map_value 0 s:x-two b", "0 [a]"),
    Row("get_header_map_value 0 s:x-empty b", "0 []"),
    Row("get_header_map_value 0 s:x-none b", "1 -"),
    Row("get_header_map_value 8 s:x-one b", "2 -"),
    // A map that is not there yet is empty: filters ask, and SDKs trap at anything else.
    Row("get_header_map_value 2 s::status b", "1 -"),
    Row("get_header_map_value 3 s:x b", "1 -"),
    Row("get_header_map_value 6 s::status b", "1 -"),
    Row("get_header_map_pairs 2 b", "0 []"),
    Row("get_header_map_pairs 4 b", "0 []"),
    Row("get_header_map_pairs 6 b", "0 []"),
    Row("get_header_map_size 2 u", "0 0"),
    Row("add_header_map_value 0 s:x-new s:v", "0"),
    Row("add_header_map_value 0 s:x-new s:", "0"),
    Row("add_header_map_value 8 s:x-new s:v", "2"),
    Row("replace_header_map_value 0 s:x-one s:2", "0"),
    Row("replace_header_map_value 0 s:x-new s:2", "0"),
    Row("replace_header_map_value 8 s:x-new s:2", "2"),
    Row("remove_header_map_value 0 s:x-two", "0"),
    Row("remove_header_map_value 0 s:x-none", "0"),
    Row("remove_header_map_value 0 s::path", "2"),
    Row("remove_header_map_value 8 s:x-none", "2"),
    Row("set_header_map_pairs 0 m::method=GET,:path=/,:authority=a.test,:scheme=http,x-new=1", "0"),
    Row("set_header_map_pairs 8 m:a=b", "2"),
    Row("add_header_map_value 2 s:x s:v", "2"),
    Row("replace_header_map_value 2 s:x s:v", "2"),
    Row("remove_header_map_value 2 s:x", "2"),
    Row("set_header_map_pairs 2 m:a=b", "2"),
    Row("get_buffer_bytes 0 0 10 b", "1 -"),
    Row("get_buffer_bytes 6 0 10 b", "1 -"),
    Row("get_buffer_status 0 u u", "1 - -"),
    Row("set_buffer_bytes 0 0 0 s:x", "1"),
    Row("set_buffer_bytes 6 0 0 s:x", "!0"),
    Row("continue_stream 0", "0"),
    Row("continue_stream 1", "0"),
    Row("continue_stream 4", "2"),
    Row("close_stream 4", "2"),
    Row("done", "1"),
    Row("set_effective_context $c", "0"),
    Row("set_property s:mine s:v", "0"),
];

/// In the callback of a request's body, which is `body`.
const REQUEST_BODY: &[Row] = &[
    Row("get_buffer_bytes 0 0 100 b", "0 [body]"),
    Row("get_buffer_bytes 0 0 0xffffffff b", "0 [body]"),
    Row("get_buffer_bytes 0 1 2 b", "0 [od]"),
    Row("get_buffer_bytes 0 1 0xfffffffe b", "0 [ody]"),
    Row("get_buffer_bytes 0 1 0xffffffff b", "2 -"),
    Row("get_buffer_bytes 0 0 0 b", "0 []"),
    Row("get_buffer_bytes 0 4 10 b", "0 []"),
    Row("get_buffer_bytes 0 100 10 b", "0 []"),
    Row("get_buffer_bytes 1 0 10 b", "1 -"),
    Row("get_buffer_bytes 4 0 10 b", "1 -"),
    Row("get_buffer_bytes 5 0 10 b", "1 -"),
    Row("get_buffer_bytes 8 0 10 b", "1 -"),
    Row("get_buffer_bytes 9 0 10 b", "2 -"),
    Row("get_buffer_status 0 u u", "0 4 0"),
    Row("get_buffer_status 1 u u", "1 - -"),
    Row("get_buffer_status 9 u u", "2 - -"),
    Row("set_buffer_bytes 0 0 0 s:x", "0"),
    Row("set_buffer_bytes 0 0 0xffffffff s:", "0"),
    Row("set_buffer_bytes 1 0 0 s:x", "1"),
    Row("set_buffer_bytes 9 0 0 s:x", "2"),
    Row("get_header_map_pairs 1 b", "0 []"),
];

/// In the callback of an answer's headers; 200 with `x-up: 1`.
const RESPONSE_HEADERS: &[Row] = &[
    Row("get_header_map_value 2 s::status b", "0 [200]"),
    Row("get_header_map_value 2 s:x-up b", "0 [1]"),
    Row("get_header_map_value 2 s:x-none b", "1 -"),
    Row("add_header_map_value 2 s:x-new s:v", "0"),
    Row("replace_header_map_value 2 s::status s:201", "0"),
    Row("remove_header_map_value 2 s:x-up", "0"),
    Row("remove_header_map_value 2 s::status", "2"),
    Row("set_header_map_pairs 2 m::status=200,x-new=1", "0"),
    Row("add_header_map_value 0 s:x s:v", "2"),
    Row("replace_header_map_value 0 s:x s:v", "2"),
    Row("remove_header_map_value 0 s:x", "2"),
    Row("get_buffer_bytes 1 0 10 b", "1 -"),
];

/// In the callback of an answer's body, which is `answer`.
const RESPONSE_BODY: &[Row] = &[
    Row("get_buffer_bytes 1 0 100 b", "0 [answer]"),
    Row("get_buffer_bytes 1 2 0xfffffffd b", "0 [swer]"),
    Row("get_buffer_bytes 0 0 10 b", "1 -"),
    Row("get_buffer_status 1 u u", "0 6 0"),
    Row("set_buffer_bytes 1 0 0 s:x", "0"),
    Row("get_header_map_pairs 3 b", "0 []"),
];

/// Wherever a filter runs.
const ANYWHERE: &[Row] = &[
    Row("log 0 s:x", "0"),
    Row("log 5 s:x", "0"),
    Row("log 1 0 0", "0"),
    Row("log 6 s:x", "2"),
    Row("log -1 s:x", "2"),
    Row("get_log_level u", "0 0|0 1|0 2|0 3|0 4|0 5"),
    Row("get_current_time_nanoseconds U", "0 1*"),
    Row("get_buffer_bytes 9 0 10 b", "2 -"),
    Row("set_buffer_bytes 9 0 0 s:x", "2"),
    Row("get_buffer_status 9 u u", "2 - -"),
    Row("get_header_map_pairs 8 b", "2 -"),
    Row("get_header_map_pairs 6 b", "0 *"),
    Row("http_call s:nowhere m::method=GET,:path=/,:authority=a 0 0 0 0 1000 u", "2 -"),
    Row("http_call s:up m::path=/,:authority=a 0 0 0 0 1000 u", "2 -"),
    Row("http_call s:up m::method=GET,:authority=a 0 0 0 0 1000 u", "2 -"),
    Row("http_call s:up m::method=GET,:path=/ 0 0 0 0 1000 u", "2 -"),
    Row("http_call s:up 0 0 0 0 0 0 1000 u", "2 -"),
    // An upstream of the configuration that the handler was not granted.
    Row("http_call s:other m::method=GET,:path=/,:authority=a 0 0 0 0 1000 u", "2 -|10 -"),
    Row("grpc_call s:nowhere s:s s:m 0 0 0 0 1000 u", "4 -|10 -"),
    Row("grpc_stream s:nowhere s:s s:m 0 0 u", "4 -|10 -"),
    Row("grpc_call s:other s:s s:m 0 0 0 0 1000 u", "4 -|10 -"),
    Row("grpc_stream s:other s:s s:m 0 0 u", "4 -|10 -"),
    Row("grpc_send 77 s:x 0", "1|2"),
    Row("grpc_cancel 77", "1"),
    Row("grpc_close 77", "1"),
    Row("set_shared_data s:row s:v 0", "0"),
    Row("get_shared_data s:row b u", "0 [v] *"),
    Row("set_shared_data s:row s:w 0xfffffff7", "8"),
    Row("set_shared_data s:row s: 0", "0"),
    Row("get_shared_data s:row b u", "0 [] *"),
    Row("get_shared_data s:none b u", "1 - -"),
    Row("register_shared_queue s:rows u", "0 *"),
    Row("dequeue_shared_queue $ b", "7 -"),
    Row("resolve_shared_queue s: s:none u", "1 -"),
    Row("resolve_shared_queue s:none s:rows u", "1 -"),
    Row("enqueue_shared_queue 0 s:x", "1"),
    Row("enqueue_shared_queue 77777 s:x", "1"),
    Row("dequeue_shared_queue 77777 b", "1 -"),
    Row("define_metric 3 s:row u", "2 -"),
    Row("define_metric 1 s:row_gauge u", "0 *"),
    Row("record_metric $ 7", "0"),
    Row("increment_metric $ -2", "0"),
    Row("get_metric $ U", "0 5"),
    Row("define_metric 2 s:row_histogram u", "0 *"),
    Row("record_metric $ 7", "0"),
    Row("get_metric $ U", "2 -"),
    Row("define_metric 0 s:row_counter u", "0 *"),
    Row("increment_metric $ 1", "0"),
    Row("increment_metric $ -1", "2"),
    Row("get_metric $ U", "0 *"),
    Row("record_metric 77777 1", "1"),
    Row("increment_metric 77777 1", "1"),
    Row("get_metric 77777 U", "1 -"),
    Row("get_property s:plugin_name b", "0 [*"),
    Row("get_property s:no%00such b", "1 -"),
    Row("call_foreign_function s:none s:x b", "1 -"),
    Row("set_effective_context 0xfffffff7", "2"),
    Row("set_tick_period_milliseconds 20", "0"),
];

fn fits(result: &str, expected: &str) -> bool {
    expected.split('|').any(|one| match (one.strip_suffix('*'), one) {
        (Some(start), _) => result.starts_with(start),
        (None, "!0") => !result.starts_with('0'),
        _ => result == one,
    })
}

/// The rows of a callback that gave something else.
fn differing(callback: &str, rows: &[Row], results: &[String]) -> Vec<String> {
    let mut wrong = Vec::new();
    for (i, Row(call, expected)) in rows.iter().enumerate() {
        let name = call.split(' ').next().unwrap_or_default();
        let result =
            results.get(i).map_or("nothing", |r| r.strip_prefix(name).and_then(|r| r.strip_prefix('=')).unwrap_or(r));
        if !fits(result, expected) {
            wrong.push(format!("{callback}: {call}: {result}, expected {expected}"));
        }
    }
    wrong
}

#[track_caller]
fn none(wrong: &[String]) {
    assert!(wrong.is_empty(), "{} rows differ:\n{}", wrong.len(), wrong.join("\n"));
}

fn answering() -> Upstream {
    Upstream::start(|_, stream| crate::support::upstream::respond(stream, 200, &[("X-Up", "1")], b"answer"))
}

/// All rows as one script; in bodies' callbacks when the whole body is there.
fn script(callback: &str, rows: &[Row]) -> String {
    let (first, when) = match callback {
        "request_body" | "response_body" => (format!("{callback}: more? pause; "), "end? "),
        _ => (String::new(), ""),
    };
    first + &rows.iter().map(|Row(call, _)| format!("{callback}: {when}{call}; ")).collect::<String>()
}

fn request(gw: &Gateway, script: &str) -> Request {
    let request =
        scripted(gw, script).header("X-One", "1").header("X-Two", "a").header("X-Two", "b").header("X-Empty", "");
    if script.contains("request_body:") { request.body("body") } else { request }
}

/// What the rows give in a stream's callback.
fn in_stream(gw: &Gateway, callback: &str, rows: &[Row]) -> Vec<String> {
    let script = script(callback, rows);
    if callback != "response_body" {
        return told(&request(gw, &script).send());
    }
    let text = request(gw, &(script + "response_body: end? tell")).send().text();
    results(text.lines().last().unwrap_or_default())
}

/// Each row in a stream of its own, so that none sees what another did.
#[track_caller]
fn each(callback: &str, rows: &[Row]) {
    let up = answering();
    let gw = gateway(&up, "", &filter("run", "", "strict = true"));
    let mut wrong = Vec::new();
    for row in rows {
        let row = std::slice::from_ref(row);
        wrong.extend(differing(callback, row, &in_stream(&gw, callback, row)));
    }
    none(&wrong);
}

#[test]
fn request_headers() {
    each("request_headers", REQUEST_HEADERS);
}

#[test]
fn request_body() {
    each("request_body", REQUEST_BODY);
}

#[test]
fn response_headers() {
    each("response_headers", RESPONSE_HEADERS);
}

#[test]
fn response_body() {
    each("response_body", RESPONSE_BODY);
}

/// A gateway with an upstream of its own to call, and another that is not granted.
fn calling(up: &Upstream, vm_config: &str, config: &str) -> Gateway {
    let keys = format!("upstreams = [\"up\"], vm_config = {vm_config:?}");
    let server = ONE_VM.to_owned() + &upstream("other", up.addr, "");
    gateway(up, &server, &filter("run", config, &keys))
}

#[test]
fn anywhere_in_a_stream() {
    let up = answering();
    let gw = calling(&up, "", "");
    let mut wrong = Vec::new();
    for callback in ["request_headers", "request_body", "response_headers", "response_body"] {
        wrong.extend(differing(callback, ANYWHERE, &in_stream(&gw, callback, ANYWHERE)));
    }
    none(&wrong);
}

#[test]
fn anywhere_at_the_start() {
    let up = answering();
    let gw = calling(&up, &script("start", ANYWHERE), &script("configure", ANYWHERE));
    let mut wrong = Vec::new();
    for callback in ["start", "configure"] {
        wrong.extend(differing(callback, ANYWHERE, &kept(&gw, "/run", callback)));
    }
    none(&wrong);
}

#[test]
fn anywhere_on_tick() {
    let up = answering();
    let gw = calling(&up, "", &(script("tick", ANYWHERE) + "configure: set_tick_period_milliseconds 20"));
    none(&differing("tick", ANYWHERE, &eventually_kept(&gw, "/run", "tick", || ())));
}

#[test]
fn anywhere_when_a_queue_is_ready() {
    let up = answering();
    let config = script("queue", ANYWHERE) + "configure: register_shared_queue s:ready u; ";
    let gw = calling(
        &up,
        "",
        &(config + "request_body: resolve_shared_queue s: s:ready u; request_body: enqueue_shared_queue $ s:x"),
    );
    let results = eventually_kept(&gw, "/run", "queue", || {
        gw.post("/run", "body").send().expect(200);
    });
    none(&differing("queue", ANYWHERE, &results));
}

#[test]
fn anywhere_when_a_call_is_answered() {
    let up = answering();
    let gw = calling(&up, "", "");
    let call =
        "request_headers: http_call s:up m::method=GET,:path=/,:authority=a 0 0 0 0 10000 u; request_headers: pause; ";
    let all = format!("{call}{}call: continue_stream 0", script("call", ANYWHERE));
    let results = told(&request(&gw, &all).send());
    none(&differing("call", ANYWHERE, results.get(1..).unwrap_or_default()));
}

#[test]
fn anywhere_at_a_streams_end() {
    let up = answering();
    let gw = calling(&up, "", "");
    let mut wrong = Vec::new();
    for callback in ["done", "log", "delete"] {
        let results = eventually_kept(&gw, "/run", callback, || {
            gw.get("/run").header("X-Run", script(callback, ANYWHERE)).send().expect(200);
        });
        wrong.extend(differing(callback, ANYWHERE, &results));
    }
    none(&wrong);
}

/// Rows that need a story: what one call leaves for the next.
#[test]
fn sequences() {
    let up = answering();
    let gw = calling(&up, "", "");
    for (calls, expected) in [
        (
            &[
                "set_shared_data s:absent s:v 1234",
                "get_shared_data s:absent b u",
                "set_shared_data s:absent s:w $",
                "get_shared_data s:absent b u",
            ][..],
            &["0", "0 [v] *", "0", "0 [w] *"][..],
        ),
        (
            &[
                "register_shared_queue s:q u",
                "enqueue_shared_queue $ s:one",
                "enqueue_shared_queue $ s:",
                "dequeue_shared_queue $ b",
                "dequeue_shared_queue $ b",
                "dequeue_shared_queue $ b",
            ],
            &["0 *", "0", "0", "0 [one]", "0 []", "7 -"],
        ),
        (
            &[
                "register_shared_queue s:r u",
                "enqueue_shared_queue $ s:kept",
                "register_shared_queue s:r u",
                "resolve_shared_queue s: s:r u",
                "dequeue_shared_queue $ b",
            ],
            &["0 *", "0", "0 *", "0 *", "0 [kept]"],
        ),
        (
            &[
                "define_metric 0 s:again u",
                "increment_metric $ 2",
                "define_metric 0 s:again u",
                "get_metric $ U",
                "record_metric $ 3",
                "get_metric $ U",
            ],
            &["0 *", "0", "0 *", "0 2", "0", "0 5"],
        ),
        (&["set_property s:mine%00too s:value", "get_property s:mine%00too b"], &["0", "0 [value]"]),
    ] {
        let rows: Vec<_> = std::iter::zip(calls, expected).map(|(call, expected)| Row(call, expected)).collect();
        none(&differing("request_headers", &rows, &run(&gw, script("request_headers", &rows))));
    }
}

/// The rows here and the broken pointers leave no function out; two have tests of their own.
#[test]
fn no_function_is_left_out() {
    let header = include_str!("../../guests/c/proxy_wasm.h");
    let names = header.split("F(").skip(1).filter_map(|rest| rest.split([',', ')']).next()).filter(|n| *n != "name");
    let (mut all, mut missing) = (0, Vec::new());
    let tables = [REQUEST_HEADERS, REQUEST_BODY, RESPONSE_HEADERS, RESPONSE_BODY, ANYWHERE];
    for name in names {
        all += 1;
        let calls = |Row(call, _): &&Row| call.split(' ').next() == Some(name);
        if !tables.iter().any(|rows| rows.iter().any(|row| calls(&row))) {
            missing.push(name);
        }
    }
    assert_eq!(all, 39);
    // `headers.rs` and `calls.rs` have them.
    assert_eq!(missing, ["get_status", "send_local_response"]);
}
