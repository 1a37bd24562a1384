//! The gateway with real layers below it, started in this process: what no whole-binary test can see or decide.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use tempfile::TempDir;
use wasmgate::auth::cache::{Authenticator, Settings};
use wasmgate::auth::pepper::Peppers;
use wasmgate::domain::{ApiKey, KeyId, Scope, ScopeSet, Tier, Timestamp};
use wasmgate::engine::Engine;
use wasmgate::gateway::snapshot::{Parts, ResolvedModules, Snapshot};
use wasmgate::gateway::{ApiBody, ApiService, Caller, Running, Shared};
use wasmgate::limit::limiter::Limiter;
use wasmgate::limit::usage::UsageRecorder;
use wasmgate::store::Store;
use wasmgate::store::embedded::EmbeddedStore;
use wasmgate::telemetry::Metrics;

use crate::support::upstream::{Gate, hang, respond};
use crate::support::{Conn, Request, Response, Upstream};

/// Answers with what the gateway said of the caller, and the body it got.
struct EchoApi;

#[async_trait]
impl ApiService for EchoApi {
    async fn call(&self, request: http::Request<ApiBody>) -> http::Response<ApiBody> {
        let (parts, mut body) = request.into_parts();
        let mut got = Vec::new();
        while let Some(chunk) = body.next().await {
            match chunk {
                Ok(chunk) => got.extend_from_slice(&chunk),
                Err(e) => got.extend_from_slice(format!("<{e}>").as_bytes()),
            }
        }
        let caller = parts.extensions.get::<Caller>().expect("the gateway says who calls");
        let owner = caller.principal.as_ref().and_then(|p| p.owner()).map_or("-", |o| o.as_str());
        let said = format!("{} {} {owner} {}", parts.method, parts.uri, String::from_utf8_lossy(&got));
        let chunks = said.into_bytes().chunks(7).map(|c| Ok(bytes::Bytes::copy_from_slice(c))).collect::<Vec<_>>();
        http::Response::new(Box::pin(futures_util::stream::iter(chunks)))
    }
}

struct Kit {
    running: Option<Running>,
    shared: Arc<Shared>,
    metrics: Arc<Metrics>,
    key: String,
    runtime: tokio::runtime::Runtime,
    _dir: TempDir,
}

impl Kit {
    /// `config` without listeners, and a key of the tier `enterprise`.
    fn start(config: &str) -> Kit {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let dir = TempDir::new().unwrap();
        let text = format!(
            "{config}\n[[server.listeners]]\naddress = \"127.0.0.1:0\"\nh2c = true\n[admin]\naddress = \"127.0.0.1:0\"\n"
        );
        let config = wasmgate::config::parse(&text, "test.toml", dir.path())
            .unwrap_or_else(|e| panic!("{:#?}\n{text}", e.errors));
        let config = Arc::new(config);
        let store = Arc::new(EmbeddedStore::open(&dir.path().join("store.redb")).unwrap());
        let settings = Settings {
            key_fresh: Duration::from_secs(30),
            key_max_stale: Duration::from_secs(60),
            absent_ttl: Duration::from_secs(5),
            entries: 1000,
        };
        let auth = Authenticator::new(store.clone(), Peppers(vec![(1, vec![7; 32])]), settings);
        let minted = auth.mint().unwrap();
        let key = ApiKey {
            id: KeyId::random().unwrap(),
            owner: "acme".parse().unwrap(),
            tier: "enterprise".parse().unwrap(),
            scopes: ScopeSet::from_iter(Scope::ALL),
            label: String::new(),
            pepper: minted.pepper,
            created_at: Timestamp::now(),
            expires_at: None,
            revoked_at: None,
            rotated_to: None,
        };
        runtime.block_on(store.put_key(minted.hash, &key, None)).unwrap();
        let metrics = Metrics::new();
        let tiers = Tier::defaults().into_iter().map(|t| (t.name.clone(), Arc::new(t))).collect();
        let parts =
            Parts { config: config.clone(), tiers, modules: ResolvedModules::new(), previous: None, metrics: &metrics };
        let snapshot = runtime.block_on(Snapshot::build(parts)).unwrap();
        let engine = Engine::new(wasmgate::engine::Settings {
            data_dir: dir.path().to_owned(),
            artifact_key: [7; 32],
            compiler_exe: env!("CARGO_BIN_EXE_wasmgate").into(),
            config: config.engine.clone(),
        })
        .unwrap();
        let usage = Arc::new(UsageRecorder::default());
        let shared = Shared::new(snapshot, auth, Limiter::new(1000), engine, metrics.clone(), usage, store);
        shared.set_ready();
        let running = wasmgate::gateway::start(shared.clone(), Arc::new(EchoApi), Arc::new(EchoApi)).unwrap();
        Kit { running: Some(running), shared, metrics, key: minted.secret, runtime, _dir: dir }
    }

