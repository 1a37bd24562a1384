//! Stored modules: versions, which of them is live, who may see them, and what a delete must not break.

use serde_json::{Value, json};

use crate::support::admin::NewKey;
use crate::support::api::{self, Form};
use crate::support::toml::{open_proxy, route, tier, upstream};
use crate::support::{DEADLINE, Gateway, Request, Response, Upstream, c_guest, eventually, poll, try_serve, wat};

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

/// Who forgot `--abi cgi` has a way back, also while a route uses the module.
#[test]
fn the_same_bytes_under_another_abi_are_a_new_version() {
    let routes =
        route("page", "match.path_prefix = \"/page\"\ntarget.handler = { module = \"acme/page\" }\nauth = \"none\"");
    let wasm = c_guest("cgi");
    let gw = Gateway::with_modules("", &[("acme/page", "command", &wasm)], &routes);
    assert!(!gw.get("/page/a?teapot").send().text().is_empty());
    let second = gw.upload("acme/page", "cgi", &wasm);
    assert_eq!((&second["version"], &second["abi"], &second["active"]), (&json!(2), &json!("cgi"), &json!(true)));
    gw.get("/page/a?teapot").send().expect(418);
    let again = gw.try_upload("acme/page", "cgi", &wasm).expect(200).json();
    assert_eq!(again["version"], 2, "with the same ABI it is the same version: {again}");
    // The first version goes, and the bytes that both share stay.
    gw.admin("DELETE", "/api/wasm/modules/page@1?owner=acme").send().expect(204);
    gw.write_config(&routes.replace("acme/page", "acme/page@2"));
    gw.reload().expect(200);
    gw.get("/page/a?teapot").send().expect(418);
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
fn a_route_holds_the_version_it_means_and_no_other() {
    let handler = |name: &str, module: &str| {
        route(name, format!("match.path = \"/{name}\"\ntarget.handler = {{ module = \"{module}\" }}\nauth = \"none\""))
    };
    let routes = handler("floats", "acme/used") + &handler("pins", "acme/used@2");
    let gw = Gateway::start(&api::config(""));
    let key = gw.key();
    for n in 1..=4 {
        put(&gw, &key, "used", "", &constant(n)).send().expect(201);
    }
    gw.write_config(&(api::config("") + &routes));
    gw.reload().expect(200);
    let delete = |name: &str| gw.request("DELETE", &format!("/api/wasm/modules/{name}")).key(&key).send();
    for (name, route) in [("used", "floats"), ("used@1", "floats"), ("used@2", "pins")] {
        let detail = delete(name).problem(409, "conflict")["detail"].to_string();
        assert!(detail.contains(&format!("`{route}`")) && detail.contains("first"), "{name}: {detail}");
    }
    delete("used@4").expect(204);
    gw.request("POST", "/api/wasm/modules/used/activate").key(&key).json(&json!({"version": 3})).send().expect(200);
    delete("used@1").expect(204);
    assert_eq!(gw.get("/floats").send().expect(200).json(), json!([3]));
    assert_eq!(gw.get("/pins").send().expect(200).json(), json!([2]));
}

#[test]
fn a_module_that_comes_back_goes_on_counting() {
    let config = api::config("");
    let gw = Gateway::start(&config);
    let key = gw.key();
    put(&gw, &key, "calc", "", &constant(1)).send().expect(201);
    put(&gw, &key, "calc", "", &constant(2)).send().expect(201);
    gw.request("DELETE", "/api/wasm/modules/calc").key(&key).send().expect(204);
    let gw = gw.restart(&config);
    // The very bytes that `calc@1` was: a pin to it still means nothing, as nobody can tell that they are the same.
    let back = put(&gw, &key, "calc", "", &constant(1)).send().expect(201).json();
    assert_eq!((&back["version"], &back["active"]), (&json!(3), &json!(true)), "{back}");
    assert_eq!(run(&gw, &key, "calc"), 1, "the first version after a delete is live at once");
    for pin in ["calc@1", "calc@2"] {
        let request = gw.request("POST", "/api/wasm/execute").key(&key).json(&json!({"module": pin}));
        request.send().problem(404, "not-found");
    }
}

#[test]
fn runs_by_routes_count_as_executions_do() {
    let up = Upstream::echo();
    let routes = route(
        "answers",
        "match.path = \"/answers\"\ntarget.handler = { module = \"acme/core\" }\nauth = \"none\"",
    ) + &route(
        "passes",
        "match.path = \"/passes\"\ntarget.upstream = \"up\"\nauth = \"none\"\nhandlers = [{ module = \"acme/http\", config = \"header\" }]",
    );
    let modules: [(&str, &str, &[u8]); 3] = [
        ("acme/core", "core", &constant(1)),
        ("acme/http", "http-wasm", &c_guest("http")),
        ("acme/idle", "core", &constant(2)),
    ];
    let config = api::config("") + &upstream("up", up.addr, "");
    let gw = Gateway::with_modules(&config, &modules, &routes);
    let key = gw.key();
    assert_eq!(run(&gw, &key, "core"), 1);
    for _ in 0..2 {
        gw.get("/answers").send().expect(200);
        gw.get("/passes").send().expect(200);
    }
    let mut counts = Vec::new();
    let done = poll(DEADLINE, || {
        let list = gw.get("/api/wasm/modules").key(&key).send().expect(200).json();
        let modules = list["modules"].as_array().expect("a list").clone();
        counts = modules.iter().map(|m| (m["execution_count"].clone(), m["last_executed"].is_string())).collect();
        counts == [(json!(3), true), (json!(2), true), (json!(0), false)]
    });
    assert!(done, "core, http, idle: {counts:?}");
}

#[test]
fn what_belongs_to_others_is_hidden_or_read_only() {
    let gw = Gateway::start(&api::config(""));
    let (mine, theirs) = (gw.key(), gw.new_key(&NewKey { owner: "other", ..NewKey::default() }).text);
    let id = |made: Value| made["id"].as_str().expect("an id").to_owned();
    let private = id(put(&gw, &theirs, "private", "", &constant(1)).send().expect(201).json());
    let public = id(put(&gw, &theirs, "public", "?public=true", &constant(2)).send().expect(201).json());
    put(&gw, &theirs, "public", "", &constant(3)).send().expect(201);
    let activate = |module: &str| {
        let request = gw.request("POST", &format!("/api/wasm/modules/{module}/activate")).key(&mine);
        request.json(&json!({"version": 2})).send()
    };
    let module =
        |method: &str, module: &str| gw.request(method, &format!("/api/wasm/modules/{module}")).key(&mine).send();

    for name in ["other%2Fprivate", "other%2Fprivate@1", "other%2Fabsent", &private, "mod_000000000000000000000000"] {
        module("GET", name).problem(404, "not-found");
        module("DELETE", name).problem(404, "not-found");
        activate(name).problem(404, "not-found");
    }
    let details = |name: &str| module("GET", name).problem(404, "not-found")["detail"].to_string();
    assert_eq!(
        details("other%2Fprivate").replace("private", "absent"),
        details("other%2Fabsent"),
        "what is hidden and what is not there answer alike"
    );
    for name in ["other%2Fpublic", &public] {
        assert_eq!(module("GET", name).expect(200).json()["name"], "public");
        module("DELETE", name).problem(403, "forbidden");
        activate(name).problem(403, "forbidden");
    }
    // Acting for another owner by asking for it.
    for target in ["/api/wasm/modules?owner=other", "/api/wasm/modules/public?owner=other", "/api/usage?owner=other"] {
        gw.get(target).key(&mine).send().problem(403, "forbidden");
    }
    put(&gw, &mine, "planted", "?owner=other", &constant(4)).send().problem(403, "forbidden");
    put(&gw, &mine, "other%2Fpublic", "", &constant(4)).send().problem(400, "bad-request");
    let execute =
        |target: &str, module: &str| gw.request("POST", target).key(&mine).json(&json!({"module": module})).send();
    execute("/api/wasm/execute?owner=other", "public").problem(403, "forbidden");
    execute("/api/wasm/execute", "other/private").problem(404, "not-found");
    execute("/api/wasm/execute", &public).problem(404, "not-found");
    assert_eq!(execute("/api/wasm/execute", "other/public").expect(200).json()["result"], 2);
    // Hiding it takes effect at once.
    put(&gw, &theirs, "public", "?public=false", &constant(2)).send().expect(200);
    execute("/api/wasm/execute", "other/public").problem(404, "not-found");
    module("GET", &public).problem(404, "not-found");
}

#[test]
fn two_owners_for_one_module_are_a_contradiction() {
    let gw = Gateway::start(&api::config(""));
    gw.upload("acme/one", "core", &constant(1));
    let named = |response: Response| {
        let detail = response.problem(400, "bad-request")["detail"].to_string();
        assert!(detail.contains("`owner`") && detail.contains("`acme/one`"), "{detail}");
    };
    named(gw.admin("GET", "/api/wasm/modules/acme%2Fone?owner=other").send());
    named(gw.admin("DELETE", "/api/wasm/modules/acme%2Fone?owner=other").send());
    named(gw.admin("POST", "/api/wasm/execute?owner=other").json(&json!({"module": "acme/one"})).send());
    gw.admin("GET", "/api/wasm/modules/acme%2Fone?owner=acme").send().expect(200);
}

#[test]
fn names_and_pages_have_bounds() {
    let gw = Gateway::start(&api::config(""));
    let key = gw.key();
    let long = "a".repeat(64);
    for name in ["A", "-a", ".a", "_a", "a%20b", "a@1", "a%2Fb", "%C3%BC", "..a", &long] {
        let detail = put(&gw, &key, name, "", &constant(1)).send().problem(400, "bad-request")["detail"].to_string();
        assert!(detail.contains("name") && detail.len() < 400, "{name}: {detail}");
    }
    for name in ["a%00", "a%0a", "..", "a%2F..%2Fb"] {
        assert_eq!(put(&gw, &key, name, "", &constant(1)).send().status, 400, "{name}");
    }
    for name in ["a", "0", "a.b-c_d", "a..b", &long[..63]] {
        put(&gw, &key, name, "", &constant(1)).send().expect(201);
    }
    let list = |query: &str| gw.get(&format!("/api/wasm/modules?{query}")).key(&key).send();
    for query in
        ["page=0", "page=-1", "page=1.5", "page=4294967296", "page=18446744073709551616", "limit=0", "limit=101"]
    {
        let detail = list(query).problem(400, "bad-request")["detail"].to_string();
        assert!(detail.contains(query.split('=').next().expect("a name")), "{query}: {detail}");
    }
    let last = list("page=4294967295&limit=100&include_public=true").expect(200).json();
    assert_eq!((&last["modules"], &last["total"], &last["has_next"]), (&json!([]), &json!(5), &json!(false)), "{last}");
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

/// Everything goes through `module`, then to `up`.
fn filtered(up: &Upstream, module: &str) -> String {
    open_proxy(up.addr, &format!("handlers = [{{ module = \"{module}\" }}]"))
}

#[test]
fn a_module_that_a_route_cannot_use_is_refused_before_a_request_meets_it() {
    let up = Upstream::echo();
    let mut gw = Gateway::start(&open_proxy(up.addr, ""));
    gw.upload("acme/calc", "core", &c_guest("core"));
    let refused = |config: &str, named: &[&str]| {
        gw.write_config(config);
        let answer = gw.reload();
        answer.problem(400, "bad-request");
        assert!(named.iter().all(|n| answer.text().contains(n)), "{answer}");
        gw.get("/").send().expect(200);
    };
    let wrong_abi = ["`all`", "acme/calc", "routes[0].handlers[0].module", "`core`", "http-wasm"];
    refused(&filtered(&up, "acme/calc"), &wrong_abi);
    // It exports no function that takes no arguments.
    gw.upload("acme/odd", "core", &wat("(module (func (export \"sum\") (param i32 i32) (result i32) i32.const 1))"));
    let answers = "match.path = \"/odd\"\nauth = \"none\"\ntarget.handler = { module = \"acme/odd\" }";
    refused(
        &(open_proxy(up.addr, "") + &route("odd", answers)),
        &["`odd`", "routes[1].target.handler", "without arguments"],
    );

    gw.signal("TERM");
    assert!(gw.wait().success());
    let output = try_serve(gw.dir.path(), &filtered(&up, "acme/calc"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{errors}");
    assert!(wrong_abi.iter().all(|n| errors.contains(n)), "{errors}");
}

#[test]
fn a_version_that_its_route_cannot_use_does_not_become_active() {
    let up = Upstream::echo();
    let gw = Gateway::with_modules(
        &open_proxy(up.addr, ""),
        &[("acme/filter", "http-wasm", &wat(include_str!("../../examples/http-wasm-header/header.wat")))],
        &route(
            "filtered",
            "match.path = \"/f\"\nauth = \"none\"\ntarget.upstream = \"up\"\nhandlers = [{ module = \"acme/filter\" }, { module = \"acme/later\" }]",
        ),
    );
    let calc = c_guest("core");
    let files = || std::fs::read_dir(gw.dir.path().join("data/modules")).expect("there are modules").count();
    let before = files();
    gw.try_upload("acme/filter", "core", &calc).problem(409, "conflict");
    assert_eq!(files(), before, "a refused upload leaves nothing behind");
    // The same bytes may be kept as long as they are not what the route runs.
    let kept =
        gw.admin("PUT", "/api/wasm/modules/filter?owner=acme&abi=core").header("Content-Type", "application/wasm");
    kept.body(calc.clone()).send().expect(201);
    let activate =
        || gw.admin("POST", "/api/wasm/modules/filter/activate?owner=acme").json(&json!({"version": 2})).send();
    for refused in [gw.try_upload("acme/filter", "core", &calc), gw.try_upload("acme/later", "core", &calc), activate()]
    {
        refused.problem(409, "conflict");
        assert!(refused.text().contains("`filtered`"), "{refused}");
    }
    let restarted = gw.restart(&(open_proxy(up.addr, "") + &route("f", "match.path = \"/f\"\nauth = \"none\"\ntarget.upstream = \"up\"\nhandlers = [{ module = \"acme/filter\" }]")));
    restarted.get("/f").send().expect(200);
}

#[test]
fn a_handler_that_fails_to_start_is_told_of_and_refused_by_a_reload() {
    let up = Upstream::echo();
    let gw = Gateway::start(&open_proxy(up.addr, ""));
    let text = "(module (memory (export \"memory\") 1) (func (export \"handle_request\") (result i64) i64.const 1)
        (func (export \"handle_response\") (param i32 i32)) (func (export \"_start\") unreachable))";
    gw.upload("acme/bad", "http-wasm", &wat(text));
    gw.write_config(&filtered(&up, "acme/bad"));
    let refused = gw.reload();
    refused.problem(400, "bad-request");
    assert!(["`all`", "acme/bad@1", "unreachable"].iter().all(|n| refused.text().contains(n)), "{refused}");
    gw.get("/").send().expect(200);
    // A guest's own failure keeps no gateway from starting.
    let gw = gw.restart(&filtered(&up, "acme/bad"));
    eventually("the log names route and module", || {
        gw.log().lines().any(|l| l.contains("can't start") && l.contains("acme/bad@1") && l.contains("\"all\""))
    });
}

#[test]
fn validate_tells_what_it_found_and_stores_nothing() {
    let gw = Gateway::start(&api::config(""));
    let key = gw.key();
    for (guest, abi) in [("command", "command"), ("core", "core"), ("http", "http-wasm")] {
        let request = gw.request("POST", "/api/wasm/validate").key(&key).header("Content-Type", "application/wasm");
        let doc = request.body(c_guest(guest)).send().expect(200).json();
        assert_eq!(doc["abi"], abi, "{doc}");
        assert!(doc["imports"].is_array() && doc["exports"].is_array() && doc["limits"].is_object(), "{doc}");
    }
    let listed = gw.get("/api/wasm/modules").key(&key).send().expect(200).json();
    assert_eq!(listed["modules"], json!([]), "{listed}");
}
