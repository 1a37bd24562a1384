//! Limits of one run: those of a tier, and those that a module has of its own, which only ever lower them.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::admin::NewKey;
use crate::support::api::{self, Form};
use crate::support::toml::{route, tier, upstream};
use crate::support::{Conn, Gateway, Request, Response, Upstream, c_guest, eventually, wat};

/// Calls itself so many times.
const RECURSE: &str = r#"(module (func $f (export "run") (param i32) (result i32)
    (if (result i32) (local.get 0)
      (then (i32.add (i32.const 1) (call $f (i32.sub (local.get 0) (i32.const 1)))))
      (else (i32.const 0)))))"#;
const LOOP: &str = r#"(module (func (export "run") (param i32) (result i32)
    (loop $l (br_if $l (local.tee 0 (i32.sub (local.get 0) (i32.const 1))))) (i32.const 0)))"#;
/// As often as nobody waits for.
const LONG_LOOP: &str = r#"(module (func (export "run") (param i64) (result i32)
    (loop $l (br_if $l (i64.ne (local.tee 0 (i64.sub (local.get 0) (i64.const 1))) (i64.const 0)))) (i32.const 0)))"#;
const GROW: &str = r#"(module (memory 1) (func (export "run") (param i32) (result i32) (memory.grow (local.get 0))))"#;
const TABLE: &str = r#"(module (table 0 funcref) (func (export "run") (param i32) (result i32)
    (table.grow (ref.null func) (local.get 0))))"#;
/// Writes a page to this descriptor.
const WRITE: &str = r#"(module (import "wasi_snapshot_preview1" "fd_write" (func $w (param i32 i32 i32 i32) (result i32)))
    (memory (export "memory") 2) (data (i32.const 0) "\10\00\00\00\00\40\00\00")
    (func (export "_start") (drop (call $w (i32.const FD) (i32.const 0) (i32.const 1) (i32.const 8)))))"#;

fn limit(gw: &Gateway, key: &str, module: &str, limits: &Value) -> Response {
    change(gw, key, module).json(&json!({"limits": limits})).send()
}

fn change(gw: &Gateway, key: &str, module: &str) -> Request {
    gw.request("PATCH", &format!("/api/wasm/modules/{module}")).key(key)
}

fn run(gw: &Gateway, key: &str, module: &str, arg: u64) -> Response {
    let mut call = json!({"module": module});
    if arg > 0 {
        call["args"] = json!([arg]);
    }
    gw.request("POST", "/api/wasm/execute").key(key).json(&call).send()
}

