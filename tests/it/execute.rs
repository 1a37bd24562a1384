//! The execute endpoint: every form of body and both forms of answer. How hostile guests end is in the attack table.

use base64::Engine as _;
use serde_json::{Value, json};

use crate::support::admin::NewKey;
use crate::support::api::{self, Form};
use crate::support::toml::tier;
use crate::support::{Gateway, Request, Response, c_guest};

fn post(gw: &Gateway, key: &str, query: &str) -> Request {
    gw.request("POST", &format!("/api/wasm/execute{query}")).key(key)
}

fn base64(bytes: &[u8]) -> String {
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

/// Runs `tests/guests/c/command.c` with these arguments.
fn command(gw: &Gateway, key: &str, args: &[&str]) -> Response {
    let args = serde_json::to_string(args).expect("strings are JSON");
    let form = Form::default().file("wasm", &c_guest("command")).field("args", args).field("input", "some input").end();
    post(gw, key, "").form(form).send()
}

#[test]
fn every_body_form_runs_the_same_guest() {
    let gw = Gateway::start(&api::config(""));
    let key = gw.key();
    let wasm = c_guest("command");
    gw.upload("acme/upper", "command", &wasm);
    let input = "make me loud";
    let forms = [
        ("multipart `wasm`", post(&gw, &key, "").form(Form::default().file("wasm", &wasm).field("input", input).end())),
        (
            "multipart, the older names",
            gw.request("POST", "/api/execute")
                .key(&key)
                .form(Form::default().file("wasm_file", &wasm).field("input_data", input).end()),
        ),
        (
            "multipart `module`",
            post(&gw, &key, "").form(Form::default().field("module", "upper").field("input", input).end()),
        ),
        (
            "multipart `name@version`",
            post(&gw, &key, "").form(Form::default().field("module", "acme/upper@1").field("input", input).end()),
        ),
        ("JSON `module`", post(&gw, &key, "").json(&json!({"module": "upper", "input": input}))),
        (
            "JSON `wasm_base64`",
            post(&gw, &key, "").json(&json!({"wasm_base64": base64(&wasm), "input_base64": base64(input.as_bytes())})),
        ),
        (
            "raw",
            post(&gw, &key, "?input=make%20me%20loud").header("Content-Type", "application/wasm").body(wasm.clone()),
        ),
    ];
    for (form, request) in forms {
        let doc = request.send().expect(200).json();
        assert_eq!(doc["output"], "MAKE ME LOUD", "{form}: {doc}");
        assert_eq!(doc["exit_code"], 0, "{form}: {doc}");
    }
}

#[test]
fn the_json_answer_has_every_figure() {
    let gw = Gateway::start(&api::config(""));
    let key = gw.key();
    let doc = command(&gw, &key, &["stderr"]).expect(200).json();
    assert_eq!((&doc["output"], &doc["stderr"]), (&json!("to stdout\n"), &json!("to stderr\n")), "{doc}");
    for figure in ["execution_time_ms", "cpu_ms", "fuel", "memory_peak_bytes"] {
        assert!(doc[figure].is_number(), "`{figure}`: {doc}");
    }
    assert!(doc["fuel"].as_u64() > Some(100) && doc["memory_peak_bytes"].as_u64() >= Some(65536), "{doc}");
    assert!(doc["status"].is_string() && doc["request_id"].is_string(), "{doc}");
    let again = command(&gw, &key, &["stderr"]).expect(200).json();
    assert_eq!(doc["fuel"], again["fuel"], "fuel is deterministic");
}

#[test]
fn binary_output_comes_back_whole_in_both_forms() {
    let gw = Gateway::start(&api::config(""));
    let key = gw.key();
    let all: Vec<u8> = (0..=255).collect();
    let doc = command(&gw, &key, &["binary"]).expect(200).json();
    assert_eq!(doc["output_base64"], base64(&all), "{doc}");
    let form = Form::default().file("wasm", &c_guest("command")).field("args", "binary").end();
    let raw = post(&gw, &key, "").header("Accept", "application/octet-stream").form(form).send().expect(200);
    assert_eq!(raw.header("content-type"), Some("application/octet-stream"));
    assert_eq!(raw.body, all);
    let figures = raw.headers.iter().filter(|(name, _)| name.to_ascii_lowercase().contains("fuel")).count();
    assert_eq!(figures, 1, "figures are headers: {:?}", raw.headers);
}

#[test]
fn arguments_environment_clock_and_exit_codes() {
    let gw = Gateway::start(&api::config(""));
    let key = gw.key();
    assert_eq!(command(&gw, &key, &["args", "a b", "", "ü"]).expect(200).json()["output"], "args\na b\n\nü\n");
    assert_eq!(command(&gw, &key, &["clock"]).expect(200).json()["output"], "1\n");
    let doc = command(&gw, &key, &["exit", "7"]).expect(200).json();
    assert_eq!(
        (&doc["exit_code"], &doc["output"]),
        (&json!(7), &json!("before the end\n")),
        "any exit code is 200: {doc}"
    );
    assert_eq!(command(&gw, &key, &["exit", "0"]).expect(200).json()["exit_code"], 0);

    let form =
        Form::default().file("wasm", &c_guest("command")).field("args", "env").field("env", "{\"MINE\": \"1\"}").end();
    let doc = post(&gw, &key, "").form(form).send().expect(200).json();
    assert_eq!(doc["output"], "MINE=1\n", "only what the caller gave: {doc}");
}

#[test]
fn core_functions_take_typed_scalars() {
    let gw = Gateway::start(&api::config(""));
    let key = gw.key();
    let call = |function: Value, args: Value| {
        let mut body = json!({"wasm_base64": base64(&c_guest("core")), "args": args});
        if !function.is_null() {
            body["function"] = function;
        }
        post(&gw, &key, "").json(&body).send()
    };
    assert_eq!(call(json!("add"), json!(["2", "40"])).expect(200).json()["result"], 42);
    assert_eq!(call(json!("add"), json!([2, -3])).expect(200).json()["result"], -1);
    assert_eq!(call(json!("half"), json!(["3"])).expect(200).json()["result"], 1.5);
    let big = call(json!("big"), json!(["9007199254740993"])).expect(200).json()["result"].to_string();
    assert_eq!(big.trim_matches('"'), "9007199254740994", "64 bits survive JSON");
    assert_eq!(call(Value::Null, json!([])).expect(200).json()["result"], 42, "`run` is the fixed entry");
    call(json!("add"), json!(["2"])).problem(400, "bad-request");
    call(json!("add"), json!(["2", "x"])).problem(400, "bad-request");
    call(json!("nothing"), json!([])).problem(400, "bad-request");
    call(json!("divide"), json!([1, 0])).problem(502, "handler-trap");
}

#[test]
fn a_backtrace_is_for_who_asks() {
    let gw = Gateway::start(&api::config(""));
    let key = gw.key();
    let aborts = |query: &str| {
        let form = Form::default().file("wasm", &c_guest("command")).field("args", "abort").end();
        post(&gw, &key, query).form(form).send().problem(502, "handler-trap")
    };
    assert!(aborts("").get("backtrace").is_none());
    assert!(aborts("?trace=1").get("backtrace").is_some());
}

#[test]
fn input_over_the_limit_is_413() {
    let limits = tier("small", "quotas = []\nlimits.input = \"1KiB\"");
    let gw = Gateway::start(&api::config(&limits));
    let key = gw.key_of("small");
    gw.execute(&key, &c_guest("command"), &[b'x'; 1024]).expect(200);
    gw.execute(&key, &c_guest("command"), &[b'x'; 1025]).problem(413, "payload-too-large");
}

#[test]
fn a_module_over_the_callers_tier_is_402() {
    let gw = Gateway::start(&api::config(&tier("tiny", "quotas = []\nmodule_size = \"10KiB\"")));
    let key = gw.key_of("tiny");
    let doc = gw.execute(&key, &c_guest("command"), b"").problem(402, "tier-required");
    assert!(doc["needs_tier"].is_string(), "{doc}");
}

#[test]
fn what_cannot_be_understood_is_refused_by_name() {
    let gw = Gateway::start(&api::config(""));
    let key = gw.key();
    let detail = |request: Request| request.send().problem(400, "bad-request")["detail"].to_string();
    for (body, named) in [
        (json!({}), "module"),
        (json!({"module": "x", "wasm_base64": "AA=="}), "wasm_base64"),
        (json!({"wasm_base64": "not base64!"}), "wasm_base64"),
        (json!({"module": "UPPER CASE"}), "module"),
        (json!({"module": "x", "args": [{}]}), "args"),
        (json!({"module": "x", "env": {"A=B": "1"}}), "env"),
        (json!({"module": "x", "surprise": 1}), "surprise"),
        (json!({"module": "x", "abi": "nonsense"}), "abi"),
    ] {
        let detail = detail(post(&gw, &key, "").json(&body));
        assert!(detail.contains(named), "{body}: {detail}");
    }
    detail(post(&gw, &key, "").header("Content-Type", "application/json").body("{"));
    post(&gw, &key, "").header("Content-Type", "text/plain").body("x").send().problem(415, "unsupported-media-type");
    post(&gw, &key, "").json(&json!({"module": "absent"})).send().problem(404, "not-found");
    gw.request("GET", "/api/wasm/execute").key(&key).send().problem(405, "method-not-allowed");
    let no_scope = gw.new_key(&NewKey { scopes: &["proxy"], ..NewKey::default() }).text;
    gw.execute(&no_scope, &c_guest("command"), b"").problem(403, "scope-required");
    post(&gw, "", "").json(&json!({"module": "x"})).send().problem(401, "unauthorized");
}

/// The most memory that the gateway ever had, in bytes.
fn peak_memory(gw: &Gateway) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", gw.pid())).expect("it runs");
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).expect("the peak");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
}

