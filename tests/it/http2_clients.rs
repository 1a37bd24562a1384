//! Hostile HTTP/2 clients: memory stays bounded, and others are answered meanwhile.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::support::h2c::{H2, frame};
use crate::support::toml::open_proxy;
use crate::support::{Conn, Gateway, Upstream};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

fn start(up: &Upstream) -> Gateway {
    let listener = "[[server.listeners]]\naddress = \"127.0.0.1:0\"\nh2c = true\n";
    Gateway::start(&(listener.to_owned() + &open_proxy(up.addr, "max_body = \"1KiB\"")))
}

/// `:method GET`, `:scheme http`, `:path /` and `:authority a` in HPACK.
const HEADERS: &[u8] = &[0x82, 0x86, 0x84, 0x41, 0x01, b'a'];

/// The most memory that the gateway has ever held, in KiB.
fn peak(gw: &Gateway) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", gw.pid())).expect("Linux has /proc");
    let line = status.lines().find(|l| l.starts_with("VmHWM:")).expect("it is running");
    line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("a number")
}

#[track_caller]
fn survives(mut gw: Gateway, before: usize) {
    assert!(gw.is_running());
    gw.get("/others").send().expect(200);
    assert_eq!(H2::connect(gw.proxy).get("http://a/others", &[]).status, 200);
    let after = peak(&gw);
    assert!(after < before + (64 << 10), "from {before} to {after} KiB");
}

/// A raw connection with preface and empty settings sent, and the gateway's memory until the attack.
fn attack(gw: &Gateway) -> (Conn, usize) {
    gw.get("/warm").send().expect(200);
    let mut conn = Conn::connect(gw.proxy);
    conn.send([PREFACE, &frame(4, 0, 0, &[])].concat());
    (conn, peak(gw))
}

#[test]
fn rapid_reset_is_bounded() {
    let up = Upstream::echo();
    let gw = start(&up);
    let before = peak(&gw);
    H2::connect(gw.proxy).rapid_reset("http://a/reset", 5_000);
    survives(gw, before);
}

#[test]
fn a_flood_of_continuation_frames_is_cut() {
    let up = Upstream::echo();
    let gw = start(&up);
    let (mut conn, before) = attack(&gw);
    conn.send(frame(1, 0, 1, HEADERS));
    // A literal header without indexing, again and again, and never END_HEADERS.
    let field = [&[0x00, 0x01, b'x', 0x7f, 0x81, 0x7f][..], &[b'y'; 256]].concat();
    let piece = frame(9, 0, 1, &field.repeat(60));
    let mut sent = 0;
    while sent < 64 << 20 && conn.try_write(&piece) {
        sent += piece.len();
    }
    assert!(sent < 64 << 20, "the gateway took {sent} bytes of one head");
    survives(gw, before);
}

#[test]
fn an_hpack_bomb_does_not_unfold() {
    let up = Upstream::echo();
    let gw = start(&up);
    let (mut conn, before) = attack(&gw);
    // One 4,000-byte field goes into the dynamic table; each further byte repeats all of it.
    let entry = [&[0x40, 0x01, b'x', 0x7f, 0xa1, 0x1e][..], &[b'y'; 4000]].concat();
    let bomb = [HEADERS, &entry, &vec![0xbe; 12_000]].concat();
    for (i, stream) in (1..200u32).step_by(2).enumerate() {
        let block = if i == 0 { &bomb[..] } else { &[HEADERS, &[0xbe; 12_000]].concat() };
        if !conn.try_write(&frame(1, 0x5, stream, block)) {
            break;
        }
    }
    survives(gw, before);
    assert!(up.seen().iter().all(|s| s.all("x").len() <= 100), "the bomb went off upstream");
}

#[test]
fn empty_data_and_settings_and_ping_floods_are_bounded() {
    let up = Upstream::echo();
    let gw = start(&up);
    for flood in [frame(0, 0, 1, &[]), frame(4, 0, 0, &[]), frame(6, 0, 0, &[0; 8])] {
        let (mut conn, before) = attack(&gw);
        conn.send(frame(1, 0x4, 1, HEADERS));
        let piece = flood.repeat(1000);
        (0..200).take_while(|_| conn.try_write(&piece)).count();
        drop(conn);
        let after = peak(&gw);
        assert!(after < before + (64 << 10), "from {before} to {after} KiB");
    }
    let before = peak(&gw);
    survives(gw, before);
}

