//! The gateway under test: the real binary on free ports, with a data directory of its own.
//!
//! Invariant: the process ends with the test; its log is shown when the test fails.

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use super::http1::{Request, Response};
use super::{DEADLINE, poll};

/// The binary under test: this build's, or the one that `WASMGATE_BIN` names (a release build, an installed one).
pub fn binary() -> PathBuf {
    std::env::var_os("WASMGATE_BIN").map_or_else(|| env!("CARGO_BIN_EXE_wasmgate").into(), PathBuf::from)
}

pub struct Gateway {
    pub proxy: SocketAddr,
    /// Every proxy listener, in the order of the configuration.
    pub proxies: Vec<SocketAddr>,
    pub admin: SocketAddr,
    pub admin_token: String,
    pub ready: Value,
    pub dir: TempDir,
    child: Child,
}

impl Gateway {
    /// Starts `wasmgate serve -c` with this configuration. Missing sections are filled in: a data directory, one
    /// listener and the admin listener on free ports.
    #[track_caller]
    pub fn start(config: &str) -> Self {
        Self::start_in(TempDir::new().expect("a temporary folder"), config)
    }

    /// As `start`, in a folder that has files (certificates, secrets, an earlier store).
    #[track_caller]
    pub fn start_in(dir: TempDir, config: &str) -> Self {
        write_config(dir.path(), config);
        let mut command = serve_command(dir.path());
        let log = File::create(dir.path().join("log")).expect("the folder is writable");
        command.stdout(log.try_clone().expect("files clone")).stderr(log);
        let mut child = command.spawn().expect("the binary starts");
        let ready_file = dir.path().join("ready.json");
        let mut ended = None;
        poll(DEADLINE, || {
            ended = child.try_wait().expect("it is our child");
            ready_file.exists() || ended.is_some()
        });
        let ready = std::fs::read(&ready_file).ok().and_then(|text| serde_json::from_slice::<Value>(&text).ok());
        let Some(ready) = ready else {
            child.kill().ok();
            child.wait().ok();
            panic!("not ready ({ended:?}):\n{}", read_log(dir.path()));
        };
        let proxies: Vec<_> = ready["proxy"].as_array().expect("`proxy` is a list").iter().map(address).collect();
        let token_file = ready["admin_token_file"].as_str().expect("`admin_token_file` is a path");
        let admin_token = std::fs::read_to_string(dir.path().join(token_file)).expect("the admin token file");
        Self {
            proxy: proxies[0],
            proxies,
            admin: address(&ready["admin"]),
            admin_token: admin_token.trim().to_owned(),
            ready,
            dir,
            child,
        }
    }

    /// Starts without `handlers`, uploads what they need, then takes them over by a reload, as an operator would.
    #[track_caller]
    pub fn with_modules(config: &str, modules: &[(&str, &str, &[u8])], handlers: &str) -> Self {
        let gw = Self::start(config);
        for (module, abi, wasm) in modules {
            gw.upload(module, abi, wasm);
        }
        gw.write_config(&format!("{config}\n{handlers}"));
        gw.reload().expect(200);
        gw
    }

    pub fn reload(&self) -> Response {
        self.admin("POST", "/api/config/reload").send()
    }

    pub fn request(&self, method: &str, target: &str) -> Request {
        Request::new(self.proxy, method, target)
    }

    pub fn get(&self, target: &str) -> Request {
        self.request("GET", target)
    }