    fn addr(&self) -> std::net::SocketAddr {
        self.running.as_ref().unwrap().proxy[0]
    }

    fn request(&self, method: &str, target: &str) -> Request {
        Request::new(self.addr(), method, target)
    }

    fn get(&self, target: &str) -> Response {
        self.request("GET", target).key(&self.key).send()
    }

    fn drain(&mut self) -> bool {
        let running = self.running.take().expect("it runs");
        self.runtime.block_on(running.drain())
    }
}

fn proxy(up: &Upstream, more: &str) -> String {
    format!(
        "[[upstreams]]\nname = \"up\"\nendpoints = [\"{}\"]\n{more}\n[[routes]]\nname = \"all\"\ntarget.upstream = \"up\"\n",
        up.addr
    )
}

#[test]
fn a_get_with_a_key_reaches_the_upstream_without_it() {
    let up = Upstream::echo();
    let kit = Kit::start(&proxy(&up, ""));
    let answer = kit.get("/a?b=c").expect(200);
    let seen = up.only();
    assert_eq!(seen.target, "/a?b=c");
    assert!(!seen.mentions(&kit.key), "{seen:?}");
    assert_eq!(seen.header("x-forwarded-for"), Some("127.0.0.1"));
    assert_eq!(seen.header("x-forwarded-proto"), Some("http"));
    assert_eq!(seen.header("x-request-id"), answer.header("x-request-id"));
    assert!(seen.header("traceparent").is_some());
    kit.request("GET", "/").send().problem(401, "unauthorized");
    assert_eq!(up.seen().len(), 1);
}

#[test]
fn bodies_stream_through_pingora_and_bodiless_requests_take_the_own_exchange() {
    let up = Upstream::echo();
    let kit = Kit::start(&proxy(&up, ""));
    let answer = kit.request("POST", "/x").key(&kit.key).body("hello").send().expect(200);
    assert_eq!(answer.json()["body"], "hello");
    let mut conn = Conn::connect(kit.addr());
    let head = format!("POST /c HTTP/1.1\r\nHost: a\r\nX-Api-Key: {}\r\nTransfer-Encoding: chunked\r\n\r\n", kit.key);
    conn.send(head);
    conn.send("3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n");
    assert_eq!(conn.read().expect(200).json()["body"], "abcde");
    // The connection is in step, and the same head rules held on both ways.
    let again = conn.ask(format!("GET /again HTTP/1.1\r\nHost: a\r\nX-Api-Key: {}\r\n\r\n", kit.key));
    assert_eq!(again.expect(200).json()["uri"], "/again");
    for seen in up.seen() {
        assert!(!seen.mentions(&kit.key), "{seen:?}");
        assert!(seen.header("x-forwarded-for").is_some(), "{seen:?}");
    }
}

#[test]
fn pooled_connections_are_reused_and_a_stale_one_costs_nothing() {
    let closing = Upstream::start(|seen, stream| {
        respond(stream, 200, &[], b"ok");
        // Says keep-alive and closes: the gateway finds out when it sends the next request.
        seen.target != "/last"
    });
    let kit = Kit::start(&proxy(&closing, ""));
    for target in ["/1", "/2", "/3", "/last", "/4", "/5"] {
        kit.get(target).expect(200);
    }
    assert!(closing.connections() <= 3, "{} connections", closing.connections());
}