#[test]
fn heads_and_bodies_have_the_same_limits_as_over_http1() {
    let up = Upstream::echo();
    let gw = start(&up);
    let client = H2::connect(gw.proxy);
    let over = client.send("POST", "http://a/", &[], Some(&[b'x'; 1025]));
    assert_eq!(
        (over.status.as_u16(), over.headers["content-type"].as_bytes()),
        (413, &b"application/problem+json"[..])
    );
    let many: Vec<_> = (0..120).map(|i| format!("x-{i}")).collect();
    let many: Vec<_> = many.iter().map(|name| (name.as_str(), "1")).collect();
    assert_eq!(client.get("http://a/", &many).status, 431);
    assert!(up.seen().is_empty());
    assert_eq!(client.get("http://a/", &[]).status, 200, "the connection lives on");
}

#[test]
fn connection_headers_and_bad_pseudo_headers_are_refused() {
    let up = Upstream::echo();
    let gw = start(&up);
    // RFC 9113 section 8.2.2: `transfer-encoding: chunked` makes the request malformed.
    let (mut conn, before) = attack(&gw);
    let field = [&[0x00, 17][..], b"transfer-encoding", &[7], b"chunked"].concat();
    conn.send(frame(1, 0x5, 1, &[HEADERS, &field].concat()));
    // RFC 9113 section 8.3.1: without `:path`.
    conn.send(frame(1, 0x5, 3, &[0x82, 0x86, 0x41, 0x01, b'a']));
    survives(gw, before);
    assert!(up.seen().iter().all(|s| s.target != "/"), "{:?}", up.seen());
}

/// One connection's flood, until it is closed or the test is over.
fn flood_once(gw: &Gateway, flood: &[u8], over: &AtomicBool) {
    let mut conn = Conn::connect(gw.proxy);
    if !conn.try_write(&[PREFACE, &frame(4, 0, 0, &[]), &frame(1, 0x4, 1, HEADERS)].concat()) {
        return;
    }
    let mut streams = (3u32..).step_by(2);
    let mut piece = || match flood.is_empty() {
        false => flood.repeat(200),
        true => streams.by_ref().take(200).fold(Vec::new(), |all, stream| {
            [all, frame(1, 0x5, stream, HEADERS), frame(8, 0, stream, &[0; 4])].concat()
        }),
    };
    while !over.load(Ordering::Relaxed) && conn.try_write(&piece()) {}
}

/// A flood of each kind, and good clients that are answered all the while.
#[test]
fn others_are_served_during_a_flood() {
    let up = Upstream::echo();
    let gw = start(&up);
    let before = peak(&gw);
    let floods = [
        // Empty DATA, which costs no flow control (CVE-2019-9518).
        frame(0, 0, 1, &[]),
        // SETTINGS and PING want answers (CVE-2019-9515, CVE-2019-9512); nobody reads them.
        frame(4, 0, 0, &[]),
        frame(6, 0, 0, &[0; 8]),
        // PRIORITY and WINDOW_UPDATE cost nothing but work.
        frame(2, 0, 1, &[0, 0, 0, 3, 0]),
        frame(8, 0, 0, &[0, 0, 0, 1]),
        // A stream is opened, and the server made to reset it (CVE-2025-8671): no increment is an error.
        Vec::new(),
    ];
    for flood in floods {
        let over = AtomicBool::new(false);
        std::thread::scope(|s| {
            s.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    flood_once(&gw, &flood, &over);
                }
            });
            let good = std::panic::catch_unwind(|| {
                for _ in 0..5 {
                    let start = Instant::now();
                    gw.get("/good").send().expect(200);
                    assert_eq!(H2::connect(gw.proxy).get("http://a/good", &[]).status, 200);
                    assert!(start.elapsed() < Duration::from_secs(10), "a good client waited {:?}", start.elapsed());
                }
            });
            over.store(true, Ordering::Relaxed);
            if let Err(panic) = good {
                std::panic::resume_unwind(panic);
            }
        });
    }
    survives(gw, before);
}
