//! The command line: exit codes, `--json`, and verbs that talk to a running gateway.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

use crate::support::admin::NewKey;
use crate::support::gateway::{binary, run_to_end};
use crate::support::tls::Certificate;
use crate::support::toml::keyed_proxy;
use crate::support::{DEADLINE, Gateway, Upstream, c_guest, poll, wat};

fn wasmgate(args: &[&str]) -> Output {
    let mut command = Command::new(binary());
    command.args(args);
    run_to_end(command)
}

/// A verb against a running gateway.
pub fn verb(gw: &Gateway, args: &[&str]) -> Output {
    run_to_end(command(gw, args))
}

pub fn command(gw: &Gateway, args: &[&str]) -> Command {
    let mut command = Command::new(binary());
    let token_file = gw.ready["admin_token_file"].as_str().expect("a path");
    command.args(args).env("WASMGATE_ADMIN", format!("http://{}", gw.admin));
    command.env("WASMGATE_TOKEN_FILE", gw.dir.path().join(token_file));
    command
}

#[track_caller]
pub fn ok(output: Output) -> String {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{errors}{}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[track_caller]
fn json(output: Output) -> Value {
    let text = ok(output);
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("not JSON ({e}): {text}"))
}

#[track_caller]
fn fails(output: Output, code: i32, named: &str) {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{errors}");
    assert!(errors.contains(named), "`{named}` is not named: {errors}");
    assert!(!errors.contains("panicked"), "{errors}");
}

#[test]
fn usage_errors_are_2_and_help_is_0() {
    ok(wasmgate(&["--help"]));
    assert!(ok(wasmgate(&["--version"])).contains(env!("CARGO_PKG_VERSION")));
    fails(wasmgate(&["no-such-verb"]), 2, "no-such-verb");
    fails(wasmgate(&["serve", "--no-such-flag"]), 2, "--no-such-flag");
    let mut push = Command::new(binary());
    push.args(["module", "push"]).env("WASMGATE_ADMIN", "http://127.0.0.1:1").env("WASMGATE_TOKEN_FILE", "token");
    let push = run_to_end(push);
    assert!(!String::from_utf8_lossy(&push.stderr).contains("--admin"), "only what was typed is shown: {push:?}");
    fails(push, 2, "<FILE>");
}

#[test]
fn check_tells_every_error_with_its_line() {
    let dir = TempDir::new().expect("a temporary folder");
    let file = dir.path().join("bad.toml");
    let check = || wasmgate(&["check", file.to_str().expect("UTF-8")]);
    std::fs::write(&file, "[server]\n\nheader_timout = \"10s\"\n[log]\nformat = \"xml\"\n").expect("writable");
    let output = check();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(2), "{errors}");
    for part in
        ["bad.toml:3", "server.header_timout", "did you mean `header_timeout`", ":5", "log.format", "xml", "pretty"]
    {
        assert!(errors.contains(part), "no `{part}`:\n{errors}");
    }
    std::fs::write(&file, "[log]\nformat = \"pretty\"\n").expect("writable");
    ok(check());
}

#[test]
fn exec_runs_a_module_offline() {
    let dir = TempDir::new().expect("a temporary folder");
    let path = |name: &str, bytes: &[u8]| -> String {
        let file = dir.path().join(name);
        std::fs::write(&file, bytes).expect("writable");
        file.to_str().expect("UTF-8").to_owned()
    };
    let upper = path("upper.wasm", &c_guest("command"));
    assert_eq!(ok(wasmgate(&["exec", &upper, "--input", "quiet"])), "QUIET");
    let doc = json(wasmgate(&["exec", &upper, "--input", "quiet", "--json"]));
    assert_eq!((&doc["output"], &doc["exit_code"]), (&Value::from("QUIET"), &Value::from(0)), "{doc}");
    assert!(doc["fuel"].as_u64() > Some(0), "{doc}");
    let trap = path("trap.wasm", &wat("(module (func (export \"run\") unreachable))"));
    fails(wasmgate(&["exec", &trap]), 1, "trap");
    let junk = path("junk.wasm", b"not wasm");
    fails(wasmgate(&["exec", &junk]), 1, "junk.wasm");
    fails(wasmgate(&["exec", "/nonexistent.wasm"]), 2, "/nonexistent.wasm");
}

