//! A gateway that runs the fleet's configuration, with the secrets that the script makes: what compose, Kubernetes and the
//! README do with it works.
//!
//! Invariant: of the configuration only ports and the addresses of Redis and the upstream are others here.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;
use toml::Value as Toml;

use super::files::{self, Secrets, at, compose, configured_secrets, gateways, list, named, ok, pod, text, texts, yaml};
use super::redis::Redis;
use super::{admin_port, dockerfile, named_container, services, set};
use crate::support::gateway::{binary, run_to_end};
use crate::support::tls::{self, Certificate};
use crate::support::{Gateway, Request, Response, eventually};

/// The demo upstream of compose.
fn app() -> Gateway {
    let dir = TempDir::new().expect("a temporary folder");
    let mut app = files::moved("app.toml", dir.path());
    listen(&mut app, "127.0.0.1:0");
    Gateway::start_in(dir, &app.to_string())
}

fn listen(config: &mut toml::Table, address: &str) {
    for listener in config["server"]["listeners"].as_array_mut().expect("listeners") {
        listener["address"] = address.into();
    }
}

/// What stands in the file, for processes on this machine; with the embedded store where there is no Redis.
pub fn local(dir: &Path, upstream: SocketAddr, redis: Option<u16>) -> toml::Table {
    let mut config = files::moved("wasmgate.toml", dir);
    listen(&mut config, "127.0.0.1:0");
    config["admin"]["address"] = "0.0.0.0:0".into();
    config["upstreams"][0]["endpoints"] = Toml::Array(vec![upstream.to_string().into()]);
    match redis {
        Some(port) => config["store"]["redis"]["urls"] = Toml::Array(vec![format!("rediss://localhost:{port}").into()]),
        None => drop(config.remove("store")),
    }
    config
}

/// What the containers' command line trusts.
fn ca_file() -> String {
    let file = text(at(named(&named_container()["env"], "WASMGATE_CA_FILE"), "/value")).to_owned();
    for (name, service) in gateways(&compose()) {
        assert_eq!(text(at(service, "/environment/WASMGATE_CA_FILE")), file, "{name}");
    }
    file
}

/// A verb's arguments, with the container's paths in `dir`.
fn arguments(args: &[String], dir: &Path) -> Vec<String> {
    let moved = |arg: &String| match arg.strip_prefix('/') {
        Some(path) if arg.starts_with(files::SECRETS) => dir.join(path).to_str().expect("UTF-8").to_owned(),
        _ => arg.clone(),
    };
    args.iter().map(moved).collect()
}

fn wasmgate_check(config: &toml::Table, dir: &Path) {
    let file = dir.join("checked.toml");
    std::fs::write(&file, config.to_string()).expect("writable");
    let mut check = Command::new(binary());
    check.arg("check").arg(&file);
    ok(run_to_end(check));
}

/// The files of a folder's `/run/secrets`, as the container names them.
fn mounted(dir: &Path) -> Vec<String> {
    let folder = dir.join(&files::SECRETS[1..]);
    let files = std::fs::read_dir(folder).expect("secrets").flatten();
    files.map(|file| format!("{}/{}", files::SECRETS, file.file_name().to_string_lossy())).collect()
}

#[test]
fn the_configuration_passes_the_check_with_composes_secrets() {
    let (secrets, compose) = (Secrets::make(), compose());
    for name in gateways(&compose).into_keys() {
        let dir = TempDir::new().expect("a temporary folder");
        secrets.mount(&compose, name, dir.path());
        assert_eq!(set(mounted(dir.path())), configured_secrets(), "{name}");
        let own = secrets.file(&format!("./secrets/admin/{name}.key"));
        let given = std::fs::read(dir.path().join("run/secrets/admin.key")).expect("its key");
        assert_eq!(given, std::fs::read(own).expect("it was made"), "{name} has a key of its own");
        wasmgate_check(&files::moved("wasmgate.toml", dir.path()), dir.path());
    }
    let dir = TempDir::new().expect("a temporary folder");
    wasmgate_check(&files::moved("app.toml", dir.path()), dir.path());
}

/// `kubectl create secret generic NAME --from-file=secrets/FOLDER` of the README.
fn kubernetes_secrets() -> BTreeMap<String, String> {
    let readme = files::read("README.md");
    let commands = readme.lines().filter_map(|line| line.split_once("create secret generic ")).map(|(_, rest)| rest);
    let parts = commands.filter_map(|rest| rest.split_once(" --from-file="));
    parts.map(|(name, folder)| (name.to_owned(), format!("./{folder}/"))).collect()
}

