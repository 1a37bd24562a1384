//! Asks the upstream `auth` whether a request may pass, with the caller's `authorization`: 200 lets it go on with the
//! answer's `x-user`, any other status is the caller's answer, and silence is a 503.

use std::time::Duration;

use proxy_wasm::traits::{Context, HttpContext};
use proxy_wasm::types::{Action, Status};

proxy_wasm::main! {{
    proxy_wasm::set_http_context(|_, _| Box::new(Auth));
}}

struct Auth;

const TIMEOUT: Duration = Duration::from_secs(2);

impl Auth {
    fn ask(&self) -> Result<u32, Status> {
        let authorization = self.get_http_request_header("authorization").unwrap_or_default();
        let path = self.get_http_request_header(":path").unwrap_or_default();
        let headers = vec![
            (":method", "GET"),
            (":path", "/check"),
            (":authority", "auth"),
            ("authorization", &authorization),
            ("x-path", &path),
        ];
        self.dispatch_http_call("auth", headers, None, vec![], TIMEOUT)
    }

    fn unavailable(&self) {
        self.send_http_response(503, vec![("retry-after", "1")], Some(b"nobody answers who may decide\n"));
    }
}

impl Context for Auth {
    fn on_http_call_response(&mut self, _: u32, headers: usize, body_size: usize, _: usize) {
        // No headers: the call failed or took too long.
        if headers == 0 {
            return self.unavailable();
        }
        let header = |name: &str| self.get_http_call_response_header(name).unwrap_or_default();
        match header(":status").as_str() {
            "200" => {
                self.set_http_request_header("x-user", Some(&header("x-user")));
                self.resume_http_request();
            }
            status => {
                let body = self.get_http_call_response_body(0, body_size).unwrap_or_default();
                self.send_http_response(status.parse().unwrap_or(403), vec![], Some(&body));
            }
        }
    }
}

impl HttpContext for Auth {
    fn on_http_request_headers(&mut self, _: usize, _: bool) -> Action {
        // A caller does not say who it is.
        self.set_http_request_header("x-user", None);
        if self.ask().is_err() {
            self.unavailable();
        }
        Action::Pause
    }
}
