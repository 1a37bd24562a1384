//! Fuel, written into the module itself before any compiler sees it, so that it is the same with all of them.
//!
//! A private counter (a mutable i64 global) goes down at charge points: function entries, loop headers, and inside
//! long functions at further places. Below zero, the code calls an imported function that gives a new slice or traps.
//! Bulk memory instructions go through functions of ours that work in pieces, each charged by its length, so that one
//! instruction over a gigabyte can't outrun the clock. The counter begins below zero by what making an instance copies.
//!
//! Invariant: every cycle of control passes a charge of at least 1, and what executes has been charged for: a charge
//! point covers only instructions that it dominates.

use wasm_encoder::reencode::{self, Reencode, utils};
use wasm_encoder::{
    BlockType, CodeSection, ConstExpr, DataCountSection, DataSection, ElementSection, EntityType, ExportKind,
    ExportSection, Function, FunctionSection, GlobalSection, GlobalType, ImportSection, Instruction, MemorySection,
    Module, NameSection, StartSection, TableSection, TypeSection, ValType,
};
use wasmparser::{DataKind, ElementItems, ElementKind, FunctionBody, KnownCustom, Operator, Parser, Payload};

mod plan;

use super::guest::{FUEL_EXPIRE, FUEL_GLOBAL, FUEL_MODULE};

use plan::Plan;

/// Bytes that bulk memory instructions move for one unit, as a shift.
const BULK_BYTES_SHIFT: i32 = 6;
/// Bulk memory instructions work in pieces of this many bytes: some 100 us when every page faults.
const PIECE: i32 = 1 << 20;
/// Table elements for one unit, as a shift.
const TABLE_ELEMENTS_SHIFT: i32 = 2;
/// For each segment that is copied when an instance is made, beside its length.
const SEGMENT_WEIGHT: u64 = 8;
/// Function names are kept for backtraces up to this many bytes of them.
const NAMES_BYTES: usize = 1 << 20;

#[derive(Debug, thiserror::Error)]
#[error("can't be instrumented: {0}")]
pub struct InstrumentError(String);

impl<E: std::fmt::Display> From<reencode::Error<E>> for InstrumentError {
    fn from(e: reencode::Error<E>) -> Self {
        InstrumentError(e.to_string())
    }
}

impl From<wasmparser::Error> for InstrumentError {
    fn from(e: wasmparser::Error) -> Self {
        InstrumentError(e.to_string())
    }
}

/// Where our own items are, and how the module's indices move.
struct Indices {
    imported_functions: u32,
    fuel_global: u32,
}

impl Indices {
    fn expire(&self) -> u32 {
        self.imported_functions
    }
}

impl Reencode for Indices {
    type Error = std::convert::Infallible;

    /// Our import is the last one, so all defined functions move by one.
    fn function_index(&mut self, func: u32) -> Result<u32, reencode::Error> {
        Ok(if func < self.imported_functions { func } else { func + 1 })
    }
}

/// A function of ours that does a bulk instruction in pieces.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Bulk {
    Fill,
    Copy,
    /// Of this data segment.
    Init(u32),
}

#[derive(Default)]
struct Sections {
    types: TypeSection,
    imports: ImportSection,
    functions: FunctionSection,
    tables: TableSection,
    memories: MemorySection,
    globals: GlobalSection,
    exports: ExportSection,
    start: Option<StartSection>,
    elements: ElementSection,
    data_count: Option<DataCountSection>,
    code: CodeSection,
    data: DataSection,
    names: Option<NameSection>,
}

/// Counts of the original module that fix where ours begin.
#[derive(Default)]
struct Counts {
    imported_functions: u32,
    defined_functions: u32,
    globals: u32,
    params: Vec<u32>,
    types_of_functions: Vec<u32>,
    /// What the segments weigh that are copied when an instance is made.
    segments: u64,
}

/// The module with fuel. The input must be valid under the features that `inspect` allows.
pub fn instrument(wasm: &[u8]) -> Result<Vec<u8>, InstrumentError> {
    let counts = count(wasm)?;
    let mut indices = Indices { imported_functions: counts.imported_functions, fuel_global: counts.globals };
    let mut sections = Sections::default();
    let first_helper = counts.imported_functions + 1 + counts.defined_functions;
    let mut helpers = Helpers { first: first_helper, made: Vec::new() };
    let mut defined = 0usize;
    for payload in Parser::new(0).parse_all(wasm) {
        let payload = payload?;
        if let Payload::CodeSectionEntry(body) = &payload {
            let params = counts.types_of_functions.get(defined).and_then(|ty| counts.params.get(*ty as usize));
            let params = *params.ok_or_else(|| InstrumentError("a function has no type".into()))?;
            let function = instrument_body(&mut indices, &mut helpers, body, params)?;
            sections.code.function(&function);
            defined += 1;
        } else {
            copy_section(&mut indices, &mut sections, payload)?;
        }
    }
    add_ours(&indices, &mut sections, &helpers, counts.segments);
    Ok(sections.finish())
}

