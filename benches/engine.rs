//! What a run costs, what fuel adds to a kernel, and how fast code comes to life: figures against their aims.
//!
//! `cargo bench --bench engine`. Guests run on the bench's own thread, as on the inline lane; the hand-over to the pool
//! has its own row. A figure is processor time, the median of rounds, each the mean of many runs. Kernels alternate with the same module
//! compiled by Wasmer alone, and the fastest rounds are compared: what else the machine does only makes slower.

use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::Runtime;
use wasmgate::domain::{Abi, Limits};
use wasmgate::engine::{Cancel, Compiler, Engine, Input, Inspected, Job, LoadedModule, Settings};

const MIB: u64 = 1 << 20;
const ROUNDS: usize = 15;

/// Eight host functions, one of them called.
const EIGHT_IMPORTS: &str = r#"(module
    (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_read" (func (param i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "args_get" (func (param i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "args_sizes_get" (func (param i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "environ_get" (func (param i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "environ_sizes_get" (func (param i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "random_get" (func (param i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "proc_exit" (func (param i32)))
    (memory (export "memory") 1) (data (i32.const 64) "hello\n")
    (func (export "_start")
      (i32.store (i32.const 0) (i32.const 64)) (i32.store (i32.const 4) (i32.const 6))
      (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))))"#;

/// Exports `run (n: i32) -> i32`, and how large `n` is here.
const KERNELS: [(&str, &str, i32); 6] = [
    (
        "hash of 4 KiB, byte by byte",
        r#"(module (memory 1) (func (export "run") (param $n i32) (result i32) (local $i i32) (local $h i32)
            (local.set $h (i32.const 0x811c9dc5))
            (loop $round
              (local.set $i (i32.const 0))
              (loop $next
                (local.set $h (i32.mul (i32.xor (local.get $h) (i32.load8_u (local.get $i))) (i32.const 0x01000193)))
                (local.set $i (i32.add (local.get $i) (i32.const 1)))
                (br_if $next (i32.lt_u (local.get $i) (i32.const 4096))))
              (local.set $n (i32.sub (local.get $n) (i32.const 1)))
              (br_if $round (local.get $n)))
            (local.get $h)))"#,
        5_000,
    ),
    (
        "fibonacci, recursive calls",
        r#"(module (func $fib (param $n i32) (result i32)
            (if (result i32) (i32.lt_u (local.get $n) (i32.const 2)) (then (local.get $n))
              (else (i32.add (call $fib (i32.sub (local.get $n) (i32.const 1))) (call $fib (i32.sub (local.get $n) (i32.const 2)))))))
          (func (export "run") (param i32) (result i32) (call $fib (local.get 0))))"#,
        30,
    ),
    (
        "matrix product, f64",
        r#"(module (memory 24) (func (export "run") (param $n i32) (result i32)
            (local $i i32) (local $j i32) (local $k i32) (local $sum f64)
            (loop $rows
              (local.set $j (i32.const 0))
              (loop $columns
                (local.set $k (i32.const 0)) (local.set $sum (f64.const 0))
                (loop $dot
                  (local.set $sum (f64.add (local.get $sum) (f64.mul
                    (f64.load (i32.shl (i32.add (i32.mul (local.get $i) (local.get $n)) (local.get $k)) (i32.const 3)))
                    (f64.load offset=524288 (i32.shl (i32.add (i32.mul (local.get $k) (local.get $n)) (local.get $j)) (i32.const 3))))))
                  (br_if $dot (i32.lt_u (local.tee $k (i32.add (local.get $k) (i32.const 1))) (local.get $n))))
                (f64.store offset=1048576 (i32.shl (i32.add (i32.mul (local.get $i) (local.get $n)) (local.get $j)) (i32.const 3)) (local.get $sum))
                (br_if $columns (i32.lt_u (local.tee $j (i32.add (local.get $j) (i32.const 1))) (local.get $n))))
              (br_if $rows (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (local.get $n))))
            (i32.trunc_sat_f64_s (local.get $sum))))"#,
        200,
    ),
    (
        "sieve of 64 KiB",
        r#"(module (memory 1) (func (export "run") (param $n i32) (result i32) (local $i i32) (local $j i32) (local $count i32)
            (loop $round
              (memory.fill (i32.const 0) (i32.const 0) (i32.const 65536))
              (local.set $i (i32.const 2))
              (loop $next
                (if (i32.eqz (i32.load8_u (local.get $i))) (then
                  (local.set $count (i32.add (local.get $count) (i32.const 1)))
                  (local.set $j (i32.shl (local.get $i) (i32.const 1)))
                  (block $done (loop $strike
                    (br_if $done (i32.ge_u (local.get $j) (i32.const 65536)))
                    (i32.store8 (local.get $j) (i32.const 1))
                    (local.set $j (i32.add (local.get $j) (local.get $i)))
                    (br $strike)))))
                (br_if $next (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 65536))))
              (br_if $round (local.tee $n (i32.sub (local.get $n) (i32.const 1)))))
            (local.get $count)))"#,
        40,
    ),
    (
        "interpreter, br_table in a loop",
        r#"(module (func (export "run") (param $n i32) (result i32) (local $x i32)
            (loop $step
              (block $next (block $d (block $c (block $b (block $a
                (br_table $a $b $c $d (i32.and (local.get $n) (i32.const 3))))
                (local.set $x (i32.add (local.get $x) (local.get $n))) (br $next))
                (local.set $x (i32.xor (local.get $x) (local.get $n))) (br $next))
                (local.set $x (i32.rotl (local.get $x) (i32.const 5))) (br $next))
                (local.set $x (i32.sub (local.get $x) (local.get $n))))
              (br_if $step (local.tee $n (i32.sub (local.get $n) (i32.const 1)))))
            (local.get $x)))"#,
        5_000_000,
    ),
    (
        "indirect calls in a loop",
        r#"(module (type $op (func (param i32) (result i32))) (table funcref (elem $inc $dec $neg $dbl))
          (func $inc (param i32) (result i32) (i32.add (local.get 0) (i32.const 1)))
          (func $dec (param i32) (result i32) (i32.sub (local.get 0) (i32.const 3)))
          (func $neg (param i32) (result i32) (i32.xor (local.get 0) (i32.const -1)))
          (func $dbl (param i32) (result i32) (i32.shl (local.get 0) (i32.const 1)))
          (func (export "run") (param $n i32) (result i32) (local $x i32)
            (loop $step
              (local.set $x (call_indirect (type $op) (local.get $x) (i32.and (local.get $n) (i32.const 3))))
              (br_if $step (local.tee $n (i32.sub (local.get $n) (i32.const 1)))))
            (local.get $x)))"#,
        3_000_000,
    ),
];

