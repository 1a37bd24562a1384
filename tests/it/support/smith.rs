//! What generated modules are made of: nothing that an upload is refused for. The fuzz targets use this file as well.

pub fn config() -> wasm_smith::Config {
    wasm_smith::Config {
        max_memory32_bytes: 1 << 20,
        max_table_elements: 500,
        exceptions_enabled: false,
        gc_enabled: false,
        compact_imports_enabled: false,
        memory64_enabled: false,
        relaxed_simd_enabled: false,
        tail_call_enabled: false,
        threads_enabled: false,
        wide_arithmetic_enabled: false,
        ..wasm_smith::Config::default()
    }
}
