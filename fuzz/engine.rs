//! An engine for the checks of an upload.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use wasmgate::config;
use wasmgate::domain::{Limits, NotLoadable, Tier};
use wasmgate::engine::{Engine, Inspected, Settings};

pub fn inspect(wasm: &[u8]) -> Result<Inspected, NotLoadable> {
    static ENGINE: OnceLock<(Arc<Engine>, Limits)> = OnceLock::new();
    let (engine, limits) = ENGINE.get_or_init(|| (open(), Tier::defaults().remove(1).limits));
    engine.inspect(wasm, None, 1 << 20, limits)
}

fn open() -> Arc<Engine> {
    let config = config::Engine {
        threads: 1,
        queue: 1,
        queue_timeout: Duration::from_secs(1),
        per_owner: 1,
        memory_budget_bytes: Some(16 << 20),
        vms_per_handler: 1,
        vm_requests: 1,
        artifact_cache_bytes: 1 << 20,
        artifact_disk_bytes: 1 << 20,
        compile: config::Compile {
            processes: 1,
            cpu: Duration::from_secs(1),
            per_mib: Duration::from_secs(1),
            memory_bytes: 1 << 30,
        },
        breaker: config::Breaker { failures: 0, window: Duration::ZERO, cool_down: Duration::ZERO },
    };
    let data_dir = tempfile::tempdir().expect("a temporary folder").keep();
    // Nothing is compiled here.
    let compiler_exe = "/bin/false".into();
    Engine::new(Settings { data_dir, artifact_key: [7; 32], compiler_exe, config }).expect("the engine starts")
}