fn limits() -> Limits {
    let tier = wasmgate::domain::Tier::defaults().pop().expect("there are tiers");
    Limits { fuel: u64::MAX >> 2, wall_ms: Duration::from_secs(10), ..tier.limits }
}

fn engine(dir: &Path) -> Arc<Engine> {
    let config = wasmgate::config::parse("", "defaults", dir).expect("the defaults are valid").engine;
    let compiler_exe = env!("CARGO_BIN_EXE_wasmgate").into();
    Engine::new(Settings { data_dir: dir.to_owned(), artifact_key: [1; 32], compiler_exe, config })
        .expect("a new temporary directory can be used")
}

struct Bench {
    runtime: Runtime,
    dir: tempfile::TempDir,
    engine: Arc<Engine>,
    missed: u32,
}

impl Bench {
    fn new() -> Bench {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
        let dir = tempfile::tempdir().expect("a temporary directory");
        let engine = engine(dir.path());
        Bench { runtime, dir, engine, missed: 0 }
    }

    /// One line of the table. `aim`: at most.
    fn row(&mut self, name: &str, took: Duration, aim: Option<Duration>) {
        let mark = match aim {
            None => String::new(),
            Some(aim) if took <= aim => format!("met:    at most {aim:?}"),
            Some(aim) => {
                self.missed += 1;
                format!("MISSED: at most {aim:?}")
            }
        };
        println!("{name:<52} {:>10.2} us  {mark}", took.as_secs_f64() * 1e6);
    }

    fn inspect(&self, wasm: &[u8], abi: Abi) -> Inspected {
        self.engine.inspect(wasm, Some(abi), 64 * MIB, &limits()).expect("the guest is valid")
    }

    fn load(&self, wasm: &[u8], abi: Abi, compiler: Compiler) -> Arc<LoadedModule> {
        let inspected = self.inspect(wasm, abi);
        let bytes = Bytes::copy_from_slice(wasm);
        self.runtime.block_on(async {
            self.engine.install(bytes, &inspected, compiler).await.expect("the guest compiles");
            self.engine.load(None, inspected.digest, inspected.abi, &inspected.shape).await.expect("the guest loads")
        })
    }

    fn run(&self, module: &Arc<LoadedModule>, input: Input) {
        let owner = "bench".parse().expect("a valid name");
        let (label, limits, cancel) = ("bench".into(), limits(), Cancel::default());
        let job = Job { module: module.clone(), owner, label, limits, input, cancel };
        let finished = self.runtime.block_on(self.engine.run(job));
        black_box(finished.result.expect("the guest runs"));
    }

