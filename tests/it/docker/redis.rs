//! A real Redis with compose's configuration and the ACL file that the script makes.
//!
//! Invariant: the port is free when it is chosen, and another is taken when somebody was quicker; the process ends with the test.

use std::path::Path;
use std::process::{Child, Command, Output};

use tempfile::TempDir;

use super::config;
use super::files::{self, Secrets, at, compose, ok, services, text, texts};
use crate::support::gateway::run_to_end;
use crate::support::redis::free_port;
use crate::support::{DEADLINE, poll};

pub struct Redis {
    child: Child,
    pub port: u16,
    dir: TempDir,
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn spawn(dir: &Path, port: u16) -> Child {
    let conf = files::read("redis/redis.conf");
    let moved = |place: &str| dir.join(&place[1..]).to_str().expect("UTF-8").to_owned();
    let conf = conf.replace(files::SECRETS, &moved(files::SECRETS));
    let conf = conf.replace(&format!("dir {}", files::DATA), &format!("dir {}", moved(files::DATA)));
    std::fs::write(dir.join("redis.conf"), conf).expect("writable");
    let log = std::fs::File::create(dir.join("log")).expect("writable");
    let mut server = Command::new("redis-server");
    server.arg(dir.join("redis.conf")).args(["--bind", "127.0.0.1", "--tls-port", &port.to_string()]);
    server.stdout(log.try_clone().expect("files clone")).stderr(log).spawn().expect("redis-server starts")
}

impl Redis {
    pub fn start(secrets: &Secrets) -> Self {
        let dir = TempDir::new().expect("a temporary folder");
        secrets.mount(&compose(), "redis", dir.path());
        std::fs::create_dir(dir.path().join(&files::DATA[1..])).expect("writable");
        let acl = dir.path().join("run/secrets/users.acl");
        let users = std::fs::read_to_string(&acl).expect("it was made");
        std::fs::write(acl, users + "user test on nopass ~* +@all\n").expect("writable");
        let port = free_port();
        let mut redis = Self { child: spawn(dir.path(), port), port, dir };
        let mut tries = 1;
        while !redis.answers() {
            tries += 1;
            assert!(tries < 5, "{}", std::fs::read_to_string(redis.dir.path().join("log")).unwrap_or_default());
            redis.restart(free_port());
        }
        redis
    }

    /// `kill -9`, then a new process on the same folder.
    pub fn restart(&mut self, port: u16) {
        self.child.kill().expect("it is our child");
        self.child.wait().expect("it is our child");
        self.port = port;
        self.child = spawn(self.dir.path(), port);
    }

    /// It ends by itself, as at `docker compose stop`.
    pub fn shut_down(&mut self) {
        let _ = self.as_test(&["SHUTDOWN"]);
        assert!(poll(DEADLINE, || self.child.try_wait().expect("it is our child").is_some()), "it does not end");
    }

    /// Waits until it is healthy, or has ended.
    pub fn answers(&mut self) -> bool {
        let mut ended = false;
        let healthy = poll(DEADLINE, || {
            ended = self.child.try_wait().expect("it is our child").is_some();
            ended || self.healthy()
        });
        healthy && !ended
    }

    /// Compose's own check.
    fn healthy(&self) -> bool {
        let compose = compose();
        let test = texts(at(services(&compose)["redis"], "/healthcheck/test"));
        assert_eq!(test[..2], ["CMD", "redis-cli"]);
        self.cli(&test[2..]).status.success()
    }

    fn cli(&self, args: &[String]) -> Output {
        let authority = self.dir.path().join("run/secrets/ca.pem");
        let mut cli = Command::new("redis-cli");
        cli.args(["-p", &self.port.to_string()]);
        cli.args(args.iter().map(|arg| arg.replace("/run/secrets/ca.pem", authority.to_str().expect("UTF-8"))));
        run_to_end(cli)
    }

    /// By a user beside those of the ACL file, who may do all.
    fn as_test(&self, command: &[&str]) -> Output {
        let words = ["--tls", "--cacert", "/run/secrets/ca.pem", "--user", "test", "--pass", "x", "--no-auth-warning"];
        self.cli(&words.iter().chain(command).map(|s| (*s).to_owned()).collect::<Vec<_>>())
    }

    /// What Redis refused to whom, and how often; nothing when all may do what they did.
    pub fn refusals(&self) -> String {
        ok(self.as_test(&["ACL", "LOG"])).trim().to_owned()
    }

    /// What Redis says to whoever names no user, or its own, with this password.
    pub fn as_its_own_user(&self, password: Option<&str>) -> String {
        let login = password.map(|password| ["--user", "default", "--pass", password]);
        let words = ["--tls", "--cacert", "/run/secrets/ca.pem", "--no-auth-warning"];
        let words = words.iter().chain(login.iter().flatten()).chain(&["DBSIZE"]);
        let said = self.cli(&words.map(|s| (*s).to_owned()).collect::<Vec<_>>());
        String::from_utf8_lossy(&[said.stdout, said.stderr].concat()).into_owned()
    }

