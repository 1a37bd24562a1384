//! A real redis-server of a test's own: on a socket in a folder of its own, every write on disk before it is acknowledged.
//!
//! Any Redis since 6.2, and Valkey: the one that `WASMGATE_TEST_REDIS` names, else the `redis-server` of the path.

use std::net::TcpListener;
use std::ops::Range;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use tempfile::TempDir;

use super::eventually;
use super::tls::Certificate;

/// Of a cluster.
pub const SLOTS: u32 = 16_384;

pub struct Redis {
    pub dir: TempDir,
    /// `None`: on a socket.
    port: Option<u16>,
    /// Beside those that all have.
    options: Vec<String>,
    child: Option<Child>,
}

impl Redis {
    pub fn start() -> Self {
        Self::begin(None, &[])
    }

    /// With a port beside the socket, and as another one's replica.
    pub fn start_on_port(options: &[&str]) -> Self {
        Self::begin(Some(free_port()), options)
    }

    /// Looks after `primary` under the name `main`, and makes a replica of it the primary after half a second.
    pub fn start_sentinel(primary: &Redis) -> Self {
        let (port, dir) = (free_port(), tempfile::tempdir().expect("a folder"));
        let watched = primary.port.expect("it has a port");
        let file = format!(
            "port {port}\nbind 127.0.0.1\nunixsocket {}\nsentinel monitor main 127.0.0.1 {watched} 1\n\
             sentinel down-after-milliseconds main 500\nsentinel failover-timeout main 3000\n",
            dir.path().join("redis.sock").display(),
        );
        let path = dir.path().join("sentinel.conf");
        std::fs::write(&path, file).expect("the folder is ours");
        let mut redis = Self { dir, port: Some(port), options: Vec::new(), child: None };
        redis.run(program().arg(path).arg("--sentinel"));
        eventually("the sentinel knows a replica", || redis.cli(&["sentinel", "replicas", "main"]).contains("name"));
        redis
    }

    /// On a socket, with further options.
    pub fn start_with(options: &[&str]) -> Self {
        Self::begin(None, options)
    }

    /// A cluster of one node, which has all slots.
    pub fn start_cluster() -> Self {
        let redis = Self::start_node();
        redis.take_slots(0..SLOTS);
        redis.wait_for_cluster();
        redis
    }

    /// A node that belongs to no cluster yet.
    pub fn start_node() -> Self {
        Self::begin(Some(free_node_port()), &["--cluster-enabled", "yes"])
    }

    /// As [`Self::start_node`], on a port under TLS alone.
    pub fn start_node_under_tls(files: &[&str]) -> Self {
        let port = free_node_port();
        let tls = ["--cluster-enabled", "yes", "--tls-cluster", "yes", "--port", "0", "--tls-port", &port.to_string()];
        Self::begin(Some(port), &[&tls, files].concat())
    }

    /// As a replica, in a cluster.
    pub fn follow(&self, primary: &Redis) {
        let id = primary.cli(&["cluster", "myid"]);
        eventually("it knows its primary", || self.cli(&["cluster", "replicate", id.trim()]).trim() == "OK");
        eventually("it replicates", || self.cli(&["info", "replication"]).contains("master_link_status:up"));
    }

    pub fn take_slots(&self, slots: Range<u32>) {
        let slots: Vec<_> = slots.map(|slot| slot.to_string()).collect();
        let taken = ["cluster", "addslots"].into_iter().chain(slots.iter().map(String::as_str));
        assert_eq!(self.cli(&taken.collect::<Vec<_>>()).trim(), "OK");
    }

    fn begin(port: Option<u16>, options: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let options = options.iter().map(|&option| option.to_owned()).collect();
        let mut redis = Self { dir, port, options, child: None };
        redis.restart();
        redis
    }

    /// In the same folder, with what is there.
    pub fn restart(&mut self) {
        self.kill();
        let mut command = program();
        command.args(["--save", "", "--appendonly", "yes", "--appendfsync", "always"]);
        command.arg("--dir").arg(self.dir.path()).arg("--unixsocket").arg(self.socket());
        command.args(["--bind", "127.0.0.1", "--port", &self.port.unwrap_or(0).to_string()]).args(&self.options);
        self.run(&mut command);
        if self.cli(&["cluster", "info"]).contains("cluster_slots_assigned:16384") {
            self.wait_for_cluster();
        }
    }

    /// As [`Self::restart`], with an option more.
    pub fn restart_with(&mut self, option: &str, value: &str) {
        self.options.extend([option.to_owned(), value.to_owned()]);
        self.restart();
    }

    fn run(&mut self, command: &mut Command) {
        let log = std::fs::File::create(self.dir.path().join("log")).expect("the folder is ours");
        let child = command.stdin(Stdio::null()).stdout(log).spawn();
        let missing = "no redis-server, which the tests of the Redis store need: `apt-get install redis-server`";
        self.child = Some(child.unwrap_or_else(|e| panic!("{missing} ({e})")));
        eventually("redis-server answers", || self.cli(&["ping"]).trim() == "PONG");
    }

    pub fn wait_for_cluster(&self) {
        eventually("the cluster is up", || self.cli(&["cluster", "info"]).contains("cluster_state:ok"));
    }

    fn socket(&self) -> std::path::PathBuf {
        self.dir.path().join("redis.sock")
    }

    pub fn url(&self) -> String {
        match self.port {
            Some(port) => format!("redis://127.0.0.1:{port}"),
            None => socket_url(&self.socket()),
        }
    }

    pub fn is_cluster(&self) -> bool {
        self.options.iter().any(|option| option == "--cluster-enabled")
    }

