//! An http-wasm handler with the `http-wasm-guest` crate: it marks requests and writes answers in upper case.

use http_wasm_guest::host::{Request, Response, admin, feature, log};
use http_wasm_guest::{Guest, register};

struct Transform {
    /// The handler's configuration, read once a VM.
    config: Vec<u8>,
}

impl Guest for Transform {
    fn handle_request(&self, request: &Request, _response: &Response) -> (bool, i32) {
        request.header.add(b"x-rust-guest", &self.config);
        (true, 7)
    }

    fn handle_response(&self, req_ctx: i32, _request: &Request, response: &Response, is_error: bool) {
        if is_error {
            return;
        }
        response.header.set(b"x-rust-context", req_ctx.to_string().as_bytes());
        response.body.write(&response.body.read().to_ascii_uppercase());
    }
}

fn main() {
    admin::enable(feature::BufferResponse);
    log::write(0, b"the transform handler starts");
    register(Transform { config: admin::config().to_vec() });
}
