//! The compiler's processes: their bounds of time and memory, and their queue.

use super::*;

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
