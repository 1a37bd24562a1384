//! The published description: what it says of bodies, credentials and refusals, and that live answers are in it.

use serde_json::{Value, json};

use crate::support::api::{self, Form};
use crate::support::{Gateway, Request, Response, wat};

/// The tenant's and the operator's document.
fn documents(gw: &Gateway) -> [Value; 2] {
    let tenant = gw.get("/api/openapi.json").key(&gw.key()).send().expect(200).json();
    [tenant, gw.admin("GET", "/api/openapi.json").send().expect(200).json()]
}

/// Follows a reference of the document.
fn resolved<'a>(document: &'a Value, value: &'a Value) -> &'a Value {
    match value["$ref"].as_str() {
        None => value,
        Some(at) => document.pointer(at.trim_start_matches('#')).unwrap_or_else(|| panic!("`{at}` leads nowhere")),
    }
}

/// Every operation: method, path, and what is said of it.
fn operations(document: &Value) -> impl Iterator<Item = (&str, &str, &Value)> {
    let paths = document["paths"].as_object().expect("paths").iter();
    paths.flat_map(|(path, item)| {
        let operations = item.as_object().expect("operations").iter();
        operations.map(move |(method, operation)| (method.as_str(), path.as_str(), operation))
    })
}

fn body<'a>(document: &'a Value, method: &str, path: &str, media: &str) -> &'a Value {
    let schema = &document["paths"][path][method]["requestBody"]["content"][media]["schema"];
    assert!(!schema.is_null(), "no {media} of {method} {path}");
    resolved(document, schema)
}

#[test]
fn credentials_are_described_as_each_face_takes_them() {
    let gw = Gateway::start(&api::config(""));
    let [tenant, admin] = documents(&gw);
    let schemes = &tenant["components"]["securitySchemes"];
    let header = schemes.as_object().expect("schemes").values().find(|s| s["type"] == "apiKey").expect("a header");
    assert_eq!((&header["in"], &header["name"]), (&json!("header"), &json!("X-Api-Key")));
    assert!(schemes.as_object().expect("schemes").values().any(|s| s["type"] == "http" && s["scheme"] == "bearer"));
    assert_eq!(tenant["security"].as_array().map(Vec::len), Some(2), "one or the other: {}", tenant["security"]);
    let schemes = admin["components"]["securitySchemes"].as_object().expect("schemes");
    assert!(schemes.len() == 1 && schemes.values().all(|s| s["scheme"] == "bearer"), "{schemes:?}");
}

#[test]
fn modules_are_binary_in_every_body() {
    let gw = Gateway::start(&api::config(""));
    let [document, _] = documents(&gw);
    for (method, path) in
        [("post", "/api/wasm/execute"), ("put", "/api/wasm/modules/{module}"), ("post", "/api/wasm/validate")]
    {
        let raw = body(&document, method, path, "application/wasm");
        assert_eq!((&raw["type"], &raw["contentMediaType"]), (&json!("string"), &json!("application/wasm")), "{path}");
    }
    for path in ["/api/wasm/execute", "/api/wasm/upload", "/api/wasm/validate"] {
        let form = body(&document, "post", path, "multipart/form-data");
        let wasm = resolved(&document, &form["properties"]["wasm"]);
        assert_eq!(wasm["contentMediaType"], "application/wasm", "{path}: {form}");
    }
    let form = body(&document, "post", "/api/wasm/execute", "multipart/form-data");
    for field in ["module", "input", "args", "env", "entry", "function", "abi"] {
        assert!(!form["properties"][field].is_null(), "no `{field}`: {form}");
    }
    assert!(form["properties"]["wasm_base64"].is_null(), "that is the JSON form's: {form}");
    let answers = &document["paths"]["/api/wasm/execute"]["post"]["responses"]["200"];
    assert!(answers["content"]["application/octet-stream"].is_object(), "{answers}");
    assert!(answers["headers"]["x-wasmgate-fuel"].is_object(), "{answers}");
}

