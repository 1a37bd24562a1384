//! Hostile HTTP/1.1 clients, row by row of the threat table. The upstream never counts differently than the gateway.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::support::toml::{keyed_proxy, open_proxy, route, upstream};
use crate::support::{Conn, DEADLINE, Gateway, Response, Upstream, eventually, poll, raise_open_files};

fn ask(gw: &Gateway, bytes: impl AsRef<[u8]>) -> Response {
    Conn::connect(gw.proxy).ask(bytes)
}

/// Refused on a connection that closes afterwards, and nothing of it reached the upstream.
#[track_caller]
fn refused(gw: &Gateway, up: &Upstream, bytes: &str, status: u16, slug: &str) {
    let before = up.seen().len();
    let mut conn = Conn::connect(gw.proxy);
    conn.ask(bytes).problem(status, slug);
    assert!(conn.closes(), "the connection of a refused request may not be used on: {bytes:?}");
    assert_eq!(up.seen().len(), before, "{bytes:?}");
}

#[test]
fn framing_that_two_readers_could_count_differently_is_refused() {
    let up = Upstream::echo();
    let gw = Gateway::start(&open_proxy(up.addr, ""));
    let smuggled = "0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";
    for head in [
        // RFC 9112 section 6.1 allows to refuse both framings at once, and section 6.3 says what an attack it is.
        "Content-Length: 5\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 5",
        "Content-Length: 5\r\nContent-Length: 6",
        "Content-Length: 5\r\nContent-Length: 5",
        "Content-Length: 5, 5",
        "Content-Length: +5",
        "Content-Length: 0x5",
        "Content-Length: 5 5",
        "Content-Length: -1",
        "Content-Length: 99999999999999999999",
        "Content-Length:",
        "Transfer-Encoding: gzip, chunked",
        "Transfer-Encoding: gzip",
        "Transfer-Encoding: chunked, gzip",
        "Transfer-Encoding: chunked, chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding: identity",
        "Transfer-Encoding: \"chunked\"",
        "Transfer-Encoding:\x0bchunked",
        "Transfer-Encoding : chunked",
        "X: y\r\n Transfer-Encoding: chunked",
        "X: y\r\n\tfolded",
        "X: a\rContent-Length: 5",
        "X: a\0b",
        "no colon",
        ": no name",
        "Na me: value",
    ] {
        refused(&gw, &up, &format!("POST / HTTP/1.1\r\nHost: a\r\n{head}\r\n\r\n{smuggled}"), 400, "bad-request");
    }
    refused(
        &gw,
        &up,
        &format!("POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{smuggled}"),
        400,
        "bad-request",
    );
    gw.get("/after").send().expect(200);
    assert_eq!(up.only().target, "/after");
}

