//! What is refused at upload, and why: every check of the threat table about loading.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::toml::tier;
use crate::support::{Gateway, api, c_guest, wat};

/// The refusal of these bytes by the upload, by `validate` and by an inline execution alike.
#[track_caller]
fn refused(gw: &Gateway, key: &str, abi: &str, wasm: &[u8], slug: &str, named: &str) {
    let upload = gw.request("PUT", &format!("/api/wasm/modules/bad{abi}")).key(key);
    let upload = upload.header("Content-Type", "application/wasm").body(wasm).send();
    let validate = gw.request("POST", &format!("/api/wasm/validate{abi}")).key(key);
    let validate = validate.header("Content-Type", "application/wasm").body(wasm).send();
    for response in [upload, validate] {
        let doc = response.problem(422, slug);
        let detail = doc["detail"].as_str().unwrap_or_default();
        assert!(detail.contains(named), "`{named}` is not named: {detail}");
    }
    gw.get("/api/wasm/modules/bad").key(key).send().problem(404, "not-found");
}

#[test]
fn what_is_no_module_is_refused() {
    let gw = Gateway::start(&api::config(""));
    let key = gw.key();
    let whole = c_guest("core");
    refused(&gw, &key, "", b"not wasm at all", "unsupported-format", "");
    refused(&gw, &key, "", &whole[..whole.len() / 2], "invalid-module", "");
    let wrong = [b"\0asm\x01\0\0\0".as_slice(), &[1, 5, 0xff, 0xff, 0xff, 0xff, 0xff]].concat();
    refused(&gw, &key, "", &wrong, "invalid-module", "");
    refused(&gw, &key, "", &wat("(component)"), "unsupported-format", "component");
    // Type errors in a function's body.
    let ill_typed = wat("(module (func (export \"run\") (result i32) (i64.const 1)))");
    refused(&gw, &key, "", &ill_typed, "invalid-module", "");
}

#[test]
fn features_outside_the_list_are_refused_by_name() {
    let gw = Gateway::start(&api::config(""));
    let key = gw.key();
    let run = "(func (export \"run\"))";
    for (text, named) in [
        (format!("(module (memory 1 2 shared) {run})"), "thread"),
        (format!("(module (memory i64 1) {run})"), "64-bit memory"),
        (format!("(module (memory 1) (memory 1) {run})"), "memor"),
        (format!("(module (tag) {run})"), "exception"),
        ("(module (func $f) (func (export \"run\") (return_call $f)))".into(), "tail"),
    ] {
        refused(&gw, &key, "", &wat(&text), "unsupported-feature", named);
    }
    let simd = "(module (func (export \"run\") (result i32) (i32x4.extract_lane 0 (v128.const i32x4 7 0 0 0))))";
    assert_eq!(gw.execute(&key, &wat(simd), b"").expect(200).json()["result"], 7, "SIMD is on the list");
}

#[test]
fn imports_and_exports_must_fit_an_abi() {
    let gw = Gateway::start(&api::config(""));
    let key = gw.key();
    let unknown = "(module (import \"env\" \"launch\" (func)) (func (export \"run\")))";
    refused(&gw, &key, "", &wat(unknown), "unknown-import", "launch");
    let preview = "(module (import \"wasi_snapshot_preview1\" \"sock_explode\" (func)) (memory (export \"memory\") 1) (func (export \"_start\")))";
    refused(&gw, &key, "", &wat(preview), "unknown-import", "sock_explode");
    let unstable = "(module (import \"wasi_unstable\" \"fd_write\" (func (param i32 i32 i32 i32) (result i32))) (memory (export \"memory\") 1) (func (export \"_start\")))";
    refused(&gw, &key, "", &wat(unstable), "unknown-import", "wasi_unstable");
    refused(
        &gw,
        &key,
        "?abi=http-wasm",
        &wat("(module (memory (export \"memory\") 1))"),
        "missing-export",
        "handle_re",
    );
    refused(&gw, &key, "?abi=command", &wat("(module (memory (export \"memory\") 1))"), "missing-export", "_start");
    let proxy_wasm = "(module (import \"env\" \"proxy_log\" (func (param i32 i32 i32) (result i32))) (memory (export \"memory\") 1) (func (export \"proxy_abi_version_0_2_1\")))";
    refused(&gw, &key, "", &wat(proxy_wasm), "unsupported-format", "proxy-wasm");
    // An import with the right name and the wrong type.
    let typed = "(module (import \"http_handler\" \"get_uri\" (func (param i64) (result i64))) (memory (export \"memory\") 1) (func (export \"handle_request\") (result i64) (i64.const 1)) (func (export \"handle_response\") (param i32 i32)))";
    refused(&gw, &key, "", &wat(typed), "unknown-import", "get_uri");
}

