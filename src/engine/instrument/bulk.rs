//! Bulk memory instructions as functions that work in pieces, each charged by its length, so that one instruction over a
//! gigabyte can't outrun the clock.

use wasm_encoder::{BlockType, Function, Instruction, ValType};

use super::Indices;
use super::counter::{Counter, by_length};

/// Bytes that bulk memory instructions move for one unit, as a shift.
pub const BULK_BYTES_SHIFT: i32 = 6;
/// Bulk memory instructions work in pieces of this many bytes: some 100 us when every page faults.
const PIECE: i32 = 1 << 20;

/// A function of ours that does a bulk instruction in pieces.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Bulk {
    Fill,
    Copy,
    /// Of this data segment.
    Init(u32),
}

/// The functions for bulk instructions that the module needs.
pub struct Helpers {
    pub first: u32,
    pub made: Vec<Bulk>,
}

impl Helpers {
    fn index(&mut self, bulk: Bulk) -> u32 {
        let at = self.made.iter().position(|b| *b == bulk).unwrap_or_else(|| {
            self.made.push(bulk);
            self.made.len() - 1
        });
        self.first + at as u32
    }

    pub fn call(&mut self, f: &mut Function, counter: Counter, bulk: Bulk) {
        f.instruction(&Instruction::Call(self.index(bulk)));
        counter.read(f);
    }
}

/// `(dst, src_or_value, n)`: the instruction in pieces. A trap in a later piece leaves the earlier ones written, which
/// nobody can see: an instance is never used again after a trap.
pub fn bulk_function(indices: &Indices, bulk: Bulk) -> Function {
    const DST: u32 = 0;
    const SRC: u32 = 1;
    const N: u32 = 2;
    const PART: u32 = 3;
    let counter = Counter::of(indices, PART + 1);
    let get = |local| Instruction::LocalGet(local);
    let mut f = Function::new([(1, ValType::I32), (1, ValType::I64)]);
    counter.read(&mut f);
    f.instruction(&Instruction::Loop(BlockType::Empty));
    // part = min(n, PIECE)
    f.instruction(&get(N))
        .instruction(&Instruction::I32Const(PIECE))
        .instruction(&get(N))
        .instruction(&Instruction::I32Const(PIECE))
        .instruction(&Instruction::I32LtU)
        .instruction(&Instruction::Select)
        .instruction(&Instruction::LocalSet(PART));
    counter.subtract(&mut f, by_length(PART, BULK_BYTES_SHIFT));
    counter.check(&mut f);
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
