//! Modules with WASIX imports: what works, what is denied, and that nothing in wasmer-wasix outlasts or outgrows a run.

use super::*;

use crate::support::api::{self, Form};
use crate::support::toml::tier;
use crate::support::{Gateway, Response, wasix_guest};

fn args(args: &[&str]) -> Input {
    Input { args: args.iter().map(|arg| (*arg).to_owned()).collect(), ..Input::default() }
}

/// Runs `tests/guests/wasix/hostile.c` with this attack.
async fn hostile(kit: &Kit, attack: &str, limits: Limits) -> Finished {
    let module = kit.load_bytes(wasix_guest("hostile").into(), None, Compiler::Fast).await.unwrap();
    kit.run(&module, limits, args(&[attack])).await
}

/// Numbers that the guest wrote.
#[track_caller]
fn numbers(finished: &Finished) -> Vec<u64> {
    let output = finished.result.as_ref().unwrap_or_else(|e| panic!("{e}"));
    let stderr = String::from_utf8_lossy(&finished.stderr);
    assert_eq!(output.exit_code, 0, "{stderr}");
    let text = String::from_utf8_lossy(&output.stdout);
    text.split_whitespace().map(|n| n.parse().unwrap()).collect()
}

#[tokio::test]
async fn files_live_as_long_as_the_run() {
    let kit = Kit::new();
    let bytes = Bytes::from(wasix_guest("files"));
    for compiler in [Compiler::Fast, Compiler::Optimising] {
        let module = kit.load_bytes(bytes.clone(), None, compiler).await.unwrap();
        assert_eq!(module.abi(), Abi::Command);
        for _ in 0..2 {
            let input = Input {
                env: vec![("NAME".into(), "value".into())],
                stdin: Bytes::from_static(b"first\nsecond\n"),
                ..args(&["one"])
            };
            let finished = kit.run(&module, limits(), input).await;
            let output = finished.result.unwrap();
            assert_eq!(String::from_utf8_lossy(&output.stdout), "ok value one first\n", "{:?}", finished.stderr);
            assert_eq!((output.exit_code, &finished.stderr[..]), (7, b"done\n".as_slice()));
            assert_eq!(finished.meter.output_bytes, 19);
            assert!(finished.meter.fuel > 1_000 && finished.meter.memory_peak_bytes >= 2 << 16);
        }
    }
}

#[tokio::test]
async fn assets_are_read_and_never_changed() {
    let kit = Kit::new();
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(5);
    header.set_mode(0o644);
    tar.append_data(&mut header, "data/deep/hello", &b"hello"[..]).unwrap();
    let assets = Some(wasmgate::engine::Assets::read(&tar.into_inner().unwrap(), MIB).unwrap());
    let module = kit.load_bytes(wasix_guest("assets").into(), None, Compiler::Fast).await.unwrap();
    for _ in 0..2 {
        let finished = kit.run(&module, limits(), Input { assets: assets.clone(), ..Input::default() }).await;
        numbers(&finished);
    }
    let finished = kit.run(&module, limits(), Input::default()).await;
    assert_eq!(finished.result.unwrap().exit_code, 1, "without them there are none");
}

#[tokio::test]
async fn imports_say_who_serves_a_module() {
    let kit = Kit::new();
    let import = |module: &str, name: &str, ty: &str| {
        format!(
            r#"(module (import "{module}" "{name}" (func {ty})) (memory (export "memory") 1) (func (export "_start")))"#
        )
    };
    for known in [
        import("wasix_32v1", "thread_sleep", "(param i64) (result i32)"),
        import("wasix_32v1", "proc_fork", "(param i32 i32) (result i32)"),
        import("wasi_snapshot_preview1", "path_symlink", "(param i32 i32 i32 i32 i32) (result i32)"),
    ] {
        assert!(kit.run_wat(&known).await.result.is_ok(), "{known}");
    }
    let sleep = |ty| import("wasix_32v1", "thread_sleep", ty);
    assert_refused(&kit.refusal(&sleep("(param i32)")), UnknownImport, "(i64) -> i32");
    assert_refused(&kit.refusal(&import("wasix_32v1", "no_such", "")), UnknownImport, "`wasix_32v1.no_such`");
    assert_refused(&kit.refusal(&import("wasix_64v1", "fd_read", "")), UnknownImport, "wasix_32v1");
    let as_handler = kit.refusal_as(&sleep("(param i64) (result i32)"), Some(Abi::HttpWasm));
    assert_refused(&as_handler, UnknownImport, "`command` and `cgi`");
    let shared = r#"(module (import "wasix_32v1" "sched_yield" (func (result i32)))
        (import "env" "memory" (memory 1 2 shared)) (func (export "_start")))"#;
    assert_refused(&kit.refusal(shared), UnsupportedFeature, "threads");
    let hidden =
        r#"(module (import "wasix_32v1" "sched_yield" (func (result i32))) (memory 1) (func (export "_start")))"#;
    assert_refused(&kit.refusal(hidden), MissingExport, "memory");
}

