//! HTTP calls of filters: authorisation while a stream waits, several at once, on tick, failures, and who may be called.

use std::io::Write;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::support::toml::upstream;
use crate::support::upstream::{Gate, Seen, hang, respond};

/// Answers `/allow` with 200, `/deny` with 403, and never `/hang`.
fn auth(seen: &Seen, stream: &mut TcpStream) -> bool {
    match seen.target.as_str() {
        "/allow" => respond(stream, 200, &[("X-User", "alice")], b"welcome"),
        "/deny" => respond(stream, 403, &[("X-Why", "no")], b"go away"),
        "/close" => false,
        _ => hang(stream),
    }
}

/// The filter at `/run` before `up`, which may call `auth`.
fn calling(up: &Upstream, auth: &Upstream, config: &str, keys: &str) -> Gateway {
    let server = ONE_VM.to_owned() + &upstream("auth", auth.addr, "") + &upstream("other", auth.addr, "");
    gateway(up, &server, &filter("run", config, &format!("upstreams = [\"auth\"]{keys}")))
}

fn call(path: &str, timeout: u32) -> String {
    format!("http_call s:auth m::method=GET,:path={path},:authority=auth.test,x-from=filter s:asked m: {timeout} u")
}

/// Asks at this path with the head held, and decides by the answer.
fn asks(path: &str) -> String {
    let decides = "call: ok? get_header_map_value 6 s:x-user b; call: ok? continue_stream 0; \
                   call: denied? send_local_response 403 0 0 s:denied 0 0 -1; call: failed? send_local_response 503 0 0 s:failed 0 0 -1";
    format!("request_headers: {}; request_headers: pause; {decides}", call(path, 20_000))
}

#[test]
fn a_stream_waits_for_what_a_call_decides() {
    let (up, auth) = (Upstream::text("answer"), Upstream::start(auth));
    let gw = calling(&up, &auth, "", "");
    for body in [None, Some("body")] {
        let send = |path: &str| {
            let request = scripted(&gw, asks(path));
            body.map_or(request.clone(), |body| request.body(body)).send()
        };
        let response = send("/allow").expect(200);
        assert_eq!(response.text(), "answer");
        assert!(told(&response).contains(&"get_header_map_value=0 [alice]".to_owned()), "{response}");
        let asked = auth.last();
        assert_eq!(
            (asked.method.as_str(), asked.header("x-from"), &asked.body[..]),
            ("GET", Some("filter"), &b"asked"[..])
        );
        assert_eq!(asked.all("host"), ["auth.test"]);
        assert_eq!(up.last().body, body.unwrap_or_default().as_bytes());
        let passed = up.seen().len();
        assert_eq!(send("/deny").expect(403).text(), "denied");
        assert_eq!(send("/close").expect(503).text(), "failed");
        assert_eq!(up.seen().len(), passed, "only what is allowed passes");
    }
}

/// The answer's head, body and status are readable, whatever the effective context.
#[test]
fn the_answer_of_a_call_is_at_hand() {
    let (up, auth) = (Upstream::text("answer"), Upstream::start(auth));
    let gw = calling(&up, &auth, "", "");
    let script = format!(
        "request_headers: {}; request_headers: pause; call: args; call: get_header_map_value 6 s::status b; call: get_buffer_status 4 u u; \
         call: get_buffer_bytes 4 0 -1 b; call: get_buffer_bytes 4 3 2 b; call: get_header_map_pairs 7 b; call: get_status u b; \
         call: get_header_map_value 0 s::path b; call: add_header_map_value 6 s:x s:y; call: continue_stream 0",
        call("/deny", 20_000)
    );
    let results = told(&scripted(&gw, script).send().expect(200));
    let id = results[0].strip_prefix("http_call=0 ").expect("it began");
    assert!(id != "0", "call ids are not zero");
    let args: Vec<_> = results[1].trim_start_matches("args=").split(',').collect();
    assert_eq!((args[0], args[2], args[3]), (id, "7", "0"), "{results:?}");
    assert!(args[1].parse::<u32>().is_ok_and(|n| n >= 3), "`:status`, `content-length`, `x-why`: {results:?}");
    assert_eq!(
        results[2..7],
        [
            "get_header_map_value=0 [403]",
            "get_buffer_status=0 7 0",
            "get_buffer_bytes=0 [go%20away]",
            "get_buffer_bytes=0 [aw]",
            "get_header_map_pairs=0 []"
        ]
    );
    assert!(results[7].starts_with("get_status=0 403 "), "{results:?}");
    assert_eq!(results[8], "get_header_map_value=0 [/run/x?y=1]", "the stream's own maps as well");
    assert_ne!(results[9], "add_header_map_value=0", "an answer is not edited");
}

