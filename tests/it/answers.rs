//! Answers as clients get them: framed by the gateway, the same on both ways to an upstream (its own exchange for
//! requests without a body, Pingora's proxy for those that stream) and over both versions of HTTP.

use std::io::Write;
use std::net::TcpStream;

use crate::support::h2c::H2;
use crate::support::toml::{open_proxy, route};
use crate::support::upstream::respond;
use crate::support::{Conn, Gateway, Upstream, wat};

const H2C: &str = "[[server.listeners]]\naddress = \"127.0.0.1:0\"\nh2c = true\n";

/// What the client gets: status, `Content-Length`, body.
type Got = (u16, Option<&'static str>, &'static str);

const BAD: u16 = 502;

/// What an upstream sends after the request, and what comes of it.
const TABLE: [(&str, Got); 17] = [
    ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", (200, Some("5"), "hello")),
    // RFC 9110 section 8.6: the same length several times is one.
    ("HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\n\r\nhello", (200, Some("5"), "hello")),
    ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello", (200, Some("5"), "hello")),
    ("HTTP/1.1 200 OK\r\nContent-Length: 5, 6\r\n\r\nhello!", (BAD, None, "")),
    ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!", (BAD, None, "")),
    ("HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\nhello", (BAD, None, "")),
    ("HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999999\r\n\r\nhello", (BAD, None, "")),
    // RFC 9112 section 6.3: the coding wins.
    (
        "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        (200, None, "hello"),
    ),
    // RFC 9110 section 8.6: no length in a 204; section 15.3.6: a 205 has none but 0, and no content.
    ("HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n", (204, None, "")),
    ("HTTP/1.1 204 No Content\r\n\r\n", (204, None, "")),
    ("HTTP/1.1 205 Reset Content\r\nContent-Length: 0\r\n\r\n", (205, Some("0"), "")),
    ("HTTP/1.1 205 Reset Content\r\nContent-Length: 5\r\n\r\nhello", (205, Some("0"), "")),
    ("HTTP/1.1 205 Reset Content\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", (205, Some("0"), "")),
    ("HTTP/1.1 205 Reset Content\r\n\r\n", (205, Some("0"), "")),
    // RFC 9110 section 15.4.5: the length of what a GET would have got.
    ("HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", (304, Some("5"), "")),
    ("<a few interim answers>HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", (200, Some("5"), "hello")),
    ("<interim answers without end>", (BAD, None, "")),
];

fn answers(script: &str, stream: &mut TcpStream) {
    // It says that it closes, as it does: no POST is to meet a connection that is about to end.
    let script = &script.replacen("\r\n", "\r\nConnection: close\r\n", 1);
    let hint = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n";
    if let Some(last) = script.strip_prefix("<a few interim answers>") {
        stream.write_all((hint.repeat(8) + last).as_bytes()).ok();
    } else if script.starts_with('<') {
        while stream.write_all(hint.as_bytes()).is_ok() {}
    } else {
        stream.write_all(script.as_bytes()).ok();
    }
}

#[test]
fn an_answers_framing_is_the_same_on_both_ways_and_both_versions() {
    let up = Upstream::start(|seen, stream| {
        let number = seen.target.trim_start_matches('/').parse().unwrap_or(0);
        let (script, _): (&str, Got) = TABLE[number];
        answers(script, stream);
        false
    });
    let gw = Gateway::start(&(H2C.to_owned() + &open_proxy(up.addr, "")));
    for (number, (script, (status, length, body))) in TABLE.into_iter().enumerate() {
        let target = format!("/{number}");
        for way in ["GET", "POST"] {
            let mut conn = Conn::connect(gw.proxy);
            let request = if way == "GET" { gw.get(&target) } else { gw.post(&target, "streams") };
            conn.send(request.bytes());
            let got = loop {
                let got = conn.try_read(way).unwrap_or_else(|e| panic!("{way} {script:?}: {e}"));
                if got.status != 103 {
                    break got;
                }
            };
            let client = H2::connect(gw.proxy);
            let body_sent = (way == "POST").then_some(&b"streams"[..]);
            let h2 = client.send(way, &format!("http://a{target}"), &[], body_sent);
            assert_eq!(h2.status, got.status, "{way} {script:?} over HTTP/2");
            if status == BAD {
                got.problem(502, "upstream-invalid");
                continue;
            }
            assert_eq!(
                (got.status, got.header("content-length"), got.text().as_str()),
                (status, length, body),
                "{way} {script:?}"
            );
            let h2_length = h2.headers.get("content-length").map(|v| v.to_str().expect("digits"));
            assert_eq!((h2_length, &h2.body[..]), (length, body.as_bytes()), "{way} {script:?} over HTTP/2");
            // The next answer on the connection is not read as the rest of this one.
            conn.send("GET /0 HTTP/1.1\r\nHost: a\r\n\r\n");
            let next = conn.try_read("GET").unwrap_or_else(|e| panic!("after {way} {script:?}: {e}"));
            assert_eq!(next.text(), "hello", "after {way} {script:?}");
        }
    }
}

