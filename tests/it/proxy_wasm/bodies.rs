//! What filters do to bodies: splices, pauses that gather, order with the head, bounds, trailers.

use super::*;
use crate::support::Conn;
use crate::support::h2c::H2;
use crate::support::upstream::respond;

/// Waits for the whole body, then runs this once on it.
fn at_end(callback: &str, operation: &str) -> String {
    format!("{callback}: more? pause; {callback}: end? {operation}; ")
}

#[test]
fn bodies_are_spliced_both_ways() {
    let up = Upstream::text("0123456789");
    let gw = runner(&up);
    for (splice, expected) in [
        ("0 0 s:xy", "xy0123456789"),
        ("10 0 s:xy", "0123456789xy"),
        ("0xffffffff 0 s:xy", "0123456789xy"),
        ("0 10 s:xy", "xy"),
        ("0 0xffffffff s:xy", "xy"),
        ("0 0xffffffff s:", ""),
        ("0 3 s:xy", "xy3456789"),
        ("3 4 s:xy", "012xy789"),
        ("3 0xffffffff s:xy", "012xy"),
        ("3 0 s:xy", "012xy3456789"),
        ("3 2 s:", "01256789"),
    ] {
        let script = at_end("request_body", &format!("set_buffer_bytes 0 {splice}"))
            + &at_end("response_body", &format!("set_buffer_bytes 1 {splice}"));
        let response = scripted(&gw, &script).body("0123456789").send().expect(200);
        assert_eq!(String::from_utf8_lossy(&up.last().body), expected, "request, {splice}");
        assert_eq!(response.text(), expected, "response, {splice}");
    }
}

/// Section 5: several edits of one callback see each other.
#[test]
fn splices_follow_each_other() {
    let up = Upstream::text("answer");
    let gw = runner(&up);
    let script = "request_body: more? pause; request_body: end? set_buffer_bytes 0 0 0 s:<; request_body: end? set_buffer_bytes 0 -1 0 s:>; \
                  request_body: end? get_buffer_status 0 u u; request_body: end? get_buffer_bytes 0 0 -1 b";
    let results = told(&scripted(&gw, script).body("body").send().expect(200));
    assert_eq!(results[2..], ["get_buffer_status=0 6 0", "get_buffer_bytes=0 [<body>]"]);
    assert_eq!(up.last().body, b"<body>");
}

#[test]
fn large_bodies_pass_piece_by_piece_and_whole() {
    let large: Vec<u8> = (0..3_000_000u32).map(|i| b'a' + (i % 23) as u8).collect();
    let answer = large.clone();
    let up = Upstream::start(move |_, stream| respond(stream, 200, &[], &answer));
    let pieces = filter("pieces", "request_body: upper 0; response_body: upper 1", "max_buffer = \"256KiB\"");
    let whole = at_end("request_body", "upper 0") + &at_end("response_body", "upper 1");
    let gw = gateway(&up, "", &(pieces + &filter("whole", &whole, "max_buffer = \"4MiB\"")));
    for target in ["/pieces", "/whole"] {
        let response = gw.post(target, large.clone()).send().expect(200);
        assert!(up.last().body == large.to_ascii_uppercase(), "{target}: the request's body");
        assert!(response.body == large.to_ascii_uppercase(), "{target}: the answer's body");
    }
}

/// `body_size` of each callback, from a body's `args`.
fn sizes(results: &[String]) -> Vec<(u32, bool)> {
    let args = results.iter().filter_map(|r| r.strip_prefix("args="));
    let numbers = |r: &str| r.split(',').map(|n| n.parse::<u32>().expect("a number")).collect::<Vec<_>>();
    args.map(numbers).map(|n| (n[0], n[1] == 1)).collect()
}

/// Section 5: after a pause the next callback has old and new bytes.
#[test]
fn a_pause_gathers_what_comes() {
    let up = Upstream::text("answer");
    let gw = runner(&up);
    let script = "request_body: args; request_body: more? pause; request_body: end? get_buffer_bytes 0 0 -1 b";
    let mut conn = Conn::connect(gw.proxy);
    conn.send(format!("POST /run HTTP/1.1\r\nHost: a\r\nX-Run: {script}\r\nTransfer-Encoding: chunked\r\n\r\n"));
    for piece in ["one-", "two-", "three"] {
        conn.send(format!("{:x}\r\n{piece}\r\n", piece.len()));
    }
    let results = told(&conn.ask("0\r\n\r\n").expect(200));
    let sizes = sizes(&results);
    assert!(sizes.is_sorted(), "it only grows: {results:?}");
    assert_eq!(sizes.last(), Some(&(13, true)));
    assert_eq!(sizes.iter().filter(|(_, end)| *end).count(), 1, "one end: {results:?}");
    assert_eq!(results.last().map(String::as_str), Some("get_buffer_bytes=0 [one-two-three]"));
    assert_eq!(up.last().body, b"one-two-three");
}

