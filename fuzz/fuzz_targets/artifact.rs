//! Bytes where an artifact is expected: never taken for one without the gateway's MAC.
#![no_main]

use std::path::PathBuf;
use std::sync::OnceLock;

use wasmgate::domain::Digest;
use wasmgate::engine::Compiler;
use wasmgate::engine::fuzzing::{Artifacts, Stored};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    static OPEN: OnceLock<(Artifacts, Digest, PathBuf)> = OnceLock::new();
    let (artifacts, digest, path) = OPEN.get_or_init(|| {
        let dir = tempfile::tempdir().expect("a temporary folder").keep();
        let digest = Digest::of(b"a module");
        let artifacts = Artifacts::open(&dir, [7; 32], 1 << 20).expect("the folder is writable");
        artifacts.write_artifact(digest, Compiler::Fast, b"an artifact").expect("the folder is writable");
        let path = std::fs::read_dir(dir.join("artifacts"))
            .expect("it is there")
            .flatten()
            .next()
            .expect("it was written")
            .path();
        (artifacts, digest, path)
    });
    std::fs::write(path, data).expect("the folder is writable");
    match artifacts.read_artifact(*digest, Compiler::Fast) {
        Ok(Stored::Rejected) | Err(_) => {}
        _ => panic!("taken for an artifact"),
    }
});
