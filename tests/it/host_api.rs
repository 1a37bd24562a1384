//! The gateway's own functions (`wasmgate_v1`) in the running gateway, as README.md and `examples/sdk/c/wasmgate.h` describe
//! them: `tests/guests/c/host_api.h`, which runs scripts, as an http-wasm handler, a command and a CGI program.

mod caller;
mod calls;
mod values;

use std::fmt::Display;

use crate::support::toml::{route, upstream};
use crate::support::{Gateway, Request, Upstream, c_example, c_guest};

/// The guest as each ABI, by the path of the route that it answers.
const ABIS: [&str; 3] = ["http", "command", "cgi"];

/// A route at `/NAME` that this module answers. `keys`: of the handler.
fn answers(name: &str, module: &str, keys: &str, auth: &str) -> String {
    let lines = format!(
        "match.path_prefix = \"/{name}\"\ntarget.handler = {{ module = \"{module}\", wall = \"60s\"{keys} }}\nauth = \"{auth}\""
    );
    route(name, lines)
}

/// A gateway with a route for each ABI, and `more` routes. `other` has the command as well. Who waits for a place has time to,
/// on a busy machine too.
fn gateway(server: &str, keys: &str, more: &str) -> Gateway {
    let engine = if server.contains("[engine]") { "" } else { "[engine]\nqueue_timeout = \"20s\"\n" };
    let server = &format!("{engine}{server}");
    let (http, command) = (c_guest("host_api_http"), c_guest("host_api_command"));
    let modules: [(&str, &str, &[u8]); 4] = [
        ("acme/http", "http-wasm", &http),
        ("acme/command", "command", &command),
        ("acme/cgi", "cgi", &command),
        ("other/command", "command", &command),
    ];
    let routes: String = ABIS.iter().map(|abi| answers(abi, &format!("acme/{abi}"), keys, "none")).collect();
    let other = answers("other", "other/command", "", "none");
    Gateway::with_modules(server, &modules, &format!("{routes}{other}{more}"))
}

fn script(gw: &Gateway, path: &str, script: impl Display) -> Request {
    gw.post(path, script.to_string()).header("X-Answer", "yes")
}

/// What the calls of a script gave, in order.
#[track_caller]
fn run(gw: &Gateway, path: &str, lines: impl Display) -> Vec<String> {
    told(&script(gw, path, lines).send().expect(200).text())
}

fn told(text: &str) -> Vec<String> {
    text.lines().map(str::to_owned).collect()
}

/// What is not there is refused by name, and an ABI that has them not too.
#[test]
fn imports_are_known_by_name_and_signature() {
    let gw = Gateway::start("");
    let module = |import: &str, export: &str| {
        crate::support::wat(&format!("(module {import} (memory (export \"memory\") 1) {export})"))
    };
    let start = "(func (export \"_start\"))";
    let ok = "(import \"wasmgate_v1\" \"kv_delete\" (func (param i32 i32) (result i32)))";
    gw.upload("acme/ok", "command", &module(ok, start));
    for import in [
        "(import \"wasmgate_v1\" \"kv_list\" (func (param i32 i32) (result i32)))",
        "(import \"wasmgate_v1\" \"kv_delete\" (func (param i32) (result i32)))",
        "(import \"wasmgate_v2\" \"kv_delete\" (func (param i32 i32) (result i32)))",
    ] {
        gw.try_upload("acme/bad", "command", &module(import, start)).problem(422, "unknown-import");
    }
    gw.try_upload("acme/bad", "core", &module(ok, "(func (export \"run\"))")).problem(422, "unknown-import");
}

/// Beside WASIX, whose functions come from elsewhere.
#[test]
fn wasix_modules_have_them_too() {
    let wasm = crate::support::wat(
        r#"(module
        (import "wasix_32v1" "fd_sync" (func (param i32) (result i32)))
        (import "wasmgate_v1" "kv_delete" (func $delete (param i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
        (memory (export "memory") 1)
        (func (export "_start") (call $exit (i32.sub (i32.const 0) (call $delete (i32.const 0) (i32.const 1))))))"#,
    );
    let gw = Gateway::start(&crate::support::api::config(""));
    let response = gw.execute(&gw.key(), &wasm, b"");
    assert_eq!(response.expect(200).json()["exit_code"], 1, "there is no such value");
}

#[test]
fn bad_pointers_end_the_guest_and_nothing_else() {
    let gw = gateway("", "", "");
    for abi in ABIS {
        for wild in ["wild_get", "wild_version k", "wild_sum k", "wild_set k", "wild_call k"] {
            let path = format!("/{abi}");
            run(&gw, &path, "kv_set k 1 0");
            script(&gw, &path, wild).send().problem(502, "handler-trap");
        }
        // A module that fails again and again is refused for a while, so each has its own few.
    }
    assert_eq!(run(&gw, "/other", "kv_get k"), ["kv_get=-1"]);
}

/// `examples/kv-counter` does what its README says.
#[test]
fn the_counter_counts_each_caller() {
    let wasm = c_example("kv-counter/counter.c", &["-I", "../sdk/c"]);
    let up = Upstream::text("answer");
    let counted = |name: &str, auth: &str| {
        let lines = format!(
            "match.path_prefix = \"/{name}\"\ntarget.upstream = \"up\"\nauth = \"{auth}\"\nhandlers = [{{ module = \"acme/counter\", config = \"3\" }}]"
        );
        route(name, lines)
    };
    let routes = counted("open", "none") + &counted("keyed", "key");
    let gw = Gateway::with_modules(&upstream("up", up.addr, ""), &[("acme/counter", "http-wasm", &wasm)], &routes);
    let key = gw.key();
    for visit in ["1", "2", "3"] {
        for request in [gw.get("/open"), gw.get("/keyed").key(&key)] {
            let response = request.send().expect(200);
            assert_eq!((response.header("x-visits"), response.text().as_str()), (Some(visit), "answer"));
            assert_eq!(up.last().all("x-visits"), [visit]);
        }
    }
    for request in [gw.get("/open"), gw.get("/keyed").key(&key)] {
        assert_eq!(request.send().expect(429).header("x-visits"), Some("4"));
    }
}
