//! What is in `docker/`, parsed, and the secrets as `secrets.sh` makes them.
//!
//! Invariant: YAML, JSON and TOML are read by their parsers; a place that is missing fails the test with its path.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

use crate::support::gateway::run_to_end;

/// Where containers find their secrets, and where their data is.
pub const SECRETS: &str = "/run/secrets";
pub const DATA: &str = "/data";

pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docker")
}

#[track_caller]
pub fn read(file: &str) -> String {
    let path = folder().join(file);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// All documents of a YAML file.
#[track_caller]
pub fn yaml(file: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(&read(file)).unwrap_or_else(|e| panic!("docker/{file}: {e}"))
}

#[track_caller]
pub fn compose() -> Value {
    yaml("compose.yml").remove(0)
}

/// Compose's services, by name.
pub fn services(compose: &Value) -> BTreeMap<&str, &Value> {
    entries(at(compose, "/services")).collect()
}

/// The services that run this fleet's configuration.
pub fn gateways(compose: &Value) -> BTreeMap<&str, &Value> {
    let runs = |service: &Value| mounts(service).get("/etc/wasmgate/wasmgate.toml") == Some(&"./wasmgate.toml".into());
    let found: BTreeMap<_, _> = services(compose).into_iter().filter(|(_, service)| runs(service)).collect();
    assert!(found.len() >= 3, "a fleet: {:?}", found.keys());
    found
}

/// Of a service's volumes: the place in the container, and what is there.
pub fn mounts(service: &Value) -> BTreeMap<String, String> {
    let volumes = service["volumes"].as_array().map(Vec::as_slice).unwrap_or_default();
    let parts = |volume: &Value| text(volume).split(':').map(str::to_owned).collect::<Vec<_>>();
    volumes.iter().map(parts).map(|mut parts| (parts.remove(1), parts.remove(0))).collect()
}

/// Of a service's secrets: the path in the container, and the file beside compose.yml.
pub fn secrets(compose: &Value, service: &Value) -> BTreeMap<String, String> {
    let used = service["secrets"].as_array().map(Vec::as_slice).unwrap_or_default();
    let path = |secret: &Value| format!("{SECRETS}/{}", text(&secret["target"]));
    let file = |secret: &Value| text(at(compose, &format!("/secrets/{}/file", text(&secret["source"])))).to_owned();
    used.iter().map(|secret| (path(secret), file(secret))).collect()
}

/// Every object of Kubernetes' manifests.
pub fn manifests() -> Vec<Value> {
    let files = std::fs::read_dir(folder().join("kubernetes")).expect("docker/kubernetes").flatten();
    let names = files.map(|file| format!("kubernetes/{}", file.file_name().to_string_lossy()));
    names.flat_map(|name| yaml(&name)).collect()
}

#[track_caller]
pub fn manifest(kind: &str, name: &str) -> Value {
    let found = manifests().into_iter().find(|m| m["kind"] == kind && m["metadata"]["name"] == name);
    found.unwrap_or_else(|| panic!("no {kind} `{name}` in docker/kubernetes"))
}

/// The gateways' pod.
pub fn pod() -> Value {
    at(&manifest("StatefulSet", "gateway"), "/spec/template/spec").clone()
}

#[track_caller]
pub fn at<'a>(value: &'a Value, place: &str) -> &'a Value {
    value.pointer(place).unwrap_or_else(|| panic!("nothing at `{place}` of {value:#}"))
}

#[track_caller]
pub fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("not text: {value}"))
}

#[track_caller]
pub fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("not a number: {value}"))
}

#[track_caller]
pub fn list(value: &Value) -> &[Value] {
    value.as_array().unwrap_or_else(|| panic!("not a list: {value}"))
}

#[track_caller]
pub fn texts(value: &Value) -> Vec<String> {
    list(value).iter().map(|v| text(v).to_owned()).collect()
}

#[track_caller]
pub fn entries(value: &Value) -> impl Iterator<Item = (&str, &Value)> {
    let map = value.as_object().unwrap_or_else(|| panic!("not a map: {value}"));
    map.iter().map(|(name, value)| (name.as_str(), value))
}

/// The member of a list whose `name` it is.
#[track_caller]
pub fn named<'a>(all: &'a Value, name: &str) -> &'a Value {
    list(all).iter().find(|v| v["name"] == name).unwrap_or_else(|| panic!("no `{name}` in {all:#}"))
}

/// The last of each instruction of the Dockerfile's final stage, and its first image.
pub struct Dockerfile {
    pub builder: String,
    instructions: Vec<(String, String)>,
}

