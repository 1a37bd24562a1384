//! `wasmgate serve`: opens the data directory, listens, and runs until it is told to stop.
//!
//! Invariant: whatever keeps the gateway from starting ends the process at once with exit code 2 and names the setting.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::quickstart;
use crate::app::{App, AppError, Opened, files, keys, nodes, tickers};
use crate::config::Config;
use crate::gateway::server::{self, Running};
use crate::{api, telemetry};

/// Usage or configuration.
const EXIT_CONFIG: u8 = 2;
/// After the drain, for blocking work that can be told to stop by nothing.
const LAST_WORK: Duration = Duration::from_secs(1);

#[derive(Args, Debug, Default)]
pub struct ServeArgs {
    /// Configuration file. Without it: the quickstart in the current folder, with a demo upstream, modules and key
    #[arg(short, long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Write the addresses as JSON to this file once everything listens
    #[arg(long, value_name = "PATH")]
    pub ready_file: Option<PathBuf>,
}

pub fn run(args: ServeArgs) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("background")
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(e) => return fail(format_args!("the background runtime can't start: {e}")),
    };
    let code = runtime.block_on(serve(args));
    // What is still under way on a blocking thread has had its time.
    runtime.shutdown_timeout(LAST_WORK);
    code
}

fn fail(message: impl std::fmt::Display) -> ExitCode {
    eprintln!("wasmgate: {message}");
    ExitCode::from(EXIT_CONFIG)
}

async fn serve(args: ServeArgs) -> ExitCode {
    // Taken before anything listens, so that no signal meets its default action.
    let mut signals = match Signals::new() {
        Ok(signals) => signals,
        Err(e) => return fail(format_args!("signals can't be handled: {e}")),
    };
    if let Some(path) = &args.ready_file
        && !parent_exists(path)
    {
        return fail(format_args!("`--ready-file`: the folder of `{}` does not exist", path.display()));
    }
    let start = async {
        match &args.config {
            Some(file) => start(file).await,
            None => start_quickstart().await,
        }
    };
    // It may wait for its store for long.
    let started = tokio::select! {
        started = start => started,
        () = signals.stop.told() => return ExitCode::SUCCESS,
    };
    let started = match started {
        Ok(started) => started,
        Err(e) => return fail(format_args!("{e:#}")),
    };
    if let Some(path) = &args.ready_file
        && let Err(e) = write_ready_file(path, &started)
    {
        return fail(format_args!("`--ready-file`: `{}`: {e}", path.display()));
    }
    started.app.shared.set_ready();
    if let Some(key) = &started.demo_key {
        let admin_token_file = &started.app.config().admin.token_file;
        let text = quickstart::welcome(started.running.proxy[0], started.running.admin, key, admin_token_file);
        // Nobody may be reading, and the gateway serves all the same.
        let _ = std::io::Write::write_all(&mut std::io::stdout(), text.as_bytes());
    }
    until_stopped(started, signals).await
}

struct Started {
    app: Arc<App>,
    running: Running,
    demo_key: Option<String>,
}

fn parent_exists(path: &Path) -> bool {
    match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => true,
        Some(parent) => parent.is_dir(),
        None => false,
    }
}

async fn start(file: &Path) -> anyhow::Result<Started> {
    let config = files::load(file).map_err(AppError::from)?;
    let logs = logs(&config)?;
    for warning in &config.warnings {
        tracing::warn!("{}", warning.in_file(&file.display().to_string()));
    }
    let app = App::open(config, Some(file.to_owned()), logs, std::env::current_exe()?).await?;
    let running = listen(&app)?;
    let token_file = app.config().admin.token_file.display().to_string();
    tracing::info!(proxy = ?running.proxy, admin = %running.admin, admin_token_file = token_file, "listening");
    Ok(Started { app, running, demo_key: None })
}

async fn start_quickstart() -> anyhow::Result<Started> {
    let demo = tokio::net::TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await?;
    let (config, held) = quickstart::config(demo.local_addr()?, &std::env::current_dir()?).map_err(AppError::from)?;
    let logs = logs(&config)?;
    let opened = Opened::open(config, std::env::current_exe()?).await?;
    let key = quickstart::prepare(&opened).await?;
    let app = opened.start(None, logs).await?;
    drop(held);
    let running = listen(&app)?;
    tokio::spawn(quickstart::serve_demo_upstream(demo));
    Ok(Started { app, running, demo_key: Some(key) })
}

fn logs(config: &Config) -> Result<telemetry::LogControl, AppError> {
    telemetry::init_logs(&config.log).map_err(|e| AppError::setting("log.level", e))
}

fn listen(app: &Arc<App>) -> Result<Running, AppError> {
    let services = api::services(app.clone());
    server::start(app.shared.clone(), services.tenant, services.admin)
        .map_err(|e| AppError::Setting { key: e.key, message: e.message })
}

/// Written whole and renamed into place, so that a reader never sees half of it.
fn write_ready_file(path: &Path, started: &Started) -> std::io::Result<()> {
    let config = started.app.config();
    let url = |tls: bool, address: &SocketAddr| format!("{}://{address}", if tls { "https" } else { "http" });
    let listeners = config.server.listeners.iter().zip(&started.running.proxy);
    let document = serde_json::json!({
        "pid": std::process::id(),
        "proxy": listeners.map(|(l, address)| url(l.tls.is_some(), address)).collect::<Vec<_>>(),
        "admin": url(config.admin.tls.is_some(), &started.running.admin),
        "demo_key": started.demo_key,
        "admin_token_file": config.admin.token_file,
    });
    let temporary = path.with_extension("tmp");
    std::fs::write(&temporary, format!("{document:#}\n"))?;
    std::fs::rename(temporary, path)
}

struct Signals {
    stop: Stop,
    hangup: Signal,
}

struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            stop: Stop { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? },
            hangup: signal(SignalKind::hangup())?,
        })
    }
}

impl Stop {
    async fn told(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

async fn until_stopped(started: Started, mut signals: Signals) -> ExitCode {
    let Started { app, running, .. } = started;
    let ticking = tokio::spawn(tickers::run(app.clone()));
    let beating = tokio::spawn(nodes::run(app.clone()));
    let counting = tokio::spawn(keys::run(app.clone()));
    loop {
        tokio::select! {
            () = signals.stop.told() => break,
            () = app.drain_asked() => break,
            // The outcome is logged and audited there.
            _ = signals.hangup.recv() => drop(app.reload("SIGHUP").await),
        }
    }
    tracing::info!("draining");
    let clean = running.drain().await;
    ticking.abort();
    beating.abort();
    counting.abort();
    app.shared.limiter.close().await;
    app.flush().await;
    app.leave().await;
    app.shared.engine.shutdown();
    if clean {
        tracing::info!("stopped");
    } else {
        tracing::warn!("stopped; requests that ran past `server.drain` were cut off");
    }
    ExitCode::SUCCESS
}
