//! The engine: every way in which a guest can go wrong. Most drive it directly with guests in text format, against the
//! real compiler process, memory pool and guest threads; what owners do to each other is asked of the running server.

mod artifacts;
pub mod bombs;
mod commands;
mod compiler;
mod core;
mod fuel;
mod generated;
mod inspection;
mod memory;
mod owners;
mod pool;
mod tiers;
mod wasix;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use wasmgate::domain::rejection::NotLoadableKind::{self, *};
use wasmgate::domain::{Abi, GuestFailure, Limits, NotLoadable, OwnerId, Tier};
use wasmgate::engine::{
    Cancel, Compiler, Engine, Finished, Input, InstallError, Job, LoadedModule, RunError, Settings,
};

use crate::support::{DEADLINE, eventually_async};

const MIB: u64 = 1 << 20;

/// Nothing of it depends on the machine.
pub fn config() -> wasmgate::config::Engine {
    let defaults = wasmgate::config::parse("", "defaults", Path::new("/")).unwrap().engine;
    wasmgate::config::Engine {
        threads: 2,
        queue_timeout: Duration::from_secs(20),
        per_owner: 2,
        memory_budget_bytes: Some(512 * MIB),
        ..defaults
    }
}

fn limits() -> Limits {
    Limits {
        fuel: 1_000_000_000_000,
        memory_bytes: 16 * MIB,
        wall_ms: Duration::from_secs(20),
        input_bytes: MIB,
        output_bytes: MIB,
        log_bytes: 1_000,
        table_elements: 1_000,
        ..Tier::defaults().remove(0).limits
    }
}

struct Kit {
    engine: Arc<Engine>,
    dir: tempfile::TempDir,
}

impl Kit {
    fn new() -> Kit {
        Kit::with(config())
    }

    fn with(config: wasmgate::config::Engine) -> Kit {
        let dir = tempfile::tempdir().unwrap();
        let engine = open(dir.path().to_owned(), [7; 32], config);
        Kit { engine, dir }
    }

    async fn try_load(
        &self,
        wat: &str,
        abi: Option<Abi>,
        compiler: Compiler,
    ) -> Result<Arc<LoadedModule>, NotLoadable> {
        let bytes = Bytes::from(wat::parse_str(wat).expect("the test's own text is valid"));
        self.load_bytes(bytes, abi, compiler).await
    }

    async fn load_bytes(
        &self,
        bytes: Bytes,
        abi: Option<Abi>,
        compiler: Compiler,
    ) -> Result<Arc<LoadedModule>, NotLoadable> {
        let inspected = self.engine.inspect(&bytes, abi, 64 * MIB, &limits())?;
        match compiler {
            Compiler::Fast => match self.engine.load_inline(bytes, &inspected, None).await {
                Ok(module) => Ok(module),
                Err(InstallError::NotLoadable(e)) => Err(e),
                Err(e) => panic!("{e}"),
            },
            Compiler::Optimising => match self.engine.install(bytes, &inspected, compiler).await {
                Ok(()) => Ok(self.engine.load(None, inspected.digest, inspected.abi, &inspected.shape).await.unwrap()),
                Err(InstallError::NotLoadable(e)) => Err(e),
                Err(e) => panic!("{e}"),
            },
        }
    }

    async fn load(&self, wat: &str) -> Arc<LoadedModule> {
        self.try_load(wat, None, Compiler::Fast).await.unwrap()
    }

    fn refusal(&self, wat: &str) -> NotLoadable {
        self.refusal_as(wat, None)
    }

    fn refusal_as(&self, wat: &str, abi: Option<Abi>) -> NotLoadable {
        let bytes = wat::parse_str(wat).expect("the test's own text is valid");
        self.engine.inspect(&bytes, abi, 64 * MIB, &limits()).expect_err("it must be refused")
    }

    async fn run(&self, module: &Arc<LoadedModule>, limits: Limits, input: Input) -> Finished {
        self.run_as("acme", module, limits, input).await
    }

    async fn run_as(&self, owner: &str, module: &Arc<LoadedModule>, limits: Limits, input: Input) -> Finished {
        let job = Job {
            module: module.clone(),
            owner: owner.parse::<OwnerId>().unwrap(),
            label: "acme/test@1".into(),
            limits,
            input,
            cancel: Cancel::default(),
        };
        self.engine.run(job).await
    }

    async fn run_wat(&self, wat: &str) -> Finished {
        let module = self.load(wat).await;
        self.run(&module, limits(), Input::default()).await
    }
}

pub fn open(data_dir: PathBuf, artifact_key: [u8; 32], config: wasmgate::config::Engine) -> Arc<Engine> {
    let compiler_exe = env!("CARGO_BIN_EXE_wasmgate").into();
    Engine::new(Settings { data_dir, artifact_key, compiler_exe, config }).unwrap()
}

fn failure(finished: &Finished) -> &GuestFailure {
    match &finished.result {
        Err(RunError::Guest(failure)) => failure,
        other => panic!("expected a guest failure, got {other:?}"),
    }
}

#[track_caller]
fn assert_refused(refusal: &NotLoadable, kind: NotLoadableKind, words: &str) {
    assert_eq!(refusal.kind, kind, "{refusal}");
    assert!(refusal.detail.contains(words), "`{}` does not name `{words}`", refusal.detail);
}

// Guests of several subjects.

/// Counts primes below its argument.
const SIEVE: &str = r#"(module (memory 1) (func (export "run") (param $n i32) (result i32)
    (local $i i32) (local $j i32) (local $count i32)
    (local.set $i (i32.const 2))
    (loop $outer
      (if (i32.eqz (i32.load8_u (local.get $i))) (then
        (local.set $count (i32.add (local.get $count) (i32.const 1)))
        (local.set $j (i32.mul (local.get $i) (i32.const 2)))
        (block $done (loop $inner
          (br_if $done (i32.ge_u (local.get $j) (local.get $n)))
          (i32.store8 (local.get $j) (i32.const 1))
          (local.set $j (i32.add (local.get $j) (local.get $i)))
          (br $inner)))))
      (local.set $i (i32.add (local.get $i) (i32.const 1)))
      (br_if $outer (i32.lt_u (local.get $i) (local.get $n))))
    (local.get $count)))"#;

const SPIN: &str = r#"(module (func (export "run") (loop (br 0))))"#;

/// Grows by its argument of pages.
const GROW: &str = r#"(module (memory 1) (func (export "run") (param i32) (result i32) (memory.grow (local.get 0))))"#;

fn number(n: u32) -> Input {
    Input { function_args: vec![n.to_string()], ..Input::default() }
}

/// Written by another process: a descriptor that some fork of this one inherits would make the file busy.
fn write_executable(path: &Path, script: &str) {
    let made = std::process::Command::new("sh")
        .args(["-c", r#"printf '%s' "$1" > "$2" && chmod +x "$2""#, "sh", script])
        .arg(path)
        .status();
    assert!(made.unwrap().success());
}
