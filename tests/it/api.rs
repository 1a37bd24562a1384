//! Both faces of the HTTP API, in process: the real store, engine and key policy behind the services that the gateway
//! mounts. What needs the whole gateway (admission, listeners) is tested over sockets elsewhere.

use std::path::PathBuf;
use std::sync::Arc;

use base64::Engine as _;
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http::{HeaderMap, Method, Request, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;
use wasmgate::api::{self, Services};
use wasmgate::app::App;
use wasmgate::config;
use wasmgate::domain::{Principal, Rejection, ScopeSet, Subject, Timestamp};
use wasmgate::engine::Cancel;
use wasmgate::gateway::{ApiBody, ApiService, Caller};
use wasmgate::telemetry::{LogControl, log_subscriber};

/// Standard input to standard output, then `proc_exit` with the number of arguments.
const CAT: &str = r#"(module
  (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "args_sizes_get" (func $args (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 2)
  (func (export "_start")
    (i32.store (i32.const 0) (i32.const 1024))
    (loop $more
      (i32.store (i32.const 4) (i32.const 65536))
      (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))
      (if (i32.load (i32.const 8)) (then
        (i32.store (i32.const 4) (i32.load (i32.const 8)))
        (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
        (br $more))))
    (drop (call $args (i32.const 16) (i32.const 20)))
    (call $exit (i32.sub (i32.load (i32.const 16)) (i32.const 1)))))"#;

const CORE: &str = r#"(module
  (func (export "run") (result i32) (i32.const 42))
  (func (export "add") (param i32 i32) (result i32) (i32.add (local.get 0) (local.get 1)))
  (func (export "trap") unreachable))"#;

fn wasm(text: &str) -> Vec<u8> {
    wat::parse_str(text).expect("the guest is valid text")
}

/// A core module whose `run` gives `n`.
fn constant(n: i32) -> Vec<u8> {
    wasm(&format!("(module (func (export \"run\") (result i32) (i32.const {n})))"))
}

/// A log that nothing writes to: other tests have the process's own. Its filter lives as long as it does.
fn logs() -> LogControl {
    let log = config::Log { format: config::LogFormat::Pretty, level: "error".into(), access: false };
    let (subscriber, control) = log_subscriber(&log).expect("a valid level");
    Box::leak(Box::new(subscriber));
    control
}

struct Kit {
    app: Arc<App>,
    services: Services,
    token: String,
    _dir: TempDir,
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Vec<u8>,
    counted: Option<Rejection>,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("not JSON ({e}): {self:?}"))
    }

    #[track_caller]
    fn expect(self, status: u16) -> Self {
        assert_eq!(self.status.as_u16(), status, "{self:?}");
        self
    }

    /// The problem of this status and slug, which the gateway can count too.
    #[track_caller]
    fn problem(&self, status: u16, slug: &str) -> Value {
        assert_eq!(self.status.as_u16(), status, "{self:?}");
        assert_eq!(self.headers["content-type"], "application/problem+json");
        let problem = self.json();
        assert_eq!(problem["type"], format!("/problems/{slug}"), "{problem}");
        assert_eq!((&problem["status"], &problem["request_id"]), (&json!(status), &json!("test-request")));
        assert_eq!(self.counted.as_ref().map(Rejection::code), Some(slug));
        problem
    }
}

impl std::fmt::Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {:?} {}", self.status, self.headers, String::from_utf8_lossy(&self.body))
    }
}

/// A request under construction. Its body arrives in chunks, as from a socket.
struct Call<'a> {
    service: &'a dyn ApiService,
    request: http::request::Builder,
    principal: Option<Principal>,
    body: Vec<u8>,
    chunk: usize,
}

impl Call<'_> {
    fn header(mut self, name: &str, value: &str) -> Self {
        self.request = self.request.header(name, value);
        self
    }

    fn body(mut self, media: &str, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self.header("content-type", media)
    }

    fn json(self, value: &Value) -> Self {
        self.body("application/json", value.to_string())
    }

    fn form(self, form: Form) -> Self {
        self.body("multipart/form-data; boundary=xyz", form.0)
    }

    fn chunks_of(mut self, chunk: usize) -> Self {
        self.chunk = chunk;
        self
    }

    async fn send(self) -> Answer {
        let chunks: Vec<_> = self.body.chunks(self.chunk).map(|c| Ok(Bytes::copy_from_slice(c))).collect();
        let body: ApiBody = Box::pin(stream::iter(chunks));
        let caller = Caller {
            principal: self.principal,
            request_id: "test-request".into(),
            peer: "127.0.0.1:1".parse().expect("an address"),
            local: None,
            gone: Cancel::default(),
        };
        let request = self.request.extension(caller).body(body).expect("a request");
        let response = self.service.call(request).await;
        let (parts, mut chunks) = response.into_parts();
        let mut body = Vec::new();
        while let Some(chunk) = chunks.next().await {
            body.extend_from_slice(&chunk.expect("the answer's body"));
        }
        let counted = parts.extensions.get::<Rejection>().cloned();
        Answer { status: parts.status, headers: parts.headers, body, counted }
    }
}

#[derive(Default)]
struct Form(Vec<u8>);

impl Form {
    fn field(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        let head = format!("--xyz\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n");
        self.0.extend_from_slice(head.as_bytes());
        self.0.extend_from_slice(value.as_ref());
        self.0.extend_from_slice(b"\r\n");
        self
    }

    fn end(mut self) -> Self {
        self.0.extend_from_slice(b"--xyz--\r\n");
        self
    }
}

const CONFIG: &str = r#"
data_dir = "data"
[admin]
token_file = "admin.token"
allowed_hosts = ["gate.example"]
[engine]
queue_timeout = "20s"
[tiers]
free.module_size = "1KiB"
basic.module_size = "1KiB"
pro.module_size = "1KiB"
enterprise.module_size = "1KiB"
[tiers.tiny]
rank = 8
concurrent = 10
quotas = [{ name = "day", requests = 5, window = "1d" }]
module_size = "1KiB"
modules = 2
keys = 3
limits.input = "1KiB"
limits.memory = "64KiB"
[tiers.big]
rank = 9
concurrent = 10
quotas = []
module_size = "1MiB"
modules = 100
keys = 100
limits.memory = "16MiB"
[[routes]]
name = "handled"
match.path = "/h"
target.handler = { module = "acme/used" }
auth = "none"
"#;

