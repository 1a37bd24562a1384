//! What an operator reads in the log when a filter does not do what it should.

use super::*;
use crate::support::upstream::hang;

/// The lines of the log that have this text.
fn lines(gw: &Gateway, text: &str) -> Vec<serde_json::Value> {
    let log = gw.log();
    log.lines().filter(|line| line.contains(text)).filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// The only line with this text, once it is there.
#[track_caller]
fn line(gw: &Gateway, text: &str) -> serde_json::Value {
    eventually(&format!("`{text}` is logged"), || !lines(gw, text).is_empty());
    let mut lines = lines(gw, text);
    assert_eq!(lines.len(), 1, "{lines:?}");
    lines.remove(0)
}

#[test]
fn lines_name_the_request_in_every_callback() {
    let up = Upstream::text("answer");
    let config = format!("{ONE_VM}{}", upstream("auth", up.addr, ""));
    let script = "request_headers: log 2 s:in-the-head; \
                  request_headers: http_call s:auth m::method=GET,:path=/,:authority=auth s: m: 20000 u; request_headers: pause; \
                  call: log 2 s:in-the-call; call: continue_stream 0; response_body: log 2 s:in-the-body; log: log 2 s:in-the-end";
    let gw = gateway(&up, &config, &filter("run", "", "upstreams = [\"auth\"]"));
    let response = scripted(&gw, script).send().expect(200);
    let id = response.header("x-request-id").expect("an id");
    for text in ["in-the-head", "in-the-call", "in-the-body", "in-the-end"] {
        assert_eq!(line(&gw, text)["request_id"], id, "{text}");
    }
}

#[test]
fn a_call_of_an_upstream_that_is_not_granted_is_told_once() {
    let up = Upstream::text("answer");
    let gw = runner(&up);
    let script = "request_headers: http_call s:nob%0ady m::method=GET,:path=/,:authority=x s: m: 1000 u";
    for _ in 0..2 {
        assert_eq!(run(&gw, script), ["http_call=2 -"]);
    }
    let line = line(&gw, "are refused");
    let message = line["message"].as_str().expect("text");
    assert!(message.contains(r"`nob\ndy`") && message.contains("`upstreams`"), "{line}");
    assert_eq!(line["handler"], "acme/proxy@1");
}

#[test]
fn a_failure_names_its_request() {
    let up = Upstream::text("answer");
    let gw = runner(&up);
    let response = scripted(&gw, "request_headers: trap").send();
    response.problem(502, "handler-trap");
    let line = line(&gw, "handler failed");
    assert_eq!(line["request_id"], response.header("x-request-id").expect("an id"), "{line}");
    assert_eq!((&line["handler"], &line["code"]), (&"acme/proxy@1".into(), &"handler-trap".into()));
}

#[test]
fn a_pause_that_lasts_too_long_is_called_one() {
    let (up, silent) = (Upstream::text("answer"), Upstream::start(|_, stream| hang(stream)));
    let gw = gateway(
        &up,
        &upstream("auth", silent.addr, ""),
        &filter("run", "", "upstreams = [\"auth\"], pause = \"200ms\""),
    );
    let script =
        "request_headers: http_call s:auth m::method=GET,:path=/,:authority=auth s: m: 20000 u; request_headers: pause";
    let response = scripted(&gw, script).send();
    response.problem(504, "handler-timeout");
    assert!(response.text().contains("paused for more than 200 ms"), "{response}");
}