#[tokio::test]
async fn what_reaches_out_is_denied() {
    let kit = Kit::new();
    let finished = hostile(&kit, "deny", limits()).await;
    assert_eq!(finished.result.unwrap().exit_code, 0, "{}", String::from_utf8_lossy(&finished.stderr));
    for (attack, words) in [("exec", "proc_exec"), ("restore", "stack_restore")] {
        let finished = hostile(&kit, attack, limits()).await;
        let GuestFailure::Trap { reason, .. } = failure(&finished) else { panic!("{:?}", finished.result) };
        assert!(reason.contains(words), "{reason}");
    }
    assert_eq!(hostile(&kit, "exit", limits()).await.result.unwrap().exit_code, 9);
    assert_eq!(hostile(&kit, "empty-input", limits()).await.result.unwrap().exit_code, 0);
}

#[tokio::test]
async fn waits_and_loops_end_at_the_deadline() {
    let kit = Kit::new();
    let limits = Limits { wall_ms: Duration::from_millis(100), ..limits() };
    for attack in ["sleep", "poll", "huge", "writes", "calls", "chain"] {
        let finished = hostile(&kit, attack, limits.clone()).await;
        assert_eq!(*failure(&finished), GuestFailure::Deadline, "{attack}");
        let late = finished.meter.wall - limits.wall_ms;
        println!("{attack}: {late:?} late");
        assert!(late < Duration::from_secs(1), "{attack}: {late:?}");
        assert!(finished.stderr.len() <= 1_000, "{attack}");
    }
}

#[tokio::test]
async fn a_caller_that_leaves_ends_a_sleep() {
    let kit = Kit::new();
    let module = kit.load_bytes(wasix_guest("hostile").into(), None, Compiler::Fast).await.unwrap();
    let cancel = Cancel::default();
    let job = Job {
        module,
        owner: "acme".parse::<OwnerId>().unwrap(),
        label: "acme/test@1".into(),
        limits: Limits { wall_ms: Duration::from_secs(600), ..limits() },
        input: args(&["sleep"]),
        cancel: cancel.clone(),
    };
    let engine = kit.engine.clone();
    let run = tokio::spawn(async move { engine.run(job).await });
    eventually_async("it sleeps", || kit.engine.stats().guests_running == 1).await;
    cancel.cancel();
    assert_eq!(*failure(&run.await.unwrap()), GuestFailure::Cancelled);
}

#[tokio::test]
async fn files_and_descriptors_are_bounded() {
    let kit = Kit::new();
    let limits = Limits { file_bytes: 4 * MIB, ..limits() };
    let finished = hostile(&kit, "fill", limits.clone()).await;
    let [all, again] = numbers(&finished)[..] else { panic!("{:?}", finished.result) };
    assert!((3 * MIB..=4 * MIB).contains(&all) && (3 * MIB..=4 * MIB).contains(&again), "{all} {again}");
    let finished = hostile(&kit, "many", limits.clone()).await;
    let counts = numbers(&finished);
    assert!(counts.len() == 3 && counts.iter().all(|n| (500..=4_096).contains(n)), "{counts:?}");
    let depth = numbers(&hostile(&kit, "deep", limits.clone()).await)[0];
    assert!((400..=512).contains(&depth), "{depth}");
    for attack in ["duplicates", "sparse"] {
        numbers(&hostile(&kit, attack, limits.clone()).await);
    }
    let none = Limits { file_bytes: 0, ..limits };
    assert_eq!(numbers(&hostile(&kit, "fill", none).await), [0, 0]);
    assert_eq!(kit.engine.stats().memory_bytes, 0, "all is given back");
}

