//! The admin listener: who may ask, what each role may do, and that every change leaves a line.

use serde_json::{Value, json};

use crate::support::admin::NewKey;
use crate::support::api::Form;
use crate::support::toml::{keyed_proxy, open_proxy};
use crate::support::{Gateway, Request, Upstream, eventually, wat};

fn start() -> (Upstream, Gateway) {
    let up = Upstream::echo();
    let gw = Gateway::start(&keyed_proxy(up.addr, ""));
    (up, gw)
}

#[test]
fn a_token_is_needed_and_a_key_is_none() {
    let (_up, gw) = start();
    let key = gw.key();
    let bare = |target: &str| Request::new(gw.admin, "GET", target);
    for target in ["/api/auth/keys", "/api/wasm/modules", "/metrics", "/health", "/api/routes"] {
        let refused = bare(target).send();
        refused.problem(401, "unauthorized");
        bare(target).header("Authorization", "Bearer nonsense").send().problem(401, "unauthorized");
        bare(target).header("Authorization", format!("Bearer {key}")).send().problem(401, "unauthorized");
        bare(target).key(&gw.admin_token).send().problem(401, "unauthorized");
        bare(&format!("{target}?token={}", gw.admin_token)).send().problem(401, "unauthorized");
        bare(target).header("Cookie", format!("token={}", gw.admin_token)).send().problem(401, "unauthorized");
    }
    gw.admin("GET", "/api/auth/keys").send().expect(200);
}

#[test]
fn a_rebound_host_is_refused() {
    let (_up, gw) = start();
    for host in ["evil.example", "127.0.0.1.evil.example", "evil.example:80"] {
        gw.admin("GET", "/api/auth/keys").header("Host", host).send().problem(421, "misdirected-request");
    }
    gw.admin("GET", "/api/auth/keys").header("Host", format!("localhost:{}", gw.admin.port())).send().expect(200);
}

#[test]
fn answers_carry_what_keeps_browsers_safe() {
    let (_up, gw) = start();
    let response = gw.admin("GET", "/api/auth/keys").header("Origin", "https://evil.example").send().expect(200);
    assert_eq!(response.header("x-content-type-options"), Some("nosniff"));
    assert!(response.header("cache-control").is_some_and(|v| v.contains("no-store")), "{response}");
    assert!(response.header("content-security-policy").is_some_and(|v| v.contains("default-src 'none'")), "{response}");
    assert_eq!(response.header("access-control-allow-origin"), None);
    assert_eq!(response.header("server"), None);
}

#[test]
fn the_admin_api_is_not_on_the_proxy_listener() {
    let up = Upstream::echo();
    let gw = Gateway::start(&open_proxy(up.addr, ""));
    let response = gw.get("/metrics").header("Authorization", format!("Bearer {}", gw.admin_token)).send().expect(200);
    assert_eq!(response.json()["uri"], "/metrics", "it went to the upstream like any other path");
}

#[test]
fn roles_are_kept_and_changes_are_audited() {
    let (_up, gw) = start();
    let token = |name: &str, role: &str| -> (String, String) {
        let made = gw.admin("POST", "/api/tokens").json(&json!({"name": name, "role": role})).send().expect(201).json();
        let text = |field: &str| made[field].as_str().unwrap_or_else(|| panic!("no `{field}`: {made}")).to_owned();
        (text("id"), text("token"))
    };
    let (viewer_id, viewer) = token("watcher", "viewer");
    let (_, operator) = token("deployer", "operator");
    let by = |token: &str, method: &str, target: &str| {
        Request::new(gw.admin, method, target).header("Authorization", format!("Bearer {token}"))
    };
    by(&viewer, "GET", "/api/auth/keys").send().expect(200);
    let new_key = json!({"owner": "acme", "tier": "free", "scopes": ["proxy"]});
    by(&viewer, "POST", "/api/auth/keys").json(&new_key).send().problem(403, "forbidden");
    by(&viewer, "POST", "/api/config/reload").send().problem(403, "forbidden");
    by(&operator, "POST", "/api/config/reload").send().expect(200);
    for token in [&viewer, &operator] {
        let rise = by(token, "POST", "/api/tokens").json(&json!({"name": "x", "role": "admin"}));
        rise.send().problem(403, "forbidden");
    }

    gw.new_key(&NewKey { owner: "audited", ..NewKey::default() });
    let log = gw.admin("GET", "/api/audit").send().expect(200).text();
    for line in ["watcher", "deployer", "audited", "bootstrap"] {
        assert!(log.contains(line), "`{line}` is not in the audit log: {log}");
    }
    assert!(!log.contains(&viewer) && !log.contains("wg_live_"), "secrets in the audit log");

    let revoked = gw.admin("DELETE", &format!("/api/tokens/{viewer_id}")).send();
    assert!(matches!(revoked.status, 200 | 204), "{revoked}");
    by(&viewer, "GET", "/api/auth/keys").send().problem(401, "unauthorized");
}

