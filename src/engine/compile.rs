//! Compiling in a child process of the same binary: instrument, compile, serialise.
//!
//! A compiler is a large program fed with a stranger's input. The child has none of our environment, no descriptors but
//! its three, limits of CPU time and address space, and dies at a deadline; all that comes back is an artifact or a
//! refusal.
//!
//! Invariant: the serving process never compiles.

use std::io::{Read, Write};
use std::num::NonZero;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;
use tokio::sync::{Semaphore, SemaphorePermit};
use wasmer::sys::{CompilerConfig, Cranelift, CraneliftOptLevel, EngineBuilder, NativeEngineExt};
use wasmer_types::Features;

use crate::domain::rejection::NotLoadableKind;
use crate::domain::{Digest, Limits, NotLoadable, OwnerId};

use super::instrument::instrument;
use super::pace::Pace;
use super::progress::{Listed, Progress};
use super::tunables::GuestTunables;
use super::turns::Turns;
use super::{Compiler, InstallError, sys};

/// The hidden verb.
pub const VERB: &str = "__compile";
const MAGIC: [u8; 4] = *b"WGC1";
/// Magic, compiler, CPU seconds, CPU nanoseconds for a MiB of code (0: unbounded), address space bytes, module bytes.
const HEADER: usize = 4 + 1 + 8 + 8 + 8 + 8;
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
const MAX_MESSAGE: usize = 512;
/// Address space that the child's allocator takes at once.
const ARENA_KIB: &str = "65536";

const DONE: u8 = 0;
const REFUSED: u8 = 1;