/// RFC 9110 sections 8.6 and 15.2: an interim answer has no framing, and HTTP/1.0 knows none.
#[test]
fn interim_answers_have_no_framing_and_do_not_go_to_http_1_0() {
    let up = Upstream::bytes(
        "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nContent-Length: 7\r\nTransfer-Encoding: chunked\r\n\r\n\
         HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nContent-Length: 7\r\n\r\n\
         HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    );
    let gw = Gateway::start(&open_proxy(up.addr, ""));
    for (way, body) in [("GET", ""), ("POST", "streams")] {
        let request = |version| {
            let length = body.len();
            format!("{way} / HTTP/{version}\r\nHost: a\r\nContent-Length: {length}\r\n\r\n{body}")
        };
        let mut conn = Conn::connect(gw.proxy);
        conn.send(request("1.1"));
        for _ in 0..2 {
            let (status, fields) = conn.head().expect("an interim answer");
            let names: Vec<_> = fields.iter().map(|(name, _)| name.to_lowercase()).collect();
            assert_eq!((status, &names[..]), (103, &["link".to_owned()][..]), "{way}");
        }
        assert_eq!(conn.try_read(way).expect("the answer").text(), "hello", "{way}");
        let mut conn = Conn::connect(gw.proxy);
        conn.send(request("1.0"));
        assert_eq!(conn.head().expect("the answer").0, 200, "{way}");
    }
}

/// The same for answers that no upstream gives.
#[test]
fn fixed_answers_and_modules_frame_what_has_no_content() {
    let answers_205 = r#"(module
        (import "http_handler" "set_status_code" (func $status (param i32)))
        (import "http_handler" "write_body" (func $write (param i32 i32 i32)))
        (memory (export "memory") 1) (data (i32.const 0) "content")
        (func (export "handle_request") (result i64)
            (call $status (i32.const 205)) (call $write (i32.const 1) (i32.const 0) (i32.const 7)) (i64.const 0))
        (func (export "handle_response") (param i32 i32)))"#;
    let fixed = |status: u16| {
        let lines = format!("match.path = \"/{status}\"\nauth = \"none\"\ntarget.respond = {{ status = {status} }}");
        route(&format!("fixed-{status}"), lines)
    };
    let guest = "match.path = \"/guest\"\nauth = \"none\"\ntarget.handler = { module = \"acme/reset\" }";
    let routes = [204, 205, 304].map(fixed).concat() + &route("guest", guest);
    let gw = Gateway::with_modules("", &[("acme/reset", "http-wasm", &wat(answers_205))], &routes);
    let mut conn = Conn::connect(gw.proxy);
    for (target, status, length) in
        [("/204", 204, None), ("/205", 205, Some("0")), ("/304", 304, None), ("/guest", 205, Some("0"))]
    {
        for method in ["GET", "HEAD"] {
            conn.send(gw.request(method, target).bytes());
            let got = conn.try_read(method).unwrap_or_else(|e| panic!("{method} {target}: {e}"));
            assert_eq!(
                (got.status, got.header("content-length"), got.text().as_str()),
                (status, length, ""),
                "{method} {target}"
            );
        }
    }
}

#[test]
fn kept_connections_survive_answers_without_a_body() {
    let up = Upstream::start(|seen, stream| match seen.method.as_str() {
        "HEAD" => stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n").is_ok(),
        "DELETE" => stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").is_ok(),
        _ => respond(stream, 200, &[], b"hello"),
    });
    let gw = Gateway::start(&("[server]\nthreads = 1\n".to_owned() + &open_proxy(up.addr, "")));
    let mut conn = Conn::connect(gw.proxy);
    for method in ["HEAD", "DELETE", "GET", "HEAD", "DELETE", "GET"] {
        conn.send(gw.request(method, "/").bytes());
        let got = conn.try_read(method).unwrap_or_else(|e| panic!("{method}: {e}"));
        assert!(got.status < 300, "{method}: {got}");
    }
    assert_eq!(up.connections(), 1, "the upstream's connection is kept as well");
}