    /// A command as the gateways' user: its answer, or the error.
    fn ask(&self, password: &str, command: &[&str]) -> Result<String, String> {
        let user = config().store.redis.and_then(|r| r.username).expect("a user");
        let words = [
            "--tls",
            "--cacert",
            "/run/secrets/ca.pem",
            "--no-auth-warning",
            "-e",
            "--user",
            &user,
            "--pass",
            password,
        ];
        let args: Vec<String> = words.iter().chain(command).map(|s| (*s).to_owned()).collect();
        let output = self.cli(&args);
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if output.status.success() {
            Ok(said(&output.stdout))
        } else {
            Err(said(&output.stderr) + &said(&output.stdout))
        }
    }
}

#[test]
fn the_user_of_the_acl_file_may_do_what_a_gateway_does_and_nothing_else() {
    let secrets = Secrets::make();
    let redis = Redis::start(&secrets);
    let password = std::fs::read_to_string(secrets.file("./secrets/gateway/redis-password")).expect("it was made");
    let prefix = config().store.redis.expect("Redis").prefix;
    let key = |name: &str| format!("{prefix}:{{r}}:{name}");
    let (text, hash, list, set, sorted) = (key("text"), key("hash"), key("list"), key("set"), key("sorted"));
    let run = |command: &str| {
        let words: Vec<_> = command.split(' ').collect();
        redis.ask(password.trim(), &words)
    };
    let served = [
        format!("SET {text} abc PX 60000"),
        format!("GETRANGE {text} 0 1"),
        format!("MGET {text}"),
        format!("EXISTS {text}"),
        format!("PEXPIRE {text} 50000"),
        format!("HSET {hash} a 1"),
        format!("HGET {hash} a"),
        format!("HGETALL {hash}"),
        format!("HKEYS {hash}"),
        format!("HDEL {hash} a"),
        format!("RPUSH {list} a b"),
        format!("LINDEX {list} 0"),
        format!("LRANGE {list} 0 -1"),
        format!("LLEN {list}"),
        format!("LTRIM {list} 1 -1"),
        format!("SADD {set} a"),
        format!("SMEMBERS {set}"),
        format!("SREM {set} a"),
        format!("ZADD {sorted} 0 a"),
        format!("ZRANGEBYLEX {sorted} - + LIMIT 0 10"),
        format!("ZLEXCOUNT {sorted} - +"),
        format!("ZREM {sorted} a"),
        format!("EVAL return(redis.call('GET',KEYS[1])) 1 {text}"),
        format!("EVAL redis.call('SET',KEYS[1],1,'PX',9);return(redis.call('TIME')) 1 {text}"),
        format!("DEL {text}"),
        "SCRIPT LOAD return(1)".into(),
        "EVALSHA e0e1f9fabfc9d4800c877a703b823ac0578ff8db 0".into(),
        "TIME".into(),
        "WAIT 0 10".into(),
        "PING".into(),
        "INFO".into(),
        "HELLO 3".into(),
        "CLIENT ID".into(),
        "CLIENT SETNAME gateway".into(),
        format!("CLIENT TRACKING ON BCAST PREFIX {prefix}:"),
    ];
    for command in &served {
        match run(command) {
            // The SHA of another script: it was looked for.
            Err(said) if said.contains("NOSCRIPT") => {}
            other => drop(other.unwrap_or_else(|e| panic!("{command}: {e}"))),
        }
    }
    let refused = [
        "SET other 1",
        "GET other",
        "KEYS *",
        "SCAN 0",
        "RANDOMKEY",
        "DBSIZE",
        "FLUSHALL",
        "FLUSHDB",
        "SWAPDB 0 1",
        "CONFIG GET *",
        "CONFIG SET dir /tmp",
        "ACL LIST",
        "CLIENT LIST",
        "CLIENT KILL ID 1",
        "SHUTDOWN NOSAVE",
        "REPLICAOF NO ONE",
        "SCRIPT FLUSH",
        "FUNCTION LIST",
        "MODULE LIST",
        "MONITOR",
        "PUBLISH a b",
        "SUBSCRIBE a",
        "XADD a * b c",
    ];
    for command in refused {
        let said = run(command).expect_err(command);
        assert!(said.contains("NOPERM"), "{command}: {said}");
    }
    for script in ["EVAL return(redis.call('FLUSHALL')) 0", "EVAL return(redis.call('GET','other')) 0"] {
        assert!(run(script).expect_err(script).contains("can't"), "{script}");
    }
    assert!(redis.ask("wrong", &["PING"]).is_err());
    let health =
        ["--tls", "--cacert", "/run/secrets/ca.pem", "--no-auth-warning", "-e", "--user", "health", "--pass", "x"];
    let health: Vec<_> = health.iter().chain(&["GET", text.as_str()]).map(|s| (*s).to_owned()).collect();
    assert!(!redis.cli(&health).status.success());
}

#[test]
fn what_redis_has_answered_outlives_a_kill() {
    let secrets = Secrets::make();
    let mut redis = Redis::start(&secrets);
    let password = std::fs::read_to_string(secrets.file("./secrets/gateway/redis-password")).expect("it was made");
    let key = format!("{}:k", config().store.redis.expect("Redis").prefix);
    redis.ask(password.trim(), &["SET", &key, "kept"]).expect("written");
    redis.restart(redis.port);
    assert!(redis.answers());
    assert_eq!(redis.ask(password.trim(), &["GET", &key]).as_deref(), Ok("kept"));
    let compose = compose();
    let limit =
        text(at(services(&compose)["redis"], "/deploy/resources/limits/memory")).trim_end_matches('M').to_owned();
    let conf = files::read("redis/redis.conf");
    let own = conf.lines().find_map(|line| line.strip_prefix("maxmemory ")?.strip_suffix("mb")).expect("a bound");
    let (own, limit): (u32, u32) = (own.parse().expect("MiB"), limit.parse().expect("MiB"));
    assert!(own * 4 / 3 <= limit, "{own} of {limit} MiB: a rewrite of the log needs room, too");
    assert!(conf.lines().any(|line| line == "maxmemory-policy noeviction"), "no key may be evicted");
}
