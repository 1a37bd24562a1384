//! Bytes as a CGI program's output: what is taken for an answer can't break the framing of one.
#![no_main]

use wasmgate::engine::Engine;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Ok(reply) = Engine::cgi_reply(bytes::Bytes::copy_from_slice(data)) else { return };
    assert!((200..=599).contains(&reply.status));
    for (name, value) in &reply.headers {
        assert!(!["connection", "content-length", "transfer-encoding", "upgrade"].contains(&name.as_str()));
        assert!(!value.as_bytes().iter().any(|b| [b'\r', b'\n', 0].contains(b)));
    }
});
