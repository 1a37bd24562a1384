//! Works on whole bodies: refuses requests that carry a forbidden word, and masks card numbers in answers.

use proxy_wasm::traits::{Context, HttpContext};
use proxy_wasm::types::Action;

proxy_wasm::main! {{
    proxy_wasm::set_http_context(|_, _| Box::new(Body));
}}

struct Body;

/// Every run of 13 to 19 digits becomes `*`, but for its last four.
fn mask(text: &mut [u8]) {
    let mut start = 0;
    while start < text.len() {
        let digits = text[start..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        if (13..=19).contains(&digits) {
            text[start..start + digits - 4].fill(b'*');
        }
        start += digits.max(1);
    }
}

impl Context for Body {}

impl HttpContext for Body {
    fn on_http_request_body(&mut self, size: usize, end_of_stream: bool) -> Action {
        if !end_of_stream {
            // The gateway keeps what has come; the next call has all of it.
            return Action::Pause;
        }
        let body = self.get_http_request_body(0, size).unwrap_or_default();
        if body.windows(9).any(|word| word == b"forbidden") {
            self.send_http_response(403, vec![("content-type", "text/plain")], Some(b"not with that word\n"));
            return Action::Pause;
        }
        Action::Continue
    }

    fn on_http_response_headers(&mut self, _: usize, _: bool) -> Action {
        // The body's length may change. The gateway frames the answer anew.
        self.set_http_response_header("content-length", None);
        Action::Continue
    }

    fn on_http_response_body(&mut self, size: usize, end_of_stream: bool) -> Action {
        if !end_of_stream {
            return Action::Pause;
        }
        if let Some(mut body) = self.get_http_response_body(0, size) {
            mask(&mut body);
            body.extend_from_slice(b"\n-- masked\n");
            self.set_http_response_body(0, size, &body);
        }
        Action::Continue
    }
}