fn count(wasm: &[u8]) -> Result<Counts, InstrumentError> {
    let mut counts = Counts::default();
    for payload in Parser::new(0).parse_all(wasm) {
        match payload? {
            Payload::TypeSection(section) => {
                for ty in section.into_iter_err_on_gc_types() {
                    counts.params.push(ty?.params().len() as u32);
                }
            }
            Payload::ImportSection(section) => {
                for import in section.into_imports() {
                    if matches!(import?.ty, wasmparser::TypeRef::Func(_)) {
                        counts.imported_functions += 1;
                    }
                }
            }
            Payload::FunctionSection(section) => {
                counts.defined_functions = section.count();
                for ty in section {
                    counts.types_of_functions.push(ty?);
                }
            }
            Payload::GlobalSection(section) => counts.globals = section.count(),
            Payload::ElementSection(section) => {
                for element in section {
                    let element = element?;
                    if matches!(element.kind, ElementKind::Active { .. }) {
                        let items = match element.items {
                            ElementItems::Functions(items) => items.count(),
                            ElementItems::Expressions(_, items) => items.count(),
                        };
                        counts.segments += SEGMENT_WEIGHT + u64::from(items >> TABLE_ELEMENTS_SHIFT);
                    }
                }
            }
            Payload::DataSection(section) => {
                for data in section {
                    let data = data?;
                    if matches!(data.kind, DataKind::Active { .. }) {
                        counts.segments += SEGMENT_WEIGHT + (data.data.len() as u64 >> BULK_BYTES_SHIFT);
                    }
                }
            }
            _ => {}
        }
    }
    Ok(counts)
}

fn copy_section(indices: &mut Indices, to: &mut Sections, payload: Payload<'_>) -> Result<(), InstrumentError> {
    match payload {
        Payload::TypeSection(s) => indices.parse_type_section(&mut to.types, s)?,
        Payload::ImportSection(s) => indices.parse_import_section(&mut to.imports, s)?,
        Payload::FunctionSection(s) => indices.parse_function_section(&mut to.functions, s)?,
        Payload::TableSection(s) => indices.parse_table_section(&mut to.tables, s)?,
        Payload::MemorySection(s) => indices.parse_memory_section(&mut to.memories, s)?,
        Payload::GlobalSection(s) => indices.parse_global_section(&mut to.globals, s)?,
        Payload::ExportSection(s) => indices.parse_export_section(&mut to.exports, s)?,
        Payload::StartSection { func, .. } => {
            to.start = Some(StartSection { function_index: indices.function_index(func)? });
        }
        Payload::ElementSection(s) => indices.parse_element_section(&mut to.elements, s)?,
        Payload::DataCountSection { count, .. } => to.data_count = Some(DataCountSection { count }),
        Payload::DataSection(s) => indices.parse_data_section(&mut to.data, s)?,
        Payload::CustomSection(s) => {
            // Debug information and the like would be carried in every artifact; names serve backtraces. A malformed
            // custom section is no error (core specification, appendix on custom sections).
            if let KnownCustom::Name(names) = s.as_known()
                && s.data().len() <= NAMES_BYTES
            {
                to.names = function_names(indices, names);
            }
        }
        Payload::CodeSectionStart { .. } | Payload::Version { .. } | Payload::End(_) => {}
        _ => return Err(InstrumentError("it has a section of no core module".into())),
    }
    Ok(())
}

fn function_names(indices: &mut Indices, section: wasmparser::NameSectionReader<'_>) -> Option<NameSection> {
    let mut names = NameSection::new();
    for subsection in section {
        if let wasmparser::Name::Function(map) = subsection.ok()? {
            let map = utils::name_map(map, |i| indices.function_index(i)).ok()?;
            names.functions(&map);
        }
    }
    Some(names)
}

