//! `docker/` against the binary: every port, path, metric, name and verb that stands there is one that it has, and the files
//! agree with each other.
//!
//! Invariant: what is compared with is asked of the binary (a running gateway, `wasmgate check`, the parsed configuration),
//! of its manifest, or of the script that makes the secrets; no second list stands here.

mod files;
mod metrics;
mod promql;
mod redis;
mod running;
mod secrets;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::{Value, json};
use wasmgate::config::{self, Config};

use files::{
    at, compose, dockerfile, entries, gateways, list, manifest, named, number, pod, services, text, texts, yaml,
};

/// What a stop needs beside the drain: workers that end, counters that are written.
const END: u64 = 10;

fn config() -> Config {
    let text = files::read("wasmgate.toml");
    config::parse(&text, "wasmgate.toml", Path::new("/etc/wasmgate")).unwrap_or_else(|e| panic!("{e}"))
}

fn proxy_port() -> u64 {
    config().server.listeners[0].address.port().into()
}

fn admin_port() -> u64 {
    config().admin.address.port().into()
}

/// `45s`, `1m`.
fn seconds(text: &str) -> u64 {
    let (number, unit) = text.split_at(text.len() - 1);
    number.parse::<u64>().unwrap_or_else(|e| panic!("`{text}`: {e}")) * if unit == "m" { 60 } else { 1 }
}

fn set<T: Ord>(values: impl IntoIterator<Item = T>) -> BTreeSet<T> {
    values.into_iter().collect()
}

#[test]
fn the_image_is_of_this_binary_and_its_user_owns_the_data() {
    let image = dockerfile();
    let rust = concat!("rust:", env!("CARGO_PKG_RUST_VERSION"), "-");
    assert!(image.builder.starts_with(rust), "{} is not {rust}", image.builder);
    let label = format!("org.opencontainers.image.version=\"{}\"", env!("CARGO_PKG_VERSION"));
    assert!(image.get("LABEL").contains(&label), "{}", image.get("LABEL"));
    let binary = image.exec("ENTRYPOINT").remove(0);
    assert!(binary.ends_with(env!("CARGO_PKG_NAME")), "{binary}");
    let copies = image.all("COPY");
    assert!(copies.iter().any(|copy| copy.ends_with(&format!(" {binary}"))), "{copies:?}");
    assert_eq!(image.get("VOLUME"), files::DATA);
    let data = copies.iter().find(|copy| copy.ends_with(files::DATA)).expect("the volume's owner");
    assert!(data.contains(&format!("--chown={}", image.get("USER"))), "{data}");
    assert_eq!(image.get("STOPSIGNAL"), "SIGTERM");
    assert_eq!(image.get("EXPOSE"), format!("{} {}", proxy_port(), admin_port()));
    assert_eq!(config().data_dir, Path::new(files::DATA));
}

/// The manifest, and what it and the sources name.
#[test]
fn the_build_context_has_what_a_build_needs() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let ignored = files::read("Dockerfile.dockerignore");
    let taken: Vec<_> = ignored.lines().filter_map(|line| line.strip_prefix('!')).collect();
    assert!(ignored.lines().any(|line| line == "*"), "nothing but what is named");
    let manifest: toml::Table = std::fs::read_to_string(root.join("Cargo.toml")).unwrap().parse().unwrap();
    let patched = manifest["patch"]["crates-io"].as_table().expect("patches").values();
    let mut needed: BTreeSet<String> = patched.map(|p| p["path"].as_str().expect("a path").to_owned()).collect();
    needed.extend(included(&root.join("src"), root));
    let benches = manifest["bench"].as_array().expect("benches").iter();
    needed.extend(benches.map(|bench| format!("benches/{}.rs", bench["name"].as_str().expect("a name"))));
    needed.extend(["Cargo.toml", "Cargo.lock", "src"].map(str::to_owned));
    assert!(needed.len() > 3, "{needed:?}");
    for file in needed {
        assert!(root.join(&file).exists(), "`{file}`");
        let top = file.split('/').next().expect("a name");
        assert!(taken.contains(&top), "`{file}` is not in the build context");
    }
    let gone: Vec<_> = taken.iter().filter(|name| !root.join(name).exists()).collect();
    assert!(gone.is_empty(), "{gone:?}");
}

