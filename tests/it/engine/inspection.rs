//! What an upload is refused for before anything of it runs.

use super::*;

#[test]
fn refused_features_are_named() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _context = runtime.enter();
    let kit = Kit::new();
    for (wat, words) in [
        (r#"(module (memory 1 2 shared) (func (export "run")))"#, "threads"),
        (r#"(module (memory 1) (func (export "run") (drop (i32.atomic.load (i32.const 0)))))"#, "threads"),
        (r#"(module (memory i64 1) (func (export "run")))"#, "64-bit memory"),
        (r#"(module (tag) (func (export "run") (throw 0)))"#, "exceptions"),
        (r#"(module (func $f) (func (export "run") (return_call $f)))"#, "tail calls"),
        (r#"(module (memory 1) (memory 1) (func (export "run")))"#, "more than one memory"),
        (
            r#"(module (func (export "run") (drop (f32x4.relaxed_min (v128.const i64x2 0 0) (v128.const i64x2 0 0)))))"#,
            "relaxed SIMD",
        ),
        (r#"(module (type (struct)) (func (export "run") (drop (struct.new 0))))"#, "garbage collection"),
    ] {
        assert_refused(&kit.refusal(wat), UnsupportedFeature, words);
    }
}

#[test]
fn formats_imports_and_exports_are_checked() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _context = runtime.enter();
    let kit = Kit::new();
    let refuse = |bytes: &[u8]| kit.engine.inspect(bytes, None, 1_000, &limits()).unwrap_err();
    assert_refused(&refuse(b""), InvalidModule, "empty");
    assert_refused(&refuse(b"#!/bin/sh"), UnsupportedFormat, "not a WebAssembly");
    assert_refused(&refuse(b"\0asm\x0d\0\x01\0"), UnsupportedFormat, "component");
    assert_refused(&refuse(b"\0asm\x02\0\0\0"), UnsupportedFormat, "version");
    assert_refused(&refuse(b"\0asm\x01\0\0\0\x01\xff"), InvalidModule, "invalid");
    assert_refused(&refuse(&[0; 1_001]), CompileLimit, "1000");

    let import = |module: &str, name: &str| {
        format!(r#"(module (import "{module}" "{name}" (func)) (memory 1) (func (export "_start")))"#)
    };
    assert_refused(&kit.refusal(&import("env", "magic")), UnknownImport, "`env.magic`");
    assert_refused(&kit.refusal(&import("env", "proxy_log")), UnknownImport, "proxy-wasm");
    assert_refused(&kit.refusal(&import("wasi_unstable", "fd_write")), UnknownImport, "wasip1");
    assert_refused(&kit.refusal(&import("wasix_32v1", "thread_spawn")), UnknownImport, "(i32, i32) -> i32");
    assert_refused(&kit.refusal(&import("wasi_snapshot_preview1", "no_such")), UnknownImport, "no_such");
    assert_refused(
        &kit.refusal(&import("wasi_snapshot_preview1", "fd_write")),
        UnknownImport,
        "(i32, i32, i32, i32) -> i32",
    );
    assert_refused(&kit.refusal(&import("wasmgate:fuel", "expire")), UnknownImport, "wasmgate:fuel");
    let memory = r#"(module (import "env" "memory" (memory 1)) (func (export "_start")))"#;
    assert_refused(&kit.refusal(memory), UnknownImport, "`env.memory`");
    assert_refused(
        &kit.refusal(r#"(module (global (export "wasmgate:fuel") (mut i64) (i64.const 0)) (func (export "run")))"#),
        InvalidModule,
        "wasmgate:",
    );
    assert_refused(&kit.refusal("(module)"), MissingExport, "export a function");
    let reactor =
        r#"(module (import "wasi_snapshot_preview1" "sched_yield" (func (result i32))) (func (export "go")))"#;
    assert_refused(&kit.refusal(reactor), MissingExport, "`_start`");
    let typed = r#"(module (func (export "_start") (param i32)))"#;
    assert_refused(&kit.refusal_as(typed, Some(Abi::Command)), MissingExport, "() -> ()");
    assert_refused(&kit.refusal_as(reactor, Some(Abi::Core)), UnknownImport, "core");
}

#[test]
fn abis_are_found_by_shape() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _context = runtime.enter();
    let kit = Kit::new();
    let found = |wat: &str, declared| {
        let bytes = wat::parse_str(wat).unwrap();
        kit.engine.inspect(&bytes, declared, MIB, &limits()).unwrap().abi
    };
    assert_eq!(found(r#"(module (func (export "_start")))"#, None), Abi::Command);
    assert_eq!(found(r#"(module (func (export "_start")))"#, Some(Abi::Cgi)), Abi::Cgi);
    assert_eq!(found(r#"(module (func (export "_start")))"#, Some(Abi::Core)), Abi::Core);
    assert_eq!(found(r#"(module (func (export "add") (param i32 i32) (result i32) (i32.const 0)))"#, None), Abi::Core);
}

#[test]
fn compile_bombs_are_refused_before_any_compiler() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _context = runtime.enter();
    let kit = Kit::new();
    let begun = Instant::now();
    let locals = format!(r#"(module (func (export "run") (local {})))"#, "i64 ".repeat(50_000));
    assert_refused(&kit.refusal(&locals), CompileLimit, "locals");
    let targets = format!(r#"(module (func (export "run") (br_table {} (i32.const 0))))"#, "0 ".repeat(20_000));
    assert_refused(&kit.refusal(&targets), CompileLimit, "br_table");
    let body = format!(r#"(module (func (export "run") {}))"#, "nop ".repeat(1_100_000));
    assert_refused(&kit.refusal(&body), CompileLimit, "bytes");
    let functions = format!(r#"(module (func (export "run")) {})"#, "(func)".repeat(100_001));
    assert_refused(&kit.refusal(&functions), CompileLimit, "functions");
    let types: String = (0..10_001).map(|n| format!("(type (func (param {})))", "i32 ".repeat(n % 100))).collect();
    assert_refused(&kit.refusal(&format!("(module {types})")), CompileLimit, "types");
    let deep = format!(r#"(module (func (export "run") {}{}))"#, "block ".repeat(5_000), "end ".repeat(5_000));
    assert_refused(&kit.refusal(&deep), CompileLimit, "nested");
    let stack = format!(r#"(module (func (export "run") {}unreachable))"#, "(i32.const 0) ".repeat(5_000));
    assert_refused(&kit.refusal(&stack), CompileLimit, "stack");
    let globals = "(global i32 (i32.const 0))".repeat(10_001);
    assert_refused(&kit.refusal(&format!(r#"(module (func (export "run")) {globals})"#)), CompileLimit, "globals");
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_compiler_without_time_or_memory_refuses_the_module() {
    let work = "(local.set 0 (i64.mul (i64.add (local.get 0) (i64.const 1)) (local.get 1)))".repeat(20_000);
    let functions = format!("(func (param i64 i64) (result i64) {work} (local.get 0))").repeat(40);
    let bytes = Bytes::from(wat::parse_str(format!(r#"(module (func (export "run")) {functions})"#)).unwrap());
    for compile in [
        wasmgate::config::Compile {
            processes: 1,
            cpu: Duration::from_secs(1),
            per_mib: Duration::from_secs(2),
            memory_bytes: 4 << 30,
        },
        wasmgate::config::Compile {
            processes: 1,
            cpu: Duration::from_secs(60),
            per_mib: Duration::from_secs(2),
            memory_bytes: 64 * MIB,
        },
    ] {
        let kit = Kit::with(wasmgate::config::Engine { compile, ..config() });
        let inspected = kit.engine.inspect(&bytes, None, 64 * MIB, &limits()).unwrap();
        let begun = Instant::now();
        match kit.engine.install(bytes.clone(), &inspected, Compiler::Optimising).await {
            Err(InstallError::NotLoadable(e)) => assert_refused(&e, CompileLimit, "compile"),
            other => panic!("{other:?}"),
        }
        assert!(begun.elapsed() < Duration::from_secs(30));
        assert_eq!(kit.engine.stats().compiling, 0);
    }
}