#[test]
fn routes_are_checked_pushed_shown_and_rolled_back() {
    let gw = Gateway::start("[store]\nroutes = \"store\"\n");
    let file = |name: &str, text: &str| {
        let file = gw.dir.path().join(name);
        std::fs::write(&file, text).expect("writable");
        file.to_str().expect("UTF-8").to_owned()
    };
    let says = |body: &str| {
        let respond = format!("match.path = \"/\"\nauth = \"none\"\ntarget.respond = {{ body = \"{body}\" }}");
        crate::support::toml::route("says", respond)
    };
    let (one, two) = (file("one.toml", &says("one")), file("two.toml", &says("two")));
    let bad = file("bad.toml", "[server]\n\n[[routes]]\nname = \"Bad\"\n");
    fails(verb(&gw, &["routes", "show"]), 1, "no routes were pushed yet");
    fails(verb(&gw, &["routes", "check", &bad]), 2, "bad.toml:1: server");
    fails(verb(&gw, &["routes", "push", &bad]), 2, "bad.toml:4: routes[0].name");
    fails(verb(&gw, &["routes", "push", "/nonexistent.toml"]), 2, "/nonexistent.toml");
    assert_eq!(ok(verb(&gw, &["routes", "check", &one])), "ok\n");
    assert!(ok(verb(&gw, &["routes", "push", &one, "--expect", "0", "--wait"])).starts_with("version 1 sha256:"));
    assert_eq!(gw.get("/").send().text(), "one");
    fails(verb(&gw, &["routes", "push", &two, "--expect", "0"]), 1, "the newest version of the routes is `1`");
    assert_eq!(json(verb(&gw, &["routes", "push", &two, "--expect", "1", "--json"]))["version"], 2);
    assert_eq!(json(verb(&gw, &["routes", "rollback", "--wait", "--json"]))["rollback_to"], 1);
    assert_eq!(gw.get("/").send().text(), "one");
    assert_eq!(ok(verb(&gw, &["routes", "show", "2"])), says("two"));
    assert_eq!(ok(verb(&gw, &["routes", "show"])), says("one"));
    fails(verb(&gw, &["routes", "show", "7"]), 1, "routes@7");
    let mut piped = command(&gw, &["routes", "check", "-"]);
    piped.stdin(std::fs::File::open(&one).expect("it was written"));
    assert_eq!(ok(run_to_end(piped)), "ok\n");
    let history = json(verb(&gw, &["routes", "history", "--json"]));
    assert_eq!((history["versions"].as_array().map(Vec::len), &history["in_use"]), (Some(3), &3.into()), "{history}");
    assert!(ok(verb(&gw, &["routes", "history"])).contains("bootstrap"));
    for list in [&["routes"][..], &["routes", "list"]] {
        assert!(ok(verb(&gw, list)).contains("says"));
    }
    let node = json(verb(&gw, &["nodes", "--json"]))["nodes"][0].clone();
    assert_eq!(node["routes_version"], 3, "{node}");
}

/// 0, 1 and 2 are the command's own: a guest's codes are told, not passed on.
#[test]
fn exec_ends_with_1_whatever_code_the_guest_ends_with() {
    let dir = TempDir::new().expect("a temporary folder");
    let file = dir.path().join("command.wasm");
    std::fs::write(&file, c_guest("command")).expect("writable");
    let file = file.to_str().expect("UTF-8");
    for code in ["1", "2", "7", "137"] {
        let exec = |more: &[&str]| wasmgate(&[&["exec", file, "--arg", "exit", "--arg", code], more].concat());
        let output = exec(&[]);
        assert_eq!(output.stdout, b"before the end\n");
        fails(output, 1, &format!("exited with code {code}"));
        let output = exec(&["--json"]);
        assert_eq!(output.status.code(), Some(1));
        let doc: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!(
            (&doc["exit_code"], &doc["status"]),
            (&Value::from(code.parse::<i32>().unwrap()), &"failed".into()),
            "{doc}"
        );
    }
    fails(wasmgate(&["exec", file, "--function", "nothing"]), 2, "nothing");
    let help = ok(wasmgate(&["exec", "--help"]));
    assert!(help.contains("Exit code: 0"), "{help}");
}

