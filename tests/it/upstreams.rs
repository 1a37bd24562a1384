//! Upstreams that fail, and how requests are spread over those that don't.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::support::h2c::{H2, frame};
use crate::support::toml::{open_proxy, route, upstream};
use crate::support::upstream::{Gate, echo, hang, respond};
use crate::support::{Conn, Gateway, Upstream, eventually};

const H2C: &str = "[[server.listeners]]\naddress = \"127.0.0.1:0\"\nh2c = true\n";

/// Everything goes to these endpoints, with more lines of the upstream's table.
fn pool(endpoints: &[SocketAddr], more: &str) -> String {
    let list: Vec<_> = endpoints.iter().map(|e| format!("\"{e}\"")).collect();
    format!("[[upstreams]]\nname = \"up\"\nendpoints = [{}]\n{more}\n", list.join(", "))
        + &route("all", "match.path_prefix = \"/\"\ntarget.upstream = \"up\"\nauth = \"none\"")
}

/// Says which one it is.
fn named(name: &'static str) -> Upstream {
    Upstream::text(name)
}

fn spread(gw: &Gateway, requests: usize) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for i in 0..requests {
        let body = gw.get(&format!("/{i}")).send().expect(200).text();
        *counts.entry(body).or_default() += 1;
    }
    counts
}

#[test]
fn refused_is_502() {
    let gw = Gateway::start(&pool(&[Upstream::nobody()], ""));
    gw.get("/").send().problem(502, "upstream-unavailable");
    gw.post("/", "body").send().problem(502, "upstream-unavailable");
}

#[test]
fn no_answer_in_time_is_504() {
    let up = Upstream::start(|_, stream| hang(stream));
    let gw = Gateway::start(&pool(&[up.addr], "read_timeout = \"300ms\"\nretries = 0"));
    let start = Instant::now();
    gw.get("/").send().problem(504, "upstream-timeout");
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

#[test]
fn total_timeout_bounds_an_answer_that_trickles() {
    let up = Upstream::start(|_, stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n").ok();
        stream.set_read_timeout(Some(Duration::from_millis(50))).ok();
        // A byte now and then keeps every read timeout happy.
        while stream.write_all(b"x").is_ok() {
            // Ends when the gateway has closed; a time-out means that it still reads.
            match stream.peek(&mut [0]) {
                Ok(_) => return false,
                Err(_) => continue,
            }
        }
        false
    });
    let gw = Gateway::start(&(H2C.to_owned() + &pool(&[up.addr], "read_timeout = \"10s\"\ntotal_timeout = \"500ms\"")));
    let start = Instant::now();
    never_looks_whole(&gw, "trickles");
    assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
}

#[test]
fn garbage_is_502() {
    for garbage in
        ["SSH-2.0-OpenSSH_9.2\r\n\r\n", "HTTP/1.1 banana\r\n\r\n", "HTTP/1.1 200 OK\r\nno colon here\r\n\r\n"]
    {
        let up = Upstream::start(move |_, stream| {
            stream.write_all(garbage.as_bytes()).ok();
            false
        });
        let gw = Gateway::start(&pool(&[up.addr], "retries = 0"));
        gw.get("/").send().problem(502, "upstream-invalid");
    }
}

/// Nobody takes the answer for whole, on either way and over either version.
#[track_caller]
fn never_looks_whole(gw: &Gateway, what: &str) {
    for (method, body) in [("GET", None), ("POST", Some(&b"streams"[..]))] {
        let got = match body {
            Some(body) => gw.post("/", body).try_send(),
            None => gw.get("/").try_send(),
        };
        assert!(got.as_ref().map_or(true, |r| r.status >= 502), "{method}, {what}: {got:?}");
        let got = H2::connect(gw.proxy).try_send(method, "http://a/", &[], body);
        assert!(got.as_ref().map_or(true, |r| r.status.is_server_error()), "{method} over HTTP/2, {what}: {got:?}");
    }
}

#[test]
fn an_answer_cut_short_never_looks_whole() {
    for partial in [
        "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n8\r\nhalf",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\nZZ\r\n",
    ] {
        let up = Upstream::start(move |_, stream| {
            stream.write_all(partial.as_bytes()).ok();
            false
        });
        let mut gw = Gateway::start(&(H2C.to_owned() + &pool(&[up.addr], "")));
        never_looks_whole(&gw, partial);
        assert!(gw.is_running());
        let stalls = Upstream::start(move |_, stream| {
            stream.write_all(partial.as_bytes()).ok();
            hang(stream)
        });
        let gw = Gateway::start(&(H2C.to_owned() + &pool(&[stalls.addr], "read_timeout = \"300ms\"")));
        never_looks_whole(&gw, &format!("{partial} and silence"));
    }
}