/// A module, an argument, a limit under which that is too much, and what is to be seen of that.
struct Case {
    name: &'static str,
    abi: &'static str,
    wat: String,
    arg: u64,
    limits: Value,
    status: u16,
    /// Of a refusal its slug, else the answer's member and its value without the limit and with it.
    shows: (&'static str, Value, Value),
}

fn cases() -> Vec<Case> {
    let case = |name, abi, wat: &str, arg, limits, status, shows| Case {
        name,
        abi,
        wat: wat.to_owned(),
        arg,
        limits,
        status,
        shows,
    };
    let slug = |slug| (slug, Value::Null, Value::Null);
    let million = 1_000_000;
    vec![
        case("fuel", "core", LOOP, million, json!({"fuel": 100_000}), 504, slug("handler-out-of-fuel")),
        case("wall", "core", LOOP, 500 * million, json!({"wall_ms": 20}), 504, slug("handler-timeout")),
        case("stack", "core", RECURSE, 5_000, json!({"stack_bytes": 65_536}), 502, slug("handler-trap")),
        case("memory", "core", GROW, 3, json!({"memory_bytes": 131_072}), 200, ("result", json!(1), json!(-1))),
        case("table", "core", TABLE, 10, json!({"table_elements": 9}), 200, ("result", json!(0), json!(-1))),
        case(
            "output",
            "command",
            &WRITE.replace("FD", "1"),
            0,
            json!({"output_bytes": 100}),
            502,
            slug("handler-output-too-large"),
        ),
        case(
            "log",
            "command",
            &WRITE.replace("FD", "2"),
            0,
            json!({"log_bytes": 3}),
            200,
            ("stderr", json!("\0".repeat(16_384)), json!("\0\0\0")),
        ),
    ]
}

#[test]
fn a_modules_own_limits_hold_until_they_are_taken_away() {
    let gw = Gateway::start(&api::config(""));
    let key = gw.key();
    for Case { name, abi, wat: text, arg, limits, status, shows: (what, without, with) } in cases() {
        gw.upload(&format!("acme/{name}"), abi, &wat(&text));
        let shown = |response: Response, value: &Value, when: &str| {
            let doc = response.expect(200).json();
            if !value.is_null() {
                let short: String = doc[what].to_string().chars().take(80).collect();
                assert!(doc[what] == *value, "{name} {when}: {short}");
            }
        };
        shown(run(&gw, &key, name, arg), &without, "before");
        let doc = limit(&gw, &key, name, &limits).expect(200).json();
        assert_eq!(doc["limits"], limits, "{name}");
        match status {
            200 => shown(run(&gw, &key, name, arg), &with, "under its limit"),
            status => drop(run(&gw, &key, name, arg).problem(status, what)),
        }
        assert_eq!(limit(&gw, &key, name, &json!({})).expect(200).json()["limits"], json!({}));
        shown(run(&gw, &key, name, arg), &without, "after");
    }
    let input = json!({"module": "log", "input": "x".repeat(100)});
    let send = || gw.request("POST", "/api/wasm/execute").key(&key).json(&input).send();
    send().expect(200);
    limit(&gw, &key, "log", &json!({"input_bytes": 99})).expect(200);
    send().problem(413, "payload-too-large");
}

#[test]
fn a_tiers_stack_is_what_its_runs_have() {
    let tiers =
        tier("flat", "quotas = []\nlimits.stack = \"64KiB\"") + &tier("deep", "quotas = []\nlimits.stack = \"1MiB\"");
    let gw = Gateway::start(&api::config(&tiers));
    let (flat, deep, usual) = (gw.key_of("flat"), gw.key_of("deep"), gw.key());
    gw.upload("acme/recurse", "core", &wat(RECURSE));
    // A frame of it has 16 to 50 bytes. By turns, so that each thread has had the others' stacks.
    for _ in 0..4 {
        run(&gw, &deep, "recurse", 20_000).expect(200);
        run(&gw, &usual, "recurse", 20_000).problem(502, "handler-trap");
        run(&gw, &usual, "recurse", 5_000).expect(200);
        run(&gw, &flat, "recurse", 5_000).problem(502, "handler-trap");
        run(&gw, &flat, "recurse", 1_000).expect(200);
    }
    let set = |limits: Value| gw.admin("PUT", "/api/tiers/flat").json(&json!({"limits": limits})).send();
    for stack in [0, 65_535, 1 << 21] {
        let doc = set(json!({"stack_bytes": stack})).problem(400, "bad-request");
        assert!(doc["detail"].as_str().is_some_and(|d| d.contains("limits.stack_bytes")), "{doc}");
    }
    set(json!({"instances": 0})).problem(400, "bad-request");
    set(json!({"stack_bytes": 524_288})).expect(200);
    run(&gw, &flat, "recurse", 5_000).expect(200);
}

#[test]
fn limits_that_mean_nothing_are_refused_by_name() {
    let gw =
        Gateway::start(&api::config(&tier("small", "quotas = []\nlimits.memory = \"1MiB\"\nlimits.wall = \"2s\"")));
    let key = gw.key_of("small");
    gw.upload("acme/m", "core", &wat("(module (memory 2) (func (export \"run\")))"));
    for (limits, named) in [
        (json!({"fule": 1}), "fule"),
        (json!({"fuel": 0}), "limits.fuel"),
        (json!({"wall_ms": 0}), "limits.wall_ms"),
        (json!({"instances": 0}), "limits.instances"),
        (json!({"stack_bytes": 1}), "limits.stack_bytes"),
        (json!({"memory_bytes": 65_536}), "limits.memory_bytes"),
        (json!({"memory_bytes": (1 << 20) + 1}), "1048576"),
        (json!({"wall_ms": 2_001}), "limits.wall_ms"),
        (json!({"fuel": "many"}), "limits"),
        (json!(null), "limits"),
    ] {
        let doc = limit(&gw, &key, "m", &limits).problem(400, "bad-request");
        assert!(doc["detail"].as_str().is_some_and(|d| d.contains(named)), "`{named}`: {doc}");
        if let Some(json) = limits.is_object().then(|| limits.to_string()) {
            let form =
                Form::default().field("name", "n").file("wasm", &wat("(module (memory 2) (func (export \"run\")))"));
            let form = form.field("limits", &json).end();
            let doc = gw.request("POST", "/api/wasm/upload").key(&key).form(form).send().problem(400, "bad-request");
            assert!(doc["detail"].as_str().is_some_and(|d| d.contains(named)), "`{named}`: {doc}");
        }
    }
    gw.get("/api/wasm/modules/n").key(&key).send().problem(404, "not-found");
    assert_eq!(gw.get("/api/wasm/modules/m").key(&key).send().expect(200).json()["limits"], json!({}));
    limit(&gw, &key, "m@1", &json!({})).problem(400, "bad-request");
    limit(&gw, &key, "none", &json!({})).problem(404, "not-found");
    change(&gw, &key, "m").json(&json!({})).send().problem(400, "bad-request");
    let other = gw.new_key(&NewKey { owner: "other", ..NewKey::default() }).text;
    limit(&gw, &other, "acme/m", &json!({})).problem(404, "not-found");
}

#[test]
fn limits_come_with_an_upload_and_stay() {
    let gw = Gateway::start(&api::config(""));
    let key = gw.key();
    let module = wat(LOOP);
    let form = Form::default().field("name", "m").file("wasm", &module).field("limits", r#"{"fuel":1000}"#).end();
    let doc = gw.request("POST", "/api/wasm/upload").key(&key).form(form).send().expect(201).json();
    assert_eq!(doc["limits"], json!({"fuel": 1000}));
    // A further version without a word about limits has those of the module; the operator sets them too.
    gw.upload("acme/m", "core", &wat(&LOOP.replace("i32.const 0)", "i32.const 7)")));
    run(&gw, &key, "m", 100_000).problem(504, "handler-out-of-fuel");
    let put = |query: &str| {
        let request = gw.admin("PUT", &format!("/api/wasm/modules/m?owner=acme{query}"));
        request.header("Content-Type", "application/wasm").body(module.clone()).send()
    };
    let doc = put("&limits=%7B%22wall_ms%22:5%7D&activate=true").expect(200).json();
    assert_eq!(doc["limits"], json!({"wall_ms": 5}));
    let listed = gw.get("/api/wasm/modules").key(&key).send().expect(200).json();
    assert_eq!(listed["modules"][0]["limits"], json!({"wall_ms": 5}), "{listed}");
    let gw = gw.restart(&api::config(""));
    run(&gw, &key, "m", 1_000).expect(200);
    run(&gw, &key, "m", u64::from(u32::MAX)).problem(504, "handler-timeout");
    let audit = gw.admin("GET", "/api/audit").send().expect(200).text();
    assert!(audit.contains("module.upload"), "{audit}");
    gw.admin("PATCH", "/api/wasm/modules/m?owner=acme").json(&json!({"limits": {}})).send().expect(200);
    let audit = gw.admin("GET", "/api/audit").send().expect(200).text();
    assert!(audit.contains("module.limits") && audit.contains(r#"{\"wall_ms\":5} -> {}"#), "{audit}");
}

#[test]
fn routes_follow_their_modules_limits_at_once() {
    let up = Upstream::echo();
    let routes = upstream("up", up.addr, "")
        + &route(
            "cgi",
            "match.path_prefix = \"/cgi\"\ntarget.handler = { module = \"acme/cgi\", wall = \"2s\" }\nauth = \"none\"",
        )
        + &route(
            "http",
            "match.path_prefix = \"/http\"\ntarget.upstream = \"up\"\nauth = \"none\"\nhandlers = [{ module = \"acme/http\", config = \"spin\", wall = \"30s\" }]",
        );
    let gw = Gateway::with_modules(
        "",
        &[("acme/cgi", "cgi", &c_guest("cgi")), ("acme/http", "http-wasm", &c_guest("http"))],
        &routes,
    );
    let limit = |module: &str, limits: Value| {
        let target = format!("/api/wasm/modules/{module}?owner=acme");
        gw.admin("PATCH", &target).json(&json!({"limits": limits})).send().expect(200);
    };
    gw.get("/cgi").send().expect(200);
    limit("cgi", json!({"fuel": 50}));
    gw.get("/cgi").send().problem(504, "handler-out-of-fuel");
    limit("cgi", json!({"input_bytes": 3}));
    gw.post("/cgi", "1234").send().problem(413, "payload-too-large");
    limit("cgi", json!({}));
    gw.post("/cgi", "1234").send().expect(200);
    // Living VMs: at once, and made anew.
    limit("http", json!({"fuel": 1_000_000}));
    gw.get("/http").send().problem(504, "handler-out-of-fuel");
    limit("http", json!({"wall_ms": 50}));
    let began = Instant::now();
    gw.get("/http").send().problem(504, "handler-timeout");
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}

/// Runs of one module at once, and the phases of one handler.
#[test]
fn no_more_instances_than_allowed_are_under_way() {
    let up = Upstream::echo();
    let config =
        "[engine]\nqueue_timeout = \"1s\"\nper_owner = 8\n".to_owned() + &api::config(&upstream("up", up.addr, ""));
    let routes = route(
        "http",
        "match.path_prefix = \"/http\"\ntarget.upstream = \"up\"\nauth = \"none\"\nhandlers = [{ module = \"acme/http\", config = \"spin\", wall = \"8s\" }]",
    );
    let gw = Gateway::with_modules(&config, &[("acme/http", "http-wasm", &c_guest("http"))], &routes);
    let key = gw.key();
    gw.upload("acme/loop", "core", &wat(LONG_LOOP));
    gw.upload("acme/other", "core", &wat(GROW));
    let engine = |figure: &str| gw.admin("GET", "/api/state").send().expect(200).json()["engine"][figure].as_u64();
    limit(&gw, &key, "loop", &json!({"instances": 2})).expect(200);
    let endless = json!({"module": "loop", "args": [i64::MAX]});
    let endless = gw.request("POST", "/api/wasm/execute").key(&key).json(&endless).bytes();
    let runs = [(); 2].map(|()| {
        let mut conn = Conn::connect(gw.proxy);
        conn.send(&endless);
        conn
    });
    eventually("two run", || engine("guests_running") == Some(2));
    let refused = run(&gw, &key, "loop", 1);
    assert!(refused.header("retry-after").is_some(), "{refused}");
    refused.problem(503, "busy");
    eventually("another module runs", || run(&gw, &key, "other", 1).status == 200);
    // Those under way count, whatever number they began under.
    limit(&gw, &key, "loop", &json!({"instances": 1})).expect(200);
    run(&gw, &key, "loop", 1).problem(503, "busy");
    limit(&gw, &key, "loop", &json!({"instances": 3})).expect(200);
    eventually("a third runs", || run(&gw, &key, "loop", 1).status == 200);
    // Their clients leave, and they end.
    drop(runs);
    limit(&gw, &key, "loop", &json!({"instances": 1})).expect(200);
    eventually("there is room", || run(&gw, &key, "loop", 1).status == 200);
    limit(&gw, &key, "http", &json!({"instances": 1})).expect(200);
    std::thread::scope(|scope| {
        let both = [(); 2].map(|()| scope.spawn(|| gw.get("/http").send().status));
        let mut statuses = both.map(|request| request.join().expect("no panic"));
        statuses.sort_unstable();
        assert_eq!(statuses, [503, 504], "one waits for the other's VM in vain");
    });
}

#[test]
fn limits_that_some_version_could_not_begin_with_do_not_reach_it() {
    let gw = Gateway::start(&api::config(""));
    let key = gw.key();
    let upload = |pages: u32, more: Form| {
        let text = format!(r#"(module (memory {pages}) (func (export "run") (result i32) (memory.size)))"#);
        let form = more.field("name", "grows").file("wasm", &wat(&text)).end();
        gw.request("POST", "/api/wasm/upload").key(&key).form(form).send()
    };
    upload(64, Form::default()).expect(201);
    // It is not the one that would run with them, but they are the module's.
    let small = r#"{"memory_bytes": 1048576}"#;
    upload(1, Form::default().field("limits", small)).problem(400, "bad-request");
    run(&gw, &key, "grows", 0).expect(200);
    upload(1, Form::default().field("activate", "true")).expect(201);
    limit(&gw, &key, "grows", &serde_json::from_str(small).unwrap()).expect(200);
    let activate = |version: u32| {
        let request = gw.request("POST", "/api/wasm/modules/grows/activate").key(&key);
        request.json(&json!({"version": version})).send()
    };
    activate(1).problem(400, "bad-request");
    upload(65, Form::default().field("activate", "true")).problem(400, "bad-request");
    run(&gw, &key, "grows", 0).expect(200);
}

/// Who is refused for a limit knows whose to change.
#[test]
fn a_refusal_names_whose_limit_it_is() {
    let bounds = "quotas = []\nmodule_size = \"1KiB\"\nlimits.input = \"100B\"\nlimits.memory = \"64KiB\"";
    let gw = Gateway::start(&api::config(&tier("small", bounds)));
    let (key, small) = (gw.key(), gw.key_of("small"));
    let large = wat(&format!("(module (memory 1) (data \"{}\") (func (export \"run\")))", "x".repeat(2000)));
    let wide = wat("(module (memory 2) (func (export \"run\")))");
    let put = |key: &str, name: &str, wasm: &[u8]| {
        let request = gw.request("PUT", &format!("/api/wasm/modules/{name}")).key(key);
        request.header("Content-Type", "application/wasm").body(wasm).send()
    };
    put(&key, "large", &large).expect(201);
    put(&key, "wide", &wide).expect(201);
    let input = |key: &str, bytes: usize| {
        let call = json!({"module": "wide", "input": "x".repeat(bytes)});
        gw.request("POST", "/api/wasm/execute").key(key).json(&call).send()
    };
    limit(&gw, &key, "wide", &json!({"input_bytes": 200})).expect(200);
    let tiers = |setting| ["`small`".to_owned(), format!("`{setting}`")];
    let own = ["`acme/wide@1`".to_owned(), "`input_bytes`".to_owned()];
    for (refused, status, slug, says) in [
        (put(&small, "new", &large), 402, "tier-required", tiers("module_size")),
        (run(&gw, &small, "large", 0), 402, "tier-required", tiers("module_size")),
        (put(&small, "new", &wide), 422, "memory-limit", tiers("small")),
        (run(&gw, &small, "wide", 0), 402, "tier-required", tiers("limits.memory")),
        (input(&small, 101), 413, "payload-too-large", tiers("limits.input")),
        (input(&key, 201), 413, "payload-too-large", own),
        (limit(&gw, &small, "wide", &json!({"input_bytes": 101})), 400, "bad-request", tiers("small")),
    ] {
        let doc = refused.problem(status, slug);
        let detail = doc["detail"].as_str().unwrap_or_default();
        assert!(says.iter().all(|says| detail.contains(says)), "{says:?}: {detail}");
    }
}

#[test]
fn a_tier_has_no_more_than_its_file_could_give_it() {
    let gw = Gateway::start(&api::config(""));
    for (name, value) in [("module_bytes", (1 << 30) + 1), ("module_storage_bytes", (1_u64 << 40) + 1)] {
        let problem = gw.admin("PUT", "/api/tiers/free").json(&json!({name: value})).send().problem(400, "bad-request");
        assert!(problem["detail"].as_str().is_some_and(|detail| detail.contains(name)), "{problem}");
    }
    for (name, value) in [
        ("fuel", u64::MAX),
        ("memory_bytes", 50_000_000_000),
        ("wall_ms", 99_999_999_999),
        ("output_bytes", 5_000_000_000),
        ("log_bytes", 5_000_000_000),
        ("file_bytes", 5_000_000_000),
        ("instances", 10_000_000),
    ] {
        let change = json!({"limits": {name: value}});
        let answer = gw.admin("PUT", "/api/tiers/free").json(&change).send();
        let problem = answer.problem(400, "bad-request");
        assert!(problem["detail"].as_str().is_some_and(|detail| detail.contains(name)), "{problem}");
    }
}
