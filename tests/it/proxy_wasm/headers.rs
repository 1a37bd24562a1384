//! What filters do to heads: reads and edits both ways, local responses, bytes that are no UTF-8.

use super::*;
use crate::support::upstream::respond;
use crate::support::{Conn, Request};

#[test]
fn heads_are_edited_both_ways() {
    let up = Upstream::start(|_, stream| respond(stream, 200, &[("X-Remove", "1"), ("X-Keep", "1")], b"answer"));
    let edits = "request_headers: add_header_map_value 0 s:x-added s:1; request_headers: add_header_map_value 0 s:x-added s:2; \
                 request_headers: replace_header_map_value 0 s:x-replaced s:new; request_headers: remove_header_map_value 0 s:x-remove; \
                 response_headers: add_header_map_value 2 s:x-added s:1; response_headers: add_header_map_value 2 s:x-added s:2; \
                 response_headers: replace_header_map_value 2 s::status s:203; response_headers: remove_header_map_value 2 s:x-remove";
    let gw = gateway(&up, "", &filter("edit", edits, ""));
    let request =
        gw.get("/edit/a?b=c").header("X-Replaced", "old").header("X-Replaced", "older").header("X-Remove", "1");
    for _ in 0..3 {
        let response = request.clone().header("X-Remove", "2").send().expect(203);
        let seen = up.last();
        assert_eq!((seen.method.as_str(), seen.target.as_str()), ("GET", "/edit/a?b=c"));
        assert_eq!(seen.all("x-added"), ["1", "2"]);
        assert_eq!(seen.all("x-replaced"), ["new"], "replace leaves one");
        assert_eq!(seen.header("x-remove"), None, "remove leaves none");
        assert_eq!(response.all("x-added"), ["1", "2"]);
        assert_eq!((response.header("x-remove"), response.header("x-keep")), (None, Some("1")));
        assert_eq!(response.text(), "answer");
    }
}

#[test]
fn pseudo_headers_edit_the_request_line() {
    let up = Upstream::echo();
    let edits = "request_headers: replace_header_map_value 0 s::path s:/other?q=1; \
                 request_headers: replace_header_map_value 0 s::method s:DELETE; \
                 request_headers: replace_header_map_value 0 s::authority s:other.test";
    let gw = gateway(&up, "", &filter("edit", edits, ""));
    gw.get("/edit/a").send().expect(200);
    let seen = up.last();
    assert_eq!((seen.method.as_str(), seen.target.as_str()), ("DELETE", "/other?q=1"));
    assert_eq!(seen.all("host"), ["other.test"]);
}

/// The pairs of a map in order, from `get_header_map_pairs=0 [...]`.
fn pairs(result: &str) -> Vec<(String, String)> {
    let text =
        result.split_once('[').and_then(|(_, rest)| rest.strip_suffix(']')).unwrap_or_else(|| panic!("{result}"));
    let bytes = unescaped(text);
    let number = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes")) as usize;
    let count = number(0);
    let mut at = 4 + 8 * count;
    let mut next = |len: usize| {
        let text = String::from_utf8(bytes[at..at + len].to_vec()).expect("the test's values are text");
        assert_eq!(bytes[at + len], 0, "a NUL behind each");
        at += len + 1;
        text
    };
    let all = (0..count).map(|i| (next(number(4 + 8 * i)), next(number(8 + 8 * i)))).collect();
    assert_eq!(at, bytes.len(), "nothing behind the last");
    all
}

