//! Proxying: what goes in comes out, on HTTP/1.1, HTTP/2 and WebSocket, with the route's edits and nothing else.

use std::io::{Read, Write};

use crate::support::h2c::{H2, H2Origin};
use crate::support::toml::{open_proxy, route, upstream};
use crate::support::{Conn, Gateway, Upstream, upstream as origin, wat};

#[test]
fn forwards_method_target_headers_and_body_as_they_came() {
    let up = Upstream::echo();
    let gw = Gateway::start(&open_proxy(up.addr, ""));
    let target = "/a/b%20c;v=1?x=1&y=%2F%26&x=2";
    let request = gw.post(target, "a body \0 with anything").header("X-Two", "first").header("X-Two", "second");
    let response = request.header("X-Empty", "").send().expect(200);
    let seen = up.only();
    assert_eq!((seen.method.as_str(), seen.target.as_str(), seen.version.as_str()), ("POST", target, "HTTP/1.1"));
    assert_eq!(seen.all("x-two"), ["first", "second"]);
    assert_eq!(seen.all("x-empty"), [""]);
    assert_eq!(seen.body, b"a body \0 with anything");
    assert_eq!(response.header("content-type"), Some("application/json"));
    assert_eq!(response.header("server"), None, "the gateway does not say what it is");
}

