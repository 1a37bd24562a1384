//! Every pointer of every host function out of range: INVALID_MEMORY_ACCESS (6), nothing written, nothing done.

use super::*;

/// Where it is called, what has to be called before, and a call that is right but for what a test puts in.
struct Call(&'static str, &'static str, &'static str);

/// All functions that take a pointer.
const CALLS: &[Call] = &[
    Call("request_headers", "", "log 2 s:x"),
    Call("request_headers", "", "get_log_level u"),
    Call("request_headers", "", "get_current_time_nanoseconds U"),
    Call("request_body", "", "get_buffer_bytes 0 0 10 b"),
    Call("request_body", "", "set_buffer_bytes 0 0 0 s:x"),
    Call("request_body", "", "get_buffer_status 0 u u"),
    Call("request_headers", "", "get_header_map_size 0 u"),
    Call("request_headers", "", "get_header_map_pairs 0 b"),
    Call("request_headers", "", "set_header_map_pairs 0 m::method=GET,:path=/,:authority=a"),
    Call("request_headers", "", "get_header_map_value 0 s::path b"),
    Call("request_headers", "", "add_header_map_value 0 s:x-new s:v"),
    Call("request_headers", "", "replace_header_map_value 0 s:x-new s:v"),
    Call("request_headers", "", "remove_header_map_value 0 s:x-new"),
    Call("request_headers", "", "send_local_response 403 s:details s:body m:x=y -1"),
    Call("request_headers", "", "http_call s:up m::method=GET,:path=/called,:authority=a s:body m:x=y 1000 u"),
    Call("request_headers", "", "set_shared_data s:pointers s:v 0"),
    Call("request_headers", "set_shared_data s:pointers s:v 0", "get_shared_data s:pointers b u"),
    Call("request_headers", "", "register_shared_queue s:pointers u"),
    Call("request_headers", "register_shared_queue s:pointers u", "resolve_shared_queue s: s:pointers u"),
    Call("request_headers", "register_shared_queue s:pointers u", "enqueue_shared_queue $ s:x"),
    Call(
        "request_headers",
        "register_shared_queue s:full u; request_headers: enqueue_shared_queue $ s:x",
        "dequeue_shared_queue $ b",
    ),
    Call("request_headers", "", "define_metric 0 s:pointers u"),
    Call("request_headers", "define_metric 0 s:pointers u", "get_metric $ U"),
    Call("request_headers", "", "get_property s:plugin_name b"),
    Call("request_headers", "", "set_property s:mine s:v"),
];

/// Those that may refuse before they look at what they got.
const REFUSING: &[Call] = &[
    Call("request_headers", "", "get_status u b"),
    Call("request_headers", "", "grpc_call s:up s:service s:method m:a=b s:message 1000 u"),
    Call("request_headers", "", "grpc_stream s:up s:service s:method m:a=b u"),
    Call("request_headers", "", "grpc_send 77 s:x 0"),
    Call("request_headers", "", "call_foreign_function s:none s:x b"),
];

/// The call once for each of its pointers, with that one out of range.
fn broken(call: &str) -> Vec<String> {
    let mut all = Vec::new();
    for (at, token) in call.split(' ').enumerate() {
        let with = |pointer: &str| {
            let tokens = call.split(' ').enumerate().map(|(i, token)| if i == at { pointer } else { token });
            tokens.collect::<Vec<_>>().join(" ")
        };
        let replacements: &[&str] = match token {
            // Beyond the end, over the end, around it.
            _ if token.starts_with("s:") && token.len() > 2 || token.starts_with("m:") => {
                &["0xfffffff0 32", "0x7ffffff0 32", "64 0xffffffff"]
            }
            "b" => &["0xfffffffc u", "u 0xfffffffd", "0x7ffffff0 0x7ffffff4"],
            "u" => &["0xfffffffd", "0x7ffffff0"],
            "U" => &["0xfffffffa", "0x7ffffff0"],
            _ => &[],
        };
        all.extend(replacements.iter().map(|pointer| with(pointer)));
    }
    all
}

/// The last result of a script for each broken call, where it is not one of these statuses.
fn refused(gw: &Gateway, calls: &[Call], statuses: &[&str]) -> Vec<String> {
    let mut wrong = Vec::new();
    for Call(callback, before, call) in calls {
        for broken in broken(call) {
            let script = format!("{callback}: {before}; {callback}: {broken}").replace(&format!("{callback}: ; "), "");
            let mut request = scripted(gw, script);
            if *callback == "request_body" {
                request = request.body("body");
            }
            let response = request.send();
            let result = told(&response).pop().unwrap_or_else(|| format!("nothing: {response}"));
            let outs = result.split_once('=').map_or("", |(_, result)| result);
            let (status, outs) = outs.split_once(' ').unwrap_or((outs, ""));
            if !statuses.contains(&status) || outs.chars().any(|c| c != '-' && c != ' ') {
                wrong.push(format!("{broken}: {result}"));
            }
        }
    }
    wrong
}

#[test]
fn pointers_out_of_range_are_statuses() {
    let up = Upstream::text("answer");
    let gw = gateway(&up, "", &filter("run", "", "upstreams = [\"up\"]"));
    let mut wrong = refused(&gw, CALLS, &["6"]);
    wrong.extend(refused(&gw, REFUSING, &["6", "1", "2", "4", "10"]));
    assert!(wrong.is_empty(), "{} calls differ:\n{}", wrong.len(), wrong.join("\n"));
    assert!(up.seen().iter().all(|seen| seen.target != "/called"), "a call with a bad pointer was made");
    // What could not be handed out is still there.
    let script = "request_headers: register_shared_queue s:full u; request_headers: dequeue_shared_queue $ b";
    assert!(run(&gw, script)[1].starts_with("dequeue_shared_queue=0 [x]"));
}

/// Where results can be left out by the ABI.
#[test]
fn results_that_nobody_wants_may_have_no_place() {
    let up = Upstream::text("answer");
    let gw = runner(&up);
    assert_eq!(run(&gw, "request_headers: call_foreign_function s:none s: 0 0"), ["call_foreign_function=1"]);
}