#[test]
fn maps_have_pseudo_headers_lower_case_names_and_every_value() {
    let up = Upstream::start(|_, stream| respond(stream, 200, &[("X-Up", "1"), ("x-up", "2")], b"answer"));
    let gw = runner(&up);
    for (callback, map) in [("request_headers", 0), ("response_headers", 2)] {
        let script = format!(
            "{callback}: args; {callback}: get_header_map_pairs {map} b; {callback}: get_header_map_size {map} u"
        );
        let response =
            scripted(&gw, script).header("X-Mixed-Case", "Value").header("X-Two", "a").header("X-two", "b").send();
        let results = told(&response.expect(200));
        let pairs = pairs(&results[1]);
        let all = |name: &str| pairs.iter().filter(|(n, _)| n == name).map(|(_, v)| v.as_str()).collect::<Vec<_>>();
        let (count, size) = (pairs.len(), pairs.iter().map(|(k, v)| k.len() + v.len()).sum::<usize>());
        assert!(results[0].starts_with(&format!("args={count},")), "it counts what the map has: {results:?}");
        assert_eq!(results[2], format!("get_header_map_size=0 {size}"));
        assert!(pairs.iter().all(|(name, _)| *name == name.to_lowercase()), "{pairs:?}");
        if map == 0 {
            assert_eq!(all(":method"), ["GET"]);
            assert_eq!(all(":path"), ["/run/x?y=1"]);
            assert_eq!(all(":authority"), [gw.proxy.to_string()]);
            assert_eq!(all(":scheme"), ["http"]);
            assert_eq!((all("x-mixed-case"), all("x-two")), (vec!["Value"], vec!["a", "b"]));
        } else {
            assert_eq!((all(":status"), all("x-up")), (vec!["200"], vec!["1", "2"]));
        }
    }
}

#[test]
fn set_pairs_replaces_the_whole_map() {
    let up = Upstream::start(|_, stream| respond(stream, 200, &[("X-Up", "1")], b"answer"));
    let gw = runner(&up);
    let script = "request_headers: set_header_map_pairs 0 m::method=PUT,:path=/set,:authority=set.test,:scheme=http,x-a=1,x-a=2; \
                  response_headers: set_header_map_pairs 2 m::status=202,x-b=1,x-b=2";
    let response = scripted(&gw, script).header("X-Gone", "1").send().expect(202);
    let seen = up.last();
    assert_eq!((seen.method.as_str(), seen.target.as_str()), ("PUT", "/set"));
    assert_eq!((seen.all("host"), seen.all("x-a"), seen.header("x-gone")), (vec!["set.test"], vec!["1", "2"], None));
    assert_eq!((response.all("x-b"), response.header("x-up")), (vec!["1", "2"], None));
    assert_eq!(response.text(), "answer", "the framing is the gateway's");
}

/// What filters write of the framing can't make two readers disagree: the scripted upstream refuses what is ambiguous.
#[test]
fn framing_is_the_gateways() {
    let up = Upstream::start(|_, stream| respond(stream, 200, &[], b"answer"));
    let gw = runner(&up);
    for (name, value) in
        [("content-length", "999"), ("content-length", "0"), ("transfer-encoding", "chunked"), ("connection", "close")]
    {
        for call in ["add_header_map_value", "replace_header_map_value"] {
            let script =
                format!("request_headers: {call} 0 s:{name} s:{value}; response_headers: {call} 2 s:{name} s:{value}");
            let response = scripted(&gw, &script).body("hello").send().expect(200);
            assert_eq!(response.text(), "answer", "{script}");
            assert_eq!(up.last().body, b"hello", "{script}");
        }
    }
    let script = "request_headers: remove_header_map_value 0 s:content-length; response_headers: remove_header_map_value 2 s:content-length";
    assert_eq!(scripted(&gw, script).body("hello").send().expect(200).text(), "answer");
    assert_eq!(up.last().body, b"hello");
}

#[test]
fn names_and_values_that_no_header_can_have_do_not_pass() {
    let up = Upstream::text("answer");
    let gw = runner(&up);
    for (name, value) in [
        ("x-a%0d%0aevil", "v"),
        ("x%20a", "v"),
        ("x:a", "v"),
        ("", "v"),
        ("x-a", "v%0d%0aEvil:%201"),
        ("x-a", "v%00evil"),
        (":path", "/a%20b%0d%0aEvil:%201"),
        (":method", "GET%20/evil"),
        (":authority", "a%0d%0aEvil:%201"),
        (":unknown", "evil"),
    ] {
        for call in ["add_header_map_value", "replace_header_map_value"] {
            let script = format!("request_headers: {call} 0 s:{name} s:{value}");
            let response = scripted(&gw, &script).send();
            assert!(response.status == 200 || response.status == 502, "{script}: {response}");
            let passed = |name: &str| name.to_lowercase().contains("evil") || name.contains("unknown");
            let seen = up.seen();
            assert!(
                seen.iter().all(|s| s.method == "GET"
                    && !s
                        .headers
                        .iter()
                        .any(|(n, v)| passed(n) || (n != "x-run" && n != "X-Run" && v.contains("evil")))),
                "{script}: {seen:?}"
            );
            let response =
                scripted(&gw, script.replace("request_headers: ", "response_headers: ").replace(" 0 s:", " 2 s:"))
                    .send();
            assert!(!response.headers.iter().any(|(n, _)| passed(n)), "{script}: {response}");
        }
    }
    gw.get("/run").send().expect(200);
}