/// What the sources below `folder` include, from `root`.
fn included(folder: &Path, root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).expect("readable").flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(included(&path, root));
        } else if path.extension().is_some_and(|e| e == "rs") {
            let source = std::fs::read_to_string(&path).expect("UTF-8");
            let places = source.split("include_str!(\"").chain(source.split("include_bytes!(\"")).skip(1);
            let names = places.filter_map(|rest| rest.split_once("\")").map(|(name, _)| name));
            let files = names.filter_map(|name| folder.join(name).canonicalize().ok());
            found.extend(files.filter_map(|f| Some(f.strip_prefix(root).ok()?.to_str()?.to_owned())));
        }
    }
    found
}

#[test]
fn the_containers_of_compose_run_the_image_with_nothing_to_spare() {
    let (compose, image) = (compose(), dockerfile());
    let version = format!("wasmgate:{}", env!("CARGO_PKG_VERSION"));
    for (name, service) in services(&compose) {
        assert_eq!(service["read_only"], true, "{name}");
        assert_eq!(service["cap_drop"], json!(["ALL"]), "{name}");
        assert_eq!(service["security_opt"], json!(["no-new-privileges:true"]), "{name}");
        assert!(!text(&service["user"]).starts_with('0'), "{name}");
        for limit in ["cpus", "memory", "pids"] {
            at(service, &format!("/deploy/resources/limits/{limit}"));
        }
        let tag = text(&service["image"]).split_once(':').map(|(_, tag)| tag);
        assert!(tag.is_some_and(|tag| tag.starts_with(|c: char| c.is_ascii_digit() || c == 'v')), "{name}: {tag:?}");
        if service.get("build").is_some() {
            assert_eq!(service["image"], version, "{name}");
            assert_eq!(service["user"], image.get("USER"), "{name}");
            let writable = files::mounts(service).contains_key(files::DATA)
                || texts(&service["tmpfs"]).iter().any(|t| t.starts_with(&format!("{}:", files::DATA)));
            assert!(writable, "{name} has no {}", files::DATA);
            let config = image.exec("CMD").pop().expect("a file");
            assert!(files::mounts(service).contains_key(&config), "{name} has no {config}");
            assert!(
                seconds(text(&service["stop_grace_period"])) >= config_of(service).server.drain.as_secs() + END,
                "{name}"
            );
        }
        for port in service["ports"].as_array().into_iter().flatten() {
            assert!(text(port).starts_with("127.0.0.1:"), "{name} is published to all: {port}");
        }
        let networks = texts(&service["networks"]);
        assert!(networks.iter().all(|n| compose["networks"].get(n).is_some()), "{name}: {networks:?}");
        for (path, source) in files::mounts(service) {
            match source.strip_prefix("./") {
                Some(file) => assert!(files::folder().join(file).exists(), "{name}: {source} for {path}"),
                None => assert!(compose["volumes"].get(&source).is_some(), "{name}: no volume `{source}`"),
            }
        }
    }
}

