//! The attack table: every way in which a guest is known to attack, each once with code compiled fast and once with the
//! optimised code that takes its place, against one running server that other callers use meanwhile.
//!
//! `./scripts/attack` prints it. Rows are data in `uploads`, `runs` and `handlers`; what needs more than one request is a
//! scene in `scenes`.
//!
//! Invariant: a row holds when the answer is the exact status and slug, every request of the other callers succeeded, and
//! the process is the same one with its memory, threads and descriptors in bounds.

mod arena;
mod figures;
mod handlers;
pub mod loops;
mod others;
mod report;
mod row;
mod runs;
mod scenes;
mod uploads;

use arena::Arena;
use report::Report;
use row::{Code, Row};

fn rows() -> Vec<Row> {
    [uploads::rows(), runs::rows(), handlers::rows(), scenes::rows()].into_iter().flatten().collect()
}

#[test]
fn every_attack_is_contained() {
    let rows = rows();
    let mut report = Report::new();
    let arena = Arena::start(&rows);
    report.turn(&arena, &rows, Code::Fast);
    let arena = arena.optimised();
    report.turn(&arena, &rows, Code::Optimised);
    report.end();
}
