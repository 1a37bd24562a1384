//! gRPC calls of filters, unary and as streams, to upstreams that speak HTTP/2; and trailers of answers from there.

use super::*;
use crate::support::h2c::{H2, H2Origin};

fn calling(up: &Upstream, origin: &H2Origin, keys: &str) -> Gateway {
    let server = format!("{ONE_VM}{}", upstream("grpc", origin.addr, "http = \"h2\""));
    gateway(up, &server, &filter("run", "", &format!("upstreams = [\"grpc\"], pause = \"20s\"{keys}")))
}

fn unary(method: &str, timeout: u32) -> String {
    format!(
        "request_headers: grpc_call s:grpc s:test.Echo s:{method} m:x-meta=1 s:hello {timeout} u; request_headers: pause; "
    )
}

#[test]
fn a_unary_call_gives_its_message() {
    let (up, origin) = (Upstream::text("answer"), H2Origin::grpc());
    let gw = calling(&up, &origin, "");
    let script = unary("Say", 10_000)
        + "grpc_message: get_buffer_bytes 5 0 -1 b; grpc_message: args; grpc_message: continue_stream 0";
    let results = run(&gw, script);
    let id = results[0].strip_prefix("grpc_call=0 ").unwrap_or_else(|| panic!("{results:?}"));
    assert_ne!(id, "0");
    assert_eq!(results[1..3], ["get_buffer_bytes=0 [echo%20hello]".to_owned(), format!("args={id},10,0,0")]);
}

#[test]
fn a_unary_call_that_fails_gives_its_status() {
    let (up, origin) = (Upstream::text("answer"), H2Origin::grpc());
    let gw = calling(&up, &origin, "");
    let closes =
        "grpc_close: args; grpc_close: get_status u b; grpc_close: send_local_response 403 0 0 s:closed 0 0 -1";
    let response = scripted(&gw, unary("Deny", 10_000) + closes).send().expect(403);
    let results = told(&response);
    assert!(results[1].ends_with(",7,0,0"), "{results:?}");
    assert_eq!(results[2], "get_status=0 7 [denied]");
    // DEADLINE_EXCEEDED.
    let response = scripted(&gw, unary("Hang", 100) + closes).send().expect(403);
    assert!(told(&response)[1].ends_with(",4,0,0"), "{response}");
}

#[test]
fn a_stream_has_metadata_messages_and_an_end() {
    let (up, origin) = (Upstream::text("answer"), H2Origin::grpc());
    let gw = calling(&up, &origin, "");
    let script = "request_headers: grpc_stream s:grpc s:test.Echo s:Talk m:x-meta=1 u; request_headers: grpc_send $ s:one 0; request_headers: grpc_send $ s:two 1; \
                  request_headers: grpc_send $ s:late 1; request_headers: pause; grpc_initial: get_header_map_value 4 s:x-initial b; \
                  grpc_initial: get_header_map_value 4 s:x-path b; grpc_message: get_buffer_bytes 5 0 -1 b; \
                  grpc_trailing: get_header_map_value 5 s:grpc-status b; grpc_close: args; grpc_close: continue_stream 0";
    let results = run(&gw, script);
    let id = results[0].strip_prefix("grpc_stream=0 ").unwrap_or_else(|| panic!("{results:?}")).to_owned();
    assert_eq!(results[1..3], ["grpc_send=0", "grpc_send=0"]);
    assert_ne!(results[3], "grpc_send=0", "it has ended from here");
    let rest: Vec<_> = results[4..].iter().filter(|r| !r.starts_with("get_header_map_value=1")).cloned().collect();
    assert_eq!(rest[..2], ["get_header_map_value=0 [1]", "get_header_map_value=0 [/test.Echo/Talk]"]);
    assert_eq!(rest[2..4], ["get_buffer_bytes=0 [echo%20one]", "get_buffer_bytes=0 [echo%20two]"]);
    assert_eq!(rest[rest.len() - 2..], [format!("args={id},0,0,0"), "continue_stream=0".to_owned()], "{results:?}");
}

#[test]
fn calls_can_be_given_up() {
    let (up, origin) = (Upstream::text("answer"), H2Origin::grpc());
    let gw = calling(&up, &origin, "");
    for end in ["grpc_cancel", "grpc_close"] {
        let script = format!(
            "request_headers: grpc_call s:grpc s:test.Echo s:Hang 0 0 s:x 10000 u; request_headers: {end} $; request_headers: {end} $; \
             request_headers: grpc_stream s:grpc s:test.Echo s:Hang 0 0 u; request_headers: {end} $; request_headers: grpc_send $ s:x 0"
        );
        let results = run(&gw, script);
        assert_eq!(results[1..3], [format!("{end}=0"), format!("{end}=1")], "{results:?}");
        assert_eq!(results[4], format!("{end}=0"), "{results:?}");
        assert!(end == "grpc_close" || results[5] == "grpc_send=1", "{results:?}");
    }
}