/// The configuration that a service of the image runs.
fn config_of(service: &Value) -> Config {
    let mounts = files::mounts(service);
    let file = mounts["/etc/wasmgate/wasmgate.toml"].strip_prefix("./").expect("beside compose.yml");
    config::parse(&files::read(file), file, Path::new("/etc/wasmgate")).unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn composes_ports_and_names_are_those_of_the_configuration() {
    let compose = compose();
    let (gateways, services) = (gateways(&compose), services(&compose));
    let mut published = BTreeSet::new();
    for (name, gateway) in &gateways {
        assert_eq!(gateway["hostname"], **name);
        for port in texts(&gateway["ports"]) {
            let parts: Vec<_> = port.split(':').collect();
            assert_eq!(parts[2].parse(), Ok(proxy_port()), "{name}: {port}");
            assert!(published.insert(parts[1].to_owned()), "{port} twice");
        }
        let admin = text(at(gateway, "/environment/WASMGATE_ADMIN"));
        assert_eq!(admin, format!("https://localhost:{}", admin_port()));
        assert_eq!(texts(&gateway["networks"]), ["front", "store", "monitoring"]);
    }
    // Compose's services are the hosts of the configuration.
    let hosts = config().upstreams.iter().flat_map(|u| u.endpoints.clone()).map(|e| e.address).collect::<Vec<_>>();
    for address in hosts {
        let (host, port) = address.split_once(':').expect("host and port");
        let listener = config_of(services[host]).server.listeners[0].address;
        assert_eq!(port.parse(), Ok(listener.port()), "{address}");
        assert!(!listener.ip().is_loopback(), "{listener}");
    }
    let url = config().store.redis.expect("Redis").urls.remove(0);
    let (host, port) = url.strip_prefix("rediss://").and_then(|u| u.split_once(':')).expect("TLS, host and port");
    assert!(files::read("redis/redis.conf").lines().any(|line| line == format!("tls-port {port}")), "{url}");
    let conf = text(services[host]["command"].as_array().and_then(|c| c.last()).expect("its file"));
    assert!(files::mounts(services[host]).contains_key(conf), "{conf}");
    let listening = gateways.keys().map(|name| format!("{name}:{}", admin_port()));
    let prometheus = yaml("prometheus/prometheus.yml").remove(0);
    let job = &list(&prometheus["scrape_configs"])[0];
    assert_eq!(set(texts(at(job, "/static_configs/0/targets"))), set(listening), "those that are scraped");
    let secrets = files::secrets(&compose, services["prometheus"]);
    for file in [at(job, "/tls_config/ca_file"), at(job, "/authorization/credentials_file")] {
        assert!(secrets.contains_key(text(file)), "{file}");
    }
    let sources = yaml("grafana/provisioning/datasources/prometheus.yml").remove(0);
    assert_eq!(list(&sources["datasources"])[0]["url"], "http://prometheus:9090");
    let provider = yaml("grafana/provisioning/dashboards/wasmgate.yml").remove(0);
    let boards = text(at(&provider, "/providers/0/options/path"));
    assert_eq!(files::mounts(services["grafana"])[boards], "./grafana/dashboards");
    let password = text(at(services["grafana"], "/environment/GF_SECURITY_ADMIN_PASSWORD__FILE"));
    assert!(files::secrets(&compose, services["grafana"]).contains_key(password), "{password}");
}

#[test]
fn variables_are_those_that_the_binary_reads() {
    let read: BTreeSet<String> = sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
    assert!(read.contains("WASMGATE_TOKEN_FILE"), "{read:?}");
    let compose = compose();
    let mut named: Vec<(String, String)> = Vec::new();
    for (name, service) in services(&compose).into_iter().filter(|(_, service)| service.get("build").is_some()) {
        named.extend(service.get("environment").into_iter().flat_map(entries).map(|(n, _)| (n.into(), name.into())));
    }
    let container = named_container();
    let mounts: Vec<_> =
        list(&container["volumeMounts"]).iter().filter_map(|m| m.get("subPathExpr")).map(text).collect();
    let of_mounts = |name: &str| mounts.iter().any(|path| path.contains(&format!("$({name})")));
    let env = list(&container["env"]).iter().map(|v| text(&v["name"])).filter(|name| !of_mounts(name));
    named.extend(env.map(|name| (name.into(), "Kubernetes".into())));
    let image =
        dockerfile().all("ENV").into_iter().map(|v| v.split('=').next().unwrap().to_owned()).collect::<Vec<_>>();
    named.extend(image.into_iter().map(|name| (name, "Dockerfile".into())));
    // In prose and comments.
    for file in ["README.md", "Dockerfile", "compose.yml", "wasmgate.toml"] {
        let words = files::read(file);
        let words =
            words.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|w| w.starts_with("WASMGATE_"));
        named.extend(words.map(|word| (word.to_owned(), file.to_owned())));
    }
    assert!(named.len() > 4, "{named:?}");
    for (name, by) in named {
        assert!(read.contains(&name), "{by}: the binary does not read `{name}`, but {read:?}");
    }
    let secret =
        |name: &str| ["TOKEN", "PEPPER", "KEY", "PASSWORD"].iter().any(|s| name.contains(s)) && !name.contains("FILE");
    for (service, of) in services(&compose) {
        for (name, value) in of.get("environment").into_iter().flat_map(entries) {
            assert!(!secret(name), "{service}: a secret in the environment: {name}={value}");
        }
    }
}

