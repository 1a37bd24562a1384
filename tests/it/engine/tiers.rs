//! Two compilers: a module answers with code that was compiled fast, which better code replaces while it is in use.

use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::Value;

use super::*;
use crate::support::api;
use crate::support::toml::{route, upstream};
use crate::support::{Gateway, Upstream, poll, wat as binary};

/// Some hundred kilobytes; gives 7.
fn large(version: u32) -> Vec<u8> {
    let body = "(local.set 1 (i32.add (i32.load (local.get 0)) (local.get 1)))
        (loop (local.set 0 (i32.sub (local.get 0) (i32.const 4))) (br_if 0 (local.get 0)))"
        .repeat(20);
    let functions = format!("(func (param i32 i32) (result i32) {body} (local.get 1))").repeat(1_000);
    binary(&format!(
        r#"(module (memory 1) (global i32 (i32.const {version}))
          (func (export "run") (result i32) (local i32)
            (loop (local.set 0 (i32.add (local.get 0) (i32.const 1))) (br_if 0 (i32.lt_u (local.get 0) (i32.const 1000))))
            (i32.const 7)) {functions})"#
    ))
}

fn compiles(gw: &Gateway, compiler: &str) -> f64 {
    gw.metric("wasm_compile_duration_seconds_count", &[&format!("compiler=\"{compiler}\"")])
}

/// Whether all stored code is optimised.
fn is_optimised(gw: &Gateway) -> bool {
    gw.artifacts("cranelift-fast").is_empty() && !gw.artifacts("cranelift").is_empty()
}

/// As `eventually`, for the optimising compiler on a busy machine.
#[track_caller]
fn in_time(what: &str, done: impl FnMut() -> bool) {
    assert!(poll(Duration::from_secs(300), done), "not in time: {what}");
}

fn execute(gw: &Gateway, key: &str, module: &str) -> Value {
    let body = serde_json::json!({"module": module});
    gw.request("POST", "/api/wasm/execute").key(key).json(&body).send().expect(200).json()
}

#[test]
fn an_upload_answers_at_once_and_gets_better_code_in_use() {
    let config = api::config("");
    let gw = Gateway::start(&config);
    let key = gw.key();
    gw.upload("acme/large", "core", &large(1));
    let first = execute(&gw, &key, "large");
    assert_eq!((compiles(&gw, "cranelift-fast"), &first["result"]), (1.0, &Value::from(7)), "{first}");
    // Not one of the requests meanwhile fails, and the code does not show in what is charged.
    in_time("the optimised code is there", || {
        let doc = execute(&gw, &key, "large");
        assert_eq!((&doc["result"], &doc["fuel"]), (&first["result"], &first["fuel"]), "{doc}");
        compiles(&gw, "cranelift") == 1.0 && is_optimised(&gw)
    });
    assert_eq!(execute(&gw, &key, "large")["fuel"], first["fuel"]);
    // The same bytes again need no compiler; nor does a restart.
    gw.upload("acme/again", "core", &large(1));
    assert_eq!((compiles(&gw, "cranelift-fast"), compiles(&gw, "cranelift")), (1.0, 1.0));
    let gw = gw.restart(&config);
    assert_eq!(execute(&gw, &key, "again")["fuel"], first["fuel"]);
    assert_eq!((compiles(&gw, "cranelift-fast"), compiles(&gw, "cranelift")), (0.0, 0.0));
}

#[test]
fn what_a_killed_gateway_left_fast_is_optimised_by_the_next() {
    let config = api::config("");
    let gw = Gateway::start(&config);
    let key = gw.key();
    gw.upload("acme/large", "core", &large(2));
    let gw = gw.restart(&config);
    assert_eq!(execute(&gw, &key, "large")["result"], 7);
    in_time("the optimised code is there", || is_optimised(&gw));
}