/// An answer of more than one window of HTTP/2, and one that is over the filter's bound.
#[test]
fn messages_have_a_bound() {
    let (up, origin) = (Upstream::text("answer"), H2Origin::grpc());
    let script = unary("Large", 20_000)
        + "grpc_message: args; grpc_message: continue_stream 0; grpc_close: args; grpc_close: continue_stream 0";
    let results = run(&calling(&up, &origin, ""), &script);
    assert!(results[1].ends_with(",100000,0,0"), "{results:?}");
    let small = calling(&up, &origin, ", max_buffer = \"64KiB\"");
    let results = run(&small, &script);
    // RESOURCE_EXHAUSTED.
    assert!(results[1].ends_with(",8,0,0"), "{results:?}");
    let tiny = calling(&up, &origin, ", max_buffer = \"1KiB\"");
    let message = "x".repeat(2000);
    let script = format!(
        "request_headers: grpc_call s:grpc s:a s:b 0 0 s:{message} 1000 u; request_headers: grpc_stream s:grpc s:a s:Hang 0 0 u; \
         request_headers: grpc_send $ s:{message} 0; request_headers: grpc_send $ s:x 0"
    );
    let results = run(&tiny, script);
    assert_eq!(results[0], "grpc_call=10 -");
    assert_eq!(results[2..], ["grpc_send=2", "grpc_send=0"], "one that fits goes");
}

#[test]
fn an_answer_may_end_with_its_head() {
    let (up, origin) = (Upstream::text("answer"), H2Origin::grpc());
    let gw = calling(&up, &origin, "");
    let script = "request_headers: grpc_stream s:grpc s:a s:Early 0 0 u; request_headers: pause; grpc_initial: args; \
                  grpc_trailing: get_header_map_value 5 s:grpc-status b; grpc_close: args; grpc_close: get_status u b; grpc_close: continue_stream 0";
    let results = run(&gw, script);
    assert_eq!(results[1], "get_header_map_value=0 [5]", "{results:?}");
    assert!(results[2].ends_with(",5,0,0"), "{results:?}");
    assert_eq!(results[3], "get_status=0 5 [not%20here]");
}

/// UNAVAILABLE where the upstream speaks HTTP/1, or nobody listens.
#[test]
fn calls_that_nobody_answers_are_unavailable() {
    let up = Upstream::text("answer");
    let server = upstream("nobody", Upstream::nobody(), "http = \"h2\"");
    let gw = gateway(&up, &server, &filter("run", "", "upstreams = [\"up\", \"nobody\"]"));
    for name in ["up", "nobody"] {
        for begin in ["grpc_call s:N s:a s:b 0 0 s:x 20000 u", "grpc_stream s:N s:a s:b 0 0 u"] {
            let begin = begin.replace("s:N", &format!("s:{name}"));
            let results = run(
                &gw,
                format!(
                    "request_headers: {begin}; request_headers: pause; grpc_close: args; grpc_close: continue_stream 0"
                ),
            );
            assert!(results[1].ends_with(",14,0,0"), "{name}: {results:?}");
        }
    }
    assert!(up.seen().iter().all(|seen| seen.method != "POST"), "{:?}", up.seen());
}

/// A name or a field that could not stand on the wire is a status that SDKs survive.
#[test]
fn calls_cannot_smuggle() {
    let (up, origin) = (Upstream::text("answer"), H2Origin::grpc());
    let gw = calling(&up, &origin, "");
    for said in [
        "s:a/b s:m 0 0",
        "s:a s:m%3fx 0 0",
        "s:a s:m%0d%0a 0 0",
        "s:%20 s:m 0 0",
        "s: s:m 0 0",
        "s:a s: 0 0",
        "s:a s:m m:x%0a=1",
        "s:a s:m s:x",
    ] {
        let script = format!(
            "request_headers: grpc_call s:grpc {said} s:x 1000 u; request_headers: grpc_stream s:grpc {said} u"
        );
        assert_eq!(run(&gw, script), ["grpc_call=4 -", "grpc_stream=4 -"], "{said}");
    }
    assert_eq!(origin.calls_seen(), 0);
}

#[test]
fn calls_under_way_are_bounded() {
    let (up, origin) = (Upstream::text("answer"), H2Origin::grpc());
    let server = format!("{ONE_VM}{}", upstream("grpc", origin.addr, "http = \"h2\""));
    let opens = "tick: grpc_stream s:grpc s:a s:Hang 0 0 u; ".repeat(40);
    let config = format!("configure: set_tick_period_milliseconds 10; {opens}");
    let gw = gateway(&up, &server, &filter("run", &config, "upstreams = [\"grpc\"]"));
    eventually("a further one is refused", || {
        kept(&gw, "/run", "tick").last().is_some_and(|result| result == "grpc_stream=10 -")
    });
    gw.get("/run").send().expect(200);
}