#[test]
fn a_reload_is_all_or_nothing() {
    let up = Upstream::echo();
    let gw = Gateway::start(&open_proxy(up.addr, "response_headers.set = { x-config = \"one\" }"));
    let shown = || gw.get("/").send().expect(200).header("x-config").map(str::to_owned);
    assert_eq!(shown().as_deref(), Some("one"));

    gw.write_config(&open_proxy(
        up.addr,
        "response_headers.set = { x-config = \"two\" }\nauth_typo = 1\nmax_body = \"lots\"",
    ));
    let refused = gw.reload();
    assert!(matches!(refused.status, 400 | 409 | 422), "{refused}");
    assert!(
        refused.text().contains("auth_typo") && refused.text().contains("max_body"),
        "every error is listed: {refused}"
    );
    assert_eq!(shown().as_deref(), Some("one"));
    gw.signal("HUP");
    eventually("the refusal is logged", || gw.log().contains("auth_typo"));
    assert_eq!(shown().as_deref(), Some("one"));

    gw.write_config(&open_proxy(up.addr, "response_headers.set = { x-config = \"two\" }"));
    gw.signal("HUP");
    eventually("the new configuration is live", || shown().as_deref() == Some("two"));
}

#[test]
fn health_tells_strangers_nothing_but_a_status() {
    let (_up, gw) = start();
    for target in ["/health/live", "/healthz", "/health/ready", "/readyz"] {
        let response = Request::new(gw.admin, "GET", target).send().expect(200);
        assert!(response.body.len() < 100, "{response}");
    }
    let details = gw.admin("GET", "/health").send().expect(200).json();
    assert!(details.is_object() && details.as_object().is_some_and(|o| o.len() > 1), "{details}");
}

#[test]
fn metrics_have_the_contracts_names_and_bounded_labels() {
    let up = Upstream::echo();
    let gw = Gateway::start(&(crate::support::api::config("") + &keyed_proxy(up.addr, "")));
    let key = gw.key();
    gw.get("/secret-path?secret-query").key(&key).send().expect(200);
    gw.get("/").key("wg_live_wrong").send().expect(401);
    gw.execute(&key, &crate::support::c_guest("command"), b"x").expect(200);
    gw.execute(&key, &crate::support::wat("(module (func (export \"run\") unreachable))"), b"").expect(502);
    let text = gw.admin("GET", "/metrics").send().expect(200).text();
    for name in [
        "http_requests_total",
        "http_request_duration_seconds_bucket",
        "active_connections",
        "wasm_executions_total",
        "wasm_execution_duration_seconds_bucket",
        "wasm_execution_errors_total",
        "wasm_memory_usage_bytes",
        "wasm_fuel_total",
        "wasm_compile_duration_seconds_bucket",
        "rate_limit_hits_total",
        "auth_total",
        "key_cache",
        "store_up",
        "store_latency_seconds_bucket",
        "upstream_requests_total",
        "process_resident_memory_bytes",
        "build_info",
    ] {
        assert!(text.lines().any(|l| l.starts_with(name)), "no `{name}` in\n{text}");
    }
    for secret in [key.as_str(), "secret-path", "secret-query", "acme"] {
        assert!(!text.contains(secret), "`{secret}` is a label");
    }
    assert_eq!(gw.metric("http_requests_total", &["route=\"all\"", "status_class=\"2xx\""]), 1.0);
    assert_eq!(gw.metric("http_requests_total", &["route=\"all\"", "status_class=\"4xx\""]), 1.0);
    assert!(gw.metric("wasm_fuel_total", &[]) > 0.0);
    assert_eq!(gw.metric("store_up", &[]), 1.0);
}