/// What was let go is gone: later callbacks have only what is new.
#[test]
fn what_continues_leaves_the_buffer() {
    let up = Upstream::text("answer");
    let gw = runner(&up);
    let mut conn = Conn::connect(gw.proxy);
    let script = "request_body: args";
    conn.send(format!("POST /run HTTP/1.1\r\nHost: a\r\nX-Run: {script}\r\nTransfer-Encoding: chunked\r\n\r\n"));
    for _ in 0..50 {
        conn.send("4\r\nabcd\r\n");
    }
    let results = told(&conn.ask("0\r\n\r\n").expect(200));
    let total: u32 = sizes(&results).iter().map(|(size, _)| size).sum();
    assert_eq!(total, 200, "{results:?}");
    assert_eq!(up.last().body, b"abcd".repeat(50));
}

#[test]
fn requests_without_a_body_end_with_their_head() {
    let up = Upstream::text("answer");
    let gw = runner(&up);
    let script = "request_headers: args; request_body: args; response_headers: args";
    let results = told(&scripted(&gw, script).send().expect(200));
    assert_eq!(results.len(), 2, "no body, no callback: {results:?}");
    let ends: Vec<_> = sizes(&results).iter().map(|(_, end)| *end).collect();
    assert_eq!(ends, [true, false]);
    let results = told(&scripted(&gw, script).body("b").send().expect(200));
    assert!(!sizes(&results)[0].1, "{results:?}");
    let response = gw.request("HEAD", "/run").header("X-Run", script).send().expect(200);
    assert!(sizes(&told(&response)).last().is_some_and(|(_, end)| *end), "{response}");
}

/// Section 5: a pause with the head holds the body as well, until the stream goes on.
#[test]
fn a_pause_with_the_head_holds_the_body() {
    let up = Upstream::text("answer");
    let script = "configure: set_tick_period_milliseconds 10; tick: each replace_header_map_value 0 s:x-late s:1; tick: each continue_stream 0; \
                  request_headers: pause; request_body: more? pause; request_body: args; request_body: get_header_map_value 0 s:x-late b";
    let gw = gateway(&up, "", &filter("run", script, ""));
    let results = told(&scripted(&gw, "").body("hello").send().expect(200));
    assert_eq!(results[..2], ["replace_header_map_value=0", "continue_stream=0"], "the body came behind: {results:?}");
    assert_eq!(sizes(&results).last(), Some(&(5, true)), "{results:?}");
    let seen = up.only();
    assert_eq!((seen.header("x-late"), &seen.body[..]), (Some("1"), &b"hello"[..]));
}

/// `hold_headers`: a filter that must see the body first gets it and can still change the head, or refuse.
#[test]
fn a_held_head_can_be_changed_with_the_body_at_hand() {
    let up = Upstream::text("answer");
    let decides = "request_headers: pause; request_body: more? pause; request_body: end? get_buffer_bytes 0 0 -1 b; \
                   request_body: end? replace_header_map_value 0 s:x-decided s:yes; request_body: end? replace_header_map_value 0 s::path s:/decided; \
                   response_headers: pause; response_body: more? pause; response_body: end? replace_header_map_value 2 s:x-decided s:too; \
                   response_body: end? set_buffer_bytes 1 0 -1 s:decided";
    let refuses =
        "request_headers: pause; request_body: more? pause; request_body: end? send_local_response 403 0 0 s:no 0 0 -1";
    let hold = "hold_headers = true";
    let gw = gateway(&up, "", &(filter("decides", decides, hold) + &filter("refuses", refuses, hold)));
    let response = gw.post("/decides", "hello").send().expect(200);
    let seen = up.last();
    assert_eq!(
        (seen.target.as_str(), seen.header("x-decided"), &seen.body[..]),
        ("/decided", Some("yes"), &b"hello"[..])
    );
    assert_eq!((response.header("x-decided"), response.text().as_str()), (Some("too"), "decided"));
    assert_eq!(gw.post("/refuses", "hello").send().expect(403).text(), "no");
    assert_eq!(up.seen().len(), 1, "what is refused never gets there");
}