#[tokio::test]
async fn what_wasmer_wasix_asserts_ends_the_run_only() {
    let kit = Kit::new();
    let finished = hostile(&kit, "below-a-file", limits()).await;
    let GuestFailure::Trap { reason, .. } = failure(&finished) else { panic!("{:?}", finished.result) };
    assert!(reason.contains("path_symlink"), "{reason}");
    numbers(&hostile(&kit, "links", limits()).await);
    let finished = hostile(&kit, "pointers", limits()).await;
    assert!(matches!(failure(&finished), GuestFailure::Trap { .. }), "{:?}", finished.result);
    let finished = hostile(&kit, "output", limits()).await;
    assert_eq!(*failure(&finished), GuestFailure::OutputTooLarge);
}

/// No operation waits for a lock that its own run holds, whatever the order of operations.
#[tokio::test]
async fn churning_never_hangs() {
    let kit = Kit::new();
    let module = kit.load_bytes(wasix_guest("churn").into(), None, Compiler::Fast).await.unwrap();
    let seeds = std::env::var("WASMGATE_CHURN").ok().and_then(|n| n.parse().ok()).unwrap_or(40);
    let mut asserts = 0;
    for seed in 1..=seeds {
        let run = kit.run(&module, limits(), args(&[&seed.to_string(), "2000"]));
        let finished = tokio::time::timeout(Duration::from_secs(60), run).await;
        let finished = finished.unwrap_or_else(|_| panic!("seed {seed} hangs"));
        match &finished.result {
            Ok(output) => assert_eq!(output.exit_code, 0, "seed {seed}"),
            Err(RunError::Guest(GuestFailure::Trap { .. })) => asserts += 1,
            other => panic!("seed {seed}: {other:?}"),
        }
    }
    println!("{asserts} of {seeds} ended by an assertion");
}

// The running server.

fn run(gw: &Gateway, key: &str, attack: &str) -> Response {
    let form = Form::default().file("wasm", &wasix_guest("hostile")).field("args", attack).end();
    gw.request("POST", "/api/wasm/execute").key(key).form(form).send()
}

#[test]
fn the_server_contains_hostile_wasix_guests() {
    let small = "quotas = []\nlimits.wall = \"300ms\"\nlimits.output = \"1MiB\"";
    let gw = Gateway::start(&api::config(&tier("small", small)));
    let key = gw.key_of("small");
    for attack in ["sleep", "poll", "huge", "writes", "calls", "chain"] {
        run(&gw, &key, attack).problem(504, "handler-timeout");
    }
    for attack in ["exec", "restore", "below-a-file", "pointers"] {
        run(&gw, &key, attack).problem(502, "handler-trap");
    }
    run(&gw, &key, "output").problem(502, "handler-output-too-large");
    assert!(!gw.log().contains("wasmer_wasix") && !gw.log().contains("wasmer::"), "no guest writes our log");
    let doc = run(&gw, &key, "deny").expect(200).json();
    assert_eq!(doc["exit_code"], 0, "{doc}");
    let shared = r#"(module (import "wasix_32v1" "sched_yield" (func (result i32)))
        (import "env" "memory" (memory 1 2 shared)) (func (export "_start")))"#;
    gw.execute(&key, &crate::support::wat(shared), b"").problem(422, "unsupported-feature");
    let unknown =
        r#"(module (import "wasix_32v1" "no_such" (func)) (memory (export "memory") 1) (func (export "_start")))"#;
    gw.execute(&key, &crate::support::wat(unknown), b"").problem(422, "unknown-import");
}

#[test]
fn wasix_runs_leave_the_server_as_it_was() {
    let gw = Gateway::start(&api::config(&tier("small", "quotas = []\nlimits.wall = \"5s\"")));
    let key = gw.key_of("small");
    let run = |attack: &str| run(&gw, &key, attack);
    let task = || std::fs::read_dir(format!("/proc/{}/task", gw.pid())).unwrap().count();
    let rss = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", gw.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap().trim();
        line.trim_end_matches(" kB").parse::<u64>().unwrap()
    };
    for _ in 0..150 {
        run("sparse").expect(200);
    }
    let (tasks, memory) = (task(), rss());
    for _ in 0..500 {
        run("sparse").expect(200);
    }
    // The pool may have started a few more.
    assert!(task() < tasks + 20, "{} threads after {tasks}", task());
    assert!(rss() < memory + 8_192, "{} kB after {memory} kB", rss());
}