#[test]
fn keys_tiers_routes_and_usage_of_a_running_gateway() {
    let up = Upstream::echo();
    let gw = Gateway::start(&keyed_proxy(up.addr, ""));
    let made = json(verb(&gw, &["key", "create", "--owner", "acme", "--tier", "pro", "--json"]));
    let (id, key) = (made["id"].as_str().expect("an id"), made["key"].as_str().expect("a key"));
    gw.get("/").key(key).send().expect(200);
    assert!(ok(verb(&gw, &["key", "list"])).contains(id));
    assert!(!ok(verb(&gw, &["key", "list"])).contains(key));
    ok(verb(&gw, &["key", "revoke", id]));
    gw.get("/").key(key).send().problem(401, "unauthorized");
    assert!(ok(verb(&gw, &["tier", "list"])).contains("enterprise"));
    assert!(ok(verb(&gw, &["routes"])).contains("all"));
    assert!(json(verb(&gw, &["usage", "--owner", "acme", "--json"])).is_object());
    assert!(ok(verb(&gw, &["audit"])).contains(id));
    let nodes = ok(verb(&gw, &["nodes"]));
    assert!(nodes.contains("ready") && nodes.contains("sha256:"), "{nodes}");
    assert!(nodes.lines().all(|line| line.len() < 160), "{nodes}");
    assert_eq!(json(verb(&gw, &["nodes", "--json"]))["nodes"][0]["this"], true);
    ok(verb(&gw, &["health"]));
}

#[test]
fn routes_tell_what_becomes_of_requests_without_their_modules() {
    let up = Upstream::echo();
    for (fail, told) in [
        ("closed", "the route all fails: not stored: acme/later"),
        ("open", "go on without what is not stored: acme/later"),
    ] {
        let handler = format!("handlers = [{{ module = \"acme/later\", fail = \"{fail}\" }}]");
        let gw = Gateway::start(&keyed_proxy(up.addr, &handler));
        let shown = verb(&gw, &["routes"]);
        let errors = String::from_utf8_lossy(&shown.stderr).into_owned();
        assert!(errors.contains(told), "{errors}");
        ok(shown);
    }
}

#[test]
fn refusals_are_told_by_kind_in_the_table_of_usage() {
    let up = Upstream::echo();
    let gw = Gateway::start(&keyed_proxy(up.addr, ""));
    let key = gw.new_key(&NewKey { scopes: &["usage"], ..NewKey::default() }).text;
    gw.get("/").key(&key).send().problem(403, "scope-required");
    gw.get("/").key(&key).send().problem(403, "scope-required");
    let mut table = String::new();
    let told = poll(DEADLINE, || {
        table = ok(verb(&gw, &["usage"]));
        table.contains("scope-required=2")
    });
    assert!(told, "{table}");
}

#[test]
fn modules_of_a_running_gateway() {
    let up = Upstream::echo();
    let gw = Gateway::start(&keyed_proxy(up.addr, ""));
    let file = gw.dir.path().join("core.wasm");
    std::fs::write(&file, c_guest("core")).expect("writable");
    let file = file.to_str().expect("UTF-8").to_owned();
    let pushed = json(verb(&gw, &["module", "push", &file, "--name", "acme/calc", "--json"]));
    assert_eq!((&pushed["version"], &pushed["abi"]), (&Value::from(1), &Value::from("core")), "{pushed}");
    std::fs::write(&file, wat("(module (func (export \"run\")))")).expect("writable");
    ok(verb(&gw, &["module", "push", &file, "--name", "acme/calc"]));
    assert!(ok(verb(&gw, &["module", "list"])).contains("calc"));
    ok(verb(&gw, &["module", "activate", "acme/calc@2"]));
    ok(verb(&gw, &["module", "rollback", "acme/calc"]));
    let shown = ok(verb(&gw, &["module", "show", "acme/calc"]));
    assert!(shown.contains("sha256:"), "{shown}");
    let versions = shown.lines().skip_while(|line| !line.starts_with("VERSION"));
    assert_eq!(versions.filter(|line| line.contains("ABI") || line.contains(" core ")).count(), 3, "{shown}");
    for args in [
        &["push", &file, "--name", "acme/calc"][..],
        &["show", "acme/calc"],
        &["rollback", "acme/calc"],
        &["rm", "acme/calc"],
    ] {
        fails(verb(&gw, &[&["module"], args, &["--owner", "other"]].concat()), 2, "`--owner`");
    }
    ok(verb(&gw, &["module", "rm", "acme/calc"]));
    fails(verb(&gw, &["module", "show", "acme/calc"]), 1, "calc");
}