pub fn dockerfile() -> Dockerfile {
    let text = read("Dockerfile").lines().filter(|l| !l.starts_with('#')).collect::<Vec<_>>().join("\n");
    let lines = text.replace("\\\n", " ");
    let mut instructions: Vec<(String, String)> = Vec::new();
    for line in lines.lines().filter(|l| !l.trim().is_empty()) {
        let (name, rest) = line.split_once(' ').expect("an instruction and its arguments");
        instructions.push((name.to_owned(), rest.split_whitespace().collect::<Vec<_>>().join(" ")));
    }
    let builder = instructions[0].1.clone();
    let last = instructions.iter().rposition(|(name, _)| name == "FROM").expect("a stage");
    Dockerfile { builder, instructions: instructions.split_off(last) }
}

impl Dockerfile {
    #[track_caller]
    pub fn get(&self, name: &str) -> &str {
        let found = self.instructions.iter().find(|(n, _)| n == name);
        &found.unwrap_or_else(|| panic!("no {name} in the final stage")).1
    }

    pub fn all(&self, name: &str) -> Vec<&str> {
        self.instructions.iter().filter(|(n, _)| n == name).map(|(_, rest)| rest.as_str()).collect()
    }

    /// The arguments in exec form, behind the options.
    #[track_caller]
    pub fn exec(&self, name: &str) -> Vec<String> {
        let rest = self.get(name);
        let json = &rest[rest.find('[').unwrap_or_else(|| panic!("{name} is not in exec form: {rest}"))..];
        serde_json::from_str(json).unwrap_or_else(|e| panic!("{name}: {e}"))
    }
}

/// A file of configuration, with `/run/secrets` and `/data` moved into `dir`.
pub fn moved(file: &str, dir: &Path) -> toml::Table {
    fn walk(value: &mut toml::Value, dir: &Path) {
        match value {
            toml::Value::String(path) if path == DATA || path.starts_with(SECRETS) => {
                *path = dir.join(&path[1..]).to_str().expect("UTF-8").to_owned();
            }
            toml::Value::Array(values) => values.iter_mut().for_each(|v| walk(v, dir)),
            toml::Value::Table(table) => table.iter_mut().for_each(|(_, v)| walk(v, dir)),
            _ => {}
        }
    }
    let mut table = toml::Value::Table(read(file).parse().unwrap_or_else(|e| panic!("docker/{file}: {e}")));
    walk(&mut table, dir);
    table.try_into().expect("it is a table")
}

/// The files of `/run/secrets` that the fleet's configuration names.
pub fn configured_secrets() -> BTreeSet<String> {
    fn walk(value: &toml::Value, found: &mut BTreeSet<String>) {
        match value {
            toml::Value::String(path) if path.starts_with(SECRETS) => drop(found.insert(path.clone())),
            toml::Value::Array(values) => values.iter().for_each(|v| walk(v, found)),
            toml::Value::Table(table) => table.values().for_each(|v| walk(v, found)),
            _ => {}
        }
    }
    let mut found = BTreeSet::new();
    walk(&read("wasmgate.toml").parse::<toml::Table>().expect("TOML").into(), &mut found);
    assert!(found.len() > 3, "{found:?}");
    found
}

/// What `secrets.sh` makes, in a folder of the test's own.
pub struct Secrets(pub TempDir);

impl Secrets {
    #[track_caller]
    pub fn make() -> Self {
        let made = Self(TempDir::new().expect("a temporary folder"));
        made.run();
        made
    }

    /// Runs the script; gives what it says that it made.
    #[track_caller]
    pub fn run(&self) -> String {
        let mut command = Command::new(folder().join("secrets.sh"));
        command.arg(self.0.path());
        ok(run_to_end(command))
    }

    /// The file that compose.yml calls `./secrets/...`.
    #[track_caller]
    pub fn file(&self, file: &str) -> PathBuf {
        let below = file.strip_prefix("./secrets/").unwrap_or_else(|| panic!("`{file}` is not in ./secrets"));
        self.0.path().join(below)
    }

    pub fn authority(&self) -> PathBuf {
        self.0.path().join("ca/ca.pem")
    }

    /// A service's `/run/secrets`, below `dir`.
    #[track_caller]
    pub fn mount(&self, compose: &Value, service: &str, dir: &Path) {
        for (path, file) in secrets(compose, services(compose)[service]) {
            let path = dir.join(&path[1..]);
            std::fs::create_dir_all(path.parent().expect("it has one")).expect("writable");
            let file = self.file(&file);
            std::fs::copy(&file, path).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        }
    }
}

pub fn mode(file: &Path) -> u32 {
    let meta = std::fs::metadata(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    meta.permissions().mode() & 0o777
}

#[track_caller]
pub fn ok(output: Output) -> String {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}\n{out}{err}", output.status);
    out.into_owned()
}
