//! An engine for the checks of an upload.

use std::sync::{Arc, OnceLock};

use wasmgate::domain::{Limits, NotLoadable, Tier};
use wasmgate::engine::{Engine, Inspected, Settings};

pub fn inspect(wasm: &[u8]) -> Result<Inspected, NotLoadable> {
    static ENGINE: OnceLock<(Arc<Engine>, Limits)> = OnceLock::new();
    let (engine, limits) = ENGINE.get_or_init(|| (open(), Tier::defaults().remove(1).limits));
    engine.inspect(wasm, None, 1 << 20, limits)
}

fn open() -> Arc<Engine> {
    let data_dir = tempfile::tempdir().expect("a temporary folder").keep();
    let config = wasmgate::config::parse("", "defaults", &data_dir).expect("the defaults are valid").engine;
    // Nothing is compiled here.
    let compiler_exe = "/bin/false".into();
    Engine::new(Settings { data_dir, artifact_key: [7; 32], compiler_exe, config }).expect("the engine starts")
}
