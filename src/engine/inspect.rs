//! The checks of an upload that need no compiler: format, features, sizes, imports, exports, ABI.
//!
//! Invariant: what passes is valid under the allow-list of features, small enough for the compilers to bear, and
//! imports only functions that its ABI gives, with their signatures.

use wasmparser::{
    ExternalKind, FuncValidatorAllocations, FunctionBody, Operator, Parser, Payload, RefType, TypeRef, ValType,
    ValidPayload, Validator, WasmFeatures,
};

use crate::domain::module::{ExportShape, ImportShape};
use crate::domain::rejection::NotLoadableKind;
use crate::domain::{Abi, Limits, ModuleShape, NotLoadable};

use super::abi;

/// Exactly these; everything else is refused by name.
const ALLOWED: WasmFeatures = WasmFeatures::WASM1
    .union(WasmFeatures::BULK_MEMORY)
    .union(WasmFeatures::MULTI_VALUE)
    .union(WasmFeatures::REFERENCE_TYPES)
    .union(WasmFeatures::SIMD)
    .union(WasmFeatures::SIGN_EXTENSION)
    .union(WasmFeatures::SATURATING_FLOAT_TO_INT)
    .union(WasmFeatures::EXTENDED_CONST)
    // The halves of bulk memory and reference types that toolchains switch on by themselves.
    .union(WasmFeatures::BULK_MEMORY_OPT)
    .union(WasmFeatures::CALL_INDIRECT_OVERLONG);

/// Refused proposals, as they are named to the uploader.
const REFUSED: &[(WasmFeatures, &str)] = &[
    (WasmFeatures::THREADS, "threads and shared memory"),
    (WasmFeatures::MEMORY64, "64-bit memory"),
    (WasmFeatures::EXCEPTIONS, "exceptions"),
    (WasmFeatures::LEGACY_EXCEPTIONS, "exceptions"),
    (WasmFeatures::TAIL_CALL, "tail calls"),
    (WasmFeatures::MULTI_MEMORY, "more than one memory"),
    (WasmFeatures::RELAXED_SIMD, "relaxed SIMD"),
    (WasmFeatures::GC.union(WasmFeatures::FUNCTION_REFERENCES), "garbage collection and typed references"),
    (WasmFeatures::FUNCTION_REFERENCES, "typed function references"),
    (WasmFeatures::WIDE_ARITHMETIC, "wide arithmetic"),
    (WasmFeatures::CUSTOM_PAGE_SIZES, "custom page sizes"),
    (WasmFeatures::STACK_SWITCHING, "stack switching"),
    (WasmFeatures::MEMORY_CONTROL, "memory control"),
    (WasmFeatures::SHARED_EVERYTHING_THREADS, "threads and shared memory"),
    (WasmFeatures::COMPACT_IMPORTS, "compact imports"),
];

/// Sizes beyond which compilers need more time or memory than an upload is worth. Large real modules (Go, Python,
/// JavaScript engines) stay well below.
const MAX_FUNCTIONS: u32 = 100_000;
const MAX_BODY_BYTES: u64 = 512 << 10;
const MAX_LOCALS: u64 = 10_000;
const MAX_BR_TABLE: u32 = 16_384;
const MAX_NESTING: u32 = 4_096;
/// Values on the operand stack at once: they are the compilers' temporaries.
const MAX_OPERANDS: u32 = 4_096;
const MAX_TYPES: u32 = 10_000;
const MAX_PARAMS: usize = 128;
const MAX_RESULTS: usize = 32;
const MAX_GLOBALS: u32 = 10_000;
const MAX_IMPORTS: u32 = 1_000;
const MAX_EXPORTS: u32 = 4_096;
const MAX_TABLES: u32 = 16;
/// Go writes a segment for each run of bytes that are not zero: 40,000 in a small program.
const MAX_DATA_SEGMENTS: u32 = 100_000;
const MAX_ELEMENT_SEGMENTS: u32 = 20_000;
/// Of import and export names.
const MAX_NAME_BYTES: usize = 1_024;

fn refuse<T>(kind: NotLoadableKind, detail: impl Into<String>) -> Result<T, NotLoadable> {
    Err(NotLoadable::new(kind, detail))
}