#[test]
fn a_rollback_goes_to_what_was_active_whatever_its_number() {
    let gw = Gateway::start("");
    let file = gw.dir.path().join("m.wasm");
    let file = file.to_str().expect("UTF-8");
    let push = |n: u32, more: &[&str]| {
        std::fs::write(file, wat(&format!("(module (func (export \"run\") (result i32) (i32.const {n})))"))).unwrap();
        ok(verb(&gw, &[&["module", "push", file, "--name", "acme/m"][..], more].concat()));
    };
    let active = |args: &[&str]| json(verb(&gw, &[&["module"], args, &["--json"]].concat()))["active_version"].clone();
    push(1, &[]);
    fails(verb(&gw, &["module", "rollback", "acme/m"]), 1, "activate acme/m@1");
    push(2, &["--activate"]);
    ok(verb(&gw, &["module", "activate", "acme/m@1"]));
    push(3, &[]);
    push(4, &["--activate"]);
    push(4, &["--activate"]);
    assert_eq!(active(&["rollback", "acme/m"]), 1, "2 was rejected, 3 never active");
    assert_eq!(active(&["rollback", "acme/m"]), 4, "a second time goes back again");
    ok(verb(&gw, &["module", "rm", "acme/m@1"]));
    fails(verb(&gw, &["module", "rollback", "acme/m"]), 1, "deleted");
    assert_eq!(active(&["show", "acme/m"]), 4);
}

#[test]
fn a_gateway_that_is_not_there_is_1_and_says_where_it_looked() {
    let mut command = Command::new(binary());
    command.args(["key", "list"]).env("WASMGATE_ADMIN", "http://127.0.0.1:1").env("WASMGATE_TOKEN", "x");
    fails(run_to_end(command), 1, "127.0.0.1:1");
}

#[test]
fn completions_are_scripts() {
    for shell in ["bash", "zsh", "fish"] {
        assert!(ok(wasmgate(&["completions", shell])).contains("wasmgate"), "{shell}");
    }
}

#[test]
fn every_shipped_configuration_passes_check() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("conf");
    let files: Vec<_> = std::fs::read_dir(&folder).expect("conf/").flatten().map(|f| f.path()).collect();
    assert!(files.iter().any(|f| f.ends_with("wasmgate.toml")), "{files:?}");
    // With the files that they name beside them, as they say.
    let dir = TempDir::new().expect("a temporary folder");
    let certificate = Certificate::for_name("localhost");
    certificate.write(&dir.path().join("cert.pem"), &dir.path().join("key.pem"));
    std::fs::write(dir.path().join("ca.pem"), &certificate.cert_pem).expect("writable");
    for file in files.iter().filter(|f| f.extension().is_some_and(|e| e == "toml")) {
        let copy = dir.path().join(file.file_name().expect("a name"));
        std::fs::copy(file, &copy).expect("writable");
        ok(wasmgate(&["check", copy.to_str().expect("UTF-8")]));
    }
}

