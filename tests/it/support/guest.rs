//! Guests from source: WAT inline, C through clang.
//!
//! Invariant: no binary is committed; a C guest is compiled once per content and shared by all tests.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

#[track_caller]
pub fn wat(text: &str) -> Vec<u8> {
    wat::parse_str(text).unwrap_or_else(|e| panic!("the WAT of this test: {e}"))
}

/// `tests/guests/c/<name>.c`, compiled for WASI preview1.
#[track_caller]
pub fn c_guest(name: &str) -> Vec<u8> {
    c_source(&format!("tests/guests/c/{name}.c"))
}

/// `tests/guests/wasix/<name>.c`, with the functions that `wasix.h` declares.
#[track_caller]
pub fn wasix_guest(name: &str) -> Vec<u8> {
    c_source(&format!("tests/guests/wasix/{name}.c"))
}

/// As [`c_guest`], by the source's path in the repository. Headers beside it and those of the SDK count as part of it.
#[track_caller]
pub fn c_source(path: &str) -> Vec<u8> {
    static BUILDING: Mutex<()> = Mutex::new(());
    let _one_at_a_time = BUILDING.lock().unwrap_or_else(|e| e.into_inner());
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    let name = source.file_stem().and_then(|name| name.to_str()).expect("a plain name");
    let mut text = std::fs::read(&source).unwrap_or_else(|e| panic!("{}: {e}", source.display()));
    let freestanding = text.starts_with(b"// freestanding");
    let sdk = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/sdk/c");
    for folder in [source.parent().expect("it has a folder"), &sdk] {
        for header in std::fs::read_dir(folder).expect("the folder is there") {
            let header = header.expect("the folder is readable").path();
            if header.extension().is_some_and(|extension| extension == "h") {
                text.extend(std::fs::read(&header).expect("the header is readable"));
            }
        }
    }
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("guests");
    std::fs::create_dir_all(&folder).expect("the target folder is writable");
    let wasm = folder.join(format!("{name}-{:08x}.wasm", crc32fast::hash(&text)));
    if !wasm.exists() {
        let part = wasm.with_extension("part");
        let mut clang = Command::new("clang");
        if freestanding {
            clang.args(["--target=wasm32", "-nostdlib", "-Wl,--no-entry"]);
        } else {
            clang.arg("--target=wasm32-wasi");
        }
        clang.args(["-O2", "-s", "-Wall", "-Werror", "-o"]).arg(&part).arg(&source);
        let output = clang.output().expect("`clang` runs; ./scripts/test installs it");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "clang on {} (./scripts/test installs what it needs):\n{errors}",
            source.display()
        );
        std::fs::rename(&part, &wasm).expect("the target folder is writable");
    }
    std::fs::read(&wasm).expect("it was just built")
}

/// A source of `examples/` that is C without a library, compiled as its README says.
#[track_caller]
pub fn c_example(path: &str, more: &[&str]) -> Vec<u8> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(path);
    let out = tempfile::tempdir().expect("a temporary folder");
    let wasm = out.path().join("example.wasm");
    let mut clang = Command::new("clang");
    clang.args(["--target=wasm32", "-nostdlib", "-O2", "-s", "-Wl,--no-entry", "-Wall", "-Werror"]);
    clang.args(more).arg("-o").arg(&wasm).arg(&source).current_dir(source.parent().expect("it is in a folder"));
    let output = clang.output().expect("`clang` runs; ./scripts/test installs it");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    std::fs::read(&wasm).expect("it was just built")
}
