//! Handlers on routes: modules that answer, and modules that transform what passes.

use std::io::Write;

use crate::support::h2c::H2;
use crate::support::toml::{route, upstream};
use crate::support::{Conn, Gateway, Upstream, c_guest, wat};

/// A route at `/<name>` with an http-wasm handler in this mode before the upstream.
fn filter(mode: &str, more: &str) -> String {
    route(
        mode,
        format!(
            "match.path_prefix = \"/{mode}\"\ntarget.upstream = \"up\"\nauth = \"none\"\nhandlers = [{{ module = \"acme/http\", config = \"{mode}\"{more} }}]"
        ),
    )
}

/// The http-wasm guest in each of these modes, before an echoing upstream.
fn filters(up: &Upstream, modes: &[&str]) -> Gateway {
    let routes: String = modes.iter().map(|mode| filter(mode, "")).collect();
    Gateway::with_modules(&upstream("up", up.addr, ""), &[("acme/http", "http-wasm", &c_guest("http"))], &routes)
}

#[test]
fn a_cgi_module_answers() {
    let handler = route(
        "cgi",
        "match.path_prefix = \"/cgi\"\ntarget.handler = { module = \"acme/cgi\", env = { GREETING = \"hello\" } }\nauth = \"none\"",
    );
    let gw = Gateway::with_modules("", &[("acme/cgi", "cgi", &c_guest("cgi"))], &handler);
    let response = gw.post("/cgi/a/b?x=1&y=%20", "the body").header("Content-Type", "text/x").send().expect(200);
    assert_eq!(response.header("content-type"), Some("text/plain"));
    let text = response.text();
    assert!(text.starts_with("POST /cgi/a/b ?x=1&y=%20 HTTP/1.1\n"), "{text}");
    assert!(text.contains("type=text/x length=8 greeting=hello\nthe body"), "{text}");

    let teapot = gw.get("/cgi?teapot").send().expect(418);
    assert_eq!((teapot.header("x-kind"), teapot.text().as_str()), (Some("stout"), "short\n"));
    let redirect = gw.get("/cgi?redirect").send().expect(302);
    assert_eq!(redirect.header("location"), Some("https://example.com/elsewhere"));
    assert_eq!(gw.request("HEAD", "/cgi").send().expect(200).body, b"");
}

/// RFC 3875 sections 4.1.5 and 4.1.13.
#[test]
fn the_path_is_split_into_the_program_and_what_follows() {
    let env = wat(include_str!("../../examples/cgi-env/env.wat"));
    let target = "target.handler = { module = \"acme/env\" }\nauth = \"none\"";
    let routes = route("tools", format!("match.path_prefix = \"/tools/env\"\n{target}"))
        + &route("exact", format!("match.path = \"/exact\"\n{target}"));
    let gw = Gateway::with_modules("", &[("acme/env", "cgi", &env)], &routes);
    for (target, script, info) in
        [("/tools/env/a/b?x=1", "/tools/env", "/a/b"), ("/tools/env", "/tools/env", ""), ("/exact", "", "/exact")]
    {
        let text = gw.get(target).send().expect(200).text();
        let lines: Vec<_> =
            text.lines().filter(|l| l.starts_with("SCRIPT_NAME=") || l.starts_with("PATH_INFO=")).collect();
        assert_eq!(lines, [format!("SCRIPT_NAME={script}"), format!("PATH_INFO={info}")], "{target}");
    }
}

#[test]
fn a_guest_never_sees_the_key_or_the_gateways_environment() {
    let routes = route(
        "cgi",
        "match.path_prefix = \"/cgi\"\ntarget.handler = { module = \"acme/cgi\" }\nauth = \"key\"",
    ) + &route(
        "tell",
        "match.path_prefix = \"/tell\"\ntarget.handler = { module = \"acme/http\", config = \"tell\" }\nauth = \"key\"",
    );
    let modules = [("acme/cgi", "cgi", &c_guest("cgi")[..]), ("acme/http", "http-wasm", &c_guest("http")[..])];
    let gw = Gateway::with_modules("", &modules, &routes);
    let key = gw.key();
    for target in ["/cgi?env", "/tell"] {
        for request in [gw.get(target).key(&key), gw.get(target).header("Authorization", format!("Bearer {key}"))] {
            let text = request.header("X-Other", "passes").send().expect(200).text();
            assert!(text.contains("passes"), "{text}");
            assert!(!text.contains(&key) && !text.contains("wg_live_"), "{text}");
            assert!(!text.contains("PATH=/") && !text.contains("HOME="), "{text}");
        }
    }
    let foreign = gw.get("/tell").key(&key).header("Authorization", "Bearer of.the.upstream").send().expect(200).text();
    assert!(foreign.contains("of.the.upstream"), "what is not ours passes: {foreign}");
}

