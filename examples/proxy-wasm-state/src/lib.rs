//! Counts requests by path. Each request puts its path into a queue; the root takes what is there when it is told and on
//! every tick, and keeps the counts in shared data, which all VMs of the filter see. A path that ends in `/counts`
//! answers with them.

use std::collections::BTreeMap;
use std::time::Duration;

use proxy_wasm::traits::{Context, HttpContext, RootContext};
use proxy_wasm::types::{Action, ContextType, Status};

proxy_wasm::main! {{
    proxy_wasm::set_root_context(|_| Box::new(Root { queue: 0 }));
}}

const COUNTS: &str = "counts";
const TICKS: &str = "ticks";

struct Root {
    queue: u32,
}

type Counts = BTreeMap<String, u64>;

/// One `path count` a line.
fn parse(text: &[u8]) -> Counts {
    let text = String::from_utf8_lossy(text);
    let lines = text.lines().filter_map(|line| line.rsplit_once(' '));
    lines.filter_map(|(path, count)| Some((path.to_owned(), count.parse().ok()?))).collect()
}

fn write(counts: &Counts) -> String {
    counts.iter().map(|(path, count)| format!("{path} {count}\n")).collect()
}

/// Changes a value that others may change at the same time.
fn update(context: &impl Context, key: &str, change: impl Fn(&[u8]) -> String) {
    loop {
        let (old, cas) = context.get_shared_data(key);
        let new = change(&old.unwrap_or_default());
        match context.set_shared_data(key, Some(new.as_bytes()), cas) {
            Err(Status::CasMismatch) => continue,
            other => return other.unwrap_or_else(|status| panic!("shared data: {status:?}")),
        }
    }
}

impl Root {
    fn count(&self) {
        let mut paths = Vec::new();
        while let Ok(Some(path)) = self.dequeue_shared_queue(self.queue) {
            paths.push(String::from_utf8_lossy(&path).into_owned());
        }
        if !paths.is_empty() {
            update(self, COUNTS, |old| {
                let mut counts = parse(old);
                for path in &paths {
                    *counts.entry(path.clone()).or_default() += 1;
                }
                write(&counts)
            });
        }
    }
}

impl Context for Root {}

impl RootContext for Root {
    fn on_configure(&mut self, _: usize) -> bool {
        self.queue = self.register_shared_queue("paths");
        self.set_tick_period(Duration::from_millis(100));
        true
    }

    fn on_queue_ready(&mut self, _: u32) {
        self.count();
    }

    fn on_tick(&mut self) {
        self.count();
        update(self, TICKS, |old| {
            let ticks: u64 = std::str::from_utf8(old).ok().and_then(|text| text.parse().ok()).unwrap_or(0);
            (ticks + 1).to_string()
        });
    }

    fn create_http_context(&self, _: u32) -> Option<Box<dyn HttpContext>> {
        Some(Box::new(Filter { queue: self.queue }))
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }
}

struct Filter {
    queue: u32,
}

impl Filter {
    fn shared(&self, key: &str) -> String {
        String::from_utf8_lossy(&self.get_shared_data(key).0.unwrap_or_default()).into_owned()
    }
}

impl Context for Filter {}

impl HttpContext for Filter {
    fn on_http_request_headers(&mut self, _: usize, _: bool) -> Action {
        let path = self.get_http_request_header(":path").unwrap_or_default();
        if path.ends_with("/counts") {
            let body = format!("{}ticks {}\n", self.shared(COUNTS), self.shared(TICKS));
            self.send_http_response(200, vec![("content-type", "text/plain")], Some(body.as_bytes()));
            return Action::Pause;
        }
        if self.enqueue_shared_queue(self.queue, Some(path.as_bytes())).is_err() {
            proxy_wasm::hostcalls::log(proxy_wasm::types::LogLevel::Warn, "a request was not counted").ok();
        }
        Action::Continue
    }
}
