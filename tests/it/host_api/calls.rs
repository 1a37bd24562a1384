//! Requests to upstreams: what they carry, who may be asked, and what becomes of those that get no answer.

use super::*;
use crate::support::upstream::{Gate, hang, respond};
use crate::support::{Conn, eventually};

/// The guests with the upstream `near` granted; `far` is there and is not.
fn calling(near: std::net::SocketAddr, keys: &str, more: &str) -> Gateway {
    // Waiting guests have their owner's places.
    let server = "[engine]\nper_owner = 32\nqueue_timeout = \"20s\"\n".to_owned()
        + &upstream("near", near, "")
        + &upstream("far", near, "");
    gateway(&server, &format!(", upstreams = [\"near\"]{keys}"), more)
}

#[test]
fn a_guest_calls_an_upstream() {
    let near = Upstream::start(|seen, stream| match seen.target.as_str() {
        "/gone" => respond(stream, 404, &[], b""),
        _ => respond(stream, 201, &[("X-Two", "1"), ("X-Two", "2")], &seen.body),
    });
    let gw = calling(near.addr, "", "");
    for abi in ABIS {
        let path = format!("/{abi}");
        let results = run(
            &gw,
            &path,
            "head; http_call near 9000 POST /a?b=%20 the-body x-from:guest; head; body; http_call near 0 GET /gone; body",
        );
        assert_eq!(results[..2], ["head=-1", "http_call=201"], "{abi}: {results:?}");
        let text = results.join("\n");
        assert!(text.contains("x-two: 1\nx-two: 2\n"), "{abi}: {text}");
        assert!(text.contains("body=8 [the-body]\nhttp_call=404\nbody=0 []"), "{abi}: {text}");
        let seen = near.seen();
        let asked = &seen[seen.len() - 2];
        assert_eq!(
            (asked.method.as_str(), asked.target.as_str(), &asked.body[..]),
            ("POST", "/a?b=%20", &b"the-body"[..])
        );
        assert_eq!((asked.header("x-from"), asked.all("host")), (Some("guest"), vec!["near"]));
        // What an earlier request got is not there for the next.
        assert_eq!(run(&gw, &path, "head; body"), ["head=-1", "body=-1"], "{abi}");
    }
    run(&gw, "/http", "http_call near 9000 GET / - HOST:elsewhere.test");
    assert_eq!(near.last().all("host"), ["elsewhere.test"]);
}

/// Deny by default.
#[test]
fn only_granted_upstreams_are_called() {
    let near = Upstream::text("answer");
    let gw = calling(near.addr, "", "");
    let local = near.addr.to_string();
    for abi in ABIS {
        for name in ["far", "nowhere", "NEAR", &local, "*600"] {
            assert_eq!(
                run(&gw, &format!("/{abi}"), format!("http_call {name} 100 GET / - host:a; head")),
                ["http_call=-2", "head=-1"],
                "{abi} {name}"
            );
        }
    }
    assert_eq!(run(&gw, "/other", "http_call near 100 GET /"), ["http_call=-2"]);
    assert!(near.seen().is_empty());
}

/// What a guest puts into a request can't make it two, nor another than it says.
#[test]
fn requests_are_what_they_say() {
    let near = Upstream::text("answer");
    let gw = calling(near.addr, "", "");
    for head in ["-", "GET", "GET/", "*70000"] {
        assert_eq!(run(&gw, "/command", format!("http_raw near {head}")), ["http_raw=-3"], "{head}");
    }
    for call in [
        "CONNECT / - -",
        "GET http://elsewhere/ - -",
        "GET nowhere - -",
        "GET /#a - -",
        "G\rT / - -",
        "GET / - host:a/b",
        "GET / - :path:/b",
        "GET / - noname",
        "GET / - x\r:1",
    ] {
        assert_eq!(run(&gw, "/command", format!("http_call near 100 {call}")), ["http_call=-3"], "{call}");
    }
    assert!(near.seen().is_empty());
    let lines =
        "http_call near 9000 POST / body transfer-encoding:chunked; http_call near 9000 POST / body content-length:99";
    assert_eq!(run(&gw, "/command", lines), ["http_call=200"; 2], "framing is the gateway's");
    assert!(near.seen().iter().all(|seen| seen.body == b"body"));
}