/// The names of variables that the sources below `folder` ask for.
fn sources(folder: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir(folder).expect("readable").flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else {
            let source = std::fs::read_to_string(&path).unwrap_or_default();
            let asked = ["env::var(\"", "env::var_os(\""].map(|call| source.split(call).skip(1).collect::<Vec<_>>());
            let names = asked.iter().flatten().filter_map(|rest| rest.split('"').next());
            found.extend(names.map(str::to_owned));
        }
    }
    found
}

fn named_container() -> Value {
    named(&pod()["containers"], "wasmgate").clone()
}

#[test]
fn kubernetes_has_the_configuration_of_compose() {
    let map = manifest("ConfigMap", "wasmgate");
    assert_eq!(text(at(&map, "/data/wasmgate.toml")), files::read("wasmgate.toml"));
    let (image, container, pod) = (dockerfile(), named_container(), pod());
    assert_eq!(container["image"], format!("wasmgate:{}", env!("CARGO_PKG_VERSION")));
    assert_eq!(texts(&container["args"]), image.exec("CMD"));
    let user = format!("{}:{}", at(&pod, "/securityContext/runAsUser"), at(&pod, "/securityContext/runAsGroup"));
    assert_eq!(user, image.get("USER"));
    assert_eq!(at(&pod, "/securityContext/fsGroup"), at(&pod, "/securityContext/runAsGroup"));
    let ports: BTreeMap<_, _> =
        list(&container["ports"]).iter().map(|p| (text(&p["name"]).to_owned(), number(&p["containerPort"]))).collect();
    assert_eq!(ports, BTreeMap::from([("http".into(), proxy_port()), ("admin".into(), admin_port())]));
    assert_eq!(
        text(at(named(&container["env"], "WASMGATE_ADMIN"), "/value")),
        format!("https://localhost:{}", admin_port())
    );
    // Every volume is mounted, and every mount is one of them.
    let mounted = |container: &Value| {
        list(&container["volumeMounts"]).iter().map(|m| text(&m["name"]).to_owned()).collect::<Vec<_>>()
    };
    let used = set(mounted(&container));
    assert_eq!(used, set(list(&pod["volumes"]).iter().map(|v| text(&v["name"]).to_owned())));
    let path = |name: &str| text(&named(&container["volumeMounts"], name)["mountPath"]).to_owned();
    assert_eq!(path("data"), files::DATA);
    let config = image.exec("CMD").pop().expect("a file");
    assert_eq!(Path::new(&config).parent(), Some(Path::new(&path("config"))));
    assert_eq!(at(named(&pod["volumes"], "config"), "/configMap/name"), "wasmgate");
    let room = text(at(named(&pod["volumes"], "data"), "/emptyDir/sizeLimit")).strip_suffix("Gi").expect("in GiB");
    assert!(
        room.parse::<u64>().expect("a number") << 30 > self::config().engine.artifact_disk_bytes,
        "{room} GiB for compiled modules"
    );
}

#[test]
fn kubernetes_names_are_those_of_the_certificates_and_of_the_admin_listener() {
    let compose = compose();
    let set_of = manifest("StatefulSet", "gateway");
    let (name, service) = (text(at(&set_of, "/metadata/name")), text(at(&set_of, "/spec/serviceName")));
    let pods = (0..number(at(&set_of, "/spec/replicas"))).map(|n| format!("{name}-{n}")).collect::<Vec<_>>();
    assert_eq!(set(pods.iter().map(String::as_str)), set(gateways(&compose).into_keys()), "one list of gateways");
    let namespace = text(at(&manifest("Namespace", "wasmgate"), "/metadata/name")).to_owned();
    assert!(files::manifests().iter().all(|m| m["kind"] == "Namespace" || m["metadata"]["namespace"] == *namespace));
    let long = pods.iter().map(|pod| format!("{pod}.{service}.{namespace}.svc"));
    assert_eq!(set(config().admin.allowed_hosts), set(pods.iter().cloned().chain(long)));
    let headless = manifest("Service", service);
    assert_eq!(at(&headless, "/spec/clusterIP"), "None");
    assert_eq!(number(at(&headless, "/spec/ports/0/port")), admin_port(), "a pod's name leads to the pod's own port");
    let labels = at(&set_of, "/spec/template/metadata/labels");
    let selectors = [at(&set_of, "/spec/selector/matchLabels"), at(&headless, "/spec/selector")];
    let others = [
        manifest("Service", "gateway"),
        manifest("PodDisruptionBudget", "gateway"),
        manifest("NetworkPolicy", "gateway"),
    ];
    assert!(selectors.iter().all(|s| *s == labels), "{selectors:?}");
    for (object, place) in
        others.iter().zip(["/spec/selector", "/spec/selector/matchLabels", "/spec/podSelector/matchLabels"])
    {
        assert_eq!(at(object, place), labels, "{}", object["kind"]);
    }
    let ports = named_container()["ports"].clone();
    for service in [&headless, &others[0]] {
        named(&ports, text(at(service, "/spec/ports/0/targetPort")));
    }
    assert!(number(at(&others[1], "/spec/maxUnavailable")) < pods.len() as u64);
}

