//! Stored modules: versions, which of them is live, who may see them, and what a delete must not break.

use serde_json::{Value, json};

use crate::support::admin::NewKey;
use crate::support::api::{self, Form};
use crate::support::toml::{route, tier};
use crate::support::{Gateway, Request, c_guest, wat};

/// A core module whose `run` gives `n`.
fn constant(n: i32) -> Vec<u8> {
    wat(&format!("(module (func (export \"run\") (result i32) (i32.const {n})))"))
}

fn put(gw: &Gateway, key: &str, name: &str, query: &str, wasm: &[u8]) -> Request {
    let request = gw.request("PUT", &format!("/api/wasm/modules/{name}{query}")).key(key);
    request.header("Content-Type", "application/wasm").body(wasm)
}

#[track_caller]
fn run(gw: &Gateway, key: &str, module: &str) -> Value {
    let request = gw.request("POST", "/api/wasm/execute").key(key);
    request.json(&json!({"module": module})).send().expect(200).json()["result"].clone()
}

#[test]
fn versions_are_immutable_and_activation_is_explicit() {
    let gw = Gateway::start(&api::config(""));
    let key = gw.key();
    let first = put(&gw, &key, "calc", "", &constant(1)).send().expect(201).json();
    assert_eq!(
        (&first["version"], &first["abi"], &first["name"]),
        (&json!(1), &json!("core"), &json!("calc")),
        "{first}"
    );
    assert!(first["digest"].as_str().is_some_and(|d| d.starts_with("sha256:") && d.len() == 71), "{first}");
    for member in ["id", "size_bytes", "capabilities", "upload_time"] {
        assert!(!first[member].is_null(), "no `{member}`: {first}");
    }
    assert_eq!(run(&gw, &key, "calc"), 1, "the first version is live at once");

    let again = put(&gw, &key, "calc", "", &constant(1)).send().expect(200).json();
    assert_eq!(again["version"], 1, "the same bytes are the same version: {again}");

    assert_eq!(put(&gw, &key, "calc", "", &constant(2)).send().expect(201).json()["version"], 2);
    assert_eq!(run(&gw, &key, "calc"), 1, "a later version waits for its activation");
    assert_eq!((run(&gw, &key, "calc@2"), run(&gw, &key, "acme/calc@1")), (json!(2), json!(1)));

    let activate = |version: u32| {
        let request = gw.request("POST", "/api/wasm/modules/calc/activate").key(&key);
        request.json(&json!({"version": version})).send()
    };
    activate(2).expect(200);
    assert_eq!(run(&gw, &key, "calc"), 2);
    activate(1).expect(200);
    assert_eq!(run(&gw, &key, "calc"), 1, "a rollback is an activation");
    activate(9).problem(404, "not-found");

    put(&gw, &key, "calc", "?activate=true", &constant(3)).send().expect(201);
    assert_eq!(run(&gw, &key, "calc"), 3);
    let details = gw.get("/api/wasm/modules/calc").key(&key).send().expect(200).json();
    assert_eq!(details["versions"].as_array().map(Vec::len), Some(3), "{details}");
}

#[test]
fn the_form_upload_does_the_same() {
    let gw = Gateway::start(&api::config(""));
    let key = gw.key();
    let form =
        Form::default().file("wasm", &constant(5)).field("name", "five").field("description", "gives five").end();
    gw.request("POST", "/api/wasm/upload").key(&key).form(form).send().expect(201);
    assert_eq!(run(&gw, &key, "five"), 5);
    let nameless = Form::default().file("wasm", &constant(5)).end();
    let doc = gw.request("POST", "/api/wasm/upload").key(&key).form(nameless).send().problem(400, "bad-request");
    assert!(doc["detail"].as_str().is_some_and(|d| d.contains("name")), "{doc}");
    put(&gw, &key, "Not%20A%20Name", "", &constant(1)).send().problem(400, "bad-request");
}

#[test]
fn stored_modules_survive_kill_9() {
    let config = api::config("");
    let gw = Gateway::start(&config);
    let key = gw.key();
    put(&gw, &key, "kept", "", &constant(7)).send().expect(201);
    let gw = gw.restart(&config);
    assert_eq!(run(&gw, &key, "kept"), 7);
}

