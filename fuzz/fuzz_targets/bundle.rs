//! Bytes through the reader of bundles: what it takes is within its bounds and has plain paths.
#![no_main]

use wasmgate::engine::files::Assets;

const MAX: u64 = 1 << 20;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Ok(assets) = Assets::read(data, MAX) else { return };
    let mut bytes = 0;
    for (path, content) in assets.iter() {
        bytes += content.len() as u64;
        assert!(!path.split('/').any(|part| ["..", "."].contains(&part)) && !path.contains('\0'), "{path:?}");
    }
    assert!(bytes <= MAX, "{bytes} bytes");
});