/// `{}` takes three bytes in a body, and hundreds once it is a struct.
#[test]
fn a_body_of_many_small_things_costs_no_more_than_its_bytes() {
    let gw = Gateway::start(&api::config(&tier("large", "quotas = []\nmodule_size = \"16MiB\"")));
    let key = gw.key_of("large");
    let post = |target: &str, body: String| {
        let request = gw.request("POST", target).key(&key).header("Content-Type", "application/json").body(body);
        request.send().problem(400, "bad-request")
    };
    post("/api/wasm/batch", "[{}]]".into());
    let before = peak_memory(&gw);
    let many = |one: &str| vec![one; 10_000_000 / (one.len() + 1)].join(",");
    post("/api/wasm/batch", format!("[{}]", many("{}")));
    post("/api/wasm/execute", format!("{{\"args\":[{}]}}", many("1")));
    post("/api/wasm/execute", format!("{{\"args\":[[{}]]}}", many("[]")));
    post("/api/wasm/execute", format!("{{\"env\":{{{}}}}}", many("\"\":\"\"")));
    let grown = peak_memory(&gw).saturating_sub(before);
    // Four bodies of 10 MB in buffers that grow by doubling, some of it kept by the allocator; built in full, the first
    // one alone takes over a gigabyte.
    assert!(grown < 192 << 20, "{grown} bytes");
}