#[test]
fn a_call_ends_with_its_time() {
    let (up, auth) = (Upstream::text("answer"), Upstream::start(auth));
    let gw = calling(&up, &auth, "", "");
    let script = format!(
        "request_headers: {}; request_headers: pause; call: args; call: failed? send_local_response 504 0 0 s:late 0 0 -1",
        call("/hang", 50)
    );
    let response = scripted(&gw, script).send().expect(504);
    assert_eq!(response.text(), "late");
    assert!(
        told(&response).iter().any(|r| r.starts_with("args=") && r.ends_with(",0,0,0")),
        "all counts are zero: {response}"
    );
}

#[test]
fn an_upstream_that_nobody_listens_at_fails_the_call() {
    let up = Upstream::text("answer");
    let server = upstream("auth", Upstream::nobody(), "");
    let gw = gateway(&up, &server, &filter("run", "", "upstreams = [\"auth\"]"));
    assert_eq!(scripted(&gw, asks("/allow")).send().expect(503).text(), "failed");
}

#[test]
fn several_calls_are_under_way_at_once() {
    let gate = Gate::default();
    let up = Upstream::text("answer");
    let auth = Upstream::start({
        let gate = gate.clone();
        move |seen, stream| {
            gate.wait();
            respond(stream, 200, &[], seen.target.as_bytes())
        }
    });
    let gw = calling(&up, &auth, "", "");
    let calls: String = (0..5).map(|i| format!("request_headers: {}; ", call(&format!("/{i}"), 20_000))).collect();
    let script =
        format!("{calls}request_headers: pause; call: get_buffer_bytes 4 0 -1 b; call: all? continue_stream 0");
    let waiting = std::thread::spawn({
        let request = scripted(&gw, script);
        move || request.send()
    });
    eventually("all five are under way", || auth.seen().len() == 5);
    assert!(up.seen().is_empty());
    gate.open();
    let results = told(&waiting.join().expect("it was answered").expect(200));
    let ids: std::collections::HashSet<_> = results.iter().filter_map(|r| r.strip_prefix("http_call=0 ")).collect();
    assert_eq!(ids.len(), 5, "ids are unique: {results:?}");
    let mut bodies: Vec<_> = results.iter().filter_map(|r| r.strip_prefix("get_buffer_bytes=0 ")).collect();
    bodies.sort_unstable();
    assert_eq!(bodies, ["[/0]", "[/1]", "[/2]", "[/3]", "[/4]"], "each answer once: {results:?}");
}

#[test]
fn many_streams_wait_in_one_vm() {
    let gate = Gate::default();
    let up = Upstream::text("answer");
    let auth = Upstream::start({
        let gate = gate.clone();
        move |_, stream| {
            gate.wait();
            respond(stream, 200, &[("X-User", "bob")], b"")
        }
    });
    let gw = calling(&up, &auth, "", "");
    let waiting: Vec<_> = (0..20)
        .map(|_| {
            let request = scripted(&gw, asks("/allow"));
            std::thread::spawn(move || request.send())
        })
        .collect();
    eventually("all wait", || auth.seen().len() == 20);
    // A VM whose streams all wait serves others.
    gw.get("/run").send().expect(200);
    gate.open();
    for waiting in waiting {
        waiting.join().expect("it was answered").expect(200);
    }
}