#[test]
fn one_access_event_a_request() {
    let (_up, gw) = start();
    let key = gw.key();
    let response = gw.get("/logged?q=hidden").key(&key).send().expect(200);
    let id = response.header("x-request-id").expect("a request id").to_owned();
    let event = |log: &str| -> Option<Value> {
        let mut events = log.lines().filter(|l| l.contains(&id)).filter_map(|l| serde_json::from_str::<Value>(l).ok());
        let event = events.next();
        assert!(events.next().is_none(), "two events of one request:\n{log}");
        event
    };
    eventually("the access event is logged", || event(&gw.log()).is_some());
    let event = event(&gw.log()).expect("it was there").to_string();
    for part in ["GET", "/logged", "200", "all"] {
        assert!(event.contains(part), "no `{part}`: {event}");
    }
    assert!(!event.contains("hidden"), "a query may hold secrets: {event}");
}

#[test]
fn the_openapi_document_names_the_contracts_paths() {
    let (_up, gw) = start();
    let doc = gw.admin("GET", "/api/openapi.json").send().expect(200).json();
    assert!(doc["openapi"].as_str().is_some_and(|v| v.starts_with("3.1")), "{}", doc["openapi"]);
    let paths = doc["paths"].as_object().expect("paths");
    for path in [
        "/api/wasm/execute",
        "/api/wasm/batch",
        "/api/wasm/upload",
        "/api/wasm/modules",
        "/api/wasm/validate",
        "/api/usage",
        "/api/auth/keys",
    ] {
        assert!(paths.contains_key(path), "no {path}");
    }
}

#[test]
fn drain_and_log_level_are_operators_verbs() {
    let (_up, mut gw) = start();
    let level = gw.admin("PUT", "/api/log-level").json(&json!({"level": "debug"})).send();
    assert!(matches!(level.status, 200 | 204), "{level}");
    gw.admin("PUT", "/api/log-level").json(&json!({"level": "nonsense"})).send().problem(400, "bad-request");
    let drained = gw.admin("POST", "/api/drain").send();
    assert!(matches!(drained.status, 200 | 202 | 204), "{drained}");
    assert!(gw.wait().success());
}

fn audit(gw: &Gateway) -> Vec<Value> {
    let log = gw.admin("GET", "/api/audit?limit=1000").send().expect(200).json();
    log["entries"].as_array().expect("a list").clone()
}

#[test]
fn a_reload_is_logged_and_audited_once_whoever_asks() {
    let (up, gw) = start();
    let reloads = || audit(&gw).into_iter().filter(|e| e["action"] == "config.reload").collect::<Vec<_>>();
    let logged = |what: &str| gw.log().lines().filter(|l| l.contains(what)).count();
    gw.reload().expect(200);
    assert_eq!((reloads().len(), logged("configuration reloaded")), (1, 1));
    assert_eq!((&reloads()[0]["actor"], &reloads()[0]["detail"]), (&json!("bootstrap"), &json!("generation 2")));
    gw.signal("HUP");
    eventually("the reload by a signal is audited", || reloads().len() == 2);
    assert_eq!((&reloads()[0]["actor"], logged("configuration reloaded")), (&json!("SIGHUP"), 2));
    gw.write_config(&(keyed_proxy(up.addr, "") + "[server]\nheader_timout = \"1s\"\ndrain = \"soon\"\n"));
    gw.reload().expect(400);
    gw.signal("HUP");
    eventually("the refusals are audited", || reloads().len() == 4);
    for entry in &reloads()[..2] {
        let detail = entry["detail"].as_str().unwrap_or_default();
        assert!(
            detail.starts_with("refused: ") && detail.contains("header_timout") && detail.contains("1 more"),
            "{entry}"
        );
    }
    assert_eq!(logged("configuration not reloaded"), 2, "{}", gw.log());
}

