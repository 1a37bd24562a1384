//! Regressions: what an attack on the running server once found.

use std::io::Write;
use std::sync::mpsc;

use crate::support::toml::{open_proxy, route, upstream};
use crate::support::upstream::respond;
use crate::support::{Conn, DEADLINE, Gateway, Upstream, wat};

/// An http-wasm guest that calls `set_method` with this in the request phase.
fn sets_method(method: &str) -> Vec<u8> {
    wat(&format!(
        r#"(module (import "http_handler" "set_method" (func $set (param i32 i32))) (memory (export "memory") 1)
          (data (i32.const 0) "{method}")
          (func (export "handle_request") (result i64)
            (call $set (i32.const 0) (i32.const {})) (i64.const 1))
          (func (export "handle_response") (param i32 i32)))"#,
        method.len()
    ))
}

/// The framing of an answer follows the method that the client sent (RFC 9112 section 6.3); else the next answer on the
/// connection is read as this one's body.
#[test]
fn a_handler_that_changes_the_method_does_not_change_the_framing() {
    let up = Upstream::start(|seen, stream| {
        let body: &[u8] = if seen.method == "HEAD" { b"" } else { b"sixteen bytes ok" };
        if seen.method == "HEAD" {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 16\r\n\r\n").is_ok()
        } else {
            respond(stream, 200, &[], body)
        }
    });
    for (asked, made) in [("GET", "HEAD"), ("POST", "HEAD"), ("GET", "POST"), ("HEAD", "GET")] {
        let lines = "match.path_prefix = \"/\"\ntarget.upstream = \"up\"\nauth = \"none\"\nhandlers = [{ module = \"acme/m\" }]";
        let gw = Gateway::with_modules(
            &upstream("up", up.addr, ""),
            &[("acme/m", "http-wasm", &sets_method(made))],
            &route("all", lines),
        );
        let mut conn = Conn::connect(gw.proxy);
        for turn in 0..3 {
            let length = if asked == "POST" { "Content-Length: 0\r\n" } else { "" };
            conn.send(format!("{asked} /{turn} HTTP/1.1\r\nHost: a\r\n{length}\r\n"));
            let answer = conn.try_read(asked).unwrap_or_else(|e| panic!("{asked} made {made}, answer {turn}: {e}"));
            assert_eq!(answer.status, 200, "{asked} made {made}, answer {turn}");
            let body = if asked == "HEAD" || made == "HEAD" { "" } else { "sixteen bytes ok" };
            assert_eq!(answer.text(), body, "{asked} made {made}, answer {turn}");
        }
        assert_eq!(up.last().method, made);
    }
}

#[test]
fn the_beginning_of_a_slow_answer_is_not_held_back() {
    let (go, wait) = mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let up = Upstream::start(move |_, stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello");
        let _ = wait.lock().expect("one request at a time").recv_timeout(DEADLINE);
        stream.write_all(b"world").is_ok()
    });
    let gw = Gateway::start(&open_proxy(up.addr, ""));
    let mut conn = Conn::connect(gw.proxy);
    conn.send(gw.get("/").bytes());
    assert_eq!(conn.head().expect("the head comes before the body's end").0, 200);
    assert_eq!(conn.take(5).expect("so does what there is of the body"), b"hello");
    go.send(()).expect("the upstream waits");
    assert_eq!(conn.take(5).expect("the rest"), b"world");
}

/// RFC 9110 section 15.2.2: a 101 answers a request for an upgrade.
#[test]
fn an_upgrade_nobody_asked_for_is_refused() {
    let up = Upstream::bytes(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nrawrawraw",
    );
    let gw = Gateway::start(&open_proxy(up.addr, ""));
    gw.get("/").send().problem(502, "upstream-invalid");
    let mut conn = Conn::connect(gw.proxy);
    conn.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n");
    conn.read().problem(502, "upstream-invalid");
}

#[test]
fn guests_do_not_see_a_forged_address() {
    let env = include_str!("../../examples/cgi-env/env.wat");
    let lines = "match.path_prefix = \"/\"\ntarget.handler = { module = \"acme/env\" }\nauth = \"none\"";
    let gw = Gateway::with_modules("", &[("acme/env", "cgi", &wat(env))], &route("all", lines));
    let answer = gw.get("/").header("X-Forwarded-For", "6.6.6.6").header("Forwarded", "for=6.6.6.6").send().expect(200);
    assert!(answer.text().contains("HTTP_X_FORWARDED_FOR=127.0.0.1\n"), "{answer}");
    assert!(!answer.text().contains("6.6.6.6"), "{answer}");
}

#[test]
fn targets_that_the_proxy_library_refuses_get_our_refusal() {
    let up = Upstream::echo();
    let gw = Gateway::start(&open_proxy(up.addr, ""));
    for target in ["/pub\"<>lic", "/a`b|c^", "/?a\\b^\"<>", "HTTP://h:p:q/x"] {
        let mut conn = Conn::connect(gw.proxy);
        let answer = conn.ask(format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n"));
        assert_eq!(answer.header("server"), None, "{target}: {answer}");
        if answer.status != 200 {
            answer.problem(400, "bad-request");
        }
    }
}

#[test]
fn a_key_behind_a_tab_stays_here() {
    let up = Upstream::echo();
    let gw = Gateway::start(&open_proxy(up.addr, ""));
    let key = gw.key();
    gw.get("/").header("Authorization", format!("Bearer\t{key}")).send().expect(200);
    assert!(!up.last().mentions(&key));
}

#[test]
fn more_connection_options_than_can_be_dropped_are_refused() {
    let up = Upstream::echo();
    let gw = Gateway::start(&open_proxy(up.addr, ""));
    let options: Vec<_> = (0..80).map(|n| format!("x-{n}")).collect();
    gw.get("/").header("Connection", options.join(", ")).send().problem(400, "bad-request");
    assert!(up.seen().is_empty());
}