#[test]
fn the_configuration_passes_the_check_with_kubernetes_secrets() {
    let (secrets, pod, container) = (Secrets::make(), pod(), named_container());
    assert_eq!(at(named(&container["env"], "POD_NAME"), "/valueFrom/fieldRef/fieldPath"), "metadata.name");
    let made = kubernetes_secrets();
    for name in gateways(&compose()).into_keys() {
        let dir = TempDir::new().expect("a temporary folder");
        for mount in list(&container["volumeMounts"]) {
            let Some(secret) = named(&pod["volumes"], text(&mount["name"])).get("secret") else { continue };
            let path = mount.get("subPath").or_else(|| mount.get("subPathExpr")).expect("a file");
            let from = secrets.file(&made[text(&secret["secretName"])]).join(text(path).replace("$(POD_NAME)", name));
            let to = dir.path().join(&text(&mount["mountPath"])[1..]);
            std::fs::create_dir_all(to.parent().expect("a folder")).expect("writable");
            std::fs::copy(&from, &to).unwrap_or_else(|e| panic!("{}: {e}", from.display()));
            // As the kubelet leaves them, for `fsGroup`.
            std::fs::set_permissions(&to, std::fs::Permissions::from_mode(0o440)).expect("it is ours");
        }
        assert_eq!(set(mounted(dir.path())), configured_secrets(), "{name}");
        wasmgate_check(&files::moved("wasmgate.toml", dir.path()), dir.path());
    }
}

struct Fleet {
    gw: Gateway,
    others: Vec<Gateway>,
    redis: Redis,
    _app: Gateway,
    authority: Certificate,
}

impl Fleet {
    fn start() -> Self {
        let (secrets, compose, app) = (Secrets::make(), compose(), app());
        let redis = Redis::start(&secrets);
        let start = |name: &str| {
            let dir = TempDir::new().expect("a temporary folder");
            secrets.mount(&compose, name, dir.path());
            let config = local(dir.path(), app.proxy, Some(redis.port));
            Gateway::start_in(dir, &config.to_string())
        };
        let mut gateways: Vec<_> = gateways(&compose).into_keys().map(start).collect();
        let cert_pem = std::fs::read_to_string(secrets.authority()).expect("it was made");
        let authority = Certificate { cert_pem, key_pem: String::new() };
        Self { gw: gateways.remove(0), others: gateways, redis, _app: app, authority }
    }

    /// On the admin listener, over TLS that this fleet's authority vouches for.
    fn ask(&self, gw: &Gateway, method: &str, path: &str, host: &str, token: &str) -> Response {
        let mut conn = tls::connect(gw.admin, &self.authority).expect("a handshake");
        let request = Request::new(gw.admin, method, path).header("Host", host);
        conn.ask(request.header("Authorization", format!("Bearer {token}")).bytes())
    }

    /// Runs the binary as in a container of the image: in its folder, with these variables.
    fn run(&self, args: &[String], admin: &str) -> String {
        let mut command = Command::new(binary());
        command.args(arguments(args, self.gw.dir.path())).current_dir(self.gw.dir.path()).env("WASMGATE_ADMIN", admin);
        command.env("WASMGATE_CA_FILE", arguments(&[ca_file()], self.gw.dir.path()).remove(0));
        ok(run_to_end(command))
    }

    /// The URL of a container's admin listener, as it is here.
    fn url(&self, named: &str) -> String {
        named.replace(&format!(":{}", admin_port()), &format!(":{}", self.gw.admin.port()))
    }
}

#[test]
fn probes_and_health_checks_are_answered() {
    let fleet = Fleet::start();
    let container = named_container();
    for probe in ["startupProbe", "readinessProbe", "livenessProbe"] {
        let get = at(&container, &format!("/{probe}/httpGet"));
        assert_eq!([&get["port"], &get["scheme"]], ["admin", "HTTPS"], "{probe}");
        // As the kubelet asks: by the pod's address, without a token.
        let mut conn = tls::connect(fleet.gw.admin, &fleet.authority).expect("a handshake");
        let request = Request::new(fleet.gw.admin, "GET", text(&get["path"])).header("Host", "10.1.2.3:9090");
        conn.ask(request.bytes()).expect(200);
    }
    assert_ne!(at(&container, "/livenessProbe/httpGet/path"), at(&container, "/readinessProbe/httpGet/path"));
    for path in ["/health/live", "/health/ready"] {
        fleet.gw.get(path).send().expect(200);
    }
    let compose = compose();
    for (name, service) in gateways(&compose) {
        let test = texts(at(service, "/healthcheck/test"));
        assert_eq!(test[0], "CMD", "{name}: no shell");
        assert_eq!(test[1], dockerfile().exec("ENTRYPOINT")[0], "{name}");
        fleet.run(&test[2..], &fleet.url(text(at(service, "/environment/WASMGATE_ADMIN"))));
    }
}