/// Our types, import, counter, export and helper functions, each behind the module's own.
fn add_ours(indices: &Indices, to: &mut Sections, helpers: &Helpers, spent: u64) {
    let expire_type = to.types.len();
    to.types.ty().function([ValType::I64], [ValType::I64]);
    to.types.ty().function([ValType::I32; 3], []);
    to.imports.import(FUEL_MODULE, FUEL_EXPIRE, EntityType::Function(expire_type));
    let counter = GlobalType { val_type: ValType::I64, mutable: true, shared: false };
    let spent = i64::try_from(spent).unwrap_or(i64::MAX);
    to.globals.global(counter, &ConstExpr::i64_const(-spent));
    to.exports.export(FUEL_GLOBAL, ExportKind::Global, indices.fuel_global);
    for bulk in &helpers.made {
        to.functions.function(expire_type + 1);
        to.code.function(&bulk_function(indices, *bulk));
    }
}

impl Sections {
    fn finish(self) -> Vec<u8> {
        let mut module = Module::new();
        module.section(&self.types).section(&self.imports);
        if !self.functions.is_empty() {
            module.section(&self.functions);
        }
        if !self.tables.is_empty() {
            module.section(&self.tables);
        }
        if !self.memories.is_empty() {
            module.section(&self.memories);
        }
        module.section(&self.globals).section(&self.exports);
        if let Some(start) = &self.start {
            module.section(start);
        }
        if !self.elements.is_empty() {
            module.section(&self.elements);
        }
        if let Some(count) = &self.data_count {
            module.section(count);
        }
        if !self.code.is_empty() {
            module.section(&self.code);
        }
        if !self.data.is_empty() {
            module.section(&self.data);
        }
        if let Some(names) = &self.names {
            module.section(names);
        }
        module.finish()
    }
}

/// The functions for bulk instructions that the module needs.
struct Helpers {
    first: u32,
    made: Vec<Bulk>,
}

impl Helpers {
    fn index(&mut self, bulk: Bulk) -> u32 {
        let at = self.made.iter().position(|b| *b == bulk).unwrap_or_else(|| {
            self.made.push(bulk);
            self.made.len() - 1
        });
        self.first + at as u32
    }
}

/// `counter -= weight; if counter < 0 { counter = expire(counter) }`
fn charge(f: &mut Function, indices: &Indices, weight: u64) {
    let weight = Instruction::I64Const(i64::try_from(weight).unwrap_or(i64::MAX));
    charge_by(f, indices, |f| {
        f.instruction(&weight);
    });
}

/// The same with the weight (an i64) pushed by `push`.
fn charge_by(f: &mut Function, indices: &Indices, push: impl FnOnce(&mut Function)) {
    let counter = indices.fuel_global;
    f.instruction(&Instruction::GlobalGet(counter));
    push(f);
    f.instruction(&Instruction::I64Sub)
        .instruction(&Instruction::GlobalSet(counter))
        .instruction(&Instruction::GlobalGet(counter))
        .instruction(&Instruction::I64Const(0))
        .instruction(&Instruction::I64LtS)
        .instruction(&Instruction::If(BlockType::Empty))
        .instruction(&Instruction::GlobalGet(counter))
        .instruction(&Instruction::Call(indices.expire()))
        .instruction(&Instruction::GlobalSet(counter))
        .instruction(&Instruction::End);
}

/// The weight `(local >> shift) + 1`.
fn by_length(local: u32, shift: i32) -> impl FnOnce(&mut Function) {
    move |f| {
        f.instruction(&Instruction::LocalGet(local))
            .instruction(&Instruction::I32Const(shift))
            .instruction(&Instruction::I32ShrU)
            .instruction(&Instruction::I64ExtendI32U)
            .instruction(&Instruction::I64Const(1))
            .instruction(&Instruction::I64Add);
    }
}

