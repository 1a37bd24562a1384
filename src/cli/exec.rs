//! `wasmgate exec`: run a module here, with the same engine and the same limits, offline.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use base64::Engine as _;
use bytes::Bytes;
use serde_json::json;

use super::{Failure, Outcome, bundle, modules, output};
use crate::config;
use crate::domain::{Abi, Limits};
use crate::engine::{Assets, Cancel, Engine, Finished, Input, Job, RunError, Settings};

const MAX_MODULE: u64 = 512 << 20;
const MIB: u64 = 1 << 20;

const EXIT_CODES: &str = "\
Exit code: 0 when the module ended with 0; 1 when it ended with another code (the message and --json's `exit_code`
tell which), failed or can't be loaded; 2 for a mistake in the arguments.";

#[derive(clap::Args)]
#[command(after_help = EXIT_CODES)]
pub(super) struct ExecArgs {
    /// WebAssembly, binary or text.
    module: PathBuf,
    /// Standard input.
    #[arg(long, conflicts_with = "input_file")]
    input: Option<String>,
    /// File with the standard input; `-`: ours.
    #[arg(long, value_name = "FILE")]
    input_file: Option<PathBuf>,
    /// `argv[1..]` of a command, arguments of a core function; may be repeated.
    #[arg(long = "arg", value_name = "ARG", allow_hyphen_values = true)]
    args: Vec<String>,
    /// `NAME=value`; may be repeated.
    #[arg(long = "env", value_name = "NAME=VALUE", value_parser = variable)]
    env: Vec<(String, String)>,
    /// Files that the module finds at `/`: a zip or tar archive, or a folder.
    #[arg(long, value_name = "FILE|FOLDER")]
    assets: Option<PathBuf>,
    /// Export to call; default: `_start`, `main` or `run`.
    #[arg(long)]
    function: Option<String>,
    /// `command`, `cgi` or `core`; default: what its shape says.
    #[arg(long)]
    abi: Option<Abi>,
    /// Fuel units, about one per instruction.
    #[arg(long, default_value_t = 1_000_000_000_000)]
    fuel: u64,
    /// Linear memory.
    #[arg(long, default_value_t = 1024, value_name = "MIB")]
    memory: u64,
    /// Wall time.
    #[arg(long, default_value_t = 60_000, value_name = "MS")]
    timeout: u64,
    /// Standard output.
    #[arg(long, default_value_t = 64, value_name = "MIB")]
    output: u64,
}

fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(format!("`{text}` is not a variable: use `NAME=value`")),
    }
}

pub(super) fn run(args: ExecArgs, as_json: bool) -> Outcome {
    let wasm = Bytes::from(modules::read_module(&args.module)?);
    let stdin = stdin(&args)?;
    let dir = TempDir::new()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let finished = runtime.block_on(execute(&args, &dir.0, wasm, stdin));
    // The data directory goes after the engine.
    drop(runtime);
    drop(dir);
    report(finished?, as_json)
}

fn stdin(args: &ExecArgs) -> Result<Bytes, Failure> {
    match (&args.input, &args.input_file) {
        (Some(text), _) => Ok(text.clone().into()),
        (None, Some(file)) if file.as_os_str() == "-" => {
            let mut bytes = Vec::new();
            std::io::stdin().lock().read_to_end(&mut bytes)?;
            Ok(bytes.into())
        }
        (None, Some(file)) => match std::fs::read(file) {
            Ok(bytes) => Ok(bytes.into()),
            Err(e) => Err(Failure::usage(format!("`--input-file {}`: {e}", file.display()))),
        },
        (None, None) => Ok(Bytes::new()),
    }
}