#[test]
fn a_reload_takes_up_what_it_can_and_names_what_waits_for_a_restart() {
    let up = Upstream::echo();
    let config = |server: &str, more: &str| format!("[server]\n{server}\n{more}\n") + &open_proxy(up.addr, "");
    let gw = Gateway::start(&config("max_connections = 1", ""));
    let big = || gw.get("/").header("X-Big", "x".repeat(3 << 10)).send().status;
    assert_eq!(big(), 200);
    let mut held = crate::support::Conn::connect(gw.proxy);
    held.ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n").expect(200);

    let changed = "max_connections = 2\nmax_header = \"1KiB\"\nkeepalive = \"1s\"\nthreads = 3";
    gw.write_config(&config(changed, "[engine]\nqueue = 5\n[auth]\nkey_fresh = \"1s\"\n[log]\nlevel = \"debug\""));
    let answer = gw.reload().expect(200).json();
    assert_eq!(answer["needs_restart"], json!(["server.threads", "auth.key_fresh", "engine.queue"]), "{answer}");
    eventually("the log names them", || gw.log().contains("a restart is needed for `server.threads`"));
    assert_eq!(gw.admin("GET", "/api/log-level").send().expect(200).json()["level"], "debug");
    // A second place, beside the one that is held; the new bound of a head; the new idle time on the new connection.
    assert_eq!(big(), 431);
    let mut idle = crate::support::Conn::connect(gw.proxy);
    idle.ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n").expect(200);
    assert!(idle.closes(), "after a second, not after a minute");

    // What waits goes on waiting, also through later reloads.
    gw.write_config(&config(&changed.replace("threads = 3", ""), "[log]\nlevel = \"debug\""));
    assert_eq!(gw.reload().expect(200).json()["needs_restart"], json!([]));
    gw.write_config(&(config(changed, "") + "[[server.listeners]]\naddress = \"127.0.0.1:1\"\n"));
    assert_eq!(gw.reload().expect(200).json()["needs_restart"], json!(["server.listeners", "server.threads"]));
}

#[test]
fn the_audit_log_is_bounded() {
    let up = Upstream::echo();
    let gw = Gateway::start(&(keyed_proxy(up.addr, "") + "[store]\naudit_entries = 100\n"));
    for i in 0..130 {
        gw.admin("PUT", "/api/log-level").json(&json!({"level": format!("info,t{i}=off")})).send().expect(200);
    }
    eventually("the oldest lines are gone", || audit(&gw).len() == 100);
    assert!(audit(&gw)[0].to_string().contains("t129=off"));
}

#[test]
fn the_first_token_is_listed_and_its_runs_are_counted() {
    let (_up, gw) = start();
    let tokens = gw.admin("GET", "/api/tokens").send().expect(200).json();
    assert_eq!((&tokens["tokens"][0]["id"], &tokens["tokens"][0]["role"]), (&json!("bootstrap"), &json!("admin")));
    let kept = gw.admin("DELETE", "/api/tokens/bootstrap").send();
    kept.problem(409, "conflict");
    assert!(kept.text().contains("admin.token"), "{kept}");

    let form = Form::default().file("wasm", &crate::support::c_guest("command")).field("input", b"x").end();
    gw.admin("POST", "/api/wasm/execute").form(form).send().expect(200);
    eventually("the run is in the usage", || {
        let usage = gw.admin("GET", "/api/usage?by=key").send().expect(200).json();
        let rows = usage["rows"].as_array().expect("a list");
        rows.iter().any(|r| r["key"] == "token:bootstrap" && r["executions"] == 1 && r["owner"] == "wasmgate")
    });
}

