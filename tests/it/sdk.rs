//! Guests built with real SDKs: Rust (`http-wasm-guest`, `proxy-wasm`, plain std) and Go (wasip1). Run by
//! `./scripts/test --sdk`, which builds them into `target/guests/`.

mod proxy_wasm;

use std::path::Path;

use crate::support::api::{self, Form};
use crate::support::toml::{route, upstream};
use crate::support::upstream::respond;
use crate::support::{Gateway, Upstream, eventually};

fn guest(name: &str) -> Vec<u8> {
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("guests").join(format!("{name}.wasm"));
    std::fs::read(&file).unwrap_or_else(|e| panic!("{}: {e}; `./scripts/test --sdk` builds it", file.display()))
}

#[test]
fn a_rust_http_wasm_handler_transforms_both_ways() {
    let up = Upstream::start(|_, stream| respond(stream, 200, &[("Content-Type", "text/plain")], b"from the origin"));
    let handler = route(
        "rust",
        "match.path_prefix = \"/\"\ntarget.upstream = \"up\"\nauth = \"none\"\nhandlers = [{ module = \"acme/transform\", config = \"configured\" }]",
    );
    let config = upstream("up", up.addr, "");
    let gw = Gateway::with_modules(&config, &[("acme/transform", "http-wasm", &guest("transform"))], &handler);
    for _ in 0..10 {
        let response = gw.get("/").send().expect(200);
        assert_eq!(response.text(), "FROM THE ORIGIN");
        assert_eq!(response.header("x-rust-context"), Some("7"), "the guest's context comes back in the response");
        assert_eq!(up.last().all("x-rust-guest"), ["configured"]);
    }
}

#[test]
fn a_rust_command_runs() {
    let gw = Gateway::start(&api::config(""));
    let doc = gw.execute(&gw.key(), &guest("wordcount"), b"b a b\nc b a").expect(200).json();
    assert_eq!(doc["output"], "3 b\n2 a\n1 c\n", "{doc}");
}

#[test]
fn a_go_command_runs_inline_and_stored() {
    let gw = Gateway::start(&api::config(""));
    let key = gw.key();
    let sum = guest("sum");
    let doc = gw.execute(&key, &sum, b"[1, 2, 39]").expect(200).json();
    assert_eq!(doc["output"], "42\n", "{doc}");
    gw.upload("acme/sum", "command", &sum);
    let form = || Form::default().field("module", "sum").field("input", "nonsense").end();
    let doc = gw.request("POST", "/api/wasm/execute").key(&key).form(form()).send().expect(200).json();
    assert_eq!(doc["exit_code"], 3, "{doc}");
    assert!(doc["stderr"].as_str().is_some_and(|s| s.starts_with("not a list of numbers")), "{doc}");
}

const PAGE: &str = "<p>hello</p>\n";

/// Uploads a command with a page in its assets, and runs it.
fn with_page(name: &str, wasm: &[u8], args: &str) -> String {
    let gw = Gateway::start(&api::config(""));
    let key = gw.key();
    let mut assets = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_mode(0o644);
    header.set_size(PAGE.len() as u64);
    assets.append_data(&mut header, "page.html", PAGE.as_bytes()).expect("it is in memory");
    let assets = assets.into_inner().expect("it is in memory");
    let form = Form::default().field("name", name).file("wasm", wasm).file("assets", &assets).end();
    gw.request("POST", "/api/wasm/upload").key(&key).form(form).send().expect(201);
    let form = Form::default().field("module", name).field("args", args).end();
    let doc = gw.request("POST", "/api/wasm/execute").key(&key).form(form).send().expect(200).json();
    assert_eq!(doc["exit_code"], 0, "{doc}");
    doc["output"].as_str().expect("text").to_owned()
}

#[test]
fn rust_works_on_files() {
    let expected = "Err(ReadOnlyFilesystem)\nfiles 5\n6\n[(\"b\", true), (\"moved\", false)]\nErr(Some(55))\n0\n";
    assert_eq!(with_page("files", &guest("files"), ""), format!("{PAGE}{expected}"));
}

#[test]
fn go_works_on_files() {
    let expected = "open /new: Read-only file system\nb false 3\n0 <nil>\n";
    assert_eq!(with_page("sum", &guest("sum"), "files"), format!("{PAGE}{expected}"));
}

/// The crate in `examples/sdk/rust`.
#[test]
fn a_rust_command_uses_the_host_api() {
    let near = Upstream::start(|_, stream| respond(stream, 201, &[("X-Answer", "yes")], &[b'x'; 5000]));
    let handler = route(
        "rust",
        "match.path_prefix = \"/\"\nauth = \"none\"\ntarget.handler = { module = \"acme/host\", config = \"configured\", wall = \"60s\", upstreams = [\"near\"] }",
    );
    let config = upstream("near", near.addr, "");
    let gw = Gateway::with_modules(&config, &[("acme/host", "command", &guest("host_api"))], &handler);
    let expected = "config configured\nroute Some(Ok(\"rust\"))\nowner None\nget Ok(None)\nreplace Err(Conflict)\nfound 1000 Ok(())\n\
                    incr Ok(2) Err(Conflict)\ndelete Ok(true) Ok(false)\nbounds Err(BadArgument) Err(NotFound)\nvalue Some([49]) None\n\
                    call 201 Some([121, 101, 115]) 5000\nfar Err(true)\nmetric Ok(()) Ok(()) Err(BadArgument)\n";
    assert_eq!(gw.get("/").send().expect(200).text(), expected);
    let asked = near.only();
    assert_eq!((asked.header("x-from"), &asked.body[..]), (Some("rust"), &b"body"[..]));
    eventually("it has logged", || gw.log().contains("from rust"));
}
