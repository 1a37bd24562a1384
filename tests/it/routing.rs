//! Routing: which route a request takes. The more exact match wins, whatever the order in the file.

use crate::support::{Conn, Gateway};

/// Routes that answer with their own name.
fn named(routes: &[(&str, &str)]) -> String {
    let one = |(name, matches): &(&str, &str)| {
        format!(
            "[[routes]]\nname = \"{name}\"\n{matches}\ntarget.respond = {{ status = 200, body = \"{name}\" }}\nauth = \"none\"\n"
        )
    };
    routes.iter().map(one).collect()
}

#[track_caller]
fn check(gw: &Gateway, method: &str, host: &str, target: &str, headers: &[(&str, &str)], route: &str) {
    let mut request = gw.request(method, target).header("Host", host);
    for (name, value) in headers {
        request = request.header(name, *value);
    }
    assert_eq!(request.send().text(), route, "{method} {host}{target} {headers:?}");
}

#[test]
fn the_more_exact_path_wins() {
    let gw = Gateway::start(&named(&[
        ("any", "match.path_prefix = \"/\""),
        ("rest", "match.path = \"/a/{*rest}\""),
        ("prefix", "match.path_prefix = \"/a/b/\""),
        ("param", "match.path = \"/a/{id}\""),
        ("exact", "match.path = \"/a/b\""),
    ]));
    for (target, route) in [
        ("/", "any"),
        ("/a/b", "exact"),
        ("/a/b?x=/a/c", "exact"),
        ("/a/c", "param"),
        ("/a/c/d", "rest"),
        ("/a/b/c", "prefix"),
        ("/ab", "any"),
        ("/A/B", "any"),
    ] {
        check(&gw, "GET", "x", target, &[], route);
    }
}

#[test]
fn the_more_exact_host_wins_over_the_path() {
    let gw = Gateway::start(&named(&[
        ("any", "match.path = \"/exact\""),
        ("suffix", "match.path_prefix = \"/\"\nmatch.hosts = [\"*.example.com\"]"),
        ("longer", "match.path_prefix = \"/\"\nmatch.hosts = [\"*.deep.example.com\"]"),
        ("host", "match.path_prefix = \"/\"\nmatch.hosts = [\"www.example.com\"]"),
    ]));
    for (host, route) in [
        ("www.example.com", "host"),
        ("WWW.Example.COM:8080", "host"),
        ("api.example.com", "suffix"),
        ("a.b.example.com", "suffix"),
        ("a.deep.example.com", "longer"),
        ("example.com", "any"),
        ("notexample.com", "any"),
    ] {
        check(&gw, "GET", host, "/exact", &[], route);
    }
}

#[test]
fn methods_and_headers_narrow_a_match() {
    let gw = Gateway::start(&named(&[
        ("plain", "match.path = \"/a\""),
        ("post", "match.path = \"/a\"\nmatch.methods = [\"POST\"]"),
        ("beta", "match.path = \"/a\"\nmatch.headers = { x-track = \"beta\" }"),
        ("tracked", "match.path = \"/a\"\nmatch.headers = { x-track = true }"),
    ]));
    check(&gw, "GET", "x", "/a", &[], "plain");
    check(&gw, "POST", "x", "/a", &[], "post");
    check(&gw, "GET", "x", "/a", &[("X-Track", "beta")], "beta");
    check(&gw, "GET", "x", "/a", &[("X-Track", "other")], "tracked");
}

#[test]
fn nothing_matches_is_404_and_names_no_route() {
    let gw = Gateway::start(&named(&[("only", "match.path = \"/only\"")]));
    let doc = gw.get("/other").send().problem(404, "not-found");
    assert!(!doc.to_string().contains("only"), "{doc}");
}

#[test]
fn absolute_form_routes_by_its_own_authority() {
    let gw = Gateway::start(&named(&[
        ("a", "match.path_prefix = \"/\"\nmatch.hosts = [\"a.example\"]"),
        ("b", "match.path_prefix = \"/\"\nmatch.hosts = [\"b.example\"]"),
    ]));
    let mut conn = Conn::connect(gw.proxy);
    let response = conn.ask("GET http://a.example/x HTTP/1.1\r\nHost: a.example\r\n\r\n");
    assert_eq!(response.expect(200).text(), "a");
    // RFC 9112 section 3.2.2 lets the target win; refusing the contradiction is stricter. Never `b`.
    let mut conn = Conn::connect(gw.proxy);
    let response = conn.ask("GET http://a.example/x HTTP/1.1\r\nHost: b.example\r\n\r\n");
    assert!(matches!(response.status, 400 | 421) || response.text() == "a", "{response}");
}

#[test]
fn ten_thousand_routes_still_route() {
    let routes: String = (0..10_000)
        .map(|i| format!("[[routes]]\nname = \"r{i}\"\nmatch.path_prefix = \"/r{i}/\"\ntarget.respond = {{ status = 200, body = \"{i}\" }}\nauth = \"none\"\n"))
        .collect();
    let gw = Gateway::start(&routes);
    for i in [0, 1, 10, 100, 9_999] {
        assert_eq!(gw.get(&format!("/r{i}/x")).send().expect(200).text(), i.to_string());
    }
}