#[test]
fn declared_memory_over_the_limit_is_refused() {
    let gw = Gateway::start(&api::config(&tier("tight", "quotas = []\nmodules = 10\nlimits.memory = \"1MiB\"")));
    let key = gw.key_of("tight");
    refused(
        &gw,
        &key,
        "",
        &wat("(module (memory (export \"memory\") 17) (func (export \"run\")))"),
        "memory-limit",
        "",
    );
    gw.execute(&key, &wat("(module (memory (export \"memory\") 16) (func (export \"run\")))"), b"").expect(200);
}

#[test]
fn compile_bombs_are_refused_quickly() {
    let mut gw = Gateway::start(&api::config(""));
    let key = gw.key();
    let huge = format!(
        "(module (func (export \"run\") (result i32) (i32.const 0) {}))",
        "(i32.const 1) (i32.add)".repeat(1_500_000)
    );
    let table = format!("(module (func (export \"run\") (block (br_table {} (i32.const 0)))))", "0 ".repeat(1_000_000));
    let many = format!("(module {} (func (export \"run\")))", "(func)".repeat(1_000_001));
    let locals = format!("(module (func (export \"run\") (local {})))", "i64 ".repeat(50_001));
    let types = format!("(module {} (func (export \"run\")))", "(type (func))".repeat(1_000_001));
    for (bomb, text) in [
        ("a huge function", huge),
        ("a huge br_table", table),
        ("a million functions", many),
        ("50k locals", locals),
        ("many types", types),
    ] {
        let wasm = wat(&text);
        let start = Instant::now();
        let request = gw.request("PUT", "/api/wasm/modules/bomb").key(&key).header("Content-Type", "application/wasm");
        let response = request.body(wasm).send();
        assert_eq!(response.status, 422, "{bomb}: {response}");
        let slug = response.json()["type"].as_str().unwrap_or_default().to_owned();
        assert!(["/problems/compile-limit", "/problems/invalid-module"].contains(&slug.as_str()), "{bomb}: {slug}");
        // 2 s is the contract in a release build on a quiet machine.
        assert!(start.elapsed() < Duration::from_secs(20), "{bomb}: {:?}", start.elapsed());
        gw.get("/api/wasm/modules").key(&key).send().expect(200);
    }
    assert!(gw.is_running());
}

#[test]
fn validate_tells_what_it_found_and_stores_nothing() {
    let gw = Gateway::start(&api::config(""));
    let key = gw.key();
    for (guest, abi) in [("command", "command"), ("core", "core"), ("http", "http-wasm")] {
        let request = gw.request("POST", "/api/wasm/validate").key(&key).header("Content-Type", "application/wasm");
        let doc = request.body(c_guest(guest)).send().expect(200).json();
        assert_eq!(doc["abi"], abi, "{doc}");
        assert!(doc["imports"].is_array() && doc["exports"].is_array() && doc["limits"].is_object(), "{doc}");
    }
    let listed = gw.get("/api/wasm/modules").key(&key).send().expect(200).json();
    assert_eq!(listed["modules"], Value::Array(Vec::new()), "{listed}");
}
