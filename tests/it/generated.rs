//! Modules that nobody wrote: valid ones, made from random bytes, through the whole way of an upload. `engine::generated`
//! has the same modules compared between compilers.
//!
//! `./scripts/fuzz` runs them for minutes. A module that fails is kept in a file that the message names.
//!
//! Invariant: a module follows from its kind and seed alone.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use arbitrary::Unstructured;
use wasm_encoder::{BlockType, Encode, Function, MemArg, MemArgTarget, RawSection, ValType};
use wasmparser::{Parser, Payload};

use crate::support::api::{self, Form};
use crate::support::toml::{route, tier, upstream};
use crate::support::{Gateway, Response, Upstream, smith, wat};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Computes: `check` calls `run` and gives a digest of its results, the memory and the globals.
    Core,
    /// Calls WASI with whatever arguments.
    Command,
    /// Calls http-wasm with whatever arguments, in every phase.
    Handler,
}

/// The arguments of `check`.
pub const ARGUMENTS: [(ValType, &str); 4] =
    [(ValType::I32, "7"), (ValType::I64, "-81985529216486896"), (ValType::F32, "0.5"), (ValType::F64, "-1e300")];

const CORE: &str = r#"(module (memory (export "memory") 1 16)
    (func (export "run") (param i32 i64 f32 f64) (result i64 f64) unreachable))"#;

