//! `secrets.sh`: what it makes, who may read it, and that it makes nothing twice.
//!
//! Invariant: the script runs for real, with the OpenSSL of this machine.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::config;
use super::files::{self, Secrets, compose, gateways, mode, ok, services};
use crate::support::gateway::run_to_end;
use crate::support::tls::Certificate;

fn all(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(folder).expect("readable").flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(all(&path));
        } else {
            found.insert(path.clone(), std::fs::read(&path).expect("readable"));
        }
    }
    found
}

fn vouched(authority: &Path, certificate: &Path, name: &str) -> bool {
    let mut openssl = Command::new("openssl");
    openssl.args(["verify", "-purpose", "sslserver", "-verify_hostname", name, "-CAfile"]);
    openssl.arg(authority).arg(certificate);
    run_to_end(openssl).status.success()
}

#[test]
fn secrets_are_made_once_and_are_their_owners_alone() {
    let secrets = Secrets::make();
    let trusted = secrets.file("./secrets/gateway/ca.pem");
    let with_another =
        std::fs::read_to_string(&trusted).expect("it was made") + &Certificate::authority("redis").cert_pem;
    std::fs::write(&trusted, with_another).expect("writable");
    let made = all(secrets.0.path());
    for (file, content) in &made {
        let is_public = file.extension().is_some_and(|e| e == "pem");
        assert_eq!(mode(file), if is_public { 0o644 } else { 0o600 }, "{}", file.display());
        assert!(!content.is_empty() || file.ends_with("prometheus/token"), "{} is empty", file.display());
    }
    assert_eq!(secrets.run(), "", "nothing is made twice");
    assert_eq!(all(secrets.0.path()), made);
    let other = Secrets::make();
    for (file, content) in all(other.0.path()) {
        let twin = secrets.0.path().join(file.strip_prefix(other.0.path()).expect("below"));
        let is_empty = content.is_empty();
        assert!(is_empty || made[&twin] != content, "{} is no secret", file.display());
    }
}

#[test]
fn compose_takes_what_the_script_makes_and_never_the_authoritys_key() {
    let (secrets, compose) = (Secrets::make(), compose());
    let mut users: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for (name, service) in services(&compose) {
        for (path, file) in files::secrets(&compose, service) {
            assert!(secrets.file(&file).exists(), "{name}: {path} from {file}");
            users.entry(file).or_default().push(name);
        }
    }
    assert!(users.keys().all(|file| !file.ends_with("ca.key")), "{users:?}");
    let unused: Vec<_> = files::entries(&compose["secrets"])
        .filter(|(_, secret)| !users.contains_key(files::text(&secret["file"])))
        .collect();
    assert!(unused.is_empty(), "{unused:?}");
    // Those of several containers are the fleet's own and the authority's certificate.
    for (file, users) in users.iter().filter(|(_, users)| users.len() > 1) {
        let fleet =
            users.iter().all(|user| gateways(&compose).contains_key(user)) && file.starts_with("./secrets/gateway/");
        assert!(fleet || file.ends_with("ca.pem"), "{file} of {users:?}");
    }
    let ignored = std::fs::read_to_string(files::folder().join(".gitignore")).expect("docker/.gitignore");
    assert!(ignored.lines().any(|line| line == "/secrets"), "secrets are not for the repository");
}

#[test]
fn certificates_are_for_the_names_in_use_and_renewed_in_time() {
    let secrets = Secrets::make();
    let authority = secrets.authority();
    let of = |gateway: &str| secrets.file(&format!("./secrets/admin/{gateway}.pem"));
    let hosts = config().admin.allowed_hosts;
    assert!(hosts.len() > 2, "{hosts:?}");
    for host in &hosts {
        let certificate = of(host.split('.').next().expect("a name"));
        assert!(vouched(&authority, &certificate, host), "{host}");
        assert!(vouched(&authority, &certificate, "localhost"), "health checks");
        assert!(!vouched(&authority, &certificate, "another"));
    }
    let url = config().store.redis.expect("Redis").urls.remove(0);
    let host = url.trim_start_matches("rediss://").split(':').next().expect("a host").to_owned();
    assert!(vouched(&authority, &secrets.file("./secrets/redis/redis.pem"), &host), "{url}");
    // One of another authority's, and one that ends too soon.
    let (old, key) = (of("gateway-0"), std::fs::read(secrets.file("./secrets/admin/gateway-0.key")).expect("its key"));
    std::fs::write(&old, Certificate::for_name("gateway-0").cert_pem).expect("writable");
    short(&secrets, "gateway-1");
    let said = secrets.run();
    assert_eq!(said.lines().count(), 2, "{said}");
    assert!(vouched(&authority, &old, "gateway-0"));
    assert_eq!(std::fs::read(secrets.file("./secrets/admin/gateway-0.key")).expect("its key"), key, "keys stay");
}

/// A certificate of the same authority's that ends in ten days.
fn short(secrets: &Secrets, gateway: &str) {
    let file = |name: &str| secrets.file(&format!("./secrets/{name}"));
    let request = secrets.0.path().join("request");
    let mut ask = Command::new("openssl");
    ask.args(["req", "-new", "-subj", "/CN=short", "-key"]).arg(file(&format!("admin/{gateway}.key")));
    ask.arg("-out").arg(&request);
    ok(run_to_end(ask));
    let mut sign = Command::new("openssl");
    sign.args(["x509", "-req", "-days", "10", "-set_serial", "1", "-in"]).arg(request);
    sign.arg("-CA").arg(file("ca/ca.pem")).arg("-CAkey").arg(file("ca/ca.key"));
    let shortened = ok(run_to_end(sign));
    std::fs::write(file(&format!("admin/{gateway}.pem")), shortened).expect("writable");
}
