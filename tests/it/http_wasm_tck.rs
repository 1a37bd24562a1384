//! The 35 conformance checks of http-wasm, re-created: our own guest (`tests/guests/c/tck.c`) in the running gateway
//! before an upstream that tells in headers what reached it.
//!
//! Invariant: a check passes only when the guest had nothing to object to and the upstream saw what it should.

use std::io::Write;
use std::net::TcpStream;

use crate::support::h2c::H2;
use crate::support::toml::{open_proxy, upstream};
use crate::support::upstream::{Seen, respond};
use crate::support::{Gateway, Response, Upstream, c_guest};

/// The contract of the conformance suite's own backend: an empty 200 with `x-httpwasm-next-*`.
fn backend() -> Upstream {
    Upstream::start(|seen: &Seen, stream: &mut TcpStream| {
        let mut headers = vec![
            ("x-httpwasm-next-method".to_owned(), seen.method.clone()),
            ("x-httpwasm-next-uri".to_owned(), seen.target.clone()),
        ];
        for (i, (name, value)) in seen.headers.iter().enumerate() {
            let before = seen.headers[..i].iter().filter(|(n, _)| n.eq_ignore_ascii_case(name)).count();
            headers.push((format!("x-httpwasm-next-header-{name}-{before}").to_lowercase(), value.clone()));
        }
        let headers: Vec<_> = headers.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        respond(stream, 200, &headers, b"") && stream.flush().is_ok()
    })
}

fn gateway(up: &Upstream, server: &str) -> Gateway {
    let route = "[[routes]]\nname = \"tck\"\nmatch.path_prefix = \"/\"\ntarget.upstream = \"up\"\nauth = \"none\"\n\
                 handlers = [{ module = \"acme/tck\" }]\n";
    let config = format!("{server}{}", upstream("up", up.addr, ""));
    Gateway::with_modules(&config, &[("acme/tck", "http-wasm", &c_guest("tck"))], route)
}

/// One check over HTTP/1.1.
#[track_caller]
fn check(
    gw: &Gateway,
    id: &str,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
    body: Option<&[u8]>,
) -> Response {
    let mut request = gw.request(method, target).header("X-Httpwasm-Tck-Testid", id);
    for (name, value) in headers {
        request = request.header(name, *value);
    }
    if let Some(body) = body {
        request = request.body(body);
    }
    let response = request.send();
    assert_eq!(response.header("x-httpwasm-tck-failed"), None, "{id}: {response}");
    assert_eq!(response.status, 200, "{id}: {response}");
    assert_eq!(response.header("x-httpwasm-tck-handled"), Some("1"), "{id}: {response}");
    response
}

/// What the upstream saw of a request header.
fn next_header<'a>(response: &'a Response, name: &str, i: usize) -> Option<&'a str> {
    response.header(&format!("x-httpwasm-next-header-{name}-{i}"))
}

const URIS: [&str; 4] = ["/simple", "/simple%26clean", "/animal?name=panda", "/disney?name=chip%26dale"];

#[test]
fn protocol_version_reaches_the_client_in_the_body() {
    let up = backend();
    let gw = gateway(&up, "[[server.listeners]]\naddress = \"127.0.0.1:0\"\nh2c = true\n");
    assert_eq!(check(&gw, "get_protocol_version", "GET", "/", &[], None).text(), "HTTP/1.1");
    let h2 = H2::connect(gw.proxy);
    let response = h2.get(&format!("http://{}/", gw.proxy), &[("x-httpwasm-tck-testid", "get_protocol_version")]);
    assert_eq!((response.status.as_u16(), &response.body[..]), (200, &b"HTTP/2.0"[..]));
}

#[test]
fn methods() {
    let up = backend();
    let gw = gateway(&up, "");
    for method in ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH"] {
        let response = check(&gw, &format!("get_method/{method}"), method, "/", &[], None);
        assert_eq!(response.header("x-httpwasm-next-method"), Some(method), "{response}");
    }
    let response = check(&gw, "set_method", "GET", "/", &[], None);
    assert_eq!(response.header("x-httpwasm-next-method"), Some("POST"), "{response}");
    assert_eq!(next_header(&response, "content-length", 0), Some("0"), "a POST without a body says so");
}

#[test]
fn uris_are_kept_byte_by_byte() {
    let up = backend();
    let gw = gateway(&up, "");
    for uri in URIS {
        let response = check(&gw, &format!("get_uri/{uri}"), "GET", uri, &[], None);
        assert_eq!(response.header("x-httpwasm-next-uri"), Some(uri));
        let response = check(&gw, &format!("set_uri/{uri}"), "GET", "/something/else?a=b", &[], None);
        assert_eq!(response.header("x-httpwasm-next-uri"), Some(uri));
    }
}

#[test]
fn header_reads() {
    let up = backend();
    let gw = gateway(&up, "");
    check(&gw, "get_header_values/lower", "GET", "/", &[("single-header", "value")], None);
    check(&gw, "get_header_values/mixed", "GET", "/", &[("Single-Header", "value")], None);
    check(&gw, "get_header_values/absent", "GET", "/", &[], None);
    let two = [("multi-header", "value1"), ("Multi-Header", "value2")];
    check(&gw, "get_header_values/two", "GET", "/", &two, None);
    check(&gw, "get_header_names", "GET", "/", &[("a-header", "1"), ("B-Header", "2")], None);
}

#[test]
fn header_writes() {
    let up = backend();
    let gw = gateway(&up, "");
    let response = check(&gw, "set_header_value/new", "GET", "/", &[], None);
    assert_eq!(next_header(&response, "new-header", 0), Some("value"));
    let bear = [("Existing-Header", "bear")];
    let response = check(&gw, "set_header_value/existing", "GET", "/", &bear, None);
    assert_eq!(next_header(&response, "existing-header", 0), Some("value"));
    assert_eq!(next_header(&response, "existing-header", 1), None);

    let response = check(&gw, "add_header_value/new", "GET", "/", &[], None);
    assert_eq!(next_header(&response, "new-header", 0), Some("value"));
    let response = check(&gw, "add_header_value/existing", "GET", "/", &bear, None);
    assert_eq!(next_header(&response, "existing-header", 0), Some("bear"));
    assert_eq!(next_header(&response, "existing-header", 1), Some("value"));

    let response = check(&gw, "remove_header/new", "GET", "/", &[], None);
    assert_eq!(next_header(&response, "new-header", 0), None);
    let response = check(&gw, "remove_header/existing", "GET", "/", &bear, None);
    assert_eq!(next_header(&response, "existing-header", 0), None);
}

#[test]
fn request_bodies_are_read_whole_and_still_forwarded() {
    let up = backend();
    let gw = gateway(&up, "");
    for length in [0usize, 5, 2048, 4096, 5000] {
        let body = vec![b'a'; length];
        check(&gw, &format!("read_body/{length}"), "POST", "/", &[], Some(&body));
        assert_eq!(up.last().body, body, "{length} bytes, buffered by the guest");
    }
}

#[test]
fn source_address_is_the_clients() {
    let up = backend();
    let gw = gateway(&up, "");
    check(&gw, "get_source_addr", "GET", "/", &[], None);
}

/// The upstream of the checks is told apart from a gateway that answers by itself.
#[test]
fn without_the_handler_nothing_is_handled() {
    let up = backend();
    let gw = Gateway::start(&open_proxy(up.addr, ""));
    let response = gw.get("/simple").send().expect(200);
    assert_eq!(response.header("x-httpwasm-tck-handled"), None);
    assert_eq!(response.header("x-httpwasm-next-uri"), Some("/simple"));
}