/// Checks `bytes` and finds what it is. `declared` is the ABI that the uploader named.
pub fn inspect(
    bytes: &[u8],
    declared: Option<Abi>,
    max_bytes: u64,
    limits: &Limits,
) -> Result<(Abi, ModuleShape), NotLoadable> {
    check_format(bytes, max_bytes)?;
    let mut scan = Scan { limits, shape: ModuleShape::default(), types: Vec::new(), functions: Vec::new() };
    scan.module(bytes)?;
    let abi = abi::detect(&scan.shape, declared)?;
    Ok((abi, scan.shape))
}

fn check_format(bytes: &[u8], max_bytes: u64) -> Result<(), NotLoadable> {
    use NotLoadableKind::{CompileLimit, InvalidModule, UnsupportedFormat};
    if bytes.len() as u64 > max_bytes {
        return refuse(CompileLimit, format!("the module has {} bytes; the limit is {max_bytes}", bytes.len()));
    }
    match bytes {
        [] => refuse(InvalidModule, "the module is empty"),
        [0, b'a', b's', b'm', 1, 0, 0, 0, ..] => Ok(()),
        [0, b'a', b's', b'm', _, 0, 1, 0, ..] => {
            refuse(UnsupportedFormat, "this is a component; components come later: build a core module (wasip1)")
        }
        [0, b'a', b's', b'm', ..] => refuse(UnsupportedFormat, "unknown WebAssembly version: only version 1 runs here"),
        text if text.trim_ascii_start().starts_with(b"(") || text.trim_ascii_start().starts_with(b";;") => refuse(
            UnsupportedFormat,
            "this is WebAssembly text, and the API takes binaries; `wasmgate module push` and `exec` take text as well",
        ),
        _ => refuse(UnsupportedFormat, "this is not a WebAssembly binary: it does not begin with `\\0asm`"),
    }
}

struct Scan<'l> {
    limits: &'l Limits,
    shape: ModuleShape,
    /// Signatures by type index.
    types: Vec<(Vec<ValType>, Vec<ValType>)>,
    /// Type index of each function, imported ones first.
    functions: Vec<u32>,
}

