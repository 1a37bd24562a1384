//! Stopping and reloading under load: no request fails.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::support::toml::open_proxy;
use crate::support::upstream::{Gate, echo, respond};
use crate::support::{Conn, Gateway, Request, Upstream, eventually};

#[test]
fn sigterm_lets_requests_in_flight_finish() {
    let gate = Gate::default();
    let at_the_gate = gate.clone();
    let up = Upstream::start(move |_, stream| {
        at_the_gate.wait();
        respond(stream, 200, &[], b"finished")
    });
    let mut gw = Gateway::start(&format!("[server]\ndrain = \"20s\"\n{}", open_proxy(up.addr, "")));
    let mut idle = Conn::connect(gw.proxy);
    let in_flight = gw.get("/");
    let in_flight = std::thread::spawn(move || in_flight.send());
    eventually("it is in flight", || up.seen().len() == 1);
    gw.signal("TERM");
    eventually("readiness is gone, or the listener", || {
        Request::new(gw.admin, "GET", "/health/ready").try_send().map_or(true, |r| r.status == 503)
    });
    assert!(gw.is_running());
    gate.open();
    assert_eq!(in_flight.join().expect("an answer").expect(200).text(), "finished");
    let status = gw.wait();
    assert!(status.success(), "{status}");
    assert!(idle.closes());
}

#[test]
fn the_drain_deadline_cuts_what_hangs() {
    let up = Upstream::start(|_, stream| crate::support::upstream::hang(stream));
    // As a reload left it, not as it was at start.
    let config = |drain: &str| format!("[server]\ndrain = \"{drain}\"\n{}", open_proxy(up.addr, ""));
    let mut gw = Gateway::start(&config("1h"));
    gw.write_config(&config("1s"));
    gw.reload().expect(200);
    let mut conn = Conn::connect(gw.proxy);
    conn.send(gw.get("/").bytes());
    eventually("it is in flight", || up.seen().len() == 1);
    let start = Instant::now();
    gw.signal("TERM");
    gw.wait();
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
}

/// Clients that keep connections open and ask until told to stop. Counts what was answered and what failed.
struct Load {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    failed: Arc<AtomicUsize>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Load {
    fn start(gw: &Gateway, clients: usize) -> Self {
        let mut load =
            Self { stop: Arc::default(), answered: Arc::default(), failed: Arc::default(), threads: Vec::new() };
        for _ in 0..clients {
            let (stop, answered, failed) = (load.stop.clone(), load.answered.clone(), load.failed.clone());
            let (addr, request) = (gw.proxy, gw.get("/load").bytes());
            load.threads.push(std::thread::spawn(move || client(addr, &request, &stop, &answered, &failed)));
        }
        load
    }

    fn reach(&self, more: usize) {
        let target = self.answered.load(Ordering::Relaxed) + more;
        eventually("the load goes on", || self.answered.load(Ordering::Relaxed) >= target);
    }

    fn finish(self) -> (usize, usize) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().expect("clients count their failures");
        }
        (self.answered.load(Ordering::Relaxed), self.failed.load(Ordering::Relaxed))
    }
}

fn client(addr: std::net::SocketAddr, request: &[u8], stop: &AtomicBool, answered: &AtomicUsize, failed: &AtomicUsize) {
    let mut conn: Option<Conn> = None;
    while !stop.load(Ordering::Relaxed) {
        let reused = conn.is_some();
        let Some(mut open) = conn.take().or_else(|| Conn::open(addr).ok()) else {
            // Nobody listens any more: there is no request that could fail.
            return;
        };
        let sent = open.try_send(request).is_ok();
        match open.try_read("GET") {
            Ok(response) if response.status == 200 => {
                answered.fetch_add(1, Ordering::Relaxed);
                let last = response.header("connection").is_some_and(|c| c.eq_ignore_ascii_case("close"));
                conn = (!last).then_some(open);
            }
            // An idle connection that closes before it took the request is retried by every client (RFC 9112
            // section 9.3.1); so is one in the backlog of a listener that has gone.
            Err(e) if (reused || !sent) && closed_before_answering(&e) => {}
            Err(e) if closed_before_answering(&e) && Conn::open(addr).is_err() => return,
            Ok(_) | Err(_) => {
                failed.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

fn closed_before_answering(e: &std::io::Error) -> bool {
    e.kind() == std::io::ErrorKind::ConnectionReset || e.to_string() == "closed after \"\""
}

#[test]
fn sigterm_under_load_fails_no_request() {
    let up = Upstream::start(echo);
    let mut gw = Gateway::start(&format!("[server]\ndrain = \"10s\"\n{}", open_proxy(up.addr, "")));
    let load = Load::start(&gw, 8);
    load.reach(200);
    gw.signal("TERM");
    assert!(gw.wait().success());
    let (answered, failed) = load.finish();
    assert_eq!(failed, 0, "of {answered} requests");
}

#[test]
fn reloads_under_load_fail_no_request() {
    let up = Upstream::start(echo);
    let config = |n: usize| open_proxy(up.addr, &format!("response_headers.set = {{ x-generation = \"{n}\" }}"));
    let gw = Gateway::start(&config(0));
    let load = Load::start(&gw, 4);
    for n in 1..=10 {
        gw.write_config(&config(n));
        gw.reload().expect(200);
        load.reach(20);
    }
    assert_eq!(gw.get("/").send().expect(200).header("x-generation"), Some("10"));
    let (answered, failed) = load.finish();
    assert_eq!(failed, 0, "of {answered} requests");
}

#[test]
fn a_request_in_flight_keeps_its_snapshot() {
    let gate = Gate::default();
    let at_the_gate = gate.clone();
    let up = Upstream::start(move |_, stream| {
        at_the_gate.wait();
        respond(stream, 200, &[], b"ok")
    });
    let gw = Gateway::start(&open_proxy(up.addr, "response_headers.set = { x-config = \"old\" }"));
    let request = gw.get("/");
    let in_flight = std::thread::spawn(move || request.send());
    eventually("it is in flight", || up.seen().len() == 1);
    // The route is gone altogether.
    gw.write_config("");
    gw.reload().expect(200);
    gw.get("/").send().problem(404, "not-found");
    gate.open();
    assert_eq!(in_flight.join().expect("an answer").expect(200).header("x-config"), Some("old"));
}
