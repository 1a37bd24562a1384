//! Bytes through the guard of request heads: what it lets through has one reading.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if wasmgate::gateway::check_head(data, 100).is_err() {
        return;
    }
    let text = String::from_utf8_lossy(data).to_ascii_lowercase();
    let count = |name: &str| text.split("\r\n").filter(|line| line.starts_with(name)).count();
    assert!(count("content-length") + count("transfer-encoding:") <= 1, "two framings");
    assert!(!text.replace("\r\n", "").contains(['\r', '\n']), "a line that only some parsers end");
});