#[test]
fn a_command_answers_with_its_output() {
    let handler =
        route("c", "match.path_prefix = \"/c\"\ntarget.handler = { module = \"acme/command\" }\nauth = \"none\"");
    let gw = Gateway::with_modules("", &[("acme/command", "command", &c_guest("command"))], &handler);
    let response = gw.post("/c", "shout this").send().expect(200);
    assert_eq!(response.text(), "SHOUT THIS");
}

#[test]
fn an_http_wasm_module_answers() {
    let handler = route(
        "h",
        "match.path_prefix = \"/h\"\ntarget.handler = { module = \"acme/http\", config = \"answer\" }\nauth = \"none\"",
    );
    let gw = Gateway::with_modules("", &[("acme/http", "http-wasm", &c_guest("http"))], &handler);
    for _ in 0..20 {
        let response = gw.get("/h").send().expect(202);
        assert_eq!((response.header("x-guest"), response.text().as_str()), (Some("answered"), "answered by a guest\n"));
        assert_eq!(response.header("content-length"), Some("20"));
    }
}

#[test]
fn headers_are_transformed_both_ways() {
    let up = Upstream::echo();
    let gw = filters(&up, &["transform", "rewrite", "unbuffered"]);
    let response = gw.get("/transform").header("X-Remove-Me", "1").send().expect(200);
    let seen = up.last();
    assert_eq!((seen.header("x-guest"), seen.header("x-remove-me")), (Some("was here"), None));
    assert_eq!(response.header("x-guest-response"), Some("was here too"));
    // ABI section 3: in the response phase headers are writable only with `buffer_response`.
    gw.get("/unbuffered").send().problem(502, "handler-trap");
    gw.get("/rewrite/x?y").send().expect(200);
    assert_eq!(up.last().target, "/rewritten?by=guest");
}