/// A head has room for 256 KiB of what filters write. What is refused changes nothing.
#[test]
fn heads_are_bounded_in_bytes() {
    let up = Upstream::text("answer");
    let gw = runner(&up);
    for (callback, map, line) in
        [("request_headers", 0, ":method=GET,:path=/,:authority=a.test"), ("response_headers", 2, ":status=200")]
    {
        let calls = [
            (format!("add_header_map_value {map} s:x-a x:200000"), 0),
            (format!("add_header_map_value {map} s:x-a x:100000"), 2),
            (format!("add_header_map_value {map} s:x-b x:100000"), 2),
            (format!("replace_header_map_value {map} s:x-a x:300000"), 2),
            (format!("replace_header_map_value {map} s:x-a x:220000"), 0),
            (format!("set_header_map_pairs {map} m:{line},x-c=*200000,x-d=*100000"), 2),
            (format!("add_header_map_value {map} s:x-a x:6000000"), 2),
            (format!("set_header_map_pairs {map} m:{line},x-c=*150000,x-d=*80000"), 0),
        ];
        for last in [5, calls.len()] {
            let script: String = calls[..last].iter().map(|(call, _)| format!("{callback}: {call}; ")).collect();
            let response = scripted(&gw, script).send().expect(200);
            let expected = calls[..last].iter().map(|(call, status)| {
                let name = call.split(' ').next().unwrap_or_default();
                format!("{name}={status}")
            });
            assert_eq!(told(&response), expected.collect::<Vec<_>>());
            let seen = up.last();
            let sizes = ["x-a", "x-b", "x-c", "x-d"].map(|name| {
                let all = if map == 0 { seen.all(name) } else { response.all(name) };
                all.iter().map(|value| value.len()).sum::<usize>()
            });
            assert_eq!(sizes, if last == 5 { [220_000, 0, 0, 0] } else { [0, 0, 150_000, 80_000] });
        }
    }
    // Of the request line as well, and of what is sent to others.
    for call in [
        "replace_header_map_value 0 s::authority x:5000",
        "replace_header_map_value 0 s::path x:70000",
        "replace_header_map_value 0 s::method x:100",
        "send_local_response 200 0 0 0 0 m:x-a=*200000,x-b=*100000 -1",
    ] {
        assert!(run(&gw, format!("request_headers: {call}"))[0].ends_with("=2"), "{call}");
    }
}

const LOCAL: &str = "send_local_response 418 s:short s:a%20pot m:content-type=text/plain,x-local=1,x-local=2 -1";

#[test]
fn local_responses_come_from_every_callback_before_the_head_is_gone() {
    let up = Upstream::text("from upstream");
    let gw = runner(&up);
    for callback in ["request_headers", "request_body", "response_headers"] {
        let response = scripted(&gw, format!("{callback}: {LOCAL}")).body("body").send().expect(418);
        assert_eq!(response.text(), "a pot", "{callback}");
        assert_eq!((response.all("x-local"), response.header("content-type")), (vec!["1", "2"], Some("text/plain")));
        assert_eq!(response.header("content-length"), Some("5"));
    }
    let asked = up.seen().len();
    assert_eq!(asked, 1, "only the last of them is behind the upstream");
    let response = Request::new(gw.proxy, "HEAD", "/run").header("X-Run", format!("request_headers: {LOCAL}")).send();
    assert_eq!((response.status, response.body.len()), (418, 0));
}