#[test]
fn an_inline_module_seen_again_is_promoted() {
    let gw = Gateway::start(&api::config(""));
    let key = gw.key();
    let wasm = large(3);
    gw.execute(&key, &wasm, b"").expect(200);
    assert_eq!((compiles(&gw, "cranelift-fast"), compiles(&gw, "cranelift")), (1.0, 0.0));
    let again = gw.execute(&key, &wasm, b"").expect(200).json()["fuel"].clone();
    in_time("it is optimised", || compiles(&gw, "cranelift") == 1.0);
    for _ in 0..3 {
        assert_eq!(gw.execute(&key, &wasm, b"").expect(200).json()["fuel"], again);
    }
    assert_eq!((compiles(&gw, "cranelift-fast"), compiles(&gw, "cranelift")), (1.0, 1.0));
    assert!(["cranelift", "cranelift-fast"].iter().all(|c| gw.artifacts(c).is_empty()), "nothing of it is stored");
}

/// The gateway's binary, but that it fails when it is to optimise.
fn compiler_without_optimiser(dir: &Path) -> PathBuf {
    let exe = dir.join("compiler");
    let real = env!("CARGO_BIN_EXE_wasmgate");
    let script = format!(
        "#!/bin/sh\nhead=$(dd bs=5 count=1 2>/dev/null | od -An -tx1)\n\
         case \"$head\" in *01) exit 9;; esac\n{{ printf 'WGC1\\000'; cat; }} | exec {real} \"$@\"\n"
    );
    write_executable(&exe, &script);
    exe
}

#[tokio::test]
async fn a_module_that_is_too_much_for_the_optimiser_keeps_its_code() {
    let dir = tempfile::tempdir().unwrap();
    let compiler_exe = compiler_without_optimiser(dir.path());
    let data_dir = dir.path().join("data");
    let engine =
        Engine::new(Settings { data_dir: data_dir.clone(), artifact_key: [7; 32], compiler_exe, config: config() })
            .unwrap();
    let optimised = Arc::new(AtomicU32::new(0));
    let count = optimised.clone();
    engine.observe_compiles(Box::new(move |compiler, _| {
        count.fetch_add(u32::from(compiler == Compiler::Optimising), Ordering::Relaxed);
    }));
    let kit = Kit { engine, dir };
    let bytes = Bytes::from(wat::parse_str(SIEVE).unwrap());
    let inspected = kit.engine.inspect(&bytes, None, MIB, &limits()).unwrap();
    kit.engine.install(bytes.clone(), &inspected, Compiler::Fast).await.unwrap();
    let module = kit.engine.load(None, inspected.digest, inspected.abi, &inspected.shape).await.unwrap();
    eventually_async("the optimiser has failed", || optimised.load(Ordering::Relaxed) == 1).await;
    // It is not tried again and again.
    kit.engine.install(bytes, &inspected, Compiler::Fast).await.unwrap();
    assert_eq!(kit.run(&module, limits(), number(100)).await.result.unwrap().values, [serde_json::json!(25)]);
    kit.try_load(SPIN, None, Compiler::Fast).await.unwrap();
    let other = Bytes::from(wat::parse_str(GROW).unwrap());
    let inspected = kit.engine.inspect(&other, None, MIB, &limits()).unwrap();
    kit.engine.install(other, &inspected, Compiler::Fast).await.unwrap();
    eventually_async("another has its turn", || optimised.load(Ordering::Relaxed) == 2).await;
}

#[test]
fn living_vms_move_to_the_better_code_without_a_failed_request() {
    let up = Upstream::echo();
    let guest = binary(
        r#"(module (func (export "handle_request") (result i64) (i64.const 1)) (memory (export "memory") 1)
             (func (export "handle_response") (param i32 i32)))"#,
    );
    let lines =
        "match.path_prefix = \"/\"\ntarget.upstream = \"up\"\nauth = \"none\"\nhandlers = [{ module = \"acme/m\" }]";
    let gw =
        Gateway::with_modules(&upstream("up", up.addr, ""), &[("acme/m", "http-wasm", &guest)], &route("all", lines));
    in_time("the optimised code is there", || {
        gw.get("/").send().expect(200);
        is_optimised(&gw)
    });
    for _ in 0..3 {
        gw.get("/").send().expect(200);
    }
}