/// An HTTP/2 origin whose answers are `hello` and then a reset, or the connection's end.
fn h2_origin(reset: bool) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let addr = listener.local_addr().expect("it is bound");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || break_off(stream, reset));
        }
    });
    addr
}

fn break_off(mut stream: TcpStream, reset: bool) -> std::io::Result<()> {
    stream.write_all(&frame(4, 0, 0, &[]))?;
    stream.read_exact(&mut [0; 24])?;
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head)?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        stream.read_exact(&mut vec![0; length as usize])?;
        if head[3] != 1 {
            continue;
        }
        let id = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        // `:status 200`, and no END_STREAM.
        stream.write_all(&[frame(1, 4, id, &[0x88]), frame(0, 0, id, b"hello")].concat())?;
        if !reset {
            return stream.shutdown(Shutdown::Both);
        }
        stream.write_all(&frame(3, 0, id, &[0, 0, 0, 2]))?;
    }
}

#[test]
fn an_http2_answer_cut_short_never_looks_whole() {
    for (reset, what) in [(true, "reset"), (false, "closed")] {
        let gw = Gateway::start(&(H2C.to_owned() + &pool(&[h2_origin(reset)], "http = \"h2\"")));
        never_looks_whole(&gw, what);
    }
}

#[test]
fn a_failed_connect_tries_the_next_endpoint_for_any_method() {
    let good = named("good");
    let gw = Gateway::start(&pool(&[Upstream::nobody(), good.addr], "retries = 1"));
    for _ in 0..4 {
        assert_eq!(gw.post("/", "not idempotent, yet nothing was sent").send().expect(200).text(), "good");
    }
}

#[test]
fn what_was_sent_is_sent_again_only_when_idempotent() {
    let up = Upstream::start(|_, _| false);
    let gw = Gateway::start(&pool(&[up.addr], "retries = 1"));
    let answer = gw.post("/", "charge the card").send();
    assert_eq!(answer.status, 502, "{answer}");
    assert_eq!(up.seen().len(), 1, "a POST that reached the upstream is not repeated");
    gw.get("/").send().expect(502);
    assert_eq!(up.seen().len(), 3, "a GET is tried once more");
}

#[test]
fn an_idle_connection_closed_by_the_upstream_fails_nothing() {
    let up = Upstream::start(|_, stream| {
        respond(stream, 200, &[], b"ok");
        // Keep-alive was promised; the connection closes all the same.
        false
    });
    let gw = Gateway::start(&pool(&[up.addr], ""));
    for _ in 0..20 {
        gw.get("/").send().expect(200);
    }
}

/// Nothing was sent on it yet, so that any method may take another.
#[test]
fn a_kept_connection_that_has_closed_fails_no_post() {
    let closed = Arc::new(AtomicUsize::new(0));
    let count = closed.clone();
    let up = Upstream::start(move |_, stream| {
        respond(stream, 200, &[], b"ok");
        stream.shutdown(Shutdown::Both).ok();
        count.fetch_add(1, Ordering::SeqCst);
        false
    });
    let gw = Gateway::start(&pool(&[up.addr], "retries = 0"));
    // Without a body it is the gateway's own exchange, with one it streams.
    for n in 1..=40 {
        let body = if n % 2 == 0 { "" } else { "streams" };
        gw.post("/", body).send().expect(200);
        eventually("the upstream has closed", || closed.load(Ordering::SeqCst) == n);
    }
}

/// Whether the upstream acted on it can't be known.
#[test]
fn a_post_that_a_closing_connection_took_is_not_sent_again() {
    let up = Upstream::start(|seen, stream| seen.target == "/keep" && respond(stream, 200, &[], b"ok"));
    let gw = Gateway::start(&("[server]\nthreads = 1\n".to_owned() + &pool(&[up.addr], "retries = 1")));
    for body in ["", "streams"] {
        gw.post("/keep", body).send().expect(200);
        let before = up.seen().len();
        gw.post("/close", body).send().problem(502, "upstream-invalid");
        assert_eq!(up.seen().len(), before + 1, "{body:?}");
    }
}

#[test]
fn connections_to_the_upstream_are_reused() {
    let up = Upstream::echo();
    let gw = Gateway::start(&pool(&[up.addr], ""));
    for _ in 0..10 {
        gw.get("/").send().expect(200);
    }
    assert!(up.connections() <= 3, "{} connections for 10 requests in a row", up.connections());
}

#[test]
fn round_robin_is_even_and_weights_are_kept() {
    let (a, b) = (named("a"), named("b"));
    let gw = Gateway::start(&pool(&[a.addr, b.addr], "balance = \"round-robin\""));
    assert_eq!(spread(&gw, 20), BTreeMap::from([("a".into(), 10), ("b".into(), 10)]));

    let weighted = format!(
        "[[upstreams]]\nname = \"up\"\nendpoints = [{{ address = \"{}\", weight = 3 }}, {{ address = \"{}\", weight = 1 }}]\n",
        a.addr, b.addr
    ) + &route("all", "match.path_prefix = \"/\"\ntarget.upstream = \"up\"\nauth = \"none\"");
    let gw = Gateway::start(&weighted);
    let counts = spread(&gw, 40);
    assert_eq!((counts["a"], counts["b"]), (30, 10));
}

