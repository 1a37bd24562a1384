//! Compiling in a child process of the same binary: who gets one when, what goes in and what comes back.
//!
//! A compiler is a large program fed with a stranger's input. The child has none of our environment, no descriptors but
//! its three, limits of CPU time and address space, and dies at a deadline; all that comes back is an artifact or a
//! refusal.
//!
//! Invariant: the serving process never compiles.

use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdout};
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::domain::rejection::NotLoadableKind;
use crate::domain::{Digest, NotLoadable, OwnerId};

use super::progress::{Listed, Progress};
use super::turns::Turns;
use super::{Compiler, InstallError};

use processes::{Processes, Start};

mod child;
mod processes;

pub use child::child_main;

/// The hidden verb.
pub const VERB: &str = "__compile";
const MAGIC: [u8; 4] = *b"WGC1";
/// Magic, compiler, CPU seconds, CPU nanoseconds for a MiB of code (0: unbounded), address space bytes, module bytes.
const HEADER: usize = 4 + 1 + 8 + 8 + 8 + 8;
/// Verdict, bytes of what follows.
const ANSWER: usize = 1 + 8;
/// Why a module is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// It is uploaded or sent along.
    New,
    /// It is stored, and its artifact is gone.
    Again,
}

impl Why {
    /// How long it waits for a process. The caller of a new one is told to come back then; nobody could bring a stored
    /// one again.
    pub fn wait(self) -> Duration {
        Duration::from_secs(match self {
            Why::New => 5,
            Why::Again => 60,
        })
    }
}

/// Compiles that may wait for a process, for each process.
const QUEUE_PER_PROCESS: usize = 16;
/// Bytes of an artifact; 100 MiB modules at eleven times their size don't get through the CPU limit anyhow.
const MAX_ARTIFACT: u64 = 1 << 30;
/// A child that sleeps or is starved: this much wall time for each second of CPU time.
const WALL_PER_CPU: u32 = 3;

const DONE: u8 = 0;
const REFUSED: u8 = 1;

/// Starts children, so many at once.
pub struct Compilers {
    processes: Arc<Processes>,
    config: crate::config::Compile,
    turns: Turns,
    pub(super) progress: Progress,
    observer: OnceLock<Observer>,
    /// One process beside the others, for what nobody waits for.
    background: Semaphore,
}

/// Told how long each compile took, whatever came of it.
pub type Observer = Box<dyn Fn(Compiler, Duration) + Send + Sync>;

impl Compilers {
    pub fn new(exe: PathBuf, config: crate::config::Compile) -> Arc<Compilers> {
        let turns = Turns::new(config.processes, config.processes.max(1) * QUEUE_PER_PROCESS);
        Arc::new(Compilers {
            processes: Processes::new(exe),
            config,
            turns,
            progress: Progress::default(),
            observer: OnceLock::new(),
            background: Semaphore::new(1),
        })
    }

    /// The first one stays.
    pub fn observe(&self, observer: Observer) {
        let _ = self.observer.set(observer);
    }

    /// The artifact of a module that passed inspection, once there is a process for it. Dropping the future kills the
    /// process. `owner`: whose turn it takes, where it is not the gateway's own.
    pub async fn compile(
        &self,
        (digest, wasm): (Digest, &[u8]),
        compiler: Compiler,
        owner: Option<&OwnerId>,
        why: Why,
    ) -> Result<Bytes, InstallError> {
        let listed = self.progress.waits(digest, owner, compiler, wasm.len());
        let _turn = self.turns.take(owner, why.wait()).await.ok_or(InstallError::Busy)?;
        self.observed(&listed, wasm, compiler, why == Why::New && owner.is_some()).await
    }