#[test]
fn check_looks_at_the_files_that_settings_name() {
    let dir = TempDir::new().expect("a temporary folder");
    let path = |name: &str| dir.path().join(name);
    let (good, other) = (Certificate::for_name("localhost"), Certificate::for_name("localhost"));
    good.write(&path("cert.pem"), &path("key.pem"));
    other.write(&path("other-cert.pem"), &path("other-key.pem"));
    Certificate::expired("localhost").write(&path("old-cert.pem"), &path("old-key.pem"));
    std::fs::write(path("junk.pem"), "-----BEGIN CERTIFICATE-----\nnot base64!\n-----END CERTIFICATE-----\n").unwrap();
    std::fs::write(path("der.pem"), "-----BEGIN CERTIFICATE-----\naGVsbG8=\n-----END CERTIFICATE-----\n").unwrap();
    std::fs::write(path("open-pepper"), "0123456789abcdef0123456789abcdef").unwrap();
    let file = path("gateway.toml");
    let check = |text: &str| {
        std::fs::write(&file, text).expect("writable");
        let output = wasmgate(&["check", file.to_str().expect("UTF-8")]);
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{text}");
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let listener = |cert: &str, key: &str| {
        format!(
            "[[server.listeners]]\naddress = \"127.0.0.1:0\"\ntls.cert_file = \"{cert}\"\ntls.key_file = \"{key}\"\n"
        )
    };
    assert_eq!(check(&listener("cert.pem", "key.pem")).0, Some(0));
    let upstream =
        |ca: &str| format!("[[upstreams]]\nname = \"up\"\nendpoints = [\"localhost:1\"]\ntls.ca_file = \"{ca}\"\n");
    for (text, named) in [
        (listener("none.pem", "key.pem"), ["gateway.toml:3: server.listeners[0].tls.cert_file: ", "none.pem"]),
        (listener("cert.pem", "none.pem"), ["gateway.toml:4: server.listeners[0].tls.key_file: ", "none.pem"]),
        (listener("junk.pem", "key.pem"), ["gateway.toml:3: server.listeners[0].tls.cert_file: ", "base64"]),
        (listener("cert.pem", "cert.pem"), ["gateway.toml:4: server.listeners[0].tls.key_file: ", "no private key"]),
        (listener("cert.pem", "other-key.pem"), ["gateway.toml:4: server.listeners[0].tls.key_file: ", "cert.pem"]),
        (
            listener("old-cert.pem", "old-key.pem"),
            ["gateway.toml:3: server.listeners[0].tls.cert_file: ", "expired 2001-02-03"],
        ),
        (upstream("none.pem"), ["gateway.toml:4: upstreams[0].tls.ca_file: ", "none.pem"]),
        (upstream("der.pem"), ["gateway.toml:4: upstreams[0].tls.ca_file: ", "can't be used"]),
        (upstream("key.pem"), ["gateway.toml:4: upstreams[0].tls.ca_file: ", "no certificate"]),
        ("[auth]\npepper_file = \"none\"\n".into(), ["gateway.toml:2: auth.pepper_file: ", "none"]),
        ("[auth]\npepper_file = \"open-pepper\"\n".into(), ["gateway.toml:2: auth.pepper_file: ", "chmod 600"]),
        ("[admin]\ntoken_file = \"open-pepper\"\n".into(), ["gateway.toml:2: admin.token_file: ", "chmod 600"]),
        ("[admin]\ntoken_file = \"no/folder/token\"\n".into(), ["gateway.toml:2: admin.token_file: ", "no/folder"]),
    ] {
        let (code, said) = check(&text);
        assert_eq!(code, Some(2), "{text}\n{said}");
        assert_eq!(said.lines().count(), 1, "one line an error: {said}");
        assert!(named.iter().all(|part| said.contains(part)), "{named:?} in {said}");
    }
    let (_, said) = check(&("[log]\nformat = \"xml\"\n".to_owned() + &listener("none.pem", "none.pem")));
    assert_eq!(said.lines().count(), 3, "together with what is wrong with the text: {said}");
}

#[test]
fn verbs_end_quietly_when_nobody_reads_any_more() {
    let up = Upstream::echo();
    let gw = Gateway::start(&keyed_proxy(up.addr, ""));
    let file = gw.dir.path().join("wasmgate.toml");
    let unread = |args: &[&str]| {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let mut command = command(&gw, args);
        let output = command.stdout(writer).output().expect("the binary runs");
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!((output.status.code(), errors.as_str()), (Some(0), ""), "{args:?}");
    };
    for verb in
        ["routes", "health", "audit", "usage", "tier list", "key list", "module list", "token list", "logs level"]
    {
        unread(&verb.split(' ').collect::<Vec<_>>());
        unread(&verb.split(' ').chain(["--json"]).collect::<Vec<_>>());
    }
    for shell in ["bash", "zsh", "fish"] {
        unread(&["completions", shell]);
    }
    unread(&["check", file.to_str().expect("UTF-8")]);
    unread(&["--help"]);
    unread(&["--version"]);
}

#[test]
fn a_tier_is_set_and_reset() {
    let up = Upstream::echo();
    let gw = Gateway::start(&keyed_proxy(up.addr, ""));
    let tier = |args: &[&str]| verb(&gw, &[&["tier"], args].concat());
    let free = |list: Value| {
        let tiers = list["tiers"].as_array().expect("a list").clone();
        tiers.into_iter().find(|t| t["name"] == "free").expect("`free` is there")
    };
    let before = free(json(tier(&["list", "--json"])));
    assert_eq!(before["source"], "file", "{before}");
    ok(tier(&["set", "free", "--concurrent", "7", "--wall-ms", "1234"]));
    let set = free(json(tier(&["list", "--json"])));
    assert_eq!((&set["concurrent"], &set["source"]), (&Value::from(7), &Value::from("api")));
    let audit = ok(verb(&gw, &["audit"]));
    assert!(audit.contains("concurrent: 1 -> 7, limits.wall_ms: 5000 -> 1234"), "{audit}");
    assert!(ok(tier(&["reset", "free"])).contains("file"));
    assert_eq!(free(json(tier(&["list", "--json"]))), before);
    assert!(ok(verb(&gw, &["audit"])).contains("concurrent: 7 -> 1"));
    // What becomes of it while a fleet's limits can't be reached; a burst is of rolling windows alone, as in the file.
    let set = json(tier(&["set", "free", "--fail", "closed", "--quota", "minute=20/1m:5", "--json"]));
    assert_eq!((&set["fail"], &set["quotas"][0]["burst"]), (&Value::from("closed"), &Value::from(5)), "{set}");
    fails(tier(&["set", "free", "--fail", "never"]), 2, "share");
    fails(tier(&["set", "free", "--quota", "day=20/1d:5"]), 1, "a calendar window (`1h`, `1d`, `1mo`) has no burst");
    ok(tier(&["reset", "free"]));
    // Again is harmless; a tier that isn't there is named.
    ok(tier(&["reset", "free"]));
    let shown = ok(tier(&["show", "free"]));
    let all = free(json(tier(&["list", "--json"])));
    for (group, members) in [("", &all), ("limits.", &all["limits"])] {
        for name in members.as_object().expect("an object").keys().filter(|name| *name != "limits") {
            assert!(shown.lines().any(|line| line.starts_with(&format!("{group}{name} "))), "{group}{name}: {shown}");
        }
    }
    assert!(shown.contains("209715200") && shown.contains("minute=10/60s:10"), "{shown}");
    assert_eq!(json(tier(&["show", "free", "--json"])), all);
    fails(tier(&["show", "fre"]), 1, "`free`");
    fails(tier(&["reset", "fre"]), 1, "no tier of this name");
}

#[test]
fn a_mistyped_value_is_told_with_what_there_is() {
    let gw = Gateway::start("");
    let create = |more: &[&str]| verb(&gw, &[&["key", "create", "--owner", "acme"], more].concat());
    fails(create(&["--tier", "pro2"]), 1, "; use `free`, `basic`");
    fails(verb(&gw, &["tier", "set", "prro", "--concurrent", "3"]), 1, "`basic`");
    let scopes = create(&["--tier", "pro", "--scopes", "usage,proxi"]);
    let errors = String::from_utf8_lossy(&scopes.stderr).into_owned();
    assert!(errors.contains("proxy") && errors.contains("execute") && !errors.contains("column"), "{errors}");
    fails(scopes, 2, "proxi");
    let token = json(verb(&gw, &["token", "create", "ops", "--json"]));
    fails(verb(&gw, &["token", "revoke", "ops"]), 1, token["id"].as_str().expect("an id"));
    // Another gateway's token: the file that was read is named, and the log tells which one it had to be.
    let other = gw.dir.path().join("other.token");
    std::fs::write(&other, "wg_admin_other").expect("writable");
    let other = other.to_str().expect("UTF-8");
    fails(verb(&gw, &["key", "list", "--token-file", other]), 1, other);
    assert!(gw.log().contains(gw.ready["admin_token_file"].as_str().expect("a path")), "{}", gw.log());
}

#[test]
fn a_modules_limits_are_set_shown_and_taken_away() {
    let up = Upstream::echo();
    let gw = Gateway::start(&keyed_proxy(up.addr, ""));
    let module = |args: &[&str]| verb(&gw, &[&["module"], args].concat());
    let file = gw.dir.path().join("one.wasm");
    std::fs::write(&file, wat("(module (func (export \"run\")))")).expect("the folder is writable");
    let file = file.to_str().expect("UTF-8");
    ok(module(&["push", file, "--name", "acme/one", "--limit", "fuel=1000", "--limit", "instances=2"]));
    let limits = || json(module(&["show", "acme/one", "--json"]))["limits"].clone();
    assert_eq!(limits(), serde_json::json!({"fuel": 1000, "instances": 2}));
    assert!(ok(module(&["limit", "acme/one", "wall_ms=5"])).contains("wall_ms=5"));
    ok(module(&["push", file, "--name", "acme/one"]));
    assert_eq!(limits(), serde_json::json!({"wall_ms": 5}));
    ok(module(&["limit", "acme/one", "--none"]));
    assert_eq!(limits(), serde_json::json!({}));
    fails(module(&["limit", "acme/one"]), 2, "NAME=NUMBER");
    fails(module(&["limit", "acme/one", "fule=1"]), 2, "fule");
    fails(module(&["limit", "acme/one", "fuel=much"]), 2, "fuel=much");
    fails(module(&["limit", "acme/one", "fuel=0"]), 1, "limits.fuel");
    fails(module(&["limit", "acme/one@1", "fuel=1"]), 2, "leave out the version");
}