#[test]
fn bodiless_answers_keep_the_connection_in_step() {
    let up = Upstream::start(|seen, stream| {
        let answer = match seen.target.as_str() {
            "/204" => "HTTP/1.1 204 No Content\r\n\r\n",
            "/304" => "HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\nContent-Length: 5\r\n\r\n",
            _ if seen.method == "HEAD" => "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
            _ => "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        };
        stream.write_all(answer.as_bytes()).is_ok()
    });
    let gw = Gateway::start(&open_proxy(up.addr, ""));
    let mut conn = Conn::connect(gw.proxy);
    for (method, target, status) in
        [("GET", "/204", 204), ("GET", "/304", 304), ("HEAD", "/x", 200), ("GET", "/x", 200)]
    {
        conn.send(gw.request(method, target).bytes());
        let response = conn.try_read(method).unwrap_or_else(|e| panic!("{method} {target}: {e}"));
        assert_eq!(response.status, status, "{method} {target}");
    }
}

#[test]
fn pipelined_requests_are_answered_in_order_as_far_as_they_are() {
    let up = Upstream::echo();
    let gw = Gateway::start(&open_proxy(up.addr, ""));
    let mut conn = Conn::connect(gw.proxy);
    conn.send([gw.get("/one").bytes(), gw.post("/two", "2").bytes(), gw.get("/three").bytes()].concat());
    assert_eq!(conn.read().expect(200).json()["uri"], "/one");
    // RFC 9112 section 9.3.2: a client sends again what a closed connection left unanswered.
    for target in ["/two", "/three"] {
        match conn.try_read("GET") {
            Ok(response) => assert_eq!(response.expect(200).json()["uri"], target),
            Err(e) => return assert_eq!(e.to_string(), "closed after \"\""),
        }
    }
}

#[test]
fn large_bodies_stream_both_ways() {
    let up = Upstream::start(|seen, stream| {
        let head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        let mut ok = stream.write_all(head).is_ok();
        for piece in seen.body.chunks(100_000) {
            let frame = [format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat();
            ok &= stream.write_all(&frame).is_ok();
        }
        ok && stream.write_all(b"0\r\n\r\n").is_ok()
    });
    let gw = Gateway::start(&open_proxy(up.addr, "max_body = \"16MiB\""));
    let body: Vec<u8> = (0..5_000_000u32).map(|i| (i * 7) as u8).collect();
    let response = gw.post("/", body.clone()).send().expect(200);
    assert!(response.body == body, "{} bytes came back", response.body.len());
}

#[test]
fn http_1_0_clients_get_an_answer_they_can_read() {
    let up = Upstream::bytes("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n");
    let gw = Gateway::start(&open_proxy(up.addr, ""));
    let mut conn = Conn::connect(gw.proxy);
    let response = conn.ask("GET / HTTP/1.0\r\nHost: a\r\n\r\n").expect(200);
    assert_eq!(response.header("transfer-encoding"), None, "HTTP/1.0 has no chunks: {response}");
    assert_eq!(response.text(), "hello");
    assert!(conn.closes());
}

#[test]
fn expect_100_continue_is_answered_before_the_body() {
    let up = Upstream::echo();
    let gw = Gateway::start(&open_proxy(up.addr, ""));
    let mut conn = Conn::connect(gw.proxy);
    conn.send("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n");
    assert_eq!(conn.head().expect("an interim answer").0, 100);
    conn.send("hello");
    assert_eq!(conn.read().expect(200).json()["body"], "hello");
}

#[test]
fn header_edits_apply_as_remove_set_add() {
    let up = Upstream::start(|_, stream| {
        origin::respond(stream, 200, &[("X-Up", "1"), ("X-Secret", "s"), ("X-Many", "up")], b"ok")
    });
    let edits = r#"
        request_headers.remove = ["x-drop"]
        request_headers.set = { "x-set" = "gateway" }
        request_headers.add = { "x-many" = "gateway" }
        response_headers.remove = ["x-secret"]
        response_headers.set = { "x-up" = "2" }
        response_headers.add = { "x-many" = "gateway" }
    "#;
    let gw = Gateway::start(&open_proxy(up.addr, edits));
    let request = gw.get("/").header("X-Drop", "1").header("X-Set", "client").header("X-Many", "client");
    let response = request.send().expect(200);
    let seen = up.only();
    assert_eq!(seen.header("x-drop"), None);
    assert_eq!(seen.all("x-set"), ["gateway"]);
    assert_eq!(seen.all("x-many"), ["client", "gateway"]);
    assert_eq!(response.header("x-secret"), None);
    assert_eq!(response.header("x-up"), Some("2"));
    assert_eq!(response.all("x-many"), ["up", "gateway"]);
}

#[test]
fn paths_are_rewritten_and_queries_kept() {
    let up = Upstream::echo();
    let to_up = "target.upstream = \"up\"\nauth = \"none\"";
    let config = upstream("up", up.addr, "")
        + &route("strip", format!("match.path_prefix = \"/strip\"\nrewrite.strip_prefix = \"/strip\"\n{to_up}"))
        + &route(
            "replace",
            format!(
                "match.path_prefix = \"/old/\"\nrewrite.replace_prefix = {{ from = \"/old/\", to = \"/new/\" }}\n{to_up}"
            ),
        )
        + &route(
            "params",
            format!("match.path = \"/users/{{id}}/files/{{*rest}}\"\nrewrite.path = \"/of/{{id}}/{{rest}}\"\n{to_up}"),
        );
    let gw = Gateway::start(&config);
    for (asked, reached) in [
        ("/strip/a/b?q=1", "/a/b?q=1"),
        ("/strip", "/"),
        ("/strip?q", "/?q"),
        ("/old/a%2Fb?q=1", "/new/a%2Fb?q=1"),
        ("/users/7/files/x/y?z=1", "/of/7/x/y?z=1"),
    ] {
        let got = gw.get(asked).send().expect(200).json();
        assert_eq!(got["uri"], reached, "{asked}");
    }
}

#[test]
fn request_id_and_trace_context_reach_client_and_upstream() {
    let up = Upstream::echo();
    let gw = Gateway::start(&open_proxy(up.addr, ""));
    let response = gw.get("/").send().expect(200);
    let made = response.header("x-request-id").expect("the gateway sets a request id").to_owned();
    assert_eq!(up.last().header("x-request-id"), Some(made.as_str()));

    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let response = gw.get("/").header("X-Request-Id", "client-chose-this").header("traceparent", trace).send();
    assert_eq!(response.header("x-request-id"), Some("client-chose-this"));
    let seen = up.last();
    assert_eq!(seen.header("x-request-id"), Some("client-chose-this"));
    let passed = seen.header("traceparent").expect("trace context goes on");
    assert!(passed.starts_with("00-0af7651916cd43dd8448eb211c80319c-"), "the trace id is kept: {passed}");

    gw.get("/").header("X-Request-Id", "x".repeat(500)).header("traceparent", "00-junk").send().expect(200);
    let seen = up.last();
    assert!(seen.header("x-request-id").is_some_and(|id| id.len() <= 128), "an oversized id is replaced: {seen:?}");
    assert!(seen.header("traceparent") != Some("00-junk"), "a malformed one is not passed on");
}

#[test]
fn fixed_answers_redirects_and_health_need_no_upstream() {
    let config = route(
        "moved",
        "match.path = \"/old\"\ntarget.redirect = { location = \"https://example.com/new\", status = 308 }\nauth = \"none\"",
    ) + &route(
        "hello",
        "match.path = \"/hello\"\ntarget.respond = { status = 418, headers = { \"x-kind\" = \"stout\" }, body = \"short\" }\nauth = \"none\"",
    ) + &route("health", "match.path_prefix = \"/health\"\ntarget.health = true\nauth = \"none\"");
    let gw = Gateway::start(&config);
    let moved = gw.get("/old").send().expect(308);
    assert_eq!(moved.header("location"), Some("https://example.com/new"));
    let hello = gw.get("/hello").send().expect(418);
    assert_eq!((hello.header("x-kind"), hello.text().as_str()), (Some("stout"), "short"));
    gw.get("/health/live").send().expect(200);
    gw.get("/health/ready").send().expect(200);
    gw.get("/elsewhere").send().problem(404, "not-found");
}

#[test]
fn websocket_passes_through() {
    let up = Upstream::start(|seen, stream| {
        assert_eq!(seen.header("upgrade"), Some("websocket"));
        let head = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
        stream.write_all(head.as_bytes()).ok();
        let mut frame = [0; 64];
        while let Ok(n @ 1..) = stream.read(&mut frame) {
            if stream.write_all(&frame[..n]).is_err() {
                break;
            }
        }
        false
    });
    let gw = Gateway::start(&open_proxy(up.addr, ""));
    let mut conn = Conn::connect(gw.proxy);
    let upgrade = gw.get("/chat").header("Connection", "Upgrade").header("Upgrade", "websocket");
    let upgrade = upgrade.header("Sec-WebSocket-Version", "13").header("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==");
    let response = conn.ask(upgrade.bytes()).expect(101);
    assert_eq!(response.header("sec-websocket-accept"), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
    for message in ["\u{1}ping", "\u{2}a second, longer message"] {
        conn.send(message);
        assert_eq!(conn.take(message.len()).expect("the echo"), message.as_bytes());
    }
}

/// RFC 6455 section 4.1: a handshake has none; what follows one would be no body that a limit is kept for.
#[test]
fn a_websocket_handshake_with_a_body_is_refused() {
    let up = Upstream::echo();
    let gw = Gateway::start(&open_proxy(up.addr, "max_body = \"1KiB\""));
    let upgrade = "GET /chat HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n";
    for body in ["Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", "Content-Length: 5\r\n\r\nhello"] {
        let mut conn = Conn::connect(gw.proxy);
        conn.ask(format!("{upgrade}{body}")).problem(400, "bad-request");
        assert!(conn.closes());
    }
    assert!(up.seen().is_empty());
    // Who asks for nothing that is granted has a body like any other.
    let other = "POST / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: h2c\r\nContent-Length: 5\r\n\r\nhello";
    assert_eq!(Conn::connect(gw.proxy).ask(other).expect(200).json()["body"], "hello");
}

/// What the answer to an upgrade that does not come about says of the connection is true.
#[test]
fn a_declined_upgrade_leaves_the_connection_as_it_says() {
    let up = Upstream::echo();
    let fixed = "match.path = \"/fixed\"\nauth = \"none\"\ntarget.respond = { status = 200, body = \"no\" }";
    let gw = Gateway::start(&(open_proxy(up.addr, "") + &route("fixed", fixed)));
    let next = "GET /next HTTP/1.1\r\nHost: a\r\n\r\n";
    for (target, protocol, says) in [
        ("/", "websocket", "close"),
        ("/fixed", "websocket", "close"),
        ("/", "h2c", "keep-alive"),
        ("/fixed", "h2c", "keep-alive"),
    ] {
        let mut conn = Conn::connect(gw.proxy);
        let upgrade = format!("GET {target} HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: {protocol}\r\n\r\n");
        let got = conn.ask(upgrade + next).expect(200);
        assert_eq!(got.header("connection"), Some(says), "{target} {protocol}");
        match says {
            "close" => assert!(conn.closes(), "{target} {protocol}"),
            _ => assert_eq!(conn.read().expect(200).json()["uri"], "/next", "{target} {protocol}"),
        }
    }
}

#[test]
fn http2_with_prior_knowledge_reaches_an_http1_upstream() {
    let up = Upstream::echo();
    let config = format!("[[server.listeners]]\naddress = \"127.0.0.1:0\"\nh2c = true\n{}", open_proxy(up.addr, ""));
    let gw = Gateway::start(&config);
    let client = H2::connect(gw.proxy);
    let response = client.send("POST", "http://h2.example/a?b=1", &[("x-a", "1")], Some(b"over h2"));
    assert_eq!(response.status, 200);
    let seen = up.only();
    assert_eq!((seen.method.as_str(), seen.target.as_str()), ("POST", "/a?b=1"));
    assert_eq!(seen.all("host"), ["h2.example"]);
    assert_eq!(seen.body, b"over h2");
    // The same listener still speaks HTTP/1.1.
    gw.get("/").send().expect(200);
}

/// RFC 9113 section 8.2.3: what a client may split is joined before HTTP/1 or a guest sees it.
#[test]
fn split_cookies_are_joined_on_both_ways() {
    let up = Upstream::echo();
    let env = include_str!("../../examples/cgi-env/env.wat");
    let guest = "match.path = \"/env\"\nauth = \"none\"\ntarget.handler = { module = \"acme/env\" }";
    let config = format!("[[server.listeners]]\naddress = \"127.0.0.1:0\"\nh2c = true\n{}", open_proxy(up.addr, ""));
    let gw = Gateway::with_modules(&config, &[("acme/env", "cgi", &wat(env))], &route("env", guest));
    let client = H2::connect(gw.proxy);
    let cookies = [("cookie", "a=1"), ("cookie", "b=2; c=3"), ("cookie", "d=4")];
    for body in [None, Some(&b"streams"[..])] {
        assert_eq!(client.send("POST", "http://a/", &cookies, body).status, 200);
        assert_eq!(up.last().all("cookie"), ["a=1; b=2; c=3; d=4"], "{body:?}");
    }
    let seen = client.get("http://a/env", &cookies);
    let text = String::from_utf8_lossy(&seen.body).into_owned();
    assert!(text.contains("HTTP_COOKIE=a=1; b=2; c=3; d=4\n"), "{text}");
}

/// RFC 9112 section 3.2: an HTTP/1.1 request has a `Host`, also the one that the gateway sends for an HTTP/1.0 client
/// (a health checker) that named none.
#[test]
fn a_client_without_a_host_goes_to_the_upstreams_own() {
    let up = Upstream::echo();
    let port = up.addr.port();
    let config = format!("[[upstreams]]\nname = \"up\"\nendpoints = [\"localhost:{port}\"]\n")
        + &route("all", "match.path_prefix = \"/\"\ntarget.upstream = \"up\"\nauth = \"none\"");
    let gw = Gateway::start(&config);
    for request in ["GET / HTTP/1.0\r\n\r\n", "POST / HTTP/1.0\r\nContent-Length: 7\r\n\r\nstreams"] {
        Conn::connect(gw.proxy).ask(request).expect(200);
        let seen = up.last();
        assert_eq!((seen.version.as_str(), seen.all("host")), ("HTTP/1.1", vec![format!("localhost:{port}").as_str()]));
        assert_eq!(seen.header("x-forwarded-host"), None, "the client said nothing");
    }
    Conn::connect(gw.proxy).ask("GET / HTTP/1.0\r\nHost: named\r\n\r\n").expect(200);
    assert_eq!(up.last().all("host"), ["named"]);
}

/// RFC 9113 section 8.3.1: an HTTP/2 upstream is told of the host once, as `:authority`; some refuse it twice.
#[test]
fn an_http2_upstream_has_the_host_as_authority_alone() {
    let up = H2Origin::start("answer");
    let config = upstream("up", up.addr, "http = \"h2\"")
        + &route("all", "match.path_prefix = \"/\"\ntarget.upstream = \"up\"\nauth = \"none\"");
    let gw = Gateway::start(&config);
    for body in ["", "Content-Length: 4\r\n\r\nbody", "Transfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n"] {
        let (method, body) = if body.is_empty() { ("GET", "\r\n") } else { ("POST", body) };
        let response =
            Conn::connect(gw.proxy).ask(format!("{method} /a?b HTTP/1.1\r\nHost: shop.test\r\n{body}")).expect(200);
        assert_eq!(response.header("x-uri"), Some("http://shop.test/a?b"), "{body:?}");
        assert_eq!(response.header("x-host"), None, "{body:?}");
    }
}

#[test]
fn grpc_trailers_pass_and_refusals_are_grpc_statuses() {
    let up = H2Origin::start("message");
    let lines = "match.path_prefix = \"/open/\"\ntarget.upstream = \"up\"\nauth = \"none\"";
    let keyed = "match.path_prefix = \"/keyed/\"\ntarget.upstream = \"up\"\nauth = \"key\"";
    let config = "[[server.listeners]]\naddress = \"127.0.0.1:0\"\nh2c = true\n".to_owned()
        + &upstream("up", up.addr, "http = \"h2\"")
        + &route("open", lines)
        + &route("keyed", keyed);
    let gw = Gateway::start(&config);
    let client = H2::connect(gw.proxy);
    let headers = [("content-type", "application/grpc"), ("te", "trailers")];
    let response = client.send("POST", "http://g/open/svc/Call", &headers, Some(b"\0\0\0\0\0"));
    assert_eq!((response.status.as_u16(), &response.body[..]), (200, &b"message"[..]));
    let trailers = response.trailers.expect("trailers pass");
    assert_eq!(trailers.get("grpc-status").map(|v| v.as_bytes()), Some(&b"0"[..]));

    let refused = client.send("POST", "http://g/keyed/svc/Call", &headers, Some(b"\0\0\0\0\0"));
    assert_eq!(refused.status, 200, "gRPC carries its status in a field of its own");
    let status = refused.trailers.as_ref().unwrap_or(&refused.headers).get("grpc-status").cloned();
    assert_eq!(status.as_ref().map(|v| v.as_bytes()), Some(&b"16"[..]), "UNAUTHENTICATED");
}