/// What a VM has begun ends with it, and what a filter gives up ends at once.
#[test]
fn calls_end_with_their_vm() {
    let (up, origin) = (Upstream::text("answer"), H2Origin::grpc());
    let gw = calling(&up, &origin, "");
    let begin = "request_headers: grpc_stream s:grpc s:a s:Hang 0 0 u; request_headers: grpc_send $ s:x 1; \
                 request_headers: grpc_call s:grpc s:a s:Hang 0 0 s:x 60000 u";
    run(&gw, begin);
    eventually("both are there", || origin.calls_seen() == 2);
    scripted(&gw, "request_headers: trap").send().problem(502, "handler-trap");
    eventually("they are reset", || origin.calls_open() == 0);
    let giving_up = "request_headers: grpc_stream s:grpc s:a s:Hang 0 0 u; request_headers: pause; grpc_initial: grpc_cancel $1; \
                     grpc_initial: continue_stream 0; grpc_close: trap";
    assert_eq!(run(&gw, giving_up)[1..], ["grpc_cancel=0", "continue_stream=0"]);
    eventually("it is reset", || origin.calls_seen() == 3 && origin.calls_open() == 0);
}

/// Unknown, not granted, or one that speaks HTTP/1: a status that SDKs survive, never UNIMPLEMENTED (12).
#[test]
fn upstreams_that_cannot_be_called_are_statuses() {
    let (up, origin) = (Upstream::text("answer"), H2Origin::grpc());
    let gw = gateway(&up, &upstream("grpc", origin.addr, "http = \"h2\""), &filter("run", "", "upstreams = [\"up\"]"));
    for name in ["nowhere", "grpc", "up", ""] {
        let script = format!(
            "request_headers: grpc_call s:{name} s:s s:m 0 0 s:x 200 u; request_headers: grpc_stream s:{name} s:s s:m 0 0 u"
        );
        for result in run(&gw, script) {
            let status = result.split_once('=').and_then(|(_, rest)| rest.split(' ').next()).unwrap_or_default();
            assert!(["4", "10"].contains(&status) || name == "up" && status == "0", "{name}: {result}");
        }
    }
    gw.get("/run").send().expect(200);
}

/// A gateway for HTTP/2 clients before an HTTP/2 upstream whose answers end with trailers.
fn trailing(origin: &H2Origin, route: &str) -> Gateway {
    let config = format!(
        "[[server.listeners]]\naddress = \"127.0.0.1:0\"\nh2c = true\n{}",
        upstream("up", origin.addr, "http = \"h2\"")
    );
    Gateway::with_modules(&config, &[("acme/proxy", "proxy-wasm", &c_guest("proxy")[..])], route)
}

fn get(gw: &Gateway) -> crate::support::h2c::H2Response {
    H2::connect(gw.proxy).get(&format!("http://{}/run", gw.proxy), &[("te", "trailers")])
}

/// The answer's trailers reach the filter and, as it leaves them, the client.
#[test]
fn trailers_of_answers_are_told() {
    let origin = H2Origin::start("body");
    let script = "response_trailers: replace_header_map_value 3 s:grpc-status s:5; response_trailers: add_header_map_value 3 s:x-added s:1";
    let gw = trailing(&origin, &filter("run", script, ""));
    let response = get(&gw);
    assert_eq!((response.status.as_u16(), &response.body[..]), (200, &b"body"[..]));
    let trailers = response.trailers.expect("they pass");
    assert_eq!((trailers["grpc-status"].as_bytes(), trailers["x-added"].as_bytes()), (&b"5"[..], &b"1"[..]));
    // They can't be written to an HTTP/1 client.
    assert_eq!(gw.get("/run").send().expect(200).text(), "body");
}

/// Trailers are the end of an answer: what filters hold of its body is still theirs, in the reverse order of the route.
#[test]
fn trailers_end_a_body_that_filters_hold() {
    let origin = H2Origin::start("body");
    let holds = |letter: &str| {
        let script = format!(
            "response_body: pause; response_body: end? trap; response_trailers: set_buffer_bytes 1 -1 0 s:-{letter}; \
             response_trailers: add_header_map_value 3 s:x-order s:{letter}"
        );
        entry(&script, "")
    };
    let gw = trailing(&origin, &chain("run", &[holds("a"), entry("response_body: end? trap", ""), holds("b")]));
    let response = get(&gw);
    assert_eq!(&response.body[..], b"body-b-a");
    let trailers = response.trailers.expect("they pass");
    let order: Vec<_> = trailers.get_all("x-order").iter().collect();
    assert_eq!(order, ["b", "a"]);
}

/// A filter can hold the trailers, and what it resumes goes on; or answer in the upstream's place.
#[test]
fn filters_pause_with_trailers() {
    let origin = H2Origin::start("body");
    let script = "configure: set_tick_period_milliseconds 10; tick: each add_header_map_value 3 s:x-late s:1; tick: each continue_stream 1; \
                  response_trailers: pause";
    let response = get(&trailing(&origin, &filter("run", script, "")));
    assert_eq!(
        (&response.body[..], response.trailers.expect("they pass")["x-late"].as_bytes()),
        (&b"body"[..], &b"1"[..])
    );
    let script = "response_body: pause; response_trailers: send_local_response 451 0 0 s:instead 0 0 -1";
    let response = get(&trailing(&origin, &filter("run", script, "")));
    assert_eq!((response.status.as_u16(), &response.body[..]), (451, &b"instead"[..]));
}
