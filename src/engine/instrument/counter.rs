//! The code that charges and that looks at the counter.
//!
//! Invariant: every charge is stored in the global, so that a trap finds the exact count; a local is never older. What is
//! charged, and where the counter is looked at, is the same with and without a local.

use wasm_encoder::{BlockType, Function, Instruction};

use super::{Indices, InstrumentError};

/// The counter as one function sees it.
#[derive(Clone, Copy)]
pub struct Counter {
    global: u32,
    /// Its copy in a local, in code that is to run fast. Without one and with the call in the loop, there is less to compile.
    local: Option<u32>,
    expire: u32,
}

impl Counter {
    pub fn of(indices: &Indices, local: u32) -> Counter {
        let local = indices.counts_in_locals.then_some(local);
        Counter { global: indices.fuel_global, local, expire: indices.expire() }
    }

    /// At a function's entry and behind a call.
    pub fn read(self, f: &mut Function) {
        if let Some(local) = self.local {
            f.instruction(&Instruction::GlobalGet(self.global)).instruction(&Instruction::LocalSet(local));
        }
    }

    fn get(self, f: &mut Function) {
        f.instruction(&self.local.map_or(Instruction::GlobalGet(self.global), Instruction::LocalGet));
    }

    fn set(self, f: &mut Function) {
        if let Some(local) = self.local {
            f.instruction(&Instruction::LocalTee(local));
        }
        f.instruction(&Instruction::GlobalSet(self.global));
    }

    /// `counter -= weight`, where `push` pushes the weight (an i64).
    pub fn subtract(self, f: &mut Function, push: impl FnOnce(&mut Function)) {
        self.get(f);
        push(f);
        f.instruction(&Instruction::I64Sub);
        self.set(f);
    }

    /// `counter < 0` on the stack.
    fn is_used_up(self, f: &mut Function) {
        self.get(f);
        f.instruction(&Instruction::I64Const(0)).instruction(&Instruction::I64LtS);
    }

    /// `expire(counter)` on the stack.
    fn renewed(self, f: &mut Function) {
        self.get(f);
        f.instruction(&Instruction::Call(self.expire));
    }

    /// `if counter < 0 { counter = expire(counter) }`
    pub fn check(self, f: &mut Function) {
        self.is_used_up(f);
        f.instruction(&Instruction::If(BlockType::Empty));
        self.renewed(f);
        self.set(f);
        f.instruction(&Instruction::End);
    }
}

pub fn constant(weight: u64) -> impl FnOnce(&mut Function) {
    move |f| {
        f.instruction(&Instruction::I64Const(i64::try_from(weight).unwrap_or(i64::MAX)));
    }
}

/// The labels of the original code, innermost last, and how many are open now.
pub struct Labels {
    of: Vec<Label>,
    open: u32,
}

struct Label {
    /// How many labels were open outside of it.
    outside: u32,
    /// A loop with its check outside, and what an iteration is charged.
    checked_outside: Option<u64>,
}

impl Labels {
    /// Of a function: its body is the first.
    pub fn of_function() -> Labels {
        let mut labels = Labels { of: Vec::new(), open: 0 };
        labels.enter(1, None);
        labels
    }

    /// `labels`: how many are opened for this one of the original, the last of which it is.
    pub fn enter(&mut self, labels: u32, checked_outside: Option<u64>) {
        self.open += labels;
        self.of.push(Label { outside: self.open - 1, checked_outside });
    }

    /// The depth of what the original code calls `depth`.
    pub fn depth(&self, depth: u32) -> Result<u32, InstrumentError> {
        let label = self.of.iter().rev().nth(depth as usize);
        label.map(|l| self.open - 1 - l.outside).ok_or_else(|| InstrumentError("a branch leads nowhere".into()))
    }
}

/// Opens a loop (without parameters) whose check, where the counter is in a local, leaves it, so that the call of `expire` is not in it: compilers would
/// keep the loop's values where the call leaves them alone, in memory.
///
/// `block { loop { block { loop { counter -= weight; br_if counter < 0; ... } br out } counter = expire(counter) + weight } }`
pub fn open_loop(f: &mut Function, labels: &mut Labels, counter: Counter, ty: BlockType, weight: u64) {
    let Some(_) = counter.local else {
        labels.enter(1, None);
        f.instruction(&Instruction::Loop(ty));
        counter.subtract(f, constant(weight));
        counter.check(f);
        return;
    };
    labels.enter(LOOP_LABELS, Some(weight));
    f.instruction(&Instruction::Block(ty))
        .instruction(&Instruction::Loop(ty))
        .instruction(&Instruction::Block(BlockType::Empty))
        .instruction(&Instruction::Loop(ty));
    counter.subtract(f, constant(weight));
    counter.is_used_up(f);
    f.instruction(&Instruction::BrIf(1));
}

const LOOP_LABELS: u32 = 4;

pub fn close(f: &mut Function, labels: &mut Labels, counter: Counter) -> Result<(), InstrumentError> {
    let label = labels.of.pop().ok_or_else(|| InstrumentError("unbalanced blocks".into()))?;
    f.instruction(&Instruction::End);
    let Some(weight) = label.checked_outside else {
        labels.open -= 1;
        return Ok(());
    };
    labels.open -= LOOP_LABELS;
    f.instruction(&Instruction::Br(2)).instruction(&Instruction::End);
    // The iteration that did not begin is charged when it does.
    counter.renewed(f);
    constant(weight)(f);
    f.instruction(&Instruction::I64Add);
    counter.set(f);
    f.instruction(&Instruction::Br(0)).instruction(&Instruction::End).instruction(&Instruction::End);
    Ok(())
}

/// The weight `(local >> shift) + 1`.
pub fn by_length(local: u32, shift: i32) -> impl FnOnce(&mut Function) {
    move |f| {
        f.instruction(&Instruction::LocalGet(local))
            .instruction(&Instruction::I32Const(shift))
            .instruction(&Instruction::I32ShrU)
            .instruction(&Instruction::I64ExtendI32U)
            .instruction(&Instruction::I64Const(1))
            .instruction(&Instruction::I64Add);
    }
}
