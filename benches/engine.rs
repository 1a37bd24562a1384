//! What a run costs: instance, call and drop for each ABI, a cold load, an artifact read or mapped, and what fuel adds to
//! a kernel.
//!
//! `cargo bench --bench engine`. Guests run on the bench's own thread, without the pool's hand-over, which is measured
//! by itself.

use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use criterion::{Criterion, criterion_group, criterion_main};
use wasmgate::domain::{Abi, Limits};
use wasmgate::engine::{Cancel, Compiler, Engine, Input, Job, LoadedModule, Settings};

const MIB: u64 = 1 << 20;

const CORE: &str = r#"(module (memory 1) (func (export "run") (param i32) (result i32)
    (i32.store (i32.const 8) (local.get 0)) (i32.add (i32.load (i32.const 8)) (i32.const 1))))"#;

const COMMAND: &str = r#"(module
    (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
    (memory (export "memory") 2) (data (i32.const 64) "hello\n")
    (func (export "_start")
      (i32.store (i32.const 0) (i32.const 64)) (i32.store (i32.const 4) (i32.const 6))
      (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))))"#;

/// A hash over 4 KiB, again and again: short loop bodies, where counting costs most.
const KERNEL: &str = r#"(module (memory 1) (func (export "run") (param $rounds i32) (result i32)
    (local $i i32) (local $h i32)
    (local.set $h (i32.const 0x811c9dc5))
    (loop $round
      (local.set $i (i32.const 0))
      (loop $next
        (local.set $h (i32.mul (i32.xor (local.get $h) (i32.load8_u (local.get $i))) (i32.const 0x01000193)))
        (local.set $i (i32.add (local.get $i) (i32.const 1)))
        (br_if $next (i32.lt_u (local.get $i) (i32.const 4096))))
      (local.set $rounds (i32.sub (local.get $rounds) (i32.const 1)))
      (br_if $round (local.get $rounds)))
    (local.get $h)))"#;

fn limits() -> Limits {
    Limits {
        fuel: u64::MAX >> 2,
        memory_bytes: 64 * MIB,
        wall_ms: Duration::from_secs(10),
        input_bytes: MIB,
        output_bytes: MIB,
        log_bytes: 64 << 10,
        table_elements: 10_000,
        stack_bytes: Limits::STACK_BYTES,
        file_bytes: Limits::FILE_BYTES,
        instances: Limits::INSTANCES,
    }
}

fn engine(dir: &Path) -> Arc<Engine> {
    let config = wasmgate::config::Engine {
        threads: 2,
        queue: 64,
        queue_timeout: Duration::from_secs(5),
        per_owner: 4,
        memory_budget_bytes: Some(1 << 30),
        vms_per_handler: 4,
        vm_requests: 1_000,
        artifact_cache_bytes: 256 * MIB,
        artifact_disk_bytes: 10 << 30,
        compile: wasmgate::config::Compile {
            processes: 2,
            cpu: Duration::from_secs(60),
            per_mib: Duration::from_secs(2),
            memory_bytes: 1 << 30,
        },
        breaker: wasmgate::config::Breaker { failures: 0, window: Duration::ZERO, cool_down: Duration::ZERO },
    };
    let compiler_exe = env!("CARGO_BIN_EXE_wasmgate").into();
    Engine::new(Settings { data_dir: dir.to_owned(), artifact_key: [1; 32], compiler_exe, config })
        .expect("a new temporary directory can be used")
}

async fn load(engine: &Arc<Engine>, wasm: &[u8], abi: Abi) -> Arc<LoadedModule> {
    let inspected = engine.inspect(wasm, Some(abi), 64 * MIB, &limits()).expect("the guest is valid");
    let bytes = Bytes::copy_from_slice(wasm);
    engine.install(bytes, &inspected, Compiler::Optimising).await.expect("the guest compiles");
    engine.load(inspected.digest, inspected.abi, &inspected.shape).await.expect("the guest loads")
}

/// A command in C of some 24 KB, where clang is installed.
fn c_command(dir: &Path) -> Option<Vec<u8>> {
    let source = r#"
        #include <stdio.h>
        #include <stdlib.h>
        int main(int argc, char **argv) {
            char line[256]; double sum = 0;
            while (fgets(line, sizeof line, stdin)) sum += atof(line);
            printf("%d %.2f\n", argc, sum);
            return 0;
        }"#;
    let (c, wasm) = (dir.join("sum.c"), dir.join("sum.wasm"));
    std::fs::write(&c, source).ok()?;
    let built = std::process::Command::new("clang")
        .args(["--target=wasm32-wasi", "-O2", "-s", "-o"])
        .arg(&wasm)
        .arg(&c)
        .status()
        .ok()?;
    if built.success() { std::fs::read(wasm).ok() } else { None }
}

fn job(module: &Arc<LoadedModule>, args: &[&str], stdin: &'static [u8]) -> Job {
    Job {
        module: module.clone(),
        owner: "bench".parse().expect("a valid name"),
        label: "bench".into(),
        limits: limits(),
        input: Input {
            function_args: args.iter().map(|s| (*s).to_owned()).collect(),
            stdin: Bytes::from_static(stdin),
            ..Input::default()
        },
        cancel: Cancel::default(),
    }
}

