//! What tests do through the tenant API: executions in every body form.
//!
//! Invariant: a form is written byte by byte, so that broken ones can be sent too.

use super::{Gateway, Request, Response};

pub const BOUNDARY: &str = "x-test-boundary";

/// A multipart body under construction.
#[derive(Default)]
pub struct Form(Vec<u8>);

impl Form {
    pub fn field(self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.part(&format!("Content-Disposition: form-data; name=\"{name}\""), value.as_ref())
    }

    pub fn file(self, name: &str, bytes: &[u8]) -> Self {
        let head = format!(
            "Content-Disposition: form-data; name=\"{name}\"; filename=\"{name}\"\r\nContent-Type: application/octet-stream"
        );
        self.part(&head, bytes)
    }

    pub fn part(mut self, head: &str, body: &[u8]) -> Self {
        self.0.extend_from_slice(format!("--{BOUNDARY}\r\n{head}\r\n\r\n").as_bytes());
        self.0.extend_from_slice(body);
        self.0.extend_from_slice(b"\r\n");
        self
    }

    /// With the closing boundary.
    pub fn end(self) -> Vec<u8> {
        [self.0, format!("--{BOUNDARY}--\r\n").into_bytes()].concat()
    }

    /// Cut off before it.
    pub fn cut(self) -> Vec<u8> {
        self.0
    }
}

impl Request {
    pub fn form(self, form: impl Into<Vec<u8>>) -> Self {
        self.header("Content-Type", format!("multipart/form-data; boundary={BOUNDARY}")).body(form)
    }
}

/// A gateway whose tenant API is at `/api/`, with these lines added.
pub fn config(more: &str) -> String {
    format!("{more}\n[[routes]]\nname = \"api\"\nmatch.path_prefix = \"/api/\"\ntarget.api = true\nauth = \"key\"\n")
}

impl Gateway {
    /// Runs an inline module with this input.
    pub fn execute(&self, key: &str, wasm: &[u8], input: &[u8]) -> Response {
        let form = Form::default().file("wasm", wasm).field("input", input).end();
        self.request("POST", "/api/wasm/execute").key(key).form(form).send()
    }
}