fn instrument_body(
    indices: &mut Indices,
    helpers: &mut Helpers,
    body: &FunctionBody<'_>,
    params: u32,
) -> Result<Function, InstrumentError> {
    let plan = Plan::of(body, indices.imported_functions)?;
    let mut locals = Vec::new();
    let mut scratch = params;
    for group in body.get_locals_reader()? {
        let (n, ty) = group?;
        scratch += n;
        locals.push((n, indices.val_type(ty)?));
    }
    if plan.table_ops {
        locals.push((1, ValType::I32));
    }
    let mut f = Function::new(locals);
    let mut points = plan.points.iter().peekable();
    let mut reader = body.get_operators_reader()?;
    let mut at = 0usize;
    while !reader.eof() {
        while let Some(point) = points.next_if(|p| p.at == at) {
            charge(&mut f, indices, point.weight);
        }
        let op = reader.read()?;
        match op {
            Operator::MemoryFill { .. } => f.instruction(&Instruction::Call(helpers.index(Bulk::Fill))),
            Operator::MemoryCopy { .. } => f.instruction(&Instruction::Call(helpers.index(Bulk::Copy))),
            Operator::MemoryInit { data_index, .. } => {
                f.instruction(&Instruction::Call(helpers.index(Bulk::Init(data_index))))
            }
            Operator::TableFill { .. }
            | Operator::TableCopy { .. }
            | Operator::TableInit { .. }
            | Operator::TableGrow { .. } => {
                // The length is on top of the stack.
                f.instruction(&Instruction::LocalTee(scratch));
                charge_by(&mut f, indices, by_length(scratch, TABLE_ELEMENTS_SHIFT));
                f.instruction(&indices.instruction(op)?)
            }
            _ => f.instruction(&indices.instruction(op)?),
        };
        at += 1;
    }
    Ok(f)
}

/// `(dst, src_or_value, n)`: the instruction in pieces. A trap in a later piece leaves the earlier ones written, which
/// nobody can see: an instance is never used again after a trap.
fn bulk_function(indices: &Indices, bulk: Bulk) -> Function {
    const DST: u32 = 0;
    const SRC: u32 = 1;
    const N: u32 = 2;
    const PART: u32 = 3;
    let get = |local| Instruction::LocalGet(local);
    let mut f = Function::new([(1, ValType::I32)]);
    f.instruction(&Instruction::Loop(BlockType::Empty));
    // part = min(n, PIECE)
    f.instruction(&get(N))
        .instruction(&Instruction::I32Const(PIECE))
        .instruction(&get(N))
        .instruction(&Instruction::I32Const(PIECE))
        .instruction(&Instruction::I32LtU)
        .instruction(&Instruction::Select)
        .instruction(&Instruction::LocalSet(PART));
    charge_by(&mut f, indices, by_length(PART, BULK_BYTES_SHIFT));
    f.instruction(&get(N))
        .instruction(&get(PART))
        .instruction(&Instruction::I32Sub)
        .instruction(&Instruction::LocalSet(N));
    match bulk {
        Bulk::Fill => {
            f.instruction(&get(DST)).instruction(&get(SRC)).instruction(&get(PART));
            f.instruction(&Instruction::MemoryFill(0));
            advance(&mut f, &[DST], PART);
        }
        Bulk::Init(data_index) => {
            f.instruction(&get(DST)).instruction(&get(SRC)).instruction(&get(PART));
            f.instruction(&Instruction::MemoryInit { mem: 0, data_index });
            advance(&mut f, &[DST, SRC], PART);
        }
        Bulk::Copy => copy_piece(&mut f, DST, SRC, N, PART),
    }
    f.instruction(&get(N))
        .instruction(&Instruction::BrIf(0))
        .instruction(&Instruction::End)
        .instruction(&Instruction::End);
    f
}

/// Overlapping ranges: forwards when the destination is below the source, else from the end (`n` is what is left).
fn copy_piece(f: &mut Function, dst: u32, src: u32, n: u32, part: u32) {
    let copy = Instruction::MemoryCopy { src_mem: 0, dst_mem: 0 };
    let get = |local| Instruction::LocalGet(local);
    f.instruction(&get(dst))
        .instruction(&get(src))
        .instruction(&Instruction::I32LeU)
        .instruction(&Instruction::If(BlockType::Empty));
    f.instruction(&get(dst)).instruction(&get(src)).instruction(&get(part)).instruction(&copy);
    // Both move alike, so the direction stays what it was.
    advance(f, &[dst, src], part);
    f.instruction(&Instruction::Else);
    for base in [dst, src] {
        f.instruction(&get(base)).instruction(&get(n)).instruction(&Instruction::I32Add);
    }
    f.instruction(&get(part)).instruction(&copy).instruction(&Instruction::End);
}

fn advance(f: &mut Function, locals: &[u32], by: u32) {
    for local in locals {
        f.instruction(&Instruction::LocalGet(*local))
            .instruction(&Instruction::LocalGet(by))
            .instruction(&Instruction::I32Add)
            .instruction(&Instruction::LocalSet(*local));
    }
}