/// With the default admin listener, as `docker run` of one gateway has it.
#[test]
fn the_images_own_health_check_works_in_its_folder() {
    let app = app();
    let test = dockerfile().exec("HEALTHCHECK");
    assert_eq!(test[0], dockerfile().exec("ENTRYPOINT")[0]);
    assert_eq!(dockerfile().get("WORKDIR"), "/", "`./data/admin.token` is the one in the volume");
    let mut command = Command::new(binary());
    command.args(&test[1..]).current_dir(app.dir.path()).env("WASMGATE_ADMIN", format!("http://{}", app.admin));
    ok(run_to_end(command));
}

#[test]
fn the_images_command_serves_the_configuration() {
    let dir = TempDir::new().expect("a temporary folder");
    let mut args = dockerfile().exec("CMD");
    let missing = dir.path().join(args.pop().expect("a file").trim_start_matches('/'));
    let mut command = Command::new(binary());
    command.args(args).arg(&missing);
    let ended = run_to_end(command);
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(said.contains(missing.to_str().expect("UTF-8")), "it was not looked for: {said}");
}

/// The verbs that the README runs in a container.
fn readme_verbs() -> Vec<Vec<String>> {
    let readme = files::read("README.md");
    let inside = readme.lines().filter(|line| line.contains(" exec ")).filter_map(|line| {
        let (_, rest) = line.split_once("gateway-0 ")?;
        let command = rest.trim_start_matches("-- ").strip_prefix("wasmgate ")?;
        Some(command.split(" |").next()?.split_whitespace().map(str::to_owned).collect())
    });
    inside.collect()
}

#[test]
fn what_the_readme_does_works() {
    let fleet = Fleet::start();
    let compose = compose();
    let admin = fleet.url(text(at(services(&compose)["gateway-0"], "/environment/WASMGATE_ADMIN")));
    let said: Vec<(String, String)> =
        readme_verbs().iter().map(|args| (args[0].clone(), fleet.run(args, &admin).trim().to_owned())).collect();
    let output =
        |verb: &str| &said.iter().find(|(v, _)| v == verb).unwrap_or_else(|| panic!("no `{verb}`: {said:?}")).1;
    assert!(output("health").starts_with("ready "), "{said:?}");
    for gw in [&fleet.gw].into_iter().chain(&fleet.others) {
        let answer = gw.get("/").key(output("key")).send().expect(200);
        assert_eq!(answer.text(), "hello from the app\n");
    }
    // Prometheus' token reads the metrics of each target and changes nothing.
    let token = output("token");
    let job = &list(&yaml("prometheus/prometheus.yml")[0]["scrape_configs"])[0].clone();
    assert_eq!(job["scheme"], "https");
    let path = job.get("metrics_path").map_or("/metrics", text);
    let mut targets = texts(at(job, "/static_configs/0/targets"));
    targets.extend(
        files::read("README.md")
            .split('`')
            .filter(|w| w.ends_with(&format!(".svc:{}", admin_port())))
            .map(str::to_owned),
    );
    assert!(targets.len() > 3, "{targets:?}");
    for (target, gw) in targets.iter().zip([&fleet.gw].into_iter().chain(&fleet.others).cycle()) {
        let scraped = fleet.ask(gw, "GET", path, target, token).expect(200);
        assert!(scraped.text().contains("# TYPE http_requests_total counter"), "{target}: {scraped}");
    }
    // By the address that was called, as pods are discovered, and by no other.
    fleet.ask(&fleet.gw, "GET", path, &fleet.gw.admin.to_string(), token).expect(200);
    fleet.ask(&fleet.gw, "GET", path, "10.1.2.3:9090", token).problem(421, "misdirected-request");
    fleet.ask(&fleet.gw, "GET", path, "gateway-0", "wg_admin_of_nobody").problem(401, "unauthorized");
    fleet.ask(&fleet.gw, "POST", "/api/config/reload", "gateway-0", token).problem(403, "forbidden");
}