impl Scan<'_> {
    fn module(&mut self, bytes: &[u8]) -> Result<(), NotLoadable> {
        let mut validator = Validator::new_with_features(ALLOWED);
        let mut allocations = FuncValidatorAllocations::default();
        for payload in Parser::new(0).parse_all(bytes) {
            let payload = payload.map_err(|e| invalid(bytes, &e))?;
            self.limits_of(&payload)?;
            match validator.payload(&payload).map_err(|e| invalid(bytes, &e))? {
                ValidPayload::Func(func, body) => {
                    let mut checker = func.into_validator(std::mem::take(&mut allocations));
                    self.body(bytes, &mut checker, &body)?;
                    allocations = checker.into_allocations();
                }
                // A section is read only after it was validated, so that reading can't fail in new ways.
                _ => self.section(payload).map_err(|e| match e {
                    ScanError::Refused(refusal) => refusal,
                    ScanError::Parse(e) => invalid(bytes, &e),
                })?,
            }
        }
        Ok(())
    }

    /// Counts, before anything of their size is allocated or validated.
    fn limits_of(&self, payload: &Payload<'_>) -> Result<(), NotLoadable> {
        let (what, count, max) = match payload {
            Payload::TypeSection(s) => ("types", s.count(), MAX_TYPES),
            Payload::ImportSection(s) => ("imports", s.count(), MAX_IMPORTS),
            Payload::FunctionSection(s) => ("functions", s.count(), MAX_FUNCTIONS),
            Payload::TableSection(s) => ("tables", s.count(), MAX_TABLES),
            Payload::GlobalSection(s) => ("globals", s.count(), MAX_GLOBALS),
            Payload::ExportSection(s) => ("exports", s.count(), MAX_EXPORTS),
            Payload::ElementSection(s) => ("element segments", s.count(), MAX_ELEMENT_SEGMENTS),
            Payload::DataSection(s) => ("data segments", s.count(), MAX_DATA_SEGMENTS),
            _ => return Ok(()),
        };
        if count <= max {
            return Ok(());
        }
        refuse(NotLoadableKind::CompileLimit, format!("the module has {count} {what}; the limit is {max}"))
    }

    fn section(&mut self, payload: Payload<'_>) -> Result<(), ScanError> {
        match payload {
            Payload::TypeSection(section) => {
                for ty in section.into_iter_err_on_gc_types() {
                    let ty = ty?;
                    if ty.params().len() > MAX_PARAMS || ty.results().len() > MAX_RESULTS {
                        let detail = format!(
                            "a function type has {} parameters and {} results; the limits are {MAX_PARAMS} and {MAX_RESULTS}",
                            ty.params().len(),
                            ty.results().len()
                        );
                        refuse(NotLoadableKind::CompileLimit, detail)?;
                    }
                    self.types.push((ty.params().to_vec(), ty.results().to_vec()));
                }
            }
            Payload::ImportSection(section) => {
                for import in section.into_imports() {
                    let import = import?;
                    short(import.module)?;
                    short(import.name)?;
                    let ty = match import.ty {
                        TypeRef::Func(index) => {
                            self.functions.push(index);
                            self.signature(index)
                        }
                        TypeRef::Memory(_) => "memory".to_owned(),
                        TypeRef::Table(_) => "table".to_owned(),
                        TypeRef::Global(_) => "global".to_owned(),
                        _ => "other".to_owned(),
                    };
                    let (module, name) = (import.module.to_owned(), import.name.to_owned());
                    self.shape.imports.push(ImportShape { module, name, ty });
                }
            }
            Payload::FunctionSection(section) => {
                for ty in section {
                    self.functions.push(ty?);
                }
            }
            Payload::TableSection(section) => {
                for table in section {
                    let ty = table?.ty;
                    let max = u64::from(self.limits.table_elements);
                    if ty.initial > max {
                        refuse(
                            NotLoadableKind::MemoryLimit,
                            format!("a table begins with {} elements; the limit is {max}", ty.initial),
                        )?;
                    }
                    if ty.element_type != RefType::FUNCREF && ty.element_type != RefType::EXTERNREF {
                        refuse(NotLoadableKind::UnsupportedFeature, "tables of typed references are not supported")?;
                    }
                }
            }
            Payload::MemorySection(section) => {
                for memory in section {
                    self.memory(memory?)?;
                }
            }
            Payload::ExportSection(section) => {
                for export in section {
                    let export = export?;
                    short(export.name)?;
                    let ty = match export.kind {
                        ExternalKind::Func | ExternalKind::FuncExact => {
                            let index = self.functions.get(export.index as usize).copied();
                            index.map_or_else(String::new, |ty| self.signature(ty))
                        }
                        ExternalKind::Memory => "memory".to_owned(),
                        ExternalKind::Table => "table".to_owned(),
                        ExternalKind::Global => "global".to_owned(),
                        ExternalKind::Tag => "tag".to_owned(),
                    };
                    if export.name.starts_with("wasmgate:") {
                        refuse(
                            NotLoadableKind::InvalidModule,
                            format!(
                                "the export `{}`: names that begin with `wasmgate:` are the gateway's",
                                export.name
                            ),
                        )?;
                    }
                    self.shape.exports.push(ExportShape { name: export.name.to_owned(), ty });
                }
            }
            Payload::StartSection { .. } => self.shape.has_start = true,
            _ => {}
        }
        Ok(())
    }

    fn memory(&mut self, ty: wasmparser::MemoryType) -> Result<(), ScanError> {
        const PAGE: u64 = 64 << 10;
        let min = ty.initial.saturating_mul(PAGE);
        if min > self.limits.memory_bytes {
            refuse(
                NotLoadableKind::MemoryLimit,
                format!("the module declares {min} bytes of memory; the limit is {}", self.limits.memory_bytes),
            )?;
        }
        self.shape.memory_min_bytes = min;
        self.shape.memory_max_bytes = ty.maximum.map(|m| m.saturating_mul(PAGE));
        Ok(())
    }

    fn signature(&self, type_index: u32) -> String {
        let Some((params, results)) = self.types.get(type_index as usize) else { return String::new() };
        let names = |types: &[ValType]| types.iter().map(|t| t.to_string()).collect::<Vec<_>>();
        let (params, results) = (names(params), names(results));
        let as_strs = |v: &'_ [String]| v.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
        match results.as_slice() {
            [one] => format!("({}) -> {one}", as_strs(&params)),
            many => format!("({}) -> ({})", as_strs(&params), as_strs(many)),
        }
    }

    fn body<T: wasmparser::WasmModuleResources>(
        &mut self,
        bytes: &[u8],
        checker: &mut wasmparser::FuncValidator<T>,
        body: &FunctionBody<'_>,
    ) -> Result<(), NotLoadable> {
        let over = |what: &str, is: u64, max: u64| {
            refuse(
                NotLoadableKind::CompileLimit,
                format!("function {} has {is} {what}; the limit is {max}", checker.index()),
            )
        };
        let size = body.range().end - body.range().start;
        if size > MAX_BODY_BYTES {
            return over("bytes", size, MAX_BODY_BYTES);
        }
        let mut locals = 0u64;
        let reader = body.get_locals_reader().map_err(|e| invalid(bytes, &e))?;
        for group in reader {
            let (n, _) = group.map_err(|e| invalid(bytes, &e))?;
            locals += u64::from(n);
            if locals > MAX_LOCALS {
                return over("locals", locals, MAX_LOCALS);
            }
        }
        let mut reader = body.get_binary_reader();
        checker.read_locals(&mut reader).map_err(|e| invalid(bytes, &e))?;
        let mut operators = wasmparser::OperatorsReader::new(reader);
        while !operators.eof() {
            let (op, offset) = operators.read_with_offset().map_err(|e| invalid(bytes, &e))?;
            if let Operator::BrTable { targets } = &op
                && targets.len() > MAX_BR_TABLE
            {
                let detail = format!("a `br_table` has {} targets; the limit is {MAX_BR_TABLE}", targets.len());
                return refuse(NotLoadableKind::CompileLimit, detail);
            }
            checker.op(offset, &op).map_err(|e| invalid(bytes, &e))?;
            if checker.control_stack_height() > MAX_NESTING {
                return refuse(NotLoadableKind::CompileLimit, format!("blocks are nested deeper than {MAX_NESTING}"));
            }
            if checker.operand_stack_height() > MAX_OPERANDS {
                let detail = format!("an expression has more than {MAX_OPERANDS} values on its stack");
                return refuse(NotLoadableKind::CompileLimit, detail);
            }
        }
        operators.finish().map_err(|e| invalid(bytes, &e))
    }
}