#[test]
fn a_batch_runs_each_item_and_counts_each() {
    let quota = tier("small", "quotas = [{ name = \"day\", requests = 5, window = \"1d\" }]");
    let gw = Gateway::start(&api::config(&quota));
    gw.upload("acme/core", "core", &c_guest("core"));
    let key = gw.key_of("small");
    let items = json!([
        {"module": "core", "function": "add", "args": [1, 2]},
        {"module": "core", "function": "divide", "args": [1, 0]},
        {"module": "absent"},
    ]);
    let batch = |body: &Value| gw.request("POST", "/api/wasm/batch").key(&key).json(body).send();
    let done = batch(&items).expect(200).json();
    let statuses: Vec<_> = done.as_array().expect("an array").iter().map(|i| i["status"].clone()).collect();
    assert_eq!(done[0]["result"], 3, "{done}");
    assert_eq!(statuses, [200, 502, 404], "{done}");
    // Two of five are left, too few for three: none of them runs.
    batch(&items).problem(429, "quota-exceeded");
}

#[test]
fn usage_adds_up() {
    let gw = Gateway::start(&api::config(""));
    let key = gw.key();
    for _ in 0..3 {
        command(&gw, &key, &["upper"]).expect(200);
    }
    command(&gw, &key, &["abort"]).expect(502);
    let find = |doc: &Value, name: &str| -> u64 {
        fn walk(doc: &Value, name: &str) -> u64 {
            match doc {
                Value::Object(map) => map
                    .iter()
                    .map(|(k, v)| if k == name { v.as_u64().unwrap_or(0) } else { walk(v, name) })
                    .max()
                    .unwrap_or(0),
                Value::Array(items) => items.iter().map(|v| walk(v, name)).max().unwrap_or(0),
                _ => 0,
            }
        }
        walk(doc, name)
    };
    let mut last = Value::Null;
    let done = crate::support::poll(crate::support::DEADLINE, || {
        last = gw.get("/api/usage").key(&key).send().expect(200).json();
        find(&last, "executions") == 4 && find(&last, "handler-trap") == 1
    });
    assert!(done, "{last}");
    assert!(find(&last, "fuel") > 0 && find(&last, "bytes_out") > 0, "{last}");
}