#[test]
fn broken_chunks_never_reach_the_upstream_as_a_whole_request() {
    let up = Upstream::echo();
    let mut gw = Gateway::start(&open_proxy(up.addr, ""));
    for body in [
        "zz\r\nhello\r\n0\r\n\r\n",
        "5\r\nhelloX\r\n0\r\n\r\n",
        "-5\r\nhello\r\n0\r\n\r\n",
        "fffffffffffffffff\r\nx",
        "5 5\r\nhello\r\n0\r\n\r\n",
    ] {
        let mut conn = Conn::connect(gw.proxy);
        conn.send(format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{body}"));
        conn.shutdown_write();
        if let Ok(response) = conn.try_read("POST") {
            assert!(response.status >= 400, "{body:?}: {response}");
        }
    }
    assert!(gw.is_running());
    gw.get("/after").send().expect(200);
    assert_eq!(up.seen().len(), 1, "{:?}", up.seen());
}

#[test]
fn a_request_needs_exactly_one_valid_host() {
    let up = Upstream::echo();
    let gw = Gateway::start(&open_proxy(up.addr, ""));
    for head in [
        "",
        "Host: a\r\nHost: b\r\n",
        "Host: a\r\nHost: a\r\n",
        "Host: a b\r\n",
        "Host: a/b\r\n",
        "Host: user@a\r\n",
        "Host:\r\n",
    ] {
        ask(&gw, format!("GET / HTTP/1.1\r\n{head}\r\n")).problem(400, "bad-request");
    }
    assert!(up.seen().is_empty(), "{:?}", up.seen());
}

#[test]
fn request_lines_are_taken_by_the_letter() {
    let up = Upstream::echo();
    let gw = Gateway::start(&open_proxy(up.addr, ""));
    for line in [
        "GET  / HTTP/1.1",
        "GET / HTTP/1.1 x",
        "GET /",
        "GET / HTTP/3.0",
        "GET / http/1.1",
        "G@T / HTTP/1.1",
        "GET noslash HTTP/1.1",
    ] {
        let response = ask(&gw, format!("{line}\r\nHost: a\r\n\r\n"));
        assert!((400..=505).contains(&response.status) && response.status != 502, "{line}: {response}");
    }
    // A tunnel through the gateway is not on offer.
    let connect = ask(&gw, "CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example:443\r\n\r\n");
    assert!(matches!(connect.status, 400 | 404 | 405 | 501), "{connect}");
    assert!(up.seen().is_empty(), "{:?}", up.seen());
}

#[test]
fn ambiguous_paths_are_refused_and_routing_sees_what_the_upstream_gets() {
    let up = Upstream::echo();
    let config = upstream("up", up.addr, "")
        + &route("open", "match.path_prefix = \"/open/\"\ntarget.upstream = \"up\"\nauth = \"none\"")
        + &route("guarded", "match.path_prefix = \"/guarded/\"\ntarget.upstream = \"up\"\nauth = \"key\"");
    let gw = Gateway::start(&config);
    for path in [
        "/open/../guarded/x",
        "/open/%2e%2e/guarded/x",
        "/open/.%2E/guarded/x",
        "/open/..%2fguarded/x",
        "/open/..;/guarded/x",
        "/open//x",
        "/open/./x",
        "/open/x%00",
        "/open/x%0d%0aX-Evil:1",
        "/open/..\\guarded",
        "/open/..%5cguarded",
        "/open/%zz",
    ] {
        let response = ask(&gw, format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n"));
        response.problem(400, "ambiguous-path");
    }
    // Other spellings of a guarded path stay guarded.
    for path in ["/guarded/x", "/%67uarded/x", "/guarde%64/x", "/guarded/x?/open/"] {
        ask(&gw, format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n")).problem(401, "unauthorized");
    }
    assert!(up.seen().is_empty());
    ask(&gw, "GET /open/%61%2Fb HTTP/1.1\r\nHost: a\r\n\r\n").expect(200);
    assert_eq!(up.only().target, "/open/a%2Fb", "the canonical spelling goes on, and `%2F` is no slash");
}

#[test]
fn hop_by_hop_headers_end_here_and_nominate_nothing_of_ours() {
    let up = Upstream::echo();
    let gw = Gateway::start(&keyed_proxy(up.addr, "request_headers.set = { x-tenant = \"from-the-gateway\" }"));
    let key = gw.key();
    let request = gw
        .get("/")
        .key(&key)
        .header("Connection", "keep-alive, x-api-key, x-tenant, x-request-id, x-mine")
        .header("Keep-Alive", "timeout=5")
        .header("Proxy-Connection", "keep-alive")
        .header("Proxy-Authorization", "Basic eDp5")
        .header("TE", "trailers, deflate")
        .header("X-Mine", "nominated");
    request.send().expect(200);
    let seen = up.only();
    for gone in ["keep-alive", "proxy-connection", "proxy-authorization", "x-mine", "x-api-key"] {
        assert_eq!(seen.header(gone), None, "`{gone}` went on: {seen:?}");
    }
    assert_eq!(seen.header("x-tenant"), Some("from-the-gateway"), "a client may not strip the gateway's headers");
    assert!(seen.header("x-request-id").is_some());
}

#[test]
fn our_own_headers_cannot_be_forged() {
    let up = Upstream::echo();
    let gw = Gateway::start(&open_proxy(up.addr, ""));
    let request = gw.get("/").header("X-Wasmgate-Owner", "forged-value").header("X-Wasmgate-Tier", "forged-value");
    let request = request
        .header("X-Forwarded-For", "6.6.6.6")
        .header("Forwarded", "for=6.6.6.6")
        .header("X-Forwarded-Host", "forged-value");
    request.send().expect(200);
    let seen = up.only();
    assert!(!seen.mentions("forged-value") && !seen.mentions("6.6.6.6"), "{seen:#?}");
    assert_eq!(seen.all("x-forwarded-for"), ["127.0.0.1"]);
}

#[test]
fn heads_over_the_limits_are_431() {
    let up = Upstream::echo();
    let gw = Gateway::start(&open_proxy(up.addr, ""));
    let many = |n: usize| (0..n).map(|i| format!("X-{i}: 1\r\n")).collect::<String>();
    ask(&gw, format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", many(99))).expect(200);
    refused(&gw, &up, &format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", many(100)), 431, "headers-too-large");
    ask(&gw, format!("GET / HTTP/1.1\r\nHost: a\r\nX-Big: {}\r\n\r\n", "x".repeat(31 << 10))).expect(200);
    refused(
        &gw,
        &up,
        &format!("GET / HTTP/1.1\r\nHost: a\r\nX-Big: {}\r\n\r\n", "x".repeat(32 << 10)),
        431,
        "headers-too-large",
    );
    refused(&gw, &up, &format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(33 << 10)), 431, "headers-too-large");
    // Without an end of line or of head in sight, the answer comes all the same.
    refused(
        &gw,
        &up,
        &format!("GET / HTTP/1.1\r\nHost: a\r\nX-Big: {}", "x".repeat(64 << 10)),
        431,
        "headers-too-large",
    );
}

#[test]
fn bodies_over_the_limit_are_413_before_their_end() {
    let up = Upstream::echo();
    let gw = Gateway::start(&open_proxy(up.addr, "max_body = \"1KiB\""));
    // Announced: not a byte of the body has been sent.
    refused(&gw, &up, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1025\r\n\r\n", 413, "payload-too-large");
    refused(
        &gw,
        &up,
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9999999999999\r\nExpect: 100-continue\r\n\r\n",
        413,
        "payload-too-large",
    );
    // Chunked: refused while more could come.
    let mut conn = Conn::connect(gw.proxy);
    conn.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
    let chunk = format!("200\r\n{}\r\n", "x".repeat(512));
    conn.send(chunk.repeat(3));
    conn.read().problem(413, "payload-too-large");
    gw.post("/", vec![b'x'; 1024]).send().expect(200);
}

#[test]
fn slow_heads_are_408_at_the_total_deadline() {
    let up = Upstream::echo();
    let gw = Gateway::start(&format!("[server]\nheader_timeout = \"500ms\"\n{}", open_proxy(up.addr, "")));
    for first in ["GET / HTTP/1.1\r\nHost: a\r\nX: ", "G"] {
        let start = Instant::now();
        let mut conn = Conn::connect(gw.proxy);
        conn.send(first);
        // A byte now and then does not extend the deadline.
        let mut drip = Conn::connect(gw.proxy);
        drip.send("GET / HTTP/1.1\r\nX: ");
        let answer = std::thread::scope(|s| {
            s.spawn(|| {
                crate::support::poll(Duration::from_secs(5), || {
                    drip.try_send(b"x").is_err() || start.elapsed() > Duration::from_secs(2)
                })
            });
            conn.read()
        });
        answer.problem(408, "request-timeout");
        assert!(start.elapsed() >= Duration::from_millis(400), "{:?}", start.elapsed());
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
        assert!(conn.closes());
        assert_eq!(drip.read().status, 408);
    }
    assert!(up.seen().is_empty());
}

#[test]
fn slow_bodies_are_408() {
    let up = Upstream::echo();
    let gw = Gateway::start(&format!("[server]\nbody_timeout = \"500ms\"\n{}", open_proxy(up.addr, "")));
    let start = Instant::now();
    let mut conn = Conn::connect(gw.proxy);
    conn.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhalf");
    conn.read().problem(408, "request-timeout");
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    assert!(up.seen().iter().all(|s| s.body.is_empty()), "half a body is no body");
}

/// A byte now and then keeps every read in time; the body as a whole is late all the same, whoever reads it.
#[test]
fn dripping_bodies_are_408() {
    let up = Upstream::echo();
    let routes =
        open_proxy(up.addr, "") + &route("api", "match.path_prefix = \"/api/\"\ntarget.api = true\nauth = \"key\"");
    let gw = Gateway::start(&format!("[server]\nbody_timeout = \"500ms\"\n{routes}"));
    let key = gw.key();
    for target in ["/", "/api/wasm/validate"] {
        let mut conn = Conn::connect(gw.proxy);
        let head = "Host: a\r\nContent-Type: application/wasm\r\nContent-Length: 9999";
        conn.send(format!("POST {target} HTTP/1.1\r\n{head}\r\nX-Api-Key: {key}\r\n\r\n"));
        assert!(poll(DEADLINE, || !conn.try_write(b"x")), "{target} goes on reading");
    }
    // Who still writes may lose the answer to the reset.
    eventually("both were refused as late", || gw.log().matches("\"refused\":\"request-timeout\"").count() == 2);
}

/// A burst waits in the listen queue; what the system drops there comes again only after a second.
#[test]
fn a_burst_of_connections_is_taken_at_once() {
    let mut gw = Gateway::start("");
    gw.signal("STOP");
    let within = Duration::from_millis(500);
    let burst: Vec<_> = (0..500).map(|_| TcpStream::connect_timeout(&gw.proxy, within)).collect();
    gw.signal("CONT");
    let lost = burst.iter().filter(|conn| conn.is_err()).count();
    assert_eq!(lost, 0, "of {} connections", burst.len());
    assert!(gw.is_running());
    gw.get("/").send().problem(404, "not-found");
}

/// Dribbling clients of a slowloris: most never end their head, each fourth never its body, for which the gateway holds
/// a connection to the upstream as well.
struct Slow {
    streams: Vec<TcpStream>,
    turn: usize,
}

impl Slow {
    fn connect(gw: &Gateway, count: usize) -> Self {
        let heads = ["GET / HTTP/1.1\r\nHost: a\r\nX: ", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9999\r\n\r\n"];
        let open = |n: usize| {
            let mut stream = TcpStream::connect(gw.proxy).expect("the listener accepts");
            stream.write_all(heads[usize::from(n % 4 == 3)].as_bytes()).expect("a new connection takes a head");
            stream.set_nonblocking(true).expect("it is a socket");
            stream
        };
        Self { streams: (0..count).map(open).collect(), turn: 0 }
    }

    /// A byte on each fifth, in turns; those that the gateway has closed are let go.
    fn dribble(&mut self) {
        self.turn += 1;
        let mut place = self.turn;
        self.streams.retain_mut(|stream| {
            place += 1;
            if !place.is_multiple_of(5) {
                return true;
            }
            let mut answer = [0; 512];
            let closed = match stream.read(&mut answer) {
                Ok(n) => n == 0,
                Err(e) => e.kind() != ErrorKind::WouldBlock,
            };
            !closed && stream.write_all(b"x").is_ok()
        });
    }
}

#[test]
fn good_traffic_passes_thousands_of_slow_connections() {
    const SLOW: usize = 4_000;
    raise_open_files();
    let (up, good_up) = (Upstream::echo(), Upstream::echo());
    let server = "[server]\nheader_timeout = \"15s\"\nbody_timeout = \"15s\"\nmax_connections = 10000\n";
    // Not the upstream of the slow ones, whose own listen queue may be full of them.
    let good = upstream("good", good_up.addr, "")
        + &route("good", "match.path_prefix = \"/good\"\ntarget.upstream = \"good\"\nauth = \"none\"");
    let gw = Gateway::start(&(server.to_owned() + &open_proxy(up.addr, "") + &good));
    let mut slow = Slow::connect(&gw, SLOW);
    eventually("all that are left are served", || {
        slow.dribble();
        gw.metric("active_connections", &[]) >= slow.streams.len() as f64
    });
    assert!(slow.streams.len() > SLOW * 3 / 4, "{} are left of {SLOW}", slow.streams.len());
    let gone = AtomicBool::new(false);
    let answered = std::thread::scope(|s| {
        let good = s.spawn(|| {
            let (mut slowest, mut answered) = (Duration::ZERO, 0);
            let mut kept = Conn::connect(gw.proxy);
            // Not faster than it polls: each new connection uses up a port of the machine for a minute.
            poll(4 * DEADLINE, || {
                let start = Instant::now();
                gw.get("/good").send().expect(200);
                kept.ask(gw.post("/good", "body").bytes()).expect(200);
                slowest = slowest.max(start.elapsed());
                answered += 1;
                gone.load(Ordering::Relaxed) && answered >= 20
            });
            assert!(slowest < Duration::from_secs(10), "a good client waited {slowest:?}");
            answered
        });
        // That each deadline is kept to the second is tested above, with fewer.
        let over = poll(2 * DEADLINE, || {
            slow.dribble();
            slow.streams.is_empty()
        });
        gone.store(true, Ordering::Relaxed);
        assert!(over, "{} of {SLOW} slow clients are still served", slow.streams.len());
        good.join()
    });
    assert!(answered.is_ok_and(|n| n >= 20), "good traffic came to a halt");
    eventually("their places are free", || gw.metric("active_connections", &[]) < 10.0);
}

#[test]
fn connections_over_the_bound_wait_or_are_refused_and_are_given_back() {
    let up = Upstream::echo();
    let gw = Gateway::start(&format!(
        "[server]\nmax_connections = 10\nheader_timeout = \"1s\"\n{}",
        open_proxy(up.addr, "")
    ));
    let held: Vec<_> = (0..40)
        .filter_map(|_| {
            let mut conn = Conn::open(gw.proxy).ok()?;
            conn.try_send(b"GET / HTTP/1.1\r\n").ok()?;
            Some(conn)
        })
        .collect();
    drop(held);
    crate::support::eventually("there is room again", || gw.get("/").try_send().is_ok_and(|r| r.status == 200));
}

#[test]
fn noise_on_the_port_harms_nobody() {
    let up = Upstream::echo();
    let mut gw = Gateway::start(&open_proxy(up.addr, ""));
    let noise: Vec<u8> = (0..50_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    for bytes in
        [&noise[..], b"\x16\x03\x01\x02\x00\x01\x00", b"\r\n\r\n\r\n", b"\0\0\0\0", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"]
    {
        let mut conn = Conn::connect(gw.proxy);
        conn.send(bytes);
        conn.shutdown_write();
        conn.rest().ok();
    }
    // Gone before the answer.
    for _ in 0..50 {
        let mut stream = std::net::TcpStream::connect(gw.proxy).expect("the listener accepts");
        stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").ok();
    }
    assert!(gw.is_running());
    gw.get("/").send().expect(200);
}