impl Kit {
    async fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let config = config::parse(CONFIG, "test", dir.path()).unwrap_or_else(|e| panic!("{e}: {:?}", e.errors));
        let token_file = config.admin.token_file.clone();
        let compiler = PathBuf::from(env!("CARGO_BIN_EXE_wasmgate"));
        let app = App::open(config, None, logs(), compiler).await.expect("the app opens");
        let token = std::fs::read_to_string(token_file).expect("the admin token's file").trim().to_owned();
        Self { services: api::services(app.clone()), app, token, _dir: dir }
    }

    fn key(&self, owner: &str, tier: &str, scopes: &[&str]) -> Principal {
        let scopes: ScopeSet = serde_json::from_value(json!(scopes)).expect("scopes");
        let tier = self.app.tier(&tier.parse().expect("a name")).expect("the tier exists");
        let subject = Subject::Key { owner: owner.parse().expect("a name"), key: "key_test".into() };
        Principal { subject, tier, scopes }
    }

    /// Everything but `admin`, of the tier `big`.
    fn acme(&self) -> Principal {
        self.key("acme", "big", &["proxy", "execute", "modules", "usage", "keys"])
    }

    /// A principal whose key is stored, as made by the admin API.
    async fn stored_key(&self, owner: &str, tier: &str, scopes: &[&str]) -> Principal {
        let new = json!({"owner": owner, "tier": tier, "scopes": scopes});
        let made = self.admin("POST", "/api/auth/keys").json(&new).send().await.expect(201).json();
        let id = made["id"].as_str().expect("an id");
        let subject = Subject::Key { owner: owner.parse().expect("a name"), key: id.into() };
        Principal { subject, ..self.key(owner, tier, scopes) }
    }

    fn tenant(&self, principal: &Principal, method: &str, target: &str) -> Call<'_> {
        Call {
            service: &*self.services.tenant,
            request: Request::builder().method(Method::from_bytes(method.as_bytes()).expect("a method")).uri(target),
            principal: Some(principal.clone()),
            body: Vec::new(),
            chunk: 4096,
        }
    }

    fn anybody(&self, method: &str, target: &str) -> Call<'_> {
        Call {
            service: &*self.services.admin,
            request: Request::builder().method(Method::from_bytes(method.as_bytes()).expect("a method")).uri(target),
            principal: None,
            body: Vec::new(),
            chunk: 4096,
        }
    }

    fn admin(&self, method: &str, target: &str) -> Call<'_> {
        self.by(&self.token, method, target)
    }

    fn by(&self, token: &str, method: &str, target: &str) -> Call<'_> {
        let bearer = format!("Bearer {token}");
        self.anybody(method, target).header("host", "127.0.0.1:9090").header("authorization", &bearer)
    }

    async fn put(&self, principal: &Principal, name: &str, wasm: Vec<u8>) -> Answer {
        let call = self.tenant(principal, "PUT", &format!("/api/wasm/modules/{name}"));
        call.body("application/wasm", wasm).send().await
    }

    async fn run(&self, principal: &Principal, module: &str) -> Answer {
        self.tenant(principal, "POST", "/api/wasm/execute").json(&json!({"module": module})).send().await
    }

    async fn execute(&self, principal: &Principal, query: &str, wasm: Vec<u8>) -> Answer {
        let call = self.tenant(principal, "POST", &format!("/api/wasm/execute{query}"));
        call.body("application/wasm", wasm).send().await
    }

    async fn token(&self, name: &str, role: &str) -> String {
        let new = json!({"name": name, "role": role});
        let made = self.admin("POST", "/api/tokens").json(&new).send().await.expect(201).json();
        made["token"].as_str().expect("the token").to_owned()
    }
}