    /// A whole run: store, instance, call and drop.
    fn runs(&mut self) {
        let stdin = || Input { stdin: Bytes::from_static(b"1.5\n2.5\n"), ..Input::default() };
        let small = self.load(&wat(EIGHT_IMPORTS), Abi::Command, Compiler::Optimising);
        self.on_the_pool("small module, on the pool", &small, stdin);
        self.inline("small module with 8 host functions", &small, stdin, Duration::from_micros(10));
        match c_command(self.dir.path()) {
            Some(wasm) => {
                let name = format!("C command of {} KB", wasm.len() / 1000);
                let module = self.load(&wasm, Abi::Command, Compiler::Optimising);
                self.inline(&name, &module, stdin, Duration::from_micros(30));
                self.first_load(&wasm);
            }
            None => println!("clang for wasm32-wasi is not here: no command in C"),
        }
    }

    fn on_the_pool(&mut self, name: &str, module: &Arc<LoadedModule>, input: impl Fn() -> Input) {
        // A module without a history of short runs goes to the pool.
        let took = median((0..ROUNDS).map(|_| mean(8, || self.run(module, input()))));
        self.row(name, took, None);
    }

    fn inline(&mut self, name: &str, module: &Arc<LoadedModule>, input: impl Fn() -> Input, aim: Duration) {
        for _ in 0..500 {
            self.run(module, input());
        }
        let took = median((0..ROUNDS).map(|_| mean(5_000, || self.run(module, input()))));
        self.row(name, took, Some(aim));
    }

    /// A stored artifact: read, verified, made runnable.
    fn first_load(&mut self, wasm: &[u8]) {
        let inspected = self.inspect(wasm, Abi::Command);
        let took = median((0..ROUNDS).map(|_| {
            let _context = self.runtime.enter();
            let engine = engine(self.dir.path());
            mean(1, || {
                let loaded = engine.load(None, inspected.digest, inspected.abi, &inspected.shape);
                assert!(self.runtime.block_on(loaded).is_ok(), "the guest loads");
            })
        }));
        self.row("its stored artifact loaded", took, None);
        let took = median((0..ROUNDS).map(|_| mean(10, || drop(black_box(self.inspect(wasm, Abi::Command))))));
        self.row("its checks at upload", took, None);
    }

    /// Kernels through the engine, and compiled by Wasmer alone.
    fn kernels(&mut self) {
        println!("\n{:<36} {:>12} {:>12} {:>8}", "kernel", "bare ms", "fuel ms", "fuel");
        for (name, text, n) in KERNELS {
            let wasm = wat(text);
            let module = self.load(&wasm, Abi::Core, Compiler::Optimising);
            let input = || Input { function_args: vec![n.to_string()], ..Input::default() };
            let mut store = wasmer::Store::new(wasmer::sys::EngineBuilder::new(wasmer::sys::Cranelift::new()).engine());
            let alone = wasmer::Module::new(&store, &wasm).expect("the guest compiles");
            let instance = wasmer::Instance::new(&mut store, &alone, &wasmer::imports! {}).expect("the guest starts");
            let run = instance.exports.get_typed_function::<i32, i32>(&store, "run").expect("its export");
            let (mut bare, mut fuel) = (Vec::new(), Vec::new());
            for _ in 0..ROUNDS {
                bare.push(mean(3, || drop(black_box(run.call(&mut store, n)))));
                fuel.push(mean(3, || self.run(&module, input())));
            }
            let (bare, fuel) = (fastest(bare).as_secs_f64() * 1e3, fastest(fuel).as_secs_f64() * 1e3);
            println!("{name:<36} {bare:>12.3} {fuel:>12.3} {:>+7.1}%", (fuel / bare - 1.0) * 100.0);
        }
    }
}

fn wat(text: &str) -> Vec<u8> {
    wat::parse_str(text).expect("the guest's text is valid")
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

/// Processor time of all threads.
fn mean(times: u32, mut work: impl FnMut()) -> Duration {
    let began = cpu_time();
    for _ in 0..times {
        work();
    }
    (cpu_time() - began) / times
}

fn cpu_time() -> Duration {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a `timespec` of ours.
    let rc = unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut now) };
    assert_eq!(rc, 0, "the clock is there");
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0))
}

fn median(figures: impl IntoIterator<Item = Duration>) -> Duration {
    let mut figures: Vec<_> = figures.into_iter().collect();
    figures.sort();
    figures[figures.len() / 2]
}

fn fastest(figures: Vec<Duration>) -> Duration {
    figures.into_iter().min().unwrap_or_default()
}

fn main() {
    let mut bench = Bench::new();
    bench.runs();
    bench.kernels();
    if bench.missed > 0 {
        println!("\n{} figures miss their aim", bench.missed);
        std::process::exit(1);
    }
}
