//! Properties: paths of segments joined by NUL, values in Envoy's encoding (strings raw, integers 8 bytes little-endian, booleans
//! one byte, times and durations 8 bytes of nanoseconds).

use std::time::SystemTime;

use super::*;
use crate::support::upstream::respond;

/// What `get_property` gave for this path: the bytes between brackets, unescaped; `None` when it is not found.
fn property(gw: &Gateway, callback: &str, path: &str, request: impl FnOnce(Request) -> Request) -> Option<Vec<u8>> {
    let script = format!("{callback}: get_property s:{} b", path.replace('.', "%00"));
    let response = request(scripted(gw, script)).send().expect(200);
    let results = told(&response);
    let result = results.last().unwrap_or_else(|| panic!("{path}: {response}"));
    let Some(text) = result.strip_prefix("get_property=0 [").and_then(|r| r.strip_suffix(']')) else {
        assert_eq!(result, "get_property=1 -", "{path}");
        return None;
    };
    Some(unescaped(text))
}

fn number(bytes: &[u8]) -> i64 {
    i64::from_le_bytes(bytes.try_into().unwrap_or_else(|_| panic!("no 8 bytes: {bytes:?}")))
}

fn answering() -> Upstream {
    Upstream::start(|_, stream| respond(stream, 207, &[("X-Up", "up")], b"answer"))
}

#[test]
fn texts() {
    let up = Upstream::start(|_, stream| respond(stream, 200, &[("X-Up", "up")], b"answer"));
    let keys = "root_id = \"the-root\", vm_id = \"the-vm\", plugin = \"the-plugin\"";
    let routes = filter("run", "", keys).replace("auth = \"none\"", "auth = \"optional\"\nlimited = false");
    let gw = gateway(&up, "", &routes);
    let authority = gw.proxy.to_string();
    for (path, expected) in [
        ("plugin_name", "the-plugin"),
        ("plugin_root_id", "the-root"),
        ("plugin_vm_id", "the-vm"),
        ("request.path", "/run/x?y=1"),
        ("request.url_path", "/run/x"),
        ("request.query", "y=1"),
        ("request.host", &authority),
        ("request.scheme", "http"),
        ("request.method", "GET"),
        ("request.protocol", "HTTP/1.1"),
        ("request.headers.x-some", "value"),
        ("route_name", "run"),
        ("wasmgate.route", "run"),
        ("wasmgate.tier", "anonymous"),
        ("destination.address", &authority),
        ("response.headers.x-up", "up"),
    ] {
        let callback = if path.starts_with("response.") { "response_headers" } else { "request_headers" };
        let value = property(&gw, callback, path, |r| r.header("X-Some", "value"));
        assert_eq!(value.as_deref().map(String::from_utf8_lossy).as_deref(), Some(expected), "{path}");
    }
    let source = property(&gw, "request_headers", "source.address", |r| r).expect("it has one");
    assert!(String::from_utf8_lossy(&source).starts_with("127.0.0.1:"), "{source:?}");
    let upstream = property(&gw, "response_headers", "upstream.address", |r| r);
    assert_eq!(upstream.as_deref(), Some(up.addr.to_string().as_bytes()));
    let (first, second) = ["x", "y"].map(|_| property(&gw, "request_headers", "request.id", |r| r)).into();
    assert!(first.is_some() && first != second, "each request has its own id");
}

#[test]
fn numbers_times_and_booleans() {
    let up = answering();
    let gw = runner(&up);
    let get = |callback: &str, path: &str| {
        let script =
            format!("{callback}: get_property s:{} b; {callback}: continue_stream 0", path.replace('.', "%00"));
        let response = scripted(&gw, script).body("hello").send().expect(207);
        let text = told(&response).remove(0);
        let text = text.strip_prefix("get_property=0 [").and_then(|r| r.strip_suffix(']')).map(str::to_owned);
        let text = text.unwrap_or_else(|| panic!("{path}: {response}"));
        unescaped(&text)
    };
    assert_eq!(number(&get("response_headers", "response.code")), 207);
    assert_eq!(number(&get("request_headers", "destination.port")), i64::from(gw.proxy.port()));
    assert_eq!(number(&get("response_headers", "upstream.port")), i64::from(up.addr.port()));
    assert!((1024..=65535).contains(&number(&get("request_headers", "source.port"))));
    assert!(number(&get("request_headers", "connection.id")) > 0);
    assert_eq!(get("request_headers", "connection.mtls"), [0]);
    let time = number(&get("request_headers", "request.time"));
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_nanos();
    assert!((0..120_000_000_000).contains(&(i128::from(time) - now as i128).abs()), "{time} against {now}");
    assert!(number(&get("response_headers", "request.duration")) >= 0);
    assert_eq!(number(&get("response_headers", "request.size")), 5);
}