#[test]
fn an_upstream_that_fails_is_told_as_a_problem() {
    let nobody = Upstream::nobody();
    let broken = Upstream::start(|seen, stream| match seen.target.as_str() {
        "/garbage" => {
            std::io::Write::write_all(stream, b"not http at all\r\n\r\n").ok();
            false
        }
        "/close" => false,
        _ => hang(stream),
    });
    let config = format!(
        "[[upstreams]]\nname = \"up\"\nendpoints = [\"{0}\"]\nretries = 0\n\
         [[upstreams]]\nname = \"hasty\"\nendpoints = [\"{0}\"]\nread_timeout = \"200ms\"\nretries = 0\n\
         [[upstreams]]\nname = \"nobody\"\nendpoints = [\"{nobody}\"]\n\
         [[routes]]\nname = \"n\"\nmatch.path_prefix = \"/nobody\"\ntarget.upstream = \"nobody\"\n\
         [[routes]]\nname = \"h\"\nmatch.path_prefix = \"/hang\"\ntarget.upstream = \"hasty\"\n\
         [[routes]]\nname = \"all\"\ntarget.upstream = \"up\"\n",
        broken.addr
    );
    let kit = Kit::start(&config);
    kit.get("/nobody").problem(502, "upstream-unavailable");
    kit.get("/garbage").problem(502, "upstream-invalid");
    kit.get("/close").problem(502, "upstream-invalid");
    kit.get("/hang").problem(504, "upstream-timeout");
    let post = |target: &str| kit.request("POST", target).key(&kit.key).body("x").send();
    post("/nobody").problem(502, "upstream-unavailable");
    post("/garbage").problem(502, "upstream-invalid");
    post("/hang").problem(504, "upstream-timeout");
}

#[test]
fn the_api_gets_the_caller_and_the_body_as_it_comes() {
    let kit =
        Kit::start("[[routes]]\nname = \"api\"\nmatch.path_prefix = \"/api\"\ntarget.api = true\nmax_body = 100\n");
    let answer = kit.request("POST", "/api/x?y=z").key(&kit.key).body("hello").send().expect(200);
    assert_eq!(answer.text(), "POST /api/x?y=z acme hello");
    kit.request("POST", "/api").key(&kit.key).body([b'x'; 101]).send().problem(413, "payload-too-large");
    let admin = kit.running.as_ref().unwrap().admin;
    let answer = Request::new(admin, "PUT", "/api/config").body("text").send().expect(200);
    assert_eq!(answer.text(), "PUT /api/config - text");
    let mut conn = Conn::connect(admin);
    conn.ask("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n").problem(400, "bad-request");
}

#[test]
fn a_drain_lets_requests_finish_and_refuses_new_connections() {
    let gate = Gate::default();
    let (waits, arrived) = (gate.clone(), Gate::default());
    let arrives = arrived.clone();
    let up = Upstream::start(move |_, stream| {
        arrives.open();
        waits.wait();
        respond(stream, 200, &[], b"done")
    });
    let mut kit = Kit::start(&proxy(&up, ""));
    let addr = kit.addr();
    let request = kit.request("GET", "/slow").key(&kit.key);
    let slow = std::thread::spawn(move || request.send());
    arrived.wait();
    let shared = kit.shared.clone();
    let opener = std::thread::spawn(move || {
        crate::support::eventually("it drains", || shared.is_draining());
        crate::support::eventually("connects are refused", || std::net::TcpStream::connect(addr).is_err());
        gate.open();
    });
    assert!(kit.drain(), "nothing was cut off");
    let answer = slow.join().unwrap().expect(200);
    assert_eq!(answer.text(), "done");
    assert_eq!(answer.header("connection"), Some("close"));
    opener.join().unwrap();
}

#[test]
fn requests_are_counted_and_logged_once() {
    let up = Upstream::text("hi");
    let kit = Kit::start(&proxy(&up, ""));
    for _ in 0..3 {
        kit.get("/").expect(200);
    }
    kit.request("GET", "/").send().expect(401);
    crate::support::eventually("the counters are there", || {
        let text = String::from_utf8(kit.metrics.render(&Default::default()).unwrap()).unwrap();
        text.contains("http_requests_total{method=\"GET\",route=\"all\",status_class=\"2xx\"} 3")
            && text.contains("http_requests_total{method=\"GET\",route=\"all\",status_class=\"4xx\"} 1")
            && text.contains("upstream_requests_total{status_class=\"2xx\",upstream=\"up\"} 3")
    });
    let usage = kit.shared.usage.drain();
    assert_eq!(usage.len(), 1);
    assert_eq!(usage[0].add.requests, 3);
    assert_eq!(usage[0].add.bytes_out, 6);
}