#[test]
fn settings_that_a_modules_abi_does_not_look_at_are_named() {
    let up = Upstream::echo();
    let gw = Gateway::start(&open_proxy(up.addr, ""));
    gw.upload("acme/http", "http-wasm", &crate::support::c_guest("http"));
    gw.upload("acme/proxy", "proxy-wasm", &crate::support::c_guest("proxy"));
    let warnings = |handler: &str| {
        gw.write_config(&open_proxy(up.addr, &format!("handlers = [{{ {handler} }}]")));
        let checked = gw.admin("POST", "/api/config/check").header("Content-Type", "application/toml");
        let checked = checked.body(open_proxy(up.addr, &format!("handlers = [{{ {handler} }}]"))).send().expect(200);
        let (checked, reloaded) =
            (checked.json()["warnings"].clone(), gw.reload().expect(200).json()["warnings"].clone());
        assert_eq!(checked, reloaded);
        reloaded
    };
    let idle = warnings("module = \"acme/http\", vm_id = \"shop\", hold_headers = true");
    assert_eq!(idle[0]["key"], "routes[0].handlers[0].module", "{idle}");
    assert!(idle.to_string().contains("`http-wasm`, where `vm_id`, `hold_headers` has no effect"), "{idle}");
    assert_eq!(warnings("module = \"acme/http\", config = \"x\", env = { A = \"b\" }"), json!([]));
    assert_eq!(warnings("module = \"acme/proxy\", vm_id = \"shop\", hold_headers = true"), json!([]));
}

/// A mistyped name is taken, because the module may come later, and told wherever an operator looks.
#[test]
fn modules_that_are_not_stored_are_named() {
    let up = Upstream::echo();
    let config = |module: &str| open_proxy(up.addr, &format!("handlers = [{{ module = \"{module}\" }}]"));
    let gw = Gateway::start(&open_proxy(up.addr, ""));
    gw.upload("acme/run", "core", &wat("(module (func (export \"run\")))"));
    let check = |module: &str| {
        let request = gw.admin("POST", "/api/config/check").header("Content-Type", "application/toml");
        request.body(config(module)).send().expect(200).json()
    };
    for module in ["acme/haeder", "acme/run@9"] {
        let checked = check(module);
        assert_eq!((&checked["ok"], &checked["errors"]), (&json!(true), &json!([])), "{checked}");
        gw.write_config(&config(module));
        let reloaded = gw.reload().expect(200).json();
        for warnings in [&checked["warnings"], &reloaded["warnings"]] {
            assert_eq!(warnings[0]["key"], "routes[0].handlers[0].module", "{warnings}");
            let message = warnings[0]["message"].as_str().unwrap_or_default();
            assert!(message.contains("`all`") && message.contains(&format!("`{module}`")), "{warnings}");
        }
        assert_eq!(
            gw.admin("GET", "/api/routes").send().expect(200).json()["routes"][0]["not_stored"],
            json!([module])
        );
        gw.get("/").send().expect(500);
        eventually("the log names it", || gw.log().contains(&format!("\"handler\":\"{module}\"")));
        assert!(gw.log().contains(&format!("`{module}`, which is not stored")), "{}", gw.log());
    }
    assert!(!gw.log().contains("@0"), "{}", gw.log());
    let open = open_proxy(up.addr, "handlers = [{ module = \"acme/haeder\", fail = \"open\" }]");
    gw.write_config(&open);
    let warnings = gw.reload().expect(200).json()["warnings"].to_string();
    assert!(warnings.contains("go on without it") && !warnings.contains("500"), "{warnings}");
    gw.get("/").send().expect(200);
    let unfit = check("acme/run");
    assert_eq!((&unfit["ok"], &unfit["warnings"]), (&json!(false), &json!([])), "{unfit}");
    assert!(unfit["errors"].to_string().contains("can't use this version of `acme/run`"), "{unfit}");
    gw.write_config(&open_proxy(up.addr, ""));
    assert_eq!(gw.reload().expect(200).json()["warnings"], json!([]));
    assert_eq!(gw.admin("GET", "/api/routes").send().expect(200).json()["routes"][0]["not_stored"], json!([]));
}
