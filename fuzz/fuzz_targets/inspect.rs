//! Bytes through the checks of an upload: a refusal or a shape, never a panic.
#![no_main]

#[path = "../engine.rs"]
mod engine;

libfuzzer_sys::fuzz_target!(|data: &[u8]| drop(engine::inspect(data)));