    pub fn port(&self) -> String {
        self.port.expect("it has a port").to_string()
    }

    /// Any bytes, which `redis-cli` has no arguments for.
    pub fn set(&self, key: &str, value: &[u8]) {
        use std::io::{Read, Write};
        let mut socket = std::os::unix::net::UnixStream::connect(self.socket()).expect("it listens");
        let head = format!("*3\r\n$3\r\nSET\r\n${}\r\n{key}\r\n${}\r\n", key.len(), value.len());
        socket.write_all(&[head.as_bytes(), value, b"\r\n"].concat()).expect("it reads");
        let mut answer = [0; 5];
        socket.read_exact(&mut answer).expect("it answers");
        assert_eq!(&answer, b"+OK\r\n");
    }

    /// What a command answers, as text.
    pub fn cli(&self, arguments: &[&str]) -> String {
        let out = Command::new("redis-cli").arg("-s").arg(self.socket()).args(arguments).output();
        let missing = "no redis-cli, which the tests of the Redis store need: `apt-get install redis-tools`";
        String::from_utf8_lossy(&out.expect(missing).stdout).into_owned()
    }

    /// As power that fails: nothing is written any more.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("the process is ours");
            child.wait().expect("it ends");
        }
    }

    /// It accepts connections, and says nothing.
    pub fn freeze(&self) {
        self.signal(libc::SIGSTOP);
    }

    pub fn thaw(&self) {
        self.signal(libc::SIGCONT);
    }

    pub fn is_running(&self) -> bool {
        self.child.is_some()
    }

    fn signal(&self, signal: libc::c_int) {
        let id = self.child.as_ref().expect("it runs").id();
        // SAFETY: the process is a child that has not been waited for, so its id is its own.
        let sent = unsafe { libc::kill(id.cast_signed(), signal) };
        assert_eq!(sent, 0, "{}", std::io::Error::last_os_error());
    }
}

/// What has a server show this certificate; clients need none.
pub fn tls_files(certificate: &Certificate, dir: &Path) -> Vec<String> {
    let (cert, key) = (dir.join("cert"), dir.join("key"));
    certificate.write(&cert, &key);
    let (cert, key) = (cert.display().to_string(), key.display().to_string());
    let files = [("cert-file", &*cert), ("key-file", &*key), ("ca-cert-file", &*cert), ("auth-clients", "no")];
    files.iter().flat_map(|(name, value)| [format!("--tls-{name}"), (*value).to_owned()]).collect()
}

/// The server that is tested against.
fn program() -> Command {
    Command::new(std::env::var_os("WASMGATE_TEST_REDIS").unwrap_or_else(|| "redis-server".into()))
}

/// Of a cluster's node, whose bus is 10,000 above. Below those that connections are given, so that none of them takes it, and
/// not among the buses.
fn free_node_port() -> u16 {
    let mut random = [0; 2];
    loop {
        getrandom::fill(&mut random).expect("there are random bytes");
        let port = 10_000 + u16::from_ne_bytes(random) % 10_000;
        if [port, port + 10_000].iter().all(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()) {
            return port;
        }
    }
}

pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port").port()
}

fn socket_url(socket: &Path) -> String {
    format!("unix://{}", socket.display())
}

impl Drop for Redis {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
            eprintln!("redis-server said:\n{log}");
        }
        self.kill();
    }
}

/// Passes on between a store and Redis, and cuts the connection when a commit has been done and before it is told, so many times.
pub struct Wire {
    pub url: String,
    pub cuts: Arc<AtomicU32>,
}

impl Wire {
    pub fn to(redis: &Redis) -> Self {
        use std::io::{Read, Write};
        use std::net::Shutdown;
        use std::os::unix::net::UnixStream;
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("redis://{}", listener.local_addr().unwrap());
        let (cuts, socket) = (Arc::new(AtomicU32::new(0)), redis.dir.path().join("redis.sock"));
        let armed = cuts.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let Ok(server) = UnixStream::connect(&socket) else { continue };
                let (mut from, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                let (armed, commits) = (armed.clone(), Arc::new(AtomicBool::new(false)));
                let (commit, is_armed) = (commits.clone(), armed.clone());
                std::thread::spawn(move || {
                    let (mut buffer, mut seen) = ([0; 65536], Vec::new());
                    while let Ok(n @ 1..) = from.read(&mut buffer) {
                        // A word may come in two parts.
                        seen = [&seen[seen.len().saturating_sub(3)..], &buffer[..n]].concat();
                        let is_commit = seen.windows(4).any(|word| word == b"EVAL");
                        commit.fetch_or(is_commit && is_armed.load(Ordering::SeqCst) > 0, Ordering::SeqCst);
                        if to.write_all(&buffer[..n]).is_err() {
                            break;
                        }
                    }
                    let _ = to.shutdown(Shutdown::Both);
                });
                let (mut from, mut to) = (server, client);
                std::thread::spawn(move || {
                    let mut buffer = [0; 65536];
                    while let Ok(n @ 1..) = from.read(&mut buffer) {
                        let unknown = buffer[..n].starts_with(b"-NOSCRIPT");
                        let take = |cuts: u32| cuts.checked_sub(1);
                        let is_cut = !unknown
                            && commits.load(Ordering::SeqCst)
                            && armed.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).is_ok();
                        if is_cut || to.write_all(&buffer[..n]).is_err() {
                            break;
                        }
                    }
                    let _ = to.shutdown(Shutdown::Both);
                });
            }
        });
        Self { url, cuts }
    }
}
