//! Whatever passes the checks of an upload takes fuel, and is still valid with it. Bytes that are no module are the choices
//! of a generator.
#![no_main]

#[path = "../engine.rs"]
mod engine;
#[path = "../../tests/it/support/smith.rs"]
mod smith;

use libfuzzer_sys::arbitrary::Unstructured;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let generated = || wasm_smith::Module::new(config(), &mut Unstructured::new(data)).ok().map(|m| m.to_bytes());
    let Some(wasm) = data.starts_with(b"\0asm").then(|| data.to_vec()).or_else(generated) else { return };
    if engine::inspect(&wasm).is_err() {
        return;
    }
    let instrumented = wasmgate::engine::fuzzing::instrument(&wasm, wasmgate::engine::Compiler::Fast).expect("what is valid takes fuel");
    wasmparser::Validator::new().validate_all(&instrumented).expect("it is valid with fuel");
});

fn config() -> wasm_smith::Config {
    wasm_smith::Config { max_imports: 0, max_memories: 1, min_exports: 1, export_everything: true, ..smith::config() }
}