#[test]
fn local_responses_take_any_status_and_the_first_one_counts() {
    let up = Upstream::text("from upstream");
    let gw = runner(&up);
    for (status, expected) in [
        ("200", 200),
        ("204", 204),
        ("304", 304),
        ("599", 599),
        ("0", 500),
        ("99", 500),
        ("600", 500),
        ("0xffffffff", 500),
    ] {
        let script = format!("request_headers: send_local_response {status} 0 0 0 0 0 0 -1");
        scripted(&gw, script).send().expect(expected);
    }
    let twice = "request_headers: send_local_response 401 0 0 s:first 0 0 -1; request_headers: send_local_response 402 0 0 s:second 0 0 -1";
    assert_eq!(scripted(&gw, twice).send().expect(401).text(), "first");
    assert!(up.seen().is_empty());
}

/// As what other handlers write: it ends the filter.
#[test]
fn local_responses_are_bounded_as_all_output() {
    let up = Upstream::text("from upstream");
    let gw = gateway(&up, "[engine.breaker]\nfailures = 0\n", &filter("run", "", "max_buffer = \"64KiB\""));
    let answers = |size: usize| format!("request_headers: send_local_response 200 0 0 x:{size} 0 0 -1");
    assert_eq!(scripted(&gw, answers(65_536)).send().expect(200).body.len(), 65_536);
    scripted(&gw, answers(65_537)).send().problem(502, "handler-output-too-large");
    let message = "request_headers: send_local_response 403 0 0 x:60000 m:x-a=*255000 7";
    let response = scripted(&gw, message).header("Content-Type", "application/grpc").body("x").send().expect(200);
    assert_eq!(told(&response), ["send_local_response=2"], "gRPC's message is a header");
}

/// gRPC clients read their status in headers.
#[test]
fn local_responses_to_grpc_are_headers_only() {
    let up = Upstream::text("from upstream");
    let gw = runner(&up);
    let script = "request_headers: send_local_response 403 0 0 s:not%20you 0 0 7";
    let response = scripted(&gw, script).header("Content-Type", "application/grpc").body("x").send().expect(200);
    assert_eq!((response.header("grpc-status"), response.header("grpc-message")), (Some("7"), Some("not you")));
    assert_eq!(response.body, b"");
    assert_eq!(scripted(&gw, script).send().expect(403).text(), "not you", "to others they are as they are");
}

/// Later filters never see the request, earlier ones see the answer; so does the one that gave it.
#[test]
fn local_responses_pass_back_through_the_filters_before() {
    let up = Upstream::text("from upstream");
    let mark = |letter: char| {
        entry(
            &format!(
                "request_headers: set_property s:seen_{letter} s:1; response_headers: add_header_map_value 2 s:x-order s:{letter}"
            ),
            "",
        )
    };
    let answers = entry("request_headers: send_local_response 403 0 0 s:no 0 0 -1", "");
    let gw = gateway(&up, "", &chain("chain", &[mark('a'), mark('b'), answers, mark('c')]));
    let response = gw.get("/chain").send().expect(403);
    let order = response.all("x-order");
    assert!(order.ends_with(&["b", "a"]), "{order:?}");
    assert!(!response.all("x-results").concat().contains("seen_c"), "{response}");
    assert!(up.seen().is_empty());
}

#[test]
fn filters_see_requests_in_order_and_answers_in_reverse() {
    let up = Upstream::text("answer");
    let mark = |letter: char| {
        let script = format!(
            "request_headers: add_header_map_value 0 s:x-order s:{letter}; response_headers: add_header_map_value 2 s:x-order s:{letter}"
        );
        entry(&script, "")
    };
    let gw = gateway(&up, "", &chain("chain", &[mark('a'), mark('b'), mark('c')]));
    let response = gw.get("/chain").send().expect(200);
    assert_eq!(up.only().all("x-order"), ["a", "b", "c"]);
    assert_eq!(response.all("x-order"), ["c", "b", "a"]);
}