#[test]
fn a_tampered_artifact_is_compiled_anew_and_raises_an_alarm() {
    let config = api::config("");
    let gw = Gateway::start(&config);
    let key = gw.key();
    put(&gw, &key, "kept", "", &constant(7)).send().expect(201);
    let artifacts = gw.dir.path().join("data/artifacts");
    let files: Vec<_> =
        std::fs::read_dir(&artifacts).expect("artifacts are files").flatten().map(|f| f.path()).collect();
    assert!(!files.is_empty());
    for file in files {
        let mut bytes = std::fs::read(&file).expect("it is ours");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&file, bytes).expect("it is ours");
    }
    let gw = gw.restart(&config);
    assert_eq!(run(&gw, &key, "kept"), 7);
    assert!(gw.metric("wasm_artifacts_rejected", &[]) >= 1.0);
}

#[test]
fn lists_page_and_show_only_what_one_may_see() {
    let gw = Gateway::start(&api::config(""));
    let (mine, theirs) = (gw.key(), gw.new_key(&NewKey { owner: "other", ..NewKey::default() }).text);
    for i in 0..5 {
        put(&gw, &mine, &format!("m{i}"), "", &constant(i)).send().expect(201);
    }
    put(&gw, &theirs, "private", "", &constant(1)).send().expect(201);
    let shared = Form::default().file("wasm", &constant(2)).field("name", "shared").field("public", "true").end();
    gw.request("POST", "/api/wasm/upload").key(&theirs).form(shared).send().expect(201);

    let list = |query: &str| gw.get(&format!("/api/wasm/modules{query}")).key(&mine).send().expect(200).json();
    let page = list("?page=2&limit=2");
    assert_eq!(
        (&page["total"], &page["page"], &page["limit"], &page["has_next"]),
        (&json!(5), &json!(2), &json!(2), &json!(true)),
        "{page}"
    );
    assert_eq!(page["modules"].as_array().map(Vec::len), Some(2));
    assert!(!list("").to_string().contains("shared"));
    let all = list("?include_public=true&limit=50").to_string();
    assert!(all.contains("shared") && !all.contains("private"), "{all}");

    assert_eq!(run(&gw, &mine, "other/shared"), 2);
    let request = gw.request("POST", "/api/wasm/execute").key(&mine).json(&json!({"module": "other/private"}));
    let refused = request.send();
    assert!(matches!(refused.status, 403 | 404), "{refused}");
    let stranger = gw.request("DELETE", "/api/wasm/modules/other/shared").key(&mine).send();
    assert!(matches!(stranger.status, 403..=405), "{stranger}");
    assert_eq!(run(&gw, &theirs, "shared"), 2, "it is still there");
}

#[test]
fn a_module_in_use_is_not_deleted() {
    let handler = route("h", "match.path = \"/h\"\ntarget.handler = { module = \"acme/used\" }\nauth = \"none\"");
    let gw = Gateway::with_modules(&api::config(""), &[("acme/used", "cgi", &c_guest("cgi"))], &handler);
    let key = gw.key();
    let delete = |name: &str| gw.request("DELETE", &format!("/api/wasm/modules/{name}")).key(&key).send();
    delete("used").problem(409, "conflict");
    gw.get("/h").send().expect(200);
    put(&gw, &key, "spare", "", &constant(1)).send().expect(201);
    put(&gw, &key, "spare", "?activate=true", &constant(2)).send().expect(201);
    delete("spare@1").expect(204);
    assert_eq!(run(&gw, &key, "spare"), 2);
    delete("spare").expect(204);
    delete("spare").problem(404, "not-found");
}

#[test]
fn uploads_are_bounded_by_the_tier() {
    let small = tier("small", "quotas = []\nmodules = 2\nmodule_size = \"1KiB\"");
    let gw = Gateway::start(&api::config(&small));
    let key = gw.key_of("small");
    put(&gw, &key, "large", "", &c_guest("command")).send().problem(402, "tier-required");
    put(&gw, &key, "one", "", &constant(1)).send().expect(201);
    put(&gw, &key, "two", "", &constant(2)).send().expect(201);
    let third = put(&gw, &key, "three", "", &constant(3)).send();
    assert!(matches!(third.status, 402 | 409), "{third}");
}