#[test]
fn every_refusal_is_described_as_a_problem() {
    let gw = Gateway::start(&api::config(""));
    for document in documents(&gw) {
        for (method, path, operation) in operations(&document) {
            let open = operation["security"] == json!([{}]);
            let mut needed = if open { vec![] } else { vec!["400", "401", "403", "429", "431", "500", "503"] };
            if operation["requestBody"].is_object() {
                needed.extend(["408", "413"]);
            }
            if path == "/api/wasm/execute" {
                needed.extend(["402", "404", "415", "422", "502", "504"]);
            }
            for status in needed {
                assert!(operation["responses"][status].is_object(), "{method} {path} does not tell of {status}");
            }
            if let Some(busy) = operation["responses"].get("503").filter(|_| !open && !path.starts_with("/health")) {
                assert!(resolved(&document, busy)["headers"]["Retry-After"].is_object(), "{method} {path}: {busy}");
            }
            for (status, answer) in operation["responses"].as_object().expect("responses") {
                let answer = resolved(&document, answer);
                let probe = path.starts_with("/health");
                if status.as_str() >= "400" && !probe {
                    let schema = &answer["content"]["application/problem+json"]["schema"];
                    assert!(!resolved(&document, schema)["properties"]["detail"].is_null(), "{method} {path} {status}");
                }
            }
        }
        let ids: Vec<_> = operations(&document).map(|(_, _, operation)| operation["operationId"].to_string()).collect();
        let distinct: std::collections::BTreeSet<_> = ids.iter().collect();
        assert_eq!(distinct.len(), ids.len(), "clients are generated by these names: {ids:?}");
        let text = document.to_string();
        for at in text.split("\"$ref\":\"").skip(1).filter_map(|rest| rest.split('"').next()) {
            resolved(&document, &json!({"$ref": at}));
        }
    }
}

/// Status and media type of an answer are among those that its operation has.
#[track_caller]
fn described(document: &Value, method: &str, path: &str, response: &Response) {
    let answers = &document["paths"][path][method.to_lowercase()]["responses"];
    let answer = &answers[response.status.to_string()];
    assert!(!answer.is_null(), "{method} {path} does not tell of {response}");
    let answer = resolved(document, answer);
    match response.header("content-type") {
        None => assert!(answer["content"].is_null(), "{method} {path}: {response}"),
        Some(media) => assert!(answer["content"][media].is_object(), "{method} {path}: {response}"),
    }
}

#[test]
fn live_answers_are_in_the_document() {
    let gw = Gateway::start(&api::config(""));
    let key = gw.key();
    let [document, _] = documents(&gw);
    let wasm = wat("(module (func (export \"run\") (result i32) (i32.const 1)) (func (export \"trap\") unreachable))");
    let request = |method: &str, target: &str| gw.request(method, target).key(&key);
    let raw = |request: Request| request.header("Content-Type", "application/wasm").body(wasm.clone());
    let execute = || request("POST", "/api/wasm/execute");
    let module = "/api/wasm/modules/{module}";
    for (path, sent, status) in [
        (module, raw(request("PUT", "/api/wasm/modules/one")), 201),
        (module, raw(request("PUT", "/api/wasm/modules/one")), 200),
        (module, raw(request("PUT", "/api/wasm/modules/ONE")), 400),
        (module, request("PUT", "/api/wasm/modules/one").body("x"), 415),
        (module, request("GET", "/api/wasm/modules/one"), 200),
        (module, request("GET", "/api/wasm/modules/two"), 404),
        (module, request("DELETE", "/api/wasm/modules/one"), 409),
        (module, gw.get("/api/wasm/modules/one"), 401),
        ("/api/wasm/execute", raw(execute()), 200),
        ("/api/wasm/execute", raw(execute().header("Accept", "application/octet-stream")), 200),
        (
            "/api/wasm/execute",
            execute().form(Form::default().field("module", "one").field("function", "trap").end()),
            502,
        ),
        ("/api/wasm/execute", execute().json(&json!({"module": "two"})), 404),
        ("/api/wasm/execute", execute().json(&json!({"wasm_base64": "AGFzbQ=="})), 422),
        ("/api/wasm/execute", execute().body("x"), 415),
        ("/api/wasm/batch", request("POST", "/api/wasm/batch").json(&json!([{"module": "one"}])), 200),
        ("/api/wasm/batch", request("POST", "/api/wasm/batch").json(&json!([])), 400),
        ("/api/usage", request("GET", "/api/usage?by=key"), 200),
        ("/api/usage", request("GET", "/api/usage?by=x"), 400),
        ("/api/auth/keys/{id}", request("GET", "/api/auth/keys/none"), 404),
    ] {
        if status == 409 {
            let handler =
                crate::support::toml::route("h", "match.path = \"/h\"\ntarget.handler = { module = \"acme/one\" }");
            gw.write_config(&(api::config("") + &handler));
            gw.reload().expect(200);
        }
        let method = String::from_utf8_lossy(&sent.bytes()).split(' ').next().expect("a method").to_owned();
        let response = sent.send().expect(status);
        described(&document, &method, path, &response);
    }
}