    /// A turn with the process for what nobody waits for, after all who asked before.
    pub async fn background(&self) -> Result<Background<'_>, InstallError> {
        let permit = self.background.acquire().await.map_err(|_| InstallError::Busy)?;
        Ok(Background { compilers: self, _permit: permit })
    }

    /// `paced`: in a time that its size explains. What was compiled before need not show that again.
    async fn observed(
        &self,
        listed: &Listed<'_>,
        wasm: &[u8],
        compiler: Compiler,
        paced: bool,
    ) -> Result<Bytes, InstallError> {
        listed.runs();
        let deadline = self.config.cpu * WALL_PER_CPU + Duration::from_secs(1);
        let began = Instant::now();
        let compiled = match tokio::time::timeout(deadline, self.child(wasm, compiler, paced)).await {
            Ok(result) => result,
            // Dropping the future killed the child.
            Err(_) => Err(too_much("the compiler ran out of time").into()),
        };
        if let Some(observe) = self.observer.get() {
            observe(compiler, began.elapsed());
        }
        if compiled.is_ok() {
            self.processes.prepare();
        }
        compiled
    }

    async fn child(&self, wasm: &[u8], compiler: Compiler, paced: bool) -> Result<Bytes, InstallError> {
        let header = self.header(wasm, compiler, paced);
        // Nobody waits for better code.
        let waiting = if compiler == Compiler::Fast { self.processes.take() } else { None };
        if let Some(child) = waiting {
            match work(child, &header, wasm).await {
                // It can't be talked to, as when the runtime that started it has ended.
                Err(InstallError::Io(_)) => {}
                other => return other,
            }
        }
        let child = self.processes.start(Start::WithItsJob).await.map_err(|e| io("can't start", &e))?;
        work(child, &header, wasm).await
    }

    fn header(&self, wasm: &[u8], compiler: Compiler, paced: bool) -> Vec<u8> {
        let mut header = Vec::with_capacity(HEADER);
        header.extend_from_slice(&MAGIC);
        header.push(match compiler {
            Compiler::Fast => 0,
            Compiler::Optimising => 1,
        });
        header.extend_from_slice(&self.config.cpu.as_secs().max(1).to_le_bytes());
        let per_mib = if paced { self.config.per_mib } else { Duration::ZERO };
        let per_mib = u64::try_from(per_mib.as_nanos()).unwrap_or(u64::MAX);
        header.extend_from_slice(&per_mib.to_le_bytes());
        header.extend_from_slice(&self.config.memory_bytes.to_le_bytes());
        header.extend_from_slice(&(wasm.len() as u64).to_le_bytes());
        header
    }
}

/// Gives a process its job.
async fn work(mut child: Child, header: &[u8], wasm: &[u8]) -> Result<Bytes, InstallError> {
    let (Some(mut stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
        return Err(InstallError::Io("the compiler process has no pipes".into()));
    };
    let send = async move {
        // A child that dies early closes the pipe; its exit says why.
        let _ = stdin.write_all(header).await;
        let _ = stdin.write_all(wasm).await;
    };
    let ((), answer) = tokio::join!(send, receive(stdout));
    if let Some((verdict, body)) = answer.map_err(|e| io("can't read from", &e))? {
        // What the process does after its answer is nobody's business: it is killed as `child` is dropped.
        return match verdict {
            DONE => Ok(body.into()),
            _ => Err(too_much(&String::from_utf8_lossy(&body)).into()),
        };
    }
    let status = child.wait().await.map_err(|e| io("can't wait for", &e))?;
    // The time that code of its size takes is over; see `pace.rs`.
    Err(if status.signal() == Some(libc::SIGPROF) {
        too_much("it takes longer than its size explains (`engine.compile.per_mib`)").into()
    } else {
        too_much(&format!("the compiler ended with {status}, out of time or memory")).into()
    })
}

/// A verdict and what it is about; `None`: the process ended before it was through.
async fn receive(mut from: ChildStdout) -> std::io::Result<Option<(u8, Vec<u8>)>> {
    let mut header = [0; ANSWER];
    match from.read_exact(&mut header).await {
        Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    };
    let [verdict, len @ ..] = header;
    let len = u64::from_le_bytes(len);
    if len > MAX_ARTIFACT {
        return Ok(None);
    }
    // Apart from the header: Wasmer wants artifacts aligned as allocations are.
    let mut body = Vec::with_capacity(usize::try_from(len).unwrap_or(0));
    let read = from.take(len).read_to_end(&mut body).await?;
    Ok((read as u64 == len).then_some((verdict, body)))
}

fn io(what: &str, error: &std::io::Error) -> InstallError {
    InstallError::Io(format!("{what} the compiler process: {error}"))
}

fn too_much(why: &str) -> NotLoadable {
    NotLoadable::new(NotLoadableKind::CompileLimit, format!("the module can't be compiled: {why}"))
}

/// A turn in the background.
pub struct Background<'a> {
    compilers: &'a Compilers,
    _permit: SemaphorePermit<'a>,
}

impl Background<'_> {
    pub async fn compile(self, digest: Digest, wasm: &[u8]) -> Result<Bytes, InstallError> {
        let Background { compilers, .. } = self;
        let listed = compilers.progress.waits(digest, None, Compiler::Optimising, wasm.len());
        compilers.observed(&listed, wasm, Compiler::Optimising, false).await
    }
}
