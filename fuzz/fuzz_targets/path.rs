//! Text through the canonical form of paths and hosts: it is its own canonical form, and climbs nowhere.
#![no_main]

use wasmgate::domain::path::{normalize_host, normalize_path};

libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Ok(path) = normalize_path(text) {
        assert_eq!(normalize_path(&path).as_deref(), Ok(&*path), "{text:?}");
        assert!(path.starts_with('/'), "{text:?}");
        assert!(!path.split('/').any(|part| part == "." || part == ".."), "{text:?}");
        assert!(!path.bytes().any(|b| b.is_ascii_control()), "{text:?}");
    }
    if let Ok(host) = normalize_host(text) {
        assert_eq!(normalize_host(&host).as_deref(), Ok(&*host), "{text:?}");
    }
});
