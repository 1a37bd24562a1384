//! What keeps a gateway from its Redis, as its start says it: where it looked, what it was told, and the setting to look at.

use wasmgate::store::redis::COMMANDS;

use super::Fleet;
use crate::support::redis::{Redis, free_port};
use crate::support::tls::Certificate;
use crate::support::{Gateway, eventually, try_serve};

const SECRET: &str = "geheim99";

/// What a start says that ends with it.
#[track_caller]
fn refused(config: &str) -> String {
    let ended = try_serve(tempfile::tempdir().expect("a folder").path(), config);
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert_eq!(ended.status.code(), Some(2), "{said}");
    assert!(!said.contains(SECRET), "{said}");
    said
}

#[test]
fn what_is_wrong_with_redis_is_told_with_its_address_and_setting() {
    let tls_port = free_port().to_string();
    let files = tempfile::tempdir().expect("a folder");
    let (cert, key) = (files.path().join("cert"), files.path().join("key"));
    Certificate::for_name("localhost").write(&cert, &key);
    let stranger = files.path().join("stranger");
    Certificate::for_name("localhost").write(&stranger, &files.path().join("other"));
    let [cert, key] = [cert, key].map(|file| file.display().to_string());
    let tls = ["--tls-cert-file", &cert, "--tls-key-file", &key, "--tls-ca-cert-file", &cert];
    let port_option = ["--tls-auth-clients", "no", "--tls-port", &tls_port];
    let fleet = Fleet::on(Redis::start_on_port(&[&tls[..], &port_option].concat()));
    let url = fleet.redis.url();
    let address = url.trim_start_matches("redis://");
    let password = fleet.secret("password", SECRET);
    let told = |url: &str, more: &str, parts: &[&str]| {
        let config = fleet.config(&format!("on_start = \"fail\"\n{more}")).replace(&fleet.redis.url(), url);
        let said = refused(&config);
        for part in parts {
            assert!(said.contains(part), "no `{part}`: {said}");
        }
    };
    told("redis://127.0.0.1:1", "", &["`127.0.0.1:1`", "Connection refused", "`store.redis.urls`"]);
    told("redis://nowhere.invalid:7", "", &["`nowhere.invalid:7`", "lookup", "`store.redis.urls`"]);
    told(&format!("{url}/99"), "", &[&format!("`{address}/99`"), "DB index is out of range", "`store.redis.urls`"]);
    let login = format!("username = \"gate\"\npassword_file = {password:?}");
    told(&url, &login, &[address, "WRONGPASS", "`store.redis.password_file`"]);
    let tls_url = format!("rediss://localhost:{tls_port}");
    let tls_address = format!("`localhost:{tls_port}`");
    told(&tls_url, "", &[&tls_address, "certificate", "`store.redis.ca_file`"]);
    told(&tls_url, &format!("ca_file = {stranger:?}"), &[&tls_address, "certificate", "`store.redis.ca_file`"]);
    let not_tls = url.replace("redis://", "rediss://");
    told(&not_tls, "", &[address, "`store.redis.urls`"]);
    let not_plain = tls_url.replace("rediss://", "redis://");
    told(&not_plain, "", &[&tls_address, "`rediss://`", "`store.redis.urls`"]);
    fleet.redis.cli(&["config", "set", "requirepass", "x"]);
    told(&url, "", &[address, "NOAUTH", "`store.redis.password_file`"]);
    fleet.redis.cli(&["--no-auth-warning", "-a", "x", "config", "set", "requirepass", ""]);
    Gateway::start(&fleet.config(""));
    fleet.secret("record.key", &"00112233445566778899".repeat(4)[..64]);
    told(&url, "", &["another record key", "`store.redis.record_key_file`"]);
}

#[test]
fn a_right_that_is_missing_is_found_at_the_start() {
    let fleet = Fleet::new();
    let password = fleet.secret("password", SECRET);
    let login = format!("username = \"gate\"\npassword_file = {password:?}\n");
    let allow = |commands: &[&str]| {
        let secret = format!(">{SECRET}");
        let user = ["acl", "setuser", "gate", "reset", "on", &secret, "~wasmgate:*"];
        fleet.redis.cli(&[&user[..], commands].concat());
    };
    let all: Vec<_> = COMMANDS.split_whitespace().collect();
    for missing in &all {
        let rest: Vec<_> = all.iter().filter(|command| command != &missing).copied().collect();
        allow(&rest);
        let said = refused(&fleet.config(&format!("on_start = \"fail\"\n{login}")));
        assert!(said.contains("its ACL refuses"), "without {missing}: {said}");
        let detail = said.split("needs (").nth(1).and_then(|rest| rest.split("):").next()).expect("it says which");
        assert!(detail.contains(missing.trim_start_matches('+')), "without {missing}: {said}");
        assert!(said.contains(COMMANDS), "{said}");
    }
    assert_eq!(fleet.redis.cli(&["exists", "wasmgate:{r}:rights"]).trim(), "0");
    // One that is taken away later.
    allow(&all);
    let node = Gateway::start(&fleet.config(&login));
    allow(&all.iter().filter(|command| **command != "+zadd").copied().collect::<Vec<_>>());
    let new_key = serde_json::json!({"owner": "acme", "tier": "free", "scopes": ["proxy"]});
    node.admin("POST", "/api/auth/keys").json(&new_key).send().problem(503, "store-unavailable");
    let told = || node.log().lines().any(|line| line.contains("redis refuses a command") && line.contains("ACL"));
    eventually("it is told in the log", told);
}

#[test]
fn a_gateway_that_waits_says_for_what_and_again_when_that_changes() {
    let mut fleet = Fleet::new();
    fleet.redis.cli(&["config", "set", "requirepass", "x"]);
    let dir = tempfile::tempdir().expect("a folder");
    let (log, config) = (dir.path().join("log"), fleet.config(""));
    std::thread::scope(|scope| {
        let starts = scope.spawn(|| Gateway::start_in(dir, &config));
        let waits = |cause: &str| {
            let log = std::fs::read_to_string(&log).unwrap_or_default();
            log.lines().any(|line| line.contains("waiting for the store") && line.contains(cause))
        };
        eventually("it says that it lacks a password", || waits("NOAUTH"));
        fleet.redis.kill();
        eventually("it says that nobody listens", || waits("No such file") || waits("Connection refused"));
        fleet.redis.restart();
        let node = starts.join().expect("it starts");
        assert_eq!(node.admin("GET", "/health/ready").send().status, 200);
    });
}
