//! The compiler's processes: how one is started, and one that is started ahead.
//!
//! Starting a program of this size and meeting its pages for the first time makes a small module's compile take a tenth to a
//! quarter longer. So after a compile the next process is started, which waits for its job where it has everything at hand.
//!
//! Invariant: a process does one job and ends; at most one waits, and it has seen nothing of anybody's.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::process::{Child, Command};

/// The argument of a process that has no job yet.
pub const AHEAD: &str = "ahead";
/// Address space that the child's allocator takes at once.
const ARENA_KIB: &str = "65536";

pub struct Processes {
    exe: PathBuf,
    waiting: Mutex<Option<Child>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Start {
    WithItsJob,
    Ahead,
}

impl Processes {
    pub fn new(exe: PathBuf) -> Arc<Processes> {
        Arc::new(Processes { exe, waiting: Mutex::default() })
    }

    /// The one that waits.
    pub fn take(&self) -> Option<Child> {
        let mut waiting = self.waiting.lock().take()?;
        matches!(waiting.try_wait(), Ok(None)).then_some(waiting)
    }

    /// Away from the async workers: the calling thread stands still until the process has its program.
    pub async fn start(&self, how: Start) -> io::Result<Child> {
        let exe = self.exe.clone();
        tokio::task::spawn_blocking(move || start(&exe, how)).await.map_err(io::Error::other)?
    }

    /// Has one wait from now on.
    pub fn prepare(self: &Arc<Self>) {
        if self.waiting.lock().is_some() {
            return;
        }
        let processes = self.clone();
        tokio::spawn(async move {
            // Without one, the next compile starts its own and tells what is wrong.
            if let Ok(child) = processes.start(Start::Ahead).await {
                *processes.waiting.lock() = Some(child);
            }
        });
    }
}

fn start(exe: &Path, how: Start) -> io::Result<Child> {
    let mut command = Command::new(exe);
    command.arg(super::VERB);
    if how == Start::Ahead {
        command.arg(AHEAD);
    }
    command
        .env_clear()
        // mimalloc would begin with a gigabyte of address space, which the child's limit is about.
        .env("MIMALLOC_ARENA_RESERVE", ARENA_KIB)
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
}