#[test]
fn who_gives_no_answer_is_told_from_who_gives_a_late_one() {
    let slow = Upstream::start(|_, stream| hang(stream));
    let gw = calling(slow.addr, "", "");
    for abi in ABIS {
        assert_eq!(run(&gw, &format!("/{abi}"), "http_call near 50 GET /; head"), ["http_call=-6", "head=-1"], "{abi}");
    }
    let dead = calling(Upstream::nobody(), "", "");
    for abi in ABIS {
        assert_eq!(
            run(&dead, &format!("/{abi}"), "http_call near 20000 GET /; head"),
            ["http_call=-7", "head=-1"],
            "{abi}"
        );
    }
}

/// A call never outlasts its run.
#[test]
fn a_call_ends_with_the_deadline() {
    let slow = Upstream::start(|_, stream| hang(stream));
    let more: String = ABIS
        .iter()
        .map(|abi| {
            let lines = format!(
                "match.path = \"/short/{abi}\"\ntarget.handler = {{ module = \"acme/{abi}\", wall = \"300ms\", upstreams = [\"near\"] }}\nauth = \"none\""
            );
            route(&format!("short-{abi}"), lines)
        })
        .collect();
    let gw = calling(slow.addr, "", &more);
    for abi in ABIS {
        script(&gw, &format!("/short/{abi}"), "http_call near 0 GET /").send().problem(504, "handler-timeout");
    }
}

/// Bodies of answers are within the handler's `max_buffer`.
#[test]
fn an_answer_is_bounded() {
    let near =
        Upstream::start(|seen, stream| respond(stream, 200, &[], &vec![b'x'; seen.target[1..].parse().unwrap_or(0)]));
    let gw = calling(near.addr, ", max_buffer = \"64KiB\"", "");
    for abi in ABIS {
        let results =
            run(&gw, &format!("/{abi}"), "http_call near 20000 GET /65536; http_call near 20000 GET /65537; body");
        assert_eq!(results, ["http_call=200", "http_call=-7", "body=-1"], "{abi}");
        let results =
            run(&gw, &format!("/{abi}"), "http_call near 20000 POST /1 *65536; http_call near 20000 POST /1 *65537");
        assert_eq!(results, ["http_call=200", "http_call=-3"], "{abi}: a request's too");
    }
}

/// Who waits computes nothing: others have its permit.
#[test]
fn waiting_guests_hold_nobody_up() {
    let gate = Gate::default();
    let near = Upstream::start({
        let gate = gate.clone();
        move |_, stream| {
            gate.wait();
            respond(stream, 200, &[], b"")
        }
    });
    let gw = calling(near.addr, "", "");
    std::thread::scope(|scope| {
        let waiting: Vec<_> = (0..8)
            .map(|n| {
                let gw = &gw;
                scope.spawn(move || run(gw, &format!("/{}", ABIS[n % 3]), "http_call near 0 GET /"))
            })
            .collect();
        eventually("all wait", || near.seen().len() == 8);
        for abi in ABIS {
            assert_eq!(run(&gw, &format!("/{abi}"), "kv_set k 1 0"), ["kv_set=0"]);
        }
        gate.open();
        for waiting in waiting {
            assert_eq!(waiting.join().expect("it was answered"), ["http_call=200"]);
        }
    });
}

/// A guest whose client has gone stops waiting.
#[test]
fn a_client_that_leaves_ends_the_call() {
    let slow = Upstream::start(|_, stream| hang(stream));
    let gw = calling(slow.addr, "", "");
    for (n, abi) in ABIS.iter().enumerate() {
        let mut conn = Conn::connect(gw.proxy);
        conn.send(script(&gw, &format!("/{abi}"), "http_call near 0 GET /").bytes());
        eventually("it waits", || slow.seen().len() == n + 1);
        drop(conn);
        eventually("its guest has stopped", || gw.metric("wasm_instances", &["state=\"running\""]) == 0.0);
    }
}