const COMMAND: &str = r#"(module (memory (export "memory") 1 16) (func (export "_start") unreachable))"#;
const WASI: &str = r#"(module
    (import "wasi_snapshot_preview1" "args_get" (func (param i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "args_sizes_get" (func (param i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "environ_get" (func (param i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "environ_sizes_get" (func (param i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "clock_res_get" (func (param i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "clock_time_get" (func (param i32 i64 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_close" (func (param i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_fdstat_get" (func (param i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_filestat_get" (func (param i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_prestat_get" (func (param i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_prestat_dir_name" (func (param i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_read" (func (param i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_seek" (func (param i32 i64 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_write" (func (param i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "path_open" (func (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "path_filestat_get" (func (param i32 i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "poll_oneoff" (func (param i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "proc_exit" (func (param i32)))
    (import "wasi_snapshot_preview1" "random_get" (func (param i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "sched_yield" (func (result i32))))"#;

const HANDLER: &str = r#"(module (memory (export "memory") 1 16)
    (func (export "handle_request") (result i64) unreachable)
    (func (export "handle_response") (param i32 i32) unreachable))"#;
const HTTP: &str = r#"(module
    (import "http_handler" "enable_features" (func (param i32) (result i32)))
    (import "http_handler" "get_config" (func (param i32 i32) (result i32)))
    (import "http_handler" "log_enabled" (func (param i32) (result i32)))
    (import "http_handler" "log" (func (param i32 i32 i32)))
    (import "http_handler" "get_method" (func (param i32 i32) (result i32)))
    (import "http_handler" "set_method" (func (param i32 i32)))
    (import "http_handler" "get_uri" (func (param i32 i32) (result i32)))
    (import "http_handler" "set_uri" (func (param i32 i32)))
    (import "http_handler" "get_protocol_version" (func (param i32 i32) (result i32)))
    (import "http_handler" "get_header_names" (func (param i32 i32 i32) (result i64)))
    (import "http_handler" "get_header_values" (func (param i32 i32 i32 i32 i32) (result i64)))
    (import "http_handler" "set_header_value" (func (param i32 i32 i32 i32 i32)))
    (import "http_handler" "add_header_value" (func (param i32 i32 i32 i32 i32)))
    (import "http_handler" "remove_header" (func (param i32 i32 i32)))
    (import "http_handler" "read_body" (func (param i32 i32 i32) (result i64)))
    (import "http_handler" "write_body" (func (param i32 i32 i32)))
    (import "http_handler" "get_status_code" (func (result i32)))
    (import "http_handler" "set_status_code" (func (param i32)))
    (import "http_handler" "get_source_addr" (func (param i32 i32) (result i32))))"#;

pub fn module(kind: Kind, seed: u64) -> Vec<u8> {
    let (imports, exports) = match kind {
        Kind::Core => (None, CORE),
        Kind::Command => (Some(wat(WASI)), COMMAND),
        Kind::Handler => (Some(wat(HTTP)), HANDLER),
    };
    let config = wasm_smith::Config {
        max_imports: if imports.is_some() { 100 } else { 0 },
        available_imports: imports,
        exports: Some(wat(exports)),
        // Which bits a NaN has is the compiler's to choose.
        canonicalize_nans: kind == Kind::Core,
        // Some come further than to the first bad pointer.
        disallow_traps: seed.is_multiple_of(2),
        // There is the one that is exported.
        max_memories: 0,
        max_tables: 3,
        max_instructions: 400,
        ..smith::config()
    };
    let random = random(seed, 16 << 10);
    let module =
        wasm_smith::Module::new(config, &mut Unstructured::new(&random)).expect("no input is too short for it");
    match kind {
        Kind::Core => with_check(&module.to_bytes()),
        Kind::Command | Kind::Handler => module.to_bytes(),
    }
}

/// SplitMix64.
fn random(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)).to_le_bytes()
    };
    (0..length.div_ceil(8)).flat_map(|_| next()).collect()
}

/// Adds the export `check`: a type, a function, an export and a body at the end of their sections.
fn with_check(wasm: &[u8]) -> Vec<u8> {
    let (mut types, mut functions, mut run, mut globals) = (0, 0, 0, Vec::new());
    for payload in Parser::new(0).parse_all(wasm) {
        match payload.expect("it is valid") {
            Payload::TypeSection(section) => types = section.count(),
            Payload::FunctionSection(section) => functions = section.count(),
            Payload::GlobalSection(section) => {
                globals = section.into_iter().map(|global| global.expect("it is valid").ty.content_type).collect();
            }
            Payload::ExportSection(section) => {
                let mut exports = section.into_iter().map(|export| export.expect("it is valid"));
                run = exports.find(|export| export.name == "run").expect("it was asked for").index;
            }
            _ => {}
        }
    }
    let encoded = |item: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = Vec::new();
        item(&mut bytes);
        bytes
    };
    let added = |id: u8| match id {
        1 => Some(encoded(&|bytes| {
            bytes.push(0x60);
            ARGUMENTS.map(|(ty, _)| ty).encode(bytes);
            [ValType::I64].encode(bytes);
        })),
        3 => Some(encoded(&|bytes| types.encode(bytes))),
        7 => Some(encoded(&|bytes| {
            "check".encode(bytes);
            bytes.push(0);
            functions.encode(bytes);
        })),
        10 => Some(encoded(&|bytes| check(run, &globals).encode(bytes))),
        _ => None,
    };
    let mut out = wasm_encoder::Module::new();
    for payload in Parser::new(0).parse_all(wasm) {
        let Some((id, range)) = payload.expect("it is valid").as_section() else { continue };
        let data =
            &wasm[usize::try_from(range.start).expect("it is small")..usize::try_from(range.end).expect("it is small")];
        let data = added(id).map_or_else(|| data.to_vec(), |item| with_item(data, &item));
        out.section(&RawSection { id, data: &data });
    }
    out.finish()
}

/// A section's contents with one item more.
fn with_item(section: &[u8], item: &[u8]) -> Vec<u8> {
    let mut reader = wasmparser::BinaryReader::new(section, 0);
    let count = reader.read_var_u32().expect("it is valid");
    let mut data = Vec::new();
    (count + 1).encode(&mut data);
    data.extend_from_slice(&section[usize::try_from(reader.original_position()).expect("it is small")..]);
    data.extend_from_slice(item);
    data
}

fn check(run: u32, globals: &[wasmparser::ValType]) -> Function {
    const DIGEST: u32 = 4;
    const AT: u32 = 5;
    let mut function = Function::new([(1, ValType::I64), (1, ValType::I32)]);
    let mut code = function.instructions();
    for n in 0..DIGEST {
        code.local_get(n);
    }
    code.call(run).i64_reinterpret_f64().i64_xor().local_set(DIGEST);
    for (n, ty) in (0..).zip(globals) {
        match ty {
            wasmparser::ValType::I32 => code.global_get(n).i64_extend_i32_u(),
            wasmparser::ValType::I64 => code.global_get(n),
            wasmparser::ValType::F32 => code.global_get(n).i32_reinterpret_f32().i64_extend_i32_u(),
            wasmparser::ValType::F64 => code.global_get(n).i64_reinterpret_f64(),
            wasmparser::ValType::V128 => code.global_get(n).i64x2_extract_lane(0),
            wasmparser::ValType::Ref(_) => continue,
        };
        code.local_get(DIGEST).i64_const(31).i64_mul().i64_xor().local_set(DIGEST);
    }
    let word = MemArg { offset: 0, align: 3, target: MemArgTarget::Memory(0), ordering: None };
    code.block(BlockType::Empty).loop_(BlockType::Empty);
    code.local_get(AT).memory_size(0).i32_const(16).i32_shl().i32_ge_u().br_if(1);
    code.local_get(DIGEST)
        .local_get(AT)
        .i64_load(word)
        .i64_xor()
        .i64_const(0x100_0000_01b3)
        .i64_mul()
        .local_set(DIGEST);
    code.local_get(AT).i32_const(8).i32_add().local_set(AT).br(0).end().end();
    code.local_get(DIGEST).end();
    function
}

/// The seeds of a run: `count` fixed ones, or for `WASMGATE_FUZZ_SECONDS` as many as come from `WASMGATE_FUZZ_SEED` on.
pub fn seeds(count: u64) -> impl Iterator<Item = u64> {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a whole number"));
    let end = number("WASMGATE_FUZZ_SECONDS").map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let first = number("WASMGATE_FUZZ_SEED").unwrap_or(0);
    (first..).take_while(move |seed| end.map_or(seed - first < count, |end| Instant::now() < end))
}

/// Where a module that failed is kept.
pub fn keep(kind: Kind, seed: u64, wasm: &[u8]) -> PathBuf {
    let path =
        PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("generated-{kind:?}-{seed}.wasm").to_lowercase());
    std::fs::write(&path, wasm).expect("the target folder is writable");
    path
}

/// What may come of it; anything else is a fault of the gateway.
const ENDS: [(u16, &str); 8] = [
    (422, "compile-limit"),
    (502, "handler-trap"),
    (502, "handler-out-of-memory"),
    (502, "handler-output-too-large"),
    (502, "handler-invalid-response"),
    (502, "handler-exit-code"),
    (504, "handler-timeout"),
    (504, "handler-out-of-fuel"),
];

fn slug(answer: &Response) -> String {
    let doc: serde_json::Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    doc["type"].as_str().and_then(|t| t.strip_prefix("/problems/")).unwrap_or_default().to_owned()
}

#[test]
fn generated_modules_end_in_one_of_the_known_ways() {
    let up = Upstream::text("from the upstream");
    let bounds =
        "quotas = []\nmodules = 10000\nlimits.memory = \"4MiB\"\nlimits.wall = \"200ms\"\nlimits.output = \"64KiB\"";
    let config = api::config(&format!("{}{}", upstream("up", up.addr, ""), tier("fuzz", bounds)));
    let lines = "match.path_prefix = \"/handled\"\nauth = \"none\"\ntarget.upstream = \"up\"\n\
                 handlers = [{ module = \"acme/handler\", config = \"some text\", wall = \"200ms\" }]";
    let quiet = wat(HANDLER).to_vec();
    let mut gw = Gateway::with_modules(&config, &[("acme/handler", "http-wasm", &quiet)], &route("handled", lines));
    let key = gw.key_of("fuzz");
    let pid = gw.pid();
    let mut ends = BTreeMap::<String, u32>::new();
    for seed in seeds(20) {
        for kind in [Kind::Core, Kind::Command, Kind::Handler] {
            let wasm = module(kind, seed);
            for (what, answer) in through(&gw, &key, kind, &wasm) {
                let end = format!("{kind:?}, {what}: {} {}", answer.status, slug(&answer));
                let known = answer.status < 300 || ENDS.contains(&(answer.status, &slug(&answer)));
                // A handler may give any status of its own, but not a problem that is none of the gateway's.
                let own = what == "request" && slug(&answer).is_empty();
                assert!(known || own, "{end}, seed {seed}, {}: {answer}", keep(kind, seed, &wasm).display());
                *ends.entry(end).or_default() += 1;
            }
            assert!(gw.is_running(), "seed {seed}, {}", keep(kind, seed, &wasm).display());
        }
    }
    ends.iter().for_each(|(end, count)| println!("{count:>6} {end}"));
    assert_eq!(gw.pid(), pid);
    assert!(!gw.log().contains("panicked"), "a panic");
}

/// Uploaded and asked for: as a stored module, and inline or as the handler of a route.
fn through(gw: &Gateway, key: &str, kind: Kind, wasm: &[u8]) -> Vec<(&'static str, Response)> {
    if kind == Kind::Handler {
        let upload = gw.try_upload("acme/handler", "http-wasm", wasm);
        if let Some(version @ 2..) = upload.json()["version"].as_u64() {
            // There is a bound of versions.
            let before = format!("/api/wasm/modules/handler@{}?owner=acme", version - 1);
            gw.admin("DELETE", &before).send().expect(204);
        }
        let request = |method| gw.request(method, "/handled/path?query").header("X-One", "1").body("the body").send();
        return vec![("upload", upload), ("request", request("POST")), ("request", request("PUT"))];
    }
    let upload = gw.request("PUT", "/api/wasm/modules/generated?activate=true").key(key);
    let upload = upload.header("Content-Type", "application/wasm").body(wasm).send();
    let run = |form: Form| {
        let form = match kind {
            Kind::Core => {
                let arguments: Vec<_> = ARGUMENTS.iter().map(|(_, text)| *text).collect();
                form.field("function", "check").field("args", serde_json::to_string(&arguments).expect("text"))
            }
            _ => form.field("args", "[\"one\"]").field("input", "some input"),
        };
        gw.request("POST", "/api/wasm/execute").key(key).form(form.end()).send()
    };
    let mut answers = vec![("inline", run(Form::default().file("wasm", wasm)))];
    if upload.status < 300 {
        answers.push(("stored", run(Form::default().field("module", "generated"))));
        gw.request("DELETE", "/api/wasm/modules/generated").key(key).send().expect(204);
    }
    answers.push(("upload", upload));
    answers
}
