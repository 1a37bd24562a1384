//! TLS on both sides: listeners with ALPN and certificate reload, and upstreams that are verified.

use std::net::SocketAddr;

use tempfile::TempDir;

use crate::support::h2c::H2;
use crate::support::tls::{self, Certificate};
use crate::support::toml::{open_proxy, route};
use crate::support::{Gateway, Upstream, eventually};

/// A TLS listener whose certificate lies in the gateway's folder.
fn start(certificate: &Certificate, config: &str) -> Gateway {
    let dir = TempDir::new().expect("a temporary folder");
    let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    certificate.write(&cert, &key);
    let listener =
        format!("[[server.listeners]]\naddress = \"127.0.0.1:0\"\ntls.cert_file = {cert:?}\ntls.key_file = {key:?}\n");
    Gateway::start_in(dir, &(listener + config))
}

#[test]
fn a_listener_speaks_http1_and_http2_by_alpn() {
    let up = Upstream::echo();
    let certificate = Certificate::for_name("localhost");
    let gw = start(&certificate, &open_proxy(up.addr, ""));
    assert!(gw.ready["proxy"][0].as_str().is_some_and(|url| url.starts_with("https://")), "{}", gw.ready);
    let mut conn = tls::connect(gw.proxy, &certificate).expect("a handshake");
    let response = conn.ask("GET /over-tls HTTP/1.1\r\nHost: localhost\r\n\r\n").expect(200);
    assert_eq!(response.json()["uri"], "/over-tls");
    let client = H2::connect_tls(gw.proxy, tls::client_config(&certificate, &["h2", "http/1.1"]));
    assert_eq!(client.get("https://localhost/h2", &[]).status, 200);
    assert_eq!(up.last().target, "/h2");
}

#[test]
fn plaintext_on_a_tls_listener_is_not_served() {
    let up = Upstream::echo();
    let gw = start(&Certificate::for_name("localhost"), &open_proxy(up.addr, ""));
    assert!(gw.get("/").try_send().is_err());
    assert!(up.seen().is_empty());
}

#[test]
fn a_new_certificate_is_taken_up_on_reload_and_a_broken_one_is_not() {
    let up = Upstream::echo();
    let (old, new) = (Certificate::for_name("localhost"), Certificate::for_name("localhost"));
    let gw = start(&old, &open_proxy(up.addr, ""));
    let (cert, key) = (gw.dir.path().join("cert.pem"), gw.dir.path().join("key.pem"));
    let mut kept = tls::connect(gw.proxy, &old).expect("a handshake");

    new.write(&cert, &key);
    gw.signal("HUP");
    eventually("the new certificate is served", || tls::connect(gw.proxy, &new).is_ok());
    assert!(tls::connect(gw.proxy, &old).is_err(), "the old one is gone");
    kept.ask("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").expect(200);

    std::fs::write(&cert, "not a certificate").expect("the folder is writable");
    gw.signal("HUP");
    eventually("the refusal is logged with the file's name", || gw.log().contains("cert.pem"));
    assert!(tls::connect(gw.proxy, &new).is_ok(), "nothing changed");
}

/// Everything goes over TLS to `addr`.
fn tls_upstream(addr: SocketAddr, tls: &str) -> String {
    format!("[[upstreams]]\nname = \"up\"\nendpoints = [\"{addr}\"]\n{tls}\n")
        + &route("all", "match.path_prefix = \"/\"\ntarget.upstream = \"up\"\nauth = \"none\"")
}