fn base64(bytes: &[u8]) -> String {
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_documented_route_is_routed_and_no_other_way_to_route_exists() {
    let kit = Kit::new().await;
    let key = kit.acme();
    let documents = [
        (true, kit.tenant(&key, "GET", "/api/openapi.json").send().await.expect(200).json()),
        (false, kit.admin("GET", "/api/openapi.json").send().await.expect(200).json()),
    ];
    for (tenant, document) in &documents {
        assert!(document["openapi"].as_str().is_some_and(|v| v.starts_with("3.1")), "{}", document["openapi"]);
        for (path, operations) in document["paths"].as_object().expect("paths") {
            let target = path.replace("{module}", "none").replace("{id}", "none").replace("{name}", "none");
            for method in operations.as_object().expect("operations").keys() {
                if path == "/api/drain" {
                    continue;
                }
                let method = method.to_uppercase();
                let call = if *tenant { kit.tenant(&key, &method, &target) } else { kit.admin(&method, &target) };
                let answer = call.send().await;
                let nowhere = answer.json_or_null()["detail"] == "there is nothing at this path";
                assert!(answer.status != 405 && !nowhere, "{method} {path}: {answer:?}");
            }
        }
    }
    let [tenant, admin] = documents.map(|(_, d)| d["paths"].as_object().expect("paths").clone());
    for path in [
        "/api/wasm/execute",
        "/api/wasm/batch",
        "/api/wasm/upload",
        "/api/wasm/modules",
        "/api/wasm/modules/{module}",
        "/api/wasm/modules/{module}/activate",
        "/api/wasm/validate",
        "/api/usage",
        "/api/auth/keys",
        "/api/auth/keys/{id}",
        "/api/auth/keys/{id}/rotate",
    ] {
        assert!(tenant.contains_key(path) && admin.contains_key(path), "{path}");
    }
    for path in ["/api/tiers", "/api/tokens", "/api/drain", "/metrics", "/health"] {
        assert!(!tenant.contains_key(path) && admin.contains_key(path), "{path}");
    }
    // `routes!` is the only way in: a handler mounted with axum's own `route` would be missing in the document.
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/api");
    for file in [folder.clone(), folder.join("admin")].iter().flat_map(|f| std::fs::read_dir(f).expect("src/api")) {
        let path = file.expect("an entry").path();
        if path.is_file() {
            let text = std::fs::read_to_string(&path).expect("source text");
            assert!(!text.contains(".route("), "{}", path.display());
        }
    }
}

impl Answer {
    fn json_or_null(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_paths_methods_and_fields_are_problems() {
    let kit = Kit::new().await;
    let key = kit.acme();
    kit.tenant(&key, "GET", "/api/nothing").send().await.problem(404, "not-found");
    kit.tenant(&key, "GET", "/").send().await.problem(404, "not-found");
    kit.tenant(&key, "GET", "/api/tiers").send().await.problem(404, "not-found");
    let wrong = kit.tenant(&key, "PATCH", "/api/auth/keys").send().await;
    wrong.problem(405, "method-not-allowed");
    let allow = wrong.headers["allow"].to_str().expect("text");
    assert!(allow.contains("GET") && allow.contains("POST"), "{allow}");

    let create = |body: &'static str| kit.tenant(&key, "POST", "/api/auth/keys").body("application/json", body).send();
    for (body, named) in [
        ("{", "line"),
        ("[]", "object"),
        (r#"{"surprise": 1}"#, "surprise"),
        (r#"{"scopes": ["proxy", "root"]}"#, "scopes[1]"),
        (r#"{"tier": "NOT A NAME"}"#, "tier"),
    ] {
        let detail = create(body).await.problem(400, "bad-request")["detail"].to_string();
        assert!(detail.contains(named), "{body}: {detail}");
    }
    let plain = kit.tenant(&key, "POST", "/api/auth/keys").body("text/plain", "{}").send().await;
    plain.problem(415, "unsupported-media-type");
    let large = format!("{{\"label\": \"{}\"}}", "x".repeat(70_000));
    let large = kit.tenant(&key, "POST", "/api/auth/keys").body("application/json", large).send().await;
    large.problem(413, "payload-too-large");
    let query = kit.tenant(&key, "GET", "/api/wasm/modules?pages=1").send().await.problem(400, "bad-request");
    assert!(query["detail"].to_string().contains("pages"), "{query}");
    for query in ["?page=0", "?limit=0", "?limit=101", "?limit=x"] {
        let target = format!("/api/wasm/modules{query}");
        kit.tenant(&key, "GET", &target).send().await.problem(400, "bad-request");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_form_of_body_runs_the_same_module() {
    let kit = Kit::new().await;
    let key = kit.acme();
    let cat = wasm(CAT);
    kit.put(&key, "cat", cat.clone()).await.expect(201);
    let post = |path: &str| kit.tenant(&key, "POST", path);
    let form = Form::default;
    for (what, call) in [
        ("form", post("/api/wasm/execute").form(form().field("wasm", &cat).field("input", "hello").end())),
        ("older names", post("/api/execute").form(form().field("wasm_file", &cat).field("input_data", "hello").end())),
        ("stored", post("/api/wasm/execute").form(form().field("module", "cat@1").field("input", "hello").end())),
        ("its owner's", post("/api/wasm/execute").json(&json!({"module": "acme/cat", "input": "hello"}))),
        ("JSON", post("/api/wasm/execute").json(&json!({"wasm_base64": base64(&cat), "input_base64": "aGVsbG8="}))),
        ("raw", post("/api/wasm/execute?input=hello").body("application/wasm", cat.clone())),
        ("below a prefix", post("/edge/api/wasm/execute").json(&json!({"module": "cat", "input": "hello"}))),
        (
            "tiny chunks",
            post("/api/wasm/execute").form(form().field("wasm", &cat).field("input", "hello").end()).chunks_of(1),
        ),
    ] {
        let done = call.send().await.expect(200).json();
        assert_eq!(
            (&done["output"], &done["exit_code"], &done["status"]),
            (&json!("hello"), &json!(0), &json!("ok")),
            "{what}: {done}"
        );
        for figure in ["execution_time_ms", "cpu_ms", "fuel", "memory_peak_bytes"] {
            assert!(done[figure].is_number(), "{what}, {figure}: {done}");
        }
        assert_eq!(done["request_id"], "test-request");
    }
    // Any exit code is a run.
    let exited = post("/api/wasm/execute").json(&json!({"module": "cat", "args": ["a", "b"]})).send().await;
    let exited = exited.expect(200).json();
    assert_eq!((&exited["exit_code"], &exited["status"]), (&json!(2), &json!("failed")), "{exited}");

    let bytes: Vec<u8> = (0..=255).collect();
    let binary = json!({"module": "cat", "input_base64": base64(&bytes)});
    let done = post("/api/wasm/execute").json(&binary).send().await.expect(200).json();
    assert_eq!((&done["output"], &done["output_base64"]), (&Value::Null, &json!(base64(&bytes))));
    let raw = post("/api/wasm/execute").header("accept", "application/octet-stream").json(&binary).send().await;
    let raw = raw.expect(200);
    assert_eq!(raw.body, bytes);
    assert_eq!(raw.headers["content-type"], "application/octet-stream");
    assert_eq!(raw.headers["x-content-type-options"], "nosniff");
    assert_eq!(raw.headers["x-wasmgate-exit-code"], "0");
    for figure in ["execution-time-ms", "cpu-ms", "fuel", "memory-peak-bytes"] {
        assert!(raw.headers.contains_key(format!("x-wasmgate-{figure}")), "{figure}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn core_functions_and_their_failures() {
    let kit = Kit::new().await;
    let key = kit.acme();
    let call = |query: &'static str| kit.execute(&key, query, wasm(CORE));
    assert_eq!(call("").await.expect(200).json()["result"], 42);
    assert_eq!(call("?function=add&args=2%2040").await.expect(200).json()["result"], 42);
    assert_eq!(call("?entry=add&args=%5B2%2C-3%5D").await.expect(200).json()["result"], -1);
    call("?function=add&args=2").await.problem(400, "bad-request");
    call("?function=absent").await.problem(400, "bad-request");
    call("?function=add&entry=run").await.problem(400, "bad-request");
    let trapped = call("?function=trap").await.problem(502, "handler-trap");
    assert!(trapped.get("backtrace").is_none(), "not asked for: {trapped}");
    let traced = call("?function=trap&trace=1").await.problem(502, "handler-trap");
    assert!(traced["backtrace"].is_string() && traced["stderr"].is_string(), "{traced}");

    kit.execute(&key, "", b"\0asm\x01\0\0\0\xff".to_vec()).await.problem(422, "invalid-module");
    kit.execute(&key, "", Vec::new()).await.problem(400, "bad-request");
    kit.execute(&key, "?abi=nonsense", wasm(CORE)).await.problem(400, "bad-request");
    kit.run(&key, "absent").await.problem(404, "not-found");
    let text = kit.tenant(&key, "POST", "/api/wasm/execute").body("text/plain", "x").send().await;
    text.problem(415, "unsupported-media-type");
    let stray = kit.tenant(&key, "POST", "/api/wasm/execute?input=x").json(&json!({"module": "x"})).send().await;
    stray.problem(400, "bad-request");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backtrace_is_the_owners_alone() {
    let kit = Kit::new().await;
    let (acme, other) = (kit.acme(), kit.key("other", "big", &["execute"]));
    let form = Form::default().field("wasm", wasm(CORE)).field("name", "core").field("public", "true").end();
    kit.tenant(&acme, "POST", "/api/wasm/upload").form(form).send().await.expect(201);
    let trace = |who: &Principal| {
        let call = kit.tenant(who, "POST", "/api/wasm/execute?trace=1");
        call.json(&json!({"module": "acme/core", "function": "trap"})).send()
    };
    assert!(trace(&acme).await.problem(502, "handler-trap")["backtrace"].is_string());
    let strangers = trace(&other).await.problem(502, "handler-trap");
    assert!(strangers.get("backtrace").is_none() && strangers.get("stderr").is_none(), "{strangers}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_over_the_callers_tier() {
    let kit = Kit::new().await;
    let (acme, tiny) = (kit.acme(), kit.key("acme", "tiny", &["execute", "modules"]));
    let padded = format!("(module (func (export \"run\")) (data \"{}\") (memory 1))", "x".repeat(2000));
    let large = wasm(&padded);
    let refused = kit.execute(&tiny, "", large.clone()).await.problem(402, "tier-required");
    assert_eq!(refused["needs_tier"], "big");
    for refused in [
        kit.put(&tiny, "large", large.clone()).await,
        kit.tenant(&tiny, "POST", "/api/wasm/execute").form(Form::default().field("wasm", &large).end()).send().await,
        kit.tenant(&tiny, "POST", "/api/wasm/execute").json(&json!({"wasm_base64": base64(&large)})).send().await,
    ] {
        assert_eq!(refused.problem(402, "tier-required")["needs_tier"], "big");
    }
    kit.put(&acme, "large", large).await.expect(201);
    kit.run(&tiny, "large").await.problem(402, "tier-required");
    kit.put(&acme, "wide", wasm("(module (memory (export \"memory\") 2) (func (export \"run\")))")).await.expect(201);
    kit.run(&tiny, "wide").await.problem(402, "tier-required");
    kit.run(&acme, "wide").await.expect(200);
    // No tier takes it at all.
    kit.execute(&acme, "", vec![0; (1 << 20) + 1]).await.problem(413, "payload-too-large");
    let input = |n: usize| Form::default().field("module", "large").field("input", vec![b'x'; n]).end();
    let run = |n: usize| kit.tenant(&tiny, "POST", "/api/wasm/execute").form(input(n)).send();
    run(1025).await.problem(413, "payload-too-large");
    run(1024).await.problem(402, "tier-required");

    kit.put(&tiny, "third", constant(3)).await.problem(402, "tier-required");
    assert!(kit.app.shared.engine.stats().modules_loaded <= 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_activation_and_deletes() {
    let kit = Kit::new().await;
    let key = kit.acme();
    let first = kit.put(&key, "calc", constant(1)).await.expect(201).json();
    assert_eq!((&first["version"], &first["abi"], &first["active"]), (&json!(1), &json!("core"), &json!(true)));
    for member in ["id", "name", "digest", "size_bytes", "capabilities", "upload_time"] {
        assert!(!first[member].is_null(), "{member}: {first}");
    }
    assert_eq!(kit.put(&key, "calc", constant(1)).await.expect(200).json()["version"], 1);
    let second = kit.put(&key, "calc", constant(2)).await.expect(201).json();
    assert_eq!((&second["version"], &second["active"]), (&json!(2), &json!(false)));
    let result = async |module: &str| kit.run(&key, module).await.expect(200).json()["result"].clone();
    assert_eq!((result("calc").await, result("calc@2").await), (json!(1), json!(2)));

    let activate = |version: u32| {
        let call = kit.tenant(&key, "POST", "/api/wasm/modules/calc/activate");
        call.json(&json!({"version": version})).send()
    };
    assert_eq!(activate(2).await.expect(200).json()["active_version"], 2);
    assert_eq!(result("calc").await, 2, "the change is seen at once");
    activate(1).await.expect(200);
    assert_eq!(result("calc").await, 1);
    activate(9).await.problem(404, "not-found");

    let by_id = format!("/api/wasm/modules/{}", first["id"].as_str().expect("an id"));
    let details = kit.tenant(&key, "GET", &by_id).send().await.expect(200).json();
    assert_eq!(details["versions"].as_array().map(Vec::len), Some(2), "{details}");
    assert_eq!(kit.tenant(&key, "GET", "/api/wasm/modules/calc@2").send().await.expect(200).json()["version"], 2);
    kit.tenant(&key, "GET", "/api/wasm/modules/calc@7").send().await.problem(404, "not-found");

    let delete = |module: &'static str| kit.tenant(&key, "DELETE", &format!("/api/wasm/modules/{module}")).send();
    delete("calc@1").await.problem(409, "conflict");
    delete("calc@2").await.expect(204);
    kit.run(&key, "calc@2").await.problem(404, "not-found");
    let third = kit.put(&key, "calc", constant(2)).await.expect(201).json();
    assert_eq!(third["version"], 3, "a number is never given twice");
    kit.put(&key, "same", constant(1)).await.expect(201);
    delete("calc").await.expect(204);
    delete("calc").await.problem(404, "not-found");
    kit.run(&key, "calc").await.problem(404, "not-found");
    assert_eq!(result("same").await, 1, "bytes that another module has stay");

    kit.put(&key, "used", constant(1)).await.expect(201);
    delete("used").await.problem(409, "conflict");
    kit.put(&key, "Not%20A%20Name", constant(1)).await.problem(400, "bad-request");
}

#[tokio::test(flavor = "multi_thread")]
async fn validate_stores_nothing() {
    let kit = Kit::new().await;
    let key = kit.acme();
    let validate = |wasm: Vec<u8>| kit.tenant(&key, "POST", "/api/wasm/validate").body("application/wasm", wasm).send();
    let found = validate(wasm(CAT)).await.expect(200).json();
    assert_eq!(found["abi"], "command");
    assert_eq!(found["imports"].as_array().map(Vec::len), Some(4), "{found}");
    assert!(found["exports"].is_array() && found["limits"]["fuel"].is_number(), "{found}");
    let form = Form::default().field("wasm", wasm(CORE)).field("abi", "core").end();
    kit.tenant(&key, "POST", "/api/wasm/validate").form(form).send().await.expect(200);
    let unknown = wasm("(module (import \"env\" \"launch\" (func)) (func (export \"run\")))");
    let refused = validate(unknown).await.problem(422, "unknown-import");
    assert!(refused["detail"].to_string().contains("launch"), "{refused}");
    assert_eq!(kit.tenant(&key, "GET", "/api/wasm/modules").send().await.expect(200).json()["total"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn others_modules_are_invisible_unless_public() {
    let kit = Kit::new().await;
    let (acme, other) = (kit.acme(), kit.key("other", "big", &["execute", "modules"]));
    kit.put(&acme, "private", constant(1)).await.expect(201);
    let form = Form::default().field("wasm", constant(2)).field("name", "shared").field("public", "true").end();
    let shared = kit.tenant(&acme, "POST", "/api/wasm/upload").form(form).send().await.expect(201).json();
    let private = kit.tenant(&acme, "GET", "/api/wasm/modules/private").send().await.expect(200).json();
    let [private, shared] = [private, shared].map(|m| m["id"].as_str().expect("an id").to_owned());

    kit.run(&other, "acme/private").await.problem(404, "not-found");
    assert_eq!(kit.run(&other, "acme/shared").await.expect(200).json()["result"], 2);
    let at = |method: &'static str, id: &str| kit.tenant(&other, method, &format!("/api/wasm/modules/{id}")).send();
    at("GET", &private).await.problem(404, "not-found");
    at("DELETE", &private).await.problem(404, "not-found");
    at("GET", &shared).await.expect(200);
    at("DELETE", &shared).await.problem(403, "forbidden");
    let activate = kit.tenant(&other, "POST", &format!("/api/wasm/modules/{shared}/activate"));
    activate.json(&json!({"version": 1})).send().await.problem(403, "forbidden");
    let names = async |query: &str| {
        let list = kit.tenant(&other, "GET", &format!("/api/wasm/modules{query}")).send().await.expect(200).json();
        list["modules"].as_array().expect("a list").iter().map(|m| m["name"].clone()).collect::<Vec<_>>()
    };
    assert!(names("").await.is_empty());
    assert_eq!(names("?include_public=true").await, ["shared"]);
    for target in ["/api/wasm/modules?owner=acme", "/api/wasm/modules/private?owner=acme"] {
        kit.tenant(&other, "GET", target).send().await.problem(403, "forbidden");
    }
    // A key with the scope `admin` acts for everybody.
    let root = kit.key("root", "big", &["modules", "admin"]);
    kit.tenant(&root, "GET", "/api/wasm/modules/private?owner=acme").send().await.expect(200);
    assert_eq!(kit.tenant(&root, "GET", "/api/wasm/modules?owner=acme").send().await.expect(200).json()["total"], 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_resource_needs_its_scope() {
    let kit = Kit::new().await;
    let key = kit.key("acme", "big", &["proxy"]);
    for (method, target) in [
        ("POST", "/api/wasm/execute"),
        ("POST", "/api/wasm/batch"),
        ("POST", "/api/wasm/upload"),
        ("POST", "/api/wasm/validate"),
        ("GET", "/api/wasm/modules"),
        ("PUT", "/api/wasm/modules/x"),
        ("DELETE", "/api/wasm/modules/x"),
        ("GET", "/api/usage"),
        ("GET", "/api/auth/keys"),
    ] {
        kit.tenant(&key, method, target).send().await.problem(403, "scope-required");
    }
    let stranger = Principal { subject: Subject::Address("10.0.0.1".parse().expect("an address")), ..key };
    kit.tenant(&stranger, "GET", "/api/wasm/modules").send().await.problem(401, "unauthorized");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_never_mints_more_than_it_has() {
    let kit = Kit::new().await;
    let tiny = kit.stored_key("acme", "tiny", &["proxy", "keys"]).await;
    let create = |body: Value| kit.tenant(&tiny, "POST", "/api/auth/keys").json(&body).send();
    let made = create(json!({"label": "ci", "scopes": ["proxy"]})).await.expect(201).json();
    assert!(made["key"].as_str().is_some_and(|k| k.starts_with("wg_live_")), "{made}");
    assert_eq!((&made["tier"], &made["owner"], &made["live"]), (&json!("tiny"), &json!("acme"), &json!(true)));
    for rise in [
        json!({"tier": "big"}),
        json!({"scopes": ["execute"]}),
        json!({"scopes": ["admin"]}),
        json!({"owner": "other"}),
    ] {
        create(rise).await.problem(403, "forbidden");
    }
    create(json!({"tier": "anonymous"})).await.problem(400, "bad-request");

    // Rotating a key that may more would hand out its rights.
    let big = kit.stored_key("acme", "big", &["execute"]).await;
    let big = big.key_id().expect("a key").to_string();
    let rotate = format!("/api/auth/keys/{big}/rotate");
    kit.tenant(&tiny, "POST", &rotate).send().await.problem(403, "forbidden");
    // Three live keys are the tier's cap.
    create(json!({"scopes": ["proxy"]})).await.problem(409, "conflict");

    let list = kit.tenant(&tiny, "GET", "/api/auth/keys").send().await.expect(200);
    assert!(!String::from_utf8_lossy(&list.body).contains("wg_live_"), "a key is shown once: {list:?}");
    assert_eq!(list.json()["total"], 3);
    let other = kit.stored_key("other", "tiny", &["keys"]).await;
    let other_id = other.key_id().expect("a key");
    for (method, target) in
        [("GET", format!("/api/auth/keys/{other_id}")), ("DELETE", format!("/api/auth/keys/{other_id}"))]
    {
        kit.tenant(&tiny, method, &target).send().await.problem(404, "not-found");
    }
    let id = made["id"].as_str().expect("an id");
    let rotated = kit.tenant(&tiny, "POST", &format!("/api/auth/keys/{id}/rotate")).json(&json!({"grace_seconds": 60}));
    let rotated = rotated.send().await.expect(201).json();
    assert_ne!(rotated["key"], made["key"]);
    let old = kit.tenant(&tiny, "GET", &format!("/api/auth/keys/{id}")).send().await.expect(200).json();
    assert_eq!(old["rotated_to"], rotated["id"]);
    kit.tenant(&tiny, "DELETE", &format!("/api/auth/keys/{id}")).send().await.expect(204);
    let presented = made["key"].as_str().expect("the key");
    assert!(kit.app.shared.auth.authenticate(presented, Timestamp::now()).await.is_err(), "revoked");
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_are_bounded_while_they_are_parsed() {
    let kit = Kit::new().await;
    let key = kit.acme();
    let refused = async |target: &str, body: Value, named: &[&str]| {
        let problem = kit.tenant(&key, "POST", target).json(&body).send().await.problem(400, "bad-request");
        let detail = problem["detail"].as_str().expect("a detail");
        assert!(named.iter().all(|n| detail.contains(n)), "{detail}");
    };
    let env = |n: usize| (0..n).map(|i| (format!("V{i}"), json!(""))).collect::<serde_json::Map<_, _>>();
    let (execute, batch) = ("/api/wasm/execute", "/api/wasm/batch");
    refused(batch, Value::Array(vec![json!({}); 33]), &["32"]).await;
    refused(execute, json!({"module": "m", "args": vec![1; 257]}), &["args", "256"]).await;
    refused(execute, json!({"module": "m", "env": env(257)}), &["env", "256"]).await;
    refused(batch, json!([{"module": "m", "args": vec![1; 257]}]), &["[0].args", "256"]).await;
    refused(execute, json!({"module": "m", "args": [[1]]}), &["args[0]", "string or a number"]).await;
    let most = json!({"module": "absent", "args": vec![1; 256], "env": env(256)});
    kit.tenant(&key, "POST", execute).json(&most).send().await.problem(404, "not-found");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_counted_and_each_item_has_its_status() {
    let kit = Kit::new().await;
    let key = kit.stored_key("acme", "tiny", &["execute", "usage"]).await;
    kit.put(&kit.acme(), "core", wasm(CORE)).await.expect(201);
    let items = json!([
        {"module": "core", "function": "add", "args": [1, "2"]},
        {"module": "core", "function": "trap"},
        {"module": "absent"},
    ]);
    let batch = |body: &Value| kit.tenant(&key, "POST", "/api/wasm/batch").json(body).send();
    let done = batch(&items).await.expect(200).json();
    let statuses: Vec<_> = done.as_array().expect("an array").iter().map(|i| i["status"].clone()).collect();
    assert_eq!(statuses, [200, 502, 404], "{done}");
    assert_eq!(done[0]["result"], 3, "{done}");
    assert_eq!(done[1]["problem"]["type"], "/problems/handler-trap", "{done}");
    // Two of five were charged here, the third when the gateway admitted the request, which this test is not.
    batch(&items).await.expect(200);
    let over = batch(&items).await;
    over.problem(429, "quota-exceeded");
    assert!(over.headers.contains_key("retry-after"), "{over:?}");
    batch(&json!([])).await.problem(400, "bad-request");
    batch(&Value::Array(vec![json!({"module": "core"}); 33])).await.problem(400, "bad-request");

    kit.app.flush().await;
    let usage = kit.tenant(&key, "GET", "/api/usage").send().await.expect(200).json();
    assert_eq!(usage["total"]["executions"], 4, "{usage}");
    assert_eq!(usage["total"]["errors"], json!({"handler-trap": 2, "not-found": 2}), "{usage}");
    assert!(usage["total"]["fuel"].as_u64() > Some(0), "{usage}");
    let by_key = kit.tenant(&key, "GET", "/api/usage?by=key").send().await.expect(200).json();
    assert_eq!(by_key["rows"][0]["key"], key.key_id().expect("a key").as_str(), "{by_key}");
    kit.tenant(&key, "GET", "/api/usage?from=2020-01-01").send().await.problem(400, "bad-request");
    kit.tenant(&key, "GET", "/api/usage?owner=other").send().await.problem(403, "forbidden");
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_forms_are_refused_by_name() {
    let kit = Kit::new().await;
    let key = kit.acme();
    let core = wasm(CORE);
    let form = Form::default;
    let many = (0..10_000).fold(form(), |form, i| form.field(&format!("f{i}"), "x"));
    let raw = |text: String| Form(text.into_bytes());
    for (what, form, named) in [
        ("no end", form().field("wasm", &core), ""),
        ("repeated", form().field("wasm", &core).field("wasm", &core).end(), "`wasm`"),
        ("repeated by another name", form().field("wasm", &core).field("wasm_file", &core).end(), "`wasm`"),
        ("unknown", form().field("surprise", "x").end(), "`surprise`"),
        ("empty file", form().field("wasm", "").end(), "`wasm`"),
        ("nothing", form().end(), "`wasm`"),
        ("no name", raw("--xyz\r\nContent-Disposition: form-data\r\n\r\nx\r\n--xyz--\r\n".into()), "name"),
        ("not text", form().field("wasm", &core).field("args", b"\xff\xfe").end(), "`args`"),
        ("a broken list", form().field("wasm", &core).field("args", "[1,").end(), "`args`"),
        ("a broken environment", form().field("wasm", &core).field("env", "nonsense").end(), "`env`"),
        ("two sources", form().field("wasm", &core).field("module", "x").end(), "`module`"),
        ("many", many.end(), "`f0`"),
        ("an endless head", raw(format!("--xyz\r\nContent-Disposition: form-data; x={}", "x".repeat(1 << 20))), "head"),
        ("endless before the first part", raw("y".repeat(1 << 20)), ""),
        ("no form", raw("hello".into()), ""),
        ("an empty body", raw(String::new()), ""),
    ] {
        let refused = kit.tenant(&key, "POST", "/api/wasm/execute").form(form).send().await;
        let detail = refused.problem(400, "bad-request")["detail"].to_string();
        assert!(detail.contains(named), "{what}: {detail}");
    }
    for media in ["multipart/form-data", "multipart/form-data; boundary=", "multipart/form-data; boundary"] {
        let call = kit.tenant(&key, "POST", "/api/wasm/execute").body(media, form().field("wasm", &core).end().0);
        call.send().await.problem(400, "bad-request");
    }
    // One chunk that holds everything is no endless head.
    let whole = form().field("wasm", wasm(CAT)).field("input", vec![b'x'; 300_000]).end();
    let call = kit.tenant(&key, "POST", "/api/wasm/execute").form(whole).chunks_of(1 << 20);
    assert_eq!(call.send().await.expect(200).json()["output"].as_str().map(str::len), Some(300_000));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_has_only_so_many_wrong_admin_tokens() {
    let kit = Kit::new().await;
    let operator = kit.token("deployer", "operator").await;
    let wrong = |n: u32| format!("wg_admin_{n}");
    // Good tokens and requests without one are not failures.
    for _ in 0..100 {
        kit.by(&operator, "GET", "/api/wasm/modules").send().await.expect(200);
        let bare = kit.anybody("GET", "/api/wasm/modules").header("host", "localhost:9090");
        bare.send().await.problem(401, "unauthorized");
    }
    let allowed = kit.app.config().auth.failures_per_minute;
    let mut refused = None;
    // One comes back each second while the test runs.
    for n in 0..allowed * 2 {
        let answer = kit.by(&wrong(n), "GET", "/api/wasm/modules").send().await;
        if answer.status == StatusCode::TOO_MANY_REQUESTS {
            assert!(n >= allowed, "after {n} of {allowed}");
            refused = Some(answer);
            break;
        }
        answer.problem(401, "unauthorized");
    }
    let refused = refused.expect("a 429");
    refused.problem(429, "too-many-failures");
    assert!(refused.headers.contains_key("retry-after"), "{refused:?}");
    // The bootstrap token needs no look-up, so nobody can shut its holder out.
    kit.admin("GET", "/api/wasm/modules").send().await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_admin_face_wants_a_token_and_our_host() {
    let kit = Kit::new().await;
    for target in [
        "/api/auth/keys",
        "/api/wasm/modules",
        "/metrics",
        "/health",
        "/api/routes",
        "/api/nothing",
        "/api/openapi.json",
    ] {
        let bare = || kit.anybody("GET", target).header("host", "localhost:9090");
        bare().send().await.problem(401, "unauthorized");
        for credentials in ["Bearer nonsense", "Bearer ", "Basic eDp5", &kit.token] {
            bare().header("authorization", credentials).send().await.problem(401, "unauthorized");
        }
        bare().header("x-api-key", &kit.token).send().await.problem(401, "unauthorized");
        bare().header("cookie", &format!("token={}", kit.token)).send().await.problem(401, "unauthorized");
        let bearer = format!("Bearer {}", kit.token);
        for host in ["evil.example", "127.0.0.1.evil.example", "evil.example:9090"] {
            let rebound = kit.anybody("GET", target).header("host", host).header("authorization", &bearer);
            rebound.send().await.problem(421, "misdirected-request");
        }
    }
    for host in ["localhost:9090", "127.0.0.1", "gate.example"] {
        let bearer = format!("Bearer {}", kit.token);
        let call = kit.anybody("GET", "/api/auth/keys").header("host", host).header("authorization", &bearer);
        let answer = call.send().await.expect(200);
        assert_eq!(answer.headers["x-content-type-options"], "nosniff");
        assert_eq!(answer.headers["cache-control"], "no-store");
        assert!(answer.headers["content-security-policy"].to_str().is_ok_and(|v| v.starts_with("default-src 'none'")));
        assert!(
            !answer.headers.contains_key("set-cookie") && !answer.headers.contains_key("access-control-allow-origin")
        );
    }
    // Probes come from orchestrators: no token, any host, nothing but a status.
    for (target, status) in [("/health/live", 200), ("/healthz", 200), ("/health/ready", 503), ("/readyz", 503)] {
        let probe = kit.anybody("GET", target).header("host", "10.1.2.3:9090").send().await.expect(status);
        assert!(probe.body.len() < 100, "{probe:?}");
    }
    kit.app.shared.set_ready();
    kit.anybody("GET", "/readyz").send().await.expect(200);
    let health = kit.admin("GET", "/health").send().await.expect(200).json();
    assert_eq!((&health["status"], &health["store"]), (&json!("ready"), &json!("up")), "{health}");
    let metrics = kit.admin("GET", "/metrics").send().await.expect(200);
    assert!(String::from_utf8_lossy(&metrics.body).contains("build_info{"), "{metrics:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_are_kept_and_changes_are_audited() {
    let kit = Kit::new().await;
    let (viewer, operator) = (kit.token("watcher", "viewer").await, kit.token("deployer", "operator").await);
    for target in [
        "/api/auth/keys",
        "/api/wasm/modules",
        "/api/usage",
        "/api/tiers",
        "/api/routes",
        "/api/state",
        "/api/audit",
        "/api/log-level",
    ] {
        kit.by(&viewer, "GET", target).send().await.expect(200);
    }
    let key = json!({"owner": "acme", "tier": "tiny", "scopes": ["proxy"]});
    let put = |token: &str| {
        let call = kit.by(token, "PUT", "/api/wasm/modules/m?owner=acme");
        call.body("application/wasm", constant(1)).send()
    };
    kit.by(&viewer, "POST", "/api/auth/keys").json(&key).send().await.problem(403, "forbidden");
    put(&viewer).await.problem(403, "forbidden");
    for (method, target) in
        [("POST", "/api/drain"), ("POST", "/api/config/reload"), ("POST", "/api/wasm/execute"), ("GET", "/api/tokens")]
    {
        kit.by(&viewer, method, target).send().await.problem(403, "forbidden");
    }
    let tier = kit.by(&viewer, "PUT", "/api/tiers/tiny").json(&json!({"concurrent": 1})).send().await;
    tier.problem(403, "forbidden");

    let made = kit.by(&operator, "POST", "/api/auth/keys").json(&key).send().await.expect(201).json();
    put(&operator).await.expect(201);
    let set = kit.by(&operator, "PUT", "/api/tiers/tiny");
    let set = set.json(&json!({"concurrent": 7, "limits": {"wall_ms": 123}})).send().await.expect(200).json();
    assert_eq!((&set["concurrent"], &set["limits"]["wall_ms"]), (&json!(7), &json!(123)), "{set}");
    assert_eq!(kit.app.tier(&"tiny".parse().expect("a name")).map(|t| t.concurrent), Some(7), "in force at once");
    for bad in [
        json!({"concurrent": 0}),
        json!({"limits": {"fuel": 0}}),
        json!({"quotas": [{"name": "d", "requests": 0, "window": "1d"}]}),
    ] {
        kit.by(&operator, "PUT", "/api/tiers/tiny").json(&bad).send().await.problem(400, "bad-request");
    }
    kit.by(&operator, "PUT", "/api/tiers/none").json(&json!({"concurrent": 1})).send().await.problem(404, "not-found");
    // What would make an operator more than that is an admin's.
    let token = json!({"name": "x", "role": "admin"});
    kit.by(&operator, "POST", "/api/tokens").json(&token).send().await.problem(403, "forbidden");
    let mighty = json!({"owner": "acme", "scopes": ["admin"]});
    kit.by(&operator, "POST", "/api/auth/keys").json(&mighty).send().await.problem(403, "forbidden");
    let mighty = kit.admin("POST", "/api/auth/keys").json(&mighty).send().await.expect(201).json();
    let rotate = format!("/api/auth/keys/{}/rotate", mighty["id"].as_str().expect("an id"));
    kit.by(&operator, "POST", &rotate).send().await.problem(403, "forbidden");
    kit.admin("POST", "/api/tokens")
        .json(&json!({"name": "watcher", "role": "viewer"}))
        .send()
        .await
        .problem(409, "conflict");

    let log = String::from_utf8(kit.admin("GET", "/api/audit").send().await.expect(200).body).expect("text");
    for part in
        ["bootstrap", "deployer", "watcher", "key.create", "module.upload", "tier.set", "token.create", "acme/m@1"]
    {
        assert!(log.contains(part), "{part}: {log}");
    }
    for secret in [made["key"].as_str().expect("the key"), viewer.as_str(), operator.as_str(), "wg_live_"] {
        assert!(!log.contains(secret), "{log}");
    }
    let tokens = kit.admin("GET", "/api/tokens").send().await.expect(200).json();
    assert!(!tokens.to_string().contains("wg_admin_"), "{tokens}");
    let watcher = tokens["tokens"].as_array().expect("a list").iter().find(|t| t["name"] == "watcher").expect("it");
    let revoke = format!("/api/tokens/{}", watcher["id"].as_str().expect("an id"));
    kit.by(&operator, "DELETE", &revoke).send().await.problem(403, "forbidden");
    kit.admin("DELETE", &revoke).send().await.expect(204);
    kit.by(&viewer, "GET", "/api/usage").send().await.problem(401, "unauthorized");
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_act_for_any_owner() {
    let kit = Kit::new().await;
    let put = |target: &'static str| kit.admin("PUT", target).body("application/wasm", constant(1)).send();
    assert_eq!(put("/api/wasm/modules/m?owner=acme").await.expect(201).json()["owner"], "acme");
    assert_eq!(put("/api/wasm/modules/own").await.expect(201).json()["owner"], "wasmgate");
    assert_eq!(kit.admin("GET", "/api/wasm/modules").send().await.expect(200).json()["total"], 2);
    assert_eq!(kit.admin("GET", "/api/wasm/modules?owner=acme").send().await.expect(200).json()["total"], 1);
    let run = kit.admin("POST", "/api/wasm/execute?owner=acme").json(&json!({"module": "m"}));
    assert_eq!(run.send().await.expect(200).json()["result"], 1);
    kit.admin("DELETE", "/api/wasm/modules/m?owner=acme").send().await.expect(204);

    let check = |body: &'static str| kit.admin("POST", "/api/config/check").body("application/toml", body).send();
    assert_eq!(check("[log]\nformat = \"json\"\n").await.expect(200).json()["ok"], true);
    let bad = check("[log]\nformat = \"xml\"\ncolour = 1\n").await.expect(200).json();
    assert_eq!((&bad["ok"], bad["errors"].as_array().map(Vec::len)), (&json!(false), Some(2)), "{bad}");
    kit.admin("POST", "/api/config/reload").send().await.problem(409, "conflict");
    let routes = kit.admin("GET", "/api/routes").send().await.expect(200).json();
    assert_eq!(routes["routes"][0]["target"], "handler acme/used", "{routes}");
    let state = kit.admin("GET", "/api/state").send().await.expect(200).json();
    assert_eq!((&state["routes"], &state["draining"]), (&json!(1), &json!(false)), "{state}");
    let level = |level: &str| kit.admin("PUT", "/api/log-level").json(&json!({"level": level})).send();
    level("nonsense").await.problem(400, "bad-request");
    assert_eq!(level("wasmgate=error,warn").await.expect(200).json()["level"], "wasmgate=error,warn");
}