/// Starts children, so many at once.
pub struct Compilers {
    exe: PathBuf,
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
            exe,
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
        compiled
    }

    async fn child(&self, wasm: &[u8], compiler: Compiler, paced: bool) -> Result<Bytes, InstallError> {
        let io = |what: &str, e: std::io::Error| InstallError::Io(format!("{what} the compiler process: {e}"));
        let mut child = Command::new(&self.exe)
            .arg(VERB)
            .env_clear()
            // mimalloc would begin with a gigabyte of address space, which the child's limit is about.
            .env("MIMALLOC_ARENA_RESERVE", ARENA_KIB)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .map_err(|e| io("can't start", e))?;
        let (Some(mut stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(InstallError::Io("the compiler process has no pipes".into()));
        };
        let header = self.header(wasm, compiler, paced);
        let send = async move {
            // A child that dies early closes the pipe; its exit says why.
            let _ = stdin.write_all(&header).await;
            let _ = stdin.write_all(wasm).await;
        };
        let receive = async {
            let mut stdout = stdout.take(MAX_ARTIFACT);
            // Apart from the body: Wasmer wants artifacts aligned as allocations are.
            let verdict = stdout.read_u8().await.ok();
            let mut body = Vec::new();
            stdout.read_to_end(&mut body).await.map(|_| (verdict, body))
        };
        let ((), answer) = tokio::join!(send, receive);
        let (verdict, body) = answer.map_err(|e| io("can't read from", e))?;
        let status = child.wait().await.map_err(|e| io("can't wait for", e))?;
        match verdict {
            Some(DONE) if status.success() => Ok(body.into()),
            Some(REFUSED) if status.success() => Err(too_much(&String::from_utf8_lossy(&body)).into()),
            // The time that code of its size takes is over; see `pace.rs`.
            _ if status.signal() == Some(libc::SIGPROF) => {
                Err(too_much("it takes longer than its size explains (`engine.compile.per_mib`)").into())
            }
            _ => Err(too_much(&format!("the compiler ended with {status}, out of time or memory")).into()),
        }
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

/// What the hidden verb runs: one request from standard input, one answer to standard output. Gives the exit code.
pub fn child_main() -> i32 {
    sys::close_inherited();
    let answer = match read_request() {
        Ok(Request { compiler, per_mib, wasm }) => {
            let compiled = std::panic::catch_unwind(|| compile(&wasm, compiler, per_mib));
            compiled.unwrap_or_else(|_| Err("the compiler panicked".into()))
        }
        Err(e) => {
            let _ = writeln!(std::io::stderr(), "{e}");
            return 2;
        }
    };
    let (status, body) = match answer {
        Ok(artifact) => (DONE, artifact),
        Err(why) => (REFUSED, why.bytes().take(MAX_MESSAGE).collect()),
    };
    let mut out = std::io::stdout().lock();
    match out.write_all(&[status]).and_then(|()| out.write_all(&body)).and_then(|()| out.flush()) {
        Ok(()) => 0,
        Err(_) => 1,
    }
}

struct Request {
    compiler: Compiler,
    /// CPU time for a MiB of code.
    per_mib: Duration,
    wasm: Vec<u8>,
}

fn read_request() -> std::io::Result<Request> {
    let bad = || std::io::Error::new(std::io::ErrorKind::InvalidData, "this verb is the gateway's own");
    let mut input = std::io::stdin().lock();
    let mut header = [0u8; HEADER];
    input.read_exact(&mut header)?;
    let number = |at: usize| header[at..at + 8].try_into().map(u64::from_le_bytes).map_err(|_| bad());
    let compiler = match (header.starts_with(&MAGIC), header[4]) {
        (true, 0) => Compiler::Fast,
        (true, 1) => Compiler::Optimising,
        _ => return Err(bad()),
    };
    let (cpu, per_mib, memory, len) = (number(5)?, number(13)?, number(21)?, number(29)?);
    // Before the first byte of the module: nothing of it is looked at without limits.
    sys::set_limit(libc::RLIMIT_CPU, cpu)?;
    // On top of what the program itself occupies.
    sys::set_limit(libc::RLIMIT_AS, memory.saturating_add(sys::address_space()?))?;
    sys::set_limit(libc::RLIMIT_CORE, 0)?;
    sys::nice_this_thread(match compiler {
        // As guests: somebody waits for it.
        Compiler::Fast => 5,
        Compiler::Optimising => 19,
    });
    let mut wasm = Vec::new();
    input.take(len).read_to_end(&mut wasm)?;
    if wasm.len() as u64 != len {
        return Err(bad());
    }
    Ok(Request { compiler, per_mib: Duration::from_nanos(per_mib), wasm })
}

fn compile(wasm: &[u8], compiler: Compiler, per_mib: Duration) -> Result<Vec<u8>, String> {
    let instrumented = instrument(wasm).map_err(|e| e.to_string())?;
    let mut cranelift = Cranelift::new();
    cranelift.opt_level(match compiler {
        Compiler::Fast => CraneliftOptLevel::None,
        Compiler::Optimising => CraneliftOptLevel::Speed,
    });
    cranelift.num_threads(match compiler {
        // How many compile at once is the parent's choice; but somebody waits for this one.
        Compiler::Fast => const { NonZero::new(2).unwrap() },
        Compiler::Optimising => NonZero::<usize>::MIN,
    });
    if compiler == Compiler::Fast && !per_mib.is_zero() {
        cranelift.push_middleware(Arc::new(Pace::of(wasm, per_mib).map_err(|e| e.to_string())?));
    }
    let config: Box<dyn CompilerConfig> = Box::new(cranelift);
    let mut engine: wasmer::Engine = EngineBuilder::new(config).set_features(Some(features())).engine().into();
    engine.set_tunables(GuestTunables::new(Limits::STACK_BYTES));
    let module = wasmer::Module::new(&engine, instrumented).map_err(|e| e.to_string())?;
    module.serialize().map(|bytes| bytes.to_vec()).map_err(|e| e.to_string())
}

/// The same allow-list as inspection's; Wasmer has no switches for the rest of it.
fn features() -> Features {
    let mut features = Features::none();
    features.bulk_memory = true;
    features.multi_value = true;
    features.reference_types = true;
    features.simd = true;
    features.extended_const = true;
    features
}