#[test]
fn answers_of_the_configuration_pass_handlers_as_well() {
    let handler = r#"handlers = [{ module = "acme/http", config = "transform" }]"#;
    let target = |name: &str, target: &str| {
        route(name, format!("match.path_prefix = \"/{name}\"\nauth = \"none\"\n{handler}\n{target}"))
    };
    let routes = target("fixed", r#"target.respond = { status = 200, body = "fixed" }"#)
        + &target("moved", r#"target.redirect = { location = "/fixed", status = 302 }"#)
        + &target("health", "target.health = true");
    let gw = Gateway::with_modules("", &[("acme/http", "http-wasm", &c_guest("http"))], &routes);
    for (path, status) in [("/fixed", 200), ("/moved", 302), ("/health/live", 200), ("/health/ready", 200)] {
        let response = gw.get(path).send().expect(status);
        assert_eq!(response.header("x-guest-response"), Some("was here too"), "{path}");
    }
}

#[test]
fn bodies_are_rewritten_and_framed_anew() {
    let up = Upstream::start(|seen, stream| {
        let body = [b"upstream got: ", &seen.body[..]].concat();
        crate::support::upstream::respond(stream, 200, &[("Content-Type", "text/plain")], &body)
    });
    let gw = filters(&up, &["upper-request", "upper-response"]);
    let response = gw.post("/upper-request", "quiet").send().expect(200);
    assert_eq!(response.text(), "upstream got: QUIET");
    let response = gw.post("/upper-response", "quiet").send().expect(200);
    assert_eq!(response.text(), "UPSTREAM GOT: QUIET");
    assert_eq!(response.header("content-length"), Some("19"));
    // Beyond what Pingora could replay.
    let large = vec![b'a'; 200_000];
    let response = gw.post("/upper-request", large.clone()).send().expect(200);
    assert_eq!(up.last().body, large.to_ascii_uppercase());
    assert_eq!(response.body.len(), large.len() + 14);
    let mut chunked = Conn::connect(gw.proxy);
    let response = chunked.ask(
        "POST /upper-request HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n",
    );
    assert_eq!(response.expect(200).text(), "upstream got: ABCDE");
}

#[test]
fn a_body_over_the_handlers_buffer_is_refused() {
    let up = Upstream::start(|_, stream| crate::support::upstream::respond(stream, 200, &[], &[b'x'; 5000]));
    let routes =
        filter("upper-request", ", max_buffer = \"1KiB\"") + &filter("upper-response", ", max_buffer = \"1KiB\"");
    let gw =
        Gateway::with_modules(&upstream("up", up.addr, ""), &[("acme/http", "http-wasm", &c_guest("http"))], &routes);
    gw.post("/upper-request", vec![b'x'; 2000]).send().problem(413, "payload-too-large");
    gw.get("/upper-response").send().problem(502, "upstream-too-large");
}

#[test]
fn failures_are_closed_unless_the_route_says_open() {
    let up = Upstream::echo();
    let open = |name: &str, mode: &str| {
        route(
            name,
            format!(
                "match.path_prefix = \"/{name}\"\ntarget.upstream = \"up\"\nauth = \"none\"\nhandlers = [{{ module = \"acme/http\", config = \"{mode}\", fail = \"open\", wall = \"200ms\" }}]"
            ),
        )
    };
    let routes = filter("trap-request", "")
        + &filter("trap-response", "")
        + &filter("spin", ", wall = \"200ms\"")
        + &open("open-trap", "trap-request")
        + &open("open-response", "trap-response")
        + &open("open-spin", "spin");
    let gw =
        Gateway::with_modules(&upstream("up", up.addr, ""), &[("acme/http", "http-wasm", &c_guest("http"))], &routes);
    for _ in 0..3 {
        gw.get("/trap-request").send().problem(502, "handler-trap");
        gw.get("/spin").send().problem(504, "handler-timeout");
    }
    assert!(up.seen().is_empty(), "closed means closed");
    gw.get("/trap-response").send().problem(502, "handler-trap");
    for target in ["/open-trap", "/open-response", "/open-spin"] {
        let response = gw.get(target).send().expect(200);
        assert_eq!(response.json()["uri"], target, "{response}");
    }
}

#[test]
fn living_vms_belong_to_one_handler() {
    let count = |name: &str| {
        route(
            name,
            format!(
                "match.path = \"/{name}\"\ntarget.handler = {{ module = \"acme/http\", config = \"count\" }}\nauth = \"none\""
            ),
        )
    };
    let engine = "[engine]\nvms_per_handler = 1\nvm_requests = 4\n";
    let handlers = count("a") + &count("b");
    let gw = Gateway::with_modules(engine, &[("acme/http", "http-wasm", &c_guest("http"))], &handlers)
        .optimised(&(engine.to_owned() + &handlers));
    let ask = |target: &str| gw.get(target).send().expect(200).text();
    assert_eq!([ask("/a"), ask("/a"), ask("/b"), ask("/a"), ask("/b")], ["1", "2", "1", "3", "2"]);
    assert_eq!([ask("/a"), ask("/a")], ["4", "1"], "a VM is replaced after its share of requests");
}

#[test]
fn handlers_run_in_order_and_responses_in_reverse() {
    let up = Upstream::echo();
    let adds = |letter: char| {
        wat(&format!(
            r#"(module
              (import "http_handler" "enable_features" (func $enable (param i32) (result i32)))
              (import "http_handler" "add_header_value" (func $add (param i32 i32 i32 i32 i32)))
              (memory (export "memory") 1)
              (data (i32.const 0) "x-order{letter}")
              (func (export "handle_request") (result i64)
                (drop (call $enable (i32.const 2)))
                (call $add (i32.const 0) (i32.const 0) (i32.const 7) (i32.const 7) (i32.const 1)) (i64.const 1))
              (func (export "handle_response") (param i32 i32)
                (call $add (i32.const 1) (i32.const 0) (i32.const 7) (i32.const 7) (i32.const 1))))"#
        ))
    };
    let lines = "match.path_prefix = \"/\"\ntarget.upstream = \"up\"\nauth = \"none\"\nhandlers = [{ module = \"acme/a\" }, { module = \"acme/b\" }]";
    let modules = [("acme/a", "http-wasm", &adds('a')[..]), ("acme/b", "http-wasm", &adds('b')[..])];
    let gw = Gateway::with_modules(&upstream("up", up.addr, ""), &modules, &route("all", lines));
    let response = gw.get("/").send().expect(200);
    assert_eq!(up.only().all("x-order"), ["a", "b"]);
    assert_eq!(response.all("x-order"), ["b", "a"]);
}

#[test]
fn what_a_handler_writes_ahead_precedes_a_body_and_follows_no_head() {
    let up = Upstream::start(|seen, stream| match seen.method.as_str() {
        "HEAD" => stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n").is_ok(),
        _ => crate::support::upstream::respond(stream, 200, &[], b"behind"),
    });
    let ahead = wat(r#"(module
        (import "http_handler" "write_body" (func $write (param i32 i32 i32)))
        (memory (export "memory") 1)
        (data (i32.const 0) "ahead, ")
        (func (export "handle_request") (result i64)
          (call $write (i32.const 1) (i32.const 0) (i32.const 7)) (i64.const 1))
        (func (export "handle_response") (param i32 i32)))"#);
    let config = upstream("up", up.addr, "") + "[[server.listeners]]\naddress = \"127.0.0.1:0\"\nh2c = true\n";
    let lines = "match.path_prefix = \"/\"\ntarget.upstream = \"up\"\nauth = \"none\"\nhandlers = [{ module = \"acme/ahead\" }]";
    let gw = Gateway::with_modules(&config, &[("acme/ahead", "http-wasm", &ahead)], &route("all", lines));
    let (mut h1, h2) = (Conn::connect(gw.proxy), H2::connect(gw.proxy));
    for method in ["GET", "HEAD", "GET"] {
        let body = if method == "HEAD" { "" } else { "ahead, behind" };
        h1.send(format!("{method} / HTTP/1.1\r\nHost: a\r\n\r\n"));
        let answer = h1.try_read(method).expect(method).expect(200);
        assert_eq!(answer.text(), body, "{method}");
        assert_eq!(answer.header("content-length"), Some("13").filter(|_| method == "GET"), "{method}");
        let answer = h2.send(method, "http://a/", &[], None);
        assert_eq!((answer.status.as_u16(), &answer.body[..]), (200, body.as_bytes()), "{method}");
    }
}

#[test]
fn a_new_active_version_takes_over_and_a_pinned_one_stays() {
    let says = |n: u32| {
        wat(&format!(
            r#"(module
              (import "http_handler" "write_body" (func $write (param i32 i32 i32)))
              (memory (export "memory") 1)
              (data (i32.const 0) "version {n}")
              (func (export "handle_request") (result i64)
                (call $write (i32.const 1) (i32.const 0) (i32.const 9)) (i64.const 0))
              (func (export "handle_response") (param i32 i32)))"#
        ))
    };
    let routes = route("live", "match.path = \"/live\"\ntarget.handler = { module = \"acme/v\" }\nauth = \"none\"")
        + &route("pinned", "match.path = \"/pinned\"\ntarget.handler = { module = \"acme/v@1\" }\nauth = \"none\"");
    let gw = Gateway::with_modules("", &[("acme/v", "http-wasm", &says(1))], &routes);
    assert_eq!(gw.get("/live").send().expect(200).text(), "version 1");
    gw.upload("acme/v", "http-wasm", &says(2));
    crate::support::eventually("version 2 is live", || gw.get("/live").send().expect(200).text() == "version 2");
    assert_eq!(gw.get("/pinned").send().expect(200).text(), "version 1");
}