enum ScanError {
    Refused(NotLoadable),
    Parse(wasmparser::Error),
}

impl From<NotLoadable> for ScanError {
    fn from(e: NotLoadable) -> Self {
        ScanError::Refused(e)
    }
}

impl From<wasmparser::Error> for ScanError {
    fn from(e: wasmparser::Error) -> Self {
        ScanError::Parse(e)
    }
}

fn short(name: &str) -> Result<(), NotLoadable> {
    if name.len() <= MAX_NAME_BYTES {
        return Ok(());
    }
    let limit = format!("a name has {} bytes; the limit is {MAX_NAME_BYTES}", name.len());
    refuse(NotLoadableKind::CompileLimit, limit)
}

/// An invalid module is checked again with each refused feature switched on: the one with which it gets further is
/// what it needs.
fn invalid(bytes: &[u8], error: &wasmparser::Error) -> NotLoadable {
    let mut furthest = (error.offset(), None);
    for (feature, name) in REFUSED {
        let reached = match Validator::new_with_features(ALLOWED.union(*feature)).validate_all(bytes) {
            Ok(_) => u64::MAX,
            Err(e) => e.offset(),
        };
        if reached > furthest.0 {
            furthest = (reached, Some(*name));
        }
    }
    match furthest.1 {
        Some(name) => NotLoadable::new(
            NotLoadableKind::UnsupportedFeature,
            format!("the module needs {name}, which is not supported: build it without"),
        ),
        None => NotLoadable::new(
            NotLoadableKind::InvalidModule,
            format!("the module is invalid: {} (at byte {})", error.message(), error.offset()),
        ),
    }
}