#[test]
fn the_root_calls_on_tick() {
    let (up, auth) = (Upstream::text("answer"), Upstream::start(auth));
    let config = format!(
        "configure: set_tick_period_milliseconds 10; tick: {}; call: get_buffer_bytes 4 0 -1 b",
        call("/allow", 20_000)
    );
    let gw = calling(&up, &auth, &config, "");
    assert_eq!(eventually_kept(&gw, "/run", "call", || ()), ["get_buffer_bytes=0 [welcome]"]);
    eventually("again and again", || auth.seen().len() > 2);
}

#[test]
fn answers_wait_for_calls_as_well() {
    let (up, auth) = (Upstream::text("answer"), Upstream::start(auth));
    let gw = calling(&up, &auth, "", "");
    let script = |path: &str| {
        format!(
            "response_headers: {}; response_headers: pause; call: ok? add_header_map_value 2 s:x-late s:1; call: ok? continue_stream 1; \
             call: denied? send_local_response 451 0 0 s:taken%20back 0 0 -1",
            call(path, 20_000)
        )
    };
    let response = scripted(&gw, script("/allow")).send().expect(200);
    assert_eq!((response.header("x-late"), response.text().as_str()), (Some("1"), "answer"));
    assert_eq!(scripted(&gw, script("/deny")).send().expect(451).text(), "taken back");
}

#[test]
fn a_body_waits_for_a_call() {
    let (up, auth) = (Upstream::text("answer"), Upstream::start(auth));
    let gw = calling(&up, &auth, "", "");
    let script = format!(
        "request_body: pause; request_body: end? {}; call: ok? set_buffer_bytes 0 -1 0 s:-checked; call: ok? continue_stream 0",
        call("/allow", 20_000)
    );
    scripted(&gw, script).body("body").send().expect(200);
    assert_eq!(up.last().body, b"body-checked");
}

/// What a filter lets go between two pieces of a body flows at once, and not with the next piece.
#[test]
fn a_body_goes_on_as_soon_as_its_filter_does() {
    let gate = Gate::default();
    let up = Upstream::start({
        let gate = gate.clone();
        move |_, stream| {
            let first = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n";
            if stream.write_all(first).is_err() {
                return false;
            }
            gate.wait();
            stream.write_all(b"6\r\nsecond\r\n0\r\n\r\n").is_ok()
        }
    });
    let auth = Upstream::start(auth);
    let gw = calling(&up, &auth, "", "");
    let script = format!(
        "response_body: more? {}; response_body: more? pause; call: ok? set_buffer_bytes 1 0 0 s:checked-; call: ok? continue_stream 1",
        call("/allow", 20_000)
    );
    let mut conn = crate::support::Conn::connect(gw.proxy);
    conn.send(scripted(&gw, script).bytes());
    assert_eq!(conn.head().expect("a head").0, 200);
    let first = conn.take(18).expect("the first piece, while the second is held back");
    assert_eq!(String::from_utf8_lossy(&first), "D\r\nchecked-first\r\n");
    gate.open();
    // Whether its end comes with it, and so whether the filter pauses again, is the network's to say.
    let rest = conn.take(16).expect("the rest");
    assert!(String::from_utf8_lossy(&rest).contains("secon"), "{:?}", String::from_utf8_lossy(&rest));
}