#[test]
fn a_gathered_body_has_a_bound() {
    let up = Upstream::start(|seen, stream| {
        let size = if seen.target.starts_with("/response") { 100_000 } else { 10 };
        respond(stream, 200, &[], &vec![b'x'; size])
    });
    let keys = "max_buffer = \"64KiB\"";
    let routes = filter("request", "request_body: more? pause", keys)
        + &filter("response", "response_body: more? pause", keys)
        + &filter("run", "request_body: more? pause", keys);
    let gw = gateway(&up, "", &routes);
    gw.post("/request", vec![b'x'; 100_000]).send().problem(413, "payload-too-large");
    gw.get("/response").send().problem(502, "upstream-too-large");
    gw.post("/request", "small").send().expect(200);
    // What a filter writes is bounded as well.
    let grows = format!("request_body: end? set_buffer_bytes 0 0 0 s:{}", "x".repeat(7000));
    let response = scripted(&gw, &grows).body(vec![b'y'; 60_000]).send();
    assert!(matches!(response.status, 200 | 413 | 502), "{response}");
}

#[test]
fn each_filter_sees_what_the_one_before_left() {
    let up = Upstream::text("answer");
    let adds = |letter: char| {
        entry(
            &(at_end("request_body", &format!("set_buffer_bytes 0 -1 0 s:{letter}"))
                + &at_end("response_body", &format!("set_buffer_bytes 1 -1 0 s:{letter}"))),
            "",
        )
    };
    let gw = gateway(&up, "", &chain("chain", &[adds('a'), adds('b'), adds('c')]));
    let response = gw.post("/chain", "body-").send().expect(200);
    assert_eq!(up.only().body, b"body-abc");
    assert_eq!(response.text(), "answercba");
}

/// A filter may give a body to what had none, with the head still at hand.
#[test]
fn compressed_and_empty_answers_stay_what_they_are() {
    let up = Upstream::start(|seen, stream| {
        let status = seen.target.rsplit('/').next().and_then(|s| s.parse().ok()).unwrap_or(200);
        if status == 200 {
            respond(stream, 200, &[("Content-Encoding", "gzip")], b"\x1f\x8b\x00\xff")
        } else {
            empty(stream, status)
        }
    });
    let gw = gateway(&up, "", &filter("pass", "response_body: set_buffer_bytes 1 -1 0 s:", ""));
    assert_eq!(gw.get("/pass/200").send().expect(200).body, b"\x1f\x8b\x00\xff");
    for status in [204, 304] {
        gw.get(&format!("/pass/{status}")).send().expect(status);
    }
}

fn empty(stream: &mut std::net::TcpStream, status: u16) -> bool {
    std::io::Write::write_all(stream, format!("HTTP/1.1 {status} Scripted\r\n\r\n").as_bytes()).is_ok()
}

#[test]
fn http2_clients_pass_the_same_filters() {
    let up = Upstream::text("answer");
    let gw = gateway(&up, "[[server.listeners]]\naddress = \"127.0.0.1:0\"\nh2c = true\n", &filter("run", "", ""));
    let client = H2::connect(gw.proxy);
    let uri = format!("http://{}/run", gw.proxy);
    let splices = at_end("request_body", "set_buffer_bytes 0 -1 0 s:-more") + &at_end("response_body", "upper 1");
    let response = client.send("POST", &uri, &[("x-run", &splices)], Some(b"body"));
    assert_eq!((response.status.as_u16(), &response.body[..]), (200, &b"ANSWER"[..]));
    assert_eq!(up.last().body, b"body-more");
    let protocol =
        "request_headers: get_property s:request%00protocol b; request_headers: get_header_map_value 0 s::authority b";
    let response = client.get(&uri, &[("x-run", protocol)]);
    let told = response.headers["x-results"].to_str().expect("text");
    assert_eq!(results(told), ["get_property=0 [HTTP/2]".to_owned(), format!("get_header_map_value=0 [{}]", gw.proxy)]);
    let local = "request_body: send_local_response 403 0 0 s:no 0 0 -1";
    let response = client.send("POST", &uri, &[("x-run", local)], Some(&[b'x'; 100_000]));
    assert_eq!((response.status.as_u16(), &response.body[..]), (403, &b"no"[..]));
}

/// What ends a pause may come while the body is on its way to the guest; the request goes on all the same.
#[test]
fn a_pause_may_end_while_the_body_comes() {
    let (up, auth) = (Upstream::text("answer"), Upstream::text("allowed"));
    let server = ONE_VM.to_owned() + &crate::support::toml::upstream("auth", auth.addr, "");
    let keys = "hold_headers = true, upstreams = [\"auth\"], pause = \"300s\"";
    let gw = gateway(&up, &server, &filter("run", "", keys));
    let script = "request_headers: http_call s:auth m::method=GET,:path=/,:authority=auth s: m: 20000 u; request_headers: pause; \
                  call: continue_stream 0";
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..20 {
                    scripted(&gw, script).body("body").send().expect(200);
                }
            });
        }
    });
}
