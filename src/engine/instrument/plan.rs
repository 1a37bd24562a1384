//! Where a function is charged, and how much.
//!
//! Invariant: a point covers only instructions that it dominates, so what executes has been charged for; loops and
//! function entries have a point of at least 1, which looks at the counter.

use wasmparser::{FunctionBody, Operator};

use super::InstrumentError;

/// A charge point takes in later conditional code up to this weight, so that short branches cost nothing of their own;
/// what isn't executed of it is overcharged.
const POINT_WEIGHT: u64 = 64;
/// Beyond one: an import crosses to the host.
const IMPORT_CALL_WEIGHT: u64 = 30;
const CALL_WEIGHT: u64 = 4;
/// A system call, and pages that fault later.
const GROW_WEIGHT: u64 = 1_000;
/// What may be charged one after the other without a look at the counter: a microsecond of ordinary code.
const UNCHECKED: u64 = 4_096;

/// A charge before the instruction with this number.
pub struct Point {
    pub at: usize,
    pub weight: u64,
    /// The counter is looked at. It is at entries and loop headers; elsewhere the call behind it would cost the code around
    /// its registers.
    pub checks: bool,
}

impl Point {
    fn checking(at: usize) -> Point {
        Point { at, weight: 1, checks: true }
    }
}

/// Where a function is charged. Points are in the order of instructions.
pub struct Plan {
    pub points: Vec<Point>,
    /// It has instructions on tables that are charged by length, which takes a scratch local.
    pub table_ops: bool,
}

/// What control does at an instruction.
enum Control {
    None,
    Loop,
    /// `block`, and `if` whose arms begin there.
    Open,
    Else,
    End,
    /// Leaves straight-line code: what follows may not be reached.
    Branch,
}

impl Plan {
    pub fn of(body: &FunctionBody<'_>, imported_functions: u32) -> Result<Plan, InstrumentError> {
        let runs = straight_runs(body, imported_functions)?;
        let mut plan = Plan { points: vec![Point::checking(0)], table_ops: runs.table_ops };
        // For each open construct, the point that its next instructions are charged at. A point that was opened inside
        // a construct is left with it, as a branch may have passed it by; the one outside still dominates.
        let mut active = vec![0usize];
        for run in &runs.runs {
            let current = active.last_mut().ok_or_else(|| InstrumentError("unbalanced blocks".into()))?;
            let point = &plan.points[*current];
            if run.weight > 0 && point.weight > 1 && point.weight + run.weight > POINT_WEIGHT && run.at > point.at {
                plan.points.push(Point { at: run.at, weight: 0, checks: false });
                *current = plan.points.len() - 1;
            }
            plan.points[*current].weight += run.weight;
            let current = *current;
            match run.control {
                Control::Loop => {
                    plan.points.push(Point::checking(run.next));
                    active.push(plan.points.len() - 1);
                }
                Control::Open => active.push(current),
                Control::Else => {
                    active.pop();
                    let outer = *active.last().ok_or_else(|| InstrumentError("unbalanced blocks".into()))?;
                    active.push(outer);
                }
                Control::End => {
                    active.pop();
                }
                Control::Branch | Control::None => {}
            }
        }
        plan.check_often();
        Ok(plan)
    }

    /// Between two headers control only goes forwards, so what is charged there is charged once.
    fn check_often(&mut self) {
        let mut unchecked = 0;
        for point in &mut self.points {
            unchecked += point.weight;
            point.checks |= unchecked > UNCHECKED;
            if point.checks {
                unchecked = 0;
            }
        }
    }
}

/// Instructions that are executed all or (but for a trap) none, with the control at their end.
struct Run {
    at: usize,
    /// The instruction behind the last one.
    next: usize,
    weight: u64,
    control: Control,
}

struct Runs {
    runs: Vec<Run>,
    table_ops: bool,
}

fn straight_runs(body: &FunctionBody<'_>, imported_functions: u32) -> Result<Runs, InstrumentError> {
    let mut out = Runs { runs: Vec::new(), table_ops: false };
    let mut run = Run { at: 0, next: 0, weight: 0, control: Control::None };
    let mut reader = body.get_operators_reader()?;
    let mut at = 0usize;
    while !reader.eof() {
        let op = reader.read()?;
        out.table_ops |= matches!(
            op,
            Operator::TableFill { .. }
                | Operator::TableCopy { .. }
                | Operator::TableInit { .. }
                | Operator::TableGrow { .. }
        );
        run.weight += weight(&op, imported_functions);
        at += 1;
        let control = control(&op);
        if !matches!(control, Control::None) {
            out.runs.push(Run { next: at, control, ..run });
            run = Run { at, next: at, weight: 0, control: Control::None };
        }
    }
    Ok(out)
}

fn control(op: &Operator<'_>) -> Control {
    match op {
        Operator::Loop { .. } => Control::Loop,
        Operator::Block { .. } | Operator::If { .. } => Control::Open,
        Operator::Else => Control::Else,
        Operator::End => Control::End,
        Operator::Br { .. }
        | Operator::BrIf { .. }
        | Operator::BrTable { .. }
        | Operator::Return
        | Operator::Unreachable => Control::Branch,
        _ => Control::None,
    }
}

fn weight(op: &Operator<'_>, imported_functions: u32) -> u64 {
    match op {
        Operator::Block { .. } | Operator::Loop { .. } | Operator::End | Operator::Else | Operator::Nop => 0,
        Operator::Call { function_index } if *function_index < imported_functions => IMPORT_CALL_WEIGHT,
        Operator::Call { .. } | Operator::CallIndirect { .. } => CALL_WEIGHT,
        Operator::MemoryGrow { .. } => GROW_WEIGHT,
        _ => 1,
    }
}
