//! Calls of modules that are wrong: every form of body names the field and what to do, and none is read by guessing.

use base64::Engine as _;
use serde_json::{Value, json};

use crate::support::admin::NewKey;
use crate::support::api::{self, Form};
use crate::support::{Gateway, Request, Response, c_guest, wat};

fn post(gw: &Gateway, key: &str, query: &str) -> Request {
    gw.request("POST", &format!("/api/wasm/execute{query}")).key(key)
}

/// A gateway with a key of `acme` and its modules `cmd` and `calc`.
fn gateway() -> (Gateway, String) {
    let gw = Gateway::start(&api::config(""));
    gw.upload("acme/cmd", "command", &c_guest("command"));
    gw.upload("acme/calc", "core", &c_guest("core"));
    let key = gw.key();
    (gw, key)
}

type Fields<'a> = &'a [(&'a str, &'a str)];

/// Refused with 400, and these words in the detail.
#[track_caller]
fn refused(what: &str, response: Response, words: &[&str]) {
    let detail = response.problem(400, "bad-request")["detail"].as_str().unwrap_or_default().to_owned();
    for word in words {
        assert!(detail.contains(word), "{what}: no `{word}`: {detail}");
    }
}

#[test]
fn a_wrong_form_names_the_field_and_the_remedy() {
    let (gw, key) = gateway();
    let cases: [(Fields, &[&str]); 14] = [
        (&[("modul", "cmd")], &["`modul`", "`module`"]),
        (&[("module", "cmd"), ("module", "cmd")], &["`module`", "once"]),
        (&[("module", "cmd"), ("wasm", "x")], &["`module`", "`wasm`", "one of them"]),
        (&[("wasm", "x"), ("wasm_file", "x")], &["`wasm`", "once"]),
        (&[("module", "cmd"), ("args", "[1,true]")], &["`args`", "a string or a number"]),
        (&[("module", "cmd"), ("env", "A=1"), ("env", "B=2")], &["`env`", "once"]),
        (&[("module", "cmd"), ("env", "nonsense")], &["`env`", "`NAME=value`"]),
        (&[("module", "cmd"), ("env", "[\"A=1\"]")], &["`env`", "object"]),
        (&[("module", "cmd"), ("env", "=1")], &["`env`", "name"]),
        (&[("module", "cmd"), ("abi", "wasi")], &["`abi`", "`command`"]),
        (&[("module", "cmd"), ("abi", "core")], &["`abi`", "`command`", "leave it out"]),
        (&[("module", "calc"), ("function", "nope")], &["`function`", "`nope`", "`add`"]),
        (&[("module", "calc"), ("function", "add"), ("args", "1")], &["`args`", "2 arguments"]),
        (&[("module", "calc"), ("function", "add"), ("args", "1 x")], &["`args`", "`x`", "i32"]),
    ];
    for (fields, words) in cases {
        let form = fields.iter().fold(Form::default(), |form, (name, value)| form.field(name, value));
        refused(&format!("{fields:?}"), post(&gw, &key, "").form(form.end()).send(), words);
    }
    let form = || Form::default().field("module", "cmd").end();
    refused("query", post(&gw, &key, "?args=x").form(form()).send(), &["`args`", "body"]);
    refused("query", post(&gw, &key, "?trace=yes").form(form()).send(), &["`trace`", "`true`"]);
    refused("query", post(&gw, &key, "?inptu=x").form(form()).send(), &["`inptu`", "`input`"]);
    let binary = Form::default().field("module", "cmd").field("args", [0xff, 0xfe]).end();
    refused("not text", post(&gw, &key, "").form(binary).send(), &["`args`", "UTF-8"]);
}

#[test]
fn wrong_json_names_the_field_and_the_remedy() {
    let (gw, key) = gateway();
    for (body, words) in [
        (json!([]), &["JSON object"][..]),
        // The fields in their order: serde takes that for the struct, the contract does not.
        (json!(["cmd", null, null, null, [], null, null, {}, null]), &["JSON object"]),
        (json!("cmd"), &["JSON object"]),
        (json!({"module": "cmd", "args": "a b"}), &["args", "array"]),
        (json!({"module": "cmd", "args": [[]]}), &["args[0]", "a string or a number"]),
        (json!({"module": "cmd", "args": ["a\0b"]}), &["`args`", "NUL"]),
        (json!({"module": "cmd", "env": ["A=1"]}), &["env", "object"]),
        (json!({"module": "cmd", "env": {"A": 1}}), &["env.A", "string"]),
        (json!({"module": "cmd", "env": {"A": "\0"}}), &["`env`", "`A`", "NUL"]),
        (json!({"module": "cmd", "input": "x", "input_base64": "eA=="}), &["`input`", "`input_base64`"]),
        (json!({"module": "cmd", "input_base64": "_-8"}), &["`input_base64`", "base64"]),
        (json!({"module": "cmd", "abi": "wasi"}), &["abi", "`command`"]),
        (json!({"module": "calc", "function": "add", "entry": "half"}), &["`function`", "`entry`"]),
        (json!({"module": "cmd@0"}), &["module", "from 1"]),
        (json!({"module": "a/b/c"}), &["module", "`b/c`"]),
    ] {
        refused(&body.to_string(), post(&gw, &key, "").json(&body).send(), words);
    }
    for (module, named) in [("nope", "`acme/nope`"), ("cmd@9", "version 9")] {
        let doc = post(&gw, &key, "").json(&json!({"module": module})).send().problem(404, "not-found");
        assert!(doc["detail"].as_str().is_some_and(|d| d.contains(named)), "{doc}");
    }
    let batch = gw.request("POST", "/api/wasm/batch").key(&key).json(&json!({"module": "cmd"})).send();
    refused("batch", batch, &["array"]);
}