/// Deny by default: what the handler was not granted is never asked.
#[test]
fn only_granted_upstreams_are_called() {
    let (up, auth) = (Upstream::text("answer"), Upstream::start(auth));
    let gw = calling(&up, &auth, "", "");
    let local = auth.addr.to_string();
    for name in ["other", "up", "nowhere", "", &local, "http://127.0.0.1", "auth%00", "AUTH"] {
        let script =
            format!("request_headers: http_call s:{name} m::method=GET,:path=/allow,:authority=a 0 0 0 0 1000 u");
        let results = run(&gw, script);
        assert!(matches!(results[0].as_str(), "http_call=2 -" | "http_call=10 -"), "{name}: {results:?}");
    }
    let none = gateway(&up, &upstream("auth", auth.addr, ""), &filter("run", "", ""));
    let results = run(&none, format!("request_headers: {}", call("/allow", 1000)));
    assert!(matches!(results[0].as_str(), "http_call=2 -" | "http_call=10 -"), "{results:?}");
    assert!(auth.seen().is_empty());
}

/// What a filter puts into a call can't make it two.
#[test]
fn calls_cannot_smuggle() {
    let (up, auth) = (Upstream::text("answer"), Upstream::start(auth));
    let gw = calling(&up, &auth, "", ", pause = \"500ms\"");
    for pairs in [
        ":method=GET,:path=/allow%20HTTP/1.1%0d%0aEvil:1,:authority=a",
        ":method=GET%20/evil,:path=/allow,:authority=a",
        ":method=GET,:path=/allow,:authority=a%0d%0aEvil:1",
        ":method=GET,:path=/allow,:authority=a,x-a%0d%0aEvil=1",
        ":method=GET,:path=/allow,:authority=a,x-a=1%0d%0aEvil:1",
        ":method=POST,:path=/allow,:authority=a,transfer-encoding=chunked,content-length=3",
        ":method=CONNECT,:path=/allow,:authority=a",
        ":method=GET,:path=http%3a//elsewhere/,:authority=a",
    ] {
        let script = format!(
            "request_headers: http_call s:auth m:{pairs} s:body 0 0 300 u; request_headers: pause; call: continue_stream 0"
        );
        let response = scripted(&gw, script).send();
        // Refused with a status, the stream stays paused until its time is up.
        assert!(matches!(response.status, 200 | 502 | 504), "{pairs}: {response}");
    }
    let seen = auth.seen();
    assert!(
        seen.iter().all(|s| s.header("evil").is_none() && s.target.starts_with('/') && !s.target.contains("evil")),
        "{seen:?}"
    );
}

/// A client that leaves takes its stream along; the answer of its call finds nobody and hurts nobody.
#[test]
fn a_client_that_leaves_ends_its_waiting_stream() {
    let gate = Gate::default();
    let up = Upstream::text("answer");
    let auth = Upstream::start({
        let gate = gate.clone();
        move |_, stream| {
            gate.wait();
            respond(stream, 200, &[], b"")
        }
    });
    let gw = calling(&up, &auth, "", "");
    let mut conn = crate::support::Conn::connect(gw.proxy);
    conn.send(scripted(&gw, asks("/allow")).bytes());
    eventually("it asks", || auth.seen().len() == 1);
    drop(conn);
    eventually("the gateway sees that it left", || gw.log().contains("\"status\":499"));
    gate.open();
    for _ in 0..5 {
        gw.get("/run").send().expect(200);
    }
    assert!(up.seen().iter().all(|s| !s.mentions("http_call")), "the one that left never went on");
}

/// A filter can't hold a stream for ever.
#[test]
fn a_stream_that_nobody_resumes_ends_with_its_pause() {
    let (up, auth) = (Upstream::text("answer"), Upstream::start(auth));
    let gw = calling(&up, &auth, "", ", pause = \"200ms\"");
    for script in ["request_headers: pause", "request_body: pause", "response_headers: pause"] {
        scripted(&gw, script).body("body").send().problem(504, "handler-timeout");
    }
    gw.get("/run").send().expect(200);
}

