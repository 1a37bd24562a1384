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

/// The answer's trailers reach the filter and, as it leaves them, the client.
#[test]
fn trailers_of_answers_are_told() {
    let origin = H2Origin::start("body");
    let config = format!(
        "[[server.listeners]]\naddress = \"127.0.0.1:0\"\nh2c = true\n{}",
        upstream("up", origin.addr, "http = \"h2\"")
    );
    let script = "response_trailers: replace_header_map_value 3 s:grpc-status s:5; response_trailers: add_header_map_value 3 s:x-added s:1";
    let modules = [("acme/proxy", "proxy-wasm", &c_guest("proxy")[..])];
    let gw = Gateway::with_modules(&config, &modules, &filter("run", script, ""));
    let response = H2::connect(gw.proxy).get(&format!("http://{}/run", gw.proxy), &[("te", "trailers")]);
    assert_eq!((response.status.as_u16(), &response.body[..]), (200, &b"body"[..]));
    let trailers = response.trailers.expect("they pass");
    assert_eq!((trailers["grpc-status"].as_bytes(), trailers["x-added"].as_bytes()), (&b"5"[..], &b"1"[..]));
}