#[test]
fn kubernetes_stops_a_gateway_only_after_its_drain() {
    let (pod, container) = (pod(), named_container());
    let pause = number(at(&container, "/lifecycle/preStop/sleep/seconds"));
    let drain = config().server.drain.as_secs();
    assert!(pause > 0 && number(&pod["terminationGracePeriodSeconds"]) >= pause + drain + END, "{pause} + {drain}");
    // It is known to be gone before it is: as long as readiness takes to fail, and some more.
    let ready = &container["readinessProbe"];
    assert!(pause > number(&ready["periodSeconds"]) * number(&ready["failureThreshold"]));
}

/// The profile `restricted` of Kubernetes' pod security standards, which the namespace enforces, and a read-only root.
#[test]
fn kubernetes_pods_are_restricted() {
    let pod = pod();
    let namespace = manifest("Namespace", "wasmgate");
    assert_eq!(namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"], "restricted");
    assert_eq!(at(&pod, "/securityContext/runAsNonRoot"), true);
    assert_eq!(at(&pod, "/securityContext/seccompProfile/type"), "RuntimeDefault");
    assert_eq!(pod["automountServiceAccountToken"], false);
    for container in list(&pod["containers"]) {
        let security = &container["securityContext"];
        assert_eq!(security["allowPrivilegeEscalation"], false, "{container:#}");
        assert_eq!(security["readOnlyRootFilesystem"], true);
        assert_eq!(at(security, "/capabilities/drop"), &json!(["ALL"]));
        at(container, "/resources/limits/memory");
    }
    let kinds: BTreeSet<_> =
        list(&pod["volumes"]).iter().flat_map(entries).map(|(k, _)| k.to_owned()).filter(|k| k != "name").collect();
    assert_eq!(kinds, set(["configMap", "emptyDir", "secret"].map(str::to_owned)));
}

#[test]
fn kubernetes_network_is_closed_but_for_what_the_configuration_needs() {
    let deny = manifest("NetworkPolicy", "default-deny");
    assert_eq!(at(&deny, "/spec/podSelector"), &json!({}));
    assert_eq!(at(&deny, "/spec/policyTypes"), &json!(["Ingress", "Egress"]));
    assert!(deny["spec"].get("ingress").is_none() && deny["spec"].get("egress").is_none(), "{deny:#}");
    let policy = manifest("NetworkPolicy", "gateway");
    let ports = |rule: &Value| list(&rule["ports"]).iter().map(|p| p["port"].clone()).collect::<Vec<_>>();
    let incoming = list(at(&policy, "/spec/ingress"));
    assert_eq!(incoming.iter().map(ports).collect::<Vec<_>>(), [vec![json!("http")], vec![json!("admin")]]);
    assert!(incoming[0].get("from").is_none() && incoming[1].get("from").is_some(), "the admin listener is for some");
    // By label of the pods behind a Service of that name: its host in the configuration, and the port.
    let outgoing = list(at(&policy, "/spec/egress")).iter().filter_map(|rule| {
        let app = rule.pointer("/to/0/podSelector/matchLabels/app.kubernetes.io~1name")?;
        Some(format!("{}:{}", text(app), number(&ports(rule)[0])))
    });
    let url = config().store.redis.expect("Redis").urls.remove(0);
    let store = url.split_once("://").expect("a URL").1.to_owned();
    let upstreams = config().upstreams.iter().flat_map(|u| u.endpoints.clone()).map(|e| e.address).collect::<Vec<_>>();
    assert_eq!(set(outgoing), set(upstreams.into_iter().chain([store])));
}