    pub fn post(&self, target: &str, body: impl Into<Vec<u8>>) -> Request {
        self.request("POST", target).body(body)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The processes that it has started and that have not ended.
    pub fn children(&self) -> Vec<u32> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.pid())).expect("it runs");
        let of = |task: PathBuf| std::fs::read_to_string(task.join("children")).unwrap_or_default();
        let pids =
            tasks.flatten().flat_map(|task| of(task.path()).split_whitespace().map(str::parse).collect::<Vec<_>>());
        pids.flatten().collect()
    }

    /// Sends a signal by name, such as `TERM`.
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").arg(format!("-{name}")).arg(self.pid().to_string()).status();
        assert!(status.is_ok_and(|s| s.success()), "kill -{name} {}", self.pid());
    }

    /// Waits for the process to end.
    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        super::eventually("the gateway ends", || {
            status = self.child.try_wait().expect("it is our child");
            status.is_some()
        });
        status.expect("it has ended")
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().is_ok_and(|s| s.is_none())
    }

    /// `kill -9`, then a new process on the same folder.
    pub fn restart(mut self, config: &str) -> Self {
        self.child.kill().expect("it is our child");
        self.child.wait().expect("it is our child");
        let empty = TempDir::new().expect("a temporary folder");
        let dir = std::mem::replace(&mut self.dir, empty);
        drop(self);
        std::fs::remove_file(dir.path().join("ready.json")).expect("it was ready");
        Self::start_in(dir, config)
    }

    /// Names of the artifacts of this compiler, `cranelift` or `cranelift-fast`.
    pub fn artifacts(&self, compiler: &str) -> Vec<String> {
        let files = std::fs::read_dir(self.dir.path().join("data/artifacts")).expect("it has artifacts").flatten();
        let names = files.map(|file| file.file_name().to_string_lossy().into_owned());
        names.filter(|name| name.rsplit('.').next() == Some(compiler)).collect()
    }

    /// Waits until every stored module has optimised code, then goes on in a new process: it begins with that code, so
    /// that no living VM is replaced by itself.
    #[track_caller]
    pub fn optimised(self, config: &str) -> Self {
        let done = poll(Duration::from_secs(300), || self.artifacts("cranelift-fast").is_empty());
        assert!(done, "not optimised: {:?}", self.artifacts("cranelift-fast"));
        self.restart(config)
    }

    pub fn log(&self) -> String {
        read_log(self.dir.path())
    }

    pub fn write_config(&self, config: &str) {
        write_config(self.dir.path(), config);
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<_> = log.lines().collect();
            let tail = &lines[lines.len().saturating_sub(80)..];
            eprintln!("--- the gateway's log (last lines)\n{}\n---", tail.join("\n"));
        }
    }
}

/// Runs `serve` to its end, for configurations that must be refused.
#[track_caller]
pub fn try_serve(dir: &Path, config: &str) -> Output {
    write_config(dir, config);
    run_to_end(serve_command(dir))
}

/// Runs a command that must end by itself. Its output goes through files, since a full pipe would hold it up.
#[track_caller]
pub fn run_to_end(mut command: Command) -> Output {
    let dir = TempDir::new().expect("a temporary folder");
    let (out, err) = (dir.path().join("stdout"), dir.path().join("stderr"));
    let create = |path: &Path| File::create(path).expect("the folder is writable");
    let mut child = command.stdout(create(&out)).stderr(create(&err)).spawn().expect("the binary starts");
    let mut status = None;
    poll(DEADLINE, || {
        status = child.try_wait().expect("it is our child");
        status.is_some()
    });
    let read = |path: &Path| std::fs::read(path).expect("it was written");
    let Some(status) = status else {
        child.kill().ok();
        child.wait().ok();
        panic!("still running:\n{}", String::from_utf8_lossy(&read(&err)));
    };
    Output { status, stdout: read(&out), stderr: read(&err) }
}

fn serve_command(dir: &Path) -> Command {
    let mut command = Command::new(binary());
    command.current_dir(dir).arg("serve").arg("-c").arg(dir.join("wasmgate.toml"));
    command.arg("--ready-file").arg(dir.join("ready.json"));
    command
}

/// In one step: a reload that is still under way reads the old file or the new one.
fn write_config(dir: &Path, config: &str) {
    let aside = dir.join("wasmgate.toml.new");
    std::fs::write(&aside, complete(dir, config)).expect("the folder is writable");
    std::fs::rename(aside, dir.join("wasmgate.toml")).expect("the folder is writable");
}

/// Adds what a test's configuration leaves out. Plain keys come first, tables last, as TOML wants it.
fn complete(dir: &Path, config: &str) -> String {
    let mut text = String::new();
    if !config.contains("data_dir") {
        text += &format!("data_dir = {:?}\n", dir.join("data"));
    }
    text += config;
    text.push('\n');
    if !config.contains("[[server.listeners]]") {
        text += "[[server.listeners]]\naddress = \"127.0.0.1:0\"\n";
    }
    if !config.contains("[admin]") {
        text += "[admin]\naddress = \"127.0.0.1:0\"\n";
    }
    text
}

fn read_log(dir: &Path) -> String {
    std::fs::read_to_string(dir.join("log")).unwrap_or_default()
}

fn address(url: &Value) -> SocketAddr {
    let url = url.as_str().expect("an address is text");
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.parse().unwrap_or_else(|e| panic!("`{url}` in the ready file: {e}"))
}
