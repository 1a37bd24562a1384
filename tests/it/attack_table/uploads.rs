//! What is refused before anything of it runs.

use super::row::{Attack, Row};
use crate::engine::bombs::{bombs, shapes};
use crate::support::{c_guest, wat};

pub fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    let mut row = |threat, variant: &str, wasm: Vec<u8>, abi, slug, named| {
        let attack = Attack::Upload { wasm, abi, slug, named };
        rows.push(Row { threat, variant: variant.into(), attack });
    };
    for (variant, wasm, slug, named) in formats() {
        row("no module", variant, wasm, "", slug, named);
    }
    for (variant, text, named) in FEATURES {
        row("feature outside the list", variant, wat(text), "", "unsupported-feature", named);
    }
    for (variant, text, abi, slug, named) in SHAPES {
        row("imports and exports", variant, wat(text), abi, slug, named);
    }
    for (variant, text, named) in DECLARED {
        row("declared memory over the limit", variant, wat(text), "", "memory-limit", named);
    }
    for (variant, wasm, named) in shapes() {
        row("compile bomb by its shape", variant, wasm, "", "compile-limit", named);
    }
    for (variant, wasm) in bombs() {
        row("compile bomb by its time", variant, wasm, "", "compile-limit", "");
    }
    rows
}

fn formats() -> [(&'static str, Vec<u8>, &'static str, &'static str); 7] {
    let whole = c_guest("core");
    [
        ("text", b"not wasm at all".to_vec(), "unsupported-format", "not a WebAssembly"),
        ("a script", b"#!/bin/sh\nid".to_vec(), "unsupported-format", "not a WebAssembly"),
        ("a component", wat("(component)"), "unsupported-format", "component"),
        ("another version", b"\0asm\x02\0\0\0".to_vec(), "unsupported-format", "version"),
        ("cut off", whole[..whole.len() / 2].to_vec(), "invalid-module", "invalid"),
        (
            "a section longer than the module",
            [b"\0asm\x01\0\0\0".as_slice(), &[1, 5, 0xff, 0xff, 0xff, 0xff, 0xff]].concat(),
            "invalid-module",
            "invalid",
        ),
        ("ill typed", wat(r#"(module (func (export "run") (result i32) (i64.const 1)))"#), "invalid-module", "invalid"),
    ]
}

const FEATURES: [(&str, &str, &str); 10] = [
    ("shared memory", r#"(module (memory 1 2 shared) (func (export "run")))"#, "threads and shared memory"),
    (
        "threads",
        r#"(module (memory 1) (func (export "run") (drop (i32.atomic.load (i32.const 0)))))"#,
        "threads and shared memory",
    ),
    ("memory64", r#"(module (memory i64 1) (func (export "run")))"#, "64-bit memory"),
    ("exceptions", r#"(module (tag) (func (export "run") (throw 0)))"#, "exceptions"),
    ("tail calls", r#"(module (func $f) (func (export "run") (return_call $f)))"#, "tail calls"),
    ("two memories", r#"(module (memory 1) (memory 1) (func (export "run")))"#, "more than one memory"),
    (
        "relaxed SIMD",
        r#"(module (func (export "run")
             (drop (f32x4.relaxed_min (v128.const i64x2 0 0) (v128.const i64x2 0 0)))))"#,
        "relaxed SIMD",
    ),
    (
        "garbage collection",
        r#"(module (type (struct)) (func (export "run") (drop (struct.new 0))))"#,
        "garbage collection",
    ),
    (
        "typed function references",
        r#"(module (type $t (func)) (func $f) (elem declare func $f)
             (func (export "run") (call_ref $t (ref.func $f))))"#,
        "references",
    ),
    (
        "wide arithmetic",
        r#"(module (func (export "run") (param i64) (result i64 i64)
             (i64.mul_wide_u (local.get 0) (local.get 0))))"#,
        "wide arithmetic",
    ),
];

const SHAPES: [(&str, &str, &str, &str, &str); 13] = [
    (
        "an unknown import",
        r#"(module (import "env" "launch" (func)) (func (export "run")))"#,
        "",
        "unknown-import",
        "`env.launch`",
    ),
    (
        "an unknown function of WASI",
        r#"(module (import "wasi_snapshot_preview1" "sock_explode" (func)) (memory (export "memory") 1)
             (func (export "_start")))"#,
        "",
        "unknown-import",
        "sock_explode",
    ),
    (
        "threads of WASI",
        r#"(module (import "wasi" "thread-spawn" (func (param i32) (result i32))) (memory (export "memory") 1)
             (func (export "_start")))"#,
        "",
        "unknown-import",
        "thread-spawn",
    ),
    (
        "an older WASI",
        r#"(module (import "wasi_unstable" "fd_write" (func (param i32 i32 i32 i32) (result i32)))
             (memory (export "memory") 1) (func (export "_start")))"#,
        "",
        "unknown-import",
        "wasi_unstable",
    ),
    (
        "the gateway's own functions",
        r#"(module (import "wasmgate:fuel" "expire" (func)) (func (export "run")))"#,
        "",
        "unknown-import",
        "wasmgate:fuel",
    ),
    (
        "the gateway's own globals",
        r#"(module (global (export "wasmgate:fuel") (mut i64) (i64.const 0)) (func (export "run")))"#,
        "",
        "invalid-module",
        "wasmgate:",
    ),
    (
        "a memory of the host",
        r#"(module (import "env" "memory" (memory 1)) (func (export "run")))"#,
        "",
        "unknown-import",
        "`env.memory`",
    ),
    (
        "an import of another type",
        r#"(module (import "http_handler" "get_uri" (func (param i64) (result i64))) (memory (export "memory") 1)
             (func (export "handle_request") (result i64) (i64.const 1))
             (func (export "handle_response") (param i32 i32)))"#,
        "",
        "unknown-import",
        "get_uri",
    ),
    (
        "a filter without an allocator",
        r#"(module (import "env" "proxy_log" (func (param i32 i32 i32) (result i32))) (memory (export "memory") 1)
             (func (export "proxy_abi_version_0_2_1")))"#,
        "",
        "missing-export",
        "proxy_on_memory_allocate",
    ),
    (
        "a handler without its functions",
        r#"(module (memory (export "memory") 1))"#,
        "http-wasm",
        "missing-export",
        "handle_re",
    ),
    (
        "a handler without memory",
        r#"(module (memory 1) (func (export "handle_request") (result i64) (i64.const 1))
             (func (export "handle_response") (param i32 i32)))"#,
        "http-wasm",
        "missing-export",
        "memory",
    ),
    ("a command without a start", r#"(module (memory (export "memory") 1))"#, "command", "missing-export", "_start"),
    ("nothing to call", "(module)", "", "missing-export", "export a function"),
];

/// The limit is 16 MiB.
const DECLARED: [(&str, &str, &str); 3] = [
    ("a page more", r#"(module (memory (export "memory") 257) (func (export "run")))"#, "16777216"),
    ("4 GiB", r#"(module (memory (export "memory") 65536) (func (export "run")))"#, "16777216"),
    ("a table", r#"(module (table 100001 funcref) (func (export "run")))"#, "100000"),
];
