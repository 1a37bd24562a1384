//! Edits heads: tells the upstream which route and tier a request has, hides what the upstream says of itself.

use proxy_wasm::traits::{Context, HttpContext};
use proxy_wasm::types::{Action, LogLevel};

proxy_wasm::main! {{
    proxy_wasm::set_log_level(LogLevel::Info);
    proxy_wasm::set_http_context(|_, _| Box::new(Headers));
}}

struct Headers;

impl Headers {
    fn property(&self, path: Vec<&str>) -> String {
        let bytes = self.get_property(path).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl Context for Headers {}

impl HttpContext for Headers {
    fn on_http_request_headers(&mut self, _: usize, _: bool) -> Action {
        self.set_http_request_header("x-route", Some(&self.property(vec!["route_name"])));
        self.set_http_request_header("x-tier", Some(&self.property(vec!["wasmgate", "tier"])));
        self.set_http_request_header("x-internal", None);
        for value in ["1.1 filter", "1.1 edge"] {
            self.add_http_request_header("via", value);
        }
        Action::Continue
    }

    fn on_http_response_headers(&mut self, _: usize, _: bool) -> Action {
        self.set_http_response_header("server", None);
        self.set_http_response_header("x-powered-by", None);
        let status = self.get_http_response_header(":status").unwrap_or_default();
        self.add_http_response_header("x-upstream-status", &status);
        Action::Continue
    }
}