/// Handlers of any ABI stand in one list.
#[test]
fn filters_stand_among_handlers_of_other_abis() {
    let up = Upstream::text("answer");
    let mark = |letter: char| {
        let script = format!(
            "request_headers: add_header_map_value 0 s:x-guest s:{letter}; response_headers: add_header_map_value 2 s:x-guest-response s:{letter}"
        );
        entry(&script, "")
    };
    let other = "{ module = \"acme/http\", config = \"transform\" }".to_owned();
    let modules =
        [("acme/proxy", "proxy-wasm", &c_guest("proxy")[..]), ("acme/http", "http-wasm", &c_guest("http")[..])];
    let routes = chain("chain", &[mark('a'), other, mark('b')]);
    let gw = Gateway::with_modules(&upstream("up", up.addr, ""), &modules, &routes);
    for _ in 0..3 {
        let response = gw.post("/chain", "body").header("X-Remove-Me", "1").send().expect(200);
        let seen = up.last();
        // The one in the middle sets the header, which replaces what the first added.
        assert_eq!((seen.all("x-guest"), seen.header("x-remove-me")), (vec!["was here", "b"], None));
        assert_eq!(seen.body, b"body");
        let marks = response.all("x-guest-response");
        assert!(marks.contains(&"was here too") && marks.ends_with(&["b", "a"]), "{response}");
        assert_eq!(response.text(), "answer");
    }
}

#[test]
fn header_bytes_that_are_no_text_follow_the_handlers_policy() {
    let up = Upstream::text("answer");
    let routes = filter("plain", "", "")
        + &filter("reject", "", "header_bytes = \"reject\"")
        + &filter("drop", "", "header_bytes = \"drop\"")
        + &filter("lossy", "", "header_bytes = \"lossy\"");
    let gw = gateway(&up, "", &routes);
    let ask = |path: &str| {
        let script =
            "request_headers: get_header_map_value 0 s:x-odd b; request_headers: get_header_map_value 0 s:x-even b";
        let head = format!("GET /{path} HTTP/1.1\r\nHost: a\r\nX-Run: {script}\r\nX-Even: good\r\nX-Odd: ");
        Conn::connect(gw.proxy).ask([head.as_bytes(), b"caf\xe9\r\n\r\n"].concat())
    };
    for path in ["plain", "reject"] {
        ask(path).expect(400);
    }
    assert!(up.seen().is_empty(), "rejected before anything ran");
    assert_eq!(told(&ask("drop").expect(200)), ["get_header_map_value=1 -", "get_header_map_value=0 [good]"]);
    let lossy = told(&ask("lossy").expect(200));
    assert_eq!(lossy, ["get_header_map_value=0 [caf%ef%bf%bd]", "get_header_map_value=0 [good]"]);
}

/// The caller's key is the gateway's; a filter never sees it.
#[test]
fn filters_do_not_see_the_callers_key() {
    let up = Upstream::text("answer");
    let routes = filter("run", "", "").replace("auth = \"none\"", "auth = \"key\"");
    let gw = gateway(&up, "", &routes);
    let key = gw.key();
    let script = "request_headers: get_header_map_pairs 0 b; request_headers: get_property s:request%00headers b; request_headers: get_property s:request%00headers%00x-api-key b";
    let response = scripted(&gw, script).key(&key).send().expect(200);
    let results = told(&response);
    assert!(results[0].starts_with("get_header_map_pairs=0 ["), "{results:?}");
    assert!(!response.to_string().contains(&key) && !results.concat().contains("wg_live_"), "{response}");
}

/// RFC 9110 section 5.5: whitespace around a value is no part of it; HTTP/2 clients take an answer with some for malformed.
#[test]
fn whitespace_around_values_is_dropped() {
    let up = Upstream::text("answer");
    let gw = runner(&up);
    let script = "request_headers: add_header_map_value 0 s:x-to s:%20a%20b%09; response_headers: add_header_map_value 2 s:x-from s:%20c%20";
    let response = scripted(&gw, script).send().expect(200);
    assert_eq!((up.last().header("x-to"), response.header("x-from")), (Some("a b"), Some("c")));
}