/// Keys, tokens, tiers, modules, values, usage and the audit log, by a fleet: what none of it needs, the ACL file may refuse.
#[test]
fn a_fleet_needs_no_more_of_redis_than_the_acl_file_gives() {
    let fleet = Fleet::start();
    let url = format!("https://localhost:{}", fleet.gw.admin.port());
    let kept = fleet.gw.dir.path().join("kept.wat");
    std::fs::copy(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/command-upper/upper.wat"), &kept).expect("writable");
    let run = |verb: &str| {
        let words = verb.replace("FILE", kept.to_str().expect("UTF-8"));
        fleet.run(&words.split(' ').map(str::to_owned).collect::<Vec<_>>(), &url).trim().to_owned()
    };
    let key = run("key create --owner acme --tier pro");
    run("module push FILE --name upper --owner acme");
    for gw in [&fleet.gw].into_iter().chain(&fleet.others) {
        let body = serde_json::json!({"module": "upper", "input": "hi"});
        let ran = gw.request("POST", "/api/wasm/execute").key(&key).json(&body).send().expect(200);
        assert_eq!(ran.json()["output"], "HI");
    }
    let json = |verb: &str| serde_json::from_str::<serde_json::Value>(&run(&format!("{verb} --json"))).expect("JSON");
    let id = text(at(&json("key list"), "/keys/0/id")).to_owned();
    run("tier set free --concurrent 2");
    run("tier reset free");
    run("module limit acme/upper instances=2");
    run("module rm acme/upper");
    run("token list");
    run(&format!("key rotate {id}"));
    run(&format!("key revoke {id}"));
    eventually("the usage is in the store", || json("usage --owner acme")["rows"][0]["executions"] == 3);
    assert!(run("audit").contains("key"), "what was done");
    assert_eq!(fleet.redis.refusals(), "");
}

/// Every file and folder of this repository that the README names.
#[test]
fn the_readmes_files_are_there() {
    let (readme, secrets) = (files::read("README.md"), Secrets::make());
    let words = readme.split(['`', ' ', '\n', '(', ')', '=']).map(|w| w.trim_start_matches("./"));
    let mut seen = 0;
    for word in words {
        let word = word.trim_end_matches(['/', '.', ',', ':']);
        let place = match word.strip_prefix("secrets/") {
            Some(_) => secrets.file(&format!("./{word}")),
            None if [".yaml", ".yml", ".toml", ".sh", ".acl"].iter().any(|e| word.ends_with(e)) => {
                manifest_or_file(word)
            }
            None => continue,
        };
        assert!(place.exists(), "`{word}`");
        seen += 1;
    }
    assert!(seen > 15, "{seen}");
}

/// Kubernetes' files are named without their folder in its own chapter.
fn manifest_or_file(word: &str) -> PathBuf {
    let below = files::folder().join("kubernetes").join(word);
    if below.exists() { below } else { files::folder().join(word) }
}

/// Redis replays its file as its own user, which nobody can log in as ([redis#14541](https://github.com/redis/redis/issues/14541)).
#[test]
fn what_the_fleet_has_written_outlives_redis() {
    let mut fleet = Fleet::start();
    let url = format!("https://localhost:{}", fleet.gw.admin.port());
    let run = |fleet: &Fleet, verb: &str| {
        fleet.run(&verb.split(' ').map(str::to_owned).collect::<Vec<_>>(), &url).trim().to_owned()
    };
    let keys = |fleet: &Fleet| {
        let list = serde_json::from_str::<serde_json::Value>(&run(fleet, "key list --json")).expect("JSON");
        list["keys"].as_array().expect("a list").clone()
    };
    let good = run(&fleet, "key create --owner acme --tier pro");
    let mut revoked: Vec<String> = Vec::new();
    for ends_by_itself in [false, true] {
        // What is written just before.
        revoked.push(run(&fleet, "key create --owner acme --tier pro"));
        let id = |key: &serde_json::Value| text(&key["id"]).to_owned();
        let newest = keys(&fleet).iter().map(id).next_back().expect("a key");
        run(&fleet, &format!("key revoke {newest}"));
        let before = keys(&fleet);
        if ends_by_itself {
            fleet.redis.shut_down();
        }
        fleet.redis.restart(fleet.redis.port);
        assert!(fleet.redis.answers());
        // One that remembers nothing.
        let other = fleet.others.remove(0);
        let config = std::fs::read_to_string(other.dir.path().join("wasmgate.toml")).expect("its file");
        let other = other.restart(&config);
        other.get("/").key(&good).send().expect(200);
        for key in &revoked {
            other.get("/").key(key).send().problem(401, "unauthorized");
        }
        fleet.others.push(other);
        let token = &fleet.gw.admin_token;
        let is_back = || fleet.ask(&fleet.gw, "GET", "/api/auth/keys", "gateway-0", token).status == 200;
        eventually("the others find it again", is_back);
        assert_eq!(keys(&fleet), before);
        assert!(fleet.redis.as_its_own_user(None).contains("NOAUTH"));
        for password in ["", "x", "wasmgate", "default"] {
            assert!(fleet.redis.as_its_own_user(Some(password)).contains("WRONGPASS"), "`{password}`");
        }
    }
}