#[test]
fn least_connections_avoids_the_busy_one() {
    let held = |name: &'static str| {
        let gate = Gate::default();
        let at_the_gate = gate.clone();
        let up = Upstream::start(move |seen, stream| {
            if seen.target == "/hold" {
                at_the_gate.wait();
            }
            respond(stream, 200, &[], name.as_bytes())
        });
        (up, gate)
    };
    let ((a, gate), (b, _shut)) = (held("a"), held("b"));
    let gw = Gateway::start(&pool(&[a.addr, b.addr], "balance = \"least-connections\""));
    let mut waiting = Vec::new();
    for n in 1..=6 {
        let mut conn = Conn::connect(gw.proxy);
        conn.send(gw.get("/hold").bytes());
        waiting.push(conn);
        eventually("it reaches an endpoint", || a.seen().len() + b.seen().len() == n);
    }
    assert_eq!((a.seen().len(), b.seen().len()), (3, 3), "held requests are spread evenly");
    gate.open();
    eventually("`a` has answered", || {
        gw.metric("upstream_requests_total", &["upstream=\"up\"", "status_class=\"2xx\""]) == 3.0
    });
    assert_eq!(spread(&gw, 10), BTreeMap::from([("a".into(), 10)]));
}

#[test]
fn consistent_hash_keeps_a_key_on_one_endpoint() {
    let ups: Vec<_> = ["a", "b", "c"].map(named).into_iter().collect();
    let addrs: Vec<_> = ups.iter().map(|u| u.addr).collect();
    let gw = Gateway::start(&pool(&addrs, "balance = \"consistent-hash\"\nhash_on = \"header:x-user\""));
    let mut used = BTreeMap::<String, usize>::new();
    for user in 0..30 {
        let ask = || gw.get("/").header("X-User", user.to_string()).send().expect(200).text();
        let first = ask();
        assert!((0..3).all(|_| ask() == first), "user {user} moved");
        *used.entry(first).or_default() += 1;
    }
    assert!(used.len() > 1, "30 users all went to {used:?}");
}

#[test]
fn an_active_check_takes_an_endpoint_out_and_back_in() {
    let healthy = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(true));
    let flag = healthy.clone();
    let sick = Upstream::start(move |seen, stream| {
        let up = flag.load(std::sync::atomic::Ordering::Relaxed);
        match seen.target.as_str() {
            "/healthz" => respond(stream, if up { 200 } else { 500 }, &[], b""),
            _ => respond(stream, 200, &[], b"sick"),
        }
    });
    let well = named("well");
    let health = "health = { http_path = \"/healthz\", interval = \"100ms\", timeout = \"1s\", healthy_after = 1, unhealthy_after = 1 }";
    let gw = Gateway::start(&pool(&[sick.addr, well.addr], health));
    eventually("both serve", || spread(&gw, 4).len() == 2);
    healthy.store(false, std::sync::atomic::Ordering::Relaxed);
    eventually("the sick one is out", || spread(&gw, 4) == BTreeMap::from([("well".into(), 4)]));
    healthy.store(true, std::sync::atomic::Ordering::Relaxed);
    eventually("it is back", || spread(&gw, 4).len() == 2);
}

#[test]
fn a_failing_endpoint_is_ejected_for_a_while() {
    let dead = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let dead_addr = dead.local_addr().expect("it is bound");
    let bad = Upstream::on(dead, |_, _| false);
    let good = named("good");
    let gw =
        Gateway::start(&pool(&[dead_addr, good.addr], "retries = 0\nejection = { failures = 2, duration = \"60s\" }"));
    eventually("two failures were seen", || {
        gw.get("/").send();
        bad.seen().len() >= 2
    });
    let before = bad.seen().len();
    assert_eq!(spread(&gw, 10), BTreeMap::from([("good".into(), 10)]));
    assert_eq!(bad.seen().len(), before, "an ejected endpoint gets nothing");
}

#[test]
fn one_bad_upstream_leaves_other_routes_alone() {
    let up = Upstream::start(echo);
    let dead = upstream("dead", Upstream::nobody(), "")
        + &route("dead", "match.path_prefix = \"/dead\"\ntarget.upstream = \"dead\"\nauth = \"none\"");
    let gw = Gateway::start(&(open_proxy(up.addr, "") + &dead));
    gw.get("/dead").send().problem(502, "upstream-unavailable");
    gw.get("/alive").send().expect(200);
}