#[test]
fn maps_are_pairs() {
    let up = Upstream::text("answer");
    let gw = runner(&up);
    let headers = property(&gw, "request_headers", "request.headers", |r| r.header("X-Some", "value")).expect("a map");
    let text = String::from_utf8_lossy(&headers);
    assert!(text.contains("x-some\0value\0"), "{text:?}");
}

#[test]
fn a_caller_with_a_key_is_told_by_its_id() {
    let up = Upstream::text("answer");
    let routes = filter("run", "", "").replace("auth = \"none\"", "auth = \"key\"");
    let gw = gateway(&up, "", &routes);
    let key = gw.new_key(&crate::support::admin::NewKey { tier: "pro", ..Default::default() });
    for (path, expected) in [("wasmgate.key_id", key.id.as_str()), ("wasmgate.tier", "pro"), ("wasmgate.route", "run")]
    {
        let value = property(&gw, "request_headers", path, |r| r.key(&key.text));
        assert_eq!(value.as_deref().map(String::from_utf8_lossy).as_deref(), Some(expected), "{path}");
    }
}

#[test]
fn what_is_unknown_or_not_there_yet_is_not_found() {
    let up = Upstream::text("answer");
    let gw = runner(&up);
    for path in [
        "nothing",
        "request.nothing",
        "request.path.more",
        "request.headers.x-none",
        "wasmgate.key_id",
        "wasmgate.key",
        "response.code",
        "",
        ".",
        "a..b",
    ] {
        assert_eq!(property(&gw, "request_headers", path, |r| r), None, "{path}");
    }
}

/// Handlers hand values on: what one sets, those behind it and the answer's callbacks read.
#[test]
fn what_a_filter_sets_later_ones_read_in_the_same_stream_only() {
    let up = Upstream::text("answer");
    let sets = entry("request_headers: set_property s:from%00first s:a%00b", "");
    let reads =
        entry("request_headers: get_property s:from%00first b; response_headers: get_property s:from%00first b", "");
    let only_reads = filter("other", "request_headers: get_property s:from%00first b", "");
    let gw = gateway(&up, "", &(chain("chain", &[sets, reads]) + &only_reads));
    for _ in 0..3 {
        let response = gw.get("/chain").send().expect(200);
        let found = "get_property=0 [a%00b]";
        assert!(response.all("x-results").iter().any(|r| results(r) == [found, found]), "{response}");
        assert_eq!(told(&gw.get("/other").send().expect(200)), ["get_property=1 -"]);
    }
}

/// Where the gateway has nothing to say, as of a caller without a key, nobody else has: a later handler would take it for
/// the gateway's word.
#[test]
fn no_handler_speaks_for_the_gateway() {
    let up = Upstream::text("answer");
    let paths = [
        "wasmgate%00owner",
        "wasmgate%00key_id",
        "wasmgate.owner",
        "wasmgate.key_id",
        "wasmgate.params.id",
        "wasmgate",
        "wasmgate%00owner%00",
        "request%00more",
        "response%00code",
        "source%00more",
        "destination%00more",
        "upstream%00address",
        "connection%00requested_server_name",
        "route_name%00more",
        "plugin_name%00more",
    ];
    let calls = |call: &str, ends: &str| {
        entry(&paths.map(|path| format!("request_headers: {call} s:{path} {ends}; ")).concat(), "")
    };
    let forges = calls("set_property", "s:forged");
    let reads = calls("get_property", "b");
    let other = "{ module = \"acme/http\" }".to_owned();
    let modules = [
        ("acme/proxy", "proxy-wasm", &c_guest("proxy")[..]),
        ("acme/http", "http-wasm", &c_guest("host_api_http")[..]),
    ];
    let routes = chain("chain", &[forges, reads.clone()]) + &chain("values", &[other, reads]);
    let gw = Gateway::with_modules(&complete(&up, ""), &modules, &routes);
    let response = gw.get("/chain").send().expect(200);
    let [read, set] = response.all("x-results")[..] else { panic!("two filters tell: {response}") };
    assert_eq!(results(set), vec!["set_property=2"; paths.len()]);
    assert_eq!(results(read), vec!["get_property=1 -"; paths.len()]);
    // Handlers of other ABIs hand on what they like; it is no property.
    let script = paths.map(|path| format!("value_set {path} forged;")).concat();
    let response = gw.get("/values").header("X-Run", script).send().expect(200);
    assert_eq!(told(&response), vec!["get_property=1 -"; paths.len()]);
}

/// What is the gateway's to say is not a filter's to change.
#[test]
fn the_gateways_own_properties_stay() {
    let up = Upstream::text("answer");
    let gw = runner(&up);
    for path in ["wasmgate%00tier", "wasmgate%00route", "route_name", "source%00address"] {
        let results = run(
            &gw,
            format!("request_headers: set_property s:{path} s:evil; request_headers: get_property s:{path} b"),
        );
        assert!(!results[1].contains("evil"), "{path}: {results:?}");
    }
}