fn runs(c: &mut Criterion) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let engine = engine(dir.path());
    let wat = |text: &str| wat::parse_str(text).expect("the guest's text is valid");
    let mut group = c.benchmark_group("run");
    let mut one = |name: &str, wasm: Vec<u8>, abi: Abi, args: &[&str], stdin: &'static [u8]| {
        let module = runtime.block_on(load(&engine, &wasm, abi));
        // Past the history that the inline lane asks for.
        for _ in 0..200 {
            runtime.block_on(engine.run(job(&module, args, stdin))).result.expect("the guest runs");
        }
        group.bench_function(name, |b| {
            b.iter(|| black_box(runtime.block_on(engine.run(job(&module, args, stdin)))));
        });
    };
    one("core", wat(CORE), Abi::Core, &["41"], b"");
    one("command", wat(COMMAND), Abi::Command, &[], b"");
    if let Some(wasm) = c_command(dir.path()) {
        one("command in C", wasm, Abi::Command, &[], b"1.5\n2.5\n");
    }
    group.finish();
}

fn cold_load(c: &mut Criterion) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let wasm = c_command(dir.path()).unwrap_or_else(|| wat::parse_str(COMMAND).expect("the guest's text is valid"));
    let inspected = runtime.block_on(async {
        let engine = engine(dir.path());
        load(&engine, &wasm, Abi::Command).await;
        engine.inspect(&wasm, None, MIB, &limits()).expect("the guest is valid")
    });
    c.bench_function("cold load of a stored artifact", |b| {
        b.iter_batched(
            || {
                let _context = runtime.enter();
                engine(dir.path())
            },
            |engine| runtime.block_on(engine.load(inspected.digest, inspected.abi, &inspected.shape)).is_ok(),
            criterion::BatchSize::PerIteration,
        );
    });
    c.bench_function("inspect", |b| {
        let _context = runtime.enter();
        let engine = engine(dir.path());
        b.iter(|| engine.inspect(black_box(&wasm), None, MIB, &limits()).is_ok());
    });
}

/// The kernel through the engine, and the same module compiled by Wasmer alone.
fn fuel(c: &mut Criterion) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let engine = engine(dir.path());
    let wasm = wat::parse_str(KERNEL).expect("the guest's text is valid");
    let module = runtime.block_on(load(&engine, &wasm, Abi::Core));
    let mut group = c.benchmark_group("kernel");
    group.sample_size(20);
    group.bench_function("with fuel", |b| {
        b.iter(|| black_box(runtime.block_on(engine.run(job(&module, &["2000"], b"")))));
    });
    let mut store = wasmer::Store::new(wasmer::sys::EngineBuilder::new(wasmer::sys::Cranelift::new()).engine());
    let bare = wasmer::Module::new(&store, &wasm).expect("the guest compiles");
    let instance = wasmer::Instance::new(&mut store, &bare, &wasmer::imports! {}).expect("the guest starts");
    let run = instance.exports.get_typed_function::<i32, i32>(&store, "run").expect("its export");
    group.bench_function("bare", |b| b.iter(|| black_box(run.call(&mut store, 2000))));
    group.finish();
}

/// An artifact of about 10 MB, from its file to a module: read or mapped, with the MAC over all of it.
fn artifact(c: &mut Criterion) {
    let body =
        "(i32.store (local.get 0) (i32.add (i32.load (local.get 0)) (i32.load offset=4 (local.get 0))))".repeat(40);
    let functions = format!("(func (param i32) {body})").repeat(3_750);
    let wasm = wat::parse_str(format!("(module (memory 1) {functions})")).expect("the guest's text is valid");
    let mut cranelift = wasmer::sys::Cranelift::new();
    cranelift.opt_level(wasmer::sys::CraneliftOptLevel::None);
    let engine: wasmer::Engine = wasmer::sys::EngineBuilder::new(cranelift).engine().into();
    let bytes =
        wasmer::Module::new(&engine, wasm).and_then(|m| Ok(m.serialize().expect("it compiled"))).expect("it compiles");
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = dir.path().join("artifact");
    std::fs::write(&file, &bytes).expect("the folder is ours");
    let load = |bytes: Bytes| {
        let mut mac = <hmac::Hmac<sha2::Sha256> as hmac::KeyInit>::new_from_slice(&[7; 32]).expect("any length");
        hmac::Mac::update(&mut mac, &bytes);
        black_box(hmac::Mac::finalize(mac));
        let engine = wasmer::Engine::headless();
        // SAFETY: these are the bytes that were just serialised.
        let module = unsafe { wasmer::Module::deserialize_unchecked(&engine, bytes) };
        black_box(module.expect("it is whole"));
    };
    let mut group = c.benchmark_group(format!("artifact of {} bytes", bytes.len()));
    group.sample_size(20);
    group.bench_function("read", |b| b.iter(|| load(std::fs::read(&file).expect("it is there").into())));
    group.bench_function("mapped", |b| b.iter(|| load(Bytes::from_owner(Mapped::of(&file)))));
    group.finish();
}

struct Mapped {
    at: *mut libc::c_void,
    bytes: usize,
}

impl Mapped {
    fn of(file: &Path) -> Mapped {
        let file = std::fs::File::open(file).expect("it is there");
        let bytes = file.metadata().expect("a file").len() as usize;
        let fd = std::os::fd::AsRawFd::as_raw_fd(&file);
        // SAFETY: a fresh mapping of a file that nobody changes.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), bytes, libc::PROT_READ, libc::MAP_PRIVATE, fd, 0) };
        assert_ne!(at, libc::MAP_FAILED);
        Mapped { at, bytes }
    }
}

// SAFETY: it is only read.
unsafe impl Send for Mapped {}

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: mapped until the drop.
        unsafe { std::slice::from_raw_parts(self.at.cast(), self.bytes) }
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: the mapping of `of`, once.
        unsafe { libc::munmap(self.at, self.bytes) };
    }
}

criterion_group!(benches, runs, cold_load, artifact, fuel);
criterion_main!(benches);