#[test]
fn the_three_forms_take_the_same_things() {
    let (gw, key) = gateway();
    let wasm = c_guest("command");
    let bytes: Vec<u8> = (0..=255).collect();
    let base64 = base64::engine::general_purpose::STANDARD.encode(&bytes);
    let query = base64.replace('+', "%2B");
    let upper = base64::engine::general_purpose::STANDARD.encode(bytes.to_ascii_uppercase());
    let raw = |query: &str| post(&gw, &key, query).header("Content-Type", "application/wasm").body(wasm.clone());
    for (what, request) in [
        ("field", post(&gw, &key, "").form(Form::default().field("module", "cmd").field("input", &bytes).end())),
        ("file", post(&gw, &key, "").form(Form::default().field("module", "cmd").file("input", &bytes).end())),
        ("JSON", post(&gw, &key, "").json(&json!({"module": "cmd", "input_base64": base64}))),
        ("raw", raw(&format!("?input_base64={query}"))),
    ] {
        let done = request.send().expect(200).json();
        assert_eq!((&done["output"], &done["output_base64"]), (&Value::Null, &json!(upper)), "{what}: {done}");
    }
    for (what, request) in [
        (
            "lines",
            post(&gw, &key, "")
                .form(Form::default().field("module", "cmd").field("args", "env").field("env", "A=1\nB=2=3\n").end()),
        ),
        (
            "object",
            post(&gw, &key, "").form(
                Form::default()
                    .field("module", "cmd")
                    .field("args", "[\"env\"]")
                    .field("env", "{\"A\":\"1\",\"B\":\"2=3\"}")
                    .end(),
            ),
        ),
        ("JSON", post(&gw, &key, "").json(&json!({"module": "cmd", "args": ["env"], "env": {"A": "1", "B": "2=3"}}))),
        ("raw", raw("?args=env&env=A=1%0AB=2=3")),
    ] {
        assert_eq!(request.send().expect(200).json()["output"], "A=1\nB=2=3\n", "{what}");
    }
}

#[test]
fn a_raw_body_that_is_no_binary_or_names_a_module_says_what_to_send() {
    let gw = Gateway::start(&api::config(""));
    let key = gw.key();
    let send = |target: &str, body: &[u8]| {
        gw.request("POST", target).key(&key).header("Content-Type", "application/wasm").body(body).send()
    };
    for body in ["(module)", " \n;; a comment\n(module)"] {
        for target in ["/api/wasm/execute", "/api/wasm/validate"] {
            let refused = send(target, body.as_bytes());
            refused.problem(422, "unsupported-format");
            assert!(refused.text().contains("`wasmgate module push`"), "{refused}");
        }
    }
    let refused = send("/api/wasm/execute?module=upper", b"quiet");
    refused.problem(400, "bad-request");
    assert!(refused.text().contains("`application/json`"), "{refused}");
}

#[test]
fn a_raw_answer_has_its_figures_and_a_core_functions_result_as_headers() {
    let (gw, key) = gateway();
    let raw = |body: Value| post(&gw, &key, "").header("Accept", "application/octet-stream").json(&body).send();
    let sum = raw(json!({"module": "calc", "function": "add", "args": [2, 40]})).expect(200);
    assert_eq!((sum.header("x-wasmgate-result"), sum.body.len()), (Some("42"), 0));
    let exited = raw(json!({"module": "cmd", "args": ["exit", "3"]})).expect(200);
    assert_eq!((exited.header("x-wasmgate-exit-code"), exited.header("x-wasmgate-result")), (Some("3"), None));
    raw(json!({"module": "cmd", "args": ["abort"]})).problem(502, "handler-trap");
}

#[test]
fn a_trace_shows_the_inside_of_a_module_to_its_owner_alone() {
    let gw = Gateway::start(&api::config(""));
    let (mine, theirs) = (gw.key(), gw.new_key(&NewKey { owner: "other", ..NewKey::default() }).text);
    let trap = wat("(module (func (export \"run\") unreachable))");
    let put = gw.request("PUT", "/api/wasm/modules/trap?public=true").key(&theirs);
    put.header("Content-Type", "application/wasm").body(trap).send().expect(201);
    let run = |key: &str| {
        post(&gw, key, "?trace=1").json(&json!({"module": "other/trap"})).send().problem(502, "handler-trap")
    };
    assert!(run(&theirs)["backtrace"].is_string());
    let stranger = run(&mine);
    assert!(stranger.get("backtrace").is_none() && stranger.get("stderr").is_none(), "{stranger}");
}
