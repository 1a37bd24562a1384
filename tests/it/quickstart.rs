//! The quickstart: `wasmgate` without arguments prints curl lines that work when pasted.

use std::fs::File;
use std::io::Read;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tempfile::TempDir;

use crate::support::gateway::binary;
use crate::support::{DEADLINE, poll};

/// Its ports are the same for all who have not taken them yet: one test at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Quickstart {
    child: Child,
    dir: TempDir,
}

impl Quickstart {
    /// In an empty folder, as a stranger would.
    fn start() -> Self {
        Self::start_in(TempDir::new().expect("a temporary folder"))
    }

    fn start_in(dir: TempDir) -> Self {
        let log = File::create(dir.path().join("log")).expect("the folder is writable");
        let mut command = Command::new(binary());
        command.current_dir(dir.path()).stdout(log.try_clone().expect("files clone")).stderr(log);
        let child = command.spawn().expect("the binary starts");
        let mut this = Self { child, dir };
        let mut ended = None;
        let ready = poll(DEADLINE, || {
            ended = this.child.try_wait().expect("it is our child");
            ended.is_some() || this.curls().len() >= 4
        });
        assert!(ready && ended.is_none(), "{ended:?}:\n{}", this.log());
        this
    }

    fn log(&self) -> String {
        let mut text = String::new();
        let file = File::open(self.dir.path().join("log"));
        file.and_then(|mut f| f.read_to_string(&mut text)).expect("the log is text");
        text
    }

    /// The printed commands; one may go on over several lines, each ending in a backslash, or be a shell loop.
    fn curls(&self) -> Vec<String> {
        let log = self.log().replace("\\\n", " ");
        let lines = log.lines().map(|l| l.trim().trim_start_matches("$ "));
        lines
            .filter(|l| l.starts_with("curl ") || (l.starts_with("for ") && l.contains("curl ")))
            .map(str::to_owned)
            .collect()
    }

    /// What a shell prints for a line.
    fn paste(&self, line: &str) -> String {
        let output = Command::new("sh").args(["-c", line]).current_dir(self.dir.path()).output().expect("sh runs");
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
    }

    fn file(&self, path: impl AsRef<Path>) -> bool {
        self.dir.path().join(path).exists()
    }
}

impl Drop for Quickstart {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
        if std::thread::panicking() {
            eprintln!("--- the quickstart's output\n{}\n---", self.log());
        }
    }
}

#[test]
fn the_four_printed_lines_do_what_they_say() {
    let _alone = alone();
    let quickstart = Quickstart::start();
    let curls = quickstart.curls();
    assert_eq!(curls.len(), 4, "{curls:#?}");
    let outputs: Vec<_> = curls.iter().map(|line| quickstart.paste(line)).collect();
    let shown = || curls.iter().zip(&outputs).map(|(c, o)| format!("$ {c}\n{o}\n")).collect::<String>();
    // Proxied and transformed; answered by a module; executed with input; over the tier's limit.
    assert!(outputs[0].contains("200"), "{}", shown());
    assert!(!outputs[1].is_empty() && !outputs[1].contains("/problems/"), "{}", shown());
    assert!(outputs[2].contains("output"), "{}", shown());
    assert!(outputs[3].contains("429"), "{}", shown());
    assert!(quickstart.file("data"), "the store is in the working folder");
}

#[test]
fn a_second_start_revokes_the_first_demo_key() {
    let _alone = alone();
    let first = Quickstart::start();
    let old = first.curls().remove(0);
    assert!(first.paste(&old).contains("200"), "{old}");
    let dir = {
        let mut first = first;
        first.child.kill().expect("it is our child");
        first.child.wait().expect("it is our child");
        std::mem::replace(&mut first.dir, TempDir::new().expect("a temporary folder"))
    };
    let second = Quickstart::start_in(dir);
    let key = |line: &str| line.split('\'').find(|w| w.starts_with("X-Api-Key")).expect("a key").to_owned();
    let with_old_key = second.curls()[0].replace(&key(&second.curls()[0]), &key(&old));
    assert!(second.paste(&with_old_key).contains("401"), "the previous key still works");
    assert!(second.paste(&second.curls()[0]).contains("200"));
}

#[test]
fn taken_ports_are_replaced_by_free_ones_and_it_says_so() {
    let _alone = alone();
    // Taken here, or by another process.
    let _taken = [8080, 9090].map(|port| TcpListener::bind(("127.0.0.1", port)));
    let quickstart = Quickstart::start();
    let log = quickstart.log();
    assert!(log.contains("127.0.0.1:8080 is in use") && log.contains("127.0.0.1:9090 is in use"), "{log}");
    let advice = log.lines().find(|l| l.contains("WASMGATE_ADMIN=")).unwrap_or_else(|| panic!("{log}"));
    assert!(quickstart.paste(&quickstart.curls()[0]).contains("200"), "{log}");
    let routes = quickstart.paste(&format!("{}; {} routes", advice.trim(), binary().display()));
    assert!(routes.contains("demo") && routes.contains("header"), "{routes}");
    assert!(!log.contains("not stored yet"), "{log}");
}