/// The bound of calls under way: the rest is refused with a status, and what was begun ends.
#[test]
fn calls_are_bounded() {
    let up = Upstream::text("answer");
    let auth = Upstream::start(|_, stream| respond(stream, 200, &[], b""));
    let gw = calling(&up, &auth, "", "");
    let one = "request_headers: http_call s:auth m::method=GET,:path=/,:authority=a 0 0 0 0 0 u; ";
    let results = run(&gw, one.repeat(80));
    assert_eq!(results.len(), 80);
    assert!(results.iter().all(|r| r.starts_with("http_call=0 ") || r == "http_call=10 -"), "{results:?}");
    gw.get("/run").send().expect(200);
}

/// Trailers and bodies of calls.
#[test]
fn a_call_may_have_a_body() {
    let (up, auth) = (
        Upstream::text("answer"),
        Upstream::start(|seen: &Seen, stream: &mut TcpStream| {
            let answer = [
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\ngot \r\n",
                format!("{:x}\r\n", seen.body.len()).as_bytes(),
                &seen.body,
                b"\r\n0\r\n\r\n",
            ]
            .concat();
            stream.write_all(&answer).is_ok()
        }),
    );
    let gw = calling(&up, &auth, "", "");
    let script = "request_headers: http_call s:auth m::method=POST,:path=/,:authority=a s:some%20body 0 0 5000 u; request_headers: pause; \
                  call: get_buffer_bytes 4 0 -1 b; call: continue_stream 0";
    assert_eq!(run(&gw, script)[1], "get_buffer_bytes=0 [got%20some%20body]");
}

/// What a filter waits for in an event is not done by the thread that events come from.
#[test]
fn values_can_be_kept_when_an_answer_comes() {
    let (up, auth) = (Upstream::text("answer"), Upstream::start(auth));
    let gw = calling(&up, &auth, "", "");
    let set = "call_foreign_function s:wasmgate_kv_set s:%00%00%00%00%00%00%00%00%01%00%00%00kv b";
    let begins =
        format!("request_headers: {}; request_headers: pause; call: continue_stream 0", call("/allow", 20_000));
    // Behind many short ones.
    for _ in 0..200 {
        scripted(&gw, &begins).send().expect(200);
    }
    for _ in 0..20 {
        let results = run(&gw, format!("{begins}; call: {set}"));
        assert!(results.contains(&"call_foreign_function=0 []".to_owned()), "{results:?}");
    }
}

/// A call to one that never answers, at the end of which this counts.
fn never(ended: &Arc<AtomicUsize>) -> Upstream {
    let ended = ended.clone();
    Upstream::start(move |_, stream| {
        hang(stream);
        ended.fetch_add(1, Ordering::Relaxed);
        false
    })
}

#[test]
fn calls_end_with_a_vm_that_fails() {
    let (up, ended) = (Upstream::text("answer"), Arc::new(AtomicUsize::new(0)));
    let auth = never(&ended);
    let gw = calling(&up, &auth, "", ", pause = \"300s\"");
    std::thread::scope(|scope| {
        let waiting = scope
            .spawn(|| scripted(&gw, format!("request_headers: {}; request_headers: pause", call("/", 60_000))).send());
        eventually("the call is under way", || auth.connections() == 1);
        scripted(&gw, "request_headers: trap").send().problem(502, "handler-trap");
        waiting.join().expect("an answer").problem(502, "handler-trap");
    });
    eventually("the call is broken off", || ended.load(Ordering::Relaxed) == 1);
}

/// A handler's calls are counted together, however often its VMs are replaced.
#[test]
fn a_new_vm_brings_no_new_calls() {
    let (up, ended) = (Upstream::text("answer"), Arc::new(AtomicUsize::new(0)));
    let auth = never(&ended);
    let gw = calling(&up, &auth, "", ", memory = \"32MiB\"");
    let storm =
        "request_headers: ".to_owned() + &format!("{}; request_headers: ", call("/", 60_000)).repeat(50) + "grow 200";
    let begun: usize =
        (0..10).map(|_| run(&gw, &storm).iter().filter(|result| result.starts_with("http_call=0 ")).count()).sum();
    assert_eq!(begun, 256, "as many as one VM may have");
}
