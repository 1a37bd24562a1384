//! A real redis-server of a test's own: on a socket in a folder of its own, every write on disk before it is acknowledged.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use super::eventually;

pub struct Redis {
    pub dir: TempDir,
    /// `None`: on a socket.
    port: Option<u16>,
    child: Option<Child>,
}

impl Redis {
    pub fn start() -> Self {
        Self::begin(None)
    }

    /// A cluster of one node, which has all slots.
    pub fn start_cluster() -> Self {
        let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port");
        let redis = Self::begin(Some(free.port()));
        redis.cli(&["cluster", "addslotsrange", "0", "16383"]);
        redis.wait_for_cluster();
        redis
    }

    fn begin(port: Option<u16>) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let mut redis = Self { dir, port, child: None };
        redis.restart();
        redis
    }

    /// In the same folder, with what is there.
    pub fn restart(&mut self) {
        self.kill();
        let mut command = Command::new("redis-server");
        command.args(["--save", "", "--appendonly", "yes", "--appendfsync", "always", "--enable-debug-command", "yes"]);
        command.arg("--dir").arg(self.dir.path()).arg("--unixsocket").arg(self.socket());
        match self.port {
            // The bus of a cluster wants a port as well; nobody talks there.
            Some(port) => {
                let bus = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").port();
                command.args(["--bind", "127.0.0.1", "--port", &port.to_string()]);
                command.args(["--cluster-enabled", "yes", "--cluster-port", &bus.to_string()]);
            }
            None => drop(command.args(["--port", "0"])),
        }
        let log = std::fs::File::create(self.dir.path().join("log")).expect("the folder is ours");
        let child = command.stdin(Stdio::null()).stdout(log).spawn();
        let missing = "no redis-server, which the tests of the Redis store need: `apt-get install redis-server`";
        self.child = Some(child.unwrap_or_else(|e| panic!("{missing} ({e})")));
        eventually("redis-server answers", || self.cli(&["ping"]).trim() == "PONG");
        if self.cli(&["cluster", "info"]).contains("cluster_slots_assigned:16384") {
            self.wait_for_cluster();
        }
    }

    fn wait_for_cluster(&self) {
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
        self.port.is_some()
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

    fn signal(&self, signal: libc::c_int) {
        let id = self.child.as_ref().expect("it runs").id();
        // SAFETY: the process is a child that has not been waited for, so its id is its own.
        let sent = unsafe { libc::kill(id.cast_signed(), signal) };
        assert_eq!(sent, 0, "{}", std::io::Error::last_os_error());
    }
}

pub fn socket_url(socket: &Path) -> String {
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
