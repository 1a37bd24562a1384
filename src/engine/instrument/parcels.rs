//! A small module made large enough for two threads.
//!
//! Wasmer gives its threads functions in parcels of some 33 KB of code, so that one thread would compile all of a small
//! module while the other has nothing to do. What is never reached is parsed and dropped, and its bytes count.

use wasm_encoder::{BlockType, Function, Instruction};

/// A third of Wasmer's `WASM_LARGE_FUNCTION_THRESHOLD`.
const PARCEL: u32 = 33_333;
/// The code of all functions is to fill two; with fuel, it is about a fifth longer than it was.
const TWO: u32 = 2 * PARCEL * 4 / 5;
/// Below, a second thread takes longer to wake up than it saves.
const WORTH_IT: u32 = 4_096;

pub struct Parcels {
    /// For each byte of a function, so many are added.
    times: u32,
}

impl Parcels {
    /// Of a module with so much code; `None`: it is to stay as it is.
    pub fn of(code: u32) -> Option<Parcels> {
        (WORTH_IT..TWO).contains(&code).then(|| Parcels { times: TWO.div_ceil(code) - 1 }).filter(|p| p.times > 0)
    }

    /// At the beginning of a function of `len` bytes.
    pub fn pad(&self, f: &mut Function, len: usize) {
        let end = f.byte_len() + len * self.times as usize;
        f.instruction(&Instruction::Block(BlockType::Empty)).instruction(&Instruction::Br(0));
        while f.byte_len() < end {
            // The most bytes for the least work.
            f.instruction(&Instruction::V128Const(0)).instruction(&Instruction::Drop);
        }
        f.instruction(&Instruction::End);
    }
}