#[test]
fn an_upstream_certificate_is_verified() {
    let certificate = Certificate::for_name("origin.test");
    let addr = tls::origin(&certificate, "over tls");
    let dir = TempDir::new().expect("a temporary folder");
    let ca = dir.path().join("ca.pem");
    std::fs::write(&ca, &certificate.cert_pem).expect("the folder is writable");

    let trusted = tls_upstream(addr, &format!("tls = {{ sni = \"origin.test\", ca_file = {ca:?} }}"));
    assert_eq!(Gateway::start(&trusted).get("/").send().expect(200).text(), "over tls");

    let wrong_name = tls_upstream(addr, &format!("tls = {{ sni = \"other.test\", ca_file = {ca:?} }}"));
    Gateway::start(&wrong_name).get("/").send().problem(502, "upstream-unavailable");

    let unknown = tls_upstream(addr, "tls = { sni = \"origin.test\" }");
    Gateway::start(&unknown).get("/").send().problem(502, "upstream-unavailable");

    let unverified = tls_upstream(addr, "tls = { sni = \"origin.test\", verify = false }");
    assert_eq!(Gateway::start(&unverified).get("/").send().expect(200).text(), "over tls");
}

#[test]
fn an_authoritys_certificate_as_an_upstreams_own_is_refused_with_the_remedy() {
    let certificate = Certificate::authority("origin.test");
    let addr = tls::origin(&certificate, "over tls");
    let dir = TempDir::new().expect("a temporary folder");
    let ca = dir.path().join("ca.pem");
    std::fs::write(&ca, &certificate.cert_pem).expect("the folder is writable");
    let tls = format!("tls = {{ sni = \"origin.test\", ca_file = {ca:?} }}");
    let gw = Gateway::start(&tls_upstream(addr, &tls));
    let remedy = "-addext basicConstraints=critical,CA:FALSE";
    let shown =
        || gw.admin("GET", "/health").send().expect(200).json()["upstreams"][0]["endpoints"][0]["last_error"].clone();
    assert!(shown().is_null(), "{}", shown());
    gw.get("/").send().problem(502, "upstream-unavailable");
    eventually("the log has the remedy", || gw.log().contains(remedy));
    assert!(shown()["error"].as_str().is_some_and(|e| e.contains(remedy)), "{}", shown());
    // A body that streams takes another way to the same upstream.
    let before = gw.log().matches(remedy).count();
    gw.post("/", vec![b'x'; 100_000]).send().problem(502, "upstream-unavailable");
    eventually("the log has it again", || gw.log().matches(remedy).count() > before);

    let checked = format!("{tls}\nhealth = {{ http_path = \"/\", interval = \"100ms\" }}");
    let gw = Gateway::start(&tls_upstream(addr, &checked));
    eventually("so has the health check's log", || {
        gw.log().lines().any(|l| l.contains("unhealthy") && l.contains(remedy))
    });
}

#[test]
fn a_reload_takes_up_other_certificate_files_and_says_where_one_is_wrong() {
    let up = Upstream::echo();
    let (old, new) = (Certificate::for_name("localhost"), Certificate::for_name("localhost"));
    let gw = start(&old, &open_proxy(up.addr, ""));
    let listener = |name: &str| {
        format!(
            "[[server.listeners]]\naddress = \"127.0.0.1:0\"\ntls.cert_file = \"{name}.pem\"\ntls.key_file = \"{name}-key.pem\"\n"
        ) + &open_proxy(up.addr, "")
    };
    gw.write_config(&listener("new"));
    let refused = gw.reload();
    refused.problem(400, "bad-request");
    assert!(refused.text().contains("server.listeners[0].tls.cert_file"), "{refused}");
    assert!(tls::connect(gw.proxy, &old).is_ok(), "nothing changed");

    new.write(&gw.dir.path().join("new.pem"), &gw.dir.path().join("new-key.pem"));
    assert_eq!(gw.reload().expect(200).json()["needs_restart"], serde_json::json!([]));
    assert!(tls::connect(gw.proxy, &new).is_ok());
    assert!(tls::connect(gw.proxy, &old).is_err());
}

#[test]
fn an_expired_certificate_is_served_with_a_warning() {
    let up = Upstream::echo();
    let gw = start(&Certificate::expired("localhost"), &open_proxy(up.addr, ""));
    eventually("the log warns", || gw.log().contains("expired 2001-02-03"));
}