async fn execute(args: &ExecArgs, data_dir: &Path, wasm: Bytes, stdin: Bytes) -> Result<Finished, Failure> {
    let limits = Limits {
        fuel: args.fuel,
        memory_bytes: args.memory.saturating_mul(MIB),
        wall_ms: Duration::from_millis(args.timeout),
        input_bytes: stdin.len() as u64,
        output_bytes: args.output.saturating_mul(MIB),
        log_bytes: MIB,
        table_elements: 1_000_000,
        stack_bytes: Limits::STACK_BYTES,
        file_bytes: Limits::FILE_BYTES,
        instances: Limits::INSTANCES,
    };
    let mut artifact_key = [0u8; 32];
    getrandom::fill(&mut artifact_key).map_err(|e| anyhow!("no random bytes: {e}"))?;
    let compiler_exe = std::env::current_exe().context("the path of this program is unknown")?;
    let settings = Settings { data_dir: data_dir.to_owned(), artifact_key, compiler_exe, config: engine(&limits) };
    let engine = Engine::new(settings).map_err(|e| anyhow!(e))?;
    let inspected = engine
        .inspect(&wasm, args.abi, MAX_MODULE, &limits)
        .map_err(|e| anyhow!("`{}`: {e}", args.module.display()))?;
    if inspected.abi.is_filter() {
        let abi = inspected.abi;
        return Err(Failure::usage(format!(
            "modules of the ABI `{abi}` handle requests on a route; `exec` can't run one"
        )));
    }
    let assets = match &args.assets {
        Some(path) => Some(Assets::read(&bundle::read(path)?, MAX_MODULE).map_err(|e| anyhow!("{e}"))?),
        None => None,
    };
    let module = engine.load_inline(wasm, &inspected, None).await.map_err(|e| anyhow!("{e}"))?;
    let (argv, function_args) = match inspected.abi {
        Abi::Core => (Vec::new(), args.args.clone()),
        _ => (args.args.clone(), Vec::new()),
    };
    let input = Input {
        args: argv,
        env: args.env.clone(),
        stdin,
        entry: args.function.clone(),
        function_args,
        assets,
        ..Input::default()
    };
    let owner = "wasmgate".parse().map_err(|e: crate::domain::InvalidName| anyhow!(e))?;
    let job = Job { module, owner, label: Arc::from("exec"), limits, input, cancel: Cancel::default() };
    let finished = engine.run(job).await;
    engine.shutdown();
    Ok(finished)
}

/// One run of one module.
fn engine(limits: &Limits) -> config::Engine {
    config::Engine {
        threads: 1,
        queue: 1,
        queue_timeout: Duration::from_secs(1),
        per_owner: 1,
        // One owner's guests have half of it.
        memory_budget_bytes: Some(limits.memory_bytes.saturating_mul(2)),
        vms_per_handler: 1,
        vm_requests: 1,
        guest_log_lines: 100,
        artifact_cache_bytes: MAX_MODULE,
        artifact_disk_bytes: 10 << 30,
        compile: config::Compile {
            processes: 1,
            cpu: Duration::from_secs(120),
            per_mib: Duration::from_secs(2),
            memory_bytes: 4 << 30,
        },
        breaker: config::Breaker { failures: 0, window: Duration::ZERO, cool_down: Duration::ZERO },
    }
}

fn report(finished: Finished, as_json: bool) -> Outcome {
    let Finished { result, meter, stderr, .. } = finished;
    let figures = json!({
        "execution_time_ms": meter.wall_ms(),
        "cpu_ms": meter.cpu_ms(),
        "fuel": meter.fuel,
        "memory_peak_bytes": meter.memory_peak_bytes,
        "stderr": String::from_utf8_lossy(&stderr),
    });
    if as_json {
        let mut value = figures;
        let code = match &result {
            Ok(out) => {
                match std::str::from_utf8(&out.stdout) {
                    Ok(text) => value["output"] = json!(text),
                    Err(_) => {
                        let text = base64::engine::general_purpose::STANDARD.encode(&out.stdout);
                        value["output_base64"] = json!(text);
                    }
                }
                value["exit_code"] = json!(out.exit_code);
                value["status"] = json!(if out.exit_code == 0 { "ok" } else { "failed" });
                value["result"] = json!(out.result());
                u8::from(out.exit_code != 0)
            }
            Err(error) => {
                value["error"] = json!(error.to_string());
                code_of(error)
            }
        };
        output::json(&value)?;
        return Ok(ExitCode::from(code));
    }
    std::io::Write::write_all(&mut std::io::stderr(), &stderr)?;
    let out = result.map_err(|error| Failure { code: code_of(&error), error: error.into() })?;
    output::raw(&out.stdout)?;
    for value in &out.values {
        output::line(&value.to_string())?;
    }
    if out.exit_code == 0 {
        Ok(ExitCode::SUCCESS)
    } else {
        Err(anyhow!("the module exited with code {}", out.exit_code).into())
    }
}

fn code_of(error: &RunError) -> u8 {
    match error {
        RunError::BadCall(_) => 2,
        RunError::Guest(_) | RunError::Busy { .. } | RunError::Unread => 1,
    }
}

/// A directory of ours alone, removed at the end.
struct TempDir(PathBuf);

impl TempDir {
    fn new() -> anyhow::Result<Self> {
        let mut random = [0u8; 12];
        getrandom::fill(&mut random).map_err(|e| anyhow!("no random bytes: {e}"))?;
        let name: String = random.iter().map(|b| format!("{b:02x}")).collect();
        let path = std::env::temp_dir().join(format!("wasmgate-exec-{name}"));
        std::os::unix::fs::DirBuilderExt::mode(&mut std::fs::DirBuilder::new(), 0o700)
            .create(&path)
            .with_context(|| format!("`{}`: set TMPDIR to a directory that can be written", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            eprintln!("wasmgate: `{}` is left behind: {error}", self.0.display());
        }
    }
}
