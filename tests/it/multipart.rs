//! Multipart tricks: each is a 400 that names the field, with bounded memory.

use crate::support::api::{self, BOUNDARY, Form};
use crate::support::{Conn, Gateway, c_guest};

/// The `detail` of the refusal of this body.
#[track_caller]
fn refused(gw: &Gateway, key: &str, body: impl Into<Vec<u8>>) -> String {
    let response = gw.request("POST", "/api/wasm/execute").key(key).form(body).send();
    let doc = response.problem(400, "bad-request");
    doc["detail"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn broken_forms_are_refused_by_name() {
    let gw = Gateway::start(&api::config(""));
    let key = gw.key();
    let wasm = c_guest("core");
    let form = || Form::default();
    for (what, body, named) in [
        ("no end", form().file("wasm", &wasm).cut(), ""),
        ("cut in a field", form().file("wasm", &wasm).cut()[..200].to_vec(), ""),
        ("a repeated field", form().file("wasm", &wasm).file("wasm", &wasm).end(), "wasm"),
        ("one under both names", form().file("wasm", &wasm).file("wasm_file", &wasm).end(), "wasm"),
        ("an unknown field", form().field("surprise", "x").end(), "surprise"),
        ("an empty file", form().file("wasm", b"").end(), "wasm"),
        ("nothing", form().end(), "wasm"),
        ("no name", form().part("Content-Disposition: form-data", b"x").end(), ""),
        ("no disposition", form().part("Content-Type: text/plain", b"x").end(), ""),
        ("not text where text is due", form().file("wasm", &wasm).field("args", b"\xff\xfe").end(), "args"),
        ("a broken list", form().file("wasm", &wasm).field("args", "[1,").end(), "args"),
        ("a broken environment", form().file("wasm", &wasm).field("env", "nonsense").end(), "env"),
        ("two sources", form().file("wasm", &wasm).field("module", "x").end(), "module"),
        ("an unknown ABI", form().file("wasm", &wasm).field("abi", "x").end(), "abi"),
        ("no form at all", b"hello".to_vec(), ""),
        ("an empty body", Vec::new(), ""),
    ] {
        let detail = refused(&gw, &key, body);
        assert!(detail.contains(named), "{what}: {detail}");
    }
}

#[test]
fn a_form_needs_its_boundary() {
    let gw = Gateway::start(&api::config(""));
    let key = gw.key();
    for media in ["multipart/form-data", "multipart/form-data; boundary=", "multipart/form-data; boundary"] {
        let request = gw.request("POST", "/api/wasm/execute").key(&key).header("Content-Type", media);
        request.body(Form::default().file("wasm", b"x").end()).send().problem(400, "bad-request");
    }
}

#[test]
fn ten_thousand_parts_and_endless_heads_stop_early() {
    let mut gw = Gateway::start(&api::config(""));
    let key = gw.key();
    let many = (0..10_000).fold(Form::default(), |form, i| form.field(&format!("f{i}"), "x")).end();
    assert!(refused(&gw, &key, many).contains("f0"), "the first stray one is named");
    let same = (0..10_000).fold(Form::default(), |form, _| form.field("args", "x")).end();
    assert!(refused(&gw, &key, same).contains("args"));
    let endless =
        format!("--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"wasm\"\r\nX: {}", "x".repeat(1 << 20));
    refused(&gw, &key, endless);
    assert!(gw.is_running());
}

#[test]
fn a_field_over_its_bound_is_413_before_its_end() {
    let gw = Gateway::start(&api::config(
        "[tiers.small]\nrank = 9\nconcurrent = 10\nquotas = []\nlimits.input = \"1KiB\"\n",
    ));
    let key = gw.key_of("small");
    let mut conn = Conn::connect(gw.proxy);
    let head = format!("--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"input\"\r\n\r\n");
    // Announces a megabyte, sends a little of it, and is answered.
    conn.send(format!(
        "POST /api/wasm/execute HTTP/1.1\r\nHost: a\r\nX-Api-Key: {key}\r\nContent-Type: multipart/form-data; boundary={BOUNDARY}\r\nContent-Length: 1000000\r\n\r\n{head}{}",
        "x".repeat(100_000)
    ));
    conn.read().problem(413, "payload-too-large");
}
