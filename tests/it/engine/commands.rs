//! WASI commands: output, exits, clocks, and what is out of their reach.

use super::*;

fn wasi(body: &str) -> String {
    format!(
        r#"(module
        (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
        (import "wasi_snapshot_preview1" "clock_time_get" (func $clock (param i32 i64 i32) (result i32)))
        (import "wasi_snapshot_preview1" "path_open"
          (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
        (memory (export "memory") 2)
        (data (i32.const 1024) "hello\n")
        (func $put (param $fd i32) (param $at i32) (param $len i32)
          (i32.store (i32.const 0) (local.get $at)) (i32.store (i32.const 4) (local.get $len))
          (drop (call $write (local.get $fd) (i32.const 0) (i32.const 1) (i32.const 8))))
        (func (export "_start") {body}))"#
    )
}

#[tokio::test]
async fn proc_exit_ends_a_command_with_its_output() {
    let kit = Kit::new();
    for code in [0, 3, 255] {
        let body = format!(
            "(call $put (i32.const 1) (i32.const 1024) (i32.const 6)) (call $exit (i32.const {code})) unreachable"
        );
        let finished = kit.run_wat(&wasi(&body)).await;
        let output = finished.result.unwrap();
        assert_eq!((output.exit_code, &output.stdout[..]), (code, b"hello\n".as_slice()));
        assert_eq!(finished.meter.output_bytes, 6);
    }
}

#[tokio::test]
async fn bad_pointers_trap_and_files_are_out_of_reach() {
    let kit = Kit::new();
    for body in [
        "(drop (call $write (i32.const 1) (i32.const -8) (i32.const 1) (i32.const 0)))",
        "(call $put (i32.const 1) (i32.const 131071) (i32.const 2))",
        "(call $put (i32.const 1) (i32.const 0) (i32.const -1))",
        "(drop (call $clock (i32.const 0) (i64.const 0) (i32.const 131068)))",
    ] {
        let finished = kit.run_wat(&wasi(body)).await;
        assert!(matches!(failure(&finished), GuestFailure::Trap { .. }), "{body}: {:?}", finished.result);
    }
    // ENOENT is 44.
    let open = "(call $exit (call $open (i32.const 3) (i32.const 0) (i32.const 1024) (i32.const 5) (i32.const 0)
        (i64.const 0) (i64.const 0) (i32.const 0) (i32.const 0)))";
    assert_eq!(kit.run_wat(&wasi(open)).await.result.unwrap().exit_code, 44);
}

#[tokio::test]
async fn a_command_in_c_sees_its_arguments_environment_and_input() {
    let Some(bytes) = compile_c(
        "echo",
        r#"
        #include <stdio.h>
        #include <stdlib.h>
        #include <string.h>
        #include <time.h>
        int main(int argc, char **argv) {
            for (int i = 1; i < argc; i++) printf("arg %s\n", argv[i]);
            printf("env %s %s\n", getenv("NAME"), getenv("HOME") ? "leaked" : "clean");
            char line[64];
            while (fgets(line, sizeof line, stdin)) printf("in %s", line);
            if (fopen("/etc/passwd", "r")) printf("file!\n");
            char *p = malloc(100000); memset(p, 1, 100000); free(p);
            if (time(0) < 1600000000) printf("no time\n");
            fprintf(stderr, "done\n");
            return 5;
        }"#,
    ) else {
        return;
    };
    let kit = Kit::new();
    for compiler in [Compiler::Fast, Compiler::Optimising] {
        let module = kit.load_bytes(bytes.clone(), None, compiler).await.unwrap();
        assert_eq!(module.abi(), Abi::Command);
        let input = Input {
            args: vec!["one".into(), "two words".into()],
            env: vec![("NAME".into(), "value".into())],
            stdin: Bytes::from_static(b"first\nsecond\n"),
            ..Input::default()
        };
        let finished = kit.run(&module, limits(), input).await;
        let output = finished.result.unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert_eq!(text, "arg one\narg two words\nenv value clean\nin first\nin second\n");
        assert_eq!((output.exit_code, &finished.stderr[..]), (5, b"done\n".as_slice()));
        assert!(finished.meter.cpu > Duration::ZERO && finished.meter.memory_peak_bytes >= 2 << 16);
    }
}

#[tokio::test]
async fn a_cgi_guest_in_c_answers() {
    let Some(bytes) = compile_c(
        "cgi",
        r#"
        #include <stdio.h>
        #include <stdlib.h>
        int main(void) {
            printf("Status: 201 Created\r\nContent-Type: text/plain\r\nX-Path: %s\r\n\r\n", getenv("PATH_INFO"));
            int c; while ((c = getchar()) != EOF) putchar(c);
            return 0;
        }"#,
    ) else {
        return;
    };
    let kit = Kit::new();
    let module = kit.load_bytes(bytes, Some(Abi::Cgi), Compiler::Fast).await.unwrap();
    let input = Input {
        env: vec![("PATH_INFO".into(), "/a/b".into())],
        stdin: Bytes::from_static(b"\xff\x00body"),
        ..Input::default()
    };
    let output = kit.run(&module, limits(), input).await.result.unwrap();
    let reply = Engine::cgi_reply(output.stdout).unwrap();
    assert_eq!((reply.status, &reply.body[..]), (201, b"\xff\x00body".as_slice()));
    assert_eq!(reply.headers[1].1, "/a/b");
}

/// A guest in C, where clang and wasi-libc are installed; `scripts/test` installs them.
fn compile_c(name: &str, source: &str) -> Option<Bytes> {
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("engine-guests");
    std::fs::create_dir_all(&dir).unwrap();
    let (c, wasm) = (dir.join(format!("{name}.c")), dir.join(format!("{name}.wasm")));
    std::fs::write(&c, source).unwrap();
    let clang = std::process::Command::new("clang")
        .args(["--target=wasm32-wasi", "-O2", "-s", "-o"])
        .arg(&wasm)
        .arg(&c)
        .output();
    match clang {
        Ok(output) if output.status.success() => Some(std::fs::read(&wasm).unwrap().into()),
        Ok(output) => panic!("clang: {}", String::from_utf8_lossy(&output.stderr)),
        Err(_) => {
            eprintln!("clang is not installed: the C guest `{name}` is not tried");
            None
        }
    }
}
