//! The callers who do nothing wrong: a proxied route, a route with a handler and an execution, asked again and again.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::support::{DEADLINE, Request, Response, poll};

/// So long a caller waits between its requests.
const PAUSE: Duration = Duration::from_millis(10);

#[derive(Default)]
struct Counts {
    /// Of each caller.
    answered: [AtomicU64; KINDS],
    failed: Mutex<Vec<String>>,
    slowest_us: AtomicU64,
    stop: AtomicBool,
}

const KINDS: usize = 3;

pub struct Others {
    counts: Arc<Counts>,
    callers: Vec<JoinHandle<()>>,
}

/// Since the last time.
pub struct Turn {
    pub sent: u64,
    pub failed: Vec<String>,
    pub slowest: Duration,
}

impl Others {
    pub fn start(proxy: SocketAddr, key: &str) -> Others {
        type Good = fn(&Response) -> bool;
        let execute = serde_json::json!({"module": "good/upper", "input": "quiet"});
        let requests: [(Request, Good); KINDS] = [
            (Request::new(proxy, "GET", "/plain"), |a| a.status == 200),
            (Request::new(proxy, "GET", "/good"), |a| a.status == 202 && a.header("x-guest") == Some("answered")),
            (Request::new(proxy, "POST", "/api/wasm/execute").key(key).json(&execute), |a| {
                a.status == 200 && a.json()["output"] == "QUIET"
            }),
        ];
        let counts = Arc::new(Counts::default());
        let caller = |(kind, (request, good)): (usize, (Request, Good))| {
            let counts = counts.clone();
            std::thread::spawn(move || {
                while !counts.stop.load(Ordering::Relaxed) {
                    counts.ask(kind, &request, good);
                    poll(PAUSE, || false);
                }
            })
        };
        let callers = requests.into_iter().enumerate().map(caller).collect();
        Others { counts, callers }
    }

    /// Waits until each of them had an answer since the last time.
    pub fn turn(&self) -> Turn {
        let counts = &self.counts;
        let all = || counts.answered.iter().all(|n| n.load(Ordering::Relaxed) > 0);
        let mut failed = Vec::new();
        if !poll(DEADLINE, || all() || !counts.failed.lock().expect("no caller panics").is_empty()) {
            failed.push("some had no answer".to_owned());
        }
        failed.append(&mut counts.failed.lock().expect("no caller panics"));
        let answered: u64 = counts.answered.iter().map(|n| n.swap(0, Ordering::Relaxed)).sum();
        let slowest = Duration::from_micros(counts.slowest_us.swap(0, Ordering::Relaxed));
        Turn { sent: answered + failed.len() as u64, failed, slowest }
    }
}

impl Counts {
    fn ask(&self, kind: usize, request: &Request, good: fn(&Response) -> bool) {
        let begun = Instant::now();
        let failure = match request.clone().try_send() {
            Ok(answer) if good(&answer) => None,
            Ok(answer) => Some(answer.to_string()),
            Err(e) => Some(e.to_string()),
        };
        let took = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.slowest_us.fetch_max(took, Ordering::Relaxed);
        match failure {
            None => _ = self.answered[kind].fetch_add(1, Ordering::Relaxed),
            Some(failure) => self.failed.lock().expect("no caller panics").push(failure),
        }
    }
}

impl Drop for Others {
    fn drop(&mut self) {
        self.counts.stop.store(true, Ordering::Relaxed);
        for caller in self.callers.drain(..) {
            caller.join().ok();
        }
    }
}
