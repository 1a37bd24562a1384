//! Fuel, written into the module itself before any compiler sees it, so that it is the same with all of them.
//!
//! A private counter (a mutable i64 global) goes down at charge points: function entries, loop headers, and inside
//! long functions at further places. Below zero, the code calls an imported function that gives a new slice or traps.
//! In optimised code a function keeps the counter in a local as well and reads the global only behind calls, so that a loop
//! does not wait for what it has just stored; every charge is stored, so that a trap finds the exact count. Loops look at it
//! from outside: see `open_loop`. In code that is to be compiled fast it is in the global alone.
//! Bulk memory instructions go through functions of ours that work in pieces, each charged by its length, so that one
//! instruction over a gigabyte can't outrun the clock. The counter begins below zero by what making an instance copies.
//!
//! Invariant: every cycle of control passes a charge of at least 1, and what executes has been charged for: a charge
//! point covers only instructions that it dominates.

use wasm_encoder::reencode::{self, Reencode, utils};
use wasm_encoder::{
    CodeSection, ConstExpr, DataCountSection, DataSection, ElementSection, EntityType, ExportKind, ExportSection,
    Function, FunctionSection, GlobalSection, GlobalType, ImportSection, Instruction, MemorySection, Module,
    NameSection, StartSection, TableSection, TypeSection, ValType,
};
use wasmparser::{DataKind, ElementItems, ElementKind, FunctionBody, KnownCustom, Operator, Parser, Payload};

mod bulk;
mod counter;
mod parcels;
mod plan;

use super::Compiler;
use super::guest::{FUEL_EXPIRE, FUEL_GLOBAL, FUEL_MODULE};

use bulk::{BULK_BYTES_SHIFT, Bulk, Helpers, bulk_function};
use counter::{Counter, Labels, by_length, close, constant, open_loop};
use parcels::Parcels;
use plan::Plan;

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
    counts_in_locals: bool,
    parcels: Option<Parcels>,
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
    /// Bytes of all functions.
    code: u32,
    /// What the segments weigh that are copied when an instance is made.
    segments: u64,
}

/// The module with fuel, for this compiler. The input must be valid under the features that `inspect` allows.
pub fn instrument(wasm: &[u8], compiler: Compiler) -> Result<Vec<u8>, InstrumentError> {
    let counts = count(wasm)?;
    let mut indices = Indices {
        imported_functions: counts.imported_functions,
        fuel_global: counts.globals,
        counts_in_locals: compiler == Compiler::Optimising,
        parcels: (compiler == Compiler::Fast).then(|| Parcels::of(counts.code)).flatten(),
    };
    let mut sections = Sections::default();
    let first_helper = counts.imported_functions + 1 + counts.defined_functions;
    let mut helpers = Helpers { first: first_helper, made: Vec::new() };
    let mut defined = 0usize;
    for payload in Parser::new(0).parse_all(wasm) {
        let payload = payload?;
        if let Payload::CodeSectionEntry(body) = &payload {
            let params = counts.types_of_functions.get(defined).and_then(|ty| counts.params.get(*ty as usize));
            let params = *params.ok_or_else(|| InstrumentError("a function has no type".into()))?;
            let function = instrument_body(&mut indices, &mut helpers, body, params, &counts.params)?;
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
            Payload::CodeSectionStart { size, .. } => counts.code = size,
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

fn instrument_body(
    indices: &mut Indices,
    helpers: &mut Helpers,
    body: &FunctionBody<'_>,
    params: u32,
    params_of_types: &[u32],
) -> Result<Function, InstrumentError> {
    let plan = Plan::of(body, indices.imported_functions)?;
    let mut locals = Vec::new();
    let mut own = params;
    for group in body.get_locals_reader()? {
        let (n, ty) = group?;
        own += n;
        locals.push((n, indices.val_type(ty)?));
    }
    let counter = Counter::of(indices, own);
    if indices.counts_in_locals {
        locals.push((1, ValType::I64));
        own += 1;
    }
    let scratch = own;
    if plan.table_ops {
        locals.push((1, ValType::I32));
    }
    let mut f = Function::new(locals);
    if let Some(parcels) = &indices.parcels {
        parcels.pad(&mut f, body.as_bytes().len());
    }
    counter.read(&mut f);
    let mut labels = Labels::of_function();
    let mut points = plan.points.iter().peekable();
    let mut reader = body.get_operators_reader()?;
    let mut at = 0usize;
    while !reader.eof() {
        while let Some(point) = points.next_if(|p| p.at == at) {
            counter.subtract(&mut f, constant(point.weight));
            if point.checks {
                counter.check(&mut f);
            }
        }
        let op = reader.read()?;
        at += 1;
        match op {
            Operator::Loop { blockty } if takes_nothing(blockty, params_of_types) => {
                let ty = indices.block_type(blockty)?;
                let header = points.next_if(|p| p.at == at);
                let header = header.ok_or_else(|| InstrumentError("a loop is not charged".into()))?;
                open_loop(&mut f, &mut labels, counter, ty, header.weight);
            }
            Operator::Block { .. } | Operator::Loop { .. } | Operator::If { .. } => {
                labels.enter(1, None);
                f.instruction(&indices.instruction(op)?);
            }
            Operator::End => close(&mut f, &mut labels, counter)?,
            Operator::Br { relative_depth } => {
                f.instruction(&Instruction::Br(labels.depth(relative_depth)?));
            }
            Operator::BrIf { relative_depth } => {
                f.instruction(&Instruction::BrIf(labels.depth(relative_depth)?));
            }
            Operator::BrTable { targets } => {
                let default = labels.depth(targets.default())?;
                let targets =
                    targets.targets().map(|t| labels.depth(t?)).collect::<Result<Vec<_>, InstrumentError>>()?;
                f.instruction(&Instruction::BrTable(targets.into(), default));
            }
            Operator::MemoryFill { .. } => helpers.call(&mut f, counter, Bulk::Fill),
            Operator::MemoryCopy { .. } => helpers.call(&mut f, counter, Bulk::Copy),
            Operator::MemoryInit { data_index, .. } => helpers.call(&mut f, counter, Bulk::Init(data_index)),
            Operator::Call { .. } | Operator::CallIndirect { .. } => {
                f.instruction(&indices.instruction(op)?);
                counter.read(&mut f);
            }
            Operator::TableFill { .. }
            | Operator::TableCopy { .. }
            | Operator::TableInit { .. }
            | Operator::TableGrow { .. } => {
                // The length is on top of the stack.
                f.instruction(&Instruction::LocalTee(scratch));
                counter.subtract(&mut f, by_length(scratch, TABLE_ELEMENTS_SHIFT));
                counter.check(&mut f);
                f.instruction(&indices.instruction(op)?);
            }
            _ => {
                f.instruction(&indices.instruction(op)?);
            }
        }
    }
    Ok(f)
}

fn takes_nothing(ty: wasmparser::BlockType, params_of_types: &[u32]) -> bool {
    match ty {
        wasmparser::BlockType::Empty | wasmparser::BlockType::Type(_) => true,
        wasmparser::BlockType::FuncType(index) => params_of_types.get(index as usize) == Some(&0),
    }
}
