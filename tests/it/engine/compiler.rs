//! The compiler's processes: their bounds of time and memory, their queue, and the one that waits.

use std::path::Path;

use super::*;
use crate::support::{Gateway, api, eventually, wat};

/// A compiler that never ends and leaves its process id in `hung`.
fn hanging_compiler(dir: &std::path::Path) -> PathBuf {
    let (exe, hung) = (dir.join("compiler"), dir.join("hung"));
    let script = format!("#!/bin/sh\necho $$ > {0}.new; mv {0}.new {0}; exec sleep 300\n", hung.display());
    write_executable(&exe, &script);
    exe
}

#[tokio::test]
async fn a_compile_waits_for_a_process_in_bounds_and_dies_with_its_caller() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config();
    config.compile.processes = 1;
    let compiler_exe = hanging_compiler(dir.path());
    let engine =
        Engine::new(Settings { data_dir: dir.path().join("data"), artifact_key: [7; 32], compiler_exe, config })
            .unwrap();
    let install = |wat: &str| {
        let (engine, bytes) = (engine.clone(), Bytes::from(wat::parse_str(wat).unwrap()));
        async move {
            let inspected = engine.inspect(&bytes, None, MIB, &limits()).unwrap();
            engine.install(bytes, &inspected, Compiler::Optimising).await
        }
    };
    let hanging = tokio::spawn(install(SIEVE));
    let hung = dir.path().join("hung");
    eventually_async("the compiler starts", || hung.exists()).await;
    let process = PathBuf::from("/proc").join(std::fs::read_to_string(&hung).unwrap().trim());
    assert!(process.exists());

    let begun = Instant::now();
    assert!(matches!(install(SPIN).await, Err(InstallError::Busy)));
    let waited = begun.elapsed();
    assert!((Duration::from_secs(5)..DEADLINE).contains(&waited), "{waited:?}");

    hanging.abort();
    eventually_async("the compiler ends with its upload", || !process.exists()).await;
    eventually_async("it no longer counts as running", || engine.stats().compiling == 0).await;
}

#[tokio::test]
async fn a_compiler_that_hangs_is_killed_at_its_deadline() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config();
    config.compile.cpu = Duration::from_secs(1);
    let compiler_exe = hanging_compiler(dir.path());
    let engine =
        Engine::new(Settings { data_dir: dir.path().join("data"), artifact_key: [7; 32], compiler_exe, config })
            .unwrap();
    let bytes = Bytes::from(wat::parse_str(SIEVE).unwrap());
    let inspected = engine.inspect(&bytes, None, MIB, &limits()).unwrap();
    match engine.install(bytes, &inspected, Compiler::Optimising).await {
        Err(InstallError::NotLoadable(e)) => assert_eq!(e.kind, NotLoadableKind::CompileLimit),
        other => panic!("{other:?}"),
    }
    let process = PathBuf::from("/proc").join(std::fs::read_to_string(dir.path().join("hung")).unwrap().trim());
    eventually_async("the compiler ends at its deadline", || !process.exists()).await;
}

/// More stored modules without artifacts than may wait: a moment's want of compilers says nothing of a module.
#[tokio::test]
async fn too_many_stored_modules_to_compile_again_is_busy() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config();
    config.compile.processes = 1;
    let compiler_exe = hanging_compiler(dir.path());
    let data = dir.path().join("data");
    let engine = Engine::new(Settings { data_dir: data.clone(), artifact_key: [7; 32], compiler_exe, config }).unwrap();
    let stored = |n: u32| {
        let wat = format!(r#"(module (func (export "run") (result i32) (i32.const {n})))"#);
        let bytes = wat::parse_str(wat).unwrap();
        let inspected = engine.inspect(&bytes, None, MIB, &limits()).unwrap();
        std::fs::write(data.join(format!("modules/{}.wasm", inspected.digest.hex())), bytes).unwrap();
        inspected
    };
    let mut loads = tokio::task::JoinSet::new();
    for n in 0..40 {
        let (engine, of) = (engine.clone(), stored(n));
        loads.spawn(async move { engine.load(None, of.digest, of.abi, &of.shape).await });
    }
    let first = loads.join_next().await.unwrap().unwrap();
    assert!(matches!(first, Err(RunError::Busy { .. })), "{:?}", first.err());
    loads.abort_all();
}

/// The process that was started ahead of its job.
fn waiting(gw: &Gateway) -> PathBuf {
    let mut found = None;
    eventually("a compiler waits for its job", || {
        let mut processes = gw.children().into_iter().map(|pid| Path::new("/proc").join(pid.to_string()));
        let is_ahead = |process: &PathBuf| {
            std::fs::read(process.join("cmdline")).is_ok_and(|line| line.ends_with(b"\0__compile\0ahead\0"))
        };
        found = processes.find(is_ahead);
        found.is_some()
    });
    found.expect("it was found")
}

#[test]
fn the_process_that_waits_has_nothing_of_the_gateway_and_compiles_one_module() {
    let gw = Gateway::start(&api::config(""));
    assert_eq!(gw.children(), [0; 0], "a gateway that compiles nothing has no process for it");
    let mut n = 0;
    let mut upload = || {
        n += 1;
        let text = format!(r#"(module (func (export "run") (result i32) (i32.const {n})))"#);
        gw.upload("good/m", "core", &wat(&text));
    };
    upload();
    let first = waiting(&gw);
    eventually("it has its own three descriptors and no other", || {
        let descriptors = std::fs::read_dir(first.join("fd")).expect("it runs").flatten();
        let mut descriptors: Vec<_> = descriptors.map(|fd| fd.file_name()).collect();
        descriptors.sort();
        descriptors == ["0", "1", "2"]
    });
    assert_eq!(std::fs::read_to_string(first.join("environ")).unwrap(), "MIMALLOC_ARENA_RESERVE=65536\0");
    eventually("it ends with its job", || {
        upload();
        !first.exists()
    });

    // It may be killed meanwhile, as when memory runs out: the next compile has one of its own.
    let second = waiting(&gw);
    assert_ne!(second, first);
    let pid = second.file_name().and_then(|pid| pid.to_str()).unwrap();
    assert!(std::process::Command::new("kill").args(["-KILL", pid]).status().unwrap().success());
    eventually("it is killed, with all of its threads", || {
        let is_zombie = || std::fs::read_to_string(second.join("stat")).map_or(true, |stat| stat.contains(") Z "));
        std::fs::read_dir(second.join("task")).map_or(true, |threads| threads.count() <= 1) && is_zombie()
    });
    upload();
    assert_ne!(waiting(&gw), second);
}
